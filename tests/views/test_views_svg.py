"""Figures as short SVG: the same drawing, and the same text each time."""

from xml.dom.minidom import parseString

import matplotlib
import pytest

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


def test_pictures_in_colours_are_pixels_in_svg_too_so_they_become_png():
    figure, (left, right) = pyplot.subplots(1, 2)
    left.imshow([[0, 1], [1, 0]])
    assert not needs_pixels(figure), "A heat map is small as SVG."
    right.imshow([[(255, 0, 0), (0, 0, 255)]])
    assert needs_pixels(figure)


def test_sharp_is_a_setting_that_rcdefaults_takes_back():
    assert is_sharp()
    matplotlib.rcdefaults()
    assert not is_sharp()
