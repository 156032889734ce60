"""Run notebooks top to bottom and write their outputs: `make notebooks`, `make notebooks NAME=03`."""

import base64
import io
import sys
import time
from pathlib import Path

import nbformat
from PIL import Image, ImageChops, ImageStat

from course import execute, read
from helpers.library_source import stored_outputs

PALETTES = (32, 64, 128)  # colours of a committed picture: charts need no more, and take a third of the space
UNSEEN = 2.0  # levels of 255 by which a smaller palette may change a picture, on average


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
    """The picture, as base64, with the smallest of `PALETTES` that nobody sees; as it was if that saves nothing."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    for colours in PALETTES:
        few = picture.quantize(colours, dither=Image.Dither.NONE)
        if max(ImageStat.Stat(ImageChops.difference(picture, few.convert("RGB"))).mean) <= UNSEEN:
            break
    packed = io.BytesIO()
    few.save(packed, "PNG", optimize=True)
    palette = base64.b64encode(packed.getvalue()).decode()
    return palette if len(palette) < len(png) else png


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write_outputs(Path(name))
