"""Pictures, and prompts with pictures, for GLM-4V."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy
import torch
from PIL import Image
from transformers import BatchFeature, ImageProcessingMixin, ProcessorMixin

from helpers.checks import whole_number
from helpers.errors import BadInputError
from helpers.glm.tokenization import ChatGLM4Tokenizer
from helpers.text.pictures import as_opened

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.text.prompts import RenderedChat

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of red, green, blue in CLIP's training pictures
STD = (0.26862954, 0.26130258, 0.27577711)


LARGEST_SIDE = 8192  # the most pixels along a picture's side; GLM-4V has 1120


class ChatGLMImageProcessor(ImageProcessingMixin):
    """Pictures -> `pixel_values` [picture, channel, height, width], float32.

    Each picture is resized to image_size x image_size (its proportions are not kept), scaled to 0..1 and
    normalised with the mean and standard deviation of CLIP's training pictures. The result equals that of
    torchvision's Resize (bicubic), ToTensor and Normalize to the last bit, but needs only PIL and torch.
    """

    model_input_names = ["pixel_values"]

    def __init__(self, image_size: int = 1120, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.image_size = whole_number("image_size", image_size, least=1, most=LARGEST_SIDE)

    def __call__(self, images: Any, return_tensors: str | None = "pt") -> BatchFeature:
        """`pixel_values` of `images`, one or a list of what `open_picture` takes. Raises `BadImageError`."""
        pictures = images if isinstance(images, list | tuple) else [images]
        pixel_values = torch.stack([self._pixels(as_opened(picture)) for picture in pictures])
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)

    def _pixels(self, picture: Image.Image) -> torch.Tensor:
        picture = picture.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).float() / 255
        mean, deviation = (torch.tensor(each, device="cpu")[:, None, None] for each in (MEAN, STD))
        return (pixels - mean) / deviation


class ChatGLMProcessor(ProcessorMixin):
    """GLM-4V's tokenizer and picture processor in one."""

    def __init__(
        self, image_processor: ChatGLMImageProcessor, tokenizer: ChatGLM4Tokenizer, chat_template: str | None = None
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """The processor of a folder, or its tokenizer if the model takes text only."""
        tokenizer = ChatGLM4Tokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        if tokenizer.image_size is None:
            return tokenizer
        return cls(ChatGLMImageProcessor(tokenizer.image_size), tokenizer)

    def __call__(self, images: Any = None, text: str | list[str] | None = None, **kwargs: Any) -> BatchFeature:
        """Turn texts [batch] and pictures into `input_ids`, `attention_mask`, `position_ids` and `pixel_values`.

        Texts are taken as they are; in a text, a picture is written as
        `<|begin_of_image|><|endoftext|><|end_of_image|>`. Raises `BadImageError`, and `BadInputError` if there is
        neither text nor picture.
        """
        if images is None and text is None:
            raise BadInputError("The processor needs text, images or both.")
        data = {} if text is None else dict(self.tokenizer(text, **kwargs))
        if images is not None:
            data |= self.image_processor(images, kwargs.get("return_tensors", "pt"))
        return BatchFeature(data)

    def encode_chat(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True) -> RenderedChat:
        """As `ChatGLM4Tokenizer.encode_chat`."""
        return self.tokenizer.encode_chat(messages, add_generation_prompt=add_generation_prompt)

    def apply_chat_template(
        self, conversation: list[Any], *, tokenize: bool = True, return_dict: bool = True, **kwargs: Any
    ) -> Any:
        """As `ChatGLM4Tokenizer.apply_chat_template`, plus `pixel_values` if the messages hold pictures.

        >>> inputs = processor.apply_chat_template(
        ...     [{"role": "user", "image": picture, "content": "描述一下这张图片"}],
        ...     add_generation_prompt=True, return_tensors="pt",
        ... )  # doctest: +SKIP

        In a batch either all conversations hold a picture or none does. Raises `BadInputError` and `BadImageError`.
        """
        encoded = self.tokenizer.apply_chat_template(
            conversation, tokenize=tokenize, return_dict=return_dict, pixels_follow=True, **kwargs
        )
        if not tokenize or not return_dict:
            return encoded
        is_batched = isinstance(conversation[0], list | tuple)
        pictures = [
            [m["image"] for m in messages if m.get("image") is not None]
            for messages in (conversation if is_batched else [conversation])
        ]
        if not any(pictures):
            return BatchFeature(dict(encoded))
        if not all(pictures):
            raise BadInputError(
                f"{sum(map(bool, pictures))} of {len(pictures)} conversations hold a picture: batch those with and "
                "those without separately."
            )
        return BatchFeature(dict(encoded) | self.image_processor([found[0] for found in pictures]))
