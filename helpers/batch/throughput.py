"""What batches gain and cost: prompts per second, and peak memory."""

import ctypes
import gc
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from helpers import checks
from helpers.batch.engines import GenerationSettings, Prompt, TransformersEngine, as_prompt


@dataclass(frozen=True)
class BatchMeasure:
    """One batch size: prompts per second, the peak memory beyond what was in use before, in bytes, and the
    answers, in the prompts' order."""

    batch_size: int
    prompts_per_second: float
    peak_bytes: int
    answers: list[str]


def measure_batch_sizes(
    model: Any, tokenizer: Any, prompts: Iterable[Any], sizes: Sequence[int], *, rounds: int = 3, **generation: Any
) -> list[BatchMeasure]:
    """A `BatchMeasure` for each of `sizes`, with the same prompts and settings each time, after one prompt to warm up.

    All sizes take turns, `rounds` times, and the fastest time of each counts: other work on the machine makes a
    time longer, never shorter. The memory is the highest of all rounds. `prompts` and `generation` are those of
    `run_batch`. If a prompt fails, its error is raised.

    >>> one, two = measure_batch_sizes(model, tokenizer, ["The sky is", "Hello"], (1, 2), rounds=1, max_new_tokens=2)
    >>> two.batch_size, one.answers == two.answers
    (2, True)
    """
    settings = GenerationSettings(**generation)
    checks.whole_number("rounds", rounds, least=1)
    sizes = [checks.whole_number("A batch size", size, least=1) for size in checks.several("sizes", sizes, "numbers")]
    given = checks.several("prompts", prompts, "prompts")
    prompts = [as_prompt(index, prompt, tokenizer) for index, prompt in enumerate(given)]
    list(TransformersEngine(model, tokenizer).generate(prompts[:1], settings))
    runs = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            runs[size].append(_measure(TransformersEngine(model, tokenizer, batch_size=size), prompts, settings))
    return [
        BatchMeasure(
            size,
            len(prompts) / min(seconds for seconds, _, _ in measured),
            max(peak for _, peak, _ in measured),
            measured[0][2],
        )
        for size, measured in runs.items()
    ]


def _measure(
    engine: TransformersEngine, prompts: Sequence[Prompt], settings: GenerationSettings
) -> tuple[float, int, list[str]]:
    """(seconds, peak memory in bytes, answers in the prompts' order) of one run."""
    with peak_memory(engine.model.device) as peak:
        started = time.perf_counter()
        answers = dict(engine.generate(iter(prompts), settings))
        seconds = time.perf_counter() - started
    in_order = []
    for prompt in prompts:
        answer = answers[prompt.index]
        if isinstance(answer, BaseException):
            raise answer
        in_order.append(answer)
    return seconds, peak.bytes, in_order


class _Peak:
    bytes = 0


@contextmanager
def peak_memory(device: Any = "cpu", *, every: float = 0.02) -> Iterator["_Peak"]:
    """Watch the memory in use: `peak.bytes` is how many bytes it rose above its level at the start.

    >>> with peak_memory() as peak:
    ...     values = bytearray(1000)
    >>> peak.bytes >= 0
    True

    On a GPU, PyTorch keeps count; otherwise the process's memory is read every `every` seconds.
    """
    peak = _Peak()
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    import psutil

    process, done = psutil.Process(), threading.Event()
    gc.collect()
    with suppress(OSError, AttributeError):  # otherwise new data would first fill freed memory that glibc has kept
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = process.memory_info().rss

    def look() -> None:
        while not done.wait(every):
            peak.bytes = max(peak.bytes, process.memory_info().rss - before)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
