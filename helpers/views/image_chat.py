"""A talk about a picture: ask, watch the answer come, and see where each of its words looked."""

from __future__ import annotations

import base64
import codecs
import io
import textwrap
import threading
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import traitlets

from helpers.conversation import Conversation, Reply
from helpers.errors import BadInputError, HelpersError
from helpers.inside.tracing import trace
from helpers.models import store
from helpers.text.encoding import text_tokenizer
from helpers.text.sight import sight_of
from helpers.text.tokens import token_bytes
from helpers.views.style import INK, MUTED, OKABE_ITO, RULE, WEIGHTS_COLORMAP, colormap, drawable, veil, wrapped
from helpers.views.widget import HERE, Commands, CourseWidget, front

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PICTURES = store.DATA / "pictures"
KINDS = (".png", ".jpg", ".jpeg", ".webp", ".gif")
SCREENSHOTS = ("stepper.png",)  # in the same folder, for the README
STAGE = 480  # pixels along a side of the picture as the page gets it
BETWEEN = 0.05  # seconds at least from one piece of a streamed answer to the next, in the page
QUESTIONS = ("描述一下这张图片", "How many shapes are there?", "What colour is the circle?")
STOPPED = {
    "end_of_turn": "",
    "max_new_tokens": "cut: max_new_tokens reached",
    "reader": "stopped by you",
}
# Colours to draw with, as the tiny GLM-4V knows them, and black for digits.
PALETTE = {
    "red": "#d92323",
    "orange": "#f58b14",
    "yellow": "#f2d50f",
    "green": "#23a845",
    "blue": "#2562d9",
    "purple": "#9b3fd1",
    "black": "#111111",
}


@dataclass
class Turn:
    """A question and what was said to it so far. `picture` is the conversation's picture at that time, or None."""

    question: str
    picture: object = None
    fresh: bool = False  # whether the picture came with this question
    text: str = ""
    reply: Reply | None = None
    words: list = field(default_factory=list)


def words_of(tokenizer, output_ids):
    """A reply's ids as words: a list of `(text, indexes of its tokens)`; all texts joined are the reply.

    Tokens that share a character stay together, and so do Latin letters and digits in a row; of scripts
    that do not write spaces, such as Chinese, a word is what the tokens make of it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    words, held = [], []
    for index, token_id in enumerate(output_ids):
        held.append(index)
        text = decoder.decode(token_bytes(tokenizer, token_id), final=index + 1 == len(output_ids))
        if decoder.getstate()[0]:
            continue  # in the middle of a character
        if words and _is_spelled(text[:1]) and _is_spelled(words[-1][0][-1:]):
            words[-1] = (words[-1][0] + text, words[-1][1] + held)
        else:
            words.append((text, held))
        held = []
    return words


def _is_spelled(character):
    """Whether words are written with it letter by letter."""
    return character.isalnum() and (character < "\u2e80" or "\uac00" <= character <= "\ud7a3")


@cache
def drawn_scenes():
    """A few pictures for a start: name -> PIL image, 288 x 288."""
    from helpers.glm.tiny.scenes import Scene, Thing, draw

    def thing(kind, x, y, size, colour, turn=0.0):
        rgb = tuple(int(PALETTE[colour][at : at + 2], 16) for at in (1, 3, 5))
        return Thing(kind, x, y, size, rgb, colour, turn)

    light, dark = ((246, 246, 242), (232, 236, 244)), ((28, 30, 40), (28, 30, 40))
    scenes = {
        "a red circle": Scene((thing("circle", 0.24, 0.26, 0.16, "red"),), light),
        "a square and a triangle": Scene(
            (thing("square", 0.72, 0.25, 0.14, "blue", 0.1), thing("triangle", 0.26, 0.74, 0.17, "yellow")), dark
        ),
        "three shapes": Scene(
            (
                thing("star", 0.22, 0.24, 0.16, "purple"),
                thing("circle", 0.5, 0.79, 0.13, "green"),
                thing("square", 0.79, 0.22, 0.13, "orange", -0.15),
            ),
            light,
        ),
        "two stars": Scene((thing("star", 0.25, 0.5, 0.17, "orange"), thing("star", 0.78, 0.78, 0.15, "blue")), light),
    }
    return {name: draw(scene, 288) for name, scene in scenes.items()} | _digit(Scene, Thing, draw)


def _digit(scene, thing, draw):
    """A handwritten digit of scikit-learn's collection, where that is installed."""
    try:
        from helpers.glm.tiny.scenes import digits

        images, labels = digits("test")
    except ImportError:
        return {}
    index = list(labels).index(3)
    three = thing("digit 3", 0.5, 0.5, 0.24, (20, 20, 20), ink=images[index])
    return {"a handwritten digit": draw(scene((three,), ((250, 250, 250), (250, 250, 250))), 288)}


