"""README's commands are run, or, where that would need another machine, checked piece by piece."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from helpers.models.catalog import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip()
    for language, block in re.findall(r"```(bash|powershell)\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


# When make runs the tests, its own flags must not reach the make that a test runs.
OWN = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


def _make(*arguments):
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=OWN)


def test_every_command_is_checked_below():
    known = re.compile(
        r"make (help|setup|lab|test|lab BROWSER=0 PORT=8899)$|conda |python -m helpers\.sources$"
        r"|python -m helpers\.batch |jupyter lab |py -3\.11 -m venv \.venv$|\.venv\\Scripts\\"
    )
    assert len(COMMANDS) >= 15
    assert [command for command in COMMANDS if not known.match(command)] == []


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_knows_its_targets(command):
    assert _make("--dry-run", *shlex.split(command)[1:]).returncode == 0


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
    """Every notebook has its row, with the minutes that its first cell states."""
    rows = dict(re.findall(r"^\| \[\d\d [^]]*\]\((notebooks/[^)]*)\) \|.*\| (\d+) \|$", README, re.MULTILINE))
    stated = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        stated[f"notebooks/{path.name}"] = re.search(r"\*\*Time\*\* (?:about )?(\d+) minutes", first)[1]
    assert rows == stated


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_windows_gets_what_make_does():
    """The same steps in the same order as the Makefile's environment rule."""
    steps = [c.split("Scripts\\", 1)[1] for c in COMMANDS if c.startswith(".venv\\Scripts\\")]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for step, rule in zip(
        steps,
        ("--upgrade", "--requirement requirements.lock", "--no-deps --editable .", "helpers.models", "jupyter lab"),
        strict=True,
    ):
        assert rule in makefile
        assert rule.split()[-1] in step


def test_setup_does_nothing_when_nothing_is_missing():
    start = time.perf_counter()
    done = _make("setup")
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 5
    assert "pip" not in done.stdout
    assert DEFAULT_MODEL not in done.stderr


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_lab_serves_within_ten_seconds_and_wants_the_token(tmp_path):
    port, log = _free_port(), tmp_path / "log"
    start = time.perf_counter()
    with open(log, "w") as out:
        server = subprocess.Popen(
            ["make", "lab", "BROWSER=0", f"PORT={port}"],
            cwd=ROOT,
            env=OWN,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        url = None
        while url is None and time.perf_counter() - start < 30:
            time.sleep(0.1)
            url = re.search(rf"http://127\.0\.0\.1:{port}/lab\S*token=\w+", log.read_text())
        assert url, log.read_text()
        while not _listens(port) and time.perf_counter() - start < 10:  # it may say where before it does
            time.sleep(0.05)
        assert "/lab/tree/notebooks/00_start_here.ipynb" in url[0]
        assert _status(url[0]) == 200
        assert time.perf_counter() - start < 10
        token = url[0].split("token=")[1]
        assert _status(f"http://127.0.0.1:{port}/api/contents") == 403
        assert _status(f"http://127.0.0.1:{port}/api/contents?token={token}") == 200
        assert "fetching" not in log.read_text()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=20)


def _status(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_lab_listens_on_this_machine_only():
    recipe = _make("--dry-run", "lab").stdout
    assert "--ip=127.0.0.1" in recipe
    assert "token=" not in recipe  # JupyterLab makes a new one at each start


def test_an_old_python_is_told_so():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    check = re.search(r"\$\(PYTHON\) -c '(import sys; .*?)'$", makefile, re.MULTILINE)[1]
    program = "import sys; sys.version_info = (3, 9, 1); sys.version = '3.9.1'; " + check
    done = subprocess.run(["python3", "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed, this is 3.9.1" in done.stderr
