"""Pictures of all kinds, the processor, and the tokenizer as users of AutoTokenizer and render_chat know it."""

import base64
import copy
import json
import warnings

import numpy
import pytest
import torch
from glm_fixtures import CHAT, FOLDER, VISION, copy_of, glm_processor, glm_tokenizer, golden
from PIL import Image
from transformers import AutoTokenizer

from helpers.errors import BadImageError, BadInputError, PictureLeftOutWarning
from helpers.glm import ChatGLMImageProcessor
from helpers.glm.tokenization import TOOL_LAST, TOOLS_FIRST
from helpers.text.pictures import open_picture
from helpers.text.prompts import prompt_ids, render_chat
from helpers.text.tokens import token_table

WIDE = FOLDER / VISION / "images" / "rgb_wide.png"
PLACE = [810, 800, 811]
BENIGN = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def gradient(mode="RGB", size=(40, 30)):
    ramp = numpy.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3)
    return Image.fromarray(ramp.astype(numpy.uint8)).convert(mode)


# Pictures


@pytest.mark.parametrize("file", ["rgb_wide.png", "rgb_tall.png", "rgba.png", "gray.png", "palette.png"])
@pytest.mark.parametrize("how", ["path", "text", "bytes", "picture"])
def test_a_picture_is_what_convert_makes_of_it(file, how):
    path = FOLDER / VISION / "images" / file
    with Image.open(path) as opened:
        source = {"path": path, "text": str(path), "bytes": path.read_bytes(), "picture": opened}[how]
        picture = open_picture(source)
        assert picture.mode == "RGB"
        assert picture.tobytes() == opened.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_modes_look_the_same(mode):
    picture = open_picture(gradient().convert("RGB") if mode == "LAB" else gradient(mode))
    assert picture.mode == "RGB"
    assert picture.size == (40, 30)
    if mode in ("RGBA", "CMYK", "YCbCr"):
        difference = numpy.asarray(picture).astype(int) - numpy.asarray(gradient()).astype(int)
        assert abs(difference).max() <= 4


def test_cmyk_jpeg(tmp_path):
    gradient("CMYK", (64, 64)).save(tmp_path / "print.jpg", quality=95)
    difference = numpy.asarray(open_picture(tmp_path / "print.jpg")).astype(int) - numpy.asarray(
        gradient(size=(64, 64))
    )
    assert abs(difference).mean() < 5


