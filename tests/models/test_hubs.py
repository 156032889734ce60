"""Downloads from both hubs' real clients, against a hub on 127.0.0.1; what the reader sees in each case."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from hub import Hub, git_sha1

from helpers.errors import (
    AccessDeniedError,
    BadInputError,
    DamagedFilesError,
    DiskFullError,
    DoesNotFitError,
    HubNotReachableError,
    ModelNotFoundError,
)
from helpers.models import __main__, hubs, loading, locate, memory, pretrained, store
from helpers.models.catalog import find_card

SOURCES = ("huggingface", "modelscope")
REPO = "owner/tiny"
STEP = 10 * 2**20  # Hugging Face's client keeps whole steps of this size when it is cut off


@pytest.fixture(scope="session")
def model_files(tmp_path_factory):
    """name -> bytes of a tiny random Llama with what else repositories hold."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="20KB")
    tokenizer = locate.model_folder("smollm2-135m") / "tokenizer_config.json"
    kept = {path.name: path.read_bytes() for path in [*folder.iterdir(), tokenizer]}
    assert sum(name.endswith(".safetensors") for name in kept) >= 2
    return kept


@pytest.fixture
def online(monkeypatch, tmp_path):
    """A reader who has not asked for offline mode, whose models go to a new folder."""
    for variable in (*hubs.OFFLINE_VARIABLES, "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HELPERS_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "ms_home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture(params=SOURCES)
def source(request):
    return request.param


@pytest.fixture
def hub(online, model_files, monkeypatch):
    """The hub, as both of the hubs that the clients know."""
    with Hub(REPO, model_files).running() as hub:
        for _, variable, _ in hubs.HUBS.values():
            monkeypatch.setenv(variable, hub.url)
        yield hub


def _everything(tmp_path):
    """Every file below the test's folder that is no lock and none of a client's own."""
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if not p.is_dir()}
    return {f for f in found if not f.endswith(".lock") and not f.startswith(("hf_home", "ms_home"))}


def _said(error):
    """The message in one line."""
    return " ".join(str(error.value).split())


# ------------------------------------------------------------------------------- it works


def test_a_complete_download_loads_and_needs_no_network_afterwards(hub, source, model_files, capsys, monkeypatch):
    hub.files |= {"pytorch_model.bin": b"pickle", "modeling_tiny.py": b"raise", "README.md": b"read", "x/a.json": b"{}"}
    model = loading.load_model(REPO, source=source, device="cpu")
    assert type(model).__name__ == "LlamaForCausalLM"
    folder = store.models_dir() / source / "owner--tiny"
    assert {p.name for p in folder.iterdir()} == {*model_files, "manifest.json"}
    for name, data in model_files.items():
        assert (folder / name).read_bytes() == data
    said = capsys.readouterr().err
    assert f"{REPO} from {hubs.HUBS[source][0]}: " in said and "are free in" in said
    assert "it fits" in said  # before the weights
    assert list(folder.parent.glob(".*partial")) == []

    seen = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hubs.fetch(REPO, source) == folder
    assert locate.model_folder(REPO) == folder  # found without a source, too
    loading.load_model(REPO, device="cpu")
    assert len(hub.requests) == seen


def test_a_tokenizer_comes_without_weights_and_weights_come_later(hub, source):
    config = pretrained.load_config(REPO, source=source)
    assert config.model_type == "llama"
    assert not [r for r in hub.requests if r[1] == "file" and r[2].endswith(".safetensors")]
    with pytest.raises(ModelNotFoundError, match="weights are not downloaded yet"):
        loading.load_model(REPO)
    hub.requests.clear()
    loading.load_model(REPO, source=source, device="cpu")
    assert not hub.downloads("config.json")  # was here already
    assert len([r for r in hub.requests if r[0] == "GET" and r[1] == "file"]) >= 2


def test_a_catalog_name_becomes_the_id_of_that_hub():
    assert hubs.repo_id("glm-4-9b-chat", "modelscope") == "ZhipuAI/glm-4-9b-chat"
    assert hubs.repo_id("ZhipuAI/glm-4-9b-chat", "modelscope") == "ZhipuAI/glm-4-9b-chat"
    assert hubs.repo_id("Meta-Llama-3-8B-Instruct", "huggingface") == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert hubs.repo_id("somebody/something", "huggingface") == "somebody/something"
    with pytest.raises(ModelNotFoundError, match="is not on ModelScope"):
        hubs.repo_id("smollm2-135m", "modelscope")
    with pytest.raises(BadInputError, match="is not a hub"):
        hubs.repo_id("glm-4-9b-chat", "wheel")


