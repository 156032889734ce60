"""Everything of one run: all hidden states and all attention patterns."""

import torch
from measuring import Table, growths, interleaved, memory_text, ratio_text, seconds_text, share_text

from helpers.tracing import trace

SIZES = (64, 256, 512)
TITLE = "Capture all hidden states and attention patterns"
BASELINE = "transformers, `output_hidden_states, output_attentions`"
OURS = "**`trace`**"


def contenders(models, size):
    """Name -> function that runs one prompt and returns what it kept."""
    ids = models.ids(size)

    def plain():
        with torch.no_grad():
            models.plain(ids, use_cache=False)

    def transformers():
        with torch.no_grad():
            return models.eager(ids, use_cache=False, output_hidden_states=True, output_attentions=True)

    def transformer_lens(**which):
        with torch.no_grad():
            return models.bridge.run_with_cache(ids, **which)

    def nnsight():
        with torch.no_grad(), models.nnsight.trace(ids):
            states, patterns = list().save(), list().save()
            for layer in models.nnsight.model.layers:
                patterns.append(layer.self_attn.output[1])
                states.append(layer.output)
            logits = models.nnsight.lm_head.output.save()
        return states, patterns, logits

    def of_two_kinds(name):
        return name.endswith(("hook_resid_post", "hook_pattern"))

    return {
        BASELINE: transformers,
        OURS: lambda: trace(models.plain, models.tokenizer, ids),
        "TransformerLens, these two kinds": lambda: transformer_lens(names_filter=of_two_kinds),
        "TransformerLens, its whole cache": transformer_lens,
        "nnsight, these two kinds": nnsight,
        "plain forward (sdpa), nothing kept": plain,
    }


def kept(name, result):
    """Bytes of the tensors asked for: what memory has to grow by. (TransformerLens' whole cache is its own list.)"""
    if name == OURS:
        return result.nbytes
    if name == BASELINE:
        tensors = (*result.hidden_states, *result.attentions, result.logits)
    elif name.startswith("TransformerLens"):
        tensors = (result[0], *result[1].values())
    elif name.startswith("nnsight"):
        tensors = (*result[0], *result[1], result[2])
    else:
        return 0
    return sum(tensor.nbytes for tensor in tensors)


def run(models, machine, rounds, threads):
    columns = ["", *(f"{size} tokens: time, ratio" for size in SIZES), *(f"memory at {size}" for size in SIZES)]
    table = Table(TITLE, columns)
    seconds = {size: interleaved(contenders(models, size), rounds) for size in SIZES}
    for name in seconds[SIZES[0]]:
        memory = growths("capture", name, SIZES, threads)
        times = [(seconds[size][name], seconds[size][BASELINE]) for size in SIZES]
        shown = [f"{seconds_text(mine)}, {ratio_text(mine, plain)}" for mine, plain in times]
        table.rows.append([name, *shown, *(memory_text(memory[s]) if memory else "" for s in SIZES)])
    limits = {size: models.operations(size) / machine["matmul float32"] for size in SIZES}
    shown = [seconds_text([limit]) for limit in limits.values()]
    table.rows.append(["limit: the matrix products alone, at the machine's float32 rate", *shown, *[""] * len(SIZES)])
    shares = ", ".join(share_text(limits[size], seconds[size][OURS]) for size in SIZES)
    table.notes.append(
        f"Of the time of `trace`, {shares} are these matrix products. Memory: peak growth (times the tensors kept, "
        "logits among them). TransformerLens' whole cache holds more than was asked for, and is what it keeps when "
        "nothing is said."
    )
    return table
