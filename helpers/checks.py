"""Argument checks: a value is what it should be, or one `BadInputError` says what was given and what is allowed.

Every public function uses these to check what a reader passes, before anything is loaded or computed. Each check takes
the argument's name and its value, and returns the value in the form that the rest of the code works with.
"""

import contextlib
import math
import os
import re
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from helpers.errors import BadInputError, printable

SHOWN_CHARACTERS = 80  # of a wrong value that a message shows
NAME_BYTES = 255  # the longest file name that file systems accept


def shown(value: Any) -> str:
    """A wrong value as a message shows it: its `repr`, shortened and without control characters, or an object's type.

    >>> shown("one"), len(shown("a" * 200)), shown(object())
    ("'one'", 80, 'an object of type object')
    """
    if value is not None and not isinstance(value, str | bytes | Real | Path | list | tuple | dict | set):
        return f"an object of type {type(value).__name__}"
    try:
        text = re.sub(r"\s*\n\s*", " ", printable(repr(value)))
    except Exception:  # a value nested so deeply, or so odd, that it cannot even be shown
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}…{text[-2:]}"


def whole_number(name: str, value: Any, *, least: int | None = None, most: int | None = None) -> int:
    """The value as an int: a whole number from `least` to `most`, and not a bool. Raises `BadInputError`.

    >>> whole_number("batch", 2, least=1)
    2
    >>> whole_number("batch", "2", least=1)
    Traceback (most recent call last):
    helpers.errors.BadInputError: batch must be a whole number of at least 1, not '2'.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and _within(value, least, most):
        return int(value)
    raise BadInputError(f"{name} must be a whole number{_range(least, most)}, not {shown(value)}.")


def number(name: str, value: Any, *, least: float | None = None, most: float | None = None) -> float:
    """The value as a float: a finite number from `least` to `most`, and not a bool. Raises `BadInputError`.

    >>> number("scale", 2)
    2.0
    """
    if isinstance(value, Real) and not isinstance(value, bool) and is_finite(value) and _within(value, least, most):
        return float(value)
    raise BadInputError(f"{name} must be a finite number{_range(least, most)}, not {shown(value)}.")


def one_of(name: str, value: Any, options: Collection[Any]) -> Any:
    """The value, if it is one of the options (and of the same type). Raises a `BadInputError` that lists them.

    >>> one_of("quantization", "8bit", (None, "8bit", "4bit"))
    '8bit'
    """
    if any(type(value) is type(option) and value == option for option in options):
        return value
    *others, last = map(repr, options)
    listed = f"{', '.join(others)} or {last}" if others else last
    raise BadInputError(f"{name} must be {listed}, not {shown(value)}.")


def flag(name: str, value: Any) -> bool:
    """The value, if it is True or False. Raises `BadInputError`."""
    return one_of(name, value, (True, False))


def text(name: str, value: Any, *, empty: bool = True) -> str:
    """The value, if it is a string that can be encoded (it has no lone surrogates). Raises `BadInputError`.

    >>> text("prompt", "北京")
    '北京'
    """
    if not isinstance(value, str):
        raise BadInputError(f"{name} must be a string, not {shown(value)}.")
    if not value and not empty:
        raise BadInputError(f"{name} is empty: give it some text.")
    half = next((at for at, character in enumerate(value) if "\ud800" <= character <= "\udfff"), None)
    if half is not None:
        raise BadInputError(
            f"{name} holds half of a character at position {half} (a lone surrogate, U+{ord(value[half]):04X}), which "
            "cannot be written to a file or tokenized. Read the text again with the encoding that it was written in."
        )
    return value


def file_path(name: str, value: Any) -> Path:
    """A `Path` made from a string or a path, with `~` expanded to the home folder. Raises `BadInputError`.

    >>> file_path("folder", "models/mine").parts
    ('models', 'mine')
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise BadInputError(f"{name} must be a string or a path, not {shown(value)}.")
    written = text(name, os.fspath(value), empty=False)
    if not written.strip():
        raise BadInputError(f"{name} consists of white space only: give it a path.")
    if "\0" in written:
        raise BadInputError(f"{name} contains a null character, which no path can contain: {shown(written)}.")
    path = Path(written)
    if any(len(os.fsencode(part)) > NAME_BYTES for part in path.parts):
        raise BadInputError(f"{name} is longer than a file name can be: {shown(written)}.")
    try:
        return path.expanduser()
    except RuntimeError:
        raise BadInputError(
            f"{name} begins with the home folder of a user who does not exist on this machine: {written}."
        ) from None


