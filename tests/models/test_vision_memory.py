"""`memory_plan` counts what a model holds while it reads pictures: beside what PyTorch's profiler sees in a run."""

import copy
import itertools

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    PaliGemmaConfig,
    SiglipVisionConfig,
    VipLlavaConfig,
)

from helpers import load_model, memory_plan
from helpers.models import memory, vision_memory
from helpers.models.skeleton import auto_class
from helpers.models.vision_memory import picture_memory, vision_bytes

TOWER = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 224,
    "patch_size": 14,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 300,
}
CLIP, SIGLIP, LLAMA = CLIPVisionConfig(**TOWER), SiglipVisionConfig(**TOWER), LlamaConfig(**TEXT)
CONFIGS = {
    "llava": LlavaConfig(vision_config=CLIP, text_config=LLAMA),
    "llava, siglip": LlavaConfig(vision_config=SIGLIP, text_config=LLAMA, vision_feature_select_strategy="full"),
    "vipllava": VipLlavaConfig(vision_config=CLIP, text_config=LLAMA, vision_feature_layers=[-2, -3]),
    "paligemma": PaliGemmaConfig(vision_config=SIGLIP, text_config=GemmaConfig(**TEXT), projection_dim=32),
    "gemma3": Gemma3Config(vision_config=SIGLIP, text_config=Gemma3TextConfig(**TEXT), mm_tokens_per_image=64),
}


def seen_by_the_profiler(config, pictures):
    """Bytes at the peak of `get_image_features` on a CPU, beside what was there before."""
    torch.manual_seed(0)
    model = auto_class(config).from_config(config).eval()
    pixels = torch.rand(pictures, 3, 224, 224)
    with torch.inference_mode():
        model.model.get_image_features(pixels)  # what is set up once is set up here
        with torch.autograd.profiler.profile(profile_memory=True) as profile:
            model.model.get_image_features(pixels)
    changes = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_count_is_what_a_real_run_holds(name, pictures):
    config = CONFIGS[name]
    measured = seen_by_the_profiler(config, pictures)
    assert vision_bytes(config, pictures, "float32") == pytest.approx(measured, rel=0.02)


def test_the_plan_of_a_folder_counts_its_pictures(tmp_path):
    auto_class(CONFIGS["llava"]).from_config(CONFIGS["llava"]).save_pretrained(tmp_path)

    def plan(**settings):
        return memory_plan(tmp_path, dtype="float32", device="cpu", context=16, **settings)

    assert plan().working_bytes == vision_bytes(CONFIGS["llava"], 1, "float32")
    assert plan(pictures=8).working_bytes == vision_bytes(CONFIGS["llava"], 8, "float32") > plan().working_bytes
    assert plan(batch=8).working_bytes == plan(pictures=8).working_bytes
    assert plan(pictures=0).working_bytes < plan().working_bytes
    assert "picture" not in plan().advice


@pytest.mark.parametrize("name", CONFIGS)
def test_half_as_wide_numbers_take_half(name):
    """Nothing at the peak has a width of its own, such as a norm computed in float32: so one count is enough."""
    assert vision_memory._counted(CONFIGS[name], 2) == vision_memory._counted(CONFIGS[name], 2, torch.bfloat16)
    half, full = (vision_bytes(CONFIGS[name], 2, dtype) for dtype in ("bfloat16", "float32"))
    assert half == full / 2 > 0


def test_eight_bits_are_taken_to_need_twice_as_much():
    plain, eight, four = (vision_bytes(CONFIGS["gemma3"], 2, "float16", bits) for bits in (None, "8bit", "4bit"))
    assert (eight, four) == (2 * plain, plain)


def test_a_plan_counts_once(tmp_path, monkeypatch):
    auto_class(CONFIGS["llava"]).from_config(CONFIGS["llava"]).save_pretrained(tmp_path)
    built, real = [], vision_memory.skeleton
    monkeypatch.setattr(vision_memory, "skeleton", lambda *args, **kwargs: built.append(1) or real(*args, **kwargs))
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)  # so that every smaller format is tried
    assert not memory_plan(tmp_path, dtype="float32", device="cpu").fits
    assert len(built) == 1


