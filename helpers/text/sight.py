"""How a model takes pictures: one adapter for each kind of vision-language model, chosen by `sight_of`.

A picture has a placeholder in the prompt, one token or three. What the model receives there depends on its kind:

- `Glm4vSight`: GLM-4V from its original checkpoint (helpers.glm). The model itself inserts one vector per patch, so the
  prompt stays as it is, and the patches have a fixed grid.
- `GridSight`: GLM-4.1V, Qwen2-VL and its successors. The prompt contains the picture's token once per vector, and the
  number of vectors follows from the picture's size.
- `ProcessorSight`: LLaVA, Idefics3, SmolVLM, InternVL, Gemma 3, Mistral 3 and others. The model's own processor in
  transformers writes what replaces the placeholder, such as the name of a row or a tile before its tokens.
- `NoSight`: a model that takes text only, or one whose processor was not given.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from helpers.errors import BadInputError, printable
from helpers.text.encoding import control_tokens, text_ids, text_tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel

Rows = list[list[int]]
TOKEN_TYPES = frozenset(["token_type_ids", "mm_token_type_ids"])  # inputs of `forward` that mark pictures


class NoSight:
    """A model that takes text only, and the base class of all kinds.

    `grid` is the number of patches that every picture has along each side, None if that depends on the picture;
    `one_picture` says whether a conversation can hold only one.
    """

    sees = False
    grid: int | None = None
    one_picture = False

    def __init__(self, model: PreTrainedModel, processor: Any = None):
        self.model, self.processor = model, processor

    def check(self) -> None:
        """`BadInputError` unless this model takes pictures, with this processor."""
        if getattr(self.model.config, "vision_config", None) is None:
            raise BadInputError(
                "This model does not see: omit the picture, or load one that does, such as glm-4v-9b, with its "
                "processor."
            )
        if getattr(self.processor, "image_processor", None) is None:
            raise BadInputError(
                "This model sees, but a tokenizer alone takes no pictures: use load_processor(name) instead."
            )
        needs = getattr(self.processor, "needs", None)
        if needs is not None:
            raise BadInputError(
                f"Pictures cannot be given to a {type(self.model).__name__} here, since its own processor needs a "
                f"package that is missing: pip install {needs} and load it again, or omit the picture."
            )
        raise BadInputError(
            f"Pictures cannot be given to a {type(self.model).__name__} here with a {type(self.processor).__name__}: "
            "omit the picture. (The folder may lack its model's own processor.)"
        )

    def inputs(self, rows: Rows, pictures: list[list[Image]]) -> tuple[Rows, dict[str, Any]]:
        """(ids of each row, other inputs of `forward`); `pictures` are opened pictures, one list per row."""
        raise NotImplementedError

    def as_seen(self, input_ids: Any, pixel_values: Any = None) -> tuple[Any, Any]:
        """(ids `[1, position]` as the model sees them, the patch number at each position or None)."""
        return input_ids, None

    def has_read(self, past_key_values: Any) -> bool:
        """Whether a KV cache, or None, already holds the prompt's picture, so that the model does not read it again."""
        return False

    def compared(self, ids: list[int], inputs: dict[str, Any]) -> list[Any]:
        """What is at each position that the model sees, for comparing two prompts."""
        return ids

    def begins_afresh(self, *, with_picture: bool) -> bool:
        """Whether the KV cache of an earlier prompt cannot be used for the next one."""
        # The shift of positions after a picture is kept in the model (`rope_deltas`), not in the cache, so another
        # conversation's shift could be mistaken for this one's. Where attention looks both ways (PaliGemma), what is in
        # the cache has not seen the next prompt.
        both_ways = getattr(self.model.config.get_text_config(), "use_bidirectional_attention", False)
        return with_picture or bool(both_ways) or hasattr(getattr(self.model, "model", None), "rope_deltas")