@pytest.mark.parametrize(
    "name", ["no-owner", "../../etc/passwd", "/etc/passwd", "a/b/c", "a/..", "owner/na me", "-x/y"]
)
def test_what_is_no_id_is_never_asked_for(name, online):
    with pytest.raises(ModelNotFoundError, match="owner/name"):
        hubs.fetch(name, "huggingface")


# --------------------------------------------------------------- what happens on the way


def test_a_cut_connection_is_resumed_by_range(hub, source):
    hub.files["model.safetensors"] = bytes(range(256)) * (STEP // 256) + b"tail" * 1000
    hub.cut["model.safetensors"] = STEP + 2000
    folder = hubs.fetch(REPO, source)
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    first, second = hub.downloads("model.safetensors")
    assert first is None
    assert int(second.removeprefix("bytes=").rstrip("-").split("-")[0]) >= STEP


def test_a_download_that_was_ended_goes_on_where_it_stopped(hub, source):
    """Files that an ended process left in the partial folder are not fetched again."""
    partial = hubs.folder_of(REPO, source).with_name(".owner--tiny.partial")
    partial.mkdir(parents=True)
    name = next(n for n in hub.files if n.endswith(".safetensors"))
    (partial / name).write_bytes(hub.files[name])
    hubs.fetch(REPO, source)
    assert not hub.downloads(name)


def test_a_wrong_checksum_is_fetched_again(hub, source):
    name = next(n for n in hub.files if n.endswith(".safetensors"))
    hub.wrong[name] = 1
    folder = hubs.fetch(REPO, source)
    assert (folder / name).read_bytes() == hub.files[name]
    assert len(hub.downloads(name)) == 2


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "shard"])
def test_a_checksum_that_stays_wrong_is_an_error(hub, name):
    """On Hugging Face, whose client does not look: SHA-256 of large files, git's checksum of small ones."""
    name = next(n for n in hub.files if n.endswith(".safetensors")) if name == "shard" else name
    hub.wrong[name] = 99
    with pytest.raises(DamagedFilesError) as error:
        hubs.fetch(REPO, "huggingface")
    assert f"{name} of {REPO} arrived 3 times with a size or SHA-256 other than Hugging Face lists" in _said(error)
    assert not hubs.folder_of(REPO, "huggingface").exists()


def test_modelscopes_own_check_has_our_message(hub):
    hub.wrong[next(n for n in hub.files if n.endswith(".safetensors"))] = 99
    with pytest.raises(DamagedFilesError, match="other than ModelScope lists"):
        hubs.fetch(REPO, "modelscope")


def test_an_id_that_does_not_exist(hub, source):
    with pytest.raises(ModelNotFoundError) as error:
        hubs.fetch("owner/other", source)
    assert f"has no model 'owner/other', or it is private. Check owner and spelling on {hub.url}" in _said(error)


@pytest.mark.parametrize(("kind", "code"), [("list", 401), ("file", 403)])
def test_a_gated_model_says_where_to_accept_its_licence(hub, source, kind, code):
    hub.status[kind] = [(code, {"X-Error-Code": "GatedRepo"})]
    with pytest.raises(AccessDeniedError) as error:
        hubs.fetch(REPO, source)
    assert f"gives {REPO} only to users who have accepted its licence (HTTP {code})" in _said(error)
    assert "login` once" in _said(error)


def test_a_gated_model_that_the_other_hub_gives_says_so():
    said = str(
        hubs._named({"status": 401, "kinds": ["GatedRepoError"]}, "meta-llama/Meta-Llama-3-8B-Instruct", "huggingface")
    )
    assert said.endswith('Or use source="modelscope", which does not require that.')


def test_a_busy_hub_is_waited_for(hub, source, capsys):
    hub.status["list"] = [(429, {"Retry-After": "1"}), (200, {})]
    start = time.monotonic()
    hubs.fetch(REPO, source, weights=False)
    assert time.monotonic() - start >= 1
    if source == "huggingface":
        assert "Hugging Face is busy and asks you to wait 1 s: waiting" in capsys.readouterr().err


def test_a_hub_that_asks_to_wait_long_is_not_waited_for(hub, source):
    hub.status["list"] = [(429, {"Retry-After": "3600"})]
    with pytest.raises(HubNotReachableError, match=r"busy \(HTTP 429\) and asks you to wait 3600 s"):
        hubs.fetch(REPO, source)


