"""A pretended cloud for the operator beside it: disks, servers and addresses in a SQLite file.

It takes its time, throttles now and then, and outlives whoever asks it, as a real one does. Of two
calls with the same token the second answers what the first one has made. What there is::

    python pretended_cloud.py
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from anyio import to_thread

T = TypeVar("T")

_TABLES = """
CREATE TABLE IF NOT EXISTS things (
    name TEXT PRIMARY KEY, of TEXT, token TEXT UNIQUE, ready_at REAL, gone_at REAL
);
CREATE TABLE IF NOT EXISTS addresses (of TEXT PRIMARY KEY, thing TEXT);
CREATE TABLE IF NOT EXISTS calls (at REAL, what TEXT);
"""


class ThrottledError(Exception):
    """Too many requests: try again in a moment."""


class Cloud:
    """The client of the pretended cloud; any number of processes may use one file.

    Args:
        file: Where the cloud keeps what it knows.
        pace: Seconds that its usual piece of work takes.
    """

    def __init__(self, file: Path, pace: float = 2.0) -> None:
        self.file = file
        self.pace = pace

    async def start_disk(self, of: str, size: int, token: str) -> str:
        """Begin to make a disk.

        Raises:
            ValueError: A disk has 1 GB at least.
        """
        if size < 1:
            raise ValueError(f"a disk of {size} GB cannot be made")
        return await self._do(lambda db: self._make(db, f"disk-{size}gb", of, token, 3))

    async def start_server(self, of: str, version: str, disk: str, token: str) -> str:
        """Begin to start a server; the first call for each database is one too many.

        Raises:
            ThrottledError: Try again in a moment.
        """

        def start(db: sqlite3.Connection) -> str | None:
            first = _count(db, f"start a server for {of} on {disk}") == 1
            return None if first else self._make(db, f"server-v{version}", of, token, 2)

        made = await self._do(start)
        if made is None:
            raise ThrottledError(f"too many requests about {of}")
        return made

    async def point(self, of: str, thing: str) -> str:
        """Let the address of a database lead to this server."""

        def point(db: sqlite3.Connection) -> str:
            _count(db, f"point {of} to {thing}")
            db.execute("INSERT OR REPLACE INTO addresses VALUES (?, ?)", (of, thing))
            return f"{of.replace('/', '.')}.db.example.com"

        return await self._do(point)

    async def forget_address(self, of: str) -> None:
        """Let the address of a database lead nowhere."""

        def forget(db: sqlite3.Connection) -> None:
            _count(db, f"forget the address of {of}")
            db.execute("DELETE FROM addresses WHERE of = ?", (of,))

        await self._do(forget)

    async def is_ready(self, thing: str) -> bool:
        """Whether it has been made, or started."""
        return await self._do(lambda db: _time(db, thing, "ready_at") <= time.time())

    async def things_of(self, of: str) -> list[str]:
        """What there is of a database."""
        query = "SELECT name FROM things WHERE of = ? AND gone_at IS NULL ORDER BY name"
        return await self._do(lambda db: [name for (name,) in db.execute(query, (of,))])

    async def delete(self, thing: str) -> None:
        """Begin to delete it; what is being deleted, or is gone, is let be."""

        def delete(db: sqlite3.Connection) -> None:
            _count(db, f"delete {thing}")
            db.execute(
                "UPDATE things SET gone_at = ? WHERE name = ? AND gone_at IS NULL",
                (time.time() + 2 * self.pace, thing),
            )

        await self._do(delete)

    async def is_gone(self, thing: str) -> bool:
        """Whether it has been deleted."""
        return await self._do(lambda db: _time(db, thing, "gone_at") <= time.time())

    def _make(self, db: sqlite3.Connection, kind: str, of: str, token: str, duration: float) -> str:
        """Make something; the same token always gets the same thing, made once."""
        found = db.execute("SELECT name FROM things WHERE token = ?", (token,)).fetchone()
        if found is not None:
            return str(found[0])
        (number,) = db.execute("SELECT count(*) + 1 FROM things").fetchone()
        name = f"{kind}-{number}"
        ready_at = time.time() + duration * self.pace
        db.execute("INSERT INTO things VALUES (?, ?, ?, ?, NULL)", (name, of, token, ready_at))
        _count(db, f"make {name} for {of}")
        return name

    async def _do(self, do: Callable[[sqlite3.Connection], T]) -> T:
        """One request: all of it, or nothing."""

        def request() -> T:
            with closing(sqlite3.connect(self.file, timeout=30)) as db:
                db.executescript(_TABLES)
                with db:
                    db.execute("BEGIN IMMEDIATE")
                    return do(db)

        return await to_thread.run_sync(request)


def _count(db: sqlite3.Connection, what: str) -> int:
    """Note a call; how often it has been made."""
    db.execute("INSERT INTO calls VALUES (?, ?)", (time.time(), what))
    (count,) = db.execute("SELECT count(*) FROM calls WHERE what = ?", (what,)).fetchone()
    return int(count)


def _time(db: sqlite3.Connection, thing: str, column: str) -> float:
    """When something has become so, or is going to."""
    query = f"SELECT {column} FROM things WHERE name = ?"  # noqa: S608 - a name of our own
    found = db.execute(query, (thing,)).fetchone()
    return float("inf") if found is None or found[0] is None else float(found[0])


def this_cloud() -> Cloud:
    """The cloud that the environment names: ``CLOUD`` is its file, ``PACE`` how slow it is."""
    return Cloud(Path(os.environ.get("CLOUD", "cloud.db")), float(os.environ.get("PACE", "2")))


def main() -> None:
    """Say what there is, and what was asked for."""
    cloud = this_cloud()
    if not cloud.file.exists():
        sys.exit(f"nothing was made yet: there is no {cloud.file}")
    with closing(sqlite3.connect(cloud.file)) as db:
        now = time.time()
        for name, of, ready_at, gone_at in db.execute(
            "SELECT name, of, ready_at, gone_at FROM things"
        ):
            status = "ready" if ready_at <= now else "being made"
            if gone_at is not None:
                status = "gone" if gone_at <= now else "being deleted"
            print(f"{name:<16} {of:<24} {status}")
        for of, thing in db.execute("SELECT of, thing FROM addresses"):
            print(f"{of} is at {thing}")
        for at, what in db.execute("SELECT at, what FROM calls ORDER BY at"):
            print(f"{time.strftime('%H:%M:%S', time.localtime(at))}  {what}")


if __name__ == "__main__":
    main()
