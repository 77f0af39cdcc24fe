"""What operators see of all the runs of a store: listings, whole runs, and how the storage is."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Generic, Self, TypeVar, get_args

import msgspec

from ._clock import SystemClock
from ._codec import assemble
from ._state import State, instant
from ._store import (
    BrowseStore,
    InspectStore,
    ListStore,
    RunFilter,
    ScanStore,
    Status,
    Store,
    StoredRun,
    StoreReport,
    Summary,
)
from .errors import StoreError, UsageError

__all__ = [
    "RunSummary",
    "age",
    "browse_runs",
    "inspect_store",
    "list_runs",
    "run_filter",
    "scan_runs",
]

T = TypeVar("T")
Cursor = TypeVar("Cursor")
Damaged = Callable[[str, StoreError], object]

_PAGE = 500  # summaries that are asked for at a time
_LATER_PAGE = 10_000  # of who wants so many: a store may have to look at all runs for each page
_WHOLE_RUNS = 200  # likewise; the trees of one page are made without letting other tasks run


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


def _line(id: str, summary: Summary) -> RunSummary:
    return RunSummary(
        id=id,
        name=summary.name,
        status=summary.status,
        owner=summary.owner,
        epoch=summary.epoch,
        created_at=instant(summary.created_at),
        updated_at=instant(summary.updated_at),
        wake_at=instant(summary.wake_at),
        done_at=instant(summary.done_at),
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
    """One page of the runs of a store, in the order of their ids.

    A run that cannot be read is left out; `browse_runs`, `scan_runs` and `inspect_store` name it.

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
    found = await _lister(store).list_runs(status=status, name=name, after=after, limit=limit)
    return [_line(id, summary) for id, summary in found]


def _lister(store: object) -> ListStore:
    if not isinstance(store, ListStore):
        raise UsageError(f"{type(store).__name__} cannot list its runs")
    return store


# --- filters ------------------------------------------------------------------------------------


def age(value: timedelta | float, what: str) -> float:
    """How long ago, in seconds.

    Raises:
        UsageError: It is negative, or no number.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise UsageError(f"{what} is a timedelta or seconds, not {type(value).__name__}")
    if not 0 <= seconds < math.inf:
        raise UsageError(f"{what} is {value!r}; it must be at least 0")
    return float(seconds)


def run_filter(
    status: Status | Collection[Status] | None,
    name: str | None,
    contains: str,
    updated_after: datetime | timedelta | None = None,
    updated_before: datetime | timedelta | None = None,
) -> RunFilter:
    """What a store is asked for, from what a caller says.

    Raises:
        UsageError: There is no such status, or a time has no zone.
    """
    statuses: tuple[Status, ...] = (
        () if status is None else (status,) if isinstance(status, str) else tuple(status)
    )
    if status is not None and not statuses:
        raise UsageError("status is empty; leave it out for runs of any status")
    known = get_args(Status)
    if odd := [s for s in statuses if s not in known]:
        raise UsageError(f"there is no status {odd[0]!r}; there are {', '.join(known)}")
    return RunFilter(
        statuses=statuses,
        name=name,
        contains=contains,
        updated_from=_moment(updated_after, "updated_after"),
        updated_before=_moment(updated_before, "updated_before"),
    )


def _moment(value: datetime | timedelta | None, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, timedelta):
        return SystemClock.now() - age(value, what)
    if value.tzinfo is None:
        raise UsageError(f"{what} has no time zone: say datetime(…, tzinfo=UTC), or a timedelta")
    return value.timestamp()


# --- pages --------------------------------------------------------------------------------------


class _Items(Generic[T, Cursor]):
    """What pages hold, one page asked for at a time.

    No generator: one that is not gone through to its end would have to be closed.
    """

    def __init__(
        self, fetch: Callable[[Cursor | None], Awaitable[tuple[Iterable[T], Cursor | None]]]
    ) -> None:
        self._fetch = fetch
        self._items: Iterator[T] = iter(())
        self._next: Cursor | None = None
        self._is_last = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            for item in self._items:
                return item
            if self._is_last:
                raise StopAsyncIteration
            items, self._next = await self._fetch(self._next)
            self._items, self._is_last = iter(items), self._next is None


class _Damage:
    """Who is told of runs that cannot be read, once of each."""

    def __init__(self, tell: Damaged | None) -> None:
        self._tell = tell
        self._told: set[str] = set()

    def note(self, id: str, error: StoreError) -> None:
        if self._tell is None:
            raise error
        if id not in self._told:
            self._told.add(id)
            self._tell(id, error)


def browse_runs(
    store: Store,
    /,
    *,
    status: Status | Collection[Status] | None = None,
    name: str | None = None,
    contains: str = "",
    updated_after: datetime | timedelta | None = None,
    updated_before: datetime | timedelta | None = None,
    limit: int | None = None,
    damaged: Damaged | None = None,
) -> AsyncIterator[RunSummary]:
    """The runs of a store, the one that was saved last coming first.

    ::

        async for run in asteps.browse_runs(store, status="failed", limit=20):
            print(run.id, run.updated_at)

    They are asked for page by page, and what comes stays in order while runs change: one that is
    saved meanwhile may be missing, as it has moved to the front, but none comes twice.

    Args:
        store: A `BrowseStore`; from one that is a `ListStore` alone all summaries are read.
        status: Only runs of this status, or of one of these.
        name: Only runs of this root function.
        contains: Only runs with this in their id, to the letter.
        updated_after: Only runs that were saved at this time or later; a ``timedelta`` is so long
            ago.
        updated_before: Only runs that were saved before this time, and not since.
        limit: How many at most; all by default.
        damaged: Called with the id and the error of each run that cannot be read, which has no
            status, name or times to be filtered by. Without it the first one raises its error.

    Raises:
        UsageError: The store can neither browse nor list, or an argument is not what it must be.
        StoreError: It could not be read.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, not {limit}")
    wanted = run_filter(status, name, contains, updated_after, updated_before)
    damage = _Damage(damaged)
    if isinstance(store, BrowseStore):
        return _Items(_browser(store, wanted, limit, damage))
    return _Items(_sorter(_lister(store), wanted, limit))


