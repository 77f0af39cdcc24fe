"""The clock that tests of flows run under: nobody waits, and everything happens in its order."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

import asteps
from asteps import Retry, State, Step, UsageError
from asteps.stores.memory import MemoryStore
from asteps.stores.sqlite import SQLiteStore
from asteps.testing import MockClock, _clock

# --- time -----------------------------------------------------------------------------------------


async def test_time_stands_still() -> None:
    """Time moves in `sleep` and `advance` alone, and both clocks show it."""
    clock = MockClock(1_000)
    for _ in range(100):
        await checkpoint()
    assert (clock.now(), clock.monotonic()) == (1_000, 1_000)
    await clock.sleep(3_600)
    assert (clock.now(), clock.monotonic()) == (4_600, 4_600)
    clock.advance(0.5)
    clock.advance(timedelta(minutes=1))
    assert (clock.now(), clock.monotonic()) == (4_660.5, 4_660.5)
    assert clock.slept == [3_600]
    assert isinstance(clock, asteps.Clock)


async def test_nobody_wakes_early() -> None:
    """Times are whole microseconds, as in a tree: a step waits once for what is due, no more."""

    async def flaky(s: Step) -> int:
        if s.attempt < 50:
            raise ConnectionError
        return s.attempt

    async def root(s: Step) -> int:
        return await s.do("x", flaky, retry=Retry(attempts=50, delay=1 / 3, factor=1.1, jitter=1))

    for where in ({}, {"store": MemoryStore(), "id": "x"}, {"state": State("x")}):
        clock = MockClock()
        keywords: Any = {**where, "clock": clock}
        assert await asteps.run(root, **keywords) == 50
        assert len(clock.slept) == 49


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "5", True], ids=str)
def test_wrong_durations(seconds: Any) -> None:
    """Time does not go back, and takes numbers only."""
    clock = MockClock()
    with pytest.raises(UsageError, match=r"advance\(\) is"):
        clock.advance(seconds)
    with pytest.raises(UsageError, match=r"MockClock\(grace=…\) is"):
        MockClock(grace=seconds)
    assert clock.now() == MockClock().now()


async def test_sleeping_for_no_time() -> None:
    """``sleep(0)`` is one checkpoint: others run, a cancellation arrives, time stands still."""
    clock, ran = MockClock(), list[int]()

    async def other() -> None:
        ran.append(1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        await clock.sleep(0)
        await clock.sleep(0)
        assert ran == [1]
    with anyio.CancelScope() as scope:
        scope.cancel()
        await clock.sleep(0)
    assert scope.cancelled_caught
    assert (clock.now(), clock.slept) == (MockClock().now(), [0, 0, 0])


# --- order ----------------------------------------------------------------------------------------


async def test_sleepers_wake_in_order() -> None:
    """The soonest wakes first, whoever lay down first, and each at its time."""
    clock, woke = MockClock(0), list[tuple[float, int]]()

    async def sleeper(number: int, *lengths: float) -> None:
        for length in lengths:
            await clock.sleep(length)
            woke.append((clock.now(), number))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sleeper, 1, 10, 10)
        tasks.start_soon(sleeper, 2, 7, 7, 7)
        tasks.start_soon(sleeper, 3, 5, 0.5)
        await clock.sleep(6)
        woke.append((clock.now(), 0))
    assert woke == [(5, 3), (5.5, 3), (6, 0), (7, 2), (10, 1), (14, 2), (20, 1), (21, 2)]


@pytest.mark.parametrize("turns", [1, 10, 300])
async def test_others_have_their_chance(turns: int) -> None:
    """Time does not move while some task can still come to a shorter sleep of its own."""
    clock, woke = MockClock(0), list[float]()

    async def slow() -> None:
        for _ in range(turns):
            await checkpoint()
        await clock.sleep(1)
        woke.append(clock.now())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(slow)
        tasks.start_soon(slow)
        await clock.sleep(60)
        woke.append(clock.now())
    assert woke == [1, 1, 60]


async def test_a_task_that_polls() -> None:
    """A task that can always run does not keep the time from moving."""
    clock = MockClock(0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clock.sleep, 5)
        while clock.now() < 5:
            await checkpoint()
    assert clock.now() == 5


async def test_advance_wakes() -> None:
    """Whoever was due while time was advanced wakes at the new time."""
    clock, woke = MockClock(0), list[tuple[float, float]]()

    async def sleeper(length: float) -> None:
        await clock.sleep(length)
        woke.append((length, clock.now()))

    async with anyio.create_task_group() as tasks:
        for length in (5, 30, 90):
            tasks.start_soon(sleeper, length)
        while len(clock.slept) < 3:
            await checkpoint()
        clock.advance(60)
    assert sorted(woke) == [(5, 60), (30, 60), (90, 90)]


async def test_whoever_moves_the_time_is_cancelled() -> None:
    """When the sleeper that looks after the time goes, another one does it."""
    clock, woke = MockClock(0), list[float]()

    async def sleeper(length: float) -> None:
        await clock.sleep(length)
        woke.append(clock.now())

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            tasks.start_soon(sleeper, 7)
            tasks.start_soon(sleeper, 5)
            async with anyio.create_task_group() as inner:
                inner.start_soon(clock.sleep, 100)
                inner.start_soon(clock.sleep, 1)
                for _ in range(2):
                    await checkpoint()
                scope.cancel()
    assert scope.cancelled_caught
    assert woke == [5, 7]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_own_cancellation() -> None:
    """The same for ``task.cancel()``, whenever it comes."""
    for turns in range(6):
        clock = MockClock(0)
        first = asyncio.create_task(clock.sleep(100))
        second = asyncio.create_task(clock.sleep(5))
        for _ in range(turns):
            await checkpoint()
        first.cancel()
        await asyncio.wait([first, second])
        assert (first.cancelled(), clock.now()) == (True, 5)


# --- deadlines ------------------------------------------------------------------------------------


async def test_deadlines() -> None:
    """Time stops at each deadline, whose scope is cancelled at that moment."""
    clock, cut = MockClock(0), list[tuple[float, float]]()

    async def bounded(limit: float) -> None:
        with clock.move_on_after(limit) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        cut.append((limit, clock.now()))

    async with anyio.create_task_group() as tasks:
        for limit in (3, 2, 8):
            tasks.start_soon(bounded, limit)
        await clock.sleep(9)
    assert cut == [(2, 2), (3, 3), (8, 8)]
    assert clock.now() == 9


async def test_a_deadline_comes_first() -> None:
    """Of a deadline and a sleep that are due at the same moment, the deadline wins."""
    clock = MockClock(0)
    with clock.move_on_after(5) as alone:
        await clock.sleep(5)
    assert alone.cancelled_caught
    scopes = []

    async def bounded() -> None:
        with clock.move_on_after(5) as scope:
            scopes.append(scope)
            await clock.sleep(5)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(bounded)
    assert [scope.cancelled_caught for scope in scopes] == [True] * 3


async def test_a_deadline_that_is_past() -> None:
    """A deadline of no seconds cancels at the first checkpoint; one that is left does nothing."""
    clock = MockClock(0)
    with clock.move_on_after(0) as scope:
        await checkpoint()
    assert scope.cancelled_caught
    with clock.move_on_after(5) as scope:
        clock.advance(4)
        await checkpoint()
    clock.advance(4)
    assert not scope.cancel_called
    with clock.move_on_after(5) as scope:
        clock.advance(6)
        await checkpoint()
    assert scope.cancelled_caught


async def test_a_deadline_alone_moves_nothing() -> None:
    """Where nobody sleeps, what is under a deadline may take as long as it takes."""
    clock = MockClock(0)
    with clock.move_on_after(0.000001) as scope:
        await anyio.sleep(0.003)
    assert (scope.cancel_called, clock.now()) == (False, 0)


# --- what is real ---------------------------------------------------------------------------------


async def test_a_worker_thread_is_not_overtaken() -> None:
    """A step whose plain function works in a thread does not fail because another one sleeps."""
    go_on = threading.Event()

    def work() -> str:
        go_on.wait(0.005)
        return "done"

    async def waits(s: Step) -> None:
        if s.info is None:
            s.info = True
            s.pending(after=3_600)

    async def root(s: Step) -> list[Any]:
        async with s.group("both") as g:
            worked = g.call("work", work, timeout=30)
            g.do("waits", waits)
        return [worked.result, clock.now()]

    clock = MockClock(0)
    assert await asteps.run(root, clock=clock) == ["done", 3_600]


async def test_a_thread_that_waits_for_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker thread holds the time only so long: it may wait for the clock itself."""
    monkeypatch.setattr(_clock, "_PATIENCE", 0.005)
    clock = MockClock(0)

    def sleep() -> None:
        anyio.from_thread.run(clock.sleep, 60.0)

    await anyio.to_thread.run_sync(sleep)
    assert clock.now() == 60


