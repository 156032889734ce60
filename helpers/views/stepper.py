"""An interactive view of generation, one step at a time."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from helpers import checks
from helpers.errors import BadInputError
from helpers.inside.generation import check_settings, generate_steps
from helpers.text.prompts import prompt_ids
from helpers.text.tokens import token_table, visible
from helpers.views.plots import plot_next_token, plot_processors
from helpers.views.sampling import SETTINGS, candidate_rows, sliders, stage_names
from helpers.views.style import drawable
from helpers.views.widget import CourseWidget, StepByStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_CHIPS = 80  # tokens shown: for a longer text, the last ones


class Stepper(StepByStep):
    """A generation that can go forward, back, or take another path; `generation_stepper` draws it.

    `steps` are the `GenerationStep`s so far and `index` the one shown. The reader can choose a step's
    token: then everything before it stays and the model continues from there. Whatever was chosen, the
    steps equal `generate_steps(…, forced_ids=the tokens so far)`.
    """

    commands: tuple[str, ...] = (*StepByStep.commands, "choose", "write", "change", "draw_again")

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Any,
        *,
        top: int = 10,
        max_new_tokens: int = 40,
        seed: int = 0,
        **generation: Any,
    ) -> None:
        self.model, self.tokenizer, self.top = model, tokenizer, top
        self.prompt_ids = prompt_ids(tokenizer, prompt)
        self.inputs: dict[str, Any] = {"max_new_tokens": max_new_tokens}
        self.settings: dict[str, Any] = {"do_sample": False, **{name: values[3] for name, values in SETTINGS.items()}}
        for name, value in generation.items():
            (self.settings if name in self.settings else self.inputs)[name] = value
        self.seed = seed
        self._check_settings()
        self.by_reader = set()
        self.index = 0
        self._run([])

    @property
    def token_ids(self) -> list[int]:
        """The ids chosen before the step that is shown."""
        return [step.token_id for step in self.steps[: self.index]]

    def _make_step(self) -> None:
        self.steps.append(next(self._iterator))

    def choose(self, token_id: int) -> None:
        """Take another token in this step, and continue from there."""
        self._choose([token_id])

    def write(self, text: str) -> None:
        """Take the tokens of a text, as it is typed, in this step and the next ones, and continue from there."""
        ids = self.tokenizer(checks.text("text", text), add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        if not ids:
            raise BadInputError("There is nothing typed: write what the model should have said.")
        self._choose(ids)

    def change(self, /, **settings: float) -> None:
        """Change settings (temperature, …): the tokens before this step stay, and this one is chosen again."""
        before = self.settings
        unknown = [name for name in settings if name not in before]
        if unknown:
            raise BadInputError(f"There is no setting {checks.shown(unknown[0])} here; there are: {', '.join(before)}.")
        self.settings = {**before, **settings}
        try:
            self._check_settings()
            self._run(self.token_ids)
        except Exception:
            self.settings = before
            raise

    def _check_settings(self) -> None:
        """Check all settings, even those of sampling while it is off, since the sliders show them. Raises
        `BadInputError` for one that cannot work."""
        check_settings(**{**self.settings, "do_sample": True}, max_new_tokens=1, seed=None)

    def draw_again(self) -> None:
        """Sample this step and the next ones with another seed."""
        self.seed += 1
        self._run(self.token_ids)

    def _choose(self, ids: Sequence[int]) -> None:
        first = self.index
        self._run([*self.token_ids, *ids])
        self.by_reader |= set(range(first, first + len(ids)))
        self.index = min(first + len(ids), len(self.steps) - 1)

    def _run(self, forced_ids: Sequence[int]) -> None:
        """Run again with these tokens forced, up to the step after them."""
        sampled = ("temperature", "top_k", "top_p")
        settings = {n: v for n, v in self.settings.items() if self.settings["do_sample"] or n not in sampled}
        iterator = generate_steps(
            self.model,
            self.tokenizer,
            self.prompt_ids,
            **self.inputs,
            **settings,
            seed=self.seed,
            forced_ids=forced_ids,
        )
        steps = list(islice(iterator, len(forced_ids) + 1))
        self._iterator, self.steps = iterator, steps
        self.by_reader = {index for index in self.by_reader if index < len(forced_ids)}

    def view(self) -> dict[str, Any]:
        """What the page draws."""
        step = self.step
        return {
            "kind": "stepper",
            "chips": self._chips(),
            "text": self._text(),
            "inputs": self._what_went_in(),
            "candidates": candidate_rows(step, self.tokenizer, self.top, before=self._ids_before()),
            "stages": stage_names(step),
            "sliders": sliders(self.settings, SETTINGS),
            "sampling": self.settings["do_sample"],
            "index": self.index,
            "last": len(self.steps) - 1,
            "forward": self.can_go_forward,
            "token": step.token,
            "stopped": {None: "", "end_of_turn": "the end-of-turn token", "max_new_tokens": "max_new_tokens"}[
                step.stopped_by
            ],
        }

    def _ids_before(self) -> list[int]:
        """Prompt and answer, up to the token being chosen."""
        return self.prompt_ids[0].tolist() + self.token_ids

    def _answer(self) -> list[int]:
        """The tokens of the answer so far: those before this step, and this step's own if generation stops here."""
        return self.token_ids + [self.step.token_id] * bool(self.step.stopped_by)

    def _chips(self) -> list[dict[str, Any]]:
        """The last tokens of prompt and answer, with who chose each and the step that made it."""
        rows = token_table(self.tokenizer, self.prompt_ids[0].tolist() + self._answer())
        start = self.prompt_ids.shape[1]
        return [
            {
                "label": row.label,
                "id": row.token_id,
                "special": row.special,
                "step": row.position - start,
                "by": "prompt"
                if row.position < start
                else "you"
                if row.position - start in self.by_reader
                else "model",
            }
            for row in rows[-MOST_CHIPS:]
        ]

    def _text(self) -> str:
        """The answer so far, decoded; a character that is not complete yet shows as `…`."""
        return self.tokenizer.decode(self._answer(), skip_special_tokens=True).replace("\ufffd", "…")

    def _what_went_in(self) -> list[list[Any]]:
        """Name, shape and content of what the model was given in this step."""
        step = self.step
        query = step.input_ids.shape[1]
        labels = [row.label for row in token_table(self.tokenizer, self._ids_before())[-query:]]
        positions = [] if step.position_ids is None else step.position_ids.reshape(-1).tolist()
        mask = step.attention_mask
        return [
            ["input_ids", str(list(step.input_ids.shape)), _ends(labels)],
            ["position_ids", str(list(step.input_ids.shape)), _ends(positions)],
            ["attention_mask", str(list(mask.shape)), f"{int(mask.sum())} ones, {int((mask == 0).sum())} zeros"],
            ["KV cache", f"{step.kv_length} positions", f"{step.kv_length - query} before, {query} new"],
        ]

    def figure(self) -> Axes:
        """The still picture: this step's candidates before and after each processor."""
        if self.step.processed:
            ax = plot_processors(self.step, self.tokenizer, top=self.top)
        else:
            ax = plot_next_token(self.step, self.tokenizer, top=self.top)
        text = visible(self.tokenizer.decode(self._ids_before()).replace("\ufffd", "…"))
        ax.set_title(drawable(f"Step {self.index}:  {'…' * (len(text) > 40)}{text[-40:]} ▸ ?"))
        return ax

    def describe(self) -> str:
        """The still picture in words."""
        rows = candidate_rows(self.step, self.tokenizer, self.top, before=self._ids_before())
        rows.sort(key=lambda row: -(row["final"] or 0))
        best = ", ".join(f"{row['label']} {row['finalText']}" for row in rows[:3])
        return f"generation_stepper at step {self.index}: takes {self.step.token}; most probable: {best}"


