"""Byte-level BPE, small enough to read: train merges on a text, apply them, and get the library's ids.

A text is split into *pieces* (words, numbers, runs of white space), each piece becomes its UTF-8 bytes,
and neighbouring tokens are merged, the pair with the lowest rank first, until no pair has a rank. Here a
*token* is a `bytes` object and a *pair* a tuple of two of them.

The algorithm is that of Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with
Subword Units" (2016), on bytes as in GPT-2 (Radford et al., 2019). `tokenizers`, the library behind
`transformers`, does the same in Rust.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from helpers import checks
from helpers.errors import BadInputError
from helpers.text.tokens import byte_alphabet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class MergeStep:
    """The tokens of a piece after one merge. `made` is the index of the token just made, `rank` the
    rank of its pair; both are None in the first step, before any merge."""

    tokens: tuple[bytes, ...]
    made: int | None
    rank: int | None


def single_bytes(piece: bytes) -> list[bytes]:
    """A piece (`bytes`) as a list of single-byte tokens, which is where every tokenization starts."""
    return [piece[i : i + 1] for i in range(len(piece))]


def count_pairs(sequences: Iterable[Sequence[bytes]]) -> Counter[tuple[bytes, bytes]]:
    """A `Counter` of how often each pair of neighbouring tokens occurs in the token lists `sequences`."""
    return Counter(pair for tokens in sequences for pair in pairwise(tokens))


def merge_pair(tokens: Iterable[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """A new token list in which every occurrence of `pair`, from left to right, has become one token."""
    merged = []
    for token in tokens:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return merged


def train_merges(pieces: Sequence[bytes], count: int) -> list[tuple[bytes, bytes]]:
    """Learn `count` merges from pieces (list of `bytes`): a list of pairs, in the order they are learned.

    Each step merges the most frequent pair everywhere (if there are several, the one that occurs first).
    It returns fewer if every piece has become one token. Raises `BadInputError` for a `count` below 1 or no
    pieces.

    >>> train_merges([b"low", b"lower", b"slow"], 2)
    [(b'l', b'o'), (b'lo', b'w')]
    """
    count = checks.whole_number("count", count)
    pieces = checks.several("pieces", pieces, "bytes")
    if not all(isinstance(piece, bytes) for piece in pieces):
        raise BadInputError(f"pieces must be a list of bytes, such as [b'low'], not {checks.shown(pieces)}.")
    if count < 1 or not pieces:
        raise BadInputError(f"Training needs pieces and at least 1 merge, not {len(pieces)} pieces and count={count}.")
    sequences = [single_bytes(piece) for piece in pieces]
    merges = []
    while len(merges) < count and (pairs := count_pairs(sequences)):
        best = max(pairs, key=lambda pair: pairs[pair])
        sequences = [merge_pair(tokens, best) for tokens in sequences]
        merges.append(best)
    return merges


def merge_steps(piece: bytes, rank: Callable[[tuple[bytes, bytes]], int | None]) -> list[MergeStep]:
    """How a piece (`bytes`) becomes tokens, merge by merge: a list of `MergeStep`.

    `rank` is a function that returns a pair's rank, or None for a pair that is never merged. Each step
    merges one pair: the leftmost of those with the lowest rank. The last step holds the final tokens.

    >>> [step.tokens for step in merge_steps(b"aab", {(b"a", b"a"): 0, (b"aa", b"b"): 1}.get)]
    [(b'a', b'a', b'b'), (b'aa', b'b'), (b'aab',)]
    """
    if not isinstance(piece, bytes) or not callable(rank):
        raise BadInputError(f"A piece must be bytes and rank a function of a pair; the piece is {checks.shown(piece)}.")
    tokens = single_bytes(piece)
    steps = [MergeStep(tuple(tokens), None, None)]
    while True:
        ranks = [rank(pair) for pair in pairwise(tokens)]
        known = [(value, place) for place, value in enumerate(ranks) if value is not None]
        if not known:
            return steps
        value, place = min(known)
        tokens[place : place + 2] = [tokens[place] + tokens[place + 1]]
        steps.append(MergeStep(tuple(tokens), place, value))


def apply_merges(piece: bytes, rank: Callable[[tuple[bytes, bytes]], int | None]) -> list[bytes]:
    """The final tokens (list of `bytes`) of a piece: those of the last of its `merge_steps`.

    >>> apply_merges(b"aab", {(b"a", b"a"): 0, (b"aa", b"b"): 1}.get)
    [b'aab']
    """
    return list(merge_steps(piece, rank)[-1].tokens)


def split_pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[bytes]:
    """The pieces (list of `bytes`) that the tokenizer splits a text into; no merge crosses from one to the next.

    Raises `BadInputError` for a tokenizer that is not a byte-level BPE.

    >>> split_pieces(tokenizer, "Hello, world!")
    [b'Hello', b',', b' world', b'!']
    """
    pieces = _byte_level_backend(tokenizer).pre_tokenizer.pre_tokenize_str(text)
    return [_spelled_bytes(piece) for piece, _ in pieces]


def read_merges(tokenizer: PreTrainedTokenizerBase) -> list[tuple[bytes, bytes]]:
    """A tokenizer's merges as pairs of `bytes`, in the order of their ranks.

    Raises `BadInputError` for a tokenizer that is not a byte-level BPE.

    >>> read_merges(tokenizer)[:2]
    [(b' ', b't'), (b' ', b'a')]
    """
    merges = json.loads(_byte_level_backend(tokenizer).to_str())["model"]["merges"]
    return [(_spelled_bytes(left), _spelled_bytes(right)) for left, right in merges]


def byte_vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[bytes, int]:
    """A dict from the bytes of each token to its id, without the control tokens.

    Raises `BadInputError` for a tokenizer that is not a byte-level BPE.

    >>> byte_vocabulary(tokenizer)[b" Paris"] == tokenizer(" Paris")["input_ids"][0]
    True
    """
    vocabulary = _byte_level_backend(tokenizer).get_vocab(with_added_tokens=False)
    control = tokenizer.get_added_vocab()
    return {_spelled_bytes(token): token_id for token, token_id in vocabulary.items() if token not in control}


def _byte_level_backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    kind = type(getattr(backend, "model", tokenizer)).__name__
    if kind != "BPE" or "ByteLevel" not in str(backend.pre_tokenizer):
        raise BadInputError(f"This needs a byte-level BPE tokenizer, such as that of load_tokenizer(), not a {kind}.")
    return backend


def _spelled_bytes(letters: str) -> bytes:
    """The bytes that a tokenizer's file spells with one printable character each."""
    alphabet = byte_alphabet()
    return bytes(alphabet[letter] for letter in letters)
