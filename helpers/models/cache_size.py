"""How many bytes a KV cache takes, computed from a config alone."""

import inspect
from collections.abc import Iterator
from typing import Any

from helpers.checks import shown, whole_number
from helpers.errors import BadInputError

WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}  # bytes per value
# How a layer's cache grows, by the name that transformers gives its kind (DYNAMIC_LAYER_TYPE_MAPPING in cache_utils).
FULL = ("full_attention", "hybrid", "indexed_attention")
SLIDING = ("sliding_attention", "chunked_attention", "hybrid_sliding")
BOTH = ("hybrid", "hybrid_sliding")  # attention and a state side by side (Falcon-H1)
WITHOUT = ("linear_attention", "conv", "dummy")  # a state of fixed size, or nothing
LATENT = ("kv_lora_rank", "qk_rope_head_dim")
# Model types whose formula is tested against what their caches hold (tests/models/test_cache_size.py). For any other,
# a model without weights is run first.
TESTED = frozenset(
    "apertus arcee bamba biogpt bitnet bloom chatglm codegen cohere cohere2 deepseek_v2 deepseek_v3 dots1 ernie4_5 "
    "ernie4_5_moe exaone4 falcon falcon_h1 gemma gemma2 gemma3_text gemma3n_text gemma4_text glm glm4 glm4_moe "
    "glm4_moe_lite glm4v_text gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite granitemoe helium "
    "hunyuan_v1_dense internlm3 jamba lfm2 llama llama4_text minicpm3 minimax_m2 ministral ministral3 mistral mixtral "
    "mpt nanochat nemotron olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_5_vl_text qwen2_moe "
    "qwen2_vl_text qwen3 qwen3_5_text qwen3_moe qwen3_next qwen3_vl_text seed_oss smollm3 stablelm starcoder2 "
    "xglm".split()
)


def kv_cache_bytes(config: Any, length: int, *, batch: int = 1, dtype: Any = None) -> int:
    """The bytes of all keys and values that a cache holds after `length` positions of each of `batch` prompts.

    For a plain model that is 2 * layers * kv heads * head_dim * length * batch * bytes per value. A layer with a
    sliding window holds at most the last `sliding_window - 1` positions, like `DynamicSlidingWindowLayer` of
    `transformers` (each step adds the newest one to them); latent attention (DeepSeek) holds one vector of kv_lora_rank
    values and one of qk_rope_head_dim for all heads, and where an index chooses the positions that are looked at
    (DeepSeek-V3.2, GLM-5) one more of index_head_dim; layers without attention, and those that reuse another layer's
    keys, hold nothing. The fixed-size state of layers without attention (Mamba, linear attention, convolutions) is not
    counted.

    `config` is a `transformers` config or a `ModelCard`; `dtype` a torch dtype or its name (None: the
    config's own, float32 if it has none). Raises `BadInputError` for an impossible length or dtype, and for a model
    whose kind of cache the formula does not cover.

    >>> from helpers.models import find_card
    >>> kv_cache_bytes(find_card("smollm2-135m"), 100, dtype="float32") == 2 * 30 * 3 * 64 * 100 * 4
    True
    """
    length, batch = whole_number("length", length, least=0), whole_number("batch", batch, least=1)
    dtype = getattr(config, "dtype", None) or "float32" if dtype is None else dtype
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, str) or type(dtype).__name__ == "dtype" else None
    if name not in WIDTHS:
        given = shown(name or dtype)
        raise BadInputError(f"A KV cache cannot have the dtype {given}; choose one of {', '.join(WIDTHS)}.")
    values = sum(width * (length if window is None else min(length, window)) for width, window in layer_caches(config))
    return values * batch * WIDTHS[name]


def layer_caches(config: Any) -> list[tuple[int, int | None]]:
    """For each layer: how many values it stores per position, and how many positions it holds at most (None: all).

    Raises `BadInputError` for something that is not a config, and for a model whose cache the formula does not cover.
    """
    if not hasattr(config, "get_text_config"):
        return _of_card(config)
    text = config.get_text_config(decoder=True)
    if set(getattr(text, "layer_types", None) or ()) == {"linear_attention"} or text.model_type == "rwkv":
        return [(0, None)] * text.num_hidden_layers  # nothing but state space layers
    held = None if text.model_type in TESTED else _by_a_run(config)
    if held == []:
        return [(0, None)] * text.num_hidden_layers  # a model without a cache (GPT-1, xLSTM)
    try:
        layers = list(_by_formula(text))
    except (AttributeError, TypeError, ZeroDivisionError):
        raise _unknown(text, "it lacks what the formula needs") from None
    if held is not None and [values for values, _ in layers] != held:
        raise _unknown(text, "it differs from what the formula gives")
    return layers


