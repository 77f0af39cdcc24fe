"""Statistics as text: for a terminal, or to be sent to a colleague."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from ._statistics_summary import FunctionStatistics, PathStatistics, StatisticsSummary
from ._words import columns, cut, duration_text, instant_text, pad, plain, share_text

__all__ = ["counts_text", "duration_words", "statistics_text", "trend_text", "wasted_text"]

_MOST_FAILURES = 8
_LEAST_WIDTH = 40
_LEAST_PATH = 16  # columns for a path, before others have to give way

_UNIT = re.compile(r"(\d) (?=(?:ms|s|min|h|d|%)(?!\w))")

_Column: TypeAlias = tuple[str, int, Callable[[FunctionStatistics, PathStatistics], str]]
# A head; how soon it gives way where there is little room, the highest first; and what it says.


def statistics_text(summary: StatisticsSummary, /, *, width: int = 120) -> str:
    """Statistics as text.

    For each function: how its runs ended and how long they took, what to optimise first, a table
    of its paths, and what made steps fail. Columns that have no room are left out.

    Args:
        summary: What `Statistics.summary` gave.
        width: How many columns a line may take, at least 40.
    """
    width = max(width, _LEAST_WIDTH)
    if not summary.functions:
        return "No runs.\n"
    parts = ["\n".join(_function(each, width)) for each in summary.functions]
    return "\n\n\n".join(parts) + "\n"


def _function(of: FunctionStatistics, width: int) -> Iterator[str]:
    yield cut(f"{plain(of.name)}: {counts_text(of)}", width)
    yield from _wrap(duration_words(of), width)
    if of.advice:
        yield ""
        yield "What to optimise first"
        for place, each in enumerate(of.advice, 1):
            lines = _wrap(each.text, width - 4)
            yield f"{place:2}. {lines[0]}"
            yield from (f"    {line}" for line in lines[1:])
    yield ""
    yield from _table(of, width)
    if failures := _failures(of):
        yield ""
        yield "Failures"
        yield from (cut(line, width) for line in failures)


def _wrap(text: str, width: int) -> list[str]:
    """Lines of a paragraph; a number and its unit stay together."""
    lines = textwrap.wrap(_UNIT.sub("\\1\xa0", text), width)
    return [cut(line.replace("\xa0", " "), width) for line in lines]


def counts_text(of: FunctionStatistics) -> str:
    """How many runs there are, and what they came to."""
    counts = (
        *((of.done, "done"), (of.failed, "failed"), (of.pending, "pending")),
        *((of.proceeding, "proceeding"), (of.interrupted, "interrupted")),
        (of.reopened, "not begun again"),
    )
    said = ", ".join(f"{count:,} {word}" for count, word in counts if count)
    return f"{of.runs:,} run{'' if of.runs == 1 else 's'}: {said}"


def duration_words(of: FunctionStatistics) -> str:
    """When the runs began, how long they took, and how much of it was for nothing."""
    text = ""
    if of.first_at is not None and of.last_at is not None:
        text = f"Begun from {instant_text(of.first_at)} to {instant_text(of.last_at)}. "
    took = of.duration
    if not took.count:
        return f"{text}None has ended, so there are no durations."
    text += (
        f"Those that ended took {duration_text(took.mean)} on average; half of them at most "
        f"{duration_text(took.p50)}, 95 % {duration_text(took.p95)}, 99 % "
        f"{duration_text(took.p99)}, the longest {duration_text(took.max)}."
    )
    if of.wasted:
        text += f" {duration_text(of.wasted)} of work came to nothing."
    if took.error or any(path.work.error for path in of.paths):
        text += " Percentiles of very many values are rounded by 0.5 %."
    return text


# --- the table ------------------------------------------------------------------------------------


def wasted_text(path: PathStatistics) -> str:
    """What share of a path's work came to nothing, if it is worth a word."""
    return share_text(path.wasted_share, 1) if path.wasted_share >= 0.005 else ""


def trend_text(path: PathStatistics) -> str:
    """By how much it has changed lately, if that is more than chance."""
    trend = path.trend
    if trend is None:
        return ""
    return f"{trend.change * 100:+.0f} %" if trend.significant else "="


def _waited(path: PathStatistics) -> str:
    return duration_text(path.waiting.p95) if path.waiting.max else ""


_COLUMNS: tuple[_Column, ...] = (
    ("runs", 6, lambda _, p: f"{p.runs:,}"),
    ("steps", 7, lambda _, p: f"{p.executions:,}" if p.executions != p.runs else ""),
    ("failed", 2, lambda _, p: f"{p.failed:,}" if p.failed else ""),
    ("attempts", 8, lambda _, p: f"{p.mean_attempts:.2f}" if p.max_attempts > 1 else ""),
    ("work p50", 0, lambda _, p: duration_text(p.work.p50) if p.work.count else ""),
    ("p95", 1, lambda _, p: duration_text(p.work.p95) if p.work.count else ""),
    ("p99", 10, lambda _, p: duration_text(p.work.p99) if p.work.count else ""),
    ("max", 9, lambda _, p: duration_text(p.work.max) if p.work.count else ""),
    ("wait p95", 4, lambda _, p: _waited(p)),
    ("critical", 3, lambda _, p: share_text(p.critical_share, 1) if p.critical else ""),
    ("wasted", 5, lambda _, p: wasted_text(p)),
    ("trend", 5, lambda _, p: trend_text(p)),
)


def _table(of: FunctionStatistics, width: int) -> Iterator[str]:
    names = [plain(path.path) or "(run)" for path in of.paths]
    table: list[tuple[int, list[str]]] = []
    for head, prior, say in _COLUMNS:
        cells = [say(of, path) for path in of.paths]
        if any(cells):
            table.append((prior, [head, *cells]))
    widths = [max(map(columns, cells)) + 2 for _, cells in table]
    room = min(max(map(columns, ["path", *names])), max(_LEAST_PATH, width // 3))
    while table and room + sum(widths) > width:
        last = max(range(len(table)), key=lambda i: table[i][0])
        del table[last], widths[last]
    room = min(max(map(columns, ["path", *names])), width - sum(widths))
    for place, name in enumerate(["path", *names]):
        cells = [cells[place] for _, cells in table]
        line = pad(cut(name, room), room)
        yield (line + _cells(cells, widths)).rstrip()


def _cells(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(pad(cell, width, "right") for cell, width in zip(cells, widths, strict=True))


def _failures(of: FunctionStatistics) -> list[str]:
    found = [
        (failure.count, path.path, failure)
        for path in of.paths
        for failure in path.failures
        if not failure.below
    ]
    found.sort(key=lambda each: (-each[0], each[1]))
    lines = [
        f"  {count:,} x {plain(failure.type)} at {plain(path) or 'the run itself'}"
        + (f", last in {plain(failure.run_id)}" if failure.run_id else "")
        for count, path, failure in found[:_MOST_FAILURES]
    ]
    if len(found) > _MOST_FAILURES:
        lines.append(f"  and {len(found) - _MOST_FAILURES:,} more")
    return lines
