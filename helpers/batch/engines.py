"""What turns prompts into answers: the engine that `run_batch` uses.

An engine is any object with

- `name`: what it is, such as "transformers";
- `model_name`: which model it runs and how (a run is resumed only with the same one);
- `identity()`, optionally: a dict of what else has to be the same when a run is resumed, such as "model_sha256";
- `generate(prompts, settings)`: an iterator of `(index, answer)`, where `answer` is the text, or the
  exception for a prompt that failed. `prompts` is an iterator of `Prompt`: an engine takes as many from it
  as it wants to work on at once (never all, since a file of a million lines may be behind it) and answers in
  any order, each index once. It raises errors that concern the whole run, such as a server that is gone.

`TransformersEngine` is the one for learners to read; each of the others has a file of its own.
"""

import contextlib
import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from helpers import checks
from helpers.batch.identity import model_sha256, tokenizer_sha256
from helpers.batch.predictions import say
from helpers.errors import (
    BadInputError,
    DamagedFilesError,
    DoesNotFitError,
    NotANumberError,
    PromptTooLongError,
    Setting,
)
from helpers.models.cache_size import purely_causal
from helpers.models.fitting import LESS, refusing_by_estimate
from helpers.models.memory import run_bytes
from helpers.text.encoding import text_tokenizer
from helpers.text.pictures import picture_inputs
from helpers.text.prompts import RenderedChat, prompt_ids, render_chat
from helpers.text.sight import TOKEN_TYPES, sight_of
from helpers.text.stopping import terminator_ids

T = TypeVar("T")
Encoded = tuple["Prompt", list[int]]  # a prompt and its ids
TOO_LONG_WARNING = "sequence-length-is-longer-than-the-specified-maximum"  # of `PreTrainedTokenizerBase`


@dataclass(frozen=True)
class Prompt:
    """One prompt of a run. `index` is its position in the input, `text` the text there.

    `messages` is the chat to answer; None means that the text is taken as it is. `image` is a picture's
    path or None (it is in the last message as well). `input_ids` are set if the prompt was tokenized
    beforehand. `problem` says why a prompt cannot be asked at all, such as a line that is not JSON:
    `run_batch` records it, and no engine receives the prompt.

    >>> Prompt(0, "Hello").messages is None
    True
    """

    index: int
    text: str
    messages: list[dict] | None = None
    image: Any = None
    input_ids: list[int] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated; the defaults are those of the Llama-3 walkthrough's script.

    >>> GenerationSettings(do_sample=False).in_use()
    {'max_new_tokens': 400, 'do_sample': False, 'repetition_penalty': 1.1}

    With `do_sample=False`, temperature, top_k and top_p have no effect. Raises `BadInputError` for a value that
    cannot work.
    """

    max_new_tokens: int = 400
    do_sample: bool = True
    temperature: float = 0.2
    top_k: int = 40
    top_p: float = 0.9
    repetition_penalty: float = 1.1

    def __post_init__(self) -> None:
        from helpers.inside.generation import check_settings

        checks.flag("do_sample", self.do_sample)
        neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": None}
        check_settings(**neutral | self.in_use())

    def in_use(self) -> dict[str, Any]:
        """A dict of the settings that have an effect, under the names that `generate_steps` and `generate` use."""
        return {k: v for k, v in vars(self).items() if self.do_sample or k not in ("temperature", "top_k", "top_p")}


def prompt_token_ids(
    tokenizer: Any, prompt: Prompt, *, context: int | None = None, max_new_tokens: int = 0
) -> list[int]:
    """The ids (list of int) of a `Prompt`: its own, its messages through the chat template, or its text.

    Special tokens are added once, and text never becomes one (`helpers.text.prompts`). `tokenizer` may be a
    processor. Raises `PromptTooLongError` if the ids and `max_new_tokens` together exceed `context` positions,
    and `BadInputError` for a prompt that cannot be encoded.
    """
    plain = text_tokenizer(tokenizer)
    # A prompt that is too long is reported below, with numbers, so the tokenizer need not warn as well.
    getattr(plain, "deprecation_warnings", {})[TOO_LONG_WARNING] = True
    if prompt.input_ids is not None:
        ids = list(prompt.input_ids)
    elif prompt.messages is not None:
        ids = render_chat(tokenizer, prompt.messages).input_ids
    else:
        ids = prompt_ids(plain, prompt.text)[0].tolist()
    _check_length(ids, context, max_new_tokens)
    return ids


def pictures_of(prompt: Prompt) -> list[Any]:
    """The pictures of a `Prompt`, in the order of its messages."""
    in_messages = [message["image"] for message in prompt.messages or () if message.get("image") is not None]
    return in_messages or ([] if prompt.image is None else [prompt.image])


def _check_length(ids: Sequence[int], context: int | None, max_new_tokens: int) -> None:
    if context is not None and len(ids) + max_new_tokens > context:
        raise PromptTooLongError(
            f"The prompt has {len(ids)} tokens and up to {max_new_tokens} new ones are asked for: more than the "
            f"model's context of {context}."
        )


def in_windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` consecutive items (the last may be shorter), taken from the iterator only when needed."""
    items = iter(items)
    while window := list(islice(items, min(size, sys.maxsize))):
        yield window


