"""`make bench-gpu`: the course's time and memory on a GPU beside other tools, on the same tensors, in one run.

Also runs by itself where torch and transformers are installed: `python tests/benchmarks/gpu.py`. It takes about four
minutes on an H100, needs 40 GB of GPU memory, and downloads nothing: models have the real sizes and random weights
(`gpu_models.py`). Without a GPU it says so and changes nothing. TransformerLens and nnsight have rows where they are
installed (tests/benchmarks/peers.txt).

Tables go into docs/BENCHMARKS.md, between the lines `<!-- bench-gpu:begin -->` and `<!-- bench-gpu:end -->`; those of a
few parts (`--only`) are only printed. `--results FILE` writes them to a file instead, and `--from FILE …` puts such
files into the page, perhaps on another machine: the first of them that has a table counts. `--check` measures nothing:
its exit code is 1 without a GPU. `--small` is a dry run with tiny models on whatever is there; its
figures mean nothing and are not kept.
"""

import argparse
import datetime
import gc
import json
import statistics
import sys
import time
import traceback
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

import table  # noqa: E402
import torch  # noqa: E402
from gpu_models import (  # noqa: E402
    LLAMA3_8B,
    SMOL,
    glm4v,
    llama,
    prompt,
    released,
    tokenizer,
    twin,
)
from gpu_peers import ABLATED, PATCHED, STEERED, peers  # noqa: E402
from measuring import Table, interleaved, ratio, ratio_text, seconds_text  # noqa: E402

BEGIN, END = "<!-- bench-gpu:begin -->", "<!-- bench-gpu:end -->"
PAGE = ROOT / "docs" / "BENCHMARKS.md"
PARTS = ("capture", "layer", "interventions", "lens", "lens_8b", "steps")
TOP = 10
PEERS = ("TransformerLens", "nnsight")


class Bench:
    """What all parts share: the device, sizes, the clock."""

    def __init__(self, device, rounds, small):
        self.device, self.rounds, self.small = torch.device(device), rounds, small
        self.tokenizer = tokenizer()
        self.targets = []  # (what, figure, at most)
        self.lengths = (8, 16) if small else (64, 512, 2048)
        self.new = 4 if small else 32

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def clock(self, contender):
        """Seconds of one call, until the device is done."""
        gc.collect()
        self.synchronize()
        start = time.perf_counter()
        result = contender()
        self.synchronize()
        taken = time.perf_counter() - start
        del result
        return taken

    def race(self, contenders):
        """Name -> seconds of each round; a contender that fails is left out, and says why."""
        able = {}
        for name, contender in contenders.items():
            try:
                contender()
                able[name] = contender
            except Exception as error:
                print(f"  {name} fails: {type(error).__name__}: {str(error)[:300]}", flush=True)
                if name.startswith("**"):
                    raise
        return interleaved(able, self.rounds, clock=self.clock)

    def growth(self, contender):
        """(peak, kept): how much memory grows on the device while it runs, and what its result keeps of that."""
        if self.device.type != "cuda":
            return 0, 0
        gc.collect()
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        result = contender()
        self.synchronize()
        peak = torch.cuda.max_memory_allocated(self.device) - before
        kept = torch.cuda.memory_allocated(self.device) - before
        del result
        return peak, kept

    def target(self, what, figure, at_most):
        self.targets.append((what, figure, at_most))

    def rows(self, table, label, contenders, limit, *, memory=None):
        """Runs contenders, the first of which is the baseline, and adds a row for each; returns the seconds of each."""
        seconds = self.race(contenders)
        baseline = next(iter(contenders))
        for name, times in seconds.items():
            peak, kept = self.growth(contenders[name])
            table.rows.append(
                [label, name, seconds_text(times), ratio_text(times, seconds[baseline]), _memory_text(peak, kept)]
            )
            print("  " + " | ".join(map(str, table.rows[-1])), flush=True)
            if name.startswith("**") and limit is not None:
                self.target(f"{label}: {name.split('**')[1]}", ratio(times, seconds[baseline])[1], limit)
                if memory == "kept":
                    self.target(f"{label}: peak memory by kept tensors", peak / max(kept, 1), 1.15)
                elif memory is not None:
                    self.target(f"{label}: MB beyond the result", (peak - kept) / 1e6, memory)
        for ours in (name for name in seconds if name.startswith("**")):
            for peer in (name for name in seconds if name in PEERS):
                self.target(f"{label}: {ours.split('**')[1]}, times {peer}", ratio(seconds[ours], seconds[peer])[1], 1)
        return seconds

    def differences(self, label, ours, contenders, others):
        """How far the peers' results are from ours, as a note; none without peers."""
        far = [f"{peer} {(contenders[peer]() - ours).abs().max():.0e}" for peer in others]
        return [f"{label}: largest difference from ours: {', '.join(far)}."] if far else []


