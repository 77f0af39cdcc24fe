"""The timeline of a run says what happened when: each number of recorded runs, asserted exactly."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from clocks import FakeClock
from hypothesis import given, settings
from hypothesis import strategies as st

import asteps
from asteps import Earlier, Phase, Retry, State, Step, StepError, edit_run, load_state
from asteps._state import Detail, RunRecord, moment
from asteps.errors import Failure
from asteps.reports import Row, Stretch, Timeline, timeline
from asteps.stores.memory import MemoryStore
from asteps.testing import Crash, FaultyStore

GOLDEN = Path(__file__).parent / "golden"
START = 1_700_000_000.0
NEVER = Failure("boom", ("builtins.ValueError",))

Stretches = list[tuple[str, float, float]]

# --- helpers ------------------------------------------------------------------------------------


class World:
    """A clock, a store, and steps that take a time."""

    def __init__(self) -> None:
        self.clock = FakeClock(START)
        self.store = MemoryStore()
        self.calls: dict[str, int] = {}

    def count(self, name: str) -> int:
        self.calls[name] = self.calls.get(name, 0) + 1
        return self.calls[name]

    async def work(self, s: Step, takes: float) -> float:
        await self.clock.sleep(takes)
        return takes

    async def run(self, flow: Callable[..., Any], **options: Any) -> None:
        with suppress(StepError):
            await asteps.run(
                flow, self, store=self.store, id="r", clock=self.clock, name="flow", **options
            )

    async def drawn(self, **look: Any) -> Timeline:
        state = await load_state(self.store.client(), "r")
        assert state is not None
        found = timeline(state, run_id="r", **{"now": moment(self.clock.now()), **look})
        check(found)
        return found


def check(found: Timeline) -> None:
    """What is true of every timeline."""
    assert found.rows[0] is found.root
    assert found.start <= found.until <= found.last
    for row in found.rows:
        sums = row.worked + row.waited + row.backed_off + row.failed_work + row.lost_work + row.idle
        assert sums == pytest.approx(row.span, abs=1e-5), row.path
        assert row.own <= row.span + 1e-6
        assert all(stretch.end >= stretch.start for stretch in row.stretches), row.path
        if row.stretches:
            assert row.stretches[0].start == row.start
            assert row.stretches[-1].end == row.until
            for one, other in zip(row.stretches, row.stretches[1:], strict=False):
                assert one.end == other.start, row.path
        else:
            assert row.span == 0
        assert row.saving >= 0
    cursor = found.start
    for part in found.critical_path():
        assert part.start == cursor
        cursor = part.end
    assert cursor == found.until
    assert 0 <= found.done <= found.total


def row_of(found: Timeline, path: str) -> Row:
    """The row at a path."""
    return next(row for row in found.rows if row.path == path)


def went(row: Row) -> Stretches:
    """What a step went through, in seconds since the start."""
    return [(each.kind, each.start - START, each.end - START) for each in row.stretches]


def totals(row: Row) -> dict[str, float]:
    """The totals of a step that are not 0."""
    names = ("worked", "waited", "backed_off", "failed_work", "lost_work", "idle", "own", "calls")
    return {name: value for name in names if (value := round(getattr(row, name), 6))}


def node(
    name: str,
    start: float | None = None,
    end: float | None = None,
    *children: State,
    errs: list[str] | None = None,
    **more: Any,
) -> State:
    """A node of a tree made by hand; times in seconds since the start."""
    return State(
        name,
        _started=None if start is None else moment(START + start),
        _done=None if end is None else moment(START + end),
        states=list(children) or None,
        errs=errs,
        detail=Detail(**more) if more else None,
    )


def phases(*found: tuple[Any, float]) -> list[Phase]:
    """Phases, in seconds since the start."""
    return [Phase(status, moment(START + since)) for status, since in found]


def look(root: State, now: float = 1000, **more: Any) -> Timeline:
    """The timeline of a tree made by hand."""
    root.run = RunRecord(1)
    found = timeline(root, now=moment(START + now), **more)
    check(found)
    return found


# --- recorded runs ------------------------------------------------------------------------------


async def test_plain_steps() -> None:
    """A step that just works has one stretch; what lies between is its parent's own."""
    world = World()

    async def flow(s: Step, world: World) -> None:
        await s.do("a", world.work, 3)
        await world.clock.sleep(2)
        await s.do("b", world.work, 4)

    await world.run(flow)
    found = await world.drawn()
    assert (found.status, found.start, found.end, found.until) == (
        "done",
        START,
        START + 9,
        START + 9,
    )
    assert (found.done, found.total, found.span, found.wasted) == (2, 2, 9, 0)
    assert [(row.path, row.status, went(row)) for row in found.rows] == [
        ("", "done", [("work", 0, 9)]),
        ("a", "done", [("work", 0, 3)]),
        ("b", "done", [("work", 5, 9)]),
    ]
    assert totals(found.root) == {"worked": 9, "own": 2, "calls": 1}
    assert [row.saving for row in found.rows] == [2, 3, 4]
    assert [(p.row.path, p.start - START, p.end - START) for p in found.critical_path()] == [
        ("a", 0, 3),
        ("", 3, 5),
        ("b", 5, 9),
    ]


