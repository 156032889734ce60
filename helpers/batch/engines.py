"""What turns prompts into answers: the engine that `run_batch` asks.

An engine is any object with

- `name`: what it is, such as "transformers";
- `model_name`: which model it runs and how (a run is only resumed with the same one);
- `generate(prompts, settings)`: an iterator of `(index, answer)`, where `answer` is the text, or the
  exception for a prompt that failed. `prompts` is an iterator of `Prompt`: an engine takes from it as many
  as it wants to have at once (a million-line file is behind it, so never all) and answers in any order,
  each index once. What concerns the whole run, such as a server that is gone, it raises.

`TransformersEngine` is the one that learners read; others have a file of their own.
"""

from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from helpers.errors import BadInputError, PromptTooLongError
from helpers.text.encoding import text_tokenizer
from helpers.text.pictures import picture_inputs
from helpers.text.prompts import RenderedChat, prompt_ids, render_chat
from helpers.text.sight import TOKEN_TYPES
from helpers.text.stopping import terminator_ids

TOO_LONG_WARNING = "sequence-length-is-longer-than-the-specified-maximum"  # of `PreTrainedTokenizerBase`


@dataclass(frozen=True)
class Prompt:
    """One prompt of a run. `index` is its place in the input, `text` what stood there.

    `messages` are what a chat model is to be asked; None means that the text is taken as it is. `image` is
    a picture's path or None (it is in the last message as well). `input_ids` are given where a prompt was
    tokenized beforehand. `problem` says why a prompt cannot be asked at all, such as a line that is not JSON:
    `run_batch` records it, and no engine sees it.
    """

    index: int
    text: str
    messages: list[dict] | None = None
    image: str | None = None
    input_ids: list[int] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are made; the defaults are those of the Llama-3 walkthrough's script.

    With `do_sample=False` temperature, top_k and top_p have no part in it. Raises `BadInputError` for a value
    that cannot work.
    """

    max_new_tokens: int = 400
    do_sample: bool = True
    temperature: float = 0.2
    top_k: int = 40
    top_p: float = 0.9
    repetition_penalty: float = 1.1

    def __post_init__(self):
        from helpers.inside.generation import check_settings

        neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": None}
        check_settings(**neutral | self.in_use())

    def in_use(self):
        """A dict of those that have a part in it: the names that `generate_steps` and `generate` know."""
        return {k: v for k, v in asdict(self).items() if self.do_sample or k not in ("temperature", "top_k", "top_p")}


def prompt_token_ids(tokenizer, prompt, *, context=None, max_new_tokens=0):
    """The ids (list of int) of a `Prompt`: its own, its messages through the chat template, or its text.

    Special tokens are there once, and text never becomes one (`helpers.text.prompts`). `tokenizer` may be a
    processor. Raises `PromptTooLongError` when ids and `max_new_tokens` are more than `context`, and
    `BadInputError`.
    """
    plain = text_tokenizer(tokenizer)
    # What is too long is said below, with its numbers: the tokenizer need not warn as well.
    getattr(plain, "deprecation_warnings", {})[TOO_LONG_WARNING] = True
    if prompt.input_ids is not None:
        ids = list(prompt.input_ids)
    elif prompt.messages is not None:
        ids = render_chat(tokenizer, prompt.messages).input_ids
    else:
        ids = prompt_ids(plain, prompt.text)[0].tolist()
    _check_length(ids, context, max_new_tokens)
    return ids


def pictures_of(prompt):
    """The pictures of a `Prompt`, in the order of its messages."""
    in_messages = [message["image"] for message in prompt.messages or () if message.get("image") is not None]
    return in_messages or ([] if prompt.image is None else [prompt.image])


def _check_length(ids, context, max_new_tokens):
    if context is not None and len(ids) + max_new_tokens > context:
        raise PromptTooLongError(
            f"The prompt has {len(ids)} tokens and up to {max_new_tokens} new ones are asked for: more than the "
            f"model's context of {context}."
        )


def in_windows(items, size):
    """Lists of `size` consecutive items (the last may be shorter), taken from the iterator as they are needed."""
    items = iter(items)
    while window := list(islice(items, size)):
        yield window


def as_prompt(index, given, tokenizer=None):
    """A `Prompt` of what a reader gives: a text, a `RenderedChat`, ids, messages, or a `Prompt`.

    Raises `BadInputError` for anything else.
    """
    if isinstance(given, Prompt):
        return given
    if isinstance(given, str):
        return Prompt(index, given)
    if isinstance(given, RenderedChat):
        return Prompt(index, given.text, input_ids=list(given.input_ids))
    if isinstance(given, list) and given and isinstance(given[0], dict):
        last = given[-1]
        return Prompt(index, str(last.get("content", "")), messages=given, image=last.get("image"))
    ids = prompt_ids(tokenizer, given)[0].tolist()
    return Prompt(index, tokenizer.decode(ids), input_ids=ids)


class TransformersEngine:
    """`model.generate`, in batches that are sorted by length and padded on the left.

    `tokenizer` is a tokenizer, or a processor for a model that sees. `batch_size` prompts run at once;
    `window` batches are read ahead and sorted, so that prompts of like length meet and little is padded.
    A prompt that fails within a batch is tried again alone, and so are its neighbours.
    """

    name = "transformers"

    def __init__(self, model, tokenizer, *, batch_size=8, window=16):
        if batch_size < 1 or window < 1:
            raise BadInputError(f"batch_size and window are at least 1, not {batch_size} and {window}.")
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.window = batch_size, window
        self.model_name = f"{Path(model.name_or_path).name or type(model).__name__} in {_numbers_of(model)}"
        self.terminators = terminator_ids(tokenizer, model)
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def generate(self, prompts, settings):
        """An iterator of (index, text or exception), the longest prompts of each window first."""
        for window in in_windows(prompts, self.batch_size * self.window):
            encoded = []
            for prompt in window:
                try:
                    ids = prompt_token_ids(
                        self.tokenizer, prompt, context=self.context, max_new_tokens=settings.max_new_tokens
                    )
                    encoded.append((prompt, ids))
                except Exception as error:
                    yield prompt.index, error
            for batch in batches_by_length(encoded, self.batch_size):
                yield from self._answers(batch, settings)

    def _answers(self, batch, settings):
        try:
            texts = self._generate(batch, settings)
        except Exception as error:
            if len(batch) == 1:
                yield batch[0][0].index, error
            else:
                for one in batch:
                    yield from self._answers([one], settings)
        else:
            for (prompt, _), text in zip(batch, texts, strict=True):
                yield prompt.index, text

    def _generate(self, batch, settings):
        """The texts of one batch: `[(Prompt, ids), …]`."""
        import torch

        from helpers.inside.exclusive import one_at_a_time

        rows, pictures = [ids for _, ids in batch], [pictures_of(prompt) for prompt, _ in batch]
        seen = {}
        if any(pictures):
            rows, seen = picture_inputs(self.model, self.tokenizer, rows, pictures)
            for row in rows:
                _check_length(row, self.context, settings.max_new_tokens)
        input_ids, attention_mask = left_padded(rows)
        for name in TOKEN_TYPES & seen.keys():  # as long as the ids, and 0 at each row's first, which pads it
            seen[name] = left_padded(seen[name])[0]
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask} | seen
        inputs = {name: values.to(self.model.device) for name, values in inputs.items()}
        with one_at_a_time(self.model, "a batch"), torch.inference_mode():
            output_ids = self.model.generate(**inputs, **self._generate_settings(settings))
        answers = output_ids[:, input_ids.shape[1] :].tolist()
        return [answer_text(self.tokenizer, answer, self.terminators) for answer in answers]

    def _generate_settings(self, settings):
        """All of them by name, since `generate` fills what is missing from the model's generation_config."""
        unused = {"temperature": None, "top_k": None, "top_p": None}
        return unused | {
            **settings.in_use(),
            "num_beams": 1,
            "eos_token_id": self.terminators,
            "pad_token_id": self.terminators[0] if self.terminators else 0,
        }


