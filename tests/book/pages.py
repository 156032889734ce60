"""The book's pages as `make book` left them, and what the tests read in them."""

from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "docs" / "_build" / "html"
PAGES = sorted(
    path.relative_to(BOOK).as_posix() for path in BOOK.rglob("*.html") if BOOK / "_static" not in path.parents
)


class Page(HTMLParser):
    """A page's `links` (of a, link, script and img), its `ids`, and the `alts` of its pictures, all in order."""

    def __init__(self, name):
        super().__init__()
        self.links, self.ids, self.alts = [], set(), []
        self.feed((BOOK / name).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.links += [found[name] for name in ("href", "src") if name in found]
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "img":
            self.alts.append(found.get("alt"))
