"""A folder's config, tokenizer and processor, read by transformers after the folder has been checked."""

import contextlib
import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from helpers.checks import shown
from helpers.errors import BadInputError, DamagedFilesError, DoesNotFitError, HelpersError, printable
from helpers.models import catalog
from helpers.models.folder import MOST_TOKENIZER_BYTES, read_settings
from helpers.models.locate import find_files
from helpers.models.out_of_memory import forget_tensors, is_out_of_memory, says_out_of_memory

# Model types that a package of this course registers with transformers: GLM-4's original checkpoints.
OUR_ARCHITECTURES = {"chatglm": "helpers.glm"}
# Settings of a config.json that are ignored, since they decide which code runs, which files are opened, which kernels
# are fetched.
NOT_FOR_A_FOLDER_TO_SAY = frozenset(
    "auto_map custom_generate custom_pipelines attn_implementation _attn_implementation _attn_implementation_internal "
    "experts_implementation _experts_implementation _experts_implementation_internal kernel_config use_kernels "
    "fusion_config transformers_weights configuration_files distributed_config tp_plan device_map compile_config "
    "_name_or_path name_or_path use_pretrained_backbone _commit_hash".split()
)
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
LARGEST_SIZE = 2**31  # of any of them
# Settings for each of which a config or a model creates an object: layers, experts, labels.
COUNTS = frozenset(
    "num_hidden_layers num_layers n_layers n_layer depth encoder_layers decoder_layers num_encoder_layers "
    "num_decoder_layers num_experts num_local_experts n_routed_experts moe_num_experts num_labels".split()
)
LARGEST_COUNT = 10**5
FOR_EACH_LAYER = ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")  # may be lists
SMALL_NUMBERS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
IDS = ("eos_token_id", "bos_token_id", "pad_token_id")  # of generation_config.json
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
LONGEST_TOKEN = 10_000  # characters; the time to load a tokenizer grows with the square of it
MOST_GROWTH = 100  # how many times longer a tokenizer may make a text before it looks for tokens
# The types that tokenizers rely on without checking.
TOKENIZER_SETTINGS = {
    "tokenizer_class": str,
    "model_max_length": int | float,
    "added_tokens_decoder": dict,
    "chat_template": str | list | dict,
    "padding_side": str,
    "truncation_side": str,
    "model_input_names": list,
    "extra_special_tokens": list | dict,
    "additional_special_tokens": list,
}


def load_config(name: str | Path, *, source: str | None = None) -> Any:
    """The model's config, as `AutoConfig` returns it, without the settings that decide which code runs.

    Raises like `load_model`.

    >>> load_config("smollm2-135m").num_hidden_layers
    30
    """
    return read_config(find_files(name, source, weights=False))


def read_config(folder: Path) -> Any:
    """The config of a folder that passed `checked_folder`. Raises `BadInputError`, `DamagedFilesError`."""
    from transformers import CONFIG_MAPPING

    file = folder / "config.json"
    if not file.is_file():
        raise DamagedFilesError(f"{folder} has no config.json: it holds only a tokenizer, or is not fully downloaded.")
    settings = read_settings(file)
    kind, code = settings.get("model_type"), _own_code(settings)
    with contextlib.suppress(TypeError):
        if kind in OUR_ARCHITECTURES:
            importlib.import_module(OUR_ARCHITECTURES[kind])
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        if code:
            raise DamagedFilesError(
                f"{folder} cannot be loaded: transformers does not know models of type {shown(kind)}. Its code is in "
                f"the folder ({code}), and the course runs no code from a model's folder. Look for a copy that "
                "transformers can load without such code."
            )
        raise DamagedFilesError(
            f"{folder} cannot be loaded: its config.json says model_type {shown(kind)}, which this version of "
            "transformers does not know. A newer one may (pip install --upgrade transformers)."
        )
    if kind == "mistral" and "layer_types" in settings:  # as AutoConfig reads it
        kind = settings["model_type"] = "ministral"
    with told(f"{file} cannot be used"):
        _check_counts(settings)
        config = CONFIG_MAPPING[kind].from_dict(_without_code(settings))
        config.name_or_path = str(folder)
        _check_sizes(config)
    return config


def _own_code(settings: dict[str, Any]) -> str:
    """The Python file that a config.json names, or an empty string."""
    code = settings.get("auto_map")
    names = [value for value in code.values() if isinstance(value, str)] if isinstance(code, dict) else []
    return shown(f"{names[-1].rpartition('--')[2].partition('.')[0]}.py")[1:-1] if names else ""


