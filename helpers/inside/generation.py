"""`generate`, one step at a time.

`generate_steps` is the loop inside `model.generate`, opened up: each step prepares the inputs, runs
the model, takes the logits of the last position, sends them through the processors, chooses a token
and checks whether to stop. It calls the same methods and the same processors of `transformers` that
`generate` calls, in the same order, so the tokens are the same. The loop itself is `_steps`.
"""

from __future__ import annotations

import inspect
import math
import warnings
from dataclasses import dataclass, fields
from functools import partial
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    DynamicCache,
    RepetitionPenaltyLogitsProcessor,
    StaticCache,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.utils.generic import is_flash_attention_requested

from helpers import checks
from helpers.errors import BadInputError, HelpersError, NotANumberError, PromptTooLongError, Setting, printable
from helpers.inside.anatomy import DOES_NOT_RUN, is_untouched
from helpers.inside.exclusive import one_at_a_time
from helpers.inside.keeping import input_device
from helpers.inside.kv_cache import check_cache, check_reading_on
from helpers.inside.when_read import WhenRead
from helpers.models.fitting import LESS, refusing_by_estimate
from helpers.models.memory import run_bytes
from helpers.models.out_of_memory import is_out_of_memory
from helpers.models.vision_memory import picture_memory
from helpers.text.encoding import text_tokenizer
from helpers.text.prompts import RenderedChat, prompt_ids
from helpers.text.sight import sight_of
from helpers.text.stopping import terminator_ids
from helpers.text.tokens import token_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Below this, dividing logits by the temperature can leave the range of float32.
SMALLEST_TEMPERATURE = 1e-6
NOT_FOR_READERS = ("input_ids", "inputs_embeds", "labels", "logits_to_keep", "use_cache")  # set by generate_steps


@dataclass(frozen=True, eq=False, repr=False)
class GenerationStep:
    """One decoding step: what went into the model, what came out, and which token was chosen from it.

    `index`: 0 for the first new token. `query` is the number of ids that the step reads: in the first step the length
    of the prompt (without the part that a given cache already holds), and 1 afterwards.

    - `input_ids [1, query]`, `position_ids [1, query]` (None for a model that takes none) and
      `attention_mask [1, kv_length]`: what the model was given. (Like `generate`, the loop does not pass
      on a mask that is all ones; the result is the same.)
    - All tensors are on the model's device.
    - `kv_length`: how many positions the KV cache holds once these inputs are in it, and therefore how
      many positions the attention of this step reads. It held `kv_length - query` before.
    - `logits [vocab]`: the model's raw scores for the next token, float32.
    - `processed`: a dict from a processor's name to the scores `[vocab]` after it, in the order in
      which they were applied: "repetition_penalty", "temperature", "top_k", "top_p". Processors that
      are not in use are not in it.
    - `probabilities [vocab]`: softmax of the last scores.
    - `token_id`, `token`: the token chosen, and its readable label.
    - `stopped_by`: None, or in the last step "end_of_turn" (`token_id` is then the terminator it
      stopped at) or "max_new_tokens".

    >>> first, second = generate_steps(model, tokenizer, "Once upon a", max_new_tokens=2)
    >>> first.token, first.input_ids.shape[1], second.input_ids.shape[1], second.stopped_by
    ('·time', 3, 1, 'max_new_tokens')
    """

    index: int
    input_ids: torch.Tensor
    position_ids: torch.Tensor | None
    attention_mask: torch.Tensor
    kv_length: int
    logits: torch.Tensor
    processed: dict[str, torch.Tensor]
    probabilities: torch.Tensor
    token_id: int
    token: str = WhenRead()
    stopped_by: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"token": self.token}

    def __repr__(self) -> str:
        shown = (f"{field.name}={_short(getattr(self, field.name))}" for field in fields(self))
        return f"GenerationStep({', '.join(shown)})"


