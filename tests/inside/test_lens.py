"""The logit lens against the plain way: final norm, lm_head and softmax of every hidden state at once."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from transformers import GlmConfig, GlmForCausalLM, LlamaConfig, LlamaForCausalLM

from helpers.errors import BadInputError
from helpers.inside import fast_lens
from helpers.inside.lens import logit_lens, plain_lens
from helpers.inside.tracing import Trace, trace


@pytest.fixture(scope="module")
def traced(model, tokenizer):
    return trace(model, tokenizer, "The capital of France is", attentions=False)


def _plain(model, traced):
    """Probabilities [layer+1, position, vocab]."""
    with torch.no_grad():
        normed = torch.cat([model.model.norm(traced.hidden_states[:-1]), traced.hidden_states[-1:]])
        return torch.softmax(model.lm_head(normed), dim=-1)


@pytest.fixture(params=["as on a CPU", "as on a GPU", "as on a GPU with Triton"])
def either_way(request, monkeypatch):
    """The lens, and once more with each way it takes on a GPU."""
    if request.param != "as on a CPU":
        _as_on_a_gpu(monkeypatch)
    if request.param == "as on a GPU with Triton":
        monkeypatch.setattr(fast_lens, "_one_pass", lambda device: _statistics)


def _statistics(scores, group):
    """What `softmax_kernel.statistics` gives; tests/gpu has the kernel itself."""
    highest = scores.amax(dim=-1)
    lower_by = (scores - highest[:, None]).clamp(min=-1e30)
    weights = lower_by.exp()
    return scores.unflatten(-1, (-1, group)).amax(-1), highest, weights.sum(-1), (weights * lower_by).sum(-1)


def test_little_memory_does_not_rule_triton_out(monkeypatch):
    """Whether Triton works is found out once; running out of memory at that moment says nothing about it."""
    fails = [torch.OutOfMemoryError("CUDA out of memory")]

    def statistics(scores, group):
        if fails:
            raise fails.pop()

    def one_pass():
        return fast_lens._one_pass(torch.device("cuda:0"))

    monkeypatch.setitem(sys.modules, "helpers.inside.softmax_kernel", SimpleNamespace(statistics=statistics))
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    fast_lens._one_pass.cache_clear()
    try:
        with pytest.raises(torch.OutOfMemoryError):
            one_pass()
        assert one_pass() is statistics
        fast_lens._one_pass.cache_clear()
        fails.append(RuntimeError("PTX was compiled with an unsupported toolchain"))
        assert one_pass() is None and one_pass() is None and not fails
    finally:
        fast_lens._one_pass.cache_clear()


def _as_on_a_gpu(monkeypatch):
    def read(block, head, top_k, change):
        return fast_lens._read_whole(block, head, top_k, change, fast_lens._room(len(block), head.weight))

    monkeypatch.setattr(fast_lens, "_read_in_slices", read)
    monkeypatch.setattr(fast_lens, "_rows_in_slices", fast_lens._rows_whole)


@pytest.mark.parametrize("lens", [logit_lens, plain_lens])
def test_it_equals_norm_head_and_softmax(model, traced, lens, either_way):
    found, plain = lens(model, traced, top_k=4), _plain(model, traced)
    best = plain.topk(4, dim=-1)
    assert torch.equal(found.token_ids, best.indices)
    assert torch.allclose(found.probabilities, best.values, rtol=1e-4, atol=1e-7)
    entropy = torch.special.entr(plain.double()).sum(dim=-1)
    assert torch.allclose(found.entropy.double(), entropy, atol=1e-4)


def test_the_last_row_is_the_models_own_prediction(model, tokenizer, traced):
    found = logit_lens(model, traced, top_k=1)
    assert torch.equal(found.token_ids[-1, :, 0], traced.logits.argmax(dim=-1))
    assert tokenizer.decode(found.token_ids[-1, -1]) == " Paris"


def test_some_layers_and_positions_are_the_same_rows(model, tokenizer, traced):
    everything = logit_lens(model, traced)
    some = trace(model, tokenizer, "The capital of France is", attentions=False, layers=[30, 3], positions=[4, 1])
    found = logit_lens(model, some)
    assert (found.layers, found.positions) == ((30, 3), (4, 1))
    assert torch.equal(found.token_ids, everything.token_ids[[30, 3]][:, [4, 1]])
    assert torch.allclose(found.entropy, everything.entropy[[30, 3]][:, [4, 1]], atol=1e-4)
    plain = plain_lens(model, some)
    assert torch.equal(plain.token_ids, found.token_ids) and torch.allclose(plain.entropy, found.entropy, atol=1e-4)


def test_blocks_of_rows_change_nothing(model, traced, monkeypatch):
    whole = logit_lens(model, traced)
    monkeypatch.setattr(fast_lens, "BUFFER_BYTES", 200_000)
    assert fast_lens._rows_in_slices((49_152, 576), top_k=5) < 20
    blocks = logit_lens(model, traced)
    assert torch.equal(blocks.token_ids, whole.token_ids)
    assert torch.allclose(blocks.probabilities, whole.probabilities, atol=1e-5)
    assert max(whole.probabilities.max(), blocks.probabilities.max()) <= 1


def _random_lens(dtype, bias=False, scale=3.0, top_k=7, vocab=5001, rows=530):
    """A Lens of random states, and the same in float64: probabilities [row, vocab]."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    model.lm_head = torch.nn.Linear(32, vocab, bias=bias).requires_grad_(False)
    model.lm_head.weight.normal_(0, scale)
    model.to(dtype)
    states = torch.randn(1, rows, 32, dtype=dtype)
    traced = Trace((), None, states, None, None, None, layers=(1,), positions=tuple(range(rows)))
    exact = torch.nn.functional.linear(states[0].double(), *(p.double() for p in model.lm_head.parameters()))
    return logit_lens(model, traced, top_k=top_k), exact.softmax(-1)


