"""Faults that readers of other projects met, and this one had: each is right now, or refused in a sentence."""

import copy
import json
from importlib.util import find_spec

import pytest
import torch
import transformers
from PIL import Image

import helpers
from helpers.errors import BadInputError
from helpers.inside import anatomy, branch_cache, can_be_branched

PROMPT = "The capital of France is"


def ids_of(tokenizer, text=PROMPT):
    return torch.tensor([tokenizer(text)["input_ids"]])


@pytest.mark.parametrize("name", ["gemma2", "granite", "olmo2", "gemma3", "exaone4", "minicpm3"])
def test_hooks_that_transformers_leaves_behind_change_nothing(opened, name):
    """Once asked for hidden states, transformers leaves hooks on the layers. They were taken for an intervention, and
    what is normed or multiplied before it is added came out as "edits" that nobody had made."""
    model, tokenizer = opened(name)
    for _ in range(2):
        parts = helpers.residual_contributions(model, tokenizer, PROMPT)
        assert not parts.edits.any()
        summed = parts.embedding + parts.attention.sum(0) + parts.mlp.sum(0)
        assert torch.allclose(summed, parts.total, atol=1e-4)
        model(ids_of(tokenizer), output_hidden_states=True)
    with helpers.steer(model, 1, torch.ones(32)):
        parts = helpers.residual_contributions(model, tokenizer, PROMPT)
    assert torch.allclose(parts.edits[1], torch.ones_like(parts.edits[1]), atol=1e-5)
    assert not parts.edits[0].any() and not parts.edits[2:].any()


@pytest.mark.parametrize(
    "name", ["gemma2", "gemma4", "granite", "granitemoe", "cohere", "cohere2", "minicpm3", "nanochat"]
)
def test_the_last_row_of_the_lens_is_the_models_own_prediction(opened, name):
    """Gemma caps its logits, Granite divides and Cohere multiplies them: the lens did not."""
    model, tokenizer = opened(name)
    run = helpers.trace(model, tokenizer, PROMPT, attentions=False)
    lens = helpers.logit_lens(model, run, top_k=1)
    expected = run.logits.softmax(-1)
    assert torch.allclose(lens.probabilities[-1, :, 0], expected.amax(-1), rtol=1e-3, atol=1e-5)
    assert torch.allclose(lens.entropy[-1], torch.special.entr(expected).sum(-1), rtol=1e-3, atol=1e-3)
    token = int(run.logits[-1].argmax())
    direct = helpers.direct_logit(model, helpers.residual_contributions(model, tokenizer, PROMPT), token)
    assert direct.total == pytest.approx(float(run.logits[-1, token]), rel=1e-3)


def test_layers_without_attention_are_named(opened):
    """Qwen3-Next has linear attention in most layers: every one of these ended in a traceback."""
    model, tokenizer = opened("qwen3_next")
    assert helpers.residual_contributions(model, tokenizer, PROMPT).total is not None
    assert helpers.trace(model, tokenizer, PROMPT).attention_layers == (1,)
    assert helpers.trace(model, tokenizer, PROMPT, layers=1).attentions.shape[0] == 1
    for wrong in (
        lambda: helpers.ablate_heads(model, [(0, 0)]).__enter__(),
        lambda: helpers.skip_attention(model, 0).__enter__(),
        lambda: helpers.trace(model, tokenizer, PROMPT, layers=0),
    ):
        with pytest.raises(
            BadInputError, match=r"Layer 0 of Qwen3NextForCausalLM has no attention; it has linear_attn"
        ):
            wrong()


@pytest.mark.parametrize("name", ["gpt_oss", "granitemoe", "llama4_text"])
def test_an_mlp_that_gives_more_than_states_is_skipped(opened, name):
    """A mixture of experts may give (states, router scores)."""
    model, tokenizer = opened(name)
    before = model(ids_of(tokenizer)).logits
    with helpers.skip_mlp(model, 1):
        assert not torch.equal(model(ids_of(tokenizer)).logits, before)
        assert not helpers.residual_contributions(model, tokenizer, PROMPT).mlp[1].any()
    assert torch.equal(model(ids_of(tokenizer)).logits, before)


