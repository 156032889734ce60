"""Where results are kept: on the device that computed them, or moved to the CPU during the run.

A plain `tensor.to("cpu")` makes the GPU wait: it empties the queue of kernels, and nothing new is queued until the
copy is done. `Keeper` avoids both. It copies a tensor on a separate CUDA stream into a pinned buffer (memory that
the operating system does not move, so the GPU can write to it without the processor), and a thread copies it from
there to its destination while the next layers are already running. The number of buffers is fixed, which bounds the
memory; when all are in use, the run waits for one. See "Use pinned memory buffers" in PyTorch's CUDA notes.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self

import torch

BUFFER_BYTES = 32 * 2**20  # size of a pinned buffer, large enough that a copy runs at the full speed of the bus
BUFFERS = 4


class Keeper:
    """A context manager, one per run, that copies the results of the run to where they are kept.

    `device` is where results are kept; None keeps each where the first part of it was computed. The copies are
    complete only once the context is left.
    """

    def __init__(self, device: str | None = None) -> None:
        self.device = None if device is None else torch.device(device)
        self._streams = {}
        self._free, self._busy = deque(), deque()
        self._carrier: Any = None  # a ThreadPoolExecutor, once something is carried

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                while self._busy:
                    self._free_one()
        finally:
            if self._carrier is not None:
                self._carrier.shutdown(wait=True)
            self._busy.clear()
            self._free.clear()

    def empty(self, shape: Any, like: torch.Tensor) -> torch.Tensor:
        """Memory for a result of this shape, in the dtype of one of its parts."""
        return torch.empty(shape, dtype=like.dtype, device=self.device or like.device)

    def write(self, place: torch.Tensor, value: torch.Tensor) -> None:
        """Copies `value` to `place`, a tensor of its shape (a view into a larger one, as a rule)."""
        if not (value.is_cuda and place.device.type == "cpu"):
            place.copy_(value)
            return
        for part, piece in _pieces(place, value, BUFFER_BYTES):
            self._send(part, piece)

    def copy(self, value: torch.Tensor) -> torch.Tensor:
        """A copy of `value`, with memory of its own."""
        place = self.empty(value.shape, value)
        self.write(place, value)
        return place

    def _send(self, place: Any, value: Any) -> None:
        """Copy `value` into a pinned buffer on a stream of its own, and from there to `place` in a thread."""
        buffer = self._buffer()
        pinned = buffer[: value.nbytes].view(value.dtype).view(value.shape)
        stream = self._stream(value.device)
        stream.wait_stream(torch.cuda.current_stream(value.device))  # until the value is computed
        with torch.cuda.stream(stream):
            pinned.copy_(value, non_blocking=True)
            arrived = stream.record_event()
        value.record_stream(stream)  # its memory is not used again before the copy is done

        def carry() -> None:
            arrived.synchronize()
            place.copy_(pinned)

        self._busy.append((buffer, self._carrier.submit(carry)))

    def _stream(self, device: str) -> Any:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]

    def _buffer(self) -> Any:
        if self._carrier is None:
            self._carrier = ThreadPoolExecutor(1, thread_name_prefix="keeper")
            self._free.extend(
                torch.empty(BUFFER_BYTES, dtype=torch.uint8, device="cpu", pin_memory=True) for _ in range(BUFFERS)
            )
        if not self._free:
            self._free_one()
        return self._free.popleft()

    def _free_one(self) -> None:
        """Waits for the buffer that has been in use the longest; raises what its copy raised."""
        buffer, carried = self._busy.popleft()
        carried.result()
        self._free.append(buffer)


def _pieces(place: Any, value: Any, size: int) -> Any:
    """(place, value) cut along the first axes until each piece has at most `size` bytes."""
    if value.nbytes <= size or not value.dim():
        yield place, value
        return
    row = value[0].nbytes
    if row > size:
        for part, piece in zip(place, value, strict=True):
            yield from _pieces(part, piece, size)
        return
    count = size // row
    yield from zip(place.split(count), value.split(count), strict=True)


def home(module: torch.nn.Module, otherwise: torch.device | None = None) -> torch.device:
    """The device on which a module computes, even if `accelerate` stores its weights elsewhere between runs.

    A module without weights (nanochat's norms) computes wherever its input is: the result is then `otherwise`.
    """
    for hook in _placing_hooks(module):
        execution = getattr(hook, "execution_device", None)
        if execution is not None:
            return torch.device(execution) if not isinstance(execution, int) else torch.device("cuda", execution)
    parameter = next(module.parameters(), None)
    return (otherwise or torch.device("cpu")) if parameter is None else parameter.device


def input_device(model: Any) -> torch.device:
    """The device on which a model takes its ids: its first layer may be on another device than its last."""
    return home(model.get_input_embeddings())


def working_devices(model: Any) -> list[torch.device]:
    """Every device on which a model computes, the one that takes its ids first. `accelerate`, which spreads a model
    over several, notes where it put each part; parts that it stores on the CPU or on a disk run elsewhere.
    """
    spread = getattr(model, "hf_device_map", None) or {}
    places = [place for place in spread.values() if str(place) not in ("cpu", "disk", "meta")]
    others = [torch.device("cuda", place) if isinstance(place, int) else torch.device(place) for place in places]
    return list(dict.fromkeys([input_device(model), *others]))


@contextmanager
def fetched(module: torch.nn.Module) -> Iterator[None]:
    """Inside the `with` block a module's own weights can be used without running the module.

    `accelerate` stores weights that do not fit on a GPU elsewhere ("offloaded") and loads them only for the module's
    `forward`; at all other times they are on the device "meta" and have no values.
    """
    hooks = _placing_hooks(module) if any(weight.is_meta for weight in module.parameters()) else []
    try:
        for hook in hooks:
            hook.pre_forward(module)
        yield
    finally:
        for hook in reversed(hooks):
            hook.post_forward(module, None)


def _placing_hooks(module: torch.nn.Module) -> list[Any]:
    """The hooks that `accelerate` has put on a module."""
    hook = getattr(module, "_hf_hook", None)
    return list(getattr(hook, "hooks", (hook,))) if hook is not None else []
