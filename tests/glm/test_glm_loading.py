"""Original folders through transformers' own loader: settings, saving, refusing, and never running their code."""

import builtins
import json
import sys

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
    one_thread,
    tensors,
)
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, GlmForCausalLM

from helpers.errors import BadInputError, DamagedFilesError
from helpers.glm import (
    ChatGLM4Tokenizer,
    ChatGLMConfig,
    ChatGLMForConditionalGeneration,
    ChatGLMProcessor,
    ChatGLMVisionConfig,
)

AUTO_CLASSES = [AutoConfig, AutoTokenizer, AutoProcessor, AutoModelForCausalLM, AutoModel]
SHARD = "model-00002-of-00004.safetensors"
INDEX = "model.safetensors.index.json"
# As published (config.json of the two models), what matters for shapes.
GLM_4_9B = {
    **{"num_layers": 40, "hidden_size": 4096, "ffn_hidden_size": 13696, "num_attention_heads": 32},
    **{"kv_channels": 128, "multi_query_group_num": 2, "add_qkv_bias": True, "padded_vocab_size": 151552},
    **{"layernorm_epsilon": 1.5625e-07, "pad_token_id": 151329, "eos_token_id": [151329, 151336, 151338]},
}
GLM_4_9B_CHAT = GLM_4_9B | {"num_hidden_layers": 40, "rope_ratio": 500, "seq_length": 131072}
GLM_4V_9B = GLM_4_9B | {
    **{"seq_length": 8192, "boi_token_id": 151339, "eoi_token_id": 151340},
    "vision_config": {
        **{"num_hidden_layers": 63, "hidden_size": 1792, "num_heads": 16, "intermediate_size": 15360},
        **{"patch_size": 14, "image_size": 1120, "num_positions": 6401, "in_channels": 3, "scaling_factor": 8},
        **{"hidden_act": "gelu", "layer_norm_eps": 1e-06, "dropout_prob": 0.0},
    },
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


def logits(model):
    given = tensors(VISION)
    inputs = {"input_ids": given["image/rgb_wide/input_ids"], "pixel_values": given["image/rgb_wide/images"]}
    with torch.inference_mode():
        return model(**inputs).logits


def distance(model):
    return float((logits(model).float() - tensors(VISION)["image/rgb_wide/logits"]).abs().max())


def load(folder, **settings):
    return AutoModelForCausalLM.from_pretrained(folder, **settings).eval()


def test_each_auto_class_gives_ours():
    assert type(glm(VISION)) is type(glm(CHAT)) is ChatGLMForConditionalGeneration
    assert isinstance(glm(CHAT), GlmForCausalLM)
    assert type(AutoModel.from_pretrained(checkpoint(CHAT))) is ChatGLMForConditionalGeneration
    assert type(glm_tokenizer(VISION)) is type(glm_tokenizer(CHAT)) is ChatGLM4Tokenizer
    assert glm_tokenizer(VISION).is_fast
    assert type(AutoProcessor.from_pretrained(checkpoint(VISION))) is ChatGLMProcessor
    assert type(AutoProcessor.from_pretrained(checkpoint(CHAT))) is ChatGLM4Tokenizer
    assert not hasattr(glm(CHAT).model, "vision")


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}, {"trust_remote_code": False}], ids=str)
@pytest.mark.parametrize("auto_class", AUTO_CLASSES, ids=lambda auto_class: auto_class.__name__)
def test_remote_code_is_neither_run_nor_asked_about(tmp_path, monkeypatch, auto_class, trust):
    """Also when the folder has code, a terminal is there to ask on, and a caller trusts everything."""
    folder = copy_of(VISION, tmp_path)
    proof = tmp_path / "it ran"
    for module in ("configuration_chatglm", "modeling_chatglm", "tokenization_chatglm"):
        (folder / f"{module}.py").write_text(f"open({str(proof)!r}, 'w')\n")
    assert "auto_map" in json.loads((folder / "config.json").read_text())
    assert "auto_map" in json.loads((folder / "tokenizer_config.json").read_text())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", lambda *args: pytest.fail(f"asked: {args}"))
    loaded = auto_class.from_pretrained(folder, **trust)
    assert type(loaded).__module__.startswith("helpers.glm.")
    assert not proof.exists()


@pytest.mark.parametrize("name", [CHAT, VISION])
def test_nothing_is_missing_and_nothing_left_over(name):
    _, info = AutoModelForCausalLM.from_pretrained(checkpoint(name), output_loading_info=True)
    assert not any(info.values())


