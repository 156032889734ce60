"""A student in a real browser: signs up, runs a cell, sees no pop-up, and the page asks no other machine."""

import importlib.util
import re
from urllib.parse import urlsplit

import pytest
from opened import ROOT
from student import PASSWORD

SPEC = importlib.util.spec_from_file_location("lab_driver", ROOT / "tests" / "browser" / "lab.py")


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    lab = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(lab)
    if lab.chromium() is None:
        pytest.skip("no Chromium: install it (apt-get install chromium) or set PLAYWRIGHT_CHROMIUM to its path")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=lab.chromium(), args=lab.CHROMIUM_FLAGS)
        yield browser
        browser.close()


def sign_up(browser, address, name, code):
    """A page on which the student has just come in, with notebook 00 open; the hosts that were asked."""
    page = browser.new_context(viewport={"width": 1300, "height": 900}).new_page()
    page.set_default_timeout(180_000)
    asked = set()
    page.on("request", lambda request: asked.add(urlsplit(request.url).hostname))
    page.goto(address)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_label("Code").fill(code)
    page.get_by_role("button", name="Come in").click()
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    return page, asked


def test_a_student_signs_up_and_runs_a_cell(room, browser):
    page, asked = sign_up(browser, room.address, "ada", room.settings["ROOM_CODE"])
    assert "00_start_here" in page.url
    assert page.evaluate("getComputedStyle(document.body).fontFamily")
    page.get_by_text("tokenizer = load_tokenizer").first.wait_for()
    ran = page.locator(".jp-CodeCell").first.locator(".jp-InputPrompt").filter(has_text=re.compile(r"\[\d+\]"))
    for _ in range(12):  # what is asked before the kernel is connected is not run
        page.locator(".jp-CodeCell").first.locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(15_000)
        if ran.count():
            break
    assert ran.count() == 1
    assert page.get_by_text("Would you like to get notified about official Jupyter news").count() == 0
    assert page.locator(".jp-CodeCell").first.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert asked <= {"127.0.0.1", None, ""}, asked


def test_a_wrong_code_is_told_on_the_page(room, browser):
    page = browser.new_page()
    page.goto(room.address)
    page.get_by_label("Name").fill("eve")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_label("Code").fill("wrong-wrong-wrong")
    page.get_by_role("button", name="Come in").click()
    assert "not the code of this room" in page.get_by_role("alert").inner_text()
