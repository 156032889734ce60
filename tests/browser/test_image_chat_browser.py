"""The picture chat in a real JupyterLab: choose, upload, draw, ask, stop, and see where a word looked."""

from pathlib import Path

import nbformat
import pytest

from lab import change_theme, open_notebook, run_all, running_lab, save, wait_idle

MODELS = Path(__file__).resolve().parents[1] / "fixtures" / "glm"
SENTENCE = "\nThe circle is red. 圆形是红色的。"
SETUP = f"""\
import time
import torch
from helpers import image_chat, load_model, load_processor, load_tokenizer, use_course_style
use_course_style()
torch.set_num_threads(1)
folder = "{MODELS}/glm4v-a/checkpoint"
model, processor = load_model(folder, device="cpu"), load_processor(folder)
ids = processor.tokenizer({SENTENCE!r}, add_special_tokens=False)["input_ids"]
model.register_forward_pre_hook(lambda *args: time.sleep(0.06))"""
CHAT = 'image_chat(model, processor, question="描述一下这张图片", forced_ids=ids, max_new_tokens=len(ids))'
TEXT_ONLY = f"""\
folder = "{MODELS}/glm4-chat-a/checkpoint"
image_chat(load_model(folder, device="cpu"), load_tokenizer(folder), question="<b>你好</b>", max_new_tokens=4)"""
LISTEN = "1 + 1"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}  # else Lab asks which
    cells = [nbformat.v4.new_code_cell(source) for source in (SETUP, CHAT, TEXT_ONLY, LISTEN)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "chat.ipynb")
    with running_lab(folder) as lab:
        yield lab


def drawn(widget, canvas):
    return widget.locator(f"canvas.{canvas}").evaluate("canvas => canvas.toDataURL()")


def answers(widget):
    return widget.locator(".hx-answer").all_inner_texts()


