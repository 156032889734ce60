"""What `make` hands to the programs it starts."""

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
