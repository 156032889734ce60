"""Activation patching: which positions and layers carry what tells two prompts apart?

Run one prompt, put into it what the other prompt had at a single place, and see how far the answer
moves over (Meng and others, "Locating and Editing Factual Associations in GPT", 2022). Swept over all
layers and positions it draws the way of a fact through the model.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from helpers.errors import BadInputError
from helpers.inside.anatomy import anatomy, at_the_end, replace_output, with_first
from helpers.inside.exclusive import one_at_a_time
from helpers.inside.tracing import trace
from helpers.text.prompts import prompt_ids
from helpers.text.tokens import token_table

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PARTS = ("hidden_states", "attention", "mlp")


@dataclass(frozen=True, eq=False)
class PatchingSweep:
    """How far each patch moves the answer from `prompt` over to `source`.

    - `moved [row, position]`: 0 is as without a patch, 1 as in `source`; it may be below 0 or above 1. A row is a
      hidden state's layer (0 the embedding), or a layer whose attention or MLP was patched.
    - `layers`: the row's layer numbers. `part`: "hidden_states", "attention" or "mlp".
    - `tokens`, `source_tokens`: labels of the two prompts.
    - `score`, `source_score`: the unpatched scores, logit of `answer` minus logit of `against` at the last position.
    """

    moved: torch.Tensor
    layers: tuple[int, ...]
    part: str
    tokens: tuple[str, ...]
    source_tokens: tuple[str, ...]
    score: float
    source_score: float


def patching_sweep(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Any,
    source: str,
    *,
    answer: Any = None,
    against: Any = None,
    part: str = "hidden_states",
    layers: Any = None,
) -> PatchingSweep:
    """Patch every layer and position of `prompt` with what `source` had there, one at a time: a `PatchingSweep`.

    >>> sweep = patching_sweep(model, tokenizer, "The capital of Italy is", "The capital of France is", layers=[0, 30])
    >>> [[round(abs(number)) for number in row] for row in sweep.moved.tolist()]
    [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]

    `answer` and `against` are token ids: by default what the model says after `source` and after `prompt`. `part`
    is what is patched: the residual stream, or only what a layer's attention or MLP writes into it. `layers` are
    the rows wanted (all that have such a part, if not given). All positions of a layer go through the model as one
    batch, so it costs one run of `length` prompts a layer. Prompts are of the same number of tokens, since positions
    are matched one to one.

    The model is as it was afterwards, also after an error. Raises `BadInputError` for prompts of different
    lengths or with the same answer, for a part, layer or token id that is not there; else what `trace` raises.
    """
    if part not in PARTS:
        raise BadInputError(f"What can be patched is {', '.join(PARTS)}, not {part!r}.")
    inside = anatomy(model)
    layers = _rows(inside, part, layers)
    ids, source_ids = (prompt_ids(tokenizer, p, context=inside.context) for p in (prompt, source))
    tokens, source_tokens = (tuple(row.label for row in token_table(tokenizer, i)) for i in (ids, source_ids))
    length = ids.shape[1]
    if length != source_ids.shape[1]:
        raise BadInputError(
            f"The prompts have {length} and {source_ids.shape[1]} tokens; only equal lengths can be patched by "
            f"position: {' '.join(tokens)} | {' '.join(source_tokens)}"
        )
    plain, source_run = (trace(model, tokenizer, i, attentions=False, hidden_states=False) for i in (ids, source_ids))
    answer = int(source_run.logits[-1].argmax()) if answer is None else answer
    against = int(plain.logits[-1].argmax()) if against is None else against
    _check_tokens(answer, against, plain.logits.shape[-1])
    score, source_score = (float(run.logits[-1, answer] - run.logits[-1, against]) for run in (plain, source_run))
    if abs(source_score - score) < 1e-6:
        raise BadInputError("Both prompts give these two tokens the same scores: there is nothing to move over.")
    values = _values(model, tokenizer, source_ids, inside, part, layers)
    batch = ids.to(model.device).expand(length, length)
    moved = torch.empty(len(layers), length)
    # Not by logits_to_keep: that has Gemma 4 leave out positions in its upper layers.
    only_last = inside.head.register_forward_pre_hook(lambda module, arguments: (arguments[0][:, -1:],))
    with one_at_a_time(model, "patching_sweep"), torch.no_grad(), only_last:
        for row, layer in enumerate(layers):
            with _one_position_a_row(inside, part, layer, values[layer]):
                logits = model(batch, use_cache=False).logits[:, -1].float().cpu()
            moved[row] = (logits[:, answer] - logits[:, against] - score) / (source_score - score)
    return PatchingSweep(moved, layers, part, tokens, source_tokens, score, source_score)


def _check_tokens(answer: Any, against: Any, vocabulary: int) -> None:
    for token in (answer, against):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary:
            raise BadInputError(f"There is no token id {token!r}: ids run from 0 to {vocabulary - 1}.")
    if answer == against:
        raise BadInputError(
            f"Both prompts are answered with token {answer}: choose prompts whose answers differ, or name answer and "
            "against."
        )


def _rows(inside, part, layers):
    """The layers to patch: those asked for, or all that have the part."""
    last = len(inside.layers) - (part != "hidden_states")
    if layers is None:
        if part == "attention" and not inside.attention_layers:
            raise BadInputError(inside.without_attention([0]))
        return inside.attention_layers if part == "attention" else tuple(range(last + 1))
    layers = tuple(layers)
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer <= last:
            raise BadInputError(f"There is no layer {layer!r} of {part}: they run from 0 to {last}.")
    return layers


def _writer(inside, part, layer):
    return inside.attention(layer) if part == "attention" else inside.mlp(layer)


def _values(model, tokenizer, ids, inside, part, layers):
    """What `source` had, by layer, `[position, hidden]` each: the stream, or what attention or MLP wrote."""
    if part == "hidden_states":
        run = trace(model, tokenizer, ids, attentions=False, logits=False)
        stream = [*run.hidden_states[:-1], run.last_residual]
        return {layer: stream[layer] for layer in layers}
    names = {module: name for name, module in model.named_modules()}
    writers = {layer: _writer(inside, part, layer) for layer in layers}
    wanted = dict.fromkeys(names[writer.writer] for writer in writers.values())
    run = trace(model, tokenizer, ids, attentions=False, logits=False, hidden_states=False, outputs_of=wanted)
    given = {layer: run.outputs[names[writer.writer]] for layer, writer in writers.items()}
    return {layer: g[writers[layer].place] if isinstance(g, tuple) else g for layer, g in given.items()}


def _one_position_a_row(inside: Any, part: str, layer: int, value: Tensor) -> Any:
    """Hooks for one run of a batch `[position, position, hidden]`: row p has `value[p]` at position p."""

    def patched(states: Tensor) -> Tensor:
        shape, rows = states.shape, len(value)
        states = states.clone().view(rows, rows, -1)  # OPT's MLP has the batch and its positions as one axis
        diagonal = range(rows)
        states[diagonal, diagonal] = value.to(states)
        return states.view(shape)

    hooks = ExitStack()
    if part != "hidden_states":
        hooks.enter_context(replace_output(_writer(inside, part, layer), patched))
    elif layer == len(inside.layers):
        hooks.enter_context(at_the_end(inside, patched))
    else:
        hook = inside.layers[layer].module.register_forward_pre_hook(
            lambda module, arguments, keywords: with_first(arguments, keywords, patched), with_kwargs=True
        )
        hooks.enter_context(hook)
    return hooks
