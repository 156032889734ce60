"""Comparisons of hidden states: from layer to layer, between positions, and between prompts.

Here a residual stream is `[layer+1, position, hidden]`, float32, and its last row is the stream before the final norm.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from helpers.errors import HelpersError
from helpers.inside.changes import Change, all_changes
from helpers.inside.contributions import DirectLogit, direct_logit, residual_contributions
from helpers.inside.lens import Lens, logit_lens
from helpers.inside.tracing import trace
from helpers.models.fitting import refusing_what_does_not_fit

SMALLEST = 1e-9  # the least that a norm counts as when something is divided by it


@dataclass(frozen=True, eq=False)
class PromptRun:
    """One run of a model on a prompt, with some of its positions kept; all tensors are on the CPU.

    - `input_ids [1, length]` and `labels` are those of the whole prompt; `first` is the first position kept.
    - `stream [layer+1, position, hidden]`: the residual stream at the positions kept.
    - `lens`: the logit lens at the positions kept; None for a model that has none, and then `no_lens` is the
      sentence that says why.
    - `logits [vocab]`: the scores of the token after the whole prompt.
    """

    input_ids: torch.Tensor
    labels: tuple[str, ...]
    first: int
    stream: torch.Tensor
    lens: Lens | None
    no_lens: str
    logits: torch.Tensor

    @property
    def shown(self) -> range:
        """The positions kept."""
        return range(self.first, self.first + self.stream.shape[1])

    def column(self, position: int) -> int:
        """The index of a position of the prompt in the tensors."""
        return position - self.first


def run_prompt(
    model: PreTrainedModel,
    tokenizer: Any,
    input_ids: torch.Tensor,
    *,
    changes: Iterable[Change] = (),
    most: int = 96,
    after: int = 0,
    top_k: int = 10,
) -> PromptRun:
    """Run the model once, with `changes` in place, and keep `most` positions: the last ones before the final `after`.

    Afterwards the model is as it was. `top_k` is how many tokens the lens keeps for each layer and position. Raises
    what `trace` and the interventions raise.
    """
    length = input_ids.shape[1]
    stop = max(min(most, length), length - after)
    first = max(0, stop - most)
    positions = [*range(first, stop), *([length - 1] if stop < length else [])]  # the last one says what comes next
    with all_changes(model, changes):
        traced = trace(model, tokenizer, input_ids, attentions=False, positions=positions)
    count = stop - first
    lens, no_lens = None, ""
    try:
        lens = _part(logit_lens(model, traced, top_k=min(top_k, traced.logits.shape[-1])), count)
    except HelpersError as error:
        no_lens = str(error)
    needed = 4 * traced.hidden_states[:, :count].numel()
    with refusing_what_does_not_fit("Keeping this run", needed, str(traced.device), runs=False):
        stream = torch.cat([traced.hidden_states[:-1], traced.last_residual[None]])[:, :count].cpu().float()
        logits = traced.logits[-1].cpu().float()
    return PromptRun(input_ids, traced.tokens, first, stream, lens, no_lens, logits)


def _part(lens: Lens, count: int) -> Lens:
    """The first `count` positions of a lens."""
    cut = {name: getattr(lens, name)[:, :count].cpu() for name in ("token_ids", "probabilities", "entropy")}
    return replace(lens, positions=lens.positions[:count], **cut)


def writers_of(
    model: PreTrainedModel,
    tokenizer: Any,
    run: PromptRun,
    layer: int,
    position: int,
    token_id: int,
    *,
    changes: Iterable[Change] = (),
) -> DirectLogit:
    """What each head and MLP below `layer` wrote at `position` of a run, as logits of `token_id`.

    `changes` are those the run was made with. Raises what `residual_contributions` and `direct_logit` raise,
    including `BadInputError` for a model whose parts do not add up.
    """
    with all_changes(model, changes):
        parts = residual_contributions(model, tokenizer, run.input_ids, positions=[position])
    return direct_logit(model, parts, token_id, layer=layer)


def change_from_below(stream: torch.Tensor) -> torch.Tensor:
    """How much each layer changed the stream, `[layer+1, position]`: the norm of the change divided by the norm of the
    stream after it.

    The first row is nan, since no layer comes before it.

    >>> change_from_below(torch.tensor([[[3.0, 4.0]], [[6.0, 8.0]]]))
    tensor([[   nan],
            [0.5000]])
    """
    norm = stream.norm(dim=-1)
    change = torch.full_like(norm, torch.nan)
    change[1:] = (stream[1:] - stream[:-1]).norm(dim=-1) / norm[1:].clamp(min=SMALLEST)
    return change


def cosine(states: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """The cosine of `state [hidden]` with each of `states [..., hidden]`.

    >>> cosine(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 0.0]))
    tensor([1., 0.])
    """
    return nn.functional.cosine_similarity(states, state.expand_as(states), dim=-1)


@dataclass(frozen=True)
class Neighbour:
    """A hidden state that is similar to another one of the same layer.

    `run` is the index of its run and `position` its position in that run's prompt. `cosine` is its cosine with the
    other state, `centred` the cosine after the mean of all the layer's states is subtracted from both, so that what
    they all have in common no longer counts.
    """

    run: int
    position: int
    cosine: float
    centred: float


def nearest(runs: Sequence[PromptRun], run: int, layer: int, position: int, *, most: int = 6) -> list[Neighbour]:
    """The positions of `runs` whose hidden state in `layer` is most similar to that of `position` in `runs[run]`.

    At most `most` of them, the highest cosine first, without the state itself.
    """
    places = [(number, at) for number, each in enumerate(runs) for at in each.shown]
    states = torch.stack([runs[number].stream[layer, runs[number].column(at)] for number, at in places])
    mine = places.index((run, position))
    mean = states.mean(0)
    plain, centred = cosine(states, states[mine]), cosine(states - mean, states[mine] - mean)
    order = [place for place in plain.argsort(descending=True).tolist() if place != mine][:most]
    return [
        Neighbour(places[place][0], places[place][1], float(plain[place]), float(centred[place])) for place in order
    ]


@dataclass(frozen=True)
class Overlap:
    """Where two runs show the same positions, counted from the ends of their prompts: slices into their tensors."""

    first: slice
    second: slice


def overlap(first: PromptRun, second: PromptRun) -> Overlap | None:
    """The positions that both runs show, matched from the end; None if there are none."""
    shift = len(second.labels) - len(first.labels)
    start = max(first.first, second.first - shift)
    stop = min(first.shown.stop, second.shown.stop - shift)
    if start >= stop:
        return None
    mine, other = first.column, second.column
    return Overlap(slice(mine(start), mine(stop)), slice(other(start + shift), other(stop + shift)))


def distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """How far apart the states of two tensors `[..., hidden]` are: their distance divided by the mean of their norms,
    `[...]`.

    >>> distance(torch.tensor([3.0, 4.0]), torch.tensor([-3.0, -4.0]))
    tensor(2.)
    """
    norms = (first.norm(dim=-1) + second.norm(dim=-1)) / 2
    return (first - second).norm(dim=-1) / norms.clamp(min=SMALLEST)


def opposite(first: PromptRun, second: PromptRun, position: int) -> int:
    """The position of `first` that is as far from the end as `position` is in `second`; it may be below 0."""
    return len(first.labels) - (len(second.labels) - position)
