"""What a folder's safetensors files hold, read from their headers alone, and whether a model received all of it."""

import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from helpers.checks import file_path
from helpers.errors import DamagedFilesError, ModelNotFoundError
from helpers.models.folder import weight_files
from helpers.models.store import read_manifest


def listed_weights(folder: Path) -> int:
    """The bytes of weights that a hub lists for a folder, according to its manifest; 0 if the manifest has none."""
    try:
        return int(read_manifest(Path(folder)).get("weights_bytes", 0))
    except (OSError, ValueError, TypeError, AttributeError):
        return 0


def weight_shapes(folder: str | Path) -> dict[str, list[int]]:
    """Name -> shape of every tensor that a folder's model is made of, from its safetensors headers alone.

    The files are those that `transformers` loads, and no others next to them. Raises `DamagedFilesError` naming the
    file, and `ModelNotFoundError` when there are no weights.

    >>> from helpers.models.locate import model_folder
    >>> weight_shapes(model_folder("smollm2-135m"))["model.embed_tokens.weight"]
    [49152, 576]
    """
    from safetensors import SafetensorError, safe_open

    folder = file_path("folder", folder)
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder} is not a folder: give the folder that holds a model's files.")
    files = weight_files(folder)
    if not files:
        raise _no_weights(Path(folder))
    shapes: dict[str, list[int]] = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as opened:
                shapes |= {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise DamagedFilesError(f"{file} is damaged ({error}): fetch it again.") from None
    return shapes


def _no_weights(folder: Path) -> ModelNotFoundError:
    if listed_weights(folder):
        return ModelNotFoundError(
            f"{folder} holds the config and the tokenizer of this model, but its weights are not downloaded yet. Pass "
            f'the model\'s name and source="{folder.parent.name}" to load_model.'
        )
    return ModelNotFoundError(
        f"{folder} holds neither model.safetensors nor an index of such files (model.safetensors.index.json), so there "
        "are no .safetensors weights to load. Other weight formats are not loaded here, because they can run code."
    )


def check_report(
    folder: object, report: Mapping[str, Any], names: Iterable[str], *, shapes: bool = True, towers: bool = False
) -> list[str]:
    """The names of weights that the model does not use, after checking that all others are where they belong.

    `report` is the loading info of `from_pretrained`, `names` are those of the model's own weights. `shapes=False`
    accepts other shapes; `towers=True` also refuses unused layers of kinds that the model does not have. Raises
    `DamagedFilesError` for weights that are missing, of another shape, or of layers that the config does not count.
    """
    names = set(names)
    kinds = {_kind(name) for name in names}
    layers = {_layer(name) for name in names} - {None}
    unused = sorted(report["unexpected_keys"])
    problems = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    problems += [
        f"{name} belongs to an extra layer"
        for name in unused
        if _kind(name) in kinds or (towers and ".layers." in name)
    ]
    problems += [
        f"the model has no place for {name}"
        for name in unused
        if _kind(name) not in kinds and _changes_a_layer(name, names, layers)
    ]
    problems += [
        f"{name} has the shape {list(found)} instead of {list(expected)}"
        for name, found, expected in sorted(report["mismatched_keys"])
        if shapes
    ]
    if problems:
        more = f" (and {len(problems) - 1} more such)" if len(problems) > 1 else ""
        raise DamagedFilesError(
            f"The weights in {folder} do not fit its config.json: {problems[0]}{more}. They are damaged, or belong to "
            "different models: fetch both again."
        )
    return unused


def _changes_a_layer(name: str, names: Container[str], layers: Container[str | None]) -> bool:
    """Whether an unused weight would change what the model computes: a bias of a matrix that it has, or another matrix
    or norm in one of its layers."""
    module, _, kind = name.rpartition(".")
    return (kind == "bias" and f"{module}.weight" in names) or (kind == "weight" and _layer(name) in layers)


def _layer(name: str) -> str | None:
    """The part of a weight's name up to the number of its layer; None outside of layers."""
    found = re.match(r".*?\.\d+(?=\.)", name)
    return found.group() if found else None


def _kind(name: str) -> str:
    """A weight's name without its numbers: the same for every layer."""
    return re.sub(r"\d+", "#", name)
