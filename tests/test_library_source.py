"""`show_source` shows the installed library's lines, and an anchor that no longer matches is named."""

import contextlib
import functools
import inspect
import re
from html.parser import HTMLParser
from importlib.metadata import version

import pytest
import torch
from transformers import GenerationMixin
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaForCausalLM, LlamaRMSNorm

from helpers import library_source
from helpers.errors import AnchorNotFoundError, BadInputError
from helpers.library_source import SourceLine, broken_anchors, show_source, since_2024


def example(values):
    """A docstring
    of several lines, in which patterns are not looked for: total = 0.
    """
    total = 0
    for value in values:
        # add it
        total += value
    return f"<b>{total}</b>"


def lines_of(view):
    return {line.number: line.text for line in view.lines}


class Reader(HTMLParser):
    """The text of an HTML piece, and whether its tags are closed."""

    def __init__(self, source):
        super().__init__()
        self.open, self.text, self.tags = [], "", set()
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


# ---------------------------------------------------------------- the lines


def test_lines_are_the_files_own_with_their_numbers():
    view = show_source(LlamaAttention.forward)
    file = inspect.getsourcefile(modeling_llama)
    with open(file, encoding="utf-8") as source:
        whole = source.read().splitlines()
    assert len(view.lines) > 20
    for number, text in lines_of(view).items():
        assert whole[number - 1].rstrip() == text
    assert view.name == "LlamaAttention.forward"
    assert view.location == f"transformers/models/llama/modeling_llama.py:{view.lines[0].number}"
    assert view.version == f"transformers {version('transformers')}"


def test_start_and_stop_limit_to_a_piece_and_belong_to_it():
    whole = show_source(LlamaAttention.forward)
    view = show_source(LlamaAttention.forward, start="query_states = self.q_proj(", stop="value_states = self.v_proj(")
    assert "query_states = " in view.lines[0].text
    assert "value_states = " in view.lines[-1].text
    assert len(view.lines) == 3
    assert set(view.lines) < set(whole.lines)
    assert show_source(example, start="for value", stop="for value").lines == (view_line(example, "for value"),)


def view_line(function, piece):
    (line,) = [line for line in show_source(function).lines if piece in line.text]
    return line


def test_stop_is_looked_for_from_start_on():
    with pytest.raises(AnchorNotFoundError, match="stop anchor 'total = 0'"):
        show_source(example, start="for value", stop="total = 0")


def test_long_docstrings_are_left_out():
    view = show_source(example)
    first, second = view.lines[:2]
    assert first.text == "def example(values):"
    assert second.text == "    total = 0"
    assert second.number == first.number + 4
    assert "(3 lines of docstring)" in repr(view)
    assert "3 lines of docstring" in view._repr_html_()
    assert '"""Applies' not in repr(show_source(modeling_llama.apply_rotary_pos_emb))
    inner = show_source(LlamaRMSNorm)  # also those of a class's methods; the code around them stays
    assert any("self.variance_epsilon = eps" in line.text for line in inner.lines)
    assert not any("equivalent to" in line.text for line in inner.lines)


# ---------------------------------------------------------------- what may be shown


class Shape:
    """One line, which stays."""

    @property
    def area(self):
        return 3

    @functools.cached_property
    def rim(self):
        return 4

    @staticmethod
    def make():
        return Shape()

    @classmethod
    def of(cls):
        return cls()

    @contextlib.contextmanager
    def held(self):
        yield


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


@pytest.mark.parametrize(
    ("thing", "first", "name"),
    [
        (Shape, "class Shape:", "Shape"),
        (Shape.area, "    @property", "Shape.area"),
        (Shape.__dict__["rim"], "    @functools.cached_property", "Shape.rim"),
        (Shape.make, "    @staticmethod", "Shape.make"),
        (Shape.of, "    @classmethod", "Shape.of"),
        (Shape().of, "    @classmethod", "Shape.of"),
        (Shape.__dict__["make"], "    @staticmethod", "Shape.make"),
        (Shape.held, "    @contextlib.contextmanager", "Shape.held"),
        (decorated(decorated(example)), "def example(values):", "example"),
        (functools.partial(example, [1]), "def example(values):", "example"),
        (GenerationMixin.generate, "    @torch.no_grad()", "GenerationMixin.generate"),
        (LlamaForCausalLM.forward, "    @can_return_tuple", "LlamaForCausalLM.forward"),
        (lambda: 5, "        (lambda: 5,", "<lambda>"),
    ],
)
def test_functions_methods_classes_properties_and_wrapped_ones(thing, first, name):
    view = show_source(thing)
    assert view.lines[0].text.startswith(first)
    assert view.name == name
    Reader(view._repr_html_())


