"""The logit lens: the ten likeliest tokens and their probabilities, of every layer and position."""

import torch
from measuring import Table, growths, interleaved, memory_text, ratio_text, seconds_text, share_text

from helpers.inside.lens import logit_lens
from helpers.inside.tracing import trace

SIZE, TOP = 128, 10
TITLE = f"Logit lens: top {TOP} of all 30 layers at {SIZE} positions, from the prompt"
BASELINE = "**`trace` and `logit_lens`** (also the entropy)"


def contenders(models, size=SIZE):
    """Each gives [(probabilities, ids)] of the 30 layers; the run of the model is part of it."""
    ids = models.ids(size)

    def ours():
        keep = {"attentions": False, "logits": False, "layers": range(1, 31)}
        lens = logit_lens(models.plain, trace(models.plain, models.tokenizer, ids, **keep), top_k=TOP)
        return list(zip(lens.probabilities, lens.token_ids, strict=True))

    def states():
        output = models.plain(ids, use_cache=False, output_hidden_states=True, logits_to_keep=1)
        norm, (*below, last) = models.plain.model.norm, output.hidden_states[1:]
        return [*(norm(state[0]) for state in below), last[0]]

    def loop():
        with torch.no_grad():
            return [models.plain.lm_head(state).softmax(-1).topk(TOP, -1) for state in states()]

    def one_product():
        with torch.no_grad():
            best = models.plain.lm_head(torch.stack(states())).softmax(-1).topk(TOP, -1)
        return list(zip(*best, strict=True))

    def lens_loop():
        bridge = models.bridge
        with torch.no_grad():
            _, cache = bridge.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_resid_post"))
            residuals = [cache[f"blocks.{layer}.hook_resid_post"] for layer in range(30)]
            return [bridge.unembed(bridge.ln_final(state))[0].softmax(-1).topk(TOP, -1) for state in residuals]

    def lens_stack():
        bridge = models.bridge
        with torch.no_grad():
            _, cache = bridge.run_with_cache(ids, names_filter=lambda name: "hook_resid_p" in name)
            # Not `apply_ln_to_stack`: it leaves out the norm's weights and takes the last layer's scale for all layers.
            states = bridge.ln_final(cache.accumulated_resid(layer=-1)[1:, 0])
            best = (states @ bridge.W_U).softmax(-1).topk(TOP, -1)
        return list(zip(*best, strict=True))

    def nnsight():
        peer = models.nnsight_sdpa
        with torch.no_grad(), peer.trace(ids):
            best = list().save()
            for layer in peer.model.layers:
                scores = peer.lm_head(peer.model.norm(layer.output))[0]
                best.append(scores.softmax(-1).topk(TOP, -1))
        return best

    return {
        BASELINE: ours,
        "transformers, a loop over layers": loop,
        "transformers, one product": one_product,
        "TransformerLens, a loop over layers": lens_loop,
        "TransformerLens, `accumulated_resid` @ `W_U`": lens_stack,
        "nnsight, a loop over layers": nnsight,
    }


def run(models, machine, rounds, threads):
    table = Table(TITLE, ["", "time", "times ours", "memory", "same as ours"])
    all_of_them = contenders(models)
    mine = all_of_them[BASELINE]()
    same = {name: agreement(mine, contender()) for name, contender in all_of_them.items()}
    seconds = interleaved(all_of_them, rounds)
    for name, times in seconds.items():
        memory = growths("lens", name, [SIZE], threads)
        shown = [seconds_text(times), ratio_text(times, seconds[BASELINE]), memory_text(memory[SIZE]) if memory else ""]
        table.rows.append([name, *shown, same[name]])
    head = models.plain.lm_head.weight
    limit = 2 * 30 * SIZE * head.numel() / machine["matmul float32"]
    row = "limit: the product with `lm_head` alone, at the machine's float32 rate"
    table.rows.append([row, seconds_text([limit]), "", "", ""])
    table.notes.append(
        f"This product is {share_text(limit, seconds[BASELINE])} of our time. In bfloat16 this machine multiplies "
        f"at {machine['matmul bfloat16'] / machine['matmul float32']:.2f} times its float32 rate. The last column is "
        f"the percentage of the {30 * SIZE * TOP:,} tokens that are the same at the same rank (where two probabilities "
        "are nearly equal, the order may differ), and the largest difference between their probabilities."
    )
    return table


def agreement(mine, other):
    """The percentage of the top 10 that is the same, and the largest difference of a probability."""
    same = torch.stack([(a[1] == b[1]).float().mean() for a, b in zip(mine, other, strict=True)]).mean()
    apart = max((a[0] - b[0]).abs().max() for a, b in zip(mine, other, strict=True))
    return f"{same:.1%}, p within {apart:.0e}"
