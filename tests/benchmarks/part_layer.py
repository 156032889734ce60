"""One hidden state, halfway up, without running the layers above it."""

import torch
from measuring import Table, growths, interleaved, memory_text, ratio_text, seconds_text, share_text

from helpers.inside.tracing import trace

SIZES = (64, 256, 512)
LAYER = 15
TITLE = f"The hidden state after layer {LAYER} of 30, without running the layers above it"
BASELINE = "a bare hook that stops"
OURS = f"**`trace(layers={LAYER}, attentions=False, logits=False)`**"


class Stop(Exception):
    """The hook has seen what it came for."""


def contenders(models, size):
    ids = models.ids(size)

    def plain():
        with torch.no_grad():
            return models.plain(ids, use_cache=False)

    def hook_that_stops():
        seen = []

        def hook(module, arguments):
            seen.append(arguments[0])
            raise Stop

        handle = models.plain.model.layers[LAYER].register_forward_pre_hook(hook)
        try:
            with torch.no_grad():
                models.plain(ids, use_cache=False)
        except Stop:
            pass
        finally:
            handle.remove()
        return seen

    def transformer_lens():
        with torch.no_grad():
            return models.bridge(ids, stop_at_layer=LAYER)

    def nnsight():
        with torch.no_grad(), models.nnsight_sdpa.trace(ids) as tracer:
            state = models.nnsight_sdpa.model.layers[LAYER - 1].output.save()
            tracer.stop()
        return state

    only = {"attentions": False, "logits": False}
    return {
        BASELINE: hook_that_stops,
        OURS: lambda: trace(models.plain, models.tokenizer, ids, layers=LAYER, **only),
        "TransformerLens, `stop_at_layer`": transformer_lens,
        "nnsight, `tracer.stop()`": nnsight,
        "plain forward, all layers": plain,
    }


def run(models, machine, rounds, threads):
    table = Table(TITLE, ["", *(f"{size} tokens: time, ratio" for size in SIZES), f"memory at {SIZES[-1]}"])
    seconds = {size: interleaved(contenders(models, size), rounds) for size in SIZES}
    for name in seconds[SIZES[0]]:
        memory = growths("layer", name, SIZES[-1:], threads)
        times = [(seconds[size][name], seconds[size][BASELINE]) for size in SIZES]
        shown = [f"{seconds_text(mine)}, {ratio_text(mine, hook)}" for mine, hook in times]
        table.rows.append([name, *shown, memory_text(memory[SIZES[-1]]) if memory else ""])
    limits = {size: models.operations(size, LAYER) / machine["matmul float32"] for size in SIZES}
    shown = [seconds_text([limit]) for limit in limits.values()]
    table.rows.append([f"limit: the matrix products of {LAYER} layers, at the machine's float32 rate", *shown, ""])
    shares = ", ".join(share_text(limits[size], seconds[size][OURS]) for size in SIZES)
    table.notes.append(f"These matrix products are {shares} of the time of `trace`.")
    return table
