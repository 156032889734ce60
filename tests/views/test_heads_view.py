"""Pictures of heads' scores and of attention over a picture; one head under a slider."""

import pytest
import torch
from PIL import Image

from helpers import trace
from helpers.errors import BadInputError
from helpers.inside.heads import head_temperature
from helpers.views.heads import plot_attention_on_picture, plot_head_scores
from helpers.views.sharpen import SharpenedHeads, sharpen_heads

PROMPT = "Please call Dr. Zubrowski tomorrow. I have not seen Dr. Z"


pytestmark = pytest.mark.usefixtures("course_style")


@pytest.fixture(scope="module")
def sharpened(model, tokenizer):
    return SharpenedHeads(model, tokenizer, PROMPT, [(18, 6)], temperature=5.0)


def test_scores_are_drawn_layer_by_head():
    scores = torch.linspace(0, 1, 12).view(4, 3)
    ax = plot_head_scores(scores, title="Scores", marked=[(3, 2)])
    assert ax.images[0].get_array().shape == (3, 4) and ax.images[0].get_clim() == (0, 1)
    assert ax.images[0].get_array()[2, 3] == 1 and len(ax.patches) == 1
    assert ax.get_xlabel() == "layer" and ax.get_ylabel() == "head"
    with pytest.raises(BadInputError, match=r"\[layer, head\]"):
        plot_head_scores(torch.zeros(3))


def test_attention_leaves_its_patch_clear():
    weights = torch.tensor([0.0, 0.2, 0.0, 0.05])
    ax = plot_attention_on_picture(weights, Image.new("RGB", (8, 8), "white"), title="seen")
    hidden = ax.images[1].cmap(ax.images[1].get_array())[..., 3]
    assert hidden.shape == (2, 2)
    assert hidden[0, 1] == 0, "the largest weight leaves the picture as it is"
    assert hidden[0, 0] > hidden[1, 1] > 0.5
    assert ax.patches[0].get_xy() == (3.5, -0.5), "it is framed too"
    with pytest.raises(BadInputError, match="do not form a square"):
        plot_attention_on_picture(torch.zeros(5), Image.new("RGB", (8, 8)))


def test_a_hot_head_looks_around(model, tokenizer, sharpened):
    with head_temperature(model, [(18, 6)], 5.0):
        direct = trace(model, tokenizer, PROMPT)
    assert torch.allclose(sharpened.after[0], direct.attentions[18, 6, -1], atol=1e-5)
    assert torch.allclose(sharpened.after[1], direct.logits[-1].softmax(-1), atol=1e-4)
    assert sharpened.before[0].max() > 0.9 > sharpened.after[0].max()
    rows = {label: (before, after) for label, before, after in sharpened.candidates()}
    assert rows["ub"][0] > rows["ub"][1]


def test_what_the_page_and_the_picture_show(sharpened):
    view = sharpened.view()
    assert view["heads"] == "18.6" and view["temperature"] == 5.0
    assert [len(part["rows"]) <= 8 for part in view["parts"]] == [True, True]
    assert "18.6" in view["parts"][0]["name"]
    titles = [ax.get_title(loc="left") for ax in sharpened.figure().figure.axes]
    assert "temperature 5" in titles[1]
    assert sharpened.describe().startswith("sharpen_heads 18.6, temperature 5: ub from ")


def test_the_slider_changes_it_and_nonsense_does_not(model, tokenizer):
    widget = sharpen_heads(model, tokenizer, "The capital of France is", [(16, 0), (18, 6)])
    before = widget.view["parts"]
    widget._answer(widget, {"command": "change", "temperature": 9.0}, [])
    assert widget.view["temperature"] == 9.0 and widget.view["parts"] != before
    for wrong in (0, -1, "hot", True, float("nan")):
        widget._answer(widget, {"command": "change", "temperature": wrong}, [])
        assert "above 0" in widget.view["message"] and widget.view["temperature"] == 9.0
    with pytest.raises(BadInputError, match="no head to sharpen"):
        sharpen_heads(model, tokenizer, "a", [])
    with pytest.raises(BadInputError, match="no head 9"):
        sharpen_heads(model, tokenizer, "a", [(0, 9)])
