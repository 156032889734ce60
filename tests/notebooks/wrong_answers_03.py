"""Wrong answers to the exercises of notebook 03."""

_LOOP = """
def loop(model, input_ids, max_new_tokens, temperature, top_k, top_p, repetition_penalty):
    processors = LogitsProcessorList([{processors}])
    cache, new_ids = DynamicCache(config=model.config), input_ids
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            logits = model(new_ids, past_key_values=cache).logits[:, -1].float()
        new_ids = torch.multinomial(processors(input_ids, logits).softmax(dim=-1), num_samples=1)
        input_ids = torch.cat([input_ids, new_ids], dim=-1)
        {stop}
    return input_ids
answer_5 = loop
"""
_STOP = "if new_ids.item() == model.generation_config.eos_token_id: break"
_ALL = (
    "RepetitionPenaltyLogitsProcessor(repetition_penalty), TemperatureLogitsWarper(temperature), "
    "TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)"
)
_WITHOUT_PENALTY = "TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)"

WRONG_ANSWERS = {
    "03.1": [
        ("answer_1 = lambda prompt_length, new_tokens: prompt_length + new_tokens", "chosen but never read"),
        ("answer_1 = lambda prompt_length, new_tokens: prompt_length", "the cache holds"),
        ("answer_1 = 42", "should be a function"),
    ],
    "03.2": [
        (
            "answer_2 = lambda scores, min_p: scores.masked_fill(scores.softmax(-1) < min_p, -torch.inf)",
            "Measure against each row's best token",
        ),
        ("answer_2 = lambda scores, min_p: scores.softmax(-1)", "keep the scores that they came with"),
        (
            "answer_2 = lambda scores, min_p: scores.masked_fill(\n"
            "    scores.softmax(-1) < min_p * scores.softmax(-1).max(-1, keepdim=True).values, 0)",
            "which is a score like any other",
        ),
    ],
    "03.3": [
        ('answer_3 = ["."]', "a terminator is a token id"),
        ('answer_3 = [tokenizer.convert_tokens_to_ids(mark) for mark in ".!?"]', "keep the model's own terminator"),
        ('answer_3 = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(".")]', "yours would go on"),
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
        (_LOOP.format(processors=_WITHOUT_PENALTY, stop=_STOP), "differs from generate's"),
        (_LOOP.format(processors=_ALL, stop="pass"), "look at the terminator"),
    ],
}
