"""What the pictures of a forward pass show, and what they refuse to draw."""

from math import pi
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from transformers import LlamaConfig

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.colors import to_rgba

from helpers.errors import BadInputError
from helpers.inside.generation import generate_steps
from helpers.views.forward import (
    CACHED,
    plot_by_layer,
    plot_dials,
    plot_mask,
    plot_periods,
    plot_scores,
    plot_two_passes,
)

PROMPTS = ["The capital of France is", "星期一、星期二、星期三、星期", "Hello"]


pytestmark = pytest.mark.usefixtures("no_warnings")


def _written(ax):
    return [text.get_text() for text in ax.texts if text.get_text()]


def _cells(ax, width, height):
    """Rectangles of one size, and whether each has the colour of what comes from the cache."""
    return [
        patch.get_edgecolor() == to_rgba(CACHED)
        for patch in ax.patches
        if hasattr(patch, "get_width") and (patch.get_width(), patch.get_height()) == (width, height)
    ]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_two_passes_show_tokens_positions_and_shapes(model, tokenizer, prompt):
    first, later = generate_steps(model, tokenizer, prompt, max_new_tokens=2, eos_token_id=[])
    length = first.kv_length
    written = _written(plot_two_passes(first, later, tokenizer, model.config))
    for shape in (
        f"input_ids [1, {length}]",
        f"position_ids [1, {length}]",
        f"hidden_states [1, {length}, 576]",
        f"in each of 30 layers: KV cache [1, 3, {length}, 64]",
        f"in each of 30 layers: KV cache [1, 3, {length + 1}, 64]",
        f"attention, one row per query [1, 9, {length}, {length}]",
        f"attention, one row per query [1, 9, 1, {length + 1}]",
        "hidden_states [1, 1, 576]",
        "logits [1, 1, 49152]",
    ):
        assert shape in written
    assert any(text.startswith(f"logits [1, {length}, 49152]") for text in written)
    assert {first.token, later.token} <= set(written)
    assert str(length) in written  # the new token's position
    assert "0" in written


def test_the_triangle_and_the_row_are_what_attention_sees(model, tokenizer):
    steps = list(generate_steps(model, tokenizer, PROMPTS[0], max_new_tokens=2))
    ax = plot_two_passes(*steps, tokenizer, model.config)
    scores = _cells(ax, 0.5, 0.5)
    assert len(scores) == 5 * 6 // 2 + 6  # 1 + 2 + … + 5 in the first pass, one row of 6 in the later one
    assert not any(scores)  # every weight is computed anew; what comes from the cache are keys and values
    kept = _cells(ax, 0.9, 0.6)
    assert (len(kept), sum(kept)) == (5 + 6, 5)


