"""Every notebook is run once, and shows what is committed; then, in the same kernel, its exercises are tried.

Each exercise gets every wrong answer of `wrong_answers.py`, which its check must tell what is off, and then the
notebook's own solution, which must be right.
"""

import copy

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from comparing import differences
from course import NOTEBOOKS, execute, exercises, read
from wrong_answers import WRONG_ANSWERS

MINIMUM = {"00": 3, "01": 3, "02": 3, "03": 3, "10": 3}


def _tries(notebook):
    """(exercise, code of the answer, words its check must print, check cell) of every answer, wrong ones first."""
    return [
        (name, code, words, new_code_cell(notebook.cells[check_at].source))
        for name, _, check_at, solution in exercises(notebook)
        for code, words in [*WRONG_ANSWERS.get(name, []), (solution, "right!")]
    ]


def _misjudged(tries):
    """A paragraph for each answer whose check, having run, printed something else."""
    found = []
    for name, code, words, check in tries:
        printed = "".join(output.get("text", "") or output.get("evalue", "") for output in check.outputs)
        if f"Exercise {name}:" not in printed or words not in printed:
            found.append(f"exercise {name}, answered\n{code}\nprints: {printed!r}\nand should say: {words!r}")
    return found


def _problems(committed, folder):
    """What is wrong with a notebook, a paragraph each: cells that show something else, answers that are misjudged."""
    notebook, tries = copy.deepcopy(committed), _tries(committed)
    for name, code, _, check in tries:
        notebook.cells += [new_code_cell(code, metadata={"tags": [f"answer-{name}"]}), check]
    execute(notebook, folder, allow_errors=True)  # all cells are run, so that one run tells everything
    return differences(committed, notebook) + _misjudged(tries)


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_shows_what_is_committed_and_its_exercises_are_judged_rightly(path):
    problems = _problems(read(path), path.parent)
    assert not problems, f"{path.name}:\n\n" + "\n\n".join(problems)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_there_are_exercises_and_wrong_answers_to_each(path):
    names = [name for name, *_ in exercises(read(path))]
    needed = MINIMUM.get(path.name[:2], 4)
    assert len(names) >= needed, f"{path.name} has {len(names)} exercises, it should have {needed}"
    missing = sorted(name for name in names if not WRONG_ANSWERS.get(name))
    assert not missing, f"no wrong answer in wrong_answers.py for {missing}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_unanswered_exercise_says_nothing_scary(path):
    notebook = read(path)
    for name, _, check_at, _ in exercises(notebook):
        printed = "".join(output.get("text", "") for output in notebook.cells[check_at].outputs)
        assert "not answered yet" in printed, f"{name} prints {printed!r}"


# ---------------------------------------------------------------- the comparison itself finds what it should


def _cell(*outputs, tags=()):
    return new_code_cell("source", outputs=list(outputs), metadata={"tags": list(tags)})


def _result(text="3", **more):
    return new_output("execute_result", {"text/plain": text} | more)


def _stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def _error(message):
    return new_output("error", ename="ValueError", evalue=message, traceback=["at line 1"])


PICTURE = new_output("display_data", {"image/png": "abc", "text/plain": "<Figure>"})


@pytest.mark.parametrize(
    ("committed", "run", "complaint"),
    [
        (_cell(_result("3")), _cell(_result("4")), "'4'"),
        (_cell(_result("3")), _cell(), "-[execute_result text/plain]"),
        (_cell(), _cell(_result("3")), "+[execute_result text/plain]"),
        (_cell(_stream("a\nb\n")), _cell(_stream("a\nc\n")), r"+'c\n'"),
        (_cell(_stream("a\n")), _cell(_stream("a")), "+'a'"),
        (_cell(_stream("3"), _result()), _cell(_result(), _stream("3")), "[stdout]"),
        (_cell(_result(**{"text/html": "<b>1</b>"})), _cell(_result(**{"text/html": "<b>2</b>"})), "<b>2</b>"),
        (_cell(_result()), _cell(new_output("display_data", {"text/plain": "3"})), "+[display_data text/plain]"),
        (_cell(PICTURE), _cell(new_output("display_data", {"text/plain": "<Figure>"})), "-[display_data image/png]"),
        (_cell(), _cell(_stream("careful", "stderr")), "+[stderr]"),
        (_cell(_error("no")), _cell(_error("no")), "raised ValueError: no"),
        (_cell(tags=["nbval-ignore-output"]), _cell(_error("no")), "raised ValueError: no"),
        (_cell(_error("no"), tags=["raises-exception"]), _cell(_error("yes")), "+'yes'"),
    ],
)
def test_a_difference_is_named_with_its_cell(committed, run, complaint):
    (found,) = differences(new_notebook(cells=[committed]), new_notebook(cells=[run]))
    assert found.startswith("cell 1:\nsource\n")
    assert complaint in found


@pytest.mark.parametrize(
    ("committed", "run"),
    [
        (_cell(_stream("a\n"), _result()), _cell(_stream("a\n"), _result())),
        (_cell(PICTURE), _cell(new_output("display_data", {"image/png": "xyz", "text/plain": "<Figure>"}))),
        (_cell(new_output("display_data", {"image/jpeg": "xyz", "text/plain": "<Figure>"})), _cell(PICTURE)),
        (_cell(_result("1 s"), tags=["nbval-ignore-output"]), _cell(_result("2 s"), PICTURE)),
        (_cell(_error("no"), tags=["raises-exception"]), _cell(_error("no"))),
    ],
)
def test_what_is_the_same_or_may_differ_is_none(committed, run):
    assert differences(new_notebook(cells=[committed]), new_notebook(cells=[run])) == []


def test_a_run_tells_of_every_cell_and_every_answer(tmp_path, monkeypatch):
    """A small notebook in a real kernel: one cell right, two wrong, one answer judged otherwise than expected."""
    fold = "<details><summary>Solution</summary>\n\n```python\nanswer = 1\n```\n\n</details>"
    cells = [
        new_code_cell(
            "def check(name, answer):\n    print(f'Exercise {name}: ' + ('right!' if answer == 1 else 'no'))"
        ),
        new_code_cell("1 + 1", outputs=[_result("2")]),
        new_code_cell("1 + 2", outputs=[_result("4")]),
        new_code_cell("1 / 0"),
        new_code_cell("answer = 1", metadata={"tags": ["exercise"]}),
        new_code_cell('check("42.1", answer)', outputs=[_stream("Exercise 42.1: right!\n")]),
        new_markdown_cell(fold),
    ]
    monkeypatch.setitem(WRONG_ANSWERS, "42.1", [("answer = 2", "no"), ("answer = 1", "no")])
    wrong, raised, misjudged = _problems(new_notebook(cells=cells), tmp_path)
    assert wrong.startswith("cell 3:") and "+'3'" in wrong
    assert raised.startswith("cell 4:") and "ZeroDivisionError" in raised
    assert misjudged.startswith("exercise 42.1, answered\nanswer = 1\nprints: 'Exercise 42.1: right!")
