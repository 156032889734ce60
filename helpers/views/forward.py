"""Figures of one forward pass: the two kinds of pass, which query may attend to which key, how fast pairs rotate.

Each function takes a result and `ax=None`, draws, and returns the `Axes`. Nothing here runs a model.
"""

from __future__ import annotations

from itertools import cycle
from math import ceil, cos, inf, pi, sin
from typing import TYPE_CHECKING, Any

from helpers.checks import axes, given_by, named, number, plain, several, shown, whole_number
from helpers.errors import BadInputError
from helpers.text.tokens import token_table
from helpers.views.style import INK, MUTED, OKABE_ITO, RULE, WEIGHTS_COLORMAP, drawable, new_axes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from helpers.inside.generation import GenerationStep

MOST_COLUMNS = 9  # positions drawn per pass; if there are more, the first and the last few
NEW, CACHED = OKABE_ITO["orange"], OKABE_ITO["sky"]


def plot_two_passes(
    first: GenerationStep,
    later: GenerationStep,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    *,
    ax: Axes | None = None,
) -> Axes:
    """The pass over the whole prompt beside a pass over one token: what goes in, what is kept, what comes out.

    `first` and `later` are the first two `GenerationStep`s of an answer, `config` the model's. Each column is
    a position, each row of the triangle a query and the keys that it attends to; what a pass computes has one colour,
    what it finds in the KV cache another. For a long prompt the first and last positions are drawn. Returns the Axes.

    Raises `BadInputError` if the two are not the first two steps.

    >>> from helpers.inside.generation import generate_steps
    >>> first, later = generate_steps(model, tokenizer, "The sky is", max_new_tokens=2)
    >>> ax = plot_two_passes(first, later, tokenizer, model.config)
    >>> len(ax.patches) > 0
    True
    """
    for name, step in (("first", first), ("later", later)):
        given_by("generate_steps", name, step, "input_ids", "kv_length")
    if first.input_ids.shape[1] != first.kv_length or later.kv_length != first.kv_length + later.input_ids.shape[1]:
        raise BadInputError(
            f"These steps hold {first.kv_length} and {later.kv_length} positions: give the first two steps of "
            "generate_steps, the first of which reads the whole prompt."
        )
    config = config.get_text_config()
    rows = token_table(tokenizer, [*first.input_ids[0].tolist(), *later.input_ids[0].tolist()])
    labels = [row.label for row in rows]
    panels = [_Pass(step, labels, config) for step in (first, later)]
    gap, height = 1.6, max(panel.height for panel in panels)
    width = sum(panel.width for panel in panels) + gap
    ax = _canvas(ax, width, height)
    panels[0].draw(ax, 0.0, "First pass: everything is computed")
    panels[1].draw(ax, panels[0].width + gap, "Later pass: one new column")
    _legend(ax, (NEW, "computed in this pass"), (CACHED, "found in the KV cache"))
    return ax


