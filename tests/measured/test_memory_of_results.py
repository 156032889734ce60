"""Memory that results and long files take, measured in processes of their own or while nothing else runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.batch.engines import in_windows
from helpers.batch.run import PromptFile, run_batch
from helpers.batch.throughput import peak_memory

ROOT = Path(__file__).resolve().parents[2]
reads_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")

GROWTH = """
import ctypes, sys, torch
from helpers.models.loading import load_model
from helpers.models.pretrained import load_tokenizer
from helpers.inside.tracing import trace
torch.set_num_threads(2)
who, length, logits, implementation = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True", sys.argv[4]
model, tokenizer = load_model(device="cpu", attn_implementation=implementation), load_tokenizer()

def memory(line):
    with open("/proc/self/status") as status:
        return next(int(row.split()[1]) * 1024 for row in status if row.startswith(line))

@torch.inference_mode()
def run(ids):
    if who == "trace":
        result = trace(model, tokenizer, ids, logits=logits)
        return result, result.nbytes
    result = model(torch.tensor([ids]), use_cache=False, logits_to_keep=0 if logits else 1).logits
    return result, result.nbytes

run(list(range(100, 116)))  # reads the weights in
if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
    libc.malloc_trim(0)  # else what the first run left in the heap is taken again, unseen
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = memory("VmRSS")
result, nbytes = run(list(range(100, 100 + length)))
print(memory("VmHWM") - before, nbytes)
"""


def grown(who, *settings):
    """(bytes that the process grew by at most, bytes of what it then held) of `trace`, or of the plain forward."""
    command = [sys.executable, "-c", GROWTH, who, *map(str, settings)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return map(int, done.stdout.split())


@reads_proc
@pytest.mark.parametrize(
    ("length", "logits", "implementation"),
    [(512, False, "sdpa"), (512, True, "sdpa"), (256, True, "eager"), (64, True, "sdpa")],
)
def test_memory_grows_by_the_result_and_by_what_the_plain_forward_takes(length, logits, implementation):
    """The forward's own buffers are the matrix library's too: of 64 tokens they take 5 MB with one processor and 22 MB
    with another. So they are measured here, in a process of their own, and not known beforehand."""
    peak, result = grown("trace", length, logits, implementation)
    plain_peak, plain_logits = grown("forward", length, logits, implementation)
    buffers, more = plain_peak - plain_logits, 0.05 * result + 2e6
    said = f"grew by {peak / 1e6:.1f} MB for {result / 1e6:.1f}; the forward's buffers are {buffers / 1e6:.1f}"
    assert result < peak <= result + buffers + more, said


@reads_proc
@pytest.mark.parametrize(("vocab", "hidden", "top_k"), [(128_256, 576, 5), (49_152, 64, 100), (8_000, 2048, 10)])
def test_memory_stays_within_its_bound_at_2000_positions(vocab, hidden, top_k):
    """4,000 rows of 128,256 scores would take 2 GB; the peak has to stay within one and a half times `BUFFER_BYTES`."""
    program = f"""
import gc, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from helpers.inside.fast_lens import BUFFER_BYTES
from helpers.inside.lens import logit_lens
from helpers.inside.tracing import Trace

def bytes_of(line):
    return next(int(row.split()[1]) * 1024 for row in open("/proc/self/status") if row.startswith(line))

config = LlamaConfig(vocab_size={vocab}, hidden_size={hidden}, intermediate_size=16, num_hidden_layers=1,
                     num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True)
model = LlamaForCausalLM(config).eval()
states = torch.randn(2, 2000, {hidden})
trace = Trace(tokens=(), input_ids=None, hidden_states=states, attentions=None, logits=None, last_residual=None,
              layers=(0, 1), positions=tuple(range(2000)))
small = Trace(**{{**vars(trace), "hidden_states": states[:, :1], "positions": (0,)}})
logit_lens(model, small)
gc.collect()
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = bytes_of("VmRSS")
logit_lens(model, trace, top_k={top_k})
print((bytes_of("VmHWM") - before) / BUFFER_BYTES)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0.1 < float(done.stdout) < 1.5


class StopsAfterAThousand:
    """An engine that answers with the prompt in capitals, and is interrupted after a thousand."""

    name, model_name = "echo", "echo"

    def generate(self, prompts, settings):
        for window in in_windows(prompts, 4):
            if window[0].index >= 1000:
                raise KeyboardInterrupt
            yield from ((prompt.index, prompt.text.upper()) for prompt in window)


def test_a_million_lines_do_not_sit_in_memory(tmp_path):
    """All are read once, to know that they are the same ones, and the first thousand are answered."""
    total = 1_000_000
    with (tmp_path / "d.txt").open("w", encoding="utf-8") as stream:
        stream.writelines(f"{'一个很长的问题 and so on, ' * 3}\n" * 1000 for _ in range(total // 1000))
    assert (tmp_path / "d.txt").stat().st_size >= 100e6
    with peak_memory() as peak, pytest.raises(KeyboardInterrupt):
        run_batch(
            None,
            None,
            PromptFile(tmp_path / "d.txt"),
            tmp_path / "p.json",
            engine=StopsAfterAThousand(),
            progress=False,
        )
    assert json.loads((tmp_path / "p.run.json").read_text())["prompts"] == total
    assert (tmp_path / "p.jsonl").read_bytes().count(b"\n") == 1000
    assert peak.bytes < 40e6  # eight bytes a line, and what happens to be in use


def test_peak_memory_sees_what_was_there_in_between():
    with peak_memory() as peak:
        large = torch.ones(20_000_000)  # 80 MB
        torch.linalg.norm(large)
        del large
    assert 60e6 < peak.bytes < 200e6
    with peak_memory() as peak:
        pass
    assert peak.bytes < 40e6
