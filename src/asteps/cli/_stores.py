"""The store that a command line names, and the runs in it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio

from .._codec import assemble
from .._options import MAX_ID
from .._state import State
from .._store import LeaseStore, ListStore, Store, StoredRun
from ..errors import BusyError, StateFormatError, StoreError, UsageError
from ..stores._urls import open_store, scheme_of
from ._exits import Exits, Stop

__all__ = [
    "Found",
    "find_run",
    "holder_of",
    "in_store",
    "opened",
    "speakable",
    "step_of",
    "tree_of",
]

T = TypeVar("T")

_CANDIDATES = 5  # ids that a message names where more than one could be meant


class Found:
    """A run that was asked for.

    Attributes:
        id: Its whole id.
        stored: What the store has of it.
        holder: Who advances it, if somebody does.
    """

    def __init__(self, id: str, stored: StoredRun, holder: BusyError | None) -> None:
        self.id = id
        self.stored = stored
        self.holder = holder

    @property
    def held(self) -> bool:
        """Whether somebody advances the run."""
        return self.holder is not None

    def tree(self) -> State:
        """Its tree, another one with each call."""
        return tree_of(self.id, self.stored)

    def steps(self) -> int:
        """How many steps it has, also where they cannot be read."""
        try:
            return sum(1 for _ in self.tree().walk()) - 1
        except StateFormatError:
            return len(self.stored.records) - 1


def tree_of(id: str, stored: StoredRun) -> State:
    """The tree of a run."""
    return assemble(stored.records, f"run {id!r}")


def in_store(url: str, do: Callable[[Store], Awaitable[T]], *, create: bool = False) -> T:
    """Open a store, do something with it in an event loop, and close it."""

    async def work() -> T:
        async with opened(url, create=create) as store:
            return await do(store)

    return anyio.run(work)


@asynccontextmanager
async def opened(url: str, *, create: bool = False) -> AsyncGenerator[Store]:
    """The store of a URL, or of a path.

    Raises:
        Stop: There is none.
    """
    manager = open_store(url, create=create)
    try:
        store = await manager.__aenter__()
    except UsageError as exc:
        raise Stop(Exits.NOT_FOUND, str(exc)) from exc
    try:
        yield store
    finally:
        await manager.__aexit__(None, None, None)


def speakable(url: str) -> str:
    """How a report may name the store: what another kind's URL says may be a password."""
    return url if scheme_of(url) in (None, "sqlite", "file", "kubernetes") else "STORE"


async def find_run(store: Store, id: str, /, *, whole: bool = False) -> Found:
    """The run of an id, or the only one whose id begins so.

    Args:
        store: Where to look.
        id: The id, or its beginning.
        whole: The id must be whole.

    Raises:
        Stop: There is no such run, or more than one could be meant.
    """
    if not _may_be_an_id(id):
        raise Stop(Exits.NOT_FOUND, _not_the_one(id, [], whole=whole))
    try:
        stored = await store.load(id)
    except StateFormatError as exc:
        raise Stop(Exits.STORE, str(exc)) from exc
    if stored is None:
        candidates = await _beginning(store, id)
        if whole or len(candidates) != 1:
            raise Stop(Exits.NOT_FOUND, _not_the_one(id, candidates, whole=whole))
        id = candidates[0]
        stored = await store.load(id)
        if stored is None:  # it was removed just now
            raise Stop(Exits.NOT_FOUND, _not_the_one(id, [], whole=whole))
    holder = await holder_of(store, id, stored.summary.owner)
    return Found(id, stored, holder)


def _may_be_an_id(text: str) -> bool:
    """Whether a store can be asked for it; other writers allow more than the engine does."""
    try:
        text.encode()
    except UnicodeEncodeError:  # a byte of the command line that is no text
        return False
    return 0 < len(text) <= MAX_ID


async def _beginning(store: Store, id: str) -> list[str]:
    """The first runs whose ids begin so."""
    if not isinstance(store, ListStore):
        return []
    found = await store.list_runs(after=id, limit=_CANDIDATES + 1)
    return [each for each, _ in found if each.startswith(id)]


def _not_the_one(id: str, candidates: list[str], *, whole: bool) -> str:
    if not candidates:
        return f"there is no run {id!r} in this store"
    named = ", ".join(map(repr, candidates[:_CANDIDATES]))
    named += ", …" if len(candidates) > _CANDIDATES else ""
    if whole and len(candidates) == 1:
        return f"there is no run {id!r}; with --yes the whole id is needed: {named}"
    return f"{id!r} could be {named}: say more of the id"


async def holder_of(store: Store, id: str, owner: str | None) -> BusyError | None:
    """Who advances a run; ``None`` if nobody does, or the store knows nothing of that."""
    if owner is None or not isinstance(store, LeaseStore):
        return None
    try:
        await store.acquire(id, seconds=1)
    except BusyError as exc:
        return exc
    except StoreError:  # it may only be read: then it is not known whether the owner lives
        return BusyError(id, owner)
    store.release(id)
    return None


def step_of(state: State, path: str) -> State:
    """The step at a path.

    Raises:
        Stop: There is none.
    """
    try:
        return state.get(path)
    except UsageError as exc:
        raise Stop(Exits.NOT_FOUND, str(exc)) from exc
