"""The attention explorer's Python side: what travels to the page, and the still picture."""

import base64
import json
import zlib

import numpy
import pytest
import torch
from moved import Moved
from PIL import Image

from helpers import attention_explorer, attention_rollout, trace
from helpers.errors import BadImageError, BadInputError, DoesNotFitError
from helpers.views import attention
from helpers.views.attention import GLANCE, AttentionMap, as_bytes, pack_layer

pytestmark = pytest.mark.usefixtures("course_style")


@pytest.fixture(scope="module")
def run(model, tokenizer):
    return trace(model, tokenizer, "The capital of France is Paris. 中国的首都是北京。 " * 2, hidden_states=False)


@pytest.fixture(scope="module")
def explored(run):
    return AttentionMap(run, layer=5, head=3)


def unpacked(packed, planes, positions, keys):
    """What `square` in attention.js makes of a layer, but for the mean: `[plane, query, key]`, 0 in the future."""
    values = numpy.frombuffer(zlib.decompress(packed), dtype=numpy.uint8)
    result = numpy.zeros((planes, len(positions), keys), dtype=numpy.uint8)
    at = 0
    for plane in range(planes):
        for row, position in enumerate(positions):
            result[plane, row, : position + 1] = values[at : at + position + 1]
            at += position + 1
    assert at == len(values), "nothing but the causal triangle travels"
    return torch.from_numpy(result)


def test_a_layer_arrives_as_it_was(run, explored):
    about, packed = explored.do("layer", row=7)
    assert about == {"row": 7}
    arrived = (unpacked(packed, 10, run.positions, len(run.tokens)).float() / 255) ** 2
    heads = run.attentions[7]
    assert (arrived[:9] - heads).abs().max() < 0.004, "one byte: off by no more than 1/255 of the largest weight"
    small = heads < 0.01
    assert (arrived[:9] - heads)[small].abs().max() < 0.0005, "small weights are kept finer"
    assert torch.allclose(arrived[:9].mean(0), heads.mean(0), atol=0.004), "the page takes the mean itself"
    assert torch.allclose(arrived[9], attention_rollout(run.attentions)[7], atol=0.004)


def test_bytes_are_bounded_and_keep_the_ends():
    assert as_bytes(torch.tensor([0.0, 1.0, 0.25, 1.0001, -0.0001])).tolist() == [0, 255, 128, 255, 0]
    assert as_bytes(torch.tensor([1 / 512], dtype=torch.bfloat16)).item() == 11


def test_the_glance_shows_the_largest_weight_of_each_field(model, tokenizer):
    ids = torch.arange(100, 196)[None]
    long = trace(model, tokenizer, ids, hidden_states=False, logits=False, layers=[0, 1])
    small = AttentionMap(long).glance()
    assert small.shape == (2, 11, GLANCE, GLANCE) and small.dtype == torch.uint8
    field = long.attentions[1, 4, 8:12, 4:8]  # 96 tokens: four to a field
    assert small[1, 4, 2, 1] == as_bytes(field.max())


