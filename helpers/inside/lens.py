"""Logit lens: what each layer's hidden state would say as the next token, if it were the last.

The final norm and `lm_head` turn any hidden state into scores over the vocabulary (nostalgebraist,
"interpreting GPT: the logit lens", 2020). Nearly all of the time is that one matrix product, so all layers and
positions go through it together, one slice of the vocabulary after the other. What is wanted of a slice is taken
at once, and its scores are gone: the sums of the softmax, and the highest score of each group of ids. Only the
groups that can hold one of the best are scored a second time, for the rows that want them.

All of it is float32. Two cheaper products were measured and do not help. bfloat16 takes longer where a processor
has no matrix unit for it; where it has one, three products (each number as a sum of two) would be needed for a
probability that is right to four digits. int8 can say which ids may be among the best, but not the sum that a
probability is a part of: a third of the rows of a 128-token prompt have more than a millionth of it outside their
1,024 best ids.
"""

from dataclasses import dataclass

import torch

from helpers.errors import BadInputError
from helpers.inside.anatomy import decoder

BUFFER_BYTES = 100_000_000  # worked in at a time
SLICE = 1024  # ids at a time
CHUNK = 256  # rows at a time, once a slice is scored: 1 MB of scores, which stays in a processor's cache
GROUP = 64  # neighbouring ids that share a maximum


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

    Beyond its result it takes at most 1.5 times `BUFFER_BYTES` (150 MB) of memory, for any number of positions, a
    vocabulary of any size and a `top_k` of up to 100. The last row is the model's own prediction.

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
    rows = _rows_at_a_time(head.weight.shape, top_k)
    with torch.no_grad():
        for start in range(0, len(states), rows):
            stop = min(start + rows, len(states))
            block = states[start:stop].to(head.weight.device)
            to_norm = ~_is_normed(start, stop, normed_already, length).to(block.device)
            block = torch.where(to_norm[:, None], base.norm(block), block)
            token_ids[start:stop], probabilities[start:stop], entropy[start:stop] = _read(block, head, top_k)
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


def _rows_at_a_time(size, top_k):
    """So many that all the tensors of `_read` fit into `BUFFER_BYTES`."""
    vocab, hidden = size
    numbers = 2 * hidden + min(SLICE, vocab) + vocab // GROUP + 4 * top_k * GROUP
    return max(1, BUFFER_BYTES // (4 * numbers))


def _read(block, head, top_k):
    """(ids, probabilities, entropy) of normed states `[row, hidden]`."""
    rows, vocab = len(block), head.weight.shape[0]
    buffer = torch.empty(rows * min(SLICE, vocab), device=block.device)
    maxima = torch.empty(rows, -(-vocab // GROUP), device=block.device)
    softmax = _Softmax(rows, -(-vocab // SLICE), block.device)
    for place, start in enumerate(range(0, vocab, SLICE)):
        stop = min(start + SLICE, vocab)
        scores = _score(block, head, start, stop, out=buffer[: rows * (stop - start)].view(rows, -1))
        for first in range(0, rows, CHUNK):
            chunk = slice(first, first + CHUNK)
            groups = maxima[chunk, start // GROUP : -(-stop // GROUP)]
            _maxima(scores[chunk], out=groups)
            softmax.add(chunk, place, scores[chunk], groups.amax(dim=-1))
    softmax.close()
    best, ids = _best(block, head, maxima, top_k)
    return ids, softmax.probabilities(best), softmax.entropy()


def _score(block, head, start, stop, out):
    """Scores `[row, id]` of the ids from `start` to `stop`, written to `out`."""
    weight = head.weight[start:stop]
    if weight.dtype == torch.float32:
        torch.mm(block, weight.T, out=out)
    else:
        out.copy_(block.to(weight.dtype) @ weight.T)
    if getattr(head, "bias", None) is not None:
        out += head.bias[start:stop]
    return out


def _maxima(scores, out):
    """The highest of each group of `scores [row, id]`, written to `out [row, group]`; the last may be a short one."""
    whole = scores.shape[1] // GROUP
    torch.amax(scores[:, : whole * GROUP].unflatten(-1, (whole, GROUP)), dim=-1, out=out[:, :whole])
    if whole < out.shape[1]:
        torch.amax(scores[:, whole * GROUP :], dim=-1, out=out[:, whole])


def _best(block, head, maxima, top_k):
    """The `top_k` best scores of each row, and their ids.

    They are all in the `top_k` groups with the highest maxima: a score in any other group is at most that
    group's maximum, so `top_k` scores (the better groups' maxima) are at least as high. Those groups are scored
    again, each for all the rows that want it. A product of another shape may round otherwise (with scores in the
    hundreds, a probability by 1e-5 of it): they are moved to where their maximum was, so that none comes out above 1.
    """
    vocab = head.weight.shape[0]
    groups = maxima.topk(min(top_k, maxima.shape[1]), dim=-1).indices
    wanted = groups.flatten()
    scores = torch.full((len(wanted), GROUP), -torch.inf, device=block.device)
    in_order = wanted.argsort()
    counts = wanted.bincount(minlength=maxima.shape[1]).tolist()
    for group, places in enumerate(in_order.split(counts)):
        start, stop = group * GROUP, min((group + 1) * GROUP, vocab)
        if len(places):
            rows = places // groups.shape[1]
            again = _score(block[rows], head, start, stop, out=scores.new_empty(len(places), stop - start))
            again += (maxima[rows, group] - again.amax(dim=-1))[:, None]
            scores[places, : stop - start] = again
    best, place = scores.view(len(block), -1).topk(top_k, dim=-1)
    return best, groups.gather(1, place // GROUP) * GROUP + place % GROUP


class _Softmax:
    """Softmax over a vocabulary that comes in slices, each tensor `[row, slice]`:

    - `highest`: the highest score. Scores count from there, so that no exponential is too large.
    - `total`: sum of exp(score - highest); `mean`: sum of exp(score - highest) * (score - highest).
    """

    def __init__(self, rows, slices, device):
        self.highest, self.total, self.mean = torch.empty(3, rows, slices, device=device)

    def add(self, rows, place, scores, highest):
        """Some rows of one slice, `scores [row, id]` (overwritten), and their `highest [row]`."""
        weights = scores.sub_(highest[:, None]).exp()
        self.highest[rows, place] = highest
        self.total[rows, place] = weights.sum(dim=-1)
        self.mean[rows, place] = weights.mul_(scores).sum(dim=-1)

    def close(self):
        """All slices as one, `[row, 1]`."""
        highest = self.highest.amax(dim=-1, keepdim=True)
        lower_by = self.highest - highest
        share = lower_by.exp()
        self.mean = ((self.mean + lower_by * self.total) * share).sum(dim=-1, keepdim=True)
        self.total = (self.total * share).sum(dim=-1, keepdim=True)
        self.highest = highest

    def probabilities(self, scores):
        """Of some of the scores `[row, k]`."""
        return (scores - self.highest).exp() / self.total

    def entropy(self):
        """Of each row, in nats; log(total) - mean / total, since log p is score - highest - log(total)."""
        return (self.total.log() - self.mean / self.total)[:, 0]  # nan with scores of -inf: no model here has them
