"""A text that remembers, for each character, where it came from.

A chat template cuts, trims and joins texts before they reach the tokenizer. To tell afterwards which characters are
the template's own and which ones a user wrote, the template is given `Marked` texts: they behave like `str`, and every
text that is made from them knows its owners.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex

from markupsafe import Markup

TEMPLATE = -1  # the owner of the template's own text
UNKNOWN = -2  # the owner of text that went through an operation that this module does not track
ROUGHLY = 1_000_000  # added to a message's index: part of this text is the message's, but not every character
MASKS = range(0xF0000, 0xFFFFE)  # private-use characters that stand for owners; no operation changes them

Runs = tuple[tuple[int, int], ...]  # (how many characters, their owner), one after the other


def is_users(owner: int) -> bool:
    """Whether exactly these characters are a message's: not the template's, and not of mixed or unknown origin."""
    return 0 <= owner < ROUGHLY


def message_of(owner: int) -> int | None:
    """The index of the message that an owner stands for, or None."""
    return None if owner < 0 else owner % ROUGHLY


class Marked(str):
    """A `str` with an owner for each character: the index of a message, `TEMPLATE`, or `UNKNOWN`.

    >>> text = Marked("<|user|>", TEMPLATE) + Marked("  hello ", 0).strip()
    >>> text, text.owned_runs()
    ('<|user|>hello', ((8, -1), (5, 0)))

    Operations that are not overridden here give a plain `str`; when joined to a `Marked` text, it counts as `UNKNOWN`.
    """

    __slots__ = ("_runs",)
    _runs: Runs

    def __new__(cls, text: str = "", owner: int = UNKNOWN) -> Marked:
        """`text` with one owner for all of it."""
        return _marked(text, ((len(text), owner),) if text else ())

    def owned_runs(self) -> Runs:
        """(number of characters, owner) of each run of characters with the same owner, in order."""
        return self._runs

    def owners(self) -> list[int]:
        """The owner of each character."""
        return [owner for length, owner in self._runs for _ in range(length)]

    def plain(self) -> str:
        """The same characters as an ordinary `str`."""
        return str.__getitem__(self, slice(None))

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> Marked:
        piece = str.__getitem__(self, key)
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                return _marked(piece, _merged((1, owner) for owner in self.owners()[key]))
            return _marked(piece, _cut(self._runs, start, max(start, stop)))
        start = range(len(self))[key]
        return _marked(piece, _cut(self._runs, start, start + 1))

    def __iter__(self) -> Iterator[Marked]:
        at = 0
        for length, owner in self._runs:
            for place in range(at, at + length):
                yield _marked(str.__getitem__(self, place), ((1, owner),))
            at += length

    def __add__(self, other: str) -> Marked:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> Marked:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> Marked:
        text, times = str.__mul__(self, count), max(0, count.__index__())
        one = len(self._runs) == 1
        return _marked(text, ((len(text), self._runs[0][1]),) if one and text else _merged(self._runs * times))

    __rmul__ = __mul__

    def strip(self, chars: str | None = None) -> Marked:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> Marked:
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None) -> Marked:
        return self[: len(str.rstrip(self, chars))]

    def removeprefix(self, prefix: str, /) -> Marked:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> Marked:
        return self[: len(self) - len(suffix)] if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(str.rsplit(self, sep, maxsplit), sep)

    def _pieces(self, pieces: list[str], sep: str | None) -> list[str]:
        """The plain pieces of a split, located in this text and cut from it with their owners."""
        found: list[str] = []
        at = 0
        for piece in pieces:
            at = at if sep is not None else self.find(piece, at)
            found.append(self[at : at + len(piece)])
            at += len(piece) + len(sep or "")
        return found

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines: list[str] = []
        at = 0
        for whole, line in zip(str.splitlines(self, keepends=True), str.splitlines(self, keepends), strict=True):
            lines.append(self[at : at + len(line)])
            at += len(whole)
        return lines

    def partition(self, sep: str, /) -> tuple[Marked, Marked, Marked]:
        head, middle, _ = str.partition(self, sep)
        return self._three(len(head), len(middle))

    def rpartition(self, sep: str, /) -> tuple[Marked, Marked, Marked]:
        head, middle, _ = str.rpartition(self, sep)
        return self._three(len(head), len(middle))

    def _three(self, first: int, second: int) -> tuple[Marked, Marked, Marked]:
        return self[:first], self[first : first + second], self[first + second :]

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> Marked:
        if not old:  # before every character
            return Marked(str.replace(self, old, new, count), roughly_of((self, new)))
        return joined(_between(self.split(old, count), new))

    def join(self, texts: Iterable[str], /) -> Marked:
        return joined(_between(texts, self))

    def upper(self) -> Marked:
        return self._changed(str.upper)

    def lower(self) -> Marked:
        return self._changed(str.lower)

    def casefold(self) -> Marked:
        return self._changed(str.casefold)

    def swapcase(self) -> Marked:
        return self._changed(str.swapcase)

    def capitalize(self) -> Marked:
        return self._changed(str.capitalize)

    def title(self) -> Marked:
        return self._changed(str.title)

    def _changed(self, change: Callable[[str], str]) -> Marked:
        """This text with other letters. A letter may become several (`"ß".upper()`); if these do not add up, the owners
        are only roughly known."""
        text = change(self.plain())
        if len(text) == len(self):
            return _marked(text, self._runs)
        lengths = [len(change(letter)) for letter in self.plain()]
        if sum(lengths) != len(text):
            return Marked(text, roughly_of((self,)))
        return _marked(text, _merged(zip(lengths, self.owners(), strict=True)))


class MarkedMarkup(Markup):
    """A text that is safe to put into a web page, as Jinja's filter `safe` makes it, with its owners."""

    __slots__ = ("_runs",)
    _runs: Runs

    @classmethod
    def of(cls, text: Markup, runs: Runs) -> MarkedMarkup:
        """The same text, with these runs of owners."""
        new = str.__new__(cls, text)
        new._runs = runs
        return new


