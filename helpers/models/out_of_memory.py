"""Whether an error says that memory ran out: each device has its own way to say so."""

from helpers.errors import DoesNotFitError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out.

    CUDA has a class for it. The CPU's allocator and Apple's raise a plain RuntimeError, which only its text tells.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return not isinstance(error, DoesNotFitError)
    says = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in says or "backend out of memory" in says)