def test_every_weight_comes_from_the_file():
    """Names and shapes by the rules of the original layout, written out once more."""
    on_disk = {}
    for file in sorted(checkpoint(VISION).glob("*.safetensors")):
        on_disk |= load_file(file)
    model = glm(VISION)
    loaded = model.state_dict()
    plain = {
        "embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "encoder.final_layernorm.weight": "model.norm.weight",
        "output_layer.weight": "lm_head.weight",
    }
    for layer in range(3):
        old, new = f"encoder.layers.{layer}", f"model.layers.{layer}"
        plain |= {
            f"{old}.{norm}.weight": f"{new}.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")
        }
        plain[f"{old}.self_attention.dense.weight"] = f"{new}.self_attn.o_proj.weight"
        plain[f"{old}.mlp.dense_h_to_4h.weight"] = f"{new}.mlp.gate_up_proj.weight"
        plain[f"{old}.mlp.dense_4h_to_h.weight"] = f"{new}.mlp.down_proj.weight"
        for kind in ("weight", "bias"):
            parts = [loaded.pop(f"{new}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            assert torch.equal(
                torch.cat(parts), on_disk.pop(f"transformer.{old}.self_attention.query_key_value.{kind}")
            )
    plain |= {
        key.removeprefix("transformer."): f"model.{key.removeprefix('transformer.')}"
        for key in on_disk
        if ".vision." in key
    }
    for old, new in plain.items():
        assert torch.equal(on_disk.pop(f"transformer.{old}"), loaded.pop(new)), old
    assert not loaded
    assert list(on_disk) == ["transformer.rotary_pos_emb.inv_freq"]


@pytest.mark.parametrize(
    ("settings", "count", "vision_count"),
    [(GLM_4V_9B, 13_906_320_896, 4_506_369_536), (GLM_4_9B_CHAT, 9_399_951_360, 0)],
    ids=["glm-4v-9b", "glm-4-9b-chat"],
)
def test_the_published_sizes_give_the_published_parameter_counts(settings, count, vision_count):
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(ChatGLMConfig(**settings))
    assert sum(p.numel() for p in model.parameters()) == count
    assert sum(p.numel() for name, p in model.named_parameters() if ".vision." in name) == vision_count


def test_a_picture_of_1120_pixels_becomes_1602_vectors():
    vision = ChatGLMConfig(**GLM_4V_9B).vision_config
    assert (vision.grid, vision.num_patches + 2) == (40, 1602)
    assert ChatGLMVisionConfig().num_patches == 1600


def test_config_under_both_names():
    config = AutoConfig.from_pretrained(checkpoint(VISION))
    assert (config.padded_vocab_size, config.vocab_size) == (832, 832)
    assert (config.ffn_hidden_size, config.intermediate_size) == (104, 104)
    assert (config.multi_query_group_num, config.num_key_value_heads) == (2, 2)
    assert (config.kv_channels, config.head_dim) == (16, 16)
    assert (config.layernorm_epsilon, config.rms_norm_eps) == (1.5625e-07, 1.5625e-07)
    assert (config.add_qkv_bias, config.attention_bias) == (True, True)
    assert (config.seq_length, config.max_position_embeddings) == (256, 256)
    assert config.pad_token_id == 800
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    assert not hasattr(config, "auto_map")
    assert config.name_or_path == str(checkpoint(VISION))  # the file says THUDM/glm-4v-9b


def test_config_defaults_are_those_of_the_original():
    config = ChatGLMConfig()
    assert (config.num_layers, config.padded_vocab_size, config.ffn_hidden_size) == (28, 65024, 13696)
    assert (config.kv_channels, config.multi_query_group_num, config.add_qkv_bias) == (128, 1, False)
    assert (config.layernorm_epsilon, config.seq_length, config.vision_config) == (1e-5, 2048, None)
    assert config.pad_token_id is config.eos_token_id is None


@pytest.mark.parametrize("setting", ["original_rope", "multi_query_attention", "rmsnorm", "post_layer_norm"])
def test_an_older_chatglm_is_refused_by_name(tmp_path, setting):
    folder = copy_of(CHAT, tmp_path)
    change_json(folder / "config.json", **{setting: False})
    with pytest.raises(BadInputError, match=f"{setting}=False.*older ChatGLM"):
        load(folder)


# Settings of the loader


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_device_map(device_map):
    assert distance(load(checkpoint(VISION), device_map=device_map)) <= TOLERANCE


def test_layers_and_tower_on_disk(tmp_path):
    model = load(checkpoint(VISION), device_map="auto", max_memory={"cpu": "500KB"}, offload_folder=tmp_path)
    assert "disk" in set(model.hf_device_map.values())
    assert distance(model) <= TOLERANCE


@pytest.mark.parametrize(("dtype", "at_most"), [("bfloat16", 1.5), (torch.float16, 0.2), ("auto", TOLERANCE)], ids=str)
def test_dtype(dtype, at_most):
    model = load(checkpoint(VISION), dtype=dtype)
    expected = torch.float32 if dtype == "auto" else getattr(torch, str(dtype).removeprefix("torch."))
    assert {p.dtype for p in model.parameters()} == {expected}
    assert distance(model) <= at_most


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_saved_and_loaded_again(tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    sizes = {"num_layers": 2, "hidden_size": 128, "ffn_hidden_size": 192, "num_attention_heads": 4, "kv_channels": 32}
    vocabulary = {"padded_vocab_size": 320, "boi_token_id": 300, "eoi_token_id": 301, "pad_token_id": 256}
    tower = {"num_hidden_layers": 2, "hidden_size": 64, "num_heads": 4, "intermediate_size": 128, "image_size": 56}
    torch.manual_seed(0)
    config = ChatGLMConfig(
        **sizes, **vocabulary, multi_query_group_num=2, add_qkv_bias=True, vision_config={**tower, "num_positions": 17}
    )
    whole = ChatGLMForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path / "whole")
    settings = {"load_in_8bit": True} if bits == 8 else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    packed = load(tmp_path / "whole", quantization_config=BitsAndBytesConfig(**settings), device_map="cpu")
    assert packed.get_memory_footprint() < 0.6 * whole.get_memory_footprint()
    packed.save_pretrained(tmp_path / "packed")
    again = load(tmp_path / "packed", device_map="cpu")
    inputs = {"input_ids": torch.tensor([[1, 2, 300, 256, 301, 5]]), "pixel_values": torch.randn(1, 3, 56, 56)}
    with torch.inference_mode():
        expected, quantized, reloaded = (model(**inputs).logits.float() for model in (whole, packed, again))
    assert torch.equal(quantized, reloaded)
    assert 0 < (quantized - expected).abs().max() < expected.abs().max()


@pytest.mark.parametrize("name", [CHAT, VISION])
def test_saved_in_the_original_layout_and_loaded_again(tmp_path, name):
    model = glm(name)
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    saved, original = {}, {}
    for folder, weights in ((tmp_path, saved), (checkpoint(name), original)):
        assert (folder / INDEX).is_file()
        for file in folder.glob("*.safetensors"):
            weights |= load_file(file)
    original.pop("transformer.rotary_pos_emb.inv_freq")
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[key], original[key]) for key in original)
    settings = json.loads((tmp_path / "config.json").read_text())
    published = json.loads((checkpoint(name) / "config.json").read_text())
    same = published.keys() - {
        "_name_or_path",
        "architectures",
        "auto_map",
        "transformers_version",
        "torch_dtype",
        "num_hidden_layers",
    }
    assert {key: settings[key] for key in same} == {key: published[key] for key in same}
    assert "auto_map" not in settings
    again = load(tmp_path)
    assert type(again) is ChatGLMForConditionalGeneration
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert again.generation_config.eos_token_id == model.generation_config.eos_token_id


