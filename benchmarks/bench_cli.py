"""The command line on a large store: its first page, and statistics over all runs.

The store is made here: a few real runs of the engine, copied under other ids and at other times.
Short, it holds 10,000 runs; with ``ASTEPS_BENCH=full`` the 100,000 of the goals.
"""

from __future__ import annotations

import os
import random
import re
import resource
import sqlite3
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import anyio
from goals import FULL, Report

import asteps
from asteps import Retry, Step, StoredRun
from asteps.stores.memory import MemoryStore
from asteps.stores.sqlite import SQLiteStore
from asteps.testing import MockClock

RUNS = 100_000 if FULL else 10_000
GOAL = 100_000  # runs, of the goals for statistics
TEMPLATES = 200
ROUNDS = 21 if FULL else 7
BEGAN = 1_700_000_000.0
SPAN = 90 * 86_400.0  # seconds over which the runs began
MEGABYTE = 1024 if sys.platform != "darwin" else 1024 * 1024  # of ru_maxrss

# --- runs like those of a service -----------------------------------------------------------------

_random = random.Random(4)


async def move(s: Step, clock: MockClock) -> dict[str, bool]:
    """Some ten steps: a retried call, a wait, a group with a parent in it."""

    def work(mean: float) -> None:
        clock.advance(_random.lognormvariate(0, 0.5) * mean)

    def quota() -> int:
        work(0.4)
        if _random.random() < 0.25:
            raise ConnectionError("rate exceeded")
        return 40

    async def migrate(c: Step) -> None:
        def copy() -> None:
            work(90)
            if _random.random() < 0.06:
                raise OSError(28, "No space left on device")

        await c.call("copy", copy)
        await c.call("verify", work, 15)

    await s.call("initialize", work, 2)
    await s.call("quota", quota, retry=Retry(attempts=4, delay=2))
    await s.call("plan", work, 6)
    await s.sleep("let DNS settle", 60)
    async with s.group("inFlight") as g:
        g.do("migrate", migrate)
        g.call("notify", work, 0.3)
    await s.call("attach", work, 4)
    return {"moved": True}


async def backup(s: Step, clock: MockClock) -> None:
    """A map of a few items."""

    async def dump(c: Step, item: int) -> None:
        clock.advance(_random.lognormvariate(0, 1) * 30)

    await s.map("dump", dump, range(_random.randint(3, 8)), limit=2)
    await s.call("upload", clock.advance, 120)


async def template() -> StoredRun:
    """One run, as the engine records it."""
    store, clock = MemoryStore(), MockClock(now=BEGAN)
    fn = move if _random.random() < 0.7 else backup
    await asteps.reconcile(fn, clock, store=store, id="t", clock=clock, max_wait=7_200)
    found = await store.load("t")
    assert found is not None
    return found


STAMP = re.compile(rb'"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?)Z"')


def moved(data: bytes, by: float, stretch: float) -> bytes:
    """A record of a run that began so many seconds later, and took so many times as long."""

    def move_one(match: re.Match[bytes]) -> bytes:
        at = datetime.fromisoformat(f"{match[1].decode()}+00:00").timestamp()
        then = datetime.fromtimestamp(BEGAN + by + (at - BEGAN) * stretch, UTC)
        return f'"{then:%Y-%m-%dT%H:%M:%S.%f}Z"'.encode()

    return STAMP.sub(move_one, data)


async def make(path: Path) -> None:
    """Fill a file with runs."""
    templates = [await template() for _ in range(TEMPLATES)]
    async with SQLiteStore(path):
        pass
    columns = "id, saves, epoch, write_id, name, status, owner, created_at, updated_at, done_at"
    with sqlite3.connect(path) as connection:
        for number in range(RUNS):
            run = _random.choice(templates)
            by, stretch = SPAN * number / RUNS, _random.lognormvariate(0, 0.3)
            s = run.summary
            ends = [None if t is None else t + by for t in (s.created_at, s.updated_at, s.done_at)]
            row = connection.execute(
                f"INSERT INTO runs ({columns}) VALUES (?, ?, ?, ?, ?, ?, NULL, ?, ?, ?)",
                (f"{s.name}-{number:06}", 9, s.epoch, f"{number}.9", s.name, s.status, *ends),
            )
            connection.executemany(
                "INSERT INTO records VALUES (?, ?, ?)",
                [(row.lastrowid, k, moved(d, by, stretch)) for k, d in run.records.items()],
            )
    connection.close()


# --- measuring ------------------------------------------------------------------------------------


def spent(bytecode: str, *words: str) -> float:
    """Seconds of a whole process; its modules are compiled, as pip does it."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    began = perf_counter()
    subprocess.run(
        [sys.executable, "-m", "asteps", *words],
        stdout=subprocess.DEVNULL,
        check=True,
        env=env | {"PYTHONPYCACHEPREFIX": bytecode},
    )
    return perf_counter() - began


def measure(report: Report) -> None:
    """Measure all."""
    with tempfile.TemporaryDirectory() as directory:
        path, bytecode = Path(directory) / "runs.db", f"{directory}/bytecode"
        began = perf_counter()
        anyio.run(make, path)
        report.facts["making the store"] = f"{RUNS:,} runs, {perf_counter() - began:.1f} s"
        report.facts["its size"] = f"{path.stat().st_size / 1e6:.0f} MB"
        store = ["--store", str(path)]
        verbs = {
            "version": ["--version"],
            "first page": ["runs", *store],
            "filtered": ["runs", *store, "--status", "failed"],
            "one run": ["show", "move-", *store, "--json"],
        }
        verbs["one run"][1] = next(
            id for (id,) in sqlite3.connect(path).execute("SELECT id FROM runs WHERE name = 'move'")
        )
        times: dict[str, list[float]] = {verb: [] for verb in verbs}
        for turn in range(ROUNDS + 1):
            for verb, words in verbs.items():
                took = spent(bytecode, *words)
                if turn:  # the first one compiles
                    times[verb].append(took)
        what = f"seconds to the first page of {RUNS:,} runs"
        first = times["first page"]
        report.add("C1", what, median(first), 0.25, 0.3, "rate", best=min(first))
        for verb, found in times.items():
            report.facts[verb] = f"{median(found) * 1e3:.0f} ms, at best {min(found) * 1e3:.0f}"
        took = spent(bytecode, "stats", *store)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / MEGABYTE
        per_goal = took * GOAL / RUNS
        report.add("C2", f"seconds of statistics, for {GOAL:,} runs", per_goal, 12, 15, "rate")
        report.add("C3", f"MB at the peak of any of them, {RUNS:,} runs", peak, 200, 300, "count")


def test_cli(benchmark: Any) -> None:
    """C1 to C3."""
    report = Report("cli")
    benchmark.pedantic(measure, args=(report,), rounds=1)
    benchmark.extra_info["goals"] = report.goals
    report.finish()
