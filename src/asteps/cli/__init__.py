"""The command line ``asteps``: look at stored runs, watch them, and put them right.

Needs the extra ``cli``. `asteps.cli.live` draws a run while a script works at it.
"""

from __future__ import annotations

import sys

from ..errors import MissingDependencyError

__all__ = ["main"]


def main() -> None:
    """Do what the command line says, and end the process with the exit code that tells how."""
    try:
        from ._app import run  # noqa: PLC0415 - without the extra, one line says what to install
    except MissingDependencyError as exc:
        sys.stderr.write(f"asteps: {exc}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # so soon
        raise SystemExit(130) from None
    raise SystemExit(run(sys.argv[1:]))
