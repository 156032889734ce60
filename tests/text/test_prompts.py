"""Text and messages to ids: equal to the library's, but what a user typed stays text."""

import pytest
import torch
from small_tokenizers import tiny_llama

from helpers.batch.engines import Prompt, prompt_token_ids
from helpers.conversation import Conversation
from helpers.errors import BadInputError, PromptTooLongError
from helpers.inside.tracing import trace
from helpers.text.prompts import RenderedChat, load_prompts, prompt_ids, render_chat
from helpers.text.tokens import token_bytes, token_table, visible

TEXTS = [
    "The capital of France is",
    "为什么要减少污染，保护环境？",
    "def f(x):\n\treturn x ** 2  # 12345",
    "👩🏽‍💻 and 😀, e\u0301 and ﷽",
    "  two  spaces,\n\nblank line \t tab ",
    "In 2024 there were   365 days",
]
CONVERSATIONS = [
    [{"role": "user", "content": "你好"}],
    [
        {"role": "system", "content": "You are a helpful assistant. 你是一个乐于助人的助手。"},
        {"role": "user", "content": "Hi!"},
    ],
    [
        {"role": "user", "content": "  浙江的省会在哪里 \n"},
        {"role": "assistant", "content": "杭州 (Hangzhou)."},
        {"role": "user", "content": "它有什么好玩的景点？ 😀"},
    ],
    [{"role": "user", "content": "\n\nstarts with a blank line"}, {"role": "assistant", "content": ""}],
]
CONTROL = ["<|eot_id|>", "<|im_end|>", "<|im_start|>", "<|assistant|>", "<|begin_of_text|>", "<|endoftext|>"]


@pytest.fixture(params=["smollm2", "llama3"])
def any_tokenizer(request, tokenizer, llama3_tokenizer):
    return {"smollm2": tokenizer, "llama3": llama3_tokenizer}[request.param]


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
@pytest.mark.parametrize("more", [True, False])
def test_rendering_equals_the_librarys(any_tokenizer, messages, more):
    chat = render_chat(any_tokenizer, messages, add_generation_prompt=more)
    library = any_tokenizer.apply_chat_template(messages, add_generation_prompt=more, return_dict=False)
    assert chat.input_ids == library
    assert chat.text == any_tokenizer.apply_chat_template(messages, add_generation_prompt=more, tokenize=False)


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
def test_segments_cover_the_ids_and_hold_their_message(any_tokenizer, messages):
    chat = render_chat(any_tokenizer, messages)
    assert [i for s in chat.segments for i in range(s.start, s.stop)] == list(range(len(chat)))
    for segment in chat.segments:
        text = any_tokenizer.decode(chat.input_ids[segment.start : segment.stop])
        if segment.message is not None:
            message = messages[segment.message]
            assert segment.role == message["role"]
            assert message["content"].strip() in text
    owned = {segment.message for segment in chat.segments} - {None}
    assert owned == {i for i, message in enumerate(messages) if message["content"].strip()}


@pytest.mark.parametrize("control", CONTROL)
@pytest.mark.parametrize("around", ["{}", "a{}b", " {}\n{} "])
def test_control_strings_of_a_user_stay_text(any_tokenizer, control, around):
    content = around.replace("{}", control)
    plain = render_chat(any_tokenizer, [{"role": "user", "content": "hello"}])
    chat = render_chat(any_tokenizer, [{"role": "user", "content": content}])
    specials = set(any_tokenizer.added_tokens_decoder)
    assert [i for i in chat.input_ids if i in specials] == [i for i in plain.input_ids if i in specials]
    assert control in chat.text
    (segment,) = (s for s in chat.segments if s.message == 0)
    assert control in any_tokenizer.decode(chat.input_ids[segment.start : segment.stop])


def test_the_library_does_turn_them_into_control_tokens(tokenizer):
    """Why `render_chat` is not simply `apply_chat_template`."""
    library = tokenizer.apply_chat_template([{"role": "user", "content": "a<|im_end|>b"}], return_dict=False)
    ours = render_chat(tokenizer, [{"role": "user", "content": "a<|im_end|>b"}], add_generation_prompt=False)
    assert library.count(2) == ours.input_ids.count(2) + 1


def test_private_use_characters_of_a_user_survive(tokenizer):
    content = "a\ue000b\ue001c\ue002d"
    chat = render_chat(tokenizer, [{"role": "user", "content": content}])
    assert content in tokenizer.decode(chat.input_ids)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "at least one"),
        ("hello", "at least one"),
        (["hello"], "Message 0"),
        ([{"role": "user"}], "Message 0"),
        ([{"role": "user", "content": 3}], "Message 0"),
        ([{"role": "boss", "content": "hi"}], "'boss'"),
    ],
)
def test_malformed_messages_are_named(tokenizer, messages, says):
    with pytest.raises(BadInputError, match=says):
        render_chat(tokenizer, messages)


def test_a_tokenizer_without_a_template_is_named(tokenizer):
    from copy import deepcopy

    bare = deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(BadInputError, match="no chat template"):
        render_chat(bare, CONVERSATIONS[0])


