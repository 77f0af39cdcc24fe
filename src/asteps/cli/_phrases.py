"""What people write on a command line, and how long ago something was."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta

from ..reports._words import duration_text
from ._exits import Exits, Stop

__all__ = ["ago", "counted", "parse_choice", "parse_duration", "parse_number"]

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])", re.ASCII)
_WHOLE = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_DIGITS = 9
_LONGEST = 366 * 1_000 * 86_400.0  # a thousand years: a slip of the keyboard, and no calendar's end


def parse_duration(text: str, option: str) -> timedelta:
    """What somebody wrote, as a duration.

    Raises:
        Stop: It is none.
    """
    if _WHOLE.fullmatch(text):
        found = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
        if found <= _LONGEST:
            return timedelta(seconds=found)
    raise Stop(Exits.USAGE, f"{option} {text!r} is no duration; say 90s, 15m, 2h30m, 7d or 4w")


def parse_number(text: str, option: str, least: int) -> int:
    """What somebody wrote, as a whole number.

    Raises:
        Stop: It is none, or too small.
    """
    if text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) >= least:
        return int(text)
    raise Stop(Exits.USAGE, f"{option} {text!r} is no number from {least}")


def parse_choice(text: str, option: str, choices: Iterable[str]) -> str:
    """One of the words that can be said.

    Raises:
        Stop: It is none of them.
    """
    if text.lower() in (known := tuple(choices)):
        return text.lower()
    raise Stop(Exits.USAGE, f"{option} {text!r} is none of {', '.join(known)}")


def ago(then: float, now: float) -> str:
    """How long ago something was: ``3 min 02 s ago``."""
    return f"{duration_text(now - then)} ago" if now - then >= 1 else "just now"


def counted(count: int, noun: str) -> str:
    """So many of something: ``1 step``, ``2,000 steps``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
