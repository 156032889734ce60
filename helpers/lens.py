"""Logit lens: what each layer's hidden state would say as the next token, if it were the last.

The final norm and `lm_head` turn any hidden state into scores over the vocabulary (nostalgebraist,
"interpreting GPT: the logit lens", 2020). Nearly all of the time is that one matrix product, so all layers
and positions go through it together, in blocks of rows (no more than `BUFFER_BYTES` of scores are in memory
at a time) and slices of the vocabulary: what is wanted of a slice is taken while it is in the processor's
cache, a few sweeps over numbers that would else come back from memory, or sorting all 49,152 of them.

All of it is float32. Where a processor has no matrix unit for bfloat16, its product takes longer, not less
(measured: 82 against 155 GFLOP/s); where it has one, three products (each number as a sum of two of bfloat16)
would be needed for a probability that is right to four digits.
"""

from dataclasses import dataclass

import torch

from helpers.anatomy import decoder
from helpers.errors import BadInputError

BUFFER_BYTES = 101_000_000  # scores in memory at a time: 512 rows of 49,152
ROWS = 512  # hidden states at a time, at the most
SLICE = 2048  # scores of one hidden state at a time: times 512 rows they stay in a processor's cache
GROUP = 64  # scores that share a maximum; the best scores are searched in the groups with the best maxima


@dataclass(frozen=True, eq=False)
class Lens:
    """What each hidden state says.

    - `token_ids [layer+1, position, k]`: the k most likely tokens, the likeliest first.
    - `probabilities [layer+1, position, k]`: theirs.
    - `entropy [layer+1, position]`: of the whole distribution, in nats; 0 is certain, log(vocab) is a guess.
    - `layers`, `positions`: which rows these are, as in the `Trace`.
    """

    token_ids: torch.Tensor
    probabilities: torch.Tensor
    entropy: torch.Tensor
    layers: tuple[int, ...]
    positions: tuple[int, ...]


