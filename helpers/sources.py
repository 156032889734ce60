"""`python -m helpers.sources` is `python -m helpers.models`, under the name it had first."""

from helpers.models.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main())
