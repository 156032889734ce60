"""What all tests share. Nothing here or in the tests reaches for a network."""

import gc
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HELPERS_PROGRESS"] = "off"  # what tests solve is nobody's progress

import pytest

# nbformat's validator would read a grammar of web addresses for two seconds; no notebook's format has one.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Long tests first in each process' share, which is a slice of the list (pytest-xdist's `worksteal`).

    What is left for the end is then short, and no process waits for another.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if item.get_closest_marker("long")]
    short = [item for item in items if not item.get_closest_marker("long")]
    size = len(items) // processes
    items.clear()
    for process in range(processes):
        first = long[process::processes]
        last = len(short) if process == processes - 1 else size - len(first)
        items += first + short[:last]
        del short[:last]


def pytest_collection_finish():
    """What importing left in memory stays there, so that no search for garbage goes through it again and again.

    These searches took more than a tenth of the tests' time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


@pytest.fixture(scope="module", autouse=True)
def matplotlib_as_it_was():
    """A file of tests that sets the course's style does not set it for the files after it."""
    import matplotlib

    with matplotlib.rc_context():
        yield


@pytest.fixture(scope="session")
def model():
    """The default model, float32 on the CPU, sdpa. Leave it as it is."""
    from helpers.models.loading import load_model

    return load_model("smollm2-135m", device="cpu")


@pytest.fixture(scope="session")
def tokenizer():
    """The default model's tokenizer."""
    from helpers.models.pretrained import load_tokenizer

    return load_tokenizer("smollm2-135m")


@pytest.fixture(scope="session")
def llama3_tokenizer():
    """The real Llama-3 tokenizer."""
    from helpers.models.pretrained import load_tokenizer

    return load_tokenizer("llama-3-tokenizer")


@pytest.fixture(scope="session")
def new_tiny():
    """A function: `new_tiny("Llama")` is a new random model of 3 layers, 4 heads and 2 key/value heads."""
    import torch
    import transformers
    from tiny_sizes import SIZES

    def new(family, **settings):
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**SIZES | settings)
        return getattr(transformers, f"{family}ForCausalLM")(config).eval().requires_grad_(False)

    return new


@pytest.fixture(params=["Llama", "Glm"])
def tiny(request, new_tiny):
    """A small random model with parts that all matter."""
    return new_tiny(request.param)
