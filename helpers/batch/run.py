"""From many prompts to one JSON line each: `run_batch`, and `python -m helpers.batch` for a terminal.

This is the Llama-3 walkthrough's inference script, with the same option names:

    python -m helpers.batch --base_model smollm2-135m --data_file prompts.txt --with_prompt \\
        --predictions_file predictions.json

`run_batch` knows nothing about models: an engine answers (`engines`), and `predictions` keeps the files.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from helpers import checks
from helpers.batch.engines import GenerationSettings, Prompt, TransformersEngine, as_prompt, pictures_of
from helpers.batch.predictions import Predictions
from helpers.errors import BadInputError, HelpersError

SYSTEM_PROMPT = "You are a helpful assistant. 你是一个乐于助人的助手。"
SAMPLE_PROMPTS = ("为什么要减少污染，保护环境？", "你有什么建议？")
LONGEST_LINE = 2**24  # bytes in a line of a data file: some millions of words
HEAD = 2**16  # bytes at the start of a file that tell UTF-8 from other encodings
# How text files that are not UTF-8 begin; the longer marks come first, since one of them begins with a shorter one.
BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def system_messages(system: str | None) -> list[dict[str, Any]]:
    """The system prompt as the first message; an empty list if there is none, or it is empty.

    >>> system_messages("Be brief."), system_messages(None)
    ([{'role': 'system', 'content': 'Be brief.'}], [])
    """
    return [{"role": "system", "content": system}] if system else []


@dataclass(frozen=True)
class BatchReport:
    """What a run did: of `total` prompts, `answered` were answered now and `kept` came from an earlier run; `failed`
    of the total have an error instead of an answer. `seconds` is the time this run took, without loading the model."""

    predictions_file: Path
    total: int
    answered: int
    kept: int
    failed: int
    seconds: float


class PromptFile:
    """The prompts of a file, read line by line each time they are needed.

    - `name.tsv`: the prompt, a tab, and the path of a picture (or nothing).
    - `name.jsonl`: `{"Input": "…", "Image": "…"}` per line; "Image" may be omitted, "Input" may contain line breaks.
    - any other name: one prompt per line.

    A picture's path is relative to the file's folder. With `with_prompt`, a prompt goes through the chat template,
    after `system` (None for no system prompt). Without it, a prompt is text to be continued, except that a prompt with
    a picture always goes through the template, which has the picture's placeholder. A blank line counts as a prompt
    but is not asked. The file must be UTF-8.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "prompts.txt"
    >>> _ = path.write_text("Hello\\n你好\\n", encoding="utf-8")
    >>> [prompt.text for prompt in PromptFile(path)]
    ['Hello', '你好']

    Raises `BadInputError` if the file cannot be read, cannot be read twice (a pipe), or has another encoding.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, with_prompt: bool = False, system: str | None = SYSTEM_PROMPT
    ) -> None:
        self.path = checks.file_path("The data file's name", path)
        self.with_prompt, self.system = checks.flag("with_prompt", with_prompt), system
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):  # checked before opening it: a pipe would wait for a writer
                raise BadInputError(
                    f"The data file {path} is a folder, a pipe or a device, but prompts are read twice: write them to "
                    "a file first."
                )
            with open(self.path, "rb") as stream:
                _check_encoding(path, stream.read(HEAD))
        except OSError as error:
            raise BadInputError(f"The data file {path} cannot be read ({error.strerror}): check its name.") from None

    def __iter__(self) -> Iterator[Prompt]:
        """A `Prompt` for each line."""
        read = {".tsv": _read_tsv, ".jsonl": _read_jsonl}.get(self.path.suffix.lower(), _read_text)
        with open(self.path, "rb") as stream:
            for index, raw in enumerate(_lines(stream)):
                raw = raw.removeprefix(b"\xef\xbb\xbf") if index == 0 else raw
                try:
                    if len(raw) > LONGEST_LINE:
                        raise ValueError(f"it is longer than {LONGEST_LINE:,} bytes")
                    line = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
                    if "\0" in line:
                        raise ValueError("it contains a null character, so it is not text")
                    text, image = read(line)
                except (ValueError, RecursionError) as error:
                    shown = raw[:LONGEST_LINE].decode("utf-8", "replace").strip()
                    yield Prompt(index, shown, problem=_line_problem(index, error))
                    continue
                yield self._prompt(index, text, image)

    def _prompt(self, index: int, text: str, image: str | None) -> Prompt:
        if not text.strip() or not (self.with_prompt or image):
            return Prompt(index, text)
        if image and not _is_address(image):  # absolute, since workers may run in another folder
            image = str(self.path.absolute().parent / image)
        system = system_messages(self.system) if self.with_prompt else []
        user = {"role": "user", "content": text} | ({"image": image} if image else {})
        return Prompt(index, text, messages=[*system, user], image=image)


