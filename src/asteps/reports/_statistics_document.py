"""Statistics for programs: JSON, and CSV for spreadsheets."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from ._statistics_summary import FunctionStatistics, PathStatistics, StatisticsSummary
from ._words import plain

__all__ = ["statistics_csv", "statistics_json"]

_ODD = re.compile("[^ -~\n]")  # what is not printable is in strings, where it can be escaped


def statistics_json(summary: StatisticsSummary, /) -> str:
    """Statistics as JSON: the fields of `StatisticsSummary` in camel case, durations in seconds.

    It decodes into a `StatisticsSummary` again. What is not printable is escaped.
    """
    text = msgspec.json.format(msgspec.json.encode(summary), indent=1).decode()
    return _ODD.sub(_escaped, text) + "\n"


def _escaped(found: re.Match[str]) -> str:
    char = found[0]
    if char.isprintable():
        return char
    pair = char.encode("utf-16-be")
    return "".join(f"\\u{pair[i : i + 2].hex()}" for i in range(0, len(pair), 2))


# --- CSV ------------------------------------------------------------------------------------------

_COLUMNS = (
    *("function", "path", "depth", "folded", "runs", "executions", "done", "failed", "pending"),
    *("proceeding", "interrupted", "reopened", "failures", "attempts_mean", "attempts_max"),
    *("work_count", "work_mean", "work_p50", "work_p95", "work_p99", "work_max", "waiting_mean"),
    *("waiting_p50", "waiting_p95", "waiting_p99", "waiting_max", "percentile_error", "slowest"),
    *("time", "share", "own", "waited", "idle", "failed_work", "lost_work", "wasted_share"),
    *("critical", "critical_share", "critical_runs", "saving", "trend_before", "trend_recent"),
    *("trend_change", "trend_significant"),
)
_FORMULA = re.compile(r"\s*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]")
_QUOTED = re.compile('[",\r\n]')


def statistics_csv(summary: StatisticsSummary, /) -> str:
    """Statistics as a table: a row for each path of each function (RFC 4180, CRLF, a header).

    Durations are seconds. Text that a spreadsheet would take for a formula has a ``'`` before it;
    what is not printable is escaped.
    """
    rows: list[Iterable[object]] = [_COLUMNS]
    for function in summary.functions:
        rows.extend(_row(function, path) for path in function.paths)
    return "".join(",".join(map(_cell, row)) + "\r\n" for row in rows)


def _row(function: FunctionStatistics, path: PathStatistics) -> Iterable[object]:
    work, waiting, trend = path.work, path.waiting, path.trend
    failures = "; ".join(f"{each.type} {each.count}" for each in path.failures)
    return (
        *(function.name, path.path, path.depth, path.folded, path.runs, path.executions, path.done),
        *(path.failed, path.pending, path.proceeding, path.interrupted, path.reopened, failures),
        *(path.mean_attempts, path.max_attempts),
        *(work.count, work.mean, work.p50, work.p95, work.p99, work.max),
        *(waiting.mean, waiting.p50, waiting.p95, waiting.p99, waiting.max),
        *(max(work.error, waiting.error), path.slowest, path.time, path.share, path.own),
        *(path.waited, path.idle, path.failed_work, path.lost_work, path.wasted_share),
        *(path.critical, path.critical_share, path.critical_runs, path.saving),
        *(() if trend is None else (trend.before, trend.recent, trend.change, trend.significant)),
        *(("",) * 4 if trend is None else ()),
    )


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    text = plain(str(value))
    if isinstance(value, str) and _FORMULA.match(value):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text