def test_no_client_waits_long_without_a_word(hub, source, monkeypatch):
    """Hugging Face's client would sleep as long as a hub asks it to, while it downloads; ModelScope's is ended."""
    monkeypatch.setattr(hubs, "STALL_SECONDS", 5)
    hub.status["file"] = [(429, {"Retry-After": "3600"})]
    with pytest.raises(HubNotReachableError, match=r"asks you to wait 360\d s|nothing arrived for 5 s"):
        hubs.fetch(REPO, source)


@pytest.mark.parametrize("wait", ["nan", "inf", "-5", "1e999", "soon", "Wed, 21 Oct 2026 07:28:00 GMT", ""])
def test_a_wait_that_makes_no_sense(wait):
    assert hubs._seconds(wait) >= 0


def test_the_reader_hears_at_once_who_is_asked(hub, source, capsys, monkeypatch):
    monkeypatch.setattr(hubs, "REACH_SECONDS", 0.5)
    hub.hangs = "all"
    with pytest.raises(HubNotReachableError):
        hubs.fetch(REPO, source)
    assert capsys.readouterr().err.startswith(f"Asking {hubs.HUBS[source][0]} for {REPO}")


def test_a_download_that_never_ends_is_stopped(hub, source, monkeypatch):
    monkeypatch.setattr(hubs, "SLACK_BYTES", -1_000_000)  # as if a megabyte more than listed had come
    with pytest.raises(HubNotReachableError, match="sent more than the"):
        hubs.fetch(REPO, source)


@pytest.mark.parametrize(
    "entry",
    [
        *({"bytes": value} for value in (-1, None, "5", 1.5, True, 10**30)),
        *({"sha256": 5, "git_sha1": None}, {"sha256": []}, {"name": 5}, {"name": None}),
    ],
    ids=repr,
)
def test_a_list_that_makes_no_sense(online, source, monkeypatch, entry):
    whole = {"name": "model.safetensors", "bytes": 8, "sha256": "0" * 64, "git_sha1": None}
    monkeypatch.setattr(hubs, "_check_reachable", lambda source: None)
    answer = {"revision": "main", "files": [whole | entry], "gated": False}
    monkeypatch.setattr(hubs, "_run_client", lambda *arguments: answer)
    with pytest.raises((ModelNotFoundError, DiskFullError, HubNotReachableError)):
        hubs.fetch(REPO, source)


def test_a_password_in_an_address_is_not_echoed(online, source, monkeypatch, capsys):
    monkeypatch.setenv(hubs.HUBS[source][1], "http://me:secret@127.0.0.1:9/x")
    with pytest.raises(HubNotReachableError) as error:
        hubs.fetch(REPO, source)
    assert "secret" not in _said(error) + capsys.readouterr().err


def test_a_hub_that_hangs_from_the_start(hub, source, monkeypatch):
    monkeypatch.setattr(hubs, "REACH_SECONDS", 0.5)
    hub.hangs = "all"
    with pytest.raises(HubNotReachableError, match=r"no answer within 0\.5 s|timed out"):
        hubs.fetch(REPO, source)


@pytest.mark.parametrize("where", ["list", "file"])
def test_a_hub_that_hangs_on_the_way(hub, source, where, monkeypatch):
    monkeypatch.setattr(hubs, "LIST_SECONDS", 1)
    monkeypatch.setattr(hubs, "STALL_SECONDS", 1)
    hub.hangs = where
    with pytest.raises(HubNotReachableError, match="nothing arrived for 1 s"):
        hubs.fetch(REPO, source)


def test_no_network_is_a_clear_error(online, source, monkeypatch):
    for endpoint in ("http://127.0.0.1:9", "http://no-such-host.invalid"):
        monkeypatch.setenv(hubs.HUBS[source][1], endpoint)
        with pytest.raises(HubNotReachableError) as error:
            hubs.fetch(REPO, source)
        assert f"({endpoint}) cannot be used: " in _said(error)
        assert "Models that are already here load without a network." in _said(error)


def test_offline_mode_asks_nobody(hub, source, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubNotReachableError, match="is not on this machine, and HF_HUB_OFFLINE is set"):
        hubs.fetch(REPO, source)
    assert hub.requests == []


