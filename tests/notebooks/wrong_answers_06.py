"""Wrong answers to the exercises of notebook 06."""

WRONG_ANSWERS = {
    "06.1": [
        ("answer_1 = [30]", "more row(s) read 5 on top"),
        ("answer_1 = list(range(24, 31))", "another token is ahead of 5"),
        ("answer_1 = 24", "should be a list"),
    ],
    "06.2": [
        ("answer_2 = [(4, 23), (29, 1), (29, 2)]", "the right way round"),
        ("answer_2 = [(29, 1), (23, 4), (0, 0)]", "Did you subtract Paris?"),
        ("answer_2 = [23, 4, 29]", "three pairs"),
    ],
    "06.3": [
        ("answer_3 = without - intact", "that is the change with zeros"),
        ("answer_3 = 1.33", "it falls"),
        ("answer_3 = -0.5", "one vector [head_dim]"),
    ],
    "06.4": [
        (
            "def answer_4(model, states, token_id):\n"
            "    logits = model.lm_head(states)\n"
            "    return (logits > logits[:, token_id, None]).sum(-1)",
            "without the final norm",
        ),
        (
            "def answer_4(model, states, token_id):\n"
            "    logits = model.lm_head(model.model.norm(states))\n"
            "    return (logits >= logits[:, token_id, None]).sum(-1)",
            "all are one too high",
        ),
        ("answer_4 = lambda model, states, token_id: 0", "an int tensor [7]"),
    ],
    "06.5": [
        ("answer_5 = lambda head: share[head]", "still the German prompt's own"),
        ("answer_5 = lambda head: None", "should return a number"),
    ],
}