def as_prompt(index: int, given: Any, tokenizer: Any = None) -> Prompt:
    """A `Prompt` made from what a reader gives: a text, a `RenderedChat`, ids, messages, or a `Prompt`.

    Raises `BadInputError` for anything else.
    """
    if isinstance(given, Prompt):
        return given
    if isinstance(given, str):
        return Prompt(index, given)
    if isinstance(given, RenderedChat):
        return Prompt(index, given.text, input_ids=list(given.input_ids))
    if isinstance(given, list) and given and all(isinstance(message, dict) for message in given):
        last = given[-1]
        return Prompt(index, str(last.get("content", "")), messages=given, image=last.get("image"))
    ids = prompt_ids(tokenizer, given)[0].tolist()
    return Prompt(index, tokenizer.decode(ids), input_ids=ids)


class TransformersEngine:
    """`model.generate`, in batches that are sorted by length and padded on the left.

    `tokenizer` is a tokenizer, or a processor for a vision-language model. `batch_size` prompts run at once;
    `window` batches are read ahead and sorted, so that prompts of similar length share a batch and little is padded.
    If a batch fails, each of its prompts is tried again alone. If a model's answers depend on what else is
    in the batch (RWKV's do), its prompts run one at a time; a sentence on stderr says so.

    If a batch does not fit in memory, it and all later ones run in halves; a sentence on stderr says so. All settings
    come from here and none from the model's generation_config. Raises `BadInputError` for arguments that cannot work,
    and `DamagedFilesError` if weights turn out to be NaN or infinite.

    >>> TransformersEngine(model, tokenizer, batch_size=2).name
    'transformers'
    """

    name = "transformers"

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 8, window: int = 16) -> None:
        self.batch_size = checks.whole_number("batch_size", batch_size, least=1)
        self.window = checks.whole_number("window", window, least=1)
        self.model, self.tokenizer = checks.language_model("model", model), tokenizer
        self.model_name = f"{Path(model.name_or_path).name or type(model).__name__} in {_numbers_of(model)}"
        self.terminators = terminator_ids(tokenizer, model)
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def identity(self) -> dict[str, str]:
        """A SHA-256 of the content of the model and of the tokenizer (see `helpers.batch.identity`)."""
        return {"model_sha256": model_sha256(self.model), "tokenizer_sha256": tokenizer_sha256(self.tokenizer)}

    def generate(
        self, prompts: Iterable[Prompt], settings: GenerationSettings
    ) -> Iterator[tuple[int, str | BaseException]]:
        """An iterator of (index, text or exception), the longest prompts of each window first."""
        for window in in_windows(prompts, self.batch_size * self.window):
            encoded = []
            for prompt in window:
                try:
                    encoded.append((prompt, self._ids(prompt, settings)))
                except Exception as error:
                    yield prompt.index, error
            if len(encoded) > 1 and self.batch_size > 1 and self._depends_on_others:
                self.batch_size = 1
            for batch in batches_by_length(encoded, self.batch_size):
                yield from self._answers(batch, settings)

    @functools.cached_property
    def _depends_on_others(self) -> bool:
        """Whether a prompt gets other scores in a batch than alone, tried on two short texts.

        Attention masks hide padding from attention. A layer that keeps a state of fixed size may read it nonetheless:
        RWKV knows no mask (and mixes the prompts of a batch), and a state space whose projection has a bias makes
        something out of nothing. PaliGemma's attention looks both ways alone, and only back beside padding.
        """
        import torch

        from helpers.inside.anatomy import neutral_ids

        if purely_causal(self.model.config):
            return False
        ids = neutral_ids(self.model)[0].tolist()
        alone, beside = self._next_scores([ids[:1]])[-1], self._next_scores([ids * 4, ids[:1]])[-1]
        tolerance = 1e-4 if self.model.dtype in (torch.float32, torch.float64) else 2e-2  # rounding is below that
        depends = bool((alone - beside).abs().max() > tolerance * alone.abs().max())
        if depends:
            say("In a batch, this model's answers would depend on the other prompts, so the prompts run one at a time.")
        return depends

    def _next_scores(self, rows: list[list[int]]) -> Any:
        """The scores `[row, vocab]` of the token after each of these lists of ids, read as one batch."""
        import torch
        from transformers import GenerationConfig

        from helpers.inside.exclusive import one_at_a_time

        input_ids, attention_mask = (values.to(self.model.device) for values in left_padded(rows))
        config = GenerationConfig(max_new_tokens=1, output_logits=True, return_dict_in_generate=True, pad_token_id=0)
        with one_at_a_time(self.model, "a batch"), _no_settings_of_its_own(self.model), torch.inference_mode():
            output = self.model.generate(input_ids, attention_mask=attention_mask, generation_config=config)
        return output.logits[0].float()

    def _ids(self, prompt: Prompt, settings: GenerationSettings) -> list[int]:
        import torch

        limits = {"context": self.context, "max_new_tokens": settings.max_new_tokens}
        ids = prompt_token_ids(self.tokenizer, prompt, **limits)
        made = None if prompt.input_ids is not None else text_tokenizer(self.tokenizer)
        checks.ids_of_model(self.model, torch.tensor(ids, device="cpu"), made)
        return ids

    def _answers(
        self, batch: Sequence[Encoded], settings: GenerationSettings
    ) -> Iterator[tuple[int, str | BaseException]]:
        left = list(batch)
        while left:
            part, left = left[: self.batch_size], left[self.batch_size :]
            try:
                texts = self._generate(part, settings)
            except DoesNotFitError as error:
                if len(part) == 1:
                    yield part[0][0].index, error
                    continue
                self.batch_size, left = len(part) // 2, part + left
                say(
                    f"A batch of {len(part)} prompts does not fit in memory: continuing with {self.batch_size} at once."
                )
            except Exception as error:
                if len(part) > 1:
                    for one in part:
                        yield from self._answers([one], settings)
                    continue
                if isinstance(error, NotANumberError):
                    _check_weights(self.model)
                yield part[0][0].index, error
            else:
                for (prompt, _), text in zip(part, texts, strict=True):
                    yield prompt.index, text

    def _generate(self, batch: Sequence[Encoded], settings: GenerationSettings) -> list[str]:
        """The texts of one batch."""
        import torch

        from helpers.inside.exclusive import one_at_a_time

        rows, pictures = [ids for _, ids in batch], [pictures_of(prompt) for prompt, _ in batch]
        seen: dict[str, Any] = {}
        if any(pictures):
            rows, seen = picture_inputs(self.model, self.tokenizer, rows, pictures)
            for row in rows:
                _check_length(row, self.context, settings.max_new_tokens)
        input_ids, attention_mask = left_padded(rows)
        for name in TOKEN_TYPES & seen.keys():  # padded like the ids, with each row's first value, which is 0
            seen[name] = left_padded(seen[name])[0]
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask} | seen
        needs = functools.partial(
            self._needs, rows, settings.max_new_tokens, seen.get("pixel_values"), sum(map(len, pictures))
        )
        what = f"A batch of {len(rows)} prompts" if len(rows) > 1 else "This prompt"
        with (
            one_at_a_time(self.model, "a batch"),
            refusing_by_estimate(what, needs, str(self.model.device)),
            _no_settings_of_its_own(self.model),
            torch.inference_mode(),
        ):
            inputs = {name: values.to(self.model.device) for name, values in inputs.items()}
            output_ids = self.model.generate(
                **inputs, generation_config=self._generation_config(settings), logits_processor=[_refuse_no_numbers]
            )
        answers = output_ids[:, input_ids.shape[1] :].tolist()
        return [answer_text(self.tokenizer, answer, self.terminators) for answer in answers]

    def _needs(
        self, rows: list[list[int]], new: int, pixel_values: Any, pictures: int
    ) -> tuple[int, dict[str, int], str]:
        """(estimated bytes for a batch or 0 if they cannot be estimated, no smaller requests, what to do instead)."""
        import torch

        otherwise = "Use a smaller model, or omit the picture." if pictures else LESS
        with contextlib.suppress(Exception):
            sight = sight_of(self.model, self.tokenizer)
            seen = [sight.as_seen(torch.tensor([row], device="cpu"), pixel_values)[0] for row in rows]
            length = max(ids.shape[1] for ids in seen)
            return run_bytes(self.model, length, new, batch=len(rows), pictures=pictures), {}, otherwise
        return 0, {}, otherwise

    def _generation_config(self, settings: GenerationSettings) -> Any:
        from transformers import GenerationConfig

        return GenerationConfig(
            **settings.in_use(),
            eos_token_id=self.terminators,
            pad_token_id=self.terminators[0] if self.terminators else 0,
        )


