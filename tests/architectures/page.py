"""Builds the tiny models, tries every public function on each, and writes docs/ARCHITECTURES.md.

`make test-architectures` calls it. It ends with an error if anything came out wrong.
"""

import argparse
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from textwrap import wrap

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "ARCHITECTURES.md"
VARIANTS = (
    "falcon_new",
    "falcon_sequential",
    "gpt_neox_sequential",
    "opt_no_final_norm",
    "opt_norm_after",
)  # of one that is counted already
NOT_COMPARED = (  # architectures that the other libraries were not tried on
    "openai_gpt",
    "afmoe",
    "cwm",
    "deepseek_v32",
    "diffllama",
    "exaone_moe",
    "flex_olmo",
    "glm_moe_dsa",
    "granitemoehybrid",
    "granitemoeshared",
    "hunyuan_v1_moe",
    "lfm2_moe",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5_moe",
    "recurrent_gemma",
    "solar_open",
    "vaultgemma",
)
MARKS = {"ok": "✓", "refused": "–", "wrong": "**✗**", "error": "**!**"}
HEADS = {
    "load_model": "load",
    "memory_plan": "memory plan",
    "generate_steps": "steps",
    "show_structure": "structure",
    "show_source": "source",
    "trace_hidden_states": "hidden states",
    "trace_attentions": "attention",
    "logit_lens": "lens",
    "residual_contributions": "parts",
    "head_contributions": "heads' parts",
    "direct_logit": "direct logit",
    "ablate_heads": "ablate",
    "patch_hidden_state": "patch",
    "steer": "steer",
    "skip_layer": "skip layer",
    "skip_attention": "skip attention",
    "skip_mlp": "skip MLP",
    "patching_sweep": "sweep",
    "patching_sweep_attention": "sweep attention",
    "patching_sweep_mlp": "sweep MLP",
    "head_scores": "head scores",
    "attention_explorer": "attention explorer",
    "hidden_state_explorer": "state explorer",
    "kv_cache_summary": "cache",
    "kv_cache_bytes": "cache bytes",
    "kv_cache_explorer": "cache explorer",
    "conversation": "conversation",
    "run_batch": "batch",
}


def outcomes_of(name: str) -> tuple[str, dict]:
    """(name, check -> (state, words)) of one model."""
    sys.path.insert(0, str(HERE))
    import matrix
    import tiny_models
    import torch
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = matrix.run(tiny_models.build(name, Path(folder) / name))
    return name, {check: (o.state, o.words.replace(f"{folder}/", "")) for check, o in found.items()}


def fill(text: str) -> list[str]:
    """A paragraph in lines of at most 110 characters."""
    return wrap(text, 110, break_on_hyphens=False)


def page(table: dict[str, dict]) -> str:
    """The page's text."""
    from tiny_models import SEEING
    from transformers import __version__

    checks = list(next(iter(table.values())))
    counts = {state: sum(row[c][0] == state for row in table.values() for c in checks) for state in MARKS}
    counted = [row for name, row in table.items() if name not in VARIANTS]

    compared = [row for name, row in table.items() if name not in VARIANTS + NOT_COMPARED]

    def right(check):
        return sum(row[check][0] == "ok" for row in compared)

    states, weights, sums = map(right, ("trace_hidden_states", "trace_attentions", "residual_contributions"))
    lines = [
        "# Which architectures work",
        "",
        *fill(
            "You bring a model, and you want to know whether what this course shows of it is true. So every public "
            f"function is tried on tiny random models of {len(counted)} architectures ({len(SEEING)} of them with a "
            f"vision tower, whose language side is looked into) and of {len(table) - len(counted)} variants, and "
            f"compared with what transformers {__version__} itself gives for the same model. `make test-architectures` "
            "does that and writes this page; a sample of it runs in `make test`."
        ),
        "",
        *fill(
            f"Of {sum(counts.values()):,} cells, {counts['ok']:,} are right, {counts['refused']:,} are refused in one "
            f"sentence, and {counts['wrong'] + counts['error']:,} are wrong or fail in another way."
        ),
        "",
        *fill(
            f"Of {len(compared)} of these architectures, `trace` gives the hidden states of {states} and the attention "
            f"weights of {weights}; what is written into the residual stream adds up in {sums}. TransformerLens "
            "4.3.0's bridge opened 74 of the same models, with attention weights in 64 and sums in 62. nnsight 0.8.1 "
            "opened all of them; it gives access to modules and does not take a layer apart."
        ),
        "",
        "✓ is right, – is refused (the sentences are below), **✗** is a wrong number and **!** another fault.",
        "",
        "| | " + " | ".join(HEADS[check] for check in checks) + " |",
        "|---" * (len(checks) + 1) + "|",
    ]
    for name, row in table.items():
        lines.append(f"| {name} | " + " | ".join(MARKS[row[check][0]] for check in checks) + " |")
    lines += ["", "## What is refused, and why", ""]
    for name, row in table.items():
        said = {}
        for check in checks:
            if row[check][0] != "ok":
                said.setdefault(row[check][1].replace("\n", " ").replace("|", "\\|"), []).append(HEADS[check])
        lines += [f"- **{name}**, {', '.join(which)}: {words}" for words, which in said.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("names", nargs="*", help="only these, without writing the page")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))
    import tiny_models

    names = options.names or sorted(tiny_models.NAMES)
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        table = dict(pool.map(outcomes_of, names))
    faults = [(n, c, *o) for n, row in table.items() for c, o in row.items() if o[0] in ("wrong", "error")]
    for name, check, state, words in faults:
        print(f"{name}, {check}: {state}: {words}")
    if not options.names:
        PAGE.write_text(page(table), encoding="utf-8")
        print(f"{PAGE.relative_to(HERE.parents[1])} is written.")
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main())
