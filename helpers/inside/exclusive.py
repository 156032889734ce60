"""One model does one thing at a time.

An intervention changes the model for as long as it lasts, and `trace` makes it compute attention in another
way for one run. A second thread (an explorer that answers while a cell runs) would see both. Code that runs
or changes a model therefore takes the model's lock first; one thread may take it several times.

A reader's own `model.generate(…)` knows nothing of the lock. While a function listens to its own run, `alone`
therefore makes other threads' runs of the model wait, and `in_this_thread` makes hooks ignore a run that another
thread had already begun.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch

from helpers.errors import ModelBusyError

PATIENCE = 60.0  # seconds that one thread waits for another


@dataclass
class _Turn:
    """The lock of one model, and what is being done with the model."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    doing: list[str] = field(default_factory=list)


_turns: WeakKeyDictionary[torch.nn.Module, _Turn] = WeakKeyDictionary()
_making = threading.Lock()


@contextmanager
def one_at_a_time(model: torch.nn.Module, doing: str, *, patience: float | None = None) -> Iterator[None]:
    """Reserve the model for this thread: another thread that wants it in the meantime waits.

    `doing` names what is done, for the message that the other thread gets if it has waited for more than
    `patience` seconds (by default `PATIENCE`).

    >>> model = torch.nn.Linear(2, 2)
    >>> with one_at_a_time(model, "trace"), one_at_a_time(model, "steer"):
    ...     busy_with(model)
    'steer'

    Raises `ModelBusyError` after that time.
    """
    with _making:
        turn = _turns.setdefault(model, _Turn())
    if not turn.lock.acquire(timeout=PATIENCE if patience is None else patience):
        raise ModelBusyError(
            f"{type(model).__name__} is busy with {busy_with(model) or 'another task'} in another thread: wait until "
            f"that is done, or interrupt it, and then run {doing} again."
        )
    turn.doing.append(doing)
    try:
        yield
    finally:
        turn.doing.pop()
        turn.lock.release()


@contextmanager
def alone(model: torch.nn.Module, doing: str) -> Iterator[None]:
    """`one_at_a_time`, and in addition another thread's plain `model(…)` or `model.generate(…)` waits until the end.

    >>> model = torch.nn.Linear(2, 2)
    >>> with alone(model, "trace"):
    ...     list(model(torch.ones(1, 2)).shape)  # this thread's own runs do not wait
    [1, 2]

    Raises `ModelBusyError` in whichever thread has waited for too long.
    """
    with one_at_a_time(model, doing):
        forward, before = model.forward, vars(model).get("forward")
        vars(model)["forward"] = in_this_thread(forward, otherwise=_waiting(model, forward))
        try:
            yield
        finally:
            if before is None:
                vars(model).pop("forward", None)
            else:
                vars(model)["forward"] = before


def _waiting(model: torch.nn.Module, forward: Callable) -> Callable:
    def wait_and_run(*arguments: Any, **keywords: Any) -> Any:
        with one_at_a_time(model, "a run of the model"):
            return forward(*arguments, **keywords)

    return wait_and_run


def in_this_thread(function: Callable, *, otherwise: Callable | None = None) -> Callable:
    """`function` for the thread that calls `in_this_thread`. In all others it is `otherwise`, by default a function
    that returns None: what a hook returns that changes nothing.

    >>> in_this_thread(len)([1, 2])
    2
    """
    owner = threading.get_ident()

    @functools.wraps(function)  # transformers reads a forward's signature, `is_edited` a hook's module
    def called(*arguments: Any, **keywords: Any) -> Any:
        if threading.get_ident() == owner:
            return function(*arguments, **keywords)
        return None if otherwise is None else otherwise(*arguments, **keywords)

    return called


def busy_with(model: torch.nn.Module) -> str | None:
    """What a model is doing now, or None."""
    turn = _turns.get(model)
    doing = turn.doing[-1:] if turn else []
    return doing[0] if doing else None