def test_too_little_disk_is_noticed_before_anything_is_fetched(hub, source, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(hubs.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DiskFullError, match=r"needs [\d.]+ MB more in .* 0.001 MB are free"):
        hubs.fetch(REPO, source)
    assert hub.downloads() == []


FULL_DISK = """
import pathlib
opened = pathlib.Path.open
def open_(self, mode="r", *rest, **more):
    full = self.name.endswith(".incomplete") and mode in ("wb", "ab")
    return opened(pathlib.Path("/dev/full") if full else self, mode, *rest, **more)
pathlib.Path.open = open_
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_fills_up_on_the_way(hub, source, tmp_path, monkeypatch):
    """The client's writes go to /dev/full, which answers as a full disk does."""
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(FULL_DISK)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path / "patch"))
        if source == "modelscope":  # opens by another way: a link does it
            name = next(n for n in hub.files if n.endswith(".safetensors"))
            partial = hubs.folder_of(REPO, source).with_name(".owner--tiny.partial")
            partial.mkdir(parents=True)
            (partial / f"{name}.incomplete").symlink_to("/dev/full")
        with pytest.raises(DiskFullError, match="Free some space, or set HELPERS_MODELS"):
            hubs.fetch(REPO, source)
    if source == "modelscope":
        (partial / f"{name}.incomplete").unlink()
    assert hubs.is_whole(hubs.fetch(REPO, source))


def test_of_two_processes_one_downloads_and_both_succeed(hub, source):
    hub.delay = 0.3
    program = f"from helpers.models import hubs; print(hubs.fetch({REPO!r}, {source!r}))"
    start = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ends = [process.communicate(timeout=60) for process in start]
    assert [process.returncode for process in start] == [0, 0], ends
    assert ends[0][0] == ends[1][0]
    for name in hub.files:
        assert len(hub.downloads(name)) == 1


# ------------------------------------------------------------------------ hubs that lie


EVIL = "import pathlib; pathlib.Path('/tmp/it_ran').touch()"


def test_a_malicious_listing_writes_nothing_outside_and_runs_nothing(hub, source, tmp_path):
    outside = tmp_path / "outside.json"
    names = ["../../outside.json", "../config.json", str(outside), "sub/../../../outside.json", "..\\outside.json"]
    names += [
        "modeling_evil.py",
        "model.pkl",
        "pytorch_model.bin",
        "sub/config.json",
        "config.json/x",
        "con\nfig.json",
        "",
    ]
    hub.extra = [(name, "blob") for name in names] + [("tokenizer.json", "symlink")] * (source == "modelscope")
    hub.files["modeling_evil.py"] = hub.files["sitecustomize.py"] = EVIL.encode()
    config = json.loads(hub.files["config.json"]) | {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}
    hub.files["config.json"] = json.dumps(config).encode()
    hub.files["pytorch_model.bin"] = b"cbuiltins\nexec\n(S'raise SystemExit'\ntR."
    loading.load_model(REPO, source=source, device="cpu")
    wanted = {n for n in hub.files if n.endswith((".json", ".safetensors"))} | {"manifest.json"}
    assert _everything(tmp_path) == {f"models/{source}/owner--tiny/{name}" for name in wanted}
    asked = {r[2] for r in hub.requests if r[1] == "file"}
    assert asked <= wanted


def test_a_link_planted_in_the_partial_folder_is_not_followed_into_the_model(hub, source, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"mine")
    partial = hubs.folder_of(REPO, source).with_name(".owner--tiny.partial")
    partial.mkdir(parents=True)
    (partial / "config.json").symlink_to(secret)
    folder = hubs.fetch(REPO, source)
    assert not (folder / "config.json").is_symlink()
    assert secret.read_bytes() == b"mine"


def test_a_repository_of_pickles_alone_is_refused(hub, source):
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(
        ModelNotFoundError, match=r"no safetensors weights: only pytorch_model\.bin, which can run code"
    ):
        hubs.fetch(REPO, source)


def test_a_model_that_needs_its_own_code_is_not_run(hub, source):
    hub.files["config.json"] = json.dumps(
        {"model_type": "evil", "auto_map": {"AutoConfig": "configuration_evil.Evil"}}
    ).encode()
    with pytest.raises(DamagedFilesError, match="cannot be loaded"):
        loading.load_model(REPO, source=source)
    assert not any(name.endswith(".py") for name in _everything(store.models_dir()))


# ------------------------------------------------------------------ before a download


def test_weights_that_will_not_fit_in_memory_are_not_downloaded(hub, source, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 20_000)
    with pytest.raises(DoesNotFitError, match="does not fit"):
        loading.load_model(REPO, source=source)
    assert not [name for _, kind, name, _ in hub.requests if kind == "file" and name.endswith(".safetensors")]