def _short(value: Any) -> str:
    """A value for a repr: small tensors as they are, large ones by their shape."""
    if isinstance(value, torch.Tensor):
        return str(value.tolist()) if value.numel() <= 8 else f"tensor{list(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {_short(scores)}" for name, scores in value.items()) + "}"
    return repr(value)


def generate_steps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Any,
    *,
    max_new_tokens: int = 64,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    forced_ids: Any = (),
    **model_inputs: Any,
) -> Iterator[GenerationStep]:
    """An iterator of `GenerationStep`, with the same tokens that `model.generate` produces.

    >>> for step in generate_steps(model, tokenizer, "The capital of France is", max_new_tokens=2):
    ...     print(step.index, step.token, step.stopped_by)
    0 ·Paris None
    1 . max_new_tokens

    `prompt` is a text, a `RenderedChat` or ids `[1, length]`. The settings have the names and the
    meaning they have in `generate`, and only those given here count: the defaults that `generate`
    takes from the model's `generation_config` (and its own `top_k=50` when sampling) do not.

    - `do_sample=False` takes the most likely token; `temperature`, `top_k` and `top_p` then have no
      effect, and a warning says so.
    - `seed` gives the tokens that `torch.manual_seed(seed)` and then `generate` would give, without
      touching the global random state; None draws from the global state.
    - `eos_token_id`: the terminators, an int or a list; an empty list means that only the length stops it.
      None takes those of the model's `generation_config`, the tokenizer's, and the one that ends a turn in its
      chat template (`terminator_ids` of helpers.text), since the lists of many models are incomplete.
    - `forced_ids`: tokens that the first steps take instead of choosing. To choose another token in
      step k and continue from there, call again with `forced_ids` = the ids of steps 0 to k-1 and the
      new one. Everything else stays as it was (the settings, the length left, and which random
      number belongs to which step), so forcing what was chosen anyway changes nothing.
    - `model_inputs` is what else the model's `forward` takes, such as `pixel_values` and the
      `position_ids [1, length]` that go with a picture. With `past_key_values`, a cache that holds
      the beginning of the prompt, only the rest of the prompt is run; the cache grows in place.

    Each step holds `logits`, `probabilities` and one tensor per processor, `4 * vocab` bytes each.

    Raises `BadInputError` for settings that cannot work and `PromptTooLongError` when prompt and
    `max_new_tokens` exceed the model's context, both before anything runs; `DoesNotFitError` when memory runs
    out during a step. Modelled on `GenerationMixin.generate` and `GenerationMixin._sample` in `transformers`.
    """
    _check_model(model, model_inputs)
    check_settings(max_new_tokens, do_sample, temperature, top_k, top_p, repetition_penalty, seed)
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    input_ids = prompt_ids(tokenizer, prompt, context=context)
    made = isinstance(prompt, str | RenderedChat)  # by the tokenizer, of a text
    checks.ids_of_model(model, input_ids, text_tokenizer(tokenizer) if made else None)
    _check_length(input_ids.shape[1], max_new_tokens, context)
    read = sight_of(model).has_read(model_inputs.get("past_key_values"))
    needs = partial(_needs, model, input_ids, max_new_tokens, model_inputs.get("pixel_values"), read)
    with refusing_by_estimate("generate_steps", needs, str(input_device(model))):
        input_ids = input_ids.to(input_device(model))
        first_inputs = _first_model_inputs(model, input_ids, model_inputs, max_new_tokens)
    generator = None
    if do_sample and seed is not None:
        generator = torch.Generator(device=input_ids.device).manual_seed(int(seed))
    return _steps(
        model,
        tokenizer,
        input_ids,
        first_inputs,
        needs=needs,
        processors=logits_processors(do_sample, temperature, top_k, top_p, repetition_penalty),
        do_sample=do_sample,
        generator=generator,
        terminators=_terminators(model, tokenizer, eos_token_id),
        max_new_tokens=max_new_tokens,
        forced_ids=_forced(forced_ids, config.vocab_size, max_new_tokens),
    )


