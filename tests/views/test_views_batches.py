"""helpers.views.batches: batches drawn, predictions as a table."""

import json

import matplotlib
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from helpers.batch.throughput import BatchMeasure
from helpers.errors import BadInputError
from helpers.views.batches import plot_batch_sizes, plot_padding, plot_slots, show_predictions


def test_padding_is_counted_as_it_comes_and_sorted():
    left, right = plot_padding([1, 9, 2, 8], 2)
    assert left.get_title().endswith("41% padding")  # 14 of 34
    assert right.get_title().endswith("9% padding")  # 2 of 22
    assert sum(-bar.get_width() for bar in left.patches) == 34
    assert sum(-bar.get_width() for bar in right.patches) == 22


def test_nothing_to_draw():
    with pytest.raises(BadInputError, match="0 prompts"):
        plot_padding([], 2)
    with pytest.raises(BadInputError, match="batches of 0"):
        plot_padding([1], 0)


def test_throughput_and_memory():
    measures = [BatchMeasure(1, 2.0, 1_000_000, []), BatchMeasure(8, 6.0, 8_000_000, [])]
    speed, memory = plot_batch_sizes(measures)
    assert list(speed.lines[0].get_ydata()) == [2.0, 6.0]
    assert speed.get_title() == "A batch of 8 is 3 times as fast"
    assert memory.get_title() == "A batch of 8 needs 8 MB beyond the weights"
    assert speed.get_ylim()[1] >= max(speed.lines[1].get_ydata()) == 16.0
    assert "×3" in [text.get_text() for text in speed.texts]
    assert [bar.get_height() for bar in memory.patches] == [1.0, 8.0]
    assert [label.get_text() for label in memory.get_xticklabels()] == ["1", "8"]


def test_slots_wait_or_are_refilled():
    waiting, refilled = plot_slots([5, 1, 1, 1, 4], 2)
    assert waiting.get_title() == "Batches wait: 10 steps"
    assert refilled.get_title() == "Slots are refilled: 7 steps"
    colours = [{bar.get_facecolor() for bar in ax.patches} for ax in (waiting, refilled)]
    assert list(map(len, colours)) == [2, 1]  # one batch and the next; no batches where slots are refilled
    given = [plt.subplots()[1] for _ in range(2)]
    assert list(plot_slots([1], 1, axes=given)) == given


def test_predictions_as_a_table(tmp_path):
    items = [
        {"Input": "<b>你好</b>", "Output": "x" * 400},
        {"Input": "bad", "Output": None},
        {"Input": "c", "Output": ""},
    ]
    (tmp_path / "p.json").write_text(json.dumps(items), encoding="utf-8")
    without = show_predictions(tmp_path / "p.json").data
    assert "&lt;b&gt;你好&lt;/b&gt;" in without and "<b>" not in without
    assert "x" * 300 + " …" in without and "x" * 301 not in without
    assert "failed" in without
    lines = [{"index": 1, "Input": "bad", "Output": None, "error": "ValueError: <i>"}, {"index": 0}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert "<em>failed:</em> ValueError: &lt;i&gt;" in show_predictions(tmp_path / "p.json").data
    assert "… and 2 more" in show_predictions(tmp_path / "p.json", rows=1).data
    with pytest.raises(BadInputError, match="There is no"):
        show_predictions(tmp_path / "nothing.json")


def test_values_that_are_no_text_are_shown_as_they_are(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps([{"Input": 5, "Output": 0}, {"Input": [], "Output": False}]))
    shown = show_predictions(tmp_path / "p.json").data
    assert all(f">{value}</td>" in shown for value in ("5", "0", "[]", "False"))
