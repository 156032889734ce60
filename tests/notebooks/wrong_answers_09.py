"""Wrong answers to the exercises of notebook 09."""

WRONG_ANSWERS = {
    "09.1": [
        ("answer_1 = found.best('previous_token', 1)[0]", "that is one back"),
        ("answer_1 = (0, 0)", "another gives"),
        ("answer_1 = (13, 9)", "there is no head (13, 9)"),
        ("answer_1 = 119", "should be a tuple or a list"),
    ],
    "09.2": [
        (
            "answer_2 = lambda attentions: (attentions * attentions.log()).sum(-1).neg().exp().mean(-1)",
            "yours gives nan",
        ),
        (
            "answer_2 = lambda attentions: torch.special.entr(attentions).sum(-1).mean(-1).exp()",
            "which comes first",
        ),
        ("answer_2 = lambda attentions: torch.special.entr(attentions).sum(-1).exp()", "one number a head"),
        ("answer_2 = lambda attentions: torch.special.entr(attentions).sum(-1).mean(-1)", "uses 1, not 0"),
    ],
    "09.3": [
        ("answer_3 = found.best('induction', 1)", "it should be at least 4"),
        ("answer_3 = found.best('induction', 5)", "one head or two, not 5"),
        ("answer_3 = [(16, 0), (0, 0)]", "do other things besides"),
        ("answer_3 = [16, 0]", "a head is a pair"),
    ],
    "09.4": [
        ("answer_4 = lambda attentions: attention_rollout(attentions)[-1]", "each looks at itself"),
        (
            "def answer_4(attentions):\n"
            "    attentions[:, :, 1:, 0] = 0\n"
            "    left = attentions.sum(-1, keepdim=True)\n"
            "    return attention_rollout(attentions / left)[-1]",
            "have changed",
        ),
        (
            "def answer_4(attentions):\n"
            "    attentions = attentions.clone()\n"
            "    attentions[:, :, 1:, 0] = 0\n"
            "    return attention_rollout(attentions / attentions.sum(-1, keepdim=True))[-1]",
            "gives nan",
        ),
        ("answer_4 = attention_rollout", "the last layer's [query, key]"),
    ],
}
