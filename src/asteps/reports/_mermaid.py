"""A run as a Gantt chart of Mermaid, which many wikis and code hosts draw."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

from .._picture import encoded
from .._state import State
from ._fold import fold, hidden_text, how_many
from ._look import Look, looked_at
from ._outlook import headline
from ._timeline import Kind, Row, Timeline
from ._words import MARKS, plain

__all__ = ["mermaid_gantt"]

_MOST_NAME = 60  # characters of a label
_SAFE = f" -_.,()/{''.join(MARKS.values())}"  # beside letters and digits

_SAYS: dict[Kind, str] = {
    "work": "",
    "failed": "failed",
    "lost": "cut off",
    "wait": "waits",
    "backoff": "backs off",
    "idle": "idle",
    "folded": "earlier",
}


def mermaid_gantt(run: State | Timeline, /, *, most_rows: int = 100, **look: Unpack[Look]) -> str:
    """A run as a Gantt chart of Mermaid.

    A section for each step that has children, with a task for each child that has some itself, and
    one for each stretch of the others: ``done`` where the step has ended, ``active`` where it goes
    on, ``crit`` for work that failed or was cut off; waits are tasks of their own. What has not
    begun is not drawn. Times are whole milliseconds; no task is shorter than one. Names are text
    of the chart, whatever they contain.

    Args:
        run: The root of the run's tree, or a timeline of it.
        most_rows: About how many steps are drawn; what failed, goes on or took long comes first.
        look: See `timeline`; without meaning for one that is given.
    """
    drawn = looked_at(run, look)
    lines = [
        "gantt",
        f"    title {_label(f'{drawn.run_id or drawn.name}: {headline(drawn)}', 200)}",
        "    dateFormat x",
        f"    axisFormat {_axis(drawn.last - drawn.start)}",
        "    todayMarker off",
    ]
    if drawn.root.children:
        lines += _section(drawn.root, how_many(drawn.root, most_rows))
    else:
        lines += [f"    section {_label(drawn.name)}", *_tasks(drawn.root)]
    return "\n".join(lines) + "\n"


def _section(parent: Row, most: int) -> Iterator[str]:
    """A section for a parent, then those of its children that are parents."""
    kept, hidden = fold(parent.children, most)
    yield f"    section {_label(parent.path or parent.name)}"
    for row in kept:
        yield from _tasks(row)
    begun = [row for row in hidden if row.start is not None]
    if hidden:
        start = min((row.start for row in begun if row.start is not None), default=parent.until)
        end = max((row.until for row in begun), default=start)
        yield _task(f"… {hidden_text(hidden)}", "", start, end)
    for row in kept:
        if row.children:
            yield from _section(row, most)


def _tasks(row: Row) -> Iterator[str]:
    """A parent's whole span; or each stretch of a step without children."""
    mark, name = MARKS[row.status], row.name
    if row.start is None:
        return
    if row.children:
        kind: Kind = "failed" if row.status == "failed" else "work"
        yield _task(f"{mark} {name}", _tag(row, kind), row.start, row.until)
        return
    for stretch in row.stretches:
        said = _SAYS[stretch.kind]
        label = f"{mark} {name} ({said})" if said else f"{mark} {name}"
        yield _task(label, _tag(row, stretch.kind), stretch.start, stretch.end)


def _tag(row: Row, kind: Kind) -> str:
    if kind in ("failed", "lost"):
        return "crit, "
    if kind == "work":
        return "active, " if row.end is None else "done, "
    return ""


def _task(label: str, tag: str, start: float, end: float) -> str:
    begin = round(start * 1000)
    return f"    {_label(label)} :{tag}{begin}, {max(round(end * 1000), begin + 1)}"


def _label(text: str, most: int = _MOST_NAME) -> str:
    """A text of which Mermaid reads nothing but the text."""
    text = plain(text)
    text = f"{text[:most]}…" if len(text) > most else text
    return encoded(text, _SAFE)


def _axis(span: float) -> str:
    if span < 10:
        return "%S.%L s"
    if span < 3_600:
        return "%H:%M:%S"
    return "%H:%M" if span < 86_400 else "%d %b %H:%M"
