"""Sleeping: the end is fixed when a sleep first starts, and nothing moves it but a reset."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from clocks import FakeClock

import asteps
from asteps import Done, Pending, State, Step, UsageError, edit_run, load_state
from asteps.stores.memory import MemoryStore
from asteps.stores.sqlite import SQLiteStore
from asteps.testing import Crash, FaultyStore
from asteps.testing._faulty import SaveFault

START = FakeClock().now()
MODES = ("run", "reconcile")

in_both_modes = pytest.mark.parametrize("mode", MODES)

# --- helpers --------------------------------------------------------------------------------------

Flow = Callable[[Step], Awaitable[Any]]


class World:
    """A clock, a storage, and what was noted with the time."""

    def __init__(self, now: float = START) -> None:
        self.clock = FakeClock(now)
        self.start = now
        self.storage = MemoryStore()
        self.log: list[tuple[str, float]] = []

    @property
    def keywords(self) -> dict[str, Any]:
        return {"clock": self.clock, "store": self.storage, "id": "r", "name": "f"}

    def note(self, what: str) -> None:
        self.log.append((what, self.clock.now() - self.start))

    async def end(self, flow: Flow, mode: str, **keywords: Any) -> Any:
        """The outcome, in one pass or in as many as it takes."""
        keywords = self.keywords | keywords
        while True:
            outcome = await asteps.reconcile(
                flow, max_wait=10_000_000 if mode == "run" else 0, **keywords
            )
            if not isinstance(outcome, Pending):
                return outcome
            assert mode == "reconcile"
            self.clock.advance(outcome.after)

    async def one_pass(self, flow: Flow, **keywords: Any) -> Any:
        """The outcome of a pass that waits for nothing."""
        keywords = self.keywords | keywords
        return await asteps.reconcile(flow, **keywords)


async def one(s: Step) -> int:
    """The shortest body."""
    return 1


def ends(node: State) -> float:
    """When a sleeping step's end is, as it is stored, from the start of the test."""
    return node.info_as(dict[str, datetime])["until"].timestamp() - START


# --- how long -------------------------------------------------------------------------------------


@in_both_modes
@pytest.mark.parametrize("length", [5, 0.5, timedelta(hours=2), 86_400 * 30], ids=str)
async def test_sleeps_as_long_as_it_says(length: Any, mode: str) -> None:
    """The step after a sleep begins when its seconds are over, not before."""
    world = World()

    async def flow(s: Step) -> None:
        await s.sleep("z", length)
        world.note("awake")

    await world.end(flow, mode)
    seconds = length.total_seconds() if isinstance(length, timedelta) else length
    assert world.log == [("awake", seconds)]


async def test_what_a_sleeping_run_tells() -> None:
    """``Pending`` has the sleep's path, what is left of it, and until when it sleeps."""
    world = World()

    async def flow(s: Step) -> None:
        await s.sleep("let DNS settle", 60)

    for left in (60, 40, 20):
        outcome = await world.one_pass(flow)
        assert isinstance(outcome, Pending)
        assert (outcome.after, outcome.path) == (left, "let DNS settle")
        assert outcome.why == "asleep until 2023-11-14 22:14:20 UTC"
        world.clock.advance(20)
    assert isinstance(await world.one_pass(flow), Done)


@in_both_modes
@pytest.mark.parametrize("fraction", [0, 0.1234567, 0.9999999, 0.2469134], ids=str)
@pytest.mark.parametrize("length", [0, 0.0, timedelta(0)], ids=["int", "float", "timedelta"])
async def test_zero_does_not_wait(length: Any, fraction: float, mode: str) -> None:
    """A sleep of no seconds is over at once, in the same pass, whatever the time."""
    world = World(START + fraction)

    async def flow(s: Step) -> None:
        await s.sleep("z", length)

    outcome = await world.one_pass(flow, max_wait=1 if mode == "run" else 0)
    assert isinstance(outcome, Done)
    assert outcome.state.get("z").done


