"""Turns, history, streaming and the kept cache, on the default model and on the tiny GLM-4V."""

from pathlib import Path

import pytest
import torch
import transformers
from glm_fixtures import one_thread
from PIL import Image

from helpers.conversation import Conversation
from helpers.errors import BadImageError, BadInputError, PromptTooLongError
from helpers.models.loading import load_model
from helpers.models.pretrained import load_processor
from helpers.text.prompts import render_chat

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


@pytest.mark.parametrize("failing_step", [0, 2])
def test_a_turn_that_breaks_down_is_not_in_the_history(model, tokenizer, failing_step):
    talk = Conversation(model, tokenizer)
    talk.ask(QUESTIONS[0], max_new_tokens=2)
    before, reply, steps = list(talk.messages), talk.reply, []

    def fail(*args):
        steps.append(1)
        if len(steps) > failing_step:
            raise RuntimeError("out of memory")

    hook = model.model.layers[7].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        talk.ask(QUESTIONS[1], max_new_tokens=4)
    hook.remove()
    assert talk.messages == before
    assert talk.reply is reply
    history = [*before, {"role": "user", "content": QUESTIONS[1]}]
    assert talk.ask(QUESTIONS[1], max_new_tokens=2).output_ids == _generated(model, tokenizer, history, 2)


def test_an_interrupt_in_the_middle_of_a_step_leaves_a_usable_history(model, tokenizer):
    """The cell's stop button: some layers of the cache are then one position further than the others."""
    talk = Conversation(model, tokenizer)
    stream = talk.stream(QUESTIONS[0], max_new_tokens=9)
    said = [next(stream), next(stream)]

    def interrupt(*args):
        raise KeyboardInterrupt

    hook = model.model.layers[7].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    hook.remove()
    assert talk.messages[-1] == {"role": "assistant", "content": "".join(said).strip()}
    history = [*talk.messages, {"role": "user", "content": QUESTIONS[1]}]
    assert talk.ask(QUESTIONS[1], max_new_tokens=4).output_ids == _generated(model, tokenizer, history, 4)
    assert talk.reused > 0


def test_leaving_the_loop_ends_the_turn_at_once(model, tokenizer):
    talk = Conversation(model, tokenizer)
    for piece in talk.stream(QUESTIONS[0], max_new_tokens=9):
        said = piece
        break
    assert talk.reply.stopped_by == "reader"
    assert talk.messages[-1] == {"role": "assistant", "content": said.strip()}


def test_the_next_question_ends_a_stream_that_was_left(model, tokenizer):
    talk = Conversation(model, tokenizer)
    stream = talk.stream(QUESTIONS[0], max_new_tokens=9)
    next(stream)
    talk.ask(QUESTIONS[1], max_new_tokens=2)
    assert [message["content"] for message in talk.messages[::2]] == QUESTIONS[:2]
    assert list(stream) == [], "it has ended, and cannot overwrite the history any more"
    assert len(talk.messages) == 4


def test_a_history_may_be_given_and_stays_the_callers(model, tokenizer):
    history = [{"role": "user", "content": QUESTIONS[0]}, {"role": "assistant", "content": "Paris."}]
    copy = [dict(message) for message in history]
    talk = Conversation(model, tokenizer, messages=history)
    reply = talk.ask(QUESTIONS[1], max_new_tokens=3)
    assert history == copy
    assert talk.messages[:2] == history
    assert talk.messages[0] is not history[0]
    follow_up = [*history, {"role": "user", "content": QUESTIONS[1]}]
    assert reply.output_ids == _generated(model, tokenizer, follow_up, 3)
    with pytest.raises(BadInputError, match="role"):
        Conversation(model, tokenizer, messages=[{"role": "user"}])
    with pytest.raises(BadInputError, match="role"):
        Conversation(model, tokenizer, messages=["Hello"])


