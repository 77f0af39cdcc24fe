"""The critical path and the savings are right: on random programs, against a simulator.

A *program* says what a run does and how long each part of it takes. The simulator schedules it as
an event loop would; the tree that the run would have recorded goes to `timeline`, and what that
says is compared with what the simulator comes to when a step takes less time.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field
from typing import TypeAlias

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asteps
from asteps import State, Step
from asteps._paths import join
from asteps._state import RunRecord, moment
from asteps.reports import Row, Timeline, timeline
from asteps.testing import MockClock

START = 1_700_000_000.0
EFFORT = settings(max_examples=200, deadline=None)

# --- programs, and what they come to ------------------------------------------------------------


@dataclass(frozen=True)
class Leaf:
    """A step without children."""

    takes: int


@dataclass(frozen=True)
class Sequence:
    """Children one after another; the parent's own pauses before each, and after the last."""

    children: tuple[Program, ...]
    pauses: tuple[int, ...]


@dataclass(frozen=True)
class Crowd:
    """Concurrent children, at most ``limit`` at a time, between two pauses of the parent's own."""

    children: tuple[Program, ...]
    before: int
    after: int
    limit: int | None = None


@dataclass(frozen=True)
class Branches:
    """Concurrent branches under one parent without a group: in each one step follows another."""

    branches: tuple[tuple[Program, ...], ...]


Program: TypeAlias = Leaf | Sequence | Crowd | Branches


@dataclass
class Simulator:
    """Schedules a program.

    Attributes:
        shorter: By how much a step's own time is shorter: seconds by path; all of it if ``None``.
    """

    shorter: dict[str, int | None] = field(default_factory=dict)

    def run(self, program: Program) -> State:
        """The tree that a run of the program leaves behind."""
        root, _ = self._step(program, "", "root", 0)
        root.run = RunRecord(1)
        return root

    def duration(self, program: Program) -> float:
        """How long the run takes, in seconds."""
        root = self.run(program)
        assert root.started_at is not None
        assert root.done_at is not None
        return (root.done_at - root.started_at).total_seconds()

    def _own(self, path: str, takes: int) -> int:
        less = self.shorter.get(path, 0)
        return 0 if less is None else takes - less

    def _step(self, program: Program, path: str, name: str, now: int) -> tuple[State, int]:
        children: list[State] = []
        end = now
        match program:
            case Leaf(takes):
                end += self._own(path, takes)
            case Sequence(steps, pauses):
                for index, step in enumerate(steps):
                    end += self._own(path, pauses[index])
                    child, end = self._child(step, path, index, end)
                    children.append(child)
                end += self._own(path, pauses[-1])
            case Crowd(steps, before, after, limit):
                begin = now + self._own(path, before)
                free = [begin] * (limit or len(steps))
                end = begin
                for index, step in enumerate(steps):
                    child, done = self._child(step, path, index, heapq.heappop(free))
                    heapq.heappush(free, done)
                    children.append(child)
                    end = max(end, done)
                end += self._own(path, after)
            case Branches(branches):
                for number, branch in enumerate(branches):
                    done = now
                    for index, step in enumerate(branch):
                        child, done = self._child(step, path, 1000 * number + index, done)
                        children.append(child)
                    end = max(end, done)
                children.sort(key=lambda child: child.started_at or moment(0))
        return _node(name, now, end, children), end

    def _child(self, program: Program, path: str, index: int, now: int) -> tuple[State, int]:
        name = f"{index:04d}"
        return self._step(program, join(path, name), name, now)


def _node(name: str, start: float, end: float, children: list[State]) -> State:
    return State(
        name,
        _started=moment(START + start),
        _done=moment(START + end),
        states=children or None,
    )


SECONDS = st.integers(0, 9)


def sequences(children: st.SearchStrategy[Program]) -> st.SearchStrategy[Program]:
    """Sequences of one to five steps."""
    return st.lists(children, min_size=1, max_size=5).flatmap(
        lambda steps: st.builds(
            Sequence,
            st.just(tuple(steps)),
            st.tuples(*[SECONDS] * (len(steps) + 1)),
        )
    )


