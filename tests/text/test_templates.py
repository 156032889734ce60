"""Chat templates: the library's text, the right owner for each character, and an end to every one."""

import time

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from helpers.errors import BadInputError
from helpers.text.marked import TEMPLATE, Marked, joined, message_of
from helpers.text.templates import render_template

MESSAGES = [
    {"role": "system", "content": " SYS "},
    {"role": "user", "content": "  hi <|x|>\n"},
    {"role": "assistant", "content": "<think>a</think>\n\nb", "reasoning_content": "why"},
    {
        "role": "user",
        "content": "q2",
        "name": "bob",
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
    },
]
TEMPLATES = {
    "trim": "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}",
    "thinking": (
        "{% for m in messages %}{% set c = m['content'] %}{% if '</think>' in c %}"
        "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ '<|' + m['role'] + '|>' + c + '<|end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
    "moved": (
        "{% set s = messages[0].content %}{% for m in messages[1:] %}"
        "[{{ (s ~ '\n' if loop.last else '') ~ m.content }}]{% endfor %}"
    ),
    "namespace": (
        "{% set ns = namespace(x='') %}{% for m in messages %}{% set ns.x = ns.x ~ m.content|upper ~ loop.index %}"
        "{% endfor %}{{ ns.x }}"
    ),
    "macro": "{% macro f(a) %}[{{ a }}]{% endmacro %}{% for m in messages %}{{ f(m.content) }}{% endfor %}",
    "set block": "{% set x %}<|a|>{{ messages[0].content }}{% endset %}{{ x }}{% generation %}abc{% endgeneration %}",
    "join": "{{ messages|map(attribute='content')|join('|') }}{{ messages|join('+', attribute='role') }}",
    "format": "{{ '%s--%s' % (1, messages[0].content) }}{{ '{}!'.format(messages[0].content) }}{{ 'ab'|center(9) }}",
    "json": "{{ messages[3].tool_calls | tojson }}{{ messages[0] }}{{ none }}{{ messages[0].nothing }}{{ bos_token }}",
    "pieces": (
        "{{ messages[1].content[::-1] }}{{ messages[1].content|first }}{{ messages[1].content|list }}"
        "{{ messages[1].content.replace('h', 'HH')|replace('i', '') }}{{ messages[2].content.partition('</')[2] }}"
        "{{ messages[2].content.splitlines() }}{{ messages[1].content.rsplit(None, 1)[0] }}{{ 'a,b'.split(',') }}"
    ),
    "safe": "{{ messages[0].content | safe }}{{ '<a>'|safe + '<b>' }}{{ messages[1].content|e }}{{ 'ab'|title }}",
    "loops": "{% for a in range(3) %}{% if loop.first %}{% continue %}{% endif %}{{ loop.cycle('x', a) }}{% endfor %}",
    "reasoning": "{% for m in messages if m.reasoning_content %}{{ m.reasoning_content }}{{ m.thinking }}{% endfor %}",
}


def library(template, messages, more=True):
    rendered, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=more, bos_token="<s>")
    return rendered[0]


