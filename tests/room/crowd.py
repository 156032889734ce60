"""How many students a machine takes: `make bench-room` fills rooms with 1, 4, 8 and 16 of them and writes the table.

Each student signs up, starts a server and runs the notebooks from top to bottom, cell by cell, through the proxy, as a
browser does. The first student begins with the first notebook, the second with the second and so on, so that all of
them run at once. The results go into docs/room/table.json, and from there into docs/room/README.md.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from opened import ROOT, Room, command

NOTEBOOKS = ("03", "05", "06")
JSON = ROOT / "docs" / "room" / "table.json"
PAGE = ROOT / "docs" / "room" / "README.md"
BEGIN, END = "<!-- table.json, by make bench-room -->", "<!-- end of the table -->"
EVERY = 3.0  # seconds between two looks at the memory
ALONE = ROOT / "docs" / "room" / "alone.json"
BINDER = ROOT / "docs" / "room" / "binder.md"
BINDER_BYTES = 2_000_000_000  # of memory, the most that mybinder.org gives
PATIENCE = 1800  # seconds that one cell may take in a crowd
CLASS = 30
USED = 0.7  # of a machine's memory, so that the system has the rest
CORE_HOUR = 0.05  # US dollars for a core with 4 GB of memory, rented by the hour


def cells(number):
    """(index, code, may raise) of each code cell of a notebook."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    notebook = nbformat.read(path, as_version=4)
    found = [(n, c.source, "raises-exception" in c.metadata.get("tags", [])) for n, c in enumerate(notebook.cells)]
    return path.name, [one for one in found if notebook.cells[one[0]].cell_type == "code"]


class Memory(threading.Thread):
    """Looks at the memory of every student's processes (PSS: shared pages are divided) until it is told to stop."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peaks, self.doing, self.together, self._over = {}, {}, 0, threading.Event()

    def run(self):
        """Keep the largest value of each server, and of each kernel by the notebook that it runs."""
        while not self._over.wait(EVERY):
            together = 0
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError, StopIteration):
                    line = (folder / "cmdline").read_bytes()
                    if b"jupyterhub-singleuser" in line:
                        key = ("server", folder.stat().st_uid)
                    elif b"ipykernel_launcher" in line:
                        key = ("kernel", self.doing.get(folder.stat().st_uid, ""))
                    else:
                        continue
                    pss = (folder / "smaps_rollup").read_text().splitlines()
                    size = next(int(one.split()[1]) for one in pss if one.startswith("Pss:")) * 1024
                    self.peaks.setdefault(key, []).append(size)
                    together += size
            self.together = max(self.together, together)

    def stop(self):
        """Stop looking."""
        self._over.set()
        self.join()


def meminfo(field):
    """Bytes, from /proc/meminfo."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def run_notebook(student, uid, number, memory):
    """One student runs one notebook. Returns the seconds of each cell, the kernel's CPU seconds, and failures."""
    name, code = cells(number)
    kernel = student.open(f"course/notebooks/{name}", PATIENCE)
    memory.doing[uid] = number
    seconds, failures, began = [], [], time.monotonic()
    for index, source, may_raise in code:
        start = time.monotonic()
        _, error = kernel.run(source)
        seconds.append(time.monotonic() - start)
        if error and not may_raise:
            failures.append(f"{student.name}, {number}, cell {index}: {error[:200]}")
        if error == "the kernel died":
            break
    total = time.monotonic() - began
    used, _ = kernel.run("import os as _os, time as _time; print(_os.getpid(), _time.process_time())")
    pid, cpu = used.split() if used.strip() else (None, None)
    peak = None
    if pid:
        status = Path(f"/proc/{pid}/status").read_text()
        peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    memory.doing.pop(uid)
    kernel.close()
    return {
        "student": student.name,
        "notebook": number,
        "seconds": total,
        "cells": seconds,
        "cpu_seconds": float(cpu) if cpu else None,
        "peak_bytes": peak,
        "failures": failures,
    }


