"""`make setup` in folders of any name, killed at any moment, started twice: with a tiny course and no network."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.skipif(shutil.which("make") is None or sys.platform == "win32", reason="runs make"),
]
PROGRAM = "import sys, helpers; print('found', helpers.__file__, sys.prefix)"


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A function that makes a course of that name: this Makefile, one package with a program, and a stub of helpers."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / "tiny_tool-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_tool.py", f"def main():\n    {PROGRAM}\n")
        about = "tiny_tool-1.0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-tool\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/entry_points.txt", "[console_scripts]\ntiny = tiny_tool:main\n")
        wheel.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    for name in [name for name in os.environ if name.startswith(("MAKE", "MFLAGS"))]:
        monkeypatch.delenv(name)

    def new(name="course"):
        folder = tmp_path / name
        (folder / ".ci").mkdir(parents=True)
        (folder / "helpers" / "models").mkdir(parents=True)
        shutil.copy(ROOT / "Makefile", folder)
        program = (ROOT / ".ci" / "environment.py").read_text().replace('PIP = "pip>=24.1"', 'PIP = "pip"')
        (folder / ".ci" / "environment.py").write_text(program)
        (folder / "helpers" / "__init__.py").touch()
        (folder / "helpers" / "models" / "__main__.py").write_text("print('models ready')\n")
        (folder / "pyproject.toml").touch()
        (folder / "requirements.lock").write_text("tiny-tool==1.0\n")
        return folder

    return new


def start(folder):
    python = shlex.quote(sys.executable).replace("$", "$$")  # this course, too, may stand in a folder of any name
    return subprocess.Popen(
        ["make", "setup", f"PYTHON={python}"],
        **{"cwd": folder, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
        start_new_session=True,
    )


def set_up(folder):
    """`make setup` done, and the tool that it installed run: what both said."""
    process = start(folder)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "models ready" in said
    tool = subprocess.run([folder / ".venv" / "bin" / "tiny"], capture_output=True, text=True, cwd="/")
    assert f"found {folder / 'helpers' / '__init__.py'} {folder / '.venv'}" in tool.stdout, tool.stderr
    return said


@pytest.mark.parametrize("name", ["with space $x {x} 北京", '${x} it\'s "quoted" $HOME %d #1 & (y)'])
def test_a_folder_of_any_name(course, name):
    folder = course(name)
    said = set_up(folder)
    assert said.index("2.2 GB on disk") < said.index("tiny"), "how much it takes is said before pip begins"
    assert "GB" not in set_up(folder)  # which finds everything there
    assert "announcements" in (folder / ".venv" / "etc" / "jupyter" / "labconfig" / "page_config.json").read_text()


def test_a_newer_list_of_packages_is_installed_and_a_broken_pip_is_made_anew(course):
    folder = course()
    set_up(folder)
    (folder / ".venv" / "mine.txt").write_text("mine")
    later = time.time() + 10
    os.utime(folder / "requirements.lock", (later, later))
    set_up(folder)
    assert (folder / ".venv" / "mine.txt").exists(), "what is there works, so it is kept"
    # Killed while pip installs itself, after the first of two commits of its upgrade: it cannot even be imported.
    (folder / ".venv" / ".installed").unlink()
    (pip,) = (folder / ".venv").glob("lib/python*/site-packages/pip")
    shutil.rmtree(pip / "_internal")
    set_up(folder)


@pytest.mark.parametrize("after", ["pyvenv.cfg", "bin/python", "lib/*/site-packages/pip", "lib/*/*/tiny_tool.py"])
def test_killed_at_any_moment_the_next_one_ends_well(course, after):
    folder = course()
    process = start(folder)
    deadline = time.monotonic() + 200
    while not list((folder / ".venv").glob(after)) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    set_up(folder)


def test_of_two_at_once_both_end_well(course):
    folder = course()
    both = [start(folder), start(folder)]
    ends = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert sum("waiting for it to finish" in said for said in ends) == 1
    set_up(folder)


def test_an_environment_that_another_program_made_is_kept_when_it_does_not_work(course):
    folder = course()
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "pyvenv.cfg").touch()
    (folder / ".venv" / "mine.txt").write_text("mine")
    assert "kept as .venv.kept-1" in set_up(folder)
    assert (folder / ".venv.kept-1" / "mine.txt").read_text() == "mine"


def test_a_folder_with_other_things_is_left_alone(course):
    folder = course()
    (folder / ".venv").mkdir()
    (folder / ".venv" / "mine.txt").write_text("mine")
    process = start(folder)
    said, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert ".venv cannot be made: it holds other things" in said
    assert [file.name for file in (folder / ".venv").iterdir()] == ["mine.txt"]
