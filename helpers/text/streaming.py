"""An answer's text, token by token, without losing a space or splitting a character."""

from __future__ import annotations

from typing import Any

from tokenizers.decoders import DecodeStream

from helpers.text.encoding import text_tokenizer
from helpers.text.tokens import BYTE, as_ids


class TextStream:
    """Turn token ids into text as they arrive: `push` returns what an id adds, `finish` what was held back.

    The texts of single tokens do not add up to the text of all of them: a SentencePiece tokenizer drops the space
    before the first word and keeps the others, and a character of several bytes may be spread over several tokens.
    So a piece is what the text has grown by, and a piece that ends within a character waits for the rest of it. `text`
    is always what `tokenizer.decode` returns for all ids so far.

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
        self._held = False
        self._stream = DecodeStream(skip_special_tokens=False)

    def push(self, token_id: int) -> str:
        """What this id adds to the text; an empty string while a character is incomplete."""
        self.ids += as_ids([token_id])
        if self._is_byte(self.ids[-1]):
            self._held = True  # the bytes after it decide whether it becomes a character
            return ""
        piece = self._after_bytes() if self._held else self._grown()
        self._said += piece
        return piece

    def _is_byte(self, token_id: int) -> bool:
        """Whether it is one of SentencePiece's tokens of one byte, of which a run is decoded as a whole."""
        decoder = str(getattr(getattr(self.tokenizer, "backend_tokenizer", None), "decoder", None))
        return (
            "ByteFallback" in decoder
            and BYTE.fullmatch(str(self.tokenizer.convert_ids_to_tokens(token_id))) is not None
        )

    def _after_bytes(self) -> str:
        """What the text has grown by once a run of bytes has ended; from now on whole texts are compared."""
        self._held, self._stream = False, None
        return _rest(self.text, self._said)

    def _grown(self) -> str:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None and self._stream is not None:
            try:
                return self._stream.step(backend, self.ids[-1]) or ""
            except Exception:  # a decoder whose text does not only grow at the end: compare whole texts from now on
                self._stream = None
        return _rest(self.text.removesuffix("\ufffd"), self._said)

    def finish(self) -> str:
        """The rest of the text when no more ids follow: bytes that never became a character appear as U+FFFD."""
        rest = _rest(self.text, self._said)
        self._said += rest
        return rest

    @property
    def text(self) -> str:
        """The text of all ids so far, as `tokenizer.decode` returns it."""
        return self.tokenizer.decode(self.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _rest(text: str, said: str) -> str:
    return text[len(said) :] if text.startswith(said) else ""
