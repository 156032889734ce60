"""The drawing of prefill and decode."""

import re
import xml.etree.ElementTree as ET

import pytest

from helpers.errors import BadInputError
from helpers.inside.generation import generate_steps
from helpers.views.decoding import CACHED, COMPUTED, show_prefill_and_decode

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def steps(model, tokenizer):
    """Three steps of an answer to a prompt of two or more tokens."""
    return list(generate_steps(model, tokenizer, "The sky", max_new_tokens=3, eos_token_id=[]))


def cells(view, color):
    """How many cells of the drawing have this colour, in each group of cells."""
    paths = ET.fromstring(view._repr_svg_()).findall(f"{SVG}path")
    return [path.get("d").count("M") for path in paths if path.get("fill") == color]


def test_each_row_of_each_step_is_drawn_once(steps):
    view, n = show_prefill_and_decode(steps), steps[0].kv_length
    triangle = [length * (length + 1) // 2 for length in (n, n + 1, n + 2)]
    with_cache = [triangle[0], 1, 1]
    assert sorted(cells(view, COMPUTED)) == sorted([*with_cache, *triangle])
    assert cells(view, CACHED) == [n, n + 1]


def test_rows_are_counted(steps):
    n = steps[0].kv_length
    assert f"in total: {n + 2} rows with the cache, {3 * n + 3} without" in repr(show_prefill_and_decode(steps))


def test_it_stays_small(steps):
    svg = show_prefill_and_decode(steps)._repr_svg_()
    assert len(svg) < 10_000
    assert not re.search(r"[<&](?![/\w])", svg)


def test_what_cannot_be_drawn_is_refused(steps):
    with pytest.raises(BadInputError, match="from the first one on"):
        show_prefill_and_decode(steps[1:])
    with pytest.raises(BadInputError, match="from the first one on"):
        show_prefill_and_decode([])
    with pytest.raises(BadInputError, match="room for 6 and 12"):
        show_prefill_and_decode(steps[:1] * 7)
