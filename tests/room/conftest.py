"""A room with real users: opened once for all tests of this folder, and removed at the end with its users.

It takes root. Its environment and models are those of the machine's room (`ROOM`, made when missing, which takes
minutes); its homes, users and ports are its own.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest
from opened import FOLDER, Room, command


def pytest_collection_modifyitems(items):
    """Tests that need a room are skipped where there can be none."""
    reason = (
        "the room needs Linux"
        if sys.platform != "linux"
        else "the room needs root, to make users"
        if os.geteuid()
        else "the room needs useradd"
        if shutil.which("useradd") is None
        else ""
    )
    for item in items:
        if reason and Path(__file__).parent in item.path.parents and "room" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def room():
    """The room, open."""
    command("remove", "--yes")  # what a run that was killed has left
    shutil.rmtree(FOLDER, ignore_errors=True)
    one = Room()
    try:
        one.said = one.open()
        yield one
    finally:
        done = command("remove", "--yes")
        assert done.returncode == 0, done.stderr
        shutil.rmtree(FOLDER)


@pytest.fixture(scope="session")
def ada(room):
    """A student with a server."""
    student = room.student("ada")
    student.start()
    return student


@pytest.fixture(scope="session")
def ben(room):
    """Another one."""
    student = room.student("ben")
    student.start()
    return student