def tensor(name: str, value: Any) -> Any:
    """A tensor of finite numbers, made from a tensor, an array, a number or nested lists. Raises `BadInputError`.

    >>> tensor("vector", [1.0, 2.0]).shape
    torch.Size([2])
    >>> tensor("vector", "north")
    Traceback (most recent call last):
    helpers.errors.BadInputError: vector must be a tensor of numbers, not 'north'.
    """
    import torch

    try:
        # Of a tensor, as_tensor would make a copy on the default device.
        numbers = value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # what torch raises for strings, None and ragged lists
        raise BadInputError(f"{name} must be a tensor of numbers, not {shown(value)}.") from None
    if numbers.is_meta:
        raise BadInputError(f'{name} is on the device "meta", so it has no values: create it on a real device.')
    if numbers.is_complex() or not bool(torch.isfinite(numbers).all()):
        raise BadInputError(f"{name} holds complex, infinite or NaN numbers, and only finite real ones can be used.")
    return numbers


def for_each_token(name: str, value: Any, length: int) -> Any:
    """An integer tensor whose last axis has one number for each of a prompt's `length` tokens; else `BadInputError`.

    >>> import torch
    >>> for_each_token("attention_mask", torch.ones(1, 3, dtype=torch.long), 3).tolist()
    [[1, 1, 1]]
    """
    import torch

    if not isinstance(value, torch.Tensor) or value.is_floating_point() or value.dim() < 2 or value.shape[-1] != length:
        shape = f"a tensor {list(value.shape)} of {value.dtype}" if isinstance(value, torch.Tensor) else None
        raise BadInputError(
            f"{name} must have a whole number for each of the prompt's {length} tokens, as a tensor [1, {length}]; it "
            f"is {shape or shown(value)}."
        )
    return value


def given_by(function: str, name: str, value: Any, *fields: str) -> Any:
    """The value, if it has the fields of what one of the course's functions returns. Raises `BadInputError`.

    >>> given_by("trace", "trace", "The sky is", "hidden_states")
    Traceback (most recent call last):
    helpers.errors.BadInputError: trace must be what trace returns, not 'The sky is'.
    """
    if any(not hasattr(value, field) for field in fields):
        raise BadInputError(f"{name} must be what {function} returns, not {shown(value)}.")
    return value


def several(name: str, value: Any, of: str) -> list[Any]:
    """A list, tuple or other iterable as a list; a string does not count as one. Raises `BadInputError`.

    >>> several("titles", ("one", "two"), "texts")
    ['one', 'two']
    """
    with contextlib.suppress(TypeError):  # what cannot be iterated: a number, a tensor without axes
        if not isinstance(value, str | bytes):
            return list(value)
    raise BadInputError(f"{name} must be a list of {of}, not {shown(value)}.")


def named(name: str, value: Any, of: str, *, empty: bool = False) -> Mapping[Any, Any]:
    """The value, if it is a dict or another mapping, with something in it unless it may be `empty`. Raises
    `BadInputError`.

    >>> named("values", {"attention": [0.1]}, "numbers")
    {'attention': [0.1]}
    """
    if not isinstance(value, Mapping) or not (value or empty):
        raise BadInputError(f"{name} must be a dict from names to {of}, with at least one name, not {shown(value)}.")
    return value


