"""The picture chat's state (what the page draws and asks for), its widget's thread, and its still picture."""

import io
import threading
import time

import pytest
import torch
from glm_fixtures import CHAT, VISION, checkpoint, glm, glm_processor, glm_tokenizer, one_thread
from PIL import Image

from helpers.conversation import Conversation
from helpers.errors import BadImageError, BadInputError
from helpers.inside.tracing import trace
from helpers.text.words import words_of
from helpers.views.gallery import drawn_scenes, pictures_to_choose
from helpers.views.image_chat import ImageChat, image_chat

QUESTION = "描述一下这张图片"
SENTENCE = "\nThe circle is <b>red</b>. 圆形是红色的。"
LAYERS, HEADS, GRID = 3, 4, 3


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


def ids_of(text, name=VISION):
    return glm_tokenizer(name)(text, add_special_tokens=False)["input_ids"]


def saying(text=SENTENCE, **settings):
    """A chat whose model says this, whatever it is asked."""
    ids = ids_of(text)
    return ImageChat(glm(VISION), glm_processor(VISION), forced_ids=ids, max_new_tokens=len(ids), **settings)


def asked(chat, text=QUESTION, **more):
    chat.ask(text, **more)
    for _piece in chat.answer():
        pass
    assert chat.talk.trouble == ""
    return chat.talk.turns[-1]


def png(color="red", size=(20, 30)):
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, format="png")
    return data.getvalue()


def word_number(turn, text):
    return next(n for n, (word, _) in enumerate(turn.words) if word.strip() == text)


# Words


def test_words_are_the_reply_in_pieces_with_whole_characters():
    tokenizer = glm_tokenizer(VISION)
    ids = ids_of(SENTENCE)
    words = words_of(tokenizer, ids)
    assert "".join(text for text, _ in words) == SENTENCE
    assert [index for _, tokens in words for index in tokens] == list(range(len(ids)))
    spelled = [text.strip() for text, _ in words if text.strip()]
    assert {"The", "circle", "is", "red"} <= set(spelled)
    assert not any("\ufffd" in text for text in spelled)
    cut = words_of(tokenizer, ids[: words[-2][1][0] + 1][:-1] + ids_of("圆")[:1])
    assert len(cut) > 0, "a reply cut in the middle of a character has words too"
    assert words_of(tokenizer, []) == []


# A conversation


def test_the_answer_is_the_conversations_and_the_picture_goes_with_it():
    picture = Image.effect_noise((40, 30), 90)
    chat = ImageChat(glm(VISION), glm_processor(VISION), picture=picture, max_new_tokens=5)
    turn = asked(chat)
    reply = Conversation(glm(VISION), glm_processor(VISION)).ask(QUESTION, image=picture, max_new_tokens=5)
    assert turn.reply == reply
    assert (turn.fresh, chat.view()["turns"][0]["fresh"]) == (True, True)
    follow_up = asked(chat, "它是什么颜色的？")
    assert not follow_up.fresh
    assert follow_up.picture is not None
    assert chat.view()["turns"][1]["stopped"] == "cut: max_new_tokens reached"


def test_stopping_leaves_what_was_said():
    chat = saying()
    chat.ask(QUESTION)
    answer = chat.answer()
    for _ in range(4):
        next(answer)
    assert chat.view()["answering"]
    chat.stop()
    assert list(answer) == []
    assert not chat.view()["answering"]
    assert chat.view()["turns"][0]["stopped"] == "stopped by you"
    assert SENTENCE.strip().startswith(chat.talk.turns[0].text)
    assert 0 < len(chat.talk.turns[0].text) < len(SENTENCE)
    assert asked(chat, "And now?").text == SENTENCE.strip()
    assert [message["role"] for message in chat.conversation.messages] == ["user", "assistant"] * 2


