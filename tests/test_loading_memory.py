"""What loading and generating really take, measured in processes of their own, against the plan.

"Use" is counted as the growth, since the libraries were imported, of memory that is this process's alone
(Private_Dirty) plus the pages of the weights' file that are mapped (Rss of that file), after the C library
has returned what it only keeps for later. Pages of a mapped file are shared by all processes that map it.
"""

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

MEASURE = """
    import ctypes, gc, sys
    import torch, helpers
    from helpers import loading
    from transformers import DynamicCache, LlamaForCausalLM

    def used():
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        rollup = open("/proc/self/smaps_rollup").read().splitlines()
        private = next(int(line.split()[1]) for line in rollup if line.startswith("Private_Dirty:"))
        mapped, ours = 0, False
        for line in open("/proc/self/smaps"):
            if not line.split()[0].endswith(":"):
                ours = "safetensors" in line and ".so" not in line
            elif ours and line.startswith("Rss:"):
                mapped += int(line.split()[1])
        return (private + mapped) * 1024
"""
USE = (
    MEASURE
    + """
    settings = eval(sys.argv[1])
    if "quantization" in settings:
        import logging
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # as loading does, before it is imported
        import transformers.integrations.bitsandbytes, bitsandbytes
    torch.set_num_threads(1)
    loading.load_config("smollm2-135m")
    before = used()
    model = helpers.load_model("smollm2-135m", device="cpu", **settings)
    loaded = used() - before
    cache = DynamicCache(config=model.config)
    ids = torch.arange(512)[None] + 100
    with torch.inference_mode():  # 512 tokens in the cache; most of them read in pieces, to save time
        for start in range(0, 504, 63):
            model(ids[:, start : start + 63], past_key_values=cache, logits_to_keep=1)
        for position in range(504, 512):
            model(ids[:, position : position + 1], past_key_values=cache)
    assert cache.get_seq_length() == 512
    print(loaded, used() - before)
"""
)
MODES = [
    {},
    {"dtype": "bfloat16"},
    {"quantization": "8bit"},
    pytest.param(
        {"quantization": "4bit"},
        marks=pytest.mark.xfail(
            strict=False,
            reason="measured 141 MB against 123 planned: the plan leaves out working memory (see its docs)",
        ),
    ),
]


@pytest.mark.parametrize("settings", MODES, ids=["float32", "bfloat16", "8bit", "4bit"])
def test_the_plan_is_within_a_tenth_of_what_512_tokens_take(settings):
    from helpers.loading import memory_plan

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(USE), repr(settings)], capture_output=True, text=True, check=True
    )
    loaded, total = map(int, done.stdout.split())
    plan = memory_plan("smollm2-135m", device="cpu", context=512, **settings)
    assert plan.total_bytes == pytest.approx(total, rel=0.1)
    # Quantizing at load leaves nothing of the originals behind. (Mapped weights are read as they are needed.)
    assert loaded <= 1.1 * plan.weights_bytes
    assert done.stderr == ""  # no line for every matmul


HOLD = """
    import sys
    import torch, helpers
    from helpers import loading
    from transformers import LlamaForCausalLM

    def pss():
        lines = open("/proc/self/smaps_rollup").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024

    torch.set_num_threads(1)
    loading.load_config("smollm2-135m")
    print("imported", flush=True)
    sys.stdin.readline()
    print(pss(), flush=True)
    sys.stdin.readline()
    model = helpers.load_model("smollm2-135m", device="cpu")
    with torch.inference_mode():
        model(torch.arange(16)[None] + 100)
    print("loaded", flush=True)
    sys.stdin.readline()
    print(pss(), flush=True)
    sys.stdin.readline()
"""


def test_eight_processes_share_one_copy_of_the_weights():
    """By PSS, which divides each page among those who share it: 8 processes, one copy, under 25 MB each besides."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(HOLD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]

    def everyone():
        return [process.stdout.readline().strip() for process in processes]

    def go_on():
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()

    try:
        assert everyone() == ["imported"] * 8
        go_on()
        imported = sum(map(int, everyone()))
        go_on()
        assert everyone() == ["loaded"] * 8
        go_on()
        loaded = sum(map(int, everyone()))
        go_on()
    finally:
        for process in processes:
            process.stdin.close()
            process.stdout.close()
            process.wait(60)
    weights = 134_515_008 * 4
    assert loaded - imported - weights < 8 * 25e6
    assert loaded - imported > 0.5 * weights  # they are really there
