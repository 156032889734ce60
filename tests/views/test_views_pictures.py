"""Rows of pictures, patches pulled apart, weights over a picture."""

import pytest
import torch
from PIL import Image

from helpers.errors import BadImageError, BadInputError
from helpers.glm import ChatGLMConfig
from helpers.views.picture_path import plot_picture_path
from helpers.views.pictures import plot_patches, plot_pictures


@pytest.fixture
def picture():
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (60, 40), "red")
    picture.paste("blue", (30, 0, 60, 40))
    return picture


def test_each_picture_gets_its_caption(picture):
    axes = plot_pictures([picture] * 5, [f"number {n}, 中文 $5" for n in range(5)], columns=3, title="Five")
    assert len(axes) == 5
    assert "number 3" in axes[3].get_xlabel().replace("\n", " ")
    assert "U+000A" not in axes[0].get_xlabel()
    assert r"\$5" in axes[0].get_xlabel().replace("\n", "")
    assert len({ax.get_subplotspec().rowspan.start for ax in axes}) == 2
    axes[0].figure.canvas.draw()


def test_a_picture_is_drawn_as_the_square_that_the_model_gets(picture):
    (square,) = plot_pictures(picture)
    (wide,) = plot_pictures(picture, keep_shape=True)
    assert square.images[0].get_extent() == [0, 1, 1, 0]
    assert wide.images[0].get_extent() == pytest.approx([0, 1, 2 / 3, 0])


def test_heat_is_drawn_over_it_and_the_mark_on_its_patch(picture):
    heat = torch.tensor([[0.0, 0.1, 0.4], [0.0, 0.0, 0.2]])
    axes = plot_pictures(picture, heats=[heat, heat.flip(0)], marks=[(0, 2), None])
    assert len(axes) == 2
    drawn = axes[0].images[1].get_array()
    assert drawn.max() == drawn[0, 2] == 1
    hidden = axes[0].images[1].cmap(drawn)[..., 3]
    assert hidden[0, 2] == 0 and hidden.max() > 0.8, "the picture's own colours where the weight is largest"
    assert hidden[0, 0] == hidden.max()
    (scale,) = [ax for ax in axes[0].figure.axes if ax not in axes]
    assert [label.get_text() for label in scale.get_yticklabels()] == ["0", "largest\nin each"]
    (box,) = axes[0].patches
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == pytest.approx((2 / 3, 0, 1 / 3, 1 / 2))
    assert not axes[1].patches


def test_some_pictures_may_go_without_heat(picture):
    axes = plot_pictures([picture, picture], heats=[None, torch.ones(2, 2)])
    assert [len(ax.images) for ax in axes] == [1, 2]


def test_an_all_zero_heat_is_drawn(picture):
    (ax,) = plot_pictures(picture, heats=[torch.zeros(2, 2)])
    assert ax.images[1].get_array().max() == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"captions": ["one", "two"]}, "1 pictures and 2 captions"),
        ({"heats": [torch.ones(3)]}, r"\[3\]"),
        ({"heats": [-torch.ones(2, 2)]}, "0 or more"),
    ],
)
def test_what_does_not_fit_is_told(picture, settings, words):
    with pytest.raises(BadInputError, match=words):
        plot_pictures([picture], **settings)


def test_nothing_and_no_picture_are_told():
    with pytest.raises(BadInputError, match="nothing to draw"):
        plot_pictures([])
    with pytest.raises(BadImageError):
        plot_pictures(["there is no such file.png"])


def test_patches_are_pulled_apart_by_white(picture):
    ax = plot_patches(picture, 4, title="Sixteen")
    sheet = ax.images[0].get_array()
    side = sheet.shape[0]
    assert sheet.shape == (side, side, 3)
    assert tuple(sheet[0, 0]) == (255, 0, 0) and tuple(sheet[-1, -1]) == (0, 0, 255)
    white_rows = [row for row in range(side) if (sheet[row] == 255).all()]
    assert white_rows and len(white_rows) % 3 == 0  # three gaps between four patches
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("grid", [0, 49, 2.0, True])
def test_a_grid_that_cannot_be_is_told(picture, grid):
    with pytest.raises(BadInputError, match="grid"):
        plot_patches(picture, grid)


def test_the_way_of_a_picture_has_a_shape_for_each_stage(picture):
    places = [f"section {number}" for number in range(2, 9)]
    ax = plot_picture_path(ChatGLMConfig(vision_config={}), picture, places=places, title="GLM-4V-9B")
    written = [text.get_text() for text in ax.texts]
    assert {*places} <= {*written}
    assert any("[1602, 4096]" in text for text in written) and any("63 layers" in text for text in written)
    with pytest.raises(BadInputError, match="7 stages and 1 places"):
        plot_picture_path(ChatGLMConfig(vision_config={}), picture, places=["one"])
    with pytest.raises(BadInputError, match="no vision tower"):
        plot_picture_path(ChatGLMConfig(), picture)
