"""`python -m helpers.sources` is the former name of `python -m helpers.models`, and still works."""

from helpers.models.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main())
