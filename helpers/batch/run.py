"""Many prompts in, one JSON line each out: `run_batch`, and `python -m helpers.batch` for a terminal.

The Llama-3 walkthrough's inference script, with its options under their names:

    python -m helpers.batch --base_model smollm2-135m --data_file prompts.txt --with_prompt \\
        --predictions_file predictions.json

`run_batch` knows nothing of models: an engine answers (`engines`), and `predictions` keeps the files.
"""

import hashlib
import json
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

from helpers.batch.engines import GenerationSettings, Prompt, TransformersEngine, as_prompt
from helpers.batch.predictions import Predictions
from helpers.errors import BadInputError, HelpersError

SYSTEM_PROMPT = "You are a helpful assistant. 你是一个乐于助人的助手。"
SAMPLE_PROMPTS = ("为什么要减少污染，保护环境？", "你有什么建议？")


@dataclass(frozen=True)
class BatchReport:
    """What a run did: of `total` prompts it answered `answered` now, `kept` were there from before, and `failed`
    of all have an error in place of an answer. `seconds` is the time this run took, the model's loading apart."""

    predictions_file: Path
    total: int
    answered: int
    kept: int
    failed: int
    seconds: float


class PromptFile:
    """The prompts of a file, read line by line each time they are needed.

    - `name.tsv`: the prompt, a tab, and the path of a picture (or nothing).
    - `name.jsonl`: `{"Input": "…", "Image": "…"}` a line; "Image" may be left out, and "Input" may have line ends.
    - any other name: a prompt a line.

    A picture's path counts from the file's folder. With `with_prompt` a prompt goes through the chat template,
    after `system` (None for no system prompt); without, it is text to be continued, except that a prompt with a
    picture always goes through the template, which is where the picture's place is. A blank line is a prompt that
    is not asked: it keeps its place. Raises `BadInputError` when the file cannot be read.
    """

    def __init__(self, path, *, with_prompt=False, system=SYSTEM_PROMPT):
        self.path, self.with_prompt, self.system = Path(path), with_prompt, system
        try:
            self.path.open("rb").close()
        except OSError as error:
            raise BadInputError(f"The data file {path} cannot be read ({error.strerror}): check its name.") from None

    def __iter__(self):
        """A `Prompt` for each line."""
        read = {".tsv": _read_tsv, ".jsonl": _read_jsonl}.get(self.path.suffix, _read_text)
        with open(self.path, "rb") as stream:
            for index, raw in enumerate(stream):
                raw = raw.removeprefix(b"\xef\xbb\xbf") if index == 0 else raw
                try:
                    line = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
                    text, image = read(line)
                except ValueError as error:
                    yield Prompt(index, raw.decode("utf-8", "replace").strip(), problem=_line_problem(index, error))
                    continue
                yield self._prompt(index, text, image)

    def _prompt(self, index, text, image):
        if not text.strip() or not (self.with_prompt or image):
            return Prompt(index, text)
        path = str(self.path.absolute().parent / image) if image else None  # workers may run in another folder
        system = [{"role": "system", "content": self.system}] if self.with_prompt and self.system else []
        user = {"role": "user", "content": text} | ({"image": path} if image else {})
        return Prompt(index, text, messages=[*system, user], image=path)


def _read_text(line):
    return line, None


def _read_tsv(line):
    text, _, image = line.partition("\t")
    return text, image.strip() or None


def _read_jsonl(line):
    if not line.strip():
        return "", None
    fields = json.loads(line)
    if not isinstance(fields, dict) or not isinstance(fields.get("Input"), str):
        raise ValueError('it has no text under "Input"')
    if not isinstance(fields.get("Image"), str | None):
        raise ValueError('"Image" is not the path of a picture')
    return fields["Input"], fields.get("Image") or None


def _line_problem(index, error):
    reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"it is not JSON: {error}"
    if not isinstance(error, UnicodeDecodeError | json.JSONDecodeError):
        reason = str(error)
    return f"Line {index + 1} of the data file cannot be read: {reason}."


