"""What the Ray engine does without Ray: its sentence where there is none, rows there and back. `make test-engines`
has the real one."""

import pickle
import sys
from types import SimpleNamespace

import pytest

from helpers.batch import ray_engine
from helpers.batch.engines import GenerationSettings, Prompt, TransformersEngine
from helpers.batch.ray_engine import RayEngine
from helpers.errors import BadInputError, HelpersError, PromptTooLongError

GREEDY = GenerationSettings(max_new_tokens=4, do_sample=False, repetition_penalty=1.0)


def _packages(found):
    """An `importlib` for the engine's module alone: every package is there, or none."""
    return SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: found))


class Upper:
    """An engine: the text in capitals; "bad" fails, "all" concerns the whole run."""

    def generate(self, prompts, settings):
        for prompt in prompts:
            if prompt.text == "all":
                raise BadInputError("No model here.")
            yield prompt.index, PromptTooLongError("Too long.") if prompt.text == "bad" else prompt.text.upper()


def _block(*texts):
    return {"prompt": [pickle.dumps(Prompt(index, text)) for index, text in enumerate(texts)]}


def _rows(block):
    return [dict(zip(block, values, strict=True)) for values in zip(*block.values(), strict=True)]


def test_where_ray_is_not_installed_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(ray_engine, "importlib", _packages(None))
    with pytest.raises(BadInputError, match=r"Ray is not installed here: `make engines`.*--ray 2"):
        RayEngine("smollm2-135m")


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"batch_size": 0}, {"window": 0}])
def test_settings_that_cannot_work_are_refused(monkeypatch, wrong):
    monkeypatch.setattr(ray_engine, "importlib", _packages("here"))
    with pytest.raises(BadInputError, match="must be a whole number of at least 1"):
        RayEngine("smollm2-135m", **wrong)


def test_a_worker_gives_a_row_for_each_prompt_and_errors_keep_their_kind():
    rows = _rows(ray_engine._Worker(Upper, GREEDY)(_block("one", "bad", "two")))
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert [row["text"] for row in rows] == ["ONE", "", "TWO"]
    assert [row["error"] for row in rows] == [None, "Too long.", None]
    error = ray_engine._as_error(rows[1])
    assert type(error) is PromptTooLongError
    assert str(error) == "Too long."
    foreign = ray_engine._as_error({"kind": "KeyError", "error": "'x'"})
    assert type(foreign) is HelpersError
    assert str(foreign) == "KeyError: 'x'"


def test_what_concerns_all_is_a_row_of_its_own():
    (row,) = _rows(ray_engine._Worker(Upper, GREEDY)(_block("all")))
    assert row["concerns_all"]
    assert type(ray_engine._as_error(row)) is BadInputError

    def broken():
        raise BadInputError("There is no model.")

    (row,) = _rows(ray_engine._Worker(broken, GREEDY)(_block("one", "two")))
    assert (row["concerns_all"], row["error"]) == (True, "There is no model.")


def test_a_workers_own_engine_is_the_transformers_one(monkeypatch, model, tokenizer):
    monkeypatch.setattr("helpers.models.loading.load_model", lambda folder: model)
    engine = ray_engine.transformers_engine("smollm2-135m", "smollm2-135m", 3)
    assert isinstance(engine, TransformersEngine)
    assert engine.batch_size == 3


@pytest.mark.parametrize(
    ("nodes", "workers", "share"),
    [
        ([{"CPU": 8.0}], 2, {"num_cpus": 4}),
        ([{}, {"CPU": 4.0}, {"CPU": 4.0}], 2, {"num_cpus": 4}),
        ([{"CPU": 5.0}, {"CPU": 4.0}], 3, {"num_cpus": 2}),
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}], 2, {"num_cpus": 8, "num_gpus": 1}),
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}], 2, {"num_cpus": 8}),
    ],
)
def test_each_worker_gets_as_many_cores_as_all_of_them_can_have(monkeypatch, nodes, workers, share):
    _cluster(monkeypatch, nodes)
    assert ray_engine._share(workers) == share


def test_more_workers_than_cores_are_refused(monkeypatch):
    _cluster(monkeypatch, [{"CPU": 2.0}])
    with pytest.raises(BadInputError, match="3 workers need a core each, but this Ray cluster has 2"):
        ray_engine._share(3)


def _cluster(monkeypatch, nodes):
    cards = [{"Alive": True, "Resources": node} for node in nodes] + [{"Alive": False, "Resources": {"CPU": 99.0}}]
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(nodes=lambda: cards))
