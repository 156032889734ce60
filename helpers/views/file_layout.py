"""The layout of a safetensors file as a drawing: length, header, tensors, and where in memory they are mapped.

The drawing is an SVG of a few kilobytes, made from the header that was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from helpers.checks import named, several
from helpers.errors import BadInputError
from helpers.views.style import INK, MUTED, OKABE_ITO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDTH, LEFT, RIGHT = 780, 314, 772  # pixels of the drawing; the tensors' bytes are drawn between LEFT and RIGHT
BAR, BAR_HEIGHT, ROW = 34, 44, 36
FONT = "system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif"
COLORS = (OKABE_ITO["blue"], OKABE_ITO["vermillion"], OKABE_ITO["green"], OKABE_ITO["purple"])


@dataclass(frozen=True)
class Placed:
    """A tensor of the file: its name, dtype and shape, and its bytes from `begin` to `end`, where 0 is the first byte
    after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, repr=False)
class FileLayout:
    """A file's layout; a notebook shows it as a drawing, a terminal as text.

    `header_bytes` is the length of the header, `data_bytes` that of all tensors; `tensors` are those that are marked.
    """

    header_bytes: int
    data_bytes: int
    tensors: tuple[Placed, ...]
    mapped: bool

    def __repr__(self) -> str:
        parts = ("8 bytes: the header's length", f"{self.header_bytes:,} bytes: the header")
        lines = [" | ".join([*parts, f"{self.data_bytes:,} bytes: numbers"])]
        lines += [f"{t.name}: {t.dtype} {list(t.shape)}, bytes {t.begin:,} to {t.end:,}" for t in self.tensors]
        return "\n".join([*lines, *(["mapped: the same offsets from one address in memory"] if self.mapped else [])])

    def _repr_svg_(self) -> str:
        return "".join([*_file(self), *(_pointer(self, row) for row in range(len(self.tensors))), "</svg>"])


def show_file_layout(
    header: Mapping[str, Any], header_bytes: int, names: Sequence[str], *, mapped: bool = False
) -> FileLayout:
    """The layout of a safetensors file, with the positions of the tensors `names` marked.

    `header` is the file's header, a dict name -> dtype, shape and data_offsets, and `header_bytes` its length. With
    `mapped`, the memory that the file is mapped to is drawn below it, with the same offsets.

    Raises `BadInputError` for a name that the header does not have, and for more than four names.

    >>> header = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    >>> show_file_layout(header, 64, ["w"])
    8 bytes: the header's length | 64 bytes: the header | 24 bytes: numbers
    w: F32 [2, 3], bytes 0 to 24
    """
    named("header", header, "descriptions of tensors")
    names = several("names", names, "names of tensors")
    missing = [name for name in names if name not in header]
    if missing:
        raise BadInputError(
            f"The header has no tensor {missing[0]!r}; it has, for example, {next(iter(header), None)!r}."
        )
    if not 0 < len(names) <= len(COLORS):
        raise BadInputError(f"The drawing can mark one to {len(COLORS)} tensors; these are {len(names)}.")
    tensors = tuple(
        Placed(name, header[name]["dtype"], tuple(header[name]["shape"]), *header[name]["data_offsets"])
        for name in names
    )
    size = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    return FileLayout(header_bytes, size, tensors, mapped)


def _bottom(view: FileLayout) -> int:
    """The y coordinate where the rows of names end and the memory's bar begins."""
    return BAR + BAR_HEIGHT + 12 + ROW * len(view.tensors)


def _file(view: FileLayout) -> list[str]:
    """The background, the file's bar in three parts, and the memory's bar."""
    height = _bottom(view) + (22 + BAR_HEIGHT + 8 if view.mapped else 0)
    total = 8 + view.header_bytes + view.data_bytes
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="{FONT}"><title>Layout of a safetensors file</title>'
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#fff"/>',
        _text(8, 22, f"the file, {total:,} bytes", size=12),
        _text(LEFT, 22, f"{view.data_bytes:,} bytes of numbers, tensor after tensor (to scale)", size=12),
        _part(8, 128, BAR, "8 bytes", "the header’s length"),
        _part(136, LEFT - 136, BAR, f"{view.header_bytes:,} bytes", "the header, JSON text"),
        _part(LEFT, RIGHT - LEFT, BAR, "", ""),
    ]
    if view.mapped:
        top = _bottom(view) + 22
        drawn += [
            _text(8, top + 18, "memory of the process: the same bytes,", size=12),
            _text(8, top + 34, "each page read when it is first used", size=12),
            _part(LEFT, RIGHT - LEFT, top, "", ""),
        ]
    return drawn


def _pointer(view: FileLayout, row: int) -> str:
    """One tensor: its section of the bar, the line down, and what the header says about it."""
    tensor, color = view.tensors[row], COLORS[row]
    scale = (RIGHT - LEFT) / view.data_bytes
    x, width = LEFT + tensor.begin * scale, max(2.5, (tensor.end - tensor.begin) * scale)
    x = min(x, RIGHT - width)
    y, middle = BAR + BAR_HEIGHT + 14 + ROW * row, x + width / 2
    bars = [BAR] + ([_bottom(view) + 22] if view.mapped else [])
    pieces = [
        f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{BAR_HEIGHT}" fill="{color}" fill-opacity=".35" '
        f'stroke="{color}"/>'
        for top in bars
    ]
    end = bars[-1] if view.mapped else y + 18
    pieces.append(
        f'<path d="M{middle:.1f},{BAR + BAR_HEIGHT}V{end}" stroke="{color}" stroke-width="1.3" stroke-dasharray="4 3" '
        'fill="none"/>'
    )
    at = LEFT - 12
    pieces.append(f'<path d="M{at + 4},{y + 10}H{middle:.1f}" stroke="{color}" stroke-width="1.3" fill="none"/>')
    pieces.append(_text(at, y + 8, tensor.name, size=11.5, anchor="end", color=INK, bold=True))
    where = f"{tensor.dtype} {list(tensor.shape)}, bytes {tensor.begin:,} to {tensor.end:,}"
    pieces.append(_text(at, y + 22, where, size=11, anchor="end"))
    return "".join(pieces)


def _part(x: int, width: int, top: int, above: str, below: str) -> str:
    middle = x + width / 2
    return (
        f'<rect x="{x}" y="{top}" width="{width}" height="{BAR_HEIGHT}" fill="#f6f8fa" stroke="{MUTED}"/>'
        + (_text(middle, top + 18, above, size=12, anchor="middle", color=INK, bold=True) if above else "")
        + (_text(middle, top + 34, below, size=11, anchor="middle") if below else "")
    )


def _text(
    x: float, y: float, text: str, *, size: float, anchor: str = "start", color: str = MUTED, bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}" fill="{color}"{weight}>'
        f"{escape(text)}</text>"
    )
