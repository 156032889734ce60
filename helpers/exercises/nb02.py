"""Checks of notebook 02, model loading."""

from collections.abc import Callable
from typing import Any

from helpers.exercises import exercise, require

VOCABULARY_OF_LLAMA_3 = 128_256
CARD_BYTES = 24 * 2**30


@exercise("02.1", expects=int)
def _(answer: Any) -> str:
    from helpers.models.catalog import find_card, parameter_groups

    card = find_card("smollm2-135m")
    rows = (VOCABULARY_OF_LLAMA_3 - card.vocab_size) * card.hidden_size
    right = sum(parameter_groups(card).values()) + rows
    require(answer != right - rows, "that is the model as it is. Set vocab_size in the copy before you build it.")
    require(
        answer != right + VOCABULARY_OF_LLAMA_3 * card.hidden_size,
        "you counted two tables. This model is tied: embedding and lm_head are one tensor.",
    )
    require(answer != rows, "these are the new rows alone; the rest of the model is still there.")
    require(answer == right, f"{answer:,} is not what the empty model has. Try empty.num_parameters().")
    share = VOCABULARY_OF_LLAMA_3 * card.hidden_size / right
    return f"The embedding table alone would be {share:.0%} of it. Large vocabularies are for large models."


@exercise("02.2", expects=Callable)
def _(answer: Any) -> str:
    import torch
    from safetensors import safe_open

    from helpers.models.locate import model_folder

    names = ("model.norm.weight", "model.layers.3.self_attn.k_proj.weight", "model.layers.29.mlp.down_proj.weight")
    with safe_open(model_folder("smollm2-135m") / "model.safetensors", framework="pt") as file:
        for name in names:
            right, given = file.get_tensor(name), answer(name)
            require(isinstance(given, torch.Tensor), f"it returns a {type(given).__name__}; it should return a tensor.")
            require(
                given.numel() == right.numel(),
                f"{name} has {right.numel():,} numbers, but yours has {given.numel():,}. Read end - begin bytes, as "
                "float32.",
            )
            require(
                given.shape == right.shape,
                f'{name} has the shape {list(right.shape)}, not {list(given.shape)}. The header gives its "shape".',
            )
            require(
                torch.equal(given, right),
                f"the numbers of {name} are not at this offset. Offsets count from the end of the header: "
                "8 + length bytes come before.",
            )
    return "You have written the heart of a weight loader."


@exercise("02.3", expects=dict)
def _(answer: Any) -> str:
    names = ("llama-3-8b-instruct", "glm-4-9b-chat")
    require(set(answer) == set(names), f"the dictionary needs these two names: {', '.join(names)}.")
    if all(answer[name] == _largest_batch(name, 24 * 10**9) for name in names):
        require(False, "that is right for 24 times 10**9 bytes. The GPU has 24 GiB, and each GiB is 2**30 bytes.")
    for name in names:
        right = _largest_batch(name, CARD_BYTES)
        require(answer[name] != right + 1, f"{right + 1} prompts for {name} are one too many: they must still fit.")
        require(
            answer[name] == right,
            f"{answer[name]!r} prompts for {name} is not the largest batch whose weights and KV cache fit.",
        )
    return "The larger model serves more people at once, because it has two key/value heads instead of eight."


def _largest_batch(name: str, limit: int) -> int:
    from helpers.models.memory import memory_plan

    plan = memory_plan(name, device="cpu", dtype="bfloat16", context=8192)
    return (limit - plan.weights_bytes) // plan.kv_cache_bytes


@exercise("02.4", expects=Callable)
def _(answer: Any) -> str:
    import torch

    names = getattr(getattr(answer, "__code__", None), "co_names", ())
    require("bfloat16" not in names, "that lets the library do it. Use the bits: x.view(torch.int32).")
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.tensor([0.1, -0.1, 3.14159265]), torch.randn(1000, generator=generator)])
    given, right = answer(x.clone()), x.bfloat16().float()
    require(isinstance(given, torch.Tensor), f"it returns a {type(given).__name__}; it should return a tensor.")
    require(
        given.dtype == torch.float32 and given.shape == x.shape,
        f"it returns {given.dtype} {list(given.shape)}; it should return float32 of the same shape, {list(x.shape)}.",
    )
    cut = (x.view(torch.int32) & -65536).view(torch.float32)
    require(
        not torch.equal(given, cut), "you cut off the lower 16 bits. Rounding goes up when they are more than half."
    )
    if not torch.equal(given, right):
        at = int((given != right).nonzero()[0])
        require(False, f"{x[at]:.9f} should become {right[at]:.9f}; yours is {given[at]:.9f}.")
    ties = torch.tensor([1 + 1 / 256, 1 + 3 / 256, -1 - 1 / 256])  # halfway between two neighbours
    require(
        torch.equal(answer(ties.clone()), ties.bfloat16().float()),
        "nearly: a number exactly halfway goes to the neighbour whose last bit is 0, such as 1 + 1/256 to 1.",
    )
    return "You round as the processor does. That this is so simple is one reason for bfloat16's popularity."
