"""State that the Go library ``yang-zzhong/steps`` saved, as a document of ours.

Pure, and JSON to JSON: what comes out is read like any other document. What Go itself cannot resume
is defined here; ``docs/from-go.md`` has the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from ._paths import MAX_DEPTH
from .errors import StateFormatError

__all__ = ["translate"]

_ABSENT = Raw()


class _Node(msgspec.Struct, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    """A node as the Go library writes it, in any of its versions."""

    name: str = ""
    info: Raw = _ABSENT
    result: Raw = _ABSENT
    err: str | None = None
    errs: list[str] | None = None
    started_at: str | None = None  # as text: Go tells nanoseconds apart, a datetime does not
    done_at: str | None = None
    states: list[_Node] | None = None


class _Ours(msgspec.Struct, rename="camel", omit_defaults=True):
    """The same node as we write it; a node without the root's record of its run."""

    name: str
    info: Raw = _ABSENT
    result: Raw = _ABSENT
    errs: list[str] | None = None
    started_at: datetime | None = None
    done_at: datetime | None = None
    states: list[_Ours] | None = None
    place: int = 0


def translate(data: bytes | str, what: str) -> bytes:
    """The Go library's JSON as a document of ours.

    Raises:
        StateFormatError: It is not the Go library's either, or is nested too deep.
    """
    try:
        found = msgspec.json.decode(data, type=_Node)
    except RecursionError as exc:
        raise StateFormatError(f"{what} is nested deeper than {MAX_DEPTH} steps") from exc
    except (msgspec.MsgspecError, UnicodeError, TypeError) as exc:
        raise StateFormatError(f"{what} is not a state of asteps or of steps: {exc}") from exc
    try:
        root = _adopt(found, 0, what)
    except msgspec.ValidationError as exc:
        raise StateFormatError(f"{what} has a time that cannot be read: {exc}") from exc
    if not root.errs:
        root.done_at = None  # Go sets it after every step: it does not say that the run has ended
    return msgspec.json.encode(root)


def _adopt(found: _Node, depth: int, what: str) -> _Ours:
    if depth > MAX_DEPTH:
        raise StateFormatError(f"{what} is nested deeper than {MAX_DEPTH} steps")
    children = _regroup([_adopt(c, depth + 1, what) for c in _distinct(found.states or ())], what)
    errs = found.errs or ([found.err] if found.err else None)
    done_at = _time(found.done_at)
    node = _Ours(
        found.name,
        info=_present(found.info),
        result=_present(found.result),
        started_at=_time(found.started_at) or done_at,
        states=children or None,
    )
    # The doneAt of a parent is that of whichever child came last.
    if errs or all(c.done_at is not None for c in children):
        node.done_at = done_at
        node.errs = errs if done_at else None
    return node


def _time(text: str | None) -> datetime | None:
    return None if text is None else msgspec.convert(text, Annotated[datetime, Meta(tz=True)])


def _present(raw: Raw) -> Raw:
    return _ABSENT if bytes(raw) in (b"", b"null") else raw


def _distinct(children: Sequence[_Node]) -> list[_Node]:
    """Without the copies of unnamed steps that a second pass appends: they begin alike.

    Those of named steps go with their name. One dropped by mistake only runs again.
    """
    kept: list[_Node] = []
    begun: set[str] = set()
    for child in children:
        if child.name or child.started_at is None:
            kept.append(child)
        elif child.started_at not in begun:
            begun.add(child.started_at)
            kept.append(child)
    return kept


def _regroup(children: Sequence[_Ours], what: str) -> list[_Ours]:
    """First of duplicates wins, no name becomes ``#i``, a flat ``g:w`` is ``w`` below ``g``."""
    plain = {c.name for c in children}
    if odd := next((name for name in plain if name[:1] in {"#", "$"}), None):
        raise StateFormatError(
            f"{what} has a step named {odd!r}: {odd[0]!r} is kept for asteps, and no code could "
            "ask for it; rename the step in the file"
        )
    kept: dict[str, _Ours] = {}
    members: dict[str, list[_Ours]] = {}
    for child in children:
        group, colon, name = child.name.partition(":")
        if colon and group and group not in plain:
            if group not in members:
                members[group] = []
                kept[group] = _Ours(group)
            child.name = name
            members[group].append(child)
        else:
            child.name = child.name or f"#{len(kept)}"
            kept.setdefault(child.name, child)
    for group, found in members.items():
        _close_group(kept[group], _regroup(found, what))
    for place, child in enumerate(kept.values()):
        child.place = place
    return list(kept.values())


def _close_group(group: _Ours, members: list[_Ours]) -> None:
    """What a group came to, which Go does not write down, from what its members came to."""
    group.states = members
    group.started_at = min((m.started_at for m in members if m.started_at), default=None)
    ends = [m.done_at for m in members if m.done_at is not None]
    if len(ends) == len(members):
        group.done_at = max(ends)
        group.errs = [f"{m.name}: {e}" for m in members for e in m.errs or ()] or None