async def test_retry_with_backoff() -> None:
    """Each attempt that failed is a stretch of failed work, each pause one of backing off."""
    world = World()

    async def shaky(s: Step, world: World) -> None:
        await world.clock.sleep(2)
        if s.attempt < 3:
            raise ConnectionError("no")

    async def flow(s: Step, world: World) -> None:
        await s.do("shaky", shaky, world, retry=Retry(attempts=3, delay=5, factor=2, jitter=0))

    await world.run(flow)
    row = row_of(await world.drawn(), "shaky")
    assert went(row) == [
        ("failed", 0, 2),
        ("backoff", 2, 7),
        ("failed", 7, 9),
        ("backoff", 9, 19),
        ("work", 19, 21),
    ]
    assert totals(row) == {"worked": 2, "backed_off": 15, "failed_work": 4, "own": 6, "calls": 3}
    assert (row.attempt, row.saving, row.wasted) == (3, 21, 4)


async def test_while_it_is_retrying() -> None:
    """A step that waits for its next attempt is retrying, and its parents are pending."""
    world = World()

    async def broken(s: Step) -> None:
        raise ConnectionError("no")

    async def flow(s: Step, world: World) -> None:
        await s.do("broken", broken, retry=Retry(attempts=3, delay=50, jitter=0))

    await asteps.reconcile(flow, world, store=world.store, id="r", clock=world.clock)
    found = await world.drawn(now=moment(START + 10), held=False)
    assert [(row.status, went(row)) for row in found.rows] == [
        ("pending", [("work", 0, 10)]),
        ("retrying", [("backoff", 0, 10)]),
    ]


async def twice_pending(s: Step, world: World) -> str:
    """Works for a second, three times, and waits for ten seconds in between."""
    await world.clock.sleep(2)
    if world.count("calls") < 3:
        s.pending(10, why="not there yet")
    return "there"


async def pending_flow(s: Step, world: World) -> None:
    """A flow of one step that waits."""
    await s.do("wait", twice_pending, world)


async def test_pending_in_place() -> None:
    """A step that waits in place works and waits in turn; its parent stands still, open."""
    world = World()
    await world.run(pending_flow)
    found = await world.drawn()
    assert went(found.root) == [("work", 0, 26)]
    assert totals(found.root) == {"worked": 26, "calls": 1}
    row = row_of(found, "wait")
    assert went(row) == [
        ("work", 0, 2),
        ("wait", 2, 12),
        ("work", 12, 14),
        ("wait", 14, 24),
        ("work", 24, 26),
    ]
    assert totals(row) == {"worked": 6, "waited": 20, "own": 6, "calls": 3}


async def test_pending_across_passes() -> None:
    """Between two passes the run itself waits; the step's own wait is the same as in place."""
    world = World()
    for _ in range(3):
        await asteps.reconcile(pending_flow, world, store=world.store, id="r", clock=world.clock)
        world.clock.advance(10)
    found = await world.drawn()
    assert went(found.root) == [
        ("work", 0, 2),
        ("wait", 2, 12),
        ("work", 12, 14),
        ("wait", 14, 24),
        ("work", 24, 26),
    ]
    assert went(row_of(found, "wait")) == went(found.root)
    assert found.until == START + 26


