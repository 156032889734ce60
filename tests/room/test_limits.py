"""Each way of limiting a student gets what it understands; `test_lasting.py` tries the one that this machine has."""

import importlib.util
import subprocess
import sys
import types

import pytest
from opened import ROOT


@pytest.fixture
def servers(monkeypatch):
    """docs/room/servers.py, without JupyterHub, which is in the room's own environment."""
    spawner = types.ModuleType("jupyterhub.spawner")
    spawner.LocalProcessSpawner = object
    monkeypatch.setitem(sys.modules, "jupyterhub", types.ModuleType("jupyterhub"))
    monkeypatch.setitem(sys.modules, "jupyterhub.spawner", spawner)
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "room"))
    spec = importlib.util.spec_from_file_location("room_servers", ROOT / "docs" / "room" / "servers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("accounts", None)


@pytest.mark.parametrize(("version", "policy"), [(252, False), (255, True)])
def test_systemd_is_asked_for_memory_processors_and_an_equal_share(servers, monkeypatch, version, policy):
    monkeypatch.setattr(servers, "limits_by", lambda: "systemd")
    monkeypatch.setattr(servers, "_systemd_version", lambda: version)
    command, groups = servers.limited("room-ada", 3 * 2**30, 1.5)
    assert command[:2] == ["systemd-run", "--scope"] and command[-1] == "--" and groups == []
    properties = {word.removeprefix("--property=") for word in command if word.startswith("--property=")}
    expected = {"MemoryMax=3221225472", "MemorySwapMax=0", "CPUQuota=150%", "CPUWeight=100"}
    assert properties == expected | ({"OOMPolicy=continue"} if policy else set())


@pytest.mark.parametrize(
    ("said", "holds"),
    [("67108864\n50000 100000\n", True), ("67108864\n50000\n", True), ("max\nmax 100000\n", False), ("", False)],
    ids=["cgroup 2", "cgroup 1", "no controllers", "nothing"],
)
def test_systemd_counts_only_where_a_scope_has_the_limits_it_asked_for(servers, monkeypatch, said, holds):
    """In a container systemd often runs without the controllers: it then takes each limit and sets none."""
    asked = []
    monkeypatch.setattr(
        servers.subprocess, "run", lambda *of, **_: asked.append(of) or types.SimpleNamespace(stdout=said)
    )
    assert [servers._systemd_holds_limits() for _ in range(2)] == [holds, holds]
    assert len(asked) == 1, "it is tried once, not for each student"


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/system.slice/a.scope", {"system.slice/a.scope": {"memory.max": "7", "cpu.max": "9 100000"}}),
        (
            "5:memory:/a\n4:cpu,cpuacct:/b\n1:name=systemd:/c\n0::/c",
            {"memory/a": {"memory.limit_in_bytes": "7"}, "cpu,cpuacct/b": {"cpu.cfs_quota_us": "9"}},
        ),
    ],
    ids=["cgroup 2", "cgroup 1"],
)
def test_a_shell_prints_its_own_limits(servers, tmp_path, groups, files):
    own = tmp_path / "own"
    own.write_text(groups + "\n")
    for folder, contents in files.items():
        (tmp_path / folder).mkdir(parents=True)
        for name, text in contents.items():
            (tmp_path / folder / name).write_text(text + "\n")
    lines = servers.OWN_LIMITS.replace("/sys/fs/cgroup", str(tmp_path)).replace("/proc/self/cgroup", str(own))
    said = subprocess.run(["sh", "-c", lines], capture_output=True, text=True).stdout.split()
    assert said[:2] == ["7", "9"]


def test_closing_removes_the_groups_that_the_room_made(servers, monkeypatch, tmp_path):
    accounts = servers.accounts
    monkeypatch.setattr(accounts, "CGROUPS", tmp_path)
    own = [tmp_path / accounts.GROUP, tmp_path / "memory" / accounts.GROUP, tmp_path / "cpu" / accounts.GROUP]
    others = tmp_path / "memory" / "others"
    for folder in (*(one / "room-ada" for one in own), others):
        folder.mkdir(parents=True)
    accounts.remove_control_groups()
    assert [folder for folder in own if folder.exists()] == [] and others.exists()


@pytest.mark.parametrize("kind", ["cgroup 1", "cgroup 2"])
def test_control_groups_are_made_and_written(servers, monkeypatch, tmp_path, kind):
    monkeypatch.setattr(servers, "limits_by", lambda: kind)
    monkeypatch.setattr(servers, "CGROUPS", tmp_path)
    mother = servers.accounts.GROUP
    names = {"cgroup 1": ("memory.limit_in_bytes", "cpu.cfs_quota_us"), "cgroup 2": ("memory.max", "cpu.max")}[kind]
    folders = [tmp_path / "memory" / mother / "room-ada", tmp_path / "cpu" / mother / "room-ada"]
    folders = folders if kind == "cgroup 1" else [tmp_path / mother / "room-ada"] * 2
    for folder, name in zip(folders, names, strict=True):  # which the system makes with the folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    command, groups = servers.limited("room-ada", 2**30, 2)
    assert command == [] and groups == list(dict.fromkeys(map(str, folders)))
    written = [(folder / name).read_text() for folder, name in zip(folders, names, strict=True)]
    assert written == ["1073741824", "200000" if kind == "cgroup 1" else "200000 100000"]


def test_where_nothing_can_limit_nothing_is_pretended(servers, monkeypatch):
    monkeypatch.setattr(servers, "limits_by", lambda: "")
    assert servers.limited("room-ada", 2**30, 2) == ([], [])
