"""The KV cache as a picture and as a widget that grows with the steps."""

import json

import matplotlib
import pytest
import torch
from matplotlib import pyplot
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, StaticCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from helpers.errors import BadInputError, PromptTooLongError
from helpers.inside.generation import generate_steps
from helpers.inside.kv_cache import kv_cache_norms, kv_cache_summary
from helpers.text.prompts import render_chat
from helpers.views.cache import MOST_POSITIONS, CacheSteps, kv_cache_explorer, plot_kv_cache
from helpers.views.style import colormap

matplotlib.use("agg")
PROMPT = "The capital of France is"
LENGTH = 6


pytestmark = pytest.mark.usefixtures("no_warnings")


@pytest.fixture(scope="module")
def random_model(tokenizer):
    """A model of three small layers with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=1.0,
    )
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.fixture
def steps(random_model, tokenizer):
    return CacheSteps(random_model, tokenizer, PROMPT, max_new_tokens=LENGTH)


def filled(model, tokenizer, cache=None, text=PROMPT):
    cache = cache or DynamicCache(config=model.config)
    return model(tokenizer(text, return_tensors="pt").input_ids, past_key_values=cache).past_key_values


# ---------------------------------------------------------------- norms


def test_norms_are_those_of_the_vectors(random_model, tokenizer):
    cache = filled(random_model, tokenizer)
    norms = kv_cache_norms(cache)
    assert norms.keys.shape == norms.values.shape == (3, 5)
    for index, layer in enumerate(cache.layers):
        by_head = [float((layer.values[0, head, 4] ** 2).sum() ** 0.5) for head in range(2)]
        assert float(norms.values[index, 4]) == pytest.approx(sum(by_head) / 2, rel=1e-5)
        assert torch.allclose(norms.keys[index], layer.keys[0].pow(2).sum(-1).sqrt().mean(0))


def test_norms_of_a_static_cache_are_of_what_is_filled(random_model, tokenizer):
    static = filled(random_model, tokenizer, StaticCache(config=random_model.config, max_cache_len=20))
    assert torch.allclose(kv_cache_norms(static).keys, kv_cache_norms(filled(random_model, tokenizer)).keys, atol=1e-5)


def test_norms_of_a_sliding_cache_are_of_what_it_still_holds(random_model, tokenizer):
    sliding = Cache(layers=[DynamicSlidingWindowLayer(sliding_window=4) for _ in range(3)])
    assert kv_cache_norms(filled(random_model, tokenizer, sliding)).keys.shape == (3, 3)


def test_norms_of_what_cannot_be_read(random_model, tokenizer):
    with pytest.raises(BadInputError, match="past_key_values"):
        kv_cache_norms((1, 2))
    mixed = Cache(layers=[DynamicSlidingWindowLayer(sliding_window=3), DynamicLayer(), DynamicLayer()])
    with pytest.raises(BadInputError, match=r"numbers of positions, \[2, 5\]"):
        kv_cache_norms(filled(random_model, tokenizer, mixed))
    packed = filled(random_model, tokenizer)
    packed.layers[1].keys = torch.tensor([])
    with pytest.raises(BadInputError, match="Layer 1 is a DynamicLayer: its keys are packed"):
        kv_cache_norms(packed)


# ---------------------------------------------------------------- the plot


def test_the_plot_shows_keys_and_values_with_their_tokens(random_model, tokenizer):
    cache = filled(random_model, tokenizer, text="你好 $x$")
    count = cache.get_seq_length()
    tokens = [f"tok{number}" for number in range(count - 1)] + ["$"]
    ax = plot_kv_cache(cache, tokens=tokens)
    values, keys = (image.get_array() for image in ax.images)
    norms = kv_cache_norms(cache)
    assert torch.equal(torch.tensor(keys.data), norms.keys)
    assert torch.equal(torch.tensor(values.data), norms.values)
    assert [image.norm.vmin for image in ax.images] == [0, 0]
    assert [label.get_text() for label in ax.get_xticklabels()] == [*tokens[:-1], r"\$"] * 2
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("position", "layer")
    assert f"3 layers, {count} positions" in ax.get_title("left")
    assert plot_kv_cache(cache, title="What $x$ costs").get_title("left") == r"What \$x\$ costs"


def test_the_plot_takes_axes_and_long_caches(random_model, tokenizer):
    _, given = pyplot.subplots()
    ax = plot_kv_cache(filled(random_model, tokenizer, text="word " * 150), ax=given)
    assert ax is given
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert len(labels) <= 80
    assert labels[:2] == ["0", "4"]


def test_the_plot_refuses_other_tokens_and_other_things(random_model, tokenizer):
    with pytest.raises(BadInputError, match="5 positions, but there are 2 tokens"):
        plot_kv_cache(filled(random_model, tokenizer), tokens=["a", "b"])
    with pytest.raises(BadInputError, match="past_key_values"):
        plot_kv_cache([1, 2])
    with pytest.raises(BadInputError, match="empty"):
        plot_kv_cache(DynamicCache())


# ---------------------------------------------------------------- the steps behind the widget


def test_the_steps_are_those_of_generation(steps, random_model, tokenizer):
    while steps.can_go_forward:
        steps.forward()
    expected = generate_steps(random_model, tokenizer, PROMPT, max_new_tokens=LENGTH)
    assert [step.token_id for step in steps.steps] == [step.token_id for step in expected]
    last = steps.index
    steps.forward()
    assert steps.index == last == LENGTH - 1


def test_each_step_adds_a_column_and_back_takes_it_away(steps):
    first = steps.view()
    assert (first["length"], first["fresh"], len(first["keys"]), len(first["keys"][0])) == (5, 5, 3, 5)
    steps.forward()
    second = steps.view()
    assert (second["length"], second["fresh"], len(second["values"][0])) == (6, 1, 6)
    assert [row[:5] for row in second["keys"]] == first["keys"]
    assert second["bytes"] - first["bytes"] == second["growth"]
    assert second["tokens"][-1]["label"] == first["token"]
    assert second["tokens"][-1]["step"] == 0
    steps.back()
    assert {**steps.view(), "last": 0} == first
    steps.go_to(1)
    assert steps.view() == second
    for wrong in (7, -1, "1"):
        with pytest.raises(BadInputError, match=f"no step {wrong}"):
            steps.go_to(wrong)


def test_the_numbers_are_those_of_the_cache(steps, random_model, tokenizer):
    summary = kv_cache_summary(filled(random_model, tokenizer))
    view = steps.view()
    assert view["bytes"] == summary.nbytes
    assert tuple(view["shape"]) == summary.layers[0].keys
    norms = kv_cache_norms(filled(random_model, tokenizer))
    assert torch.allclose(torch.tensor(view["values"]), norms.values, atol=1e-3)


def test_a_long_chat_shows_its_end(random_model, tokenizer):
    chat = render_chat(tokenizer, [{"role": "user", "content": "字 word " * 60}])
    steps = CacheSteps(random_model, tokenizer, chat, max_new_tokens=2)
    view = steps.view()
    assert len(view["tokens"]) == len(view["keys"][0]) == MOST_POSITIONS
    assert view["first"] + MOST_POSITIONS == view["length"] == len(chat.input_ids)
    assert any(token["special"] for token in view["tokens"])
    assert steps.figure() is not None


def test_what_the_page_gets_is_plain_and_what_it_may_call_is_named(steps):
    assert json.loads(json.dumps(steps.view())) == steps.view()
    for command in ("__init__", "_run", "view", "figure"):
        with pytest.raises(BadInputError, match="no command"):
            steps.do(command)


def test_colours_are_css():
    assert len(colormap()) == 33
    assert all(len(color) == 7 and color.startswith("#") for color in colormap())


def test_wrong_prompts_and_settings_say_what_is_wrong(random_model, tokenizer):
    with pytest.raises(BadInputError, match="empty"):
        kv_cache_explorer(random_model, tokenizer, "")
    with pytest.raises(BadInputError, match="'heat'"):
        kv_cache_explorer(random_model, tokenizer, PROMPT, heat=1)
    with pytest.raises(BadInputError, match="past_key_values"):
        kv_cache_explorer(random_model, tokenizer, PROMPT, past_key_values=DynamicCache())
    with pytest.raises(PromptTooLongError):
        kv_cache_explorer(random_model, tokenizer, PROMPT, max_new_tokens=10_000)


# ---------------------------------------------------------------- the widget


def test_a_cell_holds_a_picture_then_the_widget(model, tokenizer, monkeypatch):
    outputs = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: outputs.append(data))
    widget = kv_cache_explorer(model, tokenizer, PROMPT, max_new_tokens=3)
    widget._ipython_display_()
    picture, live = outputs
    assert picture["image/png"].startswith(b"\x89PNG")
    assert len(picture["image/png"]) < 60_000
    assert picture["text/plain"] == repr(widget)
    assert "30 layers, keys [1, 3, 5, 64], 230,400 bytes; next: ·Paris" in repr(widget)
    assert "application/vnd.jupyter.widget-view+json" in live
    assert "0x" not in picture["text/plain"] + live["text/plain"]


def test_a_wish_of_the_page_is_answered_with_a_new_view(random_model, tokenizer):
    widget = kv_cache_explorer(random_model, tokenizer, PROMPT, max_new_tokens=3)
    widget._handle_custom_msg({"command": "forward"}, [])
    assert (widget.view["turn"], widget.view["index"], widget.view["message"]) == (1, 1, "")
    widget._handle_custom_msg({"command": "go_to", "index": 9}, [])
    assert (widget.view["turn"], widget.view["index"]) == (2, 1)
    assert "no step 9" in widget.view["message"]


def test_nothing_is_loaded_from_outside(random_model, tokenizer):
    widget = kv_cache_explorer(random_model, tokenizer, PROMPT, max_new_tokens=2)
    for text in (str(widget._esm), str(widget._css)):
        assert "http" not in text
        assert "import " not in text
        assert "innerHTML" not in text
    assert "tabindex: 0" in str(widget._esm)
    assert ".hx-panels" in str(widget._css)


# ---------------------------------------------------------------- caches whose layers hold different positions


@pytest.mark.parametrize(
    "kinds", [["sliding_attention", "full_attention", "sliding_attention"], ["sliding_attention"] * 3]
)
def test_each_step_shows_what_the_cache_held_then(kinds, tokenizer):
    """With windows, an earlier step is not a part of a later one: what has left a window is shown where it was."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        **{"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": len(kinds)},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 6},
        **{"layer_types": kinds, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2},
    )
    model = Gemma3ForCausalLM(config).eval()
    steps = CacheSteps(model, tokenizer, "The capital of France is", max_new_tokens=5)
    seen = []
    while steps.can_go_forward:
        summary = kv_cache_summary(steps._cache)
        norms = kv_cache_norms(steps._cache, aligned=True)
        seen.append((summary.nbytes, norms))
        assert (steps.view()["bytes"], steps.view()["length"]) == (summary.nbytes, summary.length)
        steps.forward()
    assert seen[-1][1].keys.shape[1] > 6
    for index, (nbytes, norms) in enumerate(seen):
        steps.go_to(index)
        view = steps.view()
        assert view["bytes"] == nbytes
        assert json.loads(json.dumps(view)) == view
        keys = torch.tensor([[float("nan") if v is None else v for v in row] for row in view["keys"]])
        assert torch.allclose(keys, norms.keys, atol=1e-3, equal_nan=True)
    assert steps.figure().images
    pyplot.close("all")
