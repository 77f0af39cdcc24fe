"""Before something is changed: who does it, and whether they mean it."""

from __future__ import annotations

import getpass
import socket
import sys

from ..reports._words import plain
from ._exits import Exits, Stop

__all__ = ["author", "confirm", "with_reason"]


def confirm(question: str, *, yes: bool) -> None:
    """Go on only if somebody says so.

    Args:
        question: What is asked, on the error output: the standard output may be a file.
        yes: It has been said already.

    Raises:
        Stop: The answer was no, or nobody is there to be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise Stop(
            Exits.UNCONFIRMED,
            "nothing was changed: nobody can be asked where there is no terminal; say --yes",
        )
    sys.stderr.write(f"{plain(question)} [y/N] ")
    sys.stderr.flush()
    try:
        answer = sys.stdin.readline()
    except UnicodeDecodeError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise Stop(Exits.UNCONFIRMED, "nothing was changed")


def author() -> str:
    """Who does it, as notes have it: ``user@host``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def with_reason(text: str, why: str) -> str:
    """What was done, and the reason that was given."""
    return f"{text}: {why}" if why else text
