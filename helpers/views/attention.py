"""An interactive view of every attention pattern of a run: all heads at a glance, one of them in detail.

A weight is sent to the page as one byte that holds its square root (so that small weights keep their digits),
and only where a query may attend: the causal triangle. Layers are sent when the page requests them, without
the mean over heads, which the page computes itself. The weights stay on the device where they are, and what is drawn
is computed there: only bytes are moved.
"""

from __future__ import annotations

import io
import math
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import adaptive_max_pool2d

from helpers.checks import shown
from helpers.errors import BadInputError
from helpers.inside.heads import attention_rollout, check_attentions, refusing_without_memory
from helpers.views.heads import plot_attention_on_picture
from helpers.views.modules import front
from helpers.views.plots import MOST_LABELS, numbered
from helpers.views.style import INK, MUTED, OKABE_ITO, WEIGHTS_COLORMAP, drawable
from helpers.views.widget import HERE, Commands, CourseWidget, in_words

if TYPE_CHECKING:
    from helpers.inside.tracing import Trace

GLANCE = 24  # queries and keys of a small picture; for a longer prompt a cell shows the largest weight in its area
PICTURE_SIDE = 336  # pixels along the side of a picture that is sent to the page
STILL_SIDE = 72  # the same in the still picture


class AttentionMap(Commands):
    """The attentions of a `Trace`, layer by layer, in the form that the page needs; `attention_explorer` draws it.

    A layer is drawn as `planes`: one per head, then their mean, then (if the trace has all layers and
    queries) the attention rollout up to that layer.
    """

    commands = ("layer",)

    def __init__(self, trace, *, layer=None, head=None, picture=None):
        check_attentions(trace)
        trace = replace(trace, hidden_states=None, logits=None, last_residual=None, outputs={}, inputs={})
        self.trace = trace
        self.layers = trace.attention_layers
        heads = trace.attentions.shape[1]
        whole = self.layers == tuple(range(len(self.layers))) and trace.positions == tuple(range(len(trace.tokens)))
        self.planes = (*map(str, range(heads)), "mean", *(["rollout"] if whole else []))
        self._rollout = attention_rollout(trace.attentions) if whole else None
        self._is_small = max(trace.attentions.shape[-2:]) <= GLANCE  # then the small pictures show everything
        self.start = self._start(layer, head)
        self.picture = None if picture is None else _square(picture)
        self.grid = _grid(trace)
        if picture is not None and trace.patch_index is None:
            raise BadInputError("There was no picture in this prompt: leave picture out, or trace with pixel_values.")

    def _start(self, layer, head):
        """The indices of the row and the plane that are shown first."""
        layer = self.layers[0] if layer is None else layer
        head = "0" if head is None else str(head)
        if layer not in self.layers:
            raise BadInputError(f"There is no layer {shown(layer)} in this trace; there are: {_span(self.layers)}.")
        if head not in self.planes:
            raise BadInputError(f"There is no head {shown(head)} here; there are: {', '.join(self.planes)}.")
        return self.layers.index(layer), self.planes.index(head)

    def _refusing(self):
        """Turns running out of memory, while the planes of a layer are computed, into a `DoesNotFitError`."""
        attentions = self.trace.attentions
        needed = 4 * len(self.planes) * attentions[0, 0].numel()
        return refusing_without_memory("attention_explorer", needed, attentions.device)

    def weights(self, row):
        """All planes of a row of `layers`: `[plane, query, key]`, float32, on the device of the attentions."""
        heads = self.trace.attentions[row].float()
        parts = [heads, heads.mean(dim=0, keepdim=True)]
        if self._rollout is not None:
            parts.append(self._rollout[row : row + 1])
        return torch.cat(parts)

    def layer(self, row):
        """The answer to the page's request: the row's number, and its packed weights, all planes except the mean."""
        if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < len(self.layers):
            raise BadInputError(f"There is no row {shown(row)}: this trace has {len(self.layers)} layers.")
        sent = [name != "mean" for name in self.planes]
        with self._refusing():
            return {"row": row}, pack_layer(self.weights(row)[sent], self.trace.positions)

    def glance(self, most=GLANCE):
        """Small pictures of all planes of all layers, bytes `[layer, plane, query, key]` on the CPU, at most `most` per
        side."""
        size = tuple(min(most, side) for side in self.trace.attentions.shape[-2:])
        with self._refusing():
            return as_bytes(torch.stack([_pooled(self.weights(row), size) for row in range(len(self.layers))])).cpu()

    def view(self):
        """What the page draws. Bytes are sent as they are, next to the other values."""
        trace = self.trace
        glance = self.glance()
        return {
            "kind": "attention",
            "tokens": list(trace.tokens),
            "queries": list(trace.positions),
            "layers": list(self.layers),
            "planes": list(self.planes),
            "glance": zlib.compress(glance.numpy().tobytes()),
            "side": list(glance.shape[-2:]),
            "row": self.start[0],
            "plane": self.start[1],
            "first": b"" if self._is_small else self.layer(self.start[0])[1],
            "patches": trace.patch_index.tolist() if self.grid else None,
            "grid": self.grid,
            "picture": self.picture,
            "colors": colors(),
        }

    def figure(self):
        """The still picture: all heads at a glance, and the head that is shown first."""
        with self._refusing():
            return plot_heads_at_a_glance(self)

    def describe(self):
        """The still picture in words."""
        row, plane = self.start
        layers, heads = self.trace.attentions.shape[:2]
        return (
            f"attention_explorer: {layers} layers x {heads} heads, {len(self.trace.tokens)} tokens; "
            f"it begins with layer {self.layers[row]}, {_name(self.planes[plane])}"
        )