class _Pass:
    """One pass, drawn from top to bottom: y grows from the tokens to the next token."""

    def __init__(self, step: GenerationStep, labels: Sequence[str], config: PreTrainedConfig) -> None:
        self.step, self.labels, self.config = step, labels, config
        self.read = step.input_ids.shape[1]
        self.cached = step.kv_length - self.read
        self.columns = _some(step.kv_length)
        self.queries = [p for p in self.columns if p is None or p >= self.cached]
        if self.queries[0] is None:
            self.queries.pop(0)
        self.width = max(len(self.columns), 6.4)
        self.height = 12.2 + 0.62 * len(self.queries)

    def draw(self, ax: Axes | None, left: float, title: str) -> None:
        self.ax, self.left = ax, left
        ax.text(left - 0.05, -0.75, title, fontsize=10, fontweight="bold", va="center")
        y = self.tokens(0.35)
        y = self.layers(y)
        self.results(y)

    def tokens(self, y: float) -> float:
        read = self.read
        self.caption(y, f"input_ids [1, {read}]" + (": the token just chosen" if self.cached else ""))
        for x, position in self.places():
            given = position >= self.cached
            self.cell(x, y + 0.3, 0.9, 0.72, NEW if given else None, dashed=not given)
            label = drawable(self.labels[position][:9])
            size = 8 if len(label) <= 5 else 6.6 if len(label) <= 7 else 5.6
            self.ax.text(
                x + 0.45, y + 0.66, label, ha="center", va="center", fontsize=size, color=INK if given else MUTED
            )
        self.caption(y + 1.62, f"position_ids [1, {read}]")
        for x, position in self.places():
            if position >= self.cached:
                self.ax.text(x + 0.45, y + 2.05, str(position), ha="center", va="center", fontsize=8)
        self.arrows(y + 2.35, y + 2.95)
        return y + 2.95

    def layers(self, y: float) -> float:
        config, queries = self.config, self.queries
        bottom = y + 3.2 + 0.62 * len(queries)
        self.frame(y, bottom)
        heads, head_dim = config.num_key_value_heads, _head_dim(config)
        kept = f"[1, {heads}, {self.step.kv_length}, {head_dim}]"
        self.caption(y + 0.4, f"in each of {config.num_hidden_layers} layers: KV cache {kept}")
        for x, position in self.places():
            self.cell(x, y + 0.68, 0.9, 0.6, CACHED if position < self.cached else NEW)
        scores = f"[1, {config.num_attention_heads}, {self.read}, {self.step.kv_length}]"
        self.caption(y + 1.78, f"attention, one row per query {scores}")
        for row, query in enumerate(queries):
            top = y + 2.05 + 0.62 * row
            for x, key in self.places():
                if query is None:
                    self.ax.text(x + 0.45, top + 0.25, "⋮", ha="center", va="center", fontsize=8, color=MUTED)
                elif key <= query:
                    self.cell(x + 0.2, top, 0.5, 0.5, NEW)
                else:
                    self.ax.text(x + 0.45, top + 0.27, "·", ha="center", va="center", fontsize=9, color=MUTED)
        self.caption(bottom - 0.42, "MLP, each position by itself")
        self.arrows(bottom, bottom + 0.6)
        return bottom + 0.6

    def results(self, y: float) -> None:
        config = self.config
        self.caption(y + 0.5, f"hidden_states [1, {self.read}, {config.hidden_size}]")
        needed = ", only the last row is needed" if self.read > 1 else ""
        self.caption(y + 2.25, f"logits [1, {self.read}, {config.vocab_size}]{needed}")
        for x, position in self.places():
            if position < self.cached:
                continue
            self.cell(x + 0.2, y + 0.75, 0.5, 0.8, NEW)
            last = position == self.step.kv_length - 1
            self.cell(x + 0.2, y + 2.5, 0.5, 0.8, NEW if last else None, dashed=not last)
            if last:
                self.head(x + 0.45, y + 3.3, y + 3.8)
                self.chosen(x + 0.45, y + 4.25)

    def chosen(self, x: float, y: float) -> None:
        chip = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": INK, "lw": 1}
        token = drawable(self.step.token)
        self.ax.text(x, y, token, ha="center", va="center", fontsize=9, fontweight="bold", bbox=chip)
        self.ax.text(x - 0.95, y, "next token", ha="right", va="center", fontsize=7.5, color=MUTED)

    def places(self) -> Iterator[tuple[float, int]]:
        """(x, position) of every column that stands for one position; the ellipsis is left out."""
        for n, position in enumerate(self.columns):
            if position is not None:
                yield self.left + n, position

    def caption(self, y: float, text: str) -> None:
        self.ax.text(self.left + 0.02, y, text, fontsize=7.5, color=MUTED, va="center")
        if None in self.columns:
            x = self.left + self.columns.index(None) + 0.45
            if text.startswith("input_ids"):
                self.ax.text(x, y + 0.66, "…", ha="center", va="center", fontsize=9, color=MUTED)

    def cell(self, x: float, y: float, width: float, height: float, color: Any, *, dashed: bool = False) -> None:
        from matplotlib.patches import Rectangle

        style = {"facecolor": "white", "edgecolor": RULE, "lw": 1}
        if color:
            style |= {"facecolor": _tint(color), "edgecolor": color}
        if dashed:
            style["ls"] = (0, (2, 2))
        self.ax.add_patch(Rectangle((x, y), width, height, **style))

    def frame(self, top: float, bottom: float) -> None:
        from matplotlib.patches import FancyBboxPatch

        box = FancyBboxPatch(
            (self.left - 0.25, top),
            self.width + 0.2,
            bottom - top,
            boxstyle="round,pad=0,rounding_size=0.25",
            facecolor="none",
            edgecolor=INK,
            lw=1.1,
        )
        self.ax.add_patch(box)

    def arrows(self, top: float, bottom: float) -> None:
        for x, position in self.places():
            if position >= self.cached:
                self.head(x + 0.45, top, bottom)

    def head(self, x: float, top: float, bottom: float) -> None:
        style = {"arrowstyle": "-|>", "color": INK, "lw": 1, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7}
        self.ax.annotate("", (x, bottom), (x, top), arrowprops=style)