@pytest.mark.parametrize("place", range(20))
async def test_the_longest_sleep(place: int) -> None:
    """A sleep may last a year, whatever the time at which it starts."""
    world = World(START + place * 0.1234567)

    async def flow(s: Step) -> None:
        await s.sleep("z", timedelta(days=366))

    outcome = await world.one_pass(flow)
    assert isinstance(outcome, Pending)
    world.clock.advance(min(outcome.after, 366 * 86_400))
    world.clock.advance(0.001)
    assert isinstance(await world.one_pass(flow), Done)


async def test_a_clock_that_was_set_back() -> None:
    """A clock that is set back makes the sleep longer, and is no misuse."""
    world = World()

    async def flow(s: Step) -> None:
        await s.sleep("z", timedelta(days=366))

    await world.one_pass(flow)
    before = FakeClock(START - 86_400)
    outcome = await world.one_pass(flow, clock=before)
    assert isinstance(outcome, Pending)
    before.advance(365 * 86_400)
    before.advance(2 * 86_400)
    assert isinstance(await world.one_pass(flow, clock=before), Done)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (-1, r"sleep\('z', …\) is -1; it must be from 0"),
        (math.nan, "must be from 0"),
        (math.inf, "at most a year"),
        (timedelta(seconds=-1), "must be from 0"),
        (timedelta(days=400), "at most a year"),
        ("5", "is seconds or a timedelta, not str"),
        (None, "not NoneType"),
        (True, "not bool"),
        (datetime(2024, 1, 1, tzinfo=UTC), "not datetime"),
    ],
    ids=str,
)
async def test_wrong_lengths(length: Any, message: str) -> None:
    """A length that cannot be slept is misuse, and leaves no step behind."""

    async def flow(s: Step) -> None:
        with suppress(Exception):
            await s.sleep("z", length)

    state = State("f")
    with pytest.raises(UsageError, match=message):
        await asteps.run(flow, state=state, name="f")
    assert not state.has("z")


@pytest.mark.parametrize(
    ("name", "message"), [(5, "a step's name is a str"), ("$end", r"\$"), ("taken", "taken")]
)
async def test_wrong_names(name: Any, message: str) -> None:
    """A sleep's name is a step's name, unique among its siblings."""

    async def flow(s: Step) -> None:
        await s.do("taken", one)
        await s.sleep(name, 5)

    with pytest.raises(UsageError, match=message):
        await asteps.run(flow, clock=FakeClock())


# --- what it remembers ----------------------------------------------------------------------------


