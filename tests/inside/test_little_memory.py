"""Where no memory is left, whatever is computed from a run ends in `DoesNotFitError`, as the run itself does."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import helpers
from helpers import generate_steps, trace
from helpers.batch.identity import model_sha256
from helpers.errors import DoesNotFitError
from helpers.models import fitting
from helpers.models.memory import run_bytes

IDS = torch.arange(1, 21)[None]


class NoMemory(TorchDispatchMode):
    """No tensor of more than `largest` bytes can be made, though views of what is there can."""

    largest = 100

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        there = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for made in tree_leaves(result):
            new = isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in there
            if new and made.nbytes > self.largest:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return result


COMPUTED = {
    "This trace": lambda model, tokenizer, run, parts: trace(model, tokenizer, IDS),
    "generate_steps": lambda model, tokenizer, run, parts: list(generate_steps(model, tokenizer, IDS)),
    "The lens": lambda model, tokenizer, run, parts: helpers.logit_lens(model, run),
    "direct_logit": lambda model, tokenizer, run, parts: helpers.direct_logit(model, parts, 5),
    "head_contributions": lambda model, tokenizer, run, parts: helpers.head_contributions(model, parts, 1),
    "head_scores": lambda model, tokenizer, run, parts: helpers.head_scores(run),
    "attention_rollout": lambda model, tokenizer, run, parts: helpers.attention_rollout(run.attentions),
    "The checksum of the weights": lambda model, tokenizer, run, parts: model_sha256(model),
}


@pytest.mark.parametrize("what", COMPUTED)
def test_running_out_of_memory_is_said(new_tiny, tokenizer, what):
    model = new_tiny("Llama")
    run, parts = trace(model, tokenizer, IDS), helpers.residual_contributions(model, tokenizer, IDS)
    with NoMemory(), pytest.raises(DoesNotFitError, match=f"^{what} ran out of memory on cpu") as error:
        COMPUTED[what](model, tokenizer, run, parts)
    assert error.value.needed_bytes > 100 and error.value.available_bytes > 0
    COMPUTED[what](model, tokenizer, run, parts)  # as soon as there is memory again


def test_the_lens_says_what_would_fit(new_tiny, tokenizer):
    model = new_tiny("Llama")
    run = trace(model, tokenizer, IDS, attentions=False)
    with NoMemory(), pytest.raises(DoesNotFitError, match="What would fit: the lens of one position") as error:
        helpers.logit_lens(model, run)
    found = helpers.logit_lens(model, run)
    assert error.value.needed_bytes > sum(part.nbytes for part in (found.token_ids, found.probabilities, found.entropy))


def test_a_picture_among_the_tokens_counts_with_what_its_tower_takes(tokenizer, monkeypatch):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower = CLIPVisionConfig(**{**sizes, "intermediate_size": 256}, image_size=56, patch_size=14)
    text = LlamaConfig(**sizes, vocab_size=len(tokenizer))
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_index=5)
    model = LlavaForConditionalGeneration(config).eval()
    ids, pixels = torch.tensor([[1, *[5] * 16, 7, 8, 9]]), torch.rand(1, 3, 56, 56)
    assert len(list(generate_steps(model, tokenizer, ids, pixel_values=pixels, max_new_tokens=2))) == 2
    free = run_bytes(model, 4, 8)
    monkeypatch.setattr(fitting, "available_bytes", lambda device: free)

    def out_of_memory(*args, **inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.model, "forward", out_of_memory)
    with pytest.raises(DoesNotFitError) as error:
        list(generate_steps(model, tokenizer, ids, pixel_values=pixels, max_new_tokens=8))
    assert error.value.needed_bytes == run_bytes(model, 20, 8, pictures=1) > run_bytes(model, 20, 8)
    assert error.value.would_fit == ("the prompt without pictures",)
