"""Steps may run concurrently in any shape: the rules belong to the parent, not to the group."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import anyio
import pytest
from anyio.lowlevel import checkpoint
from clocks import FakeClock

import asteps
from asteps import (
    DuplicateStepError,
    Failed,
    Pending,
    Retry,
    Step,
    StepError,
    UsageError,
    load_state,
    reconcile,
    run,
)
from asteps.stores.memory import MemoryStore
from asteps.testing import Crash, FaultyStore

only_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])

Call = tuple[Any, ...]


class Together(Protocol):
    """Runs calls ``(do, *args)`` concurrently and returns when all have ended."""

    async def __call__(self, *calls: Call) -> None: ...


async def in_anyio(*calls: Call) -> None:
    """In a task group of anyio."""
    async with anyio.create_task_group() as tasks:
        for fn, *args in calls:
            tasks.start_soon(fn, *args)


async def in_asyncio(*calls: Call) -> None:
    """In a task group of asyncio."""
    async with asyncio.TaskGroup() as tasks:
        for fn, *args in calls:
            tasks.create_task(fn(*args))


async def in_gather(*calls: Call) -> None:
    """With ``asyncio.gather``."""
    await asyncio.gather(*(fn(*args) for fn, *args in calls))


@pytest.fixture(params=["anyio", "TaskGroup", "gather"])
def together(request: pytest.FixtureRequest, anyio_backend_name: str) -> Together:
    """Each way to run things concurrently; on trio there is one."""
    if anyio_backend_name == "trio":
        return in_anyio
    ways: dict[str, Together] = {
        "anyio": in_anyio,
        "TaskGroup": in_asyncio,
        "gather": in_gather,
    }
    return ways[str(request.param)]


class World:
    """Notes what bodies do, and how many of each are at work."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.log: list[str] = []
        self.running: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.waits: dict[str, int] = {}

    def take(self) -> list[str]:
        taken, self.log = self.log, []
        return taken

    async def reconcile(self, fn: Callable[..., Awaitable[Any]], **keywords: Any) -> Any:
        return await reconcile(fn, store=self.store, id="r", clock=self.clock, **keywords)

    async def run(self, fn: Callable[..., Awaitable[Any]], **keywords: Any) -> Any:
        return await run(fn, store=self.store, id="r", clock=self.clock, **keywords)

    def long(self, turns: int) -> Callable[[Step], Awaitable[str]]:
        """A body that works for so many turns."""

        async def body(s: Step) -> str:
            self.log.append(s.path)
            self.running[s.path] = self.running.get(s.path, 0) + 1
            self.most[s.path] = max(self.most.get(s.path, 0), self.running[s.path])
            try:
                for _ in range(turns):
                    await checkpoint()
            finally:
                self.running[s.path] -= 1
            return s.path

        return body

    def ticking(self, seconds: float, turns: int = 3) -> Callable[[Step], Awaitable[str]]:
        """A body that works for so many seconds of the clock."""

        async def body(s: Step) -> str:
            self.log.append(s.path)
            for _ in range(turns):
                await self.clock.sleep(seconds / turns)
            self.log.append(f"{s.path} done")
            return s.path

        return body

    def pending(self, times: int, after: float = 5) -> Callable[[Step], Awaitable[str]]:
        """A body that is pending so often."""

        async def body(s: Step) -> str:
            self.log.append(s.path)
            self.waits[s.path] = self.waits.get(s.path, 0) + 1
            if self.waits[s.path] <= times:
                s.pending(after=after, why=f"{s.path} {self.waits[s.path]}")
            return s.path

        return body


# --- the drain rule -------------------------------------------------------------------------------


async def test_a_pending_step_beside_a_longer_sibling(together: Together) -> None:
    """The sibling is finished first: its body runs once, one copy at most, however many passes."""
    world = World()

    async def root(s: Step) -> str:
        await together((s.do, "wait", wait), (s.do, "long", long))
        return "all"

    wait, long = world.pending(3), world.long(100)
    for turn in range(3):
        outcome = await world.reconcile(root)
        assert isinstance(outcome, Pending)
        assert (outcome.path, outcome.why, outcome.after) == ("wait", f"wait {turn + 1}", 5)
        assert outcome.state.get("long").done
        assert outcome.state.get("wait").pending
        world.clock.advance(5)
    assert await world.run(root) == "all"
    assert world.most == {"long": 1}
    assert sorted(world.log) == ["long", "wait", "wait", "wait", "wait"]


