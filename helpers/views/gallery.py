"""Pictures to start a chat with: a few drawn scenes, a handwritten digit, and the files in data/pictures."""

from functools import cache
from pathlib import Path
from typing import Any

from PIL.Image import Image

from helpers.models import store

PICTURES = store.DATA / "pictures"
KINDS = (".png", ".jpg", ".jpeg", ".webp", ".gif")
SCREENSHOTS = ("stepper.png",)  # in the same folder, for the README
SIDE = 288  # pixels of a drawn scene
# Colours to draw with, as the tiny GLM-4V knows them, and black for digits.
PALETTE = {
    "red": "#d92323",
    "orange": "#f58b14",
    "yellow": "#f2d50f",
    "green": "#23a845",
    "blue": "#2562d9",
    "purple": "#9b3fd1",
    "black": "#111111",
}


def pictures_to_choose() -> dict[str, Image | Path]:
    """The drawn scenes, and the pictures in data/pictures: name -> PIL image, or path."""
    files = sorted(path for path in PICTURES.glob("*") if path.suffix.lower() in KINDS)
    return drawn_scenes() | {path.name: path for path in files if path.name not in SCREENSHOTS}


def outlines() -> dict[str, list[tuple[float, float]]]:
    """The corners of each shape that can be drawn, with centre (0, 0) and size 1: name -> [(right, down), …]."""
    from helpers.glm.tiny.scenes import SHAPES, outline_points

    shapes = {kind: outline_points(_thing(kind, 0, 0, 1, "black")) for kind in SHAPES}
    return {kind: [(round(x, 4), round(y, 4)) for x, y in points] for kind, points in shapes.items()}


@cache
def drawn_scenes() -> dict[str, Image]:
    """A few pictures to start with: name -> PIL image, 288 x 288."""
    from helpers.glm.tiny.scenes import Scene, draw

    light, dark = ((246, 246, 242), (232, 236, 244)), ((28, 30, 40), (28, 30, 40))
    scenes = {
        "a red circle": Scene((_thing("circle", 0.24, 0.26, 0.16, "red"),), light),
        "a square and a triangle": Scene(
            (_thing("square", 0.72, 0.25, 0.14, "blue", 0.1), _thing("triangle", 0.26, 0.74, 0.17, "yellow")), dark
        ),
        "three shapes": Scene(
            (
                _thing("star", 0.22, 0.24, 0.16, "purple"),
                _thing("circle", 0.5, 0.79, 0.13, "green"),
                _thing("square", 0.79, 0.22, 0.13, "orange", -0.15),
            ),
            light,
        ),
        "two stars": Scene(
            (_thing("star", 0.25, 0.5, 0.17, "orange"), _thing("star", 0.78, 0.78, 0.15, "blue")), light
        ),
    }
    return {name: draw(scene, SIDE) for name, scene in scenes.items()} | _digit()


def _thing(kind: str, x: float, y: float, size: float, colour: str, turn: float = 0.0) -> Any:
    from helpers.glm.tiny.scenes import Thing

    red, green, blue = (int(PALETTE[colour][at : at + 2], 16) for at in (1, 3, 5))
    return Thing(kind, x, y, size, (red, green, blue), colour, turn)


def _digit() -> dict[str, Image]:
    """A handwritten digit from scikit-learn's collection, if that is installed."""
    from helpers.glm.tiny.scenes import Scene, Thing, digits, draw

    try:
        images, labels = digits("test")
    except ImportError:
        return {}
    index = list(labels).index(3)
    three = Thing("digit 3", 0.5, 0.5, 0.24, (20, 20, 20), ink=images[index])
    return {"a handwritten digit": draw(Scene((three,), ((250, 250, 250), (250, 250, 250))), SIDE)}
