"""Wrong answers to the exercises of notebook 00, and what is then said."""

WRONG_ANSWERS = {
    "00.1": [
        ("answer_1 = 49_152", "for one position of one prompt"),
        ("answer_1 = 7 * 49_152", "Here are three"),
        ("answer_1 = 3 * 49_152", "scores every position"),
        ("answer_1 = 21", "how many positions"),
        ("answer_1 = 1_000_000", "Multiply the three sizes"),
        ('answer_1 = "30"', "should be a whole number"),
    ],
    "00.2": [
        ('answer_2 = " Paris"', "that is the answer for France"),
        ('answer_2 = "Rome"', "the space belongs to the token"),
        ('answer_2 = "·Rome"', "the space belongs to the token"),
        ('answer_2 = "Milan"', "not the most likely token"),
        ("answer_2 = 7", "should be a string"),
    ],
    "00.3": [
        ("answer_3 = tokenizer.decode(generated[0])", "what the most likely tokens give"),
        ('answer_3 = " the capital"', "the whole text begins with"),
        ('answer_3 = "The capital of France is the"', "Eight rounds"),
        ('answer_3 = "The capital of France is Lyon."', "Take the second most likely token first"),
        ("answer_3 = 8", "should be a string"),
    ],
    "00.4": [
        ("answer_4 = 5", "that is less than 99%"),
        ("answer_4 = 49_152", "fewer are enough"),
        ("answer_4 = 49_153", "the vocabulary has"),
        ("answer_4 = 0", "at least one"),
        ("answer_4 = 0.99", "should be a whole number"),
    ],
}
