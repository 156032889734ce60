"""Wrong answers to each exercise, and a piece of what its check then says.

One dictionary a notebook: exercise -> [(code that replaces the exercise cell, expected words), …].
"""

from importlib import import_module
from pathlib import Path

WRONG_ANSWERS = {}
for _file in sorted(Path(__file__).parent.glob("wrong_answers_*.py")):
    WRONG_ANSWERS |= import_module(_file.stem).WRONG_ANSWERS
