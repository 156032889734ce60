"""Where a word of a reply looked on the picture: checked through the picture chat, and refused here."""

import pytest
import torch

from helpers.errors import BadInputError
from helpers.inside.picture_attention import attention_on_picture, patch_side


def test_a_model_without_eyes_is_refused(tiny, tokenizer):
    from glm_fixtures import CHAT, glm

    for blind in (tiny, glm(CHAT)):  # GLM-4 has no eyes, GLM-4V of the same class has
        assert patch_side(blind) == 0
    with pytest.raises(BadInputError, match="can be shown for GLM-4V, not for"):
        attention_on_picture(tiny, tokenizer, None, [1, 2], [3], [0])


def test_each_head_gives_at_most_all_of_its_attention():
    from glm_fixtures import VISION, glm, glm_processor
    from PIL import Image

    model, processor = glm(VISION), glm_processor(VISION)
    messages = [{"role": "user", "image": Image.new("RGB", (20, 20), "red"), "content": "?"}]
    ids = processor.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    picture, prompt = messages[0]["image"], ids[0].tolist()
    side = patch_side(model)
    given = attention_on_picture(model, processor, picture, prompt, [5, 6, 7], [1, 2], moment="reading")
    assert given.shape == (model.config.num_hidden_layers, model.config.num_attention_heads, side * side)
    assert (given >= 0).all() and (given.sum(dim=-1) <= 1.0001).all()
    one = [attention_on_picture(model, processor, picture, prompt, [5, 6, 7], [at], moment="reading") for at in (1, 2)]
    assert torch.allclose(given, (one[0] + one[1]) / 2, atol=1e-5), "of several tokens it is the mean"