async def test_grace() -> None:
    """With ``grace=`` nothing is overtaken that takes less than that in reality."""
    for clock, overtaken in ((MockClock(0), True), (MockClock(0, grace=0.01), False)):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(clock.sleep, 60)
            with clock.move_on_after(5) as scope:
                await anyio.sleep(0.002)
        assert scope.cancelled_caught == overtaken


async def test_sqlite(tmp_path: Any) -> None:
    """A run in a file, whose store has a thread of its own, goes through its hours as well."""
    calls: list[float] = []

    async def flaky(s: Step) -> int:
        calls.append(clock.now())
        if s.attempt < 3:
            raise ConnectionError
        return s.attempt

    async def root(s: Step) -> int:
        return await s.do("flaky", flaky, retry=Retry(delay=3_600, max_delay=7_200, jitter=0))

    clock = MockClock(0, grace=0.001)
    async with SQLiteStore(tmp_path / "runs.db") as store:
        assert await asteps.run(root, store=store, id="x", clock=clock) == 3
    assert calls == [0, 3_600, 10_800]


async def test_a_loop_that_does_not_show_what_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loop such as uvloop's, others get a thousand turns each time."""
    loop = SimpleNamespace(call_soon=None)
    monkeypatch.setattr(_clock, "current_token", lambda: SimpleNamespace(native_token=loop))
    await test_sleepers_wake_in_order()
    await test_others_have_their_chance(300)


