"""Pictures for vision-language models: opened safely, and put into prompts in the way each kind of model needs."""

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

from helpers import checks
from helpers.errors import BadImageError, printable
from helpers.text.sight import sight_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

FORMATS = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "ICO", "AVIF", "JPEG2000")
LONGEST_NAME = 120  # characters of a picture's name in a message


def check_sees(model: PreTrainedModel, processor: Any) -> None:
    """`BadInputError` unless pictures can be given to this model with this processor (or tokenizer).

    >>> from helpers.models.loading import load_model
    >>> from helpers.models.pretrained import load_processor
    >>> check_sees(load_model("tiny-glm4v", device="cpu"), load_processor("tiny-glm4v"))
    """
    sight_of(model, processor).check()


def picture_inputs(
    model: PreTrainedModel, processor: Any, rows: Sequence[Sequence[int]], pictures: Any
) -> tuple[Any, dict[str, Any]]:
    """(ids of each row, other inputs of `forward`) for prompts with pictures.

    `rows` are lists of ids with a placeholder for each picture, `pictures` the list of each row's pictures in reading
    order (anything that `open_picture` takes). The other inputs depend on the kind of model (helpers.text.sight): for
    GLM-4V `pixel_values [picture, channel, height, width]`; for GLM-4.1V and Qwen2-VL `pixel_values [patch, numbers]`
    of all pictures, their `image_grid_thw [picture, 3]` (frames, rows and columns of patches), and
    `mm_token_type_ids`, one list per row with a 1 at each of a picture's tokens; for others what their processor makes.

    Raises `BadImageError` for a picture that cannot be read, and `BadInputError` for a model that takes none, or a
    prompt with more or fewer placeholders than pictures.

    >>> from helpers.models.loading import load_model
    >>> from helpers.models.pretrained import load_processor
    >>> from PIL import Image as PillowImage
    >>> model, processor = load_model("tiny-glm4v", device="cpu"), load_processor("tiny-glm4v")
    >>> rows, tensors = picture_inputs(model, processor, [[1, 2, 3]], [[PillowImage.new("RGB", (96, 96))]])
    >>> list(tensors["pixel_values"].shape)
    [1, 3, 96, 96]
    """
    sight = sight_of(model, processor)
    sight.check()
    opened = [[as_opened(picture) for picture in of_row] for of_row in pictures]
    return sight.inputs([list(row) for row in rows], opened)


def as_opened(picture: Any) -> Image.Image:
    """The picture, opened; one that `open_picture` has opened is returned as it is."""
    return picture if getattr(picture, "is_opened", False) else open_picture(picture)


def open_picture(source: Any, *, name: str | None = None) -> Image.Image:
    """An upright RGB picture from a file's path or bytes, a data URL, or a PIL image. Errors call it `name`.

    A file's orientation tag is applied, transparency is dropped, 16-bit grey becomes 8-bit, and an animation is
    represented by its current frame (for a file, the first). Only the `FORMATS` are opened, whatever a file is
    called, because Pillow starts another program for some others (EPS). Raises `BadImageError`.

    >>> open_picture(Image.new("L", (4, 3))).mode
    'RGB'
    """
    name = None if name is None else checks.text("name", name)
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
        raise BadImageError(f"{name} does not exist: check the path. (Nothing is fetched from the internet.)") from None
    except UnidentifiedImageError:
        raise BadImageError(
            f"{name} cannot be read: it is incomplete, or not a picture in a known format (PNG, JPEG, GIF, WebP, …)."
        ) from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise BadImageError(
            f"{name} has more than {limit:,} pixels, too many to open safely: make it smaller."
        ) from None
    except Exception as error:  # decoders raise all sorts of errors for truncated or damaged files
        said = printable(error, 120)
        raise BadImageError(f"{name} cannot be read ({said}): is it a complete picture?") from None


def _known_formats() -> list[str]:
    """The `FORMATS` that this Pillow can open. (An MPO file is opened as the JPEG it begins with.)"""
    Image.init()
    return [kind for kind in FORMATS if kind in Image.OPEN]


def shown_name(name: str) -> str:
    """A picture's name for a message: a data URL or a long path is shortened."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 4 :]}"


def _opened_file(source: Any, name: str) -> Any:
    """What Pillow will read: the path of a regular file, or bytes in memory."""
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    if isinstance(source, str) and source.startswith("data:"):
        head, comma, data = source.partition(",")
        if not comma or not head.endswith(";base64"):
            raise BadImageError(
                f"{name} is not a data URL of a picture: one begins with data:image/png;base64, for example."
            )
        return io.BytesIO(base64.b64decode(data, validate=True))
    if not isinstance(source, str | Path):
        raise BadImageError(
            f"A picture must be a PIL image, a file's path or a file's bytes, not a {type(source).__name__}; "
            "PIL.Image.fromarray makes one from an array."
        )
    kind = os.stat(source).st_mode
    if not stat.S_ISREG(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "a pipe, a device or a socket, which may never end"
        raise BadImageError(f"{name} cannot be read: it is {what}. Give the path of a picture's file.")
    return source


def _check_format(picture: Image.Image, name: str) -> None:
    """Check that an image which Pillow has opened, but may not have read yet, is in one of the `FORMATS`."""
    if picture.format is not None and picture.format not in FORMATS and isinstance(picture, ImageFile.ImageFile):
        raise BadImageError(
            f"{name} is in the format {picture.format}, which is not opened here: save it as PNG or JPEG first."
        )


def _upright_rgb(picture: Any, name: str | None) -> Image.Image:
    if 0 in picture.size:
        raise BadImageError(f"{name} has no pixels: its size is {picture.width} x {picture.height}.")
    if picture.mode == "I" and picture.format == "PPM":  # a PGM of 16 bits, which PIL puts into 32
        picture = Image.fromarray(numpy.asarray(picture).astype(numpy.uint16))
    if picture.mode in ("I", "F"):
        raise BadImageError(f"{name} has 32-bit pixels (mode {picture.mode}): save it with 8 or 16 bits first.")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):  # PIL would cut the values off at 255
        picture = Image.fromarray((numpy.asarray(picture) // 257).astype(numpy.uint8))
    upright = picture.convert("RGB")
    upright.is_opened = True  # so that nothing opens it again
    return upright
