"""Every note that a notebook pins to library code still finds its line in the installed version.

The `show_source(...)` calls are found without running the notebooks. Each one's arguments are
evaluated with nothing but the notebook's imports and its plain assignments (`notes = {...}`).
"""

import ast
import contextlib

import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course import NOTEBOOKS, read
from helpers.library_source import broken_anchors


def _statements(cell):
    return ast.parse(TransformerManager().transform_cell(cell.source)).body


def _is_show_source(node):
    return isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "show_source"


def _calls(node, kind):
    return [child for child in ast.walk(node) if kind(child)]


def _evaluate(node, namespace):
    return eval(compile(ast.Expression(node), "<notebook>", "eval"), namespace)


def _broken(call, namespace):
    """What is wrong with one show_source call, a sentence each."""
    try:
        function, *rest = (_evaluate(argument, namespace) for argument in call.args)
        patterns = {keyword.arg: _evaluate(keyword.value, namespace) for keyword in call.keywords}
        return broken_anchors(function, *rest, **patterns)
    except Exception as error:  # whatever it is, its cell is to be named
        return [f"{ast.unparse(call.args[0])}: {type(error).__name__}: {error}"]


def anchors(notebook):
    """How many show_source calls there are, and a sentence for each anchor that does not hold."""
    namespace, count, problems = {}, 0, []
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code" or "raises-exception" in cell.metadata.get("tags", []):
            continue
        for statement in _statements(cell):
            imports = _calls(statement, lambda node: isinstance(node, ast.Import | ast.ImportFrom))
            exec(compile(ast.Module(imports, []), "<notebook>", "exec"), namespace)
            if isinstance(statement, ast.Assign) and not _calls(statement, lambda n: isinstance(n, ast.Call)):
                with contextlib.suppress(Exception):  # needs what only a run gives, so no anchor needs it
                    exec(compile(ast.Module([statement], []), "<notebook>", "exec"), namespace)
            for call in _calls(statement, _is_show_source):
                count += 1
                problems += [f"cell {number}: {problem}" for problem in _broken(call, namespace)]
    return count, problems


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_anchor_holds(path):
    _, problems = anchors(read(path))
    assert not problems, f"{path.name}:\n" + "\n".join(problems)


# ---------------------------------------------------------------- the search itself finds what it should


def _notebook(*sources):
    return new_notebook(cells=[new_markdown_cell("show_source(nothing)"), *map(new_code_cell, sources)])


def test_anchors_that_hold_are_counted():
    notebook = _notebook(
        "%matplotlib inline\nimport helpers\nfrom helpers import show_source",
        "import helpers.library_source as w\nfrom helpers.library_source import show_source as _\n1 / 0  # never run",
        "show_source(w.show_source, start='return', notes={'return view': 'Here.'})",
        "notes = {'def broken_anchors': 'This.'}\nunknown = 3 + not_there",
        "if True:\n    view = helpers.show_source(w.broken_anchors, notes=notes)",
    )
    assert anchors(notebook) == (2, [])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ("show_source(w.show_source, start='no such line')", "'no such line'"),
        ("print(show_source(w.show_source, stop='gone()'))", "'gone()'"),
        ("show_source(w.show_source, notes={'raise AnchorNotFoundError': '', 'missing = 1': ''})", "'missing = 1'"),
        ("show_source(w.show_source, notes={'view': 'several lines'})", "make it longer"),
        ("show_source(w.no_such_function)", "w.no_such_function: AttributeError"),
        ("show_source(model.forward)", "model.forward: NameError"),
        ("show_source(w.show_source, begin='x')", "TypeError"),
    ],
)
def test_anchors_that_do_not_hold_are_named_with_their_cell(call, named):
    count, problems = anchors(_notebook("import helpers.library_source as w\nfrom helpers import show_source", call))
    assert count == len(problems) == 1
    assert problems[0].startswith("cell 3: ")
    assert named in problems[0]
