"""The hidden state explorer in a real JupyterLab: looked into, typed into, changed, exported, in both themes."""

from xml.etree import ElementTree

import nbformat
import pytest

from lab import change_theme, contrast, in_kernel, open_notebook, run_all, running_lab, save, wait_idle

HOSTILE = "<img src=x onerror=document.title='caught'></script> 你好"
CELLS = [
    "from helpers import load_model, load_tokenizer, trace, use_course_style\n"
    "from helpers.views.hidden_states import hidden_state_explorer\n"
    "use_course_style()\n"
    'model, tokenizer = load_model("smollm2-135m", device="cpu"), load_tokenizer("smollm2-135m")\n'
    'before = trace(model, tokenizer, "The capital of Germany is").logits\n'
    'panel = hidden_state_explorer(model, tokenizer, "The capital of Germany is")\n'
    "panel",
]
LONGER = "I ask you: the capital of Germany is"
CHECK = """\
assert (trace(model, tokenizer, "The capital of Germany is").logits == before).all()
assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
panel.do("skip", layer=5)"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}  # else Lab asks which
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "states.ipynb")
    with running_lab(folder) as lab:
        yield lab


def tokens(widget, grid):
    """The tokens under a grid, as far as they are written out."""
    texts = widget.locator("svg.hx-map").nth(grid).locator("> text[transform]")
    return texts.all_text_contents()


def pixels(page, part):
    part.scroll_into_view_if_needed()
    return part.screenshot()


def test_a_reader_looks_changes_and_compares(lab, page):
    open_notebook(page, lab, "states.ipynb")
    assert run_all(page) == []
    wait_idle(page)
    widget = page.locator(".hx-states")
    widget.scroll_into_view_if_needed()
    shot = lambda name: page.screenshot(path=lab.folder / f"{name}.png", full_page=False)  # noqa: E731
    assert page.locator(".jp-RenderedImage:visible").count() == 0, "the still picture shows beside the live panel"
    grid, reading = widget.locator("svg.hx-map").nth(0), widget.locator(".hx-reading")
    assert "·Berlin" in widget.locator(".hx-top").inner_text()
    assert "·Berlin" in widget.locator(".hx-candidates").inner_text()
    shot("1-opened")

    # Every colouring is another picture.
    seen = {pixels(page, grid)}
    for coloring in ("probability", "entropy", "norm", "change", "cosine"):
        widget.locator(".hx-coloring").select_option(coloring)
        seen.add(pixels(page, grid))
    assert len(seen) == 6
    shot("2-cosine")

    # A cell is looked into, with the pointer and with the keyboard.
    cells = page.locator(".jp-Cell").count()
    first = widget.locator(".hx-columns h4").nth(0)
    grid.scroll_into_view_if_needed()
    box = grid.bounding_box()
    page.mouse.move(box["x"] + 150, box["y"] + 200)
    assert "layer" in reading.inner_text()
    page.mouse.down()
    page.mouse.up()
    wait_idle(page)
    assert "layer 19" in first.inner_text(), first.inner_text()
    grid.focus()
    for key in ("End", "PageUp", "ArrowDown", "ArrowDown", "b", "a"):  # Lab's own keys for new cells change nothing
        page.keyboard.press(key)
    assert "layer 28, position 4" in reading.inner_text()
    page.keyboard.press("Enter")
    wait_idle(page)
    assert "layer 28, position 4" in first.inner_text()
    assert page.locator(".jp-Cell").count() == cells

    # Another token is asked about, then a head switched off where it wrote.
    wrote = pixels(page, widget.locator("svg.hx-wrote"))
    widget.locator(".hx-top .hx-line").nth(3).click()
    wait_idle(page)
    assert pixels(page, widget.locator("svg.hx-wrote")) != wrote
    old = widget.locator(".hx-candidates").inner_text()
    widget.locator("svg.hx-wrote").focus()
    for key in ("ArrowUp", "ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    wait_idle(page)
    assert "layer 1 head 2" in widget.locator(".hx-changes").inner_text()
    assert widget.locator(".hx-candidates").inner_text() != old
    assert widget.locator("svg.hx-map").count() == 3, "before, after and their difference"
    assert "ablate_heads(model, [(1, 2)])" in widget.locator(".hx-code").inner_text()
    widget.locator(".hx-remove").click()
    wait_idle(page)
    assert widget.locator(".hx-candidates").inner_text() == old
    assert widget.locator("svg.hx-map").count() == 1

    # A second prompt, and its state patched in.
    widget.locator(".hx-coloring").select_option("token")
    widget.locator(".hx-second").fill("The capital of France is")
    page.keyboard.press("Enter")
    wait_idle(page)
    assert widget.locator("svg.hx-map").count() == 3
    assert "·Paris" in widget.locator("svg.hx-map").nth(1).text_content()
    shot("3-two-prompts")
    grid.focus()
    for key in ("PageDown", *["ArrowUp"] * 8, "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    wait_idle(page)
    widget.locator(".hx-patch").click()
    wait_idle(page)
    paris = widget.locator(".hx-candidates .hx-line").filter(has_text="·Paris")
    before, after = (float(text.inner_text().rstrip("%")) for text in paris.locator(".hx-number").all())
    assert after > 50 > before, "what was patched in is what it says"
    best = widget.locator("svg.hx-map").nth(1)
    assert "·Paris" in best.text_content()
    shot("4-patched")

    # What stands beside it can be chosen, and a layer or a part of it skipped.
    for what in ("other", "changed", ""):
        widget.locator(".hx-beside").select_option(what)
        wait_idle(page)
        assert widget.locator("svg.hx-map").count() == (3 if what else 1)
        name = {"other": "second prompt", "changed": "with the changes"}.get(what, "prompt")
        assert name in widget.locator("svg.hx-map").nth(1 if what else 0).text_content()
    widget.locator(".hx-beside").select_option("other")
    wait_idle(page)
    shown = widget.locator(".hx-candidates").inner_text()
    for part, words in (("layer", "skipped: layer"), ("attention", "'s attention"), ("mlp", "'s MLP")):
        widget.locator(f".hx-skip-{part}").click()
        wait_idle(page)
        assert words in widget.locator(".hx-changes").inner_text()
        assert widget.locator(".hx-candidates").inner_text() != shown
        widget.locator(".hx-changed", has_text=words).locator(".hx-remove").click()
        wait_idle(page)
        assert widget.locator(".hx-candidates").inner_text() == shown

    # Prompts of unequal lengths: a patch goes opposite the cell, counted from the end.
    for prompt, second in (("The capital of France is", LONGER), (LONGER, "The capital of France is")):
        for box, text in ((".hx-prompt", prompt), (".hx-second", second)):
            widget.locator(box).fill(text)
            page.keyboard.press("Enter")
            wait_idle(page)
        widget.locator("svg.hx-map").nth(1).focus()
        for key in ("End", "Enter"):
            page.keyboard.press(key)
        wait_idle(page)
        end = len(tokens(widget, 0)) - 1
        assert f"·is ({end})" in widget.locator(".hx-patch").inner_text()
        widget.locator(".hx-patch").click()
        wait_idle(page)
        assert widget.locator(".hx-message").inner_text() == ""
        assert f"position {end}, from ·is" in widget.locator(".hx-changes").inner_text()
        assert widget.locator(".hx-changed").count() == 1

    # Steering, with a slider that is dragged.
    widget.locator(".hx-steering input").nth(0).fill("I love it, 真好")
    widget.locator(".hx-steering input").nth(1).fill("I hate it")
    page.keyboard.press("Enter")
    wait_idle(page)
    slider = widget.locator(".hx-changes input[type=range]")
    slider.scroll_into_view_if_needed()
    old, box = widget.locator(".hx-candidates").inner_text(), slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.56, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2, steps=6)
    page.mouse.up()
    wait_idle(page)
    page.wait_for_function(
        "(old) => document.querySelector('.hx-candidates').innerText !== old"
        " && document.querySelector('.hx-code').innerText.includes("
        "`scale=${document.querySelector('.hx-changes input').value}`)",
        arg=old,
    )
    widget.locator(".hx-writeon").click()
    wait_idle(page)
    assert "changed:" in widget.locator(".hx-texts").inner_text()
    shot("5-steered")

    # Pictures to keep.
    for kind in ("svg", "png"):
        with page.expect_download() as saved:
            widget.locator(f".hx-bar .hx-{kind}").click()
        saved.value.save_as(lab.folder / f"saved.{kind}")
    drawn = ElementTree.parse(lab.folder / "saved.svg").getroot()
    assert "·Germany" in "".join(drawn.itertext()) and "var(--" not in (lab.folder / "saved.svg").read_text()
    assert (lab.folder / "saved.png").read_bytes().startswith(b"\x89PNG")

    # Both themes are readable.
    change_theme(page, "JupyterLab Dark")
    for selector in (".hx-number", ".hx-reading", ".hx-columns h4"):
        assert contrast(widget, selector) > 4.5
    shot("6-dark")
    change_theme(page, "JupyterLab Light")
    for selector in (".hx-number", ".hx-reading", ".hx-columns h4"):
        assert contrast(widget, selector) > 4.5

    # What cannot work is a sentence in the panel, and nothing is lost.
    shown = widget.locator(".hx-candidates").inner_text()
    for text, says in (("word " * 9000, "the model's context is 8192"), ("", "The prompt is empty")):
        widget.locator(".hx-prompt").fill(text)
        widget.locator(".hx-prompt-run").click()
        wait_idle(page)
        assert says in widget.locator(".hx-message").inner_text()
        assert widget.locator(".hx-candidates").inner_text() == shown
        assert widget.locator(".hx-changed").count() == 2

    # A prompt of several lines stays one, Enter runs it and Shift+Enter begins a line.
    assert in_kernel(page, 'panel.do("type", text="one\\ntwo")') is None
    page.wait_for_function("document.querySelector('.hx-prompt').value === 'one\\ntwo'")
    widget.locator(".hx-prompt-run").click()
    wait_idle(page)
    assert tokens(widget, 0) == ["one", "⏎", "two"]
    widget.locator(".hx-prompt").focus()
    for key in ("Control+End", "Shift+Enter", "x", "Enter"):
        page.keyboard.press(key)
    wait_idle(page)
    assert tokens(widget, 0) == ["one", "⏎", "two", "⏎", "x"]
    assert page.locator(".jp-Cell").count() == cells

    # Control characters can be saved, too: in an SVG they would be unreadable.
    assert in_kernel(page, r'panel.do("type", text="a\x1b[0mb\x0c")') is None
    page.wait_for_function("document.querySelector('.hx-prompt').value.includes('[0mb')")
    wait_idle(page)
    for kind in ("svg", "png"):
        with page.expect_download() as saved:
            widget.locator(f".hx-bar .hx-{kind}").click()
        saved.value.save_as(lab.folder / f"control.{kind}")
    assert "<U+001B>" in "".join(ElementTree.parse(lab.folder / "control.svg").getroot().itertext())
    assert (lab.folder / "control.png").read_bytes().startswith(b"\x89PNG")

    # Of a long prompt the end is shown, and the rest can be.
    widget.locator(".hx-prompt").fill("one two three " * 60)
    page.keyboard.press("Enter")
    wait_idle(page)
    part = widget.get_by_role("group", name="Part of the prompt")
    assert part.is_visible() and widget.locator(".hx-later").is_disabled()
    said, drawn = part.inner_text(), pixels(page, grid)
    for _ in range(2):
        widget.locator(".hx-earlier").click()
        wait_idle(page)
    assert "positions 0 to 95 of 18" in part.inner_text() and part.inner_text() != said
    assert widget.locator(".hx-earlier").is_disabled() and pixels(page, grid) != drawn
    grid.focus()
    page.keyboard.press("Home")
    assert "position 0 one" in reading.inner_text()
    shot("8-earlier")
    change_theme(page, "JupyterLab Dark")
    shot("9-earlier-dark")
    change_theme(page, "JupyterLab Light")
    widget.locator(".hx-later").click()
    wait_idle(page)
    assert widget.locator(".hx-earlier").is_enabled()

    # Text is data. The model was touched during the panel's own runs only, and the panel can be used from code.
    widget.locator(".hx-prompt").fill(HOSTILE)
    page.keyboard.press("Enter")
    wait_idle(page)
    assert widget.locator(".hx-message").inner_text() == ""
    assert widget.locator("img, script").count() == 0
    assert page.title() != "caught"
    assert "onerror" in widget.locator("svg.hx-map").nth(0).text_content() or "error" in (
        widget.locator("svg.hx-map").nth(0).text_content()
    )
    shot("7-hostile")
    assert in_kernel(page, CHECK) is None
    page.wait_for_function("document.querySelector('.hx-changes').innerText.includes('skipped: layer 5')")
    save(page)
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")


def test_a_saved_notebook_shows_the_picture(lab, page):
    lab.trust("states.ipynb")
    open_notebook(page, lab, "states.ipynb", kernel=False)
    page.wait_for_function("document.querySelectorAll('.jp-RenderedImage img').length === 1")
    assert page.locator(".jp-RenderedImage:visible").count() == 1
    assert page.locator(".hx").count() == 0
