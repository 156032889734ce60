"""The pictures of the picture chat, and the shapes that a reader can draw."""

import math

from helpers.glm.tiny.scenes import SHAPES
from helpers.views.gallery import PALETTE, SIDE, drawn_scenes, outlines, pictures_to_choose


def test_scenes_are_drawn_once_and_offered_with_the_files():
    scenes = drawn_scenes()
    assert scenes is drawn_scenes() and {"a red circle", "two stars"} <= set(scenes)
    assert all(picture.size == (SIDE, SIDE) for picture in scenes.values())
    assert set(scenes) <= set(pictures_to_choose())
    red = tuple(int(PALETTE["red"][at : at + 2], 16) for at in (1, 3, 5))
    assert scenes["a red circle"].getpixel((int(0.24 * SIDE), int(0.26 * SIDE))) == red


def test_the_page_draws_the_shapes_of_the_scenes():
    shapes = outlines()
    assert set(shapes) == set(SHAPES)
    assert len(shapes["triangle"]) == 3 and len(shapes["star"]) == 10
    assert all(math.isclose(math.hypot(x, y), 1, abs_tol=1e-3) for x, y in shapes["circle"])
    assert shapes["triangle"][0] == (0.0, -1.2), "it stands on its side"
