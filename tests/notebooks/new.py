"""Start a notebook from the course's template: `make new NAME=11_my_topic`."""

import re
import sys

import nbformat

from course import NOTEBOOKS

INTRODUCTION = """# {number}. {title}

One sentence: what the reader will have seen at the end.

**You need** what notebook {before_number} showed, about 1 GB of memory, no GPU.

**You will be able to**
- name …
- compute … by hand
- check …

**Time** about 45 minutes for the sections and about 5 for the exercises. Before: [{before}]({before})."""
SETUP = """import torch

from helpers import check, load_model, load_tokenizer, use_course_style

use_course_style()
tokenizer = load_tokenizer("smollm2-135m")
model = load_model("smollm2-135m")"""
EXERCISE = """### Exercise {number}.1: title  ★☆☆

The task. About 5 minutes.

<details><summary>Hint</summary>

Where to look.

</details>"""
SOLUTION = """<details><summary>Solution</summary>

```python
answer_1 = 42
```

</details>"""


def template(name):
    """The new notebook, with one of everything that the course asks of a notebook."""
    number, _, topic = name.partition("_")
    before = NOTEBOOKS[-1].name
    words = {"number": number, "title": topic.replace("_", " ").capitalize(), "before": before}
    markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    return nbformat.v4.new_notebook(
        cells=[
            markdown(INTRODUCTION.format(**words, before_number=before[:2])),
            code(SETUP),
            markdown("## 1. First idea\n\n> **Predict.** What shape do you expect?"),
            code('ids = tokenizer("Hello", return_tensors="pt").input_ids\nids.shape'),
            markdown("## Recap\n\nIn this notebook you …\n\n## Exercises"),
            markdown(EXERCISE.format(**words)),
            code("answer_1 = ...", metadata={"tags": ["exercise"]}),
            code(f'check("{number}.1", answer_1)'),
            markdown(SOLUTION),
        ]
    )


def main(arguments):
    """Write the notebook, unless there is one of that name."""
    if len(arguments) != 1 or not re.fullmatch(r"\d\d_[a-z0-9_]+", arguments[0]):
        return "Say which: make new NAME=11_my_topic (two digits, small letters)."
    path = NOTEBOOKS[-1].parent / f"{arguments[0]}.ipynb"
    if path.exists():
        return f"{path.name} is already there."
    nbformat.write(template(arguments[0]), path)
    print(f"notebooks/{path.name} is written. Next: its check in helpers/exercises/nb{arguments[0][:2]}.py.")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
