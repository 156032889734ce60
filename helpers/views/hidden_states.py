"""An interactive view of hidden states: every layer at every position, what wrote there, and what a change does.

The commands are here; `helpers.inside.comparisons` computes what they need, `hidden_states_page` selects what the
page draws, and `hidden_states.js` draws it.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from matplotlib.axes import Axes
from transformers import PreTrainedModel

from helpers.checks import shown
from helpers.errors import BadInputError, HelpersError
from helpers.inside.anatomy import anatomy
from helpers.inside.changes import SKIPS, Change, all_changes
from helpers.inside.comparisons import PromptRun, opposite, run_prompt, writers_of
from helpers.inside.generation import generate_steps
from helpers.text.encoding import text_tokenizer
from helpers.text.prompts import prompt_ids
from helpers.views.hidden_states_page import (
    MOST_POSITIONS,
    TOP,
    Cell,
    Panel,
    TokenLabels,
    describe_panel,
    draw_panel,
    page_of,
)
from helpers.views.modules import front
from helpers.views.widget import HERE, Commands, CourseWidget

WRITTEN_ON = 12  # tokens of text before and after a change


class HiddenStates(Commands):
    """The commands of `hidden_state_explorer`; `panel` holds their result.

    The changes are active only during the panel's own runs of the model, so in between the model is as it was.
    A command that raises an error leaves everything as it was.
    """

    commands = (
        "type",
        "compare_with",
        "beside",
        "window",
        "look",
        "toggle_head",
        "skip",
        "patch",
        "steer",
        "change",
        "remove",
        "clear",
        "write_on",
    )

    def __init__(self, model: PreTrainedModel, tokenizer: Any, prompt: Any, *, other: Any = None) -> None:
        self.model, self.tokenizer = model, text_tokenizer(tokenizer)
        self.labels = TokenLabels(self.tokenizer)
        self.layers = len(anatomy(model).layers)
        run = self._run(self._ids(prompt))
        self.panel = self._looked_into(Panel(run, self._last_cell(run)))
        if other is not None:
            self.compare_with(other)

    # Prompts, and which parts of them are shown.

    def type(self, text: Any) -> None:
        """Replace the first prompt. Patches are removed, since their values belonged to the old prompt's positions."""
        ids, panel = self._ids(text), self.panel
        changes = tuple(change for change in panel.changes if change.kind != "patch")
        run, other = self._run(ids), panel.other
        if other and panel.after:
            other = self._run(other.input_ids)
        self._change_to(changes, run=run, other=other, after=0, cell=self._last_cell(run))

    def compare_with(self, text: Any) -> None:
        """Show another prompt beside the first one; an empty text removes it."""
        empty = isinstance(text, str) and not text
        other = None if empty else self._run(self._ids(text), after=self.panel.after)
        self._show(other=other, beside="other" if other else "")

    def beside(self, what: str) -> None:
        """Show beside the prompt "other" (the other prompt), "changed" (the prompt with the changes) or nothing: ""."""
        there = {"": True, "other": self.panel.other, "changed": self.panel.changed}
        if not there.get(what):
            raise BadInputError(
                f"There is no {shown(what)} to show yet: set a second prompt, or change something first."
            )
        self._show(beside=what)

    def window(self, after: int) -> None:
        """Show another part of a prompt of more than `MOST_POSITIONS` positions, without its last `after` ones. All
        grids move together, matched from the end, as far as each reaches."""
        panel = self.panel
        if isinstance(after, bool) or not isinstance(after, int) or not 0 <= after <= panel.farthest:
            raise BadInputError(f"after is a number of positions from 0 to {panel.farthest}, not {shown(after)}.")
        self._show(
            run=self._run(panel.run.input_ids, after=after),
            other=self._run(panel.other.input_ids, after=after) if panel.other else None,
            changed=self._run(panel.run.input_ids, panel.changes, after=after) if panel.changes else None,
            after=after,
        )

    def look(self, grid: int, layer: int, position: int, token_id: int | None = None) -> None:
        """Inspect one cell: `grid` 0 is the prompt, 1 what is beside it. `token_id` is the token that "who wrote here"
        is about, by default the one that this cell predicts."""
        runs = self.panel.runs
        if grid not in range(len(runs)):
            raise BadInputError(f"There is no grid {shown(grid)}: 0 is the prompt, 1 what is shown beside it.")
        run = runs[grid]
        if layer not in range(self.layers + 1) or position not in run.shown:
            raise BadInputError(
                f"There is no cell at layer {shown(layer)}, position {shown(position)}: layers run from 0 to "
                f"{self.layers}, positions shown from {run.first} to {run.shown[-1]}."
            )
        if token_id is not None and token_id not in range(len(run.logits)):
            raise BadInputError(f"There is no token id {shown(token_id)}: ids run from 0 to {len(run.logits) - 1}.")
        self._show(cell=Cell(grid, layer, position, token_id))

    # Changes to the model.

    def toggle_head(self, layer: int, head: int) -> None:
        """Ablate a head, or stop ablating it."""
        pair, changes = (layer, head), self.panel.changes
        ablated = next((change.heads for change in changes if change.kind == "heads"), ())
        heads = tuple(h for h in ablated if h != pair) if pair in ablated else (*ablated, pair)
        others = tuple(change for change in changes if change.kind != "heads")
        self._change_to((*others, *((Change("heads", heads=heads),) if heads else ())))

    def skip(self, layer: int, part: str = "layer") -> None:
        """Skip a layer, or only its "attention" or "mlp"."""
        if part not in SKIPS:
            raise BadInputError(f"What can be skipped is {', '.join(SKIPS)}, not {shown(part)}.")
        anatomy(self.model).number(layer)
        self._change_to((*self.panel.changes, Change("skip", layer=layer, part=part)))

    def patch(self, layer: int, position: int, value: torch.Tensor | list | tuple | None = None) -> None:
        """Replace a hidden state by the other prompt's at the same distance from the end.
        From code, `value [hidden]` can be anything."""
        about = "a value of your own"
        if value is None:
            value, about = self._value_opposite(layer, position)
        same_place = ("patch", layer, position)
        kept = [change for change in self.panel.changes if (change.kind, change.layer, change.position) != same_place]
        added = Change("patch", layer=layer, position=position, vector=_vector(value), about=about)
        self._change_to((*kept, added))

    def _value_opposite(self, layer: int, position: int) -> tuple[torch.Tensor, str]:
        """The second prompt's hidden state opposite a position of the first, and a phrase that says where it is."""
        run, other = self.panel.run, self.panel.other
        if other is None:
            raise BadInputError("A patch comes from another prompt: set a second prompt first.")
        at = opposite(other, run, position)
        if layer not in range(self.layers + 1) or at not in other.shown:
            raise BadInputError(
                f"The second prompt shows nothing at layer {shown(layer)} opposite position {shown(position)}: both "
                f"are counted from the end, and its positions {other.first} to {other.shown[-1]} are shown."
            )
        return other.stream[layer, other.column(at)], f"{other.labels[at]} of the second prompt"

    def steer(
        self,
        layer: int,
        towards: str = "",
        away: str = "",
        vector: torch.Tensor | list | tuple | None = None,
        scale: float = 1.0,
    ) -> None:
        """Add a direction to the hidden state of a layer: the last position's state after reading `towards`, minus the
        one after `away` unless that is empty. From code, `vector [hidden]` can be anything."""
        about = "along a vector of your own"
        if vector is None:
            vector, about = self._direction(layer, towards, away)
        added = Change("steer", layer=layer, vector=_vector(vector), scale=_strength(scale), about=about)
        self._change_to((*self.panel.changes, added))

    def _direction(self, layer: int, towards: str, away: str) -> tuple[torch.Tensor, str]:
        """The direction `[hidden]` from the state after `away` to the one after `towards`, and a phrase for it."""
        if layer not in range(self.layers + 1):
            raise BadInputError(
                f"There is no hidden state {shown(layer)}: they run from 0 (embedding) to {self.layers}."
            )
        if not towards:
            raise BadInputError('Steering needs a direction: write a text to steer towards, such as "I love it".')
        vector, about = self._run(self._ids(towards)).stream[layer, -1], f"towards “{towards}”"
        if away:
            vector = vector - self._run(self._ids(away)).stream[layer, -1]
            about += f", away from “{away}”"
        return vector, about

    def change(self, index: int, scale: float) -> None:
        """Set another strength for a steering direction."""
        if self._change_at(index).kind != "steer":
            raise BadInputError(f"Change {index} is not a steering direction, so it has no strength.")
        changes = list(self.panel.changes)
        changes[index] = replace(changes[index], scale=_strength(scale))
        self._change_to(tuple(changes))

    def remove(self, index: int) -> None:
        """Undo one change."""
        gone = self._change_at(index)
        self._change_to(tuple(change for change in self.panel.changes if change is not gone))

    def clear(self) -> None:
        """Undo all changes."""
        self._change_to(())

    def write_on(self) -> None:
        """Continue the prompt greedily by a few tokens, without and with the changes."""
        texts = [self._continuation(())]
        if self.panel.changes:
            texts.append(self._continuation(self.panel.changes))
        self.panel = replace(self.panel, texts=tuple(texts))

    @contextmanager
    def interventions(self) -> Iterator[None]:
        """All changes of the panel, as one context manager."""
        with all_changes(self.model, self.panel.changes):
            yield

    # From one panel to the next.

    def _change_to(self, changes: tuple[Change, ...], **new: Any) -> None:
        """Update the panel with these changes to the model, after a run with them, and with whatever else is `new`."""
        panel, run = self.panel, new.get("run", self.panel.run)
        changed = self._run(run.input_ids, changes, new.get("after", panel.after)) if changes else None
        beside = panel.beside
        if changes and not panel.changes:
            beside = "changed"
        elif not changes and beside == "changed":
            beside = "other" if panel.other else ""
        self._show(changes=changes, changed=changed, beside=beside, texts=(), **new)

    def _show(self, **new: Any) -> None:
        """Update the panel with the fields in `new`; it replaces the old one only once everything has worked."""
        panel = replace(self.panel, **new)
        grid = min(panel.cell.grid, len(panel.runs) - 1)
        run = panel.runs[grid]  # the selected cell stays, or becomes the nearest one if it is gone
        position = min(max(panel.cell.position, run.first), run.shown[-1])
        self.panel = self._looked_into(replace(panel, cell=replace(panel.cell, grid=grid, position=position)))

    def _looked_into(self, panel: Panel) -> Panel:
        """The panel, completed with what wrote into its cell."""
        cell, run = panel.cell, panel.cell_run
        if panel.asked is None:
            return replace(panel, writers=None, no_writers=run.no_lens)
        changes = panel.changes if run is panel.changed else ()
        try:
            writers = writers_of(
                self.model, self.tokenizer, run, cell.layer, cell.position, panel.asked, changes=changes
            )
        except HelpersError as error:
            return replace(panel, writers=None, no_writers=str(error))
        return replace(panel, writers=writers, no_writers="")

    def _last_cell(self, run: PromptRun) -> Cell:
        return Cell(0, self.layers, len(run.labels) - 1)

    def _ids(self, prompt: Any) -> torch.Tensor:
        return prompt_ids(self.tokenizer, prompt, context=anatomy(self.model).context)

    def _run(self, ids: torch.Tensor, changes: tuple[Change, ...] = (), after: int = 0) -> PromptRun:
        return run_prompt(self.model, self.tokenizer, ids, changes=changes, most=MOST_POSITIONS, after=after, top_k=TOP)

    def _continuation(self, changes: tuple[Change, ...]) -> str:
        with all_changes(self.model, changes):
            steps = generate_steps(self.model, self.tokenizer, self.panel.run.input_ids, max_new_tokens=WRITTEN_ON)
            ids = [step.token_id for step in steps]
        return self.tokenizer.decode(ids, skip_special_tokens=True).replace("\ufffd", "…").replace("\n", "⏎")

    def _change_at(self, index: int) -> Change:
        if isinstance(index, bool) or index not in range(len(self.panel.changes)):
            raise BadInputError(f"There is no change {shown(index)}: there are {len(self.panel.changes)}.")
        return self.panel.changes[index]

    # What is shown.

    def view(self) -> dict[str, Any]:
        """What the page draws."""
        return page_of(self.model, self.labels, self.panel)

    def figure(self) -> Axes:
        """The still picture: what each layer predicts at the positions shown."""
        return draw_panel(self.labels, self.panel)

    def describe(self) -> str:
        """The still picture in words."""
        return describe_panel(self.labels, self.panel)


