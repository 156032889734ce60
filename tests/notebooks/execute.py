"""Run notebooks top to bottom and write their outputs: `make notebooks`, `make notebooks NAME=03`."""

import sys
import time
from pathlib import Path

import nbformat

from course import execute, read
from helpers.library_source import stored_outputs
from stored import stored


def write_outputs(path):
    """Run one notebook in place. Metadata that changes from run to run is left out."""
    notebook = read(path)
    started = time.perf_counter()
    execute(notebook, path.parent, timeout=600)
    for cell in notebook.cells:
        if cell.cell_type == "code" and "library-source" in cell.metadata.get("tags", []):
            cell.outputs = [nbformat.from_dict(output) for output in stored_outputs(cell.outputs)]
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                store_picture(output)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.perf_counter() - started:.0f} s, {path.stat().st_size / 1000:.0f} KB")


def store_picture(output):
    """Replace an output's PNG by the smallest file that looks the same, with the size at which a page shows it."""
    kind, data = stored(output.data.pop("image/png"))
    output.data[kind] = data
    if "image/png" in output.metadata:
        output.metadata[kind] = output.metadata.pop("image/png")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write_outputs(Path(name))
