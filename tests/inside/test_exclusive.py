"""One model does one thing at a time: threads wait for each other, and neither sees what the other changed."""

import threading

import pytest
import torch

from helpers.errors import ModelBusyError
from helpers.inside import exclusive
from helpers.inside.anatomy import anatomy
from helpers.inside.exclusive import busy_with, one_at_a_time
from helpers.inside.interventions import ablate_heads, steer
from helpers.inside.patching import patching_sweep
from helpers.inside.tracing import trace

IDS = [3, 17, 5, 44, 9, 21]


@pytest.fixture
def llama(new_tiny):
    return new_tiny("Llama")


def in_a_thread(function):
    """What a function gives, or raises, in another thread: started, not waited for."""
    found = {}

    def run():
        try:
            found["result"] = function()
        except Exception as error:
            found["error"] = error

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_one_thread_may_take_it_again(llama):
    with one_at_a_time(llama, "a"), one_at_a_time(llama, "b"):
        assert busy_with(llama) == "b"
    assert busy_with(llama) is None


def test_two_models_do_not_wait_for_each_other(llama, new_tiny):
    other = new_tiny("Glm")
    with one_at_a_time(llama, "a"):
        thread, found = in_a_thread(lambda: one_at_a_time(other, "b").__enter__())
        thread.join(10)
    assert "error" not in found and not thread.is_alive()


def test_a_thread_waits_and_then_sees_nothing_of_the_other(llama, tokenizer):
    clean = trace(llama, tokenizer, IDS)
    with steer(llama, 1, torch.full((32,), 5.0)):
        thread, found = in_a_thread(lambda: trace(llama, tokenizer, IDS))
        thread.join(0.3)
        assert thread.is_alive(), "it did not wait"
    thread.join(30)
    assert torch.equal(found["result"].logits, clean.logits)


def test_who_waits_too_long_is_told_for_what(llama, tokenizer, monkeypatch):
    monkeypatch.setattr(exclusive, "PATIENCE", 0.05)
    with ablate_heads(llama, [(0, 1)]):
        thread, found = in_a_thread(lambda: trace(llama, tokenizer, IDS))
        thread.join(30)
    assert isinstance(found["error"], ModelBusyError)
    assert "busy with ablate_heads in another thread" in str(found["error"])
    assert trace(llama, tokenizer, IDS).logits is not None, "and the model is free again"


def test_traces_in_many_threads_leave_the_model_as_it_was(llama, tokenizer):
    before = llama.config._attn_implementation
    clean = trace(llama, tokenizer, IDS)
    threads = [in_a_thread(lambda: trace(llama, tokenizer, IDS)) for _ in range(6)]
    for thread, _ in threads:
        thread.join(60)
    assert all(torch.equal(found["result"].attentions, clean.attentions) for _, found in threads)
    assert llama.config._attn_implementation == before
    assert llama.generate(torch.tensor([IDS]), max_new_tokens=2, do_sample=False, pad_token_id=0).shape[1] == 8


def test_an_error_frees_the_model(llama):
    with pytest.raises(KeyboardInterrupt), one_at_a_time(llama, "a"):
        raise KeyboardInterrupt
    assert busy_with(llama) is None


# --- a reader's own model(…) and model.generate(…) in another thread


OTHER_IDS = torch.tensor([[7, 8, 9, 10], [11, 12, 13, 14]])


@pytest.fixture(params=["sdpa", "eager"])
def own(request, new_tiny):
    """A model that computes attention in this way, its first look already done."""
    model = new_tiny("Llama", attn_implementation=request.param)
    anatomy(model)
    return model


def in_the_middle(model, what):
    """A hook that calls `what` once, when layer 1 runs in this thread."""
    here, calls = threading.get_ident(), [what]

    def hook(*_):
        if threading.get_ident() == here and calls:
            calls.pop()()

    return model.model.layers[1].register_forward_pre_hook(hook)


def listening(model, tokenizer):
    return {
        "trace": lambda: trace(model, tokenizer, IDS, outputs_of=["model.layers.2.mlp"], inputs_of="model.layers.2"),
        "one position": lambda: trace(model, tokenizer, IDS, positions=[-1]),
        "patching_sweep": lambda: patching_sweep(model, tokenizer, IDS, [*IDS[:-1], 30], answer=1, against=2),
    }


def same(one, other):
    """Whether two results hold the same numbers."""
    ours = {name: value for name, value in vars(one).items() if name != "tokens"}
    return all(torch.equal(value, vars(other)[name]) for name, value in ours.items() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("name", ["trace", "one position", "patching_sweep"])
def test_a_run_that_another_thread_has_begun_is_neither_recorded_nor_changed(own, tokenizer, name):
    run = listening(own, tokenizer)[name]
    expected, logits = run(), own(OTHER_IDS).logits
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    here = threading.get_ident()

    def pause(*_):
        if threading.get_ident() != here:
            begun.set()
            go_on.wait(30)

    def other():
        try:
            return own(OTHER_IDS).logits
        finally:
            ended.set()

    def let_it_end():
        go_on.set()
        ended.wait(30)

    with own.model.layers[0].register_forward_pre_hook(pause):
        thread, found = in_a_thread(other)
        assert begun.wait(30)
        with in_the_middle(own, let_it_end):
            result = run()
        thread.join(30)
    assert same(result, expected)
    assert torch.equal(found["result"], logits)


@pytest.mark.parametrize("name", ["trace", "one position", "patching_sweep"])
def test_a_run_of_another_thread_waits_while_a_function_listens(own, tokenizer, name):
    run = listening(own, tokenizer)[name]
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    expected, answer = run(), own.generate(OTHER_IDS, **options)
    threads = []

    def begin():
        thread, found = in_a_thread(lambda: own.generate(OTHER_IDS, **options))
        thread.join(0.3)
        threads.append((thread, found, thread.is_alive()))

    with in_the_middle(own, begin):
        result = run()
    [(thread, found, waited)] = threads
    thread.join(30)
    assert waited and torch.equal(found["result"], answer)
    assert same(result, expected)
    assert "forward" not in vars(own)


def test_a_first_look_leaves_the_run_of_another_thread_alone(new_tiny):
    model = new_tiny("Llama")
    logits = model(OTHER_IDS).logits
    threads = []
    with in_the_middle(model, lambda: threads.append(in_a_thread(lambda: model(OTHER_IDS).logits))):
        anatomy(model)
    [(thread, found)] = threads
    thread.join(30)
    assert torch.equal(found["result"], logits)


def test_who_waits_too_long_for_a_run_is_told(own, tokenizer, monkeypatch):
    monkeypatch.setattr(exclusive, "PATIENCE", 0.05)
    threads = []

    def begin():
        thread, found = in_a_thread(lambda: own(OTHER_IDS))
        thread.join(30)
        threads.append(found)

    with in_the_middle(own, begin):
        trace(own, tokenizer, IDS)
    assert isinstance(threads[0]["error"], ModelBusyError) and "busy with trace" in str(threads[0]["error"])
