"""Runs in a SQLite file, for any number of processes on one host."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar, get_args

from anyio import CancelScope, CapacityLimiter, get_cancelled_exc_class, to_thread

from .._loop import Loop, Wakeup, current_loop
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
from ._owner import Owner
from ._sqlite_file import Synchronous
from ._sqlite_report import examine
from ._sqlite_runs import Call, Runs, fail

__all__ = ["SQLiteStore"]

T = TypeVar("T")

_ALL = RunFilter()


class SQLiteStore:
    """A store in one SQLite file, with every capability.

    The file is made when there is none; its directory has to exist, on a local disk. Beside it
    stand SQLite's own ``-wal`` and ``-shm``, and one ``-owner.…`` per client that holds runs: back
    up with SQLite's tools, not by copying the one file. Saves that arrive while another one is
    being made durable become one transaction together, whatever runs they belong to. A run is
    free for others as soon as its holder's process has died, however it died.

    It may be used with or without ``async with``, which opens the file at once instead of at the
    first call. Without it, call `aclose` at the end.

    Cancellation: a cancelled call has been carried out, and waits for that, before it leaves. Only
    asyncio's own ``task.cancel()``, given twice, makes it leave earlier.

    Args:
        path: The file.
        synchronous: ``"FULL"`` syncs each transaction to the disk before it is acknowledged.
            ``"NORMAL"`` leaves that to the operating system, and is faster by a multiple: the file
            stays whole, nothing is lost when the process dies, but a power failure or a crash of
            the machine may take back the last acknowledged saves. Steps that were done are then
            run again.

    Raises:
        UsageError: The path is none, or `synchronous` neither of the two.
    """

    def __init__(
        self, path: str | os.PathLike[str], /, *, synchronous: Synchronous = "FULL"
    ) -> None:
        name = os.fspath(path)
        if name in {"", ":memory:"} or name.startswith("file:"):
            raise UsageError(
                f"SQLiteStore needs the path of a file, not {name!r}; for runs in memory there is "
                "asteps.stores.memory.MemoryStore()"
            )
        if synchronous not in get_args(Synchronous):
            raise UsageError(f"synchronous must be 'FULL' or 'NORMAL', not {synchronous!r}")
        self._path = name
        self._synchronous: Synchronous = synchronous
        self._held: set[str] = set()
        self._name = "this client"
        self._loop: Loop | None = None
        self._writer: _Writer | None = None
        self._finalizer: weakref.finalize[[], SQLiteStore] | None = None
        self._closed = False
        self._handing_over: list[Call] = []

    async def __aenter__(self) -> Self:
        try:
            await self._call(Runs.head, "")
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def load(self, id: str, /) -> StoredRun | None:
        """See `Store.load`."""
        return await self._call(Runs.load, id)

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
        # A copy: the caller may leave, and change them, before the thread comes.
        arguments = (id, dict(changes), expected, epoch, write_id, summary)
        call, answered = self._submit(Runs.save, arguments, writes=True)
        try:
            await answered
        except get_cancelled_exc_class():
            await self._answered(call)
            raise
        if call.error is not None:
            raise call.error
        revision: str = call.result
        return revision

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
        """See `PromptStore.begin_save`."""
        arguments = (id, changes, expected, epoch, write_id, summary)
        self._put(Call(Runs.save, arguments, None, done, writes=True))

    async def delete(self, id: str, /, *, expected: str) -> None:
        """See `Store.delete`."""
        await self._call(Runs.delete, id, expected, writes=True)

    async def list_runs(
        self,
        *,
        status: Status | None = None,
        name: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Sequence[tuple[str, Summary]]:
        """See `ListStore.list_runs`."""
        _check_limit(limit)
        return await self._call(Runs.list_runs, after, status, name, limit)

    async def browse(
        self,
        wanted: RunFilter = _ALL,
        /,
        *,
        before: tuple[float, str] | None = None,
        limit: int = 100,
    ) -> Browsed:
        """See `BrowseStore.browse`. Takes some 25 ms for 100,000 runs: it reads all summaries."""
        _check_limit(limit)
        return await self._call(Runs.browse, wanted, before, limit)

    async def scan(
        self, wanted: RunFilter = _ALL, /, *, after: str | None = None, limit: int = 100
    ) -> Scanned:
        """See `ScanStore.scan`. A page is one transaction, and ends after 4 MiB of records."""
        _check_limit(limit)
        return await self._call(Runs.scan, wanted, after, limit)

    async def inspect(self) -> StoreReport:
        """See `InspectStore.inspect`. Reads all of the file, in a thread of its own."""
        self._check()
        return await to_thread.run_sync(examine, self._path)

    async def acquire(self, id: str, /, *, seconds: float) -> str:
        """See `LeaseStore.acquire`; `seconds` has no bearing: a lock dies with its process."""
        self._check()
        if id in self._held:
            raise BusyError(id, self._name)
        self._held.add(id)  # before the wait, so that of two tasks one gets it
        try:
            self._name = await self._call(Runs.acquire, id)
        except BaseException:
            self._held.discard(id)
            raise
        return self._name

    def release(self, id: str, /) -> None:
        """See `LeaseStore.release`. On a closed store all is free already."""
        self._held.discard(id)

    async def aclose(self) -> None:
        """See `Store.aclose`. Calls under way are carried out first."""
        if not self._closed:
            self._check()
            self._closed = True
            self._held.clear()
        if self._handing_over:
            self._hand_over()
        if self._writer is not None:
            self._writer.stop()
            with CancelScope(shield=True):
                await to_thread.run_sync(self._writer.join, limiter=CapacityLimiter(1))

    def _check(self) -> None:
        """Refuse to work when closed, or in another event loop than before."""
        if self._closed:
            raise StoreClosedError(f"the SQLiteStore of {self._path!r} has been closed")
        if self._loop is None:
            self._loop = current_loop()
        elif not self._loop.is_running():
            raise UsageError(
                f"this SQLiteStore of {self._path!r} belongs to the event loop that first used it; "
                "make another one for this loop: they share the file"
            )

    def _start(self) -> _Writer:
        loop = self._loop or current_loop()
        writer = _Writer(self._path, self._synchronous, loop.call_soon_threadsafe)
        if self._finalizer is not None:
            self._finalizer.detach()
        # Also when the store is dropped without `aclose`, but not when the interpreter ends.
        self._finalizer = weakref.finalize(self, writer.stop)
        self._finalizer.atexit = False
        return writer

    def _submit(
        self, do: Callable[..., Any], arguments: tuple[object, ...], *, writes: bool
    ) -> tuple[Call, Wakeup]:
        """Give the thread something to do."""
        wakeup = (self._loop or current_loop()).wakeup()
        call = Call(do, arguments, wakeup, None, writes=writes)
        self._put(call)
        return call, wakeup

    def _put(self, call: Call) -> None:
        self._check()
        if not self._handing_over:
            # Once per turn of the loop: what one turn wants saved becomes one transaction.
            (self._loop or current_loop()).call_soon(self._hand_over)
        self._handing_over.append(call)

    def _hand_over(self) -> None:
        calls, self._handing_over = self._handing_over, []
        if self._writer is None or self._writer.has_given_up:  # meanwhile
            self._writer = self._start()
        self._writer.put(calls)

    async def _call(self, do: Callable[..., T], /, *arguments: object, writes: bool = False) -> T:
        call, answered = self._submit(do, arguments, writes=writes)
        try:
            await answered
        except get_cancelled_exc_class():
            await self._answered(call)
            raise
        if call.error is not None:
            raise call.error
        result: T = call.result
        return result

    async def _answered(self, call: Call) -> None:
        """A cancelled caller waits for its statement; only now: a shield costs more than a call."""
        if not call.is_answered:
            call.answered = answered = (self._loop or current_loop()).wakeup()
            with CancelScope(shield=True):
                await answered


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise UsageError(f"limit must be at least 1, not {limit}")


class _Writer:
    """The store's thread: what it finds in its queue becomes one transaction.

    It knows nothing of the store, which may so be garbage collected while the thread waits.
    """

    def __init__(self, path: str, synchronous: Synchronous, wake: Callable[..., object]) -> None:
        self._path = path
        self._synchronous: Synchronous = synchronous
        self._wake = wake
        self._queue: SimpleQueue[list[Call] | None] = SimpleQueue()
        self.has_given_up = False  # changed in the event loop alone
        # A daemon, as a process that forgot to close its store has to end all the same; what was
        # acknowledged is on the disk.
        self._thread = threading.Thread(target=self._work, name="asteps-sqlite", daemon=True)
        self._thread.start()
        self.put = self._queue.put
        self.join = self._thread.join

    def stop(self) -> None:
        """Have the thread end once it has done what is in the queue before this."""
        self._queue.put(None)

    def _work(self) -> None:
        path = os.path.realpath(self._path)
        owner = Owner(path)
        runs: Runs | None = None
        try:
            while True:
                found = [self._queue.get()]
                found += [self._queue.get() for _ in range(self._queue.qsize())]
                calls = [call for batch in found if batch is not None for call in batch]
                if calls and (runs is None or not runs.is_usable()):
                    if runs is not None:
                        runs.close()
                    try:
                        runs = Runs(path, self._synchronous, owner)
                    except Exception as exc:  # noqa: BLE001 - whatever it is, someone waits for it
                        self._notify(self._give_up, calls, exc)
                        return
                if runs is not None and not self._do(runs, calls):
                    return
                if None in found:
                    return
        finally:
            if runs is not None:
                runs.close()
            with contextlib.suppress(OSError):
                owner.close()

    def _do(self, runs: Runs, calls: Sequence[Call]) -> bool:
        """Carry out one batch; false once the event loop is gone."""
        # Reads come after the writes of their batch, so that nothing they tell of can still be
        # taken back; the writes are answered without waiting for them.
        for writes, do in ((True, runs.write), (False, runs.read)):
            part = [call for call in calls if call.writes is writes]
            if part:
                try:
                    do(part)
                except Exception as exc:  # noqa: BLE001 - whatever it is, someone waits for it
                    fail(part, exc)
                if not self._notify(_answer, part):
                    return False
        return True

    def _notify(self, callback: Callable[..., object], *args: object) -> bool:
        try:
            self._wake(callback, *args)
        except RuntimeError:  # of either loop: it has ended, and with it whoever waited
            return False
        return True

    def _give_up(self, calls: Sequence[Call], error: Exception) -> None:
        """In the event loop, the file not opened and the thread at its end."""
        self.has_given_up = True  # the next call tries again, with a new thread
        late = [self._queue.get_nowait() for _ in range(self._queue.qsize())]
        calls = [*calls, *(call for batch in late if batch is not None for call in batch)]
        fail(calls, error)
        _answer(calls)


def _answer(calls: Sequence[Call]) -> None:
    for call in calls:
        call.is_answered = True
        if call.answered is None:
            if call.done is not None:
                # What a statement gave is void if its transaction was not committed.
                call.done(None if call.error else call.result, call.error)
        elif not call.answered.done():
            call.answered.set_result(None)