@contextlib.contextmanager
def _no_settings_of_its_own(model: Any) -> Iterator[None]:
    """Empty the model's generation_config within the block, since `generate` takes missing settings from there."""
    from transformers import GenerationConfig

    its_own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = its_own


def _refuse_no_numbers(input_ids: Any, scores: Any) -> Any:
    """A logits processor that changes nothing, but raises `NotANumberError` for NaN or infinite scores."""
    from helpers.inside.generation import check_scores

    check_scores(scores)
    return scores


def _check_weights(model: Any) -> None:
    """Raise `DamagedFilesError` if weights are NaN or infinite, which no other prompt or setting can fix."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not parameter.isfinite().all():
            raise DamagedFilesError(
                f"The weights of {model.name_or_path or type(model).__name__} are not all numbers: {name} holds NaN or "
                "infinite values, so this model's answers are meaningless. Get its files again, or load it in "
                "another dtype, with ",
                Setting("dtype", "float32"),
                ".",
            )


def _numbers_of(model: Any) -> str:
    """The number format of a model's weights, such as "float32" or "4bit"."""
    for bits in ("4bit", "8bit"):
        if getattr(model, f"is_loaded_in_{bits}", False):
            return bits
    return str(model.dtype).removeprefix("torch.")


def batches_by_length(encoded: Iterable[Encoded], batch_size: int) -> Iterator[list[Encoded]]:
    """Batches of `[(Prompt, ids), …]`: prompts of similar length together, and those with a picture separately.

    The longest come first, so that a batch that does not fit in memory shows up at once.

    >>> encoded = [(Prompt(index, ""), [0] * length) for index, length in enumerate([3, 9, 4])]
    >>> [[len(ids) for _, ids in batch] for batch in batches_by_length(encoded, 2)]
    [[9, 4], [3]]
    """
    for with_image in (False, True):
        group = [pair for pair in encoded if bool(pictures_of(pair[0])) == with_image]
        yield from in_windows(sorted(group, key=lambda pair: -len(pair[1])), batch_size)


