"""The catalog's numbers are those of models built from their configs (on the meta device: no memory)."""

import pytest
import torch

from helpers.models.catalog import find_card, list_models, parameter_groups


def test_the_default_model_comes_first_and_names_are_unique():
    names = [card.name for card in list_models()]
    assert names[0] == "smollm2-135m"
    assert len(names) == len(set(names))
    assert find_card("no-such-model") is None


@pytest.mark.parametrize("card", [c for c in list_models() if c.parameters], ids=lambda card: card.name)
def test_the_formula_gives_the_parameters_of_the_card(card):
    assert sum(parameter_groups(card).values()) == card.parameters


@pytest.mark.parametrize("name", ["smollm2-135m", "llama-3-8b-instruct", "glm-4-9b-chat", "glm-4v-9b"])
def test_a_model_of_these_sizes_has_as_many_parameters(name):
    from transformers import GlmConfig, GlmForCausalLM, LlamaConfig, LlamaForCausalLM

    card = find_card(name)
    sizes = {
        field: getattr(card, field)
        for field in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "tie_word_embeddings",
            "attention_bias",
        )
    }
    llama = card.architecture == "LlamaForCausalLM"
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes)) if llama else GlmForCausalLM(GlmConfig(**sizes))
    assert sum(p.numel() for p in model.parameters()) == card.parameters - card.vision_parameters


def test_glm_4_1v_counts_its_vision_tower_and_its_four_norms_a_layer():
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    card = find_card("glm-4.1v-9b-thinking")
    with torch.device("meta"):
        model = Glm4vForConditionalGeneration(Glm4vConfig())
    assert sum(p.numel() for p in model.parameters()) == card.parameters
    vision = sum(p.numel() for name, p in model.named_parameters() if "visual" in name)
    assert vision == card.vision_parameters


def test_the_formula_works_on_a_config(model):
    assert sum(parameter_groups(model.config).values()) == model.num_parameters()


def test_every_card_says_where_the_model_comes_from():
    for card in list_models():
        assert card.licence
        assert card.sources
        assert card.bytes_on_disk >= 2 * card.parameters


def test_the_walkthroughs_models_have_ids_on_both_hubs():
    for name in (
        "Meta-Llama-3-8B-Instruct",
        "llama-3-chinese-8b-instruct",
        "llama-3-chinese-8b-instruct-v2",
        "llama-3-chinese-8b-instruct-v3",
        "glm-4-9b-chat",
        "glm-4-9b-chat-hf",
        "glm-4v-9b",
        "GLM-4.1V-9B-Thinking",
    ):
        card = find_card(name)
        assert set(card.sources) == {"modelscope", "huggingface"}
        assert all(find_card(id_) is card for id_ in card.sources.values())
    assert find_card("llama-3-8b-instruct").gated == ("huggingface",)
