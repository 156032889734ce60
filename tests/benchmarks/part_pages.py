"""Attention in a browser: all layers and heads, how much is sent, built in what time, drawn in what time."""

import base64
import json
import shutil
import tempfile
import time
from pathlib import Path

import nbformat
from measuring import Table, interleaved, seconds_text

from helpers.tracing import trace
from helpers.views.attention import attention_explorer
from lab import CHROMIUM_FLAGS, chromium, open_notebook, run_all, running_lab

SIZES = (16, 64, 128, 256)
TITLE = "Attention of all 30 layers x 9 heads, drawn in a browser without internet"
OURS = "**`attention_explorer`**"
PATIENCE = 60  # seconds to wait for a page; a tool that needed longer is not asked for a longer prompt
ENOUGH = 20  # seconds after which a peer's page is not opened once more
DRAWN = {  # what stands in a page once there is something to see
    "BertViz `head_view`": "#vis svg *",
    "CircuitsVis `attention_heads`": "[id^=circuits-vis] :is(canvas, svg, img)",
}


def contenders(models, size):
    """Name -> function that builds what is sent to the page: our widget and its still picture, or a page as text."""
    run = trace(models.plain, models.tokenizer, models.ids(size), hidden_states=False, logits=False)
    patterns, tokens = run.attentions, list(run.tokens)

    def ours():
        widget = attention_explorer(run)
        return widget, widget.picture()

    def bertviz():
        from bertviz import head_view

        return head_view(list(patterns[:, None]), tokens, html_action="return").data

    def circuitsvis():
        from circuitsvis.attention import attention_heads

        return attention_heads(attention=patterns.flatten(0, 1), tokens=tokens).local_src

    return {
        OURS: ours,
        "BertViz `head_view`": bertviz,
        "CircuitsVis `attention_heads`": circuitsvis,
    }


def bytes_sent(widget, picture):
    """(what the cell sends: script, style, still picture, first view; what all layers together send when asked for)."""
    from ipywidgets.widgets.widget import _remove_buffers

    state, _, buffers = _remove_buffers(widget.get_state())
    view = len(json.dumps(state, default=str)) + sum(len(buffer) for buffer in buffers)
    layers = sum(len(widget.state.do("layer", row=row)[1]) for row in range(len(widget.state.layers)))
    return view + len(base64.b64encode(picture)), layers


def run(models, machine, rounds, threads):
    table = Table(TITLE, ["", *(f"{size} tokens" for size in SIZES)])
    built, sent, pages = {}, {}, Path(tempfile.mkdtemp())
    try:
        for size in SIZES:
            builders = contenders(models, size)
            for name, build in builders.items():
                result = build()
                if name == OURS:
                    sent["at once", size], later = bytes_sent(*result)
                    sent[name, size] = sent["at once", size] + later
                else:
                    page = "<!doctype html><meta charset=utf-8><body>" + result
                    sent[name, size] = _page(pages, name, size).write_bytes(page.encode())
                del result
            built |= {(name, size): times for name, times in interleaved(builders, rounds, slow=4).items()}
        drawn = in_browser(models, pages, rounds) if chromium() else {}
    finally:
        shutil.rmtree(pages)
    for name in builders:
        sizes = [f"{sent[name, s] / 1e6:.3g} MB" + _times(name, sent, s) for s in SIZES]
        table.rows.append([f"{name}: sent", *sizes])
    table.rows.append([f"{OURS}: of this, at once", *(f"{sent['at once', s] / 1e6:.3g} MB" for s in SIZES)])
    for name in builders:
        table.rows.append([f"{name}: built in", *(seconds_text(built[name, s]) for s in SIZES)])
    for what, of_size in drawn.items():
        table.rows.append([what, *(of_size.get(size, "") for size in SIZES)])
    table.notes.append(
        "`attention_explorer`: sent = script, style, still picture, every layer; built = what the cell sends at once, "
        "the still picture above all; the first picture counts from the end of the cell, in JupyterLab. The peers' "
        f"pages are opened from a file, and given up after {PATIENCE} s. BertViz fetches d3, jQuery and require.js "
        "from another host and draws nothing without them (`model_view` is as large and does the same); neither peer "
        "sends a layer only when asked for it." + ("" if chromium() else " No browser was there to draw them.")
    )
    return table


def _page(folder, name, size):
    return folder / f"{''.join(filter(str.isalnum, name))}-{size}.html"


def _times(name, sent, size):
    return "" if name == OURS else f" ({sent[name, size] / sent[OURS, size]:.0f} x ours)"