def test_the_plan_before_a_download_is_near_the_plan_after(hub, source):
    before = memory.memory_plan(REPO, source=source, device="cpu")
    hubs.fetch(REPO, source)
    after = memory.memory_plan(REPO, source=source, device="cpu")
    assert before.weights_bytes == pytest.approx(after.weights_bytes, rel=0.1)


def test_a_name_without_a_source_says_how_to_download_it(online, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**11)
    with pytest.raises(ModelNotFoundError) as error:
        loading.load_model("glm-4-9b-chat-hf", device="cpu", dtype="bfloat16")
    assert 'source="modelscope" (ZhipuAI/glm-4-9b-chat-hf)' in _said(error)
    assert "18.8 GB" in _said(error)
    with pytest.raises(ModelNotFoundError, match='say which hub: source="modelscope" or source="huggingface"'):
        pretrained.load_tokenizer("someone/something")


def test_the_command_line_downloads_and_reports_errors(hub, source, capsys):
    assert __main__.main([REPO, "--source", source]) == 0
    assert "ready in" in capsys.readouterr().err
    hub.status["list"] = [(404, {})]
    assert __main__.main(["owner/other", "--source", source]) == 1
    assert "ModelNotFoundError: " in capsys.readouterr().err


def test_check_reads_every_byte_and_mends(hub, source):
    folder = hubs.fetch(REPO, source)
    shard = next(folder.glob("*.safetensors"))
    times = shard.stat().st_mtime_ns
    shard.write_bytes(b"X" + shard.read_bytes()[1:])
    os.utime(shard, ns=(times, times))
    assert hubs.is_whole(hubs.fetch(REPO, source))  # size and time as recorded
    hubs.fetch(REPO, source, check=True)
    assert shard.read_bytes() == hub.files[shard.name]


def test_mending_a_small_file_does_not_forget_the_weights(hub, source, monkeypatch):
    folder = hubs.fetch(REPO, source)
    (folder / "tokenizer_config.json").write_text("{")
    hub.requests.clear()
    hubs.fetch(REPO, source, weights=False)
    assert (folder / "tokenizer_config.json").read_bytes() == hub.files["tokenizer_config.json"]
    assert not [name for _, kind, name, _ in hub.requests if kind == "file" and name.endswith(".safetensors")]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hubs.is_whole(folder)
    loading.load_model(REPO, source=source, device="cpu")


def test_mending_a_small_file_does_not_take_damaged_weights_for_whole(hub, source):
    folder = hubs.fetch(REPO, source)
    (folder / "tokenizer_config.json").write_text("{")
    shard = next(folder.glob("*.safetensors"))
    shard.write_bytes(b"X" + shard.read_bytes()[1:])
    hubs.fetch(REPO, source, weights=False)
    assert hubs.is_whole(folder, weights=False)
    assert not hubs.is_whole(folder)


def test_a_missing_shard_keeps_neither_config_nor_tokenizer_from_loading_offline(hub, source, monkeypatch):
    folder = hubs.fetch(REPO, source)
    next(folder.glob("*.safetensors")).unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pretrained.load_config(REPO, source=source).model_type == "llama"
    with pytest.raises(HubNotReachableError, match="HF_HUB_OFFLINE is set"):
        hubs.fetch(REPO, source)
    (folder / "config.json").unlink()
    assert not hubs.is_whole(folder, weights=False)


def test_the_hubs_own_checksums_are_understood(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"hello\n")
    assert git_sha1(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"  # as `git hash-object` says
    remote = hubs.RemoteFile("file", 6, None, "ce013625030ba8dba906f756967f9e9ca394464a")
    assert hubs._is_intact(file, remote)
    assert not hubs._is_intact(file, hubs.RemoteFile("file", 6, None, "0" * 40))
    assert not hubs._is_intact(file, hubs.RemoteFile("file", 7, None, None))


def test_every_hub_id_of_the_catalog_is_one():
    for card in (find_card(n) for n in ("glm-4-9b-chat", "glm-4v-9b", "llama-3-8b-instruct", "glm-4.1v-9b-thinking")):
        for source in hubs.HUBS:
            assert hubs.REPO_ID.fullmatch(card.sources[source])


def test_an_error_of_the_client_that_nobody_foresaw_is_one_sentence():
    error = hubs._named({"text": "something odd", "kinds": ["OddError"], "errno": errno.EIO}, REPO, "modelscope")
    assert isinstance(error, HubNotReachableError)
    assert "cannot be used: something odd." in str(error)