def _vector(values: Any) -> torch.Tensor:
    try:
        return values if isinstance(values, torch.Tensor) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise BadInputError(f"A vector is a tensor [hidden] or a list of numbers, not {shown(values)}.") from None


def _strength(scale: float) -> float:
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not abs(scale) <= 1000:
        raise BadInputError(f"The strength of steering is a number such as 2 or -1.5, not {shown(scale)}.")
    return float(scale)


class HiddenStateWidget(CourseWidget):
    """The live page of `hidden_state_explorer`, drawn by `hidden_states.js`."""

    _esm = front("hidden_states.js")
    _css = CourseWidget._css + (HERE / "hidden_states.css").read_text(encoding="utf-8")

    def do(self, command: str, **arguments: Any) -> None:
        """Call one of the panel's commands from code, such as `do("steer", layer=12, vector=v, scale=2)`, and redraw.

        Raises `BadInputError` for a command or values that cannot work; then nothing changes.
        """
        self.state.do(command, **arguments)
        self._show()

    def interventions(self) -> AbstractContextManager:
        """A context manager with the panel's changes: `with panel.interventions(): model.generate(…)`."""
        return self.state.interventions()


def hidden_state_explorer(
    model: PreTrainedModel, tokenizer: Any, prompt: Any, *, other: Any = None
) -> HiddenStateWidget:
    """A panel with every hidden state of a prompt, layers by positions: what it predicts, what wrote it, what a change
    does.

    For a prompt of more than 96 positions the last 96 are shown at first; "earlier" and "later" show others.
    The grid is coloured by the logit lens's best token, its probability, the entropy, the norm, the change from the
    layer below, or the cosine to a chosen cell. A cell shows its ten best tokens, its neighbours and the heads and
    MLPs that wrote there. `other` is a second prompt to compare with the first. Heads, layers and MLPs can be switched
    off, states patched from the other prompt and directions added, with the new prediction beside the old one: in the
    panel, or from code with `do(command, …)`; `interventions()` returns the panel's changes as a context manager. The
    model itself is changed only during the panel's own runs. Without a kernel the cell shows a still picture.

    If one part cannot work with a model (the lens, or who wrote into a cell), that part says why, and the others
    still work. Raises what `trace` raises.

    >>> explorer = hidden_state_explorer(model, tokenizer, "The sky is")
    >>> explorer.picture()[:4]
    b'\\x89PNG'
    """
    return HiddenStateWidget(HiddenStates(model, tokenizer, prompt, other=other))
