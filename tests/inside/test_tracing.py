"""`trace` gives what transformers gives, holds nothing twice, stops early, and leaves no mark on the model."""

import signal
import sys
from contextlib import contextmanager

import pytest
import tiny_sizes
import torch
from marks import marks
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import (
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    StaticCache,
)

from helpers.errors import BadInputError, PromptTooLongError
from helpers.inside import anatomy, tracing
from helpers.inside.generation import generate_steps
from helpers.inside.interventions import patch_hidden_state, skip_layer, steer
from helpers.inside.tracing import BLOCK, Trace, trace
from helpers.models.loading import load_model
from helpers.text.prompts import render_chat

SIZES = tiny_sizes.SIZES | {"max_position_embeddings": 400}
KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama, no groups": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4}),
    "glm": (GlmForCausalLM, GlmConfig, {}),
    "mistral, sliding window": (MistralForCausalLM, MistralConfig, {"sliding_window": 5}),
    "gemma2, softcap": (Gemma2ForCausalLM, Gemma2Config, {"sliding_window": 6, "query_pre_attn_scalar": 8}),
}
PROMPTS = ["The capital of France is", "为什么要减少污染，保护环境？"]


def Letters():
    """A tokenizer of 64 characters, for models made up here."""
    letters = BPE(vocab={chr(token_id + 48): token_id for token_id in range(64)}, merges=[])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(letters))


def tiny(kind, implementation="sdpa", **changes):
    model_class, config_class, more = KINDS[kind]
    torch.manual_seed(0)
    config = config_class(**(SIZES | more | changes), attn_implementation=implementation)
    return model_class(config).eval().requires_grad_(False)


def random_ids(length, seed=0):
    return torch.randint(1, 63, (1, length), generator=torch.Generator().manual_seed(seed))


def by_library(model, ids, **inputs):
    """Hidden states, attentions and logits as transformers gives them in eager attention."""
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            given = model(ids, output_hidden_states=True, output_attentions=True, **inputs)
    finally:
        model.set_attn_implementation(own)
    return torch.stack(given.hidden_states)[:, 0], torch.stack(given.attentions)[:, 0], given.logits[0]


# --- equal to transformers ---


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def library_model(request):
    """The default model once more: asked for hidden states, transformers puts hooks on a model for good."""
    return load_model("smollm2-135m", device="cpu", attn_implementation=request.param)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_it_is_what_transformers_gives(model, tokenizer, library_model, prompt):
    result = trace(model, tokenizer, prompt)
    eager = library_model.config._attn_implementation == "eager"
    with torch.no_grad():
        given = library_model(result.input_ids, output_hidden_states=True, output_attentions=eager)
    near = {"rtol": 1e-6, "atol": 1e-5} if eager else {"rtol": 1e-5, "atol": 1e-3}  # its numbers reach 25,000
    assert torch.allclose(result.hidden_states, torch.stack(given.hidden_states)[:, 0], **near)
    assert torch.allclose(result.logits, given.logits[0], **near)
    if eager:
        assert torch.allclose(result.attentions, torch.stack(given.attentions)[:, 0], atol=1e-6)
    assert torch.allclose(result.attentions.sum(-1), torch.ones(()), atol=1e-5)
    assert result.attn_implementation == "eager"
    assert len(result.tokens) == result.input_ids.shape[1] == result.logits.shape[0]
    assert result.positions == tuple(range(len(result.tokens)))
    assert result.layers == tuple(range(31))


@pytest.mark.parametrize("length", [1, 2, 17, BLOCK, BLOCK + 1, 300])
@pytest.mark.parametrize(("kind", "implementation"), [*((kind, "eager") for kind in KINDS), ("llama", "sdpa")])
def test_it_is_what_eager_transformers_gives(kind, implementation, length):
    model = tiny(kind, implementation)
    states, attentions, logits = by_library(model, random_ids(length))
    result = trace(model, Letters(), random_ids(length))
    assert torch.allclose(result.hidden_states, states, atol=1e-5)
    assert torch.allclose(result.attentions, attentions, atol=1e-5)
    assert torch.allclose(result.logits, logits, atol=1e-5)
    assert torch.allclose(model.model.norm(result.last_residual), states[-1], atol=1e-5)
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize("kind", KINDS)
def test_without_attentions_the_run_is_the_models_own_to_the_last_bit(kind):
    model = tiny(kind, None)
    with torch.no_grad():
        given = model(random_ids(40), output_hidden_states=True)
    result = trace(model, Letters(), random_ids(40), attentions=False)
    assert result.attentions is None
    assert result.attn_implementation == model.config._attn_implementation
    assert torch.equal(result.hidden_states, torch.stack(given.hidden_states)[:, 0])
    assert torch.equal(result.logits, given.logits[0])


