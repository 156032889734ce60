"""`trace` on a GPU: the numbers of transformers, kept where they were computed or moved, and little memory beside."""

import pytest
import torch
from gpu_models import prompt, twin

from helpers.inside import tracing
from helpers.inside.tracing import trace


def by_library(model, ids, device):
    eager = twin(model, "eager")
    with torch.no_grad():
        given = eager(ids.to(device), use_cache=False, output_hidden_states=True, output_attentions=True)
    return torch.stack(given.hidden_states)[:, 0], torch.stack(given.attentions)[:, 0], given.logits[0]


@pytest.mark.parametrize("length", [1, 64, 300])
def test_it_is_what_transformers_gives_in_eager_attention(llama, letters, device, length):
    run = trace(llama, letters, prompt(length))
    assert run.device == device and repr(run).endswith("MB on cuda:0)")
    states, attentions, logits = by_library(llama, prompt(length), device)
    near = {"rtol": 1e-4, "atol": 1e-4} if llama.dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    assert run.hidden_states.dtype == llama.dtype
    assert torch.allclose(run.hidden_states, states, **near)
    assert torch.allclose(run.attentions, attentions, **near)
    assert torch.allclose(run.logits, logits, **near)


@pytest.mark.parametrize(
    "more", [{}, {"positions": [5, 1]}, {"layers": [3, 0]}, {"outputs_of": ["model.layers.2.mlp"]}]
)
def test_moved_to_the_cpu_it_is_the_same(llama, letters, more):
    here, moved = (trace(llama, letters, prompt(300), device=where, **more) for where in ("auto", "cpu"))
    assert moved.device.type == "cpu"
    for part in ("hidden_states", "attentions", "logits", "last_residual"):
        mine, other = getattr(here, part), getattr(moved, part)
        assert (mine is None) == (other is None)
        assert mine is None or (other.device.type == "cpu" and torch.equal(mine.cpu(), other)), part
    assert all(torch.equal(here.outputs[name].cpu(), value) for name, value in moved.outputs.items())
    assert torch.equal(here.to("cpu").logits, moved.logits)


def test_moving_is_right_while_buffers_are_reused(exact, letters, monkeypatch):
    """More pieces than buffers, each of them used many times."""
    from helpers.inside import keeping

    monkeypatch.setattr(keeping, "BUFFER_BYTES", 2**16)
    here, moved = (trace(exact, letters, prompt(200), device=where) for where in ("auto", "cpu"))
    assert torch.equal(here.attentions.cpu(), moved.attentions)
    assert torch.equal(here.hidden_states.cpu(), moved.hidden_states)


def test_blocks_of_queries_change_nothing(exact, letters, monkeypatch):
    """With `positions` attention is computed in blocks; without, all at once where the result is."""
    whole, every = trace(exact, letters, prompt(500)), list(range(500))
    one_block = trace(exact, letters, prompt(500), positions=every)
    monkeypatch.setattr(tracing, "SCORE_BYTES", 1)
    for run in (one_block, trace(exact, letters, prompt(500), positions=every)):
        assert torch.allclose(whole.attentions, run.attentions, atol=1e-5)
        assert torch.allclose(whole.logits, run.logits, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("width", [1, 60, 1024, 1025, 2048, 5001, 49_152, 128_256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_softmax_in_place_is_softmax(device, width, dtype):
    """The lens and the attention of `trace` rely on it."""
    scores = torch.randn(300, width, device=device, generator=torch.Generator(device).manual_seed(0)) * 5
    scores = scores.to(dtype)
    expected = torch.softmax(scores, dim=-1)
    assert torch.softmax(scores, dim=-1, out=scores) is scores
    assert torch.equal(scores, expected)


def test_memory_grows_by_little_more_than_the_result(llama, letters, device):
    trace(llama, letters, prompt(2048))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run = trace(llama, letters, prompt(2048))
    assert torch.cuda.max_memory_allocated(device) - before <= 1.15 * run.nbytes


def test_auto_takes_the_cpu_when_the_gpu_is_full(exact, letters, monkeypatch):
    monkeypatch.setattr(tracing, "available_bytes", lambda device: 10**5 if "cuda" in str(device) else 10**10)
    assert trace(exact, letters, prompt(64)).device.type == "cpu"
