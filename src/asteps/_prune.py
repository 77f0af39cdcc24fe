"""Deleting the runs that ended long ago."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta

import anyio
import msgspec

from ._clock import SystemClock
from ._listing import age, browse_runs, run_filter
from ._operators import delete_if
from ._store import Status, Store, StoredRun
from .errors import BusyError, ConflictError, StateFormatError, StoreError, UsageError

__all__ = ["PruneReport", "prune"]

_AT_ONCE = 32  # deletions under way, which a store may make one transaction


class PruneReport(msgspec.Struct, frozen=True):
    """What `prune` did.

    Attributes:
        deleted: The ids of the runs that were deleted, or that would be in a dry run.
        kept: Why a run was not deleted, by id: it was held, or changed meanwhile.
        damaged: Why a run could not be read, by id. Such a run is never deleted.
        dry_run: Nothing was deleted.
    """

    deleted: tuple[str, ...]
    kept: dict[str, str]
    damaged: dict[str, str]
    dry_run: bool


async def prune(
    store: Store,
    /,
    *,
    older_than: timedelta | float,
    status: Status | Collection[Status] = "done",
    name: str | None = None,
    contains: str = "",
    limit: int | None = None,
    dry_run: bool = False,
    now: datetime | None = None,
) -> PruneReport:
    """Delete the runs that ended, and were last changed, longer ago than this.

    A run that somebody holds is kept, and so is one that was changed since it was looked at: each
    is deleted by compare-and-set. A call that was cancelled, or failed, has deleted some whole runs
    and left the others whole; call it again for these.

    Args:
        store: A `BrowseStore` or a `ListStore`.
        older_than: How long ago, in seconds or as a ``timedelta``.
        status: ``done``, ``failed`` or both: runs that have not ended are never deleted.
        name: Only runs of this root function.
        contains: Only runs with this in their id, to the letter.
        limit: How many at most; those that were saved first are deleted first.
        dry_run: Only say what would be deleted.
        now: What ``older_than`` counts from; now by default.

    Raises:
        UsageError: The store can neither browse nor list, or an argument is not what it must be.
        StoreError: The store could not be read, or a run not be deleted.
    """
    wanted = run_filter(status, name, contains)
    if odd := set(wanted.statuses) - {"done", "failed"}:
        raise UsageError(f"prune deletes what is done or failed, not what is {min(odd)}")
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, not {limit}")
    if now is not None and now.tzinfo is None:
        raise UsageError("now has no time zone: say datetime(…, tzinfo=UTC)")
    moment = SystemClock.now() if now is None else now.timestamp()
    ends = max(moment - age(older_than, "older_than"), 0.0)
    end = datetime.fromtimestamp(ends, UTC)

    def is_over(run: StoredRun) -> bool:
        summary = run.summary
        changed = max(summary.updated_at, summary.done_at or 0.0)
        return summary.status in wanted.statuses and changed < ends

    damaged: dict[str, str] = {}
    found: deque[str] = deque(maxlen=limit)
    runs = browse_runs(
        store,
        status=wanted.statuses,
        name=name,
        contains=contains,
        updated_before=end,
        damaged=lambda id, error: damaged.setdefault(id, str(error)),
    )
    async for run in runs:
        if run.done_at is None or run.done_at < end:
            found.append(run.id)
    found.reverse()
    if dry_run:
        return PruneReport(tuple(found), {}, damaged, dry_run=True)
    pruning = _Pruning(store, found, is_over)
    await pruning.work()
    return PruneReport(tuple(pruning.deleted), pruning.kept, damaged, dry_run=False)


class _Pruning:
    """Deletions, some at a time; the first error of the store ends them all."""

    def __init__(
        self, store: Store, ids: deque[str], condition: Callable[[StoredRun], bool]
    ) -> None:
        self._store = store
        self._ids = ids
        self._condition = condition
        self._error: StoreError | None = None
        self.deleted: list[str] = []
        self.kept: dict[str, str] = {}

    async def work(self) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(min(_AT_ONCE, len(self._ids))):
                tasks.start_soon(self._delete, name="asteps prune")
        if self._error is not None:
            raise self._error

    async def _delete(self) -> None:
        while self._ids and self._error is None:
            id = self._ids.popleft()
            try:
                if await delete_if(self._store, id, self._condition):
                    self.deleted.append(id)
                else:
                    self.kept[id] = "it was changed, or deleted, meanwhile"
            except (BusyError, ConflictError, StateFormatError) as exc:
                self.kept[id] = str(exc)
            except StoreError as exc:
                self._error = exc
