"""Which exercises a reader has solved: `check` remembers them here, `show_progress` reads them.

They are kept in one small file in the reader's home folder. Nothing is sent anywhere. `HELPERS_PROGRESS` can name
another file; with `HELPERS_PROGRESS=off`, as in the course's own tests, nothing is remembered.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helpers.checks import file_path
from helpers.errors import DamagedFilesError

PROGRESS_VARIABLE = "HELPERS_PROGRESS"
_FORMAT = 1
_LARGEST = 1_000_000  # bytes of a progress file: one with every exercise takes about 3,000
_SECONDS = 5  # how long to wait for another notebook that is writing


@dataclass(frozen=True, repr=False)
class Progress:
    """The exercises of the course, by notebook, and those that are solved; prints as a table.

    `exercises` maps a notebook's number ("03") to the names of its exercises, in order; `solved` maps the name of an
    exercise ("03.2") to the time (UTC, ISO 8601) when `check` first said that the answer was right.
    """

    exercises: Mapping[str, tuple[str, ...]]
    solved: Mapping[str, str]

    def __repr__(self) -> str:
        rows = [
            f"  {notebook}  {''.join('■' if name in self.solved else '□' for name in names):<10}"
            f"{sum(name in self.solved for name in names)} of {len(names)}"
            for notebook, names in self.exercises.items()
        ]
        known = [name for names in self.exercises.values() for name in names]
        return "\n".join([f"Exercises solved: {sum(name in self.solved for name in known)} of {len(known)}", *rows])


def progress_file() -> Path | None:
    """The file with the solved exercises, or None if nothing is remembered (`HELPERS_PROGRESS=off`).

    Raises `BadInputError` if `HELPERS_PROGRESS` is not a usable path.

    >>> progress_file() is None or progress_file().suffix == ".json"
    True
    """
    given = os.environ.get(PROGRESS_VARIABLE)
    if given == "off":
        return None
    return file_path(PROGRESS_VARIABLE, given) if given else Path.home() / ".inside-language-models" / "progress.json"


def remember(name: str) -> None:
    """Record that an exercise is solved, once. Raises `DamagedFilesError` or `OSError` if that fails.

    The file is replaced as a whole, under a lock: several notebooks may be open, and a full disk leaves it as it was.
    """
    file = progress_file()
    if file is None:
        return
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock", timeout=_SECONDS):
        solved = read(file)
        if name not in solved:
            _write(file, solved | {name: datetime.now(UTC).isoformat(timespec="seconds")})


def read(file: Path) -> dict[str, str]:
    """The solved exercises in the file, name -> time; empty if there is no file.

    Raises `DamagedFilesError` for a file that cannot be read, and leaves it as it is.
    """
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError("it is far too large")
        return _solved_in(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise DamagedFilesError(
            f"{file} is not a list of solved exercises ({error}): rename or delete it, and a new one will be started."
        ) from None
    except OSError as error:
        raise DamagedFilesError(
            f"{file} cannot be read ({error.strerror}): make it readable, or set {PROGRESS_VARIABLE} to another file."
        ) from None


def _solved_in(content: Any) -> dict[str, str]:
    solved = content.get("solved") if isinstance(content, dict) and content.get("format") == _FORMAT else None
    if not isinstance(solved, dict) or not all(isinstance(time, str) for time in solved.values()):
        raise ValueError("its format is unknown")
    return solved


def _write(file: Path, solved: dict[str, str]) -> None:
    content = json.dumps({"format": _FORMAT, "solved": solved}, indent=1)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".new")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as new:
            new.write(content)
            new.flush()
            os.fsync(new.fileno())
        Path(name).replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
