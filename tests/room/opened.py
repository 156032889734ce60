"""A room of the tests' own: its environment and models are the machine's (`ROOM`), the rest is apart."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from student import Student

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(os.environ.get("ROOM", "/opt/inside-language-models"))
FOLDER = PROGRAMS.with_name(f"{PROGRAMS.name}-test")
PREFIX = "roomtest"
MEMORY = "1500M"
STUDENTS = 4
SHARED = ("--folder", str(FOLDER), "--programs", str(PROGRAMS), "--prefix", PREFIX)


def command(name, *arguments):
    """What docs/room/room.py says when it is asked to do this for the tests' room; its exit code."""
    program = [sys.executable, ROOT / "docs" / "room" / "room.py", name, *SHARED, *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=1800)


class Room:
    """An open room."""

    def __init__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def open(self, users=STUDENTS, memory=MEMORY):
        """Open it, with the same code each time. Returns what the teacher is told."""
        done = command(
            *("open", "--users", str(users), "--port", str(self.port), "--code", "one-two-three"),
            *("--memory", memory),
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    @property
    def settings(self):
        """What the room was opened with."""
        return json.loads((FOLDER / "state" / "settings.json").read_text())

    @property
    def address(self):
        """The room's address."""
        return self.settings["ROOM_URL"]

    @property
    def running(self):
        """The ids of the room's own processes, by name."""
        return json.loads((FOLDER / "state" / "running.json").read_text())

    def student(self, name, **more):
        """A student who signs up, or in."""
        return Student(self.address, name, **({"code": self.settings["ROOM_CODE"]} | more))

    def teacher(self):
        """The teacher."""
        return Student(self.address, "teacher", password=self.settings["ROOM_TEACHERS_PASSWORD"])

    def home(self, name):
        """A student's home folder."""
        return FOLDER / "homes" / name

    def unix_name(self, name):
        """A student's user on the machine."""
        return f"{PREFIX}-{name}"

    close = staticmethod(lambda: command("close"))
