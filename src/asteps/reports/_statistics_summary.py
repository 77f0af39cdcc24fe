"""What statistics over many runs come to: frozen Structs, for people and for programs.

All durations are seconds, all shares lie between 0 and 1 unless they say otherwise.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

__all__ = [
    "Advice",
    "FailureCount",
    "FunctionStatistics",
    "PathStatistics",
    "Spread",
    "StatisticsSummary",
    "Trend",
]


class Spread(msgspec.Struct, frozen=True, rename="camel"):
    """How a duration is spread over many executions.

    A percentile is the least of the values that so many per cent do not exceed (nearest rank), so
    it is one that was measured, unless ``error`` says that it is rounded.

    Attributes:
        count: How many values there are.
        mean: Their mean.
        p50: The median.
        p95: The 95th percentile.
        p99: The 99th percentile.
        max: The greatest value; always exact.
        error: By what share of itself a percentile may be wrong: 0 for exact ones.
    """

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0
    error: float = 0.0


class Trend(msgspec.Struct, frozen=True, rename="camel"):
    """The last quarter of the runs, by their start, against those before.

    Attributes:
        before: Median of the earlier executions.
        recent: Median of the recent ones.
        change: ``recent / before - 1``.
        significant: Whether it is more than chance: the 99 % confidence intervals of the two
            medians, by order statistics, do not overlap.
    """

    before: float
    recent: float
    change: float
    significant: bool


class FailureCount(msgspec.Struct, frozen=True, rename="camel"):
    """How often something failed of the same cause.

    Attributes:
        type: The exception's type, as recorded; or why the engine gave up: ``timeout``,
            ``interrupted``, ``crashed``, ``too large``. Of a step that failed because of those
            below it, their type. ``not recorded`` where another library saved the run.
        count: How often.
        run_id: The one of these runs that began last, if it has an id.
        below: Whether it was a step below that failed of it.
    """

    type: str
    count: int
    run_id: str = ""
    below: bool = False


class PathStatistics(msgspec.Struct, frozen=True, rename="camel"):
    """One path, or one pattern of paths, in all runs of one function.

    Durations are those of runs that have ended; a step that has not ended itself is no part of
    ``work`` and ``waiting``, but of all sums.

    Attributes:
        path: The path, ``""`` for the run as a whole; ``*`` stands for what differs.
        depth: How many steps are above it.
        folded: Whether it stands for several names of one parent, or is below such a one.
        runs: In how many runs it had begun.
        executions: How many steps those were.
        done: How many of them are done.
        failed: How many have failed.
        pending: How many wait, or retry.
        proceeding: How many are under way.
        interrupted: How many had begun and are not worked on.
        reopened: How many were recovered or reopened, and not entered since.
        failures: What is recorded of those that have failed or are to be retried, most often first.
        attempts: How many executions are in their first, second, … attempt: ``(attempt, count)``.
        work: Time at work on one execution, attempts that failed and bodies that were cut off
            included; of a parent, that of its children, too.
        waiting: Time that one execution was pending or backing off.
        slowest: The id of the run with the greatest ``work``.
        time: From start to end, in total.
        share: ``time`` as a share of that of all runs; more than 1 where many ran at once.
        own: In its body, while none of its children was under way; in total.
        waited: Pending or backing off, in total.
        idle: While nobody was to work on it, in total.
        failed_work: Own work of attempts that failed, in total.
        lost_work: Own work of bodies that were cut off, in total.
        wasted_share: Both as a share of ``own``; of ``time``, where there are steps below.
        critical: Own time on the critical path of runs, in total.
        critical_share: As a share of the time of all runs; those of all paths add up to 1.
        critical_runs: In how many runs it was on the critical path.
        saving: By how much a run would have been shorter on average, had its own time been 0.
        trend: Of ``work``; ``None`` where there are too few executions to tell.
    """

    path: str
    depth: int
    folded: bool
    runs: int
    executions: int
    done: int
    failed: int
    pending: int
    proceeding: int
    interrupted: int
    reopened: int
    failures: tuple[FailureCount, ...]
    attempts: tuple[tuple[int, int], ...]
    work: Spread
    waiting: Spread
    slowest: str
    time: float
    share: float
    own: float
    waited: float
    idle: float
    failed_work: float
    lost_work: float
    wasted_share: float
    critical: float
    critical_share: float
    critical_runs: int
    saving: float
    trend: Trend | None

    @property
    def mean_attempts(self) -> float:
        """The mean of the attempts that executions are in; 0 without any."""
        return sum(n * count for n, count in self.attempts) / max(self.executions, 1)

    @property
    def max_attempts(self) -> int:
        """The highest attempt that an execution is in; 0 without any."""
        return max((n for n, _ in self.attempts), default=0)

    @property
    def wasted(self) -> float:
        """Own work that came to nothing: ``failed_work + lost_work``."""
        return self.failed_work + self.lost_work


class Advice(msgspec.Struct, frozen=True, rename="camel"):
    """Something that is worth to be made faster.

    Attributes:
        path: The path, or pattern of paths.
        saving: By how much a run would have been shorter on average, had its own time been 0.
        share: That as a share of the mean run.
        text: The same in words, with what it is that takes the time.
    """

    path: str
    saving: float
    share: float
    text: str


class FunctionStatistics(msgspec.Struct, frozen=True, rename="camel"):
    """All runs of one root function.

    Attributes:
        name: The name of the root.
        runs: How many runs there are.
        done: How many of them are done.
        failed: How many have failed.
        pending: How many wait.
        proceeding: How many are under way.
        interrupted: How many had begun and are not worked on.
        reopened: How many are to be entered again, or were never begun.
        first_at: When the first run began; ``None`` if none did.
        last_at: When the last one began.
        duration: From start to end, of the runs that have ended, done or failed.
        time: The same in total.
        wasted: All work of those runs that came to nothing.
        paths: What is known of each path, in the order of the tree, the root's own first.
        advice: What to optimise first, what would save most coming first.
    """

    name: str
    runs: int
    done: int
    failed: int
    pending: int
    proceeding: int
    interrupted: int
    reopened: int
    first_at: datetime | None
    last_at: datetime | None
    duration: Spread
    time: float
    wasted: float
    paths: tuple[PathStatistics, ...]
    advice: tuple[Advice, ...]

    def path(self, path: str) -> PathStatistics:
        """What is known of this path.

        Raises:
            KeyError: Nothing is.
        """
        for each in self.paths:
            if each.path == path:
                return each
        raise KeyError(path)


class StatisticsSummary(msgspec.Struct, frozen=True, rename="camel"):
    """Statistics over many runs.

    Attributes:
        runs: How many there are.
        functions: Those of one root function each, the one with the most runs coming first.
    """

    runs: int
    functions: tuple[FunctionStatistics, ...]

    def function(self, name: str) -> FunctionStatistics:
        """The runs whose root has this name.

        Raises:
            KeyError: There are none.
        """
        for each in self.functions:
            if each.name == name:
                return each
        raise KeyError(name)
