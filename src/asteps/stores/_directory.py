"""The blocking half of `FileStore`: files, locks and syncs. Every call runs in a worker thread."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import heapq
import os
import secrets
import string
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar
from urllib.parse import unquote

from .._store import (
    Browsed,
    Holder,
    RunFilter,
    Scanned,
    Status,
    StoredRun,
    StoreReport,
    Summary,
)
from ..errors import (
    BusyError,
    ConflictError,
    StateFormatError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
)
from . import _runlog
from ._disk import (
    Progress,
    closing,
    is_at,
    make_directory,
    sync,
    sync_directory,
    translated,
    try_lock,
    write,
)
from ._owner import Owner

__all__ = ["Directory"]

T = TypeVar("T")

# Lower case only, and no dot: names that differ still do where case is ignored, and none is
# special to any system. Everything else becomes the %xx of its UTF-8 bytes.
_PLAIN = frozenset(string.ascii_lowercase + string.digits + "-_")
_NAME_BYTES = 200  # a longer name is replaced by its hash
_ENDING = ".log"
_NEW = ".new"  # of a file that is going to be put in place
_LOCKS = 16  # runs share this many lock files, so a sync of one seldom waits for another's
_PATIENCE = 10.0  # seconds to wait for a lock: its holder is stopped, or its disk hangs
_SLACK = 64 * 1024  # bytes of saves that a small file may gather before it is compacted
_REMEMBERED = 10_000  # runs whose heads are kept in memory
_SCAN_BYTES = 4 * 1024 * 1024  # of records, after which a page of whole runs ends

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class Directory:
    """One client's view of a directory of runs. Safe to use from several threads.

    Args:
        path: The directory; made by the first call that needs it.
    """

    def __init__(self, path: str, /) -> None:
        self._path = os.path.abspath(path)
        self._mutex = threading.Lock()
        self._known: dict[str, _runlog.Log] = {}  # true while the file's nonce and size are
        self.owner = Owner(os.path.join(self._path, "lock"))

    def load(self, id: str, check: Callable[[], None], /) -> StoredRun | None:
        path = self._file(id)
        with translated(path), self._locked(id, check, exclusive=False):
            try:
                fd = os.open(path, _READ)
            except FileNotFoundError:
                return None
            with closing(fd):
                log, records = self._read(id, path, fd)
        return StoredRun(records, log.revision, log.head.summary)

    def save(
        self,
        id: str,
        changes: Mapping[str, bytes | None],
        expected: str | None,
        head: _runlog.Head,
        check: Callable[[], None],
        /,
    ) -> str:
        """Save, with all but the number of ``head`` given."""
        path = self._file(id)
        with translated(path) as progress, self._locked(id, check, exclusive=True):
            try:
                fd = os.open(path, _WRITE)
            except FileNotFoundError:
                if expected is not None:
                    raise ConflictError(id, expected, None) from None
                records = {key: value for key, value in changes.items() if value is not None}
                return self._replace(id, path, head, 1, records, None, progress)
            with closing(fd):
                log = self._head(id, path, fd)
                if (log.head.write_id, log.head.epoch) == (head.write_id, head.epoch):
                    # It may have been written, and its writer have died before it was synced.
                    progress.uncertain = True
                    sync(fd)
                    self._sync_directory()
                    return log.revision
                if log.revision != expected:
                    raise ConflictError(id, expected, log.revision)
                number = log.head.number + 1
                # Whole files of twice the size: each byte is copied about once, however long the
                # log grows, and a file is at most about twice as large as its run ever was.
                if log.end >= 2 * log.first_end + _SLACK:
                    _, records = self._read(id, path, fd)
                    for key, value in changes.items():
                        if value is None:
                            records.pop(key, None)
                        else:
                            records[key] = value
                    try:
                        return self._replace(id, path, head, number, records, fd, progress)
                    except OSError:
                        if progress.uncertain:
                            raise
                        # No room for a second file; perhaps there is some for one more frame.
                return self._append(id, fd, log, head, number, changes, progress)

    def delete(self, id: str, expected: str, check: Callable[[], None], /) -> None:
        path = self._file(id)
        with translated(path) as progress, self._locked(id, check, exclusive=True):
            try:
                fd = os.open(path, _READ)
            except FileNotFoundError:
                self._sync_directory()  # the call before this one may not have come so far
                return
            with closing(fd):
                log = self._head(id, path, fd)
            if log.revision != expected:
                raise ConflictError(id, expected, log.revision)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_temporary(path))
            os.unlink(path)
            progress.uncertain = True
            self._forget(id)
            self._sync_directory()

    def list_runs(
        self,
        status: Status | None,
        name: str | None,
        after: str | None,
        limit: int,
        check: Callable[[], None],
        /,
    ) -> list[tuple[str, Summary]]:
        wanted = RunFilter(statuses=(status,) if status else (), name=name)
        found: list[tuple[str, Summary]] = []
        with translated(self._path):
            ids, _ = self._ids(after)
            for id in ids:
                check()
                summary = self._try(id, self._summary, {})
                if summary is not None and wanted.accepts(id, summary):
                    found.append((id, summary))
                    if len(found) >= limit:
                        break
        return found

    def browse(
        self,
        wanted: RunFilter,
        before: tuple[float, str] | None,
        limit: int,
        check: Callable[[], None],
        /,
    ) -> Browsed:
        with translated(self._path):
            ids, damaged = self._ids(None, wanted.contains)

            def candidates() -> Iterator[tuple[float, str, Summary]]:
                for id in ids:
                    check()
                    summary = self._try(id, self._summary, damaged)
                    if summary is not None and wanted.accepts(id, summary):
                        place = (summary.updated_at, id)
                        if before is None or place < before:
                            yield *place, summary

            found = heapq.nlargest(limit + 1, candidates(), key=_place)
        page = [(id, summary) for _, id, summary in found[:limit]]
        return Browsed(page, damaged, found[limit - 1][:2] if len(found) > limit else None)

    def scan(
        self, wanted: RunFilter, after: str | None, limit: int, check: Callable[[], None], /
    ) -> Scanned:
        page: list[tuple[str, StoredRun]] = []
        size = 0
        last: str | None = None
        with translated(self._path):
            ids, damaged = self._ids(after, wanted.contains)
            for id in ids:
                if len(page) >= limit or size >= _SCAN_BYTES:
                    return Scanned(page, damaged, last)
                last = id
                check()
                summary = self._try(id, self._summary, damaged)
                if summary is None or not wanted.accepts(id, summary):
                    continue
                run = self._try(id, lambda id: self.load(id, check), damaged)
                # It may have been saved or deleted since one looked.
                if run is not None and wanted.accepts(id, run.summary):
                    page.append((id, run))
                    size += sum(map(len, run.records.values()))
        return Scanned(page, damaged, None)

    def inspect(self, check: Callable[[], None], /) -> StoreReport:
        with translated(self._path):
            if not os.path.isdir(self._path):
                raise StoreRefusedError(f"there is no directory {self._path!r}; nothing was made")
            ids, damaged = self._ids(None)
            counts: Counter[str] = Counter()
            held: list[tuple[str, str]] = []
            compacting = 0
            for id in ids:
                check()
                run = self._try(id, lambda id: self.load(id, check), damaged)
                if run is not None:
                    counts[run.summary.status] += 1
                    if run.summary.owner is not None:
                        held.append((id, run.summary.owner))
            size = 0
            with os.scandir(self._path) as files:
                for file in files:
                    with contextlib.suppress(FileNotFoundError):
                        size += file.stat(follow_symlinks=False).st_size
                    compacting += file.name.endswith(_NEW)
            living = {owner: self.owner.alive(owner) for owner in {owner for _, owner in held}}
        return StoreReport(
            kind="directory",
            where=self._path,
            format=_runlog.FORMAT,
            newest_format=_runlog.FORMAT,
            size_bytes=size,
            runs=dict(sorted(counts.items())),
            held=tuple(Holder(id, owner, living[owner]) for id, owner in held),
            damaged={id: str(error) for id, error in sorted(damaged.items())},
            facts={"files": len(ids), "unfinished_files": compacting},
        )

    def acquire(self, id: str, check: Callable[[], None], /) -> str:
        path = self._file(id)
        with translated(path):
            make_directory(self._path)
            name = self.owner.take()
            check()
            summary = self._summary(id)
            owner = summary and summary.owner
            if owner and owner != name and self.owner.alive(owner):
                raise BusyError(id, owner)
        return name

    # --- names ----------------------------------------------------------------------------------

    def _file(self, id: str) -> str:
        return os.path.join(self._path, _file_name(id))

    def _ids(
        self, after: str | None, contains: str = ""
    ) -> tuple[list[str], dict[str, StoreError]]:
        """The ids of all runs in their order, and the files that do not even tell theirs."""
        ids: list[str] = []
        damaged: dict[str, StoreError] = {}
        try:
            files = os.listdir(self._path)
        except FileNotFoundError:
            return ids, damaged
        for file in files:
            id = self._try(file, self._id, damaged)
            if id is not None and contains in id and (after is None or id > after):
                ids.append(id)
        ids.sort()
        return ids, damaged

    def _try(
        self, what: str, read: Callable[[str], T | None], damaged: dict[str, StoreError]
    ) -> T | None:
        """Read it, or note why that cannot be done, so that the others can be read."""
        try:
            with translated(os.path.join(self._path, what)):
                return read(what)
        except StoreError as exc:
            damaged[what] = exc
            return None

    def _id(self, file: str) -> str | None:
        """The run that a file of this name holds, ``None`` where it is no run's."""
        if file.startswith("run-") and file.endswith(_ENDING):
            id = unquote(file[len("run-") : -len(_ENDING)], errors="replace")
        elif file.startswith("hash-") and file.endswith(_ENDING):
            path = os.path.join(self._path, file)
            try:
                fd = os.open(path, _READ)
            except FileNotFoundError:
                return None
            with closing(fd):
                start = os.pread(fd, _runlog.HEADER_BYTES, 0)
            id = _runlog.read_header(start, repr(path))[1]
        else:
            return None
        return id if _file_name(id) == file else None

    # --- locks ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self, id: str, check: Callable[[], None], *, exclusive: bool) -> Iterator[None]:
        """Hold the lock of the run's file; nobody else changes it, or for ``exclusive`` reads it.

        The lock is a file of its own, as the run's is replaced when it is compacted: who waited
        for the old one would append to a file that nobody reads.
        """
        path = os.path.join(self._path, f"lock-{zlib.crc32(id.encode()) % _LOCKS:x}")
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        end = time.monotonic() + _PATIENCE
        pause = 0.0005
        while True:
            fd = self._open_lock(path, make=exclusive)
            if fd is None:  # nobody has written here, or only into what this is a copy of
                yield
                return
            with closing(fd):
                while not try_lock(fd, kind):
                    check()
                    if time.monotonic() > end:
                        raise StoreUnavailableError(
                            f"{path!r} has been locked for {_PATIENCE:g} seconds; "
                            "is a process that uses this directory stopped, or its disk hanging?"
                        )
                    time.sleep(pause)
                    pause = min(2 * pause, 0.01)
                try:
                    if is_at(fd, path):  # else somebody tidied it away while this one waited
                        yield
                        return
                finally:
                    # Closing is not enough where a fork is about to hold a copy.
                    fcntl.flock(fd, fcntl.LOCK_UN)

    def _open_lock(self, path: str, *, make: bool) -> int | None:
        if make:
            try:
                return os.open(path, _WRITE | os.O_CREAT, 0o666)
            except FileNotFoundError:
                make_directory(self._path)
                return os.open(path, _WRITE | os.O_CREAT, 0o666)
        try:
            return os.open(path, _WRITE)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
                raise
        return os.open(path, _READ)  # enough for a reader's lock

    # --- reading --------------------------------------------------------------------------------

    def _read(self, id: str, path: str, fd: int) -> tuple[_runlog.Log, dict[str, bytes]]:
        """All of a file. The lock is held."""
        with open(fd, "rb", closefd=False) as file:
            file.seek(0)
            data = file.read()
        log, records = _runlog.read(data, repr(path))
        if log.id != id:
            raise StateFormatError(
                f"{path!r} holds run {log.id!r}, not {id!r}; it was left as it is: "
                "was it renamed by hand?"
            )
        self._remember(id, log)
        return log, records

    def _head(self, id: str, path: str, fd: int) -> _runlog.Log:
        """What the file says, from memory if it is as it was. The lock is held."""
        known = self._known.get(id)
        if (
            known is not None
            and os.fstat(fd).st_size == known.end
            and _runlog.nonce_of(os.pread(fd, _runlog.HEADER_BYTES, 0)) == known.nonce
        ):
            return known
        return self._read(id, path, fd)[0]

    def _summary(self, id: str) -> Summary | None:
        """The run's summary, without waiting for its saver where that goes."""
        path = self._file(id)
        try:
            fd = os.open(path, _READ)
        except FileNotFoundError:
            return None
        with closing(fd):
            size = os.fstat(fd).st_size
            _runlog.read_header(os.pread(fd, _runlog.HEADER_BYTES, 0), repr(path))
            head = _runlog.last_head(size, lambda n, at: os.pread(fd, n, at), repr(path))
        if head is None:  # a save is under way, or was never finished
            run = self.load(id, lambda: None)
            return run and run.summary
        return head.summary

    def _remember(self, id: str, log: _runlog.Log) -> None:
        with self._mutex:
            if len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[id] = log

    def _forget(self, id: str) -> None:
        with self._mutex:
            self._known.pop(id, None)

    # --- writing --------------------------------------------------------------------------------

    def _append(
        self,
        id: str,
        fd: int,
        log: _runlog.Log,
        head: _runlog.Head,
        number: int,
        changes: Mapping[str, bytes | None],
        progress: Progress,
    ) -> str:
        head = _numbered(head, number)
        data = _runlog.frame(head, changes)
        self._forget(id)
        if os.fstat(fd).st_size > log.end:
            os.ftruncate(fd, log.end)  # what a crash in the middle of an append left
        try:
            write(fd, data, log.end)
            progress.uncertain = True
            sync(fd)
        except OSError:
            # Of a failed sync only the first caller hears: had the frame been left, the repeated
            # save would find it, and take it for safe.
            with contextlib.suppress(OSError):
                os.ftruncate(fd, log.end)
            raise
        log = log._replace(head=head, end=log.end + len(data))
        self._remember(id, log)
        return log.revision

    def _replace(
        self,
        id: str,
        path: str,
        head: _runlog.Head,
        number: int,
        records: Mapping[str, bytes],
        old: int | None,
        progress: Progress,
    ) -> str:
        """Put a new file in place, which holds the whole run."""
        head = _numbered(head, number)
        nonce = secrets.token_bytes(16)
        data = _runlog.header(nonce, id) + _runlog.frame(head, records)
        temporary = _temporary(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        try:
            with closing(os.open(temporary, _WRITE | os.O_CREAT | os.O_EXCL, 0o666)) as fd:
                if old is not None:  # somebody may have narrowed who reads it
                    os.fchmod(fd, os.fstat(old).st_mode & 0o7777)
                write(fd, data, 0)
                sync(fd)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        progress.uncertain = True
        self._forget(id)
        self._sync_directory()
        log = _runlog.Log(nonce, id, head, len(data), len(data))
        self._remember(id, log)
        return log.revision

    def _sync_directory(self) -> None:
        sync_directory(self._path)


def _file_name(id: str) -> str:
    name = "".join(
        char if char in _PLAIN else "".join(f"%{byte:02x}" for byte in char.encode()) for char in id
    )
    if len(name) <= _NAME_BYTES:
        return f"run-{name}{_ENDING}"
    return f"hash-{hashlib.blake2b(id.encode(), digest_size=32).hexdigest()}{_ENDING}"


def _place(found: tuple[float, str, Summary]) -> tuple[float, str]:
    return found[:2]


def _temporary(path: str) -> str:
    return path.removesuffix(_ENDING) + _NEW


def _numbered(head: _runlog.Head, number: int) -> _runlog.Head:
    return _runlog.Head(number, head.epoch, head.write_id, head.summary)
