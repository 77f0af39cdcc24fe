"""A pass keeps to its budget of waiting, and leaves nothing behind that would still go off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from clocks import FakeClock
from timers import timers

import asteps
from asteps import Done, Pending, Retry, State, Step
from asteps.stores.memory import MemoryStore
from asteps.stores.sqlite import SQLiteStore

START = FakeClock().now()

# --- helpers --------------------------------------------------------------------------------------


class World:
    """A clock, and polls whose checks take as long as they are told."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.checks: dict[str, int] = {}
        self.enough = 50  # checks after which a task has finished

    @property
    def passed(self) -> float:
        return self.clock.now() - START

    async def start(self, name: str) -> str:
        return name

    async def check(self, takes: float, name: str) -> int | None:
        count = self.checks[name] = self.checks.get(name, 0) + 1
        if takes:
            await self.clock.sleep(takes)
        return count if count >= self.enough else None

    async def poll(self, s: Step, name: str, every: float, takes: float = 0) -> int:
        check = partial(self.check, takes)
        return await s.poll(name, partial(self.start, name), check, every=every)

    async def one_pass(self, flow: Callable[[Step], Awaitable[Any]], **keywords: Any) -> Any:
        given: dict[str, Any] = {"state": State("flow"), "clock": self.clock, "name": "flow"}
        return await asteps.reconcile(flow, **given | keywords)


# --- the budget -----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_wait", [0, 0.05, 0.1, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("every", [0.1, 0.3, 0.5, 2])
async def test_a_poll_is_waited_for_within_the_budget(max_wait: float, every: float) -> None:
    """``reconcile`` checks as often as falls into ``max_wait``, and returns not later than that."""
    world = World()

    async def flow(s: Step) -> int:
        return await world.poll(s, "x", every)

    outcome = await world.one_pass(flow, max_wait=max_wait)
    assert isinstance(outcome, Pending)
    assert world.passed <= max_wait
    assert world.checks["x"] == 1 + int(max_wait / every + 1e-6)
    due = world.checks["x"] * every
    assert outcome.after == pytest.approx(due - world.passed, abs=1e-5)


async def test_the_budget_is_of_the_pass_and_not_of_a_wait() -> None:
    """Waits of several steps one after another use up the same budget."""
    world = World()
    world.enough = 2

    async def flow(s: Step) -> None:
        for number in range(10):
            await world.poll(s, f"x{number}", 0.1)
            await s.sleep(f"z{number}", 0.1)

    outcome = await world.one_pass(flow, max_wait=0.55)
    assert isinstance(outcome, Pending)
    assert world.passed == pytest.approx(0.5, abs=1e-5)
    assert outcome.path == "z2"


@pytest.mark.parametrize("shape", ["task group", "group", "map"])
async def test_the_budget_of_many(shape: str) -> None:
    """Polls beside each other, with many intervals, do not add up: at 0.5 s the pass has ended."""
    world = World()
    intervals = {f"p{n}": 0.01 + n * 0.013 for n in range(40)}

    async def flow(s: Step) -> None:
        if shape == "group":
            async with s.group("g", limit=7) as g:
                for name, every in intervals.items():
                    start = partial(world.start, name)
                    g.poll(name, start, partial(world.check, 0), every=every)
        elif shape == "map":

            async def item(child: Step, name: str) -> int:
                return await world.poll(child, name, intervals[name])

            await s.map("m", item, list(intervals), limit=7)
        else:
            async with anyio.create_task_group() as tasks:
                for name, every in intervals.items():
                    tasks.start_soon(world.poll, s, name, every)

    outcome = await world.one_pass(flow, max_wait=0.5)
    assert isinstance(outcome, Pending)
    assert world.passed <= 0.5
    for name, every in intervals.items():
        assert world.checks[name] == min(50, 1 + int(0.5 / every + 1e-4)), name


async def test_a_running_body_is_waited_for() -> None:
    """Beyond the budget the caller is held by what still runs, and by that alone."""
    world = World()

    async def work(s: Step) -> None:
        await world.clock.sleep(3)

    async def flow(s: Step) -> None:
        async with s.group("g") as g:
            start, check = partial(world.start, "x"), partial(world.check, 0)
            g.poll("x", start, check, every=0.2)
            g.do("work", work)

    outcome = await world.one_pass(flow, max_wait=0.5)
    assert isinstance(outcome, Pending)
    assert world.passed == pytest.approx(3)