@pytest.mark.parametrize("scale", [0.001, 3.0, 30.0])
@pytest.mark.parametrize("bias", [False, True])
def test_it_equals_float64_in_a_vocabulary_that_ends_within_a_group(scale, bias, monkeypatch, either_way):
    """Several blocks of rows, chunks and slices, the last group not full; flat, usual and extreme distributions."""
    monkeypatch.setattr(fast_lens, "BUFFER_BYTES", 2_000_000 * (1 + torch.get_num_threads()))
    monkeypatch.setattr(fast_lens, "SCORE_BYTES", 16_000_000)
    rows = fast_lens._rows_in_slices((5001, 32), top_k=7)
    assert fast_lens.CHUNK < rows < 530 and 5001 % fast_lens.GROUP and 2 * fast_lens.SLICE < 5001
    found, exact = _random_lens(torch.float32, bias, scale)
    best = exact.topk(7, dim=-1)
    assert torch.allclose(found.probabilities[0].double(), best.values, rtol=2e-4, atol=1e-9)
    taken = exact.gather(1, found.token_ids[0])
    assert torch.allclose(taken, best.values, rtol=2e-4, atol=1e-9), "the ids belong to these probabilities"
    assert (found.token_ids[0] == best.indices).float().mean() > 0.999
    assert torch.allclose(found.entropy[0].double(), torch.special.entr(exact).sum(-1), atol=1e-4)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_threads_change_nothing_and_are_as_many_as_before(model, traced):
    found = logit_lens(model, traced, top_k=4)
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3, "Threads that start later have as many, too."
    torch.set_num_threads(1)
    alone = logit_lens(model, traced, top_k=4)
    assert torch.equal(found.token_ids, alone.token_ids)
    assert torch.allclose(found.probabilities, alone.probabilities, rtol=1e-5)
    assert torch.allclose(found.entropy, alone.entropy, atol=1e-5)


