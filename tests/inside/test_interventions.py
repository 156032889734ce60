"""Interventions do what they say, nest, and leave the model bit for bit as it was."""

from contextlib import ExitStack

import pytest
import torch

from helpers.errors import BadInputError
from helpers.inside.interventions import ablate_heads, patch_hidden_state, skip_attention, skip_layer, skip_mlp, steer

IDS = torch.tensor([[5, 9, 31, 7, 12]])


def _run(model, ids=IDS, **inputs):
    return model(ids, **inputs)


def _residual(model, ids=IDS):
    """The residual stream [layer+1, position, hidden]: what enters each layer and the final norm."""
    states = []
    with ExitStack() as hooks:
        for module in [*model.model.layers, model.model.norm]:
            hook = module.register_forward_pre_hook(lambda module, arguments: states.append(arguments[0]))
            hooks.enter_context(hook)
        model(ids)
    return torch.stack(states)[:, 0]


INTERVENTIONS = {
    "ablate_heads": lambda model: ablate_heads(model, [(1, 0), (1, 3), (2, 2)]),
    "skip_layer": lambda model: skip_layer(model, 1),
    "skip_attention": lambda model: skip_attention(model, 0),
    "skip_mlp": lambda model: skip_mlp(model, 2),
    "patch_hidden_state": lambda model: patch_hidden_state(model, 2, 1, torch.ones(32)),
    "steer": lambda model: steer(model, 1, torch.ones(32)),
}


def _hook_count(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_it_changes_the_logits_and_leaves_the_model_as_it_was(tiny, name):
    before = _run(tiny).logits
    with INTERVENTIONS[name](tiny):
        assert not torch.allclose(_run(tiny).logits, before, atol=1e-4)
    assert torch.equal(_run(tiny).logits, before)
    assert _hook_count(tiny) == 0


@pytest.mark.parametrize("name", INTERVENTIONS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_inside_leaves_no_hook(tiny, name, error):
    before = _run(tiny).logits
    with pytest.raises(error), INTERVENTIONS[name](tiny):
        raise error
    assert _hook_count(tiny) == 0
    assert torch.equal(_run(tiny).logits, before)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_nothing_happens_before_entering(tiny, name):
    before = _run(tiny).logits
    INTERVENTIONS[name](tiny)
    assert torch.equal(_run(tiny).logits, before)


def test_they_nest_in_any_order(tiny):
    with ablate_heads(tiny, [(0, 1)]), steer(tiny, 2, torch.ones(32)), skip_mlp(tiny, 1):
        one = _run(tiny).logits
    with skip_mlp(tiny, 1), steer(tiny, 2, torch.ones(32)), ablate_heads(tiny, [(0, 1)]):
        other = _run(tiny).logits
    assert torch.equal(one, other)
    with ablate_heads(tiny, [(0, 1)]), ablate_heads(tiny, [(0, 2)]):
        nested = _run(tiny).logits
    with ablate_heads(tiny, [(0, 1), (0, 2)]):
        assert torch.equal(_run(tiny).logits, nested)


def test_all_heads_ablated_is_the_attention_skipped(tiny):
    with ablate_heads(tiny, [(1, head) for head in range(4)]):
        heads = _run(tiny).logits
    with skip_attention(tiny, 1):
        assert torch.allclose(_run(tiny).logits, heads, atol=1e-6)


def test_attention_and_mlp_skipped_is_the_layer_skipped(tiny):
    with skip_attention(tiny, 1), skip_mlp(tiny, 1):
        parts = _run(tiny).logits
    with skip_layer(tiny, 1):
        assert torch.equal(_run(tiny).logits, parts)


def test_a_head_can_be_set_to_a_value_instead_of_zero(tiny):
    seen = []
    projection = tiny.model.layers[1].self_attn.o_proj
    with (
        ablate_heads(tiny, [(1, 2)], value=torch.arange(8.0)),
        projection.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0])),
    ):
        _run(tiny)
    assert torch.equal(seen[0][0, 3, 16:24], torch.arange(8.0))


@pytest.mark.parametrize("layer", [0, 1, 3, -1])
def test_a_patched_state_is_there_and_only_there(tiny, layer):
    clean = _residual(tiny)
    with patch_hidden_state(tiny, layer, 2, torch.full((32,), 0.5)):
        patched = _residual(tiny)
    at = layer % 4
    assert torch.equal(patched[at, 2], torch.full((32,), 0.5))
    assert torch.equal(patched[: at + 1, :2], clean[: at + 1, :2])
    assert torch.equal(patched[:, :2], clean[:, :2]), "positions before it cannot see it"