POSITIONS = {"llava": 256, "llava, siglip": 256, "vipllava": 256, "paligemma": 256, "gemma3": 64}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_prompt_is_as_long_as_its_pictures(name, tmp_path):
    assert picture_memory(CONFIGS[name], 3).positions == POSITIONS[name]
    auto_class(CONFIGS[name]).from_config(CONFIGS[name]).save_pretrained(tmp_path)

    def held(**settings):
        return memory_plan(tmp_path, dtype="float32", device="cpu", **settings).kv_cache_bytes

    assert held(context=10) == held(context=POSITIONS[name], pictures=0) > held(context=10, pictures=0)
    assert held(context=5000) == held(context=5000, pictures=0)
    assert held(context=10, pictures=4) == held(context=4 * POSITIONS[name], pictures=0)
    assert held(context=10, pictures=4, batch=3) == held(context=2 * POSITIONS[name], pictures=0, batch=3)


def test_a_prompt_of_glm4v_is_as_long_as_its_picture():
    def plan(**settings):
        return memory_plan("glm-4v-9b", dtype="bfloat16", device="cpu", **settings)

    assert plan(context=512).kv_cache_bytes == plan(context=1602, pictures=0).kv_cache_bytes
    assert plan(pictures=4).kv_cache_bytes == plan(context=4 * 1602, pictures=0).kv_cache_bytes
    assert plan(context=512, pictures=0).kv_cache_bytes == plan(context=1).kv_cache_bytes * 512 // 1602
    model, ids = load_model("tiny-glm4v", device="cpu"), torch.tensor([[1, 1, 1]])
    ids[0, 0], ids[0, 2] = model.config.boi_token_id, model.config.eoi_token_id
    expanded = model.expand_inputs(ids, torch.zeros(1, 3, 96, 96))
    assert picture_memory(model.config, 1).positions == expanded.input_ids.shape[1]


def test_pictures_of_any_size_are_not_counted_and_it_is_said():
    advice = memory_plan("glm-4.1v-9b-thinking", device="cpu").advice
    assert advice.endswith("What reading a picture takes depends on its size, and is not counted.")
    assert "picture" not in memory_plan("glm-4.1v-9b-thinking", device="cpu", pictures=0).advice
    assert "picture" not in memory_plan("glm-4-9b-chat", device="cpu").advice


def test_a_size_that_the_tower_cannot_run_with_is_not_counted():
    tower = SiglipVisionConfig(**{**TOWER, "image_size": 10})
    config = PaliGemmaConfig(vision_config=tower, text_config=GemmaConfig(**TEXT), projection_dim=32)
    assert vision_bytes(config, 1, "float32") is None


def without_layer(config):
    config.vision_feature_layer = -9


def without_a_size(config):
    config.vision_config.image_size = None


def without_heads(config):
    config.vision_config.num_attention_heads = 0


def with_patches_of_nothing(config):
    config.vision_config.patch_size = 0


ODD = [without_layer, without_a_size, without_heads, with_patches_of_nothing]


@pytest.mark.parametrize("change", ODD, ids=lambda change: change.__name__)
def test_an_odd_config_is_not_counted(change):
    config = copy.deepcopy(CONFIGS["llava"])
    change(config)
    assert vision_bytes(config, 1, "float32") is None


def test_a_size_of_two_equal_numbers_is_one_number(monkeypatch):
    """Where such a tower can be built: those of today's `transformers` need a single number."""
    real = vision_memory.skeleton

    def built_with_one_number(config, **settings):
        config = copy.deepcopy(config)
        config.vision_config.image_size = 224
        return real(config, **settings)

    monkeypatch.setattr(vision_memory, "skeleton", built_with_one_number)
    for pair in ([224, 224], (224, 224)):
        config = copy.deepcopy(CONFIGS["llava"])
        config.vision_config.image_size = pair
        assert vision_bytes(config, 1, "float32") == vision_bytes(CONFIGS["llava"], 1, "float32")


def test_counting_leaves_the_config_as_it_was():
    before = CONFIGS["gemma3"].to_json_string()
    vision_bytes(CONFIGS["gemma3"], 1, "float32")
    assert CONFIGS["gemma3"].to_json_string() == before