def purely_causal(config: Any) -> bool:
    """Whether a model is nothing but attention that looks back, over keys that it keeps. False for one with layers that
    keep a state of fixed size, for PaliGemma, whose attention looks both ways, and where it is not known.

    What others say about a text may depend on padding beside it, and on how much of it came from a cache.

    >>> from transformers import LlamaConfig
    >>> purely_causal(LlamaConfig())
    True
    """
    from transformers.cache_utils import get_layer_types_and_kwargs

    try:
        values = [values for values, _ in layer_caches(config)]
    except BadInputError:
        return False
    text = config.get_text_config(decoder=True)
    side_by_side = not {*BOTH}.isdisjoint(get_layer_types_and_kwargs(text)[0])
    return all(values) and not side_by_side and not getattr(text, "use_bidirectional_attention", False)


def _by_formula(text: Any) -> Iterator[tuple[int, int | None]]:
    from transformers.cache_utils import get_layer_types_and_kwargs

    kinds, settings = get_layer_types_and_kwargs(text)
    for kind, setting, layer in zip(kinds, settings, text.per_layer_config, strict=True):
        if kind in WITHOUT:
            yield 0, None
        elif kind in FULL:
            index = layer.index_head_dim if kind == "indexed_attention" else 0
            yield _values(layer, text.model_type) + index, None
        elif kind in SLIDING:
            # A window of one position keeps all of them, since keys[-window + 1 :] then begins at 0.
            yield _values(layer, text.model_type), setting["sliding_window"] - 1 or None
        else:
            raise _unknown(text, f"a layer of kind {kind!r} is not known here")


def _values(config: Any, model_type: str) -> int:
    """How many values an attention layer stores per position: the keys and values of all heads."""
    heads, key, value = _shape(config, model_type)
    return heads * (key + value)


def stored_shapes(config: Any) -> list[tuple[int, int, int] | None]:
    """For each layer: how many key/value heads its cache stores, the size of a key, and the size of a value. None where
    the formula does not say: for layers without attention, and for models whose formula is not tested.

    >>> from transformers import LlamaConfig
    >>> stored_shapes(LlamaConfig(num_hidden_layers=1, hidden_size=64, num_attention_heads=4, num_key_value_heads=2))
    [(2, 16, 16)]
    """
    from transformers.cache_utils import get_layer_types_and_kwargs

    text = config.get_text_config(decoder=True)
    if text.model_type not in TESTED:
        return [None] * text.num_hidden_layers
    kinds, _ = get_layer_types_and_kwargs(text)
    return [
        _shape(layer, text.model_type) if kind in FULL + SLIDING else None
        for kind, layer in zip(kinds, text.per_layer_config, strict=True)
    ]


def _shape(config: Any, model_type: str) -> tuple[int, int, int]:
    """(heads, size of a key, size of a value) that an attention layer stores."""
    latent = [getattr(config, name, None) for name in LATENT]
    if all(latent):
        return 1, *latent
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return _heads(config, model_type), head_dim, head_dim


def _heads(config: Any, model_type: str) -> int:
    """How many key/value heads an attention layer stores."""
    if model_type == "falcon":  # its newer architecture repeats the shared heads before storing them
        alone = config.num_kv_heads if not config.multi_query else 1
        return config.num_attention_heads if config.new_decoder_architecture else alone
    if model_type == "gpt_bigcode":
        return 1 if config.multi_query else config.num_attention_heads
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def _by_a_run(config: Any) -> list[int]:
    """How many values each layer stores per position, found by running a model without weights; an empty list for a
    model that takes no cache."""
    import torch

    from helpers.models.skeleton import skeleton

    try:
        model = skeleton(config, dtype=torch.bfloat16)  # expert layers require it on this device
        with torch.no_grad():
            ids = torch.zeros(1, 1, dtype=torch.long, device="meta")
            if "past_key_values" not in inspect.signature(model.forward).parameters:
                return []
            cache = model(input_ids=ids, use_cache=True).past_key_values
        names = ("keys", "values", "indexer_keys")
        held = [[getattr(layer, name, None) for name in names] for layer in cache.layers]
        return [sum(states.numel() for states in parts if states is not None) for parts in held]
    except Exception as error:
        raise _unknown(config, f"a trial run failed: {type(error).__name__}") from error


def _of_card(config: Any) -> list[tuple[int, int | None]]:
    try:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return [(2 * heads * head_dim, None)] * config.num_hidden_layers
    except (AttributeError, TypeError, ZeroDivisionError):
        raise BadInputError(f"config must be a model's config or a sized ModelCard, not {shown(config)}.") from None


def _unknown(config: Any, why: str) -> BadInputError:
    return BadInputError(
        f"The size of the cache of a model of type {config.model_type!r} cannot be computed from its config ({why}). "
        "Run the model, and look at its cache with kv_cache_summary."
    )
