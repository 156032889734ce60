"""The shape of every notebook: CONTRIBUTING.md, "Writing a notebook", says the same in words."""

import ast
import re
from collections import Counter
from statistics import median

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell

from course import NOTEBOOKS, read, tags
from outputs import LARGEST, complaints

TINY_NUMBER = re.compile(r"\b\d(?:\.\d+)?e-(?:0?[5-9]|1\d)\b|(?<![\d.])0\.0000\d+")  # what rounding leaves in float32
LOCAL_PATH = re.compile(r"(?:/home/|/root/|/work/|/tmp/|/Users/|[A-Z]:\\\\Users)[\w./-]+")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return read(path)


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _text(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def _drawn(cell):
    """The MIME types among a cell's outputs."""
    return {kind for output in cell.get("outputs", []) for kind in output.get("data", {})}


def test_numbers_run_on_without_a_gap_in_the_order():
    numbers = [int(path.name[:2]) for path in NOTEBOOKS]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 0


def test_the_first_cell_introduces(path, notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith(f"# {path.name[:2]}. ")
    for part in ("**You need**", "**You will be able to**", "**Time**"):
        assert part in first.source, f"{part} is missing in the first cell"
    objectives = re.findall(r"^- ", first.source.partition("**You will be able to**")[2], re.MULTILINE)
    assert 3 <= len(objectives) <= 5


def test_links_lead_somewhere(path, notebook):
    for text in _text(notebook):
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            assert (path.parent / target).exists(), f"{target} is not there"


def test_neighbours_are_linked(path, notebook):
    at = NOTEBOOKS.index(path)
    neighbours = NOTEBOOKS[max(at - 1, 0) : at] + NOTEBOOKS[at + 1 : at + 2]
    for neighbour in neighbours:
        assert any(f"({neighbour.name})" in text for text in _text(notebook)), f"no link to {neighbour.name}"


def test_recap_then_exercises(notebook):
    headings = re.findall(r"^## (.*)$", "\n".join(_text(notebook)), re.MULTILINE)
    assert "Recap" in headings
    if "Exercises" in headings:
        assert headings.index("Recap") < headings.index("Exercises")


def _lines(source):
    """Lines of a cell; an import that the formatter folds, a name a line, counts as one."""
    tree = ast.parse(re.sub(r"^%.*$", "", source, flags=re.MULTILINE))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return len(source.splitlines()) - sum(node.end_lineno - node.lineno for node in imports)


def test_cells_are_short(notebook):
    lengths = [_lines(cell.source) for cell in _code(notebook)]
    assert max(lengths) <= 15, f"longest cell: {max(lengths)} lines"
    assert median(lengths) <= 5
    for cell in _code(notebook):
        if "exercise" not in tags(cell):
            assert len(re.findall(r"^def ", cell.source, re.MULTILINE)) <= 1, cell.source


def test_executed_in_order_without_noise(notebook):
    assert complaints(notebook) == []
    code = _code(notebook)
    assert sum(bool(cell.outputs) for cell in code) >= len(code) / 2


def _shown(cell):
    """A cell's outputs as text."""
    return "\n".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in cell.outputs)


def test_no_output_depends_on_rounding(notebook):
    """Processors add in different orders: the digits of an error differ, that it is small does not."""
    for cell in _code(notebook):
        if {"nbval-ignore-output", "exact"} & set(tags(cell)):
            continue
        tiny = TINY_NUMBER.search(_shown(cell))
        assert not tiny, f"{tiny[0]} looks like a rounding error; print that it is below 0.001, or tag the cell `exact`"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("off by 9.5e-06", True),
        ("1.2e-5", True),
        ("1e-07", True),
        ("0.0000123", True),
        ("below 0.0001", False),
        ("1e-04", False),
        ("10.00001", False),
        ("1.5e+06", False),
    ],
)
def test_what_looks_like_rounding(text, found):
    assert bool(TINY_NUMBER.search(text)) is found


