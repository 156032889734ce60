"""The course's terms: each with its Chinese name, one sentence that says what it is, and where it is explained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# Next to the package in a checkout, inside it in a built wheel (setup.py).
FILE = (_PACKAGE if (_PACKAGE / "data").is_dir() else _PACKAGE.parent) / "data" / "glossary.json"


@dataclass(frozen=True)
class Term:
    """A term of the field. `notebook` is the two-digit number of the notebook that explains it."""

    term: str
    chinese: str
    definition: str
    notebook: str


def load_glossary() -> list[Term]:
    """All terms of `data/glossary.json`, in the order in which the course explains them.

    >>> load_glossary()[0].term, load_glossary()[0].chinese
    ('token', '词元')
    """
    return [Term(**entry) for entry in json.loads(FILE.read_text(encoding="utf-8"))]
