"""Tests of what differs on a device: `make test-gpu`, or `python -m pytest tests/gpu` where torch and transformers are.

They need no prepared model and no network: models are tiny or random, and made here. Without a GPU they skip.
"""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks"), str(ROOT / "tests")]


def pytest_collection_modifyitems(items):
    for item in items:
        if ROOT / "tests" / "gpu" in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU: make test-gpu runs it on one"))


@pytest.fixture(scope="session")
def device():
    return torch.device("cuda:0")


@pytest.fixture(scope="session")
def letters():
    """A tokenizer whose ids are in the vocabulary of every model here."""
    from gpu_models import tokenizer

    return tokenizer()


@pytest.fixture(scope="session", params=["float32", "bfloat16"])
def llama(request, device):
    """135 M parameters, random; sdpa."""
    from gpu_models import SMOL
    from gpu_models import llama as made

    return made(SMOL, device, getattr(torch, request.param))


@pytest.fixture(scope="session")
def exact(device):
    """The same in float32 alone."""
    from gpu_models import SMOL
    from gpu_models import llama as made

    return made(SMOL, device, torch.float32)


@pytest.fixture
def little_memory(device):
    """A function that leaves torch so many bytes of the device beside what is in use."""

    def leave(size):
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + size) / total, device)

    yield leave
    torch.cuda.set_per_process_memory_fraction(1.0, device)
    torch.cuda.empty_cache()
