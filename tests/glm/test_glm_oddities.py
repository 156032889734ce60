"""What GLM-4(V) does differently from what one would write: done the usual way, the numbers come out wrong.

Each test changes one thing to the usual way and sees the distance to the golden numbers jump.
"""

import base64
import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from glm_fixtures import (
    CHAT,
    TOLERANCE,
    VISION,
    change_json,
    checkpoint,
    copy_of,
    glm,
    glm_tokenizer,
    golden,
    one_thread,
    tensors,
)
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer

from helpers.errors import BadInputError, DamagedFilesError
from helpers.glm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMModel
from helpers.glm import vision as vision_module
from helpers.glm.tokenization import read_ranks
from helpers.glm.vision import Adapter, PatchEmbedding, VisionLayer, VisionTower

PICTURE, TEXT = "image/rgb_wide", "text/multi_turn"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


def distance(name, tag, model=None, **changes):
    """How far our logits are from the golden ones, at most."""
    given, model = tensors(name), model or glm(name)
    inputs = {"input_ids": given[f"{tag}/input_ids"], "pixel_values": given.get(f"{tag}/images")} | changes
    with torch.inference_mode():
        return float((model(**inputs, use_cache=False).logits - given[f"{tag}/logits"]).abs().max())


def sequential_positions(monkeypatch, model):
    expand = ChatGLMModel.expand_inputs

    def usual(self, *args, **kwargs):
        expanded = expand(self, *args, **kwargs)
        positions = torch.arange(expanded.input_ids.shape[1])[None]
        return dataclasses.replace(expanded, position_ids=positions)

    monkeypatch.setattr(ChatGLMModel, "expand_inputs", usual)


def words_around_the_picture(monkeypatch, model):
    embed = ChatGLMModel.embed_inputs

    def usual(self, expanded, pixel_values):
        patches = (expanded.patch_index >= 0)[..., None]
        return torch.where(patches, embed(self, expanded, pixel_values), self.embed_tokens(expanded.input_ids))

    monkeypatch.setattr(ChatGLMModel, "embed_inputs", usual)


def begin_and_end_not_scaled(monkeypatch, model):
    see = VisionTower.forward

    def usual(self, pixel_values, **kwargs):
        output = see(self, pixel_values, **kwargs)
        output.last_hidden_state[:, [0, -1]] *= self.config.scaling_factor
        return output

    monkeypatch.setattr(VisionTower, "forward", usual)


def nothing_scaled(monkeypatch, model):
    model.model.vision.config.scaling_factor = 1


def norm_before_the_branch(monkeypatch, model):
    def usual(self, hidden_states, output_attentions=False):
        hidden_states = hidden_states + self.attention(self.input_layernorm(hidden_states))[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)), None

    monkeypatch.setattr(VisionLayer, "forward", usual)


def tanh_gelu_in_the_tower(monkeypatch, model):
    for layer in model.model.vision.transformer["layers"]:
        layer.mlp.activation_fn = nn.GELU(approximate="tanh")


def tanh_gelu_in_the_adapter(monkeypatch, model):
    functions = SimpleNamespace(
        gelu=lambda x: F.gelu(x, approximate="tanh"),
        silu=F.silu,
        scaled_dot_product_attention=F.scaled_dot_product_attention,
    )
    monkeypatch.setattr(vision_module, "F", functions)


def class_position_last(monkeypatch, model):
    def usual(self, pixel_values):
        patches = self.proj(pixel_values).flatten(2).transpose(1, 2)
        hidden_states = torch.cat([patches, self.cls_embedding[None]], dim=1)
        hidden_states = hidden_states + self.position_embedding(torch.arange(hidden_states.shape[1]))
        return hidden_states.roll(1, dims=1)  # to where the tower drops it

    monkeypatch.setattr(PatchEmbedding, "forward", usual)


