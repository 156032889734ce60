"""Where no memory is left, whatever is computed from a run ends in `DoesNotFitError`, as the run itself does."""

from dataclasses import replace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import helpers
from helpers import generate_steps, trace
from helpers.batch.identity import model_sha256
from helpers.errors import BadInputError, DoesNotFitError
from helpers.inside import comparisons, contributions
from helpers.inside.keeping import Keeper
from helpers.inside.lens import plain_lens
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
    "plain_lens": lambda model, tokenizer, run, parts: plain_lens(model, run),
    "residual_contributions": lambda model, tokenizer, run, parts: helpers.residual_contributions(
        model, tokenizer, IDS
    ),
    "running_sum": lambda model, tokenizer, run, parts: parts.running_sum(),
    "Moving this trace": lambda model, tokenizer, run, parts: on_the_device(run).to("cpu"),
    "Keeping this run": lambda model, tokenizer, run, parts: comparisons.run_prompt(model, tokenizer, IDS),
    "direct_logit": lambda model, tokenizer, run, parts: helpers.direct_logit(model, parts, 5),
    "head_contributions": lambda model, tokenizer, run, parts: helpers.head_contributions(model, parts, 1),
    "head_scores": lambda model, tokenizer, run, parts: helpers.head_scores(run),
    "attention_rollout": lambda model, tokenizer, run, parts: helpers.attention_rollout(run.attentions),
    "The checksum of the weights": lambda model, tokenizer, run, parts: model_sha256(model),
}


def on_the_device(run):
    """A trace that is not on the CPU."""
    return replace(run, hidden_states=run.hidden_states.as_subclass(OnTheDevice))


class OnTheDevice(torch.Tensor):
    """A tensor that has to be copied to reach the CPU."""

    def to(self, device):
        return self.as_subclass(torch.Tensor).clone()


@pytest.fixture
def runs_fit(monkeypatch):
    """What follows a run has no memory, the run itself has."""

    def run(*arguments, **settings):
        with _disable_current_modes():
            return trace(*arguments, **settings)

    for room in (comparisons, contributions):
        monkeypatch.setattr(room, "trace", run)


@pytest.mark.parametrize("what", COMPUTED)
def test_running_out_of_memory_is_said(new_tiny, tokenizer, what, runs_fit):
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


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), MemoryError()])
def test_the_first_look_at_a_model_does_not_blame_the_model(new_tiny, tokenizer, error):
    model = new_tiny("Llama")

    def fail(*_):
        raise error

    with (
        model.model.layers[1].mlp.register_forward_pre_hook(fail),
        pytest.raises(DoesNotFitError, match="A first look at the parts of LlamaForCausalLM ran out of memory on cpu"),
    ):
        trace(model, tokenizer, IDS)
    assert trace(model, tokenizer, IDS).logits is not None, "it is not remembered as a model that cannot be read"


def test_a_trace_that_fails_leaves_nothing_in_memory(new_tiny, tokenizer, monkeypatch):
    """Neither when what is free is measured nor afterwards, while IPython keeps the error."""
    model = new_tiny("Llama")
    trace(model, tokenizer, IDS)
    made, alive = [], []
    empty = Keeper.empty

    def fail(*_):
        assert any(not storage.expired() for storage in made)
        raise torch.OutOfMemoryError("CUDA out of memory")

    def watched(*arguments):
        tensor = empty(*arguments)
        made.append(StorageWeakRef(tensor.untyped_storage()))
        return tensor

    def available_bytes(device):
        alive.append(sum(not storage.expired() for storage in made))
        return 10**9

    monkeypatch.setattr(Keeper, "empty", watched)
    monkeypatch.setattr(fitting, "available_bytes", available_bytes)
    last = model.model.layers[-1].mlp
    with last.register_forward_hook(fail), pytest.raises(DoesNotFitError) as error:
        trace(model, tokenizer, IDS, outputs_of=["model.layers.0.mlp"])
    assert len(made) == 3 and set(alive) == {0}, "hidden states, attentions, the module's output"
    assert all(storage.expired() for storage in made) and error.value.__traceback__ is not None


def test_what_follows_a_run_does_not_keep_the_run(new_tiny, tokenizer, monkeypatch):
    model = new_tiny("Llama")
    trace(model, tokenizer, IDS)
    made, alive = [], []

    def run(*arguments, **settings):
        with _disable_current_modes():
            result = trace(*arguments, **settings)
        made.append(StorageWeakRef(result.last_residual.untyped_storage()))
        return result

    def available_bytes(device):
        alive.append(made[0].expired())
        return 10**9

    monkeypatch.setattr(contributions, "trace", run)
    monkeypatch.setattr(fitting, "available_bytes", available_bytes)
    with NoMemory(), pytest.raises(DoesNotFitError, match="What would fit: one position"):
        helpers.residual_contributions(model, tokenizer, IDS)
    assert alive == [True]


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", 3])
def test_a_trace_is_moved_only_to_a_device_that_is_there(new_tiny, tokenizer, device):
    run = trace(new_tiny("Llama"), tokenizer, IDS)
    with pytest.raises(BadInputError, match=r"device|available"):
        run.to(device)
