"""A KV cache as a picture: layers by positions, and how it grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy
import torch
from transformers import DynamicCache

from helpers.checks import language_model
from helpers.errors import BadInputError
from helpers.inside.generation import generate_steps
from helpers.inside.kv_cache import KVCacheNorms, kv_cache_norms
from helpers.models.cache_size import kv_cache_bytes, layer_caches
from helpers.text.prompts import prompt_ids
from helpers.text.tokens import token_table
from helpers.views.modules import front
from helpers.views.plots import MOST_LABELS
from helpers.views.style import INK, MUTED, WEIGHTS_COLORMAP, colormap, drawable, new_axes
from helpers.views.widget import HERE, CourseWidget, StepByStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from torch import Tensor
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

    from helpers.text.tokens import TokenRow

MOST_POSITIONS = 160  # positions that the page gets: for a longer text, the last ones


def plot_kv_cache(
    past_key_values: Cache, *, tokens: Sequence[str] | None = None, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """The norms of a cache's keys and values, layer by layer and position by position. Returns the Axes.

    `past_key_values` is a `Cache` of `transformers` (see `kv_cache_norms` for which part of it is drawn) or a
    `KVCacheNorms`; `tokens` are labels of its positions. Keys are on the left and values on the right, each
    with colours from 0 to its own largest norm; layer 0 is at the bottom. What a layer does not hold (before its
    window, or at all) is left white. Without a `title` the figure says how many layers and positions there are.

    Raises what `kv_cache_norms` raises, and `BadInputError` if there is not one token per position.

    >>> import torch
    >>> plot_kv_cache(model(torch.tensor([[100, 200, 300]])).past_key_values).get_ylabel()
    'layer'
    """
    norms = (
        past_key_values if isinstance(past_key_values, KVCacheNorms) else kv_cache_norms(past_key_values, aligned=True)
    )
    layers, length = norms.keys.shape
    if tokens is not None and len(tokens) != length:
        raise BadInputError(f"The cache holds {length} positions, but there are {len(tokens)} tokens.")
    shift = length + max(1, length // 12)  # where the values begin
    ax = new_axes(ax, min(11.0, 4.2 + 0.26 * length), min(5.2, 1.9 + 0.085 * layers))
    for part, left in (("values", shift), ("keys", 0)):
        shown = getattr(norms, part).numpy(force=True)
        picture = ax.imshow(
            shown,
            cmap=WEIGHTS_COLORMAP,
            vmin=0,
            vmax=float(numpy.nanmax(shown, initial=0)) or 1,
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            extent=(left - 0.5, left + length - 0.5, -0.5, layers - 0.5),
        )
        ax.figure.colorbar(picture, ax=ax, shrink=0.75, pad=0.015, label=f"norm of {part}").outline.set_visible(False)
        ax.text(left + (length - 1) / 2, layers - 0.2, part, ha="center", va="bottom", color=MUTED)
    every = -(-length // MOST_LABELS)
    labels = [str(position) for position in range(length)] if tokens is None else [drawable(t) for t in tokens]
    places = range(0, length, every)
    ticks = [left + place for left in (0, shift) for place in places]
    ax.set_xticks(ticks, [labels[place] for place in places] * 2, rotation=90, fontsize=8 if length <= 24 else 6.5)
    ax.tick_params(axis="x", labelcolor=INK, length=0)
    ax.set_xlim(-0.5, shift + length - 0.5)
    ax.set_ylim(-0.5, layers - 0.5)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="position", ylabel="layer")
    title = f"KV cache: {layers} layers, {length} positions" if title is None else drawable(title)
    ax.set_title(title, pad=20)
    return ax


class CacheSteps(StepByStep):
    """A generation whose cache can be inspected after each step; `kv_cache_explorer` draws it.

    `steps` are the `GenerationStep`s made so far, `index` the one shown and `norms` the `KVCacheNorms` of all
    positions so far. A cache only grows at its end, so an earlier step is its left part.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Any, **generation: Any
    ) -> None:
        self.tokenizer, self.config = tokenizer, language_model("model", model).config.get_text_config()
        self.prompt_ids = prompt_ids(tokenizer, prompt)
        if "past_key_values" in generation:
            raise BadInputError("The explorer makes its own cache: leave out past_key_values.")
        self._cache = DynamicCache(config=self.config)
        settings = {"max_new_tokens": 40, **generation}
        self._iterator = generate_steps(model, tokenizer, self.prompt_ids, past_key_values=self._cache, **settings)
        self.steps, self.index = [], 0
        self.norms: KVCacheNorms | None = None
        self._windows = [window for _, window in layer_caches(self.config)]
        self._make_step()

    def _make_step(self) -> None:
        """Make one more step, which adds a position to every layer of the cache."""
        self.steps.append(next(self._iterator))
        now, before = kv_cache_norms(self._cache, aligned=True), self.norms
        if before is not None:  # earlier steps still need the positions that have left a window since then
            for part in ("keys", "values"):
                old, new = getattr(before, part), getattr(now, part)
                seen = old.shape[1]
                new[:, :seen] = new[:, :seen].where(new[:, :seen].isfinite(), old)
        self.norms = now

    def _rows(self) -> list[TokenRow]:
        """The `TokenRow`s of the positions that the cache holds in this step."""
        ids = self.prompt_ids[0].tolist() + [step.token_id for step in self.steps[: self.index]]
        return token_table(self.tokenizer, ids)

    def _norms(self, first: int = 0) -> KVCacheNorms:
        """The `KVCacheNorms` of this step, from position `first` on."""
        last = self.step.kv_length
        norms = [part[:, :last].clone() for part in (self.norms.keys, self.norms.values)]
        for layer, window in enumerate(self._windows):
            if window is not None:
                for part in norms:
                    part[layer, : max(last - window, 0)] = torch.nan
        return KVCacheNorms(*(part[:, first:] for part in norms))

    def _bytes(self, length: int) -> int:
        """Bytes of the cache after `length` positions."""
        return kv_cache_bytes(self.config, length, dtype=self._held[0].dtype)

    @property
    def _held(self) -> tuple[Any, int | None]:
        """The keys of the first layer that keeps any, and the most positions that it keeps (None without a limit)."""
        layers = zip(self._cache.layers, self._windows, strict=True)
        keys = ((getattr(layer, "keys", None), window) for layer, window in layers)
        return next((of_layer, window) for of_layer, window in keys if of_layer is not None)

    def view(self) -> dict[str, Any]:
        """What the page draws."""
        length, start = self.step.kv_length, self.prompt_ids.shape[1]
        first = max(0, length - MOST_POSITIONS)
        norms = self._norms(first)
        keys, window = self._held
        return {
            "kind": "cache",
            "first": first,
            "length": length,
            "fresh": self.step.input_ids.shape[1],
            "tokens": [
                {"label": row.label, "id": row.token_id, "special": row.special, "step": row.position - start}
                for row in self._rows()[first:]
            ],
            "keys": _rounded(norms.keys),
            "values": _rounded(norms.values),
            "shape": [*keys.shape[:2], length if window is None else min(length, window), keys.shape[3]],
            "layers": norms.keys.shape[0],
            "bytes": self._bytes(length),
            "growth": self._bytes(length) - self._bytes(length - 1),
            "index": self.index,
            "last": len(self.steps) - 1,
            "forward": self.can_go_forward,
            "token": self.step.token,
            "colors": colormap(),
        }

    def figure(self) -> Axes:
        """The still picture: the cache in this step; of many positions the last ones, so that labels can be read."""
        first = max(0, self.step.kv_length - MOST_POSITIONS)
        ax = plot_kv_cache(self._norms(first), tokens=[row.label for row in self._rows()[first:]])
        ax.set_title(f"KV cache after step {self.index}: {self.step.kv_length} positions", pad=20)
        return ax

    def describe(self) -> str:
        """The still picture in words."""
        view = self.view()
        return (
            f"kv_cache_explorer at step {self.index}: {view['layers']} layers, keys {view['shape']}, "
            f"{view['bytes']:,} bytes; next: {self.step.token}"
        )


