"""The floor: the least that keeps the promise, to measure asteps against.

A named step, a node of a tree, one msgspec record per step, committed before the run goes on; one
writer thread, one transaction for all that wait, compare-and-set and a summary row per run and
transaction. No errors, retries, nesting, options, leases, identity or cancellation.

The file, its tables, page size and pragmas are those of `SQLiteStore`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from queue import SimpleQueue
from secrets import token_hex
from time import time
from typing import Any, Literal

import msgspec

from asteps.stores._sqlite_file import open_file

_ADVANCE = """UPDATE runs SET saves = saves + 1, write_id = ?, status = ?, epoch = ?, owner = ?,
    updated_at = ?, done_at = ? WHERE incarnation = ? AND saves = ?"""
_SET = """INSERT INTO records (incarnation, key, data) VALUES (?, ?, ?)
    ON CONFLICT (incarnation, key) DO UPDATE SET data = excluded.data"""
_ME = token_hex(8)
_encode = msgspec.json.encode
_decode = msgspec.json.decode


class Node(msgspec.Struct, rename="camel", gc=False):
    """A record as the contract has it: JSON text, times as RFC 3339."""

    name: str
    place: int
    started_at: float | datetime
    done_at: float | datetime = 0.0
    result: msgspec.Raw | bytes = b""

    def record(self) -> bytes:
        self.started_at = datetime.fromtimestamp(self.started_at, UTC)  # type: ignore[arg-type]
        self.done_at = datetime.fromtimestamp(self.done_at, UTC)  # type: ignore[arg-type]
        self.result = msgspec.Raw(self.result)  # type: ignore[arg-type]
        return _encode(self)


class Run:
    """One run; without a store, in memory alone."""

    def __init__(self, store: Store | None = None, incarnation: int = 0) -> None:
        self.steps: dict[str, Node] = {}
        self.incarnation, self.saves, self.status = incarnation, 1, "proceeding"
        self._store = store

    async def do(self, name: str, fn: Callable[..., Awaitable[Any]], *args: object) -> Any:
        node = self.steps.get(name)
        if node is not None:
            return _decode(node.result)
        node = self.steps[name] = Node(name, len(self.steps), time())
        value = await fn(*args)
        node.result = _encode(value)
        node.done_at = time()
        if self._store is not None:
            await self._store.save(self, name, node.record())
        return value

    async def end(self) -> None:
        self.status = "done"
        if self._store is not None:
            await self._store.save(self, "", b"[]")


class Store:
    """One writer thread; what waits when it comes around is one transaction."""

    def __init__(self, path: str, synchronous: Literal["FULL", "NORMAL"] = "FULL") -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[list[Any] | None] = SimpleQueue()
        self._batch: list[Any] = []
        self._thread = threading.Thread(target=self._work, args=(path, synchronous), daemon=True)
        self._thread.start()

    def begin(self, id: str) -> asyncio.Future[Run]:
        return self.save(None, id, b"")

    def save(self, run: Run | None, key: str, data: bytes) -> asyncio.Future[Any]:
        done = self._loop.create_future()
        if not self._batch:
            self._loop.call_soon(self._hand_over)  # all records of a turn of the loop go at once
        self._batch.append((run, key, data, done))
        return done

    def _hand_over(self) -> None:
        self._queue.put(self._batch)
        self._batch = []

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _work(self, path: str, synchronous: Literal["FULL", "NORMAL"]) -> None:
        conn = open_file(path, synchronous)
        while (batch := self._queue.get()) is not None:
            for _ in range(self._queue.qsize()):
                if (more := self._queue.get()) is None:
                    return
                batch += more
            conn.execute("BEGIN IMMEDIATE")
            now = time()
            new = [key for run, key, *_ in batch if run is None]
            made = [conn.execute(_CREATE, (key, now, now)).lastrowid for key in new]
            for run in {run for run, *_ in batch if run is not None}:
                ended = now if run.status == "done" else None
                write, owner = f"{_ME}.{run.saves}", None if ended else _ME
                row = (write, run.status, 1, owner, now, ended, run.incarnation, run.saves)
                assert conn.execute(_ADVANCE, row).rowcount == 1
                run.saves += 1
            rows = [(run.incarnation, key, data) for run, key, data, _ in batch if run is not None]
            conn.executemany(_SET, rows)
            conn.execute("COMMIT")
            self._loop.call_soon_threadsafe(self._answer, batch, made)
        conn.close()

    def _answer(self, batch: list[Any], made: list[int]) -> None:
        numbers = iter(made)
        for run, _, _, done in batch:
            done.set_result(Run(self, next(numbers)) if run is None else None)


_CREATE = """INSERT INTO runs (id, saves, epoch, write_id, name, status, created_at, updated_at)
    VALUES (?, 1, 1, '', 'by_floor.whole', 'proceeding', ?, ?)"""
