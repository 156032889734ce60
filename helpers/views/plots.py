"""Charts of results: each function takes a result and `ax=None`, draws, and returns the `Axes`.

Without `ax`, a new figure of suitable size is made. Nothing here runs a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helpers.checks import axes, given_by, several, shown, tensor, whole_number
from helpers.errors import BadInputError
from helpers.text.tokens import token_table
from helpers.views.style import (
    INK,
    MUTED,
    OKABE_ITO,
    RULE,
    WEIGHTS_COLORMAP,
    drawable,
    new_axes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from helpers.inside.generation import GenerationStep
    from helpers.inside.lens import Lens

MOST_CANDIDATES = 1000  # the most tokens drawn below each other
MOST_LABELS = 40  # the most tokens written along an axis; if there are more, every n-th


@dataclass(frozen=True)
class Candidate:
    """One token that could come next, with its probability after each stage.

    `probabilities` has one entry per stage of `stage_scores`, which is None if the token was removed
    (its score is -inf).
    """

    token_id: int
    label: str
    probabilities: tuple[float | None, ...]
    chosen: bool


def stage_scores(step: GenerationStep) -> dict[str, Tensor]:
    """The scores `[vocab]` of a `GenerationStep` by stage name: the raw logits, then after each processor."""
    return {"raw logits": step.logits, **dict(step.processed)}


def candidates(
    scores: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    *,
    top: int = 10,
    chosen: int | None = None,
    before: Sequence[int] = (),
) -> list[Candidate]:
    """The `top` tokens of the first stage, best first, followed through all stages: `list[Candidate]`.

    `scores` maps a stage's name to logits `[vocab]`, which a softmax turns into probabilities. The token
    `chosen` is added at the end if it is not among the best. `before` are the ids before it, so that the
    rest of a character can be labelled as such (`你 2/2`).
    """
    import torch

    top = whole_number("top", top, least=1, most=MOST_CANDIDATES)
    first = next(iter(scores.values()))
    ids = torch.topk(first.float(), min(top, len(first))).indices.tolist()
    if chosen is not None and chosen not in ids:
        ids.append(chosen)
    stages = [torch.softmax(values.float(), dim=-1)[ids].tolist() for values in scores.values()]
    removed = [torch.isneginf(values[ids]).tolist() for values in scores.values()]
    return [
        Candidate(
            token_id,
            token_table(tokenizer, [*before[-3:], token_id])[-1].label,  # 3: no character has more than 4 bytes
            tuple(None if gone[row] else stage[row] for stage, gone in zip(stages, removed, strict=True)),
            token_id == chosen,
        )
        for row, token_id in enumerate(ids)
    ]


def percent(probability: float | None) -> str:
    """A readable probability: `12.3%`, or `<0.1%`."""
    return "<0.1%" if 0 < probability < 0.0005 else f"{100 * probability:.1f}%"


def plot_next_token(
    step: GenerationStep | Tensor, tokenizer: PreTrainedTokenizerBase, *, top: int = 10, ax: Axes | None = None
) -> Axes:
    """The `top` most probable next tokens as bars; the one that was taken is marked. Returns the Axes.

    `step` is a `GenerationStep`, or a tensor `[vocab]` of probabilities or of logits (which then go through a
    softmax). For a step its `probabilities` are drawn: those after all processors, without the tokens they removed.

    Raises `BadInputError` for anything else.

    >>> import torch
    >>> plot_next_token(torch.tensor([0.1, 0.7, 0.2]), tokenizer, top=2).get_xlabel()
    'probability'
    """
    taken = getattr(step, "token_id", None)
    given: Any = step
    scores = _as_logits(getattr(given, "probabilities", given))
    rows = candidates({"probability": scores}, tokenizer, top=top, chosen=taken, before=_just_read(step))
    rows = [row for row in rows if row.probabilities[0] is not None]
    ax = new_axes(ax, 6.2, 0.6 + 0.27 * len(rows))
    values = [row.probabilities[0] for row in rows]
    colors = [OKABE_ITO["vermillion" if row.chosen else "blue"] for row in rows]
    ax.barh(range(len(rows)), values, height=0.72, color=colors)
    for y, (row, value) in enumerate(zip(rows, values, strict=True)):
        ax.annotate(
            percent(value) + ("  ← taken" if row.chosen else ""),
            (value, y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=INK if row.chosen else MUTED,
            fontweight="bold" if row.chosen else "normal",
        )
    _token_rows(ax, rows)
    ax.set(xlim=(0, max(values) * 1.2 or 1), xlabel="probability", title="Next token")
    ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    return ax


def plot_processors(
    step: GenerationStep, tokenizer: PreTrainedTokenizerBase, *, top: int = 10, ax: Axes | None = None
) -> Axes:
    """The most probable raw candidates, followed through every logits processor. Returns the Axes.

    There is one column for the raw logits and one after each processor of `step.processed`, each a softmax of
    the scores at that point; a token that a processor removed (score -inf) is crossed out from there on.

    >>> from helpers.inside.generation import generate_steps
    >>> (step,) = generate_steps(model, tokenizer, "The sky is", max_new_tokens=1, do_sample=True, top_k=5, seed=0)
    >>> [label.get_text() for label in plot_processors(step, tokenizer).get_xticklabels()]
    ['raw logits', '1. top k']
    """
    scores = stage_scores(given_by("generate_steps", "step", step, "logits", "processed", "token_id"))
    rows = candidates(scores, tokenizer, top=top, chosen=step.token_id, before=_just_read(step))
    ax = new_axes(ax, 1.6 + 1.35 * len(scores), 0.9 + 0.27 * len(rows))
    width = 0.86
    for column in range(len(scores)):
        for y, row in enumerate(rows):
            p = row.probabilities[column]
            if p is None:
                ax.barh(y, width, left=column, height=0.66, color="none", edgecolor=RULE, linestyle=":", lw=1.2)
                note, color = "✕ removed", MUTED
            else:
                hue = OKABE_ITO["vermillion" if row.chosen else "blue"]
                ax.barh(y, width, left=column, height=0.72, color="#f3f5f7")
                ax.barh(y, width * p, left=column, height=0.72, color=hue, alpha=0.55)
                note, color = percent(p), INK
            weight = "bold" if row.chosen else "normal"
            ax.text(column + width - 0.03, y, note, ha="right", va="center", fontsize=8, color=color, fontweight=weight)
    _token_rows(ax, rows, mark_chosen=True)
    names = [name if n == 0 else f"{n}. {name.replace('_', ' ')}" for n, name in enumerate(scores)]
    ax.set_xticks([column + width / 2 for column in range(len(names))], names, color=INK)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlim=(-0.03, len(scores) - 0.1), title="Probability after each logits processor")
    return ax


def plot_bars(values: Any, *, unit: str = "", title: str = "", ax: Axes | None = None) -> Axes:
    """Numbers by name as horizontal bars. Returns the Axes.

    `values` maps a name to a number, or to a dict of series name to number (then the bars are grouped
    and there is a legend). Numbers are written at the bars, to 3 significant digits. Raises `BadInputError` for
    anything else.

    >>> plot_bars({"Llama": 32, "GLM": 40}, unit="layers", title="Depth").get_title()
    'Depth'
    """
    if not isinstance(values, Mapping):
        raise BadInputError(f"values is a dict of name to number, not {shown(values)}.")
    if not values:
        raise BadInputError("There is nothing to draw: values is empty. Give it a dict of name to number.")
    groups = {n: v if isinstance(v, Mapping) else {"": v} for n, v in values.items()}
    groups = {n: {part: _length(part or n, value) for part, value in v.items()} for n, v in groups.items()}
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    legend = 0.25 if len(series) > 1 else 0.0  # inches below the axis
    ax = new_axes(ax, 6.6, 0.7 + legend + 0.24 * len(groups) * len(series) + 0.12 * len(groups))
    height = 0.8 / len(series)
    colors = [OKABE_ITO[name] for name in ("blue", "orange", "green", "vermillion", "purple", "sky")]
    for n, name in enumerate(series):
        places = [g + (n - (len(series) - 1) / 2) * height for g in range(len(groups))]
        lengths = [group.get(name, 0.0) for group in groups.values()]
        bars = ax.barh(
            places,
            lengths,
            height=height * 0.9,
            label=drawable(name),
            color=colors[n % len(colors)],
            lw=0,
        )
        ax.bar_label(bars, [_number(value) for value in lengths], padding=3, fontsize=8.5, color=MUTED)
    ax.set_yticks(range(len(groups)), [drawable(name) for name in groups])
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel=drawable(unit), title=drawable(title))
    ax.margins(x=0.1)
    if legend:
        from matplotlib.transforms import ScaledTranslation

        below = ax.transAxes + ScaledTranslation(0, -0.42, ax.figure.dpi_scale_trans)  # below ticks and label
        ax.legend(ncols=len(series), loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below, fontsize=8.5)
    return ax


def plot_memory_plan(plans: Any, *, title: str = "Memory: needed and free", ax: Axes | None = None) -> Axes:
    """What each plan needs (weights, KV cache, working memory), compared with the free memory. Returns the Axes.

    `plans` maps a name to a `MemoryPlan`, or is a list of them, or one. A GB is 10**9 bytes. The `overhead_bytes`
    (8 MB) are included in the number beside the bar, but are too few to be drawn.

    >>> from helpers.models.memory import memory_plan
    >>> plot_memory_plan({"float32": memory_plan("smollm2-135m", device="cpu")}).get_xlabel()
    'GB'
    """
    if not isinstance(plans, Mapping):
        listed = [plans] if hasattr(plans, "total_bytes") else several("plans", plans, "what memory_plan gives")
        plans = {given_by("memory_plan", "A plan", plan, "name").name: plan for plan in listed}
    if not plans:
        raise BadInputError("There is nothing to draw: plans is empty. Give it what memory_plan returned.")
    for plan in plans.values():
        given_by("memory_plan", "A plan", plan, "total_bytes", "available_bytes", "fits")
    ax = new_axes(ax, 7.2, 1.0 + 0.38 * len(plans))
    rows = range(len(plans))
    needs = [plan.total_bytes / 1e9 for plan in plans.values()]
    available = [plan.available_bytes / 1e9 for plan in plans.values()]
    parts = (
        ("weights", "weights_bytes", "blue"),
        ("KV cache", "kv_cache_bytes", "orange"),
        ("working memory", "working_bytes", "green"),
    )
    left = [0.0] * len(plans)
    for label, field, colour in parts:
        widths = [getattr(plan, field) / 1e9 for plan in plans.values()]
        ax.barh(rows, widths, left=left, height=0.6, label=label, color=OKABE_ITO[colour])
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, plan in enumerate(plans.values()):
        ax.plot(
            [available[row]] * 2,
            [row - 0.5, row + 0.5],
            color=INK,
            lw=2,
            solid_capstyle="butt",
            label=None if row else "memory free here",
        )
        ax.annotate(
            f"{needs[row]:.3g} GB  " + ("✓ fits" if plan.fits else "✕ does not fit"),
            (max(needs[row], available[row] if available[row] < needs[row] * 1.6 else 0), row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=INK if plan.fits else OKABE_ITO["vermillion"],
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )
    ax.set_yticks(rows, [drawable(name) for name in plans])
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set(xlim=(0, max(needs + available) * 1.38), xlabel="GB", title=drawable(title))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=4, fontsize=8.5)
    return ax


def plot_attention(
    attention: Tensor, tokens: Sequence[str], *, title: str = "Attention", ax: Axes | None = None
) -> Axes:
    """Attention weights `[query, key]` of one head (or a mean over heads) as a heat map. Returns the Axes.

    `tokens` are the labels of the positions, as in `Trace.tokens`. Colours always run from 0 to 1, so
    that two figures can be compared. The part right of the diagonal, which the causal mask hides, stays white if
    it contains only zeros. A label that occurs again gets a number: `·the (2)`.

    Raises `BadInputError` if the shape is not `[len(tokens), len(tokens)]`.

    >>> import torch
    >>> ax = plot_attention(torch.eye(2), ["The", " sky"])
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('key (attended to)', 'query (attends)')
    """
    import numpy as np
    from matplotlib import colormaps

    attention, tokens = tensor("attention", attention), several("tokens", tokens, "labels")
    if not tokens:
        raise BadInputError("There is nothing to draw: tokens is empty.")
    if tuple(attention.shape) != (len(tokens), len(tokens)):
        raise BadInputError(
            f"attention has the shape {list(attention.shape)}, but {len(tokens)} tokens need "
            f"[{len(tokens)}, {len(tokens)}] (query, key): pick one layer and one head."
        )
    side = min(7.0, 2.0 + 0.24 * len(tokens))
    ax = new_axes(ax, side + 0.8, side)
    weights = attention.float().numpy(force=True)
    later = np.triu(np.ones_like(weights, dtype=bool), k=1)
    weights = np.ma.masked_array(weights, later & (not weights[later].any()))
    colours = colormaps[WEIGHTS_COLORMAP].with_extremes(bad="white")
    picture = ax.imshow(weights, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    every = -(-len(tokens) // MOST_LABELS)
    labels = [drawable(label) for label in numbered(tokens)]
    size = 8 if len(tokens) <= 24 else 6.5
    ax.set_xticks(range(0, len(tokens), every), labels[::every], rotation=90, fontsize=size, color=INK)
    ax.set_yticks(range(0, len(tokens), every), labels[::every], fontsize=size)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="key (attended to)", ylabel="query (attends)", title=drawable(title))
    ax.figure.colorbar(picture, ax=ax, shrink=0.7, label="attention weight").outline.set_visible(False)
    return ax


LENS_TITLE = "Logit lens: the best next token after each layer"


def plot_logit_lens(
    lens: Lens,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Any,
    *,
    positions: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """What each layer would predict: the best token of the logit lens, coloured by its probability. Returns the Axes.

    `lens` is what `logit_lens` returned (`token_ids` and `probabilities`, `[layer+1, position, k]`),
    `tokens` the labels of the positions, `positions` the ones to draw (default: the last 8), `rows` the
    rows (default: all), lowest first. The top row is the model's own prediction.

    >>> from helpers.inside.lens import logit_lens
    >>> from helpers.inside.tracing import trace
    >>> run = trace(model, tokenizer, "The sky is")
    >>> ax = plot_logit_lens(logit_lens(model, run), tokenizer, run.tokens)
    >>> len(ax.get_xticklabels())
    3
    """
    count = given_by("logit_lens", "lens", lens, "token_ids", "probabilities").token_ids.shape[1]
    positions = _columns(positions, count)
    tokens = several("tokens", tokens, "labels")
    if len(tokens) != count:
        raise BadInputError(
            f"The lens has {count} positions, and there are {len(tokens)} tokens: give those of its run."
        )
    rows = list(range(lens.token_ids.shape[0])) if rows is None else list(rows)
    ids = lens.token_ids[rows][:, positions, 0]
    weights = lens.probabilities[rows][:, positions, 0].float().numpy(force=True)
    layers = len(rows)
    ax = new_axes(ax, max(5.0, 1.6 + 0.82 * len(positions)), max(2.2, 1.2 + 0.19 * layers))
    picture = ax.imshow(weights, cmap=WEIGHTS_COLORMAP, vmin=0, vmax=1, aspect="auto", origin="lower")
    for place in range(1, layers):
        if rows[place] != rows[place - 1] + 1:  # rows are missing here
            ax.axhline(place - 0.5, color="white", lw=3)
    for layer in range(layers):
        for column in range(len(positions)):
            label = token_table(tokenizer, [int(ids[layer, column])])[0].label
            bright = float(weights[layer, column]) > 0.55
            ax.text(
                column,
                layer,
                drawable(label[:12]),
                ha="center",
                va="center",
                fontsize=7,
                color="black" if bright else "white",
            )
    ax.set_xticks(range(len(positions)), [drawable(tokens[p]) for p in positions], fontsize=8, color=INK)
    ax.set_yticks(range(layers), [f"row {n}" if n else "embedding" for n in rows], fontsize=7)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="position (token just read)", title=drawable(title or LENS_TITLE))
    ax.figure.colorbar(picture, ax=ax, shrink=0.6, label="its probability").outline.set_visible(False)
    return ax


def _columns(positions: Sequence[int] | None, count: int) -> list[int]:
    """Positions counted from 0; the last 8 if none are given."""
    if positions is None:
        return list(range(max(0, count - 8), count))
    asked = several("positions", positions, "whole numbers")
    if not asked:
        raise BadInputError("There is nothing to draw: positions is empty.")
    return [whole_number("A position", position, least=-count, most=count - 1) % count for position in asked]


def numbered(labels: Sequence[str]) -> list[str]:
    """Labels, with repeated ones numbered: `·the`, `·the (2)`."""
    seen = Counter()
    result = []
    for label in labels:
        seen[label] += 1
        result.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return result


def _just_read(step: Any) -> list[int]:
    """The last ids that the model was given in a step, if the step holds them."""
    return step.input_ids[0, -3:].tolist() if hasattr(step, "input_ids") else []


def _length(name: object, value: Any) -> float:
    """A bar's length; NaN is drawn as a bar without one."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise BadInputError(f"values needs a number for {shown(name)}, not {shown(value)}.") from None


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _as_logits(values: Tensor) -> Tensor:
    """Scores `[vocab]` whose softmax gives the probabilities: logits unchanged, probabilities as their logarithm."""
    if not hasattr(values, "shape") or len(values.shape) != 1:
        shape = f"a tensor {list(values.shape)}" if hasattr(values, "shape") else f"a {type(values).__name__}"
        raise BadInputError(
            f"This is {shape}; give it a step of generate_steps, or probabilities or logits [vocab], such as "
            "logits[0, -1] of a model's output."
        )
    values = axes("step", values, "vocab").float()
    if not len(values):
        raise BadInputError("There are no scores to draw: this tensor is empty.")
    if bool(values.isnan().any()):
        raise BadInputError("These scores cannot be drawn: some are NaN, as those of a model with damaged weights.")
    is_probability = bool((values >= 0).all()) and abs(float(values.sum()) - 1) < 1e-3
    return values.log() if is_probability else values


def _token_rows(ax: Axes, rows: Sequence[Candidate], *, mark_chosen: bool = False) -> None:
    """Write the token labels down the left side, the best at the top."""
    labels = [f"{'→ ' if mark_chosen and row.chosen else ''}{drawable(row.label)}" for row in rows]
    ax.set_yticks(range(len(rows)), labels)
    ax.set_ylim(len(rows) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0)
    for tick, row in zip(ax.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row.chosen else "normal")