def test_a_bfloat16_model_gives_bfloat16():
    model = tiny("llama").to(torch.bfloat16)
    states, attentions, logits = by_library(model, random_ids(200))
    result = trace(model, Letters(), random_ids(200))
    for mine, library in ((result.hidden_states, states), (result.attentions, attentions), (result.logits, logits)):
        assert mine.dtype == library.dtype == torch.bfloat16
        assert torch.allclose(mine, library, atol=2e-2, rtol=2e-2)


def test_the_last_row_is_normed_and_the_last_residual_is_not(model, tokenizer):
    result = trace(model, tokenizer, PROMPTS[0], attentions=False)
    with torch.no_grad():
        assert torch.equal(model.model.norm(result.last_residual), result.hidden_states[-1])
        assert torch.allclose(model.lm_head(result.hidden_states[-1]), result.logits, rtol=1e-5, atol=1e-4)
        assert torch.equal(model.model.embed_tokens(result.input_ids)[0], result.hidden_states[0])


def test_a_prompt_is_a_text_a_chat_or_ids(model, tokenizer):
    chat = render_chat(tokenizer, [{"role": "user", "content": "你好"}])
    result = trace(model, tokenizer, chat, layers=0, attentions=False, logits=False)
    assert result.input_ids.tolist() == [chat.input_ids]
    assert "<|im_start|>" in result.tokens
    ids = trace(model, tokenizer, chat.input_ids, layers=0, attentions=False, logits=False)
    assert ids.tokens == result.tokens


# --- only some of it ---


@pytest.fixture(scope="module")
def llama():
    model = tiny("llama")
    anatomy(model)  # the first look at its parts is not what these tests interrupt
    return model


@pytest.fixture(scope="module")
def whole(llama):
    return trace(llama, Letters(), random_ids(200), outputs_of=["model.layers.1.mlp"])


def test_layers_are_rows_of_the_whole(llama, whole):
    result = trace(llama, Letters(), random_ids(200), layers=[2, 0])
    assert result.layers == (2, 0)
    assert torch.equal(result.hidden_states, whole.hidden_states[[2, 0]])
    assert torch.equal(result.attentions, whole.attentions[[2, 0]])
    one = trace(llama, Letters(), random_ids(200), layers=3, attentions=False)
    assert torch.allclose(one.hidden_states, whole.hidden_states[[3]], atol=1e-4)  # by sdpa
    assert torch.allclose(one.last_residual, whole.last_residual, atol=1e-4)


@pytest.mark.parametrize("positions", [-1, [0, 5], [199, 130, 2], range(100, 160)])
def test_positions_are_rows_of_the_whole(llama, whole, positions):
    result = trace(llama, Letters(), random_ids(200), positions=positions, outputs_of=["model.layers.1.mlp"])
    rows = [positions] if isinstance(positions, int) else list(positions)
    assert result.positions == tuple(row % 200 for row in rows)
    assert torch.equal(result.hidden_states, whole.hidden_states[:, rows])
    assert torch.equal(result.attentions, whole.attentions[:, :, rows])
    assert torch.allclose(result.logits, whole.logits[rows], atol=1e-5)
    assert torch.equal(result.last_residual, whole.last_residual[rows])
    assert torch.equal(result.outputs["model.layers.1.mlp"], whole.outputs["model.layers.1.mlp"][rows])
    assert len(result.tokens) == 200, "tokens name the keys too"


def test_what_is_not_asked_for_is_none(llama):
    result = trace(llama, Letters(), "abc", hidden_states=False, logits=False)
    assert result.hidden_states is None and result.logits is None and result.last_residual is None
    assert result.attentions.shape == (3, 4, 3, 3)
    assert result.outputs == result.inputs == {}


