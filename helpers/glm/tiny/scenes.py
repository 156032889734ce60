"""Drawn scenes: one to three shapes, or a handwritten digit, over a background.

A `Scene` is data (what is where), and `draw` turns it into a picture. Positions and sizes are fractions of
the picture's side, so a scene can be changed and drawn again: move a shape, or recolour it.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from random import Random

    from PIL import Image

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
# (hue, saturation, value), each from lowest to highest: wide enough to cover what people call by these names.
TINTS = {
    "red": ((-0.015, 0.012), (0.75, 1), (0.7, 1)),
    "orange": ((0.07, 0.108), (0.85, 1), (0.9, 1)),
    "yellow": ((0.14, 0.17), (0.75, 1), (0.88, 1)),
    "green": ((0.31, 0.41), (0.65, 1), (0.45, 0.95)),
    "blue": ((0.57, 0.675), (0.7, 1), (0.65, 1)),
    "purple": ((0.76, 0.84), (0.5, 1), (0.5, 0.9)),
}
REGIONS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
MARGIN = 0.03  # no centre is nearer than this to the lines between regions
OVERSAMPLING = 3


@dataclass(frozen=True)
class Thing:
    """A shape or a digit. `kind` is one of `SHAPES` or "digit 0" to "digit 9".

    `x`, `y` are its centre (0, 0 is the top left) and `size` its radius, all as fractions of the picture's
    side; `rgb` is the colour it is drawn in, `colour` that colour's name (None for a digit), `turn` its
    rotation in radians, `outline` the colour of a line around it (for a digit, of a sheet behind it), and `ink`
    the [8, 8] image of a digit.

    >>> from random import Random
    >>> {thing.kind for thing in random_scene(Random(3), with_digit=False).things} <= set(SHAPES)
    True
    """

    kind: str
    x: float
    y: float
    size: float
    rgb: tuple[int, ...]
    colour: str | None = None
    turn: float = 0.0
    outline: tuple[int, ...] | None = None
    ink: object = None

    @property
    def region(self) -> str:
        """The name of the region that contains its centre: one of the nine cells of a 3 x 3 grid, from `REGIONS`."""
        return REGIONS[3 * min(int(3 * self.y), 2) + min(int(3 * self.x), 2)]


@dataclass(frozen=True)
class Scene:
    """Things over a background. `background` is two colours, at the top and at the bottom; `noise` is the standard
    deviation of the grain added to the pixels (0 to 255), and `seed` that of the grain.

    >>> from random import Random
    >>> len(random_scene(Random(3), count=2, with_digit=False).things)
    2
    """

    things: tuple[Thing, ...]
    background: tuple[tuple[int, ...], tuple[int, ...]]
    noise: float = 0.0
    seed: int = 0


def draw(scene: Scene, side: int = 96) -> Image.Image:
    """The scene as an RGB picture of `side` x `side` pixels.

    >>> from random import Random
    >>> draw(random_scene(Random(0), part="test")).size
    (96, 96)
    """
    import numpy
    from PIL import Image, ImageDraw

    big = side * OVERSAMPLING
    top, bottom = (numpy.array(colour, dtype=float) for colour in scene.background)
    ramp = numpy.linspace(0, 1, big)[:, None, None]
    column = Image.fromarray((top * (1 - ramp) + bottom * ramp).astype("uint8"), "RGB")
    picture = column.resize((big, big), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    for thing in scene.things:
        if thing.ink is not None:
            _draw_ink(picture, thing, big)
            continue
        points = outline_points(thing)
        corners = [(x * big, y * big) for x, y in points]
        pen.polygon(corners, fill=thing.rgb)
        if thing.outline is not None:
            pen.line([*corners, corners[0], corners[1]], fill=thing.outline, width=max(2, big // 60), joint="curve")
    picture = picture.reduce(OVERSAMPLING)
    if scene.noise:
        grain = numpy.random.default_rng(scene.seed).normal(0, scene.noise, (side, side, 1))
        picture = Image.fromarray((numpy.asarray(picture) + grain).clip(0, 255).astype("uint8"), "RGB")
    return picture


def outline_points(thing: Thing) -> list[tuple[float, float]]:
    """The corners [(x, y), …] of a shape; a circle has 48 of them."""
    count, radii = {
        "circle": (48, (1.0,)),
        "square": (4, (1.25,)),
        "triangle": (3, (1.2,)),
        "star": (10, (1.2, 0.5)),
    }[thing.kind]
    first = {"square": math.pi / 4}.get(thing.kind, -math.pi / 2) + thing.turn
    angles = (first + 2 * math.pi * corner / count for corner in range(count))
    return [
        (
            thing.x + thing.size * radii[corner % len(radii)] * math.cos(angle),
            thing.y + thing.size * radii[corner % len(radii)] * math.sin(angle),
        )
        for corner, angle in enumerate(angles)
    ]


def _draw_ink(picture: Any, thing: Thing, big: Any) -> None:
    """Draw a digit: `ink` [8, 8] from 0 to 16, as in scikit-learn's `load_digits`, is used as a mask.

    It is tilted by `turn`, and lies on a square sheet if the thing has an `outline` colour.
    """
    import numpy
    from PIL import Image

    width = int(2 * thing.size * big)
    corner = (int(thing.x * big - width / 2), int(thing.y * big - width / 2))
    if thing.outline is not None:
        picture.paste(thing.outline, (*corner, corner[0] + width, corner[1] + width))
    mask = Image.fromarray((numpy.asarray(thing.ink) * 15.9).astype("uint8"), "L")
    mask = mask.resize((width, width), Image.Resampling.BICUBIC).rotate(
        math.degrees(thing.turn), Image.Resampling.BILINEAR
    )
    picture.paste(thing.rgb, corner, mask)


@cache
def digits(part: str) -> tuple[Any, Any]:
    """`(images [n, 8, 8], labels [n])` of scikit-learn's handwritten digits: "train" is four fifths, "test" the rest.

    >>> images, labels = digits("test")
    >>> images.shape[1:]
    (8, 8)
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    is_test = [index % 5 == 0 for index in range(len(data.target))]
    rows = [index for index, test in enumerate(is_test) if test == (part == "test")]
    return data.images[rows], data.target[rows]