def pictures_to_choose():
    """The drawn scenes, and the pictures in data/pictures: name -> PIL image, or path."""
    files = sorted(path for path in PICTURES.glob("*") if path.suffix.lower() in KINDS)
    return drawn_scenes() | {path.name: path for path in files if path.name not in SCREENSHOTS}


class ImageChat(Commands):
    """A conversation about a picture; `image_chat` draws it.

    `ask` begins a turn and `answer` carries it out, piece by piece, until `stop`. A picture chosen, uploaded
    or drawn goes with the next question; when the conversation has one already, a new one begins. `pick`
    asks where a word of a reply looked; `weights [layer, head, patch]` is the answer.
    """

    commands = ("choose", "upload", "leave_out", "ask", "stop", "restart", "pick", "look")

    def __init__(self, model, tokenizer, *, picture=None, system=None, pictures=None, **generation):
        self.model, self.processor = model, tokenizer
        self.tokenizer = text_tokenizer(tokenizer)
        self.sight = sight_of(model, tokenizer)
        self.sees = self.sight.sees
        self.system, self.generation = system, {"max_new_tokens": 128, **generation}
        self.gallery = {}
        if self.sees:
            self.gallery = dict(pictures_to_choose() if pictures is None else pictures)
        self.picture, self.picture_name = None, ""
        self.stream, self.stopping, self.trouble, self.notice = None, False, "", ""
        self.layer = self.head = None
        self.moment = "choosing"
        self.restart()
        if picture is not None:
            self._take(picture, picture if isinstance(picture, str | Path) else "your picture")
        elif self.gallery:
            self.choose(next(iter(self.gallery)))

    # What the reader does

    def choose(self, name):
        """Take a picture of those offered."""
        if name not in self.gallery:
            raise BadInputError(f"There is no picture {name!r} here; there are: {', '.join(self.gallery)}.")
        self._take(self.gallery[name], name)

    def upload(self, name, data):
        """Take a picture from a file's bytes. Raises `BadImageError` for what is no picture."""
        self._take(data, name)

    def leave_out(self):
        """Go on without a picture: what is asked next goes without one."""
        self._take(None, "")

    def ask(self, text, data=None):
        """Begin a turn; `data` is a drawing to take first, a PNG's bytes. `answer` carries the turn out."""
        self._rest()
        if not text.strip():
            raise BadInputError("There is no question: write one.")
        if data is not None:
            self._take(data, "your drawing")
        fresh = self.picture is not None and not self._holds_picture()
        self.stream = self.talk.stream(text, image=self.picture if fresh else None, **self.generation)
        self.turns.append(Turn(text, self.picture, fresh))
        self.stopping, self.notice, self.picked = False, "", None

    def stop(self):
        """End the answer after the token that is being made. What was said stays."""
        self.stopping = True

    def restart(self):
        """Begin a new conversation, with the picture there is."""
        self._rest()
        self.talk = Conversation(self.model, self.processor, system=self.system)
        self.turns, self.picked, self.weights, self.notice = [], None, None, ""

    def pick(self, turn, word):
        """Find where a word of a reply looked. Raises `BadInputError` for a word that saw no picture."""
        self._rest()
        turns = range(len(self.turns))
        if turn not in turns or word not in range(len(self.turns[turn].words)):
            raise BadInputError(f"There is no word {word} in turn {turn}.")
        if not self._can_pick(self.turns[turn], word):
            raise BadInputError(
                "No picture was in the conversation when this was said, so no word looked at one. (Of models other "
                "than GLM-4V it cannot be shown.)"
            )
        self.weights = self._attention(self.turns[turn], word)
        self.picked = (turn, word)

    def look(self, layer=None, head=None, moment="choosing"):
        """Choose the layer and the head (None: the mean of all), and whether a word is being chosen or read."""
        config = self.model.config.get_text_config()
        for value, count, what in (
            (layer, config.num_hidden_layers, "layer"),
            (head, config.num_attention_heads, "head"),
        ):
            if value is not None and value not in range(count):
                raise BadInputError(f"There is no {what} {value}: there are 0 to {count - 1}.")
        if moment not in ("choosing", "reading"):
            raise BadInputError(f'A moment is "choosing" or "reading", not {moment!r}.')
        self.layer, self.head = layer, head
        if moment != self.moment:
            self.moment = moment
            if self.picked is not None:
                self.pick(*self.picked)

    # The work

    @property
    def is_answering(self):
        """Whether a turn has begun and is not over."""
        return self.stream is not None

    def answer(self):
        """Carry out the turn that `ask` began: yields after each piece of text. Errors end up in `trouble`."""
        turn, before, self.trouble = self.turns[-1], self.talk.reply, ""
        try:
            while not self.stopping and (piece := next(self.stream, None)) is not None:
                turn.text += piece
                yield piece
        except HelpersError as error:
            self.trouble = str(error)
        except Exception as error:  # in a thread, nobody else would tell the reader
            self.trouble = f"The model stopped with {type(error).__name__}: {error}"
        finally:
            self.stream.close()
            self._settle(turn, self.talk.reply is not before)
            self.stream = None

    def _settle(self, turn, was_answered):
        """The turn is over: its words, or nothing left of it where nothing was said."""
        if was_answered:
            turn.reply = self.talk.reply
            turn.text, turn.words = turn.reply.text, self._words(turn.reply)
        else:
            self.turns.remove(turn)

    def _rest(self):
        if self.is_answering:
            raise BadInputError("The model is still answering: wait, or stop it first.")

    def _take(self, source, name):
        """Make this the picture; raises before anything changes."""
        self._rest()
        if source is not None and not self.sees:
            raise BadInputError("This model does not see: ask without a picture, or load glm-4v-9b with its processor.")
        picture = None
        if source is not None:
            from helpers.text.pictures import open_picture

            picture = open_picture(source, name=name if isinstance(source, bytes) else None)
        if self._holds_picture():
            self.restart()
            takes_one = " (GLM-4V takes one picture in each.)" if self.sight.one_picture else ""
            self.notice = f"Another picture: this is a new conversation.{takes_one}"
        self.picture, self.picture_name = picture, str(name)

    def _holds_picture(self):
        return any(message.get("image") is not None for message in self.talk.messages)

    def _words(self, reply):
        ended = reply.stopped_by == "end_of_turn"
        words = words_of(self.tokenizer, reply.output_ids[: len(reply.output_ids) - ended])
        while words and not words[0][0].strip():  # GLM-4 begins each reply with a newline
            words = words[1:]
        return words

    def _can_pick(self, turn, word):
        """Where a word looked can be shown of GLM-4V: other models have grids that change with the picture."""
        has_grid = self.sight.grid is not None
        return has_grid and turn.picture is not None and any(c.isalnum() for c in turn.words[word][0])

    @torch.no_grad()
    def _attention(self, turn, word):
        """[layer, head, patch]: how much of its attention the word gave to each patch, the mean over its tokens."""
        tokens = turn.words[word][1]
        ids = [*turn.reply.input_ids, *turn.reply.output_ids[: tokens[-1] + 1]]
        pixel_values = self.processor.image_processor([turn.picture])["pixel_values"].to(self.model.device)
        longer = self.sight.grid**2 - 1
        start = len(turn.reply.input_ids) + longer - (self.moment == "choosing")
        run = trace(
            self.model,
            self.tokenizer,
            ids,
            hidden_states=False,
            logits=False,
            positions=[start + token for token in tokens],
            pixel_values=pixel_values,
        )
        return run.attentions.float().mean(dim=2)[..., run.patch_index >= 0]

    def heat(self):
        """[row, column] of the picked word, by the layer and head chosen; None when no word is picked."""
        if self.picked is None:
            return None
        chosen = self.weights if self.layer is None else self.weights[self.layer : self.layer + 1]
        chosen = chosen if self.head is None else chosen[:, self.head : self.head + 1]
        grid = self.sight.grid
        return chosen.mean(dim=(0, 1)).view(grid, grid)

    # What is shown

    def view(self):
        """What the front draws."""
        heat = self.heat()
        return {
            "sees": self.sees,
            "turns": [self._turn_view(turn) for turn in self.turns],
            "answering": self.is_answering,
            "notice": self.notice,
            "picture": self.picture_name,
            "picked": None if self.picked is None else list(self.picked),
            "word": "" if self.picked is None else self._picked_word(),
            "heat": None if heat is None else [[round(value, 6) for value in row] for row in heat.tolist()],
            "share": None if heat is None else float(heat.sum()),
            "shares": None if heat is None else self._shares(),
            "layer": self.layer,
            "head": self.head,
            "moment": self.moment,
        }

    def _turn_view(self, turn):
        return {
            "question": turn.question,
            "fresh": turn.fresh,
            "text": turn.text,
            "words": [{"text": text, "pick": self._can_pick(turn, n)} for n, (text, _) in enumerate(turn.words)],
            "stopped": "" if turn.reply is None else STOPPED[turn.reply.stopped_by],
            "tokens": 0 if turn.reply is None else len(turn.reply.output_ids),
        }

    def _picked_word(self):
        turn, word = self.picked
        return self.turns[turn].words[word][0].strip()

    def _shares(self):
        """[head] of the layer chosen (or of all): how much of its attention each gives to the picture."""
        chosen = self.weights.mean(dim=0) if self.layer is None else self.weights[self.layer]
        return [round(value, 4) for value in chosen.sum(dim=-1).tolist()]

    def still(self):
        """What the front draws and does not change from word to word."""
        config = self.model.config
        grid = self.sight.grid if self.sees else None
        return {
            "gallery": [{"name": name, "thumbnail": _thumbnail(picture)} for name, picture in self.gallery.items()],
            "side": config.vision_config.image_size if grid else 0,
            "grid": grid or 0,
            "layers": config.get_text_config().num_hidden_layers,
            "heads": config.get_text_config().num_attention_heads,
            "palette": [{"name": name, "color": color} for name, color in PALETTE.items()],
            "questions": QUESTIONS if self.sees else [],
            "colors": colormap(),
        }

    def stage(self):
        """The picture as a data URL, squeezed into a square as the model sees it; "" when there is none."""
        return "" if self.picture is None else _data_url(self.picture.resize((STAGE, STAGE)))

    def figure(self):
        """The still picture: the picture, with what was looked at, and the talk beside it."""
        from matplotlib import pyplot

        if self.picture is None:
            ax = beside = pyplot.subplots(figsize=(7.4, 3.0))[1]
        else:
            ax, beside = pyplot.subplots(1, 2, figsize=(7.4, 3.3), width_ratios=(1, 1.35))[1]
            self._draw_picture(ax)
        lines = self._lines()
        for number, (text, color, weight) in enumerate(lines):
            place = 1 - (number + 0.5) / max(len(lines), 12)
            beside.text(0, place, drawable(text), color=color, weight=weight, va="center", transform=beside.transAxes)
        beside.set_axis_off()
        return ax

    def _draw_picture(self, ax):
        grid = self.sight.grid or 1
        ax.imshow(self.picture.resize((STAGE, STAGE)), extent=(0, grid, grid, 0))
        heat = self.heat()
        if heat is not None:
            shown = heat / heat.max()
            ax.imshow(
                shown, cmap=WEIGHTS_COLORMAP, vmin=0, vmax=1, alpha=veil(shown).numpy(), extent=(0, grid, grid, 0)
            )
            row, column = divmod(int(heat.argmax()), grid)
            ax.plot(
                [column, column + 1, column + 1, column, column],
                [row, row, row + 1, row + 1, row],
                color=OKABE_ITO["vermillion"],
                lw=2,
            )
            title = f"where “{self._picked_word()}” looked"
        else:
            title = self.picture_name
        ax.set_title(drawable(textwrap.shorten(title, 40)))
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_color(RULE)

    def _lines(self):
        """The last lines of the talk, to be drawn: (text, colour, weight)."""
        lines = []
        for turn in self.turns:
            lines += [(line, OKABE_ITO["blue"], "bold") for line in wrapped(turn.question)]
            lines += [(line, INK, "normal") for line in wrapped(turn.text)]
        return lines[-14:] or [("Nothing asked yet.", MUTED, "normal")]

    def describe(self):
        """The still picture in words."""
        said = "; ".join(f"{turn.question} → {turn.text}" for turn in self.turns) or "nothing asked yet"
        return f"image_chat ({self.picture_name or 'no picture'}): {said}"


