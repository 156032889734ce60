"""Wrong answers to the exercises of notebook 08."""


def _three(go_on, row="before + r", column="before + c"):
    """Code for exercise 08.4: where the text goes on, and a vector's row and column."""
    return (
        "def answer_4(before, rows, columns, after):\n"
        "    places = [(r, c) for r in range(rows) for c in range(columns)]\n"
        f"    middles = [[before for r, c in places], [{row} for r, c in places], [{column} for r, c in places]]\n"
        f"    return [[*range(before), *m, *range({go_on}, {go_on} + after)] for m in middles]"
    )


def _pictures(go_on):
    """Code for exercise 08.2: where the text after a picture goes on (right: start + 3)."""
    return (
        "def answer_2(texts, patches):\n"
        "    ids, start = list(range(texts[0])), texts[0]\n"
        "    for text in texts[1:]:\n"
        f"        after = {go_on}\n"
        "        ids += [start, *[start + 1] * patches, *range(after - 1, after + text)]\n"
        "        start = after + text\n"
        "    return ids"
    )


WRONG_ANSWERS = {
    "08.1": [
        (
            "answer_1 = lambda positions, patch_size: (positions - 2) ** 0.5 * 2 * patch_size",
            "no whole number of pixels",
        ),
        (
            "answer_1 = lambda positions, patch_size: int((positions - 2) ** 0.5) * patch_size",
            "each 2 x 2 patches are merged",
        ),
        (
            "answer_1 = lambda positions, patch_size: int(positions**0.5) * 2 * patch_size",
            "no positions for begin and end",
        ),
        (
            "answer_1 = lambda positions, patch_size: int(2 * (positions - 2) ** 0.5) * patch_size",
            "can't be cut into whole blocks",
        ),
        (
            "answer_1 = lambda positions, patch_size: round((positions + 30) ** 0.5) * 2 * patch_size",
            "are too many: they take",
        ),
        (
            "answer_1 = lambda positions, patch_size: (int(positions**0.5) - 1) * 2 * patch_size",
            "pixels fit, but so do",
        ),
        ("answer_1 = lambda positions, patch_size: None", "no whole number of pixels"),
        ("answer_1 = 1120", "should be a function"),
    ],
    "08.2": [
        ("answer_2 = lambda texts, patches: list(range(sum(texts) + (len(texts) - 1) * (patches + 2)))", "share one"),
        ("answer_2 = lambda texts, patches: [0] * sum(texts)", "begins and ends included"),
        (_pictures("start + patches + 2"), "a position id of its own"),
        (_pictures("start + 2"), "entry 41 of the list should be 6"),
        (
            "def answer_2(texts, patches):\n"
            "    before, after = texts[0], sum(texts[1:])\n"
            "    return [*range(before + 1), *[before + 1] * patches, *range(before + 2, before + 3 + after)]",
            "there are 92 positions",
        ),
    ],
    "08.3": [
        ('answer_3 = scene_of(("green", "star", 0.2, 0.2), ("purple", "square", 0.8, 0.5))', "the model says"),
        ("answer_3 = draw(scene)", "the model says"),
        ('answer_3 = "a green star"', "this is 'a green star'"),
    ],
    "08.4": [
        (_three("before + 1"), "as if the picture were one position"),
        (_three("before + rows * columns"), "as many positions as there are vectors"),
        (_three("before + columns"), "even when there are more rows"),
        (
            _three("before + max(rows, columns)", row="before + c", column="before + r"),
            "rows and columns are swapped",
        ),
        (_three("before + max(rows, columns)", "r"), "the row list should be"),
        ("answer_4 = lambda before, rows, columns, after: [[0], [0], [0]]", "three lists of 11 positions"),
    ],
    "08.5": [
        ("answer_5 = ported", "4 of the 4 faults are left"),
        ("answer_5 = lambda pixels, tower: ported(pixels, tower) / 8", "3 of the 4 faults are left"),
        ("answer_5 = lambda pixels, tower: tower(pixels[None]).last_hidden_state[0] * 8", "Look at the very end"),
        ("answer_5 = lambda pixels, tower: tower(pixels[None]).last_hidden_state", "a tensor of shape [38, 192]"),
        ("answer_5 = lambda pixels, tower: ported(pixels, tower) + 1", "that the port did not have"),
    ],
}
