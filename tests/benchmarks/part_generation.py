"""A greedy answer of 64 tokens, with everything between logits and token kept."""

import statistics

import torch
from measuring import Table, interleaved, ratio_text, seconds_text, share_text

from helpers.inside.generation import generate_steps

TEXT = "Once upon a time, in a village between two rivers, there lived a girl who asked everyone the same question:"
NEW = 64
TITLE = f"Greedy, {NEW} new tokens, repetition penalty 1.1"
BASELINE = "`model.generate` (keeps nothing)"
TOP_TEN = "**`generate_steps`**, top 10 before and after each processor kept"
EVERYTHING = "**`generate_steps`**, every record kept"


def contenders(models):
    """Each gives the new ids."""
    ids = models.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    prompt = ids.shape[1]
    model = models.plain
    settings = {"max_new_tokens": NEW, "do_sample": False, "repetition_penalty": 1.1}

    def generate():
        output = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        return output[0, prompt:].tolist()

    def steps():
        return generate_steps(model, models.tokenizer, ids, **settings)

    def top_ten_of(step):
        scores = {"logits": step.logits, **step.processed}
        return step.token_id, {name: score.topk(10) for name, score in scores.items()}

    def ours_top_ten():
        kept = [top_ten_of(step) for step in steps()]
        return [token_id for token_id, _ in kept]

    def ours_everything():
        kept = list(steps())
        return [step.token_id for step in kept]

    def transformer_lens():
        output = models.bridge.generate(ids, verbose=False, return_type="tokens", **settings)
        return output[0, prompt:].tolist()

    def nnsight():
        peer = models.nnsight_sdpa
        with torch.no_grad(), peer.generate(ids, **settings) as tracer:
            output = tracer.result.save()
        return output[0, prompt:].tolist()

    return {
        BASELINE: generate,
        TOP_TEN: ours_top_ten,
        EVERYTHING: ours_everything,
        "TransformerLens, `generate` (keeps nothing)": transformer_lens,
        "nnsight, `generate` (keeps nothing)": nnsight,
    }


def run(models, machine, rounds, threads):
    table = Table(TITLE, ["", "time", "ratio", "tokens per second", "same tokens"])
    all_of_them = contenders(models)
    answers = {name: contender() for name, contender in all_of_them.items()}
    if len(answers[BASELINE]) < NEW:
        raise RuntimeError(f"The answer ends after {len(answers[BASELINE])} tokens: take another prompt.")
    seconds = interleaved(all_of_them, rounds)
    for name, times in seconds.items():
        same = "yes" if answers[name] == answers[BASELINE] else "no"
        speed = f"{len(answers[name]) / statistics.median(times):.1f}"
        table.rows.append([name, seconds_text(times), ratio_text(times, seconds[BASELINE]), speed, same])
    weights = sum(parameter.nbytes for parameter in models.plain.parameters())
    for rate in ("matrix times vector", "reading"):
        limit = NEW * weights / machine[rate]
        row = f"limit: every weight once per token, at the machine's rate of {rate}"
        table.rows.append([row, seconds_text([limit]), "", f"{NEW / limit:.1f}", ""])
        shares = ", ".join(share_text(limit, seconds[name]) for name in (BASELINE, TOP_TEN, EVERYTHING))
        table.notes.append(f"The limit set by {rate} is {shares} of the time of the first three rows.")
    return table
