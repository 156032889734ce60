"""What `make bench` writes, without running it: its tables, ratios, rounds and memory figures."""

import importlib
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "BENCHMARKS.md"


@pytest.fixture(scope="module")
def bench():
    """A module of tests/benchmarks by its name."""
    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "tests" / "benchmarks"))


def test_the_environment_beside_the_peers_has_all_that_the_course_needs():
    """The other tools have an environment of their own, and `helpers` must load in it too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.match(r"[\w-]+", line).group() for line in project["dependencies"]}
    lines = (ROOT / "tests" / "benchmarks" / "peers.txt").read_text(encoding="utf-8").splitlines()
    there = {re.match(r"[\w-]+", line).group() for line in lines if not line.startswith("#")}
    assert needed - there == {"bitsandbytes", "modelscope", "modelscope-hub", "pip"}


ABOUT = {"date": "2026-01-02", "rounds": 7, "threads": 2, "processor": "P", "versions": "torch 1"}


def test_a_table_is_markdown(bench):
    result = bench("measuring").Table("Title", ["", "time"], [["a|b\nc", 3]], ["Note.", "More."])
    shown = bench("table").markdown(result.to_json())
    assert shown.splitlines() == [
        "**Title**",
        "",
        "|  | time |",
        "|---|---|",
        "| a\\|b c | 3 |",
        "",
        "Note. More.",
    ]


def test_only_what_is_between_the_markers_changes(bench):
    table = bench("table")
    readme = f"before\n{table.BEGIN}\nold\n{table.END}\nafter"
    one = bench("measuring").Table("Title", ["x"], [["1"]]).to_json()
    text = table.with_tables(readme, [one], ABOUT)
    assert text.startswith(f"before\n{table.BEGIN}\n") and text.endswith(f"{table.END}\nafter")
    assert "old" not in text and "**Title**" in text and "2026-01-02" in text and "7 interleaved rounds" in text
    assert f"takes over {bench('measuring').SLOW} s" in text
    assert table.with_tables(text, [one], ABOUT) == text
    assert table.with_tables(text, [], ABOUT) == f"before\n{table.BEGIN}\n{table.END}\nafter"


@pytest.mark.parametrize("page", ["", "{begin}", "{end}{begin}", "{begin}{begin}{end}"])
def test_a_page_without_its_markers_is_left_alone(bench, page):
    table = bench("table")
    with pytest.raises(ValueError, match="once each"):
        table.with_tables(page.format(begin=table.BEGIN, end=table.END), [], ABOUT)


def test_the_page_has_the_markers(bench):
    assert bench("table").with_tables(PAGE.read_text(encoding="utf-8"), [], ABOUT)


def test_the_five_numbers_of_readme_are_those_of_the_page():
    """Each figure of README's table stands in a table of the page; after `make bench`, README says the new ones."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`: .*? \| ([^|]*) \| ([^|]*) \|$", readme, re.MULTILINE)
    assert len(rows) == 5
    page = PAGE.read_text(encoding="utf-8")
    for name, here, beside in rows:
        assert name in page
        for figure in re.findall(r"[\d.]+ (?:ms|s|MB)\b", f"{here} {beside}"):
            assert re.search(rf"(?<![\d.]){re.escape(figure)}\b", page), f"{name}: {figure} is in no table"


def test_rounds_are_interleaved_and_slow_ones_run_three_times(bench, monkeypatch):
    measuring, order = bench("measuring"), []
    clock = iter(range(10_000))
    monkeypatch.setattr(measuring.gc, "collect", lambda: None)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(clock))
    contenders = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = measuring.interleaved(contenders, 4)
    assert order == [*"abc", *"abc", *"bca", *"cab", *"abc"]
    assert seconds == {"a": [1] * 4, "b": [1] * 4, "c": [1] * 4}
    monkeypatch.setattr(measuring, "SLOW", 0.5)
    assert {len(times) for times in measuring.interleaved(contenders, 5).values()} == {3}


def test_what_does_not_come_to_an_end_is_not_tried_again(bench):
    measuring, asked = bench("measuring"), []

    def clock(seconds):
        asked.append(seconds)
        return seconds

    seconds = measuring.interleaved({"never": math.inf, "broken": math.nan, "fine": 1.0}, 7, clock=clock)
    assert seconds["never"] == [math.inf] and len(seconds["broken"]) == 1 and seconds["fine"] == [1.0] * 7
    assert len(asked) == 10


def test_a_ratio_is_taken_round_by_round(bench):
    measuring = bench("measuring")
    assert measuring.ratio([2.0, 20.0, 1.0], [1.0, 10.0, 1.0])[1] == 2.0
    assert measuring.ratio_text([1.0], [2.0]) == "0.50 (0.50-0.50)"
    assert measuring.seconds_text([0.1234, 0.1, 9]) == "123 ms" and measuring.seconds_text([1.234]) == "1.23 s"
    assert measuring.share_text(1, [4.0, 2.0, 0.1]) == "50%" and measuring.share_text(1, [200.0]) == "under 1%"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_memory_growth_is_the_peak_and_not_what_is_left(bench):
    program = (
        "import torch; from measuring import growth; torch.zeros(1000).add_(1)\n"
        "print(growth(lambda: torch.ones(25_000_000)[:10].clone(), lambda kept: kept.nbytes))"
    )
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, cwd=ROOT / "tests" / "benchmarks", capture_output=True, text=True, check=True)
    found = eval(done.stdout)
    assert 95e6 < found["peak"] < 130e6 and found["tensors"] == 40


@pytest.mark.parametrize("part", ["capture", "layer", "lens", "generation"])
def test_our_side_and_plain_transformers_run_and_agree(bench, model, tokenizer, part, monkeypatch):
    """The peers have an environment of their own; these sides must work here too."""
    import torch

    class Models:
        plain, eager = model, model

        def __init__(self):
            self.tokenizer = tokenizer

        def ids(self, length):
            return torch.arange(100, 100 + length)[None]

    module = bench(f"part_{part}")
    if part == "generation":
        monkeypatch.setattr(module, "NEW", 4)
        sides = module.contenders(Models())
        ours = [side() for name, side in sides.items() if "generate_steps" in name]
        assert ours == [sides[module.BASELINE]()] * 2
        return
    sides = module.contenders(Models(), 6)
    if part == "capture":
        result = sides[module.OURS]()
        assert module.kept(module.OURS, result) == result.nbytes
    elif part == "layer":
        assert torch.allclose(sides[module.BASELINE]()[0][0], sides[module.OURS]().hidden_states[0], atol=1e-4)
    else:
        loop = sides["transformers, a loop over layers"]()
        for name in (module.BASELINE, "transformers, one product"):
            assert module.agreement(loop, sides[name]()).startswith("100.0%")
