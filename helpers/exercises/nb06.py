"""Checks for notebook 06: rows of the lens, an answer's heads, a mean ablation, a head's sources, one patched head."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from helpers.exercises import exercise, require

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from helpers.inside.contributions import Contributions

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "Greece": "Athens",
    "England": "London",
    "Russia": "Moscow",
    "China": "Beijing",
}
HEAD = (23, 4)


@cache
def _default() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The default model and its tokenizer."""
    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_tokenizer

    return load_model("smollm2-135m", device="cpu"), load_tokenizer("smollm2-135m")


def _prompt(country: str) -> str:
    return f"The capital of {country} is"


def _token(text: str) -> int:
    return _default()[1](text)["input_ids"][0]


@cache
def _parts(country: str) -> Contributions:
    from helpers.inside.contributions import residual_contributions

    return residual_contributions(*_default(), _prompt(country))


def _logits(prompt: str) -> Tensor:
    from helpers.inside.tracing import trace

    return trace(*_default(), prompt, hidden_states=False, attentions=False).logits[-1]


@cache
def _rows_of_five() -> list[int]:
    from helpers.inside.lens import logit_lens
    from helpers.inside.tracing import trace

    model, tokenizer = _default()
    run = trace(model, tokenizer, "1、2、3、4、", attentions=False, logits=False, positions=-1)
    first = logit_lens(model, run, top_k=1).token_ids[:, 0, 0]
    return (first == _token("5")).nonzero().flatten().tolist()


@exercise("06.1", expects=list)
def _(answer: Any) -> str:
    right = _rows_of_five()
    require(all(row in range(31) for row in answer), "rows run from 0 (embedding) to 30.")
    require(30 in answer, "row 30 is the model's own prediction, and that is 5.")
    wrong = [row for row in answer if row not in right]
    require(not wrong, f"at row {wrong[0] if wrong else ''} another token is ahead of 5: only rank 1 is the top.")
    missing = len(set(right) - set(answer))
    require(missing == 0, f"{missing} more row(s) have 5 at the top, and they are not all next to each other.")
    return f"It appears at row {right[0]}, disappears, and comes back."


@exercise("06.2", expects=list)
def _(answer: Any) -> str:
    from helpers.inside.contributions import direct_logit

    require(
        len(answer) == 3 and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in answer),
        "it should hold three pairs (layer, head).",
    )
    model, _ = _default()
    heads = direct_logit(model, _parts("Germany"), _token(" Berlin"), against=_token(" Paris")).heads
    right = [divmod(index, heads.shape[1]) for index in heads.flatten().topk(3).indices.tolist()]
    given = [tuple(pair) for pair in answer]
    require(
        given[0] == right[0],
        f"{given[0]} does not write the most for Berlin against Paris. Did you take the Germany prompt, and are layer "
        "and head the right way round?",
    )
    require(set(given) == set(right), "the first is right; at least one of the others is not. Did you subtract Paris?")
    require(given == right, "these are the right three, but they should be in order of size, largest first.")
    return "Head 4 of layer 23 again, for another country: so it is not just the head for Paris."


def _mean_log_p() -> float:
    import torch

    found = [_logits(_prompt(country)).log_softmax(-1)[_token(f" {city}")] for country, city in CAPITALS.items()]
    return float(torch.stack(found).mean())


@cache
def _changes() -> Any:
    """The change of the mean log probability: [with the head's mean, with zeros]."""
    import torch

    from helpers.inside.interventions import ablate_heads

    layer, head = HEAD
    mean = torch.stack([_parts(country).mixed[layer, -1, head] for country in CAPITALS]).mean(0)
    intact, changes = _mean_log_p(), []
    for value in (mean, 0.0):
        with ablate_heads(_default()[0], [HEAD], value=value):
            changes.append(_mean_log_p() - intact)
    return changes


@exercise("06.3", expects=float)
def _(answer: Any) -> str:
    with_mean, with_zeros = _changes()
    require(answer < 0, "it falls: the change is below 0.")
    require(
        abs(answer - with_zeros) > 0.02,
        "that is the change with zeros. What did you pass as `value`, and which axis is the mean taken over?",
    )
    require(
        abs(answer - with_mean) < 0.02,
        f"{answer:.3g} is not it. The mean is one vector [head_dim]: over the nine prompts, at their last position.",
    )
    return f"{with_mean:.2f} with its mean, {with_zeros:.2f} with zeros: zero is a value too, and an unusual one."


