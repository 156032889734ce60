"""Errors for too little memory: one sentence with what is needed, what is free and what would fit."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from helpers.errors import DoesNotFitError
from helpers.models.memory import available_bytes
from helpers.models.out_of_memory import device_in, forget_tensors, is_out_of_memory

LESS = "Use a shorter prompt or a smaller model."


def size_text(size: float) -> str:
    """A number of bytes as text, in GB or MB.

    >>> size_text(69_120_000_000), size_text(1_500_000)
    ('69.1 GB', '1.5 MB')
    """
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def does_not_fit(
    what: str, needed: int, free: int, device: str, options: Mapping[str, int], otherwise: str = LESS
) -> DoesNotFitError:
    """The error for something that needs `needed` bytes where `free` bytes are free.

    `options` maps settings that need less to the bytes they need on `device`, 0 if they need none there. The message
    names those that fit, or gives the advice `otherwise` if none does.
    """
    smaller = {how: size for how, size in options.items() if size <= free}
    advice = "; ".join(f"{how} ({size_text(size)})" if size else how for how, size in smaller.items())
    return DoesNotFitError(
        f"{what} needs {size_text(needed)}, and {size_text(free)} is free on {device}. "
        + (f"What would fit: {advice}." if advice else otherwise),
        needed_bytes=needed,
        available_bytes=free,
        would_fit=tuple(smaller),
    )


def refusing_what_does_not_fit(
    what: str,
    needed: int,
    device: str,
    options: Mapping[str, int] | None = None,
    otherwise: str = LESS,
    *,
    runs: bool = True,
) -> AbstractContextManager[None]:
    """Turn running out of memory in the block into a `DoesNotFitError`; every other error passes unchanged.

    `needed` is an estimate, in bytes, of what the block keeps. If the block `runs` the model, its layers need more
    meanwhile, so more than that may have been free. `device` may list several, such as "cuda:0, cuda:1": the error is
    then about the one that ran out, or, if that is not known, about the one with the least free memory.
    """
    return refusing_by_estimate(what, lambda: (needed, options or {}, otherwise), device, runs=runs)


@contextmanager
def refusing_by_estimate(
    what: str, estimate: Callable[[], tuple[int, Mapping[str, int], str]], device: str, *, runs: bool = True
) -> Iterator[None]:
    """As `refusing_what_does_not_fit`, for an estimate that takes time: `estimate` gives (needed, options, otherwise)
    and is called only once memory has run out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        forget_tensors(error)
        devices = device.split(", ")
        for each in devices:
            release_cached(each)
        needed, options, otherwise = estimate()
        free = {each: available_bytes(each) for each in devices}
        said = device_in(error)
        device = said if said is not None and said in free else min(free, key=free.__getitem__)
        raise does_not_fit(
            f"{what} ran out of memory on {device}. "
            + ("Besides what the layers need while they run, it" if runs else "It"),
            needed,
            free[device],
            device,
            options,
            otherwise,
        ) from None


def release_cached(device: str) -> None:
    """Give back the freed GPU memory that torch caches, so that the next, smaller attempt finds no fragments."""
    import torch

    if str(device).startswith("cuda"):
        torch.cuda.empty_cache()
    elif str(device).startswith("mps"):
        torch.mps.empty_cache()