def _without_code(settings: Any) -> Any:
    if isinstance(settings, list):
        return [_without_code(value) for value in settings]
    if isinstance(settings, dict) and settings.get("__float__") in ("Infinity", "-Infinity", "NaN"):
        return float(settings["__float__"])  # how transformers writes numbers that JSON lacks, as in Mamba 2
    if isinstance(settings, dict):
        return {name: _without_code(value) for name, value in settings.items() if name not in NOT_FOR_A_FOLDER_TO_SAY}
    return settings


def _check_counts(settings: Any) -> None:
    """Check that nothing is counted in millions, before objects are created for it."""
    for name, value in settings.items() if isinstance(settings, dict) else ():
        if name in COUNTS and isinstance(value, int | float) and not abs(value) <= LARGEST_COUNT:
            raise ValueError(f"{name} is {shown(value)}")
        _check_counts(value)


def _check_sizes(config: Any) -> None:
    """Check that the sizes from which everything is computed are whole numbers, or lists of one per layer."""
    text = config.get_text_config()
    for name in SIZES:
        value = vars(text).get(text.attribute_map.get(name, name))
        if isinstance(value, list | tuple) and (name not in FOR_EACH_LAYER or not value):
            raise ValueError(f"{name} is {shown(value)}")
        for size in value if isinstance(value, list | tuple) else [value]:
            if size is not None and (type(size) is not int or not 0 <= size <= LARGEST_SIZE):
                raise ValueError(f"{name} is {shown(value)}")
    for name in SMALL_NUMBERS:
        value = vars(text).get(text.attribute_map.get(name, name))
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {shown(value)}")


def check_generation_settings(folder: Path) -> None:
    """Check that the special tokens in generation_config.json are ids. Raises `DamagedFilesError`."""
    file = folder / "generation_config.json"
    settings = read_settings(file) if file.is_file() else {}
    for name in IDS:
        value = settings.get(name)
        if value is not None and not all(type(one) is int for one in (value if isinstance(value, list) else [value])):
            raise DamagedFilesError(f"{file} cannot be used: {name} is {shown(value)}. Fetch it again.")


def load_tokenizer(name: str | Path = catalog.DEFAULT_MODEL, *, source: str | None = None) -> Any:
    """The model's tokenizer; with a hub as `source`, only its files are fetched. Raises like `load_model`.

    >>> load_tokenizer("smollm2-135m")("Hello")["input_ids"]
    [19556]
    """
    return _read_tokenizer(find_files(name, source, weights=False))


def _read_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    _check_tokenizer_settings(folder)
    _check_tokenizer_file(folder / "tokenizer.json")
    tokenizer = from_pretrained(AutoTokenizer, folder, **_config_if_any(folder))
    with told(f"The tokenizer in {folder} cannot be used"):
        tokenizer("a")
    return tokenizer


def _config_if_any(folder: Path) -> dict[str, Any]:
    """The config as a keyword argument, so that no library reads it by itself. A folder with just a tokenizer has none,
    and transformers may know a tokenizer without knowing its model.
    """
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    file = folder / "config.json"
    if not file.is_file():
        return {}
    settings = read_settings(file)
    if str(settings.get("model_type")) in (*CONFIG_MAPPING, *OUR_ARCHITECTURES):
        return {"config": read_config(folder)}
    with told(f"{file} cannot be used"):
        _check_counts(settings)
        return {"config": PreTrainedConfig.from_dict(_without_code(settings))}


