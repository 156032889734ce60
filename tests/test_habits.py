"""What keeps the project in order says the same everywhere: versions, locks, hooks and what GitHub runs."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE)
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in ROOT.glob(".github/workflows/*.yml")
}
LOCKED = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE))


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert PROJECT["version"] == citation["version"] == headings[0]
    assert {"cff-version", "title", "message", "authors"} <= set(citation)


def test_the_changelog_has_the_headings_of_keep_a_changelog():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for heading in re.findall(r"^## (.*)$", text, re.MULTILINE):
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - (\d{4}-\d\d-\d\d|unreleased)", heading), heading
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= kinds


def test_both_locks_have_the_same_versions():
    """What pip installs from requirements.lock is what uv installs from uv.lock: `make lock` writes both."""
    packages = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    versions = {}
    for package in packages:
        versions.setdefault(package["name"], set()).add(package.get("version"))
    differ = {name: version for name, version in LOCKED.items() if version not in versions.get(name, ())}
    assert not differ, f"not in uv.lock: {differ}: run make lock"
    declared = next(package for package in packages if package["name"] == PROJECT["name"])["metadata"]["requires-dist"]
    names = {re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]}
    names |= {re.match(r"[\w-]+", line)[0] for line in PROJECT["optional-dependencies"]["test"]}
    assert {one["name"] for one in declared} == names, "run make lock"


def test_hooks_run_the_versions_that_are_locked():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "spelling", "outputs", "large-files"}
    for hook in hooks:
        (pin,) = hook["additional_dependencies"]
        name, _, version = pin.partition("==")
        assert version == LOCKED.get(name, version), f"{hook['id']}: {pin}"


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_github_calls_targets_of_the_makefile(name):
    runs = [step["run"] for job in WORKFLOWS[name]["jobs"].values() for step in job["steps"] if "run" in step]
    called = re.findall(r"^\s*make PYTHON=python ([a-z-]+)", "\n".join(runs), re.MULTILINE)
    assert called
    assert set(called) <= set(TARGETS)


def test_github_tests_three_systems_with_the_oldest_and_the_newest_python():
    matrix = WORKFLOWS["tests"]["jobs"]["test"]["strategy"]["matrix"]
    assert [system.partition("-")[0] for system in matrix["os"]] == ["ubuntu", "macos", "windows"]
    oldest, newest = matrix["python"]
    assert PROJECT["requires-python"] == f">={oldest}"
    assert tuple(map(int, newest.split("."))) >= sys.version_info[:2]


def test_each_kind_of_test_has_its_hour():
    commands = {name: json.dumps(workflow["jobs"]) for name, workflow in WORKFLOWS.items()}
    assert all(target in commands["tests"] for target in ("test-oldest", "test-browser", "lint-js", "test-js"))
    assert "test-measured" in commands["nightly"]
    assert "test-latest" in commands["weekly"] and "gh issue create" in commands["weekly"]
    assert WORKFLOWS["weekly"]["jobs"]["latest"]["permissions"]["issues"] == "write"
    for name in ("nightly", "weekly"):
        assert WORKFLOWS[name][True]["schedule"]  # YAML 1.1 reads the key `on` as true


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_github_hands_nobody_more_than_a_job_needs(name):
    """A job may read the repository; what it may write, it says itself. The clone it tests holds no password."""
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    steps = [step for job in WORKFLOWS[name]["jobs"].values() for step in job["steps"]]
    for step in steps:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        assert step.get("uses", "actions/").startswith("actions/"), "an action of somebody else's needs a hash"


def test_the_devcontainer_sets_up_as_the_makefile_does():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert container["postCreateCommand"] == "make setup"


def test_no_tool_is_committed_and_no_large_file():
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    assert [file for file in files if "node_modules" in file.parts] == []
    large = [file for file in files if file.exists() and file.stat().st_size > 500_000]
    assert [file for file in large if file.name != "uv.lock" and not {"tiny-glm4v", "fixtures"} & {*file.parts}] == []


def test_no_two_test_files_have_one_name():
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert {name for name in names if names.count(name) > 1} == set()


def test_test_folders_mirror_the_rooms():
    rooms = [path.parent.name for path in (ROOT / "helpers").glob("*/__init__.py")]
    assert len(rooms) >= 7
    assert [room for room in rooms if not list((ROOT / "tests" / room).glob("test_*.py"))] == []
