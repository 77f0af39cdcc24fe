"""What operators do with stored runs: look, list, edit, delete."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import TypeVar

import anyio
import msgspec
from msgspec.structs import replace

from ._clock import SystemClock
from ._codec import assemble
from ._options import check_id
from ._saver import until_known
from ._session import changed_records
from ._state import State, instant, seconds
from ._store import LeaseStore, ListStore, Status, Store, Summary
from .errors import StoreUnavailableError, UncertainWriteError, UsageError

__all__ = ["RunSummary", "delete_run", "edit_run", "list_runs", "load_state"]

T = TypeVar("T")

_LEASE = 30.0  # seconds that an edit may be held, and that its save is repeated


class RunSummary(msgspec.Struct, frozen=True):
    """One line of a listing.

    Attributes:
        id: The run.
        name: Name of its root function.
        status: ``proceeding``, ``pending``, ``done`` or ``failed``.
        owner: Who holds it, or held it when it was last saved; ``None`` when nobody does.
        epoch: Number of that holder.
        created_at: When it was first saved.
        updated_at: When it was last saved.
        wake_at: When a pending run is due.
        done_at: When it ended.
    """

    id: str
    name: str
    status: Status
    owner: str | None
    epoch: int
    created_at: datetime | None
    updated_at: datetime | None
    wake_at: datetime | None
    done_at: datetime | None


async def load_state(store: Store, id: str, /) -> State | None:
    """The tree of a stored run as it was last saved; ``None`` where there is no such run.

    Changing it changes nothing in the store: see `edit_run`.

    Raises:
        StateFormatError: What is stored is corrupt or newer.
        StoreError: It could not be read.
    """
    stored = await store.load(check_id(id))
    return None if stored is None else assemble(stored.records, f"run {id!r}")


@asynccontextmanager
async def edit_run(store: Store, id: str, /) -> AsyncIterator[State]:
    """Change a stored run that nobody advances.

    ::

        async with edit_run(store, "vm-42") as state:
            state.recover()

    What the block did to the tree is saved once, when it ends; an exception in it saves nothing.

    Args:
        store: Where the run lives.
        id: The run.

    Raises:
        UsageError: There is no such run.
        BusyError: Somebody is advancing it.
        ConflictError: It was changed meanwhile; nothing was written.
        StoreError: It could not be read or written.
    """
    owner: str | None = None
    check_id(id)
    if isinstance(store, LeaseStore):
        owner = await store.acquire(id, seconds=_LEASE)
    try:
        stored = await store.load(id)
        if stored is None:
            raise UsageError(f"there is no run {id!r}")
        root = assemble(stored.records, f"run {id!r}")
        epoch, revision = stored.summary.epoch + 1, stored.revision
        writer = os.urandom(8).hex()

        async def save(changes: Mapping[str, bytes | None], summary: Summary, nth: int) -> str:
            return await _known(
                partial(
                    store.save,
                    id,
                    changes,
                    expected=revision,
                    epoch=epoch,
                    write_id=f"{writer}.{nth}",
                    summary=summary,
                )
            )

        released = replace(stored.summary, epoch=epoch, owner=None)
        changes: Mapping[str, bytes | None] = {}
        try:
            if owner is not None:
                revision = await save({}, replace(released, owner=owner), 1)
            yield root
            changes = changed_records(stored.records, root)
            if changes:
                released = _summary(root, released)
        finally:
            with anyio.CancelScope(shield=True):
                if owner is not None and revision == stored.revision:
                    # It may have been cancelled, or failed, before the answer came.
                    head = await store.load(id)
                    if head is not None and head.summary.owner == owner:
                        revision = head.revision
                if changes or revision != stored.revision:
                    await save(changes, released, 2)
    finally:
        if isinstance(store, LeaseStore):
            store.release(id)


async def _known(call: Callable[[], Awaitable[T]]) -> T:
    try:
        return await call()
    except (StoreUnavailableError, UncertainWriteError):
        return await until_known(call, SystemClock(), _LEASE)


def _summary(root: State, was: Summary) -> Summary:
    """The summary of an edited tree."""
    status: Status = "pending"  # runnable at once, unless it waits
    now = wake_at = SystemClock.now()
    if root._done is not None:
        status = "failed" if root.errs else "done"
    elif root.pending:
        times = [n.detail.wake_at for _, n in root.walk() if n.detail is not None and n.pending]
        wake_at = min((t for t in map(seconds, times) if t is not None), default=now)
    return replace(
        was,
        status=status,
        updated_at=now,
        wake_at=wake_at if status == "pending" else None,
        done_at=seconds(root._done),
    )


async def list_runs(
    store: Store,
    /,
    *,
    status: Status | None = None,
    name: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> list[RunSummary]:
    """The runs of a store, in the order of their ids.

    Args:
        store: A store that can list.
        status: Only runs of this status.
        name: Only runs of this root function.
        after: Only ids after this one: the last of the page before.
        limit: How many at most.

    Raises:
        UsageError: The store cannot list runs.
        StoreError: It could not be read.
    """
    if not isinstance(store, ListStore):
        raise UsageError(f"{type(store).__name__} cannot list its runs")
    found = await store.list_runs(status=status, name=name, after=after, limit=limit)
    return [
        RunSummary(
            id=id,
            name=s.name,
            status=s.status,
            owner=s.owner,
            epoch=s.epoch,
            created_at=instant(s.created_at),
            updated_at=instant(s.updated_at),
            wake_at=instant(s.wake_at),
            done_at=instant(s.done_at),
        )
        for id, s in found
    ]


async def delete_run(store: Store, id: str, /) -> bool:
    """Remove a stored run that nobody advances.

    Returns:
        Whether there was one.

    Raises:
        BusyError: Somebody is advancing it.
        ConflictError: It was changed meanwhile; nothing was removed.
        StoreError: It could not be removed.
    """
    check_id(id)
    if isinstance(store, LeaseStore):
        await store.acquire(id, seconds=_LEASE)
    try:
        stored = await store.load(id)
        if stored is None:
            return False
        await _known(partial(store.delete, id, expected=stored.revision))
    finally:
        if isinstance(store, LeaseStore):
            store.release(id)
    return True