SOURCE_HEADS = ((23, 4), (29, 1), (10, 6))


def _by_position(layer: int, head: int, *, value_head: int | None = None, against: str | None = " London") -> Any:
    """(attention weights, contributions, contributions without the final norm) at the last position, `[position]` each.

    `value_head` and `against` produce wrong answers that a reader may give.
    """
    from helpers.inside.tracing import trace

    model, tokenizer = _default()
    config, norm = model.config, model.model.norm
    name = f"model.layers.{layer}.self_attn"
    run = trace(model, tokenizer, _prompt("France"), hidden_states=False, layers=layer, outputs_of=f"{name}.v_proj")
    group = config.num_attention_heads // config.num_key_value_heads
    values = run.outputs[f"{name}.v_proj"].view(len(run.tokens), config.num_key_value_heads, -1)
    columns = model.get_submodule(f"{name}.o_proj").weight.detach().view(config.hidden_size, -1, config.head_dim)
    unembedding = model.lm_head.weight.detach()
    difference = unembedding[_token(" Paris")] - (unembedding[_token(against)] if against else 0)
    final = _parts("France").total[-1]
    divisor = (final.pow(2).mean() + config.rms_norm_eps).sqrt()
    weights = run.attentions[0, head, -1]
    written = values[:, head // group if value_head is None else value_head] @ columns[:, head].T
    return (
        weights,
        weights * (written @ (difference * norm.weight.detach() / divisor)),
        weights * (written @ difference),
    )


@exercise("06.4", expects=Callable)
def _(answer: Any) -> str:
    import torch

    def same(given: Tensor, other: Tensor) -> bool:
        return torch.allclose(given.float().cpu(), other, atol=2e-3, rtol=1e-2)

    for layer, head in SOURCE_HEADS:
        weights, right, unnormed = _by_position(layer, head)
        given, which = answer(layer, head), f"head {head} of layer {layer}"
        require(
            isinstance(given, torch.Tensor) and tuple(given.shape) == tuple(right.shape),
            f"for {which} it should be a tensor of shape {list(right.shape)}: one number per token of "
            "the English prompt.",
        )
        if same(given, right):
            continue
        require(
            not same(given, weights),
            f"for {which} these are the attention weights. They say how much is taken from a position, not what.",
        )
        require(
            not same(given, _by_position(layer, head, against=None)[1]),
            f"for {which} this is the logit of Paris alone: subtract what the head adds to London's.",
        )
        require(
            not same(given, unnormed),
            f"for {which} the final norm is missing: use the divisor of section 5, then multiply by the norm's weight.",
        )
        require(
            not any(same(given, _by_position(layer, head, value_head=other)[1]) for other in range(3)),
            f"for {which} the values are those of another group: heads 0, 1 and 2 share the first of the three.",
        )
        require(
            abs(float(given.sum() - right.sum())) > 0.01,
            f"for {which} the sum is right but the positions are not: use the attention weights of the last query.",
        )
        require(False, f"for {which} the sum should be {float(right.sum()):.3f}; yours is {float(given.sum()):.3f}.")
    return "Head 4 of layer 23 takes it from France, head 1 of layer 29 from the last position itself."


@cache
def _moved() -> Any:
    """For each head of the layer, how far the lead moves when the head is patched at the last position only: 0 is not
    at all, 1 the whole way to the other prompt's lead."""
    from helpers.inside.interventions import ablate_heads

    paris, berlin = _token(" Paris"), _token(" Berlin")

    def lead(country: str) -> float:
        logits = _logits(_prompt(country))
        return float(logits[paris] - logits[berlin])

    before, goal = lead("Germany"), lead("France")
    moved = []
    for head in range(9):
        value = _parts("Germany").mixed[HEAD[0], :, head].clone()
        value[-1] = _parts("France").mixed[HEAD[0], -1, head]
        with ablate_heads(_default()[0], [(HEAD[0], head)], value=value[:, None]):
            moved.append((lead("Germany") - before) / (goal - before))
    return moved


@exercise("06.5", expects=Callable)
def _(answer: Any) -> str:
    for head, right in enumerate(_moved()):
        given = answer(head)
        require(isinstance(given, float | int), f"for head {head} it should return a number.")
        require(
            abs(given - right) < 0.005,
            f"head {head} moves the lead {right:.3f} of the way, not {given:.3f}. Do all positions but the last keep "
            "the Germany prompt's own values, and is the result 0 for no change and 1 for the France prompt's lead?",
        )
    return "One head, one position, 64 numbers."
