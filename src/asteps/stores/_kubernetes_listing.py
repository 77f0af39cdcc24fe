"""Pages of the runs in one object, all of which are at hand.

Pure. Damaged runs are told of on the first page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from .._store import Browsed, RunFilter, Scanned, Status, StoredRun, Summary
from ..errors import StoreError, UsageError

__all__ = ["Found", "browsed", "listed", "scanned"]

Found: TypeAlias = Mapping[str, StoredRun | StoreError]


def listed(
    found: Found, status: Status | None, name: str | None, after: str | None, limit: int
) -> Sequence[tuple[str, Summary]]:
    """See `ListStore.list_runs`."""
    _check(limit)
    return [
        (id, run.summary)
        for id, run in sorted(_readable(found), key=_id)
        if (after is None or id > after)
        and (status is None or run.summary.status == status)
        and (name is None or run.summary.name == name)
    ][:limit]


def browsed(
    found: Found, wanted: RunFilter, before: tuple[float, str] | None, limit: int
) -> Browsed:
    """See `BrowseStore.browse`."""
    _check(limit)
    fits = sorted(
        (
            (id, run.summary)
            for id, run in _readable(found)
            if wanted.accepts(id, run.summary)
            and (before is None or (run.summary.updated_at, id) < before)
        ),
        key=lambda item: (item[1].updated_at, item[0]),
        reverse=True,
    )
    page, more = fits[:limit], len(fits) > limit
    damaged = _damaged(found, wanted) if before is None else {}
    return Browsed(page, damaged, (page[-1][1].updated_at, page[-1][0]) if more else None)


def scanned(found: Found, wanted: RunFilter, after: str | None, limit: int) -> Scanned:
    """See `ScanStore.scan`."""
    _check(limit)
    fits = [
        (id, run)
        for id, run in sorted(_readable(found), key=_id)
        if (after is None or id > after) and wanted.accepts(id, run.summary)
    ]
    page, more = fits[:limit], len(fits) > limit
    return Scanned(
        page, _damaged(found, wanted) if after is None else {}, page[-1][0] if more else None
    )


def _id(item: tuple[str, StoredRun]) -> str:
    return item[0]


def _readable(found: Found) -> list[tuple[str, StoredRun]]:
    return [(id, run) for id, run in found.items() if isinstance(run, StoredRun)]


def _damaged(found: Found, wanted: RunFilter) -> dict[str, StoreError]:
    return {
        id: run
        for id, run in found.items()
        if isinstance(run, StoreError) and wanted.contains in id
    }


def _check(limit: int) -> None:
    if limit < 1:
        raise UsageError(f"limit must be at least 1, not {limit}")
