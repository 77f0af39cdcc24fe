"""What to optimise first, in words."""

from __future__ import annotations

from collections.abc import Sequence

from ._statistics_summary import Advice, PathStatistics, Spread
from ._words import duration_text, plain, share_text

__all__ = ["advise"]

_MOST = 10
_LEAST = 0.01  # of the mean run; what saves less is not worth a line


def advise(paths: Sequence[PathStatistics], duration: Spread) -> tuple[Advice, ...]:
    """The paths without which a run would have been shorter, the greatest saving first.

    Args:
        paths: All paths of the function.
        duration: Of its runs.
    """
    worth = [each for each in paths if each.saving > _LEAST * duration.mean]
    worth.sort(key=lambda each: (-each.saving, each.path))
    return tuple(
        Advice(each.path, each.saving, each.saving / duration.mean, _say(each, duration))
        for each in worth[:_MOST]
    )


def _say(path: PathStatistics, duration: Spread) -> str:
    name = f"`{plain(path.path)}`" if path.path else "The run itself"
    own = "(its own time, without that of the steps below it) is " if _is_parent(path) else "is "
    where = share_text(path.critical_runs, duration.count)
    runs = "1 run" if duration.count == 1 else f"{duration.count:,} runs"
    text = (
        f"{name} {own}on the critical path in {where} of {runs}; taken out, it would shorten a "
        f"run by {duration_text(path.saving)} of {duration_text(duration.mean)} on average"
    )
    return "; ".join([text, *_causes(path)])


def _is_parent(path: PathStatistics) -> bool:
    return path.time - path.own - path.waited - path.idle > 1e-3 * path.time


def _causes(path: PathStatistics) -> list[str]:
    """What else there is to know for somebody who wants it to be faster."""
    found: list[str] = []
    spent = path.own + path.waited + path.idle
    if path.waited > 0.5 * spent:
        found.append(f"{share_text(path.waited, spent)} of its time is waiting")
    if path.idle > 0.2 * spent:
        found.append(f"nobody was at work on it for {share_text(path.idle, spent)} of its time")
    if path.wasted_share > 0.1:
        found.append(f"{share_text(path.wasted_share, 1)} of its work came to nothing")
    if path.work.p50 and path.work.p95 > 5 * path.work.p50:
        often, seldom = duration_text(path.work.p50), duration_text(path.work.p95)
        found.append(f"one in twenty works {seldom} or longer, the median {often}")
    trend = path.trend
    if trend is not None and trend.significant and trend.change > 0.1:
        found.append(f"it has become slower by {share_text(trend.change, 1)}")
    return found
