"""How many bytes a KV cache takes: the formula, from a config alone."""

from helpers.errors import BadInputError

WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}  # bytes per value


def kv_cache_bytes(config, length, *, batch=1, dtype=None):
    """Bytes of all keys and values: 2 * layers * kv heads * head_dim * length * batch * bytes per value.

    `config` is a `transformers` config or a `ModelCard`; `dtype` a torch dtype or its name (None: the
    config's own, float32 if it has none). Raises `BadInputError` for a length or dtype that cannot be.
    """
    name = str(dtype or getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    if name not in WIDTHS:
        raise BadInputError(f"A KV cache cannot be of dtype {name!r}; it can be {', '.join(WIDTHS)}.")
    if length < 0 or batch < 1:
        raise BadInputError(f"length is at least 0 and batch at least 1, not {length} and {batch}.")
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * head_dim * length * batch * WIDTHS[name]
