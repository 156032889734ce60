"""Change something inside a forward pass, see what follows, and have the model back as it was.

Each function is a context manager. They nest, in any order, and work with `generate`, `trace` and
`generate_steps`, since they sit on the model's modules as hooks and touch no weight:

>>> with ablate_heads(model, [(5, 0)]), steer(model, 12, direction):
...     model.generate(...)

On leaving, also by an error or an interrupted cell, the hooks are gone and the model is bit for bit
as before. A hidden state "of layer L" is the residual stream after L layers, as it enters layer L: 0 is
the embedding, and the last number (30 for 30 layers) is what the final norm gets.
"""

from contextlib import ExitStack, contextmanager

import torch

from helpers.errors import BadInputError
from helpers.inside.anatomy import decoder, decoder_layer, head_count


@contextmanager
def ablate_heads(model, heads, *, value=0.0):
    """Attention heads write `value` (zeros by default) instead of what they computed.

    `heads`: pairs (layer, head). What a head computed is its slice `[batch, position, head_dim]` of
    the input of `o_proj`, so a head of zeros adds nothing to the residual stream. `value` is a number,
    or a tensor `[head_dim]` such as the head's mean over many prompts.

    Raises `BadInputError` for a head that is not there.
    """
    of_layer = {}
    for pair in heads:
        layer, head = _layer_and_head(model, pair)
        of_layer.setdefault(layer, []).append(head)
    with ExitStack() as hooks:
        for layer, numbers in of_layer.items():
            projection = decoder_layer(model, layer).self_attn.o_proj
            hook = _replace_heads(numbers, head_count(model), value)
            hooks.enter_context(projection.register_forward_pre_hook(hook))
        yield


def _layer_and_head(model, pair):
    try:
        layer, head = pair
    except (TypeError, ValueError):
        raise BadInputError(f"Heads are pairs (layer, head) such as (5, 0), not {pair!r}.") from None
    decoder_layer(model, layer)
    count = head_count(model)
    if isinstance(head, bool) or not isinstance(head, int) or not 0 <= head < count:
        raise BadInputError(f"There is no head {head!r}: each layer of this model has heads 0 to {count - 1}.")
    return layer % len(decoder(model).layers), head


def _replace_heads(numbers, count, value):
    def hook(module, arguments):
        mixed = arguments[0]
        split = mixed.reshape(*mixed.shape[:-1], count, -1).clone()
        split[..., numbers, :] = torch.as_tensor(value, dtype=split.dtype, device=split.device)
        return (split.reshape(mixed.shape), *arguments[1:])

    return hook


@contextmanager
def skip_layer(model, layer):
    """The residual stream passes a layer unchanged: neither its attention nor its MLP writes.

    Its keys and values still go into the KV cache. Raises `BadInputError` for a layer that is not there.
    """

    def hook(module, arguments, keywords, output):
        before = arguments[0] if arguments else keywords["hidden_states"]
        return (before, *output[1:]) if isinstance(output, tuple) else before

    with decoder_layer(model, layer).register_forward_hook(hook, with_kwargs=True):
        yield


@contextmanager
def skip_attention(model, layer):
    """The attention of a layer writes nothing. Raises `BadInputError` for a layer that is not there."""

    def hook(module, arguments, output):
        return (torch.zeros_like(output[0]), *output[1:])

    with decoder_layer(model, layer).self_attn.register_forward_hook(hook):
        yield


@contextmanager
def skip_mlp(model, layer):
    """The MLP of a layer writes nothing. Raises `BadInputError` for a layer that is not there."""
    hook = decoder_layer(model, layer).mlp.register_forward_hook(lambda m, a, output: torch.zeros_like(output))
    with hook:
        yield


@contextmanager
def patch_hidden_state(model, layer, position, value):
    """The hidden state of a layer at a position is `value`, whatever was computed there.

    `position` counts in the whole sequence, also when the beginning is in a KV cache; a negative one
    counts from the end of the first pass (the prompt). `value` is `[hidden]`, for example another
    prompt's `trace(...)` at the same layer; a list of positions takes `[len(position), hidden]`.

    Raises `BadInputError` for a layer that is not there, a value of another shape, and (when the model
    runs) a position that the first pass does not reach.
    """
    positions = [position] if isinstance(position, int) else list(position)
    value = torch.as_tensor(value)
    hidden = model.config.get_text_config().hidden_size
    if value.shape not in ((hidden,), (len(positions), hidden)):
        raise BadInputError(
            f"A hidden state of this model is [{hidden}], so {len(positions)} positions take "
            f"[{len(positions)}, {hidden}]; this value is {list(value.shape)}."
        )
    value = value.expand(len(positions), hidden)
    resolved = []

    def patch(hidden_states, start):
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

    with _on_hidden_state(model, layer, patch):
        yield


@contextmanager
def steer(model, layer, vector, *, scale=1.0):
    """`scale * vector` is added to the hidden state of a layer, at every position of every pass.

    `vector` is `[hidden]`, such as the difference of two prompts' hidden states (activation addition,
    Turner and others 2023). Raises `BadInputError` for a layer that is not there or another shape.
    """
    vector = torch.as_tensor(vector)
    hidden = model.config.get_text_config().hidden_size
    if vector.shape != (hidden,):
        raise BadInputError(f"A direction in this model is [{hidden}]; this vector is {list(vector.shape)}.")
    with _on_hidden_state(model, layer, lambda hidden_states, start: hidden_states + scale * vector.to(hidden_states)):
        yield


@contextmanager
def _on_hidden_state(model, layer, change):
    """`change(hidden_states [batch, query, hidden], start)` replaces what enters a layer or the final norm.

    `start` is the position of the first query: how many positions the KV cache holds before the pass.
    """
    base = decoder(model)
    count = len(base.layers)
    if isinstance(layer, bool) or not isinstance(layer, int) or not -count - 1 <= layer <= count:
        raise BadInputError(f"There is no hidden state {layer!r}: they run from 0 (embedding) to {count}.")
    layer %= count + 1
    start = 0

    def see_start(module, arguments, keywords):
        nonlocal start
        cache = keywords.get("past_key_values")
        start = 0 if cache is None else int(cache.get_seq_length())

    def replace(module, arguments, keywords):
        if arguments:
            return (change(arguments[0], start), *arguments[1:]), keywords
        return arguments, {**keywords, "hidden_states": change(keywords["hidden_states"], start)}

    place = base.norm if layer == count else base.layers[layer]
    with (
        base.register_forward_pre_hook(see_start, with_kwargs=True),
        place.register_forward_pre_hook(replace, with_kwargs=True),
    ):
        yield