def test_weights_beside_a_sink_sum_to_less_than_one(opened):
    model, tokenizer = opened("gpt_oss")
    sums = helpers.trace(model, tokenizer, PROMPT).attentions.sum(-1)
    assert float(sums.max()) < 1 and float(sums.min()) > 0


@pytest.mark.parametrize("name", ["gemma", "starcoder2", "stablelm", "cohere", "phimoe"])
def test_the_explorer_says_who_wrote_through_a_layer_norm(opened, name):
    """A final norm that is no plain RMSNorm was refused, and the whole explorer with it."""
    model, tokenizer = opened(name)
    writers = helpers.hidden_state_explorer(model, tokenizer, PROMPT).state.view()["cell"]["writers"]
    summed = sum(map(sum, writers["table"])) + writers["embedding"] + writers["rest"]
    assert summed == pytest.approx(writers["total"], abs=0.05)


def test_the_explorer_works_where_one_panel_cannot(opened):
    model, tokenizer = opened("mamba")
    view = helpers.hidden_state_explorer(model, tokenizer, PROMPT).state.view()
    assert "MambaForCausalLM gives no attention weights" in view["cell"]["no_writers"]
    assert view["candidates"]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_both_ways_is_the_librarys(opened, implementation):
    """PaliGemma: a mask was made for one way of computing attention, and used in another."""
    model, tokenizer = opened("paligemma", attn_implementation=implementation)
    eager, _ = opened("paligemma", attn_implementation="eager")
    ids = ids_of(tokenizer)
    for more in ({}, {"token_type_ids": torch.zeros_like(ids)}):
        theirs = eager(ids, attention_mask=torch.ones_like(ids), output_attentions=True, **more)
        mine = helpers.trace(model, tokenizer, ids, **more)
        assert torch.allclose(mine.attentions, torch.stack(theirs.attentions)[:, 0], atol=1e-5)
        assert torch.allclose(mine.logits, theirs.logits[0], atol=1e-3)
    assert mine.attentions[0, 0, 0, -1] > 0, "with the types of a prompt it looks both ways"


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5_vl", "paligemma", "gemma3_vl", "llava"])
def test_a_picture_is_seen_as_the_library_sees_it(opened, folder_of, name):
    """Qwen3-VL adds a picture's features between its first layers: a row after them was compared with one before."""
    model, tokenizer = opened(name)
    picture = Image.effect_noise((56, 56), 90).convert("RGB")
    seen = transformers.AutoImageProcessor.from_pretrained(folder_of(name))(images=picture, return_tensors="pt")
    patches = int(seen["image_grid_thw"].prod()) // 4 if "image_grid_thw" in seen else {"gemma3_vl": 4}.get(name, 16)
    ids = torch.tensor([[5, *[4] * patches, 6, *tokenizer(PROMPT)["input_ids"]]])
    inputs = {key: seen[key] for key in ("pixel_values", "image_grid_thw") if key in seen}
    types = {"gemma3_vl": "token_type_ids", "paligemma": "token_type_ids"}.get(name, "mm_token_type_ids")
    if name != "llava":
        inputs[types] = torch.zeros_like(ids) if name == "paligemma" else (ids == 4).long()
    theirs = model(ids, attention_mask=torch.ones_like(ids), use_cache=False, output_hidden_states=True, **inputs)
    run = helpers.trace(model, tokenizer, ids, **inputs)
    assert torch.allclose(run.hidden_states, torch.stack(theirs.hidden_states)[:, 0], atol=1e-4)
    assert torch.allclose(run.logits, theirs.logits[0], atol=1e-3)
    parts = helpers.residual_contributions(model, tokenizer, ids, **inputs)
    summed = parts.embedding + parts.attention.sum(0) + parts.mlp.sum(0) + parts.edits.sum(0)
    assert torch.allclose(summed, parts.total, atol=1e-4)
    assert bool(parts.edits.any()) == (name == "qwen3_vl")


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "bloom", "opt", "jamba", "gpt_oss", "mamba"])
def test_the_structure_has_an_order(opened, name):
    """A mixture of experts looks at values, which an empty copy does not have."""
    structure = helpers.show_structure(opened(name)[0])
    assert structure.ordered
    assert any("+" in (block.order or ()) for block in structure.blocks if hasattr(block, "order"))


