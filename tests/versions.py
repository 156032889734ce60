"""The course against another transformers: `make test-latest` and `make test-oldest`.

Builds a throw-away environment over the course's own one, with the newest transformers there is (also
beyond the range of pyproject.toml) or the oldest that the range allows, runs the anchors of
`show_source`, the unit tests and the notebooks in it, and prints what would break.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_UNIT = ("notebooks", "browser", "engines", "measured", "book", "room", "test_readme.py")
PARALLEL = ["--numprocesses=2", "--dist=worksteal"]
SUITES = {
    "anchors of show_source": ["tests/notebooks/test_anchors.py"],
    "unit tests": ["tests", *(f"--ignore=tests/{part}" for part in NOT_UNIT)],
    "notebooks": ["tests/notebooks/test_notebooks.py"],
}
# What is installed differs from the lock here on purpose.
NOT_HERE = "not test_what_is_installed_is_what_is_locked"


def oldest():
    """The lower end of the range in pyproject.toml, such as "5.20.0"."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (line,) = (line for line in project["dependencies"] if line.startswith("transformers"))
    lower = re.search(r">=([\d.]+)", line)[1]
    return lower + ".0" * (2 - lower.count("."))


def build(folder, requirement):
    """An environment in `folder` that sees the course's packages, but this transformers. Its python."""
    venv.create(folder, with_pip=False)
    paths = {"base": folder, "platbase": folder}
    site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    (site / "course.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    python = Path(sysconfig.get_path("scripts", "venv", vars=paths)) / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--upgrade", requirement]
    subprocess.run(install, check=True, stderr=subprocess.DEVNULL)
    return python


def main(which):
    """Exit code: how many of the three suites have something that breaks."""
    requirement = {"latest": "transformers", "oldest": f"transformers=={oldest()}"}[which]
    broken = {}
    with tempfile.TemporaryDirectory() as folder:
        python = build(folder, requirement)
        ask = "import transformers; print(transformers.__version__)"
        version = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
        print(f"transformers {version}:", flush=True)
        for name, arguments in SUITES.items():
            command = [python, "-m", "pytest", "-q", "-rfE", "--tb=short", "-k", NOT_HERE, *PARALLEL, *arguments]
            one_each = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=one_each)
            print(f"- {name}: {done.stdout.strip().splitlines()[-1]}", flush=True)
            if done.returncode:
                broken[name] = done.stdout
    for name, output in broken.items():
        print(f"\nWould break with transformers {version}, {name}:")
        print("\n".join(line for line in output.splitlines() if line.startswith(("FAILED", "ERROR", "E  "))))
    if not broken:
        print("Nothing would break.")
    return len(broken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
