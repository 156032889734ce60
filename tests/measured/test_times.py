"""How long things take, with nothing else running: `make test-measured`."""

import os
import statistics
import subprocess
import sys
import time

import pytest
import torch
from lab_by_make import ROOT, make, serving_lab

from helpers.batch.throughput import measure_batch_sizes
from helpers.errors import HubNotReachableError
from helpers.inside.lens import logit_lens
from helpers.inside.tracing import trace
from helpers.models import hubs
from helpers.text.prompts import load_prompts

# The main thread's wait for a free core, in seconds; 0 where the system does not tell.
WAITED = """
try:
    print(int(open("/proc/self/schedstat").read().split()[1]) / 1e9)
except OSError:
    print(0.0)
"""


def _seconds(program):
    """The median of three new processes, without their waits for a core, and what the last one printed.

    They have one thread: then the main thread's waits are all that other work on the machine costs them.
    """
    seconds = []
    for _ in range(3):
        command, settings = [sys.executable, "-c", program + WAITED], os.environ | {"OMP_NUM_THREADS": "1"}
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=True)
        *printed, waited = done.stdout.splitlines()
        seconds.append(time.perf_counter() - start - float(waited))
    return sorted(seconds)[1], "\n".join(printed)


def test_importing_the_package_takes_under_a_third_of_a_second():
    timed = "import time; start = time.perf_counter(); import helpers; print(time.perf_counter() - start)"
    assert float(_seconds(timed)[1]) < 0.3


def test_loading_takes_under_a_second_imports_aside():
    """The median of five, in a process of its own: other tests leave caches and threads behind."""
    program = (
        "import time, transformers, torch; from transformers import AutoModelForCausalLM, LlamaForCausalLM;"
        "import helpers; times = []\n"
        "for _ in range(5):\n"
        "    start = time.perf_counter(); helpers.load_model('smollm2-135m', device='cpu')\n"
        "    times.append(time.perf_counter() - start)\n"
        "print(sorted(times)[2])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.0


def test_the_first_answer_comes_within_ten_seconds_of_starting():
    seconds, printed = _seconds(
        "import helpers; tokenizer = helpers.load_tokenizer(); model = helpers.load_model()\n"
        "chat = helpers.render_chat(tokenizer, [{'role': 'user', 'content': 'What is the capital of France?'}])\n"
        "steps = helpers.generate_steps(model, tokenizer, chat, max_new_tokens=20)\n"
        "print(''.join(step.token for step in steps))"
    )
    assert "Paris" in printed
    assert seconds < 10


def test_batches_of_eight_answer_2_5_times_as_many_prompts_a_second(model, tokenizer):
    texts = [text[:10] for text in load_prompts("english")[:5] + load_prompts("chinese")[:3]]
    one, eight = measure_batch_sizes(model, tokenizer, texts, (1, 8), rounds=3, do_sample=False, max_new_tokens=8)
    ratio = eight.prompts_per_second / one.prompts_per_second
    assert ratio >= 2.5, f"{one.prompts_per_second:.3g} prompts/s one by one, {eight.prompts_per_second:.3g} in a batch"


@pytest.mark.parametrize("length", [33, 128])
def test_on_a_busy_cpu_the_lens_is_no_slower_than_a_loop_over_layers(model, tokenizer, length):
    """One other process per core wants to work all the time, as in a class that shares a machine."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 40_000, (length,), generator=generator).tolist()
    run = trace(model, tokenizer, ids, attentions=False, logits=False)

    @torch.no_grad()
    def loop():
        *before, last = run.hidden_states
        normed = [*map(model.model.norm, before), last]
        return [model.lm_head(states).softmax(dim=-1).topk(10) for states in normed]

    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        seconds = _medians_in_turn(loop, lambda: logit_lens(model, run, top_k=10))
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert seconds[1] <= seconds[0], f"a loop takes {seconds[0]:.3g} s, the lens {seconds[1]:.3g} s"


def _medians_in_turn(*works):
    """The median seconds of five runs of each, in turn, after one that is not counted."""
    seconds = [[] for _ in works]
    for _ in range(6):
        for work, its in zip(works, seconds, strict=True):
            start = time.perf_counter()
            work()
            its.append(time.perf_counter() - start)
    return [statistics.median(its[1:]) for its in seconds]


def test_setup_with_nothing_missing_takes_under_five_seconds():
    start = time.perf_counter()
    assert make("setup").returncode == 0
    assert time.perf_counter() - start < 5


def test_lab_serves_within_ten_seconds(tmp_path):
    with serving_lab(tmp_path / "log") as (_, seconds):
        assert seconds < 10


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_no_network_is_said_within_five_seconds(source, endpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HELPERS_MODELS", str(tmp_path))
    monkeypatch.setenv(hubs.HUBS[source][1], endpoint)
    start = time.perf_counter()
    with pytest.raises(HubNotReachableError):
        hubs.fetch("owner/model", source)
    assert time.perf_counter() - start < 5
