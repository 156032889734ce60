"""Scores of heads and rollout on attention that is made up, so that the answer is known; then on real models."""

import math

import pytest
import torch

from helpers import attention_rollout, head_scores, trace
from helpers.errors import BadInputError
from helpers.inside.heads import KINDS, head_temperature, repeated_ids
from helpers.inside.tracing import Trace

IDS = [7, 1, 2, 3, 1, 2, 3]  # a first token, then the same three twice


def looking_at(places, length=7):
    """Attention `[query, key]` of a head that looks at one key for each query."""
    attention = torch.zeros(length, length)
    attention[torch.arange(length), torch.tensor(places)] = 1.0
    return attention


HEADS = {
    "first_token": looking_at([0] * 7),
    "previous_token": looking_at([0, 0, 1, 2, 3, 4, 5]),
    "duplicate_token": looking_at([0, 0, 0, 0, 1, 2, 3]),
    "induction": looking_at([0, 0, 0, 0, 2, 3, 4]),
}


def made_up(attentions, ids=IDS, **more):
    """A `Trace` that holds these attentions `[layer, head, query, key]`."""
    values = {"hidden_states": None, "logits": None, "last_residual": None, "positions": tuple(range(len(ids)))}
    values |= {"layers": tuple(range(len(attentions) + 1)), "tokens": tuple(map(str, ids))}
    return Trace(input_ids=torch.tensor([ids]), attentions=attentions, **(values | more))


def test_each_kind_of_head_has_the_full_score_of_its_kind():
    scores = head_scores(made_up(torch.stack(list(HEADS.values()))[None]))
    for number, kind in enumerate(KINDS):
        assert getattr(scores, kind).shape == (1, 4)
        assert getattr(scores, kind)[0, number] == 1, kind
        assert scores.best(kind, 1) == [(0, number)]
    assert scores.induction[0].tolist() == [0, 0, 0, 1]
    assert scores.duplicate_token[0].tolist() == [0, 0, 1, 0]
    # Of the six queries after the first, three duplicates look at it for want of a better place.
    assert scores.first_token[0].tolist() == pytest.approx([1, 1 / 6, 3 / 6, 3 / 6])
    assert scores.previous_token[0].tolist() == [0, 1, 0, 0], "position 0 is not counted"


def test_even_attention_scores_what_chance_gives():
    even = torch.ones(7, 7).tril()
    even = even / even.sum(-1, keepdim=True)
    scores = head_scores(made_up(even[None, None]))
    expected = sum(1 / count for count in (5, 6, 7)) / 3  # queries 4 to 6, one place each
    assert float(scores.induction) == pytest.approx(expected)
    assert float(scores.duplicate_token) == pytest.approx(expected)


def test_a_kind_without_a_place_is_nan_and_never_best():
    scores = head_scores(made_up(torch.stack([looking_at([0, 0, 1], 3), looking_at([0] * 3, 3)])[None], ids=[1, 2, 3]))
    assert torch.isnan(scores.induction).all()
    assert scores.best("previous_token", 9) == [(0, 0), (0, 1)]


def test_patches_of_a_picture_are_no_duplicates():
    patches = torch.tensor([-1, 0, 1, 2, -1, -1, -1])
    attention = looking_at([0, 1, 1, 1, 1, 1, 1])[None, None]
    same = head_scores(made_up(attention, ids=[7, 9, 9, 9, 1, 2, 3]))
    apart = head_scores(made_up(attention, ids=[7, 9, 9, 9, 1, 2, 3], patch_index=patches))
    assert float(same.duplicate_token) == 1 and torch.isnan(apart.duplicate_token).all()


def test_some_layers_and_some_queries_keep_their_numbers(model, tokenizer):
    ids = repeated_ids(tokenizer, length=12, generator=torch.Generator().manual_seed(0))
    everything = head_scores(trace(model, tokenizer, ids))
    part = head_scores(trace(model, tokenizer, ids, layers=[3, 17]))
    assert part.layers == (3, 17)
    assert torch.allclose(part.induction, everything.induction[[3, 17]], atol=1e-5)
    assert part.best("induction", 1)[0][0] in (3, 17)
    last = trace(model, tokenizer, ids, positions=[-1])
    assert torch.allclose(head_scores(last).induction, last.attentions[:, :, 0, 13], atol=1e-6)


def test_the_real_model_has_all_kinds(model, tokenizer):
    ids = repeated_ids(tokenizer, length=25, generator=torch.Generator().manual_seed(1))
    scores = head_scores(trace(model, tokenizer, ids, hidden_states=False, logits=False))
    assert all(float(getattr(scores, kind).max()) > 0.5 for kind in KINDS)
    assert "induction: best " in repr(scores)


