"""Pictures through generate, loops by hand, KV caches kept and cut, and a look inside."""

import copy

import pytest
import torch
from glm_fixtures import (
    CHAT,
    FOLDER,
    TOLERANCE,
    VISION,
    glm,
    glm_processor,
    glm_tokenizer,
    golden,
    model_inputs,
    one_thread,
    tensors,
)
from torch.nn import functional as F
from transformers import DynamicCache

from helpers.errors import BadInputError, DoesNotFitError
from helpers.glm.modeling import cached_picture
from helpers.inside.generation import generate_steps
from helpers.inside.tracing import trace
from helpers.models import fitting
from helpers.models.cache_size import kv_cache_bytes
from helpers.models.memory import run_bytes
from helpers.models.vision_memory import vision_bytes

GREEDY = {"do_sample": False, "max_new_tokens": 20}
PATCHES = 9


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(params=["sdpa", "eager"])
def model(request):
    return glm(VISION, request.param)


@pytest.fixture
def prompt():
    given = tensors(VISION)
    return {"input_ids": given["greedy/image_first/input_ids"], "pixel_values": given["image/rgb_wide/images"]}


def wanted(tag):
    records = golden(VISION)["greedy"] + golden(VISION)["batch"]
    return next(record["new_ids"] for record in records if record["tag"] == tag)


def answer(model, inputs, **settings):
    return model.generate(**inputs, **(GREEDY | settings))[:, inputs["input_ids"].shape[1] :].tolist()


# generate


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"cache_implementation": "dynamic"},
        {"prompt_lookup_num_tokens": 3},
        {"do_sample": True, "top_k": 1},
        {"num_return_sequences": 1},
    ],
    ids=str,
)
def test_every_way_of_generating_gives_the_same(model, prompt, settings):
    assert answer(model, prompt, **settings) == [wanted("image_first")]