def test_transparent_palette_png_is_silent(tmp_path):
    picture = gradient("P")
    picture.info["transparency"] = bytes(range(256))
    picture.save(tmp_path / "p.png", transparency=bytes(range(256)))
    assert open_picture(tmp_path / "p.png").size == (40, 30)


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    """PIL alone makes everything above 255 of 65535 white."""
    levels = numpy.linspace(0, 65535, 256).astype(numpy.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as deep:
        assert deep.mode == "I;16"
    picture = numpy.asarray(open_picture(tmp_path / "deep.png"))
    assert numpy.array_equal(picture[..., 0], levels // 257)
    assert (picture[..., 0] == picture[..., 2]).all()


@pytest.mark.parametrize("kind", ["P2", "P5"])
@pytest.mark.parametrize("as_file", [True, False], ids=["file", "opened"])
def test_sixteen_bits_of_a_pgm_are_scaled_too(tmp_path, kind, as_file):
    """PIL puts them into 32 bits."""
    levels = numpy.linspace(0, 65535, 256).astype(">u2").reshape(16, 16)
    pixels = levels.tobytes() if kind == "P5" else " ".join(map(str, levels.ravel())).encode()
    path = tmp_path / "deep.pgm"
    path.write_bytes(f"{kind} 16 16 65535\n".encode() + pixels)
    with Image.open(path) as deep:
        assert deep.mode == "I"
        picture = numpy.asarray(open_picture(path if as_file else deep))
    assert numpy.array_equal(picture[..., 0], levels // 257)
    assert (picture[..., 0] == picture[..., 2]).all()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadImageError, match="cannot be read"):
        open_picture(path)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bits_are_refused(mode):
    with pytest.raises(BadImageError, match=f"32-bit pixels .mode {mode}.*8 or 16"):
        open_picture(Image.new(mode, (4, 4)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_cameras_orientation_mark_is_obeyed(tmp_path, orientation):
    upright = Image.new("RGB", (40, 20), "blue")
    upright.paste("red", (0, 0, 10, 10))  # top left
    turn = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = upright if turn is None else upright.transpose(Image.Transpose(turn))
    mark = Image.Exif()
    mark[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=mark)
    assert open_picture(tmp_path / "photo.png").tobytes() == upright.tobytes()


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert open_picture(tmp_path / "moving.gif").getpixel((4, 4)) == (255, 0, 0)
    moving = Image.open(tmp_path / "moving.gif")
    moving.seek(2)
    assert open_picture(moving).getpixel((4, 4)) == (0, 0, 255)
    moving.close()


def test_files_are_closed(tmp_path):
    """A file left open is a ResourceWarning, and warnings are errors here."""
    for suffix in ("gif", "tiff", "png"):
        gradient().save(tmp_path / f"picture.{suffix}")
        open_picture(tmp_path / f"picture.{suffix}")
        (tmp_path / f"picture.{suffix}").unlink()


def truncated(tmp_path, format):
    whole = tmp_path / f"whole.{format}"
    gradient(size=(300, 300)).save(whole)
    cut = tmp_path / f"cut.{format}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return cut


@pytest.mark.parametrize("format", ["png", "jpeg", "gif", "bmp", "webp", "tiff"])
def test_a_truncated_file_is_refused(tmp_path, format):
    with pytest.raises(BadImageError, match=r"cannot be read.*complete"):
        open_picture(truncated(tmp_path, format))


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_a_truncated_picture_that_someone_opened_is_refused(tmp_path, format):
    with Image.open(truncated(tmp_path, format)) as lazy, pytest.raises(BadImageError, match="cannot be read"):
        open_picture(lazy)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    gradient(size=(100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000)
    with pytest.raises(BadImageError, match="more than 8,000 pixels"):
        open_picture(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_000)  # large, where PIL warns only
    assert open_picture(tmp_path / "bomb.png").size == (100, 100)


@pytest.mark.parametrize("size", [(0, 0), (5, 0), (0, 5)], ids=str)
def test_a_picture_without_pixels_is_refused(size):
    with pytest.raises(BadImageError, match=f"no pixels: its size is {size[0]} x {size[1]}"):
        open_picture(Image.new("RGB", size))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/cat.png", "no/such/cat.png does not exist"),
        ("https://example.org/cat.png", "does not exist.*fetched from the internet"),
        (FOLDER, "cannot be read"),
        (FOLDER / VISION / "golden.json", "cannot be read"),
        (b"not a picture", "This picture cannot be read"),
        (b"", "cannot be read"),
        (numpy.zeros((4, 4, 3)), "not a ndarray.*fromarray"),
        (torch.zeros(3, 4, 4), "not a Tensor"),
        (42, "not a int"),
    ],
    ids="missing url folder json bytes empty array tensor number".split(),
)
def test_what_is_no_picture_is_refused(source, message):
    with pytest.raises(BadImageError, match=message):
        open_picture(source)


def test_pixels_by_hand():
    """Squeezed to a square, 0..1, minus the mean, through the deviation."""
    processor = ChatGLMImageProcessor(image_size=4)
    pixel_values = processor(Image.new("RGB", (9, 2), (255, 0, 51)))["pixel_values"]
    assert pixel_values.shape == (1, 3, 4, 4)
    assert pixel_values.dtype == torch.float32
    expected = [(1 - 0.48145466) / 0.26862954, (0 - 0.4578275) / 0.26130258, (0.2 - 0.40821073) / 0.27577711]
    assert torch.allclose(pixel_values[0].mean(dim=(1, 2)), torch.tensor(expected))
    assert processor([WIDE, WIDE])["pixel_values"].shape == (2, 3, 4, 4)


def test_the_picture_is_resized_by_pil_and_keeps_no_proportions():
    """A resize of tensors gives other pixels."""
    ours = glm_processor(VISION)(images=WIDE)["pixel_values"]
    picture = torch.from_numpy(numpy.array(Image.open(WIDE).convert("RGB"))).permute(2, 0, 1)[None] / 255
    other = torch.nn.functional.interpolate(picture, (84, 84), mode="bicubic")
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.4815, 0.4578, 0.4082], [0.2686, 0.2613, 0.2758]))
    assert ((other - mean) / std - ours).abs().max() > 0.05


