"""Bars cut into parts: lengths, places, labels, and what cannot be drawn."""

import matplotlib
import pytest
from matplotlib import pyplot

from helpers.errors import BadInputError
from helpers.views.parts import plot_parts

matplotlib.use("agg")

ROWS = {"small": {"weights": 1.0, "cache": 3.0}, "large": {"weights": 10.0, "rest": 1234.5}}


pytestmark = pytest.mark.usefixtures("course_style")


def _texts(ax):
    return [text.get_text() for text in ax.texts]


def test_parts_of_a_row_follow_each_other_and_missing_ones_have_no_length():
    ax = plot_parts(ROWS, unit="GB", title="a title")
    bars = {part: [(bar.get_x(), bar.get_width()) for bar in group] for part, group in _groups(ax).items()}
    assert bars == {"weights": [(0, 1), (0, 10)], "cache": [(1, 3), (10, 0)], "rest": [(4, 0), (10, 1234.5)]}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["small", "large"]
    assert ax.get_title(loc="left") + ax.get_title() == "a title"
    assert ax.get_xlabel() == "GB"


def _groups(ax):
    return {group.get_label(): group for group in ax.containers}


def test_sums_stand_at_the_end_and_numbers_in_parts_that_are_wide_enough():
    texts = _texts(plot_parts(ROWS, unit="GB"))
    assert texts == ["1,234", "4 GB", "1,244 GB"]


def test_equal_sums_are_not_written():
    ax = plot_parts({"a": {"x": 40.0, "y": 60.0}, "b": {"x": 70.0, "y": 30.0}}, unit="%")
    assert sorted(_texts(ax)) == ["30", "40", "60", "70"]


def test_parts_of_one_name_look_the_same_and_others_have_another_colour():
    groups = _groups(plot_parts(ROWS))
    for group in groups.values():
        assert len({bar.get_facecolor() for bar in group}) == 1
    assert len({next(iter(group)).get_facecolor() for group in groups.values()}) == 3
    assert len({next(iter(group)).get_facecolor() for group in groups.values()}) == 3


def test_a_limit_is_a_named_line_inside_the_picture():
    ax = plot_parts({"a": {"x": 1.0}}, limit=("a card", 32))
    assert [line.get_xdata()[0] for line in ax.lines] == [32]
    assert "a card" in _texts(ax)
    assert ax.get_xlim()[1] > 32


def test_it_draws_into_given_axes():
    given = pyplot.subplots()[1]
    assert plot_parts(ROWS, ax=given) is given


@pytest.mark.parametrize("rows", [{}, {"a": {}}, {"a": 3}])
def test_nothing_to_draw(rows):
    with pytest.raises(BadInputError, match="nothing to draw"):
        plot_parts(rows)


def test_a_negative_part_is_named():
    with pytest.raises(BadInputError, match="cache of small is -2"):
        plot_parts({"small": {"cache": -2}})
