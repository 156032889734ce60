"""What each part of a model writes into the residual stream, and how much that adds to a token's logit.

The stream is a running sum: the embedding, then in each layer what attention writes and what the MLP
writes. What attention writes is itself a sum with one term per head: the head's slice of the output projection's
input times its columns of that matrix (Elhage and others, "A Mathematical Framework for Transformer
Circuits", 2021). If the size that the final norm divides by is held fixed, the step from the stream to a token's
logit is linear too. A logit is then a sum with one term per part: direct logit attribution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from helpers.checks import given_by, shown
from helpers.errors import BadInputError
from helpers.inside.anatomy import Anatomy, anatomy, is_edited, matrix
from helpers.inside.exclusive import one_at_a_time
from helpers.inside.flow import tensors
from helpers.inside.keeping import home
from helpers.inside.tracing import Trace, trace
from helpers.models.fitting import refusing_what_does_not_fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Contributions:
    """What was added to the residual stream in one run, in the order in which it was added.

    - `tokens`: the labels of the whole prompt. `positions`: the positions that the rows stand for.
    - `embedding [position, hidden]`, then for each layer `attention [layer, position, hidden]` and
      `mlp [layer, position, hidden]`: what was written, after any norm or factor that comes between a part and
      the stream. `attention` is the output of everything that reads other positions. In a layer without attention
      that is whatever replaces it (linear attention, a state space, a convolution); where both work side by side
      (Falcon-H1), it is their sum. `mlp` is what a layer computes from one position: its MLP, and Gemma 4's
      embedding for each layer.
    - `mixed [layer, position, head, head_dim]`: the result of each head before the output projection. Zeros where
      a layer has fewer or smaller heads than another, or no attention.
    - `scales [layer, position, hidden]`: what the output projection's result is multiplied by, because of a norm
      after attention (GLM-4-0414, OLMo 2 and Gemma 2 have one) or a factor (Granite); None without either.
    - `edits [layer+1, position, hidden]`: what changed the stream itself as it entered each layer: an active
      intervention (`steer`, `patch_hidden_state`, `skip_layer`), or a model that adds a picture's features
      between its first layers (Qwen3-VL). Zeros if nothing did.
    - `total [position, hidden]`: the stream after the last layer, before the final norm.
    - `carried [layer+1]`: Gemma 4 multiplies the whole stream by a number at the end of each layer. All parts are
      given as they arrive at the end, so that they add up to `total`; `carried[L]` is what the stream after L layers
      is multiplied by on the way there. None in every other model.

    >>> parts = residual_contributions(model, tokenizer, "Hi there")
    >>> written = parts.embedding + parts.attention.sum(0) + parts.mlp.sum(0)
    >>> bool((written - parts.total).abs().max() < 1e-2)
    True
    """

    tokens: tuple[str, ...]
    positions: tuple[int, ...]
    embedding: torch.Tensor
    attention: torch.Tensor
    mlp: torch.Tensor
    mixed: torch.Tensor
    scales: torch.Tensor | None
    edits: torch.Tensor
    total: torch.Tensor
    carried: torch.Tensor | None = None

    def running_sum(self) -> torch.Tensor:
        """The residual stream `[2 * layer + 1, position, hidden]`: at the start, then after each attention and each
        MLP. The parts are added in the order of the layers. If nothing was edited, the sum is therefore bit for bit
        the stream of a model whose attention and MLP write one after the other.

        Raises `DoesNotFitError` when memory runs out.
        """
        needed = (1 + 2 * len(self.attention)) * self.total.nbytes
        with refusing_what_does_not_fit("running_sum", needed, str(self.total.device), runs=False):
            return self._running_sum()

    def _running_sum(self) -> torch.Tensor:
        stream = [self.embedding + self.edits[0]]
        for attention, mlp, edit in zip(self.attention, self.mlp, self.edits[1:], strict=True):
            stream.append(stream[-1] + attention)
            after = stream[-1] + mlp
            stream.append(after + edit if edit.any() else after)
        stacked = torch.stack(stream)
        if self.carried is None:
            return stacked
        return stacked / self.carried.repeat_interleave(2)[:-1, None, None].to(stacked)


@dataclass(frozen=True, eq=False)
class DirectLogit:
    """A logit at one position (or the difference of two), split into parts that sum to `total`.

    `embedding`, `edits`, `bias` and `total` are numbers; `attention [layer]` and `mlp [layer]` are what each part
    added; `heads [layer, head]` is attention again, split by head (0 in a layer without attention). `bias` is what
    remains without any of them: the biases of the final norm and of the head.

    >>> parts = residual_contributions(model, tokenizer, "The capital of France is")
    >>> paris = direct_logit(model, parts, tokenizer(" Paris")["input_ids"][0])
    >>> added = paris.embedding + float(paris.attention.sum() + paris.mlp.sum()) + paris.edits + paris.bias
    >>> abs(added - paris.total) < 1e-2
    True
    """

    embedding: float
    attention: torch.Tensor
    mlp: torch.Tensor
    heads: torch.Tensor
    edits: float
    bias: float
    total: float


def residual_contributions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Any,
    *,
    positions: Sequence[int] | None = None,
    **model_inputs: Any,
) -> Contributions:
    """Run the model once and return its `Contributions`. `prompt`, `positions` and `model_inputs` are those of `trace`.

    Active interventions apply to this run. Raises what `trace` raises, `BadInputError` for a model whose layers
    cannot be split into parts that add up, and `DoesNotFitError` when memory runs out.

    >>> parts = residual_contributions(model, tokenizer, "The sky is")
    >>> list(parts.attention.shape)
    [30, 3, 576]
    >>> total = parts.embedding + parts.attention.sum(0) + parts.mlp.sum(0)
    >>> bool((total - parts.total).abs().max() < 1e-2)
    True
    """
    parts = anatomy(model)
    parts.check_parts()
    if not parts.attention_layers:
        raise BadInputError(parts.without_attention([0]))
    names = _Names.of(model, parts)
    with one_at_a_time(model, "residual_contributions"):
        edited = [is_edited(layer.module) for layer in parts.layers]
        run = trace(
            model,
            tokenizer,
            prompt,
            attentions=False,
            logits=False,
            layers=[len(parts.layers)],
            positions=positions,
            outputs_of=dict.fromkeys([*(name for of_layer in names.writers for name in of_layer), *names.layers]),
            inputs_of=dict.fromkeys([*names.layers, *names.projections.values(), *names.norms.values()]),
            **model_inputs,
        )
    needed = 4 * (len(parts.layers) + 1) * run.last_residual.nbytes
    needed += sum(tensor.nbytes for name in names.projections.values() for tensor in tensors(run.inputs[name]))
    options = {"one position, positions=[-1]": needed // len(run.positions)} if len(run.positions) > 1 else {}
    with refusing_what_does_not_fit("residual_contributions", needed, str(run.device), options, runs=False):
        try:
            return _added_up(parts, run, names, edited)
        finally:
            del run  # so that it is not counted as taken when memory has run out


class _Names(NamedTuple):
    """The names of the modules that a run is recorded at: the layers, what writes to the stream in each of them, and
    the output projection and the norm after attention, by layer."""

    layers: list[str]
    writers: list[list[str]]
    projections: dict[int, str]
    norms: dict[int, str]

    @classmethod
    def of(cls, model: torch.nn.Module, parts: Anatomy) -> _Names:
        names = {module: name for name, module in model.named_modules()}
        norms = {number: parts.attention(number).norm for number in parts.attention_layers}
        return cls(
            layers=[names[layer.module] for layer in parts.layers],
            writers=[[names[part.writer] for part in layer.parts] for layer in parts.layers],
            projections={number: names[parts.projection(number)] for number in parts.attention_layers},
            norms={number: names[norm] for number, norm in norms.items() if norm is not None},
        )


def _added_up(parts: Anatomy, run: Trace, names: _Names, edited: list[bool]) -> Contributions:
    """The `Contributions` of a run; `edited` says which layers' outputs a hook may have changed."""
    entered: Any = [run.inputs[name] for name in names.layers]
    stream = torch.stack([*entered, run.last_residual])
    attention, mlp, edits = stream.new_zeros(3, *stream.shape)
    for number, layer in enumerate(parts.layers):
        for part, name in zip(layer.parts, names.writers[number], strict=True):
            written = _tensor(run.outputs[name], part.place)
            into = attention if part.mixes else mlp
            into[number] += written if part.scale == 1.0 else part.scale * written
        given = _tensor(run.outputs[names.layers[number]], layer.place)
        expected = stream[number] + attention[number] + mlp[number]
        expected = expected if layer.factor == 1.0 else layer.factor * expected
        if not edited[number]:
            _check_sum(parts, number, given, expected)
        edits[number + 1] = stream[number + 1] - (expected if edited[number] else given)
    # In a layer whose attention is skipped the heads wrote nothing, whatever they computed.
    wrote = {number: name for number, name in names.projections.items() if attention[number].any()}
    mixed = _mixed(parts, {number: run.inputs[name] for number, name in wrote.items()}, stream)
    scales = _scales(parts, {number: run.inputs[norm] for number, norm in names.norms.items()}, stream)
    carried = _carried(parts.layers, stream.device)
    if carried is not None:
        attention[:-1] *= carried[:-1, None, None]
        mlp[:-1] *= carried[:-1, None, None]
        edits *= carried[:, None, None]
        scales = carried[:-1, None, None] * (1 if scales is None else scales)
    return Contributions(
        tokens=run.tokens,
        positions=run.positions,
        embedding=stream[0] if carried is None else stream[0] * carried[0],
        attention=attention[:-1],
        mlp=mlp[:-1],
        mixed=mixed,
        scales=scales,
        edits=edits,
        total=stream[-1],
        carried=carried,
    )