@pytest.mark.parametrize("first", ["wait", "long"])
async def test_the_order_of_siblings_does_not_matter(together: Together, first: str) -> None:
    """The same, whichever of the two is started first."""
    world = World()

    async def root(s: Step) -> None:
        calls: list[Call] = [(s.do, "wait", wait), (s.do, "long", long)]
        await together(*(calls if first == "wait" else calls[::-1]))

    wait, long = world.pending(1), world.long(30)
    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert outcome.state.get("long").done
    assert sorted(world.log) == ["long", "wait"]


async def test_a_sibling_with_steps_of_its_own_is_finished(together: Together) -> None:
    """The working sibling may be a whole subtree; the pending one may be deep in another."""
    world = World()

    async def deep(s: Step) -> str:
        world.log.append(s.path)
        return await s.do("x", wait)

    async def deeper(s: Step) -> str:
        return await s.do("deep", deep)

    async def work(s: Step) -> str:
        for i in range(5):
            await s.do(f"s{i}", world.long(3))
        return "worked"

    async def root(s: Step) -> None:
        await together((s.do, "a", deeper), (s.do, "b", work))

    wait = world.pending(1)
    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert (outcome.path, outcome.after) == ("a/deep/x", 5)
    assert outcome.state.get("b").done
    world.take()
    world.clock.advance(5)
    await world.run(root)
    assert world.take() == ["a/deep", "a/deep/x"]


async def test_sibling_sequences(together: Together) -> None:
    """Two sequences side by side: each gets as far as it can, and goes on where it stood."""
    world = World()

    async def left(s: Step) -> None:
        await s.do("l1", world.long(2))
        await s.do("l2", wait)
        await s.do("l3", world.long(2))

    async def right(s: Step) -> None:
        for i in range(1, 6):
            await s.do(f"r{i}", world.long(4))

    async def root(s: Step) -> None:
        await together((left, s), (right, s))

    wait = world.pending(1)
    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert (outcome.path, outcome.after) == ("l2", 5)
    # Between two steps of its sequence nobody works: the pass may end there, and loses nothing.
    first = world.take()
    assert first[:2] in (["l1", "r1"], ["r1", "l1"])
    assert "l3" not in first
    world.clock.advance(5)
    await world.run(root)
    assert sorted(first + world.take()) == ["l1", "l2", "l2", "l3", "r1", "r2", "r3", "r4", "r5"]


async def test_the_soonest_wake_time(together: Together) -> None:
    """A pass with several pending steps, at different depths, says when the first is due."""
    world = World()

    async def nested(s: Step) -> None:
        await together((s.do, "x", world.pending(9, 30)), (s.do, "y", world.pending(9, 20)))

    async def root(s: Step) -> None:
        await together(
            (s.do, "a", world.pending(9, 40)),
            (s.do, "n", nested),
            (s.do, "b", world.pending(9, 50)),
            (s.do, "long", world.long(20)),
        )

    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert (outcome.after, outcome.path, outcome.why) == (20, "n/y", "n/y 1")
    waiting = [p for p, n in outcome.state.walk() if n.pending and not n.states]
    assert sorted(waiting) == ["a", "b", "n/x", "n/y"]
    world.take()
    world.clock.advance(20)
    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert world.take() == ["n/y"]
    assert (outcome.after, outcome.path) == (10, "n/x")


async def test_pending_steps_alone_end_the_pass(together: Together) -> None:
    """When all children wait the pass ends; each of them had its turn."""
    world = World()

    async def root(s: Step) -> None:
        await together(*((s.do, f"w{i}", world.pending(1, 5 + i)) for i in range(5)))

    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert (outcome.after, outcome.path) == (5, "w0")
    assert sorted(world.take()) == [f"w{i}" for i in range(5)]
    world.clock.advance(7)
    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert sorted(world.take()) == ["w0", "w1", "w2"]
    assert (outcome.after, outcome.path) == (1, "w3")


async def test_a_parked_child_is_called_again_while_a_sibling_works(together: Together) -> None:
    """A pending child whose time comes while a sibling works is called again in the same pass."""
    world = World()

    async def root(s: Step) -> None:
        await together((s.do, "wait", world.pending(2, 5)), (s.do, "work", world.ticking(30)))

    assert isinstance(await world.reconcile(root), asteps.Done)
    assert sorted(world.log[:2]) == ["wait", "work"]
    assert world.log[2:] == ["wait", "wait", "work done"]