def _memory_text(peak, kept):
    return f"{peak / 1e6:,.0f} MB" + (f" ({peak / kept:.2f} x {kept / 1e6:,.0f})" if kept > 1e6 else "")


COLUMNS = ["", "", "time", "ratio", "peak memory (times what is kept)"]


def capture(bench):
    """All hidden states, all attention patterns, logits."""
    from helpers import trace

    result = Table("All hidden states, attention patterns and logits: Llama, 135 M parameters", list(COLUMNS))
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        with released(bench.device):
            model = llama(SMOL, bench.device, dtype, bench.small)
            eager, others = twin(model, "eager"), {}
            if dtype == torch.float32:
                others = peers(model, bench.device, attention="eager")
            for length in bench.lengths:
                ids = prompt(length)
                there = ids.to(bench.device)

                def transformers(there=there, eager=eager):
                    with torch.no_grad():
                        return eager(there, use_cache=False, output_hidden_states=True, output_attentions=True)

                contenders = {
                    "transformers, `output_hidden_states, output_attentions`": transformers,
                    "**`trace`**": lambda ids=ids, model=model: trace(model, bench.tokenizer, ids),
                    **{peer: lambda there=there, run=run: run.capture(there) for peer, run in others.items()},
                }
                if length == bench.lengths[-1]:
                    contenders['`trace(device="cpu")`'] = lambda ids=ids, model=model: trace(
                        model, bench.tokenizer, ids, device="cpu"
                    )
                bench.rows(result, f"{name}, {length} tokens", contenders, 1.05, memory="kept")
            del model, eager, others, contenders, transformers
    return result


class _Stop(Exception):
    pass


def layer(bench):
    """One hidden state in the middle."""
    from helpers import trace

    result = Table("One hidden state of 30: Llama, 135 M parameters, float32", list(COLUMNS))
    with released(bench.device):
        model = llama(SMOL, bench.device, torch.float32, bench.small)
        wanted = model.config.num_hidden_layers // 2
        only = {"layers": wanted, "attentions": False, "logits": False}
        others = peers(model, bench.device)
        for length in bench.lengths:
            ids = prompt(length)
            there = ids.to(bench.device)

            def hook_that_stops(there=there):
                seen = []

                def hook(module, arguments):
                    seen.append(arguments[0])
                    raise _Stop

                handle = model.model.layers[wanted].register_forward_pre_hook(hook)
                try:
                    with torch.no_grad():
                        model(there, use_cache=False)
                except _Stop:
                    pass
                finally:
                    handle.remove()
                return seen

            def hook(there=there):
                seen = []
                handle = model.model.layers[wanted].register_forward_pre_hook(lambda m, a: seen.append(a[0]))
                try:
                    with torch.no_grad():
                        model(there, use_cache=False)
                finally:
                    handle.remove()
                return seen

            contenders = {
                "a bare hook": hook,
                "a bare hook that stops": hook_that_stops,
                "**`trace(layers=…)`**": lambda ids=ids: trace(model, bench.tokenizer, ids, **only),
                **{peer: lambda there=there, run=run: run.layer(there, wanted) for peer, run in others.items()},
            }
            seconds = bench.rows(result, f"{length} tokens", contenders, 1.0)
            beside = ratio_text(seconds["**`trace(layers=…)`**"], seconds["a bare hook that stops"])
            result.notes.append(f"{length} tokens: `trace` takes {beside} times as long as the hook that stops.")
            ours = contenders["**`trace(layers=…)`**"]().hidden_states[0]
            result.notes += bench.differences(f"{length} tokens", ours, contenders, others)
    return result


