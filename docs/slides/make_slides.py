"""Slides of every notebook, for a room: `make slides` writes docs/_slides/NN.html, which need no network.

Nothing is written for them: the sections, predictions, figures and recaps are taken from the committed notebooks. What
stands between two of them in the notebook goes into the speaker's notes (press S).
"""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader
from nbconvert.filters.markdown_mistune import markdown2html_mistune

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SLIDES = ROOT / "docs" / "_slides"
NODE_MODULES = ROOT / "tests" / "javascript" / "node_modules"
LIBRARIES = {"reveal": NODE_MODULES / "reveal.js" / "dist", "notes": NODE_MODULES / "reveal.js" / "plugin" / "notes"}
PICTURES = ("image/svg+xml", "image/png", "image/jpeg")
STRIP = "<title>You are here"  # a small drawing under a section's heading: too little for a slide
FOLD = re.compile(r"<details>.*?</details>", re.DOTALL)
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]*\)")  # to another notebook: a slide has none beside it
ANCHOR = re.compile(r'<a class="anchor-link".*?</a>')
SECTION = re.compile(r"^(?=## )", re.MULTILINE)
MOST_WORDS = 90  # words of a section's beginning that fit on a slide


@dataclass
class Slide:
    """A slide: its `kind` (title, section, predict, figure, notice or recap), and `notes` for the speaker."""

    kind: str
    html: str
    notes: str = ""


def slides(notebook: dict[str, Any]) -> Iterator[Slide]:
    """The slides of a notebook, in its order; prose that gets no slide goes into the notes of the one before it."""
    made: list[Slide] = []
    for number, cell in enumerate(notebook["cells"]):
        found = slides_of(cell, first=number == 0)
        if found and found[0].kind == "notice" and made and made[-1].kind != "figure":
            made[-1].notes += found.pop(0).html  # there is no figure to look at
        elif not found and made and cell["cell_type"] == "markdown":
            made[-1].notes += to_html(source(cell))
        made += found
    yield from made


def slides_of(cell: dict[str, Any], *, first: bool) -> list[Slide]:
    """The slides that a cell deserves: none, one, or two where a prediction stands under a heading."""
    if cell["cell_type"] == "code":
        picture = picture_of(cell)
        return [Slide("figure", picture)] if picture else []
    lines = FOLD.sub("", source(cell)).strip().splitlines()
    predicts = any("**Predict.**" in line for line in lines)
    box = [line for line in lines if predicts and line.startswith(">")]
    text = "\n".join(line for line in lines if line not in box)
    parts = [text] if first else SECTION.split(text)
    made = [(part, slides_of_prose(part.strip(), first=first)) for part in parts]
    found = [slide for _, own in made for slide in own]
    if box:  # prose that got no slide of its own leads up to the question
        before = "\n\n".join(part for part, own in made if not own)
        found.append(Slide("predict", to_html("\n".join(box)), to_html(before)))
    return found


def slides_of_prose(text: str, *, first: bool) -> list[Slide]:
    """The slide of a section's beginning, of a recap or of what to notice, if the text is one of these."""
    if first:
        return [title_slide(text)]
    if text.startswith("## Exercises"):
        return [Slide("section", to_html("## Exercises\n\nOpen the notebook: `check` judges your answers."))]
    if text.startswith("## Recap"):
        return [Slide("recap", to_html(text))]
    if text.startswith("## "):
        heading, _, rest = text.partition("\n")
        beginning, left = first_paragraph(rest)
        return [Slide("section", to_html(f"{heading}\n\n{beginning}"), to_html(left))]
    return [Slide("notice", to_html(text))] if text.startswith("**What to notice**") else []


def title_slide(text: str) -> Slide:
    """The notebook's name and first paragraph; the rest of its first cell is for the notes."""
    heading, _, rest = text.partition("\n")
    beginning, left = first_paragraph(rest)
    return Slide("title", to_html(f"{heading}\n\n{beginning}"), to_html(left))


def first_paragraph(text: str) -> tuple[str, str]:
    """(the first paragraph, the rest); a paragraph that is too long for a slide is left to the rest."""
    beginning, _, rest = text.strip().partition("\n\n")
    if len(beginning.split()) > MOST_WORDS or beginning.startswith(("#", "|")):
        return "", text
    return beginning, rest


def picture_of(cell: dict[str, Any]) -> str:
    """The first picture among a cell's outputs as HTML, with its alternative text; "" where there is none."""
    alt = html.escape(cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", ""))
    for output in cell["outputs"]:
        for kind in PICTURES:
            data = output.get("data", {}).get(kind)
            if data is not None and STRIP not in "".join(data):
                data = "".join(data)
                coded = base64.b64encode(data.encode()).decode() if kind == "image/svg+xml" else data.replace("\n", "")
                return f'<img alt="{alt}" src="data:{kind};base64,{coded}">'
    return ""


def source(cell: dict[str, Any]) -> str:
    """A cell's text, without links that lead to other notebooks."""
    return LINK.sub(r"\1", "".join(cell["source"]))


def to_html(text: str) -> str:
    """Markdown as HTML, without the marks beside headings that link to them."""
    return ANCHOR.sub("", markdown2html_mistune(text.strip())) if text.strip() else ""


def main(folder: Path = SLIDES) -> None:
    """Write the slides of all notebooks into a folder, and the libraries beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, library in LIBRARIES.items():
        if not library.is_dir():
            sys.exit(f"{library} is not there: run make slides, which fetches it.")
        shutil.copytree(library, folder / name, dirs_exist_ok=True)
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True)
    template = environment.get_template("slides.html")
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        title = "".join(notebook["cells"][0]["source"]).splitlines()[0].lstrip("# ")
        page = template.render(title=title, slides=list(slides(notebook)))
        (folder / f"{path.stem}.html").write_text(page, encoding="utf-8")
    print(f"Open one of {folder}/*.html; S opens the speaker's notes, F fills the screen.")


if __name__ == "__main__":
    main()
