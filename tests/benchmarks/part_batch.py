"""A file of prompts, one by one and in batches: prompts per second, through the engine that `run_batch` asks."""

import statistics

from measuring import Table, interleaved, ratio_text, seconds_text

from helpers.batch.engines import GenerationSettings, TransformersEngine, as_prompt
from helpers.text.prompts import load_prompts, render_chat

NEW = 16
SIZES = (1, 2, 4, 8)
TITLE = f"Eight questions through the chat template, greedy, up to {NEW} new tokens each"
BASELINE = "`run_batch`'s engine, one by one"


def contenders(models):
    """Each gives the eight answers, by index."""
    questions = load_prompts("english")[1:5] + load_prompts("chinese")[:4]
    chats = [render_chat(models.tokenizer, [{"role": "user", "content": text}]) for text in questions]
    prompts = [as_prompt(index, chat) for index, chat in enumerate(chats)]
    settings = GenerationSettings(do_sample=False, max_new_tokens=NEW)

    def in_batches(size):
        engine = TransformersEngine(models.plain, models.tokenizer, batch_size=size)
        return lambda: dict(engine.generate(iter(prompts), settings))

    names = {size: BASELINE if size == 1 else f"**`run_batch`'s engine, batch size {size}**" for size in SIZES}
    return {names[size]: in_batches(size) for size in SIZES}


def run(models, machine, rounds, threads):
    table = Table(TITLE, ["", "time", "ratio", "prompts per second", "times one by one", "same answers"])
    all_of_them = contenders(models)
    answers = {name: contender() for name, contender in all_of_them.items()}
    seconds = interleaved(all_of_them, rounds)
    for name, times in seconds.items():
        ratios = ratio_text(times, seconds[BASELINE])
        faster = statistics.median(one / ours for one, ours in zip(seconds[BASELINE], times, strict=False))
        speed = f"{len(answers[name]) / statistics.median(times):.2f}"
        same = "yes" if answers[name] == answers[BASELINE] else "no"
        table.rows.append([name, seconds_text(times), ratios, speed, f"{faster:.2f}", same])
    return table
