"""What a reader may type by mistake ends in one sentence at the door, not somewhere inside a library."""

import io
import re
from functools import reduce
from xml.etree import ElementTree

import matplotlib
import pytest
import torch
from matplotlib import pyplot
from PIL import Image
from small_tokenizers import sentencepiece_like, tiny_llama

import helpers
from helpers import batch, checks, inside, models, text, views
from helpers.errors import BadInputError
from helpers.inside.kv_cache import common_prefix
from helpers.library_source import show_source
from helpers.views.batches import plot_batch_sizes, plot_padding, plot_slots, show_predictions
from helpers.views.pictures import plot_pictures

matplotlib.use("agg")

TOKENIZER = sentencepiece_like()
MODEL = tiny_llama(TOKENIZER)
RUN = helpers.trace(MODEL, TOKENIZER, "Hello")
LENS = helpers.logit_lens(MODEL, RUN)
PARTS = helpers.residual_contributions(MODEL, TOKENIZER, "Hello")
STEP = next(iter(helpers.generate_steps(MODEL, TOKENIZER, "Hello", max_new_tokens=1)))
RED = Image.new("RGB", (8, 8), "red")
ZEROS = torch.zeros(48)
META = torch.zeros(2, dtype=torch.long, device="meta")
DEEP = reduce(lambda inner, _: [inner], range(3000), [])


def _inside(change):
    with change:
        helpers.trace(MODEL, TOKENIZER, "Hello")


NO_MODELS = (None, 5, "smollm2-135m", TOKENIZER)
TAKES_A_MODEL = {
    "trace": lambda model: helpers.trace(model, TOKENIZER, "Hello"),
    "hidden_state_explorer": lambda model: helpers.hidden_state_explorer(model, TOKENIZER, "Hello"),
    "image_chat": lambda model: helpers.image_chat(model, TOKENIZER),
    "kv_cache_explorer": lambda model: helpers.kv_cache_explorer(model, TOKENIZER, "Hello"),
    "logit_lens": lambda model: helpers.logit_lens(model, RUN),
    "residual_contributions": lambda model: helpers.residual_contributions(model, TOKENIZER, "Hello"),
    "head_contributions": lambda model: helpers.head_contributions(model, PARTS, 0),
    "ablate_heads": lambda model: _inside(helpers.ablate_heads(model, [(0, 0)])),
    "skip_layer": lambda model: _inside(helpers.skip_layer(model, 0)),
    "steer": lambda model: _inside(helpers.steer(model, 0, ZEROS)),
    "patch_hidden_state": lambda model: _inside(helpers.patch_hidden_state(model, 0, 0, ZEROS)),
}