def test_a_reader_chats_about_pictures(lab, page, tmp_path):
    open_notebook(page, lab, "chat.ipynb")
    assert run_all(page) == []
    wait_idle(page)
    widget = page.locator(".hx").nth(0)
    widget.scroll_into_view_if_needed()
    assert page.locator(".jp-RenderedImage:visible").count() == 0, "the still picture shows beside the live widget"
    assert answers(widget)[0].startswith("The circle is red.")

    # Where a word looked, by pointer and by keyboard.
    first = drawn(widget, "hx-heat")
    red = widget.get_by_role("button", name="red: see where it looked")
    red.focus()
    page.keyboard.press("Enter")
    wait_idle(page)
    assert "red" in widget.locator(".hx-told").inner_text()
    assert drawn(widget, "hx-heat") != first
    assert red.get_attribute("aria-pressed") == "true"
    assert red.evaluate("node => node === document.activeElement"), "the keyboard stays where it was"
    before = widget.locator(".hx-reading").inner_text()
    widget.locator("canvas.hx-heat").focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
    assert widget.locator(".hx-reading").inner_text() != before
    widget.get_by_label("Layer").select_option("1")
    wait_idle(page)
    widget.get_by_label("Head").select_option("2")
    wait_idle(page)
    assert "%" in widget.get_by_label("Head").locator("option").nth(3).inner_text()
    page.screenshot(path=lab.folder / "looked.png")

    # A reply streams in, the kernel stays free, and Stop ends it.
    widget.locator(".hx-typed").fill("<b>Where</b> is it?")
    page.keyboard.press("Enter")
    caret = widget.locator(".hx-caret")
    caret.wait_for()
    page.wait_for_function("[...document.querySelectorAll('.hx-answer')][1]?.innerText.includes('The')")
    streamed = answers(widget)[1]
    assert len(streamed) < len(SENTENCE)
    assert widget.locator(".hx-ask").is_hidden()
    two = page.evaluate("""async () => {
        const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
        const reply = await kernel.requestExecute({ code: "print(1 + 1)" }).done;
        return reply.content.status;
    }""")
    assert two == "ok"
    widget.locator(".hx-stop").click()
    caret.wait_for(state="detached")
    assert "stopped by you" in answers(widget)[1]
    assert widget.locator("b", has_text="Where").count() == 0, "what is typed is never HTML"
    wait_idle(page)

    # Uploads: no picture, then one, with names that show as themselves.
    widget.locator("[data-mode=upload]").click()
    bad = tmp_path / "<b>no picture.png"
    bad.write_bytes(b"%PDF-1.7")
    widget.locator("input[type=file]").set_input_files(bad)
    page.wait_for_function("document.querySelector('.hx-message').textContent")
    sentence = widget.locator(".hx-message").inner_text()
    assert sentence.startswith("The picture <b>no picture.png cannot be read")
    source = widget.locator("img.hx-shown").get_attribute("src")
    widget.locator("input[type=file]").set_input_files(MODELS / "glm4v-a" / "images" / "rgba.png")
    page.wait_for_function("(old) => document.querySelector('img.hx-shown').src !== old", arg=source)
    wait_idle(page)
    assert widget.locator(".hx-message").inner_text() == ""
    assert "rgba.png" in widget.locator(".hx-caption").inner_text()
    assert "new conversation" in widget.locator(".hx-notice").inner_text()
    assert answers(widget) == []

    # A drawing, by keyboard and by pointer.
    widget.locator("[data-mode=draw]").click()
    blank = drawn(widget, "hx-paper")
    widget.locator("[data-kind=star]").focus()
    page.keyboard.press("Enter")
    widget.get_by_label("purple").focus()
    page.keyboard.press("Enter")
    widget.get_by_label("Place").select_option("top left")
    add = widget.get_by_role("button", name="Add a purple star")
    add.focus()
    page.keyboard.press("Enter")
    by_keyboard = drawn(widget, "hx-paper")
    assert by_keyboard != blank
    box = widget.locator("canvas.hx-heat").bounding_box()
    widget.locator("[data-kind=pen]").click()
    page.mouse.move(box["x"] + 180, box["y"] + 180)
    page.mouse.down()
    page.mouse.move(box["x"] + 240, box["y"] + 250, steps=4)
    page.mouse.up()
    by_pen = drawn(widget, "hx-paper")
    assert by_pen != by_keyboard
    page.screenshot(path=lab.folder / "drawn.png")
    widget.locator(".hx-typed").fill("What is it?")
    widget.locator(".hx-ask").click()
    page.wait_for_function("document.querySelector('.hx-answer')?.innerText.includes('圆')")
    wait_idle(page)
    assert widget.locator(".hx-caption").inner_text() == "your drawing"
    widget.locator(".hx-word").nth(1).click()
    wait_idle(page)
    assert widget.locator(".hx-looked").is_visible()
    widget.locator(".hx-undo").click()
    assert drawn(widget, "hx-paper") == by_keyboard
    assert widget.locator(".hx-looked").is_hidden(), "the heat belongs to the picture that was asked about"

    # Lab's shortcuts do not listen in, and both themes can be read.
    cells = page.locator(".jp-Cell").count()
    widget.get_by_label("Size").focus()
    for key in ("b", "a", "d"):
        page.keyboard.press(key)
    assert page.locator(".jp-Cell").count() == cells
    change_theme(page, "JupyterLab Dark")
    page.screenshot(path=lab.folder / "dark.png")
    change_theme(page, "JupyterLab Light")

    text_only = page.locator(".hx").nth(1)
    assert text_only.locator(".hx-said").inner_text() == "<b>你好</b>"
    assert text_only.locator("canvas").count() == 0
    assert len(answers(text_only)) == 1
    save(page)
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")


def test_a_saved_notebook_shows_the_still_pictures(lab, page):
    lab.trust("chat.ipynb")
    open_notebook(page, lab, "chat.ipynb", kernel=False)
    page.wait_for_function("document.querySelectorAll('.jp-RenderedImage img').length === 2")
    assert page.locator(".jp-RenderedImage:visible").count() == 2
    assert page.locator(".hx").count() == 0
    page.screenshot(path=lab.folder / "still.png")
