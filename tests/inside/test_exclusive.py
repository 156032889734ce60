"""One model does one thing at a time: threads wait for each other, and neither sees what the other changed."""

import threading

import pytest
import torch

from helpers.errors import ModelBusyError
from helpers.inside import exclusive
from helpers.inside.exclusive import busy_with, one_at_a_time
from helpers.inside.interventions import ablate_heads, steer
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
