"""What is written, and how: plain text to a pipe, colours to a terminal, JSON for programs.

All text goes through `plain` right before it is written. So nothing that anybody may have put into
a store (ids, names, messages, results) can move a cursor, change a colour or retitle a window.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO, TypeAlias

import msgspec

from ..reports._words import columns, pad, plain
from ._exits import Exits, Stop

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = [
    "Line",
    "Span",
    "as_json",
    "console_for",
    "is_screen",
    "is_styled",
    "rich_text",
    "safe_json",
    "silence",
    "table",
    "write_document",
    "write_error",
    "write_json",
    "write_lines",
]

Span: TypeAlias = tuple[str, str]
"""A piece of text, and its style: a key of `_STYLES`, or none."""
Line: TypeAlias = Sequence[Span]

_STYLES = {
    "": "",
    "head": "bold",
    "dim": "dim",
    "done": "green",
    "failed": "bold red",
    "pending": "yellow",
    "retrying": "yellow",
    "proceeding": "bold cyan",
    "interrupted": "bold magenta",
    "reopened": "cyan",
    "not begun": "dim",
}
_UNSAFE = re.compile(r"[^ -~]")
_NO_EDGE = 10_000  # columns of what is no terminal: nothing is cut off

# --- lines ----------------------------------------------------------------------------------------


def is_screen(file: TextIO) -> bool:
    """Whether it is a terminal on which a picture can be drawn again in the same place."""
    return file.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def is_styled(file: TextIO) -> bool:
    """Whether somebody is to see colours: on a terminal, or wherever FORCE_COLOR asks for them."""
    return bool(os.environ.get("FORCE_COLOR")) or is_screen(file)


def console_for(file: TextIO) -> Console:
    """Rich's console on a file; it respects NO_COLOR and the terminal's width."""
    from rich.console import Console  # noqa: PLC0415 - only where a terminal is written to

    width = None if file.isatty() else _NO_EDGE
    return Console(
        file=file, width=width, force_terminal=True, highlight=False, markup=False, emoji=False
    )


def rich_text(lines: Iterable[Line]) -> Text:
    """Lines for Rich; what is in them is text and nothing else."""
    from rich.text import Text  # noqa: PLC0415 - likewise

    made = Text()
    for place, line in enumerate(lines):
        if place:
            made.append("\n")
        for text, style in line:
            made.append(plain(text), _STYLES[style])
    return made


def write_lines(lines: Iterable[Line], *, wrap: bool = False, file: TextIO | None = None) -> None:
    """Write lines: to a terminal coloured and cut at its width, anywhere else plain and whole.

    Args:
        lines: The lines.
        wrap: Whether lines that are too long for a terminal go on in the next one.
        file: Where to; the standard output by default.
    """
    out = sys.stdout if file is None else file
    with _writing(out):
        if is_styled(out):
            how = {} if wrap else {"no_wrap": True, "overflow": "ellipsis"}
            text = rich_text(lines)
            if text:
                console_for(out).print(text, **how)  # type: ignore[arg-type]
        else:
            for line in lines:
                out.write("".join(plain(text) for text, _ in line).rstrip() + "\n")
        out.flush()


def write_document(text: str, *, escape: bool) -> None:
    """Write a report to the standard output.

    Args:
        text: The document.
        escape: Whether what could control a terminal is escaped also where none is written to.
    """
    if escape or sys.stdout.isatty():
        text = "\n".join(plain(line) for line in text.split("\n"))
    with _writing(sys.stdout):
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()


@contextmanager
def _writing(out: TextIO) -> Generator[None]:
    try:
        yield
    except BrokenPipeError:
        raise Stop(Exits.NO_READER) from None
    except OSError as exc:
        silence(out)
        raise Stop(Exits.STORE, f"the output cannot be written: {exc.strerror}") from exc


def write_error(message: str) -> None:
    """Say in one line what went wrong."""
    try:
        sys.stderr.write(f"asteps: {plain(message)}\n")
        sys.stderr.flush()
    except OSError:  # the exit code says it, too
        silence(sys.stderr)


def silence(out: TextIO) -> None:
    """Write nowhere from now on: not what is left in the buffer either, when the process ends."""
    with suppress(OSError):  # it is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, out.fileno())
        os.close(nowhere)


def table(rows: Sequence[Line], right: Iterable[int] = ()) -> list[Line]:
    """Rows whose cells stand below one another; the last one of a row is as long as it likes.

    Args:
        rows: One span for each cell.
        right: Which columns are flush right.
    """
    if not rows:
        return []
    flush = frozenset(right)
    shown = [[(plain(text), style) for text, style in row] for row in rows]
    last = max(map(len, shown)) - 1
    widths = [
        max((columns(row[place][0]) for row in shown if place < len(row)), default=0)
        for place in range(last)
    ]
    made: list[Line] = []
    for row in shown:
        cells: list[Span] = []
        for place, (text, style) in enumerate(row):
            if place < last:
                text = pad(text, widths[place], "right" if place in flush else "left")  # noqa: PLW2901
            cells += [("  ", "")] if place else []
            cells.append((text, style))
        made.append(cells)
    return made


# --- JSON -----------------------------------------------------------------------------------------


def safe_json(text: str) -> str:
    """A JSON document in which no character could control a terminal; it means the same."""
    return "\n".join(
        line if line.isprintable() and _can_say(line) else _UNSAFE.sub(_escape, line)
        for line in text.split("\n")
    )


def _can_say(text: str) -> bool:
    """Whether the standard output has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    return char if char.isprintable() and _can_say(char) else json.dumps(char)[1:-1]


def as_json(value: object) -> str:
    """A value as an indented JSON document."""
    return safe_json(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def write_json(value: object) -> None:
    """Write a document for programs."""
    write_document(as_json(value), escape=False)
