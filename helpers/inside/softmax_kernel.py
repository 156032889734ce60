"""What the lens needs from a softmax, in one pass over the scores: a kernel for NVIDIA GPUs, in Triton.

PyTorch's own functions take five passes for it (the maximum of each group of ids, softmax in two, entropy, its sum)
and spend them waiting for memory: on an H200 they take as long as the matrix product that made the scores. Here each
score is read once. The running maximum, and the sums that are rescaled whenever it rises, follow "Online normalizer
calculation for softmax" (Milakov and Gimelshein, 2018).

Triton comes with PyTorch for NVIDIA GPUs on Linux. Importing this module raises `ImportError` elsewhere.
"""

import torch
import triton
import triton.language as tl

BLOCK = 4096  # ids at a time
WARPS = 8


def statistics(scores: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(maxima `[row, id / group]`, highest `[row]`, total `[row]`, mean `[row]`) of float32 `scores [row, id]`.

    `total` is the sum of exp(score - highest), and `mean` the sum of exp(score - highest) * (score - highest), as in
    `helpers.inside.fast_lens`. The number of ids is a multiple of `group`, which is a power of two; scores of -inf
    add nothing.
    """
    rows, width = scores.shape
    maxima = scores.new_empty(rows, width // group)
    highest, total, mean = scores.new_empty(3, rows)
    with torch.cuda.device(scores.device):
        _statistics[(rows,)](
            scores, maxima, highest, total, mean, width, scores.stride(0), GROUP=group, BLOCK=BLOCK, num_warps=WARPS
        )
    return maxima, highest, total, mean


@triton.jit
def _statistics(  # type: ignore[no-untyped-def]  # Triton reads the types of its arguments itself
    scores, maxima, highest, total, mean, width, stride, GROUP: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    ids = tl.arange(0, BLOCK)
    places = tl.arange(0, BLOCK // GROUP)
    nothing = -float("inf")
    top = -1.0e30
    sum_of_weights = 0.0
    sum_of_products = 0.0
    for start in range(0, width, BLOCK):
        score = tl.load(scores + row * stride + start + ids, mask=start + ids < width, other=nothing)
        best = tl.max(tl.reshape(score, (BLOCK // GROUP, GROUP)), axis=1)
        place = start // GROUP + places
        tl.store(maxima + row * (width // GROUP) + place, best, mask=place < width // GROUP)
        new = tl.maximum(top, tl.max(best, axis=0))
        lower_by = tl.where(score == nothing, 0.0, score - new)
        weight = tl.where(score == nothing, 0.0, tl.exp(lower_by))
        share = tl.exp(top - new)
        sum_of_products = (sum_of_products + (top - new) * sum_of_weights) * share + tl.sum(weight * lower_by, axis=0)
        sum_of_weights = sum_of_weights * share + tl.sum(weight, axis=0)
        top = new
    tl.store(highest + row, top)
    tl.store(total + row, sum_of_weights)
    tl.store(mean + row, sum_of_products)
