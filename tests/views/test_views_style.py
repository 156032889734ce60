import subprocess
import sys
import warnings

import matplotlib
import pytest
from matplotlib import pyplot

from helpers.views import style
from helpers.views.style import cjk_font, drawable, use_course_style

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def _own_settings():
    with matplotlib.rc_context():
        yield
    pyplot.close("all")


@pytest.fixture
def _fresh_font():
    """The font is looked for once a process; a test that changes what there is starts over."""
    cjk_font.cache_clear()
    yield
    cjk_font.cache_clear()


def draw(text, tmp_path):
    figure, ax = pyplot.subplots()
    ax.set_title(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(tmp_path / "text.png")


def test_chinese_is_drawn_without_a_warning(tmp_path):
    use_course_style()
    draw("你好，世界 −1 ⏎ ·", tmp_path)


def test_without_the_style_chinese_would_warn(tmp_path):
    matplotlib.rcParams["font.family"] = ["DejaVu Sans"]
    with pytest.raises(UserWarning, match="missing from font"):
        draw("你好，世界", tmp_path)


@pytest.mark.usefixtures("_fresh_font")
def test_a_system_without_chinese_uses_the_font_of_the_dependency(tmp_path, monkeypatch):
    monkeypatch.setattr(style, "CJK_FONTS", ("No Such Font",))
    use_course_style()
    assert cjk_font() == "Noto Sans CJK JP"
    assert matplotlib.rcParams["font.family"] == ["DejaVu Sans", "Noto Sans CJK JP"]
    draw("你好，世界", tmp_path)


@pytest.mark.usefixtures("_fresh_font")
def test_no_chinese_font_at_all_shows_code_points(tmp_path, monkeypatch):
    monkeypatch.setattr(style, "CJK_FONTS", ())
    monkeypatch.setattr(style, "find_spec", lambda name: None)
    use_course_style()
    assert cjk_font() is None
    assert drawable("你") == "U+4F60"
    draw(drawable("你好"), tmp_path)


def test_figures_are_an_opaque_light_card(tmp_path):
    from PIL import Image

    use_course_style()
    pyplot.subplots()[0].savefig(tmp_path / "card.png")
    assert Image.open(tmp_path / "card.png").convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


def test_drawable_keeps_dollars_and_names_what_the_fonts_lack(tmp_path):
    use_course_style()
    assert drawable("你好 a") == "你好 a"
    assert drawable("\U0001f9d1") == "U+1F9D1"
    draw(drawable("$x_1$ and $ and \U0001f9d1 \u0378"), tmp_path)


def test_the_colour_maps_are_there_and_centred_white():
    assert matplotlib.colormaps[style.WEIGHTS_COLORMAP](0.0) != matplotlib.colormaps[style.WEIGHTS_COLORMAP](1.0)
    assert min(matplotlib.colormaps[style.DIFFERENCES_COLORMAP](0.5)[:3]) > 0.95


def test_importing_changes_nothing():
    code = "import sys, helpers.views.style, helpers.views.tokens; print('matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False"]


def test_a_small_picture_keeps_the_palette_apart():
    from io import BytesIO

    from PIL import Image

    use_course_style()
    ax = pyplot.subplots()[1]
    ax.bar(range(4), [1, 1, 1, 1], color=list(style.OKABE_ITO.values())[:4])
    ax.set_title("你好 " * 9)
    png = style.png_bytes(ax.figure)
    assert not pyplot.get_fignums()
    colors = {color for _, color in Image.open(BytesIO(png)).convert("RGB").getcolors(100_000)}
    assert {tuple(bytes.fromhex(c[1:])) for c in list(style.OKABE_ITO.values())[:4]} <= colors
