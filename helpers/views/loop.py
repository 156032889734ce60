"""The generation loop as a drawing, with the stage that a section is about highlighted.

The drawing is an SVG of a few kilobytes, so that a notebook can repeat it at the top of each section.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from itertools import pairwise

from helpers.checks import shown
from helpers.errors import BadInputError
from helpers.views.style import INK, MUTED, OKABE_ITO, RULE

WIDTH, HEIGHT = 780, 184
FONT = "system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif"
HIGHLIGHT, TINT = OKABE_ITO["vermillion"], "#fdebdc"


@dataclass(frozen=True)
class _Box:
    """A stage: what it does in a few words, and the position and width of its box in pixels."""

    does: str
    left: int
    top: int
    width: int


ABOVE, BELOW = 34, 108
BOX_HEIGHT = 38
STAGES = {
    "generate": _Box("settings, mode", 8, ABOVE, 96),
    "set-up": _Box("bookkeeping", 122, ABOVE, 96),
    "prefill": _Box("whole prompt", 236, ABOVE, 104),
    "logits": _Box("of the last position", 376, ABOVE, 122),
    "processors": _Box("change the scores", 516, ABOVE, 116),
    "choice": _Box("one token", 650, ABOVE, 114),
    "append": _Box("ids grow by 1", 680, BELOW, 90),
    "finished?": _Box("stopping criteria", 556, BELOW, 106),
    "inputs": _Box("the new token", 430, BELOW, 100),
    "forward": _Box("the model", 314, BELOW, 96),
    "return": _Box("ids", 8, BELOW, 96),
}
LOOP = ("logits", "processors", "choice", "append", "finished?", "inputs", "forward")


@dataclass(frozen=True, repr=False)
class LoopView:
    """The loop with `stages` highlighted; a notebook shows it as a drawing, a terminal as text."""

    stages: tuple[str, ...]

    def __repr__(self) -> str:
        def shown(stage: str) -> str:
            return f"[{stage}]" if stage in self.stages else stage

        before, loop = ("generate", "set-up", "prefill"), LOOP
        return (
            f"{' → '.join(map(shown, before))} → once per token: {' → '.join(map(shown, loop))} → … "
            f"until finished → {shown('return')}"
        )

    def _repr_svg_(self) -> str:
        return "".join([_head(self), _frame(), *_arrows(), *(_box(stage, self.stages) for stage in STAGES), "</svg>"])


def show_loop(*stages: str) -> LoopView:
    """The generation loop as a drawing, with `stages` highlighted, if any are given.

    The stages are "generate", "set-up" and "prefill", which run once; "logits", "processors", "choice", "append",
    "finished?", "inputs" and "forward", which run once per token; and "return". Their order is that of
    `GenerationMixin._sample` in `transformers`, where the prefill takes the place of the first inputs and forward.

    Raises `BadInputError` for a stage that is not one of these.

    >>> show_loop("choice")
    generate → set-up → prefill → once per token: logits → processors → [choice] → append → finished? → inputs → forward → … until finished → return
    """  # noqa: E501
    for stage in stages:
        if stage not in STAGES:
            raise BadInputError(f"The loop has no stage {shown(stage)}: give some of {', '.join(STAGES)}.")
    return LoopView(stages)


def _head(view: LoopView) -> str:
    title = "The generation loop" + (f"; highlighted: {', '.join(view.stages)}" if view.stages else "")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" font-family="{FONT}"><title>{escape(title)}</title>'
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0L8,4L0,8z" fill="{MUTED}"/></marker></defs>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#fff"/>'
    )


def _frame() -> str:
    """The dashed frame around what runs once per token."""
    path = f"M358,12H{WIDTH - 4}V{BELOW + BOX_HEIGHT + 12}H300V{ABOVE + 56}H358z"
    return (
        f'<path d="{path}" fill="none" stroke="{RULE}" stroke-width="1.5" stroke-dasharray="5 4"/>'
        f'<text x="368" y="27" font-size="12" fill="{MUTED}">once per token</text>'
    )


def _arrows() -> list[str]:
    """The arrows: to the right in the upper row, to the left in the lower one, and around the loop's two ends."""
    middle_above, middle_below = ABOVE + BOX_HEIGHT // 2, BELOW + BOX_HEIGHT // 2
    above = ("generate", "set-up", "prefill", "logits", "processors", "choice")
    below = ("append", "finished?", "inputs", "forward")
    drawn = []
    for one, other in pairwise(above):
        start = STAGES[one].left + STAGES[one].width
        drawn.append(_arrow(f"M{start},{middle_above}H{STAGES[other].left - 1}"))
    for one, other in pairwise(below):
        end = STAGES[other].left + STAGES[other].width + 1
        drawn.append(_arrow(f"M{STAGES[one].left},{middle_below}H{end}"))
    drawn.append(_arrow(f"M724,{ABOVE + BOX_HEIGHT}V{BELOW - 1}"))
    drawn.append(_arrow(f"M392,{BELOW}V{ABOVE + BOX_HEIGHT + 1}"))
    drawn.append(_arrow(f"M609,{BELOW + BOX_HEIGHT}V{HEIGHT - 10}H56V{BELOW + BOX_HEIGHT + 1}"))
    drawn.append(f'<text x="582" y="{HEIGHT - 15}" font-size="11.5" fill="{MUTED}">yes</text>')
    drawn.append(f'<text x="537" y="{middle_below - 6}" font-size="11.5" fill="{MUTED}">no</text>')
    return drawn


def _arrow(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="{MUTED}" stroke-width="1.4" marker-end="url(#tip)"/>'


def _box(stage: str, highlighted: tuple[str, ...]) -> str:
    box, here = STAGES[stage], stage in highlighted
    fill, edge, width = (TINT, HIGHLIGHT, 2.4) if here else ("#fff", MUTED, 1.2)
    x = box.left + box.width / 2
    return (
        f'<rect x="{box.left}" y="{box.top}" width="{box.width}" height="{BOX_HEIGHT}" rx="5" fill="{fill}" '
        f'stroke="{edge}" stroke-width="{width}"/>'
        f'<text x="{x:g}" y="{box.top + 16}" font-size="13" font-weight="600" text-anchor="middle" fill="{INK}">'
        f"{stage}</text>"
        f'<text x="{x:g}" y="{box.top + 31}" font-size="11.5" text-anchor="middle" fill="{MUTED}">{box.does}</text>'
    )
