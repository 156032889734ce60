"""A model without its weights: the class that a config selects, built on PyTorch's device "meta".

It takes no memory and hardly any time, and shows exactly what loading will create: every parameter and its shape, tied
ones once, experts and vision towers included.
"""

from typing import Any

from helpers.errors import BadInputError, DamagedFilesError
from helpers.models.pretrained import reason

MOST_LAYERS = 2_000  # building more takes minutes; published models have at most about 130
CLASSIFIERS = ("SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING", "MULTIPLE_CHOICE")


def auto_class(config: Any) -> Any:
    """The auto class of `transformers` that loads this config: the vision-language one, if there are two.

    Raises `BadInputError` for a model that does not continue a text, also where `transformers` would build one that
    does from a part of its weights (a reward model, an encoder, the decoder of an encoder-decoder).
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    what = _what_else(config)
    for kind in (AutoModelForImageTextToText, AutoModelForCausalLM):
        if what is None and type(config) in kind._model_mapping:
            return kind
    raise BadInputError(
        f"A model of type {config.model_type!r} {what or 'does not generate text'}, so the course cannot look into it. "
        "Load a causal language model, or a vision-language model that answers in text."
    )


def _what_else(config: Any) -> str | None:
    """What a model is, in words that follow "a model", if it was saved as something that does not continue a text."""
    name = saved_as(config)
    if config.is_encoder_decoder:
        return "is an encoder-decoder"
    if name in _classes("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT"):
        return None
    if name in _classes("MULTIMODAL_LM"):
        return "takes sound or video and is not loaded here"
    if name in _classes("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ"):
        return "is an encoder-decoder"
    if name in _classes(*CLASSIFIERS):
        return f"that was saved as {name} gives labels or a score and has no head for the next token"
    if name in _classes("MASKED_LM") or name.endswith("ForPreTraining"):
        return f"that was saved as {name} fills gaps in a text and does not continue it"
    return None


def saved_as(config: Any) -> str:
    """The name of the class that a model was saved as, an empty string if its config does not say."""
    names = config.architectures
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def _classes(*tasks: str) -> set[str]:
    """The names of all classes of `transformers` for some tasks."""
    from transformers.models.auto import modeling_auto

    names: set[str] = set()
    for task in tasks:
        for found in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").values():
            names |= {found} if isinstance(found, str) else set(found)
    return names


def is_base_model(config: Any) -> bool:
    """Whether a model was saved without a head, such as an embedding model.

    >>> from transformers import Qwen3Config
    >>> is_base_model(Qwen3Config(architectures=["Qwen3Model"]))
    True
    """
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    name = saved_as(config)
    return name.endswith("Model") and name in MODEL_MAPPING_NAMES.values()


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
