"""Files become a tokenizer, a processor, a model on a device; and the memory plan before that.

`load_*` return the plain objects of `transformers`. A name is a catalog name (`list_models()`) or a
local folder; nothing here reaches for a network, except that a model packaged in a wheel is
prepared the first time it is asked for (`helpers.sources`).
"""

import contextlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from helpers import catalog, sources
from helpers.errors import BadInputError, DamagedFilesError, DoesNotFitError, ModelNotFoundError

BYTES_PER_VALUE = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# bitsandbytes: one byte a weight and a float32 scale a row; NF4 with double quantization: 4 bits a
# weight, 8 bits a block of 64 for its scale, 32 bits for each 256 of these (QLoRA, 2023, section 3).
QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}
ATTENTION = ("auto", "sdpa", "eager", "flash_attention_2")


@dataclass(frozen=True)
class MemoryPlan:
    """What a model will need and what there is, in bytes; `advice` is one sentence."""

    name: str
    device: str
    dtype: str
    quantization: str | None
    weights_bytes: int
    kv_cache_bytes: int
    total_bytes: int
    available_bytes: int
    fits: bool
    advice: str


def pick_device(device="auto"):
    """The device as a string: "auto" takes CUDA, else MPS, else CPU.

    Raises `BadInputError` for a device that this machine does not have.
    """
    import torch

    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise BadInputError(f'{device!r} is no device; try "auto", "cpu", "cuda:0" or "mps".') from None
    count = torch.cuda.device_count()
    if kind.type == "cuda" and (kind.index or 0) >= count:
        raise BadInputError(f'{device!r} is not here: this machine has {count} CUDA devices. Try device="auto".')
    if kind.type == "mps" and not torch.backends.mps.is_available():
        raise BadInputError('"mps" is not here: it needs an Apple GPU. Try device="auto".')
    return str(device)


def pick_dtype(dtype, device):
    """The dtype's name: "auto" is float32 on a CPU (exact, and fast enough) and bfloat16 elsewhere."""
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        return "float32" if device == "cpu" else "bfloat16"
    if name not in BYTES_PER_VALUE:
        raise BadInputError(f"The dtype {name!r} is not one of auto, {', '.join(BYTES_PER_VALUE)}.")
    return name


def available_bytes(device="auto"):
    """Free memory in bytes: of the GPU, or of this machine (within its container's limit, if any)."""
    import psutil

    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(free, 0)


def memory_plan(name, *, dtype="auto", quantization=None, context=2048, batch=1, device="auto"):
    """What loading the model and filling `context` positions for `batch` prompts will take.

    Reads headers only: of the folder's safetensors files when the model is here, else the catalog's
    numbers. Counts weights and KV cache; the activations of a forward pass come on top (a few
    percent of a large model). Raises `ModelNotFoundError` and `BadInputError`.
    """
    from helpers.kv_cache import kv_cache_bytes

    if quantization not in (None, *QUANTIZED_BYTES):
        raise BadInputError(f'quantization is None, "8bit" or "4bit", not {quantization!r}.')
    if context < 1 or batch < 1:
        raise BadInputError(f"context and batch are at least 1, not {context} and {batch}.")
    device = pick_device(device)
    dtype = pick_dtype(dtype, device)
    config, quantizable, others = _weight_counts(name)
    available = available_bytes(device)

    def weights(dtype, quantization):
        return math.ceil(
            quantizable * QUANTIZED_BYTES.get(quantization, BYTES_PER_VALUE[dtype]) + others * BYTES_PER_VALUE[dtype]
        )

    cache = kv_cache_bytes(config, context, batch=batch, dtype=dtype)
    total = weights(dtype, quantization) + cache
    options = [("bfloat16", None), ("bfloat16", "8bit"), ("bfloat16", "4bit")]
    smaller = [
        (d, q)
        for d, q in options
        if weights(d, q) + cache <= available and weights(d, q) < weights(dtype, quantization)
    ]
    return MemoryPlan(
        name=str(name),
        device=device,
        dtype=dtype,
        quantization=quantization,
        weights_bytes=weights(dtype, quantization),
        kv_cache_bytes=cache,
        total_bytes=total,
        available_bytes=available,
        fits=total <= available,
        advice=_advice(total, available, device, smaller, [weights(*option) + cache for option in options]),
    )


def _advice(total, available, device, smaller, sizes):
    need = f"It needs {total / 1e9:.1f} GB and {available / 1e9:.1f} GB are free on {device}"
    if total <= available:
        return f"{need}: it fits."
    if smaller:
        dtype, quantization = smaller[0]
        how = f'dtype="{dtype}"' + (f', quantization="{quantization}"' if quantization else "")
        return f"{need}: it does not fit. It would fit with {how}."
    return f"{need}: it does not fit, and even in 4 bits it needs {sizes[-1] / 1e9:.1f} GB. Take a smaller model."


def _weight_counts(name):
    """(config, weights a quantizer would pack, other weights): linear layers against the rest."""
    card = catalog.find_card(name)
    if card and not card.parameters:
        raise BadInputError(f"{name} is a tokenizer alone: it has no weights to plan for.")
    if card and "wheel" not in card.sources:
        groups = catalog.parameter_groups(card)
        linear = sum(groups[part] for part in ("query", "key", "value", "output", "mlp", "vision"))
        return card, linear, card.parameters - linear
    folder = sources.locate(name)
    shapes = weight_shapes(folder)
    outside = ("embed", "lm_head", "output_layer")
    linear = sum(
        math.prod(shape)
        for key, shape in shapes.items()
        if len(shape) == 2 and not any(part in key for part in outside)
    )
    return load_config(folder), linear, sum(map(math.prod, shapes.values())) - linear