def joined(texts: Iterable[str]) -> Marked:
    """Texts joined one after the other, each with its owners; the owner of a plain `str` is `UNKNOWN`."""
    texts = list(texts)
    runs = _merged(run for text in texts for run in runs_of(text))
    return _marked("".join(texts), runs)


def runs_of(text: str) -> Runs:
    """`Marked.owned_runs` for any text: a plain `str` is one run of `UNKNOWN`."""
    runs: Runs | None = getattr(text, "_runs", None)  # what Markup makes of a MarkedMarkup has none
    if runs is not None:
        return runs
    return ((len(text), UNKNOWN),) if text else ()


def roughly_of(values: Iterable[Any]) -> int:
    """The owner of what was made from these values in a way that is not tracked: the template if all of them are its
    own, a message (`ROUGHLY`) if any of them contains part of it, and otherwise `UNKNOWN`."""
    found = {owner for value in values for owner in _owners_in(value)}
    users = sorted(owner for owner in found if owner >= 0)
    if users:
        return users[0] % ROUGHLY + ROUGHLY
    return UNKNOWN if UNKNOWN in found else TEMPLATE


def followed(make: Callable[[list[Any]], str], values: list[Any], text: str | None = None) -> Marked:
    """`make(values)`, with the owners of its characters, whatever it does with the texts among the values.

    It is made a second time from texts in which a character that stands for its owner is in place of every character
    that is not the template's. Where the two results agree, it is the template's own. If they differ elsewhere (a quote
    that becomes two characters), the owners are only roughly known. `text` is the first result, if it is already known.

    >>> text = followed(lambda values: "<|%s|>" % values[0], [Marked("me", 7)])
    >>> text, text.owned_runs()
    ('<|me|>', ((2, -1), (2, 7), (2, -1)))
    """
    text = make(values) if text is None else text
    roughly = roughly_of(values)
    if roughly == TEMPLATE:
        return Marked(text, TEMPLATE)
    owners = sorted({owner for value in values for owner in _owners_in(value)} - {TEMPLATE})
    if len(owners) > len(MASKS) or not all(map(_can_be_masked, values)):
        return Marked(text, roughly)
    masks = dict(zip(owners, MASKS, strict=False))
    try:
        masked = make([_masked(value, masks) for value in values])
    except Exception:  # what it does depends on the characters
        return Marked(text, roughly)
    owner_of = {chr(mask): owner for owner, mask in masks.items()}
    if len(masked) != len(text) or any(c not in owner_of and c != was for c, was in zip(masked, text, strict=True)):
        return Marked(text, roughly)
    return _marked(str.__getitem__(text, slice(None)), _merged((1, owner_of.get(c, TEMPLATE)) for c in masked))


def _can_be_masked(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_can_be_masked, (*value.keys(), *value.values())))
    if isinstance(value, list | tuple):
        return all(map(_can_be_masked, value))
    return value is None or isinstance(value, str | int | float)


def _masked(value: Any, masks: dict[int, int]) -> Any:
    """The value with a character that stands for its owner in place of each that is not the template's."""
    if isinstance(value, str):
        pieces, at = [], 0
        for length, owner in runs_of(value):
            own = owner not in masks
            pieces.append(str.__getitem__(value, slice(at, at + length)) if own else chr(masks[owner]) * length)
            at += length
        return "".join(pieces)
    if isinstance(value, dict):
        return {_masked(key, masks): _masked(item, masks) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_masked(item, masks) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def _owners_in(value: Any) -> Iterator[int]:
    if isinstance(value, str):
        yield from (owner for _, owner in runs_of(value))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _owners_in(key)
            yield from _owners_in(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _owners_in(item)
    elif value is not None and not isinstance(value, int | float):
        yield UNKNOWN


def _between(texts: Iterable[str], separator: str) -> Iterator[str]:
    for number, text in enumerate(texts):
        if number:
            yield separator
        yield text


def _marked(text: str, runs: Runs) -> Marked:
    new = str.__new__(Marked, text)
    new._runs = runs
    return new


def _merged(runs: Iterable[tuple[int, int]]) -> Runs:
    """The runs without empty ones, and with neighbours of the same owner merged."""
    merged: list[tuple[int, int]] = []
    for length, owner in runs:
        if merged and merged[-1][1] == owner:
            merged[-1] = merged[-1][0] + length, owner
        elif length:
            merged.append((length, owner))
    return tuple(merged)


def _cut(runs: Runs, start: int, stop: int) -> Runs:
    """The runs of characters `start` to `stop`."""
    cut, at = [], 0
    for length, owner in runs:
        inside = min(stop, at + length) - max(start, at)
        if inside > 0:
            cut.append((inside, owner))
        at += length
    return tuple(cut)
