"""Contributions to the residual stream and to a logit: they add up, on every kind of layer."""

import pytest
import torch
from glm_fixtures import CHAT, glm, glm_tokenizer
from moved import Moved

from helpers.errors import BadInputError
from helpers.inside.contributions import direct_logit, head_contributions, hold_norm, residual_contributions
from helpers.inside.interventions import ablate_heads, patch_hidden_state, skip_layer, skip_mlp, steer
from helpers.inside.lens import logit_lens
from helpers.inside.tracing import trace

PROMPT = "The capital of France is"
IDS = [3, 17, 5, 44, 9, 21]


@pytest.fixture(params=["Llama", "Llama with biases", "Glm", "Glm4"])
def tiny(request, new_tiny):
    """A small random model; Glm4's layers have a norm after attention and one after the MLP."""
    family, _, biases = request.param.partition(" with ")
    model = new_tiny(family, **({"attention_bias": True} if biases else {}))
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms' weights and biases: else all ones, or zeros
            parameter.copy_(torch.rand(parameter.shape) + 0.5)
    return model


@pytest.fixture(scope="module")
def parts(model, tokenizer):
    return residual_contributions(model, tokenizer, PROMPT)


def test_the_running_sum_is_the_stream_bit_for_bit(model, tokenizer, parts):
    run = trace(model, tokenizer, PROMPT, attentions=False)
    stream = parts.running_sum()
    assert stream.shape == (61, 5, 576)
    assert torch.equal(stream[0:-1:2], run.hidden_states[:-1])
    assert torch.equal(stream[-1], run.last_residual)
    assert torch.equal(parts.total, run.last_residual)
    assert not parts.edits.any()


def test_heads_add_up_to_what_attention_wrote(model, parts):
    for layer in (0, 11, 29):
        heads = head_contributions(model, parts, layer)
        assert heads.shape == (9, 5, 576)
        assert torch.allclose(heads.sum(0), parts.attention[layer], atol=1e-4)


def test_a_head_is_what_ablating_it_takes_away(model, tokenizer, parts):
    with ablate_heads(model, [(5, 3)]):
        without = residual_contributions(model, tokenizer, PROMPT)
    taken = parts.attention[5] - without.attention[5]
    assert torch.allclose(taken, head_contributions(model, parts, 5)[3], atol=1e-4)


def test_a_logit_is_the_sum_of_its_parts(model, tokenizer, parts):
    logits = trace(model, tokenizer, PROMPT, attentions=False).logits
    paris, london = (tokenizer(word)["input_ids"][0] for word in (" Paris", " London"))
    direct = direct_logit(model, parts, paris)
    assert direct.heads.shape == (30, 9) and direct.mlp.shape == (30,)
    assert direct.total == pytest.approx(float(logits[-1, paris]), abs=1e-2)
    assert direct.embedding + float(direct.attention.sum() + direct.mlp.sum()) == pytest.approx(direct.total, abs=1e-2)
    assert torch.allclose(direct.heads.sum(1), direct.attention, atol=1e-3)
    apart = direct_logit(model, parts, paris, against=london)
    assert apart.total == pytest.approx(float(logits[-1, paris] - logits[-1, london]), abs=1e-2)
    assert apart.heads[23, 0] == pytest.approx(
        float(direct.heads[23, 0] - direct_logit(model, parts, london).heads[23, 0]), abs=1e-3
    )


def test_only_vectors_are_moved_for_a_logit(model, parts):
    with Moved() as moved:
        direct_logit(model, parts, 5, against=7)
    assert moved.sizes and sum(moved.sizes) < model.model.layers[0].self_attn.o_proj.weight.nbytes


def test_a_logit_of_a_lower_layer_is_the_lens(model, tokenizer, parts):
    lens = logit_lens(model, trace(model, tokenizer, PROMPT, attentions=False), top_k=2)
    first, second = lens.token_ids[20, -1].tolist()
    apart = direct_logit(model, parts, first, against=second, layer=20)
    probabilities = lens.probabilities[20, -1]
    assert apart.total == pytest.approx(float((probabilities[0] / probabilities[1]).log()), abs=1e-3)
    assert not apart.heads[20:].any() and not apart.mlp[20:].any() and apart.heads[19].any()
    assert apart.embedding + float(apart.attention.sum() + apart.mlp.sum()) == pytest.approx(apart.total, abs=1e-2)