# --- many -----------------------------------------------------------------------------------------


async def test_many_sleepers() -> None:
    """Ten thousand sleepers wake in their order, and none costs a look at all the others."""
    clock, woke = MockClock(0), list[float]()

    async def sleeper(length: float) -> None:
        for _ in range(2):
            await clock.sleep(length)
        woke.append(clock.now())

    async with anyio.create_task_group() as tasks:
        for number in range(10_000):
            tasks.start_soon(sleeper, 1 + number % 100)
    assert len(woke) == 10_000
    assert woke == sorted(woke)
    assert clock.now() == 200


async def test_nothing_piles_up() -> None:
    """Deadlines that were left and sleeps that were cancelled are forgotten."""
    clock = MockClock(0)
    for _ in range(1_000):
        with clock.move_on_after(3_600):
            pass
        with anyio.CancelScope() as scope:
            scope.cancel()
            await clock.sleep(3_600)
    assert len(clock._deadlines._heap) + len(clock._sleepers._heap) < 300
    await clock.sleep(3)
    assert clock.now() == 3


@pytest.mark.parametrize("second", ["asyncio", "trio"])
@pytest.mark.parametrize("first", ["asyncio", "trio"])
def test_one_loop_after_another(first: str, second: str) -> None:
    """A clock may be used in one event loop after another."""
    clock = MockClock(0)

    async def leave_something() -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(clock.sleep, 50)
                await checkpoint()
                scope.cancel()
        await clock.sleep(5)

    async def go_on(*lengths: float) -> None:
        async with anyio.create_task_group() as tasks:
            for length in lengths:
                tasks.start_soon(clock.sleep, length)

    steps: list[tuple[Callable[..., Any], tuple[float, ...]]] = [
        (leave_something, ()),
        (go_on, (5, 10)),
    ]
    for backend, (fn, args) in zip((first, second), steps, strict=True):
        anyio.run(fn, *args, backend=backend)
    assert clock.now() == 15


WITHOUT_PYTEST = """
import sys
sys.modules["pytest"] = None
from asteps.testing import FaultyStore, MockClock, both_ways, crash_everywhere
try:
    from asteps.testing import StoreConformance
except ImportError as error:
    print(type(error).__name__, error)
"""


def test_only_the_kit_for_stores_needs_pytest() -> None:
    """Without pytest clocks and tools for flows are there; the kit says what to install."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTEST], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (
        "MissingDependencyError 'pytest' is not installed: pip install 'asteps[testing]'"
    )