def run_batch(
    model,
    tokenizer,
    prompts,
    predictions_file,
    *,
    resume=True,
    batch_size=8,
    engine=None,
    retry_failed=False,
    progress=True,
    **generation,
):
    """Answer `prompts` and write `predictions_file` (`p.json`); returns a `BatchReport`.

    >>> report = run_batch(model, tokenizer, ["Hello", "你好"], "p.json", max_new_tokens=32)  # doctest: +SKIP

    `prompts` is a list of what a prompt can be (text as it is, a `RenderedChat`, ids, a list of messages) or a
    `PromptFile`. Each answer is a line of `p.jsonl` as soon as it is there, with the keys index, Input, Output
    (null if it failed) and, if it failed, error; they come in any order. At the end `p.json` is a list of
    {"Input", "Output"} in the prompts' order.

    - `resume`: go on where a run of the same prompts, settings and model was stopped; False begins anew.
      `retry_failed` asks those again that failed.
    - `batch_size`: how many prompts the model is asked at once.
    - `engine`: who answers, in place of `TransformersEngine(model, tokenizer)`; `model` is None then.
    - `generation`: what `GenerationSettings` takes (temperature 0.2, top_k 40, top_p 0.9, repetition_penalty 1.1
      and 400 new tokens if not given); `do_sample=False` is greedy.

    A prompt that fails is recorded and the others go on. Raises `BadInputError` for settings that cannot work, when
    other prompts, settings or another model are resumed, and when another run is writing the same files;
    `DiskFullError`; and what the engine raises for the run as a whole.
    """
    started = time.perf_counter()
    settings = _settings(generation)
    engine = engine or TransformersEngine(model, tokenizer, batch_size=batch_size)
    prompts = _Numbered(prompts, tokenizer)
    with Predictions(predictions_file) as predictions:
        total, fingerprint = prompts.count_and_fingerprint()
        record = {"prompts": total, "prompts_sha256": fingerprint, "engine": engine.name, "model": engine.model_name}
        predictions.open(total, record | asdict(settings), resume=resume)
        if retry_failed:
            predictions.forget_failed()
        kept = sum(map(predictions.is_done, range(total)))
        _answer_all(engine, prompts, settings, predictions, kept, total, progress)
        predictions.finish()
        failed = len(predictions.failed)
    return BatchReport(predictions.json, total, total - kept, kept, failed, time.perf_counter() - started)


def _settings(generation):
    try:
        return GenerationSettings(**generation)
    except TypeError:
        known = GenerationSettings.__dataclass_fields__
        unknown = next(name for name in generation if name not in known)
        raise BadInputError(f"There is no setting {unknown!r}; there are {', '.join(known)}.") from None


class _Numbered:
    """Prompts as `Prompt`s numbered from 0, as often as they are asked for."""

    def __init__(self, prompts, tokenizer):
        if isinstance(prompts, str | dict) or iter(prompts) is prompts:
            raise BadInputError(
                f"prompts is a list or a PromptFile, not a {type(prompts).__name__}: they are read twice, to know "
                "how many there are and whether they are the same when a run is resumed."
            )
        self.prompts, self.tokenizer = prompts, tokenizer

    def __iter__(self):
        for index, given in enumerate(self.prompts):
            yield as_prompt(index, given, self.tokenizer)

    def count_and_fingerprint(self):
        """How many there are, and a SHA-256 of everything that is asked."""
        digest, total = hashlib.sha256(), 0
        for prompt in self:
            if prompt.index != total:
                raise BadInputError(f"Prompts are numbered 0, 1, 2, …: number {total} says that it is {prompt.index}.")
            digest.update(_content(prompt).encode("utf-8", "backslashreplace"))
            total += 1
        return total, digest.hexdigest()


def _content(prompt):
    """What makes a prompt the same one: a picture counts by its name, so that the folder may move."""
    said = [(message.get("role"), message.get("content")) for message in prompt.messages or []]
    picture = prompt.image and Path(prompt.image).name
    return repr((prompt.text, said, picture, prompt.input_ids, prompt.problem))


def _answer_all(engine, prompts, settings, predictions, kept, total, progress):
    from tqdm import tqdm

    asked = {}  # index -> text, of those that the engine has taken and not yet answered
    unasked = deque()  # blank lines and lines that cannot be read

    def to_ask():
        for prompt in prompts:
            if predictions.is_done(prompt.index):
                continue
            if prompt.problem or not (prompt.text.strip() or prompt.messages or prompt.input_ids):
                unasked.append(prompt)
                continue
            asked[prompt.index] = prompt.text
            yield prompt

    # smoothing=0: the time left comes from the mean speed, since answers arrive a batch at a time.
    with tqdm(total=total, initial=kept, unit=" prompts", smoothing=0, disable=not progress) as bar:

        def record(index, text, answer):
            predictions.add(index, text, answer)
            if isinstance(answer, BaseException):
                bar.set_postfix(failed=len(predictions.failed), refresh=False)
            bar.update()

        def record_unasked():
            while unasked:
                prompt = unasked.popleft()
                record(prompt.index, prompt.text, BadInputError(prompt.problem) if prompt.problem else "")

        for index, answer in engine.generate(to_ask(), settings):
            if index not in asked:
                raise HelpersError(f"The engine {engine.name} answered prompt {index}, which it was not asked.")
            record(index, asked.pop(index), answer)
            record_unasked()
        record_unasked()
    if asked:
        raise HelpersError(f"The engine {engine.name} left {len(asked)} prompts unanswered: run the same again.")
