"""A conversation of several turns with a chat model, with or without pictures.

It offers what `model.chat` of the original GLM-4 offered, for any chat model of `transformers`: a history, streaming,
and a picture in any turn. In addition, a reply that was cut off says so, no token is lost, and the KV cache is reused
as long as a new prompt begins like the last one, so that each turn computes only its own tokens. Models whose cache
cannot be cropped to a shared prefix (sliding windows, convolutions, GLM-4.1V) read each prompt from its start.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from helpers import checks
from helpers.errors import BadInputError
from helpers.inside.generation import generate_steps
from helpers.inside.kv_cache import branch_cache, can_be_branched, common_prefix
from helpers.text.encoding import text_tokenizer
from helpers.text.pictures import check_sees, picture_inputs
from helpers.text.prompts import check_messages, render_chat
from helpers.text.sight import sight_of
from helpers.text.streaming import TextStream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel

    from helpers.inside.generation import GenerationStep
    from helpers.text.prompts import RenderedChat


@dataclass(frozen=True)
class Reply:
    """One answer. `input_ids` is the whole prompt it answers; `output_ids` are all generated ids, including the one
    that ended it. `stopped_by` is "end_of_turn", "max_new_tokens" (cut off), or "reader" (the stream was closed)."""

    text: str
    input_ids: list[int]
    output_ids: list[int]
    stopped_by: str


class Conversation:
    """A conversation with a model: `ask` a question, or `stream` the answer; `messages` is the history.

    `tokenizer` is a tokenizer, or a processor for a model that sees. `system` is the system prompt, `messages`
    the history so far (`{"role": ..., "content": ...}`, perhaps with an "image"); the list you pass is not changed.
    If the tokenizer has a method `parse_reply`, it decides which parts of a reply go into `messages`: GLM-4's puts
    a tool's name into "metadata". `Reply.text` is always the whole reply.
    `reused` is the number of positions of the last prompt, picture patches included, that came from the KV cache.

    Raises `BadInputError` for malformed messages, and what `ask` raises for their pictures.

    >>> talk = Conversation(model, tokenizer, system="Be brief.")
    >>> reply = talk.ask("Hi", max_new_tokens=3)
    >>> [message["role"] for message in talk.messages]
    ['system', 'user', 'assistant']
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        system: str | None = None,
        messages: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.model, self.tokenizer = checks.language_model("model", model), tokenizer
        text_tokenizer(tokenizer)
        self.messages = [] if system is None else [{"role": "system", "content": checks.text("system", system)}]
        if not isinstance(messages, list | tuple):
            raise BadInputError(f"messages must be a list of the messages so far, not {checks.shown(messages)}.")
        for message in messages:
            check_messages(
                [{"content": "", **message} if isinstance(message, dict) and "image" in message else message]
            )
            image = {} if message.get("image") is None else {"image": self._opened(message["image"])}
            self.messages.append({"content": "", **message, **image})
        self.reply: Reply | None = None
        self.reused = 0
        self._cache, self._cached = None, []
        self._running: Any = lambda: None  # a weak reference: a stream that nobody holds any more ends by itself

    def ask(self, text: str, image: Any = None, *, role: str = "user", **generation: Any) -> Reply:
        """The `Reply` to a question, which may come with a picture (anything that `open_picture` takes).

        `role` is "user"; for a tool's result it is "observation" (GLM-4) or "tool" (other models).
        `generation` takes the settings of `generate_steps`; `max_new_tokens` is 256 by default. Raises what
        `generate_steps` raises, `BadImageError` for a picture that cannot be read and `BadInputError` for one
        that the model cannot take; after an error the conversation is as it was before.
        """
        for _piece in self.stream(text, image, role=role, **generation):
            pass
        return self.reply

    def stream(self, text: str, image: Any = None, *, role: str = "user", **generation: Any) -> Iterator[str]:
        """Yield the answer piece by piece, as it is generated; afterwards `self.reply` holds all of it.

        Leaving the loop early (`break`, an interrupted cell, the next question) ends the turn there: the answer
        so far stays in the history, and the next question follows it. A turn that was left before its first
        token, or that failed, is not in the history. No piece ends in the middle of a character.
        """
        if (left := self._running()) is not None:
            left.close()  # an earlier stream that was left, but is still referenced somewhere
        message = {"role": role, "content": text}
        if image is not None:
            message["image"] = self._opened(image)
        messages = [*self.messages, message]
        chat, inputs, seen = self._model_inputs(messages)
        settings = {"max_new_tokens": 256, **generation}
        steps = generate_steps(self.model, self.tokenizer, chat, **settings, **inputs)
        stream = self._turn(steps, messages, chat, inputs["past_key_values"], seen)
        self._running = weakref.ref(stream)
        return stream

    def _opened(self, image: Any) -> Any:
        """The picture, read now, so that changing or deleting its file later does not change the history."""
        from helpers.text.pictures import open_picture

        check_sees(self.model, self.tokenizer)
        return open_picture(image)

    def _model_inputs(self, messages: list[dict[str, Any]]) -> Any:
        """(prompt, other inputs of the model, what the model sees at each position). The inputs are a picture's tensors
        and the cache, cropped to the prefix that it shares with this prompt; the last is kept to compare the next
        prompt with."""
        from transformers import DynamicCache

        chat, inputs = render_chat(self.tokenizer, messages), {}
        seen: list[Any] = chat.input_ids
        sight = sight_of(self.model, self.tokenizer)
        pictures = [message["image"] for message in messages if message.get("image") is not None]
        if pictures:
            (ids,), inputs = picture_inputs(self.model, self.tokenizer, [chat.input_ids], [pictures])
            chat = replace(chat, input_ids=ids)
            inputs = {name: torch.as_tensor(values, device=self.model.device) for name, values in inputs.items()}
            seen = sight.compared(ids, inputs)
        # At least one position has to be computed, since its logits predict the next token.
        shared = min(common_prefix(self._cached, seen), len(seen) - 1)
        usable = self._cache is not None and can_be_branched(self._cache)
        self.reused = shared if usable and not sight.begins_afresh(with_picture=bool(pictures)) else 0
        if self.reused:
            cache = branch_cache(self._cache, self.reused)
        else:
            cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        return chat, inputs | {"past_key_values": cache}, seen

    def _turn(
        self,
        steps: Iterator[GenerationStep],
        messages: list[dict[str, Any]],
        chat: RenderedChat,
        cache: Any,
        seen: Any,
    ) -> Iterator[str]:
        output_ids: list[int] = []
        stopped_by, ended = "reader", False
        stream = TextStream(self.tokenizer)
        try:
            for step in steps:
                if not output_ids and step.input_ids.shape[1] == len(chat.input_ids):
                    # The model read the prompt afresh, as Phi-3 does where its rotary embedding changes.
                    self.reused = 0
                output_ids.append(step.token_id)
                stopped_by = step.stopped_by or stopped_by
                ended = step.stopped_by == "end_of_turn"
                piece = "" if ended else stream.push(step.token_id)
                piece += stream.finish() if step.stopped_by else ""
                if piece:
                    yield piece
        except Exception:
            output_ids = []
            raise
        finally:
            if output_ids:
                parse = getattr(stream.tokenizer, "parse_reply", lambda text: {"content": text.strip()})
                self.reply = Reply(stream.text.strip(), chat.input_ids, output_ids, stopped_by)
                self.messages = [*messages, {"role": "assistant", **parse(stream.text)}]
                # The last id was chosen but not fed to the model, so the cache ends before it.
                self._cache, self._cached = cache, [*seen, *output_ids[:-1]]
