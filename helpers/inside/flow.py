"""One run of a model, followed addition by addition.

A `TorchDispatchMode` of PyTorch sees every operation of a run. This one keeps a small graph of the tensors
that are as large as the residual stream: which of them are sums of others, which are another one times a
number, and which were computed in some other way. Hooks record the inputs and outputs of each module.
Together they show what a layer adds to the stream and which module computed it, for any architecture.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.inside.exclusive import in_this_thread

_ATEN = torch.ops.aten
_SUMS = {_ATEN.add.Tensor: 1.0, _ATEN.add_.Tensor: 1.0, _ATEN.sub.Tensor: -1.0, _ATEN.sub_.Tensor: -1.0}
_PRODUCTS = {_ATEN.mul.Tensor, _ATEN.mul_.Tensor, _ATEN.mul.Scalar, _ATEN.mul_.Scalar}
_QUOTIENTS = {_ATEN.div.Tensor, _ATEN.div_.Tensor, _ATEN.div.Scalar, _ATEN.div_.Scalar}
WIDEST = 64  # tensors up to this many times the stream's size are kept, enough for small models with wide heads
_COPIES = {_ATEN.clone.default, _ATEN._to_copy.default}


@dataclass(eq=False, slots=True)
class Value:
    """What one tensor of the stream's size held at one moment.

    `parts`: the values it is a sum of, each with its factor. With a single part it is a copy or a multiple, and
    with none it was computed in some other way. `tensor` holds the value, or a copy of it once something else has
    been written there.
    """

    tensor: torch.Tensor
    parts: tuple[tuple["Value", float], ...] = ()

    def original(self) -> "Value":
        """The value that this one is an unchanged copy of, or the value itself."""
        value = self
        while len(value.parts) == 1 and value.parts[0][1] == 1.0:
            value = value.parts[0][0]
        return value


@dataclass(eq=False)
class Call:
    """One call of a module: its inputs and outputs.

    - `path`: the names of the modules it ran inside, outermost first, its own name last.
    - `inputs`: the values of the stream's size among its arguments; `shape`: the shape in which the first came.
    - `given`: names of its other keyword arguments, such as a cache or a mask.
    - `output`: the first value of the stream's size that it returned, or None; `place` is its index among the
      returned tensors.
    - `weights`: the first other tensor of four dimensions that it returned; `weights_place` is its index.
    - `first`, `result`: for a module with a matrix, the first tensor that it took and the first that it returned, of
      any size up to `WIDEST` times the stream.
    """

    module: torch.nn.Module
    path: tuple[str, ...]
    inputs: tuple[Value, ...] = ()
    shape: tuple[int, ...] = ()
    first: torch.Tensor | None = None
    result: torch.Tensor | None = None
    given: tuple[str, ...] = ()
    output: Value | None = None
    place: int = 0
    weights: torch.Tensor | None = None
    weights_place: int = 0

    @property
    def name(self) -> str:
        """The module's name, as in `model.named_modules()`."""
        return self.path[-1]

    @property
    def took(self) -> torch.Tensor | None:
        """The first tensor of the stream's size that it was given."""
        return self.inputs[0].tensor if self.inputs else None

    @property
    def gave(self) -> torch.Tensor | None:
        """The first tensor of the stream's size that it returned."""
        return self.output.tensor if self.output else None


