"""Figures about batches: how much is padding, how the batch size changes throughput, and predictions as a table."""

from __future__ import annotations

import contextlib
import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.checks import file_path, given_by, several, whole_number
from helpers.errors import BadInputError
from helpers.views.style import HTML_THEME, INK, MUTED, OKABE_ITO, RULE, drawable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from IPython.display import HTML
    from matplotlib.axes import Axes

COLUMNS = ("Input", "Output")
LONGEST_SHOWN = 300  # characters shown in a cell of the table


def plot_padding(
    lengths: Sequence[int],
    batch_size: int,
    *,
    titles: Sequence[str] = ("In the order of the file", "Sorted by length"),
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """Prompts as bars in their batches with the padding to their left, in the given order and sorted. Returns the Axes.

    `lengths`: the prompts' lengths in tokens; `axes`: two Axes, or None for new ones. Raises `BadInputError` when
    there is nothing to draw.

    >>> [ax.get_title().splitlines()[0] for ax in plot_padding([5, 1, 4, 2], 2)]
    ['In the order of the file: 33% padding', 'Sorted by length: 14% padding']
    """
    import matplotlib.pyplot as plt

    lengths = _whole_numbers("lengths", lengths)
    batch_size = whole_number("batch_size", batch_size)
    if not any(lengths) or batch_size < 1:
        raise BadInputError(f"There is nothing to draw: {len(lengths)} prompts in batches of {batch_size}.")
    if axes is None:
        _, axes = plt.subplots(1, 2, figsize=(8.6, 3.6), sharex=True, sharey=True)
    for ax, title, order in zip(axes, titles, (list(lengths), sorted(lengths, reverse=True)), strict=True):
        padded = _draw_batches(ax, order, batch_size)
        ax.set(
            title=f"{drawable(title)}: {padded / (padded + sum(order)):.0%} padding",
            xlabel="position, counted back from the last token",
        )
        ax.xaxis.set_major_formatter(lambda place, _: f"{abs(place):.0f}")
        ax.set_xlim(-max(lengths) * 1.01, 0)
        ax.set_ylim(len(order) + len(order) // batch_size, -1)
        ax.set_yticks([])
    axes[0].set_ylabel(f"prompts, in batches of {batch_size}")
    handles = [plt.Rectangle((0, 0), 1, 1, color=OKABE_ITO["blue"]), plt.Rectangle((0, 0), 1, 1, color=RULE)]
    axes[1].legend(handles, ["prompt", "padding"], loc="lower left", frameon=False)
    return axes


def _whole_numbers(name: str, values: Any) -> list[int]:
    return [whole_number(f"One of {name}", value, least=0) for value in several(name, values, "whole numbers")]


def _draw_batches(ax: Axes, order: Sequence[int], batch_size: int) -> int:
    """Draw one panel; returns how many positions are padding."""
    padded = 0
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        rows = [start + place + start // batch_size for place in range(len(batch))]  # an empty row between batches
        missing = [max(batch) - length for length in batch]
        ax.barh(rows, [-n for n in missing], left=[-length for length in batch], height=0.9, color=RULE)
        ax.barh(rows, [-length for length in batch], height=0.9, color=OKABE_ITO["blue"])
        padded += sum(missing)
    return padded


def plot_batch_sizes(measures: Sequence[Any], *, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Prompts per second, and peak memory beyond the weights in MB, by batch size. Returns the two Axes.

    `measures` are the `BatchMeasure`s that `measure_batch_sizes` returns. Raises `BadInputError` for anything else.

    The titles compare the last measure with the first. The dotted line shows the speed if a batch took as long as one
    prompt.

    >>> from helpers.batch.throughput import BatchMeasure
    >>> measures = [BatchMeasure(size, 2.0 * size, 10**8 * size, []) for size in (1, 2)]
    >>> [ax.get_xlabel() for ax in plot_batch_sizes(measures)]
    ['batch size', 'batch size']
    """
    import matplotlib.pyplot as plt

    if axes is None:
        _, axes = plt.subplots(1, 2, figsize=(8.2, 3.2))
    measures = several("measures", measures, "what measure_batch_sizes gives")
    for measure in measures:
        given_by("measure_batch_sizes", "A measure", measure, "prompts_per_second", "batch_size", "peak_bytes")
    if not measures:
        raise BadInputError("There is nothing to draw: measures is empty.")
    places = range(len(measures))
    first = measures[0].prompts_per_second / measures[0].batch_size
    speeds = [measure.prompts_per_second for measure in measures]
    memory = [measure.peak_bytes / 1e6 for measure in measures]
    axes[0].plot(places, speeds, "o-", color=OKABE_ITO["blue"])
    bound = [first * measure.batch_size for measure in measures]
    axes[0].plot(places, bound, ":", color=MUTED)
    axes[0].set_ylim(0, max(*speeds, *bound) * 1.08)
    axes[0].annotate(
        "if a batch took as\nlong as one prompt", (0.03, 0.97), xycoords="axes fraction", color=MUTED, va="top"
    )
    axes[1].bar(places, memory, width=0.6, color=OKABE_ITO["orange"])
    size, gain = measures[-1].batch_size, speeds[-1] / speeds[0]
    axes[0].set(title=f"A batch of {size} is {gain:.2g} times as fast", ylabel="prompts per second")
    axes[1].set(title=f"A batch of {size} needs {memory[-1]:.3g} MB beyond the weights", ylabel="peak, MB")
    for place, measure in enumerate(measures):
        label = f"×{measure.prompts_per_second / speeds[0]:.2g}"
        axes[0].annotate(
            label,
            (place, speeds[place]),
            (0, -14),
            textcoords="offset points",
            ha="center",
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85},
        )
    for ax in axes:
        ax.set_xticks(list(places), [str(measure.batch_size) for measure in measures])
        ax.set_xlabel("batch size")
    return axes


def plot_slots(answer_lengths: Sequence[int], slots: int, *, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Answers as bars over time, `slots` at once: in batches that wait for their longest answer, and in slots that are
    refilled. Returns the two Axes.

    Neighbouring batches are alternately dark and light. `answer_lengths`: tokens of each answer, in order. Raises
    `BadInputError` when there is nothing to draw.

    >>> len(plot_slots([3, 1, 2, 4], 2))
    2
    """
    import matplotlib.pyplot as plt

    if axes is None:
        _, axes = plt.subplots(1, 2, figsize=(8.6, 2.6), sharex=True, sharey=True)
    answer_lengths, slots = _whole_numbers("answer_lengths", answer_lengths), whole_number("slots", slots, least=1)
    if not answer_lengths:
        raise BadInputError("There is nothing to draw: answer_lengths is empty.")
    colours = [OKABE_ITO["blue"], OKABE_ITO["sky"]]
    static, refilled = _static_starts(answer_lengths, slots), _refilled_starts(answer_lengths, slots)
    panels = zip(axes, ("Batches wait", "Slots are refilled"), (static, refilled), (slots, None), strict=True)
    for ax, title, placed, batch in panels:
        for number, (slot, start) in enumerate(placed):
            length = answer_lengths[number]
            colour = colours[number // batch % 2] if batch else colours[0]
            ax.barh(slot, length, left=start, height=0.8, color=colour, edgecolor="white")
        end = max(start + length for (_, start), length in zip(placed, answer_lengths, strict=True))
        ax.axvline(end, color=OKABE_ITO["vermillion"], linewidth=1)
        ax.set(title=f"{title}: {end} steps", xlabel="step")
        ax.set_yticks(range(slots), [str(slot) for slot in range(slots)])
    axes[0].set_ylabel("slot")
    axes[0].invert_yaxis()
    return axes


def _static_starts(answer_lengths: Sequence[int], slots: int) -> list[tuple[int, int]]:
    """(slot, first step) of each answer when a batch waits for its longest answer."""
    begin, placed = 0, []
    for first in range(0, len(answer_lengths), slots):
        batch = answer_lengths[first : first + slots]
        placed += [(slot, begin) for slot in range(len(batch))]
        begin += max(batch)
    return placed


def _refilled_starts(answer_lengths: Sequence[int], slots: int) -> list[tuple[int, int]]:
    """(slot, first step) of each answer when the next one takes the slot that becomes free first."""
    free, placed = [0] * slots, []
    for length in answer_lengths:
        slot = free.index(min(free))
        placed.append((slot, free[slot]))
        free[slot] += length
    return placed


def show_predictions(predictions_file: str | Path, *, rows: int = 20) -> HTML:
    """The first `rows` predictions as a table: number, Input, Output, or why a prompt failed.

    `predictions_file` is the `.json` of a finished run; its `.jsonl` says why a prompt failed. Returns
    `IPython.display.HTML`. Raises `BadInputError` if there is no such file, or if it holds something else.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "answers.json")
    ...     _ = file.write_text('[{"Input": "Hi", "Output": "Hello"}]')
    ...     "Hello" in show_predictions(file).data
    True
    """
    from IPython.display import HTML

    path, rows = file_path("predictions_file", predictions_file), whole_number("rows", rows, least=1)
    if not path.is_file():
        raise BadInputError(f"There is no {path}: run_batch writes it when all prompts are done.")
    items = _predictions(path)
    errors = _errors(path.with_suffix(".jsonl"))
    body = "".join(_row(index, item, errors.get(index)) for index, item in enumerate(items[:rows]))
    more = f"<p>… and {len(items) - rows} more.</p>" if len(items) > rows else ""
    return HTML(
        f'<div style="{HTML_THEME}color:var(--ink);font-family:var(--sans)"><table style="border-collapse:collapse;'
        'text-align:left"><thead><tr><th></th><th style="text-align:left">Input</th><th style="text-align:left">Output'
        f"</th></tr></thead><tbody>{body}</tbody></table>{more}</div>"
    )


def _errors(jsonl: Path) -> dict[int, str]:
    """Prompt's index -> why it failed. Damaged lines are skipped here; `run_batch` sets them aside."""
    if not jsonl.is_file():
        return {}
    errors = {}
    for line in jsonl.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
            fields = json.loads(line)
            errors[fields["index"]] = fields["error"]
    return errors


def _predictions(path: Path) -> list[dict[str, Any]]:
    """What `run_batch` wrote. Raises `BadInputError` for a file of another kind."""
    try:
        items = json.loads(path.read_bytes().decode("utf-8"))
        if not isinstance(items, list) or not all(isinstance(item, dict) and {*COLUMNS} <= {*item} for item in items):
            raise ValueError("it is not a list of Input and Output")
    except (OSError, ValueError, RecursionError) as error:  # JSON and UTF-8 errors, too
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise BadInputError(f"{path} is not a file of predictions as run_batch writes it: {reason}.") from None
    return items


def _row(index: int, item: dict[str, Any], error: str | None) -> str:
    cell = "text-align:left;vertical-align:top;white-space:pre-wrap;overflow-wrap:anywhere;max-width:28em"
    output = _short(item["Output"])
    if item["Output"] is None:
        output = f"<em>failed:</em> {_short(error or '')}"
    return (
        f'<tr><td style="color:var(--muted);vertical-align:top">{index}</td><td style="{cell}">{_short(item["Input"])}'
        f'</td><td style="{cell}">{output}</td></tr>'
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    short = text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + " …"
    return html.escape(short.encode("utf-8", "backslashreplace").decode())  # half a character breaks a notebook's file