def _is_address(image: str) -> bool:
    """Whether it is a URL such as "https:…" or "data:…" and not a path."""
    return re.match(r"\w\w+:", image) is not None


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """A file's lines with their line ends; of one that is too long, `LONGEST_LINE` + 1 bytes, skipping the rest."""
    while raw := stream.readline(LONGEST_LINE + 1):
        rest = raw
        while not rest.endswith(b"\n") and (rest := stream.readline(LONGEST_LINE)):
            pass
        yield raw


def _check_encoding(path: str | os.PathLike[str], head: bytes) -> None:
    """Raise `BadInputError` for a file that is not UTF-8, judging by its first bytes."""
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
    if encoding is None and b"\0" in head:
        encoding = "UTF-16 or not text at all (it contains null bytes)"
    if encoding:
        raise BadInputError(
            f"The data file {path} is not UTF-8, but {encoding}, as PowerShell's `>` writes it: save it as UTF-8 "
            "(in PowerShell: Set-Content -Encoding utf8)."
        )


def _read_text(line: str) -> tuple[str, str | None]:
    return line, None


def _read_tsv(line: str) -> tuple[str, str | None]:
    text, _, image = line.partition("\t")
    return text, image.strip() or None


def _read_jsonl(line: str) -> tuple[str, str | None]:
    if not line.strip():
        return "", None
    fields = json.loads(line)
    if not isinstance(fields, dict) or not isinstance(fields.get("Input"), str):
        raise ValueError('it has no text under "Input"')
    if not isinstance(fields.get("Image"), str | None):
        raise ValueError('"Image" is not the path of a picture')
    return fields["Input"], fields.get("Image") or None


def _line_problem(index: int, error: Exception) -> str:
    if isinstance(error, RecursionError):
        error = ValueError("it is nested too deeply")
    reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"it is not JSON: {error}"
    if not isinstance(error, UnicodeDecodeError | json.JSONDecodeError):
        reason = str(error)
    return f"Line {index + 1} of the data file cannot be read: {reason}."


