"""By how much a run would have been shorter, had several of its steps taken no time together.

`Row.saving` says so of one step. What the items of a map save together is neither the sum of what
each of them saves (two that take turns share what there is to save) nor the most (of two that take
equally long side by side, neither saves anything by itself). So the run is put together again, by
the model that `asteps.reports.timeline` describes.
"""

from __future__ import annotations

from collections.abc import Sequence

from .._state import END
from ._timeline import Row, Timeline

__all__ = ["saving_together"]


def saving_together(drawn: Timeline, rows: Sequence[Row]) -> float:
    """By how much the run would have been shorter, had the own time of these rows been 0.

    Args:
        drawn: The run.
        rows: Some of its rows.
    """
    if len(rows) == 1:
        return rows[0].saving
    if not any(row.critical for row in rows):
        return 0.0  # what the run waited for takes as long as before
    chosen = set(map(id, rows))
    return max(drawn.span - _span(drawn.root, drawn.start, drawn.until, chosen), 0.0)


def _span(row: Row, start: float, end: float, chosen: set[int]) -> float:
    """How long a step would have taken."""
    free = id(row) in chosen
    spans: list[tuple[float, float, Row]] = []
    for child in row.children:
        if child.start is not None and (row.depth or child.name != END):
            begun = min(max(child.start, start), end)
            spans.append((begun, min(max(child.until, begun), end), child))
    if not spans:
        return 0.0 if free else end - start
    spans.sort(key=lambda span: span[0])
    by_end = sorted(range(len(spans)), key=lambda i: spans[i][1])
    ends = [0.0] * len(spans)  # counted from the start
    passed, arrived, latest = 0, start, 0.0
    for place, (begun, ended, child) in enumerate(spans):
        while passed < len(spans) and by_end[passed] < place and spans[by_end[passed]][1] <= begun:
            arrived = spans[by_end[passed]][1]
            latest = max(latest, ends[by_end[passed]])
            passed += 1
        pause = 0.0 if free else begun - arrived
        took = _span(child, begun, ended, chosen) if child.children or id(child) in chosen else -1.0
        ends[place] = latest + pause + (ended - begun if took < 0 else took)
    tail = 0.0 if free else end - spans[by_end[-1]][1]
    return max(ends) + tail
