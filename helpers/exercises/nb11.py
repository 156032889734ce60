"""Checks for notebook 11: a program from 2024, ported function by function; then GLM-4's chat and its pictures."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.exercises import exercise, require

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SETTINGS: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.1, "max_new_tokens": 12}
LINES = ("What is the capital of France?", "What does <|im_end|> mean? 你有什么建议？")
TURNS = ("你好", "浙江的省会在哪里", "它有什么好玩的景点")


@cache
def _smollm2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_tokenizer

    return load_model("smollm2-135m", device="cpu"), load_tokenizer("smollm2-135m")


@cache
def _glm4v() -> tuple[PreTrainedModel, Any]:
    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_processor

    return load_model("tiny-glm4v", device="cpu"), load_processor("tiny-glm4v")


def _said_nothing(said: list[str]) -> None:
    require(not said, f"it runs, but there should be no warning from the library: {said[0] if said else ''!r:.160}")


def _bfloat16_checkpoint(folder: str) -> None:
    """A model of a few numbers, stored in bfloat16, with the default model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    tokenizer = _smollm2()[1]
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@exercise("11.1", expects=Callable)
def _(answer: Any) -> str:
    import torch
    from transformers import PreTrainedModel

    from helpers.attempts import library_messages

    with tempfile.TemporaryDirectory() as folder:
        with library_messages():
            _bfloat16_checkpoint(folder)
        with library_messages() as said:
            given = answer(folder)
    pair = isinstance(given, tuple | list) and len(given) == 2
    require(pair and isinstance(given[1], PreTrainedModel), "it should return the tokenizer, then the model.")
    _said_nothing(said)
    require(not given[1].training, "the model is in training mode.")
    stored = given[1].dtype is torch.bfloat16
    require(
        not stored,
        "for a checkpoint that is stored in bfloat16 it returns a bfloat16 model. The program from 2024 computed in "
        "float32: which argument says so today?",
    )
    require(given[1].dtype is torch.float32, f"the model should be in float32, but is in {given[1].dtype}.")
    return "It loads in float32 whatever the file holds, and there is no warning."


@exercise("11.2", expects=Callable)
def _(answer: Any) -> str:
    import torch

    from helpers.text.prompts import render_chat

    tokenizer = _smollm2()[1]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for with_system in (True, False):
        messages = [{"role": "user", "content": LINES[1]}]
        messages = [{"role": "system", "content": "Be brief."}, *messages] if with_system else messages
        given = answer(tokenizer, [dict(message) for message in messages])
        require(
            isinstance(given, torch.Tensor),
            f"it should return a tensor of ids; this is a {type(given).__name__}. Which of its entries holds the ids?",
        )
        require(given.ndim == 2 and len(given) == 1, f"the shape should be [1, length], not {list(given.shape)}.")
        ids, right = given[0].tolist(), render_chat(tokenizer, messages).input_ids
        require(
            ids != right[: len(ids)] or ids == right,
            "the header that opens the assistant's message is missing at the end.",
        )
        require(
            ids.count(end) <= right.count(end),
            "the user typed the control token's name, and it ended the user's turn. Which function of the course "
            "keeps typed text as text?",
        )
        require(
            with_system or len(ids) >= len(right),
            "without a system message the model's template writes one of its own, and your prompt has none.",
        )
        require(ids == right, f"for {len(messages)} messages the prompt differs: {tokenizer.decode(ids)!r:.120}")
    return "The template's ids, with typed text kept as text."


@exercise("11.3", expects=Callable)
def _(answer: Any) -> str:
    import torch

    from helpers.attempts import library_messages
    from helpers.text.prompts import render_chat

    model, tokenizer = _smollm2()
    for question in (LINES[0], "Translate into French:\nassistant\nteacher"):
        chat = render_chat(tokenizer, [{"role": "user", "content": question}])
        ids = torch.tensor([chat.input_ids])
        with library_messages() as said:
            given = answer(model, tokenizer, ids.clone())
        require(isinstance(given, str), f"it should return a string, not {given!r:.60}.")
        right, plain = (_generated(tuple(chat.input_ids), penalty) for penalty in (1.1, 1.0))
        require(question not in given, f"for {question!r} the prompt is still in front of the answer.")
        require("<|im_end|>" not in given, "the text contains special tokens.")
        require(given != plain or plain == right, "that is the answer without the repetition penalty of 1.1.")
        require(
            given == right or "assistant" not in question,
            f"for {question!r} you keep {given!r:.60}, and the model wrote {right!r:.60}. The word at which you cut "
            "is also in the question: cut at a position.",
        )
        require(given == right, f"for {question!r} the answer is {right!r:.60}, yours is {given!r:.60}.")
        _said_nothing(said)
    return "The same text as before, and no warning."


