"""No student can read, write, signal or look into what belongs to another, or change what belongs to all."""

import json
import os
import re
from pathlib import Path

import httpx
import pytest
from opened import FOLDER, PREFIX, PROGRAMS


@pytest.fixture(scope="module")
def kernel(ada):
    """Ada's kernel, with which she tries things."""
    return ada.open()


@pytest.fixture(scope="module")
def bens(room, ben):
    """Ben's kernel, a notebook of his, and his processes, for Ada to try."""
    ben.save("course/notebooks/mine.ipynb", ["secret = 'of Ben'"])
    kernel = ben.open()
    pid, error = kernel.run("import os; secret = 'of Ben'; open('/tmp/of-ben', 'w').write(secret); print(os.getpid())")
    assert not error
    return kernel, int(pid)


def tries(kernel, code):
    """The error that a try ends in; none is a failure of the room."""
    said, error = kernel.run(code)
    return error or f"NO ERROR: {said}"


@pytest.mark.parametrize(
    "path",
    [
        FOLDER / "homes" / "ben",
        FOLDER / "homes" / "ben" / "course" / "notebooks" / "mine.ipynb",
        FOLDER / "homes",
        FOLDER / "state",
        FOLDER / "state" / "students.json",
        FOLDER / "private" / f"{PREFIX}-ben" / "tmp" / "of-ben",
        Path("/run") / f"{PREFIX}-students" / f"{PREFIX}-ben",
        Path("/etc/shadow"),
    ],
    ids=str,
)
def test_files_of_others_cannot_be_read(kernel, bens, path):
    assert path.exists()
    look = "os.listdir" if path.is_dir() else "open"
    assert "PermissionError" in tries(kernel, f"import os; print({look}({str(path)!r}))")


@pytest.mark.parametrize(
    "folder",
    [
        *(FOLDER / "homes" / "ben", FOLDER / "homes", FOLDER / "git", FOLDER / "git" / "course.git" / "refs"),
        *(PROGRAMS, PROGRAMS / "env" / "bin", PROGRAMS / "models", PROGRAMS / "models" / "smollm2-135m"),
    ],
    ids=str,
)
def test_nothing_can_be_written_in_folders_of_others(kernel, bens, folder):
    assert folder.is_dir()
    assert "PermissionError" in tries(kernel, f"open({str(folder / 'new')!r}, 'w')")


def test_the_shared_models_cannot_be_changed(kernel):
    file = PROGRAMS / "models" / "smollm2-135m" / "model.safetensors"
    before = file.stat()
    assert "PermissionError" in tries(kernel, f"open({str(file)!r}, 'r+b')")
    assert "PermissionError" in tries(kernel, f"import os; os.remove({str(file)!r})")
    assert "PermissionError" in tries(kernel, f"import os; os.chmod({str(file)!r}, 0o777)")
    assert file.stat() == before


def test_processes_of_others_are_neither_seen_nor_stopped(kernel, bens):
    theirs, pid = bens
    assert Path(f"/proc/{pid}").exists()
    said, _ = kernel.run("import os; print(sorted(int(p) for p in os.listdir('/proc') if p.isdigit()))")
    seen = json.loads(said)
    me = os.stat(f"/proc/{seen[0]}").st_uid
    assert seen and all(Path(f"/proc/{one}").stat().st_uid == me for one in seen if Path(f"/proc/{one}").exists())
    for code in (f"os.kill({pid}, 9)", f"os.kill({pid}, 0)", f"open('/proc/{pid}/environ').read()"):
        assert re.match("PermissionError|ProcessLookupError|FileNotFoundError", tries(kernel, f"import os; {code}"))
    attach = f"import ctypes, os; r = ctypes.CDLL(None).ptrace(16, {pid}, 0, 0); assert r == 0, 'not allowed'"
    assert "AssertionError" in tries(kernel, attach)
    assert theirs.run("print(secret)") == ("of Ben\n", "")


