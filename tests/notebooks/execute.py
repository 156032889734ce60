"""Run notebooks top to bottom and write their outputs: `make notebooks`, `make notebooks NAME=03`."""

import base64
import io
import sys
import time
from pathlib import Path

import nbformat
from PIL import Image, ImageChops

from course import execute, read
from helpers.library_source import stored_outputs

COLOURS = (32, 48, 64, 128)  # of a committed picture: a chart needs few, a photograph or a colour map more
FAR, FEW = 40, 0.005  # by how much, of 255, a value may be off, and in which fraction of the values it may be more


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
                output.data["image/png"] = smaller(output.data["image/png"])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.perf_counter() - started:.0f} s, {path.stat().st_size / 1000:.0f} KB")


def smaller(png):
    """The picture, as base64, with the smallest palette that comes close to it; as it was if that saves nothing."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    for colours in COLOURS:
        reduced = picture.quantize(colours, dither=Image.Dither.NONE)
        off = ImageChops.difference(picture, reduced.convert("RGB")).histogram()  # 256 counts for each of 3 colours
        if sum(count for value, count in enumerate(off) if value % 256 > FAR) < FEW * sum(off):
            break
    packed = io.BytesIO()
    reduced.save(packed, "PNG", optimize=True)
    palette = base64.b64encode(packed.getvalue()).decode()
    return palette if len(palette) < len(png) else png


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write_outputs(Path(name))
