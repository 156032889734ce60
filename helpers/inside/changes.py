"""Interventions as values, which can be listed, undone, given another strength and repeated."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from helpers.inside.interventions import ablate_heads, patch_hidden_state, skip_attention, skip_layer, skip_mlp, steer

SKIPS = {"layer": skip_layer, "attention": skip_attention, "mlp": skip_mlp}


@dataclass(frozen=True, eq=False)
class Change:
    """One intervention, not yet applied. `kind`: "heads", "skip", "patch" or "steer"; fields it doesn't need are unset.

    - "heads": `heads`, pairs (layer, head), are ablated.
    - "skip": `part` ("layer", "attention" or "mlp") of `layer` is skipped.
    - "patch": the hidden state of `layer` at `position` becomes `vector [hidden]`.
    - "steer": `scale` times `vector [hidden]` is added to the hidden state of `layer` at every position.

    `about` is a phrase that says where the vector comes from.

    >>> Change("skip", layer=3, part="mlp").code
    'skip_mlp(model, 3)'
    """

    kind: str
    layer: int = 0
    heads: tuple[tuple[int, int], ...] = ()
    part: str = ""
    position: int = 0
    vector: torch.Tensor | None = None
    scale: float = 1.0
    about: str = ""

    def context(self, model: PreTrainedModel) -> AbstractContextManager:
        """The context manager that applies the change. Raises what the intervention of this kind raises."""
        if self.kind == "heads":
            return ablate_heads(model, self.heads)
        if self.kind == "skip":
            return SKIPS[self.part](model, self.layer)
        if self.kind == "patch":
            return patch_hidden_state(model, self.layer, self.position, self.vector)
        return steer(model, self.layer, self.vector, scale=self.scale)

    @property
    def text(self) -> str:
        """The change as a phrase."""
        if self.kind == "heads":
            return "ablated: " + ", ".join(f"layer {layer} head {head}" for layer, head in self.heads)
        if self.kind == "skip":
            part = {"layer": "", "attention": "'s attention", "mlp": "'s MLP"}[self.part]
            return f"skipped: layer {self.layer}{part}"
        if self.kind == "patch":
            return f"patched: layer {self.layer}, position {self.position}, from {self.about}"
        return f"steered: layer {self.layer}, {self.about}"

    @property
    def code(self) -> str:
        """The change as the call that a reader would write."""
        if self.kind == "heads":
            return f"ablate_heads(model, {list(self.heads)})"
        if self.kind == "skip":
            return f"skip_{self.part}(model, {self.layer})"
        if self.kind == "patch":
            return f"patch_hidden_state(model, {self.layer}, {self.position}, value)"
        return f"steer(model, {self.layer}, direction, scale={self.scale:g})"


@contextmanager
def all_changes(model: PreTrainedModel, changes: Iterable[Change]) -> Iterator[None]:
    """Apply all changes together, for as long as the `with` block lasts. Raises what the interventions raise."""
    with ExitStack() as active:
        for change in changes:
            active.enter_context(change.context(model))
        yield
