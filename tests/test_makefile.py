"""What `make` and `.ci/run` hand to the programs they start."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="runs make")


@pytest.mark.parametrize(("readers", "labs"), [(None, "unset"), ("1", "1"), ("0", "0")])
def test_the_lab_is_offline_only_if_the_reader_says_so(tmp_path, readers, labs):
    """Tests and notebooks run offline; a reader's own notebook may download, unless the reader set the switch."""
    programs = {"python": "exit 0", "jupyter": 'echo "HF_HUB_OFFLINE is ${HF_HUB_OFFLINE-unset}, started $1"'}
    (tmp_path / "bin").mkdir()
    for name, does in programs.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{does}\n")
        program.chmod(0o755)
    (tmp_path / ".installed").touch()  # as after `make setup`
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    if readers is not None:
        environment["HF_HUB_OFFLINE"] = readers
    done = subprocess.run(
        ["make", "--silent", "-C", str(ROOT), "lab", f"VENV={tmp_path}"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert f"HF_HUB_OFFLINE is {labs}, started lab" in done.stdout


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="runs bash")
@pytest.mark.parametrize("has_browser", [True, False])
def test_ci_tests_as_on_a_newcomers_machine_and_then_with_a_browser(tmp_path, has_browser):
    fonts = 'fonts: $([ "$MPLCONFIGDIR" ] && cat "$MPLCONFIGDIR/fonts" || echo "all")'
    programs = {
        "make": f'[ "$1" = setup ] || echo "$1: {fonts}, browser: ${{PLAYWRIGHT_CHROMIUM-of the PATH}}"',
        "id": "echo 0",
        "apt-get": 'echo "apt-get $1"',
        "timeout": 'shift; "$@"',
        "python": 'echo "none but its own ($MPL_IGNORE_SYSTEM_FONTS)" > "$MPLCONFIGDIR/fonts"',
    }
    folder = tmp_path / ".venv" / "bin"  # the only folder of the PATH: no other program is found, such as a chromium
    folder.mkdir(parents=True)
    for name, does in (programs | ({"chromium": ""} if has_browser else {})).items():
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    for name in ("bash", "sh", "cat", "dirname", "mktemp", "rm", "env"):
        (folder / name).symlink_to(shutil.which(name))
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    done = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True, env={"PATH": str(folder)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "test: fonts: none but its own (1), browser: ",
        *([] if has_browser else ["apt-get update", "apt-get install"]),
        "test-browser: fonts: all, browser: of the PATH",
        "lint: fonts: all, browser: of the PATH",  # with lint-js and test-js: one call
    ]
