"""A model's folder: where it is, its manifest, its lock and its checksums.

A prepared model is one folder, `data/models/<name>/` (or below `$HELPERS_MODELS`, so that a class can share one
copy). It is renamed into place once everything in it is complete, so a half-written folder is never taken for a
complete one. Its `manifest.json` records the size and SHA-256 of every file.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import itertools
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.checks import file_path
from helpers.errors import DiskFullError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filelock import BaseFileLock

MODELS_VARIABLE = "HELPERS_MODELS"
_PACKAGE = Path(__file__).resolve().parents[1]
IN_CHECKOUT = not (_PACKAGE / "data").is_dir()  # a built wheel carries the course's data in the package (setup.py)
DATA = _PACKAGE.parent / "data" if IN_CHECKOUT else _PACKAGE / "data"
SHIPPED = DATA / "models"
MANIFEST = "manifest.json"


def models_dir() -> Path:
    """The folder for prepared models: `$HELPERS_MODELS` (`~` is the home folder), or `data/models` of the course.

    If the course was installed as a package, without its repository, they are in the home folder's cache.

    >>> models_dir().is_dir()
    True
    """
    given = os.environ.get(MODELS_VARIABLE)
    if given:
        return file_path(MODELS_VARIABLE, given)
    return SHIPPED if IN_CHECKOUT else Path.home() / ".cache" / "inside-language-models"


@contextlib.contextmanager
def one_at_a_time(lock: BaseFileLock, name: object) -> Iterator[None]:
    """Hold the lock; print a line if another process has it and this one has to wait."""
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{name}: another process is preparing it; waiting for it to finish …")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def say(text: str) -> None:
    """Print one line on stderr: what is being done, for work that takes a while."""
    print(printable(text), file=sys.stderr, flush=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of a prepared folder's `manifest.json`."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def damaged_files(folder: Path, manifest: dict[str, Any], thorough: bool = False) -> list[str]:
    """The names of files that differ from what the manifest says."""
    return [file for file, known in manifest["files"].items() if not _is_intact(folder / file, known, thorough)]


def _is_intact(file: Path, known: dict[str, Any], thorough: bool) -> bool:
    """Whether a file matches the manifest; if its size and time are as recorded, it is read only if `thorough`."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return False
    if (status.st_size, status.st_mtime_ns) == (known["bytes"], known["mtime_ns"]) and not thorough:
        return stat.S_ISREG(status.st_mode)
    return has_content(file.resolve(), known["bytes"], sha256=known["sha256"])


def has_content(file: Path, length: int, **checksums: str | None) -> bool:
    """Whether this is a regular file (no link) of that length in bytes and with the given checksum, if one is known.

    `checksums` are `sha256` and `git_sha1` (git's id of a file), in hexadecimal; the first one that is known counts.
    """
    try:
        status = file.lstat()
    except OSError:
        return False
    if not stat.S_ISREG(status.st_mode) or status.st_size != length:
        return False
    kind, wanted = next(((kind, wanted) for kind, wanted in checksums.items() if wanted), (None, None))
    if kind is None or wanted is None:
        return True
    if kind == "sha256":
        return sha256(file) == wanted.lower()
    blob = hashlib.sha1(b"blob %d\0" % status.st_size, usedforsecurity=False)
    blob.update(file.read_bytes())
    return blob.hexdigest() == wanted.lower()


def put_in_place(files: Iterable[Path], folder: Path) -> None:
    """Move files into an existing folder, without removing anything that this program did not write.

    An old file that is exactly as the folder's manifest records it, or the same as the new file, is replaced.
    Anything else with that name is kept next to it under another name, and a line says so.
    """
    known = _recorded(folder)
    for file in files:
        target = folder / file.name
        if os.path.lexists(target) and not (is_ours(target, known.get(file.name)) or _same(file, target)):
            keep_aside(target)
        os.replace(file, target)


def _recorded(folder: Path) -> dict[str, Any]:
    """The files listed in a folder's manifest; none if it has no readable manifest."""
    try:
        return dict(read_manifest(folder)["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def keep_aside(path: Path) -> None:
    """Give a reader's file, folder or link another name, and say so."""
    kept = next(other for number in itertools.count(1) if not os.path.lexists(other := _kept(path, number)))
    os.rename(path, kept)
    say(f"{path} differs from what this program wrote: it is kept as {kept.name}. Delete it if you do not need it.")


def _kept(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.kept-{number}")


def _same(file: Path, other: Path) -> bool:
    return not other.is_symlink() and other.is_file() and filecmp.cmp(file, other, shallow=False)


def is_ours(file: Path, known: Any) -> bool:
    """Whether a file is exactly the one that a manifest records, which is checked byte by byte."""
    try:
        return not file.is_symlink() and _is_intact(file, known, thorough=True)
    except (OSError, TypeError, KeyError):
        return False


def remove_prepared(folder: Path) -> None:
    """Remove what this program wrote into a folder, and the folder if nothing else is in it."""
    files = _recorded(folder)
    for name, known in files.items():
        if Path(name).name == name and is_ours(folder / name, known):  # a manifest names files of its own folder only
            (folder / name).unlink()
    if files:
        (folder / MANIFEST).unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
    if folder.exists():
        say(f"{folder} holds files that this program did not write: they are still there.")


def free_bytes(folder: Path) -> int:
    """The free disk space, in bytes, where a folder is, or will be."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def disk_full(
    what: object, need: str, folder: Path, *, needed_bytes: int | None = None, also: str = ""
) -> DiskFullError:
    """The error that says how much space `what` needs, where, and what to do; `also` is one more sentence."""
    free = free_bytes(folder)
    return DiskFullError(
        f"{what} needs {need} in {folder}, where {size(free)} are free. Free some space, or set {MODELS_VARIABLE} to a "
        f"folder on another disk.{also}",
        needed_bytes=needed_bytes,
        available_bytes=free,
    )


def size(number: int) -> str:
    """A number of bytes as text, in GB or MB.

    >>> size(538_000_000), size(16_000_000_000)
    ('538 MB', '16 GB')
    """
    return f"{number / 1e9:.3g} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def quiet_progress() -> Iterator[None]:
    """Hide transformers' progress bars and its table of weights that do not match: our own messages cover them."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def write_manifest(folder: Path, files: Any, **facts: Any) -> None:
    """Write `manifest.json`, all of it or nothing: the given facts, and each file's size, time and SHA-256."""
    known = {}
    for file in sorted(files):
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())  # on disk before the folder counts as complete
        status = file.stat()
        known[file.name] = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256(file)}
    draft = folder / f".{MANIFEST}"
    draft.write_text(json.dumps({**facts, "files": known}, indent=1), encoding="utf-8")
    draft.replace(folder / MANIFEST)
