"""Download a model's files from ModelScope or Hugging Face: list, select, fetch, check and move them into place.

A model is stored in `data/models/<hub>/<owner>--<name>/` (or below `$HELPERS_MODELS`). Only safetensors weights,
configs and tokenizer files are fetched, by exact names that a regular expression below allows: nothing that
could be run, and nothing in sub-folders. Files are fetched into a folder next to the final one, checked against
the hub's own checksums, and moved; an interrupted download resumes where it stopped. Each hub's own client does
the fetching in a separate process (`helpers.models.hub_client`); endpoints and tokens are those that these
clients read (`HF_ENDPOINT`, `HF_TOKEN`, `MODELSCOPE_ENDPOINT`, `MODELSCOPE_API_TOKEN`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.checks import file_path, shown
from helpers.errors import (
    AccessDeniedError,
    BadInputError,
    DamagedFilesError,
    DiskFullError,
    HelpersError,
    HubNotReachableError,
    ModelNotFoundError,
)
from helpers.models import catalog, store

if TYPE_CHECKING:
    from collections.abc import Callable

HUBS = {
    "modelscope": ("ModelScope", "MODELSCOPE_ENDPOINT", "https://modelscope.cn"),
    "huggingface": ("Hugging Face", "HF_ENDPOINT", "https://huggingface.co"),
}
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json", re.ASCII)
SMALL_FILES = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|(video_)?preprocessor_config|processor_config|chat_template)\.json|(merges|vocab)\.txt"
    r"|tokenizer\.model|chat_template\.jinja",
    re.ASCII,
)
CODE_OR_PICKLE = (".py", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
REACH_SECONDS = 4  # for a first answer
LIST_SECONDS = 60  # for the list of files
STALL_SECONDS = 90  # without a new byte: longer than checking a 5 GB file takes on a slow disk
LONGEST_WAIT = 60  # seconds that a busy hub may ask us to wait
ATTEMPTS = 3
MOST_FILES = 100_000  # in a list
SLACK_BYTES = 64 * 2**20  # disk space a download may take beyond the listed sizes, for the clients' own records


@dataclass(frozen=True)
class RemoteFile:
    """A file as its hub lists it. At most one of the two checksums is known."""

    name: str
    bytes: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Listing:
    """What a hub offers for one model: the revision, the files that the course uses, and whether it is gated."""

    source: str
    repo: str
    revision: str
    small_files: tuple[RemoteFile, ...]
    weights: tuple[RemoteFile, ...]
    gated: bool


def repo_id(name: str | Path, source: str) -> str:
    """The hub id of a catalog name, or the id itself. Raises `ModelNotFoundError`, `BadInputError`."""
    file_path("name", name)
    if not isinstance(source, str) or source not in HUBS:
        raise BadInputError(f"{shown(source)} is not a hub; the course knows {' and '.join(map(repr, HUBS))}.")
    card = catalog.find_card(name)
    if card and source in card.sources:
        return card.sources[source]
    if card:
        found = ", ".join(f"{where} ({id_})" for where, id_ in card.sources.items())
        raise ModelNotFoundError(
            f"As far as the course knows, {card.name} is not on {HUBS[source][0]}. You can get it from: {found}."
        )
    if not REPO_ID.fullmatch(str(name)) or ".." in str(name):
        raise ModelNotFoundError(
            f"{str(name)!r} is neither a name the course knows nor an id on {HUBS[source][0]}, which has the form "
            f"owner/name, such as {catalog.find_card('glm-4-9b-chat').sources[source]}."
        )
    return str(name)


def folder_of(name: str | Path, source: str) -> Path:
    """The folder in which a hub's model is, or will be, stored.

    >>> folder_of("owner/model", "huggingface").name
    'owner--model'
    """
    of_hub = repo_id(name, source).replace("/", "--")
    return store.models_dir() / source / of_hub


def find(name: str | Path) -> Path | None:
    """The folder of a model that was downloaded from either hub, preferably with all its weights, or None."""
    here = []
    for source in HUBS:
        with contextlib.suppress(ModelNotFoundError):
            folder = folder_of(name, source)
            here += [folder] * (store.MANIFEST in (os.listdir(folder) if folder.is_dir() else ()))
    return max(here, key=lambda folder: is_whole(folder), default=None)


def is_whole(folder: Path, *, weights: bool = True, thorough: bool = False) -> bool:
    """Whether a folder holds all files that its manifest lists; `weights=False` leaves out those with weights.

    `thorough=True` reads every byte.

    >>> is_whole(folder_of("owner/no-such-model", "huggingface"))
    False
    """
    try:
        manifest = store.read_manifest(folder)
        wanted = {name: known for name, known in manifest["files"].items() if weights or not WEIGHTS.fullmatch(name)}
        return (manifest["weights"] or not weights) and not store.damaged_files(folder, {"files": wanted}, thorough)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def fetch(name: str | Path, source: str, *, weights: bool = True, check: bool = False) -> Path:
    """The complete folder of a hub's model: what is missing is downloaded, and no network is needed if nothing is.

    `weights=False` fetches only the config and the tokenizer. `check=True` reads every byte of the files that
    are here. If several processes fetch the same model, one does it and the others wait. It prints the size and
    the free disk space first, shows a progress bar, and resumes an interrupted download.

    Raises `ModelNotFoundError`, `AccessDeniedError`, `HubNotReachableError` (within five seconds when there is
    no network), `DamagedFilesError` or `DiskFullError`.

    >>> fetch("owner/model", "github")
    Traceback (most recent call last):
    helpers.errors.BadInputError: 'github' is not a hub; the course knows 'modelscope' and 'huggingface'.
    """
    from filelock import FileLock

    folder = folder_of(name, source)
    if is_whole(folder, weights=weights, thorough=check):
        return folder
    refuse_offline(name, source)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        with store.one_at_a_time(lock, name):
            if not is_whole(folder, weights=weights, thorough=check):
                _fetch_missing(look_up(name, source), folder, weights)
    except OSError as error:
        if isinstance(error, HelpersError):
            raise
        if error.errno == errno.ENOSPC:
            raise _disk_full(name, folder, None) from None
        raise ModelNotFoundError(
            f"{name} cannot be stored in {folder.parent}: {error.strerror}. Set {store.MODELS_VARIABLE} to a folder "
            f"that you can write to."
        ) from None
    return folder


def refuse_offline(name: str | Path, source: str) -> None:
    """Raise `HubNotReachableError` if the reader has turned downloads off."""
    for variable in OFFLINE_VARIABLES:
        if os.environ.get(variable, "").upper() in ("1", "TRUE", "YES", "ON"):
            raise HubNotReachableError(
                f"{name} is not on this machine, and {variable} is set, so it is not fetched from "
                f"{HUBS[source][0]}. Unset {variable}, or copy the model's folder here and pass its path."
            )


def look_up(name: str | Path, source: str) -> Listing:
    """Ask a hub for the `Listing` of a model. Raises like `fetch`."""
    repo = repo_id(name, source)
    store.say(f"Asking {HUBS[source][0]} for {repo} …")
    _check_reachable(source)
    answer = _patiently(lambda: _run_client(source, "list", {"repo": repo}, LIST_SECONDS), repo, source)
    try:
        files = [RemoteFile(**file) for file in answer["files"] if _is_wanted(file)]
        offered = [str(file["name"]) for file in answer["files"]]
        if not isinstance(answer["revision"], str) or len(offered) > MOST_FILES:
            raise TypeError
    except (TypeError, KeyError):
        raise _not_reachable(source, "its list of files is malformed") from None
    weights = tuple(file for file in files if WEIGHTS.fullmatch(file.name))
    if not any(file.name.endswith(".safetensors") for file in weights):
        pickles = [file for file in offered if file.endswith(CODE_OR_PICKLE)]
        has = f"only {pickles[0]}, which can run code when it is opened and is not fetched" if pickles else "no weights"
        raise ModelNotFoundError(
            f"{repo} on {HUBS[source][0]} has no safetensors weights: {has}. Look for another copy."
        )
    return Listing(
        source=source,
        repo=repo,
        revision=answer["revision"],
        small_files=tuple(file for file in files if SMALL_FILES.fullmatch(file.name)),
        weights=weights,
        gated=answer["gated"],
    )


def _is_wanted(file: Any) -> bool:
    """Whether to fetch a file, by its exact name alone: `../../x`, absolute paths, sub-folders, code and pickles are
    never requested."""
    name, size, checksums = file["name"], file["bytes"], (file["sha256"], file["git_sha1"])
    known = isinstance(name, str) and (WEIGHTS.fullmatch(name) or SMALL_FILES.fullmatch(name))
    plain = all(checksum is None or isinstance(checksum, str) for checksum in checksums)
    return bool(known) and type(size) is int and size >= 0 and plain


def _fetch_missing(listing: Any, folder: Path, weights: bool) -> None:
    # Weights that are here stay in the manifest.
    weights = weights or all(_is_intact(folder / file.name, file) for file in listing.weights)
    wanted = listing.small_files + (listing.weights if weights else ())
    missing = [file for file in wanted if not _is_intact(folder / file.name, file)]
    needed = sum(file.bytes for file in missing)
    partial = folder.with_name(f".{folder.name}.partial")
    here = _bytes_in(partial)
    free = store.free_bytes(folder.parent)
    if max(needed - here, 0) > free:
        raise _disk_full(listing.repo, folder, needed - here)
    resumed = f", {store.size(here)} of it already here" if here else ""
    store.say(
        f"{listing.repo} from {HUBS[listing.source][0]}: {store.size(needed)} in {len(missing)} files{resumed}; "
        f"{store.size(free)} are free in {folder.parent}."
    )
    _download(listing, missing, partial)
    folder.mkdir(exist_ok=True)
    for file in missing:
        (partial / file.name).chmod(0o644)
    store.put_in_place([partial / file.name for file in missing], folder)
    facts = {
        "made_from": f"{listing.source}:{listing.repo}@{listing.revision}",
        "weights": weights,
        "weights_bytes": sum(file.bytes for file in listing.weights if file.name.endswith(".safetensors")),
    }
    store.write_manifest(folder, [folder / file.name for file in wanted], **facts)
    shutil.rmtree(partial, ignore_errors=True)


def _download(listing: Any, files: Any, partial: Path) -> None:
    """Download all files into `partial` and check each against the listing; damaged ones are fetched again."""
    partial.mkdir(exist_ok=True)
    left = [file for file in files if not _is_intact(partial / file.name, file)]
    for attempt in range(ATTEMPTS):
        if not left:
            return
        task = {"revision": listing.revision, "folder": str(partial), "names": [file.name for file in left]}
        total = sum(file.bytes for file in files)
        _patiently(
            lambda task=task, total=total: _run_client(  # type: ignore[misc]
                listing.source, "download", {"repo": listing.repo, **task}, None, _Progress(partial, total)
            ),
            listing.repo,
            listing.source,
        )
        left = [file for file in left if not _is_intact(partial / file.name, file)]
        for file in left:
            (partial / file.name).unlink(missing_ok=True)
            if attempt + 1 < ATTEMPTS:
                store.say(f"{file.name} arrived damaged (wrong size or checksum): fetching it again.")
    if left:
        raise _damaged(listing.source, listing.repo, left[0].name)


def _is_intact(path: Path, file: RemoteFile) -> bool:
    """Whether a local file is a regular file with the listed size and checksum."""
    return store.has_content(path, file.bytes, sha256=file.sha256, git_sha1=file.git_sha1)


class _Progress:
    """A progress bar that follows the size of a folder, whoever writes to it, and knows when it last changed."""

    def __init__(self, folder: Path, total: int) -> None:
        from tqdm.auto import tqdm

        self.folder, self.changed, self.bytes = folder, time.monotonic(), _bytes_in(folder)
        self.bar = tqdm(total=total, initial=min(self.bytes, total), unit="B", unit_scale=True, leave=False)

    def look(self) -> float:
        now = _bytes_in(self.folder)  # includes the client's own records, so a little more than the model's files
        if now != self.bytes:
            self.changed, self.bytes = time.monotonic(), now
            self.bar.update(min(now, self.bar.total) - self.bar.n)
        return time.monotonic() - self.changed

    @property
    def too_much(self) -> bool:
        """Whether more has arrived than the hub listed."""
        return self.bytes > self.bar.total + SLACK_BYTES


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def _check_reachable(source: str) -> None:
    """Check that the hub gives any answer within `REACH_SECONDS`, slow proxies and name servers included."""
    answers = queue.Queue()
    endpoint = _endpoint(source)

    def ask() -> None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD", headers={"User-Agent": "inside-language-models"})
            urllib.request.urlopen(request, timeout=REACH_SECONDS).close()
            answers.put(None)
        except urllib.error.HTTPError:
            answers.put(None)
        except Exception as error:
            answers.put(str(getattr(error, "reason", error)))

    threading.Thread(target=ask, daemon=True).start()
    try:
        problem = answers.get(timeout=REACH_SECONDS)
    except queue.Empty:
        problem = f"no answer within {REACH_SECONDS} s"
    if problem:
        raise _not_reachable(source, problem)


def _endpoint(source: str) -> str:
    _, variable, standard = HUBS[source]
    return (os.environ.get(variable) or standard).rstrip("/")


def _run_client(source: str, action: str, task: Any, seconds: float, progress: Any = None) -> Any:
    """The answer of `helpers.models.hub_client`, which is stopped if it takes longer than `seconds` or stalls."""
    client = Path(__file__).with_name("hub_client.py")
    settings = {
        "HF_HUB_DISABLE_XET": "1",  # plain HTTP resumes by Range
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "0",  # `refuse_offline` has already checked this
        "TRANSFORMERS_OFFLINE": "0",
        "PYTHONUTF8": "1",
    }
    if progress:
        settings["MODELSCOPE_CACHE"] = str(progress.folder / ".client")  # its locks
    process = subprocess.Popen(
        [sys.executable, "-P", str(client)],  # -P: this package's modules must not hide those of libraries
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | settings,
        text=True,
        encoding="utf-8",
    )
    deadline = time.monotonic() + (seconds or float("inf"))
    message = json.dumps({"source": source, "action": action, "endpoint": _endpoint(source), **task})
    try:
        while True:
            try:
                out, _ = process.communicate(message, timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                message = None
                quiet = progress.look() if progress else 0
                if progress and progress.too_much:
                    listed = store.size(progress.bar.total)
                    raise _not_reachable(source, f"it sent more than the {listed} that it lists") from None
                if quiet > STALL_SECONDS or time.monotonic() > deadline:
                    waited = STALL_SECONDS if quiet > STALL_SECONDS else seconds
                    raise _not_reachable(source, f"nothing arrived for {waited} s", bool(progress)) from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if progress:
            progress.look()
            progress.bar.close()
    try:
        return json.loads(out)
    except ValueError:
        raise _not_reachable(
            source, f"its client stopped with exit code {process.returncode}", bool(progress)
        ) from None


def _patiently(ask: Callable[[], Any], repo: str, source: str) -> Any:
    """The client's answer, after waiting as long as a busy hub asks (Retry-After); its errors become ours."""
    for attempt in range(ATTEMPTS):
        answer = ask()
        problem = answer.get("error") if isinstance(answer, dict) else {"text": "its answer is malformed"}
        if not problem:
            return answer
        wait = _seconds(problem.get("retry_after"))
        if problem.get("status") != 429 or wait > LONGEST_WAIT or attempt + 1 == ATTEMPTS:
            raise _named(problem, repo, source)
        store.say(f"{HUBS[source][0]} is busy and asks you to wait {wait:.0f} s: waiting …")
        time.sleep(wait)
    raise AssertionError("unreachable")


