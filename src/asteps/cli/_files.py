"""Files that a command line names."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from contextlib import suppress
from pathlib import Path

from ._exits import Exits, Stop

__all__ = ["read_bytes", "write_bytes"]

_DATABASE = b"SQLite format 3\x00"


def read_bytes(file: str) -> bytes:
    """What is in a file, or comes in.

    Raises:
        Stop: It is not there, or not to be read.
    """
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except (OSError, ValueError) as exc:
        raise Stop(Exits.NOT_FOUND, f"{file!r} cannot be read: {_why(exc)}") from exc


def write_bytes(file: str, data: bytes) -> None:
    """Write a file, in place of what was there: all of it and for good, or nothing.

    Raises:
        Stop: It cannot be written, or is a database, which nobody wants to lose by a slip.
    """
    path = Path(os.path.realpath(file))
    try:
        if not path.exists():
            _replace(path, data, None)
        elif not path.is_file():  # a device or a pipe
            path.write_bytes(data)
        elif _is_database(path):
            raise Stop(Exits.USAGE, f"{file!r} is a SQLite database; it was left as it is")
        elif os.access(path, os.W_OK):
            _replace(path, data, stat.S_IMODE(path.stat().st_mode))
        else:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, ValueError) as exc:
        raise Stop(Exits.STORE, f"{file!r} cannot be written: {_why(exc)}") from exc


def _why(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _is_database(path: Path) -> bool:
    with suppress(PermissionError), path.open("rb") as found:
        return found.read(len(_DATABASE)) == _DATABASE
    return False


def _replace(path: Path, data: bytes, mode: int | None) -> None:
    temporary = path.with_name(f".asteps-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as made:
            if mode is not None:
                temporary.chmod(mode)
            made.write(data)
            made.flush()
            os.fsync(made.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
