"""Turn text and messages into token ids, safely.

A *prompt* is a text (taken as it is, without a template), a `RenderedChat`, or ids `[1, length]`.
What a user typed never becomes a control token: `<|eot_id|>` inside a message stays ten characters
of text. (Hugging Face's `apply_chat_template` first renders the chat to text and then tokenizes it,
so there it does become one.)
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

from helpers import checks
from helpers.errors import BadInputError, PromptTooLongError
from helpers.models import store
from helpers.text.encoding import encode, text_ids, text_tokenizer
from helpers.text.marked import message_of
from helpers.text.templates import render_template

if TYPE_CHECKING:
    import torch

ROLES = ("system", "user", "assistant", "observation", "tool")
PROMPTS_DIR = store.DATA / "prompts"
DEEPEST = 50  # levels of lists and dicts in a message


@dataclass(frozen=True)
class Segment:
    """The ids [start:stop] of a `RenderedChat`, and where they come from.

    `message` is the index in the list of messages, or None for what the template itself adds
    (control tokens, role headers, a default system prompt).

    >>> from helpers import render_chat
    >>> chat = render_chat(tokenizer, [{"role": "user", "content": "Hi"}])
    >>> [tokenizer.decode(chat.input_ids[part.start : part.stop]) for part in chat.segments if part.message == 0]
    ['Hi']
    """

    message: int | None
    role: str
    start: int
    stop: int


@dataclass(frozen=True)
class RenderedChat:
    """Messages as the model receives them: the text, the ids, and which ids came from which message.

    >>> from helpers import render_chat
    >>> chat = render_chat(tokenizer, [{"role": "user", "content": "Hi"}])
    >>> len(chat) == len(chat.input_ids) == chat.segments[-1].stop
    True
    """

    text: str
    input_ids: list[int]
    segments: tuple[Segment, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


def load_prompts(name: str) -> list[str]:
    """The prompts in `data/prompts/<name>.txt`, one per line.

    Raises `BadInputError` if there is no such file; it names those that exist.

    >>> len(load_prompts("english")) > 10
    True
    """
    files = {path.stem: path for path in sorted(PROMPTS_DIR.glob("*.txt"))}
    if not isinstance(name, str) or name not in files:
        known = ", ".join(files)
        raise BadInputError(f"There is no prompt file {checks.shown(name)}. Choose one of these: {known}.")
    return [line for line in files[name].read_text(encoding="utf-8").splitlines() if line.strip()]


def prompt_ids(tokenizer: Any, prompt: Any, *, context: int | None = None) -> torch.Tensor:
    """The ids `[1, length]` (int64) of a prompt: a text, a `RenderedChat`, or ids.

    A text is tokenized as it is, without a template; the tokenizer adds what it always adds (a
    begin-of-text token). Control strings in it stay text, and a warning says so, since a chat that was
    rendered to text loses its control tokens this way.

    Raises `BadInputError` for an empty prompt, a batch, ids outside the vocabulary or a value of another
    type, and `PromptTooLongError` when there are more than `context` ids.

    >>> prompt_ids(tokenizer, "The sky is").shape
    torch.Size([1, 3])
    """
    import torch

    tokenizer = text_tokenizer(tokenizer)
    if isinstance(prompt, str):
        checks.text("The prompt", prompt)
        if not prompt:
            raise BadInputError("The prompt is empty: there is nothing to continue. Give it some text.")
        _warn_of_rendered_chat(tokenizer, prompt)
        ids = torch.tensor([text_ids(tokenizer, prompt, add_special_tokens=True)], dtype=torch.long)
    elif isinstance(prompt, RenderedChat):
        ids = _ids_tensor(prompt.input_ids)
    elif isinstance(prompt, list | tuple) and all(isinstance(i, Integral) and not isinstance(i, bool) for i in prompt):
        ids = _ids_tensor(prompt)
    elif isinstance(prompt, torch.Tensor) and _holds_ids(prompt):
        if prompt.is_meta:
            raise BadInputError(
                'These token ids are on the device "meta", so they have no values: create them on a real device.'
            )
        ids = prompt.long().reshape(1, -1) if prompt.dim() == 1 else prompt.long()
    else:
        raise BadInputError(
            f"A prompt must be a string, what render_chat returns, or token ids, not a {type(prompt).__name__}."
        )
    if ids.shape[0] != 1:
        raise BadInputError(f"One prompt at a time, please: these ids are a batch of {ids.shape[0]}.")
    if ids.shape[1] == 0:
        raise BadInputError("The prompt is empty: there is nothing to continue. Give it some text.")
    if ids.min() < 0 or ids.max() >= len(tokenizer):
        wrong = int(ids.max() if ids.max() >= len(tokenizer) else ids.min())
        raise BadInputError(f"Token id {wrong} is not in this vocabulary: ids run from 0 to {len(tokenizer) - 1}.")
    if context is not None and ids.shape[1] > checks.whole_number("context", context):
        raise PromptTooLongError(
            f"The prompt is {ids.shape[1]} tokens long, but the model's context is {context}: "
            f"shorten it by {ids.shape[1] - context} tokens."
        )
    return ids


def _holds_ids(tensor: torch.Tensor) -> bool:
    import torch

    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    return whole and tensor.dim() in (1, 2)


def _ids_tensor(ids: Sequence[int]) -> torch.Tensor:
    """The ids as a tensor `[1, length]`; an id too large for a tensor is in no vocabulary, and the error says so."""
    import torch

    beyond = next((token_id for token_id in ids if abs(token_id) >= 2**63), None)
    if beyond is not None:
        raise BadInputError(f"Token id {checks.shown(beyond)} is not in this vocabulary: it is far too large.")
    return torch.tensor([list(ids)], dtype=torch.long)


def _warn_of_rendered_chat(tokenizer: Any, text: str) -> None:
    """Warn about a text that looks like a chat template's output: it begins with begin-of-text as a string, or
    contains several control strings."""
    found = [token for token in tokenizer.all_special_tokens if token.strip() and token in text]
    if found and (text.startswith(tokenizer.bos_token or "\0") or sum(map(text.count, found)) > 1):
        warnings.warn(
            f"This text looks like a rendered chat: it contains {found[0]!r}. A text is taken literally, so these are "
            "characters here and not a control token. For a chat, pass what render_chat(tokenizer, messages) returns, "
            "or token ids.",
            stacklevel=4,  # where a reader called trace, generate_steps or a similar function
        )


def render_chat(tokenizer: Any, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True) -> RenderedChat:
    """Apply the tokenizer's chat template to messages; returns a `RenderedChat`.

    `messages` is a list of `{"role": ..., "content": ...}`; whatever else a message has (a name, tool calls) is passed
    to the template as well. The ids equal those of `tokenizer.apply_chat_template`, with one exception: what a message
    contains, under any key, stays text. `<|im_end|>` in a content does not become that control token, and `<tool_call>`
    does not become that added token. The segments say which ids came from which message, even if the template
    moves, repeats or shortens one.

    A tokenizer that builds its prompt itself (as GLM-4's does) does so with its method `encode_chat`. With any other
    processor, a message's "image" gets a placeholder before the text, which `picture_inputs` of helpers.text expands.
    A tokenizer alone leaves pictures out.

    >>> from helpers import load_tokenizer
    >>> chat = render_chat(load_tokenizer("llama-3-tokenizer"), [{"role": "user", "content": "hi"}])
    >>> [(segment.role, segment.stop - segment.start) for segment in chat.segments]
    [('template', 5), ('user', 1), ('template', 5)]

    Raises `BadInputError` when a message is malformed, the tokenizer has no chat template, or the template fails,
    refuses the messages or does not end.
    """
    text_tokenizer(tokenizer)
    checks.flag("add_generation_prompt", add_generation_prompt)
    check_messages(messages)
    if hasattr(tokenizer, "encode_chat"):
        return tokenizer.encode_chat(messages, add_generation_prompt=add_generation_prompt)
    takes_pictures = getattr(tokenizer, "image_processor", None) is not None
    rendered = render_template(
        chat_template(tokenizer),
        [_for_template(message, takes_pictures) for message in messages],
        text_tokenizer(tokenizer).special_tokens_map,
        add_generation_prompt=add_generation_prompt,
    )
    encoded = encode(tokenizer, rendered, written=_texts_of(messages))
    owners = [message_of(owner) for owner in rendered.owners()]
    of_ids = [None if i in encoded.controls else _owner(owners, encoded.spans, i) for i in range(len(encoded.ids))]
    return RenderedChat(rendered.plain(), encoded.ids, segments_of(of_ids, messages))


def chat_template(tokenizer: Any) -> str:
    """The chat template of a tokenizer or a processor: its only one, or the one named "default".

    Raises `BadInputError` if there is none, or if there are several without a default.
    """
    inner = text_tokenizer(tokenizer)
    template = getattr(tokenizer, "chat_template", None) or getattr(inner, "chat_template", None)
    if not template:
        raise BadInputError(
            "This tokenizer has no chat template: it belongs to a base model. Write the prompt as plain text."
        )
    if isinstance(template, dict):
        if "default" not in template:
            raise BadInputError(
                f"This tokenizer has several chat templates and no default: {', '.join(map(checks.shown, template))}. "
                "Choose one: tokenizer.chat_template = tokenizer.chat_template[name]."
            )
        template = template["default"]
    if not isinstance(template, str):
        raise BadInputError(f"This tokenizer's chat template must be a string, not {checks.shown(template)}.")
    return template


def _for_template(message: dict[str, Any], takes_pictures: bool) -> dict[str, Any]:
    """A message without its picture's pixels, but with a placeholder for it if the model takes pictures."""
    given = {key: value for key, value in message.items() if key != "image"}
    if takes_pictures and message.get("image") is not None:
        given["content"] = [{"type": "image"}, {"type": "text", "text": message["content"]}]
    return given


def _texts_of(value: Any) -> list[str]:
    """Every text in messages, except the roles."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = [part for key, item in value.items() if key != "role" for part in (key, item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts_of(item)]
    return []


def check_messages(messages: Any) -> None:
    """Raise `BadInputError` for the first message that is malformed."""
    if not isinstance(messages, list | tuple) or not messages:
        raise BadInputError('Messages must be a list with at least one {"role": "user", "content": "…"}.')
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or "role" not in message:
            raise BadInputError(f'Message {index} needs a "role" and a string as "content": {checks.shown(message)}.')
        if not isinstance(message["role"], str) or message["role"] not in ROLES:
            raise BadInputError(
                f"Message {index} has the role {checks.shown(message['role'])}; the roles are {', '.join(ROLES)}."
            )
        _check_texts(f"Message {index}", {key: value for key, value in message.items() if key != "image"})


def _check_texts(name: str, value: Any, depth: int = 0) -> None:
    """Check that the texts which a template is given can be encoded, and that nothing is nested too deeply."""
    if depth > DEEPEST:
        raise BadInputError(f"{name} is nested more than {DEEPEST} levels deep: no chat template reads that.")
    if isinstance(value, str):
        checks.text(name, value)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_texts(name, key, depth + 1)
            _check_texts(name, item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_texts(name, item, depth + 1)


def _owner(owners: list[int | None], spans: list[tuple[int, int]], index: int) -> int | None:
    """Whose token it is: a message's if any of its characters are, otherwise the template's.

    A token without characters of its own (a space that the tokenizer adds before a word) belongs to what follows.
    """
    start, stop = spans[index]
    inside = owners[start:stop] or owners[start : start + 1]
    return next((owner for owner in inside if owner is not None), None)


def segments_of(owners: Sequence[int | None], messages: Sequence[dict]) -> tuple[Segment, ...]:
    """Runs of ids with the same owner (a message's index, or None for the template's own), as `Segment`s."""
    segments, start = [], 0
    for stop in range(1, len(owners) + 1):
        if stop == len(owners) or owners[stop] != owners[start]:
            role = "template" if owners[start] is None else messages[owners[start]]["role"]
            segments.append(Segment(owners[start], role, start, stop))
            start = stop
    return tuple(segments)
