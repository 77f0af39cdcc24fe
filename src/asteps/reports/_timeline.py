"""What a run's steps did when: a state tree made into the picture that all reports draw.

Pure: a `State` in, a `Timeline` out. Nothing is measured here: each number comes from times that
are recorded in the tree, and says how.

**Clocks lie.** A time that lies before the one that it must follow counts as equal to it: no
duration is negative, and the totals of a step always add up to its span.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Literal, TypeAlias

from .._history import Phase
from .._paths import join
from .._state import END, State, seconds
from ._critical import trace
from ._rows import Kind, Row, RowStatus, Segment, Stretch, Timeline
from ._stretches import tell, tell_plain

__all__ = ["Kind", "Row", "RowStatus", "Segment", "Stretch", "Timeline", "timeline"]

_Above: TypeAlias = Literal["open", "failed", "settled", "after"]
# What became of the steps above: none has ended; one has failed; one has ended well, so the run
# went on whatever this one came to; or the run has ended, and this is part of what runs after it.

_NEVER = float("-inf")
_WAITING = frozenset({"pending", "retrying"})
_UNDER_WAY = frozenset({"proceeding", "interrupted"})


def timeline(
    state: State,
    /,
    *,
    run_id: str = "",
    now: datetime | None = None,
    held: bool = True,
    saved_at: datetime | None = None,
    at_work: bool = False,
) -> Timeline:
    """Make a run's tree into a timeline.

    Args:
        state: The root of the run's tree; it is not changed.
        run_id: The run's id.
        now: Until when what goes on is drawn; the present time by default.
        held: Whether somebody holds the run. If nobody does, what is proceeding in the tree is
            shown as interrupted.
        saved_at: When the run was last saved, if that is known: as long was somebody at work on it.
        at_work: The store's summary says that a driver was at work when it last saved. The tree
            cannot know: a start is saved with what comes next, so all that it shows may wait.
    """
    looked = seconds(now)
    looked = time.time() if looked is None else looked
    drawing = _Drawing(state, looked, held=held, at_work=at_work, saved_at=seconds(saved_at))
    root = drawing.root
    start, until = root.start, root.until
    if start is None:
        start = until = drawing.now
    else:
        trace(root, start, until, until - start)
    return Timeline(
        run_id=run_id,
        name=state.name,
        now=drawing.now,
        held=held,
        start=start,
        end=root.end,
        until=until,
        last=max([until, *(row.until for row in root.children if row.name == END)]),
        status=root.status,
        root=root,
        rows=drawing.rows,
        done=drawing.done,
        total=drawing.total,
        notes=state.notes,
    )


# --- rows -----------------------------------------------------------------------------------------


class _Drawing:
    """Makes the rows of a tree, and knows meanwhile what is true of the whole run."""

    def __init__(
        self, state: State, now: float, *, held: bool, at_work: bool, saved_at: float | None
    ) -> None:
        self.now = now
        self.rows: list[Row] = []
        self.done = self.total = 0
        self._held = held
        self._at_work = at_work
        self._crash = _last_crash(state)
        until = now
        if state._done is None and not (held if at_work else _goes_on(state, held=held)):
            until = max(_last_sign(state), saved_at or _NEVER)
        self.root = self._row(state, "", 0, until, "open")

    def _row(self, node: State, path: str, depth: int, until: float, above: _Above) -> Row:
        """The row of a node, and those below it, drawn until then if it has not ended."""
        row = Row(path, node.name, depth, node)
        self.rows.append(row)
        detail = node.detail
        first = node._started
        if detail is not None and detail.first_at is not None:
            first = detail.first_at
        start, end = seconds(first), seconds(node._done)
        if end is not None:
            until = end
        if start is not None and until < start:
            until = start
        row.until = until
        if node.states:
            self._add_children(row, node.states, above)
        if detail is not None and detail.planned:
            self._add_planned(row, detail.planned, above)
        children = row.children
        if children and (start is None or start >= until):
            start = _first_start(children, start)  # Go does not always say when a parent began
            row.until = until = max(until, until if start is None else start)
        row.start = start
        if end is not None:
            row.end = until
            row.status = "failed" if node.errs else "done"
        else:
            row.status = self._status(row, node, above)
        if start is not None:
            if detail is not None and (detail.phases or detail.earlier):
                cut = self._cut(row, detail.phases)
                tell(row, start, detail.phases or (), detail.earlier, cut)
            else:
                tell_plain(row, start, self._cut(row, None))
        if not children and depth:
            self._count(row.status, above)
        return row

    def _add_children(self, row: Row, nodes: Sequence[State], above: _Above) -> None:
        path, depth, until = row.path, row.depth + 1, row.until
        below, parent = above, row.node
        if parent is not None and parent._done is not None and above in ("open", "failed"):
            below = "failed" if parent.errs else "settled"
        for node in nodes:
            name = node.name
            if name == END and depth == 1:
                goes_on = self._held or node.pending
                late = self.now if goes_on else _last_sign(node)
                row.children.append(self._row(node, END, 1, late, "after"))
            else:
                at = f"{path}/{name}" if path else name
                if "/" in name or "~" in name:
                    at = join(path, name)
                if node.detail is None and not node.states and node._done and node._started:
                    row.children.append(self._plain_row(node, at, depth, below))
                else:
                    row.children.append(self._row(node, at, depth, until, below))

    def _plain_row(self, node: State, path: str, depth: int, above: _Above) -> Row:
        """The same as `_row` of a step that just worked from its start to its end: most do."""
        start, end = seconds(node._started) or 0.0, seconds(node._done) or 0.0
        end = max(start, end)
        took = end - start
        if node.errs:
            part, done, failed = Stretch("failed", start, end), 0.0, took
        else:
            part, done, failed = Stretch("work", start, end), took, 0.0
        status: RowStatus = "failed" if node.errs else "done"
        row = Row(
            path, node.name, depth, node, status, start, end, end, (part,), [], (), 0.0,
            done, 0.0, 0.0, failed, 0.0, 0.0, took, 1,
        )  # fmt: skip
        self.rows.append(row)
        self._count(status, above)
        return row

    def _add_planned(self, row: Row, planned: Sequence[str], above: _Above) -> None:
        begun = {child.name for child in row.children}
        parent = row.node
        is_over = parent is not None and parent._done is not None and not parent.errs
        for name in planned:
            if name not in begun:
                made = Row(join(row.path, name), name, row.depth + 1)
                row.children.append(made)
                self.rows.append(made)
                if not is_over:
                    self._count("not begun", above)

    def _status(self, row: Row, node: State, above: _Above) -> RowStatus:
        """Of a step that has not ended."""
        detail = node.detail
        wakes = detail is not None and detail.wake_at is not None
        if node._started is None and not wakes:
            return "not begun" if row.start is None else "reopened"
        if above in ("failed", "settled"):
            return "interrupted"
        if self._at_work and not row.depth:
            return "proceeding" if self._held else "interrupted"
        if wakes:
            return "retrying" if node.errs else "pending"
        if detail is not None and detail.phases and detail.phases[-1].status == "interrupted":
            return "interrupted"
        below = {child.status for child in row.children}
        if not below.isdisjoint(_WAITING) and below.isdisjoint(_UNDER_WAY):
            return "pending"
        if not self._held or self._is_left_over(row, None if detail is None else detail.phases):
            return "interrupted"
        return "proceeding"

    def _is_left_over(self, row: Row, phases: Sequence[Phase] | None) -> bool:
        """Whether a step began before the last driver died, and was not entered since."""
        if self._crash is None or row.children or row.start is None:
            return False
        if phases:
            return phases[-1].status == "working" and _at(phases[-1]) < self._crash
        return row.start < self._crash

    def _cut(self, row: Row, phases: Sequence[Phase] | None) -> float | None:
        """When the body that was open at last was cut off, if it was."""
        if row.status != "interrupted":
            return None
        if self._crash is not None and self._is_left_over(row, phases):
            return self._crash
        return row.until

    def _count(self, status: RowStatus, above: _Above) -> None:
        """Progress: one more step without children."""
        if above == "after" or (above == "settled" and status == "not begun"):
            return
        self.total += 1
        self.done += status == "done" or above == "settled"


def _at(phase: Phase) -> float:
    return seconds(phase.since) or 0.0


def _goes_on(root: State, *, held: bool) -> bool:
    """Whether somebody works on the run, or it waits for its time."""
    if root.pending:
        return True
    cut_off = root.phases and root.phases[-1].status == "interrupted"
    return held and root.started and not cut_off


def _last_crash(root: State) -> float | None:
    """Until when a driver was at work that died; ``None`` if none did."""
    phases = root.phases
    found = [_at(p) for p in phases[:-1] if p.status == "interrupted"] if phases else None
    return found[-1] if found else None


def _last_sign(state: State) -> float:
    """The latest time that a tree records: then somebody was still at work on it."""
    latest = _NEVER
    for _, node in state.walk():
        latest = max(latest, seconds(node._started) or _NEVER, seconds(node._done) or _NEVER)
        if node.detail is not None and node.detail.phases:
            latest = max(latest, _at(node.detail.phases[-1]))
    return latest


def _first_start(children: Sequence[Row], start: float | None) -> float | None:
    starts = [child.start for child in children if child.start is not None]
    if start is not None:
        starts.append(start)
    return min(starts, default=None)
