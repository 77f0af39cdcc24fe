"""A process may die at any save: nothing that was reported is lost, nothing of it runs twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import anyio
import pytest
from anyio.lowlevel import checkpoint
from clocks import FakeClock

import asteps
from asteps import Done, Failed, Pending, Retry, Step, StepError, load_state, reconcile, run
from asteps.stores.memory import MemoryStore
from asteps.testing import Crash, FaultyStore
from asteps.testing._faulty import SaveFault

Mode = Literal["run", "reconcile", "pass"]
MODES: tuple[Mode, ...] = ("run", "reconcile", "pass")


class World:
    """What outlives every process: the clock, the storage, and what steps did to the outside."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.storage = MemoryStore()
        self.effects: list[str] = []  # bodies that were begun
        self.completed: list[str] = []  # bodies that came to their end
        self.returned: set[str] = set()  # steps whose do() has returned
        self.tokens: dict[str, str] = {}
        self.tries: dict[str, int] = {}
        self.again: list[str] = []  # steps that ran although their do() had returned
        self.processes = 0

    def begin(self, s: Step) -> int:
        """A body begins; how often it has been begun, this time included."""
        self.effects.append(s.path)
        if s.path in self.returned:
            self.again.append(s.path)
        assert self.tokens.setdefault(s.path, s.token) == s.token
        self.tries[s.path] = self.tries.get(s.path, 0) + 1
        return self.tries[s.path]

    async def do(self, s: Step, name: str, fn: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """A step without options that notes that its ``do`` has returned."""
        value = await s.do(name, fn, *args, returns=int)
        self.returned.add(f"{s.path}/{name}" if s.path else name)
        return value

    # -- bodies --

    async def leaf(self, s: Step, value: int) -> int:
        self.begin(s)
        await checkpoint()
        self.completed.append(s.path)
        return value

    async def flaky(self, s: Step, value: int) -> int:
        self.begin(s)
        if s.attempt < 3:
            raise ConnectionError(f"attempt {s.attempt}")
        self.completed.append(s.path)
        return value + s.attempt

    async def waiting(self, s: Step, value: int) -> int:
        if self.begin(s) < 3:
            s.pending(after=30, why="the image")
        self.completed.append(s.path)
        return value

    async def remembering(self, s: Step, value: int) -> int:
        """Starts a task in the cloud at most once, for all that it can tell."""
        self.begin(s)
        if s.info is None:
            await s.save_info({"task": value})
        task = s.info_as(dict[str, int])
        assert task is not None
        await checkpoint()
        self.completed.append(s.path)
        return task["task"]

    async def once(self, s: Step, value: int) -> int:
        assert self.begin(s) == 1
        await checkpoint()
        self.completed.append(s.path)
        return value

    # -- flows --

    async def part(self, s: Step, base: int) -> int:
        self.begin(s)
        found = await self.do(s, "first", self.leaf, base)
        found += await self.do(s, "second", self.remembering, base)
        return int(found)

    async def side(self, s: Step, base: int) -> int:
        """A sequence that runs beside another one."""
        self.begin(s)
        found = 0
        for i in range(3):
            found += await self.do(s, f"s{i}", self.leaf, base + i)
        return found

    async def concurrent(self, s: Step) -> int:
        self.begin(s)
        found: list[int] = []

        async def one(name: str, fn: Callable[..., Awaitable[Any]], base: int) -> None:
            found.append(await self.do(s, name, fn, base))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, "left", self.side, 100)
            tasks.start_soon(one, "right", self.side, 200)
            tasks.start_soon(one, "wait", self.waiting, 1000)
        return sum(found)

    async def big(self, s: Step) -> list[int]:
        """Twenty steps: nested, concurrent, pending, retried, with an info, at most once."""
        self.begin(s)
        values = [await self.do(s, "one", self.leaf, 1)]
        values.append(await self.do(s, "part/a", self.part, 10))
        values.append(
            await s.do("flaky", self.flaky, 20, retry=Retry(attempts=3, delay=10, jitter=0))
        )
        self.returned.add("flaky")
        try:
            await s.do("broken", self.broken)
        except StepError:
            self.returned.add("broken")
            values.append(await self.do(s, "fallback", self.leaf, 30))
        values.append(await self.do(s, "concurrent", self.concurrent_))
        values.append(await s.do("once", self.once, 40, at_most_once=True))
        self.returned.add("once")
        values.append(await self.do(s, "last", self.leaf, 50))
        return values

    async def concurrent_(self, s: Step) -> int:
        return await self.concurrent(s)

    async def broken(self, s: Step) -> int:
        self.begin(s)
        raise ValueError("never works")

    async def small(self, s: Step) -> list[int]:
        """Five steps for all pairs of crashes."""
        self.begin(s)
        values = [await self.do(s, "p", self.part, 1)]
        values.append(
            await s.do("flaky", self.flaky, 2, retry=Retry(attempts=3, delay=1, jitter=0))
        )
        self.returned.add("flaky")
        values.append(await self.do(s, "w", self.waiting, 3))
        return values

    # -- processes --

    async def process(
        self, flow: Callable[[Step], Awaitable[Any]], mode: Mode, faults: dict[int, SaveFault]
    ) -> tuple[object, FaultyStore]:
        """A process that drives the flow, as its mode is, until it dies or the run has ended."""
        self.processes += 1
        store = FaultyStore(self.storage.client(), faults)
        keywords: Any = {"store": store, "id": "r", "clock": self.clock, "name": "flow"}
        if mode == "pass":
            keywords["save"] = "pass"
        async with store:
            while True:
                try:
                    if mode == "run":
                        return await run(flow, **keywords), store
                    outcome = await reconcile(flow, **keywords)
                    if isinstance(outcome, Done):
                        return outcome.value, store
                    if isinstance(outcome, Failed):
                        raise outcome.error
                    assert isinstance(outcome, Pending)
                    await self.clock.sleep(outcome.after)
                except Crash:
                    assert store.crashed
                    return Crash, store
                except StepError as error:
                    await self.repair(store, error)

    async def repair(self, store: FaultyStore, error: StepError) -> None:
        """An operator finds out what became of a step that may run at most once."""
        assert error.origin == "once"
        assert error.errors[0].failure.kind == "interrupted"
        try:
            async with asteps.edit_run(store, "r") as state:
                if "once" in self.completed:
                    state.set_result("once", 40)
                else:
                    self.tries.pop("once", None)
                    state.recover()
        except Crash:
            assert store.crashed

    async def check(self, expected: object, result: object, *, twice: bool = False) -> None:
        """The run came to what it should, and nothing that was reported ran again."""
        assert result == expected
        if not twice:
            assert self.again == []
        state = await load_state(self.storage, "r")
        assert state is not None
        assert state.done
        assert not [p for p, n in state.walk() if not (n.done or n.failed)]
        stored = await self.storage.load("r")
        assert stored is not None
        assert (stored.summary.status, stored.summary.owner) == ("done", None)


