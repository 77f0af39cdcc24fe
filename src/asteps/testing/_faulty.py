"""A store that fails on purpose, at the save or the load that a test names."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self, TypeAlias, TypeVar

import anyio
import msgspec

from .._store import (
    Browsed,
    BrowseStore,
    FoldStore,
    InspectStore,
    LeaseStore,
    ListStore,
    RunFilter,
    Scanned,
    ScanStore,
    Status,
    Store,
    StoredRun,
    StoreReport,
    Summary,
)
from ..errors import (
    ConflictError,
    StoreRefusedError,
    StoreUnavailableError,
    UncertainWriteError,
    UsageError,
)

__all__ = ["Crash", "FaultyStore", "LoadFault", "Save", "SaveFault"]

T = TypeVar("T")

_ALL = RunFilter()

SaveFault: TypeAlias = Literal[
    "unavailable",
    "refused",
    "conflict",
    "dropped",
    "lost",
    "late",
    "hang",
    "hang after",
    "crash before",
    "crash after",
]
LoadFault: TypeAlias = Literal["unavailable", "stale", "hang", "crash"]

_SAVE_FAULTS = frozenset(SaveFault.__args__)  # type: ignore[attr-defined]
_LOAD_FAULTS = frozenset(LoadFault.__args__)  # type: ignore[attr-defined]


class Crash(BaseException):
    """The process has died, as far as this `FaultyStore` can tell."""


class Save(msgspec.Struct, frozen=True):
    """A save as it was asked for.

    Attributes:
        number: Counts the store's saves, repeated ones too, from 1.
        id: The run.
        changes: A copy of what was to be changed.
        expected: The revision that the caller had seen.
        epoch: The caller's epoch.
        write_id: The save's name.
        summary: The summary that came with it.
    """

    number: int
    id: str
    changes: dict[str, bytes | None]
    expected: str | None
    epoch: int
    write_id: str
    summary: Summary


class FaultyStore:
    """A store that does what the wrapped one does, but for the faults that it was given.

    ::

        store = MemoryStore()
        faulty = FaultyStore(store.client(), {3: "lost", 5: "crash after"})

    It has the capabilities of what it wraps, also for ``isinstance``, and can itself be wrapped.

    ================  ===========================================================================
    a save            what becomes of it
    ================  ===========================================================================
    ``unavailable``   not written; `StoreUnavailableError`
    ``refused``       not written; `StoreRefusedError`
    ``conflict``      not written; `ConflictError`
    ``dropped``       not written; `UncertainWriteError`
    ``lost``          written, and its acknowledgement lost: `UncertainWriteError`
    ``late``          `UncertainWriteError`, and written when the next call is made
    ``hang``          not written; returns only by being cancelled
    ``hang after``    written; returns only by being cancelled
    ``crash before``  not written; `Crash`
    ``crash after``   written; `Crash`
    ================  ===========================================================================

    A load may be ``unavailable``, ``hang``, ``crash``, or be ``stale``: it gives the reading before
    the last one that this store saw, by a load or a save, of the same run.

    After a `Crash` the process is dead: every call raises it, those under way too, and `release`
    does nothing. What was wrapped is closed, as the system closes what a dead process held open;
    so wrap a client of its own (``store.client()``), and go on with another one.

    Args:
        store: What to wrap.
        faults: The fault of a save by its number, from 1; or a function that is asked at each
            save.
        loads: The fault of a load by its number, from 1.

    Attributes:
        log: All saves that were asked for, in order.

    Raises:
        UsageError: There is no such fault, or no such number.
    """

    def __init__(
        self,
        store: Store,
        faults: Mapping[int, SaveFault] | Callable[[Save], SaveFault | None] | None = None,
        /,
        *,
        loads: Mapping[int, LoadFault] | None = None,
    ) -> None:
        self._store = store
        self._decide = faults if callable(faults) else (faults or {})
        self._load_faults = loads or {}
        for plan, known in ((self._decide, _SAVE_FAULTS), (self._load_faults, _LOAD_FAULTS)):
            if isinstance(plan, Mapping):
                for number, fault in plan.items():
                    _check(number, fault, known)
        self.log: list[Save] = []
        self.loads: int = 0
        self._late: list[Save] = []
        self._readings: dict[str, list[StoredRun | None]] = {}
        self._dead = False
        self._death = anyio.Event()
        # On the instance, and only where they are there: that is what isinstance() looks at.
        if isinstance(store, ListStore):
            self._lister: ListStore = store
            self.list_runs: Callable[..., Awaitable[Sequence[tuple[str, Summary]]]] = (
                self._list_runs
            )
        if isinstance(store, BrowseStore):
            self._browser: BrowseStore = store
            self.browse: Callable[..., Awaitable[Browsed]] = self._browse
        if isinstance(store, ScanStore):
            self._scanner: ScanStore = store
            self.scan: Callable[..., Awaitable[Scanned]] = self._scan
        if isinstance(store, InspectStore):
            self._inspector: InspectStore = store
            self.inspect: Callable[[], Awaitable[StoreReport]] = self._inspect
        if isinstance(store, FoldStore):
            self.folds: Literal[True] = True
        if isinstance(store, LeaseStore):
            self._leaser: LeaseStore = store
            self.acquire: Callable[..., Awaitable[str]] = self._acquire
            self.release: Callable[[str], None] = self._release

    @property
    def saves(self) -> int:
        """How many saves were asked for."""
        return len(self.log)

    @property
    def crashed(self) -> bool:
        """Whether the process has died."""
        return self._dead

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._dead:
            await self.aclose()

    async def load(self, id: str, /) -> StoredRun | None:
        """See `Store.load`."""
        await self._begin()
        self.loads += 1
        fault = self._load_faults.get(self.loads)
        match fault:
            case "unavailable":
                raise StoreUnavailableError(f"load {self.loads} was to be unavailable")
            case "hang":
                await self._hang()
            case "crash":
                await self._crash()
            case "stale":
                seen = self._readings.get(id, [])[-2:]
                if seen:
                    return seen[0] and seen[0]._replace(records=seen[0].records.copy())
            case None:
                pass
        return await self._read(id)

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
        await self._begin()
        save = Save(self.saves + 1, id, dict(changes), expected, epoch, write_id, summary)
        self.log.append(save)
        fault = self._decide(save) if callable(self._decide) else self._decide.get(save.number)
        if fault is not None:
            _check(save.number, fault, _SAVE_FAULTS)
        text = f"save {save.number} (run {id!r}) was to be {fault}"
        match fault:
            case "unavailable":
                raise StoreUnavailableError(text)
            case "refused":
                raise StoreRefusedError(text)
            case "conflict":
                raise ConflictError(id, expected, f"of a stranger: {text}")
            case "dropped":
                raise UncertainWriteError(text)
            case "late":
                self._late.append(save)
                raise UncertainWriteError(text)
            case "hang":
                await self._hang()
            case "crash before":
                await self._crash()
            case _:
                pass
        revision = await self._alive(self._write(save))
        match fault:
            case "lost":
                raise UncertainWriteError(text)
            case "hang after":
                await self._hang()
            case "crash after":
                await self._crash()
            case _:
                pass
        return revision

    async def delete(self, id: str, /, *, expected: str) -> None:
        """See `Store.delete`."""
        await self._begin()
        await self._alive(self._store.delete(id, expected=expected))

    async def aclose(self) -> None:
        """See `Store.aclose`. Raises `Crash` after a crash; leaving ``async with`` does not."""
        if self._dead:
            raise Crash
        await self._store.aclose()

    async def _list_runs(
        self,
        *,
        status: Status | None = None,
        name: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Sequence[tuple[str, Summary]]:
        """See `ListStore.list_runs`."""
        await self._begin()
        return await self._alive(
            self._lister.list_runs(status=status, name=name, after=after, limit=limit)
        )

    async def _browse(
        self,
        wanted: RunFilter = _ALL,
        /,
        *,
        before: tuple[float, str] | None = None,
        limit: int = 100,
    ) -> Browsed:
        """See `BrowseStore.browse`."""
        await self._begin()
        return await self._alive(self._browser.browse(wanted, before=before, limit=limit))

    async def _scan(
        self, wanted: RunFilter = _ALL, /, *, after: str | None = None, limit: int = 100
    ) -> Scanned:
        """See `ScanStore.scan`."""
        await self._begin()
        return await self._alive(self._scanner.scan(wanted, after=after, limit=limit))

    async def _inspect(self) -> StoreReport:
        """See `InspectStore.inspect`."""
        await self._begin()
        return await self._alive(self._inspector.inspect())

    async def _acquire(self, id: str, /, *, seconds: float) -> str:
        """See `LeaseStore.acquire`."""
        await self._begin()
        return await self._alive(self._leaser.acquire(id, seconds=seconds))

    def _release(self, id: str, /) -> None:
        """See `LeaseStore.release`."""
        if not self._dead:
            self._leaser.release(id)

    async def _begin(self) -> None:
        """Refuse the dead, and let land what was late."""
        if self._dead:
            raise Crash
        while self._late:
            save = self._late.pop(0)
            with contextlib.suppress(ConflictError):  # it was overtaken
                await self._alive(self._write(save))

    async def _alive(self, call: Awaitable[T]) -> T:
        """What the wrapped store says, unless this process died while it was asked."""
        try:
            answer = await call
        except Exception:
            if self._dead:
                raise Crash from None
            raise
        if self._dead:
            raise Crash
        return answer

    async def _write(self, save: Save) -> str:
        if save.expected is None:
            self._readings.setdefault(save.id, [None])
        revision = await self._store.save(
            save.id,
            save.changes,
            expected=save.expected,
            epoch=save.epoch,
            write_id=save.write_id,
            summary=save.summary,
        )
        if "stale" in self._load_faults.values():
            self._saw(save.id, await self._store.load(save.id))
        return revision

    async def _read(self, id: str) -> StoredRun | None:
        run = await self._alive(self._store.load(id))
        if "stale" in self._load_faults.values():
            self._saw(id, run)
        return run

    def _saw(self, id: str, run: StoredRun | None) -> None:
        seen = self._readings.setdefault(id, [])
        if not seen or seen[-1] != run:
            seen.append(run and run._replace(records=run.records.copy()))

    async def _hang(self) -> None:
        await self._death.wait()
        raise Crash

    async def _crash(self) -> None:
        self._dead = True
        self._death.set()
        with anyio.CancelScope(shield=True):
            await self._store.aclose()
        raise Crash


def _check(number: object, fault: object, known: frozenset[str]) -> None:
    if fault not in known:
        raise UsageError(f"there is no fault {fault!r}; there are {', '.join(sorted(known))}")
    if not isinstance(number, int) or number < 1:
        raise UsageError(f"saves and loads are counted from 1; there is no {number!r}")
