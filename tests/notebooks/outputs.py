"""What a committed notebook's outputs must be like: `python tests/notebooks/outputs.py notebooks/03_*.ipynb`.

It needs nbformat alone, so that the check before a commit is quick.
"""

import sys
from pathlib import Path

import nbformat

LARGEST = 300_000  # bytes of a notebook


def complaints(notebook):
    """A sentence for each code cell that was not run in its turn, or that shows an error or a warning."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = []
    for turn, cell in enumerate(code, start=1):
        first = cell.source.partition("\n")[0]
        if cell.execution_count != turn:
            found.append(f"code cell {turn} has the execution count {cell.execution_count}: {first}")
        if any(output.output_type == "error" for output in cell.outputs):
            found.append(f"code cell {turn} shows an error: {first}")
        if any(output.get("name") == "stderr" for output in cell.outputs):
            found.append(f"code cell {turn} shows a warning (stderr): {first}")
        if "library-source" in cell.metadata.get("tags", []) and not all(map(_holds_notes_alone, cell.outputs)):
            found.append(f"code cell {turn} shows library source, of which only our notes are committed: {first}")
    return found


def _holds_notes_alone(output):
    return output.get("data", {}).get("text/html", "").startswith('<div class="source-notes">')


def main(paths):
    """Print what is wrong with the notebooks at these paths; 1 if something is."""
    found = []
    for path in map(Path, paths):
        found += [f"{path.name}: {complaint}" for complaint in complaints(nbformat.read(path, as_version=4))]
        if path.stat().st_size > LARGEST:
            found.append(f"{path.name} has {path.stat().st_size:,} bytes, at most {LARGEST:,} are fine")
    print("\n".join([*found, "`make notebooks` runs them and writes their outputs."] if found else found), end="")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
