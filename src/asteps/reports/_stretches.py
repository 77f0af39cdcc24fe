"""What a step went through: its stretches and its totals, from the phases in the tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from .._history import Earlier, Phase
from ._rows import Kind, Row, Stretch

__all__ = ["tell", "tell_plain"]

_Cover: TypeAlias = list[tuple[float, float]]  # disjoint spans, in order

_KINDS: dict[str, Kind] = {"waiting": "wait", "retrying": "backoff"}


def tell_plain(row: Row, start: float, cut: float | None) -> None:
    """A step that worked from its start to its end, or until it was cut off."""
    stop = row.until if cut is None else min(max(cut, start), row.until)
    kind: Kind = "work"
    if row.status == "failed":
        kind = "failed"
    elif cut is not None:
        kind = "lost"
    elif (
        row.status in ("pending", "retrying") and not row.children
    ):  # no phases are kept in an older tree
        kind = "wait" if row.status == "pending" else "backoff"
    row.stretches = (Stretch(kind, start, stop),)
    row.calls = 1
    _add(row, kind, start, stop, 0.0, _cover(row.children) if row.children else ())
    if stop < row.until:
        row.stretches += (Stretch("idle", stop, row.until),)
        row.idle += row.until - stop


def tell(
    row: Row, start: float, phases: Sequence[Phase], earlier: Earlier | None, cut: float | None
) -> None:
    """A step of several phases."""
    cover = _cover(row.children)
    stretches: list[Stretch] = []
    if earlier is not None:
        until = min(max(earlier.until.timestamp(), start), row.until) if phases else row.until
        stretches.append(Stretch("folded", start, until, earlier.calls))
        _add_earlier(row, earlier, until - start, _uncovered(start, until, cover))
        start = until
    times = [start]  # nothing came before the first
    for phase in phases[1:]:
        times.append(min(max(phase.since.timestamp(), times[-1]), row.until))
    times.append(row.until)
    kinds = _kinds(row, phases, is_cut=cut is not None)
    for place, phase in enumerate(phases):
        begin, end = times[place], times[place + 1]
        kind = kinds[place]
        if cut is not None and kind == "lost" and place == len(phases) - 1:
            end = min(max(cut, begin), end)
        if end > begin:
            stretches.append(Stretch(kind, begin, end, phase.calls, phase.worked))
        _add(row, kind, begin, end, phase.worked, cover)
        row.calls += phase.calls + (phase.status == "working")
        if end < times[place + 1]:
            stretches.append(Stretch("idle", end, row.until))
            row.idle += row.until - end
    row.stretches = tuple(stretches)


def _kinds(row: Row, phases: Sequence[Phase], *, is_cut: bool) -> list[Kind]:
    """What each phase was, in the light of what followed it."""
    kinds: list[Kind] = []
    attempt: Kind = "failed" if row.status == "failed" else "work"
    cut_off = is_cut
    for phase in reversed(phases):
        status = phase.status
        if status == "working":
            kinds.append("lost" if cut_off else attempt)
        else:
            kinds.append(_KINDS.get(status, "idle"))
        if status in ("retrying", "failed"):
            attempt = "failed"
        elif status == "done":
            attempt = "work"
        cut_off = status == "interrupted"
    return kinds[::-1]


def _add(
    row: Row,
    kind: Kind,
    start: float,
    end: float,
    worked: float,
    cover: Sequence[tuple[float, float]],
) -> None:
    """Add a stretch to the totals of its step."""
    span = end - start
    if kind == "wait":
        worked = min(worked, span)
        row.waited += span - worked
        row.worked += worked
        row.own += min(worked, _uncovered(start, end, cover)) if worked and cover else worked
    elif kind == "backoff":
        row.backed_off += span
    elif kind == "idle":
        row.idle += span
    else:
        own = _uncovered(start, end, cover) if cover else span
        row.own += own
        if kind == "failed":
            row.failed_work += own
            row.worked += span - own
        elif kind == "lost":
            row.lost_work += own
            row.worked += span - own
        else:
            row.worked += span


def _add_earlier(row: Row, earlier: Earlier, span: float, own: float) -> None:
    """Add what the tree has summed up; what a clock that went back made too much is left out."""
    row.waited = min(earlier.waited, span)
    row.backed_off = min(earlier.retried, span - row.waited)
    row.idle = min(earlier.idle, span - row.waited - row.backed_off)
    left = span - row.waited - row.backed_off - row.idle  # in calls of its body
    own = min(own, left)
    row.own = own
    row.failed_work = min(earlier.failed, own)
    row.lost_work = min(earlier.lost, own - row.failed_work)
    row.worked = left - row.failed_work - row.lost_work
    row.calls = earlier.calls


def _cover(children: Sequence[Row]) -> _Cover:
    """When at least one of the children was under way."""
    spans = [(c.start, c.until) for c in children if c.start is not None and c.until > c.start]
    spans.sort()
    cover: _Cover = []
    for start, end in spans:
        if cover and start <= cover[-1][1]:
            if end > cover[-1][1]:
                cover[-1] = (cover[-1][0], end)
        else:
            cover.append((start, end))
    return cover


def _uncovered(start: float, end: float, cover: Sequence[tuple[float, float]]) -> float:
    """How much of a span lies outside of the others."""
    free = end - start
    for begin, stop in cover:
        if begin < end and stop > start:
            free -= min(stop, end) - max(begin, start)
    return free
