"""What the teacher changes reaches the students, and what the students wrote stays: `publish` and nbgitpuller."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
from opened import PROGRAMS, ROOT

PULLER = PROGRAMS / "env" / "bin" / "gitpuller"
pytestmark = [
    pytest.mark.skipif(shutil.which("git") is None or sys.platform == "win32", reason="runs git and sh"),
    pytest.mark.skipif(not PULLER.exists(), reason="needs the room's environment: make workshop makes it"),
]


def notebook(*sources):
    cells = [{"cell_type": "code", "source": source, "outputs": []} for source in sources]
    return json.dumps({"cells": cells, "nbformat": 4}, indent=1)


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A teacher's folder, a student's, and a function that publishes the one and pulls it into the other."""
    spec = importlib.util.spec_from_file_location("room_program", ROOT / "docs" / "room" / "room.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    teacher.mkdir()
    for name, text in {"a.ipynb": notebook("1", "2"), "b.ipynb": notebook("1"), "helpers.py": "x = 1\n"}.items():
        (teacher / name).write_text(text)
    monkeypatch.setattr(program, "COURSE", teacher)
    environment = os.environ | {"GIT_CONFIG_SYSTEM": str(tmp_path / "git" / "config"), "HOME": str(tmp_path)}

    def pull():
        program.publish(tmp_path / "git")
        url = f"file://{tmp_path / 'git' / 'course.git'}"
        done = subprocess.run([PULLER, url, "course", student], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    pull()
    return teacher, student, pull


def test_a_page_that_only_the_teacher_changed_is_new(course):
    teacher, student, pull = course
    (student / "a.ipynb").write_text(notebook("mine", "2"))
    (teacher / "b.ipynb").write_text(notebook("better"))
    (teacher / "c.ipynb").write_text(notebook("added"))
    pull()
    assert (student / "a.ipynb").read_text() == notebook("mine", "2")
    assert (student / "b.ipynb").read_text() == notebook("better")
    assert (student / "c.ipynb").read_text() == notebook("added")


def test_a_notebook_that_the_teacher_only_ran_goes_out_as_it_was_and_a_changed_one_is_named(course, capsys):
    """JupyterLab saves each page that it runs: without a look at it, the class would get the teacher's outputs."""
    teacher, student, pull = course
    git = ["git", "-C", teacher, "-c", "user.name=t", "-c", "user.email=t@t"]
    for do in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *do], check=True)
    ran = json.loads(notebook("1", "2"))
    ran["cells"][0] |= {"execution_count": 7, "outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}]}
    (teacher / "a.ipynb").write_text(json.dumps(ran))
    (teacher / "b.ipynb").write_text(notebook("my answer"))
    pull()
    assert (student / "a.ipynb").read_text() == notebook("1", "2")
    assert json.loads((teacher / "a.ipynb").read_text()) == ran
    assert (student / "b.ipynb").read_text() == notebook("my answer")
    said = capsys.readouterr().out
    assert "b.ipynb" in said
    assert "a.ipynb" not in said


def test_a_page_that_both_changed_stays_the_students_and_the_teachers_is_beside_it(course):
    teacher, student, pull = course
    (student / "a.ipynb").write_text(notebook("mine", "2"))
    (teacher / "a.ipynb").write_text(notebook("1", "better"))
    pull()
    assert (student / "a.ipynb").read_text() == notebook("mine", "2")
    assert (student / "a.teacher.ipynb").read_text() == notebook("1", "better")
    (student / "a.ipynb").write_text(notebook("mine", "still"))
    (teacher / "a.ipynb").write_text(notebook("1", "even better"))
    pull()
    assert (student / "a.ipynb").read_text() == notebook("mine", "still")
    assert (student / "a.teacher.ipynb").read_text() == notebook("1", "even better")


def test_a_students_own_helpers_stay(course):
    teacher, student, pull = course
    (student / "helpers.py").write_text("x = 2\n")
    (teacher / "helpers.py").write_text("x = 3\n")
    pull()
    assert (student / "helpers.py").read_text() == "x = 2\n"


def test_a_new_page_with_the_name_of_a_students_own_takes_nothing(course):
    teacher, student, pull = course
    (student / "mine.ipynb").write_text(notebook("mine"))
    (teacher / "mine.ipynb").write_text(notebook("the teacher's"))
    pull()
    assert notebook("mine") in [path.read_text() for path in student.glob("mine*.ipynb")]


def test_a_page_that_the_student_deleted_comes_back_and_one_that_the_teacher_deleted_stays_if_changed(course):
    teacher, student, pull = course
    (student / "a.ipynb").unlink()
    (student / "b.ipynb").write_text(notebook("mine"))
    (teacher / "b.ipynb").unlink()
    pull()
    assert (student / "a.ipynb").read_text() == notebook("1", "2")
    assert (student / "b.ipynb").read_text() == notebook("mine")


def test_of_a_repository_what_git_knows_is_published_as_it_is_now(course):
    teacher, student, pull = course
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "--quiet"], cwd=teacher, check=True)
    subprocess.run([*git, "add", "a.ipynb", "b.ipynb"], cwd=teacher, check=True)
    (teacher / "a.ipynb").write_text(notebook("not committed"))
    (teacher / "solutions-for-me.txt").write_text("secret")
    pull()
    assert (student / "a.ipynb").read_text() == notebook("not committed")
    assert not (student / "solutions-for-me.txt").exists()
    status = subprocess.run(["git", "status", "--porcelain"], cwd=teacher, capture_output=True, text=True).stdout
    assert "A  b.ipynb" in status, "the teacher's own repository is as it was"
