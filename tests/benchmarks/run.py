"""`make bench`: run the parts (all, or those of ONLY), print each table, and write them into docs/BENCHMARKS.md.

Results are kept in `.bench/results`, a file a part, so that a part can be run by itself: the page gets those
of the last run of each part. `--memory` is what the parts themselves call, to run one contender in a fresh process.
"""

import argparse
import datetime
import importlib
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT), str(ROOT / "tests" / "browser")]

PARTS = ("machine", "capture", "layer", "lens", "generation", "batch", "pages", "loading")
RESULTS = ROOT / ".bench" / "results"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "BENCHMARKS.md")
    parser.add_argument("--memory", nargs="+", metavar="PART CONTENDER SIZE", help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # of torch, here and in every process started from here
    if given.memory:
        print(json.dumps(memory(*given.memory)))
        return
    run(given.only or PARTS, given.rounds, given.threads)
    write(given.page)


def memory(part, name, *sizes):
    """Size -> peak growth of this process by one contender, the smallest size first."""
    from measuring import growth
    from models import Models

    module, models = importlib.import_module(f"part_{part}"), Models()
    size_of = getattr(module, "kept", None)
    found = {}
    module.contenders(models, 16)[name]()  # reads the weights in
    for size in map(int, sizes):
        contender = module.contenders(models, size)[name]
        contender()  # the math library keeps buffers for a size from its first run on, whoever asks
        found[size] = growth(contender, size_of and (lambda result: size_of(name, result)))
    return found


def run(parts, rounds, threads):
    """Each part's table: printed, and kept in `RESULTS`."""
    import part_machine
    import table
    from models import Models

    models, machine = Models(), part_machine.limits(rounds)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        if part in parts:
            result = importlib.import_module(f"part_{part}").run(models, machine, rounds, threads).to_json()
            result["about"] = about(rounds, threads)
            print(table.markdown(result), end="\n\n", flush=True)
            (RESULTS / f"{part}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")


def about(rounds, threads):
    from importlib.metadata import version

    import part_machine

    names = ("torch", "transformers", "transformer-lens", "nnsight", "bertviz", "circuitsvis")
    return {
        "date": datetime.date.today().isoformat(),
        "rounds": rounds,
        "threads": threads,
        "processor": part_machine.processor(),
        "versions": ", ".join(f"{name} {version(name)}" for name in names),
    }


def write(page):
    """The newest table of each part, into the page."""
    import table

    tables = [json.loads(file.read_text(encoding="utf-8")) for file in map(_result, PARTS) if file.exists()]
    text = table.with_tables(page.read_text(encoding="utf-8"), tables, tables[-1]["about"])
    page.write_text(text, encoding="utf-8")


def _result(part):
    return RESULTS / f"{part}.json"


if __name__ == "__main__":
    main()
