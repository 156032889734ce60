"""Checks for notebook 08: counting vectors, positions, a scene to order, a pointing finger, the weight of eyes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from PIL import Image

from helpers.exercises import exercise, require
from helpers.glm.tiny.scenes import Scene

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

WANTED = {
    "描述一下这张图片": "左边有一个绿色的五角星，右边有一个紫色的正方形。",
    "Describe this picture.": "A green star in the left and a purple square in the right.",
}
POINTED_AT, ENOUGH, UNSEEN = 20, 16, 8_080_000


@cache
def _tiny() -> tuple[PreTrainedModel, ProcessorMixin]:
    """The tiny GLM-4V and its processor."""
    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_processor

    return load_model("tiny-glm4v", device="cpu"), load_processor("tiny-glm4v")


@exercise("08.1", expects=Callable)
def _(answer: Any) -> str:
    for image_size, patch_size, wanted in ((96, 8, 38), (1120, 14, 1602), (448, 14, 258)):
        given = answer(image_size, patch_size)
        where = f"for {image_size} pixels and patches of {patch_size}"
        require(given != (image_size // patch_size) ** 2 + 2, f"{where} you count the patches before 2 x 2 are merged.")
        require(given != wanted - 2, f"{where} begin and end are missing.")
        require(given == wanted, f"{where} it should be {wanted}, yours gives {given!r:.40}.")
    return "38 for the tiny model, 1602 for GLM-4V-9B, and 258 at 448 pixels."


@exercise("08.2", expects=Callable)
def _(answer: Any) -> str:
    for before, patches, after in ((4, 36, 2), (0, 4, 0), (7, 1600, 5)):
        given = list(answer(before, patches, after))
        wanted = [*range(before + 1), *[before + 1] * patches, *range(before + 2, before + 3 + after)]
        where = f"with {before} tokens before, {patches} patches and {after} tokens after"
        require(
            len(given) == len(wanted),
            f"{where} there are {len(wanted)} positions, begin and end included; your list has {len(given)}.",
        )
        shared = given[before + 1 : before + 1 + patches]
        require(len(set(shared)) == 1, f"{where} the patches do not all share one position.")
        wrong = next((at for at, (mine, right) in enumerate(zip(given, wanted, strict=True)) if mine != right), None)
        require(
            wrong is None,
            f"{where} place {wrong} of the list should be {wanted[wrong or 0]}, yours is {given[wrong or 0]!r:.20}.",
        )
    return "The picture takes three numbers, however many patches it has."


@exercise("08.3", expects=(Scene, Image.Image))
def _(answer: Any) -> str:
    from helpers.conversation import Conversation
    from helpers.glm.tiny.scenes import draw

    picture = draw(answer) if isinstance(answer, Scene) else answer
    for question, wanted in WANTED.items():
        said = Conversation(*_tiny()).ask(question, image=picture).text
        require(said == wanted, f"asked {question!r} the model says: {said!r:.120}")
    return "It says both sentences, to the letter."


@exercise("08.4", expects=Callable)
def _(answer: Any) -> str:
    import random
    from dataclasses import replace

    from helpers.glm.tiny.scenes import draw
    from helpers.glm.tiny.score import covered_patches, scene_to_ask_about
    from helpers.glm.tiny.talk import ZH
    from helpers.inside.tracing import trace

    model, processor = _tiny()
    dice, hits, others = random.Random(UNSEEN), 0, 0
    for _number in range(POINTED_AT):
        scene, asked = scene_to_ask_about(dice, 2)
        messages = [
            {"role": "user", "content": f"{ZH[asked.kind]}是什么颜色的？", "image": draw(scene)},
            {"role": "assistant", "content": f"{ZH[asked.kind]}是"},
        ]
        inputs = processor.apply_chat_template(messages, return_tensors="pt")
        run = trace(model, processor, inputs["input_ids"], pixel_values=inputs["pixel_values"])
        given = answer(run)
        require(
            isinstance(given, int) and 0 <= given < 36,
            f"it should return a whole number from 0 to 35, not {given!r:.40}. (int(...) makes one of a tensor.)",
        )
        hit = bool(covered_patches(replace(scene, things=(asked,)), 36)[given])
        hits += hit
        others += not hit and bool(covered_patches(scene, 36)[given])
    require(
        hits >= ENOUGH,
        f"{hits} of {POINTED_AT} are on the shape asked for and {others} on the other one; {ENOUGH} should be. "
        "Which head did you ask, and which position?",
    )
    return f"{hits} of {POINTED_AT} times on the shape asked for."


@exercise("08.5", expects=Callable)
def _(answer: Any) -> str:
    for name, config in _configs().items():
        given, wanted = answer(config), _tower_parameters(config)
        width, hidden = config.vision_config.hidden_size, config.hidden_size
        require(isinstance(given, int), f"it should return a whole number, not {given!r:.40}.")
        require(
            given == wanted,
            f"{name} should have {wanted:,}; yours is off by {given - wanted:+,}. (The tower's width is {width}, "
            f"it has {config.vision_config.num_hidden_layers} layers; the language model's width is {hidden}.)",
        )
    return "To the last parameter, for three sizes."


def _configs() -> dict[str, PreTrainedConfig]:
    from helpers.glm import ChatGLMConfig
    from helpers.models.catalog import find_card

    card = find_card("glm-4v-9b")
    real = {"hidden_size": card.hidden_size, "intermediate_size": card.intermediate_size}
    odd = {"hidden_size": 60, "num_hidden_layers": 3, "num_heads": 5, "intermediate_size": 70, "patch_size": 7}
    odd |= {"image_size": 42, "num_positions": 37, "in_channels": 1}
    return {
        "the tiny model": _tiny()[0].config,
        "GLM-4V-9B": ChatGLMConfig(**real, vision_config={}),
        "the one nobody built": ChatGLMConfig(hidden_size=50, intermediate_size=90, vision_config=odd),
    }


def _tower_parameters(config: PreTrainedConfig) -> int:
    """Counted in an empty tower."""
    import torch

    from helpers.glm import VisionTower

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VisionTower(config).parameters())