def logit_lens(model, trace, *, top_k=5):
    """The `Lens` of a `Trace` made with hidden states.

    Beyond its result it takes at most 1.5 times `BUFFER_BYTES` (about 150 MB) of memory, for any number of
    positions, a `top_k` of up to 100 and a vocabulary of any size (up to `BUFFER_BYTES // 4`). The last row is the
    model's own prediction.

    Raises `BadInputError` for a trace without hidden states, one of another model, and for a `top_k` that
    is not between 1 and the size of the vocabulary.
    """
    base, head = decoder(model), model.get_output_embeddings()
    _check(trace, base, head, top_k)
    count, length, hidden = trace.hidden_states.shape
    states = trace.hidden_states.reshape(-1, hidden)
    normed_already = trace.layers.index(len(base.layers)) * length if len(base.layers) in trace.layers else len(states)
    token_ids = torch.empty(len(states), top_k, dtype=torch.long)
    probabilities, entropy = torch.empty(len(states), top_k), torch.empty(len(states))
    rows = min(len(states), ROWS, max(1, BUFFER_BYTES // (4 * head.weight.shape[0])))
    buffers = _Buffers(rows, head.weight)
    with torch.no_grad():
        for start in range(0, len(states), rows):
            stop = min(start + rows, len(states))
            block = states[start:stop].to(head.weight.device)
            to_norm = ~_is_normed(start, stop, normed_already, length).to(block.device)
            block = torch.where(to_norm[:, None], base.norm(block), block)
            best = _read(block, head, buffers, top_k)
            token_ids[start:stop], probabilities[start:stop], entropy[start:stop] = best
    return Lens(
        token_ids.view(count, length, top_k),
        probabilities.view(count, length, top_k),
        entropy.view(count, length),
        trace.layers,
        trace.positions,
    )


def _check(trace, base, head, top_k):
    if trace.hidden_states is None:
        raise BadInputError("This trace holds no hidden states: run trace(..., hidden_states=True).")
    if trace.hidden_states.shape[-1] != head.weight.shape[1]:
        raise BadInputError(
            f"This trace has hidden states of {trace.hidden_states.shape[-1]} numbers, the model's have "
            f"{head.weight.shape[1]}: it was made with another model."
        )
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= head.weight.shape[0]:
        raise BadInputError(f"top_k is from 1 to {head.weight.shape[0]} (the vocabulary), not {top_k!r}.")


def _is_normed(start, stop, normed_already, length):
    """True for rows of the trace's last layer, which `transformers` gives after the final norm."""
    row = torch.arange(start, stop)
    return (row >= normed_already) & (row < normed_already + length)


class _Buffers:
    """Memory that every block of rows uses again: all its scores, and two copies of one slice of them."""

    def __init__(self, rows, weight):
        vocab = weight.shape[0]
        groups = -(-vocab // GROUP)
        # The last group may reach past the vocabulary: -inf is never among the best.
        self.scores = torch.full((rows, groups * GROUP), -torch.inf, device=weight.device)
        self.maxima = torch.empty(rows, groups, device=weight.device)
        self.slices = torch.empty(2, rows * min(SLICE, vocab), device=weight.device)


def _read(block, head, buffers, top_k):
    """(ids, probabilities, entropy) of normed states `[row, hidden]`."""
    rows, vocab = len(block), head.weight.shape[0]
    scores, maxima = buffers.scores[:rows], buffers.maxima[:rows]
    softmax = _Softmax(rows, block.device)
    for start in range(0, vocab, SLICE):
        stop = min(start + SLICE, vocab)
        _score(block, head, start, stop, out=scores[:, start:stop])
        groups = slice(start // GROUP, -(-stop // GROUP))
        whole_groups = scores[:, start : groups.stop * GROUP].unflatten(-1, (-1, GROUP))
        torch.amax(whole_groups, dim=-1, out=maxima[:, groups])
        size = rows * (stop - start)
        shifted, weights = (part[:size].view(rows, -1) for part in buffers.slices)
        softmax.add(scores[:, start:stop], maxima[:, groups].amax(dim=-1, keepdim=True), shifted, weights)
    best, ids = _best(scores, maxima, top_k)
    return ids, softmax.probabilities(best), softmax.entropy()


def _score(block, head, start, stop, out):
    """Scores `[row, id]` of the ids from `start` to `stop`."""
    weight = head.weight[start:stop]
    if weight.dtype == torch.float32:
        torch.mm(block, weight.T, out=out)
    else:
        out.copy_(block.to(weight.dtype) @ weight.T)
    if getattr(head, "bias", None) is not None:
        out += head.bias[start:stop]


def _best(scores, maxima, top_k):
    """The `top_k` best of `scores [row, id]` and their ids.

    They are all in the `top_k` groups with the highest maxima: a score in any other group is at most that
    group's maximum, so `top_k` scores (the better groups' maxima) are at least as high.
    """
    groups = maxima.topk(min(top_k, maxima.shape[1]), dim=-1).indices
    inside = scores.unflatten(-1, (-1, GROUP)).gather(1, groups[..., None].expand(-1, -1, GROUP))
    best, place = inside.flatten(1).topk(top_k, dim=-1)
    return best, groups.gather(1, place // GROUP) * GROUP + place % GROUP


class _Softmax:
    """Softmax over a vocabulary that comes in slices (Milakov and Gimelshein, "Online normalizer calculation for
    softmax", 2018), each tensor `[row, 1]`:

    - `highest`: the highest score so far. Scores count from there, so that no exponential is too large.
    - `total`: sum of exp(score - highest); `mean`: sum of exp(score - highest) * (score - highest).
    """

    def __init__(self, rows, device):
        self.highest = torch.full((rows, 1), -torch.inf, device=device)
        self.total = self.highest.new_zeros(rows, 1)
        self.mean = self.highest.new_zeros(rows, 1)

    def add(self, scores, highest, shifted, weights):
        """One slice `scores [row, id]` and its `highest [row, 1]`; works in two buffers of that shape."""
        highest = torch.maximum(self.highest, highest)
        higher_by = (highest - self.highest).nan_to_num(posinf=1e4)  # in the first slice: exp(-1e4) is 0
        self.mean = (self.mean - higher_by * self.total) * (-higher_by).exp()
        self.total = self.total * (-higher_by).exp()
        self.highest = highest
        torch.exp(torch.sub(scores, highest, out=shifted), out=weights)
        self.total += weights.sum(dim=-1, keepdim=True)
        self.mean += weights.mul_(shifted).sum(dim=-1, keepdim=True)

    def probabilities(self, scores):
        """Of some of the scores `[row, k]`."""
        return (scores - self.highest).exp() / self.total

    def entropy(self):
        """Of each row, in nats; log(total) - mean / total, since log p is score - highest - log(total)."""
        return (self.total.log() - self.mean / self.total)[:, 0]  # nan with scores of -inf: no model here has them
