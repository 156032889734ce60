"""Who wrote what into the residual stream, and what it says about a token.

The stream is a running sum: the embedding, then in each layer what attention writes and what the MLP
writes. What attention writes is itself a sum, one part a head: its slice of `o_proj`'s input times its
columns of `o_proj` (Elhage and others, "A Mathematical Framework for Transformer Circuits", 2021). With
the size that the final norm divides by held fixed, the way to a token's logit is linear too, so a logit
is the sum of what each part says about it: direct logit attribution.
"""

from dataclasses import dataclass

import torch

from helpers.errors import BadInputError
from helpers.inside.anatomy import decoder, head_count, writers
from helpers.inside.tracing import trace


@dataclass(frozen=True, eq=False)
class Contributions:
    """What was added to the residual stream in one run, in the order it was added.

    - `tokens`, `positions`: labels of the whole prompt; which of its positions the rows are.
    - `embedding [position, hidden]`, then for each layer `attention [layer, position, hidden]` and
      `mlp [layer, position, hidden]`: what was written.
    - `mixed [layer, position, head, head_dim]`: what each head brought along, before `o_proj`.
    - `scales [layer, position, hidden]`: what a norm after attention (GLM-4-0414 has one) multiplied by; None without.
    - `edits [layer+1, position, hidden]`: what an active intervention on the stream itself (`steer`,
      `patch_hidden_state`, `skip_layer`) changed as it entered each layer; zeros without one.
    - `total [position, hidden]`: the stream after the last layer, before the final norm.
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

    def running_sum(self):
        """The residual stream `[2 * layer + 1, position, hidden]`: before everything, then after each part that
        wrote. Added in the model's own order, so where nothing was edited it is the stream bit for bit."""
        stream = [self.embedding + self.edits[0]]
        for attention, mlp, edit in zip(self.attention, self.mlp, self.edits[1:], strict=True):
            stream.append(stream[-1] + attention)
            after = stream[-1] + mlp
            stream.append(after + edit if edit.any() else after)
        return torch.stack(stream)


@dataclass(frozen=True, eq=False)
class DirectLogit:
    """A logit at one position (or the difference of two) taken apart: all parts sum to `total`.

    `embedding`, `edits`, `bias` and `total` are numbers; `attention [layer]` and `mlp [layer]` are what each part
    wrote; `heads [layer, head]` is attention once more, by head. `bias` is that of `lm_head`, if it has one.
    """

    embedding: float
    attention: torch.Tensor
    mlp: torch.Tensor
    heads: torch.Tensor
    edits: float
    bias: float
    total: float


def residual_contributions(model, tokenizer, prompt, *, positions=None, **model_inputs):
    """Run the model once and return its `Contributions`. `prompt`, `positions` and `model_inputs` are those of `trace`.

    Interventions that are active act on this run. Raises what `trace` raises, and `BadInputError` for a model
    whose layers add something besides attention and MLP.
    """
    base = decoder(model)
    names = {module: name for name, module in model.named_modules()}
    attention, mlp = zip(*(map(names.get, writers(layer)) for layer in base.layers), strict=True)
    o_proj = [names[layer.self_attn.o_proj] for layer in base.layers]
    before_norm = [names[layer.self_attn] for layer in base.layers if writers(layer)[0] is not layer.self_attn]
    run = trace(
        model,
        tokenizer,
        prompt,
        attentions=False,
        logits=False,
        positions=positions,
        outputs_of=[*attention, *mlp, *before_norm],
        inputs_of=o_proj,
        **model_inputs,
    )
    written = [torch.stack([run.outputs[name] for name in part]) for part in (attention, mlp)]
    mixed = torch.stack([run.inputs[name] for name in o_proj])
    scales = None
    if before_norm:
        norms = [writers(layer)[0] for layer in base.layers]
        scales = torch.stack([norm_scale(n, run.outputs[name]) for n, name in zip(norms, before_norm, strict=True)])
    stream = torch.cat([run.hidden_states[:-1], run.last_residual[None]])
    expected = stream[:-1] + written[0] + written[1]
    edits = torch.cat([torch.zeros_like(stream[:1]), stream[1:] - expected])
    if not _stream_is_hooked(base):
        _check_sum(model, stream, edits)
        edits = torch.zeros_like(edits)
    return Contributions(
        run.tokens,
        run.positions,
        stream[0],
        *written,
        mixed.unflatten(-1, (head_count(model), -1)),
        scales,
        edits,
        stream[-1],
    )


