"""Many machines: the workers of a Ray cluster share the prompts, each with a model of its own.

Ray Data distributes blocks of prompts, and passes those of a worker that died to another. Answers come back here,
where each index counts once, so `run_batch` writes one file as always, and resumes from it if this process dies.
"""

import gc
import importlib.util
import logging
import math
import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from helpers import checks, errors
from helpers.batch.engines import GenerationSettings, Prompt, TransformersEngine, in_windows
from helpers.batch.identity import folder_sha256
from helpers.errors import BadInputError, HelpersError
from helpers.models import locate

# A block whose worker dies goes to another one; if that dies as well, or the machine is gone, its prompts are asked
# again one by one, twice. So a prompt that kills its worker does not make its neighbours fail.
ALONE = (1, 1)


class RayEngine:
    """The engine (see `helpers.batch.engines`) that spreads prompts over a Ray cluster.

    name: a catalog name or a folder; with several machines, a folder that all of them can read. workers: how many
    models run at once. batch_size: how many prompts a worker receives at a time, and at most how many are computed
    again if it dies. address: that of the cluster, such as "10.0.0.1:6379"; None uses the environment variable
    RAY_ADDRESS, or else starts a cluster on this machine. make_engine: a function without arguments that
    returns each worker's engine; None means `TransformersEngine`. window: how many prompts are held here at once.

    Each worker gets the same number of the cluster's cores, and a GPU if there are enough for all.

    Raises `BadInputError` if Ray is not installed or the cluster has too few cores, and what
    `helpers.models.model_folder` raises.
    """

    name = "ray"

    def __init__(
        self,
        name: str,
        *,
        workers: int = 2,
        batch_size: int = 8,
        tokenizer: str | None = None,
        address: str | None = None,
        make_engine: Callable[[], Any] | None = None,
        window: int = 50_000,
    ) -> None:
        if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
            raise BadInputError(
                "Ray is not installed here: `make engines` builds an environment that has it, and "
                "`.engines/bin/python -m helpers.batch --ray 2 …` runs it."
            )
        self.workers = checks.whole_number("workers", workers, least=1)
        self.batch_size = checks.whole_number("batch_size", batch_size, least=1)
        self.window = checks.whole_number("window", window, least=1)
        self._folder = locate.model_folder(name).resolve()
        self._tokenizer = locate.model_folder(tokenizer).resolve() if tokenizer else self._folder
        self.model_name = self._folder.name
        folders = str(self._folder), str(self._tokenizer)
        self.make_engine = make_engine or partial(transformers_engine, *folders, batch_size)
        _connect(address, workers)
        self.share = _share(workers)

    def identity(self) -> dict[str, str]:
        """A SHA-256 of the model's files and one of the tokenizer's (see `helpers.batch.identity`)."""
        small = folder_sha256(self._tokenizer, weights=False)
        return {"model_sha256": folder_sha256(self._folder), "tokenizer_sha256": small}

    def generate(
        self, prompts: Iterable[Prompt], settings: GenerationSettings
    ) -> Iterator[tuple[int, str | BaseException]]:
        """An iterator of (index, text or exception), block by block, as the blocks are done."""
        for window in in_windows(prompts, self.window):
            unanswered = {prompt.index: prompt for prompt in window}
            for size in (self.batch_size, *ALONE):
                if unanswered:
                    yield from self._asked(unanswered, settings, size)
                    gc.collect()  # Ray ends workers that nothing refers to, and an error's traceback refers to them
            for index in unanswered:
                yield index, HelpersError("Every worker that was given this prompt died.")

    def _asked(
        self, unanswered: dict[int, Prompt], settings: GenerationSettings, size: int
    ) -> Iterator[tuple[int, str | BaseException]]:
        """Ask all of them once; remove those that were answered from `unanswered`."""
        for row in _rows(self._answered(unanswered.values(), settings, size)):
            if row["concerns_all"]:
                raise _as_error(row)
            if unanswered.pop(row["index"], None):
                yield row["index"], row["text"] if row["error"] is None else _as_error(row)

    def _answered(self, prompts: Iterable[Prompt], settings: GenerationSettings, size: int) -> Any:
        """The Ray dataset of the answers to some prompts, in blocks of `size`. Similar lengths share a block."""
        import ray

        by_length = sorted(prompts, key=lambda prompt: -len(prompt.text))
        rows = [{"index": prompt.index, "prompt": pickle.dumps(prompt)} for prompt in by_length]
        dataset = ray.data.from_items(rows, override_num_blocks=math.ceil(len(rows) / size))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # max_task_retries may be renamed; the default is to retry forever
            dataset = dataset.map_batches(
                _Worker,
                fn_constructor_args=(self.make_engine, settings),
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(size=self.workers),
                max_task_retries=1,
                **self.share,
            )
        dataset.context.max_errored_blocks = -1  # a block that was given up shows by its missing answers
        dataset.context.max_consecutive_actor_init_deaths = 4 * self.workers  # for example, no memory for the model
        dataset.context.enable_progress_bars = False  # run_batch has one
        return dataset


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows as they are done; Ray's own errors become one of ours."""
    import ray

    try:
        yield from dataset.iter_rows()
    except (ray.exceptions.RayError, ConnectionError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise HelpersError(
            f"The Ray cluster cannot continue: {reason} What is done is kept: run the same command again to continue "
            "from there."
        ) from error


class _Worker:
    """What Ray runs in each worker: a block of prompts in, a block of answers out."""

    def __init__(self, make_engine: Callable[[], Any], settings: GenerationSettings) -> None:
        self.settings = settings
        try:
            self.engine, self.failure = make_engine(), None
        except Exception as error:
            self.engine, self.failure = None, error

    def __call__(self, block: dict[str, Any]) -> dict[str, list[Any]]:
        prompts = [pickle.loads(prompt) for prompt in block["prompt"]]
        answers, failure = [], self.failure
        if failure is None:
            try:
                answers = list(self.engine.generate(iter(prompts), self.settings))
            except Exception as error:
                failure = error
        rows = [_as_row(index, answer) for index, answer in answers]
        if failure is not None:
            rows.append(_as_row(-1, failure, concerns_all=True))
        return {name: [row[name] for row in rows] for name in _as_row(-1, "")}


def transformers_engine(folder: str, tokenizer: str, batch_size: int) -> TransformersEngine:
    """A `TransformersEngine` for a model folder, on the device that this worker was given."""
    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_processor, load_tokenizer

    try:
        tokenizer = load_processor(tokenizer)
    except BadInputError:  # it takes text only
        tokenizer = load_tokenizer(tokenizer)
    return TransformersEngine(load_model(folder), tokenizer, batch_size=batch_size)


def _as_row(index: int, answer: str | BaseException, *, concerns_all: bool = False) -> dict[str, Any]:
    failed = isinstance(answer, BaseException)
    return {
        "index": index,
        "text": "" if failed else answer,
        "kind": type(answer).__name__ if failed else "",
        "error": str(answer) if failed else None,
        "concerns_all": concerns_all,
    }


def _as_error(row: dict[str, Any]) -> HelpersError:
    """The error of a worker, of its own class if that is one of ours."""
    kind = getattr(errors, row["kind"], None)
    ours = isinstance(kind, type) and issubclass(kind, HelpersError)
    return kind(row["error"]) if ours else HelpersError(f"{row['kind']}: {row['error']}")


def _connect(address: str | None, workers: int) -> None:
    """Join a cluster, or start one on this machine, quietly and without usage reports."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS")
    settings = {"address": address} if address else {"num_cpus": max(workers, os.cpu_count() or 1)}
    try:
        ray.init(
            **settings,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # The workers run this very package, also on machines that do not have it.
            runtime_env={"py_modules": [str(Path(__file__).parents[1])]},
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise errors.ServerNotReachableError(
            f"There is no Ray cluster at {address}: {reason} Check that `ray start --head` runs there."
        ) from None


def _share(workers: int) -> dict[str, int]:
    """What each worker gets: as many cores as possible while all of them still fit, and a GPU if there are enough."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [int(node.get("CPU", 0)) for node in nodes]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    for share in range(max(cores, default=0), 0, -1):
        if sum(count // share for count in cores) >= workers:
            return {"num_cpus": share} | ({"num_gpus": 1} if gpus >= workers else {})
    raise BadInputError(f"{workers} workers need a core each, but this Ray cluster has {sum(cores)}: use fewer.")