def measure(count, notebooks, one):
    """A room with `count` students. `one`: each runs one notebook alone."""
    import pwd

    command("remove", "--yes")
    room = Room()
    room.open(users=count, memory="6G")
    memory = Memory()
    try:
        with ThreadPoolExecutor(count) as pool:
            names = [f"student{number:02}" for number in range(count)]
            students = list(pool.map(room.student, names))
            memory.start()
            up = list(pool.map(lambda student: student.start(seconds=600), students))
            uids = [pwd.getpwnam(room.unix_name(student.name)).pw_uid for student in students]

            def work(place):
                order = [notebooks[(place + step) % len(notebooks)] for step in range(len(notebooks))]
                return [run_notebook(students[place], uids[place], n, memory) for n in order[: 1 if one else None]]

            began = time.monotonic()
            runs = [run for runs in pool.map(work, range(count)) for run in runs]
            total = time.monotonic() - began
    finally:
        memory.stop()
        done = command("remove", "--yes")
        assert done.returncode == 0, done.stderr
    return summary(count, notebooks, runs, up, total, memory)


def summary(count, notebooks, runs, up, total, memory):
    """What the table says about one room."""
    servers = [max(sizes) for key, sizes in memory.peaks.items() if key[0] == "server"]
    by_notebook = {}
    for number in notebooks:
        mine = [run for run in runs if run["notebook"] == number]
        if mine:
            seconds = [cell for run in mine for cell in run["cells"]]
            cpu = [run["cpu_seconds"] for run in mine if run["cpu_seconds"]]
            by_notebook[number] = {
                "runs": len(mine),
                "notebook_seconds": spread([run["seconds"] for run in mine]),
                "cell_seconds": spread(seconds),
                "longest_cell_seconds": round(max(seconds), 1),
                "cpu_seconds": round(statistics.median(cpu), 1) if cpu else None,
                "peak_bytes": max((run["peak_bytes"] or 0 for run in mine), default=0),
                "kernel_bytes": max(memory.peaks.get(("kernel", number), [0])),
            }
    return {
        "students": count,
        "seconds_until_up": spread(up) | {"most": round(max(up), 1)},
        "minutes": round(total / 60, 1),
        "server_bytes": int(statistics.median(servers)),
        "memory_bytes": memory.together,
        "notebooks": by_notebook,
        "failures": [failure for run in runs for failure in run["failures"]],
    }


def spread(values):
    """The median and the 95th percentile, rounded."""
    ordered = sorted(values)
    high = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"median": round(statistics.median(ordered), 2), "95th": round(high, 2)}


# ---------------------------------------------------------------- the page


def rendered(table):
    """The table and what follows from it, in Markdown."""
    numbers = sorted({number for room in table["rooms"] for number in room["notebooks"]})
    how = (
        "Each student ran one of the notebooks, so that with several students all of them ran at once"
        if table["one_notebook_each"]
        else "Each student ran all of the notebooks and began with a different one, so that all of them ran at once"
    )
    columns = "".join(f" {number}: whole, cell (median / 95th) |" for number in numbers)
    lines = [
        f"Measured on {table['date']} with {table['cores']} cores and {table['memory_bytes'] / 1e9:.0f} GB of memory "
        f"({table['processor']}), each student with one thread. {how}. Times are in seconds.",
        "",
        f"| students | until the server is up, median (most) |{columns} memory of all students | failures |",
        f"|---|---|{'---|' * len(numbers)}---|---|",
    ]
    for room in table["rooms"]:
        up = room["seconds_until_up"]
        row = f"| {room['students']} | {up['median']:.0f} ({up['most']:.0f}) |"
        for number in numbers:
            one = room["notebooks"].get(number)
            cell = one and one["cell_seconds"]
            whole = one and f"{one['notebook_seconds']['median']:.0f}"
            row += f" {whole}, {cell['median']:.2g} / {cell['95th']:.2g} |" if one else " |"
        lines.append(f"{row} {room['memory_bytes'] / 1e9:.1f} GB | {len(room['failures'])} |")
    return "\n".join([*lines, "", *follows(table, numbers)])


