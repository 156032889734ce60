"""Record what happens inside one run of a model: hidden states, attentions, logits, any module's output.

The run is the model's own. `trace` only puts hooks on the modules it has to listen to, and takes them
off again. Only "eager" attention computes attention probabilities ("sdpa" never does). When they are
requested, the run therefore computes attention as `eager_attention_forward` in `transformers` does, in
blocks of queries: the same numbers, without a second copy of anything as large as the result. What
each hook sees is written straight into the result, and the run stops once everything is there. The
result stays on the model's device if there is room for it (`helpers.inside.keeping`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from itertools import groupby
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache
from transformers.masking_utils import eager_mask, sdpa_mask

from helpers import checks
from helpers.errors import BadInputError, PromptTooLongError
from helpers.inside.anatomy import Anatomy, anatomy, at_the_end, attention_as, library_eager, without_a_second_bias
from helpers.inside.exclusive import alone, in_this_thread
from helpers.inside.flow import tensors
from helpers.inside.keeping import Keeper, home, input_device, working_devices
from helpers.inside.kv_cache import check_cache, check_reading_on
from helpers.inside.when_read import WhenRead
from helpers.models.fitting import does_not_fit, refusing_what_does_not_fit
from helpers.models.memory import available_bytes, pick_device, working_bytes
from helpers.text.encoding import text_tokenizer
from helpers.text.prompts import RenderedChat, prompt_ids
from helpers.text.sight import sight_of
from helpers.text.tokens import token_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


BLOCK = 128  # queries whose scores are in memory at a time: small enough for a processor's cache
SCORE_BYTES = 2**28  # bytes of float32 scores at a time on a GPU, where a few large blocks are fast
SPARE = 0.9  # how much of the free memory a result may take
NOT_FOR_READERS = ("input_ids", "inputs_embeds", "labels", "logits_to_keep")  # inputs that trace sets, or cannot use
SPECIAL_ATTENTION = ("softcap", "s_aux", "position_bias")  # arguments of attention that only some models have


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """What was computed inside one run of a model. What was not requested is None (or an empty dict).

    All tensors are on one `device` (except `input_ids` and `patch_index`, which are on the CPU), in the dtype in which
    the model computed them. `position` counts what the model read in this run; with `positions=` it counts only those,
    in the order given.

    - `tokens`, `input_ids [1, length]`: the prompt as the model saw it, with readable labels. A picture's
      patches are labelled by row and column, such as `▦ 0,3`. Keys that came from a cache have no label.
    - `hidden_states [layer+1, position, hidden]`: as with `output_hidden_states` in `transformers`.
      Row L is the residual stream after L layers, as it enters layer L: row 0 is the embedding. The last
      row is different: it has been through the final norm, and `lm_head` turns it into the logits. (In a model without
      a final norm it is like the others; in OPT-350m a further matrix comes before `lm_head`. For Mamba and RWKV,
      `transformers` returns the stream after each layer, without the embedding; here their rows mean the same as for
      every other model. Qwen3-VL adds a picture's features between its first layers: they are in the next row.)
    - `last_residual [position, hidden]`: the residual stream after the last layer, before the final norm.
    - `attentions [layer, head, query, key]`: probabilities; each query's sum over the keys is 1, or less if a sink
      takes a part (gpt-oss). Layers without attention have no row: `attention_layers` lists the layers that have one.
    - `logits [position, vocab]`: raw scores of the token that comes after each position.
    - `outputs`, `inputs`: name of a module -> its output, or input, the first time it ran, without the batch axis:
      `[position, ...]`. A tuple where a module returns several tensors (of `self_attn`, only the first is kept).
    - `layers`: which rows `hidden_states` has; `attention_layers`: which rows `attentions` has.
    - `positions`: which positions the axes `position` and `query` stand for.
    - `attn_implementation`: how attention was computed, "eager" whenever `attentions` were requested.
    - `patch_index [length]`: the number of a picture's patch at each position, -1 at text; None without a picture.

    >>> run = trace(model, tokenizer, "The capital of France is")
    >>> list(run.hidden_states.shape), run.tokens[-1]
    ([31, 5, 576], '·is')
    """

    tokens: tuple[str, ...] = WhenRead()  # labels of 2,000 tokens take as long as the run on a GPU
    input_ids: torch.Tensor
    hidden_states: torch.Tensor | None
    attentions: torch.Tensor | None
    logits: torch.Tensor | None
    last_residual: torch.Tensor | None
    outputs: dict[str, torch.Tensor | tuple] = field(default_factory=dict)
    inputs: dict[str, torch.Tensor | tuple] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    attn_implementation: str = ""
    patch_index: torch.Tensor | None = None
    attention_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.attentions is not None and not self.attention_layers:
            object.__setattr__(self, "attention_layers", tuple(self.layers[: len(self.attentions)]))

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        kept = (self.hidden_states, self.attentions, self.logits, self.last_residual, self.outputs, self.inputs)
        return next((tensor.device for tensor in tensors(kept)), torch.device("cpu"))

    def to(self, device: str) -> Trace:
        """The same trace with its tensors on another device, "cpu" or "cuda:0"; what is already there is not copied.

        Raises `BadInputError` for a device that this machine does not have, and `DoesNotFitError` when memory runs out.
        """
        names = ("hidden_states", "attentions", "logits", "last_residual", "outputs", "inputs")
        there = torch.device(pick_device(device))
        needed = sum(tensor.nbytes for name in names for tensor in tensors(getattr(self, name)))
        with refusing_what_does_not_fit("Moving this trace", needed, str(there), runs=False):
            return replace(self, **{name: _moved(getattr(self, name), there) for name in names})

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in it."""
        return sum(tensor.nbytes for value in vars(self).values() for tensor in tensors(value))

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"tokens": self.tokens}

    def __repr__(self) -> str:
        shown = [f"tokens={len(self.tokens)}"]
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, torch.Tensor):
                shown.append(f"{part.name}={list(value.shape)}")
            elif isinstance(value, dict) and value:
                shown.append(f"{part.name}={list(value)}")
        kind = f"attn_implementation={self.attn_implementation!r}"
        return f"Trace({', '.join(shown)}, {kind}, {self.nbytes / 1e6:.3g} MB on {self.device})"


def trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Any,
    *,
    hidden_states: bool = True,
    attentions: bool = True,
    logits: bool = True,
    layers: Any = None,
    positions: Any = None,
    outputs_of: Any = (),
    inputs_of: Any = (),
    device: str = "auto",
    **model_inputs: Any,
) -> Trace:
    """Run the model once and return a `Trace`.

    >>> run = trace(model, tokenizer, "The capital of France is")
    >>> tokenizer.decode(run.logits[-1].argmax())
    ' Paris'

    `prompt` is a text (taken as it is), a `RenderedChat`, or ids `[1, length]`. `hidden_states`,
    `attentions` and `logits` say what to keep. Two more settings keep less of it, for long prompts:

    - `layers`: rows of `hidden_states` (0 the embedding, up to the number of layers) and of `attentions`, an
      int or several: `trace(layers=[3, 15])` has rows 3 and 15 of what `trace()` has.
    - `positions`: positions of hidden states, queries and logits, an int or several; negative ones count
      from the end, as in a list. All keys are kept in any case.

    `outputs_of` and `inputs_of` name modules as `model.named_modules()` does, for example "model.layers.3.mlp", to
    keep their outputs and inputs. Layers above the last one needed do not run.

    `device` is where the result is kept: "auto" leaves it where the model computes it if it fits there beside the
    work of the layers, and moves it to the CPU if it does not; "cpu" moves every part there during the run. Nothing
    else depends on it.

    `model_inputs` is what else the model's `forward` takes, such as `pixel_values`. With `past_key_values`,
    `prompt` is what comes after the cached positions; the cache grows, as in any run.

    Afterwards the model is as it was, even after an error or an interrupted cell. Gradients are off.
    Active interventions apply to this run and show in its result.

    Raises `BadInputError` for an empty prompt, a batch, for layers, positions, modules and inputs that are not
    there, and for attentions of layers that have none; `PromptTooLongError` for more tokens than the model's
    context; `DoesNotFitError` when there is no room for the result, before anything runs, and when memory runs out
    during the run.
    """
    parts = anatomy(model)
    _check_model_inputs(model, model_inputs)
    for name, value in (("hidden_states", hidden_states), ("attentions", attentions), ("logits", logits)):
        checks.flag(name, value)
    if not (hidden_states or attentions or logits or outputs_of or inputs_of):
        raise BadInputError("There is nothing to keep: ask for hidden_states, attentions, logits or a module's output.")
    tokenizer = text_tokenizer(tokenizer)
    input_ids = prompt_ids(tokenizer, prompt, context=parts.context)
    checks.ids_of_model(model, input_ids, tokenizer if isinstance(prompt, str | RenderedChat) else None)
    seen_ids, patch_index = sight_of(model).as_seen(input_ids, model_inputs.get("pixel_values"))
    length = seen_ids.shape[1]
    chosen = _layers(layers, len(parts.layers), attentions)
    recorder = _Recorder(
        model=model,
        parts=parts,
        length=length,
        hidden_states=hidden_states,
        logits=logits,
        layers=chosen,
        attention_layers=_attention_layers(parts, chosen) if attentions else (),
        positions=_positions(positions, length),
        outputs_of=_modules(model, outputs_of),
        inputs_of=_modules(model, inputs_of),
    )
    model_inputs = {name: value for name, value in model_inputs.items() if value is not None}
    past = _cached(model, model_inputs.get("past_key_values"), length, recorder.attention_layers)
    sizes = _sizes(recorder, past)
    needed, options = sum(sizes.values()), _smaller(recorder, sizes)
    computed_on = working_devices(model)
    with refusing_what_does_not_fit("This trace", needed, str(computed_on[0]), options):
        given = _complete(model, input_ids, model_inputs, past, parts.context)
    working = working_bytes(model.config, length, model.dtype.itemsize)
    kept_on = recorder.device = _place(device, needed, options, home(parts.head or parts.final_norm), working)
    devices = ", ".join(map(str, dict.fromkeys([*computed_on, kept_on])))
    options = _on_the_cpu(kept_on, needed) | options
    with alone(model, "trace"), refusing_what_does_not_fit("This trace", needed, devices, options):
        recorder.run(given)
    return Trace(
        tokens=lambda: _labels(model, tokenizer, seen_ids, patch_index),
        input_ids=seen_ids,
        layers=recorder.layers,
        positions=tuple(range(length) if recorder.positions is None else recorder.positions.tolist()),
        attn_implementation="eager" if attentions else parts.owner.config._attn_implementation,
        patch_index=patch_index,
        attention_layers=recorder.attention_layers,
        **recorder.results,
    )


