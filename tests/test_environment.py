"""The environment reports: OK, or one line that says what to do, also when much is broken."""

import shutil
import subprocess
import sys
import tomllib
from collections import namedtuple

import pytest

from helpers import environment
from helpers.environment import Finding, Report, check_environment, check_machine, check_models, check_packages
from helpers.errors import DamagedFilesError, HubNotReachableError
from helpers.models import catalog, memory, store


def _by_name(report):
    return {finding.name: finding for finding in report.findings}


def _project_file(monkeypatch, tmp_path, text):
    file = tmp_path / "pyproject.toml"
    file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(environment, "PROJECT_FILE", file)


def test_here_all_is_well():
    packages, machine, models = check_environment()
    assert (packages.title, machine.title, models.title) == ("Packages", "Machine", "Models")
    assert packages.ok, packages
    assert machine.ok, machine


def test_every_declared_dependency_is_looked_at():
    project = tomllib.loads(environment.PROJECT_FILE.read_text(encoding="utf-8"))["project"]
    names = [finding.name for finding in check_packages().findings]
    assert names[0] == "Python"
    assert len(names) == 1 + len(project["dependencies"])
    assert {"torch", "transformers", "jupyterlab"} <= set(names)


def test_a_package_that_is_missing_too_old_or_too_new_says_what_to_run(monkeypatch, tmp_path):
    wanted = '["no-such-package-here>=1", "torch>=99", "jinja2<1", "psutil>=1"]'
    _project_file(monkeypatch, tmp_path, f'[project]\nrequires-python = ">=3.11"\ndependencies = {wanted}\n')
    report = check_packages()
    found = _by_name(report)
    assert not report.ok
    assert found["no-such-package-here"].value == "missing"
    for name, requirement in [("no-such-package-here", ">=1"), ("torch", ">=99"), ("jinja2", "<1")]:
        assert found[name].verdict == "TO DO"
        assert f'%pip install "{name}{requirement}"' in found[name].hint
        assert "restart the kernel" in found[name].hint
    assert found["psutil"].verdict == "OK"


def test_a_python_that_is_too_old(monkeypatch):
    monkeypatch.setattr(environment.platform, "python_version", lambda: "3.10.4")
    python = _by_name(check_packages())["Python"]
    assert (python.value, python.verdict) == ("3.10.4", "TO DO")
    assert ">=3.11" in python.hint


def test_a_package_of_another_platform_is_left_out(monkeypatch, tmp_path):
    wanted = "[\"no-such-package-here>=1; sys_platform == 'amiga'\"]"
    _project_file(monkeypatch, tmp_path, f'[project]\nrequires-python = ">=3"\ndependencies = {wanted}\n')
    assert list(_by_name(check_packages())) == ["Python"]


def test_no_pyproject_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "PROJECT_FILE", tmp_path / "pyproject.toml")
    with pytest.raises(DamagedFilesError, match=r"pyproject\.toml is not next to"):
        check_packages()


@pytest.mark.parametrize("text", ["[project", "[tool]\n"])
def test_a_damaged_pyproject_says_what_to_do(monkeypatch, tmp_path, text):
    _project_file(monkeypatch, tmp_path, text)
    with pytest.raises(DamagedFilesError, match="git checkout"):
        check_packages()


def test_the_machine_has_a_device_memory_and_a_disk(monkeypatch):
    monkeypatch.setattr(memory, "pick_device", lambda: "cpu")
    monkeypatch.setattr(memory, "available_bytes", lambda device: 5_000_000_000)
    found = _by_name(check_machine())
    assert found["device"].value.startswith("cpu, ")
    assert found["memory"].value == "5.0 GB free"
    assert found["disk"].value.endswith("GB free")


def test_a_gpu_is_named_and_how_to_get_the_courses_outputs(monkeypatch):
    monkeypatch.setattr(memory, "pick_device", lambda: "mps")
    monkeypatch.setattr(memory, "available_bytes", lambda device: 5_000_000_000)
    device = _by_name(check_machine())["device"]
    assert device.value.startswith("mps")
    assert 'device="cpu"' in device.hint


@pytest.mark.parametrize("error", [ImportError("No module named 'torch'"), OSError("libgomp.so.1: cannot open")])
def test_a_torch_that_cannot_be_imported_does_not_stop_the_report(monkeypatch, error):
    def fail(name):
        raise error

    monkeypatch.setattr(environment.importlib, "import_module", fail)
    report = check_machine()
    assert not report.ok
    found = _by_name(report)
    assert str(error) in found["device"].hint
    assert found["disk"].verdict == "OK"


