"""Figures of what is written into the residual stream, and of what happens when it is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helpers.checks import axes, given_by, named, several
from helpers.errors import BadInputError
from helpers.views.plots import MOST_LABELS
from helpers.views.style import DIFFERENCES_COLORMAP, INK, MUTED, OKABE_ITO, columns, drawable, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from helpers.inside.patching import PatchingSweep

COLUMN_WIDTH = 10  # Latin letters that fit under a column of a heat map
WIDE_COLUMNS = 13  # more columns than this are narrower


def plot_patching(sweep: PatchingSweep, *, title: str = "", ax: Axes | None = None) -> Axes:
    """A `PatchingSweep` as a heat map, layers by positions. Returns the Axes.

    Red means that the patch moves the answer towards the source's (1 is all the way), blue away from it. Colours run
    from -1 to 1, and values beyond them get the colour of that end. Where the prompts' tokens differ, both are written.

    >>> from helpers.inside.patching import patching_sweep
    >>> sweep = patching_sweep(model, tokenizer, "The capital of Italy is", "The capital of France is", layers=[0, 15])
    >>> plot_patching(sweep).get_ylabel()
    'row (number of layers passed)'
    """
    given_by("patching_sweep", "sweep", sweep, "moved", "source_tokens")
    rows, length = sweep.moved.shape
    ax = new_axes(ax, min(11.0, 2.6 + 0.62 * length), min(6.5, 1.7 + 0.125 * rows))
    picture = _heat(ax, sweep.moved.numpy(force=True), 1.0)
    both = [(a,) if a == b else (a, f"← {b}") for a, b in zip(sweep.tokens, sweep.source_tokens, strict=True)]
    lines = [[drawable(line) for line in label] for label in both]
    every = -(-length // MOST_LABELS)
    places = range(0, length, every)
    upright = length <= WIDE_COLUMNS and max(columns(line) for label in lines for line in label) <= COLUMN_WIDTH
    shown = [("\n" if upright else " ").join(lines[place]) for place in places]
    slanted = {} if upright else {"rotation": 45, "ha": "right"}
    ax.set_xticks(places, shown, fontsize=8, color=INK, **slanted)
    ticks = range(0, rows, max(1, -(-rows // 10)))
    ax.set_yticks(ticks, [str(sweep.layers[row]) for row in ticks], fontsize=8)
    what = {"hidden_states": "hidden state", "attention": "attention's output", "mlp": "MLP's output"}[sweep.part]
    rows_are = "row (number of layers passed)" if sweep.part == "hidden_states" else "layer"
    title = title or f"Patching one {what}: how far the answer moves"
    ax.set(xlabel="position", ylabel=rows_are, title=drawable(title))
    ax.figure.colorbar(picture, ax=ax, shrink=0.75, label="moved").outline.set_visible(False)
    return ax


def plot_heads(
    heads: Tensor,
    mlp: Tensor | None = None,
    *,
    label: str = "",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """One number per head, layers by heads, and beside them one per MLP. Returns the Axes.

    `heads [layer, head]` and `mlp [layer]`; colours are centred: white is 0. Raises `BadInputError` if `heads` has
    another shape or `mlp` another number of layers.

    >>> import torch
    >>> ax = plot_heads(torch.randn(3, 4), title="What each head adds")
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('head', 'layer')
    """
    heads = axes("heads", heads, "layer", "head")
    mlp = None if mlp is None else axes("mlp", mlp, "layer")
    if mlp is not None and tuple(mlp.shape) != (heads.shape[0],):
        other = "" if mlp is None else f" and mlp {list(mlp.shape)}"
        raise BadInputError(f"heads is [layer, head] and mlp is [layer]; these are {list(heads.shape)}{other}.")
    layers, count = heads.shape
    ax = new_axes(ax, min(10.0, 2.6 + 0.3 * count), min(6.5, 1.6 + 0.125 * layers))
    limit = max(float(heads.abs().max()), 0.0 if mlp is None else float(mlp.abs().max())) or 1.0
    picture = _heat(ax, heads.numpy(force=True), limit)
    names = [str(head) for head in range(count)]
    places: list[float] = [*range(count)]
    if mlp is not None:
        extent = (count - 0.1, count + 0.9, -0.5, layers - 0.5)
        _heat(ax, mlp[:, None].numpy(force=True), limit, extent=extent)
        places, names = [*places, count + 0.4], [*names, "MLP"]
    ax.set_xlim(-0.5, count - 0.5 if mlp is None else count + 0.9)
    ax.set_xticks(places, names, fontsize=8, color=INK)
    ax.set_yticks(range(0, layers, 5), [str(layer) for layer in range(0, layers, 5)], fontsize=8)
    ax.set(xlabel="head", ylabel="layer", title=drawable(title))
    ax.figure.colorbar(picture, ax=ax, shrink=0.75, label=drawable(label)).outline.set_visible(False)
    return ax


def plot_against_controls(
    measured: Any,
    controls: Any,
    *,
    before: float | None = None,
    label: str = "",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """What was measured, compared with the controls: one row of dots per series. Returns the Axes.

    `measured` maps a name to a number, `controls` a name to several; `before` is the number without any change.
    Raises `BadInputError` if there is nothing to compare with.

    >>> ax = plot_against_controls({"head 5.0": 0.9}, {"three others": [0.1, 0.2, 0.3]}, title="One against three")
    >>> ax.get_title()
    'One against three'
    """
    named("measured", measured, "numbers", empty=True)
    named("controls", controls, "lists of numbers", empty=True)
    lists = [several(f"controls[{name!r}]", values, "numbers") for name, values in controls.items()]
    if not measured or not controls or not all(lists):
        raise BadInputError("There is nothing to compare: measured and controls each need a name with a number.")
    rows = [*measured, *controls]
    ax = new_axes(ax, 6.8, 1.0 + 0.42 * len(rows))
    for y, name in enumerate(rows):
        if name in measured:
            ax.plot(measured[name], y, "D", color=OKABE_ITO["vermillion"], ms=8)
        else:
            ax.plot(controls[name], [y] * len(controls[name]), "o", color=OKABE_ITO["blue"], ms=6, alpha=0.45, mew=0)
    if before is not None:
        ax.axvline(before, color=INK, lw=1)
        ax.annotate(
            "before", (before, -0.5), xytext=(4, 0), textcoords="offset points", fontsize=8, color=MUTED, va="top"
        )
    ax.set_yticks(range(len(rows)), [drawable(name) for name in rows])
    ax.set_ylim(len(rows) - 0.5, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel=drawable(label), title=drawable(title))
    return ax


def _heat(ax: Axes, values: Any, limit: float, *, extent: Any = None) -> Any:
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax.imshow(
        values,
        cmap=DIFFERENCES_COLORMAP,
        vmin=-limit,
        vmax=limit,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=extent,
    )
