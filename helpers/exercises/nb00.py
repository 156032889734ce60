"""Checks of notebook 00, start here."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from helpers.exercises import exercise, require

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@cache
def _default() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The default model and its tokenizer."""
    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_tokenizer

    return load_model("smollm2-135m", device="cpu"), load_tokenizer("smollm2-135m")


@cache
def _scores_after(text: str) -> Tensor:
    """The default model's scores `[vocabulary]` for what comes after a text."""
    import torch

    model, tokenizer = _default()
    with torch.inference_mode():
        return model(tokenizer(text, return_tensors="pt").input_ids, logits_to_keep=1).logits[0, -1]


@exercise("00.1", expects=int)
def _(answer: Any) -> str:
    from helpers.models.catalog import find_card

    entries = find_card("smollm2-135m").vocab_size
    require(answer != entries, "that is how many there are for one position of one prompt.")
    require(answer != 7 * entries, "that is one prompt of 7 tokens. Here are three.")
    require(answer != 3 * entries, "that is one position of each prompt. A forward pass scores every position.")
    require(answer != 21, "that is how many positions there are. Each of them gets a score for every vocabulary entry.")
    require(answer == 21 * entries, f"not {answer:,}. Multiply the three sizes: [batch, position, vocabulary].")
    return "This is how a check answers. Hints and solutions are there whenever you want them."


@exercise("00.2", expects=str)
def _(answer: Any) -> str:
    tokenizer = _default()[1]
    best = [tokenizer.decode(_scores_after(f"The capital of {country} is").argmax()) for country in ("Italy", "France")]
    require(answer != best[1], "that is the answer for France. Change the text, and run the cells from there on again.")
    require(
        answer == best[0] or answer.strip("·") != best[0].strip(),
        f"nearly: the token is {best[0]!r}. The dot stands for a space, and the space belongs to the token.",
    )
    require(
        answer == best[0], f"{answer!r} is not the most likely token. Try tokenizer.decode(probabilities.argmax())."
    )
    return "With the same weights, a different text gives a different winner, and this time the model is less sure."


@exercise("00.3", expects=str)
def _(answer: Any) -> str:
    beginning = "The capital of France is"
    best, second, always_second = _continued(beginning)
    answer, best, second, always_second = (text.strip() for text in (answer, best, second, always_second))
    require(answer != best, "that is what the most likely tokens give. The first round has to take a different token.")
    require(answer != always_second, "that takes the second best token in every round. Only the first round should.")
    require(answer.startswith(beginning), f"the whole text begins with {beginning!r}.")
    require(answer == second or not second.startswith(answer), "so far, so good. Eight rounds, please.")
    require(answer == second or not answer.startswith(second), "that is more than eight rounds.")
    require(answer == second, "that is not it. Take the second most likely token first, then the best one seven times.")
    return "One different token at the start leads to a different sentence, which is true but useless."


@exercise("00.4", expects=int)
def _(answer: Any) -> str:
    reached = _scores_after("The capital of France is").softmax(-1).sort(descending=True).values.cumsum(0)
    count = int((reached < 0.99).sum()) + 1
    require(answer > 0, "it takes at least one.")
    require(answer != count - 1, "with that many it is still a little less than 99%. Take one more.")
    require(answer <= len(reached), f"the vocabulary has {len(reached):,} entries.")
    together = f"{answer:,} entries come to {reached[answer - 1]:.1%}"
    require(answer >= count, f"{together}: that is less than 99%.")
    require(answer == count, f"{together}, but fewer are enough.")
    return "The distribution has a long tail: most of these tokens are nearly impossible, but together they count."


@cache
def _continued(beginning: str) -> list[str]:
    """The text after eight rounds that take the best token each, the second best first, and always the second best."""
    import torch

    model, tokenizer = _default()
    ids = tokenizer([beginning] * 3, return_tensors="pt").input_ids
    places = torch.tensor([[0] * 8, [1] + [0] * 7, [1] * 8]).T[:, :, None]  # in the ranking, [round, text, 1]
    with torch.inference_mode():
        for place in places:
            best_two = model(ids, logits_to_keep=1).logits[:, -1].topk(2).indices
            ids = torch.cat([ids, best_two.gather(-1, place)], dim=-1)
    return tokenizer.batch_decode(ids)