class _Finished(Exception):
    """Everything requested has been recorded: the rest of the run is not needed."""


@dataclass
class _Recorder:
    """Records one run: each hook that is reached writes into `results` and then calls `_done`."""

    model: Any
    parts: Anatomy
    length: int
    hidden_states: bool
    logits: bool
    layers: tuple[int, ...]
    attention_layers: tuple[int, ...]
    positions: torch.Tensor | None
    outputs_of: dict[str, torch.nn.Module]
    inputs_of: dict[str, torch.nn.Module]
    device: torch.device | None = None  # where results go; None: each to where the first part of it was computed

    def __post_init__(self) -> None:
        last = len(self.parts.layers)
        self.attention = {number: self.parts.attention(number) for number in self.parts.attention_layers}
        self.whole_attention = {attention.module for attention in self.attention.values()}
        self.callers = {attention.caller: number for number, attention in self.attention.items()}
        self.copies = {}  # the chosen positions, by the device they were moved to
        self.future = {}  # a triangle of True where queries must not look, by its size and device
        self.rows = {}  # where each layer's hidden state goes, [1, position, hidden], and each layer's attention
        self.results = dict.fromkeys(("hidden_states", "attentions", "logits", "last_residual"))
        self.results |= {"outputs": {}, "inputs": {}}
        self.pending = {("output", name) for name in self.outputs_of} | {("input", name) for name in self.inputs_of}
        if self.hidden_states:
            self.pending |= {("hidden state", layer) for layer in self.layers}
            self.pending |= {("last residual", last)} if last in self.layers else set()
        self.pending |= {("attention", layer) for layer in self.attention_layers}
        if self.logits:
            self.pending.add(("logits", last))

    # Not inference_mode: its tensors could not be used in a later run with gradients on. A decorator, because a `with`
    # in here that is interrupted on its way out would leave gradients off.
    @torch.no_grad()
    def run(self, model_inputs: Any) -> None:
        """The forward pass, with the hooks in place. If it fails, nothing of the result is kept."""
        try:
            self._run(model_inputs)
        except BaseException:
            for kept in (self.results, self.rows, self.future):
                kept.clear()
            raise

    def _run(self, model_inputs: Any) -> None:
        with Keeper(self.device) as self.keeper, self._hooks(), self._own_attention():
            try:
                output = self.model(**model_inputs)
                if self.logits:
                    self.results["logits"] = self._kept_logits(output.logits[0])
                    self._done(("logits", len(self.parts.layers)))
            except _Finished:
                pass
        if self.pending:
            kind, name = min(self.pending, key=str)
            raise BadInputError(f"There is no {kind} of {name} to keep: that part of the model does not run by itself.")

    def _kept_logits(self, logits: Any) -> Any:
        there = self.device is None or logits.device == self.device
        return logits if there else self.keeper.copy(logits)

    def _done(self, part: Any) -> Any:
        self.pending.discard(part)
        if not self.pending:
            raise _Finished

    @contextmanager
    def _hooks(self) -> Any:
        handles = []

        def before(module: Module, hook: Any) -> None:
            handles.append(module.register_forward_pre_hook(in_this_thread(hook), with_kwargs=True))

        def after(module: Module, hook: Any) -> None:
            handles.append(module.register_forward_hook(in_this_thread(hook)))

        with ExitStack() as more:
            more.callback(_remove, handles)
            for layer in self.layers if self.hidden_states else ():
                if layer < len(self.parts.layers):
                    handles.append(self._state_hook(layer))
                else:
                    more.enter_context(at_the_end(self.parts, in_this_thread(self._see_last_residual)))
                    if self.parts.final_norm is not None:
                        after(self.parts.final_norm, self._see_normed)
            for layer in self.attention_layers:
                if self.attention[layer].weights_place is not None:
                    after(self.attention[layer].caller, self._see_own_attention(layer))
            for name, module in self.inputs_of.items():
                before(module, self._see_input(name))
            for name, module in self.outputs_of.items():
                after(module, self._see_output(name))
            if self.logits:
                lm_head = self.parts.head
                more.enter_context(_in_slices(lm_head))
                before(lm_head, lambda module, args, kwargs: ((self._chosen(args[0]),), kwargs))
            yield

    @contextmanager
    def _own_attention(self) -> Any:
        """The layers' attention goes through `attend`, under a name that is registered for this run alone. A model that
        computes attention by itself (GPT-J) is switched to the implementation that returns its weights.

        PaliGemma attends in both directions over its prompt. Without `token_type_ids`, "sdpa" does so in
        `transformers`, but "eager" attends to earlier positions only; the weights are those of "eager", with its mask.
        """
        if not self.attention_layers:
            yield
            return
        by_library = any(attention.weights_place is None for attention in self.attention.values())
        name = f"trace-{id(self)}" if by_library else "eager"
        attend = self.attend if by_library else None
        causal = all(getattr(attention.caller, "is_causal", True) for attention in self.attention.values())
        config = self.parts.owner.config
        switched = () if by_library or config._attn_implementation == "eager" else self.callers
        with attention_as(name, attend, sdpa_mask if causal else eager_mask, config), ExitStack() as hooks:
            for caller in switched:
                hook = in_this_thread(without_a_second_bias)
                hooks.enter_context(caller.register_forward_pre_hook(hook, with_kwargs=True))
            yield

    def attend(
        self, module: Module, query: Any, key: Any, value: Any, attention_mask: Tensor, scaling: Any = None, **more: Any
    ) -> Any:
        """Replaces `eager_attention_forward`: returns the same output and records the probabilities.

        `query [1, head, query, head_dim]`, `key` and `value [1, kv_head, key, head_dim]`; `attention_mask
        [1, 1, query, key]`, or None for plain causal attention. Returns `[1, query, head, head_dim]`.
        """
        layer = self.callers.get(module)
        wanted = ("attention", layer) in self.pending
        causal = more.get("is_causal", getattr(module, "is_causal", True)) and query.shape[2] > 1
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        special = layer is None or not self.attention[layer].plain
        if special or any(more.get(name) is not None for name in SPECIAL_ATTENTION):
            mask = query.new_zeros(1, 1, query.shape[2], key.shape[2])
            _hide(mask[0], 0, attention_mask, causal, self.future)
            output, probabilities = library_eager(module)(module, query, key, value, mask, scaling=scaling, **more)
            blocks = [(0, probabilities[0])]
        elif wanted and _works_in_place(into := self._room(layer, query, key.shape[2])):
            output, blocks = _eager_in_place(query, key, value, attention_mask, causal, scaling, self.future, into), ()
        else:
            output = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
            into = self._room(layer, query, key.shape[2]) if wanted else None
            blocks = _eager_blocks(query, key, value, attention_mask, causal, scaling, output, self.future, into)
        for start, probabilities in blocks:
            if wanted:
                self._write_attention(layer, start, probabilities, key.shape[2])
        if wanted:
            self._done(("attention", layer))
        return output, None

    def _attention_place(self, layer: int, keys: int, like: Any) -> Any:
        """Where the attention `[head, query, key]` of a layer is kept."""
        if self.results["attentions"] is None:
            rows = len(self.attention_layers)
            queries = self.length if self.positions is None else len(self.positions)
            kept = self.results["attentions"] = self.keeper.empty((rows, like.shape[-3], queries, keys), like)
            self.rows |= zip((("attention", row) for row in self.attention_layers), kept.unbind(), strict=True)
        place = self.rows["attention", layer]
        if place.shape[0] != like.shape[-3]:
            raise BadInputError(
                f"Layer {layer} has {like.shape[-3]} heads, an earlier one {place.shape[0]}: choose layers of one "
                "kind, with layers=."
            )
        if place.shape[-1] != keys:
            raise _of_several_kinds(layer, keys, place.shape[-1])
        return place

    def _room(self, layer: int, query: Any, keys: int) -> Any:
        """The memory for a layer's attention if all of it can be computed right there, without a copy; else None."""
        if self.positions is not None:
            return None
        place = self._attention_place(layer, keys, query)
        return place if place.device == query.device and place.shape[1] == query.shape[2] else None

    def _write_attention(self, layer: int, start: int, probabilities: Any, keys: int) -> None:
        """`probabilities [head, block, seen]` are those of the queries from `start` on, 0 for the keys not seen."""
        _, count, seen = probabilities.shape
        place = self._attention_place(layer, keys, probabilities)
        if place.data_ptr() == probabilities.data_ptr():
            return  # it was computed in place
        if self.positions is None:
            parts = [(slice(start, start + count), probabilities)]
        else:
            rows = _neighbours((self.positions >= start) & (self.positions < start + count))
            positions = self._positions_on(probabilities.device)
            parts = ((part, probabilities[:, positions[part] - start]) for part in rows)
        for part, values in parts:
            self.keeper.write(place[:, part, :seen], values)
            place[:, part, seen:] = 0

    def _state_hook(self, layer: int) -> Any:
        """A hook that records the stream after `layer` layers: as the last of them returns it, which is what
        `transformers` records, or as it enters the next one if an intervention changes it there."""
        module, below = self.parts.layers[layer].module, self.parts.layers[layer - 1]

        def after(module: Module, args: Any, output: Any) -> None:
            alone = isinstance(output, torch.Tensor)
            self._write_state(layer, output if alone else list(tensors(output))[below.place])

        def before(module: Module, args: Any, kwargs: Any) -> None:
            self._write_state(layer, _first_tensor((args, kwargs)))

        if layer and below.after == 1.0 and not module._forward_pre_hooks:
            return below.module.register_forward_hook(in_this_thread(after))
        return module.register_forward_pre_hook(in_this_thread(before), with_kwargs=True)

    def _see_own_attention(self, layer):
        def hook(module: Module, args: Any, output: Any) -> None:
            if ("attention", layer) in self.pending:
                probabilities = list(tensors(output))[self.attention[layer].weights_place][0]
                self._write_attention(layer, 0, probabilities, probabilities.shape[-1])
                self._done(("attention", layer))

        return hook

    def _see_normed(self, module: Module, args: Any, output: Any) -> None:
        if self.results["last_residual"] is not None:  # else the norm runs somewhere before the end, as in nanochat
            self._write_state(len(self.parts.layers), output)

    def _write_state(self, layer: int, state: Any) -> None:
        state = state if self.positions is None else self._chosen(state)
        part = ("hidden state", layer)
        if self.results["hidden_states"] is None:
            kept = self.results["hidden_states"] = self.keeper.empty((len(self.layers), *state.shape[1:]), state)
            self.rows |= zip((("hidden state", row) for row in self.layers), kept[:, None].unbind(), strict=True)
        self.keeper.write(self.rows[part], state)
        self._done(part)

    def _see_last_residual(self, stream: Tensor) -> None:
        self.results["last_residual"] = self._copy(stream)
        if self.parts.final_norm is None:
            self._write_state(len(self.parts.layers), stream)
        self._done(("last residual", len(self.parts.layers)))

    def _see_input(self, name: str) -> Any:
        def hook(module: Module, args: Any, kwargs: Any) -> None:
            if name not in self.results["inputs"]:
                self.results["inputs"][name] = self._copy(_first_tensor((args, kwargs)))
                self._done(("input", name))

        return hook

    def _see_output(self, name: str) -> Any:
        def hook(module: Module, args: Any, output: Any) -> None:
            if name not in self.results["outputs"]:
                several = list(tensors(output))
                several = several[:1] if module in self.whole_attention else several
                kept = tuple(self._copy(tensor) for tensor in several)
                self.results["outputs"][name] = kept[0] if len(kept) == 1 else kept
                self._done(("output", name))

        return hook

    def _copy(self, tensor: Tensor) -> torch.Tensor:
        """`[1, position, ...]` as `[position, ...]` at the chosen positions, with memory of its own. Some modules
        return `[position, hidden]`, with batch and positions as one axis (OPT's MLP, many mixtures of experts)."""
        if tensor.dim() == 2 and tensor.shape[0] == self.length > 1:
            return self.keeper.copy(tensor if self.positions is None else tensor[self._positions_on(tensor.device)])
        tensor = self._chosen(tensor) if tensor.dim() > 1 and tensor.shape[1] == self.length else tensor
        return self.keeper.copy(tensor[0] if tensor.dim() > 1 and tensor.shape[0] == 1 else tensor)

    def _chosen(self, tensor: Tensor) -> torch.Tensor:
        """`[1, position, ...]` at the chosen positions."""
        return tensor if self.positions is None else tensor[:, self._positions_on(tensor.device)]

    def _positions_on(self, device: torch.device) -> Tensor:
        """The chosen positions on a device. They are moved there once, since a GPU waits for a tensor from the CPU."""
        if device not in self.copies:
            self.copies[device] = self.positions.to(device)
        return self.copies[device]