def test_patching_in_what_was_there_changes_nothing(tiny):
    states = _residual(tiny)
    with patch_hidden_state(tiny, 2, [1, 3], states[2, [1, 3]]):
        assert torch.equal(_residual(tiny), states)


def test_patching_everything_makes_the_other_prompt(tiny):
    other = torch.tensor([[8, 2, 44, 3, 60]])
    with patch_hidden_state(tiny, 1, range(5), _residual(tiny, other)[1]):
        patched = _run(tiny).logits
    assert not torch.allclose(patched, _run(tiny).logits, atol=1e-4)
    assert torch.allclose(patched, _run(tiny, other).logits, atol=1e-5)


def test_a_position_counts_in_the_whole_sequence_also_with_a_cache(tiny):
    longer = torch.cat([IDS, torch.tensor([[20, 21]])], dim=1)
    with patch_hidden_state(tiny, 1, 6, torch.ones(32)):
        whole = _run(tiny, longer).logits[:, -1]
    cache = _run(tiny, IDS).past_key_values
    with patch_hidden_state(tiny, 1, 6, torch.ones(32)):
        cached = _run(tiny, longer[:, 5:], past_key_values=cache).logits[:, -1]
    assert torch.allclose(cached, whole, atol=1e-5)


def test_a_negative_position_stays_the_prompts_while_generating(tiny):
    settings = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(IDS), "pad_token_id": 0}
    value = 3 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    with patch_hidden_state(tiny, 1, -1, value):
        negative = tiny.generate(IDS, **settings)
    with patch_hidden_state(tiny, 1, 4, value):
        assert torch.equal(tiny.generate(IDS, **settings), negative)
    with patch_hidden_state(tiny, 1, 4, value):
        assert torch.equal(tiny.generate(IDS, use_cache=False, **settings), negative)


def test_steering_adds_the_vector_and_its_scale(tiny):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    clean = _residual(tiny)
    with steer(tiny, 2, vector, scale=-1.5):
        assert torch.allclose(_residual(tiny)[2], clean[2] - 1.5 * vector, atol=1e-6)
    with steer(tiny, 2, vector, scale=0.0):
        assert torch.equal(_residual(tiny), clean)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda m: ablate_heads(m, [(3, 0)]), "layers 0 to 2"),
        (lambda m: ablate_heads(m, [(0, 4)]), "heads 0 to 3"),
        (lambda m: ablate_heads(m, [5]), "pairs"),
        (lambda m: ablate_heads(m, [(0, -1)]), "no head -1"),
        (lambda m: skip_layer(m, 7), "layers 0 to 2"),
        (lambda m: skip_mlp(m, "x"), "layers 0 to 2"),
        (lambda m: steer(m, 4, torch.ones(32)), "0 .embedding. to 3"),
        (lambda m: steer(m, 1, torch.ones(31)), r"\[32\]"),
        (lambda m: patch_hidden_state(m, 1, 0, torch.ones(2, 32)), r"\[1, 32\]"),
    ],
)
def test_what_is_not_there_is_named(tiny, make, says):
    with pytest.raises(BadInputError, match=says), make(tiny):
        pass


@pytest.mark.parametrize("position", [5, -6])
def test_a_position_beyond_the_prompt_is_named(tiny, position):
    with (
        pytest.raises(BadInputError, match=f"no position {position}: this prompt has 5"),
        patch_hidden_state(tiny, 1, position, torch.ones(32)),
    ):
        _run(tiny)
    assert _hook_count(tiny) == 0


def test_a_model_without_a_decoder_is_named():
    with pytest.raises(BadInputError, match="Linear has no decoder"), skip_layer(torch.nn.Linear(2, 2), 0):
        pass


def test_heads_can_write_a_value_for_each_position_and_a_value_that_does_not_fit_is_refused(tiny):
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad(), ablate_heads(tiny, [(1, 0)]):
        nothing = tiny(ids).logits
    size = tiny.config.hidden_size // tiny.config.num_attention_heads
    with torch.no_grad(), ablate_heads(tiny, [(1, 0)], value=torch.zeros(4, 1, size)):
        assert torch.equal(tiny(ids).logits, nothing)
    misfit = pytest.raises(BadInputError, match=r"a value of \[5, 1, \d+\] does not fit")
    with torch.no_grad(), ablate_heads(tiny, [(1, 0)], value=torch.ones(5, 1, size)), misfit:
        tiny(ids)
