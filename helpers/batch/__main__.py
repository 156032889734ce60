"""The command line of `helpers.batch`: the Llama-3 walkthrough's options, and a few of our own."""

import argparse
import os
import sys
from dataclasses import fields
from itertools import islice
from pathlib import Path

from helpers.batch.engines import GenerationSettings, Prompt, TransformersEngine
from helpers.batch.predictions import Predictions
from helpers.batch.run import SAMPLE_PROMPTS, SYSTEM_PROMPT, PromptFile, run_batch
from helpers.errors import BadInputError, HelpersError, ModelNotFoundError

SHOWN = 10  # prompts shown before the run, as the walkthrough's script does
# What errors advise, in a notebook's words and in a terminal's.
IN_A_TERMINAL = (
    ("use do_sample=False", "use --greedy"),
    ("resume=False, --no_resume", "--no_resume"),
    ("resume=False", "--no_resume"),
    ('; dtype="bfloat16" or "float16" (the dtype is float32)', ""),
    ('Take attn_implementation="sdpa": it', "Leave --use_flash_attention_2 away: sdpa, which is taken then,"),
    ('dtype="', '--dtype "'),
    ('quantization="8bit"', "--load_in_8bit"),
    ('quantization="4bit"', "--load_in_4bit"),
    ('source="modelscope"', "--source modelscope"),
    ('source="huggingface"', "--source huggingface"),
)


def main(arguments=None):
    """Run the command line; returns the exit status: 0, 1 when prompts failed, 2 for an error, 130 when stopped."""
    _take_any_character()
    options = parser().parse_args(arguments)
    try:
        _check(options)
        if options.interactive:
            talk(_answerer(options))
            return 0
        return _run(options)
    except HelpersError as error:
        print(_said(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "" if options.interactive else " Nothing that was answered is lost: the same command goes on from there."
        print(f"\nStopped.{kept}", file=sys.stderr)
        return 130


def _take_any_character():
    """What a terminal or a file cannot hold is written as its escape, and read as a replacement mark."""
    for stream, errors in (
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
        (sys.stdin, "replace"),
    ):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)


def _said(error):
    """An error's kind and words, with the options' names where they name an argument."""
    words = str(error)
    for argument, option in IN_A_TERMINAL:
        words = words.replace(argument, option)
    return f"{type(error).__name__}: {words}"


def parser():
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m helpers.batch", description="Many prompts in, a JSON file out.")
    add = parser.add_argument
    add("--base_model", default="smollm2-135m", help="a catalog name, a local folder, or the name a server knows")
    add("--tokenizer_path", help="where the tokenizer is, if not with the model")
    add("--source", choices=("modelscope", "huggingface"), help="download from this hub what is not here yet")
    add("--data_file", help="a prompt a line; .tsv: prompt, tab, picture; .jsonl: Input and Image")
    add("--with_prompt", action="store_true", help="through the chat template, after the default system prompt")
    add("--interactive", action="store_true", help="talk with the model, many turns")
    add("--predictions_file", default="predictions.json", help="grows as .jsonl, written as .json at the end")
    add("--gpus", help="which GPUs to use, such as 0 or 0,1")
    add("--only_cpu", action="store_true", help="no GPU")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="(default: %(default)s)")
    add("--load_in_8bit", action="store_true")
    add("--load_in_4bit", action="store_true")
    add("--use_flash_attention_2", action="store_true")
    add("--use_vllm", action="store_true", help="vLLM as the engine, over all the GPUs named")
    add("--server", metavar="URL", help="an OpenAI-compatible server as the engine, such as http://127.0.0.1:8000/v1")
    add("--ray", type=int, metavar="WORKERS", help="share the prompts among the workers of a Ray cluster")
    add("--batch_size", type=int, default=8, help="prompts at once (default: %(default)s)")
    add("--no_resume", action="store_true", help="begin anew instead of going on")
    add("--retry_failed", action="store_true", help="ask those again that failed")
    add("--greedy", action="store_true", help="always the most likely token")
    for field in fields(GenerationSettings):
        if field.name != "do_sample":
            add(f"--{field.name}", type=field.type, default=field.default, help="(default: %(default)s)")
    return parser


