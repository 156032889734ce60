"""What all widgets share: a cell that runs again frees what it made before, and a page's wishes are checked."""

import gc
import weakref
from io import BytesIO
from types import SimpleNamespace

import pytest
import torch
from glm_fixtures import VISION, glm, glm_processor
from PIL import Image

from helpers import (
    attention_explorer,
    generate_steps,
    generation_stepper,
    hidden_state_explorer,
    image_chat,
    kv_cache_explorer,
    sampling_explorer,
    trace,
    use_course_style,
)
from helpers.errors import BadInputError
from helpers.views.sharpen import sharpen_heads
from helpers.views.widget import Commands, CourseWidget

PROMPT = [3, 17, 5, 44, 9]  # ids of a tiny model


def _stepped(make):
    return lambda model, tokenizer: make(model, tokenizer, PROMPT, max_new_tokens=2)


EXPLORERS = {
    "attention": lambda model, tokenizer: attention_explorer(trace(model, tokenizer, PROMPT)),
    "hidden states": lambda model, tokenizer: hidden_state_explorer(model, tokenizer, PROMPT),
    "stepper": _stepped(generation_stepper),
    "cache": _stepped(kv_cache_explorer),
    "sampling": lambda model, tokenizer: sampling_explorer(
        next(generate_steps(model, tokenizer, PROMPT, max_new_tokens=1)), tokenizer
    ),
    "sharpened heads": lambda model, tokenizer: sharpen_heads(model, tokenizer, PROMPT, [(1, 2)]),
    "image chat": lambda model, tokenizer: image_chat(glm(VISION), glm_processor(VISION), pictures={}),
}


class _Kernel:
    """Stands in for the kernel of a notebook: says which cell is running."""

    def __init__(self):
        self.request, self.runs = {}, 0

    def run(self, code, cell_id=None):
        self.runs += 1
        about = {"cellId": cell_id} if cell_id else {}
        self.request = {"header": {"msg_id": f"run-{self.runs}"}, "metadata": about, "content": {"code": code}}

    def get_parent(self, _channel):
        return self.request


@pytest.fixture
def kernel(monkeypatch):
    kernel = _Kernel()
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=kernel))
    monkeypatch.setattr("helpers.views.widget._made", {})
    return kernel


class _Counter(Commands):
    commands = ("add", "change", "break_down")

    def __init__(self, start=0):
        self.count = start

    def add(self, number: int, note: str | None = None):
        self.count += number

    def change(self, **settings: float):
        self.count = settings

    def break_down(self):
        raise RuntimeError("out of memory")

    def view(self):
        return {"count": self.count}

    def describe(self):
        return f"a counter at {self.count}"


@pytest.mark.parametrize("name", EXPLORERS)
def test_a_cell_that_runs_again_frees_what_it_made_before(name, kernel, new_tiny, tokenizer):
    model = new_tiny("Llama")
    kernel.run("the cell", "id of the cell")
    out = [EXPLORERS[name](model, tokenizer)]  # as IPython's Out keeps it
    state = weakref.ref(out[0].state)
    kernel.run("the cell, edited", "id of the cell")
    out.append(EXPLORERS[name](model, tokenizer))
    gc.collect()
    assert state() is None, "the old state, with its tensors, is gone"
    assert out[0].comm is None and out[0].view == {}
    assert out[1].comm is not None and out[1].state is not None
    assert "this widget is closed" in repr(out[0])
    with pytest.raises(BadInputError, match="run the cell that made it"):
        out[0].picture()
    out[0].close()  # a second time


def test_a_still_is_sharp_where_figures_are(course_style, new_tiny, tokenizer, monkeypatch):
    """Twice as many pixels, and the page is told to show them in the same size."""
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *data, **about: shown.append((data, about)))
    widget = EXPLORERS["cache"](new_tiny("Llama"), tokenizer)
    plain = Image.open(BytesIO(widget.picture()))
    use_course_style(sharp=True)
    widget._ipython_display_()
    (still, about), _ = [(data[0], about) for data, about in shown]
    assert Image.open(BytesIO(still["image/png"])).width == pytest.approx(2 * plain.width, rel=0.01)
    assert about["metadata"]["image/png"]["width"] == pytest.approx(plain.width, rel=0.01)


