"""Steps as records: plain values, from which a web page draws the step's line and its details.

Those that are on show are drawn in `_lines`, as HTML. The others, in a run of very many steps, go
into the page as JSON, from which its script makes the same lines when somebody asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import NotRequired, TypeAlias, TypedDict

import msgspec

from .._state import ABSENT, Payload, State, seconds
from ..errors import Failure
from ._rows import STATUSES, Kind, Row, RowStatus
from ._words import lines_of, plain

__all__ = ["KINDS", "More", "Part", "Problem", "Record", "Recorder"]

KINDS: tuple[Kind, ...] = ("work", "failed", "lost", "wait", "backoff", "idle", "folded")

MOST_PAYLOAD = 20_000  # characters of an info, a result or a traceback
MOST_PAYLOADS = 900_000  # characters of all of them
MOST_CAUSES = 50
_ONE_LINE = 60  # bytes of JSON that are not broken into lines

Part: TypeAlias = tuple[float, float]


class Problem(TypedDict):
    """An error, ready to be shown; causes as (index, name)."""

    message: str
    type: NotRequired[str]
    kind: NotRequired[str]
    trace: NotRequired[str]
    causes: NotRequired[list[tuple[int, str]]]


class More(TypedDict, total=False):
    """What is to know about a step beside its times."""

    stops: int
    due: float
    why: str
    error: Problem
    info: str
    result: str


class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A step as plain values; times are seconds since the run's start.

    Attributes:
        index: Its place in the timeline.
        depth: How many steps are above it.
        name: Its name, fit to be shown.
        status: Its place in `STATUSES`.
        start: When it began, if it did.
        until: How far it is drawn.
        ended: 1 if it has ended.
        stretches: (place in `KINDS`, start, end, calls, worked) each; none if it just worked.
        critical: Parts on the critical path; 1 stands for all of it.
        saving: As the row's.
        numbers: Own time, worked, waited, backed off, failed work, lost work, idle, and calls;
            none if it just worked.
        attempt: As the row's.
        more: What else is to know.
        kids: Those of the steps below it, where they are not on show either.
    """

    index: int
    depth: int
    name: str
    status: int
    start: float | None
    until: float
    ended: int
    stretches: list[tuple[int, float, float, int, float]] | None
    critical: list[Part] | int
    saving: float
    numbers: tuple[float, float, float, float, float, float, float, int] | None
    attempt: int
    more: More | None
    kids: list[Record] | None

    @property
    def word(self) -> RowStatus:
        """Its status."""
        return STATUSES[self.status]

    @property
    def took(self) -> float:
        """From its start until it ended, or as far as it is drawn."""
        return 0.0 if self.start is None else self.until - self.start

    @property
    def parts(self) -> list[Part]:
        """Its parts of the critical path."""
        if isinstance(self.critical, int):
            return [(self.start or 0.0, self.until)] if self.critical else []
        return self.critical

    @property
    def sums(self) -> tuple[float, float, float, float, float, float, float, int]:
        """Its numbers."""
        if self.numbers is not None:
            return self.numbers
        took = self.took
        return (took, took, 0.0, 0.0, 0.0, 0.0, 0.0, int(self.start is not None))


