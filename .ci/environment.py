"""Make a virtual environment and install the course into it: `python .ci/environment.py .venv requirements.lock`.

It may be killed at any moment and started twice. One process works on an environment at a time, and the others wait. An
environment counts as whole once its stamp is there, which is written last; one without it is made anew, since a program
that was stopped while it installed itself (pip) cannot mend itself. Only what this program made is ever removed.

It needs nothing but Python, and runs before anything is installed.
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAMP = ".installed"  # a target of the Makefile: the environment is whole
MARK = ".made-by-make"  # the environment is this program's own
PIP = "pip>=24.1"
SIZE = "about 2.2 GB on disk, several GB more where pip takes PyTorch with its CUDA libraries, as it does on Linux"
WINDOWS = sys.platform == "win32"
NEWS = "@jupyterlab/apputils-extension:announcements"  # the pop-up that asks whether JupyterLab may fetch news


def main(arguments):
    """The environment, whole. Exit code 1 with one sentence when it cannot be made."""
    venv, requirements = Path(arguments[0]), Path(arguments[1])
    try:
        with one_at_a_time(venv):
            if not is_whole(venv, requirements):
                make(venv, requirements)
    except subprocess.CalledProcessError as error:
        return f"{venv} is not whole, a step ended with {error.returncode} (see above). Run `make setup` again."
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename})"
        return f"{venv} cannot be made: {reason}. VENV=/elsewhere puts it elsewhere."
    except KeyboardInterrupt:
        return f"Stopped: {venv} is not whole. `make setup` begins again."
    return 0


@contextlib.contextmanager
def one_at_a_time(venv):
    """Holds the environment's lock, which the system takes back from a process that is killed."""
    venv.parent.mkdir(parents=True, exist_ok=True)
    with open(venv.with_name(f"{venv.name}.lock"), "w") as file:
        if WINDOWS:
            import msvcrt

            while True:
                with contextlib.suppress(OSError):  # it tries for ten seconds
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"Another process is at work on {venv}: waiting for it to finish ...", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_whole(venv, requirements):
    """Whether the stamp is newer than what it stands for, as make sees it."""
    stamp = venv / STAMP
    inputs = (requirements, *included(requirements), ROOT / "pyproject.toml")
    return stamp.exists() and all(stamp.stat().st_mtime >= file.stat().st_mtime for file in inputs) and works(venv)


def included(requirements):
    """The other lists that this list of packages names (`-r FILE`)."""
    lines = requirements.read_text(encoding="utf-8").splitlines()
    return [requirements.parent / line.split()[1] for line in lines if line.startswith("-r ")]


def make(venv, requirements):
    """Install everything, into what is there where that works, else into a new environment."""
    if (venv / STAMP).exists() and works(venv):
        (venv / MARK).touch()  # whole once, so this program's own
        (venv / STAMP).unlink()
    elif (venv / MARK).exists() or not venv.exists() or not os.listdir(venv):
        make_new(venv)
    elif not (venv / "pyvenv.cfg").exists():
        raise FileExistsError(17, "it holds other things", str(venv))
    elif not works(venv):  # made in another way, or by an older version of this program
        keep_aside(venv)
        make_new(venv)
    run(venv, "-m", "pip", "install", "--quiet", "--upgrade", PIP)
    if requirements.resolve().parent == ROOT:
        print(
            f"Installing PyTorch, transformers, JupyterLab and what they need into {venv}: {SIZE}. This takes some "
            "minutes, and pip may say nothing for several of them.",
            flush=True,
        )
    run(venv, "-m", "pip", "install", "--requirement", requirements)
    if requirements.resolve().parent == ROOT:
        add_course(venv)
    mend_scripts(venv)
    (venv / STAMP).touch()


def keep_aside(venv):
    """Give an environment that does not work, and is not this program's own, another name."""
    number = 1
    while (kept := venv.with_name(f"{venv.name}.kept-{number}")).exists():
        number += 1
    venv.rename(kept)
    print(f"The environment in {venv} does not work. It is kept as {kept.name}: delete it when you like.", flush=True)


def make_new(venv):
    """An empty environment in place of what is there, which is this program's own."""
    venv.mkdir(exist_ok=True)
    for path in venv.iterdir():
        if path.name != MARK:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (venv / MARK).touch()  # first of all: killed from here on, it is made anew
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)


def add_course(venv):
    """Let the environment find `helpers` in this folder, whatever the folder is called, and ask for no news.

    `pip install --editable` does the first, but not in a folder with $ or braces in its name.
    """
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python(venv), "-c", where], check=True, capture_output=True, encoding="utf-8")
    # In the encoding that Python reads such a file with: the system's.
    Path(packages.stdout.strip(), "inside_language_models.pth").write_bytes(os.fsencode(f"{ROOT}\n"))
    settings = venv / "etc" / "jupyter" / "labconfig" / "page_config.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"disabledExtensions": {NEWS: True}}), encoding="utf-8")


def mend_scripts(venv):
    """Programs of an environment whose path has a space name their Python between double quotes: a $ would be lost."""
    old = b"#!/bin/sh\n'''exec' \""
    for script in () if WINDOWS else (venv / "bin").iterdir():
        if script.is_file() and not script.is_symlink() and (text := script.read_bytes()).startswith(old):
            path, _, rest = text.removeprefix(old).partition(b'" "$0"')
            quoted = shlex.quote(os.fsdecode(path.replace(b'\\"', b'"')))
            script.write_bytes(old[:-1] + os.fsencode(quoted) + b' "$0"' + rest)


def works(venv):
    """Whether this environment's pip runs."""
    try:
        return not subprocess.run([python(venv), "-m", "pip", "--version"], capture_output=True).returncode
    except OSError:
        return False


def run(venv, *arguments):
    subprocess.run([python(venv), *arguments], check=True)


def python(venv):
    """The environment's Python, by a path that does not depend on where this runs."""
    return venv.absolute() / ("Scripts/python.exe" if WINDOWS else "bin/python")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
