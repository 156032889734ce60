"""An answer's text, token by token, without a lost space or half a character."""

from __future__ import annotations

from typing import Any

from tokenizers.decoders import DecodeStream

from helpers.text.encoding import text_tokenizer


class TextStream:
    """Token ids become text as they come: `push` gives what an id adds to it, `finish` what was held back.

    Texts of single tokens do not add up to the text of all: a tokenizer of SentencePiece's kind drops the space in
    front of the first word and keeps the others, and a character of several bytes may be spread over several tokens.
    So a piece is what the text grew by, and one that ends within a character waits for the rest of it. `text` is
    always what `tokenizer.decode` gives for all ids so far.

    >>> from helpers import load_tokenizer
    >>> tokenizer = load_tokenizer("smollm2-135m")
    >>> stream = TextStream(tokenizer)
    >>> [stream.push(token_id) for token_id in tokenizer("a 你")["input_ids"]]
    ['a', ' ', '', '你']
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = text_tokenizer(tokenizer)
        self.ids: list[int] = []
        self._said = ""
        self._stream = DecodeStream(skip_special_tokens=False)

    def push(self, token_id: int) -> str:
        """What this id adds to the text; nothing within a character."""
        self.ids.append(token_id)
        piece = self._grown()
        self._said += piece
        return piece

    def _grown(self) -> str:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None and self._stream is not None:
            try:
                return self._stream.step(backend, self.ids[-1]) or ""
            except Exception:  # a decoder whose text does not grow at its end: compare whole texts from here on
                self._stream = None
        return _rest(self.text.removesuffix("\ufffd"), self._said)

    def finish(self) -> str:
        """What is left of the text when no id follows: bytes that never became a character show as U+FFFD."""
        rest = _rest(self.text, self._said)
        self._said += rest
        return rest

    @property
    def text(self) -> str:
        """The text of all ids so far, as `tokenizer.decode` gives it."""
        return self.tokenizer.decode(self.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _rest(text: str, said: str) -> str:
    return text[len(said) :] if text.startswith(said) else ""
