"""Folders that are damaged, made to trick the reader, or no model: each ends in one sentence, and none opens it."""

import copy
import json
import os
import pickle
import struct
import threading
from functools import reduce

import pytest
import torch
from safetensors.torch import load_file, save_file

import helpers
from helpers.errors import BadInputError, DamagedFilesError, HelpersError, ModelNotFoundError
from helpers.models import hubs, locate, memory, store
from helpers.models.folder import MOST_SETTINGS_BYTES, weight_files
from helpers.models.loading import load_model
from helpers.models.pretrained import load_config, load_processor, load_tokenizer
from helpers.models.weights import weight_shapes

LOADERS = (load_model, load_tokenizer, load_processor, load_config, memory.memory_plan)


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A folder with a tiny Llama in two shards, and a tokenizer of that size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **{"vocab_size": len(tokenizer), "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0},
    )
    model = tmp_path / "model"
    LlamaForCausalLM(config).save_pretrained(model, max_shard_size="1.7MB")
    tokenizer.save_pretrained(model)
    assert len(list(model.glob("*.safetensors"))) >= 2
    return model


@pytest.fixture
def evil(tmp_path):
    """A pickle that would leave a mark, and a function that says whether it was opened."""

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "mark"), "w"))

    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Evil()))
    return tmp_path / "evil.bin"


