"""The file under `SQLiteStore`: what it must look like, how it is opened, what its errors mean.

Everything here blocks; it is called from the store's own thread alone.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

from .._store import Status, Summary
from ..errors import (
    StateFormatError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    UncertainWriteError,
)

__all__ = [
    "APPLICATION_ID",
    "BUSY_SECONDS",
    "STATUSES",
    "Synchronous",
    "check",
    "look",
    "newest_format",
    "open_file",
    "summary_of",
    "translated",
]

T = TypeVar("T")

Synchronous = Literal["FULL", "NORMAL"]

APPLICATION_ID: Final = 0x61737470  # "astp": tells our files from everybody else's
BUSY_SECONDS: Final = 5.0  # how long a statement waits for another process's transaction

# How the shape was chosen. Measured with SQLite 3.40, 150-byte records, summary and revision
# included; seq: a commit per record; group: 200 runs saving in one commit; load: 10,000 records,
# cold cache. Rates at synchronous=FULL do not differ: the sync decides them.
#
#     page, records table      seq B/commit   group B/record   CPU us in a group   load ns/record
#     1024 rowid                      3,731              443                 7.0              900
#     1024 WITHOUT ROWID              4,176            1,232                10.1              770
#     2048 rowid                      6,610              453                 7.8              740
#     2048 WITHOUT ROWID              6,641            1,217                 8.0              760
#     4096 rowid                     12,710              494                 6.3              700
#     4096 WITHOUT ROWID             11,639            1,396                 7.7              620
#
# A rowid table is appended to at one end, whichever runs save; WITHOUT ROWID, which keeps a run
# together, writes a page per run. Of the page sizes 2048 is the smallest whose load is not spent
# on reading pages. A packed summary saves no bytes against columns, which people can query.
_PAGE_BYTES = 2048

# The log is reused, not truncated: to write over what is there needs no metadata sync. One
# checkpoint per 4 MB costs 3 syncs for about 650 commits of one record each.
_CHECKPOINT_PAGES = 4 * 1024 * 1024 // _PAGE_BYTES
_LOG_BYTES_KEPT = 8 * 1024 * 1024

# A run's records lie in the order of saving, and are read in that of their keys: back and forth.
_CACHE_KIB = 8 * 1024

# Step n brings a file of version n to n + 1, in one transaction; a new file takes them all. A step
# that has been released is never edited. AUTOINCREMENT makes incarnations, and so revisions, come
# only once, also after a run was deleted.
_STEPS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE runs (
            incarnation INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            saves INTEGER NOT NULL,
            epoch INTEGER NOT NULL,
            write_id TEXT NOT NULL,
            name TEXT NOT NULL,
            status TEXT NOT NULL,
            owner TEXT,
            created_at REAL NOT NULL,
            updated_at REAL NOT NULL,
            wake_at REAL,
            done_at REAL
        )""",
        """CREATE TABLE records (
            incarnation INTEGER NOT NULL,
            key TEXT NOT NULL,
            data BLOB NOT NULL,
            UNIQUE (incarnation, key)
        )""",
    ),
)
_TABLES = {"runs", "records"}

STATUSES: Final = frozenset(get_args(Status))
# Seconds since the epoch: from the year 1 to 9999, but for two days that time zones may need.
_FIRST, _LAST = -62_135_424_000.0, 253_402_128_000.0

_FORMAT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
_REFUSED = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_NOLFS,
}
# At COMMIT these come before the log holds a whole transaction; of any other error nobody knows.
_NOT_COMMITTED = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY}
_REFUSING_OS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def translated(path: str, *, committing: bool = False) -> Iterator[None]:
    """Let nothing but a `StoreError` out, which says what became of the data.

    Args:
        path: The file, for the message.
        committing: The body makes a transaction durable, and may fail after having done so.
    """
    try:
        yield
    except sqlite3.Error as exc:
        raise _translate(exc, path, committing=committing) from exc
    except UnicodeDecodeError as exc:
        raise StateFormatError(
            f"{path!r} holds text that is no UTF-8: it is damaged; it was left as it is: restore a "
            "backup, or give another path"
        ) from exc
    except (UnicodeEncodeError, OverflowError) as exc:
        raise StoreRefusedError(
            f"{path!r} cannot hold the value ({exc.__class__.__name__}); nothing was written"
        ) from exc
    except OSError as exc:
        name = errno.errorcode.get(exc.errno or 0, "OSError")
        if exc.errno in _REFUSING_OS:
            raise StoreRefusedError(
                f"{path!r} and its directory cannot be used ({name}); make both readable and "
                "writable, and see that there is space"
            ) from exc
        raise StoreUnavailableError(f"{path!r} could not be reached ({name}); try again") from exc


