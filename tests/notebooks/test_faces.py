"""Notebooks import from the front door and from the rooms' faces only, and only names that these promise."""

import ast
import importlib
import re

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from course import NOTEBOOKS, read

FACES = (
    "helpers",
    "helpers.models",
    "helpers.text",
    "helpers.inside",
    "helpers.batch",
    "helpers.glm",
    "helpers.glm.tiny",
    "helpers.views",
)


def _imports(source):
    """[(module, name)] of the imports from this package; (module, None) of `import module`."""
    found = []
    for node in ast.walk(ast.parse(TransformerManager().transform_cell(source))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            found += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
    return [(module, name) for module, name in found if module.partition(".")[0] == "helpers"]


def deep(source):
    """A sentence for each import that goes past a face or takes a name that it does not hand on."""
    return [
        f"{module} is not a face: import {name or 'it'} from one of {', '.join(FACES)}"
        if module not in FACES
        else f"{module} promises no {name}: see its __init__.pyi"
        for module, name in _imports(source)
        if module not in FACES or (name is not None and name not in importlib.import_module(module).__all__)
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_import_from_the_faces(path):
    notebook = read(path)
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code":
            assert deep(cell.source) == [], f"cell {number}"
        for line in re.findall(r"^\s*(?:>>> )?(from helpers[\w.]* import [\w, ]+)$", cell.source, re.MULTILINE):
            assert deep(line) == [], f"cell {number}"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("from helpers import load_model\nfrom helpers.inside import Trace\nimport helpers", []),
        ("%matplotlib inline\nimport helpers.inside.lens", ["helpers.inside.lens is not a face"]),
        ("from helpers.inside.lens import logit_lens", ["helpers.inside.lens is not a face"]),
        ("if True:\n    from helpers import Trace", ["helpers promises no Trace"]),
        ("from helpers.inside import lens", ["helpers.inside promises no lens"]),
        ("import torch", []),
    ],
)
def test_what_goes_past_a_face_is_named(source, complaint):
    found = deep(source)
    assert len(found) == len(complaint)
    assert all(sentence.startswith(start) for sentence, start in zip(found, complaint, strict=True))
