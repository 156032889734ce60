"""Checks for the exercises: `check("03.2", answer)` says whether the answer is right, or what is wrong with it.

The checks of notebook NN are in `nbNN.py` beside this file. A check is a function of the answer that
calls `require(condition, "what is wrong")` and returns the sentence printed for a right answer::

    @exercise("03.2", expects=int)
    def _(answer):
        require(answer > 0, "A count is positive.")
        return "Right: …"
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from helpers.errors import BadInputError, HelpersError
from helpers.exercises import progress

_CHECKS: dict[str, tuple[Callable[[Any], str], tuple[Any, ...]]] = {}
_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a dictionary",
    bool: "True or False",
    Callable: "a function",
}


class NotYet(Exception):
    """What is wrong with an answer."""


def require(condition: object, what_is_off: str) -> None:
    """Continue if the condition holds; otherwise tell the reader what is wrong."""
    if not condition:
        raise NotYet(what_is_off)


def exercise(name: str, *, expects: Any) -> Callable[[Callable[[Any], str]], Callable[[Any], str]]:
    """Register the decorated check. `expects` is the type (or types) of its answer; `check` refuses other types."""

    def register(function: Callable[[Any], str]) -> Callable[[Any], str]:
        _CHECKS[name] = (function, expects if isinstance(expects, tuple) else (expects,))
        return function

    return register


def check(name: str, answer: Any) -> None:
    """Print whether the answer to an exercise ("03.2" is notebook 03's second) is right, or what is wrong with it.

    An unanswered exercise (`...` or None) gets a friendly line. If the answer is a function that raises an
    error, the line names the error. A right answer is remembered on this machine, for `show_progress`.
    Raises `BadInputError` for an exercise that does not exist.

    >>> check("00.1", ...)
    Exercise 00.1: not answered yet. Replace the ... above and run both cells again.
    """
    if answer is None or answer is ...:
        _find(name)
        print(f"Exercise {name}: not answered yet. Replace the ... above and run both cells again.")
        return
    function, expects = _find(name)
    try:
        require(_is_one_of(answer, expects), f"the answer should be {_describe(expects)}; this is {answer!r:.80}.")
        with _on_the_cpu():
            verdict, solved = f"right! {function(answer)}", True
    except NotYet as wrong:
        verdict, solved = f"not yet: {wrong}", False
    except Exception as error:
        verdict, solved = f"not yet: trying your answer raised {type(error).__name__}: {error}", False
    print(f"Exercise {name}: {verdict}")
    if solved:
        _remember(name)


def _remember(name: str) -> None:
    """Remember a solved exercise. If that fails, the answer is still right, so only a line says so."""
    try:
        progress.remember(name)
    except (HelpersError, OSError) as error:  # filelock's Timeout is an OSError
        print(f"(This could not be saved for show_progress: {error})")


def show_progress() -> progress.Progress:
    """Which exercises are solved so far, as `check` has remembered them on this machine.

    The list is kept in one file in the reader's home folder and is sent nowhere. Raises `DamagedFilesError` when that
    file cannot be read.

    >>> show_progress().exercises["00"]
    ('00.1', '00.2', '00.3', '00.4')
    """
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("nb"):
            importlib.import_module(f"{__name__}.{module.name}")
    by_notebook: dict[str, list[str]] = {}
    for name in sorted(_CHECKS, key=lambda name: (name[:2], int(name[3:]))):
        by_notebook.setdefault(name[:2], []).append(name)
    file = progress.progress_file()
    solved = {} if file is None else progress.read(file)
    return progress.Progress({notebook: tuple(names) for notebook, names in by_notebook.items()}, solved)


def _on_the_cpu() -> AbstractContextManager[Any]:
    """Checks load their own models on the CPU, so tensors are made there too, whatever device a notebook sets."""
    torch = sys.modules.get("torch")
    return torch.device("cpu") if torch else nullcontext()


def _find(name: str) -> tuple[Callable[[Any], str], tuple[Any, ...]]:
    notebook = str(name).partition(".")[0]
    try:
        importlib.import_module(f"helpers.exercises.nb{notebook}")
        return _CHECKS[name]
    except (ModuleNotFoundError, KeyError):
        known = ", ".join(sorted(n for n in _CHECKS if n.startswith(f"{notebook}."))) or "none in that notebook"
        raise BadInputError(f"There is no exercise {name!r}; there are: {known}.") from None


def _is_one_of(answer: Any, expects: tuple[Any, ...]) -> bool:
    if isinstance(answer, bool):
        return bool in expects
    return isinstance(answer, expects) or (float in expects and isinstance(answer, int))


def _describe(expects: tuple[Any, ...]) -> str:
    return " or ".join(_KINDS.get(kind, f"a {kind.__name__}") for kind in expects)
