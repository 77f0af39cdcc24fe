"""One piece of work in a process of its own, for `bench_sqlite`: prints what it cost, as JSON.

Usage: python sqlite_work.py SUBJECT WORK DIRECTORY FULL|NORMAL trace|plain
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import floor

import asteps
from asteps.stores._sqlite_file import open_file
from asteps.stores.sqlite import SQLiteStore

BEGIN, END = "/asteps-benchmark-begin", "/asteps-benchmark-end"  # looked for by strace's reader
WORKS = {"seq": (1, 200), "200x10": (200, 10), "fan-out": (1, 100)}


async def step() -> dict[str, Any]:
    """What each step does."""
    return {"id": "i-0123456789abcdef0", "ip": "10.20.30.40", "size": 8}


class Meter:
    """What the part within the `with` block cost this process."""

    def __init__(self, statements: Counter[str]) -> None:
        self._statements = statements
        self.cost: dict[str, Any] = {}

    @contextlib.contextmanager
    def __call__(self, steps: int) -> Iterator[None]:
        self._statements.clear()
        os.access(BEGIN, os.F_OK)
        written, cpu, began = bytes_written(), time.process_time(), time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        cpu = time.process_time() - cpu
        wrote = bytes_written()
        os.access(END, os.F_OK)
        self.cost = {
            "steps": steps,
            "rate": steps / seconds,
            "cpu_us": cpu / steps * 1e6,
            "bytes": None if written is None or wrote is None else (wrote - written) / steps,
            "statements": dict(self._statements),
        }


def bytes_written() -> int | None:
    """What this process has passed to write(2) and its like; sockets do not count."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


# --- the subjects -------------------------------------------------------------------------------


async def by_asteps(work: str, directory: Path, synchronous: Any, meter: Meter) -> None:
    """The work by asteps."""
    runs, steps, concurrent = shape(work)
    names = [f"step {i}" for i in range(steps)]

    async def body(s: asteps.Step) -> None:
        if concurrent:
            await asyncio.gather(*(s.call(name, step) for name in names))
        else:
            for name in names:
                await s.call(name, step)

    async with SQLiteStore(directory / "runs.db", synchronous=synchronous) as store:
        with meter(runs * steps):
            work_ = (asteps.run(body, store=store, id=f"run-{i}") for i in range(runs))
            await together(work_)


async def by_floor(work: str, directory: Path, synchronous: Any, meter: Meter) -> None:
    """The work by the floor."""
    runs, steps, concurrent = shape(work)
    names = [f"step {i}" for i in range(steps)]

    async def whole(store: floor.Store, id: str) -> None:
        run = await store.begin(id)
        if concurrent:
            await asyncio.gather(*(run.do(name, step) for name in names))
        else:
            for name in names:
                await run.do(name, step)
        await run.end()

    store = floor.Store(str(directory / "runs.db"), synchronous)
    await store.begin("warm")
    with meter(runs * steps):
        await together(whole(store, f"run-{i}") for i in range(runs))
    store.close()


async def by_raw(work: str, directory: Path, synchronous: Any, meter: Meter) -> None:
    """One row per commit, on the loop's thread, in one table: the least that SQLite can do."""
    conn = open_file(str(directory / "runs.db"), synchronous)
    _, steps, _ = shape(work)
    data = b'["step 0",0,1763890000.123456,1763890000.123456,' + b"." * 60 + b"]"
    with meter(steps):
        for i in range(steps):
            conn.execute("BEGIN IMMEDIATE")
            conn.execute("INSERT INTO records VALUES (?, ?, ?)", (1, f"step {i}", data))
            conn.execute("COMMIT")
    conn.close()


async def by_resume(work: str, directory: Path, synchronous: Any, meter: Meter) -> None:
    """Prepare an unfinished run with done steps; then resume it, in a store opened anew."""
    _, steps, _ = shape(work)
    names = [f"step {i}" for i in range(steps)]
    entered = skipped = 0.0

    async def body(s: asteps.Step) -> None:
        nonlocal entered, skipped
        entered = time.perf_counter()
        for name in names:
            await s.call(name, step)
        skipped = time.perf_counter()
        s.pending(0.001)

    path = directory / "runs.db"
    async with SQLiteStore(path) as store:
        await asteps.reconcile(body, store=store, id="run", save="pass")
    await asyncio.sleep(0.01)
    gc.collect()
    async with SQLiteStore(path) as store:
        with meter(steps):
            began = time.perf_counter()
            await asteps.reconcile(body, store=store, id="run")
    meter.cost["load_ns"] = (entered - began) / steps * 1e9
    meter.cost["load_and_skip_ns"] = (skipped - began) / steps * 1e9


def shape(work: str) -> tuple[int, int, bool]:
    """How many runs of how many steps, and whether its steps are concurrent."""
    if work in WORKS:
        return *WORKS[work], work == "fan-out"
    return 1, int(work), False


async def together(runs: Any) -> None:
    """Await all of them at once; a single one in this task."""
    first, *rest = runs
    if rest:
        await asyncio.gather(first, *rest)
    else:
        await first


# --- the process --------------------------------------------------------------------------------


def count_statements(statements: Counter[str]) -> None:
    """Count every SQL statement by its kind, whoever makes the connection."""
    connect = sqlite3.connect

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        conn = connect(*args, **options)
        conn.set_trace_callback(lambda text: statements.update([kind(text)]))
        return conn

    sqlite3.connect = traced  # type: ignore[assignment]


def kind(statement: str) -> str:
    """Its first word; of a transaction that writes, two."""
    return "BEGIN IMMEDIATE" if "IMMEDIATE" in statement else statement.split(None, 1)[0]


SUBJECTS: dict[str, Callable[[str, Path, Any, Meter], Awaitable[None]]] = {
    "asteps": by_asteps,
    "floor": by_floor,
    "raw": by_raw,
    "resume": by_resume,
}


def main() -> None:
    """Do what the arguments say."""
    subject, work, directory, synchronous, trace = sys.argv[1:]
    statements: Counter[str] = Counter()
    if trace == "trace":
        count_statements(statements)
    meter = Meter(statements)
    gc.collect()
    gc.freeze()
    asyncio.run(SUBJECTS[subject](work, Path(directory), synchronous, meter))  # type: ignore[arg-type]
    print(json.dumps(meter.cost))


if __name__ == "__main__":
    main()
