"""Every entry of the golden files, against what we compute from the same checkpoint.

Nothing is left out: the tests are made from the entries, an entry that no check knows fails, and
so does a field of an entry that its check does not look at.
"""

import copy
import json
import re
from functools import cache

import pytest
import torch
from glm_fixtures import (
    CHAT,
    FOLDER,
    TOLERANCE,
    VISION,
    glm,
    glm_processor,
    glm_tokenizer,
    golden,
    model_inputs,
    one_thread,
    tensors,
    with_pictures,
)

from helpers.conversation import Conversation

IMPLEMENTATIONS = ("sdpa", "eager")


def entries(name):
    """(path, value) of golden.json: list items each, the parts of a dict each, the rest whole."""
    for key, value in golden(name).items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield from ((f"{key}/{index}", item) for index, item in enumerate(value))
        elif key == "tokenizer":
            for part, content in value.items():
                items = enumerate(content) if part in ("cases", "decode") else [("", content)]
                yield from ((f"tokenizer/{part}/{index}".rstrip("/"), item) for index, item in items)
        elif isinstance(value, dict) and key != "stop":
            yield from ((f"{key}/{part}", content) for part, content in value.items())
        else:
            yield key, value


ENTRIES = [
    pytest.param(name, path, value, id=f"{name}:{path}") for name in (CHAT, VISION) for path, value in entries(name)
]
TENSORS = [pytest.param(name, key, id=f"{name}:{key}") for name in (CHAT, VISION) for key in sorted(tensors(name))]
CHECKS = {}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


def checks(pattern):
    """The function below checks the entries whose path matches."""

    def register(function):
        CHECKS[pattern] = function
        return function

    return register


@pytest.mark.parametrize(("name", "path", "value"), ENTRIES)
def test_entry(name, path, value):
    found = [check for pattern, check in CHECKS.items() if re.fullmatch(pattern, path)]
    assert len(found) == 1, f"{len(found)} checks know the entry {path}"
    value = copy.deepcopy(value)
    found[0](name, path, value)
    assert not isinstance(value, dict) or not value, f"fields that no check looked at: {sorted(value)}"


def test_every_check_is_used():
    paths = [path for name in (CHAT, VISION) for path, _ in entries(name)]
    assert all(any(re.fullmatch(pattern, path) for path in paths) for pattern in CHECKS)
    assert len(ENTRIES) > 120
    assert len(TENSORS) > 100


# The tokenizer


@checks("about/(made_by|hidden_states|images_are_opened_with|seed)|chat_stubbed_note")
def remark(name, path, value):
    assert value, "remarks on how the goldens were made, nothing to compute"


@checks("about/name")
def checkpoint_name(name, path, value):
    assert value == name


@checks("about/image_files")
def image_files(name, path, value):
    folder = FOLDER / name / "images"
    assert sorted(value) == sorted(file.name for file in folder.glob("*"))


@checks("about/special_tokens")
def special_tokens(name, path, value):
    ids = {token: value.pop(token) for token in list(value)}
    assert glm_tokenizer(name).get_added_vocab() == ids
    assert sorted(glm_tokenizer(name).all_special_ids) == sorted(ids.values())


@checks("about/stop_ids")
def stop_ids(name, path, value):
    assert glm(name).generation_config.eos_token_id == value
    assert glm(name).config.eos_token_id == value


@checks("tokenizer/(vocab_size|eos_token_id|pad_token_id|padding_side|model_input_names)")
def tokenizer_attribute(name, path, value):
    assert getattr(glm_tokenizer(name), path.split("/")[1]) == value


@checks("tokenizer/len")
def tokenizer_length(name, path, value):
    assert len(glm_tokenizer(name)) == value


@checks("tokenizer/prefix_ids")
def prefix_ids(name, path, value):
    assert glm_tokenizer(name)("")["input_ids"] == value


@checks("tokenizer/pattern")
def split_pattern(name, path, value):
    splits = json.loads(glm_tokenizer(name).backend_tokenizer.to_str())["pre_tokenizer"]["pretokenizers"]
    assert splits[0]["pattern"]["Regex"] == value