def test_nothing_else_can_be_done_while_it_answers():
    chat = saying()
    chat.ask(QUESTION)
    for command, values in (
        ("ask", {"text": "?"}),
        ("restart", {}),
        ("leave_out", {}),
        ("choose", {"name": "two stars"}),
        ("pick", {"turn": 0, "word": 0}),
    ):
        with pytest.raises(BadInputError, match="still answering"):
            chat.do(command, **values)
    chat.stop()
    list(chat.answer())
    assert chat.talk.turns == [], "stopped before the first token: as if nothing had been asked"
    assert asked(chat).text


def test_a_question_that_cannot_be_asked_says_why_and_changes_nothing():
    chat = saying()
    asked(chat)
    before = chat.view()
    with pytest.raises(BadInputError, match="no question"):
        chat.ask("  ")
    chat.generation = {"do_sample": True, "temperature": 0.0}
    with pytest.raises(BadInputError, match="temperature"):
        chat.ask("Hello")
    assert chat.view() == before
    with pytest.raises(BadInputError, match="no command"):
        chat.do("answer")


def test_a_model_that_breaks_down_is_reported_and_the_talk_goes_on():
    chat = saying()

    def fail(*args):
        raise RuntimeError("out of memory")

    hook = glm(VISION).model.layers[1].register_forward_hook(fail)
    chat.ask(QUESTION)
    assert list(chat.answer()) == []
    hook.remove()
    assert chat.talk.trouble == "The model stopped with RuntimeError: out of memory"
    assert chat.talk.turns == []
    assert asked(chat).text == SENTENCE.strip()


# Pictures


