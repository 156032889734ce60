"""The course's tools on GLM-4V, on a text and with a picture: lens, KV cache, interventions, steps."""

import pytest
import torch
from glm_fixtures import TOLERANCE, VISION, glm, glm_tokenizer, one_thread, tensors

from helpers.inside.generation import generate_steps
from helpers.inside.interventions import ablate_heads, patch_hidden_state, skip_attention, skip_layer, skip_mlp, steer
from helpers.inside.kv_cache import kv_cache_norms, kv_cache_summary
from helpers.inside.lens import logit_lens
from helpers.inside.tracing import trace
from helpers.models.cache_size import kv_cache_bytes

LAYERS, HEADS, PATCHES = 3, 4, 9


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread(), torch.no_grad():
        yield


@pytest.fixture(params=["sdpa", "eager"])
def model(request):
    return glm(VISION, request.param)


@pytest.fixture(params=["text", "picture"])
def prompt(request):
    """`input_ids`, and `pixel_values` beside them where there is a picture."""
    given = tensors(VISION)
    if request.param == "text":
        return {"input_ids": given["greedy/single_zh/input_ids"]}
    return {"input_ids": given["greedy/image_first/input_ids"], "pixel_values": given["image/rgb_wide/images"]}


def traced(model, prompt, **settings):
    more = {name: value for name, value in prompt.items() if name != "input_ids"}
    return trace(model, glm_tokenizer(VISION), prompt["input_ids"], **more, **settings)


def seen_length(prompt):
    return prompt["input_ids"].shape[1] + (PATCHES - 1 if "pixel_values" in prompt else 0)


def test_a_trace_is_what_the_library_gives(prompt):
    model = glm(VISION, "eager")
    run = traced(model, prompt)
    library = model(**prompt, output_hidden_states=True, output_attentions=True)
    assert len(run.tokens) == seen_length(prompt)
    assert torch.allclose(run.hidden_states, torch.stack(library.hidden_states)[:, 0], atol=TOLERANCE)
    assert torch.allclose(run.attentions, torch.stack(library.attentions)[:, 0], atol=TOLERANCE)
    assert torch.allclose(run.logits, library.logits[0], atol=TOLERANCE)
    patches = [label for label in run.tokens if label.startswith("▦")]
    assert patches == ([f"▦ {row},{column}" for row in range(3) for column in range(3)] if len(prompt) > 1 else [])


def test_the_lens_reads_every_position(model, prompt):
    run = traced(model, prompt)
    lens = logit_lens(model, run, top_k=3)
    assert lens.token_ids.shape == (LAYERS + 1, seen_length(prompt), 3)
    assert torch.equal(lens.token_ids[-1, :, 0], run.logits.argmax(dim=-1))
    early = model.lm_head(model.model.norm(run.hidden_states[1])).softmax(dim=-1)
    assert torch.allclose(lens.probabilities[1], early.topk(3).values, atol=TOLERANCE)


def test_the_cache_holds_the_patches_too(model, prompt):
    cache = model(**prompt, use_cache=True).past_key_values
    summary = kv_cache_summary(cache)
    length = seen_length(prompt)
    head_dim = model.config.head_dim
    assert summary.length == length
    assert {layer.keys for layer in summary.layers} == {(1, model.config.num_key_value_heads, length, head_dim)}
    assert summary.nbytes == kv_cache_bytes(model.config, length)
    assert kv_cache_norms(cache).keys.shape == (LAYERS, length)


def test_steps_are_those_of_generate(model, prompt):
    more = {name: value for name, value in prompt.items() if name != "input_ids"}
    steps = list(generate_steps(model, glm_tokenizer(VISION), prompt["input_ids"], max_new_tokens=6, **more))
    output = model.generate(**prompt, do_sample=False, max_new_tokens=6)
    assert [step.token_id for step in steps] == output[0, prompt["input_ids"].shape[1] :].tolist()
    assert steps[0].kv_length == seen_length(prompt)


def test_ablated_heads_add_nothing_and_come_back(model, prompt):
    before = model(**prompt).logits
    name = "model.layers.1.self_attn.o_proj"
    with ablate_heads(model, [(1, 2)]):
        run = traced(model, prompt, inputs_of=[name])
        ablated = model(**prompt).logits
    head = run.inputs[name].view(seen_length(prompt), HEADS, -1)[:, 2]
    assert head.abs().max() == 0
    assert (run.logits - ablated[0]).abs().max() <= TOLERANCE
    assert (ablated - before).abs().max() > 1e-3
    assert torch.equal(model(**prompt).logits, before)


@pytest.mark.parametrize("skip", [skip_layer, skip_attention, skip_mlp])
def test_skipped_parts_and_steering(model, prompt, skip):
    before = model(**prompt).logits
    plain = traced(model, prompt).hidden_states
    with skip(model, 1):
        skipped = traced(model, prompt).hidden_states
        answered = model.generate(**prompt, do_sample=False, max_new_tokens=2)
    assert torch.allclose(skipped[1], plain[1], atol=TOLERANCE)
    assert torch.equal(skipped[2], skipped[1]) == (skip is skip_layer)
    assert (skipped[2] - plain[2]).abs().max() > 1e-3
    assert answered.shape[1] == prompt["input_ids"].shape[1] + 2
    with steer(model, 2, torch.ones(plain.shape[-1])):
        steered = traced(model, prompt).hidden_states
    assert torch.allclose(steered[2], plain[2] + 1, atol=TOLERANCE)
    assert torch.equal(model(**prompt).logits, before)


def test_another_pictures_embeddings_give_the_other_pictures_answer(model):
    """Patching the picture's positions at layer 0 is as good as showing the other picture."""
    given = tensors(VISION)
    ids = given["greedy/image_first/input_ids"]
    one, other = ({"input_ids": ids, "pixel_values": given[f"image/{name}/images"]} for name in ("rgb_wide", "gray"))
    here, there = traced(model, one), traced(model, other)
    assert (here.logits[-1] - there.logits[-1]).abs().max() > 0.01
    picture = (here.patch_index >= 0).nonzero().flatten().tolist()
    assert len(picture) == PATCHES
    value = there.hidden_states[0][picture]
    with patch_hidden_state(model, 0, picture, value):
        swapped = traced(model, one)
    assert (swapped.logits[picture[-1] :] - there.logits[picture[-1] :]).abs().max() <= TOLERANCE