@pytest.mark.parametrize("model", NO_MODELS, ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("name", TAKES_A_MODEL)
def test_what_is_no_model(name, model):
    with pytest.raises(BadInputError, match="model must be what load_model returns, not"):
        TAKES_A_MODEL[name](model)


WRONG = {
    "structure": lambda: helpers.show_structure(5),
    "trace outputs_of": lambda: helpers.trace(MODEL, TOKENIZER, "Hello", outputs_of=5),
    "trace inputs_of": lambda: helpers.trace(MODEL, TOKENIZER, "Hello", inputs_of=None),
    "trace outputs_of number": lambda: helpers.trace(MODEL, TOKENIZER, "Hello", outputs_of=[5]),
    "trace cache": lambda: helpers.trace(MODEL, TOKENIZER, "Hello", past_key_values=5),
    "trace positions": lambda: helpers.trace(MODEL, TOKENIZER, "Hello", position_ids="x"),
    "trace mask": lambda: helpers.trace(MODEL, TOKENIZER, "Hello", attention_mask=5),
    "lens trace": lambda: helpers.logit_lens(MODEL, "text"),
    "head_contributions parts": lambda: helpers.head_contributions(MODEL, None, 0),
    "direct_logit parts": lambda: helpers.direct_logit(MODEL, 5, 5),
    "rollout": lambda: helpers.attention_rollout(None),
    "rollout NaN": lambda: helpers.attention_rollout(torch.full((1, 1, 2, 2), torch.nan)),
    "rollout residual": lambda: helpers.attention_rollout(RUN.attentions, residual="x"),
    "common_prefix": lambda: common_prefix(None, [5]),
    "ablate heads": lambda: _inside(helpers.ablate_heads(MODEL, 5)),
    "ablate value": lambda: _inside(helpers.ablate_heads(MODEL, [(0, 0)], value="x")),
    "ablate shape": lambda: _inside(helpers.ablate_heads(MODEL, [(0, 0)], value=torch.zeros(7))),
    "ablate NaN": lambda: _inside(helpers.ablate_heads(MODEL, [(0, 0)], value=torch.nan)),
    "patch position": lambda: _inside(helpers.patch_hidden_state(MODEL, 0, "x", ZEROS)),
    "patch half": lambda: _inside(helpers.patch_hidden_state(MODEL, 0, [1.5], ZEROS)),
    "patch none": lambda: _inside(helpers.patch_hidden_state(MODEL, 0, None, ZEROS)),
    "patch value": lambda: _inside(helpers.patch_hidden_state(MODEL, 0, 0, None)),
    "patch meta": lambda: _inside(helpers.patch_hidden_state(MODEL, 0, 0, ZEROS.to("meta"))),
    "steer vector": lambda: _inside(helpers.steer(MODEL, 0, "x")),
    "steer complex": lambda: _inside(helpers.steer(MODEL, 0, ZEROS.to(torch.complex64))),
    "steer scale": lambda: _inside(helpers.steer(MODEL, 0, ZEROS, scale=None)),
    "steer infinite": lambda: _inside(helpers.steer(MODEL, 0, ZEROS, scale=float("inf"))),
    "run_batch prompts": lambda: helpers.run_batch(MODEL, TOKENIZER, helpers.PromptFile, "p.json"),
    "show_tokens limit": lambda: helpers.show_tokens(TOKENIZER, "Hello", limit="x"),
    "show_tokens half": lambda: helpers.show_tokens(TOKENIZER, "Hello", limit=1.5),
    "stepper temperature": lambda: helpers.generation_stepper(MODEL, TOKENIZER, "Hello", temperature="0.7"),
    "stepper top_p": lambda: helpers.generation_stepper(MODEL, TOKENIZER, "Hello", top_p=None),
    "stepper top": lambda: helpers.generation_stepper(MODEL, TOKENIZER, "Hello", top=None),
    "stepper many": lambda: helpers.generation_stepper(MODEL, TOKENIZER, "Hello", top=1_000_000),
    "sampling top": lambda: helpers.sampling_explorer(STEP, TOKENIZER, top=1.5),
    "processors step": lambda: helpers.plot_processors(None, TOKENIZER),
    "attention": lambda: helpers.plot_attention(None, ["a"]),
    "attention tokens": lambda: helpers.plot_attention(torch.eye(2), None),
    "attention empty": lambda: helpers.plot_attention(torch.zeros(0, 0), []),
    "attention ax": lambda: helpers.plot_attention(torch.eye(2), ["a", "b"], ax=5),
    "lens plot": lambda: helpers.plot_logit_lens(None, TOKENIZER, RUN.tokens),
    "lens tokens": lambda: helpers.plot_logit_lens(LENS, TOKENIZER, ["a"] * 99),
    "lens positions": lambda: helpers.plot_logit_lens(LENS, TOKENIZER, RUN.tokens, positions=["x"]),
    "lens far": lambda: helpers.plot_logit_lens(LENS, TOKENIZER, RUN.tokens, positions=[99]),
    "bars": lambda: helpers.plot_bars([1, 2]),
    "bars text": lambda: helpers.plot_bars({"a": "x"}),
    "bars nested": lambda: helpers.plot_bars({"a": {"b": None}}),
    "plans": lambda: helpers.plot_memory_plan(None),
    "plans number": lambda: helpers.plot_memory_plan({"a": 5}),
    "pictures heats": lambda: plot_pictures([RED], heats=[torch.full((2, 2), torch.nan)]),
    "pictures heats text": lambda: plot_pictures([RED], heats="x"),
    "pictures columns": lambda: plot_pictures([RED], columns=0),
    "pictures width": lambda: plot_pictures([RED], width=-1),
    "pictures captions": lambda: plot_pictures([RED], 5),
    "padding": lambda: plot_padding(5, 2),
    "padding none": lambda: plot_padding([0], 1),
    "padding texts": lambda: plot_padding(["a"], 2),
    "slots": lambda: plot_slots([1], 0),
    "slots empty": lambda: plot_slots([], 1),
    "batch sizes": lambda: plot_batch_sizes([]),
    "batch sizes number": lambda: plot_batch_sizes([5]),
    "source bytes": lambda: show_source(helpers.trace, start=re.compile(b"x")),
    "source long": lambda: show_source(helpers.trace, start="x" * 1_000_000),
    "source start": lambda: show_source(helpers.trace, start=5),
    "glossary": lambda: helpers.show_glossary(None),
    "predictions file": lambda: show_predictions(None),
    "predictions name": lambda: show_predictions("x" * 5000),
    "trace flags": lambda: helpers.trace(MODEL, TOKENIZER, "Hello", attentions=torch.zeros(0)),
    "trace layers": lambda: helpers.trace(MODEL, TOKENIZER, "Hello", layers=META),
    "terminators": lambda: helpers.generate_steps(MODEL, TOKENIZER, "Hello", eos_token_id=META),
    "forced": lambda: helpers.generate_steps(MODEL, TOKENIZER, "Hello", forced_ids=META),
    "role": lambda: helpers.Conversation(MODEL, TOKENIZER).ask("Hello", role=torch.zeros(3)),
    "lens top_k": lambda: helpers.logit_lens(MODEL, RUN, top_k=DEEP),
    "layer": lambda: _inside(helpers.skip_layer(MODEL, DEEP)),
    "ablate a number": lambda: _inside(helpers.ablate_heads(MODEL, torch.tensor(5))),
    "patch positions": lambda: _inside(helpers.patch_hidden_state(MODEL, 0, META, ZEROS)),
    "temperature of heads": lambda: _inside(inside.head_temperature(MODEL, [(0, 0)], None)),
    "heads without a list": lambda: _inside(inside.head_temperature(MODEL, None, 0.5)),
    "cache dtype": lambda: helpers.kv_cache_bytes(MODEL.config, 5, dtype=torch.zeros(0)),
    "plan dtype": lambda: helpers.memory_plan("smollm2-135m", dtype=DEEP),
    "settings nested": lambda: batch.GenerationSettings(temperature=DEEP),
    "settings module": lambda: batch.GenerationSettings(top_k=torch),
    "settings do_sample": lambda: batch.GenerationSettings(do_sample=torch.zeros(0)),
    "prompts of nothing": lambda: helpers.run_batch(MODEL, TOKENIZER, torch.tensor(5), "p.json"),
    "progress": lambda: helpers.run_batch(MODEL, TOKENIZER, ["a"], "p.json", progress=torch.zeros(0)),
    "sizes": lambda: batch.measure_batch_sizes(MODEL, TOKENIZER, ["a"], None),
    "padded": lambda: batch.left_padded([["x"]]),
    "context": lambda: text.prompt_ids(TOKENIZER, "Hello", context="x"),
    "text of ids": lambda: text.text_ids(TOKENIZER, 5),
    "a token's bytes": lambda: text.token_bytes(TOKENIZER, "x"),
    "table meta": lambda: text.token_table(TOKENIZER, META),
    "stream": lambda: text.TextStream(TOKENIZER).push(None),
    "picture's name": lambda: text.open_picture(RED, name=5),
    "merges": lambda: text.train_merges(None, 5),
    "merges count": lambda: text.train_merges([b"ab"], "x"),
    "merge steps": lambda: text.merge_steps("ab", None),
    "weights": lambda: models.weight_shapes(None),
    "hub": lambda: models.folder_of(None, "huggingface"),
    "head scores": lambda: views.plot_head_scores(None),
    "heads": lambda: views.plot_heads("x"),
    "patching": lambda: views.plot_patching(5),
    "layers": lambda: views.plot_by_layer([1, 2]),
    "mask": lambda: views.plot_mask(None, ["a"], ["a"]),
    "scores": lambda: views.plot_scores(5, ["a"]),
    "plot of merges": lambda: views.plot_merges("x"),
    "dials": lambda: views.plot_dials("x"),
    "periods": lambda: views.plot_periods([0.0], 5),
    "two passes": lambda: views.plot_two_passes(None, None, TOKENIZER, MODEL.config),
    "parts": lambda: views.plot_parts(5),
    "plot of structure": lambda: views.plot_structure(None),
    "layout": lambda: views.show_file_layout(None, 5, ["w"]),
    "prefill": lambda: views.show_prefill_and_decode(5),
    "controls": lambda: views.plot_against_controls(5, 5),
    "next token": lambda: helpers.plot_next_token(torch.zeros(0), TOKENIZER),
    "sharpen": lambda: views.sharpen_heads(MODEL, TOKENIZER, "Hello", None),
    "step into": lambda: helpers.step_into(None, {print: "x"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_one_short_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError) as caught:
        WRONG[name]()
    assert len(str(caught.value)) < 400
    pyplot.close("all")


def test_what_is_right_is_still_taken():
    helpers.plot_memory_plan(helpers.memory_plan("smollm2-135m", device="cpu"))
    helpers.plot_bars({"a": torch.tensor(1.5), 5: float("nan")})
    helpers.plot_logit_lens(LENS, TOKENIZER, RUN.tokens, positions=[-1])
    with helpers.patch_hidden_state(MODEL, 0, torch.tensor([0]), torch.ones(1, 48)):
        patched = helpers.trace(MODEL, TOKENIZER, "Hello", past_key_values=None, attention_mask=None)
    assert bool((patched.hidden_states[0, 0] == 1).all())
    assert list(helpers.trace(MODEL, TOKENIZER, "Hello", outputs_of={"model.norm": 1}).outputs) == ["model.norm"]
    assert checks.several("x", {"a": 1}, "texts") == ["a"]
    pyplot.close("all")


DAMAGED = ('{"a": 1}', "{x", "5", '[{"Input": "a"}]', "[5]", "[null]", "[" * 100_000, "null", "", "[]".encode("utf-16"))


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_file_that_holds_no_predictions(tmp_path, content):
    (tmp_path / "p.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInputError, match="is not a file of predictions"):
        show_predictions(tmp_path / "p.json")


@pytest.mark.parametrize("rows", ["x", None, 1.5, float("nan"), -1])
def test_a_number_of_rows_that_is_none(tmp_path, rows):
    (tmp_path / "p.json").write_text('[{"Input": "a", "Output": null}]', encoding="utf-8")
    with pytest.raises(BadInputError, match="rows must be a whole number"):
        show_predictions(tmp_path / "p.json", rows=rows)


def test_damaged_lines_beside_predictions_hide_no_other_reason(tmp_path):
    (tmp_path / "p.json").write_text('[{"Input": "\\ud800", "Output": null}]', encoding="utf-8")
    lines = ("{", "5", "[]", '{"index": [], "error": "e"}', "[" * 100_000, '{"index": 0, "error": "the reason"}')
    (tmp_path / "p.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\xfe")
    table = show_predictions(tmp_path / "p.json").data
    assert "the reason</td>" in table
    assert "\\ud800" in table and table.encode("utf-8")


def test_a_title_of_any_length_is_drawn_soon():
    ax = helpers.plot_bars({"a" * 100_000: 1.0}, title="$" * 100_000)
    assert len(ax.get_title()) < 1000
    drawn = io.BytesIO()
    ax.figure.savefig(drawn, format="svg")
    ElementTree.fromstring(drawn.getvalue())
    pyplot.close("all")
