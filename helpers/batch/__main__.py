"""The command line of `helpers.batch`: the Llama-3 walkthrough's options, and a few of our own."""

import os
import signal


def _leave(*_: object) -> None:
    """What Ctrl-C does while Python is still importing: print one line and exit, as there is nothing to clean up."""
    os.write(2, b"\nStopped.\n")
    os._exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _leave)

import argparse  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterable, Iterator, Sequence  # noqa: E402
from dataclasses import fields  # noqa: E402
from itertools import islice  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Protocol  # noqa: E402

from helpers import checks  # noqa: E402
from helpers.batch.engines import GenerationSettings, Prompt, TransformersEngine  # noqa: E402
from helpers.batch.predictions import Predictions  # noqa: E402
from helpers.batch.run import SAMPLE_PROMPTS, SYSTEM_PROMPT, PromptFile, run_batch, system_messages  # noqa: E402
from helpers.errors import BadInputError, HelpersError, ModelNotFoundError, Setting, printable  # noqa: E402

SHOWN = 10  # prompts shown before the run, as the walkthrough's script does
SHOWN_CHARACTERS = 300  # of each
# The options for the settings that errors recommend; for any other setting it is the option of the same name.
OPTIONS = {
    Setting("do_sample", False): "--greedy",
    Setting("resume", False): "--no_resume",
    Setting("quantization", "8bit"): "--load_in_8bit",
    Setting("quantization", "4bit"): "--load_in_4bit",
    Setting("attn_implementation", "sdpa"): "sdpa (omit --use_flash_attention_2)",
    Setting("device", "cpu"): "--only_cpu",
    Setting("system", None): "--no_system_prompt",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 when prompts failed, 2 for an error, 130 when stopped.

    >>> main(["--server", "", "--only_cpu"])
    2
    """
    options = None
    try:
        if signal.getsignal(signal.SIGINT) is _leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _take_any_character()
        options = parser().parse_args(arguments)
        _check(options)
        if options.interactive:
            talk(_answerer(options))
            return 0
        return _run(options)
    except HelpersError as error:
        print(_said(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = " No answer is lost: run the same command again to continue from there."
        print(f"\nStopped.{'' if options is None or options.interactive else kept}", file=sys.stderr)
        return 130


def _take_any_character() -> None:
    """Write characters that a terminal or a file cannot show as escapes, and read undecodable ones as U+FFFD."""
    for stream, errors in (
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
        (sys.stdin, "replace"),
    ):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)


def _said(error: HelpersError) -> str:
    """An error's class and message, with options in place of the settings that it recommends."""
    return f"{type(error).__name__}: {error.worded(_as_option)}"


def _as_option(setting: Setting) -> str:
    """The command-line option for a setting.

    >>> _as_option(Setting("resume", False)), _as_option(Setting("dtype", "float32"))
    ('--no_resume', '--dtype float32')
    """
    return OPTIONS.get(setting, f"--{setting.name} {setting.value}")


def parser() -> argparse.ArgumentParser:
    """The parser for the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.batch", description="Answer a file of prompts and write the answers to a JSON file."
    )
    add = parser.add_argument
    add("--base_model", default="smollm2-135m", help="a catalog name, a local folder, or the name a server knows")
    add("--tokenizer_path", help="the tokenizer's name or folder, if it is not with the model")
    add("--source", choices=("modelscope", "huggingface"), help="download a model that is not here yet from this hub")
    add("--data_file", help="UTF-8, one prompt per line; .tsv: prompt, tab, picture; .jsonl: Input and Image")
    add("--with_prompt", action="store_true", help="apply the chat template, after a system prompt")
    system = parser.add_mutually_exclusive_group()
    system.add_argument("--system_prompt", default=SYSTEM_PROMPT, metavar="TEXT", help="(default: %(default)s)")
    system.add_argument(
        "--no_system_prompt", action="store_const", const=None, dest="system_prompt", help="for models that accept none"
    )
    add("--interactive", action="store_true", help="chat with the model, over many turns")
    add("--predictions_file", default="predictions.json", help="grows as .jsonl and becomes .json at the end")
    add("--gpus", help="which GPUs to use, such as 0 or 0,1")
    add("--only_cpu", action="store_true", help="use no GPU")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="(default: %(default)s)")
    add("--load_in_8bit", action="store_true", help="quantize the weights to 8 bits")
    add("--load_in_4bit", action="store_true", help="quantize the weights to 4 bits")
    add("--use_flash_attention_2", action="store_true", help="compute attention with the flash-attn package")
    add("--use_vllm", action="store_true", help="use vLLM as the engine, on all GPUs given by --gpus")
    add("--server", metavar="URL", help="use an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    add("--server_timeout", type=float, default=600.0, help="seconds to wait for one answer (default: %(default)g)")
    add("--ray", type=int, metavar="WORKERS", help="share the prompts among the workers of a Ray cluster")
    add("--batch_size", type=int, default=8, help="prompts at once (default: %(default)s)")
    add("--no_resume", action="store_true", help="start over instead of continuing an earlier run")
    add("--retry_failed", action="store_true", help="ask failed prompts again")
    add("--greedy", action="store_true", help="always choose the most likely token")
    for field in fields(GenerationSettings):
        if field.name != "do_sample":
            add(f"--{field.name}", type=field.type, default=field.default, help="(default: %(default)s)")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raise `BadInputError` for options that cannot work or contradict each other, before anything is loaded."""
    from helpers.batch.vllm_engine import gpu_numbers

    for name, value in vars(options).items():
        if isinstance(value, str) and not value.strip():
            raise BadInputError(f"--{name} is empty. Perhaps a variable is not set: give it a value, or omit it.")
    gpu_numbers(options.gpus)
    for name in ("batch_size", "ray"):
        if getattr(options, name) is not None:
            checks.whole_number(f"--{name}", getattr(options, name), least=1)
    checks.number("--server_timeout", options.server_timeout, least=0.001)
    given = _other_engines(options)
    if len(given) > 1:
        raise BadInputError(f"{' and '.join(given)} cannot be combined: choose one engine.")
    loading = ("load_in_8bit", "load_in_4bit", "use_flash_attention_2")
    idle = [f"--{name}" for name in loading if given and getattr(options, name)]
    if idle:
        raise BadInputError(f"{idle[0]} is for transformers: {given[0]} loads the model its own way.")
    if options.dtype != "auto" and given and not options.use_vllm:
        raise BadInputError(f"--dtype is for transformers and vLLM: {given[0]} loads the model its own way.")
    if options.load_in_8bit and options.load_in_4bit:
        raise BadInputError("--load_in_8bit and --load_in_4bit cannot be combined: choose one of them.")
    if options.only_cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif options.gpus:  # read when torch is imported
        os.environ["CUDA_VISIBLE_DEVICES"] = options.gpus


def _other_engines(options: argparse.Namespace) -> list[str]:
    """The options given that select an engine other than transformers."""
    named = {
        "--use_vllm": options.use_vllm,
        "--server": options.server is not None,
        "--ray": options.ray is not None,
    }
    return [name for name, given in named.items() if given]


def _run(options: argparse.Namespace) -> int:
    prompts: Iterable[Prompt]
    if options.data_file is None:
        prompts = [_sample_prompt(index, text, options) for index, text in enumerate(SAMPLE_PROMPTS)]
    else:
        prompts = PromptFile(options.data_file, with_prompt=options.with_prompt, system=options.system_prompt)
    for prompt in islice(prompts, SHOWN):
        print(printable(prompt.text + (f"  [{prompt.image}]" if prompt.image else ""), SHOWN_CHARACTERS))
    settings = _settings(options)
    inputs = [] if options.data_file is None else [options.data_file]
    with Predictions(options.predictions_file, inputs=inputs):  # fails early if they cannot be written
        pass
    report = run_batch(
        None,
        None,
        prompts,
        options.predictions_file,
        resume=not options.no_resume,
        engine=_InOptions(_engine(options)),
        retry_failed=options.retry_failed,
        **settings,
    )
    print(
        f"{report.answered} prompts in {report.seconds:.1f} s, {report.kept} kept from before, {report.failed} failed: "
        f"{printable(report.predictions_file)}"
    )
    return 1 if report.failed else 0


class _InOptions:
    """An engine whose answers are recorded with the command line's options where an error recommends settings."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, prompts: Iterable[Prompt], settings: GenerationSettings) -> Iterator[tuple[int, Any]]:
        """What the engine yields."""
        for index, answer in self._engine.generate(prompts, settings):
            said = isinstance(answer, HelpersError)
            yield index, type(answer)(answer.worded(_as_option)) if said else answer


def _sample_prompt(index: int, text: str, options: argparse.Namespace) -> Prompt:
    messages = [*system_messages(options.system_prompt), {"role": "user", "content": text}]
    return Prompt(index, text, messages=messages if options.with_prompt else None)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = [field.name for field in fields(GenerationSettings) if field.name != "do_sample"]
    settings = {name: getattr(options, name) for name in names} | {"do_sample": not options.greedy}
    GenerationSettings(**settings)
    return settings


def _engine(options: argparse.Namespace) -> Any:
    if _other_engines(options):
        return _other_engine(options)
    return TransformersEngine(*_load(options), batch_size=options.batch_size)


def _other_engine(options: argparse.Namespace) -> Any:
    if options.use_vllm:
        from helpers.batch.vllm_engine import VllmEngine

        where = {"gpus": options.gpus, "tokenizer": options.tokenizer_path, "at_once": options.batch_size}
        return VllmEngine(_fetched(options), dtype=options.dtype, **where)
    if options.server is not None:
        from helpers.batch.server_engine import ServerEngine

        tokenizer = _tokenizer_for_a_server(options)
        limits = {"at_once": options.batch_size, "timeout": options.server_timeout}
        return ServerEngine(options.server, tokenizer, model=options.base_model, **limits)
    from helpers.batch.ray_engine import RayEngine

    where = {"workers": options.ray, "tokenizer": options.tokenizer_path, "batch_size": options.batch_size}
    return RayEngine(_fetched(options), **where)


def _fetched(options: argparse.Namespace) -> str:
    """The model's name; with --source, the folder that it is in, downloaded if it is not here."""
    from helpers.models import hubs

    return str(hubs.fetch(options.base_model, options.source)) if options.source else options.base_model


def _tokenizer_for_a_server(options: argparse.Namespace) -> Any:
    from helpers.models.pretrained import load_tokenizer

    try:
        return load_tokenizer(**_tokenizer(options))
    except ModelNotFoundError as error:
        if options.tokenizer_path:
            raise
        raise BadInputError(
            "A server receives token ids, so its model's tokenizer has to be here: name it with --tokenizer_path. "
            f"({error})"
        ) from None


def _tokenizer(options: argparse.Namespace) -> dict[str, Any]:
    """The tokenizer that `load_tokenizer` and `load_processor` should load; a local folder needs no hub."""
    name = options.tokenizer_path or options.base_model
    return {"name": name, "source": None if Path(name).expanduser().is_dir() else options.source}


def _load(options: argparse.Namespace) -> tuple[Any, Any]:
    """(model, tokenizer); for a vision-language model, a processor instead of the tokenizer."""
    import torch

    from helpers.batch.vllm_engine import gpu_numbers
    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_processor, load_tokenizer

    asked, there = len(gpu_numbers(options.gpus)), torch.cuda.device_count()  # of those that --gpus names
    if asked > there and not options.only_cpu:
        raise BadInputError(f"--gpus {options.gpus}: this machine has only {there} of these. Omit --gpus.")
    try:
        tokenizer = load_processor(**_tokenizer(options))
    except BadInputError:  # it takes text only
        tokenizer = load_tokenizer(**_tokenizer(options))
    model = load_model(
        options.base_model,
        source=options.source,
        dtype=options.dtype,
        device="cpu" if options.only_cpu else "auto",
        device_map="auto" if not options.only_cpu and "," in (options.gpus or "") else None,
        quantization="8bit" if options.load_in_8bit else "4bit" if options.load_in_4bit else None,
        attn_implementation="flash_attention_2" if options.use_flash_attention_2 else "auto",
    )
    return model, tokenizer


class Talks(Protocol):
    """A conversation: `stream` yields an answer's pieces."""

    def stream(self, text: str, image: Any = None) -> Iterable[str]: ...


def talk(answerer: Callable[[], Talks], read: Callable[[str], str] | None = None) -> None:
    """Chat with a model over many turns, until the end of the input, "/exit", or Ctrl-C at a question.

    Ctrl-C while an answer is being generated ends that answer. "/clear" starts a new conversation; "/image path" adds a
    picture to the next question, and "/image" alone removes it. `answerer()` returns a new conversation: an object
    whose `stream(text, image)` yields an answer's pieces.
    """
    conversation, image = answerer(), None
    print("Ask something. /clear starts over, /image PATH adds a picture, /image removes it, /exit ends.")
    while True:
        try:
            text = (read or input)("You: ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        command, _, argument = text.partition(" ")
        if command == "/exit":
            return
        if command == "/clear":
            conversation, image = answerer(), None
        elif command == "/image":
            image = argument.strip() or None
        elif text:
            _turn(conversation, text, image)
            image = None


def _turn(conversation: Talks, text: str, image: str | None) -> None:
    """Print an answer as it is generated, or why there is none."""
    try:
        for piece in conversation.stream(text, image):
            print(printable(piece, max(len(piece), 1)), end="", flush=True)
        print()
    except HelpersError as error:
        print(_said(error) + (" The picture is removed." if image else ""))
    except KeyboardInterrupt:  # the answer ends here, but the conversation continues
        print(" …")


def _answerer(options: argparse.Namespace) -> Callable[[], Talks]:
    """A function that starts a conversation with the options' model or engine."""
    settings = GenerationSettings(**_settings(options))
    if _other_engines(options):
        engine = _other_engine(options)
        return lambda: EngineConversation(engine, settings, system=options.system_prompt)
    from helpers.conversation import Conversation

    model, tokenizer = _load(options)

    def begin() -> Talks:
        conversation = Conversation(model, tokenizer, system=options.system_prompt or None)
        return _WithSettings(conversation, settings.in_use())

    return begin


class _WithSettings:
    """A `Conversation` that is asked with the same settings each time."""

    def __init__(self, conversation: Any, settings: dict[str, Any]) -> None:
        self.conversation, self.settings = conversation, settings

    def stream(self, text: str, image: Any = None) -> Iterable[str]:
        return self.conversation.stream(text, image, **self.settings)


class EngineConversation:
    """A conversation of several turns with any engine, which receives the whole history each time."""

    def __init__(self, engine: Any, settings: GenerationSettings, *, system: str | None = SYSTEM_PROMPT) -> None:
        self.engine, self.settings = engine, settings
        self.messages: list[dict[str, Any]] = system_messages(system)

    def stream(self, text: str, image: Any = None) -> Iterator[str]:
        """The answer, in one piece. A question that failed is not in the history."""
        message = {"role": "user", "content": text} | ({"image": image} if image else {})
        prompt = Prompt(0, text, messages=[*self.messages, message], image=image)
        ((_, answer),) = self.engine.generate(iter([prompt]), self.settings)
        if isinstance(answer, HelpersError):
            raise answer
        if isinstance(answer, BaseException):
            raise HelpersError(f"{self.engine.name} failed: {answer}") from answer
        self.messages += [message, {"role": "assistant", "content": answer}]
        yield answer


if __name__ == "__main__":
    raise SystemExit(main())
