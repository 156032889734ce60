"""Checks for notebook 06: rows of the lens, heads of an answer, a mean ablation, a lens, one head at one position."""

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
    require(not wrong, f"at row {wrong[0] if wrong else ''} another token is ahead of 5: only rank 0 is the top.")
    missing = len(set(right) - set(answer))
    require(missing == 0, f"{missing} more row(s) read 5 on top, and not all of them follow one another.")
    return f"It comes at row {right[0]}, goes, and comes back."


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
        f"{given[0]} does not write most for Berlin against Paris. Is it the German prompt that you take apart, and "
        "are layer and head the right way round?",
    )
    require(set(given) == set(right), "the first is right; one of the others is not. Did you subtract Paris?")
    require(given == right, "the right three, but not in the order of what they write.")
    return "Head 4 of layer 23 once more, for another country: it is not the Paris head."


def _mean_log_p() -> float:
    import torch

    found = [_logits(_prompt(country)).log_softmax(-1)[_token(f" {city}")] for country, city in CAPITALS.items()]
    return float(torch.stack(found).mean())


@cache
def _changes() -> Any:
    """(with the head's mean, with zeros): change of the mean log probability."""
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
        "that is the change with zeros. What does `value` get, and which axis is the mean taken over?",
    )
    require(
        abs(answer - with_mean) < 0.02,
        f"{answer:.3g} is not it. The mean is one vector [head_dim]: over the nine prompts, at their last position.",
    )
    return f"{with_mean:.2f} with its mean, {with_zeros:.2f} with zeros: zero is a value too, and an unusual one."


def _tiny(family: str) -> PreTrainedModel:
    """A small random model whose final norm has weights that matter."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 61, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes), dtype=torch.float32).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
    return model


@exercise("06.4", expects=Callable)
def _(answer: Any) -> str:
    import torch

    states = 3 * torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    for family in ("llama", "glm"):
        model = _tiny(family)
        with torch.no_grad():
            logits = model.lm_head(model.model.norm(states))
            unnormed = model.lm_head(states)
        for token in (0, 17, 60):
            given = answer(model, states.clone(), token)
            require(
                isinstance(given, torch.Tensor) and given.shape == (7,) and not given.is_floating_point(),
                "for 7 rows it should be an int tensor [7].",
            )
            right = (logits > logits[:, token, None]).sum(-1)
            require(
                not torch.equal(given, (unnormed > unnormed[:, token, None]).sum(-1)) or torch.equal(given, right),
                "these are the ranks without the final norm: its weights change them.",
            )
            require(
                not torch.equal(given, right + 1),
                "all are one too high: the top token has rank 0, none is ahead of it.",
            )
            require(
                torch.equal(given, right), f"for a tiny {family} it should be {right.tolist()}, not {given.tolist()}."
            )
    return "The ranks of any token, for Llama and GLM."


@cache
def _shares() -> Any:
    """head -> (at the last position only, at every position): how far the lead moves."""
    from helpers.inside.interventions import ablate_heads

    paris, berlin = _token(" Paris"), _token(" Berlin")

    def lead(country: str) -> float:
        logits = _logits(_prompt(country))
        return float(logits[paris] - logits[berlin])

    before, goal = lead("Germany"), lead("France")
    shares = []
    for head in range(9):
        value = _parts("Germany").mixed[HEAD[0], :, head].clone()
        value[-1] = _parts("France").mixed[HEAD[0], -1, head]
        with ablate_heads(_default()[0], [(HEAD[0], head)], value=value[:, None]):
            shares.append((lead("Germany") - before) / (goal - before))
    return shares


@exercise("06.5", expects=Callable)
def _(answer: Any) -> str:
    for head, right in enumerate(_shares()):
        given = answer(head)
        require(isinstance(given, float | int), f"for head {head} it should return a number.")
        require(
            abs(given - right) < 0.005,
            f"head {head} moves the lead {right:.3f} of the way, not {given:.3f}. Is every position but the last still "
            "the German prompt's own, and are the 0 and the 1 of the way before and goal?",
        )
    return "One head, one position, 64 numbers."