async def test_a_poll_is_one_wait() -> None:
    """Checks that are quick against the wait are folded into it, and counted."""
    world = World()

    async def start() -> str:
        return "task"

    async def check_it(task: str) -> str | None:
        world.clock.advance(0.25)
        return "image" if world.count("checks") > 10 else None

    async def flow(s: Step, world: World) -> None:
        await s.poll("snapshot", start, check_it, every=10)

    await world.run(flow)
    row = row_of(await world.drawn(), "snapshot")
    assert went(row) == [("work", 0, 0.25), ("wait", 0.25, 102.5), ("work", 102.5, 102.75)]
    assert row.stretches[1] == Stretch("wait", START + 0.25, START + 102.5, calls=9, worked=2.25)
    assert totals(row) == {"worked": 2.75, "waited": 100, "own": 2.75, "calls": 11}


async def test_many_passes() -> None:
    """Quick passes are folded into the run's wait; what its steps did then is not its own."""
    world = World()

    async def wait(s: Step, world: World) -> None:
        await world.clock.sleep(1)
        if world.count("calls") < 30:
            s.pending(10)

    async def flow(s: Step, world: World) -> None:
        await s.do("wait", wait, world)

    for _ in range(30):
        await asteps.reconcile(flow, world, store=world.store, id="r", clock=world.clock)
        world.clock.advance(10)
    found = await world.drawn()
    assert totals(found.root) == {"worked": 30, "waited": 290, "calls": 30}
    assert totals(row_of(found, "wait")) == {"worked": 30, "waited": 290, "own": 30, "calls": 30}


async def test_sleep() -> None:
    """A sleep is a wait."""
    world = World()

    async def flow(s: Step, world: World) -> None:
        await s.sleep("settle", 60)

    await world.run(flow)
    row = row_of(await world.drawn(), "settle")
    assert went(row) == [("wait", 0, 60)]
    assert totals(row) == {"waited": 60, "calls": 2}


async def test_a_crash() -> None:
    """What a dead process had open is lost work, up to its last save; then nobody was at work."""
    world = World()

    async def second(s: Step, world: World) -> None:
        await world.clock.sleep(4)
        await s.save_info("half")
        await world.clock.sleep(3)

    async def flow(s: Step, world: World) -> None:
        await s.do("first", world.work, 5)
        await s.do("second", second, world)

    dying = FaultyStore(
        world.store.client(),
        lambda save: "crash before" if world.clock.now() == START + 12 else None,
    )
    options: dict[str, Any] = {"id": "r", "clock": world.clock, "name": "flow"}
    with pytest.raises(Crash):
        await asteps.run(flow, world, store=dying, **options)

    now = moment(START + 50)
    assert (await world.drawn(now=now, held=False)).until == START + 5  # all that the tree tells
    seen = await world.drawn(now=now, held=False, saved_at=moment(START + 9))
    assert (seen.status, seen.until, seen.end) == ("interrupted", START + 9, None)
    second_row = row_of(seen, "second")
    assert (second_row.status, went(second_row)) == ("interrupted", [("lost", 5, 9)])

    world.clock.advance(88)
    await world.run(flow)
    found = await world.drawn()
    assert went(found.root) == [("lost", 0, 9), ("idle", 9, 100), ("work", 100, 107)]
    assert went(row_of(found, "second")) == [("lost", 5, 9), ("idle", 9, 100), ("work", 100, 107)]
    assert totals(row_of(found, "second")) == {
        "worked": 7,
        "lost_work": 4,
        "idle": 91,
        "own": 11,
        "calls": 2,
    }
    assert found.wasted == 4


async def test_a_crash_in_a_group() -> None:
    """A group that a dead process had open was left, and is at work again with its first child."""
    world = World()

    async def flow(s: Step, world: World) -> None:
        async with s.group("both") as g:
            g.do("short", world.work, 3)
            g.do("long", world.work, 8)
        await s.map("each", world.work, [2])

    dying = FaultyStore(
        world.store.client(),
        lambda save: "crash before" if world.clock.now() == START + 8 else None,
    )
    with pytest.raises(Crash):
        await asteps.run(flow, world, store=dying, id="r", clock=world.clock, name="flow")
    world.clock.advance(92)
    await world.run(flow)
    found = await world.drawn()
    row = row_of(found, "both")
    assert went(row) == [("lost", 0, 3), ("idle", 3, 100), ("work", 100, 108)]
    assert totals(row) == {"worked": 11, "idle": 97, "calls": 2}
    assert went(row_of(found, "each")) == [("work", 108, 110)]


