"""vLLM inside this process: continuous batching, paged KV cache, one model over several GPUs.

vLLM requires an older `transformers` than the course, so it has an environment of its own, which
`make engines` builds for machines without a GPU. Every prompt goes in as the ids that `render_chat` returns,
and answers are cut and decoded like those of the other engines: no engine applies a template of its own.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from helpers import checks
from helpers.batch.engines import GenerationSettings, Prompt, answer_text, prompt_token_ids
from helpers.batch.identity import folder_sha256, tokenizer_sha256
from helpers.errors import BadInputError, DoesNotFitError, HelpersError
from helpers.models import locate
from helpers.models.memory import pick_dtype
from helpers.models.pretrained import load_config, load_tokenizer
from helpers.text.stopping import terminator_ids


class VllmEngine:
    """The engine (see `helpers.batch.engines`) that runs vLLM in this process.

    name: a catalog name or a folder. gpus: which GPUs share the model, such as "0,1"; None uses one, or the
    CPU if there is none. dtype: "auto" is float32 on a CPU and bfloat16 on a GPU, as in `load_model`.
    context: how many positions prompt and answer may take, None for all that the model has. at_once: how
    many prompts run together; a new one joins as soon as another is done. tokenizer: its name or folder, if it
    is not with the model. cache_gb: memory for the KV cache in GB, on a CPU.

    Raises `BadInputError` if vLLM is not installed, `DoesNotFitError` if the model is too large, and what
    `helpers.models.model_folder` raises. Modelled on `vllm.LLM.generate`.
    """

    name = "vllm"

    def __init__(
        self,
        name: str,
        *,
        gpus: Any = None,
        dtype: str = "auto",
        context: int | None = None,
        at_once: int = 16,
        tokenizer: str | None = None,
        cache_gb: float = 2,
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise BadInputError(
                "vLLM is not installed here, since it needs an older transformers than the course: `make engines` "
                "builds an environment for it, and `.engines/bin/python -m helpers.batch --use_vllm …` runs it."
            )
        self.at_once = checks.whole_number("at_once", at_once, least=1)
        gpus = gpu_numbers(gpus)
        folder = locate.model_folder(name)
        self.tokenizer = load_tokenizer(tokenizer or name)
        self.terminators = terminator_ids(self.tokenizer, SimpleNamespace(generation_config=_generation_config(folder)))
        self.llm = _start(folder, gpus, dtype, context, at_once, cache_gb)
        self._folder = Path(folder)
        config = self.llm.llm_engine.vllm_config.model_config
        self.context = config.max_model_len
        self.model_name = f"{Path(folder).name} in {str(config.dtype).removeprefix('torch.')}"

    def identity(self) -> dict[str, str]:
        """A SHA-256 of the model's files and dtype and one of the tokenizer (see `helpers.batch.identity`)."""
        dtype = self.model_name.rpartition(" in ")[2]
        return {
            "model_sha256": f"{folder_sha256(self._folder)} in {dtype}",
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer),
        }

    def generate(
        self, prompts: Iterable[Prompt], settings: GenerationSettings
    ) -> Iterator[tuple[int, str | BaseException]]:
        """An iterator of (index, text or exception), in the order in which they are done."""
        engine, prompts = self.llm.llm_engine, iter(prompts)
        parameters = sampling_parameters(settings, self.terminators)
        running = {}  # vLLM's id of a request -> index of its prompt
        try:
            while True:
                while len(running) < self.at_once and (prompt := next(prompts, None)) is not None:
                    try:
                        ids = self._ids(prompt, settings)
                        engine.add_request(str(prompt.index), {"prompt_token_ids": ids}, parameters)
                        running[str(prompt.index)] = prompt.index
                    except (ValueError, TypeError) as error:
                        yield prompt.index, error
                if not running:
                    return
                try:
                    outputs = engine.step()
                except Exception as error:
                    running.clear()
                    raise HelpersError(
                        f"vLLM stopped: {_last_line(error)} What is done is kept: run the same command again to "
                        "continue from there."
                    ) from error
                for output in outputs:
                    if output.finished:
                        ids = list(output.outputs[0].token_ids)
                        yield running.pop(output.request_id), answer_text(self.tokenizer, ids, self.terminators)
        finally:
            if running:  # the caller has stopped listening
                engine.abort_request(list(running))

    def _ids(self, prompt: Prompt, settings: GenerationSettings) -> list[int]:
        if prompt.image is not None:
            raise BadInputError("Pictures are for the transformers engine: omit --use_vllm.")
        return prompt_token_ids(self.tokenizer, prompt, context=self.context, max_new_tokens=settings.max_new_tokens)


