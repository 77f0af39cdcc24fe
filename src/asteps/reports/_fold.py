"""Long lists of steps made short: what went wrong, what goes on and what took long stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ._timeline import Row, RowStatus
from ._words import duration_text

__all__ = ["fold", "hidden_text", "how_many"]

_URGENCY: dict[RowStatus, int] = {
    "failed": 0,
    "interrupted": 1,
    "retrying": 2,
    "proceeding": 3,
    "pending": 4,
    "reopened": 5,
    "done": 6,
    "not begun": 7,
}
_QUIET = ("done", "not begun")
_SLOW = 3  # of a long list, how many that are done are shown
_MEASURES = (20, 12, 8, 5, 3, 2, 1)  # siblings that are shown, while there are too many steps


def fold(children: Sequence[Row], most: int) -> tuple[list[Row], list[Row]]:
    """Which of a step's children are shown, and which are summed up.

    As many as ``most`` are all shown. Of more, those are that failed or have not ended, as many as
    ``most``, and a few of those that are done: that were tried again or cut off, that would save
    most, that took longest. Both lists keep the order.
    """
    if len(children) <= most:
        return list(children), []
    ranked = sorted(
        range(len(children)),
        key=lambda i: (_URGENCY[children[i].status], *_worth(children[i]), i),
    )
    urgent = [i for i in ranked if children[i].status not in _QUIET][:most]
    slow = [i for i in ranked if children[i].status == "done"][: min(_SLOW, most - len(urgent))]
    kept = {*urgent, *slow}
    return (
        [child for place, child in enumerate(children) if place in kept],
        [child for place, child in enumerate(children) if place not in kept],
    )


def _worth(row: Row) -> tuple[bool, float, float]:
    """Sorts those first that are most worth looking at."""
    return (row.attempt == 1 and not row.wasted, -row.saving, -row.span)


def hidden_text(hidden: Sequence[Row]) -> str:
    """What is said of the steps that are not shown: ``187 more done, the longest in 1.20 s``."""
    counts: Counter[RowStatus] = Counter(row.status for row in hidden)
    parts: list[str] = []
    for status in sorted(counts, key=lambda each: _URGENCY[each]):
        text = f"{counts[status]:,} more {status}"
        if status == "done":
            longest = max(row.span for row in hidden if row.status == "done")
            text += f", the longest in {duration_text(longest)}"
        parts.append(text)
    return "; ".join(parts)


def how_many(root: Row, most_rows: int) -> int:
    """How many siblings can be shown, so that about ``most_rows`` steps are shown in all."""
    for most in _MEASURES:
        if _drawn(root, most, most_rows) <= most_rows:
            return most
    return _MEASURES[-1]


def _drawn(root: Row, most: int, enough: int) -> int:
    """How many rows are shown with so many siblings; counts no further than ``enough``."""
    count = 0
    stack = [root]
    while stack and count <= enough:
        row = stack.pop()
        count += 1
        stack.extend(fold(row.children, most)[0])
    return count