def test_pictures_to_choose_are_drawn_scenes_and_files(tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.views.gallery.PICTURES", tmp_path)
    Image.new("RGB", (5, 5)).save(tmp_path / "<b>a & b.png")
    (tmp_path / "broken.jpg").write_bytes(b"no")
    (tmp_path / "notes.txt").write_text("no picture")
    offered = pictures_to_choose()
    assert set(offered) == set(drawn_scenes()) | {"<b>a & b.png", "broken.jpg"}
    chat = saying()
    thumbnails = {each["name"]: each["thumbnail"] for each in chat.still()["gallery"]}
    assert thumbnails["<b>a & b.png"].startswith("data:image/")
    assert thumbnails["broken.jpg"] == ""
    with pytest.raises(BadImageError, match=r"broken\.jpg cannot be read"):
        chat.choose("broken.jpg")
    with pytest.raises(BadInputError, match="no picture 'x' here"):
        chat.choose("x")
    assert chat.talk.picture_name == "a red circle"


def test_an_upload_that_is_no_picture_gives_one_sentence_with_its_name():
    chat = saying()
    with pytest.raises(BadImageError) as raised:
        chat.upload("<img src=x>.png", b"%PDF-1.7")
    assert str(raised.value).startswith("The picture <img src=x>.png cannot be read")
    assert "\n" not in str(raised.value)
    assert "0x" not in str(raised.value)
    assert chat.talk.picture_name == "a red circle", "the picture there was stays"
    chat.upload("mine.png", png("blue"))
    assert chat.talk.picture.getpixel((0, 0)) == (0, 0, 255)


def test_another_picture_begins_a_new_conversation():
    chat = saying()
    asked(chat)
    chat.choose("two stars")
    assert chat.talk.turns == []
    assert "new conversation" in chat.view()["notice"]
    asked(chat)
    assert chat.view()["notice"] == ""
    asked(chat, "And this?", data=png())
    assert len(chat.talk.turns) == 1
    assert chat.talk.picture_name == "your drawing"
    chat.leave_out()
    assert asked(chat, "你好").picture is None
    chat.choose("two stars")
    assert len(chat.talk.turns) == 1, "a talk without a picture goes on with one"
    assert asked(chat, QUESTION).fresh


# Where a word looked


def test_a_word_shows_the_attention_of_the_position_that_chose_it():
    chat = saying()
    asked(chat, "你好")
    turn = asked(chat, "What colour is it?")
    number = word_number(turn, "red")
    chat.pick(1, number)
    reply, tokens = turn.reply, turn.words[number][1]
    pixels = glm_processor(VISION).image_processor([chat.talk.picture])["pixel_values"]
    ids = [*reply.input_ids, *reply.output_ids[: tokens[-1] + 1]]
    whole = trace(glm(VISION), glm_tokenizer(VISION), ids, pixel_values=pixels)
    rows = [len(whole.tokens) - len(tokens) + n for n in range(len(tokens))]
    patches = whole.patch_index >= 0
    for moment, shift in (("choosing", -1), ("reading", 0)):
        chat.look(moment=moment)
        expected = whole.attentions[:, :, [row + shift for row in rows]].mean(dim=2)[..., patches]
        assert chat.talk.weights.shape == (LAYERS, HEADS, GRID**2)
        assert torch.allclose(chat.talk.weights, expected, atol=1e-5)
    assert torch.allclose(chat.talk.heat().flatten(), expected.mean(dim=(0, 1)), atol=1e-5)
    chat.look(layer=1, head=2, moment="reading")
    assert torch.allclose(chat.talk.heat().flatten(), expected[1, 2], atol=1e-5)
    view = chat.view()
    assert (view["word"], view["picked"]) == ("red", [1, number])
    assert view["share"] == pytest.approx(float(expected[1, 2].sum()), abs=1e-4)
    assert view["shares"][2] == pytest.approx(view["share"], abs=1e-4)
    asked(chat, "Where is it?")
    assert chat.view()["heat"] is None, "a new question puts the heat away"


def test_what_cannot_be_picked_or_looked_at_says_so():
    chat = saying()
    chat.leave_out()
    turn = asked(chat, "你好")
    assert not any(word["pick"] for word in chat.view()["turns"][0]["words"])
    with pytest.raises(BadInputError, match="There was no picture in the conversation"):
        chat.pick(0, word_number(turn, "red"))
    for turn, word in ((1, 0), (0, 99), (-1, 0), ("0", 0), (0, None)):
        with pytest.raises(BadInputError, match="no word"):
            chat.pick(turn, word)
    for wrong in ({"layer": 3}, {"head": -1}, {"layer": "1"}, {"moment": "later"}):
        with pytest.raises(BadInputError):
            chat.look(**wrong)


def test_the_model_is_as_before_when_a_word_was_picked():
    chat = saying()
    turn = asked(chat)
    before = glm(VISION).config._attn_implementation
    chat.pick(0, word_number(turn, "red"))
    assert glm(VISION).config._attn_implementation == before
    assert asked(chat, "Where?").text == SENTENCE.strip()


# Models that do not see


def test_a_model_without_eyes_is_a_chat_without_pictures():
    chat = ImageChat(glm(CHAT), glm_tokenizer(CHAT), max_new_tokens=4)
    assert not chat.view()["sees"]
    assert chat.still()["gallery"] == []
    turn = asked(chat, "你好")
    assert turn.reply == Conversation(glm(CHAT), glm_tokenizer(CHAT)).ask("你好", max_new_tokens=4)
    with pytest.raises(BadInputError, match="does not see"):
        chat.upload("a.png", png())
    with pytest.raises(BadInputError, match="does not see"):
        image_chat(glm(CHAT), glm_tokenizer(CHAT), picture=png())
    assert chat.figure() is not None
    assert "你好" in chat.describe()


# The widget


@pytest.fixture
def widget():
    ids = ids_of(SENTENCE)
    return image_chat(glm(VISION), glm_processor(VISION), forced_ids=ids, max_new_tokens=len(ids))


def send(widget, command, buffers=(), **values):
    widget._answer(widget, {"command": command, **values}, [memoryview(buffer) for buffer in buffers])


def test_a_question_is_answered_at_once_and_the_reply_follows(widget):
    seen = []
    widget.observe(lambda change: seen.append(change["new"]), names="view")
    hook = glm(VISION).register_forward_pre_hook(lambda *args: time.sleep(0.02))
    send(widget, "ask", text=QUESTION)
    assert widget.view["answering"], "the kernel is free before the reply is there"
    assert threading.current_thread() is not widget.worker
    widget.worker.join(20)
    hook.remove()
    assert not widget.view["answering"]
    texts = [view["turns"][0]["text"] for view in seen]
    assert texts[-1] == SENTENCE.strip()
    assert len(set(texts)) > 4, "the reply comes in pieces"
    assert [view["turn"] for view in seen] == sorted({view["turn"] for view in seen})
    send(widget, "pick", turn=0, word=word_number(widget.state.talk.turns[0], "circle"))
    assert widget.view["word"] == "circle"
    assert len(widget.view["heat"]) == GRID


def test_the_stop_button_ends_a_running_reply(widget):
    hook = glm(VISION).register_forward_pre_hook(lambda *args: time.sleep(0.03))
    send(widget, "ask", text=QUESTION)
    while not widget.view["turns"][0]["text"].strip():
        time.sleep(0.01)
    send(widget, "stop")
    widget.worker.join(20)
    hook.remove()
    assert widget.view["turns"][0]["stopped"] == "stopped by you"
    assert widget.view["turns"][0]["tokens"] < len(ids_of(SENTENCE))


def test_uploads_and_drawings_come_as_bytes(widget):
    send(widget, "upload", [png("blue")], name="mine.png")
    assert (widget.view["picture"], widget.view["message"]) == ("mine.png", "")
    stage = widget.stage
    assert stage.startswith("data:image/png;base64,")
    send(widget, "upload", [b"no picture"], name="notes.txt")
    assert widget.view["message"].startswith("The picture notes.txt cannot be read")
    assert (widget.view["picture"], widget.stage) == ("mine.png", stage)
    send(widget, "ask", [png("green")], text="What is it?")
    widget.worker.join(20)
    assert widget.view["picture"] == "your drawing"
    assert widget.view["message"] == ""


def test_trouble_in_the_thread_reaches_the_page(widget):
    def fail(*args):
        raise RuntimeError("out of memory")

    hook = glm(VISION).model.layers[1].register_forward_hook(fail)
    send(widget, "ask", text=QUESTION)
    widget.worker.join(20)
    hook.remove()
    assert "out of memory" in widget.view["message"]
    send(widget, "ask", text=QUESTION)
    widget.worker.join(20)
    assert widget.view["message"] == ""
    assert widget.view["turns"][0]["text"] == SENTENCE.strip()


def test_the_still_picture_shows_the_question_and_where_it_looked(monkeypatch):
    from matplotlib import pyplot

    ids = ids_of(SENTENCE)
    chat = image_chat(
        glm(VISION), glm_processor(VISION), question="$x$ <b>?</b>", forced_ids=ids, max_new_tokens=len(ids)
    )
    assert chat.view["heat"] is not None
    ax = chat.state.figure()
    texts = [text.get_text() for text in ax.figure.axes[1].texts]
    assert any("circle" in text for text in texts)
    assert texts[0] == r"\$x\$ <b>?</b>"
    assert len(ax.images) == 2
    pyplot.close(ax.figure)
    assert chat.picture()[:4] == b"\x89PNG"
    assert "circle" in repr(chat)
    with pytest.raises(BadInputError, match="max_new_tokens"):
        image_chat(glm(VISION), glm_processor(VISION), question="?", max_new_tokens=0)
    with pytest.raises(BadImageError, match="does not exist"):
        image_chat(glm(VISION), glm_processor(VISION), picture=checkpoint(VISION) / "nothing.png")


def test_its_page_side_loads_nothing_and_inserts_no_html():
    from helpers.views.image_chat import ImageChatWidget

    code = f"{ImageChatWidget._esm}"
    assert "http" not in code
    assert "innerHTML" not in code
