"""A notebook that was run beside the committed one: where they differ, in words.

Text is compared character by character: what was printed, the text and the HTML of every result, an error's kind and
message, the kinds of outputs and their order. Of a picture or a widget it is compared that there is one. A cell tagged
`nbval-ignore-output` may show anything; one tagged `raises-exception` may end in an error, any other may not.
"""

import difflib

from course import tags

SHOWN_ONLY = ("image/", "application/vnd.jupyter.widget")  # pixels depend on fonts, ids of widgets are random
STORED_AS = {"image/jpeg": "image/png"}  # a run gives a PNG, which the committed notebook may hold as JPEG (stored.py)


def differences(committed, run):
    """A paragraph for each code cell of `run` that shows something else than the committed notebook's same cell."""
    found = []
    for number, (before, after) in enumerate(zip(committed.cells, run.cells, strict=False), start=1):
        if before.cell_type == "code":
            complaint = _complaint(before, after)
            if complaint:
                found.append(f"cell {number}:\n{before.source}\n{complaint}")
    return found


def _complaint(before, after):
    error = next((output for output in after.outputs if output.output_type == "error"), None)
    if error and "raises-exception" not in tags(before):
        return f"raised {error.ename}: {error.evalue}\n" + "\n".join(error.traceback)
    if "nbval-ignore-output" in tags(before):
        return ""
    return "\n".join(difflib.unified_diff(shows(before), shows(after), "committed", "run", lineterm=""))


def shows(cell):
    """What a code cell's outputs say, line by line."""
    return [line for output in cell.outputs for line in _lines(output)]


def _lines(output):
    if output.output_type == "stream":
        return _block(output.name, output.text)
    if output.output_type == "error":
        return _block(f"error {output.ename}", output.evalue)
    return [
        line
        for kind, content in sorted((STORED_AS.get(kind, kind), content) for kind, content in output.data.items())
        for line in _block(f"{output.output_type} {kind}", "(not compared)" if kind.startswith(SHOWN_ONLY) else content)
    ]


def _block(title, content):
    """The content's lines under its title; with their ends, so that a missing line break is a difference, too."""
    return [f"[{title}]", *(repr(line) for line in str(content).splitlines(keepends=True))]