# The processor


def test_processor_has_its_parts():
    processor = glm_processor(VISION)
    assert processor.image_processor.image_size == processor.tokenizer.image_size == 84
    assert processor.tokenizer is not None
    assert set(processor.model_input_names) == {"input_ids", "attention_mask", "position_ids", "pixel_values"}
    assert processor.decode([712]) == "你好"
    assert "ChatGLMProcessor" in repr(processor)


def test_processor_on_texts_and_pictures():
    processor = glm_processor(VISION)
    text = "<|user|>\n<|begin_of_image|><|endoftext|><|end_of_image|>描述一下这张图片<|assistant|>"
    inputs = processor(text=[text], images=[WIDE], return_tensors="pt")
    chat = processor.encode_chat([{"role": "user", "image": WIDE, "content": "描述一下这张图片"}])
    assert inputs["input_ids"].tolist() == [chat.input_ids]
    assert inputs["pixel_values"].shape == (1, 3, 84, 84)
    assert set(processor(text="hi")) == {"input_ids", "attention_mask", "position_ids"}
    assert set(processor(images=WIDE)) == {"pixel_values"}
    with pytest.raises(BadInputError, match="text, images or both"):
        processor()


def test_processor_template_without_pictures_or_as_text():
    processor = glm_processor(VISION)
    assert "pixel_values" not in processor.apply_chat_template(BENIGN, return_tensors="pt")
    with_picture = [{"role": "user", "image": WIDE, "content": ""}]
    assert processor.apply_chat_template(with_picture, return_dict=False)[-3:] == PLACE
    assert processor.apply_chat_template(with_picture, tokenize=False).endswith("<|end_of_image|>")
    without = [{"role": "user", "image": None, "content": "hi"}]
    assert processor.apply_chat_template(without)["input_ids"] == processor.apply_chat_template(BENIGN)["input_ids"]


def test_a_batch_has_pictures_everywhere_or_nowhere():
    with_picture = [{"role": "user", "image": WIDE, "content": "?"}]
    with pytest.raises(BadInputError, match="1 of 2 conversations hold a picture"):
        glm_processor(VISION).apply_chat_template([with_picture, BENIGN], padding=True, return_tensors="pt")


def test_a_picture_that_cannot_be_read_is_named():
    with pytest.raises(BadImageError, match=r"nowhere.png does not exist"):
        glm_processor(VISION).apply_chat_template([{"role": "user", "image": "nowhere.png", "content": "?"}])


