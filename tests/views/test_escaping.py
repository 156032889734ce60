"""Whatever a reader, a model or a file brings is drawn as it is: no formula, no markup, no broken SVG."""

import io
import json
from types import SimpleNamespace
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import matplotlib
import pytest
import torch
from PIL import Image

from helpers.glm import ChatGLMConfig
from helpers.text.tokens import visible
from helpers.views.batches import plot_padding, show_predictions
from helpers.views.cache import KVCacheNorms, plot_kv_cache
from helpers.views.forward import plot_by_layer, plot_mask
from helpers.views.heads import plot_attention_on_picture, plot_head_scores
from helpers.views.parts import plot_parts
from helpers.views.picture_path import plot_picture_path
from helpers.views.pictures import plot_patches, plot_pictures
from helpers.views.plots import plot_attention, plot_bars, plot_memory_plan
from helpers.views.residual import plot_against_controls, plot_heads, plot_patching
from helpers.views.style import drawable

matplotlib.use("agg")

HOSTILE = (
    r"It costs $5 or $6, a$$b \frac{1}{2} $x_1^{2$",
    r"$\frac{1}{0$ $x^{$",
    "a<b & </script><img src=x onerror=alert(1)> \"q\" 'z' `k` --> ]]>",
    "\u202eabc\u0301\ufeff\x07\x00 \t",
    "你好$＄𝔘👩🏽‍💻\ud800\ufffe",
    "two\nlines",
)
PLAN = SimpleNamespace(
    weights_bytes=1, kv_cache_bytes=1, working_bytes=1, total_bytes=3, available_bytes=9, fits=True, advice=""
)
WEIGHTS = torch.eye(4)
SEEING = ChatGLMConfig(vision_config={})
RED = Image.new("RGB", (8, 8), "red")
SWEEP = {"moved": torch.zeros(3, 2), "layers": (0, 1, 2), "part": "mlp"}

# For each function, a call with the text in every place that a caller fills.
DRAWN = {
    "plot_padding": lambda text: plot_padding([3, 2], 1, titles=(text, text))[0],
    "plot_kv_cache": lambda text: plot_kv_cache(KVCacheNorms(WEIGHTS, WEIGHTS), tokens=[text] * 4),
    "plot_mask": lambda text: plot_mask(WEIGHTS.bool(), [text] * 4, [text] * 4),
    "plot_by_layer": lambda text: plot_by_layer({text: [1.0, 2.0]}, before=1, label=text, title=text),
    "plot_head_scores": lambda text: plot_head_scores(WEIGHTS, title=text, label=text),
    "plot_attention_on_picture": lambda text: plot_attention_on_picture(WEIGHTS[0], RED, title=text),
    "plot_parts": lambda text: plot_parts({text: {text: 1.0}}, unit=text, title=text, limit=(text, 2)),
    "plot_pictures": lambda text: plot_pictures([RED], [text], title=text)[0],
    "plot_patches": lambda text: plot_patches(RED, 2, title=text),
    "plot_picture_path": lambda text: plot_picture_path(SEEING, RED, places=[text] * 7, title=text),
    "plot_bars": lambda text: plot_bars({text: {text: 1.0, "b": 2.0}}, unit=text, title=text),
    "plot_memory_plan": lambda text: plot_memory_plan({text: PLAN}),
    "plot_attention": lambda text: plot_attention(WEIGHTS, [text] * 4, title=text),
    "plot_patching": lambda text: plot_patching(
        SimpleNamespace(**SWEEP, tokens=[text, "a"], source_tokens=[text, text]), title=text
    ),
    "plot_heads": lambda text: plot_heads(WEIGHTS, WEIGHTS[0], label=text, title=text),
    "plot_against_controls": lambda text: plot_against_controls(
        {text: 1.0}, {text + "2": [1.0]}, label=text, title=text
    ),
}


pytestmark = pytest.mark.usefixtures("course_style")


def _saved(figure, kind):
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=40)
    return data.getvalue()


@pytest.mark.filterwarnings("error:Glyph")
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("name", DRAWN)
def test_every_text_in_a_figure_is_drawn_as_it_is(name, text):
    figure = DRAWN[name](text).figure
    assert _saved(figure, "png").startswith(b"\x89PNG")
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        source = _saved(figure, "svg")
    assert b"<img" not in source and b"<script" not in source
    nodes = list(ElementTree.fromstring(source).iter())  # raises where it is no XML
    written = [line for node in nodes for line in (node.text or "").split("\n")]
    assert any(line and line in drawable(text).replace(r"\$", "$") for line in written if line.strip()), "as text"


def test_a_text_goes_through_once():
    assert drawable("a $b$ \\$") == r"a \$b\$ \\$"
    assert drawable("a\nb\x07") == "a\nbU+0007"
    assert drawable(5) == "5"


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_visible_is_fit_for_xml(text):
    """Labels of tokens are what a widget's page writes into the SVG that it saves."""
    assert ElementTree.fromstring(f"<a>{escape(visible(text))}</a>").text == visible(text)


def test_predictions_are_a_table_of_text(tmp_path):
    rows = [{"Input": text, "Output": text.encode("utf-8", "replace").decode()} for text in HOSTILE]
    rows += [{"Input": 5, "Output": None}, {"Input": ["<b>"], "Output": {"a": "<img>"}}]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    (tmp_path / "p.jsonl").write_text(json.dumps({"index": len(HOSTILE), "error": "<script>alert(1)</script>"}) + "\n")
    table = show_predictions(tmp_path / "p.json").data
    for markup in ("<img", "<script", "</script", "<b>"):
        assert markup not in table
    assert "&lt;img src=x" in table and "<em>failed:</em> &lt;script&gt;" in table
