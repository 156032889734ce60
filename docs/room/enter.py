"""Becomes a student and starts a program: `enter.py [--doors] [--join GROUP] USER -- PROGRAM …`.

The hub runs it as root. First it joins the student's control groups, and with `--doors`, in a
mount namespace of its own, it

- mounts a /proc that shows the student nobody else's processes,
- gives the student a /tmp, a /var/tmp and a /dev/shm of its own.

Afterwards nothing that the student starts can become another user again (`no_new_privs`), and files that the student
makes are readable by the student alone. The course is brought up to date in the student's home on the way.
"""

import argparse
import ctypes
import os
import pwd
import subprocess
import sys
from pathlib import Path

PR_SET_NO_NEW_PRIVS = 38
PATIENCE = 60  # seconds that the update of the course may take


def main() -> None:
    """Never returns: the program takes this one's place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--doors", action="store_true")
    parser.add_argument("--join", action="append", default=[])
    parser.add_argument("user")
    parser.add_argument("program", nargs="+")
    options = parser.parse_args()
    user = pwd.getpwnam(options.user)
    for group in options.join:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    private_folder(Path(os.environ["JUPYTER_RUNTIME_DIR"]), user)
    if options.doors:
        shut_doors(user, Path(os.environ["ROOM_PRIVATE"]) / user.pw_name)
    become(user)
    update_course()
    os.execvp(options.program[0], options.program)


def private_folder(folder: Path, user: pwd.struct_passwd) -> Path:
    """A folder that is the student's own, made where there is none.

    The folder that holds it has to be root's: in one of the student's, a link could lead root anywhere.
    """
    folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    os.chown(folder, user.pw_uid, user.pw_gid)
    return folder


def shut_doors(user: pwd.struct_passwd, private: Path) -> None:
    """Own /proc and own folders for temporary files, for this process and all that it starts."""
    mount("-t", "proc", "-o", "hidepid=2", "proc", "/proc")
    mount("-t", "tmpfs", "-o", f"mode=0700,uid={user.pw_uid},gid={user.pw_gid}", "tmpfs", "/dev/shm")
    for shared in ("/tmp", "/var/tmp"):
        mount("--bind", str(private_folder(private / shared.strip("/").replace("/", "-"), user)), shared)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def become(user: pwd.struct_passwd) -> None:
    """The student, for good."""
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs cannot be set")
    os.umask(0o077)
    os.chdir(user.pw_dir)


def update_course() -> None:
    """The teacher's pages, merged into the student's own. Whatever goes wrong is in a file, and the server starts."""
    command = [str(Path(sys.executable).with_name("gitpuller")), os.environ["ROOM_COURSE"], "course", "course"]
    try:
        with open(".course-update.log", "w", encoding="utf-8") as log:
            subprocess.run(command, stdout=log, stderr=log, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"The course was not brought up to date: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
