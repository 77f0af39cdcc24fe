"""Files that a command line names."""

from __future__ import annotations

import sys
from pathlib import Path

from ._exits import Exits, Stop

__all__ = ["read_bytes", "write_bytes"]


def read_bytes(file: str) -> bytes:
    """What is in a file, or comes in.

    Raises:
        Stop: It is not there, or not to be read.
    """
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as exc:
        raise Stop(Exits.NOT_FOUND, f"{file!r} cannot be read: {exc.strerror}") from exc


def write_bytes(file: str, data: bytes) -> None:
    """Write a file, in place of what was there.

    Raises:
        Stop: It cannot be written.
    """
    try:
        Path(file).write_bytes(data)
    except OSError as exc:
        raise Stop(Exits.STORE, f"{file!r} cannot be written: {exc.strerror}") from exc