# The tokenizer


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one"),
        ("hi", "at least one"),
        ([{"role": "user"}], "Message 0 needs"),
        ([{"content": "hi"}], "Message 0 needs"),
        ([{"role": "user", "content": None}], "Message 0 needs"),
        ([{"role": "robot", "content": "hi"}], "role 'robot'"),
        ([{"role": "tool", "content": "hi"}], "role 'tool'; GLM-4's roles are system, user, assistant, observation"),
        ([{"role": "system", "content": "", "tools": [{}]}], "Message 0 offers {} as a tool"),
        ([{"role": "system", "content": "", "tools": [{"type": "python"}]}], "as a tool: a tool is a Python function"),
        ([{"role": "system", "content": "", "tools": [len]}], "Message 0 offers 'len' as a tool"),
        ([{"role": "system", "content": "", "tools": [{"name": "a", "b": object()}]}], "Message 0 offers .* as a tool"),
        ([{"role": "assistant", "content": "hi", "metadata": 3}], "Message 0 has the metadata 3"),
        ([{"role": "user", "content": "a", "image": WIDE}] * 2, "Messages 0 and 1 hold pictures"),
    ],
    ids="none text content role null robot tool tools python untyped unwritable metadata two".split(),
)
def test_malformed_messages(messages, message):
    tokenizer = glm_tokenizer(VISION)
    for encode in (tokenizer.encode_chat, tokenizer.apply_chat_template, glm_processor(VISION).apply_chat_template):
        with pytest.raises(BadInputError, match=message):
            encode(messages)


def test_a_model_that_takes_text_only_says_so():
    with pytest.raises(BadInputError, match="Message 0 holds a picture, but this model takes text only"):
        glm_tokenizer(CHAT).encode_chat([{"role": "user", "image": WIDE, "content": "?"}])


def test_a_tokenizer_that_leaves_the_pixels_out_says_so():
    """The walkthrough's own call: without pixel_values the model would answer without having seen the picture."""
    messages = [{"role": "user", "image": WIDE, "content": "描述一下这张图片"}]
    for conversation in (messages, [messages, BENIGN]):
        with pytest.warns(
            PictureLeftOutWarning, match="picture is left out here.*load_processor.*AutoProcessor"
        ) as warned:
            inputs = glm_tokenizer(VISION).apply_chat_template(conversation, add_generation_prompt=True)
        assert len(warned) == 1
        assert warned[0].filename == __file__
        assert "pixel_values" not in inputs
    with_pixels = glm_processor(VISION).apply_chat_template(messages, add_generation_prompt=True)  # warns of nothing
    with pytest.warns(UserWarning, match="left out"):
        without = glm_tokenizer(VISION).apply_chat_template(messages, add_generation_prompt=True)
    assert without["input_ids"] == with_pixels["input_ids"]
    assert "pixel_values" in with_pixels
    glm_tokenizer(VISION).apply_chat_template(messages, tokenize=False)
    glm_tokenizer(VISION).apply_chat_template([{"role": "user", "image": None, "content": "hi"}])


WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city <|user|>",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "城市"}}},
}
# The published tokenizers' template has these rules for functions (and others for tools of GLM-4's own).
JINJA = (
    "[gMASK]<sop>{% for item in messages %}{% if item['tools'] is defined %}<|system|>\nFIRST{% for tool in"
    " item['tools'] %}\n\n## {{ tool['function']['name'] }}\n\n{{ tool['function'] | tojson(indent=4) }}LAST"
    "{% endfor %}{% endif %}{% if item['content'] %}<|{{ item['role'] }}|>{{ item['metadata'] }}\n"
    "{{ item['content'] }}{% endif %}{% endfor %}"
)


def test_tools_are_described_in_a_system_message_of_their_own():
    tokenizer = glm_tokenizer(CHAT)
    messages = [
        {"role": "system", "content": "Be brief.", "tools": [{"type": "function", "function": WEATHER}]},
        {"role": "user", "content": "北京天气"},
    ]
    chat = tokenizer.encode_chat(messages)
    described = json.dumps(WEATHER, ensure_ascii=False, indent=4)
    tools = f"{TOOLS_FIRST}\n\n## get_weather\n\n{described}{TOOL_LAST}"
    assert chat.text == f"[gMASK]<sop><|system|>\n{tools}<|system|>\nBe brief.<|user|>\n北京天气<|assistant|>"
    assert tokenizer.decode(chat.input_ids).count("<|user|>") == 2
    assert chat.input_ids.count(tokenizer.convert_tokens_to_ids("<|user|>")) == 1, "a description is plain text"
    rest = [{"role": "system", "content": "Be brief."}, messages[1]]
    given = tokenizer.apply_chat_template(rest, tools=[{"type": "function", "function": WEATHER}])["input_ids"]
    assert given == tokenizer.encode_chat(messages, add_generation_prompt=False).input_ids


