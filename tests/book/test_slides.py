"""The slides of `make slides`: what a room needs is on them, answers are not, and they need no network."""

import json
import re
import sys

import pytest

from pages import ROOT

sys.path.insert(0, str(ROOT / "docs" / "slides"))

import make_slides

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def _cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def _slides(path):
    return list(make_slides.slides(json.loads(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_prediction_and_every_figure_has_a_slide(path):
    kinds = [slide.kind for slide in _slides(path)]
    texts = ["".join(cell["source"]) for cell in _cells(path) if cell["cell_type"] == "markdown"]
    pictures = [cell for cell in _cells(path) if cell["cell_type"] == "code" and make_slides.picture_of(cell)]
    assert kinds.count("predict") == sum("> **Predict.**" in text for text in texts)
    assert kinds.count("figure") == len(pictures)
    assert kinds[0] == "title" and kinds.count("recap") == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_answer_that_is_folded_in_the_notebook_is_on_a_slide(path):
    shown = "".join(slide.html for slide in _slides(path))
    assert "<details" not in shown
    assert not re.search(r'href="(?!https?:)', shown), "a link to a file that is not beside the slides"


def test_prose_between_two_slides_is_in_the_speakers_notes():
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# A\n", "\n", "First.\n", "\n", "Second."]},
        {"cell_type": "markdown", "metadata": {}, "source": ["Third, [there](01_x.ipynb)."]},
        {"cell_type": "markdown", "metadata": {}, "source": ["**What to notice**\n", "- no figure"]},
        {
            "cell_type": "markdown",
            "metadata": {},
            "source": ["Lead.\n", "\n", "> **Predict.** What?\n", "\n", "<details>4</details>"],
        },
    ]
    title, predict = make_slides.slides({"cells": cells})
    assert "First" in title.html and "Second" not in title.html
    assert "Second" in title.notes and "Third, there." in title.notes and "no figure" in title.notes
    assert predict.kind == "predict" and "4" not in predict.html and "Lead." in predict.notes


def test_the_slides_open_without_a_network(tmp_path, browser):
    page = browser.new_page()
    make_slides.main(tmp_path)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "03_generate_internals.html").as_uri())
    page.wait_for_function("Reveal.isReady()")
    assert page.evaluate("Reveal.getTotalSlides()") == len(_slides(NOTEBOOKS[3]))
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
