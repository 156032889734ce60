"""A model's folder: where it lies, its manifest, its lock and its checksums.

A prepared model is one folder, `data/models/<name>/` (or below `$HELPERS_MODELS`, so that a class can share one
copy). It appears by a rename once everything in it is complete, so a half-written folder is never taken for a whole
one. Its `manifest.json` records the size and SHA-256 of every file.
"""

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path

from helpers.checks import file_path
from helpers.errors import printable

MODELS_VARIABLE = "HELPERS_MODELS"
SHIPPED = Path(__file__).resolve().parents[2] / "data" / "models"
MANIFEST = "manifest.json"


def models_dir() -> Path:
    """Where prepared models live: `$HELPERS_MODELS` (where `~` is the home folder), or `data/models` of the course."""
    given = os.environ.get(MODELS_VARIABLE)
    return file_path(MODELS_VARIABLE, given) if given else SHIPPED


@contextlib.contextmanager
def one_at_a_time(lock, name):
    """Holds the lock; says so when another process has it and we wait."""
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
    """One line on stderr: what is being done, for work that takes a while."""
    print(printable(text), file=sys.stderr, flush=True)


def read_manifest(folder):
    """What a prepared folder's `manifest.json` says."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def damaged_files(folder, manifest, thorough=False):
    """The names of files that are not what the manifest says."""
    return [file for file, known in manifest["files"].items() if not _is_intact(folder / file, known, thorough)]


def _is_intact(file, known, thorough):
    try:
        status = file.stat()
    except FileNotFoundError:
        return False
    if status.st_size != known["bytes"]:
        return False
    if status.st_mtime_ns == known["mtime_ns"] and not thorough:
        return True
    return sha256(file) == known["sha256"]


def sha256(file):
    """The SHA-256 of a file, in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def quiet_progress():
    """transformers shows a bar for each file it reads and writes; one line of ours says enough."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def write_manifest(folder, files, **facts):
    """`manifest.json`: the given facts, and each file's size, time and SHA-256. Written whole or not at all."""
    known = {}
    for file in sorted(files):
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())  # on disk before the folder counts as whole
        status = file.stat()
        known[file.name] = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256(file)}
    draft = folder / f".{MANIFEST}"
    draft.write_text(json.dumps({**facts, "files": known}, indent=1), encoding="utf-8")
    draft.replace(folder / MANIFEST)