def _pooled(weights, size):
    """The largest weight in each field, `[plane, *size]`, where `weights [plane, query, key]` are."""
    if weights.is_mps:  # Apple's GPUs only have this for sides that are a multiple of `size`
        weights = weights.cpu()
    return adaptive_max_pool2d(weights, size)


def as_bytes(weights):
    """Weights from 0 to 1 as bytes: 255 times the square root, rounded. uint8, same shape."""
    return weights.float().clamp(0, 1).sqrt().mul(255).round().to(torch.uint8)


def pack_layer(weights, positions):
    """`weights [plane, query, key]` as compressed bytes for the page: for the query at position p, keys 0 to p.

    Short prompts are compressed harder, which takes only a few milliseconds per layer.
    """
    sees = _sees(weights, positions)
    return zlib.compress(as_bytes(weights)[:, sees].cpu().numpy().tobytes(), 6 if weights.shape[-1] <= 128 else 1)


def _sees(weights, positions):
    """Which keys come no later than the query: bool `[query, key]`, where `weights [..., query, key]` are."""
    device = weights.device
    return torch.arange(weights.shape[-1], device=device) <= torch.tensor(positions, device=device)[:, None]


def colors():
    """The colour of each byte, `#rrggbb`: the course's colour map for weights, here applied to the square root."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(color) for color in colormaps[WEIGHTS_COLORMAP](range(256))]


def _span(numbers):
    whole = numbers == tuple(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]} to {numbers[-1]}" if whole and len(numbers) > 2 else ", ".join(map(str, numbers))


def _grid(trace):
    """The rows and columns of a picture's patches; None without a picture, or if the patches do not form a square."""
    patches = 0 if trace.patch_index is None else int((trace.patch_index >= 0).sum())
    side = math.isqrt(patches)
    return [side, side] if patches and side * side == patches else None


def _name(plane):
    return f"head {plane}" if plane.isdigit() else {"mean": "mean over heads"}.get(plane, plane)


def _square(picture):
    """A picture as the model got it, resized to a square, as PNG bytes."""
    from PIL import Image

    from helpers.text.pictures import open_picture

    kept = io.BytesIO()
    square = open_picture(picture).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC)
    square.save(kept, "PNG")
    return kept.getvalue()


def plot_heads_at_a_glance(attention_map, *, axes=None):
    """All planes of all layers as small pictures, with the plane that is shown first beside them. Returns the first
    Axes.

    `attention_map` is an `AttentionMap`; colours show the square root of the weight. With a picture, a third
    panel shows where on it the last query attends in that plane. `axes`: two Axes, or three.
    """
    import numpy
    from matplotlib import colormaps, pyplot

    small = attention_map.glance(9).numpy() // 32 * 32  # fewer colours: a smaller file
    layers, planes, *side = small.shape
    shade = colormaps[WEIGHTS_COLORMAP](small)
    hidden = numpy.triu(numpy.ones(side, dtype=bool), 1) & (small == 0).all(axis=(0, 1))
    shade[:, :, hidden] = 1
    tiles = numpy.pad(shade, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1)
    height, width = side[0] + 2, side[1] + 2
    sheet = tiles.transpose(1, 2, 0, 3, 4).reshape(planes * height, layers * width, 4)
    first, second, *third = _still_axes(layers, attention_map.picture is not None) if axes is None else axes
    first.imshow(sheet, aspect="auto", interpolation="nearest")
    every = max(1, layers // 15)
    places = range(0, layers, every)
    first.set_xticks([(n + 0.5) * width for n in places], [attention_map.layers[n] for n in places], fontsize=8)
    first.set_yticks([(n + 0.5) * height for n in range(planes)], attention_map.planes, fontsize=8)
    first.tick_params(length=0)
    first.spines[:].set_visible(False)
    first.set(xlabel="layer", ylabel="head", title="All heads at a glance")
    row, plane = attention_map.start
    corner = (row * width - 0.5, plane * height - 0.5)
    frame = pyplot.Rectangle(corner, width, height, fill=False, ec=OKABE_ITO["vermillion"], lw=2, clip_on=False)
    first.add_patch(frame)
    _plot_plane(second, attention_map, row, plane)
    if third and attention_map.picture is not None:
        _plot_on_picture(third[0], attention_map, row, plane)
    return first


def _still_axes(layers, with_picture):
    """The Axes of the small pictures, of the plane and of the picture. A row of many layers gets the whole width."""
    from matplotlib import pyplot

    if layers > 12:
        figure = pyplot.figure(figsize=(10.4, 7.4), layout="constrained")
        grid = figure.add_gridspec(2, 3)
        places = [grid[0, :], grid[1, :2], grid[1, 2]] if with_picture else [grid[0, :], grid[1, :]]
    else:
        figure = pyplot.figure(figsize=(10.4, 6.6), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.5), height_ratios=(1.3, 1))
        places = [grid[0, 0], grid[:, 1], grid[1, 0]] if with_picture else [grid[:, 0], grid[:, 1]]
    return [figure.add_subplot(place) for place in places]


