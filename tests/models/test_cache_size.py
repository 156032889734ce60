"""The formula of `kv_cache_bytes` against what the caches of tiny models of each family really hold."""

import pytest
import torch
import transformers

from helpers.errors import BadInputError
from helpers.inside.kv_cache import kv_cache_norms, kv_cache_summary
from helpers.models.cache_size import kv_cache_bytes, layer_caches, stored_shapes
from helpers.models.skeleton import skeleton

WINDOW, LENGTH = 8, 20
MLA = {
    **{"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
    "v_head_dim": 12,
}
MOE = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 24},
    **{"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
}
LINEAR = {
    **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
FAMILIES = {
    "Llama": {},
    "Qwen3": {"head_dim": 16},
    "Mistral": {"sliding_window": WINDOW},
    "Gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, **MIXED},
    "Gemma3Text": {"head_dim": 8, "query_pre_attn_scalar": 8, **MIXED},
    "Gemma4Text": {
        **{"head_dim": 8, "global_head_dim": 16, "num_hidden_layers": 4, "num_kv_shared_layers": 2},
        **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "sliding_window": WINDOW},
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "GptOss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, **MIXED},
    "Cohere2": {"head_dim": 8, **MIXED},
    "Llama4Text": {
        **{"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 4, "num_experts_per_tok": 1},
        **{"attention_chunk_size": WINDOW, "num_hidden_layers": 4, "moe_layers": [1, 3]},
        "no_rope_layers": [1, 1, 1, 0],
    },
    "DeepseekV3": MLA | MOE,
    "MiniCPM3": MLA,
    "Lfm2": {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    "Qwen3Next": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, **LINEAR},
    "Bamba": {
        **{"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 8},
        **{"mamba_expand": 2, "mamba_chunk_size": 8},
    },
    "FalconH1": {
        **{"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_n_groups": 2, "mamba_d_state": 8},
        **{"mamba_expand": 2, "mamba_chunk_size": 8, "head_dim": 8},
    },
    "Falcon": {"multi_query": True, "new_decoder_architecture": False},
    "Falcon-40B": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "Falcon-RW": {"multi_query": False, "new_decoder_architecture": False},
    "GPTBigCode": {"multi_query": True},
    "GPTBigCode-MHA": {"multi_query": False},
    "GPT2": {},
    "GPTNeoX": {},
    "Bloom": {},
    "Mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 256},
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "Phi": {},
}
SIZES = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}


def _config(family):
    kind = getattr(transformers, f"{family.partition('-')[0]}Config")
    known = {name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})} | set(kind.attribute_map)
    return kind(**({name: value for name, value in SIZES.items() if name in known} | FAMILIES[family]))


def _cache(config, length=LENGTH, batch=1):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.arange(3, 3 + length)[None].expand(batch, -1), use_cache=True).past_key_values


@pytest.mark.parametrize("family", FAMILIES)
def test_the_formula_gives_what_the_cache_holds(family):
    config = _config(family)
    for length, batch in ((LENGTH, 1), (WINDOW - 1, 2), (WINDOW, 1)):
        cache = _cache(config, length, batch)
        parts = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
        held = sum(tensor.nbytes for pair in parts for tensor in pair if tensor is not None)
        assert kv_cache_bytes(config, length, batch=batch, dtype="float32") == held > 0
        summary = kv_cache_summary(cache)
        assert (summary.nbytes, summary.length) == (held, length)
        assert len(summary.layers) == len(cache.layers) and repr(summary)
        for (keys, values), shape in zip(parts, stored_shapes(config), strict=False):
            if keys is not None and keys.numel():
                assert (keys.shape[1], keys.shape[3], values.shape[3]) == shape


def test_a_state_of_fixed_size_is_counted_apart():
    short, long = (kv_cache_summary(_cache(_config("Qwen3Next"), length)) for length in (4, 16))
    assert 0 < short.state_nbytes == long.state_nbytes
    assert 4 * short.nbytes == long.nbytes
    assert "bytes of state" in repr(short) and "a state of" in repr(short)


def test_where_nothing_is_held_there_is_no_norm():
    norms = kv_cache_norms(_cache(_config("Gemma2")), aligned=True)
    assert norms.keys.shape == norms.values.shape == (3, LENGTH)
    assert norms.keys[:, -WINDOW + 1 :].isfinite().all() and norms.keys[1].isfinite().all()
    assert norms.keys[0, : -WINDOW + 1].isnan().all()
    norms = kv_cache_norms(_cache(_config("Lfm2")), aligned=True)
    assert norms.keys[[0, 2]].isnan().all() and norms.keys[1].isfinite().all()


def test_a_model_that_keeps_no_keys_says_so():
    config = transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8)
    assert kv_cache_bytes(config, 1000) == 0
    model = transformers.MambaForCausalLM(config)
    with pytest.raises(BadInputError, match="state of fixed size"):
        kv_cache_summary(model(torch.tensor([[3, 4]]), use_cache=True).cache_params)


@pytest.mark.parametrize(
    ("config", "values"),  # stored for one layer and position where nothing slides; by hand from the papers' sizes
    [
        (transformers.DeepseekV3Config(), {512 + 64}),
        (transformers.MistralConfig(), {2 * 8 * 128}),
        (transformers.FalconConfig(), {2 * 64}),
        (transformers.Qwen3NextConfig(), {0, 2 * 2 * 256}),
    ],
)
def test_published_sizes(config, values):
    assert {stored for stored, _ in layer_caches(config)} == values


def test_a_family_that_was_not_tested_is_tried_out_or_refused():
    config = transformers.GraniteMoeSharedConfig(**SIZES)
    assert kv_cache_bytes(config, 5, dtype="float32") == 2 * 3 * 2 * 8 * 5 * 4
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    config.num_key_value_heads = 2  # which its class does not know
    with pytest.raises(BadInputError, match="'bert'"):
        kv_cache_bytes(config, 5)


@pytest.mark.parametrize("config", [None, 5, "smollm2-135m", [], {}])
def test_what_is_no_config(config):
    with pytest.raises(BadInputError, match="config must be"):
        kv_cache_bytes(config, 5)


@pytest.mark.parametrize("length", ["5", None, 1.5, -1, float("nan"), [5]])
def test_what_is_no_length(length):
    with pytest.raises(BadInputError, match="length must be a whole number"):
        kv_cache_bytes(transformers.LlamaConfig(), length)


def test_the_skeleton_has_every_parameter_once():
    config = _config("Gemma2")
    model = transformers.AutoModelForCausalLM.from_config(config)
    bare = skeleton(config)
    assert all(parameter.is_meta for parameter in bare.parameters())
    assert sum(p.numel() for p in bare.parameters()) == sum(p.numel() for p in model.parameters())
