"""Checks for notebook 09: a head's habit, how many keys, induction over three copies, rollout without the sink."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from helpers.exercises import exercise, require

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@cache
def _default() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Tensor]:
    """The default model, its tokenizer and the notebook's random sequence [1, 101]."""
    import torch

    from helpers.inside.heads import repeated_ids
    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m")
    ids = repeated_ids(tokenizer, length=50, generator=torch.Generator().manual_seed(0))
    return load_model("smollm2-135m", device="cpu"), tokenizer, ids


@cache
def _attentions() -> Tensor:
    """The attention weights `[layer, head, query, key]` on the random sequence."""
    from helpers.inside.tracing import trace

    model, tokenizer, ids = _default()
    return trace(model, tokenizer, ids, hidden_states=False, logits=False).attentions


def _require_pair(pair: Any) -> None:
    whole = isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(number, int) for number in pair)
    require(whole, f"a head is a pair (layer, head) such as (5, 0), not {pair!r}.")
    require(0 <= pair[0] < 30 and 0 <= pair[1] < 9, f"there is no head {pair}: layers are 0 to 29, heads 0 to 8.")


@exercise("09.1", expects=(tuple, list))
def _(answer: Any) -> str:
    import torch

    _require_pair(answer)
    rows = torch.arange(3, 101)
    scores = _attentions()[:, :, rows, rows - 2].mean(-1)
    layer, head = answer
    score, best = float(scores[layer, head]), float(scores.max())
    one_back = _attentions()[:, :, rows, rows - 1].mean(-1)
    require(
        score != float(one_back.max()) and (layer, head) != divmod(int(one_back.argmax()), 9),
        "that head looks one position back.",
    )
    require(score == best, f"head {layer}.{head} gives {score:.2f} to the position two back; another gives {best:.2f}.")
    return f"Head {layer}.{head}, with {score:.2f}. No head here is specialised in looking two positions back."


@exercise("09.2", expects=Callable)
def _(answer: Any) -> str:
    import torch

    one, four = torch.eye(4), torch.full((4, 4), 0.25)
    mixed = torch.cat([one[:2], four[:2]])
    made = torch.stack([one, four, mixed])[None]
    given = answer(made.clone())
    right = isinstance(given, torch.Tensor) and given.shape == (1, 3)
    require(right, f"for {list(made.shape)} it should return a tensor of shape [1, 3], one number per head.")
    require(not torch.isnan(given).any(), "a weight of 0 should contribute 0; yours gives nan.")
    require(
        abs(float(given[0, 0]) - 1) < 1e-4,
        f"a head that attends to one key per query has an effective number of 1, not {float(given[0, 0]):.3g}.",
    )
    require(abs(float(given[0, 1]) - 4) < 1e-3, f"four equal weights give 4, not {float(given[0, 1]):.3g}.")
    require(
        abs(float(given[0, 2]) - 2.5) < 1e-3,
        f"two queries with 1 key and two with 4 have a mean of 2.5, not {float(given[0, 2]):.3g}: which comes first, "
        "the exponential or the mean?",
    )
    values = answer(_attentions())
    return f"On the random sequence, heads use from {float(values.min()):.1f} to {float(values.max()):.0f} keys."


def _induction(attentions: Tensor, length: int, copies: int, *, after: int = 1, most: int = 99) -> Tensor:
    """Scores [layer, head]: for each query, the weights of the keys `after` positions after its `most` latest earlier
    occurrences, added up; then the mean over the queries."""
    import torch

    rows = []
    for query in range(1 + length, 1 + copies * length):
        keys = [before + after for before in range(query - length, 0, -length)][:most]
        rows.append(attentions[:, :, query, keys].sum(-1))
    return torch.stack(rows).mean(0)


@exercise("09.3", expects=Callable)
def _(answer: Any) -> str:
    import torch

    length, copies = 4, 3
    positions = 1 + length * copies
    made = torch.rand(2, 3, positions, positions, generator=torch.Generator().manual_seed(3)).tril()
    made = made / made.sum(-1, keepdim=True)
    given = answer(made.clone(), length, copies)
    right = isinstance(given, torch.Tensor) and given.shape == (2, 3)
    require(right, f"for {list(made.shape)} it should return a tensor of shape [2, 3], one score per head.")
    wanted = _induction(made, length, copies)
    mistakes = {
        "you score the occurrences themselves (duplicate-token heads); score the position right after each.": (
            _induction(made, length, copies, after=0)
        ),
        "you count only the latest earlier occurrence; a query of the third copy has two.": (
            _induction(made, length, copies, most=1)
        ),
        "queries of the first copy are part of the mean; they have nothing to look up.": (
            wanted * (copies - 1) / copies
        ),
        "you look two positions after an occurrence. Does the first token, at position 0, shift your count?": (
            _induction(made, length, copies, after=2)
        ),
    }
    for mistake, score in mistakes.items():
        require(not torch.allclose(given, score, atol=1e-4), mistake)
    require(
        torch.allclose(given, wanted, atol=1e-4),
        f"for {copies} copies of {length} tokens the first head's score should be {float(wanted[0, 0]):.3f}, yours is "
        f"{float(given[0, 0]):.3f}. Are the weights of one query added up, and is the mean taken over queries?",
    )
    (twice,) = answer(_attentions(), 50, 2).flatten().topk(1).values.tolist()
    return f"Right for three copies; on the notebook's two copies the best head scores {twice:.2f}, as in section 4."


@exercise("09.4", expects=Callable)
def _(answer: Any) -> str:
    import torch

    sink = torch.zeros(4, 4)
    sink[:, 0] = 1.0
    chain = 0.6 * sink
    chain[0, 0] = 1.0
    for query in (1, 2, 3):
        chain[query, query - 1] += 0.4
    made = torch.stack([torch.stack([chain, chain])] * 2)
    before = made.clone()
    given = answer(made)
    square = isinstance(given, torch.Tensor) and given.shape == (4, 4)
    require(square, "it should return a tensor, the last layer's [query, key].")
    require(torch.equal(made, before), "your function changed the attentions passed to it: work on a copy.")
    alone = answer(torch.stack([torch.stack([sink])] * 2))
    nothing_left = torch.isnan(given).any() or torch.isnan(alone).any()
    require(not nothing_left, "a query that looks at nothing but key 0 gives nan: let it look at itself.")
    require(bool(torch.allclose(given.sum(-1), torch.ones(4), atol=1e-4)), "the rows of the result should sum to 1.")
    require(
        bool(torch.allclose(alone, torch.eye(4), atol=1e-4)),
        "if there is nothing but the sink, each query should look at itself.",
    )
    expected = [0.0, 0.25, 0.5, 0.25]  # query 3: stays or goes back by one, in each of two layers
    got = [round(float(weight), 3) for weight in given[3]]
    require(
        all(abs(a - b) < 1e-3 for a, b in zip(got, expected, strict=True)),
        f"for a head that looks one position back, and otherwise at the first token, two layers should trace the last "
        f"of four tokens to {expected}; yours gives {got}.",
    )
    return "The sink is gone, and the rows still sum to 1."