def test_saved_under_the_names_of_transformers(tmp_path):
    glm(VISION).save_pretrained(tmp_path, save_original_format=False)
    assert "model.layers.0.self_attn.q_proj.weight" in load_file(tmp_path / "model.safetensors")
    assert distance(load(tmp_path)) <= TOLERANCE


def test_tokenizer_and_processor_saved_and_loaded_again(tmp_path):
    from PIL import Image

    processor = AutoProcessor.from_pretrained(checkpoint(VISION))
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is ChatGLMProcessor
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is ChatGLM4Tokenizer
    messages = [{"role": "user", "image": Image.new("RGB", (9, 5), "red"), "content": "是 <|user|> \n什么?"}]
    first, second = (p.apply_chat_template(messages, return_tensors="pt") for p in (processor, again))
    assert first.keys() == second.keys() == {"input_ids", "attention_mask", "position_ids", "pixel_values"}
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert again.tokenizer("hi")["input_ids"][:2] == [802, 804]
    assert "auto_map" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


def test_weights_made_from_scratch_can_be_trained():
    """The parameters that are no layer's are drawn too, and every one gets a gradient."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(glm(VISION).config)
    vision = model.model.vision
    for parameter in (vision.boi, vision.eoi, vision.patch_embedding.cls_embedding):
        assert 0.005 < float(parameter.detach().std()) < 0.05
    given = tensors(VISION)
    ids = given["image/rgb_wide/input_ids"]
    output = model(input_ids=ids, pixel_values=given["image/rgb_wide/images"], labels=ids)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    # The loss counts the prompt's labels and skips the patches.
    expanded = model.expand_inputs(ids, given["image/rgb_wide/images"], labels=ids)
    assert (expanded.labels == -100).sum() == 9
    predicted, wanted = output.logits[:, :-1].flatten(0, 1), expanded.labels[:, 1:].flatten()
    assert torch.allclose(output.loss, torch.nn.functional.cross_entropy(predicted, wanted))


def test_a_model_that_sees_learns_from_texts_alone_too():
    """The original asks for a picture wherever there are labels."""
    ids = tensors(VISION)["text/multi_turn/input_ids"]
    with torch.inference_mode():
        output = glm(VISION)(input_ids=ids, labels=ids)
    expected = torch.nn.functional.cross_entropy(output.logits[0, :-1], ids[0, 1:])
    assert expected.isfinite()
    assert torch.allclose(output.loss, expected)


# Folders that are not whole


def drop_tensor(folder):
    weights = load_file(folder / SHARD)
    weights.pop("transformer.encoder.final_layernorm.weight")
    save_file(weights, folder / SHARD)


def cut_tensor(key):
    def damage(folder):
        file = folder / json.loads((folder / INDEX).read_text())["weight_map"][key]
        weights = load_file(file)
        weights[key] = weights[key][:-1].contiguous()
        save_file(weights, file)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / SHARD).unlink(), "is missing 1 of 4 weight files .*00002"),
        (lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:100_000]), "00002.* is damaged"),
        (lambda folder: (folder / SHARD).write_bytes(b"version https://git-lfs.github.com"), "00002.* is damaged"),
        (lambda folder: (folder / SHARD).write_bytes(b""), "00002.* is damaged"),
        (lambda folder: (folder / INDEX).write_text("{"), "index.json cannot be read"),
        (drop_tensor, "model.norm.weight is missing"),
        (
            cut_tensor("transformer.embedding.word_embeddings.weight"),
            r"embed_tokens.*\[831, 64\] instead of \[832, 64\]",
        ),
        (cut_tensor("transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"), r"\[63, 104\] instead of \[64, 104\]"),
        (cut_tensor("transformer.encoder.layers.1.self_attention.query_key_value.weight"), "query_key_value"),
        (cut_tensor("transformer.vision.transformer.layers.0.mlp.fc1.weight"), r"\[79, 48\] instead of \[80, 48\]"),
        (lambda folder: change_json(folder / "config.json", num_layers=4), "layers.3.*is missing .and 10 more such"),
        (lambda folder: change_json(folder / "config.json", num_layers=2), "layers.2.*an extra layer"),
        (lambda folder: change_json(folder / "config.json", vision_config=None), "vision.*an extra layer"),
    ],
    ids="shard cut pointer empty index tensor embedding mlp fused tower more fewer blind".split(),
)
def test_weights_that_are_not_whole_are_refused(tmp_path, damage, message):
    folder = copy_of(VISION, tmp_path)
    damage(folder)
    with pytest.raises(DamagedFilesError, match=message):
        load(folder)


def test_other_shapes_are_taken_when_asked_for(tmp_path):
    folder = copy_of(CHAT, tmp_path)
    change_json(folder / "config.json", padded_vocab_size=840)
    model, info = AutoModelForCausalLM.from_pretrained(folder, ignore_mismatched_sizes=True, output_loading_info=True)
    assert model.lm_head.weight.shape[0] == 840
    assert len(info["mismatched_keys"]) == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "tokenizer.model").unlink(), "has no tokenizer.model"),
        (lambda folder: (folder / "tokenizer.model").write_text("version https://git-lfs\n"), "line 1"),
        (lambda folder: (folder / "tokenizer.model").write_text("IQ== 0\nIg== x\n"), "line 2"),
        (lambda folder: (folder / "tokenizer.model").write_text("IQ== 0\n"), "1 tokens, with gaps"),
        (lambda folder: change_json(folder / "tokenizer_config.json", added_tokens_decoder=None), "no special tokens"),
        (lambda folder: cut_ranks(folder), r"<\|endoftext\|> the id 800.*different models"),
    ],
    ids="missing pointer rank short special fewer".split(),
)
@pytest.mark.parametrize("auto_class", [AutoTokenizer, AutoProcessor], ids=lambda auto_class: auto_class.__name__)
def test_a_damaged_tokenizer_is_refused(tmp_path, damage, message, auto_class):
    folder = copy_of(VISION, tmp_path)
    damage(folder)
    with pytest.raises(DamagedFilesError, match=message):
        auto_class.from_pretrained(folder)


def cut_ranks(folder):
    lines = (folder / "tokenizer.model").read_text().splitlines()
    (folder / "tokenizer.model").write_text("\n".join(lines[:790]))
