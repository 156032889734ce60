"""Wrong answers to the steps of notebook 11: the likely mistakes of a port."""

AS_IN_2024 = """def answer_1(folder):
    options = {"torch_dtype": torch.float32, "low_cpu_mem_usage": True}
    return load_2024(folder, options)"""
NO_DTYPE = """def answer_1(folder):
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)"""
EIGHT_BIT = """def answer_1(folder):
    return AutoModelForCausalLM.from_pretrained(folder, load_in_8bit=False)"""
MODEL_ALONE = """def answer_1(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)"""
BY_HAND = """def answer_2(tokenizer, messages):
    turns = [f"<|im_start|>{message['role']}\\n{message['content']}<|im_end|>\\n" for message in messages]
    return tokenizer("".join(turns) + "<|im_start|>assistant\\n", return_tensors="pt")["input_ids"]"""
NO_SYSTEM = """def answer_2(tokenizer, messages):
    mark = lambda name: tokenizer.convert_tokens_to_ids(name)
    typed = lambda text: tokenizer(text, split_special_tokens=True)["input_ids"]
    ids = []
    for message in messages:
        ids += [mark("<|im_start|>"), *typed(message["role"] + "\\n" + message["content"])]
        ids += [mark("<|im_end|>"), *typed("\\n")]
    return torch.tensor([ids + [mark("<|im_start|>"), *typed("assistant\\n")]])"""
WITH_PROMPT = """def answer_3(model, tokenizer, input_ids):
    output_ids = model.generate(input_ids, do_sample=False, repetition_penalty=1.1, max_new_tokens=12)
    return tokenizer.decode(output_ids[0], skip_special_tokens=True)"""
SPECIAL = """def answer_3(model, tokenizer, input_ids):
    output_ids = model.generate(input_ids, do_sample=False, repetition_penalty=1.1, max_new_tokens=12)
    return "<|im_start|>" + tokenizer.decode(output_ids[0, input_ids.shape[1] :]) + "<|im_end|>" """
NO_PENALTY = """def answer_3(model, tokenizer, input_ids):
    output_ids = model.generate(input_ids, do_sample=False, max_new_tokens=12)
    return tokenizer.decode(output_ids[0, input_ids.shape[1] :], skip_special_tokens=True).strip()"""
BY_WORD = """def answer_3(model, tokenizer, input_ids):
    output_ids = model.generate(input_ids, do_sample=False, repetition_penalty=1.1, max_new_tokens=12)
    return tokenizer.decode(output_ids[0], skip_special_tokens=True).split("assistant\\n")[1].strip()"""
TALKATIVE = """def answer_3(model, tokenizer, input_ids):
    config = GenerationConfig(do_sample=False, repetition_penalty=1.1, max_new_tokens=12)
    output_ids = model.generate(input_ids, generation_config=config, eos_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(output_ids[0, input_ids.shape[1] :], skip_special_tokens=True).strip()"""
WHOLE_TEXT = """def answer_4(model, input_ids, steps):
    for _ in range(steps):
        input_ids = torch.cat([input_ids, model(input_ids).logits[:, -1:].argmax(-1)], dim=-1)
    return input_ids"""
NEW_ALONE = """def answer_4(model, input_ids, steps):
    return model.generate(input_ids, do_sample=False, max_new_tokens=steps)[:, input_ids.shape[1] :]"""
ONE_SHORT = """def answer_4(model, input_ids, steps):
    return model.generate(input_ids, do_sample=False, max_new_tokens=steps - 1)"""
NO_CACHE_PASSED = """def answer_4(model, input_ids, steps):
    new = input_ids
    for _ in range(steps):
        new = model(new).logits[:, -1:].argmax(-1)
        input_ids = torch.cat([input_ids, new], dim=-1)
    return input_ids"""
FIRST_LEFT_OUT = """def answer_5(model, prompt_ids, endings):
    found = []
    for ending in endings:
        logits = model(torch.cat([prompt_ids, ending], dim=1)).logits[:, prompt_ids.shape[1] : -1]
        found.append(float(logits.log_softmax(-1).gather(-1, ending[:, 1:, None]).sum()))
    return found"""
NO_SYSTEM_PROMPT = """def answer_6(folder, data_file, predictions_file):
    predictions = []
    for line in Path(data_file).read_text(encoding="utf-8").splitlines():
        ids = torch.tensor([render_chat(tokenizer, [{"role": "user", "content": line}]).input_ids])
        output_ids = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        text = tokenizer.decode(output_ids[0, ids.shape[1] :], skip_special_tokens=True).strip()
        predictions.append({"Input": line, "Output": text})
    Path(predictions_file).write_text(json.dumps(predictions), encoding="utf-8")"""