async def test_a_group_that_is_entered_again() -> None:
    """A group that was cancelled or recovered is at work again when one of its children is."""
    world = World()

    async def fragile(s: Step, world: World) -> None:
        await world.clock.sleep(5)
        if world.count("calls") == 1:
            raise ValueError("no")

    async def item(s: Step, world: World) -> None:
        async with s.group("inner") as g:
            g.do("fragile", fragile, world)

    async def flow(s: Step, world: World) -> None:
        async with s.group("outer") as g:
            g.do("item", item, world)

    with world.clock.move_on_after(2):
        await world.run(flow)
    world.clock.advance(8)
    await world.run(flow)
    world.clock.advance(5)
    async with edit_run(world.store, "r") as state:
        state.recover()
    await world.run(flow)
    found = await world.drawn()
    for path in ("", "outer", "outer/item", "outer/item/inner", "outer/item/inner/fragile"):
        assert went(row_of(found, path)) == [
            ("lost", 0, 2),
            ("idle", 2, 10),
            ("failed", 10, 15),
            ("idle", 15, 20),
            ("work", 20, 25),
        ], path


async def test_a_group_that_waits() -> None:
    """A group whose child waits between two passes was not left."""
    world = World()

    async def flow(s: Step, world: World) -> None:
        async with s.group("both") as g:
            g.do("wait", twice_pending, world)

    for _ in range(3):
        await asteps.reconcile(flow, world, store=world.store, id="r", clock=world.clock)
        world.clock.advance(10)
    found = await world.drawn()
    assert went(row_of(found, "both")) == [("work", 0, 26)]


async def test_a_cancellation() -> None:
    """A step that is cancelled is interrupted at that moment, and nobody is at work on it."""
    world = World()

    async def flow(s: Step, world: World) -> None:
        await s.do("first", world.work, 5)
        await s.do("long", world.work, 50)

    with world.clock.move_on_after(20):
        await world.run(flow)
    world.clock.advance(80)
    found = await world.drawn()
    assert (found.status, found.until) == ("interrupted", START + 20)
    assert [(row.path, row.status, went(row)) for row in found.rows] == [
        ("", "interrupted", [("lost", 0, 20)]),
        ("first", "done", [("work", 0, 5)]),
        ("long", "interrupted", [("lost", 5, 20)]),
    ]
    assert totals(found.root) == {"worked": 20, "calls": 1}
    await world.run(flow)
    found = await world.drawn()
    assert went(row_of(found, "long")) == [
        ("lost", 5, 20),
        ("idle", 20, 100),
        ("work", 100, 150),
    ]


async def test_recovered() -> None:
    """From its failure until somebody recovers it and a pass enters it a step is idle."""
    world = World()

    async def fragile(s: Step, world: World) -> None:
        await world.clock.sleep(3)
        if world.count("calls") == 1:
            raise ValueError("no")

    async def flow(s: Step, world: World) -> None:
        await s.do("good", world.work, 2)
        await s.do("fragile", fragile, world)

    await world.run(flow)
    failed = await world.drawn()
    assert [(row.status, went(row)) for row in failed.rows] == [
        ("failed", [("failed", 0, 5)]),
        ("done", [("work", 0, 2)]),
        ("failed", [("failed", 2, 5)]),
    ]
    assert totals(failed.root) == {"worked": 5, "calls": 1}
    assert (failed.done, failed.total, failed.wasted) == (1, 2, 3)

    world.clock.advance(10)
    async with edit_run(world.store, "r") as state:
        state.recover()
        state.note("it works again", by="alice", now=moment(START + 15))
    recovered = await world.drawn()
    assert [row.status for row in recovered.rows] == ["reopened", "done", "reopened"]
    assert recovered.until == START + 5
    assert [(note.by, note.text) for note in recovered.notes] == [("alice", "it works again")]

    world.clock.advance(10)
    await world.run(flow)
    found = await world.drawn()
    assert went(row_of(found, "fragile")) == [("failed", 2, 5), ("idle", 5, 25), ("work", 25, 28)]
    assert went(found.root) == [("failed", 0, 5), ("idle", 5, 25), ("work", 25, 28)]


