"""past_key_values: what is in it, what it costs, and using it again.

Every decoder layer keeps the keys and values of all positions it has seen, `[batch, kv_head, position,
head_dim]` each, with the rotary embedding already in the keys. `transformers` holds them as
`past_key_values.layers[i].keys` and `.values`.
"""

import copy
from dataclasses import dataclass

from helpers.errors import BadInputError

WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}


@dataclass(frozen=True)
class LayerCache:
    """One layer's share: `keys` and `values` are shapes `[batch, kv_head, position, head_dim]`, or None
    where a kind of cache keeps them packed. `nbytes` counts every tensor it holds."""

    layer: int
    kind: str
    keys: tuple[int, ...] | None
    values: tuple[int, ...] | None
    dtype: str
    nbytes: int


@dataclass(frozen=True, repr=False)
class KVCacheSummary:
    """A KV cache at a glance: `length` positions seen, `nbytes` in all, and each layer's `LayerCache`."""

    length: int
    nbytes: int
    layers: tuple[LayerCache, ...]

    def __repr__(self):
        title = f"KV cache: {len(self.layers)} layers, {self.length} positions, {self.nbytes:,} bytes"
        rows = [f"  {_span(group)}: {_describe(group[0])}" for group in _runs(self.layers)]
        return "\n".join([title, *rows])


def _runs(layers):
    """Layers that follow each other and are alike, together."""
    groups = []
    for layer in layers:
        if groups and _describe(groups[-1][0]) == _describe(layer):
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def _span(group):
    first, last = group[0].layer, group[-1].layer
    return f"layer {first}" if first == last else f"layers {first} to {last}, each"


def _describe(layer):
    shapes = "packed" if layer.keys is None else f"keys {list(layer.keys)}, values {list(layer.values)}"
    return f"{shapes}, {layer.dtype}, {layer.nbytes:,} bytes ({layer.kind})"


def kv_cache_summary(past_key_values):
    """Shapes and bytes of a KV cache, layer by layer: a `KVCacheSummary`.

    `past_key_values` is any `Cache` of `transformers` (dynamic, static, sliding, quantized). Raises
    `BadInputError` for anything else and for a cache that has seen nothing yet.
    """
    _check(past_key_values)
    layers = tuple(
        LayerCache(
            layer=index,
            kind=type(layer).__name__,
            keys=_shape(layer.keys),
            values=_shape(layer.values),
            dtype=str(getattr(layer, "dtype", layer.keys.dtype)).removeprefix("torch."),
            nbytes=sum(tensor.nbytes for tensor in _tensors(vars(layer))),
        )
        for index, layer in enumerate(past_key_values.layers)
    )
    return KVCacheSummary(int(past_key_values.get_seq_length()), sum(layer.nbytes for layer in layers), layers)


def _check(past_key_values):
    if not hasattr(past_key_values, "layers"):
        raise BadInputError(
            f"A KV cache is what a model gives as past_key_values; this is a {type(past_key_values).__name__}. "
            "Run model(input_ids, use_cache=True).past_key_values."
        )
    if not past_key_values.layers or int(past_key_values.get_seq_length()) == 0:
        raise BadInputError("This KV cache is empty: give it to model(..., past_key_values=cache) first.")


def _shape(tensor):
    """None for tensors that are packed away (a quantized layer keeps an empty one)."""
    return tuple(tensor.shape) if tensor is not None and tensor.dim() == 4 else None


def _tensors(value):
    """Every tensor in a value with dicts and tuples in it that holds keys or values (not a counter)."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "nbytes") and value.is_floating_point():
        yield value


@dataclass(frozen=True, eq=False)
class KVCacheNorms:
    """How large a cache's vectors are: `keys` and `values` `[layer, position]`, float32."""

    keys: object
    values: object


def kv_cache_norms(past_key_values):
    """Lengths (L2 norms) of the key and value vectors of a cache, averaged over batch and heads: a `KVCacheNorms`.

    Positions are those the cache holds: of a static cache those that are filled, of a sliding window the
    last ones. Raises `BadInputError` for what is no cache, an empty one, one whose layers hold different
    numbers of positions, and one that keeps its keys packed (quantized).
    """
    import torch

    _check(past_key_values)
    filled, norms = int(past_key_values.get_seq_length()), {"keys": [], "values": []}
    for index, layer in enumerate(past_key_values.layers):
        for part, rows in norms.items():
            states = getattr(layer, part)
            if _shape(states) is None:
                raise BadInputError(f"Layer {index} is a {type(layer).__name__}: its {part} are packed, not vectors.")
            vectors = torch.linalg.vector_norm(states[:, :, :filled], dim=-1, dtype=torch.float32)
            rows.append(vectors.mean(dim=(0, 1)))
    lengths = sorted({len(row) for row in norms["keys"]})
    if len(lengths) > 1:
        raise BadInputError(f"The layers of this cache hold {lengths} positions: they do not fit into one picture.")
    return KVCacheNorms(torch.stack(norms["keys"]), torch.stack(norms["values"]))


def common_prefix(first_ids, second_ids):
    """How many ids two prompts have in common at their beginning: what one's cache is worth to the other.

    Each is a list of int or a tensor `[length]` or `[1, length]`.
    """
    first, second = (
        ids.reshape(-1).tolist() if hasattr(ids, "reshape") else list(ids) for ids in (first_ids, second_ids)
    )
    pairs = zip(first, second, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def branch_cache(past_key_values, length=None):
    """A second cache that begins with the first `length` positions of this one (None: all), without a copy.

    Both share the same memory: `DynamicLayer.update` in `transformers` concatenates into a new tensor, so
    what either adds later is its own. Raises `BadInputError` for a cache of another kind, which writes in
    place, and for a length it does not have.
    """
    from transformers.cache_utils import DynamicLayer

    _check(past_key_values)
    other = {type(layer).__name__ for layer in past_key_values.layers if type(layer) is not DynamicLayer}
    if other:
        raise BadInputError(f"Only a DynamicCache can be branched without a copy; this one has {', '.join(other)}.")
    seen = int(past_key_values.get_seq_length())
    length = seen if length is None else length
    if not 0 < length <= seen:
        raise BadInputError(f"This cache holds {seen} positions: a branch can begin with 1 to {seen}, not {length}.")
    branch = copy.copy(past_key_values)
    branch.layers = [copy.copy(layer) for layer in past_key_values.layers]
    for layer in branch.layers:
        layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]
    return branch
