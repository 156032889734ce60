"""How a student's JupyterLab is started: as the student's own Unix user, apart from the others, within its limits.

The hub starts, as root, `enter.py`, which shuts the doors (see there), becomes the student and turns into JupyterLab.
Limits of memory and processors are set by systemd where it runs the machine and can hold them, else by control groups
where root may make them. Where neither is possible there are no limits, and `make workshop` says so.
"""

import functools
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import accounts
from jupyterhub.spawner import LocalProcessSpawner

HERE = Path(__file__).parent
CGROUPS = accounts.CGROUPS
CPU_PERIOD = 100_000  # microseconds
CPU_SHARES = 1024  # of everyone alike, so that students who work share what there is
# With these lines a shell prints its own limits, in cgroup 2 as in cgroup 1, which has a group per controller.
OWN_LIMITS = """
while IFS=: read -r _ controllers group; do
    cd "/sys/fs/cgroup/$controllers/$group" && cat memory.max memory.limit_in_bytes cpu.max cpu.cfs_quota_us
done < /proc/self/cgroup
"""


def limits_by() -> str:
    """What can limit a student's memory and processors here: "systemd", "cgroup 2", "cgroup 1" or "" for nothing."""
    if Path("/run/systemd/system").is_dir() and shutil.which("systemd-run") and _systemd_holds_limits():
        return "systemd"
    if (CGROUPS / "cgroup.controllers").exists():
        has = (CGROUPS / "cgroup.subtree_control").read_text().split()
        return "cgroup 2" if {"memory", "cpu"} <= set(has) and os.access(CGROUPS, os.W_OK) else ""
    return "cgroup 1" if os.access(CGROUPS / "memory", os.W_OK) and os.access(CGROUPS / "cpu", os.W_OK) else ""


def can_shut_doors() -> bool:
    """Whether a student's processes can have their own /proc and /tmp: Linux 5.8, and root may unshare mounts."""
    version = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    program = ["unshare", "--mount", "mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"]
    return version >= (5, 8) and subprocess.run(program, capture_output=True).returncode == 0


def limited(name: str, memory: int, cpus: float) -> tuple[list[str], list[str]]:
    """What to write before the command, and the control groups that `enter.py` has to join, so that limits hold.

    `memory` in bytes, `cpus` in processors; 0 of either sets no limit.
    """
    by = limits_by()
    if by == "systemd":
        settings = [f"MemoryMax={memory}", "MemorySwapMax=0"] if memory else []
        settings += [f"CPUQuota={cpus:.0%}"] if cpus else []
        # From 253 on systemd ends the whole group when one process ran out of memory, unless told otherwise.
        settings += ["OOMPolicy=continue"] if _systemd_version() >= 253 else []
        properties = [f"--property={setting}" for setting in [*settings, "CPUWeight=100"]]
        command = ["systemd-run", "--scope", "--quiet", "--collect", f"--unit={name}-{os.urandom(4).hex()}"]
        return [*command, *properties, "--"], []
    groups = {}  # folder -> file -> content
    if by == "cgroup 2":
        groups[CGROUPS / accounts.GROUP / name] = {
            "memory.max": memory or "max",
            "memory.swap.max": 0 if memory else "max",
            "cpu.max": f"{int(cpus * CPU_PERIOD)} {CPU_PERIOD}" if cpus else "max",
        }
    elif by == "cgroup 1":
        groups[CGROUPS / "memory" / accounts.GROUP / name] = {"memory.limit_in_bytes": memory or -1}
        groups[CGROUPS / "cpu" / accounts.GROUP / name] = {
            "cpu.shares": CPU_SHARES,
            "cpu.cfs_period_us": CPU_PERIOD,
            "cpu.cfs_quota_us": int(cpus * CPU_PERIOD) if cpus else -1,
        }
    for folder, files in groups.items():
        folder.mkdir(parents=True, exist_ok=True)
        if by == "cgroup 2":
            (folder.parent / "cgroup.subtree_control").write_text("+memory +cpu")
        for file, content in files.items():
            if (folder / file).exists():  # no swap is counted where there is none
                (folder / file).write_text(str(content))
    return [], [str(folder) for folder in groups]


@functools.cache
def _systemd_holds_limits() -> bool:
    """Whether a scope of systemd really has the limits that it was asked for, which is tried once.

    In many containers systemd runs without the controllers of memory and processors. It then takes every limit, sets
    none, and does not say so.
    """
    memory, quota = 2**26, CPU_PERIOD // 2
    properties = [f"--property=MemoryMax={memory}", f"--property=CPUQuota={quota / CPU_PERIOD:.0%}"]
    probe = ["systemd-run", "--scope", "--quiet", "--collect", *properties, "--", "sh", "-c", OWN_LIMITS]
    said = subprocess.run(probe, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.split()
    return str(memory) in said and str(quota) in said


def _systemd_version() -> int:
    said = subprocess.run(["systemctl", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"\d+", said)
    return int(found[0]) if found else 0


class StudentServer(LocalProcessSpawner):
    """Starts JupyterLab as the student, through `enter.py`."""

    def make_preexec_fn(self, name: str) -> None:
        """Nothing: `enter.py` becomes the student, once it has shut the doors."""
        return None

    def user_env(self, env: dict[str, str]) -> dict[str, str]:
        """What a login would set, for the student's Unix user."""
        user = accounts.everyone()[self.user.name]
        private = f"/run/{accounts.GROUP}/{user.pw_name}"  # short: a socket's path has at most 107 characters
        return env | {
            "USER": user.pw_name,
            "LOGNAME": user.pw_name,
            "HOME": user.pw_dir,
            "SHELL": user.pw_shell,
            "XDG_RUNTIME_DIR": private,
            "JUPYTER_RUNTIME_DIR": private,
        }

    async def start(self) -> tuple[str, int]:
        """The address of the student's server."""
        name = accounts.unix_name(self.user.name)
        before, groups = limited(name, self.mem_limit or 0, self.cpu_limit or 0)
        doors = ["unshare", "--mount", "--propagation", "private"] if can_shut_doors() else []
        join = [word for group in groups for word in ("--join", group)]
        enter = [sys.executable, "-I", str(HERE / "enter.py"), *(["--doors"] if doors else []), *join, name, "--"]
        self.cmd = [*before, *doors, *enter, str(Path(sys.executable).with_name("jupyterhub-singleuser"))]
        return await super().start()
