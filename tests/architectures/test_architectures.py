"""Every public function on tiny models of many architectures: right or refused in a sentence, never wrong.

A sample runs with all other tests. `ARCHITECTURES=all` takes them all, and `make test-architectures` does so and writes
docs/ARCHITECTURES.md.
"""

import os
import re
from pathlib import Path

import matrix
import pytest
import tiny_models

EVERYTHING = os.environ.get("ARCHITECTURES") == "all"
SAMPLE = (
    "gpt2",
    "gptj",
    "gemma2",
    "gemma4",
    "granite",
    "gpt_oss",
    "qwen3_next",
    "falcon_h1",
    "nanochat",
    "openai_gpt",
    "opt_norm_after",
    "mamba",
    "gemma3n",
)
NAMES = tiny_models.NAMES if EVERYTHING else SAMPLE
INSIDE = [name for name in matrix.CHECKS if name not in matrix.LOADING_AND_CACHES]

# What cannot be done, and why: everything else is right on every one of the models.
NO_ATTENTION = {
    "generate_steps",
    "conversation",
    "trace_attentions",
    "residual_contributions",
    "head_contributions",
    "direct_logit",
    "ablate_heads",
    "skip_attention",
    "skip_mlp",
    "patching_sweep_attention",
    "patching_sweep_mlp",
    "head_scores",
    "attention_explorer",
    "kv_cache_summary",
    "kv_cache_explorer",
}
# Normed after each addition: what a layer gives is not what it got and something more. Its MLP is no module by itself.
NO_SUM = {"residual_contributions", "head_contributions", "direct_logit", "skip_mlp", "patching_sweep_mlp"}
NO_CACHE = {"generate_steps", "conversation", "kv_cache_summary", "kv_cache_explorer"}
NO_STREAM = (NO_ATTENTION - NO_CACHE) | {
    "trace_hidden_states",
    "logit_lens",
    "patch_hidden_state",
    "steer",
    "skip_layer",
    "patching_sweep",
    "hidden_state_explorer",
}
REFUSED = {
    "mamba": NO_ATTENTION,
    "mamba2": NO_ATTENTION,
    "falcon_mamba": NO_ATTENTION,
    "rwkv": NO_ATTENTION,
    "gemma3n": NO_STREAM,  # four streams side by side
    "opt_norm_after": NO_SUM,
    "openai_gpt": NO_SUM | NO_CACHE,
    "nemotron_h": {"skip_mlp", "patching_sweep_mlp"},  # a layer is attention, or a mixture, or a state space
    "recurrent_gemma": {"memory_plan", "kv_cache_bytes", "kv_cache_summary"},  # keeps its keys in its own modules
}


@pytest.mark.parametrize("name", NAMES)
def test_right_or_refused(name, folder_of):
    outcomes = matrix.run(folder_of(name), matrix.CHECKS if EVERYTHING else INSIDE)
    faults = {check: outcome for check, outcome in outcomes.items() if outcome.state in ("wrong", "error")}
    assert not faults
    refused = {check for check, outcome in outcomes.items() if outcome.state == "refused"}
    assert refused == REFUSED.get(name, set()) & set(outcomes)
    for check in refused:
        assert "\n" not in outcomes[check].words and outcomes[check].words.endswith(".")


def test_no_other_module_knows_how_layers_are_built():
    """Names of modules inside of a layer stand in anatomy.py alone; a text that is shown may speak of them."""
    names = re.compile(
        r"\.(self_attn|self_attention|o_proj|c_proj|out_proj|input_layernorm|post_attention_layernorm)\b"
    )
    root = Path(__file__).resolve().parents[2] / "helpers"
    for path in sorted(root.rglob("*.py")):
        if path.name == "anatomy.py" or "glm" in path.parts or "exercises" in path.parts:
            continue
        code = "\n".join(line.split("#")[0] for line in path.read_text(encoding="utf-8").splitlines())
        code = re.sub(r'""".*?"""|"[^"\n]*"', "", code, flags=re.S)
        assert not names.search(code), f"{path.name}: {names.search(code).group()}"