class Recorder:
    """Makes records of a run's rows, and sees to it that they do not grow beyond the page's room.

    Args:
        start: When the run began.
        index: The place of each row in the timeline, by its ``id``.
    """

    def __init__(self, start: float, index: Mapping[int, int]) -> None:
        self._start = start
        self._index = index
        self._room = MOST_PAYLOADS

    def record(self, row: Row, *, deep: bool) -> Record:
        """A row as plain values, with the steps below it or without."""
        start = row.start
        usual = len(row.stretches) == 1 and row.stretches[0].kind == "work" and not row.children
        critical: list[Part] | int = [(self._after(a), self._after(b)) for a, b in row.critical]
        if start is not None and row.critical == ((start, row.until),):
            critical = 1
        return Record(
            index=self._index[id(row)],
            depth=row.depth,
            name=plain(row.name),
            status=STATUSES.index(row.status),
            start=None if start is None else self._after(start),
            until=0 if start is None else self._after(row.until),
            ended=int(row.end is not None),
            stretches=None if usual or start is None else self._stretches(row),
            critical=critical or 0,
            saving=_micro(row.saving),
            numbers=None if usual or start is None else _sums(row),
            attempt=row.attempt,
            more=None if row.node is None else self._more(row, row.node),
            kids=[self.record(child, deep=True) for child in row.children] if deep else None,
        )

    def _after(self, moment: float) -> float:
        """A time as seconds since the run's start."""
        return _micro(moment - self._start)

    def _stretches(self, row: Row) -> list[tuple[int, float, float, int, float]]:
        return [
            (KINDS.index(s.kind), self._after(s.start), self._after(s.end), s.calls, s.worked)
            for s in row.stretches
        ]

    def _more(self, row: Row, node: State) -> More | None:
        """What is to know about a step beside its times."""
        made = More()
        if node.interruptions:
            made["stops"] = node.interruptions
        own = node.detail
        if own is not None and row.end is None and (due := seconds(own.wake_at)) is not None:
            made["due"] = self._after(due)
            if own.why and not node.errs:
                made["why"] = self._bounded(own.why, "")
        if node.failure is not None:
            made["error"] = self._problem(row, node.failure)
        elif node.errs:
            made["error"] = {"message": self._bounded("\n".join(node.errs), "")}
        where = f"state.get({row.path!r})"
        if node.info is not ABSENT:
            made["info"] = self._payload(node.info, f"{where}.info")
        if node.result is not ABSENT:
            made["result"] = self._payload(node.result, f"{where}.result")
        return made or None

    def _problem(self, row: Row, failure: Failure) -> Problem:
        names = frozenset(failure.causes)
        causes = [(self._index[id(c)], plain(c.name)) for c in row.children if c.name in names]
        made: Problem = {"message": self._bounded(failure.message, "")}
        if failure.types:
            made["type"] = plain(failure.types[0])
        if failure.kind != "raised":
            made["kind"] = failure.kind
        if failure.traceback:
            where = f"state.get({row.path!r}).failure.traceback"
            made["trace"] = self._bounded(failure.traceback, where)
        if causes:
            made["causes"] = causes[:MOST_CAUSES]
        return made

    def _payload(self, raw: Payload, where: str) -> str:
        """JSON for readers."""
        value = bytes(raw)
        if _ONE_LINE < len(value) <= MOST_PAYLOAD and self._room > 0:
            with suppress(msgspec.MsgspecError):  # a tree made by hand may hold anything
                value = msgspec.json.format(value, indent=2)
        return self._bounded(value[: MOST_PAYLOAD * 4].decode("utf-8", "replace"), where)

    def _bounded(self, value: str, where: str) -> str:
        """Text of several lines, shown as what it is, cut to what the page has room for."""
        most = max(min(MOST_PAYLOAD, self._room), 0)
        cut = "" if len(value) <= most else value[most:]
        shown = value[:most]
        if not (shown.isascii() and shown.isprintable()):
            shown = "\n".join(lines_of(shown))
        self._room -= len(shown)
        if cut:
            rest = f"in full: {plain(where)}" if where else "there is more"
            shown += f"\n\N{HORIZONTAL ELLIPSIS} cut off here; {rest}"
        return shown


def _sums(row: Row) -> tuple[float, float, float, float, float, float, float, int]:
    return (
        _micro(row.own),
        _micro(row.worked),
        _micro(row.waited),
        _micro(row.backed_off),
        _micro(row.failed_work),
        _micro(row.lost_work),
        _micro(row.idle),
        row.calls,
    )


def _micro(value: float) -> float:
    """Seconds to the microsecond; short in JSON where they are whole."""
    rounded = round(value, 6)
    return int(rounded) if rounded == int(rounded) else rounded