async def test_a_parked_subtree_is_entered_again_while_a_sibling_works(together: Together) -> None:
    """A step whose child is pending is called again, with the child, while a sibling works."""
    world = World()

    async def parent(s: Step) -> None:
        world.log.append("p")
        await s.do("first", world.long(1))
        await s.do("wait", wait)

    async def root(s: Step) -> None:
        await together((s.do, "p", parent), (s.do, "work", world.ticking(100, turns=60)))

    wait = world.pending(2, 5)
    assert isinstance(await world.reconcile(root), asteps.Done)
    assert [line for line in world.log if not line.startswith("work")] == [
        *("p", "p/first", "p/wait", "p", "p/wait", "p", "p/wait"),
    ]


async def test_a_race_between_steps() -> None:
    """A body may cancel the losers of a race: they are interrupted, the winner counts."""
    world = World()

    async def loser(s: Step) -> str:
        await anyio.sleep_forever()
        raise AssertionError

    async def root(s: Step) -> str:
        found: list[str] = []

        async def one(name: str, fn: Callable[[Step], Awaitable[str]]) -> None:
            found.append(await s.do(name, fn))
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, "slow", loser)
            tasks.start_soon(one, "quick", world.long(5))
        await s.do("after", world.long(1))
        return found[0]

    assert await world.run(root) == "quick"
    assert world.log == ["quick", "after"]
    state = await load_state(world.store, "r")
    assert state is not None
    assert (state.done, state.get("slow").done, state.get("slow").failed) == (True, False, False)


async def test_a_parked_child_waits_no_longer_than_its_sibling(together: Together) -> None:
    """A child that is due after its sibling's end ends the pass when the sibling has ended."""
    world = World()

    async def root(s: Step) -> None:
        await together((s.do, "wait", wait), (s.do, "work", world.ticking(12)))

    wait = world.pending(9, 5)
    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert world.waits == {"wait": 3}  # at 0, 5 and 10
    assert (outcome.after, outcome.path) == (3, "wait")
    assert outcome.state.get("work").done


async def test_waiting_in_place_is_work(together: Together) -> None:
    """A child that is waited for in place counts as working: its siblings go on beside it."""
    world = World()

    async def root(s: Step) -> None:
        await together((s.do, "short", world.pending(2, 4)), (s.do, "far", world.pending(1, 60)))

    outcome = await world.reconcile(root, max_wait=10)
    assert isinstance(outcome, Pending)
    assert (outcome.path, outcome.after) == ("far", 52)
    assert outcome.state.get("short").done
    assert world.waits == {"short": 3, "far": 1}


async def test_run_waits_for_concurrent_children_in_place(together: Together) -> None:
    """`run` waits for each child in place; none of the others stands still for it."""
    world = World()
    start = world.clock.now()

    async def child(s: Step, after: float) -> None:
        await s.do("w", world.pending(1, after))
        world.log.append(f"{s.path} at {world.clock.now() - start:g}")

    async def root(s: Step) -> None:
        await together(*((s.do, f"c{after}", child, after) for after in (30, 10, 20)))

    await world.run(root)
    assert [line for line in world.log if " at " in line] == [
        *("c10 at 10", "c20 at 20", "c30 at 30"),
    ]


async def test_a_retrying_child_beside_a_working_one(together: Together) -> None:
    """A child between two attempts waits like a pending one: the sibling is finished first."""
    world = World()
    tries = 0

    async def flaky(s: Step) -> None:
        nonlocal tries
        tries += 1
        if tries < 2:
            raise ConnectionError("no route")

    async def root(s: Step) -> None:
        async def retried() -> None:
            await s.do("flaky", flaky, retry=Retry(attempts=2, delay=5, jitter=0))

        await together((retried,), (s.do, "long", world.long(50)))

    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert (outcome.path, outcome.why, outcome.after) == ("flaky", "no route", 5)
    assert outcome.state.get("long").done
    world.clock.advance(5)
    assert isinstance(await world.reconcile(root), asteps.Done)
    assert (tries, world.log) == (2, ["long"])