def test_a_long_prompt_is_drawn_with_its_ends(model, tokenizer):
    steps = list(generate_steps(model, tokenizer, "word " * 40, max_new_tokens=2, eos_token_id=[]))
    ax = plot_two_passes(*steps, tokenizer, model.config)
    assert ax.figure.get_size_inches()[0] < 12
    written = _written(ax)
    length = steps[0].kv_length
    assert {"0", "1", "2", str(length - 1), str(length), "…", "⋮"} <= set(written)
    assert str(length // 2) not in written


def test_two_passes_draw_into_given_axes_and_work_without_head_dim(model, tokenizer):
    steps = list(generate_steps(model, tokenizer, "Hello", max_new_tokens=2, eos_token_id=[]))
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    config.head_dim = None
    ax = pyplot.subplots()[1]
    assert plot_two_passes(*steps, tokenizer, config, ax=ax) is ax
    assert any("[1, 2, 1, 8]" in text for text in _written(ax))


def test_steps_that_do_not_follow_on_each_other_are_refused(model, tokenizer):
    first, second, third = generate_steps(model, tokenizer, "Hello", max_new_tokens=3, eos_token_id=[])
    for pair in ((second, third), (first, third), (second, first)):
        with pytest.raises(BadInputError, match="the first two steps of generate_steps"):
            plot_two_passes(*pair, tokenizer, model.config)


def test_text_that_looks_like_a_formula_stays_text(tokenizer):
    ids = tokenizer("$x^2$ costs $5")["input_ids"]
    first = SimpleNamespace(input_ids=torch.tensor([ids]), kv_length=len(ids), token="$")
    later = SimpleNamespace(input_ids=torch.tensor([ids[:1]]), kv_length=len(ids) + 1, token="$\\frac$")
    assert r"\$" in _written(plot_two_passes(first, later, tokenizer, LlamaConfig()))


def test_a_mask_says_what_is_added_to_each_score():
    visible = torch.ones(3, 3).tril().bool()
    ax = plot_mask(visible, ["我", "·am", "$"], ["我", "·am", "$"])
    assert _written(ax) == ["0", "−∞", "−∞", "0", "0", "−∞", "0", "0", "0"]
    assert ax.images[0].get_array().tolist() == visible.tolist()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["我", "·am", r"\$"]
    assert "key" in ax.get_xlabel() and "query" in ax.get_ylabel()


def test_a_mask_of_one_query_is_a_row():
    ax = pyplot.subplots()[1]
    assert plot_mask(torch.tensor([[True, True, True]]), ["c"], ["a", "b", "c"], ax=ax) is ax
    assert _written(ax) == ["0", "0", "0"]


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(BadInputError, match=r"\[2, 3\], but 3 queries and 3 keys need \[3, 3\]"):
        plot_mask(torch.ones(2, 3).bool(), ["a", "b", "c"], ["a", "b", "c"])


def test_scores_are_written_and_masked_ones_are_grey():
    scores = torch.tensor([[1.0, -torch.inf], [-2.0, 3.0]])
    ax = plot_scores(scores, ["我", "$"], title="t")
    assert _written(ax) == ["1.0", "−∞", "-2.0", "3.0"]
    assert ax.images[0].get_clim() == (-2, 3) and ax.get_title("left") == "t"
    assert ax.images[0].cmap.get_bad()[:3] == pytest.approx(to_rgba("#f0f2f4")[:3], abs=0.01)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["我", r"\$"]
    own = pyplot.subplots()[1]
    assert plot_scores(scores.softmax(-1), ["a", "b"], weights=True, ax=own) is own
    assert own.images[0].get_clim() == (0, 1) and _written(own)[:2] == ["1.00", "0.00"]
    with pytest.raises(BadInputError, match=r"\[2, 2\], but 3 tokens need \[3, 3\]"):
        plot_scores(scores, ["a", "b", "c"])


def test_dials_go_clockwise_from_twelve():
    quarter = torch.tensor([pi / 2, pi / 2000])
    ax = plot_dials(quarter, pairs=(0, 1), positions=6)
    (x, y), (slow_x, slow_y) = (dots.get_offsets().T.tolist() for dots in ax.collections)
    assert x == pytest.approx([0, 1, 0, -1, 0, 1.14], abs=1e-6)  # the second round is drawn further out
    assert y == pytest.approx([-1, 0, 1, 0, -1.14, 0], abs=1e-6)  # y grows downwards
    assert max(slow_x) - min(slow_x) < 0.01 and slow_y == pytest.approx([-1] * 6, abs=1e-3)
    assert {"pair 0", "pair 1", "a circle in 4", "a circle in 4,000"} <= set(_written(ax))


def test_dials_draw_the_model_s_own_frequencies(model):
    frequencies = model.model.rotary_emb.inv_freq
    assert len(plot_dials(frequencies).collections) == 6
    with pytest.raises(BadInputError, match="no pair 32: there are pairs 0 to 31"):
        plot_dials(frequencies, pairs=(0, 32))


def test_periods_are_counted_against_the_context(model):
    frequencies = model.model.rotary_emb.inv_freq
    ax = plot_periods(frequencies, 8192)
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx([2 * pi / float(frequency) for frequency in frequencies])
    inside = sum(height <= 8192 for height in heights)
    labels = {text.get_text() for text in ax.get_legend().get_texts()}
    counts = {f"within the context: {inside} pairs", f"longer than the context: {32 - inside} pairs"}
    assert labels == {"context: 8,192", *counts}
    assert ax.get_yscale() == "log"


def test_bars_by_layer_stand_side_by_side():
    ax = plot_by_layer({"attention": [0.1, 0.2, 0.3], "MLP": [0.4, 0.5, 0.6]}, before=0.7, label="p", title="t")
    bars = [(bar.get_x(), bar.get_height()) for bar in ax.patches]
    assert [height for _, height in bars] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert bars[3][0] - bars[0][0] == pytest.approx(0.42)  # beside each other, around the layer's number
    assert ax.lines[0].get_ydata()[0] == 0.7
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title("left")) == ("layer", "p", "t")
    assert not plot_by_layer({"one": [1.0]}).lines


@pytest.mark.parametrize("values", [{}, {"a": []}, {"a": [1], "b": [1, 2]}])
def test_series_that_do_not_fit_are_refused(values):
    with pytest.raises(BadInputError, match="one number per layer"):
        plot_by_layer(values)
