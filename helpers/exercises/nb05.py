"""Checks for notebook 05: a memory budget, a reusable prompt, four bits, attention sinks, rejected guesses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from helpers.exercises import exercise, require

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

CAPITAL = "The capital of France is"
RULES = "The museum is open from nine to five, except on Mondays"
LONG = "The name of the cat is Milo. " + 12 * "We had tea. It rained a little. The train was late. Then we went home. "


@cache
def _default() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The default model and its tokenizer."""
    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_tokenizer

    return load_model("smollm2-135m", device="cpu"), load_tokenizer("smollm2-135m")


@cache
def _filled(text: str) -> tuple[Cache, Tensor]:
    import torch

    from helpers.text.prompts import prompt_ids

    model, tokenizer = _default()
    ids = prompt_ids(tokenizer, text)
    with torch.no_grad():
        return model(ids, logits_to_keep=1).past_key_values, ids


def _cache_of(text: str) -> tuple[Cache, Tensor]:
    """A `DynamicCache` of a text, filled by the default model, that an answer may change; and its ids `[1, length]`."""
    filled, ids = _filled(text)
    return copy.deepcopy(filled), ids


@cache
def _goes_on(text: str, count: int) -> list[int]:
    """The ids of the `count` tokens with which the default model continues a text, greedily and without a cache."""
    import torch

    model, _ = _default()
    _, own = _filled(text)
    with torch.no_grad():
        for _ in range(count):
            own = torch.cat([own, model(own, logits_to_keep=1).logits[:, -1:].argmax(-1)], dim=1)
    return own[0, -count:].tolist()


@exercise("05.1", expects=int)
def _(answer: Any) -> str:
    from helpers.models.cache_size import kv_cache_bytes
    from helpers.models.catalog import find_card

    card = find_card("glm-4-9b-chat")
    memory, each = 80_000_000_000, kv_cache_bytes(card, 131_072, dtype="bfloat16")
    fits = (memory - 2 * card.parameters) // each
    require(answer != memory // each, "the weights have to fit beside the caches, at two bytes per parameter.")
    require(
        answer == fits,
        f"{answer} would need {(answer * each + 2 * card.parameters) / 1e9:.4g} of the 80 GB, weights included. Is it "
        "the largest whole number that fits?",
    )
    return f"{fits} caches of {each / 1e9:.3g} GB beside the weights."


@exercise("05.2", expects=Callable)
def _(answer: Any) -> str:
    from helpers.inside.kv_cache import common_prefix
    from helpers.text.prompts import render_chat

    _, tokenizer = _default()
    dates = ("Friday, 3 May", "Saturday, 4 May", "Monday, 30 December")
    texts = [answer(date) for date in dates]
    for date, text in zip(dates, texts, strict=True):
        require(isinstance(text, str), f"it should return a text, not {type(text).__name__}.")
        require(date in text, f"{date!r} is not in the prompt for that day.")
        require(RULES in text, f"the rules are not all there: {RULES!r} is missing.")
    question = {"role": "user", "content": "Are you open today?"}
    chats = [render_chat(tokenizer, [{"role": "system", "content": text}, question]).input_ids for text in texts]
    shared = min(common_prefix(chats[0], chat) for chat in chats[1:])
    require(
        shared >= 0.8 * len(chats[0]),
        f"{shared} of {len(chats[0])} ids can be reused on another day. Everything after the date is lost.",
    )
    return f"{shared} of {len(chats[0])} ids can be reused on another day: what changes goes last."


def _most_values(x: Tensor, dim: int) -> int:
    """How many different numbers there are, at most, in one slice of `x` along `dim`."""
    return max(len(line.unique()) for line in x.movedim(dim, -1).reshape(-1, x.shape[dim])[::7])


@exercise("05.3", expects=Callable)
def _(answer: Any) -> str:
    import torch

    filled, _ = _cache_of(LONG)
    errors = []
    for layer in filled.layers[::3]:
        given = answer(layer.keys.clone())
        require(
            isinstance(given, torch.Tensor) and given.shape == layer.keys.shape,
            f"it should return a tensor of the same shape, {list(layer.keys.shape)}.",
        )
        values = min(_most_values(given, dim) for dim in (2, 3))
        require(
            values <= 16,
            f"four bits can represent 16 values; your result has {values} along a channel or a position. (Do at least "
            "20 numbers share a scale?)",
        )
        errors.append(float((given - layer.keys).norm() / layer.keys.norm()))
    error = sum(errors) / len(errors)
    require(
        error < 0.1,
        f"the mean error on the keys is {error:.0%} of their size. Which numbers are alike: those of one position, or "
        "those of one channel?",
    )
    return f"The mean error is {error:.1%} of the keys' size: channels differ a lot, positions hardly at all."


@exercise("05.4", expects=Callable)
def _(answer: Any) -> str:
    import torch

    filled, ids = _cache_of("The name of the cat is Milo. We had tea.")
    length = ids.shape[1]
    before = [layer.keys.clone() for layer in filled.layers]
    for sinks, window in ((1, 4), (4, 6), (0, 3), (2, length), (4, length - 2)):
        given = answer(filled, sinks, window)
        require(hasattr(given, "layers"), f"it should return a DynamicCache, not {type(given).__name__}.")
        unchanged = all(torch.equal(layer.keys, keys) for layer, keys in zip(filled.layers, before, strict=True))
        require(unchanged, "your function changed the cache passed to it: make a new one.")
        keep = [p for p in range(length) if p < sinks or p >= length - window]
        require(
            len(given.layers) == len(filled.layers), f"it has {len(given.layers)} layers, not {len(filled.layers)}."
        )
        for mine, layer in zip(filled.layers, given.layers, strict=True):
            require(
                layer.keys.shape[2] == len(keep),
                f"of {length} positions {len(keep)} should be kept (sinks: {sinks}, window: {window}); "
                f"yours holds {layer.keys.shape[2]}.",
            )
            same = torch.equal(layer.keys, mine.keys[:, :, keep]) and torch.equal(layer.values, mine.values[:, :, keep])
            require(
                same,
                f"for sinks={sinks} and window={window} the wrong positions are kept, or keys and values are mixed up.",
            )
    return "The first positions and the last ones, each once."


@exercise("05.5", expects=Callable)
def _(answer: Any) -> str:
    import torch

    from helpers.inside.kv_cache import branch_cache

    _, tokenizer = _default()
    filled, ids = _cache_of(CAPITAL)
    truth = _goes_on(CAPITAL, 4)
    with torch.no_grad():
        wrong = tokenizer(" bicycle")["input_ids"][0]
        for guesses, right in ((truth[:3], 3), ([truth[0], wrong, truth[2]], 1), ([wrong, truth[1]], 0)):
            cache = branch_cache(filled, ids.shape[1] - 1)
            given = answer(ids, cache, list(guesses))
            require(isinstance(given, list), f"it should return a list of ids, not {type(given).__name__}.")
            require(
                given == truth[: right + 1],
                f"with {right} of {len(guesses)} guesses right, counted up to the first wrong one, it should return "
                f"{right + 1} ids, {truth[: right + 1]}; yours are {given}.",
            )
            held = cache.get_seq_length()
            require(
                held == ids.shape[1] + right,
                f"afterwards the cache should hold {ids.shape[1]} + {right} positions; it holds {held}. The wrong "
                "guesses are still in it, or too much was removed.",
            )
    return "In one pass, the right guesses are kept and the wrong ones are gone from text and cache."
