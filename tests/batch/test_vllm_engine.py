"""The vLLM engine without vLLM: what it asks of one, and its sentence where there is none. `make test-engines` has
the real one."""

import sys
from types import SimpleNamespace

import pytest

from helpers.batch import vllm_engine
from helpers.batch.engines import GenerationSettings, Prompt
from helpers.batch.vllm_engine import VllmEngine, gpu_numbers
from helpers.errors import BadInputError, DoesNotFitError, HelpersError, ModelNotFoundError, PromptTooLongError

GREEDY = GenerationSettings(max_new_tokens=4, do_sample=False, repetition_penalty=1.0)


def _packages(found):
    """An `importlib` for the engine's module alone: every package is there, or none."""
    return SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: found))


class Core:
    """A core that answers each request after three steps, with the ids `answer`."""

    def __init__(self):
        self.requests, self.running, self.finished, self.aborted, self.most = {}, {}, [], [], 0
        self.answer = []
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=32, dtype="torch.float32"))

    def add_request(self, request_id, prompt, parameters):
        self.requests[request_id] = (prompt["prompt_token_ids"], parameters)
        self.running[request_id] = 3
        self.most = max(self.most, len(self.running))

    def step(self):
        outputs = []
        for request_id in list(self.running):
            self.running[request_id] -= 1
            finished = self.running[request_id] == 0
            if finished:
                del self.running[request_id]
            out = SimpleNamespace(token_ids=self.answer)
            outputs.append(SimpleNamespace(request_id=request_id, finished=finished, outputs=[out]))
        return outputs

    def abort_request(self, request_ids):
        self.aborted += request_ids


@pytest.fixture
def vllm(monkeypatch):
    """A module of that name, as on a machine with GPUs; `settings` are those that LLM was given."""
    module = SimpleNamespace(core=Core(), settings={}, problem=None, cpu=False, capability=90)
    platform = SimpleNamespace(
        is_cpu=lambda: module.cpu, has_device_capability=lambda least: module.capability >= least
    )

    def llm(folder, **settings):
        if module.problem:
            raise module.problem
        module.settings |= {"folder": folder, **settings}
        return SimpleNamespace(llm_engine=module.core)

    module.LLM, module.SamplingParams = llm, lambda **settings: settings
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=platform))
    monkeypatch.setattr(vllm_engine, "importlib", _packages("here"))
    for variable in [*vllm_engine._environment([0, 1], 1), "CUDA_VISIBLE_DEVICES"]:
        monkeypatch.setenv(variable, "given")
        monkeypatch.delenv(variable)  # so that what the engine sets is taken back afterwards
    return module


def _prompts(*texts):
    return iter([Prompt(index, text) for index, text in enumerate(texts)])


def test_where_vllm_is_not_installed_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(vllm_engine, "importlib", _packages(None))
    with pytest.raises(BadInputError, match=r"vLLM is not installed here.*`make engines`.*--use_vllm"):
        VllmEngine("smollm2-135m")


@pytest.mark.parametrize(
    ("given", "numbers"), [(None, []), ("", []), ("0", [0]), ("0,2", [0, 2]), ([1, 0], [1, 0]), (3, [3])]
)
def test_gpus_are_numbers(given, numbers):
    assert gpu_numbers(given) == numbers


@pytest.mark.parametrize("wrong", ["a", "0,", "-1", "0,0", "1.5", {}, [None]])
def test_what_is_no_number_of_a_gpu_is_refused(wrong):
    with pytest.raises(BadInputError, match='such as "0" or "0,1"'):
        gpu_numbers(wrong)