def _translate(exc: sqlite3.Error, path: str, *, committing: bool) -> StoreError:
    code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    name = getattr(exc, "sqlite_errorname", exc.__class__.__name__)
    primary = code & 0xFF
    # A file-size limit and a quota arrive as IOERR_WRITE, only an ENOSPC as FULL.
    full = primary == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_WRITE
    if committing and not full and primary not in _NOT_COMMITTED:
        return UncertainWriteError(
            f"{path!r}: the commit failed ({name}), and perhaps came through; repeat the save"
        )
    if full:
        return StoreRefusedError(
            f"{path!r} cannot grow ({name}): the disk is full, or a quota or size limit reached; "
            "nothing was written: make room"
        )
    if primary in _REFUSED:
        why = {
            sqlite3.SQLITE_TOOBIG: "a value is too large: store a reference to it instead",
            sqlite3.SQLITE_CONSTRAINT: "a value is not allowed there",
            sqlite3.SQLITE_MISMATCH: "a value is not allowed there",
        }.get(primary, "make the file and its directory readable and writable")
        return StoreRefusedError(f"{path!r} refused ({name}), nothing was written; {why}")
    if primary in _FORMAT:
        return StateFormatError(
            f"{path!r} is not a readable SQLite database ({name}): damaged, cut short, or no "
            "database at all; it was left as it is: restore a backup, or give another path"
        )
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreUnavailableError(
            f"{path!r} is locked by another process ({name}) for longer than {BUSY_SECONDS:g} s; "
            "nothing was written: try again"
        )
    return StoreUnavailableError(
        f"{path!r} did not answer ({name}), nothing was written; try again"
    )


def open_file(path: str, synchronous: Synchronous) -> sqlite3.Connection:
    """Open a database of ours, or make one; change nothing before it is known to be ours.

    Args:
        path: An absolute path without symbolic links.
        synchronous: How durable a commit is.

    Raises:
        StateFormatError: The file is something else, damaged, or newer. It is as it was.
        StoreRefusedError: The directory is missing, or something is not allowed.
        StoreUnavailableError: Another process keeps it locked.
    """
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        raise StoreRefusedError(f"directory {directory!r} does not exist; create it first")
    if os.path.isdir(path):
        raise StoreRefusedError(f"{path!r} is a directory; give the path of a file in it")
    with translated(path):
        if os.path.exists(f"{path}-journal"):
            _roll_back(path)
        new = not os.path.exists(path) or os.path.getsize(path) == 0
        if not new:
            _inspect(path)
        conn = _connect(path, "rwc" if new else "rw")
        try:
            conn.execute(f"PRAGMA page_size = {_PAGE_BYTES}")  # heeded by an empty file alone
            conn.execute(f"PRAGMA synchronous = {synchronous}")
            _migrate(conn, path)
            _use_log(conn, path)
            conn.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            conn.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES_KEPT}")
            conn.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        except BaseException:
            conn.close()
            raise
        return conn


def _roll_back(path: str) -> None:
    """Let SQLite take back a transaction whose process died, as the next reader of any file does.

    Ours begin in this mode: who is killed while the file is made leaves one that is whole only
    together with its journal.
    """
    if os.path.exists(path):
        with closing(_connect(path, "rw")) as conn:
            conn.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _use_log(conn: sqlite3.Connection, path: str) -> None:
    """Switch to write-ahead logging, once the file itself says that it is ours."""
    deadline = time.monotonic() + BUSY_SECONDS
    mode = ""
    while not mode:
        try:
            (mode,) = conn.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as exc:
            # Two that switch at once would wait for each other, so SQLite does not wait at all.
            busy = exc.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.001)
    if mode != "wal":
        raise StoreRefusedError(
            f"{path!r} lies on a file system without shared memory (a network share?); SQLite "
            "needs a local one: give a path on a local disk"
        )