BIG = [1, 20, 23, 30, 303 + 603 + 1000, 40, 50]
SMALL = [2, 5, 3]


async def saves_of(flow_name: str, mode: Mode) -> int:
    """How many saves an undisturbed run makes."""
    world = World()
    result, store = await world.process(getattr(world, flow_name), mode, {})
    expected = BIG if flow_name == "big" else SMALL
    await world.check(expected, result, twice=mode == "pass")
    return store.saves


async def test_undisturbed() -> None:
    """Without a crash each body runs as often as its retries and pendings say."""
    for mode in MODES:
        world = World()
        result, _ = await world.process(world.big, mode, {})
        await world.check(BIG, result, twice=mode == "pass")
        leaves = {p: n for p, n in world.tries.items() if world.completed.count(p)}
        assert leaves == {
            **dict.fromkeys(("one", "part~1a/first", "part~1a/second", "fallback", "last"), 1),
            **{f"concurrent/{side}/s{i}": 1 for side in ("left", "right") for i in range(3)},
            "flaky": 3,
            "concurrent/wait": 3,
            "once": 1,
        }
        assert world.tries["broken"] == 1
        state = await load_state(world.storage, "r")
        assert state is not None
        assert len([p for p, _ in state.walk() if p]) == 19


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", ["crash before", "crash after"])
async def test_a_crash_at_every_save(mode: Mode, fault: SaveFault) -> None:
    """A process that dies at any one save: the next one comes to the same result."""
    saves = await saves_of("big", mode)
    assert saves > (6 if mode == "pass" else 20)
    for number in range(1, saves + 1):
        world = World()
        first, _ = await world.process(world.big, mode, {number: fault})
        assert first is Crash or number > saves - 6  # trio's order is random: saves are shared
        second, _ = await world.process(world.big, mode, {})
        await world.check(BIG, second, twice=mode == "pass")