def plain(name: str, value: Any) -> Any:
    """A tensor's or an array's numbers as Python numbers, in lists; anything else as it is. Raises `BadInputError`
    for a tensor without values.

    >>> import torch
    >>> plain("layers", torch.tensor([0, 5])), plain("layers", 5)
    ([0, 5], 5)
    """
    if getattr(value, "is_meta", False):
        raise BadInputError(f'{name} is on the device "meta", so it has no values: create it on a real device.')
    return value.tolist() if hasattr(value, "tolist") else value


def axes(name: str, value: Any, *names: str) -> Any:
    """A tensor with as many axes as there are names, whatever real numbers it holds. Raises `BadInputError`.

    >>> import torch
    >>> axes("scores", [[0.5, 0.5]], "layer", "head").shape
    torch.Size([1, 2])
    """
    import torch

    try:
        numbers = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise BadInputError(f"{name} must be a tensor [{', '.join(names)}], not {shown(value)}.") from None
    if numbers.is_meta or numbers.is_complex() or numbers.dim() != len(names):
        kind = f"{list(numbers.shape)} of {numbers.dtype} on {numbers.device}"
        raise BadInputError(f"{name} must be a tensor of real numbers [{', '.join(names)}], not {kind}.")
    return numbers


def language_model(name: str, value: Any) -> Any:
    """The value, if it is a model of `transformers` with its weights. Raises `BadInputError`.

    >>> language_model("model", "smollm2-135m")
    Traceback (most recent call last):
    helpers.errors.BadInputError: model must be what load_model returns, not 'smollm2-135m'.
    """
    if not (hasattr(value, "config") and hasattr(value, "forward") and hasattr(value, "modules")):
        raise BadInputError(f"{name} must be what load_model returns, not {shown(value)}.")
    # Weights that `accelerate` fetches when they are needed ("offloaded") are on "meta" in the meantime.
    for module in value.modules():
        if not hasattr(module, "_hf_hook") and any(weight.is_meta for weight in module.parameters(recurse=False)):
            raise BadInputError(f'{name} has no weights: they are on the device "meta". Load it with load_model.')
    return value


def tokenizer(name: str, value: Any) -> Any:
    """The value, if it is a tokenizer of `transformers`, or a processor, which has one. Raises `BadInputError`.

    >>> tokenizer("tokenizer", None)
    Traceback (most recent call last):
    helpers.errors.BadInputError: tokenizer must be what load_tokenizer or load_processor returns, not None.
    """
    inner = getattr(value, "tokenizer", value)
    if not (callable(inner) and hasattr(inner, "decode") and hasattr(inner, "convert_ids_to_tokens")):
        raise BadInputError(f"{name} must be what load_tokenizer or load_processor returns, not {shown(value)}.")
    return value


def ids_of_model(model: Any, input_ids: Any, tokenizer: Any = None) -> None:
    """Check that the model has an embedding for each of these token ids (a tensor). Raises `BadInputError`.

    Given the `tokenizer` that made the ids, also check that the model has an embedding for every ordinary token of the
    tokenizer. If not, the tokenizer belongs to another model, or tokens were added to it. Special tokens may lack
    an embedding, since no text becomes one: Gemma 3's small text model has none for a picture's placeholder.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    highest = int(input_ids.max()) if input_ids.numel() else 0
    if tokenizer is not None and len(tokenizer) > rows:
        words = [token_id for token_id, token in tokenizer.added_tokens_decoder.items() if not token.special]
        highest = max(highest, tokenizer.vocab_size - 1, *words, 0)
    if highest >= rows:
        sizes = "" if tokenizer is None else f", and the tokenizer has {len(tokenizer)} tokens"
        raise BadInputError(
            f"Token id {highest} is outside this model's vocabulary: it has embeddings for ids 0 to {rows - 1}{sizes}. "
            "The tokenizer belongs to another model, or has more tokens than the model was resized to: load both by "
            "the same name."
        )


def is_finite(value: Any) -> bool:
    """Whether a number is finite as a float."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that is too large for a float
        return False


def _within(value: Any, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _range(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least:,} to {most:,}"
    return f" of at least {least:,}" if least is not None else f" of at most {most:,}" if most is not None else ""
