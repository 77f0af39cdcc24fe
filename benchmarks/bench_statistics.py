"""Statistics over very many runs: what one run costs, and how much memory 100,000 take."""

from __future__ import annotations

import gc
import random
import resource
import sys
import tracemalloc
from datetime import UTC, datetime, timedelta
from time import perf_counter_ns
from typing import Any

from goals import FULL, Report

from asteps import State
from asteps._codec import assemble, tree_as_records
from asteps._state import RunRecord
from asteps.reports import Statistics

ROUNDS = 30 if FULL else 8
RUNS = 500  # of one round
STEPS = 10
MANY = 100_000 if FULL else 20_000
START = datetime(2026, 1, 1, tzinfo=UTC)


def run_of(place: int, rng: random.Random) -> dict[str, bytes]:
    """The records of a run of plain steps in a row."""
    now = START + timedelta(minutes=place)
    root = State("flow", _started=now, run=RunRecord(1, nonce="0" * 32, created_at=now))
    root.states = []
    for step in "abcdefghij"[:STEPS]:
        begun = now
        now += timedelta(seconds=rng.lognormvariate(0, 1))
        done = State(f"step {step}", _started=begun, _done=now, place=len(root.states))
        root.states.append(done)
    root._done = now
    return tree_as_records(root)


def peak_mb() -> float:
    """The most memory that this process has had."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(report: Report) -> None:
    """Measure all."""
    rng = random.Random(1)
    stored = [run_of(place, rng) for place in range(RUNS)]
    decoding: list[float] = []
    adding: list[float] = []
    for _ in range(ROUNDS):
        gc.collect()
        began = perf_counter_ns()
        states = [assemble(records, "the run") for records in stored]
        decoded = perf_counter_ns()
        stats = Statistics()
        for state in states:
            stats.add(state, run_id="run")
        adding.append((perf_counter_ns() - decoded) / RUNS)
        decoding.append((decoded - began) / RUNS)
    ratio = sorted(a / d for a, d in zip(adding, decoding, strict=True))[ROUNDS // 2]
    best = min(adding) / min(decoding)
    what = "adding a run of 10 steps, against decoding it"
    report.add("T1", what, ratio, 3, 5, "ratio", best=best)
    report.facts["add"] = f"{min(adding) / 1e3:.1f} us, decode {min(decoding) / 1e3:.1f} us"

    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    stats = Statistics()
    for place in range(2_000):
        stats.add(assemble(stored[place % RUNS], "the run"), run_id="run")
    at_first = tracemalloc.get_traced_memory()[0] - before
    for place in range(8_000):
        stats.add(assemble(stored[place % RUNS], "the run"), run_id="run")
    grown = tracemalloc.get_traced_memory()[0] - before - at_first
    tracemalloc.stop()
    per_step = grown / 8_000 / (STEPS + 1)
    report.add("T2", "bytes kept for each step that is added", per_step, 24, 32, "count")

    stats = Statistics()
    for place in range(MANY):
        stats.add(assemble(stored[place % RUNS], "the run"), run_id="run")
    began = perf_counter_ns()
    stats.summary()
    took = (perf_counter_ns() - began) / 1e9
    report.add("T3", f"peak MB of {MANY:,} runs of {STEPS} steps", peak_mb(), 120, 300, "count")
    report.add("T4", f"seconds for the summary of {MANY:,} runs", took, 0.5, 2, "rate")


def test_statistics(benchmark: Any) -> None:
    """T1 to T4."""
    report = Report("statistics")
    benchmark.pedantic(measure, args=(report,), rounds=1)
    benchmark.extra_info["goals"] = report.goals
    report.finish()
