"""The drawing of the generation loop."""

import xml.etree.ElementTree as ET

import pytest

from helpers.errors import BadInputError
from helpers.views.loop import HEIGHT, HIGHLIGHT, STAGES, WIDTH, show_loop

SVG = "{http://www.w3.org/2000/svg}"


def boxes(view):
    """The rectangles of the stages, in their order; the first rectangle is the card."""
    return ET.fromstring(view._repr_svg_()).findall(f"{SVG}rect")[1:]


@pytest.mark.parametrize("stage", STAGES)
def test_one_stage_is_highlighted(stage):
    lit = [name for name, box in zip(STAGES, boxes(show_loop(stage)), strict=True) if box.get("stroke") == HIGHLIGHT]
    assert lit == [stage]


def test_none_and_several():
    assert all(box.get("stroke") != HIGHLIGHT for box in boxes(show_loop()))
    assert sum(box.get("stroke") == HIGHLIGHT for box in boxes(show_loop("inputs", "forward"))) == 2


def test_boxes_lie_on_the_card_and_apart():
    places = [tuple(int(box.get(side)) for side in ("x", "y", "width", "height")) for box in boxes(show_loop())]
    for n, (x, y, width, height) in enumerate(places):
        assert 0 <= x <= x + width <= WIDTH
        assert 0 <= y <= y + height <= HEIGHT
        for other_x, other_y, other_width, _ in places[:n]:
            assert y != other_y or x + width < other_x or other_x + other_width < x


def test_it_is_small_and_says_what_is_highlighted():
    svg = show_loop("choice")._repr_svg_()
    assert len(svg) < 6000
    assert "highlighted: choice" in svg
    assert "[choice]" in repr(show_loop("choice"))


def test_a_stage_that_is_not_there_is_refused():
    with pytest.raises(BadInputError, match="no stage 'decode'"):
        show_loop("decode")
