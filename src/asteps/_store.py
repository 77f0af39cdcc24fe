"""What a store is: the protocol, its capabilities, and the contract that they keep.

A store moves bytes and compares revisions; it knows nothing of steps. To it a run is a small map
of records under one revision, with a summary. `asteps.testing.StoreConformance` executes this
page: whatever the docstrings promise here, a store that passes it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import msgspec

from .errors import StoreError

__all__ = [
    "BrowseStore",
    "Browsed",
    "FoldStore",
    "Holder",
    "InspectStore",
    "LeaseStore",
    "ListStore",
    "PromptStore",
    "RunFilter",
    "ScanStore",
    "Scanned",
    "Status",
    "Store",
    "StoreReport",
    "StoredRun",
    "Summary",
]

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

        A run that cannot be read stops nobody from seeing the others: it is left out here, and
        named by `BrowseStore.browse` and `InspectStore.inspect`.

        Args:
            status: Only runs of this status.
            name: Only runs of this root function.
            after: Only ids that come after this one: the last id of the page before.
            limit: How many at most, at least 1.
        """
        ...


class RunFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs are wanted. All that is given has to be true of a run.

    Attributes:
        statuses: Their status is one of these; any, where there are none.
        name: The name of their root function.
        contains: Their id has this somewhere in it, to the letter.
        updated_from: They were last saved then or later, in seconds since the epoch.
        updated_before: They were last saved before that.
    """

    statuses: tuple[Status, ...] = ()
    name: str | None = None
    contains: str = ""
    updated_from: float | None = None
    updated_before: float | None = None

    def accepts(self, id: str, summary: Summary, /) -> bool:
        """Whether a run is wanted, for stores that have to look at each."""
        return (
            (not self.statuses or summary.status in self.statuses)
            and (self.name is None or summary.name == self.name)
            and self.contains in id
            and (self.updated_from is None or summary.updated_at >= self.updated_from)
            and (self.updated_before is None or summary.updated_at < self.updated_before)
        )


class Browsed(NamedTuple):
    """One page of a `BrowseStore`.

    Attributes:
        runs: Ids and summaries, the newest first.
        damaged: Runs that came up and cannot be read: the error that `Store.load` would raise, by
            id (or by what else names them, where not even that can be read).
        next: What to give as ``before`` for the page that follows; ``None`` after the last.
    """

    runs: Sequence[tuple[str, Summary]]
    damaged: Mapping[str, StoreError]
    next: tuple[float, str] | None


@runtime_checkable
class BrowseStore(Protocol):
    """A store that finds the runs that were saved last."""

    async def browse(
        self,
        wanted: RunFilter = ...,
        /,
        *,
        before: tuple[float, str] | None = None,
        limit: int = 100,
    ) -> Browsed:
        """Summaries, the one that was saved last coming first; of equals the greater id.

        Pages stay in order while runs change: what is saved meanwhile moves to the front, before
        the first page, and nothing that stays as it is is told twice or left out.

        A run that cannot be read stops nobody from seeing the others. It has no status, name or
        times, so whatever the filter says of those it is told of: on one page at least, perhaps
        on several, unless the store can see that it is not wanted.

        Args:
            wanted: Which runs.
            before: Only runs that come after this place in the listing, an ``updated_at`` and an
                id: what the page before says. No run need be there any more.
            limit: How many at most, at least 1. A page may hold fewer; the last one says so by
                having no ``next``.
        """
        ...


class Scanned(NamedTuple):
    """One page of a `ScanStore`.

    Attributes:
        runs: Ids and runs, in the order of the ids.
        damaged: Runs that came up and cannot be read, as in `Browsed`.
        next: What to give as ``after`` for the page that follows; ``None`` after the last.
    """

    runs: Sequence[tuple[str, StoredRun]]
    damaged: Mapping[str, StoreError]
    next: str | None


@runtime_checkable
class ScanStore(Protocol):
    """A store that hands out whole runs, many at a time."""

    async def scan(
        self, wanted: RunFilter = ..., /, *, after: str | None = None, limit: int = 100
    ) -> Scanned:
        """Runs with their records in the order of the ids (by code point).

        Each run is one consistent reading, like that of `Store.load`; two pages, and two runs of
        one page, may be of different times. Between pages the store holds nothing open. A run that
        cannot be read stops nobody from seeing the others, as in `BrowseStore.browse`.

        Args:
            wanted: Which runs.
            after: Only ids that come after this one, which need not be there: what the page
                before says.
            limit: How many at most, at least 1. A page may hold fewer, so that it stays small
                where the runs are large; the last one says so by having no ``next``.
        """
        ...


@runtime_checkable
class FoldStore(Protocol):
    """A store that wants few records: each costs it more than the bytes that it holds.

    To it the core writes one record for a finished subtree, and takes it apart again when
    something in it is run once more. Nothing else differs: any store may be given such records.

    Attributes:
        folds: Always true; that it is there is what counts.
    """

    folds: Literal[True]


class Holder(NamedTuple):
    """A run that names an owner.

    Attributes:
        id: The run.
        owner: Who holds it, or held it when it was last saved.
        alive: Whether that one still lives. The run of a dead owner is interrupted, and free.
    """

    id: str
    owner: str
    alive: bool


class StoreReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a storage holds, and how it is.

    Attributes:
        kind: What the storage is, for people: ``SQLite file``, ``directory``.
        where: Which one: a path, a host and a database. Never a password.
        format: Version of the storage's own format, where it has one.
        newest_format: The newest that this version of asteps knows.
        size_bytes: How much room it takes.
        runs: How many runs there are of each status.
        held: The runs that name an owner, living or dead, in the order of their ids.
        damaged: Why a run cannot be read, by id.
        problems: What is wrong with the storage as a whole.
        facts: What else its kind has to say, such as a journal mode or the version of a server.
    """

    kind: str
    where: str = ""
    format: int | None = None
    newest_format: int | None = None
    size_bytes: int | None = None
    runs: dict[str, int] = {}
    held: tuple[Holder, ...] = ()
    damaged: dict[str, str] = {}
    problems: tuple[str, ...] = ()
    facts: dict[str, str | int] = {}


@runtime_checkable
class InspectStore(Protocol):
    """A store that can say how its storage is."""

    async def inspect(self) -> StoreReport:
        """Look at everything there is, and change none of it, above all nothing that is damaged.

        It may take long, and read the whole storage. Damage is part of the report, also where it
        is so bad that no other method works; what the records mean is not looked into.

        Raises:
            StateFormatError: The storage is none of ours, or newer.
            StoreError: It cannot be reached.
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