class Glm4vSight(NoSight):
    """GLM-4V: one picture in a conversation, on a fixed grid of patches, put into the prompt by the model."""

    one_picture = True

    def __init__(self, model: PreTrainedModel, processor: Any = None):
        super().__init__(model, processor)
        self.sees = processor is None or getattr(processor, "image_processor", None) is not None
        self.grid = model.config.vision_config.grid

    def check(self) -> None:
        if not self.sees:
            super().check()

    def inputs(self, rows, pictures):
        opened = [picture for of_row in pictures for picture in of_row]
        return rows, {"pixel_values": self.processor.image_processor(opened)["pixel_values"]}

    def as_seen(self, input_ids, pixel_values=None):
        if pixel_values is None:
            return input_ids, None
        expanded = self._expanded(input_ids, pixel_values)
        return expanded.input_ids, expanded.patch_index[0]

    def has_read(self, past_key_values):
        return self.model.has_read_picture(past_key_values)

    def _expanded(self, input_ids: Any, pixel_values: Any) -> Any:
        return self.model.expand_inputs(input_ids, pixel_values)

    def compared(self, ids, inputs):
        """The ids, with a digest of the pixels at a picture's positions, so that another picture there differs."""
        pixel_values = inputs["pixel_values"]
        expanded = self._expanded(torch.tensor([ids], device=pixel_values.device), pixel_values)
        digest = hashlib.sha256(pixel_values.cpu().numpy().tobytes()).hexdigest()
        pairs = zip(expanded.input_ids[0].tolist(), expanded.picture_mask[0].tolist(), strict=True)
        return [digest if is_picture else token_id for token_id, is_picture in pairs]

    def begins_afresh(self, *, with_picture):
        return False