@pytest.mark.parametrize("shape", ["task group", "group", "do", "three"])
@pytest.mark.parametrize("max_wait", [0, 0.5])
async def test_pollers_do_not_keep_a_pass_alive(shape: str, max_wait: float) -> None:
    """Checks that take longer than the interval do not wake each other beyond the budget."""
    world = World()
    names = {"a": 2.0, "b": 1.5, "c": 1.7} if shape == "three" else {"a": 2.0, "b": 1.5}

    async def check(takes: float, name: str) -> int | None:
        first = name not in world.checks
        return await world.check(takes if not first else takes / 2 + 0.1 * len(world.checks), name)

    async def body(child: Step, takes: float) -> None:
        if await check(takes, child.name) is None:
            child.pending(after=0.5)

    async def polling(s: Step, name: str, takes: float) -> None:
        if shape == "do":
            await s.do(name, body, takes)
        else:
            await s.poll(name, partial(world.start, name), partial(check, takes), every=0.5)

    async def flow(s: Step) -> None:
        if shape == "group":
            async with s.group("g") as g:
                for name, takes in names.items():
                    start = partial(world.start, name)
                    g.poll(name, start, partial(check, takes), every=0.5)
        else:
            async with anyio.create_task_group() as tasks:
                for name, takes in names.items():
                    tasks.start_soon(polling, s, name, takes)

    outcome = await world.one_pass(flow, max_wait=max_wait)
    assert isinstance(outcome, Pending)
    assert world.passed <= max_wait + 2 * max(names.values())


async def test_staggered_pollers_do_not_keep_a_pass_alive() -> None:
    """Many polls, of which one is checking at any time, do not add up to an endless pass."""
    world = World()

    async def flow(s: Step) -> None:
        async with s.group("g", limit=3) as g:
            for number in range(20):
                start, check = partial(world.start, f"p{number}"), partial(world.check, 0.5)
                g.poll(f"p{number}", start, check, every=2 + number / 7)

    outcome = await world.one_pass(flow)
    assert isinstance(outcome, Pending)
    assert world.passed <= 0.5 * 20 / 3 + 6


class CountingClock(FakeClock):
    """Counts how often somebody asked for the time, which those who wait do when they look."""

    asked = 0

    def now(self) -> float:
        """See `Clock.now`."""
        self.asked += 1
        return super().now()


async def test_waiting_for_a_late_sibling_costs_nothing() -> None:
    """A poll whose time has come waits quietly for a check that the pass has yet to finish."""
    world = World()
    clock = world.clock = CountingClock()

    async def check(first: float, name: str) -> int | None:
        return await world.check(first if name not in world.checks else 20, name)

    async def flow(s: Step) -> None:
        async with s.group("g") as g:
            g.poll("a", partial(world.start, "a"), partial(check, 5), every=0.5)
            g.poll("b", partial(world.start, "b"), partial(check, 1), every=0.5)

    outcome = await world.one_pass(flow)
    assert isinstance(outcome, Pending)
    assert world.checks == {"a": 1, "b": 2}  # a was not due while b's first check was under way
    assert world.passed == pytest.approx(21.5)
    assert clock.asked < 100


