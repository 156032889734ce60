"""Pictures for models that see: which places of the prompt are theirs, and the tensors that go with it.

GLM-4V puts a picture's patches into the prompt by itself, and takes `pixel_values` (helpers.glm). GLM-4.1V, and
others of `transformers` that work alike (Qwen2-VL and its successors), want the picture's token in the prompt once
for every vector that their tower makes of the picture, beside the tensors of its patches.
"""

from __future__ import annotations

import base64
import io
import os
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from helpers.errors import BadImageError, BadInputError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

FORMATS = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "ICO", "AVIF", "JPEG2000")
LONGEST_NAME = 120  # characters of a picture's name in a message


def check_sees(model: PreTrainedModel, processor: Any) -> None:
    """`BadInputError` unless pictures can be given to this model with this processor (or tokenizer)."""
    if getattr(processor, "image_processor", None) is None:
        sees = getattr(model.config, "vision_config", None) is not None
        raise BadInputError(
            "This model sees, but a tokenizer alone takes no pictures: give load_processor(name) in its place."
            if sees
            else "This model does not see: leave the picture away, or load one that does, such as glm-4v-9b, with its "
            "processor."
        )
    if not _places_its_own(model) and not hasattr(processor.image_processor, "merge_size"):
        raise BadInputError(
            f"Pictures work with GLM-4V and GLM-4.1V here, not with {type(model).__name__}: leave the picture away."
        )


def picture_inputs(
    model: PreTrainedModel, processor: Any, rows: Sequence[Sequence[int]], pictures: Any
) -> tuple[Any, dict[str, Any]]:
    """(ids of each row, what `forward` takes besides) for prompts with pictures.

    `rows` are lists of ids in which each picture has one token, `pictures` the list of each row's pictures in
    reading order (what `open_picture` of helpers.glm takes). What comes back has, for GLM-4V, `pixel_values
    [picture, channel, height, width]`; for the others `pixel_values [patch, numbers]` of all pictures, their
    `image_grid_thw [picture, 3]` (frames, rows and columns of patches), and `mm_token_type_ids`, a list for each row:
    1 where a picture is.

    Raises `BadImageError` for a picture that cannot be read, and `BadInputError` for a model that takes none, or a
    prompt with more or fewer places than pictures.
    """
    check_sees(model, processor)
    opened = [open_picture(picture) for of_row in pictures for picture in of_row]
    if _places_its_own(model):
        return rows, {"pixel_values": processor.image_processor(opened)["pixel_values"]}
    place = model.config.image_token_id
    for row, of_row in zip(rows, pictures, strict=True):
        if row.count(place) != len(of_row):
            raise BadInputError(
                f"The prompt has {row.count(place)} places for {len(of_row)} pictures: this model's chat template "
                "gives each picture one, so ask through it (messages, not a plain text)."
            )
    encoded = processor.image_processor(opened, return_tensors="pt")
    sizes = iter((encoded["image_grid_thw"].prod(dim=-1) // processor.image_processor.merge_size**2).tolist())
    rows = [[token for one in row for token in ([one] * next(sizes) if one == place else [one])] for row in rows]
    tensors = {name: encoded[name] for name in ("pixel_values", "image_grid_thw")}
    return rows, tensors | {"mm_token_type_ids": [[int(token == place) for token in row] for row in rows]}


def _places_its_own(model: PreTrainedModel) -> bool:
    return hasattr(model, "expand_inputs")


def open_picture(source: Any, *, name: str | None = None) -> Image.Image:
    """An upright RGB picture of a file's path or bytes, a data URL, or a PIL image. `name` is what errors call it.

    A file's orientation mark is obeyed, transparency is dropped, 16-bit grey becomes 8-bit, and of an
    animation the current frame (of a file: the first) is taken. Only the `FORMATS` are opened, whatever a file is
    called: for some others (EPS) Pillow starts a program. Raises `BadImageError`.

    >>> open_picture(Image.new("L", (4, 3))).mode
    'RGB'
    """
    name = name or (str(source) if isinstance(source, str | Path) else None)
    name = "This picture" if name is None else f"The picture {shown_name(name)}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large pictures and palettes with transparency are fine
            if isinstance(source, Image.Image):
                _check_format(source, name)
                return _upright_rgb(source, name)
            with Image.open(_opened_file(source, name), formats=_known_formats()) as opened:
                return _upright_rgb(opened, name)
    except BadImageError:
        raise
    except FileNotFoundError:
        raise BadImageError(f"{name} is not there: check the path. (It is not fetched from the internet.)") from None
    except UnidentifiedImageError:
        raise BadImageError(
            f"{name} cannot be read: it is not whole, or no picture of a kind known here (PNG, JPEG, GIF, WebP, …)."
        ) from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise BadImageError(
            f"{name} has more than {limit:,} pixels, too many to open safely: make it smaller."
        ) from None
    except Exception as error:  # decoders raise all sorts of things for files that are cut off or damaged
        said = printable(error, 120)
        raise BadImageError(f"{name} cannot be read ({said}): is it whole, and a picture?") from None


def _known_formats() -> list[str]:
    """The `FORMATS` that this Pillow can open. (An MPO file is opened as the JPEG it begins with.)"""
    Image.init()
    return [kind for kind in FORMATS if kind in Image.OPEN]


def shown_name(name: str) -> str:
    """A picture's name for a message: a data URL or a long path is shortened."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 4 :]}"


def _opened_file(source: Any, name: str) -> Any:
    """What Pillow is to read: an open regular file, or bytes in memory."""
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    if isinstance(source, str) and source.startswith("data:"):
        head, comma, data = source.partition(",")
        if not comma or not head.endswith(";base64"):
            raise BadImageError(
                f"{name} is no data URL of a picture: it begins with data:image/png;base64, for example."
            )
        return io.BytesIO(base64.b64decode(data, validate=True))
    if not isinstance(source, str | Path):
        raise BadImageError(
            f"A picture is a PIL image, a file's path or a file's bytes, not a {type(source).__name__}; "
            "PIL.Image.fromarray makes one of an array."
        )
    kind = os.stat(source).st_mode
    if not stat.S_ISREG(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "a pipe, a device or a socket, which may never end"
        raise BadImageError(f"{name} cannot be read: it is {what}. Give the path of a picture's file.")
    return source


def _check_format(picture: Image.Image, name: str) -> None:
    """That an image which Pillow has opened, but may not have read yet, is of a kind that is opened here."""
    if picture.format is not None and picture.format not in FORMATS and isinstance(picture, ImageFile.ImageFile):
        raise BadImageError(
            f"{name} is of the format {picture.format}, which is not opened here: save it as PNG or JPEG first."
        )


def _upright_rgb(picture: Any, name: str | None) -> Image.Image:
    if 0 in picture.size:
        raise BadImageError(f"{name} has no pixels: its size is {picture.width} x {picture.height}.")
    if picture.mode == "I" and picture.format == "PPM":  # a PGM of 16 bits, which PIL puts into 32
        picture = Image.fromarray(numpy.asarray(picture).astype(numpy.uint16))
    if picture.mode in ("I", "F"):
        raise BadImageError(f"{name} has pixels of 32 bits (mode {picture.mode}): save it with 8 or 16 bits first.")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):  # PIL would cut the values off at 255
        picture = Image.fromarray((numpy.asarray(picture) // 257).astype(numpy.uint8))
    return picture.convert("RGB")
