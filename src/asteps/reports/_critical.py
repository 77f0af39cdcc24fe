"""What a run's duration is made of: its critical path, and what could be saved.

**The critical path** is found backwards. At the end of a step's span, look for the child that ended
last; what lies between is the step's own time; go on in that child, and then at the time when it
began. So the parts of the path follow one another without a gap from the run's start to its end,
and each moment belongs to one step.

**Savings** answer what-if. All that the tree tells about why a step began when it did is what had
ended by then. So a step is taken to begin a fixed pause after the last of those of its siblings
that had ended when it began, and a parent to end a fixed pause after the last of its children;
siblings that overlap know nothing of one another. A step's saving is by how much sooner the run
would have ended in this model, had the step's own time been 0.

- Exact for steps that follow one another and for groups and maps without a limit, nested in any
  way, whatever the parents do before, between and after their children.
- A lower bound for a group or map with ``limit=``, whose next child begins when any of those before
  it ends: there, shortening a step that is not critical may help too.
- A lower bound for a plan with ``after=``, and for branches that run concurrently under one parent
  without a group, if each step follows the one before it at once. Where a branch makes a pause of
  its own, and another branch's step happens to end in it, the saving of that one may be too high,
  by at most such pauses.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from .._state import END
from ._rows import Row

__all__ = ["trace"]


def trace(row: Row, start: float, end: float, counts: float) -> None:
    """Find the critical path within a step, and what its parts would save.

    Args:
        row: The step; it is on the path from ``start`` to ``end``.
        start: When it began, seen from its parent.
        end: When it ended.
        counts: How much of what is saved here the whole run would be shorter by, at most.
    """
    spans: list[tuple[float, float, Row]] = []
    in_order, last = True, start
    for child in row.children:
        if child.start is not None and (row.depth or child.name != END):
            begun, ended = child.start, child.until
            if not start <= begun <= ended <= end:  # the clock was set back
                begun = min(max(begun, start), end)
                ended = min(max(ended, begun), end)
            spans.append((begun, ended, child))
            in_order = in_order and begun >= last
            last = ended
    if in_order:
        _trace_sequence(row, spans, start, end, counts)
        return
    spans.sort(key=lambda span: span[0])
    limits, own = _limits([span[:2] for span in spans], start, end)
    row.saving = min(own, counts)
    path: list[tuple[float, float]] = []
    cursor = end
    last_first = [(-ended, begun) for begun, ended, _ in spans]
    for place in sorted(range(len(spans)), key=last_first.__getitem__):
        begun, ended, child = spans[place]
        if begun < ended <= cursor:
            if ended < cursor:
                path.append((ended, cursor))
            trace(child, begun, ended, min(counts, limits[place]))
            cursor = begun
    if cursor > start:
        path.append((start, cursor))
    row.critical = tuple(reversed(path))


def _trace_sequence(
    row: Row, spans: list[tuple[float, float, Row]], start: float, end: float, counts: float
) -> None:
    """The same for steps that followed one another: all are on the path."""
    path: list[tuple[float, float]] = []
    own, cursor = 0.0, start
    for begun, ended, child in spans:
        if begun > cursor:
            path.append((cursor, begun))
            own += begun - cursor
        if ended > begun:
            if child.children:
                trace(child, begun, ended, counts)
            else:
                child.critical = ((begun, ended),)
                child.saving = min(ended - begun, counts)
        cursor = ended
    if end > cursor:
        path.append((cursor, end))
        own += end - cursor
    row.critical = tuple(path)
    row.saving = min(own, counts)


def _limits(
    spans: Sequence[tuple[float, float]], start: float, end: float
) -> tuple[list[float], float]:
    """What shortening the children of a step is good for, by the model of this module's docstring.

    The moments at which children end are stations in a row; a child leads from the last station
    that it came after to its own, and takes its pause and its span for that; going on to the next
    station takes nothing. The step's span is the longest way. A child can make it shorter, at
    most, by what the longest way that avoids it is shorter: that way crosses the child's first
    station, be it with another child or by going on.

    Args:
        spans: Start and end of each child, by their starts, within those of the step.
        start: When the step began.
        end: When it ended.

    Returns:
        For each child by how much the step would be shorter at most, however short the child gets;
        and by how much it would be shorter without pauses.
    """
    count = len(spans)
    by_end = sorted(range(count), key=[span[1] for span in spans].__getitem__)
    station = [0] * count  # where a child arrives, from 1; the step begins at 0
    for rank, place in enumerate(by_end):
        station[place] = rank + 1
    arrivals = [start, *(spans[place][1] for place in by_end)]
    departs: list[int] = []
    passed = 0
    for place, (begun, _) in enumerate(spans):
        # Of children that took no time at all, the later one comes after the earlier one.
        while passed < count and by_end[passed] < place and arrivals[passed + 1] <= begun:
            passed += 1
        departs.append(passed)

    # The longest way from each station to the end.
    onward = [0.0] * count + [end - arrivals[count]]
    place = count - 1
    for here in range(count - 1, -1, -1):
        longest = onward[here + 1]
        while place >= 0 and departs[place] == here:
            took = spans[place][1] - arrivals[here]
            longest = max(longest, took + onward[station[place]])
            place -= 1
        onward[here] = longest
    limits = _avoiding(spans, departs, station, arrivals, onward)
    return limits, (end - start) - _without_pauses(spans, departs, by_end)


def _avoiding(
    spans: Sequence[tuple[float, float]],
    departs: Sequence[int],
    station: Sequence[int],
    arrivals: Sequence[float],
    onward: Sequence[float],
) -> list[float]:
    """By how much the longest way is longer than the longest one that avoids a child."""
    start, longest = arrivals[0], onward[0]
    limits = [0.0] * len(spans)
    crossing: list[
        tuple[float, int]
    ] = []  # those under way by the length of the way, longest first
    place = 0
    while place < len(spans):
        here = departs[place]
        while place < len(spans) and departs[place] == here:
            way = spans[place][1] - start + onward[station[place]]
            heappush(crossing, (-way, place))
            place += 1
        _drop_arrived(crossing, station, here)
        best = crossing[0]
        if departs[best[1]] == here:  # the others' ways are not longer than this one
            heappop(crossing)
            _drop_arrived(crossing, station, here)
            other = arrivals[here] - start + onward[here + 1]
            if crossing:
                other = max(other, -crossing[0][0])
            limits[best[1]] = max(longest - other, 0.0)
            heappush(crossing, best)
    return limits


def _drop_arrived(crossing: list[tuple[float, int]], station: Sequence[int], here: int) -> None:
    while crossing and station[crossing[0][1]] <= here:
        heappop(crossing)


def _without_pauses(
    spans: Sequence[tuple[float, float]], departs: Sequence[int], by_end: Sequence[int]
) -> float:
    """How long a step would take if all that it did were its children."""
    ends = [0.0] * len(spans)
    latest = 0.0
    passed = 0
    for place, (begun, ended) in enumerate(spans):
        while passed < departs[place]:
            latest = max(latest, ends[by_end[passed]])
            passed += 1
        ends[place] = latest + ended - begun
    return max(ends)
