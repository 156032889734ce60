"""What `memory_plan` says beside what a device takes, at the real sizes."""

import gc

import pytest
import torch
from gpu_models import glm4v, prompt

from helpers import memory_plan
from helpers.models.memory import available_bytes


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


def test_what_torch_has_cached_is_available(device):
    tensor = torch.empty(2**30, dtype=torch.uint8, device=device)
    used = available_bytes(device)
    del tensor  # torch keeps its memory
    assert torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) >= 2**30
    assert available_bytes(device) - used == pytest.approx(2**30, rel=0.05)
