"""A reply's tokens as words."""

import codecs
from typing import Any

from helpers.text.tokens import token_bytes


def words_of(tokenizer: Any, output_ids: list[int]) -> list[tuple[str, list[int]]]:
    """A reply's ids as words: a list of `(text, indexes of its tokens)`; all texts joined are the reply.

    Tokens that share a character stay together, and so do Latin letters and digits in a row; of scripts
    that do not write spaces, such as Chinese, a word is what the tokens make of it.
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
    """Whether words are written with it letter by letter."""
    return character.isalnum() and (character < "\u2e80" or "\uac00" <= character <= "\ud7a3")