async def test_reset() -> None:
    """A step that was reset has not begun, and the run waits to be entered again."""
    world = World()

    async def flow(s: Step, world: World) -> None:
        await s.do("a", world.work, 2)
        await s.do("b", world.work, 2)

    await world.run(flow)
    async with edit_run(world.store, "r") as state:
        state.reset("b")
    found = await world.drawn()
    assert [(row.path, row.status, went(row)) for row in found.rows] == [
        ("", "reopened", [("work", 0, 4)]),
        ("a", "done", [("work", 0, 2)]),
        ("b", "not begun", []),
    ]
    assert (found.done, found.total) == (1, 2)


async def test_a_group_and_a_map() -> None:
    """A group's own time is what none of its children took; a limit has them follow one another."""
    world = World()

    async def item(s: Step, takes: int) -> None:
        await world.clock.sleep(takes)

    async def flow(s: Step, world: World) -> None:
        async with s.group("both") as g:
            g.do("long", world.work, 7)
            g.do("short", world.work, 4)
        await s.map("each", item, [3, 1, 2], limit=2)

    await world.run(flow)
    found = await world.drawn()
    assert {row.path: went(row) for row in found.rows} == {
        "": [("work", 0, 10)],
        "both": [("work", 0, 7)],
        "both/long": [("work", 0, 7)],
        "both/short": [("work", 0, 4)],
        "each": [("work", 7, 10)],
        "each/3": [("work", 7, 10)],
        "each/1": [("work", 7, 8)],
        "each/2": [("work", 8, 10)],
    }
    assert [row.own for row in found.rows] == [0, 0, 7, 4, 0, 3, 1, 2]
    assert {row.path: row.saving for row in found.rows if row.saving} == {"both/long": 3}
    assert (found.done, found.total) == (5, 5)


async def test_what_runs_after_the_end() -> None:
    """`$end` is drawn beyond the run's end, and is no part of its path or its progress."""
    world = World()

    async def tidy(s: Step) -> None:
        await world.clock.sleep(5)

    async def flow(s: Step, world: World) -> None:
        await s.do("a", world.work, 2)

    await world.run(flow, on_end=tidy)
    found = await world.drawn()
    assert (found.until, found.last) == (START + 2, START + 7)
    assert went(row_of(found, "$end")) == [("work", 2, 7)]
    assert (found.done, found.total, row_of(found, "$end").critical) == (1, 1, ())


# --- trees of every kind ------------------------------------------------------------------------


def test_an_empty_tree() -> None:
    """A run that has not begun has one row and no time."""
    found = look(node("r"))
    assert (found.status, found.start, found.end, found.span) == (
        "not begun",
        START + 1000,
        None,
        0,
    )
    assert (found.rows, found.done, found.total) == ([found.root], 0, 0)
    assert found.critical_path() == []


def test_planned() -> None:
    """What is planned and has not begun has a row, and counts as to be done."""
    found = look(node("r", 0, None, node("b", 0, 1), planned=["a", "b", "c/d"]))
    assert [(row.path, row.status, row.node is None) for row in found.rows] == [
        ("", "proceeding", False),
        ("b", "done", False),
        ("a", "not begun", True),
        ("c~1d", "not begun", True),
    ]
    assert (found.done, found.total) == (1, 3)


def test_planned_and_left_out() -> None:
    """What a run ended without is not counted any more."""
    found = look(node("r", 0, 9, node("b", 0, 1), planned=["a", "b"]))
    assert (found.done, found.total) == (1, 1)


def test_handled_failures_are_progress() -> None:
    """A failure that the run went on without is as good as done; one that stopped it is not."""
    bad = node("bad", 0, 1, errs=["no"])
    assert (look(node("r", 0, 9, bad)).done, look(node("r", 0, 9, bad, errs=["no"])).done) == (1, 0)


