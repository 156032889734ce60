"""A text that remembers, for each character, where it came from.

A chat template cuts, trims and joins texts before they reach the tokenizer. To tell afterwards which characters are
the template's own and which ones a user wrote, the template is given `Marked` texts: they behave like `str`, and every
text that is made from them knows its owners.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

TEMPLATE = -1  # the owner of the template's own text
UNKNOWN = -2  # the owner of text that went through an operation that this module does not track
ROUGHLY = 1_000_000  # added to a message's index: part of this text is the message's, but not every character

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
        return self._changed(str.upper(self))

    def lower(self) -> Marked:
        return self._changed(str.lower(self))

    def casefold(self) -> Marked:
        return self._changed(str.casefold(self))

    def swapcase(self) -> Marked:
        return self._changed(str.swapcase(self))

    def capitalize(self) -> Marked:
        return self._changed(str.capitalize(self))

    def title(self) -> Marked:
        return self._changed(str.title(self))

    def _changed(self, text: str) -> Marked:
        """This text with other letters; if their number has changed, the owners are only roughly known."""
        return _marked(text, self._runs) if len(text) == len(self) else Marked(text, roughly_of((self,)))


def joined(texts: Iterable[str]) -> Marked:
    """Texts joined one after the other, each with its owners; the owner of a plain `str` is `UNKNOWN`."""
    texts = list(texts)
    runs = _merged(run for text in texts for run in runs_of(text))
    return _marked("".join(texts), runs)


def runs_of(text: str) -> Runs:
    """`Marked.owned_runs` for any text: a plain `str` is one run of `UNKNOWN`."""
    if isinstance(text, Marked):
        return text.owned_runs()
    return ((len(text), UNKNOWN),) if text else ()


def roughly_of(values: Iterable[Any]) -> int:
    """The owner of what was made from these values in a way that is not tracked: the template if all of them are its
    own, a message (`ROUGHLY`) if any of them contains part of it, and otherwise `UNKNOWN`."""
    found = {owner for value in values for owner in _owners_in(value)}
    users = sorted(owner for owner in found if owner >= 0)
    if users:
        return users[0] % ROUGHLY + ROUGHLY
    return UNKNOWN if UNKNOWN in found else TEMPLATE


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
