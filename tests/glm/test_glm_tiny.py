"""Scenes, the talk about them, and that a (very short) training makes a folder that loads and answers."""

import random
import re
from dataclasses import replace

import numpy
import pytest
import torch

from helpers.conversation import Conversation
from helpers.glm.tiny import scenes, score, talk, train
from helpers.models.loading import load_model
from helpers.models.pretrained import load_processor


@pytest.fixture(scope="module")
def many():
    dice = random.Random(1)
    return [scenes.random_scene(dice) for _ in range(300)]


def test_a_scene_is_drawn_the_same_way_each_time(many):
    for scene in many[:5]:
        assert numpy.array_equal(numpy.asarray(scenes.draw(scene)), numpy.asarray(scenes.draw(scene)))
        assert scenes.draw(scene, 64).size == (64, 64)


def test_things_are_inside_apart_and_in_the_region_they_say(many):
    for scene in many:
        for thing in scene.things:
            assert all(thing.size < at < 1 - thing.size for at in (thing.x, thing.y))
            column, row = int(3 * thing.x), int(3 * thing.y)
            assert scenes.REGIONS[3 * row + column] == thing.region
        for first, second in zip(scene.things, scene.things[1:], strict=False):
            assert numpy.hypot(first.x - second.x, first.y - second.y) > first.size + second.size


def test_a_moved_shape_moves_in_the_picture():
    scene = scenes.random_scene(random.Random(3), count=1, with_digit=False)
    moved = replace(scene, things=(replace(scene.things[0], x=0.2, y=0.2),), noise=0)
    away = replace(moved, things=(replace(scene.things[0], x=0.8, y=0.8),))
    first, second = (numpy.asarray(scenes.draw(s), dtype=int) for s in (moved, away))
    assert (first[:48, :48] != second[:48, :48]).any()
    assert (first[48:, 48:] != second[48:, 48:]).any()


def test_digits_of_training_and_test_are_different_pictures():
    (train_images, _), (test_images, _) = scenes.digits("train"), scenes.digits("test")
    assert len(train_images) > 3 * len(test_images) > 300
    kept = {image.tobytes() for image in train_images}
    assert sum(image.tobytes() in kept for image in test_images) <= 2


def test_dense_labels_are_where_the_things_are(many):
    for scene in many[:40]:
        labels = train.dense_labels(scene)
        for number, thing in enumerate(scene.things):
            at = int(thing.y * train.GRID) * train.GRID + int(thing.x * train.GRID)
            assert labels["owner"][at] == number + 1
            assert train.KINDS[labels["kind"][at]] == thing.kind
            assert labels["colour"][at] == (scenes.COLOURS.index(thing.colour) if thing.colour else -100)
            assert scenes.REGIONS[labels["region"][at]] == thing.region
            assert labels["centre"][at] == 1
        assert labels["centre"].sum() == len(scene.things)
        assert labels["count 0"][0] == sum(thing.colour is not None for thing in scene.things)


def test_silhouettes_tell_the_shapes_apart():
    outlines = [
        train.silhouette(scenes.Thing(kind, 0.5, 0.5, 0.2, (0, 0, 0), "red"))
        for kind in ("star", "triangle", "circle", "square")
    ]
    for first in range(4):
        for second in range(first):
            assert (outlines[first] != outlines[second]).sum() >= 4


@pytest.mark.parametrize("language", ["en", "zh"])
def test_answers_name_what_the_scene_holds(many, language):
    dice = random.Random(5)
    seen = set()
    for scene in many:
        colours = {(talk.ZH[t.colour] if language == "zh" else t.colour) for t in scene.things if t.colour}
        regions = {(talk.ZH[t.region] if language == "zh" else t.region) for t in scene.things}
        for _, answer, kind in talk.conversation(dice, scene, language):
            seen.add(kind)
            if kind == "colour":
                assert any(colour in answer for colour in colours)
            elif kind == "position":
                assert any(region in answer for region in regions)
            elif kind == "can't tell":
                assert re.match("I can't tell|我看不出来", answer)
            elif kind == "describe":
                assert all(region in answer for region in regions)
    assert seen == {"colour", "shape", "position", "count", "digit", "yes/no", "can't tell", "describe"}


@pytest.mark.parametrize("shapes", [1, 2])
def test_what_is_asked_about_is_the_only_one_of_its_kind(shapes):
    dice = random.Random(2)
    for _ in range(30):
        scene, asked = score.scene_to_ask_about(dice, shapes)
        assert asked in scene.things and len(scene.things) == shapes
        assert [thing.kind for thing in scene.things].count(asked.kind) == 1


@pytest.mark.parametrize(("shapes", "share"), [(1, 1.0), (2, 0.0)])
def test_a_head_that_looks_at_the_wrong_one_of_two_shapes_is_not_counted(monkeypatch, shapes, share):
    """This model looks at the last thing drawn, always: of one shape the one asked for, of two the other one."""
    shown = []

    class Looker:
        patch_index = torch.arange(36)

        def __init__(self, *_, **__):
            other = replace(shown[-1], things=shown[-1].things[-1:])
            self.attentions = torch.from_numpy(score.covered_patches(other, 36)).float().expand(1, 1, 1, 36)

    class Blind:
        tokenizer = None

        def apply_chat_template(self, *_, **__):
            return {"input_ids": None, "pixel_values": None}

    def seen(scene, side=96):
        shown.append(scene)
        return scenes.draw(scene, side)

    monkeypatch.setattr("helpers.inside.tracing.trace", Looker)
    monkeypatch.setattr(score, "draw", seen)
    assert score.score_attention(None, Blind(), count=8, shapes=shapes).item() == share


def test_a_short_training_makes_a_folder_that_loads_and_answers(tmp_path):
    settings = "--pictures 8 --see-steps 2 --closer-steps 2 --speak-steps 3 --refer-steps 2 --batch 2 --speak-batch 2"
    state = torch.random.get_rng_state()
    threads = torch.get_num_threads()
    try:
        train.main([str(tmp_path), *settings.split()])
    finally:
        torch.random.set_rng_state(state)
        torch.set_num_threads(threads)
    size = sum(file.stat().st_size for file in tmp_path.iterdir() if file.is_file())
    assert size < 20_000_000
    model, processor = load_model(tmp_path, device="cpu"), load_processor(tmp_path)
    picture = scenes.draw(scenes.random_scene(random.Random(0)))
    reply = Conversation(model, processor).ask("描述一下这张图片", image=picture, max_new_tokens=3)
    assert len(reply.output_ids) <= 3
    scores, wrong = score.score_answers(model, processor, count=2)
    asked = sum(number for _, number in scores.values())
    assert sum(right for right, _ in scores.values()) + len(wrong) == asked > 4
    assert score.score_attention(model, processor, count=1).shape == (6, 6)
    assert score.score_attention(model, processor, count=1, language="zh", shapes=2).shape == (6, 6)
    assert (
        processor.tokenizer.decode(processor.tokenizer("红色的圆形")["input_ids"], skip_special_tokens=True)
        == "红色的圆形"
    )
