"""A run as text: what an operator reads at three in the morning."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Unpack

import msgspec

from .._state import State
from ._fold import fold, hidden_text, how_many
from ._look import Look, looked_at
from ._outlook import (
    advised,
    critical_parts,
    failed_at,
    headline,
    message_of,
    origins,
    part_text,
    paths,
    progress_text,
    remarks,
    since_text,
    trace_of,
    wait_text,
    waits,
    wasteful,
)
from ._timeline import Row, RowStatus, Timeline
from ._words import (
    ASCII_MARKS,
    MARKS,
    columns,
    cut,
    duration_text,
    instant_text,
    pad,
    payload_text,
    plain,
    share_text,
    time_text,
)

__all__ = ["text_report"]

_MOST_ROWS = 400  # steps that a report shows
_MOST_PARTS = 8  # lines of the list of what takes the time
_MOST_ERRORS = 10
_MOST_NOTES = 20
_LEAST_WIDTH = 40


class _Style(msgspec.Struct, frozen=True):
    """The characters of a drawing."""

    marks: dict[RowStatus, str]
    branch: str
    last: str
    bar: str
    gives: str
    more: str

    encoding: str

    def encode(self, text: str) -> str:
        """The same in these characters."""
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)

    def end(self, text: str, width: int) -> str:
        """A line that fits, in these characters."""
        return cut(self.encode(text), width, self.more).rstrip()


_UNICODE = _Style(MARKS, "├─ ", "└─ ", "│  ", "→", "…", "utf-8")
_ASCII = _Style(ASCII_MARKS, "|- ", "`- ", "|  ", "->", "...", "ascii")


def text_report(
    run: State | Timeline,
    /,
    *,
    width: int = 100,
    ascii_only: bool = False,
    errors: bool = True,
    store: str = "STORE",
    **look: Unpack[Look],
) -> str:
    """A run as text: what became of it, the tree of its steps, what took the time, what failed.

    Each status has a mark and, unless it is done, a word. Long lists of siblings are folded: what
    failed, what goes on and what took long stays. Nothing in the text controls a terminal.

    Args:
        run: The root of the run's tree, or a timeline of it.
        width: Columns of a line, at least 40; what does not fit is cut, but for commands and
            tracebacks.
        ascii_only: Draw with ASCII characters alone, and escape all others.
        errors: Add the failures with their tracebacks.
        store: How the commands that the report suggests name the store.
        look: See `timeline`; without meaning for one that is given.
    """
    drawn = looked_at(run, look)
    style = _ASCII if ascii_only else _UNICODE
    width = max(width, _LEAST_WIDTH)
    facts = [style.end(line, width) for line in _header(drawn, style, width)]
    lines = [
        "",
        *_tree(drawn, style, width),
        *_parts(drawn),
        *_waste(drawn),
        *_notes(drawn),
    ]
    made = [*facts, *_advice(drawn, style, width, store)]
    made += [style.end(line, width) for line in lines]
    if errors:
        made += [style.encode(line).rstrip() for line in _errors(drawn)]
    return "\n".join(made) + "\n"


# --- its parts ------------------------------------------------------------------------------------


def _header(drawn: Timeline, style: _Style, width: int) -> Iterator[str]:
    name = plain(drawn.name)
    who = f"{plain(drawn.run_id)} ({name})" if drawn.run_id and drawn.run_id != drawn.name else name
    yield f"{style.marks[drawn.status]} {who}: {headline(drawn)}"
    facts = [", ".join(filter(None, [since_text(drawn), progress_text(drawn)]))]
    if failed := origins(drawn):
        more = f" (and {len(failed) - 1:,} more)" if len(failed) > 1 else ""
        facts.append(f"first failed: {paths(failed[:1])}: {message_of(failed[0])[:500]}{more}")
    if waiting := waits(drawn):
        more = f" (and {len(waiting) - 1:,} more)" if len(waiting) > 1 else ""
        said = wait_text(waiting[0], drawn.now)
        facts.append(f"waits for {paths(waiting[:1])}: {said}{more}")
    for fact in facts:
        yield from _wrapped(fact, width)


def _advice(drawn: Timeline, style: _Style, width: int, store: str) -> Iterator[str]:
    """What to do; commands stay in one line, however long, so that they can be copied."""
    for advice in advised(drawn, store):
        for line in _wrapped(f"to do: {advice.text}", width):
            yield style.end(line, width)
        if advice.command and style.encode(advice.command) == advice.command:
            yield f"      {advice.command}"


def _tree(drawn: Timeline, style: _Style, width: int) -> Iterator[str]:
    most = how_many(drawn.root, _MOST_ROWS)
    found = islice(_branches(drawn.root, "", style, most), _MOST_ROWS)
    drawn_rows = [(style.encode(label), row) for label, row in found]
    widest = max((columns(label) for label, row in drawn_rows if isinstance(row, Row)), default=0)
    names = min(widest, width * 45 // 100)
    for label, row in drawn_rows:
        if isinstance(row, str):
            yield label + row
            continue
        took = duration_text(row.span) if row.start is not None else ""
        line = pad(cut(label, names, style.more), names) + pad(took, 13, "right")
        yield "  ".join([line, *_details(row, drawn.now, style, width)])
    if len(drawn_rows) == _MOST_ROWS:
        yield f"{style.more} {len(drawn.rows):,} steps in all"


def _branches(row: Row, indent: str, style: _Style, most: int) -> Iterator[tuple[str, Row | str]]:
    """The labels of the steps below a row, with guides; and what is said of those not shown."""
    kept, hidden = fold(row.children, most)
    for place, child in enumerate(kept):
        last = place == len(kept) - 1 and not hidden
        guide = style.last if last else style.branch
        yield f"{indent}{guide}{style.marks[child.status]} {plain(child.name)}", child
        yield from _branches(child, indent + ("   " if last else style.bar), style, most)
    if hidden:
        yield f"{indent}{style.last}{style.more} ", hidden_text(hidden)


def _details(row: Row, now: float, style: _Style, width: int) -> Iterator[str]:
    status = "" if row.status == "done" else row.status
    said = "; ".join(filter(None, [status, *remarks(row, now)]))
    if said:
        yield said
    node = row.node
    if node is None or row.children:
        return
    if node.result and bytes(node.result) != b"null":
        yield f"{style.gives} {payload_text(node.result, width // 3)}"
    elif node.info:
        yield f"info {payload_text(node.info, width // 3)}"


def _parts(drawn: Timeline) -> Iterator[str]:
    """What took the time: the parts of the critical path."""
    found = critical_parts(drawn)
    if not found:
        return
    yield ""
    yield f"What took the time (the critical path, {duration_text(drawn.span)})"
    for part in found[:_MOST_PARTS]:
        saving = f"{duration_text(part.saving)} sooner without" if part.saving else ""
        yield f"{_share(part.took, drawn)}  {pad(saving, 26)}  {part_text(part)}"
    if rest := found[_MOST_PARTS:]:
        yield f"{_share(sum(part.took for part in rest), drawn)}  the rest"


def _share(took: float, drawn: Timeline) -> str:
    share = share_text(took, drawn.span)
    return pad(duration_text(took), 13, "right") + pad(share, 6, "right")


def _waste(drawn: Timeline) -> Iterator[str]:
    rows = wasteful(drawn)
    if not rows:
        return
    yield ""
    yield f"Wasted work: {duration_text(drawn.wasted)}"
    for row in rows[:_MOST_PARTS]:
        kinds = [
            f"{duration_text(took)} {what}"
            for took, what in ((row.failed_work, "failed"), (row.lost_work, "cut off"))
            if took
        ]
        yield f"  {plain(row.path) or '(the run itself)'}: {', '.join(kinds)}"
    if len(rows) > _MOST_PARTS:
        yield f"  and {len(rows) - _MOST_PARTS:,} more"


def _notes(drawn: Timeline) -> Iterator[str]:
    if not drawn.notes:
        return
    yield ""
    yield "Notes"
    for note in drawn.notes[-_MOST_NOTES:]:
        who = f" {plain(note.by)}" if note.by else ""
        yield f"  {instant_text(note.at)}{who}: {plain(note.text)}"


def _errors(drawn: Timeline) -> Iterator[str]:
    """The failures where they began, with tracebacks."""
    failed = origins(drawn)
    for row in failed[:_MOST_ERRORS]:
        yield ""
        where = plain(row.path) or "the run itself"
        yield f"Error in {where} at {time_text(failed_at(row), drawn.start)}"
        yield f"  {message_of(row)}"
        for line in trace_of(row):
            yield f"  {line}"
    if len(failed) > _MOST_ERRORS:
        yield ""
        yield f"{len(failed) - _MOST_ERRORS:,} more errors: {paths(failed[_MOST_ERRORS:], 10)}"


def _wrapped(text: str, width: int) -> Iterator[str]:
    """A text in lines of so many columns; those after the first are indented."""
    line = " "
    for word in text.split(" "):
        if line.strip() and columns(line) + 1 + columns(word) > width:
            yield line
            line = f"      {word}"
        else:
            line = f"{line} {word}"
    yield line
