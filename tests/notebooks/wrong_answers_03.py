"""Wrong answers to the exercises of notebook 03."""

_LOOP = """
def loop(model, input_ids, attention_mask, max_new_tokens, pad_token_id):
    cache, new_ids = DynamicCache(config=model.config), input_ids
    unfinished = torch.ones_like(input_ids[:, :1])
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            logits = model(new_ids, attention_mask={mask}, past_key_values=cache).logits[:, -1]
        new_ids = logits.argmax(-1, keepdim=True){padding}
        input_ids = torch.cat([input_ids, new_ids], dim=-1)
        attention_mask = torch.cat([attention_mask, torch.ones_like(new_ids)], dim=-1)
        unfinished = unfinished * (new_ids != model.generation_config.eos_token_id)
        {stop}
    return input_ids
answer_5 = loop
"""
_RIGHT = {
    "mask": "attention_mask",
    "padding": " * unfinished + pad_token_id * (1 - unfinished)",
    "stop": "if not unfinished.any(): break",
}

WRONG_ANSWERS = {
    "03.1": [
        ("answer_1 = lambda prompt_length, new_tokens: prompt_length + new_tokens", "chosen but never read"),
        ("answer_1 = lambda prompt_length, new_tokens: prompt_length", "the cache holds"),
        ("answer_1 = 42", "should be a function"),
    ],
    "03.2": [
        (
            "answer_2 = lambda scores, min_p: scores.masked_fill(scores.softmax(-1) < min_p, -torch.inf)",
            "Compare with each row's best token",
        ),
        ("answer_2 = lambda scores, min_p: scores.softmax(-1)", "the tokens that remain should keep their scores"),
        (
            "answer_2 = lambda scores, min_p: scores.masked_fill(\n"
            "    scores.softmax(-1) < min_p * scores.softmax(-1).max(-1, keepdim=True).values, 0)",
            "which is a score like any other",
        ),
    ],
    "03.3": [
        ('answer_3 = ["."]', "a terminator is a token id"),
        ('answer_3 = [tokenizer.convert_tokens_to_ids(mark) for mark in ".!?"]', "keep the model's own terminator"),
        ('answer_3 = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(".")]', "yours would continue"),
    ],
    "03.4": [
        (
            "answer_4 = lambda model, ids, prompt_length: float(\n"
            "    model(ids).logits[0].log_softmax(-1).gather(-1, ids[0, :, None]).sum())",
            "judged by the logits at i - 1",
        ),
        (
            "answer_4 = lambda model, ids, prompt_length: float(\n"
            "    model(ids).logits[0, :-1].gather(-1, ids[0, 1:, None]).sum())",
            "Probabilities need log_softmax first",
        ),
    ],
    "03.5": [
        (_LOOP.format(**_RIGHT | {"mask": "None"}), "sees the padding"),
        (_LOOP.format(**_RIGHT | {"padding": ""}), "keeps generating"),
        (_LOOP.format(**_RIGHT | {"stop": "if not unfinished.all(): break"}), "as soon as one row has ended"),
        (_LOOP.format(**_RIGHT | {"stop": "pass"}), "continues to the limit"),
        (_LOOP.format(**_RIGHT).replace("argmax(", "argmin("), "is the first id that differs"),
        ("answer_5 = lambda model, input_ids, *rest: input_ids[:, 1:]", "should begin with the prompts"),
    ],
}
