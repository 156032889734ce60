"""What is inside a model: its layers, what each adds to the residual stream, its final norm and its head.

No other module depends on a model's architecture, and this one relies on hardly any module names. A model is
run once on a few tokens while `Flow` records which tensors are added to which. The record shows which modules
are the layers, which parts of a layer write to the residual stream, whether their output is normed or scaled
before it is added, where attention mixes its heads, and what happens to the logits. Then the numbers are
checked: the parts of each layer must add up to the layer's output, and the final norm, the head and what
follows must give the model's own logits. A part that fails its check is not used: the accessors below raise
`BadInputError`, which names the model and what is missing.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from helpers.checks import language_model, shown
from helpers.errors import BadInputError
from helpers.inside.exclusive import alone, in_this_thread
from helpers.inside.flow import Call, Flow, Value, tensors
from helpers.inside.keeping import fetched, home, input_device
from helpers.models.fitting import refusing_what_does_not_fit
from helpers.models.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedConfig, PreTrainedModel

PROBE_LENGTH = 6  # tokens in the run that anatomies are read from
# What a run of a model that needs more than a text raises: a picture, a language, another config.
DOES_NOT_RUN = (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError, NotImplementedError)


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a layer that writes to the residual stream.

    - `name`: the name of the layer's child module, such as `self_attn` or `mlp`.
    - `writer`, `place`, `scale`: the module whose output is added to the stream, the index of the added tensor among
      its outputs, and the number that this tensor is multiplied by first.
    - `norm`: the writer, if it is a norm that follows the part (OLMo 2, Gemma 2); otherwise None.
    - `mixes`: whether it reads other positions, as attention does and whatever replaces attention.
    """

    name: str
    module: torch.nn.Module
    writer: torch.nn.Module
    place: int
    scale: float
    norm: torch.nn.Module | None
    mixes: bool


@dataclass(frozen=True, eq=False)
class Attention(Part):
    """A `Part` that is softmax attention.

    - `caller`: the module that passes queries, keys and values to the library's attention function, or that
      computes attention itself. In the second case `weights_place` is the index of the weights among its outputs.
    - `heads`: the number of query heads. `projection`: the output projection, which turns the concatenated results
      of the heads (`width` numbers) into what is written to the stream.
    - `queries`: the query projection, if the norm of the queries does not change afterwards.
    - `plain`: whether attention is softmax(query · key · scaling + mask) · value, without a sink, a cap or a bias.
    """

    caller: torch.nn.Module
    weights_place: int | None
    heads: int
    projection: torch.nn.Module | None
    width: int
    queries: torch.nn.Module | None
    plain: bool


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer.

    - `place`: the index of the residual stream among the layer's outputs.
    - `parts`: its parts, in the order in which they write. `norms`: the norms that read the stream before a part.
    - `factor`: the number that the whole stream is multiplied by at the end of the layer, 1 in nearly every model.
    - `after`: the number that the stream is multiplied by between this layer and the next, or the final norm: 1 in
      every model but RWKV, which halves it every few layers.
    - `gap`: why the layer cannot be split into parts, or None if it can.
    """

    module: torch.nn.Module
    place: int
    parts: tuple[Part, ...]
    norms: tuple[torch.nn.Module, ...]
    factor: float
    after: float
    gap: str | None

    @cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """All softmax attentions of the layer: nearly always one or none."""
        return tuple(part for part in self.parts if isinstance(part, Attention))

    @cached_property
    def attention(self) -> Attention | None:
        """The layer's softmax attention; None without one, or with several, which cannot be told apart (LongCat)."""
        return self.attentions[0] if len(self.attentions) == 1 else None

    @property
    def mlp(self) -> Part | None:
        """The layer's MLP or mixture of experts: of the parts that read one position only, the one with the most
        weights; None if there is no such part."""
        return max((part for part in self.parts if not part.mixes), key=lambda part: _size(part.module), default=None)