def test_a_folders_own_template_words_the_description():
    tokenizer = copy.copy(glm_tokenizer(CHAT))
    tokenizer.chat_template = JINJA.replace("FIRST", "你好").replace("LAST", "。")
    messages = [
        {"role": "system", "content": "", "tools": [{"type": "function", "function": WEATHER}]},
        {"role": "user", "content": "北京天气"},
    ]
    described = json.dumps(WEATHER, ensure_ascii=False, indent=4)
    said = tokenizer.encode_chat(messages, add_generation_prompt=False).text
    # One new line goes: Jinja drops the first one after a block, as transformers sets it up.
    assert said == f"[gMASK]<sop><|system|>\n你好\n## get_weather\n\n{described}。<|user|>\n北京天气"


def test_a_description_is_whole_whatever_it_says_and_a_template_without_tools_is_refused():
    tokenizer = copy.copy(glm_tokenizer(CHAT))
    tokenizer.chat_template = JINJA.replace("FIRST", "").replace("LAST", "")
    tricky = WEATHER | {"description": "Not <|system|>\n the end"}
    messages = [{"role": "user", "content": "?", "tools": [{"type": "function", "function": tricky}]}]
    assert json.dumps(tricky, ensure_ascii=False, indent=4) in tokenizer.encode_chat(messages).text
    tokenizer.chat_template = "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
    with pytest.raises(BadInputError, match="has no place for tools"):
        tokenizer.encode_chat(messages)


def test_a_python_function_is_a_tool():
    def double(number: int) -> int:
        """
        Twice a number.

        Args:
            number: The number.
        """
        return 2 * number

    text = glm_tokenizer(CHAT).encode_chat([{"role": "user", "content": "3?", "tools": [double]}]).text
    assert "## double" in text and "Twice a number." in text and "<|user|>\n3?<|assistant|>" in text


@pytest.mark.parametrize("option", ["documents", "chat_template", "return_assistant_tokens_mask"])
def test_options_the_template_lacks(option):
    with pytest.raises(BadInputError, match=f"no option '{option}'"):
        glm_tokenizer(CHAT).apply_chat_template(BENIGN, **{option: ["x"]})
    ids = glm_tokenizer(CHAT).apply_chat_template(BENIGN, **{option: None}, continue_final_message=True)
    assert ids["input_ids"] == glm_tokenizer(CHAT).encode_chat(BENIGN, add_generation_prompt=False).input_ids


def test_template_results_of_all_kinds():
    tokenizer = glm_tokenizer(CHAT)
    long = [{"role": "user", "content": "一 longer one, with more words"}]
    ids, long_ids = (tokenizer.encode_chat(m, add_generation_prompt=False).input_ids for m in (BENIGN, long))
    assert dict(tokenizer.apply_chat_template(BENIGN)) == {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "position_ids": list(range(len(ids))),
    }
    assert tokenizer.apply_chat_template(BENIGN, return_dict=False) == ids
    assert tokenizer.apply_chat_template([BENIGN, long], return_dict=False) == [ids, long_ids]
    assert tokenizer.apply_chat_template([BENIGN], return_dict=False) == [ids]
    tensor = tokenizer.apply_chat_template(BENIGN, return_tensors="pt", return_dict=False)
    assert tensor.tolist() == [ids]
    array = tokenizer.apply_chat_template(BENIGN, return_tensors="np")
    assert isinstance(array["position_ids"], numpy.ndarray)
    batch = tokenizer.apply_chat_template([BENIGN, long], return_tensors="pt", padding=True)
    gap = len(long_ids) - len(ids)
    assert batch["input_ids"].tolist() == [[800] * gap + ids, long_ids]
    assert batch["attention_mask"][0].tolist() == [0] * gap + [1] * len(ids)
    assert batch["position_ids"][0].tolist() == [0] * gap + list(range(len(ids)))
    wide = tokenizer.apply_chat_template(BENIGN, padding="max_length", max_length=20, return_tensors="pt")
    assert wide["position_ids"].shape == (1, 20)
    assert tokenizer.apply_chat_template(long, truncation=True, max_length=5)["input_ids"] == long_ids[:5]
    assert tokenizer.apply_chat_template([BENIGN], tokenize=False) == ["[gMASK]<sop><|user|>\nhi"]


