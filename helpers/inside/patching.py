"""Activation patching: which positions and layers carry what tells two prompts apart?

Run one prompt, put into it what the other prompt had at a single place, and see how far the answer
moves over (Meng and others, "Locating and Editing Factual Associations in GPT", 2022). Swept over all
layers and positions it draws the way of a fact through the model.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import torch

from helpers.errors import BadInputError
from helpers.inside.anatomy import decoder, writers
from helpers.inside.tracing import trace
from helpers.text.prompts import prompt_ids
from helpers.text.tokens import token_table

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


def patching_sweep(model, tokenizer, prompt, source, *, answer=None, against=None, part="hidden_states", layers=None):
    """Patch every layer and position of `prompt` with what `source` had there, one at a time: a `PatchingSweep`.

    >>> patching_sweep(model, tokenizer, "The capital of Germany is", "The capital of France is").moved

    `answer` and `against` are token ids: by default what the model says after `source` and after `prompt`. `part`
    is what is patched: the residual stream, or only what a layer's attention or MLP writes into it. `layers` are
    the rows wanted (all, if not given). All positions of a layer go through the model as one batch, so it costs one
    run of `length` prompts a layer. Prompts are of the same number of tokens, since positions are matched one to one.

    The model is as it was afterwards, also after an error. Raises `BadInputError` for prompts of different
    lengths or with the same answer, for a part, layer or token id that is not there; else what `trace` raises.
    """
    if part not in PARTS:
        raise BadInputError(f"What can be patched is {', '.join(PARTS)}, not {part!r}.")
    base = decoder(model)
    last = len(base.layers) - (part != "hidden_states")
    layers = tuple(range(last + 1)) if layers is None else tuple(layers)
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer <= last:
            raise BadInputError(f"There is no layer {layer!r} of {part}: they run from 0 to {last}.")
    ids, source_ids = (prompt_ids(tokenizer, p, context=base.config.max_position_embeddings) for p in (prompt, source))
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
    values = _values(model, tokenizer, source_ids, part)
    batch = ids.to(model.device).expand(length, length)
    moved = torch.empty(len(layers), length)
    with torch.no_grad():
        for row, layer in enumerate(layers):
            with _one_position_a_row(base, part, layer, values[layer]):
                logits = model(batch, logits_to_keep=1, use_cache=False).logits[:, -1].float().cpu()
            moved[row] = (logits[:, answer] - logits[:, against] - score) / (source_score - score)
    return PatchingSweep(moved, layers, part, tokens, source_tokens, score, source_score)


def _check_tokens(answer, against, vocabulary):
    for token in (answer, against):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary:
            raise BadInputError(f"There is no token id {token!r}: ids run from 0 to {vocabulary - 1}.")
    if answer == against:
        raise BadInputError(
            f"Both prompts are answered with token {answer}: choose prompts whose answers differ, or name answer and "
            "against."
        )


def _values(model, tokenizer, ids, part):
    """What `source` had, `[layer, position, hidden]`: the stream, or what attention or MLP wrote."""
    base = decoder(model)
    if part == "hidden_states":
        run = trace(model, tokenizer, ids, attentions=False, logits=False)
        return torch.cat([run.hidden_states[:-1], run.last_residual[None]])
    names = {module: name for name, module in model.named_modules()}
    modules = [names[writers(layer)[PARTS.index(part) - 1]] for layer in base.layers]
    run = trace(model, tokenizer, ids, attentions=False, logits=False, hidden_states=False, outputs_of=modules)
    return torch.stack([run.outputs[name] for name in modules])


def _one_position_a_row(base, part, layer, value):
    """Hooks for one run of a batch `[position, position, hidden]`: row p has `value[p]` at position p."""

    def patched(states):
        states = states.clone()
        diagonal = range(len(value))
        states[diagonal, diagonal] = value.to(states)
        return states

    def before(module, arguments, keywords):
        if arguments:
            return (patched(arguments[0]), *arguments[1:]), keywords
        return arguments, {**keywords, "hidden_states": patched(keywords["hidden_states"])}

    def after(module, arguments, output):
        return (patched(output[0]), *output[1:]) if isinstance(output, tuple) else patched(output)

    hooks = ExitStack()
    if part == "hidden_states":
        place = base.norm if layer == len(base.layers) else base.layers[layer]
        hooks.enter_context(place.register_forward_pre_hook(before, with_kwargs=True))
    else:
        place = writers(base.layers[layer])[PARTS.index(part) - 1]
        hooks.enter_context(place.register_forward_hook(after))
    return hooks
