"""The glossary as a table."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from textwrap import wrap

from helpers.checks import shown, text
from helpers.errors import BadInputError
from helpers.glossary import Term, load_glossary


@dataclass(frozen=True, repr=False)
class GlossaryView:
    """Terms of the glossary; a notebook shows them as a table, a terminal as text."""

    terms: tuple[Term, ...]

    def __repr__(self) -> str:
        return "\n".join(line for term in self.terms for line in _lines(term))

    def _repr_html_(self) -> str:
        head = "".join(
            f'<th scope="col" style="text-align:left">{name}</th>' for name in ("term", "中文", "meaning", "in")
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(map(_row, self.terms))}</tbody></table>"


def show_glossary(search: str = "") -> GlossaryView:
    """The course's terms as a table, or those that contain `search` (in either language, ignoring case).

    Raises `BadInputError` if none does.

    >>> show_glossary("残差")
    residual stream · 残差流 · notebook 04
        The running sum that every layer reads from and adds to: one vector per position.
    """
    terms = load_glossary()
    wanted = text("search", search).casefold()
    found = tuple(t for t in terms if wanted in f"{t.term} {t.chinese} {t.definition}".casefold())
    if not found:
        raise BadInputError(
            f"No term of the glossary contains {shown(search)}: try a shorter word, or show_glossary() for all."
        )
    return GlossaryView(found)


def _lines(term: Term) -> list[str]:
    body = wrap(term.definition, 110, initial_indent="    ", subsequent_indent="    ")
    return [f"{term.term} · {term.chinese} · notebook {term.notebook}", *body]


def _row(term: Term) -> str:
    texts = (term.term, term.chinese, term.definition, term.notebook)
    cells = "".join(f'<td style="text-align:left">{escape(text)}</td>' for text in texts[1:])
    return f'<tr><th scope="row" style="text-align:left">{escape(term.term)}</th>{cells}</tr>'
