"""Attention in a browser: all layers and heads, how much is sent, built in what time, drawn in what time."""

import base64
import json
import math
import shutil
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nbformat
from measuring import Table, interleaved, seconds_text, share_text

from helpers.inside.tracing import trace
from helpers.views.attention import attention_explorer
from lab import CHROMIUM_FLAGS, chromium, open_notebook, run_all, running_lab, wait_idle

SIZES = (16, 64, 128, 256)
TITLE = "Attention of all 30 layers x 9 heads, drawn in a browser without internet"
OURS = "**`attention_explorer`**"
BERTVIZ, CIRCUITSVIS = "BertViz `head_view`", "CircuitsVis `attention_heads`"
ONE_LAYER = f"{CIRCUITSVIS}, one layer only"
PATTERNS = "CircuitsVis `attention_patterns`"
HEAT_MAP = "[id^=circuits-vis] canvas"
PEERS = {BERTVIZ: "#vis svg *", CIRCUITSVIS: HEAT_MAP, ONE_LAYER: HEAT_MAP, PATTERNS: HEAT_MAP}  # what they draw with
PATIENCE = 90  # seconds to wait for a page; a tool that needed longer is not asked for a longer prompt
MOST_PATTERNS = 128  # tokens; with more it needs minutes


def contenders(models, size):
    """Name -> function that builds what is sent to the page: our widget and its still picture, or a page as text."""
    run, tokens = traced(models, size)

    def ours():
        widget = attention_explorer(run)
        return widget, widget.picture()

    def bertviz():
        from bertviz import head_view

        return head_view(list(run.attentions[:, None]), tokens, html_action="return").data

    def circuitsvis():
        from circuitsvis.attention import attention_heads

        return attention_heads(attention=run.attentions.flatten(0, 1), tokens=tokens).local_src

    return {OURS: ours, BERTVIZ: bertviz, CIRCUITSVIS: circuitsvis}


def further_pages(models, size):
    """CircuitsVis in two lighter ways, for the browser alone: name -> page as text."""
    from circuitsvis.attention import attention_heads, attention_patterns

    run, tokens = traced(models, size)
    one = attention_heads(attention=run.attentions[15], tokens=tokens).local_src
    found = {ONE_LAYER: one}
    if size <= MOST_PATTERNS:
        every = attention_patterns(attention=run.attentions.flatten(0, 1), tokens=tokens).local_src
        found[PATTERNS] = every
    return found


def traced(models, size):
    run = trace(models.plain, models.tokenizer, models.ids(size), hidden_states=False, logits=False)
    return run, list(run.tokens)


def bytes_sent(widget, picture):
    """(what the cell sends: script, style, still picture, first view; what all layers together send when asked for)."""
    from ipywidgets.widgets.widget import _remove_buffers

    state, _, buffers = _remove_buffers(widget.get_state())
    view = len(json.dumps(state, default=str)) + sum(len(buffer) for buffer in buffers)
    # Of a short prompt the first view holds every weight, and no layer travels later.
    rows = range(len(widget.state.layers)) if widget.view["first"] else ()
    return view + len(base64.b64encode(picture)), sum(len(widget.state.do("layer", row=row)[1]) for row in rows)


