"""`generate_steps` is `model.generate`, opened up: same tokens, and every record is what it says."""

import contextlib
import warnings

import pytest
import torch
from glm_fixtures import CHAT, VISION, glm, glm_tokenizer, golden, model_inputs, one_thread
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma3TextConfig,
    GlmConfig,
    GPT2Config,
    LlamaConfig,
    LlamaModel,
    StaticCache,
)

from helpers.errors import BadInputError, DoesNotFitError, PromptTooLongError
from helpers.inside.generation import GenerationStep, generate_steps
from helpers.text.prompts import load_prompts, render_chat

PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
WALKTHROUGH = {"temperature": 0.2, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1}
ALONE = [{name: value} for name, value in WALKTHROUGH.items()]


def prompts_as_ids(tokenizer):
    """At least 20 prompts, English and Chinese, from one token to 500."""
    texts = [*load_prompts("english"), *load_prompts("chinese")]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    long = tokenizer(" ".join(load_prompts("english")) + "".join(load_prompts("chinese")))["input_ids"] * 5
    chosen = [ids[0][:1], *ids[:10], *ids[-10:], long[:120], long[:500]]
    assert len(chosen) >= 20
    assert {len(c) for c in chosen} >= {1, 500}
    return chosen


def generated(model, ids, *, seed=None, **settings):
    """What `model.generate` gives: new ids, raw logits and final scores of each step."""
    ids = torch.as_tensor(ids).reshape(1, -1)
    if seed is not None:
        torch.manual_seed(seed)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
        **settings,
    )
    return out.sequences[0, ids.shape[1] :].tolist(), [x[0] for x in out.logits], [x[0] for x in out.scores]


def assert_same(steps, expected):
    ids, logits, scores = expected
    assert [step.token_id for step in steps] == ids
    for step, raw, final in zip(steps, logits, scores, strict=True):
        assert torch.equal(step.logits, raw)
        assert torch.equal(([step.logits, *step.processed.values()])[-1], final)


def tiny(config_class, tokenizer, **settings):
    """An untrained model with the tokenizer's vocabulary, its distributions peaked enough to matter."""
    torch.manual_seed(0)
    config = config_class(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "max_position_embeddings": 1024,
            "initializer_range": 0.4,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            **settings,
        }
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def tiny_llama(tokenizer):
    return tiny(LlamaConfig, tokenizer)


@pytest.fixture(autouse=True)
def few_threads(request):
    """The tiny model is faster on one thread."""
    with one_thread() if "tiny_llama" in request.fixturenames else contextlib.nullcontext():
        yield


# ---------------------------------------------------------------- the same tokens as generate


def test_greedy_equals_generate(model, tokenizer):
    for ids in prompts_as_ids(tokenizer):
        steps = list(generate_steps(model, tokenizer, ids, max_new_tokens=2))
        assert_same(steps, generated(model, ids, max_new_tokens=2, do_sample=False))


def test_sampled_with_the_walkthroughs_settings_equals_generate(model, tokenizer):
    for seed, ids in enumerate(prompts_as_ids(tokenizer)[::2]):  # the tiny model gets them all
        settings = {"max_new_tokens": 2, "do_sample": True, "seed": seed, **WALKTHROUGH}
        assert_same(
            list(generate_steps(model, tokenizer, ids, **settings)),
            generated(model, ids, **settings),
        )


@pytest.mark.parametrize("setting", [{}, *ALONE], ids=lambda setting: next(iter(setting), "plain"))
def test_each_setting_alone_equals_generate(model, tokenizer, setting):
    for seed, ids in enumerate(prompts_as_ids(tokenizer)[1:4]):
        steps = list(generate_steps(model, tokenizer, ids, max_new_tokens=5, do_sample=True, seed=seed, **setting))
        assert_same(
            steps,
            generated(model, ids, max_new_tokens=5, do_sample=True, seed=seed, **(PLAIN | setting)),
        )


