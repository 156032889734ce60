"""The installed library's own source, with notes that cannot go stale.

A note is pinned to a *pattern*: a piece of one line of code, not a line number. When the library
changes and the line is gone, `show_source` says so instead of explaining what is no longer there.
A test runs `broken_anchors` on every notebook for the same reason.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import html
import inspect
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.checks import shown
from helpers.errors import AnchorNotFoundError, BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


LONGEST_PATTERN = 1000  # characters: no line of the library is longer
STORED = "helpers-stored"  # the key of an output's metadata
REPOSITORIES = {
    "transformers": "https://github.com/huggingface/transformers/blob/v{version}/src/{file}",
    "torch": "https://github.com/pytorch/pytorch/blob/v{version}/{file}",
}

Anchor = str | re.Pattern[str]  # a piece of a line of code, or a regular expression


@dataclass(frozen=True)
class SourceLine:
    """One line of a file: its line number, its text, and the note pinned to it, if there is one."""

    number: int
    text: str
    note: str | None = None


@dataclass(frozen=True, repr=False)
class SourceView:
    """Lines of source code, which a notebook displays as a numbered listing with notes.

    `name` is the function's name, `location` its file within its package and the first line shown,
    `version` the package and its installed version. `lines` omits docstrings longer than a line.
    """

    name: str
    location: str
    version: str
    lines: tuple[SourceLine, ...]

    def __repr__(self) -> str:
        return _as_text(self)

    def _repr_html_(self) -> str:
        return _as_html(self)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict, dict]:
        """What Jupyter shows and, as metadata, what a committed notebook keeps of it (see `stored_outputs`)."""
        shown = {"text/plain": _as_text(self), "text/html": _as_html(self)}
        return shown, {STORED: {"text/plain": _notes_as_text(self), "text/html": _notes_as_html(self)}}

    @property
    def link(self) -> str | None:
        """The URL of the lines shown, in the file of the installed release; None where that is not known."""
        package, _, version = self.version.partition(" ")
        if package not in REPOSITORIES or not version:
            return None
        address = REPOSITORIES[package].format(version=version, file=self.location.rpartition(":")[0])
        return f"{address}#L{self.lines[0].number}-L{self.lines[-1].number}"


def show_source(
    function: object,
    *,
    start: Anchor | None = None,
    stop: Anchor | None = None,
    notes: Mapping[Anchor, str] | None = None,
) -> SourceView:
    """The lines of `function` in the installed library, numbered, with notes below the lines they explain.

    >>> from transformers.models.llama.modeling_llama import LlamaAttention
    >>> notes = {"apply_rotary_pos_emb(": "Here the positions come in."}
    >>> view = show_source(LlamaAttention.forward, start="query_states =", notes=notes)
    >>> view.name
    'LlamaAttention.forward'

    `function` is a function, method, property or class. `start` and `stop` are patterns of the first
    and the last line to show; `notes` is a dict from patterns to notes, where text in `backticks` is
    shown as code. A pattern is a literal piece of a line, or a regular expression made by `re.compile`.
    It has to match exactly one line: `start` among the function's lines, `stop` among those from `start`
    on, a note among the lines shown. Docstrings longer than a line are omitted and not searched.

    Raises `AnchorNotFoundError` naming each pattern that matches no line or several, and
    `BadInputError` for something that has no Python source.
    """
    view, broken = _view(function, start, stop, notes)
    if broken:
        raise AnchorNotFoundError(
            " ".join(broken) + " The library has changed, or the pattern is not exact: look at the current lines with "
            f"show_source({view.name}) and adapt the pattern."
        )
    return view


def stored_outputs(outputs: list[dict]) -> list[dict]:
    """What a committed notebook keeps of the outputs of a `show_source` cell: notes and line numbers, no code.

    `outputs` are a cell's outputs in the notebook's own format. Those that are not a `SourceView` are left out.
    """
    kept = []
    for output in outputs:
        if stored := output.get("metadata", {}).get(STORED):
            kept.append({**output, "data": dict(stored), "metadata": {}})
    return kept


def broken_anchors(
    function: object,
    *,
    start: Anchor | None = None,
    stop: Anchor | None = None,
    notes: Mapping[Anchor, str] | None = None,
) -> list[str]:
    """One sentence for each pattern of this `show_source` call that no longer matches exactly one line.

    Raises `BadInputError` as `show_source` does.
    """
    return _view(function, start, stop, notes)[1]


def since_2024(claim: str, holds: bool, *, was: str = "", why: str = "") -> None:
    """Print what has changed in the library since the walkthroughs were written, after checking that it has.

    `claim` says how things are now, `was` how they were in 2024, and `why` gives the reason; `holds` is whether the
    claim is true of the installed version. Raises `AnchorNotFoundError` when it is not.

    >>> since_2024("one function adds", 1 + 1 == 2, was="two functions", why="one is enough")
    ✓ Now: one function adds
      2024: two functions
      Why: one is enough
    >>> since_2024("1 + 1 is 2", 1 + 1 == 2)
    ✓ 1 + 1 is 2
    """
    if not holds:
        raise AnchorNotFoundError(f"The library has changed again. This is no longer true: {claim}.")
    print("✓", f"Now: {claim}" if was or why else claim)
    for name, text in (("2024", was), ("Why", why)):
        if text:
            print(f"  {name}: {text}")


def _view(
    function: object, start: Anchor | None, stop: Anchor | None, notes: Mapping[Anchor, str] | None
) -> tuple[SourceView, list[str]]:
    """A `SourceView` of the lines that the matching patterns select, and a sentence about each of the others."""
    notes = _checked_notes(notes)
    target, lines, file = _source_lines(function)
    name = target.__qualname__ if hasattr(target, "__qualname__") else target.__name__
    version = package_version(target)
    broken = []

    def find(pattern: Anchor, among: list[SourceLine], role: str) -> SourceLine | None:
        found = [line for line in among if _matches(pattern, line.text)]
        if len(found) != 1:
            broken.append(_complaint(pattern, role, found, among, f"{name} in {version}, {file}"))
        return found[0] if len(found) == 1 else None

    if start is not None and (first := find(start, lines, "start")):
        lines = [line for line in lines if line.number >= first.number]
    if stop is not None and (last := find(stop, lines, "stop")):
        lines = [line for line in lines if line.number <= last.number]
    pinned = {}
    for pattern, note in notes.items():
        if line := find(pattern, lines, "note"):
            pinned[line.number] = f"{pinned[line.number]}\n{note}" if line.number in pinned else note
    shown = tuple(SourceLine(line.number, line.text, pinned.get(line.number)) for line in lines)
    return SourceView(name, f"{file}:{lines[0].number}", version, shown), broken


def _checked_notes(notes: Mapping[Anchor, str] | None) -> Mapping[Anchor, str]:
    notes = {} if notes is None else notes
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise BadInputError(f'notes must be a dict {{"piece of a line": "what to say about it"}}, not {shown(notes)}.')
    return notes


def _matches(pattern: Anchor, text: str) -> bool:
    if isinstance(pattern, re.Pattern) and isinstance(pattern.pattern, str):
        return bool(pattern.search(text))
    if not isinstance(pattern, str) or not pattern.strip() or len(pattern) > LONGEST_PATTERN:
        raise BadInputError(
            f"A pattern must be a piece of a line of code (or a re.compile(...)), not {shown(pattern)}."
        )
    return pattern in text


def _complaint(pattern: Anchor, role: str, found: list[SourceLine], among: list[SourceLine], where: str) -> str:
    text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    if found:
        numbers = ", ".join(str(line.number) for line in found)
        return f"The {role} anchor {text!r} matches {len(found)} lines of {where} ({numbers}): make it longer."
    near = max(among, key=lambda line: _shared(text, line.text))
    hint = f" The most similar line is now: {near.text.strip()!r}." if _shared(text, near.text) > 0.5 else ""
    return f"The {role} anchor {text!r} matches no line of {where}.{hint}"


def _shared(piece: str, line: str) -> float:
    """The fraction of `piece` that also occurs in `line`, in runs of at least four characters."""
    blocks = difflib.SequenceMatcher(None, piece, line, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks if block.size >= 4) / len(piece)


def _source_lines(function: Any) -> tuple[Any, list[SourceLine], str]:
    """(the unwrapped object, its `SourceLine`s, its file's path from the package's folder on)."""
    target = function
    if isinstance(target, property):
        target = target.fget
    elif isinstance(target, functools.cached_property | functools.partial):
        target = target.func
    target = inspect.unwrap(target)
    try:
        if inspect.ismodule(target):
            raise TypeError("a file, not a function")
        texts, first = inspect.getsourcelines(target)
        file = inspect.getsourcefile(target) or ""
    except (TypeError, OSError):
        raise BadInputError(
            f"There is no Python source for {shown(function)}. show_source takes a function, method, property "
            "or class written in Python; for an object, take its class: show_source(type(x).forward)."
        ) from None
    hidden = _docstring_lines("".join(texts))
    lines = [
        SourceLine(number, text.rstrip())
        for number, text in enumerate(texts, start=max(first, 1))
        if number - max(first, 1) not in hidden
    ]
    return target, lines, within_package(file, target)


def _docstring_lines(source: str) -> set[int]:
    """Line indices of docstrings longer than one line."""
    before = "if True:\n" if source[:1].isspace() else ""
    hidden = set()
    with contextlib.suppress(SyntaxError):  # the lines of a lambda may not be a complete statement
        for node in ast.walk(ast.parse(before + source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                first = node.body[0]
                if ast.get_docstring(node, clean=False) is not None and (last := first.end_lineno or 0) > first.lineno:
                    hidden.update(range(first.lineno, last + 1))
    return {line - 1 - before.count("\n") for line in hidden}


def within_package(file: str, target: Any) -> str:
    """`transformers/generation/utils.py`: the file, from its package's folder on."""
    package = sys.modules.get(target.__module__.partition(".")[0])
    root = getattr(package, "__file__", None)
    if root and "." in target.__module__ and Path(file).is_relative_to(Path(root).parent):
        return Path(file).relative_to(Path(root).parent.parent).as_posix()
    return "this notebook" if target.__module__ == "__main__" else Path(file).name


