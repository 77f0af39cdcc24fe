"""Concurrent children: in memory against anyio's own tasks; a large map on SQLite; parked polls."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

import anyio
from bench_memory import bare, interleaved, loop_bare, with_step
from goals import FULL, Report

import asteps

ROUNDS = 100 if FULL else 30
CHILDREN = 100
NAMES = [f"step {i}" for i in range(CHILDREN)]
ITEMS = 1_000
LARGE = [1_000, 10_000, 100_000]
PARKED = 10_000


async def loop_tasks(steps: int) -> float:
    """Ns per trivial child of an anyio task group of a hundred."""
    began = perf_counter_ns()
    for _ in range(steps // CHILDREN):
        async with anyio.create_task_group() as tasks:
            for _ in NAMES:
                tasks.start_soon(bare)
    return (perf_counter_ns() - began) / steps


async def loop_group(steps: int, *, call: bool) -> float:
    """Ns per child of a group of a hundred."""

    async def body(s: asteps.Step) -> float:
        began = perf_counter_ns()
        for part in range(steps // CHILDREN):
            async with s.group(f"group {part}") as g:
                for name in NAMES:
                    if call:
                        g.call(name, bare)
                    else:
                        g.do(name, with_step)
        return (perf_counter_ns() - began) / steps

    return await asteps.run(body)


async def with_item(s: asteps.Step, item: int) -> dict[str, Any]:
    """What a step of a map does."""
    return {"id": "i-0123456789abcdef0", "ip": "10.20.30.40", "size": 8}


async def loop_map(steps: int) -> float:
    """Ns per item of a map."""

    async def body(s: asteps.Step) -> float:
        began = perf_counter_ns()
        await s.map("items", with_item, range(steps))
        return (perf_counter_ns() - began) / steps

    return await asteps.run(body)


async def measure(report: Report) -> None:
    """Goal M5."""
    loops = {
        "bare": loop_bare,
        "child of an anyio task group": loop_tasks,
        "g.do": partial(loop_group, call=False),
        "g.call": partial(loop_group, call=True),
        "item of a map": loop_map,
    }
    await interleaved(loops, ITEMS, 3)
    ns, ratio, best = await interleaved(loops, ITEMS, ROUNDS)
    task = "child of an anyio task group"
    for name in ("g.do", "g.call"):
        what = f"{name} in a group of {CHILDREN}, against an anyio task"
        least = best[name] / best[task]
        report.add("M5", what, ratio[name] / ratio[task], 1.2, 1.5, "ratio", best=least)
    name = "item of a map"
    report.add("M5", f"{name}, against bare await", ratio[name], 10, 12, "ratio", best=best[name])
    for name, took in ns.items():
        report.facts[name] = f"{took:.0f} ns, {ratio[name]:.2f}x"


def work(file: Path, items: int, *, deadly: int = -1) -> dict[str, float]:
    """One map in a process of its own."""
    script = Path(__file__).with_name("concurrency_work.py")
    command = [sys.executable, str(script), str(file), str(items), str(deadly)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if deadly >= 0:
        assert done.returncode == -signal.SIGKILL, done
        return {}
    assert done.returncode == 0, done
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure_map(report: Report) -> None:
    """A map of 100,000 on SQLite FULL, what it takes as it grows, and again after a kill."""
    with tempfile.TemporaryDirectory() as directory:
        cost = {n: work(Path(directory, f"{n}.db"), n) for n in LARGE}
        last = LARGE[-1]
        file = Path(directory, "killed.db")
        work(file, last, deadly=last // 2)
        again = work(file, last)
        done = work(file, last)
    growth = cost[last]["us"] / cost[LARGE[0]]["us"]
    what = f"time per item of a map at {last:,} against at {LARGE[0]:,}"
    report.add("map", what, growth, 1, 1.5, "ratio")
    report.add(
        "map", f"peak memory of {last:,} items, MB", cost[last]["peak MB"], 200, 400, "count"
    )
    what = f"seconds to finish {last:,} items after a kill in the middle"
    report.add("map", what, again["seconds"], 2, 3, "rate")
    for n, figures in cost.items():
        took = f"{figures['us']:.1f} us per item, peak {figures['peak MB']:.0f} MB"
        report.facts[f"map of {n:,}, SQLite FULL, limit 100"] = took
    report.facts[f"... of {last:,}, all done"] = f"{done['seconds']:.2f} s"


async def measure_parked(report: Report) -> None:
    """What ten thousand polls cost while all of them wait."""

    async def check(task: str) -> None:
        nonlocal checks
        checks += 1

    async def body(s: asteps.Step) -> None:
        async with s.group("tasks") as g:
            for i in range(PARKED):
                g.poll(f"task {i}", lambda: "id", check, every=3600)

    checks = 0
    async with anyio.create_task_group() as tasks:
        began = time.process_time()
        tasks.start_soon(asteps.run, body)
        while checks < PARKED:
            await anyio.sleep(0.05)
        await anyio.sleep(0.2)  # to be parked
        started = time.process_time() - began
        shares = []
        for _ in range(5):
            cpu, wall = time.process_time(), time.perf_counter()
            await anyio.sleep(0.2)
            shares.append((time.process_time() - cpu) / (time.perf_counter() - wall))
        began = time.perf_counter()
        tasks.cancel_scope.cancel()
    took = time.perf_counter() - began
    report.add(
        "poll", f"CPU of {PARKED:,} parked polls, share", median(shares), 0.01, 0.05, "ratio"
    )
    report.facts[f"{PARKED:,} polls begun and parked"] = f"{started / PARKED * 1e6:.0f} us each"
    report.facts[f"{PARKED:,} parked polls cancelled"] = f"{took / PARKED * 1e6:.0f} us each"


def test_concurrency(benchmark: Any) -> None:
    """M5, a large map, and parked polls."""
    report = Report("concurrency")
    benchmark.pedantic(lambda: asyncio.run(measure(report)), rounds=1)
    measure_map(report)
    asyncio.run(measure_parked(report))
    benchmark.extra_info["goals"] = report.goals
    report.finish()