def class_position_kept(monkeypatch, model):
    last = model.model.vision.transformer["layers"][-1]
    forward = type(last).forward

    def usual(hidden_states, output_attentions=False):
        hidden_states, weights = forward(last, hidden_states, output_attentions)
        return hidden_states.roll(1, dims=1), weights  # the last patch is dropped in its place

    last.forward = usual


def rotate_with(model, base, rotated_channels):
    frequencies = base ** -(torch.arange(0, rotated_channels, 2) / rotated_channels)
    model.model.rotary_emb.inv_freq = frequencies


def base_without_ratio(monkeypatch, model):
    rotate_with(model, 10_000, model.config.head_dim // 2)


def base_with_the_chat_models_ratio(monkeypatch, model):
    rotate_with(model, 500 * 10_000, model.config.head_dim // 2)


def whole_head_rotated(monkeypatch, model):
    rotate_with(model, model.config.rope_parameters["rope_theta"], model.config.head_dim)


def saved_frequencies(monkeypatch, model):
    from safetensors import safe_open

    key = "transformer.rotary_pos_emb.inv_freq"
    for file in sorted(checkpoint(CHAT).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors_of_file:
            if key in tensors_of_file.keys():  # noqa: SIM118
                model.model.rotary_emb.inv_freq = tensors_of_file.get_tensor(key)
                return
    raise AssertionError(f"{key} is in no file")


def halves_rotated(monkeypatch, model):
    """Channel j goes with channel j + n/2, as in Llama, in place of its neighbour."""

    def usual(query, key, cos, sin, unsqueeze_dim=1):
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)

        def rotated(states):
            turned, passed = states[..., : cos.shape[-1]], states[..., cos.shape[-1] :]
            first, second = turned.chunk(2, dim=-1)
            return torch.cat([turned * cos + torch.cat([-second, first], dim=-1) * sin, passed], dim=-1)

        return rotated(query), rotated(key)

    monkeypatch.setattr("transformers.models.glm.modeling_glm.apply_rotary_pos_emb", usual)


@pytest.mark.parametrize(
    ("name", "tag", "usual_way", "at_least"),
    [
        (VISION, PICTURE, sequential_positions, 0.5),
        (VISION, PICTURE, words_around_the_picture, 0.5),
        (VISION, PICTURE, begin_and_end_not_scaled, 0.5),
        (VISION, PICTURE, nothing_scaled, 0.5),
        (VISION, PICTURE, norm_before_the_branch, 0.5),
        (VISION, PICTURE, tanh_gelu_in_the_tower, 5e-4),
        (VISION, PICTURE, tanh_gelu_in_the_adapter, 5e-4),
        (VISION, PICTURE, class_position_last, 0.5),
        (VISION, PICTURE, class_position_kept, 0.5),
        (VISION, TEXT, base_with_the_chat_models_ratio, 0.5),
        (CHAT, TEXT, base_without_ratio, 0.5),
        (CHAT, TEXT, saved_frequencies, 0.5),
        (CHAT, TEXT, whole_head_rotated, 0.5),
        (CHAT, TEXT, halves_rotated, 0.5),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_the_usual_way_gives_other_numbers(monkeypatch, name, tag, usual_way, at_least):
    model = copy.deepcopy(glm(name))
    assert distance(name, tag, model) <= TOLERANCE
    usual_way(monkeypatch, model)
    assert distance(name, tag, model) > at_least


def test_the_adapters_norm_has_its_own_eps():
    """With the golden pictures an eps of 1e-6 would pass unnoticed: faint features tell the two apart."""
    adapter = glm(VISION).model.vision.linear_proj
    assert glm(VISION).config.vision_config.layer_norm_eps == 1e-6
    faint = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0)) * 3e-3

    def by_hand(eps):
        features = F.layer_norm(adapter.linear_proj(faint), (64,), adapter.norm1.weight, adapter.norm1.bias, eps)
        features = F.gelu(features)
        return adapter.dense_4h_to_h(F.silu(adapter.gate_proj(features)) * adapter.dense_h_to_4h(features))

    with torch.inference_mode():
        ours = Adapter.forward(adapter, faint)
        assert (ours - by_hand(1e-5)).abs().max() <= TOLERANCE
        assert (ours - by_hand(1e-6)).abs().max() > 100 * TOLERANCE


def test_norms_of_the_tower_and_the_language_model_have_the_files_eps():
    model = glm(VISION)
    assert {n.variance_epsilon for n in model.modules() if hasattr(n, "variance_epsilon")} == {1.5625e-07}
    layer = model.model.vision.transformer["layers"][0]
    assert layer.input_layernorm.eps == layer.post_attention_layernorm.eps == 1e-6


def test_repeated_positions_are_not_packed_sequences():
    """Without a mask and a cache transformers takes positions that repeat for several texts in one row."""
    assert distance(VISION, PICTURE) <= TOLERANCE
    given, model = tensors(VISION), glm(VISION)
    expanded = model.expand_inputs(given[f"{PICTURE}/input_ids"], given[f"{PICTURE}/images"])
    with torch.inference_mode():
        embeds = model.model.embed_inputs(expanded, given[f"{PICTURE}/images"])
        usual = model(inputs_embeds=embeds, position_ids=expanded.position_ids, use_cache=False).logits
    assert (usual - given[f"{PICTURE}/logits"]).abs().max() > 1


def test_the_first_new_token_follows_the_prompt_as_it_was_given():
    given, model = tensors(VISION), glm(VISION)
    prompt, picture = given["greedy/image_first/input_ids"], given[f"{PICTURE}/images"]
    second = given["greedy/image_first/step_logits"][:, 1]
    token = given["greedy/image_first/new_ids"][:, :1]

    def step(**positions):
        with torch.inference_mode():
            cache = model(input_ids=prompt, pixel_values=picture, use_cache=True).past_key_values
            length = cache.get_seq_length()
            positions = {name: torch.tensor([[length if at == "cache" else at]]) for name, at in positions.items()}
            logits = model(input_ids=token, past_key_values=cache, **positions).logits[:, -1]
        return float((logits - second).abs().max())

    assert step() <= TOLERANCE
    assert step(position_ids=prompt.shape[1]) <= TOLERANCE
    assert step(position_ids="cache") > 0.5


def test_a_mask_is_never_made_from_ids():
    """Padding, end of text and the picture's placeholder are one id."""
    given, model = tensors(VISION), glm(VISION)
    ids = given[f"{PICTURE}/input_ids"]
    assert model.config.pad_token_id in ids[0].tolist()
    assert distance(VISION, PICTURE, attention_mask=(ids != model.config.pad_token_id).long()) > 0.5
    generated = model.generate(
        input_ids=ids, pixel_values=given[f"{PICTURE}/images"], do_sample=False, max_new_tokens=20
    )
    expected = given["greedy/image_first/new_ids"]
    assert torch.equal(generated[:, ids.shape[1] :], expected)


def test_padding_is_on_the_left_and_has_position_zero():
    record = golden(VISION)["batch"][0]
    batch = glm_tokenizer(VISION).apply_chat_template(
        record["conversations"], add_generation_prompt=True, padding=True, return_tensors="pt"
    )
    padding = batch["attention_mask"] == 0
    assert padding[:, 0].any()
    assert not padding[:, -1].any()
    assert (batch["position_ids"][padding] == 0).all()
    assert not torch.equal(batch["position_ids"][0], torch.arange(padding.shape[1]))
    # Padded on the right, the answers go on from padding.
    model = glm(VISION)
    turned = {key: batch[key].clone() for key in ("input_ids", "attention_mask")}
    for row, count in enumerate(padding.sum(dim=1).tolist()):
        for key in turned:
            turned[key][row] = batch[key][row].roll(-count)
    settings = {"do_sample": False, "max_new_tokens": 12}
    length = padding.shape[1]
    assert model.generate(**batch, **settings)[:, length:].tolist() == record["new_ids"]
    assert model.generate(**turned, **settings)[:, length:].tolist() != record["new_ids"]


def test_padding_is_on_the_left_where_the_file_does_not_say(tmp_path):
    folder = copy_of(CHAT, tmp_path)
    change_json(folder / "tokenizer_config.json", padding_side=None)
    assert AutoTokenizer.from_pretrained(folder).padding_side == "left"


def test_header_and_content_are_encoded_apart():
    tokenizer = glm_tokenizer(VISION)
    record = next(r for r in golden(VISION)["chat_template"] if r["name"] == "leading_newline")
    chat = tokenizer.encode_chat(record["conversation"])
    assert chat.input_ids == record["ids_generation_prompt"]
    assert tokenizer(chat.text, add_special_tokens=False)["input_ids"] != record["ids_generation_prompt"]


def test_special_strings_in_a_content_stay_text():
    tokenizer = glm_tokenizer(VISION)
    record = next(r for r in golden(VISION)["chat_template"] if r["name"] == "injection")
    chat = tokenizer.encode_chat(record["conversation"])
    assert chat.input_ids == record["ids_generation_prompt"]
    special = set(tokenizer.all_special_ids)
    assert [i for i in chat.input_ids if i in special] == [802, 804, 807, 808]
    in_one_go = tokenizer(chat.text, add_special_tokens=False)["input_ids"]
    assert [i for i in in_one_go if i in special] == [802, 804, 807, 808, 800, 802, 808]


def test_an_empty_message_leaves_no_trace():
    tokenizer = glm_tokenizer(CHAT)
    hello = {"role": "user", "content": "hi"}
    for role in ("system", "user", "assistant", "observation"):
        empty = {"role": role, "content": ""}
        expected = tokenizer.encode_chat([hello]).input_ids
        assert tokenizer.encode_chat([empty, hello]).input_ids == expected
        assert tokenizer.convert_tokens_to_ids(f"<|{role}|>") not in expected or role in ("user", "assistant")


def test_rope_ratio_is_one_where_the_file_has_none():
    assert glm(VISION).config.rope_parameters["rope_theta"] == 10_000
    assert glm(CHAT).config.rope_parameters["rope_theta"] == 500 * 10_000


@pytest.mark.parametrize("order", [1, -1])
def test_num_layers_counts_and_not_num_hidden_layers(order):
    settings = dict([("num_layers", 3), ("num_hidden_layers", 40)][::order])
    config = ChatGLMConfig(**settings)
    assert config.num_hidden_layers == config.num_layers == 3


def test_head_size_is_kv_channels():
    sizes = {"num_layers": 1, "hidden_size": 48, "ffn_hidden_size": 32, "padded_vocab_size": 64, "seq_length": 32}
    config = ChatGLMConfig(**sizes, num_attention_heads=4, multi_query_group_num=2, kv_channels=8, add_qkv_bias=True)
    attention = ChatGLMForConditionalGeneration(config).model.layers[0].self_attn
    assert attention.q_proj.weight.shape == (4 * 8, 48)  # 48 / 4 heads would be 12
    assert attention.k_proj.weight.shape == attention.v_proj.weight.shape == (2 * 8, 48)
    assert attention.o_proj.weight.shape == (48, 4 * 8)
    assert attention.scaling == 8**-0.5


def test_a_token_of_megabytes_is_refused_at_once(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(base64.b64encode(b"a" * 5_000_000) + b" 0\n")
    with pytest.raises(DamagedFilesError, match="line 1, is not a token"):
        read_ranks(path)


NO_SIZES = {
    "image_size": ("x", 10**12),
    "patch_size": (0, []),
    "num_heads": (None,),
    "num_hidden_layers": (10**12, 1.5),
    "scaling_factor": (float("nan"),),
    "layer_norm_eps": ("x",),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NO_SIZES.items() for value in values])
def test_a_size_of_the_vision_tower_that_is_none(name, value):
    with pytest.raises(BadInputError, match=f"vision_config's {name} must be"):
        ChatGLMConfig(vision_config={name: value})