def in_browser(models, pages, rounds):
    """What was measured -> size -> text, in Chromium, which may ask no other machine."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        found = our_page(browser, models, rounds)
        for name, drawn in DRAWN.items():
            found[f"{name}: first picture"] = peers_page(browser, pages, name, drawn)
        browser.close()
    return found


def peers_page(browser, pages, name, drawn):
    """Size -> seconds until something is drawn, or that nothing was."""
    found, given_up = {}, ""
    for size in SIZES:
        if given_up:
            found[size] = given_up
            continue
        times = []
        while sum(times) < ENOUGH and len(times) < 3:
            times.append(seconds_until_drawn(browser, _page(pages, name, size), drawn))
        if times[-1] >= PATIENCE:
            found[size], given_up = f"nothing in {PATIENCE} s", "not tried"
        else:
            found[size] = seconds_text(times)
    return found


def seconds_until_drawn(browser, file, drawn):
    from playwright.sync_api import Error

    page = browser.new_page()
    page.route(lambda url: not url.startswith("file:"), lambda route: route.abort())
    start = time.perf_counter()
    try:
        page.goto(file.as_uri(), timeout=PATIENCE * 1000, wait_until="commit")
        page.wait_for_selector(drawn, state="visible", timeout=PATIENCE * 1000)
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return time.perf_counter() - start
    except Error:
        return PATIENCE
    finally:
        page.close()


SETUP = """
from helpers import attention_explorer, load_model, load_tokenizer, trace
model, tokenizer = load_model("smollm2-135m", device="cpu"), load_tokenizer("smollm2-135m")
runs = {{size: trace(model, tokenizer, {ids}[:size], hidden_states=False, logits=False) for size in {sizes}}}
attention_explorer(runs[16])"""

# Runs the notebook's cell `number`; milliseconds from its end (the kernel is idle again) to the first picture.
FIRST_PICTURE = """async (number) => {
    const { content, sessionContext } = jupyterapp.shell.currentWidget;
    content.activeCellIndex = number;
    content.deselectAll();
    jupyterapp.commands.execute("notebook:clear-cell-output");
    const cell = content.widgets[number].node;
    while (cell.querySelector(".hx-attention")) await new Promise(requestAnimationFrame);
    const finished = new Promise((done) => sessionContext.statusChanged.connect(function idle(_, status) {
        if (status !== "idle") return;
        sessionContext.statusChanged.disconnect(idle);
        done(performance.now());
    }));
    jupyterapp.commands.execute("notebook:run-cell");
    const small = new OffscreenCanvas(24, 24).getContext("2d", { willReadFrequently: true });
    const drawn = () => ["heads", "matrix"].every((part) => {
        const canvas = cell.querySelector(`.hx-attention canvas.hx-${part}`);
        if (!canvas?.width || !canvas.getBoundingClientRect().height) return false;
        small.clearRect(0, 0, 24, 24);
        small.drawImage(canvas, 0, 0, 24, 24);
        return small.getImageData(0, 0, 24, 24).data.some((value) => value);
    });
    do await new Promise(requestAnimationFrame); while (!drawn());
    const seen = performance.now();
    return Math.max(0, seen - await finished);
}"""

# Milliseconds from a choice in one of the explorer's lists (0 layers, 1 heads) to another picture on the screen.
CHANGE = """async ([number, list]) => {
    const widget = jupyterapp.shell.currentWidget.content.widgets[number].node.querySelector(".hx-attention");
    const matrix = widget.querySelector("canvas.hx-matrix"), select = widget.querySelectorAll("select")[list];
    const small = new OffscreenCanvas(48, 48).getContext("2d", { willReadFrequently: true });
    const look = () => {
        small.clearRect(0, 0, 48, 48);
        small.drawImage(matrix, 0, 0, 48, 48);
        return small.getImageData(0, 0, 48, 48).data.join();
    };
    const before = look(), start = performance.now();
    select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
    select.dispatchEvent(new Event("change", { bubbles: true }));
    do await new Promise(requestAnimationFrame); while (look() === before);
    return performance.now() - start;
}"""


def our_page(browser, models, rounds):
    """The explorer in JupyterLab: first picture, another head, a layer that has to be sent first."""
    longest = models.ids(SIZES[-1])[0].tolist()
    sources = [SETUP.format(ids=longest, sizes=SIZES), *(f"attention_explorer(runs[{size}])" for size in SIZES)]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder = Path(tempfile.mkdtemp())
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "pages.ipynb")
    found = {f"{OURS}: {what}": {} for what in ("first picture", "another head", "another layer")}
    try:
        with running_lab(folder) as lab:
            page = browser.new_context(viewport={"width": 1200, "height": 1000}).new_page()
            page.set_default_timeout(60_000)
            open_notebook(page, lab, "pages.ipynb")
            errors = run_all(page)
            if errors:
                raise RuntimeError(f"The notebook of the benchmark fails: {errors[0]}")
            for number, size in enumerate(SIZES, start=1):
                times = [
                    [page.evaluate(FIRST_PICTURE, number) for _ in range(rounds)],
                    [page.evaluate(CHANGE, [number, 1]) for _ in range(rounds)],
                    [page.evaluate(CHANGE, [number, 0]) for _ in range(rounds)],
                ]
                for what, taken in zip(found, times, strict=True):
                    found[what][size] = seconds_text([milliseconds / 1000 for milliseconds in taken])
            page.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found
