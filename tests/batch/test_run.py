"""helpers.batch.run and helpers.batch.predictions: files in and out, resuming, stopping, failing."""

import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
import tracemalloc
from copy import deepcopy
from pathlib import Path

import pytest

from helpers.batch import predictions
from helpers.batch.__main__ import EngineConversation, main, parser, talk
from helpers.batch.engines import GenerationSettings, Prompt, in_windows
from helpers.batch.predictions import Predictions, error_text
from helpers.batch.run import SYSTEM_PROMPT, PromptFile, run_batch
from helpers.errors import BadInputError, DamagedFilesError, DiskFullError, HelpersError

ROOT = Path(__file__).resolve().parents[2]


class Echo:
    """An engine that answers with the prompt in capitals, from each window's end, after `seconds`."""

    name, model_name = "echo", "echo"

    def __init__(self, *, seconds=0.0, log=None, stop_after=None, at_once=4):
        self.seconds, self.log, self.stop_after, self.at_once = seconds, log, stop_after, at_once
        self.answered = []

    def generate(self, prompts, settings):
        for window in in_windows(prompts, self.at_once):
            for prompt in reversed(window):
                if self.stop_after is not None and len(self.answered) >= self.stop_after:
                    raise KeyboardInterrupt
                time.sleep(self.seconds)
                if self.log:
                    with open(self.log, "a") as stream:
                        stream.write(f"{prompt.index}\n")
                self.answered.append(prompt.index)
                bad = prompt.text.startswith("bad")
                yield prompt.index, ValueError("so\nbad") if bad else prompt.text.upper()


def run(prompts, file, **settings):
    settings = {"engine": Echo(), "progress": False, **settings}
    return run_batch(None, None, prompts, file, **settings)


def lines(file):
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def pairs(file):
    return [(item["Input"], item["Output"]) for item in json.loads(file.read_text(encoding="utf-8"))]


# --- what is read


def test_a_text_file_is_a_prompt_a_line_and_blank_lines_keep_their_place(tmp_path):
    data = tmp_path / "d.txt"
    data.write_bytes("\ufeff你好\r\n\r\n a\u2028b\tc \n   \nlast".encode())
    texts = ["你好", "", " a\u2028b\tc ", "   ", "last"]
    assert [p.text for p in PromptFile(data)] == texts
    run(PromptFile(data), tmp_path / "p.json")
    assert pairs(tmp_path / "p.json") == [(t, t.upper() if t.strip() else "") for t in texts]


