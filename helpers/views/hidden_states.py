"""Hidden states under the reader's hands: every layer at every position, what wrote there, and what a change does."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import log
from typing import TYPE_CHECKING, Any

import torch

from helpers.errors import BadInputError
from helpers.inside.anatomy import anatomy
from helpers.inside.contributions import direct_logit, residual_contributions
from helpers.inside.generation import generate_steps
from helpers.inside.interventions import ablate_heads, patch_hidden_state, skip_attention, skip_layer, skip_mlp, steer
from helpers.inside.lens import Lens, logit_lens
from helpers.inside.tracing import trace
from helpers.text.prompts import prompt_ids
from helpers.text.tokens import token_bytes, token_table, visible
from helpers.views.plots import percent, plot_logit_lens
from helpers.views.style import DIFFERENCES_COLORMAP, colormap, drawable
from helpers.views.widget import HERE, Commands, CourseWidget, front

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_POSITIONS = 96  # positions the grid shows of a long prompt at a time: first the last ones
TOP = 10
NEIGHBOURS = 6
STRENGTH = 4  # a steering slider runs from minus this to this
WRITTEN_ON = 12  # tokens of text before and after a change
SKIPS = {"layer": skip_layer, "attention": skip_attention, "mlp": skip_mlp}


@dataclass(frozen=True, eq=False)
class Run:
    """One prompt through the model, as the grid shows it: `MOST_POSITIONS` positions at the most.

    `labels` are those of the whole prompt; `first` is the first position shown. `stream [layer+1, position, hidden]`
    and `lens` are of the positions shown: the residual stream, its last row before the final norm, and what it says.
    `best [vocab]` are the logits of the next token.
    """

    input_ids: torch.Tensor
    labels: tuple[str, ...]
    first: int
    stream: torch.Tensor
    lens: Lens
    best: torch.Tensor

    @property
    def shown(self):
        """The positions shown, a range."""
        return range(self.first, self.first + self.stream.shape[1])


@dataclass(frozen=True, eq=False)
class Change:
    """One intervention of the panel. `kind`: "heads", "skip", "patch" or "steer"; what it does not need is unset."""

    kind: str
    layer: int = 0
    heads: tuple[tuple[int, int], ...] = ()
    part: str = ""
    position: int = 0
    vector: torch.Tensor | None = None
    scale: float = 1.0
    about: str = ""

    def context(self, model):
        """The context manager that does it."""
        if self.kind == "heads":
            return ablate_heads(model, self.heads)
        if self.kind == "skip":
            return SKIPS[self.part](model, self.layer)
        if self.kind == "patch":
            return patch_hidden_state(model, self.layer, self.position, self.vector)
        return steer(model, self.layer, self.vector, scale=self.scale)

    @property
    def text(self):
        """It in words."""
        if self.kind == "heads":
            return "ablated: " + ", ".join(f"layer {layer} head {head}" for layer, head in self.heads)
        if self.kind == "skip":
            return (
                f"skipped: layer {self.layer}" + {"layer": "", "attention": "'s attention", "mlp": "'s MLP"}[self.part]
            )
        if self.kind == "patch":
            return f"patched: layer {self.layer}, position {self.position}, from {self.about}"
        return f"steered: layer {self.layer}, {self.about}"

    @property
    def code(self):
        """It as a reader would write it."""
        if self.kind == "heads":
            return f"ablate_heads(model, {list(self.heads)})"
        if self.kind == "skip":
            return f"skip_{self.part}(model, {self.layer})"
        if self.kind == "patch":
            return f"patch_hidden_state(model, {self.layer}, {self.position}, value)"
        return f"steer(model, {self.layer}, direction, scale={self.scale:g})"


class HiddenStates(Commands):
    """What `hidden_state_explorer` shows: a prompt, perhaps another beside it, changes, and a cell looked at.

    Each run of the model puts its changes on and takes them off again, so in between the model is as it was.
    A command that raises leaves everything as it was.
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

    def __init__(self, model, tokenizer, prompt, *, other=None):
        self.model, self.tokenizer = model, getattr(tokenizer, "tokenizer", tokenizer)
        self.layers = len(anatomy(model).layers)
        self.changes, self.shown_beside, self.texts = (), "", None
        self.other = self.changed = None
        self.after = 0  # positions out of sight after those shown
        self._labels = {}
        self.run = self._forward(self._ids(prompt))
        self.cell = (0, self.layers, len(self.run.labels) - 1, None)
        if other is not None:
            self.compare_with(other)

    # What a reader can do.

    def type(self, text):
        """Another prompt in the place of the first. Patches go: their values belonged to the old prompt's positions."""
        ids = self._ids(text)
        changes = tuple(change for change in self.changes if change.kind != "patch")
        run, other = self._forward(ids), self.other
        if other and self.after:
            other = self._forward(other.input_ids)
        changed = self._forward(ids, changes) if changes else None
        self._take(run=run, other=other, changes=changes, changed=changed, after=0)
        self.cell = (0, self.layers, len(run.labels) - 1, None)

    def compare_with(self, text):
        """Another prompt beside the first one; an empty text takes it away."""
        other = self._forward(self._ids(text), after=self.after) if not isinstance(text, str) or text else None
        self.other, self.shown_beside = other, "other" if other else ""
        self._keep_cell()

    def beside(self, what):
        """Show beside the prompt "other" (the other prompt), "changed" (the prompt with the changes) or nothing: ""."""
        there = {"": True, "other": self.other, "changed": self.changed}
        if not there.get(what):
            raise BadInputError(f"There is no {what!r} to show yet: set a second prompt, or change something first.")
        self.shown_beside = what
        self._keep_cell()

    def window(self, after):
        """Another part of a prompt of more than `MOST_POSITIONS` positions: `after` of its last positions stay out of
        sight. All grids move together, matched from the end, as far as each reaches."""
        if isinstance(after, bool) or not isinstance(after, int) or not 0 <= after <= self._farthest():
            raise BadInputError(f"after is a number of positions from 0 to {self._farthest()}, not {after!r}.")
        run = self._forward(self.run.input_ids, after=after)
        other = self._forward(self.other.input_ids, after=after) if self.other else None
        changed = self._forward(self.run.input_ids, self.changes, after=after) if self.changes else None
        vars(self).update(run=run, other=other, changed=changed, after=after)
        self._keep_cell()

    def look(self, grid, layer, position, token_id=None):
        """Look into one cell: `grid` 0 is the prompt, 1 what is beside it. `token_id` is the token that "who wrote
        here" is asked about, by default the one this cell says."""
        if grid not in range(len(self._grids())):
            raise BadInputError(f"There is no grid {grid!r}: 0 is the prompt, 1 what is shown beside it.")
        run = self._grids()[grid]
        if layer not in range(self.layers + 1) or position not in run.shown:
            raise BadInputError(
                f"There is no cell at layer {layer!r}, position {position!r}: layers run from 0 to {self.layers}, "
                f"positions shown from {run.first} to {run.shown[-1]}."
            )
        if token_id is not None and token_id not in range(len(run.best)):
            raise BadInputError(f"There is no token id {token_id!r}: ids run from 0 to {len(run.best) - 1}.")
        self.cell = (grid, layer, position, token_id)

    def toggle_head(self, layer, head):
        """Ablate a head, or no longer."""
        pair = (layer, head)
        ablated = next((change.heads for change in self.changes if change.kind == "heads"), ())
        heads = tuple(h for h in ablated if h != pair) if pair in ablated else (*ablated, pair)
        others = tuple(change for change in self.changes if change.kind != "heads")
        self._apply((*others, *((Change("heads", heads=heads),) if heads else ())))

    def skip(self, layer, part="layer"):
        """Skip a layer, or only its "attention" or "mlp"."""
        if part not in SKIPS:
            raise BadInputError(f"What can be skipped is {', '.join(SKIPS)}, not {part!r}.")
        anatomy(self.model).number(layer)
        self._apply((*self.changes, Change("skip", layer=layer, part=part)))

    def patch(self, layer, position, value=None):
        """Put the other prompt's hidden state, counted from the end of both, in a place of this one.
        From code, `value [hidden]` can be anything."""
        about = "a value of your own"
        if value is None:
            if self.other is None:
                raise BadInputError("A patch comes from another prompt: set a second prompt first.")
            at = position - len(self.run.labels) + len(self.other.labels)
            if layer not in range(self.layers + 1) or at not in self.other.shown:
                raise BadInputError(
                    f"The second prompt shows nothing at layer {layer!r} opposite position {position!r}: both are "
                    f"counted from the end, and its positions {self.other.first} to {self.other.shown[-1]} are shown."
                )
            value, about = (
                self.other.stream[layer, at - self.other.first],
                f"{self.other.labels[at]} of the second prompt",
            )
        same_place = ("patch", layer, position)
        kept = tuple(change for change in self.changes if (change.kind, change.layer, change.position) != same_place)
        self._apply(
            (*kept, Change("patch", layer=layer, position=position, vector=torch.as_tensor(value), about=about))
        )

    def steer(self, layer, towards="", away="", vector=None, scale=1.0):
        """Add a direction to the hidden state of a layer: the last position's state after reading `towards` minus
        the one after `away` (nothing is taken off when that is empty). From code, `vector [hidden]` can be anything."""
        about = "along a vector of your own"
        if vector is None:
            if layer not in range(self.layers + 1):
                raise BadInputError(
                    f"There is no hidden state {layer!r}: they run from 0 (embedding) to {self.layers}."
                )
            if not towards:
                raise BadInputError('Steering needs a direction: write a text to steer towards, such as "I love it".')
            vector = self._forward(self._ids(towards)).stream[layer, -1]
            about = f"towards “{towards}”"
            if away:
                vector = vector - self._forward(self._ids(away)).stream[layer, -1]
                about += f", away from “{away}”"
        added = Change("steer", layer=layer, vector=torch.as_tensor(vector), scale=_strength(scale), about=about)
        self._apply((*self.changes, added))

    def change(self, index, scale):
        """Another strength for a steering direction."""
        if self._change(index).kind != "steer":
            raise BadInputError(f"Change {index} is no steering: it has no strength.")
        changes = list(self.changes)
        changes[index] = replace(changes[index], scale=_strength(scale))
        self._apply(tuple(changes))

    def remove(self, index):
        """Take one change back."""
        gone = self._change(index)
        self._apply(tuple(change for change in self.changes if change is not gone))

    def clear(self):
        """Take all changes back."""
        self._apply(())

    def write_on(self):
        """A few tokens of greedy continuation, as the model is and with the changes."""
        texts = [self._continuation(())]
        self.texts = [*texts, self._continuation(self.changes)] if self.changes else texts

    @contextmanager
    def interventions(self):
        """All changes of the panel, as one context manager."""
        with _all(self.model, self.changes):
            yield

    # How it is computed.

    def _ids(self, prompt):
        return prompt_ids(self.tokenizer, prompt, context=anatomy(self.model).context)

    def _forward(self, ids, changes=(), after=0):
        length = ids.shape[1]
        stop = max(min(MOST_POSITIONS, length), length - after)
        first = max(0, stop - MOST_POSITIONS)
        positions = [*range(first, stop), *([length - 1] if stop < length else [])]  # the last one says what comes next
        with _all(self.model, changes):
            traced = trace(self.model, self.tokenizer, ids, attentions=False, positions=positions)
        stream = torch.cat([traced.hidden_states[:-1], traced.last_residual[None]]).float()
        lens = logit_lens(self.model, traced, top_k=min(TOP, traced.logits.shape[-1]))
        best = traced.logits[-1].float()
        return Run(ids, traced.tokens, first, stream[:, : stop - first], _part(lens, stop - first), best)

    def _farthest(self):
        """How far `window` can go back."""
        return max(0, *(len(run.labels) - MOST_POSITIONS for run in (self.run, self.other) if run))

    def _continuation(self, changes):
        with _all(self.model, changes):
            steps = list(generate_steps(self.model, self.tokenizer, self.run.input_ids, max_new_tokens=WRITTEN_ON))
        text = self.tokenizer.decode([step.token_id for step in steps], skip_special_tokens=True)
        return text.replace("\ufffd", "…").replace("\n", "⏎")

    def _apply(self, changes):
        changed = self._forward(self.run.input_ids, changes, self.after) if changes else None
        self._take(changes=changes, changed=changed)

    def _take(self, **new):
        """Everything has worked: now it becomes the state."""
        had = bool(self.changes)
        vars(self).update(new)
        self.texts = None
        if self.changes and not had:
            self.shown_beside = "changed"
        elif not self.changes and self.shown_beside == "changed":
            self.shown_beside = "other" if self.other else ""
        self._keep_cell()

    def _keep_cell(self):
        """The cell looked at stays; if it is not there any more, it is the nearest one."""
        grid, layer, position, token_id = self.cell
        grid = min(grid, len(self._grids()) - 1)
        run = self._grids()[grid]
        self.cell = (grid, layer, min(max(position, run.first), run.shown[-1]), token_id)

    def _change(self, index):
        if isinstance(index, bool) or index not in range(len(self.changes)):
            raise BadInputError(f"There is no change {index!r}: there are {len(self.changes)}.")
        return self.changes[index]

    def _grids(self):
        beside = {"other": self.other, "changed": self.changed}.get(self.shown_beside)
        return [self.run] + [beside] * (beside is not None)

    # What the page draws.

    def view(self):
        """What the front draws."""
        grids = self._grids()
        names = ["prompt", {"other": "second prompt", "changed": "with the changes"}.get(self.shown_beside, "")]
        return {
            "kind": "hidden states",
            "prompt": self._text(self.run),
            "title": visible(self._text(self.run)),
            "other": self._text(self.other) if self.other else "",
            "beside": self.shown_beside,
            "choices": ["", *(["other"] if self.other else []), *(["changed"] if self.changed else [])],
            "layers": self.layers,
            "heads": anatomy(self.model).heads,
            "grids": [{"name": name, **self._grid(run)} for name, run in zip(names, grids, strict=False)],
            "window": {"size": MOST_POSITIONS, "after": self.after, "farthest": self._farthest()},
            "apart": _rounded(_apart(*grids)) if len(grids) == 2 else None,
            "most_entropy": log(len(self.run.best)),
            "cell": self._cell(),
            "changes": [
                {"text": c.text, "scale": c.scale if c.kind == "steer" else None, "kind": c.kind} for c in self.changes
            ],
            "ablated": [list(head) for change in self.changes for head in change.heads],
            "code": "with " + ", ".join(c.code for c in self.changes) + ":" if self.changes else "",
            "candidates": self._candidates(),
            "texts": self.texts or [],
            "strength": STRENGTH,
            "colors": colormap(),
            "differences": colormap(name=DIFFERENCES_COLORMAP),
        }

    def _text(self, run):
        """The prompt as a reader would type it."""
        return self.tokenizer.decode(run.input_ids[0])

    def _grid(self, run):
        """The numbers of one grid, `[layer+1, position]` each, and the labels of what its cells say."""
        norm = run.stream.norm(dim=-1)
        change = torch.full_like(norm, torch.nan)
        change[1:] = (run.stream[1:] - run.stream[:-1]).norm(dim=-1) / norm[1:].clamp(min=1e-9)
        ids = run.lens.token_ids[..., 0]
        return {
            "first": run.first,
            "length": len(run.labels),
            "tokens": [run.labels[position] for position in run.shown],
            "says": [[self._label(run, at, token) for at, token in enumerate(row)] for row in ids.tolist()],
            "probability": _rounded(run.lens.probabilities[..., 0]),
            "entropy": _rounded(run.lens.entropy),
            "norm": _rounded(norm),
            "change": _rounded(change),
        }

    def _label(self, run, column, token_id):
        """How a token looks after position `run.first + column`: the end of a character that began there is named."""
        if token_id not in self._labels:
            raw = token_bytes(self.tokenizer, token_id)
            fragment = bool(raw) and 0x80 <= raw[0] < 0xC0  # goes on with a character
            self._labels[token_id] = None if fragment else token_table(self.tokenizer, [token_id])[0].label
        if self._labels[token_id] is not None:
            return self._labels[token_id]
        before = run.input_ids[0, : run.first + column + 1].tolist()[-3:]
        return token_table(self.tokenizer, [*before, token_id])[-1].label

    def _cell(self):
        """The cell looked at: what it says, what is like it, and what wrote it."""
        grid, layer, position, token_id = self.cell
        run = self._grids()[grid]
        column = position - run.first
        ids, probabilities = run.lens.token_ids[layer, column].tolist(), run.lens.probabilities[layer, column].tolist()
        asked = ids[0] if token_id is None else token_id
        state = run.stream[layer, column]
        return {
            "grid": grid,
            "layer": layer,
            "position": position,
            "token": run.labels[position],
            "patch": self._patch_place(run, position),
            "top": [
                {"id": token, "label": self._label(run, column, token), "p": round(p, 5), "text": percent(p)}
                for token, p in zip(ids, probabilities, strict=True)
            ],
            "asked": {"id": asked, "label": self._label(run, column, asked)},
            "neighbours": self._neighbours(grid, layer, position),
            "cosine": [_rounded(_cosine(other.stream, state)) for other in self._grids()],
            "writers": self._writers(grid, layer, position, asked),
        }

    def _patch_place(self, run, position):
        """Where in the prompt a patch from the second one would go: opposite this cell, counted from the end."""
        if self.other is None:
            return None
        back = len(run.labels) - position
        place, opposite = len(self.run.labels) - back, len(self.other.labels) - back
        there = place in self.run.shown and opposite in self.other.shown
        return {"position": place, "token": self.run.labels[place]} if there else None

    def _neighbours(self, grid, layer, position):
        """The most similar other positions of the same layer, in all grids shown. `centred` is the cosine after the
        layer's mean over all of them is taken off: what they share with everyone no longer counts."""
        rows = [(n, run, at) for n, run in enumerate(self._grids()) for at in run.shown]
        states = torch.stack([run.stream[layer, at - run.first] for _, run, at in rows])
        mine = next(i for i, (n, _, at) in enumerate(rows) if (n, at) == (grid, position))
        plain, centred = _cosine(states, states[mine]), _cosine(states - states.mean(0), states[mine] - states.mean(0))
        order = [i for i in plain.argsort(descending=True).tolist() if i != mine][:NEIGHBOURS]
        return [
            {
                "grid": rows[i][0],
                "position": rows[i][2],
                "label": rows[i][1].labels[rows[i][2]],
                "cosine": round(float(plain[i]), 3),
                "centred": round(float(centred[i]), 3),
            }
            for i in order
        ]

    def _writers(self, grid, layer, position, asked):
        """What each head and MLP below this cell wrote there, as logits of the token asked about. Of a model whose
        layers cannot be taken apart, why not."""
        run = self._grids()[grid]
        changes = self.changes if run is self.changed else ()
        try:
            with _all(self.model, changes):
                parts = residual_contributions(self.model, self.tokenizer, run.input_ids, positions=[position])
            direct = direct_logit(self.model, parts, asked, layer=layer)
        except BadInputError as error:
            return {"why": str(error)}
        table = torch.cat([direct.heads, direct.mlp[:, None]], dim=1)
        order = table[:layer].abs().flatten().argsort(descending=True)[:8].tolist()
        return {
            "table": [[round(value, 4) for value in row] for row in table.tolist()],
            "best": [[i // table.shape[1], i % table.shape[1]] for i in order],
            "embedding": round(direct.embedding, 3),
            "put_in": round(direct.edits, 3),
            "rest": round(direct.total - direct.embedding - direct.edits - float(table.sum()), 3),
            "total": round(direct.total, 3),
        }

    def _candidates(self):
        """The next token: the most probable ones, as the model is and with the changes."""
        runs = [self.run] + [self.changed] * bool(self.changes)
        likely = [torch.softmax(run.best, dim=-1) for run in runs]
        ids = list(dict.fromkeys(i for p in likely for i in p.topk(min(TOP, len(p))).indices.tolist()))
        ids.sort(key=lambda i: -max(float(p[i]) for p in likely))
        last = len(self.run.labels) - 1 - self.run.first
        return [
            {
                "id": i,
                "label": self._label(self.run, last, i),
                "p": [round(float(p[i]), 6) for p in likely],
                "text": [percent(float(p[i])) for p in likely],
            }
            for i in ids[:TOP]
        ]

    def figure(self):
        """The still picture: what each layer says at the positions shown."""
        run = self.run
        ax = plot_logit_lens(run.lens, self.tokenizer, [run.labels[position] for position in run.shown])
        text = visible(self._text(run))
        ax.set_title(drawable(f"{'…' * (len(text) > 44)}{text[-44:]} ▸ what each layer says"))
        return ax

    def describe(self):
        """The still picture in words."""
        best = ", ".join(f"{row['label']} {row['text'][0]}" for row in self._candidates()[:3])
        words = (
            f"hidden_state_explorer: {self.layers + 1} rows (embedding and layers) by {len(self.run.labels)} positions"
        )
        return f"{words}; next: {best}" + (f"; {len(self.changes)} changes" if self.changes else "")


@contextmanager
def _all(model, changes):
    """Every change at once, for as long as this lasts."""
    with ExitStack() as active:
        for change in changes:
            active.enter_context(change.context(model))
        yield


def _cosine(states, state):
    return torch.nn.functional.cosine_similarity(states, state.expand_as(states), dim=-1)


def _part(lens, count):
    """The first `count` positions of a lens."""
    cut = {name: getattr(lens, name)[:, :count] for name in ("token_ids", "probabilities", "entropy")}
    return replace(lens, positions=lens.positions[:count], **cut)


def _apart(run, beside):
    """How far two runs are apart, `[layer+1, position]`, matched from the end: their distance over their mean norm."""
    shift = len(beside.labels) - len(run.labels)
    start = max(run.first, beside.first - shift)
    stop = max(start, min(run.shown.stop, beside.shown.stop - shift))
    a = run.stream[:, start - run.first : stop - run.first]
    b = beside.stream[:, start + shift - beside.first : stop + shift - beside.first]
    return (a - b).norm(dim=-1) / ((a.norm(dim=-1) + b.norm(dim=-1)) / 2).clamp(min=1e-9)


def _strength(scale):
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not abs(scale) <= 1000:
        raise BadInputError(f"The strength of steering is a number such as 2 or -1.5, not {scale!r}.")
    return float(scale)


def _rounded(tensor):
    """As lists of 4 significant digits; None where there is no number."""
    return [[None if value != value else float(f"{value:.4g}") for value in row] for row in tensor.tolist()]


class HiddenStateWidget(CourseWidget):
    """The live front of `hidden_state_explorer`, drawn by `hidden_states.js`."""

    _esm = front("hidden_states.js")
    _css = CourseWidget._css + (HERE / "hidden_states.css").read_text(encoding="utf-8")

    def do(self, command, **arguments):
        """The panel's commands from code, such as `do("steer", layer=12, vector=v, scale=2)`; the picture follows.

        Raises `BadInputError` for a command or values that cannot work; then nothing changes.
        """
        self.state.do(command, **arguments)
        self.view = {**self.state.view(), "turn": self.view["turn"] + 1, "message": ""}

    def interventions(self):
        """A context manager with the panel's changes: `with panel.interventions(): model.generate(…)`."""
        return self.state.interventions()


def hidden_state_explorer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Any, *, other: Any = None
) -> HiddenStateWidget:
    """A panel with every hidden state of a prompt: layers by positions, what each says, what wrote it, what changes.

    Of a prompt of more than 96 positions the last 96 are shown at first; "earlier" and "later" move on.
    The grid is coloured by the logit lens's best token, its probability, the entropy, the norm, the change from the
    layer below, or the cosine to a chosen cell. A cell shows its ten best tokens, its neighbours and the heads and
    MLPs that wrote there. `other` is a second prompt to set beside the first. Heads, layers and MLPs can be switched
    off, states patched from the other prompt and directions added, with the new prediction beside the old: in the
    panel, or from code with `do(command, …)`; `interventions()` has the panel's changes as a context manager. The
    model itself is touched during the panel's own runs only. Without a kernel the cell shows a picture.

    Raises what `trace` raises.

    >>> explorer = hidden_state_explorer(model, tokenizer, "The sky is")
    >>> explorer.picture()[:4]
    b'\\x89PNG'
    """
    return HiddenStateWidget(HiddenStates(model, tokenizer, prompt, other=other))
