"""Where a trace is kept: on the model's device, or on another; and what is said when it fits on none."""

import copy
import pickle

import pytest
import torch

from helpers.errors import DoesNotFitError
from helpers.inside import tracing
from helpers.inside.keeping import Keeper, _pieces, home, working_devices
from helpers.inside.tracing import trace

GB = 10**9


@pytest.fixture
def free(monkeypatch):
    """Sets how many bytes are free, by kind of device."""

    def pretend(**sizes):
        monkeypatch.setattr(tracing, "available_bytes", lambda device: sizes[torch.device(device).type])

    return pretend


def test_pieces_are_of_the_size_asked_for_and_together_everything():
    value = torch.arange(7 * 5 * 3.0).view(7, 5, 3)
    for size in (12, 60, 130, 10**6):
        place = torch.zeros(7, 5, 6)[..., ::2]
        pieces = list(_pieces(place, value, size))
        assert all(piece.nbytes <= size for _, piece in pieces)
        for part, piece in pieces:
            part.copy_(piece)
        assert torch.equal(place, value)


def test_a_copy_has_memory_of_its_own():
    value = torch.ones(3)
    with Keeper("cpu") as keeper:
        copy = keeper.copy(value)
    value.zero_()
    assert copy.sum() == 3


def test_chosen_positions_are_kept_by_the_keeper_too(tiny, tokenizer, monkeypatch):
    """It moves them while the model computes on. Rows of a block of queries that are neighbours are one piece."""
    written = []

    class Watched(Keeper):
        def write(self, place, value):
            written.append(list(value.shape))
            super().write(place, value)

    monkeypatch.setattr(tracing, "Keeper", Watched)
    ids = torch.arange(200)[None] % 60
    whole = trace(tiny, tokenizer, ids, hidden_states=False, logits=False).attentions
    sorted_ones, others = [[4, 2, 128], [4, 2, 200]], [[4, 1, 128], [4, 1, 200], [4, 1, 200]]
    for positions, pieces in (([3, 4, 130, -1], sorted_ones), ([150, 2, 140], others)):
        written.clear()
        run = trace(tiny, tokenizer, ids, hidden_states=False, logits=False, positions=positions)
        assert torch.equal(run.attentions, whole[:, :, positions])
        assert written == 3 * pieces


def test_home_is_where_a_module_computes():
    layer = torch.nn.Linear(2, 2)
    assert home(layer) == torch.device("cpu")
    layer.to("meta")._hf_hook = type("Hook", (), {"execution_device": 1})
    assert home(layer) == torch.device("cuda:1")


def test_a_trace_says_where_it_is(model, tokenizer, monkeypatch):
    monkeypatch.setattr(tracing, "pick_device", str)  # it refuses "meta", the other device that every machine has
    run = trace(model, tokenizer, "Hello there", attentions=False)
    assert run.device == torch.device("cpu")
    assert repr(run).endswith("MB on cpu)")
    meta = run.to("meta")
    assert meta.device == torch.device("meta") and meta.hidden_states.device.type == "meta"
    assert meta.tokens == run.tokens and run.device.type == "cpu"


def test_labels_are_made_when_they_are_read(model, tokenizer):
    run = trace(model, tokenizer, "Hello there", attentions=False, logits=False, layers=0)
    assert callable(vars(run)["tokens"])
    assert pickle.loads(pickle.dumps(run)).tokens == run.tokens == ("Hello", "·there")
    assert not callable(vars(run)["tokens"])


def test_auto_takes_the_cpu_when_the_gpu_is_full(free):
    gpu = torch.device("cuda:0")
    free(cuda=10 * GB, cpu=50 * GB)
    assert tracing._place("auto", 5 * GB, {}, gpu) == gpu
    assert tracing._place("auto", 20 * GB, {}, gpu) == torch.device("cpu")
    assert tracing._place("cpu", 5 * GB, {}, gpu) == torch.device("cpu")
    with pytest.raises(DoesNotFitError, match=r"needs 70 GB, and 9 GB is free on cuda:0"):
        tracing._place("auto", 70 * GB, {}, gpu)