def _connect(path: str, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{Path(path).as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,  # transactions are begun and ended by hand
        check_same_thread=False,  # one thread uses it, but not always the one that opened it
    )


def look(path: str, at: Callable[[sqlite3.Connection], T]) -> T:
    """Read a file without a byte written, also not beside it.

    Never by opening the file ourselves: to close it would drop the POSIX locks that other
    connections of this process hold on it.

    Args:
        path: The file.
        at: What is read. Called again when somebody opened or closed the file meanwhile.
    """
    # With a log in place the newest pages are in there, and its index exists or may be made.
    # Without one the file alone is everything, and `immutable` makes nothing beside it.
    while True:
        before = _logged(path)
        try:
            with closing(_connect(path, "ro&immutable=1" if before else "ro")) as conn:
                found = at(conn)
        except (sqlite3.DatabaseError, StateFormatError):
            if before == _logged(path):
                raise
            continue  # what was read was a mixture
        if before is None or before == _logged(path):
            return found


def _logged(path: str) -> tuple[int, int] | None:
    """``None`` where there is a log, which keeps readers apart; else what tells of a change."""
    if os.path.exists(f"{path}-wal"):
        return None
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size


def _inspect(path: str) -> None:
    """Refuse what is not ours or newer; it is as it was."""
    look(path, lambda conn: check(conn, path, tables=not os.path.exists(f"{path}-journal")))


def newest_format() -> int:
    """The newest format that this version of asteps knows, and makes."""
    return len(_STEPS)


def check(conn: sqlite3.Connection, path: str, *, tables: bool) -> int:
    """The version of a database that is ours."""
    (application,) = conn.execute("PRAGMA application_id").fetchone()
    (version,) = conn.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise StateFormatError(
            f"{path!r} belongs to another program (SQLite application id {application:#x}, not "
            f"{APPLICATION_ID:#x}); it was left as it is: give a path of their own to the runs"
        )
    if version > newest_format():
        raise StateFormatError(
            f"{path!r} has format {version}, made by a newer asteps; this one reads up to "
            f"{newest_format()}; it was left as it is: upgrade asteps, or give another path"
        )
    if tables:  # unless an unfinished transaction is about to be rolled back
        query = "SELECT name FROM sqlite_schema WHERE type = 'table'"
        missing = _TABLES - {name for (name,) in conn.execute(query)}
        if missing:
            raise StateFormatError(
                f"{path!r} is marked as a database of asteps, but lacks {sorted(missing)}; it was "
                "left as it is: restore a backup, or give another path"
            )
    return int(version)


def summary_of(path: str, id: object, columns: Sequence[Any]) -> Summary:
    """The summary in a row, in which anybody may have written anything.

    Raises:
        StateFormatError: It is none.
    """
    name, status, epoch, owner, *times = columns
    if status not in STATUSES:
        odd = f"has the unknown status {status!r:.100}"
    elif not (
        isinstance(id, str)
        and isinstance(name, str)
        and isinstance(epoch, int)
        and (owner is None or isinstance(owner, str))
    ):
        odd = "has an id, a name, an epoch or an owner that is none"
    elif not all(t is None or (isinstance(t, float) and _FIRST <= t <= _LAST) for t in times):
        odd = "has a time that is none"
    else:
        return Summary(*columns)
    raise StateFormatError(
        f"{path!r}: run {id!r} {odd}; it was left as it is: correct it by hand, or upgrade asteps"
    )


def _migrate(conn: sqlite3.Connection, path: str) -> None:
    """Bring the tables to this version, all steps or none; of two processes one does it."""
    if _is_current(conn, path):
        return
    conn.execute("BEGIN IMMEDIATE")
    try:
        if not _is_current(conn, path):
            (version,) = conn.execute("PRAGMA user_version").fetchone()
            for step in _STEPS[version:]:
                for statement in step:
                    conn.execute(statement)
            conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            conn.execute(f"PRAGMA user_version = {newest_format()}")
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise
    # Into the file itself, so that an older asteps sees it without opening the log.
    conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _is_current(conn: sqlite3.Connection, path: str) -> bool:
    if conn.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
        return False
    return check(conn, path, tables=True) == newest_format()
