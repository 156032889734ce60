"""The students' accounts: each is a real Unix user with a home folder that nobody else can open.

Ada is called `ada` in the room and `room-ada` on the machine, so that no student can take the name of a user that
exists already. Every account of the room is in one Unix group, which is how `make workshop-stop` knows them.
"""

import contextlib
import grp
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

PREFIX = os.environ.get("ROOM_PREFIX", "room")
GROUP = f"{PREFIX}-students"
CGROUPS = Path("/sys/fs/cgroup")
NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")  # what useradd takes on every system, with the prefix before it


def unix_name(student: str) -> str:
    """The Unix user of a student of the room."""
    return f"{PREFIX}-{student}"


def create(student: str, homes: Path) -> pwd.struct_passwd:
    """The student's Unix user, made when there is none. Raises `ValueError` when the name is not free."""
    name = unix_name(student)
    if not NAME.fullmatch(student):
        raise ValueError("A name has 1 to 20 small letters a to z, digits and hyphens, and begins with a letter.")
    with contextlib.suppress(KeyError):
        user = pwd.getpwnam(name)
        if name not in grp.getgrnam(GROUP).gr_mem:
            raise ValueError(f"The name {student} is not free on this machine: choose another.")
        return user
    subprocess.run(["groupadd", "--force", GROUP], check=True)
    homes.mkdir(parents=True, exist_ok=True, mode=0o711)
    home = homes / student
    subprocess.run(
        [
            *("useradd", "--no-log-init", "--create-home", "--home-dir", home, "--key", "HOME_MODE=0700"),
            *("--user-group", "--groups", GROUP, "--shell", "/bin/bash", name),
        ],
        check=True,
    )
    home.chmod(0o700)
    return pwd.getpwnam(name)


def everyone() -> dict[str, pwd.struct_passwd]:
    """Student -> Unix user, of everyone who has an account in this room."""
    try:
        members = grp.getgrnam(GROUP).gr_mem
    except KeyError:
        return {}
    return {name.removeprefix(f"{PREFIX}-"): pwd.getpwnam(name) for name in members}


def processes() -> list[int]:
    """The ids of all processes that run as a student; not those that have ended and wait to be noticed."""
    uids = {user.pw_uid for user in everyone().values()}
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            if uids & set(map(int, fields["Uid"].split())) and fields["State"].split()[0] != "Z":
                found.append(int(status.parent.name))
    return found


def end_all(patience: float = 20.0) -> int:
    """End every process of every student: politely, and after `patience` seconds without asking. How many there were.

    A server that is asked to end ends its kernels too, which takes some seconds.
    """
    first = processes()
    deadline = time.monotonic() + patience
    for number in first:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGTERM)
    while (left := processes()) and time.monotonic() < deadline + patience:
        if time.monotonic() > deadline:
            for number in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
        time.sleep(0.1)
    return len(first)


def remove_control_groups() -> None:
    """Remove the empty groups that held the students' limits, where the room made them itself (see servers.py)."""
    for parent in (CGROUPS, CGROUPS / "memory", CGROUPS / "cpu"):
        for folder in (*parent.glob(f"{GROUP}/*/"), parent / GROUP):
            with contextlib.suppress(OSError):  # not there, or the system has not noticed yet that it is empty
                folder.rmdir()


def remove_all() -> None:
    """Delete every account of the room, with its home folder and everything in it."""
    for user in everyone().values():
        subprocess.run(["userdel", user.pw_name], check=True)
        shutil.rmtree(user.pw_dir, ignore_errors=True)
    subprocess.run(["groupdel", GROUP], check=False, capture_output=True)