def test_a_short_docstring_stays():
    assert any("One line, which stays." in line.text for line in show_source(Shape).lines)


@pytest.mark.parametrize("thing", [torch.multinomial, len, "LlamaAttention.forward", 3, None, torch, Shape()])
def test_what_has_no_python_source_is_said(thing):
    with pytest.raises(BadInputError, match="no Python source"):
        show_source(thing)


def test_functions_outside_a_package(tmp_path):
    assert show_source(example).location.startswith("test_library_source.py:")
    assert show_source(show_source).location.startswith("helpers/library_source.py:")
    namespace = {"__name__": "__main__"}
    file = tmp_path / "cell.py"
    file.write_text("def mine():\n    return 1\n")
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    assert show_source(namespace["mine"]).location == "this notebook:1"


# ---------------------------------------------------------------- notes and anchors


def test_notes_are_pinned_to_their_lines():
    notes = {"total += value": "One more.", re.compile(r"^\s*return f"): "The end."}
    view = show_source(example, notes=notes)
    noted = {line.text.strip(): line.note for line in view.lines if line.note}
    assert noted == {"total += value": "One more.", 'return f"<b>{total}</b>"': "The end."}


def test_two_notes_on_one_line_are_both_shown():
    view = show_source(example, notes={"total +=": "first", "+= value": "second"})
    assert view_note(view, "total +=") == "first\nsecond"


def view_note(view, piece):
    return next(line.note for line in view.lines if piece in line.text)


def test_an_anchor_that_matches_nothing_is_named_with_function_and_version():
    with pytest.raises(AnchorNotFoundError) as caught:
        show_source(LlamaAttention.forward, notes={"query_states = self.query(": "gone"})
    message = str(caught.value)
    for part in (
        "'query_states = self.query('",
        "LlamaAttention.forward",
        f"transformers {version('transformers')}",
        "modeling_llama.py",
    ):
        assert part in message
    assert "The most similar line is now: 'query_states = " in message


def test_an_anchor_that_matches_several_lines_is_named_with_them():
    lines = [str(line.number) for line in show_source(example).lines if "total" in line.text]
    with pytest.raises(AnchorNotFoundError, match=rf"'total' matches 3 lines.*{', '.join(lines)}.*longer"):
        show_source(example, notes={"total": "which?"})


def test_a_note_outside_the_piece_is_named():
    with pytest.raises(AnchorNotFoundError, match="note anchor 'return f'"):
        show_source(example, stop="total +=", notes={"return f": "not shown"})


def test_patterns_do_not_look_into_docstrings():
    assert broken_anchors(example, start="total = 0") == []  # the docstring has these words too
    assert len(broken_anchors(example, start="of several lines")) == 1


def test_broken_anchors_names_all_of_them():
    broken = broken_anchors(example, start="nope", stop="neither", notes={"for value": "fine", "never": "no"})
    assert [re.search(r"The (\w+) anchor '(\w+)'", sentence).groups() for sentence in broken] == [
        ("start", "nope"),
        ("stop", "neither"),
        ("note", "never"),
    ]
    assert broken_anchors(example, start="total = 0", notes={"for value": "fine"}) == []


def test_a_library_that_moved_on_is_noticed(monkeypatch):
    notes = {"variance = hidden_states.pow(2)": "mean of squares"}
    assert broken_anchors(LlamaRMSNorm.forward, notes=notes) == []
    real = inspect.getsourcelines

    def newer(target):
        texts, first = real(target)
        return [text.replace("hidden_states.pow(2)", "hidden_states.square()") for text in texts], first

    monkeypatch.setattr(library_source.inspect, "getsourcelines", newer)
    (sentence,) = broken_anchors(LlamaRMSNorm.forward, notes=notes)
    assert "'variance = hidden_states.pow(2)'" in sentence
    assert "variance = hidden_states.square()" in sentence