def crowds(
    children: st.SearchStrategy[Program], limit: st.SearchStrategy[int | None]
) -> st.SearchStrategy[Program]:
    """Groups of one to six steps."""
    several = st.lists(children, min_size=1, max_size=6).map(tuple)
    return st.builds(Crowd, several, SECONDS, SECONDS, limit)


leaves: st.SearchStrategy[Program] = st.builds(Leaf, SECONDS)
series_parallel = st.recursive(
    leaves, lambda inner: st.one_of(sequences(inner), crowds(inner, st.none())), max_leaves=15
)
sequential = st.recursive(leaves, sequences, max_leaves=15)
branched = st.recursive(
    leaves,
    lambda inner: st.builds(
        Branches,
        st.lists(st.lists(inner, min_size=1, max_size=4).map(tuple), min_size=1, max_size=4).map(
            tuple
        ),
    ),
    max_leaves=15,
)
limited = st.recursive(
    leaves,
    lambda inner: st.one_of(sequences(inner), crowds(inner, st.integers(1, 3))),
    max_leaves=15,
)
anything = st.one_of(series_parallel, branched, limited)


def drawn(program: Program) -> Timeline:
    """The timeline of a run of the program."""
    return timeline(Simulator().run(program), now=moment(START + 10_000))


def shortened(program: Program, path: str, by: int | None = None) -> float:
    """By how much the run is shorter when a step's own time is (0, by default)."""
    return Simulator().duration(program) - Simulator({path: by}).duration(program)


def is_leaf(row: Row) -> bool:
    """Whether a step has no children."""
    return not row.children


# --- the path -----------------------------------------------------------------------------------


@given(anything)
@EFFORT
def test_the_path_has_no_gaps(program: Program) -> None:
    """The critical path leads from the run's start to its end, each moment given to one step."""
    found = drawn(program)
    cursor = found.start
    for part in found.critical_path():
        assert part.start == cursor
        assert part.end > part.start
        cursor = part.end
    assert cursor == found.until == found.end
    assert sum(row.critical_time for row in found.rows) == found.span


@given(anything)
@EFFORT
def test_the_path_lies_within_its_steps(program: Program) -> None:
    """A part of the path lies within its step's span and outside of those of its children there."""
    for row in drawn(program).rows:
        for start, end in row.critical:
            assert row.start is not None
            assert row.start <= start <= end <= row.until


@given(series_parallel)
@EFFORT
def test_what_is_not_critical_saves_nothing(program: Program) -> None:
    """Shortening a step that is not on the critical path does not shorten the run."""
    for row in drawn(program).rows:
        if not row.critical:
            assert row.saving == 0
            assert shortened(program, row.path) == 0


# --- the savings --------------------------------------------------------------------------------


@given(series_parallel)
@EFFORT
def test_savings_are_exact(program: Program) -> None:
    """For steps in sequence and in groups, nested: without a step's own time, that much sooner."""
    for row in drawn(program).rows:
        assert row.saving == shortened(program, row.path)


@given(sequential)
@EFFORT
def test_in_a_sequence_all_can_be_saved(program: Program) -> None:
    """Where one step follows another, a step saves its own time, and all together the run's."""
    found = drawn(program)
    assert all(row.saving == row.own == row.critical_time for row in found.rows)
    assert sum(row.saving for row in found.rows) == found.span


@given(series_parallel)
@EFFORT
def test_slack(program: Program) -> None:
    """Shortened by its saving the first step shortens the run by that; by less, by that less."""
    best = next(iter(row for row in drawn(program).savings() if is_leaf(row)), None)
    if best is not None:
        for by in range(int(best.saving) + 1):
            assert shortened(program, best.path, by) == by


@given(st.one_of(limited, branched))
@EFFORT
def test_savings_are_lower_bounds(program: Program) -> None:
    """With a limit, and in branches without a group, a saving is never more than is true."""
    for row in drawn(program).rows:
        assert 0 <= row.saving <= shortened(program, row.path)


