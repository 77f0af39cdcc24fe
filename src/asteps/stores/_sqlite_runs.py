"""The statements of `SQLiteStore`, and the transactions that they are gathered into.

Everything here blocks; it is called from the store's own thread alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from .._loop import Wakeup
from .._store import Browsed, RunFilter, Scanned, Status, StoredRun, Summary
from ..errors import (
    BusyError,
    ConflictError,
    StateFormatError,
    StoreError,
    StoreUnavailableError,
)
from ._owner import Owner
from ._sqlite_file import STATUSES, Synchronous, open_file, summary_of, translated

__all__ = ["Call", "Runs", "fail"]

_REVISION = re.compile(r"([1-9][0-9]{0,17})-([1-9][0-9]{0,17})", re.ASCII)

# The comparison is the update's own condition: a save that comes too late changes no row, and so
# needs no savepoint beside the others of its transaction.
_ADVANCE = """
    UPDATE runs SET saves = saves + 1, write_id = ?, name = ?, status = ?, epoch = ?, owner = ?,
        created_at = ?, updated_at = ?, wake_at = ?, done_at = ?
    WHERE incarnation = ? AND saves = ? AND id = ? AND (write_id <> ? OR epoch <> ?)"""
_CREATE = """
    INSERT INTO runs (id, saves, write_id, name, status, epoch, owner, created_at, updated_at,
        wake_at, done_at)
    VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO NOTHING"""
_HEAD = "SELECT incarnation, saves, epoch, write_id FROM runs WHERE id = ?"
_SET = """
    INSERT INTO records (incarnation, key, data) VALUES (?, ?, ?)
    ON CONFLICT (incarnation, key) DO UPDATE SET data = excluded.data"""
_REMOVE = "DELETE FROM records WHERE incarnation = ? AND key = ?"
_LOAD = """
    SELECT incarnation, saves, name, status, epoch, owner, created_at, updated_at, wake_at, done_at
    FROM runs WHERE id = ?"""
_LOAD_RECORDS = "SELECT key, data FROM records WHERE incarnation = ?"
_LIST = """
    SELECT id, name, status, epoch, owner, created_at, updated_at, wake_at, done_at
    FROM runs WHERE {} ORDER BY id"""
_SCAN = """
    SELECT incarnation, saves, id, name, status, epoch, owner, created_at, updated_at, wake_at,
        done_at
    FROM runs WHERE {} ORDER BY id LIMIT ?"""

# The newest first, without an index: that would be one page more to write at each save, a third of
# what a step costs. Instead the summaries are read through once, which takes 0.2 us for each that
# is known not to be wanted. So this is asked first: what is the last of a page among those that
# were created last? Nothing older can be on the page. (Measured with 100,000 runs: 68 ms without
# this, 26 ms with it.)
_BROWSE = """
    SELECT id, name, status, epoch, owner, created_at, updated_at, wake_at, done_at
    FROM runs WHERE {} ORDER BY updated_at DESC, id DESC LIMIT ?"""
_NONE_OLDER = """
    SELECT updated_at FROM (
        SELECT updated_at FROM runs WHERE {} ORDER BY incarnation DESC LIMIT ?
    ) ORDER BY updated_at DESC LIMIT 1 OFFSET ?"""
_CREATED_LAST = 1_000  # how many are asked, beyond those of two pages

_PAGE_BYTES = 4 * 1024 * 1024  # of records, after which a page of whole runs ends


class Call:
    """What one caller wants, and what came of it."""

    __slots__ = ("answered", "arguments", "do", "done", "error", "is_answered", "result", "writes")

    def __init__(
        self,
        do: Callable[..., Any],
        arguments: tuple[object, ...],
        answered: Wakeup | None,
        done: Callable[[Any, Exception | None], object] | None,
        *,
        writes: bool,
    ) -> None:
        self.do = do
        self.arguments = arguments
        self.writes = writes
        self.result: Any = None
        self.error: Exception | None = None
        self.answered = answered
        self.done = done
        self.is_answered = False

    def make(self, runs: Runs) -> None:
        """Do it. A `StoreError` is the caller's affair, anything else the transaction's."""
        self.result = self.error = None
        try:
            self.result = self.do(runs, *self.arguments)
        except StoreError as exc:
            self.error = exc


def fail(calls: Sequence[Call], error: Exception) -> None:
    """Give each caller an error of its own: raised together, they would share a traceback."""
    for call in calls:
        own = type(error)(*error.args) if isinstance(error, StoreError) else error
        own.__cause__ = error.__cause__
        call.error = own


class Runs:
    """An open file of runs.

    Args:
        path: The file, without symbolic links; made if there is none.
        synchronous: How durable a commit is.
        owner: The owner that this client acquires runs for.

    Raises:
        StoreError: It could not be opened, see `open_file`.
    """

    def __init__(self, path: str, synchronous: Synchronous, owner: Owner) -> None:
        self._path = path
        self._owner = owner
        self._rows: list[tuple[int, str, bytes]] = []
        with translated(path):
            self._conn = open_file(path, synchronous)
            self._identity: tuple[int, int] | None = _identity(path)

    def is_usable(self) -> bool:
        """Whether this is still the file at its path: what else is written, nobody would find."""
        try:
            return self._identity == _identity(self._path)
        except OSError:
            return False

    def close(self) -> None:
        """Close the connection. What was committed stays."""
        self._identity = None
        with contextlib.suppress(sqlite3.Error):
            self._conn.close()

    # --- transactions ---------------------------------------------------------------------------

    def write(self, calls: Sequence[Call]) -> None:
        """Make one transaction of them, in which each succeeds or fails on its own.

        Raises:
            StoreError: Says what became of all of them.
        """
        with translated(self._path):
            self._conn.execute("BEGIN IMMEDIATE")
        try:
            with translated(self._path):
                for call in calls:
                    call.make(self)
                self._flush()
        except StoreError:
            self._rollback()
            if len(calls) == 1:
                raise
            self._write_each(calls)
            return
        except BaseException:
            self._rollback()
            raise
        try:
            with translated(self._path, committing=True):
                self._conn.execute("COMMIT")
        except BaseException:
            self._rollback()
            raise

    def _write_each(self, calls: Sequence[Call]) -> None:
        """One of them cannot be written: find out which, and write the others."""
        for at, call in enumerate(calls):
            try:
                self.write([call])
            except StoreUnavailableError as exc:  # nor are the others going to fare better
                fail(calls[at:], exc)
                return
            except StoreError as exc:
                call.error = exc

    def _rollback(self) -> None:
        """Take the transaction back; a connection that cannot do even that is given up."""
        self._rows.clear()
        try:
            if self._conn.in_transaction:
                self._conn.execute("ROLLBACK")
        except sqlite3.Error:
            self.close()

    def read(self, calls: Sequence[Call]) -> None:
        """Answer all from one consistent view, or each from its own if that cannot be had."""
        try:
            with translated(self._path):
                self._conn.execute("BEGIN")
                for call in calls:
                    call.make(self)
                self._conn.execute("COMMIT")
        except StoreError as exc:
            self._rollback()
            if len(calls) == 1:
                calls[0].error = exc
                return
            for call in calls:
                self.read([call])

    # --- what a call may do, in a transaction ---------------------------------------------------

    def head(self, id: str) -> tuple[int, int, int, str] | None:
        """Incarnation, saves, epoch and write id of a run."""
        found: tuple[int, int, int, str] | None = self._conn.execute(_HEAD, (id,)).fetchone()
        return found

    def load(self, id: str) -> StoredRun | None:
        """See `Store.load`."""
        found = self._conn.execute(_LOAD, (id,)).fetchone()
        if found is None:
            return None
        incarnation, saves, *columns = found
        records = dict(self._conn.execute(_LOAD_RECORDS, (incarnation,)).fetchall())
        return StoredRun(records, f"{incarnation}-{saves}", summary_of(self._path, id, columns))

    def save(
        self,
        id: str,
        changes: dict[str, bytes | None],
        expected: str | None,
        epoch: int,
        write_id: str,
        summary: Summary,
    ) -> str:
        """See `Store.save`. The records themselves are written with all others of the batch."""
        s = summary
        values = (s.name, s.status, epoch, s.owner, s.created_at, s.updated_at, s.wake_at)
        if expected is None:
            done = self._conn.execute(_CREATE, (id, write_id, *values, s.done_at))
            incarnation, saves = done.lastrowid or 0, 0
        else:
            match = _REVISION.fullmatch(expected)
            incarnation, saves = (int(match[1]), int(match[2])) if match else (0, 0)
            done = self._conn.execute(
                _ADVANCE, (write_id, *values, s.done_at, incarnation, saves, id, write_id, epoch)
            )
        if done.rowcount != 1:
            head = self.head(id)
            if head is not None and head[2:] == (epoch, write_id):
                return f"{head[0]}-{head[1]}"  # saved before, the answer was lost
            raise ConflictError(id, expected, head and f"{head[0]}-{head[1]}")
        for key, data in changes.items():
            if data is not None:
                self._rows.append((incarnation, key, data))
            else:
                self._flush()
                self._conn.execute(_REMOVE, (incarnation, key))
        return f"{incarnation}-{saves + 1}"

    def _flush(self) -> None:
        """Write the records that the saves of this transaction have gathered so far."""
        if self._rows:
            rows, self._rows = self._rows, []
            self._conn.executemany(_SET, rows)

    def delete(self, id: str, expected: str) -> None:
        """See `Store.delete`."""
        head = self.head(id)
        if head is None:
            return
        incarnation, saves, *_ = head
        found = f"{incarnation}-{saves}"
        if found != expected:
            raise ConflictError(id, expected, found)
        self._flush()
        self._conn.execute("DELETE FROM records WHERE incarnation = ?", (incarnation,))
        self._conn.execute("DELETE FROM runs WHERE incarnation = ?", (incarnation,))

    def list_runs(
        self, after: str | None, status: Status | None, name: str | None, limit: int
    ) -> list[tuple[str, Summary]]:
        """See `ListStore.list_runs`."""
        given = {"id > ?": after, "status = ?": status, "name = ?": name}
        where = {clause: value for clause, value in given.items() if value is not None}
        query = _LIST.format(" AND ".join(where) or "true")
        found: list[tuple[str, Summary]] = []
        with contextlib.closing(self._conn.execute(query, (*where.values(),))) as rows:
            for id, *columns in rows:
                with contextlib.suppress(StateFormatError):
                    found.append((id, summary_of(self._path, id, columns)))
                    if len(found) >= limit:
                        break
        return found

    def browse(self, wanted: RunFilter, before: tuple[float, str] | None, limit: int) -> Browsed:
        """See `BrowseStore.browse`."""
        where, values = _where(wanted)
        if before is not None:
            where.append("(updated_at, id) < (?, ?)")
            values += before
        bound = self._conn.execute(
            _NONE_OLDER.format(" AND ".join(where)),
            (*values, 2 * limit + _CREATED_LAST, limit),
        ).fetchone()
        if bound is not None:
            where.append("updated_at >= ?")
            values += bound
        # One more than the page holds tells whether there is another page.
        query = _BROWSE.format(" AND ".join(where))
        rows = self._conn.execute(query, (*values, limit + 1)).fetchall()
        page: list[tuple[str, Summary]] = []
        damaged: dict[str, StoreError] = {}
        last: tuple[float, str] | None = None
        for id, *columns in rows[:limit]:
            last = (columns[5], id)
            try:
                page.append((id, summary_of(self._path, id, columns)))
            except StateFormatError as exc:
                damaged[str(id)] = exc
        return Browsed(page, damaged, last if len(rows) > limit else None)

    def scan(self, wanted: RunFilter, after: str | None, limit: int) -> Scanned:
        """See `ScanStore.scan`."""
        where, values = _where(wanted)
        if after is not None:
            where.append("id > ?")
            values.append(after)
        query = _SCAN.format(" AND ".join(where))
        rows = self._conn.execute(query, (*values, limit + 1)).fetchall()
        page: list[tuple[str, StoredRun]] = []
        damaged: dict[str, StoreError] = {}
        size = 0
        last: str | None = None
        for incarnation, saves, id, *columns in rows[:limit]:
            if size >= _PAGE_BYTES:
                return Scanned(page, damaged, last)
            last = id
            try:
                summary = summary_of(self._path, id, columns)
            except StateFormatError as exc:
                damaged[str(id)] = exc
                continue
            records = dict(self._conn.execute(_LOAD_RECORDS, (incarnation,)).fetchall())
            size += sum(map(len, records.values()))
            page.append((id, StoredRun(records, f"{incarnation}-{saves}", summary)))
        return Scanned(page, damaged, last if len(rows) > limit else None)

    def acquire(self, id: str) -> str:
        """See `LeaseStore.acquire`; what this client itself holds is not known here."""
        query = "SELECT owner FROM runs WHERE id = ?"
        (owner,) = self._conn.execute(query, (id,)).fetchone() or (None,)
        # One's own name on it means that it was released without a last save.
        if owner is not None and owner != self._owner.name and self._owner.alive(owner):
            raise BusyError(id, owner)
        return self._owner.take()


def _where(wanted: RunFilter) -> tuple[list[str], list[object]]:
    """A filter as conditions, at least one, and the values in them."""
    where, values = ["true"], list[object]()
    if wanted.statuses:
        # What is unknown here is damage, and to be seen whatever is asked for.
        known = sorted(STATUSES.difference(wanted.statuses))
        where.append(f"status NOT IN ({', '.join('?' * len(known))})")
        values += known
    given = {
        "name = ?": wanted.name,
        "instr(id, ?) > 0": wanted.contains or None,
        "updated_at >= ?": wanted.updated_from,
        "updated_at < ?": wanted.updated_before,
    }
    for clause, value in given.items():
        if value is not None:
            where.append(clause)
            values.append(value)
    return where, values


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
