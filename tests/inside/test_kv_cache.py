"""Shapes, bytes and branches of real KV caches."""

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from helpers.errors import BadInputError
from helpers.inside.kv_cache import branch_cache, common_prefix, kv_cache_summary
from helpers.models.cache_size import kv_cache_bytes
from helpers.models.catalog import find_card

IDS = torch.tensor([[5, 9, 31, 7, 12, 40]])


def _cache(model, ids=IDS, cache=None):
    return model(ids, past_key_values=cache or DynamicCache(config=model.config), use_cache=True).past_key_values


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 6])
def test_the_formula_gives_the_measured_bytes(tiny, batch, length):
    cache = _cache(tiny, IDS[:, :length].expand(batch, -1))
    summary = kv_cache_summary(cache)
    measured = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert summary.nbytes == measured == kv_cache_bytes(tiny.config, length, batch=batch)
    assert summary.length == length
    assert all(layer.keys == (batch, 2, length, 8) == layer.values for layer in summary.layers)


def test_the_default_model(model, tokenizer):
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        summary = kv_cache_summary(model(ids, use_cache=True).past_key_values)
    assert summary.nbytes == kv_cache_bytes(model.config, ids.shape[1]) == 2 * 30 * 3 * 64 * 4 * ids.shape[1]
    assert len(summary.layers) == 30


def test_narrower_numbers_take_less(tiny):
    half = tiny.to(torch.bfloat16)
    assert kv_cache_summary(_cache(half)).nbytes == kv_cache_bytes(half.config, 6, dtype="bfloat16")
    assert kv_cache_bytes(half.config, 6, dtype=torch.bfloat16) * 2 == kv_cache_bytes(half.config, 6, dtype="float32")


@pytest.mark.parametrize(
    ("name", "per_token"), [("llama-3-8b-instruct", 131_072), ("glm-4-9b-chat", 40_960), ("glm-4v-9b", 40_960)]
)
def test_the_large_models_by_card(name, per_token):
    """2 * 32 * 8 * 128 * 2 bytes a token for Llama-3-8B, 2 * 40 * 2 * 128 * 2 for GLM-4 with its two groups."""
    assert kv_cache_bytes(find_card(name), 8192, dtype="bfloat16") == 8192 * per_token


def test_a_static_cache_is_paid_for_in_advance(tiny):
    cache = _cache(tiny, cache=StaticCache(config=tiny.config, max_cache_len=20))
    summary = kv_cache_summary(cache)
    assert summary.length == 6
    assert summary.nbytes == kv_cache_bytes(tiny.config, 20)
    assert summary.layers[0].kind == "StaticLayer"


def test_the_summary_folds_layers_that_are_alike(tiny):
    text = repr(kv_cache_summary(_cache(tiny)))
    assert text.splitlines()[0] == "KV cache: 3 layers, 6 positions, 2,304 bytes"
    assert "layers 0 to 2, each: keys [1, 2, 6, 8], values [1, 2, 6, 8], float32, 768 bytes (DynamicLayer)" in text
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize("value", [None, (1, 2), "cache"])
def test_something_that_is_no_cache(value):
    with pytest.raises(BadInputError, match="past_key_values"):
        kv_cache_summary(value)


def test_an_empty_cache_says_so(tiny):
    for empty in (DynamicCache(), DynamicCache(config=tiny.config)):
        with pytest.raises(BadInputError, match="empty"):
            kv_cache_summary(empty)
        with pytest.raises(BadInputError, match="empty"):
            branch_cache(empty)


@pytest.mark.parametrize(
    ("arguments", "settings", "says"), [((5,), {"dtype": "int3"}, "int3"), ((-1,), {}, "-1"), ((5,), {"batch": 0}, "0")]
)
def test_bytes_that_cannot_be(tiny, arguments, settings, says):
    with pytest.raises(BadInputError, match=says):
        kv_cache_bytes(tiny.config, *arguments, **settings)


def test_branches_share_memory_and_grow_apart(tiny):
    stem = _cache(tiny)
    before = [layer.keys.clone() for layer in stem.layers]
    first, second = branch_cache(stem), branch_cache(stem)
    assert first.layers[0].keys.data_ptr() == stem.layers[0].keys.data_ptr()
    one = tiny(torch.tensor([[3]]), past_key_values=first).logits
    other = tiny(torch.tensor([[50]]), past_key_values=second).logits
    assert torch.allclose(one[:, -1], tiny(torch.cat([IDS, torch.tensor([[3]])], dim=1)).logits[:, -1], atol=1e-5)
    assert torch.allclose(other[:, -1], tiny(torch.cat([IDS, torch.tensor([[50]])], dim=1)).logits[:, -1], atol=1e-5)
    assert stem.get_seq_length() == 6
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(stem.layers, before, strict=True))


def test_a_branch_can_begin_earlier(tiny):
    branch = branch_cache(_cache(tiny), 4)
    assert branch.get_seq_length() == 4
    logits = tiny(IDS[:, 4:], past_key_values=branch).logits
    assert torch.allclose(logits[:, -1], tiny(IDS).logits[:, -1], atol=1e-5)


@pytest.mark.parametrize("length", [0, 7, -1])
def test_a_branch_of_a_length_that_is_not_there(tiny, length):
    with pytest.raises(BadInputError, match="1 to 6"):
        branch_cache(_cache(tiny), length)


def test_a_static_cache_cannot_be_branched(tiny):
    cache = _cache(tiny, cache=StaticCache(config=tiny.config, max_cache_len=20))
    with pytest.raises(BadInputError, match="StaticLayer"):
        branch_cache(cache)


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 3], 2), ([5], [6], 0), (torch.tensor([[1, 2]]), [1, 2], 2)],
)
def test_common_prefix(first, second, length):
    assert common_prefix(first, second) == length


def test_what_is_no_cache_of_one_text_is_told_apart():
    """A model that gives none was asked to be run, and so was one whose cache holds what an encoder read as well."""
    with pytest.raises(BadInputError, match="past_key_values is None: the model keeps no KV cache"):
        kv_cache_summary(None)
    both = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with pytest.raises(BadInputError, match=r"holds two caches, .* past_key_values\.self_attention_cache"):
        kv_cache_summary(both)
