"""helpers.batch.predictions: nothing that somebody else wrote is lost, and what is damaged ends in one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.batch.__main__ import main
from helpers.batch.predictions import Predictions, is_same_file
from helpers.batch.run import PromptFile, run_batch
from helpers.errors import BadInputError, DamagedFilesError, HelpersError

ROOT = Path(__file__).resolve().parents[2]
DEEP = "[" * 200_000
RECORD = {"prompts": 2, "prompts_sha256": "0" * 64, "engine": "echo", "model": "echo"}


class Echo:
    """An engine that answers with the prompt in capitals."""

    name, model_name = "echo", "echo"

    def generate(self, prompts, settings):
        for prompt in prompts:
            yield prompt.index, ValueError("bad") if prompt.text == "bad" else prompt.text.upper()


def run(file, prompts=("a", "b"), **settings):
    prompts = prompts if isinstance(prompts, PromptFile) else list(prompts)
    return run_batch(None, None, prompts, file, engine=Echo(), progress=False, **settings)


def answers(file):
    return [item["Output"] for item in json.loads(Path(file).read_text(encoding="utf-8"))]


def held(folder):
    """Everything that lies in a folder: each text, under whatever name."""
    return {file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


# --- the prompts' own file


@pytest.mark.parametrize(
    ("data", "predictions"),
    [
        ("p.txt", "p.txt"),
        ("prompts.jsonl", "prompts.json"),
        ("p.txt", "./sub/../p.txt"),
        ("p.txt", "P.txt"),
        ("Prompts.JSONL", "prompts.json"),
        ("p.run.json", "p.json"),
        (".p.json.lock", "p.json"),
        (".p.json.part", "p.json"),
        ("link.txt", "p.txt"),
        ("p.txt", "link.txt"),
        ("p.txt", "folder/p.txt"),
        ("hard.jsonl", "p.json"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--no_resume"]])
def test_prompts_are_never_written_over(tmp_path, monkeypatch, capsys, data, predictions, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    text = b'{"index": 0, "Input": "a", "Output": "A"}\n' if "json" in data.lower() else b"a\nb\n"
    (tmp_path / ("p.txt" if "link" in data else "p.jsonl" if data == "hard.jsonl" else data)).write_bytes(text)
    if data == "hard.jsonl":
        os.link("p.jsonl", "hard.jsonl")
    os.symlink("p.txt", "link.txt")
    os.symlink(".", "folder")
    before = held(tmp_path)
    assert main(["--data_file", data, "--predictions_file", predictions, *options]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("BadInputError")
        and error.count("\n") == 1
        and "choose another" in error.replace("give", "choose another")
    )
    assert held(tmp_path) == before | held(tmp_path) and before <= held(tmp_path)
    assert Path(data).read_bytes() == text


def test_a_run_from_python_does_not_write_over_its_prompts_either(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"Input": "a"}\n', encoding="utf-8")
    for resume in (True, False):
        with pytest.raises(BadInputError, match="never overwrite prompts"):
            run(tmp_path / "prompts.json", PromptFile(file), resume=resume)
    assert file.read_text(encoding="utf-8") == '{"Input": "a"}\n'


def test_the_same_file_is_known_by_any_of_its_names(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    os.symlink(tmp_path / "a.txt", tmp_path / "b.txt")
    os.link(tmp_path / "a.txt", tmp_path / "c.txt")
    for name in ("b.txt", "c.txt", "A.TXT", "sub/../a.txt"):
        assert is_same_file(tmp_path / "a.txt", tmp_path / name), name
    assert not is_same_file(tmp_path / "a.txt", tmp_path / "d.txt")


# --- what somebody else wrote


@pytest.mark.parametrize("name", ["p.json", "p.jsonl"])
@pytest.mark.parametrize(
    "text", ["mine", '{"index": 0, "Input": "a"}\n', "[\n1\n]\n", '[\n{"Input": "a", "mine": 1}\n]\n']
)
def test_a_file_of_somebody_else_stays_and_the_advice_works(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    for resume in (True, False):
        with pytest.raises(BadInputError, match=r"this program did not write it.*or move that file away"):
            run(tmp_path / "p.json", resume=resume)
    assert (tmp_path / name).read_text() == text
    (tmp_path / name).rename(tmp_path / "elsewhere")
    assert run(tmp_path / "p.json").answered == 2


def test_answers_without_a_record_are_refused_and_the_advice_works(tmp_path):
    run(tmp_path / "p.json")
    (tmp_path / "p.run.json").unlink()
    with pytest.raises(BadInputError, match=r"nothing says what it answers .*or use resume=False to overwrite it"):
        run(tmp_path / "p.json")
    assert run(tmp_path / "p.json", ["c"], resume=False).answered == 1
    assert answers(tmp_path / "p.json") == ["C"]


def test_what_was_edited_by_hand_is_set_aside_and_not_written_over(tmp_path, capsys):
    run(tmp_path / "p.json")
    edited = (tmp_path / "p.json").read_text().replace('"A"', '"A, corrected by hand"')
    (tmp_path / "p.json").write_text(edited)
    run(tmp_path / "p.json")
    assert answers(tmp_path / "p.json") == ["A", "B"]
    assert (tmp_path / "p.json.old").read_text() == edited
    assert "is set aside as p.json.old" in capsys.readouterr().err
    (tmp_path / "p.json").write_text("notes")
    run(tmp_path / "p.json", ["c"], resume=False)
    assert (tmp_path / "p.json.old1").read_text() == "notes"


def test_answers_that_were_missing_are_filled_in_without_keeping_the_old_list(tmp_path, monkeypatch):
    run(tmp_path / "p.json", ["bad", "b"])
    monkeypatch.setattr(Echo, "generate", lambda self, prompts, _: ((p.index, "mended") for p in prompts))
    run(tmp_path / "p.json", ["bad", "b"], retry_failed=True)
    assert answers(tmp_path / "p.json") == ["mended", "B"]
    assert not (tmp_path / "p.json.old").exists()


@pytest.mark.parametrize("part", [".p.json.part", ".p.run.json.part"])
def test_what_a_killed_run_left_half_written_goes_and_anything_else_is_kept(tmp_path, part):
    (tmp_path / part).write_bytes(b'[\n{"Input": "a", "Ou' if part == ".p.json.part" else b'{\n "prompts": 2,\n "pro')
    run(tmp_path / "p.json")
    assert not list(tmp_path.glob(f"{part}*"))
    (tmp_path / "p.run.json").unlink()
    (tmp_path / part).write_bytes(b"mine")
    run(tmp_path / "p.json", resume=False)
    assert b"mine" in held(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="devices and links are POSIX's")
@pytest.mark.parametrize("name", ["/dev/null", "/dev/stdout", "pipe.json", "link.json", "pipe", "p.json"])
@pytest.mark.parametrize("options", [[], ["--no_resume"]])
def test_devices_pipes_and_links_are_no_places_for_answers(tmp_path, monkeypatch, capsys, name, options):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.json")
    os.mkfifo("pipe.jsonl")
    os.mkfifo("pipe")
    os.symlink("elsewhere.txt", "link.json")
    os.symlink("elsewhere.txt", "p.jsonl")
    kinds = {file.name: file.lstat().st_mode for file in tmp_path.iterdir()}
    assert main(["--predictions_file", name, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("BadInputError") and error.count("\n") == 1 and "no_resume" not in error
    assert {file.name: file.lstat().st_mode for file in tmp_path.iterdir()} == kinds
    assert not os.path.isfile("/dev/null")


def test_a_lock_that_holds_something_is_no_lock(tmp_path):
    (tmp_path / ".p.json.lock").write_text("mine")
    with pytest.raises(BadInputError, match="not a lock of this program"):
        run(tmp_path / "p.json")
    assert (tmp_path / ".p.json.lock").read_text() == "mine"


@pytest.mark.parametrize("wrong", [None, 5, b"p.json", ["p.json"], "", "a\0b.json", "x" * 5000, "x/" * 3000 + "p.json"])
def test_names_that_no_file_can_have(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError):
        run(wrong)


def test_a_name_that_leaves_no_room_for_those_beside_it(tmp_path):
    with pytest.raises(BadInputError, match="cannot be written: File name too long"):
        run(tmp_path / f"{'x' * 248}.json")


# --- what is damaged


DAMAGED = [
    "",
    "nonsense",
    "null",
    "[]",
    "{}",
    "5",
    '{"prompts": "two"}',
    DEEP,
    '{"a":' * 100_000,
    "\xff\xfe",
    "1" * 5000,
]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_record_ends_in_one_sentence_and_is_set_aside_when_beginning_anew(tmp_path, text):
    run(tmp_path / "p.json")
    (tmp_path / "p.run.json").write_text(text, encoding="latin-1")
    before = held(tmp_path)
    with pytest.raises(
        DamagedFilesError, match=r"p\.run\.json, which says what p\.jsonl answers, is damaged"
    ) as caught:
        run(tmp_path / "p.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert held(tmp_path) == before
    assert run(tmp_path / "p.json", resume=False).answered == 2
    assert (tmp_path / "p.run.json.old").read_text(encoding="latin-1") == text
    assert run(tmp_path / "p.json").kept == 2


@pytest.mark.parametrize("name", ["p.run.json", "p.jsonl"])
def test_a_folder_in_place_of_a_file_is_one_sentence_and_is_set_aside(tmp_path, name):
    run(tmp_path / "p.json")
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("mine")
    with pytest.raises(HelpersError, match="Is a directory"):
        run(tmp_path / "p.json")
    assert run(tmp_path / "p.json", resume=False).answered == 2
    assert (tmp_path / f"{name}.old" / "mine").read_text() == "mine"


LINES = [
    DEEP,
    '{"index": 1.5, "Input": "a", "Output": "A"}',
    '{"index": true, "Input": "a", "Output": "A"}',
    '{"index": -1, "Input": "a", "Output": "A"}',
    '{"index": 99999999999999999999, "Input": "a", "Output": "A"}',
    '{"index": 0, "Input": 5, "Output": "A"}',
    '{"index": 0, "Input": "a", "Output": ["A"]}',
    '{"index": 0, "Input": "a", "Output": null}',
    '{"index": 0, "Input": "a", "Output": null, "error": 5}',
    '{"index": ' + "1" * 5000 + "}",
    "null",
    '"text"',
]


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_damaged_line_is_named_and_set_aside_when_beginning_anew(tmp_path, line):
    run(tmp_path / "p.json")
    damaged = f"{line}\n" + (tmp_path / "p.jsonl").read_text()
    (tmp_path / "p.jsonl").write_text(damaged)
    with pytest.raises(DamagedFilesError, match=r"Line 1 of .*p\.jsonl is damaged .*resume=False") as caught:
        run(tmp_path / "p.json")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "p.jsonl").read_text() == damaged
    assert run(tmp_path / "p.json", resume=False).answered == 2
    assert (tmp_path / "p.jsonl.old").read_text() == damaged


@pytest.mark.parametrize("tail", ["mine", DEEP, "null", '"text"', "[1]", '{"Input": "a"}'])
def test_an_end_that_is_no_answer_is_set_aside_and_the_run_goes_on(tmp_path, capsys, tail):
    run(tmp_path / "p.json")
    with (tmp_path / "p.jsonl").open("a") as stream:
        stream.write(tail)
    assert run(tmp_path / "p.json").kept == 2
    assert (tmp_path / "p.jsonl.old").read_text() == tail
    assert "is set aside as p.jsonl.old" in capsys.readouterr().err


@pytest.mark.parametrize("torn", [b'{"index": 1, "Inp', b"{", b"\0\0\0", b'{"index": 7, "Input": "a", "Output": "A"}'])
def test_an_end_that_was_cut_off_leaves_nothing_behind(tmp_path, torn):
    run(tmp_path / "p.json")
    with (tmp_path / "p.jsonl").open("ab") as stream:
        stream.write(torn)
    assert run(tmp_path / "p.json").kept == 2
    assert not (tmp_path / "p.jsonl.old").exists()


def test_lines_that_an_editor_joined_are_set_aside_and_not_dropped(tmp_path, capsys):
    run(tmp_path / "p.json")
    joined = (tmp_path / "p.jsonl").read_bytes().replace(b"\n", b"\r")
    (tmp_path / "p.jsonl").write_bytes(joined)
    assert run(tmp_path / "p.json").answered == 2
    assert (tmp_path / "p.jsonl.old").read_bytes() == joined
    assert "is set aside as p.jsonl.old" in capsys.readouterr().err


def test_answers_in_utf_16_are_damaged_lines(tmp_path):
    run(tmp_path / "p.json")
    saved = (tmp_path / "p.jsonl").read_text().encode("utf-16-be")
    (tmp_path / "p.jsonl").write_bytes(saved)
    with pytest.raises(DamagedFilesError, match=r"Line 1 of .*p\.jsonl is damaged"):
        run(tmp_path / "p.json")
    assert run(tmp_path / "p.json", resume=False).answered == 2
    assert (tmp_path / "p.jsonl.old").read_bytes() == saved


@pytest.mark.parametrize(
    "line",
    [
        '{"index": 0, "Input": "another prompt", "Output": "X"}',
        '{"index": 0, "index": 1, "Input": "a", "Output": "A"}',
        '{"index": 1, "Input": "a", "Output": "A"}',
        '{"index": 0, "Input": "b", "Output": null, "error": "no"}',
    ],
)
def test_an_answer_under_the_number_of_another_prompt_is_not_taken(tmp_path, line):
    run(tmp_path / "p.json")
    kept = (tmp_path / "p.jsonl").read_text()
    (tmp_path / "p.jsonl").write_text(f"{kept}{line}\n")
    with pytest.raises(
        DamagedFilesError, match=r"p\.jsonl was changed by hand: its last line with the index"
    ) as caught:
        run(tmp_path / "p.json")
    assert "\n" not in str(caught.value) and "resume=False" in str(caught.value)
    (tmp_path / "p.jsonl").write_text(kept)  # the line removed, as the message says
    assert run(tmp_path / "p.json").kept == 2
    assert answers(tmp_path / "p.json") == ["A", "B"]


def test_answers_changed_while_the_run_goes_on_are_said(tmp_path):
    class Meddled(Echo):
        def generate(self, prompts, settings):
            yield from super().generate(prompts, settings)
            (tmp_path / "p.jsonl").write_text("nonsense")

    with pytest.raises(DamagedFilesError, match="changed by somebody else during the run"):
        run_batch(None, None, ["a"], tmp_path / "p.json", engine=Meddled(), progress=False)
    assert not list(tmp_path.glob(".*.part"))


def test_prompts_that_change_while_the_run_goes_on_are_said(tmp_path):
    for change in ("a\n", "a\nb\nc\nd\n", ""):
        (tmp_path / "d.txt").write_text("a\nb\nc\n")

        class Meddled(Echo):
            def generate(self, prompts, settings):
                (tmp_path / "d.txt").write_text(change)  # noqa: B023
                yield from super().generate(prompts, settings)

        data = PromptFile(tmp_path / "d.txt")
        with pytest.raises(HelpersError, match="prompts changed during the run: there were 3"):
            run_batch(None, None, data, tmp_path / "p.json", engine=Meddled(), progress=False, resume=False)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    with Predictions(tmp_path / "p.json") as predictions:
        monkeypatch.setattr("builtins.open", denied)
        with pytest.raises(BadInputError, match="cannot be written: Permission denied"):
            predictions.open(1, RECORD, resume=True)


# --- the command line


def test_the_command_follows_its_own_advice(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("helpers.batch.__main__._engine", lambda options: Echo())
    Path("d.txt").write_text("a\nb\n")
    command = ["--data_file", "d.txt", "--predictions_file", "p.json"]
    assert main(command) == 0
    for damage in (DEEP, "null", "[1]"):
        Path("p.run.json").write_text(damage)
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "--no_resume" in error and "resume=False" not in error
        assert main([*command, "--no_resume"]) == 0
    assert answers("p.json") == ["A", "B"]


INTERRUPTED = """
import os, runpy, signal, sys
moment, sys.argv = sys.argv[1], ["batch", "--predictions_file", "p.json"]
def stop(event, of):
    if event == "import" and of[0] == moment:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(stop)
runpy.run_module("helpers.batch", run_name="__main__")
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize("moment", ["argparse", "helpers.batch.engines", "numpy", "helpers.batch.vllm_engine"])
def test_ctrl_c_while_python_is_still_importing_is_one_line(tmp_path, moment):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, moment], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 130
    assert done.stderr.startswith("\nStopped.") and done.stderr.count("\n") == 2