async def test_the_bodys_own_task_may_be_pending_beside_its_children() -> None:
    """A step of the body's own task that is pending waits for the children that still work."""
    world = World()

    async def root(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(s.do, "long", world.long(40))
            await checkpoint()
            await s.do("wait", wait)

    wait = world.pending(1)
    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert outcome.state.get("long").done
    world.clock.advance(5)
    await world.run(root)
    assert sorted(world.log) == ["long", "wait", "wait"]


# --- failures beside signals ----------------------------------------------------------------------


async def test_an_error_beside_a_pending_step_wins(together: Together) -> None:
    """A failed child beside a pending one fails the parent, also when the other has parked."""
    world = World()

    async def bad(s: Step) -> None:
        for _ in range(10):
            await checkpoint()
        raise ValueError("bad")

    async def root(s: Step) -> None:
        await together((s.do, "wait", world.pending(9)), (s.do, "bad", bad))

    outcome = await world.reconcile(root)
    assert isinstance(outcome, Failed)
    assert outcome.error.origin == "bad"
    assert outcome.error.is_a(ValueError)
    assert outcome.error.errors[0].failure.message == "bad"
    assert not outcome.state.get("wait").failed


async def test_an_error_in_a_nested_group_wins(together: Together) -> None:
    """Signals and errors wrapped in groups of groups: the error is what counts."""
    world = World()
    begun = anyio.Event()

    async def bad(s: Step) -> None:
        begun.set()
        for _ in range(10):
            await checkpoint()
        raise ValueError("bad")

    async def wait(s: Step) -> None:
        await begun.wait()
        s.pending(after=5)

    async def root(s: Step) -> None:
        async def inner() -> None:
            await together((s.do, "w1", wait), (s.do, "w2", wait))

        async def innermost() -> None:
            await together((s.do, "bad", bad), (s.do, "w3", wait))

        async def middle() -> None:
            await together((innermost,), (inner,))

        await together((middle,), (s.do, "w4", wait))

    outcome = await world.reconcile(root)
    assert isinstance(outcome, Failed)
    assert outcome.error.origin == "bad"
    assert not any(n.errs for p, n in outcome.state.walk() if p.startswith("w"))


async def test_signals_in_nested_groups(together: Together) -> None:
    """Signals alone, wrapped in groups of groups, make the run pending, due when the first is."""
    world = World()
    begun: list[str] = []

    async def wait(s: Step, after: float) -> None:
        begun.append(s.path)
        while len(begun) < 6:
            await checkpoint()
        s.pending(after=after)

    async def root(s: Step) -> None:
        async def inner(prefix: str) -> None:
            await together((s.do, f"{prefix}1", wait, 20), (s.do, f"{prefix}2", wait, 9))

        async def middle() -> None:
            await together((inner, "a"), (inner, "b"))

        await together((middle,), (inner, "c"))

    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert outcome.after == 9
    assert outcome.path in ("a2", "b2", "c2")
    assert len([p for p, n in outcome.state.walk() if p and n.pending]) == 6


async def test_siblings_in_nested_groups_begin(together: Together) -> None:
    """A pending step lets siblings begin that are started in groups of groups at the same time."""
    world = World()

    async def root(s: Step) -> None:
        async def inner() -> None:
            await together((s.do, "x", world.long(3)), (s.do, "y", world.long(3)))

        async def middle() -> None:
            await together((inner,))

        await together((middle,), (s.do, "wait", world.pending(9)))

    for _ in range(2):
        outcome = await world.reconcile(root)
        assert isinstance(outcome, Pending)
        assert outcome.path == "wait"
    assert sorted(world.log) == ["wait", "x", "y"]


async def test_a_raw_pending_in_a_group(together: Together) -> None:
    """``s.pending`` called in a child task of the body: the step itself is pending."""
    world = World()

    async def body(s: Step) -> str:
        world.log.append("body")
        if len(world.log) < 2:

            async def wait() -> None:
                await checkpoint()
                s.pending(after=7, why="in a task")

            async def work() -> None:
                for _ in range(3):
                    await checkpoint()

            await together((wait,), (work,))
        return "there"

    async def root(s: Step) -> str:
        return await s.do("a", body)

    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert (outcome.after, outcome.path, outcome.why) == (7, "a", "in a task")
    assert await world.run(root) == "there"


class Stop(BaseException):
    """An exception of the program's own that is no `Exception`."""


async def test_other_exceptions_win_over_all() -> None:
    """``KeyboardInterrupt`` and its like win over errors and signals, in nested groups too."""
    world = World()

    async def bad(s: Step) -> None:
        await gate.wait()
        raise ValueError("bad")

    async def stop(s: Step) -> None:
        await gate.wait()
        raise Stop

    async def root(s: Step) -> None:
        async def inner() -> None:
            await in_anyio((s.do, "stop", stop), (s.do, "wait", world.pending(9)))

        async def open_gate() -> None:
            for _ in range(10):
                await checkpoint()
            gate.set()

        await in_anyio((s.do, "bad", bad), (inner,), (open_gate,))

    gate = anyio.Event()
    with pytest.raises(Stop):
        await world.reconcile(root)
    state = await load_state(world.store, "r")
    assert state is not None
    assert not state.failed
    assert not state.get("stop").errs


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Stop])
async def test_a_group_that_holds_everything(kind: type[BaseException]) -> None:
    """A body may raise a group of whatever it has: what is no outcome wins, then errors."""
    world = World()

    async def root(s: Step) -> None:
        raise BaseExceptionGroup(
            "all", [ValueError("bad"), ExceptionGroup("x", [OSError()]), kind()]
        )

    with pytest.raises(kind):
        await world.reconcile(root)
    state = await load_state(world.store, "r")
    assert state is not None
    assert not state.failed


