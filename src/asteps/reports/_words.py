"""How reports say things: statuses, durations, times, and text that anybody may have written.

Names, messages, infos and results are hostile until proven otherwise: `plain` leaves nothing in
them that moves a cursor, changes a colour or turns the direction of a line.
"""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from .. import _picture
from .._state import ABSENT, Payload, seconds
from ._timeline import RowStatus

__all__ = [
    "ASCII_MARKS",
    "MARKS",
    "columns",
    "cut",
    "duration_text",
    "instant_text",
    "lines_of",
    "pad",
    "payload_text",
    "plain",
    "share_text",
    "time_text",
]

Side: TypeAlias = Literal["left", "right"]

MARKS: dict[RowStatus, str] = dict(
    [*_picture.MARKS.items(), ("interrupted", "!"), ("reopened", "↺")]
)
ASCII_MARKS: dict[RowStatus, str] = {
    "done": "+",
    "failed": "x",
    "pending": "~",
    "retrying": "%",
    "proceeding": ">",
    "interrupted": "!",
    "reopened": "<",
    "not begun": ".",
}

_MOST_MARKS = 3  # combining characters on one; more would reach into the lines around

# --- text from outside ----------------------------------------------------------------------------


def plain(text: str) -> str:
    r"""Text as one line that shows as what it is.

    Control, format and bidirectional characters, surrogates, odd spaces and line ends become
    escapes such as ``\x1b``; so do combining characters that pile up.
    """
    if text.isprintable() and text.isascii():
        return text
    made: list[str] = []
    piled = 0
    for char in text:
        piled = piled + 1 if not char.isascii() and _is_mark(char) else 0
        made.append(char if char.isprintable() and piled <= _MOST_MARKS else _escaped(char))
    return "".join(made)


def lines_of(text: str) -> list[str]:
    """Text of several lines, such as a traceback, each line `plain`; tabs are spaces."""
    return [plain(line) for line in text.expandtabs(4).split("\n")]


def _is_mark(char: str) -> bool:
    return unicodedata.category(char) in ("Mn", "Me")


def _escaped(char: str) -> str:
    code = ord(char)
    if code <= 0xFF:
        return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def payload_text(payload: Payload, most: int) -> str:
    """An info or a result as one line of JSON, shortened; ``""`` if there is none."""
    if payload is ABSENT:
        return ""
    view = memoryview(payload)
    size = view.nbytes
    text = plain(bytes(view[: most * 4]).decode("utf-8", "replace").replace("\n", " "))
    if len(text) <= most and size <= most * 4:
        return text
    return f"{text[:most]}… ({size:,} bytes)"


# --- columns --------------------------------------------------------------------------------------


def columns(text: str) -> int:
    """How many columns of a terminal a line takes: East Asian wide characters take two."""
    if text.isascii():
        return len(text)
    return sum(_columns(char) for char in text)


def _columns(char: str) -> int:
    if _is_mark(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, most: int, more: str = "…") -> str:
    """A line that takes at most so many columns; what was cut off is ``more``."""
    if columns(text) <= most:
        return text
    room = most - columns(more)
    if room < 0:
        return more[: max(most, 0)]
    taken = 0
    for place, char in enumerate(text):
        taken += _columns(char)
        if taken > room:
            return text[:place] + more
    return text


def pad(text: str, width: int, side: Side = "left") -> str:
    """A line filled up with spaces, so that it takes so many columns."""
    space = " " * (width - columns(text))
    return text + space if side == "left" else space + text


# --- numbers --------------------------------------------------------------------------------------


def duration_text(took: float) -> str:
    """Seconds for readers: three digits or two units, and never more than there were."""
    if took < 0.0995:
        return f"{took * 1000:.0f} ms" if took else "0 s"
    if took < 9.995:
        return f"{took:.2f} s"
    if took < 59.95:
        return f"{took:.1f} s"
    whole = round(took)
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(took / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(took / 3_600)
    return f"{hours // 24} d {hours % 24:02d} h"


def share_text(part: float, whole: float) -> str:
    """A part in per cent of the whole."""
    return f"{100 * part / whole:.0f} %" if whole > 0 else "0 %"


def instant_text(at: float | datetime) -> str:
    """A time with its date, to the second, in UTC."""
    return f"{_datetime(at):%Y-%m-%d %H:%M:%S} UTC"


def time_text(at: float | datetime, beside: float) -> str:
    """A time to the second; with its date where that is another day than ``beside``."""
    when, other = _datetime(at), _datetime(beside)
    return f"{when:%H:%M:%S}" if when.date() == other.date() else f"{when:%Y-%m-%d %H:%M:%S}"


def _datetime(at: float | datetime) -> datetime:
    value = seconds(at)
    return datetime.fromtimestamp(value or 0.0, UTC)
