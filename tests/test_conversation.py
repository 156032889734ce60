"""Turns, history, streaming and the kept cache, on the default model and on the tiny GLM-4V."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.conversation import Conversation
from helpers.errors import BadInputError, PromptTooLongError
from helpers.loading import load_model, load_processor
from helpers.prompts import render_chat

GLM4V = Path(__file__).parent / "fixtures" / "glm" / "glm4v-a" / "checkpoint"
QUESTIONS = ["What is the capital of France?", "And of Italy?", "你好"]


def _generated(model, tokenizer, messages, count):
    """The same turn by `model.generate`, from scratch."""
    ids = torch.tensor([render_chat(tokenizer, messages).input_ids])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return output[0, ids.shape[1] :].tolist()


def test_three_turns_are_those_of_generate_and_reuse_the_cache(model, tokenizer):
    talk = Conversation(model, tokenizer, system="You are brief.")
    messages = [{"role": "system", "content": "You are brief."}]
    for turn, question in enumerate(QUESTIONS):
        messages.append({"role": "user", "content": question})
        expected = _generated(model, tokenizer, messages, 12)
        before = len(talk.reply.input_ids) + len(talk.reply.output_ids) - 1 if turn else 0
        reply = talk.ask(question, max_new_tokens=12)
        assert reply.output_ids == expected
        assert talk.reused == before, "everything that was run before is taken from the cache"
        messages.append({"role": "assistant", "content": reply.text})
    assert talk.messages == messages


def test_a_reply_says_whether_it_was_cut(model, tokenizer):
    whole = Conversation(model, tokenizer).ask(QUESTIONS[0], max_new_tokens=40)
    assert whole.stopped_by == "end_of_turn"
    assert whole.output_ids[-1] == tokenizer.eos_token_id
    assert "Paris" in whole.text
    assert "<|im_end|>" not in whole.text
    cut = Conversation(model, tokenizer).ask(QUESTIONS[0], max_new_tokens=3)
    assert cut.stopped_by == "max_new_tokens"
    assert cut.text == tokenizer.decode(whole.output_ids[:3]).strip(), "no token of a cut reply is lost"


def test_streaming_gives_the_same_text_in_whole_characters(model, tokenizer):
    talk = Conversation(model, tokenizer)
    chinese = tokenizer("你好，世界！")["input_ids"]
    pieces = list(talk.stream("Say hello in Chinese.", max_new_tokens=len(chinese), forced_ids=chinese))
    assert "".join(pieces) == talk.reply.text == "你好，世界！"
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 3


def test_a_stream_that_is_left_early_leaves_a_usable_history(model, tokenizer):
    talk = Conversation(model, tokenizer)
    stream = talk.stream(QUESTIONS[0], max_new_tokens=30)
    for _ in range(3):
        next(stream)
    stream.close()
    assert talk.reply.stopped_by == "reader"
    assert len(talk.reply.output_ids) == 3
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]
    history = [*talk.messages, {"role": "user", "content": QUESTIONS[1]}]
    assert talk.ask(QUESTIONS[1], max_new_tokens=8).output_ids == _generated(model, tokenizer, history, 8)


def test_a_question_that_fails_leaves_the_conversation_as_it_was(model, tokenizer):
    talk = Conversation(model, tokenizer)
    talk.ask(QUESTIONS[0], max_new_tokens=3)
    before = list(talk.messages)
    with pytest.raises(PromptTooLongError):
        talk.ask("long " * 9000)
    with pytest.raises(BadInputError, match="temperature"):
        talk.ask("Hello", do_sample=True, temperature=0.0)
    with pytest.raises(BadInputError, match="does not see"):
        talk.ask("What is this?", image=Image.new("RGB", (8, 8)))
    assert talk.messages == before
    assert talk.ask(QUESTIONS[1], max_new_tokens=2).output_ids


def test_control_strings_in_a_question_stay_text(model, tokenizer):
    talk = Conversation(model, tokenizer)
    reply = talk.ask("What does <|im_end|> mean?", max_new_tokens=1)
    assert reply.input_ids.count(2) == render_chat(tokenizer, [{"role": "user", "content": "x"}]).input_ids.count(2)


@pytest.fixture(scope="module")
def glm4v():
    return load_model(GLM4V, device="cpu"), load_processor(GLM4V)


def test_a_picture_stays_in_the_conversation(glm4v):
    model, processor = glm4v
    picture = Image.effect_noise((40, 30), 90).convert("RGB")
    talk = Conversation(model, processor)
    first = talk.ask("描述一下这张图片", image=picture, max_new_tokens=4)
    second = talk.ask("它是什么颜色的？", max_new_tokens=4)
    inputs = processor.apply_chat_template(talk.messages[:3], add_generation_prompt=True, return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == second.input_ids
    generated = model.generate(**inputs, do_sample=False, max_new_tokens=4)
    assert generated[0, len(second.input_ids) :].tolist() == second.output_ids
    blind = Conversation(model, processor).ask("描述一下这张图片", max_new_tokens=4)
    assert blind.output_ids != first.output_ids or blind.input_ids != first.input_ids
    with pytest.raises(BadInputError, match="one in a conversation"):
        talk.ask("And this?", image=picture)
    assert len(talk.messages) == 4
