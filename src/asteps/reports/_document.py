"""A run as a JSON document for programs: the same numbers that the other reports draw."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Unpack

import msgspec
from msgspec import Raw

from .._state import ABSENT, Payload, State
from ._look import Look, looked_at
from ._outlook import origins, waits
from ._timeline import Kind, Row, RowStatus, Timeline

__all__ = [
    "CriticalPart",
    "FailureDocument",
    "NoteDocument",
    "RunDocument",
    "StepDocument",
    "StretchDocument",
    "json_report",
]

_FORMAT = 1


class StretchDocument(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """One stretch of a step's life; see `Stretch`.

    Attributes:
        kind: What it was.
        started_at: When it began.
        ended_at: When it ended, or until when it is drawn.
        seconds: How long it was.
        calls: Quick calls of the body within a wait.
        worked: Seconds that those took.
    """

    kind: Kind
    started_at: datetime
    ended_at: datetime
    seconds: float
    calls: int
    worked: float


class FailureDocument(msgspec.Struct, frozen=True, rename="camel"):
    """What made a step fail, or its last attempt; see `asteps.Failure`.

    Attributes:
        type: Qualified name of the exception's type; ``""`` where the tree does not say.
        message: What it said.
        kind: Why the engine gave up.
        traceback: Where it was raised.
        causes: Names of the children whose failures brought it about.
    """

    type: str
    message: str
    kind: str
    traceback: str
    causes: tuple[str, ...]


class StepDocument(msgspec.Struct, frozen=True, rename="camel"):
    """One step; see `Row` for what the numbers mean. Durations are seconds.

    Attributes:
        path: Its path; ``""`` is the run itself.
        name: Its name.
        depth: How many steps are above it.
        status: What it has come to.
        started_at: When it first began.
        ended_at: When it ended.
        seconds: From its start to its end, or as far as it is drawn.
        worked: In calls of its body that came to something, or go on.
        waited: Pending.
        backed_off: Between failed attempts and the next.
        failed_work: Own work of attempts that failed.
        lost_work: Own work that was cut off.
        idle: While nobody was to work on it.
        own: In its body, while none of its children was under way.
        calls: Calls of its body.
        critical: Own time on the critical path.
        saving: By how much sooner the run would have ended, had its own time been 0.
        attempt: The current attempt, from 1.
        interruptions: How often it was interrupted since the last recover or reset.
        wake_at: When a pending or retrying step is due.
        why: What it waits for.
        failure: What made it fail, or its last attempt.
        info: What it wrote down, as it is recorded; absent if there is none, or if it is larger
            than ``most_payload_bytes``.
        info_bytes: How large that is.
        result: What it returned, likewise.
        result_bytes: How large that is.
        stretches: What it went through.
    """

    path: str
    name: str
    depth: int
    status: RowStatus
    started_at: datetime | None
    ended_at: datetime | None
    seconds: float
    worked: float
    waited: float
    backed_off: float
    failed_work: float
    lost_work: float
    idle: float
    own: float
    calls: int
    critical: float
    saving: float
    attempt: int
    interruptions: int
    wake_at: datetime | None
    why: str
    failure: FailureDocument | None
    info_bytes: int
    result_bytes: int
    stretches: tuple[StretchDocument, ...]
    info: Raw | msgspec.UnsetType = msgspec.UNSET
    result: Raw | msgspec.UnsetType = msgspec.UNSET


class CriticalPart(msgspec.Struct, frozen=True, rename="camel"):
    """A part of the critical path: the run waited for this step's own time.

    Attributes:
        path: The step.
        started_at: When the part began.
        ended_at: When it ended.
        seconds: How long it was.
    """

    path: str
    started_at: datetime
    ended_at: datetime
    seconds: float


class NoteDocument(msgspec.Struct, frozen=True, rename="camel"):
    """What an operator did to the run.

    Attributes:
        at: When.
        by: Who.
        text: What.
    """

    at: datetime
    by: str
    text: str


class RunDocument(msgspec.Struct, frozen=True, rename="camel"):
    """What `json_report` writes; ``msgspec.json.schema(RunDocument)`` is its JSON Schema.

    Keys are only ever added within one ``format``. All but a step's ``info`` and ``result`` are
    always there. Times are RFC 3339 in UTC, durations seconds.

    Attributes:
        format: 1.
        run_id: The run's id; ``""`` if it is not known.
        name: Its root's name.
        status: What it has come to.
        now: The time at which it was looked at.
        started_at: When it began.
        ended_at: When it ended.
        drawn_until: As far as it is drawn; the critical path leads from its start to here.
        seconds: From its start to there.
        done: Steps without children that have ended, ...
        total: ... of those known or planned.
        wasted: Work of attempts that failed and of bodies that were cut off.
        failed_first: Where the failures began that count, the first one first: paths.
        waits_for: Paths of the steps that wait for their time, the first due first.
        critical_path: In the order of time, without gaps.
        steps: Parents first; the first one is the run itself.
        notes: What operators did to it.
    """

    format: int
    run_id: str
    name: str
    status: RowStatus
    now: datetime
    started_at: datetime | None
    ended_at: datetime | None
    drawn_until: datetime | None
    seconds: float
    done: int
    total: int
    wasted: float
    failed_first: tuple[str, ...]
    waits_for: tuple[str, ...]
    critical_path: tuple[CriticalPart, ...]
    steps: tuple[StepDocument, ...]
    notes: tuple[NoteDocument, ...]


def json_report(
    run: State | Timeline, /, *, most_payload_bytes: int = 65_536, **look: Unpack[Look]
) -> str:
    """A run as a JSON document: see `RunDocument` for what is in it.

    Nothing is folded, rounded to more than microseconds or shortened, but for infos and results.

    Args:
        run: The root of the run's tree, or a timeline of it.
        most_payload_bytes: Infos and results that are larger are left out; their sizes stay.
        look: See `timeline`; without meaning for one that is given.
    """
    drawn = looked_at(run, look)
    began = drawn.root.start is not None
    document = RunDocument(
        format=_FORMAT,
        run_id=drawn.run_id,
        name=drawn.name,
        status=drawn.status,
        now=_time(drawn.now),
        started_at=_time(drawn.start) if began else None,
        ended_at=_time_or_none(drawn.end),
        drawn_until=_time(drawn.until) if began else None,
        seconds=_exact(drawn.span),
        done=drawn.done,
        total=drawn.total,
        wasted=_exact(drawn.wasted),
        failed_first=tuple(row.path for row in origins(drawn)),
        waits_for=tuple(row.path for row in waits(drawn)),
        critical_path=tuple(
            CriticalPart(
                part.row.path, _time(part.start), _time(part.end), _exact(part.end - part.start)
            )
            for part in drawn.critical_path()
        ),
        steps=tuple(_step(row, most_payload_bytes) for row in drawn.rows),
        notes=tuple(NoteDocument(note.at, note.by, note.text) for note in drawn.notes),
    )
    return _encode(document).decode("utf-8", "replace")  # nobody has read the payloads


_encode = msgspec.json.Encoder().encode


def _step(row: Row, most: int) -> StepDocument:
    node = row.node
    info: Payload = ABSENT if node is None else node.info
    result: Payload = ABSENT if node is None else node.result
    detail = None if node is None else node.detail
    return StepDocument(
        path=row.path,
        name=row.name,
        depth=row.depth,
        status=row.status,
        started_at=_time_or_none(row.start),
        ended_at=_time_or_none(row.end),
        seconds=_exact(row.span),
        worked=_exact(row.worked),
        waited=_exact(row.waited),
        backed_off=_exact(row.backed_off),
        failed_work=_exact(row.failed_work),
        lost_work=_exact(row.lost_work),
        idle=_exact(row.idle),
        own=_exact(row.own),
        calls=row.calls,
        critical=_exact(row.critical_time),
        saving=_exact(row.saving),
        attempt=row.attempt,
        interruptions=0 if node is None else node.interruptions,
        wake_at=None if node is None else node.wake_at,
        why="" if detail is None else detail.why,
        failure=_failure(node),
        info_bytes=_size(info),
        result_bytes=_size(result),
        stretches=tuple(
            StretchDocument(
                each.kind,
                _time(each.start),
                _time(each.end),
                _exact(each.end - each.start),
                each.calls,
                each.worked,
            )
            for each in row.stretches
        ),
        info=_payload(info, most),
        result=_payload(result, most),
    )


def _failure(node: State | None) -> FailureDocument | None:
    if node is None or not node.errs:
        return None
    found = node.failure
    if found is None:
        return FailureDocument("", "; ".join(node.errs), "raised", "", ())
    kind = found.types[0] if found.types else ""
    return FailureDocument(kind, found.message, found.kind, found.traceback, found.causes)


def _size(payload: Payload) -> int:
    return memoryview(payload).nbytes


def _payload(payload: Payload, most: int) -> Raw | msgspec.UnsetType:
    if payload is ABSENT or _size(payload) > most:
        return msgspec.UNSET
    return Raw(payload)


def _exact(seconds: float) -> float:
    return round(seconds, 6)


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _time_or_none(at: float | None) -> datetime | None:
    return None if at is None else _time(at)
