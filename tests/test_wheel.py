"""The package as `pip install` gives it, without its repository: everything it needs comes along."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools")
ROOT = Path(__file__).parents[1]
PROGRAM = """
import helpers
from helpers.glossary import load_glossary
from helpers.models import models_dir
from helpers.text import load_prompts
assert helpers.__file__.startswith({target!r}), helpers.__file__
assert load_glossary() and all(load_prompts(name) for name in {prompts!r})
model, processor = helpers.load_model("tiny-glm4v"), helpers.load_processor("tiny-glm4v")
assert helpers.memory_plan("tiny-glm4v").weights_bytes == 4 * model.num_parameters()
assert not str(models_dir()).startswith({target!r})
print("complete")
"""


def test_a_built_wheel_is_complete(tmp_path):
    """Built and unpacked by pip, from a copy of what git knows, into a folder of its own."""
    copy, target = tmp_path / "copy", tmp_path / "target"
    copy.mkdir()
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if files.returncode:
        pytest.skip("needs the repository")
    subprocess.run(
        ["tar", "--create", "--null", "--files-from=-", f"--file={tmp_path / 'files.tar'}"],
        **{"cwd": ROOT, "input": files.stdout, "check": True},
    )
    subprocess.run(["tar", "--extract", f"--file={tmp_path / 'files.tar'}"], cwd=copy, check=True)
    offline = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            f"--target={target}",
            ".",
        ],
        **{"cwd": copy, "env": offline, "check": True},
    )
    environment = {name: value for name, value in offline.items() if name != "HELPERS_MODELS"}
    names = [path.stem for path in (ROOT / "data" / "prompts").glob("*.txt")]
    program = PROGRAM.format(target=str(target), prompts=names)
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        **{"cwd": tmp_path, "env": environment | {"PYTHONPATH": str(target)}, "capture_output": True, "text": True},
    )
    assert done.stdout.strip() == "complete", done.stderr
