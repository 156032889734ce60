"""The book as a reader opens it, from the disk: no other host, contrast, keyboard, names, widths, search, formulas."""

from contextlib import contextmanager
from urllib.parse import quote, urlsplit

import pytest

from pages import BOOK, PAGES, ROOT

AXE = ROOT / "tests" / "javascript" / "node_modules" / "axe-core" / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]  # with contrast, keyboard, names, labels and words for pictures
THEMES = ("light", "dark")
PHONE, DESKTOP = 390, 1280
SUMMARY = "document.querySelector('#search-results .search-summary').innerText"

pytestmark = pytest.mark.skipif(not PAGES, reason="there is no book: `make book` makes it")


@contextmanager
def opened(browser, name, theme="light", width=DESKTOP):
    """The page `name` of the book. It must ask for nothing but files of the book, and log no error."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    page.set_default_timeout(60_000)
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(f"{BOOK.as_uri()}/{name}")
    yield page
    context.close()
    assert [url for url in asked if urlsplit(url).scheme not in ("file", "data", "blob")] == []
    assert errors == []


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", PAGES)
def test_everyone_can_read_and_reach_everything(browser, name, theme, width):
    with opened(browser, name, theme, width) as page:
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true })")
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate("rules => axe.run(document, {runOnly: rules, preload: false})", RULES)["violations"]
        assert [f"{rule['id']}: {node['html'][:200]}" for rule in found for node in rule["nodes"][:3]] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (
            "the page itself does not scroll sideways"
        )


@pytest.mark.parametrize(
    "word", ["隐藏状态", "残差流", "键值缓存", "注意力", "residual stream", "kv_cache_bytes", "softmax"]
)
def test_the_search_finds(browser, word):
    with opened(browser, f"search.html?q={quote(word)}") as page:
        page.wait_for_selector("#search-results li a")
        page.wait_for_function(f"{SUMMARY}.includes('found')")
        found = [
            link.split("#")[0].split("?")[0]
            for link in page.eval_on_selector_all("#search-results li a", "links => links.map(link => link.href)")
        ]
        wanted = "api/helpers/index.html" if word.isidentifier() and "_" in word else "glossary.html"
        assert f"{BOOK.as_uri()}/{wanted}" in found


def test_the_search_says_that_it_found_nothing(browser):
    with opened(browser, "search.html?q=zzyzx") as page:
        page.wait_for_function(
            "document.querySelector('#search-results .search-summary').innerText.includes('did not')"
        )
        assert page.query_selector("#search-results li a") is None


def test_hints_and_solutions_are_folded_until_asked_for(browser):
    with opened(browser, "notebooks/05_cache_inspection.html") as page:
        folds = page.locator("details", has_text="Solution")
        assert folds.count() >= 4
        code = folds.first.locator("pre").first
        assert not code.is_visible()
        folds.first.locator("summary").press("Enter")
        assert code.is_visible()


def test_the_menu_of_a_phone_opens_and_leads_on(browser):
    with opened(browser, "index.html", width=PHONE) as page:
        page.locator(".primary-toggle").first.click()
        page.locator("dialog a, .bd-sidebar-primary a").get_by_text("Glossary").first.click()
        assert page.url.endswith("glossary.html")


def test_formulas_need_no_other_host(browser):
    with opened(browser, "index.html") as page:
        page.evaluate("document.querySelector('article').append('\\\\(x^2\\\\)')")
        page.evaluate("window.MathJax = {options: {enableMenu: false}}")
        page.add_script_tag(url=f"{BOOK.as_uri()}/_static/mathjax/tex-chtml.js")
        page.wait_for_selector("article mjx-container mjx-math")