def _ends(values: Sequence[Any]) -> str:
    """Values in one line; of more than 12, only the first and the last three."""
    values = [str(value) for value in values]
    return " ".join(values if len(values) <= 12 else [*values[:3], "…", *values[-3:]])


def generation_stepper(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Any,
    *,
    top: int = 10,
    max_new_tokens: int = 40,
    seed: int = 0,
    **generation: Any,
) -> CourseWidget:
    """A widget that generates one token at a time: forward, back, or along another path that you choose.

    It shows what went into the model and the `top` candidates, raw and after the processors. You can take
    any of them, or type your own text, in place of the model's choice. `generation` are the initial settings
    of `generate_steps` (`do_sample`, `temperature`, …) and further model inputs; sliders change the settings.
    With `do_sample=True`, `seed` makes it repeatable. Without a kernel the cell shows a still picture of the
    first step. `prompt` is a text, a `RenderedChat` or ids.

    Raises what `generate_steps` raises.

    >>> stepper = generation_stepper(model, tokenizer, "The capital of France is", max_new_tokens=3)
    >>> stepper.state.step.token
    '·Paris'
    """
    return CourseWidget(
        Stepper(model, tokenizer, prompt, top=top, max_new_tokens=max_new_tokens, seed=seed, **generation)
    )