def _thumbnail(picture):
    """A small square of a picture or a file, as a data URL; "" for a file that cannot be read."""
    from helpers.text.pictures import open_picture

    try:
        return _data_url(open_picture(picture).resize((64, 64)))
    except HelpersError:
        return ""


def _data_url(picture):
    """A picture for the page: PNG, or JPEG where that would be large."""
    for kind, settings in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
        data = io.BytesIO()
        picture.save(data, format=kind, **settings)
        if data.tell() < 120_000:
            break
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


class ImageChatWidget(CourseWidget):
    """The live front of `image_chat`, drawn by `image_chat.js`. Answers are made in a thread of their own, so that
    the kernel is free to hear the Stop button."""

    _esm = front("image_chat.js")
    _css = CourseWidget._css + (HERE / "image_chat.css").read_text(encoding="utf-8")

    still = traitlets.Dict().tag(sync=True)
    stage = traitlets.Unicode().tag(sync=True)

    def __init__(self, state):
        self._lock = threading.RLock()
        self.worker = None
        super().__init__(state)
        self.still, self.stage = state.still(), state.stage()

    def _answer(self, widget, wish, buffers):
        if buffers:
            wish = {**wish, "data": bytes(buffers[0])}
        with self._lock:
            before, self.state.trouble = self.state.stream, ""
            super()._answer(widget, wish, buffers)
            self.stage = self.state.stage()
            if self.state.stream is not None and self.state.stream is not before:
                self.worker = threading.Thread(target=self._work, daemon=True)
                self.worker.start()

    def _work(self):
        """The answer, with a new view after each piece."""
        shown = 0.0
        for _piece in self.state.answer():
            if time.monotonic() - shown > BETWEEN:
                self._show()
                shown = time.monotonic()
        self._show()

    def _show(self):
        with self._lock:
            self.view = {**self.state.view(), "turn": self.view["turn"] + 1, "message": self.state.trouble}


