"""`generate_steps` on a GPU: the tokens of `generate`, and records that are on the device."""

import pickle

import pytest
import torch
from gpu_models import glm4v, prompt

from helpers.errors import BadInputError
from helpers.inside.generation import generate_steps

SAMPLED = {"do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.9}


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.3}, SAMPLED], ids=["greedy", "penalty", "sampled"])
def test_it_gives_the_tokens_of_generate(llama, letters, device, settings):
    ids = prompt(20)
    torch.manual_seed(5)
    fixed = {"do_sample": False, "max_new_tokens": 16, "min_new_tokens": 16, "pad_token_id": 0} | settings
    there = ids.to(device)
    expected = llama.generate(there, attention_mask=torch.ones_like(there), **fixed)[0, 20:].tolist()
    steps = list(generate_steps(llama, letters, ids, max_new_tokens=16, seed=5, eos_token_id=[], **settings))
    assert [step.token_id for step in steps] == expected
    for step in steps:
        tensors = (step.input_ids, step.position_ids, step.attention_mask, step.logits, step.probabilities)
        assert {tensor.device for tensor in tensors} == {device}
        assert step.attention_mask.shape == (1, step.kv_length) and step.attention_mask.all()
        assert step.logits.dtype == torch.float32
    assert pickle.loads(pickle.dumps(steps[-1])).token == steps[-1].token


def test_glm4v_too(letters, device):
    model = glm4v(device, torch.bfloat16, small=True)
    ids = prompt(20)
    fixed = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0}
    there = ids.to(device)
    expected = model.generate(there, attention_mask=torch.ones_like(there), **fixed)[0, 20:].tolist()
    assert [s.token_id for s in generate_steps(model, letters, ids, max_new_tokens=8, eos_token_id=[])] == expected


@pytest.mark.parametrize("do_sample", [False, True])
def test_scores_that_are_no_numbers_are_an_error_in_words(exact, letters, do_sample):
    def spoil(module, arguments, output):
        return output * float("nan")

    with exact.lm_head.register_forward_hook(spoil), pytest.raises(BadInputError, match="no longer numbers"):
        list(generate_steps(exact, letters, prompt(5), do_sample=do_sample, max_new_tokens=2))
