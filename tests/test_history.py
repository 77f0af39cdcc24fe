"""What a step went through: recorded as it happened, bounded, and kept over crashes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import anyio
import pytest
from clocks import FakeClock
from hypothesis import given
from hypothesis import strategies as st

import asteps
from asteps import Earlier, Note, Phase, Retry, State, Step, StepError, UsageError
from asteps._history import MOST_PHASES, PhaseStatus, enter, sum_up
from asteps.stores.memory import MemoryStore
from asteps.testing import Crash, FaultyStore

START = FakeClock().now()
PLAIN = Retry(attempts=3, delay=10, jitter=0)

# --- helpers --------------------------------------------------------------------------------------


def told(node: State) -> list[tuple[Any, ...]]:
    """The phases of a node, times as seconds since the beginning."""
    return [
        (p.status, round(p.since.timestamp() - START, 6), *((p.calls, p.worked) if p.calls else ()))
        for p in node.phases
    ]


@dataclass
class World:
    """A clock, a store, and what a body does on each call: how long it works, then what."""

    clock: FakeClock = field(default_factory=FakeClock)
    store: MemoryStore = field(default_factory=MemoryStore)

    def body(self, *calls: tuple[float, Callable[[Step], object]]) -> Callable[[Step], Any]:
        """A body whose n-th call works for so many seconds, and then does that."""
        left = list(calls)

        async def body(s: Step) -> None:
            seconds, act = left.pop(0)
            self.clock.advance(seconds)
            act(s)

        return body

    async def run(self, root: Callable[[Step], Any], **keywords: Any) -> State:
        """Run to the end, whatever that is."""
        with suppress(StepError):
            await asteps.run(root, store=self.store, id="x", name="r", clock=self.clock, **keywords)
        return await self.load()

    async def load(self) -> State:
        """What the store has."""
        state = await asteps.load_state(self.store, "x")
        assert state is not None
        return state


def done(s: Step) -> None:
    """The body returns."""


def broken(s: Step) -> None:
    """The body raises."""
    raise ValueError("no luck")


def later(after: float) -> Callable[[Step], None]:
    """The body says that it is not finished."""

    def not_yet(s: Step) -> None:
        s.pending(after)

    return not_yet


# --- what is recorded -----------------------------------------------------------------------------


async def test_a_plain_step_has_no_phases() -> None:
    """What worked from its start to its end says so by its two times alone."""
    world = World()
    state = await world.run(lambda s: s.do("x", world.body((5, done))))
    assert state.get("x").detail is None
    assert state.detail is None
    assert state.get("x").first_started_at == state.get("x").started_at
    assert (state.phases, state.earlier, state.planned, state.notes) == ((), None, (), ())


async def test_a_retried_step_tells_work_from_back_off() -> None:
    """Each attempt's work and each pause is a phase of its own."""
    world = World()
    body = world.body((3, broken), (4, broken), (5, done))
    state = await world.run(lambda s: s.do("x", body, retry=PLAIN))
    node = state.get("x")
    assert told(node) == [
        ("working", 0),
        ("retrying", 3),
        ("working", 13),
        ("retrying", 17),
        ("working", 37),
    ]
    assert node.done_at is not None
    assert node.done_at.timestamp() - START == 42
    assert node.first_started_at is not None
    assert node.first_started_at.timestamp() - START == 0


@pytest.mark.parametrize("max_wait", [0, 1_000])
async def test_a_pending_step_tells_work_from_waits(max_wait: float) -> None:
    """Waits are phases, in place and between passes alike."""
    world = World()
    body = world.body((3, later(20)), (4, later(20)), (5, done))

    async def root(s: Step) -> None:
        await s.do("x", body)

    state = await world.run(root, max_wait=max_wait)
    assert told(state.get("x")) == [
        ("working", 0),
        ("waiting", 3),
        ("working", 23),
        ("waiting", 27),
        ("working", 47),
    ]
    passes = [("working", 0), ("waiting", 3), ("working", 23), ("waiting", 27), ("working", 47)]
    assert told(state) == ([] if max_wait else passes)