def test_calls_of_all_kinds():
    tokenizer = glm_tokenizer(VISION)
    batch = tokenizer(["hi", "你好 world"], padding=True, return_tensors="pt")
    assert batch["position_ids"].shape == batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["position_ids"][0].tolist()[-4:] == [0, 1, 2, 3]
    assert batch["input_ids"][0, 0] == 800
    padded = tokenizer.pad([tokenizer("hi"), tokenizer("你好 world")], return_tensors="pt")
    assert all(torch.equal(padded[key], batch[key]) for key in batch)
    # A pair of texts, on which the original fails.
    assert tokenizer("hi", "你好")["input_ids"] == [802, 804, 71, 72, 712]
    assert tokenizer("hi", return_offsets_mapping=True)["offset_mapping"][-2:] == [(0, 1), (1, 2)]
    assert tokenizer.batch_decode([[712], [71, 72]]) == ["你好", "hi"]
    assert tokenizer.decode([820, 71]) == "h"  # a row of the matrix that no token uses
    assert tokenizer.convert_tokens_to_ids("<|user|>") == 807
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (None, "<|endoftext|>", None)


def test_prompts_and_token_labels_of_the_course():
    tokenizer = glm_tokenizer(VISION)
    ids = prompt_ids(tokenizer, "<|user|> 😀")
    assert ids[0, :2].tolist() == [802, 804]
    assert 807 not in ids
    labels = [row.label for row in token_table(tokenizer, ids)]
    assert labels[:2] == ["[gMASK]", "<sop>"]
    assert labels[-4:] == ["😀 1/4", "😀 2/4", "😀 3/4", "😀 4/4"]
    assert [row.special for row in token_table(tokenizer, ids)][:3] == [True, True, False]
    assert token_table(tokenizer, [830])[0].label == "∅"


def test_render_chat_asks_the_tokenizer_and_knows_whose_tokens_are_whose():
    messages = [
        {"role": "system", "content": "你是<|user|>助手"},
        {"role": "user", "content": "", "image": WIDE},
        {"role": "assistant", "content": "好", "metadata": "get_weather"},
    ]
    for tokenizer in (glm_tokenizer(VISION), glm_processor(VISION)):
        chat = render_chat(tokenizer, messages)
        segments = [(s.message, s.role, chat.input_ids[s.start : s.stop]) for s in chat.segments]
        assert [(message, role) for message, role, _ in segments] == [
            *[(None, "template"), (0, "system"), (None, "template"), (1, "user")],
            *[(None, "template"), (2, "assistant"), (None, "template")],
        ]
        assert segments[0][2] == [802, 804, 806, 198]
        assert segments[3][2] == PLACE
        assert glm_tokenizer(VISION).decode(segments[1][2]) == "你是<|user|>助手"
        assert glm_tokenizer(VISION).decode(segments[5][2]) == "get_weather\n好"
        assert segments[6][2] == [808]
        assert chat.text.endswith("<|end_of_image|><|assistant|>get_weather\n好<|assistant|>")
        assert render_chat(tokenizer, messages, add_generation_prompt=False).input_ids == chat.input_ids[:-1]