def test_positions_of_a_merged_axis_are_rows(opened):
    """OPT's MLP gives [position, hidden] without a batch axis: choosing positions chose columns, or failed."""
    model, tokenizer = opened("opt")
    whole = helpers.residual_contributions(model, tokenizer, PROMPT)
    some = helpers.residual_contributions(model, tokenizer, PROMPT, positions=[-1, 1])
    assert torch.allclose(some.mlp, whole.mlp[:, [-1, 1]], atol=1e-5)


def test_an_interventions_hook_does_not_reach_the_matrix(opened):
    """GPT-2's projection is asked what it gives, since it keeps its matrix the other way round."""
    model, tokenizer = opened("gpt2")
    parts = helpers.residual_contributions(model, tokenizer, PROMPT)
    expected = helpers.head_contributions(model, parts, 1)
    with helpers.ablate_heads(model, [(1, 2)]):
        assert torch.equal(helpers.head_contributions(model, parts, 1), expected)
    bias = anatomy(model).projection(1).bias
    assert torch.allclose(expected.sum(0) + bias, parts.attention[1], atol=1e-5)


def test_a_layer_that_is_not_known_is_not_guessed(opened):
    """A module that changes the stream unseen: its sum does not come out, and nothing is said about its parts."""
    model, tokenizer = opened("llama")
    parts = anatomy(model)
    norm = parts.layers[1].module

    class Louder(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *arguments, **keywords):
            return 1.5 * self.inner(*arguments, **keywords).abs()

    container = parts.container
    container[1] = Louder(norm)
    try:
        with pytest.raises(BadInputError, match=r"Layer 1 of LlamaForCausalLM cannot be taken apart"):
            helpers.residual_contributions(model, tokenizer, PROMPT)
    finally:
        container[1] = norm
    assert helpers.residual_contributions(model, tokenizer, PROMPT).total is not None


def test_a_model_of_nothing_but_linear_attention_has_no_cache_to_go_on_from(opened):
    """transformers itself cannot continue a text with it, and a traceback of its cache came out."""
    small, tokenizer = opened("qwen3_next")
    config = copy.deepcopy(small.config)
    config.layer_types = ["linear_attention"] * 3
    torch.manual_seed(0)
    model = transformers.Qwen3NextForCausalLM(config).eval()
    assert helpers.trace(model, tokenizer, PROMPT, attentions=False).logits is not None
    cache = transformers.DynamicCache(config=config)
    for run in (
        lambda: helpers.generate_steps(model, tokenizer, PROMPT, max_new_tokens=2),
        lambda: helpers.Conversation(model, tokenizer).ask("Hello", max_new_tokens=2),
        lambda: helpers.trace(model, tokenizer, PROMPT, attentions=False, past_key_values=cache),
    ):
        with pytest.raises(BadInputError, match="No layer of this model keeps keys and values"):
            run()


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="their processors need it, for videos")
@pytest.mark.parametrize("name", ["internvl", "mistral3", "smolvlm"])
def test_a_processor_that_lacks_a_package_is_no_damaged_file(folder_of, name):
    """InternVL's files were to be fetched again, and of Mistral 3 it was said that it does not see."""
    folder = str(folder_of(name))
    model, processor = helpers.load_model(folder, device="cpu"), helpers.load_processor(folder)
    picture = Image.new("RGB", (56, 56), "red")
    assert helpers.Conversation(model, processor).ask("Hello", max_new_tokens=2).text is not None
    for ask in (
        lambda: helpers.Conversation(model, processor).ask("What is this?", picture, max_new_tokens=2),
        lambda: helpers.image_chat(model, processor, picture=picture),
    ):
        with pytest.raises(BadInputError, match=r"needs a package that is missing: pip install torchvision"):
            ask()