def run(models, machine, rounds, threads):
    table = Table(TITLE, ["", *(f"{size} tokens" for size in SIZES)])
    built, sent, seen, pages = {}, {}, {}, Path(tempfile.mkdtemp())
    try:
        for size in SIZES:
            builders = contenders(models, size)
            for name, build in builders.items():
                result = build()
                if name == OURS:
                    sent["at once", size], later = bytes_sent(*result)
                    sent[name, size] = sent["at once", size] + later
                else:
                    sent[name, size] = write(pages, name, size, result)
                del result
            for name, page in further_pages(models, size).items():
                write(pages, name, size, page)
            built[size] = interleaved(builders, rounds)
        if chromium():
            seen = in_browser(models, pages, rounds)
    finally:
        shutil.rmtree(pages)
    for name in builders:
        sizes = [f"{sent[name, size] / 1e6:.3g} MB" + times_ours(name, sent, size) for size in SIZES]
        table.rows.append([f"{name}: sent", *sizes])
    table.rows.append([f"{OURS}: of this, at once", *(f"{sent['at once', s] / 1e6:.3g} MB" for s in SIZES)])
    table.rows += [[f"{name}: built in", *(seconds_text(built[s][name]) for s in SIZES)] for name in builders]
    limits = {size: 4 * 30 * 9 * size**2 / machine["reading"] for size in SIZES}
    shown = [seconds_text([limit]) for limit in limits.values()]
    table.rows.append(["limit of building: the float32 weights read once from memory", *shown])
    table.rows += drawn_rows(seen)
    table.notes.append(
        'For `attention_explorer`, "sent" counts the script, the style, the still picture and every layer, though a '
        "layer is only sent when somebody looks at it; for a short prompt, most of it is the script and the still "
        'picture. "Built" is the time to make what the cell sends at once, above all the still picture. Its pictures '
        'are timed in JupyterLab, from the end of the cell and from its start (building included); "another layer" is '
        "seven layers further, and has to be sent first (up to 24 tokens, all layers are there from the start). The "
        "other tools' pages are opened from a file, so their times do not include building; a page counts as drawn "
        f"when its first heat map has a pixel. A page is given up after {PATIENCE} s, and its tool is not tried on a "
        "longer prompt. BertViz fetches d3, jQuery and require.js from another host and stops without them; with them "
        "it does draw. CircuitsVis is made for the heads of a few layers, hence the row with one layer; its "
        "`attention_patterns`, which its authors call deprecated but which draws sooner, is not tried above "
        f"{MOST_PATTERNS} tokens."
    )
    near = share_text(limits[SIZES[-1]], built[SIZES[-1]][OURS])
    table.notes.append(
        f"As for the limits, reading the weights once is {near} of our building time at {SIZES[-1]} tokens; a screen "
        "shows 60 pictures per second, so what a page has drawn becomes visible up to 17 ms later."
    )
    if not seen:
        table.notes.append("There was no browser to draw the pages.")
    return table


def write(folder, name, size, page):
    """A peer's page as a file. Returns its bytes."""
    return page_file(folder, name, size).write_bytes(f"<!doctype html><meta charset=utf-8><body>{page}".encode())


def page_file(folder, name, size):
    return folder / f"{''.join(filter(str.isalnum, name))}-{size}.html"


def times_ours(name, sent, size):
    return "" if name == OURS else f" ({sent[name, size] / sent[OURS, size]:.0f} x ours)"


def drawn_rows(seen):
    """Rows of what was seen: size -> name -> seconds, infinite where nothing came, NaN where nothing can come."""
    names = dict.fromkeys(name for of_size in seen.values() for name in of_size)
    return [[name, *(drawn_text(of_size.get(name)) for of_size in seen.values())] for name in names]


def drawn_text(seconds):
    if seconds is None:
        return "not tried"
    if math.isnan(seconds[0]):
        return "nothing"
    return f"not in {PATIENCE} s" if math.inf in seconds else seconds_text(seconds)


def in_browser(models, pages, rounds):
    """Size -> what was measured -> seconds of each round, in Chromium, which may ask no other machine."""
    from playwright.sync_api import sync_playwright

    seen, given_up = {}, set()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        with our_page(browser, models) as page:
            for number, size in enumerate(SIZES, start=1):
                timers = {f"{OURS}: {what}": partial(timer, page, number) for what, timer in OUR_TIMERS.items()}
                for name, selector in PEERS.items():
                    file = page_file(pages, name, size)
                    if name not in given_up and file.exists():
                        timers[f"{name}: first picture"] = partial(seconds_until_drawn, browser, file, selector)
                seen[size] = interleaved(timers, rounds, clock=lambda timer: timer())
                given_up |= {name for name in PEERS if math.inf in seen[size].get(f"{name}: first picture", ())}
        browser.close()
    return seen


# The first heat map, or whatever a tool draws with, once it has a pixel; "failed" when a script has stopped for good.
DRAWN = """(selector) => {
    const node = document.querySelector(selector);
    if (!node) return window.scriptFailed && document.readyState === "complete" ? "failed" : false;
    if (node.tagName !== "CANVAS") return "drawn";
    if (!node.width || !node.height) return false;
    const small = new OffscreenCanvas(8, 8).getContext("2d", { willReadFrequently: true });
    small.drawImage(node, 0, 0, 8, 8);
    return small.getImageData(0, 0, 8, 8).data.some((value) => value) && "drawn";
}"""


