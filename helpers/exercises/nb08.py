"""Checks for notebook 08: how large a picture may be, position ids, a scene to order, a faulty port."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations
from math import isqrt
from numbers import Real
from typing import TYPE_CHECKING, Any

from PIL import Image

from helpers.exercises import exercise, require
from helpers.glm.tiny.scenes import Scene

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, ProcessorMixin

WANTED = {
    "描述一下这张图片": "左边有一个绿色的五角星，右边有一个紫色的正方形。",
    "Describe this picture.": "A green star in the left and a purple square in the right.",
}
# Where the port of exercise 08.5 goes wrong; what is wrong there is for the reader to find.
FAULTS = {
    "patch": "what enters the first layer (which number of a patch is multiplied by which weight?)",
    "layer": "inside each layer (compare with section 4)",
    "class": "the blocks of 2 x 2 (which of the 145 positions are patches?)",
    "scale": "the very end (by what factor is every number off?)",
}


@cache
def _tiny() -> tuple[PreTrainedModel, ProcessorMixin]:
    """The tiny GLM-4V and its processor."""
    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_processor

    return load_model("tiny-glm4v", device="cpu"), load_processor("tiny-glm4v")


@exercise("08.1", expects=Callable)
def _(answer: Any) -> str:
    for positions, patch_size in ((38, 8), (1602, 14), (37, 8), (300, 14), (8192, 16)):
        given = answer(positions, patch_size)
        wanted = isqrt(positions - 2) * 2 * patch_size
        where = f"for {positions} positions and patches of {patch_size} pixels,"
        require(
            isinstance(given, Real) and float(given).is_integer(),
            f"{where} yours gives {given!r:.40}, which is no whole number of pixels. How many merged patches fit along "
            "one side?",
        )
        given = int(given)
        require(
            given == wanted or given != isqrt(positions - 2) * patch_size,
            f"{where} you forget that each 2 x 2 patches are merged.",
        )
        forgotten = given == isqrt(positions) * 2 * patch_size
        require(given == wanted or not forgotten, f"{where} you leave no positions for begin and end.")
        merged = given / (2 * patch_size)
        require(merged.is_integer(), f"{where} {given} pixels can't be cut into whole blocks of 2 x 2 patches.")
        require(given <= wanted, f"{where} {given} pixels are too many: they take {int(merged) ** 2 + 2} positions.")
        require(given == wanted, f"{where} {given} pixels fit, but so do {given + 2 * patch_size}.")
    return "96 pixels for the tiny model's 38 positions, 1120 for GLM-4V-9B's 1602, and the right side for other sizes."


@exercise("08.2", expects=Callable)
def _(answer: Any) -> str:
    for texts, patches in (([4, 9], 36), ([4, 3, 9], 36), ([0, 0, 2], 4), ([7, 1, 5, 2], 16)):
        given, wanted = list(answer(list(texts), patches)), _several_pictures(texts, patches)
        where = f"with texts of {texts} tokens and {patches} patches per picture"
        require(
            len(given) == len(wanted),
            f"{where} there are {len(wanted)} positions, begins and ends included; your list has {len(given)}.",
        )
        first = given[texts[0] + 1 : texts[0] + 1 + patches]
        require(len(set(first)) == 1, f"{where} the patches of the first picture do not all share one position id.")
        require(
            given == wanted or given != _several_pictures(texts, patches, taken=patches + 2),
            f"{where} the text after a picture continues as if each patch had a position id of its own.",
        )
        wrong = next((at for at, (mine, right) in enumerate(zip(given, wanted, strict=True)) if mine != right), None)
        require(
            wrong is None,
            f"{where} entry {wrong} of the list should be {wanted[wrong or 0]}, yours is {given[wrong or 0]!r:.20}.",
        )
    return "Each picture takes three position ids, however many patches and pictures there are."


def _several_pictures(texts: list[int], patches: int, taken: int = 3) -> list[int]:
    """The position ids of a prompt with a picture between every two texts; a picture moves the rest on by `taken`."""
    ids, here = list(range(texts[0])), texts[0]
    for text in texts[1:]:
        end = here + taken - 1
        ids += [here, *[here + 1] * patches, *range(end, end + 1 + text)]
        here = end + 1 + text
    return ids


@exercise("08.3", expects=(Scene, Image.Image))
def _(answer: Any) -> str:
    from helpers.conversation import Conversation
    from helpers.glm.tiny.scenes import draw

    picture = draw(answer) if isinstance(answer, Scene) else answer
    for question, wanted in WANTED.items():
        said = Conversation(*_tiny()).ask(question, image=picture).text
        require(said == wanted, f"asked {question!r} the model says: {said!r:.120}")
    return "It says both sentences, word for word."


@exercise("08.4", expects=Callable)
def _(answer: Any) -> str:
    for before, rows, columns, after in ((3, 2, 3, 2), (4, 5, 2, 3), (1, 1, 1, 1), (6, 3, 7, 4)):
        given = [list(one) for one in answer(before, rows, columns, after)]
        where = f"with {before} tokens before, {rows} x {columns} vectors and {after} tokens after"
        length = before + rows * columns + after
        require(
            len(given) == 3 and all(len(one) == length for one in given),
            f"{where} it should be three lists of {length} positions; yours have {[len(one) for one in given]}.",
        )
        wanted = _three_positions(before, rows, columns, after, before + max(rows, columns))
        for go_on, rule in (
            (before + 1, "the text continues as in GLM-4V, as if the picture were one position"),
            (before + rows * columns, "the text continues after as many positions as there are vectors"),
            (before + columns, "the text continues after the columns, even when there are more rows"),
            (before + rows, "the text continues after the rows, even when there are more columns"),
        ):
            wrong = _three_positions(before, rows, columns, after, go_on)
            require(given == wanted or given != wrong, f"{where} {rule}.")
        swapped = [wanted[0], wanted[2], wanted[1]]
        require(given == wanted or given != swapped, f"{where} rows and columns are swapped.")
        for name, mine, right in zip(("time", "row", "column"), given, wanted, strict=True):
            require(mine == right, f"{where} the {name} list should be {right}, yours is {mine}."[:400])
    return "The same positions as in transformers, for wide, tall and single-vector pictures."


def _three_positions(before: int, rows: int, columns: int, after: int, go_on: int) -> list[list[int]]:
    """Time, row and column of each position; the text after the picture continues at `go_on`."""
    vectors = [(before, before + row, before + column) for row in range(rows) for column in range(columns)]
    return [[*range(before), *middle, *range(go_on, go_on + after)] for middle in zip(*vectors, strict=True)]


@exercise("08.5", expects=Callable)
def _(answer: Any) -> str:
    import torch

    tower = _tiny()[0].model.vision
    pixels = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(8)) * 3 - 1.5
    with torch.no_grad():
        given = answer(pixels.clone(), tower)
        right = isinstance(given, torch.Tensor) and given.shape == (38, 192)
        require(right, "for pixels [3, 96, 96] it should return a tensor of shape [38, 192].")
        if torch.allclose(given, tower(pixels[None]).last_hidden_state[0], atol=1e-3):
            return "All four are gone: the same vectors as the tower's own."
        for number in range(1, len(FAULTS) + 1):
            for faults in combinations(FAULTS, number):
                if torch.allclose(given, _port(pixels, tower, faults), atol=1e-3):
                    left = "; ".join(FAULTS[fault] for fault in faults)
                    require(False, f"{number} of the 4 faults {'is' if number == 1 else 'are'} left. Look at {left}.")
    require(
        False, "it has a fault that the port did not have. Start from the port again and change one line at a time."
    )
    return ""


def _port(pixels: Tensor, tower: PreTrainedModel, faults: tuple[str, ...]) -> Tensor:
    """The tower's vectors [38, 192] by hand, with these of `FAULTS`."""
    import torch
    from torch.nn import functional

    embedding, adapter = tower.patch_embedding, tower.linear_proj
    tiles = pixels.unfold(1, 8, 8).unfold(2, 8, 8)
    order = (1, 2, 3, 4, 0) if "patch" in faults else (1, 2, 0, 3, 4)
    x = tiles.permute(order).reshape(144, -1) @ embedding.proj.weight.flatten(1).T + embedding.proj.bias
    x = torch.cat([embedding.cls_embedding, x]) + embedding.position_embedding.weight
    for layer in tower.transformer["layers"]:
        x = x + layer.input_layernorm(layer.attention(x[None])[0][0])
        norm, mlp = layer.post_attention_layernorm, layer.mlp
        x = x + (mlp(norm(x)) if "layer" in faults else norm(mlp(x)))
    plane = (x[:-1] if "class" in faults else x[1:]).view(12, 12, 128)
    x = plane.unfold(0, 2, 2).unfold(1, 2, 2).reshape(36, -1) @ tower.conv.weight.flatten(1).T + tower.conv.bias
    x = functional.gelu(adapter.norm1(adapter.linear_proj(x)))
    x = adapter.dense_4h_to_h(functional.silu(adapter.gate_proj(x)) * adapter.dense_h_to_4h(x))
    vectors = torch.cat([tower.boi[0], x, tower.eoi[0]])
    return vectors if "scale" in faults else vectors / tower.config.scaling_factor
