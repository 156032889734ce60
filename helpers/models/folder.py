"""Check what is in a model's folder before any library opens it.

A folder comes from somewhere else, so it is untrusted data: its files may be pipes that never end, links to files
outside it, pickles under another name, or malformed JSON. A folder that passes `checked_folder` can be given to
`transformers`.
"""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from helpers.checks import shown
from helpers.errors import BadInputError, DamagedFilesError, ModelNotFoundError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
SETTINGS = (  # small files, each a JSON object
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "adapter_config.json",
    INDEX,
)
OPENED = (".json", ".jinja", ".txt", ".model", ".safetensors", ".tiktoken")  # what a library may open
TEMPLATES = "additional_chat_templates"  # a folder of .jinja files in a model's folder
OTHER_PROGRAMS = {  # what a folder without config.json may hold, by the end of a file's name
    ".gguf": "a model for llama.cpp (GGUF)",
    "model_index.json": "the list of parts of a diffusers pipeline, which makes pictures",
    ".onnx": "a model for ONNX Runtime",
    ".safetensors": "weights without the config that says what they are",
}
MOST_SETTINGS_BYTES = 32 * 2**20  # the largest index of a published model is 12 MB
MOST_TOKENIZER_BYTES = 256 * 2**20  # the largest tokenizer of a published model is about 35 MB
MOST_BYTES = {".jinja": 2**20, ".safetensors": None}  # of files with these endings; None is no limit
# Files of a distributed training run, which PyTorch reads with pickle.
DISTRIBUTED = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors", re.ASCII)


def checked_folder(folder: Path, *, weights: bool = True) -> Path:
    """The folder, if it holds a model or a tokenizer and every file that a library would open is safe to open.

    With `weights=False` weights may be missing. Raises `ModelNotFoundError` if there is no model, `BadInputError` for
    an adapter (which is not a model by itself), and `DamagedFilesError` for every other problem.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ModelNotFoundError(f"{folder} cannot be read ({error.strerror}): check its permissions.") from None
    for name in [*names, *_named_templates(folder)]:
        if name.endswith(OPENED):
            _check_file(folder, name)
    if not {"config.json", "tokenizer_config.json", "adapter_config.json", "tokenizer.json"} & set(names):
        for ending, what in OTHER_PROGRAMS.items():
            if found := next((name for name in names if name.endswith(ending)), None):
                raise ModelNotFoundError(
                    f"{folder} is not a model folder of transformers: {found} is {what}. Load the model's original "
                    "folder, with config.json and .safetensors files."
                )
        raise ModelNotFoundError(f"{folder} is not a model folder: it has neither config.json nor a tokenizer.")
    for name in SETTINGS:
        if name in names:
            read_settings(folder / name)
    _check_adapter(folder, names)
    if INDEX in names:
        _indexed_files(folder, missing=not weights)
    return folder


def _named_templates(folder: Path) -> list[str]:
    """The chat templates that have a name and a file of their own."""
    try:
        return sorted(f"{TEMPLATES}/{name}" for name in os.listdir(folder / TEMPLATES))
    except OSError:
        return []


def _check_file(folder: Path, name: str) -> None:
    """Check that this is a regular file of a possible size: no pipe, device or folder, and no link to another kind of
    file elsewhere."""
    file = folder / name
    try:
        status = file.stat()
    except OSError as error:
        raise DamagedFilesError(f"{file} cannot be opened ({error.strerror}): fetch it again.") from None
    mode = status.st_mode
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"
        raise DamagedFilesError(f"{file} is {what} where a file should be: remove it, or fetch the model again.")
    most = MOST_BYTES.get(file.suffix, MOST_TOKENIZER_BYTES)
    if most is not None and status.st_size > most:
        raise _unreadable(file, _too_large(status.st_size))
    target = file.resolve()
    if not _is_own(folder, target) and target.suffix != file.suffix:
        raise DamagedFilesError(f"{file} is a link to {target}, which is another kind of file: fetch it again.")


def _is_own(folder: Path, target: Path) -> bool:
    """Whether a file (with links resolved) is in the folder, or in the hub client's cache that the folder belongs to.

    Hugging Face's client keeps `models--owner--name/snapshots/REVISION`, with links into `models--owner--name/blobs`.
    """
    folder = folder.resolve()
    return target.parent == folder or (
        folder.parent.name == "snapshots" and target.parent == folder.parent.parent / "blobs"
    )


def read_settings(file: Path, *, most_bytes: int = MOST_SETTINGS_BYTES) -> dict[str, Any]:
    """The object in a small JSON file. Raises `DamagedFilesError` for anything else, without reading endlessly."""
    try:
        with open(os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is not a regular file")
            if status.st_size > most_bytes:
                raise ValueError(_too_large(status.st_size))
            settings = json.loads(stream.read().decode("utf-8"))
    except OSError as error:
        raise _unreadable(file, error.strerror) from None
    except RecursionError:
        raise _unreadable(file, "it is nested too deeply") from None
    except ValueError as error:  # JSON and UTF-8 errors, too
        raise _unreadable(file, error) from None
    if not isinstance(settings, dict):
        raise _unreadable(file, f"it holds {shown(settings)}, which is not a JSON object")
    return settings


def _too_large(size: int) -> str:
    return f"its size is {size / 1e6:,.0f} MB, far more than such a file needs"


def _unreadable(file: Path, why: object) -> DamagedFilesError:
    return DamagedFilesError(f"{file.parent} cannot be loaded: {file.name} cannot be read ({why}). Fetch it again.")


def _check_adapter(folder: Path, names: list[str]) -> None:
    if "adapter_config.json" not in names:
        return
    base = read_settings(folder / "adapter_config.json").get("base_model_name_or_path")
    of = f" for {shown(base)}" if isinstance(base, str) and base else ""
    merge = "Merge the two with peft (merge_and_unload, then save_pretrained) and load the resulting folder."
    if "config.json" in names:
        raise BadInputError(
            f"{folder} holds an adapter (LoRA or similar){of} next to a model, and adapters are not applied here. "
            f"{merge} To load the model without the adapter, move adapter_config.json out of the folder."
        )
    raise BadInputError(f"{folder} is not a model by itself: it is an adapter (LoRA or similar){of}. {merge}")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that `transformers` loads from a folder: one, those its index names, or none.

    Other weights next to them, such as `consolidated.safetensors`, are not included. Raises `DamagedFilesError`
    when the index names anything but safetensors files of this folder, or names files that are missing.
    """
    if any(DISTRIBUTED.fullmatch(name) for name in os.listdir(folder)):
        raise DamagedFilesError(
            f"{folder} holds the files of a distributed training run, which are read with pickle and can run code. "
            "Save the model with save_pretrained, and load that folder."
        )
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    return _indexed_files(folder) if (folder / INDEX).is_file() else []


