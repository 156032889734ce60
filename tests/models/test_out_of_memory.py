"""Running out of memory is recognized in whatever words, blamed on nothing else, and leaves nothing behind."""

from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from helpers.errors import DamagedFilesError, DoesNotFitError, ModelBusyError
from helpers.models import fitting, loading, pretrained
from helpers.models.fitting import refusing_what_does_not_fit
from helpers.models.out_of_memory import device_in, is_out_of_memory

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 79.11 GiB of which 1 GiB is free."
CPU = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
OUT_OF_MEMORY = [
    torch.OutOfMemoryError(CUDA),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("HIP error: out of memory"),
    RuntimeError(
        "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB, max allowed: 9.07 GB)"
    ),
    RuntimeError("Invalid buffer size: 17.88 GB"),
    RuntimeError("Invalid buffer size: 17.88 GiB"),
    RuntimeError(f"{CPU} 9 bytes. Error code 12 (Cannot allocate memory)"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you tried to allocate"
    ),
    RuntimeError("unable to mmap 538090408 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
]
SOMETHING_ELSE = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`"),
    RuntimeError("out of resource: shared memory, Required: 262144, Hardware limit: 232448."),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (5x8 and 9x3)"),
    RuntimeError("required rank 4 tensor to use channels_last format: out of memory formats"),
    RuntimeError("shape '[2, 3]' is invalid for input of size 5"),
    RuntimeError("Invalid buffer size"),
    RuntimeError("setStorage: sizes [3] require a storage that is out of bounds for memory of size 4"),
    ValueError("CUDA out of memory"),
    ModelBusyError("busy: CUDA out of memory"),
    DoesNotFitError("it ran out of memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_running_out_of_memory_is_recognized(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", SOMETHING_ELSE, ids=str)
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


def test_the_device_is_read_where_the_error_names_it():
    assert device_in(RuntimeError(CUDA)) == "cuda:1"
    assert device_in(RuntimeError(f"{CPU} 9 bytes")) == device_in(MemoryError()) == "cpu"
    assert device_in(RuntimeError("CUDA error: out of memory")) is None


@pytest.mark.parametrize(
    ("error", "device"),
    [(RuntimeError(CUDA), "cuda:1"), (MemoryError(), "cpu"), (RuntimeError("CUDA error: out of memory"), "cuda:0")],
)
def test_of_several_devices_the_one_that_ran_out_is_named(monkeypatch, error, device):
    """Or else the fullest one."""
    free = {"cuda:0": 10**9, "cuda:1": 2 * 10**9, "cpu": 3 * 10**9}
    released = []
    monkeypatch.setattr(fitting, "available_bytes", free.get)
    monkeypatch.setattr(fitting, "release_cached", released.append)
    options = {'device="cpu"': 0, "half": 10**9}
    with (
        pytest.raises(DoesNotFitError, match=f"This ran out of memory on {device}") as raised,
        refusing_what_does_not_fit("This", 5 * 10**9, ", ".join(free), options),
    ):
        raise error
    assert raised.value.available_bytes == free[device] and released == list(free)
    assert str(raised.value).endswith('What would fit: device="cpu"; half (1 GB).')


@pytest.fixture
def loading_fails(monkeypatch):
    """`load_model`, with a library that fails once it has a part of the weights; (load, the weights that are alive)."""
    weights = []

    def load(error):
        def from_pretrained(*_, **__):
            part = torch.ones(1000)
            weights.append(StorageWeakRef(part.untyped_storage()))
            module = torch.nn.Linear(1, 1)
            module.part, module.itself = part, [module]  # a cycle
            raise error() if isinstance(error, type) else error

        monkeypatch.setattr(loading, "auto_class", lambda config: SimpleNamespace(from_pretrained=from_pretrained))
        return loading.load_model("smollm2-135m", device="cpu", dtype="float32")

    return load, lambda: [weight for weight in weights if not weight.expired()]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_loading_does_not_blame_the_files(loading_fails, error):
    load, _ = loading_fails
    with pytest.raises(DoesNotFitError, match=r"^Loading smollm2-135m needs 538 MB"):
        load(error)


def test_loading_still_blames_the_files_for_other_errors(loading_fails):
    load, _ = loading_fails
    with pytest.raises(DamagedFilesError, match="Fetch its files again"):
        load(RuntimeError("shape '[2, 3]' is invalid for input of size 5"))


def test_what_was_loaded_is_gone_before_what_is_free_is_measured(monkeypatch, loading_fails):
    load, alive = loading_fails
    asked = []

    def available_bytes(device):
        asked.append(len(alive()))
        return 10**9

    monkeypatch.setattr(loading, "available_bytes", available_bytes)
    with pytest.raises(DoesNotFitError) as error:
        load(torch.OutOfMemoryError(CUDA))
    assert asked == [0]
    assert not alive(), "nor does the error keep it, which IPython keeps"
    assert error.value.__cause__ is None and error.value.__suppress_context__


def test_running_out_while_weights_are_quantized_is_read_from_the_report():
    """transformers collects these errors, and raises one at the end that only refers to its report."""

    class Library:
        @staticmethod
        def from_pretrained(*_, **__):
            loading_info = SimpleNamespace(conversion_errors={"layers.0": f"torch.OutOfMemoryError: {CUDA}\nError"})
            raise RuntimeError(f"We encountered some issues during automatic conversion: {len(vars(loading_info))}")

    with pytest.raises(DoesNotFitError):
        pretrained.from_pretrained(Library, "folder")


def test_where_transformers_keeps_these_errors():
    """The names that `pretrained._in_the_report` relies on."""
    from transformers.utils.loading_report import LoadStateDictInfo, log_state_dict_report

    nothing = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "skipped_pp_keys": set()}
    errors = {"layers.0": "Quantize: CUDA out of memory"}
    info = LoadStateDictInfo(**nothing, error_msgs=[], conversion_errors=errors)
    model = torch.nn.Linear(1, 1)
    with pytest.raises(DoesNotFitError), pretrained.told("The folder cannot be loaded"):
        log_state_dict_report(model, "folder", False, info)
