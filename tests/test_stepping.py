"""One call followed down the stack."""

import sys

import pytest

from helpers.errors import AnchorNotFoundError, BadInputError
from helpers.stepping import step_into


def innermost():
    return 1


def inner():
    return innermost()


def outer():
    return inner() + inner() + unnoted()


def unnoted():
    return innermost()


def test_shows_who_calls_whom_and_how_often():
    path = step_into(outer, {innermost: "adds", outer: "begins", inner: "goes on"})
    found = [(stop.depth, stop.name, stop.count) for stop in path.stops]
    assert found == [(0, "outer", 1), (1, "inner", 2), (2, "innermost", 2), (1, "innermost", 1)]
    assert path.entered == 7
    assert all(stop.location.startswith("test_stepping.py:") for stop in path.stops)


def test_a_note_is_printed_where_its_function_first_appears():
    text = repr(step_into(outer, {innermost: "adds", outer: "begins"}))
    assert text.count("└─ adds") == text.count("└─ begins") == 1


def test_a_function_that_was_not_entered_is_named():
    with pytest.raises(AnchorNotFoundError, match="never entered unnoted"):
        step_into(inner, {inner: "begins", unnoted: "is not called"})


def test_what_is_not_python_is_refused():
    with pytest.raises(BadInputError, match="written in Python"):
        step_into(inner, {len: "counts"})


def test_the_profiler_before_is_set_again_also_after_an_error():
    def watch(*event):
        return None

    def fails():
        raise ValueError("no")

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        with pytest.raises(ValueError, match="no"):
            step_into(fails, {fails: "fails"})
        assert sys.getprofile() is watch
    finally:
        sys.setprofile(before)


def test_decorators_are_looked_through(model):
    from transformers import GenerationMixin

    path = step_into(
        lambda: model.generate(max_new_tokens=1, do_sample=False),
        {GenerationMixin.generate: "begins", GenerationMixin._sample: "loops", type(model).forward: "runs"},
    )
    assert [stop.name.split(".")[-1] for stop in path.stops] == ["generate", "_sample", "forward"]
    assert path.stops[0].location.startswith("transformers/generation/utils.py:")
    assert path.version.startswith("transformers ")