def test_a_model_with_a_cache_of_its_own_kind_is_told_apart(opened):
    """MiniMax takes no other cache than its own, and said so in a traceback."""
    _, tokenizer = opened("llama")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "num_key_value_heads": 2, "head_dim": 8}
    torch.manual_seed(0)
    config = transformers.MiniMaxConfig(
        vocab_size=400, pad_token_id=0, bos_token_id=1, eos_token_id=3, **sizes, **experts
    )
    model = transformers.MiniMaxForCausalLM(config).eval()
    for run in (
        lambda: helpers.generate_steps(model, tokenizer, PROMPT, max_new_tokens=2),
        lambda: helpers.Conversation(model, tokenizer).ask("Hello", max_new_tokens=2),
    ):
        with pytest.raises(BadInputError, match="keeps a cache of its own kind"):
            run()


def test_a_layer_with_two_attentions_is_refused(opened):
    """LongCat has two in each layer; the first alone was shown, and what its heads wrote was wrong."""
    _, tokenizer = opened("llama")
    torch.manual_seed(0)
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
    sizes = {"hidden_size": 32, "ffn_hidden_size": 48, "num_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    experts = {"n_routed_experts": 4, "moe_topk": 2, "expert_ffn_hidden_size": 24, "zero_expert_num": 1}
    config = transformers.LongcatFlashConfig(vocab_size=400, pad_token_id=0, **latent, **sizes, **experts)
    model = transformers.LongcatFlashForCausalLM(config).eval()
    assert helpers.trace(model, tokenizer, PROMPT, attentions=False).hidden_states.shape[0] == 3
    with pytest.raises(BadInputError, match="have 2 attentions each, which cannot be told apart here"):
        helpers.trace(model, tokenizer, PROMPT)
    with pytest.raises(BadInputError, match="Layer 1 of LongcatFlashForCausalLM has 2 attentions, which"):
        helpers.ablate_heads(model, [(1, 0)]).__enter__()
    with pytest.raises(BadInputError, match="it has more than one attention"):
        helpers.residual_contributions(model, tokenizer, PROMPT)


def test_heads_that_are_wide_beside_the_stream(opened):
    """Four heads of 256 numbers each in a stream of 32: the projection was not found."""
    _, tokenizer = opened("gemma")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.GemmaForCausalLM(
        transformers.GemmaConfig(vocab_size=400, pad_token_id=0, num_key_value_heads=2, head_dim=256, **sizes)
    ).eval()
    parts = helpers.residual_contributions(model, tokenizer, PROMPT)
    assert torch.allclose(helpers.head_contributions(model, parts, 1).sum(0), parts.attention[1], atol=1e-4)


def test_a_bias_that_is_in_the_mask_is_added_once(opened):
    """Falcon's "eager" adds ALiBi to scores whose mask has it already: weights and logits were not those of its run."""
    model, tokenizer = opened("falcon_sequential", attn_implementation="sdpa")
    ids = ids_of(tokenizer)
    run = helpers.trace(model, tokenizer, ids)
    assert torch.allclose(run.logits, model(ids, use_cache=False).logits[0], atol=1e-4)
    cache = model(ids[:, :4], use_cache=True).past_key_values
    rest = helpers.trace(model, tokenizer, ids[:, 4:], past_key_values=cache)
    assert torch.allclose(rest.attentions, run.attentions[:, :, 4:], atol=1e-5)


def test_a_cache_whose_upper_layers_keep_nothing_can_be_continued(opened):
    """Gemma 4's upper layers use the keys of lower ones: their empty places in the cache ended in an AttributeError."""
    model, tokenizer = opened("gemma4")
    ids = ids_of(tokenizer, PROMPT * 2)
    whole = helpers.trace(model, tokenizer, ids)

    def rest(**more):
        cache = model(ids[:, :9], use_cache=True).past_key_values
        return helpers.trace(model, tokenizer, ids[:, 9:], past_key_values=cache, **more)

    assert torch.allclose(rest(attentions=False).logits, whole.logits[9:], atol=1e-3)
    assert torch.allclose(rest(layers=[1, 3]).attentions, whole.attentions[[1, 3], :, 9:], atol=1e-5)
    with pytest.raises(BadInputError, match=r"Layer 3 looks at \d+ keys, an earlier one at"):
        rest(layers=[2, 3])


@pytest.mark.parametrize("name", ["rwkv", "paligemma"])
def test_a_batch_answers_as_each_prompt_alone_where_others_matter(opened, tmp_path, name):
    """RWKV knows no attention mask: in a batch it read the padding, and mixed prompts even where there was none.
    PaliGemma looked both ways alone, and back only beside padding."""
    model, tokenizer = opened(name)
    prompts = ["The", PROMPT, "A language model reads tokens", "And"]

    def answers(file, given):
        settings = {"max_new_tokens": 4, "do_sample": False, "repetition_penalty": 1.0, "progress": False}
        helpers.run_batch(model, tokenizer, given, tmp_path / file, **settings)
        return [entry["Output"] for entry in json.loads((tmp_path / file).read_text())]

    together = answers("together.json", prompts)
    assert together == [answers(f"{at}.json", [prompt])[0] for at, prompt in enumerate(prompts)]


def test_a_conversation_reads_afresh_where_attention_looks_both_ways(opened):
    """PaliGemma: what was in the cache had not seen the second question, and the reply was not that of the prompt."""
    model, tokenizer = opened("paligemma")
    talk = helpers.Conversation(model, tokenizer)
    for question in ("Hello there", "And now tell me a story of a small model", "Thanks"):
        reply = talk.ask(question, max_new_tokens=6)
        ids = torch.tensor([reply.input_ids])
        plain = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert reply.output_ids == plain[0, ids.shape[1] :].tolist()
        assert talk.reused == 0


def test_a_model_that_forgets_after_a_cache_says_so(opened):
    """Jamba's state space layers begin afresh for several tokens after a cache: the logits were those of no text."""
    model, tokenizer = opened("jamba")
    ids = ids_of(tokenizer, PROMPT * 2)

    def cache(length):
        return model(ids[:, :length], use_cache=True).past_key_values

    with torch.no_grad():
        expected = model(ids).logits[0, -1]
        last = helpers.trace(model, tokenizer, ids[:, -1:], past_key_values=cache(ids.shape[1] - 1), attentions=False)
        assert torch.allclose(last.logits[-1], expected, atol=1e-3)
        for run in (
            lambda: helpers.trace(model, tokenizer, ids[:, -3:], past_key_values=cache(ids.shape[1] - 3)),
            lambda: next(helpers.generate_steps(model, tokenizer, ids, past_key_values=cache(ids.shape[1] - 3))),
        ):
            with pytest.raises(BadInputError, match="JambaForCausalLM does not read 3 tokens after a cache as"):
                run()
    model, tokenizer = opened("qwen3_next")
    with torch.no_grad():
        rest = helpers.trace(model, tokenizer, ids[:, -3:], past_key_values=cache(ids.shape[1] - 3), attentions=False)
        assert torch.allclose(rest.logits, model(ids).logits[0, -3:], atol=1e-3)


def test_a_conversation_goes_on_where_a_model_drops_its_cache(opened):
    """Phi-3 with a long context reads the prompt afresh once it is longer than the context it was first trained on: a
    later turn was refused, and the steps said that the cache held nothing."""
    _, tokenizer = opened("phi3")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    factors = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.3, 2.6, 2.9]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "factor": 4.0}
    torch.manual_seed(0)
    config = transformers.Phi3Config(
        vocab_size=400,
        pad_token_id=0,
        eos_token_id=3,
        max_position_embeddings=512,
        original_max_position_embeddings=40,
        rope_parameters={**rope, **factors, "original_max_position_embeddings": 40},
        initializer_range=0.2,
        **sizes,
    )
    model = transformers.Phi3ForCausalLM(config).eval()

    def plain(ids, count):
        ids = torch.tensor([ids])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
        return made[0, ids.shape[1] :].tolist()

    steps = list(helpers.generate_steps(model, tokenizer, torch.arange(50, 88)[None], max_new_tokens=5))
    assert [step.kv_length for step in steps] == [38, 39, 40, 41, 42]
    assert [step.token_id for step in steps] == plain(list(range(50, 88)), 5)
    talk = helpers.Conversation(model, tokenizer)
    for question in ("Hi", "And you?", "What is it?"):
        reply = talk.ask(question, max_new_tokens=4)
        assert reply.output_ids == plain(reply.input_ids, 4)
    assert talk.reused > 40


