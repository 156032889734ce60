"""`check`: right, what is off, or a friendly line; never a traceback for a reader's answer."""

import pytest
import torch

from helpers import exercises
from helpers.errors import BadInputError


@pytest.fixture(autouse=True)
def sample(monkeypatch):
    """Two exercises of a notebook 99."""
    monkeypatch.setattr(exercises, "_CHECKS", {})
    monkeypatch.setattr(exercises.importlib, "import_module", lambda name: None)

    @exercises.exercise("99.1", expects=int)
    def _(answer):
        exercises.require(answer > 41, "it is larger.")
        return "42 it is."

    @exercises.exercise("99.2", expects=exercises.Callable)
    def _(answer):
        exercises.require(answer(2) == 4, "of 2 it gives 4.")
        return "It doubles."


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("99.1", 42, "right! 42 it is."),
        ("99.1", 3, "not yet: it is larger."),
        ("99.1", "42", "should be a whole number"),
        ("99.1", True, "should be a whole number"),
        ("99.1", ..., "not answered yet"),
        ("99.1", None, "not answered yet"),
        ("99.2", lambda x: x + 2, "right!"),
        ("99.2", lambda x: x, "of 2 it gives 4"),
        ("99.2", lambda x: 1 / 0, "raised ZeroDivisionError"),
        ("99.2", lambda: 1, "raised TypeError"),
        ("99.2", 5, "should be a function"),
    ],
)
def test_check_says(capsys, name, answer, says):
    exercises.check(name, answer)
    assert says in capsys.readouterr().out


def test_an_exercise_there_is_not():
    with pytest.raises(BadInputError, match=r"there are: 99\.1, 99\.2"):
        exercises.check("99.7", 1)


def test_tensors_are_made_on_the_cpu_whatever_device_the_notebook_set(capsys):
    torch.set_default_device("meta")
    try:
        exercises.check("99.2", lambda x: 4 if torch.ones(1).device.type == "cpu" else 0)
    finally:
        torch.set_default_device(None)
    assert "right!" in capsys.readouterr().out
