"""Wrong answers to the exercises of notebook 08."""

WRONG_ANSWERS = {
    "08.1": [
        ("answer_1 = lambda image_size, patch_size: (image_size // patch_size) ** 2 + 2", "before 2 x 2 are merged"),
        ("answer_1 = lambda image_size, patch_size: (image_size // patch_size // 2) ** 2", "begin and end are missing"),
        ("answer_1 = 1602", "should be a function"),
    ],
    "08.2": [
        ("answer_2 = lambda before, patches, after: list(range(before + patches + after + 2))", "share one position"),
        ("answer_2 = lambda before, patches, after: [0] * (before + after)", "begin and end included"),
        (
            "def answer_2(before, patches, after):\n"
            "    rest = range(before + 1 + patches, before + 2 + patches + after)\n"
            "    return [*range(before + 1), *[before + 1] * patches, *rest]",
            "place 41 of the list should be 6",
        ),
    ],
    "08.3": [
        ('answer_3 = scene_of(("green", "star", 0.2, 0.2), ("purple", "square", 0.8, 0.5))', "the model says"),
        ("answer_3 = draw(scene)", "the model says"),
        ('answer_3 = "a green star"', "this is 'a green star'"),
    ],
    "08.4": [
        ("answer_4 = lambda trace: 0", "are on the shape"),
        ("answer_4 = lambda trace: trace.attentions[layer, head, -1].argmax()", "a whole number from 0 to 35"),
        ("answer_4 = lambda trace: int(trace.attentions[0, 0, 0].argmax())", "are on the shape"),
    ],
    "08.5": [
        ("answer_5 = lambda config: config.vision_config.hidden_size", "yours is off by"),
        ("answer_5 = lambda config: None", "a whole number, not None"),
        (
            "answer_5 = lambda config: sum(p.numel() for p in tower.parameters())",
            "GLM-4V-9B should have 4,506,369,536",
        ),
    ],
}
