"""How much memory a vision tower holds while it reads pictures: counted in a run of the tower without weights.

On PyTorch's device "meta" every operation gives a tensor of the right shape that takes no memory. A mode of PyTorch
sees each of them come and go, and adds up the bytes of those alive.
"""

import copy
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.models.skeleton import skeleton

ONE_SIZE = ("gemma3", "llava", "paligemma", "vipllava")  # models that see every picture as one square of image_size
TOWERS = ("clip_vision_model", "siglip_vision_model")  # the towers of these that have been compared with a real run


@dataclass(frozen=True)
class PictureMemory:
    """What a model's vision part takes to read some pictures at once.

    `values` is how many numbers it holds at its peak besides its weights, `values_in_8bit` how many of the same width
    if its weights are packed in 8 bits; `positions` is how many positions of the prompt each picture takes.
    """

    values: float
    values_in_8bit: float
    positions: int

    def nbytes(self, dtype: str, quantization: str | None = None) -> int:
        """The values as bytes; `dtype` is the name of the model's number format."""
        values = self.values_in_8bit if quantization == "8bit" else self.values
        return int(values * getattr(torch, dtype).itemsize)


def picture_memory(config: Any, pictures: int) -> PictureMemory | None:
    """What a model takes to read `pictures` pictures at once: nothing for a model that does not see, None for one
    whose pictures have no fixed size.

    `config` is a config of `transformers` or a `ModelCard`.

    GLM-4V: inside an MLP of the vision tower, each patch holds two vectors of the tower's intermediate_size (before and
    after the activation) and two of its hidden_size (the layer's input, the residual stream after attention), as
    `VisionTower` of `helpers.glm` keeps them; in 8 bits four and three and a half, because of the products' int32 sums
    and their copies in float16. Other models that see every picture in one size (LLaVA, PaliGemma, Gemma 3): all
    tensors that their `get_image_features` in `transformers` makes; in 8 bits twice as much, which is an estimate
    after GLM-4V's numbers and was not measured.

    Attention is taken to be fused, so that its scores [picture, head, position, position] are never held. They are not
    counted where it is not: with "eager" attention, and perhaps on an Apple GPU, where PyTorch may choose a kernel that
    holds them.
    """
    vision = getattr(config, "vision_config", None)
    if not pictures or not (vision or getattr(config, "vision_parameters", 0)):
        return PictureMemory(0, 0, 0)
    if getattr(vision, "model_type", None) == "chatglm_vision":
        grid, wide, width = vision.image_size // vision.patch_size, vision.intermediate_size, vision.hidden_size
        patches = pictures * (grid**2 + 1)
        held, in_8bit = patches * (2 * wide + 2 * width), patches * (4 * wide + 3.5 * width)
        return PictureMemory(held, in_8bit, (grid // 2) ** 2 + 2)  # 2 x 2 patches become one; begin and end stay
    if getattr(vision, "model_type", None) not in TOWERS or config.model_type not in ONE_SIZE:
        return None
    counted = _counted(config, pictures)
    return counted and PictureMemory(counted[0], 2 * counted[0], counted[1])


def vision_bytes(config: Any, pictures: int, dtype: str, quantization: str | None = None) -> int | None:
    """The peak of what a model's vision part holds, in bytes, while it reads pictures (see `picture_memory`);
    None if that is not known."""
    seen = picture_memory(config, pictures)
    return None if seen is None else seen.nbytes(dtype, quantization)


def _counted(config: Any, pictures: int, dtype: torch.dtype = torch.float32) -> tuple[float, int] | None:
    """(the largest sum of all numbers that are alive at once while pictures become image features, the features of each
    picture). None for a config whose tower cannot be built or run.

    The weights and the kernels' own buffers are not counted. The language model is built with a single layer, since
    nothing runs in it.
    """
    config = copy.deepcopy(config)
    try:
        config.text_config.num_hidden_layers = 1
        vision, model = config.vision_config, skeleton(config, dtype=dtype)
        size = vision.image_size
        sides = size if isinstance(size, list | tuple) else (size, size)
        pixels = torch.empty(pictures, vision.num_channels, *sides, dtype=dtype, device="meta")
        known = [*model.parameters(), *model.buffers(), pixels]
        with torch.no_grad(), _FusedAttention(), _LiveBytes(known) as live:
            features = model.model.get_image_features(pixels).pooler_output
    except Exception:  # any value may be wrong in a config that somebody wrote
        return None
    return live.most / dtype.itemsize, len(features[0])


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