@pytest.mark.parametrize("setting", [{}, *ALONE, WALKTHROUGH], ids=lambda s: "+".join(s) or "plain")
def test_every_setting_on_every_prompt_sampled(tiny_llama, tokenizer, setting):
    for seed, ids in enumerate(prompts_as_ids(tokenizer)):
        given = {"max_new_tokens": 4, "do_sample": True, "seed": seed}
        steps = generate_steps(tiny_llama, tokenizer, ids, **given, **setting)
        assert_same(list(steps), generated(tiny_llama, ids, **given, **(PLAIN | setting)))


@pytest.mark.parametrize("setting", [{}, {"repetition_penalty": 1.1}], ids=lambda s: "+".join(s) or "plain")
def test_every_prompt_greedy(tiny_llama, tokenizer, setting):
    for ids in prompts_as_ids(tokenizer):
        steps = generate_steps(tiny_llama, tokenizer, ids, max_new_tokens=6, **setting)
        assert_same(list(steps), generated(tiny_llama, ids, max_new_tokens=6, do_sample=False, **setting))


@pytest.mark.parametrize(
    ("config_class", "settings"),
    [
        (GlmConfig, {"partial_rotary_factor": 0.5}),
        (GPT2Config, {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 1024}),
        (Gemma3TextConfig, {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_other_architectures_equal_generate(tokenizer, config_class, settings):
    other = tiny(config_class, tokenizer, **settings)
    ids = prompts_as_ids(tokenizer)[-2]
    sampled = {"max_new_tokens": 24, "do_sample": True, "seed": 5, **WALKTHROUGH}
    assert_same(list(generate_steps(other, tokenizer, ids, **sampled)), generated(other, ids, **sampled))
    steps = list(generate_steps(other, tokenizer, ids, max_new_tokens=24))
    assert_same(steps, generated(other, ids, max_new_tokens=24, do_sample=False))
    assert [step.kv_length for step in steps] == [len(ids) + index for index in range(len(steps))]


def test_scores_are_float32_for_a_bfloat16_model(tokenizer):
    small = tiny(LlamaConfig, tokenizer).to(torch.bfloat16)
    steps = list(generate_steps(small, tokenizer, "Hello", max_new_tokens=5))
    assert steps[0].logits.dtype == torch.float32
    assert_same(steps, generated(small, tokenizer("Hello")["input_ids"], max_new_tokens=5, do_sample=False))


def test_a_rendered_chat_is_a_prompt(model, tokenizer):
    chat = render_chat(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    steps = list(generate_steps(model, tokenizer, chat, max_new_tokens=30))
    assert_same(steps, generated(model, chat.input_ids, max_new_tokens=30, do_sample=False))
    assert steps[-1].stopped_by == "end_of_turn"
    assert steps[-1].token_id == tokenizer.eos_token_id
    assert "Paris" in tokenizer.decode([step.token_id for step in steps])


# ---------------------------------------------------------------- what went in


def test_records_show_what_the_model_was_given(model, tokenizer):
    seen = []

    def remember(module, args, kwargs):
        assert kwargs.get("attention_mask") is None, "generate leaves a mask of ones away, too"
        seen.append({name: kwargs[name] for name in ("input_ids", "position_ids")})

    handle = model.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        steps = list(generate_steps(model, tokenizer, "The capital of France is", max_new_tokens=4))
    finally:
        handle.remove()
    length = len(tokenizer("The capital of France is")["input_ids"])
    for index, (step, given) in enumerate(zip(steps, seen, strict=True)):
        assert step.index == index
        for name, value in given.items():
            assert torch.equal(getattr(step, name), value), name
        first = index == 0
        assert step.input_ids.shape == (1, length if first else 1)
        assert step.position_ids.tolist() == [list(range(length))] if first else [[length + index - 1]]
        assert step.attention_mask.tolist() == [[1] * (length + index)]
        assert step.kv_length == length + index
        if not first:
            assert step.input_ids.item() == steps[index - 1].token_id


def test_a_given_cache_is_used_and_grows(model, tokenizer):
    ids = tokenizer("The capital of France is Paris. The capital of Italy is")["input_ids"]
    plain = list(generate_steps(model, tokenizer, ids, max_new_tokens=4))
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor([ids[:7]]), past_key_values=cache)
    steps = list(generate_steps(model, tokenizer, ids, max_new_tokens=4, past_key_values=cache))
    assert [step.token_id for step in steps] == [step.token_id for step in plain]
    assert steps[0].input_ids.tolist() == [ids[7:]]
    assert steps[0].position_ids.tolist() == [list(range(7, len(ids)))]
    assert cache.get_seq_length() == steps[-1].kv_length == len(ids) + 3
    with pytest.raises(BadInputError, match="already holds"):
        generate_steps(model, tokenizer, ids, past_key_values=cache)


def test_given_positions_go_on_from_the_last(model, tokenizer):
    ids = tokenizer("The capital of France is")["input_ids"]
    positions = torch.tensor([[0, 1, 1, 1, 2]])  # as with a picture, whose patches share a position
    settings = {"max_new_tokens": 4, "position_ids": positions}
    steps = list(generate_steps(model, tokenizer, ids, **settings))
    assert [step.position_ids.tolist() for step in steps] == [positions.tolist(), [[3]], [[4]], [[5]]]
    assert_same(steps, generated(model, ids, do_sample=False, **settings))


@pytest.mark.parametrize("name", [CHAT, VISION])
def test_glm_and_a_picture(name):
    """GLM-4, and GLM-4V, whose one placeholder becomes many patches in the cache."""
    model, tokenizer = glm(name), glm_tokenizer(name)
    for record in golden(name)["greedy"]:
        inputs = model_inputs(name, [record["conversation"]])
        picture = {key: inputs[key] for key in ("pixel_values",) if key in inputs}
        prompt, new_ids = inputs["input_ids"], record["new_ids"]
        steps = list(generate_steps(model, tokenizer, prompt, max_new_tokens=len(new_ids), **picture))
        assert [step.token_id for step in steps] == new_ids
        assert_same(steps, generated(model, prompt, max_new_tokens=len(new_ids), do_sample=False, **picture))
        patches = steps[0].input_ids.shape[1] - prompt.shape[1]
        assert (patches > 0) == bool(picture)
        for step in steps:
            assert step.attention_mask.shape == (1, step.kv_length)
            assert step.kv_length == prompt.shape[1] + patches + step.index
            assert step.position_ids.shape == step.input_ids.shape
        assert [step.position_ids.item() for step in steps[1:3]] == [prompt.shape[1], prompt.shape[1] + 1]


def test_a_cache_that_holds_a_picture_is_used():
    model, tokenizer = glm(VISION), glm_tokenizer(VISION)
    record = next(r for r in golden(VISION)["greedy"] if any("image" in m for m in r["conversation"]))
    inputs = model_inputs(VISION, [record["conversation"]])
    cache = DynamicCache(config=model.config)
    given = {"pixel_values": inputs["pixel_values"], "past_key_values": cache}
    first = list(generate_steps(model, tokenizer, inputs["input_ids"], max_new_tokens=3, **given))
    longer = torch.cat([inputs["input_ids"], torch.tensor([[step.token_id for step in first]])], dim=1)
    (step,) = generate_steps(model, tokenizer, longer, max_new_tokens=1, past_key_values=cache)
    assert step.input_ids.tolist() == [[first[-1].token_id]]
    assert step.token_id == record["new_ids"][3]
    with pytest.raises(BadInputError, match="already holds"):
        generate_steps(model, tokenizer, longer, past_key_values=cache)


# ---------------------------------------------------------------- scores, probabilities, choice


def test_processors_by_name_in_order_and_equal_to_their_formulas(model, tokenizer):
    ids = tokenizer("The capital of France is the capital of")["input_ids"]
    step = next(generate_steps(model, tokenizer, ids, do_sample=True, seed=0, max_new_tokens=1, **WALKTHROUGH))
    assert list(step.processed) == ["repetition_penalty", "temperature", "top_k", "top_p"]
    penalized = step.logits.clone()
    for token_id in set(ids):
        penalized[token_id] = penalized[token_id] / 1.1 if penalized[token_id] > 0 else penalized[token_id] * 1.1
    assert torch.allclose(step.processed["repetition_penalty"], penalized)
    assert torch.allclose(step.processed["temperature"], penalized / 0.2)
    kept = step.processed["top_k"].isfinite().nonzero().flatten()
    assert set(kept.tolist()) == set((penalized / 0.2).topk(40).indices.tolist())
    probabilities, order = step.processed["top_k"].softmax(0).sort(descending=True)
    needed = int((probabilities.cumsum(0) < 0.9).sum()) + 1  # the fewest that hold 90%
    assert set(step.processed["top_p"].isfinite().nonzero().flatten().tolist()) == set(order[:needed].tolist())
    assert torch.allclose(step.probabilities, step.processed["top_p"].softmax(0))
    assert step.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert step.logits.shape == step.probabilities.shape == (model.config.vocab_size,)


def test_greedy_takes_the_largest_logit_and_has_no_processors(model, tokenizer):
    for step in generate_steps(model, tokenizer, "Why is the sky blue?", max_new_tokens=3):
        assert step.processed == {}
        assert step.token_id == int(step.logits.argmax())
        assert torch.equal(step.probabilities, step.logits.softmax(0))


def test_settings_without_effect_are_said(tiny_llama, tokenizer):
    with pytest.warns(UserWarning, match="temperature, top_k: no effect"):
        steps = list(generate_steps(tiny_llama, tokenizer, "Hi", temperature=0.2, top_k=3, max_new_tokens=2))
    assert steps[0].processed == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(generate_steps(tiny_llama, tokenizer, "Hi", repetition_penalty=1.1, max_new_tokens=2))


def test_tokens_have_readable_labels(model, tokenizer):
    ids = tokenizer(" 今 day", add_special_tokens=False)["input_ids"]
    steps = list(generate_steps(model, tokenizer, "Hello", forced_ids=ids, max_new_tokens=len(ids)))
    assert steps[-1].token == "·day"
    assert steps[-2].token == "今 2/2"  # the token that completes a character is shown as its part


def test_a_step_shows_itself_briefly(tiny_llama, tokenizer):
    step = next(generate_steps(tiny_llama, tokenizer, "Hi", do_sample=True, top_k=5, seed=0, max_new_tokens=1))
    assert isinstance(step, GenerationStep)
    assert f"token_id={step.token_id}" in repr(step)
    assert "top_k" in repr(step)
    assert len(repr(step)) < 500


# ---------------------------------------------------------------- stopping


def test_stops_at_length(tiny_llama, tokenizer):
    steps = list(generate_steps(tiny_llama, tokenizer, "Hello", max_new_tokens=3, eos_token_id=[]))
    assert [step.stopped_by for step in steps] == [None, None, "max_new_tokens"]


def test_stops_at_one_or_several_terminators(tiny_llama, tokenizer):
    ids = tokenizer("Hello")["input_ids"]
    free = [s.token_id for s in generate_steps(tiny_llama, tokenizer, ids, max_new_tokens=12, eos_token_id=[])]
    terminator = next(i for i in free[3:] if free.index(i) >= 3)
    where = free.index(terminator)
    for terminators in (terminator, [terminator], [49000, terminator], torch.tensor([terminator, 49000])):
        steps = list(generate_steps(tiny_llama, tokenizer, ids, max_new_tokens=12, eos_token_id=terminators))
        assert [step.stopped_by for step in steps] == [None] * where + ["end_of_turn"]
        assert steps[-1].token_id == terminator
        expected = generated(tiny_llama, ids, max_new_tokens=12, do_sample=False, eos_token_id=terminators)
        assert_same(steps, expected)
    # at the last position allowed, the end of the turn is the reason
    steps = list(generate_steps(tiny_llama, tokenizer, ids, max_new_tokens=where + 1, eos_token_id=terminator))
    assert steps[-1].stopped_by == "end_of_turn"


def test_terminators_come_from_the_generation_config(tiny_llama, tokenizer):
    free = [s.token_id for s in generate_steps(tiny_llama, tokenizer, "Hello", max_new_tokens=3, eos_token_id=[])]
    before = tiny_llama.generation_config.eos_token_id
    try:
        for terminators in (free[0], [49000, free[0]]):
            tiny_llama.generation_config.eos_token_id = terminators
            steps = list(generate_steps(tiny_llama, tokenizer, "Hello", max_new_tokens=3))
            assert [step.stopped_by for step in steps] == ["end_of_turn"]
        tiny_llama.generation_config.eos_token_id = None
        assert len(list(generate_steps(tiny_llama, tokenizer, "Hello", max_new_tokens=3))) == 3
    finally:
        tiny_llama.generation_config.eos_token_id = before


# ---------------------------------------------------------------- randomness and branching

SAMPLED = {"do_sample": True, "top_k": 50, "max_new_tokens": 8, "eos_token_id": []}


def test_a_seed_leaves_the_global_random_state_alone(tiny_llama, tokenizer):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    undisturbed = [s.token_id for s in generate_steps(tiny_llama, tokenizer, "Hello", seed=1, **SAMPLED)]
    assert torch.equal(torch.get_rng_state(), before)
    tokens = []
    for step in generate_steps(tiny_llama, tokenizer, "Hello", seed=1, **SAMPLED):
        torch.rand(7)  # what a reader draws in between changes nothing
        tokens.append(step.token_id)
    assert tokens == undisturbed
    other = [s.token_id for s in generate_steps(tiny_llama, tokenizer, "Hello", seed=2, **SAMPLED)]
    assert other != undisturbed


def test_without_a_seed_the_global_random_state_is_used(tiny_llama, tokenizer):
    torch.manual_seed(9)
    steps = list(generate_steps(tiny_llama, tokenizer, "Hello", **SAMPLED))
    expected = generated(
        tiny_llama,
        tokenizer("Hello")["input_ids"],
        seed=9,
        do_sample=True,
        max_new_tokens=8,
        **(PLAIN | {"top_k": 50}),
        eos_token_id=49000,
    )
    assert_same(steps, expected)


def test_forcing_what_was_chosen_changes_nothing(tiny_llama, tokenizer):
    whole = list(generate_steps(tiny_llama, tokenizer, "Hello", seed=1, **SAMPLED))
    ids = [step.token_id for step in whole]
    for k in (1, 4, 8):
        again = list(generate_steps(tiny_llama, tokenizer, "Hello", seed=1, forced_ids=ids[:k], **SAMPLED))
        assert [step.token_id for step in again] == ids
        assert all(torch.equal(a.logits, b.logits) for a, b in zip(again, whole, strict=True))


@pytest.mark.parametrize("settings", [SAMPLED, {"max_new_tokens": 8, "repetition_penalty": 1.3}])
def test_a_branch_takes_another_token_and_goes_on_from_there(tiny_llama, tokenizer, settings):
    whole = list(generate_steps(tiny_llama, tokenizer, "Hello", seed=1, **settings))
    other = int(whole[3].probabilities.topk(2).indices[-1])
    forced = [*(step.token_id for step in whole[:3]), other]
    branch = list(generate_steps(tiny_llama, tokenizer, "Hello", seed=1, forced_ids=forced, **settings))
    assert [step.token_id for step in branch[:4]] == forced
    assert torch.equal(branch[3].probabilities, whole[3].probabilities)  # what it would have chosen from
    assert branch[4].input_ids.tolist() == [[other]]
    assert len(branch) == 8
    longer = torch.tensor([tokenizer("Hello")["input_ids"] + forced])
    straight = next(generate_steps(tiny_llama, tokenizer, longer, **(settings | {"max_new_tokens": 1}), seed=1))
    assert torch.allclose(branch[4].logits, straight.logits, atol=1e-4)


def test_a_forced_terminator_stops(tiny_llama, tokenizer):
    steps = list(generate_steps(tiny_llama, tokenizer, "Hello", forced_ids=[40, 2], max_new_tokens=5))
    assert [step.token_id for step in steps] == [40, 2]
    assert steps[-1].stopped_by == "end_of_turn"


def test_stepping_leaves_gradients_as_they_were(tiny_llama, tokenizer):
    for step in generate_steps(tiny_llama, tokenizer, "Hello", max_new_tokens=2):
        assert torch.is_grad_enabled()
        assert not step.logits.requires_grad
        (step.logits * torch.ones(1, requires_grad=True)).sum().backward()  # plain tensors, fit for anything


# ---------------------------------------------------------------- what cannot work


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens.*at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"do_sample": "yes"}, "do_sample"),
        ({"temperature": 0}, "do_sample=False"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e-30}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2.0}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": None}, "top_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"eos_token_id": "<|im_end|>"}, "convert_tokens_to_ids"),
        ({"eos_token_id": [2, None]}, "eos_token_id"),
        ({"forced_ids": [49152]}, "from 0 to 49151"),
        ({"forced_ids": "Paris"}, "forced_ids"),
        ({"forced_ids": [1, 2, 3], "max_new_tokens": 2}, "do not fit"),
        ({"max_tokens": 5}, "no setting 'max_tokens'.*max_new_tokens"),
    ],
)
def test_settings_that_cannot_work_are_named_at_once(model, tokenizer, settings, message):
    with pytest.raises(BadInputError, match=message):
        generate_steps(model, tokenizer, "Hello", **settings)  # not when the first step is asked for


