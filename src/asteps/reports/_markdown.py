"""A run as Markdown, for tickets, chats and wikis."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Unpack

from .._state import State
from ._fold import fold, hidden_text, how_many
from ._look import Look, looked_at
from ._mermaid import mermaid_gantt
from ._outlook import (
    advised,
    critical_parts,
    headline,
    message_of,
    origins,
    part_text,
    progress_text,
    remarks,
    since_text,
    trace_of,
    wait_text,
    waits,
    wasteful,
)
from ._timeline import Row, Timeline
from ._words import MARKS, duration_text, instant_text, payload_text, plain, share_text

__all__ = ["markdown_report"]

_MOST_ROWS = 200
_MOST_PARTS = 10
_MOST_ERRORS = 10
_MOST_TEXT = 200  # characters of a remark, an info or a result
_INDENT = "&emsp;"

_SIMPLE = re.compile(r"[^`|\\<>&\n]*").fullmatch
_MARKUP = re.compile(r"[!#$&*<>@\[\\\]_`|~]|:(?=\S)|(?<=www)\.", re.IGNORECASE).sub


def markdown_report(
    run: State | Timeline,
    /,
    *,
    errors: bool = True,
    chart: bool = False,
    store: str = "STORE",
    **look: Unpack[Look],
) -> str:
    """A run as Markdown: what became of it, its steps as a table, what took the time, what failed.

    Written for GitHub's dialect, readable in any. Names, messages, infos and results cannot leave
    their cell, begin markup or mention anybody. Long lists of siblings are folded.

    Args:
        run: The root of the run's tree, or a timeline of it.
        errors: Add the failures with their tracebacks.
        chart: Add the chart of `mermaid_gantt`.
        store: How the commands that the report suggests name the store.
        look: See `timeline`; without meaning for one that is given.
    """
    drawn = looked_at(run, look)
    lines = [
        *_header(drawn, store),
        *_steps(drawn),
        *_parts(drawn),
        *_waste(drawn),
        *_notes(drawn),
    ]
    if errors:
        lines += _errors(drawn)
    if chart:
        lines += ["", "## Chart", "", "```mermaid", mermaid_gantt(drawn).rstrip("\n"), "```"]
    return "\n".join(lines) + "\n"


def _header(drawn: Timeline, store: str) -> Iterator[str]:
    yield f"# Run {_code(drawn.run_id or drawn.name)}"
    yield ""
    yield f"{MARKS[drawn.status]} **{headline(drawn)}**"
    yield ""
    if drawn.run_id:
        yield f"- Function: {_code(drawn.name)}"
    facts = ", ".join(filter(None, [since_text(drawn), progress_text(drawn)]))
    yield f"- {facts[:1].upper()}{facts[1:]}"
    if failed := origins(drawn):
        more = f", and {len(failed) - 1:,} more" if len(failed) > 1 else ""
        yield f"- First failed: {_name(failed[0])}: {_code(message_of(failed[0])[:500])}{more}"
    if waiting := waits(drawn):
        more = f", and {len(waiting) - 1:,} more" if len(waiting) > 1 else ""
        yield f"- Waits for {_name(waiting[0])}: {_text(wait_text(waiting[0], drawn.now))}{more}"
    for advice in advised(drawn, store):
        command = f": {_code(advice.command)}" if advice.command else ""
        yield f"- To do: {_text(advice.text)}{command}"


def _steps(drawn: Timeline) -> Iterator[str]:
    if not drawn.root.children:
        return
    yield from ("", "## Steps", "", "| step | status | took | remarks |", "|---|---|--:|---|")
    most = how_many(drawn.root, _MOST_ROWS)
    for count, line in enumerate(_lines(drawn.root, most, drawn.now)):
        if count == _MOST_ROWS:
            yield f"| … | | | {len(drawn.rows):,} steps in all |"
            return
        yield line


def _lines(parent: Row, most: int, now: float) -> Iterator[str]:
    kept, hidden = fold(parent.children, most)
    indent = _INDENT * parent.depth
    for row in kept:
        took = duration_text(row.span) if row.start is not None else ""
        status = f"{MARKS[row.status]} {row.status}"
        yield f"| {indent}{_code(row.name)} | {status} | {took} | {'; '.join(_details(row, now))} |"
        yield from _lines(row, most, now)
    if hidden:
        yield f"| {indent}… | | | {hidden_text(hidden)} |"


def _details(row: Row, now: float) -> Iterator[str]:
    for remark in remarks(row, now):
        yield _text(remark[:_MOST_TEXT])
    node = row.node
    if node is None or row.children:
        return
    if node.result and bytes(node.result) != b"null":
        yield f"→ {_code(payload_text(node.result, _MOST_TEXT))}"
    elif node.info:
        yield f"info {_code(payload_text(node.info, _MOST_TEXT))}"


def _parts(drawn: Timeline) -> Iterator[str]:
    found = critical_parts(drawn)
    if not found:
        return
    yield from ("", "## What took the time", "")
    yield f"The critical path: {duration_text(drawn.span)}."
    yield from ("", "| took | share | sooner without | step |", "|--:|--:|--:|---|")
    for part in found[:_MOST_PARTS]:
        saving = duration_text(part.saving) if part.saving else ""
        share = share_text(part.took, drawn.span)
        yield f"| {duration_text(part.took)} | {share} | {saving} | {_text(part_text(part))} |"
    if rest := found[_MOST_PARTS:]:
        took = sum(part.took for part in rest)
        yield f"| {duration_text(took)} | {share_text(took, drawn.span)} | | the rest |"


def _waste(drawn: Timeline) -> Iterator[str]:
    rows = wasteful(drawn)
    if not rows:
        return
    yield from ("", "## Wasted work", "")
    yield f"{duration_text(drawn.wasted)} of work came to nothing."
    yield from ("", "| step | failed | cut off |", "|---|--:|--:|")
    for row in rows[:_MOST_PARTS]:
        failed, lost = (
            duration_text(took) if took else "" for took in (row.failed_work, row.lost_work)
        )
        yield f"| {_name(row)} | {failed} | {lost} |"
    if len(rows) > _MOST_PARTS:
        yield f"| {len(rows) - _MOST_PARTS:,} more | | |"


def _notes(drawn: Timeline) -> Iterator[str]:
    if drawn.notes:
        yield from ("", "## Notes", "")
    for note in drawn.notes:
        who = f" {_text(note.by)}" if note.by else ""
        yield f"- {instant_text(note.at)}{who}: {_text(note.text)}"


def _errors(drawn: Timeline) -> Iterator[str]:
    failed = origins(drawn)
    if failed:
        yield from ("", "## Errors")
    for row in failed[:_MOST_ERRORS]:
        yield from ("", f"### {_name(row)}", "", _code(message_of(row)))
        if trace := trace_of(row):
            yield ""
            yield from _block(trace)
    if len(failed) > _MOST_ERRORS:
        yield from ("", f"And {len(failed) - _MOST_ERRORS:,} more.")


# --- text from outside ----------------------------------------------------------------------------


def _name(row: Row) -> str:
    return _code(row.path) if row.depth else "the run itself"


def _code(text: str) -> str:
    """A text as code, also in a cell of a table."""
    text = plain(text).strip()
    if not text:
        return ""
    return f"`{text}`" if _SIMPLE(text) else f"<code>{_text(text)}</code>"


def _text(text: str) -> str:
    """A text without markup: what could begin some is written as entities."""
    return _MARKUP(lambda found: f"&#{ord(found[0])};", plain(text))


def _block(lines: Sequence[str]) -> Iterator[str]:
    """Lines as they are; the fence is longer than any in them."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(longest + 1, 3)
    yield f"{fence}text"
    yield from lines
    yield fence
