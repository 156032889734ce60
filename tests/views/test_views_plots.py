from types import SimpleNamespace

import matplotlib
import pytest
import torch
from matplotlib import pyplot

from helpers.errors import BadInputError
from helpers.inside.generation import generate_steps
from helpers.views.plots import (
    MOST_LABELS,
    candidates,
    numbered,
    percent,
    plot_attention,
    plot_bars,
    plot_logit_lens,
    plot_memory_plan,
    plot_next_token,
    plot_processors,
    stage_scores,
)

matplotlib.use("agg")


pytestmark = pytest.mark.usefixtures("no_warnings")


@pytest.fixture(scope="module")
def step(model, tokenizer):
    """A sampled step in which every processor takes part."""
    settings = {"temperature": 0.6, "top_k": 8, "top_p": 0.8, "repetition_penalty": 1.3}
    prompt = "你好! The capital of France is"
    return next(generate_steps(model, tokenizer, prompt, max_new_tokens=1, do_sample=True, seed=0, **settings))


def rows(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def widths(ax):
    return [bar.get_width() for bar in ax.patches]


def test_next_token_draws_the_best_and_marks_the_one_taken(step, tokenizer):
    ax = plot_next_token(step, tokenizer, top=5)
    left = int((step.probabilities > 0).sum())
    assert len(rows(ax)) == min(5, left)
    assert widths(ax) == pytest.approx(step.probabilities.topk(len(rows(ax))).values.tolist(), abs=1e-6)
    marked = [row for row, note in zip(rows(ax), texts(ax), strict=True) if "taken" in note]
    assert marked == [step.token]


def test_next_token_takes_probabilities_or_logits(step, tokenizer):
    from_logits = plot_next_token(step.logits, tokenizer)
    from_probabilities = plot_next_token(step.logits.softmax(dim=-1), tokenizer)
    assert len(rows(from_logits)) == 10
    assert rows(from_logits) == rows(from_probabilities)
    assert widths(from_logits) == pytest.approx(widths(from_probabilities), abs=1e-5)
    assert not any("taken" in text for text in texts(from_logits))


def test_a_token_taken_from_far_down_is_still_shown(step, tokenizer):
    rare = SimpleNamespace(probabilities=step.logits.softmax(dim=-1), token_id=int(step.logits.argmin()))
    assert len(rows(plot_next_token(rare, tokenizer, top=3))) == 4


@pytest.mark.parametrize("wrong", [torch.zeros(2, 5), "text", None])
def test_next_token_says_what_it_takes(wrong, tokenizer):
    with pytest.raises(BadInputError, match=r"\[vocab\]"):
        plot_next_token(wrong, tokenizer)


def test_processors_have_a_column_each_and_cross_out_what_they_remove(step, tokenizer):
    ax = plot_processors(step, tokenizer, top=12)
    columns = [label.get_text() for label in ax.get_xticklabels()]
    assert columns == ["raw logits", "1. repetition penalty", "2. temperature", "3. top k", "4. top p"]
    followed = candidates(stage_scores(step), tokenizer, top=12, chosen=step.token_id)
    gone = sum(p is None for row in followed for p in row.probabilities)
    assert gone == sum("removed" in text for text in texts(ax)) > 0
    for column, scores in enumerate(stage_scores(step).values()):
        expected = scores.softmax(-1)
        for row in followed:
            assert (row.probabilities[column] or 0.0) == pytest.approx(float(expected[row.token_id]), abs=1e-6)


def test_candidates_complete_a_character_when_they_know_what_came_before(tokenizer):
    first, second = tokenizer("你")["input_ids"][-2:]
    logits = torch.zeros(len(tokenizer))
    logits[second] = 10
    assert candidates({"raw": logits}, tokenizer, top=1)[0].label.startswith("<")
    assert candidates({"raw": logits}, tokenizer, top=1, before=[first])[0].label == "你 2/2"


def test_percent_reads_well():
    assert [percent(p) for p in (1.0, 0.1234, 0.0001, 0.0)] == ["100.0%", "12.3%", "<0.1%", "0.0%"]


def test_bars_show_their_numbers_and_groups_have_a_legend():
    ax = plot_bars({"English": 0.234, "中文 $": 1.6}, unit="tokens per character")
    assert texts(ax) == ["0.234", "1.6"]
    assert rows(ax)[0] == "English"
    grouped = plot_bars({"a": {"x": 1, "y": 2345.6}, "b": {"x": 3}})
    assert [text.get_text() for text in grouped.get_legend().get_texts()] == ["x", "y"]
    assert "2,346" in texts(grouped)
    with pytest.raises(BadInputError, match="empty"):
        plot_bars({})


def plan(weights, cache, available, working=0):
    return SimpleNamespace(
        name=f"model-{weights}",
        weights_bytes=int(weights * 1e9),
        kv_cache_bytes=int(cache * 1e9),
        working_bytes=int(working * 1e9),
        total_bytes=int((weights + cache + working) * 1e9),
        available_bytes=int(available * 1e9),
        fits=weights + cache + working <= available,
    )


def test_memory_plans_say_in_words_what_fits():
    ax = plot_memory_plan({"small": plan(0.5, 0.1, 10), "large": plan(16, 1, 10)})
    assert [text.split("  ")[1] for text in texts(ax)] == ["✓ fits", "✕ does not fit"]
    assert texts(ax)[1].startswith("17 GB")
    assert rows(ax) == ["small", "large"]
    assert rows(plot_memory_plan([plan(1, 0, 10)])) == ["model-1"]
    assert plot_memory_plan([plan(1, 0, 10)], title="It fits").get_title("left") == "It fits"
    bars = plot_memory_plan([plan(1, 2, 10, working=3)]).patches
    assert [(round(bar.get_x()), round(bar.get_width())) for bar in bars] == [(0, 1), (1, 2), (3, 3)]
    with pytest.raises(BadInputError, match="empty"):
        plot_memory_plan([])


def test_memory_plans_of_real_models():
    from helpers.models.memory import memory_plan

    ax = plot_memory_plan({name: memory_plan(name) for name in ("smollm2-135m",)})
    assert "fits" in texts(ax)[0]


def test_attention_has_its_axes_named_and_runs_from_0_to_1():
    weights = torch.eye(3)
    ax = plot_attention(weights, ["the", "cat", "the"])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("key (attended to)", "query (attends)")
    assert rows(ax) == ["the", "cat", "the (2)"]
    assert ax.images[0].get_clim() == (0, 1)
    assert torch.equal(torch.tensor(ax.images[0].get_array().data), weights)


def test_only_what_a_causal_mask_shuts_off_stays_white():
    causal = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.3, 0.3, 0.4]])
    shown = plot_attention(causal, ["a", "b", "c"]).images[0].get_array().mask
    assert shown.tolist() == [[False, True, True], [False, False, True], [False, False, False]]
    both_ways = torch.full((3, 3), 1 / 3)
    assert not plot_attention(both_ways, ["a", "b", "c"]).images[0].get_array().mask.any()


