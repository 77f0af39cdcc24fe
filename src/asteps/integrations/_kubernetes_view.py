"""What somebody who looks at an object sees of its run: phase, step, progress, message, conditions.

Pure: what a save holds comes in, what the status says of it goes out. The only time that it knows
is the save's own, so the same save gives the same status.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast

from .._codec import assemble
from .._state import moment
from .._store import Summary
from ..errors import StateFormatError
from ..reports import Row, Timeline, timeline
from ..reports._outlook import headline, message_of, origins, waits
from ..reports._words import cut, plain
from ..stores.kubernetes import View, Viewed

__all__ = ["CLEANUP", "Phase", "status_view"]

Phase: TypeAlias = Literal["Pending", "Running", "Waiting", "Failed", "Succeeded", "Deleting"]

CLEANUP: Final = "cleanup"
"""The last part of a clean-up run's id."""

_MOST = 200  # columns of a message
_REASONS: Final[Mapping[Phase, str]] = {"Failed": "StepFailed"}  # the others are their phase


def status_view(*, observed_generation: int | None = None, namespaced: bool = True) -> View:
    """What a `StatusStore` writes into the status beside its records, for people and for `kubectl`.

    ``phase``
        Pending (nothing has begun, or an operator put it right and nobody went on yet), Running,
        Waiting (for its time, or for the next attempt), Failed, Succeeded; Deleting of a clean-up.
        That a worker died is not told: nobody is there who could write it.
    ``step``
        The path of the step that is at work, is waited for, or failed first; the deepest one. As
        a start is no save of its own, it may be the one that ended last. Empty of a finished run.
    ``progress``
        ``3/5``: steps without children that have ended, of all that are known so far. The second
        number grows while steps are found.
    ``message``
        What there is to say about it: up to 200 characters, none of them a control character.
    ``observedGeneration``
        The generation of the spec that the run was driven with.
    ``conditions``
        Ready, Reconciling and Stalled, as kstatus (and with it ``kubectl wait`` and Argo CD) reads
        them. ``lastTransitionTime`` changes with their status alone. Conditions of others are kept
        as they are, in their order.

    Records that are no tree of asteps are told of by their summary alone.

    Args:
        observed_generation: ``metadata.generation`` of the object whose spec is acted on; without
            one (an operator at the command line) the status keeps the one that it has.
        namespaced: Whether the object lies in a namespace; tells which ids are clean-ups.
    """
    parts = 3 if namespaced else 2

    def view(viewed: Viewed) -> Mapping[str, Any]:
        told = _told(viewed)
        names = viewed.id.split("/")
        phase, failed = told.phase, told.phase == "Failed"
        if len(names) == parts and names[-1] == CLEANUP:
            phase = "Deleting"
        status: dict[str, Any] = {
            "phase": phase,
            "step": told.step,
            "progress": told.progress,
            "message": told.message,
        }
        generation = observed_generation
        if generation is not None:
            status["observedGeneration"] = generation
        else:
            generation = viewed.status.get("observedGeneration")
        found = viewed.status.get("conditions", [])
        if isinstance(found, list):  # else somebody means something else by it
            reason = _REASONS.get(told.phase if failed else phase, phase)
            ready, stalled = phase == "Succeeded", failed
            known = {"Ready": ready, "Reconciling": not (ready or stalled), "Stalled": stalled}
            at = f"{moment(viewed.summary.updated_at):%Y-%m-%dT%H:%M:%SZ}"
            made = [
                _condition(type, reason, told.message, generation, at, holds=holds)
                for type, holds in known.items()
            ]
            status["conditions"] = _merged(cast("Sequence[object]", found), made)
        return status

    return view


# --- what a run has come to -----------------------------------------------------------------------


class _Told(NamedTuple):
    """A run in a few words."""

    phase: Phase
    step: str = ""
    progress: str = ""
    message: str = ""