async def test_quick_checks_belong_to_the_wait() -> None:
    """A poll is one wait however often it checks; how often, and for how long, is told."""
    world = World()
    checks = iter(range(1, 1_001))

    async def start() -> str:
        world.clock.advance(2)
        return "task"

    async def check(task: str) -> int | None:
        world.clock.advance(0.25)
        n = next(checks)
        return n if n == 1_000 else None

    async def root(s: Step) -> None:
        await s.poll("image", start, check, every=10)

    node = (await world.run(root)).get("image")
    assert told(node) == [
        ("working", 0),
        ("waiting", 2.25, 998, 249.5),
        ("working", 2.25 + 999 * 10 + 998 * 0.25),
    ]


async def test_passes_of_a_reconciler_are_the_phases_of_the_root() -> None:
    """When the run was worked at, and when it waited, is told by the root."""
    world = World()
    body = world.body((3, later(20)), (5, later(30)), (1, done))

    async def root(s: Step) -> None:
        await s.do("x", body)

    for pause in (30, 40, 0):
        await asteps.reconcile(root, store=world.store, id="x", clock=world.clock)
        world.clock.advance(pause)
    assert told(await world.load()) == [
        ("working", 0),
        ("waiting", 3),
        ("working", 33),
        ("waiting", 38),
        ("working", 78),
    ]


async def test_a_pass_in_which_nothing_is_due_leaves_no_phase() -> None:
    """To look whether something is due is no work."""
    world, state = World(), State("r")

    async def root(s: Step) -> None:
        await s.do("x", world.body((3, later(20))))

    await asteps.reconcile(root, state=state, clock=world.clock)
    before = state.encode()
    world.clock.advance(5)
    await asteps.reconcile(root, state=state, clock=world.clock)
    assert state.encode() == before


async def test_a_state_that_the_caller_keeps_tells_the_same() -> None:
    """Without a store, the last that the tree says of itself is when somebody was at work."""
    world, state, copies = World(), State("r"), []

    async def root(s: Step, body: Any) -> None:
        await s.do("a", world.body((3, done)))
        await s.do("x", body)

    async def copy(s: Step) -> None:
        world.clock.advance(4)
        assert s._parent is not None
        copies.append(s._parent.state.encode())

    await asteps.run(root, copy, state=state, clock=world.clock)
    world.clock.advance(100)
    state = State.decode(copies[0])  # as after a crash
    await asteps.reconcile(root, world.body((3, done)), state=state, clock=world.clock)
    assert told(state) == [("working", 0), ("interrupted", 3), ("working", 107)]
    assert told(state.get("x")) == [("working", 3), ("interrupted", 3), ("working", 107)]


async def test_a_state_that_the_caller_keeps_tells_of_passes() -> None:
    """Between two passes the run waits, in whatever process they are."""
    world, state = World(), State("r")
    body = world.body((3, later(20)), (5, later(30)), (1, done))

    async def root(s: Step) -> None:
        await s.do("x", body)

    for pause in (30, 40, 0):
        state = State.decode(state.encode())
        await asteps.reconcile(root, state=state, clock=world.clock)
        world.clock.advance(pause)
    assert told(state)[:3] == [("working", 0), ("waiting", 3), ("working", 33)]


async def test_a_body_that_is_cut_off_says_when() -> None:
    """A cancelled body's work is told from the time in which nobody was at work."""
    world = World()
    began = anyio.Event()

    async def hang(s: Step) -> None:
        world.clock.advance(7)
        began.set()
        await anyio.sleep_forever()

    async def root(s: Step, body: Any) -> None:
        await s.do("x", body)

    async with anyio.create_task_group() as tasks:

        async def drive() -> None:
            with anyio.CancelScope() as scope:
                tasks.start_soon(cancel, scope)
                await asteps.run(root, hang, **keywords)

        async def cancel(scope: anyio.CancelScope) -> None:
            await began.wait()
            world.clock.advance(1)
            scope.cancel()

        keywords: dict[str, Any] = {"store": world.store, "id": "x", "clock": world.clock}
        tasks.start_soon(drive)
    world.clock.advance(100)
    assert told((await world.load()).get("x")) == [("working", 0), ("interrupted", 8)]
    await asteps.reconcile(root, world.body((2, done)), **keywords)
    state = await world.load()
    assert told(state.get("x")) == [("working", 0), ("interrupted", 8), ("working", 108)]
    assert told(state) == [("working", 0), ("interrupted", 8), ("working", 108)]
    assert state.get("x").interruptions == 1


