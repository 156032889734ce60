"""How much memory a vision tower holds while it reads pictures: counted in a run of the tower without weights.

On PyTorch's device "meta" every operation gives a tensor of the right shape that takes no memory. A mode of PyTorch
sees each of them come and go, and adds up the bytes of those alive.
"""

import weakref
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.models.skeleton import skeleton

ONE_SIZE = ("gemma3", "llava", "paligemma", "vipllava")  # models that see every picture as one square of image_size
TOWERS = ("clip_vision_model", "siglip_vision_model")  # the towers of these that have been compared with a real run


def vision_bytes(config: Any, pictures: int, dtype: str, quantization: str | None = None) -> int | None:
    """The peak of what a model's vision part holds, in bytes, while it reads `pictures` pictures at once, besides its
    weights: 0 for a model that does not see, None for one whose pictures have no fixed size.

    `config` is a config of `transformers` or a `ModelCard`, `dtype` the name of the model's number format.

    GLM-4V: inside an MLP of the vision tower, each patch holds two vectors of the tower's intermediate_size (before and
    after the activation) and two of its hidden_size (the layer's input, the residual stream after attention), as
    `VisionTower` of `helpers.glm` keeps them; in 8 bits four and three and a half, because of the products' int32 sums
    and their copies in float16. Other models that see every picture in one size (LLaVA, PaliGemma, Gemma 3): all
    tensors that their `get_image_features` in `transformers` makes; twice as much in 8 bits.
    """
    vision = getattr(config, "vision_config", None)
    if not pictures or not (vision or getattr(config, "vision_parameters", 0)):
        return 0
    if getattr(vision, "model_type", None) == "chatglm_vision":
        positions = pictures * ((vision.image_size // vision.patch_size) ** 2 + 1)
        inner, hidden = (4, 3.5) if quantization == "8bit" else (2, 2)
        values = positions * (inner * vision.intermediate_size + hidden * vision.hidden_size)
        return int(values * getattr(torch, dtype).itemsize)
    if getattr(vision, "model_type", None) not in TOWERS or config.model_type not in ONE_SIZE:
        return None
    counted = _counted(config, pictures, dtype)
    return counted and counted * (2 if quantization == "8bit" else 1)


def _counted(config: Any, pictures: int, dtype: str) -> int | None:
    """The highest sum of the bytes of all tensors that are alive at once while pictures become image features.

    Attention is taken to be fused where the tower has it (`scaled_dot_product_attention`, which never holds the
    scores). The weights and the kernels' own buffers are not counted. None for sizes that the tower cannot run with.
    """
    model, vision = skeleton(config, dtype=getattr(torch, dtype)), config.vision_config
    side = vision.image_size
    pixels = torch.empty(pictures, vision.num_channels, side, side, dtype=model.dtype, device="meta")
    known = [*model.parameters(), *model.buffers(), pixels]
    with torch.no_grad(), _FusedAttention(), _LiveBytes(known) as live:
        try:
            model.model.get_image_features(pixels)
        except (RuntimeError, TypeError, ValueError):
            return None
    return live.most


class _LiveBytes(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations make, as long as they live; `most` is the highest sum.

    What is there before (`known`) does not count. Views share the memory of their tensor, which counts once.
    """

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.alive = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.now = self.most = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, memory: torch.UntypedStorage) -> None:
        if memory._cdata not in self.alive:
            self.alive[memory._cdata] = memory.nbytes()
            self.now += memory.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(memory, self._forget, memory._cdata)

    def _forget(self, address: int) -> None:
        self.now -= self.alive.pop(address)


class _FusedAttention(TorchFunctionMode):
    """Attention gives its result without holding the scores, as the fused kernels of CPUs and GPUs do; on "meta",
    PyTorch would take the one that holds them."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not torch.nn.functional.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        query, _, value = args  # [batch, head, position, head_dim]
        batch, heads, length, _ = query.shape
        return query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
