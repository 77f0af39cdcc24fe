"""A run's steps as lines: what `show`, `watch` and the live view draw."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import msgspec

from ..reports import Row, RowStatus, Timeline
from ..reports._fold import fold, hidden_text
from ..reports._outlook import message_of, remarks
from ..reports._words import ASCII_MARKS, MARKS, columns, duration_text, pad, plain
from ._output import Line

__all__ = ["Branch", "branch_of", "fit", "has_marks", "lines_of", "marks_for"]

_WIDEST = 44  # columns of names with their indentation, unless one is longer
_SIBLINGS = 12  # how many are drawn before the rest is summed up


class Branch(msgspec.Struct):
    """A step, ready to be drawn.

    Attributes:
        name: Its name.
        status: What it has come to.
        took: How many seconds, so far or in all.
        remark: What else there is to say about it.
        children: The steps below it that are drawn.
        hidden: What is said of those that are not.
        mark: Stands in for the mark of the status.
    """

    name: str
    status: RowStatus
    took: float | None = None
    remark: str = ""
    children: list[Branch] = []
    hidden: str = ""
    mark: str = ""


def branch_of(drawn: Timeline, *, most: int = _SIBLINGS) -> Branch:
    """The tree of a run.

    Args:
        drawn: The run.
        most: How many siblings are shown; the rest of them is summed up.
    """
    return _branch(drawn.root, drawn.now, most)


def _branch(row: Row, now: float, most: int) -> Branch:
    children, hidden = fold(row.children, most)
    return Branch(
        name=row.name,
        status=row.status,
        took=None if row.start is None else row.span,
        remark=_remark(row, now),
        children=[_branch(child, now, most) for child in children],
        hidden=hidden_text(hidden) if hidden else "",
    )


def _remark(row: Row, now: float) -> str:
    said = remarks(row, now)
    node = row.node
    failure = None if node is None else node.failure
    if row.status in ("failed", "retrying") and failure is not None and failure.causes:
        message = message_of(row)  # the step below that caused it says the same
        said = [each for each in said if each != message]
    word = [] if row.status == "done" else [row.status]
    return ", ".join([*word, *said])


# --- drawing --------------------------------------------------------------------------------------


def has_marks(encoding: str | None) -> bool:
    """Whether this encoding has the marks of the statuses."""
    try:
        "".join(MARKS.values()).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def marks_for(encoding: str | None) -> dict[RowStatus, str]:
    """The marks of the statuses, in characters that this encoding has."""
    return MARKS if has_marks(encoding) else ASCII_MARKS


def lines_of(branches: Sequence[Branch], marks: dict[RowStatus, str] | None = None) -> list[Line]:
    """The lines of some steps and of all that is drawn below them.

    Args:
        branches: The steps.
        marks: Of the statuses; those that the standard output can write by default.
    """
    marks = marks or marks_for(sys.stdout.encoding)
    rows = [row for branch in branches for row in _walk(branch, 0)]
    names = [
        2 * depth + 2 + columns(plain(each.name))
        for depth, each in rows
        if isinstance(each, Branch)
    ]
    width = min(max(names, default=0), _WIDEST)
    lines: list[Line] = []
    for depth, branch in rows:
        indent = "  " * depth
        if isinstance(branch, str):
            lines.append([(f"{indent}{branch}", "dim")])
            continue
        mark = branch.mark or marks[branch.status]
        name = pad(plain(branch.name), width - 2 * depth - columns(mark) - 1)
        took = "" if branch.took is None else duration_text(branch.took)
        quiet = branch.status in ("done", "not begun")
        lines.append(
            [
                (f"{indent}{mark} ", branch.status),
                (name, "not begun" if branch.status == "not begun" else ""),
                (f"  {took:>12}", "dim"),
                (f"  {branch.remark}" if branch.remark else "", "dim" if quiet else branch.status),
            ]
        )
    return lines


def _walk(branch: Branch, depth: int) -> Iterator[tuple[int, Branch | str]]:
    yield depth, branch
    for child in branch.children:
        yield from _walk(child, depth + 1)
    if branch.hidden:
        yield depth + 1, branch.hidden


def fit(branch: Branch, height: int) -> Branch:
    """The same tree in no more lines than this, if that is possible: what is done goes first."""
    if sum(1 for _ in _walk(branch, 0)) <= height:
        return branch
    return _without_done(branch)


def _without_done(branch: Branch) -> Branch:
    if branch.status == "done":
        return msgspec.structs.replace(branch, children=[], hidden="")
    return msgspec.structs.replace(branch, children=[_without_done(c) for c in branch.children])
