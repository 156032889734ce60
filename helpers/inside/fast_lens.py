"""The logit lens for many rows: the numbers of `plain_lens`, without ever holding all rows by all tokens.

Nearly all of the time goes into one matrix product, states times `lm_head`. How fast it can run depends on the code
around it. A CPU and a GPU need different code there, so there are two versions.

**On a CPU** (`_read_in_slices`) memory is slow and the cache is small. All rows of a block go through the vocabulary
in slices. From each slice only the sums of the softmax and the highest score of each group of ids are
kept, and its scores are overwritten by the next. Only the groups that can contain one of the best ids are scored a
second time, for the rows that need them. Each core works on slices of its own (`_side_by_side`): if all cores shared
each small operation, every one of them would end with a wait for the slowest core, and on a busy machine that is long.

**On a GPU** (`_read_whole`) launching a kernel takes time, so each kernel should do a lot of work: a block of rows is
multiplied by the whole vocabulary in one product. The best ids are found in two steps, first the groups and then the
ids in them, because `torch.topk` reads 128,000 numbers about twenty times. With Triton
(`helpers.inside.softmax_kernel`), the groups' maxima and the sums of the softmax take one pass over the scores;
without it they take five.

**Which precision.** Scores, probabilities and entropy are float32, whatever the model's dtype. In a bfloat16 model
states and weights are bfloat16, as the model has them; each product of two of them is exact in float32, the sums
are float32, and scores are never rounded. The model's own head does round its scores to bfloat16, to 8 significant
bits: a score near 20 then moves by up to 0.06, its probability by 6%, and the best tokens often end in a tie. So this
lens is closer to the same model in float32 than a loop over the model's own `lm_head` is
(tests/inside/test_lens.py measures it).

Two cheaper products for a CPU were measured and do not help. bfloat16 takes longer on a processor without a matrix
unit for it; on one that has it, three products (each number as a sum of two) would be needed for a probability that
is right to four digits. int8 can tell which ids may be among the best, but not the sum that their probabilities are
divided by: in a third of the rows of a 128-token prompt, more than a millionth of that sum lies outside the 1,024
best ids.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from helpers.inside.keeping import home
from helpers.models.out_of_memory import is_out_of_memory

BUFFER_BYTES = 100_000_000  # bytes of working memory on a CPU
SLICE = 1024  # ids that are scored at a time
CHUNK = 256  # rows at a time, once a slice is scored: 1 MB of scores, which stays in a processor's cache
GROUP = 64  # neighbouring ids that share a maximum
SCORE_BYTES = 420_000_000  # bytes of scores at a time on a GPU
TILE = 128  # on a GPU the rows of a block are a multiple of this, the tile size of its matrix product

Change = Callable[[torch.Tensor], torch.Tensor]


def read(
    normed: Callable[[int, int], torch.Tensor],
    count: int,
    head: Any,
    top_k: int,
    change: Change,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids `[row, k]`, probabilities `[row, k]`, entropy `[row]`) of `count` rows, on `device`.

    `normed(start, stop)` returns rows as they go into `head`, `[row, hidden]` on its device; `change` is applied to
    the head's scores, in place. Beyond the result it needs at most 1.5 times `BUFFER_BYTES` on a CPU (for a `top_k`
    of up to 100), and 500 MB on a GPU.
    """
    token_ids = torch.empty(count, top_k, dtype=torch.long, device=device)
    probabilities = torch.empty(count, top_k, device=device)
    entropy = torch.empty(count, device=device)
    on_cpu = head.weight.device.type == "cpu"
    rows = min(count, (_rows_in_slices if on_cpu else _rows_whole)(head.weight.shape, top_k))
    if head.weight.device.type == "mps":  # softmax is not in place there: two tables of scores
        rows = max(rows // 2, 1)
    room = None if on_cpu else _room(rows, head.weight)
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        block = normed(start, stop)
        found = _read_in_slices(block, head, top_k, change) if on_cpu else _read_whole(block, head, top_k, change, room)
        token_ids[start:stop], probabilities[start:stop], entropy[start:stop] = found
    return token_ids, probabilities, entropy


def needed_bytes(count: int, head: Any, top_k: int) -> int:
    """About how many bytes `read` takes for `count` rows: its result, and the working memory of one block of rows."""
    size, on_cpu = head.weight.shape, home(head).type == "cpu"
    rows = min(count, (_rows_in_slices if on_cpu else _rows_whole)(size, top_k))
    row = _row_in_slices(size, top_k) if on_cpu else _row_whole(size, top_k)
    return count * (12 * top_k + 4) + rows * row


# On a GPU.


def _row_whole(size: Any, top_k: int) -> int:
    """Bytes for a row of a block: its scores and what is gathered from these."""
    return 4 * (size[0] + size[0] // GROUP + 4 * top_k * GROUP)


def _rows_whole(size: Any, top_k: int) -> int:
    """How many rows a block has, so that they take `SCORE_BYTES`."""
    rows = SCORE_BYTES // _row_whole(size, top_k)
    return max(rows // TILE * TILE, min(rows, TILE), 1)


def _room(rows: int, weight: torch.Tensor) -> torch.Tensor:
    """Memory for the scores of a block `[row, id]`, padded to whole groups of ids."""
    return torch.empty(rows, -(-weight.shape[0] // GROUP) * GROUP, device=weight.device)


def _read_whole(
    block: torch.Tensor, head: Any, top_k: int, change: Change, room: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, probabilities, entropy) of normed states `[row, hidden]`."""
    rows, vocab = len(block), head.weight.shape[0]
    room = room[:rows]
    _score(block, head, slice(None), change, out=room[:, :vocab])
    room[:, vocab:] = -torch.inf  # the padding of the last group
    grouped = room.view(rows, -1, GROUP)
    statistics = _one_pass(room.device)
    if statistics is not None:
        maxima, *sums = statistics(room, GROUP)
        softmax = _Softmax.of(*sums)
        best, ids = _best_of_groups(grouped, maxima, top_k)
        return ids, softmax.probabilities(best), softmax.entropy()
    _, ids = _best_of_groups(grouped, grouped.amax(dim=-1), top_k)
    # In place where that is safe: on CUDA, one block of threads reads a row and then writes it.
    room = torch.softmax(room, dim=-1, out=room if room.is_cuda else None)
    probabilities = room.gather(1, ids)
    return ids, probabilities, torch.special.entr(room, out=room).sum(dim=-1)


def _best_of_groups(grouped: torch.Tensor, maxima: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(scores, ids) `[row, k]` of the `top_k` highest of `grouped [row, group, id]`, with the groups' maxima."""
    groups = maxima.topk(min(top_k, maxima.shape[1]), dim=-1).indices
    wanted = grouped.gather(1, groups[..., None].expand(-1, -1, GROUP)).flatten(1)
    best, place = wanted.topk(top_k, dim=-1)
    return best, groups.gather(1, place // GROUP) * GROUP + place % GROUP


@cache
def _one_pass(device: torch.device) -> Callable | None:
    """`softmax_kernel.statistics` if it works on this device (tried once), otherwise None."""
    if device.type != "cuda":
        return None
    try:
        from helpers.inside.softmax_kernel import statistics

        statistics(torch.zeros(1, GROUP, device=device), GROUP)
    except Exception as error:  # there is no Triton, or it cannot compile (it needs a C compiler), or not for this GPU
        if is_out_of_memory(error):  # says nothing about Triton: the next lens tries again
            raise
        return None
    return statistics


# On a CPU.


def _row_in_slices(size: Any, top_k: int) -> int:
    """Bytes for a row of a block in `_read_in_slices`."""
    vocab, hidden = size
    return 4 * (2 * hidden + torch.get_num_threads() * min(SLICE, vocab) + vocab // GROUP + 4 * top_k * GROUP)


def _rows_in_slices(size: Any, top_k: int) -> int:
    """The largest number of rows whose tensors in `_read_in_slices` fit into `BUFFER_BYTES`."""
    return max(1, BUFFER_BYTES // _row_in_slices(size, top_k))


def _read_in_slices(
    block: torch.Tensor, head: Any, top_k: int, change: Change
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, probabilities, entropy) of normed states `[row, hidden]`."""
    rows, vocab = len(block), head.weight.shape[0]
    block = block.float()
    maxima = block.new_empty(rows, -(-vocab // GROUP))
    softmax = _Softmax(rows, -(-vocab // SLICE))

    def read_some(places: Iterator[int]) -> None:
        buffer = block.new_empty(rows * min(SLICE, vocab))
        for place in places:
            start, stop = place * SLICE, min((place + 1) * SLICE, vocab)
            out = buffer[: rows * (stop - start)].view(rows, -1)
            scores = _score(block, head, slice(start, stop), change, out)
            for first in range(0, rows, CHUNK):
                chunk = slice(first, first + CHUNK)
                groups = maxima[chunk, start // GROUP : -(-stop // GROUP)]
                _maxima(scores[chunk], out=groups)
                softmax.add(chunk, place, scores[chunk], groups.amax(dim=-1))

    _side_by_side(read_some, -(-vocab // SLICE))
    softmax.close()
    best, ids = _best(block, head, change, maxima, top_k)
    return ids, softmax.probabilities(best), softmax.entropy()


def _side_by_side(work: Callable[[Iterator[int]], None], count: int) -> None:
    """The numbers below `count`, worked off by as many threads as torch uses, each of which takes the next one.

    `work(numbers)` runs once in each thread. Inside, torch uses one core, so that no thread waits for another.
    """
    threads, numbers = min(torch.get_num_threads(), count), iter(range(count))
    if threads == 1:
        return work(numbers)
    before = torch.get_num_threads()

    @contextmanager
    def or_all_stop() -> Iterator[None]:
        try:
            yield
        except BaseException:  # an interrupt, too: no thread takes another number
            list(numbers)
            raise

    @torch.no_grad()
    def on_one_core(_: int) -> None:
        torch.set_num_threads(1)
        with or_all_stop():
            work(numbers)

    try:
        with ThreadPoolExecutor(threads) as pool, or_all_stop():
            list(pool.map(on_one_core, range(threads)))
    finally:
        torch.set_num_threads(before)  # threads that start later take the last number that was set


def _score(block: torch.Tensor, head: Any, ids: Any, change: Change, out: torch.Tensor | None) -> torch.Tensor:
    """Scores `[row, id]` of a slice of ids, float32, written to `out`."""
    weight = head.weight[ids]
    if block.dtype == weight.dtype == torch.float32:
        torch.mm(block, weight.T, out=out)
    elif weight.is_cuda:
        torch.mm(block, weight.T, out_dtype=torch.float32, out=out)
    else:
        for start in range(0, len(weight), SLICE):
            part = slice(start, start + SLICE)
            torch.mm(block.float(), weight[part].float().T, out=out[:, part])
    if getattr(head, "bias", None) is not None:
        out += head.bias[ids]
    return change(out)


def _maxima(scores: torch.Tensor, out: torch.Tensor) -> None:
    """The highest of each group of `scores [row, id]`, written to `out [row, group]`; the last group may be shorter."""
    whole = scores.shape[1] // GROUP
    torch.amax(scores[:, : whole * GROUP].unflatten(-1, (whole, GROUP)), dim=-1, out=out[:, :whole])
    if whole < out.shape[1]:
        torch.amax(scores[:, whole * GROUP :], dim=-1, out=out[:, whole])


def _best(
    block: torch.Tensor, head: Any, change: Change, maxima: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `top_k` best scores of each row, and their ids.

    They are all in the `top_k` groups with the highest maxima: a score in any other group is at most that
    group's maximum, so `top_k` scores (the better groups' maxima) are at least as high. Those groups are scored
    again, each for all the rows that need it. A product of another shape may round differently (with scores in the
    hundreds, that changes a probability by 1e-5 of itself). The new scores are therefore shifted so that their
    maximum is the one found before, and no probability comes out above 1.
    """
    vocab = head.weight.shape[0]
    groups = maxima.topk(min(top_k, maxima.shape[1]), dim=-1).indices
    wanted = groups.flatten()
    scores = block.new_full((len(wanted), GROUP), -torch.inf)
    counts = wanted.bincount(minlength=maxima.shape[1]).tolist()
    places_of = wanted.argsort().split(counts)

    def score_some(numbers: Iterator[int]) -> None:
        for group in numbers:
            start, stop = group * GROUP, min((group + 1) * GROUP, vocab)
            places = places_of[group]
            if len(places):
                rows = places // groups.shape[1]
                out = scores.new_empty(len(places), stop - start)
                again = _score(block[rows], head, slice(start, stop), change, out)
                again += (maxima[rows, group] - again.amax(dim=-1))[:, None]
                scores[places, : stop - start] = again

    _side_by_side(score_some, len(places_of))
    best, place = scores.view(len(block), -1).topk(top_k, dim=-1)
    return best, groups.gather(1, place // GROUP) * GROUP + place % GROUP


class _Softmax:
    """Softmax over a vocabulary that comes in slices, each tensor `[row, slice]`:

    - `highest`: the highest score. Scores count from there, so that no exponential is too large.
    - `total`: sum of exp(score - highest); `mean`: sum of exp(score - highest) * (score - highest).
    """

    def __init__(self, rows: int, slices: int) -> None:
        self.highest, self.total, self.mean = torch.empty(3, rows, slices, device="cpu")

    @classmethod
    def of(cls, highest: torch.Tensor, total: torch.Tensor, mean: torch.Tensor) -> "_Softmax":
        """A complete softmax from its sums `[row]`."""
        softmax = cls(0, 1)
        softmax.highest, softmax.total, softmax.mean = (part[:, None] for part in (highest, total, mean))
        return softmax

    def add(self, rows: Any, place: int, scores: torch.Tensor, highest: torch.Tensor) -> None:
        """Add some rows of one slice, `scores [row, id]` (overwritten), with their `highest [row]`."""
        weights = scores.sub_(highest[:, None]).exp()
        self.highest[rows, place] = highest
        self.total[rows, place] = weights.sum(dim=-1)
        self.mean[rows, place] = weights.mul_(scores).sum(dim=-1)

    def close(self) -> None:
        """Combine all slices into one, `[row, 1]`."""
        highest = self.highest.amax(dim=-1, keepdim=True)
        lower_by = self.highest - highest
        share = lower_by.exp()
        self.mean = ((self.mean + lower_by * self.total) * share).sum(dim=-1, keepdim=True)
        self.total = (self.total * share).sum(dim=-1, keepdim=True)
        self.highest = highest

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """The probabilities of some of the scores, `[row, k]`."""
        return (scores - self.highest).exp() / self.total

    def entropy(self) -> torch.Tensor:
        """The entropy of each row, in nats: log(total) - mean / total, since log p is score - highest - log(total)."""
        return (self.total.log() - self.mean / self.total)[:, 0]  # nan with scores of -inf: no model here has them
