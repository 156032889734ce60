"""GLM-4's tokenizer from its `tokenizer.model`, and its chat format, which is implemented in code, not in a template.

The file has tiktoken's format: one line per token, with its bytes in base64 and its rank. The special
tokens come after the ranks. The prompts that the model was trained on differ from those of most chat
models in two ways: a header (`<|user|>` and a newline) and the content after it are encoded separately,
and content never becomes a special token, whatever it says.
"""

import base64
import json
import re
import warnings
from itertools import accumulate
from pathlib import Path
from typing import Any

from tokenizers import processors
from transformers import TokenizersBackend
from transformers.convert_slow_tokenizer import TikTokenConverter

from helpers import checks
from helpers.errors import BadInputError, DamagedFilesError, PictureLeftOutWarning
from helpers.text.encoding import text_ids
from helpers.text.prompts import RenderedChat, check_messages, segments_of
from helpers.text.templates import render_template

PREFIX = ("[gMASK]", "<sop>")  # begins every prompt
PICTURE = ("<|begin_of_image|>", "<|endoftext|>", "<|end_of_image|>")  # the one in the middle is a placeholder
ROLES = ("system", "user", "assistant", "observation")
LONGEST_LINE = 10_000  # characters of a token and its rank; the time to load a token grows with its length squared
# What GLM-4 was trained to read before and after the definitions of functions; versions differ in the wording. If a
# folder has a chat template of its own, that is used instead.
TOOLS_FIRST = (
    "你是一个名为 GLM-4 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)
TOOL_LAST = "\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
CALL = re.compile(r"([a-z_][A-Za-z0-9_-]{0,63})\n(.*\S.*)", re.DOTALL)  # a tool's name, then what it is given


def read_ranks(path: str | Path) -> dict[bytes, int]:
    """bytes -> rank for every token of a tiktoken file. Raises `DamagedFilesError`, which names the wrong line."""
    ranks = {}
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        try:
            if len(line) > LONGEST_LINE:
                raise ValueError
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise DamagedFilesError(
                f"{path}, line {number}, is not a token and its rank: fetch the file again. (A file that was checked "
                "out without Git LFS looks like this.)"
            ) from None
    single_bytes = all(bytes([byte]) in ranks for byte in range(256))
    if not single_bytes or sorted(ranks.values()) != list(range(len(ranks))):
        raise DamagedFilesError(f"{path} is incomplete: {len(ranks)} tokens, with gaps. Fetch the file again.")
    return ranks


def _function(index: int, tool: Any) -> dict[str, Any]:
    """The definition of a function, from a dict as transformers' `apply_chat_template` takes it, or from a Python
    function. Raises `BadInputError` for anything else."""
    if callable(tool):
        from transformers.utils import DocstringParsingException, TypeHintParsingException, get_json_schema

        try:
            return get_json_schema(tool)["function"]
        except (DocstringParsingException, TypeHintParsingException, TypeError, ValueError) as error:
            raise BadInputError(
                f"Message {index} offers {getattr(tool, '__name__', tool)!r} as a tool, whose types or docstring "
                f"do not say what it takes: {str(error).splitlines()[0]}"
            ) from None
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if isinstance(function, dict) and isinstance(function.get("name"), str):
        try:
            json.dumps(function)
            return function
        except (TypeError, ValueError):
            pass  # the error below covers this case, too
    raise BadInputError(
        f"Message {index} offers {checks.shown(tool)} as a tool: a tool is a Python function with types and a "
        'docstring, or {"type": "function", "function": {"name": …, "description": …, "parameters": …}}.'
    )


def positions(attention_mask: list[int]) -> list[int]:
    """Position ids: 0, 1, 2, ... where the mask (list of int) is 1, and 0 at padding."""
    return [(total - 1) * seen for seen, total in zip(attention_mask, accumulate(attention_mask), strict=True)]


class _Converter(TikTokenConverter):
    load_tiktoken_bpe = staticmethod(read_ranks)


class ChatGLM4Tokenizer(TokenizersBackend):
    """GLM-4's tokenizer as a fast tokenizer of transformers.

    Called on a text, it recognises special tokens in it and puts `[gMASK]<sop>` in front. For
    conversations use `apply_chat_template`, or `encode_chat`, which also says which message each id came from.
    The Jinja template of later revisions of GLM-4-9B-Chat is used for tool definitions only, since it encodes the
    whole prompt in one go.
    """

    model_input_names = ["input_ids", "attention_mask", "position_ids"]
    padding_side = "left"

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        """Builds the tokenizer when transformers loads a folder; raises `DamagedFilesError`."""
        kwargs.pop("auto_map", None)  # remote code, not needed
        if kwargs.get("tokenizer_file"):  # saved by save_pretrained
            return super().convert_to_native_format(**kwargs)
        path, added = kwargs.get("vocab_file"), kwargs.get("added_tokens_decoder")
        if not path or not added:
            lacks = "special tokens in tokenizer_config.json" if path else "tokenizer.model"
            raise DamagedFilesError(f"{kwargs.get('name_or_path')} has no {lacks}: fetch its files again.")
        tokenizer = _Converter(path, extra_special_tokens=[str(added[i]) for i in sorted(added)]).converted()
        wrong = [i for i, token in added.items() if tokenizer.token_to_id(str(token)) != i]
        if wrong:
            raise DamagedFilesError(
                f"tokenizer_config.json gives {added[wrong[0]]} the id {wrong[0]}, which does not follow the ranks of "
                f"{path}: the files belong to different models. Fetch both again."
            )
        prefix = " ".join(PREFIX)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{prefix} $A",
            pair=f"{prefix} $A $B:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in PREFIX],
        )
        return {**kwargs, "tokenizer_object": tokenizer}

    @property
    def image_size(self) -> int | None:
        """The number of pixels along one side of a picture, or None for a model that takes text only."""
        return self.init_kwargs.get("image_size")

    def encode_chat(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True, add_special_tokens: bool = True
    ) -> RenderedChat:
        """A conversation as the model was trained to read it: a `RenderedChat`.

        `messages`: dicts with "role" (system, user, assistant, observation), "content" and, optionally,
        "metadata" (a tool's name), "image" (any picture: here it only becomes three ids before the content) and
        "tools" (definitions of functions as transformers' `apply_chat_template` takes them: they become a system
        message before this one). A message with neither content nor picture is left out.

        Raises `BadInputError` for malformed messages and definitions, and for a second picture.
        """
        messages = self._checked(messages)
        pieces: list[tuple[str, str | None, int | None]] = (
            [(token, token, None) for token in PREFIX] if add_special_tokens else []
        )
        for index, message in enumerate(messages):
            has_picture = message.get("image") is not None
            if message.get("tools"):
                pieces.append(("<|system|>", "<|system|>", None))
                pieces.append(("\n", None, None))
                pieces.append((self._tools_text(index, message["tools"]), None, index))
            if not message["content"] and not has_picture:
                continue
            metadata = message.get("metadata") or ""
            role_token = f"<|{message['role']}|>"
            pieces.append((role_token, role_token, None))
            pieces.append((metadata + "\n", None, index if metadata else None))
            pieces += [(token, token, index) for token in PICTURE] if has_picture else []
            pieces.append((message["content"], None, index))
        if add_generation_prompt:
            pieces.append(("<|assistant|>", "<|assistant|>", None))
        ids, owners = [], []
        for text, special, owner in pieces:
            piece_ids = [self.convert_tokens_to_ids(special)] if special else self._text_ids(text)
            ids += piece_ids
            owners += [owner] * len(piece_ids)
        return RenderedChat("".join(text for text, _, _ in pieces), ids, segments_of(owners, messages))

    def _tools_text(self, index: int, tools: Any) -> str:
        """The definitions as the model reads them: by the folder's own template if it has one, else in GLM-4's format.

        Follows `apply_chat_template` of the original code, but for functions only: its own tools (python, browser,
        drawing) are refused, because they need programs that the course does not run. A template that ignores tools is
        refused as well, with `BadInputError`.
        """
        functions = [_function(index, tool) for tool in (tools if isinstance(tools, list | tuple) else [tools])]
        if self.chat_template:
            tools = [{"type": "function", "function": function} for function in functions]
            empty = {"role": "system", "content": ""}
            told, bare = (
                str(render_template(self.chat_template, [message], {}, add_generation_prompt=False))
                for message in (empty | {"tools": tools}, empty)
            )
            begin = "".join(PREFIX)
            rest = bare.removeprefix(begin)  # the template's output for the empty message itself
            system, mark, text = told.removeprefix(begin).removesuffix(rest).partition("<|system|>\n")
            if system or not mark:
                raise BadInputError("This folder's chat template has no place for tools: the model would not see them.")
            return text
        described = (
            f"\n\n## {function['name']}\n\n{json.dumps(function, ensure_ascii=False, indent=4)}{TOOL_LAST}"
            for function in functions
        )
        return TOOLS_FIRST + "".join(described)

    def parse_reply(self, text: str) -> dict[str, str]:
        """What the model wrote after `<|assistant|>`, as a message without its role: the inverse of `encode_chat`.

        >>> tokenizer.parse_reply("\\n你好！")  # doctest: +SKIP
        {'content': '你好！'}
        >>> tokenizer.parse_reply('get_weather\\n{"city": "北京"}')  # doctest: +SKIP
        {'metadata': 'get_weather', 'content': '{"city": "北京"}'}

        The model itself completes the header: with a newline for an ordinary reply, or with a tool's name and a newline
        to call the tool. A first line counts as a tool's name if it is one word of Latin letters, digits, `_` and `-`
        that begins with a lower-case letter or `_`, and something follows it; the content is then left as it was
        written. Any other text is all content, without the white space around it: "Yes" and a new line call no tool.
        `<|assistant|>` inside a text is ordinary text and does not begin a message.

        Follows `process_response` of the original code, which takes any first line for a name.
        """
        call = CALL.fullmatch(text)
        return {"metadata": call[1], "content": call[2]} if call else {"content": text.strip()}

    def _text_ids(self, text: str) -> list[int]:
        """The ids of a text in which no special tokens are recognised."""
        return text_ids(self, text)

    def _checked(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if isinstance(messages, list | tuple):  # "content" may be missing beside a picture
            messages = [{"content": "", **m} if isinstance(m, dict) and "image" in m else m for m in messages]
        check_messages(messages)
        for index, message in enumerate(messages):
            if message["role"] not in ROLES:
                raise BadInputError(
                    f"Message {index} has the role {message['role']!r}; GLM-4's roles are {', '.join(ROLES)}."
                )
            if not isinstance(message.get("metadata") or "", str):
                raise BadInputError(
                    f"Message {index} has the metadata {message['metadata']!r}: it must be a tool's name, a string."
                )
        pictures = [index for index, message in enumerate(messages) if message.get("image") is not None]
        if pictures and self.image_size is None:
            raise BadInputError(f"Message {pictures[0]} holds a picture, but this model takes text only.")
        if len(pictures) > 1:
            raise BadInputError(
                f"Messages {' and '.join(map(str, pictures))} hold pictures: GLM-4V takes only one per "
                "conversation. Keep one of them, or start a new conversation."
            )
        return messages

    def apply_chat_template(
        self,
        conversation: list[Any],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        add_special_tokens: bool = True,
        padding: bool = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        pixels_follow: bool = False,
        **options: Any,
    ) -> Any:
        """As in transformers: turn one conversation or a list of them into a `BatchEncoding`, ids, or text.

        The ids are those of `encode_chat`; `tools` are definitions of functions, for all conversations;
        `add_special_tokens=False` omits `[gMASK]<sop>`. A picture becomes three ids, but only the processor computes
        its `pixel_values`: a warning says so unless the caller adds them (`pixels_follow`).
        Raises `BadInputError` as `encode_chat` does, and for options that GLM-4's template does not have.
        """
        tools = options.pop("tools", None)
        options.pop("continue_final_message", None)  # no token ends a message, so it is already open
        asked = [name for name, value in options.items() if value]
        if asked:
            raise BadInputError(f"GLM-4's chat template has no option {asked[0]!r}: leave it out.")
        is_batched = bool(conversation) and isinstance(conversation[0], list | tuple)
        conversations = conversation if is_batched else [conversation]
        if tools:
            conversations = [[{"role": "system", "content": "", "tools": tools}, *talk] for talk in conversations]
        rendered = [
            self.encode_chat(
                messages, add_generation_prompt=add_generation_prompt, add_special_tokens=add_special_tokens
            )
            for messages in conversations
        ]
        if not tokenize:
            return [chat.text for chat in rendered] if is_batched else rendered[0].text
        if not pixels_follow and any(m.get("image") is not None for messages in conversations for m in messages):
            warnings.warn(
                "The picture is left out here: a tokenizer doesn't produce pixel_values, and without them the model "
                "can't see the picture. Use the processor from load_processor (or AutoProcessor) instead.",
                PictureLeftOutWarning,
                stacklevel=2,
            )
        rows = [chat.input_ids for chat in rendered]
        if truncation:
            rows = [ids[-max_length:] if self.truncation_side == "left" else ids[:max_length] for ids in rows]
        encoded = self.pad(
            {"input_ids": rows if is_batched or return_tensors else rows[0]},
            padding=padding,
            max_length=max_length,
            return_tensors=return_tensors,
        )
        return encoded if return_dict else encoded["input_ids"]

    # The model takes position_ids, so the tokenizer returns them as well: padding has position 0.

    def _convert_encoding(self, encoding: Any, **kwargs: Any) -> Any:
        columns, encodings = super()._convert_encoding(encoding, **kwargs)
        if "position_ids" in self.model_input_names:
            columns["position_ids"] = [positions(e.attention_mask) for e in encodings]
        return columns, encodings

    def _pad(self, encoded_inputs: Any, *args: Any, **kwargs: Any) -> Any:
        encoded = super()._pad(encoded_inputs, *args, **kwargs)
        if "position_ids" in self.model_input_names and "attention_mask" in encoded:
            encoded["position_ids"] = positions(encoded["attention_mask"])
        return encoded