def interventions(bench):
    """A forward pass that is changed on the way."""
    from helpers import ablate_heads, patch_hidden_state, steer

    result = Table("A forward pass under interventions: Llama, 135 M parameters, float32", list(COLUMNS))
    with released(bench.device):
        model = llama(SMOL, bench.device, torch.float32, bench.small)
        vector, others = torch.randn(model.config.hidden_size), peers(model, bench.device)
        for length in bench.lengths[:2]:
            ids = prompt(length, bench.device)

            def forward(ids=ids):
                with torch.no_grad():
                    return model(ids).logits

            def changed(forward=forward):
                with ablate_heads(model, [ABLATED]), steer(model, STEERED, vector):
                    return forward()

            def patched(forward=forward):
                with patch_hidden_state(model, *PATCHED, vector):
                    return forward()

            for change, what in ((changed, "a head ablated, a layer steered"), (patched, "a position patched")):
                contenders = {"the same forward pass, bare": forward, f"**{what}**": change}
                for peer, run in others.items():
                    contenders[peer] = partial(getattr(run, change.__name__), ids, vector)
                bench.rows(result, f"{length} tokens", contenders, 1.05)
                result.notes += bench.differences(f"{length} tokens, {what}", change(), contenders, others)
    return result


def lens(bench):
    """Lens of a small model, its forward pass included."""
    from helpers import logit_lens, trace

    result = Table(f"Logit lens with its forward pass, top {TOP}, 30 layers: 135 M, float32", list(COLUMNS))
    with released(bench.device):
        model = llama(SMOL, bench.device, torch.float32, bench.small)
        count, others = model.config.num_hidden_layers, peers(model, bench.device)
        for length in (bench.lengths[0] * 2, bench.lengths[-1]):
            ids = prompt(length)
            there = ids.to(bench.device)

            def loop(there=there):
                with torch.no_grad():
                    states = model(there, use_cache=False, output_hidden_states=True, logits_to_keep=1).hidden_states
                    normed = [*(model.model.norm(state[0]) for state in states[1:-1]), states[-1][0]]
                    return [model.lm_head(state).softmax(-1).topk(TOP, -1) for state in normed]

            def ours(ids=ids):
                keep = {"attentions": False, "logits": False, "layers": range(1, count + 1)}
                return logit_lens(model, trace(model, bench.tokenizer, ids, **keep), top_k=TOP)

            contenders = {
                "transformers, a loop over layers": loop,
                "**`trace` and `logit_lens`** (also the entropy)": ours,
                **{peer: lambda there=there, run=run: run.lens(there, TOP) for peer, run in others.items()},
            }
            bench.rows(result, f"{length} tokens", contenders, None)
    return result


