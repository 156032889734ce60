"""Where the parts of a decoder are: the same few modules in Llama, GLM and their relatives.

`transformers` names them alike: a decoder with `embed_tokens`, `layers` and `norm`; in a layer
`self_attn` (with `o_proj`) and `mlp`.
"""

from helpers.errors import BadInputError


def decoder(model):
    """The module with `embed_tokens`, `layers` and `norm`, inside any causal language model.

    Raises `BadInputError` for a model that is built in another way.
    """
    for module in model.modules():
        if all(hasattr(module, part) for part in ("embed_tokens", "layers", "norm")):
            return module
    raise BadInputError(f"{type(model).__name__} has no decoder with embed_tokens, layers and norm to look into.")


def decoder_layer(model, layer):
    """Layer number `layer` (0 is the first, negative ones count from the end as in a list).

    Raises `BadInputError` saying which layers there are.
    """
    layers = decoder(model).layers
    if isinstance(layer, bool) or not isinstance(layer, int) or not -len(layers) <= layer < len(layers):
        raise BadInputError(f"There is no layer {layer!r}: this model has layers 0 to {len(layers) - 1}.")
    return layers[layer]


def head_count(model):
    """How many query heads each layer has."""
    return model.config.get_text_config().num_attention_heads


def writers(layer):
    """The two modules of a layer whose outputs are added to the residual stream: attention's, then the MLP's.

    In Llama and GLM they are `self_attn` and `mlp`; in GLM-4-0414 the norms that come after those.
    """
    return (
        getattr(layer, "post_self_attn_layernorm", layer.self_attn),
        getattr(layer, "post_mlp_layernorm", layer.mlp),
    )
