"""Recognize out-of-memory errors: each device reports them in its own way."""

from helpers.errors import DoesNotFitError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out.

    CUDA has a class for it. The CPU's and Apple's allocators raise a plain RuntimeError, recognizable only by its text.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return not isinstance(error, DoesNotFitError)
    says = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in says or "backend out of memory" in says)