@dataclass(frozen=True, eq=False)
class LogitMap:
    """How scores become logits: `softcap · tanh(scale · score / softcap)`, or `scale · score` without a softcap."""

    scale: float = 1.0
    softcap: float | None = None

    def apply_(self, scores: torch.Tensor) -> torch.Tensor:
        """Turn the head's scores `[..., vocab]` into logits, in place; returns the same tensor."""
        if self.scale != 1.0:
            scores.mul_(self.scale)
        if self.softcap is not None:
            scores.div_(self.softcap).tanh_().mul_(self.softcap)
        return scores

    def factor(self, score: float) -> float:
        """The number that this score is multiplied by to give its logit."""
        changed = float(self.apply_(torch.tensor([score], dtype=torch.float64, device="cpu")))
        return changed / score if score else self.scale


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A model's parts. `lens_gap` says why the logit lens cannot read its states, or is None.

    - `owner`: the module that runs the layers, whose config says how attention is computed.
    - `embedding` and `embedding_scale`: the stream begins as the embedding's output times this number, which is None
      if something else happens too, such as adding position embeddings.
    - `final_norm` gets the stream after the last layer; it is None for a model without one (OPT-350m, GPT-1). Its
      output times `head_scale` goes into `head`, in OPT-350m through a further matrix, `into_head`. `logit_map` turns
      the head's scores into logits.
    - `hidden_size`: the length of a hidden state. `context`: the largest number of positions, None without a limit.

    >>> parts = anatomy(model)
    >>> len(parts.layers), parts.hidden_size, parts.lens_gap
    (30, 576, None)
    """

    kind: str
    owner: Any
    container: torch.nn.ModuleList
    layers: tuple[Layer, ...]
    embedding: torch.nn.Module | None
    embedding_scale: float | None
    final_norm: torch.nn.Module | None
    into_head: Any
    head: Any
    head_scale: float
    logit_map: LogitMap
    lens_gap: str | None
    hidden_size: int
    context: int | None

    @cached_property
    def attention_layers(self) -> tuple[int, ...]:
        """The numbers of the layers that have attention."""
        return tuple(number for number, layer in enumerate(self.layers) if layer.attention)

    @cached_property
    def heads(self) -> int:
        """The number of query heads per layer that has attention: the largest if they differ, 0 without attention."""
        return max((layer.attention.heads for layer in self.layers if layer.attention), default=0)

    def number(self, layer: Any) -> int:
        """A layer's number, counted from 0; a negative one counts from the end, as in a list.

        Raises `BadInputError` for a layer that the model does not have.
        """
        count = len(self.layers)
        if isinstance(layer, bool) or not isinstance(layer, int) or not -count <= layer < count:
            raise BadInputError(f"There is no layer {shown(layer)}: this model has layers 0 to {count - 1}.")
        return layer % count

    def layer(self, layer: Any) -> Layer:
        """The layer with this number. Raises what `number` raises."""
        return self.layers[self.number(layer)]

    def attention(self, layer: Any) -> Attention:
        """A layer's attention. Raises `BadInputError` for a layer that has none, or several."""
        number = self.number(layer)
        found = self.layers[number].attention
        if found is None:
            raise BadInputError(self.without_attention([number]))
        return found

    def mlp(self, layer: Any) -> Part:
        """A layer's MLP. Raises `BadInputError` for a layer without one, or one whose parts are not known."""
        number = self.number(layer)
        self._check_parts(number)
        found = self.layers[number].mlp
        if found is None:
            raise BadInputError(f"Layer {number} of {self.kind} has no MLP{self._instead(number)}.")
        return found

    def check_parts(self) -> None:
        """Raises `BadInputError` unless every layer's parts are known and add up."""
        for number in range(len(self.layers)):
            self._check_parts(number)

    def _check_parts(self, number: int) -> None:
        if self.layers[number].gap:
            raise BadInputError(f"Layer {number} of {self.kind} cannot be taken apart: {self.layers[number].gap}.")

    def check_lens(self) -> None:
        """Raises `BadInputError` unless the final norm and the head are known to give the model's logits."""
        if self.lens_gap:
            raise BadInputError(f"The logit lens cannot read the hidden states of {self.kind}: {self.lens_gap}.")

    def for_head(self, states: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
        """Hidden states `[..., hidden]` as they go into the head, on its device.

        `normed` is a boolean tensor that broadcasts over the states. It is True for those that have already been
        through the final norm.
        """
        device = home(self.head)
        states = states.to(device)
        if self.final_norm is not None:
            after_norm = self.final_norm(states.to(home(self.final_norm, device))).to(device)
            states = torch.where(normed.to(device), states, after_norm)
        states = states * self.head_scale
        return states if self.into_head is None else self.into_head(states.to(home(self.into_head, device))).to(device)

    def head_row(self, token: int) -> tuple[torch.Tensor, float]:
        """(direction `[hidden]`, constant): a token's score is the product of the direction and the state after the
        final norm, plus the constant. The direction is float32, on the CPU."""
        with fetched(self.head):
            row = self.head.weight[token].detach().float().cpu() * self.head_scale
            added = 0.0 if getattr(self.head, "bias", None) is None else float(self.head.bias[token])
        if self.into_head is not None:
            if getattr(self.into_head, "bias", None) is not None:
                added += float(row @ self.into_head.bias.detach().float().cpu())
            weight = matrix(self.into_head, self.hidden_size).float()
            row = (row.to(weight.device) @ weight).cpu()
        return row, added

    def projection(self, layer: Any) -> torch.nn.Module:
        """The output projection of a layer's attention. Its input is the results of the heads, concatenated.

        Raises `BadInputError` for a layer without attention, or one whose heads cannot be told apart.
        """
        number = self.number(layer)
        attention = self.attention(number)
        if attention.projection is None:
            raise BadInputError(
                f"The heads of layer {number} of {self.kind} cannot be told apart: what {attention.name} writes is not "
                "a matrix product of what they computed."
            )
        return attention.projection

    def query_projection(self, layer: Any) -> torch.nn.Module:
        """The query projection of a layer, if the queries are only rotated afterwards; otherwise `BadInputError`."""
        number = self.number(layer)
        found = self.attention(number).queries
        if found is None:
            raise BadInputError(
                f"Attention in layer {number} of {self.kind} has no plain q_proj whose result could be scaled: its "
                "queries share a matrix with the keys, or are normed afterwards."
            )
        return found

    def without_attention(self, numbers: list[int]) -> str:
        """The error message for layers that have no attention."""
        several = f"Layers {', '.join(map(str, numbers))}" if len(numbers) > 1 else f"Layer {numbers[0]}"
        have = "have" if len(numbers) > 1 else "has"
        there = self.attention_layers
        if any(self.layers[number].attentions for number in numbers):
            count = max(len(self.layers[number].attentions) for number in numbers)
            each = " each" if len(numbers) > 1 else ""
            return f"{several} of {self.kind} {have} {count} attentions{each}, which cannot be told apart here."
        if not there:
            return f"{self.kind} gives no attention weights in any layer{self._instead(numbers[0])}."
        others = f"layers {_listed(there)} do" if len(there) > 1 else f"layer {there[0]} does"
        return f"{several} of {self.kind} {have} no attention{self._instead(numbers[0])}; {others}."

    def _instead(self, number: int) -> str:
        parts = self.layers[number].parts
        named = [f"{part.name} ({type(part.module).__name__})" for part in parts if part.mixes] or [
            f"{part.name} ({type(part.module).__name__})" for part in parts
        ]
        return f"; it has {' and '.join(named)}" if named else ""


_known: WeakKeyDictionary[torch.nn.Module, Anatomy] = WeakKeyDictionary()
_refused: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()


def anatomy(model: torch.nn.Module) -> Anatomy:
    """A model's `Anatomy`. The first call runs the model once on a few tokens; later calls return the stored result.

    >>> anatomy(model).layers[5].attention.heads
    9

    Raises `BadInputError` for a model whose layers cannot be found, and `DoesNotFitError` if memory runs out during
    that run.
    """
    known = _known.get(model) if isinstance(model, torch.nn.Module) else None
    if known is not None and tuple(known.container) == tuple(layer.module for layer in known.layers):
        return known
    if not isinstance(model, torch.nn.Module) or hasattr(model, "config"):
        language_model("model", model)
    if model in _refused:
        raise BadInputError(_refused[model])
    with alone(model, "a first look at its parts"):
        # What a reader's own hooks change says nothing about the model once they are gone.
        untouched = is_untouched(model)
        try:
            with _refusing_too_little_memory(model):
                found = _examine(model)
        except BadInputError as error:
            if untouched:
                _refused[model] = str(error)
            raise
        if untouched:
            _known[model] = found
    return found


def matrix(module: torch.nn.Module, width: int) -> torch.Tensor:
    """The matrix `[out, in]` of a module that multiplies its input `[..., in]`; `width` is the size of the input.

    GPT-2 stores it as `[in, out]`, and quantized modules store packed numbers. For those modules the matrix is
    computed from what they return for each unit vector.
    """
    with fetched(module):
        weight = getattr(module, "weight", None)
        if isinstance(module, torch.nn.Linear) and weight.shape[-1:] == (width,) and weight.is_floating_point():
            return weight.detach()
    with torch.no_grad():
        example = next(module.parameters())
        dtype = example.dtype if example.is_floating_point() else torch.get_default_dtype()
        basis = torch.eye(width, dtype=dtype, device=home(module))
        given = module.forward(basis[None])[0]  # `forward` itself, so that an intervention's hooks do not run
        return (given - module.forward(torch.zeros_like(basis[None, :1]))[0]).T


def is_edited(module: torch.nn.Module) -> bool:
    """Whether a hook may change a module's output. The hooks that transformers leaves behind after a request for
    hidden states only read, and so does that of `at_the_end`."""
    return _has_foreign(module._forward_hooks)


def is_untouched(model: torch.nn.Module) -> bool:
    """Whether no hook of a reader is on any module of a model."""
    return not any(is_edited(module) or _has_changed_input(module) for module in model.modules())


def _has_changed_input(module: torch.nn.Module) -> bool:
    return _has_foreign(module._forward_pre_hooks)


def _has_foreign(hooks: Mapping[int, Callable]) -> bool:
    owners = [str(getattr(hook, "__module__", "")) for hook in hooks.values()]
    return any(owner != __name__ and not owner.startswith("transformers.") for owner in owners)


def replace_output(part: Part, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.utils.hooks.RemovableHandle:
    """Register a hook that replaces what a part writes with `change(what it wrote)`, before any factor.

    The handle's `.remove()` takes the hook off again.
    """
    return part.writer.register_forward_hook(lambda module, arguments, output: replaced(output, part.place, change))


def replaced(output: Any, place: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A module's output, with its tensor number `place` replaced by `change(tensor)`."""
    if isinstance(output, torch.Tensor):
        return change(output)
    found = list(tensors(output))[place]
    return type(output)(change(value) if value is found else value for value in output)


@contextmanager
def at_the_end(parts: Anatomy, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
    """Call `change(stream)` with the input of the final norm after the last layer; it may return a replacement.

    The final norm may run elsewhere too (nanochat applies it to the embedding): only its run after the last layer
    counts. In a model without a final norm, `stream` is the last layer's output.
    """
    last, reached = parts.layers[-1], set()  # the threads whose runs are between the last layer and the end

    def leave_last(module: Module, arguments: Any, output: Any) -> Any:
        given = output if isinstance(output, torch.Tensor) else list(tensors(output))[last.place]
        new = change(given)
        return None if new is None else replaced(output, last.place, lambda stream: new)

    if parts.final_norm is None:
        with last.module.register_forward_hook(leave_last):
            yield
        return

    def leave_layers(module: Module, arguments: Any, output: Any) -> None:
        reached.add(threading.get_ident())

    def enter_norm(module, arguments, keywords):
        if threading.get_ident() not in reached:
            return None
        reached.discard(threading.get_ident())
        return with_first(arguments, keywords, change)

    with (
        last.module.register_forward_hook(leave_layers),
        parts.final_norm.register_forward_pre_hook(enter_norm, with_kwargs=True),
    ):
        yield


def with_first(arguments: tuple, keywords: dict, change: Callable) -> tuple[tuple, dict] | None:
    """A call's arguments with the first tensor changed; None if `change` returns None."""
    if arguments:
        new = change(arguments[0])
        return None if new is None else ((new, *arguments[1:]), keywords)
    name = next(name for name, value in keywords.items() if isinstance(value, torch.Tensor))
    new = change(keywords[name])
    return None if new is None else (arguments, {**keywords, name: new})


# How the anatomy is found.


@torch.no_grad()
def _examine(model: PreTrainedModel) -> Anatomy:
    kind = type(model).__name__
    config = model.config.get_text_config() if hasattr(model, "config") else None
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if config is None or not getattr(config, "hidden_size", 0):
        raise BadInputError(f"{kind} has no decoder to look into: it is not a language model of transformers.")
    ids = neutral_ids(model).to(input_device(model))
    flow = Flow(ids.numel() * config.hidden_size)
    listener = _Listener()
    scores = torch.linspace(-3, 4, 8, dtype=torch.float64, device="cpu")
    scores = torch.cat([-(10**scores), 10**scores]).float()

    def give_known_scores(module: Module, arguments: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.shape[-1] >= len(scores):
            output[..., -1, : len(scores)] = scores.to(output)

    try:
        with listener.listening(model):
            hook = head.register_forward_hook(in_this_thread(give_known_scores)) if head is not None else None
            try:
                output = flow.follow(model, lambda: model(input_ids=ids, use_cache=False))
            finally:
                if hook is not None:
                    hook.remove()
    except DOES_NOT_RUN as error:
        if is_out_of_memory(error):  # says nothing about the model
            raise
        raise BadInputError(
            f"{kind} does not run on a text alone ({type(error).__name__}: {str(error)[:200]}), so what is inside it "
            "cannot be found."
        ) from error
    owner_name, container, order = _find_layers(model, flow, config)
    end = _find_end(flow, order, head, kind)
    layers = tuple(
        _look_into(flow, call, listener, tolerance=_tolerance(call.gave), following=following)
        for call, following in zip(order, [*order[1:], end.norm], strict=True)
    )
    logits = getattr(output, "logits", None)
    logit_map, lens_gap = _read_end(end, logits, scores, config)
    embedding = model.get_input_embeddings()
    return Anatomy(
        kind=kind,
        owner=_owner(model, owner_name),
        container=container,
        layers=layers,
        embedding=embedding,
        embedding_scale=_embedding_scale(flow, embedding, order[0]),
        final_norm=end.norm.module if end.norm else None,
        into_head=end.matrix.module if end.matrix else None,
        head=head,
        head_scale=end.scale,
        logit_map=logit_map,
        lens_gap=lens_gap,
        hidden_size=config.hidden_size,
        context=context if (context := getattr(config, "max_position_embeddings", None) or 0) > 0 else None,
    )


def _refusing_too_little_memory(model: Any) -> AbstractContextManager[None]:
    """Turn an out-of-memory error of the run above into a `DoesNotFitError`; a later call tries again.

    What `Flow` keeps is estimated as the inputs and outputs of every matrix at each of the run's positions.
    """
    example = next(model.parameters(), torch.empty(0))
    numbers = sum(sum(values.shape) for values in model.parameters() if values.dim() == 2)
    needed = PROBE_LENGTH * numbers * (example.dtype.itemsize if example.is_floating_point() else 2)
    wide = example.is_floating_point() and example.dtype.itemsize > 2
    return refusing_what_does_not_fit(
        f"A first look at the parts of {type(model).__name__}",
        needed,
        str(input_device(model) if hasattr(model, "get_input_embeddings") else home(model)),
        {'dtype="bfloat16" in load_model': needed * 2 // example.dtype.itemsize} if wide else {},
        'Load the model with quantization="4bit" or on another device, such as device="cpu", or use a smaller one.',
    )


def neutral_ids(model: Any) -> torch.Tensor:
    """A few ordinary token ids `[1, PROBE_LENGTH]`: none stands for a picture or ends a text."""
    special, vocabulary = set(), model.config.get_text_config().vocab_size
    settings = [model.config.to_dict()]
    while settings:
        for key, value in settings.pop().items():
            if isinstance(value, dict):
                settings.append(value)
            elif str(key).endswith(("token_id", "token_index", "token_ids")):
                special |= set(value if isinstance(value, list | tuple) else [value])
    step = max(1, vocabulary // (3 * PROBE_LENGTH))
    usual = [token for token in range(step, vocabulary) if token not in special]
    chosen = usual[:: max(1, len(usual) // PROBE_LENGTH)][:PROBE_LENGTH]
    return torch.tensor([chosen], device="cpu")


def _tolerance(tensor: Tensor) -> float:
    return 2e-4 if tensor.dtype in (torch.float32, torch.float64) else 3e-2


def _exact(tensor):
    """The tensor as float64 on the CPU: a model may be on several devices, and Apple's GPUs have no float64."""
    return tensor.detach().cpu().double()


def _near(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    """Whether two tensors are equal, up to `tolerance` times the largest absolute value in `b`."""
    a, b = _exact(a).flatten(), _exact(b).flatten()
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * max(float(b.abs().max()), 1e-30))


@dataclass
class _Listener:
    """Replaces the library's attention functions during one run, and records which modules call them."""

    plain: dict = field(default_factory=dict)
    heads: dict = field(default_factory=dict)
    mixed: dict = field(default_factory=dict)
    queries: dict = field(default_factory=dict)

    @contextmanager
    def listening(self, model):
        """Inside the `with` block, all configs of the model name this listener as their attention."""
        with attention_as(f"anatomy-{id(self)}", self.attend, eager_mask, *_configs(model)):
            yield

    def attend(self, module, query, key, value, attention_mask, scaling=None, **more):
        function = library_eager(module)
        output, weights = function(module, query, key, value, attention_mask, scaling=scaling, **more)
        self.heads[module], self.mixed[module] = query.shape[1], output.detach().clone()
        self.queries[module] = query.detach().clone()
        self.plain[module] = weights is not None and _is_plain(query, key, value, attention_mask, scaling, output)
        return output, weights


def _is_plain(query, key, value, mask, scaling, output):
    """Whether attention's output is that of the plain formula."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is not None:
        scores = scores + mask[..., : key.shape[-2]]
    mixed = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value
    return _near(mixed.transpose(1, 2), output, _tolerance(output))


def library_eager(module: torch.nn.Module) -> Callable:
    """The model's own `eager_attention_forward`, from the file of its attention class or of a base class.

    Raises `BadInputError` if there is none.
    """
    import sys

    for kind in type(module).__mro__:
        function = getattr(sys.modules[kind.__module__], "eager_attention_forward", None)
        if function is not None:
            return function
    raise BadInputError(f"{type(module).__name__} computes no attention weights: pass attentions=False.")


def _configs(model: PreTrainedModel) -> list[Any]:
    """Every config object that a module of the model reads."""
    found = {id(m.config): m.config for m in model.modules() if hasattr(getattr(m, "config", None), "to_dict")}
    return list(found.values())


class _OwnName(str):
    """A name of its own that counts as "eager" where a model asks for it: DeepSeek-V3.2 and GLM-5 leave out all but the
    positions that their index chose only where attention is "eager" or "sdpa"."""

    __hash__ = str.__hash__  # a dict still finds the function that is registered under the name itself

    def __eq__(self, other: object) -> bool:
        return other == "eager" or str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other


@contextmanager
def attention_as(name: str, attend: Callable | None, mask: Callable | None, *configs: Any) -> Iterator[None]:
    """Inside the `with` block the configs name another attention implementation, which consists of `attend` and
    `mask`; both are None for a name that the library already knows.

    A run that another thread has begun earlier, with a mask of its own kind, keeps the implementation that it had.
    """
    before = [config._attn_implementation for config in configs]
    name = name if attend is None else _OwnName(name)

    def as_before(module: Module, *arguments: Any, **more: Any) -> Any:
        known = AttentionInterface().get(next((b for c, b in zip(configs, before, strict=True) if c is module.config)))
        return (known or library_eager(module))(module, *arguments, **more)

    try:
        if attend is not None:
            AttentionInterface.register(name, in_this_thread(attend, otherwise=as_before))
            AttentionMaskInterface.register(name, mask)
        for config in configs:
            config._attn_implementation = {"": name}  # only its own: the configs nested in it keep theirs
        yield
    finally:
        for config, earlier in zip(configs, before, strict=True):
            config._attn_implementation = {"": earlier}
        if attend is not None:
            AttentionInterface._global_mapping.pop(name, None)
            AttentionMaskInterface._global_mapping.pop(name, None)


def without_a_second_bias(module: Module, arguments: tuple, keywords: dict) -> tuple[tuple, dict] | None:
    """A pre-hook for attention that computes itself what "sdpa" does, and is switched to "eager" for its weights.

    In Falcon, ALiBi's bias of each head is part of the mask that the layers are given, which is all that "sdpa" takes;
    "eager" adds the bias to the scores once more. Source: `FalconModel.forward` and `FalconAttention.forward`.
    """
    bias, mask = keywords.get("alibi"), keywords.get("attention_mask")
    if bias is None or mask is None or mask.dim() != 4 or mask.shape[1] == 1:
        return None
    return arguments, {**keywords, "alibi": torch.zeros_like(bias)}


def _find_layers(model, flow, config):
    """The list of modules that ran one after the other, each once: (its owner's name, the list, their calls)."""
    runs = defaultdict(list)
    for call in flow.calls:
        runs[call.name].append(call)
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.ModuleList) or not len(module):
            continue
        calls = [runs[f"{name}.{place}"] for place in range(len(module))]
        if all(len(ran) == 1 for ran in calls) and not any(name.startswith(f"{outer}.") for outer, *_ in found):
            order = [ran[0] for ran in calls]
            places = [flow.calls.index(call) for call in order]
            streams = all(call.output and call.shape[:2] == (1, PROBE_LENGTH) for call in order)
            if places == sorted(places) and streams:
                found.append((name, module, order))
    if not found:
        raise BadInputError(
            f"No layers can be found in {type(model).__name__} that take and return one residual stream "
            "[batch, position, hidden], one after the other, so nothing inside it can be shown."
        )
    wanted = getattr(config, "num_hidden_layers", None)
    name, module, order = max(found, key=lambda entry: (len(entry[1]) == wanted, len(entry[1])))
    return name.rpartition(".")[0], module, order


def _owner(model, name):
    """The module with a config that holds the layers: the one with their list, or one that contains it."""
    while name and not hasattr(model.get_submodule(name), "config"):
        name = name.rpartition(".")[0]
    return model.get_submodule(name) if name else model


def _look_into(flow: Any, layer: Any, listener: Any, *, tolerance: float, following: Call | None) -> Layer:
    """What one layer adds to the stream; `following` is the call that gets the stream next."""
    inside = [call for call in flow.calls if layer.name in call.path[:-1] and call is not layer]
    made = defaultdict(list)  # value -> the calls that gave it, innermost first
    for call in flow.done:
        if call.output is not None and call is not layer and layer.name in call.path[:-1]:
            made[call.output].append(call)
    start = layer.inputs[0]
    written, stream = [], [0.0]

    def walk(value, factor):
        if value is start:
            stream[0] += factor
        elif value in made and not _holds(value, start):
            written.append((value, factor))
        elif value.parts:
            for part, times in value.parts:
                walk(part, factor * times)
        else:
            written.append((None, factor))

    walk(layer.output, 1.0)
    norms = tuple(call.module for call in inside if _reads_stream(call, layer, start))
    after = _times(following.inputs[0], layer.output) if following else None
    after = 1.0 if after is None else after
    result = {"module": layer.module, "place": layer.place, "norms": norms, "factor": stream[0], "after": after}
    if not stream[0]:
        gap = "its output is not its input plus something"
        return Layer(parts=_attention_only(layer, inside, listener, made), gap=gap, **result)
    if any(value is None for value, _ in written):
        gap = "something is added to the residual stream that none of its modules computed"
        return Layer(parts=_attention_only(layer, inside, listener, made), gap=gap, **result)
    total = stream[0] * _exact(layer.took)
    parts = []
    found = [(_outermost(made[value]), factor) for value, factor in written]
    for call, factor in sorted(found, key=lambda pair: flow.calls.index(pair[0])):
        total = total + factor * _exact(call.gave).reshape(total.shape)
        parts.append(_part(layer, call, factor / stream[0], inside, made, listener))
    gap = None
    if not _near(total, layer.gave, tolerance):
        gap = "its parts do not add up to its output"
    elif any(sum(call.module is part.writer for call in inside) > 1 for part in parts):
        gap = "one module writes to the residual stream twice"
    elif after != 1.0:
        gap = "the residual stream is multiplied by a number after it"
    elif sum(isinstance(part, Attention) for part in parts) > 1:
        gap = "it has more than one attention"
    return Layer(parts=tuple(parts), gap=gap, **result)


def _holds(value, start):
    """Whether `start` is one of the values that this one is a sum of."""
    todo, seen = [value], set()
    while todo:
        value = todo.pop()
        if value is start:
            return True
        if value not in seen:
            seen.add(value)
            todo += [part for part, _ in value.parts]
    return False


def _reads_stream(call, layer, start):
    """Whether a call is that of a norm to which the layer itself passes the stream."""
    direct = call.path[-2] == layer.name and _is_vector_module(call.module)
    return direct and bool(call.inputs) and call.inputs[0] is not call.output and _holds(call.inputs[0], start)


def _outermost(calls):
    """Of the calls that returned one value, the first that is not inside another."""
    return next(call for call in calls if not any(other.name in call.path[:-1] for other in calls))


def _part(layer, call, scale, inside, made, listener):
    source = call
    norm = None
    if _is_vector_module(call.module) and call.inputs:
        before = call.inputs[0].original()
        if before in made:
            source, norm = _outermost(made[before]), call.module
    child = source.path[source.path.index(layer.name) + 1]
    of_child = [other for other in inside if child in other.path]
    common = {
        "name": child.removeprefix(f"{layer.name}."),
        "module": of_child[0].module,
        "writer": call.module,
        "place": call.place,
        "scale": scale,
        "norm": norm,
    }
    found = _attention_call(of_child, listener)
    if found is None:
        return Part(**common, mixes=any(other.given for other in of_child if other.name == child))
    return Attention(**common, mixes=True, **_attention(found, source, made, inside, listener))


def _is_vector_module(module: Module) -> bool:
    """Whether a module has neither a matrix nor submodules, as is the case for norms."""
    return not list(module.children()) and all(parameter.dim() < 2 for parameter in module.parameters())


def _attention_call(calls, listener):
    """The call that computed attention, among those of one child: it called the library's function, or it returned
    weights `[1, head, query, key]` whose rows sum to 1."""
    for call in calls:
        if call.module in listener.heads:
            return call
    for call in calls:
        weights = call.weights
        if weights is not None and weights.shape[-1] == weights.shape[-2] == PROBE_LENGTH:
            sums = weights.float().sum(-1)
            if bool((weights >= 0).all()) and bool((sums - 1).abs().max() < 1e-2):
                return call
    return None


def _attention(found, source, made, inside, listener):
    """The fields that `Attention` has beyond those of `Part`."""
    by_library = found.module in listener.heads
    heads = listener.heads[found.module] if by_library else found.weights.shape[1]
    projection = made[source.output.original()][0] if source.output.original() in made else None
    if projection is not None and not _is_projection(projection, heads, listener.mixed.get(found.module)):
        projection = None
    return {
        "caller": found.module,
        "weights_place": None if by_library else found.weights_place,
        "heads": heads,
        "projection": None if projection is None else projection.module,
        "width": 0 if projection is None else projection.first.shape[-1],
        "queries": _query_matrix(inside, found, listener.queries[found.module]) if by_library else None,
        "plain": listener.plain.get(found.module, False),
    }


def _query_matrix(inside, found, query):
    """The module whose output has the same norms as the queries at each head and position, so that the queries are
    this output, rotated."""
    size = _exact(query[0]).norm(dim=-1).T  # [position, head]
    for call in inside:
        if found.name not in call.path[:-1] or call.result is None or list(call.module.children()):
            continue
        if call.result.shape[-1] == query.shape[1] * query.shape[3] and call.result.numel() == query.numel():
            before = _exact(call.result).reshape(*size.shape, -1).norm(dim=-1)
            if _ratio(size, before) is not None and _near(before * _ratio(size, before), size, _tolerance(query)):
                return call.module
    return None


def _is_projection(call, heads, mixed):
    """Whether a call multiplied the heads' results, one after the other, by a matrix."""
    if list(call.module.children()) or call.first is None or call.gave is None or call.first.dim() < 2:
        return False
    width = call.first.shape[-1]
    if width % heads or (mixed is not None and mixed.shape[-1] * heads != width):
        return False
    product = call.first.float() @ matrix(call.module, width).float().T
    bias = getattr(call.module, "bias", None)
    product = product if bias is None else product + bias.float()
    whole = all(parameter.is_floating_point() for parameter in call.module.parameters())
    return _near(product, call.gave, _tolerance(call.gave) if whole else 0.1)  # 8-bit products round their input, too


def _attention_only(layer, inside, listener, made):
    """The attention of a layer that cannot be taken apart: its weights can still be looked at."""
    for child in layer.module.named_children():
        name = f"{layer.name}.{child[0]}"
        found = _attention_call([call for call in inside if name in call.path], listener)
        if found is not None:
            source = next(call for call in inside if call.name == name)
            special = _attention(found, source, made, inside, listener) if source.output is not None else {}
            if special:
                return (Attention(child[0], child[1], child[1], source.place, 1.0, None, True, **special),)
    return ()


@dataclass
class _End:
    """What comes after the last layer: `states` are its output, after the final norm if there is one."""

    states: Tensor
    norm: Call | None
    matrix: Call | None
    head: Call | None
    scale: float


def _find_end(flow, order, head, kind):
    """Find the final norm: its input is the last layer's output, and its output (times a number) is the head's input.

    Some models have none: then the head, or a matrix before it, gets the last layer's output.
    """
    last = order[-1]
    after = flow.calls[flow.calls.index(last) :]
    after = [call for call in after if last.name not in call.path and not list(call.module.children())]
    into_head = next((call for call in after if call.module is head), None) if head is not None else None
    norms = [call for call in reversed(after) if call.module is not head and call.gave is not None]
    norms = [call for call in norms if call.inputs and _times(call.inputs[0], last.output) is not None]
    for norm in (*norms, None):
        states = last if norm is None else norm
        scale = _factor(into_head, states) if into_head else None if norm is None else 1.0
        if scale is not None:
            return _End(states.gave, norm, None, into_head, scale)
    for matrix_call in after if into_head else ():
        for norm in (*norms, None):
            states = last if norm is None else norm
            takes = matrix_call.inputs and matrix_call.inputs[0].original() is states.output.original()
            if takes and matrix_call.result is not None and _same(matrix_call.result, into_head.first):
                return _End(states.gave, norm, matrix_call, into_head, 1.0)
    raise BadInputError(
        f"No final norm can be found in {kind} between the last layer and the head, so its hidden states cannot be "
        "told apart from what it does with them afterwards."
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _times(value: Value, source: Value) -> float | None:
    """The number c with value = c · source, if it is a copy or a multiple of the source; else None."""
    source, factor = source.original(), 1.0
    while value is not source and len(value.parts) == 1:
        value, times = value.parts[0]
        factor *= times
    return factor if value is source else None


def _factor(call, source):
    """The number by which the output of `source` was multiplied before it became the input of `call`, or None."""
    if not call.inputs:
        return None
    value, factor = call.inputs[0], 1.0
    while value is not source.output and len(value.parts) == 1:
        value, times = value.parts[0]
        factor *= times
    return factor if value is source.output else None


def _ratio(a: torch.Tensor, b: torch.Tensor) -> float | None:
    """The number c with a = c · b, or None."""
    a, b = _exact(a).flatten(), _exact(b).flatten()
    if a.shape != b.shape or not float(b @ b):
        return None
    ratio = float(a @ b / (b @ b))
    if not _near(ratio * b, a, 1e-2):
        return None
    return 1.0 if abs(ratio - 1) < 1e-5 else ratio


def _read_end(end, logits, scores, config):
    """(the `LogitMap`, the reason why the lens cannot be trusted or None)."""
    if end.head is None or logits is None:
        return LogitMap(), "it has no head that gives scores for the vocabulary"
    head = end.head.module
    weight = getattr(head, "weight", None)
    width = (end.matrix.result if end.matrix else end.states).shape[-1]
    if weight is None or not weight.is_floating_point() or weight.shape != (logits.shape[-1], width):
        return LogitMap(), "its head is not a plain matrix [vocabulary, hidden]"
    given = _exact(logits[0, -1, : len(scores)])
    whole = weight.dtype == torch.float32  # Mamba's logits are float32, and its head's scores need not be
    known = scores.to(weight.dtype).double()
    logit_map = _fit(known, given, 1e-4 if whole else 2e-2, _numbers(config))
    if logit_map is None:
        return LogitMap(), "it turns the scores of its head into logits in an unknown way"
    states = (end.matrix.result if end.matrix else end.states).float().reshape(*logits.shape[:-1], width) * end.scale
    with fetched(head):
        by_hand = states.to(head.weight) @ head.weight.T
        by_hand = by_hand if getattr(head, "bias", None) is None else by_hand + head.bias
    by_hand = logit_map.apply_(by_hand.float()).to(logits.device)
    if not _near(by_hand[:, :-1], logits[:, :-1].float(), 1e-3 if whole else 5e-2):
        return logit_map, "its final norm and head do not reproduce its own logits"
    return logit_map, None


def _fit(scores, given, tolerance, exact):
    """The `LogitMap` that turns `scores` into `given`, or None. Small scores show the factor, large ones the cap.

    `exact`: numbers from the config. They replace a measured number that differs from them only by rounding.
    """
    small = scores.abs() < 0.05
    scale = float(given[small] @ scores[small] / (scores[small] @ scores[small]))
    scale = _snapped(scale, [1.0, *exact, *(1 / number for number in exact)], tolerance)
    top = int(scores.argmax())
    found = LogitMap(scale)
    if scale > 0 and abs(float(given[top])) < 0.999 * scale * float(scores[top]):
        low, high = float(given[top]), 1e9
        for _ in range(200):
            middle = (low + high) / 2
            capped = middle * torch.tanh(scale * scores[top] / middle)
            low, high = (middle, high) if capped < given[top] else (low, middle)
        found = LogitMap(scale, _snapped((low + high) / 2, exact, tolerance))
    off = (found.apply_(scores.clone()) - given).abs()
    return found if bool((off <= tolerance * given.abs() + 1e-12).all()) else None


def _numbers(config: PreTrainedConfig) -> list[float]:
    """The positive numbers that a config sets."""
    values = config.to_dict().values()
    return [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < 1e6]


def _snapped(number: float, candidates: Any, tolerance: float) -> float:
    """The nearest candidate, if it is within the tolerance; else the number."""
    nearest = min(candidates, key=lambda candidate: abs(candidate - number), default=number)
    return nearest if abs(nearest - number) <= tolerance * abs(number) else number


def _embedding_scale(flow, embedding, first):
    call = next((call for call in flow.calls if call.module is embedding and call.gave is not None), None)
    return None if call is None else _ratio(first.took, call.gave)


def _size(module: Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _listed(numbers: Any) -> str:
    """Numbers as "1, 3 and 5", or "1, 3, 5, … 29" where there are many."""
    shown = [*map(str, numbers)]
    if len(shown) > 8:
        return ", ".join([*shown[:4], "…", shown[-1]])
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