async def test_a_sequence_beside_many_that_wait_is_not_slowed_down() -> None:
    """What waits beyond the pass is left alone while a sibling takes one step after another.

    Else each step would cost as much as there are of them.
    """
    world = World()
    clock = world.clock = CountingClock()
    waiting, steps = 200, 100

    async def one(s: Step) -> int:
        return 1

    async def sequence(s: Step) -> None:
        for number in range(steps):
            await s.do(f"step {number}", one)

    async def flow(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(waiting):
                tasks.start_soon(world.poll, s, f"p{number}", 100)
            tasks.start_soon(sequence, s)

    outcome = await world.one_pass(flow, state=None, store=MemoryStore(), id="r")
    assert isinstance(outcome, Pending)
    assert sum(node.done for _, node in outcome.state.walk()) == steps
    assert clock.asked < 30 * (waiting + steps)  # and not their product


async def test_retries_do_not_keep_a_pass_alive() -> None:
    """Steps that fail again and again beside each other wake each other no more than polls do."""
    world = World()

    async def body(s: Step) -> None:
        count = world.checks[s.name] = world.checks.get(s.name, 0) + 1
        await world.clock.sleep(2 if count > 1 or s.name == "a" else 1)
        raise ConnectionError

    async def flow(s: Step) -> None:
        retry = Retry(attempts=50, delay=0.5, factor=1, jitter=0)
        async with s.group("g") as g:
            g.do("a", body, retry=retry)
            g.do("b", body, retry=retry)

    outcome = await world.one_pass(flow)
    assert isinstance(outcome, Pending)
    assert world.passed <= 6


async def test_in_real_time() -> None:
    """By the clock on the wall: 50 ms of budget hold the caller for hardly longer."""
    checks: list[float] = []

    async def flow(s: Step) -> None:
        async def start() -> int:
            return 1

        async def check(task: int) -> None:
            checks.append(time.monotonic())

        async with s.group("g") as g:
            for number in range(10):
                g.poll(f"p{number}", start, check, every=0.002 + number / 1000)

    began = time.monotonic()
    outcome = await asteps.reconcile(flow, store=MemoryStore(), id="r", max_wait=0.05)
    took = time.monotonic() - began
    assert isinstance(outcome, Pending)
    assert len(checks) > 20
    print(f"max_wait=0.05 took {took:.3f} s for {len(checks)} checks")
    assert took < 0.05 + 0.25  # of a machine that others use
    assert max(checks) - began < 0.05 + 0.1


async def test_the_budget_of_a_run_that_is_opened() -> None:
    """``open_run`` has the same budget, 0 if it is not told."""
    world = World()
    for max_wait, checks in ((0, 1), (0.35, 4)):
        world.checks.clear()
        state = State("flow")
        async with asteps.open_run("flow", state=state, clock=world.clock, max_wait=max_wait) as s:
            await world.poll(s, "x", 0.1)
        assert isinstance(s.outcome, Pending)
        assert world.checks["x"] == checks


# --- what is left ---------------------------------------------------------------------------------


async def forever(s: Step) -> None:
    """Polls, sleeps, retries and timeouts in all shapes; none ever comes to an end."""

    async def start() -> int:
        return 1

    async def check(task: int) -> None:
        return None

    def check_in_a_thread(task: int) -> None:
        return None

    async def flaky(child: Step) -> None:
        raise ConnectionError

    async def inner(child: Step) -> None:
        async with child.group("g", limit=2) as g:
            for number in range(5):
                g.poll(f"p{number}", start, check, every=1_000, timeout=2_000)
            g.poll("thread", start, check_in_a_thread, every=1_000)
            g.do("flaky", flaky, retry=Retry(attempts=9, delay=1_000), timeout=3_000)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(s.sleep, "z", 1_000)
        tasks.start_soon(partial(s.poll, "x", start, check, every=1_000, timeout=5_000))
        tasks.start_soon(s.do, "inner", inner)
        tasks.start_soon(partial(s.do, "inner with time", inner, timeout=4_000))


async def left_after(drive: Callable[[], Awaitable[object]]) -> int:
    """How many more timers there are after this than before."""
    before = timers()
    await drive()
    return timers() - before


@pytest.mark.parametrize("kind", ["memory", "sqlite", "state"])
async def test_no_timer_outlives_a_pass(kind: str, tmp_path: Path) -> None:
    """After ``reconcile`` with waiting steps the event loop has no timer more than before."""

    async def drive(**keywords: Any) -> None:
        for max_wait in (0, 0.005):
            outcome = await asteps.reconcile(forever, max_wait=max_wait, **keywords)
            assert isinstance(outcome, Pending)

    if kind == "memory":
        assert await left_after(partial(drive, store=MemoryStore(), id="r")) == 0
    elif kind == "state":
        assert await left_after(partial(drive, state=State("forever"))) == 0
    else:
        async with SQLiteStore(tmp_path / "runs.db") as store:
            assert await left_after(partial(drive, store=store, id="r")) == 0


@pytest.mark.parametrize("shape", ["polls", "all"])
async def test_no_timer_outlives_a_run_that_was_cancelled(shape: str) -> None:
    """After ``run`` was cancelled while all its steps waited in place, no timer is left."""
    waiting = anyio.Event()

    async def watch(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(forever, s)
            while timers() < 10:
                await anyio.sleep(0.001)
            waiting.set()

    async def drive() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(asteps.run, watch, store=MemoryStore(), id="r"))
            await waiting.wait()
            tasks.cancel_scope.cancel()

    assert await left_after(drive) == 0


async def test_no_timer_outlives_a_native_cancellation(anyio_backend: str) -> None:
    """The same of asyncio's ``task.cancel()``."""
    if anyio_backend != "asyncio":
        return

    async def drive() -> None:
        before = timers()
        task = asyncio.ensure_future(asteps.run(forever, store=MemoryStore(), id="r"))
        while timers() - before < 10:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert await left_after(drive) == 0


async def test_no_timer_outlives_a_run_to_its_end() -> None:
    """After a run has ended nothing ticks any more, also no timeout that did not pass."""

    async def start() -> int:
        return 1

    async def flow(s: Step) -> int:
        calls: list[int] = []

        async def check(task: int) -> int | None:
            calls.append(1)
            return 7 if len(calls) > 2 else None

        async with s.group("g", enough=1) as g:
            child = g.poll("x", start, check, every=0.001, timeout=1_000)
            g.poll("never", start, check_never, every=1_000, timeout=5_000)
        return child.result

    async def check_never(task: int) -> int | None:
        return None

    async def drive() -> None:
        outcome = await asteps.reconcile(flow, store=MemoryStore(), id="r", max_wait=1_000)
        assert isinstance(outcome, Done)
        assert outcome.value == 7

    assert await left_after(drive) == 0
