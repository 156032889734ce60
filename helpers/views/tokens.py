"""Text as the model sees it: a row of tokens, each with its id."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from helpers.checks import shown
from helpers.errors import BadInputError
from helpers.text.prompts import RenderedChat, Segment, prompt_ids
from helpers.text.tokens import TokenRow, token_table
from helpers.views.style import HTML_THEME, columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

ROLE_COLORS = {"system": "green", "user": "blue", "assistant": "vermillion", "observation": "purple", "tool": "purple"}
TEXT_WIDTH = 96  # columns of the plain-text form

# The class names start with "tk": the style sheet is part of every output and must not affect anything else.
TOKENS_CSS = (
    ".tk{" + HTML_THEME + "font-family:var(--sans);color:var(--ink);line-height:1.2}"
    """
.tk-row{display:flex;flex-wrap:wrap;gap:5px 4px;margin:3px 0}
.tk ruby{display:inline-flex;flex-direction:column;align-items:center;unicode-bidi:isolate}
.tk-t{font:13px/1.35 var(--mono);white-space:pre-wrap;overflow-wrap:anywhere;padding:2px 5px;border-radius:5px;\
border:1px solid color-mix(in srgb,var(--hue,var(--blue)) 45%,var(--rule));\
background:color-mix(in srgb,var(--hue,var(--blue)) 13%,var(--paper))}
.tk-s .tk-t{border:1px dashed var(--muted);background:var(--shade);font-style:italic}
.tk rt{display:block;font:10px/1.3 var(--mono);color:var(--muted);margin-top:1px}
.tk-seg{border-left:3px solid var(--hue);padding:1px 0 1px 9px;margin:5px 0}
.tk-who{font-size:11px;font-weight:600;color:var(--muted)}
"""
)


@dataclass(frozen=True)
class TokenView:
    """What `show_tokens` returns: the tokens, and for a `RenderedChat` its segments.

    A notebook shows it as chips with the id under each, a terminal as aligned text. `hidden` is the
    number of tokens after `rows` that are not shown.
    """

    rows: tuple[TokenRow, ...]
    segments: tuple[Segment, ...]
    hidden: int

    def __repr__(self) -> str:
        lines = []
        for segment in self.segments:
            if segment.role:
                lines.append(f"{_who(segment)}:")
            lines += _text_lines(self.rows[segment.start : segment.stop], indent="  " if segment.role else "")
        return "\n".join(lines + [self._rest()] * bool(self.hidden))

    def _repr_html_(self) -> str:
        parts = [f'<style>{TOKENS_CSS}</style><div class="tk">']
        for segment in self.segments:
            chips = "\n".join(_chip(row) for row in self.rows[segment.start : segment.stop])
            row = f'<div class="tk-row">{chips}</div>'
            if segment.role:
                hue = ROLE_COLORS.get(segment.role, "muted")
                who = f'<div class="tk-who">{escape(_who(segment))}</div>'
                row = f'<div class="tk-seg" style="--hue:var(--{hue})">{who}{row}</div>'
            parts.append(row)
        parts.append(f'<div class="tk-who">{self._rest()}</div>' * bool(self.hidden) + "</div>")
        return "".join(parts)

    def _rest(self) -> str:
        return f"… and {self.hidden} more tokens (show_tokens(…, limit=None) shows all)"


def show_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Any, *, limit: int = 400) -> TokenView:
    """A prompt's tokens, each with its id; a `TokenView`.

    `prompt` is a text, a `RenderedChat` (then grouped by the message each token came from), or ids
    (list, or tensor `[length]` or `[1, length]`). White space is made visible, a token that is part
    of a character is shown as `你 1/2`, and control tokens have a dashed frame (`[ ]` in text). At most
    `limit` tokens are shown; None shows all.

    Raises `BadInputError` for anything but a prompt, or a `limit` below 1.

    >>> print(str(show_tokens(tokenizer, "Hello, world!")).splitlines()[0])
    Hello  ,   ·world  !
    """
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise BadInputError(f"limit={shown(limit)}: show at least 1 token, or limit=None for all of them.")
    ids = prompt_ids(tokenizer, prompt)[0].tolist()
    rows = token_table(tokenizer, ids)[:limit]
    segments: tuple[Segment, ...] = (Segment(None, "", 0, len(rows)),)
    if isinstance(prompt, RenderedChat):
        segments = tuple(s for s in prompt.segments if s.start < len(rows))
    return TokenView(tuple(rows), segments, len(ids) - len(rows))


def _who(segment: Any) -> str:
    if segment.message is None:
        return "template"
    return f"message {segment.message} · {segment.role}"


def _chip(row: TokenRow) -> str:
    """Ruby text: even if a page drops our style sheet, the id is still shown over its token."""
    kind = ' class="tk-s"' if row.special else ""
    about = f"position {row.position}, id {row.token_id}, " + (
        "control token" if row.special else f"bytes {row.raw.hex(' ').upper()}"
    )
    label = escape(row.label)
    return f'<ruby{kind} title="{about}"><span class="tk-t">{label}</span><rt>{row.token_id}</rt></ruby>'


def _text_lines(rows: Sequence[TokenRow], indent: str) -> list[str]:
    """Labels over ids, in columns, wrapped at `TEXT_WIDTH`: two lines per row of tokens."""
    lines, labels, ids = [], indent, indent
    for row in rows:
        label = f"[{row.label}]" if row.special else row.label
        width = max(columns(label), len(str(row.token_id))) + 2
        if labels != indent and columns(labels) + width > TEXT_WIDTH:
            lines += [labels.rstrip(), ids.rstrip()]
            labels, ids = indent, indent
        labels += label + " " * (width - columns(label))
        ids += str(row.token_id).ljust(width)
    return [*lines, labels.rstrip(), ids.rstrip()]
