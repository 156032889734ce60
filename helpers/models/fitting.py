"""Does it fit? One sentence with what is needed, what is free and what would fit, before a run or after it failed."""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from helpers.errors import DoesNotFitError
from helpers.models.memory import available_bytes
from helpers.models.out_of_memory import is_out_of_memory

LESS = "Take a shorter prompt or a smaller model."


def size_text(size: float) -> str:
    """Bytes for a reader.

    >>> size_text(69_120_000_000), size_text(1_500_000)
    ('69.1 GB', '1.5 MB')
    """
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def does_not_fit(
    what: str, needed: int, free: int, device: str, options: Mapping[str, int], otherwise: str = LESS
) -> DoesNotFitError:
    """The error for something that needs `needed` bytes where `free` are free.

    `options`: how to ask for less -> the bytes it then takes. Those that fit are named; `otherwise` is the advice
    when none does.
    """
    smaller = {how: size for how, size in options.items() if size <= free}
    advice = "; ".join(f"{how} ({size_text(size)})" for how, size in smaller.items())
    return DoesNotFitError(
        f"{what} needs {size_text(needed)} and {size_text(free)} are free on {device}. "
        + (f"What would fit: {advice}." if advice else otherwise),
        needed_bytes=needed,
        available_bytes=free,
        would_fit=tuple(smaller),
    )


@contextmanager
def refusing_what_does_not_fit(
    what: str, needed: int, device: str, options: Mapping[str, int] | None = None, otherwise: str = LESS
) -> Iterator[None]:
    """Memory that runs out inside ends in a `DoesNotFitError`; every other error passes as it is.

    `needed` is an estimate in bytes of what is kept. The layers of the model take more while they run, so there may
    have been more free than that.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the tensors that were made so far
        release_cached(device)
        free = available_bytes(device)
        raise does_not_fit(
            f"{what} ran out of memory on {device}. Beside what the layers take while they run, it",
            needed,
            free,
            device,
            options or {},
            otherwise,
        ) from None


def release_cached(device: str) -> None:
    """What torch keeps of freed GPU memory goes back, so that the next, smaller try meets no fragments."""
    import torch

    if str(device).startswith("cuda"):
        torch.cuda.empty_cache()
    elif str(device) == "mps":
        torch.mps.empty_cache()
