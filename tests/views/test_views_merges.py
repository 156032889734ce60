"""The picture of merges: a row a step, boxes as wide as their bytes."""

import matplotlib
import pytest
from matplotlib import pyplot

from helpers.errors import BadInputError
from helpers.text.bpe import merge_steps
from helpers.views.merges import MOST_ROWS, plot_merges

matplotlib.use("agg")

RANKS = {(b"\xe4", b"\xbd"): 5, (b"\xe4\xbd", b"\xa0"): 1234, (b" ", b"a"): 0}


pytestmark = pytest.mark.usefixtures("course_style")


def test_a_row_a_step_with_ranks_and_readable_fragments():
    ax = plot_merges(merge_steps(" a你".encode(), RANKS.get), title="a title")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["bytes", "rank 0", "rank 5", "rank 1,234"]
    texts = [text.get_text() for text in ax.texts]
    assert texts[:5] == ["·", "a", "你 1/3", "你 2/3", "你 3/3"]
    assert texts[-2:] == ["·a", "你"]
    assert ax.get_title(loc="left") + ax.get_title() == "a title"


def test_the_new_token_stands_out_and_boxes_are_as_wide_as_their_bytes():
    ax = plot_merges(merge_steps("你".encode(), RANKS.get))
    bold = [text.get_text() for text in ax.texts if text.get_fontweight() == "bold"]
    assert bold == ["你 1/2", "你"]
    widths = [round(box.get_width() + 0.1, 6) for box in ax.patches]
    assert widths == [1, 1, 1, 2, 1, 3]


def test_it_draws_into_the_axes_it_is_given():
    _, mine = pyplot.subplots()
    assert plot_merges(merge_steps(b"a", RANKS.get), ax=mine) is mine


def test_too_little_and_too_much_to_draw_are_named():
    with pytest.raises(BadInputError, match="0 steps"):
        plot_merges([])
    with pytest.raises(BadInputError, match="1 steps"):
        plot_merges(merge_steps(b"", RANKS.get))
    many = merge_steps(b" a" * MOST_ROWS, RANKS.get)
    with pytest.raises(BadInputError, match=f"{len(many)} steps"):
        plot_merges(many)
