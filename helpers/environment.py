"""What is installed and what this machine can do; notebook 00 runs these checks.

Every check returns a `Report`: one row per item, with OK or what to do about it. A missing or broken package
does not stop the checks, so that a broken installation can still be described.
"""

import importlib
import platform
import shutil
import textwrap
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from helpers.errors import DamagedFilesError, HelpersError
from helpers.models import catalog, store, wheels

PROJECT_FILE = Path(__file__).resolve().parent.parent / "pyproject.toml"
LINE = 100  # characters of a line in a report; JupyterLab shows a few more in a window of 1400 pixels


@dataclass(frozen=True)
class Finding:
    """One line of a `Report`: what was checked, what was found, a verdict ("OK" if all is well), and a hint."""

    name: str
    value: str
    verdict: str
    hint: str = ""


@dataclass(frozen=True, repr=False)
class Report:
    """Findings under a title; prints as a table. `ok` is False when something has to be done.

    A hint that would make its row longer than 100 characters is printed below the row.
    """

    title: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing has to be done."""
        return all(finding.verdict != "TO DO" for finding in self.findings)

    def __repr__(self) -> str:
        rows = [(f.name, f.value, f.verdict) for f in self.findings]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
        lines = [self.title]
        for row, finding in zip(rows, self.findings, strict=True):
            start = "  " + "  ".join(map(str.ljust, row, widths))
            whole = f"{start}  {finding.hint}".rstrip()
            lines += [whole] if len(whole) <= LINE else [start.rstrip(), *_below(finding.hint)]
        return "\n".join(lines)


def _below(hint: str) -> list[str]:
    """The lines of a long hint, indented so that they can be told from rows."""
    return textwrap.TextWrapper(
        LINE, initial_indent=" " * 6, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False
    ).wrap(hint)


def check_environment() -> tuple[Report, Report, Report]:
    """The three reports in order: packages, machine, models. Raises what `check_packages` raises."""
    return check_packages(), check_machine(), check_models()


def check_packages() -> Report:
    """Python and every package the course needs, checked against the version ranges in `pyproject.toml`.

    Raises `DamagedFilesError` when `pyproject.toml` is missing or cannot be read.

    >>> check_packages().title
    'Packages'
    """
    from packaging.requirements import Requirement

    project = _project()
    python = Requirement(f"python{project['requires-python']}")
    findings = [_against("Python", platform.python_version(), python.specifier, "Recreate the environment with it.")]
    for requirement in map(Requirement, project["dependencies"]):
        if requirement.marker is None or requirement.marker.evaluate():
            cure = f'Run  %pip install "{requirement}"  in a cell, then restart the kernel.'
            findings.append(_against(requirement.name, _installed(requirement.name), requirement.specifier, cure))
    return Report("Packages", tuple(findings))


def _project() -> dict[str, Any]:
    try:
        return tomllib.loads(PROJECT_FILE.read_text(encoding="utf-8"))["project"]
    except FileNotFoundError:
        raise DamagedFilesError(
            "pyproject.toml is not next to the helpers folder, so it is unknown which versions are needed: "
            "get the whole course again (git clone) and install it with `make setup`."
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError) as error:
        raise DamagedFilesError(
            f"pyproject.toml cannot be read ({error}): put it back with `git checkout pyproject.toml`."
        ) from None


def _installed(package: str) -> str | None:
    """The version as a string, or None when the package is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _against(name: str, version: str | None, wanted: Any, cure: str) -> Finding:
    needed = f"needs {', '.join(sorted(map(str, wanted), reverse=True))}"  # ">=5.20, <6"
    if version is not None and wanted.contains(version, prereleases=True):
        return Finding(name, version, "OK", needed)
    return Finding(name, version or "missing", "TO DO", f"{needed}. {cure}")


def check_machine() -> Report:
    """The device, threads, free memory, and free disk space where models are stored.

    >>> print(check_machine().title)
    Machine
    """
    findings = []
    try:
        from helpers.models.memory import available_bytes, pick_device

        torch = importlib.import_module("torch")
        device = pick_device()
        threads = torch.get_num_threads()
        value = f"{device}, {threads} thread{'s' if threads > 1 else ''}"
        findings.append(Finding("device", value, "OK", _about_device(device)))
        free = available_bytes(device)
        findings.append(Finding("memory", f"{free / 1e9:.1f} GB free", "OK", "available for a model and its cache"))
    except (ImportError, OSError) as error:  # OSError: a library file that torch needs is missing
        advice = f"It cannot be determined ({error}). Fix the packages first, then restart the kernel."
        findings.append(Finding("device", "unknown", "TO DO", advice))
    return Report("Machine", (*findings, _disk()))


def _about_device(device: str) -> str:
    return "no GPU is needed" if device == "cpu" else 'load_model(…, device="cpu") gives the outputs you see here'


def _disk() -> Finding:
    folder = store.models_dir()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    missing = [name for name in wheels.COURSE_MODELS if not (store.models_dir() / name).is_dir()]
    needed = sum(wheels.RECIPES[name].needed_bytes for name in missing)
    value = f"{free / 1e9:.1f} GB free"
    if not missing:
        return Finding("disk", value, "OK", "the course's models are already here")
    if free >= needed:
        return Finding("disk", value, "OK", f"{', '.join(missing)} will need {needed / 1e9:.2g} GB while preparing")
    return Finding(
        "disk",
        value,
        "TO DO",
        f"Preparing {', '.join(missing)} takes {needed / 1e9:.2g} GB: free some space, or set {store.MODELS_VARIABLE} "
        "to a folder on another disk before starting.",
    )


def check_models(*, context: int = 2048) -> Report:
    """Which models of the catalog would fit into the memory that is free now, with `context` positions.

    The sizes are those of `memory_plan`, in the dtype that `load_model` would choose on this device. A model
    that does not fit is not an error; its hint says what would fit.

    >>> print(check_models(context=512).title)
    Models
    """
    return Report("Models", tuple(_fit(card.name, context) for card in catalog.list_models() if card.parameters))


def _fit(name: str, context: int) -> Finding:
    try:
        from helpers.models.memory import memory_plan

        plan = memory_plan(name, context=context)
    except (HelpersError, ImportError, OSError) as error:
        return Finding(name, "unknown", "TO DO", str(error))
    value = f"{plan.total_bytes / 1e9:.3g} GB in {plan.dtype}"
    if plan.fits:
        return Finding(name, value, "fits")
    return Finding(name, value, "too big", plan.cure)
