"""What `hidden_state_explorer` shows at one moment, a `Panel`, and how it becomes a page, a picture and a text."""

from dataclasses import dataclass
from math import log
from typing import Any

import torch
from matplotlib.axes import Axes
from transformers import PreTrainedModel

from helpers.inside.anatomy import anatomy
from helpers.inside.changes import Change
from helpers.inside.comparisons import (
    PromptRun,
    change_from_below,
    cosine,
    distance,
    nearest,
    opposite,
    overlap,
)
from helpers.inside.contributions import DirectLogit
from helpers.text.tokens import token_bytes, token_table, visible
from helpers.views.plots import percent, plot_bars, plot_logit_lens
from helpers.views.style import DIFFERENCES_COLORMAP, colormap, drawable

MOST_POSITIONS = 96  # positions of a long prompt that the grid shows at a time, at first the last ones
STRENGTH = 4  # a steering slider runs from minus this to this
NAMES = {"": "", "other": "second prompt", "changed": "with the changes"}
LARGEST_WRITERS = 8
TOP = 10


@dataclass(frozen=True)
class Cell:
    """The selected cell: `grid` 0 is the prompt, 1 what is beside it; `token_id` is the token that "who wrote here" is
    about, None for the one that the cell predicts."""

    grid: int
    layer: int
    position: int
    token_id: int | None = None


@dataclass(frozen=True, eq=False)
class Panel:
    """What the panel shows at one moment: runs, the changes to the model, and the selected cell.

    `beside` says what is shown beside the prompt's run: "other" (the second prompt), "changed" (the prompt with the
    changes) or nothing (""). `after` is how many positions follow those shown. `writers` is what was written into the
    selected cell; if that is not known, it is None and `no_writers` is the sentence that says why. `texts` are the
    requested continuations, without and with the changes.
    """

    run: PromptRun
    cell: Cell
    other: PromptRun | None = None
    changed: PromptRun | None = None
    changes: tuple[Change, ...] = ()
    beside: str = ""
    after: int = 0
    writers: DirectLogit | None = None
    no_writers: str = ""
    texts: tuple[str, ...] = ()

    @property
    def runs(self) -> list[PromptRun]:
        """The runs side by side: the prompt's, and what is beside it."""
        beside = {"other": self.other, "changed": self.changed}.get(self.beside)
        return [self.run, *([beside] if beside else [])]

    @property
    def cell_run(self) -> PromptRun:
        """The run that the selected cell belongs to."""
        return self.runs[self.cell.grid]

    @property
    def asked(self) -> int | None:
        """The id of the token that "who wrote here" is about: the chosen one, or the one that the cell predicts."""
        lens, cell = self.cell_run.lens, self.cell
        if cell.token_id is not None or lens is None:
            return cell.token_id
        return int(lens.token_ids[cell.layer, self.cell_run.column(cell.position), 0])

    @property
    def farthest(self) -> int:
        """How many positions the window on a long prompt can be moved back."""
        return max(0, *(len(run.labels) - MOST_POSITIONS for run in (self.run, self.other) if run))


