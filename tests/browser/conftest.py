"""A browser for the tests that need one; they are skipped, and say why, where there is none."""

from urllib.parse import urlsplit

import pytest

from lab import running_chromium

HARMLESS = ("blob", "data", "about")


@pytest.fixture(scope="session")
def browser():
    """Chromium, without a window."""
    with running_chromium() as browser:
        yield browser


def _labs_own(error):
    """Now and then JupyterLab takes its splash screen away twice. We call no removeChild; our code runs from blob:."""
    return "'removeChild' on 'Node'" in error.message and "blob:" not in (error.stack or "")


@pytest.fixture
def page(browser):
    """A fresh page. When the test ends, it must have asked no other machine and logged no error."""
    context = browser.new_context(viewport={"width": 1200, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(60_000)
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    page.on("pageerror", lambda error: errors.append(f"{error}\n{error.stack}") if not _labs_own(error) else None)
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    parts = [urlsplit(url) for url in asked]
    outside = [p.geturl() for p in parts if p.scheme not in HARMLESS and p.hostname != "127.0.0.1"]
    assert not outside, f"the page asked other machines: {outside}"
    assert not errors, f"the browser's console shows errors: {errors}"