def test_the_work_of_the_layers_needs_room_beside_the_result(free, monkeypatch):
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(tracing, "pick_device", str)
    free(cuda=10 * GB, cpu=50 * GB)
    assert tracing._place("auto", 8 * GB, {}, gpu, 1 * GB) == gpu
    assert tracing._place("auto", 8 * GB, {}, gpu, 2 * GB) == torch.device("cpu")
    with pytest.raises(DoesNotFitError) as error:
        tracing._place("cuda:0", 8 * GB, {"attentions=False": 3 * GB}, gpu, 2 * GB)
    assert error.value.would_fit == ('device="cpu"', "attentions=False") and error.value.available_bytes == 7 * GB
    with pytest.raises(DoesNotFitError) as error:
        tracing._place("cuda:0", 48 * GB, {}, gpu, 2 * GB)
    assert error.value.would_fit == (), "there is no room on the CPU either"
    free(cuda=10 * GB, cpu=8 * GB)
    with pytest.raises(DoesNotFitError) as error:
        tracing._place("cpu", 8 * GB, {}, gpu, 2 * GB)
    assert error.value.would_fit == (), "it was to be on the CPU already"


def test_the_devices_of_a_model_that_is_spread_over_several(tiny):
    assert working_devices(tiny) == [torch.device("cpu")]
    model = copy.copy(tiny)
    model.hf_device_map = {"model.embed_tokens": 0, "model.layers.0": 1, "model.layers.1": "cuda:1", "lm_head": "disk"}
    assert [str(device) for device in working_devices(model)] == ["cpu", "cuda:0", "cuda:1"]


def test_a_trace_that_cannot_fit_is_refused_before_it_runs(model, tokenizer, free):
    """8,000 tokens with attentions are 69 GB, which used to be asked for without a word."""
    free(cpu=8 * GB)
    ran = []
    with (
        model.model.embed_tokens.register_forward_hook(lambda *_: ran.append(1)),
        pytest.raises(DoesNotFitError) as error,
    ):
        trace(model, tokenizer, torch.randint(100, 200, (1, 8000)))
    assert not ran
    assert 69 * GB < error.value.needed_bytes < 72 * GB and error.value.available_bytes == 7.2 * GB
    assert error.value.would_fit[0] == "attentions=False" and "layers=[0]" in error.value.would_fit[1]
    assert str(error.value).startswith("Keeping this trace needs 71.3 GB, and 7.2 GB is free on cpu.")
    assert trace(model, tokenizer, "a b", layers=3, logits=False).attentions.shape[0] == 1


def test_what_would_fit_does(model, tokenizer, free):
    """The sizes that the advice rests on are those of the results."""
    whole = trace(model, tokenizer, "a b c d e f")
    free(cpu=(whole.nbytes - 100) / tracing.SPARE)  # the ids are not counted
    with pytest.raises(DoesNotFitError) as error:
        trace(model, tokenizer, "a b c d e f")
    assert error.value.needed_bytes == pytest.approx(whole.nbytes, rel=0.001)
    assert trace(model, tokenizer, "a b c d e f", attentions=False).nbytes < error.value.available_bytes


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
@pytest.mark.parametrize("place", ["model.layers.1.mlp", "lm_head"])
@pytest.mark.parametrize("known", [False, True])
def test_memory_that_runs_out_ends_in_one_sentence(tiny, error, place, known):
    """In the run that finds the model's parts, and in the one after it."""

    class Letters:
        all_special_ids, added_tokens_decoder, chat_template = (), {}, None

        def __len__(self):
            return 64

    def fail(*_):
        raise error

    before = [(name, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in tiny.named_modules()]
    attention = tiny.config._attn_implementation
    ids = torch.arange(1, 20)[None]
    logits = tiny(ids).logits
    if known:
        trace(tiny, Letters(), ids)
    with tiny.get_submodule(place).register_forward_pre_hook(fail), pytest.raises(DoesNotFitError) as raised:
        trace(tiny, Letters(), ids)
    assert "ran out of memory on cpu" in str(raised.value) and raised.value.would_fit
    assert str(raised.value).startswith(
        "This trace" if known else f"A first look at the parts of {type(tiny).__name__}"
    )
    assert 0 < raised.value.needed_bytes < raised.value.available_bytes
    assert [(name, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in tiny.named_modules()] == before
    assert tiny.config._attn_implementation == attention
    assert torch.equal(tiny(ids).logits, logits)
    assert torch.allclose(trace(tiny, Letters(), ids).logits, logits[0], atol=1e-5)


def test_other_errors_stay_what_they_are(model, tokenizer):
    def fail(*_):
        raise RuntimeError("something else")

    with model.lm_head.register_forward_pre_hook(fail), pytest.raises(RuntimeError, match="something else"):
        trace(model, tokenizer, "a")
