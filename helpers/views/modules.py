"""A widget's page as one script, made of the modules under `js/`.

anywidget passes one script to the browser as text, and a page of the course requests no other script from a server. The
modules that a page imports are therefore combined into one text here, each in a function of its own, in the order in
which they depend on each other. The sources stay plain ES modules, which a browser, Node, a linter and a type checker
can read as they are.
"""

import re
from functools import cache
from pathlib import Path

PAGES = Path(__file__).parent / "js"
_IMPORT = re.compile(r'^import \{([^}]*)\} from "(\.[^"]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class) (\w+))", re.MULTILINE)
_DOC_COMMENT = re.compile(r"^ *(?:/\*\*(?:[^*]|\*(?!/))*\*/)\n|/\*\* @(?:type|param) [^\n]*?\*/ ", re.MULTILINE)


@cache
def front(name: str) -> str:
    """The script of a page, such as "attention.js": the modules that it imports, then its own.

    A module may `import { name } from "./file.js"` and `export` functions, constants and classes where it declares
    them. Comments that only document types are left out. Raises `ValueError` for modules that import each other in a
    circle.

    >>> front("sharpen.js").endswith("export default { render };\\n")
    True
    """
    parts: dict[Path, str] = {}
    _collect(PAGES / name, parts, ())
    *modules, page = parts.values()
    return "".join(modules) + page


def _collect(file: Path, parts: dict[Path, str], waiting: tuple[Path, ...]) -> None:
    """Add a module to `parts`, after those that it imports."""
    if file in waiting:
        circle = " -> ".join(step.name for step in (*waiting[waiting.index(file) :], file))
        raise ValueError(f"These modules import each other in a circle: {circle}.")
    source = file.read_text(encoding="utf-8")
    needed = [(file.parent / place).resolve() for _, place in _IMPORT.findall(source)]
    for other in needed:
        if other not in parts:
            _collect(other, parts, (*waiting, file))
    exported = _EXPORT.findall(source)
    code = _IMPORT.sub(lambda found: f"const {{{found[1].replace(' as ', ': ')}}} = {_name(file, found[2])};\n", source)
    code = _EXPORT.sub("", _DOC_COMMENT.sub("", code))
    if not waiting:
        parts[file] = code
    else:
        parts[file] = f"const {_name(file, file.name)} = (() => {{\n{code}return {{ {', '.join(exported)} }};\n}})();\n"


def _name(file: Path, place: str) -> str:
    """A module's name in the script: `hidden_states/grid.js` becomes `hidden_states_grid_js`."""
    path = (file.parent / place).resolve().relative_to(PAGES.resolve())
    return re.sub(r"\W", "_", path.as_posix())
