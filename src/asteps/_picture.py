"""A plan as a picture: a tree of text, and a flowchart of Mermaid. Pure.

Names of tasks are anybody's: no character of theirs reaches a terminal or a page's markup as more
than a character.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import msgspec

__all__ = ["MARKS", "Box", "Status", "as_flowchart", "as_tree", "encoded"]

Status: TypeAlias = Literal["done", "failed", "pending", "retrying", "proceeding", "not begun"]

_MOST = 5  # names that a line of text lists before it says how many more there are
MARKS: dict[Status, str] = {
    "done": "✓",
    "failed": "✗",
    "pending": "…",
    "retrying": "↻",
    "proceeding": "▶",
    "not begun": "·",
}
_COLOURS: dict[Status, str] = {  # dark text on a light ground, so that it reads on any page
    "done": "fill:#d5ecd4,stroke:#2f7d32,color:#12330f",
    "failed": "fill:#f8d3d0,stroke:#b3261e,color:#4a0d09,stroke-width:3px",
    "pending": "fill:#fdebc8,stroke:#9a6a00,color:#3f2b00,stroke-dasharray:5 3",
    "retrying": "fill:#fbdcc4,stroke:#a84b00,color:#431e00,stroke-dasharray:2 2",
    "proceeding": "fill:#d3e4f8,stroke:#1d5fa8,color:#0b2747",
    "not begun": "fill:#eeeeee,stroke:#757575,color:#333333",
}


class Box(msgspec.Struct, frozen=True):
    """One task, as it is drawn.

    Attributes:
        name: The task's.
        after: Places of the tasks beside it that it comes after.
        remarks: What else there is to say of it.
        below: The tasks that it is made of.
        status: What its step has come to; ``None`` where no run is looked at.
    """

    name: str
    after: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()
    below: tuple[Box, ...] = ()
    status: Status | None = None


# --- text -----------------------------------------------------------------------------------------


def as_tree(name: str, boxes: Sequence[Box]) -> str:
    """The tasks as a tree; a task without a remark comes after the one above it."""
    lines = list(_lines(boxes, ""))
    width = max((len(line) for line, remarks in lines if remarks), default=0)
    drawn = [f"{line:<{width}}  {remarks}" if remarks else line for line, remarks in lines]
    return "\n".join([_plain(name), *drawn])


def _lines(boxes: Sequence[Box], indent: str) -> Iterator[tuple[str, str]]:
    for place, box in enumerate(boxes):
        last = place == len(boxes) - 1
        mark = "" if box.status is None else f"{MARKS[box.status]} "
        remarks = "; ".join(filter(None, [_place(boxes, place), *box.remarks]))
        yield f"{indent}{'└─' if last else '├─'} {mark}{_plain(box.name)}", remarks
        yield from _lines(box.below, indent + ("   " if last else "│  "))


def _place(boxes: Sequence[Box], place: int) -> str:
    """What a task comes after, unless it is the one above it."""
    after = boxes[place].after
    if after == (place - 1,) or place == 0:
        return ""
    if not after:
        return "at once"
    shown = after if len(after) <= _MOST + 1 else after[:_MOST]
    more = f" and {len(after) - _MOST} more" if shown is not after else ""
    return f"after {', '.join(_plain(boxes[n].name) for n in shown)}{more}"


def _plain(name: str) -> str:
    """A name without what changes how the text around it is shown."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in name)


# --- Mermaid --------------------------------------------------------------------------------------


def as_flowchart(boxes: Sequence[Box]) -> str:
    """The tasks as a flowchart from top to bottom; tasks made of tasks are frames around them."""
    found: dict[Status, list[str]] = {}
    lines = ["flowchart TD", *_nodes(boxes, "t", "    ", found)]
    for status, ids in found.items():
        style = status.replace(" ", "_")
        lines.append(f"    classDef {style} {_COLOURS[status]}")
        lines.append(f"    class {','.join(ids)} {style}")
    return "\n".join(lines)


def _nodes(
    boxes: Sequence[Box], prefix: str, indent: str, found: dict[Status, list[str]]
) -> Iterator[str]:
    for place, box in enumerate(boxes):
        own = f"{prefix}{place}"
        mark = ""
        if box.status is not None:
            found.setdefault(box.status, []).append(own)
            mark = f"{MARKS[box.status]} "
        label = f'{own}["{encoded(mark + _plain(box.name))}"]'
        if box.below:
            yield f"{indent}subgraph {label}"
            yield f"{indent}    direction TB"
            yield from _nodes(box.below, f"{own}_", indent + "    ", found)
            yield f"{indent}end"
        else:
            yield f"{indent}{label}"
    for place, box in enumerate(boxes):
        for before in box.after:
            yield f"{indent}{prefix}{before} --> {prefix}{place}"


def encoded(label: str, also: str = " _") -> str:
    """A label of which Mermaid reads nothing but the text: all else are its entities.

    Mermaid keeps entities as the ligature fl, degree signs and numbers, and turns such text into
    characters twice. Without the ligature no name can make markup of that.

    Args:
        label: The text.
        also: Characters that may stay as they are, beside letters and digits.
    """
    plain = label.replace("\ufb02", "fl")
    return "".join(c if c.isalnum() or c in also else f"#{ord(c)};" for c in plain)
