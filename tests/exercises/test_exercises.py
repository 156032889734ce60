"""`check`: right, what is off, or a friendly line; never a traceback for a reader's answer."""

import pytest
import torch
from transformers import Glm4vConfig, Glm4vModel

from helpers import exercises
from helpers.errors import BadInputError
from helpers.exercises.nb08 import _three_positions


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


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (5, 2), (1, 1)])
def test_positions_of_exercise_08_4_are_those_of_transformers(rows, columns):
    config, before, after = Glm4vConfig(), 3, 2
    with torch.device("meta"):
        model = Glm4vModel(config)
    ids = torch.tensor([[1] * before + [config.image_token_id] * (rows * columns) + [2] * after])
    kinds = (ids == config.image_token_id).int()
    found, _ = model.get_rope_index(ids, kinds, image_grid_thw=torch.tensor([[1, 2 * rows, 2 * columns]]))
    assert found[:, 0].tolist() == _three_positions(before, rows, columns, after, before + max(rows, columns))
