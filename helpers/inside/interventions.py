"""Change something inside a forward pass, see what follows, and get the model back as it was.

Each function is a context manager. They nest, in any order, and work with `generate`, `trace` and
`generate_steps`, since they sit on the model's modules as hooks and touch no weight:

>>> import torch
>>> with ablate_heads(model, [(5, 0)]), steer(model, 12, torch.zeros(576)):
...     changed = model(torch.tensor([[100, 200, 300]])).logits
>>> changed.shape
torch.Size([1, 3, 49152])

On leaving the block, even through an error or an interrupted cell, the hooks are gone and the model is bit for
bit as before. A hidden state "of layer L" is the residual stream after L layers, as it enters layer L: 0 is
the embedding, and the last number (30 for 30 layers) is the input of the final norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from helpers.checks import number, plain, several, shown, tensor, whole_number
from helpers.errors import BadInputError
from helpers.inside.anatomy import Anatomy, anatomy, at_the_end, replace_output, replaced, with_first
from helpers.inside.exclusive import one_at_a_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel


@contextmanager
def ablate_heads(
    model: torch.nn.Module, heads: Iterable[tuple[int, int]], *, value: float | torch.Tensor = 0.0
) -> Iterator[None]:
    """Attention heads write `value` (zeros by default) instead of what they computed.

    `heads`: pairs (layer, head). What a head computed is its slice `[batch, position, head_dim]` of
    the input of attention's output projection, so a head of zeros adds nothing to the residual stream.
    `value` is a number, a tensor `[head_dim]` such as the head's mean over many prompts, or one that has a value for
    every position: `[position, 1, head_dim]`.

    Raises `BadInputError` for a head that is not there, for a layer whose heads cannot be told apart, and for a value
    of another shape (when the model runs, where that depends on the prompt).

    >>> import torch
    >>> ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    >>> before = model(ids).logits
    >>> with ablate_heads(model, [(0, 1), (0, 2)]):
    ...     changed = model(ids).logits
    >>> torch.equal(changed, before), torch.equal(model(ids).logits, before)
    (False, True)
    """
    parts = anatomy(model)
    written = tensor("value", value)
    of_layer: dict[int, list[int]] = {}
    for pair in several("heads", heads, "pairs (layer, head) such as (5, 0)"):
        layer, head = layer_and_head(model, pair)
        of_layer.setdefault(layer, []).append(head)
        _check_room(parts, layer, written)
    with one_at_a_time(model, "ablate_heads"), ExitStack() as hooks:
        for layer, numbers in of_layer.items():
            hook = _replace_heads(numbers, parts.attention(layer).heads, written)
            hooks.enter_context(parts.projection(layer).register_forward_pre_hook(hook))
        yield


def _check_room(parts: Anatomy, layer: int, value: Tensor) -> None:
    """Check that a head of this layer can write the value: one number, or one for each of its `head_dim`."""
    width = getattr(parts.projection(layer), "in_features", None)
    size = width // parts.attention(layer).heads if isinstance(width, int) else None
    if value.dim() > 4 or (value.dim() > 0 and size is not None and value.shape[-1] not in (1, size)):
        raise BadInputError(f"A head of this model writes [{size}]; this value is {list(value.shape)}.")


def layer_and_head(model: torch.nn.Module, pair: tuple[int, int]) -> tuple[int, int]:
    """A pair (layer, head), checked, its layer counted from 0. Raises `BadInputError` for a head that is not there."""
    try:
        layer, head = pair
    except (TypeError, ValueError):
        raise BadInputError(f"Heads are pairs (layer, head) such as (5, 0), not {shown(pair)}.") from None
    parts = anatomy(model)
    count = parts.attention(layer).heads
    if isinstance(head, bool) or not isinstance(head, int) or not 0 <= head < count:
        raise BadInputError(f"There is no head {shown(head)}: each layer of this model has heads 0 to {count - 1}.")
    return parts.number(layer), head


def _replace_heads(numbers: Sequence[int], count: int, value: Any) -> Any:
    def hook(module: Module, arguments: Any) -> Any:
        mixed = arguments[0]
        split = mixed.reshape(*mixed.shape[:-1], count, -1).clone()
        written = torch.as_tensor(value, dtype=split.dtype, device=split.device)
        room = split[..., numbers, :].shape
        try:
            split[..., numbers, :] = written.expand(room)
        except RuntimeError:
            raise BadInputError(
                f"Heads write {list(room)}, [batch, position, head, head_dim]; a value of {list(written.shape)} does "
                "not fit. Give one number, [head_dim], or [position, 1, head_dim]."
            ) from None
        return (split.reshape(mixed.shape), *arguments[1:])

    return hook


@contextmanager
def skip_layer(model: torch.nn.Module, layer: int) -> Iterator[None]:
    """The residual stream passes through a layer unchanged: none of the layer's parts writes.

    Its keys and values still go into the KV cache. Raises `BadInputError` for a layer that is not there.

    >>> import torch
    >>> from helpers.inside.tracing import trace
    >>> with skip_layer(model, 3):
    ...     states = trace(model, tokenizer, "The sky is").hidden_states
    >>> torch.equal(states[3], states[4]), torch.equal(states[4], states[5])
    (True, False)
    """
    found = anatomy(model).layer(layer)

    def hook(module: Module, arguments: Any, keywords: Any, output: Any) -> Any:
        before = arguments[0] if arguments else next(v for v in keywords.values() if isinstance(v, torch.Tensor))
        return replaced(output, found.place, lambda after: before)

    with one_at_a_time(model, "skip_layer"), found.module.register_forward_hook(hook, with_kwargs=True):
        yield


@contextmanager
def skip_attention(model: torch.nn.Module, layer: int) -> Iterator[None]:
    """The attention of a layer writes nothing. Raises `BadInputError` for a layer that is not there or has none.

    >>> import torch
    >>> ids = torch.tensor([[100, 200, 300]])
    >>> with skip_attention(model, 3):
    ...     changed = model(ids).logits
    >>> torch.equal(changed, model(ids).logits)
    False
    """
    attention = anatomy(model).attention(layer)
    with one_at_a_time(model, "skip_attention"), replace_output(attention, torch.zeros_like):
        yield


@contextmanager
def skip_mlp(model: torch.nn.Module, layer: int) -> Iterator[None]:
    """The MLP (or mixture of experts) of a layer writes nothing. Raises `BadInputError` for a layer that is not
    there or has none.

    >>> import torch
    >>> ids = torch.tensor([[100, 200, 300]])
    >>> with skip_mlp(model, 3):
    ...     changed = model(ids).logits
    >>> torch.equal(changed, model(ids).logits)
    False
    """
    mlp = anatomy(model).mlp(layer)
    with one_at_a_time(model, "skip_mlp"), replace_output(mlp, torch.zeros_like):
        yield


@contextmanager
def patch_hidden_state(
    model: torch.nn.Module, layer: int, position: int | Iterable[int], value: torch.Tensor
) -> Iterator[None]:
    """The hidden state of a layer at a position is `value`, whatever was computed there.

    `position` counts in the whole sequence, even when its beginning is in a KV cache; a negative one
    counts from the end of the first pass (the prompt). `value` is `[hidden]`, for example the hidden state of
    another prompt's trace at the same layer; a list of positions takes `[len(position), hidden]`.

    Raises `BadInputError` for a layer that is not there, a value of another shape, and (when the model
    runs) a position that the first pass does not reach.

    >>> import torch
    >>> from helpers.inside.tracing import trace
    >>> with patch_hidden_state(model, 10, -1, torch.zeros(576)):
    ...     patched = trace(model, tokenizer, "The sky is").hidden_states
    >>> bool((patched[10, -1] == 0).all()), bool((patched[10, 0] == 0).all())
    (True, False)
    """
    listed = plain("position", position)
    listed = listed if isinstance(listed, Iterable) and not isinstance(listed, str) else [listed]
    positions = [whole_number("position", one) for one in listed]
    value = tensor("value", value)
    hidden = anatomy(model).hidden_size
    if value.shape not in ((hidden,), (len(positions), hidden)):
        raise BadInputError(
            f"A hidden state of this model is [{hidden}], so {len(positions)} positions take "
            f"[{len(positions)}, {hidden}]; this value is {list(value.shape)}."
        )
    value = value.expand(len(positions), hidden)
    resolved = []

    def patch(hidden_states: Tensor, start: int) -> Tensor:
        length = start + hidden_states.shape[1]
        if not resolved:
            resolved.extend(p + length if p < 0 else p for p in positions)
            missing = [p for p, at in zip(positions, resolved, strict=True) if not 0 <= at < length]
            if missing:
                raise BadInputError(f"There is no position {missing[0]}: this prompt has {length} positions.")
        patched = hidden_states.clone()
        for row, at in enumerate(resolved):
            if start <= at < length:
                patched[:, at - start] = value[row].to(patched)
        return patched

    with one_at_a_time(model, "patch_hidden_state"), _on_hidden_state(model, layer, patch):
        yield


@contextmanager
def steer(model: torch.nn.Module, layer: int, vector: torch.Tensor, *, scale: float = 1.0) -> Iterator[None]:
    """`scale * vector` is added to the hidden state of a layer, at every position of every pass.

    `vector` is `[hidden]`, such as the difference of two prompts' hidden states (activation addition,
    Turner and others 2023). Raises `BadInputError` for a layer that is not there or another shape.

    >>> import torch
    >>> from helpers.inside.tracing import trace
    >>> with steer(model, 10, torch.ones(576), scale=2.0):
    ...     steered = trace(model, tokenizer, "The sky is").hidden_states
    >>> added = steered[10] - trace(model, tokenizer, "The sky is").hidden_states[10]
    >>> bool((added - 2.0).abs().max() < 1e-2)
    True
    """
    vector, scale = tensor("vector", vector), number("scale", scale)
    hidden = anatomy(model).hidden_size
    if vector.shape != (hidden,):
        raise BadInputError(f"A direction in this model is [{hidden}]; this vector is {list(vector.shape)}.")

    def add(hidden_states, start):
        return hidden_states + scale * vector.to(hidden_states)

    with one_at_a_time(model, "steer"), _on_hidden_state(model, layer, add):
        yield


@contextmanager
def _on_hidden_state(
    model: PreTrainedModel, layer: int, change: Callable[[torch.Tensor, int], torch.Tensor]
) -> Iterator[None]:
    """`change(hidden_states [batch, query, hidden], start)` replaces what enters a layer or the final norm.

    `start` is the position of the first query: how many positions the KV cache holds before the pass.
    """
    parts = anatomy(model)
    count = len(parts.layers)
    if isinstance(layer, bool) or not isinstance(layer, int) or not -count - 1 <= layer <= count:
        raise BadInputError(f"There is no hidden state {shown(layer)}: they run from 0 (embedding) to {count}.")
    layer %= count + 1
    start = 0

    def see_start(module: Module, arguments: Any, keywords: Any) -> None:
        nonlocal start
        start = _cached_positions(parts.kind, keywords)

    def replace(stream: Tensor) -> Any:
        return change(stream, start)

    with ExitStack() as hooks:
        hooks.enter_context(parts.owner.register_forward_pre_hook(see_start, with_kwargs=True))
        if layer == count:
            hooks.enter_context(at_the_end(parts, replace))
        else:
            hook = parts.layers[layer].module.register_forward_pre_hook(
                lambda module, arguments, keywords: with_first(arguments, keywords, replace), with_kwargs=True
            )
            hooks.enter_context(hook)
        yield


def _cached_positions(kind, keywords):
    """How many positions the cache holds before a pass. Raises `BadInputError` for a cache that does not say so."""
    cache = next((value for value in keywords.values() if hasattr(value, "get_seq_length")), None)
    try:
        return 0 if cache is None else int(cache.get_seq_length())
    except ValueError as error:  # a cache of running states only, such as Mamba's
        raise BadInputError(
            f"The cache of {kind} does not say how many positions it has seen, so positions cannot be counted: run "
            "the model with use_cache=False."
        ) from error
