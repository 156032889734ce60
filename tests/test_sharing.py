"""Two processes share the tests so that neither waits long for the other at the end: long ones are begun first."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("shared_conftest", Path(__file__).parent / "conftest.py")
CONFTEST = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CONFTEST)


class Item(str):
    """A collected test, by its name."""

    def get_closest_marker(self, name):
        return self.startswith("long") or None


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        ("1", ["long 1", "long 2", "long 3", "a", "b", "c", "d", "e"]),
        ("2", ["long 1", "long 3", "a", "b", "long 2", "c", "d", "e"]),
        ("4", ["long 1", "a", "long 2", "b", "long 3", "c", "d", "e"]),
    ],
)
def test_each_share_begins_with_its_long_tests(monkeypatch, processes, expected):
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", processes)
    items = [Item(name) for name in ("a", "b", "long 1", "c", "long 2", "d", "long 3", "e")]
    CONFTEST.pytest_collection_modifyitems(items)
    assert items == expected