@pytest.mark.parametrize("settings", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_padded_pictures(model, settings):
    inputs = model_inputs(VISION, golden(VISION)["batch"][1]["conversations"])
    assert (inputs["attention_mask"] == 0).any()
    assert answer(model, inputs, **settings, max_new_tokens=12) == wanted("batch/image")
    inputs.pop("position_ids")
    assert answer(model, inputs, **settings, max_new_tokens=12) == wanted("batch/image")


def test_beams_with_and_without_cache(model, prompt):
    settings = {"num_beams": 3, "max_new_tokens": 8}
    assert answer(model, prompt, **settings) == answer(model, prompt, **settings, use_cache=False)


def test_several_samples_of_one_picture(model, prompt):
    torch.manual_seed(0)
    samples = answer(model, prompt, do_sample=True, num_return_sequences=3, max_new_tokens=6)
    assert len(samples) == 3
    assert samples[0] != samples[1]


def test_lengths_count_the_prompt_as_it_was_given(model, prompt):
    length = prompt["input_ids"].shape[1]
    output = model.generate(**prompt, do_sample=False, max_length=length + 5)
    assert output[0].tolist() == prompt["input_ids"][0].tolist() + wanted("image_first")[:5]


def test_a_text_after_a_picture_and_a_text_alone(model):
    given = tensors(VISION)
    model.generate(input_ids=given["image/rgb_wide/input_ids"], pixel_values=given["image/rgb_wide/images"], **GREEDY)
    assert answer(model, {"input_ids": given["greedy/single_zh/input_ids"]}) == [wanted("single_zh")]
    assert answer(glm(CHAT), {"input_ids": tensors(CHAT)["greedy/single_zh/input_ids"]}) == [
        golden(CHAT)["greedy"][0]["new_ids"]
    ]


def test_step_by_step_as_on_any_model(model, prompt):
    steps = list(
        generate_steps(
            model,
            glm_tokenizer(VISION),
            prompt["input_ids"],
            pixel_values=prompt["pixel_values"],
            max_new_tokens=20,
            eos_token_id=[],
        )
    )
    assert [step.token_id for step in steps] == wanted("image_first")
    seen = model.expand_inputs(**prompt)
    assert torch.equal(steps[0].input_ids, seen.input_ids)
    assert torch.equal(steps[0].position_ids, seen.position_ids)
    assert [step.kv_length for step in steps[:3]] == [20, 21, 22]
    assert [step.position_ids.tolist() for step in steps[1:3]] == [[[12]], [[13]]]
    expected = tensors(VISION)["greedy/image_first/step_logits"][0]
    assert (torch.stack([step.logits for step in steps]) - expected).abs().max() <= TOLERANCE


# What the model sees


def test_expanded_inputs(model, prompt):
    seen = model.expand_inputs(**prompt)
    place = prompt["input_ids"][0].tolist().index(model.config.boi_token_id)
    assert seen.input_ids.shape == (1, prompt["input_ids"].shape[1] + PATCHES - 1)
    assert seen.patch_index[0].tolist() == [-1] * (place + 1) + [*range(PATCHES)] + [-1] * 6
    assert set(seen.position_ids[seen.patch_index >= 0].tolist()) == {place + 1}
    assert seen.picture_mask[0].nonzero().flatten().tolist() == list(range(place, place + PATCHES + 2))
    assert seen.attention_mask.min() == 1
    assert seen.labels is None
    again = model.expand_inputs(seen.input_ids, prompt["pixel_values"])
    assert torch.equal(again.input_ids, seen.input_ids)
    assert torch.equal(again.position_ids, seen.position_ids)
    assert torch.equal(again.patch_index, seen.patch_index)
    text = model.expand_inputs(prompt["input_ids"])
    assert torch.equal(text.input_ids, prompt["input_ids"])
    assert not text.picture_mask.any()


@pytest.mark.parametrize("tag", ["batch/text", "batch/image"])
def test_positions_from_the_mask_are_those_of_the_tokenizer(tag):
    given = tensors(VISION)
    seen = glm(VISION).expand_inputs(
        given[f"{tag}/input_ids"], given.get(f"{tag}/images"), attention_mask=given[f"{tag}/attention_mask"]
    )
    assert torch.equal(seen.position_ids, given[f"{tag}/used_position_ids"])
    assert torch.equal(seen.attention_mask, given.get(f"{tag}/expanded_attention_mask", seen.attention_mask))


def test_expanded_labels(model, prompt):
    seen = model.expand_inputs(**prompt, labels=prompt["input_ids"])
    assert (seen.labels[seen.patch_index >= 0] == -100).all()
    assert torch.equal(seen.labels[seen.patch_index < 0], seen.input_ids[seen.patch_index < 0])


def test_expanded_ids_give_the_same_logits(model, prompt):
    seen = model.expand_inputs(**prompt)
    with torch.inference_mode():
        logits = model(input_ids=seen.input_ids, pixel_values=prompt["pixel_values"]).logits
    assert (logits - tensors(VISION)["image/rgb_wide/logits"]).abs().max() <= TOLERANCE


def test_the_base_model_takes_pictures_too(model, prompt):
    with torch.inference_mode():
        states = model.model(**prompt, use_cache=False).last_hidden_state
        pair = model.model(**prompt, return_dict=False)
    assert (states - tensors(VISION)["image/rgb_wide/last_hidden_state"]).abs().max() <= TOLERANCE
    assert torch.allclose(pair[0], states)


def test_logits_of_some_positions_only(model, prompt):
    with torch.inference_mode():
        logits = model(**prompt, logits_to_keep=2).logits
    assert (logits - tensors(VISION)["image/rgb_wide/logits"][:, -2:]).abs().max() <= TOLERANCE


def without_place(ids):
    return ids[:, ids[0] != 810]


def two_placeholders(ids):
    return torch.cat([ids[:, :5], ids[:, 5:6], ids[:, 5:]], dim=1)


@pytest.mark.parametrize(
    ("ids", "pixels", "message"),
    [
        (without_place, lambda p: p, "a prompt has no place for it"),
        (two_placeholders, lambda p: p, "holds 2 ids: it must be 1 placeholder, or 9"),
        (lambda i: i.repeat(2, 1), lambda p: p, r"shape \[1, 3, 84, 84\].*must be \[2, 3, 84, 84\]"),
        (lambda i: i, lambda p: p.repeat(2, 1, 1, 1), r"must be \[1, 3, 84, 84\]"),
        (lambda i: i, lambda p: p[0], r"shape \[3, 84, 84\]"),
        (lambda i: i, lambda p: p[..., :70, :70], r"shape \[1, 3, 70, 70\]"),
    ],
    ids="place placeholders prompts pictures batch size".split(),
)
def test_pictures_that_do_not_fit_the_prompt(prompt, ids, pixels, message):
    inputs = {"input_ids": ids(prompt["input_ids"]), "pixel_values": pixels(prompt["pixel_values"])}
    with pytest.raises(BadInputError, match=message):
        glm(VISION)(**inputs)
    with pytest.raises(BadInputError, match=message):
        glm(VISION).generate(**inputs, **GREEDY)


def test_expanded_and_given_prompts_do_not_mix(prompt):
    ids, count = prompt["input_ids"], PATCHES
    seen = glm(VISION).expand_inputs(**prompt).input_ids
    padded = F.pad(ids, (count - 1, 0), value=800)
    with pytest.raises(BadInputError, match="use only one kind"):
        glm(VISION).expand_inputs(torch.cat([seen, padded]), prompt["pixel_values"].repeat(2, 1, 1, 1))


def test_a_model_without_eyes_says_so(prompt):
    with pytest.raises(BadInputError, match="takes text only"):
        glm(CHAT)(**prompt)


# Loops by hand


@pytest.mark.parametrize("with_mask", [False, True])
def test_a_loop_by_hand_needs_nothing_special(model, prompt, with_mask):
    mask = torch.ones_like(prompt["input_ids"])
    found = []
    with torch.inference_mode():
        outputs = model(**prompt, use_cache=True)
        for _ in range(20):
            token = outputs.logits[:, -1].argmax(dim=-1, keepdim=True)
            found.append(int(token))
            mask = F.pad(mask, (0, 1), value=1)
            masks = {"attention_mask": mask} if with_mask else {}
            outputs = model(input_ids=token, past_key_values=outputs.past_key_values, use_cache=True, **masks)
    assert found == wanted("image_first")


def test_a_loop_by_hand_over_a_padded_batch(model):
    inputs = model_inputs(VISION, golden(VISION)["batch"][1]["conversations"])
    mask, found = inputs["attention_mask"], []
    with torch.inference_mode():
        outputs = model(**inputs, use_cache=True)
        for _ in range(12):
            token = outputs.logits[:, -1].argmax(dim=-1, keepdim=True)
            found.append(token)
            mask = F.pad(mask, (0, 1), value=1)
            outputs = model(input_ids=token, attention_mask=mask, past_key_values=outputs.past_key_values)
    assert torch.cat(found, dim=1).tolist() == wanted("batch/image")


# KV caches


def test_a_cached_text_and_then_a_picture(model, prompt):
    """The picture may come after the cached part, at once after it or later."""
    expected = tensors(VISION)["image/rgb_wide/logits"]
    for cut in (2, 4):
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(input_ids=prompt["input_ids"][:, :cut], past_key_values=cache)
            rest = {"input_ids": prompt["input_ids"][:, cut:], "pixel_values": prompt["pixel_values"]}
            logits = model(**rest, past_key_values=cache).logits
        assert (logits - expected[:, cut:]).abs().max() <= TOLERANCE
    settings = {"past_key_values": cache, "max_new_tokens": 1}
    cache.crop(4 - cache.get_seq_length())
    assert answer(model, prompt, **settings) == [wanted("image_first")[:1]]


@torch.no_grad()
@pytest.mark.parametrize("again", [True, False], ids=["picture given again", "picture not given again"])
def test_the_next_turn_from_the_cache_of_the_last(model, prompt, again):
    """Same tokens as without the cache, and the tower is not run again."""
    longer = tensors(VISION)["greedy/image_first_followup/input_ids"]
    shared = prompt["input_ids"].shape[1]
    assert torch.equal(longer[:, :shared], prompt["input_ids"])
    cache, looks = DynamicCache(config=model.config), []
    hook = model.model.vision.register_forward_hook(lambda *args: looks.append(1))
    model(**prompt, past_key_values=cache)
    inputs = {"input_ids": longer, "pixel_values": prompt["pixel_values"]} if again else {"input_ids": longer}
    assert answer(model, inputs, past_key_values=copy.deepcopy(cache)) == [wanted("image_first_followup")]
    logits = model(input_ids=longer[:, shared:], past_key_values=copy.deepcopy(cache)).logits
    hook.remove()
    assert len(looks) == 1
    assert (logits - tensors(VISION)["image/followup/logits"][:, -logits.shape[1] :]).abs().max() <= TOLERANCE


def test_a_cache_cut_before_the_picture_has_none(model, prompt):
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(**prompt, past_key_values=cache)
        assert cache.get_seq_length() == 20
        assert (cached_picture(cache).stop, cached_picture(cache).repeated_positions) == (15, 8)
        cache.crop(-(20 - 4))
        assert cached_picture(cache) is None
        rest = {"input_ids": prompt["input_ids"][:, 4:], "pixel_values": prompt["pixel_values"]}
        logits = model(**rest, past_key_values=cache).logits
    assert (logits - tensors(VISION)["image/rgb_wide/logits"][:, 4:]).abs().max() <= TOLERANCE
    assert cached_picture(cache).stop == 15
    assert cached_picture(None) is None


# A look inside


def test_attentions_and_hidden_states_of_the_expanded_prompt(prompt):
    model = glm(VISION, "eager")
    with torch.inference_mode():
        outputs = model(**prompt, output_attentions=True, output_hidden_states=True)
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(1, 4, 20, 20)] * 3
    assert [tuple(states.shape) for states in outputs.hidden_states] == [(1, 20, 64)] * 4
    assert torch.allclose(torch.stack(outputs.attentions).sum(-1), torch.ones(3, 1, 4, 20))
    settings = {"output_attentions": True, "return_dict_in_generate": True, "max_new_tokens": 3, "do_sample": False}
    steps = model.generate(**prompt, **settings).attentions
    assert [tuple(step[0].shape) for step in steps] == [(1, 4, 20, 20), (1, 4, 1, 21), (1, 4, 1, 22)]


