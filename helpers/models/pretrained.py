"""A folder's config, tokenizer and processor, as transformers reads them."""

import contextlib
import importlib
import json
from pathlib import Path

from helpers.errors import BadInputError, DamagedFilesError
from helpers.models import catalog
from helpers.models.locate import find_files

# Model types that a package of this course teaches transformers: GLM-4's original checkpoints.
OUR_ARCHITECTURES = {"chatglm": "helpers.glm"}


def load_config(name, *, source=None):
    """The model's config, as `AutoConfig` gives it. Raises like `load_model`."""
    from transformers import AutoConfig

    return from_pretrained(AutoConfig, find_files(name, source, weights=False))


def load_tokenizer(name=catalog.DEFAULT_MODEL, *, source=None):
    """The model's tokenizer; with a hub as `source`, its files alone are fetched. Raises like `load_model`."""
    from transformers import AutoTokenizer

    return from_pretrained(AutoTokenizer, find_files(name, source, weights=False))


def load_processor(name, *, source=None):
    """The processor (pictures and text) of a model that sees. Raises like `load_model`.

    Where the model's own processor cannot be had because its part for videos needs torchvision (GLM-4.1V's), it is
    a `PictureProcessor` of its tokenizer and image processor.
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    folder = find_files(name, source, weights=False)
    try:
        processor = from_pretrained(AutoProcessor, folder)
    except BadInputError as error:
        if not isinstance(error.__cause__, ImportError) or "torchvision" not in str(error).lower():
            raise
        image_processor = from_pretrained(AutoImageProcessor, folder, backend="pil")
        processor = PictureProcessor(image_processor, from_pretrained(AutoTokenizer, folder))
    if not hasattr(processor, "image_processor"):
        raise BadInputError(f"{name} does not see: it has a tokenizer and no picture processor. Use load_tokenizer.")
    return processor


def from_pretrained(auto_class, folder, **settings):
    from safetensors import SafetensorError

    _register_architecture(folder)
    try:
        return auto_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **settings)
    except ImportError as error:  # flash attention, a quantizer: what the machine lacks
        raise BadInputError(f"{folder} cannot be loaded with these settings: {error}") from error
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DamagedFilesError(f"{folder} cannot be loaded: {first}") from error


def _register_architecture(folder):
    """Import the package that reads this folder's kind of model, where it is one of ours."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        if config.get("model_type") in OUR_ARCHITECTURES:
            importlib.import_module(OUR_ARCHITECTURES[config["model_type"]])


class PictureProcessor:
    """A tokenizer and an image processor, for models whose own processor needs packages that only videos need."""

    def __init__(self, image_processor, tokenizer):
        self.image_processor, self.tokenizer = image_processor, tokenizer
