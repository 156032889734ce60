"""The picture chat with models whose pictures have no fixed grid: the widget is built, asked, and drawn."""

import pytest
import torch
from glm_fixtures import one_thread
from matplotlib import pyplot
from PIL import Image
from small_tokenizers import with_added
from transformers import (
    CLIPImageProcessorPil,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

from helpers.models.pretrained import PictureProcessor
from helpers.views.image_chat import image_chat

WIDE = Image.new("RGB", (90, 40), "blue")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {"hidden_size": 32, "intermediate_size": 48}


def _glm41(tokenizer):
    used = with_added(tokenizer, "<image>", "<b>", "<e>", "<v>", "<w>", template=TEMPLATE, special=True)
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0, "mrope_section": [1, 1, 2]}
    text = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(used)}
    names = [f"{name}_token_id" for name in ("image", "image_start", "image_end", "video_start", "video_end")]
    config = Glm4vConfig(
        text_config={**SIZES, **text, "rope_parameters": rope, "pad_token_id": 0, "eos_token_id": 2},
        vision_config={**SIZES, "depth": 1, "num_heads": 2, "out_hidden_size": 32, "image_size": 56},
        **dict(zip(names, used.convert_tokens_to_ids(["<image>", "<b>", "<e>", "<v>", "<w>"]), strict=True)),
    )
    images = Glm4vImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112})
    return Glm4vForConditionalGeneration(config).eval(), PictureProcessor(images, used)


def _llava(tokenizer):
    used = with_added(tokenizer, "<image>", template=TEMPLATE, special=True)
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"model_type": "llama", "vocab_size": len(used), "num_key_value_heads": 2, **SIZES, **layers}
    tower = {"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14, "projection_dim": 32}
    config = LlavaConfig(
        text_config=text,
        vision_config={**SIZES, **layers, **tower},
        image_token_id=used.convert_tokens_to_ids("<image>"),
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = LlavaProcessor(images, used, patch_size=14, vision_feature_select_strategy="default")
    processor.num_additional_image_tokens = 1
    return LlavaForConditionalGeneration(config).eval(), processor


@pytest.mark.parametrize("make", [_glm41, _llava], ids=["GLM-4.1V", "LLaVA"])
def test_the_widget_is_built_and_answers(tokenizer, make):
    torch.manual_seed(0)
    with one_thread():
        model, processor = make(tokenizer)
        widget = image_chat(model, processor, picture=WIDE, question="What is this?", pictures={}, max_new_tokens=3)
    assert widget.still["grid"] == 0, "no patches to show attention on"
    assert (widget.still["layers"], widget.still["heads"]) == (2, 4)
    (turn,) = widget.view["turns"]
    assert turn["question"] == "What is this?"
    assert not any(word["pick"] for word in turn["words"])
    assert widget.view["sees"] and widget.stage.startswith("data:image/")
    assert widget.state.figure() is not None
    pyplot.close("all")
    widget.close()