@torch.no_grad()
def _steps(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: torch.Tensor,
    model_inputs: dict[str, Any],
    *,
    needs: Callable[[], tuple[int, dict[str, int], str]],
    processors: dict[str, Any],
    do_sample: bool,
    generator: torch.Generator | None,
    terminators: set[int],
    max_new_tokens: int,
    forced_ids: list[int],
) -> Iterator[GenerationStep]:
    """The loop. `input_ids [1, length]` grows by one token per step, and `model_inputs` is updated with it."""
    cache = model_inputs["past_key_values"]
    ids, device = input_ids[0].tolist(), str(input_ids.device)
    no_padding = input_ids.new_ones(1, 1)
    for index in range(max_new_tokens):
        with refusing_by_estimate("generate_steps", needs, device):
            # Inputs: first the whole prompt (except what the cache already holds), afterwards one token.
            now = model.prepare_inputs_for_generation(
                input_ids,
                next_sequence_length=1 if index else input_ids.shape[1] - cache.get_seq_length(),
                is_first_iteration=index == 0,
                **model_inputs,
            )
            # The forward pass fills the cache; mask and positions become one longer for the next step.
            with one_at_a_time(model, "generate_steps"):
                outputs = _first_pass(model, now) if index == 0 else model(**now, return_dict=True)
            model_inputs = model._update_model_kwargs_for_generation(outputs, model_inputs, is_encoder_decoder=False)
            if model_inputs["past_key_values"] is not cache:  # Phi-3's new one, where its rotary embedding changes
                cache.layers = model_inputs["past_key_values"].layers
                model_inputs["past_key_values"] = cache
            # Only the last position says what comes next.
            logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)
            del outputs
            # Processors: each takes scores and gives scores.
            scores, processed = logits, {}
            for name, processor in processors.items():
                scores = processor(input_ids, scores)
                processed[name] = scores[0]
            # Scores to probabilities, probabilities to a token. It is read from the device once, since reading waits.
            probabilities = scores.softmax(dim=-1)
            if do_sample:
                _check_numbers(probabilities, logits)
                chosen = torch.multinomial(probabilities, num_samples=1, generator=generator)
            else:
                chosen = scores.argmax(dim=-1, keepdim=True)
            if index < len(forced_ids):
                chosen = torch.full_like(chosen, forced_ids[index])
            ids.append(_read(chosen, probabilities, logits))
            input_ids = torch.cat([input_ids, chosen], dim=-1)
        # Stop?
        stopped_by = "max_new_tokens" if index + 1 == max_new_tokens else None
        stopped_by = "end_of_turn" if ids[-1] in terminators else stopped_by
        kv_length = int(cache.get_seq_length())
        yield GenerationStep(
            index=index,
            input_ids=now["input_ids"],
            position_ids=now.get("position_ids"),
            attention_mask=now.get("attention_mask", no_padding.expand(1, kv_length)),
            kv_length=kv_length,
            logits=logits[0],
            processed=processed,
            probabilities=probabilities[0],
            token_id=ids[-1],
            token=partial(_label, tokenizer, ids[-4:]),
            stopped_by=stopped_by,
        )
        if stopped_by == "end_of_turn":
            return


def _first_pass(model: Any, model_inputs: dict[str, Any]) -> Any:
    """The pass over the prompt. Raises `BadInputError` for a model that needs more than was given, such as a picture;
    errors of a reader's own hooks stay what they are.
    """
    try:
        return model(**model_inputs, return_dict=True)
    except DOES_NOT_RUN as error:
        if isinstance(error, HelpersError) or is_out_of_memory(error) or not is_untouched(model):
            raise
        raise BadInputError(
            f"{type(model).__name__} does not run on this prompt alone ({type(error).__name__}: "
            f"{printable(error, 200)}): give it what else it needs, such as a picture, or load another model."
        ) from error


