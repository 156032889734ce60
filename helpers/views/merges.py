"""A figure of how bytes are merged into tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers.checks import given_by, several
from helpers.errors import BadInputError
from helpers.text.tokens import byte_labels
from helpers.views.style import INK, MUTED, OKABE_ITO, drawable, new_axes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from helpers.text.bpe import MergeStep

MOST_ROWS = 24


def plot_merges(
    steps: Sequence[MergeStep], *, title: str = "Merges, the lowest rank first", ax: Axes | None = None
) -> Axes:
    """How a piece of text turns from bytes (top row) into tokens (bottom row), one merge per row. Returns the Axes.

    `steps` is what `merge_steps` returned. A box is a token, as wide as its bytes; the one just made is
    filled and has a bold label; the rank of its pair is on the left.

    Raises `BadInputError` if there are no steps, or more than fit into a figure.

    >>> from helpers.text.bpe import merge_steps
    >>> plot_merges(merge_steps(b"aab", {(b"a", b"a"): 0}.get)).get_xlabel()
    '3 bytes'
    """
    steps = several("steps", steps, "steps that merge_steps returns")
    for step in steps:
        given_by("merge_steps", "Each of the steps", step, "tokens", "made", "rank")
    if not 1 <= len(steps) <= MOST_ROWS or not steps[0].tokens:
        raise BadInputError(f"Draw 1 to {MOST_ROWS} steps of a piece that has bytes; these are {len(steps)} steps.")
    width = len(steps[0].tokens)
    ax = new_axes(ax, 1.3 + max(0.6 * width, 3), 0.7 + 0.36 * len(steps))
    for row, step in enumerate(steps):
        left = 0
        labels = byte_labels(step.tokens, [False] * len(step.tokens))
        for place, (token, label) in enumerate(zip(step.tokens, labels, strict=True)):
            _box(ax, left, row, len(token), drawable(label), made=place == step.made)
            left += len(token)
    names = ["bytes" if step.rank is None else f"rank {step.rank:,}" for step in steps]
    ax.set_yticks(range(len(steps)), names)
    ax.set_xticks(range(width + 1), [])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlim=(-0.1, width + 0.1), ylim=(len(steps) - 0.45, -0.55), title=drawable(title))
    ax.set_xlabel(f"{width} bytes")
    return ax


def _box(ax: Axes, left: float, row: int, width: int, label: str, *, made: bool) -> None:
    color = OKABE_ITO["orange" if made else "sky"]
    gap = 0.05
    ax.barh(row, width - 2 * gap, left=left + gap, height=0.74, color=color, alpha=0.75 if made else 0.22)
    ax.text(
        left + width / 2,
        row,
        label,
        ha="center",
        va="center",
        fontsize=8.5 if made or width > 1 else 7.5,
        color=INK if made or width > 1 else MUTED,
        fontweight="bold" if made else "normal",
    )
