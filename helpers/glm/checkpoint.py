"""The weights of an original checkpoint: their names, and a check that they are complete."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.core_model_loading import Split, WeightConverter, WeightRenaming

from helpers.errors import DamagedFilesError
from helpers.models.folder import checked_folder
from helpers.models.weights import check_report, weight_shapes

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
    """Call `from_pretrained`, but refuse a checkpoint with missing weights instead of filling them with random numbers.

    Raises `DamagedFilesError` for missing or damaged files, and for missing or misshapen weights.
    """
    if folder is not None and Path(folder).is_dir() and not kwargs.get("subfolder"):
        _check_fused(folder, weight_shapes(checked_folder(Path(folder))), kwargs.get("config"))
    model, info = from_pretrained(folder, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    check_report(folder, info, model.state_dict(), shapes=not ignore_mismatched_sizes, towers=True)
    return (model, info) if output_loading_info else model


def _check_fused(folder: str | Path, shapes: Mapping[str, list[int]], config: PreTrainedConfig | None) -> None:
    """Check that each query_key_value has as many rows as query, key and value together, into which loading splits it.

    Raises `DamagedFilesError` if it does not.
    """
    config = config or AutoConfig.from_pretrained(folder, local_files_only=True)
    rows = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    for name, shape in shapes.items():
        if "self_attention.query_key_value." in name and shape[:1] != [rows]:
            raise DamagedFilesError(
                f"The weights in {folder} do not fit its config.json: {name} has {shape[:1]} rows, and query, key and "
                f"value together have {rows}. They are damaged, or belong to different models: fetch both again."
            )
