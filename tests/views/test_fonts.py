"""Every picture, drawn with each kind of font a machine may have: matplotlib warns of nothing and logs nothing."""

import dataclasses
import importlib
import logging
import os
import pkgutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from glm_fixtures import VISION, glm, glm_processor
from matplotlib import pyplot
from matplotlib.font_manager import fontManager
from PIL import Image

import helpers.views
from helpers.batch.throughput import BatchMeasure
from helpers.glm import ChatGLMConfig
from helpers.inside.generation import generate_steps
from helpers.inside.lens import logit_lens
from helpers.inside.patching import PatchingSweep
from helpers.inside.tracing import trace
from helpers.text.bpe import merge_steps
from helpers.views import (
    attention,
    batches,
    cache,
    forward,
    heads,
    hidden_states,
    merges,
    parts,
    picture_path,
    pictures,
    plots,
    residual,
    sampling,
    sharpen,
    stepper,
    structure,
    style,
)
from helpers.views.image_chat import ImageChat

matplotlib.use("agg")

CHINESE = "你好，世界"
OWN = [font for font in fontManager.ttflist if Path(matplotlib.get_data_path()) in Path(font.fname).parents]


def _system_font(*weights):
    """Entries of a system font in these weights. The glyphs are the dependency's: only the entries matter here."""
    folder = style.find_spec(style.FONT_PACKAGE[0]).submodule_search_locations[0]
    entry = dataclasses.replace(OWN[0], fname=str(Path(folder, style.FONT_PACKAGE[1])), name="WenQuanYi Micro Hei")
    return [dataclasses.replace(entry, weight=weight) for weight in weights]


FONTS = {
    "the dependency's alone": OWN,
    "a system font of one weight": OWN + _system_font(400),
    "a system font with neither normal nor bold": OWN + _system_font("light", 900),
    "a system font with a bold face": OWN + _system_font("normal", "bold"),
    "what this machine has": fontManager.ttflist,
}


DRAWN_WITH = ("the dependency's alone", "a system font of one weight")  # each picture; the others draw plain text


@pytest.fixture(params=FONTS)
def fonts(request, monkeypatch):
    """matplotlib knows these fonts only, and remembers nothing of others."""

    def forget():
        cjk_font.cache_clear()
        fontManager._findfont_cached.cache_clear()
        style._has_glyph.cache_clear()

    cjk_font = style.cjk_font
    monkeypatch.setattr(fontManager, "ttflist", list(FONTS[request.param]))
    forget()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield request.param
    pyplot.close("all")
    forget()


def drawn_in_silence(caplog):
    """Draw all open figures; nothing was logged while they were made and drawn."""
    for number in pyplot.get_fignums():
        pyplot.figure(number).canvas.draw()
    assert pyplot.get_fignums()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.fixture(scope="module")
def results(model, tokenizer):
    """What the pictures draw: small, and with Chinese wherever a text goes."""
    steps = list(
        generate_steps(model, tokenizer, CHINESE, max_new_tokens=2, eos_token_id=[], top_k=5, do_sample=True, seed=0)
    )
    ran = trace(model, tokenizer, CHINESE)
    return SimpleNamespace(
        model=model,
        tokenizer=tokenizer,
        steps=steps,
        trace=ran,
        lens=logit_lens(model, ran),
        picture=Image.new("RGB", (28, 28), "red"),
        square=torch.eye(len(ran.tokens)),
        frequencies=model.model.rotary_emb.inv_freq,
        cache=model(ran.input_ids, use_cache=True).past_key_values,
    )


def _memory_plan(r):
    plan = SimpleNamespace(
        name=CHINESE, weights_bytes=1, kv_cache_bytes=1, working_bytes=1, total_bytes=3, available_bytes=9, fits=True
    )
    return plots.plot_memory_plan([plan])


def _merges(r):
    return merges.plot_merges(merge_steps(CHINESE.encode(), {(b"\xe4", b"\xbd"): 1}.get), title=CHINESE)


def _patching(r):
    sweep = PatchingSweep(torch.eye(2), (0, 1), "mlp", (CHINESE, "a"), ("b", "a"), -1.0, 1.0)
    return residual.plot_patching(sweep, title=CHINESE)


