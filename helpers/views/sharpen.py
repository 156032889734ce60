"""An interactive view of heads under a temperature: where they look, and what the model then predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from helpers.checks import several, shown
from helpers.errors import BadInputError
from helpers.inside.heads import head_temperature
from helpers.inside.tracing import trace
from helpers.text.prompts import prompt_ids
from helpers.text.tokens import token_table
from helpers.views.modules import front
from helpers.views.plots import percent
from helpers.views.style import OKABE_ITO, drawable
from helpers.views.widget import Commands, CourseWidget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COLDEST, HOTTEST = 0.05, 20.0  # the slider runs over powers of ten between them
MOST_ROWS = 8


class SharpenedHeads(Commands):
    """A prompt, some heads and the temperature of their attention; `sharpen_heads` draws it.

    The last position's attention is shown for the first of the heads.
    """

    commands = ("change",)

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Any,
        heads: Sequence[tuple[int, int]],
        *,
        temperature: float = 1.0,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        pairs = several("heads", heads, "pairs (layer, head) such as (18, 6)")
        self.heads: list[Any] = [tuple(several("A head", pair, "a layer and a head")) for pair in pairs]
        if not self.heads:
            raise BadInputError("There is no head to sharpen: heads is empty. Give pairs such as (18, 6).")
        self.ids = prompt_ids(tokenizer, prompt)
        self.tokens = [row.label for row in token_table(tokenizer, self.ids)]
        self.before = self._run(1.0)
        self.change(temperature)

    def _run(self, temperature: float) -> tuple[Tensor, Tensor]:
        """The first head's attention at the last position `[key]` and the next token's probabilities `[vocab]`."""
        layer, head = self.heads[0]
        with head_temperature(self.model, self.heads, temperature):
            run = trace(self.model, self.tokenizer, self.ids, layers=layer, positions=[-1])
            logits = trace(self.model, self.tokenizer, self.ids, attentions=False, hidden_states=False, positions=[-1])
        return run.attentions[0, head, 0].float(), logits.logits[0].float().softmax(-1)

    def change(self, temperature: Any) -> None:
        """Set another temperature. Raises `BadInputError` if it is not above 0."""
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature > 0:
            raise BadInputError(f"temperature is a number above 0, not {shown(temperature)}.")
        self.temperature = float(temperature)
        self.after = self._run(self.temperature)

    def keys(self) -> list[tuple[str, float, float]]:
        """`(label, before, after)` of the keys with the most attention, in the prompt's order."""
        before, after = self.before[0], self.after[0]
        best = torch.maximum(before, after).topk(min(MOST_ROWS, len(before))).indices.sort().values.tolist()
        return [(f"{self.tokens[key]} ({key})", float(before[key]), float(after[key])) for key in best]

    def candidates(self) -> list[tuple[str, float, float]]:
        """`(label, before, after)` of the next tokens, first those that are most probable without the change."""
        before, after = self.before[1], self.after[1]
        ids = [*before.topk(5).indices.tolist(), *after.topk(5).indices.tolist()]
        labels = {token: token_table(self.tokenizer, [token])[0].label for token in dict.fromkeys(ids)}
        return [(label, float(before[token]), float(after[token])) for token, label in labels.items()][:MOST_ROWS]

    def view(self) -> dict[str, Any]:
        """What the page draws."""
        return {
            "heads": ", ".join(f"{layer}.{head}" for layer, head in self.heads),
            "temperature": self.temperature,
            "limits": [COLDEST, HOTTEST],
            "parts": [
                {"name": name, "rows": [[*row, percent(row[1]), percent(row[2])] for row in rows]}
                for name, rows in ((self._title(), self.keys()), ("What comes next", self.candidates()))
            ],
        }

    def _title(self) -> str:
        layer, head = self.heads[0]
        return f"Where head {layer}.{head} looks from the last token"

    def figure(self) -> Axes:
        """The still picture."""
        from matplotlib import pyplot

        _, (first, second) = pyplot.subplots(1, 2, figsize=(9.6, 3.2), layout="constrained")
        self._bars(first, self.keys(), self._title())
        first.set_xlabel("attention weight")
        self._bars(second, self.candidates(), f"What comes next, at temperature {self.temperature:.3g}")
        second.legend(loc="lower right", fontsize=8)
        return first

    def _bars(self, ax: Axes, rows: Sequence[Any], title: str) -> None:
        places = range(len(rows))
        changed = f"at temperature {self.temperature:.3g}"
        for shift, column, color, name in ((-0.2, 1, "0.7", "as trained"), (0.2, 2, OKABE_ITO["blue"], changed)):
            values = [row[column] for row in rows]
            bars = ax.barh([place + shift for place in places], values, 0.38, color=color, label=name)
            ax.bar_label(bars, [percent(value) for value in values], padding=3, fontsize=7.5)
        ax.set_yticks(places, [drawable(row[0]) for row in rows])
        ax.invert_yaxis()
        ax.tick_params(axis="y", length=0)
        ax.margins(x=0.12)
        ax.set(xlabel="probability", title=title)

    def describe(self) -> str:
        """The still picture in words."""
        label, before, after = self.candidates()[0]
        heads = self.view()["heads"]
        return f"sharpen_heads {heads}, temperature {self.temperature:.3g}: {label} from {before:.3g} to {after:.3g}"


class SharpenWidget(CourseWidget):
    """The live page of `sharpen_heads`, drawn by `sharpen.js`."""

    _esm = front("sharpen.js")


def sharpen_heads(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Any,
    heads: Sequence[tuple[int, int]],
    *,
    temperature: float = 1.0,
) -> SharpenWidget:
    """A widget with a slider for the temperature of some heads' attention (`head_temperature`).

    Bars show where the first of `heads` (pairs (layer, head)) looks from the last token, and the next tokens,
    each before and after the change. Without a kernel the cell shows a still picture.

    Raises what `head_temperature` and `trace` raise, and `BadInputError` if `heads` is empty.

    >>> explorer = sharpen_heads(model, tokenizer, "The sky is", [(5, 0)], temperature=0.5)
    >>> explorer.state.heads
    [(5, 0)]
    """
    return SharpenWidget(SharpenedHeads(model, tokenizer, prompt, heads, temperature=temperature))
