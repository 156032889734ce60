"""Checks for notebook 03: what the cache holds, min-p, terminators, an answer's probability, the loop for a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from helpers.exercises import exercise, require

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
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


def _answer(text: str, *, eos_token_id: Iterable[int] | None = None, max_new_tokens: int) -> list[GenerationStep]:
    """The steps of the default model's answer to one user message."""
    return _kept_answer(text, None if eos_token_id is None else tuple(eos_token_id), max_new_tokens)


@cache
def _kept_answer(text: str, eos_token_id: tuple[int, ...] | None, max_new_tokens: int) -> list[GenerationStep]:
    """The same, computed once, since a reader may try many answers to an exercise."""
    from helpers.inside.generation import generate_steps

    ends: dict[str, Any] = {} if eos_token_id is None else {"eos_token_id": list(eos_token_id)}
    return list(generate_steps(*_default(), _chat(text), max_new_tokens=max_new_tokens, **ends))


@exercise("03.1", expects=Callable)
def _(answer: Any) -> str:
    new_tokens = 4
    steps = _answer(STORY, max_new_tokens=new_tokens, eos_token_id=[])
    prompt_length, held = steps[0].input_ids.shape[1], steps[-1].kv_length
    given = answer(prompt_length, new_tokens)
    require(
        given != held + 1,
        f"for a prompt of {prompt_length} tokens and {new_tokens} new ones your function returns {given}: it counts "
        "the last token, which was chosen but never read.",
    )
    require(
        given == held,
        f"for a prompt of {prompt_length} tokens and {new_tokens} new ones the cache holds {held} positions, "
        f"but your function returns {given}.",
    )
    require(answer(7, 1) == 7, "with one new token the model reads the prompt and nothing else.")
    return "Each step reads the token that the step before it chose, and no step reads the last one."


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
        require(not (given == 0).any(), "some scores are 0, which is a score like any other: removed tokens get -inf.")
        left = given.isfinite()
        require(
            torch.equal(given[left], scores[left]),
            "the tokens that remain should keep their scores.",
        )
        expected = MinPLogitsWarper(min_p)(None, scores)
        counts, right = left.sum(dim=-1).tolist(), expected.isfinite().sum(dim=-1).tolist()
        require(
            torch.equal(given, expected),
            f"with min_p={min_p} there should be {right} tokens left in the two rows; your function leaves {counts}. "
            "Compare with each row's best token.",
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
        require(
            tokenizer.convert_tokens_to_ids(mark) in ids, f"a sentence may end in {mark!r}, but yours would continue."
        )
    for text in (STORY, CAPITAL, "What do you call someone who helps a professor with research?"):
        steps = _answer(text, max_new_tokens=40, eos_token_id=ids)
        said = tokenizer.decode([step.token_id for step in steps])
        require(steps[-1].stopped_by == "end_of_turn", f"this continued to the limit: {said!r}.")
        require(
            said[-1] in ".!?" and not any(mark in said[:-1] for mark in ".!?"), f"this is not one sentence: {said!r}."
        )
    return "One sentence, and whichever terminator comes first ends it."


@exercise("03.4", expects=Callable)
def _(answer: Any) -> str:
    import torch

    model = _default()[0]
    for text in (CAPITAL, STORY):
        steps = _answer(text, max_new_tokens=6)
        prompt_length = steps[0].input_ids.shape[1]
        ids = torch.tensor([_chat(text).input_ids + [step.token_id for step in steps]])
        expected = sum(float(step.logits.log_softmax(dim=-1)[step.token_id]) for step in steps)
        given = float(answer(model, ids, prompt_length))
        require(given < 0, f"a log-probability is below 0; this is {given:.3g}. Probabilities need log_softmax first.")
        require(
            abs(given - expected) < 0.01 * abs(expected) + 0.01,
            f"the loop's own steps add up to {expected:.3g}, but your function returns {given:.3g}. Is the token at "
            "position i judged by the logits at i - 1, and is the prompt left out?",
        )
    return "One pass gives the same probabilities as the loop, step for step."


@cache
def _batch_of(texts: tuple[str, ...], limit: int) -> tuple[Tensor, Tensor, int, Tensor]:
    """ids and mask `[batch, length]` padded on the left, the padding's id, and the output of `generate`."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    model, tokenizer = _default()
    pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    rows = [torch.tensor(_chat(text).input_ids) for text in texts]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, pad_token_id=pad)
    return ids, mask, pad, expected


@cache
def _mistaken(texts: tuple[str, ...], limit: int, fault: str) -> Tensor:
    """ids `[batch, length + new]` of the batched loop with one of the usual mistakes."""
    import torch
    from transformers import DynamicCache

    model = _default()[0]
    input_ids, attention_mask, pad_token_id, _ = _batch_of(texts, limit)
    kv_cache, new_ids = DynamicCache(config=model.config), input_ids
    ends = torch.tensor(model.generation_config.eos_token_id)
    unfinished = torch.ones_like(input_ids[:, :1])
    with torch.inference_mode():
        for _ in range(limit):
            mask = None if fault == "mask" else attention_mask
            new_ids = model(new_ids, attention_mask=mask, past_key_values=kv_cache).logits[:, -1:].float().argmax(-1)
            if fault != "padding":
                new_ids = new_ids * unfinished + pad_token_id * (1 - unfinished)
            input_ids = torch.cat([input_ids, new_ids], dim=-1)
            attention_mask = torch.cat([attention_mask, torch.ones_like(new_ids)], dim=-1)
            unfinished = unfinished * ~torch.isin(new_ids, ends)
            if not (unfinished.all() if fault == "first" else unfinished.any()) and fault != "limit":
                break
    return input_ids


_FAULTS = {
    "mask": "the answers are those of a model that sees the padding. Give it attention_mask, and let the mask grow "
    "by a column of ones per step.",
    "first": "it stops as soon as one row has ended, and the other row's answer is cut off.",
    "padding": "a row that has ended keeps generating. After its terminator it should get pad_token_id.",
    "limit": "all rows have ended, but it continues to the limit.",
}


@exercise("03.5", expects=Callable)
def _(answer: Any) -> str:
    import torch

    model = _default()[0]
    italy, more = "What is the capital of Italy?", "What is the capital of Italy, and of Spain?"
    # In the first batch one row ends and the other reaches the limit; in the second both end below it.
    batches = (((CAPITAL, more), 9, ("mask", "first", "padding")), ((CAPITAL, italy), 11, ("limit",)))
    for texts, limit, faults in batches:
        ids, mask, pad, expected = _batch_of(texts, limit)
        given = answer(model, ids.clone(), mask.clone(), limit, pad)
        require(isinstance(given, torch.Tensor) and given.dim() == 2, "it should return ids [batch, length + new].")
        require(torch.equal(given[:, : ids.shape[1]], ids), "the ids should begin with the prompts, as generate's do.")
        if not torch.equal(given, expected):
            for fault in faults:
                require(not torch.equal(given, _mistaken(texts, limit, fault)), _FAULTS[fault])
        require(
            given.shape == expected.shape,
            f"generate adds {expected.shape[1] - ids.shape[1]} tokens here, not {given.shape[1] - ids.shape[1]}.",
        )
        differing = (given != expected).nonzero().tolist()
        require(not differing, f"[row, position] {differing[:1]} is the first id that differs from generate's.")
    return "Token for token the same as generate's, for every row."
