"""Wrong answers to the exercises of notebook 10."""

WRONG_ANSWERS = {
    "10.1": [
        ("answer_1 = 48", "of all positions are padding"),
        ("answer_1 = 1", "Have you tried them all?"),
        ("answer_1 = 0", "a batch size must be between 1 and 48"),
    ],
    "10.2": [
        (
            "answer_2 = lambda data, total: list(range(data.count(b'\\n'), total))",
            "are still to be asked",
        ),
        (
            "def answer_2(data, total):\n"
            "    done = {json.loads(line)['index'] for line in data.splitlines()}\n"
            "    return [index for index in range(total) if index not in done]",
            "JSONDecodeError",
        ),
        (
            "def answer_2(data, total):\n"
            "    lines = data[: data.rfind(b'\\n') + 1].decode().splitlines()\n"
            "    done = {json.loads(line)['index'] for line in lines}\n"
            "    return [index for index in range(total) if index not in done]",
            "trying your answer raised",
        ),
        ("answer_2 = lambda data, total: {0, 1}", "a list of indices"),
    ],
    "10.3": [
        (
            "def answer_3(rows):\n"
            "    longest = max(map(len, rows))\n"
            "    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])\n"
            "    return model(ids).logits[:, -1].argmax(-1).tolist()",
            "Which column holds",
        ),
        (
            "answer_3 = lambda rows: [int(model(torch.tensor([row])).logits[0, -1].argmax()) for row in rows]",
            "one is enough",
        ),
        ("answer_3 = lambda rows: model", "a list of ids"),
    ],
    "10.4": [
        (
            "answer_4 = lambda lengths, slots: sum(max(lengths[i : i + slots]) for i in range(0, len(lengths), slots))",
            "waits for its longest answer",
        ),
        ("answer_4 = lambda lengths, slots: max(max(lengths), -(-sum(lengths) // slots))", "free first?"),
    ],
}