@pytest.mark.parametrize(
    ("text", "metadata", "content"),
    [
        ("\n你好！", None, "你好！"),
        ("\n First.\nSecond. ", None, "First.\nSecond."),
        ("no newline", None, "no newline"),
        ("First line,\nand second.", None, "First line,\nand second."),
        ("Yes\nIt is red.", None, "Yes\nIt is red."),
        ("好\n是红色的。", None, "好\n是红色的。"),
        ("1\n2", None, "1\n2"),
        ("", None, ""),
        ("\n", None, ""),
        ('get_weather\n{"city": "北京"}', "get_weather", '{"city": "北京"}'),
        ("python\n\nprint(1)\nprint(2)\n", "python", "\nprint(1)\nprint(2)\n"),
        ("\nget_weather\n{}", None, "get_weather\n{}"),
        ("get_weather", None, "get_weather"),
        ("get_weather\n", None, "get_weather"),
        ("<|assistant|>\nx", None, "<|assistant|>\nx"),
        ("\nx<|assistant|>get_weather\n{}", None, "x<|assistant|>get_weather\n{}"),
    ],
)
def test_a_reply_becomes_a_message(text, metadata, content):
    tokenizer = glm_tokenizer(CHAT)
    said = tokenizer.parse_reply(text)
    assert said == {"content": content} | ({"metadata": metadata} if metadata else {})
    if content:  # written as it was generated: header, then content
        ids = tokenizer.encode_chat([{"role": "assistant", **said}], add_generation_prompt=False).input_ids
        assert tokenizer.decode(ids) == f"[gMASK]<sop><|assistant|>{metadata or ''}\n{content}"
        assert [i for i in ids if i in tokenizer.all_special_ids] == [802, 804, 808], "text stays text"


def test_the_callers_messages_stay_as_they_are():
    messages = [{"role": "user", "image": WIDE}]
    glm_processor(VISION).apply_chat_template(messages)
    assert messages == [{"role": "user", "image": WIDE}]


@pytest.mark.parametrize("name", [CHAT, VISION])
def test_every_rank_is_a_token_and_decodes_to_its_bytes(name):
    tokenizer = glm_tokenizer(name)
    lines = (FOLDER / name / "checkpoint" / "tokenizer.model").read_bytes().splitlines()
    raws = [base64.b64decode(line.split()[0]) for line in lines]
    assert [row.raw for row in token_table(tokenizer, range(800))] == raws
    assert tokenizer.vocab_size == len(raws)
    for case in golden(name)["tokenizer"]["cases"]:
        joined = b"".join(raws[i] for i in case["content_ids"])
        assert joined.decode() == case["text"]


def test_ids_of_a_vocabulary_as_large_as_the_real_one(tmp_path):
    """151,329 ranks: the specials get their real ids, and loading neither warns nor reaches for a network."""
    folder = copy_of(VISION, tmp_path)
    ranks = [bytes([byte]) for byte in range(256)]
    ranks += [bytes([a, b]) for a in range(256) for b in range(256)]
    ranks += [bytes([a, b, c]) for a in range(97, 123) for b in range(256) for c in range(256)]
    lines = [base64.b64encode(raw).decode() + f" {rank}" for rank, raw in enumerate(ranks[:151_329])]
    (folder / "tokenizer.model").write_text("\n".join(lines) + "\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    decoder = {str(int(i) - 800 + 151_329): token for i, token in settings["added_tokens_decoder"].items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": decoder}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.vocab_size, len(tokenizer)) == (151_329, 151_343)
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>", "<|end_of_video|>"]) == [
        151329,
        151336,
        151342,
    ]
    assert tokenizer("a")["input_ids"] == [151331, 151333, 97]
    assert (
        tokenizer.decode(tokenizer("多 digits 1234567")["input_ids"], skip_special_tokens=True) == "多 digits 1234567"
    )