def package_version(target: Any) -> str:
    """The package that an object belongs to and its installed version, such as `transformers 5.20.0`."""
    package = target.__module__.partition(".")[0]
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:  # the notebook's own functions, the standard library
        return package


def _pieces(view: SourceView) -> Iterator[tuple[str, Any]]:
    """What to show, in order: ("line", SourceLine), ("note", SourceLine), ("gap", number of omitted lines)."""
    expected = view.lines[0].number
    margin = min(len(line.text) - len(line.text.lstrip()) for line in view.lines if line.text)
    for line in view.lines:
        if line.number > expected:
            yield "gap", line.number - expected
        expected = line.number + 1
        line = SourceLine(line.number, line.text[margin:], line.note)
        yield "line", line
        if line.note is not None:
            yield "note", line


def _as_text(view: SourceView) -> str:
    width = len(str(view.lines[-1].number))
    shown = [f"{view.name} · {view.location} · {view.version}"]
    for kind, piece in _pieces(view):
        if kind == "gap":
            shown.append(f"{'⋯':>{width}} │ ({piece} lines of docstring)")
        elif kind == "line":
            shown.append(f"{piece.number:>{width}} │ {piece.text}".rstrip())
        else:
            shown += [f"{'':>{width}} └─ {line}" for line in piece.note.splitlines()]
    return "\n".join(shown)


