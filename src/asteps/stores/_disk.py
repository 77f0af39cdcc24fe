"""What `FileStore` asks of the operating system, and what its errors mean."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

from ..errors import StoreRefusedError, StoreUnavailableError, UncertainWriteError

__all__ = [
    "Progress",
    "closing",
    "is_at",
    "make_directory",
    "sync",
    "sync_directory",
    "translated",
    "try_lock",
    "write",
]

# Trying again does not help until somebody has done something about it.
_REFUSED = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOSPC,
        errno.ENOSYS,
        errno.ENOTDIR,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EROFS,
    }
)


class Progress:
    """How far a call has come, for the error that ends it."""

    uncertain = False  # from here on the write may have landed


@contextlib.contextmanager
def translated(path: str) -> Iterator[Progress]:
    """Turn an `OSError` into the `StoreError` that says what became of the data."""
    progress = Progress()
    try:
        yield progress
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "?")
        said = f"{path!r}: {error.strerror} ({code})"
        if progress.uncertain:
            raise UncertainWriteError(f"{said}, perhaps after it was written") from error
        if error.errno in _REFUSED:
            raise StoreRefusedError(f"{said}; nothing was written") from error
        raise StoreUnavailableError(f"{said}; nothing was written, try again") from error


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view = view[written:]
        at += written


def sync(fd: int) -> None:
    """Return when what was written would outlive a power cut."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:  # macOS: its fsync leaves the data in the disk's cache
        fcntl.fcntl(fd, full)
    elif hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def sync_directory(path: str) -> None:
    with closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        os.fsync(fd)


def make_directory(path: str) -> None:
    """Make a directory, and those above it, to stay."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    make_directory(above)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    sync_directory(above)
