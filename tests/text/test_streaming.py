"""An answer as it comes: pieces that add up to what `decode` gives, with any kind of tokenizer."""

import pytest
from small_tokenizers import LLAMA2, metaspace_like, sentencepiece_like, tiny_llama, unigram_like, wordpiece_like

from helpers.conversation import Conversation
from helpers.errors import BadInputError
from helpers.text.streaming import TextStream
from helpers.text.tokens import token_bytes, token_table

ANSWERS = ["The capital of France is Paris", "I am fine", "Hello 北京 你好", "café naïve señor", " a  b\n\nc", "é"]
KINDS = {"prepended space": sentencepiece_like, "first word": metaspace_like, "unigram": unigram_like}


@pytest.mark.parametrize("kind", [*KINDS, "byte level", "wordpiece"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_pieces_add_up_to_the_decoded_text(tokenizer, kind, answer):
    used = {**KINDS, "byte level": lambda: tokenizer, "wordpiece": wordpiece_like}[kind]()
    ids = used(answer, add_special_tokens=False)["input_ids"]
    stream = TextStream(used)
    pieces = [*map(stream.push, ids), stream.finish()]
    assert "".join(pieces) == stream.text == used.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_what_never_becomes_a_character_is_shown_at_the_end(tokenizer):
    ids = tokenizer("a你")["input_ids"][:-1]
    stream = TextStream(tokenizer)
    assert [stream.push(i) for i in ids] == ["a", ""]
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_keeps_its_spaces_in_the_history(answer):
    tokenizer = sentencepiece_like(LLAMA2)
    model = tiny_llama(tokenizer)
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    talk = Conversation(model, tokenizer)
    reply = talk.ask("Hello world", forced_ids=ids, max_new_tokens=len(ids))
    assert reply.text == talk.messages[-1]["content"] == tokenizer.decode(ids).strip()


@pytest.mark.parametrize(
    ("token", "raw"), [("é", "é".encode()), ("▁the", b" the"), ("<0xE4>", b"\xe4"), ("▁", b" "), ("f", b"f")]
)
def test_bytes_of_sentencepiece_tokens(token, raw):
    tokenizer = sentencepiece_like()
    assert token_bytes(tokenizer, tokenizer.convert_tokens_to_ids(token)) == raw


def test_labels_of_other_tokenizers():
    tokenizer = sentencepiece_like()
    labels = [row.label for row in token_table(tokenizer, tokenizer("the 京", add_special_tokens=False)["input_ids"])]
    assert labels == ["·the", "·", "京 1/3", "京 2/3", "京 3/3"]
    pieces = wordpiece_like()
    assert [row.label for row in token_table(pieces, pieces("hellos", add_special_tokens=False)["input_ids"])] == [
        "hello",
        "s",
    ]


@pytest.mark.parametrize("ids", [None, "hi", ["a"], [1.5], [2**70], [-1], [True], 5])
def test_what_are_no_ids_is_named(tokenizer, ids):
    with pytest.raises(BadInputError, match="Token ids must be whole numbers"):
        token_table(tokenizer, ids)


def test_a_run_of_bytes_that_is_no_character_does_not_end_the_stream():
    tokenizer = sentencepiece_like()
    ids = tokenizer.convert_tokens_to_ids(["Hello", "<0x50>", "<0xF8>", "fine", "<0x0A>", "fine", "<0x50>"])
    stream = TextStream(tokenizer)
    pieces = [*map(stream.push, ids), stream.finish()]
    assert "".join(pieces) == tokenizer.decode(ids) == "Hello\ufffd\ufffdfine\nfineP"
