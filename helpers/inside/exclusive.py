"""One model does one thing at a time.

An intervention changes the model for as long as it lasts, and `trace` makes it compute attention in another
way for one run. A second thread (an explorer that answers while a cell runs) would see both. Code that runs
or changes a model therefore takes the model's lock first; one thread may take it several times.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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


def busy_with(model: torch.nn.Module) -> str | None:
    """What a model is doing now, or None."""
    turn = _turns.get(model)
    doing = turn.doing[-1:] if turn else []
    return doing[0] if doing else None
