"""Tiny random checkpoints in the original layout, and what the original code computed from them.

Made once with the original modelling code on transformers 4.44.2: `golden.json` and
`golden.safetensors` hold ids, texts and tensors, each under the name of the conversation it is from.
"""

import json
import shutil
from contextlib import contextmanager
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "fixtures" / "glm"
CHAT, VISION = "glm4-chat-a", "glm4v-a"
TOLERANCE = 5e-5


def checkpoint(name):
    return FOLDER / name / "checkpoint"


@cache
def golden(name):
    return json.loads((FOLDER / name / "golden.json").read_text(encoding="utf-8"))


@cache
def tensors(name):
    from safetensors.torch import load_file

    return load_file(FOLDER / name / "golden.safetensors")


@cache
def glm(name, implementation="sdpa"):
    """The model, in eval mode. Leave it as it is."""
    from transformers import AutoModelForCausalLM

    import helpers.glm  # noqa: F401
    from helpers.models.store import quiet_progress

    with quiet_progress():
        model = AutoModelForCausalLM.from_pretrained(checkpoint(name), attn_implementation=implementation).eval()
    model.generation_config.max_length = None  # else generate says at each call that max_new_tokens wins
    return model


@cache
def glm_tokenizer(name):
    from transformers import AutoTokenizer

    import helpers.glm  # noqa: F401

    return AutoTokenizer.from_pretrained(checkpoint(name))


@cache
def glm_processor(name):
    """The processor; of the chat model, which takes text only, its tokenizer."""
    from transformers import AutoProcessor

    import helpers.glm  # noqa: F401

    return AutoProcessor.from_pretrained(checkpoint(name))


def with_pictures(name, conversation):
    """The conversation with its pictures' file names made paths."""
    return [
        {**message, "image": FOLDER / name / "images" / message["image"]} if "image" in message else message
        for message in conversation
    ]


def model_inputs(name, conversations):
    """A batch of conversations, as a reader would prepare it for the model."""
    batch = [with_pictures(name, conversation) for conversation in conversations]
    encoded = glm_processor(name).apply_chat_template(
        batch, add_generation_prompt=True, return_tensors="pt", padding=True
    )
    return dict(encoded)


def copy_of(name, folder):
    """A copy of a checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoint(name), folder / name))


def change_json(path, **changes):
    """Writes settings into a JSON file; None takes one out."""
    settings = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}), encoding="utf-8")


@contextmanager
def one_thread():
    """Models this small are faster on one thread, much so when other processes want the cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
