"""Figures as small SVG: sharp on every screen, and for charts smaller than a PNG with 200 dots per inch.

Text stays text, so that a figure can be searched and read aloud. What matplotlib writes is then shortened by removing
comments, names that nothing refers to, and digits that make no visible difference.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARP_DPI = 200  # dots per inch
PHOTOGRAPH_DPI = 130
MOST_PICTURES = 12  # in an SVG: with more, pixels of the whole figure are smaller
PALETTE = 256  # colours that a PNG's palette holds; a photograph has more
FIRST_CJK = 0x2E80  # code points from here on are Chinese, Japanese or Korean, or rarer
TAG = re.compile(r"<[^>]+>")
LONG_NUMBER = re.compile(r"-?\d+\.\d{2,}")
PATH = re.compile(r' d="([^"]*)"')
AROUND_LETTER, LETTER = re.compile(r" ?([A-Za-z]) ?"), r"\1"
REFERENCE = re.compile(r"(?<=url\(#)[\w-]+|(?<=href=\"#)[\w-]+")
LEAF = re.compile(r"(<(?:path|use)\b[^>]*/>|<text\b[^>]*>[^<]*</text>)")
STYLE = re.compile(r'(?:style|clip-path)="[^"]*"')
IMAGE = re.compile(r"<image\b[^>]*>")
TRANSFORM = re.compile(r' transform="[^"]*"')
PIXELS = re.compile(r"(?<=data:image/png;base64,)[^\"]+")
FAMILY = re.compile(r"font-family:([^;\"]*);?")


def svg_text(figure: Figure) -> str:
    """A figure as SVG. The same figure always gives the same text: it has no date and no random names."""
    from io import StringIO

    import matplotlib

    drawn = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "course", "image.composite_image": False}):
        figure.savefig(drawn, format="svg", facecolor="white", bbox_inches="tight", metadata={"Date": None})
    text = drawn.getvalue()
    return _small_pictures(shorter(text[text.index("<svg") :]))


def shorter(svg: str) -> str:
    """The same drawing in fewer characters: numbers with one decimal, which is a tenth of a point.

    >>> shorter('<svg><!-- a --> <g><path id="p" d="M 1.2345 2.0011"/></g></svg>')
    '<svg><path d="M1.2 2"/></svg>'
    """
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r">\s+<", "><", svg).strip()
    svg = TAG.sub(lambda tag: _shorter_tag(tag[0]), svg)
    families = FAMILY.findall(svg)
    if families:
        svg = FAMILY.sub("", svg).replace("<svg", f'<svg style="font-family:{families[0]},sans-serif"', 1)
    return _styles_once(_without_bare_groups(_shorter_names(svg)))


def _small_pictures(svg: str) -> str:
    """Pictures within the drawing get a palette, and each is held once, however often it is drawn."""
    names: dict[str, str] = {}

    def placed(tag: re.Match[str]) -> str:
        found = TRANSFORM.search(tag[0])
        if found is None:
            return tag[0]
        where = LONG_NUMBER.sub(lambda number: f"{float(number[0]):.3f}", found[0])
        picture = tag[0].replace(found[0], "").replace("image-rendering:crisp-edges;", "")
        if picture in names:
            return f'<use xlink:href="#{names[picture]}"{where}/>'
        name = names[picture] = f"picture{len(names)}"
        small = PIXELS.sub(lambda pixels: _with_palette(pixels[0]), picture)
        return f'<g{where}><image id="{name}"{small.removeprefix("<image")}</g>'

    svg = IMAGE.sub(placed, svg)
    once = [name for name in names.values() if f'"#{name}"' not in svg]
    return re.sub(rf' id="({"|".join(once)})"', "", svg) if once else svg


def _with_palette(pixels: str) -> str:
    """A PNG, as base64, with a palette: the same pixels, if nothing shines through and the colours are few."""
    from base64 import b64decode, b64encode
    from io import BytesIO

    import numpy
    from PIL import Image

    picture = Image.open(BytesIO(b64decode(pixels))).convert("RGBA")
    colours, which = numpy.unique(numpy.asarray(picture).reshape(-1, 4), axis=0, return_inverse=True)
    if len(colours) > PALETTE or colours[:, 3].min() < 255:
        return pixels
    reduced = Image.fromarray(which.reshape(picture.size[::-1]).astype(numpy.uint8))
    reduced.putpalette(colours[:, :3].tobytes())
    file = BytesIO()
    reduced.save(file, "PNG", optimize=True)
    return min(pixels, b64encode(file.getvalue()).decode(), key=len)


def _shorter_names(svg: str) -> str:
    """Names (`id`) that something refers to become `n0`, `n1`, …; the others are removed."""
    used = {name: f"n{number}" for number, name in enumerate(dict.fromkeys(REFERENCE.findall(svg)))}
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{used[found[1]]}"' if found[1] in used else "", svg)
    return REFERENCE.sub(lambda found: used[found[0]], svg)


def _shorter_tag(tag: str) -> str:
    if tag.startswith("<image"):
        return tag
    tag = LONG_NUMBER.sub(lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), tag)
    tag = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", re.sub(r"\s+", " ", tag))
    tag = PATH.sub(lambda path: f' d="{AROUND_LETTER.sub(LETTER, path[1])}"', tag)
    return re.sub(r"([:;]) ", r"\1", tag)


def _without_bare_groups(svg: str) -> str:
    """Remove groups without attributes, which only nest the drawing; empty ones draw nothing."""
    svg = svg.replace("<g/>", "")
    kept: list[bool] = []

    def unwrapped(tag: re.Match[str]) -> str:
        if tag[0].startswith("</g"):
            return tag[0] if kept.pop() else ""
        if re.match(r"<g[ >]", tag[0]) and not tag[0].endswith("/>"):
            kept.append(tag[0] != "<g>")
            return tag[0] if kept[-1] else ""
        return tag[0]

    return TAG.sub(unwrapped, svg)


def _styles_once(svg: str) -> str:
    """Combine neighbours with the same style into a group that has the style."""
    pieces = LEAF.split(svg)  # what is between the leaves, and the leaves: every second one
    shown, run, look = [pieces[0]], [], ""
    for leaf, between in zip(pieces[1::2], pieces[2::2], strict=True):
        style = " ".join(STYLE.findall(leaf.partition(">")[0]))
        if run and style != look:
            shown.append(_group(run, look))
            run = []
        look = style
        run.append(leaf)
        if between:
            shown += [_group(run, look), between]
            run = []
    return "".join([*shown, _group(run, look)])


def _group(leaves: list[str], style: str) -> str:
    if len(leaves) < 2 or not style:
        return "".join(leaves)
    bare = (re.sub(r" +(?=[ />])", "", STYLE.sub("", tag)) + rest for tag, rest in map(_tag_and_rest, leaves))
    return f"<g {style}>{''.join(bare)}</g>"


def _tag_and_rest(leaf: str) -> tuple[str, str]:
    end = leaf.index(">") + 1
    return leaf[:end], leaf[end:]


def needs_pixels(figure: Figure) -> bool:
    """Whether a figure is shown as PNG: it contains Chinese, for which not every machine has a font, a photograph, or
    more pictures than `MOST_PICTURES`."""
    from matplotlib.text import Text

    if any(ord(character) >= FIRST_CJK for text in figure.findobj(Text) for character in text.get_text()):
        return True
    return len(_pictures(figure)) > MOST_PICTURES or _has_photograph(figure)


def _pictures(figure: Figure) -> list[Any]:
    """The pictures in a figure, each [row, column, channel]; a heat map is none."""
    from matplotlib.image import AxesImage

    return [image.get_array() for image in figure.findobj(AxesImage) if image.get_array().ndim == 3]


def _has_photograph(figure: Figure) -> bool:
    """Whether one of the pictures has more colours than a palette holds."""
    import numpy

    pixels = (picture.reshape(-1, picture.shape[-1]) for picture in _pictures(figure))
    return any(len(numpy.unique(each, axis=0)) > PALETTE for each in pixels)


def sharp_png(figure: Figure) -> tuple[bytes, dict[str, int]]:
    """A figure as PNG with 200 dots per inch (130 if a photograph is in it, where more would hardly show), and the
    width and height in pixels at which a page shows it."""
    from io import BytesIO

    drawn = BytesIO()
    dpi = PHOTOGRAPH_DPI if _has_photograph(figure) else SHARP_DPI
    figure.savefig(drawn, format="png", dpi=dpi, facecolor="white", bbox_inches="tight")
    return drawn.getvalue(), shown_size(drawn.getvalue(), dpi)


def shown_size(png: bytes, dpi: int = SHARP_DPI) -> dict[str, int]:
    """The width and height in pixels at which a page shows a PNG with so many dots per inch: 100 of them to an inch."""
    from io import BytesIO

    from PIL import Image

    width, height = Image.open(BytesIO(png)).size
    return {"width": width * 100 // dpi, "height": height * 100 // dpi}


def draw_as_svg() -> None:
    """From now on, a notebook in this process shows matplotlib's figures as SVG, or as PNG if they contain
    Chinese, a photograph or many pictures; outside a notebook nothing happens."""
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        return
    from matplotlib.figure import Figure
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats()
    formatters = shell.display_formatter.formatters
    formatters["image/svg+xml"].for_type(Figure, lambda figure: None if needs_pixels(figure) else svg_text(figure))
    formatters["image/png"].for_type(Figure, lambda figure: sharp_png(figure) if needs_pixels(figure) else None)