def test_a_tokenizer_without_a_parse_reply_keeps_the_whole_reply(model, tokenizer):
    talk = Conversation(model, tokenizer)
    call = tokenizer('get_weather\n{"city": "北京"}')["input_ids"]
    reply = talk.ask("北京天气", forced_ids=call, max_new_tokens=len(call))
    assert talk.messages[-1] == {"role": "assistant", "content": reply.text}
    assert reply.text == 'get_weather\n{"city": "北京"}'


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": None}, "model must be what load_model returns"),
        ({"model": "smollm2-135m"}, "model must be what load_model returns"),
        ({"tokenizer": None}, "load_tokenizer"),
        ({"tokenizer": "smollm2-135m"}, "load_tokenizer"),
        ({"system": 5}, "system must be a string, not 5"),
        ({"system": "\ud83d"}, "half of a character"),
        ({"messages": 5}, "messages must be a list"),
        ({"messages": None}, "messages must be a list"),
        ({"messages": [5]}, "Message 0"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named_at_once(model, tokenizer, given, says):
    arguments = {"model": model, "tokenizer": tokenizer} | given
    with pytest.raises(BadInputError, match=says):
        Conversation(arguments.pop("model"), arguments.pop("tokenizer"), **arguments)


@pytest.mark.parametrize("text", [None, 5, ["a"], {"a": 1}, "\udc00"])
def test_a_question_of_the_wrong_kind_is_named_and_changes_nothing(model, tokenizer, text):
    talk = Conversation(model, tokenizer)
    with pytest.raises(BadInputError, match="Message 0"):
        talk.ask(text)
    assert talk.messages == []


CANNOT_BE_CUT = {
    "Mistral": {"sliding_window": 32},
    "Phi3": {"sliding_window": 2047, "pad_token_id": 0},
    "Gemma2": {"sliding_window": 16, "head_dim": 12},
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
}


@pytest.mark.parametrize("family", CANNOT_BE_CUT)
def test_a_cache_that_cannot_be_cut_back_is_not_used_again(tokenizer, family):
    torch.manual_seed(0)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "eos_token_id": 2,
    }
    config = getattr(transformers, f"{family}Config")(**settings | CANNOT_BE_CUT[family])
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    talk, messages = Conversation(model, tokenizer), []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        expected = _generated(model, tokenizer, messages, 4)
        assert talk.ask(question, max_new_tokens=4).output_ids == expected
        assert talk.reused == 0
        messages.append(talk.messages[-1])


# With pictures

SHAPE = "描述一下这张图片"
FOLLOW_UPS = ["它是什么颜色的？", "Where is it?"]


@pytest.fixture(scope="module")
def glm4v():
    with one_thread():
        yield load_model(GLM4V, device="cpu"), load_processor(GLM4V)


@pytest.fixture
def looks(glm4v):
    """A list that grows each time the tower looks at a picture."""
    seen = []
    hook = glm4v[0].model.vision.register_forward_hook(lambda *args: seen.append(1))
    yield seen
    hook.remove()


def _noise(seed=0):
    torch.manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (30, 40, 3), dtype=torch.uint8).numpy())


def _afresh(glm4v, messages, count):
    """The same turn by `model.generate` without a cache: prompt and new ids."""
    model, processor = glm4v
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(
        **inputs, do_sample=False, max_new_tokens=None, max_length=inputs["input_ids"].shape[1] + count
    )
    return inputs["input_ids"][0].tolist(), output[0, inputs["input_ids"].shape[1] :].tolist()


def test_a_picture_stays_in_the_conversation_and_is_looked_at_once(glm4v, looks):
    talk = Conversation(*glm4v)
    asked = [(SHAPE, _noise()), *((question, None) for question in FOLLOW_UPS)]
    patches = glm4v[0].config.vision_config.num_patches
    for turn, (question, image) in enumerate(asked):
        before = len(talk.reply.input_ids) + len(talk.reply.output_ids) - 1 + patches - 1 if turn else 0
        reply = talk.ask(question, image=image, max_new_tokens=5)
        # What a reply lost when it became text (white space around it) is not in the next prompt.
        assert talk.reused <= before
        assert talk.reused >= (patches + 5 if turn else 0)
        assert len(looks) == 1, "the cache has the picture"
        history = talk.messages[:-1]
        assert (reply.input_ids, reply.output_ids) == _afresh(glm4v, history, 5)
        looks[:] = looks[:1]
    blind = Conversation(*glm4v).ask(SHAPE, max_new_tokens=5)
    assert blind.input_ids != reply.input_ids


