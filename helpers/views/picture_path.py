"""A diagram of a picture's path through a model that sees, from its pixels to the next token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helpers.errors import BadInputError
from helpers.views.style import INK, MUTED, OKABE_ITO, RULE, drawable, new_axes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from PIL.Image import Image
    from transformers import PreTrainedConfig

_BOX = 0.62  # side of a stage's drawing, where the distance between stages is 1


def plot_picture_path(
    config: PreTrainedConfig, picture: Any, *, places: Sequence[str] = (), title: str = "", ax: Axes | None = None
) -> Axes:
    """The stages that a picture passes through in a GLM-4V, each with the shape of its output. Returns the Axes.

    `config` is a GLM-4V's (the tiny one's, or that of the 9B model); `picture` is anything that `open_picture` takes.
    `places` says for each of the seven stages where it is explained, such as "section 2".

    Raises `BadInputError` for a model without a vision tower and for another number of `places`, `BadImageError` for
    anything but a picture.

    >>> from PIL import Image
    >>> from helpers.glm import ChatGLMConfig
    >>> ax = plot_picture_path(ChatGLMConfig(vision_config={}), Image.new("RGB", (96, 96)), title="To the words")
    >>> ax.get_title()
    'To the words'
    """
    from helpers.text.pictures import open_picture

    if getattr(config, "vision_config", None) is None:
        raise BadInputError(
            "This model has no vision tower, so a picture cannot pass through it. Give a GLM-4V's config."
        )
    stages = _stages(config)
    if places and len(places) != len(stages):
        raise BadInputError(f"There are {len(stages)} stages and {len(places)} places: give one place per stage.")
    picture = open_picture(picture).resize((96, 96))
    ax = new_axes(ax, 8.8, 1.95 + (0.3 if title else 0))
    for number, (name, shape) in enumerate(stages):
        _draw_stage(ax, number, picture, config)
        ax.text(number, -0.42, name, ha="center", va="top", fontsize=8.5, fontweight="bold", color=INK)
        ax.text(number, -0.6, shape, ha="center", va="top", fontsize=7.5, color=INK, linespacing=1.3)
        if places:
            ax.text(number, 0.42, drawable(places[number]), ha="center", fontsize=7.5, color=MUTED)
        if number:
            arrow = {"arrowstyle": "-|>", "color": MUTED, "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", (number - 0.36, 0), (number - 0.64, 0), arrowprops=arrow)
    ax.set(xlim=(-0.5, len(stages) - 0.5), ylim=(-0.92, 0.56), aspect="equal", title=drawable(title))
    ax.set_axis_off()
    return ax


def _stages(config: PreTrainedConfig) -> list[tuple[str, str]]:
    """[(name, the shape of the output)] of the seven stages."""
    sight = config.vision_config
    fine, merged = sight.image_size // sight.patch_size, sight.grid**2
    return [
        ("picture", f"{sight.image_size} × {sight.image_size}\npixels, 3 colours"),
        ("patches", f"{fine} × {fine} of\n{sight.patch_size} × {sight.patch_size} pixels"),
        ("vision tower", f"{sight.num_hidden_layers} layers\n[{fine**2} + 1, {sight.hidden_size}]"),
        ("2 × 2 → 1", f"{sight.grid} × {sight.grid}\n[{merged}, {config.hidden_size}]"),
        ("adapter", f"begin and end added\n[{merged + 2}, {config.hidden_size}]"),
        ("in the prompt", "between the\nembeddings of words"),
        ("language model", f"{config.num_hidden_layers} layers\nthe next token"),
    ]


def _draw_stage(ax: Axes, number: int, picture: Image, config: PreTrainedConfig) -> None:
    """Draw a stage: the picture, the picture cut into patches, a stack of layers, or a row of vectors."""
    sight = config.vision_config
    if number in (0, 1, 3):
        extent = (number - _BOX / 2, number + _BOX / 2, -_BOX / 2, _BOX / 2)
        ax.imshow(picture, extent=extent, interpolation="none")
        cuts = {0: 1, 1: min(12, sight.image_size // sight.patch_size), 3: min(6, sight.grid)}[number]
        for cut in range(cuts + 1):
            place = -_BOX / 2 + _BOX * cut / cuts
            line = {"color": RULE if number == 0 else MUTED, "lw": 0.6}
            ax.plot([number + place] * 2, [-_BOX / 2, _BOX / 2], **line)
            ax.plot([number - _BOX / 2, number + _BOX / 2], [place] * 2, **line)
    elif number == 5:
        _draw_prompt(ax, number)
    else:
        _draw_stack(ax, number, {2: 4, 4: 2, 6: 4}[number], OKABE_ITO["orange" if number < 5 else "blue"])


def _draw_stack(ax: Axes, number: int, layers: int, color: str) -> None:
    from matplotlib.patches import Rectangle

    high = _BOX / layers
    for layer in range(layers):
        corner = (number - _BOX / 2, -_BOX / 2 + layer * high)
        ax.add_patch(Rectangle(corner, _BOX, 0.8 * high, facecolor=color, edgecolor="none", alpha=0.75))


def _draw_prompt(ax: Axes, number: int) -> None:
    """Embeddings as thin bars: words in blue, and the picture's vectors between them in orange."""
    from matplotlib.patches import Rectangle

    kinds = ["blue"] * 3 + ["orange"] * 7 + ["blue"] * 3
    step = 0.7 / len(kinds)
    for place, kind in enumerate(kinds):
        corner = (number - 0.35 + place * step, -_BOX / 2)
        ax.add_patch(Rectangle(corner, 0.7 * step, _BOX, facecolor=OKABE_ITO[kind], edgecolor="none", alpha=0.75))