class TokenLabels:
    """Labels of the tokens that follow a position of a run; the rest of a character that began there is labelled as
    such."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.known: dict[int, str | None] = {}  # None: depends on the tokens before it

    def text(self, run: PromptRun) -> str:
        """The prompt as a reader would type it."""
        return self.tokenizer.decode(run.input_ids[0])

    def after(self, run: PromptRun, column: int, token_id: int) -> str:
        """The label of a token after position `run.first + column`."""
        if token_id not in self.known:
            raw = token_bytes(self.tokenizer, token_id)
            fragment = bool(raw) and 0x80 <= raw[0] < 0xC0  # it continues a character
            self.known[token_id] = None if fragment else token_table(self.tokenizer, [token_id])[0].label
        label = self.known[token_id]
        if label is not None:
            return label
        before = run.input_ids[0, : run.first + column + 1].tolist()[-3:]
        return token_table(self.tokenizer, [*before, token_id])[-1].label


def page_of(model: PreTrainedModel, labels: TokenLabels, panel: Panel) -> dict[str, Any]:
    """A panel as plain values for `hidden_states.js`."""
    text = labels.text(panel.run)
    grids = [_grid(labels, run, panel) for run in panel.runs]
    for name, grid in zip(("prompt", NAMES[panel.beside]), grids, strict=False):
        grid["name"] = name
    return {
        "kind": "hidden states",
        "prompt": text,
        "title": visible(text),
        "other": labels.text(panel.other) if panel.other else "",
        "beside": panel.beside,
        "choices": ["", *(["other"] if panel.other else []), *(["changed"] if panel.changed else [])],
        "layers": len(anatomy(model).layers),
        "heads": anatomy(model).heads,
        "grids": grids,
        "difference": _difference(panel, grids),
        "no_lens": panel.run.no_lens,
        "window": {"size": MOST_POSITIONS, "after": panel.after, "farthest": panel.farthest},
        "most_entropy": log(len(panel.run.logits)),
        "cell": _cell(labels, panel),
        "changes": [
            {"text": c.text, "scale": c.scale if c.kind == "steer" else None, "kind": c.kind} for c in panel.changes
        ],
        "ablated": [list(head) for change in panel.changes for head in change.heads],
        "code": "with " + ", ".join(change.code for change in panel.changes) + ":" if panel.changes else "",
        "candidates": candidates_of(labels, panel),
        "texts": list(panel.texts),
        "strength": STRENGTH,
        "colors": colormap(),
        "differences": colormap(name=DIFFERENCES_COLORMAP),
    }


def _grid(labels: TokenLabels, run: PromptRun, panel: Panel) -> dict[str, Any]:
    """The numbers of one grid, `[layer+1, position]` each (None if there are none), and the tokens it predicts."""
    lens = run.lens
    says = (
        None
        if lens is None
        else [[labels.after(run, at, token) for at, token in enumerate(row)] for row in lens.token_ids[..., 0].tolist()]
    )
    cell = panel.cell
    state = panel.cell_run.stream[cell.layer, panel.cell_run.column(cell.position)]
    return {
        "first": run.first,
        "length": len(run.labels),
        "tokens": [run.labels[position] for position in run.shown],
        "says": says,
        "probability": None if lens is None else _rounded(lens.probabilities[..., 0]),
        "entropy": None if lens is None else _rounded(lens.entropy),
        "norm": _rounded(run.stream.norm(dim=-1)),
        "change": _rounded(change_from_below(run.stream)),
        "cosine": _rounded(cosine(run.stream, state)),
    }


def _difference(panel: Panel, grids: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What is beside the prompt minus the prompt, where both show the same positions; for norms it is the log2 of their
    ratio. None if there is nothing to compare. `says` holds "=" where both predict the same token."""
    if len(panel.runs) < 2:
        return None
    first, second = panel.runs
    both = overlap(first, second)
    if both is None:
        return None
    before, after = grids
    mine, other = both.first, both.second

    def difference(name: str) -> list[list[float | None]] | None:
        if before[name] is None or after[name] is None:
            return None
        pairs = [zip(a[mine], b[other], strict=True) for a, b in zip(before[name], after[name], strict=True)]
        return [[_apart(name, a, b) for a, b in row] for row in pairs]

    says = None
    if before["says"] is not None and after["says"] is not None:
        pairs = [zip(a[mine], b[other], strict=True) for a, b in zip(before["says"], after["says"], strict=True)]
        says = [["=" if a == b else b for a, b in row] for row in pairs]
    return {
        "first": second.first + other.start,
        "tokens": after["tokens"][other],
        "tokens_before": before["tokens"][mine],
        "says": says,
        "token": _rounded(distance(first.stream[:, mine], second.stream[:, other])),
        **{name: difference(name) for name in ("probability", "entropy", "norm", "change", "cosine")},
    }


def _apart(name: str, before: float | None, after: float | None) -> float | None:
    if before is None or after is None:
        return None
    if name == "norm":
        return _short(log(after / before, 2)) if before > 0 and after > 0 else None
    return _short(after - before)


