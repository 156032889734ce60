"""Logit lens: what each layer's hidden state would say as the next token, if it were the last.

The final norm and `lm_head` turn any hidden state into scores over the vocabulary (nostalgebraist,
"interpreting GPT: the logit lens", 2020). Some models then scale or cap the scores (Gemma 2, Granite, Cohere), and
the lens does the same; a few have no final norm (OPT-350m, GPT-1), and the head reads the state as it is. That is all
there is to it, and `plain_lens` does just that. Its table of all rows by all tokens gets large: 31 layers, 500
positions and 49,152 tokens take 3 GB. `logit_lens` computes the same in blocks, faster and with little memory
(`helpers.inside.fast_lens`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from helpers.checks import given_by, shown
from helpers.errors import BadInputError
from helpers.inside import fast_lens
from helpers.inside.anatomy import Anatomy, anatomy
from helpers.inside.keeping import fetched, home
from helpers.models.fitting import refusing_what_does_not_fit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from helpers.inside.tracing import Trace

TABLES = 3  # of all rows by all tokens that `plain_lens` holds at once: scores, softmax, terms of the entropy


@dataclass(frozen=True, eq=False)
class Lens:
    """What each hidden state predicts. All tensors are on the device of the `Trace` they were read from.

    - `token_ids [layer+1, position, k]`: the k most likely tokens, the most likely first.
    - `probabilities [layer+1, position, k]`: their probabilities, float32.
    - `entropy [layer+1, position]`: that of the whole distribution, in nats: 0 is certainty, log(vocab) a pure guess.
    - `layers`, `positions`: which rows these are, as in the `Trace`.

    >>> from helpers.inside.tracing import trace
    >>> lens = logit_lens(model, trace(model, tokenizer, "The capital of France is"), top_k=3)
    >>> list(lens.token_ids.shape), list(lens.entropy.shape)
    ([31, 5, 3], [31, 5])
    """

    token_ids: torch.Tensor
    probabilities: torch.Tensor
    entropy: torch.Tensor
    layers: tuple[int, ...]
    positions: tuple[int, ...]


@torch.no_grad()
def plain_lens(model: PreTrainedModel, trace: Trace, *, top_k: int = 5) -> Lens:
    """The `Lens` of a `Trace`, computed in the plain way: final norm, `lm_head`, softmax.

    Its memory grows with rows times vocabulary; `logit_lens` computes the same numbers without that. The last row of
    hidden states has already been through the final norm, as in `transformers`. In a bfloat16 model the head is
    applied in float32, so that scores are not rounded. Raises what `logit_lens` raises.

    >>> from helpers.inside.tracing import trace
    >>> run = trace(model, tokenizer, "The capital of France is")
    >>> bool((plain_lens(model, run, top_k=1).token_ids == logit_lens(model, run, top_k=1).token_ids).all())
    True
    """
    parts = anatomy(model)
    parts.check_lens()
    _check(trace, parts, top_k)
    count, length = trace.hidden_states.shape[:2]
    needed = TABLES * 4 * count * length * parts.head.weight.shape[0]
    options = {"logit_lens": fast_lens.needed_bytes(count * length, parts.head, top_k)}
    with refusing_what_does_not_fit("plain_lens", needed, str(home(parts.head)), options, runs=False):
        return _plain_lens(parts, trace, top_k)


def _plain_lens(parts: Anatomy, trace: Trace, top_k: int) -> Lens:
    head = parts.head
    states = trace.hidden_states.to(home(head))
    is_last = torch.tensor(trace.layers, device=states.device) == len(parts.layers)
    normed = parts.for_head(states, is_last[:, None, None])
    with fetched(head):
        bias = None if getattr(head, "bias", None) is None else head.bias.float()
        scores = torch.nn.functional.linear(normed.float(), head.weight.float(), bias)
    scores = parts.logit_map.apply_(scores)
    probabilities = scores.softmax(dim=-1)
    entropy = torch.special.entr(probabilities).sum(dim=-1)
    best = probabilities.topk(top_k, dim=-1)
    found = (tensor.to(trace.hidden_states.device) for tensor in (best.indices, best.values, entropy))
    ids, probabilities, entropy = found
    return Lens(ids, probabilities, entropy, trace.layers, trace.positions)


@torch.no_grad()
def logit_lens(model: PreTrainedModel, trace: Trace, *, top_k: int = 5) -> Lens:
    """The `Lens` of a `Trace` made with hidden states.

    Beyond its result it takes at most 150 MB of memory on a CPU and 500 MB on a GPU, for any number of positions, a
    vocabulary of any size and a `top_k` of up to 100. The last row is the model's own prediction. The numbers are the
    same as those of `plain_lens`.

    Raises `BadInputError` for a trace without hidden states, one of another model, for a `top_k` that is not
    between 1 and the size of the vocabulary, and for a model whose logits are not what its final norm and head give;
    `DoesNotFitError` when memory runs out.

    >>> from helpers.inside.tracing import trace
    >>> lens = logit_lens(model, trace(model, tokenizer, "The capital of France is"), top_k=3)
    >>> list(lens.token_ids.shape)
    [31, 5, 3]
    >>> tokenizer.decode(lens.token_ids[-1, -1, 0])
    ' Paris'
    """
    parts = anatomy(model)
    parts.check_lens()
    head = parts.head
    _check(trace, parts, top_k)
    count, length, hidden = trace.hidden_states.shape
    states = trace.hidden_states.reshape(-1, hidden)
    last = len(parts.layers)
    normed_already = trace.layers.index(last) * length if last in trace.layers else len(states)
    device = home(head)

    def normed(start: int, stop: int) -> torch.Tensor:
        """Rows as they go into the head: `transformers` gives those of the last layer after the final norm."""
        row = torch.arange(start, stop, device=device)
        is_normed = (row >= normed_already) & (row < normed_already + length)
        return parts.for_head(states[start:stop], is_normed[:, None])

    needed, of_one = (fast_lens.needed_bytes(rows, head, top_k) for rows in (len(states), count))
    options = {"the lens of one position, trace(..., positions=[-1])": of_one} if length > 1 else {}
    with refusing_what_does_not_fit("The lens", needed, str(device), options, runs=False), fetched(head):
        found = fast_lens.read(normed, len(states), head, top_k, parts.logit_map.apply_, states.device)
    ids, probabilities, entropy = (tensor.view(count, length, *tensor.shape[1:]) for tensor in found)
    return Lens(ids, probabilities, entropy, trace.layers, trace.positions)


def _check(trace: Trace, parts: Anatomy, top_k: int) -> None:
    given_by("trace", "trace", trace, "hidden_states", "layers", "positions")
    vocabulary = parts.head.weight.shape[0]
    if trace.hidden_states is None:
        raise BadInputError("This trace holds no hidden states: run trace(..., hidden_states=True).")
    if trace.hidden_states.shape[-1] != parts.hidden_size:
        raise BadInputError(
            f"This trace has hidden states of {trace.hidden_states.shape[-1]} numbers, the model's have "
            f"{parts.hidden_size}: it was made with another model."
        )
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= vocabulary:
        raise BadInputError(f"top_k is from 1 to {vocabulary} (the vocabulary), not {shown(top_k)}.")
