"""The attention explorer in a real JupyterLab: seen, pointed at, clicked, dragged, moved by keys, saved."""

import time
from math import log10
from statistics import median
from xml.etree import ElementTree

import nbformat
import pytest

from helpers.views.sharpen import COLDEST, HOTTEST
from lab import ROOT, change_theme, contrast, in_kernel, open_notebook, run_all, running_lab, save, wait_idle

SETUP = """\
from helpers import attention_explorer, load_model, load_tokenizer, trace, use_course_style
use_course_style()
model, tokenizer = load_model("smollm2-135m", device="cpu"), load_tokenizer("smollm2-135m")
def explorer(prompt, **start):
    return attention_explorer(trace(model, tokenizer, prompt, hidden_states=False, logits=False), **start)"""
HOSTILE = """\
explorer("<img src=x onerror=document.title='caught'></script> 中国的首都是北京。" * 2, layer=2, head=1)"""
IDS = 'ids = tokenizer("The capital of France is Paris, as we know. " * 60)["input_ids"]'
LONG, LONGEST = "long = explorer(ids[:256])\nlong", "explorer(ids[:512])"
PICTURE = """\
import sys
sys.path.insert(0, {tests!r})
from glm_fixtures import FOLDER, VISION, glm, glm_processor
picture = next((FOLDER / VISION / "images").iterdir())
messages = [{{"role": "user", "image": picture, "content": "What is this?"}}]
inputs = glm_processor(VISION).apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
run = trace(glm(VISION), glm_processor(VISION), inputs["input_ids"], pixel_values=inputs["pixel_values"])
attention_explorer(run, picture=picture)"""
SLIDER = """\
from helpers.views.sharpen import sharpen_heads
sharpen_heads(model, tokenizer, "Call Dr. Zubrowski, I have not seen Dr. Z", [(18, 6)])"""

CHANGE_HEADS = """(box) => [1, 2, 3, 4, 5, 6, 7, 8].map((head) => {
    const started = performance.now();
    box.selectedIndex = head;
    box.dispatchEvent(new Event("change"));
    return performance.now() - started;
})"""  # milliseconds; drawing is done when the event has been handled