async def test_a_process_that_died_was_at_work_until_its_last_save() -> None:
    """Nobody knows when it died: what it last saved is the bound that is told."""
    world = World()
    bodies = {"a": world.body((3, done)), "b": world.body((4, done), (6, done))}

    async def root(s: Step) -> None:
        await s.do("a", bodies["a"])
        await s.do("b", bodies["b"])

    store = FaultyStore(world.store.client(), {3: "crash before"})
    with pytest.raises(Crash):
        await asteps.run(root, store=store, id="x", clock=world.clock)
    world.clock.advance(1_000)
    await asteps.run(root, store=world.store, id="x", clock=world.clock)
    assert told(await world.load()) == [("working", 0), ("interrupted", 3), ("working", 1_007)]


async def test_an_outcome_that_was_taken_back_is_told() -> None:
    """Until when a step had failed, or was done, before an operator opened it again."""
    world = World()
    body = world.body((3, broken), (4, done), (5, done))

    async def root(s: Step) -> None:
        await s.do("x", body)

    state = await world.run(root)
    assert state.failed
    world.clock.advance(100)
    state = await world.run(root, recover=True)
    assert told(state.get("x")) == [("working", 0), ("failed", 3), ("working", 103)]
    assert told(state) == [("working", 0), ("failed", 3), ("working", 103)]
    world.clock.advance(50)
    async with asteps.edit_run(world.store, "x") as state:
        state.reset("x")
    state = await world.run(root)
    assert told(state.get("x")) == []
    assert told(state)[2:] == [("working", 103), ("done", 107), ("working", 157)]


async def test_a_result_that_was_set_ends_the_failure_not_the_work() -> None:
    """The time between a failure and the operator's answer is no work."""
    world = World()

    async def root(s: Step) -> None:
        await s.do("x", world.body((3, broken)))

    await world.run(root)
    async with asteps.edit_run(world.store, "x") as state:
        at = datetime.fromtimestamp(START + 60, UTC)
        state.set_result("x", None, now=at)
    assert told((await world.load()).get("x")) == [("working", 0), ("failed", 3), ("working", 60)]


async def test_a_map_is_known_for_one() -> None:
    """Whoever folds the items of a map finds it marked in the tree, also without items."""
    world = World()

    async def item(s: Step, n: int) -> int:
        return n

    async def root(s: Step) -> None:
        await s.map("three", item, [1, 2, 3])
        await s.map("none", item, [])
        async with s.group("group") as g:
            g.do("a", item, 1)
            g.map("two", item, [1, 2])

    state = await world.run(root)
    of_items = [path for path, node in state.walk() if node.of_items]
    assert of_items == ["three", "none", "group/two"]


# --- bounds ---------------------------------------------------------------------------------------


async def test_a_node_stays_small_however_often_it_is_called_again() -> None:
    """At most 20 phases are kept; the sums of all others add up to the life of the step."""
    world = World()
    calls = 500
    body = world.body(*[(5, later(20))] * calls, (5, done))

    async def root(s: Step) -> None:
        await s.do("x", body)

    node = (await world.run(root, max_wait=1e6)).get("x")
    earlier = node.earlier
    assert len(node.phases) <= MOST_PHASES
    assert earlier is not None
    assert earlier.until == node.phases[0].since
    kept = sum(p.status == "waiting" for p in node.phases)
    assert earlier == Earlier(
        earlier.until, worked=(calls - kept) * 5.0, waited=(calls - kept) * 20.0, calls=calls - kept
    )
    assert len(node.encode()) < 3_000


