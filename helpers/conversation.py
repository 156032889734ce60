"""Many turns with a chat model, with or without a picture.

What `model.chat` of the original GLM-4 gave, on any chat model of `transformers`: the history, streaming,
a picture in any turn. Beyond it: a reply that was cut says so, no token is lost, and the KV cache is
kept as long as a new prompt begins as the last one did, so a turn costs its own tokens only.
"""

import codecs
from dataclasses import dataclass

from helpers.errors import BadInputError
from helpers.generation import generate_steps
from helpers.kv_cache import branch_cache, common_prefix
from helpers.prompts import render_chat, token_bytes


@dataclass(frozen=True)
class Reply:
    """One answer. `input_ids` is the whole prompt it answers, `output_ids` every id generated, also the one that
    ended it. `stopped_by` is "end_of_turn", "max_new_tokens" (it was cut), or "reader" (the stream was closed)."""

    text: str
    input_ids: list[int]
    output_ids: list[int]
    stopped_by: str


class Conversation:
    """A conversation with a model: `ask` a question, or `stream` the answer; `messages` is what was said.

    `tokenizer` is a tokenizer, or a processor for a model that sees. `system` is the system prompt.
    `reused` says how many positions of the last prompt came from the KV cache.
    """

    def __init__(self, model, tokenizer, *, system=None):
        self.model, self.tokenizer = model, tokenizer
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self.reply = None
        self.reused = 0
        self._cache, self._cached_ids = None, []

    def ask(self, text, image=None, **generation):
        """The `Reply` to a question, which may come with a picture (what `open_picture` of helpers.glm takes).

        `generation`: the settings of `generate_steps`; `max_new_tokens` is 256 if not given. Raises what
        `generate_steps` raises, and `BadInputError` for a picture that the model cannot take; the conversation
        is then as it was before.
        """
        for _piece in self.stream(text, image, **generation):
            pass
        return self.reply

    def stream(self, text, image=None, **generation):
        """The answer, piece by piece, as it is made; `self.reply` has it all afterwards.

        Leaving the loop early (`break`, an interrupted cell) ends the turn there: what was said so far stays
        in the history, and the next question goes on from it. No piece ends in the middle of a character.
        """
        message = {"role": "user", "content": text} | ({} if image is None else {"image": image})
        messages = [*self.messages, message]
        chat = render_chat(self.tokenizer, messages)
        inputs = self._model_inputs(messages, chat)
        settings = {"max_new_tokens": 256, **generation}
        tokenizer = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        steps = generate_steps(self.model, tokenizer, chat, **settings, **inputs)
        return self._turn(steps, messages, chat, tokenizer, inputs.get("past_key_values"))

    def _model_inputs(self, messages, chat):
        """Pixels where a message has a picture; otherwise the cache, cut to what this prompt shares with it."""
        if any("image" in message for message in messages):
            if not hasattr(self.tokenizer, "image_processor"):
                raise BadInputError(
                    "This model does not see: ask without a picture, or load glm-4v-9b with its processor."
                )
            self.reused = 0
            encoded = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
            return {"pixel_values": encoded["pixel_values"].to(self.model.device)}
        # At least one id has to be run, since its logits are what comes next.
        self.reused = min(common_prefix(self._cached_ids, chat.input_ids), len(chat) - 1)
        if not self.reused:
            from transformers import DynamicCache

            return {"past_key_values": DynamicCache(config=self.model.config.get_text_config(decoder=True))}
        return {"past_key_values": branch_cache(self._cache, self.reused)}

    def _turn(self, steps, messages, chat, tokenizer, cache):
        output_ids, pieces, stopped_by = [], [], "reader"
        decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        try:
            for step in steps:
                output_ids.append(step.token_id)
                ended = step.stopped_by == "end_of_turn"
                piece = decode(
                    b"" if ended else token_bytes(tokenizer, step.token_id), final=step.stopped_by is not None
                )
                stopped_by = step.stopped_by or stopped_by
                pieces.append(piece)
                if piece:
                    yield piece
        finally:
            text = "".join(pieces).strip()
            self.reply = Reply(text, chat.input_ids, output_ids, stopped_by)
            self.messages = [*messages, {"role": "assistant", "content": text}]
            if cache is not None and output_ids:
                # The last id was chosen but not run, so the cache ends before it.
                self._cache, self._cached_ids = cache, [*chat.input_ids, *output_ids[:-1]]
