"""The style of the course's figures: one palette, one set of colour maps, and fonts with Chinese characters.

Nothing changes on import: a notebook calls `use_course_style()` once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.checks import given_by

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito (2008), "Color Universal Design": colours that people with any colour vision can tell apart.
OKABE_ITO = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermillion": "#D55E00",
    "sky": "#56B4E9",
    "purple": "#CC79A7",
    "yellow": "#F0E442",
    "black": "#000000",
}
INK, MUTED, RULE = "#1f2328", "#59636e", "#d0d7de"
WEIGHTS_COLORMAP = "cividis"  # weights in [0, 1]: draw with vmin=0, vmax=1
VEIL_COLOR, VEIL = "#8c9299", 0.9  # the grey over a picture, and its opacity where the weight is 0
DIFFERENCES_COLORMAP = "RdBu_r"  # differences: draw with vmin=-limit, vmax=limit, so that 0 is white

CJK_FONTS = (
    "WenQuanYi Micro Hei",
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Microsoft YaHei",
    "SimHei",
)
MOST_DRAWN = 300  # the most characters of one text in a figure
WEIGHTS = (400, 700)  # normal and bold, the font weights that the course uses
FONT_PACKAGE = ("notojp_matplotlib", "fonts/NotoSansCJKjp-Regular.otf")

# Colours for HTML: JupyterLab's own if there is a JupyterLab, so that light and dark themes both work.
HTML_THEME = """\
--ink:var(--jp-content-font-color1,#1f2328);--muted:var(--jp-content-font-color2,#59636e);\
--paper:var(--jp-layout-color1,#fff);--shade:var(--jp-layout-color2,#f6f8fa);--rule:var(--jp-border-color2,#d0d7de);\
--accent:var(--jp-brand-color1,#0072b2);--sans:var(--jp-ui-font-family,system-ui,sans-serif);\
--mono:var(--jp-code-font-family,ui-monospace,monospace);\
--blue:#0072b2;--orange:#e69f00;--green:#009e73;--vermillion:#d55e00;--purple:#cc79a7;"""


def use_course_style(*, sharp: bool = False) -> None:
    """Set matplotlib's defaults for the course: an opaque light background, Okabe-Ito colours, a font with Chinese.

    Figures stay light in JupyterLab's dark theme too, so that a saved figure looks the same
    everywhere. With `sharp`, a notebook shows them as SVG, which is sharp on every screen, or as PNG
    with 200 dots per inch if they contain Chinese or many pictures.
    It changes `matplotlib.rcParams` of this process; `matplotlib.rcdefaults()` undoes that.

    >>> import matplotlib
    >>> use_course_style()
    >>> matplotlib.rcParams["axes.spines.top"]
    False
    """
    import matplotlib
    from cycler import cycler

    matplotlib.rcParams.update(
        {
            "font.family": [name for name in ("DejaVu Sans", cjk_font()) if name],
            "font.size": 9.5,
            "figure.figsize": (7.2, 3.4),
            "figure.dpi": 100,
            "savefig.dpi": 100,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.constrained_layout.use": True,
            "axes.facecolor": "white",
            "axes.edgecolor": RULE,
            "axes.labelcolor": MUTED,
            "axes.titlecolor": INK,
            "axes.titlelocation": "left",
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.titlepad": 9,
            "axes.labelsize": 9,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(color=[c for name, c in OKABE_ITO.items() if name != "yellow"]),
            "text.color": INK,
            "xtick.color": RULE,
            "ytick.color": RULE,
            "xtick.labelcolor": MUTED,
            "ytick.labelcolor": INK,
            "grid.color": "#e6eaee",
            "legend.frameon": False,
            "image.cmap": WEIGHTS_COLORMAP,
        }
    )
    if sharp:
        from helpers.views.svg import draw_as_svg

        matplotlib.rcParams["savefig.format"] = "svg"
        draw_as_svg()


def is_sharp() -> bool:
    """Whether `use_course_style(sharp=True)` is in force."""
    import matplotlib

    return matplotlib.rcParams["savefig.format"] == "svg"


@cache
def cjk_font() -> str:
    """The name of a font with Chinese characters that matplotlib can use: one of the system's, else the one that a
    dependency (`notojp-matplotlib`) contains. None if there is neither.

    Titles are bold, but many of these fonts have only one weight. That weight is then used for the others too.
    """
    from matplotlib.font_manager import fontManager

    known = {font.name for font in fontManager.ttflist}
    name = next((name for name in CJK_FONTS if name in known), None) or _dependency_font()
    if name is not None:
        _serve_all_weights(name)
    return name


def _dependency_font() -> str | None:
    """Make the font of `FONT_PACKAGE` known to matplotlib and return its name; None if it is not installed."""
    from matplotlib.font_manager import FontProperties, fontManager

    package = find_spec(FONT_PACKAGE[0])  # found without importing it: the import would set the font itself
    if package is None:
        return None
    file = Path(package.submodule_search_locations[0], FONT_PACKAGE[1])
    fontManager.addfont(str(file))
    return FontProperties(fname=str(file)).get_name()


def _serve_all_weights(name: str) -> None:
    """Register the nearest weight of this font for each of `WEIGHTS` that it lacks.

    matplotlib would draw the same glyphs anyway, but it would also log "Failed to find font weight bold" below the
    first figure of a notebook.
    """
    from matplotlib.font_manager import fontManager, weight_dict

    fonts = {weight_dict.get(font.weight, font.weight): font for font in fontManager.ttflist if font.name == name}
    for weight in WEIGHTS:
        nearest = min(fonts, key=lambda known: abs(known - weight))
        if nearest != weight:
            fontManager.ttflist.append(replace(fonts[nearest], weight=weight))


def png_bytes(figure: Figure, *, dpi: int = 100) -> bytes:
    """A figure as a small PNG (256 colours, half the usual bytes); the figure is closed."""
    from io import BytesIO

    from matplotlib import pyplot
    from PIL import Image

    drawn, small = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, facecolor="white")
    pyplot.close(figure)
    Image.open(drawn).convert("RGB").quantize(256).save(small, format="png", optimize=True)
    return small.getvalue()


def drawable(text: str) -> str:
    """`text` as matplotlib can draw it now: characters that its fonts lack (emoji, rare scripts, control characters)
    become their code point, such as `U+1F600`, and `$` stays a dollar sign instead of starting a formula. Line breaks
    stay. Every text from a caller, a model or a file goes through this function once before it is drawn. If it has
    more than `MOST_DRAWN` characters, the middle is left out.

    >>> drawable("$5 and \\x07")
    '\\\\$5 and U+0007'
    """
    import matplotlib

    families, text = tuple(matplotlib.rcParams["font.family"]), str(text)
    if len(text) > MOST_DRAWN:
        text = f"{text[: MOST_DRAWN // 2]} … {text[-MOST_DRAWN // 2 :]}"
    return "".join(c if c == "\n" or _has_glyph(c, families) else f"U+{ord(c):04X}" for c in text).replace("$", r"\$")


@cache
def _has_glyph(character: str, families: tuple[str, ...]) -> bool:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    # Each family is looked up separately: given a list, findfont returns only the first one.
    return any(get_font(findfont(FontProperties(family=[name]))).get_char_index(ord(character)) for name in families)


def veil(shown: Any) -> Any:
    """The opacity of the grey veil for a weight from 0 to 1 (relative to the largest): 0 for the largest weight."""
    return VEIL * (1 - shown)


def veil_colors(steps: int = 17) -> list[str]:
    """The veil's grey as CSS colours, from the weight 0 (nearly all of the picture hidden) to 1 (nothing hidden).

    >>> veil_colors(2)
    ['rgba(140,146,153,0.900)', 'rgba(140,146,153,0.000)']
    """
    grey = ",".join(str(int(VEIL_COLOR[at : at + 2], 16)) for at in (1, 3, 5))
    return [f"rgba({grey},{veil(step / (steps - 1)):.3f})" for step in range(steps)]


def veil_colormap() -> Any:
    """The veil's grey as a matplotlib colour map, in the same order and with the same opacity."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    return LinearSegmentedColormap.from_list("veil", [to_rgba(VEIL_COLOR, veil(weight)) for weight in (0, 1)])


def columns(text: str) -> int:
    """The width of a text in terminal columns: a Chinese character or an emoji takes two."""
    from wcwidth import wcswidth

    return max(wcswidth(text), 0)


def new_axes(ax: Axes | None, width: float, height: float) -> Axes:
    """`ax` if it is given, otherwise the Axes of a new figure of this size in inches."""
    if ax is not None:
        return given_by("matplotlib.pyplot.subplots", "ax", ax, "imshow", "barh")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def wrapped(text: str, width: int = 46) -> list[str]:
    """Lines of at most `width` columns; a Chinese character takes two."""
    lines, line, used = [], "", 0
    for character in " ".join(text.split()):
        wide = columns(character)
        if used + wide > width:
            head, space, tail = line.rpartition(" ")
            line, rest = (head, tail) if space and wide == 1 else (line, "")
            lines.append(line)
            line, used = rest, len(rest)
        line, used = line + character, used + wide
    return [*lines, line]


def colormap(count: int = 33, name: str = WEIGHTS_COLORMAP) -> list[str]:
    """A colour map (by default the course's for weights) as `count` CSS colours, from the lowest value up."""
    import numpy
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(color) for color in colormaps[name](numpy.linspace(0, 1, count))]
