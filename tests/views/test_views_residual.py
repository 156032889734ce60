"""Pictures of contributions and patching: they draw what they are given."""

import matplotlib

matplotlib.use("Agg")

import pytest
import torch
from matplotlib import pyplot

from helpers.errors import BadInputError
from helpers.inside.patching import PatchingSweep
from helpers.views.residual import plot_against_controls, plot_heads, plot_patching
from helpers.views.style import use_course_style


def test_a_sweep():
    moved = torch.tensor([[0.0, 1.0], [0.5, -2.0], [0.0, 0.0]])
    sweep = PatchingSweep(moved, (0, 4, 7), "attention", ("·a", "$b"), ("·a", "·<b>"), -1.0, 1.0)
    ax = plot_patching(sweep)
    assert ax.images[0].get_array().tolist() == moved.tolist() and ax.images[0].get_clim() == (-1, 1)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["·a", "\\$b\n← ·<b>"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0", "4", "7"]
    assert "attention's output" in ax.get_title() + ax.get_title(loc="left")
    ax.figure.canvas.draw()


@pytest.mark.parametrize(
    ("tokens", "angle"), [(("首都", "是", "、"), 0), (("首都" * 4, "是", "、"), 45), (("·Luxembourg",) * 3, 45)]
)
def test_short_labels_stand_upright(tokens, angle):
    with matplotlib.rc_context():
        use_course_style()
        ax = plot_patching(PatchingSweep(torch.zeros(2, 3), (0, 1), "mlp", tokens, tokens, -1.0, 1.0))
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {angle}


def test_heads_and_mlps_share_their_colours():
    heads, mlp = torch.randn(6, 4), torch.tensor([0.0, 9.0, 0, 0, 0, 0])
    ax = plot_heads(heads, mlp, label="logit", title="Who")
    first, second = ax.images
    assert first.get_clim() == second.get_clim() == (-9, 9)
    assert torch.allclose(torch.tensor(first.get_array().tolist()), heads)
    assert ax.get_xticklabels()[-1].get_text() == "MLP"
    other = pyplot.subplots()[1]
    assert plot_heads(heads, ax=other) is other and len(other.images) == 1
    with pytest.raises(BadInputError, match=r"these are \[6, 4\] and mlp \[3\]"):
        plot_heads(heads, torch.zeros(3))


def test_against_controls():
    ax = plot_against_controls({"head 23.4": -1.5}, {"random": [0.1, -0.2]}, before=0.0, label="log p", title="T")
    assert [list(line.get_xdata()) for line in ax.lines[:2]] == [[-1.5], [0.1, -0.2]]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["head 23.4", "random"]
    with pytest.raises(BadInputError, match="nothing to compare"):
        plot_against_controls({"a": 1.0}, {"random": []})
