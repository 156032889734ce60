"""GLM-4 and GLM-4V: transformers' own `GlmForCausalLM`, plus a vision tower if the checkpoint has one.

A prompt with a picture holds three ids for it: begin of image, one placeholder, end of image. The
model replaces them by the vision tower's vectors, so its sequence is longer than the prompt: the
placeholder becomes one position per patch (1600 in GLM-4V-9B). `expand_inputs` shows what the model
sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GlmForCausalLM, GlmModel
from transformers import initialization as init

from helpers.errors import BadInputError
from helpers.glm.checkpoint import load_checked
from helpers.glm.configuration import ChatGLMConfig
from helpers.glm.vision import PatchEmbedding, VisionTower

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import Cache


@dataclass(frozen=True)
class ExpandedInputs:
    """A prompt as the model sees it, with the picture's placeholder repeated once per patch.

    All are [batch, position] int64. `patch_index` is -1 for text and, for a patch, its number, counted
    row by row (divmod by `config.vision_config.grid` gives row and column). `position_ids` are those of
    the prompt: all patches share one. `labels` is None unless given, and -100 at patches.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    patch_index: torch.Tensor
    labels: torch.Tensor | None = None

    @property
    def picture_mask(self) -> torch.Tensor:
        """True where the tower's vectors go: the patches, and the ids just before and after them."""
        patches = self.patch_index >= 0
        return patches | patches.roll(-1, dims=1) | patches.roll(1, dims=1)


@dataclass(frozen=True)
class CachedPicture:
    """A picture in a KV cache.

    `stop` is the first column after it; `repeated_positions` is how many of its columns repeat the patches' position.
    """

    stop: int
    repeated_positions: int


def cached_picture(past_key_values: Cache | None) -> CachedPicture | None:
    """The `CachedPicture` of a KV cache; None if the cache holds no picture, or if it has been cropped away."""
    picture = getattr(past_key_values, "picture", None)
    return picture if picture is not None and past_key_values.get_seq_length() >= picture.stop else None


