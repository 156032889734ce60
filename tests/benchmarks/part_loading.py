"""How long it takes until one can begin: imports and loading, each in a fresh process."""

from pathlib import Path

from measuring import Table, in_fresh_process, interleaved, ratio_text, seconds_text, share_text

TITLE = "Import and load, each in a fresh process"
TIMED = """
import os, sys, time
os.environ["HF_HUB_OFFLINE"] = "1"
{before}
start = time.perf_counter()
{code}
print(time.perf_counter() - start)
"""
IMPORTS = {
    "`import torch`": "import torch",
    "**`import helpers`**": "import helpers",
    "**`helpers`: `trace, load_model, load_tokenizer`**": "from helpers import trace, load_model, load_tokenizer",
    "transformers: `AutoModelForCausalLM`": "from transformers import AutoModelForCausalLM",
    "TransformerLens: `TransformerBridge`": "from transformer_lens.model_bridge import TransformerBridge",
    "nnsight": "import nnsight",
    "BertViz: `head_view`": "from bertviz import head_view",
    "CircuitsVis: `attention`": "from circuitsvis import attention",
}
TRANSFORMERS, OURS = "transformers: `from_pretrained`, model and tokenizer", "**`load_model`, `load_tokenizer`**"
LOADS = {
    TRANSFORMERS: (
        "import torch, transformers\nfrom transformers import LlamaForCausalLM, AutoTokenizer",
        "LlamaForCausalLM.from_pretrained({folder!r}), AutoTokenizer.from_pretrained({folder!r})",
    ),
    OURS: (
        "from transformers import LlamaForCausalLM, AutoTokenizer\nfrom helpers import load_model, load_tokenizer",
        "load_model('smollm2-135m', device='cpu'), load_tokenizer('smollm2-135m')",
    ),
    "TransformerLens: `boot_transformers`": (
        "from transformers import LlamaForCausalLM, AutoTokenizer\n"
        "from transformer_lens.model_bridge import TransformerBridge",
        "TransformerBridge.boot_transformers({folder!r}, device='cpu')",
    ),
    "nnsight: `TransformersModel`": (
        "from transformers import LlamaForCausalLM, AutoTokenizer\nfrom nnsight import TransformersModel",
        "TransformersModel({folder!r}, task='text-generation', device_map='cpu', dispatch=True)",
    ),
}


def run(models, machine, rounds, threads):
    programs = {f"import: {name}": TIMED.format(before="", code=code) for name, code in IMPORTS.items()}
    for name, (before, code) in LOADS.items():
        programs[f"load: {name}"] = TIMED.format(before=before, code=code.format(folder=models.folder))
    seconds = interleaved(programs, rounds, clock=in_fresh_process)
    table = Table(TITLE, ["", "time", "ratio to transformers"])
    for name, times in seconds.items():
        kind = IMPORTS if name.startswith("import") else LOADS
        baseline = seconds[f"{name.split(':')[0]}: {next(key for key in kind if key.startswith('transformers'))}"]
        table.rows.append([name, seconds_text(times), ratio_text(times, baseline)])
    limit = sum(file.stat().st_size for file in Path(models.folder).iterdir()) / machine["reading"]
    table.rows.append(["limit: the model's files read once from memory", seconds_text([limit]), ""])
    ours, theirs = (seconds[f"load: {name}"] for name in (OURS, TRANSFORMERS))
    table.notes.append(
        "Loading is timed after the imports, with the files already in memory. Ours also checks the files, and plans "
        "the memory before it begins. Weights are mapped and not copied: "
        f"reading them would take {share_text(limit, theirs)} of transformers' time and {share_text(limit, ours)} "
        "of ours. For imports there is no such limit."
    )
    return table