@pytest.mark.parametrize("mode", ["run", "reconcile"])
async def test_a_crash_costs_only_what_was_running(mode: Mode) -> None:
    """After a crash no step without children is begun more than once more than without one."""
    saves = await saves_of("big", mode)
    world = World()
    await world.process(world.big, mode, {})
    usual = world.tries
    for number in range(1, saves + 1):
        world = World()
        await world.process(world.big, mode, {number: "crash before"})
        await world.process(world.big, mode, {})
        for path, tries in world.tries.items():
            assert tries <= usual[path] + (3 if path in ("", "concurrent") else 1), (
                number,
                path,
            )


@pytest.mark.parametrize("mode", MODES)
async def test_two_crashes_at_all_pairs(mode: Mode) -> None:
    """Two processes that die one after the other, at any two saves: the third comes to the end."""
    saves = await saves_of("small", mode)
    kinds: tuple[SaveFault, SaveFault] = ("crash before", "crash after")
    pairs = 0
    for number in range(1, saves + 1):
        for then in range(1, saves + 2):
            kind, then_kind = kinds[(number + then) % 2], kinds[then % 2]
            world = World()
            first, _ = await world.process(world.small, mode, {number: kind})
            assert first is Crash
            second, _ = await world.process(world.small, mode, {then: then_kind})
            if second is Crash:
                pairs += 1
                second, _ = await world.process(world.small, mode, {})
            await world.check(SMALL, second, twice=mode == "pass")
    assert pairs > (8 if mode == "pass" else 30)


@pytest.mark.parametrize("mode", MODES)
async def test_a_crash_at_every_save_of_many_processes(mode: Mode) -> None:
    """Processes that die again and again at an early save still get to the end.

    Each needs as many saves as it takes to claim the run, to write down the starts on the way to
    the first undone step, and what that one came to.
    """
    world = World()
    result: object = Crash
    for _ in range(60):
        result, _ = await world.process(world.big, mode, {9: "crash before"})
        if result is not Crash:
            break
    await world.check(BIG, result, twice=mode == "pass")
    assert world.processes > (1 if mode == "pass" else 3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", ["lost", "late", "dropped", "unavailable"])
async def test_a_lost_acknowledgement_at_every_save(mode: Mode, fault: SaveFault) -> None:
    """A save whose fate is unclear changes nothing: same result, no body begun once more."""
    saves = await saves_of("big", mode)
    world = World()
    await world.process(world.big, mode, {})
    usual = sorted(world.effects)
    for number in range(1, saves + 1):
        world = World()
        result, store = await world.process(world.big, mode, {number: fault})
        await world.check(BIG, result, twice=mode == "pass")
        assert sorted(world.effects) == usual, number
        # Each save was written once, however often it was made.
        assert world.storage._storage.revisions == len({s.write_id for s in store.log})


@pytest.mark.parametrize("mode", MODES)
async def test_all_acknowledgements_are_lost(mode: Mode) -> None:
    """Even if every save has to be repeated nothing is lost, and nothing conflicts."""
    world = World()
    faults: dict[int, SaveFault] = dict.fromkeys(range(1, 200, 2), "lost")
    result, store = await world.process(world.big, mode, faults)
    await world.check(BIG, result, twice=mode == "pass")
    writes = len({s.write_id for s in store.log})
    assert (store.saves, world.storage._storage.revisions) == (2 * writes, writes)


async def test_a_lost_acknowledgement_and_a_crash() -> None:
    """A process that dies while it finds out what became of a save has lost nothing."""
    saves = await saves_of("small", "run")
    for number in range(1, saves + 1):
        for unclear in ("lost", "late", "dropped"):
            world = World()
            faults: dict[int, SaveFault] = {number: unclear, number + 1: "crash before"}
            await world.process(world.small, "run", faults)
            second, _ = await world.process(world.small, "run", {})
            await world.check(SMALL, second)


@pytest.mark.parametrize("mode", MODES)
async def test_a_crash_leaves_a_readable_tree(mode: Mode) -> None:
    """After a crash at any save the run can be loaded, listed and edited before it goes on."""
    saves = await saves_of("big", mode)
    for number in range(1, saves + 1):
        for fault in ("crash before", "crash after"):
            world = World()
            await world.process(world.big, mode, {number: fault})
            if number == 1 and fault == "crash before":
                assert await load_state(world.storage, "r") is None
                continue
            state = await load_state(world.storage, "r")
            assert state is not None
            assert asteps.State.decode(state.encode()).encode() == state.encode()
            (line,) = await asteps.list_runs(world.storage)
            assert line.status in ("proceeding", "pending", "done")
            async with asteps.edit_run(world.storage, "r") as editing:
                assert editing.encode() == state.encode()
