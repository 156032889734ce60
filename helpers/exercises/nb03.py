"""Checks for notebook 03: what the cache holds, min-p, terminators, an answer's probability, the loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from helpers.exercises import exercise, require

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from helpers.inside.generation import GenerationStep
    from helpers.text.prompts import RenderedChat

STORY = "Tell me a story about a cat."
CAPITAL = "What is the capital of France?"


@cache
def _default() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The default model and its tokenizer."""
    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_tokenizer

    return load_model("smollm2-135m", device="cpu"), load_tokenizer("smollm2-135m")


def _chat(text: str) -> RenderedChat:
    from helpers.text.prompts import render_chat

    return render_chat(_default()[1], [{"role": "user", "content": text}])


def _answer(text: str, **settings: Any) -> list[GenerationStep]:
    """The steps of the default model's answer to one user message."""
    from helpers.inside.generation import generate_steps

    return list(generate_steps(*_default(), _chat(text), **settings))


@exercise("03.1", expects=Callable)
def _(answer: Any) -> str:
    new_tokens = 4
    steps = _answer(STORY, max_new_tokens=new_tokens, eos_token_id=[])
    prompt_length, held = steps[0].input_ids.shape[1], steps[-1].kv_length
    given = answer(prompt_length, new_tokens)
    require(
        given != held + 1,
        f"for a prompt of {prompt_length} and {new_tokens} new tokens that is {given}: it counts the last token, "
        "which was chosen but never read.",
    )
    require(
        given == held,
        f"for a prompt of {prompt_length} and {new_tokens} new tokens the cache holds {held} positions, "
        f"your function says {given}.",
    )
    require(answer(7, 1) == 7, "with one new token the model reads the prompt and nothing else.")
    return "Each turn reads what the turn before chose, and after the last there is no turn."


@exercise("03.2", expects=Callable)
def _(answer: Any) -> str:
    import torch
    from transformers import MinPLogitsWarper

    scores = torch.stack([_answer(text, max_new_tokens=1)[0].logits for text in (STORY, CAPITAL)])
    for min_p in (0.5, 0.1, 0.02):
        given = answer(scores.clone(), min_p)
        require(
            isinstance(given, torch.Tensor) and given.shape == scores.shape,
            f"it should return scores of the shape it was given, {list(scores.shape)}.",
        )
        require(not (given == 0).any(), "some scores are 0, which is a score like any other: what goes becomes -inf.")
        left = given.isfinite()
        require(
            torch.equal(given[left], scores[left]),
            "the tokens that stay should keep the scores that they came with.",
        )
        expected = MinPLogitsWarper(min_p)(None, scores)
        counts, right = left.sum(dim=-1).tolist(), expected.isfinite().sum(dim=-1).tolist()
        require(
            torch.equal(given, expected),
            f"with min_p={min_p} there should be {right} tokens left in the two rows, yours leaves {counts}. "
            "Measure against each row's best token.",
        )
    return "Equal to the library's MinPLogitsWarper."


@exercise("03.3", expects=list)
def _(answer: Any) -> str:
    tokenizer = _default()[1]
    ids = [i for i in answer if isinstance(i, int) and not isinstance(i, bool)]
    require(len(ids) == len(answer), "a terminator is a token id; convert_tokens_to_ids gives it for a token's text.")
    require(
        tokenizer.eos_token_id in ids,
        "an answer without a full stop would run to the limit: keep the model's own terminator in the list.",
    )
    for mark in (".", "!", "?"):
        require(tokenizer.convert_tokens_to_ids(mark) in ids, f"a sentence may end in {mark!r}, and yours would go on.")
    for text in (STORY, CAPITAL, "What do you call someone who helps a professor with research?"):
        steps = _answer(text, max_new_tokens=40, eos_token_id=ids)
        said = tokenizer.decode([step.token_id for step in steps])
        require(steps[-1].stopped_by == "end_of_turn", f"this went on to the limit: {said!r}.")
        require(
            said[-1] in ".!?" and not any(mark in said[:-1] for mark in ".!?"), f"this is not one sentence: {said!r}."
        )
    return "One sentence, and whichever terminator comes first ends it."


@exercise("03.4", expects=Callable)
def _(answer: Any) -> str:
    import torch

    model = _default()[0]
    for text in (CAPITAL, STORY):
        steps = _answer(text, max_new_tokens=10)
        prompt_length = steps[0].input_ids.shape[1]
        ids = torch.tensor([_chat(text).input_ids + [step.token_id for step in steps]])
        expected = sum(float(step.logits.log_softmax(dim=-1)[step.token_id]) for step in steps)
        given = float(answer(model, ids, prompt_length))
        require(given < 0, f"a log-probability is below 0; this is {given:.3g}. Probabilities need log_softmax first.")
        require(
            abs(given - expected) < 0.01 * abs(expected) + 0.01,
            f"the loop's own steps add up to {expected:.3g}, your function gives {given:.3g}. Is the token at position "
            "i judged by the logits at i - 1, and is the prompt left out?",
        )
    return "One pass says what the loop says, turn for turn."


@exercise("03.5", expects=Callable)
def _(answer: Any) -> str:
    import torch

    model = _default()[0]
    tries = (
        (STORY, {"temperature": 0.2, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1}, 12),
        (CAPITAL, {"temperature": 0.2, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1}, 12),
        (STORY, {"temperature": 1.3, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.3}, 8),
    )
    for text, settings, limit in tries:
        ids = torch.tensor([_chat(text).input_ids])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            given = answer(model, ids, limit, **settings)
            torch.manual_seed(0)
            mask = torch.ones_like(ids)
            expected = model.generate(ids, attention_mask=mask, max_new_tokens=limit, do_sample=True, **settings)
        require(isinstance(given, torch.Tensor) and given.dim() == 2, "it should return ids [1, length].")
        require(
            torch.equal(given[:, : ids.shape[1]], ids), "the ids should begin with the prompt, as those of generate."
        )
        mine, theirs = given[0, ids.shape[1] :].tolist(), expected[0, ids.shape[1] :].tolist()
        same = next((n for n, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]), None)
        require(
            same is None,
            f"with {settings} new token {same} differs from generate's. Is every processor there, in the "
            "order of section 5, and one draw a turn?",
        )
        require(
            len(mine) == len(theirs),
            f"generate stops after {len(theirs)} new tokens, yours after {len(mine)}: look at the terminator.",
        )
    return "Token for token what generate gives."