def _told(viewed: Viewed) -> _Told:
    summary = viewed.summary
    try:
        state = assemble(viewed.records, "the run")
    except StateFormatError:
        return _Told(_phase(summary))
    drawn = timeline(
        state,
        now=moment(summary.updated_at),
        saved_at=moment(summary.updated_at),
        at_work=summary.status == "proceeding",
    )
    phase = _phase(summary)
    if phase == "Waiting" and drawn.status in ("reopened", "not begun"):
        phase = "Pending"
    step, message = _words(phase, drawn)
    progress = f"{drawn.done}/{drawn.total}" if drawn.total else ""
    return _Told(phase, plain(step), progress, cut(message, _MOST))


def _phase(summary: Summary) -> Phase:
    match summary.status:
        case "done":
            return "Succeeded"
        case "failed":
            return "Failed"
        case "pending":
            return "Waiting"
        case "proceeding":
            return "Running"


def _words(phase: Phase, drawn: Timeline) -> tuple[str, str]:
    """The step that matters, and what there is to say."""
    match phase:
        case "Failed" if failed := origins(drawn):
            return failed[0].path, message_of(failed[0]) + _more(failed, "failed")
        case "Succeeded" if failed := origins(drawn):
            return "", f"done, but {plain(failed[0].path)} failed: {message_of(failed[0])}"
        case "Waiting" if waiting := waits(drawn):
            return waiting[0].path, _why(waiting[0]) + _more(waiting, "waiting")
        case "Running":
            return _at_work(drawn)
        case _:
            return "", headline(drawn)


def _more(rows: Sequence[Row], what: str) -> str:
    return f" (and {len(rows) - 1:,} more {what})" if len(rows) > 1 else ""


def _why(row: Row) -> str:
    """What a step waits for."""
    if row.status == "retrying":
        return f"{message_of(row)} (attempt {row.attempt} follows)"
    detail = None if row.node is None else row.node.detail
    return plain(detail.why) if detail is not None and detail.why else "waits for its time"


def _at_work(drawn: Timeline) -> tuple[str, str]:
    """The step that was begun last of those at work; else one that waits, or that ended last."""
    leaves = [row for row in drawn.rows if row.depth and not row.children and row.start is not None]
    going = [row for row in leaves if row.status in ("proceeding", "interrupted")]
    if going:
        last = max(going, key=lambda row: row.start or 0.0)
        attempt = f", attempt {last.attempt}" if last.attempt > 1 else ""
        return last.path, f"at work{attempt}{_more(going, 'under way')}"
    if waiting := [row for row in waits(drawn) if row.depth]:
        return waiting[0].path, _why(waiting[0]) + _more(waiting, "waiting")
    if ended := [row for row in leaves if row.end is not None]:
        last = max(ended, key=lambda row: row.until)
        came_to = "failed" if last.status == "failed" else "ended"
        return last.path, f"{plain(last.path)} has {came_to}"
    return "", "at work"


# --- conditions -----------------------------------------------------------------------------------


def _condition(
    type: str, reason: str, message: str, generation: Any, at: str, *, holds: bool
) -> dict[str, Any]:
    made = {
        "type": type,
        "status": "True" if holds else "False",
        "reason": reason,
        "message": message,
        "lastTransitionTime": at,
    }
    return made if generation is None else {**made, "observedGeneration": generation}


def _merged(found: Sequence[object], made: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The conditions that are there, ours among them in the places that they have."""
    ours = {each["type"]: dict(each) for each in made}
    merged: list[Any] = []
    for each in found:
        theirs = cast("dict[str, Any]", each) if isinstance(each, dict) else {}
        mine = ours.pop(str(theirs.get("type")), None)
        if mine is not None and mine["status"] == theirs.get("status"):
            mine["lastTransitionTime"] = theirs.get(
                "lastTransitionTime", mine["lastTransitionTime"]
            )
        merged.append(each if mine is None else mine)
    return [*merged, *ours.values()]
