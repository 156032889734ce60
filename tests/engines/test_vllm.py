"""vLLM in process: the same answers, the same files, going on after a kill."""

import json
import signal
import time

import pytest

from helpers.batch.engines import GenerationSettings, Prompt
from helpers.batch.vllm_engine import VllmEngine
from helpers.errors import BadInputError, PromptTooLongError


@pytest.fixture(scope="module")
def engine():
    return VllmEngine("smollm2-135m", context=512)


def test_greedy_answers_in_float32_are_those_of_transformers(engine, prompts, settings, agree):
    assert engine.model_name == "smollm2-135m in float32"
    answers = dict(engine.generate(iter(prompts), settings))
    assert agree(answers) >= len(prompts) - 1


def test_a_repetition_penalty_means_the_same(engine, model, tokenizer, prompts):
    from helpers.batch.engines import TransformersEngine

    settings = GenerationSettings(max_new_tokens=8, do_sample=False, repetition_penalty=1.3)
    theirs = dict(engine.generate(iter(prompts[:8]), settings))
    ours = dict(TransformersEngine(model, tokenizer).generate(iter(prompts[:8]), settings))
    assert theirs == ours


def test_sampling_gives_an_answer_to_each(engine, prompts):
    answers = dict(engine.generate(iter(prompts[:4]), GenerationSettings(max_new_tokens=8)))
    assert all(isinstance(answers[index], str) and answers[index] for index in range(4))


def test_a_prompt_that_cannot_be_asked_fails_alone(engine, settings):
    prompts = [Prompt(0, "x " * 600), Prompt(1, "look", image="cat.png"), Prompt(2, "The capital of France is")]
    answers = dict(engine.generate(iter(prompts), settings))
    assert isinstance(answers[0], PromptTooLongError)
    assert isinstance(answers[1], BadInputError)
    assert "Paris" in answers[2]


def test_a_run_that_is_left_early_leaves_the_engine_usable(engine, prompts, settings):
    answers = engine.generate(iter(prompts), settings)
    next(answers)
    answers.close()
    assert not engine.llm.llm_engine.has_unfinished_requests()
    assert len(dict(engine.generate(iter(prompts[:3]), settings))) == 3


def test_gpus_on_a_vllm_for_cpus_are_refused():
    with pytest.raises(BadInputError, match="this vLLM is built for CPUs"):
        VllmEngine("smollm2-135m", gpus="0,1")


def test_the_command_goes_on_after_kill_9(batch_command, tmp_path):
    data = tmp_path / "prompts.txt"
    data.write_text("".join(f"Count from {n} to {n + 5}.\n" for n in range(60)), encoding="utf-8")
    options = ("--use_vllm", "--data_file", data, "--with_prompt", "--greedy", "--max_new_tokens", 12)
    options += ("--batch_size", 4, "--predictions_file", tmp_path / "p.json")
    lines = tmp_path / "p.jsonl"

    def answered():
        text = lines.read_text(encoding="utf-8") if lines.exists() else ""
        return [json.loads(line)["index"] for line in text.splitlines(keepends=True) if line.endswith("\n")]

    process = batch_command(*options)
    while len(answered()) < 10:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = answered()
    assert 10 <= len(before) < 60
    process = batch_command(*options)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert f"{60 - len(before)} prompts in" in out
    after = answered()
    assert sorted(after) == list(range(60))
    assert after[: len(before)] == before
    inputs = [answer["Input"] for answer in json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))]
    assert inputs == data.read_text(encoding="utf-8").splitlines()