def left_padded(ids: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """`input_ids [batch, length]` and `attention_mask [batch, length]` of several lists of ids.

    Padding is on the left, so that each row's last position is its last token. A row is padded with its own first
    id: the mask hides the padding from attention, and a repetition penalty, which looks at `input_ids` and ignores
    the mask, then sees no token that the prompt does not have.

    >>> left_padded([[7, 8, 9], [5]])[0].tolist()
    [[7, 8, 9], [5, 5, 5]]
    """
    import torch

    ids = [checks.several("Each prompt's ids", row, "whole numbers") for row in checks.several("ids", ids, "lists")]
    if not ids or not all(type(token_id) is int for row in ids for token_id in row):
        raise BadInputError(f"ids must be lists of whole numbers, one for each prompt, not {checks.shown(ids)}.")
    longest = max(map(len, ids))
    padding = [longest - len(row) for row in ids]
    input_ids = [[*row[:1]] * missing + [*row] for row, missing in zip(ids, padding, strict=True)]
    attention_mask = [[0] * missing + [1] * (longest - missing) for missing in padding]
    return torch.tensor(input_ids, device="cpu"), torch.tensor(attention_mask, device="cpu")


def answer_text(tokenizer: Any, ids: Sequence[int], terminators: Sequence[int]) -> str:
    """The text of an answer's ids (list of int) before the first terminator."""
    end = next((place for place, token_id in enumerate(ids) if token_id in terminators), len(ids))
    tokenizer = text_tokenizer(tokenizer)
    return tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
