"""Wrong answers to the exercises of notebook 04."""

_ORDER = "answer_4 = [number for pair in range(32) for number in ({})]"

WRONG_ANSWERS = {
    "04.1": [
        ("answer_1 = 23", "there is a layer that leaves less"),
        ("answer_1 = 0", "the question is about layers 3 to 29"),
        ("answer_1 = 'layer 20'", "should be a whole number"),
    ],
    "04.2": [
        (
            'answer_2 = {"embedding": True, "norm input": True, "last stream": True, "logits": False}',
            "what the layers add is then small",
        ),
        (
            'answer_2 = {"embedding": False, "norm input": True, "last stream": False, "logits": False}',
            "what comes right after it",
        ),
        ('answer_2 = {"embedding": False}', "norm input, last stream, logits has none"),
    ],
    "04.3": [
        (
            "answer_3 = lambda queries, keys, window: (keys <= queries[:, None]) & (keys >= queries[:, None] - window)",
            "itself among them",
        ),
        ("answer_3 = lambda queries, keys, window: keys > queries[:, None] - window", "a causal window"),
        (
            "answer_3 = lambda queries, keys, window: torch.ones(len(keys), len(keys)).tril().triu(1 - window).bool()",
            "for 1 queries and 6 keys",
        ),
    ],
    "04.4": [
        (_ORDER.format("2 * pair, 2 * pair + 1"), "leaves everything where it was"),
        (_ORDER.format("pair + 32, pair"), "which of them comes first"),
        ("answer_4 = [*range(0, 64, 2), *range(1, 64, 2)]", "come out wrong"),
        ("answer_4 = [0, 32] * 32", "each of the numbers 0 to 63 once"),
    ],
    "04.5": [
        (
            "def answer_5(model, ids):\n"
            "    with exchanged(model=model, weights=model.state_dict()):\n"
            "        return forward(ids, {})",
            "Are the biases in?",
        ),
        ("answer_5 = lambda model, ids: forward(ids, {})", "it should return logits [7, 97]"),
        ("answer_5 = lambda model, ids: model(ids[None]).logits[0]", "raised TypeError"),
    ],
}
