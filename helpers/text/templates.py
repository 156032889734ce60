"""Run a chat template safely: the same text as in transformers, with known origins and limited time and size.

Chat templates are small programs that come with a model, from strangers. transformers runs them in Jinja's sandbox,
which keeps them away from files and from Python's internals, but lets them loop for hours or build ten gigabytes of
text. Here every operation is counted. And since each text knows where it came from (`Marked`), the result says which
characters are the template's own and which are a message's.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from types import GeneratorType
from typing import Any

from jinja2 import nodes, pass_environment
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import TemplateError
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import object_type_repr
from markupsafe import Markup

from helpers.errors import BadInputError, Setting, printable
from helpers.text.marked import TEMPLATE, Marked, MarkedMarkup, followed, joined, roughly_of

SECONDS = 1.0  # of this thread's processor time for one rendering; templates take milliseconds
CHARACTERS = 10_000_000  # in one text that a template makes
ALL_CHARACTERS = 250_000_000  # in all texts together that it makes on the way
OPERATIONS = 2_000_000
LARGEST_NUMBER = 100_000  # that may be passed to a function or filter: a width, an indent, a count
BITS = 4096  # in a number that a template computes
SOURCE = 200_000  # characters in a template; the longest of a published model has about 30,000
SAID = 300  # characters of a template's own message when it refuses
LEFT_OUT = ("urlize", "xmlattr", "striptags")  # filters for web pages that can be made to take very long
WIDE = re.compile(r"\d{6}")  # a width in a format string, such as "%999999d"


class TooMuch(TemplateError):
    """The template takes more time or makes more text than a prompt needs."""


@dataclass
class _Meter:
    """How much one rendering has used so far."""

    largest: int = CHARACTERS
    operations: int = 0
    characters: int = 0
    started: float = field(default_factory=time.thread_time)

    def tick(self) -> None:
        """Count one operation; raises `TooMuch`."""
        self.operations += 1
        seconds = time.thread_time() - self.started if self.operations % 64 == 0 else 0
        if self.operations > OPERATIONS or seconds > SECONDS:
            raise TooMuch("it does not end")

    def take(self, characters: int) -> None:
        """Count a text of so many characters before it is made; raises `TooMuch`."""
        self.characters += characters
        if characters > self.largest or self.characters > ALL_CHARACTERS + self.largest:
            raise TooMuch(f"it makes a text of more than {self.largest:,} characters")


_METER: ContextVar[_Meter] = ContextVar("meter")


def render_template(
    template: str, messages: list[dict], variables: Mapping[str, str], *, add_generation_prompt: bool
) -> Marked:
    """What a chat template makes of messages: the text of `apply_chat_template(tokenize=False)`, as a `Marked` text.

    Whatever a message contains, under any key, is owned by the message's index; only the roles count as the
    template's own. `variables` are what else the template may use, such as `bos_token`; they are its own as well.

    >>> template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}"
    >>> text = render_template(template, [{"role": "user", "content": " hi "}], {}, add_generation_prompt=False)
    >>> text, text.owned_runs()
    ('<|user|>hi', ((8, -1), (2, 0)))

    Raises `BadInputError` for a template that cannot be read, that refuses the messages, or that takes too long or
    makes too much text. Modelled on `render_jinja_template` of transformers.
    """
    if len(template) > SOURCE:
        raise BadInputError(f"This model's chat template has {len(template):,} characters, far too many to be one.")
    given = {
        "messages": [_owned_message(message, index) for index, message in enumerate(messages)],
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **{name: Marked(value, TEMPLATE) for name, value in variables.items() if isinstance(value, str)},
    }
    meter = _METER.set(_Meter(largest=CHARACTERS + 4 * sum(len(str(message["content"])) for message in messages)))
    try:
        compiled = _compiled(template)
        pieces = []
        for piece in compiled.root_render_func(compiled.new_context(given)):
            _METER.get().take(len(piece))
            pieces.append(piece)
        _METER.get().take(sum(map(len, pieces)))
        return joined(pieces)
    except TooMuch as error:
        raise BadInputError(
            f"This model's chat template was stopped because {error}: it is damaged or hostile. Get the model from "
            "its publisher, or write the prompt as plain text."
        ) from None
    except Exception as error:  # a template is a program: it can fail in any way
        said = str(error).replace(object_type_repr(Marked()), "text") or type(error).__name__
        kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
        raise BadInputError(
            f"This model's chat template does not accept these messages: {kind}{printable(said, SAID)}.",
            *_advice(messages),
        ) from None
    finally:
        _METER.reset(meter)


def _advice(messages: list[dict]) -> tuple[object, ...]:
    """What may help if a template refuses: many accept no system prompt (Gemma's does not)."""
    if not any(message.get("role") == "system" for message in messages):
        return ()
    return " If it accepts no system prompt, omit that (", Setting("system", None), ")."


def _owned_message(message: Mapping[str, Any], index: int) -> dict:
    """A message with owners, in the form in which transformers gives it to a template."""
    from transformers.utils.chat_template_utils import _alias_reasoning_fields, _plain_template_data

    (plain,) = _alias_reasoning_fields([_plain_template_data({k: v for k, v in message.items() if v is not None})])
    return {key: _owned(value, TEMPLATE if key == "role" else index) for key, value in plain.items()}


def _owned(value: Any, owner: int) -> Any:
    """A value with an owner for every text in it, including the keys of dicts."""
    if isinstance(value, str):
        return Marked(value, owner)
    if isinstance(value, dict):
        return {_owned(key, owner): _owned(item, owner) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_owned(item, owner) for item in value]
    return value


@lru_cache(maxsize=32)
def _compiled(template: str) -> Any:
    """The template as a Jinja `Template` with the filters and globals of transformers."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    library = _compile_jinja_template("").environment
    environment = _CountingEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # nothing is computed before it is counted
        extensions=[type(extension) for extension in library.extensions.values()],
    )
    environment.adopt(library)
    return environment.from_string(template)


class _OwnTexts(CodeGenerator):
    """Compiles a template so that its own texts are marked as such, and every pass of a loop or macro is counted."""

    def visit_Const(self, node, frame):
        if isinstance(node.value, str):
            self.write(f"environment.own({node.value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node, frame):
        self.write(f"environment.own({node.data!r})")

    def visit_Concat(self, node, frame):
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_For(self, node, frame):
        node.body.insert(0, _counted())
        super().visit_For(node, frame)

    def macro_body(self, node, frame):
        node.body.insert(0, _counted())
        return super().macro_body(node, frame)

    def _output_const_repr(self, group):
        return f"environment.own({''.join(group)!r})"

    def _output_child_to_const(self, node, frame, finalize):
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def _output_child_pre(self, node, frame, finalize):
        self.write("environment.as_text(")


def _counted():
    call = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
    return nodes.ExprStmt(call).set_lineno(1)


class _CountingEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which every operation is counted and every text keeps its owners."""

    code_generator_class = _OwnTexts
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def adopt(self, other: ImmutableSandboxedEnvironment) -> None:
        """Adopt another environment's filters, tests and globals, with its filters counted."""
        filters = {name: self._counting(name, function) for name, function in other.filters.items()}
        self.filters.update({name: function for name, function in filters.items() if name not in LEFT_OUT})
        for name in LEFT_OUT:
            self.filters.pop(name, None)
        self.filters["join"] = self._counting("join", _join)
        self.filters["sum"] = self._counting("sum", _sum)
        self.tests.update(other.tests)
        self.globals.update(other.globals)
        self.globals.pop("lipsum", None)

    @staticmethod
    @lru_cache(maxsize=4096)
    def own(text: str) -> Marked:
        """One of the template's own texts."""
        return Marked(text, TEMPLATE)

    @staticmethod
    def tick() -> str:
        """Count one pass of a loop or macro."""
        _METER.get().tick()
        return ""

    def as_text(self, value: Any) -> str:
        """A value as it is printed."""
        self.tick()
        if isinstance(value, str):
            return value
        _METER.get().take(_size(value))
        return Marked(str(value), roughly_of([value]))

    def concat(self, values: Iterable[Any]) -> Marked:
        """Values, printed one after the other."""
        texts = [self.as_text(value) for value in values]
        _METER.get().take(sum(map(len, texts)))
        return joined(texts)

    def call_binop(self, context, operator, left, right):
        self.tick()
        _METER.get().take(_size_of_result(operator, left, right))
        if operator == "%" and isinstance(left, str):
            if "*" in left:  # widths are among the values
                self._check("%", list(right) if isinstance(right, tuple) else [right])
            return _formatted(left, lambda values: str.__mod__(left, values[0]), [right])
        return super().call_binop(context, operator, left, right)

    def call(__self, __context, __obj, *args, **kwargs):
        bound = getattr(__obj, "__self__", None)
        bound = [bound] if isinstance(bound, str | bytes) else []
        args = _as_lists(args)
        given = [*bound, *args, *(value for name, value in kwargs.items() if not name.startswith("_"))]
        __self._check(getattr(__obj, "__name__", "").removeprefix("safe_"), given)
        result = super().call(__context, __obj, *args, **kwargs)
        if type(result) is str and bound:
            name = __obj.__name__
            named = {key: value for key, value in kwargs.items() if not key.startswith("_")}
            values = [*bound, args, named]
            result = followed(lambda given: getattr(given[0], name)(*given[1], **given[2]), values, result)
        return __self._checked(result, given)

    def wrap_str_format(self, value):
        function = super().wrap_str_format(value)
        if function is None:
            return None
        pattern = value.__self__

        def formatted(*args, **kwargs):
            return _formatted(pattern, lambda values: function(*values[0], **values[1]), [args, kwargs])

        return formatted

    def _counting(self, name: str, function: Callable) -> Callable:
        """A filter that counts what it is given and what it makes."""

        @functools.wraps(function)
        def counting(*args, **kwargs):
            args = _as_lists(args)
            context, own = [value for value in args if _is_context(value)], [v for v in args if not _is_context(v)]
            self._check(name, [*own, *kwargs.values()])
            result = function(*args, **kwargs)
            if isinstance(result, str) and not isinstance(result, Marked):
                made = followed(lambda values: function(*context, *values[0], **values[1]), [own, kwargs], result)
                result = MarkedMarkup.of(result, made.owned_runs()) if isinstance(result, Markup) else made
            return self._checked(result, [*own, *kwargs.values()])

        return counting

    def _check(self, name: str, given: list) -> None:
        self.tick()
        for value in given:
            if isinstance(value, int) and abs(value) > LARGEST_NUMBER and name not in ("int", "float", "abs", "string"):
                raise TooMuch(f"it passes {_shown(value)} to {name or 'a function'}")
        _METER.get().take(_size_of_call(name, given))

    def _checked(self, result: Any, given: list) -> Any:
        """The result, with owners if it is a text without any."""
        if isinstance(result, str):
            _METER.get().take(len(result))
            if type(result) is str:
                return Marked(result, roughly_of(given))
        return result


def _as_lists(values: Iterable[Any]) -> list:
    """The values, with what `map` and `select` return turned into a list, so that its size is known."""
    return [list(value) if isinstance(value, GeneratorType) else value for value in values]


def _is_context(value: Any) -> bool:
    """Whether it is something that Jinja itself passes to filters."""
    return isinstance(value, Context | nodes.EvalContext | ImmutableSandboxedEnvironment)


@pass_environment
def _join(environment, value, d="", attribute=None):
    """Jinja's `join`, keeping owners; `attribute` works as there."""
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    texts = [item if isinstance(item, str) else Marked(str(item), roughly_of([item])) for item in value]
    separator = d if isinstance(d, Marked) else Marked(str(d), TEMPLATE)
    return separator.join(texts)


@pass_environment
def _sum(environment, iterable, attribute=None, start=0):
    """Jinja's `sum`, for numbers only: summing lists would copy them once per item."""
    values = list(iterable if attribute is None else map(make_attrgetter(environment, attribute), iterable))
    if not all(isinstance(value, int | float) for value in [*values, start]):
        raise TemplateError("sum adds only numbers here")
    return sum(values, start)


def _formatted(pattern: str, make: Callable[[list], str], values: list) -> Marked:
    if WIDE.search(pattern):
        raise TooMuch("it formats a text to a width of more than 99,999 characters")
    text = make(values)
    _METER.get().take(len(text))
    if roughly_of([pattern]) != TEMPLATE:
        return Marked(text, roughly_of([pattern, *values]))
    return followed(make, values, text)


def _size_of_result(operator: str, left: Any, right: Any) -> int:
    """How many characters or items `left operator right` has; raises `TooMuch` for huge numbers."""
    if isinstance(left, int) and isinstance(right, int):
        bits = {"**": left.bit_length() * max(right, 0), "*": left.bit_length() + right.bit_length()}
        if bits.get(operator, 0) > BITS:
            raise TooMuch("it computes a number of more than a thousand digits")
        return 0
    if operator == "*":
        count, value = (left, right) if isinstance(left, int) else (right, left)
        return max(count, 0) * _length(value) if isinstance(count, int) else 0
    if operator == "%" and isinstance(left, str):
        return len(left) + _size(right)
    return _length(left) + _length(right)


def _size_of_call(name: str, given: list) -> int:
    """How many characters a method or filter reads or makes."""
    size = _size(given)
    if name == "replace" and len(given) > 2 and all(isinstance(value, str) for value in given[:3]):
        text, old, new = given[:3]
        size += (str.count(text, old) if old else len(text) + 1) * len(new)
    elif name == "join" and len(given) > 1:
        separator, texts = (given[0], given[1]) if isinstance(given[0], str) else (given[1], given[0])
        size += _length(separator) * _length(texts)
    elif name == "expandtabs" or name in ("indent", "tojson", "wordwrap"):
        widths = [value for value in given if isinstance(value, int)]
        size *= max([1, *widths])
    return size


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0


def _size(value: Any) -> int:
    """The number of characters and items in a value, at every level, counted until there are too many: a list that
    holds a list a thousand times, nested a few levels deep, is short to write and endless to print."""
    total, waiting = 0, [value]
    largest = _METER.get().largest
    while waiting and total <= largest:
        value = waiting.pop()
        total += 16  # about what a short item takes when printed
        if isinstance(value, str | bytes):
            total += len(value)
        elif isinstance(value, Mapping):
            total += len(value)
            waiting += [part for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple | set):
            total += len(value)
            waiting += value if total <= largest else []
    return total


def _shown(number: int) -> str:
    return f"{number:,}" if abs(number) < 10**15 else "a huge number"
