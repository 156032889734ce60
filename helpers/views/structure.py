"""A loaded model's structure, drawn from the model itself.

Nothing here depends on a model's layer names. Names, shapes and counts come from walking the modules;
the order of the parts and the residual connections come from a dry run: a copy of the model without
any weights (on PyTorch's "meta" device, where tensors have shapes but no values) is called once,
while hooks record which modules run and where two tensors are added. A model that needs actual values
(a mixture of experts) cannot run without weights, so the model itself is called.
"""

from __future__ import annotations

from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import cycle, groupby
from math import prod
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from helpers.checks import given_by
from helpers.errors import BadInputError
from helpers.views.strip import ADD, Strip
from helpers.views.style import INK, MUTED, OKABE_ITO, RULE, drawable, is_sharp, new_axes, png_bytes
from helpers.views.svg import svg_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from matplotlib.axes import Axes
    from torch.nn import Module
    from transformers import PreTrainedModel

IDLE = "not used for text-only prompts"


@dataclass(frozen=True)
class Weight:
    """A parameter: its name inside its part, its shape, and for a tied one the name of the weight it shares."""

    name: str
    shape: tuple[int, ...]
    tied_to: str | None

    @property
    def count(self) -> int:
        """How many numbers it has; 0 for a tied weight, which is counted at the other name."""
        return 0 if self.tied_to else prod(self.shape)


@dataclass(frozen=True)
class Part:
    """A module that is drawn as one box: `self_attn`, `norm`, `lm_head`."""

    name: str
    kind: str
    weights: tuple[Weight, ...]

    @property
    def count(self) -> int:
        """How many parameters it has."""
        return sum(weight.count for weight in self.weights)


@dataclass(frozen=True)
class Stack:
    """`repeats` equal layers, drawn once. `order` names the parts in the order in which they run, with `ADD` for each
    addition; it is None if the dry run did not reach the layers."""

    name: str
    kind: str
    repeats: int
    parts: tuple[Part, ...]
    order: tuple[str, ...] | None

    @property
    def count(self) -> int:
        """How many parameters all the layers have together."""
        return self.repeats * sum(part.count for part in self.parts)

    def run(self) -> list[Any]:
        """The parts in the order in which they run, with `ADD` for each addition; in the code's order if that is
        unknown."""
        named: dict[str, Any] = {part.name: part for part in self.parts} | {ADD: ADD}
        return [named[name] for name in self.order or [part.name for part in self.parts] if name in named]


@dataclass(frozen=True)
class Structure:
    """A model's blocks in the order in which they run; `show_structure` makes it.

    A notebook shows it as a picture, a terminal as text. `idle` are the blocks that a text does not
    reach, such as a vision tower, in the order of the code. `ordered` is False if the dry run failed:
    then all blocks are in the order of the code, without residual connections.
    """

    kind: str
    blocks: tuple[Part | Stack, ...]
    idle: tuple[Part | Stack, ...]
    ordered: bool

    @property
    def count(self) -> int:
        """How many parameters the model has, with tied ones counted once."""
        return sum(block.count for block in self.blocks + self.idle)

    def __repr__(self) -> str:
        lines = [f"{self.kind}: {self.count:,} parameters", *self._lines(self.blocks)]
        if self.idle:
            lines += [f"{IDLE}:", *self._lines(self.idle)]
        return "\n".join(lines)

    def _lines(self, blocks: Sequence[Any]) -> list[str]:
        lines = []
        for block in blocks:
            if isinstance(block, Part):
                lines.append(_line(block.name, block.kind, f"{block.count:,}", self._share(block), _shapes(block)))
                continue
            each = f"{block.repeats} × {block.count // block.repeats:,}"
            lines.append(_line(block.name, block.kind, each, self._share(block), ""))
            for part in block.run():
                if part == ADD:
                    lines.append("  + added to the residual stream")
                else:
                    each, share = f"{block.repeats} × {part.count:,}", self._share(part, block.repeats)
                    lines.append(_line(f"  {part.name}", part.kind, each, share, _shapes(part)))
        return lines

    def _share(self, block: Any, repeats: int = 1) -> str:
        share = 100 * repeats * block.count / self.count
        return "<0.1%" if 0 < share < 0.05 else f"{share:.1f}%"

    def here(self, *names: str, note: str = "") -> Strip:
        """The model's blocks in one row with those of these names highlighted: a `Strip`, which a notebook draws.

        A name is the last component of a block's name: `self_attn`, `lm_head`; "layers" stands for all blocks of a
        layer, and "token ids" and "logits" for the two ends. `note` is written below. Raises `BadInputError` for any
        other name.

        >>> show_structure(model).here("mlp", note="section 10")
        token ids → embed_tokens → [input_layernorm → self_attn → + → post_attention_layernorm → *mlp* → +] × 30 → \
norm → lm_head → logits (section 10)
        """
        stacks = [block for block in self.blocks if isinstance(block, Stack)]
        stack = max(stacks, key=lambda stack: stack.count, default=None)
        layer = [part if part == ADD else part.name for part in stack.run()] if stack else []
        at = self.blocks.index(stack) if stack else len(self.blocks)
        others = [block.name.rpartition(".")[2] for block in self.blocks]
        before, after = ("token ids", *others[:at]), (*others[at + 1 :], "logits")
        here = tuple(name for given in names for name in (layer if given == "layers" else [given]))
        return Strip(before, tuple(layer), after, stack.repeats if stack else 0, here, note)

    def _repr_svg_(self) -> str | None:
        if not is_sharp():
            return None
        from matplotlib import pyplot

        figure = plot_structure(self).figure
        pyplot.close(figure)
        return svg_text(figure)

    def _repr_png_(self) -> bytes | None:
        return None if is_sharp() else png_bytes(plot_structure(self).figure)


