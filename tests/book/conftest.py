"""A browser for the tests that open the book; they are skipped, and say why, where there is none."""

import sys

import pytest

from pages import ROOT

sys.path.append(str(ROOT / "tests" / "browser"))

from lab import running_chromium


@pytest.fixture(scope="session")
def browser():
    """Chromium, without a window."""
    with running_chromium() as browser:
        yield browser
