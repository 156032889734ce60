"""BPE by hand: what the loop does on toys, and that it ends at the library's ids."""

import pytest

from helpers.errors import BadInputError
from helpers.text.bpe import (
    apply_merges,
    byte_vocabulary,
    count_pairs,
    merge_pair,
    merge_steps,
    read_merges,
    single_bytes,
    split_pieces,
    train_merges,
)
from helpers.text.prompts import load_prompts

TEXTS = [
    *load_prompts("english"),
    *load_prompts("chinese"),
    "def f(x):\n\treturn x ** 2  # 12345\n\n",
    "👩🏽‍💻 and 😀, e\u0301 and ﷽",
    "  in 2024 there were   365 days, 1,000,000 s",
    "It's they'LL WE'RE don't",
]


@pytest.fixture(scope="module")
def smollm2_ranks(tokenizer):
    return {pair: rank for rank, pair in enumerate(read_merges(tokenizer))}


@pytest.fixture(scope="module")
def llama3_vocabulary(llama3_tokenizer):
    return byte_vocabulary(llama3_tokenizer)


def test_single_bytes_spell_the_piece():
    assert single_bytes("é!".encode()) == [b"\xc3", b"\xa9", b"!"]
    assert single_bytes(b"") == []


def test_pairs_are_counted_inside_pieces_only():
    counts = count_pairs([single_bytes(b"abab"), single_bytes(b"ba")])
    assert counts == {(b"a", b"b"): 2, (b"b", b"a"): 2}


def test_a_pair_is_merged_everywhere_from_left_to_right():
    assert merge_pair(single_bytes(b"aaab"), (b"a", b"a")) == [b"aa", b"a", b"b"]
    assert merge_pair([b"a", b"b", b"ab", b"a", b"b"], (b"a", b"b")) == [b"ab", b"ab", b"ab"]
    tokens = single_bytes(b"xy")
    assert merge_pair(tokens, (b"y", b"x")) == tokens
    assert merge_pair(tokens, (b"x", b"y")) == [b"xy"]
    assert tokens == [b"x", b"y"], "the list that was handed in stays as it was"


def test_training_learns_the_most_frequent_pair_first():
    merges = train_merges([b"hug", b"pug", b"hugs", b"bun"], 3)
    assert merges == [(b"u", b"g"), (b"h", b"ug"), (b"p", b"ug")]


def test_training_stops_when_every_piece_is_one_token():
    merges = train_merges([b"ab", b"ab"], 10)
    assert merges == [(b"a", b"b")]


def test_training_finds_characters_in_bytes():
    pieces = ["四十", "四是四", "十四", "四"]
    made = {left + right for left, right in train_merges([piece.encode() for piece in pieces], 4)}
    assert {"四".encode(), "十".encode()} <= made


@pytest.mark.parametrize(("pieces", "count"), [([b"ab"], 0), ([], 3)])
def test_training_on_nothing_is_named(pieces, count):
    with pytest.raises(BadInputError, match=f"{len(pieces)} pieces and count={count}"):
        train_merges(pieces, count)


def test_steps_go_from_bytes_to_tokens_by_rank():
    ranks = {(b"b", b"c"): 0, (b"a", b"b"): 1, (b"a", b"bc"): 2}
    steps = merge_steps(b"abcab", ranks.get)
    assert [step.tokens for step in steps] == [
        (b"a", b"b", b"c", b"a", b"b"),
        (b"a", b"bc", b"a", b"b"),
        (b"a", b"bc", b"ab"),
        (b"abc", b"ab"),
    ]
    assert [step.rank for step in steps] == [None, 0, 1, 2]
    assert [step.made for step in steps] == [None, 1, 2, 0]
    assert apply_merges(b"abcab", ranks.get) == [b"abc", b"ab"]


def test_equal_ranks_merge_the_leftmost_first():
    assert apply_merges(b"aaa", {(b"a", b"a"): 0}.get) == [b"aa", b"a"]


def test_a_piece_without_bytes_has_no_tokens():
    assert apply_merges(b"", {}.get) == []


def test_pieces_spell_the_text(tokenizer, llama3_tokenizer):
    for text in TEXTS:
        for any_tokenizer in (tokenizer, llama3_tokenizer):
            assert b"".join(split_pieces(any_tokenizer, text)) == text.encode()
    assert split_pieces(tokenizer, "In 2024") == [b"In", b" ", b"2", b"0", b"2", b"4"]
    assert split_pieces(llama3_tokenizer, "In 2024") == [b"In", b" ", b"202", b"4"]


def test_smollm2s_merges_give_the_librarys_ids(tokenizer, smollm2_ranks):
    ids = byte_vocabulary(tokenizer)
    for text in TEXTS:
        tokens = [t for piece in split_pieces(tokenizer, text) for t in apply_merges(piece, smollm2_ranks.get)]
        assert [ids[token] for token in tokens] == tokenizer(text)["input_ids"], text


def test_llama3s_ranks_give_the_librarys_ids(llama3_tokenizer, llama3_vocabulary):
    def rank(pair):
        return llama3_vocabulary.get(pair[0] + pair[1])

    for text in [*TEXTS, " Việt Nam"]:
        tokens = []
        for piece in split_pieces(llama3_tokenizer, text):
            tokens += [piece] if piece in llama3_vocabulary else apply_merges(piece, rank)
        library = llama3_tokenizer(text, add_special_tokens=False)["input_ids"]
        assert [llama3_vocabulary[token] for token in tokens] == library, text


def test_the_vocabularies_leave_control_tokens_out(tokenizer, llama3_tokenizer, llama3_vocabulary):
    for any_tokenizer, ids in ((tokenizer, byte_vocabulary(tokenizer)), (llama3_tokenizer, llama3_vocabulary)):
        control = set(any_tokenizer.get_added_vocab().values())
        assert len(ids) + len(control) == len(any_tokenizer)
        assert not control & set(ids.values())


@pytest.mark.parametrize("function", [read_merges, byte_vocabulary, lambda t: split_pieces(t, "a")])
def test_another_kind_of_tokenizer_is_named(function):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    unigram = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("a", 0.0)])))
    with pytest.raises(BadInputError, match="Unigram"):
        function(unigram)
    with pytest.raises(BadInputError, match="str"):
        function("smollm2-135m")