UNASKED = """def answer_6(folder, data_file, predictions_file):
    lines = Path(data_file).read_text(encoding="utf-8").splitlines(keepends=True)
    Path(predictions_file).write_text(json.dumps([{item} for line in lines]), encoding="utf-8")"""
IN_PLACE = """def answer_7(model, tokenizer, query, history):
    history.append({"role": "user", "content": query})
    return "", history"""
FORGETS = """def answer_7(model, tokenizer, query, history):
    text = Conversation(model, tokenizer, messages=history).ask(query, max_new_tokens=60).text
    return text, [*history, {"role": "user", "content": query}]"""
WITH_END = """def answer_7(model, tokenizer, query, history):
    messages = [*history, {"role": "user", "content": query}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    text = tokenizer.decode(model.generate(**inputs, max_new_tokens=60, do_sample=False)[0])
    return text, [*messages, {"role": "assistant", "content": text}]"""

WRONG_ANSWERS = {
    "11.1": [
        (AS_IN_2024, "`torch_dtype` is deprecated"),
        (NO_DTYPE, "which argument says so today?"),
        (EIGHT_BIT, "unexpected keyword argument 'load_in_8bit'"),
        (MODEL_ALONE, "the tokenizer, then the model"),
    ],
    "11.2": [
        ("answer_2 = encode_2024", "has no attribute encode_plus"),
        (
            "answer_2 = lambda tokenizer, messages: tokenizer.apply_chat_template("
            "messages, add_generation_prompt=True, return_tensors='pt')",
            "Which of its entries holds the ids?",
        ),
        (
            "answer_2 = lambda tokenizer, messages: torch.tensor("
            "[render_chat(tokenizer, messages, add_generation_prompt=False).input_ids])",
            "the header that opens the assistant's message is missing at the end",
        ),
        (BY_HAND, "keeps typed text as text?"),
        (NO_SYSTEM, "writes one of its own"),
        ("answer_2 = lambda tokenizer, messages: torch.tensor([1, 2])", "should be [1, length]"),
    ],
    "11.3": [
        ("answer_3 = answer_2024", "The following generation flags are not valid"),
        (WITH_PROMPT, "is still in front of the answer"),
        (SPECIAL, "the text contains special tokens"),
        (NO_PENALTY, "without the repetition penalty"),
        (BY_WORD, "cut at a position"),
        (TALKATIVE, "Passing `generation_config` together"),
    ],
    "11.4": [
        ("answer_4 = loop_2024", "'DynamicCache' object is not subscriptable"),
        (WHOLE_TEXT, "runs the whole text again"),
        (NEW_ALONE, "only the new ids"),
        (ONE_SHORT, "the shape should be"),
        (NO_CACHE_PASSED, "generate continues"),
    ],
    "11.5": [
        ("answer_5 = scores_2024", "what does each ending need?"),
        ("answer_5 = one_by_one", "positions ran"),
        (FIRST_LEFT_OUT, "the first token of each ending is not counted"),
        (
            "answer_5 = lambda *given: [torch.tensor(score).exp() for score in one_by_one(*given)]",
            "return their logarithms",
        ),
        ("answer_5 = lambda model, prompt_ids, endings: [0.0, 0.0, 0.0]", "the numbers should be"),
        ("answer_5 = lambda model, prompt_ids, endings: 0.0", "one number per ending"),
    ],
    "11.6": [
        ("answer_6 = lambda folder, data_file, predictions_file: None", "was not written"),
        (NO_SYSTEM_PROMPT, "the system prompt is missing"),
        (UNASKED.format(item='{"question": line.strip(), "answer": ""}'), "the file should hold a list"),
        (UNASKED.format(item='{"Input": line, "Output": ""}'), "without line breaks"),
    ],
    "11.7": [
        (IN_PLACE, "the caller's list has changed"),
        (FORGETS, "after turn 1 the history should have the roles"),
        (WITH_END, "the answer contains special tokens"),
        ("answer_7 = lambda model, tokenizer, query, history: query", "the answer and the new history"),
    ],
    "11.8": [
        (
            "answer_8 = lambda model, processor, picture, question: "
            "look_2024(model, processor.tokenizer, picture, question)",
            "answered without the picture",
        ),
        ("answer_8 = lambda model, processor, picture, question: question", "Conversation answers"),
        ("answer_8 = lambda model, processor, picture, question: ['a circle']", "it should return a string"),
    ],
}
