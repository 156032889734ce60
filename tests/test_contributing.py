"""CONTRIBUTING.md's steps are followed: what it says to write is written, and does what it says."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
NEW = re.compile(r"42|my_|my-")  # what the steps make, so it is not there yet


def _section(title):
    return re.search(rf"^## {title}\n(.*?)(?=^## )", TEXT, re.MULTILINE | re.DOTALL)[1]


def _code(title):
    """The python blocks of a section, run one after the other; what they define."""
    defined = {}
    for block in re.findall(r"^ *```python\n(.*?)^ *```", _section(title), re.MULTILINE | re.DOTALL):
        lines = block.splitlines()
        indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        exec("\n".join(line[indent:] for line in lines), defined)
    return defined


def test_every_path_and_every_target_it_names_is_there():
    paths = re.findall(r"`((?:helpers|tests|notebooks|docs|data|\.github)/[\w./-]*)`", TEXT)
    assert len(paths) >= 10
    assert [path for path in paths if not NEW.search(path) and not (ROOT / path).exists()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"\bmake ([a-z-]+)", TEXT)
    assert [target for target in targets if f"\n{target}: " not in makefile] == []


def test_the_picture_of_the_house_shows_every_room_and_every_module_beside():
    picture = re.search(r"```\n(.*?)```", _section("The house"), re.DOTALL)[1]
    rooms = [path.parent.name + "/" for path in (ROOT / "helpers").glob("*/__init__.py")]
    beside = [path.name for path in (ROOT / "helpers").glob("*.py") if path.name not in ("__init__.py", "sources.py")]
    assert [name for name in rooms + beside if name not in picture] == []


def test_the_picture_stacks_the_rooms_as_the_imports_do():
    from test_rooms import BELOW

    picture = re.search(r"```\n(.*?)```", _section("The house"), re.DOTALL)[1]
    order = ["exercises", "views", "batch", "conversation", "inside", "text", "models", "errors"]
    places = [re.search(rf"\b{name}(?:/|\.py)", picture).start() for name in order]
    assert places == sorted(places)
    for at, name in enumerate(order):
        assert not BELOW[name] & set(order[:at]), name


def test_an_exercise_is_added_in_its_steps(monkeypatch, capsys):
    from helpers import check, exercises

    monkeypatch.setattr(exercises, "_CHECKS", dict(exercises._CHECKS))
    monkeypatch.setitem(sys.modules, "helpers.exercises.nb42", ModuleType("nb42"))
    defined = _code("Add an exercise")
    (wrong, says), *_ = defined["WRONG_ANSWERS"]["42.1"]
    answers = {}
    exec(wrong, answers)
    check("42.1", answers["answer_1"])
    assert says in capsys.readouterr().out
    check("42.1", 30)
    assert "Exercise 42.1: right!" in capsys.readouterr().out


def test_a_notebook_is_added_in_its_steps(tmp_path, monkeypatch):
    """`make new` gives a notebook of the right shape, whose exercise is the one above."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "notebooks"))
    import new
    from course import exercises, read

    (name,) = re.findall(r"make new NAME=(\w+)", _section("Add a notebook"))
    monkeypatch.setattr(new, "NOTEBOOKS", [tmp_path / "41_before.ipynb"])
    assert new.main([name]) is None
    assert [exercise for exercise, *_ in exercises(read(tmp_path / f"{name}.ipynb"))] == ["42.1"]


def test_a_model_is_added_in_its_steps(monkeypatch):
    from helpers.models import catalog, find_card, memory_plan, parameter_groups

    card = _code("Add a model")["card"]
    monkeypatch.setitem(catalog._CARDS, card.name, card)
    assert find_card("my-model") is card
    assert sum(parameter_groups(card).values()) == card.parameters
    assert memory_plan("my-model", device="cpu").weights_bytes > 0


def test_a_view_is_added_in_its_steps(new_tiny):
    from matplotlib import pyplot

    from helpers import logit_lens, trace
    from helpers.models import load_tokenizer

    model = new_tiny("Llama")
    tokenizer = load_tokenizer("smollm2-135m")
    lens = logit_lens(model, trace(model, tokenizer, torch.tensor([[1, 2, 3]])))
    ax = _code("Add a view")["plot_entropy"](lens)
    assert ax.get_title() and ax.get_xlabel() and ax.get_ylabel()
    assert len(ax.lines[0].get_ydata()) == 4  # the embedding and three layers
    pyplot.close(ax.figure)


@pytest.mark.parametrize("title", ["Add an exercise", "Add a notebook", "Add a model", "Add a view"])
def test_a_few_steps_each(title):
    assert 3 <= len(re.findall(r"^\d\. ", _section(title), re.MULTILINE)) <= 5
