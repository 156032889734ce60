"""Follow one call down the stack as a debugger would: which functions it enters, where they are, what each is for.

`sys.setprofile` reports every Python function that is entered, often many thousands. `step_into` shows only those that
have a note, in the order in which they are first entered, each indented below its caller.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helpers.checks import named, shown
from helpers.errors import AnchorNotFoundError, BadInputError
from helpers.library_source import package_version, within_package

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import CodeType, FrameType


@dataclass(frozen=True)
class Stop:
    """A function that the call entered.

    `depth` is the number of noted functions above it on the stack, `location` its file within its package and its
    first line, `count` how often it was entered from the same place.
    """

    depth: int
    name: str
    location: str
    note: str
    count: int


@dataclass(frozen=True, repr=False)
class CallPath:
    """What `step_into` saw: the `stops`, and how many calls of Python functions there were in total (`entered`)."""

    stops: tuple[Stop, ...]
    entered: int
    version: str

    def __repr__(self) -> str:
        told = "below are those with a note, and where they begin"
        lines = [f"{self.entered:,} Python function calls in all; {told} · {self.version}"]
        explained = set()
        for stop in self.stops:
            margin = "  " * stop.depth
            times = f" ×{stop.count}" if stop.count > 1 else ""
            lines.append(f"{margin}{stop.name}{times} · {stop.location}")
            if stop.name not in explained:
                lines.append(f"{margin}  └─ {stop.note}")
            explained.add(stop.name)
        return "\n".join(lines)


def step_into(call: Callable[[], Any], notes: Mapping[Any, str]) -> CallPath:
    """Run `call()` and show which of the functions in `notes` it enters, from the outermost to the innermost.

    `notes` is a dict from functions to what to say about them. A function that is entered from several places is shown
    once for each, so that a wrapper appears at every level at which it is used. What `call()` returns is discarded, and
    a profiler that was active before is restored.

    Raises `AnchorNotFoundError` naming the functions that were not entered, and `BadInputError` for a key that is
    not a function written in Python.

    >>> def inner(): return 1
    >>> def outer(): return inner()
    >>> print([(stop.name, stop.depth) for stop in step_into(outer, {outer: "calls", inner: "is called"}).stops])
    [('outer', 0), ('inner', 1)]
    """
    if not callable(call):
        raise BadInputError(f"call must be a function without arguments, not {shown(call)}.")
    named("notes", notes, "notes, where each name is a function")
    functions = {_code(function): function for function in notes}
    texts = {_code(function): note for function, note in notes.items()}
    watcher = _Watcher(frozenset(functions))
    before = sys.getprofile()
    sys.setprofile(watcher)
    try:
        call()
    finally:
        sys.setprofile(before)
    missing = [code.co_qualname for code in functions if not any(path[-1] is code for path in watcher.counts)]
    if missing:
        raise AnchorNotFoundError(
            f"The call never entered {', '.join(missing)}. The library has changed, or the call takes another path: "
            "look for the function that does this today and write the note for it."
        )
    stops = tuple(
        Stop(len(path) - 1, path[-1].co_qualname, _location(functions[path[-1]]), texts[path[-1]], count)
        for path, count in watcher.counts.items()
    )
    return CallPath(stops, watcher.entered, package_version(inspect.unwrap(next(iter(notes)))))


class _Watcher:
    """Called by the interpreter for each function entered and left; keeps the noted ones that are running."""

    def __init__(self, noted: frozenset[CodeType]) -> None:
        self.noted = noted
        self.running: list[CodeType] = []
        self.counts: dict[tuple[CodeType, ...], int] = {}
        self.entered = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        self.entered += event == "call"
        if frame.f_code not in self.noted:
            return
        if event == "call":
            self.running.append(frame.f_code)
            path = tuple(self.running)
            self.counts[path] = self.counts.get(path, 0) + 1
        elif event == "return":
            self.running.pop()


def _code(function: Any) -> CodeType:
    """The code of a function, without its decorators."""
    code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
    if code is None:
        raise BadInputError(f"step_into follows functions written in Python; {shown(function)} is not one.")
    return code


def _location(function: Any) -> str:
    target = inspect.unwrap(function)
    return f"{within_package(target.__code__.co_filename, target)}:{target.__code__.co_firstlineno}"
