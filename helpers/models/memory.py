"""How much memory a model needs, and how much there is: the plan, made before any weight is loaded."""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

from helpers.errors import BadInputError
from helpers.models import catalog
from helpers.models.cache_size import kv_cache_bytes
from helpers.models.locate import find_files
from helpers.models.pretrained import load_config
from helpers.models.weights import listed_weights, weight_shapes

BYTES_PER_VALUE = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# bitsandbytes: one byte a weight and a float32 scale a row; NF4 with double quantization: 4 bits a
# weight, 8 bits a block of 64 for its scale, 32 bits for each 256 of these (QLoRA, 2023, section 3).
QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}
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
    folder = find_files(name, source, weights=False)
    config = load_config(folder)
    if not any(Path(folder).glob("*.safetensors")) and (listed := listed_weights(folder)):
        return _estimated_counts(config, listed)
    shapes = weight_shapes(folder)
    outside = ("embed", "lm_head", "output_layer")
    linear = sum(
        math.prod(shape)
        for key, shape in shapes.items()
        if len(shape) == 2 and not any(part in key for part in outside)
    )
    return config.get_text_config(), linear, sum(map(math.prod, shapes.values())) - linear


def _estimated_counts(config, listed_bytes):
    text = config.get_text_config()
    total = round(listed_bytes / BYTES_PER_VALUE.get(str(config.dtype).removeprefix("torch."), 2.0))
    tables = 1 if text.tie_word_embeddings else 2
    others = min(tables * text.vocab_size * text.hidden_size, total)
    return text, total - others, others
