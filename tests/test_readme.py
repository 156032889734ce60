"""README's commands are run, or, where that would need another machine, checked piece by piece."""

import json
import re
import shlex
import subprocess
import urllib.error
import urllib.request

import pytest
from lab_by_make import ROOT, make, serving_lab

from helpers.models.catalog import DEFAULT_MODEL

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip()
    for language, block in re.findall(r"```(bash|powershell)\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def test_every_command_is_checked_below():
    known = re.compile(
        r"make (help|setup|lab|test|workshop USERS=20|workshop-stop|lab BROWSER=0 PORT=8899)$"
        r"|conda |python -m helpers\.models$|python -m helpers\.batch |jupyter lab "
        r"|py -3\.11 \.ci\\environment\.py |\.venv\\Scripts\\|uv (?:sync|run) "
    )
    assert len(COMMANDS) >= 15
    assert [command for command in COMMANDS if not known.match(command)] == []


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_knows_its_targets(command):
    assert make("--dry-run", *shlex.split(command)[1:]).returncode == 0


def test_the_batch_command_says_what_its_options_are_called():
    from helpers.batch.__main__ import parser

    (command,) = (c for c in COMMANDS if "helpers.batch" in c)
    options = parser().parse_args(shlex.split(command)[3:])
    assert (ROOT / options.data_file).is_file() and options.with_prompt


def test_files_that_commands_name_exist():
    for command in COMMANDS:
        for word in command.replace("\\", "/").split():
            if re.search(r"\.(ipynb|yml|lock)$", word):
                assert (ROOT / word).is_file(), command


def test_the_table_of_notebooks_is_theirs():
    """Every notebook has its row, with the minutes that its first cell states for its sections and its exercises."""
    rows = {
        name: (sections, exercises)
        for name, sections, exercises in re.findall(
            r"^\| \[\d\d [^]]*\]\((notebooks/[^)]*)\) \|.*\| (\d+) \+ (\d+) \|$", README, re.MULTILINE
        )
    }
    stated = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        time = r"\*\*Time\*\* about (\d+) minutes for the sections and about (\d+) for the exercises"
        stated[f"notebooks/{path.name}"] = re.search(time, first).groups()
    assert rows == stated


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_windows_gets_what_make_does():
    """The same steps in the same order as the Makefile's: the environment, the models, the lab."""
    steps = [c.partition("-3.11 ")[2] or c.split("Scripts\\", 1)[1] for c in COMMANDS if re.match(r"py |\.venv\\", c)]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace('"$(VENV)"', ".venv")
    rules = (".ci/environment.py .venv requirements.lock", "python -m helpers.models", "jupyter lab")
    for step, rule in zip(steps, rules, strict=True):
        assert rule in makefile
        assert step.replace("\\", "/").startswith(rule)


def test_setup_does_nothing_when_nothing_is_missing():
    done = make("setup")
    assert done.returncode == 0, done.stderr
    assert "pip" not in done.stdout
    assert DEFAULT_MODEL not in done.stderr


def test_lab_serves_and_wants_the_token(tmp_path):
    with serving_lab(tmp_path / "log") as (url, _):
        assert "/lab/tree/notebooks/00_start_here.ipynb" in url
        assert _status(url) == 200
        contents, token = url.partition("/lab/")[0] + "/api/contents", url.split("token=")[1]
        assert _status(contents) == 403
        assert _status(f"{contents}?token={token}") == 200
        assert "fetching" not in (tmp_path / "log").read_text()


def _status(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_lab_listens_on_this_machine_only():
    recipe = make("--dry-run", "lab").stdout
    assert "--ip=127.0.0.1" in recipe
    assert "token=" not in recipe  # JupyterLab makes a new one at each start


def test_an_old_python_is_told_so():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    check = re.search(r"\$\(PYTHON\) -c '(import sys; .*?)'$", makefile, re.MULTILINE)[1]
    program = "import sys; sys.version_info = (3, 9, 1); sys.version = '3.9.1'; " + check
    done = subprocess.run(["python3", "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed, this is 3.9.1" in done.stderr