def test_several_gpus_share_the_model_and_are_the_ones_named(vllm, monkeypatch):
    engine = VllmEngine("smollm2-135m", gpus="1,3", context=64, at_once=5)
    assert vllm.settings["tensor_parallel_size"] == 2
    assert vllm.settings["dtype"] == "bfloat16"
    assert vllm.settings["max_model_len"] == 64
    assert vllm.settings["max_num_seqs"] == 5
    assert vllm.settings["trust_remote_code"] is False
    assert vllm_engine.os.environ["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert vllm_engine.os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"  # a process for each GPU
    assert engine.model_name == "smollm2-135m in float32"


def test_a_gpu_without_bfloat16_takes_float16(vllm):
    vllm.capability = 75
    VllmEngine("smollm2-135m", gpus="0")
    assert (vllm.settings["dtype"], vllm.settings["tensor_parallel_size"]) == ("float16", 1)
    VllmEngine("smollm2-135m", gpus="0", dtype="float32")
    assert vllm.settings["dtype"] == "float32"
    with pytest.raises(BadInputError, match="float64"):
        VllmEngine("smollm2-135m", dtype="float64")


def test_a_cpu_takes_float32_unless_told_otherwise_and_no_gpus(vllm):
    vllm.cpu = True
    VllmEngine("smollm2-135m")
    assert (vllm.settings["dtype"], vllm.settings["tensor_parallel_size"]) == ("float32", 1)
    assert vllm_engine.os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"  # in this process
    assert "CUDA_VISIBLE_DEVICES" not in vllm_engine.os.environ
    VllmEngine("smollm2-135m", dtype="bfloat16")
    assert vllm.settings["dtype"] == "bfloat16"
    with pytest.raises(BadInputError, match="gpus 0,1: this vLLM is built for CPUs"):
        VllmEngine("smollm2-135m", gpus="0,1")


def test_prompts_join_as_others_are_done_and_answers_are_cut_at_the_terminator(vllm, tokenizer):
    engine = VllmEngine("smollm2-135m", at_once=2)
    vllm.core.answer = [*tokenizer(" Paris is")["input_ids"], tokenizer.eos_token_id]
    taken = []

    def prompts():
        for prompt in _prompts("one", "two", "three", "four", "five"):
            taken.append(prompt.index)
            yield prompt

    answers = engine.generate(prompts(), GREEDY)
    assert next(answers) == (0, "Paris is")
    assert taken == [0, 1]
    assert dict(answers) == dict.fromkeys([1, 2, 3, 4], "Paris is")
    assert vllm.core.most == 2
    assert vllm.core.requests["2"] == (
        tokenizer("three")["input_ids"],
        {
            "max_tokens": 4,
            "repetition_penalty": 1.0,
            "stop_token_ids": [tokenizer.eos_token_id],
            "detokenize": False,
            "temperature": 0.0,
        },
    )


def test_sampling_settings_have_vllms_names(vllm):
    parameters = vllm_engine.sampling_parameters(GenerationSettings(), [2])
    assert parameters == {
        "max_tokens": 400,
        "repetition_penalty": 1.1,
        "stop_token_ids": [2],
        "detokenize": False,
        "temperature": 0.2,
        "top_k": 40,
        "top_p": 0.9,
    }


def test_a_prompt_that_cannot_be_asked_fails_alone(vllm, tokenizer):
    engine = VllmEngine("smollm2-135m")
    vllm.core.answer = tokenizer("yes")["input_ids"]
    prompts = iter([Prompt(0, "look", image="cat.png"), Prompt(1, "x " * 40), Prompt(2, "short")])
    answers = dict(engine.generate(prompts, GREEDY))
    assert isinstance(answers[0], BadInputError)
    assert isinstance(answers[1], PromptTooLongError)
    assert answers[2] == "yes"


def test_a_run_that_is_stopped_leaves_nothing_running(vllm, tokenizer):
    engine = VllmEngine("smollm2-135m", at_once=3)
    vllm.core.answer = tokenizer("yes")["input_ids"]
    answers = engine.generate(_prompts("one", "two", "three", "four"), GREEDY)
    next(answers)
    answers.close()
    assert vllm.core.aborted == ["1", "2"]


def test_a_vllm_that_breaks_off_is_one_sentence(vllm, monkeypatch):
    engine = VllmEngine("smollm2-135m", at_once=2)

    def dead():
        raise RuntimeError("EngineCore encountered an issue.")

    monkeypatch.setattr(vllm.core, "step", dead)
    with pytest.raises(
        HelpersError, match=r"vLLM stopped: EngineCore encountered an issue\. What is done is kept: run"
    ):
        list(engine.generate(_prompts("one", "two", "three"), GREEDY))
    assert vllm.core.aborted == []


def test_what_vllm_cannot_do_is_one_sentence(vllm):
    vllm.problem = ValueError("The model's max seq len (8192) is larger than the KV cache memory")
    with pytest.raises(DoesNotFitError, match="smaller context, or more GPUs"):
        VllmEngine("smollm2-135m")
    vllm.problem = RuntimeError("first\n  no kernel image\n  see https://errors.pydantic.dev/2/v\n")
    with pytest.raises(BadInputError, match="vLLM cannot run smollm2-135m: no kernel image"):
        VllmEngine("smollm2-135m")
    with pytest.raises(BadInputError, match="context must be from 2 to the model's 8192 positions, not 9000"):
        VllmEngine("smollm2-135m", context=9000)
    with pytest.raises(BadInputError, match="at_once"):
        VllmEngine("smollm2-135m", at_once=0)
    with pytest.raises(ModelNotFoundError):
        VllmEngine("smollm3-135m")
