"""A model on several devices, as `device_map="auto"` spreads one: everything gives the numbers of the model on one."""

import copy

import pytest
import torch
from accelerate import dispatch_model
from gpu_models import prompt

import helpers
from helpers import trace

UPPER = 15  # the layer that the second half begins with
ENDS = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")


@pytest.fixture(params=["weights in the CPU's memory", "layers that compute on the CPU", "two GPUs"])
def spread(request, exact, device):
    """Weights that are fetched when a layer runs; or two devices, each of which computes half of the layers."""
    second, main = {
        "weights in the CPU's memory": ("cpu", 0),
        "layers that compute on the CPU": (0, "cpu"),
        "two GPUs": (1, 0),
    }[request.param]
    if second == 1 and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    places = {f"model.layers.{layer}": main if layer < UPPER else second for layer in range(30)}
    return dispatch_model(copy.deepcopy(exact), places | dict.fromkeys(ENDS, main), main_device=main)


def near(mine, other, tolerance=1e-3):
    mine, other = mine.cpu().float(), other.cpu().float()
    return torch.allclose(mine, other, rtol=tolerance, atol=tolerance * float(other.abs().nan_to_num().max()))


def test_trace_lens_and_contributions(exact, spread, letters):
    run, expected = (trace(model, letters, prompt(50)) for model in (spread, exact))
    assert near(run.hidden_states, expected.hidden_states)
    assert near(run.attentions, expected.attentions)
    assert near(run.logits, expected.logits)
    assert near(helpers.logit_lens(spread, run).entropy, helpers.logit_lens(exact, expected).entropy)
    parts, others = (helpers.residual_contributions(model, letters, prompt(12)) for model in (spread, exact))
    assert near(parts.attention, others.attention) and near(parts.mlp, others.mlp)
    heads, all_heads = (helpers.direct_logit(*pair, 5).heads for pair in ((spread, parts), (exact, others)))
    assert near(torch.as_tensor(heads), torch.as_tensor(all_heads))


def test_interventions_sweeps_and_generation(exact, spread, letters):
    vector, top = torch.randn(exact.config.hidden_size), UPPER + 2
    for change in (
        lambda model: helpers.ablate_heads(model, [(1, 1), (top, 2)]),
        lambda model: helpers.patch_hidden_state(model, top, 3, vector),
        lambda model: helpers.steer(model, top, vector),
    ):
        runs = []
        for model in (spread, exact):
            with change(model):
                runs.append(trace(model, letters, prompt(12), attentions=False).logits)
        assert near(*runs)
    sweeps = [
        helpers.patching_sweep(model, letters, prompt(6), prompt(6) + 1, answer=5, against=9, layers=[0, top])
        for model in (spread, exact)
    ]
    assert near(sweeps[0].moved, sweeps[1].moved, 1e-2)
    steps = [list(helpers.generate_steps(model, letters, prompt(12), max_new_tokens=4)) for model in (spread, exact)]
    assert near(steps[0][0].logits, steps[1][0].logits)
    assert [step.token_id for step in steps[0]] == [step.token_id for step in steps[1]]