# The colours are JupyterLab's, so they follow its theme; elsewhere they give a light card.
_STYLE = """<style>
.source-view{margin:0;border:1px solid var(--jp-border-color2,#d0d7de);border-radius:4px;overflow:hidden;
 background:var(--jp-layout-color1,#fff);color:var(--jp-content-font-color1,#1f2328);
 font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:13px}
.source-view figcaption{padding:5px 12px;background:var(--jp-layout-color2,#eee);
 color:var(--jp-content-font-color1,#1f2328)}
.source-view .lines{overflow-x:auto;padding:4px 0;line-height:1.5}
.source-view .lines>div{width:max-content;min-width:100%;display:flex}
.source-view .n{flex:none;width:4.5em;padding-right:1em;text-align:right;user-select:none;
 color:var(--jp-content-font-color2,#59636e)}
.source-view .n,.source-view .c{font-family:var(--jp-code-font-family,ui-monospace,monospace);white-space:pre}
.source-view .c{background:none;color:inherit;font-size:inherit;padding:0 12px 0 0}
.source-view .has-note{box-shadow:inset 3px 0 var(--jp-brand-color1,#0072b2);font-weight:600}
.source-view .lines .note{box-sizing:border-box;display:block;width:auto;max-width:72em;min-width:0;
 margin:2px 12px 8px 5.5em;padding:4px 10px;position:sticky;left:5.5em;white-space:pre-line;
 border-left:3px solid var(--jp-brand-color1,#0072b2);background:var(--jp-layout-color2,#eee)}
.source-view .gap{color:var(--jp-content-font-color2,#59636e);font-style:italic}
.source-view .c>[class^=k],.source-view .ow{color:var(--jp-mirror-editor-keyword-color,inherit);font-weight:600}
.source-view .c>[class^=s]{color:var(--jp-mirror-editor-string-color,inherit)}
.source-view .c>[class^=m]{color:var(--jp-mirror-editor-number-color,inherit)}
.source-view .nf,.source-view .nc{color:var(--jp-mirror-editor-def-color,inherit)}
.source-view .c>[class^=c]{color:var(--jp-content-font-color2,#59636e);font-style:italic}
</style>"""