def _numbers_of(model):
    """The kind of numbers of a model's weights: "float32", "4bit"."""
    for bits in ("4bit", "8bit"):
        if getattr(model, f"is_loaded_in_{bits}", False):
            return bits
    return str(model.dtype).removeprefix("torch.")


def batches_by_length(encoded, batch_size):
    """Batches of `[(Prompt, ids), …]`, prompts of like length together, those with a picture apart.

    The longest come first: what does not fit in memory shows at once.
    """
    for with_image in (False, True):
        group = [pair for pair in encoded if bool(pictures_of(pair[0])) == with_image]
        yield from in_windows(sorted(group, key=lambda pair: -len(pair[1])), batch_size)


def left_padded(ids):
    """`input_ids [batch, length]` and `attention_mask [batch, length]` of several lists of ids.

    On the left, so that each row's last position is its last token. A row is padded with its own first id:
    the mask hides it from attention, and a repetition penalty, which looks at `input_ids` and knows no mask,
    then meets no token that the prompt does not have.
    """
    import torch

    longest = max(map(len, ids))
    padding = [longest - len(row) for row in ids]
    input_ids = torch.tensor([row[:1] * missing + row for row, missing in zip(ids, padding, strict=True)])
    attention_mask = torch.tensor([[0] * missing + [1] * (longest - missing) for missing in padding])
    return input_ids, attention_mask


def answer_text(tokenizer, ids, terminators):
    """The text of an answer's ids (list of int): what comes before the first terminator."""
    end = next((place for place, token_id in enumerate(ids) if token_id in terminators), len(ids))
    tokenizer = text_tokenizer(tokenizer)
    return tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