def test_numbers_are_compared_with_a_tolerance_of_ones_own(notebook):
    """That of `allclose` itself, 1e-5 of the value, is a few roundings of a sum and fails on some processors."""
    for cell in _code(notebook):
        for node in ast.walk(ast.parse(re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("allclose", "isclose"):
                given = {keyword.arg for keyword in node.keywords}
                assert given & {"atol", "rtol", "abs_tol", "rel_tol"}, ast.unparse(node)


def test_predictions_and_figures_are_framed(notebook):
    texts = "\n".join(_text(notebook))
    assert texts.count("> **Predict.**") >= 2
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and _drawn(cell) & {"image/png", "image/jpeg"}:
            after = "\n".join(c.source for c in notebook.cells[index + 1 : index + 3] if c.cell_type == "markdown")
            assert "**What to notice" in after, f"cell {index + 1} draws a figure; no 'What to notice' follows"


PREDICTION = re.compile(r"^> \*\*Predict\.\*\*.*(?:\n>.*)*", re.MULTILINE)
QUOTED = re.compile(r"`[^`]*`|\"[^\"]*\"|“[^”]*”")


def predictions_at_fault(cells):
    """A sentence for each box that does not ask one question, or after which no code shows the answer."""
    found = []
    for number, cell in enumerate(cells):
        boxes = PREDICTION.findall(cell.source) if cell.cell_type == "markdown" else []
        for box in boxes:
            questions = QUOTED.sub("", box).count("?")
            if questions != 1:
                found.append(f"asks {questions} questions, one is enough: {box:.80}")
            if "<details" in cell.source.partition(box)[0]:
                found.append(f"a fold stands before the question: {box:.80}")
            if number + 1 == len(cells) or cells[number + 1].cell_type != "code":
                found.append(f"no code follows: {box:.80}")
    return found


def test_predictions_ask_one_question_and_are_answered_by_the_next_cell(notebook):
    assert predictions_at_fault(notebook.cells) == []


@pytest.mark.parametrize(
    ("box", "follows", "fault"),
    [
        ("> **Predict.** How many?", "code", None),
        ('> **Predict.** It asks "why?". Does\n> it answer?', "code", None),
        ("> **Predict.** Think.", "code", "asks 0 questions"),
        ("> **Predict.** How many? And which?", "code", "asks 2 questions"),
        ("> **Predict.** How many?", "markdown", "no code follows"),
        ("<details>42</details>\n\n> **Predict.** How many?", "code", "a fold stands before"),
    ],
)
def test_a_prediction_that_cannot_work_is_named(box, follows, fault):
    cells = [new_markdown_cell(box), new_code_cell("42") if follows == "code" else new_markdown_cell("42")]
    found = predictions_at_fault(cells)
    assert len(found) == (fault is not None)
    assert not found or found[0].startswith(fault)


def test_recap_bullets_do_not_all_begin_alike(notebook):
    recap = "\n".join(_text(notebook)).partition("## Recap")[2].partition("## Exercises")[0]
    begins = Counter(bullet.split()[0].lower() for bullet in re.findall(r"^[-*] (.+)$", recap, re.MULTILINE))
    if begins.total() >= 3:
        word, count = begins.most_common(1)[0]
        assert count <= begins.total() / 2, f"{count} of {begins.total()} bullets begin with {word!r}"


def test_the_first_cell_has_a_table_of_minutes(notebook):
    rows = re.findall(r"^\|.*\|$", notebook.cells[0].source, re.MULTILINE)
    timed = [row for row in rows if re.search(r"\| *(?:about )?\d+(?: min(?:utes)?)? *\|", row)]
    assert len(timed) >= 3, "the first cell says how many minutes each section takes"


def test_the_exercises_take_as_long_as_the_first_cell_says(notebook):
    stated = re.search(r"minutes for the sections and about (\d+) for the exercises", notebook.cells[0].source)
    tasks = [text for text in _text(notebook) if re.match(r"### (?:Exercise|Step) \d\d\.\d", text)]
    each = [int(re.search(r"(?:\(|About )(\d+) minutes", task)[1]) for task in tasks]
    assert sum(each) == int(stated[1])


def test_asserts_check_the_claims(path, notebook):
    count = sum(len(re.findall(r"^\s*assert ", cell.source, re.MULTILINE)) for cell in _code(notebook))
    assert count >= (2 if path.name.startswith("00") else 5)


def test_images_have_alt_text(notebook):
    for text in _text(notebook):
        assert not re.search(r"!\[\s*\]\(", text), "an image without alt text"
        for tag in re.findall(r"<img[^>]*>", text):
            assert re.search(r'alt="[^"]+"', tag), tag


def test_drawn_pictures_have_alt_text(notebook):
    """In the cell's metadata, from where the book takes it."""
    for number, cell in enumerate(notebook.cells):
        if _drawn(cell) & {"image/png", "image/jpeg", "image/svg+xml"}:
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt.split()) >= 3, f"cell {number} draws a picture; mystnb.image.alt says {alt!r}"


def test_library_source_is_tagged(notebook):
    for cell in _code(notebook):
        if re.search(r"\bshow_source\(|\bgetsource\(", cell.source):
            assert {"library-source", "nbval-ignore-output"} <= set(tags(cell)), cell.source


def test_source_cells_keep_their_notes(notebook):
    """Before it is run, on GitHub and in the book, such a cell says where to look and what to look at."""
    for cell in _code(notebook):
        if re.search(r"\bshow_source\(", cell.source):
            (output,) = cell.outputs
            page = output.data["text/html"]
            assert re.search(r'href="https://github\.com/[^"]+/blob/v[^"]+#L\d+-L\d+"', page), cell.source
            if "notes=" in cell.source:
                assert "<tr>" in page, cell.source
                assert not re.search(r"<td[^>]*>\s*</td>", page), f"a note that says nothing: {cell.source}"


def test_size_and_paths(path, notebook):
    assert path.stat().st_size <= LARGEST
    for cell in _code(notebook):
        found = LOCAL_PATH.search(str(cell.outputs))
        assert not found, f"a path of one machine in an output: {found[0]}"
        assert not re.search(r"https?://(cdn|unpkg|cdnjs)", str(cell.outputs))


def test_the_setup_cell_is_the_second_and_installs_nothing(notebook):
    assert notebook.cells[1].cell_type == "code"
    assert "import" in notebook.cells[1].source
    for cell in _code(notebook):
        assert not re.search(r"pip install|sys\.path|^[!%](?!matplotlib)", cell.source, re.MULTILINE), cell.source