def _neighbours(rows: Tensor) -> Iterator[slice]:
    """Where `rows [row]` is True, as slices of rows that follow each other."""
    numbers = enumerate(rows.nonzero().flatten().tolist())
    for _, pairs in groupby(numbers, key=lambda pair: pair[1] - pair[0]):
        together = [number for _, number in pairs]
        yield slice(together[0], together[-1] + 1)


def _remove(handles: list) -> None:
    for handle in handles:
        handle.remove()


def _works_in_place(place: Any) -> bool:
    """Whether scores may be turned into probabilities in `place [head, query, key]`, the memory of the result itself.

    On CUDA one block of threads reads a row of scores and then writes it (tests/gpu checks it); a `place` of more
    than 2^31 numbers is too large for some of its kernels.
    """
    return place is not None and place.is_cuda and place.numel() < 2**31


def _eager_in_place(
    query: Any, key: Any, value: Any, attention_mask: Tensor, causal: Any, scaling: float, future: Any, place: Tensor
) -> Tensor:
    """`eager_attention_forward` with its scores, then its probabilities in `place [head, query, key]`.

    Returns `[1, query, head, head_dim]`. For a short prompt a GPU spends its time on launching kernels, so there are as
    few of them as possible. The softmax of bfloat16 scores is computed in float32 and rounded once, as in the original.
    A `scaling` that is a power of two changes no digit, so it is applied to the queries, which are fewer than the
    scores.
    """
    heads, length, head_dim = query.shape[1:]
    groups, keys = key.shape[1:3]
    exact = math.frexp(scaling)[0] == 0.5
    queries = (query * scaling if exact else query).reshape(groups, -1, head_dim)
    scores = place.view(groups, -1, keys)
    torch.bmm(queries, key[0].mT, out=scores)
    if not exact:
        scores.mul_(scaling)
    _hide(place, 0, attention_mask, causal, future)
    torch.softmax(place, dim=-1, out=place)
    return torch.bmm(scores, value[0]).view(1, heads, length, -1).transpose(1, 2).contiguous()


