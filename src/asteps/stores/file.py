"""Runs in a directory: one file per run, and nothing to install, set up or look after."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

from anyio import CancelScope, CapacityLimiter, from_thread, get_cancelled_exc_class, to_thread
from anyio.lowlevel import checkpoint, current_token

from .._store import (
    Browsed,
    RunFilter,
    Scanned,
    Status,
    StoredRun,
    StoreReport,
    Summary,
)
from ..errors import BusyError, StoreClosedError, UsageError
from ._directory import Directory
from ._runlog import Head

__all__ = ["FileStore"]

T = TypeVar("T")

_ALL = RunFilter()
_THREADS = 4  # saves of different runs that wait for the disk at the same time


class FileStore:
    """A store in a directory of one machine, with every capability but `PromptStore`.

    Any number of processes of one host may share the directory. It must lie on a local file
    system: on a network share, locks and syncs do not mean what they must. It is made by the
    first save. It may be used with or without ``async with``.

    A run is a log of its saves, each a frame with checksums, synced before `save` returns. A save
    costs what changed; one in many also writes the run anew, to drop what is no longer true, so a
    file stays below about twice its run's size. What a crash in the middle of a save leaves is cut
    off by the next one. Any other damage is a `StateFormatError`, and the file stays as it is.
    (Damage to nothing but the last save cannot be told from such a crash.)

    An owner holds a lock that dies with its process, so that a run is free at once.

    Do not rename or copy the files in a directory that is in use; a copy of the whole directory
    that was made while nobody saved is a backup.

    Args:
        directory: Where the runs are; a relative path is resolved by the first call.

    Cancellation: a call that waits for its turn, or for the lock of the run's file, is given up
    at once and has done nothing. A call that has begun is waited for, also under asyncio's own
    ``task.cancel()``, for which anyio's shields are no hindrance.
    """

    def __init__(self, directory: str | os.PathLike[str], /) -> None:
        self._directory = os.fspath(directory)
        self._files: Directory | None = None
        self._first = threading.Lock()
        self._held: set[str] = set()
        self._loop: object = None
        self._limiter: CapacityLimiter | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        self._turn()
        await checkpoint()
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
        return await self._call(lambda files, check: files.load(id, check))

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
        changes = dict(changes)  # the caller may go on with its own
        head = Head(0, epoch, write_id, summary)
        return await self._call(lambda files, check: files.save(id, changes, expected, head, check))

    async def delete(self, id: str, /, *, expected: str) -> None:
        """See `Store.delete`."""
        await self._call(lambda files, check: files.delete(id, expected, check))

    async def list_runs(
        self,
        *,
        status: Status | None = None,
        name: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Sequence[tuple[str, Summary]]:
        """See `ListStore.list_runs`.

        Reads the end of each file, not its records. A run that is being deleted meanwhile may be
        left out, and one whose file is damaged or newer is.
        """
        return await self._call(
            lambda files, check: files.list_runs(status, name, after, limit, check)
        )

    async def browse(
        self,
        wanted: RunFilter = _ALL,
        /,
        *,
        before: tuple[float, str] | None = None,
        limit: int = 100,
    ) -> Browsed:
        """See `BrowseStore.browse`. Reads the end of each file, for each page."""
        return await self._call(lambda files, check: files.browse(wanted, before, limit, check))

    async def scan(
        self, wanted: RunFilter = _ALL, /, *, after: str | None = None, limit: int = 100
    ) -> Scanned:
        """See `ScanStore.scan`. A page ends after 4 MiB of records."""
        return await self._call(lambda files, check: files.scan(wanted, after, limit, check))

    async def inspect(self) -> StoreReport:
        """See `InspectStore.inspect`. Reads each file."""
        return await self._call(lambda files, check: files.inspect(check))

    async def acquire(self, id: str, /, *, seconds: float) -> str:
        """See `LeaseStore.acquire`; ``seconds`` does not matter here.

        An owner is free the moment its store is closed or its process ends, however it ends.
        """
        self._turn()
        if id in self._held:
            raise BusyError(id, (self._files and self._files.owner.name) or "this store")
        self._held.add(id)
        try:
            return await self._call(lambda files, check: files.acquire(id, check))
        except BaseException:
            self._held.discard(id)
            raise

    def release(self, id: str, /) -> None:
        """See `LeaseStore.release`. On a closed store it does nothing: all is free already."""
        self._held.discard(id)

    async def aclose(self) -> None:
        """See `Store.aclose`. Calls that have begun, or wait for their turn, are finished first."""
        if self._closed:
            return
        limiter = self._turn()
        self._closed = True
        self._held.clear()
        try:
            with CancelScope(shield=True):
                for _ in range(_THREADS):
                    await limiter.acquire_on_behalf_of(object())
                if self._files is not None:
                    await to_thread.run_sync(self._files.owner.close, limiter=CapacityLimiter(1))
        finally:
            if self._files is not None:
                # Again, for asyncio's task.cancel(): rather block for one unlink than stay alive.
                self._files.owner.close()

    def _turn(self) -> CapacityLimiter:
        """What limits the threads in this loop, if this is the store's loop."""
        if self._closed:
            raise StoreClosedError(f"the FileStore of {self._directory!r} is closed")
        loop = current_token()
        if self._limiter is None:
            self._loop = loop
            self._limiter = CapacityLimiter(_THREADS)
        elif self._loop != loop:
            raise UsageError(
                f"the FileStore of {self._directory!r} belongs to another event loop; "
                "make one for this loop: several may share a directory"
            )
        return self._limiter

    def _opened(self) -> Directory:
        with self._first:
            if self._files is None:
                self._files = Directory(self._directory)
            return self._files

    async def _call(self, call: Callable[[Directory, Callable[[], None]], T]) -> T:
        limiter = self._turn()
        job = _Job(lambda: call(self._opened(), job.check))
        try:
            return await to_thread.run_sync(job, limiter=limiter)
        except get_cancelled_exc_class():
            job.unwanted = True
            # Not begun: then it never will. Begun: only asyncio's task.cancel() comes here, again
            # and again if it likes, while the thread is at work.
            while not job.settled():
                try:
                    with CancelScope(shield=True):
                        await to_thread.run_sync(job.ended.wait, limiter=CapacityLimiter(1))
                except get_cancelled_exc_class():
                    pass
            raise


class _Withdrawn(Exception):  # noqa: N818 - nobody ever sees it
    """The caller has gone, and nothing was done."""


class _Job(Generic[T]):
    """A call for a worker thread that never goes on without its caller."""

    def __init__(self, call: Callable[[], T], /) -> None:
        self._call: Callable[[], T] | None = call
        self._begun = threading.Lock()  # whoever takes it, thread or caller, decides
        self.ended = threading.Event()
        self.unwanted = False

    def __call__(self) -> T:
        if not self._begun.acquire(blocking=False) or self._call is None:
            raise _Withdrawn
        # The call knows the job, and the thread remembers the job until it gets another one:
        # forgotten here, neither keeps a dropped store alive.
        call, self._call = self._call, None
        try:
            return call()
        finally:
            self.ended.set()

    def check(self) -> None:
        """End the call, in its thread, if the caller has gone."""
        if self.unwanted:
            raise _Withdrawn
        from_thread.check_cancelled()

    def settled(self) -> bool:
        """Whether the call has ended, or has just been kept from beginning."""
        return self.ended.is_set() or self._begun.acquire(blocking=False)