def test_what_other_cells_and_the_same_run_made_stays(kernel):
    kernel.run("a", "1")
    first, second = CourseWidget(_Counter()), CourseWidget(_Counter())
    kernel.run("a", "2")
    other = CourseWidget(_Counter())
    assert first.comm and second.comm and other.comm
    kernel.run("a", "1")
    again = CourseWidget(_Counter())
    assert first.comm is None and second.comm is None
    assert other.comm and again.comm


def test_a_cell_without_an_id_is_known_by_its_code(kernel):
    kernel.run("explorer = attention_explorer(run)")
    first = CourseWidget(_Counter())
    kernel.run("something else")
    other = CourseWidget(_Counter())
    kernel.run("explorer = attention_explorer(run)")
    CourseWidget(_Counter())
    assert first.comm is None and other.comm


def test_outside_a_notebook_nothing_is_closed():
    assert CourseWidget(_Counter()).comm and CourseWidget(_Counter()).comm


def test_a_cell_that_fails_the_next_time_keeps_its_widget(kernel):
    kernel.run("a", "1")
    first = CourseWidget(_Counter())
    kernel.run("a", "1")
    with pytest.raises(AttributeError):
        CourseWidget(None)
    assert first.comm


def test_an_answer_on_its_way_ends_when_its_widget_is_closed():
    widget = image_chat(glm(VISION), glm_processor(VISION), pictures={}, max_new_tokens=60)
    widget._answer(widget, {"command": "ask", "text": "?"}, [])
    assert widget.view["message"] == ""
    widget.close()
    widget.worker.join(60)
    assert not widget.worker.is_alive() and widget.view == {}


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"command": "add", "number": "3"}, "There is no number '3': number is a whole number."),
        ({"command": "add", "number": {"a": 1}}, "There is no number {'a': 1}"),
        ({"command": "add", "number": 1, "note": 5}, "note is a text or None"),
        ({"command": "add"}, "missing a required argument: 'number'"),
        ({"command": "add", "number": 1, "more": 2}, "unexpected keyword argument 'more'"),
        (
            {"command": "change", "temperature": None},
            "no temperature None: temperature is a number.",
        ),
        ({"command": "view"}, "There is no command 'view' here; there are: add, change, break_down."),
        ({"command": ["add"]}, "There is no command ['add'] here"),
        ({}, "There is no command '' here"),
        ({"command": "add", "number": "x" * 1000}, "x…x': number is"),
        (None, "A page sends a command and its arguments by name, not None."),
        (["add"], "A page sends a command and its arguments by name, not ['add']."),
        ({5: 1}, "A page sends a command and its arguments by name, not {5: 1}."),
        ({"command": "add", "self": 1, "number": 1}, "unexpected keyword argument 'self'"),
        ({"command": "break_down"}, "This did not work: RuntimeError: out of memory"),
    ],
)
def test_a_wish_that_cannot_be_carried_out_is_a_sentence_in_the_page(wish, message):
    widget = CourseWidget(_Counter())
    widget._handle_custom_msg(wish, [])
    assert message in widget.view["message"] and widget.view["turn"] == 1
    assert widget.view["count"] == 0 and len(widget.view["message"]) < 200


def test_a_wish_is_carried_out():
    widget = CourseWidget(_Counter())
    widget._handle_custom_msg({"command": "add", "number": 2, "note": "x"}, [])
    widget._handle_custom_msg({"command": "add", "number": 3}, [])
    assert widget.view == {"count": 5, "turn": 2, "message": ""}


def test_the_attention_explorer_keeps_attentions_only(new_tiny, tokenizer):
    run = trace(new_tiny("Llama"), tokenizer, PROMPT)
    kept = attention_explorer(run).state.trace
    assert torch.equal(kept.attentions, run.attentions)
    assert kept.logits is None and kept.hidden_states is None and kept.last_residual is None
