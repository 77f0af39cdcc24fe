"""``python -m asteps.cli``: the command line, also where its script is not on the path."""

from __future__ import annotations

from . import main

if __name__ == "__main__":
    main()
