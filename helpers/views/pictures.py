"""Figures of pictures: in rows, cut into patches, and with weights drawn over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helpers.checks import number, several, shown, tensor, whole_number
from helpers.errors import BadInputError
from helpers.views.style import INK, MUTED, OKABE_ITO, RULE, VEIL_COLOR, drawable, new_axes, veil_colormap, wrapped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

SHARP = 150  # pixels per inch to which a larger picture is reduced; a smaller one is drawn in its own pixels


def plot_pictures(
    pictures: Any,
    captions: Sequence[str] | None = (),
    *,
    heats: Any = (),
    marks: Any = (),
    columns: int = 6,
    keep_shape: bool = False,
    width: float = 1.45,
    title: str = "",
) -> Any:
    """Pictures side by side, each with a caption under it. Returns the list of Axes, one per picture.

    `pictures` is one picture that `open_picture` takes, or a list (a single one is repeated for all `heats`).
    `heats`: tensors [row, column] of weights, 0 or more (or None). A grey veil shows them: it hides the picture where
    a weight is 0, and the patch with the picture's largest weight keeps its own colours; a scale is on the right.
    `marks`: for each picture a patch (row, column) of its heat to outline, or None.
    Pictures are drawn as squares, as GLM-4V gets them, unless `keep_shape`. `width` is that of a picture, in inches.

    Raises `BadInputError` if there is nothing to draw or the lists have different lengths, `BadImageError` for anything
    but a picture.

    >>> from PIL import Image
    >>> len(plot_pictures([Image.new("RGB", (8, 8))] * 2, ["one", "two"]))
    2
    """
    from matplotlib import pyplot

    opened = _opened(pictures)
    columns, width = whole_number("columns", columns, least=1), number("width", width, least=0.1, most=40)
    captions = [str(caption) for caption in several("captions", captions or (), "texts")]
    heats, marks = several("heats", heats, "tensors"), several("marks", marks, "pairs (row, column)")
    opened = opened * len(heats) if len(opened) == 1 and len(heats) > 1 else opened
    for name, values in (("captions", captions), ("heats", heats), ("marks", marks)):
        if values and len(values) != len(opened):
            raise BadInputError(f"There are {len(opened)} pictures and {len(values)} {name}: give one per picture.")
    columns = min(columns, len(opened))
    rows = -(-len(opened) // columns)
    letters = int(13 * width)
    lines = max((len(wrapped(caption, letters)) for caption in captions), default=0)
    size = (columns * (width + 0.1), rows * (width + 0.12 + 0.16 * lines) + (0.3 if title else 0))
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    axes = list(axes.flat)
    for ax in axes[len(opened) :]:
        ax.set_axis_off()
    axes = axes[: len(opened)]
    for index, (ax, picture) in enumerate(zip(axes, opened, strict=True)):
        _draw(ax, picture, keep_shape, round(SHARP * width))
        if heats and heats[index] is not None:
            _draw_heat(ax, heats[index], marks[index] if marks else None)
        if captions:
            text = "\n".join(map(drawable, wrapped(captions[index], letters)))
            ax.set_xlabel(text, fontsize=8, color=INK, labelpad=3)
    if any(heat is not None for heat in heats):
        _draw_scale(figure, axes)
    if title:
        figure.suptitle(drawable(title), x=0.01, ha="left", fontsize=10.5, fontweight="bold", color=INK)
    return axes


def plot_patches(picture: Any, grid: int, *, title: str = "", ax: Axes | None = None) -> Axes:
    """A picture resized to a square and cut into `grid` x `grid` patches with gaps between them. Returns the Axes.

    Rows and columns are numbered from 0. Raises `BadInputError` for a grid of fewer than 1 or more than 48 patches
    per side, and `BadImageError` for anything but a picture.

    >>> from PIL import Image
    >>> plot_patches(Image.new("RGB", (96, 96)), 4, title="Sixteen patches").get_title()
    'Sixteen patches'
    """
    import numpy
    from PIL.Image import Resampling

    if isinstance(grid, bool) or not isinstance(grid, int) or not 1 <= grid <= 48:
        raise BadInputError(f"grid is the number of patches along a side, 1 to 48, not {shown(grid)}.")
    (picture,) = _opened([picture])
    inside = max(6, 288 // grid)
    gap = max(1, inside // 8)
    way = Resampling.NEAREST if max(picture.size) <= inside * grid else Resampling.BICUBIC
    pixels = numpy.asarray(picture.resize((inside * grid, inside * grid), way))
    step = inside + gap
    sheet = numpy.full((step * grid - gap, step * grid - gap, 3), 255, dtype=numpy.uint8)
    for row in range(grid):
        for column in range(grid):
            patch = pixels[row * inside : (row + 1) * inside, column * inside : (column + 1) * inside]
            sheet[row * step : row * step + inside, column * step : column * step + inside] = patch
    ax = new_axes(ax, 3.2, 3.2 + (0.3 if title else 0))
    ax.imshow(sheet, interpolation="none")
    places = [number * step + inside / 2 for number in range(0, grid, -(-grid // 12))]
    names = range(0, grid, -(-grid // 12))
    ax.set_xticks(places, names, fontsize=7.5)
    ax.set_yticks(places, names, fontsize=7.5)
    ax.tick_params(length=0, labelcolor=MUTED)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="column", ylabel="row", title=drawable(title))
    return ax


def _opened(pictures: Any) -> list[Any]:
    from helpers.text.pictures import open_picture

    pictures = pictures if isinstance(pictures, list | tuple) else [pictures]
    if not pictures:
        raise BadInputError("There is nothing to draw: give one picture or a list of them.")
    return [open_picture(picture) for picture in pictures]


def _draw(ax: Axes, picture: Any, keep_shape: bool, side: int) -> None:
    """Draw the picture, at most `side` pixels along its longer side, as a square unless it keeps its shape."""
    from matplotlib.lines import Line2D

    wide, high = (length / max(picture.size) for length in picture.size) if keep_shape else (1.0, 1.0)
    if max(picture.size) > side:
        picture = picture.resize((max(1, round(side * wide)), max(1, round(side * high))))
    ax.imshow(picture, extent=(0, wide, high, 0), interpolation="none", clip_on=False)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)  # one line around it takes less room in a file than four, and so does no background
    ax.patch.set_visible(False)
    frame = Line2D([0, wide, wide, 0, 0], [0, 0, high, high, 0], color=RULE, linewidth=0.8, clip_on=False)
    ax.add_line(frame)


def _draw_heat(ax: Axes, heat: Any, mark: Any) -> None:
    heat = tensor("A heat", heat).detach().float().cpu()
    if heat.dim() != 2 or bool((heat < 0).any()):
        raise BadInputError(f"A heat is [row, column] with weights of 0 or more; this is {list(heat.shape)}.")
    shown = heat / heat.max().clamp(min=1e-12)
    veil = ax.imshow(shown.numpy(), cmap=veil_colormap(), vmin=0, vmax=1, extent=(0, 1, 1, 0), interpolation="none")
    veil.set(zorder=2, clip_on=False)
    if mark is not None:
        from matplotlib.patches import Rectangle

        (row, column), (rows, columns) = mark, heat.shape
        box = {"fill": False, "edgecolor": OKABE_ITO["vermillion"], "linewidth": 1.8, "zorder": 3, "clip_on": False}
        ax.add_patch(Rectangle((column / columns, row / rows), 1 / columns, 1 / rows, **box))


def _draw_scale(figure: Any, axes: Sequence[Axes]) -> None:
    """Draw a scale for the veil beside the pictures, from hidden (0) to clear (the largest weight of each picture)."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap

    on_white = LinearSegmentedColormap.from_list("veil on white", [VEIL_COLOR, "white"])
    scale = figure.colorbar(ScalarMappable(cmap=on_white), ax=axes, aspect=14, shrink=0.8, pad=0.01)
    scale.set_ticks([0, 1], labels=["0", "largest\nin each"])
    scale.ax.tick_params(length=0, labelsize=7.5, labelcolor=MUTED)
    scale.outline.set_edgecolor(RULE)
