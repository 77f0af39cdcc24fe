"""Which steps are of the code, and which are items of data, as far as their names tell."""

from __future__ import annotations

import re

__all__ = ["ANY", "pattern_of"]

ANY = "*"

_TOKEN = re.compile(r"[^\W_]*\d[^\W_]*")  # letters and digits in a row, at least one a digit
_NUMBERED = re.compile(r"([^\W\d_]+)\d+")
_LONG_HEX = re.compile(r"[0-9a-fA-F]{8,}")


def pattern_of(name: str) -> str | None:
    """What a name has in common with those that differ from it only in numbers or ids.

    ``db-3`` and ``db-17`` are ``db-*``, ``nic2`` is ``nic*``, ``i-0a1b2c3d`` is ``i-*``.

    Returns:
        The pattern; ``None`` for a name without digits, which is like no other.
    """
    pattern = _TOKEN.sub(_blank, name)
    return None if pattern == name else pattern


def _blank(found: re.Match[str]) -> str:
    token = found[0]
    numbered = _NUMBERED.fullmatch(token)
    if numbered is None or _LONG_HEX.fullmatch(token):
        return ANY
    return numbered[1] + ANY
