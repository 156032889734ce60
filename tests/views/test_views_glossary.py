"""helpers.glossary and its table."""

import pytest

from helpers import show_glossary
from helpers.errors import BadInputError
from helpers.glossary import FILE, load_glossary


def test_every_term_has_all_it_needs_once():
    terms = load_glossary()
    assert len({term.term for term in terms}) == len(terms) >= 60
    for term in terms:
        assert term.chinese
        assert term.definition[0].isupper() and term.definition.endswith(".")
        assert list((FILE.parents[1] / "notebooks").glob(f"{term.notebook}_*.ipynb")), term


@pytest.mark.parametrize("search", ["cache", "键值", "CACHE"])
def test_a_search_finds_terms_in_both_languages(search):
    assert "KV cache" in [term.term for term in show_glossary(search).terms]


def test_a_search_without_a_result_says_so():
    with pytest.raises(BadInputError, match="No term of the glossary contains 'zebra'"):
        show_glossary("zebra")


def test_the_table_has_every_term():
    view = show_glossary()
    assert view._repr_html_().count("<tr>") == len(view.terms) + 1
    assert all(term.term in repr(view) for term in view.terms)