def _chat(r):
    chat = ImageChat(glm(VISION), glm_processor(VISION), picture=r.picture, max_new_tokens=2)
    chat.ask(CHINESE)
    list(chat.answer())
    return chat.figure()


DRAW = {
    "plot_attention": lambda r: plots.plot_attention(r.square, r.trace.tokens, title=CHINESE),
    "plot_attention_on_picture": lambda r: heads.plot_attention_on_picture(torch.ones(4), r.picture, title=CHINESE),
    "plot_against_controls": lambda r: residual.plot_against_controls({CHINESE: 1.0}, {"b": [0.5]}, title=CHINESE),
    "plot_bars": lambda r: plots.plot_bars({CHINESE: 1.0}, unit=CHINESE, title=CHINESE),
    "plot_batch_sizes": lambda r: batches.plot_batch_sizes([BatchMeasure(1, 2.0, 1, []), BatchMeasure(8, 6.0, 8, [])]),
    "plot_by_layer": lambda r: forward.plot_by_layer({CHINESE: [0.1, 0.2]}, before=0.3, title=CHINESE),
    "plot_dials": lambda r: forward.plot_dials(r.frequencies, title=CHINESE),
    "plot_head_scores": lambda r: heads.plot_head_scores(torch.ones(2, 2), title=CHINESE),
    "plot_heads": lambda r: residual.plot_heads(torch.ones(2, 2), torch.ones(2), title=CHINESE),
    "plot_heads_at_a_glance": lambda r: attention.plot_heads_at_a_glance(attention.AttentionMap(r.trace)),
    "plot_kv_cache": lambda r: cache.plot_kv_cache(r.cache, tokens=r.trace.tokens),
    "plot_logit_lens": lambda r: plots.plot_logit_lens(r.lens, r.tokenizer, r.trace.tokens),
    "plot_mask": lambda r: forward.plot_mask(torch.ones(1, 1).bool(), [CHINESE], [CHINESE], title=CHINESE),
    "plot_memory_plan": _memory_plan,
    "plot_merges": _merges,
    "plot_next_token": lambda r: plots.plot_next_token(r.steps[0], r.tokenizer),
    "plot_padding": lambda r: batches.plot_padding([1, 9, 2, 8], 2, titles=(CHINESE, CHINESE)),
    "plot_parts": lambda r: parts.plot_parts({CHINESE: {CHINESE: 1.0}}, title=CHINESE),
    "plot_patches": lambda r: pictures.plot_patches(r.picture, 2, title=CHINESE),
    "plot_patching": _patching,
    "plot_picture_path": lambda r: picture_path.plot_picture_path(
        ChatGLMConfig(vision_config={}), r.picture, places=[CHINESE] * 7, title=CHINESE
    ),
    "plot_pictures": lambda r: pictures.plot_pictures([r.picture], [CHINESE], title=CHINESE),
    "plot_processors": lambda r: plots.plot_processors(r.steps[0], r.tokenizer),
    "plot_slots": lambda r: batches.plot_slots([5, 1, 1], 2),
    "plot_structure": lambda r: structure.plot_structure(structure.show_structure(r.model)),
    "plot_periods": lambda r: forward.plot_periods(r.frequencies, 8192, title=CHINESE),
    "plot_scores": lambda r: forward.plot_scores(torch.ones(1, 1), [CHINESE], title=CHINESE),
    "plot_two_passes": lambda r: forward.plot_two_passes(*r.steps, r.tokenizer, r.model.config),
}
STILL_PICTURES = {
    "AttentionMap": lambda r: attention.AttentionMap(r.trace).figure(),
    "CacheSteps": lambda r: cache.CacheSteps(r.model, r.tokenizer, CHINESE, max_new_tokens=1).figure(),
    "HiddenStates": lambda r: hidden_states.HiddenStates(r.model, r.tokenizer, CHINESE).figure(),
    "ImageChat": _chat,
    "Sampling": lambda r: sampling.Sampling(r.steps[0].logits, r.tokenizer).figure(),
    "SharpenedHeads": lambda r: sharpen.SharpenedHeads(r.model, r.tokenizer, CHINESE, [(18, 6)]).figure(),
    "Stepper": lambda r: stepper.Stepper(r.model, r.tokenizer, CHINESE, max_new_tokens=1).figure(),
}


