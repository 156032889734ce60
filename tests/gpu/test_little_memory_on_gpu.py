"""Running out of a device's memory: `DoesNotFitError`, with the model as it was and nothing left behind."""

import gc

import pytest
import torch
from gpu_models import prompt

import helpers
from helpers import generate_steps, load_model, logit_lens, trace
from helpers.batch.engines import GenerationSettings, Prompt, TransformersEngine
from helpers.errors import DoesNotFitError

MB = 1_000_000
LONG = prompt(2048)


def test_running_out_of_memory_is_said_and_leaves_the_model_as_it_was(exact, letters, little_memory, device):
    ids = prompt(64)
    with torch.no_grad():
        before = exact(ids.to(device)).logits.clone()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in exact.modules()]
    little_memory(200 * MB)
    with pytest.raises(DoesNotFitError, match="ran out of memory on cuda:0") as error:
        trace(exact, letters, prompt(2048))
    assert error.value.needed_bytes > 10**9 and error.value.would_fit
    little_memory(10**9)
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in exact.modules()] == hooks
    with torch.no_grad():
        assert torch.equal(exact(ids.to(device)).logits, before)
    assert trace(exact, letters, ids).device == device


def test_what_was_kept_is_not_left_behind(exact, letters, little_memory, device):
    trace(exact, letters, prompt(64), attentions=False)  # what is set up once is set up here
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    little_memory(200 * MB)
    with pytest.raises(DoesNotFitError) as error:
        trace(exact, letters, LONG)
    left = torch.cuda.memory_allocated(device) - before  # while the error is still there
    assert left < 10 * MB, "more than the input of the layer that failed, which takes 5 MB"
    assert error.value.available_bytes > 190 * MB


@pytest.mark.parametrize("room", [20 * MB, 200 * MB])
def test_loading(exact, little_memory, device, tmp_path, room, monkeypatch):
    """It needs 540 MB. The plan, which is told that there is enough, lets it begin."""
    exact.save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10**10, 10**10))
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    little_memory(room)
    with pytest.raises(DoesNotFitError, match=r"^Loading .* needs 53[89] MB"):
        load_model(tmp_path, device=str(device), dtype="float32")
    assert torch.cuda.memory_allocated(device) - before < MB


COMPUTED = {
    "generate_steps": lambda model, letters, run: list(generate_steps(model, letters, LONG, max_new_tokens=2)),
    "logit_lens": lambda model, letters, run: logit_lens(model, run),
    "residual_contributions": lambda model, letters, run: helpers.residual_contributions(model, letters, LONG),
    "head_scores": lambda model, letters, run: helpers.head_scores(run),
    "attention_rollout": lambda model, letters, run: helpers.attention_rollout(run.attentions),
    "hidden_state_explorer": lambda model, letters, run: helpers.hidden_state_explorer(model, letters, LONG),
}


@pytest.mark.parametrize("what", COMPUTED)
def test_what_is_computed_on_the_device(exact, letters, little_memory, what):
    if what.endswith("explorer"):
        pytest.importorskip("anywidget")
        pytest.importorskip("notojp_matplotlib")
    run = trace(exact, letters, prompt(600))
    little_memory(2 * MB)
    with pytest.raises(DoesNotFitError, match="ran out of memory on cuda:0") as error:
        COMPUTED[what](exact, letters, run)
    assert error.value.needed_bytes > 2 * MB
    little_memory(2000 * MB)
    assert trace(exact, letters, prompt(64)).logits.isfinite().all()


def test_a_batch_is_halved_and_goes_on(exact, letters, little_memory, capsys):
    """A prompt of 500 tokens takes about 40 MB."""
    prompts = [Prompt(number, "", input_ids=prompt(500 + number)[0].tolist()) for number in range(8)]
    settings = GenerationSettings(do_sample=False, max_new_tokens=3)
    alone = dict(TransformersEngine(exact, letters, batch_size=1).generate(iter(prompts), settings))
    little_memory(150 * MB)
    answers = dict(TransformersEngine(exact, letters, batch_size=8).generate(iter(prompts), settings))
    assert "does not fit in memory: continuing with" in capsys.readouterr().err
    assert answers == alone