def _needs(
    model: Any, input_ids: torch.Tensor, new: int, pixel_values: Any, read: bool
) -> tuple[int, dict[str, int], str]:
    """(estimated bytes for a prompt `[1, length]` and `new` more tokens, {a smaller request: its bytes}, what to do if
    none of these fits). `read`: the pictures are in the KV cache already."""
    seen, patch_index = sight_of(model).as_seen(input_ids, pixel_values)
    length = seen.shape[1]
    needed = partial(run_bytes, model, pictures=0 if read or pixel_values is None else len(pixel_values))
    options = {f"max_new_tokens={new // 2}": needed(length, new // 2)} if new > 1 else {}
    otherwise = LESS
    if pixel_values is not None:
        place = getattr(model.config, "image_token_id", -1)
        of_pictures = seen[0] == place if patch_index is None else patch_index >= 0
        options["the prompt without pictures"] = run_bytes(model, length - int(of_pictures.sum()), new)
        smaller = "a smaller picture or " if picture_memory(model.config, 1) is None else ""
        otherwise = f"Use {smaller}a smaller model."
    elif length > 1:
        options[f"a prompt of {length // 2} tokens instead of {length}"] = needed(length // 2, new)
    return needed(length, new), options, otherwise


def _read(chosen, probabilities, logits):
    """The chosen token's id. A single score that is NaN makes every probability NaN: `_check_numbers` then raises.

    Both numbers are read at once, as float32: it holds every whole number up to 2^24, more than any vocabulary has, and
    Apple's GPUs have no float64.
    """
    token_id, probability = torch.cat([chosen.float(), probabilities.gather(-1, chosen).float()]).flatten().tolist()
    if math.isnan(probability):
        _check_numbers(probabilities, logits)
    return int(token_id)


def _label(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The last token's label. Four ids are enough, since no character has more bytes."""
    return token_table(tokenizer, ids)[-1].label


def logits_processors(
    do_sample: bool, temperature: float, top_k: int, top_p: float, repetition_penalty: float
) -> dict[str, Any]:
    """Name -> processor, only those in use, in the order of `GenerationMixin._get_logits_processor`.

    >>> list(logits_processors(True, temperature=0.7, top_k=50, top_p=1.0, repetition_penalty=1.0))
    ['temperature', 'top_k']
    """
    processors = {}
    if repetition_penalty != 1:
        processors["repetition_penalty"] = RepetitionPenaltyLogitsProcessor(float(repetition_penalty))
    if do_sample and temperature != 1:
        processors["temperature"] = TemperatureLogitsWarper(float(temperature))
    if do_sample and top_k > 0:
        processors["top_k"] = TopKLogitsWarper(int(top_k))
    if do_sample and top_p < 1:
        processors["top_p"] = TopPLogitsWarper(float(top_p))
    return processors


def _terminators(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, eos_token_id: int | Sequence[int] | None
) -> set[int]:
    """The ids that end the answer, as a set."""
    if eos_token_id is None:
        return set(terminator_ids(tokenizer, model))
    eos_token_id = checks.plain("eos_token_id", eos_token_id)
    ids = eos_token_id if isinstance(eos_token_id, list | tuple | set) else [eos_token_id]
    if not all(_is_whole(i) for i in ids):
        raise BadInputError(
            f"eos_token_id is a token id or a list of them, not {checks.shown(eos_token_id)}; "
            "tokenizer.convert_tokens_to_ids(...) gives a token's id."
        )
    return set(ids)


def _forced(forced_ids: Any, vocab_size: int, max_new_tokens: int) -> list[int]:
    """`forced_ids` as a list of int, checked."""
    ids = checks.plain("forced_ids", forced_ids.reshape(-1) if isinstance(forced_ids, torch.Tensor) else forced_ids)
    if not isinstance(ids, list | tuple) or not all(_is_whole(i) and 0 <= i < vocab_size for i in ids):
        raise BadInputError(f"forced_ids are token ids from 0 to {vocab_size - 1}, not {checks.shown(forced_ids)}.")
    if len(ids) > max_new_tokens:
        raise BadInputError(
            f"{len(ids)} forced_ids do not fit into max_new_tokens={max_new_tokens}: they count as new tokens, so "
            "raise it."
        )
    return [int(i) for i in ids]


def _first_model_inputs(
    model: Any, input_ids: torch.Tensor, given: dict[str, Any], max_new_tokens: int
) -> dict[str, Any]:
    """What the first step needs besides `input_ids`: mask, positions, cache, and what the caller gave."""
    takes = inspect.signature(model.forward).parameters
    given = {name: value for name, value in given.items() if value is not None}
    for name in ("attention_mask", "position_ids"):
        if name in given:
            checks.for_each_token(name, given[name], input_ids.shape[1])
    model_inputs = {
        "attention_mask": torch.ones_like(input_ids),
        "past_key_values": DynamicCache(config=model.config.get_text_config(decoder=True)),
        "use_cache": True,
        **given,
    }
    if "position_ids" in takes and "position_ids" not in given:
        model_inputs["position_ids"] = model._prepare_position_ids_for_generation(input_ids, model_inputs)
    if "logits_to_keep" in takes:
        model_inputs["logits_to_keep"] = 1  # lm_head at the last position only
    _check_cache(model, input_ids, model_inputs, max_new_tokens)
    if _mask_says_nothing(model, model_inputs):
        del model_inputs["attention_mask"]
    return model_inputs


def _mask_says_nothing(model: Any, model_inputs: dict[str, Any]) -> bool:
    """Whether `generate` would drop the mask because it is all ones, which allows a faster attention kernel."""
    fixed = isinstance(model_inputs["past_key_values"], StaticCache)
    unpads = is_flash_attention_requested(model.config) and fixed
    return not unpads and bool((model_inputs["attention_mask"] == 1).all())


def _check_model(model: PreTrainedModel, model_inputs: dict[str, Any]) -> None:
    checks.language_model("model", model)
    takes = inspect.signature(model.forward).parameters
    causal = hasattr(model, "can_generate") and model.can_generate() and not model.config.is_encoder_decoder
    if not causal or "past_key_values" not in takes:
        raise BadInputError(
            f"{type(model).__name__} cannot continue a text token by token with a KV cache: "
            "load a causal language model, for example load_model('smollm2-135m')."
        )
    if not getattr(type(model), "_supports_default_dynamic_cache", lambda: True)():
        raise BadInputError(
            f"{type(model).__name__} keeps a cache of its own kind in place of a KV cache, which generate_steps "
            "cannot follow: use model.generate(...) to continue a text with it."
        )
    unknown = [name for name in model_inputs if name not in takes or name in NOT_FOR_READERS]
    if unknown:
        parameters = inspect.signature(generate_steps).parameters.values()
        settings = ", ".join(p.name for p in parameters if p.kind == p.KEYWORD_ONLY)
        raise BadInputError(
            f"generate_steps has no setting {unknown[0]!r}, and it is not an input of {type(model).__name__}.forward "
            f"that can be passed on. The settings are {settings}."
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and checks.is_finite(value)


def check_settings(
    max_new_tokens: Any, do_sample: Any, temperature: Any, top_k: Any, top_p: Any, repetition_penalty: Any, seed: Any
) -> None:
    """Raises `BadInputError` for the first setting that cannot work."""
    if not _is_whole(max_new_tokens) or max_new_tokens < 1:
        raise BadInputError(f"max_new_tokens must be a whole number of at least 1, not {checks.shown(max_new_tokens)}.")
    if not isinstance(do_sample, bool):
        raise BadInputError(f"do_sample must be True or False, not {checks.shown(do_sample)}.")
    if not _is_number(temperature) or temperature < SMALLEST_TEMPERATURE:
        raise BadInputError(
            f"temperature divides the logits, so it has to be above 0 (at least {SMALLEST_TEMPERATURE:g}), "
            f"not {checks.shown(temperature)}. For the most likely token every time use ",
            Setting("do_sample", False),
            ".",
        )
    if not _is_whole(top_k) or top_k < 0:
        raise BadInputError(f"top_k is how many tokens to keep, 0 for all; it cannot be {checks.shown(top_k)}.")
    if not _is_number(top_p) or not 0 < top_p <= 1:
        raise BadInputError(
            f"top_p is the probability to keep, above 0 and up to 1 for all, not {checks.shown(top_p)}."
        )
    if not _is_number(repetition_penalty) or repetition_penalty <= 0:
        raise BadInputError(
            f"repetition_penalty is above 0 (1 changes nothing, 1.1 is mild), not {checks.shown(repetition_penalty)}."
        )
    if seed is not None and (not _is_whole(seed) or not 0 <= seed < 2**64):
        raise BadInputError(f"seed must be a whole number of at least 0, or None, not {checks.shown(seed)}.")
    idle = {"temperature": temperature != 1, "top_k": top_k > 0, "top_p": top_p < 1}
    if not do_sample and any(idle.values()):
        names = ", ".join(name for name, given in idle.items() if given)
        warnings.warn(
            f"{names}: no effect while do_sample=False takes the most likely token. do_sample=True samples.",
            stacklevel=3,
        )


def _check_length(length: int, max_new_tokens: int, context: int | None) -> None:
    if context is not None and length + max_new_tokens > context:
        left = f", or use max_new_tokens={context - length}" if length < context else ""
        raise PromptTooLongError(
            f"The prompt is {length} tokens long and max_new_tokens is {max_new_tokens}: together more than "
            f"the model's context of {context}. Shorten the prompt by {length + max_new_tokens - context} "
            f"tokens{left}."
        )


def _check_cache(model: PreTrainedModel, input_ids: Tensor, model_inputs: dict[str, Any], max_new_tokens: int) -> None:
    """Check that a given cache holds the beginning of the prompt, a picture's patches included, but not all of it."""
    cache, length = model_inputs["past_key_values"], input_ids.shape[1]
    seen = sight_of(model).as_seen(input_ids, model_inputs.get("pixel_values"))[0].shape[1]
    check_cache(cache, model, seen + max_new_tokens - 1)
    cached = int(cache.get_seq_length())
    if cached == 0:
        return
    rest = model.prepare_inputs_for_generation(
        input_ids, next_sequence_length=length - cached, is_first_iteration=True, **model_inputs
    )
    if rest.get("past_key_values") is not cache:
        return  # the model reads the whole prompt afresh
    mask = rest.get("attention_mask")
    if getattr(mask, "ndim", 0) == 2:  # counts a picture's patches in the cache; masks of fixed-size caches differ
        seen = mask.shape[1]
    if cached + rest["input_ids"].shape[1] != seen:
        raise BadInputError(
            f"past_key_values already holds {cached} positions and the prompt has {length} tokens: "
            "give the whole prompt, that is, what the cache holds and at least one more token."
        )
    check_reading_on(model, cached, rest["input_ids"].shape[1])


def _check_numbers(probabilities, logits):
    if probabilities.isnan().any():
        check_scores(logits)
        raise BadInputError(
            "The scores of the next token are no longer numbers once they are processed. A temperature or "
            "repetition_penalty far from 1 can do that: choose a value closer to 1."
        )


def check_scores(logits: torch.Tensor) -> None:
    """Raises `NotANumberError` if a model's scores are NaN or infinite, before they are used.

    >>> check_scores(torch.tensor([0.5, -torch.inf]))  # -inf is allowed: it rules a token out
    """
    if (logits.isnan() | logits.isposinf()).any():
        raise NotANumberError(
            "The model's own scores for the next token are no longer numbers (NaN or infinite). Its weights are "
            "damaged, or large values overflow, as they do in float16: download its files again, or load it with ",
            Setting("dtype", "bfloat16"),
            " or ",
            Setting("dtype", "float32"),
            ".",
        )