@pytest.mark.usefixtures("three_threads")
def test_what_fails_in_a_thread_is_raised(model, traced, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("in a thread")

    monkeypatch.setattr(fast_lens, "_maxima", fail)
    with pytest.raises(RuntimeError, match="in a thread"):
        logit_lens(model, traced)
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_an_interrupt_ends_all_threads_soon():
    taken = []

    def work(numbers):
        for number in numbers:
            taken.append(number)
            time.sleep(0.01)
            if number == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fast_lens._side_by_side(work, 1000)
    assert len(taken) < 900


@pytest.mark.parametrize("top_k", [1, 64, 5001])
def test_any_top_k(top_k, either_way):
    found, exact = _random_lens(torch.float32, top_k=top_k, rows=3)
    assert torch.equal(found.token_ids[0, :, :64], exact.topk(top_k, dim=-1).indices[:, :64])
    assert found.token_ids.max() < 5001 and len(set(found.token_ids[0, 0].tolist())) == top_k


def test_a_model_in_bfloat16_is_as_exact_as_one_in_float32(either_way):
    """Of the numbers that the model has; they are rounded to bfloat16 before, and nothing is afterwards."""
    found, exact = _random_lens(torch.bfloat16)
    assert torch.allclose(found.probabilities[0].double(), exact.topk(7, dim=-1).values, rtol=2e-4)
    assert torch.equal(found.token_ids[0, :, 0], exact.argmax(dim=-1))


def test_in_bfloat16_it_is_closer_to_float32_than_a_loop_over_the_models_own_head(model, tokenizer, either_way):
    """The loop rounds scores to bfloat16: more of its likeliest tokens are others, its probabilities further off."""
    import copy

    small = copy.deepcopy(model).to(torch.bfloat16)
    exact = copy.deepcopy(small).float()
    traced = trace(small, tokenizer, "The capital of France is Paris, and 北京是中国的首都。", attentions=False)
    ours = logit_lens(small, traced, top_k=1)
    with torch.no_grad():
        normed = torch.cat([small.model.norm(traced.hidden_states[:-1]), traced.hidden_states[-1:]])
        loop = small.lm_head(normed).float().softmax(dim=-1)
        states = traced.hidden_states.float()
        true = exact.lm_head(torch.cat([exact.model.norm(states[:-1]), states[-1:]])).softmax(dim=-1)

    def off(ids, probabilities):
        """Share of other tokens; mean error of the probability of those it names."""
        error = (probabilities - true.gather(-1, ids[..., None])[..., 0]).abs().mean()
        return float((ids != true.argmax(dim=-1)).float().mean()), float(error)

    own, theirs = off(ours.token_ids[..., 0], ours.probabilities[..., 0]), off(loop.argmax(-1), loop.amax(-1))
    assert own[0] <= 0.01 < theirs[0], (own, theirs)
    assert own[1] < theirs[1] / 3, (own, theirs)


def test_it_works_on_glm(tokenizer):
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = GlmConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, pad_token_id=2, **sizes)
    glm = GlmForCausalLM(config).eval()
    traced = trace(glm, tokenizer, "Hello there", attentions=False)
    found = logit_lens(glm, traced, top_k=2)
    assert torch.equal(found.token_ids, _plain(glm, traced).topk(2, dim=-1).indices)


@pytest.mark.parametrize("top_k", [0, 49_153, 1.5, True])
def test_a_top_k_that_cannot_be(model, traced, top_k):
    with pytest.raises(BadInputError, match="from 1 to 49152"):
        logit_lens(model, traced, top_k=top_k)


def test_a_trace_without_hidden_states(model, tokenizer):
    with pytest.raises(BadInputError, match="no hidden states"):
        logit_lens(model, trace(model, tokenizer, "Hello", hidden_states=False, attentions=False))