def test_any_modules_output_and_input(llama):
    names = ["model.layers.1.mlp", "model.layers.2.self_attn", "model.layers.0.self_attn.q_proj", "model.rotary_emb"]
    inputs = ["model.layers.2.self_attn.o_proj", "model.layers.1", "lm_head"]
    seen = {}
    hooks = [
        llama.get_submodule(name).register_forward_hook(lambda m, args, output, name=name: seen.update({name: output}))
        for name in names
    ]
    with torch.no_grad():
        llama(random_ids(9))
    for hook in hooks:
        hook.remove()
    result = trace(llama, Letters(), random_ids(9), attentions=False, outputs_of=names, inputs_of=inputs)
    assert torch.equal(result.outputs[names[0]], seen[names[0]][0])
    assert torch.equal(result.outputs[names[1]], seen[names[1]][0][0])
    assert result.outputs[names[2]].shape == (9, 32)
    cos, sin = result.outputs["model.rotary_emb"]
    assert torch.equal(cos, seen["model.rotary_emb"][0][0]) and sin.shape == (9, 8)
    assert torch.equal(result.inputs["model.layers.1"], result.hidden_states[1])
    assert torch.equal(result.inputs["lm_head"], result.hidden_states[-1])
    by_hand = result.inputs["model.layers.2.self_attn.o_proj"] @ llama.model.layers[2].self_attn.o_proj.weight.T
    assert torch.allclose(by_hand, result.outputs["model.layers.2.self_attn"], atol=1e-5)


def test_layers_above_the_last_one_needed_do_not_run(llama):
    ran = []
    names = [f"model.layers.{n}" for n in range(3)] + ["model.norm", "lm_head"]
    hooks = [llama.get_submodule(n).register_forward_hook(lambda m, a, o, n=n: ran.append(n)) for n in names]

    def runs(**kept):
        ran.clear()
        trace(llama, Letters(), "abcdef", **kept)
        return list(ran)

    try:
        assert runs(layers=[2], attentions=False, logits=False) == names[:2]
        assert runs(layers=0, attentions=False, logits=False) == []
        assert runs(layers=[1], logits=False) == names[:1], "attention of layer 1 is inside it, the layer does not end"
        assert runs(layers=[3], attentions=False, logits=False) == names[:4]
        only = {"hidden_states": False, "attentions": False, "logits": False}
        assert runs(outputs_of="model.layers.1.mlp", **only) == names[:1]
        assert runs() == names
    finally:
        for hook in hooks:
            hook.remove()


# --- with a cache, a picture, an intervention ---


@pytest.mark.parametrize("make", [DynamicCache, lambda config: StaticCache(config, max_cache_len=20)])
@pytest.mark.parametrize("new", [1, 4])
def test_a_cached_step(llama, make, new):
    ids = random_ids(12)
    whole = trace(llama, Letters(), ids)
    cache = make(config=llama.config)
    with torch.no_grad():
        llama(ids[:, :-new], past_key_values=cache)
    result = trace(llama, Letters(), ids[:, -new:], past_key_values=cache)
    assert int(cache.get_seq_length()) == 12
    assert torch.allclose(result.hidden_states, whole.hidden_states[:, -new:], atol=1e-5)
    assert torch.allclose(result.attentions[..., :12], whole.attentions[:, :, -new:], atol=1e-5)
    assert torch.allclose(result.logits, whole.logits[-new:], atol=1e-5)


def test_a_cache_of_sliding_and_full_layers():
    """Layers that keep other numbers of keys do not fit into one tensor; those of one kind do, then too."""
    gemma = tiny("gemma2, softcap", "eager")
    cache = DynamicCache(config=gemma.config)
    with torch.no_grad():
        gemma(random_ids(12), past_key_values=cache)
    with pytest.raises(BadInputError, match=r"Layer 1 looks at 14 keys, an earlier one at 7.*layers="):
        trace(gemma, Letters(), random_ids(2), past_key_values=cache)
    assert {layer.get_seq_length() for layer in cache.layers} == {12}, "what is refused leaves the cache as it was"
    sliding = trace(gemma, Letters(), random_ids(2), past_key_values=cache, layers=[0, 2], hidden_states=False)
    assert sliding.attentions.shape[:3] == (2, 4, 2)


def test_a_prompt_into_an_empty_static_cache(llama):
    cache = StaticCache(llama.config, max_cache_len=20)
    result = trace(llama, Letters(), random_ids(12), past_key_values=cache)
    assert torch.allclose(result.attentions[..., :12], trace(llama, Letters(), random_ids(12)).attentions, atol=1e-5)
    assert result.attentions[..., 12:].abs().max() == 0


