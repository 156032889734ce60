"""Write a teacher's page for each notebook: `make teaching` makes docs/room/teaching/NN.md.

What only a teacher can know is in `teaching.toml`. The minutes, the predictions and the mistakes that the exercises
recognize are read from the notebooks, the exercises and their tests, so that the pages stay up to date.
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
FILLED_IN = re.compile(r"(?:\\-)?\d+(?:\\\.\d+)?|'[^']*'")  # a number or a quotation, as `re.escape` writes it
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
        f"**The idea to take home.** {told['idea']}",
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
            "## Mistakes that the exercises recognize\n\n`check` says this about answers that learners are likely to "
            "give (… stands for a value that it fills in). If several people get the same message, explain it to "
            "everyone.\n\n" + bullets(mistakes)
        )
    return "\n\n".join(parts) + "\n"


def minutes(first_cell: str) -> str:
    """What the notebook's first cell says about time: its sentence and its table."""
    beginning = first_cell.index("**Time**")
    rest = first_cell[beginning:].removeprefix("**Time**").strip()
    told = re.split(r"\n\n(?=Before:|Next:|Click )", rest)[0]
    return LINK.sub(r"\1", told[:1].upper() + told[1:])


def predictions(texts: list[str]) -> list[str]:
    """The questions in the notebook's Predict boxes, each on one line."""
    boxes = [box for text in texts for box in PREDICT.findall(re.sub(r"<details>.*?</details>", "", text, flags=re.S))]
    return [LINK.sub(r"\1", " ".join(line.lstrip("> ") for line in box.strip().splitlines())) for box in boxes]


def wrong_answers(number: str) -> list[str]:
    """What the exercises' checks say to the wrong answers that the tests try: whole messages, each of them once.

    Messages that are not in the notebook's own file of checks, such as the one for an answer of the wrong type, are
    left out.
    """
    file = ROOT / "tests" / "notebooks" / f"wrong_answers_{number}.py"
    checks = ROOT / "helpers" / "exercises" / f"nb{number}.py"
    if not file.exists() or not checks.exists():
        return []
    messages = check_messages(checks.read_text(encoding="utf-8"))
    said: dict[str, None] = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "WRONG_ANSWERS":
            for key, answers in zip(node.value.keys, node.value.values, strict=True):  # type: ignore[attr-defined]
                for answer in getattr(answers, "elts", ()):
                    words = answer.elts[1]
                    if isinstance(words, ast.Constant) and (message := whole_message(str(words.value), messages)):
                        said[f"{ast.literal_eval(key)}: {message}"] = None
    return list(said)


def check_messages(source: str) -> list[str]:
    """Every text in a file of checks except docstrings, with … for each value that is filled in.

    >>> check_messages('require(n == 30, f"not {n}. Count the rows.")')
    ['not …. Count the rows.']
    """
    tree = ast.parse(source)
    formatted = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    skipped = {id(part) for node in formatted for part in ast.walk(node)}
    skipped |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [
        "".join(str(getattr(part, "value", "")) if isinstance(part, ast.Constant) else "…" for part in node.values)
        for node in formatted
    ]
    texts += [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped
    ]
    return [" ".join(text.split()) for text in texts]


def whole_message(words: str, messages: list[str]) -> str | None:
    """The message that contains these words, where a number or a quotation may be one that is filled in, or None.

    >>> whole_message("these are 8 rows", ["Count again.", "Look at the shape: these are … rows."])
    'Look at the shape: these are … rows.'
    """
    pattern = FILLED_IN.sub(lambda found: f"(?:{found[0]}|…)", re.escape(words))
    return next((message for message in messages if re.search(pattern, message)), None)


def bullets(lines: list[str]) -> str:
    """A list in Markdown."""
    return "\n".join(f"- {line}" for line in lines)


def pages() -> dict[str, str]:
    """File name -> text, for the pages of all notebooks."""
    told = tomllib.loads((HERE / "teaching.toml").read_text(encoding="utf-8"))
    notebooks = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    return {f"{notebook.name[:2]}.md": page(notebook, told[notebook.name[:2]]) for notebook in notebooks}


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for name, text in pages().items():
        (PAGES / name).write_text(text, encoding="utf-8")
