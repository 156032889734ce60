"""Loading and the memory plan: plain transformers objects, or one clear sentence."""

import gc
import itertools
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.errors import BadInputError, DamagedFilesError, DoesNotFitError, ModelNotFoundError
from helpers.models import loading, locate, memory, pretrained, store, weights


@pytest.fixture
def tiny(tmp_path):
    """A folder with a tiny random Llama in two shards."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) >= 2
    return tmp_path


def test_a_model_is_plain_in_eval_mode_and_float32_on_a_cpu(model):
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not model.training
    assert model.dtype == torch.float32
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_weights_stay_memory_mapped():
    """Loading and using the model makes little memory of this process's own; the file's pages are shared."""
    program = (
        "import torch, helpers\n"
        "from transformers import LlamaForCausalLM\n"
        "def private():\n"
        "    lines = open('/proc/self/smaps_rollup').read().splitlines()\n"
        "    return sum(int(r.split()[1]) for r in lines if r.startswith('Private_Dirty')) // 1024\n"
        "before = private(); model = helpers.load_model('smollm2-135m', device='cpu')\n"
        "with torch.inference_mode(): model(torch.tensor([[1, 2, 3]]))\n"
        "print(private() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # MB; a copy of the weights would be 538


def test_sdpa_and_eager_can_be_asked_for(tiny):
    for kind in ("sdpa", "eager"):
        assert loading.load_model(tiny, attn_implementation=kind).config._attn_implementation == kind


def test_a_local_folder_loads_in_the_dtype_asked_for(tiny):
    assert loading.load_model(tiny, device="cpu").dtype == torch.float32
    assert loading.load_model(str(tiny), device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    assert loading.load_model(tiny, device="cpu", dtype=torch.float16, source="folder").dtype == torch.float16


@pytest.fixture
def thresholds(monkeypatch):
    """What the C library was told about large blocks: the numbers, in order."""
    told = []
    call = {"mallopt": lambda parameter, number: parameter == loading.M_MMAP_THRESHOLD and told.append(number)}
    monkeypatch.setattr(loading, "_call_c", lambda function, *numbers: function in call and call[function](*numbers))
    return told


def test_memory_is_given_back_at_once_while_a_quantized_model_lives_and_no_longer(tiny, thresholds):
    loading.load_model(tiny, device="cpu", dtype="bfloat16")
    assert thresholds == []
    model = loading.load_model(tiny, device="cpu", quantization="8bit")
    assert thresholds == [loading.MMAP_THRESHOLD_FRUGAL]
    assert all(parameter.untyped_storage().resizable() for parameter in model.parameters())  # none is in the file
    del model
    gc.collect()
    assert thresholds == [loading.MMAP_THRESHOLD_FRUGAL, loading.MMAP_THRESHOLD_USUAL]


def test_the_c_library_is_as_before_when_quantizing_fails(tiny, thresholds):
    _rewrite(tiny, lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(DamagedFilesError):
        loading.load_model(tiny, device="cpu", quantization="8bit")
    assert thresholds[-1] == loading.MMAP_THRESHOLD_USUAL


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"device": "cuda:7"}, "cuda:7"),
        ({"device": "toaster"}, "toaster"),
        ({"dtype": "float12"}, "float12"),
        ({"quantization": "3bit"}, "3bit"),
        ({"attn_implementation": "psychic"}, "psychic"),
        ({"source": "floppy"}, "floppy"),
    ],
)
def test_settings_that_cannot_work_are_named(tiny, settings, says):
    with pytest.raises(BadInputError, match=says):
        loading.load_model(tiny, **settings)


def test_a_source_that_does_not_have_the_model(tiny):
    with pytest.raises(ModelNotFoundError, match="does not come from a wheel"):
        loading.load_model(tiny, source="wheel")
    with pytest.raises(ModelNotFoundError, match="does not come from a folder"):
        loading.load_model("smollm2-135m", source="folder")


def test_a_model_without_safetensors_is_refused(tiny):
    for file in tiny.glob("*.safetensors*"):
        file.unlink()
    (tiny / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ModelNotFoundError, match=r"no \.safetensors"):
        loading.load_model(tiny)


def test_a_truncated_shard_is_named(tiny):
    shard = sorted(tiny.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(DamagedFilesError, match=shard.name):
        loading.load_model(tiny)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 8 + b"{}"])
def test_a_file_that_is_no_safetensors_is_named(tiny, content):
    shard = sorted(tiny.glob("*.safetensors"))[0]
    shard.write_bytes(content)
    with pytest.raises(DamagedFilesError, match=shard.name):
        weights.weight_shapes(tiny)


def _rewrite(folder, change):
    """Change one weight of the shard that holds the last norm."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard = folder / index["weight_map"]["model.norm.weight"]
    weights = load_file(shard)
    change(weights)
    save_file(weights, shard, metadata={"format": "pt"})


