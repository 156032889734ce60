"""past_key_values: what it contains, how much memory it takes, and how to use it again.

Every decoder layer keeps the keys and values of all positions it has seen, `[batch, kv_head, position,
head_dim]` each, with the rotary embedding already in the keys. `transformers` holds them as
`past_key_values.layers[i].keys` and `.values`. Some architectures hold less. A layer with a sliding window keeps only
its last positions, latent attention (DeepSeek) keeps one compressed vector in place of keys, a layer without attention
keeps a state of fixed size, and a layer that reuses another layer's keys keeps nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from helpers.checks import plain, several, shown, whole_number
from helpers.errors import BadInputError
from helpers.models.cache_size import purely_causal, stored_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NO_KEYS = "No layer of this model keeps keys and values: each keeps a state of fixed size, however long the text is."
STATES = ("conv_states", "recurrent_states")  # what layers without attention keep, in transformers
_reading_on: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # what `_reads_on` found


@dataclass(frozen=True)
class LayerCache:
    """One layer's part of a KV cache: `keys` and `values` are shapes `[batch, kv_head, position, head_dim]`, or None if
    the cache keeps them packed or the layer keeps none. `nbytes` counts all tensors that hold keys and values,
    `state_nbytes` the state of fixed size that a layer without attention keeps in their place.

    >>> import torch
    >>> kv_cache_summary(model(torch.tensor([[100, 200]])).past_key_values).layers[0].keys
    (1, 3, 2, 64)
    """

    layer: int
    kind: str
    keys: tuple[int, ...] | None
    values: tuple[int, ...] | None
    dtype: str
    nbytes: int
    state_nbytes: int = 0


@dataclass(frozen=True, repr=False)
class KVCacheSummary:
    """A KV cache at a glance: `length` positions seen, `nbytes` of keys and values in all, each layer's `LayerCache`.

    `nbytes` equals what `kv_cache_bytes` computes for such a cache. If some layers keep a state of fixed size (Mamba,
    linear attention, convolutions), `state_nbytes` is needed in addition.

    >>> import torch
    >>> kv_cache_summary(model(torch.tensor([[100, 200]])).past_key_values).length
    2
    """

    length: int
    nbytes: int
    layers: tuple[LayerCache, ...]

    @property
    def state_nbytes(self) -> int:
        """Bytes of the states of fixed size, summed over all layers."""
        return sum(layer.state_nbytes for layer in self.layers)

    def __repr__(self) -> str:
        title = f"KV cache: {len(self.layers)} layers, {self.length} positions, {self.nbytes:,} bytes"
        if self.state_nbytes:
            title += f" and {self.state_nbytes:,} bytes of state"
        rows = [f"  {_span(group)}: {_describe(group[0])}" for group in _runs(self.layers)]
        return "\n".join([title, *rows])


def _runs(layers: Sequence[LayerCache]) -> list[list[LayerCache]]:
    """Consecutive layers that are alike, grouped."""
    groups = []
    for layer in layers:
        if groups and _describe(groups[-1][0]) == _describe(layer):
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def _span(group: list[LayerCache]) -> str:
    first, last = group[0].layer, group[-1].layer
    return f"layer {first}" if first == last else f"layers {first} to {last}, each"


def _describe(layer: LayerCache) -> str:
    if not layer.nbytes:
        state = f"a state of {layer.state_nbytes:,} bytes" if layer.state_nbytes else "nothing of its own"
        return f"{state} ({layer.kind})"
    shapes = "packed" if layer.keys is None else f"keys {list(layer.keys)}, values {list(layer.values)}"
    return f"{shapes}, {layer.dtype}, {layer.nbytes:,} bytes ({layer.kind})"


def kv_cache_summary(past_key_values: Any) -> KVCacheSummary:
    """Shapes and bytes of a KV cache, layer by layer: a `KVCacheSummary`.

    `past_key_values` is any `Cache` of `transformers` (dynamic, static, sliding, quantized, or with layers that keep
    no keys). Raises `BadInputError` for anything else and for a cache that has seen nothing yet.

    >>> import torch
    >>> from transformers import DynamicCache
    >>> cache = DynamicCache()
    >>> _ = cache.update(torch.zeros(1, 3, 5, 64), torch.zeros(1, 3, 5, 64), 0)
    >>> kv_cache_summary(cache)
    KV cache: 1 layers, 5 positions, 7,680 bytes
      layer 0: keys [1, 3, 5, 64], values [1, 3, 5, 64], float32, 7,680 bytes (DynamicLayer)
    """
    length = _check(past_key_values)
    layers = tuple(_layer_cache(index, layer) for index, layer in enumerate(past_key_values.layers))
    return KVCacheSummary(length, sum(layer.nbytes for layer in layers), layers)


def _layer_cache(index: int, layer: Any) -> LayerCache:
    held = {name: value for name, value in vars(layer).items() if name not in STATES}
    tensors = list(_tensors(held))
    dtype = getattr(layer, "dtype", None) or (tensors[0].dtype if tensors else "none")
    return LayerCache(
        layer=index,
        kind=type(layer).__name__,
        keys=_shape(getattr(layer, "keys", None)),
        values=_shape(getattr(layer, "values", None)),
        dtype=str(dtype).removeprefix("torch."),
        nbytes=sum(tensor.nbytes for tensor in tensors),
        state_nbytes=sum(tensor.nbytes for name in STATES for tensor in _tensors(getattr(layer, name, ()))),
    )


def _check(past_key_values: Any) -> int:
    """How many positions a cache has seen. Raises `BadInputError` for anything but a cache, and for an empty one."""
    if past_key_values is None:
        raise BadInputError("past_key_values is None: the model keeps no KV cache, or ran with use_cache=False.")
    if hasattr(past_key_values, "self_attention_cache"):
        raise BadInputError(
            f"This {type(past_key_values).__name__} holds two caches, one of what the model writes and one of what an "
            "encoder read: give the first of them, past_key_values.self_attention_cache."
        )
    if not hasattr(past_key_values, "layers") or not hasattr(past_key_values, "get_seq_length"):
        raise BadInputError(
            f"A KV cache is what a model gives as past_key_values; this is a {type(past_key_values).__name__}. "
            "Run model(input_ids, use_cache=True).past_key_values."
        )
    counted = [layer for layer in past_key_values.layers if hasattr(layer, "get_seq_length")]
    if past_key_values.layers and not counted:
        raise BadInputError(NO_KEYS)
    length = max((int(layer.get_seq_length()) for layer in counted), default=0)
    if length == 0:
        raise BadInputError("This KV cache is empty: give it to model(..., past_key_values=cache) first.")
    return length


def check_cache(past_key_values: Any, model: Any, needed: int) -> None:
    """Check that a cache can be used in a run of a model, with room for `needed` positions, including those it holds.

    Raises `BadInputError` for anything but a cache, for the cache of another model or of several texts, for one whose
    layers have not all seen the same positions, and for one of fixed size that is too short: transformers would write
    past its end, or forget positions that a layer should still see. Also for a model that has no keys to cache, such
    as one with linear attention only.
    """
    from transformers import Cache, DynamicCache
    from transformers.cache_utils import StaticLayer

    layers = getattr(past_key_values, "layers", None)
    if not isinstance(past_key_values, Cache) or layers is None:
        raise BadInputError(
            f"past_key_values is a Cache of transformers, such as DynamicCache(config=model.config), not "
            f"{shown(past_key_values)}."
        )
    expected = DynamicCache(config=model.config).layers
    if not any(hasattr(layer, "get_seq_length") for layer in expected):
        raise BadInputError(f"{NO_KEYS} There is no KV cache to continue from.")
    storing = [number for number, layer in enumerate(expected) if type(layer).__name__ != "DummyLayer"]
    if layers and not max(storing, default=0) < len(layers) <= len(expected):
        raise BadInputError(
            f"past_key_values has {len(layers)} layers and this model {len(expected)}: it was made for another model, "
            "or the run that filled it stopped early. Make a new one: DynamicCache(config=model.config)."
        )
    lengths = {int(layers[at].get_seq_length()) for at in storing if layers and hasattr(layers[at], "get_seq_length")}
    if len(lengths) > 1:
        raise BadInputError(
            f"The layers of past_key_values hold different numbers of positions ({min(lengths)} to {max(lengths)}): "
            "the run that filled it stopped early. Make a new one: DynamicCache(config=model.config)."
        )
    for number, (layer, shape) in enumerate(zip(layers, stored_shapes(model.config), strict=False)):
        keys, values = _shape(getattr(layer, "keys", None)), _shape(getattr(layer, "values", None))
        if None in (keys, values, shape):
            continue
        held = keys[1], keys[3], values[3]
        if held != shape:
            raise BadInputError(
                f"Layer {number} of past_key_values holds {_in_heads(held)}, but in this model it holds "
                f"{_in_heads(shape)}: it was made for another model. Make a new one: DynamicCache(config=model.config)."
            )
    for layer, usual in zip(layers, expected, strict=False):
        keys = getattr(layer, "keys", None)
        if keys is not None and keys.dim() == 4 and keys.shape[0] != 1:
            raise BadInputError(f"past_key_values holds {keys.shape[0]} texts: give the cache of a single one.")
        sees = getattr(usual, "sliding_window", needed) if getattr(usual, "is_sliding", False) else needed
        if getattr(layer, "sliding_window", sees) < min(sees, needed):
            raise BadInputError(
                f"past_key_values keeps {layer.sliding_window} positions in a layer that looks at more: it was made "
                "for another model. Make a new one: DynamicCache(config=model.config)."
            )
        if isinstance(layer, StaticLayer) and layer.max_cache_len < min(sees, needed):
            raise BadInputError(
                f"past_key_values has room for {layer.max_cache_len} positions; what it holds and the new "
                f"tokens need {needed}: make it with max_cache_len of at least that."
            )


def check_reading_on(model: PreTrainedModel, cached: int, new: int) -> None:
    """Check that a model reads `new` tokens after a cache of `cached` positions as it would read them in one text.

    In `transformers`, some layers that keep a state (those of Jamba and Bamba) go on from it for a single token only
    and begin afresh for several, without an error. Where attention looks both ways (PaliGemma), what is in the cache
    has not seen what comes after it. Such a model is tried once, on a short text. Raises `BadInputError` if it differs.
    """
    if cached and new > 1 and not purely_causal(model.config) and not _reads_on(model):
        raise BadInputError(
            f"{type(model).__name__} does not read {new} tokens after a cache as it reads them in one text: give the "
            "whole prompt, without past_key_values."
        )


def _reads_on(model: PreTrainedModel) -> bool:
    import torch

    from helpers.inside.anatomy import neutral_ids
    from helpers.inside.exclusive import one_at_a_time
    from helpers.inside.keeping import input_device

    if model not in _reading_on:
        ids = neutral_ids(model).to(input_device(model))
        with one_at_a_time(model, "a look at its cache"), torch.no_grad():
            whole = model(ids, use_cache=False).logits[0, -2:].float()
            cache = model(ids[:, :-2], use_cache=True).past_key_values
            rest = model(ids[:, -2:], past_key_values=cache, use_cache=True).logits[0].float()
        tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 5e-2
        _reading_on[model] = bool((rest - whole).abs().max() <= tolerance * whole.abs().max())
    return _reading_on[model]


def _in_heads(shape: tuple[int, int, int]) -> str:
    heads, key, value = shape
    sizes = f"{key}" if key == value else f"{key} (keys) and {value} (values)"
    return f"{heads} key/value head{'s' * (heads != 1)} of size {sizes}"


def _shape(tensor: Any) -> tuple[int, ...] | None:
    """A tensor's shape; None for packed keys or values (a quantized layer keeps an empty tensor)."""
    return tuple(tensor.shape) if tensor is not None and tensor.dim() == 4 else None


