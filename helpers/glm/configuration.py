"""The settings of an original GLM-4 or GLM-4V checkpoint (`config.json` with model_type `chatglm`)."""

from typing import Any

from transformers import GlmConfig, PreTrainedConfig

from helpers.checks import number, whole_number
from helpers.errors import BadInputError

ROPE_BASE = 10000.0
# The sizes of a vision tower, each with an upper limit that no real tower reaches.
LARGEST = {
    "image_size": 8192,
    "patch_size": 8192,
    "in_channels": 64,
    "hidden_size": 2**20,
    "num_hidden_layers": 2000,
    "num_heads": 2**16,
    "intermediate_size": 2**22,
    "num_positions": 2**26,
}
# Settings of older ChatGLM models that change the architecture, and the only value this package implements.
FIXED = {
    "multi_query_attention": True,
    "original_rope": True,
    "rmsnorm": True,
    "post_layer_norm": True,
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
}


class ChatGLMVisionConfig(PreTrainedConfig):
    """Sizes of GLM-4V's vision tower, under the names that `config.json` uses; the defaults are GLM-4V-9B's."""

    model_type = "chatglm_vision"
    base_config_key = "vision_config"

    image_size: int = 1120
    patch_size: int = 14
    in_channels: int = 3
    hidden_size: int = 1792
    num_hidden_layers: int = 63
    num_heads: int = 16
    intermediate_size: int = 15360
    num_positions: int = 6401
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    scaling_factor: float = 8
    dropout_prob: float = 0.0

    def check(self) -> None:
        """Check that every size is a positive whole number within its limit. Raises `BadInputError` if one is not."""
        for name, most in LARGEST.items():
            whole_number(f"vision_config's {name}", getattr(self, name), least=1, most=most)
        for name in ("layer_norm_eps", "scaling_factor"):
            number(f"vision_config's {name}", getattr(self, name), least=0)

    @property
    def grid(self) -> int:
        """The number of patches along one side of the picture, as the language model gets them (40 in GLM-4V-9B)."""
        return self.image_size // self.patch_size // 2

    @property
    def num_patches(self) -> int:
        """The number of vectors that stand for a picture in the language model, not counting its begin and end
        (1600 in GLM-4V-9B)."""
        return self.grid**2


class ChatGLMConfig(GlmConfig):
    """GLM-4's settings: read and written under the original names, used under those of `GlmConfig`.

    `vision_config` is None for GLM-4-9B-Chat and set for GLM-4V-9B, which is how the two are told apart.
    Raises `BadInputError` for settings of older ChatGLM models, which have another architecture.
    """

    model_type = "chatglm"
    attribute_map = {  # original name -> name in GlmConfig
        "padded_vocab_size": "vocab_size",
        "ffn_hidden_size": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "multi_query_group_num": "num_key_value_heads",
        "kv_channels": "head_dim",
        "layernorm_epsilon": "rms_norm_eps",
        "add_qkv_bias": "attention_bias",
        "seq_length": "max_position_embeddings",
    }
    sub_configs = {"vision_config": ChatGLMVisionConfig}

    # The values that apply when a config.json omits a setting.
    vocab_size: int = 65024
    num_hidden_layers: int = 28
    num_key_value_heads: int = 1
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    max_position_embeddings: int = 2048
    pad_token_id: int | None = None
    boi_token_id: int | None = None
    eoi_token_id: int | None = None
    vision_config: dict | PreTrainedConfig | None = None

    def __post_init__(self, rope_ratio: int = 1, **kwargs: Any) -> None:
        for name, value in FIXED.items():
            if kwargs.setdefault(name, value) != value:
                raise BadInputError(
                    f"This model's config.json says {name}={kwargs[name]}, but GLM-4 and GLM-4V have {value}: it is an "
                    "older ChatGLM, which helpers.glm does not support. Load glm-4-9b-chat or glm-4v-9b instead."
                )
        if isinstance(self.vision_config, dict):
            self.vision_config = ChatGLMVisionConfig(**self.vision_config)
            self.vision_config.check()
        if self.rope_parameters is None:  # type: ignore[has-type]
            self.rope_parameters = {
                "rope_type": "default",
                "rope_theta": ROPE_BASE * rope_ratio,
                "partial_rotary_factor": 0.5,
            }
        for name in ("auto_map", "_name_or_path"):  # they refer to the original code and to the original folder
            kwargs.pop(name, None)
        # GlmConfig's own __post_init__ would fill in the 9B model's ids.
        super(GlmConfig, self).__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The settings under their original names, so that a saved folder has the original layout."""
        settings = super().to_dict()
        for original, name in self.attribute_map.items():
            settings[original] = settings.pop(name)
        if settings["rope_parameters"]["rope_type"] == "default":
            settings["rope_ratio"] = settings.pop("rope_parameters")["rope_theta"] / ROPE_BASE
        if self.vision_config is not None:
            names = ChatGLMVisionConfig.__annotations__
            settings["vision_config"] = {name: getattr(self.vision_config, name) for name in names}
        return settings