@checks(r"tokenizer/cases/\d+")
def tokenizer_case(name, path, value):
    tokenizer, text = glm_tokenizer(name), value.pop("text")
    plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert plain == value.pop("content_ids")
    assert tokenizer.encode(text, add_special_tokens=False) == value.pop("encode_no_special")
    assert tokenizer.encode(text) == value.pop("encode")
    assert dict(tokenizer(text)) == value.pop("call")
    assert tokenizer.decode(plain) == value.pop("decode_content_ids")


@checks(r"tokenizer/decode/\d+")
def decoding(name, path, value):
    tokenizer, ids = glm_tokenizer(name), value.pop("ids")
    value.pop("note", None)
    assert spaced(name, ids) == value.pop("text")
    assert tokenizer.decode(ids) == value.pop("text_no_space_between_special", tokenizer.decode(ids))
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert text == value.pop("text_skip_special", text)


def spaced(name, ids):
    """Decoded as the old slow tokenizers did it: each special token with a space on either side."""
    tokenizer, parts, run = glm_tokenizer(name), [], []
    for token_id in ids:
        if token_id in tokenizer.all_special_ids:
            parts += [tokenizer.decode(run)] * bool(run) + [tokenizer.decode([token_id])]
            run = []
        else:
            run.append(token_id)
    return " ".join(parts + [tokenizer.decode(run)] * bool(run))


@checks(r"chat_template/\d+")
def chat_template(name, path, value):
    tokenizer = glm_tokenizer(name)
    value.pop("name")
    conversation = with_pictures(name, value.pop("conversation"))
    prompt = glm_processor(name).apply_chat_template(conversation, add_generation_prompt=True)
    assert prompt["input_ids"] == value.pop("ids_generation_prompt")
    assert prompt["position_ids"] == value.pop("position_ids")
    assert prompt["attention_mask"] == [1] * len(prompt["input_ids"])
    assert glm_processor(name).apply_chat_template(conversation, return_dict=False) == value.pop("ids")
    without_prefix = {"add_special_tokens": False, "add_generation_prompt": True, "return_dict": False}
    assert glm_processor(name).apply_chat_template(conversation, **without_prefix) == value.pop("ids_no_prefix")
    # Our text shows the picture's ids, which the original left out of it.
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    generation_text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    place = "<|begin_of_image|><|endoftext|><|end_of_image|>"
    assert (text.count(place) == 1) == value.pop("has_images")
    assert text.replace(place, "") == value.pop("text")
    assert generation_text.replace(place, "") == value.pop("text_generation_prompt")
    # And the same through encode_chat, by message.
    chat = tokenizer.encode_chat(conversation)
    assert (chat.input_ids, chat.text) == (prompt["input_ids"], generation_text)
    assert [i for s in chat.segments for i in range(s.start, s.stop)] == list(range(len(chat)))


@checks("two_images")
def two_images(name, path, value):
    from helpers.errors import BadInputError

    assert "Multiple images are not supported" in value
    turn = {"role": "user", "image": FOLDER / name / "images" / "rgb_wide.png", "content": "?"}
    with pytest.raises(BadInputError, match="only one per conversation"):
        glm_processor(name).apply_chat_template([turn, turn])


@checks("unconverted_modes/.*")
def unconverted_modes(name, path, value):
    """The original needs RGB and fails on these; we convert, with the numbers of `.convert("RGB")`."""
    from PIL import Image

    file = path.split("/")[1]
    picture = Image.open(FOLDER / name / "images" / file)
    assert picture.mode == value.pop("mode")
    assert value.pop("result").startswith("RuntimeError")
    expected = tensors(name)[f"image/{file.removesuffix('.png')}/images"]
    assert torch.equal(glm_processor(name)(images=picture)["pixel_values"], expected)


# One forward pass, with everything inside it


