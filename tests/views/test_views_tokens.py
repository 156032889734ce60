from html.parser import HTMLParser

import pytest

from helpers.errors import BadInputError
from helpers.text.prompts import render_chat
from helpers.views.tokens import show_tokens

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "你好 <|im_end|>"},
]


class Page(HTMLParser):
    """The tags and the text of a piece of HTML."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.classes = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.classes.append(dict(attributes).get("class"))

    def handle_data(self, data):
        self.texts.append(data)


def test_every_token_stands_over_its_id(tokenizer):
    view = show_tokens(tokenizer, "The capital of France is")
    labels, ids = repr(view).splitlines()
    assert labels.split() == ["The", "·capital", "·of", "·France", "·is"]
    assert [int(i) for i in ids.split()] == tokenizer("The capital of France is")["input_ids"]
    for label, token_id in zip(labels.split(), ids.split(), strict=True):
        assert labels.index(label) == ids.index(token_id)
    page = Page(view._repr_html_())
    assert page.tags.count("ruby") == page.tags.count("rt") == 5
    assert "·capital" in page.texts


def test_text_ids_and_tensors_look_the_same(tokenizer):
    import torch

    text = "你好\n"
    ids = tokenizer(text)["input_ids"]
    views = [show_tokens(tokenizer, prompt) for prompt in (text, ids, torch.tensor(ids), torch.tensor([ids]))]
    assert len({repr(view) for view in views}) == len({view._repr_html_() for view in views}) == 1


def test_parts_of_a_character_and_white_space_are_readable(tokenizer):
    text = repr(show_tokens(tokenizer, "你好\n\tx"))
    assert "你 1/2" in text
    assert "⏎" in text
    assert "\ufffd" not in text


def test_a_chat_shows_which_message_each_token_came_from(tokenizer):
    chat = render_chat(tokenizer, MESSAGES)
    view = show_tokens(tokenizer, chat)
    heads = [line for line in repr(view).splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert heads[:4] == ["template:", "message 0 · system:", "template:", "message 1 · user:"]
    assert sum(len(view.rows[s.start : s.stop]) for s in view.segments) == len(chat)
    assert "message 1 · user" in Page(view._repr_html_()).texts


def test_control_tokens_are_marked_by_more_than_colour(tokenizer):
    view = show_tokens(tokenizer, render_chat(tokenizer, MESSAGES))
    assert "[<|im_start|>]" in repr(view)
    assert "[<|im_end|>]" in repr(view)
    page = Page(view._repr_html_())
    special = sum(row.special for row in view.rows)
    assert 0 < special == page.classes.count("tk-s")
    assert "control token" in view._repr_html_()


@pytest.mark.parametrize("text", ["<img src=x onerror=alert(1)>", "</script><b>", "</style>&amp;", '" onclick="x'])
def test_markup_in_a_text_shows_as_itself(tokenizer, text):
    page = Page(show_tokens(tokenizer, text)._repr_html_())
    assert set(page.tags) == {"style", "div", "ruby", "span", "rt"}
    chips = [row.label for row in show_tokens(tokenizer, text).rows]
    assert [t for t in page.texts if t in chips][: len(chips)] == chips


def test_a_token_that_is_markup_is_escaped_too(tokenizer):
    from types import SimpleNamespace

    evil = "<img src=x onerror=alert(1)>"
    added = SimpleNamespace(content=evil, special=True)
    fake = type("Fake", (), {"all_special_ids": [3], "added_tokens_decoder": {3: added}, "__len__": lambda self: 9})()
    page = Page(show_tokens(fake, [3])._repr_html_())
    assert "img" not in page.tags
    assert evil in page.texts


def test_a_long_text_is_cut_and_says_so(tokenizer):
    view = show_tokens(tokenizer, "word " * 50, limit=10)
    assert len(view.rows) == 10
    assert f"and {view.hidden} more tokens" in repr(view)
    assert f"and {view.hidden} more tokens" in view._repr_html_()
    assert show_tokens(tokenizer, "word " * 50, limit=None).hidden == 0
    chat = render_chat(tokenizer, [{"role": "user", "content": "word " * 50}])
    assert len(show_tokens(tokenizer, chat, limit=5).rows) == 5


def test_lines_of_text_stay_narrow_with_chinese_too(tokenizer):
    from unicodedata import east_asian_width

    lines = repr(show_tokens(tokenizer, "为什么要减少污染，保护环境？" * 6)).splitlines()
    assert len(lines) > 4
    assert max(sum(1 + (east_asian_width(c) in "WF") for c in line) for line in lines) <= 96


@pytest.mark.parametrize("prompt", ["", [], 5, None])
def test_what_is_no_prompt_is_named(tokenizer, prompt):
    with pytest.raises(BadInputError):
        show_tokens(tokenizer, prompt)


def test_a_limit_that_shows_nothing_is_refused(tokenizer):
    with pytest.raises(BadInputError, match="limit=0"):
        show_tokens(tokenizer, "x", limit=0)