class GridSight(NoSight):
    """GLM-4.1V, Qwen2-VL and similar models: the picture's token, once for each vector of its grid."""

    sees = True

    def check(self) -> None:
        pass

    def inputs(self, rows, pictures):
        place = self.model.config.image_token_id
        _check_places(rows, pictures, place)
        opened = [picture for of_row in pictures for picture in of_row]
        encoded = self.processor.image_processor(opened, return_tensors="pt")
        merged = self.processor.image_processor.merge_size**2
        sizes = iter((encoded["image_grid_thw"].prod(dim=-1) // merged).tolist())
        rows = [[token for one in row for token in ([one] * next(sizes) if one == place else [one])] for row in rows]
        tensors = {name: encoded[name] for name in ("pixel_values", "image_grid_thw")}
        return rows, tensors | {"mm_token_type_ids": [[int(token == place) for token in row] for row in rows]}


class ProcessorSight(NoSight):
    """A model whose own processor in transformers writes what replaces a picture's placeholder."""

    sees = True

    def check(self) -> None:
        pass

    def inputs(self, rows, pictures):
        tokenizer, token = text_tokenizer(self.processor), self.processor.image_token
        place = tokenizer.convert_tokens_to_ids(token)
        _check_places(rows, pictures, place)
        rows = [
            self._expanded_row(row, place, [self._encoded([token], [[picture]])["input_ids"][0] for picture in of_row])
            for row, of_row in zip(rows, pictures, strict=True)
        ]
        with_pictures = [of_row for of_row in pictures if of_row]
        encoded = self._encoded([token * len(of_row) for of_row in with_pictures], with_pictures, return_tensors="pt")
        tensors = {k: v for k, v in encoded.items() if k not in {"input_ids", "attention_mask", *TOKEN_TYPES}}
        visible = {self.model.config.image_token_id}
        self._check_kinds(encoded, visible)
        kinds = [[int(token_id in visible) for token_id in row] for row in rows]
        takes = inspect.signature(self.model.forward).parameters
        return rows, tensors | {name: kinds for name in TOKEN_TYPES if name in takes}

    def _check_kinds(self, encoded: Any, visible: set[int]) -> None:
        """Check that the processor's token types are 1 at a picture and 0 elsewhere, as this class sets them for whole
        rows.

        PaliGemma's are 0 in the whole prompt, and its processor writes text of its own besides the picture.
        """
        ids = torch.as_tensor(encoded["input_ids"])
        pictures = torch.isin(ids, torch.tensor(sorted(visible), device=ids.device)).long()
        if any(not torch.equal(torch.as_tensor(encoded[name]), pictures) for name in TOKEN_TYPES & set(encoded)):
            raise BadInputError(
                f"How a {type(self.model).__name__} reads a picture within a chat is not known here: omit the picture, "
                "or pass what its processor makes of a prompt to trace (input_ids, pixel_values, token_type_ids)."
            )

    def _encoded(self, texts: list[str], pictures: list[list[Image]], **settings: Any) -> Any:
        try:
            return self.processor(text=texts, images=pictures, padding=True, add_special_tokens=False, **settings)
        except Exception as error:  # a processor that lacks a setting, a package or a token
            raise BadInputError(
                f"The {type(self.processor).__name__} of this model cannot prepare a picture "
                f"({printable(error, 200)}): omit the picture."
            ) from None

    def _expanded_row(self, row: list[int], place: int, expansions: list[list[int]]) -> list[int]:
        """The row with each placeholder replaced. If an expansion begins or ends with plain text (Gemma 3's has empty
        lines there), the surrounding text is tokenized together with it, as it would be in one piece."""
        ids, *others = _split(row, place)
        for expansion, part in zip(expansions, others, strict=True):
            lead, controls, trail = self._plain_ends(list(expansion))
            ids = [*self._with_text_after(ids, lead), *controls, *self._with_text_before(trail, part)]
        return ids

    def _plain_ends(self, ids: list[int]) -> tuple[list[int], list[int], list[int]]:
        controls = control_tokens(text_tokenizer(self.processor))
        inside = [index for index, token_id in enumerate(ids) if token_id in controls]
        if not inside:
            return [], ids, []
        return ids[: inside[0]], ids[inside[0] : inside[-1] + 1], ids[inside[-1] + 1 :]

    def _plain_beginning(self, ids: list[int]) -> tuple[list[int], list[int]]:
        controls = control_tokens(text_tokenizer(self.processor))
        stop = next((index for index, token_id in enumerate(ids) if token_id in controls), len(ids))
        return ids[:stop], ids[stop:]

    def _with_text_after(self, ids: list[int], text: list[int]) -> list[int]:
        plain, rest = self._plain_beginning(ids[::-1])
        return rest[::-1] + self._retokenized(plain[::-1] + text) if text else ids

    def _with_text_before(self, text: list[int], ids: list[int]) -> list[int]:
        plain, rest = self._plain_beginning(ids)
        return self._retokenized(text + plain) + rest if text else ids

    def _retokenized(self, ids: list[int]) -> list[int]:
        tokenizer = text_tokenizer(self.processor)
        return text_ids(tokenizer, tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def sight_of(model: PreTrainedModel, processor: Any = None) -> NoSight:
    """The adapter for a model's kind. `processor` is the one it is used with; None if only the model matters.

    >>> from helpers import load_model, load_processor
    >>> sight_of(load_model("tiny-glm4v"), load_processor("tiny-glm4v")).grid
    6
    """
    config = model.config
    if getattr(config, "vision_config", None) is None:
        return NoSight(model, processor)
    if config.model_type == "chatglm":
        return Glm4vSight(model, processor)
    image_processor = getattr(processor, "image_processor", None)
    if hasattr(image_processor, "merge_size") and getattr(config, "image_token_id", None) is not None:
        return GridSight(model, processor)
    if image_processor is not None and callable(processor) and getattr(processor, "image_token", None):
        return ProcessorSight(model, processor)
    return NoSight(model, processor)


def _check_places(rows: Sequence[Sequence[int]], pictures: Sequence[Sequence[Any]], place: int) -> None:
    for row, of_row in zip(rows, pictures, strict=True):
        if list(row).count(place) != len(of_row):
            raise BadInputError(
                f"The number of pictures is {len(of_row)}, but that of placeholders in the prompt is "
                f"{list(row).count(place)}: this model's chat template writes one for each picture, so use it (pass "
                "messages, not plain text)."
            )


def _split(row: list[int], place: int) -> list[list[int]]:
    """The ids before, between and after the placeholders."""
    parts: list[list[int]] = [[]]
    for token_id in row:
        if token_id == place:
            parts.append([])
        else:
            parts[-1].append(token_id)
    return parts
