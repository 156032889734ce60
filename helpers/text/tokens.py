"""Token ids made readable: their bytes, and a label for each that shows every character."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from typing import TYPE_CHECKING, Any

from helpers import checks
from helpers.errors import BadInputError
from helpers.text.encoding import text_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a token of one byte, as SentencePiece writes it


@dataclass(frozen=True)
class TokenRow:
    """One token: its position, id, raw bytes, and the text to show for it.

    `label` is readable on its own: a token that is only part of a character is shown as that
    character and the part's number, such as `你 1/2`, never as a replacement character.

    >>> row = token_table(tokenizer, [28120])[0]
    >>> row.token_id, row.raw, row.special
    (28120, b'hello', False)
    """

    position: int
    token_id: int
    raw: bytes
    label: str
    special: bool


def token_table(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | Tensor) -> list[TokenRow]:
    """A `TokenRow` for each id of `ids` (list of int, or tensor `[length]` or `[1, length]`).

    Raises `BadInputError` for anything that is not token ids.

    >>> from helpers import load_tokenizer
    >>> [row.label for row in token_table(load_tokenizer("smollm2-135m"), [28120, 905, 2])]
    ['hello', '·world', '<|im_end|>']
    """
    tokenizer = text_tokenizer(tokenizer)
    ids = as_ids(ids)
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
    raws = [token_bytes(tokenizer, i, added) for i in ids]
    labels = byte_labels(raws, [i in special for i in ids])
    return [
        TokenRow(position, i, raw, label, i in special)
        for position, (i, raw, label) in enumerate(zip(ids, raws, labels, strict=True))
    ]


def as_ids(ids: Any) -> list[int]:
    """Token ids as a list of int, from a list, a tensor or an array. Raises `BadInputError` for anything else."""
    values: Any = checks.plain("ids", ids.reshape(-1)) if hasattr(ids, "reshape") else ids
    whole = isinstance(values, Iterable) and not isinstance(values, str | bytes | dict)
    values = [i.item() if getattr(i, "ndim", None) == 0 else i for i in values] if whole else [None]  # tensor(7) is 7
    if not all(isinstance(i, Integral) and not isinstance(i, bool) and 0 <= int(i) < 2**31 for i in values):
        raise BadInputError(f"Token ids must be whole numbers, as a tokenizer returns them, not {checks.shown(ids)}.")
    return [int(i) for i in values]


def token_bytes(tokenizer: PreTrainedTokenizerBase, token_id: int, added: Mapping[int, Any] | None = None) -> bytes:
    """The raw bytes of one token. `added` is the tokenizer's `added_tokens_decoder`, which is slow to look up.

    A byte-level tokenizer (GPT-2's kind, used by Llama-3, SmolLM2, Qwen and GLM-4) spells bytes with `byte_alphabet`.
    SentencePiece's kind (Llama-2, Mistral, Gemma) writes text, with `▁` for a space and `<0xE4>` for a single byte;
    WordPiece's (BERT) writes `##` before a token that continues a word.

    >>> from helpers import load_tokenizer
    >>> token_bytes(load_tokenizer("smollm2-135m"), 905)
    b' world'
    """
    if added is None:
        tokenizer, (token_id,) = text_tokenizer(tokenizer), as_ids([token_id])
        added = tokenizer.added_tokens_decoder
    if token_id in added:
        return added[token_id].content.encode()
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None:  # a row of the embedding matrix that no token uses
        return b""
    decoder = str(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None))
    alphabet = byte_alphabet()
    if "ByteLevel" in decoder:
        if all(character in alphabet for character in token):
            return bytes(alphabet[character] for character in token)
        return tokenizer.convert_tokens_to_string([token]).encode()
    if "ByteFallback" in decoder and (byte := BYTE.fullmatch(token)):
        return bytes([int(byte[1], 16)])
    if "WordPiece" in decoder:
        return token.removeprefix("##").encode()
    return token.replace("▁", " ").replace("</w>", " ").encode()


@cache
def byte_alphabet() -> dict[str, int]:
    """character -> byte: how byte-level tokenizers spell bytes, each as one printable character (`Ġ` is a space).

    It is the inverse of `bytes_to_unicode` in `transformers`.

    >>> byte_alphabet()["Ġ"], byte_alphabet()["a"]
    (32, 97)
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}


def visible(text: str) -> str:
    """The text with its invisible characters made visible: `·` for a space, `⏎` for a newline, `⇥` for a
    tab, and the code point, such as `<U+200B>`, of other white space, control and format characters, and
    of characters that XML does not allow.

    >>> visible("a b\\n")
    'a·b⏎'
    """
    if not isinstance(text, str):
        checks.text("text", text)
    signs = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}
    invisible = ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")
    hidden = {c for c in set(text) if unicodedata.category(c) in invisible or c in "\ufffe\uffff"}
    return "".join(signs.get(c) or (f"<U+{ord(c):04X}>" if c in hidden else c) for c in text)


def byte_labels(raws: Sequence[bytes], special: Sequence[bool]) -> list[str]:
    """Labels for consecutive tokens, given their bytes; a character spread over several tokens is shown in each.

    >>> byte_labels(["你".encode()[:2], "你".encode()[2:]], [False, False])
    ['你 1/2', '你 2/2']
    """
    raws = checks.several("raws", raws, "bytes")
    if not all(isinstance(raw, bytes) for raw in raws) or len(checks.several("special", special, "flags")) != len(raws):
        raise BadInputError(f"raws are the bytes of tokens, with a flag for each in special, not {checks.shown(raws)}.")
    starts, total = [], 0
    for raw in raws:
        starts.append(total)
        total += len(raw)
    owner = [index for index, raw in enumerate(raws) for _ in raw]  # byte -> token
    whole = b"".join(raws)
    parts = [[] for _ in raws]
    at = 0
    while at < total:
        token = owner[at]
        if at == starts[token] and not special[token] and (text := _as_text(raws[token])) is not None:
            parts[token].append(visible(text))  # whole characters, the usual case
            at += len(raws[token])
            continue
        character = None if special[owner[at]] else _character_at(whole, at)
        if special[owner[at]]:
            length = len(raws[owner[at]])
            parts[owner[at]].append(raws[owner[at]].decode())
        elif character is None or any(special[owner[b]] for b in range(at, at + len(character.encode()))):
            length = 1
            parts[owner[at]].append(f"<{whole[at]:02X}>")
        else:
            length = len(character.encode())
            tokens = sorted(set(owner[at : at + length]))
            for piece, token in enumerate(tokens, start=1):
                shown = visible(character)
                parts[token].append(shown if len(tokens) == 1 else f"{shown} {piece}/{len(tokens)}")
        at += length
    return ["".join(part) or "∅" for part in parts]


def _character_at(data: bytes, at: int) -> str | None:
    return next((text for length in (1, 2, 3, 4) if (text := _as_text(data[at : at + length])) is not None), None)


def _as_text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
