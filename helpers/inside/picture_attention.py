"""Which patches of a picture the words of a reply attended to.

This is for models that see every picture as the same square grid of patches (GLM-4V). In other models the grid depends
on the picture, and nothing is shown for them.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from helpers.errors import BadInputError
from helpers.inside.tracing import trace
from helpers.text.sight import sight_of


def patch_side(model: PreTrainedModel) -> int:
    """How many patches there are along one side of a picture; 0 for a model whose attention cannot be shown on it."""
    return sight_of(model).grid or 0


@torch.no_grad()
def attention_on_picture(
    model: PreTrainedModel,
    processor: Any,
    picture: Any,
    input_ids: list[int],
    output_ids: list[int],
    tokens: list[int],
    *,
    moment: str = "choosing",
) -> torch.Tensor:
    """How much of its attention a word of a reply gave to each patch, `[layer, head, patch]` on the CPU.

    `input_ids` are those of the prompt, with one token for the picture, and `output_ids` those of the reply; `tokens`
    are the indices of the word's tokens in the reply, and the result is the mean over them. `moment` is "choosing" (the
    positions whose output chose these tokens) or "reading" (those of the tokens themselves). Patches are counted row
    by row.

    Raises `BadInputError` for a model whose attention cannot be shown on a picture, and what `trace` raises.
    """
    side = patch_side(model)
    if not side:
        raise BadInputError(f"Where a word looked can be shown for GLM-4V, not for {type(model).__name__}.")
    pixel_values = processor.image_processor([picture])["pixel_values"].to(model.device)
    longer = side**2 - 1  # the picture's one token becomes one position per patch
    start = len(input_ids) + longer - (moment == "choosing")
    run = trace(
        model,
        processor,
        [*input_ids, *output_ids[: tokens[-1] + 1]],
        hidden_states=False,
        logits=False,
        positions=[start + token for token in tokens],
        pixel_values=pixel_values,
    )
    return run.attentions.float().mean(dim=2)[..., run.patch_index >= 0].cpu()
