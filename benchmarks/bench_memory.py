"""In memory, without a store: what a step costs against a bare `await fn()`, interleaved."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from statistics import median
from time import perf_counter_ns
from typing import Any

import floor
from goals import FULL, Report

import asteps

ROUNDS = 150 if FULL else 30
STEPS = 500
NAMES = [f"step {i}" for i in range(10_000)]

# What the Go library took per step, over a bare await: worked out from ratios that
# were recorded once, elsewhere. Only a hint, so M2 is never asserted.
GO = {100: 2.24, 1_000: 8.96, 10_000: 89.6}


async def bare() -> dict[str, Any]:
    """What a step does here; and what it is compared with."""
    return {"id": "i-0123456789abcdef0", "ip": "10.20.30.40", "size": 8}


async def unannotated():
    """The same, of which only the value tells that it comes back from JSON."""
    return {"id": "i-0123456789abcdef0", "ip": "10.20.30.40", "size": 8}


async def with_step(s: asteps.Step) -> dict[str, Any]:
    """The same, as a body of `do`."""
    return {"id": "i-0123456789abcdef0", "ip": "10.20.30.40", "size": 8}


async def loop_bare(steps: int) -> float:
    """Ns per bare await."""
    began = perf_counter_ns()
    for _ in range(steps):
        await bare()
    return (perf_counter_ns() - began) / steps


async def loop_floor(steps: int) -> float:
    """Ns per step of the floor's."""
    run, names = floor.Run(), NAMES[:steps]
    began = perf_counter_ns()
    for name in names:
        await run.do(name, bare)
    return (perf_counter_ns() - began) / steps


def loop_call(fn: Callable[[], Awaitable[Any]] = bare) -> Callable[[int], Awaitable[float]]:
    """Ns per new step by `call`."""

    async def loop(steps: int) -> float:
        return await asteps.run(body, steps)

    async def body(s: asteps.Step, steps: int) -> float:
        call, names = s.call, NAMES[:steps]
        began = perf_counter_ns()
        for name in names:
            await call(name, fn)
        return (perf_counter_ns() - began) / steps

    return loop


async def loop_do(steps: int) -> float:
    """Ns per new step by `do`."""

    async def body(s: asteps.Step) -> float:
        do, names = s.do, NAMES[:steps]
        began = perf_counter_ns()
        for name in names:
            await do(name, with_step)
        return (perf_counter_ns() - began) / steps

    return await asteps.run(body)


def loop_skip(*, do: bool = False) -> Callable[[int], Awaitable[float]]:
    """Ns per done step, in a tree read anew each time."""

    async def loop(steps: int) -> float:
        took = 0.0

        async def body(s: asteps.Step) -> None:
            nonlocal took
            names = NAMES[:steps]
            began = perf_counter_ns()
            if do:
                for name in names:
                    await s.do(name, with_step)
            else:
                for name in names:
                    await s.call(name, bare)
            took = (perf_counter_ns() - began) / steps
            s.pending(1e-6)

        if (data := recorded.get(steps)) is None:
            state = asteps.State("body")
            await asteps.reconcile(body, state=state)
            data = recorded[steps] = state.encode()
        await asteps.reconcile(body, state=asteps.State.decode(data))
        return took

    recorded: dict[int, bytes] = {}
    return loop


async def interleaved(
    loops: dict[str, Callable[[int], Awaitable[float]]], steps: int, rounds: int
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Medians of ns per step, and of the ratios to bare awaits; ratios of the fastest rounds."""
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            gc.collect(0)
            times[name].append(await loop(steps))
    ratios = {
        name: median(t / b for t, b in zip(took, times["bare"], strict=True))
        for name, took in times.items()
    }
    best = {name: min(took) / min(times["bare"]) for name, took in times.items()}
    return {name: median(took) for name, took in times.items()}, ratios, best


async def measure(report: Report) -> None:
    """Measure all."""
    loops: dict[str, Callable[[int], Awaitable[float]]] = {
        "bare": loop_bare,
        "floor do": loop_floor,
        "call": loop_call(),
        "call of an unannotated function": loop_call(unannotated),
        "do": loop_do,
        "skip of call": loop_skip(),
        "skip of do": loop_skip(do=True),
    }
    await interleaved(loops, STEPS, 3)
    ns, ratio, best = await interleaved(loops, STEPS, ROUNDS)
    for id, what, name, aim, must in (
        ("M1", "call, against bare await", "call", 8, 12),
        ("M3", "do, against bare await", "do", 12, 18),
        ("M4", "skip of a done call, against bare await", "skip of call", 2.5, 4),
        ("M4", "skip of a done do, against bare await", "skip of do", 2.5, 4),
    ):
        report.add(id, what, ratio[name], aim, must, "ratio", best=best[name])

    few: list[float] = []
    many: list[float] = []
    call = loops["call"]
    against_go: dict[int, list[float]] = {n: [] for n in GO}
    for _ in range(max(ROUNDS // 5, 10)):
        small = median([await call(100) for _ in range(50)])
        base = await loop_bare(10_000)
        large = await call(10_000)
        few.append(small)
        many.append(large)
        for n, took in {100: small, 1_000: await call(1_000), 10_000: large}.items():
            against_go[n].append(took / base / GO[n])
    grown = min(many) / min(few)  # of single long runs, which others disturb: the best of each
    report.add("M6", "ns per call at 10,000 against at 100", grown, 1.1, 1.2, "ratio")
    for (n, found), (aim, must) in zip(
        against_go.items(), [(4, 6), (0.9, 1.2), (0.1, 0.15)], strict=True
    ):
        report.add("M2", f"call at {n:,}, against Go (recorded)", median(found), aim, must, "rate")
    for name, took in ns.items():
        report.facts[name] = f"{took:.0f} ns, {ratio[name]:.2f}x"


def test_memory(benchmark: Any) -> None:
    """M1 to M4 and M6."""
    report = Report("memory")
    benchmark.pedantic(lambda: asyncio.run(measure(report)), rounds=1)
    benchmark.extra_info["goals"] = report.goals
    report.finish()