def _eager_blocks(
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Tensor,
    causal: Any,
    scaling: Any,
    output: Any,
    future: Any,
    into: Any = None,
) -> Any:
    """Softmax attention, a block of queries at a time: yields (first query, probabilities [head, block, seen]), where
    the keys after the first `seen` are hidden from all queries of the block.

    Fills `output [1, query, head, head_dim]` at the same time, and `into [head, query, key]` if it is given and the
    block covers all of it. Query heads that share a key/value head are grouped, so that keys need not be repeated. The
    numbers are those of `eager_attention_forward`.
    """
    heads, length, head_dim = query.shape[1:]
    groups, keys = key.shape[1:3]
    grouped = query[0].reshape(groups, heads // groups, length, head_dim)
    block = BLOCK if query.device.type == "cpu" else max(BLOCK, SCORE_BYTES // (4 * heads * keys))
    for start in range(0, length, block):
        stop = min(start + block, length)
        seen = stop if attention_mask is None and causal else keys  # the keys after a block are hidden from all of it
        queries = grouped[:, :, start:stop].reshape(groups, -1, head_dim)
        scores = torch.bmm(queries, key[0, :, :seen].transpose(1, 2)).view(heads, stop - start, seen).mul_(scaling)
        _hide(scores, start, attention_mask, causal, future)
        scores = scores.float()  # as in `eager_attention_forward`; this also frees the bfloat16 scores
        probabilities = _softmax(scores, query.dtype, into if stop - start == length and seen == keys else None)
        del scores
        mixed = torch.bmm(probabilities.view(groups, -1, seen), value[0, :, :seen])
        output[0, start:stop] = mixed.view(heads, stop - start, -1).transpose(0, 1)
        yield start, probabilities


def _softmax(scores: torch.Tensor, dtype: torch.dtype, into: torch.Tensor | None) -> torch.Tensor:
    """Probabilities of float32 `scores`, as `dtype`; written to `into` unless that is None."""
    if dtype == torch.float32:
        return torch.softmax(scores, dim=-1, out=into)
    probabilities = torch.softmax(scores, dim=-1)
    return probabilities.to(dtype) if into is None else into.copy_(probabilities)


def _hide(scores: torch.Tensor, start: int, attention_mask: Tensor, causal: Any, future: Any) -> None:
    """Write the lowest number into `scores [head, block, key]` wherever the queries from `start` on must not attend.

    As in `sdpa_mask`, a mask is True where a query may attend, and None stands for the causal triangle. `future`
    keeps that triangle for the next block or layer.
    """
    lowest = torch.finfo(scores.dtype).min
    stop = start + scores.shape[1]
    if attention_mask is None and causal:
        if stop < scores.shape[2]:
            scores[:, :, stop:] = lowest
        triangle = (stop - start, scores.device)
        if triangle not in future:
            future[triangle] = torch.ones(stop - start, stop - start, dtype=torch.bool, device=scores.device).triu(1)
        square = scores if scores.shape[1] == scores.shape[2] else scores[:, :, start:stop]
        square.masked_fill_(future[triangle], lowest)
    elif attention_mask is not None and attention_mask.is_floating_point():
        scores += attention_mask[0, :, start:stop]
    elif attention_mask is not None:
        scores.masked_fill_(~attention_mask[0, :, start:stop], lowest)


@contextmanager
def _in_slices(lm_head: Any) -> torch.Tensor:
    """Make `lm_head` compute its logits in 16 slices of the vocabulary: the same numbers, with a sixteenth of the
    scratch memory that one matrix product takes (for a short prompt, as much as the logits themselves)."""

    def forward(hidden_states: Tensor) -> torch.Tensor:
        states = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits = states.new_empty(len(states), len(weight))
        for part, rows in zip(logits.chunk(16, dim=1), weight.chunk(16), strict=True):
            torch.mm(states, rows.T, out=part)
        return logits.view(*hidden_states.shape[:-1], -1)

    weight = getattr(lm_head, "weight", None)
    plain = type(lm_head) is torch.nn.Linear and lm_head.bias is None and "forward" not in vars(lm_head)
    if not plain or weight.device.type != "cpu" or weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        yield
        return
    try:
        lm_head.forward = in_this_thread(forward, otherwise=lm_head.forward)
        yield
    finally:
        vars(lm_head).pop("forward", None)


def _moved(value: Any, device: torch.device) -> Any:
    """A tensor, or a dict or tuple of tensors, moved to another device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    return tuple(_moved(part, device) for part in value) if isinstance(value, tuple) else value


def _sizes(recorder: Any, past: int) -> dict[Any, int]:
    """Bytes of what a run will keep, by what it is: "attentions", "hidden states", "logits", "modules".

    A module's output is counted as one vector of the residual stream's size at each position.
    """
    width, last = recorder.model.dtype.itemsize, len(recorder.parts.layers)
    positions = recorder.length if recorder.positions is None else len(recorder.positions)
    vector = positions * recorder.parts.hidden_size * width
    attention = recorder.parts.heads * positions * (past + recorder.length) * width
    sizes = {
        "attentions": len(recorder.attention_layers) * attention,
        "hidden states": (len(recorder.layers) + (last in recorder.layers)) * vector if recorder.hidden_states else 0,
        "logits": positions * recorder.model.config.get_text_config().vocab_size * width if recorder.logits else 0,
        "modules": (len(recorder.outputs_of) + len(recorder.inputs_of)) * vector,
    }
    return {part: size for part, size in sizes.items() if size}


def _smaller(recorder: Any, sizes: Any) -> Any:
    """A smaller request -> the bytes that it takes: without attentions, one layer at a time, one position."""
    total, rows = sum(sizes.values()), len(recorder.layers)
    positions = recorder.length if recorder.positions is None else len(recorder.positions)
    options = {}
    if recorder.attention_layers and len(sizes) > 1:
        options["attentions=False"] = total - sizes["attentions"]
    if rows > 1:
        by_layer = sizes.get("attentions", 0) + sizes.get("hidden states", 0)
        options["one layer at a time, such as layers=[0]"] = total - by_layer + by_layer // rows
    if positions > 1:
        options["only the last position, positions=[-1]"] = total // positions
    return options


def _place(device: str, needed: int, options: Any, own: torch.device, working: int = 0) -> torch.device:
    """The device where a result of `needed` bytes is kept; `own` is the model's, where a run takes `working` bytes
    besides. Raises `DoesNotFitError`."""
    chosen = own if device == "auto" else torch.device(pick_device(device))
    free = int(SPARE * available_bytes(chosen))
    if chosen.type != "cpu":
        free = max(free - working, 0)
    if needed > free:
        elsewhere = _on_the_cpu(chosen, needed)
        if elsewhere and device == "auto":
            return torch.device("cpu")
        raise does_not_fit("Keeping this trace", needed, free, str(chosen), elsewhere | options)
    return chosen


def _on_the_cpu(chosen: torch.device, needed: int) -> dict[str, int]:
    """The setting that keeps `needed` bytes on the CPU instead of an accelerator, if they fit there: it takes none of
    the accelerator's memory."""
    fits = chosen.type != "cpu" and needed <= SPARE * available_bytes("cpu")
    return {'device="cpu"': 0} if fits else {}


def _first_tensor(value: tuple[Any, Any]) -> Tensor:
    """The first tensor in what a module takes, `(args, kwargs)`."""
    args, _ = value
    return args[0] if args and isinstance(args[0], torch.Tensor) else next(tensors(value))


def _labels(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seen_ids: Any, patch_index: Any
) -> tuple[str, ...]:
    labels = [row.label for row in token_table(tokenizer, seen_ids)]
    if patch_index is None:
        return tuple(labels)
    grid = sight_of(model).grid
    patches = ["▦ {},{}".format(*divmod(patch, grid)) for patch in patch_index.tolist()]
    return tuple(patches[p] if patch_index[p] >= 0 else label for p, label in enumerate(labels))


def _of_several_kinds(layer: int, keys: int, earlier: int) -> BadInputError:
    return BadInputError(
        f"Layer {layer} looks at {keys} keys, an earlier one at {earlier} (a cache with sliding windows): choose "
        "layers of one kind, with layers=."
    )


def _cached(model: PreTrainedModel, cache: Any, length: int, attention_layers: Sequence[int]) -> int:
    """How many positions come before the prompt's `length`, in a cache that has room for both.

    What cannot work is refused here, because a run that fails midway leaves the cache half filled.
    """
    if cache is None:
        return 0
    past = 0
    if isinstance(cache, Cache) and hasattr(cache, "layers"):
        with suppress(ValueError):  # a cache that holds only states of fixed size
            past = int(cache.get_seq_length())
    check_cache(cache, model, past + length)
    check_reading_on(model, past, length)
    sources = {layer: _source(model, cache, layer) for layer in attention_layers if layer < len(cache.layers)}
    keys = {n: int(cache.layers[at].get_mask_sizes(length)[0]) for n, at in sources.items() if at is not None}
    first = next(iter(keys.values()), 0)
    for layer, count in keys.items():
        if count != first:
            raise _of_several_kinds(layer, count, first)
    return past


def _source(model: PreTrainedModel, cache: Cache, layer: int) -> int | None:
    """The layer whose part of the cache a layer's queries look at. In Gemma 4 the upper layers keep nothing and use the
    keys of the last layer of their kind that does. None where no such layer is known."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    alike = [n for n in range(layer) if n < len(kinds) > layer and kinds[n] == kinds[layer]]
    return next((n for n in (layer, *reversed(alike)) if hasattr(cache.layers[n], "get_mask_sizes")), None)


def _complete(
    model: PreTrainedModel, input_ids: Tensor, model_inputs: Any, past: int, context: int | None
) -> dict[str, Any]:
    """Everything the model is given, on its device; `past` positions are in a cache."""
    length = past + input_ids.shape[1]
    for name, numbers in (("attention_mask", length), ("position_ids", input_ids.shape[1])):
        if name in model_inputs:
            checks.for_each_token(name, model_inputs[name], numbers)
    if context is not None and length > context:
        raise PromptTooLongError(
            f"{past} cached positions and {input_ids.shape[1]} new ones exceed the model's context of {context}: "
            f"shorten the prompt by {length - context} tokens."
        )
    device = input_device(model)
    # Without a mask, transformers takes positions that repeat (a picture's) for several texts in one row. After a cache
    # it does not, and Qwen's models that see would give the new tokens one position for each place in the mask.
    mask = {} if past else {"attention_mask": torch.ones(1, length, dtype=torch.long, device=device)}
    given = {
        "input_ids": input_ids,
        **mask,
        "use_cache": model_inputs.get("past_key_values") is not None,
        **model_inputs,
    }
    return {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in given.items()}


def _check_model_inputs(model: PreTrainedModel, model_inputs: Any) -> None:
    if not model_inputs:
        return
    takes = inspect.signature(model.forward).parameters
    unknown = [name for name in model_inputs if name not in takes or name in NOT_FOR_READERS]
    if unknown:
        settings = [p.name for p in inspect.signature(trace).parameters.values() if p.kind == p.KEYWORD_ONLY]
        raise BadInputError(
            f"trace has no setting {unknown[0]!r}, and it is not an input of {type(model).__name__}.forward that can "
            f"be passed on. The settings are {', '.join(settings)}."
        )


def _whole_numbers(values: Any, what: str) -> tuple[int, ...]:
    """One int or several, as a tuple without duplicates."""
    values = checks.plain(what, values)
    several = tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else (values,)
    if not several or not all(isinstance(value, Integral) and not isinstance(value, bool) for value in several):
        raise BadInputError(f"{what} is a whole number or several, such as [0, 5], not {checks.shown(values)}.")
    if len(set(several)) < len(several):
        raise BadInputError(f"{what} lists a number twice: {list(several)}.")
    return tuple(int(value) for value in several)


def _layers(layers: Any, last: int, attentions: bool) -> Any:
    if layers is None:
        return tuple(range(last + 1))
    layers = _whole_numbers(layers, "layers")
    for layer in layers:
        if not 0 <= layer <= last:
            raise BadInputError(
                f"There is no layer {layer}: hidden states have rows 0 (embedding) to {last} (after the final norm), "
                f"attentions 0 to {last - 1}."
            )
        if attentions and layer == last:
            raise BadInputError(
                f"Row {last} is the end of the model and has no attention (which has rows 0 to {last - 1}): leave it "
                "out, or pass attentions=False."
            )
    return layers


def _attention_layers(parts, layers):
    """The given layers that have attention. Raises `BadInputError` if none of them does."""
    found = tuple(layer for layer in layers if layer in parts.attention_layers)
    if not found:
        asked = [layer for layer in layers if layer < len(parts.layers)]
        raise BadInputError(f"{parts.without_attention(asked)} Choose other layers, or pass attentions=False.")
    return found


def _positions(positions: Any, length: int) -> Any:
    """The positions as a tensor, counted from 0; None for all."""
    if positions is None:
        return None
    positions = _whole_numbers(positions, "positions")
    for position in positions:
        if not -length <= position < length:
            raise BadInputError(f"There is no position {position}: this prompt has positions 0 to {length - 1}.")
    counted = _whole_numbers([position % length for position in positions], "positions")
    return torch.tensor(counted, device="cpu")


def _modules(model: PreTrainedModel, names: Sequence[str]) -> dict[str, Any]:
    """Name -> module."""
    names = [names] if isinstance(names, str) else checks.several("outputs_of and inputs_of", names, "modules' names")
    modules = dict(model.named_modules()) if names else {}
    for name in names:
        if not isinstance(name, str) or name not in modules or not name:
            close = get_close_matches(str(name), modules, n=3, cutoff=0.5) or list(modules)[1:4]
            raise BadInputError(
                f"There is no module {checks.shown(name)} in {type(model).__name__}. Similar names: "
                f"{', '.join(close)}. model.named_modules() lists them all."
            )
    return {name: modules[name] for name in names}
