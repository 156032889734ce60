"""An interactive view of how temperature, top-k and top-p reshape one step's probabilities; no model is run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from helpers.checks import shown
from helpers.errors import BadInputError
from helpers.inside.generation import check_settings, logits_processors
from helpers.views.plots import candidates, percent, plot_processors, stage_scores
from helpers.views.widget import Commands, CourseWidget

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.axes import Axes
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from helpers.inside.generation import GenerationStep

SETTINGS = {  # name: (lowest, highest, step, value that changes nothing)
    "temperature": (0.05, 2.0, 0.05, 1.0),
    "top_k": (0, 100, 1, 0),
    "top_p": (0.05, 1.0, 0.05, 1.0),
    "repetition_penalty": (1.0, 2.0, 0.05, 1.0),
}


def sliders(settings: Mapping[str, Any], names: Iterable[str]) -> list[dict[str, Any]]:
    """What the page needs to draw a slider per name; a value outside the usual range widens it."""
    shown = []
    for name in names:
        low, high, step, neutral = SETTINGS[name]
        value = settings[name]
        shown.append(
            {
                "name": name,
                "value": value,
                "min": min(low, value),
                "max": max(high, value),
                "step": step,
                "neutral": neutral,
            }
        )
    return shown


def candidate_rows(
    step: GenerationStep, tokenizer: PreTrainedTokenizerBase, top: int, *, before: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """The candidates of a step as plain dicts for the page: raw and final probability, as number and text."""
    rows = candidates(stage_scores(step), tokenizer, top=top, chosen=step.token_id, before=before)
    return [
        {
            "id": row.token_id,
            "label": row.label,
            "raw": row.probabilities[0],
            "rawText": percent(row.probabilities[0]),
            "final": row.probabilities[-1],
            "finalText": "removed" if row.probabilities[-1] is None else percent(row.probabilities[-1]),
            "chosen": row.chosen,
        }
        for row in rows
    ]


def stage_names(step: GenerationStep) -> list[str]:
    """Readable names of a step's processors: `temperature`, `top k (40 left)`."""
    names, before = [], len(step.logits)
    for name, scores in step.processed.items():
        left = int((~torch.isneginf(scores)).sum())
        names.append(name.replace("_", " ") + (f" ({left:,} left)" if left < before else ""))
        before = left
    return names


class Sampling(Commands):
    """One step's raw logits `[vocab]` under settings that can change."""

    commands = ("change",)

    def __init__(
        self,
        logits: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        *,
        top: int = 12,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> None:
        self.logits, self.tokenizer, self.top = logits.float(), tokenizer, top
        self.settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        self.change(temperature=temperature, top_k=top_k, top_p=top_p)

    def change(self, /, **settings: Any) -> None:
        """Change the settings. Raises `BadInputError` and keeps the old ones if one cannot work."""
        unknown = next((name for name in settings if name not in self.settings), None)
        if unknown is not None:
            raise BadInputError(f"There is no setting {shown(unknown)} here; there are: {', '.join(self.settings)}.")
        chosen: dict[str, Any] = {**self.settings, **settings}
        check_settings(max_new_tokens=1, do_sample=True, **chosen, repetition_penalty=1.0, seed=None)
        scores, processed = self.logits[None], {}
        for name, processor in logits_processors(do_sample=True, **chosen, repetition_penalty=1.0).items():
            scores = processor(None, scores)
            processed[name] = scores[0]
        self.settings = chosen
        self.step: Any = SimpleNamespace(logits=self.logits, processed=processed, token_id=None)

    def view(self) -> dict[str, Any]:
        """What the page draws."""
        return {
            "kind": "sampling",
            "candidates": candidate_rows(self.step, self.tokenizer, self.top),
            "stages": stage_names(self.step),
            "sliders": sliders(self.settings, self.settings),
        }

    def figure(self) -> Axes:
        """The still picture: the candidates before and after each processor."""
        return plot_processors(self.step, self.tokenizer, top=self.top)

    def describe(self) -> str:
        """The still picture in words."""
        rows = candidate_rows(self.step, self.tokenizer, 3)
        best = ", ".join(f"{row['label']} {row['rawText']} → {row['finalText']}" for row in rows)
        settings = ", ".join(f"{name}={value:g}" for name, value in self.settings.items())
        return f"sampling_explorer with {settings}: {best}"


def sampling_explorer(
    step: GenerationStep,
    tokenizer: PreTrainedTokenizerBase,
    *,
    top: int = 12,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> CourseWidget:
    """Sliders for temperature, top-k and top-p over one step's raw logits, with bars that follow the sliders.

    `step` is a `GenerationStep` or logits `[vocab]`. The settings are the initial ones. Without a
    kernel the cell shows a still picture of their effect.

    Raises `BadInputError` for another kind of `step`, or a setting that cannot work.

    >>> import torch
    >>> explorer = sampling_explorer(torch.tensor([0.1, 0.7, 0.2]), tokenizer, top=2, top_k=2)
    >>> explorer.state.settings["top_k"]
    2
    """
    logits = getattr(step, "logits", step)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 1:
        raise BadInputError("sampling_explorer takes a step of generate_steps, or logits [vocab].")
    return CourseWidget(Sampling(logits, tokenizer, top=top, temperature=temperature, top_k=top_k, top_p=top_p))
