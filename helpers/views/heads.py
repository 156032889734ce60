"""Figures of what heads do: a score for every head of a model, and attention over a picture.

Each function takes a result and `ax=None`, draws, and returns the `Axes`. Nothing here runs a model.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from helpers.checks import axes
from helpers.errors import BadInputError
from helpers.views.style import INK, OKABE_ITO, WEIGHTS_COLORMAP, drawable, new_axes, veil_colormap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from torch import Tensor


def plot_head_scores(
    scores: Any,
    *,
    title: str = "",
    label: str = "mean attention",
    marked: Sequence[tuple[int, int]] = (),
    ax: Axes | None = None,
) -> Axes:
    """One number per head, `scores [layer, head]` from 0 to 1, with layers from left to right. Returns the Axes.

    `marked`: heads (layer, head) to frame. Raises `BadInputError` for scores of another shape.

    >>> import torch
    >>> ax = plot_head_scores(torch.rand(3, 4), title="Induction")
    >>> ax.get_title(), ax.get_xlabel(), ax.get_ylabel()
    ('Induction', 'layer', 'head')
    """
    scores = axes("scores", scores, "layer", "head")
    layers, heads = scores.shape
    ax = new_axes(ax, min(11.0, 2.0 + 0.22 * layers), 1.1 + 0.17 * heads)
    shown = scores.float().T.numpy(force=True)
    picture = ax.imshow(shown, cmap=WEIGHTS_COLORMAP, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for layer, head in marked:
        ax.add_patch(_rectangle((layer - 0.5, head - 0.5), 1, 1, fill=False, ec=OKABE_ITO["vermillion"], lw=1.8))
    every = max(1, layers // 15)
    ax.set_xticks(range(0, layers, every), range(0, layers, every), color=INK)
    ax.set_yticks(range(heads), range(heads), fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="layer", ylabel="head", title=drawable(title))
    ax.figure.colorbar(picture, ax=ax, pad=0.015, label=drawable(label)).outline.set_visible(False)
    return ax


def plot_attention_on_picture(weights: Tensor, picture: Any, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Attention on a picture's patches: the patch with the largest weight is clear and framed, and a grey veil hides
    the others, more strongly the smaller their weight is.

    `weights [patch]`, row by row, are those of one query; `picture` is a PIL image. Returns the Axes.
    Raises `BadInputError` if the patches do not form a square.

    >>> import torch
    >>> from PIL import Image
    >>> plot_attention_on_picture(torch.rand(16), Image.new("RGB", (96, 96)), title="Where it looks").get_title()
    'Where it looks'
    """
    side = math.isqrt(len(weights))
    if side * side != len(weights) or not side:
        raise BadInputError(f"{len(weights)} patches do not form a square grid: give the weights of all patches.")
    shown = (weights.float() / weights.max().clamp_min(1e-9)).view(side, side).cpu()
    extent = (-0.5, picture.width - 0.5, picture.height - 0.5, -0.5)
    ax = new_axes(ax, 2.6, 2.8)
    ax.imshow(picture.convert("RGB"))
    ax.imshow(shown.numpy(), cmap=veil_colormap(), vmin=0, vmax=1, extent=extent, interpolation="nearest")
    row, column = divmod(int(weights.argmax()), side)
    high, wide = picture.height / side, picture.width / side
    corner = (column * wide - 0.5, row * high - 0.5)
    ax.add_patch(_rectangle(corner, wide, high, fill=False, ec=OKABE_ITO["orange"], lw=2))
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_title(drawable(title), fontsize=9)
    return ax


def _rectangle(*place: Any, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(*place, **style, clip_on=False)
