"""How the benchmarks measure: interleaved rounds, medians, ratios round by round, memory in a process of its own."""

import contextlib
import ctypes
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
SLOW = 8  # seconds: what takes longer runs three times only


@dataclass
class Table:
    """A table of results: what README shows of one part."""

    title: str
    columns: list
    rows: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    def to_json(self):
        return asdict(self)


def interleaved(contenders, rounds, clock=None):
    """Name -> seconds of each round, for a dict of name -> contender; `clock` gives the seconds of one (`timed`).

    Each round runs every contender once, beginning with another one each time, after a round that does not
    count. A contender that took longer than `SLOW` seconds in that round is run three times only, and one that
    did not come to an end (seconds that are not finite) not again.
    """
    clock = clock or timed
    first = {name: clock(contender) for name, contender in contenders.items()}
    seconds = {name: [] if math.isfinite(taken) else [taken] for name, taken in first.items()}
    names = [name for name, taken in first.items() if math.isfinite(taken)]
    for turn in range(rounds):
        shift = turn % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            if turn < 3 or first[name] <= SLOW:
                seconds[name].append(clock(contenders[name]))
    return seconds


def timed(contender):
    """Seconds of one call. What it returns is thrown away afterwards."""
    gc.collect()
    start = time.perf_counter()
    result = contender()
    taken = time.perf_counter() - start
    del result
    return taken


def ratio(seconds, baseline):
    """Median of the ratios of the rounds, and the quartiles around it: (low, median, high)."""
    ratios = [ours / theirs for ours, theirs in zip(seconds, baseline, strict=False)]
    if len(ratios) < 2:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, middle, high


def ratio_text(seconds, baseline):
    low, middle, high = ratio(seconds, baseline)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def seconds_text(seconds):
    """A median, in ms or s, 3 digits."""
    middle = statistics.median(seconds)
    return f"{middle * 1000:.3g} ms" if middle < 1 else f"{middle:.3g} s"


def share_text(limit, seconds):
    """How much of a median the machine's limit is: near 100%, nothing is left to gain."""
    share = limit / statistics.median(seconds)
    return f"{share:.0%}" if share >= 0.01 else "under 1%"


def memory_text(growth):
    """Peak growth, and how many times the size of what was asked for, where there is such a size."""
    peak, tensors = growth["peak"] / 1e6, growth.get("tensors", 0) / 1e6
    return f"{peak:.0f} MB" + (f" ({peak / tensors:.2f} x {tensors:.0f})" if tensors else "")


def growths(part, name, sizes, threads):
    """Size -> peak growth of memory while a contender runs, in a fresh process; {} where /proc has no such figure."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    command = [sys.executable, HERE / "run.py", "--threads", str(threads), "--memory", part, name, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{part}, {name}: {done.stderr[-2000:]}")
    return {int(size): growth for size, growth in json.loads(done.stdout.splitlines()[-1]).items()}


def growth(contender, size_of=None):
    """Peak growth of this process's resident memory while `contender` runs, in bytes; and the tensors it keeps."""
    gc.collect()
    _give_back()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _status("VmRSS")
    result = contender()
    peak = {"peak": _status("VmHWM") - before}
    if size_of is not None:
        peak["tensors"] = size_of(result)
    return peak


def _status(line):
    with open("/proc/self/status") as status:
        return next(int(row.split()[1]) * 1024 for row in status if row.startswith(line))


def _give_back():
    """Freed memory goes back to the system, so that a later figure does not hide in it."""
    with contextlib.suppress(OSError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def in_fresh_process(code, *, python=sys.executable):
    """Seconds that a piece of Python prints as its last line."""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=HERE.parents[1])
    return float(done.stdout.splitlines()[-1])