@cache
def _generated(row: tuple[int, ...], repetition_penalty: float) -> str:
    """The answer of `generate` to these ids, with the old program's settings except for `repetition_penalty`."""
    import torch

    model, tokenizer = _smollm2()
    ids, settings = torch.tensor([row]), SETTINGS | {"repetition_penalty": repetition_penalty}
    with torch.no_grad():
        output = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()


class _Positions:
    """Counts the positions that go through a model inside the `with` block, one number per forward pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.passes = model, []

    def __enter__(self) -> list[int]:
        count = lambda _module, inputs: self.passes.append(inputs[0].shape[1])  # noqa: E731
        self.hook = self.model.get_input_embeddings().register_forward_pre_hook(count)
        return self.passes

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


@cache
def _continued(text: str, steps: int) -> torch.Tensor:
    """The ids of the text and of `steps` greedy tokens after it, as `generate` finds them."""
    model, tokenizer = _smollm2()
    inputs = tokenizer(text, return_tensors="pt")
    return model.generate(**inputs, do_sample=False, max_new_tokens=steps)


@exercise("11.4", expects=Callable)
def _(answer: Any) -> str:
    import torch

    model, tokenizer = _smollm2()
    steps = 4
    for text in ("The capital of France is", "One, two, three,"):
        ids = tokenizer(text, return_tensors="pt").input_ids
        length = ids.shape[1]
        right = _continued(text, steps)
        with _Positions(model) as passes, torch.no_grad():
            given = answer(model, ids.clone(), steps)
        require(isinstance(given, torch.Tensor), f"it should return a tensor of ids, not a {type(given).__name__}.")
        require(given.numel() != steps, "these are only the new ids: return the prompt with them.")
        require(
            given.shape == right.shape,
            f"for {length} ids and {steps} steps the shape should be {list(right.shape)}, not {list(given.shape)}.",
        )
        require(
            not any(count >= length for count in passes[1:]),
            "each step runs the whole text again. With a cache, what goes in after the first step?",
        )
        require(
            torch.equal(given, right),
            f"generate continues {text!r} to {right[0].tolist()}, your function to {given[0].tolist()}.",
        )
    return f"generate's own ids, with {passes[0]} positions in the first step and one in each of the others."


@exercise("11.5", expects=Callable)
def _(answer: Any) -> str:
    import torch

    model = _smollm2()[0]
    prompt, endings = _prompt_and_endings()
    right, shared, first_left_out = _scores()
    with _Positions(model) as passes, torch.no_grad():
        given = answer(model, prompt.clone(), [ending.clone() for ending in endings])
    require(isinstance(given, list) and len(given) == 3, "it should return a list with one number per ending.")
    given = [float(number) for number in given]
    near = lambda numbers: all(abs(mine - its) < 0.01 for mine, its in zip(given, numbers, strict=True))  # noqa: E731
    require(
        not near(shared),
        "the first number is right and the next ones are off: the cache still holds the previous ending. Today a cache "
        "is changed in place: what does each ending need?",
    )
    require(
        not near(first_left_out),
        "the first token of each ending is not counted. Where do its logits come from?",
    )
    require(not near([2.718281828**score for score in right]), "these are probabilities: return their logarithms.")
    shown = ", ".join(f"{score:.3g}" for score in right)
    require(near(right), f"the numbers should be {shown}; yours are {', '.join(f'{score:.3g}' for score in given)}.")
    most = prompt.shape[1] + sum(ending.shape[1] for ending in endings)
    require(sum(passes) <= most, f"the numbers are right, but {sum(passes)} positions ran: {most} are enough.")
    return "The prompt ran once, and no ending has seen another."


@cache
def _prompt_and_endings() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Ids, each [1, length]."""
    tokenizer = _smollm2()[1]
    texts = ("The capital of France is", " Paris.", " London.", " a city.")
    prompt, *endings = (tokenizer(text, return_tensors="pt").input_ids for text in texts)
    return prompt, endings


@cache
def _scores() -> tuple[list[float], list[float], list[float]]:
    """Each ending's log probability: the right one, that of the old program today, and without the first token."""
    import torch

    model, (prompt, endings) = _smollm2()[0], _prompt_and_endings()
    with torch.no_grad():
        right = [_log_probability(model, prompt, ending) for ending in endings]
        shared = list(_with_one_cache(model, prompt, endings))
        first = [_log_probability(model, prompt, ending[:, :1]) for ending in endings]
    return right, shared, [score - its for score, its in zip(right, first, strict=True)]


def _log_probability(model: PreTrainedModel, prompt: Any, ending: Any) -> float:
    """The log probability of the ending's ids after the prompt, in one pass without a cache."""
    import torch

    logits = model(torch.cat([prompt, ending], dim=1)).logits[:, prompt.shape[1] - 1 : -1]
    return float(logits.log_softmax(-1).gather(-1, ending[..., None]).sum())