def test_only_what_is_drawn_is_moved(model, tokenizer):
    ids = torch.arange(100, 196)[None]
    long = trace(model, tokenizer, ids, hidden_states=False, logits=False)
    with Moved() as moved:
        explored = AttentionMap(long, layer=5, head=3)
        assert not moved.sizes and explored.trace.attentions is long.attentions
        packed = explored.layer(7)[1]
        assert moved.sizes == [10 * 96 * 97 // 2], "the bytes of the causal triangle of every plane except the mean"
        explored.view()
        explored.figure()
    assert len(packed) < moved.sizes[0] and sum(moved.sizes) < long.attentions.nbytes / 20


def test_running_out_of_memory_is_said(run, monkeypatch):
    explored = AttentionMap(run)

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(attention, "as_bytes", fail)
    for draw in (explored.view, explored.figure, lambda: explored.do("layer", row=3)):
        with pytest.raises(DoesNotFitError, match="attention_explorer ran out of memory on cpu") as error:
            draw()
        assert error.value.needed_bytes == explored.weights(0).nbytes


def test_what_the_page_gets(run, explored):
    view = explored.view()
    assert view["tokens"] == list(run.tokens) and "中" in "".join(view["tokens"])
    assert view["layers"] == list(range(30)) and view["planes"] == [*map(str, range(9)), "mean", "rollout"]
    assert (view["row"], view["plane"]) == (5, 3) and view["patches"] is None
    assert len(view["colors"]) == 256 and view["colors"][0] != view["colors"][255]
    glance = numpy.frombuffer(zlib.decompress(view["glance"]), dtype=numpy.uint8)
    assert glance.size == 30 * 11 * view["side"][0] * view["side"][1]
    assert view["first"] == explored.layer(5)[1]


def test_a_short_prompt_travels_once(model, tokenizer):
    short = AttentionMap(trace(model, tokenizer, "The capital of France is", hidden_states=False))
    assert short.view()["first"] == b"", "the small pictures have every weight already"
    assert torch.equal(short.glance()[4], as_bytes(short.weights(4)))


def test_all_layers_take_a_fortieth_of_bertviz(model, tokenizer):
    """30.7 MB at 64 tokens, for all heads: its own page's size on this model. Counted is what the cell sends
    (state as JSON, buffers, still picture as base64), and every layer."""
    from ipywidgets.widgets.widget import _remove_buffers

    ids = tokenizer("It was the best of times, it was the worst of times. " * 6)["input_ids"][:64]
    widget = attention_explorer(trace(model, tokenizer, torch.tensor([ids]), hidden_states=False, logits=False))
    state, _, buffers = _remove_buffers(widget.get_state())
    sent = len(json.dumps(state, default=str)) + sum(map(len, buffers)) + len(base64.b64encode(widget.picture()))
    sent += sum(len(widget.state.layer(row)[1]) for row in range(30))
    assert sent < 30_700_000 / 40


def test_some_layers_and_queries_have_no_rollout(model, tokenizer):
    part = trace(model, tokenizer, "one two three four five six", layers=[3, 8], positions=[2, 5], hidden_states=False)
    explored = AttentionMap(part, layer=8, head="mean")
    view = explored.view()
    assert view["planes"][-1] == "mean" and view["layers"] == [3, 8] and view["queries"] == [2, 5]
    packed = pack_layer(explored.weights(1), part.positions)
    assert len(packed) > len(explored.layer(1)[1])
    arrived = unpacked(packed, 10, part.positions, len(part.tokens))
    assert torch.equal(arrived, as_bytes(explored.weights(1)))
    assert "layer 8, mean over heads" in explored.describe()
    assert explored.figure() is not None


def test_wrong_questions_are_answered(run, explored, model, tokenizer):
    for arguments, words in (({"layer": 30}, "no layer 30"), ({"head": 9}, "no head '9'"), ({"head": "x"}, "no head")):
        with pytest.raises(BadInputError, match=words):
            attention_explorer(run, **arguments)
    with pytest.raises(BadInputError, match="no attentions"):
        attention_explorer(trace(model, tokenizer, "a", attentions=False))
    with pytest.raises(BadInputError, match="no picture in this prompt"):
        attention_explorer(run, picture=Image.new("RGB", (9, 9)))
    for row in (30, -1, "5", True, None):
        with pytest.raises(BadInputError, match="no row"):
            explored.do("layer", row=row)
    with pytest.raises(BadInputError, match="no command 'figure'"):
        explored.do("figure")


def test_the_widget_sends_a_layer_and_survives_nonsense(run, monkeypatch):
    widget = attention_explorer(run)
    sent = []
    monkeypatch.setattr(widget, "send", lambda content, buffers=None: sent.append((content, buffers)))
    widget._answer(widget, {"command": "layer", "row": 2}, [])
    widget._answer(widget, {"command": "layer", "row": 99}, [])
    widget._answer(widget, {"command": "layer"}, [])
    widget._answer(widget, ["layer"], [])
    (about, (packed,)), (refused, _), (incomplete, _), (no_command, _) = sent
    assert about == {"row": 2} and packed == widget.state.layer(2)[1]
    assert "no row 99" in refused["error"] and refused["row"] == 99, "the page knows which wish was refused"
    assert "row" in incomplete["error"]
    assert no_command == {"error": "A page sends a command and its arguments by name, not ['layer'].", "row": None}


def test_the_still_picture(explored):
    first = explored.figure()
    second = first.figure.axes[1]
    assert "layer" in first.get_xlabel() and second.get_title(loc="left") == "Layer 5, head 3"
    assert "key" in second.get_xlabel() and "query" in second.get_ylabel()
    assert len(explored.trace.tokens) > 24 and len(second.get_yticklabels()) <= 20, "few enough to be read"
    labels = [label.get_text() for label in first.get_yticklabels()]
    assert labels[-2:] == ["mean", "rollout"]
    shown = second.images[0].get_array()
    assert numpy.ma.getmaskarray(shown)[0, 1] and not numpy.ma.getmaskarray(shown)[1, 0], "the future is left blank"


def test_in_a_saved_notebook_a_picture_stands_first(run, capsys):
    widget = attention_explorer(run, layer=2, head="rollout")
    picture = widget.picture()
    assert picture.startswith(b"\x89PNG") and len(picture) < 90_000
    assert repr(widget) == (
        f"attention_explorer: 30 layers x 9 heads, {len(run.tokens)} tokens; it begins with layer 2, rollout"
    )


def test_with_a_picture():
    from glm_fixtures import FOLDER, VISION, glm, glm_processor

    picture = next(iter(sorted((FOLDER / VISION / "images").iterdir())))
    messages = [{"role": "user", "image": picture, "content": "What is this?"}]
    inputs = glm_processor(VISION).apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    run = trace(glm(VISION), glm_processor(VISION), inputs["input_ids"], pixel_values=inputs["pixel_values"])
    explored = AttentionMap(run, picture=picture)
    view = explored.view()
    assert view["patches"] == run.patch_index.tolist() and view["picture"].startswith(b"\x89PNG")
    assert AttentionMap(run).view()["picture"] is None
    first, plane, seen = explored.figure().figure.axes
    labels, side = [label.get_text() for label in plane.get_yticklabels()], explored.grid[0]
    assert [label for label in labels if label.startswith("▦")] == [f"▦ {row},0" for row in range(side)]
    assert len(labels) == len(run.tokens) - side * side + side, "every other token has a label"
    assert "row,column" in plane.get_xlabel()
    assert len(AttentionMap(run).figure().figure.axes) == 2
    assert seen.images and "query" in seen.get_title(loc="left") and len(seen.patches) == 1
    brightest = int(run.attentions[0, 0, -1, run.patch_index >= 0].argmax())
    frame, pixels = seen.patches[0], seen.images[0].get_array()
    assert frame.get_y() == pytest.approx(brightest // side * len(pixels) / side - 0.5)
    assert frame.get_x() == pytest.approx(brightest % side * len(pixels) / side - 0.5)
    assert not first.patches[0].get_clip_on(), "the frame of the last layer has all its edges"
    with pytest.raises(BadImageError, match="does not exist"):
        AttentionMap(run, picture="nowhere.png")
