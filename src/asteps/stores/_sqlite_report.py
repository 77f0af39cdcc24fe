"""What a file of runs says of itself, for `SQLiteStore.inspect`: read, and nothing changed.

Everything here blocks; it is called from a worker thread, on a connection of its own.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from typing import Any

from .._store import Holder, StoreReport
from ..errors import StateFormatError, StoreRefusedError
from ._owner import Owner
from ._sqlite_file import check, look, newest_format, summary_of, translated

__all__ = ["examine"]

_COMPLAINTS = 20  # of SQLite about a damaged file, after which it need not go on

_SUMMARIES = """
    SELECT id, name, status, epoch, owner, created_at, updated_at, wake_at, done_at
    FROM runs ORDER BY id"""
_ORPHANS = "SELECT count(*) FROM records WHERE incarnation NOT IN (SELECT incarnation FROM runs)"
_BARE = """
    SELECT id FROM runs
    WHERE NOT EXISTS (SELECT 1 FROM records r WHERE r.incarnation = runs.incarnation AND key = '')
    ORDER BY id"""


def examine(path: str) -> StoreReport:
    """Look at a whole file.

    Args:
        path: The file.

    Raises:
        StateFormatError: It is another program's, or newer.
        StoreError: It is not there, or not to be read.
    """
    path = os.path.realpath(path)
    if not os.path.isfile(path):
        raise StoreRefusedError(f"there is no file {path!r}; nothing was made")
    with translated(path):
        return look(path, lambda conn: _Examination(path, conn).report())


class _Examination:
    """One look at a file. Each part of it may find damage, and leaves the others to be tried."""

    def __init__(self, path: str, conn: sqlite3.Connection) -> None:
        self._path = path
        self._conn = conn
        self._problems: list[str] = []
        self._damaged: dict[str, str] = {}

    def report(self) -> StoreReport:
        version = self._version()
        self._check_integrity()
        runs, held = self._read_runs()
        self._check_tables()
        facts = self._facts()
        return StoreReport(
            kind="SQLite file",
            where=self._path,
            format=version,
            newest_format=newest_format(),
            size_bytes=sum(
                os.path.getsize(file)
                for file in (self._path, f"{self._path}-wal")
                if os.path.exists(file)
            ),
            runs=runs,
            held=held,
            damaged=self._damaged,
            problems=tuple(self._problems),
            facts=facts,
        )

    def _version(self) -> int | None:
        if os.path.exists(f"{self._path}-journal"):
            self._problems.append(
                "a transaction was cut off; the next client that opens the file takes it back"
            )
        if os.path.getsize(self._path) == 0:
            self._problems.append("the file is empty: the next client that opens it fills it")
            return None
        try:
            return check(self._conn, self._path, tables=False)
        except sqlite3.DatabaseError as exc:
            self._problems.append(f"its beginning cannot be read: {exc}")
            return None

    def _check_integrity(self) -> None:
        found = [text for (text,) in self._rows(f"PRAGMA integrity_check({_COMPLAINTS})")]
        self._problems.extend(text for text in found if text != "ok")

    def _read_runs(self) -> tuple[dict[str, int], tuple[Holder, ...]]:
        """How many there are of each status, and which are held."""
        counts = Counter[str]()
        held: list[tuple[str, str]] = []
        for id, *columns in self._rows(_SUMMARIES):
            try:
                summary = summary_of(self._path, id, columns)
            except StateFormatError as exc:
                self._damaged[str(id)] = str(exc)
                continue
            counts[summary.status] += 1
            if summary.owner is not None:
                held.append((id, summary.owner))
        owners = Owner(self._path)
        living = {owner: owners.alive(owner) for owner in {owner for _, owner in held}}
        holders = tuple(Holder(id, owner, living[owner]) for id, owner in held)
        return dict(sorted(counts.items())), holders

    def _check_tables(self) -> None:
        for (count,) in self._rows(_ORPHANS):
            if count:
                self._problems.append(f"{count} records belong to no run; nothing reads them")
        for (id,) in self._rows(_BARE):
            self._damaged.setdefault(str(id), "it has no root record")

    def _facts(self) -> dict[str, str | int]:
        facts: dict[str, str | int] = {"sqlite_version": sqlite3.sqlite_version}
        for name in ("journal_mode", "page_size", "page_count", "freelist_count", "encoding"):
            for (value,) in self._rows(f"PRAGMA {name}"):
                facts[name] = value
        if os.path.exists(f"{self._path}-wal"):
            facts["wal_bytes"] = os.path.getsize(f"{self._path}-wal")
        for (records,) in self._rows("SELECT count(*) FROM records"):
            facts["records"] = records
        return facts

    def _rows(self, query: str) -> Iterator[Any]:
        """What a query finds until it finds damage, which is noted."""
        try:
            yield from self._conn.execute(query)
        except sqlite3.DatabaseError as exc:
            text = f"reading it stopped: {exc}"
            if text not in self._problems:
                self._problems.append(text)