def test_no_picture_is_missing_here():
    names = [module.name for module in pkgutil.iter_modules(helpers.views.__path__, "helpers.views.")]
    found = [importlib.import_module(name) for name in names]
    assert {name for module in found for name in vars(module) if name.startswith("plot_")} == set(DRAW)
    kinds = {kind for module in found for kind in vars(module).values() if isinstance(kind, type)}
    assert {kind.__name__ for kind in kinds if "figure" in vars(kind)} == set(STILL_PICTURES)


@pytest.mark.parametrize("name", [*DRAW, *STILL_PICTURES])
@pytest.mark.parametrize("fonts", DRAWN_WITH, indirect=True)
def test_a_picture_is_drawn_in_silence(fonts, name, results, caplog):
    style.use_course_style()
    (DRAW | STILL_PICTURES)[name](results)
    drawn_in_silence(caplog)


@pytest.mark.parametrize("weight", ["normal", "bold"])
@pytest.mark.parametrize("place", ["title", "supertitle", "label", "tick", "annotation", "legend"])
def test_text_anywhere_is_drawn_in_silence(fonts, weight, place, caplog):
    style.use_course_style()
    figure, ax = pyplot.subplots()
    line = ax.plot([0, 1], label=CHINESE)[0]
    {
        "title": lambda: ax.set_title(CHINESE, fontweight=weight),
        "supertitle": lambda: figure.suptitle(CHINESE, fontweight=weight),
        "label": lambda: ax.set_xlabel(CHINESE, fontweight=weight),
        "tick": lambda: ax.set_xticks([0], [CHINESE], fontweight=weight),
        "annotation": lambda: ax.annotate(CHINESE, (0, 0), fontweight=weight),
        "legend": lambda: ax.legend(handles=[line], prop={"weight": weight}),
    }[place]()
    drawn_in_silence(caplog)


def test_a_bold_face_is_used_where_there_is_one(monkeypatch):
    monkeypatch.setattr(fontManager, "ttflist", [*OWN, *_system_font(400, 700)])
    style.cjk_font.cache_clear()
    assert style.cjk_font() == "WenQuanYi Micro Hei"
    assert len(fontManager.ttflist) == len(OWN) + 2
    style.cjk_font.cache_clear()


def test_without_the_stand_in_bold_would_be_logged(monkeypatch, caplog):
    monkeypatch.setattr(style, "WEIGHTS", ())
    monkeypatch.setattr(fontManager, "ttflist", list(OWN))
    style.cjk_font.cache_clear()
    fontManager._findfont_cached.cache_clear()
    with matplotlib.rc_context():
        style.use_course_style()
        pyplot.subplots()[1].set_title(CHINESE)
        pyplot.gcf().canvas.draw()
    pyplot.close("all")
    style.cjk_font.cache_clear()
    fontManager._findfont_cached.cache_clear()
    assert "Failed to find font weight bold" in caplog.text


def test_ci_hides_the_fonts_of_its_machine_by_a_cache_made_without_them(tmp_path):
    """As `.ci/run` does it. The variable alone would hide the dependency's font, too."""
    looks = (
        "from matplotlib.font_manager import fontManager; from helpers.views.style import cjk_font, use_course_style\n"
        "print(len(fontManager.ttflist)); use_course_style(); print(cjk_font())\n"
        "from matplotlib import pyplot; pyplot.subplots()[1].set_title('你好'); pyplot.gcf().canvas.draw()"
    )
    settings = os.environ | {"MPLCONFIGDIR": str(tmp_path), "MPLBACKEND": "agg"}
    make_cache = [sys.executable, "-c", "import matplotlib.font_manager"]
    subprocess.run(make_cache, env=settings | {"MPL_IGNORE_SYSTEM_FONTS": "1"}, check=True)
    done = subprocess.run([sys.executable, "-c", looks], env=settings, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [str(len(OWN)), "Noto Sans CJK JP"]
    assert done.stderr == ""
