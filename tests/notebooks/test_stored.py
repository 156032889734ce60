"""Pictures keep their colours when a notebook stores them."""

import base64
import io
from random import Random

import numpy
import pytest
from PIL import Image, ImageDraw, ImageFilter

from stored import FAR, FEW, NEAR, QUALITY, stored

YELLOW, CAPTION = (242, 213, 15), (40, 44, 52)


def _as_png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _read(kind, data):
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.format == {"image/png": "PNG", "image/jpeg": "JPEG"}[kind]
    return picture.convert("RGB")


def _gallery():
    """Orange, red and brown shapes with smooth edges, many shades of them, and one small yellow triangle."""
    picture = Image.new("RGB", (900, 700), "white")
    pen = ImageDraw.Draw(picture)
    for number in range(56):
        x, y = 100 * (number % 8) + 10, 100 * (number // 8) + 10
        pen.ellipse((x, y, x + 80, y + 80), fill=(245 - number, 139 - number, 20))
    picture = picture.filter(ImageFilter.GaussianBlur(1))
    pen = ImageDraw.Draw(picture)
    pen.polygon([(830, 690), (850, 650), (870, 690)], fill=YELLOW)
    pen.text((720, 670), "a yellow triangle", fill=CAPTION)
    return picture


def _photograph():
    """Soft noise in all colours."""
    dice = Random(0)
    noise = Image.frombytes("RGB", (160, 120), dice.randbytes(160 * 120 * 3))
    return noise.resize((640, 480), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(4))


def test_a_small_yellow_shape_stays_yellow():
    picture = _gallery()
    kind, data = stored(_as_png(picture))
    again = _read(kind, data)
    assert kind == "image/png"
    off = abs(numpy.asarray(again).astype(int) - numpy.asarray(picture)).max(-1)
    assert picture.getpixel((850, 680)) == YELLOW
    assert off[655:690, 848:852].max() <= NEAR, "The small triangle."
    assert off[45:55, 55:65].max() <= NEAR, "A large ellipse."
    assert (off > FAR).mean() < FEW, "Edges and letters look the same."
    assert len(data) < 0.6 * len(_as_png(picture))


def test_the_usual_palette_would_have_changed_it():
    """What the test above is for: the most frequent colours win, and the small shape takes its neighbour's."""
    reduced = _gallery().quantize(32, dither=Image.Dither.NONE).convert("RGB")
    assert max(abs(a - b) for a, b in zip(reduced.getpixel((850, 680)), YELLOW, strict=True)) > 2 * NEAR


def test_a_photograph_becomes_a_jpeg():
    picture = _photograph()
    kind, data = stored(_as_png(picture))
    assert kind == "image/jpeg" and len(data) < 0.3 * len(_as_png(picture)), QUALITY
    off = abs(numpy.asarray(_read(kind, data)).astype(int) - numpy.asarray(picture))
    assert off.mean() < 4


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (40, 30)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_any_png_can_be_stored(size, mode):
    kind, data = stored(_as_png(Image.new("RGB", size, YELLOW).convert(mode)))
    assert _read(kind, data).size == size