def _indexed_files(folder: Path, *, missing: bool = False) -> list[Path]:
    """The files that the index names; with `missing=True`, only those that are there."""
    index = folder / INDEX
    names = read_settings(index).get("weight_map")
    if not isinstance(names, dict):
        raise _unreadable(index, "it has no weight_map")
    for name in names.values():
        if not _is_plain_safetensors(name):
            raise DamagedFilesError(
                f"{index} names {shown(name)} as a file of weights. It may name only .safetensors files of its own "
                "folder, since other files can run code or are not meant to be read: fetch the model again."
            )
    files = sorted(set(names.values()))
    absent = [name for name in files if not (folder / name).is_file()]
    if absent and not missing:
        raise DamagedFilesError(
            f"{folder} is missing {len(absent)} of {len(files)} weight files ({absent[0]} first): fetch them again."
        )
    here = [name for name in files if name not in absent]
    for name in here:
        if not _is_own(folder, (folder / name).resolve()):
            raise DamagedFilesError(
                f"{folder / name} is a link to {(folder / name).resolve()}, outside the folder. Copy the file into the "
                "folder, or load the folder that holds it."
            )
    if not missing and not isinstance(read_settings(index).get("metadata"), dict):  # transformers relies on it
        raise _unreadable(index, "it has no metadata")
    return [folder / name for name in here]


def _is_plain_safetensors(name: Any) -> bool:
    """Whether this is just the name of a safetensors file, and not a path on any operating system."""
    plain = isinstance(name, str) and not set(name) & set("/\\:\0") and len(name.encode("utf-8", "replace")) <= 255
    return plain and name.endswith(".safetensors") and not name.startswith(".")
