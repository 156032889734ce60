"""Examples in docstrings are run, and every public name is typed and documented.

An example may use `model` and `tokenizer`, the default ones, and whatever its own module defines.
"""

import doctest
import importlib
import inspect
import io
import re
from dataclasses import fields, is_dataclass

import pytest
from matplotlib import pyplot
from test_rooms import HANDED_ON, MODULES

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NEEDS_A_SERVER = ("RayEngine", "ServerEngine", "VllmEngine")  # tests/engines and tests/batch start one
ELSEWHERE = ("ray_engine", "vllm_engine")  # their examples need Ray or vLLM


def _examples():
    """Every docstring of the package that has an example, as a test of `doctest`."""
    found = []
    for name, path in MODULES.items():
        if ">>>" in path.read_text(encoding="utf-8") and not name.endswith(ELSEWHERE):
            found += [
                test for test in doctest.DocTestFinder().find(importlib.import_module(name), name) if test.examples
            ]
    return sorted((test for test in found if test.examples), key=lambda test: test.name)


def _public():
    """(name on a face, the module that it is from), each once."""
    return sorted({(name.rpartition(".")[2], module) for name, module in HANDED_ON.items()})


def _object(name, module):
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("test", _examples(), ids=lambda test: test.name)
def test_the_example_gives_what_it_says(test, request, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = set(re.findall(r"\w+", "".join(example.source for example in test.examples))) - set(test.globs)
    test.globs |= {name: request.getfixturevalue(name) for name in words & {"model", "tokenizer"}}
    said = io.StringIO()
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.write, clear_globs=False)
    assert not said.getvalue(), said.getvalue()
    pyplot.close("all")


def _untyped(function):
    """The arguments of a function that have no type, and "return" where what it gives has none."""
    signature = inspect.signature(function)
    named = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    missing = [p.name for p in named if p.annotation is inspect.Parameter.empty]
    return missing + (["return"] if signature.return_annotation is inspect.Signature.empty else [])


def _public_methods(kind):
    """The public methods and properties that a class defines itself, and its `__init__` if it wrote one."""
    for name, value in vars(kind).items():
        function = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
        shown = not name.startswith("_") or (name == "__init__" and not is_dataclass(kind))
        if inspect.isfunction(function) and shown:
            yield name, function


@pytest.mark.parametrize(("name", "module"), _public())
def test_a_public_name_has_types_and_says_what_it_is(name, module):
    public = _object(name, module)
    if not callable(public):  # a constant: its comment says what it is
        return
    assert len(inspect.getdoc(public) or "") > 30
    if inspect.isclass(public):
        assert {n: _untyped(method) for n, method in _public_methods(public) if _untyped(method)} == {}
        if is_dataclass(public):
            assert [field.name for field in fields(public) if field.type in (inspect.Parameter.empty, None)] == []
    else:
        assert _untyped(inspect.unwrap(public)) == []


def _is_error(public):
    return inspect.isclass(public) and issubclass(public, Exception)


@pytest.mark.parametrize(("name", "module"), _public())
def test_a_public_function_or_class_has_an_example(name, module):
    public = _object(name, module)
    if callable(public) and name not in NEEDS_A_SERVER and not _is_error(public):
        assert ">>>" in inspect.getdoc(public), f"{module}.{name} has no example"


def test_an_example_that_is_wrong_is_found_and_an_untyped_argument_is_named():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3", {}, "wrong", None, 0)
    said = io.StringIO()
    assert doctest.DocTestRunner(optionflags=FLAGS).run(wrong, out=said.write).failed == 1

    def half(typed: int, untyped, *, kept: str = ""):
        return typed, untyped, kept

    assert _untyped(half) == ["untyped", "return"]
