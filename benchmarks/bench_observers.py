"""What watching a run costs: an observer of events, records that know their step, OpenTelemetry.

On disk against the same run without; in memory against the SDK alone, starting and ending the same
spans. All subjects take turns.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

from bench_memory import NAMES, bare, loop_bare
from goals import FULL, Report
from observers_work import provider, subjects
from opentelemetry import context, trace

import asteps

ROUNDS = 150 if FULL else 40
ON_DISK = 200 if FULL else 50
STEPS = 300
SCRIPT = Path(__file__).with_name("observers_work.py")


def quarter(times: list[float]) -> float:
    """The lower quartile: what others who use the machine disturb least."""
    return sorted(times)[len(times) // 4]


def loop_steps(observers: list[Any]) -> Callable[[int], Awaitable[float]]:
    """Ns per new step, watched by these."""

    async def loop(steps: int) -> float:
        return await asteps.run(body, steps, observers=observers)

    async def body(s: asteps.Step, steps: int) -> float:
        call, names = s.call, NAMES[:steps]
        began = perf_counter_ns()
        for name in names:
            await call(name, bare)
        return (perf_counter_ns() - began) / steps

    return loop


def loop_sdk() -> Callable[[int], Awaitable[float]]:
    """Ns per span of the SDK's alone, with the attributes that a step's span has."""
    tracer = provider().get_tracer("bare")

    async def loop(steps: int) -> float:
        names = NAMES[:steps]
        began = perf_counter_ns()
        for name in names:
            span = tracer.start_span(name, attributes={"asteps.step.path": name})
            token = context.attach(trace.set_span_in_context(span))
            context.detach(token)
            span.set_attribute("asteps.status", "done")
            span.end()
        return (perf_counter_ns() - began) / steps

    return loop


async def measure(report: Report) -> None:
    """In memory."""
    loops = {who: loop_steps(observers) for who, observers in subjects().items()}
    loops |= {"sdk": loop_sdk(), "bare": loop_bare}
    times: dict[str, list[float]] = {who: [] for who in loops}
    for turn in range(ROUNDS + 3):
        for who, loop in loops.items():
            gc.collect(0)
            took = await loop(STEPS)
            if turn >= 3:
                times[who].append(took)
    least = {who: min(took) for who, took in times.items()}
    rounds = list(zip(times["opentelemetry"], times["off"], times["sdk"], strict=True))
    report.add(
        "O3",
        "added by OpenTelemetry in memory, against the SDK's spans",
        median((otel - off) / sdk for otel, off, sdk in rounds),
        1.4,
        1.5,
        "ratio",
        best=(least["opentelemetry"] - least["off"]) / least["sdk"],
    )
    for who, took in times.items():
        report.facts[f"in memory, {who}"] = (
            f"{median(took):.0f} ns per step, at best {min(took):.0f}"
        )


def measure_on_disk(report: Report) -> None:
    """On SQLite, each commit synced."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, str(SCRIPT), directory, str(ON_DISK)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, dict[str, list[float]]] = json.loads(done.stdout)

    def added(who: str) -> tuple[float, float]:
        """Against without, by turns next to each other; and by the better quarters of all turns."""
        on, off = found[who]["wall"], found["off"]["wall"]
        return median(a / b for a, b in zip(on, off, strict=True)), quarter(on) / quarter(off)

    for id, who, aim, must in (
        ("O1", "observer", 1.05, 1.10),
        ("O1", "logs", 1.05, 1.10),
        ("O2", "opentelemetry", 1.15, 1.20),
    ):
        ratio, best = added(who)
        what = f"SQLite FULL seq with {who}, against without"
        report.add(id, what, ratio, aim, must, "ratio", best=best)
    report.facts["SQLite FULL seq with the bare SDK's span in each body"] = added("bare sdk")
    for who, costs in found.items():
        wall, cpu = (median(costs[what]) * 1e6 for what in ("wall", "cpu"))
        report.facts[f"on disk, {who}"] = f"{wall:.0f} us per step, {cpu:.0f} us of CPU"


def test_observers(benchmark: Any) -> None:
    """O1 to O3. That nothing is paid when nobody watches is M1, M3 and S1 as they were."""
    report = Report("observers")

    def both() -> None:
        asyncio.run(measure(report))
        measure_on_disk(report)

    benchmark.pedantic(both, rounds=1)
    benchmark.extra_info["goals"] = report.goals
    report.finish()
