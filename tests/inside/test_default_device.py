"""`torch.set_default_device` says where a reader's own tensors are made; the course's results do not depend on it.

Notebook 03 sets it to the model's device. Here it is "meta", where tensors have no values: whatever is made on the
default device by mistake fails, as it would beside a model on another device.
"""

import copy
import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import helpers
from helpers import generate_steps, trace
from helpers.batch.engines import left_padded
from helpers.batch.identity import model_sha256
from helpers.glm.processing import ChatGLMImageProcessor
from helpers.glm.tiny import draw, random_scene
from helpers.inside.anatomy import LogitMap
from helpers.inside.heads import repeated_ids
from helpers.inside.kv_cache import kv_cache_norms

IDS = torch.tensor([[5, 17, 3, 60, 42]])


def direct_logit(model, tokenizer, run):
    return helpers.direct_logit(model, helpers.residual_contributions(model, tokenizer, IDS), 5)


RESULTS = {  # each gives tensors
    "trace": lambda model, tokenizer, run: trace(model, tokenizer, IDS, positions=[-1, 2]).hidden_states,
    "logit_lens": lambda model, tokenizer, run: helpers.logit_lens(model, run).probabilities,
    "direct_logit": lambda model, tokenizer, run: direct_logit(model, tokenizer, run).heads,
    "head_scores": lambda model, tokenizer, run: helpers.head_scores(run).induction,
    "kv_cache_norms": lambda model, tokenizer, run: kv_cache_norms(model(IDS).past_key_values).keys,
    "generate_steps": lambda model, tokenizer, run: next(generate_steps(model, tokenizer, IDS)).logits,
    "left_padded": lambda model, tokenizer, run: torch.cat(left_padded([[1, 2, 3], [4]])),
    "a picture": lambda model, tokenizer, run: ChatGLMImageProcessor(image_size=28)(
        draw(random_scene(random.Random(0)))
    )["pixel_values"],
    "repeated_ids": lambda model, tokenizer, run: repeated_ids(
        tokenizer, length=3, generator=torch.Generator().manual_seed(0)
    ),
}


@pytest.mark.parametrize("name", RESULTS)
@torch.no_grad()
def test_results_are_the_same_with_any_default_device(new_tiny, tokenizer, name):
    model = new_tiny("Llama")
    run = trace(model, tokenizer, IDS)
    expected = RESULTS[name](model, tokenizer, run)
    again = copy.deepcopy(model)  # one that no function has looked into yet
    with torch.device("meta"):
        found = RESULTS[name](again, tokenizer, run)
    assert found.device.type == "cpu"
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


def test_so_are_numbers_and_widgets(new_tiny, tokenizer):
    model = new_tiny("Llama")
    run = trace(model, tokenizer, IDS)
    factor, identity = LogitMap(softcap=30.0).factor(12.0), model_sha256(model)
    with torch.device("meta"):
        assert LogitMap(softcap=30.0).factor(12.0) == factor
        assert model_sha256(model) == identity
        assert helpers.attention_explorer(run).picture()
        assert helpers.hidden_state_explorer(copy.deepcopy(model), tokenizer, IDS).picture()


class NoFloat64(TorchDispatchMode):
    """As on Apple's GPUs, nothing may be float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        assert not (isinstance(result, torch.Tensor) and result.dtype == torch.float64), function
        return result


@pytest.mark.parametrize("do_sample", [False, True])
def test_generation_needs_no_float64(new_tiny, tokenizer, do_sample):
    with NoFloat64():
        assert len(list(generate_steps(new_tiny("Llama"), tokenizer, IDS, do_sample=do_sample, max_new_tokens=2)))


def test_any_token_id_is_read_exactly_without_float64():
    from helpers.inside.generation import _read

    largest = 2**24 - 1  # no vocabulary has as many ids
    probabilities = torch.tensor([[1.0]]).expand(1, largest + 1)
    assert _read(torch.tensor([[largest]]), probabilities, probabilities) == largest