def test_temporary_files_are_each_students_own(kernel, bens):
    assert "FileNotFoundError" in tries(kernel, "open('/tmp/of-ben')")
    assert kernel.run("import os; print(oct(os.stat('/dev/shm').st_mode & 0o777))")[0] == "0o700\n"


def test_new_files_and_the_home_are_closed_to_others(room, ada, kernel):
    kernel.run("open('new', 'w').close()")
    assert (room.home("ada") / "course" / "notebooks" / "new").stat().st_mode & 0o077 == 0
    assert room.home("ada").stat().st_mode & 0o777 == 0o700


def test_nobody_becomes_root(kernel):
    said, _ = kernel.run("print(open('/proc/self/status').read())")
    assert re.search(r"NoNewPrivs:\s1", said)
    assert re.search(r"CapEff:\s0{16}", said)


def test_the_server_of_another_is_closed(ada, bens):
    for path in ("api/status", "api/contents/course", "lab", "api/kernels"):
        answer = ada.ask("GET", path, of="ben")
        assert answer.status_code in (403, 404), path
        assert "of Ben" not in answer.text
    assert ada.ask("PUT", "api/contents/x.txt", of="ben", json={}).status_code in (403, 404)
    assert ada.web.get("/user/ben/api/contents").status_code in (403, 404)


def test_the_port_of_anothers_server_is_closed_too(ada, kernel, bens):
    """Students are on the same machine, so they can go round the proxy."""
    (port,) = listening(*of_user(bens[1])) - listening(bens[1])
    code = f"""
import urllib.request
for headers in ({{}}, {{"Authorization": "token {ada.token}"}}):
    request = urllib.request.Request("http://127.0.0.1:{port}/user/ben/api/contents", headers=headers)
    try:
        print(urllib.request.urlopen(request, timeout=20).status)
        break
    except urllib.error.HTTPError as error:
        print(error.code)"""
    said, error = kernel.run(code)
    assert said.split() == ["403", "403"] and not error, said


def of_user(pid):
    """All processes of this process' user."""
    uid = Path(f"/proc/{pid}").stat().st_uid
    return [int(one.name) for one in Path("/proc").glob("[0-9]*") if one.exists() and one.stat().st_uid == uid]


def sockets(*pids):
    """The lines of the tables of TCP for the sockets on which these processes listen."""
    inodes = {os.readlink(fd) for pid in pids for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
    lines = [line.split() for t in ("tcp", "tcp6") for line in Path(f"/proc/net/{t}").read_text().splitlines()[1:]]
    return [line for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in inodes]


def listening(*pids):
    """The TCP ports on which these processes listen."""
    return {int(line[1].partition(":")[2], 16) for line in sockets(*pids)}


def test_a_kernel_takes_no_messages_on_tcp(bens):
    """Its sockets are in the student's own folder. The one port left takes its own children's output, by a secret."""
    assert len(listening(bens[1])) <= 1


def test_the_hubs_api_says_nothing_about_others(ada, bens):
    assert ada.hub("GET", "users").status_code == 403
    assert ada.hub("GET", "users/ben").status_code in (403, 404)
    assert ada.hub("DELETE", "users/ben/server").status_code in (403, 404)
    assert ada.hub("POST", "users/ben/tokens").status_code in (403, 404)
    assert ada.hub("POST", "shutdown").status_code == 403
    assert ada.hub("GET", "proxy").status_code == 403


def test_the_proxys_own_door_wants_its_token(room, kernel):
    address = f"http://127.0.0.1:{room.settings['ROOM_PROXY_PORT']}/api/routes"
    code = f"import urllib.request; urllib.request.urlopen({address!r}, timeout=20)"
    assert "HTTP Error 403" in tries(kernel, code)


def test_only_this_machine_is_listened_on(room, ada, bens):
    """No port of the room, and none of a student, is open to another machine unless ADDRESS says so."""
    found = sockets(*room.running.values(), *of_user(bens[1]))
    assert len(found) >= 4
    assert [line for line in found if not line[1].startswith("0100007F:")] == []
    other = next((a for a in os.popen("hostname -I").read().split() if ":" not in a), None)
    if other:
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://{other}:{room.port}", timeout=5)
