"""Runs in this process's memory: for tests, and for runs that need not outlive the process."""

from __future__ import annotations

import secrets
import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from anyio.lowlevel import checkpoint, current_token

from .._store import (
    Browsed,
    Holder,
    RunFilter,
    Scanned,
    Status,
    StoredRun,
    StoreReport,
    Summary,
)
from ..errors import BusyError, ConflictError, StoreClosedError, UsageError

__all__ = ["MemoryStore"]

_ALL = RunFilter()


class _Run:
    """A run as it is kept. Changed only under the storage's lock, in one go."""

    __slots__ = ("epoch", "records", "revision", "summary", "write_id")

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}
        self.revision: str = ""
        self.write_id: str = ""
        self.epoch: int = 0
        self.summary: Summary


class _Storage:
    """What the clients of one storage share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # clients may live in the event loops of several threads
        self.runs: dict[str, _Run] = {}
        self.revisions = 0  # counts the saves of all runs, so that no revision comes twice
        self.clients: weakref.WeakValueDictionary[str, MemoryStore] = weakref.WeakValueDictionary()


class MemoryStore:
    """A store in memory, with every capability but `PromptStore`.

    It keeps the whole contract, so what passes with it does not fail with a store on disk for
    reasons of its own: bytes are copied, revisions compared, and every call lets other tasks run.
    It may be used with or without ``async with``.

    `client` gives another client of the same storage, as another process would be: with an owner
    of its own, to be closed on its own. An owner lives until its client is closed or garbage
    collected, so a test plays a dead process by closing or dropping a client.

    Like any store, a client belongs to the event loop that first used it. The storage belongs to
    none: call `client` to go on in another loop, also in that of another thread.

    Cancellation: a call takes its one chance to be cancelled before it does anything.
    """

    def __init__(self) -> None:
        self._storage = _Storage()
        self._begin()

    def _begin(self) -> None:
        self._owner = f"memory-{secrets.token_hex(8)}"
        self._held: set[str] = set()
        self._loop: object = None
        self._closed = False
        self._storage.clients[self._owner] = self

    def client(self) -> Self:
        """Another client of the same storage: open, with an owner of its own, in no loop yet."""
        other = type(self).__new__(type(self))
        other._storage = self._storage
        other._begin()
        return other

    async def __aenter__(self) -> Self:
        await self._enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def load(self, id: str, /) -> StoredRun | None:
        """See `Store.load`."""
        await self._enter()
        with self._storage.lock:
            run = self._storage.runs.get(id)
            if run is None:
                return None
            return StoredRun(run.records.copy(), run.revision, run.summary)

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
        """See `Store.save`."""
        await self._enter()
        new = {key: None if value is None else bytes(value) for key, value in changes.items()}
        storage = self._storage
        with storage.lock:
            run = storage.runs.get(id)
            if run is not None and run.write_id == write_id and run.epoch == epoch:
                return run.revision
            found = None if run is None else run.revision
            if found != expected:
                raise ConflictError(id, expected, found)
            if run is None:
                run = storage.runs[id] = _Run()
            for key, value in new.items():
                if value is None:
                    run.records.pop(key, None)
                else:
                    run.records[key] = value
            storage.revisions += 1
            run.revision = str(storage.revisions)
            run.write_id = write_id
            run.epoch = epoch
            run.summary = summary
            return run.revision

    async def delete(self, id: str, /, *, expected: str) -> None:
        """See `Store.delete`."""
        await self._enter()
        with self._storage.lock:
            run = self._storage.runs.get(id)
            if run is None:
                return
            if run.revision != expected:
                raise ConflictError(id, expected, run.revision)
            del self._storage.runs[id]

    async def list_runs(
        self,
        *,
        status: Status | None = None,
        name: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Sequence[tuple[str, Summary]]:
        """See `ListStore.list_runs`."""
        await self._enter()
        with self._storage.lock:
            found = [
                (key, run.summary)
                for key, run in self._storage.runs.items()
                if (after is None or key > after)
                and (status is None or run.summary.status == status)
                and (name is None or run.summary.name == name)
            ]
        found.sort(key=lambda item: item[0])
        return found[:limit]

    async def browse(
        self,
        wanted: RunFilter = _ALL,
        /,
        *,
        before: tuple[float, str] | None = None,
        limit: int = 100,
    ) -> Browsed:
        """See `BrowseStore.browse`."""
        await self._enter()
        with self._storage.lock:
            found = [
                (key, run.summary)
                for key, run in self._storage.runs.items()
                if wanted.accepts(key, run.summary)
                and (before is None or (run.summary.updated_at, key) < before)
            ]
        found.sort(key=lambda item: (item[1].updated_at, item[0]), reverse=True)
        page = found[:limit]
        more = len(found) > limit
        return Browsed(page, {}, (page[-1][1].updated_at, page[-1][0]) if more else None)

    async def scan(
        self, wanted: RunFilter = _ALL, /, *, after: str | None = None, limit: int = 100
    ) -> Scanned:
        """See `ScanStore.scan`."""
        await self._enter()
        with self._storage.lock:
            ids = sorted(
                key
                for key, run in self._storage.runs.items()
                if (after is None or key > after) and wanted.accepts(key, run.summary)
            )
            found: list[tuple[str, StoredRun]] = []
            for key in ids[:limit]:
                run = self._storage.runs[key]
                found.append((key, StoredRun(run.records.copy(), run.revision, run.summary)))
        return Scanned(found, {}, found[-1][0] if len(ids) > limit else None)

    async def inspect(self) -> StoreReport:
        """See `InspectStore.inspect`."""
        await self._enter()
        with self._storage.lock:
            runs = sorted((key, run.summary) for key, run in self._storage.runs.items())
            size = sum(
                len(key) + len(value)
                for run in self._storage.runs.values()
                for key, value in run.records.items()
            )
            living = set(self._storage.clients)
        return StoreReport(
            kind="memory",
            size_bytes=size,
            runs=dict(Counter(s.status for _, s in runs)),
            held=tuple(
                Holder(id, s.owner, s.owner in living) for id, s in runs if s.owner is not None
            ),
        )

    async def acquire(self, id: str, /, *, seconds: float) -> str:
        """See `LeaseStore.acquire`; ``seconds`` does not matter here.

        An owner is free the moment its client is closed or garbage collected.
        """
        await self._enter()
        with self._storage.lock:
            if id in self._held:
                raise BusyError(id, self._owner)
            run = self._storage.runs.get(id)
            owner = run and run.summary.owner
            if owner and owner != self._owner and owner in self._storage.clients:
                raise BusyError(id, owner)
            self._held.add(id)
        return self._owner

    def release(self, id: str, /) -> None:
        """See `LeaseStore.release`. On a closed store it does nothing: all is free already."""
        self._held.discard(id)

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        if self._closed:
            return
        self._bind()
        self._closed = True
        self._held.clear()
        self._storage.clients.pop(self._owner, None)

    async def _enter(self) -> None:
        """The one checkpoint of every call: what follows it happens at once or not at all."""
        await checkpoint()
        if self._closed:
            raise StoreClosedError("this MemoryStore is closed; use client() to get another one")
        self._bind()

    def _bind(self) -> None:
        loop = current_token()
        if self._loop is None:
            self._loop = loop
        elif self._loop != loop:
            raise UsageError(
                "this MemoryStore belongs to another event loop; "
                "use client() to get one for this loop, of the same storage"
            )