def run_batch(
    model: Any,
    tokenizer: Any,
    prompts: Iterable[Any],
    predictions_file: str | os.PathLike[str],
    *,
    resume: bool = True,
    batch_size: int = 8,
    engine: Any = None,
    retry_failed: bool = False,
    progress: bool = True,
    **generation: Any,
) -> BatchReport:
    """Answer `prompts` and write `predictions_file` (`p.json`); returns a `BatchReport`.

    `prompts` is a `PromptFile` or a list whose items are prompts of any form (a text, a `RenderedChat`, ids, a list of
    messages). Each answer becomes a line of `p.jsonl` as soon as it is there, with the keys index, Input, Output
    (null if the prompt failed) and, if it failed, error; the lines are in any order. At the end, `p.json` is a list of
    {"Input", "Output"} in the prompts' order.

    >>> import tempfile
    >>> class Parrot:  # an engine: it answers instead of a model
    ...     name, model_name = "parrot", "none"
    ...
    ...     def generate(self, prompts, settings):
    ...         for prompt in prompts:
    ...             yield prompt.index, prompt.text[::-1]
    >>> file = Path(tempfile.mkdtemp()) / "p.json"
    >>> report = run_batch(None, None, ["Hello", "你好"], file, engine=Parrot(), progress=False)
    >>> report.answered, json.loads(file.read_text(encoding="utf-8"))[1]
    (2, {'Input': '你好', 'Output': '好你'})

    - `resume`: continue where a run of the same prompts, settings, model and tokenizer stopped; False starts over.
      Models and tokenizers are compared by their content, not by their names or folders. `retry_failed` asks failed
      prompts again.
    - `batch_size`: the number of prompts that run at once. If they do not fit in memory, half as many do.
    - `engine`: what answers instead of `TransformersEngine(model, tokenizer)`; then `model` is None.
    - `generation`: the settings of `GenerationSettings` (by default temperature 0.2, top_k 40, top_p 0.9,
      repetition_penalty 1.1 and 400 new tokens); `do_sample=False` is greedy.

    A prompt that fails is recorded, and the others continue. Files are replaced only if this function wrote them, and
    the prompts' own file never is. Raises `BadInputError` for arguments that cannot work, when a run with other
    prompts, other settings or another model would be resumed, and when another run is writing the same files;
    `DamagedFilesError` when existing answers are damaged; `DiskFullError`; and what the engine raises for the run as a
    whole.
    """
    started = time.perf_counter()
    settings = _settings(generation)
    checks.flag("resume", resume)
    checks.flag("progress", progress)
    checks.flag("retry_failed", retry_failed)
    engine = TransformersEngine(model, tokenizer, batch_size=batch_size) if engine is None else _checked(engine)
    numbered = _Numbered(prompts, tokenizer)
    with Predictions(predictions_file, inputs=numbered.files) as predictions:
        total, fingerprint = numbered.count_and_fingerprint(progress)
        record = {"prompts": total, "prompts_sha256": fingerprint, "engine": engine.name, "model": engine.model_name}
        record |= engine.identity() if hasattr(engine, "identity") else {}
        predictions.open(total, record | vars(settings), resume=resume)
        if retry_failed:
            predictions.forget_failed()
        kept = sum(map(predictions.is_done, range(total)))
        _check_kept(predictions, numbered if kept else [], total)
        _answer_all(engine, numbered, settings, predictions, kept, total, progress)
        predictions.finish()
        failed = len(predictions.failed)
    return BatchReport(predictions.json, total, total - kept, kept, failed, time.perf_counter() - started)


def _checked(engine: Any) -> Any:
    """The engine, or `BadInputError` if it is none."""
    if not all(hasattr(engine, name) for name in ("name", "model_name", "generate")):
        raise BadInputError(
            f"engine must be an engine of helpers.batch, like ServerEngine(…), or None, not {checks.shown(engine)}."
        )
    return engine


def _settings(generation: dict[str, Any]) -> GenerationSettings:
    known = GenerationSettings.__dataclass_fields__
    unknown = next((name for name in generation if name not in known), None)
    if unknown is not None:
        raise BadInputError(f"There is no setting {unknown!r}; the settings are {', '.join(known)}.")
    return GenerationSettings(**generation)


def _is_iterable(value: Any) -> bool:
    with contextlib.suppress(TypeError):
        return iter(value) is not None
    return False


class _Numbered:
    """Prompts as `Prompt`s numbered from 0, which can be iterated any number of times."""

    def __init__(self, prompts: Iterable[Any], tokenizer: Any) -> None:
        is_kind = isinstance(prompts, str | bytes | dict | type)  # PromptFile itself is not one of them
        if is_kind or not _is_iterable(prompts) or iter(prompts) is prompts:
            raise BadInputError(
                f"prompts must be a list or a PromptFile, not a {type(prompts).__name__}: they are read twice, to know "
                "how many there are and whether they are the same when a run is resumed."
            )
        self.prompts, self.tokenizer = prompts, tokenizer
        self.files = [prompts.path] if isinstance(prompts, PromptFile) else []

    def __iter__(self) -> Iterator[Prompt]:
        for index, given in enumerate(self.prompts):
            yield as_prompt(index, given, self.tokenizer)

    def count_and_fingerprint(self, progress: bool) -> tuple[int, str]:
        """The number of prompts, and a SHA-256 of everything that is asked."""
        from tqdm import tqdm

        digest, total = hashlib.sha256(), 0
        for prompt in tqdm(self, desc="Reading the prompts", unit="", delay=1, leave=False, disable=not progress):
            if prompt.index != total:
                raise BadInputError(
                    f"Prompts must have the indexes 0, 1, 2, …, but number {total} has the index {prompt.index}."
                )
            digest.update(_content(prompt).encode("utf-8", "backslashreplace"))
            total += 1
        return total, digest.hexdigest()


