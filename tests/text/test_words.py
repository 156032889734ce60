"""A reply's tokens as words."""

from helpers.text.words import words_of


def test_words_are_the_reply_in_pieces(tokenizer):
    text = "The circle is red, isn't it? 圆形是红色的。 👩🏽‍💻 done"
    ids = tokenizer(text)["input_ids"]
    words = words_of(tokenizer, ids)
    assert "".join(word for word, _ in words) == text
    assert [index for _, tokens in words for index in tokens] == list(range(len(ids)))
    assert {"circle", "is", "red"} <= {word.strip() for word, _ in words}
    assert not any("\ufffd" in word for word, _ in words), "no character is cut"


def test_a_reply_that_ends_in_the_middle_of_a_character_has_words_too(tokenizer):
    ids = tokenizer("ok 👩🏽‍💻")["input_ids"]
    words = words_of(tokenizer, ids[:-1])
    assert words[0][0] == "ok" and [index for _, tokens in words for index in tokens] == list(range(len(ids) - 1))
    assert words_of(tokenizer, []) == []