@in_both_modes
@pytest.mark.parametrize("save", ["step", "pass"])
async def test_the_end_is_in_the_store_at_once(mode: str, save: str) -> None:
    """While anything sleeps its end is in the store, also with ``save="pass"``."""
    world = World()
    seen: list[tuple[str, float]] = []

    async def look(path: str) -> None:
        state = await load_state(world.storage, "r")
        assert state is not None
        seen.append((path, ends(state.get(path))))

    async def sibling(s: Step) -> None:
        for _ in range(20):
            await checkpoint()
        await look("beside")

    async def flow(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(s.sleep, "beside", 60)
            tasks.start_soon(s.do, "sibling", sibling)
        await s.sleep("last", 5)

    assert isinstance(await world.end(flow, mode, save=save), Done)
    await look("last")
    assert seen == [("beside", 60), ("last", 65)]


async def test_another_length_in_the_code_changes_nothing() -> None:
    """The end is fixed when the sleep first starts: later passes do not ask how long it is."""
    world = World()
    length = 60.0

    async def flow(s: Step) -> None:
        await s.sleep("z", length)

    for other in (60.0, 1.0, 0.0, 10_000.0):
        length = other
        outcome = await world.one_pass(flow)
        assert isinstance(outcome, Pending)
        assert outcome.after == 60 - world.clock.now() + START
        world.clock.advance(15)
    assert isinstance(await world.one_pass(flow), Done)
    length = 5.0
    assert isinstance(await world.one_pass(flow), Done)


@in_both_modes
@pytest.mark.parametrize("fault", ["crash before", "crash after"])
async def test_a_crash_at_every_save(mode: str, fault: SaveFault) -> None:
    """Whenever the process dies, a sleep whose end is in the store ends when that says."""

    async def life(world: World, faults: dict[int, SaveFault]) -> FaultyStore:
        async def flow(s: Step) -> None:
            await s.do("before", one)
            await s.sleep("z", 60)
            world.note("awake")
            await s.do("after", one)

        store = FaultyStore(world.storage.client(), faults)
        async with store:
            with suppress(Crash):
                assert isinstance(await world.end(flow, mode, store=store), Done)
        return store

    saves = (await life(World(), {})).saves
    late = 0
    for number in range(1, saves + 1):
        world = World()
        await life(world, {number: fault})
        state = await load_state(world.storage, "r")
        known = None
        if state is not None and state.has("z") and bytes(state.get("z").info):
            known = ends(state.get("z"))
        world.clock.advance(7)  # until somebody restarts it
        now = world.clock.now() - START
        awake = bool(world.log)
        await life(world, {})
        expected = now + 60 if known is None else max(known, 0 if awake else now)
        assert world.log[0] == ("awake", expected), number
        late += known is not None
    assert late >= 2


@in_both_modes
async def test_a_sleep_goes_on_in_another_process(mode: str) -> None:
    """A driver that is cancelled in the middle of a sleep has not moved its end."""
    world = World()

    class Endless(FakeClock):
        async def sleep(self, seconds: float, /) -> None:
            asleep.set()
            await anyio.sleep_forever()

    asleep = anyio.Event()

    async def flow(s: Step) -> None:
        await s.sleep("z", 60)
        world.note("awake")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(world.end, flow, "run", clock=Endless()))
        await asleep.wait()
        tasks.cancel_scope.cancel()
    world.clock.advance(45)
    await world.end(flow, mode)
    assert world.log == [("awake", 60)]


@pytest.mark.parametrize("when", ["asleep", "awake"])
async def test_reset_starts_anew(when: str) -> None:
    """After a reset a sleep begins again, with the length that the code says now."""
    world = World()
    length = 60.0

    async def flow(s: Step) -> None:
        await s.sleep("z", length)
        if when == "asleep":
            await s.do("after", one)

    await world.one_pass(flow)
    world.clock.advance(50 if when == "asleep" else 60)
    assert isinstance(await world.one_pass(flow), Done) == (when == "awake")
    async with edit_run(world.storage, "r") as state:
        state.reset("z")
    length = 30.0
    outcome = await world.one_pass(flow)
    assert isinstance(outcome, Pending)
    assert outcome.after == 30


async def test_a_sleep_can_be_ended_from_outside() -> None:
    """``set_result`` on a sleep ends it."""
    world = World()

    async def flow(s: Step) -> None:
        await s.sleep("z", 60)

    await world.one_pass(flow)
    async with edit_run(world.storage, "r") as state:
        state.set_result("z", None)
    assert isinstance(await world.one_pass(flow), Done)


async def test_its_node() -> None:
    """A sleep is one node: its end while it sleeps, done without a result afterwards."""
    world = World()

    async def flow(s: Step) -> None:
        assert await s.sleep("z", 60) is None  # type: ignore[func-returns-value]

    await world.one_pass(flow)
    stored = await world.storage.load("r")
    assert stored is not None
    assert json.loads(stored.records["z"])["info"] == {"until": "2023-11-14T22:14:20Z"}
    world.clock.advance(60)
    await world.one_pass(flow)
    state = await load_state(world.storage, "r")
    assert state is not None
    node = state.get("z")
    assert (node.done, node.pending, node.attempt, node.interruptions) == (True, False, 1, 0)


