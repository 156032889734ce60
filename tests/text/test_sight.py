"""Each kind of model that sees: its prompt with pictures is the one that its own processor in transformers makes."""

import pytest
import torch
from PIL import Image
from small_tokenizers import with_added
from transformers import (
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessorPil,
)

from helpers.conversation import Conversation
from helpers.errors import BadInputError
from helpers.inside.tracing import trace
from helpers.text.pictures import picture_inputs
from helpers.text.prompts import render_chat
from helpers.text.sight import GridSight, NoSight, ProcessorSight, sight_of

RED, WIDE = Image.new("RGB", (60, 60), "red"), Image.new("RGB", (90, 40), "blue")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}PLACE{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TOWER |= {"image_size": 56, "patch_size": 14}


def _text(kind, vocabulary, **more):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {"model_type": kind, "vocab_size": vocabulary, "num_key_value_heads": 2, "eos_token_id": 2} | sizes | more


def _llava(tokenizer):
    used = with_added(tokenizer, "<image>", template=TEMPLATE.replace("PLACE", "<image>\n"), special=True)
    images = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = LlavaProcessor(images, used, patch_size=14, vision_feature_select_strategy="default")
    processor.num_additional_image_tokens = 1
    tower = TOWER | {"model_type": "clip_vision_model", "projection_dim": 32}
    return processor, "Llava", {"text_config": _text("llama", len(used)), "vision_config": tower}


def _idefics3(tokenizer):
    used = with_added(tokenizer, template=TEMPLATE.replace("PLACE", "<image>"))
    images = Idefics3ImageProcessorPil(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    processor = Idefics3Processor(images, used, image_seq_len=4)
    settings = {"scale_factor": 2, "pad_token_id": 0, "vision_config": TOWER}
    return processor, "Idefics3", settings | {"text_config": _text("llama", len(processor.tokenizer))}


def _gemma3(tokenizer):
    used = with_added(tokenizer, "<boi>", "<img>", "<eoi>", special=True)
    used.chat_template = TEMPLATE.replace("PLACE", "<boi>")
    for name, token in (("boi_token", "<boi>"), ("image_token", "<img>"), ("eoi_token", "<eoi>")):
        setattr(used, name, token)
    used.boi_token_id, used.image_token_id = used.convert_tokens_to_ids(["<boi>", "<img>"])
    images = Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    processor = Gemma3Processor(images, used, image_seq_length=4)
    text = _text("gemma3_text", len(used), head_dim=8, sliding_window=16, query_pre_attn_scalar=8)
    settings = {"mm_tokens_per_image": 4, "vision_config": TOWER | {"vision_use_head": False}, "text_config": text}
    return processor, "Gemma3", settings


KINDS = {"LLaVA": _llava, "Idefics3": _idefics3, "Gemma 3": _gemma3}


@pytest.fixture(scope="module", params=KINDS)
def seeing(request, tokenizer):
    import transformers

    processor, family, settings = KINDS[request.param](tokenizer)
    token = "<img>" if family == "Gemma3" else processor.image_token
    place = processor.tokenizer.convert_tokens_to_ids(token)
    config = getattr(transformers, f"{family}Config")(image_token_id=place, **settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()
    return model, processor


def _messages(*pictures):
    said = [("user", "What is this?"), ("assistant", "A square."), ("user", "And this?")][: 2 * len(pictures) - 1]
    messages = [{"role": role, "content": text} for role, text in said]
    for message, picture in zip(messages[::2], pictures, strict=True):
        message["image"] = picture
    return messages


@pytest.mark.parametrize("pictures", [(RED,), (WIDE, RED)], ids=["one", "two"])
def test_a_prompt_with_pictures_is_that_of_the_models_own_processor(seeing, pictures):
    model, processor = seeing
    messages = _messages(*pictures)
    chat = render_chat(processor, messages)
    (ids,), tensors = picture_inputs(model, processor, [chat.input_ids], [pictures])
    library = processor(text=[chat.text], images=[list(pictures)], return_tensors="pt", add_special_tokens=False)
    assert ids == library["input_ids"][0].tolist()
    assert torch.equal(tensors["pixel_values"], library["pixel_values"])
    assert isinstance(sight_of(model, processor), ProcessorSight)


def test_a_conversation_about_pictures_is_that_of_generate(seeing):
    model, processor = seeing
    talk = Conversation(model, processor)
    first = talk.ask("What is this?", RED, max_new_tokens=3)
    second = talk.ask("And why?", max_new_tokens=3)
    for reply, messages in ((first, talk.messages[:1]), (second, talk.messages[:3])):
        chat = render_chat(processor, messages)
        inputs = processor(text=[chat.text], images=[[RED]], return_tensors="pt", add_special_tokens=False)
        takes = {"token_type_ids", "mm_token_type_ids"} & set(inputs)
        expected = model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=[2, 0])
        assert reply.output_ids == expected[0, inputs["input_ids"].shape[1] :].tolist(), takes
    assert talk.reused == 0


def test_paligemma_takes_no_picture_in_a_chat(tokenizer):
    """It looks both ways over the picture and the question. In a chat it was told to at the question alone."""
    used = with_added(tokenizer, template=TEMPLATE.replace("PLACE", "<image>"))
    images = SiglipImageProcessorPil(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(images, used)
    place, vocabulary = processor.image_token_id, len(processor.tokenizer)
    settings = {"text_config": _text("gemma", vocabulary, head_dim=8), "projection_dim": 32, "image_token_id": place}
    config = PaliGemmaConfig(vision_config=TOWER | {"projection_dim": 32, "vision_use_head": False}, **settings)
    torch.manual_seed(0)
    model = PaliGemmaForConditionalGeneration(config).eval()
    with pytest.raises(BadInputError, match="is not known here: omit the picture") as error:
        Conversation(model, processor).ask("What is this?", RED, max_new_tokens=2)
    assert "\n" not in str(error.value)
    inputs = processor(text=["<image>What is this?"], images=[[RED]], return_tensors="pt")
    ids, mask, _ = inputs.pop("input_ids"), inputs.pop("attention_mask"), inputs.pop("labels", None)
    assert not inputs["token_type_ids"].any()
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, **inputs).logits[0]
    run = trace(model, processor, ids, **inputs)
    assert torch.allclose(run.logits, expected, atol=1e-3)


def test_a_processor_that_lacks_what_it_needs_is_one_sentence(tokenizer):
    processor, _, settings = _llava(tokenizer)
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(**settings))
    processor.patch_size = None
    with pytest.raises(BadInputError, match="LlavaProcessor of this model cannot prepare a picture"):
        Conversation(model, processor).ask("What is this?", RED, max_new_tokens=1)
    with pytest.raises(BadInputError, match="load_processor"):
        Conversation(model, processor.tokenizer).ask("What is this?", RED)

    class OnlyParts:
        """A tokenizer and an image processor without the model's own processor."""

        tokenizer, image_processor = processor.tokenizer, GotOcr2ImageProcessorPil()

    with pytest.raises(BadInputError, match="cannot be given to a LlavaForConditionalGeneration"):
        Conversation(model, OnlyParts()).ask("What is this?", RED)


def test_the_kind_of_a_model_that_takes_text_only(model, tokenizer):
    sight = sight_of(model, tokenizer)
    assert type(sight) is NoSight and not sight.sees and sight.grid is None
    assert not issubclass(GridSight, ProcessorSight)


def test_a_picture_is_opened_once(seeing, monkeypatch):
    import helpers.text.pictures as pictures

    model, processor = seeing
    upright, opened = pictures._upright_rgb, []
    monkeypatch.setattr(pictures, "_upright_rgb", lambda *given: opened.append(given) or upright(*given))
    talk = Conversation(model, processor)
    talk.ask("What is this?", WIDE, max_new_tokens=1)
    talk.ask("And why?", max_new_tokens=1)
    assert len(opened) == 1
