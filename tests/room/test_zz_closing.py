"""Closing the room ends everything, and opening it again finds everything where it was. These tests come last."""

import socket
from pathlib import Path

from opened import PREFIX, command


def processes_of_students():
    """Command lines of everything that runs as a student."""
    import grp
    import pwd

    uids = {pwd.getpwnam(name).pw_uid for name in grp.getgrnam(f"{PREFIX}-students").gr_mem}
    folders = [one for one in Path("/proc").glob("[0-9]*") if one.exists() and one.stat().st_uid in uids]
    lines = [(one / "cmdline").read_bytes().replace(b"\0", b" ") for one in folders]
    return [line for line in lines if line]  # those that have ended have none


def test_closing_ends_everything_and_opening_brings_it_back(room, ada):
    kernel = ada.open("course/notebooks/last.ipynb")
    assert ada.save("course/notebooks/last.ipynb", ["answer_1 = 7"]) in (200, 201)
    hidden = "import subprocess; subprocess.Popen(['sleep', '10000'], start_new_session=True); print('started')"
    assert kernel.run(hidden)[0] == "started\n"
    assert any(b"sleep 10000" in line for line in processes_of_students())
    own = list(room.running.values())
    done = room.close()
    assert done.returncode == 0, done.stderr
    assert processes_of_students() == []
    assert [pid for pid in own if Path(f"/proc/{pid}").exists()] == []
    with socket.socket() as door:
        assert door.connect_ex(("127.0.0.1", room.port)) != 0
    assert not (Path("/run") / f"{PREFIX}-students").exists()
    assert "not open" in room.close().stdout, "closing twice does no harm"

    room.said = room.open()
    again = room.student("ada", code="")
    again.start()
    assert again.sources("course/notebooks/last.ipynb") == ["answer_1 = 7"]


def test_an_open_room_is_not_opened_twice(room):
    done = command("open", "--port", "1")
    assert done.returncode == 1
    assert "open already" in done.stderr or "cannot be used" in done.stderr


def test_accounts_are_not_deleted_by_accident(room):
    done = command("remove")
    assert done.returncode == 1 and "--yes" in done.stderr