def test_every_kind_of_layer(tiny, tokenizer):
    parts = residual_contributions(tiny, tokenizer, IDS)
    logits = tiny(torch.tensor([IDS])).logits[0]
    assert torch.equal(parts.running_sum()[-1], parts.total)
    for token in (7, 50):
        direct = direct_logit(tiny, parts, token, position=-2)
        assert direct.total == pytest.approx(float(logits[-2, token]), abs=1e-4)
        summed = direct.embedding + float(direct.attention.sum() + direct.mlp.sum())
        assert summed == pytest.approx(direct.total, abs=1e-4)
    bias = tiny.model.layers[1].self_attn.o_proj.bias
    heads = head_contributions(tiny, parts, 1).sum(0)
    assert torch.allclose(heads + (0 if bias is None else bias), parts.attention[1], atol=1e-5)
    if bias is None:
        assert torch.allclose(direct.heads.sum(1), direct.attention, atol=1e-4)


def test_the_courses_own_glm():
    model, tokenizer = glm(CHAT), glm_tokenizer(CHAT)
    parts = residual_contributions(model, tokenizer, "Hello 你好")
    logits = trace(model, tokenizer, "Hello 你好", attentions=False).logits
    direct = direct_logit(model, parts, 11)
    assert torch.equal(parts.running_sum()[-1], parts.total)
    assert direct.total == pytest.approx(float(logits[-1, 11]), abs=1e-3)


def test_what_an_intervention_put_in_is_told_apart(tiny, tokenizer):
    vector = torch.ones(32)
    plain = residual_contributions(tiny, tokenizer, IDS)
    with steer(tiny, 2, vector, scale=3.0), skip_mlp(tiny, 0):
        steered = residual_contributions(tiny, tokenizer, IDS)
        logits = tiny(torch.tensor([IDS])).logits[0]
    assert not steered.mlp[0].any() and plain.mlp[0].any()
    assert torch.allclose(steered.edits[2], 3 * vector.expand(6, -1), atol=1e-4)
    assert not steered.edits[[0, 1, 3]].any()
    direct = direct_logit(tiny, steered, 7)
    summed = direct.embedding + float(direct.attention.sum() + direct.mlp.sum()) + direct.edits
    assert summed == pytest.approx(direct.total, abs=1e-4) == pytest.approx(float(logits[-1, 7]), abs=1e-4)
    with skip_layer(tiny, 1), patch_hidden_state(tiny, 1, 2, vector):
        skipped = residual_contributions(tiny, tokenizer, IDS)
    assert torch.allclose(skipped.running_sum()[-1], skipped.total, atol=1e-4)
    assert torch.allclose(skipped.running_sum()[2, 2], vector, atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.modules())


def test_some_positions_only(model, tokenizer, parts):
    some = residual_contributions(model, tokenizer, PROMPT, positions=[-1, 1])
    assert some.positions == (4, 1)
    assert torch.allclose(some.mlp[7, 0], parts.mlp[7, 4], atol=1e-5)
    assert direct_logit(model, some, 3, position=0).total == pytest.approx(
        direct_logit(model, parts, 3).total, abs=1e-3
    )


@pytest.mark.parametrize(
    "wrong", [{"layer": 31}, {"position": 5}, {"token_id": -1}, {"against": 10**6}, {"layer": "2"}]
)
def test_what_is_not_there(model, parts, wrong):
    with pytest.raises(BadInputError, match="There is no"):
        direct_logit(model, parts, **{"token_id": 5, **wrong})
    with pytest.raises(BadInputError, match="There is no layer 30"):
        head_contributions(model, parts, 30)


def test_a_norm_is_held_at_its_size():
    states = torch.randn(3, 8)
    for norm in (torch.nn.LayerNorm(8), torch.nn.LayerNorm(8, bias=False), torch.nn.RMSNorm(8), torch.nn.RMSNorm(7)):
        for parameter in norm.parameters():
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        states = torch.randn(3, norm.normalized_shape[0])
        held = hold_norm(norm, states)
        assert held.centred == isinstance(norm, torch.nn.LayerNorm)
        assert torch.allclose(held(states), norm(states), atol=1e-4)
        direction = torch.randn(norm.normalized_shape[0])
        read = (states * held.back(direction)).sum(-1) + held.bias @ direction
        assert torch.allclose(read, norm(states) @ direction, atol=1e-3)


def test_a_norm_of_another_kind_is_refused():
    with pytest.raises(BadInputError, match="Softmax is neither an RMSNorm nor a LayerNorm"):
        hold_norm(torch.nn.Softmax(-1), torch.randn(2, 8))
