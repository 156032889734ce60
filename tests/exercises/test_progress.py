"""What a reader has solved is remembered on this machine: once, whatever happens to the file."""

import json
import os
import subprocess
import sys

import pytest

from helpers import check, show_progress
from helpers.errors import DamagedFilesError
from helpers.exercises import progress


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The file that remembers during one test, which is not there yet."""
    monkeypatch.setenv("HELPERS_PROGRESS", str(tmp_path / "mine" / "progress.json"))
    return tmp_path / "mine" / "progress.json"


RIGHT = 3 * 7 * 49_152  # exercise 00.1


def test_a_right_answer_is_remembered_and_another_is_not(file, capsys):
    check("00.1", ...)
    check("00.1", 5)
    assert not file.exists()
    check("00.1", RIGHT)
    (first,) = show_progress().solved.items()
    check("00.1", RIGHT)
    assert list(show_progress().solved.items()) == [first]
    assert first[0] == "00.1"
    assert "could not" not in capsys.readouterr().out
    assert repr(show_progress()).startswith("Exercises solved: 1 of ")
    assert "\n  00  ■□□□      1 of 4\n" in repr(show_progress())


def test_every_notebook_with_exercises_has_its_row(file):
    assert list(show_progress().exercises) == [f"{number:02}" for number in range(12)]


def test_nothing_is_written_when_it_is_off(monkeypatch, tmp_path):
    monkeypatch.setenv("HELPERS_PROGRESS", "off")
    monkeypatch.setenv("HOME", str(tmp_path))
    check("00.1", RIGHT)
    assert list(tmp_path.iterdir()) == []
    assert show_progress().solved == {}


def test_it_is_kept_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("HELPERS_PROGRESS")
    monkeypatch.setattr(progress.Path, "home", lambda: tmp_path)
    assert progress.progress_file() == tmp_path / ".inside-language-models" / "progress.json"


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        '{"format": 2, "solved": {}}',
        '{"format": 1, "solved": {"00.1": 3}}',
        "a" * 2_000_000,
    ],
    ids=["empty", "cut", "deep", "list", "newer", "number", "huge"],
)
def test_a_damaged_file_is_left_as_it_is_and_the_verdict_still_comes(file, capsys, damage):
    file.parent.mkdir()
    file.write_text(damage)
    check("00.1", RIGHT)
    said = capsys.readouterr().out
    assert "Exercise 00.1: right!" in said
    assert "could not be saved" in said and "rename or delete it" in said
    assert file.read_text() == damage
    with pytest.raises(DamagedFilesError, match=r"progress\.json"):
        show_progress()


def test_a_full_disk_costs_no_answer(file, capsys, monkeypatch):
    check("00.1", RIGHT)
    before = file.read_text()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress.os, "fsync", full)
    check("00.2", " Rome")
    assert "No space left" in capsys.readouterr().out
    assert file.read_text() == before
    assert sorted(path.name for path in file.parent.iterdir() if path.suffix != ".lock") == ["progress.json"]


def test_several_kernels_at_once_lose_nothing(file):
    """Eight processes write down one exercise each."""
    program = "import sys; from helpers.exercises.progress import remember; remember(sys.argv[1])"
    names = [f"99.{number}" for number in range(8)]
    running = [subprocess.Popen([sys.executable, "-c", program, name], env=os.environ) for name in names]
    assert [process.wait() for process in running] == [0] * len(names)
    assert sorted(json.loads(file.read_text())["solved"]) == names
