"""`attempt`: where an old program stops, what the library says meanwhile, and nothing left behind."""

import importlib
import logging
import warnings

import pytest
import transformers
from transformers import GenerationConfig

from helpers.attempts import attempt, library_messages


def _stops(number):
    half = number / 2
    return [half][1]


def _imports():
    from transformers import NoSuchName  # noqa: F401


def _says_nothing():
    raise AttributeError


def _warns():
    warnings.warn("mind the gap", stacklevel=1)
    warnings.warn("mind the gap", stacklevel=1)
    return GenerationConfig(do_sample=False, temperature=0.2)


def test_the_programs_own_line_is_named(capsys):
    assert attempt(_stops, 4) is None
    assert capsys.readouterr().out == "stopped at line 3: return [half][1]\nIndexError: list index out of range\n"


def test_the_line_is_the_programs_also_for_an_error_deep_in_a_library(capsys):
    attempt(importlib.import_module, "helpers.no_such_room")
    assert "ModuleNotFoundError: No module named 'helpers.no_such_room'" in capsys.readouterr().out
    attempt(lambda: transformers.AutoTokenizer.from_pretrained("/nowhere/at/all"))
    assert capsys.readouterr().out.startswith("stopped at line 1: attempt(lambda: transformers.AutoTokenizer")


def test_no_folder_of_this_machine_is_printed(capsys):
    attempt(_imports)
    out = capsys.readouterr().out
    assert "(…/transformers/__init__.py)" in out
    assert "site-packages" not in out


def test_nor_is_one_with_a_space_or_a_quote_in_its_name(capsys, monkeypatch, tmp_path):
    folder = tmp_path / "it's my course" / "site-packages"
    folder.mkdir(parents=True)
    (folder / "an_old_library.py").touch()
    monkeypatch.syspath_prepend(str(folder))

    def program():
        from an_old_library import Missing  # noqa: F401

    attempt(program)
    out = capsys.readouterr().out
    assert "(…/an_old_library.py)" in out and "course" not in out


def test_an_error_without_a_message_says_so(capsys):
    attempt(_says_nothing)
    assert capsys.readouterr().out.endswith("AttributeError: (the error has no message)\n")


def test_what_the_library_says_is_printed_once_and_the_result_is_returned(capsys):
    assert isinstance(attempt(_warns), GenerationConfig)
    captured = capsys.readouterr()
    assert captured.out.count("the library says: The following generation flags are not valid") == 1
    assert captured.out.count("the library says: mind the gap") == 1
    assert captured.out.endswith("_warns ran to the end\n")
    assert captured.err == ""


def test_a_message_that_comes_once_in_a_process_comes_in_each_block():
    for _ in range(2):
        with library_messages() as said:
            transformers.utils.logging.get_logger("transformers.x").warning_once("only once")
        assert said == ["only once"]


@pytest.mark.parametrize("fails", [False, True])
def test_the_librarys_log_is_as_before(fails):
    log = logging.getLogger("transformers")
    before = (list(log.handlers), log.level, transformers.utils.logging.is_progress_bar_enabled())
    try:
        with library_messages():
            assert log.handlers != before[0]
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert (list(log.handlers), log.level, transformers.utils.logging.is_progress_bar_enabled()) == before
