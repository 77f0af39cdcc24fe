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
    deepest = max(row.depth for row in rows)
    return max(_saved(drawn.root, drawn.start, drawn.until, chosen, deepest), 0.0)


def _saved(row: Row, start: float, end: float, chosen: set[int], deepest: int) -> float:
    """By how much shorter a step would have been; none of those chosen is deeper than that."""
    free = id(row) in chosen
    look = row.depth < deepest
    spans: list[tuple[float, float, float]] = []  # start, end, and how long it would have taken
    own, saved, last, in_order = end - start, 0.0, start, True
    for child in row.children:
        if child.start is not None and (row.depth or child.name != END):
            begun, ended = child.start, child.until
            if not start <= begun <= ended <= end:  # the clock was set back
                begun = min(max(begun, start), end)
                ended = min(max(ended, begun), end)
            less = 0.0
            if look:
                if child.children:
                    less = _saved(child, begun, ended, chosen, deepest)
                elif id(child) in chosen:
                    less = ended - begun
            spans.append((begun, ended, ended - begun - less))
            own -= ended - begun
            saved += less
            in_order = in_order and begun >= last
            last = ended
    if not free and not saved:
        return 0.0
    if in_order:
        return saved + own if free else saved
    return end - start - _span(spans, start, end, pauses=not free)


def _span(
    spans: list[tuple[float, float, float]], start: float, end: float, *, pauses: bool
) -> float:
    """How long a step would have taken, had its children taken that long."""
    spans.sort(key=lambda span: span[0])
    by_end = sorted(range(len(spans)), key=[span[1] for span in spans].__getitem__)
    ends = [0.0] * len(spans)  # counted from the start
    passed, arrived, latest = 0, start, 0.0
    for place, (begun, _, took) in enumerate(spans):
        while passed < len(spans) and by_end[passed] < place and spans[by_end[passed]][1] <= begun:
            arrived = spans[by_end[passed]][1]
            latest = max(latest, ends[by_end[passed]])
            passed += 1
        ends[place] = latest + took + (begun - arrived if pauses else 0.0)
    return max(ends) + (end - spans[by_end[-1]][1] if pauses else 0.0)
