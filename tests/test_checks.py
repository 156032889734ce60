"""The checks at the doors, and the form that every message takes."""

import doctest
import math
from pathlib import Path

import numpy
import pytest
import torch

from helpers import checks, errors
from helpers.errors import BadInputError, DamagedFilesError, ModelNotFoundError, printable


@pytest.mark.parametrize("module", [checks, errors])
def test_the_examples_are_right(module):
    result = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert result.attempted and not result.failed


def test_what_is_right_passes():
    assert checks.whole_number("n", numpy.int64(3), least=1) == 3
    assert checks.number("x", numpy.float32(0.5), most=1) == 0.5
    assert checks.one_of("kind", None, (None, "a")) is None
    assert checks.file_path("folder", "~/x") == Path.home() / "x"
    assert checks.text("prompt", "\U0001f469\u200d\U0001f4bb") == "\U0001f469\u200d\U0001f4bb"


@pytest.mark.parametrize("value", ["1", None, 1.5, True, [], {}, math.nan, math.inf, b"1", 0, 10, torch.ones(1)])
def test_what_is_no_whole_number_is_shown(value):
    with pytest.raises(BadInputError, match="batch must be a whole number from 1 to 9, not"):
        checks.whole_number("batch", value, least=1, most=9)


@pytest.mark.parametrize("value", ["1", None, True, [], math.nan, -math.inf, 10**400, 3])
def test_what_is_no_finite_number_is_shown(value):
    with pytest.raises(BadInputError, match="scale must be a finite number of at most 2, not"):
        checks.number("scale", value, most=2)


@pytest.mark.parametrize("value", [1, ["a"], {}, 1.0, "b", None])
def test_what_is_no_option_is_shown(value):
    with pytest.raises(BadInputError, match=r"kind must be True or 'a', not"):
        checks.one_of("kind", value, (True, "a"))


@pytest.mark.parametrize(
    "value", [5, 3.5, None, b"x", ["x"], {}, "", " ", "a\0b", "x" * 5000, "a/" + "北" * 100, "\ud800"]
)
def test_what_is_no_path_is_shown(value):
    with pytest.raises(BadInputError, match="folder"):
        checks.file_path("folder", value)


@pytest.mark.parametrize("value", ["\ud800", "a\udfffb", 5, None, b"x"])
def test_what_is_no_text_is_shown(value):
    with pytest.raises(BadInputError, match="prompt"):
        checks.text("prompt", value)


def test_a_wrong_value_is_shown_short_and_without_its_contents():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert checks.shown(deep) == "an object of type list"
    assert len(checks.shown("a" * 10**6)) < 100
    assert checks.shown(torch.ones(3)) == "an object of type Tensor"


def test_models_and_tokenizers_are_told_from_other_things(tokenizer):
    meta = torch.nn.Linear(2, 2, device="meta")
    meta.config = None
    for value in (None, "smollm2-135m", 5, tokenizer, meta):
        with pytest.raises(BadInputError, match="model"):
            checks.language_model("model", value)
    for value in (None, "smollm2-135m", 5, torch.nn.Linear(2, 2)):
        with pytest.raises(BadInputError, match="tokenizer"):
            checks.tokenizer("tokenizer", value)
    assert checks.tokenizer("tokenizer", tokenizer) is tokenizer


def test_ids_that_the_model_has_no_embedding_for_are_refused(tiny):
    checks.ids_of_model(tiny, torch.tensor([[0, 63]]))
    with pytest.raises(BadInputError, match=r"Token id 64 .* 0 to 63"):
        checks.ids_of_model(tiny, torch.tensor([[0, 64]]))


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b]0;title\x07 \x9b31m", "\\x1b]0;title\\x07 \\x9b31m"),
        ("left\u202eright", "left\\u202eright"),
        ("over\rwritten", "over\\rwritten"),
        ("http://me:secret@host:80/x", "http://…@host:80/x"),
        ("https://token@host", "https://…@host"),
        ("http://me:se/cr?et@host/x", "http://…@host/x"),
        ("http://me:a@b@host/x", "http://…@host/x"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("two\nlines, 北京, \U0001f469\u200d\U0001f4bb", "two\nlines, 北京, \U0001f469\u200d\U0001f4bb"),
    ],
)
def test_messages_are_safe_to_show(raw, shown):
    assert printable(raw) == shown
    for kind in (BadInputError, DamagedFilesError, ModelNotFoundError):
        assert str(kind(raw)) == shown
        assert kind(raw)._render_traceback_() == [f"{kind.__name__}: {shown}"]


def test_messages_are_short_whatever_they_quote():
    assert len(str(BadInputError("x" * 10**6))) < 2_100
    assert "secret" not in printable("http://" + "me" * 600 + ":" + "secret" * 2000 + "@host/x")
