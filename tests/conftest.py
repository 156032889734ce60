"""What all tests share. Nothing here or in the tests reaches for a network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


@pytest.fixture(scope="session")
def model():
    """The default model, float32 on the CPU, sdpa. Leave it as it is."""
    from helpers.loading import load_model

    return load_model("smollm2-135m", device="cpu")


@pytest.fixture(scope="session")
def tokenizer():
    """The default model's tokenizer."""
    from helpers.loading import load_tokenizer

    return load_tokenizer("smollm2-135m")


@pytest.fixture(scope="session")
def llama3_tokenizer():
    """The real Llama-3 tokenizer."""
    from helpers.loading import load_tokenizer

    return load_tokenizer("llama-3-tokenizer")
