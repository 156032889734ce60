"""The patching sweep: equal to one patch at a time, and it leaves nothing behind."""

import pytest
import torch
from moved import Moved

from helpers.errors import BadInputError, DoesNotFitError
from helpers.inside import patching
from helpers.inside.interventions import patch_hidden_state, skip_attention
from helpers.inside.patching import patching_sweep
from helpers.inside.tracing import trace

PROMPT, SOURCE = [3, 17, 5, 44, 9], [3, 17, 30, 44, 9]


def score(model, ids, answer, against):
    logits = model(torch.tensor([ids])).logits[0, -1]
    return float(logits[answer] - logits[against])


def test_equal_to_one_patch_at_a_time(tiny, tokenizer):
    sweep = patching_sweep(tiny, tokenizer, PROMPT, SOURCE, answer=7, against=8)
    assert sweep.moved.shape == (4, 5) and sweep.layers == (0, 1, 2, 3) and sweep.part == "hidden_states"
    assert sweep.score == pytest.approx(score(tiny, PROMPT, 7, 8), abs=1e-5)
    assert sweep.source_score == pytest.approx(score(tiny, SOURCE, 7, 8), abs=1e-5)
    source = trace(tiny, tokenizer, SOURCE, attentions=False)
    stream = torch.cat([source.hidden_states[:-1], source.last_residual[None]])
    for layer in range(4):
        for position in range(5):
            with patch_hidden_state(tiny, layer, position, stream[layer, position]):
                moved = (score(tiny, PROMPT, 7, 8) - sweep.score) / (sweep.source_score - sweep.score)
            assert float(sweep.moved[layer, position]) == pytest.approx(moved, abs=1e-3)
    assert float(sweep.moved[0, 2]) == pytest.approx(1, abs=1e-3), "the embedding of the one token that differs"
    assert float(sweep.moved[-1, -1]) == pytest.approx(1, abs=1e-3), "the end of the stream"
    assert torch.allclose(sweep.moved[:, :2], torch.zeros(4, 2), atol=1e-4), "positions before it are alike in both"


@pytest.mark.parametrize("part", ["hidden_states", "attention", "mlp"])
def test_batches_of_any_size_give_the_same(tiny, tokenizer, monkeypatch, part):
    whole = patching_sweep(tiny, tokenizer, PROMPT, SOURCE, answer=7, against=8, part=part)
    for at_once in (1, 3, 7):  # the last two end within a layer
        monkeypatch.setattr(patching, "_most_at_once", lambda model, length, at_once=at_once: at_once)
        some = patching_sweep(tiny, tokenizer, PROMPT, SOURCE, answer=7, against=8, part=part)
        assert torch.allclose(some.moved, whole.moved, atol=1e-4)


def test_only_the_two_logits_of_each_patch_are_moved(tiny, tokenizer):
    trace(tiny, tokenizer, PROMPT)  # so that the model's parts are known
    with Moved() as moved:
        sweep = patching_sweep(tiny, tokenizer, PROMPT, SOURCE, answer=7, against=8)
    assert max(moved.sizes) == 2 * sweep.moved.nbytes, "20 patches, two float32 numbers each"


def test_the_heads_row_counts_as_memory(new_tiny):
    small, large = (patching._row_bytes(new_tiny("Llama", vocab_size=size), 5) for size in (64, 1064))
    assert large - small == 1000 * (4 + 4), "float32 logits, and one copy of them"


@pytest.mark.parametrize("most", [6, 0])
def test_a_batch_that_does_not_fit_is_halved(tiny, tokenizer, monkeypatch, most):
    whole = patching_sweep(tiny, tokenizer, PROMPT, SOURCE, answer=7, against=8)
    forward, batches = tiny.model.layers[2].mlp.forward, []
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in tiny.modules()]

    def little_memory(states):
        if len(states) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        batches.append(len(states))
        return forward(states)

    monkeypatch.setattr(tiny.model.layers[2].mlp, "forward", little_memory)
    if most:
        sweep = patching_sweep(tiny, tokenizer, PROMPT, SOURCE, answer=7, against=8)
        assert torch.allclose(sweep.moved, whole.moved, atol=1e-4)
        assert 1 < max(batches) <= 6
        return
    with pytest.raises(DoesNotFitError) as error:
        patching_sweep(tiny, tokenizer, PROMPT, SOURCE, answer=7, against=8)
    assert error.value.needed_bytes > 0
    assert hooks == [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in tiny.modules()]


