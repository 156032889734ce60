"""Everything of one run: all hidden states and all attention patterns."""

import torch
from measuring import Table, growths, interleaved, memory_text, ratio_text, seconds_text, share_text

from helpers.inside.tracing import trace

SIZES = (64, 256, 512)
TITLE = "Capture all hidden states and attention patterns"
BASELINE = "transformers, `output_hidden_states, output_attentions`"
OURS = "**`trace`**"
PLAIN = "plain forward pass (sdpa), only the logits kept"


def contenders(models, size):
    """Name -> function that runs one prompt and returns what it kept."""
    ids = models.ids(size)

    def plain():
        with torch.no_grad():
            return models.plain(ids, use_cache=False).logits

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
        PLAIN: plain,
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
        tensors = (result,)
    return sum(tensor.nbytes for tensor in tensors)


def run(models, machine, rounds, threads):
    columns = ["", *(f"{size} tokens: time, ratio" for size in SIZES), *(f"memory at {size}" for size in SIZES)]
    table = Table(TITLE, columns)
    seconds = {size: interleaved(contenders(models, size), rounds) for size in SIZES}
    grown = {name: growths("capture", name, SIZES, threads) for name in seconds[SIZES[0]]}
    for name, memory in grown.items():
        times = [(seconds[size][name], seconds[size][BASELINE]) for size in SIZES]
        shown = [f"{seconds_text(mine)}, {ratio_text(mine, plain)}" for mine, plain in times]
        table.rows.append([name, *shown, *(memory_text(memory[s]) if memory else "" for s in SIZES)])
    limits = {size: models.operations(size) / machine["matmul float32"] for size in SIZES}
    shown = [seconds_text([limit]) for limit in limits.values()]
    table.rows.append(["limit: the matrix products alone, at the machine's float32 rate", *shown, *[""] * len(SIZES)])
    shares = ", ".join(share_text(limits[size], seconds[size][OURS]) for size in SIZES)
    table.notes.append(
        f"These matrix products are {shares} of the time of `trace`. Memory is the peak growth, in brackets as a "
        "multiple of the tensors kept (including the logits). TransformerLens' whole cache holds more than these, and "
        "is what it keeps by default."
    )
    if grown[PLAIN]:
        own = {size: memory["peak"] - memory["tensors"] for size, memory in grown[PLAIN].items()}
        shown = ", ".join(f"{own[s] / 1e6:.2g} MB ({own[s] / grown[OURS][s]['tensors']:.0%})" for s in SIZES)
        table.notes.append(
            f"The plain forward pass takes {shown} besides its logits (in brackets, relative to the tensors that "
            "`trace` keeps): that is the model's own run, without any hooks."
        )
    return table
