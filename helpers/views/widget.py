"""What the course's widgets share: a live front made by our own script, and a still picture beside it.

A saved notebook without a running kernel cannot show a widget, so a cell's output holds two things:
a picture with a text, then the widget. Once the widget lives, its style sheet hides the picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from helpers.errors import BadInputError, HelpersError
from helpers.views.style import HTML_THEME, MUTED, png_bytes

if TYPE_CHECKING:
    from helpers.inside.generation import GenerationStep

HERE = Path(__file__).parent


def front(*names: str) -> str:
    """A widget's page side: what all share (`page.js`), then its own scripts."""
    return "".join((HERE / file).read_text(encoding="utf-8") for file in ("page.js", *names))


class CourseWidget(anywidget.AnyWidget):
    """Sends a plain dict to the front (`explorer.js`) and its wishes to a Python object.

    `state` holds everything and knows nothing of widgets. It offers `commands` (the names of its
    methods that the front may call), `view()` (what the front draws, a dict of plain values),
    `figure()` (the still picture, a matplotlib Axes) and `describe()` (the same in words).
    """

    _esm = front("explorer.js")
    _css = ".hx{" + HTML_THEME + "}\n" + (HERE / "explorer.css").read_text(encoding="utf-8")

    view = traitlets.Dict().tag(sync=True)

    def __init__(self, state: Any) -> None:
        self.state = state
        super().__init__(view={**state.view(), "turn": 0, "message": ""})
        self.on_msg(self._answer)

    def _answer(self, _widget: Any, wish: Any, _buffers: Any) -> None:
        """Carry out what the reader did in the page. Each answer has a new `turn`, so the page sees it."""
        message = ""
        try:
            self.state.do(**wish)
        except (HelpersError, TypeError) as error:  # a wish with a part missing is a TypeError
            message = str(error)
        self.view = {**self.state.view(), "turn": self.view["turn"] + 1, "message": message}

    def __repr__(self) -> str:
        return self.state.describe()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        live, metadata = self._repr_mimebundle_()
        display({"image/png": self.picture(), "text/plain": self.state.describe()}, raw=True)
        display({**live, "text/plain": "(live while a kernel runs this cell)"}, metadata=metadata, raw=True)

    def picture(self) -> bytes:
        """The still picture as PNG bytes."""
        figure = self.state.figure().figure
        figure.supxlabel("still picture: run the cell to use it", x=0.995, ha="right", fontsize=7.5, color=MUTED)
        return png_bytes(figure)


class Commands:
    """Base of the states behind widgets: only the methods named in `commands` can be called from a page."""

    commands: tuple[str, ...] = ()

    def do(self, command: str, **arguments: Any) -> Any:
        """Call the method `command`. Raises `BadInputError` when there is none of that name for pages."""
        if command not in self.commands:
            known = ", ".join(self.commands)
            raise BadInputError(f"There is no command {command!r} here; there are: {known}.")
        return getattr(self, command)(**arguments)


class StepByStep(Commands):
    """Base of the states that walk through a generation: `steps` are the `GenerationStep`s made so far, `index` the
    one looked at. `_make_step()` appends the next one."""

    commands: tuple[str, ...] = ("forward", "back", "go_to")
    steps: list[GenerationStep]
    index: int

    def _make_step(self) -> None:
        raise NotImplementedError

    @property
    def step(self) -> GenerationStep:
        """The `GenerationStep` looked at."""
        return self.steps[self.index]

    @property
    def can_go_forward(self) -> bool:
        """Whether there is a step after this one."""
        return self.step.stopped_by is None

    def forward(self) -> None:
        """Take this step's token and look at the next step; at the end, stay."""
        if self.can_go_forward:
            if self.index + 1 == len(self.steps):
                self._make_step()
            self.index += 1

    def back(self) -> None:
        """Look at the step before; at the beginning, stay."""
        self.index = max(0, self.index - 1)

    def go_to(self, index: int) -> None:
        """Look at a step that has been made already."""
        if not isinstance(index, int) or not 0 <= index < len(self.steps):
            raise BadInputError(f"There is no step {index}: steps 0 to {len(self.steps) - 1} have been made.")
        self.index = index