def test_a_missing_weight_is_an_error_not_a_random_number(tiny):
    _rewrite(tiny, lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(DamagedFilesError, match=r"model\.norm\.weight"):
        loading.load_model(tiny)


def test_a_weight_of_a_wrong_shape_is_an_error(tiny):
    _rewrite(tiny, lambda weights: weights.update({"model.norm.weight": torch.ones(31)}))
    with pytest.raises(DamagedFilesError, match=r"norm|shape|size"):
        loading.load_model(tiny)


def test_a_config_that_is_no_json_is_named(tiny):
    (tiny / "config.json").write_text("{")
    with pytest.raises(DamagedFilesError, match="cannot be loaded"):
        loading.load_model(tiny)


def test_a_model_of_an_unknown_kind_is_named(tiny):
    (tiny / "config.json").write_text('{"model_type": "no-such-architecture"}')
    with pytest.raises(DamagedFilesError, match="no-such-architecture"):
        pretrained.load_config(tiny)


def test_a_model_that_is_too_big_is_not_even_started(monkeypatch, tiny):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    with pytest.raises(DoesNotFitError, match="does not fit"):
        loading.load_model(tiny)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_memory_that_runs_out_while_loading_is_said_in_numbers(monkeypatch, error):
    def from_pretrained(*_, **__):
        raise error

    monkeypatch.setattr(loading, "auto_class", lambda config: SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setattr(memory, "ON_MACOS", False)
    with pytest.raises(DoesNotFitError, match="Loading smollm2-135m needs 538 MB") as caught:
        loading.load_model("smollm2-135m", device="cpu", dtype="float32")
    assert caught.value.needed_bytes == 4 * 134_515_008 and caught.value.available_bytes > 0
    assert 'dtype="bfloat16", quantization="4bit"' in caught.value.would_fit


def test_a_text_model_has_no_processor():
    with pytest.raises(BadInputError, match="does not see"):
        pretrained.load_processor("smollm2-135m")


def test_the_plan_counts_what_loading_takes(model):
    plan = memory.memory_plan("smollm2-135m", device="cpu", context=100)
    assert plan.weights_bytes == sum(p.numel() * p.element_size() for p in model.parameters())
    parts = (plan.weights_bytes, plan.kv_cache_bytes, plan.working_bytes, plan.overhead_bytes)
    assert plan.total_bytes == sum(parts)
    assert plan.fits
    assert "it fits" in plan.advice


def test_the_plan_counts_what_a_forward_pass_holds_at_its_widest(model):
    """The profiler sees every tensor come and go: the sum of those alive is highest inside an MLP."""
    ids = torch.arange(256)[None] + 100
    with torch.inference_mode():
        model(ids[:, :8])  # what is set up once is set up here
        with torch.autograd.profiler.profile(profile_memory=True) as profile:
            outputs = model(ids, use_cache=True, logits_to_keep=1)
    changes = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    alive = itertools.accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns()))
    plan = memory.memory_plan("smollm2-135m", device="cpu", context=256)
    assert max(alive) == pytest.approx(plan.kv_cache_bytes + plan.working_bytes, rel=0.02)
    assert outputs.past_key_values.get_seq_length() == 256


def test_the_plan_of_a_folder_and_of_the_catalog_agree(monkeypatch):
    from helpers.models.catalog import find_card

    plan = memory.memory_plan("smollm2-135m", device="cpu")
    card = find_card("smollm2-135m")
    hub_card = SimpleNamespace(**{**vars(card), "sources": {"modelscope": "x"}})
    monkeypatch.setattr(loading.catalog, "find_card", lambda name: hub_card)
    assert memory.memory_plan("smollm2-135m", device="cpu").weights_bytes == plan.weights_bytes


def test_the_plan_explains_the_walkthroughs_sizes(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 32 * 10**9)
    chat = memory.memory_plan("glm-4-9b-chat", dtype="bfloat16", device="cpu")
    assert 18e9 < chat.weights_bytes < 19e9
    vision = memory.memory_plan("glm-4v-9b", dtype="bfloat16", device="cpu")
    assert vision.weights_bytes == 2 * 13_906_320_896
    full = memory.memory_plan("glm-4v-9b", dtype="float32", device="cpu")
    assert not full.fits
    assert 'dtype="bfloat16"' in full.advice


