"""A model whose weights `accelerate` fetches as it needs them: everything works, and gives the same numbers."""

import copy

import pytest
import torch
from accelerate import cpu_offload, dispatch_model

from helpers.inside.contributions import direct_logit, residual_contributions
from helpers.inside.generation import generate_steps
from helpers.inside.interventions import ablate_heads, patch_hidden_state
from helpers.inside.lens import logit_lens, plain_lens
from helpers.inside.patching import patching_sweep
from helpers.inside.tracing import trace

IDS = [3, 17, 5, 44, 9]


@pytest.fixture(params=["every weight", "the upper layers and the head"])
def spread(request, tiny, tmp_path):
    model = copy.deepcopy(tiny)
    if request.param == "every weight":
        return cpu_offload(model, execution_device="cpu")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu"}
    places |= {name: "disk" for name in ("model.layers.1", "model.layers.2", "model.norm", "lm_head")}
    return dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)


def test_trace_lens_and_contributions(tiny, spread, tokenizer):
    mine, other = (trace(model, tokenizer, IDS) for model in (spread, tiny))
    assert torch.equal(mine.hidden_states, other.hidden_states) and torch.equal(mine.attentions, other.attentions)
    for lens in (logit_lens, plain_lens):
        found, expected = lens(spread, mine, top_k=3), lens(tiny, other, top_k=3)
        assert torch.equal(found.token_ids, expected.token_ids)
        assert torch.allclose(found.probabilities, expected.probabilities, rtol=1e-5)
    assert any(weight.is_meta for weight in spread.parameters()), "weights are away again"
    parts, expected = (residual_contributions(model, tokenizer, IDS) for model in (spread, tiny))
    assert torch.equal(parts.attention, expected.attention)
    mine, other = direct_logit(spread, parts, 7, against=8), direct_logit(tiny, expected, 7, against=8)
    assert mine.total == pytest.approx(other.total, rel=1e-4)


def test_interventions_sweeps_and_generation(tiny, spread, tokenizer):
    vector = torch.ones(tiny.config.hidden_size)
    for change in (lambda m: ablate_heads(m, [(1, 1)]), lambda m: patch_hidden_state(m, 2, 3, vector)):
        runs = []
        for model in (spread, tiny):
            with change(model):
                runs.append(trace(model, tokenizer, IDS).logits)
        assert torch.equal(*runs)
    sweeps = [patching_sweep(m, tokenizer, IDS, [3, 17, 30, 44, 9], answer=7, against=8) for m in (spread, tiny)]
    assert torch.allclose(sweeps[0].moved, sweeps[1].moved, atol=1e-5)
    steps = [[step.token_id for step in generate_steps(m, tokenizer, IDS, max_new_tokens=3)] for m in (spread, tiny)]
    assert steps[0] == steps[1]
