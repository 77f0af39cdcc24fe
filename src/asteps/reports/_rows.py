"""The picture of a run that all reports draw: its steps, and what each of them went through.

All times are float seconds since the epoch. `timeline` makes it from a state tree.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import msgspec

from .._state import Note, State

__all__ = ["STATUSES", "Kind", "Row", "RowStatus", "Segment", "Stretch", "Timeline"]

RowStatus: TypeAlias = Literal[
    "done", "failed", "pending", "retrying", "proceeding", "interrupted", "reopened", "not begun"
]
STATUSES: tuple[RowStatus, ...] = get_args(RowStatus)
Kind: TypeAlias = Literal["work", "failed", "lost", "wait", "backoff", "idle", "folded"]


class Stretch(msgspec.Struct, frozen=True, gc=False):
    """One stretch of a step's life.

    Attributes:
        kind: ``work``: its body was open, and came to something or still is. ``failed``: it was
            open in an attempt that failed. ``lost``: it was open, and cut off. ``wait``: pending.
            ``backoff``: between a failed attempt and the next. ``idle``: nobody was to work on it
            (interrupted, failed until somebody recovered it, done until it was reopened).
            ``folded``: the phases that the tree has summed up, see `asteps.Earlier`.
        start: When it began.
        end: When it ended; the timeline's ``until`` for what goes on.
        calls: Of a wait: how many quick calls of the body it contains, such as a poll's checks.
        worked: How many seconds those took.
    """

    kind: Kind
    start: float
    end: float
    calls: int = 0
    worked: float = 0.0


class Row(msgspec.Struct, gc=False):
    """One step. Durations are seconds.

    ``worked + waited + backed_off + failed_work + lost_work + idle`` is ``span``, so what a parent
    has ``worked`` includes the time of its children; ``own`` does not.

    Attributes:
        path: The step's path, ``""`` for the root.
        name: Its name.
        depth: How many steps are above it.
        node: Its node in the tree; ``None`` for one that is planned and not begun.
        status: As in the rest of asteps; and ``reopened``: it had begun or ended before, and was
            recovered or reopened, but not entered since. What had begun is ``interrupted`` when
            nobody is at work on it, also because its parent has ended without it.
        start: When it first began; ``None`` if it did not.
        end: When it ended; ``None`` while it has not.
        until: ``end``, or how far it is drawn: the end of its parent, the timeline's ``until``.
        stretches: What it went through, in order and without gaps.
        children: Its steps, in the order in which they first began, then those only planned.
        critical: Parts of the run's critical path that are this step's own, as (start, end).
        saving: By how much sooner the run would have ended, had its own time been 0. Exact where
            steps follow one another and in groups without a limit; else a lower bound. Of a run
            that goes on: how much further it would be.
        worked: In calls of its body that came to something, or go on.
        waited: Pending, without the calls in between.
        backed_off: Between failed attempts and the next ones.
        failed_work: In attempts that failed; without the time of its children, which is not lost.
        lost_work: In calls that were cut off; without the time of its children.
        idle: While nobody was to work on it.
        own: In its body, while none of its children was under way.
        calls: Calls of the body that began, as far as the tree tells.
    """

    path: str
    name: str
    depth: int
    node: State | None = None
    status: RowStatus = "not begun"
    start: float | None = None
    end: float | None = None
    until: float = 0.0
    stretches: tuple[Stretch, ...] = ()
    children: list[Row] = []
    critical: tuple[tuple[float, float], ...] = ()
    saving: float = 0.0
    worked: float = 0.0
    waited: float = 0.0
    backed_off: float = 0.0
    failed_work: float = 0.0
    lost_work: float = 0.0
    idle: float = 0.0
    own: float = 0.0
    calls: int = 0

    @property
    def span(self) -> float:
        """From its first start to its end, or as far as it is drawn."""
        return 0.0 if self.start is None else self.until - self.start

    @property
    def critical_time(self) -> float:
        """How much of the run's critical path is this step's own."""
        return sum(end - start for start, end in self.critical)

    @property
    def wasted(self) -> float:
        """Its own work that came to nothing: ``failed_work + lost_work``."""
        return self.failed_work + self.lost_work

    @property
    def attempt(self) -> int:
        """Its current attempt, from 1."""
        return 1 if self.node is None else self.node.attempt


class Segment(msgspec.Struct, frozen=True, gc=False):
    """A part of the critical path: from ``start`` to ``end`` the run waited for ``row``'s own."""

    row: Row
    start: float
    end: float


class Timeline(msgspec.Struct, gc=False):
    """A run, ready to be drawn.

    Attributes:
        run_id: Its id, if it has one.
        name: Its root's name.
        now: The time at which it is looked at.
        held: Whether somebody holds it.
        start: When it began; ``now`` if it did not.
        end: When it ended; ``None`` while it has not.
        until: How far it is drawn: its end; ``now`` while it works or waits; where nobody is at
            work on it, the last time that the tree records (or that it was last saved).
        last: The latest time that any row is drawn to: what runs after the run's end is later.
        status: Of the run.
        root: Its row.
        rows: All rows in tree order, parents first.
        done: How many steps without children have ended, of all that are known or planned; a
            failed one counts if the run went on without it. What runs after the end does not count.
        total: How many there are.
        notes: What operators did to the run.
    """

    run_id: str
    name: str
    now: float
    held: bool
    start: float
    end: float | None
    until: float
    last: float
    status: RowStatus
    root: Row
    rows: list[Row]
    done: int
    total: int
    notes: tuple[Note, ...]

    @property
    def span(self) -> float:
        """From its start as far as it is drawn; the critical path is as long."""
        return self.until - self.start

    @property
    def wasted(self) -> float:
        """All work that came to nothing: attempts that failed, and bodies that were cut off."""
        return sum(row.failed_work + row.lost_work for row in self.rows)

    def critical_path(self) -> list[Segment]:
        """The critical path in the order of time, without gaps from ``start`` to ``until``."""
        parts = [Segment(row, *part) for row in self.rows for part in row.critical]
        parts.sort(key=lambda part: (part.start, part.end))
        return parts

    def savings(self) -> list[Row]:
        """The rows whose time can be saved, those that would save most first."""
        found = [row for row in self.rows if row.saving > 0]
        found.sort(key=lambda row: -row.saving)
        return found