def show_structure(model: PreTrainedModel) -> Structure:
    """A loaded model's structure as a `Structure`: a picture in a notebook, text in a terminal.

    It works for any decoder-only model of `transformers` (Llama, SmolLM2, Qwen, GLM-4, …). Equal layers
    are folded into one; every block shows the shapes of its weights `[out, in]` and its percentage of the
    parameters. The model is not changed. It is run on a few tokens only if necessary (a mixture of experts needs
    values, which an empty copy does not have).

    Raises `BadInputError` for anything but a PyTorch model.

    >>> print(str(show_structure(model)).splitlines()[0])
    LlamaForCausalLM: 134,515,008 parameters
    """
    import torch

    if not isinstance(model, torch.nn.Module):
        raise BadInputError(f"show_structure takes a loaded model, not a {type(model).__name__}.")
    calls = _dry_run(model)
    found = _blocks("", model, _weights(model), calls)
    running = sorted((pair for pair in found if pair[0] in calls), key=lambda pair: calls.index(pair[0]))
    idle = [pair for pair in found if pair[0] not in calls]
    if not calls:
        running, idle = idle, []
    blocks, apart = (tuple(block for _, block in pairs) for pairs in (running, idle))
    return Structure(type(model).__name__, blocks, apart, bool(calls))