def gpu_numbers(gpus: Any) -> list[int]:
    """The GPUs of a setting such as "0,1" or [0, 1], as a list of int; None is an empty list.

    >>> gpu_numbers("0,2")
    [0, 2]

    Raises `BadInputError` for anything but a list of different numbers.
    """
    if gpus is None or gpus == "":
        return []
    parts = gpus.split(",") if isinstance(gpus, str) else gpus if isinstance(gpus, list | tuple) else [gpus]
    try:
        numbers = [int(part) for part in parts]
    except (TypeError, ValueError):
        numbers = [-1]
    if min(numbers, default=-1) < 0 or len(set(numbers)) != len(numbers):
        raise BadInputError(f'gpus must be numbers of GPUs, such as "0" or "0,1", not {checks.shown(gpus)}.')
    return numbers


def sampling_parameters(settings: GenerationSettings, terminators: list[int]) -> Any:
    """vLLM's `SamplingParams` for `GenerationSettings`: with temperature 0, vLLM takes the most likely token."""
    from vllm import SamplingParams

    sampling = {"temperature": 0.0}
    if settings.do_sample:
        sampling = {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
    return SamplingParams(
        max_tokens=settings.max_new_tokens,
        repetition_penalty=settings.repetition_penalty,
        stop_token_ids=terminators,
        detokenize=False,
        **sampling,
    )


def _generation_config(folder: Any) -> Any:
    from transformers import GenerationConfig

    with contextlib.suppress(OSError):
        return GenerationConfig.from_pretrained(folder, local_files_only=True)


def _start(folder: Any, gpus: list[int], dtype: str, context: int | None, at_once: int, cache_gb: float) -> Any:
    """A `vllm.LLM` for the folder. Raises `DoesNotFitError` or `BadInputError` if vLLM cannot run the model."""
    for variable, value in _environment(gpus, cache_gb).items():
        os.environ.setdefault(variable, value)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    from vllm import LLM
    from vllm.platforms import current_platform

    device = "cpu" if current_platform.is_cpu() else "cuda"
    if gpus and device == "cpu":
        raise BadInputError(f"gpus {','.join(map(str, gpus))}: this vLLM is built for CPUs. Omit --gpus.")
    if dtype == "auto" and device == "cuda":  # vLLM's platform knows; CUDA must not be initialized in this process
        dtype = "bfloat16" if current_platform.has_device_capability(80) else "float16"
    dtype = pick_dtype(dtype, "cpu")
    longest = getattr(load_config(folder).get_text_config(), "max_position_embeddings", None)
    if context is not None and (checks.whole_number("context", context) < 2 or (longest and context > longest)):
        raise BadInputError(f"context must be from 2 to the model's {longest} positions, not {checks.shown(context)}.")
    try:
        return LLM(
            str(folder),
            skip_tokenizer_init=True,
            dtype=dtype,
            tensor_parallel_size=max(len(gpus), 1),
            max_model_len=context,
            max_num_seqs=at_once,
            enforce_eager=device == "cpu",  # compiling takes longer than a small job
            generation_config="vllm",
            trust_remote_code=False,
        )
    except (ValueError, RuntimeError, MemoryError) as error:
        reason = _last_line(error)
        if "memory" in reason.lower():
            raise DoesNotFitError(
                f"{Path(folder).name} does not fit here with vLLM: {reason} Use a smaller context, or more GPUs."
            ) from error
        raise BadInputError(f"vLLM cannot run {Path(folder).name}: {reason}") from error


def _last_line(error: Exception) -> str:
    """The last line of an error, which is where vLLM gives the reason; pydantic's link after it is skipped."""
    lines = [line.strip() for line in str(error).splitlines() if "errors.pydantic.dev" not in line and line.strip()]
    return lines[-1] if lines else type(error).__name__


def _environment(gpus: list[int], cache_gb: float) -> dict[str, str]:
    """The variables that vLLM reads on import: no log, no usage reports, and one process where one is enough."""
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": str(cache_gb),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if len(gpus) < 2 else "1",
    }
