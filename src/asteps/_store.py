"""What a store is: the protocol, its capabilities, and the contract that they keep.

A store moves bytes and compares revisions; it knows nothing of steps. To it a run is a small map
of records under one revision, with a summary. `asteps.testing.StoreConformance` executes this
page: whatever the docstrings promise here, a store that passes it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import msgspec

__all__ = ["LeaseStore", "ListStore", "PromptStore", "Status", "Store", "StoredRun", "Summary"]

Status: TypeAlias = Literal["proceeding", "pending", "done", "failed"]


class Summary(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a store may know of a run without reading its records.

    Instants are seconds since the epoch (UTC).

    Attributes:
        name: Name of the root function.
        status: What the run has come to. ``proceeding`` with no living owner is an interrupted run.
        epoch: Number of the holder that saved last; grows with each holder.
        owner: Who holds the run; ``None`` when nobody does.
        created_at: When the run was first saved.
        updated_at: When it was last saved.
        wake_at: When a pending run is due again.
        done_at: When the run ended, done or failed.
    """

    name: str
    status: Status
    epoch: int
    owner: str | None
    created_at: float
    updated_at: float
    wake_at: float | None = None
    done_at: float | None = None


class StoredRun(NamedTuple):
    """One consistent reading of a run.

    Attributes:
        records: The records by key. The map has no order.
        revision: Names this state of the run; opaque, compared for equality only.
        summary: The summary of the save that made it.
    """

    records: dict[str, bytes]
    revision: str
    summary: Summary


@runtime_checkable
class Store(Protocol):
    """Where runs live.

    **Ids and keys** are any ``str`` without surrogates: ids of 1 to 500 characters, keys of 0 to
    20,000 (the root's key is empty). A store escapes what its medium cannot hold; two that differ
    never meet. **Bytes** are UTF-8 JSON text, come back exactly, and are never looked into.

    **Errors.** Only `StoreError`s leave a store, and each says what became of the data:
    `ConflictError`, `StoreUnavailableError` and `StoreRefusedError` mean that nothing was written,
    `UncertainWriteError` that the write may or may not have landed, `StateFormatError` that what is
    stored cannot be read and was left as it is, `StoreClosedError` that nothing was done.

    **Concurrency.** Any number of tasks and processes may use one storage. Calls for different
    runs may be answered in any order. A store belongs to the event loop that first used it; in
    another one every method raises `UsageError`.

    **Cancellation.** A cancelled `load` has no effect. A cancelled `save` or `delete` may or may
    not land, but whole or not at all; it never lands after the caller has been told otherwise.
    """

    async def load(self, id: str, /) -> StoredRun | None:
        """Read a run, all of it under one revision.

        Sees every save that was acknowledged, to anybody, before the call began.

        Returns:
            The run, or ``None`` where there is none.

        Raises:
            StateFormatError: What is stored is corrupt, foreign or newer; it was left as it is.
            StoreUnavailableError: The storage did not answer.
        """
        ...

    async def save(
        self,
        id: str,
        changes: Mapping[str, bytes | None],
        /,
        *,
        expected: str | None,
        epoch: int,
        write_id: str,
        summary: Summary,
    ) -> str:
        """Change records, if the run is still at the expected revision: all or nothing.

        When it returns, the change is as durable as this store makes anything.

        Args:
            id: The run.
            changes: Bytes to set by key; ``None`` removes the key, whether or not it was there.
                May be empty: the save then changes the summary and the revision alone.
            expected: The revision that the caller has seen; ``None`` creates the run, and demands
                that there is none.
            epoch: The caller's epoch, at least 1; equal to ``summary.epoch``.
            write_id: Names this save; 1 to 100 ASCII characters, never used for another one.
            summary: Replaces the stored summary.

        Returns:
            The new revision. A revision is never used twice for one id, also not after `delete`.
            Where the head already carries this ``write_id`` under this ``epoch``, the save was
            made before and its acknowledgement lost: its revision is returned, nothing is written.

        Raises:
            ConflictError: The run is not at ``expected``; nothing was written.
            StoreUnavailableError: Nothing was written; the same call may succeed later.
            UncertainWriteError: Perhaps written. Repeating the identical call tells.
            StoreRefusedError: Nothing was written, and the same call will not succeed.
        """
        ...

    async def delete(self, id: str, /, *, expected: str) -> None:
        """Remove a run, if it is still at the expected revision.

        To remove what is not there is no error: a repeated call after a lost answer succeeds.

        Raises:
            ConflictError: The run is at another revision; nothing was removed.
        """
        ...

    async def aclose(self) -> None:
        """Give everything back. What was acknowledged stays; a second call does nothing.

        Afterwards every other method raises `StoreClosedError`. Whatever this client holds by
        `LeaseStore.acquire` is free for others.
        """
        ...


@runtime_checkable
class PromptStore(Protocol):
    """A store that takes a save without being awaited: one task less to wake for each step."""

    def begin_save(
        self,
        id: str,
        changes: Mapping[str, bytes | None],
        /,
        *,
        expected: str | None,
        epoch: int,
        write_id: str,
        summary: Summary,
        done: Callable[[str | None, Exception | None], object],
    ) -> None:
        """Do what `Store.save` does, later; call ``done`` with what it would return or raise.

        Must not block. `changes` must not be changed afterwards.

        Args:
            id: See `Store.save`, as for what follows.
            changes: Likewise.
            expected: Likewise.
            epoch: Likewise.
            write_id: Likewise.
            summary: Likewise.
            done: Called once, in the event loop, in no task: with the revision and ``None``, or
                with ``None`` and the error. Never called once the loop has ended.

        Raises:
            StoreError: It was not begun, and ``done`` is not going to be called.
        """
        ...


@runtime_checkable
class ListStore(Protocol):
    """A store that can say which runs it has, from their summaries alone."""

    async def list_runs(
        self,
        *,
        status: Status | None = None,
        name: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Sequence[tuple[str, Summary]]:
        """Ids and summaries in the order of the ids (by code point).

        Args:
            status: Only runs of this status.
            name: Only runs of this root function.
            after: Only ids that come after this one: the last id of the page before.
            limit: How many at most, at least 1.
        """
        ...


@runtime_checkable
class LeaseStore(Protocol):
    """A store that knows who may advance a run.

    The holder of a run is the living ``owner`` that the run's summary names. `acquire` only finds
    out whether there is one; the caller becomes the holder by its next `Store.save`, which names
    it in the summary under a higher epoch, and of two that try one gets `ConflictError`.
    """

    async def acquire(self, id: str, /, *, seconds: float) -> str:
        """Prepare to hold a run, which need not exist yet.

        Args:
            id: The run.
            seconds: How long the lease outlives its holder's last sign of life, on stores that
                cannot see a process die; others free the run at once.

        Returns:
            The owner's name to put into the summary of the saves that follow.

        Raises:
            BusyError: A living owner holds the run, be it this very client.
        """
        ...

    def release(self, id: str, /) -> None:
        """Stop holding a run in this process: it can be acquired again, also if never saved.

        Others are let in by the ``owner=None`` of the holder's last save, or by its end.
        """
        ...
