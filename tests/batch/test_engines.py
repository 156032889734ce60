"""helpers.batch.engines: what is asked, and the batches of the transformers engine."""

from itertools import count, islice

import pytest
import torch
from glm_fixtures import FOLDER, VISION, glm, glm_processor, one_thread

from helpers.batch.engines import (
    GenerationSettings,
    Prompt,
    TransformersEngine,
    answer_text,
    as_prompt,
    batches_by_length,
    in_windows,
    left_padded,
    prompt_token_ids,
    terminator_ids,
)
from helpers.batch.throughput import measure_batch_sizes
from helpers.conversation import Conversation
from helpers.errors import (
    BadImageError,
    BadInputError,
    DamagedFilesError,
    DoesNotFitError,
    NotANumberError,
    PromptTooLongError,
)
from helpers.inside.generation import generate_steps
from helpers.models.memory import run_bytes
from helpers.models.pretrained import PictureProcessor
from helpers.models.vision_memory import picture_memory
from helpers.text.prompts import load_prompts, render_chat

GREEDY = GenerationSettings(do_sample=False, max_new_tokens=12)


class Numbers:
    """A tokenizer whose texts are the ids themselves."""

    eos_token_id = 63
    all_special_ids = ()
    added_tokens_decoder = {}

    def convert_ids_to_tokens(self, token_id):
        return str(token_id)

    def __len__(self):
        return 64

    def get_vocab(self):
        return {}

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


def chat(index, text):
    return Prompt(index, text, messages=[{"role": "user", "content": text}])


def alone(model, ids, settings):
    """The ids that the model gives to one prompt, without what ended them."""
    steps = generate_steps(model, Numbers(), ids, **settings.in_use())
    return [step.token_id for step in steps if step.stopped_by != "end_of_turn"]


# --- settings and prompts


def test_the_defaults_are_the_walkthroughs():
    settings = GenerationSettings()
    assert (settings.temperature, settings.top_k, settings.top_p) == (0.2, 40, 0.9)
    assert (settings.repetition_penalty, settings.max_new_tokens, settings.do_sample) == (1.1, 400, True)


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0}, {"top_p": 2}, {"max_new_tokens": 0}, {"repetition_penalty": -1}, {"do_sample": 1}]
)
def test_settings_that_cannot_work(wrong):
    with pytest.raises(BadInputError, match=next(iter(wrong))):
        GenerationSettings(**wrong)


def test_greedy_settings_leave_sampling_out_and_say_nothing(recwarn):
    assert GREEDY.in_use() == {"max_new_tokens": 12, "do_sample": False, "repetition_penalty": 1.1}
    assert not recwarn


def test_a_prompt_is_a_text_a_chat_ids_or_messages(tokenizer):
    rendered = render_chat(tokenizer, [{"role": "user", "content": "Hello"}])
    messages = [{"role": "user", "content": "Look", "image": "cat.png"}]
    assert as_prompt(3, "Hello") == Prompt(3, "Hello")
    assert as_prompt(3, rendered).input_ids == rendered.input_ids
    assert as_prompt(3, messages) == Prompt(3, "Look", messages=messages, image="cat.png")
    ids = tokenizer("The sky")["input_ids"]
    assert as_prompt(3, ids, tokenizer) == Prompt(3, "The sky", input_ids=ids)
    with pytest.raises(BadInputError, match="float"):
        as_prompt(3, 1.5, tokenizer)


def test_special_tokens_are_there_once_and_text_never_becomes_one(llama3_tokenizer):
    begin = llama3_tokenizer.bos_token_id
    text = "What is <|eot_id|> for?"
    for prompt in (Prompt(0, text), chat(0, text)):
        ids = prompt_token_ids(llama3_tokenizer, prompt)
        assert ids.count(begin) == 1 and ids[0] == begin
        assert ids.count(llama3_tokenizer.convert_tokens_to_ids("<|eot_id|>")) == (prompt.messages is not None)