def render(template, messages=MESSAGES):
    return render_template(template, messages, {"bos_token": "<s>"}, add_generation_prompt=True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_the_librarys(name):
    assert render(TEMPLATES[name]) == library(TEMPLATES[name], MESSAGES)


@pytest.mark.parametrize("name", ["trim", "thinking", "moved", "namespace", "macro", "set block"])
def test_every_character_of_a_content_has_its_owner(name):
    text = render(TEMPLATES[name])
    at = 0
    for length, owner in text.owned_runs():
        piece = text[at : at + length]
        at += length
        if owner >= 0:
            assert piece.lower() in MESSAGES[owner]["content"].lower()
        else:
            assert owner == TEMPLATE
            assert not any(message["content"].strip() and message["content"] in piece for message in MESSAGES)
    found = {message_of(owner) for owner in text.owners()} - {None}
    assert found == ({0} if name == "set block" else {0, 1, 2, 3})


def test_what_is_not_followed_is_never_called_the_templates_own():
    for template in ("{{ messages|tojson }}", "{{ '%s' % messages[0].content }}", "{{ messages[0].content|safe }}"):
        assert TEMPLATE not in render(template).owners()


ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}",
    "loop in a filter": (
        "{% filter upper %}{% for i in range(99999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}{% endfilter %}"
    ),
    "lists": "{% for a in range(99999) %}{% set x = range(99999)|list %}{% endfor %}",
    "a long range": "{% for i in range(10**9) %}{% endfor %}",
    "many texts": "{% for i in range(100000) %}{{ 'a' * 10000 }}{% endfor %}",
    "a long text": "{{ 'a' * 10**10 }}",
    "a text of 100 MB": "{{ 'a' * 10**8 }}",
    "doubling by ~": "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling by +": "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling lists": "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "nested lists": (
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}"
    ),
    "a huge number": "{{ (2 ** 4000) ** 1000 }}",
    "growing numbers": "{% set ns = namespace(n=3) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "center": "{{ 'a'.center(10**9) }}{{ 'a'|center(10**9) }}",
    "a wide format": "{{ '%999999999d' % 1 }}",
    "a wide format()": "{{ '{:>999999999}'.format(1) }}",
    "replace": "{{ ('a' * 1000000).replace('a', 'b' * 100000)|length }}",
    "replace filter": "{{ ('a' * 1000000)|replace('a', 'b' * 100000)|length }}",
    "join": "{{ ('x' * 1000000).join(range(100000)|map('string'))|length }}",
    "join filter": "{{ range(100000)|map('string')|join('y' * 100000)|length }}",
    "json": "{{ [1]|tojson(indent=10**9) }}",
    "tabs": "{{ '\t\t'.expandtabs(10**9) }}",
    "slices": "{{ [1]|slice(10**9)|list|length }}",
    "texts that add up": "{% set ns = namespace() %}{% for i in range(99) %}{% set ns.y = 'a' * 9999999 %}{% endfor %}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_does_not_end_is_stopped(name):
    started = time.thread_time()
    with pytest.raises(BadInputError, match="chat template was stopped because it"):
        render(ENDLESS[name])
    assert time.thread_time() - started < 10


FAILING = {
    "division": ("{{ 1 / 0 }}", "division by zero"),
    "a method that is not there": ("{{ messages[0].content.nothing() }}", "'text' has no attribute 'nothing'"),
    "a key that is not there": ("{{ messages[0]['tool_calls'][0]['id'] }}", "tool_calls"),
    "its own refusal": ("{{ raise_exception('no system role') }}", "no system role"),
    "syntax": ("{% for", "unexpected"),
    "too deep": ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "RecursionError"),
    "recursion": ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "RecursionError"),
    "a long number": ("{{ " + "9" * 5000 + " }}", "digits"),
    "range of step 0": ("{{ range(0, 1, 0) }}", "must not be zero"),
    "empty separator": ("{{ 'a'.split('') }}", "empty separator"),
    "another file": ("{% include 'x' %}", "loader"),
    "Python's insides": ("{{ 'a'.__class__.__mro__ }}", "unsafe"),
    "a long refusal": ("{{ raise_exception('a' * 1000000) }}", "a …"),
}


@pytest.mark.parametrize("name", FAILING)
def test_what_goes_wrong_in_a_template_is_one_sentence(name):
    template, says = FAILING[name]
    with pytest.raises(BadInputError, match="does not accept these messages") as raised:
        render(template)
    assert len(str(raised.value)) < 2100
    assert name == "a long refusal" or says in str(raised.value)


def test_a_template_of_a_million_lines_is_refused():
    with pytest.raises(BadInputError, match="far too many to be one"):
        render("{# nothing #}\n" * 1_000_000)


def test_a_marked_text_works_as_any_text():
    text = Marked("  ab,c ", 3)
    assert text.strip() == "ab,c"
    assert [type(part) for part in text.split(",")] == [Marked, Marked]
    assert (Marked("x", TEMPLATE) + text.strip()).owned_runs() == ((1, TEMPLATE), (4, 3))
    assert joined(["plain", text]).owners()[:5] == [-2] * 5
    assert "".join(text) == text
    assert {text: 1}["  ab,c "] == 1
    assert text.replace("a", Marked("", TEMPLATE)).owned_runs() == ((6, 3),)
    assert (text * 3).owned_runs() == ((21, 3),)
    assert text.upper().owners() == [3] * 7
    assert (Marked("a", 0) + Marked("ß", 1)).upper().owners() == [0, 1, 1]
    assert Marked("a", 1).replace("", "-").owners() == [1_000_001] * 3, "known roughly only"
    assert [part.owners() for part in Marked("a\nb", 2).splitlines()] == [[2], [2]]