def _labelled(trace, most):
    """The positions that get a label, at most `most`: with a picture all but its patches, and the first patch of each
    row; every n-th position without a picture, or where those are too many."""
    grid = _grid(trace)
    if grid:
        index = trace.patch_index.tolist()
        chosen = [position for position, patch in enumerate(index) if patch < 0 or patch % grid[1] == 0]
        if len(chosen) <= most:
            return chosen
    return list(range(0, len(trace.tokens), -(-len(trace.tokens) // most)))


def _plot_plane(ax, attention_map, row, plane):
    trace = attention_map.trace
    weights = attention_map.weights(row)[plane]
    drawn = as_bytes(weights).cpu()
    hidden = ~_sees(drawn, trace.positions)
    shown = (drawn // 16 * 16).float().masked_fill(hidden, float("nan"))
    ax.imshow(shown.numpy(), cmap=WEIGHTS_COLORMAP, vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    labels = [drawable(label if len(label) <= 14 else f"{label[:13]}…") for label in numbered(trace.tokens)]
    size = 7.5 if len(labels) <= 24 else 6.5
    most = MOST_LABELS if len(labels) <= 24 or _grid(trace) else 20
    keys = _labelled(trace, most)
    ax.set_xticks(keys, [labels[key] for key in keys], rotation=90, fontsize=size, color=INK)
    whole = trace.positions == tuple(range(len(labels)))
    some = keys if whole else range(0, len(trace.positions), -(-len(trace.positions) // most))
    ax.set_yticks(some, [labels[trace.positions[n]] for n in some], fontsize=size)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(f"Layer {attention_map.layers[row]}, {_name(attention_map.planes[plane])}")
    patches = "; ▦ row,column: a patch" if _grid(trace) else ""
    ax.set_xlabel(f"key (attended to{patches}); colour: square root of the weight", color=MUTED)
    ax.set_ylabel("query (attends)")


def _plot_on_picture(ax, attention_map, row, plane):
    from PIL import Image

    trace = attention_map.trace
    weights = attention_map.weights(row)[plane, -1].cpu()
    order = trace.patch_index[trace.patch_index >= 0].argsort()
    picture = Image.open(io.BytesIO(attention_map.picture)).convert("RGB").resize((STILL_SIDE, STILL_SIDE))
    label = trace.tokens[trace.positions[-1]][:14]
    plot_attention_on_picture(weights[trace.patch_index >= 0][order], picture, title=f"query: {label}", ax=ax)


class AttentionWidget(CourseWidget):
    """The live page of `attention_explorer`, drawn by `attention.js`."""

    _esm = front("attention.js")
    _css = CourseWidget._css + (HERE / "attention.css").read_text(encoding="utf-8")

    def _answer(self, _widget, wish, _buffers):
        """Send one layer to the page, as bytes; the rest of the view stays as it is."""
        try:
            about, packed = self.state.take(wish)
        except Exception as error:  # nothing else would report it on the page
            self.send({"error": in_words(error), "row": wish.get("row") if isinstance(wish, dict) else None})
        else:
            self.send(about, [packed])


def attention_explorer(
    trace: Trace, *, layer: int | None = None, head: int | str | None = None, picture: Any = None
) -> AttentionWidget:
    """A widget that shows every attention pattern of a run, and one of them in detail.

    `trace` is a `Trace` with `attentions [layer, head, query, key]`. Small pictures show all layers and
    heads, their mean in each layer, and the attention rollout (Abnar and Zuidema 2020). The chosen one is drawn
    as lines between tokens and as a matrix: point at a query to see the keys it attends to, or at a key to see
    the queries that attend to it; drag over the matrix to enlarge a part. `layer` and `head` (a number, "mean" or
    "rollout") are shown first. `picture` is the picture of the prompt (a path, bytes or a PIL image), for a trace
    with a `patch_index`: attention is then drawn over it. Without a kernel the cell shows a still picture.

    Raises `BadInputError` for a trace without attentions or with a cache, a layer or head that is not there, and
    a picture when the prompt had none; `BadImageError` for a file that is not a picture; `DoesNotFitError` when memory
    runs out.

    >>> from helpers.inside.tracing import trace
    >>> explorer = attention_explorer(trace(model, tokenizer, "The sky is"), layer=3, head=0)
    >>> explorer.picture()[:4]
    b'\\x89PNG'
    """
    return AttentionWidget(AttentionMap(trace, layer=layer, head=head, picture=picture))