def _disk(monkeypatch, tmp_path, free):
    monkeypatch.setenv(store.MODELS_VARIABLE, str(tmp_path / "not" / "made" / "yet"))
    usage = namedtuple("usage", "total used free")(10**12, 0, free)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    return _by_name(check_machine())["disk"]


def test_a_disk_with_room_for_the_models_to_come(monkeypatch, tmp_path):
    disk = _disk(monkeypatch, tmp_path, 50_000_000_000)
    assert disk.verdict == "OK"
    assert "smollm2-135m" in disk.hint


def test_a_disk_that_is_too_full_says_how_much_and_what_to_set(monkeypatch, tmp_path):
    disk = _disk(monkeypatch, tmp_path, 100_000_000)
    assert disk.verdict == "TO DO"
    assert "0.78 GB" in disk.hint
    assert store.MODELS_VARIABLE in disk.hint
    assert str(tmp_path) not in disk.hint


def test_models_that_fit_and_models_that_do_not(monkeypatch):
    monkeypatch.setattr(memory, "pick_device", lambda device="auto": "cpu")
    monkeypatch.setattr(memory, "ON_MACOS", False)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10_000_000_000)
    report = check_models()
    found = _by_name(report)
    assert list(found) == [card.name for card in catalog.list_models() if card.parameters]
    assert found["smollm2-135m"].verdict == "fits"
    assert found["smollm2-135m"].value == "0.697 GB in float32"
    assert found["llama-3-8b-instruct"].verdict == "too big"
    assert found["llama-3-8b-instruct"].hint == 'It would fit with dtype="bfloat16", quantization="8bit".'
    assert report.ok  # too big is no fault


def test_a_model_too_big_in_any_way_says_so(monkeypatch):
    monkeypatch.setattr(memory, "pick_device", lambda device="auto": "cpu")
    monkeypatch.setattr(memory, "ON_MACOS", False)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1_000_000_000)
    assert _by_name(check_models())["glm-4v-9b"].hint.startswith("Even in 4 bits it needs 9.")


def test_a_longer_context_takes_more(monkeypatch):
    monkeypatch.setattr(memory, "pick_device", lambda device="auto": "cpu")
    short, long = (_by_name(check_models(context=n))["smollm2-135m"].value for n in (1, 8192))
    assert float(short.split()[0]) < float(long.split()[0])


def test_a_model_that_cannot_be_prepared_is_one_line(monkeypatch):
    def fail(name, context):
        raise HubNotReachableError("pip could not fetch it.")

    monkeypatch.setattr(memory, "memory_plan", fail)
    report = check_models()
    assert not report.ok
    assert report.findings[0] == Finding("smollm2-135m", "unknown", "TO DO", "pip could not fetch it.")


def test_a_report_prints_one_aligned_line_for_each_finding():
    report = Report("Things", (Finding("a", "1.0", "OK"), Finding("longer", "2", "TO DO", "Mend it.")))
    assert repr(report) == "Things\n  a       1.0  OK\n  longer  2    TO DO  Mend it."
    assert repr(Report("None", ())) == "None"


def test_a_long_hint_is_printed_below_its_row():
    fits, long = "x" * 83, 'Run  %pip install "tool>=1"  in a cell, then ' + "restart the kernel " * 5
    report = Report("Things", (Finding("a", "1.0", "OK", fits), Finding("b", "2", "TO DO", long)))
    first, second, *below = repr(report).splitlines()[1:]
    assert first == f"  a  1.0  OK     {fits}" and len(first) == 100
    assert second == "  b  2    TO DO"
    assert all(line.startswith(" " * 6) and len(line) <= 100 for line in below)
    assert "".join(below).replace(" ", "") == long.replace(" ", "")


def test_no_line_about_models_is_longer_than_a_window(monkeypatch):
    monkeypatch.setattr(memory, "pick_device", lambda device="auto": "cpu")
    for free in (1e9, 6e9, 10e9, 20e9, 40e9):
        monkeypatch.setattr(memory, "available_bytes", lambda device, free=int(free): free)
        assert max(map(len, repr(check_models()).splitlines())) <= 100


def test_no_path_of_the_machine_is_shown(monkeypatch, tmp_path):
    monkeypatch.setenv(store.MODELS_VARIABLE, str(tmp_path))
    assert str(tmp_path) not in repr(check_machine())


def test_the_module_itself_needs_none_of_the_packages_it_looks_for():
    program = "import sys, helpers.environment; print({'torch', 'transformers', 'psutil'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