@pytest.mark.parametrize(
    "arguments",
    [
        {"start": ""},
        {"stop": "  "},
        {"start": 12},
        {"notes": {3: "x"}},
        {"notes": {"for value": 3}},
        {"notes": ["for value"]},
    ],
)
def test_arguments_that_cannot_work(arguments):
    with pytest.raises(BadInputError):
        show_source(example, **arguments)


# ---------------------------------------------------------------- how it looks


def test_text_shows_numbers_lines_and_notes():
    text = repr(show_source(example, start="for value", notes={"+=": "One more,\nand one more."})).splitlines()
    number = view_line(example, "for value").number
    width = len(str(number))
    assert text[0].startswith(f"example · test_library_source.py:{number} · ")
    assert text[1] == f"{number} │ for value in values:"  # the common margin is cut off
    assert text[3] == f"{number + 2} │     total += value"
    assert text[4:6] == [f"{'':{width}} └─ One more,", f"{'':{width}} └─ and one more."]


def test_html_has_every_line_and_follows_the_theme():
    source = show_source(example, notes={"total = 0": "Starts at `0`."})._repr_html_()
    text = Reader(source).text
    for line in show_source(example).lines:
        assert f"{line.number}{line.text}" in text
    assert "Starts at <code>0</code>." in source
    for use in re.findall(r"(?:color|background|border[\w-]*):[^;}]*", source):
        if "#" in use:  # every fixed colour is the fallback of JupyterLab's own
            assert re.search(r"var\(--jp-[\w-]+,#[0-9a-f]+\)", use), use
    assert "http" not in source


def test_html_is_escaped():
    note = "<script>alert(1)</script> & `<img src=x onerror=alert(1)>`"
    source = show_source(example, notes={"total = 0": note})._repr_html_()
    reader = Reader(source)
    assert reader.tags == {"style", "figure", "figcaption", "b", "div", "span", "code"}
    assert "<script>alert(1)</script> & <img src=x onerror=alert(1)>" in reader.text
    assert 'f"<b>{total}</b>"' in reader.text


def test_a_line_is_frozen():
    with pytest.raises(AttributeError):
        SourceLine(1, "x").text = "y"


def test_a_claim_about_the_library_is_checked_before_it_is_printed(capsys):
    since_2024("addition works", 1 + 1 == 2)
    assert capsys.readouterr().out == "✓ addition works\n"
    since_2024("one adder", True, was="two", why="one is enough")
    assert capsys.readouterr().out == "✓ Now: one adder\n  2024: two\n  Why: one is enough\n"
    with pytest.raises(AnchorNotFoundError, match="no longer true: pigs fly"):
        since_2024("pigs fly", False)
    assert capsys.readouterr().out == ""


def test_a_committed_notebook_keeps_the_notes_and_none_of_the_code():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from helpers.library_source import stored_outputs

    view = show_source(LlamaRMSNorm.forward, notes={"variance = ": "The mean of `x * x`, not <less>."})
    data, metadata = view._repr_mimebundle_()
    output = {"output_type": "execute_result", "data": data, "metadata": metadata}
    (kept,) = stored_outputs([output, {"output_type": "stream", "text": "other"}])
    number = next(line.number for line in view.lines if line.note)
    assert f'<th scope="row">{number}</th>' in kept["data"]["text/html"]
    assert "The mean of <code>x * x</code>, not &lt;less&gt;." in kept["data"]["text/html"]
    assert f"{number} │ The mean of `x * x`" in kept["data"]["text/plain"]
    assert kept["metadata"] == {}
    for line in view.lines:
        for page in kept["data"].values():
            assert len(line.text.strip()) < 12 or line.text.strip() not in page


def test_the_link_leads_to_the_lines_at_the_release():
    from importlib.metadata import version

    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    link = show_source(LlamaRMSNorm.forward).link
    assert link.startswith(
        f"https://github.com/huggingface/transformers/blob/v{version('transformers')}/src/transformers/"
    )
    assert link.endswith(
        f"modeling_llama.py#L{view_line(LlamaRMSNorm.forward, 'def forward').number}-L" + link.rpartition("L")[2]
    )
    assert show_source(example).link is None