def plot_mask(
    visible: Any, queries: Sequence[str], keys: Sequence[str], *, title: str = "", ax: Axes | None = None
) -> Axes:
    """Which keys each query may attend to, as what the mask adds to each score. Returns the Axes.

    `visible` is bool `[query, key]`; `queries` and `keys` are the tokens of its rows and columns.

    Raises `BadInputError` if the shape does not match the tokens.

    >>> import torch
    >>> ax = plot_mask(torch.tensor([[True, False], [True, True]]), ["a", "b"], ["a", "b"])
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('key (attended to)', 'query (attends)')
    """
    visible = axes("visible", visible, "query", "key")
    queries, keys = several("queries", queries, "tokens"), several("keys", keys, "tokens")
    if tuple(visible.shape) != (len(queries), len(keys)):
        raise BadInputError(
            f"visible has the shape {list(visible.shape)}, but {len(queries)} queries and {len(keys)} keys need "
            f"[{len(queries)}, {len(keys)}]."
        )
    from matplotlib.colors import ListedColormap

    ax = new_axes(ax, 1.9 + 0.46 * len(keys), 1.5 + 0.4 * len(queries))
    ax.imshow(visible.numpy(force=True), cmap=ListedColormap(["#f0f2f4", OKABE_ITO["sky"]]), vmin=0, vmax=1)
    for query, row in enumerate(visible.tolist()):
        for key, sees in enumerate(row):
            text, color = ("0", INK) if sees else ("−∞", MUTED)
            ax.text(key, query, text, ha="center", va="center", fontsize=8, color=color)
    ax.set_xticks(range(len(keys)), [drawable(token) for token in keys], rotation=45, ha="left", color=INK)
    ax.set_yticks(range(len(queries)), [drawable(token) for token in queries])
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="key (attended to)", ylabel="query (attends)", title=drawable(title or "What is added to each score"))
    return ax


def plot_scores(
    scores: Any, tokens: Sequence[str], *, title: str = "", weights: bool = False, ax: Axes | None = None
) -> Axes:
    """What one head computes for each query and key, as a heat map that contains the numbers. Returns the Axes.

    `scores [query, key]` are its scores, or with `weights` its attention weights. Colours run from 0 to 1 for weights,
    otherwise from the lowest to the highest number. A masked score, -inf, is grey. `tokens` are the labels of both
    axes.

    Raises `BadInputError` if the shape does not match the tokens.

    >>> import torch
    >>> ax = plot_scores(torch.tensor([[1.0, -torch.inf], [2.0, 3.0]]), ["a", "b"], title="Masked")
    >>> [text.get_text() for text in ax.texts]
    ['1.0', '−∞', '2.0', '3.0']
    """
    from matplotlib import colormaps

    scores, tokens = axes("scores", scores, "query", "key"), several("tokens", tokens, "tokens")
    if tuple(scores.shape) != (len(tokens), len(tokens)):
        raise BadInputError(
            f"scores has the shape {list(scores.shape)}, but {len(tokens)} tokens need [{len(tokens)}, {len(tokens)}]."
        )
    finite = scores[scores.isfinite()]
    low, high = (0.0, 1.0) if weights else (float(finite.min()), float(finite.max()))
    ax = new_axes(ax, 1.5 + 0.5 * len(tokens), 1.3 + 0.42 * len(tokens))
    colours = colormaps[WEIGHTS_COLORMAP].with_extremes(bad="#f0f2f4")
    ax.imshow(scores.float().numpy(force=True), cmap=colours, vmin=low, vmax=high, aspect="auto")
    for query, row in enumerate(scores.tolist()):
        for key, score in enumerate(row):
            masked = score == -inf
            dark = not masked and score - low < 0.55 * (high - low)
            text = "−∞" if masked else f"{score:.2f}" if weights else f"{score:.1f}"
            color = MUTED if masked else "white" if dark else "black"
            ax.text(key, query, text, ha="center", va="center", fontsize=8, color=color)
    labels = [drawable(token) for token in tokens]
    ax.set_xticks(range(len(tokens)), labels, rotation=45, ha="right", rotation_mode="anchor", color=INK, fontsize=8)
    ax.set_yticks(range(len(tokens)), labels, fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="key (attended to)", ylabel="query (attends)", title=drawable(title))
    return ax


