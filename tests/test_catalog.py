"""The catalog's numbers are those of models built from their configs (on the meta device: no memory)."""

import pytest
import torch

from helpers.catalog import find_card, list_models, parameter_groups


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


def test_the_formula_works_on_a_config(model):
    assert sum(parameter_groups(model.config).values()) == model.num_parameters()


def test_every_card_says_where_the_model_comes_from():
    for card in list_models():
        assert card.licence
        assert card.sources
        assert card.bytes_on_disk >= 2 * card.parameters