def _weights(model: PreTrainedModel) -> dict[str, Any]:
    """Full name -> `Weight` of every parameter, tied ones included."""
    owner, weights = {}, {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owned_by = owner.setdefault(id(parameter), name)
        weights[name] = Weight(name, tuple(parameter.shape), None if owned_by == name else owned_by)
    return weights


def _dry_run(model: PreTrainedModel) -> Any:
    """What runs in the model, in order: module names, and `name+` where module `name` adds two tensors.

    Empty if neither the copy nor the model can be called, for example because the class needs more than ids.
    """
    import torch

    from helpers.inside.anatomy import neutral_ids
    from helpers.inside.exclusive import alone, in_this_thread

    calls, inside = [], []

    def enter(name: str) -> Any:
        def hook(module: Module, inputs: Any, named_inputs: Any) -> None:
            given = [value for value in (*inputs, *named_inputs.values()) if isinstance(value, torch.Tensor)]
            calls.append(name)
            inside.append((name, given[1:]))

        return hook

    def leave(module: Module, inputs: Any, output: Any) -> None:
        inside.pop()

    def listen(run_model: Module, **inputs: Any) -> None:
        with ExitStack() as hooks:
            for name, module in run_model.named_modules():
                hooks.enter_context(module.register_forward_pre_hook(in_this_thread(enter(name)), with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(in_this_thread(leave)))
            with torch.no_grad(), _additions(calls, inside):
                run_model(**inputs, use_cache=False)

    try:
        config = deepcopy(model.config)
        config._attn_implementation = "eager"  # the one that every class has
        with torch.device("meta"):
            length = 2
            empty = type(model)(config)
            ids = torch.zeros(1, length, dtype=torch.long)
            mask = torch.zeros(1, 1, length, length, dtype=empty.dtype)  # made here: the model would need values for it
            listen(empty, input_ids=ids, attention_mask=mask)
    except Exception:  # a class of model that needs values, such as a mixture of experts: then the model itself runs
        calls.clear()
        inside.clear()
        try:
            with alone(model, "show_structure"):
                listen(model, input_ids=neutral_ids(model).to(model.device))
        except Exception:  # it may be any class of model; without an order there is still a list
            return []
    return calls


def _additions(calls: Any, inside: Any) -> AbstractContextManager[Any]:
    """A context in which every addition of two tensors of equal shape is recorded in `calls`. If a module gets the
    stream as a second input and adds to it (in BLOOM and MPT), the addition counts as one of the layer around it."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    additions = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)

    class Additions(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in additions and _same_shape(*args[:2]):
                name, beside = inside[-1]
                to_stream = any(value is term for value in beside for term in args[:2])
                calls.append((name.rpartition(".")[0] if to_stream else name) + ADD)
            return function(*args, **(kwargs or {}))

    return Additions()


def _same_shape(a: Any, b: Any) -> bool:
    return getattr(a, "shape", None) == getattr(b, "shape", 0)


def _blocks(name: str, module: Module, weights: Any, calls: Any) -> Any:
    """The blocks inside a module, as pairs (name of the module that runs first in it, block): equal layers are folded,
    modules that contain layers are opened, and everything else becomes one `Part`."""
    import torch

    blocks = []
    own = [n for n, _ in module.named_parameters(recurse=False)]
    if own:
        prefix = f"{name}." if name else ""
        own_weights = tuple(replace(weights[prefix + n], name=n) for n in own)
        blocks.append((name, Part(name, type(module).__name__, own_weights)))
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if isinstance(child, torch.nn.ModuleList):
            blocks += _folded(full, child, weights, calls)
        elif any(isinstance(m, torch.nn.ModuleList) for m in child.modules()):
            blocks += _blocks(full, child, weights, calls)
        elif (part := _part(full, full, child, weights)).weights:
            blocks.append((full, part))
    return blocks


def _folded(name: str, layers: Any, weights: Any, calls: Any) -> Any:
    """Runs of equal layers (same class, same parts and shapes, same order) as one `Stack` each."""
    stacks = []
    for index, layer in enumerate(layers):
        full = f"{name}.{index}"
        children = [_part(n, f"{full}.{n}", child, weights) for n, child in layer.named_children()]
        own = [n for n, _ in layer.named_parameters(recurse=False)]
        if own:
            kind = type(layer).__name__
            children.append(Part("(layer)", kind, tuple(replace(weights[f"{full}.{n}"], name=n) for n in own)))
        stacks.append(
            Stack(name, type(layer).__name__, 1, tuple(p for p in children if p.weights), _order(full, calls))
        )
    folded, first = [], 0
    for stack, same in groupby(stacks):
        repeats = len(list(same))
        shown = name if repeats == len(stacks) else f"{name}[{first}:{first + repeats}]"
        folded.append((f"{name}.{first}", replace(stack, name=shown, repeats=repeats)))
        first += repeats
    return folded


def _order(layer: str, calls: Any) -> tuple[str, ...] | None:
    """The direct parts of one layer in the order in which they run, with `ADD` where the layer itself adds."""
    order = []
    for call in calls:
        if call == layer + ADD:
            order.append(ADD)
        elif call.startswith(layer + ".") and "." not in (rest := call[len(layer) + 1 :]) and ADD not in rest:
            order.append(rest)
    return tuple(order) or None


def _part(shown: str, full: str, module: Module, weights: Any) -> Part:
    inside = tuple(
        replace(weight, name=name[len(full) + 1 :]) for name, weight in weights.items() if name.startswith(full + ".")
    )
    return Part(shown, type(module).__name__, inside)


def _shapes(part: Part) -> str:
    """The weights of a part as text: `q_proj [576, 576]`, `weight [49152, 576] = model.embed_tokens.weight`."""
    texts = []
    for weight in part.weights:
        text = f"{weight.name.removesuffix('.weight')} {list(weight.shape)}"
        texts.append(text + (f" = {weight.tied_to}, counted there" if weight.tied_to else ""))
    return ", ".join(texts if len(texts) <= 12 else [*texts[:10], f"… and {len(texts) - 10} more"])


def _line(name: str, kind: str, count: str, share: str, shapes: str) -> str:
    return f"{name:<28} {kind:<20} {count:>17} {share:>6}  {shapes}".rstrip()


def plot_structure(structure: Structure, *, ax: Axes | None = None) -> Axes:
    """A `Structure` as a diagram, from token ids down to logits. Returns the Axes.

    Equal layers are one frame. The residual stream runs down its left side; each block reads from it, and
    its output is added to it at a ⊕. On the right is each block's percentage of the parameters.

    >>> len(plot_structure(show_structure(model)).patches) > 0
    True
    """
    given_by("show_structure", "structure", structure, "blocks", "idle")
    ax = _canvas(structure, ax)
    drawing = _Drawing(ax, structure)
    y = drawing.pill(0.3, "token ids")
    for block in structure.blocks:
        y = drawing.block(drawing.arrow(y), block)
    y = drawing.pill(drawing.arrow(y), "logits")
    if structure.idle:
        y = drawing.pill(y + GAP, IDLE)
    for block in structure.idle:
        y = drawing.block(y + GAP * 0.6, block)
    return ax


LEFT, RIGHT, STREAM, INNER = 2, 74, 7, 14  # x coordinates in the diagram, from 0 to 100
LINE, GAP = 1.0, 0.7  # heights of a line of text and of an arrow


def _height(part: Part, x: float) -> float:
    return LINE * (1.35 + len(_wrapped(part, x)))


def _wrapped(part: Part, x: float) -> list[str]:
    """The weights in lines that fit the box; a line never ends inside a name or shape."""
    shapes = _shapes(part).replace(" ", "\u00a0").replace("],\u00a0", "], ")
    return wrap(shapes, 92 if x == LEFT else 76, break_on_hyphens=False)


def _stack_height(stack: Stack) -> float:
    height = 1.7 + GAP
    for part in stack.run():
        height += 1.1 if part == ADD else _height(part, INNER) + GAP
    return height


def _is_norm(part: Any) -> bool:
    """Whether a part has only vectors as weights: then it is a norm, whatever its name."""
    return all(len(weight.shape) < 2 for weight in part.weights)


def _canvas(structure: Structure, ax: Axes | None) -> Axes:
    """Axes with one unit per line of text; their height does not depend on the number of equal layers."""
    lines = 3.2 + GAP
    if structure.idle:
        lines += 1.2 + GAP
    for block in structure.blocks + structure.idle:
        lines += GAP + (_stack_height(block) if isinstance(block, Stack) else _height(block, LEFT))
    ax = new_axes(ax, 7.6, 0.4 + 0.185 * lines)
    ax.set(xlim=(0, 100), ylim=(lines, 0))
    ax.set_axis_off()
    order = "" if structure.ordered else " (order as in the code)"
    ax.set_title(drawable(f"{structure.kind}: {_short(structure.count)} parameters{order}"), loc="left")
    ax.text(100, -0.2, "% of parameters", ha="right", va="bottom", fontsize=7.5, color=MUTED)
    return ax


class _Drawing:
    """Draws from top to bottom; each method takes the y where it starts and returns the y where it ends."""

    def __init__(self, ax: Axes, structure: Structure) -> None:
        self.ax, self.structure = ax, structure

    def frame(self, x: float, y: float, width: float, height: float, face: Any, edge: Any, **style: Any) -> None:
        from matplotlib.patches import FancyBboxPatch

        shape = FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.35",
            mutation_aspect=1.0,
            facecolor=face,
            edgecolor=edge,
            lw=1.1,
            **style,
        )
        self.ax.add_patch(shape)

    def pill(self, y: float, text: str) -> float:
        self.ax.text(STREAM - 3.5, y + 0.6, text, va="center", fontsize=8.5, fontweight="bold", color=INK)
        return y + 1.2

    def arrow(self, y: float) -> float:
        if self.structure.ordered:
            self.head((STREAM, y), (STREAM, y + GAP))
        return y + GAP

    def block(self, y: float, block: Any) -> float:
        if isinstance(block, Stack):
            return self.stack(y, block)
        return self.box(y, block, x=LEFT, hue=MUTED if _is_norm(block) else OKABE_ITO["orange"])

    def box(self, y: float, part: Part, *, x: float, hue: str, repeats: int = 1) -> float:
        height = _height(part, x)
        self.frame(x, y, RIGHT - x, height, _tint(hue), hue)
        self.ax.text(x + 1.5, y + 0.75, drawable(part.name), va="center", fontsize=8.5, fontweight="bold")
        self.ax.text(RIGHT - 1.5, y + 0.75, drawable(part.kind), va="center", ha="right", fontsize=7.5, color=MUTED)
        for n, line in enumerate(_wrapped(part, x)):
            self.ax.text(x + 1.5, y + 1.7 + n * LINE, drawable(line), va="center", fontsize=7.5)
        self.share(y + height / 2, part, hue, repeats)
        return y + height

    def share(self, y: float, part: Any, hue: str, repeats: int) -> None:
        width = 14 * repeats * part.count / self.structure.count
        self.ax.barh(y, 14, left=78, height=0.75, color="#f0f2f4")
        self.ax.barh(y, width, left=78, height=0.75, color=hue)
        self.ax.text(100, y, self.structure._share(part, repeats), va="center", ha="right", fontsize=8)

    def stack(self, y: float, stack: Stack) -> float:
        height = _stack_height(stack)
        for shift in (1.2, 0.6) if stack.repeats > 1 else ():  # a pile of pages
            self.frame(LEFT + shift, y + shift * 0.35, RIGHT - LEFT + 1.2, height, "white", RULE, zorder=0.5)
        self.frame(LEFT, y, RIGHT - LEFT + 1.2, height, "white", INK, zorder=0.6)
        title = f"{stack.name} × {stack.repeats}"
        self.ax.text(LEFT + 8, y + 0.85, drawable(title), va="center", fontsize=9, fontweight="bold")
        note = f"{stack.kind}, {_short(stack.count // stack.repeats)} each"
        self.ax.text(RIGHT - 0.5, y + 0.85, drawable(note), va="center", ha="right", fontsize=7.5, color=MUTED)
        self.share(y + 0.85, stack, INK, 1)
        top, y = y, y + 1.7
        hues = cycle(["blue", "green", "purple", "sky", "vermillion"])
        in_branch = False
        for part in stack.run():
            if part == ADD:
                self.join(y)
                y, in_branch = y + 1.1, False
                continue
            if stack.order:
                self.into_box(y, from_stream=not in_branch)
            hue = MUTED if _is_norm(part) else OKABE_ITO[next(hues)]
            y = self.box(y + GAP, part, x=INNER, hue=hue, repeats=stack.repeats)
            in_branch = True
        if stack.order:
            self.ax.plot([STREAM] * 2, [top, top + height], color=INK, lw=1.2, zorder=0.9)
            self.ax.text(
                STREAM - 2.2,
                top + height / 2,
                "residual stream",
                rotation=90,
                va="center",
                ha="center",
                fontsize=7.5,
                color=MUTED,
            )
        return top + height

    def into_box(self, y: float, *, from_stream: Any) -> None:
        """An arrow down into the box below, from the residual stream or from the box above."""
        if from_stream:
            y += GAP * 0.35
            self.ax.plot([STREAM, INNER + 3], [y, y], color=INK, lw=1.2)
            self.head((INNER + 3, y), (INNER + 3, y + GAP * 0.65))
        else:
            self.head((INNER + 3, y), (INNER + 3, y + GAP))

    def join(self, y: float) -> None:
        """An arrow from the box above back into the residual stream."""
        self.ax.plot([INNER + 3] * 2, [y, y + 0.55], color=INK, lw=1.2)
        self.head((INNER + 3, y + 0.55), (STREAM + 1.1, y + 0.55))
        white = {"boxstyle": "circle,pad=0.02", "facecolor": "white", "edgecolor": "none"}
        self.ax.text(STREAM, y + 0.52, "⊕", va="center", ha="center", fontsize=13, zorder=3, bbox=white)

    def head(self, start: Any, end: Any) -> None:
        style = {"arrowstyle": "-|>", "color": INK, "lw": 1.2, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
        self.ax.annotate("", end, start, arrowprops=style)


def _tint(color: str) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return tuple(1 - 0.12 * (1 - channel) for channel in to_rgb(color))


def _short(count: int) -> str:
    """A readable count: `28.3 M`."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
