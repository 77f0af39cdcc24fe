"""The tree as the records that a store keeps.

Pure. A store keeps one record per node: its key is the path, its bytes the node as JSON without
its children. Records have no order, so each holds its place among its siblings.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from operator import attrgetter

import msgspec

from ._paths import split
from ._state import State, check_tree, refuse_format, refuse_newer, settle, settle_node
from .errors import StateFormatError

__all__ = ["assemble", "encode_record", "snapshot", "tree_as_records"]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(State).decode
_by_place = attrgetter("place")


def encode_record(node: State) -> bytes:
    """One node, without its children."""
    settle_node(node)
    states = node.states
    if states is None:
        return _encode(node)
    node.states = None
    try:
        return _encode(node)
    finally:
        node.states = states


def tree_as_records(root: State) -> dict[str, bytes]:
    """A whole tree as records; numbers the places anew where they contradict the order."""
    for _, node in root.walk():
        children = node.states or ()
        if any(a.place >= b.place for a, b in pairwise(children)):
            for place, child in enumerate(children):
                child.place = place
    return {path: encode_record(node) for path, node in root.walk()}


def assemble(records: Mapping[str, bytes], what: str) -> State:
    """A tree from its records.

    Args:
        records: The records by path.
        what: Which run it is, for messages.

    Raises:
        StateFormatError: A record cannot be read, is newer, or does not fit the others.
    """
    nodes: dict[str, State] = {}
    path = ""
    try:
        for path, data in records.items():
            nodes[path] = _decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        refuse_newer(records.get("", b""), what)
        raise StateFormatError(f"{what}: record {path!r} is corrupt: {exc}") from exc
    root = nodes.get("")
    if root is None or root.run is None:
        raise StateFormatError(f"{what} has no root record: it is not a run of asteps")
    refuse_format(root.run.format, what)
    holder = next((path for path, node in nodes.items() if node.states is not None), None)
    if holder is not None:
        raise StateFormatError(f"{what}: record {holder!r} holds children of its own")
    del nodes[""]
    families: dict[str, list[State]] = {}
    for path, node in nodes.items():
        above, _, last = path.rpartition("/")
        if node.name != last and [node.name] != split(last):
            raise StateFormatError(f"{what}: record {path!r} holds a step named {node.name!r}")
        try:
            families[above].append(node)
        except KeyError:
            families[above] = [node]
    nodes[""] = root
    for path, family in families.items():
        if path not in nodes:
            raise StateFormatError(f"{what}: {path!r} has children, but no record")
        family.sort(key=_by_place)
        nodes[path].states = family
    check_tree(root, what)
    return root


def snapshot(node: State) -> State:
    """A copy of a node and what is below it, with datetimes for times."""
    return _decode(_encode(settle(node)))