def follows(table, numbers):
    """What a class of 30 needs, from the largest room that was measured."""
    room = table["rooms"][-1]
    each = room["memory_bytes"] / room["students"]
    memory = CLASS * each / USED
    cpu = {number: room["notebooks"][number]["cpu_seconds"] for number in numbers if number in room["notebooks"]}
    listed = ", ".join(f"{seconds:.0f} s for {number}" for number, seconds in cpu.items() if seconds)
    busiest = max(filter(None, cpu.values()), default=0)
    cores = max(2, round(CLASS * busiest / (10 * 60) + 0.5))
    rented = max(cores, round(memory / 4e9 + 0.5))
    return [
        f"**What follows for a room of {CLASS}.**",
        "",
        f"- *Memory.* With {room['students']} in the room, each took {each / 1e9:.1f} GB at the peak, of which "
        f"{room['server_bytes'] / 1e6:.0f} MB were the server; pages that several share, such as the model's, are "
        f"divided among them. {CLASS} students with one notebook open each need {CLASS * each / 1e9:.0f} GB, and a "
        f"machine with {memory / 1e9:.0f} GB leaves enough for the system. Ask students to shut down the kernels of "
        "pages that they have finished: each open notebook costs as much again.",
        f"- *Cores.* A notebook needs this much time of one core, from top to bottom: {listed}. In a lesson that "
        "time is spread over an hour or more, so what counts is the rush when everyone presses Run All: with "
        f"{cores} cores {CLASS} students get through the longest of them in 10 minutes, with twice as many in 5.",
        f"- *Cost.* A machine of that size has {rented} cores, if 4 GB of memory come with each. At {CORE_HOUR:.2f} US "
        f"dollars for such a core and hour (an assumption: look up your provider's price), a day of 8 hours costs "
        f"{rented * CORE_HOUR * 8:.0f} dollars, and a workshop of two days {rented * CORE_HOUR * 16:.0f}.",
    ]


def write_page(table):
    """Put the table in its place in the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{rendered(table)}\n{END}{after}", encoding="utf-8")


def write_binder(table):
    """Which notebooks fit into Binder's memory, into its page."""
    (room,) = table["rooms"]
    lines = ["| notebook | most memory of its kernel and the server | fits into 2 GB |", "|---|---|---|"]
    for number, one in sorted(room["notebooks"].items()):
        used = one["peak_bytes"] + room["server_bytes"]
        lines.append(f"| {number} | {used / 1e9:.2f} GB | {'yes' if used < BINDER_BYTES else 'no'} |")
    text = BINDER.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    said = f"Measured on {table['date']}, each notebook run from top to bottom in a new kernel."
    shown = "\n".join([*lines, "", said])
    BINDER.write_text(f"{before}{BEGIN}\n{shown}\n{END}{after}", encoding="utf-8")


def processor():
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def stop(*_):
    """Close the room, which ends what its students wait for, and end."""
    command("close")
    sys.exit("stopped")


def main():
    """Measure, write the table, and put it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--notebooks", nargs="+", default=NOTEBOOKS)
    parser.add_argument("--one", action="store_true", help="each student runs one notebook alone: a third of the time")
    parser.add_argument("--binder", action="store_true", help="every notebook, one student: what fits on Binder")
    parser.add_argument("--output", type=Path, default=JSON)
    parser.add_argument("--page-only", action="store_true", help="write the page from the table that is there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    if options.binder:
        options.students, options.output = [1], ALONE
        options.notebooks = [path.name[:2] for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))]
    if not options.page_only:
        table = {
            "date": time.strftime("%Y-%m-%d"),
            "cores": os.cpu_count(),
            "memory_bytes": meminfo("MemTotal"),
            "processor": processor(),
            "one_notebook_each": options.one,
            "rooms": [],
        }
        for count in options.students:
            room = measure(count, options.notebooks, options.one)
            print(json.dumps(room), flush=True)
            table["rooms"].append(room)
            options.output.write_text(json.dumps(table, indent=1) + "\n")  # what is measured stays measured
    if options.output == ALONE:
        write_binder(json.loads(ALONE.read_text()))
    if options.output == JSON:
        write_page(json.loads(JSON.read_text()))
        subprocess.run(["git", "diff", "--stat", "--", JSON.parent], cwd=ROOT, check=False)


if __name__ == "__main__":
    main()