def lens_8b(bench):
    """The lens alone, at Llama-3-8B's size."""
    from helpers import logit_lens, trace

    result = Table(f"Logit lens alone, top {TOP}: Llama-3-8B, bfloat16", list(COLUMNS))
    with released(bench.device):
        model = llama(LLAMA3_8B, bench.device, torch.bfloat16, bench.small)
        length = bench.lengths[-1]
        run = trace(model, bench.tokenizer, prompt(length), attentions=False, logits=False)
        states, last = run.hidden_states, len(run.layers) - 1

        def loop():
            best = []
            with torch.no_grad():
                for row, state in enumerate(states):
                    normed = state if row == last else model.model.norm(state)
                    best.append(model.lm_head(normed).float().softmax(-1).topk(TOP, -1))
            return best

        contenders = {"a loop over layers": loop, "**`logit_lens`**": lambda: logit_lens(model, run, top_k=TOP)}
        label = f"{len(states)} rows, {length} positions, {model.config.vocab_size:,} ids"
        bench.rows(result, label, contenders, 0.6, memory=500)
        result.notes.append(_closer(model, run, loop(), logit_lens(model, run, top_k=TOP)))
        print("  " + result.notes[-1], flush=True)
    return result


def _closer(model, run, loop, ours, positions=64):
    """Which of the two is closer to the same model in float32, at some positions."""
    states = run.hidden_states[:, :positions].float()
    norm = model.model.norm
    scale = norm.weight.float() * torch.rsqrt(states[:-1].pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    normed = torch.cat([states[:-1] * scale, states[-1:]])
    weight = model.lm_head.weight.float()
    found = {"the loop": ([], []), "`logit_lens`": ([], [])}
    for row, state in enumerate(normed):
        true = (state @ weight.T).softmax(-1)
        mine = ours.token_ids[row, :positions, 0], ours.probabilities[row, :positions, 0]
        theirs = loop[row].indices[:positions, 0], loop[row].values[:positions, 0]
        for name, (ids, probabilities) in {"the loop": theirs, "`logit_lens`": mine}.items():
            found[name][0].append((ids == true.argmax(-1)).float().mean().item())
            exact = true.gather(-1, ids[:, None])[:, 0]
            found[name][1].append(((probabilities - exact).abs() / exact).mean().item())
    parts = [
        f"{name} finds the same most likely token at {statistics.mean(same):.1%} of {len(normed) * positions:,} "
        f"places, with its probability off by {statistics.mean(off):.1%}"
        for name, (same, off) in found.items()
    ]
    return f"Compared with the same weights in float32, {'; '.join(parts)}."


def steps(bench):
    """Greedy decoding with the ten likeliest tokens of every step kept; the peers keep nothing."""
    from helpers import generate_steps

    result = Table(f"{bench.new} greedy tokens after a prompt of 32 tokens", list(COLUMNS))
    makers = {
        "135 M, float32": lambda: llama(SMOL, bench.device, torch.float32, bench.small),
        "Llama-3-8B, bfloat16": lambda: llama(LLAMA3_8B, bench.device, torch.bfloat16, bench.small),
        "GLM-4V-9B, bfloat16": lambda: glm4v(bench.device, torch.bfloat16, bench.small),
    }
    for name, make in makers.items():
        with released(bench.device):
            model = make()
            ids = prompt(32)
            there = ids.to(bench.device)
            fixed = {"max_new_tokens": bench.new, "min_new_tokens": bench.new, "do_sample": False, "pad_token_id": 0}

            def generate(model=model, there=there, fixed=fixed):
                return model.generate(there, attention_mask=torch.ones_like(there), **fixed)

            def ours(model=model, ids=ids):
                steps = generate_steps(model, bench.tokenizer, ids, max_new_tokens=bench.new, eos_token_id=[])
                return [(step.token_id, step.logits.topk(TOP)) for step in steps]

            others = peers(model, bench.device) if name.startswith("135 M") else {}
            contenders = {"`generate`": generate, f"**`generate_steps`, top {TOP} kept**": ours}
            contenders |= {peer: partial(run.generate, there, bench.new) for peer, run in others.items()}
            bench.rows(result, name, contenders, 1.05)
            answers = [[token for token, _ in ours()], *(contenders[peer]() for peer in others)]
            same = all(generate()[0, 32:].tolist() == answer for answer in answers)
            result.notes.append(f"{name}: {'the same tokens' if same else 'OTHER TOKENS'}.")
            print("  " + result.notes[-1], flush=True)
            del model, contenders, generate, ours, others
    return result


def summary(targets):
    """A table of all targets."""
    result = Table("Targets", ["", "measured", "at most", ""])
    for what, figure, at_most in targets:
        result.rows.append([what, f"{figure:.2f}", f"{at_most:g}", "reached" if figure <= at_most else "missed"])
    return result


def about(device, rounds):
    from importlib.metadata import PackageNotFoundError, version

    versions = []
    for name in ("torch", "transformers", "transformer-lens", "nnsight"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    name = torch.cuda.get_device_name(device) if torch.cuda.is_available() else "no GPU"
    return {
        "date": datetime.date.today().isoformat(),
        "rounds": rounds,
        "device": name,
        "versions": ", ".join(versions),
    }


def method(about):
    return (
        f"Measured on {about['date']} on one {about['device']} ({about['versions']}) by `make bench-gpu`, with "
        f"models of the real sizes and random weights. All rows of a table are measured in one run, on the same "
        f"tensors, in {about['rounds']} interleaved rounds after two warm-up rounds. Times are medians and end when "
        "the GPU is done. A ratio is the median of the ratios to the first row of its group within each round, with "
        "its quartiles in brackets. Memory is the peak growth of what torch allocates on the GPU, in brackets as a "
        "multiple of what the result keeps there."
    )


def write(*runs):
    """The tables of one or more runs into their place in the page. A table that an earlier one has too is left out."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    parts, seen, targets = [], set(), {}
    for results in runs:
        new = [found for found in results["tables"] if found["title"] not in seen]
        seen |= {found["title"] for found in new} - {"Targets"}
        tables = [found for found in new if found["title"] != "Targets"]
        parts += [method(results["about"]), *map(table.markdown, tables)] if tables else []
        targets = {row[0]: row for found in new if found["title"] == "Targets" for row in found["rows"]} | targets
    last = Table("Targets", ["", "measured", "at most", ""], list(targets.values()))
    parts.append(table.markdown(last.to_json()))
    PAGE.write_text(before + BEGIN + "\n" + "".join(f"{part}\n\n" for part in parts) + END + after, encoding="utf-8")
    print(f"Written to {PAGE.relative_to(ROOT)}.")


def measure(parts, device, rounds, small):
    """All parts' tables; a part that fails says why, and the others go on."""
    bench, tables, start = Bench(device, rounds, small), [], time.perf_counter()
    for name in parts:
        print(f"[{time.perf_counter() - start:.0f} s] {name}", flush=True)
        try:
            with released(device):
                tables.append(globals()[name](bench))
        except Exception:
            traceback.print_exc()
    tables.append(summary(bench.targets))
    print(f"[{time.perf_counter() - start:.0f} s] done\n", flush=True)
    print(table.markdown(tables[-1].to_json()), flush=True)
    return {"about": about(device, rounds), "tables": [found.to_json() for found in tables]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--results", type=Path, help="write a JSON file instead of the page")
    parser.add_argument("--from", dest="sources", nargs="+", type=Path, help="put such files into the page")
    parser.add_argument("--check", action="store_true", help="only say whether there is a GPU")
    parser.add_argument("--small", action="store_true", help="a dry run with tiny models, on a CPU too")
    given = parser.parse_args()
    if given.sources:
        write(*(json.loads(source.read_text(encoding="utf-8")) for source in given.sources))
        return 0
    if not given.small and not torch.cuda.is_available():
        print("There is no CUDA GPU here: nothing was measured and nothing was changed.")
        return 1 if given.check else 0
    if given.check:
        return 0
    device = given.device if torch.cuda.is_available() else "cpu"
    results = measure(given.only, device, given.rounds, given.small)
    if given.results:
        given.results.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    elif not given.small and set(given.only) == set(PARTS):
        write(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
