"""How the tests of figures run: in the course's style where they ask for it, and leaving no figure behind."""

import warnings

import matplotlib
import pytest
from matplotlib import pyplot

from helpers import use_course_style


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    pyplot.close("all")


@pytest.fixture
def course_style():
    """The course's style, for one test."""
    with matplotlib.rc_context():
        use_course_style()
        yield


@pytest.fixture
def no_warnings(course_style):
    """Every warning is an error, also one that comes when the figures are drawn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        for number in pyplot.get_fignums():
            pyplot.figure(number).canvas.draw()  # a missing character warns only now