@cache
def run(name, implementation, tag):
    """What the model makes of a golden conversation, under the names of the golden tensors."""
    model = glm(name, implementation)
    record = next(r for r in golden(name)["forward"] + golden(name)["batch"] if r["tag"] == tag)
    conversations = record.get("conversations") or [record["conversation"]]
    inputs = model_inputs(name, conversations)
    seen = dict(inputs)
    if "pixel_values" in seen:
        seen["images"] = seen.pop("pixel_values")
    hooks = list(watch(model, seen))
    with torch.inference_mode():
        outputs = model(**inputs, output_hidden_states=True, output_attentions=implementation == "eager")
    for hook in hooks:
        hook.remove()
    expanded = model.expand_inputs(
        inputs["input_ids"], inputs.get("pixel_values"), attention_mask=inputs["attention_mask"]
    )
    return seen | {
        "logits": outputs.logits,
        # transformers gives the last one after the final norm, the original before it
        "hidden_states": torch.stack([*outputs.hidden_states[:-1], seen["last_layer"]]),
        "last_hidden_state": outputs.hidden_states[-1],
        "expanded_attention_mask": expanded.attention_mask,
        "expanded_position_ids": expanded.position_ids,
        "attentions": outputs.attentions,
    }


def watch(model, seen):
    """Hooks that keep what the layers were given and what the tower's parts gave."""

    def keep_input(module, args, kwargs):
        seen["inputs_embeds"] = args[0]
        seen["used_position_ids"], seen["used_mask"] = kwargs["position_ids"], kwargs["attention_mask"]

    def keep(key, part=lambda output: output):
        return lambda module, args, output: seen.__setitem__(key, part(output))

    layers = model.model.layers
    yield layers[0].register_forward_pre_hook(keep_input, with_kwargs=True)
    yield layers[-1].register_forward_hook(keep("last_layer"))
    if "images" in seen:
        vision = model.model.vision
        yield vision.register_forward_hook(keep("vision_out", lambda output: output.last_hidden_state))
        yield vision.patch_embedding.register_forward_hook(keep("vision_patch_embedding"))
        yield vision.conv.register_forward_hook(keep("vision_conv"))
        yield vision.linear_proj.register_forward_hook(keep("vision_glu"))
        for index, layer in enumerate(vision.transformer["layers"]):
            yield layer.register_forward_hook(keep(f"vision_layer_{index}", lambda output: output[0]))


@cache
def continued(name, implementation, tag):
    """Greedy continuation of a golden conversation, as many tokens as the original made."""
    section = "batch" if tag.startswith("batch/") else "greedy"
    record = next(r for r in golden(name)[section] if r["tag"] == tag)
    inputs = model_inputs(name, record.get("conversations") or [record["conversation"]])
    length = torch.tensor(record["new_ids"]).shape[-1]
    return inputs | continue_greedily(glm(name, implementation), inputs, length)


def continue_greedily(model, inputs, length):
    positions = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: positions.append(kwargs["position_ids"]), with_kwargs=True
    )
    settings = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    output = model.generate(**inputs, max_new_tokens=length, **settings)
    hook.remove()
    steps = torch.stack(output.logits, dim=1)
    top = steps.topk(2).values
    return {
        "new_ids": output.sequences[:, inputs["input_ids"].shape[1] :],
        "step_logits": steps,
        "step_position_ids": positions,
        "min_top2_gap": float((top[..., 0] - top[..., 1]).min()),
    }


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("name", "key"), TENSORS)
def test_tensor(name, implementation, key):
    tag, kind = key.rsplit("/", 1)
    expected = tensors(name)[key]
    if tag.startswith("greedy/") or kind == "new_ids":
        ours = continued(name, implementation, tag.removeprefix("greedy/"))[kind]
    elif kind == "masked_out":
        ours = masked_out(name, implementation, tag)
    else:
        ours = run(name, implementation, tag)[kind]
    real = real_positions(name, tag)
    if kind == "masked_out":  # which keys a padding query sees means nothing, and differs
        ours, expected = ours.transpose(1, 2)[real], expected.bool().transpose(1, 2)[real]
    elif kind == "logits":
        ours, expected = ours[real], expected[real]
    assert ours.shape == expected.shape
    if expected.is_floating_point():
        assert (ours - expected).abs().max() <= TOLERANCE
    else:
        assert torch.equal(ours, expected)


def real_positions(name, tag):
    """[batch, position] of what the model sees: False at padding."""
    given = tensors(name)
    mask = given.get(f"{tag}/expanded_attention_mask", given.get(f"{tag}/attention_mask"))
    return mask.bool() if tag.startswith("batch/") else slice(None)