def _check_tokenizer_settings(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    for name, value in (read_settings(file) if file.is_file() else {}).items():
        if name.startswith("__") or not (value is None or isinstance(value, TOKENIZER_SETTINGS.get(name, object))):
            raise DamagedFilesError(f"{file} cannot be used: {shown(name)} is {shown(value)}. Fetch it again.")


def _check_tokenizer_file(file: Path) -> None:
    """Check that no token and no normalization step makes tokenizing take forever. Raises `DamagedFilesError`."""
    described = read_settings(file, most_bytes=MOST_TOKENIZER_BYTES) if file.is_file() else {}
    model = described.get("model")
    pieces = model.get("vocab") if isinstance(model, dict) else None
    pieces = pieces if isinstance(pieces, dict | list) else ()
    pieces = [piece[0] if isinstance(piece, list) and piece else piece for piece in pieces]
    added = described.get("added_tokens")
    added = [token.get("content") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    longest = max((len(token) for token in (*pieces, *added) if isinstance(token, str)), default=0)
    if longest > LONGEST_TOKEN:
        raise DamagedFilesError(f"{file} cannot be used: it has a token of {longest:,} characters. Fetch it again.")
    with told(f"{file} cannot be used"):  # it may be nested too deeply
        growth = _growth([described.get(part) for part in ("normalizer", "pre_tokenizer")])
    if growth > MOST_GROWTH:
        raise DamagedFilesError(
            f"{file} cannot be used: its normalizer would make a text up to {min(growth, 10**12):,} times as long. "
            "Fetch it again."
        )


def _growth(part: Any) -> int:
    """The largest factor by which a part of a tokenizer can lengthen a text."""
    if isinstance(part, list):
        return math.prod(map(_growth, part))
    if not isinstance(part, dict):
        return 1
    inner = _growth([part.get(name) for name in ("normalizers", "pretokenizers")])
    content = part.get("content") if part.get("type") == "Replace" else part.get("prepend")
    if not isinstance(content, str):
        return inner
    pattern = part.get("pattern")
    replaced = pattern.get("String") if isinstance(pattern, dict) else None
    if part.get("type") == "Prepend" or not replaced:
        return inner * (1 + len(content))
    return inner * max(1, -(-len(content) // len(replaced)))


def load_processor(name: str | Path, *, source: str | None = None) -> Any:
    """The processor (for pictures and text) of a vision-language model. Raises like `load_model`.

    If the model's own processor is not available because its video part needs torchvision (as GLM-4.1V's does), the
    result is a `PictureProcessor` made of its tokenizer and image processor.

    >>> type(load_processor("tiny-glm4v")).__name__
    'ChatGLMProcessor'
    """
    folder = find_files(name, source, weights=False)
    if not _may_see(folder):  # said before seconds go into importing every kind of processor
        raise _does_not_see(name)

    from transformers import AutoImageProcessor, AutoProcessor

    _check_tokenizer_settings(folder)
    _check_tokenizer_file(folder / "tokenizer.json")
    try:
        processor = from_pretrained(AutoProcessor, folder, **_config_if_any(folder))
    except (BadInputError, DamagedFilesError) as error:
        if importlib.util.find_spec("torchvision") or not _asks_for_a_package(error.__cause__):
            raise
        image_processor = from_pretrained(AutoImageProcessor, folder, backend="pil")
        processor = PictureProcessor(image_processor, _read_tokenizer(folder))
    if not hasattr(processor, "image_processor"):
        raise _does_not_see(name)
    return processor


def _may_see(folder: Path) -> bool:
    """Whether a folder says anything about pictures: a processor's file, or the vision tower's part of its config."""
    config = folder / "config.json"
    described = any((folder / file).is_file() for file in PROCESSOR_FILES)
    return described or (config.is_file() and "vision_config" in read_settings(config))


def _does_not_see(name: str | Path) -> BadInputError:
    return BadInputError(f"{name} does not see: it has a tokenizer but no picture processor. Use load_tokenizer.")


def _asks_for_a_package(error: BaseException | None) -> bool:
    """Whether a package is missing; for a processor's video part, transformers then raises a ValueError."""
    last = None if error is None else error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    raised_in = "" if last is None else last.tb_frame.f_globals.get("__name__", "")
    return isinstance(error, ImportError) or raised_in.endswith(".video_processing_auto")


def from_pretrained(auto_class: Any, folder: Path, **settings: Any) -> Any:
    """`auto_class.from_pretrained`, using only files on this machine and no code from the folder.

    Raises `BadInputError` if this machine lacks a package, `DoesNotFitError`, and `DamagedFilesError` otherwise.
    """
    with told(f"{folder} cannot be loaded"):
        return auto_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **settings)


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Turn whatever a library raises in the block into one sentence that begins with `what`."""
    try:
        yield
    except HelpersError:
        raise
    except ImportError as error:  # flash attention, a quantizer: what the machine lacks
        raise BadInputError(f"{what} with these settings: {reason(error)}") from error
    except Exception as error:
        if is_out_of_memory(error) or says_out_of_memory(_in_the_report(error)):
            forget_tensors(error)
            raise DoesNotFitError(f"{what}: there is not enough memory for it.") from None
        raise DamagedFilesError(f"{what}: {reason(error)}. Fetch its files again.") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a panic of a library written in Rust
            raise
        raise DamagedFilesError(f"{what}: {reason(error)}. Fetch its files again.") from error


def _in_the_report(error: BaseException) -> str:
    """What went wrong while weights were converted or quantized. transformers collects these errors as texts in a
    `LoadStateDictInfo`, and at the end raises one that only refers to its printed report.
    """
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    info = None if last is None else last.tb_frame.f_locals.get("loading_info")
    return "\n".join(map(str, getattr(info, "conversion_errors", {}).values()))


def reason(error: BaseException) -> str:
    """The first line of the innermost cause of an error, for a message."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[0] if lines else type(error).__name__, 300).rstrip(".:")


class PictureProcessor:
    """A tokenizer and an image processor, for models whose own processor needs a package that only videos need."""

    needs = "torchvision"

    def __init__(self, image_processor: Any, tokenizer: Callable[..., Any]) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer
