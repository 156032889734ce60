"""A chat about a picture: ask, watch the answer stream in, and see where each of its words looked.

The commands are here; `helpers.conversation` answers, `helpers.inside.picture_attention` finds where a word looked,
`image_chat_page` selects what the page draws, and `image_chat.js` draws it.
"""

import threading
import time
from collections.abc import Iterator
from typing import Any

import traitlets
from matplotlib.axes import Axes
from transformers import PreTrainedModel

from helpers.checks import language_model, shown
from helpers.conversation import Conversation
from helpers.errors import BadInputError
from helpers.inside.picture_attention import attention_on_picture
from helpers.text.encoding import text_tokenizer
from helpers.text.pictures import open_picture
from helpers.text.sight import sight_of
from helpers.text.words import words_of
from helpers.views.gallery import pictures_to_choose
from helpers.views.image_chat_page import (
    Talk,
    Turn,
    can_pick,
    describe_talk,
    draw_talk,
    name_of,
    page_of,
    stage_of,
    still_of,
)
from helpers.views.modules import front
from helpers.views.widget import HERE, Commands, CourseWidget, in_words

BETWEEN = 0.05  # the least time in seconds between two updates of the page while an answer streams in
MOMENTS = ("choosing", "reading")


class ImageChat(Commands):
    """The commands of `image_chat`; `talk` holds their result.

    `ask` begins a turn and `answer` carries it out, piece by piece, until `stop`. A picture that was chosen, uploaded
    or drawn goes with the next question; if the conversation already has a picture, a new conversation begins. `pick`
    finds where a word of a reply looked.
    """

    commands = ("choose", "upload", "leave_out", "ask", "stop", "restart", "pick", "look")

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        picture: Any = None,
        system: str | None = None,
        pictures: dict[str, Any] | None = None,
        **generation: Any,
    ) -> None:
        if pictures is not None and not isinstance(pictures, dict):
            raise BadInputError("pictures is a dict from name to picture, or None for the course's own.")
        self.model, self.processor = language_model("model", model), tokenizer
        self.tokenizer = text_tokenizer(tokenizer)
        self.sight = sight_of(model, tokenizer)
        self.sees = self.sight.sees
        self.system, self.generation = system, {"max_new_tokens": 128, **generation}
        self.gallery: dict[str, Any] = {}
        if self.sees:
            self.gallery = dict(pictures_to_choose() if pictures is None else pictures)
        self.talk = Talk()
        self.stream: Any = None
        self.stopping = False
        self.restart()
        if picture is not None:
            self._take(picture, name_of(picture))
        elif self.gallery:
            self.choose(next(iter(self.gallery)))

    # What the reader does.

    def choose(self, name: str) -> None:
        """Take one of the pictures on offer. Raises `BadInputError` for a name that is not there."""
        if name not in self.gallery:
            raise BadInputError(f"There is no picture {shown(name)} here; there are: {', '.join(self.gallery)}.")
        self._take(self.gallery[name], name)

    def upload(self, name: str, data: bytes) -> None:
        """Take a picture from a file's bytes. Raises `BadImageError` for anything but a picture."""
        self._take(data, name)

    def leave_out(self) -> None:
        """Continue without a picture: the next question is asked without one."""
        self._take(None, "")

    def ask(self, text: str, data: bytes | None = None) -> None:
        """Begin a turn; `data` is a drawing to take first, a PNG's bytes. `answer` carries the turn out."""
        self._rest()
        if not isinstance(text, str) or not text.strip():
            raise BadInputError("There is no question: write one.")
        if data is not None:
            self._take(data, "your drawing")
        talk = self.talk
        fresh = talk.picture is not None and not self._holds_picture()
        self.stream = self.conversation.stream(text, image=talk.picture if fresh else None, **self.generation)
        talk.turns.append(Turn(text, talk.picture, fresh))
        self.stopping, talk.notice, talk.picked = False, "", None

    def stop(self) -> None:
        """End the answer after the current token. What was said so far stays."""
        self.stopping = True

    def restart(self) -> None:
        """Begin a new conversation, with the current picture."""
        self._rest()
        self.conversation = Conversation(self.model, self.processor, system=self.system)
        self.talk.turns, self.talk.picked, self.talk.weights, self.talk.notice = [], None, None, ""

    def pick(self, turn: int, word: int) -> None:
        """Find where a word of a reply looked. Raises `BadInputError` if there was no picture when it was said."""
        self._rest()
        turns = self.talk.turns
        if turn not in range(len(turns)) or word not in range(len(turns[turn].words)):
            raise BadInputError(f"There is no word {shown(word)} in turn {shown(turn)}.")
        if not can_pick(self.model, turns[turn], word):
            raise BadInputError(
                "There was no picture in the conversation when this was said, so no word looked at one. (For models "
                "other than GLM-4V it cannot be shown.)"
            )
        said = turns[turn]
        assert said.reply is not None, "it has words"
        ids, tokens = (said.reply.input_ids, said.reply.output_ids), said.words[word][1]
        self.talk.weights = attention_on_picture(
            self.model, self.processor, said.picture, *ids, tokens, moment=self.talk.moment
        )
        self.talk.picked = (turn, word)

    def look(self, layer: int | None = None, head: int | None = None, moment: str = "choosing") -> None:
        """Choose the layer and the head (None: the mean of all), and whether a word is being chosen or read."""
        config = self.model.config.get_text_config()
        counts = {"layer": (layer, config.num_hidden_layers), "head": (head, config.num_attention_heads)}
        for what, (value, count) in counts.items():
            if value is not None and value not in range(count):
                raise BadInputError(f"There is no {what} {shown(value)}: there are 0 to {count - 1}.")
        if moment not in MOMENTS:
            raise BadInputError(f'A moment is "choosing" or "reading", not {shown(moment)}.')
        self.talk.layer, self.talk.head = layer, head
        if moment != self.talk.moment:
            self.talk.moment = moment
            if self.talk.picked is not None:
                self.pick(*self.talk.picked)

    # Carrying out a turn.

    @property
    def is_answering(self) -> bool:
        """Whether a turn is in progress."""
        return self.stream is not None

    def answer(self) -> Iterator[str]:
        """Carry out the turn that `ask` began: yields after each piece of text. Errors end up in `talk.trouble`."""
        turn, before = self.talk.turns[-1], self.conversation.reply
        self.talk.trouble = ""
        try:
            while not self.stopping and (piece := next(self.stream, None)) is not None:
                turn.text += piece
                yield piece
        except Exception as error:  # in a thread, nothing else would report it
            self.talk.trouble = in_words(error, what="The model stopped with")
        finally:
            self.stream.close()
            self._settle(turn, self.conversation.reply is not before)
            self.stream = None

    def _settle(self, turn: Turn, was_answered: bool) -> None:
        """End the turn: store its words, or remove it if nothing was said."""
        if not was_answered:
            self.talk.turns.remove(turn)
            return
        turn.reply = self.conversation.reply
        ended = turn.reply.stopped_by == "end_of_turn"
        words = words_of(self.tokenizer, turn.reply.output_ids[: len(turn.reply.output_ids) - ended])
        while words and not words[0][0].strip():  # GLM-4 begins each reply with a newline
            words = words[1:]
        turn.text, turn.words = turn.reply.text, words

    def _rest(self) -> None:
        if self.is_answering:
            raise BadInputError("The model is still answering: wait, or stop it first.")

    def _take(self, source: Any, name: str) -> None:
        """Make this the current picture. Raises before anything changes."""
        self._rest()
        if source is not None and not self.sees:
            self.sight.check()
        picture = None
        if source is not None:
            picture = open_picture(source, name=name if isinstance(source, bytes) else None)
        if self._holds_picture():
            self.restart()
            takes_one = " (GLM-4V takes one picture in each.)" if self.sight.one_picture else ""
            self.talk.notice = f"Another picture: this is a new conversation.{takes_one}"
        self.talk.picture, self.talk.picture_name = picture, name

    def _holds_picture(self) -> bool:
        return any(message.get("image") is not None for message in self.conversation.messages)

    # What is shown.

    def view(self) -> dict[str, Any]:
        """What the page draws."""
        return page_of(self.model, self.talk, sees=self.sees, is_answering=self.is_answering)

    def still(self) -> dict[str, Any]:
        """What the page draws and does not change from word to word."""
        return still_of(self.model, self.gallery, sees=self.sees)

    def stage(self) -> str:
        """The picture for the page, as a data URL; "" if there is none."""
        return stage_of(self.talk)

    def figure(self) -> Axes:
        """The still picture."""
        return draw_talk(self.talk)

    def describe(self) -> str:
        """The still picture in words."""
        return describe_talk(self.talk)


