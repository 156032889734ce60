"""Wrong answers to the exercises of notebook 08."""


def _three(go_on, row="before + r", column="before + c"):
    """Code for exercise 08.4: where the text goes on, and a vector's row and column."""
    return (
        "def answer_4(before, rows, columns, after):\n"
        "    places = [(r, c) for r in range(rows) for c in range(columns)]\n"
        f"    middles = [[before for r, c in places], [{row} for r, c in places], [{column} for r, c in places]]\n"
        f"    return [[*range(before), *m, *range({go_on}, {go_on} + after)] for m in middles]"
    )


WRONG_ANSWERS = {
    "08.1": [
        (
            "answer_1 = lambda image_size, patch_size: (image_size // patch_size) ** 2 + 2",
            "before each 2 x 2 are merged",
        ),
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
            "entry 41 of the list should be 6",
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
        ("answer_5 = lambda pixels, tower: tower(pixels[None]).last_hidden_state", "a tensor [38, 192]"),
        ("answer_5 = lambda pixels, tower: ported(pixels, tower) + 1", "that the port did not have"),
    ],
}
