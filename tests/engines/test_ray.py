"""The same job on Ray Data, over a cluster of two workers on this machine: one dies, nothing is lost or doubled."""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from helpers.batch.engines import Prompt
from helpers.batch.ray_engine import RayEngine
from helpers.batch.run import run_batch
from helpers.errors import BadInputError, HelpersError, PromptTooLongError, ServerNotReachableError


class Slow:
    """An engine: the text in capitals, after a while. `folder` gets a file for each time a prompt is answered, and
    one for each process."""

    def __init__(self, folder, seconds):
        self.folder, self.seconds = Path(folder), seconds
        (self.folder / f"worker-{os.getpid()}").touch()

    def generate(self, prompts, settings):
        for prompt in prompts:
            if prompt.text == "poison":
                os.kill(os.getpid(), signal.SIGKILL)
            if prompt.text == "gone":
                raise ServerNotReachableError("The server is gone.")
            time.sleep(self.seconds)
            yield prompt.index, PromptTooLongError("Too long.") if prompt.text == "long" else prompt.text.upper()


@pytest.fixture(scope="module")
def cluster():
    """A head without a core, and two workers with one each: as on three machines."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (not behind whatever else this machine does)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def slow(cluster, tmp_path):
    """An engine of two workers that run `Slow`."""

    def make(seconds=0.05, **settings):
        return RayEngine(
            "smollm2-135m",
            workers=2,
            address=cluster.address,
            make_engine=partial(Slow, tmp_path, seconds),
            **{"batch_size": 4, **settings},
        )

    return make


def _workers(folder):
    return [int(file.name.removeprefix("worker-")) for file in folder.glob("worker-*")]


def _alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_each_worker_has_a_node(slow):
    assert slow().share == {"num_cpus": 1}


def test_a_worker_killed_in_the_middle_loses_and_doubles_nothing(slow, tmp_path, settings):
    texts = [f"prompt {n}" for n in range(80)]
    killed = []

    class Watched:
        """The engine, with a worker killed once the first answers are there."""

        engine = slow()
        name, model_name = engine.name, engine.model_name

        def generate(self, prompts, settings):
            for count, answered in enumerate(self.engine.generate(prompts, settings)):
                if count == 10:
                    killed.append(next(worker for worker in _workers(tmp_path) if _alive(worker)))
                    os.kill(killed[0], signal.SIGKILL)
                yield answered

    report = run_batch(None, None, texts, tmp_path / "p.json", engine=Watched(), progress=False)
    assert killed
    assert len(_workers(tmp_path)) >= 3  # another one took its place
    _is_whole(report, tmp_path, texts)


def _is_whole(report, folder, texts):
    """Each prompt once in p.jsonl, all of them in order in p.json."""
    assert (report.total, report.failed) == (len(texts), 0)
    lines = [json.loads(line) for line in (folder / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(line["index"] for line in lines) == list(range(len(texts)))
    answers = json.loads((folder / "p.json").read_text(encoding="utf-8"))
    assert answers == [{"Input": text, "Output": text.upper()} for text in texts]


@pytest.mark.parametrize("poisoned", [(5,), (2, 5, 9)])
def test_a_prompt_that_kills_its_workers_fails_and_the_others_go_on(slow, settings, poisoned):
    prompts = [Prompt(n, "poison" if n in poisoned else f"prompt {n}") for n in range(12)]
    answers = list(slow(batch_size=4).generate(iter(prompts), settings))
    assert sorted(index for index, _ in answers) == list(range(12))
    answers = dict(answers)
    assert all(isinstance(answers.pop(index), HelpersError) for index in poisoned)
    assert answers == {n: f"PROMPT {n}" for n in answers}


def test_a_prompt_that_fails_fails_alone_with_its_kind_of_error(slow, settings):
    answers = dict(slow().generate(iter([Prompt(0, "one"), Prompt(1, "long"), Prompt(2, "two")]), settings))
    assert isinstance(answers[1], PromptTooLongError)
    assert (answers[0], answers[2]) == ("ONE", "TWO")


def test_what_concerns_all_is_raised(slow, settings):
    with pytest.raises(ServerNotReachableError, match="The server is gone"):
        list(slow().generate(iter([Prompt(0, "gone")]), settings))


def test_a_model_that_a_worker_cannot_load_is_one_sentence(slow, settings):
    engine = slow()
    engine.make_engine = partial(int, "no engine")
    with pytest.raises(HelpersError, match="ValueError: invalid literal"):
        list(engine.generate(iter([Prompt(0, "one")]), settings))


def test_more_workers_than_the_cluster_has_cores_are_refused(cluster, slow):
    slow()
    with pytest.raises(BadInputError, match="3 workers need a core each, but this Ray cluster has 2"):
        RayEngine("smollm2-135m", workers=3, address=cluster.address)


def test_windows_are_read_as_they_are_needed(slow, settings):
    taken = []

    def prompts():
        for n in range(20):
            taken.append(n)
            yield Prompt(n, f"prompt {n}")

    answers = slow(0.0, window=8).generate(prompts(), settings)
    next(answers)
    assert len(taken) == 8
    assert len(list(answers)) == 19


def test_the_model_on_two_workers_answers_as_it_does_here(cluster, slow, prompts, settings, expected):
    slow()
    engine = RayEngine("smollm2-135m", workers=2, batch_size=4, address=cluster.address)
    assert dict(engine.generate(iter(prompts), settings)) == expected


def test_a_machine_that_is_gone_loses_and_doubles_nothing(cluster, slow, tmp_path, settings):
    """The last one: the cluster has one worker fewer afterwards."""
    texts = [f"prompt {n}" for n in range(60)]
    gone = []

    class Watched:
        engine = slow()
        name, model_name = engine.name, engine.model_name

        def generate(self, prompts, settings):
            for count, answered in enumerate(self.engine.generate(prompts, settings)):
                if count == 10:
                    gone.append(next(iter(cluster.worker_nodes)))
                    cluster.remove_node(gone[0], allow_graceful=False)
                yield answered

    report = run_batch(None, None, texts, tmp_path / "p.json", engine=Watched(), progress=False)
    assert gone
    _is_whole(report, tmp_path, texts)
