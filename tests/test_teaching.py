"""The teacher's pages: one for each notebook, as the notebooks are now, speaking of sections that there are."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "room"))

import teaching  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


@pytest.mark.parametrize("name", [f"{path.name[:2]}.md" for path in NOTEBOOKS])
def test_a_notebooks_page_is_as_make_teaching_writes_it(name):
    committed = (teaching.PAGES / name).read_text(encoding="utf-8")
    assert committed == teaching.pages()[name], "the notebook has changed: run make teaching"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_sections_and_exercises_that_a_page_names_are_in_the_notebook(path):
    told = teaching.tomllib.loads((teaching.HERE / "teaching.toml").read_text(encoding="utf-8"))[path.name[:2]]
    text = path.read_text(encoding="utf-8")
    sections = {int(number) for number in re.findall(r'"## (\d+)\.', text)}
    said = " ".join([told["short"], told["half_day"], told["two_days"], *(helps for _, helps in told["wrong"])])
    numbers = re.findall(r"[Ss]ections? ((?:\d+)(?:(?:, | and | to )\d+)*)", said)
    assert {int(number) for run in numbers for number in re.findall(r"\d+", run)} <= sections
    for exercise in re.findall(r"\d\d\.\d+", said):
        assert f'check(\\"{exercise}\\"' in text
