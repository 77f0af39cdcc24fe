"""``asteps runs``: which runs there are."""

from __future__ import annotations

import heapq
import math
import sys
import time
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import timedelta
from typing import Annotated, Literal, NamedTuple, TypeAlias, get_args

from .._listing import RunSummary, browse_runs
from .._state import seconds
from .._store import Status, Store
from ..errors import StoreError
from ..reports import RowStatus
from ..reports._words import cut, duration_text, plain
from ._arguments import Json, Name, Part, Since, Statuses, StoreUrl, Until, store_url
from ._output import Line, is_styled, table, write_error, write_json, write_lines
from ._phrases import ago, parse_choice, parse_duration, parse_number
from ._stores import holder_of, in_store
from ._typer import Context, Option

__all__ = ["Asked", "Order", "Wanted", "asked", "runs", "wanted_of"]

_NAME, _HOLDER = 32, 32  # columns


Wanted: TypeAlias = Literal["done", "failed", "pending", "proceeding", "interrupted"]
"""What runs can be filtered by: a store's statuses, and what living owners make of them."""

Order: TypeAlias = Literal["saved", "id", "name", "began", "took", "due"]
"""What a listing can be sorted by."""


class Asked(NamedTuple):
    """Filters, as the library takes them."""

    status: list[Status] | None
    name: str | None
    contains: str
    updated_after: timedelta | None
    updated_before: timedelta | None


def asked(
    wanted: Collection[Wanted], name: str | None, part: str, since: str | None, until: str | None
) -> Asked:
    """What was asked for on the command line."""
    stored: set[Status] = {"proceeding" if each == "interrupted" else each for each in wanted}
    return Asked(
        sorted(stored) or None,
        name,
        part,
        None if since is None else parse_duration(since, "--since"),
        None if until is None else parse_duration(until, "--older-than"),
    )


def wanted_of(status: Sequence[str] | None) -> frozenset[Wanted]:
    """The statuses that were asked for; none for any."""
    known: tuple[Wanted, ...] = get_args(Wanted)
    said = {parse_choice(each, "--status", known) for each in status or ()}
    return frozenset(each for each in known if each in said)


class _Page(NamedTuple):
    runs: list[RunSummary]
    living: set[str]
    damaged: dict[str, str]
    more: bool


def runs(
    context: Context,
    *,
    status: Statuses = None,
    name: Name = None,
    part: Part = "",
    since: Since = None,
    until: Until = None,
    order: Annotated[
        str, Option("--sort", metavar="ORDER", help=f"By {', '.join(get_args(Order))}.")
    ] = "saved",
    reverse: Annotated[bool, Option("--reverse", "-r", help="The other way round.")] = False,
    limit: Annotated[
        str, Option("--limit", "-l", metavar="N", help="How many on a page; 0 is all.")
    ] = "30",
    page: Annotated[str, Option("--page", "-p", metavar="N", help="Which page.")] = "1",
    as_document: Json = False,
    store: StoreUrl = None,
) -> None:
    """List the runs, those saved last first."""
    wanted = wanted_of(status)
    filters = asked(wanted, name, part, since, until)
    orders: tuple[Order, ...] = get_args(Order)
    nth = parse_number(page, "--page", 1)
    listing = _Listing(
        filters,
        wanted,
        orders[orders.index(parse_choice(order, "--sort", orders))],
        reverse,
        parse_number(limit, "--limit", 0),
        nth,
    )
    found = in_store(store_url(context, store), listing.fetch)
    if as_document:
        write_json(_document(found))
    else:
        _write(found, nth)
        if not (found.runs or found.damaged):
            write_error("no runs to show")
    for id, error in found.damaged.items():
        write_error(f"run {id!r} cannot be read: {error}")


