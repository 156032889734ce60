"""Checks for notebook 04: a layer that is needed, vanishing factors, a window, two pairings, another family."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from helpers.exercises import exercise, require

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CAPITAL = "The capital of France is"
WEEKDAY = "星期一、星期二、星期三、星期"
LAYERS = range(3, 30)


@cache
def _default() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The default model and its tokenizer."""
    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_tokenizer

    return load_model("smollm2-135m", device="cpu"), load_tokenizer("smollm2-135m")


def _probabilities(prompt: str) -> Tensor:
    """The probabilities [vocab] of the next token, from the default model with any interventions that are active."""
    import torch

    from helpers.text.prompts import prompt_ids

    model, tokenizer = _default()
    with torch.inference_mode():
        return model(prompt_ids(tokenizer, prompt), logits_to_keep=1).logits[0, -1].softmax(-1)


@cache
def _left_without_attention() -> Any:
    """Layer -> probability of the weekday's right token without that layer's attention."""
    from helpers.inside.interventions import skip_attention

    right, left = int(_probabilities(WEEKDAY).argmax()), {}
    for layer in LAYERS:
        with skip_attention(_default()[0], layer):
            left[layer] = float(_probabilities(WEEKDAY)[right])
    return left


@exercise("04.1", expects=int)
def _(answer: Any) -> str:
    require(answer in LAYERS, f"the question is about layers {LAYERS[0]} to {LAYERS[-1]}; this is {answer}.")
    left = _left_without_attention()
    lowest = min(left, key=left.get)
    require(
        answer == lowest,
        f"without the attention of layer {answer} the right token keeps a probability of {left[answer]:.2f}; there is "
        "a layer that leaves less. Did you use the Chinese prompt?",
    )
    kept = f"Without it the right token keeps a probability of {left[lowest]:.2f}."
    return f"{kept} Which layer matters depends on the prompt."


WHY = {
    "embedding": "the norms in the layers undo it, but what the layers add is then small in comparison.",
    "norm input": "what does RMSNorm make of a row that is ten times as large?",
    "last stream": "what comes right after it?",
    "logits": "ten times the logits is a temperature of 0.1.",
}


@cache
def _stays() -> Any:
    """Place -> whether the answer's probability stays the same when the numbers at this place are multiplied by 10."""
    from helpers.inside import anatomy

    model = _default()[0]
    parts = anatomy(model)
    norms = [norm for layer in parts.layers for norm in layer.norms] + [parts.final_norm]
    before = _probabilities(CAPITAL)
    right = int(before.argmax())

    def tenfold_input(module: Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (10 * given[0], *given[1:])

    def tenfold_output(module: Module, given: tuple[Tensor, ...], result: Tensor) -> Tensor:
        return 10 * result

    hooks: dict[str, Any] = {
        "embedding": [(parts.embedding.register_forward_hook, tenfold_output)],
        "norm input": [(norm.register_forward_pre_hook, tenfold_input) for norm in norms],
        "last stream": [(parts.final_norm.register_forward_pre_hook, tenfold_input)],
        "logits": [(parts.head.register_forward_hook, tenfold_output)],
    }
    stays: dict[str, Any] = {}
    for place, several in hooks.items():
        with ExitStack() as active:
            for register, hook in several:
                active.enter_context(register(hook))
            stays[place] = abs(float(_probabilities(CAPITAL)[right] - before[right])) < 0.01
    return stays


@exercise("04.2", expects=dict)
def _(answer: Any) -> str:
    missing = [place for place in WHY if not isinstance(answer.get(place), bool)]
    require(not missing, f"each of the four places needs True or False; {', '.join(missing)} has none.")
    for place, stays in _stays().items():
        found = "stays the same" if stays else "changes"
        require(answer[place] == stays, f"{place}: the probability {found}. Think again: {WHY[place]}")
    return "A norm undoes every factor in front of it."


@exercise("04.3", expects=Callable)
def _(answer: Any) -> str:
    import torch
    from transformers.masking_utils import sliding_window_causal_mask_function

    for queries, count in ((torch.arange(6), 6), (torch.tensor([5]), 6), (torch.arange(3, 9), 9)):
        keys = torch.arange(count)
        for window in (1, 3, 20):
            given = answer(queries, keys, window)
            require(
                isinstance(given, torch.Tensor) and given.shape == (len(queries), count) and given.dtype == torch.bool,
                f"for {len(queries)} queries and {count} keys it should be bool [{len(queries)}, {count}].",
            )
            later = given & (keys > queries[:, None])
            require(not later.any(), "some query sees a key that comes after it, but it should be a causal window.")
            expected = sliding_window_causal_mask_function(window)(0, 0, queries[:, None], keys[None])
            seen, should = int(given[-1].sum()), int(expected[-1].sum())
            require(
                torch.equal(given, expected),
                f"with window={window} the query at position {int(queries[-1])} should see {should} of {count} keys, "
                f"itself among them; yours sees {seen}.",
            )
    return "Equal to the library's sliding window, in the first pass and in later ones."


def _turned(x: Tensor, positions: Tensor, *, neighbours: bool) -> Tensor:
    """`x [head, position, head_dim]` rotated by the default model's angles; a pair is two neighbours, or one number
    from each half."""
    import torch

    angle = positions[:, None] * _default()[0].model.rotary_emb.inv_freq
    a, b = (x[..., 0::2], x[..., 1::2]) if neighbours else x.chunk(2, dim=-1)
    turned = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
    return torch.stack(turned, dim=-1).flatten(-2) if neighbours else torch.cat(turned, dim=-1)


@exercise("04.4", expects=list)
def _(answer: Any) -> str:
    import torch

    require(sorted(answer) == list(range(64)), "it should hold each of the numbers 0 to 63 once.")
    require(answer != list(range(64)), "that leaves everything where it was.")
    x = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(7)
    mine = _turned(x[..., answer], positions, neighbours=True)
    theirs = _turned(x, positions, neighbours=False)[..., answer]
    right = torch.isclose(mine, theirs, atol=1e-5).all(dim=0).all(dim=0)
    wrong = (~right).nonzero().flatten().tolist()
    require(
        not wrong,
        f"{len(wrong)} of 64 places come out wrong, starting with place {wrong[0] if wrong else ''}. Places 0 and 1 "
        "are rotated together: which two numbers belong together, and which of them comes first?",
    )
    return "Reordered like this, weights made for one pairing work with the other."


def _tiny(family: str) -> PreTrainedModel:
    """A small random model of a family, with biases that are not zero."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
    }
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 97, "rms_norm_eps": 1e-4}
    sizes |= {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "tie_word_embeddings": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes), dtype=torch.float32).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@exercise("04.5", expects=Callable)
def _(answer: Any) -> str:
    import torch

    ids = torch.tensor([5, 17, 3, 96, 0, 17, 42])
    for family in ("llama", "qwen2"):
        model = _tiny(family)
        with torch.no_grad():
            expected = model(ids[None]).logits[0]
        given = answer(SimpleNamespace(config=model.config, state_dict=model.state_dict), ids)
        require(
            isinstance(given, torch.Tensor) and given.shape == expected.shape,
            f"for {len(ids)} ids and a vocabulary of {model.config.vocab_size} it should return logits "
            f"{list(expected.shape)}.",
        )
        off = float((given - expected).abs().max() / expected.abs().max())
        require(
            off < 1e-4,
            f"the logits of a tiny {family} are off by {off:.2g} of the largest logit. "
            + ("Are the biases in?" if family == "qwen2" else "Is a size, theta or eps still the big model's?"),
        )
    return "Logits of a Qwen2 and of a Llama of other sizes, from the weights alone."
