"""Every solution passes its check, every wrong answer is told what is off, the unanswered one runs clean."""

import nbformat
import pytest
from nbclient import NotebookClient

from course import NOTEBOOKS, exercises, read, tags
from wrong_answers import WRONG_ANSWERS

MINIMUM = {"00": 3, "01": 3, "02": 3, "03": 3, "10": 3}


def _with_answers(notebook):
    """A notebook in which each exercise is tried wrong, then solved; and what each check should print."""
    cells, expected = list(notebook.cells), []
    for name, at, check_at, solution in reversed(exercises(notebook)):
        tries = [*WRONG_ANSWERS.get(name, []), (solution, "right!")]
        group = []
        for code, message in tries:
            check = nbformat.v4.new_code_cell(notebook.cells[check_at].source, metadata={"tags": ["tried"]})
            group += [nbformat.v4.new_code_cell(code), check]
            expected.append((name, code, message, check))
        cells[at : check_at + 1] = group
    return nbformat.v4.new_notebook(cells=cells), expected


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_solutions_are_right_and_wrong_answers_are_told_what_is_off(path):
    notebook, expected = _with_answers(read(path))
    needed = MINIMUM.get(path.name[:2], 4)
    names = {name for name, *_ in expected}
    assert len(names) >= needed, f"{path.name} has {len(names)} exercises, it should have {needed}"
    missing = sorted(name for name in names if not WRONG_ANSWERS.get(name))
    assert not missing, f"no wrong answer in wrong_answers.py for {missing}"
    if not expected:
        return
    notebook.cells = [cell for cell in notebook.cells if "skip-in-exercise-test" not in tags(cell)]
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    for name, code, message, check in expected:
        printed = "".join(output.get("text", "") for output in check.outputs)
        assert f"Exercise {name}:" in printed and message in printed, f"{name} answered\n{code}\nprints: {printed}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_unanswered_exercise_says_nothing_scary(path):
    notebook = read(path)
    for name, _, check_at, _ in exercises(notebook):
        printed = "".join(output.get("text", "") for output in notebook.cells[check_at].outputs)
        assert "not answered yet" in printed, f"{name} prints {printed!r}"
