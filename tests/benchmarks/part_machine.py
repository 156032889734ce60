"""What this machine can do at most: the figures that all others are held against."""

import os
import platform
import statistics
from functools import partial
from pathlib import Path

import torch
from measuring import Table, timed

TITLE = "The machine's own limits"
ROWS, HIDDEN, VOCAB = 512, 576, 49_152  # the sizes of the model's largest product


def limits(rounds):
    """Bytes or floating-point operations per second, each the median of several rounds."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(ROWS, HIDDEN, generator=generator)
    weights = torch.randn(VOCAB, HIDDEN, generator=generator)
    large = weights.repeat(4, 1)
    operations = 2 * ROWS * HIDDEN * VOCAB
    found = {
        "reading": large.nbytes / _median(large.sum, rounds),
        "matrix times vector": weights.nbytes / _median(lambda: weights @ states[0], rounds),
    }
    for dtype in (torch.float32, torch.bfloat16):
        product = partial(_in_slices, states.to(dtype), weights.to(dtype).split(4096))
        taken = _median(product, rounds)
        found[f"matmul {str(dtype).removeprefix('torch.')}"] = operations / taken
    return found


def _in_slices(states, slices):
    """The product with one slice after the other, into the same memory."""
    out = states.new_empty(len(states), len(slices[0]))
    for weights in slices:
        torch.mm(states, weights.T, out=out)


def _median(work, rounds):
    timed(work)
    return statistics.median(timed(work) for _ in range(rounds))


def processor():
    """Its name, as Linux has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def run(models, machine, rounds, threads):
    table = Table(TITLE, ["", "rate"])
    for name, rate in machine.items():
        unit = "GFLOP/s" if name.startswith("matmul") else "GB/s"
        table.rows.append([name, f"{rate / 1e9:.3g} {unit}"])
    table.notes.append(f"{processor()}, {os.cpu_count()} cores, {threads} threads used, torch {torch.__version__}.")
    return table