def test_a_cache_can_be_continued_after_generate_has_run(opened):
    """`generate` leaves the offset of a picture's positions in Qwen2-VL: a trace after a cache had one position for
    each place in its mask, and failed in transformers."""
    model, tokenizer = opened("qwen2_vl")
    ids = ids_of(tokenizer, PROMPT * 2)
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1)
    whole = helpers.trace(model, tokenizer, ids)
    cache = model(ids[:, :6], use_cache=True).past_key_values
    rest = helpers.trace(model, tokenizer, ids[:, 6:], past_key_values=cache)
    assert torch.allclose(rest.logits, whole.logits[6:], atol=1e-3)
    assert torch.allclose(rest.attentions, whole.attentions[:, :, 6:], atol=1e-5)


@pytest.mark.parametrize("name", ["deepseek_v32", "glm_moe_dsa"])
def test_positions_that_an_index_leaves_out_have_no_weight(opened, name):
    """Both look at a few positions that an index chooses, but only where attention has a name that they know: a trace
    showed a model that looks at all of them, and its logits, too."""
    model, tokenizer = opened(name)
    eager, _ = opened(name, attn_implementation="eager")
    ids = ids_of(tokenizer, "The capital of France is Paris")
    theirs = eager(ids, attention_mask=torch.ones_like(ids), output_attentions=True)
    mine = helpers.trace(model, tokenizer, ids)
    assert torch.allclose(mine.logits, theirs.logits[0], atol=1e-4)
    assert torch.allclose(mine.attentions, torch.stack(theirs.attentions)[:, 0], atol=1e-5)
    assert int((mine.attentions[0, 0, -1] > 0).sum()) == model.config.index_topk < ids.shape[1]


