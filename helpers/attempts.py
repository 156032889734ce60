"""Run programs written for an older library: what stops them today, and what the library logs while they run."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import sys
import textwrap
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Result = TypeVar("Result")
_WIDTH = 200  # characters of a message that are shown


class _Kept(logging.Handler):
    """A log handler that collects messages in a list."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextlib.contextmanager
def library_messages() -> Iterator[list[str]]:
    """Collect what transformers logs and every Python warning while the block runs, instead of showing them.

    Yields a list. When the block has ended, it holds each message once, log messages first. Progress bars are hidden
    meanwhile, and the logging settings are restored afterwards.

    >>> from transformers import GenerationConfig
    >>> with library_messages() as said:
    ...     _ = GenerationConfig(do_sample=False, temperature=0.2)
    >>> said[0][:57]
    'The following generation flags are not valid and may be i'
    """
    from transformers.utils import logging as library

    said: list[str] = []
    log, bars = logging.getLogger("transformers"), library.is_progress_bar_enabled()
    handlers, level = log.handlers, log.level
    library.warning_once.cache_clear()  # otherwise it would not repeat a warning it has given before
    library.disable_progress_bar()
    log.handlers = [_Kept(said)]
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
            said += [str(warning.message) for warning in caught]
            said[:] = list(dict.fromkeys(said))
    finally:
        log.handlers = handlers
        log.setLevel(level)
        if bars:
            library.enable_progress_bar()


def attempt(program: Callable[..., Result], *arguments: Any) -> Result | None:
    """Run `program(*arguments)`; print what the library logs meanwhile and the error that stops it, if there is one.

    For an error it prints the line of `program` that it stopped at, the error's class and its message, with the
    folders of this machine removed. Returns what `program` returns, or None if an error stopped it.

    >>> def first(length):
    ...     return length[0]
    >>> attempt(first, 3)
    stopped at line 2: return length[0]
    TypeError: 'int' object is not subscriptable
    >>> attempt(first, "three")
    first ran to the end
    't'
    """
    stopped: Exception | None = None
    result = None
    with library_messages() as said:
        try:
            result = program(*arguments)
        except Exception as error:
            stopped = error
    for message in said:
        print(f"the library says: {_short(message)}")
    if stopped is None:
        print(f"{program.__name__} ran to the end")
        return result
    print(f"stopped at line {_where(program, stopped)}")
    print(f"{type(stopped).__name__}: {_short(str(stopped)) or '(the error has no message)'}")
    return None


def _short(message: str) -> str:
    for folder in sys.path:  # where this machine's packages are installed, whatever characters the path has
        if Path(folder).name in ("site-packages", "dist-packages"):
            message = message.replace(folder + os.sep, "…/")
    return textwrap.shorten(message, _WIDTH, placeholder=" …")


def _where(program: Callable[..., Any], error: Exception) -> str:
    """The last line of the program itself that the error passed through: its number in the program, and its text."""
    code = inspect.unwrap(program).__code__
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if frame.filename == code.co_filename), frames[-1])
    return f"{(last.lineno or code.co_firstlineno) - code.co_firstlineno + 1}: {(last.line or '').strip()}"
