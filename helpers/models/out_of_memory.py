"""Recognize out-of-memory errors: each device and each library reports them in its own way."""

import gc
import re
import traceback

from helpers.errors import HelpersError

# Only the allocator of CUDA has a class for it. All others raise a plain RuntimeError (or a subclass, such as
# `torch.AcceleratorError`) that is recognizable by its text alone. A kernel that asks for more shared memory than a
# GPU has says "out of resource" instead, and no smaller prompt cures that.
SAYS_SO = re.compile(
    r"\b(cuda|hip|xpu|mps|backend|driver)\]?( driver)?( error)?:? out of memory"  # also from a driver, or from Triton
    r"|_status_(\w+_)?alloc(ation)?_failed"  # cuBLAS, cuDNN, cuSOLVER and AMD's counterparts
    r"|cudaerrormemoryallocation"
    r"|\binvalid buffer size: [\d.]+ ?[kmgtp]?i?b"  # Apple's Metal, for one tensor that is too large
    r"|can't allocate memory|cannot allocate memory|defaultcpuallocator: not enough memory|std::bad_alloc",  # CPU
    re.IGNORECASE,
)
OF_THE_CPU = re.compile(r"allocate memory|defaultcpuallocator|bad_alloc", re.IGNORECASE)
GPU_NUMBER = re.compile(r"\bGPU (\d+) has a total capacity")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of a library says that memory ran out.

    >>> is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    True
    >>> is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    False
    """
    import torch

    if isinstance(error, HelpersError):
        return False
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and says_out_of_memory(str(error))


def says_out_of_memory(text: str) -> bool:
    """Whether a text has the words with which a library says that memory ran out."""
    return SAYS_SO.search(text) is not None


def device_in(error: BaseException) -> str | None:
    """The device that an out-of-memory error is about, such as "cuda:1", or None if it does not say.

    >>> device_in(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB. GPU 1 has a total capacity of 79 GiB"))
    'cuda:1'
    >>> device_in(MemoryError())
    'cpu'
    """
    number = GPU_NUMBER.search(str(error))
    if number is not None:
        return f"cuda:{number[1]}"
    return "cpu" if isinstance(error, MemoryError) or OF_THE_CPU.search(str(error)) else None


def forget_tensors(error: BaseException) -> None:
    """Free what a computation had made when it failed, which the frames of its traceback hold, and so of every error
    that led to it. Frames that are still running keep what is theirs.
    """
    errors: list[BaseException | None] = [error]
    seen = set()
    while errors:
        one = errors.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            errors += [one.__cause__, one.__context__]
    gc.collect()  # a module may be part of a cycle
