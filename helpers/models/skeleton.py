"""A model without its weights: the class that a config selects, built on PyTorch's device "meta".

It takes no memory and hardly any time, and shows exactly what loading will create: every parameter and its shape, tied
ones once, experts and vision towers included.
"""

from typing import Any

from helpers.errors import BadInputError, DamagedFilesError
from helpers.models.pretrained import reason

MOST_LAYERS = 2_000  # building more takes minutes; published models have at most about 130


def auto_class(config: Any) -> Any:
    """The auto class of `transformers` that loads this config: the vision-language one, if there are two.

    Raises `BadInputError` for a model that does not generate text.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    for kind in (AutoModelForImageTextToText, AutoModelForCausalLM):
        if type(config) in kind._model_mapping:
            return kind
    raise BadInputError(
        f"A model of type {config.model_type!r} does not generate text, so the course cannot look into it. Load a "
        "causal language model, or a vision-language model that answers in text."
    )


def model_class(config: Any) -> Any:
    """The class of `transformers` that loading this config creates. Raises like `auto_class`."""
    found = auto_class(config)._model_mapping[type(config)]
    if not isinstance(found, tuple | list):
        return found
    named = {kind.__name__: kind for kind in found}
    return next((named[name] for name in config.architectures or () if name in named), found[0])


def skeleton(config: Any, *, dtype: Any = None) -> Any:
    """The model of a config on the device "meta", in eval mode; `dtype` is a torch dtype, None the config's own.

    Raises `BadInputError` for a model that does not generate text, `DamagedFilesError` for a config that no model can
    be built from.
    """
    import copy

    import torch

    config, kind = copy.deepcopy(config), auto_class(config)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise DamagedFilesError(
            f"The config.json of this {config.model_type} specifies {layers:,} layers: fetch it again."
        )
    config._attn_implementation = None
    try:
        with torch.device("meta"):
            model = kind.from_config(config, dtype=dtype or config.dtype)
    except Exception as error:
        raise DamagedFilesError(
            f"No model can be built from the config.json of this {config.model_type}: {reason(error)}. Fetch it again."
        ) from error
    model.tie_weights()
    return model.eval()