def test_of_a_processor_the_tokenizer_is_taken(tokenizer):
    class Processor:
        pass

    processor = Processor()
    processor.tokenizer = tokenizer
    assert render_chat(processor, CONVERSATIONS[1]) == render_chat(tokenizer, CONVERSATIONS[1])


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_taken_as_it_is(any_tokenizer, text):
    ids = prompt_ids(any_tokenizer, text)
    assert ids.dtype == torch.long
    assert ids.tolist() == [any_tokenizer(text)["input_ids"]]


def test_control_strings_of_a_text_stay_text(tokenizer):
    assert 2 not in prompt_ids(tokenizer, "a<|im_end|>b")


def test_ids_and_rendered_chats_are_prompts_too(tokenizer):
    chat = render_chat(tokenizer, CONVERSATIONS[0])
    assert isinstance(chat, RenderedChat)
    for same in (chat.input_ids, torch.tensor(chat.input_ids), torch.tensor([chat.input_ids])):
        assert prompt_ids(tokenizer, same).tolist() == prompt_ids(tokenizer, chat).tolist()


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", "empty"),
        ([], "empty"),
        (torch.zeros(1, 0, dtype=torch.long), "empty"),
        (torch.zeros(2, 3, dtype=torch.long), "batch of 2"),
        ([3, 49_152], "49152"),
        ([-1], "-1"),
        (3.5, "float"),
        (torch.zeros(1, 3), "Tensor"),
        (["a", "b"], "list"),
    ],
)
def test_prompts_that_cannot_work(tokenizer, prompt, says):
    with pytest.raises(BadInputError, match=says):
        prompt_ids(tokenizer, prompt)


def test_an_empty_text_is_empty_also_for_a_tokenizer_that_adds_a_first_token(llama3_tokenizer):
    with pytest.raises(BadInputError, match="empty"):
        prompt_ids(llama3_tokenizer, "")


def test_a_prompt_longer_than_the_context_says_by_how_much(tokenizer):
    with pytest.raises(PromptTooLongError, match="shorten it by 2 tokens"):
        prompt_ids(tokenizer, [5] * 12, context=10)


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_the_tokens_are_the_bytes_of_the_text(any_tokenizer, text):
    ids = any_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(token_bytes(any_tokenizer, i) for i in ids) == text.encode()


def test_ids_may_be_a_tensor_or_a_list_of_them(tokenizer):
    for ids in ([7042], torch.tensor([7042]), [torch.tensor(7042)], [torch.tensor([1, 7042]).argmax() + 7041]):
        assert token_table(tokenizer, ids)[0].label == "·Paris"
    with pytest.raises(BadInputError, match="Token ids must be whole numbers"):
        token_table(tokenizer, [torch.tensor(1.5)])


def test_parts_of_a_character_are_labelled_as_such(tokenizer):
    labels = [row.label for row in token_table(tokenizer, prompt_ids(tokenizer, "你 好"))]
    assert labels[:2] == ["你 1/2", "你 2/2"]
    assert not any("\ufffd" in label for label in labels)


def test_a_character_that_never_ends_is_shown_as_bytes(tokenizer):
    first = prompt_ids(tokenizer, "你")[0, :1]
    assert token_table(tokenizer, first)[0].label == "<E4><BD>"


def test_a_character_cut_by_a_control_token_is_not_joined(tokenizer):
    first, second = prompt_ids(tokenizer, "你")[0].tolist()
    labels = [row.label for row in token_table(tokenizer, [first, 2, second])]
    assert labels == ["<E4><BD>", "<|im_end|>", "<A0>"]


def test_every_token_of_the_vocabulary_has_a_label(any_tokenizer):
    for start in range(0, len(any_tokenizer), 997):
        for token_id in (start, min(start + 1, len(any_tokenizer) - 1)):
            (row,) = token_table(any_tokenizer, [token_id])
            assert row.label
            assert "\ufffd" not in row.label


def test_white_space_is_visible():
    assert visible(" a\n\tb") == "·a⏎⇥b"


def test_prompt_files():
    chinese = load_prompts("chinese")
    assert chinese[:2] == ["为什么要减少污染，保护环境？", "你有什么建议？"]
    assert len(load_prompts("english")) >= 10
    with pytest.raises(BadInputError, match="chinese, english"):
        load_prompts("klingon")


def test_the_begin_of_text_comes_once(llama3_tokenizer):
    """In a text, a chat, a chat that is run, a batch and a second turn alike."""
    model, begin = tiny_llama(llama3_tokenizer, bos_token_id=128000, eos_token_id=128001), 128000
    chat = [{"role": "user", "content": "hi"}]
    talk = Conversation(model, llama3_tokenizer)
    talk.ask("hi", max_new_tokens=2)
    ways = {
        "text": trace(model, llama3_tokenizer, "hello").input_ids[0].tolist(),
        "chat": render_chat(llama3_tokenizer, chat).input_ids,
        "run chat": trace(model, llama3_tokenizer, render_chat(llama3_tokenizer, chat)).input_ids[0].tolist(),
        "batch text": prompt_token_ids(llama3_tokenizer, Prompt(0, "hello")),
        "batch chat": prompt_token_ids(llama3_tokenizer, Prompt(0, "hi", messages=chat)),
        "second turn": talk.ask("ho", max_new_tokens=2).input_ids,
    }
    assert {way: ids.count(begin) for way, ids in ways.items()} == dict.fromkeys(ways, 1)
    assert all(ids[0] == begin for ids in ways.values())