async def test_a_handled_failure_in_a_group(together: Together) -> None:
    """A failure that a child task handles is history; siblings are not disturbed."""
    world = World()

    async def bad(s: Step) -> None:
        raise ValueError("bad")

    async def root(s: Step) -> str:
        async def handled() -> None:
            try:
                await s.do("bad", bad)
            except StepError:
                await s.do("instead", world.long(3))

        await together((handled,), (s.do, "long", world.long(20)))
        return "fine"

    assert await world.run(root) == "fine"
    assert sorted(world.log) == ["instead", "long"]


async def test_all_failures_of_a_group_are_causes(together: Together) -> None:
    """Children that fail together are the causes of their parent's failure, and are recovered."""
    world = World()
    broken = True

    async def bad(s: Step) -> str:
        world.log.append(s.path)
        if broken:
            await both.wait()
            raise ConnectionError(s.path)
        return s.path

    async def release() -> None:
        while len(world.log) < 2:
            await checkpoint()
        both.set()

    async def root(s: Step) -> str:
        await together((s.do, "a", bad), (s.do, "b", bad), (release,))
        return "fine"

    both = anyio.Event()
    outcome = await world.reconcile(root)
    assert isinstance(outcome, Failed)
    causes = set(outcome.error.failure.causes)
    assert causes
    assert causes <= {"a", "b"}
    broken = False
    for _ in range(2):
        outcome = await world.reconcile(root, recover=True)
    assert isinstance(outcome, asteps.Done)


# --- the close rule -------------------------------------------------------------------------------


@only_asyncio
async def test_a_body_that_returns_while_a_child_runs() -> None:
    """A body that returns and leaves a child running is misuse; the child is ended first."""
    world = World()
    leftover: list[asyncio.Task[Any]] = []

    async def hang(s: Step) -> None:
        world.log.append("hang")
        try:
            await anyio.sleep_forever()
        finally:
            world.log.append("hang ends")

    async def body(s: Step) -> str:
        leftover.append(asyncio.create_task(s.do("hang", hang)))
        await asyncio.sleep(0.001)
        return "done"

    async def root(s: Step) -> str:
        return await s.do("a", body)

    with pytest.raises(UsageError, match=r"'a' returned while steps below it .*'hang'.*await them"):
        await world.reconcile(root)
    assert world.log == ["hang", "hang ends"]
    await asyncio.gather(*leftover, return_exceptions=True)
    state = await load_state(world.store, "r")
    assert state is not None
    assert not any(n.errs or n.done for _, n in state.walk())

    async def corrected(s: Step) -> str:
        return await s.do("b", world.long(1)) and "fine"

    assert await world.run(corrected, name=state.run.function if state.run else "") == "fine"


@only_asyncio
@pytest.mark.parametrize("end", ["failed", "pending", "stopped", "misuse"])
async def test_a_child_left_running_is_ended(end: str) -> None:
    """However a body ends, a child that it left running is cancelled and waited for."""
    world = World()
    leftover: list[asyncio.Task[Any]] = []

    async def hang(s: Step) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.002)
            world.log.append("hang ends")

    async def root(s: Step) -> None:
        leftover.append(asyncio.create_task(s.do("hang", hang)))
        await asyncio.sleep(0.001)
        match end:
            case "failed":
                raise ValueError
            case "pending":
                s.pending(after=60)
            case "stopped":
                raise Stop
            case _:
                await s.do("hang", hang)

    try:
        outcome = await world.reconcile(root)
        assert type(outcome).__name__.lower() == end
    except Stop:
        assert end == "stopped"
    except DuplicateStepError:
        assert end == "misuse"
    world.log.append("driver returned")
    assert world.log == ["hang ends", "driver returned"]
    await asyncio.gather(*leftover, return_exceptions=True)
    state = await load_state(world.store, "r")
    assert state is not None
    assert not state.has("hang") or not state.get("hang").errs


