"""What the course's widgets have in common: a live page drawn by our own script, and a still picture beside it.

A saved notebook without a running kernel cannot show a widget, so a cell's output holds two things:
a picture with a text, then the widget. Once the widget is live, its style sheet hides the picture.
"""

from __future__ import annotations

import inspect
import weakref
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import anywidget
import traitlets

from helpers.checks import shown
from helpers.errors import BadInputError, HelpersError
from helpers.views.modules import front
from helpers.views.style import HTML_THEME, MUTED, is_sharp, png_bytes
from helpers.views.svg import SHARP_DPI, shown_size

if TYPE_CHECKING:
    from helpers.inside.generation import GenerationStep

HERE = Path(__file__).parent
CLOSED = "this widget is closed: run the cell that made it, or use the one that its last run made."
TYPE_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", NoneType: "None"}


class CourseWidget(anywidget.AnyWidget):
    """Sends a plain dict to the page (`explorer.js`), and the page's commands to a Python object.

    `state` holds everything and does not depend on widgets. It offers `commands` (the names of its
    methods that the page may call), `view()` (what the page draws, a dict of plain values),
    `figure()` (the still picture, a matplotlib Axes) and `describe()` (the same in words).

    Running a cell again closes the widgets that its last run made. A closed widget releases its state and thereby
    the memory: IPython's `Out` and ipywidgets' own list keep the widget itself alive for as long as the kernel runs.
    """

    _esm = front("explorer.js")
    _css = ".hx{" + HTML_THEME + "}\n" + (HERE / "explorer.css").read_text(encoding="utf-8")

    view = traitlets.Dict().tag(sync=True)

    def __init__(self, state: Any, **traits: Any) -> None:
        self._state = state
        super().__init__(view={**state.view(), "turn": 0, "message": ""}, **traits)
        self.on_msg(self._answer)
        _close_what_the_last_run_made(self)

    @property
    def state(self) -> Any:
        """What the widget shows. Raises `BadInputError` once the widget is closed."""
        if self._state is None:
            raise BadInputError(CLOSED)
        return self._state

    def close(self) -> None:
        """End the widget: its page disappears, and its state is released. Closing it again does nothing."""
        super().close()  # first, so that what follows is not sent to the page
        self._state = None
        self.view = {}

    def _answer(self, _widget: Any, wish: dict[str, Any], _buffers: list[memoryview]) -> None:
        """Carry out what the reader did on the page. Each answer has a new `turn`, so that the page notices it."""
        message = ""
        try:
            self.state.take(wish)
        except Exception as error:  # nothing else would report it on the page
            message = in_words(error)
        self._show(message)

    def _show(self, message: str = "") -> None:
        """Send the page a new view."""
        self.view = {**self.state.view(), "turn": self.view["turn"] + 1, "message": message}

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {CLOSED}" if self._state is None else self._state.describe()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if self._state is None:
            display({"text/plain": repr(self)}, raw=True)
            return
        live, metadata = self._repr_mimebundle_() or ({}, {})
        picture = self.picture()
        size = {"image/png": shown_size(picture)} if is_sharp() else {}
        display({"image/png": picture, "text/plain": self.state.describe()}, metadata=size, raw=True)
        display({**live, "text/plain": "(live while a kernel runs this cell)"}, metadata=metadata, raw=True)

    def picture(self) -> bytes:
        """The still picture as PNG bytes, with 200 dots per inch after `use_course_style(sharp=True)`."""
        figure = self.state.figure().figure
        figure.supxlabel("static picture: run the cell to use it", x=0.995, ha="right", fontsize=7.5, color=MUTED)
        return png_bytes(figure, dpi=SHARP_DPI if is_sharp() else 100)


_made: dict[str, tuple[str, list[weakref.ref]]] = {}  # cell -> its last run, and the widgets made in it


def _close_what_the_last_run_made(widget: CourseWidget) -> None:
    """Record that the running cell made `widget`, and close the widgets that an earlier run of the cell made."""
    cell, run = _running_cell()
    if not cell:
        return
    last_run, widgets = _made.get(cell, (run, []))
    if last_run != run:
        for old in filter(None, (reference() for reference in widgets)):
            old.close()
        widgets = []
    _made[cell] = (run, [*widgets, weakref.ref(widget)])


