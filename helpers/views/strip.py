"""A model's blocks in one row, with the block that a section is about highlighted.

`Structure.here` makes it from the structure that `show_structure` found, for the top of a notebook's section. It is
written as SVG by hand: sharp at any size, and about two kilobytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from helpers.errors import BadInputError
from helpers.views.style import INK, MUTED, OKABE_ITO, RULE, columns

FONT, CHARACTER, PADDING, ARROW, BOX = 11, 6.3, 7, 12, 22  # pixels: size of the letters, width of one, …
TOP = 22  # room for the caption of the frame around the layers
ENDS = ("token ids", "logits")
ADD = "+"  # in a layer's order: where what was computed is added to the residual stream


@dataclass(frozen=True, repr=False)
class Strip:
    """Where you are in a model. `before`, `layer` and `after` are the names of its blocks in the order in which they
    run; `layer` holds those of one of the `repeats` equal layers. The names in `here` are highlighted, and `note` is
    written below them. Raises `BadInputError` for a name in `here` that the model does not have."""

    before: tuple[str, ...]
    layer: tuple[str, ...]
    after: tuple[str, ...]
    repeats: int
    here: tuple[str, ...]
    note: str = ""

    def __post_init__(self) -> None:
        known = (*self.before, *self.layer, *self.after)
        for name in self.here:
            if name not in known:
                choices = ", ".join(dict.fromkeys(name for name in known if name != ADD))
                raise BadInputError(f"There is no {name!r} in this model. What can be highlighted: {choices}.")

    def __repr__(self) -> str:
        before, layer, after = (
            [f"*{name}*" if name in self.here else name for name in names]
            for names in (self.before, self.layer, self.after)
        )
        inside = [f"[{' → '.join(layer)}] × {self.repeats}"] if layer else []
        return " → ".join([*before, *inside, *after]) + (f" ({self.note})" if self.note else "")

    def _repr_svg_(self) -> str:
        return _svg(self)


def _width(name: str) -> int:
    return 16 if name == ADD else 2 * PADDING + round(CHARACTER * columns(name))


def _svg(strip: Strip) -> str:
    """All boxes are one path, and so are all arrows, to keep it small: a notebook holds a dozen of these drawings."""
    plain, bright, arrows, words, x, noted = "", "", "", "", 2, 2
    names = [*strip.before, *strip.layer, *strip.after]
    first, last = len(strip.before), len(strip.before) + len(strip.layer) - 1
    for place, name in enumerate(names):
        if place == first and strip.layer:
            left, x = x, x + 6
        here, width = name in strip.here, _width(name)
        if name not in ENDS or here:
            box = f"M{x} {TOP}h{width}v{BOX}h-{width}z"
            plain, bright = (plain, bright + box) if here else (plain + box, bright)
        if here and bright.count("M") == 1:
            noted = x
        words += _text(x + width // 2, TOP + 15, name, f'fill="{INK}" font-weight="bold"' if here else "")
        x += width
        if place == last and strip.layer:
            x += 6
            plain += f"M{left} {TOP - 6}h{x - left}v{BOX + 12}h-{x - left}z"
            words += _text(left, TOP - 10, f"{strip.repeats} layers", 'text-anchor="start"')
        if place + 1 < len(names):
            arrows += f"M{x + 1} {TOP + BOX // 2}h9m-4-3l4 3l-4 3"
            x += ARROW
    height = TOP + BOX + (24 if strip.note else 8)
    if strip.note:
        at = max(2, min(noted, x - int(CHARACTER * columns(strip.note))))
        words += _text(at, height - 4, strip.note, f'fill="{INK}" text-anchor="start"')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{x + 2}" height="{height}" viewBox="0 0 {x + 2} {height}" '
        f'font-family="DejaVu Sans,Verdana,sans-serif" font-size="{FONT}" text-anchor="middle" fill="{MUTED}">'
        f"<title>You are here: {escape(', '.join(strip.here))}</title>"
        f'<path d="M0 0h{x + 2}v{height}h-{x + 2}z" fill="#fff"/><path d="{plain}" fill="none" stroke="{RULE}"/>'
        f'<path d="{bright}" fill="{OKABE_ITO["orange"]}" stroke="{INK}"/>'
        f'<path d="{arrows}" fill="none" stroke="{MUTED}"/>{words}</svg>'
    )


def _text(x: int, y: int, text: str, look: str = "") -> str:
    return f'<text x="{x}" y="{y}"{" " if look else ""}{look}>{escape(text)}</text>'
