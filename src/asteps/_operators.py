"""What operators do with one stored run: look, edit, move it elsewhere, delete."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import anyio
from msgspec import structs

from ._clock import SystemClock
from ._codec import assemble, tree_as_records
from ._options import check_id
from ._saver import until_known
from ._session import changed_records
from ._state import State, latest_time, put_down, seconds, settle
from ._store import FoldStore, LeaseStore, Status, Store, StoredRun, Summary
from .errors import StoreUnavailableError, UncertainWriteError, UsageError

__all__ = [
    "delete_if",
    "delete_run",
    "edit_run",
    "export_run",
    "import_run",
    "load_state",
    "put_run",
]

T = TypeVar("T")

_LEASE = 30.0  # seconds that an edit may be held, and that its save is repeated


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

        released = structs.replace(stored.summary, epoch=epoch, owner=None)
        changes: Mapping[str, bytes | None] = {}
        try:
            if owner is not None:
                revision = await save({}, structs.replace(released, owner=owner), 1)
            yield root
            changes = changed_records(stored.records, root, fold=isinstance(store, FoldStore))
            if changes:
                put_down(root, stored.summary.updated_at)
                changes = changed_records(stored.records, root, fold=isinstance(store, FoldStore))
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
    return structs.replace(
        was,
        status=status,
        updated_at=now,
        wake_at=wake_at if status == "pending" else None,
        done_at=seconds(root._done),
    )


async def delete_run(store: Store, id: str, /) -> bool:
    """Remove a stored run that nobody advances.

    Returns:
        Whether there was one.

    Raises:
        BusyError: Somebody is advancing it.
        ConflictError: It was changed meanwhile; nothing was removed.
        StoreError: It could not be removed.
    """
    return await delete_if(store, id, lambda _: True)


async def delete_if(store: Store, id: str, condition: Callable[[StoredRun], bool], /) -> bool:
    """Remove a stored run that nobody advances, if it is as it has to be.

    Returns:
        Whether it was removed.
    """
    check_id(id)
    if isinstance(store, LeaseStore):
        await store.acquire(id, seconds=_LEASE)
    try:
        stored = await store.load(id)
        if stored is None or not condition(stored):
            return False
        await _known(partial(store.delete, id, expected=stored.revision))
    finally:
        if isinstance(store, LeaseStore):
            store.release(id)
    return True


async def export_run(store: Store, id: str, /) -> bytes:
    """A stored run as one JSON document, to be kept, looked into, or moved to another store.

    It is the tree, as `State.encode` writes it: every step with its result, info, errors, times and
    generation, and the run's nonce, so that tokens stay the same wherever it goes on. What belongs
    to the store stays behind: the id, the revision, the epoch, and who held it.

    Raises:
        UsageError: There is no such run.
        StateFormatError: What is stored is corrupt or newer.
        StoreError: It could not be read.
    """
    stored = await store.load(check_id(id))
    if stored is None:
        raise UsageError(f"there is no run {id!r}")
    root = assemble(stored.records, f"run {id!r}")
    put_down(root, stored.summary.updated_at)  # nobody is at work on the copy
    return settle(root).encode()


async def import_run(
    store: Store, id: str, data: bytes | str, /, *, replace: bool = False
) -> State:
    """Store a run that `export_run` gave, or that the Go library saved.

    A driver that is called with this id goes on from there. Advance only one of two copies: both
    have the same tokens. The epoch begins at 1 where there was no such run, so a run whose bodies
    fence what they do by ``s.epoch`` is not to be moved.

    Args:
        store: Where to put it.
        id: Under which id; it need not be the one that it had.
        data: The document.
        replace: Take the place of the run that has this id; its epoch goes on growing.

    Returns:
        The tree as it was stored.

    Raises:
        StateFormatError: It is no document of a run, corrupt or newer; nothing was stored.
        UsageError: There is a run of this id, which ``replace`` does not allow for.
        BusyError: Somebody is advancing that run.
        ConflictError: It was changed, or made, meanwhile; nothing was stored.
        StoreError: It could not be stored.
    """
    check_id(id)
    root = State.decode(data)

    def admit(there: StoredRun | None) -> None:
        if there is not None and not replace:
            raise UsageError(
                f"there is a run {id!r} already; give another id, or replace=True to overwrite it"
            )

    await put_run(store, id, root, admit)
    return root


async def put_run(
    store: Store, id: str, root: State, admit: Callable[[StoredRun | None], object], /
) -> None:
    """Store a tree that comes from elsewhere, in one save, see `import_run`.

    Args:
        store: Where to put it.
        id: Under which id.
        root: The tree; whoever was at work on it is not any more.
        admit: Raises an error unless the run of this id, or ``None``, may be replaced.
    """
    check_id(id)
    put_down(root, latest_time(root))  # it comes from elsewhere, and says no more than that
    if isinstance(store, LeaseStore):
        await store.acquire(id, seconds=_LEASE)
    try:
        stored = await store.load(id)
        admit(stored)
        changes: dict[str, bytes | None] = {}
        if stored is not None:
            changes.update(dict.fromkeys(stored.records))
        changes.update(tree_as_records(root, fold=isinstance(store, FoldStore)))
        epoch = 1 if stored is None else stored.summary.epoch + 1
        await _known(
            partial(
                store.save,
                id,
                changes,
                expected=None if stored is None else stored.revision,
                epoch=epoch,
                write_id=os.urandom(8).hex(),
                summary=_first_summary(root, epoch),
            )
        )
    finally:
        if isinstance(store, LeaseStore):
            store.release(id)


def _first_summary(root: State, epoch: int) -> Summary:
    """The summary of a tree that was saved elsewhere."""
    now = SystemClock.now()
    record = root.run
    created = None if record is None else seconds(record.created_at)
    first = None if root.detail is None else root.detail.first_at
    blank = Summary(
        name=root.name if record is None or not record.function else record.function,
        status="pending",
        epoch=epoch,
        owner=None,
        created_at=created or seconds(first) or seconds(root._started) or now,
        updated_at=now,
    )
    return _summary(root, blank)