def seconds_until_drawn(browser, file, selector):
    """Seconds from opening a page to the first thing drawn; infinite when it takes too long, NaN when it never will."""
    from playwright.sync_api import Error, TimeoutError

    page = browser.new_page()
    page.add_init_script("addEventListener('error', () => { window.scriptFailed = true; })")
    page.route(lambda url: not url.startswith("file:"), lambda route: route.abort())
    start = time.perf_counter()
    try:
        page.goto(file.as_uri(), timeout=PATIENCE * 1000, wait_until="commit")
        drawn = page.wait_for_function(DRAWN, arg=selector, timeout=PATIENCE * 1000).json_value() == "drawn"
        return time.perf_counter() - start if drawn else math.nan
    except TimeoutError:
        return math.inf
    except Error:  # the page has crashed
        return math.nan
    finally:
        page.close()


SETUP = """
from helpers import attention_explorer, load_model, load_tokenizer, trace
model, tokenizer = load_model("smollm2-135m", device="cpu"), load_tokenizer("smollm2-135m")
runs = {{size: trace(model, tokenizer, {ids}[:size], hidden_states=False, logits=False) for size in {sizes}}}
attention_explorer(runs[16])"""

# Runs the notebook's cell `number`; milliseconds to its first picture, from its start and from its end (JupyterLab
# has seen the kernel's reply).
FIRST_PICTURE = """async (number) => {
    const { content } = jupyterapp.shell.currentWidget;
    content.activeCellIndex = number;
    content.deselectAll();
    jupyterapp.commands.execute("notebook:clear-cell-output");
    const cell = content.widgets[number].node;
    while (cell.querySelector(".hx-attention")) await new Promise(requestAnimationFrame);
    const start = performance.now();
    const finished = jupyterapp.commands.execute("notebook:run-cell").then(() => performance.now());
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
    return [seen - start, Math.max(0, seen - await finished)];
}"""

# Milliseconds from a choice in one of the explorer's lists (0 layers, 1 heads), some `steps` further, to another
# picture on the screen, and not a coarse one.
CHANGE = """async ([number, list, steps]) => {
    const widget = jupyterapp.shell.currentWidget.content.widgets[number].node.querySelector(".hx-attention");
    const matrix = widget.querySelector("canvas.hx-matrix"), select = widget.querySelectorAll("select")[list];
    const small = new OffscreenCanvas(48, 48).getContext("2d", { willReadFrequently: true });
    const look = () => {
        small.clearRect(0, 0, 48, 48);
        small.drawImage(matrix, 0, 0, 48, 48);
        return small.getImageData(0, 0, 48, 48).data.join();
    };
    const before = look(), start = performance.now();
    select.selectedIndex = (select.selectedIndex + steps) % select.options.length;
    select.dispatchEvent(new Event("change", { bubbles: true }));
    const waiting = () => widget.getAttribute("aria-busy") === "true" || look() === before;
    do await new Promise(requestAnimationFrame); while (waiting());
    return performance.now() - start;
}"""


def first_picture(page, number, since):
    """Seconds from the start (`since` 0) or the end (1) of a cell to the explorer's first picture."""
    page.bring_to_front()
    return page.evaluate(FIRST_PICTURE, number)[since] / 1000


def change(page, number, box, steps):
    """Seconds from another choice to its picture, when the kernel has nothing else to do."""
    page.bring_to_front()
    wait_idle(page)
    return page.evaluate(CHANGE, [number, box, steps]) / 1000


OUR_TIMERS = {
    "first picture after the end of the cell": partial(first_picture, since=1),
    "first picture after the start of the cell": partial(first_picture, since=0),
    "another head": partial(change, box=1, steps=1),
    "another layer": partial(change, box=0, steps=7),  # its neighbours are there already
}


@contextmanager
def our_page(browser, models):
    """JupyterLab with the explorer in a cell for each size, all run once."""
    longest = models.ids(SIZES[-1])[0].tolist()
    sources = [SETUP.format(ids=longest, sizes=SIZES), *(f"attention_explorer(runs[{size}])" for size in SIZES)]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder = Path(tempfile.mkdtemp())
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "pages.ipynb")
    try:
        with running_lab(folder) as lab:
            page = browser.new_context(viewport={"width": 1200, "height": 1000}).new_page()
            page.set_default_timeout(60_000)
            open_notebook(page, lab, "pages.ipynb")
            errors = run_all(page)
            if errors:
                raise RuntimeError(f"The notebook of the benchmark fails: {errors[0]}")
            yield page
            page.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
