"""`make new`: the template has the shape that is asked for, and names that cannot work are refused."""

import nbformat
import pytest

import new
from course import exercises, read


def test_the_template_is_a_whole_notebook_with_an_exercise():
    notebook = new.template("42_my_topic")
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith("# 42. My topic")
    assert [name for name, *_ in exercises(notebook)] == ["42.1"]


def test_main_writes_it_beside_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(new, "NOTEBOOKS", [tmp_path / "41_before.ipynb"])
    assert new.main(["42_my_topic"]) is None
    assert "42_my_topic.ipynb is written" in capsys.readouterr().out
    assert "(41_before.ipynb)" in read(tmp_path / "42_my_topic.ipynb").cells[0].source
    assert "already there" in new.main(["42_my_topic"])


@pytest.mark.parametrize("arguments", [[], ["my_topic"], ["1_topic"], ["11_My-Topic"], ["11_../../x"]])
def test_other_names_are_refused(arguments):
    assert "two digits" in new.main(arguments)
