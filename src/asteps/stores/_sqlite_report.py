"""What a file of runs says of itself, for `SQLiteStore.inspect`: read, and nothing changed.

Everything here blocks; it is called from a worker thread, on a connection of its own.
"""

from __future__ import annotations

import os
import sqlite3
from typing import Any, Final, get_args

from .._store import Holder, Status, StoreReport
from ..errors import StoreRefusedError
from ._owner import Owner
from ._sqlite_file import check, look, newest_format, translated

__all__ = ["examine"]

_COMPLAINTS = 20  # of SQLite about a damaged file, after which it need not go on
_STATUSES: Final = frozenset(get_args(Status))

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
        runs = self._runs()
        held = self._held()
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

    def _runs(self) -> dict[str, int]:
        counts = dict(self._rows("SELECT status, count(*) FROM runs GROUP BY status"))
        if unknown := sorted(set(counts) - _STATUSES, key=str):
            marks = ", ".join("?" * len(unknown))
            query = f"SELECT id, status FROM runs WHERE status IN ({marks}) ORDER BY id"  # noqa: S608
            for id, status in self._rows(query, *unknown):
                self._damaged[id] = f"it has the unknown status {status!r}"
        return {status: n for status, n in sorted(counts.items()) if status in _STATUSES}

    def _held(self) -> tuple[Holder, ...]:
        rows = self._rows("SELECT id, owner FROM runs WHERE owner IS NOT NULL ORDER BY id")
        owners = Owner(self._path)
        living = {owner: owners.alive(owner) for owner in {owner for _, owner in rows}}
        return tuple(Holder(id, owner, living[owner]) for id, owner in rows)

    def _check_tables(self) -> None:
        for (count,) in self._rows(_ORPHANS):
            if count:
                self._problems.append(f"{count} records belong to no run; nothing reads them")
        for (id,) in self._rows(_BARE):
            self._damaged.setdefault(id, "it has no root record")

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

    def _rows(self, query: str, *values: object) -> list[Any]:
        """What a query finds; if it finds damage, that is noted, and nothing found."""
        try:
            return self._conn.execute(query, values).fetchall()
        except sqlite3.DatabaseError as exc:
            text = f"reading it stopped: {exc}"
            if text not in self._problems:
                self._problems.append(text)
            return []