def _tensor(given, place):
    """A module's output, or tensor number `place` of several."""
    return given[place] if isinstance(given, tuple) else given


def _mixed(parts, inputs, stream):
    """The results of the heads of each layer, `[layer, position, head, head_dim]`."""
    heads = parts.heads
    widest = max(parts.attention(number).width // parts.attention(number).heads for number in parts.attention_layers)
    mixed = stream.new_zeros(len(parts.layers), stream.shape[1], heads, widest)
    for number, given in inputs.items():
        split = given.unflatten(-1, (parts.attention(number).heads, -1))
        mixed[number, :, : split.shape[-2], : split.shape[-1]] = split
    return mixed


def _scales(parts, before_norm, stream):
    """The factors between the output projection and the stream, `[layer, position, hidden]`, or None."""
    factors = {number: parts.attention(number).scale for number in parts.attention_layers}
    if not before_norm and all(factor == 1.0 for factor in factors.values()):
        return None
    scales = torch.ones(len(parts.layers), *stream.shape[1:], device=stream.device)
    for number, factor in factors.items():
        scales[number] *= factor
    for number, given in before_norm.items():
        held = hold_norm(parts.attention(number).norm, given)
        if held.centred:
            raise BadInputError(
                f"The heads of layer {number} of {parts.kind} cannot be told apart: a norm after attention subtracts "
                "their mean."
            )
        scales[number] *= held.scale
    return scales


def _carried(layers, device):
    """What the stream after L layers is multiplied by up to the end, `[layer+1]`; None if all factors are 1."""
    factors = torch.tensor([*(layer.factor for layer in layers), 1.0], device=device)
    return None if bool((factors == 1).all()) else factors.flip(0).cumprod(0).flip(0)


def _check_sum(parts: Anatomy, number: int, given: torch.Tensor, expected: torch.Tensor) -> None:
    off = (given - expected).abs().amax() / given.abs().amax().clamp_min(1e-30)
    if not off <= (1e-4 if given.dtype == torch.float32 else 2e-2):
        raise BadInputError(
            f"In layer {number} of {parts.kind}, attention and MLP are not all that is added to the residual stream "
            f"(off by {float(off):.2g} of its largest number): its parts cannot be told apart here."
        )


def head_contributions(model: PreTrainedModel, parts: Contributions, layer: int) -> torch.Tensor:
    """What each head of a layer wrote, `[head, position, hidden]`: their sum is `parts.attention[layer]`.

    A bias of the output projection belongs to no head, and neither does what works beside attention (Falcon-H1): the
    sum lacks them. Raises `BadInputError` for a layer that is not there or has no attention, and `DoesNotFitError` when
    memory runs out.

    >>> parts = residual_contributions(model, tokenizer, "The sky is")
    >>> list(head_contributions(model, parts, layer=29).shape)
    [9, 3, 576]
    """
    given_by("residual_contributions", "parts", parts, "mixed", "scales")
    number = _checked_layer(model, layer)
    weight = _by_head(model, number)
    needed = weight.shape[1] * parts.total.nbytes
    with refusing_what_does_not_fit("head_contributions", needed, str(parts.mixed.device), runs=False):
        weight = weight.to(parts.mixed)
        mixed = parts.mixed[number, :, : weight.shape[1], : weight.shape[2]]
        heads = torch.einsum("phd,ohd->hpo", mixed, weight)
        return heads if parts.scales is None else heads * parts.scales[number]


def direct_logit(
    model: PreTrainedModel,
    parts: Contributions,
    token_id: int,
    *,
    position: int = -1,
    against: int | None = None,
    layer: int | None = None,
) -> DirectLogit:
    """What each part adds to a token's logit, with the size that the final norm divides by held fixed: a `DirectLogit`.

    `parts` are the `Contributions` of a run and `position` is an index into its rows. With `against`, another token's
    id, the result is about the difference of the two logits: what favours one token over the other. With `layer`, it
    is about the logit that the logit lens computes from the stream after that many layers, and later layers add 0. If
    a model caps its logits (Gemma 2), the factor by which the cap scales this logit is held fixed as well.

    Raises `BadInputError` for tokens, positions and layers that are not there, and for a final norm that is neither an
    RMSNorm nor a LayerNorm; `DoesNotFitError` when memory runs out.

    >>> parts = residual_contributions(model, tokenizer, "The capital of France is")
    >>> paris = tokenizer(" Paris")["input_ids"][0]
    >>> list(direct_logit(model, parts, paris).attention.shape)
    [30]
    """
    inside = anatomy(model)
    inside.check_lens()
    given_by("residual_contributions", "parts", parts, "mixed", "positions")
    last = len(inside.layers)
    layer = last if layer is None else layer
    _check_choice("layer", layer, 0, last)
    _check_choice("position", position, -len(parts.positions), len(parts.positions) - 1)
    for token in (token_id,) if against is None else (token_id, against):
        _check_choice("token id", token, 0, inside.head.weight.shape[0] - 1)
    widest = max((inside.attention(number).width for number in inside.attention_layers), default=0)
    needed = 4 * parts.embedding.shape[-1] * (3 * last + widest)  # the parts of one position, and one projection
    with refusing_what_does_not_fit("direct_logit", needed, str(parts.embedding.device), runs=False):
        return _direct_logit(model, inside, parts, token_id, position, against, layer)


def _direct_logit(
    model: Any, inside: Anatomy, parts: Contributions, token_id: int, position: int, against: int | None, layer: int
) -> DirectLogit:
    last = len(inside.layers)
    here = _at(parts, position)
    state = here._running_sum()[2 * layer, 0].float()
    held = HeldNorm.none(state) if inside.final_norm is None else hold_norm(inside.final_norm, state)
    direction, constant = _reading(inside, held, state, token_id)
    if against is not None:
        other, other_constant = _reading(inside, held, state, against)
        direction, constant = direction - other, constant - other_constant
    through = direction if here.carried is None else direction / float(here.carried[layer])

    def says(written: Tensor) -> Tensor:
        values = written[..., 0, :].float() @ through
        values[layer + (len(values) - last) :] = 0  # rows of later layers; edits have one row more
        return values

    heads = torch.zeros(last, inside.heads, device="cpu")
    for number in inside.attention_layers:
        if number >= layer:
            continue
        reader = through if parts.scales is None else through * parts.scales[number, position].float().cpu()
        weight = _by_head(model, number).float()  # it stays on its device, and the vectors are moved there
        seen = torch.einsum("o,ohd->hd", reader.to(weight.device), weight)
        mixed = parts.mixed[number, position, : seen.shape[0], : seen.shape[1]].to(weight)
        heads[number, : len(seen)] = (seen * mixed).sum(-1).cpu()
    return DirectLogit(
        embedding=float(here.embedding[0].float() @ through),
        attention=says(here.attention),
        mlp=says(here.mlp),
        heads=heads,
        edits=float(says(here.edits).sum()),
        bias=float(constant),
        total=float(state @ direction + constant),
    )


def _at(parts: Contributions, position: int) -> Contributions:
    """What was written at one position, `[..., 1, hidden]`, on the CPU, where the parts of a logit are added."""
    row = range(len(parts.positions))[position]
    written = ("embedding", "attention", "mlp", "edits")
    moved = {name: getattr(parts, name)[..., row : row + 1, :].cpu() for name in written}
    return replace(parts, **moved, carried=None if parts.carried is None else parts.carried.cpu())


def _reading(inside, held, state, token):
    """How a state becomes a token's logit: (what the state is multiplied by `[hidden]`, what is added)."""
    row, shift = inside.head_row(token)
    direction = held.back(row)
    constant = float(row @ held.bias) + shift
    factor = inside.logit_map.factor(float(state @ direction) + constant)
    return direction * factor, constant * factor


@dataclass(frozen=True, eq=False)
class HeldNorm:
    """A norm with the size that it divides by held fixed: `scale * (state - mean) + bias`, the mean only if `centred`.

    `scale [..., hidden]` has the shape of the states whose size is held; `bias` is `[hidden]`.
    """

    scale: torch.Tensor
    bias: torch.Tensor
    centred: bool

    @classmethod
    def none(cls, states: torch.Tensor) -> HeldNorm:
        """A stand-in for the norm of a model that has none."""
        return cls(torch.ones_like(states), torch.zeros(states.shape[-1], device=states.device), False)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """The norm's output for `states [..., hidden]`, divided by the size held fixed."""
        return self.scale * _centred(states, self.centred) + self.bias

    def back(self, direction: torch.Tensor) -> torch.Tensor:
        """The direction before the norm that reads what `direction` reads after it."""
        return _centred(direction * self.scale, self.centred)


def _centred(states, really):
    return states - states.mean(-1, keepdim=True) if really else states


@torch.no_grad()
def hold_norm(norm: torch.nn.Module, states: torch.Tensor) -> HeldNorm:
    """An RMSNorm or a LayerNorm, with or without weight and bias, held at the sizes of `states [..., hidden]`.

    Its weight and bias are computed from its output for known vectors (all zeros, and large numbers of equal size),
    and the result is compared with its output for `states`. Raises `BadInputError` for a norm that does something
    else.

    >>> held = hold_norm(torch.nn.LayerNorm(4), torch.tensor([1.0, 2.0, 3.0, 6.0]))
    >>> held.centred, held(torch.tensor([1.0, 2.0, 3.0, 6.0])).sum().abs() < 1e-6
    (True, tensor(True))
    """
    example = next(norm.parameters(), states)

    def apply(values):
        return (
            norm.forward(values.to(home(norm, values.device), example.dtype)).float().to(states.device)
        )  # past any hook

    states = states.float()
    hidden = states.shape[-1]
    known = torch.full((hidden,), 1e3, device=states.device)
    known[1::2] = -1e3
    if hidden % 2:
        known[-2:] = torch.tensor([1e3, -2e3], device=states.device)  # so that the mean is 0 here, too
    bias, once, shifted = apply(torch.stack([torch.zeros_like(known), known, known + 1e3]))
    weight = (once - bias) * known.pow(2).mean().sqrt() / known
    centred = bool(torch.allclose(once, shifted, rtol=1e-2, atol=1e-3))
    plain = _centred(states, centred) * weight
    normed = apply(states)
    size = ((normed - bias) * plain).sum(-1, keepdim=True) / plain.pow(2).sum(-1, keepdim=True).clamp_min(1e-30)
    held = HeldNorm(size * weight, bias, centred)
    whole = example.dtype in (torch.float32, torch.float64)
    atol, rtol = (1e-4 * float(normed.abs().max()), 1e-3) if whole else (1e-2, 2e-2)
    if not torch.allclose(held(states), normed, atol=atol, rtol=rtol):
        raise BadInputError(
            f"{type(norm).__name__} is neither an RMSNorm nor a LayerNorm: its scale cannot be held fixed."
        )
    return held


def _by_head(model, number):
    """The output projection's weight by head, `[hidden, head, head_dim]`."""
    inside = anatomy(model)
    heads = inside.attention(number).heads
    projection = inside.projection(number)
    return matrix(projection, inside.attention(number).width).unflatten(1, (heads, -1))


def _checked_layer(model, layer):
    inside = anatomy(model)
    _check_choice("layer", layer, 0, len(inside.layers) - 1)
    inside.attention(layer)
    return layer


def _check_choice(what: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadInputError(f"There is no {what} {shown(value)} here: they run from {low} to {high}.")
