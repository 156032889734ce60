"""Text and messages become token ids, safely.

A *prompt* is a text (taken as it is, no template), a `RenderedChat`, or ids `[1, length]`.
What a user typed never becomes a control token: `<|eot_id|>` inside a message stays seven
characters of text. (Hugging Face's `apply_chat_template` renders to text first and tokenizes
afterwards, so there it does become one.)
"""

import re
from dataclasses import dataclass
from pathlib import Path

from helpers.errors import BadInputError, PromptTooLongError

ROLES = ("system", "user", "assistant", "observation", "tool")
PROMPTS_DIR = Path(__file__).resolve().parents[2] / "data" / "prompts"
# Private-use characters: no text has a reason to hold them, and we take others if one does.
_PRIVATE_USE = [chr(code) for code in range(0xE000, 0xF8FF)]


@dataclass(frozen=True)
class Segment:
    """ids[start:stop] of a `RenderedChat` and where they come from.

    `message` is the index in the list of messages, or None for what the template itself adds
    (control tokens, role headers, a default system prompt).
    """

    message: int | None
    role: str
    start: int
    stop: int


@dataclass(frozen=True)
class RenderedChat:
    """Messages as the model receives them: the text, the ids, and which ids came from which message."""

    text: str
    input_ids: list[int]
    segments: tuple[Segment, ...]

    def __len__(self):
        return len(self.input_ids)


def load_prompts(name):
    """Prompts of `data/prompts/<name>.txt`, one a line.

    Raises `BadInputError` naming the files there are when there is none of that name.
    """
    path = PROMPTS_DIR / f"{name}.txt"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROMPTS_DIR.glob("*.txt")))
        raise BadInputError(f"There is no prompt file {name!r}. There are: {known}.")
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def prompt_ids(tokenizer, prompt, *, context=None):
    """The ids `[1, length]` (int64) of a prompt: a text, a `RenderedChat`, or ids.

    A text is tokenized as it is, without a template; the tokenizer adds what it always adds (a
    beginning-of-text id, if the model has one), and control strings inside the text stay text.
    Ids are a list of int, or a tensor `[length]` or `[1, length]`.

    Raises `BadInputError` for an empty prompt, a batch, ids outside the vocabulary or another
    type, `PromptTooLongError` when there are more than `context` ids.
    """
    import torch

    if isinstance(prompt, str):
        ids = torch.tensor([tokenizer(prompt, split_special_tokens=True)["input_ids"]], dtype=torch.long)
        if not prompt:
            raise BadInputError("The prompt is empty: there is nothing to continue. Give it some text.")
    elif isinstance(prompt, RenderedChat):
        ids = torch.tensor([prompt.input_ids], dtype=torch.long)
    elif isinstance(prompt, list) and all(isinstance(i, int) for i in prompt):
        ids = torch.tensor([prompt], dtype=torch.long)
    elif isinstance(prompt, torch.Tensor) and not prompt.is_floating_point() and prompt.dim() in (1, 2):
        ids = prompt.long().reshape(1, -1) if prompt.dim() == 1 else prompt.long()
    else:
        raise BadInputError(
            f"A prompt is a text, what render_chat gave, or token ids; this is a {type(prompt).__name__}."
        )
    if ids.shape[0] != 1:
        raise BadInputError(f"One prompt at a time, please: these ids are a batch of {ids.shape[0]}.")
    if ids.shape[1] == 0:
        raise BadInputError("The prompt is empty: there is nothing to continue. Give it some text.")
    if ids.min() < 0 or ids.max() >= len(tokenizer):
        wrong = int(ids.max() if ids.max() >= len(tokenizer) else ids.min())
        raise BadInputError(f"Token id {wrong} is not in this vocabulary: ids run from 0 to {len(tokenizer) - 1}.")
    if context is not None and ids.shape[1] > context:
        raise PromptTooLongError(
            f"The prompt is {ids.shape[1]} tokens long, the model's context is {context}: "
            f"shorten it by {ids.shape[1] - context} tokens."
        )
    return ids


