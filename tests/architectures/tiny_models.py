"""Tiny random models of many architectures, each in a folder of its own, as a reader would bring one.

`text_model("gemma2", folder)` and `seeing_model("llava", folder)` write weights, config, tokenizer and, for models
that see, an image processor. Every number that a model has is random, biases, norms, sinks and scales too, so that a
part that is left out of account shows. A model has 3 or 4 layers of 32 numbers and 400 tokens.
"""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 400
WINDOW = 8  # positions that a layer with a sliding window sees

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 3,
    "initializer_range": 0.2,
}
OLD_NAMES = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED_EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}
DENSE_FIRST = {"first_k_dense_replace": 1}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
INDEX = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 4}  # looks at 4 positions only
STATE_SPACE = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
TWO_OF_THREE = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
IN_TURN = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8}
GRANITE = {"embedding_multiplier": 2.0, "logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3}
BY_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 2}

# name -> (its config class, what it sets)
TEXT = {
    "afmoe": (
        "AfmoeConfig",
        EXPERTS | TWO_OF_THREE | {"head_dim": 8, "num_shared_experts": 1, "num_dense_layers": 1, "mup_enabled": True},
    ),
    "apertus": ("ApertusConfig", {}),
    "arcee": ("ArceeConfig", {}),
    "bamba": ("BambaConfig", STATE_SPACE | {"attn_layer_indices": [1]}),
    "biogpt": ("BioGptConfig", {}),
    "bitnet": ("BitNetConfig", {}),
    "bloom": ("BloomConfig", {"n_layer": 3, "n_head": 4}),
    "codegen": ("CodeGenConfig", OLD_NAMES | {"rotary_dim": 4}),
    "cohere": ("CohereConfig", {"logit_scale": 0.25}),
    "cohere2": ("Cohere2Config", TWO_OF_THREE | {"logit_scale": 0.25, "head_dim": 8}),
    "cwm": ("CwmConfig", TWO_OF_THREE | {"head_dim": 8}),
    "deepseek_v2": ("DeepseekV2Config", LATENT | ROUTED_EXPERTS | DENSE_FIRST | {"head_dim": 8}),
    "deepseek_v3": ("DeepseekV3Config", LATENT | ROUTED_EXPERTS | DENSE_FIRST),
    "deepseek_v32": ("DeepseekV32Config", LATENT | ROUTED_EXPERTS | DENSE_FIRST | INDEX),
    "diffllama": ("DiffLlamaConfig", {"head_dim": 8}),
    "dots1": ("Dots1Config", ROUTED_EXPERTS | DENSE_FIRST | {"head_dim": 8}),
    "ernie4_5": ("Ernie4_5Config", {"head_dim": 8}),
    "ernie4_5_moe": (
        "Ernie4_5_MoeConfig",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 24,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 2,
        },
    ),
    "exaone4": ("Exaone4Config", TWO_OF_THREE),
    "exaone_moe": (
        "ExaoneMoeConfig",
        EXPERTS
        | TWO_OF_THREE
        | {"first_k_dense_replace": 1, "mlp_layer_types": ["dense", "sparse", "sparse"], "num_shared_experts": 1},
    ),
    "falcon": ("FalconConfig", {"multi_query": True, "new_decoder_architecture": False, "parallel_attn": True}),
    "falcon_new": ("FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon_sequential": ("FalconConfig", {"parallel_attn": False, "multi_query": False, "alibi": True}),
    "falcon_h1": (
        "FalconH1Config",
        STATE_SPACE
        | {
            "mamba_d_ssm": 64,
            "head_dim": 8,
            "attention_out_multiplier": 0.7,
            "ssm_out_multiplier": 0.6,
            "embedding_multiplier": 2.0,
            "lm_head_multiplier": 0.5,
            "key_multiplier": 0.8,
        },
    ),
    "falcon_mamba": ("FalconMambaConfig", {"state_size": 8, "conv_kernel": 4, "expand": 2, "time_step_rank": 4}),
    "flex_olmo": ("FlexOlmoConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "gemma": ("GemmaConfig", {"head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        GEMMA | {"sliding_window": WINDOW, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0},
    ),
    "gemma3": ("Gemma3TextConfig", GEMMA | TWO_OF_THREE),
    "gemma3n": (
        "Gemma3nTextConfig",
        IN_TURN
        | BY_LAYER
        | {
            "head_dim": 8,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "altup_active_idx": 0,
            "activation_sparsity_pattern": [0.0] * 4,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma4": (
        "Gemma4TextConfig",
        IN_TURN | BY_LAYER | {"head_dim": 8, "global_head_dim": 16, "final_logit_softcapping": 5.0},
    ),
    "glm": ("GlmConfig", {"head_dim": 8}),
    "glm4": ("Glm4Config", {"head_dim": 8}),
    "glm4_moe": ("Glm4MoeConfig", ROUTED_EXPERTS | DENSE_FIRST | {"head_dim": 8}),
    "glm_moe_dsa": ("GlmMoeDsaConfig", LATENT | ROUTED_EXPERTS | INDEX),
    "glm4_moe_lite": ("Glm4MoeLiteConfig", LATENT | ROUTED_EXPERTS),
    "gpt2": ("GPT2Config", OLD_NAMES | {"n_inner": 64}),
    "gpt_bigcode": ("GPTBigCodeConfig", OLD_NAMES),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "num_layers": 4,
            "num_hidden_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": WINDOW,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "gpt_neox_sequential": ("GPTNeoXConfig", {"use_parallel_residual": False}),
    "gpt_oss": (
        "GptOssConfig",
        LOCAL_EXPERTS
        | {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gptj": ("GPTJConfig", OLD_NAMES | {"rotary_dim": 4}),
    "granite": ("GraniteConfig", GRANITE),
    "granitemoe": ("GraniteMoeConfig", GRANITE | LOCAL_EXPERTS),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        GRANITE
        | LOCAL_EXPERTS
        | STATE_SPACE
        | {"shared_intermediate_size": 24, "layer_types": ["mamba", "attention", "mamba"]},
    ),
    "granitemoeshared": ("GraniteMoeSharedConfig", GRANITE | LOCAL_EXPERTS | {"shared_intermediate_size": 24}),
    "helium": ("HeliumConfig", {"head_dim": 8}),
    "hunyuan_v1_dense": ("HunYuanDenseV1Config", {"head_dim": 8}),
    "hunyuan_v1_moe": ("HunYuanMoEV1Config", {"head_dim": 8, "num_experts": 4, "moe_topk": [1, 2, 2]}),
    "internlm3": ("InternLM3Config", {"head_dim": 8}),
    "jamba": (
        "JambaConfig",
        {
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
    ),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False}),
    "lfm2_moe": (
        "Lfm2MoeConfig",
        EXPERTS | {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    ),
    "llama": ("LlamaConfig", {"head_dim": 8}),
    "llama4_text": (
        "Llama4TextConfig",
        {
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "attention_chunk_size": WINDOW,
            "num_hidden_layers": 4,
            "moe_layers": [1, 3],
            "no_rope_layers": [1, 1, 1, 0],
        },
    ),
    "mamba": ("MambaConfig", {"state_size": 8, "conv_kernel": 4, "expand": 2, "time_step_rank": 4}),
    "mamba2": (
        "Mamba2Config",
        {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "expand": 2, "chunk_size": 8},
    ),
    "minicpm3": ("MiniCPM3Config", LATENT),
    "minimax_m2": ("MiniMaxM2Config", LOCAL_EXPERTS | {"head_dim": 8}),
    "ministral": (
        "MinistralConfig",
        {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "ministral3": ("Ministral3Config", {"head_dim": 8}),
    "mistral": ("MistralConfig", {"head_dim": 8, "sliding_window": WINDOW}),
    "mixtral": ("MixtralConfig", LOCAL_EXPERTS | {"head_dim": 8}),
    "mpt": ("MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 256, "expansion_ratio": 2}),
    "nanochat": ("NanoChatConfig", {}),
    "nemotron": ("NemotronConfig", {}),
    "nemotron_h": (
        "NemotronHConfig",
        ROUTED_EXPERTS
        | {
            "head_dim": 8,
            "layers_block_type": ["mamba", "moe", "attention", "moe"],
            "num_hidden_layers": 4,
            "moe_shared_expert_intermediate_size": 24,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
    "olmo": ("OlmoConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", TWO_OF_THREE),
    "olmo_hybrid": ("OlmoHybridConfig", LINEAR),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "opt": ("OPTConfig", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "openai_gpt": ("OpenAIGPTConfig", OLD_NAMES),
    "opt_no_final_norm": ("OPTConfig", {"ffn_dim": 64, "word_embed_proj_dim": 32, "_remove_final_layer_norm": True}),
    "opt_norm_after": ("OPTConfig", {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "persimmon": ("PersimmonConfig", {}),
    "phi": ("PhiConfig", {}),
    "phi3": ("Phi3Config", {"sliding_window": None}),
    "phimoe": ("PhimoeConfig", LOCAL_EXPERTS),
    "qwen2": ("Qwen2Config", {}),
    "qwen2_moe": ("Qwen2MoeConfig", EXPERTS | {"shared_expert_intermediate_size": 24}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "qwen3_5": ("Qwen3_5TextConfig", LINEAR | {"head_dim": 16}),
    "qwen3_5_moe": ("Qwen3_5MoeTextConfig", EXPERTS | LINEAR | {"head_dim": 16, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("Qwen3MoeConfig", EXPERTS | {"head_dim": 8}),
    "qwen3_next": ("Qwen3NextConfig", EXPERTS | LINEAR | {"head_dim": 8, "shared_expert_intermediate_size": 24}),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {"head_dim": 8, "lru_width": 32, "attention_window_size": WINDOW, "block_types": ["recurrent", "attention"]},
    ),
    "rwkv": ("RwkvConfig", {"context_length": 256, "attention_hidden_size": 32}),
    "seed_oss": ("SeedOssConfig", {"head_dim": 8}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 1, 0]}),
    "solar_open": ("SolarOpenConfig", ROUTED_EXPERTS | {"head_dim": 8}),
    "stablelm": ("StableLmConfig", {"partial_rotary_factor": 0.5}),
    "starcoder2": ("Starcoder2Config", {"sliding_window": None}),
    "vaultgemma": ("VaultGemmaConfig", GEMMA | {"sliding_window": WINDOW, "final_logit_softcapping": 5.0}),
    "xglm": ("XGLMConfig", {"d_model": 32, "ffn_dim": 64, "num_layers": 3, "attention_heads": 4}),
}

SPECIAL = [
    "<|pad|>",
    "<|bos|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|image|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|video|>",
    "<fake_token_around_image>",
    "<global-img>",
]
PICTURE_IDS = {"image_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6, "video_token_id": 7}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
QWEN_TOWER = {"depth": 2, "num_heads": 4, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
AREA = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}


def _text(model_type, **more):
    return {"model_type": model_type, **COMMON, **more}


def _three_axes(*sections):
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}


# name -> (config class, what it sets, image processor class, what that sets)
SEEING = {
    "gemma3_vl": (
        "Gemma3Config",
        {
            "text_config": _text("gemma3_text", **GEMMA, **TWO_OF_THREE),
            "vision_config": TOWER | {"vision_use_head": False},
            "mm_tokens_per_image": 4,
            "image_token_id": 4,
            "image_token_index": 4,
            "boi_token_index": 5,
            "eoi_token_index": 6,
        },
        "Gemma3ImageProcessorPil",
        {"size": {"height": 56, "width": 56}},
    ),
    "glm4v": (
        "Glm4vConfig",
        {
            "text_config": _text(
                "glm4v_text", head_dim=8, rope_parameters=_three_axes(1, 1, 2) | {"partial_rotary_factor": 1.0}
            ),
            "vision_config": {
                "depth": 2,
                "hidden_size": 32,
                "num_heads": 4,
                "image_size": 56,
                "patch_size": 14,
                "out_hidden_size": 32,
                "intermediate_size": 48,
            },
            "image_token_id": 4,
            "video_token_id": 7,
            "image_start_token_id": 5,
            "image_end_token_id": 6,
            "video_start_token_id": 8,
            "video_end_token_id": 9,
        },
        "Glm4vImageProcessorPil",
        {"patch_size": 14, "size": AREA},
    ),
    "idefics3": (
        "Idefics3Config",
        {
            "text_config": _text("llama"),
            "vision_config": TOWER,
            "image_token_id": 4,
            "scale_factor": 2,
            "pad_token_id": 0,
        },
        "Idefics3ImageProcessorPil",
        {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 56}, "do_image_splitting": False},
    ),
    "internvl": (
        "InternVLConfig",
        {
            "text_config": _text("qwen2"),
            "vision_config": TOWER | {"image_size": [56, 56], "patch_size": [14, 14]},
            "image_token_id": 4,
            "image_seq_length": 4,
            "downsample_ratio": 0.5,
        },
        "GotOcr2ImageProcessorPil",
        {"size": {"height": 56, "width": 56}, "crop_to_patches": False},
    ),
    "llava": (
        "LlavaConfig",
        {
            "text_config": _text("llama"),
            "vision_config": TOWER | {"model_type": "clip_vision_model", "projection_dim": 32},
            "image_token_id": 4,
            "image_token_index": 4,
            "vision_feature_layer": -1,
            "image_seq_length": 16,
        },
        "CLIPImageProcessorPil",
        {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}},
    ),
    "mistral3": (
        "Mistral3Config",
        {
            "text_config": _text("mistral", head_dim=8, sliding_window=None),
            "vision_config": TOWER | {"model_type": "pixtral", "head_dim": 8},
            "image_token_id": 4,
            "image_token_index": 4,
            "spatial_merge_size": 2,
            "vision_feature_layer": -1,
        },
        "PixtralImageProcessorPil",
        {"size": {"longest_edge": 56}, "patch_size": 14},
    ),
    "paligemma": (
        "PaliGemmaConfig",
        {
            "text_config": _text("gemma", head_dim=8),
            "vision_config": TOWER | {"projection_dim": 32, "vision_use_head": False},
            "projection_dim": 32,
            "image_token_id": 4,
            "image_token_index": 4,
        },
        "SiglipImageProcessorPil",
        {"size": {"height": 56, "width": 56}},
    ),
    "qwen2_vl": (
        "Qwen2VLConfig",
        {
            "text_config": _text("qwen2_vl_text", rope_parameters=_three_axes(1, 1, 2), sliding_window=None),
            "vision_config": QWEN_TOWER | {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
            **PICTURE_IDS,
        },
        "Qwen2VLImageProcessorPil",
        {"patch_size": 14, "size": AREA},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLConfig",
        {
            "text_config": _text("qwen2_5_vl_text", rope_parameters=_three_axes(1, 1, 2), sliding_window=None),
            "vision_config": QWEN_TOWER
            | {
                "hidden_size": 32,
                "out_hidden_size": 32,
                "intermediate_size": 48,
                "window_size": 28,
                "fullatt_block_indexes": [1],
            },
            **PICTURE_IDS,
        },
        "Qwen2VLImageProcessorPil",
        {"patch_size": 14, "size": AREA},
    ),
    "qwen3_vl": (
        "Qwen3VLConfig",
        {
            "text_config": _text("qwen3_vl_text", head_dim=8, rope_parameters=_three_axes(2, 1, 1)),
            "vision_config": QWEN_TOWER
            | {
                "patch_size": 16,
                "hidden_size": 32,
                "intermediate_size": 48,
                "out_hidden_size": 32,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0, 1],
            },
            **PICTURE_IDS,
        },
        "Qwen2VLImageProcessorPil",
        {"patch_size": 16, "size": {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}},
    ),
    "qwen3_5_vl": (
        "Qwen3_5Config",
        {
            "text_config": _text("qwen3_5_text", **LINEAR, head_dim=16),
            "vision_config": QWEN_TOWER
            | {
                "patch_size": 16,
                "hidden_size": 32,
                "intermediate_size": 48,
                "out_hidden_size": 32,
                "num_position_embeddings": 16,
            },
            **PICTURE_IDS,
        },
        "Qwen2VLImageProcessorPil",
        {"patch_size": 16, "size": {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}},
    ),
    "smolvlm": (
        "SmolVLMConfig",
        {
            "text_config": _text("llama"),
            "vision_config": TOWER,
            "image_token_id": 4,
            "scale_factor": 2,
            "pad_token_id": 0,
        },
        "SmolVLMImageProcessorPil",
        {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 56}, "do_image_splitting": False},
    ),
}
NAMES = (*TEXT, *SEEING)

TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<|vision_start|><|image|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TRAINED_ON = [
    "The capital of France is Paris, and the capital of Germany is Berlin.",
    "A language model reads tokens and says which one comes next, again and again.",
    "Once upon a time there was a small model that wanted to see what is inside of it.",
]


def tokenizer():
    """A byte-level BPE tokenizer of at most `VOCABULARY` ids with a chat template."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TRAINED_ON, trainer)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|pad|>", bos_token="<|bos|>", model_max_length=512
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def build(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the model of this name into `folder`. Returns the folder."""
    torch.manual_seed(seed)
    if name in SEEING:
        kind, settings, processor, processor_settings = SEEING[name]
        config = getattr(transformers, kind)(**settings)
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        getattr(transformers, processor)(**processor_settings).save_pretrained(folder)
    else:
        config = _config(*TEXT[name])
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _make_everything_random(model, seed)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def _config(kind, settings):
    kind = getattr(transformers, kind)
    known = set(kind().to_dict()) | set(kind.attribute_map)
    known |= {name for parent in kind.__mro__ for name in getattr(parent, "__annotations__", {})}
    return kind(**{name: value for name, value in COMMON.items() if name in known} | settings)


@torch.no_grad()
def _make_everything_random(model, seed):
    """Matrices anew; biases, norms and scales a little off what they are, so that none is 0 or 1."""
    source = torch.Generator().manual_seed(seed + 1)
    buffers = [(n, b) for n, b in model.named_buffers() if n.endswith(("layer_scalar", "e_score_correction_bias"))]
    for name, values in [*model.named_parameters(), *buffers]:
        if not values.is_floating_point():
            continue
        noise = torch.randn(values.shape, generator=source)
        matrix = values.dim() >= 2
        if matrix and ("proj" in name or ("conv" not in name and "weight" in name.rpartition(".")[2])):
            values.copy_(0.2 * noise)
        else:
            values.add_(0.1 * noise)
    model.get_output_embeddings().weight.mul_(4)  # so that predictions are sure enough to compare