def test_whole_numbers_will_do_for_settings(tiny_llama, tokenizer):
    steps = generate_steps(
        tiny_llama,
        tokenizer,
        "Hello",
        do_sample=True,
        temperature=2,
        top_p=1,
        repetition_penalty=2,
        top_k=10**6,  # more than there are
        seed=0,
        max_new_tokens=2,
    )
    assert list(next(steps).processed) == ["repetition_penalty", "temperature", "top_k"]


def test_prompt_and_answer_must_fit_the_context(model, tokenizer):
    context = model.config.max_position_embeddings
    with pytest.raises(PromptTooLongError, match=r"by 54 tokens, or use max_new_tokens=10"):
        generate_steps(model, tokenizer, [40] * (context - 10))
    with pytest.raises(PromptTooLongError, match=r"Shorten the prompt by 1 tokens\.$"):
        generate_steps(model, tokenizer, [40] * context, max_new_tokens=1)
    with pytest.raises(PromptTooLongError, match=str(context + 1)):
        generate_steps(model, tokenizer, [40] * (context + 1), max_new_tokens=1)


def test_the_context_can_be_filled_to_the_last_position(tokenizer):
    short = tiny(LlamaConfig, tokenizer, max_position_embeddings=16)
    steps = list(generate_steps(short, tokenizer, [40] * 6, max_new_tokens=10, eos_token_id=[]))
    assert len(steps) == 10