def _tensors(value: Any) -> Iterator[Any]:
    """Every tensor of keys or values (not a counter) in a value that may contain dicts and tuples."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "nbytes") and value.is_floating_point():
        yield value


@dataclass(frozen=True, eq=False)
class KVCacheNorms:
    """The norms of a cache's vectors: `keys` and `values` `[layer, position]`, float32; NaN where none is held.

    >>> import torch
    >>> norms = kv_cache_norms(model(torch.tensor([[100, 200]])).past_key_values)
    >>> list(norms.keys.shape) == list(norms.values.shape)
    True
    """

    keys: Any
    values: Any


def kv_cache_norms(past_key_values: Any, *, aligned: bool = False) -> KVCacheNorms:
    """Lengths (L2 norms) of the key and value vectors of a cache, averaged over batch and heads: a `KVCacheNorms`.

    The positions are those the cache holds: in a static cache those that are filled, in a sliding window the last ones.
    With `aligned=True` they are all that the cache has seen, for layers of every kind: where a layer holds no vector
    (before its window, or because it keeps none) the norm is NaN.

    Raises `BadInputError` for anything but a cache, for an empty one, for one that keeps its keys packed (quantized),
    and unless `aligned`, for one whose layers hold different numbers of positions.

    >>> import torch
    >>> cache = model(torch.tensor([[100, 200, 300]])).past_key_values
    >>> list(kv_cache_norms(cache).keys.shape)
    [30, 3]
    """
    import torch

    length = _check(past_key_values)
    rows = [
        [_norms(index, layer, part) for part in ("keys", "values")]
        for index, layer in enumerate(past_key_values.layers)
    ]
    lengths = sorted({len(keys) for keys, _ in rows})
    if not aligned:
        if len(lengths) > 1:
            raise BadInputError(
                f"The layers of this cache hold different numbers of positions, {lengths}: pass aligned=True."
            )
        length = lengths[0]
    norms = torch.full((2, len(rows), length), torch.nan, device="cpu")
    for index, parts in enumerate(rows):
        for part, vectors in enumerate(parts):
            norms[part, index, length - len(vectors) :] = vectors
    return KVCacheNorms(*norms)


def _norms(index: int, layer: Any, part: str) -> Any:
    """The norms `[position]` of one layer's keys or values; none for a layer that keeps none."""
    import torch

    states = getattr(layer, part, None)
    if states is None:
        return torch.empty(0)
    if _shape(states) is None:
        raise BadInputError(f"Layer {index} is a {type(layer).__name__}: its {part} are packed, not vectors.")
    norms = torch.linalg.vector_norm(states, dim=-1, dtype=torch.float32).mean(dim=(0, 1))
    return _in_order(layer, norms)