def image_chat(
    model: PreTrainedModel,
    processor: Any,
    *,
    picture: Any = None,
    question: str | None = None,
    system: str | None = None,
    pictures: dict[str, Any] | None = None,
    **generation: Any,
) -> ImageChatWidget:
    """A widget to talk with a model about a picture: choose, upload or draw one, ask, and see the reply stream in.

    Click a word of a reply, and the picture shows where it looked: the attention of the language model, from
    the position that chose the word (or, on request, that read it) to each patch, for a layer and a head or
    their mean. With a tokenizer in the `processor`'s place it is a chat without pictures.

    `picture` is what to begin with (as `open_picture` of helpers.glm takes it), `pictures` a dict from name to
    picture to choose from (None: drawn scenes and data/pictures), `question` is asked at once, so that the
    still picture, which is all there is without a kernel, shows an answer. `generation` are settings of
    `generate_steps`; `max_new_tokens` is 128 if not given. While a reply streams in, leave the model to it.

    Raises `BadImageError` for a picture that cannot be read, `BadInputError` for one that the model cannot take,
    and what `generate_steps` raises for the question.

    >>> from helpers.models.loading import load_model
    >>> from helpers.models.pretrained import load_processor
    >>> chat = image_chat(load_model("tiny-glm4v", device="cpu"), load_processor("tiny-glm4v"))
    >>> chat.picture()[:4]
    b'\\x89PNG'
    """
    state = ImageChat(model, processor, picture=picture, system=system, pictures=pictures, **generation)
    if question is not None:
        state.ask(question)
        for _piece in state.answer():
            pass
        if state.trouble:
            raise BadInputError(state.trouble)
        words = [n for n in range(len(state.turns[-1].words)) if state._can_pick(state.turns[-1], n)]
        if words:
            state.pick(len(state.turns) - 1, words[-1])
    return ImageChatWidget(state)