def test_a_picture_may_come_in_any_turn(glm4v, looks):
    talk = Conversation(*glm4v, system="你是一个智能助理")
    talk.ask("你好", max_new_tokens=4)
    assert looks == []
    for question, image in ((SHAPE, _noise()), (FOLLOW_UPS[0], None)):
        reply = talk.ask(question, image=image, max_new_tokens=4)
        assert talk.reused > 0
        assert len(looks) == 1
        assert (reply.input_ids, reply.output_ids) == _afresh(glm4v, talk.messages[:-1], 4)
        looks[:] = looks[:1]


def test_a_second_picture_is_refused_and_the_talk_goes_on(glm4v):
    talk = Conversation(*glm4v)
    talk.ask(SHAPE, image=_noise(), max_new_tokens=3)
    before = list(talk.messages)
    with pytest.raises(BadInputError, match="only one per conversation"):
        talk.ask("And this?", image=_noise(1))
    assert talk.messages == before
    reply = talk.ask(FOLLOW_UPS[0], max_new_tokens=3)
    assert reply.output_ids == _afresh(glm4v, talk.messages[:-1], 3)[1]


def test_another_picture_in_the_same_place_is_not_taken_for_the_first(glm4v, looks):
    """Same ids, other picture: the cache is worth nothing from the picture on."""
    talk = Conversation(*glm4v)
    talk.ask(SHAPE, image=_noise(), max_new_tokens=3)
    talk.messages[0] = {**talk.messages[0], "image": _noise(1)}
    reply = talk.ask(FOLLOW_UPS[0], max_new_tokens=3)
    assert len(looks) == 2
    assert talk.reused == reply.input_ids.index(glm4v[0].config.boi_token_id)
    assert reply.output_ids == _afresh(glm4v, talk.messages[:-1], 3)[1]
    del talk.messages[0]["image"]
    reply = talk.ask(FOLLOW_UPS[1], max_new_tokens=3)
    assert talk.reused < reply.input_ids.index(glm4v[0].config.eos_token_id[1], 3)
    assert reply.output_ids == _afresh(glm4v, talk.messages[:-1], 3)[1]


def test_a_reply_about_a_picture_is_cut_or_stopped_without_loss(glm4v):
    whole = Conversation(*glm4v).ask(SHAPE, image=_noise(), max_new_tokens=6)
    cut = Conversation(*glm4v).ask(SHAPE, image=_noise(), max_new_tokens=3)
    assert (cut.output_ids, cut.stopped_by) == (whole.output_ids[:3], "max_new_tokens")
    talk = Conversation(*glm4v)
    stream = talk.stream(SHAPE, image=_noise(), max_new_tokens=6)
    next(stream)
    stream.close()
    assert talk.reply.stopped_by == "reader"
    assert talk.reply.output_ids == whole.output_ids[: len(talk.reply.output_ids)]
    reply = talk.ask(FOLLOW_UPS[0], max_new_tokens=4)
    assert talk.reused > glm4v[0].config.vision_config.num_patches
    assert reply.output_ids == _afresh(glm4v, talk.messages[:-1], 4)[1]


def test_a_pictures_file_is_read_when_it_is_asked_about(glm4v, tmp_path):
    path = tmp_path / "picture.png"
    _noise().save(path)
    talk = Conversation(*glm4v)
    talk.ask(SHAPE, image=path, max_new_tokens=2)
    path.unlink()
    assert talk.ask(FOLLOW_UPS[0], max_new_tokens=2).output_ids
    with pytest.raises(BadImageError, match="does not exist"):
        Conversation(*glm4v).ask(SHAPE, image=path)
    given = [{"role": "user", "image": _noise(), "content": SHAPE}, {"role": "assistant", "content": "是。"}]
    again = Conversation(*glm4v, messages=given)
    reply = again.ask(FOLLOW_UPS[0], max_new_tokens=2)
    assert reply.output_ids == _afresh(glm4v, [*given, {"role": "user", "content": FOLLOW_UPS[0]}], 2)[1]


# What GLM-4's replies hold besides their content


