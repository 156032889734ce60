"""What `memory_plan` says beside what a device takes, at the real sizes."""

import gc

import pytest
import torch
from gpu_models import glm4v, prompt
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    SiglipVisionConfig,
)

from helpers import memory_plan
from helpers.models.memory import available_bytes
from helpers.models.skeleton import auto_class
from helpers.models.vision_memory import vision_bytes


def test_the_plan_of_glm4v_with_a_picture_is_what_it_takes(device):
    plan = memory_plan("glm-4v-9b", dtype="bfloat16", device=str(device))
    if not plan.fits:
        pytest.skip(plan.advice)
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    model = glm4v(device, torch.bfloat16)
    torch.cuda.reset_peak_memory_stats(device)
    config = model.config
    picture = torch.tensor([[config.boi_token_id, config.pad_token_id, config.eoi_token_id]])
    ids = torch.cat([picture, prompt(10)], dim=1).to(device)
    pixels = torch.rand(1, 3, 1120, 1120, device=device, dtype=torch.bfloat16)
    model.generate(ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, max_new_tokens=2, do_sample=False)
    peak = torch.cuda.max_memory_allocated(device) - before
    del model
    torch.cuda.empty_cache()
    assert peak == pytest.approx(plan.total_bytes, rel=0.01)
    assert peak > plan.weights_bytes + 0.9 * plan.working_bytes


TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
TOWERS = {
    "LLaVA 1.5": lambda: LlavaConfig(
        vision_config=CLIPVisionConfig(**CLIP, image_size=336, patch_size=14), text_config=LlamaConfig(**TEXT)
    ),
    "Gemma 3": lambda: Gemma3Config(
        vision_config=SiglipVisionConfig(**SIGLIP, image_size=896, patch_size=14),
        text_config=Gemma3TextConfig(**TEXT, num_key_value_heads=1, head_dim=32),
    ),
}


@pytest.mark.parametrize("name", TOWERS)
def test_other_towers_take_what_is_counted(device, name):
    config = TOWERS[name]()
    with torch.device(device):
        model = auto_class(config).from_config(config, dtype=torch.bfloat16).eval()
    side = config.vision_config.image_size
    pixels = torch.rand(2, 3, side, side, device=device, dtype=torch.bfloat16)
    with torch.inference_mode():
        model.model.get_image_features(pixels)  # the kernels' own buffers are set up here
        gc.collect()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        model.model.get_image_features(pixels)
    peak = torch.cuda.max_memory_allocated(device) - before
    assert peak == pytest.approx(vision_bytes(config, 2, "bfloat16"), rel=0.03)


def test_what_torch_has_cached_is_available(device):
    tensor = torch.empty(2**30, dtype=torch.uint8, device=device)
    used = available_bytes(device)
    del tensor  # torch keeps its memory
    assert torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) >= 2**30
    assert available_bytes(device) - used == pytest.approx(2**30, rel=0.05)
