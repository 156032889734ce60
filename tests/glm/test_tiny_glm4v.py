"""The shipped tiny GLM-4V: its layout, that its card is true, and that it sees pictures it has never seen."""

import json
import math
import random

import pytest
import torch
from PIL import Image, ImageDraw

from helpers.glm.tiny import score
from helpers.glm.tiny.scenes import REGIONS, draw, random_scene
from helpers.glm.tiny.talk import ZH
from helpers.models.loading import load_model
from helpers.models.pretrained import load_processor
from helpers.models.store import SHIPPED

FOLDER = SHIPPED / "tiny-glm4v"
SCORES = json.loads((FOLDER / "scores.json").read_text(encoding="utf-8"))
WANTED = {"colour": 0.97, "shape": 0.97, "position": 0.97, "count": 0.97, "digit": 0.95, "can't tell": 0.95}
CSS = {"red": "red", "green": "green", "blue": "blue", "yellow": "yellow", "purple": "purple", "orange": "orange"}


@pytest.fixture(scope="module")
def tiny_glm4v():
    return load_model("tiny-glm4v", device="cpu", dtype="float32"), load_processor("tiny-glm4v")


def test_it_is_laid_out_as_the_original_is():
    files = {file.name for file in FOLDER.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.model", "tokenizer_config.json", "README.md"} <= files
    shards = set(json.loads((FOLDER / "model.safetensors.index.json").read_text())["weight_map"].values())
    assert len(shards) > 1 and shards <= files
    assert not {name for name in files if name.endswith((".bin", ".pt", ".py", ".pkl"))}
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 20_000_000
    assert json.loads((FOLDER / "config.json").read_text())["model_type"] == "chatglm"


def test_its_card_tells_the_scores_that_were_measured():
    assert score.card_table(SCORES) in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("language", score.LANGUAGES)
@pytest.mark.parametrize("kind", WANTED)
def test_the_scores_are_what_the_course_promises(kind, language):
    found = SCORES["answers"][kind][language]
    assert found["asked"] >= 60
    assert found["right"] / found["asked"] >= WANTED[kind]


@pytest.mark.parametrize("language", score.LANGUAGES)
@pytest.mark.parametrize("kind", ["colour", "shape"])
def test_it_understands_how_people_ask(kind, language):
    found = SCORES["everyday"][kind][language]
    assert found["asked"] >= 40
    assert found["right"] / found["asked"] >= 0.95
    assert SCORES["broken characters"] == 0


def test_everyday_questions_about_other_drawings_are_understood_as_well_as_the_card_says(tiny_glm4v):
    answers, wrong, broken = score.score_everyday(*tiny_glm4v, seed=4711)
    right, asked = (sum(column) for column in zip(*answers.values(), strict=True))
    assert right / asked >= 0.95, wrong
    assert broken == 0


@pytest.mark.parametrize("stranger", ["cat", "grandmother", "饕餮", "小猫", "🦊"])
def test_no_answer_holds_a_broken_character(tiny_glm4v, stranger):
    picture = draw(random_scene(random.Random(7)))
    questions = [
        f"Is there a {stranger}?",
        f"有{stranger}吗？",
        f"What colour is the {stranger}?",
        f"{stranger}在哪里？",
    ]
    answers = score.answer_turns(*tiny_glm4v, [(picture, [question]) for question in questions])
    assert not [text for (text,) in answers if "\N{REPLACEMENT CHARACTER}" in text or not text]


def test_on_pictures_that_nobody_has_scored_before_it_is_as_good_as_its_card_says(tiny_glm4v):
    answers, wrong = score.score_answers(*tiny_glm4v, seed=4711, count=24)
    right, asked = (sum(column) for column in zip(*answers.values(), strict=True))
    listed = [found for by_language in SCORES["answers"].values() for found in by_language.values()]
    said = sum(found["right"] for found in listed) / sum(found["asked"] for found in listed)
    deviation = (said * (1 - said) / asked) ** 0.5
    assert right / asked >= said - 4 * deviation, wrong  # turns of one picture are not independent: four, not three


def test_what_it_learned_by_heart(tiny_glm4v):
    right, asked = score.score_small_talk(*tiny_glm4v)
    assert right == asked


@pytest.mark.parametrize("language", score.LANGUAGES)
def test_the_colour_word_looks_at_the_shape(tiny_glm4v, language):
    look = SCORES["attention"][language]
    assert look["share"] >= 0.8
    shares = score.score_attention(*tiny_glm4v, seed=4712, count=60, language=language)
    assert shares[look["layer"], look["head"]] >= 0.8


def test_asked_for_one_of_two_shapes_a_head_looks_at_that_one(tiny_glm4v):
    choice, shares = (
        score.score_attention(*tiny_glm4v, seed=seed, count=60, language="zh", shapes=2) for seed in (4713, 4712)
    )
    assert shares.flatten()[choice.argmax()] >= 0.7  # one that does not choose is right half of the time at most


def _plain_picture(kind, colour, region, *, side, background):
    """A shape as anyone would draw it: PIL's own ellipse and polygons, the colour by its name."""
    picture = Image.new("RGB", (side, side), background)
    row, column = divmod(REGIONS.index(region), 3)
    x, y, radius = ((column + 0.5) * side / 3, (row + 0.5) * side / 3, 0.14 * side)
    pen = ImageDraw.Draw(picture)
    box = (x - radius, y - radius, x + radius, y + radius)
    if kind == "circle":
        pen.ellipse(box, fill=CSS[colour])
    elif kind == "square":
        pen.rectangle(box, fill=CSS[colour])
    elif kind == "triangle":
        pen.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=CSS[colour])
    else:
        tips = [(radius * (1.1 if n % 2 == 0 else 0.45), math.pi * n / 5) for n in range(10)]
        pen.polygon([(x + r * math.sin(a), y - r * math.cos(a)) for r, a in tips], fill=CSS[colour])
    return picture


@pytest.mark.parametrize("background", ["white", "black", "lightgray"])
def test_it_sees_pictures_that_were_drawn_otherwise(tiny_glm4v, background):
    talks, wanted = [], []
    for number, colour in enumerate(CSS):
        for index, kind in enumerate(("circle", "square", "triangle", "star")):
            region = REGIONS[(2 * number + index) % 9]
            picture = _plain_picture(kind, colour, region, side=(224, 96, 640)[number % 3], background=background)
            talks.append((picture, [f"What colour is the {kind}?", "Where is it?"]))
            wanted.append([f"The {kind} is {colour}.", f"It is in the {region}."])
            talks.append((picture, ["图片里是什么形状？"]))
            wanted.append([f"它是{ZH[kind]}。"])
    answers = score.answer_turns(*tiny_glm4v, talks)
    pairs = [pair for given, want in zip(answers, wanted, strict=True) for pair in zip(given, want, strict=True)]
    assert sum(got == want for got, want in pairs) / len(pairs) >= 0.95, [pair for pair in pairs if pair[0] != pair[1]]


def test_without_a_picture_it_says_so(tiny_glm4v):
    assert "no picture" in score.answer_turns(*tiny_glm4v, [(None, ["What colour is the circle?"])])[0][0]


def test_weights_are_finite_and_in_bfloat16():
    model = load_model("tiny-glm4v", device="cpu")
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    assert {str(weight.dtype) for weight in load_model(FOLDER, dtype="bfloat16").parameters()} == {"torch.bfloat16"}