def masked_out(name, implementation, tag):
    """[batch, 1, query, key]: True where a query does not see a key, from the mask the layers got."""
    mask = run(name, implementation, tag)["used_mask"]
    return ~mask if mask.dtype == torch.bool else mask < 0


@checks(r"forward/\d+")
def forward(name, path, value):
    tag, conversation = value.pop("tag"), value.pop("conversation")
    if picture := value.pop("image", None):
        assert [m["image"] for m in conversation if "image" in m] == [picture]
    ours = run(name, "eager", tag)
    assert ours["input_ids"].shape[1] == value.pop("prompt_len")
    assert ours["logits"].shape[1] == value.pop("seq_len")
    assert ours["expanded_position_ids"].equal(ours["used_position_ids"])
    assert float(ours["logits"].std()) == pytest.approx(value.pop("logits_std"), abs=TOLERANCE)
    for weights, (entropy, highest) in zip(ours["attentions"], value.pop("attention_entropy_and_max"), strict=True):
        queries = torch.arange(weights.shape[-1])
        late = weights[0, :, weights.shape[-1] // 2 :]  # the later half of the queries
        evenness = -torch.xlogy(late, late).sum(-1) / (queries[weights.shape[-1] // 2 :] + 1).log()
        assert float(evenness.mean()) == pytest.approx(entropy, abs=TOLERANCE)
        assert float(late.amax(-1).mean()) == pytest.approx(highest, abs=TOLERANCE)


# Generation


@checks(r"greedy/\d+")
def greedy(name, path, value):
    tag = value.pop("tag")
    value.pop("conversation")
    assert value.pop("equals_original_generate") is True
    new_ids, text = value.pop("new_ids"), value.pop("text")
    gap, position = value.pop("min_top2_gap"), value.pop("first_step_position")
    for implementation in IMPLEMENTATIONS:
        ours = continued(name, implementation, tag)
        assert ours["new_ids"][0].tolist() == new_ids
        assert spaced(name, ours["new_ids"][0].tolist()) == text
        assert ours["min_top2_gap"] == pytest.approx(gap, abs=2 * TOLERANCE)
        assert ours["step_position_ids"][1].tolist() == [[position]]


@checks("stop")
def stop(name, path, value):
    inputs = model_inputs(name, [value.pop("conversation")])
    output = glm(name).generate(**inputs, do_sample=False, max_new_tokens=40)
    new_ids = output[0, inputs["input_ids"].shape[1] :].tolist()
    assert new_ids == value.pop("new_ids")
    assert new_ids[-1] == value.pop("stop_id")
    assert spaced(name, new_ids) == value.pop("text")
    assert glm_tokenizer(name).decode(new_ids, skip_special_tokens=True) == value.pop("text_skip_special")


@checks(r"batch/\d+")
def batch(name, path, value):
    tag, conversations = value.pop("tag"), value.pop("conversations")
    value.pop("note")
    new_ids, gap = value.pop("new_ids"), value.pop("min_top2_gap")
    for implementation in IMPLEMENTATIONS:
        ours = continued(name, implementation, tag)
        assert ours["new_ids"].tolist() == new_ids
        assert ours["min_top2_gap"] == pytest.approx(gap, abs=2 * TOLERANCE)
    real = real_positions(name, tag)
    together = run(name, "sdpa", tag)["logits"]
    for row, (conversation, difference) in enumerate(
        zip(conversations, value.pop("max_abs_diff_to_unbatched"), strict=True)
    ):
        with torch.inference_mode():
            alone = glm(name)(**model_inputs(name, [conversation])).logits
        assert difference <= TOLERANCE
        assert (together[row][real[row]] - alone[0]).abs().max() <= TOLERANCE


@checks("padded_image_batch_in_other_revisions/.*")
def padded_image_batch(name, path, value):
    """One revision of the original fails here, another works: so do we."""
    assert value.startswith("RuntimeError") or value == "prefill max abs diff on real positions 0"
    ours = run(name, "sdpa", "batch/image")
    assert ours["input_ids"].shape[0] == 2
    assert (ours["attention_mask"] == 0).any()


# model.chat of the original, turn by turn


@checks("chat_stub_texts")
def stub_texts(name, path, value):
    tokenizer = glm_tokenizer(name)
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    written = [record["generated_ids"] for record in golden(name)["chat_stubbed"]]
    plain = [tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in value]
    assert [[*ids, user] for ids in plain] == written


@checks(r"chat_(stubbed|stubbed_metadata|image_stubbed)/\d+")
def scripted_turn(name, path, value):
    """The same replies, forced, to the same questions, all in one `Conversation`: prompts, history, response."""
    section, index = path.rsplit("/", 1)
    query, generated, history = value.pop("query"), value.pop("generated_ids"), value.pop("history")
    earlier = golden(name)[section][: int(index)]
    talk = Conversation(glm(name), glm_processor(name))
    for turn in [*earlier, {"query": query, "generated_ids": generated, "history": history}]:
        question = with_pictures(name, turn["history"])[-2]
        assert (question["role"], question["content"]) == ("user", turn["query"])
        ids = turn["generated_ids"]
        before = talk.messages
        reply = talk.ask(turn["query"], question.get("image"), forced_ids=ids, max_new_tokens=len(ids))
    # The original adds to the caller's list; we leave it as it is.
    lengths = value.pop("caller_history_len_before"), value.pop("caller_history_len_after")
    assert lengths == ((len(before), len(before) + 1) if earlier else (None, None))
    assert len(before) == len(history) - 2
    assert reply.input_ids == value.pop("prompt_ids")
    assert list(range(len(reply.input_ids))) == value.pop("position_ids")
    assert (reply.output_ids, reply.stopped_by) == (generated, "end_of_turn")
    assert glm(name).generation_config.eos_token_id == value.pop("eos_token_id")
    assert plain_history(talk.messages) == plain_history(history)
    assert any("image" in message for message in talk.messages) == value.pop("has_images")
    # A call of a tool is a dict there; here it is the whole text, and the history has the parts.
    response = value.pop("response")
    assert reply.text == (response if isinstance(response, str) else "\n".join(response.values()))
    # The same turn in a conversation that begins with what was said before, from the original's history.
    given = with_pictures(name, history[:-2])
    again = Conversation(glm(name), glm_processor(name), messages=given)
    answer = again.ask(query, question.get("image"), forced_ids=generated, max_new_tokens=len(generated))
    assert answer == reply
    assert given == with_pictures(name, history[:-2])


def plain_history(messages):
    """Metadata, mostly none, always there; of a picture only that it is there."""
    return [{"metadata": "", **message} | ({"image": True} if "image" in message else {}) for message in messages]


@checks(r"chat_real/\d+")
def real_turn(name, path, value):
    """Cut by length: the original drops the last token, so its history is not that of a `Conversation`."""
    section, index = path.rsplit("/", 1)
    tokenizer = glm_tokenizer(name)
    before = golden(name)[section][int(index) - 1]["history"] if int(index) else []
    query, history = value.pop("query"), value.pop("history")
    assert history[: len(before)] == before
    question, answer = history[len(before) :]
    assert question == {"role": "user", "content": query}
    chat = tokenizer.encode_chat([*before, question])
    assert chat.input_ids == value.pop("prompt_ids")
    assert list(range(len(chat))) == value.pop("position_ids")
    assert value.pop("has_images") is False
    lengths = value.pop("caller_history_len_before"), value.pop("caller_history_len_after")
    assert lengths == ((len(before), len(before) + 1) if before else (None, None))
    assert glm(name).generation_config.eos_token_id == value.pop("eos_token_id")
    generated = value.pop("generated_ids")
    ours = continue_greedily(glm(name), {"input_ids": torch.tensor([chat.input_ids])}, len(generated))
    assert ours["new_ids"][0].tolist() == generated
    assert ours["min_top2_gap"] == pytest.approx(value.pop("min_top2_gap"), abs=2 * TOLERANCE)
    said = tokenizer.parse_reply(spaced(name, generated[:-1]))
    assert answer == {"role": "assistant", "metadata": "", **said}
    assert value.pop("response") == said["content"]
    # What we add: the last token.
    talk = Conversation(glm(name), tokenizer, messages=before)
    assert talk.ask(query, max_new_tokens=len(generated)).output_ids == generated
    assert talk.reply.stopped_by == "max_new_tokens"