def test_prompts_that_cannot_work(model, tokenizer):
    for prompt in ("", [], [49152], torch.ones(2, 3, dtype=torch.long), None):
        with pytest.raises(BadInputError):
            generate_steps(model, tokenizer, prompt)


def test_a_model_without_a_head_is_named(tokenizer):
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(BadInputError, match="LlamaModel cannot continue"):
        generate_steps(LlamaModel(config), tokenizer, "Hello")


@pytest.mark.parametrize("do_sample", [False, True])
def test_scores_that_are_no_numbers_are_an_error_in_words(tokenizer, do_sample):
    broken = tiny(LlamaConfig, tokenizer)
    broken.lm_head.weight.data[7] = float("nan")
    with pytest.raises(BadInputError, match="no longer numbers"):
        next(generate_steps(broken, tokenizer, "Hello", do_sample=do_sample))


def test_a_static_cache_gives_the_same_steps(model, tokenizer):
    ids = tokenizer("The capital of France is Paris and")["input_ids"]
    expected = [step.token_id for step in generate_steps(model, tokenizer, ids, max_new_tokens=3)]
    cache = StaticCache(config=model.config, max_cache_len=len(ids) + 2)
    steps = list(generate_steps(model, tokenizer, ids, max_new_tokens=3, past_key_values=cache))
    assert [step.token_id for step in steps] == expected
    assert [step.kv_length for step in steps] == [len(ids), len(ids) + 1, len(ids) + 2]
    roomy = StaticCache(config=model.config, max_cache_len=40)
    list(generate_steps(model, tokenizer, ids, max_new_tokens=3, past_key_values=roomy))
    with pytest.raises(BadInputError, match="already holds"):  # these ids were run again, after their own answer
        generate_steps(model, tokenizer, ids, max_new_tokens=3, past_key_values=roomy)


