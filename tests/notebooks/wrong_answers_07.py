"""Wrong answers to the exercises of notebook 07."""

WRONG_ANSWERS = {
    "07.1": [
        ("answer_1 = (0, 20480)", "neighbours share one"),
        ("answer_1 = (1, 10240)", "keys and values are kept"),
        ("answer_1 = (1, 20480 * 16)", "only the groups' keys and values"),
        ("answer_1 = 1", "should be a"),
    ],
    "07.2": [
        ("answer_2 = list(range(16))", "GLM's pairs are neighbours"),
        ("answer_2 = [*range(1, 16, 2), *range(0, 16, 2)]", "in the wrong direction"),
        ("answer_2 = [0] * 16", "each of the channels 0 to 15 once"),
    ],
    "07.3": [
        (
            "def answer_3(messages):\n"
            "    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)\n"
            "    return tokenizer(text)['input_ids']",
            "an ordinary conversation comes out differently",
        ),
        (
            "def answer_3(messages):\n"
            "    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)\n"
            "    return tokenizer(text, add_special_tokens=False)['input_ids']",
            "should stay text",
        ),
        (
            "def answer_3(messages):\n"
            "    ids = [special('[gMASK]'), special('<sop>')]\n"
            "    for message in messages:\n"
            "        ids += [special(f\"<|{message['role']}|>\"), *encode('\\n'), *encode(message['content'])]\n"
            "    return [*ids, special('<|assistant|>')]",
            "should leave no trace",
        ),
    ],
    "07.4": [
        (
            "def answer_4(rows):\n"
            "    longest = max(map(len, rows))\n"
            "    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows])\n"
            "    mask = (ids != tokenizer.pad_token_id).long()\n"
            "    return {'input_ids': ids, 'attention_mask': mask, 'position_ids': (mask.cumsum(1) - 1).clamp(min=0)}",
            "A real token may have the padding's id",
        ),
        (
            "def answer_4(rows):\n"
            "    longest = max(map(len, rows))\n"
            "    ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])\n"
            "    mask = torch.ones_like(ids)\n"
            "    return {'input_ids': ids, 'attention_mask': mask, 'position_ids': mask.cumsum(1) - 1}",
            "Pad on the left",
        ),
        ("answer_4 = lambda rows: torch.tensor(rows[:1])", "a dict with input_ids"),
    ],
    "07.5": [
        (
            "def answer_5(state, layer):\n"
            "    parts = [f'model.layers.{layer}.self_attn.{part}_proj' for part in 'kvq']\n"
            "    return {kind: torch.cat([state[f'{p}.{kind}'] for p in parts]) for kind in ('weight', 'bias')}",
            "all queries, then keys, then values",
        ),
        (
            "def answer_5(state, layer):\n"
            "    return {kind: state[f'model.layers.{layer}.self_attn.q_proj.{kind}'] for kind in ('weight', 'bias')}",
            "the weight in the file has the shape",
        ),
        ("answer_5 = lambda state, layer: state", 'a dict with "weight" and "bias"'),
    ],
}