class ChatGLMModel(GlmModel):
    """A `GlmModel` that also takes `pixel_values` [batch, channel, height, width], one picture per prompt."""

    config_class = ChatGLMConfig
    _no_split_modules = ["GlmDecoderLayer", "VisionLayer"]

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        if config.vision_config is not None:
            self.vision = VisionTower(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        for name in {PatchEmbedding: ["cls_embedding"], VisionTower: ["boi", "eoi"]}.get(type(module), []):
            init.normal_(getattr(module, name), mean=0.0, std=self.config.initializer_range)

    def expand_inputs(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> ExpandedInputs:
        """A prompt as the model sees it: an `ExpandedInputs`.

        `input_ids`, `position_ids` and `labels` [batch, position] are as the tokenizer returns them;
        so is `attention_mask`, which may also begin with the columns of a KV cache. Without `pixel_values`
        nothing is expanded, and ids that are already expanded stay as they are.

        Raises `BadInputError` for a prompt without a placeholder for the picture, and for a model without
        a vision tower.
        """
        column, patch_index = self._columns(input_ids, pixel_values is not None)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        in_cache = attention_mask[:, : -input_ids.shape[1]]
        mask = attention_mask[:, -input_ids.shape[1] :].gather(1, column)
        if position_ids is None:  # 0, 1, 2, ... over real tokens; all patches have the position of the first
            position_ids = in_cache.sum(dim=1, keepdim=True) + (mask * (patch_index < 1)).cumsum(dim=1) - 1
            position_ids = position_ids.masked_fill(mask == 0, 0)
        else:
            position_ids = position_ids.expand_as(input_ids).gather(1, column)
        if labels is not None:
            labels = labels.gather(1, column).masked_fill(patch_index >= 0, -100)
        mask = torch.cat([in_cache, mask], dim=1)
        return ExpandedInputs(input_ids.gather(1, column), mask, position_ids, patch_index, labels)

    def _columns(self, input_ids: torch.Tensor, with_picture: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """For each position the model sees: the column of the prompt it comes from, and its patch number."""
        if not with_picture:
            column = torch.arange(input_ids.shape[1], device=input_ids.device)
            return column.expand_as(input_ids), torch.full_like(input_ids, -1)
        if self.config.vision_config is None:
            raise BadInputError("This model takes text only: it has no vision tower. For pictures, load glm-4v-9b.")
        count = self.config.vision_config.num_patches
        columns, patch_numbers = [], []
        for ids in input_ids.tolist():
            try:
                start = ids.index(self.config.boi_token_id) + 1
                stop = ids.index(self.config.eoi_token_id)
            except ValueError:
                raise BadInputError(
                    "There is a picture, but a prompt has no place for it: make the prompt with apply_chat_template "
                    'and {"role": "user", "image": picture, "content": text}.'
                ) from None
            if stop - start not in (1, count):
                raise BadInputError(
                    f"Between begin and end of the picture a prompt holds {stop - start} ids: it must be 1 "
                    f"placeholder, or {count} if the prompt is already expanded."
                )
            patches = [start] * count if stop - start == 1 else range(start, stop)
            columns.append([*range(start), *patches, *range(stop, len(ids))])
            patch_numbers.append([-1] * start + [*range(count)] + [-1] * (len(ids) - stop))
        if len({len(row) for row in columns}) > 1:
            raise BadInputError("Some of these prompts are already expanded and some are not: use only one kind.")
        return torch.tensor(columns, device=input_ids.device), torch.tensor(patch_numbers, device=input_ids.device)

    def embed_inputs(self, expanded: ExpandedInputs, pixel_values: torch.Tensor) -> torch.Tensor:
        """The first layer's input [batch, position, hidden]: token embeddings, and the tower's vectors for pictures.

        Raises `BadInputError` if `pixel_values` do not have the shape that the processor produces.
        """
        vision = self.config.vision_config
        expected = [len(expanded.input_ids), vision.in_channels, vision.image_size, vision.image_size]
        if list(pixel_values.shape) != expected:
            raise BadInputError(
                f"pixel_values has the shape {list(pixel_values.shape)}, but for these prompts it must be {expected}: "
                "one picture per prompt, as the processor makes them. Run prompts without a picture separately."
            )
        inputs_embeds = self.embed_tokens(expanded.input_ids)
        features = self.vision(pixel_values.to(inputs_embeds)).last_hidden_state.to(inputs_embeds)
        return inputs_embeds.masked_scatter(expanded.picture_mask[..., None], features)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `GlmModel.forward`; with `pixel_values` the outputs are as long as the expanded prompt.

        A picture is processed only once: if it is in the KV cache, or in `inputs_embeds`, `pixel_values` are not used.
        """
        picture = cached_picture(past_key_values)
        looks = pixel_values is not None and picture is None and inputs_embeds is None
        is_2d = getattr(attention_mask, "ndim", 0) == 2
        if inputs_embeds is None and (looks or picture is not None or is_2d):
            past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
            length = past + input_ids.shape[1]
            mask = attention_mask if is_2d else input_ids.new_ones(len(input_ids), length)
            if picture is not None and mask.shape[1] + picture.repeated_positions == length:
                mask = F.pad(
                    mask, (0, picture.repeated_positions), value=1
                )  # the mask covered the prompt before expansion
            expanded = self.expand_inputs(
                input_ids, pixel_values if looks else None, attention_mask=mask, position_ids=position_ids
            )
            if position_ids is None and picture is not None:
                position_ids = expanded.position_ids - picture.repeated_positions
            else:
                position_ids = expanded.position_ids
            if attention_mask is None or is_2d:
                # Never None: transformers would take repeated positions to mean several texts in one sequence.
                attention_mask = expanded.attention_mask
            if looks:
                inputs_embeds = self.embed_inputs(expanded, pixel_values)
        outputs = super().forward(
            input_ids=input_ids if inputs_embeds is None else None,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        cache = getattr(outputs, "past_key_values", past_key_values)
        if looks and cache is not None:
            stop = past + 1 + int(expanded.picture_mask.any(dim=0).nonzero().max())
            cache.picture = CachedPicture(stop, self.config.vision_config.num_patches - 1)
        return outputs


class ChatGLMForConditionalGeneration(GlmForCausalLM):
    """GLM-4 and GLM-4V with `lm_head`, from a folder as Zhipu published it.

    >>> import helpers.glm
    >>> model = AutoModelForCausalLM.from_pretrained("glm-4v-9b")  # doctest: +SKIP

    It works like `GlmForCausalLM`, and wherever `input_ids` are passed, `pixel_values` [batch, channel,
    height, width] may be passed too. `generate` returns the prompt as it was given (not expanded) and the
    new ids.
    """

    config_class = ChatGLMConfig
    _no_split_modules = ChatGLMModel._no_split_modules
    _keys_to_ignore_on_load_unexpected = [r"rotary_pos_emb\.inv_freq$"]  # saved, but never used

    def __init__(self, config: ChatGLMConfig) -> None:
        super(GlmForCausalLM, self).__init__(config)
        self.model = ChatGLMModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but raises `DamagedFilesError` if weights are missing or have the wrong shape."""
        return load_checked(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As in transformers, but in the original layout, except for a quantized model: its packed weights cannot be
        fused into that layout."""
        kwargs.setdefault("save_original_format", getattr(self, "hf_quantizer", None) is None)
        super().save_pretrained(save_directory, *args, **kwargs)

    def has_read_picture(self, past_key_values: Cache | None) -> bool:
        """Whether a KV cache already holds the prompt's picture."""
        return cached_picture(past_key_values) is not None

    def expand_inputs(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None, **kwargs: Any
    ) -> ExpandedInputs:
        """A prompt as the model sees it: see `ChatGLMModel.expand_inputs`."""
        return self.model.expand_inputs(input_ids, pixel_values, **kwargs)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        pixel_values: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `GlmForCausalLM.forward`; `labels` [batch, position] belong to the prompt and are expanded with it."""
        if labels is not None and pixel_values is not None:
            labels = self.expand_inputs(input_ids, pixel_values, labels=labels).labels
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            pixel_values=pixel_values,
            **kwargs,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Expand the prompt first: `generate` counts it as it was given, whereas the KV cache also counts patches."""
        picture: Any = cached_picture(past_key_values) if pixel_values is None else pixel_values
        if picture is not None and bool((input_ids == self.config.boi_token_id).any()):
            expanded = self.expand_inputs(input_ids, picture, attention_mask=attention_mask, position_ids=position_ids)
            if next_sequence_length is not None:
                next_sequence_length = expanded.input_ids.shape[1] - past_key_values.get_seq_length()
            input_ids, position_ids = expanded.input_ids, expanded.position_ids
            attention_mask = expanded.attention_mask
        return super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            pixel_values=pixel_values,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], mode: Any, batch_size: int, max_cache_length: int
    ) -> Any:
        """Make room for the patches: a static cache has a fixed length."""
        if model_kwargs.get("pixel_values") is not None:
            max_cache_length += self.config.vision_config.num_patches - 1
        return super()._prepare_cache_for_generation(
            generation_config, model_kwargs, mode, batch_size, max_cache_length
        )