def plot_dials(
    frequencies: Any,
    *,
    pairs: Sequence[int] = (0, 2, 4, 6, 10, 31),
    positions: int = 12,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Some of rotary embedding's pairs as clock dials: where the hand stands at each of the first positions.

    `frequencies [pair]` are the angles by which a pair rotates from one position to the next, in radians (`inv_freq` in
    `transformers`); `pairs` says which of them to draw. After a full circle the dots continue further out. Returns the
    Axes.

    Raises `BadInputError` for a pair that is not there.

    >>> plot_dials([1.0, 0.5, 0.25], pairs=(0, 2), positions=4).get_title()
    'Where the hand stands at positions 0 to 3'
    """
    frequencies = _numbers("frequencies", frequencies)
    pairs = several("pairs", pairs, "numbers of pairs")
    missing = [pair for pair in pairs if not 0 <= pair < len(frequencies)]
    if missing:
        raise BadInputError(f"There is no pair {missing[0]}: there are pairs 0 to {len(frequencies) - 1}.")
    columns = min(6, len(pairs))
    rows = ceil(len(pairs) / columns)
    ax = new_axes(ax, 0.6 + 1.2 * columns, 0.4 + 1.5 * rows)
    for n, pair in enumerate(pairs):
        dots = _dial(ax, 2.7 * (n % columns), 3.6 * (n // columns), pair, frequencies[pair], positions)
    ax.set(xlim=(-1.4, 2.7 * (columns - 1) + 1.4), ylim=(3.6 * (rows - 1) + 1.3, -2.1), aspect="equal")
    ax.set_title(drawable(title or f"Where the hand stands at positions 0 to {positions - 1}"))
    ax.set_axis_off()
    bar = ax.figure.colorbar(dots, ax=ax, shrink=0.8, label="position", ticks=[0, (positions - 1) // 2, positions - 1])
    bar.outline.set_visible(False)
    return ax


def _dial(ax: Axes, x: float, y: float, pair: int, frequency: float, positions: int) -> Any:
    """One dial with its centre at (x, y) and 12 o'clock at the top; y grows downwards."""
    from matplotlib.patches import Circle

    ax.add_patch(Circle((x, y), 1, facecolor="none", edgecolor=RULE, lw=1))
    angles = [frequency * position for position in range(positions)]
    radius = [1 + 0.14 * (angle // (2 * pi)) for angle in angles]
    ax.plot([x, x + sin(angles[-1])], [y, y - cos(angles[-1])], color=INK, lw=1.2, zorder=1)
    period = 2 * pi / frequency
    ax.text(x, y - 1.85, f"pair {pair}", ha="center", va="center", fontsize=9, fontweight="bold")
    circle = f"{period:,.0f}" if period >= 1000 else f"{period:.3g}"
    ax.text(x, y - 1.42, f"a circle in {circle}", ha="center", va="center", fontsize=8, color=MUTED)
    return ax.scatter(
        [x + r * sin(angle) for r, angle in zip(radius, angles, strict=True)],
        [y - r * cos(angle) for r, angle in zip(radius, angles, strict=True)],
        c=range(positions),
        cmap=WEIGHTS_COLORMAP,
        s=22,
        edgecolor="white",
        lw=0.6,
        zorder=2,
    )


def _numbers(name: str, values: Any) -> list[float]:
    return [number(name, value) for value in several(name, plain(name, values), "numbers")]


def plot_periods(frequencies: Any, context: int, *, title: str = "", ax: Axes | None = None) -> Axes:
    """How many positions each rotary pair needs for one full circle, beside the model's context. Returns the Axes.

    `frequencies [pair]` as in `plot_dials`; `context` in positions.

    >>> plot_periods([1.0, 0.5, 0.25], 2048).get_xlabel()
    'pair'
    """
    whole_number("context", context, least=1)
    turned = _numbers("frequencies", frequencies)
    if not turned or not all(frequency > 0 for frequency in turned):
        raise BadInputError(f"frequencies are angles above 0, not {shown(frequencies)}.")
    periods = [2 * pi / frequency for frequency in turned]
    ax = new_axes(ax, 5.8, 2.6)
    for inside, name, color in ((True, "within the context", "blue"), (False, "longer than the context", "vermillion")):
        pairs = [pair for pair, period in enumerate(periods) if (period <= context) is inside]
        label = f"{name}: {len(pairs)} pairs"
        ax.bar(pairs, [periods[pair] for pair in pairs], 0.7, color=OKABE_ITO[color], label=label)
    ax.axhline(context, color=INK, lw=1, label=f"context: {context:,}")
    ax.set_yscale("log")
    ax.set(xlim=(-0.6, len(periods) - 0.4), xlabel="pair", ylabel="positions in a full circle")
    ax.set_title(drawable(title or "How long one full circle takes"))
    ax.legend(loc="upper left", fontsize=8.5)
    return ax


def plot_by_layer(values: Any, *, before: Any = None, label: str = "", title: str = "", ax: Axes | None = None) -> Axes:
    """One bar per layer, for one series or several. Returns the Axes.

    `values` maps a series' name to its numbers, layer 0 first; `before` is drawn as a line for comparison.

    Raises `BadInputError` when there is nothing to draw or the series differ in length.

    >>> ax = plot_by_layer({"attention": [0.1, 0.5, 0.9]}, label="p", title="Through the layers")
    >>> ax.get_title(), ax.get_ylabel()
    ('Through the layers', 'p')
    """
    values = {
        name: several(f"values[{name!r}]", plain(name, series), "numbers")
        for name, series in named("values", values, "the layers' numbers", empty=True).items()
    }
    lengths = {len(series) for series in values.values()}
    if len(lengths) != 1 or 0 in lengths:
        found = {name: len(series) for name, series in values.items()}
        raise BadInputError(f"Each series needs one number per layer; these have {found} numbers.")
    ax = new_axes(ax, 7.2, 2.8)
    width = 0.84 / len(values)
    for n, ((name, series), color) in enumerate(zip(values.items(), cycle(["blue", "orange", "green"]), strict=False)):
        left = [layer - 0.42 + n * width for layer in range(len(series))]
        ax.bar(left, series, width, align="edge", color=OKABE_ITO[color], label=drawable(name))
    if before is not None:
        ax.axhline(before, color=INK, lw=1, label="unchanged")
    ax.set(xlim=(-0.7, lengths.pop() - 0.3), xlabel="layer", ylabel=drawable(label), title=drawable(title))
    ax.legend(ncols=len(values) + 1, loc="upper center", bbox_to_anchor=(0.5, -0.24), fontsize=8.5)
    return ax


def _some(count: int) -> list[int | None]:
    """The positions to draw: all, or the first three and the last four with None for those in between."""
    if count <= MOST_COLUMNS:
        return list(range(count))
    return [0, 1, 2, None, *range(count - 4, count)]


def _head_dim(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _tint(color: str) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return tuple(1 - 0.35 * (1 - channel) for channel in to_rgb(color))


def _canvas(ax: Axes, width: float, height: float) -> Axes:
    """Axes for a drawing of `width` columns and `height` lines."""
    ax = new_axes(ax, 0.3 + 0.52 * width, 0.36 * height)
    ax.set(xlim=(-0.35, width + 0.1), ylim=(height - 0.4, -1.3))
    ax.set_axis_off()
    return ax


def _legend(ax: Axes, *entries: Any) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=_tint(color), edgecolor=color, label=text) for color, text in entries]
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=len(handles), fontsize=8.5)
