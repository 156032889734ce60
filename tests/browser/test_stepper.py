"""The stepper and the sampling explorer in a real JupyterLab."""

import nbformat
import pytest

from lab import change_theme, contrast, open_notebook, run_all, running_lab, save, wait_idle

SETUP = """\
from helpers import generate_steps, generation_stepper, load_model, load_tokenizer, use_course_style
from helpers.views.sampling import sampling_explorer
use_course_style()
model, tokenizer = load_model("smollm2-135m", device="cpu"), load_tokenizer("smollm2-135m")"""
STEPPER = 'generation_stepper(model, tokenizer, "The capital of France is", max_new_tokens=8)'
HOSTILE = """\
generation_stepper(model, tokenizer, "<img src=x onerror=document.title='caught'></script> 你好", max_new_tokens=2)"""
EXPLORER = """\
step = next(generate_steps(model, tokenizer, "The capital of France is", max_new_tokens=1))
sampling_explorer(step, tokenizer)"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}  # else Lab asks which
    cells = [nbformat.v4.new_code_cell(source) for source in (SETUP, STEPPER, HOSTILE, EXPLORER)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "widgets.ipynb")
    with running_lab(folder) as lab:
        yield lab


def chips(widget):
    return widget.locator(".hx-chips .hx-chip:not(.hx-open)").all_inner_texts()


def test_a_reader_steps_branches_and_reopens(lab, page):
    open_notebook(page, lab, "widgets.ipynb")
    assert run_all(page) == []
    wait_idle(page)
    widget = page.locator(".hx").nth(0)
    widget.scroll_into_view_if_needed()
    assert chips(widget) == ["The", "·capital", "·of", "·France", "·is"]
    assert page.locator(".jp-RenderedImage:visible").count() == 0, "the still picture shows beside the live widget"

    first = widget.locator(".hx-candidates").inner_text()
    widget.locator(".hx-next").click()
    wait_idle(page)
    assert chips(widget)[-1] == "·Paris"
    assert widget.locator(".hx-candidates").inner_text() != first
    widget.locator("summary").click()
    assert "[1, 1]" in widget.locator(".hx-inputs").inner_text()
    page.screenshot(path=lab.folder / "stepper.png")

    widget.locator(".hx-back").click()
    wait_idle(page)
    assert widget.locator(".hx-candidates").inner_text() == first

    other = widget.locator(".hx-row:not(.hx-chosen)").nth(0)
    label = other.locator(".hx-chip").inner_text()
    other.focus()
    page.keyboard.press("Enter")
    wait_idle(page)
    assert chips(widget)[-1] == label
    assert "hx-by-you" in widget.locator(".hx-chips button").nth(0).get_attribute("class")

    widget.locator(".hx-typed").fill(" 你好")
    page.keyboard.press("Enter")
    wait_idle(page)
    assert "你好" in widget.locator(".hx-text").inner_text()

    slider = widget.locator("input[data-name=temperature]")
    assert slider.is_disabled(), "temperature has no part in greedy search"
    widget.locator(".hx-check input").check()
    wait_idle(page)
    before = widget.locator(".hx-candidates").inner_text()
    cells = page.locator(".jp-Cell").count()
    slider.focus()
    for key in ("ArrowDown", "ArrowLeft", "b", "a"):  # "b" and "a" add cells when Lab takes them for its own
        page.keyboard.press(key)
    wait_idle(page)
    page.wait_for_function("document.querySelector('.hx input[data-name=temperature]').value === '0.9'")
    assert widget.locator(".hx-candidates").inner_text() != before
    assert "temperature" in widget.locator(".hx-stages").inner_text()
    assert page.locator(".jp-Cell").count() == cells
    page.screenshot(path=lab.folder / "branched.png")

    explorer = page.locator(".hx").nth(2)
    explorer.scroll_into_view_if_needed()
    before = explorer.locator(".hx-candidates").inner_text()
    box = explorer.locator("input[data-name=top_p]").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 6, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2, steps=8)
    page.mouse.up()
    wait_idle(page)
    assert "removed" in explorer.locator(".hx-candidates").inner_text()
    assert explorer.locator(".hx-candidates").inner_text() != before
    page.screenshot(path=lab.folder / "explorer.png")
    assert page.title() != "caught"
    assert any("onerror" in chip or "error" in chip for chip in chips(page.locator(".hx").nth(1)))

    change_theme(page, "JupyterLab Dark")
    assert contrast(explorer, ".hx-number:not(.hx-rawtext)") > 7
    page.screenshot(path=lab.folder / "explorer-dark.png")
    widget.scroll_into_view_if_needed()
    page.screenshot(path=lab.folder / "branched-dark.png")
    change_theme(page, "JupyterLab Light")
    assert contrast(explorer, ".hx-number:not(.hx-rawtext)") > 7
    save(page)
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")


def test_a_saved_notebook_shows_the_pictures_until_its_cells_run_again(lab, page):
    lab.trust("widgets.ipynb")
    open_notebook(page, lab, "widgets.ipynb", kernel=False)
    page.wait_for_function("document.querySelectorAll('.jp-RenderedImage img').length === 3")
    assert page.locator(".jp-RenderedImage:visible").count() == 3
    assert page.locator(".hx").count() == 0
    open_notebook(page, lab, "widgets.ipynb")  # a kernel is there now, the widgets of the last one are not
    assert page.locator(".jp-RenderedImage:visible").count() == 3
    page.screenshot(path=lab.folder / "not-run-yet.png")
