"""The tools for flows, as type checkers see them: this file is checked, never run."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import assert_type

from asteps import Clock, Step
from asteps.testing import CrashReport, MockClock, both_ways, crash_everywhere


class World:
    def __init__(self, clock: MockClock) -> None:
        self.made: Counter[str] = Counter()


async def alone(s: Step, size: int) -> str:
    return "x" * size


async def acts(s: Step, world: World, size: int) -> list[str]:
    return ["x"] * size


def made(world: World) -> Counter[str]:
    return world.made


async def clocks() -> None:
    clock: Clock = MockClock(grace=timedelta(seconds=1))
    await clock.sleep(5)


async def right() -> None:
    assert_type(await both_ways(alone, 5), str)
    assert_type(await both_ways(alone, 5, save="pass", within=timedelta(days=1)), str)
    assert_type(await both_ways(acts, 5, world=World, effects=made), list[str])
    assert_type(await both_ways(acts, 5, world=World, effects=lambda w: w.made), list[str])
    assert_type(await crash_everywhere(alone, 5), CrashReport[str])
    report = await crash_everywhere(acts, 5, world=World, effects=made, may_repeat={"login"})
    assert_type(report.result, list[str])


async def wrong() -> None:
    await both_ways(alone, "5")  # type: ignore[arg-type]
    await both_ways(acts, 5)  # type: ignore[arg-type]
    await both_ways(alone, 5, world=World)  # type: ignore[arg-type,misc]
    await crash_everywhere(acts, world=World)  # type: ignore[arg-type,call-arg]
    await crash_everywhere(alone, 5, savings="pass")  # type: ignore[call-overload]