@pytest.mark.parametrize(("room", "kind"), [(8, "llama"), (4, "mistral, sliding window")])
def test_a_static_cache_that_is_too_short_is_refused_before_anything_runs(room, kind):
    """transformers writes past its end (an IndexError), or forgets what a layer with a window should still see."""
    model = tiny(kind, "sdpa")
    cache = StaticCache(model.config, max_cache_len=room)
    with pytest.raises(BadInputError, match=rf"room for {room} positions; .* need 12: make it with max_cache_len"):
        trace(model, Letters(), random_ids(12), past_key_values=cache)
    assert cache.get_seq_length() == 0
    enough = StaticCache(model.config, max_cache_len=12)
    result = trace(model, Letters(), random_ids(12), past_key_values=enough, attentions=False)
    assert torch.allclose(result.logits, trace(model, Letters(), random_ids(12)).logits, atol=1e-4)


def test_what_is_no_cache_for_this_model_is_refused(llama):
    two = DynamicCache(config=tiny("llama", num_hidden_layers=2).config)
    texts, stopped = DynamicCache(config=llama.config), DynamicCache(config=llama.config)
    with torch.no_grad():
        llama(random_ids(6).expand(2, -1), past_key_values=texts)
    trace(llama, Letters(), random_ids(6), past_key_values=stopped, layers=[0], attentions=False, logits=False)
    trace(llama, Letters(), random_ids(6), past_key_values=stopped, layers=[1], attentions=False, logits=False)
    window = DynamicCache(config=tiny("mistral, sliding window").config)
    for cache, says in (
        (((torch.zeros(1, 2, 3, 8),) * 2,) * 3, "is a Cache of transformers"),
        (two, "has 2 layers and this model 3"),
        (texts, "holds 2 texts"),
        (stopped, "different numbers of positions"),
        (window, "keeps 5 positions in a layer that looks at more"),
    ):
        with pytest.raises(BadInputError, match=says) as error:
            trace(llama, Letters(), random_ids(6), past_key_values=cache)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"head_dim": 4}, r"holds 2 key/value heads of size 4, but in this model it holds 2 key/value heads of size 8"),
        ({"num_key_value_heads": 1}, "holds 1 key/value head of size 8"),
        ({"num_key_value_heads": 4, "head_dim": 4}, "holds 4 key/value heads of size 4"),
    ],
)
def test_the_cache_of_another_model_with_as_many_layers_is_refused(llama, settings, says):
    cache = DynamicCache(config=llama.config)
    with torch.no_grad():
        tiny("llama", **settings)(random_ids(6), past_key_values=cache)
    for run in (
        lambda: trace(llama, Letters(), random_ids(2), past_key_values=cache),
        lambda: generate_steps(llama, Letters(), random_ids(8), max_new_tokens=1, past_key_values=cache),
    ):
        with pytest.raises(BadInputError, match=says) as error:
            run()
        assert "made for another model" in str(error.value) and "\n" not in str(error.value)
    assert cache.get_seq_length() == 6, "and it is as it was"


def test_positions_that_repeat_are_one_text(llama):
    positions = torch.tensor([[0, 1, 2, 2, 2, 3]])
    with torch.no_grad():
        mask = torch.ones(1, 6, dtype=torch.long)
        logits = llama(random_ids(6), position_ids=positions, attention_mask=mask).logits[0]
    assert torch.allclose(trace(llama, Letters(), random_ids(6), position_ids=positions).logits, logits, atol=1e-5)


def test_a_mask_of_the_readers_own(llama):
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    _, attentions, logits = by_library(llama, random_ids(6), attention_mask=mask)
    result = trace(llama, Letters(), random_ids(6), attention_mask=mask)
    assert torch.allclose(result.attentions[:, :, 2:], attentions[:, :, 2:], atol=1e-5)
    assert torch.allclose(result.logits[2:], logits[2:], atol=1e-5)


def test_a_picture_makes_the_sequence_longer():
    from glm_fixtures import VISION, glm, glm_processor, golden, with_pictures

    conversation = next(
        case["conversation"]
        for case in golden(VISION)["chat_template"]
        if any("image" in message for message in case["conversation"])
    )
    messages = with_pictures(VISION, conversation)
    inputs = glm_processor(VISION).apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    model = glm(VISION)
    result = trace(model, glm_processor(VISION), inputs["input_ids"], pixel_values=inputs["pixel_values"])
    states, attentions, logits = by_library(model, inputs["input_ids"], pixel_values=inputs["pixel_values"])
    assert torch.allclose(result.hidden_states, states, atol=1e-4)
    assert torch.allclose(result.attentions, attentions, atol=1e-5)
    assert torch.allclose(result.logits, logits, atol=1e-4)
    grid = model.config.vision_config.grid
    patches = [token for token in result.tokens if token.startswith("▦")]
    assert len(result.tokens) == result.input_ids.shape[1] == result.hidden_states.shape[1]
    assert patches == [f"▦ {row},{column}" for row in range(grid) for column in range(grid)]
    assert (result.patch_index >= 0).sum() == len(patches)


