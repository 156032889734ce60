"""helpers.batch.identity: a model and a tokenizer are what they hold, whatever they are called."""

import shutil

import pytest
import torch

from helpers.batch.engines import TransformersEngine
from helpers.batch.identity import folder_sha256, model_sha256, tokenizer_sha256
from helpers.batch.run import run_batch
from helpers.errors import BadInputError

SETTINGS = {"do_sample": False, "max_new_tokens": 3, "progress": False}


class Letters:
    """A tokenizer whose texts are the ids themselves."""

    eos_token_id = 63
    added_tokens_decoder, special_tokens_map = {}, {}
    all_special_ids, all_special_tokens = (), ()

    def __init__(self, template=None):
        self.chat_template = template

    def get_vocab(self):
        return {str(i): i for i in range(64)}

    def decode(self, ids, **_):
        return " ".join(map(str, ids))

    def __len__(self):
        return 64

    def __call__(self, text, **_):
        return {"input_ids": [ord(c) % 60 for c in text]}


def answer(model, file, tokenizer=None, **settings):
    engine = TransformersEngine(model, tokenizer or Letters())
    return run_batch(None, engine.tokenizer, [[5, 6], [7]], file, engine=engine, **SETTINGS | settings)


def test_one_number_that_differs_anywhere_is_another_model(new_tiny):
    model = new_tiny("Llama")
    same = model_sha256(model)
    assert same == model_sha256(new_tiny("Llama"))
    for name, tensor in model.state_dict().items():
        flat = tensor.view(-1)
        for place in {0, len(flat) // 2, len(flat) - 1}:
            before = flat[place].item()
            flat[place] = torch.nextafter(flat[place], torch.tensor(9.0))
            assert model_sha256(model) != same, name
            flat[place] = before
    assert model_sha256(model) == same


def test_numbers_in_another_order_and_another_config_are_another_model(new_tiny):
    model = new_tiny("Llama")
    same, weight = model_sha256(model), model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight.copy_(weight.flip(0).clone())
        assert model_sha256(model) != same
        weight.copy_(weight.flip(0).clone())
    assert model_sha256(model) == same
    assert model_sha256(new_tiny("Llama", rms_norm_eps=1e-3)) != same
    assert model_sha256(new_tiny("Llama").to(torch.bfloat16)) != same


def test_where_a_model_lies_and_how_it_attends_changes_nothing(new_tiny, tmp_path):
    from transformers import LlamaForCausalLM

    model = new_tiny("Llama")
    model.save_pretrained(tmp_path / "a")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "a", attn_implementation="eager")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    moved = LlamaForCausalLM.from_pretrained(tmp_path / "b")
    assert model_sha256(loaded) == model_sha256(moved)


@pytest.mark.parametrize("bytes_", [1, 7, 8, 9, 31])
def test_tensors_of_any_number_of_bytes_count_to_the_last_one(bytes_):
    class Holder(torch.nn.Module):
        class config:
            @staticmethod
            def to_diff_dict():
                return {}

        def __init__(self, last):
            super().__init__()
            self.register_buffer("values", torch.tensor([7] * (bytes_ - 1) + [last], dtype=torch.uint8))

    assert model_sha256(Holder(1)) == model_sha256(Holder(1)) != model_sha256(Holder(2))


def test_a_tokenizer_is_its_vocabulary_rules_and_template(tokenizer, llama3_tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    same = tokenizer_sha256(tokenizer)
    assert tokenizer_sha256(other) == same
    other("some text", truncation=True, max_length=3)  # what a call sets is not the tokenizer's
    assert tokenizer_sha256(other) == same
    other.chat_template += " "
    assert tokenizer_sha256(other) != same
    other.chat_template = tokenizer.chat_template
    other.add_tokens(["<new>"])
    assert len({tokenizer_sha256(other), same, tokenizer_sha256(llama3_tokenizer)}) == 3


def test_a_run_of_another_checkpoint_of_the_same_name_is_refused(new_tiny, tmp_path):
    first, second = new_tiny("Llama"), new_tiny("Llama", rope_theta=99.0)
    for model, folder in ((first, "a"), (second, "b")):
        model.name_or_path = str(tmp_path / folder / "checkpoint-1000")
    answer(first, tmp_path / "p.json")
    with pytest.raises(BadInputError, match=r"another model or other weights .*checkpoint-1000"):
        answer(second, tmp_path / "p.json")
    with torch.no_grad():
        first.lm_head.weight.mul_(-1)  # trained on, or edited in a notebook
    with pytest.raises(BadInputError, match="another model or other weights"):
        answer(first, tmp_path / "p.json")
    with torch.no_grad():
        first.lm_head.weight.mul_(-1)
    first.name_or_path = "moved/elsewhere"
    assert answer(first, tmp_path / "p.json").kept == 2
    with pytest.raises(BadInputError, match="another tokenizer or chat template"):
        answer(first, tmp_path / "p.json", Letters("{{ messages }}"))
    assert answer(second, tmp_path / "p.json", resume=False).answered == 2


def test_a_folder_is_its_files(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"12345678")
    (folder / "README.md").write_text("one")
    whole, small = folder_sha256(folder), folder_sha256(folder, weights=False)
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "README.md").write_text("two")
    assert folder_sha256(tmp_path / "other") == whole
    (folder / "model.safetensors").write_bytes(b"12345679")
    assert folder_sha256(folder) != whole
    assert folder_sha256(folder, weights=False) == small
    (folder / "chat_template.jinja").write_text("x")
    assert folder_sha256(folder, weights=False) != small


def test_a_manifest_saves_reading_files_that_have_not_changed(tmp_path, monkeypatch):
    from helpers.models import store

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    plain = folder_sha256(tmp_path)
    store.write_manifest(tmp_path, list(tmp_path.iterdir()))
    with monkeypatch.context() as patched:
        patched.setattr(store, "sha256", None)
        assert folder_sha256(tmp_path) == plain
    (tmp_path / "model.safetensors").write_bytes(b"87654321x")
    assert folder_sha256(tmp_path) != plain
    (tmp_path / store.MANIFEST).write_text("[]")
    assert len(folder_sha256(tmp_path)) == 64