def _as_html(view: SourceView) -> str:
    colored = iter(_colored([piece.text for kind, piece in _pieces(view) if kind == "line"]))
    rows = []
    for kind, piece in _pieces(view):
        if kind == "gap":
            rows.append(f'<div class="gap"><span class="n">⋯</span>{piece} lines of docstring</div>')
        elif kind == "line":
            marked = ' class="has-note"' if piece.note is not None else ""
            rows.append(
                f'<div{marked}><span class="n">{piece.number}</span><span class="c">{next(colored)}</span></div>'
            )
        else:
            rows.append(f'<div class="note" role="note">{_note_html(piece.note)}</div>')
    name, location, version = (html.escape(text) for text in (view.name, view.location, view.version))
    return (
        f'{_STYLE}<figure class="source-view"><figcaption><b>{name}</b> · {location} · {version}</figcaption>'
        f'<div class="lines" tabindex="0" role="region" aria-label="Source of {name}">{"".join(rows)}</div></figure>'
    )


def _notes(view: SourceView) -> list[SourceLine]:
    return [line for line in view.lines if line.note is not None]


def _notes_as_text(view: SourceView) -> str:
    """The notes with their line numbers, and where to read the lines."""
    first, last = view.lines[0].number, view.lines[-1].number
    shown = [f"{view.name} · {view.location} · {view.version}", f"lines {first} to {last}: run this cell to see them"]
    shown += [f"{line.number} │ {piece}" for line in _notes(view) for piece in (line.note or "").splitlines()]
    return "\n".join([*shown, *filter(None, [view.link])])


def _notes_as_html(view: SourceView) -> str:
    """The same as a small table that needs no style sheet."""
    name, location, version = (html.escape(text) for text in (view.name, view.location, view.version))
    lines = f"lines {view.lines[0].number} to {view.lines[-1].number}"
    where = f'<a href="{html.escape(view.link)}">{lines}</a>' if view.link else lines
    rows = "".join(
        f'<tr><th scope="row">{line.number}</th><td style="text-align:left">{_note_html(line.note or "")}</td></tr>'
        for line in _notes(view)
    )
    table = f"<table><tbody>{rows}</tbody></table>" if rows else ""
    caption = f"<b>{name}</b> · {location} · {version} · {where} (run this cell to see them here)"
    return f'<div class="source-notes"><p>{caption}</p>{table}</div>'


def _note_html(note: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(note)).replace("\n", "<br>")


def _colored(lines: list[str]) -> list[str]:
    """Lines of Python as HTML, keywords and so on in spans with pygments' usual class names."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    lexer = PythonLexer(stripnl=False, ensurenl=False)
    return highlight("\n".join(lines), lexer, HtmlFormatter(nowrap=True)).removesuffix("\n").split("\n")
