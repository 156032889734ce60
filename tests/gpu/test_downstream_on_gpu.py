"""What works with a trace works with one on a GPU, and gives what it gives on the CPU."""

import zlib

import pytest
import torch
from gpu_models import prompt

import helpers
from helpers import trace


@pytest.fixture(scope="module")
def pair(exact):
    """The same model on the GPU and on the CPU."""
    import copy

    return exact, copy.deepcopy(exact).to("cpu")


def near(mine, other, tolerance=1e-3):
    mine, other = torch.as_tensor(mine).cpu().float(), torch.as_tensor(other).cpu().float()
    return torch.allclose(
        mine, other, rtol=tolerance, atol=tolerance * float(other.abs().nan_to_num().max()), equal_nan=True
    )


def test_contributions_add_up_and_are_those_of_the_cpu(pair, letters):
    gpu, cpu = pair
    parts, others = (helpers.residual_contributions(model, letters, prompt(12)) for model in pair)
    for name in ("embedding", "attention", "mlp", "mixed", "total"):
        assert near(getattr(parts, name), getattr(others, name)), name
    assert near(parts.running_sum()[-1], parts.total)
    logit, other = (helpers.direct_logit(*pair, 5, against=7) for pair in ((gpu, parts), (cpu, others)))
    assert logit.total == pytest.approx(other.total, rel=1e-3, abs=1e-3)
    assert near(logit.heads, other.heads)
    heads = helpers.head_contributions(gpu, parts, 3)
    assert near(heads.sum(0), parts.attention[3])


def test_sweeps_are_those_of_the_cpu(pair, letters):
    sweeps = [
        helpers.patching_sweep(model, letters, prompt(6), prompt(6) + 1, answer=5, against=9, layers=[0, 7])
        for model in pair
    ]
    assert near(sweeps[0].moved, sweeps[1].moved, 1e-2)


def test_head_scores_and_rollout(pair, letters):
    gpu, cpu = (trace(model, letters, prompt(30)) for model in pair)
    for kind in ("first_token", "previous_token", "duplicate_token", "induction"):
        assert near(getattr(helpers.head_scores(gpu), kind), getattr(helpers.head_scores(cpu), kind)), kind
    assert near(helpers.attention_rollout(gpu.attentions), helpers.attention_rollout(cpu.attentions))


def test_interventions_act_and_leave_no_trace(exact, device):
    ids = prompt(20, device)
    vector = torch.randn(exact.config.hidden_size)

    def logits():
        with torch.no_grad():
            return exact(ids).logits.clone()

    before = logits()
    for change in (
        helpers.ablate_heads(exact, [(1, 1), (3, 0)]),
        helpers.steer(exact, 1, vector),
        helpers.patch_hidden_state(exact, 2, [3, -1], vector),
        helpers.skip_layer(exact, 4),
        helpers.skip_mlp(exact, 4),
        helpers.skip_attention(exact, 4),
    ):
        with change:
            assert not torch.equal(logits(), before)
        assert torch.equal(logits(), before)


def test_what_was_kept_on_the_cpu_goes_back_in(exact, letters, device):
    kept = trace(exact, letters, prompt(20), attentions=False, device="cpu")
    with helpers.patch_hidden_state(exact, 3, 5, kept.hidden_states[3, 5]):
        run = trace(exact, letters, prompt(20), attentions=False)
    assert torch.allclose(run.logits.cpu(), kept.logits, atol=1e-3, rtol=1e-3)


def test_pictures_of_a_trace(exact, letters):
    pytest.importorskip("notojp_matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    run = trace(exact, letters, prompt(12))
    helpers.plot_attention(run.attentions[3, 1], run.tokens)
    helpers.plot_next_token(run.logits[-1], letters)
    helpers.plot_logit_lens(helpers.logit_lens(exact, run), letters, run.tokens)


def test_widgets_of_a_trace(exact, letters):
    pytest.importorskip("anywidget")
    pytest.importorskip("notojp_matplotlib")
    run = trace(exact, letters, prompt(12))
    explored, other = helpers.attention_explorer(run).state, helpers.attention_explorer(run.to("cpu")).state
    assert explored.trace.attentions is run.attentions, "the weights stay where they are"
    sent, same = (list(zlib.decompress(state.layer(3)[1])) for state in (explored, other))
    assert near(sent, same, 1 / 255) and near(explored.glance(), other.glance(), 1 / 255)
    assert helpers.hidden_state_explorer(exact, letters, prompt(12)) is not None


def test_chosen_positions_arrive_on_the_cpu(exact, letters):
    ids, positions = prompt(300), [299, 7, 8, 130]
    run = trace(exact, letters, ids, positions=positions, device="cpu")
    assert run.device.type == "cpu"
    assert near(run.attentions, trace(exact, letters, ids, logits=False).attentions[:, :, positions])


@pytest.mark.parametrize("name", ["glm4-chat-a", "glm4v-a"])
def test_golden_numbers_of_the_original_code(name, device):
    from gpu_models import GLM
    from safetensors.torch import load_file

    model = helpers.load_model(str(GLM / name / "checkpoint"), dtype="float32", device=str(device))
    golden = load_file(GLM / name / "golden.safetensors")
    cases = [key for key in golden if key.startswith("text/") and key.endswith("/input_ids")]
    assert cases
    for key in cases:
        ids = golden[key].to(device)
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.cpu()
        assert (logits - golden[key.removesuffix("input_ids") + "logits"]).abs().max() < 1e-4