def test_a_prompt_and_its_answer_fit_into_the_context(tokenizer):
    length = len(prompt_token_ids(tokenizer, chat(0, "Hello")))
    assert prompt_token_ids(tokenizer, chat(0, "Hello"), context=length + 5, max_new_tokens=5)
    with pytest.raises(PromptTooLongError, match=f"context of {length + 4}"):
        prompt_token_ids(tokenizer, chat(0, "Hello"), context=length + 4, max_new_tokens=5)


def test_terminators_are_the_models_the_tokenizers_and_eot(model, tokenizer, llama3_tokenizer):
    assert terminator_ids(tokenizer, model) == [tokenizer.eos_token_id]
    assert llama3_tokenizer.convert_tokens_to_ids("<|eot_id|>") in terminator_ids(llama3_tokenizer)


def test_an_answer_is_cut_by_position_and_not_by_its_words(tokenizer):
    text = "The assistant said: assistant\n\nyes"
    ids = tokenizer(text)["input_ids"]
    end = tokenizer.eos_token_id
    assert answer_text(tokenizer, ids, [end]) == text
    assert answer_text(tokenizer, [*ids, end, *ids, end], [end]) == text


# --- batches


def test_windows_take_no_more_than_they_need():
    numbers = count()
    assert next(in_windows(numbers, 3)) == [0, 1, 2]
    assert next(numbers) == 3
    assert list(in_windows("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]]


def test_batches_hold_prompts_of_like_length_the_longest_first():
    encoded = [(Prompt(i, ""), [0] * length) for i, length in enumerate([3, 9, 4, 8, 1])]
    encoded.append((Prompt(5, "", image="cat.png"), [0] * 5))
    lengths = [[len(ids) for _, ids in batch] for batch in batches_by_length(encoded, 2)]
    assert lengths == [[9, 8], [4, 3], [1], [5]]


def test_padding_is_on_the_left_hidden_and_no_foreign_token():
    input_ids, attention_mask = left_padded([[7, 8, 9], [5]])
    assert input_ids.tolist() == [[7, 8, 9], [5, 5, 5]]
    assert attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_tiny_models_answer_in_batches_as_one_by_one(tiny, batch_size, penalty):
    settings = GenerationSettings(do_sample=False, max_new_tokens=10, repetition_penalty=penalty)
    generator = torch.Generator().manual_seed(1)
    lengths = (5, 1, 17, 2, 9, 30, 4, 4, 12, 3)
    prompts = [torch.randint(1, 63, (n,), generator=generator).tolist() for n in lengths]
    expected = {i: " ".join(map(str, alone(tiny, ids, settings))) for i, ids in enumerate(prompts)}
    engine = TransformersEngine(tiny, Numbers(), batch_size=batch_size)
    answers = dict(engine.generate((Prompt(i, "", input_ids=ids) for i, ids in enumerate(prompts)), settings))
    assert answers == expected


def test_the_default_model_answers_a_batch_as_one_by_one(model, tokenizer):
    texts = [text[:10] for text in load_prompts("english")[:3] + load_prompts("chinese")[:3]]
    one, six = measure_batch_sizes(model, tokenizer, texts, (1, 6), rounds=1, do_sample=False, max_new_tokens=4)
    assert six.answers == one.answers


def test_a_chat_of_the_default_model_is_answered_as_the_model_does_alone(model, tokenizer):
    prompts = [chat(0, "What is the capital of France?"), chat(1, "你好"), Prompt(2, "The sky")]
    settings = GenerationSettings(do_sample=False, max_new_tokens=8)
    answers = dict(TransformersEngine(model, tokenizer).generate(iter(prompts), settings))
    for prompt in prompts:
        steps = generate_steps(model, tokenizer, prompt_token_ids(tokenizer, prompt), **settings.in_use())
        ids = [step.token_id for step in steps if step.stopped_by != "end_of_turn"]
        assert answers[prompt.index] == tokenizer.decode(ids).strip()


def test_sampling_takes_all_settings_from_here_and_none_from_the_model(tiny):
    settings = GenerationSettings(max_new_tokens=20, temperature=1.5, top_k=10, top_p=0.95)
    tiny.generation_config.temperature, tiny.generation_config.top_k = 0.1, 1
    before = tiny.generation_config.to_dict()
    torch.manual_seed(3)
    ((_, answer),) = TransformersEngine(tiny, Numbers()).generate([Prompt(0, "", input_ids=[5, 6])], settings)
    steps = generate_steps(tiny, Numbers(), [5, 6], **settings.in_use(), seed=3)
    assert answer == " ".join(str(s.token_id) for s in steps if s.stopped_by != "end_of_turn")
    assert tiny.generation_config.to_dict() == before


ITS_OWN_SETTINGS = [
    *({"stop_strings": ["1"]}, {"return_dict_in_generate": True, "output_scores": True}, {"num_return_sequences": 2}),
    *({"max_time": 1e-9}, {"forced_eos_token_id": 7}, {"forced_bos_token_id": 7}, {"guidance_scale": 1.5}),
    *({"exponential_decay_length_penalty": (1, 9.0)}, {"no_repeat_ngram_size": 1}, {"suppress_tokens": [*range(32)]}),
    *({"begin_suppress_tokens": [*range(32)]}, {"bad_words_ids": [[n] for n in range(32)]}, {"min_new_tokens": 9}),
    *({"sequence_bias": [[[n], 99.0] for n in range(5)]}, {"num_beams": 3}, {"eos_token_id": [*range(64)]}),
    *({"encoder_repetition_penalty": 3.0}, {"cache_implementation": "static"}, {"use_cache": False}),
    *({"min_p": 0.9}, {"typical_p": 0.1}, {"top_h": 0.1}, {"epsilon_cutoff": 0.5}, {"eta_cutoff": 0.5}),
    *({"renormalize_logits": True}, {"remove_invalid_values": True}, {"pad_token_id": 5}, {"max_length": 3}),
    *({"prompt_lookup_num_tokens": 3}, {"penalty_alpha": 0.6}, {"output_attentions": True}),
]


@pytest.mark.parametrize("its_own", ITS_OWN_SETTINGS, ids=lambda settings: next(iter(settings)))
@pytest.mark.parametrize("do_sample", [False, True])
def test_nothing_in_a_models_generation_config_changes_an_answer(new_tiny, its_own, do_sample):
    def answers(model, terminators):
        engine = TransformersEngine(model, Numbers())
        engine.terminators = terminators
        torch.manual_seed(3)
        prompts = [Prompt(0, "", input_ids=[5, 6, 7]), Prompt(1, "", input_ids=[9])]
        return dict(engine.generate(iter(prompts), settings))

    settings = GenerationSettings(max_new_tokens=8, do_sample=do_sample, temperature=1.5)
    model = new_tiny("Llama")
    plain = answers(model, [63])
    for name, value in its_own.items():
        setattr(model.generation_config, name, value)
    before = model.generation_config
    assert answers(model, [63]) == plain
    assert all(isinstance(answer, str) for answer in plain.values())
    assert model.generation_config is before and all(getattr(before, k) == v for k, v in its_own.items())


def test_an_engine_reads_no_further_ahead_than_its_window(tiny):
    taken = []
    prompts = (taken.append(i) or Prompt(i, "", input_ids=[5]) for i in count())
    engine = TransformersEngine(tiny, Numbers(), batch_size=2, window=3)
    assert len(list(islice(engine.generate(prompts, GREEDY), 6))) == 6
    assert len(taken) == 6
    with pytest.raises(BadInputError, match="at least 1"):
        TransformersEngine(tiny, Numbers(), batch_size=0)


# --- what fails


def test_a_prompt_that_fails_within_a_batch_leaves_the_others_alone(tiny, monkeypatch):
    sizes = []
    generate = tiny.generate

    def out_of_memory(input_ids, **settings):
        sizes.append(len(input_ids))
        if (input_ids == 13).any():
            raise RuntimeError("out of memory")
        return generate(input_ids=input_ids, **settings)

    monkeypatch.setattr(tiny, "generate", out_of_memory)
    prompts = [Prompt(i, "", input_ids=[5, 13 if i == 2 else 6]) for i in range(4)]
    answers = dict(TransformersEngine(tiny, Numbers(), batch_size=4).generate(iter(prompts), GREEDY))
    assert sizes == [4, 1, 1, 1, 1]
    assert [isinstance(answers[i], str) for i in range(4)] == [True, True, False, True]
    assert str(answers[2]) == "out of memory"


class Room:
    """Memory for so many rows at once: `torch.OutOfMemoryError` in the model's forward for more."""

    def __init__(self, model, monkeypatch, rows):
        self.rows, self.sizes, self.forward = rows, [], model.forward
        monkeypatch.setattr(model, "forward", self)

    def __call__(self, *, input_ids, **inputs):
        if inputs["past_key_values"].get_seq_length() == 0:
            self.sizes.append(len(input_ids))
        if len(input_ids) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return self.forward(input_ids=input_ids, **inputs)


@pytest.mark.parametrize(
    ("rows", "sizes", "halvings"),
    [(8, [8, 8, 3], 0), (5, [8, 4, 4, 4, 4, 3], 1), (3, [8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1], 2)],
)
def test_where_memory_ends_the_batch_is_halved_and_the_run_goes_on(
    new_tiny, monkeypatch, capsys, rows, sizes, halvings
):
    model = new_tiny("Llama")
    prompts = [Prompt(i, "", input_ids=[5, 6 + i]) for i in range(19)]
    alone = dict(TransformersEngine(model, Numbers(), batch_size=1).generate(iter(prompts), GREEDY))
    room = Room(model, monkeypatch, rows)
    assert dict(TransformersEngine(model, Numbers(), batch_size=8).generate(iter(prompts), GREEDY)) == alone
    assert room.sizes == sizes
    said = capsys.readouterr().err.splitlines()
    assert len(said) == halvings
    assert all("does not fit in memory: continuing with" in line for line in said)


def test_a_prompt_that_does_not_fit_alone_fails_alone_and_says_so(new_tiny, monkeypatch):
    model = new_tiny("Llama")
    room = Room(model, monkeypatch, 0)
    answers = dict(TransformersEngine(model, Numbers(), batch_size=4).generate([Prompt(0, "", input_ids=[5])], GREEDY))
    assert room.sizes == [1]
    assert isinstance(answers[0], DoesNotFitError)
    assert "This prompt ran out of memory on cpu" in str(answers[0])


@pytest.mark.parametrize("settings", [GREEDY, GenerationSettings(max_new_tokens=3, temperature=0.7)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_end_the_run_and_are_named(new_tiny, settings, value):
    model = new_tiny("Llama")
    model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    prompts = [Prompt(i, "", input_ids=[5 + i]) for i in range(4)]
    with pytest.raises(
        DamagedFilesError, match=r"weights of .* not all numbers: .*layers\.1\.mlp\.down_proj"
    ) as caught:
        list(TransformersEngine(model, Numbers(), batch_size=2).generate(iter(prompts), settings))
    assert "temperature" not in str(caught.value)


def test_scores_that_overflow_for_one_prompt_fail_it_alone(new_tiny):
    model = new_tiny("Llama")

    def overflow(module, args, inputs, outputs):
        outputs.logits.masked_fill_((inputs["input_ids"] == 13).any(), torch.inf)

    model.register_forward_hook(overflow, with_kwargs=True)
    prompts = [Prompt(i, "", input_ids=[5, 13 if i == 1 else 6]) for i in range(3)]
    answers = dict(TransformersEngine(model, Numbers()).generate(iter(prompts), GenerationSettings(max_new_tokens=1)))
    assert isinstance(answers[1], NotANumberError) and "temperature" not in str(answers[1])
    assert isinstance(answers[0], str) and isinstance(answers[2], str)


def test_ids_that_the_model_has_no_embedding_for_fail_alone(new_tiny):
    class More(Numbers):
        def __len__(self):
            return 100

    prompts = [Prompt(0, "", input_ids=[5, 90]), Prompt(1, "", input_ids=[5])]
    answers = dict(TransformersEngine(new_tiny("Llama"), More()).generate(iter(prompts), GREEDY))
    assert isinstance(answers[0], BadInputError) and "Token id 90" in str(answers[0])
    assert isinstance(answers[1], str)


@pytest.mark.parametrize(
    "wrong", [{"batch_size": "x"}, {"batch_size": 2.5}, {"batch_size": True}, {"window": None}, {"batch_size": -1}]
)
def test_sizes_that_are_none_are_refused(tiny, wrong):
    with pytest.raises(BadInputError, match=f"{next(iter(wrong))} must be a whole number of at least 1"):
        TransformersEngine(tiny, Numbers(), **wrong)


@pytest.mark.parametrize(("model", "tokenizer"), [(None, Numbers()), ("smollm2-135m", Numbers()), (5, None)])
def test_what_is_no_model_is_refused(model, tokenizer):
    with pytest.raises(BadInputError, match="model must be what load_model returns"):
        TransformersEngine(model, tokenizer)


def test_what_is_no_tokenizer_is_refused(tiny):
    for wrong in (None, 5, "smollm2-135m", tiny):
        with pytest.raises(BadInputError, match="tokenizer must be what load_tokenizer or load_processor returns"):
            TransformersEngine(tiny, wrong)


def test_a_prompt_that_cannot_be_tokenized_or_is_too_long_is_an_answer(tiny):
    tiny.config.max_position_embeddings = 20
    prompts = [Prompt(0, "", input_ids=[5] * 9), Prompt(1, "", input_ids=[5]), Prompt(2, "", messages=[{}])]
    answers = dict(TransformersEngine(tiny, Numbers()).generate(iter(prompts), GREEDY))
    assert isinstance(answers[0], PromptTooLongError) and isinstance(answers[1], str)
    assert isinstance(answers[2], BadInputError)


def test_a_stop_by_the_reader_is_no_failure_of_a_prompt(tiny, monkeypatch):
    def stopped(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "generate", stopped)
    with pytest.raises(KeyboardInterrupt):
        list(TransformersEngine(tiny, Numbers()).generate([Prompt(0, "", input_ids=[5])], GREEDY))


# --- pictures


def _looking(index, text, image):
    image = image and str(FOLDER / VISION / "images" / image)
    message = {"role": "user", "content": text} | ({"image": image} if image else {})
    return Prompt(index, text, messages=[message], image=image)


def test_pictures_go_in_batches_of_their_own_with_the_same_answers():
    names = sorted(path.name for path in (FOLDER / VISION / "images").iterdir())
    prompts = [_looking(i, "描述一下这张图片" * (i + 1), names[i % len(names)] if i % 3 else None) for i in range(6)]
    with one_thread():
        engine = TransformersEngine(glm(VISION), glm_processor(VISION), batch_size=6)
        together = dict(engine.generate(iter(prompts), GREEDY))
        each = {i: text for prompt in prompts for i, text in engine.generate([prompt], GREEDY)}
    assert together == each
    assert all(isinstance(text, str) for text in each.values())


def test_a_picture_that_cannot_be_read_fails_alone(tmp_path):
    names = sorted(path.name for path in (FOLDER / VISION / "images").iterdir())
    prompts = [_looking(0, "?", names[0]), _looking(1, "?", "missing.png")]
    with one_thread():
        answers = dict(TransformersEngine(glm(VISION), glm_processor(VISION)).generate(iter(prompts), GREEDY))
    assert isinstance(answers[0], str)
    assert "missing.png" in str(answers[1])


def test_running_out_of_memory_counts_the_picture_and_its_positions(monkeypatch):
    model, processor = glm(VISION), glm_processor(VISION)

    def out_of_memory(*args, **inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(model.model, "forward", out_of_memory)
    monkeypatch.setattr(model.config.vision_config, "intermediate_size", 10_000)  # takes more than all the rest
    prompt = _looking(0, "?", min(path.name for path in (FOLDER / VISION / "images").iterdir()))
    ((_, error),) = TransformersEngine(model, processor).generate([prompt], GREEDY)
    assert isinstance(error, DoesNotFitError) and "omit the picture" in str(error)
    ids = prompt_token_ids(processor, prompt)
    seen = len(ids) - 3 + picture_memory(model.config, 1).positions  # in place of begin, placeholder and end
    assert error.needed_bytes == run_bytes(model, seen, 12, pictures=1) > run_bytes(model, seen, 12)


def test_a_model_that_does_not_see_says_so(tiny, model, tokenizer):
    prompt = Prompt(0, "?", messages=[{"role": "user", "content": "?", "image": "cat.png"}], image="cat.png")
    ((_, answer),) = TransformersEngine(model, tokenizer).generate([prompt], GREEDY)
    assert isinstance(answer, BadInputError) and "does not see" in str(answer)


GLM41_TOKENS = ["<|begin_of_image|>", "<|image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"]
GLM41_TEMPLATE = """{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}
{%- if part.type == 'image' %}{{ '<|begin_of_image|><|image|><|end_of_image|>' }}{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


@pytest.fixture(scope="module")
def glm41(tmp_path_factory):
    """A random model of GLM-4.1V's architecture and its processor, loaded from a folder with the files of its kind."""
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_processor, load_tokenizer

    folder = tmp_path_factory.mktemp("glm-4.1v")
    tokenizer = load_tokenizer("smollm2-135m")
    tokenizer.add_special_tokens({"additional_special_tokens": GLM41_TOKENS})
    tokenizer.chat_template = GLM41_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48}
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0, "mrope_section": [1, 1, 2]}
    text = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    places = tokenizer.convert_tokens_to_ids(GLM41_TOKENS)
    names = [f"{name}_token_id" for name in ("image_start", "image", "image_end", "video_start", "video_end")]
    config = Glm4vConfig(
        text_config={**sizes, **text, "rope_parameters": rope, "pad_token_id": 0, "eos_token_id": 2},
        vision_config={**sizes, "depth": 1, "num_heads": 2, "out_hidden_size": 32, "image_size": 56},
        **dict(zip(names, places, strict=True)),
    )
    model = Glm4vForConditionalGeneration(config)
    for parameter in model.parameters():  # pictures that make a difference
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    Glm4vImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112}).save_pretrained(folder)
    return load_model(str(folder), device="cpu"), load_processor(str(folder))


def _glm41_by_hand(glm41, ids, picture, **settings):
    """One prompt through `generate`, its picture's places counted from the picture's size."""
    from helpers.text.pictures import open_picture

    model, processor = glm41
    pixels = processor.image_processor(images=[open_picture(picture)], return_tensors="pt")
    _, height, width = pixels["image_grid_thw"][0].tolist()
    place = model.config.image_token_id
    at = ids.index(place)
    ids = torch.tensor([ids[:at] + [place] * (height // 2 * (width // 2)) + ids[at + 1 :]])
    written = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == place).long(), **pixels,
        pad_token_id=0, eos_token_id=terminator_ids(processor, model), **settings | {"do_sample": False},
    )  # fmt: skip
    return written[0, ids.shape[1] :].tolist()


def test_glm41_answers_text_and_pictures_in_a_batch_as_alone(glm41):
    model, processor = glm41
    names = sorted(path.name for path in (FOLDER / VISION / "images").iterdir())[:4]
    prompts = [_looking(i, "Describe it." * (i + 1), name) for i, name in enumerate(names)]
    prompts += [Prompt(4, "The sky"), chat(5, "What is the capital of France?"), _looking(6, "?", "missing.png")]
    with one_thread():
        together = dict(TransformersEngine(model, processor).generate(iter(prompts), GREEDY))
        alone = dict(TransformersEngine(model, processor, batch_size=1).generate(iter(prompts), GREEDY))
        plain = dict(TransformersEngine(model, processor.tokenizer).generate(iter(prompts), GREEDY))
        for index, prompt in enumerate(prompts[:4]):
            ids = prompt_token_ids(processor, prompt)
            assert ids.count(model.config.image_token_id) == 1
            by_hand = _glm41_by_hand(glm41, ids, prompt.messages[0]["image"], **GREEDY.in_use())
            assert together[index] == answer_text(processor, by_hand, terminator_ids(processor, model))
    assert [together[i] for i in range(6)] == [alone[i] for i in range(6)]
    assert len({together[i] for i in range(4)}) > 1  # the pictures make a difference
    assert [together[4], together[5]] == [plain[4], plain[5]]
    assert "missing.png" in str(together[6])
    assert isinstance(plain[0], BadInputError) and "load_processor" in str(plain[0])


def test_glm41_says_what_is_too_long_with_its_picture(glm41, monkeypatch):
    model, processor = glm41
    prompt = _looking(0, "?", "rgb_wide.png")
    length = len(prompt_token_ids(processor, prompt))
    monkeypatch.setattr(model.config.get_text_config(), "max_position_embeddings", length + GREEDY.max_new_tokens)
    ((_, answer),) = TransformersEngine(model, processor).generate([prompt], GREEDY)
    assert isinstance(answer, PromptTooLongError)


def test_glm41_wants_a_picture_asked_for_through_its_template(glm41):
    prompt = Prompt(0, "What is this?", image=str(FOLDER / VISION / "images" / "rgb_wide.png"))
    ((_, answer),) = TransformersEngine(*glm41).generate([prompt], GREEDY)
    assert isinstance(answer, BadInputError) and "of placeholders in the prompt is 0" in str(answer)
    two = _looking(1, "?", "rgb_wide.png")
    two.messages.insert(0, two.messages[0])  # a place too many here does not take the other prompt's picture
    both = dict(TransformersEngine(*glm41).generate([prompt, two], GREEDY))
    assert isinstance(both[0], BadInputError) and isinstance(both[1], str)


def test_glm41_talks_about_pictures_over_several_turns(glm41):
    """Each turn's prompt through `generate` with all pictures so far: the same tokens."""
    model, processor = glm41
    folder = FOLDER / VISION / "images"
    conversation = Conversation(model, processor)
    with one_thread():
        first = conversation.ask("What is this?", str(folder / "rgb_wide.png"), max_new_tokens=4)
        ids = render_chat(processor, conversation.messages[:1]).input_ids
        assert first.output_ids == _glm41_by_hand(glm41, ids, folder / "rgb_wide.png", max_new_tokens=4)
        second = conversation.ask("And why?", max_new_tokens=4)
        ids = render_chat(processor, conversation.messages[:3]).input_ids
        assert second.output_ids == _glm41_by_hand(glm41, ids, folder / "rgb_wide.png", max_new_tokens=4)
        third = conversation.ask("And this?", str(folder / "rgba.png"), max_new_tokens=4)
        settings = GenerationSettings(do_sample=False, max_new_tokens=4, repetition_penalty=1.0)
        for reply, end in ((first, 1), (second, 3), (third, 5)):  # pictures of earlier messages count as well
            prompt = Prompt(0, "", messages=conversation.messages[:end])
            ((_, answer),) = TransformersEngine(model, processor).generate([prompt], settings)
            assert answer == reply.text
    assert third.input_ids.count(model.config.image_token_id) > second.input_ids.count(model.config.image_token_id)
    assert conversation.reused == 0
    with pytest.raises(BadImageError):
        conversation.ask("?", "missing.png")
    assert len(conversation.messages) == 6


def test_glm41_answers_in_the_picture_chat_where_no_word_can_be_picked(glm41):
    from helpers.views.image_chat import ImageChat

    chat = ImageChat(*glm41, picture=str(FOLDER / VISION / "images" / "rgb_wide.png"), pictures={}, max_new_tokens=4)
    with one_thread():
        chat.ask("What is this?")
        assert "".join(chat.answer()) and not chat.talk.trouble
    assert chat.talk.turns[-1].words and not any(word["pick"] for word in chat.view()["turns"][-1]["words"])
    with pytest.raises(BadInputError):
        chat.pick(0, 0)


def test_glm41_talks_about_text_alone(glm41):
    conversation = Conversation(*glm41)
    with one_thread():
        reply = conversation.ask("Hello", max_new_tokens=3)
        again = Conversation(*glm41).ask("Hello", max_new_tokens=3)
    assert reply.output_ids == again.output_ids
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]


def test_a_template_that_knows_no_pictures_says_so(tokenizer):
    processor = PictureProcessor(object(), tokenizer)
    with pytest.raises(BadInputError, match="does not accept these messages"):
        render_chat(processor, [{"role": "user", "content": "?", "image": "cat.png"}])
