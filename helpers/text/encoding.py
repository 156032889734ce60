"""Turn texts into ids, so that nothing a user wrote becomes a control token.

A tokenizer looks for its added tokens (`<|im_end|>`, `<tool_call>`) in any text it is given. `encode` takes the ids
that the tokenizer gives and checks each control token among them: one that the template put there is correct. If a
user's text produced one, the text is encoded again by a *disarmed* copy of the tokenizer, in which the added tokens
have other names that nobody can guess. It finds only the template's control tokens, which are spelled with these names.
"""

from __future__ import annotations

import json
import re
import secrets
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from helpers import checks
from helpers.errors import BadInputError, printable
from helpers.text.marked import TEMPLATE, Marked, is_users

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACES = " \t\r\n\v\f\u00a0\u2581"  # an added token that consists only of these (a run of spaces) controls nothing


@dataclass(frozen=True)
class Encoded:
    """A text's ids, and for each the characters `[start, stop)` it stands for; `controls` are the indexes of the
    control tokens. A token that the tokenizer added by itself (begin-of-text) stands for no character."""

    ids: list[int]
    spans: list[tuple[int, int]]
    controls: frozenset[int]


def text_tokenizer(tokenizer: Any) -> PreTrainedTokenizerBase:
    """The tokenizer: what is given, or the tokenizer of a processor.

    Raises `BadInputError` for anything else.

    >>> text_tokenizer(tokenizer) is tokenizer
    True
    """
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    return inner if hasattr(inner, "added_tokens_decoder") else checks.tokenizer("tokenizer", tokenizer)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """id -> text of every token that a user's text must not become: all added tokens except those of white space."""
    added = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items()}
    special = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=False))
    return {token_id: text for token_id, text in (special | added).items() if text.strip(SPACES)}


