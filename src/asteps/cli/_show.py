"""``asteps show``: a run at a glance, or one of its steps in full."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated

import msgspec

from .._paths import split
from .._state import ABSENT, State
from .._store import Summary
from ..reports import Row, Timeline, timeline
from ..reports import _words as words
from ..reports._outlook import message_of, origins, progress_text, remarks, waits, wake_text
from ._arguments import Json, OptionalPath, RunId, StoreUrl, run_at
from ._output import Line, Span, as_json, table, write_json, write_lines
from ._phrases import ago
from ._stores import Found, find_run, in_store, step_of
from ._tree import branch_of, lines_of
from ._typer import Context, Option

__all__ = ["drawn_of", "head_of", "notes_of", "show", "status_of"]

_SIBLINGS = 12  # that are shown, unless all are wanted
_EVERYTHING = 1_000_000
_FAILURES = 5  # that are told in full
_PAYLOAD = 20_000  # characters of an info or a result


def show(
    context: Context,
    id: RunId,
    path: OptionalPath = None,
    *,
    store: StoreUrl = None,
    everything: Annotated[
        bool, Option("--all", "-a", help="Every step, also those of long lists.")
    ] = False,
    as_document: Json = False,
) -> None:
    """Show a run: what it came to, its steps, what failed; or one step in full."""
    url, id = run_at(context, store, id)
    found = in_store(url, lambda opened: find_run(opened, id))
    state = found.tree()
    if as_document:
        node = state if path is None else step_of(state, path)
        write_json(_document(found, node))
        return
    drawn = drawn_of(found, state)
    if path is not None:
        step_of(state, path)
        _show_step(next(row for row in drawn.rows if split(row.path) == split(path)), drawn)
        return
    write_lines(head_of(found, drawn), wrap=True)
    if drawn.root.children:
        branch = branch_of(drawn, most=_EVERYTHING if everything else _SIBLINGS)
        write_lines([[], *lines_of([*branch.children])])
        if branch.hidden:
            write_lines([[(branch.hidden, "dim")]])
    write_lines(_failures(drawn), wrap=True)
    write_lines(notes_of(drawn), wrap=True)


def drawn_of(found: Found, state: State | None = None) -> Timeline:
    """The timeline of a stored run."""
    summary = found.stored.summary
    return timeline(
        found.tree() if state is None else state,
        run_id=found.id,
        held=found.held,
        saved_at=_moment(summary.updated_at),
        at_work=summary.status == "proceeding",
    )


def _moment(value: float) -> datetime:
    return datetime.fromtimestamp(value).astimezone()


def _document(found: Found, node: State) -> object:
    summary = found.stored.summary
    return {
        "id": found.id,
        "name": summary.name,
        "status": status_of(summary, held=found.held),
        "holder": None if found.holder is None else found.holder.owner,
        "state": msgspec.Raw(node.encode()),
    }


def status_of(summary: Summary, *, held: bool) -> str:
    """What a run has come to, by its summary."""
    return "interrupted" if summary.status == "proceeding" and not held else summary.status


# --- a run ----------------------------------------------------------------------------------------


def head_of(found: Found, drawn: Timeline) -> list[Line]:
    """What a run is, and what it has come to."""
    summary = found.stored.summary
    now = time.time()
    rows: list[list[Span]] = [
        [("run", "dim"), (found.id, "head")],
        [("name", "dim"), (summary.name, "")],
        [("status", "dim"), _status_span(found, drawn)],
    ]
    if drawn.root.start is not None:
        began = words.instant_text(drawn.start)
        took = f"{began}, {'took' if drawn.end else 'for'} {words.duration_text(drawn.span)}"
        rows.append([("began", "dim"), (took, "")])
    saved = f"{words.instant_text(summary.updated_at)}, {ago(summary.updated_at, now)}"
    rows.append([("saved", "dim"), (saved, "")])
    if found.holder is not None:
        rows.append([("held by", "dim"), (found.holder.owner, "proceeding")])
    if drawn.total:
        rows.append([("progress", "dim"), (progress_text(drawn), "")])
    for row in waits(drawn)[:3]:
        text = f"{row.path or 'the run'}: {wake_text(row, drawn.now)}"
        rows.append([("waits", "dim"), (text, "pending")])
    return table(rows)


def _status_span(found: Found, drawn: Timeline) -> Span:
    if drawn.end is not None:
        return f"{drawn.status} {ago(drawn.end, drawn.now)}", drawn.status
    if "interrupted" in (drawn.status, status_of(found.stored.summary, held=found.held)):
        return "interrupted: nobody is at work on it", "interrupted"
    return drawn.status, drawn.status


def _failures(drawn: Timeline) -> list[Line]:
    """Where failures began that count, and what was raised there."""
    found = origins(drawn)
    lines: list[Line] = []
    for row in found[:_FAILURES]:
        attempt = f", attempt {row.attempt}" if row.attempt > 1 else ""
        lines += [
            [],
            [(f"{row.status} at {row.path or 'the root'}{attempt}", row.status)],
            [(f"  {message_of(row)}", "")],
        ]
    if len(found) > _FAILURES:
        lines.append([(f"and {len(found) - _FAILURES} more failures: asteps report", "dim")])
    return lines


def notes_of(drawn: Timeline) -> list[Line]:
    """What operators did to the run."""
    if not drawn.notes:
        return []
    rows = [
        [(words.instant_text(note.at), "dim"), (note.by, "dim"), (note.text, "")]
        for note in drawn.notes
    ]
    return [[], [("notes", "head")], *table(rows)]


# --- a step ---------------------------------------------------------------------------------------


def _show_step(row: Row, drawn: Timeline) -> None:
    rows: list[list[Span]] = [
        [("run", "dim"), (drawn.run_id, "head")],
        [("step", "dim"), (row.path or "the root", "head")],
        [("status", "dim"), (row.status, row.status)],
    ]
    if row.start is not None:
        took = f"{words.instant_text(row.start)}, for {words.duration_text(row.span)}"
        rows.append([("began", "dim"), (took, "")])
    rows += [[("", ""), (said, "")] for said in remarks(row, drawn.now)]
    write_lines(table(rows), wrap=True)
    node = row.node
    if node is None:
        return
    for what, payload in (("info", node.info), ("result", node.result)):
        if payload is not ABSENT:
            write_lines([[], [(what, "head")], *_payload(payload)], wrap=True)
    if node.failure is not None and node.failure.traceback:
        trace = words.lines_of(node.failure.traceback.rstrip())
        write_lines([[], [("traceback", "head")], *([(line, "")] for line in trace)], wrap=True)


def _payload(payload: msgspec.Raw | bytes) -> list[Line]:
    text = as_json(msgspec.Raw(bytes(payload)))
    shown = text[:_PAYLOAD]
    more = [[(f"… ({len(text):,} characters; --json has all)", "dim")]] if shown != text else []
    return [*([(line, "")] for line in shown.split("\n")), *more]