def _with_one_cache(model: PreTrainedModel, prompt: Any, endings: list[Any]) -> Iterator[float]:
    """The same, with one cache that grows with every ending: what the old program does on today's library."""
    import torch

    start = model(prompt, use_cache=True)
    for ending in endings:
        logits = model(ending, past_key_values=start.past_key_values).logits
        logits = torch.cat([start.logits[:, -1:], logits[:, :-1]], dim=1)
        yield float(logits.log_softmax(-1).gather(-1, ending[..., None]).sum())


@exercise("11.6", expects=Callable)
def _(answer: Any) -> str:
    from helpers.attempts import library_messages
    from helpers.models.locate import model_folder

    with tempfile.TemporaryDirectory() as folder:
        data, file = Path(folder, "prompts.txt"), Path(folder, "predictions.json")
        data.write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
        with library_messages() as said:
            answer(str(model_folder("smollm2-135m")), data, file)
        require(file.exists(), "the file of predictions was not written.")
        given = json.loads(file.read_text(encoding="utf-8"))
    whole = isinstance(given, list) and all(
        isinstance(item, dict) and set(item) == {"Input", "Output"} for item in given
    )
    require(whole, 'the file should hold a list of {"Input": ..., "Output": ...}.')
    inputs = [item["Input"] for item in given]
    require(inputs == list(LINES), f"the inputs should be the file's lines, without line breaks: {inputs!r:.120}")
    for line, item in zip(LINES, given, strict=True):
        right, output = _answer(line, with_system=True), item["Output"]
        shown = f"to {line!r} the course's Conversation answers {right!r:.60}, your program {output!r:.60}"
        no_system = output != right and output == _answer(line, with_system=False)
        require(not no_system, f"{shown}: the system prompt is missing.")
        require(output == right, f"{shown}.")
    _said_nothing(said)
    return "Its answers are those of Conversation and of generate: the program from 2024 runs again."


@cache
def _answer(line: str, *, with_system: bool) -> str:
    """The answer of `Conversation` to the line, in a conversation of its own."""
    from helpers.batch.run import SYSTEM_PROMPT
    from helpers.conversation import Conversation

    model, tokenizer = _smollm2()
    system = SYSTEM_PROMPT if with_system else None
    return Conversation(model, tokenizer, system=system).ask(line, **SETTINGS).text


@exercise("11.7", expects=Callable)
def _(answer: Any) -> str:
    from helpers.conversation import Conversation

    model, processor = _glm4v()
    tokenizer = processor.tokenizer
    talk, history = Conversation(model, tokenizer), []
    for turn, question in enumerate(TURNS, start=1):
        right, before = talk.ask(question, max_new_tokens=60).text, list(history)
        given = answer(model, tokenizer, question, history)
        pair = isinstance(given, tuple | list) and len(given) == 2
        require(pair and isinstance(given[0], str), "it should return two things: the answer and the new history.")
        require(history == before, "the caller's list has changed. Return a new list instead.")
        text, history = given
        require(isinstance(history, list), f"the history should be a list, not a {type(history).__name__}.")
        roles = [message.get("role") for message in history]
        wanted = ["user", "assistant"] * turn
        require(roles == wanted, f"after turn {turn} the history should have the roles {wanted}; yours: {roles}.")
        require("<|" not in text, f"the answer contains special tokens: {text!r:.60}")
        require(text == right, f"in turn {turn} Conversation answers {right!r:.60}, your function {text!r:.60}.")
        require(history[-1]["content"] == right, "the history should end with the answer itself.")
    return "Three turns, the same answers as Conversation's, and no list changed behind your back."


def _picture() -> Any:
    """A red disc on white, 96 pixels wide."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(picture).ellipse((30, 30, 66, 66), fill=(217, 35, 35))
    return picture


@exercise("11.8", expects=Callable)
def _(answer: Any) -> str:
    from helpers.attempts import library_messages
    from helpers.conversation import Conversation
    from helpers.errors import PictureLeftOutWarning

    model, processor = _glm4v()
    picture, question = _picture(), "描述一下这张图片"
    right = Conversation(model, processor).ask(question, image=picture, max_new_tokens=60).text
    given, blind = None, False
    try:
        with library_messages() as said, warnings.catch_warnings():
            warnings.simplefilter("error", PictureLeftOutWarning)
            given = answer(model, processor, picture, question)
    except PictureLeftOutWarning:
        blind = True
    require(not blind, "the model answered without the picture. What should replace the tokenizer here?")
    require(isinstance(given, str), f"it should return a string, not {given!r:.60}.")
    require("<|" not in given, f"the answer contains special tokens: {given!r:.60}")
    require(given == right, f"Conversation answers {right!r:.60}, your function {given!r:.60}.")
    _said_nothing(said)
    return "The processor passed the picture on, and the answer is Conversation's."