def test_left_behind() -> None:
    """A step whose parent has ended without it was interrupted then, whatever it waited for."""
    waiting = node(
        "w", 2, None, wake_at=moment(START + 99), phases=phases(("working", 2), ("waiting", 3))
    )
    root = node("r", 0, None, node("g", 1, 5, node("a", 1), waiting), node("next", 5))
    found = look(root, now=20)
    assert [(row.path, row.status, went(row)) for row in found.rows] == [
        ("", "proceeding", [("work", 0, 20)]),
        ("g", "done", [("work", 1, 5)]),
        ("g/a", "interrupted", [("lost", 1, 5)]),
        ("g/w", "interrupted", [("work", 2, 3), ("wait", 3, 5)]),
        ("next", "proceeding", [("work", 5, 20)]),
    ]


def test_nobody_at_work() -> None:
    """Of a run that nobody holds what was open is interrupted, at the last sign of life."""
    root = node("r", 0, None, node("a", 0, 3), node("b", 4))
    found = look(root, held=False)
    assert (found.status, found.until) == ("interrupted", START + 4)
    assert went(row_of(found, "b")) == [("lost", 4, 4)]
    saved = look(root, held=False, saved_at=moment(START + 8))
    assert went(row_of(saved, "b")) == [("lost", 4, 8)]
    assert went(look(root, now=10).root) == [("work", 0, 10)]


def test_not_entered_again() -> None:
    """What a dead driver had open is interrupted until the next one enters it."""
    root = node(
        "r",
        0,
        None,
        node("old", 1),
        node("new", 61),
        phases=phases(("working", 0), ("interrupted", 5), ("working", 60)),
    )
    found = look(root, now=70)
    assert [(row.status, went(row)) for row in found.rows] == [
        ("proceeding", [("lost", 0, 5), ("idle", 5, 60), ("work", 60, 70)]),
        ("interrupted", [("lost", 1, 5), ("idle", 5, 70)]),
        ("proceeding", [("work", 61, 70)]),
    ]


def test_folded_phases() -> None:
    """What the tree has summed up is one stretch, and is in the totals."""
    earlier = Earlier(
        moment(START + 100),
        worked=20,
        waited=30,
        retried=10,
        failed=15,
        lost=5,
        idle=20,
        calls=7,
    )
    row = look(
        node("r", 0, 130, earlier=earlier, phases=phases(("waiting", 100), ("working", 120)))
    ).root
    assert went(row) == [("folded", 0, 100), ("wait", 100, 120), ("work", 120, 130)]
    assert totals(row) == {
        "worked": 30,
        "waited": 50,
        "backed_off": 10,
        "failed_work": 15,
        "lost_work": 5,
        "idle": 20,
        "own": 50,
        "calls": 8,
    }


def test_an_attempt_with_waits() -> None:
    """All work of an attempt that failed has failed, also before its waits; lost is the last."""
    row = look(
        node(
            "r",
            0,
            70,
            first_at=moment(START),
            phases=phases(
                ("working", 0),
                ("waiting", 10),
                ("working", 20),
                ("retrying", 30),
                ("working", 40),
                ("waiting", 45),
                ("working", 50),
                ("interrupted", 55),
                ("working", 60),
            ),
        )
    ).root
    assert [kind for kind, _, _ in went(row)] == [
        *("failed", "wait", "failed", "backoff", "work", "wait", "lost", "idle", "work"),
    ]
    assert (row.failed_work, row.lost_work, row.worked) == (20, 5, 15)


def test_failed_parents_waste_only_their_own() -> None:
    """What the children of a failed or cut off parent did is kept: it is not wasted."""
    root = node("r", 0, 10, node("a", 1, 7), errs=["no"])
    assert totals(look(root).root) == {"worked": 6, "failed_work": 4, "own": 4, "calls": 1}


def test_clocks_that_went_back() -> None:
    """No duration is negative, and the path has no gaps, whatever the times say."""
    root = node("r", 10, 5, node("a", 20, 3), node("b", 0, 100), node("c", 7))
    found = look(root, now=-50)
    assert found.span == 10  # none of its children lies in its span: it began with the first
    assert all(row.span >= 0 for row in found.rows)