def test_a_trace_with_a_picture(model, prompt):
    given = tensors(VISION)
    seen = trace(model, glm_tokenizer(VISION), prompt["input_ids"], pixel_values=prompt["pixel_values"])
    assert (seen.logits - given["image/rgb_wide/logits"][0]).abs().max() <= TOLERANCE
    assert (seen.hidden_states[:-1] - given["image/rgb_wide/hidden_states"][:-1, 0]).abs().max() <= TOLERANCE
    assert seen.attentions.shape == (3, 4, 20, 20)
    assert seen.tokens[3:7] == ("⏎", "<|begin_of_image|>", "▦ 0,0", "▦ 0,1")


@torch.no_grad()
def test_the_towers_own_attentions(prompt):
    """Asked for, they are those that made the output; the language model's implementation does not matter."""
    vision = glm(VISION).model.vision
    plain = vision(prompt["pixel_values"])
    output = vision(prompt["pixel_values"], output_attentions=True, output_hidden_states=True)
    layer = vision.transformer["layers"][0]
    states, weights = output.hidden_states[0], output.attentions[0]
    value = layer.attention.query_key_value(states)[..., 2 * 48 :].unflatten(-1, (4, 12)).transpose(1, 2)
    attended = layer.attention.dense((weights @ value).transpose(1, 2).flatten(2))
    assert plain.attentions is plain.hidden_states is None
    assert [tuple(w.shape) for w in output.attentions] == [(1, 4, 37, 37)] * 2
    assert [tuple(h.shape) for h in output.hidden_states] == [(1, 37, 48)] * 3
    assert torch.allclose(weights.sum(-1), torch.ones(1, 4, 37))
    assert torch.allclose(output.last_hidden_state, plain.last_hidden_state, atol=TOLERANCE)
    states = states + layer.input_layernorm(attended)
    states = states + layer.post_attention_layernorm(layer.mlp(states))
    assert torch.allclose(states, output.hidden_states[1], atol=TOLERANCE)