def _cell(labels: TokenLabels, panel: Panel) -> dict[str, Any]:
    """The selected cell: what it predicts, which cells are similar, and what wrote it."""
    cell, run, lens = panel.cell, panel.cell_run, panel.cell_run.lens
    column = run.column(cell.position)
    top = []
    if lens is not None:
        ids, probabilities = lens.token_ids[cell.layer, column], lens.probabilities[cell.layer, column]
        top = [
            {"id": token, "label": labels.after(run, column, token), "p": round(p, 5), "text": percent(p)}
            for token, p in zip(ids.tolist(), probabilities.tolist(), strict=True)
        ]
    return {
        "grid": cell.grid,
        "layer": cell.layer,
        "position": cell.position,
        "token": run.labels[cell.position],
        "patch": _patch_place(panel),
        "top": top,
        "no_top": run.no_lens,
        "asked": {"id": panel.asked, "label": "" if panel.asked is None else labels.after(run, column, panel.asked)},
        "neighbours": [
            {
                "grid": like.run,
                "position": like.position,
                "label": panel.runs[like.run].labels[like.position],
                "cosine": round(like.cosine, 3),
                "centred": round(like.centred, 3),
            }
            for like in nearest(panel.runs, cell.grid, cell.layer, cell.position)
        ],
        "writers": _writers(panel),
        "no_writers": panel.no_writers,
    }


def _patch_place(panel: Panel) -> dict[str, Any] | None:
    """Where in the prompt a patch from the second one would go: opposite this cell, counted from the end."""
    if panel.other is None:
        return None
    place = opposite(panel.run, panel.cell_run, panel.cell.position)
    there = place in panel.run.shown and opposite(panel.other, panel.run, place) in panel.other.shown
    return {"position": place, "token": panel.run.labels[place]} if there else None


def _writers(panel: Panel) -> dict[str, Any] | None:
    """What each head and MLP below the cell wrote there, as logits of the token in question."""
    direct = panel.writers
    if direct is None:
        return None
    table = torch.cat([direct.heads, direct.mlp[:, None]], dim=1)
    order = table[: panel.cell.layer].abs().flatten().argsort(descending=True)[:LARGEST_WRITERS].tolist()
    return {
        "table": [[round(value, 4) for value in row] for row in table.tolist()],
        "best": [[i // table.shape[1], i % table.shape[1]] for i in order],
        "embedding": round(direct.embedding, 3),
        "put_in": round(direct.edits, 3),
        "rest": round(direct.total - direct.embedding - direct.edits - float(table.sum()), 3),
        "total": round(direct.total, 3),
    }


def candidates_of(labels: TokenLabels, panel: Panel) -> list[dict[str, Any]]:
    """The most probable next tokens, without and with the changes."""
    runs = [panel.run, *([panel.changed] if panel.changed else [])]
    likely = [torch.softmax(run.logits, dim=-1) for run in runs]
    ids = list(dict.fromkeys(i for p in likely for i in p.topk(min(TOP, len(p))).indices.tolist()))
    ids.sort(key=lambda i: -max(float(p[i]) for p in likely))
    last = len(panel.run.labels) - 1 - panel.run.first
    return [
        {
            "id": i,
            "label": labels.after(panel.run, last, i),
            "p": [round(float(p[i]), 6) for p in likely],
            "text": [percent(float(p[i])) for p in likely],
        }
        for i in ids[:TOP]
    ]


def _short(value: float) -> float | None:
    """4 significant digits; None for NaN."""
    return None if value != value else float(f"{value:.4g}")


def _rounded(tensor: torch.Tensor) -> list[list[float | None]]:
    return [[_short(value) for value in row] for row in tensor.tolist()]


def draw_panel(labels: TokenLabels, panel: Panel) -> Axes:
    """The still picture: what each layer predicts at the positions shown; without a lens, the next token."""
    run, text = panel.run, visible(labels.text(panel.run))
    title = f"{'…' * (len(text) > 44)}{text[-44:]} ▸ "
    if run.lens is None:
        rows = candidates_of(labels, panel)
        return plot_bars({row["label"]: row["p"][0] for row in rows}, unit="probability", title=f"{title}next token")
    ax = plot_logit_lens(run.lens, labels.tokenizer, [run.labels[position] for position in run.shown])
    ax.set_title(drawable(f"{title}what each layer predicts"))
    return ax


def describe_panel(labels: TokenLabels, panel: Panel) -> str:
    """The still picture in words."""
    best = ", ".join(f"{row['label']} {row['text'][0]}" for row in candidates_of(labels, panel)[:3])
    rows, positions = panel.run.stream.shape[0], len(panel.run.labels)
    words = f"hidden_state_explorer: {rows} rows (embedding and layers) by {positions} positions; next: {best}"
    return words + (f"; {len(panel.changes)} changes" if panel.changes else "")