def random_scene(
    random: Random, *, part: str = "train", count: int | None = None, with_digit: bool | None = None
) -> Scene:
    """A scene whose contents `random` (a `random.Random`) chooses. `part` says which digits it may contain.

    >>> from random import Random
    >>> [thing.kind for thing in random_scene(Random(3), count=2, with_digit=False).things]
    ['square', 'star']
    """
    with_digit = random.random() < 0.25 if with_digit is None else with_digit
    background = _background(random)
    things = []
    if with_digit:
        images, labels = digits(part)
        index = random.randrange(len(labels))
        spot = _free_spot(random, things, random.uniform(0.15, 0.3))
        light = sum(background[0]) + sum(background[1]) < 6 * 128
        ink = random.randint(215, 255) if light else random.randint(0, 45)
        paper = random.choice((None, None, 255 - ink))  # as in the collection: on a sheet of its own
        things.append(
            Thing(
                f"digit {labels[index]}",
                *spot,
                (ink, ink, ink),
                turn=random.uniform(-0.2, 0.2),
                outline=None if paper is None else (paper, paper, paper),
                ink=images[index],
            )
        )
        count = random.choice((0, 0, 1)) if count is None else count
    count = random.choice((1, 1, 2, 2, 3, 3)) if count is None else count
    for _ in range(count):
        spot = _free_spot(random, things, random.uniform(0.1, 0.22))
        if spot is not None:
            things.append(_shape(random, spot))
    return Scene(tuple(things), background, random.choice((0, 0, random.uniform(1, 8))), random.randrange(2**31))


def _shape(random: Random, spot: tuple[float, float, float]) -> Thing:
    colour = random.choice(COLOURS)
    outline = random.choice((None, None, (20, 20, 20), (250, 250, 250), tuple(random.randrange(90) for _ in range(3))))
    turn = random.uniform(-0.3, 0.3)
    return Thing(random.choice(SHAPES), *spot, jittered(random, colour), colour, turn, outline)


def jittered(random: Random, colour: str) -> tuple[int, ...]:
    """A colour (red, green, blue) of that name, slightly different each time."""
    hue, saturation, value = (random.uniform(*limits) for limits in TINTS[colour])
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _background(random: Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Light, dark or in between; plain, or a gradient from one shade to another; sometimes tinted."""
    grey = random.uniform(*random.choice(((190, 255), (235, 255), (0, 60), (100, 180))))

    def near(spread: float) -> tuple[int, ...]:
        return tuple(round(min(255, max(0, grey + random.uniform(-spread, spread)))) for _ in range(3))

    top = near(random.choice((0, 10, 25)))
    return (top, top) if random.random() < 0.6 else (top, near(25))


def _free_spot(random: Random, things: list[Thing], size: float) -> tuple[float, float, float] | None:
    """(x, y, size) inside the picture, clear of the other things and of the lines between regions; None if there is no
    room."""
    for _ in range(60):
        x, y = (random.uniform(1.15 * size + 0.01, 1 - 1.15 * size - 0.01) for _ in range(2))
        near_line = any(abs(at - line) < MARGIN for at in (x, y) for line in (1 / 3, 2 / 3))
        if not near_line and all(math.hypot(x - t.x, y - t.y) > 1.2 * (size + t.size) for t in things):
            return x, y, size
    return None
