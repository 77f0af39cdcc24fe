"""What a step went through: phases of work, waits and ends, in the order of time.

Pure. A plain step, one attempt without a wait, has no phases: it worked from its start to its end.
The others keep the last `MOST_PHASES`; what came before is summed up, so that a node stays small
however often its step is called again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, TypeAlias

import msgspec

__all__ = ["MOST_PHASES", "Earlier", "Phase", "PhaseStatus", "enter", "sum_up"]

PhaseStatus: TypeAlias = Literal["working", "waiting", "retrying", "interrupted", "failed", "done"]

MOST_PHASES = 20
_FOLDED = 10  # how many are summed up when there are more
_QUICK = 0.1  # a call that takes at most this share of the waits around it is part of them


class Phase(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One stretch of a step's life; it lasts until the next one, the last one until the end.

    A *working* phase that *retrying* or *failed* follows was the work of an attempt that failed;
    one that *interrupted* follows was cut off, and its work lost.

    Attributes:
        status: ``working``: a call of the body. ``waiting``: it had said pending. ``retrying``: the
            attempt had failed, another was due later. ``interrupted``: nobody was at work on it.
            ``failed``: it had failed, until somebody recovered it. ``done``: until it was reopened.
            Of a root these are passes: it works while one runs, and waits between two.
        since: When it began. Where a process died: when it last saved, which is a lower bound.
        calls: Of a wait: how many quick calls of the body, such as a poll's checks, it contains.
        worked: How many seconds those took.
    """

    status: PhaseStatus
    since: datetime
    calls: int = 0
    worked: float = 0.0


class Earlier(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The phases that are not kept any more, summed up; durations in seconds.

    Attributes:
        until: When the phases that are kept begin.
        worked: In calls of the body that came to something.
        waited: Pending, without the calls in between.
        retried: Between a failed attempt and the next.
        failed: In attempts that failed.
        lost: In calls that were cut off.
        idle: While nobody was to work on it: interrupted, failed, or done.
        calls: Calls of the body.
    """

    until: datetime
    worked: float = 0.0
    waited: float = 0.0
    retried: float = 0.0
    failed: float = 0.0
    lost: float = 0.0
    idle: float = 0.0
    calls: int = 0


def enter(
    phases: list[Phase] | None, status: PhaseStatus, since: float, began: float | None
) -> list[Phase]:
    """A step enters a phase.

    Args:
        phases: Its phases so far; changed in place. ``None`` for a step that only worked.
        status: Of the new phase.
        since: When it begins, in seconds since the epoch.
        began: When the step began, where it has no phases yet.
    """
    at = datetime.fromtimestamp(since, UTC)
    if not phases:
        start = at if began is None else min(at, datetime.fromtimestamp(began, UTC))
        phases = [Phase("working", start)]
    last = phases[-1]
    at = max(at, last.since)  # the clock was set back, or a dead process saved less than it began
    if status == last.status:
        return phases
    if status == "waiting" and len(phases) > 1 and (wait := phases[-2]).status == "waiting":
        took = (at - last.since).total_seconds()
        usual = (last.since - wait.since).total_seconds() / (wait.calls + 1)
        if took <= _QUICK * usual:
            worked = round(wait.worked + took, 6)
            phases[-2:] = [Phase("waiting", wait.since, wait.calls + 1, worked)]
            return phases
    phases.append(Phase(status, at))
    return phases


def sum_up(phases: list[Phase], earlier: Earlier | None) -> Earlier | None:
    """Take the oldest phases away, if there are too many, and add them to what was earlier."""
    if len(phases) <= MOST_PHASES:
        return earlier
    sums = dict.fromkeys(("worked", "waited", "retried", "failed", "lost", "idle"), 0.0)
    calls = 0
    ends = _ends_of_work(phases)
    for place, phase in enumerate(phases[:_FOLDED]):
        took = (phases[place + 1].since - phase.since).total_seconds()
        if phase.status == "working":
            sums[ends[place]] += took
            calls += 1
        elif phase.status == "waiting":
            sums["waited"] += max(took - phase.worked, 0)
            sums["worked"] += phase.worked
            calls += phase.calls
        else:
            sums["retried" if phase.status == "retrying" else "idle"] += took
    del phases[:_FOLDED]
    if earlier is not None:
        calls += earlier.calls
        for name in sums:
            sums[name] += getattr(earlier, name)
    rounded = {name: round(value, 6) for name, value in sums.items()}
    return Earlier(phases[0].since, calls=calls, **rounded)


def _ends_of_work(phases: list[Phase]) -> list[str]:
    """What became of each phase's work: under which sum of `Earlier` it is counted."""
    ends: list[str] = []
    attempt, cut_off = "worked", False
    for phase in reversed(phases):
        if phase.status == "working":
            ends.append("lost" if cut_off else attempt)
        else:
            ends.append("")
        if phase.status in ("retrying", "failed"):
            attempt = "failed"
        elif phase.status == "done":
            attempt = "worked"
        cut_off = phase.status == "interrupted"
    return ends[::-1]
