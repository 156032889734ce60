"""What `image_chat` shows at one moment, a `Talk`, and how it becomes a page, a still picture and a text."""

import base64
import io
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from PIL.Image import Image
from transformers import PreTrainedModel

from helpers.conversation import Reply
from helpers.errors import HelpersError
from helpers.inside.picture_attention import patch_side
from helpers.views.gallery import PALETTE, outlines
from helpers.views.style import INK, MUTED, OKABE_ITO, RULE, drawable, veil_colormap, veil_colors, wrapped

STAGE = 480  # pixels along a side of the picture that is sent to the page
THUMBNAIL = 64  # the same for a thumbnail
LARGEST_PNG = 120_000  # bytes of a picture for the page; a larger one becomes a JPEG
MOST_LINES = 14  # lines of the conversation in the still picture
QUESTIONS = ("描述一下这张图片", "How many shapes are there?", "What colour is the circle?")
STOPPED = {
    "end_of_turn": "",
    "max_new_tokens": "cut: max_new_tokens reached",
    "reader": "stopped by you",
}


@dataclass
class Turn:
    """A question and its answer so far. `picture` is the conversation's picture at that time, or None."""

    question: str
    picture: Image | None = None
    fresh: bool = False  # whether the picture came with this question
    text: str = ""
    reply: Reply | None = None
    words: list[tuple[str, list[int]]] = field(default_factory=list)


@dataclass
class Talk:
    """What a picture chat shows: the picture, the turns, and where a word looked.

    `picked` is the word (turn, word) whose attention is shown, and `weights [layer, head, patch]` that attention;
    `layer` and `head` select from it (None: the mean of all), `moment` is "choosing" or "reading". `notice` and
    `trouble` are sentences for the reader.
    """

    picture: Image | None = None
    picture_name: str = ""
    turns: list[Turn] = field(default_factory=list)
    picked: tuple[int, int] | None = None
    weights: torch.Tensor | None = None
    layer: int | None = None
    head: int | None = None
    moment: str = "choosing"
    notice: str = ""
    trouble: str = ""

    def heat(self) -> torch.Tensor | None:
        """The attention `[row, column]` of the picked word, for the chosen layer and head; None without one."""
        if self.picked is None or self.weights is None:
            return None
        chosen = self.weights if self.layer is None else self.weights[self.layer : self.layer + 1]
        chosen = chosen if self.head is None else chosen[:, self.head : self.head + 1]
        side = int(chosen.shape[-1] ** 0.5)
        return chosen.mean(dim=(0, 1)).view(side, side)

    def shares(self) -> torch.Tensor:
        """How much of its attention each head gives to the picture, `[head]`, in the chosen layer (or the mean)."""
        assert self.weights is not None, "a word has been picked"
        chosen = self.weights.mean(dim=0) if self.layer is None else self.weights[self.layer]
        return chosen.sum(dim=-1)

    @property
    def picked_word(self) -> str:
        """The word whose attention is shown, or ""."""
        if self.picked is None:
            return ""
        turn, word = self.picked
        return self.turns[turn].words[word][0].strip()


def can_pick(model: PreTrainedModel, turn: Turn, word: int) -> bool:
    """Whether the attention of a word of a turn can be shown."""
    return bool(patch_side(model)) and turn.picture is not None and any(c.isalnum() for c in turn.words[word][0])


def page_of(model: PreTrainedModel, talk: Talk, *, sees: bool, is_answering: bool) -> dict[str, Any]:
    """A chat as plain values for `image_chat.js`."""
    heat = talk.heat()
    return {
        "sees": sees,
        "turns": [_turn(model, turn) for turn in talk.turns],
        "answering": is_answering,
        "notice": talk.notice,
        "picture": talk.picture_name,
        "picked": None if talk.picked is None else list(talk.picked),
        "word": talk.picked_word,
        "heat": None if heat is None else [[round(value, 6) for value in row] for row in heat.tolist()],
        "brightest": None if heat is None else list(_brightest(heat)),
        "share": None if heat is None else float(heat.sum()),
        "shares": None if heat is None else [round(value, 4) for value in talk.shares().tolist()],
        "layer": talk.layer,
        "head": talk.head,
        "moment": talk.moment,
    }


def _turn(model: PreTrainedModel, turn: Turn) -> dict[str, Any]:
    return {
        "question": turn.question,
        "fresh": turn.fresh,
        "text": turn.text,
        "words": [{"text": text, "pick": can_pick(model, turn, n)} for n, (text, _) in enumerate(turn.words)],
        "stopped": "" if turn.reply is None else STOPPED[turn.reply.stopped_by],
        "tokens": 0 if turn.reply is None else len(turn.reply.output_ids),
    }


