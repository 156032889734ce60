"""No answer is lost: not when the hub is killed, not when the disk is full, not when a neighbour eats all memory."""

import contextlib
import os
import signal
import subprocess
import time

import httpx
import pytest
from opened import MEMORY

PAGE = "course/notebooks/answers.ipynb"
OWN_LIMITS = """
from pathlib import Path
for line in open("/proc/self/cgroup"):
    _, controllers, group = line.strip().split(":", 2)
    for name in ("memory.max", "memory.limit_in_bytes", "cpu.max", "cpu.cfs_quota_us"):
        file = Path("/sys/fs/cgroup", controllers, group.lstrip("/"), name)
        print(file.read_text() if file.exists() else "")
"""


def until(seconds, what):
    """Wait until `what()` is true."""
    end = time.monotonic() + seconds
    while not (done := what()) and time.monotonic() < end:
        time.sleep(0.2)
    return done


def hub_answers(room):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{room.address}/hub/health", timeout=5).status_code == 200


@pytest.mark.parametrize("name", ["hub", "proxy"])
def test_a_killed_hub_or_proxy_comes_back_and_nobody_notices_much(room, ada, name):
    kernel = ada.open(PAGE)
    kernel.run("kept = 42")
    saved = ["answer_1 = 42"]
    assert ada.save(PAGE, saved) in (200, 201)
    before = room.running[name]
    os.kill(before, signal.SIGKILL)
    if name == "hub":
        assert kernel.run("print(kept)") == ("42\n", ""), "the kernel and the connection to it go on without the hub"
        saved = ["answer_1 = 43"]
        assert ada.save(PAGE, saved) == 200, "so does saving"
    assert until(90, lambda: room.running[name] != before and hub_answers(room))
    assert until(60, lambda: ada.ask("GET", "api/status").status_code == 200), "the new proxy learns the way again"
    assert ada.open(PAGE).run("print(kept)") == ("42\n", ""), "the same kernel is there after it"
    assert ada.sources(PAGE) == saved
    room.student("ada", code="")  # signing in works again


def test_a_full_disk_loses_no_saved_answer(room):
    """Cleo's home is a disk of its own, which she fills."""
    cleo = room.student("cleo")
    home = room.home("cleo")
    settings = f"size=150m,uid={home.stat().st_uid},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", settings, "tmpfs", home], check=True)
    try:
        cleo.start()
        kernel = cleo.open(PAGE)
        assert cleo.save(PAGE, ["answer_1 = 1"]) == 201
        kernel.run("from helpers import check; check('00.1', 3 * 7 * 49_152)")
        _, error = kernel.run("f = open('big', 'wb', buffering=0)\nwhile True: f.write(b'0' * 65536)")
        assert "No space left" in error
        assert cleo.save(PAGE, [f"answer_1 = {'2' * 100_000}"]) >= 500, "the page says that it could not be saved"
        assert cleo.sources(PAGE) == ["answer_1 = 1"]
        said, _ = kernel.run("check('00.2', ' Rome')")
        assert "right!" in said and "could not be saved" in said
        kernel.run("f.close(); import os; os.remove('big')")
        assert "Exercises solved: 1 of" in kernel.run("from helpers import show_progress; show_progress()")[0]
        assert cleo.save(PAGE, ["answer_1 = 2"]) == 200
        assert cleo.sources(PAGE) == ["answer_1 = 2"]
    finally:
        cleo.stop()
        until(60, lambda: subprocess.run(["umount", home]).returncode == 0)


def test_a_student_has_the_limits_that_the_teacher_is_told(room, ada):
    if "held by" not in room.said:
        pytest.skip("neither systemd nor control groups can be used here, so nothing is limited")
    said, error = ada.open(PAGE).run(OWN_LIMITS)
    assert error == ""
    memory, quota = int(MEMORY.removesuffix("M")) * 2**20, int(float(room.settings["ROOM_CPUS"]) * 100_000)
    assert {str(memory), str(quota)} <= set(said.split())


def test_a_kernel_that_eats_memory_takes_nobody_down(room, ada, ben):
    if "held by" not in room.said:
        pytest.skip("neither systemd nor control groups can be used here, so nothing is limited")
    neighbour, eater = ada.open(PAGE), ben.open("course/notebooks/eats.ipynb")
    neighbour.run("kept = 42")
    ben.save("course/notebooks/eats.ipynb", ["answer_1 = 1"])
    _, error = eater.run("eaten = []\nwhile True: eaten.append(bytearray(50_000_000))")
    assert error == "the kernel died"
    assert neighbour.run("print(kept)") == ("42\n", "")
    assert ben.ask("GET", "api/status").status_code == 200, "his own server is alive, too"
    assert ben.sources("course/notebooks/eats.ipynb") == ["answer_1 = 1"]
