"""The book's files: every page is there, every link leads somewhere, every picture has its words."""

import functools
import html
import json
import re
from urllib.parse import unquote, urlsplit

import pytest

from pages import BOOK, PAGES, ROOT, Page

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
read_page = functools.cache(Page)

pytestmark = pytest.mark.skipif(not PAGES, reason="there is no book: `make book` makes it")


def test_every_notebook_every_page_and_every_face_has_its_page():
    expected = [f"notebooks/{path.stem}.html" for path in NOTEBOOKS]
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    expected += [f"pages/{page.with_suffix('.html')}" for page in pages if page.parts[0] not in ("_build", "book")]
    expected += [f"api/{path.parent.relative_to(ROOT)}/index.html" for path in (ROOT / "helpers").rglob("__init__.pyi")]
    expected += ["index.html", "glossary.html", "since_2024.html", "search.html"]
    assert [name for name in expected if name not in PAGES] == []


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_page_and_a_place_in_it(name):
    broken = []
    for link in read_page(name).links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            if parts.scheme not in ("http", "https", "mailto", "data") or not (parts.netloc or parts.path):
                broken.append(link)
            continue
        target = (BOOK / name).parent / unquote(parts.path) if parts.path else BOOK / name
        if not target.resolve().is_relative_to(BOOK) or not target.is_file():
            broken.append(link)
        elif parts.fragment and target.suffix == ".html":
            ids = read_page(target.resolve().relative_to(BOOK).as_posix()).ids
            broken += [link] if unquote(parts.fragment) not in ids else []
    assert broken == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_picture_of_a_notebook_has_its_words(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    pictures = [
        cell["metadata"].get("mystnb", {}).get("image", {}).get("alt")
        for cell in cells
        for output in cell.get("outputs", [])
        if {"image/png", "image/jpeg", "image/svg+xml"} & set(output.get("data", {}))
    ]
    assert all(pictures)
    assert read_page(f"notebooks/{path.stem}.html").alts == pictures


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebooks_page_offers_the_committed_notebook_and_says_how_to_open_it(path):
    (link,) = [link for link in read_page(f"notebooks/{path.stem}.html").links if link.endswith(".ipynb")]
    assert (BOOK / "notebooks" / link).read_bytes() == path.read_bytes()
    text = (BOOK / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
    about = re.search(r'<div class="about-this-page[^>]*>(.*?)</div>', text, re.DOTALL)[1]
    about = re.sub(r"<[^>]+>", "", about)
    assert "make lab" in about
    assert f"notebooks/{path.name}" in about
    assert re.search(r"Last changed \d{4}-\d\d-\d\d; .*transformers \d+\.\d+\.\d+ and torch \d", about, re.DOTALL)


@pytest.mark.parametrize("face", ["", *(path.parent.name for path in (ROOT / "helpers").glob("*/__init__.pyi"))])
def test_every_public_name_is_described(face):
    stub = (ROOT / "helpers" / face / "__init__.pyi").read_text(encoding="utf-8")
    names = re.findall(r"^from \S+ import \w+ as (\w+)$", stub, re.MULTILINE)
    package = ".".join(filter(None, ("helpers", face)))
    ids = read_page("/".join(filter(None, ("api/helpers", face, "index.html")))).ids
    assert names
    assert [name for name in names if f"{package}.{name}" not in ids] == []


def test_every_claim_and_every_table_about_2024_is_gathered():
    page = (BOOK / "since_2024.html").read_text(encoding="utf-8")
    words = re.sub(r"\W", "", html.unescape(re.sub(r"<[^>]+>", "", page)))
    cells = [cell for path in NOTEBOOKS for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    claims, tables = [], 0
    for cell in cells:
        source = "".join(cell["source"])
        tables += cell["cell_type"] == "markdown" and "| in 2024 |" in source
        if cell["cell_type"] == "code" and "since_2024(" in source:
            printed = "".join("".join(output.get("text", "")) for output in cell["outputs"])
            claims += re.findall(r"^(?:✓ (?:Now: )?|  )(.+)$", printed, re.MULTILINE)
    assert len(claims) > 20
    assert [claim for claim in claims if re.sub(r"\W", "", claim) not in words] == []
    assert page.count("<table") == tables
