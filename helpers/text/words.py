"""Group a reply's tokens into words."""

import codecs
from typing import Any

from helpers.text.tokens import token_bytes


def words_of(tokenizer: Any, output_ids: list[int]) -> list[tuple[str, list[int]]]:
    """A reply's ids as words: a list of `(text, indexes of its tokens)`; the texts joined are the reply.

    Tokens that share a character stay together, and so do letters and digits that follow each other. In
    scripts without spaces between words, such as Chinese, the tokens decide what counts as a word.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    words: list[tuple[str, list[int]]] = []
    held: list[int] = []  # tokens whose text is not complete yet
    text = ""
    for index, token_id in enumerate(output_ids):
        held.append(index)
        text += decoder.decode(token_bytes(tokenizer, token_id), final=index + 1 == len(output_ids))
        if decoder.getstate()[0]:
            continue  # in the middle of a character
        if words and _is_spelled(text[:1]) and _is_spelled(words[-1][0][-1:]):
            words[-1] = (words[-1][0] + text, words[-1][1] + held)
        else:
            words.append((text, held))
        held, text = [], ""
    return words


def _is_spelled(character: str) -> bool:
    """Whether it joins its neighbours into a word: a letter or digit, but no East Asian one except Hangul."""
    return character.isalnum() and (character < "\u2e80" or "\uac00" <= character <= "\ud7a3")
