"""The package and its setup files: fast import, files that agree, README commands that work."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import helpers

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _locked():
    pins = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            pins.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return pins


def _declared():
    return [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]


def test_import_imports_nothing_heavy():
    program = "import sys, helpers; print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", helpers.__all__)
def test_public_names_resolve_and_are_documented(name):
    assert getattr(helpers, name).__doc__


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="load_model"):
        _ = helpers.load_modell


def test_every_error_is_a_helpers_error_and_shows_as_one_sentence_in_a_notebook():
    from helpers import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    kinds = [kind for kind in kinds if not issubclass(kind, Warning)]
    assert len(kinds) >= 8
    for kind in kinds:
        assert issubclass(kind, helpers.HelpersError)
        assert kind("what to do")._render_traceback_() == [f"{kind.__name__}: what to do"]


@pytest.mark.parametrize("requirement", _declared(), ids=lambda requirement: requirement.name)
def test_the_lock_pins_what_the_project_declares(requirement):
    pins = _locked().get(canonicalize_name(requirement.name))
    assert pins, f"{requirement.name} is not in requirements.lock: run make lock"
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert requirement.specifier.contains(specifier.version), f"{pin} is outside {requirement}: run make lock"


def test_what_is_installed_is_what_is_locked():
    from importlib.metadata import version

    for name in ("torch", "transformers", "tokenizers", "jupyterlab", "nbclient"):
        (pin,) = _locked()[name]
        assert pin.specifier.contains(Version(version(name)).public), (
            f"{name} {version(name)} is installed, {pin} locked"
        )


def test_environment_yml_takes_the_lock_and_a_python_that_fits():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    cpu = "--extra-index-url https://download.pytorch.org/whl/cpu"  # Binder and most laptops have no GPU
    assert pip["pip"] == [cpu, "-r requirements.lock", "-e ."]
    python = next(Requirement(line.replace("=", "==", 1)) for line in conda if line.startswith("python="))
    (version,) = python.specifier
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(version.version)
    assert environment["name"] == PROJECT["name"]
    assert f"conda activate {environment['name']}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, env=own).stdout
    assert [line.split()[0] for line in shown.splitlines()] == phony


def test_no_path_of_one_machine_and_nothing_from_the_outside_in_the_package():
    for file in (ROOT / "helpers").rglob("*"):
        if file.suffix in (".py", ".js", ".css"):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"/(?:work|root|home)/\w", text), file
            assert not re.search(r"https?://(?:cdn|unpkg|cdnjs|fonts\.)", text), file