STATUSES: list[PhaseStatus] = [
    "working",
    "waiting",
    "working",
    "retrying",
    "working",
    "interrupted",
    "failed",
    "done",
]


@given(st.lists(st.tuples(st.sampled_from(STATUSES), st.integers(0, 100)), max_size=200))
def test_no_second_is_lost_or_counted_twice(steps: list[tuple[PhaseStatus, int]]) -> None:
    """Whatever a step goes through, sums and phases together are its life."""
    phases: list[Phase] | None = None
    earlier: Earlier | None = None
    now = 1_000_000.0
    for status, took in steps:
        now += took
        phases = enter(phases, status, now, 1_000_000.0)
        earlier = sum_up(phases, earlier)
        assert len(phases) <= MOST_PHASES
        assert all(a.since <= b.since for a, b in pairwise(phases))
        assert all(a.status != b.status for a, b in pairwise(phases))
    if phases is None:
        return
    if earlier is None:
        assert phases[0].since.timestamp() == 1_000_000.0
        return
    names = ("worked", "waited", "retried", "failed", "lost", "idle")
    total = sum(getattr(earlier, name) for name in names)
    assert total == pytest.approx(phases[0].since.timestamp() - 1_000_000.0)


def test_sums_tell_what_became_of_the_work() -> None:
    """Work counts as done, failed or lost by what ended it, also when it is summed up."""
    at = 0.0
    phases: list[Phase] | None = None
    story: list[tuple[PhaseStatus, float]] = [
        ("waiting", 1),  # after 1 s of work, in an attempt that fails
        ("working", 20),
        ("retrying", 2),  # after 2 s more of it
        ("working", 30),
        ("interrupted", 4),
        ("working", 40),
        ("failed", 8),
        ("working", 50),
        ("done", 16),
        ("working", 60),
    ]
    for status, took in story:
        at += took
        phases = enter(phases, status, at, 0.0)
    for _ in range(6):
        phases = enter(phases, "waiting", at + 100, None)
        phases = enter(phases, "working", at + 200, None)
        at += 200
    assert phases is not None
    assert sum_up(phases, None) == Earlier(
        phases[0].since,
        worked=16.0,
        waited=20.0,
        retried=30.0,
        failed=1.0 + 2.0 + 8.0,
        lost=4.0,
        idle=40.0 + 50.0 + 60.0,
        calls=5,
    )


def test_a_clock_that_was_set_back_makes_no_negative_phase() -> None:
    """Phases never run backwards."""
    phases = enter(None, "waiting", 100.0, 200.0)
    phases = enter(phases, "working", 50.0, None)
    assert [p.since.timestamp() for p in phases] == [100.0, 100.0, 100.0]


# --- notes ----------------------------------------------------------------------------------------


async def test_notes_are_kept_with_the_run() -> None:
    """What an operator wrote down is there for the next one, also after a reset of everything."""
    world = World()
    await world.run(lambda s: s.do("x", world.body((3, broken))))
    at = datetime(2024, 2, 29, tzinfo=UTC)
    async with asteps.edit_run(world.store, "x") as state:
        state.note("recovered x: the quota was raised", by="ann", now=at)
        state.reset("")
    assert (await world.load()).notes == (Note(at, "recovered x: the quota was raised", "ann"),)


def test_notes_are_bounded() -> None:
    """The last hundred are kept, and of each as much as anybody reads."""
    state = State.decode(State("r").encode())
    for n in range(150):
        state.note(f"{n} \ud800" + "x" * 10_000, by="b" * 1_000)
    assert len(state.notes) == 100
    assert [note.text[:10] for note in state.notes[:1]] == ["50 \\ud800x"]
    assert {(len(note.text), len(note.by)) for note in state.notes} == {(4_000, 200)}
    assert State.decode(state.encode()).notes == state.notes


def test_only_a_root_takes_notes() -> None:
    """Notes are about runs."""
    with pytest.raises(UsageError, match="at the root"):
        State("x").note("hello")