def test_repeated_ids(tokenizer, llama3_tokenizer):
    for tokens in (tokenizer, llama3_tokenizer):
        ids = repeated_ids(tokens, length=40, generator=torch.Generator().manual_seed(0))
        assert ids.shape == (1, 81) and ids[0, 0] == tokens.bos_token_id
        assert torch.equal(ids[0, 1:41], ids[0, 41:]) and len(set(ids[0, 1:41].tolist())) == 40
        assert not set(ids[0, 1:].tolist()) & set(tokens.all_special_ids)
        assert torch.equal(ids, repeated_ids(tokens, length=40, generator=torch.Generator().manual_seed(0)))
    for length in (0, 10**7, True, 2.5):
        with pytest.raises(BadInputError, match="whole number from 1"):
            repeated_ids(tokenizer, length=length)


def test_rollout_of_a_chain_is_known():
    chain = looking_at([0, 0, 1, 2], 4)[None, None].repeat(3, 2, 1, 1)  # every head: the token before
    rollout = attention_rollout(chain)
    assert rollout.shape == (3, 4, 4)
    assert rollout[0, 3].tolist() == [0, 0, 0.5, 0.5]
    assert rollout[2, 3].tolist() == [0.125, 0.375, 0.375, 0.125], "three layers, each stays or goes back by one"
    assert torch.allclose(rollout.sum(-1), torch.ones(3, 4))
    assert torch.equal(attention_rollout(chain, residual=0.0)[2, 3], torch.tensor([1.0, 0, 0, 0]))
    assert torch.equal(attention_rollout(chain, residual=1.0)[2], torch.eye(4))


def test_rollout_averages_heads_and_multiplies_in_order():
    torch.manual_seed(0)
    attentions = torch.rand(2, 3, 5, 5).tril()
    attentions /= attentions.sum(-1, keepdim=True)
    first, second = (0.5 * torch.eye(5) + 0.5 * layer.mean(0) for layer in attentions)
    assert torch.allclose(attention_rollout(attentions)[1], second @ first)
    assert not torch.allclose(first @ second, second @ first)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3, 4), torch.zeros(1, 2, 3, 4)])
def test_rollout_wants_all_queries(wrong):
    with pytest.raises(BadInputError, match="all positions as queries"):
        attention_rollout(wrong)


def test_rollout_wants_a_share():
    with pytest.raises(BadInputError, match="from 0 to 1"):
        attention_rollout(torch.zeros(1, 1, 2, 2), residual=1.5)


def test_scores_say_what_is_missing(model, tokenizer):
    with pytest.raises(BadInputError, match="no attentions"):
        head_scores(trace(model, tokenizer, "a b", attentions=False))
    with pytest.raises(BadInputError, match="no attentions"):
        head_scores(torch.zeros(3))
    with pytest.raises(BadInputError, match="2 positions in a cache"):
        head_scores(made_up(torch.zeros(1, 1, 7, 9)))
    with pytest.raises(BadInputError, match="no kind 'copy'"):
        head_scores(made_up(torch.stack(list(HEADS.values()))[None])).best("copy")


def attentions_of(tiny, ids):
    tiny.set_attn_implementation("eager")
    with torch.no_grad():
        return torch.cat(tiny(ids, output_attentions=True).attentions)


def test_temperature_divides_the_scores_of_one_head(tiny):
    ids = torch.tensor([[5, 9, 2, 11, 3]])
    before = attentions_of(tiny, ids)
    with head_temperature(tiny, [(0, 1)], 0.5):
        sharp = attentions_of(tiny, ids)
    expected = (before[0, 1].log() / 0.5).softmax(-1)
    assert torch.allclose(sharp[0, 1], expected, atol=1e-5)
    assert torch.equal(sharp[0, [0, 2, 3]], before[0, [0, 2, 3]]), "the other heads of the layer are untouched"
    assert not torch.allclose(sharp[1], before[1]), "and what comes after hears of it"
    assert torch.equal(attentions_of(tiny, ids), before), "on leaving, the model is as before"


def test_temperature_one_changes_nothing_and_infinity_looks_everywhere(tiny):
    ids = torch.tensor([[5, 9, 2, 11]])
    before = attentions_of(tiny, ids)
    with head_temperature(tiny, [(1, 0), (1, 3)], 1.0):
        assert torch.equal(attentions_of(tiny, ids), before)
    with head_temperature(tiny, [(-1, 2)], math.inf):
        assert torch.allclose(attentions_of(tiny, ids)[2, 2, 3], torch.full((4,), 0.25))


def test_temperature_says_what_is_wrong(tiny):
    for heads, temperature, words in (
        ([(0, 0)], 0, "above 0, not 0"),
        ([(0, 9)], 1, "no head 9"),
        ([(7, 0)], 1, "no layer 7"),
        ([3], 1, "pairs"),
    ):
        with pytest.raises(BadInputError, match=words), head_temperature(tiny, heads, temperature):
            pass


def test_a_model_that_normalises_its_queries_is_refused():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, num_attention_heads=2, num_key_value_heads=1, head_dim=8))
    with pytest.raises(BadInputError, match="no plain q_proj"), head_temperature(model, [(0, 0)], 2.0):
        pass