def _forced(glm4v, *texts):
    """Ids of texts that GLM-4 could have generated, up to the user's next turn."""
    tokenizer = glm4v[1].tokenizer
    ids = [
        i for text in texts for i in tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ]
    ids.append(tokenizer.convert_tokens_to_ids("<|user|>"))
    return {"forced_ids": ids, "max_new_tokens": len(ids)}


def test_a_call_of_a_tool_is_in_the_next_prompt_as_it_was_generated(glm4v):
    talk = Conversation(*glm4v)
    call = _forced(glm4v, "get_weather\n", '{"city": "北京"}')
    pieces = list(talk.stream("北京天气", **call))
    assert "".join(pieces) == talk.reply.text == 'get_weather\n{"city": "北京"}', "the reader sees all of it"
    assert talk.messages[-1] == {"role": "assistant", "metadata": "get_weather", "content": '{"city": "北京"}'}
    generated = [*talk.reply.input_ids, *call["forced_ids"]]
    reply = talk.ask("谢谢", max_new_tokens=3)
    assert reply.input_ids[: len(generated)] == generated
    assert talk.reused == len(generated) - 1, "everything that was run before is taken from the cache"
    assert reply.output_ids == _afresh(glm4v, talk.messages[:-1], 3)[1]


def test_what_a_tool_gave_back_is_read_as_an_observation(glm4v):
    talk = Conversation(*glm4v)
    talk.ask("北京天气", **_forced(glm4v, 'get_weather\n{"city": "北京"}'))
    reply = talk.ask('{"temperature": 20}', role="observation", max_new_tokens=2)
    assert [message["role"] for message in talk.messages] == ["user", "assistant", "observation", "assistant"]
    prompt = glm4v[1].tokenizer.decode(reply.input_ids)
    assert "get_weather" in prompt and "<|observation|>" in prompt and '{"temperature": 20}' in prompt
    with pytest.raises(BadInputError, match="role 'robot'"):
        talk.ask("x", role="robot")


@pytest.mark.parametrize("said", ["\nFirst.\nSecond.", "First.\nSecond.", "Yes\nIt is.", "\n红色。", "红色。"])
def test_an_ordinary_reply_keeps_its_text_with_a_newline_in_front_or_without(glm4v, said):
    talk = Conversation(*glm4v)
    pieces = list(talk.stream("你好", **_forced(glm4v, said)))
    assert "".join(pieces) == said
    assert talk.reply.text == said.strip()
    assert talk.messages[-1] == {"role": "assistant", "content": said.strip()}


def test_a_call_that_is_cut_before_its_content_is_not_lost(glm4v):
    talk = Conversation(*glm4v)
    call = _forced(glm4v, "get_weather\n")["forced_ids"][:-1]
    talk.ask("北京天气", forced_ids=call, max_new_tokens=len(call))
    assert talk.messages[-1] == {"role": "assistant", "content": "get_weather"}
    assert talk.ask("谢谢", max_new_tokens=2).input_ids.count(glm4v[1].tokenizer.convert_tokens_to_ids("<|user|>")) == 2


def test_the_year_stays_as_the_model_wrote_it(glm4v):
    """The original puts a year in its place in what it returns, and not in its history."""
    talk = Conversation(*glm4v)
    reply = talk.ask("你的知识到什么时候？", **_forced(glm4v, "\n", "到[[训练时间]]。"))
    assert reply.text == talk.messages[-1]["content"] == "到[[训练时间]]。"


def test_a_control_token_that_was_generated_is_text_in_the_history(glm4v):
    """The original begins another message there."""
    talk = Conversation(*glm4v)
    tokenizer = glm4v[1].tokenizer
    assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
    parts = [_forced(glm4v, text)["forced_ids"] for text in ("\n好的", "get_weather\n{}")]
    ids = [*parts[0][:-1], assistant, *parts[1]]
    talk.ask("北京天气", forced_ids=ids, max_new_tokens=len(ids))
    assert talk.messages[-1] == {"role": "assistant", "content": "好的<|assistant|>get_weather\n{}"}
    assert talk.ask("谢谢", max_new_tokens=1).input_ids.count(assistant) == 2
