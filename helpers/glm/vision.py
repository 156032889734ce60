"""GLM-4V's vision tower: an EVA2-CLIP encoder, and the adapter that makes its patches look like token embeddings.

A picture of 1120 x 1120 pixels becomes 80 x 80 patches, which attend to each other in 63 layers. A
convolution then merges each 2 x 2 of them into one, and the adapter maps the 1600 vectors to the
language model's width. Module names are those of the checkpoint.

Sources: EVA-CLIP (Sun et al. 2023), CogVLM (Wang et al. 2023) and GLM-4 (Team GLM 2024).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput

if TYPE_CHECKING:
    from helpers.glm.configuration import ChatGLMConfig, ChatGLMVisionConfig


class PatchEmbedding(nn.Module):
    """`pixel_values` [batch, channel, height, width] -> [batch, 1 + patch, width of the tower].

    Position 0 is the class token; the patches follow, row by row.
    """

    def __init__(self, config: ChatGLMVisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, config.patch_size, stride=config.patch_size)
        self.cls_embedding = nn.Parameter(torch.zeros(1, config.hidden_size))
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        patches = self.proj(pixel_values).flatten(2).transpose(1, 2)
        cls = self.cls_embedding.expand(len(patches), 1, -1)
        hidden_states = torch.cat([cls, patches], dim=1)
        return hidden_states + self.position_embedding(torch.arange(hidden_states.shape[1], device=cls.device))


class VisionAttention(nn.Module):
    """Attention of every position to every other, without a mask or a rotary embedding."""

    def __init__(self, config: ChatGLMVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the output [batch, position, width] and the weights [batch, head, query, key], or None in their place
        without `output_attentions`."""
        fused = self.query_key_value(hidden_states).unflatten(-1, (3, self.config.num_heads, -1))
        query, key, value = fused.permute(2, 0, 3, 1, 4)  # each [batch, head, position, head size]
        if output_attentions:
            weights = (query * query.shape[-1] ** -0.5 @ key.transpose(2, 3)).softmax(dim=-1)
            mixed = weights @ value
        else:
            weights = None
            mixed = F.scaled_dot_product_attention(query, key, value)  # the same, without keeping the weights
        return self.dense(mixed.transpose(1, 2).flatten(2)), weights


class VisionMLP(nn.Module):
    def __init__(self, config: ChatGLMVisionConfig) -> None:
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class VisionLayer(nn.Module):
    """Attention and MLP, whose outputs are normalised before they are added to the residual stream.

    The names do not say so: `input_layernorm` is applied to the attention's *output*.
    """

    def __init__(self, config: ChatGLMVisionConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = VisionAttention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)

    def forward(
        self, hidden_states: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attention_output, weights = self.attention(hidden_states, output_attentions)
        hidden_states = hidden_states + self.input_layernorm(attention_output)
        return hidden_states + self.post_attention_layernorm(self.mlp(hidden_states)), weights


class Adapter(nn.Module):
    """Maps the tower's vectors to vectors that the language model can read: a projection and a gated MLP, without
    biases in its matrices."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size  # the language model's sizes
        self.linear_proj = nn.Linear(hidden, hidden, bias=False)
        self.norm1 = nn.LayerNorm(hidden)  # PyTorch's own eps of 1e-5, not the tower's
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.dense_h_to_4h = nn.Linear(hidden, inner, bias=False)
        self.dense_4h_to_h = nn.Linear(inner, hidden, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = F.gelu(self.norm1(self.linear_proj(features)))
        return self.dense_4h_to_h(F.silu(self.gate_proj(features)) * self.dense_h_to_4h(features))


class VisionTower(nn.Module):
    """Turns a picture into the vectors that the language model gets.

    `pixel_values` [batch, channel, height, width] -> `last_hidden_state` [batch, 1 + patch + 1, hidden]:
    a vector for the picture's beginning, one per patch (row by row), and one for its end. `hidden_states`
    are the tower's own, layers + 1 tensors [batch, 1 + fine patch, width], and `attentions` one tensor
    [batch, head, query, key] per layer; position 0 of both is the class token.
    """

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        vision: Any = config.vision_config  # a ChatGLMVisionConfig, once the config has been made
        self.config = vision
        width = self.config.hidden_size
        self.patch_embedding = PatchEmbedding(self.config)
        layers = [VisionLayer(self.config) for _ in range(self.config.num_hidden_layers)]
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.conv = nn.Conv2d(width, config.hidden_size, kernel_size=2, stride=2)
        self.linear_proj = Adapter(config)
        self.boi = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.eoi = nn.Parameter(torch.zeros(1, 1, config.hidden_size))

    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool = False, output_attentions: bool = False
    ) -> BaseModelOutput:
        hidden_states = self.patch_embedding(pixel_values)
        all_hidden_states, attentions = [hidden_states] if output_hidden_states else [], []
        for layer in self.transformer["layers"]:  # type: ignore[attr-defined]
            hidden_states, weights = layer(hidden_states, output_attentions)
            if output_hidden_states:  # 1.5 GB in GLM-4V-9B, so they are kept only on request
                all_hidden_states.append(hidden_states)
            attentions.append(weights)
        side = self.config.image_size // self.config.patch_size
        grid = hidden_states[:, 1:].reshape(-1, side, side, self.config.hidden_size)  # the class token is dropped
        features = self.linear_proj(self.conv(grid.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2))
        boi, eoi = (vector.to(features).expand(len(features), 1, -1) for vector in (self.boi, self.eoi))
        return BaseModelOutput(
            last_hidden_state=torch.cat([boi, features, eoi], dim=1) / self.config.scaling_factor,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