@given(anything)
@EFFORT
def test_savings_are_sorted(program: Program) -> None:
    """What saves most is named first; no step saves more than it took, or than the run."""
    found = drawn(program)
    savings = [row.saving for row in found.savings()]
    assert savings == sorted(savings, reverse=True)
    assert all(0 < row.saving <= min(row.span, found.span) for row in found.savings())


# --- real runs ----------------------------------------------------------------------------------

inner = st.one_of(leaves, sequences(leaves))
groups = st.builds(
    Crowd,
    st.lists(inner, min_size=1, max_size=5).map(tuple),
    st.just(0),  # a group begins with its first child: what comes before is its parent's own
    st.just(0),
    st.one_of(st.none(), st.integers(1, 3)),
)
flows = sequences(st.one_of(inner, groups))


async def perform(s: Step, program: Program, clock: MockClock) -> None:
    """Do what the program says."""
    if isinstance(program, Leaf):
        await clock.sleep(program.takes)
    elif isinstance(program, Sequence):
        for index, step in enumerate(program.children):
            await clock.sleep(program.pauses[index])
            name = f"{index:04d}"
            if isinstance(step, Crowd):
                async with s.group(name, limit=step.limit) as g:
                    for place, child in enumerate(step.children):
                        g.do(f"{place:04d}", perform, child, clock)
            else:
                await s.do(name, perform, step, clock)
        await clock.sleep(program.pauses[-1])


@given(flows)
@settings(max_examples=100, deadline=None)
def test_real_runs(program: Program) -> None:
    """What a real run records is what the simulator comes to, so all of this holds for it too."""
    clock, state = MockClock(START), State("root")

    async def main() -> None:
        await asteps.run(perform, program, clock, state=state, clock=clock, name="root")

    anyio.run(main)
    recorded = timeline(state, now=moment(clock.now()))
    assert [summary_of(row) for row in recorded.rows] == [
        summary_of(row) for row in drawn(program).rows
    ]


def summary_of(row: Row) -> tuple[str, float, float | None, float, float]:
    """What is compared of a row; which of two equally long branches is critical is open."""
    return (row.path, row.start or 0.0, row.end, row.own, row.saving)


# --- known answers ------------------------------------------------------------------------------


def test_two_branches() -> None:
    """The longer of two steps of a group saves what it is longer by; the other one nothing."""
    program = Sequence((Leaf(2), Crowd((Leaf(7), Leaf(4)), 0, 0), Leaf(1)), (0, 0, 0, 0))
    found = drawn(program)
    assert {row.path: row.saving for row in found.rows} == {
        "": 0,
        "0000": 2,
        "0001": 0,
        "0001/0000": 3,
        "0001/0001": 0,
        "0002": 1,
    }
    assert [
        (part.row.path, part.start - START, part.end - START) for part in found.critical_path()
    ] == [
        ("0000", 0, 2),
        ("0001/0000", 2, 9),
        ("0002", 9, 10),
    ]


def test_equal_branches() -> None:
    """Of two equally long branches one is drawn as critical, and neither saves a thing."""
    found = drawn(Crowd((Leaf(5), Leaf(5)), 1, 0))
    assert [row.saving for row in found.rows] == [1, 0, 0]
    assert [row.critical_time for row in found.rows] == [1, 5, 0]


def test_a_limit_hides_some_savings() -> None:
    """With a limit a step that is not critical may save something; the bound 0 says less."""
    program = Crowd((Leaf(5), Leaf(4), Leaf(2), Leaf(5)), 0, 0, limit=2)
    second = drawn(program).rows[2]
    assert (second.critical, second.saving) == ((), 0)
    assert shortened(program, second.path) == 3


@pytest.mark.parametrize("limit", [None, 1, 8, 100])
def test_ten_thousand_steps(limit: int | None) -> None:
    """A run of 10,000 steps is drawn in well under a second, whatever its shape."""
    program = Crowd(tuple(Leaf(1 + i * 7919 % 97) for i in range(10_000)), 0, 0, limit)
    state = Simulator().run(program)
    began = time.perf_counter()
    found = timeline(state, now=moment(START))
    assert time.perf_counter() - began < 1
    assert sum(row.critical_time for row in found.rows) == found.span