def _browser(
    store: BrowseStore, wanted: RunFilter, limit: int | None, damage: _Damage
) -> Callable[
    [tuple[float, str] | None], Awaitable[tuple[Iterator[RunSummary], tuple[float, str] | None]]
]:
    left = math.inf if limit is None else limit

    async def fetch(
        before: tuple[float, str] | None,
    ) -> tuple[Iterator[RunSummary], tuple[float, str] | None]:
        nonlocal left
        size = int(min(left, _PAGE if before is None else _LATER_PAGE))
        page = await store.browse(wanted, before=before, limit=size)
        for id, error in page.damaged.items():
            damage.note(id, error)
        left -= len(page.runs)
        return (_line(id, summary) for id, summary in page.runs), page.next if left else None

    return fetch


def _sorter(
    store: ListStore, wanted: RunFilter, limit: int | None
) -> Callable[[str | None], Awaitable[tuple[list[RunSummary], str | None]]]:
    async def fetch(_: str | None) -> tuple[list[RunSummary], str | None]:
        found = [item async for item in _Items(_pager(store, wanted))]
        if limit is None:
            found.sort(key=_newest, reverse=True)
        else:
            found = heapq.nlargest(limit, found, key=_newest)
        return [_line(id, summary) for id, summary in found], None

    return fetch


def _newest(item: tuple[str, Summary]) -> tuple[float, str]:
    return item[1].updated_at, item[0]


def _pager(
    store: ListStore, wanted: RunFilter
) -> Callable[[str | None], Awaitable[tuple[Iterator[tuple[str, Summary]], str | None]]]:
    """Pages of a store that only lists, filtered here as far as it cannot do so itself."""
    status = wanted.statuses[0] if len(wanted.statuses) == 1 else None

    async def fetch(after: str | None) -> tuple[Iterator[tuple[str, Summary]], str | None]:
        page = await store.list_runs(status=status, name=wanted.name, after=after, limit=_PAGE)
        return filter(lambda item: wanted.accepts(*item), page), page[-1][0] if page else None

    return fetch


# --- whole runs ---------------------------------------------------------------------------------