def _check(options):
    """`BadInputError` for options that cannot work or contradict each other, before anything is loaded."""
    from helpers.batch.vllm_engine import gpu_numbers

    gpu_numbers(options.gpus)
    for name in ("batch_size", "ray"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise BadInputError(f"--{name} is at least 1, not {getattr(options, name)}.")
    engines = {"--use_vllm": options.use_vllm, "--server": options.server, "--ray": options.ray is not None}
    given = [name for name, value in engines.items() if value]
    if len(given) > 1:
        raise BadInputError(f"{' and '.join(given)}: one engine at a time, please.")
    loading = ("load_in_8bit", "load_in_4bit", "use_flash_attention_2")
    idle = [f"--{name}" for name in loading if given and getattr(options, name)]
    if idle:
        raise BadInputError(f"{idle[0]} is for transformers: {given[0]} loads the model its own way.")
    if options.dtype != "auto" and given and not options.use_vllm:
        raise BadInputError(f"--dtype is for transformers and vLLM: {given[0]} loads the model its own way.")
    if options.load_in_8bit and options.load_in_4bit:
        raise BadInputError("--load_in_8bit and --load_in_4bit: take one of them.")
    if options.only_cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif options.gpus:  # read when torch is imported
        os.environ["CUDA_VISIBLE_DEVICES"] = options.gpus


def _run(options):
    if options.data_file is None:
        prompts = [_sample_prompt(index, text, options.with_prompt) for index, text in enumerate(SAMPLE_PROMPTS)]
    else:
        prompts = PromptFile(options.data_file, with_prompt=options.with_prompt)
    for prompt in islice(prompts, SHOWN):
        print(prompt.text + (f"  [{prompt.image}]" if prompt.image else ""))
    settings = _settings(options)
    with Predictions(options.predictions_file):  # says now, and not when the model is loaded, what cannot be written
        pass
    report = run_batch(
        None,
        None,
        prompts,
        options.predictions_file,
        resume=not options.no_resume,
        engine=_engine(options),
        retry_failed=options.retry_failed,
        **settings,
    )
    print(
        f"{report.answered} prompts in {report.seconds:.1f} s, {report.kept} kept from before, {report.failed} failed: "
        f"{report.predictions_file}"
    )
    return 1 if report.failed else 0


def _sample_prompt(index, text, with_prompt):
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": text}]
    return Prompt(index, text, messages=messages if with_prompt else None)


def _settings(options):
    names = [field.name for field in fields(GenerationSettings) if field.name != "do_sample"]
    settings = {name: getattr(options, name) for name in names} | {"do_sample": not options.greedy}
    GenerationSettings(**settings)
    return settings


def _engine(options):
    if options.use_vllm or options.server or options.ray is not None:
        return _other_engine(options)
    return TransformersEngine(*_load(options), batch_size=options.batch_size)


def _other_engine(options):
    if options.use_vllm:
        from helpers.batch.vllm_engine import VllmEngine

        where = {"gpus": options.gpus, "tokenizer": options.tokenizer_path, "at_once": options.batch_size}
        return VllmEngine(_fetched(options), dtype=options.dtype, **where)
    if options.server:
        from helpers.batch.server_engine import ServerEngine

        tokenizer = _tokenizer_for_a_server(options)
        return ServerEngine(options.server, tokenizer, model=options.base_model, at_once=options.batch_size)
    from helpers.batch.ray_engine import RayEngine

    where = {"workers": options.ray, "tokenizer": options.tokenizer_path, "batch_size": options.batch_size}
    return RayEngine(_fetched(options), **where)


def _fetched(options):
    """The model's name; with --source the folder that it is in, downloaded if it is not here."""
    from helpers.models import hubs

    return str(hubs.fetch(options.base_model, options.source)) if options.source else options.base_model


def _tokenizer_for_a_server(options):
    from helpers.models.pretrained import load_tokenizer

    try:
        return load_tokenizer(**_tokenizer(options))
    except ModelNotFoundError as error:
        if options.tokenizer_path:
            raise
        raise BadInputError(
            "A server is given ids, so its model's tokenizer has to be here: name its folder with --tokenizer_path. "
            f"({error})"
        ) from None


def _tokenizer(options):
    """Which tokenizer `load_tokenizer` and `load_processor` are to take; a local folder needs no hub."""
    name = options.tokenizer_path or options.base_model
    return {"name": name, "source": None if Path(name).expanduser().is_dir() else options.source}


def _load(options):
    """(model, tokenizer), or a processor in the tokenizer's place for a model that sees."""
    import torch

    from helpers.batch.vllm_engine import gpu_numbers
    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_processor, load_tokenizer

    asked, there = len(gpu_numbers(options.gpus)), torch.cuda.device_count()  # of those that --gpus names
    if asked > there and not options.only_cpu:
        raise BadInputError(f"--gpus {options.gpus}: of these this machine has {there}. Leave --gpus away.")
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


def talk(answerer, read=None):
    """Many turns with a model, until the end of the input, "/exit", or Ctrl-C at a question.

    Ctrl-C while an answer is made ends that answer. "/clear" forgets what was said; "/image path" puts a picture
    before the next question, "/image" alone puts it away. `answerer()` gives a new conversation: an object whose
    `stream(text, image)` gives an answer's pieces.
    """
    conversation, image = answerer(), None
    print("Ask something. /clear begins anew, /image PATH shows a picture, /image puts it away, /exit ends.")
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


def _turn(conversation, text, image):
    """Print an answer as it is made, or why there is none."""
    try:
        for piece in conversation.stream(text, image):
            print(piece, end="", flush=True)
        print()
    except HelpersError as error:
        print(_said(error) + (" The picture is put away." if image else ""))
    except KeyboardInterrupt:  # the answer ends here, the conversation goes on
        print(" …")


def _answerer(options):
    """A function that begins a conversation with the options' model or engine."""
    settings = GenerationSettings(**_settings(options))
    if options.use_vllm or options.server or options.ray is not None:
        engine = _other_engine(options)
        return lambda: EngineConversation(engine, settings)
    from helpers.conversation import Conversation

    model, tokenizer = _load(options)

    def begin():
        conversation = Conversation(model, tokenizer, system=SYSTEM_PROMPT)
        return _WithSettings(conversation, settings.in_use())

    return begin


class _WithSettings:
    """A `Conversation` that is asked with the same settings each time."""

    def __init__(self, conversation, settings):
        self.conversation, self.settings = conversation, settings

    def stream(self, text, image):
        return self.conversation.stream(text, image, **self.settings)


class EngineConversation:
    """Many turns over any engine: it is given the whole history each time."""

    def __init__(self, engine, settings):
        self.engine, self.settings = engine, settings
        self.messages = [{"role": "system", "content": SYSTEM_PROMPT}]

    def stream(self, text, image=None):
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