def weight_shapes(folder):
    """Name -> shape of every tensor in a folder's safetensors files, from their headers alone.

    A file starts with 8 bytes (little-endian) that say how long the JSON header after them is.
    Raises `DamagedFilesError` naming the file, `ModelNotFoundError` when there is none.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ModelNotFoundError(
            f"{folder} holds no .safetensors file. Other weight formats are not loaded here: they can run code."
        )
    shapes = {}
    for file in files:
        try:
            with open(file, "rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > file.stat().st_size:
                    raise ValueError("its header is longer than the file")
                header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            ends = [tensor["data_offsets"][1] for tensor in header.values()]
            if 8 + length + max(ends, default=0) != file.stat().st_size:
                raise ValueError(f"{8 + length + max(ends, default=0)} bytes expected, {file.stat().st_size} found")
            shapes |= {key: tensor["shape"] for key, tensor in header.items()}
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise DamagedFilesError(f"{file} is damaged ({error}): fetch it again.") from None
    return shapes


def load_config(name):
    """The model's config, as `AutoConfig` gives it. Raises like `load_model`."""
    from transformers import AutoConfig

    return _from_pretrained(AutoConfig, sources.locate(name))


def load_tokenizer(name=catalog.DEFAULT_MODEL):
    """The model's tokenizer. Raises like `load_model`."""
    from transformers import AutoTokenizer

    return _from_pretrained(AutoTokenizer, sources.locate(name))


def load_processor(name):
    """The processor (pictures and text) of a model that sees. Raises like `load_model`."""
    from transformers import AutoProcessor

    processor = _from_pretrained(AutoProcessor, sources.locate(name))
    if not hasattr(processor, "image_processor"):
        raise BadInputError(f"{name} does not see: it has a tokenizer and no picture processor. Use load_tokenizer.")
    return processor


def load_model(
    name=catalog.DEFAULT_MODEL,
    *,
    device="auto",
    dtype="auto",
    quantization=None,
    attn_implementation="auto",
    source=None,
):
    """A causal language model of `transformers`, in eval mode, on its device.

    name: a catalog name or a local folder. device: "auto" (CUDA, else MPS, else CPU) or a name such
    as "cuda:2". dtype: "auto" (float32 on a CPU, else bfloat16) or a name; when it is the dtype on
    disk, weights stay memory-mapped and shared between processes. quantization: None, "8bit" or
    "4bit" (NF4, double quantization), by bitsandbytes. attn_implementation: "auto" is "sdpa".
    source: None, "wheel" or "folder", to insist on one.

    Raises `ModelNotFoundError`, `DamagedFilesError`, `DoesNotFitError` (before anything is loaded) and
    `BadInputError`.
    """
    from transformers import AutoModelForCausalLM

    if attn_implementation not in ATTENTION:
        raise BadInputError(f"attn_implementation is one of {', '.join(ATTENTION)}, not {attn_implementation!r}.")
    folder = _locate_in(name, source)
    plan = memory_plan(name, dtype=dtype, quantization=quantization, context=1, device=device)
    if not plan.fits:
        raise DoesNotFitError(f"{name} does not fit. {plan.advice}")
    settings = {
        "dtype": plan.dtype,
        "attn_implementation": "sdpa" if attn_implementation == "auto" else attn_implementation,
        "use_safetensors": True,
    }
    if quantization:
        settings |= {
            "quantization_config": _quantization_config(quantization, plan.dtype),
            "device_map": plan.device,
        }
    elif plan.device != "cpu":
        settings |= {"device_map": plan.device}
    return _load_weights(AutoModelForCausalLM, folder, settings).eval()


def _locate_in(name, source):
    kinds = {"wheel": name in sources.RECIPES, "folder": name not in sources.RECIPES}
    if source is not None and source not in kinds:
        raise BadInputError(f"source is None, {' or '.join(map(repr, kinds))}, not {source!r}.")
    if source is not None and not kinds[source]:
        raise ModelNotFoundError(f"{name} does not come from a {source}. Leave source out to take where it comes from.")
    return sources.locate(name)


def _quantization_config(quantization, dtype):
    import torch
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise BadInputError(f'quantization="{quantization}" needs bitsandbytes: pip install bitsandbytes.') from None
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def _load_weights(auto_class, folder, settings):
    """from_pretrained, with missing and misshapen weights as errors (the library only warns)."""
    with sources.quiet_progress():
        model, report = _from_pretrained(auto_class, folder, output_loading_info=True, **settings)
    wrong = sorted(report["missing_keys"]) or sorted(str(key[0]) for key in report["mismatched_keys"])
    if wrong:
        raise DamagedFilesError(
            f"{folder} has no right weights for {len(wrong)} tensors ({wrong[0]} first): fetch its files again."
        )
    return model


def _from_pretrained(auto_class, folder, **settings):
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
    """GLM-4's original checkpoints are read by this package's own classes."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        if config.get("model_type") == "chatglm":
            import helpers.glm  # noqa: F401
