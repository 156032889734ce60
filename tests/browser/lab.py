"""JupyterLab as a reader meets it: a server on this machine and a real browser in front of it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "browser-tests"
CHROMIUM_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


def chromium():
    """Path of a Chromium to drive, from PLAYWRIGHT_CHROMIUM or the PATH; None when there is none.

    An empty PLAYWRIGHT_CHROMIUM hides the one on the PATH: the tests then run as on a machine without a browser.
    """
    if "PLAYWRIGHT_CHROMIUM" in os.environ:
        return os.environ["PLAYWRIGHT_CHROMIUM"] or None
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def running_chromium():
    """Chromium, without a window, driven by playwright; the test is skipped, and says why, where there is none."""
    import pytest

    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium()
    if path is None:
        pytest.skip("no Chromium: install it (apt-get install chromium) or set PLAYWRIGHT_CHROMIUM to its path")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: its address, the folder it serves, and its environment."""

    url: str
    folder: Path
    environment: dict

    def trust(self, notebook):
        """Sign a notebook, so that Lab shows its stored outputs as it does for one the reader ran."""
        command = [sys.executable, "-m", "jupyter", "trust", str(self.folder / notebook)]
        subprocess.run(command, check=True, env=self.environment, capture_output=True)


@contextmanager
def running_lab(folder):
    """JupyterLab serving `folder`, with settings of its own, in which `helpers` imports; stopped at the end."""
    home = folder / ".jupyter-of-test"
    settings = home / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))  # else it asks for news
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = (
        f"--no-browser --ip=127.0.0.1 --port={port} --port-retries=0 --allow-root "
        f"--IdentityProvider.token={TOKEN} --LabApp.expose_app_in_browser=True"
    )
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyter", "lab", *options.split()],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_until_up(url, server, folder / "lab.log")
            yield Lab(url, folder, environment)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _wait_until_up(url, server, log, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/api?token={TOKEN}", timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not come up:\n{log.read_text()}")


def open_notebook(page, lab, notebook, *, kernel=True):
    """Open a notebook of the served folder, alone in its window; with `kernel`, until one is connected."""
    page.goto(f"{lab.url}/lab/tree/{notebook}?token={TOKEN}&reset")
    page.wait_for_function("window.jupyterapp && jupyterapp.shell.currentWidget?.context", timeout=60_000)
    page.evaluate("jupyterapp.shell.currentWidget.context.ready")
    page.evaluate("jupyterapp.shell.collapseLeft()")
    if kernel:  # "idle" shows before the kernel is connected, so ask the kernel itself
        page.evaluate("""async () => {
            const { sessionContext } = jupyterapp.shell.currentWidget;
            await sessionContext.ready;
            await sessionContext.session.kernel.info;
        }""")


def run_all(page):
    """Run every cell, and wait until the last one is done. Returns the errors raised, as text."""
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    return page.evaluate("""() => {
        const { sharedModel } = jupyterapp.shell.currentWidget.content.model;
        return sharedModel.cells.flatMap((cell) => cell.outputs ?? [])
            .filter((output) => output.output_type === "error")
            .map((output) => `${output.ename}: ${output.evalue}`);
    }""")


def in_kernel(page, code):
    """Run code in the notebook's kernel. Returns its error, None when there is none."""
    return page.evaluate(
        """async (code) => {
            const { kernel } = jupyterapp.shell.currentWidget.sessionContext.session;
            const reply = await kernel.requestExecute({ code }).done;
            return reply.content.status === "ok" ? null : `${reply.content.ename}: ${reply.content.evalue}`;
        }""",
        code,
    )


def wait_idle(page):
    """Wait until the kernel has nothing to do and every widget has its answer."""
    page.wait_for_function(
        "jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"
        " && !document.querySelector('[aria-busy=true]')",
        timeout=60_000,
    )


def change_theme(page, theme):
    """Switch to "JupyterLab Light" or "JupyterLab Dark"."""
    page.evaluate("(theme) => jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
    page.wait_for_function("(light) => document.body.dataset.jpThemeLight === light", arg=str("Light" in theme).lower())


def save(page):
    """Save the open notebook."""
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")


def contrast(widget, selector):
    """Contrast (WCAG) of a text in a widget against the widget's background."""
    colors = widget.evaluate(
        """(root, selector) => [root.querySelector(selector), root]
            .map((node, n) => getComputedStyle(node)[n ? "backgroundColor" : "color"].match(/[\\d.]+/g).map(Number))""",
        selector,
    )
    light, dark = sorted((luminance(rgb[:3]) for rgb in colors), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(rgb):
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