class _Listing:
    """A page of runs that was asked for."""

    def __init__(
        self,
        filters: Asked,
        wanted: frozenset[Wanted],
        order: Order,
        reverse: bool,  # noqa: FBT001 - a flag of the command line
        limit: int,
        page: int,
    ) -> None:
        self._filters = filters
        self._wanted = wanted
        self._order: Order = order
        self._reverse = reverse
        self._begin = limit * (page - 1)
        self._end = limit * page if limit else None
        self._damaged: dict[str, str] = {}
        self._owners: dict[str, bool] = {}

    async def fetch(self, store: Store) -> _Page:
        """Read as many summaries as it takes."""
        found: list[RunSummary] = []
        enough = None if self._end is None else self._end + 1
        in_order = self._order == "saved" and not self._reverse
        async for run in self._browse(store, enough if in_order else None):
            if await self._is_wanted(store, run):
                found.append(run)
                if in_order and len(found) == enough:
                    break
        if not in_order:
            found = self._sorted(found, enough)
        more = enough is not None and len(found) == enough
        shown = found[self._begin : self._end]
        for run in shown:
            await self._lives(store, run)
        living = {owner for owner, lives in self._owners.items() if lives}
        return _Page(shown, living, self._damaged, more)

    def _browse(self, store: Store, enough: int | None) -> AsyncIterator[RunSummary]:
        def damaged(id: str, error: StoreError) -> None:
            self._damaged[id] = str(error)

        # Which of the proceeding runs are interrupted is not known to the store.
        limit = None if "interrupted" in self._wanted else enough
        return browse_runs(store, **self._filters._asdict(), limit=limit, damaged=damaged)

    async def _is_wanted(self, store: Store, run: RunSummary) -> bool:
        if not self._wanted or run.status != "proceeding":
            return True
        if self._wanted >= {"proceeding", "interrupted"}:
            return True
        lives = await self._lives(store, run)
        return ("proceeding" if lives else "interrupted") in self._wanted

    async def _lives(self, store: Store, run: RunSummary) -> bool:
        """Whether somebody advances the run; each owner is asked about once."""
        if run.owner is None:
            return False
        if run.owner not in self._owners:
            self._owners[run.owner] = await holder_of(store, run.id, run.owner) is not None
        return self._owners[run.owner]

    def _sorted(self, found: list[RunSummary], enough: int | None) -> list[RunSummary]:
        now = time.time()

        def key(run: RunSummary) -> tuple[float | str, str]:
            return _key(run, self._order, now), run.id

        # Times begin with the latest and the longest, what is due with the earliest; names with A.
        falling = self._order in ("saved", "began", "took")
        if enough is None:
            return sorted(found, key=key, reverse=falling is not self._reverse)
        pick = heapq.nsmallest if falling is self._reverse else heapq.nlargest
        return pick(enough, found, key=key)


def _key(run: RunSummary, order: Order, now: float) -> float | str:
    match order:
        case "id":
            return run.id
        case "name":
            return run.name
        case "began":
            return seconds(run.created_at) or 0.0
        case "took":
            return _took(run, now)
        case "due":
            return seconds(run.wake_at) or math.inf
        case "saved":
            return seconds(run.updated_at) or 0.0


def _took(run: RunSummary, now: float) -> float:
    """How long it took, or goes on."""
    began = seconds(run.created_at) or now
    return max((seconds(run.done_at) or now) - began, 0.0)


# --- writing --------------------------------------------------------------------------------------


def status_of(run: RunSummary, *, held: bool) -> RowStatus:
    """What a run has come to, by its summary."""
    return "interrupted" if run.status == "proceeding" and not held else run.status


def _write(found: _Page, page: int) -> None:
    now = time.time()
    head: Line = [(text, "dim") for text in ("ID", "STATUS", "NAME", "SAVED", "TOOK", "")]
    rows = [head, *(_line(run, run.owner in found.living, now) for run in found.runs)]
    if found.runs:
        write_lines(table(rows, right=(3, 4)))
        if found.more and is_styled(sys.stdout):
            write_lines([[(f"more with --page {page + 1}", "dim")]])
    elif is_styled(sys.stdout):
        write_lines([[("no such runs", "dim")]])


def _line(run: RunSummary, held: bool, now: float) -> Line:  # noqa: FBT001 - of the row
    status = status_of(run, held=held)
    wake = seconds(run.wake_at)
    rest = ""
    if wake is not None:
        rest = f"due in {duration_text(wake - now)}" if wake > now else "due"
    elif held:
        rest = f"held by {cut(plain(run.owner or ''), _HOLDER)}"
    return [
        (run.id, "head"),
        (status, status),
        (cut(plain(run.name), _NAME), ""),
        (ago(seconds(run.updated_at) or now, now), "dim"),
        (duration_text(_took(run, now)), "dim"),
        (rest, "dim"),
    ]


def _document(found: _Page) -> object:
    return {
        "runs": [_run_document(run, found.living) for run in found.runs],
        "damaged": found.damaged,
        "more": found.more,
    }


def _run_document(run: RunSummary, living: set[str]) -> dict[str, object]:
    held = run.owner in living
    return {
        "id": run.id,
        "name": run.name,
        "status": status_of(run, held=held),
        "holder": run.owner if held else None,
        "createdAt": run.created_at,
        "savedAt": run.updated_at,
        "dueAt": run.wake_at,
        "endedAt": run.done_at,
    }