def test_interventions_act_and_show(llama):
    with skip_layer(llama, 1):
        result = trace(llama, Letters(), random_ids(7))
    assert torch.equal(result.hidden_states[2], result.hidden_states[1])
    value = torch.ones(32)
    with patch_hidden_state(llama, 2, 3, value), steer(llama, 3, value):
        patched = trace(llama, Letters(), random_ids(7))
        stopped = trace(llama, Letters(), random_ids(7), layers=[2], attentions=False, logits=False)
    assert torch.equal(patched.hidden_states[2, 3], value)
    assert torch.equal(stopped.hidden_states[0, 3], value)
    clean = trace(llama, Letters(), random_ids(7))
    assert torch.equal(patched.hidden_states[2, :3], clean.hidden_states[2, :3])
    assert not torch.allclose(patched.last_residual[:3], clean.last_residual[:3], atol=0.5), "steered at the end"
    assert torch.allclose(patched.last_residual[:3], clean.last_residual[:3] + 1, atol=1e-5)


def test_what_it_kept_can_go_back_into_the_model_with_gradients_on(model, tokenizer):
    result = trace(model, tokenizer, PROMPTS[0], attentions=False)
    assert model.lm_head(model.model.norm(result.last_residual)).requires_grad
    result.logits[0, 0] = 0.0  # and be written to
    assert not result.hidden_states.requires_grad


# --- the model afterwards ---


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "glm"])
def test_the_model_is_as_before(kind, implementation):
    model = tiny(kind, implementation)
    before, logits = marks(model), model(random_ids(9)).logits
    trace(model, Letters(), random_ids(9), outputs_of=["lm_head"], inputs_of=["model.norm"], positions=[1])
    trace(model, Letters(), random_ids(9), layers=[1], logits=False)
    assert marks(model) == before
    assert torch.equal(model(random_ids(9)).logits, logits)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("place", ["model.layers.0.mlp", "model.norm", "lm_head"])
def test_the_model_is_as_before_after_an_error(llama, error, place):
    def fail(module, args):
        raise error("in the middle")

    before = marks(llama)
    with pytest.raises(error, match="middle"), llama.get_submodule(place).register_forward_pre_hook(fail):
        trace(llama, Letters(), random_ids(9), outputs_of=["model.layers.2.mlp"])
    assert marks(llama) == before


@pytest.fixture
def interruptible():
    """Python's own answer to SIGINT, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("layer", [0, 15, 29])
def test_the_model_is_as_before_after_an_interrupted_cell(model, tokenizer, layer):
    """The signal that Jupyter's stop button sends arrives in the middle of the run, on any machine."""
    before = marks(model)

    def stop(module, args):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), model.model.layers[layer].mlp.register_forward_pre_hook(stop):
        trace(model, tokenizer, list(range(100, 110)))
    assert marks(model) == before


def test_the_model_is_as_before_between_whichever_lines_it_is_interrupted(llama):
    """Until all is written, that is; the few lines that clean up afterwards are not interrupted here."""
    before = marks(llama)
    lines = []
    with _watched(lambda frame: lines.append(frame.f_code.co_name)):
        trace(llama, Letters(), "abc")
    last = len(lines) - lines[::-1].index("_done")
    assert last > 300
    for stop in range(1, last, 7):
        left = iter(range(stop))

        def interrupt(frame, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), _watched(interrupt):
            trace(llama, Letters(), "abc")
        assert marks(llama) == before, f"interrupted in {lines[stop]}"


@contextmanager
def _watched(on_line):
    """`on_line(frame)` is called before each line of the tracing module that runs."""

    def watch(frame, event, arg):
        if frame.f_code.co_filename != trace.__code__.co_filename:
            return None
        if event == "line":
            on_line(frame)
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


def test_a_trace_inside_inference_mode(llama):
    with torch.inference_mode():
        result = trace(llama, Letters(), "abc")
    assert torch.equal(result.logits, trace(llama, Letters(), "abc").logits)


