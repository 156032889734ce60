"""The lens on a GPU against the plain one."""

import pytest
import torch
from gpu_models import LLAMA3_8B, prompt
from gpu_models import llama as made

from helpers.inside import fast_lens
from helpers.inside.lens import logit_lens, plain_lens
from helpers.inside.tracing import Trace, trace


def traced(states):
    rows, positions, _ = states.shape
    return Trace((), None, states, None, None, None, layers=tuple(range(rows)), positions=tuple(range(positions)))


def same(ours, plain):
    apart = (ours.probabilities - plain.probabilities).abs()
    assert (apart <= 1e-4 * plain.probabilities + 1e-7).all(), apart.max()
    assert torch.allclose(ours.entropy, plain.entropy, atol=1e-4, rtol=1e-4)
    other = ours.token_ids != plain.token_ids
    # Where two tokens are as likely as each other, their order may differ.
    assert other.float().mean() < 1e-3


def test_it_is_the_plain_lens(llama, letters, device):
    run = trace(llama, letters, prompt(100), attentions=False)
    ours, plain = logit_lens(llama, run, top_k=10), plain_lens(llama, run, top_k=10)
    assert ours.token_ids.device == ours.entropy.device == device
    same(ours, plain)
    if llama.dtype == torch.float32:
        assert torch.equal(ours.token_ids[-1, :, 0], run.logits.argmax(dim=-1))


@pytest.mark.parametrize("width", [64, 4096, 5056, 128_256])
def test_one_pass_over_the_scores_gives_what_five_give(device, width):
    statistics = fast_lens._one_pass(device)
    if statistics is None:
        pytest.skip("there is no Triton that can compile here")
    scores = torch.randn(200, width, device=device, generator=torch.Generator(device).manual_seed(0)) * 5
    scores[3, 1:] = scores[4, : width // 2] = -torch.inf
    maxima, *sums = statistics(scores, fast_lens.GROUP)
    softmax = fast_lens._Softmax.of(*sums)
    expected = scores.softmax(-1)
    assert torch.equal(maxima, scores.unflatten(-1, (-1, fast_lens.GROUP)).amax(-1))
    assert torch.allclose(softmax.probabilities(scores), expected, rtol=1e-4, atol=1e-9)
    assert torch.allclose(softmax.entropy(), torch.special.entr(expected).sum(-1), atol=1e-4)
    scores[7, 5] = torch.nan
    *_, total, _ = statistics(scores, fast_lens.GROUP)
    assert total[7].isnan() and total[[6, 8]].isfinite().all()


def test_without_triton_it_is_the_same(llama, letters, monkeypatch):
    run = trace(llama, letters, prompt(100), attentions=False)
    ours = logit_lens(llama, run, top_k=10)
    monkeypatch.setattr(fast_lens, "_one_pass", lambda device: None)
    same(logit_lens(llama, run, top_k=10), ours)


def test_a_trace_on_the_cpu_gives_the_same_there(llama, letters):
    run = trace(llama, letters, prompt(100), attentions=False)
    moved = logit_lens(llama, run.to("cpu"))
    here = logit_lens(llama, run)
    assert moved.token_ids.device.type == "cpu"
    assert torch.equal(moved.token_ids, here.token_ids.cpu())
    assert torch.equal(moved.probabilities, here.probabilities.cpu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("top_k", [1, 64])
def test_a_vocabulary_that_ends_within_a_group(device, dtype, bias, top_k):
    sizes = LLAMA3_8B | {"vocab_size": 5001, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = made(sizes | {"num_key_value_heads": 2, "intermediate_size": 8}, device, torch.float32)
    model.lm_head = torch.nn.Linear(32, 5001, bias=bias, device=device).requires_grad_(False)
    model.lm_head.weight.normal_(0, 2)
    model.to(dtype)
    run = traced(torch.randn(2, 700, 32, device=device, dtype=dtype))
    ours, plain = logit_lens(model, run, top_k=top_k), plain_lens(model, run, top_k=top_k)
    same(ours, plain)
    assert ours.token_ids.max() < 5001


def test_in_bfloat16_it_is_closer_to_float32_than_a_loop_over_the_models_own_head(device):
    model = made(LLAMA3_8B | {"num_hidden_layers": 1}, device, torch.bfloat16)
    states = 2 * torch.randn(2, 256, 4096, device=device, dtype=torch.bfloat16)
    run = traced(states)
    ours = logit_lens(model, run, top_k=1)
    with torch.no_grad():
        normed = torch.stack([model.model.norm(states[0]), states[1]])
        loop = model.lm_head(normed).float().softmax(-1).max(-1)
        scale = model.model.norm.weight.float() * torch.rsqrt(states[0].float().pow(2).mean(-1, keepdim=True) + 1e-6)
        true = (torch.stack([states[0].float() * scale, states[1].float()]) @ model.lm_head.weight.float().T).softmax(
            -1
        )
    mine = (ours.token_ids[..., 0] == true.argmax(-1)).float().mean()
    theirs = (loop.indices == true.argmax(-1)).float().mean()
    assert mine >= 0.99 and mine >= theirs


def test_memory_stays_within_its_bound(device):
    model = made(
        LLAMA3_8B | {"num_hidden_layers": 1, "hidden_size": 1024, "num_attention_heads": 8}, device, torch.bfloat16
    )
    run = traced(torch.randn(8, 2048, 1024, device=device, dtype=torch.bfloat16))
    logit_lens(model, traced(run.hidden_states[:, :8]), top_k=10)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    found = logit_lens(model, run, top_k=10)
    kept = sum(tensor.nbytes for tensor in (found.token_ids, found.probabilities, found.entropy))
    assert torch.cuda.max_memory_allocated(device) - before - kept <= 500_000_000