def test_the_ends_of_the_calendar() -> None:
    """Times that lie beyond the calendar, seen from UTC, are at its ends."""
    east, west = (timezone(timedelta(hours=hours)) for hours in (14, -14))
    first, last = datetime.min.replace(tzinfo=east), datetime.max.replace(tzinfo=west)
    root = node("r", phases=[Phase("working", first), Phase("waiting", last)])
    root._started = first
    found = look(root, held=False, saved_at=last)
    assert (moment(found.start).year, moment(found.until).year) == (1, 9999)


def test_a_parent_without_a_start() -> None:
    """Where the tree does not say when a parent began, it began with its first child."""
    found = look(node("r", 9, 9, node("a", 0, 4), node("b", 4, 9)))
    assert (found.span, [row.critical_time for row in found.rows]) == (9, [0, 4, 5])


@pytest.mark.parametrize("file", sorted(GOLDEN.rglob("*.json")), ids=lambda file: file.stem)
def test_trees_of_other_libraries(file: Path) -> None:
    """Every tree that loads can be drawn, held or not: Go's as well as ours."""
    try:
        state = State.decode(file.read_bytes())
    except (asteps.StateFormatError, ValueError):
        return
    for held in (True, False):
        check(timeline(state, now=moment(START), held=held))


TIMES = st.one_of(st.none(), st.integers(-5, 30).map(float))
PHASES = st.lists(
    st.tuples(
        st.sampled_from(("working", "waiting", "retrying", "interrupted", "failed", "done")),
        st.integers(-5, 30),
    ),
    max_size=6,
)


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> State:
    """Trees of which nothing can be expected."""
    made = node("x", draw(TIMES), draw(TIMES))
    made.errs = draw(st.sampled_from((None, None, ["no"])))
    if draw(st.booleans()):
        made.detail = Detail(
            phases=phases(*draw(PHASES)) or None,
            earlier=draw(
                st.sampled_from(
                    (None, Earlier(moment(START + 4), worked=9, waited=3, lost=2, failed=1, idle=1))
                )
            ),
            wake_at=draw(st.sampled_from((None, moment(START + 8)))),
            first_at=draw(st.sampled_from((None, moment(START + 1)))),
            planned=draw(st.sampled_from((None, ["0", "new"]))),
            failure=draw(st.sampled_from((None, NEVER))),
        )
    if depth:
        children = draw(st.lists(trees(depth=depth - 1), max_size=4))
        for place, child in enumerate(children):
            child.name = "$end" if depth == 3 and place == 3 else str(place)
        made.states = children or None
    return made


@given(trees(), st.integers(-10, 50), st.booleans())
@settings(max_examples=500, deadline=None)
def test_any_tree_can_be_drawn(root: State, now: int, held: bool) -> None:
    """Whatever a tree says, it can be drawn: stretches without gaps, totals that add up."""
    look(root, now, held=held)


def test_the_present_time() -> None:
    """Without ``now`` what goes on is drawn until the present time."""
    root = State("r", run=RunRecord(1))
    root._started = moment(0) + timedelta(days=1)
    found = timeline(root)
    assert found.until == found.now > 1_700_000_000


def test_a_run_at_work_is_not_pending() -> None:
    """What works when a run was saved last is not in its tree yet; the store's summary tells."""
    state = State(
        "flow",
        _started=moment(START),
        states=[
            State(
                "x",
                errs=["no"],
                _started=moment(START),
                detail=Detail(
                    attempt=2,
                    failure=NEVER,
                    wake_at=moment(START + 6),
                    phases=[Phase("working", moment(START)), Phase("retrying", moment(START + 2))],
                ),
            )
        ],
        run=RunRecord(1),
    )
    look: dict[str, Any] = {"now": moment(START + 60), "saved_at": moment(START + 5)}
    assert timeline(state, **look).status == "pending"
    living = timeline(state, **look, at_work=True)
    assert (living.status, living.until - START) == ("proceeding", 60)
    dead = timeline(state, **look, at_work=True, held=False)
    check(dead)
    assert (dead.status, dead.until - START, dead.root.children[0].backed_off) == (
        "interrupted",
        5,
        3,
    )
