"""How much memory a model needs, and how much there is: the plan, made before any weight is loaded."""

import contextlib
import functools
import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.checks import one_of, shown, whole_number
from helpers.errors import BadInputError, Setting
from helpers.models import catalog
from helpers.models.cache_size import kv_cache_bytes
from helpers.models.locate import find_files
from helpers.models.pretrained import read_config
from helpers.models.skeleton import skeleton
from helpers.models.weights import listed_weights, weight_shapes

BYTES_PER_VALUE = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# bitsandbytes: one byte per weight and a float32 scale per row; NF4 with double quantization: 4 bits per
# weight, 8 bits per block of 64 for its scale, 32 bits per 256 of these (QLoRA, 2023, section 3).
QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}
QUANTIZED_LAYERS = ("Linear", "Conv1D")  # that bitsandbytes packs; Conv1D is GPT-2's linear layer
ON_MACOS = sys.platform == "darwin"
OVERHEAD_BYTES = 8_000_000  # measured with the default model on Linux: 5 to 10 MB, in every precision
NOT_COUNTED = " What reading a picture takes depends on its size, and is not counted."


@dataclass(frozen=True)
class MemoryPlan:
    """How much memory a model will need and how much is free, in bytes; `advice` says so in a sentence.

    `cure` is the part of the advice that says what would fit; it is empty if the model fits as it is.
    `advice_parts` is the advice as strings and `Setting`s, from which an error can be made.

    total_bytes is weights_bytes + kv_cache_bytes + working_bytes + overhead_bytes: working_bytes is what a forward
    pass over the whole context holds at its peak, overhead_bytes what a model takes besides its tensors (see
    `memory_plan`). Loading alone takes little more than weights_bytes.

    >>> from helpers import memory_plan
    >>> plan = memory_plan("smollm2-135m", dtype="float32")
    >>> plan.total_bytes == plan.weights_bytes + plan.kv_cache_bytes + plan.working_bytes + plan.overhead_bytes
    True
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
    cure: str = ""
    advice_parts: tuple[str | Setting, ...] = ()


def pick_device(device: Any = "auto") -> str:
    """The device as a string: "auto" means CUDA if available, else MPS, else the CPU; "cuda:2" is the third GPU.

    Raises `BadInputError` for a device that this machine does not have.

    >>> pick_device("cpu")
    'cpu'
    """
    import torch

    if not isinstance(device, str | torch.device):
        raise BadInputError(f'device must be a name such as "cpu" or "cuda:0", not {shown(device)}.')
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise BadInputError(f'{shown(device)} is not a device; try "auto", "cpu", "cuda:0" or "mps".') from None
    if kind.type not in ("cpu", "cuda", "mps"):
        why = "weights on it have no values" if kind.type == "meta" else "the course does not run on it"
        raise BadInputError(f'device={str(device)!r} cannot be used ({why}): try "auto", "cpu", "cuda:0" or "mps".')
    count = torch.cuda.device_count()
    if kind.type == "cuda" and (kind.index or 0) >= count:
        have = f"cuda:0 to cuda:{count - 1}" if count > 1 else "only cuda:0" if count else "no CUDA device"
        raise BadInputError(f'{str(device)!r} is not available: this machine has {have}. Try device="auto".')
    if kind.type == "mps" and not torch.backends.mps.is_available():
        raise BadInputError('"mps" is not available on this machine: it needs an Apple GPU. Try device="auto".')
    if kind.type == "mps" and kind.index:
        raise BadInputError(f'{str(device)!r} is not available: an Apple machine has one GPU, "mps".')
    return str(device) if kind.type == "cuda" else kind.type


def pick_dtype(dtype: Any, device: str, quantization: str | None = None) -> str:
    """The dtype's name. "auto" is float32 on a CPU (exact, and fast enough), bfloat16 elsewhere and for 4 bits.

    A GPU that cannot compute in bfloat16 (before NVIDIA's Ampere, before macOS 14) gets float16.

    >>> pick_dtype("auto", "cpu")
    'float32'
    >>> pick_dtype("bfloat16", "cpu")
    'bfloat16'
    """
    if not isinstance(dtype, str) and type(dtype).__name__ != "dtype":
        raise BadInputError(f'dtype must be the name of a number format, such as "float32", not {shown(dtype)}.')
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        if device == "cpu":
            return "bfloat16" if quantization == "4bit" else "float32"
        return "bfloat16" if _has_bfloat16(device) else "float16"
    if name not in BYTES_PER_VALUE:
        raise BadInputError(f"The dtype {shown(dtype)} is not one of auto, {', '.join(BYTES_PER_VALUE)}.")
    return name


def _has_bfloat16(device: str) -> bool:
    import torch

    if str(device).startswith("cuda"):
        return torch.cuda.get_device_capability(device)[0] >= 8
    return not str(device).startswith("mps") or torch.backends.mps.is_macos_or_newer(14, 0)


def available_bytes(device: str = "auto") -> int:
    """Free memory in bytes: of the GPU, or of this machine (within its container's limit, if any).

    Memory that torch has freed but keeps cached on a GPU counts as free, since the next tensors go there.

    >>> available_bytes("cpu") > 0
    True
    """
    import psutil

    if str(device).startswith("cuda"):
        import torch

        stats = torch.cuda.memory_stats_as_nested_dict(device)  # empty before anything was on a GPU
        reserved, allocated = (
            stats[kind]["all"]["current"] if stats else 0 for kind in ("reserved_bytes", "allocated_bytes")
        )
        return torch.cuda.mem_get_info(device)[0] + reserved - allocated
    free = psutil.virtual_memory().available
    if str(device).startswith("mps"):  # it shares the machine's memory, up to a limit of its own
        import torch

        free = min(free, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(free, 0)


def memory_plan(
    name: str | Path,
    *,
    dtype: Any = "auto",
    quantization: str | None = None,
    context: int = 2048,
    batch: int = 1,
    pictures: int | None = None,
    device: Any = "auto",
    device_map: Any = None,
    source: str | None = None,
) -> MemoryPlan:
    """The peak memory, in bytes, for loading the model and filling `context` positions for each of `batch` prompts.

    No weights are loaded. If the model's config is here, the weights are counted on a model that is built without them
    (exactly those that loading creates: tied ones once, experts and vision towers included, unused files not);
    otherwise the catalog's numbers are used.
    `device_map="auto"` counts all GPUs together. Raises `ModelNotFoundError`, `DamagedFilesError`, `BadInputError`.

    The plan counts the weights (once, however many processes share them), the KV cache, `OVERHEAD_BYTES` for the
    model's Python objects, the kernels' own buffers and the rounding of the allocator, and the working memory of
    a forward pass that reads all positions at once, as `generate` reads a prompt. At its peak, inside an MLP, each
    position holds three vectors of intermediate_size (the activated gate, up, their product) and four of
    hidden_size (the embeddings, the layer's input, the residual stream after attention, its norm), as `LlamaModel`,
    `LlamaDecoderLayer` and `LlamaMLP` of `transformers` keep them. (GLM's MLP, where gate and up are one matrix,
    holds a fourth vector of intermediate_size.) A prompt shorter than the context takes less.

    A model that sees first reads all `pictures` at once (by default, one per prompt), and working_bytes is the larger
    of the two peaks (`picture_memory` in vision_memory.py). A prompt is at least as long as its pictures: if `context`
    is too short for them (each takes 1,602 positions in GLM-4V-9B), the plan counts their positions instead. If the
    size of a picture decides how much it takes, `advice` says that it is not counted.

    Nothing can be quantized for an Apple GPU, nor on a Mac without bitsandbytes: `fits` is then False, and `advice`
    says why.

    Not counted are Python and the libraries; the scores [batch, head, position, position] of "eager" attention, also
    in the vision part; the int32 sums of 8-bit products in the language model (half of its working memory again); the
    one weight that is being converted or quantized at load; and freed memory that the allocator keeps for later (on
    Linux about 10 to 20 MB; for a model quantized on a CPU it is given back). The pages of the weights' file are not
    counted either: while the weights are converted, they show in the process's size (RSS), but they are the system's
    copy of the file, which it drops when it needs memory.

    For the default model on Linux the plan is within a tenth of what a process takes at its peak, while it loads and
    while `generate` fills 512 positions, in float32, bfloat16, 8 and 4 bits: tests/measured/test_memory_of_loading.py.

    >>> plan = memory_plan("smollm2-135m", dtype="bfloat16", device="cpu", context=1024)
    >>> plan.weights_bytes, plan.kv_cache_bytes
    (269030016, 23592960)
    """
    return _plan(
        name,
        kv_cache_bytes,
        dtype=dtype,
        quantization=quantization,
        context=context,
        batch=batch,
        pictures=pictures,
        device=device,
        device_map=device_map,
        source=source,
    )


def loading_plan(
    name: str | Path,
    *,
    dtype: Any = "auto",
    quantization: str | None = None,
    device: Any = "auto",
    device_map: Any = None,
    source: str | None = None,
) -> MemoryPlan:
    """The `memory_plan` of loading alone: one position, and no picture.

    A kind of cache that the formula does not cover counts as zero bytes here: one position takes next to nothing, and
    the model can be loaded without a cache.
    """
    return _plan(
        name,
        _of_one_position,
        dtype=dtype,
        quantization=quantization,
        context=1,
        batch=1,
        pictures=0,
        device=device,
        device_map=device_map,
        source=source,
    )


def _of_one_position(config: Any, length: int, *, batch: int, dtype: str) -> int:
    try:
        return kv_cache_bytes(config, length, batch=batch, dtype=dtype)
    except BadInputError:
        return 0


def _plan(
    name: str | Path,
    cache_bytes: Callable[..., int],
    *,
    dtype: Any,
    quantization: str | None,
    context: int,
    batch: int,
    pictures: int | None,
    device: Any,
    device_map: Any,
    source: str | None,
) -> MemoryPlan:
    """The plan, with `cache_bytes` as the formula for the KV cache."""
    from helpers.models.vision_memory import picture_memory

    one_of("quantization", quantization, (None, *QUANTIZED_BYTES))
    context, batch = whole_number("context", context, least=1), whole_number("batch", batch, least=1)
    pictures = batch if pictures is None else whole_number("pictures", pictures, least=0)
    devices = _pick_devices(device, device_map)
    device = devices[0]
    dtype = pick_dtype(dtype, device, quantization)
    config, quantizable, others = _weight_counts(name, source)
    available = sum(map(available_bytes, devices))
    seen = picture_memory(config, pictures)
    context = max(context, math.ceil(pictures / batch) * (seen.positions if seen else 0))

    @functools.cache
    def needs(dtype: str, quantization: str | None) -> tuple[int, int, int, int]:
        """Bytes of weights, KV cache, working memory and the rest."""
        width, seeing = BYTES_PER_VALUE[dtype], seen.nbytes(dtype, quantization) if seen else 0
        return (
            math.ceil(quantizable * QUANTIZED_BYTES.get(quantization, width) + others * width),
            cache_bytes(config, context, batch=batch, dtype=dtype),
            max(working_bytes(config, context * batch, width), seeing),
            OVERHEAD_BYTES,
        )

    weights, cache, working, overhead = needs(dtype, quantization)
    total = weights + cache + working + overhead
    refused = cannot_quantize(device, quantization)
    options, smallest = [("bfloat16", None), ("bfloat16", "8bit"), ("bfloat16", "4bit")], "4 bits"
    if cannot_quantize(device, "4bit"):
        options, smallest = options[:1], "bfloat16"
    smaller = [
        option for option in options if sum(needs(*option)) <= available and (refused or needs(*option)[0] < weights)
    ]
    fits = total <= available and not refused
    need = f"It needs {total / 1e9:.1f} GB, and {available / 1e9:.1f} GB is free on {', '.join(devices)}"
    cure = () if fits else _cure(smaller, smallest, sum(needs(*options[-1])))
    uncounted = () if seen else (NOT_COUNTED,)
    verdict = (", but ", *refused, " ") if refused else (": it fits." if fits else ": it does not fit. ",)
    advice = (need, *verdict, *cure, *uncounted)
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
        fits=fits,
        advice="".join(map(str, advice)),
        cure="".join(map(str, cure)),
        advice_parts=advice,
    )


def cannot_quantize(device: str, quantization: str | None) -> tuple[str | Setting, ...]:
    """Why this machine cannot quantize weights for a device, as the parts of a sentence; empty if it can, or if there
    is nothing to quantize.

    >>> cannot_quantize("mps", None)
    ()
    >>> print(*cannot_quantize("mps", "8bit"), sep="")
    quantization="8bit" needs bitsandbytes, which has no kernels for Apple GPUs: omit this setting.
    """
    if quantization is None:
        return ()
    if device == "mps":
        why = "has no kernels for Apple GPUs"
    elif device == "cpu" and ON_MACOS and importlib.util.find_spec("bitsandbytes") is None:
        why = "the course does not install on macOS"
    else:
        return ()
    return Setting("quantization", quantization), f" needs bitsandbytes, which {why}: omit this setting."


def working_bytes(config: Any, positions: int, width: float) -> int:
    """The peak working memory, in bytes, of a forward pass over `positions` positions with `width` bytes per value
    (see `memory_plan`)."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    inner = _largest(text, "intermediate_size") or 4 * text.hidden_size  # the MLP's usual width
    chosen = _largest(text, "num_experts_per_tok") or _largest(text, "moe_topk")
    experts = chosen * (_largest(text, "moe_intermediate_size") or inner)
    return int(positions * (3 * max(inner, experts) + 4 * text.hidden_size) * width)


def run_bytes(model: Any, length: int, new: int, *, batch: int = 1, pictures: int = 0) -> int:
    """An estimate, in bytes, of what a run of a loaded model takes besides its weights, as `memory_plan` counts it.

    The model reads `length` positions of each of `batch` prompts, with `pictures` pictures in all, and writes `new`
    tokens for each. A kind of cache that the formula does not cover, and pictures of no fixed size, count as zero.
    """
    from helpers.models.vision_memory import vision_bytes

    config, dtype = model.config, str(model.dtype).removeprefix("torch.")
    quantization = "8bit" if getattr(model, "is_loaded_in_8bit", False) else None
    try:
        cache = kv_cache_bytes(config, length + new, batch=batch, dtype=dtype)
    except BadInputError:
        cache = 0
    working = working_bytes(config, length * batch, model.dtype.itemsize)
    return cache + max(working, vision_bytes(config, pictures, dtype, quantization) or 0)


def _largest(config: Any, name: str) -> int:
    """A number of a config, or the largest if it has one for each layer (Hunyuan's experts); 0 without it."""
    value = getattr(config, name, None) or 0
    return max(value) if isinstance(value, list | tuple) else value


def _cure(smaller: list[tuple[str, str | None]], smallest: str, least: int) -> tuple[str | Setting, ...]:
    """What a reader without enough memory can do, as the parts of a sentence. In `smallest`, the format that takes the
    least memory on this device, the model takes `least` bytes."""
    if smaller:
        dtype, quantization = smaller[0]
        packed = (", ", Setting("quantization", quantization)) if quantization else ()
        return "It would fit with ", Setting("dtype", dtype), *packed, "."
    return (f"Even in {smallest} it needs {least / 1e9:.1f} GB. Use a smaller model.",)


def _pick_devices(device: Any, device_map: Any) -> list[str]:
    """The devices a model goes to: one, or with device_map="auto" all GPUs, if there are several."""
    import torch

    if device_map is None:
        return [pick_device(device)]
    if not isinstance(device_map, str | torch.device):
        raise BadInputError(f'device_map must be None, "auto" or the name of a device, not {shown(device_map)}.')
    if device_map != "auto":
        return [pick_device(device_map)]
    if str(device) != "auto":
        raise BadInputError(f'device_map="auto" uses every GPU: omit either device={str(device)!r} or device_map.')
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or [pick_device("auto")]


def _weight_counts(name: str | Path, source: str | None) -> tuple[Any, int, int]:
    """(config, number of weights a quantizer would pack, number of others), with tied weights counted once."""
    card = catalog.find_card(name) if isinstance(name, str) else None
    if card and card.name == "llama-3-tokenizer":
        raise BadInputError(f"{name} is only a tokenizer: it has no weights to plan for.")
    if card and card.parameters and "wheel" not in card.sources:
        groups = catalog.parameter_groups(card)
        linear = sum(groups[part] for part in ("query", "key", "value", "output", "mlp", "vision"))
        return card, linear, card.parameters - linear
    folder = find_files(name, source, weights=False)
    if not listed_weights(folder):  # a hub's folder may come without its weights
        weight_shapes(folder)
    config = read_config(folder)
    return config, *parameter_counts(skeleton(config))


def parameter_counts(model: Any) -> tuple[int, int]:
    """(number of weights a quantizer would pack, number of others) of a model: all linear layers except the last, and
    the rest. Tied parameters count once.
    """
    last = model.get_output_embeddings()
    packed = {
        id(layer.weight): layer.weight.numel()
        for layer in model.modules()
        if type(layer).__name__ in QUANTIZED_LAYERS and layer is not last
    }
    every = {id(parameter): parameter.numel() for parameter in model.parameters()}
    linear = sum(packed.values())
    return linear, sum(every.values()) - linear
