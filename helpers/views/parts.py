"""A figure of what a whole is made of: bars divided into their parts, one below the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from helpers.errors import BadInputError
from helpers.views.style import INK, MUTED, OKABE_ITO, drawable, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = ("blue", "orange", "green", "purple", "sky", "vermillion", "yellow")


def plot_parts(
    rows: Any, *, unit: str = "", title: str = "", limit: tuple[str, float] | None = None, ax: Axes | None = None
) -> Axes:
    """Each row as one bar, divided into its parts; parts with the same name have the same colour. Returns the Axes.

    `rows` maps a row's name to a dict of part name to number (0 or more). Numbers are written to 3
    significant digits: in the parts that are wide enough, and the sum at the bar's end unless all sums are
    equal. `limit` is a pair `(name, number)`, drawn as a line across all bars.

    Raises `BadInputError` if there is nothing to draw or a part is negative.

    >>> ax = plot_parts({"float32": {"weights": 0.54, "cache": 0.09}}, unit="GB", title="Memory")
    >>> ax.get_title(), [label.get_text() for label in ax.get_yticklabels()]
    ('Memory', ['float32'])
    """
    given = list(rows.values()) if isinstance(rows, Mapping) else []
    if not given or not all(isinstance(parts, Mapping) and parts for parts in given):
        raise BadInputError(
            'There is nothing to draw: rows is a dict such as {"model": {"weights": 1.5, "cache": 0.2}}.'
        )
    negative = [(row, part) for row, parts in rows.items() for part, value in parts.items() if value < 0]
    if negative:
        row, part = negative[0]
        raise BadInputError(f"{part} of {row} is {rows[row][part]:.3g}: a part of a whole cannot be negative.")
    ax = new_axes(ax, 7.4, 1.15 + 0.42 * len(rows))
    widest = max([sum(parts.values()) for parts in rows.values()] + ([limit[1]] if limit else []))
    names = list(dict.fromkeys(part for parts in rows.values() for part in parts))
    left = [0.0] * len(rows)
    for n, name in enumerate(names):
        values = [parts.get(name, 0.0) for parts in rows.values()]
        ax.barh(
            range(len(rows)),
            values,
            left=left,
            height=0.66,
            label=drawable(name),
            lw=0,
            color=OKABE_ITO[_COLORS[n % len(_COLORS)]],
        )
        for y, value in enumerate(values):
            if value > 0.09 * widest:
                _write(ax, left[y] + value / 2, y, value)
        left = [start + value for start, value in zip(left, values, strict=True)]
    equal = max(left) - min(left) < 1e-3 * widest and len(rows) > 1  # fractions of a whole: a sum of 100 says nothing
    for y, total in enumerate([] if equal else left):
        ax.annotate(
            f"{_number(total)} {drawable(unit)}".rstrip(),
            (total, y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=INK,
        )
    if limit:
        ax.axvline(limit[1], color=INK, lw=1.6, ls=(0, (4, 2)))
        ax.annotate(
            drawable(limit[0]),
            (limit[1], 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=MUTED,
        )
    ax.set_yticks(range(len(rows)), [drawable(name) for name in rows])
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set(xlim=(0, widest * (1.03 if equal else 1.14)), xlabel=drawable(unit), title=drawable(title))
    ax.figure.legend(
        *ax.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(names), 5), fontsize=8.5
    )
    return ax


def _write(ax: Axes, x: float, y: float, value: float) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.88}
    ax.text(x, y, _number(value), ha="center", va="center", fontsize=8, color=INK, bbox=box)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
