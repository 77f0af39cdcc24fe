"""The tree as the records that a store keeps.

Pure. A store keeps one record per node: its key is the path, its bytes the node as JSON without
its children. Records have no order, so each holds its place among its siblings. For a store that
folds, what is done becomes one record with all that is below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from operator import attrgetter

import msgspec

from ._paths import join, split
from ._state import State, check_tree, refuse_format, refuse_newer, settle, settle_node
from .errors import StateFormatError

__all__ = ["Folding", "assemble", "encode_record", "snapshot", "tree_as_records"]

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


def tree_as_records(root: State, *, fold: bool = False) -> dict[str, bytes]:
    """A whole tree as records; numbers the places anew where they contradict the order.

    Args:
        root: The tree.
        fold: Make one record of each subtree that is done.
    """
    for _, node in root.walk():
        children = node.states or ()
        if any(a.place >= b.place for a, b in pairwise(children)):
            for place, child in enumerate(children):
                child.place = place
    if not fold:
        return {path: encode_record(node) for path, node in root.walk()}
    written = Folding(root, ()).changes({"": root})
    return {path: data for path, data in written.items() if data is not None}


def _may_fold(node: State) -> bool:
    return node._done is not None and not node.errs and bool(node.states)


class Folding:
    """What to write so that each finished subtree of a tree is one record.

    A subtree is unfolded when something in it is taken up again, and folded when it is done.

    Args:
        root: The tree, as it changes.
        keys: The records that the store has of it.
    """

    def __init__(self, root: State, keys: Iterable[str]) -> None:
        self._root = root
        self._keys = set(keys)
        self._folded = {
            path
            for path, node in root.walk()
            if path in self._keys
            and any(join(path, child.name) not in self._keys for child in node.states or ())
        }

    def changes(self, touched: Mapping[str, State | None]) -> dict[str, bytes | None]:
        """What to save of a tree in which these nodes changed, or (``None``) are gone."""
        changes: dict[str, bytes | None] = {}
        for path, node in touched.items():
            if node is None:
                self._remove(path, changes)
                holder, whole = self._top(path, self._root)
                if holder != path:
                    self._write(holder, whole, changes)
        for path, node in touched.items():
            if node is not None:
                self._write(*self._top(path, node), changes)
        self._keys.difference_update(key for key, data in changes.items() if data is None)
        self._keys.update(key for key, data in changes.items() if data is not None)
        return changes

    def _top(self, path: str, node: State) -> tuple[str, State]:
        """The record that a node belongs to or has been in: its own, or that of an ancestor."""
        above, at = "", self._root
        for name in split(path):
            if _may_fold(at) or above in self._folded:
                return above, at
            child = at.child(name)
            if child is None:  # it is gone
                break
            above, at = join(above, name), child
        return path, node

    def _write(self, path: str, node: State, changes: dict[str, bytes | None]) -> None:
        if changes.get(path) is not None:
            return
        if _may_fold(node):
            changes[path] = _encode(settle(node))
            below = f"{path}/" if path else ""
            for key in self._keys:
                if key.startswith(below) and key != path:
                    self._remove(key, changes)
            for key in [key for key in changes if key.startswith(below) and key != path]:
                self._remove(key, changes)
            self._folded.add(path)
            return
        changes[path] = encode_record(node)
        self._folded.discard(path)
        for child in node.states or ():
            where = join(path, child.name)
            if where not in self._keys:
                self._write(where, child, changes)

    def _remove(self, path: str, changes: dict[str, bytes | None]) -> None:
        self._folded.discard(path)
        if path in self._keys:
            changes[path] = None
        else:
            changes.pop(path, None)


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
    folded = {path for path, node in nodes.items() if node.states is not None}
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
        if path in folded:
            raise StateFormatError(f"{what}: record {path!r} holds children that have records too")
        family.sort(key=_by_place)
        nodes[path].states = family
    check_tree(root, what)
    return root


def snapshot(node: State) -> State:
    """A copy of a node and what is below it, with datetimes for times."""
    return _decode(_encode(settle(node)))