def change(file, **settings):
    """Other values in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def loaded_or_refused(load, folder):
    """What was loaded, or None where it was refused in a sentence of this package; other errors pass."""
    try:
        return load(folder)
    except HelpersError:
        return None


def within(seconds, task):
    """What a task raises; a failure when it does not end."""
    result = []

    def run():
        try:
            result.append(task())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert result, "it hangs"
    return result[0]


# ---------------------------------------------------------------- indexes

INDEX = "model.safetensors.index.json"
NAMES = [
    *("../../etc/passwd", "/etc/passwd", "evil.bin", "../evil.bin", "../other/model.safetensors", "a/b.safetensors"),
    *("..\\evil.safetensors", "C:evil.safetensors", ".safetensors", "", "x" * 5000 + ".safetensors", "a\0.safetensors"),
    *("model.safetensors.index.json", 5, None, ["a.safetensors"], {"a": 1}, True, 1.5),
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:30])
def test_an_index_names_safetensors_files_of_its_own_folder_alone(folder, evil, tmp_path, name):
    (folder / "evil.bin").write_bytes(evil.read_bytes())
    (tmp_path / "other").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "other" / "model.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = name
    (folder / INDEX).write_text(json.dumps(index))
    for load in LOADERS:
        with pytest.raises(DamagedFilesError, match=r"may name only \.safetensors files of its own folder"):
            load(folder)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "index",
    ["null", "[]", "5", '"x"', "{}", '{"weight_map": []}', '{"weight_map": null}', "[" * 100_000, "{", "\xff", "NaN"],
    ids=lambda text: text[:20],
)
def test_an_index_that_is_none(folder, index):
    (folder / INDEX).write_text(index, encoding="latin-1")
    with pytest.raises(DamagedFilesError, match=r"model\.safetensors\.index\.json cannot be read"):
        load_model(folder)


def test_links_of_a_hub_clients_cache_are_its_own_files_and_others_are_not(folder, tmp_path):
    cache = tmp_path / "models--owner--name"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(folder.iterdir()):
        file.rename(cache / "blobs" / f"{number:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")
    assert load_model(snapshot).config.hidden_size == 8
    assert load_tokenizer(snapshot)("a")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in snapshot.iterdir():
        (elsewhere / file.name).symlink_to(file.resolve())
    with pytest.raises(DamagedFilesError, match="is a link to"):
        load_model(elsewhere)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_to_another_kind_of_file_is_not_followed(folder, evil, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(evil)
    with pytest.raises(DamagedFilesError, match="another kind of file"):
        load_tokenizer(folder)


def test_files_of_a_distributed_run_are_pickles(folder):
    save_file({"a": torch.zeros(1)}, folder / "shard-00001-model-00001-of-00001.safetensors")
    with pytest.raises(DamagedFilesError, match="can run code"):
        load_model(folder)


# ---------------------------------------------------------------- what lies in a file's place


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", INDEX, "generation_config.json"]
)
@pytest.mark.parametrize("kind", ["fifo", "folder", "dangling", "device"])
def test_what_is_no_file_is_named_at_once(folder, name, kind):
    (folder / name).unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to("/dev/zero" if kind == "device" else "gone")
    for load in (load_model, load_tokenizer):
        error = within(20, lambda load=load: load(folder))
        assert isinstance(error, DamagedFilesError) and name in str(error)


@pytest.mark.parametrize("text", ["", "null", "[]", "5", "{" * 5000, "[" * 200_000, "\xff\xfe{", '{"a": '])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_json_that_no_reader_expects(folder, name, text):
    (folder / name).write_text(text, encoding="latin-1")
    with pytest.raises(DamagedFilesError, match=f"{name} cannot be read"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("config.json", MOST_SETTINGS_BYTES + 1),
        ("chat_template.jinja", 6 * 2**30),
        ("additional_chat_templates/tools.jinja", 6 * 2**30),
        ("vocab.json", 6 * 2**30),
        ("merges.txt", 6 * 2**30),
    ],
)
def test_a_file_far_too_large_is_not_read(folder, name, size):
    (folder / name).parent.mkdir(exist_ok=True)
    with open(folder / name, "ab") as file:
        file.truncate(size)  # a sparse file, which takes no space
    with pytest.raises(DamagedFilesError, match="far more than such a file needs"):
        load_tokenizer(folder)


def header(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"short", b"\xff" * 8 + b"{}", b"\0" * 4),
        *map(header, ["null", "5", '"x"', "[]", "{", '{"a": 5}', '{"a": {}}', '{"a": null}']),
        *(
            header(json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | wrong})) + b"\0" * 4
            for wrong in (
                *({"shape": None}, {"shape": 4}, {"shape": [[1]]}, {"shape": [-1]}, {"data_offsets": []}),
                *({"data_offsets": [0, 400]}, {"dtype": "F99"}, {"dtype": 5}, {"shape": [2**63, 2**63]}),
            )
        ),
    ],
)
def test_a_header_that_is_none(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(DamagedFilesError, match=r"model\.safetensors is damaged"):
        weight_shapes(tmp_path)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "settings",
    [
        *(
            {name: value}
            for name in ("hidden_size", "num_hidden_layers", "vocab_size")
            for value in ("x", None, [], 1.5)
        ),
        *({"hidden_size": value} for value in (float("inf"), float("nan"), -8, 0, 2**40, {"a": 1}, True)),
        *({"num_attention_heads": 0}, {"num_attention_heads": 3}, {"num_hidden_layers": 10**9}, {"head_dim": 0}),
        *({"hidden_act": "x"}, {"hidden_act": 5}, {"dtype": "float12"}, {"rope_parameters": 5}, {"eos_token_id": "x"}),
        *(
            {"pad_token_id": 10**6},
            {"model_type": 5},
            {"model_type": None},
            {"model_type": ["llama"]},
            {"__class__": 5},
        ),
        *({"torch_dtype": [1]}, {"architectures": 5}, {"layer_types": ["x"]}, {"rms_norm_eps": "x"}),
        *({"quantization_config": 5}, {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
    ],
    ids=repr,
)
def test_a_config_that_cannot_be_ends_in_one_sentence(folder, settings):
    change(folder / "config.json", **settings)
    for load in (load_model, memory.memory_plan):
        model = loaded_or_refused(load, folder)  # some are what transformers itself takes as it was meant
        assert load is memory.memory_plan or model is None or model(torch.tensor([[1, 2]])).logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(("generation_config.json", {key: 5}) for key in ("watermarking_config", "eos_token_id", "cache_config")),
        *(("generation_config.json", {"temperature": value}) for value in ("x", -1, None)),
        *(("tokenizer_config.json", {key: 5}) for key in ("tokenizer_class", "added_tokens_decoder", "chat_template")),
        *(("tokenizer_config.json", {key: "x"}) for key in ("model_max_length", "__class__", "extra_special_tokens")),
        *(("tokenizer.json", {"model": value}) for value in (None, {"type": "nonsense"}, {"type": "BPE", "vocab": 5})),
        *(("tokenizer.json", {key: 5}) for key in ("normalizer", "pre_tokenizer", "added_tokens", "decoder")),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}}),
    ],
    ids=repr,
)
def test_other_settings_that_cannot_be_end_in_one_sentence(folder, name, settings):
    change(folder / name, **settings)
    for load in (load_model, load_tokenizer):
        loaded_or_refused(load, folder)


def test_what_a_folder_says_never_decides_which_code_runs(folder, tmp_path):
    (folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    classes = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor")
    code = {name: "modeling_evil.Evil" for name in classes}
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        change(folder / name, auto_map=code, custom_generate="evil/evil")
    change(
        folder / "config.json",
        **{name: "evil/kernel" for name in ("_attn_implementation", "attn_implementation", "_experts_implementation")},
        **{
            "_attn_implementation_internal": "evil/kernel",
            "kernel_config": {"kernel_mapping": {"RMSNorm": "evil/x:Y"}},
        },
        **{
            "transformers_weights": "evil.safetensors",
            "configuration_files": ["config.4.0.0.json"],
            "use_kernels": True,
        },
    )
    model = load_model(folder)
    load_tokenizer(folder)
    assert model.config._attn_implementation == "sdpa"
    assert not hasattr(load_config(folder), "auto_map")
    model.generate(torch.tensor([[1, 2]]), max_new_tokens=1)
    assert not (tmp_path / "mark").exists()


# ---------------------------------------------------------------- what is no model, or not the whole one


def test_an_adapter_is_named(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "x/y", "peft_type": "LORA"}')
    save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(BadInputError, match="next to a model"):
        load_model(folder)
    for file in ("config.json", "model.safetensors"):
        (folder / file).unlink(missing_ok=True)
    for load in LOADERS:
        with pytest.raises(BadInputError, match=r"is an adapter .* for 'x/y'\. Merge"):
            load(folder)
    for file in folder.glob("token*"):
        file.unlink()
    with pytest.raises(BadInputError, match="is an adapter"):
        load_model(folder)


def test_a_model_whose_code_is_in_its_folder_is_named(folder):
    change(folder / "config.json", model_type="cogvlm", auto_map={"AutoModelForCausalLM": "modeling_cogvlm.CogVLM"})
    with pytest.raises(DamagedFilesError, match=r"'cogvlm'\. Its code is in the folder \(modeling_cogvlm\.py\)"):
        load_model(folder)
    assert load_tokenizer(folder)("a")  # which needs none of that code


def test_a_config_of_another_vocabulary_or_size_says_which_weight(folder):
    change(folder / "config.json", vocab_size=100)
    with pytest.raises(DamagedFilesError, match=r"lm_head\.weight has the shape \[49152, 8\] instead of \[100, 8\]"):
        load_model(folder)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_another_number_of_layers_is_an_error_and_not_another_model(folder, layers):
    change(folder / "config.json", num_hidden_layers=layers)
    says = r"layers\.3\..* is missing" if layers == 4 else rf"layers\.{layers}\..* belongs to an extra layer"
    with pytest.raises(DamagedFilesError, match=says):
        load_model(folder)


def test_weights_that_no_part_of_the_model_wants_are_named(folder, capsys):
    name = sorted(folder.glob("*.safetensors"))[0].name
    weights = load_file(folder / name) | {"model.extra.weight": torch.zeros(3)}
    save_file(weights, folder / name, metadata={"format": "pt"})
    load_model(folder)
    assert "model.extra.weight" in capsys.readouterr().err


def test_weights_beside_the_models_own_are_neither_counted_nor_opened(folder):
    before = memory.memory_plan(folder)
    save_file({"tok_embeddings.weight": torch.zeros(10, 10)}, folder / "consolidated.safetensors")
    assert memory.memory_plan(folder).weights_bytes == before.weights_bytes
    (folder / "consolidated.safetensors").write_bytes(b"cut")
    model = load_model(folder)
    assert before.weights_bytes == sum(p.numel() * p.element_size() for p in model.parameters())
    assert "consolidated.safetensors" not in {file.name for file in weight_files(folder)}


def test_tied_weights_that_are_stored_twice_are_counted_once(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **{"vocab_size": 64, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "pad_token_id": 0},
        **{"num_attention_heads": 2, "tie_word_embeddings": True},
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert memory.memory_plan(tmp_path, device="cpu").weights_bytes == 4 * model.num_parameters()
    assert load_model(tmp_path, device="cpu").num_parameters() == model.num_parameters()


# ---------------------------------------------------------------- values of the wrong type


@pytest.mark.parametrize("value", [5, 3.5, None, True, b"smollm2-135m", ["smollm2-135m"], {}, "", "a\0b", "x" * 5000])
def test_what_is_no_name(value):
    for load in LOADERS:
        with pytest.raises(BadInputError, match="name"):
            load(value)


@pytest.mark.parametrize(
    "settings",
    [
        *({"device": value} for value in (None, 5, "meta", "xpu", torch.device("meta"), {}, "cuda:x", "")),
        *({"device_map": value} for value in ({"": "cpu"}, 5, "meta", ["cpu"])),
        *({"dtype": value} for value in (None, 5, "int8", torch.int8, [])),
        *({"quantization": value} for value in (4, "4", True, [], "int4")),
        *({"attn_implementation": value} for value in (None, 5, [], "flash")),
        *({"source": value} for value in (5, [], "", "web")),
    ],
    ids=repr,
)
def test_settings_of_the_wrong_type(folder, settings):
    with pytest.raises(BadInputError, match=next(iter(settings)).partition("_map")[0]):
        load_model(folder, **settings)


@pytest.mark.parametrize("name", ["context", "batch"])
@pytest.mark.parametrize("value", ["x", "1", None, 1.5, float("nan"), float("inf"), 0, -1, [], True])
def test_plans_for_what_is_no_number(name, value):
    with pytest.raises(BadInputError, match=f"{name} must be a whole number"):
        memory.memory_plan("smollm2-135m", **{name: value})


def test_the_variable_for_the_models_folder_may_begin_with_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HELPERS_MODELS", "~/models")
    assert store.models_dir() == tmp_path / "models"
    assert hubs.folder_of("owner/name", "modelscope") == tmp_path / "models" / "modelscope" / "owner--name"


def test_a_folder_that_may_not_be_read(folder, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(ModelNotFoundError, match="Permission denied"):
        locate.model_folder(folder)


def test_a_tokenizer_larger_than_the_model_is_refused_before_anything_runs(new_tiny, tokenizer):
    model = new_tiny("Llama")  # 64 tokens
    for run in (
        lambda: helpers.trace(model, tokenizer, "The capital of France"),
        lambda: list(helpers.generate_steps(model, tokenizer, "The capital of France", max_new_tokens=1)),
        lambda: helpers.Conversation(model, tokenizer).ask("The capital of France", max_new_tokens=1),
    ):
        with pytest.raises(BadInputError, match="outside this model's vocabulary"):
            run()


def test_words_that_were_added_to_the_tokenizer_alone_are_named(new_tiny, tokenizer):
    """A text never becomes an added token, so the model ran, on other ids than it was to be trained with."""
    model = new_tiny("Llama")
    model.resize_token_embeddings(len(tokenizer))
    added = copy.deepcopy(tokenizer)
    added.add_tokens(["污染", "环境"])
    says = "ids 0 to 49151, and the tokenizer has 49154 tokens"
    for run in (
        lambda: helpers.trace(model, added, "减少污染"),
        lambda: list(helpers.generate_steps(model, added, "减少污染", max_new_tokens=1)),
        lambda: helpers.Conversation(model, added).ask("减少污染", max_new_tokens=1),
    ):
        with pytest.raises(BadInputError, match=says):
            run()
    special = copy.deepcopy(tokenizer)
    special.add_tokens(["<image>"], special_tokens=True)  # as in Gemma 3, whose text model has no row for it
    assert helpers.trace(model, special, "Hello").logits is not None


def test_nothing_of_the_librarys_own_tables_is_shown(folder, capfd):
    change(folder / "config.json", vocab_size=100)
    with pytest.raises(DamagedFilesError):
        load_model(folder)
    assert "MISMATCH" not in "".join(capfd.readouterr())


def test_a_batch_says_which_id_the_model_does_not_know(new_tiny, tokenizer, tmp_path):
    from helpers.batch import run_batch

    run_batch(new_tiny("Llama"), tokenizer, ["The capital of France"], tmp_path / "p.json")
    assert "outside this model's vocabulary" in (tmp_path / "p.jsonl").read_text()


@pytest.mark.parametrize("size", ["x", -1, 0, 10**9, 1.5, [], True])
def test_the_side_of_a_picture_is_a_number_that_can_be(tmp_path, size):
    import shutil

    shutil.copytree(store.SHIPPED / "tiny-glm4v", tmp_path / "glm")
    change(tmp_path / "glm" / "tokenizer_config.json", image_size=size)
    with pytest.raises(BadInputError, match="image_size must be a whole number"):
        load_processor(tmp_path / "glm")


# ---------------------------------------------------------------- what takes too long, or memory without end

REPLACE = {"type": "Replace", "pattern": {"String": "a"}}


@pytest.mark.parametrize(
    "change_it",
    [
        lambda said: said["added_tokens"].append({"id": 49_999, "content": "x" * 50_000}),
        lambda said: said["model"]["vocab"].update({"x" * 50_000: 49_999}),
        lambda said: said.update(normalizer=REPLACE | {"content": "b" * 1_000_000}),
        lambda said: said.update(
            normalizer={"type": "Sequence", "normalizers": [REPLACE | {"content": "aa"}] * 40}
        ),
        lambda said: said.update(normalizer={"type": "Replace", "pattern": {"Regex": "a|"}, "content": "b" * 999}),
        lambda said: said.update(normalizer={"type": "Prepend", "prepend": "b" * 1_000_000}),
        lambda said: said.update(normalizer=reduce(lambda inner, _: {"normalizers": [inner]}, range(400), REPLACE)),
    ],
    ids=("added token", "token", "replace", "many times", "pattern", "prepend", "nested"),
)  # fmt: skip
def test_a_tokenizer_that_would_take_forever_is_refused(folder, change_it):
    said = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change_it(said)
    (folder / "tokenizer.json").write_text(json.dumps(said), encoding="utf-8")
    refused = within(30, lambda: load_tokenizer(folder))
    assert isinstance(refused, DamagedFilesError) and "tokenizer.json cannot be used: " in str(refused)


@pytest.mark.parametrize("ids", ["x", [[2]], 1.5, [None], True])
def test_an_end_that_is_no_token_id(folder, ids):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}), encoding="utf-8")
    with pytest.raises(DamagedFilesError, match="eos_token_id is"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("settings", [{"max_position_embeddings": []}, {"vocab_size": [1]}, {"rms_norm_eps": 1e999}])
def test_a_size_that_is_no_number(folder, settings):
    change(folder / "config.json", **settings)
    with pytest.raises(DamagedFilesError):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    "settings",
    [
        {"num_labels": 10**8},
        {"model_type": "qwen3", "num_hidden_layers": 2**31},
        {"model_type": "llava", "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 10**9}},
        {"model_type": "unheard", "num_labels": 10**8},
    ],
    ids=repr,
)
def test_what_a_config_counts_in_millions_is_refused_at_once(folder, settings):
    change(folder / "config.json", **settings)
    refused = within(30, lambda: load_tokenizer(folder))
    assert isinstance(refused, DamagedFilesError) and f" is {[*_numbers(settings)][-1]}." in str(refused)


def _numbers(settings):
    for value in settings.values():
        yield from _numbers(value) if isinstance(value, dict) else [value]


def test_weights_that_are_not_there_are_not_made_up_first(folder, monkeypatch):
    change(folder / "config.json", num_hidden_layers=1900)
    monkeypatch.setattr("helpers.models.loading._load_weights", None)
    with pytest.raises(DamagedFilesError, match="and the files hold"):
        load_model(folder, device="cpu")


def test_an_index_without_metadata_is_named(folder):
    index = json.loads((folder / INDEX).read_text())
    del index["metadata"]
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(DamagedFilesError, match="it has no metadata"):
        load_model(folder, device="cpu")