def test_the_modules_have_the_names_that_tools_look_for(model):
    assert len(model.model.layers) == model.config.num_hidden_layers == 3
    assert model.get_input_embeddings() is model.model.embed_tokens
    assert model.get_output_embeddings() is model.lm_head
    assert model.config.get_text_config() is model.config
    assert type(model.model.layers[0]).__module__ == "transformers.models.glm.modeling_glm"


def test_what_the_processor_gives_goes_into_generate():
    messages = [{"role": "user", "image": FOLDER / VISION / "images" / "rgb_wide.png", "content": "描述一下这张图片"}]
    inputs = glm_processor(VISION).apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    assert answer(glm(VISION), inputs) == [wanted("image_first")]


# too little memory


def out_of_memory(*args, **inputs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def refused(model, prompt, **inputs):
    with pytest.raises(DoesNotFitError) as error:
        list(generate_steps(model, glm_tokenizer(VISION), prompt["input_ids"], max_new_tokens=8, **inputs))
    return error.value


def test_running_out_of_memory_counts_the_picture_and_its_positions(prompt, monkeypatch):
    model, pixels = glm(VISION, "sdpa"), prompt["pixel_values"]
    length, seen = prompt["input_ids"].shape[1], model.expand_inputs(**prompt).input_ids.shape[1]
    monkeypatch.setattr(model.model, "forward", out_of_memory)
    monkeypatch.setattr(model.config.vision_config, "intermediate_size", 10_000)  # takes more than all the rest
    error = refused(model, prompt, pixel_values=pixels)
    assert error.needed_bytes == run_bytes(model, seen, 8, pictures=1)
    assert error.needed_bytes >= kv_cache_bytes(model.config, seen + 8) + vision_bytes(model.config, 1, "float32")
    assert error.would_fit == ("max_new_tokens=4", "the prompt without pictures")
    assert "a prompt of" not in str(error)
    without = run_bytes(model, length - 1, 8)  # the placeholder is one of the picture's positions
    monkeypatch.setattr(fitting, "available_bytes", lambda device: without)
    assert refused(model, prompt, pixel_values=pixels).would_fit == ("the prompt without pictures",)
    monkeypatch.setattr(fitting, "available_bytes", lambda device: 0)
    assert str(refused(model, prompt, pixel_values=pixels)).endswith("is free on cpu. Use a smaller model.")


def test_a_picture_in_the_cache_is_not_read_again_and_not_counted(prompt, monkeypatch):
    model, pixels, cache = glm(VISION, "sdpa"), prompt["pixel_values"], DynamicCache()
    settings = {"pixel_values": pixels, "past_key_values": cache}
    list(generate_steps(model, glm_tokenizer(VISION), prompt["input_ids"], max_new_tokens=1, **settings))
    longer = {"input_ids": torch.cat([prompt["input_ids"], torch.tensor([[1, 2]])], dim=1)}
    seen = model.expand_inputs(**longer, pixel_values=pixels).input_ids.shape[1]
    monkeypatch.setattr(model.model, "forward", out_of_memory)
    monkeypatch.setattr(model.config.vision_config, "intermediate_size", 10_000)  # takes more than all the rest
    assert refused(model, longer, **settings).needed_bytes == run_bytes(model, seen, 8)
    assert run_bytes(model, seen, 8) < run_bytes(model, seen, 8, pictures=1)