@only_asyncio
async def test_gather_leaves_nothing_running() -> None:
    """Children that `gather` leaves behind when one fails do not go on after the driver."""
    world = World()
    tasks: list[asyncio.Task[Any]] = []

    async def bad(s: Step) -> None:
        await asyncio.sleep(0)
        raise ValueError

    async def long(s: Step) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        while True:
            world.log.append("tick")
            await asyncio.sleep(0.0005)

    async def root(s: Step) -> None:
        await asyncio.gather(s.do("bad", bad), s.do("long", long))

    assert isinstance(await world.reconcile(root), Failed)
    ticks = len(world.log)
    await asyncio.sleep(0.003)
    assert len(world.log) == ticks
    await asyncio.gather(*tasks, return_exceptions=True)


@only_asyncio
@pytest.mark.parametrize("what", ["step", "group", "group's child", "nested"])
async def test_what_gather_leaves_behind_ends_with_the_body(what: str) -> None:
    """A sequence whose sibling failed begins nothing more, and is nobody's mistake."""
    world = World()
    attempts: list[int] = []

    async def bad(s: Step) -> None:
        if len(attempts) == 1:
            raise ValueError("at first")

    async def wait() -> None:
        for _ in range(40 if len(attempts) == 1 else 1):  # beyond the end of the body
            await asyncio.sleep(0)

    async def sequence(s: Step) -> None:
        await s.do("before", world.long(1))
        if what != "group's child":
            await wait()
        if what == "step":
            await s.do("after", world.long(1))
        elif what == "nested":
            await s.do("after", lambda t: t.do("below", world.long(1)), returns=str)
        else:
            async with s.group("after") as g:
                await wait()
                g.do("child", world.long(1))

    async def both(s: Step) -> str:
        attempts.append(s.attempt)
        await asyncio.gather(s.do("bad", bad), sequence(s))
        return "both"

    async def root(s: Step) -> str:
        return await s.do("both", both, retry=Retry(attempts=2, delay=1, jitter=0))

    assert await world.run(root) == "both"
    assert attempts == [1, 2]
    below = {"step": "both/after", "nested": "both/after/below"}.get(what, "both/after/child")
    assert world.log == ["both/before", below]


@only_asyncio
async def test_a_body_that_returns_beside_an_open_group_is_told_so() -> None:
    """A group in a task that the body does not wait for is misuse, as is any step there."""
    world = World()
    tasks: list[asyncio.Task[None]] = []

    async def root(s: Step) -> None:
        opened = asyncio.Event()

        async def aside() -> None:
            async with s.group("aside"):
                opened.set()
                await asyncio.sleep(3_600)

        tasks.append(asyncio.create_task(aside()))
        await opened.wait()

    with pytest.raises(UsageError, match="still running"):
        await world.run(root)
    with anyio.fail_after(1):
        await asyncio.wait(tasks)
    assert isinstance(tasks[0].exception(), BaseException)


async def test_a_step_of_a_body_that_failed_is_no_use_in_another() -> None:
    """Where a body uses the Step of one that has failed, that is misuse."""
    world = World()
    kept: list[Step] = []

    async def bad(s: Step) -> None:
        kept.append(s)
        raise ValueError

    async def other(s: Step) -> None:
        await kept[0].do("late", world.long(1))

    async def root(s: Step) -> None:
        with suppress(StepError):
            await s.do("bad", bad)
        await s.do("other", other)

    with pytest.raises(UsageError, match="'bad' has ended"):
        await world.run(root)
    assert world.log == []


