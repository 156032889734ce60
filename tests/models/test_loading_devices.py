"""Choosing device, dtype and attention on machines that are not here: what torch reports is replaced."""

import importlib.util
import sys

import pytest
import torch

from helpers.errors import BadInputError, DoesNotFitError
from helpers.models import loading, memory
from helpers.models.fitting import release_cached
from helpers.models.skeleton import auto_class

GB = 10**9


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine look as if it had these GPUs: a list of (free bytes, compute capability)."""

    def pretend(*gpus, mps=False, macos=15):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gpus[index(device)][0], 99 * GB))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: gpus[index(device)][1])
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: macos >= major)
        monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 11 * GB)
        monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 1 * GB)

    def index(device):
        return torch.device(device or "cuda:0").index or 0

    return pretend


@pytest.fixture
def taken(monkeypatch):
    """The settings that would be handed to transformers; nothing is loaded."""
    settings = {}

    class Model:
        def eval(self):
            return self

        def parameters(self):
            return ()

    def load(auto_class, folder, given):
        settings.update(given)
        return Model()

    monkeypatch.setattr(loading, "_load_weights", load)
    return settings


AMPERE, TURING = (8, 0), (7, 5)


def test_auto_takes_the_first_gpu_in_bfloat16(machine, taken):
    machine((20 * GB, AMPERE))
    loading.load_model("smollm2-135m")
    assert (taken["device_map"], taken["dtype"]) == ("cuda:0", "bfloat16")


def test_the_third_gpu_as_in_the_walkthrough(machine, taken):
    machine(*[(20 * GB, AMPERE)] * 4)
    loading.load_model("smollm2-135m", device="cuda:2")
    assert taken["device_map"] == "cuda:2"
    loading.load_model("smollm2-135m", device_map="cuda:3")
    assert taken["device_map"] == "cuda:3"


def test_a_gpu_that_is_not_there_says_which_are(machine):
    machine((20 * GB, AMPERE), (20 * GB, AMPERE))
    with pytest.raises(BadInputError, match="this machine has cuda:0 to cuda:1"):
        loading.load_model("smollm2-135m", device="cuda:2")
    machine((20 * GB, AMPERE))
    with pytest.raises(BadInputError, match="this machine has only cuda:0"):
        memory.pick_device("cuda:1")
    machine()
    with pytest.raises(BadInputError, match="this machine has no CUDA device"):
        memory.pick_device("cuda")


def test_device_map_auto_counts_all_gpus_together(machine, taken):
    machine(*[(10 * GB, AMPERE)] * 4)
    alone = memory.memory_plan("glm-4v-9b", dtype="bfloat16")
    together = memory.memory_plan("glm-4v-9b", dtype="bfloat16", device_map="auto")
    assert not alone.fits
    assert together.fits
    assert together.available_bytes == 40 * GB
    assert together.device == "cuda:0, cuda:1, cuda:2, cuda:3"
    loading.load_model("smollm2-135m", device_map="auto")
    assert taken["device_map"] == "auto"


def test_device_map_auto_with_one_gpu_or_none_is_that_device(machine, taken):
    machine((10 * GB, AMPERE))
    loading.load_model("smollm2-135m", device_map="auto")
    assert taken["device_map"] == "cuda:0"
    machine()
    taken.clear()
    loading.load_model("smollm2-135m", device_map="auto")
    assert "device_map" not in taken


def test_a_device_and_device_map_auto_contradict_each_other(machine):
    machine(*[(10 * GB, AMPERE)] * 2)
    with pytest.raises(BadInputError, match="uses every GPU"):
        loading.load_model("smollm2-135m", device="cuda:1", device_map="auto")


def test_what_does_not_fit_on_the_gpu_is_not_started(machine, taken):
    machine((8 * GB, AMPERE))
    with pytest.raises(DoesNotFitError, match=r"8\.0 GB is free on cuda:0: it does not fit. It would fit with"):
        loading.load_model("glm-4-9b-chat")
    assert not taken


def test_an_older_gpu_gets_float16(machine):
    machine((20 * GB, TURING))
    assert memory.memory_plan("smollm2-135m").dtype == "float16"
    assert memory.memory_plan("smollm2-135m", dtype="bfloat16").dtype == "bfloat16"  # as asked


def test_apple_gpus(machine, taken):
    machine(mps=True)
    loading.load_model("smollm2-135m")
    assert (taken["device_map"], taken["dtype"]) == ("mps", "bfloat16")
    assert memory.available_bytes("mps") <= 10 * GB
    machine(mps=True, macos=13)
    assert memory.memory_plan("smollm2-135m").dtype == "float16"
    with pytest.raises(BadInputError, match="no kernels for Apple GPUs"):
        loading.load_model("smollm2-135m", quantization="4bit")


def test_apple_gpus_by_the_name_that_their_tensors_have(machine, taken, monkeypatch):
    """A tensor on "mps" says that it is on "mps:0"."""
    machine(mps=True, macos=13)
    assert memory.pick_device("mps:0") == memory.pick_device(torch.device("mps", 0)) == "mps"
    assert memory.memory_plan("smollm2-135m", device="mps:0").dtype == "float16"
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 1 * GB + 7)
    assert memory.available_bytes(torch.device("mps", 0)) == 7
    released = []
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: released.append(True))
    release_cached(torch.device("mps", 0))
    assert released == [True]
    with pytest.raises(BadInputError, match="no kernels for Apple GPUs"):
        loading.load_model("smollm2-135m", device="mps:0", quantization="4bit")
    with pytest.raises(BadInputError, match="one GPU"):
        memory.pick_device("mps:1")


def test_on_an_apple_gpu_nothing_is_advised_that_it_cannot_do(machine, monkeypatch):
    machine(mps=True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 1 * GB + 300_000_000)
    assert "quantization" not in memory.memory_plan("smollm2-135m", dtype="float32").cure
    too_large = memory.memory_plan("llama-3-8b-instruct")
    assert not too_large.fits and "Even in bfloat16" in too_large.cure


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_plan_for_an_apple_gpu_refuses_what_loading_refuses(machine, quantization):
    machine(mps=True)
    plan = memory.memory_plan("smollm2-135m", quantization=quantization)
    assert not plan.fits and plan.total_bytes < plan.available_bytes
    with pytest.raises(BadInputError) as error:
        loading.load_model("smollm2-135m", quantization=quantization)
    assert f"is free on mps, but {error.value} It would fit" in plan.advice
    assert plan.cure == 'It would fit with dtype="bfloat16".'
    assert memory.memory_plan("smollm2-135m").fits


def test_a_mac_without_bitsandbytes_quantizes_nothing(machine, monkeypatch):
    machine()
    monkeypatch.setattr(memory, "ON_MACOS", True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    plan = memory.memory_plan("smollm2-135m", quantization="8bit", device="cpu")
    assert not plan.fits and plan.total_bytes < plan.available_bytes
    with pytest.raises(BadInputError, match="which the course does not install on macOS: omit this setting") as error:
        loading.load_model("smollm2-135m", quantization="8bit", device="cpu")
    assert str(error.value) in plan.advice
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10 * GB)
    assert "Even in bfloat16" in memory.memory_plan("llama-3-8b-instruct", dtype="float32", device="cpu").cure
    monkeypatch.setattr(memory.importlib.util, "find_spec", lambda name: "here")  # who installs it may use it
    assert memory.memory_plan("smollm2-135m", quantization="8bit", device="cpu").fits


def test_no_apple_gpu_here(machine):
    machine()
    with pytest.raises(BadInputError, match="needs an Apple GPU"):
        memory.pick_device("mps")


def test_flash_attention_says_everything_that_is_missing(machine, monkeypatch):
    machine()
    with pytest.raises(BadInputError) as error:
        loading.load_model("smollm2-135m", attn_implementation="flash_attention_2")
    message = str(error.value)
    for lack in ("an NVIDIA GPU (the device is cpu)", "the package flash-attn", 'dtype="bfloat16"', '"sdpa"'):
        assert lack in message
    machine((20 * GB, TURING))
    with pytest.raises(BadInputError, match=r"8\.0, Ampere, or newer \(this one has 7\.5\)"):
        loading.load_model("smollm2-135m", attn_implementation="flash_attention_2")


def test_flash_attention_where_it_works(machine, monkeypatch, taken):
    machine((20 * GB, AMPERE))
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: "here" if name == "flash_attn" else found(name, *a)
    )
    loading.load_model("smollm2-135m", attn_implementation="flash_attention_2")
    assert taken["attn_implementation"] == "flash_attention_2"


def test_quantization_settings_are_the_walkthroughs(machine, taken):
    pytest.importorskip("bitsandbytes")  # before it could take the pretended GPU for a real one
    machine((20 * GB, AMPERE))
    loading.load_model("smollm2-135m", quantization="4bit")
    config = taken["quantization_config"]
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    loading.load_model("smollm2-135m", quantization="8bit", device="cpu")
    assert taken["quantization_config"].load_in_8bit
    assert taken["dtype"] == "float32"


def test_without_bitsandbytes_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(memory, "ON_MACOS", False)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BadInputError, match="pip install bitsandbytes"):
        loading.load_model("smollm2-135m", quantization="8bit", device="cpu")


def test_of_two_classes_the_one_that_sees_is_loaded():
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    import helpers.glm

    assert auto_class(transformers.LlamaConfig()) is AutoModelForCausalLM
    assert auto_class(helpers.glm.ChatGLMConfig()) is AutoModelForCausalLM
    for family in ("Glm4v", "Qwen3_5", "Llama4", "Mllama", "Gemma3"):
        assert auto_class(getattr(transformers, f"{family}Config")()) is AutoModelForImageTextToText
    with pytest.raises(BadInputError, match="does not generate text"):
        auto_class(transformers.ViTConfig())
