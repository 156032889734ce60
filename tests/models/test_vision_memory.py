"""`memory_plan` counts what a model holds while it reads pictures: beside what PyTorch's profiler sees in a run."""

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

from helpers import memory_plan
from helpers.models.skeleton import auto_class
from helpers.models.vision_memory import vision_bytes

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


@pytest.mark.parametrize("quantization", [None, "8bit", "4bit"])
def test_half_as_wide_numbers_take_half_and_eight_bits_twice_that(quantization):
    full, half = (vision_bytes(CONFIGS["gemma3"], 2, dtype, quantization) for dtype in ("float32", "bfloat16"))
    assert half == full / 2
    assert full == vision_bytes(CONFIGS["gemma3"], 2, "float32") * (2 if quantization == "8bit" else 1)


def test_pictures_of_any_size_are_not_counted_and_it_is_said():
    advice = memory_plan("glm-4.1v-9b-thinking", device="cpu").advice
    assert advice.endswith("What reading a picture takes depends on its size, and is not counted.")
    assert "picture" not in memory_plan("glm-4.1v-9b-thinking", device="cpu", pictures=0).advice
    assert "picture" not in memory_plan("glm-4-9b-chat", device="cpu").advice


def test_a_size_that_the_tower_cannot_run_with_is_not_counted():
    tower = SiglipVisionConfig(**{**TOWER, "image_size": 10})
    config = PaliGemmaConfig(vision_config=tower, text_config=GemmaConfig(**TEXT), projection_dim=32)
    assert vision_bytes(config, 1, "float32") is None