def test_a_stream_whose_positions_come_first_is_not_taken_for_one_of_a_single_position(opened):
    """XLNet's layers take [position, batch, hidden]: a trace of it ended in a traceback."""
    _, tokenizer = opened("llama")
    torch.manual_seed(0)
    model = transformers.XLNetLMHeadModel(
        transformers.XLNetConfig(vocab_size=400, d_model=32, n_layer=2, n_head=4, d_inner=48)
    ).eval()
    for look in (
        lambda: helpers.trace(model, tokenizer, PROMPT, attentions=False),
        lambda: helpers.steer(model, 1, torch.zeros(32)).__enter__(),
    ):
        with pytest.raises(BadInputError, match="No layers can be found in XLNetLMHeadModel"):
            look()


def test_llama_with_crossed_layers_continues_a_text(opened):
    """Mllama's own step from one token to the next has no default for a setting that all others may leave out."""
    _, tokenizer = opened("llama")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": 400, "num_key_value_heads": 2, "cross_attention_layers": [1], "pad_token_id": 0, **sizes}
    model = transformers.MllamaForCausalLM(transformers.MllamaConfig(text_config=text).text_config).eval()
    ids = ids_of(tokenizer)
    theirs = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    steps = helpers.generate_steps(model, tokenizer, ids, max_new_tokens=3)
    assert [step.token_id for step in steps] == theirs[0, ids.shape[1] :].tolist()
    talk = helpers.Conversation(model, tokenizer)
    for question in ("Hello", "And now?"):  # without a picture the crossed layer keeps nothing to go on from
        reply = talk.ask(question, max_new_tokens=3)
        ids = torch.tensor([reply.input_ids])
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
        assert reply.output_ids == theirs[0, ids.shape[1] :].tolist()
    cache = model(ids, use_cache=True).past_key_values
    patches = torch.zeros(1, 2, 5, 8)
    cache.layers[1].update(patches, patches)  # what a picture leaves there
    assert not can_be_branched(cache)
    with pytest.raises(BadInputError, match="hold different numbers of positions"):
        branch_cache(cache, 2)