def test_a_static_cache_that_is_too_short_says_how_long_it_has_to_be(model, tokenizer):
    cache = StaticCache(config=model.config, max_cache_len=8)
    with pytest.raises(BadInputError, match=r"room for 8 positions.*need 14"):
        generate_steps(model, tokenizer, [5] * 9, max_new_tokens=6, past_key_values=cache)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"past_key_values": ()}, "is a Cache of transformers"),
        ({"past_key_values": 5}, "not 5"),
        ({"attention_mask": "x"}, "attention_mask must have a whole number for each"),
        ({"attention_mask": torch.ones(1, 2)}, "attention_mask must have"),
        ({"attention_mask": torch.ones(1, 2, dtype=torch.long)}, r"a tensor \[1, 2\]"),
        ({"position_ids": 5}, "position_ids must have"),
        ({"position_ids": torch.tensor([1, 2])}, "position_ids must have"),
        ({"input_ids": torch.ones(1, 1)}, "no setting 'input_ids'"),
        ({"inputs_embeds": 5}, "no setting 'inputs_embeds'"),
    ],
)
def test_inputs_of_the_wrong_kind_are_named(model, tokenizer, given, says):
    with pytest.raises(BadInputError, match=says):
        generate_steps(model, tokenizer, [5, 6, 7], max_new_tokens=2, **given)