def _rounded(tensor: Tensor) -> list[list[float]]:
    """Rows for the page; None where a layer holds no vector, since JSON has no NaN."""
    return [[None if value != value else round(value, 3) for value in row] for row in tensor.tolist()]


class CacheWidget(CourseWidget):
    """The live page of `kv_cache_explorer`, drawn by `cache.js`."""

    _esm = front("cache.js")
    _css = CourseWidget._css + (HERE / "cache.css").read_text(encoding="utf-8")


def kv_cache_explorer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Any, **generation: Any
) -> CacheWidget:
    """A widget that generates one token at a time and shows the KV cache growing: layers by positions.

    Colours show the norms of keys and values (`kv_cache_norms`); the positions that a step adds are framed. Use the
    arrow keys or the pointer to read single cells. `generation` are settings of `generate_steps` (`max_new_tokens`, 40
    if not given, `do_sample`, `seed`, …). Without a kernel the cell shows a still picture of the cache after the
    prompt.

    Raises what `generate_steps` raises, and `BadInputError` for `past_key_values`, because it makes its own cache.

    >>> explorer = kv_cache_explorer(model, tokenizer, "The sky is", max_new_tokens=2)
    >>> explorer.state.step.kv_length
    3
    """
    return CacheWidget(CacheSteps(model, tokenizer, prompt, **generation))
