"""Statistics over many runs: what takes the time, what fails, and what to optimise first.

Pure and incremental: runs are added one at a time and forgotten; what is kept grows with the number
of paths, and by some 20 bytes for each run in which a path occurs. The order in which runs are
added makes no difference but for rounding (and see *savings* below).

**Runs that have not ended** count, with the status of each of their steps, their attempts and
failures. Their durations do not: they would be those of another day. Runs that have failed do count
as they are, so what fails early makes the mean run shorter; add the done ones alone if that is not
wanted. A run that the Go library saved has no end that could be relied on, unless it failed.

**Paths are folded** where names come from data, else a map of a thousand items would be a thousand
paths. The items of a map are ``*``. Of other steps the tree does not say whether their names are of
the code, so these names have to: those of one parent that differ only in numbers or ids (``db-1``
and ``db-2``, see `pattern_of`) become one path, ``db-*``, as soon as two of them were under way at
the same time, or there are more than `MOST_ALIKE`. If more than `MOST_NAMES` different names are
left under one parent, all become ``*``. Once it is folded in one run, a path is folded in all runs
of that function. Never folded are the tasks of a plan, and steps without a name (``#0``).

**Savings** are those of `Row.saving`; of all steps that a pattern stands for, they are what those
save together, as if the run were put together again without them. Only for runs that were added
before their paths were folded, the savings of their items are added up.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TypeAlias, Unpack

from .._paths import escape
from .._state import State, moment
from ._look import Look
from ._rows import STATUSES
from ._statistics_advice import advise
from ._statistics_names import ANY, pattern_of
from ._statistics_samples import Samples, rank
from ._statistics_summary import (
    FailureCount,
    FunctionStatistics,
    PathStatistics,
    StatisticsSummary,
    Trend,
)
from ._statistics_whatif import saving_together
from ._timeline import Row, RowStatus, Timeline, timeline

__all__ = ["MOST_ALIKE", "MOST_NAMES", "Statistics"]

MOST_ALIKE = 8
MOST_NAMES = 100
_MOST_KNOWN = 10_000  # names that are remembered for a faster look-up
_MOST_ROWS = 65_536  # after which samples are made compact
_NO_TYPE = "not recorded"

_Cause: TypeAlias = tuple[str, bool]  # the type of a failure, and whether it was one below


class Statistics:
    """Statistics over runs, which are added one by one.

    ::

        stats = Statistics()
        for id, state in runs:
            stats.add(state, run_id=id)
        print(statistics_text(stats.summary()))

    Added in 0.1.
    """

    def __init__(self) -> None:
        self._functions: dict[str, _Function] = {}

    def add(self, state: State, /, **look: Unpack[Look]) -> None:
        """Add a run.

        Args:
            state: The root of its tree; it is neither changed nor kept.
            **look: As for `timeline`; by its ``run_id`` the summary names examples.
        """
        self.add_timeline(timeline(state, **look))

    def add_timeline(self, drawn: Timeline, /) -> None:
        """Add a run of which there is a timeline already."""
        function = self._functions.get(drawn.name)
        if function is None:
            function = self._functions[drawn.name] = _Function()
        function.add(drawn)

    def merge(self, other: Statistics, /) -> None:
        """Add all runs of another; it stays as it is."""
        for name, theirs in other._functions.items():
            mine = self._functions.get(name)
            if mine is None:
                mine = self._functions[name] = _Function()
            mine.absorb(theirs)

    def summary(self) -> StatisticsSummary:
        """What the runs say so far; more can be added."""
        functions = [function.summary(name) for name, function in self._functions.items()]
        functions.sort(key=lambda each: (-each.runs, each.name))
        return StatisticsSummary(sum(each.runs for each in functions), tuple(functions))


# --- one path -------------------------------------------------------------------------------------


class _Path:
    """What is known of one path or pattern, and of those below it.

    Attributes:
        many: It may stand for several steps of one run.
        runs: Numbers of the runs in which it occurs, in order.
        critical_runs: Numbers of the runs on whose critical path it is.
        offset: When it began, counted from the run's start; in total.
        work: Of executions that have ended, in runs that have ended.
        waits: The same, but those that are 0 are left out.
        slowest: The greatest work, and the run that it is of.
        known: Those below by the names that were asked for.
        below: Those below by name or pattern.
        alike: Names that have a pattern and are not folded, by pattern.
        patterns: Those that are folded.
        kept: Names that are never folded.
        twins: Some names of the same pattern are not folded.
        whole: All names are folded, whatever they are.
    """

    __slots__ = (
        *("alike", "attempts", "below", "critical", "critical_runs", "executions", "failed_work"),
        *("failures", "first_attempts", "idle", "kept", "known", "lost_work", "many", "offset"),
        *("own", "patterns", "runs", "saving", "slowest", "statuses", "time", "twins", "waited"),
        *("waits", "whole", "work"),
    )

    def __init__(self, *, many: bool = False) -> None:
        self.many = many
        self.runs = array("I")
        self.critical_runs = array("I")
        self.executions = self.first_attempts = 0
        self.statuses: dict[RowStatus, int] = dict.fromkeys(STATUSES, 0)
        self.attempts: dict[int, int] = {}
        self.failures: dict[_Cause, tuple[int, float, str]] = {}  # count; start and id of the last
        self.work = Samples()
        self.waits = Samples()
        self.slowest: tuple[float, str] = (-1.0, "")
        self.offset = self.time = self.own = self.waited = self.idle = 0.0
        self.failed_work = self.lost_work = self.critical = self.saving = 0.0
        self.known: dict[str, _Path] = {}
        self.below: dict[str, _Path] = {}
        self.alike: dict[str, list[str]] = {}
        self.patterns: set[str] = set()
        self.kept: set[str] = set()
        self.twins = self.whole = False

    # -- those below --

    def below_of(self, row: Row) -> list[_Path]:
        """The paths of a row's children, folded if they show that they must be."""
        node = row.node
        if node is not None and (own := node.detail) is not None:
            if own.planned:
                self._keep(own.planned)
            if own.items and not self.whole:
                self._fold_all()
        known = self.known
        try:
            found = [known[child.name] for child in row.children]
        except KeyError:
            for child in row.children:
                self._child(child.name)
            found = [self._child(child.name) for child in row.children]  # as some fold others
        if self.twins and len(found) > 1:
            self._fold_concurrent(row.children)
            found = [self._child(child.name) for child in row.children]
        return found

    def _child(self, name: str) -> _Path:
        found = self.known.get(name)
        if found is None:
            segment = self._segment(name)
            found = self.below.get(segment)
            if found is None:
                many = self.many or segment in self.patterns or (self.whole and segment == ANY)
                found = self.below[segment] = _Path(many=many)
            if len(self.known) >= _MOST_KNOWN:
                self.known.clear()
            self.known[name] = found
        return found

    def _segment(self, name: str) -> str:
        """The name or pattern under which a child is kept."""
        if name in self.kept or name[:1] in "#$":
            return name
        if self.whole:
            return ANY
        if name in self.patterns:  # another's, that is merged into this one
            return name
        pattern = pattern_of(name)
        if pattern is not None:
            if pattern in self.patterns:
                return pattern
            names = self.alike.setdefault(pattern, [])
            if name not in names:
                names.append(name)
                if len(names) > MOST_ALIKE:
                    self._fold(pattern)
                    return pattern
                self.twins = self.twins or len(names) > 1
        if name not in self.below and len(self.below) >= MOST_NAMES:
            self._fold_all()
            return ANY
        return name

    def _keep(self, names: Sequence[str]) -> None:
        """These names are of the code, whatever they look like."""
        if not self.kept.issuperset(names):
            self.kept.update(names)
            self.known.clear()

    def _fold_concurrent(self, rows: Sequence[Row]) -> None:
        """Fold names of one pattern, two of which were under way at the same time."""
        until: dict[str, float] = {}
        for row in rows:  # in the order in which they began
            name = row.name
            if row.start is None or name in self.kept or name[:1] in "#$":
                continue
            pattern = pattern_of(name)
            if pattern is not None and pattern in self.alike:
                if row.start < until.get(pattern, row.start):
                    self._fold(pattern)
                else:
                    until[pattern] = row.until

    def _fold(self, pattern: str) -> None:
        """From now on, the names of this pattern are one path."""
        self.patterns.add(pattern)
        self._gather(pattern, self.alike.pop(pattern, ()))
        self.twins = any(len(names) > 1 for names in self.alike.values())

    def _fold_all(self) -> None:
        self.whole = True
        self.alike.clear()
        self.patterns.clear()
        self.twins = False
        fixed = {name for name in self.below if name in self.kept or name[:1] in "#$"}
        self._gather(ANY, [name for name in self.below if name not in fixed])

    def _gather(self, segment: str, names: Sequence[str]) -> None:
        """Make one path of several."""
        gone = [self.below.pop(name) for name in (segment, *names) if name in self.below]
        made = self.below[segment] = _Path(many=True)
        for each in gone:
            made.absorb(each, 0)
        self.known.clear()

    # -- merging --

    def absorb(self, other: _Path, offset: int) -> None:
        """Take over what another knows, whose runs have numbers that much lower."""
        self.runs = _union(self.runs, other.runs, offset)
        self.critical_runs = _union(self.critical_runs, other.critical_runs, offset)
        for name in (
            *("executions", "first_attempts", "offset", "time", "own", "waited", "idle"),
            *("failed_work", "lost_work", "critical", "saving"),
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for status, count in other.statuses.items():
            self.statuses[status] += count
        for attempt, count in other.attempts.items():
            self.attempts[attempt] = self.attempts.get(attempt, 0) + count
        for cause, (count, start, id) in other.failures.items():
            self.add_failure(cause, count, start, id)
        self.work.absorb(other.work, offset)
        self.waits.absorb(other.waits, offset)
        self.slowest = max(self.slowest, other.slowest)
        self._absorb_below(other, offset)

    def _absorb_below(self, other: _Path, offset: int) -> None:
        self._keep(list(other.kept))
        if other.whole and not self.whole:
            self._fold_all()
        if not self.whole:
            for pattern in other.patterns - self.patterns:
                self._fold(pattern)
        for segment, theirs in other.below.items():
            self._child(segment).absorb(theirs, offset)

    def add_failure(self, cause: _Cause, count: int, start: float, id: str) -> None:
        """So many executions have failed of this; the run of the last began then."""
        had, last, run_id = self.failures.get(cause, (0, start, id))
        self.failures[cause] = (had + count, *max((last, run_id), (start, id)))


def _union(mine: array[int], theirs: array[int], offset: int) -> array[int]:
    if offset:
        theirs = array("I", [run + offset for run in theirs])
    if not mine or (theirs and theirs[0] > mine[-1]):
        return mine + theirs
    return array("I", sorted({*mine, *theirs}))


# --- the runs of one function ---------------------------------------------------------------------


class _Function:
    """The runs of one root function; each has a number."""

    def __init__(self) -> None:
        self._root = _Path()
        self._starts = array("d")
        self._first: float | None = None
        self._last: float | None = None
        self._total = 0.0  # of the runs that have ended
        self._spans = Samples()
        self._not_begun = 0
        self._rows = 0  # since samples were made compact
        self._drawn: Timeline  # the run that is being added
        self._shared: dict[_Path, list[Row]] = {}  # its rows that are looked at together

    def add(self, drawn: Timeline) -> None:
        """Add a run."""
        number = len(self._starts)
        self._starts.append(drawn.start)
        if drawn.root.start is None:
            self._not_begun += 1
        else:
            self._first = min(drawn.start, self._first or drawn.start)
            self._last = max(drawn.start, self._last or drawn.start)
        ended = drawn.end is not None
        if ended:
            self._total += drawn.span
            self._spans.values.append(drawn.span)
            self._spans.owners.append(number)
        self._drawn = drawn
        self._take(self._root, drawn.root, number, ended=ended)
        if self._shared:
            for path, rows in self._shared.items():
                path.saving += saving_together(drawn, rows)
            self._shared.clear()
        del self._drawn
        self._rows += len(drawn.rows)
        if self._rows > _MOST_ROWS:
            self._rows = 0
            self._compact(self._root)

    def _take(self, path: _Path, row: Row, number: int, *, ended: bool) -> None:
        """Add a step and those below it."""
        start, node = row.start, row.node
        if start is not None and node is not None:
            status = row.status
            path.statuses[status] += 1
            path.executions += 1
            if not path.runs or path.runs[-1] != number:
                path.runs.append(number)
            path.offset += start - self._drawn.start
            detail = node.detail
            if detail is None or detail.attempt == 1:
                path.first_attempts += 1
            else:
                path.attempts[detail.attempt] = path.attempts.get(detail.attempt, 0) + 1
            if node.errs:
                path.add_failure(_cause_of(node), 1, self._drawn.start, self._drawn.run_id)
            if ended:
                self._measure(path, row, row.until - start, number)
        if row.children:
            for below, child in zip(path.below_of(row), row.children, strict=True):
                self._take(below, child, number, ended=ended)

    def _measure(self, path: _Path, row: Row, span: float, number: int) -> None:
        """Add the durations of a step, in a run that has ended."""
        path.time += span
        path.own += row.own
        work = row.worked
        parts = row.stretches
        if len(parts) != 1 or parts[0].kind != "work":  # most are just one piece of work
            work += row.failed_work + row.lost_work
            path.failed_work += row.failed_work
            path.lost_work += row.lost_work
            path.idle += row.idle
            if waited := row.waited + row.backed_off:
                path.waited += waited
                if row.end is not None:
                    path.waits.values.append(waited)
                    path.waits.owners.append(number)
        if row.end is not None:
            path.work.values.append(work)
            path.work.owners.append(number)
            if work >= path.slowest[0]:
                path.slowest = max(path.slowest, (work, self._drawn.run_id))
        if row.critical:
            for since, until in row.critical:
                path.critical += until - since
            if not path.critical_runs or path.critical_runs[-1] != number:
                path.critical_runs.append(number)
        if not path.many:
            path.saving += row.saving
        elif path in self._shared:
            self._shared[path].append(row)
        else:
            self._shared[path] = [row]

    def _compact(self, path: _Path) -> None:
        path.work.compact()
        path.waits.compact()
        for below in path.below.values():
            self._compact(below)

    def absorb(self, other: _Function) -> None:
        """Add all runs of another."""
        offset = len(self._starts)
        self._starts.extend(other._starts)
        for start in (other._first, other._last):
            if start is not None:
                self._first = min(start, self._first or start)
                self._last = max(start, self._last or start)
        self._total += other._total
        self._not_begun += other._not_begun
        self._spans.absorb(other._spans, offset)
        self._root.absorb(other._root, offset)

    # -- what it comes to --

    def summary(self, name: str) -> FunctionStatistics:
        """What the runs say so far."""
        counts = self._root.statuses
        owners = self._spans.owners
        starts = sorted([self._starts[run] for run in owners])
        since = starts[rank(0.75, len(starts))] if starts else 0.0
        duration = self._spans.spread()
        paths: list[PathStatistics] = []
        self._sum_up(self._root, "", 0, since, paths)
        return FunctionStatistics(
            name=name,
            runs=len(self._starts),
            done=counts["done"],
            failed=counts["failed"],
            pending=counts["pending"] + counts["retrying"],
            proceeding=counts["proceeding"],
            interrupted=counts["interrupted"],
            reopened=counts["reopened"] + self._not_begun,
            first_at=None if self._first is None else moment(self._first),
            last_at=None if self._last is None else moment(self._last),
            duration=duration,
            time=self._total,
            wasted=sum(each.failed_work + each.lost_work for each in paths),
            paths=tuple(paths),
            advice=advise(paths, duration),
        )

    def _sum_up(
        self, path: _Path, at: str, depth: int, since: float, found: list[PathStatistics]
    ) -> None:
        """What is known of a path, and then of those below it."""
        if path.executions:
            found.append(self._path_statistics(path, at, depth, since))
        order = [
            (round(below.offset / max(below.executions, 1), 6), segment, below)
            for segment, below in path.below.items()
        ]
        for _, segment, below in sorted(order, key=lambda each: each[:2]):
            name = escape(segment)
            self._sum_up(below, f"{at}/{name}" if at else name, depth + 1, since, found)

    def _path_statistics(self, path: _Path, at: str, depth: int, since: float) -> PathStatistics:
        counts, total = path.statuses, self._total or 1.0
        work = path.work.spread()
        trend: Trend | None = path.work.trend(self._starts, since)
        attempts = dict(path.attempts)
        if path.first_attempts:
            attempts[1] = path.first_attempts
        failures = [
            FailureCount(type, count, id, below=below)
            for (type, below), (count, _, id) in path.failures.items()
        ]
        return PathStatistics(
            path=at,
            depth=depth,
            folded=path.many,
            runs=len(path.runs),
            executions=path.executions,
            done=counts["done"],
            failed=counts["failed"],
            pending=counts["pending"] + counts["retrying"],
            proceeding=counts["proceeding"],
            interrupted=counts["interrupted"],
            reopened=counts["reopened"],
            failures=tuple(sorted(failures, key=_by_count)),
            attempts=tuple(sorted(attempts.items())),
            work=work,
            waiting=path.waits.spread(zeros=work.count - len(path.waits)),
            slowest=path.slowest[1],
            time=path.time,
            share=path.time / total,
            own=path.own,
            waited=path.waited,
            idle=path.idle,
            failed_work=path.failed_work,
            lost_work=path.lost_work,
            wasted_share=(path.failed_work + path.lost_work)
            / ((path.time if path.below else path.own) or 1.0),
            critical=path.critical,
            critical_share=path.critical / total,
            critical_runs=len(path.critical_runs),
            saving=path.saving / max(len(self._spans), 1),
            trend=trend,
        )


def _by_count(failure: FailureCount) -> tuple[int, str, bool]:
    return -failure.count, failure.type, failure.below


def _cause_of(node: State) -> _Cause:
    """What made a step fail; of one that failed because of those below it, what made them."""
    below = False
    while (failure := node.failure) is not None:
        found = node.child(failure.causes[0]) if failure.causes else None
        if found is None or found.failure is None:
            if failure.kind != "raised":
                return failure.kind, below
            return failure.types[0] if failure.types else _NO_TYPE, below
        node, below = found, True
    return _NO_TYPE, below