@only_asyncio
async def test_later_steps_of_a_pass_that_has_ended() -> None:
    """A task that outlives its pass cannot run a step of it: UsageError, and nothing happens."""
    world = World()
    go = asyncio.Event()
    leftover: list[asyncio.Task[Any]] = []

    async def root(s: Step) -> str:
        async def later(what: str) -> object:
            await go.wait()
            match what:
                case "do":
                    return await s.do("late", world.long(1))
                case "call":
                    return await s.call("late", lambda: world.log.append("late"))
                case "pending":
                    raise s.pending(after=1)
                case "save_info":
                    await s.save_info(1)
                    return None
                case _:
                    raise s.fail("late")

        calls = ("do", "call", "pending", "save_info", "fail")
        leftover.extend(asyncio.create_task(later(what)) for what in calls)
        await s.do("a", world.long(1))
        return "done"

    assert await world.run(root) == "done"
    before = await world.store.load("r")
    go.set()
    found = await asyncio.gather(*leftover, return_exceptions=True)
    assert [type(f) for f in found] == [UsageError] * 5
    assert all("this pass has ended" in str(f) for f in found)
    assert world.log == ["a"]
    assert await world.store.load("r") == before


@only_asyncio
async def test_a_task_left_by_one_body_cannot_use_it() -> None:
    """A body's own Step is of no use once the body has ended, also while the pass goes on."""
    world = World()
    kept: list[Step] = []

    async def first(s: Step) -> str:
        kept.append(s)
        return "first"

    async def root(s: Step) -> str:
        await s.do("first", first)
        await kept[0].do("late", world.long(1))
        return "never"

    with pytest.raises(UsageError):
        await world.run(root)
    assert world.log == []


async def test_return_exceptions_swallows_nothing(together: Together) -> None:
    """``gather(return_exceptions=True)`` around a pending step is misuse, and is said to be."""
    if together is not in_gather:
        return
    world = World()

    async def root(s: Step) -> str:
        await asyncio.gather(s.do("w", world.pending(9)), return_exceptions=True)
        return "done"

    with pytest.raises(UsageError, match="swallowed the signal"):
        await world.reconcile(root)
    state = await load_state(world.store, "r")
    assert state is not None
    assert not state.done


# --- concurrent names, places, reentry ------------------------------------------------------------


async def test_duplicates_among_concurrent_steps(together: Together) -> None:
    """Two concurrent steps of one name are `DuplicateStepError`; nothing has failed."""
    world = World()

    async def root(s: Step) -> None:
        await together((s.do, "a", world.long(20)), (s.do, "a", world.long(20)))

    with pytest.raises(DuplicateStepError) as found:
        await world.run(root)
    assert found.value.path == "a"
    assert world.most.get("a", 0) <= 1
    state = await load_state(world.store, "r")
    assert state is None or not any(n.errs for _, n in state.walk())


async def test_an_empty_name_in_concurrent_code(together: Together) -> None:
    """Steps without a name cannot be concurrent: their number would be an accident."""
    world = World()

    async def root(s: Step) -> None:
        await together((s.do, "", world.long(3)), (s.do, "", world.long(3)))

    with pytest.raises(UsageError, match="an empty name numbers a step by its place"):
        await world.run(root)


async def test_concurrent_steps_keep_their_own_paths(together: Together) -> None:
    """Infos, tokens and results of concurrent steps are not mixed up."""
    world = World()
    tokens: dict[str, str] = {}

    async def leaf(s: Step) -> str:
        for i in range(3):
            s.info = f"{s.path} {i}"
            await checkpoint()
        assert s.info_as(str) == f"{s.path} 2"
        tokens[s.path] = s.token
        return s.path

    async def branch(s: Step) -> None:
        await together(*((s.do, f"l{i}", leaf) for i in range(4)))

    async def root(s: Step) -> None:
        await together(*((s.do, f"b{i}", branch) for i in range(4)))

    await world.run(root)
    paths = [f"b{i}/l{j}" for i in range(4) for j in range(4)]
    assert sorted(tokens) == paths
    assert len(set(tokens.values())) == 16
    state = await load_state(world.store, "r")
    assert state is not None
    for path in paths:
        assert state.get(path).result_as(str) == path
        assert state.get(path).info_as(str) == f"{path} 2"


async def test_in_any_order_on_every_pass(together: Together) -> None:
    """Done children answer in whatever order and shape the code of a later pass asks for them."""
    world = World()
    orders = [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]]
    results: list[dict[int, str]] = []

    async def root(s: Step) -> None:
        found: dict[int, str] = {}
        order = orders[len(results)]

        async def one(i: int) -> None:
            found[i] = await s.do(f"s{i}", world.long(i))

        results.append(found)
        await together(*((one, i) for i in order[:2]))
        for i in order[2:]:
            await one(i)
        if len(results) < 3:
            s.pending(after=1)

    for _ in range(3):
        await world.reconcile(root)
        world.clock.advance(1)
    assert results == [{i: f"s{i}" for i in range(4)}] * 3
    assert sorted(world.log) == ["s0", "s1", "s2", "s3"]