def scan_runs(
    store: Store,
    /,
    *,
    status: Status | Collection[Status] | None = None,
    name: str | None = None,
    contains: str = "",
    updated_after: datetime | timedelta | None = None,
    updated_before: datetime | timedelta | None = None,
    damaged: Damaged | None = None,
) -> AsyncIterator[tuple[RunSummary, State]]:
    """Every run of a store with its tree, in the order of the ids.

    ::

        async for run, state in asteps.scan_runs(store, name="move_to_vpc"):
            ...

    Some 200 runs are read at a time, so it does not matter how many there are. Each tree is one
    consistent reading; two may be of different times. Changing them changes nothing in the store.

    Args:
        store: A `ScanStore`; from one that is a `ListStore` alone each run is loaded by itself.
        status: Only runs of this status, or of one of these.
        name: Only runs of this root function.
        contains: Only runs with this in their id, to the letter.
        updated_after: Only runs that were saved at this time or later; a ``timedelta`` is so long
            ago.
        updated_before: Only runs that were saved before this time, and not since.
        damaged: Called with the id and the error of each run that cannot be read. Without it the
            first one raises its error.

    Raises:
        UsageError: The store can neither scan nor list, or an argument is not what it must be.
        StoreError: It could not be read.
    """
    wanted = run_filter(status, name, contains, updated_after, updated_before)
    damage = _Damage(damaged)
    if isinstance(store, ScanStore):
        return _Items(_scanner(store, wanted, damage))
    return _Items(_loader(store, _lister(store), wanted, damage))


def _scanner(
    store: ScanStore, wanted: RunFilter, damage: _Damage
) -> Callable[[str | None], Awaitable[tuple[Iterator[tuple[RunSummary, State]], str | None]]]:
    async def fetch(after: str | None) -> tuple[Iterator[tuple[RunSummary, State]], str | None]:
        page = await store.scan(wanted, after=after, limit=_WHOLE_RUNS)
        for id, error in page.damaged.items():
            damage.note(id, error)
        return _trees(page.runs, damage), page.next

    return fetch


def _loader(
    store: Store, lister: ListStore, wanted: RunFilter, damage: _Damage
) -> Callable[[str | None], Awaitable[tuple[Iterator[tuple[RunSummary, State]], str | None]]]:
    list_page = _pager(lister, wanted)

    async def fetch(after: str | None) -> tuple[Iterator[tuple[RunSummary, State]], str | None]:
        page, last = await list_page(after)
        found: list[tuple[str, StoredRun]] = []
        for id, _ in page:
            try:
                stored = await store.load(id)
            except StoreError as exc:
                damage.note(id, exc)
                continue
            if stored is not None and wanted.accepts(id, stored.summary):  # still
                found.append((id, stored))
        return _trees(found, damage), last

    return fetch


def _trees(
    runs: Iterable[tuple[str, StoredRun]], damage: _Damage
) -> Iterator[tuple[RunSummary, State]]:
    for id, stored in runs:
        try:
            state = assemble(stored.records, f"run {id!r}")
        except StoreError as exc:
            damage.note(id, exc)
            continue
        yield _line(id, stored.summary), state


# --- how the storage is -------------------------------------------------------------------------


async def inspect_store(store: Store, /, *, trees: bool = True) -> StoreReport:
    """Look at all that a storage holds, and say what is wrong with it. Nothing is changed.

    Args:
        store: An `InspectStore`; of one that is not, the report says only what its runs show.
        trees: Whether each run is read and decoded, too, which finds damage that the store cannot
            see. This is left out where the storage as a whole has problems.

    Raises:
        StateFormatError: The storage is none of asteps's, or newer.
        StoreError: It cannot be reached.
    """
    if isinstance(store, InspectStore):
        report = await store.inspect()
    else:
        report = StoreReport(kind=type(store).__name__)
    damaged, problems = dict(report.damaged), list(report.problems)
    counts: Counter[str] = Counter()

    def note(id: str, error: StoreError) -> None:
        damaged[id] = str(error)

    try:
        if trees and not problems:  # to use a damaged storage might change it
            async for run, _ in scan_runs(store, damaged=note):
                counts[run.status] += 1
        elif not isinstance(store, InspectStore):
            async for run in browse_runs(store, damaged=note):
                counts[run.status] += 1
    except StoreError as exc:
        if not isinstance(store, InspectStore):
            raise
        problems.append(str(exc))
    return msgspec.structs.replace(
        report,
        runs=report.runs or dict(sorted(counts.items())),
        damaged=dict(sorted(damaged.items())),
        problems=tuple(dict.fromkeys(problems)),
    )
