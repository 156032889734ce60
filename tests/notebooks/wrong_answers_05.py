"""Wrong answers to the exercises of notebook 05."""

WRONG_ANSWERS = {
    "05.1": [
        ("answer_1 = 14", "the weights have to fit beside the caches"),
        ("answer_1 = 12", "Is it the largest whole number that fits?"),
        ("answer_1 = 11.4", "should be a whole number"),
    ],
    "05.2": [
        ('answer_2 = lambda date: f"Today is {date}. {system}"', "Everything after the date is lost"),
        ("answer_2 = lambda date: system", "is not in the prompt for that day"),
        ('answer_2 = lambda date: f"Be short. Today is {date}."', "the rules are not all there"),
    ],
    "05.3": [
        ("answer_3 = lambda x: (x / (x.abs().max() / 7)).round() * (x.abs().max() / 7)", "Which numbers are alike"),
        (
            "def answer_3(x):\n"
            "    scale = x.abs().amax(dim=3, keepdim=True) / 7\n"
            "    return (x / scale).round() * scale",
            "Which numbers are alike",
        ),
        ("answer_3 = lambda x: x", "four bits can represent 16 values"),
        ("answer_3 = lambda x: x[0]", "a tensor of the same shape"),
    ],
    "05.4": [
        (
            "def answer_4(cache, sinks, window):\n"
            "    both_ends = lambda x: torch.cat([x[:, :, :sinks], x[:, :, -window:]], 2)\n"
            "    return DynamicCache([(both_ends(k), both_ends(v)) for k, v, *_ in cache])",
            "yours holds",
        ),
        (
            "def answer_4(cache, sinks, window):\n"
            "    for layer in cache.layers:\n"
            "        layer.keys, layer.values = layer.keys[:, :, -window:], layer.values[:, :, -window:]\n"
            "    return cache",
            "your function changed the cache",
        ),
        ("answer_4 = lambda cache, sinks, window: list(cache)", "it should return a DynamicCache"),
    ],
    "05.5": [
        (
            "def answer_5(ids, cache, guesses):\n"
            "    fed = torch.cat([ids[:, -1:], torch.tensor([guesses])], dim=1)\n"
            "    own = model(fed, past_key_values=cache).logits[0].argmax(-1).tolist()\n"
            "    return own[: common_prefix(own, guesses) + 1]",
            "The wrong guesses are still in it",
        ),
        (
            "def answer_5(ids, cache, guesses):\n"
            "    fed = torch.cat([ids[:, -1:], torch.tensor([guesses])], dim=1)\n"
            "    return model(fed, past_key_values=cache).logits[0].argmax(-1).tolist()",
            "it should return 2 ids",
        ),
        ("answer_5 = lambda ids, cache, guesses: None", "it should return a list of ids"),
    ],
}