@dataclass
class Flow:
    """Follows one run: `calls` in the order in which they began, `done` in the order in which they ended."""

    size: int
    calls: list[Call] = field(default_factory=list)
    done: list[Call] = field(default_factory=list)
    _values: dict = field(default_factory=dict)
    _alive: list = field(default_factory=list)  # no tensor is freed before the end, so that no address is reused
    _open: list = field(default_factory=list)

    def follow(self, model: torch.nn.Module, run: Callable[[], Any]) -> Any:
        """Call `run` and record what happens in `model` meanwhile. Returns what `run` returned."""
        with ExitStack() as hooks:
            for name, module in model.named_modules():
                hooks.enter_context(
                    module.register_forward_pre_hook(in_this_thread(self._enter(name)), with_kwargs=True)
                )
                hooks.enter_context(module.register_forward_hook(in_this_thread(self._leave)))
            hooks.enter_context(_Watch(self))
            return run()

    def value(self, tensor: torch.Tensor) -> Value:
        """The value that a tensor holds now."""
        place = _place(tensor)
        if place not in self._values:
            self.put(tensor)
        return self._values[place]

    def put(self, tensor: torch.Tensor, parts: tuple[tuple[Value, float], ...] = ()) -> None:
        """Record that a tensor holds another value from now on."""
        self._alive.append(tensor)
        self._values[_place(tensor)] = Value(tensor, parts)

    def save(self, tensor: torch.Tensor) -> None:
        """Copy what a tensor holds, because it is about to be overwritten."""
        value = self._values.get(_place(tensor))
        if value is not None:
            value.tensor = value.tensor.clone()

    def counts(self, tensor: Any) -> bool:
        """Whether it is a tensor of the stream's size."""
        return isinstance(tensor, torch.Tensor) and tensor.numel() == self.size and tensor.is_floating_point()

    def _enter(self, name):
        def hook(module, arguments, keywords):
            call = Call(module, (*(self._open[-1].path if self._open else ()), name))
            found = [tensor for tensor in tensors((arguments, keywords)) if self.counts(tensor)]
            call.inputs = tuple(self.value(tensor) for tensor in found)
            call.shape = tuple(found[0].shape) if found else ()
            call.first = self._kept(module, next(tensors((arguments, keywords)), None))
            call.given = tuple(key for key, value in keywords.items() if not self.counts(value))
            self.calls.append(call)
            self._open.append(call)

        return hook

    def _kept(self, module, tensor):
        matrix = any(parameter.dim() == 2 for parameter in module.parameters(recurse=False))
        return tensor.clone() if matrix and tensor is not None and tensor.numel() <= WIDEST * self.size else None

    def _leave(self, module, arguments, output):
        call = self._open.pop()
        self.done.append(call)
        call.result = self._kept(module, next(tensors(output), None))
        for place, tensor in enumerate(tensors(output)):
            if call.output is None and self.counts(tensor):
                call.output, call.place = self.value(tensor), place
            elif call.weights is None and tensor.dim() == 4:
                call.weights, call.weights_place = tensor, place


class _Watch(TorchDispatchMode):
    def __init__(self, flow: Flow):
        super().__init__()
        self.flow = flow

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        parts = self._parts(function, args, kwargs or {})
        known = {_place(tensor) for tensor in tensors(args) if self.flow.counts(tensor)}
        if function._schema.is_mutable:
            for tensor in filter(self.flow.counts, tensors(args)):
                self.flow.save(tensor)
        output = function(*args, **(kwargs or {}))
        if self.flow.counts(output):
            if parts is not None:
                self.flow.put(output, parts)
            elif function._schema.is_mutable or _place(output) not in known:
                self.flow.put(output)
        return output

    def _parts(self, function, args, kwargs):
        if function not in _COPIES and len(args) < 2:
            return None
        first = args[0]
        if function in _SUMS and all(map(self.flow.counts, args[:2])) and not kwargs.get("alpha"):
            return (self.flow.value(first), 1.0), (self.flow.value(args[1]), _SUMS[function])
        if function in _COPIES and self.flow.counts(first):
            return ((self.flow.value(first), 1.0),)
        if function in _PRODUCTS and self.flow.counts(args[1]) and not self.flow.counts(first):
            args = args[1], first
        if function in _PRODUCTS | _QUOTIENTS and self.flow.counts(args[0]):
            factor = _number(args[1])
            if factor is not None and (factor or function in _PRODUCTS):
                return ((self.flow.value(args[0]), factor if function in _PRODUCTS else 1 / factor),)
        return None


def _number(value):
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 else None
    return float(value)


def _place(tensor):
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.numel()


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in what a module takes or returns: a tensor, a tuple, a dict or a `ModelOutput`."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)