def test_attention_of_many_tokens_labels_every_nth():
    count = 3 * MOST_LABELS
    ax = plot_attention(torch.eye(count), [f"t{n}" for n in range(count)])
    assert rows(ax)[:2] == ["t0", "t3"]
    assert len(rows(ax)) == MOST_LABELS


def test_attention_of_a_wrong_shape_is_named():
    with pytest.raises(BadInputError, match=r"\[9, 3, 3\].*one head"):
        plot_attention(torch.zeros(9, 3, 3), ["a", "b", "c"])


def test_numbered_tells_repeated_labels_apart():
    assert numbered(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]


def test_logit_lens_writes_each_layers_best_token(tokenizer):
    ids = torch.tensor([[[7042], [282]], [[314], [504]], [[30], [28]]])
    lens = SimpleNamespace(token_ids=ids, probabilities=torch.full(ids.shape, 0.5))
    ax = plot_logit_lens(lens, tokenizer, ["·is", "·the"])
    assert rows(ax) == ["embedding", "row 1", "row 2"]
    assert texts(ax) == ["·Paris", "·of", "·is", "The", ".", ","]
    assert texts(plot_logit_lens(lens, tokenizer, ["·is", "·the"], positions=[-1])) == ["·of", "The", ","]
    few = plot_logit_lens(lens, tokenizer, ["·is", "·the"], positions=[-1], rows=[0, 2], title="Two rows")
    assert texts(few) == ["·of", ","] and few.get_title("left") == "Two rows"
    assert [tick.get_text() for tick in few.get_yticklabels()] == ["embedding", "row 2"]
    assert len(few.lines) == 1  # where row 1 was left out


def test_every_plot_draws_into_given_axes(step, tokenizer):
    lens = SimpleNamespace(token_ids=torch.ones(2, 2, 1).long(), probabilities=torch.ones(2, 2, 1))
    draw = [
        lambda ax: plot_next_token(step, tokenizer, ax=ax),
        lambda ax: plot_processors(step, tokenizer, ax=ax),
        lambda ax: plot_bars({"a": 1}, ax=ax),
        lambda ax: plot_memory_plan([plan(1, 1, 9)], ax=ax),
        lambda ax: plot_attention(torch.eye(2), ["a", "b"], ax=ax),
        lambda ax: plot_logit_lens(lens, tokenizer, ["a", "b"], ax=ax),
    ]
    for function in draw:
        ax = pyplot.subplots()[1]
        before = len(pyplot.get_fignums())
        assert function(ax) is ax
        assert len(pyplot.get_fignums()) == before
