"""Pictures as a committed notebook stores them: small, and in the colours in which they were drawn.

A chart or a drawing has few colours, and a PNG with a palette of them is smallest. The colours that fill areas
come into the palette first, however small an area is; its other colours are chosen for what is left, mostly the edges
of letters. A photograph has too many colours for that and becomes a JPEG.
"""

import base64
import io

import numpy
from PIL import Image

COLOURS = (
    16,
    24,
    32,
    48,
    64,
    96,
    128,
    192,
    256,
)  # of a palette; the first that does is taken
AREA = 60  # pixels with equal neighbours all around that make a colour one of an area
FAR, FEW = 32, 0.002  # of 255: by how much a pixel at an edge may be off, and which fraction of all pixels by more
NEAR = 4  # of 255: by how much a pixel in an area may be off
MANY = 5_000  # colours that only a photograph has
QUALITY = 70  # of a JPEG, of 100


def stored(png):
    """(MIME type, base64) of the smallest file in which a PNG, given as base64, looks the same."""
    raw = base64.b64decode(png)
    picture = Image.open(io.BytesIO(raw)).convert("RGB")
    files = [("image/png", raw), ("image/jpeg", _saved(picture, "JPEG", quality=QUALITY))]
    reduced = with_palette(picture)
    if reduced:
        files.append(("image/png", _saved(reduced, "PNG")))
    kind, smallest = min(files, key=lambda file: len(file[1]))
    return kind, base64.b64encode(smallest).decode()


def with_palette(picture):
    """The picture with the fewest of `COLOURS` with which it looks the same, or None for one that has too many."""
    pixels = numpy.asarray(picture)
    values = pixels.astype(int) @ (1 << 16, 1 << 8, 1)  # one number for each pixel's colour
    if len(numpy.unique(values)) > MANY:
        return None
    inside = _has_equal_neighbours(values)
    colours_inside, sizes = numpy.unique(values[inside], return_counts=True)
    areas = colours_inside[numpy.argsort(-sizes, kind="stable")][: (sizes >= AREA).sum()]  # the largest come first
    of_an_area = inside & numpy.isin(values, areas)
    for colours in COLOURS:
        exact = areas[: colours - colours // 4]
        rest = pixels[~numpy.isin(values, exact)]
        reduced = _painted(values, numpy.concatenate([_split(exact), _palette_of(rest, colours - len(exact))]))
        off = abs(numpy.asarray(reduced.convert("RGB")).astype(int) - pixels).max(-1)
        if (off > FAR).mean() < FEW and (off[of_an_area] <= NEAR).all():
            return reduced
    return None


def _has_equal_neighbours(values):
    """Whether all eight neighbours of a pixel have its colour: [row, column]; never at the picture's border."""
    equal = numpy.zeros(values.shape, dtype=bool)
    rows, columns = values.shape
    if min(rows, columns) > 2:
        middle = values[1:-1, 1:-1]
        places = [(row, column) for row in range(3) for column in range(3)]
        shifted = (values[row : rows - 2 + row, column : columns - 2 + column] for row, column in places)
        equal[1:-1, 1:-1] = numpy.all([each == middle for each in shifted], axis=0)
    return equal


def _palette_of(pixels, colours):
    """At most so many colours [colour, 3] that come close to the pixels [pixel, 3]."""
    if not len(pixels):
        return numpy.zeros((0, 3), dtype=int)
    reduced = Image.fromarray(pixels[None]).quantize(colours, kmeans=3, dither=Image.Dither.NONE)
    return numpy.array(reduced.getpalette("RGB")).reshape(-1, 3)[:colours]


def _painted(values, palette):
    """The picture in the nearest colours of a palette [colour, 3], counted as the eye does: green most, red least."""
    distinct, which = numpy.unique(values, return_inverse=True)
    far = ((_split(distinct)[:, None] - palette) ** 2 @ (2, 4, 3)).argmin(1)
    reduced = Image.fromarray(far[which].reshape(values.shape).astype(numpy.uint8), "P")
    reduced.putpalette(palette.astype(numpy.uint8).tobytes())
    return reduced


def _split(values):
    """Red, green and blue [colour, 3] of colours that are one number each."""
    return values[:, None] >> (16, 8, 0) & 255


def _saved(picture, kind, **settings):
    file = io.BytesIO()
    picture.save(file, kind, optimize=True, **settings)
    return file.getvalue()
