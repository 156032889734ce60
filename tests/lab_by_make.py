"""`make` and `make lab` as a reader starts them, for the tests of README's commands."""

import os
import re
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# When make runs the tests, its own flags must not reach the make that a test runs.
OWN = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


def make(*arguments):
    """`make` with these arguments, done."""
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=OWN)


@contextmanager
def serving_lab(log, *, patience=120):
    """`make lab` on a free port, its output in the file `log`: (URL with its token, seconds until it listened)."""
    port, start = _free_port(), time.perf_counter()
    command = ["make", "lab", "BROWSER=0", f"PORT={port}"]
    with open(log, "w") as out:
        server = subprocess.Popen(command, cwd=ROOT, env=OWN, stdout=out, stderr=out, start_new_session=True)
    try:
        url = None
        while not (url and _listens(port)):  # it may say where it is before it listens
            assert time.perf_counter() - start < patience, log.read_text()
            time.sleep(0.05)
            url = re.search(rf"http://127\.0\.0\.1:{port}/lab\S*token=\w+", log.read_text())
        yield url[0], time.perf_counter() - start
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=20)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