def head_contributions(model, parts, layer):
    """What each head of a layer wrote, `[head, position, hidden]`: their sum is `parts.attention[layer]`.

    A bias of `o_proj`, which most models do not have, belongs to no head. Raises `BadInputError` for a layer that
    is not there.
    """
    weight = _o_proj(model, layer).to(parts.mixed)
    heads = torch.einsum("phd,ohd->hpo", parts.mixed[layer], weight)
    return heads if parts.scales is None else heads * parts.scales[layer]


def direct_logit(model, parts, token_id, *, position=-1, against=None, layer=None):
    """What each part says about a token's logit, with the final norm's size held fixed: a `DirectLogit`.

    `parts` are the `Contributions` of a run and `position` counts in its rows. With `against`, another token's id,
    it is the difference of the two logits: what speaks for one and against the other. With `layer`, it is the logit
    that the logit lens gives to the stream after that many layers, and later layers count 0.

    Raises `BadInputError` for tokens, positions and layers that are not there, and for a final norm that is no RMSNorm.
    """
    base, head = decoder(model), model.get_output_embeddings()
    last = len(base.layers)
    layer = last if layer is None else layer
    _check_choice("layer", layer, 0, last)
    _check_choice("position", position, -len(parts.positions), len(parts.positions) - 1)
    for token in (token_id,) if against is None else (token_id, against):
        _check_choice("token id", token, 0, head.weight.shape[0] - 1)
    state = parts.running_sum()[2 * layer, position].float()
    direction = head.weight[token_id].detach().float().cpu()
    bias = getattr(head, "bias", None)
    bias = torch.zeros(head.weight.shape[0]) if bias is None else bias.detach().float().cpu()
    constant = bias[token_id]
    if against is not None:
        direction = direction - head.weight[against].detach().float().cpu()
        constant = constant - bias[against]
    direction = direction * norm_scale(base.norm, state)

    def says(written):
        values = written[:, position].float() @ direction
        values[layer + (len(values) - last) :] = 0  # rows of later layers; edits have one row more
        return values

    heads = torch.zeros(last, head_count(model))
    for number in range(layer):
        scale = 1 if parts.scales is None else parts.scales[number, position].float()
        seen = torch.einsum("o,ohd->hd", direction * scale, _o_proj(model, number).float().cpu())
        heads[number] = (seen * parts.mixed[number, position].float()).sum(-1)
    return DirectLogit(
        embedding=float(parts.embedding[position].float() @ direction),
        attention=says(parts.attention),
        mlp=says(parts.mlp),
        heads=heads,
        edits=float(says(parts.edits).sum()),
        bias=float(constant),
        total=float(state @ direction + constant),
    )


@torch.no_grad()
def norm_scale(norm, states):
    """What an RMSNorm multiplies each of `states [..., hidden]` by: its weight over the state's root mean square.

    Raises `BadInputError` for a norm that does something else.
    """
    states = states.float()
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if epsilon is not None and getattr(norm, "bias", None) is None:
        root = torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + epsilon)
        scale = norm.weight.float().cpu() * root
        normed = norm(states.to(norm.weight)).float().cpu()
        if torch.allclose(scale * states, normed, atol=1e-2 if norm.weight.dtype != torch.float32 else 1e-4, rtol=1e-2):
            return scale
    raise BadInputError(f"{type(norm).__name__} is no RMSNorm (a size and a weight): its scale cannot be held fixed.")


def _o_proj(model, layer):
    """`o_proj`'s weight by head, `[hidden, head, head_dim]`."""
    base = decoder(model)
    _check_choice("layer", layer, 0, len(base.layers) - 1)
    return base.layers[layer].self_attn.o_proj.weight.detach().unflatten(1, (head_count(model), -1))


def _stream_is_hooked(base):
    """Whether something sits on the stream itself: only then may it be more than the sum of what was written."""
    return any(place._forward_hooks or place._forward_pre_hooks for place in (*base.layers, base.norm))


def _check_sum(model, stream, edits):
    off = edits.abs().amax() / stream.abs().amax()
    if off > (1e-5 if stream.dtype == torch.float32 else 2e-2):
        raise BadInputError(
            f"In {type(model).__name__} attention and MLP are not all that is added to the residual stream (off by "
            f"{float(off):.2g} of its largest number): its parts cannot be told apart here."
        )


def _check_choice(what, value, low, high):
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadInputError(f"There is no {what} {value!r} here: they run from {low} to {high}.")