def _running_cell() -> tuple[str, str]:
    """Identifiers of the running cell of a notebook and of this run of it; empty outside a notebook.

    JupyterLab sends the cell's id to the kernel; without an id, the cell is identified by its code.
    """
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    request = kernel.get_parent("shell") if kernel else {}
    code = request.get("content", {}).get("code", "")
    return request.get("metadata", {}).get("cellId", code), request.get("header", {}).get("msg_id", "")


class Commands:
    """Base class of the states behind widgets: only the methods named in `commands` can be called from a page.

    What a page sends is checked against the method's type hints before the method runs.
    """

    commands: tuple[str, ...] = ()

    def take(self, wish: Any) -> Any:
        """Carry out what a page sent, {"command": its name, argument: value, …}. Raises `BadInputError` as `do` does,
        and for anything but such a dict."""
        if not isinstance(wish, dict) or not all(isinstance(name, str) for name in wish):
            raise BadInputError(f"A page sends a command and its arguments by name, not {shown(wish)}.")
        arguments = dict(wish)
        return self.do(arguments.pop("command", ""), **arguments)

    def do(self, command: str, /, **arguments: Any) -> Any:
        """Call the method `command`.

        Raises `BadInputError` if it is not in `commands`, or if an argument is missing, unknown, or of a type that the
        method does not take.
        """
        if command not in self.commands:
            known = ", ".join(self.commands)
            raise BadInputError(f"There is no command {shown(command)} here; there are: {known}.")
        method = getattr(self, command)
        try:
            bound = inspect.signature(method).bind(**arguments)
        except TypeError as error:
            raise BadInputError(f"The command {command!r} was not carried out: {error}.") from None
        hints = get_type_hints(method)
        for name, value in bound.arguments.items():
            if name in arguments:
                _check_type(name, value, hints.get(name))
            else:  # the arguments that have no name of their own
                for extra, extra_value in value.items():
                    _check_type(extra, extra_value, hints.get(name))
        return method(**arguments)


def in_words(error: Exception, what: str = "This did not work:") -> str:
    """An error as text for the page: the message of one of ours; for any other, `what`, its class and its message."""
    return str(error) if isinstance(error, HelpersError) else f"{what} {type(error).__name__}: {error}"


def _check_type(name: str, value: Any, expected: Any) -> None:
    allowed = get_args(expected) or (expected,)
    if expected in (None, Any) or isinstance(value, allowed) or (float in allowed and isinstance(value, int)):
        return
    kinds = " or ".join(TYPE_WORDS.get(kind, kind.__name__) for kind in allowed)
    raise BadInputError(f"There is no {name} {shown(value)}: {name} is {kinds}.")


class StepByStep(Commands):
    """Base class of the states that step through a generation: `steps` are the `GenerationStep`s made so far, `index`
    the one shown. `_make_step()` appends the next one."""

    commands: tuple[str, ...] = ("forward", "back", "go_to")
    steps: list[GenerationStep]
    index: int

    def _make_step(self) -> None:
        raise NotImplementedError

    @property
    def step(self) -> GenerationStep:
        """The `GenerationStep` that is shown."""
        return self.steps[self.index]

    @property
    def can_go_forward(self) -> bool:
        """Whether there is a step after this one."""
        return self.step.stopped_by is None

    def forward(self) -> None:
        """Take this step's token and show the next step; at the end, stay."""
        if self.can_go_forward:
            if self.index + 1 == len(self.steps):
                self._make_step()
            self.index += 1

    def back(self) -> None:
        """Show the previous step; at the beginning, stay."""
        self.index = max(0, self.index - 1)

    def go_to(self, index: int) -> None:
        """Show a step that has already been made. Raises `BadInputError` for any other."""
        if not isinstance(index, int) or not 0 <= index < len(self.steps):
            raise BadInputError(f"There is no step {index}: steps 0 to {len(self.steps) - 1} have been made.")
        self.index = index
