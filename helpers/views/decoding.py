"""Prefill and decode as a drawing: which rows of attention each step computes, with the KV cache and without it.

The drawing is an SVG of a few kilobytes, made from the steps of an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from helpers.checks import given_by, several
from helpers.errors import BadInputError
from helpers.views.style import INK, MUTED, OKABE_ITO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helpers.inside.generation import GenerationStep

CELL, GAP, LEFT = 12, 26, 140  # pixels: a cell's side, between two steps, and before the first step
MOST_STEPS, MOST_POSITIONS = 6, 12
FONT = "system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif"
COMPUTED, CACHED = OKABE_ITO["orange"], OKABE_ITO["sky"]


@dataclass(frozen=True, repr=False)
class DecodingView:
    """The steps of an answer; a notebook shows them as a drawing, a terminal as text.

    For each step, `read` is how many positions it reads, `lengths` how many there are in all, and `chosen` the token
    that it chose.
    """

    read: tuple[int, ...]
    lengths: tuple[int, ...]
    chosen: tuple[str, ...]

    def __repr__(self) -> str:
        cached, uncached = sum(self.read), sum(self.lengths)
        lines = [
            f"step {n}: {length} positions, rows computed: {read} with the cache, {length} without; chose {token}"
            for n, (read, length, token) in enumerate(zip(self.read, self.lengths, self.chosen, strict=True))
        ]
        return "\n".join([*lines, f"in total: {cached} rows with the cache, {uncached} without"])

    def _repr_svg_(self) -> str:
        side = CELL * max(self.lengths)
        lefts = [LEFT + sum(CELL * length + GAP for length in self.lengths[:n]) for n in range(len(self.lengths))]
        width, second = lefts[-1] + side + 12, 74 + side
        height = second + side + 44
        drawn = [_head(width, height), _label(8, 50, "with the cache"), _label(8, second + 16, "without it")]
        drawn.append(_text(8, 68, f"{sum(self.read)} rows computed"))
        drawn.append(_text(8, second + 34, f"{sum(self.lengths)} rows computed"))
        for left, read, length, token, n in zip(
            lefts, self.read, self.lengths, self.chosen, range(len(lefts)), strict=True
        ):
            drawn.append(_label(left, 22, "prefill" if n == 0 else f"decode {n}"))
            drawn += _triangle(left, 36, length, length - read)
            drawn += _triangle(left, second, length, 0)
            drawn.append(_text(left, second + CELL * length + 16, f"→ {token}", color=INK))
        drawn.append(_legend(LEFT, height - 8))
        return "".join([*drawn, "</svg>"])


def show_prefill_and_decode(steps: Sequence[GenerationStep]) -> DecodingView:
    """Which rows of attention each step computes and which keys it finds in the cache, as a drawing.

    `steps` are the first `GenerationStep`s of an answer, at most six, up to twelve positions long. Each step is a
    triangle: a row is a query, a column a key. The triangle below it shows what the same step would have to compute
    without a cache.

    Raises `BadInputError` for no steps, for more than fit, and for steps that do not begin with the prompt.

    >>> from helpers.inside.generation import generate_steps
    >>> view = show_prefill_and_decode(list(generate_steps(model, tokenizer, "The sky", max_new_tokens=3)))
    >>> sum(view.read) == view.lengths[-1]  # each position is read once
    True
    """
    steps = several("steps", steps, "steps of generate_steps")
    for step in steps:
        given_by("generate_steps", "Each of the steps", step, "input_ids", "kv_length")
    if not steps or steps[0].input_ids.shape[1] != steps[0].kv_length:
        raise BadInputError("Give the steps of an answer from the first one on, which reads the whole prompt.")
    if len(steps) > MOST_STEPS or steps[-1].kv_length > MOST_POSITIONS:
        raise BadInputError(
            f"These are {len(steps)} steps with up to {steps[-1].kv_length} positions; the drawing has room for "
            f"{MOST_STEPS} and {MOST_POSITIONS}: take a shorter prompt or fewer steps."
        )
    return DecodingView(
        tuple(step.input_ids.shape[1] for step in steps),
        tuple(step.kv_length for step in steps),
        tuple(step.token for step in steps),
    )


def _triangle(left: int, top: int, length: int, cached: int) -> list[str]:
    """The rows from `cached` on; a key below `cached` comes from the cache. Rows that are not computed are outlined."""
    rows = range(length)
    skipped = [(row, column) for row in rows[:cached] for column in range(row + 1)]
    found = [(row, column) for row in rows[cached:] for column in range(min(row + 1, cached))]
    made = [(row, column) for row in rows[cached:] for column in range(cached, row + 1)]
    return [
        _cells(left, top, skipped, "none", "#c8ced5"),
        _cells(left, top, found, CACHED, "#fff"),
        _cells(left, top, made, COMPUTED, "#fff"),
    ]


def _cells(left: int, top: int, places: list[tuple[int, int]], fill: str, edge: str) -> str:
    if not places:
        return ""
    path = "".join(f"M{left + CELL * column},{top + CELL * row}h{CELL}v{CELL}h-{CELL}z" for row, column in places)
    return f'<path d="{path}" fill="{fill}" stroke="{edge}"/>'


def _head(width: int, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="{FONT}"><title>Rows of attention that each step computes</title>'
        f'<rect width="{width}" height="{height}" rx="6" fill="#fff"/>'
    )


def _legend(left: int, bottom: int) -> str:
    entries = {COMPUTED: "key computed in this step", CACHED: "key from the cache", "none": "row of an earlier step"}
    drawn = []
    for n, (fill, text) in enumerate(entries.items()):
        x = left + 190 * n
        edge = "#c8ced5" if fill == "none" else "#fff"
        drawn.append(f'<rect x="{x}" y="{bottom - 10}" width="{CELL}" height="{CELL}" fill="{fill}" stroke="{edge}"/>')
        drawn.append(_text(x + 18, bottom, text))
    return "".join(drawn)


def _label(x: int, y: int, text: str) -> str:
    return f'<text x="{x}" y="{y}" font-size="13" font-weight="600" fill="{INK}">{escape(text)}</text>'


def _text(x: int, y: int, text: str, *, color: str = MUTED) -> str:
    return f'<text x="{x}" y="{y}" font-size="12" fill="{color}">{escape(text)}</text>'
