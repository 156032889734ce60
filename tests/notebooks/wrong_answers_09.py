"""Wrong answers to the exercises of notebook 09."""


def _three_copies(keys, together):
    """Code for exercise 09.3: which keys a query's score takes in, and how its weights are put together."""
    return (
        "def answer_3(attentions, length, copies):\n"
        "    queries = range(1 + length, 1 + copies * length)\n"
        f"    return torch.stack([attentions[:, :, q, {keys}].{together} for q in queries]).mean(0)"
    )


WRONG_ANSWERS = {
    "09.1": [
        ("answer_1 = found.best('previous_token', 1)[0]", "that head looks one position back"),
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
        ("answer_2 = lambda attentions: torch.special.entr(attentions).sum(-1).exp()", "one number per head"),
        (
            "answer_2 = lambda attentions: torch.special.entr(attentions).sum(-1).mean(-1)",
            "effective number of 1, not 0",
        ),
    ],
    "09.3": [
        ("answer_3 = 0.74", "should be a function"),
        ("answer_3 = lambda attentions, length, copies: 0.5", "one score per head"),
        (
            _three_copies("[b for b in range(q - length, 0, -length)]", "sum(-1)"),
            "score the position right after each",
        ),
        (_three_copies("[q - length + 1]", "sum(-1)"), "a query of the third copy has two"),
        (
            _three_copies("[b + 1 for b in range(q - length, 0, -length)]", "sum(-1) * (1 - 1 / copies)"),
            "nothing to look up",
        ),
        (_three_copies("[b + 1 for b in range(q - length, 0, -length)]", "mean(-1)"), "added up"),
    ],
    "09.4": [
        ("answer_4 = lambda attentions: attention_rollout(attentions)[-1]", "each query should look at itself"),
        (
            "def answer_4(attentions):\n"
            "    attentions[:, :, 1:, 0] = 0\n"
            "    left = attentions.sum(-1, keepdim=True).clamp(min=1e-9)\n"
            "    return attention_rollout(attentions / left)[-1]",
            "changed the attentions passed to it",
        ),
        (
            "def answer_4(attentions):\n"
            "    attentions = attentions.clone()\n"
            "    attentions[:, :, 1:, 0] = 0\n"
            "    return attention_rollout(attentions / attentions.sum(-1, keepdim=True))[-1]",
            "infinite or NaN",
        ),
        ("answer_4 = attention_rollout", "the last layer's [query, key]"),
    ],
}