class ImageChatWidget(CourseWidget):
    """The live page of `image_chat`, drawn by `image_chat.js`. Answers are generated in a thread of their own, so that
    the kernel can react to the Stop button."""

    _esm = front("image_chat.js")
    _css = CourseWidget._css + (HERE / "image_chat.css").read_text(encoding="utf-8")

    still = traitlets.Dict().tag(sync=True)
    stage = traitlets.Unicode().tag(sync=True)

    def __init__(self, state: ImageChat) -> None:
        self._lock = threading.RLock()
        self.worker: threading.Thread | None = None
        super().__init__(state, still=state.still(), stage=state.stage())

    def close(self) -> None:
        """End the widget; an answer in progress ends after its current token."""
        with self._lock:
            if self._state is not None:
                self._state.stop()
            super().close()
            self.still, self.stage = {}, ""

    def _answer(self, widget: Any, wish: dict[str, Any], buffers: list[memoryview]) -> None:
        if buffers and isinstance(wish, dict):
            wish = {**wish, "data": bytes(buffers[0])}
        with self._lock:
            before, self.state.talk.trouble = self.state.stream, ""
            super()._answer(widget, wish, buffers)
            self.stage = self.state.stage()
            if self.state.stream is not None and self.state.stream is not before:
                self.worker = threading.Thread(target=self._work, args=(self.state,), daemon=True)
                self.worker.start()

    def _work(self, state: ImageChat) -> None:
        """Produce the answer, and update the view after each piece."""
        shown = 0.0
        for _piece in state.answer():
            if time.monotonic() - shown > BETWEEN:
                self._show_answer(state)
                shown = time.monotonic()
        self._show_answer(state)

    def _show_answer(self, state: ImageChat) -> None:
        with self._lock:
            if self._state is state:  # it has not been closed in the meantime
                self._show(state.talk.trouble)


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
    """A widget for chatting with a model about a picture: choose, upload or draw one, ask, and see the reply stream in.

    Click a word of a reply, and the picture shows where it looked: the attention of the language model, from
    the position that chose the word (or, on request, that read it) to each patch, for a layer and a head or
    their mean. With a tokenizer in place of the `processor`, it is a chat without pictures.

    `picture` is the first picture (anything that `open_picture` takes), `pictures` a dict from name to picture to
    choose from (None: drawn scenes and data/pictures). `question` is asked at once, so that the still picture, which
    is all that a cell shows without a kernel, has an answer. `generation` are settings of `generate_steps`;
    `max_new_tokens` is 128 if not given. Do not use the model elsewhere while a reply streams in.

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
        _ask_at_once(state, question)
    return ImageChatWidget(state)


def _ask_at_once(state: ImageChat, question: str) -> None:
    """Ask, wait for the answer, and show where its last word looked, if it looked anywhere."""
    state.ask(question)
    for _piece in state.answer():
        pass
    if state.talk.trouble:
        raise BadInputError(state.talk.trouble)
    turn = state.talk.turns[-1]
    words = [number for number in range(len(turn.words)) if can_pick(state.model, turn, number)]
    if words:
        state.pick(len(state.talk.turns) - 1, words[-1])
