"""What loading and generating really take, measured in processes of their own, against the plan.

"Use" is the highest growth of anonymous memory (RssAnon, read every two milliseconds) plus the pages of the
weights' file that stay mapped (Rss of that file): while `load_model` works, and while `generate` reads 480 tokens
at once and writes 32 more. A model of a few KB was loaded and asked in the same way before, so that what the
libraries themselves take, once for any model, is not counted. The process is a normal one: nothing in its
environment or in this test tells the C library how to allocate. Pages of a mapped file are shared by all
processes that map it, and the system takes them back when it needs room.
"""

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

USE = """
    import gc, sys, threading, time
    import torch, helpers
    from helpers.models import pretrained
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging as library_logging

    library_logging.disable_progress_bar()

    def anonymous():
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024

    def mapped():
        pages, ours = 0, False
        for line in open("/proc/self/smaps"):
            if not line.split()[0].endswith(":"):
                ours = "smollm2-135m" in line and line.rstrip().endswith(".safetensors")
            elif ours and line.startswith("Rss:"):
                pages += int(line.split()[1])
        return pages * 1024

    def ask(model, prompt, new):
        ids = torch.arange(prompt)[None] + 100
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), min_new_tokens=new, max_new_tokens=new, do_sample=False,
            pad_token_id=0,
        )
        assert written.shape == (1, prompt + new)

    settings, folder = eval(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)).save_pretrained(folder)
    ask(helpers.load_model(folder, device="cpu", **settings), 8, 2)
    gc.collect()
    before = peak = anonymous()
    done = threading.Event()

    def watch():
        global peak
        while not done.wait(0.002):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = helpers.load_model("smollm2-135m", device="cpu", **settings)
    loading_peak, peak = peak - before + mapped(), anonymous()
    ask(model, 480, 32)
    done.set()
    watcher.join()
    print(loading_peak, peak - before + mapped())
"""
MODES = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "8bit": {"quantization": "8bit"},
    "4bit": {"quantization": "4bit"},
}


@pytest.mark.parametrize("settings", MODES.values(), ids=MODES)
def test_the_plan_is_within_a_tenth_of_what_loading_and_512_tokens_take(settings, tmp_path):
    from helpers.models.memory import memory_plan

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(USE), repr(settings), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))},
    )
    loading_peak, peak = map(int, done.stdout.split())
    plan = memory_plan("smollm2-135m", device="cpu", context=512, **settings)
    assert plan.total_bytes == pytest.approx(max(loading_peak, peak), rel=0.1)
    if settings:  # what is cast or quantized is all here after loading, and at no time much more
        assert plan.weights_bytes + plan.overhead_bytes == pytest.approx(loading_peak, rel=0.2)
    else:  # mapped weights are read as they are needed
        assert loading_peak < 0.1 * plan.weights_bytes
    assert done.stderr == ""  # no line for every matmul


HOLD = """
    import sys
    import torch, helpers
    from helpers.models import pretrained
    from transformers import LlamaForCausalLM

    def memory():
        lines = open("/proc/self/smaps_rollup").read().splitlines()
        found = (next(int(line.split()[1]) for line in lines if line.startswith(kind)) for kind in ("Pss:", "Rss:"))
        return " ".join(str(1024 * kilobytes) for kilobytes in found)

    torch.set_num_threads(1)
    pretrained.load_config("smollm2-135m")
    print("imported", flush=True)
    sys.stdin.readline()
    print(memory(), flush=True)
    sys.stdin.readline()
    model = helpers.load_model("smollm2-135m", device="cpu")
    with torch.inference_mode():
        model(torch.arange(16)[None] + 100)
    print("loaded", flush=True)
    sys.stdin.readline()
    print(memory(), flush=True)
    sys.stdin.readline()
"""


def test_eight_processes_share_one_copy_of_the_weights():
    """By PSS, which divides each page among those who share it (an open notebook, too), 8 processes have one copy, and
    under 25 MB each besides; by RSS, which does not, each has all of it."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(HOLD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]

    def everyone():
        return [process.stdout.readline().strip() for process in processes]

    def total(lines):
        """Of all processes: (PSS, RSS)."""
        return [sum(map(int, column)) for column in zip(*map(str.split, lines), strict=True)]

    def go_on():
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()

    try:
        assert everyone() == ["imported"] * 8
        go_on()
        imported = total(everyone())
        go_on()
        assert everyone() == ["loaded"] * 8
        go_on()
        loaded = total(everyone())
        go_on()
    finally:
        for process in processes:
            process.stdin.close()
            process.stdout.close()
            process.wait(60)
    shared, seen = (after - before for after, before in zip(loaded, imported, strict=True))
    weights = 134_515_008 * 4
    assert shared < weights + 8 * 25e6
    assert seen > 0.9 * 8 * weights  # each of them has read all of it
