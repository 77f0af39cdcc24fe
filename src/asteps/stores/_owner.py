"""Who is alive on one host: a lock file per owner, which dies with its process.

Shared by the stores whose storage is a path. An owner is known by a name such as
``web-3:4711:9f86d081884c7d659a2feaa0c55ad015`` and holds the lock on ``<prefix>-owner.<hex>``,
where ``<hex>`` is the name's last part. The kernel frees the lock however the process ends, so
nothing has to expire and no pid is ever compared: host and pid are there for people to read.

Everything here blocks, if briefly: call it from a worker thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import sys
import threading
import weakref
from functools import partial

__all__ = ["Owner"]

# A name comes back from the storage, where anybody may have written it. Only the hexadecimal part
# ever becomes part of a path.
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}:[0-9]{1,10}:([0-9a-f]{32})", re.ASCII)
_CREATE = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0)
_OPEN = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)

if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int) -> bool:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _remove(path: str, fd: int) -> None:
        """Give the lock back and remove its file; an open file cannot be removed here."""
        os.close(fd)
        with contextlib.suppress(OSError):  # somebody looks at it, and will remove it
            os.unlink(path)

else:
    import fcntl

    def _lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _remove(path: str, fd: int) -> None:
        """Remove a locked file, then give the lock back: nobody finds it there and free."""
        try:
            with contextlib.suppress(OSError):
                # The name may belong to another file by now only if someone replaced it by hand.
                if os.path.samestat(os.fstat(fd), os.lstat(path)):
                    os.unlink(path)
        finally:
            os.close(fd)


class Owner:
    """One client of one storage, and its view of the others.

    Two clients in one process are two owners. A forked child is not its parent: it gets a name of
    its own when it asks for one, and does not keep its parent's lock alive. Safe to use from
    several threads.

    Args:
        prefix: Path that the lock files' names begin with; every client of one storage gives the
            same one (``/data/runs.db`` makes ``/data/runs.db-owner.<hex>``). Its directory exists.
    """

    def __init__(self, prefix: str | os.PathLike[str], /) -> None:
        self._prefix = os.path.realpath(prefix)
        self._mutex = threading.Lock()
        self._name: str | None = None
        self._finalizer: weakref.finalize[[str, int], Owner] | None = None

    @property
    def name(self) -> str | None:
        """This owner's name, ``None`` unless it has been taken. Never blocks."""
        return self._name

    def take(self) -> str:
        """Create and lock this owner's file, unless that has been done; return its name.

        Files that dead owners of the same storage left behind are removed on the way.

        Raises:
            OSError: The directory is missing, read-only, full, or knows no locks.
        """
        with self._mutex:
            if self._name is None:
                self._sweep()
                host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "localhost"
                token, path, fd = self._create()
                # Also when the owner is dropped without `close`, and when the interpreter ends.
                self._finalizer = weakref.finalize(self, _remove, path, fd)
                self._name = f"{host}:{os.getpid()}:{token}"
                if hasattr(os, "register_at_fork"):
                    os.register_at_fork(after_in_child=partial(_forget, weakref.ref(self)))
            return self._name

    def alive(self, name: str, /) -> bool:
        """Whether the process that took this name still has it.

        A name that no owner can have is nobody's. A dead owner's file is removed.

        Raises:
            OSError: The file is there, but this process may not look at it.
        """
        if name == self._name:
            return True
        match = _NAME.fullmatch(name)
        return match is not None and _alive(f"{self._prefix}-owner.{match[1]}")

    def close(self) -> None:
        """Remove the file and free the lock. A second call does nothing."""
        with self._mutex:
            self._name = None
            if self._finalizer is not None:
                self._finalizer()
                self._finalizer = None

    def _create(self) -> tuple[str, str, int]:
        while True:
            token = secrets.token_hex(16)
            path = f"{self._prefix}-owner.{token}"
            fd = os.open(path, _CREATE, 0o666)
            try:
                # Between creation and lock somebody's sweep may have taken the file for a dead
                # owner's: it is then locked, or gone. Nobody knows the name yet, so take another.
                if _lock(fd) and _is_there(path, fd):
                    return token, path, fd
            except BaseException:
                _remove(path, fd)
                raise
            os.close(fd)

    def _sweep(self) -> None:
        """Remove what dead owners left, as far as that is possible."""
        directory, base = os.path.split(self._prefix)
        left = re.compile(re.escape(base) + r"-owner\.[0-9a-f]{32}", re.ASCII)
        with contextlib.suppress(OSError):
            for found in os.listdir(directory):
                if left.fullmatch(found):
                    with contextlib.suppress(OSError):
                        _alive(os.path.join(directory, found))


def _alive(path: str) -> bool:
    try:
        fd = os.open(path, _OPEN)
    except FileNotFoundError:
        return False
    try:
        free = _lock(fd)
    except BaseException:
        os.close(fd)
        raise
    if not free:
        os.close(fd)
        return True
    _remove(path, fd)
    return False


def _is_there(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _forget(reference: weakref.ref[Owner]) -> None:
    """In a forked child: the lock is the parent's alone, its file not the child's to remove."""
    owner = reference()
    if owner is None:
        return
    owner._mutex = threading.Lock()  # the parent's may be held by a thread that is not here
    owner._name = None
    if owner._finalizer is not None:
        kept = owner._finalizer.detach()
        owner._finalizer = None
        if kept is not None:
            os.close(kept[2][1])
