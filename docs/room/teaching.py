"""Write a page for the teacher of each notebook: `make teaching` makes docs/room/teaching/NN.md.

What only a teacher can know stands in `teaching.toml`. The minutes, the predictions and the mistakes that the exercises
recognize are read from the notebooks and their tests, so that the pages do not fall behind.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGES = HERE / "teaching"
PREDICT = re.compile(r"^> \*\*Predict\.\*\*[ \n](.*?)(?=^[^>]|\Z)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]+)\]\(([^)]*\.ipynb[^)]*)\)")
PLANS = {"short": "90 minutes", "half_day": "three hours", "two_days": "its part of two days for the whole course"}


def page(notebook: Path, told: dict[str, Any]) -> str:
    """The teacher's page of one notebook, in Markdown."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    title = texts[0].splitlines()[0].lstrip("# ")
    parts = [
        f"# Teaching {title}",
        f"Open the notebook: [{notebook.name}](../../../notebooks/{notebook.name}). `make slides` makes slides of it.",
        f"**What should stay.** {told['idea']}",
        "## How long it takes\n\n" + minutes(texts[0]),
        "## What to leave out\n\n| you have | do this |\n|---|---|\n"
        + "\n".join(f"| {name} | {told[key]} |" for key, name in PLANS.items()),
        "## What people get wrong\n\n| they believe | what helps |\n|---|---|\n"
        + "\n".join(f"| {belief} | {helps} |" for belief, helps in told["wrong"]),
        "## Questions for the room\n\nThese have no cell that answers them:\n\n" + bullets(told["ask"]),
    ]
    found = predictions(texts)
    if found:
        parts.append(
            "The notebook asks these before it shows the answer. Let everyone write an answer down first:\n\n"
            + bullets(found)
        )
    mistakes = wrong_answers(notebook.name[:2])
    if mistakes:
        parts.append(
            "## Mistakes that the exercises recognize\n\nWhat `check` says to an answer that a learner is likely to "
            "give. If several people are stuck, it is worth a word to all.\n\n" + bullets(mistakes)
        )
    return "\n\n".join(parts) + "\n"


def minutes(first_cell: str) -> str:
    """What the notebook's first cell says about time: its sentence, and its table."""
    beginning = first_cell.index("**Time**")
    rest = first_cell[beginning:].removeprefix("**Time**").strip()
    told = re.split(r"\n\n(?=Before:|Next:|Click )", rest)[0]
    return LINK.sub(r"\1", told[:1].upper() + told[1:])


def predictions(texts: list[str]) -> list[str]:
    """The questions in the notebook's Predict boxes, each on one line."""
    boxes = [box for text in texts for box in PREDICT.findall(re.sub(r"<details>.*?</details>", "", text, flags=re.S))]
    return [LINK.sub(r"\1", " ".join(line.lstrip("> ") for line in box.strip().splitlines())) for box in boxes]


def wrong_answers(number: str) -> list[str]:
    """What the exercises' checks say to the wrong answers that the tests try, each once."""
    file = ROOT / "tests" / "notebooks" / f"wrong_answers_{number}.py"
    if not file.exists():
        return []
    said: dict[str, None] = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "WRONG_ANSWERS":
            for key, answers in zip(node.value.keys, node.value.values, strict=True):  # type: ignore[attr-defined]
                for answer in getattr(answers, "elts", ()):
                    sentence = answer.elts[1]
                    if isinstance(sentence, ast.Constant):
                        said[f"{ast.literal_eval(key)}: … {sentence.value} …"] = None
    return list(said)


def bullets(lines: list[str]) -> str:
    """A list in Markdown."""
    return "\n".join(f"- {line}" for line in lines)


def pages() -> dict[str, str]:
    """Name of the file -> its text, of all notebooks."""
    told = tomllib.loads((HERE / "teaching.toml").read_text(encoding="utf-8"))
    notebooks = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    return {f"{notebook.name[:2]}.md": page(notebook, told[notebook.name[:2]]) for notebook in notebooks}


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for name, text in pages().items():
        (PAGES / name).write_text(text, encoding="utf-8")
