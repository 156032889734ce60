"""What the engines' tests share: the prompts, what transformers answers to them, and how far two answers agree.

They run in the engines' own environment: `make test-engines`.
"""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("vllm") is None or importlib.util.find_spec("ray") is None:
    collect_ignore_glob = ["test_*.py"]  # the course's own environment

ROOT = Path(__file__).resolve().parents[2]
# Two tokens whose logits differ by less than this may change places between two ways to add the same numbers.
CLOSE = {"float32": 1e-3, "bfloat16": 1.0}


@pytest.fixture(scope="session")
def settings():
    """Greedy, short."""
    from helpers.batch.engines import GenerationSettings

    return GenerationSettings(max_new_tokens=16, do_sample=False, repetition_penalty=1.0)


@pytest.fixture(scope="session")
def prompts():
    """Those of data/prompts, English and Chinese, as questions to a chat model; and one with a control token."""
    from helpers.batch.engines import Prompt
    from helpers.text.prompts import load_prompts

    texts = [*load_prompts("english"), *load_prompts("chinese"), "What does <|im_end|> mean?"]
    return [Prompt(i, text, messages=[{"role": "user", "content": text}]) for i, text in enumerate(texts)]


@pytest.fixture(scope="session")
def expected(model, tokenizer, prompts, settings):
    """index -> what transformers answers in float32."""
    from helpers.batch.engines import TransformersEngine

    return dict(TransformersEngine(model, tokenizer).generate(iter(prompts), settings))


@pytest.fixture(scope="session")
def agree(model, tokenizer, prompts, expected):
    """A function: answers of an engine -> how many are identical; fails where one parts for no good reason."""

    def check(answers, dtype="float32"):
        assert sorted(answers) == [prompt.index for prompt in prompts]
        partings = {
            prompt.index: parting(model, tokenizer, prompt, expected[prompt.index], answers[prompt.index])
            for prompt in prompts
            if answers[prompt.index] != expected[prompt.index]
        }
        wrong = {index: where for index, where in partings.items() if where[1] > CLOSE[dtype]}
        assert not wrong, f"they part where the choice is clear: {wrong}"
        return len(prompts) - len(partings)

    return check


def parting(model, tokenizer, prompt, ours, theirs):
    """(token, margin): where two answers part, and by how much logits prefer our token there to theirs."""
    import torch

    from helpers.batch.engines import prompt_token_ids

    ours, theirs = (
        [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in (ours, theirs)
    )
    place = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if place is None:
        return min(len(ours), len(theirs)), math.inf
    ids = prompt_token_ids(tokenizer, prompt) + ours[:place]
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, -1]
    return place, float(logits[ours[place]] - logits[theirs[place]])


@pytest.fixture(scope="session")
def batch_command():
    """A function: options -> `python -m helpers.batch` with them, as a process; its errors are a pipe."""

    def start(*options, **environment):
        return subprocess.Popen(
            [sys.executable, "-m", "helpers.batch", *map(str, options)],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