# --- beside others --------------------------------------------------------------------------------


@in_both_modes
@pytest.mark.parametrize("shape", ["gather", "task group", "group"])
async def test_beside_working_siblings(shape: str, mode: str, anyio_backend: str) -> None:
    """Sleeps beside each other and beside work all count at the same time."""
    if shape == "gather" and anyio_backend != "asyncio":
        return
    world = World()

    async def work(s: Step) -> None:
        await world.clock.sleep(2)
        world.note("worked")

    async def nap(s: Step, name: str, length: float) -> None:
        await s.sleep(name, length)
        world.note(name)

    async def in_a_step(s: Step, length: float) -> None:
        await nap(s, s.name, length)

    async def flow(s: Step) -> None:
        if shape == "gather":
            await asyncio.gather(
                nap(s, "a", 10), nap(s, "b", 1), s.do("work", work), nap(s, "c", 3)
            )
        elif shape == "task group":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(nap, s, "a", 10)
                tasks.start_soon(nap, s, "b", 1)
                tasks.start_soon(s.do, "work", work)
                tasks.start_soon(nap, s, "c", 3)
        else:
            async with s.group("g") as g:
                g.do("a", in_a_step, 10)
                g.do("b", in_a_step, 1)
                g.do("work", work)
                g.do("c", in_a_step, 3)
        world.note("all")

    assert isinstance(await world.end(flow, mode), Done)
    # Over several passes the code behind a sleep is run on each of them.
    first = dict(reversed(world.log))
    assert first == {"b": 1, "worked": 2, "c": 3, "a": 10, "all": 10}
    assert world.log.count(("worked", 2)) == 1


async def test_a_working_sibling_is_finished_before_the_pass_ends() -> None:
    """A pass that ends with a sleep has brought the other bodies to their end."""
    world = World()

    async def work(s: Step) -> None:
        await world.clock.sleep(2)
        world.note("worked")

    async def flow(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(s.sleep, "z", 10)
            tasks.start_soon(s.do, "work", work)

    outcome = await world.one_pass(flow)
    assert isinstance(outcome, Pending)
    assert (outcome.after, outcome.path, world.log) == (8, "z", [("worked", 2)])


async def test_one_after_another() -> None:
    """Each sleep of a sequence begins when the one before it is over."""
    world = World()

    async def flow(s: Step) -> None:
        for number in range(5):
            await s.sleep(f"z{number}", 10)
        world.note("awake")

    for mode in MODES:
        world = World()
        await world.end(flow, mode)
        assert world.log == [("awake", 50)]


async def test_in_a_sqlite_file(tmp_path: Path) -> None:
    """A sleep of a run in a real file keeps its end over processes, and ends in place."""
    clock = FakeClock()

    async def flow(s: Step) -> int:
        await s.sleep("z", 5)
        return 1

    path = tmp_path / "runs.db"
    async with SQLiteStore(path) as store:
        outcome = await asteps.reconcile(flow, store=store, id="r", name="f", clock=clock)
        assert isinstance(outcome, Pending)
        assert outcome.after == 5
    clock.advance(2)
    async with SQLiteStore(path) as store:
        assert await asteps.run(flow, store=store, id="r", name="f", clock=clock) == 1
        assert (clock.slept, clock.now()) == ([3], START + 5)
        state = await load_state(store, "r")
        assert state is not None
        assert ends(state.get("z")) == 5


async def test_in_a_sqlite_file_in_real_time(tmp_path: Path) -> None:
    """By the clock on the wall a sleep is not shorter than it says."""

    async def flow(s: Step) -> None:
        await s.sleep("z", 0.005)

    async with SQLiteStore(tmp_path / "runs.db") as store:
        began = time.monotonic()
        await asteps.run(flow, store=store, id="r")
        assert time.monotonic() - began >= 0.004  # the wall's clock is another one
