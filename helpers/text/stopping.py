"""Which tokens end an answer."""

from __future__ import annotations

from typing import Any

from helpers.errors import BadInputError
from helpers.text.encoding import encode, text_tokenizer
from helpers.text.marked import message_of
from helpers.text.prompts import chat_template
from helpers.text.templates import render_template

PROBE = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]


def terminator_ids(tokenizer: Any, model: Any = None) -> list[int]:
    """The ids that end an answer, sorted: the model's, the tokenizer's, and the one that ends a turn in its chats.

    A model's own list is often too short: Llama-3's first release named only `<|end_of_text|>`, so its chats ran past
    `<|eot_id|>`, and a chat model may still have the list of its base model. `model` may be None.

    >>> from helpers import load_tokenizer
    >>> tokenizer = load_tokenizer("llama-3-tokenizer")
    >>> tokenizer.convert_ids_to_tokens(terminator_ids(tokenizer))
    ['<|end_of_text|>', '<|eot_id|>']
    """
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = {*configured} if isinstance(configured, list | tuple) else {configured}
    inner = text_tokenizer(tokenizer)
    ids |= {inner.eos_token_id, inner.get_vocab().get("<|eot_id|>"), _end_of_turn(tokenizer)}
    return sorted(ids - {None})


def _end_of_turn(tokenizer: Any) -> int | None:
    """The control token that the chat template writes right after an assistant's text, if it writes one."""
    inner = text_tokenizer(tokenizer)
    if hasattr(tokenizer, "encode_chat"):
        return None  # no template makes its prompts, and its model names all terminators
    try:
        template = chat_template(tokenizer)
        text = render_template(template, PROBE, inner.special_tokens_map, add_generation_prompt=False)
        encoded = encode(inner, text)
    except BadInputError:  # no template, or one that does not take this conversation
        return None
    owners = [message_of(owner) for owner in text.owners()]
    if 1 not in owners:
        return None
    end = len(owners) - owners[::-1].index(1)
    for index, (start, stop) in enumerate(encoded.spans):
        if stop > end and text[max(start, end) : stop].strip():
            return encoded.ids[index] if index in encoded.controls else None
    return None