# Runs cell `number` again; milliseconds from its end (the kernel is idle) until its explorer has drawn something.
FIRST_PICTURE = """async (number) => {
    const { content, sessionContext } = jupyterapp.shell.currentWidget;
    content.activeCellIndex = number;
    content.deselectAll();
    jupyterapp.commands.execute("notebook:clear-cell-output");
    const cell = content.widgets[number].node;
    const frame = () => new Promise(requestAnimationFrame);
    while (cell.querySelector(".hx-attention")) await frame();
    const ended = new Promise((done) => sessionContext.statusChanged.connect(function idle(_, status) {
        if (status !== "idle") return;
        sessionContext.statusChanged.disconnect(idle);
        done(performance.now());
    }));
    jupyterapp.commands.execute("notebook:run-cell");
    while (!cell.querySelector(".hx-attention .hx-reading")?.textContent) await frame(); // written after drawing
    await frame();
    const seen = performance.now();
    return Math.max(0, seen - await ended);
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}  # else Lab asks which
    sources = (f"{SETUP}\n{IDS}", HOSTILE, LONG, PICTURE.format(tests=str(ROOT / "tests")), SLIDER, LONGEST)
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "heads.ipynb")
    with running_lab(folder) as lab:
        yield lab


def slowdown(seconds=0.3):
    """How much longer than alone a process takes now, beside the others on this machine: 1 when nothing else runs."""
    start, used = time.perf_counter(), time.process_time()
    while time.process_time() - used < seconds:
        pass
    return (time.perf_counter() - start) / seconds


def pixels(widget, part):
    return widget.locator(f"canvas.hx-{part}").evaluate("canvas => canvas.toDataURL()")


def reading(widget):
    return widget.locator(".hx-reading").inner_text()


def at(widget, part, x, y):
    """The place at these fractions of a canvas's size, in the page."""
    box = widget.locator(f"canvas.hx-{part}").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def test_a_reader_explores(lab, page):
    open_notebook(page, lab, "heads.ipynb")
    assert run_all(page) == []
    wait_idle(page)
    widget = page.locator(".hx-attention").nth(0)
    widget.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.hx-attention .hx-reading').textContent")
    assert page.locator(".jp-RenderedImage:visible").count() == 0, "the still picture shows beside the live widget"
    chips = widget.locator(".hx-chip").all_inner_texts()
    assert "".join(chips).startswith("<img·src=x·onerror"), "a token is text, whatever it says"
    assert any("中" in chip for chip in chips) and widget.locator("img, script").count() == 0

    # Another head, by the pointer and by keys.
    before = {part: pixels(widget, part) for part in ("heads", "lines", "matrix")}
    page.mouse.move(*at(widget, "heads", 0.5, 0.5))
    assert "layer" in widget.locator(".hx-pointed").inner_text()
    page.mouse.click(*at(widget, "heads", 0.5, 0.5))
    wait_idle(page)
    assert all(pixels(widget, part) != picture for part, picture in before.items())
    layer = widget.locator("select").nth(0).input_value()
    widget.locator("canvas.hx-heads").focus()
    page.keyboard.press("ArrowRight")
    wait_idle(page)
    assert widget.locator("select").nth(0).input_value() == f"layer {int(layer.split()[1]) + 1}"
    for plane in ("mean over heads", "rollout"):
        matrix = pixels(widget, "matrix")
        widget.locator("select").nth(1).select_option(plane)
        wait_idle(page)
        assert pixels(widget, "matrix") != matrix and plane in reading(widget)

    # From a query to its keys, and back.
    widget.locator("select").nth(1).select_option("head 1")
    said, drawn = reading(widget), pixels(widget, "lines")
    page.mouse.move(*at(widget, "lines", 0.15, 0.5))
    assert reading(widget) != said and "query" in reading(widget)
    assert pixels(widget, "lines") != drawn
    page.mouse.move(*at(widget, "lines", 0.85, 0.5))
    assert "is looked at by" in reading(widget)
    page.mouse.click(*at(widget, "lines", 0.85, 0.5))
    page.mouse.move(5, 5)
    assert "is looked at by" in reading(widget), "a click keeps it"
    widget.locator(".hx-tokeys").click()
    widget.locator(".hx-chip").nth(6).click()
    assert "(6) looks at" in reading(widget)
    page.keyboard.press("ArrowRight")
    assert "(7) looks at" in reading(widget), "the chips move by arrow keys"

    # The matrix: keys move, a drag enlarges, Escape shows all again.
    widget.locator("canvas.hx-matrix").focus()
    cells = page.locator(".jp-Cell").count()
    said = reading(widget)
    for key in ("ArrowDown", "ArrowRight", "b", "a"):  # "b" and "a" add cells when Lab takes them for its own
        page.keyboard.press(key)
    assert "(8) looks at" in reading(widget) and reading(widget) != said
    page.keyboard.press("Enter")
    assert "is looked at by" in reading(widget)
    assert page.locator(".jp-Cell").count() == cells
    drawn = pixels(widget, "matrix")
    page.mouse.move(*at(widget, "matrix", 0.3, 0.3))
    page.mouse.down()
    page.mouse.move(*at(widget, "matrix", 0.6, 0.7), steps=4)
    page.mouse.up()
    page.mouse.move(5, 5)
    assert widget.locator(".hx-whole").is_enabled()
    assert pixels(widget, "matrix") != drawn
    page.screenshot(path=lab.folder / "enlarged.png")
    widget.locator("canvas.hx-matrix").focus()
    page.keyboard.press("Escape")
    assert widget.locator(".hx-whole").is_disabled()

    # Files to keep.
    with page.expect_download() as download:
        widget.locator(".hx-svg").click()
    source = download.value.path().read_text(encoding="utf-8")
    nodes = list(ElementTree.fromstring(source).iter())
    assert {node.tag.partition("}")[2] for node in nodes} <= {"svg", "g", "text", "rect", "path", "image"}
    assert any(set(node.text or "") & set("中国的首都是北京") for node in nodes), "Chinese stays text"
    with page.expect_download() as download:
        widget.locator(".hx-png").click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")
    assert page.title() != "caught"

    # Both themes.
    assert contrast(widget, ".hx-reading") > 7
    light = pixels(widget, "lines")
    change_theme(page, "JupyterLab Dark")
    page.wait_for_timeout(300)
    assert contrast(widget, ".hx-reading") > 7
    assert pixels(widget, "lines") != light, "labels and lines take the theme's colours"
    page.screenshot(path=lab.folder / "dark.png")
    change_theme(page, "JupyterLab Light")

    # A long prompt: layers come when they are asked for.
    long = page.locator(".hx-attention").nth(1)
    long.scroll_into_view_if_needed()
    assert long.locator(".hx-chip").count() > 240
    matrix = pixels(long, "matrix")
    busy = slowdown()
    times = long.locator("select").nth(1).evaluate(CHANGE_HEADS)
    assert pixels(long, "matrix") != matrix
    assert median(times) < 50 * busy, f"a change of head at {long.locator('.hx-chip').count()} tokens takes {times} ms"
    matrix = pixels(long, "matrix")
    long.locator("select").nth(0).select_option("layer 20")
    assert pixels(long, "matrix") != matrix, "something shows at once, if coarse"
    wait_idle(page)
    assert "coarse" not in reading(long)
    page.screenshot(path=lab.folder / "long.png")

    # The mean over heads is taken in the page: it is that of the heads it shows.
    weights = []
    for plane in [*(f"head {head}" for head in range(9)), "mean over heads"]:
        long.locator("select").nth(1).select_option(plane)
        weights.append(float(reading(long).rpartition(": ")[2]))
    assert weights[-1] == pytest.approx(sum(weights[:-1]) / 9, abs=0.015)

    # What the kernel refuses is said, and the wait for it is over.
    assert in_kernel(page, "layers, long.state.layers = long.state.layers, (0, 1)") is None
    long.locator("select").nth(0).select_option("layer 27")
    wait_idle(page)
    assert "no row 27" in long.locator(".hx-message").inner_text() and "coarse" in reading(long)
    page.mouse.move(*at(long, "matrix", 0.4, 0.6))
    assert long.get_attribute("aria-busy") == "false"
    assert in_kernel(page, "long.state.layers = layers") is None
    long.locator("select").nth(0).select_option("layer 13")
    wait_idle(page)
    assert long.locator(".hx-message").inner_text() == ""
    for canvas in long.locator("canvas").all():
        assert canvas.get_attribute("role") == "application" and canvas.get_attribute("aria-roledescription")

    # With a picture: attention is drawn over it, and its patches can be pointed at.
    seen = page.locator(".hx-attention").nth(2)
    seen.scroll_into_view_if_needed()
    drawn = pixels(seen, "picture")
    assert "of this query's attention is on the picture" in seen.locator(".hx-panel").inner_text()
    page.mouse.move(*at(seen, "picture", 0.3, 0.3))
    assert pixels(seen, "picture") != drawn and "▦" in reading(seen)
    page.mouse.move(5, 5)
    seen.locator("select").nth(0).select_option("layer 2")
    wait_idle(page)
    assert pixels(seen, "picture") != drawn
    page.screenshot(path=lab.folder / "picture.png")

    # A patch has no chip: Tab comes to the tokens all the same.
    page.mouse.click(*at(seen, "picture", 0.3, 0.3))
    page.mouse.move(5, 5)
    assert seen.locator(".hx-chip.hx-here").count() == 0
    assert seen.locator(".hx-chip[tabindex='0']").count() == 1

    # One head's temperature.
    panel = page.get_by_role("region", name="Temperature of attention heads")
    panel.scroll_into_view_if_needed()
    before, slider = panel.inner_text(), panel.locator("input[type=range]")
    assert "ub" in before and float(panel.locator("output").inner_text()) == 1
    slider.focus()
    for _ in range(3):
        page.keyboard.press("PageUp")
    wait_idle(page)
    assert float(panel.locator("output").inner_text()) > 2 and panel.inner_text() != before
    assert page.locator(".jp-Cell").count() == cells
    before, warm, box = panel.inner_text(), slider.evaluate("input => input.valueAsNumber"), slider.bounding_box()
    place = box["x"] + box["width"] * (warm - log10(COLDEST)) / log10(HOTTEST / COLDEST)  # where the thumb is, about
    page.mouse.move(place, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2, steps=6)
    page.mouse.up()
    wait_idle(page)
    page.wait_for_function(
        "(before) => [...document.querySelectorAll('.hx')].some((panel) => "
        "panel.ariaLabel === 'Temperature of attention heads' && panel.innerText !== before)",
        arg=before,
    )
    assert float(panel.locator("output").inner_text()) < 0.5, "dragged to the cold end"
    page.screenshot(path=lab.folder / "slider.png")

    # 512 tokens, where other tools build no page: opened, another head, a layer from far away.
    longest = page.locator(".hx-attention").nth(3)
    longest.scroll_into_view_if_needed()
    assert longest.locator(".hx-chip").count() == 512
    matrix = pixels(longest, "matrix")
    longest.locator("select").nth(1).select_option("head 4")
    other = pixels(longest, "matrix")
    assert other != matrix and "coarse" not in reading(longest)
    longest.locator("select").nth(0).select_option("layer 23")
    wait_idle(page)
    assert pixels(longest, "matrix") not in (matrix, other)
    assert "layer 23, head 4" in reading(longest) and "coarse" not in reading(longest)

    times = [page.evaluate(FIRST_PICTURE, 2) / slowdown() for _ in range(5)]
    assert median(times) < 1000, f"the first picture at 256 tokens takes {times} ms"
    save(page)
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")


def test_a_saved_notebook_shows_the_pictures(lab, page):
    lab.trust("heads.ipynb")
    page.set_viewport_size({"width": 1200, "height": 3000})  # Lab draws what is in sight
    open_notebook(page, lab, "heads.ipynb", kernel=False)
    page.wait_for_function("document.querySelectorAll('.jp-RenderedImage img').length === 5")
    assert page.locator(".jp-RenderedImage:visible").count() == 5
    assert page.locator(".hx").count() == 0