def test_a_model_that_needs_more_than_a_text_says_so(opened):
    """X-MOD must be told a language first: what its error said came out as a traceback."""
    _, tokenizer = opened("llama")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = transformers.XmodForCausalLM(transformers.XmodConfig(vocab_size=400, is_decoder=True, **sizes)).eval()
    for run in (
        lambda: list(helpers.generate_steps(model, tokenizer, PROMPT, max_new_tokens=2)),
        lambda: helpers.Conversation(model, tokenizer).ask("Hello", max_new_tokens=2),
    ):
        with pytest.raises(BadInputError, match=r"XmodForCausalLM does not run on this prompt alone .*language"):
            run()


def test_the_cache_of_a_model_whose_first_layer_keeps_no_keys_can_be_explored(opened):
    """Jamba begins with a state space, and the explorer asked that layer for its keys."""
    model, tokenizer = opened("jamba")
    view = helpers.kv_cache_explorer(model, tokenizer, PROMPT, max_new_tokens=2).state.view()
    cache = model(ids_of(tokenizer), use_cache=True).past_key_values
    assert view["bytes"] == helpers.kv_cache_summary(cache).nbytes
    assert view["shape"] == list(cache.layers[1].keys.shape)
    assert view["keys"][0] == [None] * ids_of(tokenizer).shape[1]


@pytest.mark.parametrize("layers", [4, 5])
def test_a_stream_that_is_halved_between_layers(opened, layers):
    """RWKV halves its stream every few layers: the states there were twice those of transformers, and where it does so
    after the last layer, as in every published RWKV, no final norm was found and the model was refused altogether."""
    _, tokenizer = opened("rwkv")
    torch.manual_seed(0)
    sizes = {"vocab_size": 400, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": layers}
    model = transformers.RwkvForCausalLM(transformers.RwkvConfig(rescale_every=2, **sizes)).eval()
    run = helpers.trace(model, tokenizer, PROMPT, attentions=False)
    with torch.no_grad():
        theirs = model(ids_of(tokenizer), use_cache=False, output_hidden_states=True)
    states = torch.stack(theirs.hidden_states)[:, 0]  # of RWKV, they begin after the first layer
    assert torch.allclose(run.hidden_states[1:-1], states[:-2], atol=1e-5)
    assert torch.allclose(run.last_residual, states[-2], atol=1e-5)
    lens = helpers.logit_lens(model, run, top_k=1)
    assert torch.allclose(lens.probabilities[-1, :, 0], theirs.logits[0].softmax(-1).amax(-1), atol=1e-5)
