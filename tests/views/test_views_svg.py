"""Figures as short SVG: the same drawing, and the same text each time."""

from base64 import b64decode
from io import BytesIO
from xml.dom.minidom import parseString

import matplotlib
import numpy
import pytest
from PIL import Image

matplotlib.use("Agg")

from matplotlib import pyplot

from helpers.views.style import is_sharp, use_course_style
from helpers.views.svg import needs_pixels, sharp_png, shorter, svg_text


@pytest.fixture(autouse=True)
def _style():
    with matplotlib.rc_context():
        use_course_style(sharp=True)
        yield
        pyplot.close("all")


def _figure():
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(5, 2))
    left.bar(range(4), [1, 2, 3, 4], label="bars & <tags>")
    left.legend()
    right.scatter(range(3), range(3), c=range(3))
    right.imshow([[0, 1], [1, 0]])
    right.set_title("上、下")
    return figure


def test_a_figure_is_well_formed_with_its_letters_as_text_and_no_date():
    page = parseString(svg_text(_figure()))
    texts = [text.firstChild.data for text in page.getElementsByTagName("text") if text.firstChild.nodeType == 3]
    assert {"bars & <tags>", "上、下"} <= set(texts)
    assert not page.getElementsByTagName("metadata")
    assert len(page.getElementsByTagName("image")) == 1


def test_the_same_figure_gives_the_same_text():
    assert svg_text(_figure()) == svg_text(_figure())


def test_every_name_that_is_referred_to_is_there():
    page = parseString(svg_text(_figure()))
    elements = page.getElementsByTagName("*")
    names = {element.getAttribute("id") for element in elements} - {""}
    links = {element.getAttribute("xlink:href")[1:] for element in page.getElementsByTagName("use")}
    clips = {element.getAttribute("clip-path")[5:-1] for element in elements if element.hasAttribute("clip-path")}
    assert links and clips and links | clips <= names
    assert len(names) == len(links | clips)


def test_what_is_drawn_in_one_style_becomes_one_group():
    bar = '<path d="M 1.23 2 L 3 4" style="fill: #ffffff"/>'
    assert shorter(f"<svg><g>{bar} {bar}</g></svg>") == (
        '<svg><g style="fill:#ffffff"><path d="M1.2 2L3 4"/><path d="M1.2 2L3 4"/></g></svg>'
    )


def test_chinese_is_drawn_since_a_reader_may_have_no_font_for_it():
    figure = _figure()
    assert needs_pixels(figure)
    png, size = sharp_png(figure)
    assert png.startswith(b"\x89PNG") and size["width"] == pytest.approx(480, abs=30)
    plain = pyplot.figure()
    plain.suptitle("·Paris → −∞ …")
    assert not needs_pixels(plain)


def _with_pictures(*pictures):
    figure, axes = pyplot.subplots(1, len(pictures), squeeze=False)
    for ax, picture in zip(axes.flat, pictures, strict=True):
        ax.imshow(picture, interpolation="none")
    return figure


def test_an_equal_picture_is_held_once_with_a_palette_and_all_its_colours():
    drawn = numpy.zeros((20, 20, 3), dtype=numpy.uint8)
    drawn[5:9, 5:9] = 242, 213, 15
    svg = svg_text(_with_pictures(drawn, drawn, drawn[::-1]))
    page = parseString(svg)
    images = page.getElementsByTagName("image")
    assert len(images) == 2
    assert {use.getAttribute("xlink:href") for use in page.getElementsByTagName("use")} >= {"#picture0"}
    held = Image.open(BytesIO(b64decode(images[0].getAttribute("xlink:href").partition(",")[2])))
    assert held.mode == "P"
    assert numpy.array_equal(numpy.asarray(held.convert("RGB")), drawn)


def test_few_drawn_pictures_are_svg_and_a_photograph_is_a_png():
    drawn = numpy.zeros((20, 20, 3), dtype=numpy.uint8)
    photograph = numpy.random.default_rng(0).integers(256, size=(20, 20, 3), dtype=numpy.uint8)
    assert not needs_pixels(_with_pictures(drawn, [[0, 1], [1, 0]]))
    assert needs_pixels(_with_pictures(*[drawn] * 13)), "too many to repeat their frames in SVG"
    assert needs_pixels(_with_pictures(photograph))
    png, size = sharp_png(_with_pictures(photograph))
    assert Image.open(BytesIO(png)).width * 100 // 130 == size["width"], "130 dots per inch, shown as 100"


def test_sharp_is_a_setting_that_rcdefaults_takes_back():
    assert is_sharp()
    matplotlib.rcdefaults()
    assert not is_sharp()