def test_inputs_that_are_none_are_as_if_not_given(model, tokenizer):
    none = dict.fromkeys(("attention_mask", "position_ids", "past_key_values"))
    (step,) = generate_steps(model, tokenizer, [5, 6, 7], max_new_tokens=1, **none)
    (same,) = generate_steps(model, tokenizer, [5, 6, 7], max_new_tokens=1)
    assert step.token_id == same.token_id


@pytest.mark.parametrize("wrong", [None, "smollm2-135m", 5])
def test_what_is_no_model_is_named(tokenizer, wrong):
    with pytest.raises(BadInputError, match="model must be what load_model returns"):
        generate_steps(wrong, tokenizer, "hi")


def test_memory_that_runs_out_is_said_and_the_model_goes_on(model, tokenizer, monkeypatch):
    def answer():
        return generate_steps(model, tokenizer, "The capital of France is", max_new_tokens=4)

    expected = [step.token_id for step in answer()]
    forward, calls = model.model.layers[3].mlp.forward, []

    def third_time_full(states):
        calls.append(states)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(states)

    with monkeypatch.context() as patch:
        patch.setattr(model.model.layers[3].mlp, "forward", third_time_full)
        steps = answer()
        assert [next(steps).token_id, next(steps).token_id] == expected[:2]
        with pytest.raises(DoesNotFitError, match="generate_steps ran out of memory on cpu") as error:
            next(steps)
    assert error.value.needed_bytes > 0 and "max_new_tokens=2" in error.value.would_fit
    assert [step.token_id for step in answer()] == expected
