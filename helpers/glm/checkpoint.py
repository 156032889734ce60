"""The weights of an original checkpoint: their names, and what to say when they are not all there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.core_model_loading import Split, WeightConverter, WeightRenaming

from helpers.errors import DamagedFilesError
from helpers.models.store import checked_folder
from helpers.models.weights import weight_shapes

if TYPE_CHECKING:
    from collections.abc import Callable

# From the names on disk to those of GlmForCausalLM: applied in order when loading, backwards when saving.
ORIGINAL_WEIGHTS = [
    WeightRenaming(r"^transformer\.embedding\.word_embeddings\.", "model.embed_tokens."),
    WeightRenaming(r"^transformer\.encoder\.layers\.", "model.layers."),
    WeightRenaming(r"^transformer\.encoder\.final_layernorm\.", "model.norm."),
    WeightRenaming(r"^transformer\.output_layer\.", "lm_head."),
    WeightRenaming(r"^transformer\.vision\.", "model.vision."),
    WeightRenaming(r"self_attention\.dense\.", "self_attn.o_proj."),
    WeightRenaming(r"mlp\.dense_h_to_4h\.", "mlp.gate_up_proj."),  # the gate's rows come first in both
    WeightRenaming(r"mlp\.dense_4h_to_h\.", "mlp.down_proj."),
    # All query rows, then all key rows, then all value rows; weight and bias alike.
    WeightConverter(
        "self_attention.query_key_value",
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        operations=[Split(dim=0)],
    ),
]


def load_checked(
    from_pretrained: Callable[..., Any],
    folder: str | Path | None,
    *args: Any,
    output_loading_info: bool = False,
    ignore_mismatched_sizes: bool = False,
    **kwargs: Any,
) -> Any:
    """`from_pretrained`, which fills missing weights with random numbers, made to refuse instead.

    Raises `DamagedFilesError` for missing or damaged files, and for missing or misshapen weights.
    """
    if folder is not None and Path(folder).is_dir() and not kwargs.get("subfolder"):
        weight_shapes(checked_folder(Path(folder)))
    try:
        model, info = from_pretrained(folder, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
        problems = [f"{name} is missing" for name in sorted(info["missing_keys"])]
        problems += [f"{name} is of a layer too many" for name in sorted(info["unexpected_keys"]) if ".layers." in name]
        if not ignore_mismatched_sizes:
            problems += [
                f"{name} has the shape {list(found)} in place of {list(expected)}"
                for name, found, expected in sorted(info["mismatched_keys"])
            ]
    except RuntimeError as error:
        if "conversion" not in str(error):
            raise
        problems = ["a query_key_value is not as large as query, key and value together"]
    if problems:
        more = f" (and {len(problems) - 1} more such)" if len(problems) > 1 else ""
        raise DamagedFilesError(
            f"The weights in {folder} do not fit its config.json: {problems[0]}{more}. They are damaged, or of "
            "different models: fetch both again."
        )
    return (model, info) if output_loading_info else model
