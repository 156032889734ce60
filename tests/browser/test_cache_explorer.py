"""The KV cache explorer in a real JupyterLab: it grows step by step, and single cells can be read."""

import nbformat
import pytest

from lab import open_notebook, run_all, running_lab, wait_idle

CELLS = [
    "from helpers import kv_cache_explorer, load_model, load_tokenizer, use_course_style\n"
    "use_course_style()\n"
    'model, tokenizer = load_model("smollm2-135m", device="cpu"), load_tokenizer("smollm2-135m")',
    'kv_cache_explorer(model, tokenizer, "The capital of 中国 <b>is</b>", max_new_tokens=4)',
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}  # else Lab asks which
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "cache.ipynb")
    with running_lab(folder) as lab:
        yield lab


def pixels(widget, part):
    return widget.locator(f"canvas.hx-{part}").evaluate("canvas => canvas.toDataURL()")


def test_a_reader_steps_and_reads_single_cells(lab, page):
    open_notebook(page, lab, "cache.ipynb")
    assert run_all(page) == []
    wait_idle(page)
    widget = page.locator(".hx").nth(0)
    widget.scroll_into_view_if_needed()
    tokens = widget.locator(".hx-chips .hx-chip").all_inner_texts()
    assert "".join(tokens).replace("·", " ").startswith("The capital of")
    assert any("1/" in token for token in tokens), "a part of a character is labelled as one"
    assert widget.locator("b").count() == 0, "a prompt's text is never HTML"
    before, size = pixels(widget, "keys"), widget.locator(".hx-text").inner_text()

    widget.locator(".hx-next").click()
    wait_idle(page)
    assert widget.locator(".hx-chips .hx-chip").count() == len(tokens) + 1
    assert widget.locator(".hx-text").inner_text() != size
    assert pixels(widget, "keys") != before
    page.screenshot(path=lab.folder / "cache.png")

    reading = widget.locator(".hx-reading").inner_text()
    widget.locator("canvas.hx-values").focus()
    for key in ("Home", "ArrowUp", "ArrowUp", "ArrowRight"):
        page.keyboard.press(key)
    assert widget.locator(".hx-reading").inner_text() != reading
    assert "position 1" in widget.locator(".hx-reading").inner_text()

    widget.locator(".hx-back").click()
    wait_idle(page)
    assert widget.locator(".hx-text").inner_text() == size