def _seconds(retry_after: Any) -> float:
    try:
        seconds = float(retry_after)
    except (TypeError, ValueError):
        return 5.0
    return max(seconds, 0.0) if seconds == seconds else 5.0  # NaN is not equal to itself


def _named(problem: Any, repo: str, source: str) -> Exception:
    """The client's error as one of ours. Hugging Face says 401 for an id that does not exist."""
    hub, status, kinds = HUBS[source][0], problem.get("status"), problem.get("kinds", ())
    if problem.get("errno") == errno.ENOSPC:
        return OSError(errno.ENOSPC, "No space left on device")
    if status == 404 or ("RepositoryNotFoundError" in kinds and "GatedRepoError" not in kinds):
        return ModelNotFoundError(
            f"{hub} has no model {repo!r}, or it is private. Check owner and spelling on {_endpoint(source)}."
        )
    if status in (401, 403) or "GatedRepoError" in kinds:
        login = "hf auth login" if source == "huggingface" else "modelscope login"
        return AccessDeniedError(
            f"{hub} gives {repo} only to users who have accepted its licence (HTTP {status}). Accept it at "
            f"{_endpoint(source)}/{'' if source == 'huggingface' else 'models/'}{repo}, then run `{login}` once "
            f"with a token from your account.{_elsewhere(repo, source)}"
        )
    if "FileIntegrityError" in kinds or "FileSizeMismatchError" in kinds:
        return _damaged(source, repo, "a file")
    if status == 429:
        wait = _seconds(problem.get("retry_after"))
        return HubNotReachableError(
            f"{hub} is busy (HTTP 429) and asks you to wait {wait:.0f} s. Then try again: what has arrived is kept."
        )
    reason = f"HTTP {status}" if status else problem.get("text", "no reason given")
    return _not_reachable(source, reason, True)