def _in_order(layer: Any, vectors: Any) -> Any:
    """The filled positions of a layer's memory; a static layer has room for more."""
    return vectors[: int(layer.get_seq_length())] if hasattr(layer, "max_cache_len") else vectors


def common_prefix(first_ids: Any, second_ids: Any) -> int:
    """How many ids two prompts have in common at their beginning: the part of one's cache that the other can reuse.

    Each is a list of int or a tensor `[length]` or `[1, length]`.

    >>> common_prefix([5, 6, 7], [5, 6, 8, 9])
    2
    """
    first, second = (
        several("A prompt's ids", plain("ids", ids.reshape(-1)) if hasattr(ids, "reshape") else ids, "whole numbers")
        for ids in (first_ids, second_ids)
    )
    pairs = zip(first, second, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def can_be_branched(past_key_values: Any) -> bool:
    """Whether `branch_cache` takes this cache: each of its layers must keep the keys of all positions and append new
    ones by copying.

    A sliding window forgets, a convolution or linear attention keeps sums, and a static cache writes in place. A prompt
    that shares only its beginning with the cached one cannot use such a cache.

    >>> import torch
    >>> can_be_branched(model(torch.tensor([[100, 200, 300]])).past_key_values)
    True
    """
    from transformers.cache_utils import DynamicLayer

    layers = getattr(past_key_values, "layers", [None])
    return all(type(layer) is DynamicLayer for layer in layers) and _of_one_text(layers)


def _of_one_text(layers: Sequence[Any]) -> bool:
    """Whether all layers hold the same positions, but for the last one where a step was interrupted. The layers of
    Llama 3.2 Vision that look at a picture hold its patches, and nothing without a picture."""
    lengths = [shape[-2] if (shape := _shape(layer.keys)) else 0 for layer in layers]
    return max(lengths, default=0) - min(lengths, default=0) <= 1


def branch_cache(past_key_values: Any, length: int | None = None) -> Any:
    """A second cache that starts with the first `length` positions of this one (None: all), without copying them.

    Both share the same memory: `DynamicLayer.update` in `transformers` concatenates into a new tensor, so
    what either adds later is its own. Raises `BadInputError` for a cache of another kind, which writes in
    place, and for a length it does not have.

    >>> import torch
    >>> cache = model(torch.tensor([[100, 200, 300]])).past_key_values
    >>> branch_cache(cache, 2).get_seq_length(), cache.get_seq_length()
    (2, 3)
    """
    from transformers.cache_utils import DynamicLayer

    seen = _check(past_key_values)
    other = {type(layer).__name__ for layer in past_key_values.layers if type(layer) is not DynamicLayer}
    if other:
        raise BadInputError(
            "Only a DynamicCache can be branched without a copy; "
            f"this cache has layers of type {', '.join(sorted(other))}."
        )
    if not _of_one_text(past_key_values.layers):
        raise BadInputError("This cache cannot be branched: its layers hold different numbers of positions.")
    length = seen if length is None else whole_number("length", length)
    if not 0 < length <= seen:
        raise BadInputError(f"This cache holds {seen} positions: a branch can begin with 1 to {seen}, not {length}.")
    branch = copy.copy(past_key_values)
    branch.layers = [copy.copy(layer) for layer in past_key_values.layers]
    for layer in branch.layers:
        layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]
    return branch
