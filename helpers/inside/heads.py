"""What single attention heads do: scores for known kinds of heads, rollout, and sharpening one head.

All of it works on the attention weights that `trace` returns; only `head_temperature` changes a running model.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from helpers.checks import number, several, shown, tensor
from helpers.errors import BadInputError
from helpers.inside.anatomy import anatomy
from helpers.inside.exclusive import one_at_a_time
from helpers.inside.interventions import layer_and_head
from helpers.models.fitting import LESS, refusing_what_does_not_fit
from helpers.text.encoding import text_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from helpers.inside.tracing import Trace

AT_ONCE = 2**28  # bytes of attention that are processed at a time
KINDS = ("first_token", "previous_token", "duplicate_token", "induction")


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores:
    """How much of its attention each head gives to one kind of position: `[layer, head]` each, float32, 0 to 1.

    - `first_token`: to position 0, the attention sink (Xiao and others 2023).
    - `previous_token`: to the position right before the query.
    - `duplicate_token`: to earlier positions with the query's own token.
    - `induction`: to the positions right after those: what came next the last time (Olsson and others 2022).

    A score is a mean over the queries that have such a position, and NaN if none has. `layers` are the numbers of the
    layers that the rows stand for.

    >>> from helpers.inside.tracing import trace
    >>> scores = head_scores(trace(model, tokenizer, "one two one two", attentions=True))
    >>> list(scores.induction.shape)
    [30, 9]
    """

    first_token: torch.Tensor
    previous_token: torch.Tensor
    duplicate_token: torch.Tensor
    induction: torch.Tensor
    layers: tuple[int, ...]

    def best(self, kind: str, count: int = 5) -> list[tuple[int, int]]:
        """The `count` heads with the highest score of a kind, best first: `[(layer, head), …]`.

        Raises `BadInputError` for an unknown kind.
        """
        if kind not in KINDS:
            raise BadInputError(f"There is no kind {shown(kind)}; the kinds are: {', '.join(KINDS)}.")
        scores = getattr(self, kind).nan_to_num(-1.0)
        order = scores.flatten().argsort(descending=True, stable=True)[:count].tolist()
        return [(self.layers[place // scores.shape[1]], place % scores.shape[1]) for place in order]

    def __repr__(self) -> str:
        best = ((kind, self.best(kind, 1)[0]) for kind in KINDS)
        return "HeadScores(" + ", ".join(f"{kind}: best {layer}.{head}" for kind, (layer, head) in best) + ")"


def repeated_ids(
    tokenizer: PreTrainedTokenizerBase, *, length: int = 50, generator: torch.Generator | None = None
) -> Tensor:
    """Random tokens, followed by the same tokens again: ids `[1, 1 + 2 * length]`, the begin-of-text token first, or
    `[1, 2 * length]` for a tokenizer without one.

    Within a half no id occurs twice, and no special token occurs at all. Only the first half tells what comes next in
    the second, so heads that look something up stand out. `generator` is a `torch.Generator`; the ids are on
    its device. Raises `BadInputError` for a length that is not possible.

    >>> list(repeated_ids(tokenizer, length=5).shape)
    [1, 11]
    """
    tokenizer = text_tokenizer(tokenizer)
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    device = None if generator is None else generator.device
    ordinary = [token for token in range(tokenizer.vocab_size) if token not in special]
    if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= len(ordinary):
        raise BadInputError(
            f"length is a whole number from 1 to {len(ordinary)} (the vocabulary), not {shown(length)}."
        )
    chosen = torch.randperm(len(ordinary), generator=generator, device=device)[:length].tolist()
    half = [ordinary[place] for place in chosen]
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return torch.tensor([[*first, *half, *half]], device=device)


def head_scores(trace: Trace) -> HeadScores:
    """Score every head of a run by where it attends: a `HeadScores`.

    `trace` is a `Trace` with `attentions [layer, head, query, key]`. Run it on `repeated_ids` to find
    heads, or on a text to see them at work. Position 0 is counted for `first_token` only, since many heads
    attend to it in any case. A picture's patches count as different tokens.

    Raises `BadInputError` for a trace without attentions, or one whose first positions were in a cache;
    `DoesNotFitError` when memory runs out.

    >>> from helpers.inside.tracing import trace
    >>> scores = head_scores(trace(model, tokenizer, repeated_ids(tokenizer, length=5)))
    >>> list(scores.induction.shape)
    [30, 9]
    """
    check_attentions(trace)
    attentions = trace.attentions
    needed = 2 * min(attentions.nbytes, max(AT_ONCE, attentions[0].nbytes))
    with refusing_without_memory("head_scores", needed, attentions.device):
        return _scores(trace)


def refusing_without_memory(what: str, needed: int, device: torch.device) -> AbstractContextManager[None]:
    """Turns running out of memory into a `DoesNotFitError` with advice for what is computed from attentions."""
    advice = LESS if device.type == "cpu" else 'Move the attentions to the CPU first, with .to("cpu").'
    return refusing_what_does_not_fit(what, needed, str(device), otherwise=advice, runs=False)


def _scores(trace: Trace) -> HeadScores:
    attentions = trace.attentions
    device = attentions.device
    ids = trace.input_ids[0].clone()
    if trace.patch_index is not None:
        patches = trace.patch_index >= 0
        ids[patches] = -1 - trace.patch_index[patches]
    ids, keys = ids.to(device), torch.arange(len(ids), device=device)
    queries = torch.tensor(trace.positions, device=device)
    same = (ids[queries][:, None] == ids) & (keys < queries[:, None])  # [query, key]
    after = torch.nn.functional.pad(same, (1, 0))[:, :-1] & (keys <= queries[:, None])
    places = {
        "first_token": (keys == 0) & (queries[:, None] > 0),
        "previous_token": (keys == queries[:, None] - 1) & (keys > 0),
        "duplicate_token": same & (keys > 0),
        "induction": after,
    }
    scores = {kind: _mean_given(attentions, place) for kind, place in places.items()}
    return HeadScores(**scores, layers=trace.attention_layers)


def _mean_given(attentions: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Attention `[layer, head, query, key]` summed over the True keys of `place [query, key]`, mean over queries:
    `[layer, head]`. It takes as many layers at a time as fit in `AT_ONCE` bytes of attention."""
    rows = place.any(dim=-1)
    layers = max(1, AT_ONCE // max(1, attentions[0].nbytes))
    given = [
        (part[:, :, rows] * place[rows]).sum(dim=-1, dtype=torch.float32).mean(dim=-1)
        for part in attentions.split(layers)
    ]
    return torch.cat(given)


def check_attentions(trace: Trace) -> None:
    """Raises `BadInputError` unless a trace holds attentions of all its keys."""
    if getattr(trace, "attentions", None) is None:
        raise BadInputError("There are no attentions in this: give it what trace(model, tokenizer, prompt) returns.")
    keys, tokens = trace.attentions.shape[-1], len(trace.tokens)
    if keys != tokens:
        raise BadInputError(
            f"This run had {keys - tokens} positions in a cache, whose tokens are not known: trace the whole prompt."
        )


def attention_rollout(attentions: Tensor, *, residual: float = 0.5) -> Tensor:
    """Attention traced back through all layers to the input: `[layer, query, key]`, float32. The rows sum to 1, or to
    less where a sink takes a part of the attention.

    `attentions [layer, head, query, key]` are those of all layers from the first on, as in `Trace`. In each layer the
    heads are averaged and mixed with the identity, which stands for the residual connection and has the weight
    `residual`. The products of these matrices, up to each layer, are the rollout (Abnar and Zuidema 2020).

    Raises `BadInputError` for another shape (the queries have to be all positions) and a weight outside 0 to 1;
    `DoesNotFitError` when memory runs out.

    >>> import torch
    >>> uniform = torch.full((2, 1, 2, 2), 0.5)
    >>> attention_rollout(uniform).shape
    torch.Size([2, 2, 2])
    """
    number("residual", residual, least=0, most=1)
    attentions = attentions if isinstance(attentions, torch.Tensor) else tensor("attentions", attentions)
    shape = list(attentions.shape)
    if len(shape) != 4 or shape[2] != shape[3]:
        raise BadInputError(f"attentions is [layer, head, query, key] with all positions as queries, not {shape}.")
    with refusing_without_memory("attention_rollout", 4 * shape[0] * shape[2] * shape[3], attentions.device):
        identity = torch.eye(shape[-1], device=attentions.device)
        rollout, layers = identity, []
        for layer in attentions:
            attention = tensor("attentions", layer)  # checked by layer: the check makes a copy of what it checks
            rollout = (residual * identity + (1 - residual) * attention.float().mean(dim=0)) @ rollout
            layers.append(rollout)
        return torch.stack(layers)


@contextmanager
def head_temperature(model: PreTrainedModel, heads: Sequence[tuple[int, int]], temperature: float) -> Iterator[None]:
    """Inside the `with` block the attention scores of some heads are divided by `temperature` before their softmax.

    Below 1 a head concentrates on fewer positions, above 1 it spreads over more, as the temperature of sampling does
    with tokens. `heads`: pairs (layer, head). The queries are divided, since the scores are proportional to them
    before and after the rotary embedding; a cap on the scores (Gemma 2) comes after that, and a sink (gpt-oss) stays as
    it is. On leaving the block the model is as before.

    Raises `BadInputError` for a head that is not there, a temperature that is not above 0, and a model
    whose queries are normalised afterwards.

    >>> from helpers.inside.tracing import trace
    >>> with head_temperature(model, [(5, 0)], 0.5):
    ...     sharper = trace(model, tokenizer, "The sky is", layers=[5]).attentions
    >>> bool(sharper[0, 0, -1].max() > trace(model, tokenizer, "The sky is", layers=[5]).attentions[0, 0, -1].max())
    True
    """
    if not isinstance(temperature, Real) or isinstance(temperature, bool) or not temperature > 0:
        raise BadInputError(f"temperature is a number above 0, not {shown(temperature)}.")
    temperature = float(temperature) if temperature < 1e300 else math.inf
    parts = anatomy(model)
    with one_at_a_time(model, "head_temperature"), ExitStack() as hooks:
        for pair in several("heads", heads, "pairs (layer, head) such as (5, 0)"):
            layer, head = layer_and_head(model, pair)
            hook = _scale_slice(head, parts.attention(layer).heads, temperature)
            hooks.enter_context(parts.query_projection(layer).register_forward_hook(hook))
        yield


def _scale_slice(head: int, count: int, temperature: float) -> Any:
    def hook(module: Module, arguments: Any, query: Any) -> Any:
        query = query.clone()
        query.view(*query.shape[:-1], count, -1)[..., head, :] /= temperature
        return query

    return hook
