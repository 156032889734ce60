"""Write the folder of sources from which Sphinx makes the book: `python docs/book/assemble.py`.

Nothing in it is written by hand: pages of the notebooks as they were committed, the glossary of `data/glossary.json`,
what has changed since 2024 as the notebooks checked it, the pages of `docs/`, and the package's public faces.
"""

from __future__ import annotations

import ast
import datetime
import json
import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "docs" / "_build"
SOURCES = BUILD / "sources"
STATIC = BUILD / "static"
WORDS = BUILD / "words.txt"
MATHJAX = ROOT / "tests" / "javascript" / "node_modules" / "mathjax" / "es5"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
NOT_PAGES = shutil.ignore_patterns("_*", "book", "node_modules")
STUBS = sorted((ROOT / "helpers").rglob("__init__.pyi"))
FACES = {".".join(stub.parent.relative_to(ROOT).parts) for stub in STUBS}
FACES |= {"helpers.glm", "helpers.exercises", "helpers.errors"}  # without a stub
CHINESE = re.compile(r"[\u3400-\u9fff]+")
CLAIM = re.compile(r"^✓ (?:Now: )?(.+(?:\n  .+)*)", re.MULTILINE)  # with what was in 2024, and why, below it
SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\((?=\d\d_\w+\.ipynb)")  # to another notebook, from its own folder
SINCE_2024 = re.compile(
    r"^(?:### What has changed since 2024\?|\*\*Since 2024\.?\*\*) *\n*(.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL
)


def main() -> None:
    """All sources, anew."""
    shutil.rmtree(SOURCES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", SOURCES / "pages", ignore=NOT_PAGES)  # with the files that they link to
    for folder in ("notebooks", "downloads"):
        (SOURCES / folder).mkdir()
    glossary = json.loads((ROOT / "data" / "glossary.json").read_text(encoding="utf-8"))
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        add_about(notebook, path)
        shutil.copy(path, SOURCES / "downloads")
        write(SOURCES / "notebooks" / path.name, json.dumps(notebook, ensure_ascii=False))
    for page in (SOURCES / "pages").rglob("*.md"):
        changed = date_of(ROOT / "docs" / page.relative_to(SOURCES / "pages"))
        write(page, f"{page.read_text(encoding='utf-8')}\n{about(f'Last changed {changed}.')}")
    shutil.copy(ROOT / "data" / "pictures" / "stepper.png", SOURCES)
    write(SOURCES / "index.md", (ROOT / "docs" / "book" / "index.md").read_text(encoding="utf-8"))
    write(SOURCES / "glossary.md", glossary_page(glossary))
    write(SOURCES / "since_2024.md", since_2024_page(NOTEBOOKS))
    write(WORDS, words_to_find(glossary))
    copy_faces(SOURCES / "helpers")
    copy_mathjax(STATIC / "mathjax")


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def version_of_course() -> str:
    """The version that pyproject.toml states."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def locked(package: str) -> str:
    """The version of `package` with which the committed outputs were made."""
    (version,) = re.findall(rf"^{package}==([^ ;\n]+)", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE)
    return version


def date_of(path: Path) -> str:
    """The day of the file's last commit, as 2026-11-26; outside a clone, the day on which the file was written."""
    if (ROOT / ".git").exists():
        command = ["git", "log", "-1", "--format=%cs", "--", str(path)]
        if committed := subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip():
            return committed
    return datetime.date.fromtimestamp(path.stat().st_mtime).isoformat()


def about(text: str) -> str:
    """A paragraph about the page itself, in smaller type."""
    return f":::{{container}} about-this-page\n{text}\n:::\n"


def add_about(notebook: dict, path: Path) -> None:
    """A paragraph below the title: the notebook to download, how to open it, its date and its versions."""
    text = (
        f"[Download this notebook](path:../downloads/{path.name}) or, in your own copy of the course, run `make lab` "
        f"and open `notebooks/{path.name}`. Last changed {date_of(path)}; the outputs come from transformers "
        f"{locked('transformers')} and torch {locked('torch')}."
    )
    title, _, rest = "".join(notebook["cells"][0]["source"]).partition("\n")
    notebook["cells"][0]["source"] = f"{title}\n\n{about(text)}\n{rest}"


def glossary_page(terms: list[dict]) -> str:
    """Every term with its Chinese name, what it means, and the notebook that explains it."""
    pages = {path.name[:2]: path.name for path in NOTEBOOKS}
    entries = [
        f"{term['term']}\n: **{term['chinese']}**. {term['definition']} "
        f"Explained in [notebook {term['notebook']}](notebooks/{pages[term['notebook']]}).\n"
        for term in sorted(terms, key=lambda term: term["term"].casefold())
    ]
    intro = "Each term of the course, its Chinese name, and the notebook that explains it. The search finds both names."
    return f"# Glossary\n\n{intro}\n\n" + "\n".join(entries)


def words_to_find(terms: list[dict]) -> str:
    """The glossary's Chinese names, one a line, for the search: its own dictionary would cut them into pieces."""
    names = {name for term in terms for name in CHINESE.findall(term["chinese"]) if len(name) > 1}
    return "".join(f"{name} 100000\n" for name in sorted(names))


@dataclass(frozen=True)
class Change:
    """What a section of a notebook says has changed since 2024: in words, and as claims that its cells checked."""

    page: str
    section: str
    words: list[str]
    claims: list[str]


def changes(path: Path) -> list[Change]:
    """The sections of a notebook that say what has changed since 2024."""
    found: list[Change] = []
    section = ""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        words, claims = [], []
        if cell["cell_type"] == "markdown":
            section = (SECTION.findall(source) or [section])[-1]
            words = [LINK.sub("](notebooks/", text).strip() for text in passages(source)]
        elif "since_2024(" in source:
            printed = "".join("".join(output.get("text", "")) for output in cell["outputs"])
            claims = CLAIM.findall(printed)
        if words or claims:
            if not found or found[-1].section != section:
                found.append(Change(path.name, section, [], []))
            found[-1].words.extend(words)
            found[-1].claims.extend(claims)
    return found


def passages(source: str) -> list[str]:
    """What a cell's text says about 2024: below that title, or the whole section that has a table of then and now."""
    if "| in 2024 |" in source:
        return SINCE_2024.findall(source) or [SECTION.split(source)[-1]]
    return SINCE_2024.findall(source)


def since_2024_page(paths: list[Path]) -> str:
    """Every "what has changed since 2024" of the notebooks, by notebook and section."""
    text = (
        "# What has changed since 2024\n\nThe two walkthroughs that this course follows were written for the "
        "`transformers` of 2024 (4.41 or close to it). This page gathers what has changed since then, and each title "
        "leads to the section of the notebook that explains it. Each point of a list is a claim that a cell there "
        f"checks, here with transformers {locked('transformers')}.\n"
    )
    for path in paths:
        for number, change in enumerate(changes(path)):
            if number == 0:
                text += f"\n## Notebook {path.name[:2]}\n"
            text += f"\n### [{change.section}](notebooks/{change.page}#{anchor(change.section)})\n\n"
            text += "".join(f"{words}\n\n" for words in change.words)
            text += "".join(f"- {claim}\n" for claim in map(points, change.claims))
    return text


def anchor(title: str) -> str:
    """The name by which a page's section is linked to, made of its title."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def points(claim: str) -> str:
    """A claim as it was printed, with what was in 2024 and why as points of their own below it."""
    now, *more = code_names(claim).split("\n  ")
    return "\n".join([now, *(f"    - {line.replace('2024:', 'In 2024:')}" for line in more)])


def code_names(claim: str) -> str:
    """A claim with the names of code in it set as code: words with an underscore, a dot inside or a bracket."""
    return re.sub(r"(?<![\w`])(\w+(?:\.\w+)+(?:\(\))?|\w*_\w*(?:\(\))?|\w+\(\))(?![\w`])", r"`\1`", claim)


def copy_faces(folder: Path) -> None:
    """The package's sources; each face with the names of its stub, which autoapi does not read together otherwise."""
    shutil.copytree(ROOT / "helpers", folder, ignore=shutil.ignore_patterns("__pycache__", "js", "*.css"))
    for stub in folder.rglob("__init__.pyi"):
        docstring = ast.get_docstring(ast.parse(stub.with_suffix(".py").read_text(encoding="utf-8")))
        write(stub.with_suffix(".py"), f'"""{docstring}"""\n{stub.read_text(encoding="utf-8")}')
        stub.unlink()


def copy_mathjax(folder: Path) -> None:
    """MathJax for formulas in the browser: its one program and its fonts (1.5 MB)."""
    shutil.rmtree(folder, ignore_errors=True)
    fonts = Path("output", "chtml", "fonts")
    shutil.copytree(MATHJAX / fonts, folder / fonts)
    shutil.copy(MATHJAX / "tex-chtml.js", folder)


if __name__ == "__main__":
    main()
