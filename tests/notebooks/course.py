"""Reading and running the course's notebooks: what the tests of this folder share."""

import os
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SOLUTION = re.compile(r"<details>\s*<summary>Solution</summary>.*?```python\n(.*?)```.*?</details>", re.DOTALL)
CHECK = re.compile(r"""check\(\s*["'](\d\d\.\d+)["']""")


def read(path):
    """The notebook as nbformat gives it."""
    return nbformat.read(path, as_version=4)


def tags(cell):
    """A cell's tags."""
    return cell.metadata.get("tags", [])


def execute(notebook, folder, **settings):
    """Run the notebook's cells in a new kernel that works in `folder`; their outputs are replaced by what comes.

    `settings` are those of nbclient's `NotebookClient`. Text that was printed in one go is joined, so that outputs do
    not depend on when the kernel happened to flush; what a cell shows between two prints stays between them.
    """
    os.environ["HELPERS_PROGRESS"] = "off"  # which the kernel gets: nobody has solved anything
    NotebookClient(
        notebook,
        **{"timeout": 300, "record_timing": False, "store_widget_state": False} | settings,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)


def joined(outputs):
    """The outputs, with neighbours of one stream made one (nbclient's way moves text ahead of pictures)."""
    kept = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def exercises(notebook):
    """(name, index of the exercise cell, index of the check cell, solution) of each exercise."""
    found = []
    for index, cell in enumerate(notebook.cells):
        if "exercise" not in tags(cell):
            continue
        check, fold = notebook.cells[index + 1 : index + 3]
        name = CHECK.search(check.source)
        solution = SOLUTION.search(fold.source)
        assert name, f"cell {index + 1}: an exercise cell is followed by its check cell"
        assert solution, f"exercise {name[1]}: the cell after its check holds the solution in a fold"
        found.append((name[1], index, index + 1, solution[1]))
    return found
