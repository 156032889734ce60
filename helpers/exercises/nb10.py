"""Checks for notebook 10: a batch size, resuming by hand, a batch padded on the right, slots that are refilled."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from helpers.exercises import exercise, require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXTS = ("The capital of France is", "One", "星期一、星期二、星期三、星期", "List the first five prime numbers:")


@cache
def _default() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The default model and its tokenizer."""
    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_tokenizer

    return load_model("smollm2-135m", device="cpu"), load_tokenizer("smollm2-135m")


@cache
def _lengths() -> list[int]:
    """The lengths of section 3's prompts, sorted."""
    from helpers.models.pretrained import load_tokenizer
    from helpers.text.prompts import load_prompts, prompt_ids

    tokenizer = load_tokenizer("smollm2-135m")
    sentences = [text.rstrip(".?!") + "." for text in load_prompts("english")[2:11]]
    many = [" ".join(sentences[: 1 + (7 * i) % 9] * (1 + i % 3)) for i in range(48)]
    return sorted(len(prompt_ids(tokenizer, text)[0]) for text in many)


def _padding(batch_size: int) -> float:
    """The fraction of positions that are padding when the sorted prompts run in batches of this size."""
    lengths = _lengths()
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)


@exercise("10.1", expects=int)
def _(answer: Any) -> str:
    require(1 <= answer <= 48, f"a batch size must be between 1 and 48 here, not {answer}.")
    fraction = _padding(answer)
    require(fraction < 0.05, f"with {answer} prompts per batch, {fraction:.1%} of all positions are padding.")
    larger = [size for size in range(answer + 1, 49) if _padding(size) < 0.05]
    require(not larger, f"{answer} stays below 5%, but so does a larger batch size. Have you tried them all?")
    return f"With {answer} prompts per batch, {fraction:.1%} of all positions are padding."


def _line(index: int, answer: Any) -> bytes:
    fields = {"index": index, "Input": "问题", "Output": answer}
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


@exercise("10.2", expects=Callable)
def _(answer: Any) -> str:
    whole = _line(2, "ja") + _line(0, "two\nlines") + _line(4, "")
    for data, done, what in (
        (b"", [], "an empty file"),
        (whole, [0, 2, 4], "a file whose lines are all complete"),
        (_line(1, "a separator:\u2028 and more") + whole, [0, 1, 2, 4], "an answer that contains the character U+2028"),
        (whole + _line(3, "x")[:-4], [0, 2, 4], "a last line that was cut off"),
        (whole + '{"index": 3, "Input": "问'.encode()[:-1], [0, 2, 4], "a last line cut in the middle of a character"),
    ):
        given = answer(data, 6)
        right = [index for index in range(6) if index not in done]
        require(isinstance(given, list), f"it should return a list of indices, not {type(given).__name__}.")
        require(
            given == right, f"for {what}, prompts {right} of 6 are still to be asked, in that order; yours: {given}."
        )
    return "Complete lines count, and the prompt of a cut-off line is asked again."


@cache
def _next_alone(row: tuple[int, ...]) -> int:
    """The id of the greedy next token of a row that runs alone."""
    import torch

    with torch.no_grad():
        return int(_default()[0](torch.tensor([row])).logits[0, -1].argmax())


@exercise("10.3", expects=Callable)
def _(answer: Any) -> str:
    import torch

    from helpers.text.prompts import prompt_ids

    model, tokenizer = _default()
    rows = [prompt_ids(tokenizer, text)[0].tolist() for text in TEXTS]
    right = [_next_alone(tuple(row)) for row in rows]
    passes = []
    # Counts for any model that the answer uses: the notebook's model is not the object that this check has loaded.
    counting = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: passes.append(1) if isinstance(module, type(model)) else None
    )
    try:
        with torch.no_grad():
            given = answer([list(row) for row in rows])
    finally:
        counting.remove()
    require(isinstance(given, list), f"it should return a list of ids, not {type(given).__name__}.")
    require(len(given) == len(rows), f"there are {len(rows)} rows and {len(given)} ids.")
    given = [int(i) for i in given]
    wrong = [text for text, mine, its in zip(TEXTS, given, right, strict=True) if mine != its]
    require(
        not wrong,
        f"alone, {wrong[0] if wrong else ''!r} continues with another token. Which column holds a row's last token?",
    )
    require(len(passes) <= 1, f"the ids are right, but took {len(passes)} forward passes: one is enough.")
    return "One pass, each row's own last column."


def _refilled(answer_lengths: Sequence[int], slots: int) -> int:
    free = [0] * slots
    for length in answer_lengths:
        heapq.heappush(free, heapq.heappop(free) + length)
    return max(free)


@exercise("10.4", expects=Callable)
def _(answer: Any) -> str:
    cases = [([5, 3], 1), ([5, 3, 4], 2), ([9, 1, 1, 1, 1, 1], 2), ([2, 2, 2], 8), (list(range(1, 30)), 4)]
    for lengths, slots in cases:
        right, given = _refilled(lengths, slots), answer(list(lengths), slots)
        shown = f"{str(lengths)[:30]} with {slots} slots"
        batches = sum(max(lengths[i : i + slots]) for i in range(0, len(lengths), slots))
        require(
            given == right or given != batches or batches == right,
            f"for {shown} you return {given}: that is how long it takes if every batch waits for its longest answer.",
        )
        require(
            given == right,
            f"for {shown} it takes {right} steps, not {given}. Which prompt gets the slot that becomes free first?",
        )
    return "The slot that becomes free first takes the next prompt."