@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_only_what_attention_or_the_mlp_writes(tiny, tokenizer, part):
    sweep = patching_sweep(tiny, tokenizer, PROMPT, SOURCE, answer=7, against=8, part=part, layers=[2])
    assert sweep.moved.shape == (1, 5) and sweep.layers == (2,)
    assert torch.allclose(sweep.moved[0, :-1], torch.zeros(4), atol=1e-4), "after the last layer nothing is read"
    name = "self_attn" if part == "attention" else "mlp"
    source = trace(tiny, tokenizer, SOURCE, outputs_of=[f"model.layers.2.{name}"]).outputs[f"model.layers.2.{name}"]

    def put(module, arguments, output):
        states = (output[0] if part == "attention" else output).clone()
        states[:, -1] = source[-1]
        return (states, *output[1:]) if part == "attention" else states

    with getattr(tiny.model.layers[2], name).register_forward_hook(put):
        moved = (score(tiny, PROMPT, 7, 8) - sweep.score) / (sweep.source_score - sweep.score)
    assert float(sweep.moved[0, -1]) == pytest.approx(moved, abs=1e-3)


def test_the_answers_are_found(model, tokenizer):
    sweep = patching_sweep(
        model, tokenizer, "The capital of Germany is", "The capital of France is", layers=[0, 10, 30]
    )
    assert sweep.tokens[3] == "·Germany" and sweep.source_tokens[3] == "·France"
    assert sweep.score < 0 < sweep.source_score
    assert float(sweep.moved[1, 3]) > 0.8 and abs(float(sweep.moved[1, 4])) < 0.3
    assert float(sweep.moved[2, 4]) == pytest.approx(1, abs=1e-3)


def test_the_model_is_as_before_also_after_an_error(tiny, tokenizer):
    before = tiny(torch.tensor([PROMPT])).logits
    with pytest.raises(RuntimeError), tiny.model.layers[2].register_forward_hook(_interrupt_a_batch):
        patching_sweep(tiny, tokenizer, PROMPT, SOURCE, answer=7, against=8)
    assert torch.equal(tiny(torch.tensor([PROMPT])).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.modules())


def _interrupt_a_batch(module, arguments, output):
    if output.shape[0] > 1:
        raise RuntimeError("interrupted")


def test_active_interventions_act_in_it(tiny, tokenizer):
    nothing = pytest.raises(BadInputError, match="a patch cannot move the answer")
    with nothing, skip_attention(tiny, 0), skip_attention(tiny, 1), skip_attention(tiny, 2):
        patching_sweep(tiny, tokenizer, PROMPT, SOURCE, answer=7, against=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": [3, 17, 5]}, "The prompts have 5 and 3 tokens"),
        ({"source": PROMPT}, "a patch cannot move the answer"),
        ({"part": "head"}, "hidden_states, attention, mlp, not 'head'"),
        ({"layers": [4]}, "no layer 4 of hidden_states: they run from 0 to 3"),
        ({"layers": [3], "part": "mlp"}, "from 0 to 2"),
        ({"answer": 64}, "no token id 64"),
        ({"answer": 8}, "answered with token 8"),
        ({"prompt": ""}, "prompt is empty"),
    ],
)
def test_what_cannot_work(tiny, tokenizer, change, message):
    settings = {"prompt": PROMPT, "source": SOURCE, "answer": 7, "against": 8} | change
    with pytest.raises(BadInputError, match=message):
        patching_sweep(tiny, tokenizer, settings.pop("prompt"), settings.pop("source"), **settings)
