"""Activation patching: which positions and layers carry the difference between two prompts?

Run one prompt, replace one of its hidden states by that of the other prompt, and see how far the answer moves
(Meng and others, "Locating and Editing Factual Associations in GPT", 2022). Repeated for all layers and
positions, this maps the path of a fact through the model.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from helpers.checks import shown
from helpers.errors import BadInputError
from helpers.inside.anatomy import anatomy, at_the_end, replace_output, with_first
from helpers.inside.exclusive import alone, in_this_thread
from helpers.inside.keeping import input_device
from helpers.inside.tracing import trace
from helpers.models.fitting import does_not_fit, release_cached
from helpers.models.memory import available_bytes, working_bytes
from helpers.models.out_of_memory import is_out_of_memory
from helpers.text.prompts import prompt_ids
from helpers.text.tokens import token_table

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PARTS = ("hidden_states", "attention", "mlp")
CPU_POSITIONS = 4096  # in a batch on a CPU: more are no faster
ROOM = 0.5  # how much of the free memory a batch may take, by the estimate


@dataclass(frozen=True, eq=False)
class PatchingSweep:
    """How far each patch moves the answer from `prompt` over to `source`.

    - `moved [row, position]`: 0 is the answer without a patch, 1 that of `source`; values below 0 and above 1 occur. A
      row is a hidden state's layer (0 is the embedding), or a layer whose attention or MLP was patched.
    - `layers`: the layer number of each row. `part`: "hidden_states", "attention" or "mlp".
    - `tokens`, `source_tokens`: labels of the two prompts.
    - `score`, `source_score`: the unpatched scores, logit of `answer` minus logit of `against` at the last position.

    >>> capital = "The capital of {} is"
    >>> sweep = patching_sweep(model, tokenizer, capital.format("Italy"), capital.format("France"), layers=[0])
    >>> list(sweep.moved.shape)
    [1, 5]
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

    `answer` and `against` are token ids, by default the model's predictions after `source` and after `prompt`. `part`
    is what is patched: the residual stream, or only what a layer's attention or MLP writes into it. `layers` are
    the rows wanted (all that have such a part, if not given). As many patches as memory allows, of several layers and
    positions, go through the model as one batch. Both prompts must have the same number of tokens, since positions
    are matched one to one.

    Afterwards the model is as it was, even after an error. Raises `BadInputError` for prompts of different lengths or
    with the same answer, and for a part, layer or token id that is not there; `DoesNotFitError` when there is no room
    for even one patch at a time; and whatever `trace` raises.
    """
    if part not in PARTS:
        raise BadInputError(f"What can be patched is {', '.join(PARTS)}, not {shown(part)}.")
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
        raise BadInputError(
            "The scores of these two tokens differ equally after both prompts, so a patch cannot move the answer: "
            "choose other prompts or tokens."
        )
    values = _values(model, tokenizer, source_ids, inside, part, layers)
    ids = ids.to(input_device(model))
    patches = [(layer, position) for layer in layers for position in range(length)]
    found: list[Tensor] = []
    at_once = min(len(patches), _most_at_once(model, length))
    # Not by logits_to_keep, which makes Gemma 4 drop positions in its upper layers.
    only_last = in_this_thread(lambda module, arguments: (arguments[0][:, -1:],))
    with alone(model, "patching_sweep"), torch.no_grad(), inside.head.register_forward_pre_hook(only_last):
        while len(found) < len(patches):
            now = patches[len(found) : len(found) + at_once]
            try:
                with _one_patch_a_row(inside, part, now, values):
                    logits = model(ids.expand(len(now), -1), use_cache=False).logits
                    logits = logits[:, -1, [answer, against]].float().cpu()  # nothing else is moved
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                logits = None
            if logits is not None:
                found.extend(logits[:, 0] - logits[:, 1])
                continue
            release_cached(input_device(model))
            if len(now) == 1:
                free = available_bytes(input_device(model))
                raise does_not_fit("A run with a patch", _row_bytes(model, length), free, str(input_device(model)), {})
            at_once = len(now) // 2
    moved = (torch.stack(found).view(len(layers), length) - score) / (source_score - score)
    return PatchingSweep(moved, layers, part, tokens, source_tokens, score, source_score)


def _row_bytes(model: PreTrainedModel, length: int) -> int:
    """The estimated bytes that one prompt of a batch takes: its peak working memory, its attention scores, and the
    logits of its last position, of which some models make a float32 copy."""
    config, width = model.config.get_text_config(), model.dtype.itemsize
    heads = getattr(config, "num_attention_heads", None) or 0  # Mamba has none
    return working_bytes(config, length, width) + 4 * heads * length**2 + (width + 4) * config.vocab_size


def _most_at_once(model: PreTrainedModel, length: int) -> int:
    """How many prompts of `length` tokens fit into a batch."""
    rows = int(ROOM * available_bytes(input_device(model))) // _row_bytes(model, length)
    return max(1, min(rows, CPU_POSITIONS // length) if input_device(model).type == "cpu" else rows)


def _check_tokens(answer: Any, against: Any, vocabulary: int) -> None:
    for token in (answer, against):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary:
            raise BadInputError(f"There is no token id {shown(token)}: ids run from 0 to {vocabulary - 1}.")
    if answer == against:
        raise BadInputError(
            f"Both prompts are answered with token {answer}: choose prompts whose answers differ, or name answer and "
            "against."
        )


def _rows(inside, part, layers):
    """The layers to patch: those given, or all that have the part."""
    last = len(inside.layers) - (part != "hidden_states")
    if layers is None:
        if part == "attention" and not inside.attention_layers:
            raise BadInputError(inside.without_attention([0]))
        return inside.attention_layers if part == "attention" else tuple(range(last + 1))
    layers = tuple(layers)
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer <= last:
            raise BadInputError(f"There is no layer {shown(layer)} of {part}: they run from 0 to {last}.")
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


def _one_patch_a_row(inside: Any, part: str, patches: list[tuple[int, int]], values: dict[int, Tensor]) -> ExitStack:
    """Hooks for one run of a batch `[patch, position, hidden]`: row r has at `patches[r]`, a layer and a position, what
    `values[layer]` has there. The patches of a layer follow each other."""
    hooks, start = ExitStack(), 0
    try:
        for layer, group in groupby(patches, key=lambda patch: patch[0]):
            positions = [position for _, position in group]
            rows = range(start, start + len(positions))
            hooks.enter_context(_patched(inside, part, layer, rows, positions, values[layer], len(patches)))
            start = rows.stop
    except BaseException:
        hooks.close()
        raise
    return hooks


def _patched(
    inside: Any, part: str, layer: int, rows: range, positions: list[int], value: Tensor, batch: int
) -> AbstractContextManager:
    """A hook on one layer for one run: the given rows of the batch have `value` at their positions."""

    def patched(states: Tensor) -> Tensor:
        shape = states.shape
        states = states.clone().view(batch, -1, shape[-1])  # OPT's MLP has the batch and its positions as one axis
        states[list(rows), positions] = value[positions].to(states)
        return states.view(shape)

    patched = in_this_thread(patched, otherwise=lambda states: states)
    if part != "hidden_states":
        return replace_output(_writer(inside, part, layer), patched)
    if layer == len(inside.layers):
        return at_the_end(inside, patched)
    return inside.layers[layer].module.register_forward_pre_hook(
        lambda module, arguments, keywords: with_first(arguments, keywords, patched), with_kwargs=True
    )