def text_ids(tokenizer: Any, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """The ids (list of int) of a text that is all data: a control string in it stays text.

    With `add_special_tokens` the tokenizer adds what it always adds, such as a begin-of-text token. Raises
    `BadInputError` for a text that the tokenizer cannot encode.

    >>> from helpers import load_tokenizer
    >>> tokenizer = load_tokenizer("smollm2-135m")
    >>> text_ids(tokenizer, "hello"), tokenizer.convert_tokens_to_ids("<|im_end|>") in text_ids(tokenizer, "<|im_end|>")
    ([28120], False)
    """
    return encode(tokenizer, Marked(checks.text("The text", text), 0), add_special_tokens=add_special_tokens).ids


def encode(
    tokenizer: Any,
    text: Marked,
    *,
    add_special_tokens: bool = False,
    written: Iterable[str] = (),
) -> Encoded:
    """The ids of a text that the template and users wrote (see `Marked`): those that the tokenizer gives for all of
    it, except that users' characters never become a control token.

    `written` are all texts that users wrote. If the template made a text in a way that hides who wrote which
    characters, a control string that is in none of these texts counts as the template's. Raises `BadInputError` for a
    text that the tokenizer cannot encode, and for a user's control string that it cannot encode as text.
    """
    tokenizer = text_tokenizer(tokenizer)
    checks.text("The text", text)
    controls = control_tokens(tokenizer)
    owners, plain = (
        text.owners(),
        text.plain(),
    )  # slicing a plain text is fast, however many owners it has
    ids, spans = _call(tokenizer, plain, add_special_tokens)
    found = [index for index, token_id in enumerate(ids) if token_id in controls and spans[index][0] < spans[index][1]]
    wrong = [i for i in found if _is_forged(plain, owners, spans[i], controls[ids[i]], ids[i], tokenizer, written)]
    if wrong:
        own = _own_controls(text, owners, controls, written)
        ids, spans, found = _encode_disarmed(tokenizer, text, own, controls, add_special_tokens)
    return Encoded(ids, spans, frozenset(found))


def _is_forged(
    text: str, owners: Sequence[int], span: tuple[int, int], content: str, token_id: int, tokenizer: Any, written: Any
) -> bool:
    """Whether a control token at `span` was made from users' characters."""
    start, stop = span
    while start < stop and text[start] in SPACES and not content.startswith(text[start]):
        start += 1  # white space that the token includes on its left …
    while start < stop and text[stop - 1] in SPACES and not content.endswith(text[stop - 1]):
        stop -= 1  # … and right
    if token_id == tokenizer.unk_token_id and text[start:stop] != content:
        return False  # an ordinary text that has no token
    return not _is_templates(content, set(owners[start:stop]), written)


def _is_templates(content: str, owners: set[int], written: Iterable[str]) -> bool:
    """Whether a control string whose characters have these owners is the template's own."""
    if owners == {TEMPLATE}:
        return True
    if any(is_users(owner) for owner in owners) or (TEMPLATE in owners and max(owners) >= 0):
        return False  # wholly or partly a user's
    return not any(_folded(content) in _folded(one) for one in written)


def _folded(text: str) -> str:
    """The text without the differences that a template or a tokenizer's normalizer may remove."""
    return unicodedata.normalize("NFKC", text).casefold()


def _own_controls(text: str, owners: Sequence[int], controls: Any, written: Any) -> list[tuple[int, int, int]]:
    """(start, stop, id) of the control tokens that the template itself put into the text."""
    trusted = [owner == TEMPLATE for owner in owners]
    for content in controls.values():  # those that went through an unknown operation, but no user wrote
        for at in _occurrences(text, content):
            if _is_templates(content, set(owners[at : at + len(content)]), written):
                trusted[at : at + len(content)] = [True] * len(content)
    visible = "".join(character if own else "\0" for character, own in zip(str.__iter__(text), trusted, strict=True))
    ids = {content: token_id for token_id, content in controls.items()}
    pattern = "|".join(re.escape(content) for content in sorted(ids, key=len, reverse=True))
    return [(found.start(), found.end(), ids[found[0]]) for found in re.finditer(pattern, visible)]


def _occurrences(text: str, part: str) -> Iterable[int]:
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


def _encode_disarmed(tokenizer, text, own, controls, add_special_tokens):
    """(ids, spans, indexes of control tokens): only the control tokens `own` [(start, stop, id)] are found."""
    names = _disarmed(tokenizer)
    pieces, places, at = [], [], 0  # places: for each character of the new text, its index in the old one
    for start, stop, token_id in own:
        pieces += [text[at:start], names.of[token_id]]
        places += [*range(at, start), *([start] * (len(names.of[token_id]) - 1)), stop - 1]
        at = stop
    pieces.append(text[at:])
    places += range(at, len(text))
    ids, spans = _backend_call(names.backend, "".join(pieces), add_special_tokens)
    spans = [(places[start], places[stop - 1] + 1) if start < stop else (0, 0) for start, stop in spans]
    found = [index for index, token_id in enumerate(ids) if token_id in controls and spans[index][0] < spans[index][1]]
    own_starts = {start: token_id for start, _, token_id in own}
    unknown = tokenizer.unk_token_id
    for index in found:
        start, stop = spans[index]
        if ids[index] != unknown and not any(own_starts.get(at) == ids[index] for at in range(start, stop)):
            raise BadInputError(
                f"The text holds {controls[ids[index]]!r}, which this tokenizer can only take as a control token: "
                "take it out, or write it differently."
            )
    return ids, spans, [index for index in found if spans[index][0] in own_starts or ids[index] != unknown]


@dataclass(frozen=True)
class _Disarmed:
    """A copy of a tokenizer's backend in which added tokens have names that occur in no text; `of` maps id to name."""

    backend: Any
    of: dict[int, str]
    controls: dict[int, str]


_COPIES: WeakKeyDictionary[Any, _Disarmed] = WeakKeyDictionary()


def _disarmed(tokenizer: Any) -> _Disarmed:
    controls = control_tokens(tokenizer)
    copy = _COPIES.get(tokenizer)
    if copy is None or copy.controls != controls:
        copy = _COPIES[tokenizer] = _made_disarmed(tokenizer, controls)
    return copy


def _made_disarmed(tokenizer: Any, controls: Any) -> _Disarmed:
    from tokenizers import Tokenizer

    nonce = secrets.token_hex(8)  # random, since a text that held the name could make a control token
    names = {token_id: f"\U00100000{nonce}{token_id}\U00100001" for token_id in controls}
    renamed = {content: names[token_id] for token_id, content in controls.items()}
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described["truncation"] = described["padding"] = None
    for token in described["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    model = described["model"]
    model["vocab"] = _renamed_vocabulary(model["vocab"], renamed, names)
    if "merges" in model:
        contents = frozenset(controls.values())
        model["merges"] = [merge for merge in model["merges"] if not _makes_control(merge, contents)]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    return _Disarmed(Tokenizer.from_str(json.dumps(described)), names, controls)


def _renamed_vocabulary(vocabulary, renamed, names):
    """The vocabulary with the control tokens under their new names, each with the id it had."""
    if isinstance(vocabulary, dict):  # BPE, WordPiece, WordLevel
        kept = {token: token_id for token, token_id in vocabulary.items() if token not in renamed}
        return kept | {name: token_id for token_id, name in names.items()}
    pieces = [[renamed.get(piece, piece), score] for piece, score in vocabulary]  # Unigram: a piece's index is its id
    for token_id, name in sorted(names.items()):
        while len(pieces) <= token_id:
            pieces.append([f"\U00100000{secrets.token_hex(8)}\U00100001", 0.0])
        pieces[token_id] = [name, pieces[token_id][1]]
    return pieces


def _makes_control(merge: Sequence[str] | str, contents: frozenset[str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return not contents.isdisjoint((left, right, left + right))


def _call(tokenizer: Any, text: str, add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """(ids, spans) as the tokenizer gives them."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise BadInputError(
            f"A {type(tokenizer).__name__} does not say which characters a token stands for (it has no "
            "tokenizer.json), and without that a user's text cannot be kept apart from control tokens."
        )
    with _one_sentence(text):
        encoded = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def _backend_call(backend: Any, text: str, add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]]:
    with _one_sentence(text):
        encoded = backend.encode(text, add_special_tokens=add_special_tokens)
    return encoded.ids, encoded.offsets


class _one_sentence:
    """Turn whatever goes wrong inside a tokenizer, Rust panics included, into a `BadInputError`."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        # A panic of tokenizers' Rust code is a BaseException of its own kind: nothing else would catch it.
        if kind is not None and (issubclass(kind, Exception) or kind.__name__ == "PanicException"):
            said = printable(str(error).strip() or kind.__name__, 200)
            raise BadInputError(
                f"The tokenizer cannot encode this text of {len(self.text):,} characters ({said}): its files may be "
                "damaged, or for another version."
            ) from None
