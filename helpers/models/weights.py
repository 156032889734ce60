"""What a folder's safetensors files hold, read from their headers alone."""

import json
import struct
from pathlib import Path

from helpers.errors import DamagedFilesError, ModelNotFoundError
from helpers.models.store import read_manifest


def listed_weights(folder):
    """Bytes of the weights that a hub lists for a folder whose small files alone are here, else 0."""
    try:
        return int(read_manifest(Path(folder)).get("weights_bytes", 0))
    except (OSError, ValueError, TypeError):
        return 0


def weight_shapes(folder):
    """Name -> shape of every tensor in a folder's safetensors files, from their headers alone.

    A file starts with 8 bytes (little-endian) that say how long the JSON header after them is.
    Raises `DamagedFilesError` naming the file, `ModelNotFoundError` when there is none.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files and listed_weights(folder):
        raise ModelNotFoundError(
            f"{folder} holds the config and the tokenizer of this model; its weights are not downloaded yet. Pass the "
            f'model\'s name and source="{Path(folder).parent.name}" to load_model.'
        )
    if not files:
        raise ModelNotFoundError(
            f"{folder} holds no .safetensors file. Other weight formats are not loaded here: they can run code."
        )
    shapes = {}
    for file in files:
        try:
            with open(file, "rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > file.stat().st_size:
                    raise ValueError("its header is longer than the file")
                header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            ends = [tensor["data_offsets"][1] for tensor in header.values()]
            if 8 + length + max(ends, default=0) != file.stat().st_size:
                raise ValueError(f"{8 + length + max(ends, default=0)} bytes expected, {file.stat().st_size} found")
            shapes |= {key: tensor["shape"] for key, tensor in header.items()}
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise DamagedFilesError(f"{file} is damaged ({error}): fetch it again.") from None
    return shapes
