"""What a first look at a model finds while a reader's own hooks are on it."""

import pytest
import torch
from marks import marks
from small_tokenizers import tiny_llama

from helpers import trace
from helpers.errors import BadInputError
from helpers.inside import anatomy


def fail(module, arguments):
    raise RuntimeError("in the middle")


@pytest.fixture
def fresh(tokenizer):
    """A model that nobody has looked into yet."""
    return tiny_llama(tokenizer)


def test_a_failure_of_a_readers_hook_is_forgotten_with_the_hook(fresh, tokenizer):
    before = marks(fresh)
    with fresh.model.layers[0].mlp.register_forward_pre_hook(fail), pytest.raises(BadInputError, match="in the middle"):
        trace(fresh, tokenizer, "abc")
    assert marks(fresh) == before
    ids = torch.tensor(tokenizer("abc")["input_ids"])[None]
    assert torch.allclose(trace(fresh, tokenizer, "abc").logits, fresh(ids).logits[0], atol=1e-5)


def test_what_is_found_beside_a_readers_hook_is_not_kept(fresh, tokenizer):
    """A layer that gives back what it was given seems to have no parts, and halved logits are not those of the lens."""
    alone = anatomy(tiny_llama(tokenizer))
    layer = fresh.model.layers[1].register_forward_hook(lambda module, given, output: given[0])
    head = fresh.lm_head.register_forward_hook(lambda module, given, output: output / 2)
    with layer, head:
        beside = anatomy(fresh)
    afterwards = anatomy(fresh)
    assert [len(each.parts) for each in beside.layers] == [2, 0]
    assert [len(each.parts) for each in afterwards.layers] == [2, 2]
    assert beside.lens_gap
    assert afterwards.lens_gap is alone.lens_gap is None
