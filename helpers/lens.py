"""Logit lens: what each layer's hidden state would say as the next token, if it were the last.

The final norm and `lm_head` turn any hidden state into scores over the vocabulary (nostalgebraist,
"interpreting GPT: the logit lens", 2020). All layers and positions go through together, in blocks of
rows, so that no more than `BUFFER_BYTES` of scores are in memory at a time.
"""

from dataclasses import dataclass

import torch

from helpers.anatomy import decoder
from helpers.errors import BadInputError

BUFFER_BYTES = 48_000_000  # two buffers of this size at the most: scores, and their exponentials


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

    Beyond its result it takes at most twice `BUFFER_BYTES` (about 100 MB) of memory, for any number of
    positions and a vocabulary of any size. The last row is the model's own prediction.

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
    rows = min(len(states), max(1, BUFFER_BYTES // (4 * head.weight.shape[0])))
    buffers = torch.empty(2, rows, head.weight.shape[0], dtype=torch.float32, device=head.weight.device)
    with torch.no_grad():
        for start in range(0, len(states), rows):
            stop = min(start + rows, len(states))
            block = states[start:stop].to(head.weight.device)
            to_norm = ~_is_normed(start, stop, normed_already, length).to(block.device)
            block = torch.where(to_norm[:, None], base.norm(block), block)
            best = _read(block, head, buffers[:, : stop - start], top_k)
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


def _read(block, head, buffers, top_k):
    """(ids, probabilities, entropy) of normed states `[row, hidden]`; works inside the buffers `[2, row, vocab]`."""
    scores, weights = buffers
    if head.weight.dtype == torch.float32:
        torch.matmul(block, head.weight.T, out=scores)
    else:
        scores.copy_(block.to(head.weight.dtype) @ head.weight.T)
    if getattr(head, "bias", None) is not None:
        scores += head.bias
    best, ids = scores.topk(top_k, dim=-1)
    scores -= best[:, :1]
    torch.exp(scores, out=weights)
    total = weights.sum(dim=-1)
    mean_score = torch.linalg.vecdot(weights, scores) / total
    entropy = total.log() - mean_score  # nan where -inf scores meet weight 0: no model here has them
    return ids, (best - best[:, :1]).exp() / total[:, None], entropy