# --- what a reader may get wrong ---


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", "empty"),
        ([], "empty"),
        (torch.ones(2, 3, dtype=torch.long), "batch of 2"),
        (["ab", "cd"], "not a list"),
        ([5, 64], "64 is not in this vocabulary"),
    ],
)
def test_prompts_that_cannot_be(llama, prompt, says):
    with pytest.raises(BadInputError, match=says):
        trace(llama, Letters(), prompt)


def test_a_prompt_longer_than_the_context(llama, model, tokenizer):
    with pytest.raises(PromptTooLongError, match="401 tokens long, but the model's context is 400"):
        trace(llama, Letters(), random_ids(401))
    with pytest.raises(PromptTooLongError, match="8192"):
        trace(model, tokenizer, "a " * 9000)
    cache = DynamicCache(config=llama.config)
    trace(llama, Letters(), random_ids(396), past_key_values=cache, layers=[1])
    with pytest.raises(PromptTooLongError, match=r"396 cached positions and 5 new ones.*shorten the prompt by 1 "):
        trace(llama, Letters(), random_ids(5), past_key_values=cache)
    assert trace(llama, Letters(), random_ids(400), positions=-1).attentions.shape == (3, 4, 1, 400)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"layers": [4]}, r"no layer 4.*0 \(embedding\) to 3"),
        ({"layers": [-1]}, "no layer -1"),
        ({"layers": [3]}, "has no attention"),
        ({"layers": []}, "whole number or several"),
        ({"layers": "1"}, "whole number or several"),
        ({"layers": [True]}, "whole number or several"),
        ({"layers": [1, 1]}, "twice"),
        ({"layers": 1.5}, "whole number or several"),
        ({"positions": [4]}, "no position 4.*0 to 3"),
        ({"positions": -5}, "no position -5"),
        ({"positions": [0, -4]}, "twice"),
        ({"outputs_of": ["model.layers.3.mlp"]}, "no module 'model.layers.3.mlp'.*model.layers"),
        ({"outputs_of": "mpl"}, "no module 'mpl'"),
        ({"inputs_of": ["", "lm_head"]}, "no module ''"),
        ({"outputs_of": [3]}, "no module 3"),
        ({"outputs_of": "model.layers"}, "does not run by itself"),
        ({"layer": 1}, "no setting 'layer'.*layers"),
        ({"output_attentions": True}, "no setting 'output_attentions'"),
        ({"input_ids": random_ids(3)}, "no setting 'input_ids'"),
        ({"hidden_states": False, "attentions": False, "logits": False}, "nothing to keep"),
    ],
)
def test_settings_that_cannot_be(llama, settings, says):
    before = marks(llama)
    with pytest.raises(BadInputError, match=says):
        trace(llama, Letters(), "abcd", **settings)
    assert marks(llama) == before


def test_a_model_without_a_decoder(tokenizer):
    with pytest.raises(BadInputError, match="Linear has no decoder"):
        trace(torch.nn.Linear(2, 2), tokenizer, "a")


# --- what it costs ---


def test_repr_says_what_is_in_it(llama):
    result = trace(llama, Letters(), "abcd")
    assert isinstance(result, Trace)
    for part in ("tokens=4", "hidden_states=[4, 4, 32]", "attentions=[3, 4, 4, 4]", "logits=[4, 64]", "eager"):
        assert part in repr(result)
    assert len(repr(result)) < 300
    tensors = (result.input_ids, result.hidden_states, result.attentions, result.logits, result.last_residual)
    assert result.nbytes == sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("head_dim", [16, 12])  # a scaling of 1/4 goes to the queries; 1/sqrt(12) is none that may
def test_attention_in_place_is_eager_attention(monkeypatch, head_dim):
    """As it is on a GPU: scores become probabilities right where the result has its room."""
    places = []
    monkeypatch.setattr(tracing, "_works_in_place", lambda place: places.append(place) or place is not None)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES | {"head_dim": head_dim, "hidden_size": 4 * head_dim})).eval()
    ids = torch.arange(3, 33)[None]
    run = trace(model, Letters(), ids)
    assert len(places) == 3
    model.set_attn_implementation("eager")
    with torch.no_grad():
        given = model(ids, output_hidden_states=True, output_attentions=True)
    assert torch.allclose(run.attentions, torch.stack(given.attentions)[:, 0], atol=1e-6)
    assert torch.allclose(run.hidden_states, torch.stack(given.hidden_states)[:, 0], atol=1e-5)