@pytest.mark.parametrize(("quantization", "measured"), [(None, 29.73), ("8bit", 17.62), ("4bit", 11.04)])
def test_the_plan_of_a_model_that_sees_counts_its_picture(quantization, measured):
    """GB at the peak of a first answer about one picture of 1120 x 1120, on an H200. The tower that was measured kept
    all its hidden states, 64 of 6401 positions and 1792 numbers; now it keeps them if they are asked for."""
    plan = memory.memory_plan("glm-4v-9b", dtype="bfloat16", quantization=quantization, device="cpu")
    kept = 64 * 6401 * 1792 * 2
    assert (plan.total_bytes + kept) / 1e9 == pytest.approx(measured, rel=0.01)
    without = memory.memory_plan("glm-4v-9b", dtype="bfloat16", quantization=quantization, device="cpu", pictures=0)
    text = memory.memory_plan("glm-4-9b-chat", dtype="bfloat16", device="cpu")
    assert without.working_bytes == text.working_bytes < plan.working_bytes


def test_the_plan_grows_with_context_and_batch_and_shrinks_with_bits():
    def plan(**settings):
        return memory.memory_plan("llama-3-8b-instruct", device="cpu", **{"dtype": "bfloat16", **settings})

    assert plan(context=4096).kv_cache_bytes == 2 * plan(context=2048).kv_cache_bytes
    assert plan(batch=3).kv_cache_bytes == 3 * plan().kv_cache_bytes
    assert plan(batch=3).working_bytes == plan(context=3 * 2048).working_bytes == 3 * plan().working_bytes
    assert plan(dtype="float32").working_bytes == 2 * plan(quantization="4bit").working_bytes
    sizes = [plan(quantization=q).weights_bytes for q in ("4bit", "8bit", None)]
    assert sizes == sorted(sizes)
    assert sizes[0] > 8_030_261_248 / 2


@pytest.mark.parametrize("settings", [{"context": 0}, {"batch": 0}, {"quantization": "2bit"}])
def test_a_plan_that_makes_no_sense(settings):
    with pytest.raises(BadInputError):
        memory.memory_plan("smollm2-135m", **settings)


@pytest.fixture
def gpt1(tmp_path, tokenizer):
    """The folder of a tiny GPT-1, which keeps no cache."""
    torch.manual_seed(0)
    import transformers

    config = transformers.OpenAIGPTConfig(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, pad_token_id=0)
    transformers.OpenAIGPTLMHeadModel(config).save_pretrained(tmp_path / "gpt1")
    tokenizer.save_pretrained(tmp_path / "gpt1")
    return tmp_path / "gpt1"


def test_a_model_without_a_cache_has_a_plan_and_is_loaded(gpt1):
    assert memory.memory_plan(gpt1, dtype="float32", device="cpu").kv_cache_bytes == 0
    assert type(loading.load_model(gpt1, device="cpu")).__name__ == "OpenAIGPTLMHeadModel"


def test_a_cache_of_an_unknown_kind_is_in_no_plan_and_loading_does_not_mind(gpt1, monkeypatch):
    """GPT-1 could not be loaded: how much its cache holds could not be said."""

    def unknown(*_, **__):
        raise BadInputError("The size of the cache cannot be computed.")

    monkeypatch.setattr(memory, "kv_cache_bytes", unknown)
    with pytest.raises(BadInputError, match="cannot be computed"):
        memory.memory_plan(gpt1, device="cpu")
    assert loading.load_model(gpt1, device="cpu") is not None


def test_a_tokenizer_has_no_plan():
    with pytest.raises(BadInputError, match="only a tokenizer"):
        memory.memory_plan("llama-3-tokenizer")


def test_planning_loads_no_weights():
    program = (
        "import sys, helpers; helpers.memory_plan('glm-4-9b-chat', device='cpu');print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_folder_used_is_the_prepared_one():
    assert locate.model_folder("smollm2-135m") == store.models_dir() / "smollm2-135m"


TINY = store.SHIPPED / "tiny-glm4v"


def test_the_tiny_model_that_sees_comes_with_the_course(monkeypatch, tmp_path):
    monkeypatch.setenv("HELPERS_MODELS", str(tmp_path))  # wherever prepared models are
    assert locate.model_folder("tiny-glm4v") == TINY
    model = loading.load_model("tiny-glm4v", device="cpu")
    plan = memory.memory_plan("tiny-glm4v", device="cpu")
    assert plan.weights_bytes == sum(p.numel() * p.element_size() for p in model.parameters())
    assert model.num_parameters() == loading.catalog.find_card("tiny-glm4v").parameters
    assert pretrained.load_tokenizer("tiny-glm4v").convert_tokens_to_ids("<|user|>") >= 0
    assert pretrained.load_processor("tiny-glm4v").image_processor


def test_a_model_of_the_repository_that_was_deleted_says_how_to_get_it_back(monkeypatch, tmp_path):
    monkeypatch.setattr(store, "SHIPPED", tmp_path)
    monkeypatch.setenv("HELPERS_MODELS", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="comes with the course, in data/models/tiny-glm4v"):
        pretrained.load_processor("tiny-glm4v")
