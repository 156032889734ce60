"""The house: which room may import which, no import cycle, and faces whose every name resolves.

Imports are read from the source, those inside functions too, so that an import that only happens later counts as well.
CONTRIBUTING.md, "The house", shows the same picture.
"""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "helpers").rglob("*.py"))
}
FACES = sorted(path.parent for path in (ROOT / "helpers").rglob("__init__.pyi"))

# Each room, and the rooms that it may import. What is not listed here is a room that nobody has placed yet.
DOORS = {"errors", "checks"}  # what can be wrong with an argument, and how that is said: for every room
BELOW = {
    "errors": set(),
    "checks": {"errors"},
    "models": DOORS,
    "text": {*DOORS, "models"},
    "inside": {*DOORS, "models", "text"},
    "glm": {*DOORS, "models", "text"},
    "glm.tiny": {*DOORS, "models", "text", "inside", "glm"},  # trains and scores the small model: a program on top
    "conversation": {*DOORS, "models", "text", "inside"},
    "batch": {*DOORS, "models", "text", "inside", "conversation"},
    "views": {*DOORS, "glossary", "models", "text", "inside", "glm", "glm.tiny", "conversation", "batch"},
    "exercises": {
        *DOORS,
        "attempts",
        "glossary",
        "models",
        "text",
        "inside",
        "glm",
        "glm.tiny",
        "conversation",
        "batch",
        "views",
    },
    "environment": {*DOORS, "models"},
    "library_source": DOORS,
    "stepping": {*DOORS, "library_source"},
    "attempts": set(),
    "glossary": set(),
    "sources": {"models"},  # `python -m helpers.sources`, as it was called once
}


def face(folder):
    """Name -> module of a face, from its `.pyi`, in its order."""
    package = ".".join(folder.relative_to(ROOT).parts)
    tree = ast.parse((folder / "__init__.pyi").read_text(encoding="utf-8"))
    return {alias.name: f"{package}.{node.module}" for node in tree.body for alias in node.names}


# `from helpers.inside import trace` imports helpers.inside.tracing, where the face has it from.
HANDED_ON = {
    f"{'.'.join(folder.relative_to(ROOT).parts)}.{name}": module
    for folder in FACES
    for name, module in face(folder).items()
}


def room(module):
    """The room of a module: `helpers.glm.tiny.talk` is in "glm.tiny", `helpers.errors` is one of its own."""
    parts = module.split(".")[1:]
    return "glm.tiny" if parts[:2] == ["glm", "tiny"] else ".".join(parts[:1])


def imported(module, source, modules):
    """The modules of `modules` that this source text of `module` imports, wherever in it the import stands."""
    found = set()
    package = module.split(".") if modules[module].name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            name = HANDED_ON.get(name, name)
            while name and name not in modules:  # `from helpers.errors import BadInputError` imports helpers.errors
                name = name.rpartition(".")[0]
            found |= {name} - {"", module}
    return found


@pytest.fixture(scope="module")
def imports():
    """Module -> the modules of this package that it imports."""
    return {name: imported(name, path.read_text(encoding="utf-8"), MODULES) for name, path in MODULES.items()}


def upward(imports):
    """A sentence for each import from a room that may not be imported there."""
    return [
        f"{module} imports {other}: {room(module)} stands on {', '.join(sorted(BELOW[room(module)])) or 'nothing'}"
        for module, others in sorted(imports.items())
        for other in sorted(others)
        if room(module) and room(other) != room(module) and room(other) not in BELOW[room(module)]
    ]


def cycle(imports):
    """One chain of modules that import each other in a circle, or None."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        path.append(module)
        found = next(filter(None, map(visit, sorted(imports.get(module, ())))), None)
        path.pop()
        done.add(module)
        return found

    return next(filter(None, map(visit, sorted(imports))), None)


def test_every_module_is_in_a_room_that_has_its_place():
    assert {room(module) for module in MODULES} - {""} == set(BELOW)


def test_the_places_themselves_have_no_cycle():
    assert cycle({f"helpers.{name}": {f"helpers.{below}" for below in rooms} for name, rooms in BELOW.items()}) is None


def test_no_room_imports_one_above_it(imports):
    assert upward(imports) == []


def test_no_modules_import_each_other_in_a_circle(imports):
    assert cycle(imports) is None


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from helpers.views.plots import plot_bars", "helpers.views.plots"),
        ("def late():\n    from helpers.views import plots", "helpers.views.plots"),
        ("import helpers.views.plots as p", "helpers.views.plots"),
        ("from ..views import plots", "helpers.views.plots"),
        ("from helpers import load_model", "helpers.models.loading"),
        ("from helpers.inside import trace", "helpers.inside.tracing"),
        ("import torch", None),
    ],
)
def test_every_way_to_import_is_seen(source, names):
    found = imported("helpers.inside.lens", source, MODULES)
    assert found == ({names} if names else set())


def test_an_import_upwards_and_a_circle_are_found():
    assert upward({"helpers.inside.lens": {"helpers.views.plots"}}) == [
        "helpers.inside.lens imports helpers.views.plots: inside stands on checks, errors, models, text"
    ]
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


# ---------------------------------------------------------------- the faces


@pytest.mark.parametrize("folder", FACES, ids=lambda folder: folder.name)
def test_a_face_hands_on_names_as_they_are(folder):
    """`from .module import name as name`, a line each: type checkers and lazy_loader both read it so."""
    for line in (folder / "__init__.pyi").read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"from \.[\w.]+ import (\w+) as \1", line), line
    lines = (folder / "__init__.pyi").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(face(folder)), "a name stands twice"


@pytest.mark.parametrize("folder", FACES, ids=lambda folder: folder.name)
def test_every_name_of_a_face_resolves_to_the_one_in_its_module(folder):
    package = importlib.import_module(".".join(folder.relative_to(ROOT).parts))
    assert set(package.__all__) == set(face(folder))
    for name, module in face(folder).items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name), name


def test_a_name_means_the_same_on_every_face():
    where = {}
    for folder in FACES:
        for name, module in face(folder).items():
            where.setdefault(name, set()).add(module)
    assert {name: modules for name, modules in where.items() if len(modules) > 1} == {}