def render_chat(tokenizer, messages, *, add_generation_prompt=True):
    """Messages through the tokenizer's chat template, to a `RenderedChat`.

    `messages` is a list of `{"role": ..., "content": ...}`. The ids equal those of
    `tokenizer.apply_chat_template` unless a content holds a control string such as `<|im_end|>`:
    that stays text here. A tokenizer that builds its prompt itself (GLM-4's does) is asked to, by
    its method `encode_chat`. With another processor (GLM-4.1V's) a message's "image" gets one token before the text;
    `picture_inputs` of helpers.text makes room for all of it. A tokenizer alone leaves pictures out.

    Raises `BadInputError` when a message is malformed or the tokenizer has no chat template.
    """
    check_messages(messages)
    if hasattr(tokenizer, "encode_chat"):
        return tokenizer.encode_chat(messages, add_generation_prompt=add_generation_prompt)
    takes_pictures = getattr(tokenizer, "image_processor", None) is not None
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not tokenizer.chat_template:
        raise BadInputError(
            "This tokenizer has no chat template: it belongs to a base model. Write the prompt as plain text."
        )
    guard, opens, closes = _unused_characters([m["content"] for m in messages], 3)
    control = _control_pattern(tokenizer)
    guarded = []
    for message in messages:
        content = control.sub(lambda found: found[0][:1] + guard + found[0][1:], message["content"])
        core = content.strip()
        if core:  # marks sit inside the white space, so that a template that trims still trims
            content = content.replace(core, opens + core + closes, 1)
        if takes_pictures and message.get("image") is not None:
            content = [{"type": "image"}, {"type": "text", "text": content}]
        guarded.append({**message, "content": content})
    rendered = _apply_template(tokenizer, guarded, add_generation_prompt)
    return _encode_guarded(tokenizer, rendered, messages, (guard, opens, closes), control)


def check_messages(messages):
    """Raise `BadInputError` for the first message that is malformed."""
    if not isinstance(messages, list) or not messages:
        raise BadInputError('Messages are a list with at least one {"role": "user", "content": "…"}.')
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or "role" not in message:
            raise BadInputError(f'Message {index} needs a "role" and a text as "content": {message!r}.')
        if message["role"] not in ROLES:
            raise BadInputError(f"Message {index} has the role {message['role']!r}; roles are {', '.join(ROLES)}.")


def _unused_characters(texts, count):
    used = set("".join(texts))
    return [c for c in _PRIVATE_USE if c not in used][:count]


def _control_pattern(tokenizer):
    """Matches every string that the tokenizer would turn into a control token."""
    strings = sorted((t.content for t in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    return re.compile("|".join(re.escape(s) for s in strings) or r"(?!)")


def _apply_template(tokenizer, messages, add_generation_prompt):
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except (TemplateError, TypeError) as error:  # a TypeError: one that adds texts is given a picture
        raise BadInputError(f"This model's chat template does not accept these messages: {error}.") from None


def _encode_guarded(tokenizer, rendered, messages, marks, control):
    """Encode the template's control strings as control tokens and everything between them as text."""
    guard, opens, closes = marks
    ids, owners, text = [], [], []
    waiting = [index for index, message in enumerate(messages) if message["content"].strip()]
    owner = None
    start = 0
    for found in [*control.finditer(rendered), None]:
        piece, of_characters = "", []
        for character in rendered[start : found.start() if found else len(rendered)]:
            if character == opens:
                owner = waiting.pop(0)
            elif character == closes:
                owner = None
            elif character != guard:
                piece += character
                of_characters.append(owner)
        if piece:
            encoded = tokenizer(piece, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
            ids += encoded["input_ids"]
            owners += [_owner(of_characters[first:stop]) for first, stop in encoded["offset_mapping"]]
        text.append(piece)
        if found:
            ids.append(tokenizer.convert_tokens_to_ids(found[0]))
            owners.append(None)
            text.append(found[0])
            start = found.end()
    return RenderedChat("".join(text), ids, segments_of(owners, messages))


def _owner(owners):
    """Whose token it is: a message's when any of its characters are, else the template's."""
    return next((owner for owner in owners if owner is not None), None)


def segments_of(owners, messages):
    """Runs of equal owner (a message's index, or None for the template's own), as `Segment`s."""
    segments, start = [], 0
    for stop in range(1, len(owners) + 1):
        if stop == len(owners) or owners[stop] != owners[start]:
            role = "template" if owners[start] is None else messages[owners[start]]["role"]
            segments.append(Segment(owners[start], role, start, stop))
            start = stop
    return tuple(segments)