def _content(prompt: Prompt) -> str:
    """What identifies a prompt; a picture counts by its name and content, so that the folder may move."""
    said = []
    for message in prompt.messages or []:
        more = sorted((str(key), value) for key, value in message.items() if key not in ("role", "content", "image"))
        said.append((message.get("role"), message.get("content"), *more))
    pictures = [_picture_mark(picture) for picture in pictures_of(prompt)]
    picture = pictures[0] if len(pictures) == 1 else pictures or None
    return repr((prompt.text, said, picture, prompt.input_ids, prompt.problem))


def _picture_mark(picture: Any) -> Any:
    """A picture's name, with a SHA-256 of its file if that exists; for an open picture, its size and a SHA-256 of its
    pixels."""
    if isinstance(picture, str | os.PathLike):
        if _is_address(os.fspath(picture)):
            return picture
        with contextlib.suppress(OSError, ValueError):  # asking the prompt will report a missing file or a bad path
            if stat.S_ISREG(os.stat(picture).st_mode):
                with open(picture, "rb") as stream:
                    return Path(picture).name, hashlib.file_digest(stream, "sha256").hexdigest()
        return Path(picture).name
    shown = picture.tobytes() if hasattr(picture, "tobytes") else repr(picture).encode("utf-8", "backslashreplace")
    return getattr(picture, "size", None), hashlib.sha256(shown).hexdigest()


def _check_kept(predictions: Predictions, prompts: Iterable[Prompt], total: int) -> None:
    """Check that each kept answer is one to the prompt of its number. It is done before an engine runs, since an engine
    may take the prompts in a thread of its own."""
    for prompt in prompts:
        if prompt.index < total and predictions.is_done(prompt.index):
            predictions.check_input(prompt.index, prompt.text)


def _answer_all(
    engine: Any,
    prompts: _Numbered,
    settings: GenerationSettings,
    predictions: Predictions,
    kept: int,
    total: int,
    progress: bool,
) -> None:
    from tqdm import tqdm

    asked: dict[int, str] = {}  # index -> text, for those that the engine has taken but not yet answered
    unasked: deque[Prompt] = deque()  # blank lines and lines that cannot be read

    def to_ask() -> Iterator[Prompt]:
        for prompt in prompts:
            if prompt.index >= total:
                raise _changed_meanwhile(total)
            if predictions.is_done(prompt.index):
                continue
            if prompt.problem or not (prompt.text.strip() or prompt.messages or prompt.input_ids):
                unasked.append(prompt)
                continue
            asked[prompt.index] = prompt.text
            yield prompt

    # smoothing=0: the remaining time is based on the mean speed, since answers arrive one batch at a time.
    with tqdm(total=total, initial=kept, unit=" prompts", smoothing=0, disable=not progress) as bar:

        def record(index: int, text: str, answer: str | BaseException) -> None:
            predictions.add(index, text, answer)
            if isinstance(answer, BaseException):
                bar.set_postfix(failed=len(predictions.failed), refresh=False)
            bar.update()

        def record_unasked() -> None:
            while unasked:
                prompt = unasked.popleft()
                record(prompt.index, prompt.text, BadInputError(prompt.problem) if prompt.problem else "")

        for index, answer in engine.generate(to_ask(), settings):
            if index not in asked:
                raise HelpersError(f"The engine {engine.name} answered prompt {index}, which it was not given.")
            record(index, asked.pop(index), answer)
            record_unasked()
        record_unasked()
    if asked:
        raise HelpersError(f"The engine {engine.name} left {len(asked)} prompts unanswered: run the same job again.")
    if not all(map(predictions.is_done, range(total))):
        raise _changed_meanwhile(total)


def _changed_meanwhile(total: int) -> HelpersError:
    return HelpersError(
        f"The prompts changed during the run: there were {total}, and now there are more or fewer. The answers so far "
        "are kept, but belong to the earlier prompts."
    )