# --- crashes --------------------------------------------------------------------------------------


class Sequences:
    """Two sequences of steps side by side, and an account of what must not happen twice."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.storage = MemoryStore()
        self.clock = FakeClock()
        self.reported: set[str] = set()
        self.twice: list[str] = []
        self.bodies = 0

    async def leaf(self, s: Step, value: int) -> int:
        self.bodies += 1
        if s.path in self.reported:
            self.twice.append(s.path)
        for _ in range(self.random.randrange(6)):
            await checkpoint()
        if value % 5 == 4 and s.info is None:
            s.info = "waited"
            s.pending(after=self.random.randrange(1, 4))
        return value

    async def nested(self, s: Step, value: int) -> int:
        return await self.step(s, "x", self.leaf, value) + await self.step(s, "y", self.leaf, 0)

    async def step(self, s: Step, name: str, fn: Any, value: int) -> int:
        found: int = await s.do(name, fn, value, returns=int)
        self.reported.add(f"{s.path}/{name}" if s.path else name)
        return found

    async def sequence(self, s: Step, prefix: str, found: dict[str, int]) -> None:
        total = 0
        for i in range(6):
            fn = self.nested if i % 3 == 1 else self.leaf
            total += await self.step(s, f"{prefix}{i}", fn, i)
        found[prefix] = total

    async def drive(self, root: Callable[[Step], Awaitable[dict[str, int]]]) -> dict[str, int]:
        """Crash at random saves until the run has ended."""
        while True:
            number = self.random.randrange(4, 30)
            fault = self.random.choice(["crash before", "crash after"])
            store = FaultyStore(self.storage.client(), {number: fault})  # type: ignore[dict-item]
            try:
                async with store:
                    return await run(root, store=store, id="r", clock=self.clock, name="root")
            except Crash:
                assert store.crashed


@pytest.mark.parametrize("seed", range(25))
async def test_sequences_crash_at_random_points(together: Together, seed: int) -> None:
    """Two concurrent sequences, killed at random points, come to the same result every time."""
    world = Sequences(seed)

    async def root(s: Step) -> dict[str, int]:
        found: dict[str, int] = {}
        await together((world.sequence, s, "l", found), (world.sequence, s, "r", found))
        return {name: found[name] for name in sorted(found)}

    assert await world.drive(root) == {"l": 15, "r": 15}
    assert world.twice == []
    state = await load_state(world.storage, "r")
    assert state is not None
    assert state.done
    assert all(n.done for _, n in state.walk())
    assert len(list(state.walk())) == 1 + 2 * (6 + 2 * 2)
    places = [n.place for n in state.states or ()]
    assert len(set(places)) == len(places)


async def test_a_conflict_stops_all_siblings(together: Together) -> None:
    """A lost save ends all concurrent siblings; none of them is recorded as failed."""
    world = World()
    store = FaultyStore(world.store, {3: "conflict"})

    async def sequence(s: Step, prefix: str) -> None:
        for i in range(20):
            await s.do(f"{prefix}{i}", world.long(2))

    async def root(s: Step) -> None:
        await together((sequence, s, "a"), (sequence, s, "b"))

    with pytest.raises(asteps.ConflictError):
        await run(root, store=store, id="r")
    assert store.saves == 3
    assert len(world.log) <= 6
    state = await load_state(world.store, "r")
    assert state is not None
    assert not any(n.errs for _, n in state.walk())
    await world.run(root)


async def test_a_task_of_an_earlier_attempt_is_refused() -> None:
    """What an attempt left running cannot add steps to the next attempt's."""
    left: list[BaseException | None] = []
    held: list[Step] = []

    async def parent(s: Step) -> str:
        held.append(s)
        if s.attempt == 1:
            raise ValueError
        try:
            await held[0].do("x", quick)
        except BaseException as exc:
            left.append(exc)
            raise
        return "done"

    async def quick(s: Step) -> int:
        return 1

    async def root(s: Step) -> str:
        return await s.do("p", parent, retry=asteps.Retry(delay=0))

    with pytest.raises(asteps.UsageError, match="has ended"):
        await asteps.reconcile(root, store=MemoryStore(), id="r", max_wait=1)
    assert len(left) == 1