def test_with_prompt_is_the_system_prompt_and_the_template(tmp_path):
    data = tmp_path / "d.txt"
    data.write_text("Hello\n\n", encoding="utf-8")
    hello, blank = PromptFile(data, with_prompt=True)
    assert hello.messages == [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": "Hello"}]
    assert blank.messages is None
    assert next(iter(PromptFile(data, with_prompt=True, system=None))).messages == hello.messages[1:]
    assert next(iter(PromptFile(data))).messages is None


def test_pictures_have_a_column(tmp_path):
    (tmp_path / "d.tsv").write_text("What is this?\tcat.png\nHello\t\nHi\n", encoding="utf-8")
    (tmp_path / "d.jsonl").write_text(
        '{"Input": "What is\\nthis?", "Image": "cat.png"}\n\n{"Input": "Hi"}\n', encoding="utf-8"
    )
    picture = str(tmp_path / "cat.png")
    tsv, jsonl = list(PromptFile(tmp_path / "d.tsv")), list(PromptFile(tmp_path / "d.jsonl", with_prompt=True))
    assert [(p.text, p.image) for p in tsv] == [("What is this?", picture), ("Hello", None), ("Hi", None)]
    assert [(p.text, p.image) for p in jsonl] == [("What is\nthis?", picture), ("", None), ("Hi", None)]
    assert tsv[0].messages == [{"role": "user", "content": "What is this?", "image": picture}]
    assert tsv[1].messages is None
    assert jsonl[0].messages[1]["image"] == picture


def test_a_pictures_path_holds_in_any_folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "d.tsv").write_text("What?\tcat.png\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    file = PromptFile("data/d.tsv")
    (prompt,) = file
    assert prompt.image == prompt.messages[0]["image"] == str(tmp_path / "data" / "cat.png")


def test_a_line_that_cannot_be_read_is_recorded_and_the_others_go_on(tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_bytes(b'{"Input": "a"}\n{"Input": \n{"Input": 3}\n"b"\n{"Input": "c", "Image": 1}\n\xff\n{"Input": "d"}')
    report = run(PromptFile(data), tmp_path / "p.json")
    assert (report.total, report.failed) == (7, 5)
    errors = {line["index"]: line["error"] for line in lines(tmp_path / "p.jsonl") if "error" in line}
    assert "Line 2" in errors[1] and "not JSON" in errors[1]
    assert 'no text under "Input"' in errors[2] and 'no text under "Input"' in errors[3]
    assert '"Image"' in errors[4] and "not UTF-8" in errors[5]
    assert [output for _, output in pairs(tmp_path / "p.json")] == ["A", None, None, None, None, None, "D"]


def test_a_data_file_that_is_not_there(tmp_path):
    with pytest.raises(BadInputError, match=r"nothing\.txt"):
        PromptFile(tmp_path / "nothing.txt")


UTF16 = "一条\nHello\n"


@pytest.mark.parametrize(
    "data",
    [
        UTF16.encode("utf-16"),
        b"\xfe\xff" + UTF16.encode("utf-16-be"),
        UTF16.encode("utf-16-le"),
        UTF16.encode("utf-32"),
    ],
    ids=["utf-16", "utf-16 the other way round", "without a mark", "utf-32"],
)
@pytest.mark.parametrize("name", ["d.txt", "d.tsv", "d.jsonl"])
def test_a_file_in_another_encoding_is_said_and_not_sent(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInputError, match=r"is not UTF-8, but UTF-(16|32)"):
        PromptFile(tmp_path / name)


def test_a_null_far_down_fails_its_line_alone(tmp_path):
    (tmp_path / "d.txt").write_bytes(b"fine\n" * 20_000 + b"n\0u\0l\0l\nfine\n")
    prompts = list(PromptFile(tmp_path / "d.txt"))
    assert [p.index for p in prompts if p.problem] == [20_000]
    assert "Line 20001 of the data file cannot be read: it contains a null character" in prompts[20_000].problem
    assert prompts[20_001].text == "fine"


def test_lines_nested_too_deeply_or_too_long_fail_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.batch.run.LONGEST_LINE", 500_000)
    deep = "[" * 200_000
    text = f'{{"Input": "a"}}\n{deep}\n{"x" * 900_000}\n{{"Input": "b"}}\n{"y" * 2_000_000}'
    (tmp_path / "d.jsonl").write_text(text)
    assert run(PromptFile(tmp_path / "d.jsonl"), tmp_path / "p.json").failed == 3
    problems = {line["index"]: line["error"] for line in lines(tmp_path / "p.jsonl") if "error" in line}
    assert "nested too deeply" in problems[1] and "longer than 500,000 bytes" in problems[2] and "longer" in problems[4]
    assert [output for _, output in pairs(tmp_path / "p.json")] == ["A", None, None, "B", None]


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices are POSIX's")
@pytest.mark.parametrize("name", ["pipe", ".", "/dev/zero", "/dev/null"])
def test_what_cannot_be_read_twice_is_no_data_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(BadInputError, match="but prompts are read twice"):
        PromptFile(name)


@pytest.mark.parametrize("wrong", [None, 5, b"d.txt", "", "a\0b", "x" * 5000, ["d.txt"]])
def test_what_is_no_name_of_a_data_file(wrong):
    with pytest.raises(BadInputError):
        PromptFile(wrong)


@pytest.mark.parametrize("prompts", [None, 5, b"a", [5.5], [None], [[{"role": "user"}, 5]]])
def test_what_are_no_prompts(tmp_path, prompts):
    with pytest.raises(BadInputError):
        run(prompts, tmp_path / "p.json")


@pytest.mark.parametrize("engine", [5, "vllm", object()])
def test_what_is_no_engine(tmp_path, engine):
    with pytest.raises(BadInputError, match="engine must be an engine of helpers"):
        run(["a"], tmp_path / "p.json", engine=engine)


def test_messages_with_a_picture_that_is_none_do_not_stop_a_run(tmp_path):
    prompts = [[{"role": "user", "content": "?", "image": image}] for image in (5, "a\0b.png", object(), None)]
    assert run(prompts, tmp_path / "p.json").total == 4


def test_an_address_in_place_of_a_picture_is_left_as_it_is(tmp_path):
    addresses = ["https://example.com/cat.png", "data:image/png;base64,AAAA", "cat.png"]
    (tmp_path / "d.tsv").write_text("".join(f"?\t{address}\n" for address in addresses))
    assert [p.image for p in PromptFile(tmp_path / "d.tsv")] == [*addresses[:2], str(tmp_path / "cat.png")]


# --- what is written


def test_lines_as_they_come_and_a_list_in_order_at_the_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a bare file name works
    report = run(["a", "b", "你好", "d", "e"], "p.json")
    assert [line["index"] for line in lines(Path("p.jsonl"))] == [3, 2, 1, 0, 4]
    assert lines(Path("p.jsonl"))[1] == {"index": 2, "Input": "你好", "Output": "你好"}
    assert json.loads(Path("p.json").read_text(encoding="utf-8"))[0] == {"Input": "a", "Output": "A"}
    assert pairs(Path("p.json")) == [("a", "A"), ("b", "B"), ("你好", "你好"), ("d", "D"), ("e", "E")]
    assert (report.total, report.answered, report.kept, report.failed) == (5, 5, 0, 0)
    assert "你好" in Path("p.json").read_text(encoding="utf-8")


def test_each_line_is_in_the_file_when_the_next_prompt_is_asked(tmp_path):
    class Looking(Echo):
        def generate(self, prompts, settings):
            for prompt in prompts:
                file = tmp_path / "p.jsonl"
                seen.append(len(file.read_bytes().splitlines()))
                yield prompt.index, "x"

    seen = []
    run(["a", "b", "c"], tmp_path / "p.json", engine=Looking())
    assert seen == [0, 1, 2]


def test_a_prompt_that_fails_is_recorded_and_the_others_go_on(tmp_path):
    report = run(["a", "bad one", "c"], tmp_path / "p.json")
    assert report.failed == 1
    assert {"index": 1, "Input": "bad one", "Output": None, "error": "ValueError: so bad"} in lines(
        tmp_path / "p.jsonl"
    )
    assert pairs(tmp_path / "p.json") == [("a", "A"), ("bad one", None), ("c", "C")]
    again = Echo()
    assert run(["a", "bad one", "c"], tmp_path / "p.json", engine=again).failed == 1
    assert again.answered == []


def test_failed_prompts_are_asked_again_when_told_so(tmp_path, monkeypatch):
    run(["a", "bad", "c"], tmp_path / "p.json")
    monkeypatch.setattr(Echo, "generate", lambda self, prompts, _: ((p.index, "mended") for p in prompts))
    report = run(["a", "bad", "c"], tmp_path / "p.json", retry_failed=True)
    assert (report.answered, report.kept, report.failed) == (1, 2, 0)
    assert pairs(tmp_path / "p.json") == [("a", "A"), ("bad", "mended"), ("c", "C")]
    assert run(["a", "bad", "c"], tmp_path / "p.json").failed == 0


def test_no_prompts_an_empty_list(tmp_path):
    run([], tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text()) == []


def test_half_a_character_in_a_prompt_breaks_no_file(tmp_path):
    run(["a\ud83d", "b"], tmp_path / "p.json")
    assert pairs(tmp_path / "p.json")[0] == ("a\ud83d", "A\ud83d")


def test_errors_are_one_line():
    assert error_text(ValueError("a\n b")) == "ValueError: a b"
    assert error_text(KeyboardInterrupt()) == "KeyboardInterrupt"


@pytest.mark.parametrize("name", ["p.jsonl", ".", "d"])
def test_names_that_are_no_predictions_file(tmp_path, name):
    (tmp_path / "d").mkdir()
    with pytest.raises(BadInputError, match=r"p\.json"):
        run(["a"], tmp_path / name)


def test_a_folder_with_the_predictions_files_name_is_called_a_folder(tmp_path):
    (tmp_path / "p.json").mkdir()
    with pytest.raises(BadInputError, match=r"p\.json is a folder, but answers are kept in a file"):
        run(["a"], tmp_path / "p.json")


def test_names_without_json_and_folders_that_are_not_there_yet(tmp_path):
    run(["a"], tmp_path / "deep" / "er" / "answers.txt")
    names = {file.name for file in (tmp_path / "deep" / "er").iterdir() if not file.name.startswith(".")}
    assert names == {"answers.txt", "answers.txt.jsonl", "answers.txt.run.json"}


def test_places_that_cannot_be_written_say_why(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path / "notes.txt" / "p.json", tmp_path / "notes.txt" / "deeper" / "p.json"):
        with pytest.raises(BadInputError, match=r"notes\.txt is a file, but a folder is needed there"):
            run(["a"], place)
    (tmp_path / "p.jsonl").mkdir()
    (tmp_path / "p.run.json").write_text("{}")
    with Predictions(tmp_path / "p.json") as predictions, pytest.raises(BadInputError, match="cannot be written: Is a"):
        predictions.open(1, {}, resume=True)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where no folder can be made")
def test_a_folder_that_cannot_be_made_is_named():
    with pytest.raises(BadInputError, match="the folder /proc/no cannot be created"):
        run(["a"], "/proc/no/p.json")
    with pytest.raises(BadInputError, match=r"/proc/self/p\.json cannot be written: No such file"):
        run(["a"], "/proc/self/p.json")


@pytest.mark.parametrize("prompts", ["a text", iter(["a"]), {"a": 1}])
def test_prompts_that_cannot_be_read_twice(tmp_path, prompts):
    with pytest.raises(BadInputError, match="list or a PromptFile"):
        run(prompts, tmp_path / "p.json")


def test_unknown_and_wrong_settings_are_said_before_anything_is_written(tmp_path):
    with pytest.raises(BadInputError, match="'max_tokens'; the settings are max_new_tokens"):
        run(["a"], tmp_path / "p.json", max_tokens=3)
    with pytest.raises(BadInputError, match="top_p"):
        run(["a"], tmp_path / "p.json", top_p=3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answers", [[(7, "x")], [(0, "x"), (0, "y")], [(0, "x")]])
def test_an_engine_that_does_not_keep_its_word(tmp_path, monkeypatch, answers):
    monkeypatch.setattr(Echo, "generate", lambda self, prompts, _: [list(prompts), *answers][1:])
    with pytest.raises(HelpersError, match="engine echo"):
        run(["a", "b"], tmp_path / "p.json")


def test_a_bar_shows_how_long_it_will_take(tmp_path, capsys):
    run(["a", "bad"], tmp_path / "p.json", progress=True)
    shown = capsys.readouterr().err
    assert "2/2" in shown and "failed=1" in shown


# --- stopping and going on


def test_a_run_that_was_stopped_goes_on_and_repeats_nothing(tmp_path):
    prompts = [f"prompt {i}" for i in range(20)]
    with pytest.raises(KeyboardInterrupt):
        run(prompts, tmp_path / "p.json", engine=Echo(stop_after=7))
    assert not (tmp_path / "p.json").exists()
    second = Echo()
    report = run(prompts, tmp_path / "p.json", engine=second)
    assert (report.kept, report.answered) == (7, 13)
    assert len(second.answered) == 13
    assert sorted(line["index"] for line in lines(tmp_path / "p.jsonl")) == list(range(20))
    assert pairs(tmp_path / "p.json") == [(p, p.upper()) for p in prompts]


def test_what_the_engine_raises_stops_the_run_and_keeps_what_is_there(tmp_path, monkeypatch):
    def gone(self, prompts, settings):
        yield next(prompts).index, "A"
        raise ConnectionError("the server is gone")

    with monkeypatch.context() as patched:
        patched.setattr(Echo, "generate", gone)
        with pytest.raises(ConnectionError):
            run(["a", "b"], tmp_path / "p.json")
    assert run(["a", "b"], tmp_path / "p.json").kept == 1


@pytest.mark.parametrize("torn", [b'{"index": 2, "Inp', b"{", b"\x00\x00\x00"])
def test_a_last_line_that_was_cut_off_is_asked_again(tmp_path, torn):
    with pytest.raises(KeyboardInterrupt):
        run(["a", "b", "c"], tmp_path / "p.json", engine=Echo(stop_after=2, at_once=1))
    with (tmp_path / "p.jsonl").open("ab") as stream:
        stream.write(torn)
    report = run(["a", "b", "c"], tmp_path / "p.json")
    assert (report.kept, report.answered) == (2, 1)
    assert [line["index"] for line in lines(tmp_path / "p.jsonl")] == [0, 1, 2]


def test_a_last_line_that_lacks_only_its_end_is_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(["a", "b", "c"], tmp_path / "p.json", engine=Echo(stop_after=2, at_once=1))
    file = tmp_path / "p.jsonl"
    file.write_bytes(file.read_bytes()[:-1])
    assert run(["a", "b", "c"], tmp_path / "p.json").kept == 2
    assert [line["index"] for line in lines(file)] == [0, 1, 2]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    run(["a", "b"], tmp_path / "p.json")
    file = tmp_path / "p.jsonl"
    for wrong in ("nonsense\n", '{"index": 9, "Input": "", "Output": ""}\n', "{}\n", "[]\n"):
        file.write_text(wrong + '{"index": 0, "Input": "a", "Output": "A"}\n', encoding="utf-8")
        with pytest.raises(DamagedFilesError, match="Line 1"):
            run(["a", "b"], tmp_path / "p.json")


def _run_until_killed(folder):
    run(PromptFile(folder / "d.txt"), folder / "p.json", engine=Echo(seconds=0.001, log=folder / "asked", at_once=8))


def test_killed_at_random_moments_nothing_is_lost_or_asked_twice(tmp_path):
    total, kills = 700, 0
    (tmp_path / "d.txt").write_text("".join(f"prompt {i}\n" for i in range(total)), encoding="utf-8")
    journal, chance = tmp_path / "p.jsonl", random.Random(0)
    before = b""
    while not (tmp_path / "p.json").exists():
        process = multiprocessing.get_context("fork").Process(target=_run_until_killed, args=(tmp_path,))
        process.start()
        size = journal.stat().st_size if journal.exists() else 0
        while process.is_alive() and (not journal.exists() or journal.stat().st_size <= size):
            time.sleep(0.001)  # it has begun to answer
        process.join(chance.uniform(0, 0.03))
        process.kill()
        process.join()
        kills += process.exitcode == -9
        assert journal.read_bytes().startswith(before)
        before = journal.read_bytes()
        before = before[: before.rfind(b"\n") + 1]
    assert kills >= 20
    assert sorted(line["index"] for line in lines(journal)) == list(range(total))
    asked = (tmp_path / "asked").read_text().split()
    assert len(asked) - total <= kills  # only an answer that was being made can have been asked twice
    assert pairs(tmp_path / "p.json") == [(f"prompt {i}", f"PROMPT {i}") for i in range(total)]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prompts": ["a", "b"]}, "prompts = 3, but now it is 2"),
        ({"prompts": ["a", "b", "x"]}, "other prompts"),
        ({"temperature": 0.5}, r"temperature = 0\.2, but now it is 0\.5"),
        ({"do_sample": False}, "do_sample = true"),
    ],
)
def test_another_job_does_not_go_on_with_these_answers(tmp_path, changed, says):
    job = {"prompts": ["a", "b", "c"]}
    run(file=tmp_path / "p.json", **job)
    before = (tmp_path / "p.json").read_bytes()
    with pytest.raises(BadInputError, match=says):
        run(file=tmp_path / "p.json", **job | changed)
    assert (tmp_path / "p.json").read_bytes() == before
    assert run(file=tmp_path / "p.json", **job | changed, resume=False).kept == 0


def test_another_model_does_not_go_on_with_these_answers(tmp_path, monkeypatch):
    run(["a"], tmp_path / "p.json")
    monkeypatch.setattr(Echo, "model_name", "foxtrot")
    with pytest.raises(BadInputError, match='model = "echo", but now it is "foxtrot"'):
        run(["a"], tmp_path / "p.json")


def test_a_picture_is_part_of_a_prompt_and_its_folder_is_not(tmp_path):
    for folder, picture in (("x", "cat"), ("y", "cat"), ("z", "dog")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "d.tsv").write_text(f"What?\t{picture}.png\n", encoding="utf-8")
    run(PromptFile(tmp_path / "x" / "d.tsv"), tmp_path / "p.json")
    assert run(PromptFile(tmp_path / "y" / "d.tsv"), tmp_path / "p.json").kept == 1
    with pytest.raises(BadInputError, match="other prompts"):
        run(PromptFile(tmp_path / "z" / "d.tsv"), tmp_path / "p.json")


def test_a_picture_that_shows_something_else_now_is_another_prompt(tmp_path):
    (tmp_path / "d.tsv").write_text("What?\tcat.png\n", encoding="utf-8")
    (tmp_path / "cat.png").write_bytes(b"a cat")
    run(PromptFile(tmp_path / "d.tsv"), tmp_path / "p.json")
    (tmp_path / "cat.png").write_bytes(b"a dog")
    with pytest.raises(BadInputError, match="other prompts"):
        run(PromptFile(tmp_path / "d.tsv"), tmp_path / "p.json")


def test_whatever_a_message_holds_is_part_of_the_prompt(tmp_path):
    def chat(**more):
        return [[{"role": "user", "content": "Hello", **more}]]

    run(chat(tool_calls=[1]), tmp_path / "p.json")
    assert run(chat(tool_calls=[1]), tmp_path / "p.json").kept == 1
    with pytest.raises(BadInputError, match="other prompts"):
        run(chat(tool_calls=[2]), tmp_path / "p.json")


@pytest.mark.parametrize("name", ["p.json", "p.jsonl"])
def test_files_of_somebody_else_are_not_written_over(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(BadInputError, match="nothing says what it answers"):
        run(["a"], tmp_path / "p.json")
    assert (tmp_path / name).read_text() == "mine"


def test_two_runs_on_the_same_file_at_once(tmp_path):
    with Predictions(tmp_path / "p.json"), pytest.raises(BadInputError, match="Another run is writing"):
        run(["a"], tmp_path / "p.json")
    assert run(["a"], tmp_path / "p.json").answered == 1


# --- a full disk


def _with_little_room(folder, limit):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # a file that grows further is cut there
    try:
        run(PromptFile(folder / "d.txt"), folder / "p.json")
    except DiskFullError as error:
        (folder / "said").write_text(str(error))


@pytest.mark.parametrize("limit", [100, 1500, 8000])
def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path, limit):
    """At 100 bytes there is no room for the record, at 1500 for the lines, at 8000 for the list of them."""
    pytest.importorskip("resource")
    total = 100
    (tmp_path / "d.txt").write_text("".join(f"prompt {i}\n" for i in range(total)), encoding="utf-8")
    process = multiprocessing.get_context("fork").Process(target=_with_little_room, args=(tmp_path, limit))
    process.start()
    process.join()
    if limit < 8000:
        assert "The disk is full" in (tmp_path / "said").read_text()
    journal = tmp_path / "p.jsonl"
    there = lines(journal) if journal.exists() else []
    report = run(PromptFile(tmp_path / "d.txt"), tmp_path / "p.json")
    assert report.kept == len(there)
    assert (0 < report.kept < total) == (limit == 1500)
    assert not list(tmp_path.glob(".*.part"))
    assert pairs(tmp_path / "p.json") == [(f"prompt {i}", f"PROMPT {i}") for i in range(total)]


def test_no_room_for_the_list_at_the_end(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(predictions.os, "replace", full)
        with pytest.raises(DiskFullError):
            run(["a"], tmp_path / "p.json")
    with monkeypatch.context() as patched:
        run(["a"], tmp_path / "p.json")
        patched.setattr(predictions.os, "replace", full)
        with pytest.raises(DiskFullError, match="No answer is lost"):
            run(["a"], tmp_path / "p.json")
    assert pairs(tmp_path / "p.json") == [("a", "A")]  # the old one, whole


# --- size


def test_a_long_file_does_not_sit_in_memory(tmp_path):
    def peak(total):
        (tmp_path / f"{total}.txt").write_text(f"{'x' * 200}\n" * total, encoding="utf-8")
        tracemalloc.start()
        run(PromptFile(tmp_path / f"{total}.txt"), tmp_path / f"p{total}.json")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert sum(1 for _ in (tmp_path / f"p{total}.jsonl").open("rb")) == total
        return most

    peak(10)  # imports
    assert peak(3_000) - peak(1_000) < 125_000  # bytes; the files differ by 402,000


# --- the command line, with a model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A random model with the default model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
    )
    path = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def command(folder, *options):
    return ["--base_model", str(folder), "--only_cpu", "--max_new_tokens", "8", "--greedy", *options]


def test_a_killed_command_goes_on(tmp_path, folder):
    (tmp_path / "d.txt").write_text("".join(f"prompt {i}\n" for i in range(120)), encoding="utf-8")
    options = command(folder, "--data_file", "d.txt", "--with_prompt", "--batch_size", "4")
    program = [sys.executable, "-m", "helpers.batch", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(program, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    journal = tmp_path / "predictions.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 8) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    before = journal.read_bytes()
    assert process.returncode == -9 and 8 <= before.count(b"\n") < 120
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "120 prompts" not in done.stdout and "0 failed: predictions.json" in done.stdout
    assert "prompt 9\n" in done.stdout and "prompt 10" not in done.stdout
    assert "120/120" in done.stderr
    assert journal.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert [line for line, _ in pairs(tmp_path / "predictions.json")] == [f"prompt {i}" for i in range(120)]
    assert sorted(line["index"] for line in lines(journal)) == list(range(120))


def test_without_a_data_file_the_walkthroughs_prompts_are_asked(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command(folder)) == 0
    assert [text for text, _ in pairs(Path("predictions.json"))] == ["为什么要减少污染，保护环境？", "你有什么建议？"]
    assert "2 prompts in" in capsys.readouterr().out
    assert main(command(folder, "--with_prompt")) == 2
    assert "BadInputError" in capsys.readouterr().err
    assert main(command(folder, "--with_prompt", "--no_resume")) == 0


def test_the_command_line_says_what_is_wrong_in_one_sentence(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # --gpus changes it
    Path("d.txt").write_text("mine")
    for options, says in (
        (["--data_file", "nothing.txt"], "nothing.txt"),
        (["--base_model", "no-such-model"], "no-such-model"),
        (["--load_in_8bit", "--load_in_4bit"], "choose one of them"),
        (["--use_vllm", "--server", "http://127.0.0.1:1"], "cannot be combined: choose one engine"),
        (["--use_vllm", "--load_in_4bit"], "--load_in_4bit is for transformers"),
        (["--repetition_penalty", "-1"], "repetition_penalty"),
        (["--use_vllm", "--batch_size", "0"], "--batch_size must be a whole number of at least 1, not 0"),
        (["--ray", "0"], "--ray must be a whole number of at least 1, not 0"),
        (["--server", "http://127.0.0.1:1", "--dtype", "bfloat16"], "--dtype is for transformers and vLLM"),
        (["--gpus", "abc"], '"0" or "0,1", not \'abc\''),
        (["--gpus", "0,zz"], "not '0,zz'"),
        (["--predictions_file", "d.txt/p.json"], "d.txt is a file, but a folder is needed there"),
    ):
        assert main([*command(folder), *options]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize(
    ("options", "says", "python"),
    [
        (["--temperature", "0"], "every time use --greedy", "do_sample"),
        (["--use_flash_attention_2"], "Use sdpa (omit --use_flash_attention_2): it computes the same", 'dtype="'),
        (["--base_model", "ZhipuAI/glm-4-9b-chat"], "pass --source modelscope (ZhipuAI/glm-4-9b-chat)", 'source="'),
        (["--predictions_file", "old.json"], "or use --no_resume to overwrite it", "resume=False"),
    ],
)
def test_advice_names_options_and_no_arguments(tmp_path, folder, monkeypatch, capsys, options, says, python):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELPERS_MODELS", str(tmp_path))
    Path("old.json").write_text("[]")
    assert main(["--base_model", str(folder), "--only_cpu", *options]) == 2
    error = capsys.readouterr().err
    assert says in error and python not in error and error.count("\n") == 1


def test_gpus_that_are_not_there_are_said_before_the_model_is_loaded(tmp_path, folder, monkeypatch, capsys):
    import torch

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("helpers.models.loading.load_model", None)  # calling it would fail
    assert main(["--base_model", str(folder), "--gpus", "0,1"]) == 2
    assert "--gpus 0,1: this machine has only 1 of these. Omit --gpus." in capsys.readouterr().err
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_where_nothing_can_be_written_no_model_is_loaded(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("helpers.models.loading.load_model", None)
    Path("d.txt").write_text("mine")
    assert main(command(folder, "--predictions_file", "d.txt/p.json")) == 2
    assert "a folder is needed there" in capsys.readouterr().err


def test_a_source_and_a_dtype_reach_what_loads(tmp_path, folder, monkeypatch):
    from helpers.models import loading, pretrained

    given, load_model, load_tokenizer = [], loading.load_model, pretrained.load_tokenizer

    def take(load, **fixed):
        return lambda name, **settings: given.append((name, settings)) or load(folder, **fixed)

    def text_only(name, **settings):
        raise BadInputError("it takes text only")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "load_processor", text_only)
    monkeypatch.setattr(pretrained, "load_tokenizer", take(load_tokenizer))
    monkeypatch.setattr(loading, "load_model", take(load_model, device="cpu"))
    options = command("owner/model", "--source", "modelscope", "--dtype", "bfloat16")
    assert main(options) == 0
    assert given[0] == ("owner/model", {"source": "modelscope"})
    assert (given[1][1]["source"], given[1][1]["dtype"]) == ("modelscope", "bfloat16")
    given.clear()
    assert main([*options, "--tokenizer_path", str(folder), "--no_resume"]) == 0
    assert given[0] == (str(folder), {"source": None})


@pytest.mark.parametrize("option", ["server", "data_file", "predictions_file", "base_model", "tokenizer_path", "gpus"])
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_option_is_a_variable_that_is_not_set(tmp_path, monkeypatch, capsys, option, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("helpers.models.loading.load_model", None)
    assert main([f"--{option}", value]) == 2
    assert f"--{option} is empty" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_prompts_are_shown_without_control_characters_and_not_at_any_length(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("helpers.batch.__main__._engine", lambda options: Echo())
    address = "data:image/png;base64," + "A" * 100_000
    Path("d.tsv").write_text(f"red \x1b[31m\tcat.png\n{'long ' * 10_000}\n?\t{address}\n", encoding="utf-8")
    assert main(["--data_file", "d.tsv"]) == 0
    shown = capsys.readouterr().out
    assert "red \\x1b[31m" in shown and "\x1b" not in shown and len(shown) < 2000


def test_any_character_reaches_any_terminal(tmp_path):
    """The prompts are shown before anything is loaded; the predictions file is wrong, so it ends there."""
    (tmp_path / "d.jsonl").write_text('{"Input": "half \\ud83d"}\n{"Input": "你好"}\n', encoding="utf-8")
    options = ["--data_file", "d.jsonl", "--predictions_file", "p.jsonl"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "cp1252"}
    program = [sys.executable, "-m", "helpers.batch", *options]
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 2 and b"BadInputError" in done.stderr and b"Traceback" not in done.stderr
    assert done.stdout.splitlines() == [b"half \\ud83d", b"\\u4f60\\u597d"]


def test_half_a_character_is_one_prompt_of_the_run(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("d.jsonl").write_text('{"Input": "half \\ud83d"}\n{"Input": "你好"}\n', encoding="utf-8")
    assert main(command(folder, "--data_file", "d.jsonl")) in (0, 1)
    (half, _), (whole, answer) = pairs(Path("predictions.json"))
    assert (half, whole) == ("half \ud83d", "你好") and answer is not None


def test_a_prompt_that_failed_is_the_exit_status(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("d.tsv").write_text("Hello\nWhat is this?\tcat.png\n", encoding="utf-8")
    assert main(command(folder, "--data_file", "d.tsv")) == 1
    assert "1 failed" in capsys.readouterr().out
    assert "does not see" in lines(Path("predictions.jsonl"))[-1]["error"]


def test_stopping_the_command_line_says_how_to_go_on(tmp_path, folder, monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("helpers.batch.__main__.run_batch", stopped)
    assert main(command(folder)) == 130
    assert "to continue from there" in capsys.readouterr().err
    monkeypatch.setattr("helpers.models.loading.load_model", stopped)
    assert main(command(folder, "--interactive")) == 130
    assert capsys.readouterr().err == "\nStopped.\n"


# --- many turns


def typed(*said):
    given = iter(said)

    def read(_):
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    return read


def test_interactive_has_many_turns(folder, capsys, monkeypatch):
    given = typed("Hello", "And again?", "/clear", "Hello", "/exit", "never asked")
    monkeypatch.setattr("builtins.input", given)
    assert main(command(folder, "--interactive")) == 0
    first, second, third = capsys.readouterr().out.strip().splitlines()[1:]
    assert first == third != second


def test_one_ctrl_c_at_a_question_ends_it_and_promises_nothing(folder, capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert main(command(folder, "--interactive")) == 0
    shown = capsys.readouterr()
    assert "lost" not in shown.err and shown.out.endswith("/exit ends.\n\n")


def test_ctrl_c_in_an_answer_ends_the_answer_only(capsys):
    class Stopping:
        def stream(self, text, image):
            yield text
            if text == "one":
                raise KeyboardInterrupt

    talk(Stopping, typed("one", "two"))
    assert capsys.readouterr().out.splitlines()[1:] == ["one …", "two", ""]


class Remembering(Echo):
    def generate(self, prompts, settings):
        for prompt in prompts:
            yield prompt.index, " | ".join(m["content"] + m.get("image", "") for m in prompt.messages[1:])


def test_an_engine_is_given_the_whole_conversation(capsys):
    talk(
        lambda: EngineConversation(Remembering(), GenerationSettings()),
        typed("a", "", "/image cat.png", "b", "c"),
    )
    answers = capsys.readouterr().out.strip().splitlines()[1:]
    assert answers == ["a", "a | a | bcat.png", "a | a | bcat.png | a | a | bcat.png | c"]


def test_no_control_character_of_an_answer_reaches_the_terminal(capsys):
    talk(lambda: EngineConversation(Echo(), GenerationSettings()), typed("\x1b]0;title\x07" + "x" * 5000))
    shown = capsys.readouterr().out
    assert "\\x1b]0;TITLE\\x07" in shown and "X" * 5000 in shown and "\x1b" not in shown


def test_a_question_that_fails_is_said_and_forgotten(capsys):
    conversation = EngineConversation(Echo(), GenerationSettings())
    talk(lambda: conversation, typed("bad", "good"))
    shown = capsys.readouterr().out
    assert "echo failed: so\nbad" in shown and "GOOD" in shown
    assert [m["content"] for m in conversation.messages[1:]] == ["good", "GOOD"]


def test_a_picture_for_a_model_that_takes_text_only_is_one_sentence(folder, capsys, monkeypatch, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    monkeypatch.setattr("builtins.input", typed(f"/image {tmp_path / 'cat.png'}", "What is this?", "Who are you?"))
    assert main(command(folder, "--interactive")) == 0
    hint, failed, answered = capsys.readouterr().out.strip().splitlines()
    assert "/image removes it" in hint
    assert "does not see" in failed and failed.endswith("The picture is removed.")
    assert "BadInputError" not in answered


def test_a_picture_can_be_put_away(capsys):
    given = []

    class Looking:
        def stream(self, text, image):
            given.append(image)
            return [text]

    talk(Looking, typed("/image cat.png", "/image", "a", "/image cat.png", "b", "c"))
    assert given == [None, "cat.png", None]


def test_prompts_carry_their_numbers(tmp_path):
    with pytest.raises(BadInputError, match="number 1 has the index 5"):
        run([Prompt(0, "a"), Prompt(5, "b")], tmp_path / "p.json")


REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def test_the_system_prompt_can_be_left_out_or_chosen(tmp_path, folder, tokenizer, capsys, monkeypatch):
    """With a chat template that takes no system prompt, as Gemma's."""
    changed = deepcopy(tokenizer)
    changed.chat_template = REFUSES_SYSTEM + tokenizer.chat_template
    shutil.copytree(folder, tmp_path / "m")
    changed.save_pretrained(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    Path("d.txt").write_text("Hello\n", encoding="utf-8")
    arguments = ["--data_file", "d.txt", "--with_prompt"]
    assert main(command("m", *arguments)) == 1
    assert "omit that (--no_system_prompt)" in lines(Path("predictions.jsonl"))[0]["error"]
    assert main(command("m", *arguments, "--predictions_file", "q.json", "--no_system_prompt")) == 0
    capsys.readouterr()
    monkeypatch.setattr("builtins.input", typed("Hello", "/exit"))
    assert main(command("m", "--interactive")) == 0
    assert "--no_system_prompt" in capsys.readouterr().out
    monkeypatch.setattr("builtins.input", typed("Hello", "/exit"))
    assert main(command("m", "--interactive", "--no_system_prompt")) == 0
    assert "Error" not in capsys.readouterr().out
    assert parser().parse_args(["--system_prompt", "Be brief."]).system_prompt == "Be brief."
