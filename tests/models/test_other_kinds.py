"""Folders of models that do not continue a text: each is named for what it is, and none is loaded as something else."""

import json

import pytest
import torch
import transformers

from helpers.errors import BadInputError, DamagedFilesError, ModelNotFoundError
from helpers.models import load_model, memory_plan
from helpers.models.skeleton import auto_class

SIZES = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "pad_token_id": 0},
}


def saved(folder, model, **settings):
    """The folder of a model, with changes to its config.json."""
    torch.manual_seed(0)
    family = model.partition("For")[0].removesuffix("Model")
    config = getattr(transformers, f"{family}Config")(**SIZES | settings)
    getattr(transformers, model)(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "saved_as", "what"),
    [
        ("Bart", "BartForConditionalGeneration", "is an encoder-decoder"),
        ("Whisper", "WhisperForConditionalGeneration", "is an encoder-decoder"),
        ("ProphetNet", "ProphetNetForConditionalGeneration", "is an encoder-decoder"),
        ("T5", "T5ForConditionalGeneration", "is an encoder-decoder"),
        ("Bert", "BertForMaskedLM", "saved as BertForMaskedLM fills gaps"),
        ("Bert", "BertForPreTraining", "saved as BertForPreTraining fills gaps"),
        ("XLMRoberta", "XLMRobertaForMaskedLM", "saved as XLMRobertaForMaskedLM fills gaps"),
        ("Bert", "BertForTokenClassification", "saved as BertForTokenClassification gives labels"),
        ("Qwen3", "Qwen3ForSequenceClassification", "saved as Qwen3ForSequenceClassification gives labels or a score"),
        ("Qwen2Audio", "Qwen2AudioForConditionalGeneration", "takes sound or video"),
    ],
)
def test_what_does_not_continue_a_text_is_named(family, saved_as, what):
    """A decoder without its encoder was loaded, and a model that fills gaps, and both answered nonsense."""
    config = getattr(transformers, f"{family}Config")(architectures=[saved_as])
    with pytest.raises(BadInputError, match=what):
        auto_class(config)


def test_a_decoder_by_itself_is_one():
    decoder = transformers.BartConfig(architectures=["BartForCausalLM"], is_encoder_decoder=False)
    assert auto_class(decoder) is transformers.AutoModelForCausalLM
    unknown = transformers.LlamaConfig(architectures=["MyOwnLlama"])
    assert auto_class(unknown) is transformers.AutoModelForCausalLM


@pytest.mark.parametrize("tied", [True, False])
def test_a_reward_model_is_no_language_model(tmp_path, tied):
    """With a tied head nothing was missing, and the reward model wrote texts."""
    folder = saved(tmp_path, "LlamaForSequenceClassification", num_labels=1, tie_word_embeddings=tied)
    for door in (load_model, memory_plan):
        with pytest.raises(BadInputError, match="was saved as LlamaForSequenceClassification gives labels or a score"):
            door(folder)


def test_a_model_without_a_head_is_no_damaged_one(tmp_path, capsys):
    folder = saved(tmp_path / "untied", "LlamaModel")
    with pytest.raises(BadInputError, match="holds a LlamaModel, a model without a head"):
        load_model(folder)
    tied = saved(tmp_path / "tied", "LlamaModel", tie_word_embeddings=True)
    assert load_model(tied, device="cpu").lm_head.weight is not None
    assert "holds a LlamaModel, without a head: its embedding takes the head's place" in capsys.readouterr().err


@pytest.mark.parametrize(("family", "extra"), [("Qwen3", "k_norm.weight"), ("Qwen2", "k_proj.bias")])
def test_weights_that_a_layer_has_no_place_for_belong_to_another_model(tmp_path, family, extra):
    """They were left out, and the model computed something else than what it was trained for."""
    saved(tmp_path, f"{family}ForCausalLM", head_dim=8)
    saved(tmp_path / "llama", "LlamaForCausalLM", head_dim=8)
    (tmp_path / "model.safetensors").rename(tmp_path / "llama" / "model.safetensors")
    with pytest.raises(DamagedFilesError, match=rf"no place for model\.layers\.0\.self_attn\.{extra}"):
        load_model(tmp_path / "llama", device="cpu")


def test_weights_that_only_claim_to_be_packed(tmp_path):
    """Tracing such a model failed with an AssertionError of bitsandbytes."""
    folder = saved(tmp_path, "LlamaForCausalLM")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamagedFilesError, match="were quantized by bitsandbytes, and they were not"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("model.Q4_K_M.gguf", "a model for llama.cpp"),
        ("model_index.json", "a diffusers pipeline"),
        ("model.onnx", "a model for ONNX"),
        ("model.safetensors", "weights without the config"),
    ],
)
def test_a_folder_for_another_program_is_named(tmp_path, file, what):
    (tmp_path / file).write_text("{}")
    with pytest.raises(ModelNotFoundError, match=what):
        load_model(tmp_path)
    with pytest.raises(ModelNotFoundError, match="a single file, and a model is a folder"):
        load_model(tmp_path / file)


def test_numbers_for_each_layer_are_planned_with_the_largest(tmp_path):
    """Hunyuan-A13B has a number of experts for each layer: neither its plan nor loading it got past the comparison."""
    experts = {"num_experts": 4, "moe_topk": [1, 2], "head_dim": 8}
    folder = saved(tmp_path, "HunYuanMoEV1ForCausalLM", **experts)
    assert memory_plan(folder, dtype="float32", device="cpu").working_bytes > 0
    assert load_model(folder, device="cpu") is not None