def _elsewhere(repo: str, source: str) -> str:
    """A sentence for models that the other hub gives to everyone."""
    card = catalog.find_card(repo)
    others = [other for other in (card.sources if card else ()) if other in HUBS and other not in (source, *card.gated)]
    return f' Or use source="{others[0]}", which does not require that.' if others else ""


def _damaged(source: str, repo: str, what: str) -> DamagedFilesError:
    return DamagedFilesError(
        f"{what} of {repo} arrived {ATTEMPTS} times with a size or SHA-256 other than {HUBS[source][0]} lists. "
        f"Try again later, or try another mirror ({HUBS[source][1]})."
    )


def _not_reachable(source: str, reason: str, kept: bool = False) -> HubNotReachableError:
    hub, variable, _ = HUBS[source]
    resume = " What has arrived is kept, and the next attempt resumes from there." if kept else ""
    return HubNotReachableError(
        f"{hub} ({_endpoint(source)}) cannot be used: {reason}. Check the network, or set {variable} to a mirror."
        f"{resume} Models that are already here load without a network."
    )


def _disk_full(name: str | Path, folder: Path, needed: int | None) -> DiskFullError:
    need = f"{store.size(needed)} more" if needed else "more space"
    return store.disk_full(name, need, folder.parent, needed_bytes=needed, also=" What has arrived is kept.")