def _brightest(heat: torch.Tensor) -> tuple[int, int]:
    """The row and column with the largest weight."""
    return divmod(int(heat.argmax()), heat.shape[1])


def still_of(model: PreTrainedModel, gallery: dict[str, Any], *, sees: bool) -> dict[str, Any]:
    """What the page draws and does not change from word to word."""
    from helpers.glm.tiny.scenes import REGIONS

    config = model.config.get_text_config()
    return {
        "gallery": [{"name": name, "thumbnail": _thumbnail(picture)} for name, picture in gallery.items()],
        "grid": patch_side(model) if sees else 0,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "palette": [{"name": name, "color": color} for name, color in PALETTE.items()],
        "outlines": outlines(),
        "places": list(REGIONS),
        "questions": QUESTIONS if sees else [],
        "colors": veil_colors(),
    }


def stage_of(talk: Talk) -> str:
    """The picture as a data URL, resized to a square as the model sees it; "" if there is none."""
    return "" if talk.picture is None else _data_url(talk.picture.resize((STAGE, STAGE)))


def _thumbnail(picture: Any) -> str:
    """A small square of a picture or a file, as a data URL; "" for a file that cannot be read."""
    from helpers.text.pictures import open_picture

    try:
        return _data_url(open_picture(picture).resize((THUMBNAIL, THUMBNAIL)))
    except HelpersError:
        return ""


def _data_url(picture: Image) -> str:
    """A picture as a data URL for the page: PNG, or JPEG if the PNG would be large."""
    settings: dict[str, dict[str, Any]] = {"png": {"optimize": True}, "jpeg": {"quality": 88}}
    for kind, options in settings.items():
        data = io.BytesIO()
        picture.save(data, format=kind, **options)
        if data.tell() < LARGEST_PNG:
            break
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def draw_talk(talk: Talk) -> Axes:
    """The still picture: the picture with the attention on it, and the conversation beside it."""
    from matplotlib import pyplot

    if talk.picture is None:
        ax = beside = pyplot.subplots(figsize=(7.4, 3.0))[1]
    else:
        ax, beside = pyplot.subplots(1, 2, figsize=(7.4, 3.3), width_ratios=(1, 1.35))[1]
        _draw_picture(ax, talk, talk.picture)
    lines = _lines(talk)
    for number, (text, color, weight) in enumerate(lines):
        place = 1 - (number + 0.5) / max(len(lines), 12)
        beside.text(0, place, drawable(text), color=color, weight=weight, va="center", transform=beside.transAxes)
    beside.set_axis_off()
    return ax


def _draw_picture(ax: Axes, talk: Talk, picture: Image) -> None:
    heat, title = talk.heat(), talk.picture_name
    side = 1 if heat is None else len(heat)
    shown = picture if max(picture.size) <= STAGE else picture.resize((STAGE, STAGE))
    ax.imshow(shown, extent=(0, side, side, 0), interpolation="none")
    if heat is not None:
        _draw_heat(ax, heat)
        title = f"where “{talk.picked_word}” looked"
    ax.set_title(drawable(textwrap.shorten(title, 40)))
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_color(RULE)


def _draw_heat(ax: Axes, heat: torch.Tensor) -> None:
    side, shown = len(heat), heat / heat.max()
    ax.imshow(shown, extent=(0, side, side, 0), cmap=veil_colormap(), vmin=0, vmax=1, interpolation="none")
    row, column = _brightest(heat)
    corners = [column, column + 1, column + 1, column, column], [row, row, row + 1, row + 1, row]
    ax.plot(*corners, color=OKABE_ITO["vermillion"], lw=2)


def _lines(talk: Talk) -> list[tuple[str, str, str]]:
    """The last lines of the conversation, as they are drawn: (text, colour, font weight)."""
    lines: list[tuple[str, str, str]] = []
    for turn in talk.turns:
        lines += [(line, OKABE_ITO["blue"], "bold") for line in wrapped(turn.question)]
        lines += [(line, INK, "normal") for line in wrapped(turn.text)]
    return lines[-MOST_LINES:] or [("Nothing asked yet.", MUTED, "normal")]


def describe_talk(talk: Talk) -> str:
    """The still picture in words."""
    said = "; ".join(f"{turn.question} → {turn.text}" for turn in talk.turns) or "nothing asked yet"
    return f"image_chat ({talk.picture_name or 'no picture'}): {said}"


def name_of(picture: Any) -> str:
    """The name of a picture that was passed from code."""
    return str(picture) if isinstance(picture, str | Path) else "your picture"
