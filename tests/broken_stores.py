"""Stores that are broken on purpose, one line each, for `test_conformance_kit.py` to run.

Not collected by itself. `Store` is honest as long as its ``defect`` is none of `DEFECTS`, which
names for each defect the tests of the kit that must find it.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint, current_token

from asteps._store import (
    Browsed,
    Holder,
    RunFilter,
    Scanned,
    Status,
    StoredRun,
    StoreReport,
    Summary,
)
from asteps.errors import (
    BusyError,
    ConflictError,
    StoreClosedError,
    StoreRefusedError,
    StoreUnavailableError,
    UsageError,
)
from asteps.testing import StoreConformance

DEFECTS: dict[str, tuple[str, ...]] = {
    # records
    "unknown run raises": ("test_unknown_run_is_none",),
    "bytes reformatted": ("test_save_comes_back_exactly",),
    "summary rounded": ("test_save_comes_back_exactly",),
    "ids folded": ("test_ids_that_differ_never_meet",),
    "ids normalised": ("test_ids_that_differ_never_meet",),
    "ids cut": ("test_ids_that_differ_never_meet",),
    "keys folded": ("test_keys_that_differ_never_meet",),
    "keys cut": ("test_keys_that_differ_never_meet",),
    "empty key dropped": ("test_keys_that_differ_never_meet",),
    "records shared by runs": ("test_runs_are_independent",),
    "keeps the caller's mapping": ("test_callers_mapping_is_not_kept",),
    "hands out its own mapping": ("test_callers_mapping_is_not_kept",),
    "loads from a cache": ("test_acknowledged_save_is_seen_by_all",),
    "acknowledges before it writes": ("test_acknowledged_save_is_seen_by_all",),
    "large records cut": ("test_large_record",),
    "many records cut": ("test_many_records",),
    "limit not kept": ("test_large_record",),
    "limit half kept": ("test_large_record",),
    # capabilities
    "leases undeclared": ("test_capabilities_are_declared_and_there",),
    "leases missing": ("test_capabilities_are_declared_and_there",),
    "listing undeclared": ("test_capabilities_are_declared_and_there",),
    "listing missing": ("test_capabilities_are_declared_and_there",),
    "browsing undeclared": ("test_capabilities_are_declared_and_there",),
    "browsing missing": ("test_capabilities_are_declared_and_there",),
    "scanning undeclared": ("test_capabilities_are_declared_and_there",),
    "scanning missing": ("test_capabilities_are_declared_and_there",),
    "inspecting undeclared": ("test_capabilities_are_declared_and_there",),
    "inspecting missing": ("test_capabilities_are_declared_and_there",),
    "nothing declared": ("test_capabilities_are_declared_and_there",),
    "same client twice": ("test_acknowledged_save_is_seen_by_all",),
    # saves
    "last writer wins": (
        "test_conflict_leaves_the_data",
        "test_one_saver_wins",
        "test_no_update_is_lost",
        "test_one_claim_wins",
    ),
    "creation replaces": ("test_creation_demands_that_there_is_none", "test_one_creator_wins"),
    "saves what is not there": ("test_save_expecting_a_run_creates_none",),
    "removal of an absent key raises": ("test_save_sets_removes_and_keeps",),
    "removal stores null": ("test_creation_ignores_removals", "test_save_sets_removes_and_keeps"),
    "others removed": ("test_save_sets_removes_and_keeps",),
    "empty save left out": ("test_empty_save_changes_summary_and_revision",),
    "summary merged": ("test_empty_save_changes_summary_and_revision",),
    "conflict writes": ("test_conflict_leaves_the_data",),
    "foreign errors": ("test_conflict_leaves_the_data", "test_save_expecting_a_run_creates_none"),
    "revisions start again": (
        "test_revision_is_never_used_twice",
        "test_revision_from_before_a_delete_conflicts",
    ),
    "write id ignored": (
        "test_repeated_save_is_recognised",
        "test_identical_saves_at_once_are_one",
    ),
    "write id known to its client only": ("test_repeated_save_is_recognised",),
    "write id recognised and written again": ("test_repeated_save_is_recognised",),
    "write id recognised across epochs": ("test_write_id_counts_under_its_epoch_only",),
    "write id never forgotten": ("test_repeated_save_is_recognised_at_the_head_only",),
    "delete leaves records": ("test_delete_removes_all",),
    "delete does not compare": (
        "test_delete_at_another_revision_conflicts",
        "test_delete_and_save_do_not_both_win",
    ),
    "delete of nothing raises": ("test_delete_of_nothing_is_no_error",),
    # races
    "check, await, act": (
        "test_one_creator_wins",
        "test_one_saver_wins",
        "test_no_update_is_lost",
        "test_one_claim_wins",
        "test_identical_saves_at_once_are_one",
    ),
    "check, await, delete": ("test_delete_and_save_do_not_both_win",),
    "reads while it is written": ("test_load_is_one_consistent_reading",),
    # cancellation
    "half a write": (
        "test_cancelled_save_is_whole_or_nothing",
        "test_cancelled_creation_is_whole_or_nothing",
    ),
    "lands later": (
        "test_cancelled_save_is_whole_or_nothing",
        "test_cancelled_creation_is_whole_or_nothing",
    ),
    "half a delete": ("test_cancelled_delete_is_whole_or_nothing",),
    "poisoned by a cancelled load": ("test_cancelled_load_has_no_effect",),
    "poisoned by a cancelled save": (
        "test_call_in_a_cancelled_scope_ends",
        "test_cancelled_save_is_whole_or_nothing",
    ),
    # open and closed
    "works when closed": ("test_closed_store_says_so",),
    "second aclose raises": ("test_closing_again_does_nothing",),
    "forgets at the last aclose": ("test_what_was_acknowledged_stays",),
    "closes for all": ("test_closing_one_client_leaves_the_others",),
    "acknowledges while it closes": ("test_closing_waits_or_refuses",),
    "works in any loop": ("test_second_event_loop_is_misuse",),
    # listing
    "lists itself": ("test_listing_begins_empty",),
    "lists as saved": ("test_listing_is_ordered_by_code_point",),
    "lists by UTF-16": (
        "test_listing_is_ordered_by_code_point",
        "test_listing_after_an_id_that_is_not_there",
    ),
    "lists the first summary": ("test_listing_has_the_last_summary",),
    "lists the deleted": ("test_listing_has_the_last_summary",),
    "status not filtered": ("test_listing_filters", "test_listing_in_pages"),
    "name folded": ("test_listing_filters",),
    "filters by status or name": ("test_listing_filters",),
    "limit before the filter": ("test_listing_in_pages",),
    "after includes": ("test_listing_in_pages", "test_listing_after_an_id_that_is_not_there"),
    "after must be there": ("test_listing_after_an_id_that_is_not_there",),
    # browsing
    "browses by creation": ("test_browsing_begins_with_the_newest",),
    "browses ids forwards": ("test_browsing_orders_equals_by_id",),
    "browses ids by UTF-16": ("test_browsing_orders_equals_by_id",),
    "browses by LIKE": ("test_browsing_filters",),
    "browses what is after, not from": ("test_browsing_filters",),
    "browses by the first status alone": ("test_browsing_filters",),
    "browses one page": (
        "test_browsing_in_pages",
        "test_browsing_stays_in_order_while_runs_change",
    ),
    "browses by time alone": ("test_browsing_in_pages",),
    "browses by offset": ("test_browsing_stays_in_order_while_runs_change",),
    "browses from a run that has to be there": ("test_browsing_stays_in_order_while_runs_change",),
    # scanning
    "scans as saved": ("test_scan_gives_what_load_gives",),
    "scans the first records": ("test_scan_gives_what_load_gives",),
    "scans one page": ("test_scan_in_pages",),
    "scans with the limit before the filter": ("test_scan_in_pages",),
    "scans by offset": ("test_scan_goes_on_while_runs_change",),
    "scans what was there at first": ("test_scan_goes_on_while_runs_change",),
    # inspection
    "inspects the deleted": ("test_inspection_counts_the_runs",),
    "inspects by saving": ("test_inspection_changes_nothing",),
    "inspects owners as living": ("test_inspection_tells_living_owners_from_dead",),
    "inspects owners as dead": ("test_inspection_tells_living_owners_from_dead",),
    # leases
    "holder ignored": (
        "test_holder_keeps_others_out",
        "test_busy_holds_nothing",
        "test_last_save_without_owner_frees",
    ),
    "acquires twice": (
        "test_acquired_twice_in_one_client_is_busy",
        "test_one_task_of_a_client_acquires",
        "test_holder_keeps_others_out",
    ),
    "check, await, acquire": ("test_one_task_of_a_client_acquires",),
    "release ignored": ("test_release_frees_for_this_client",),
    "release frees for all": (
        "test_release_frees_for_this_client",
        "test_release_of_what_is_not_held_does_nothing",
    ),
    "release of nothing raises": ("test_release_of_what_is_not_held_does_nothing",),
    "owner kept": ("test_last_save_without_owner_frees",),
    "closing frees nothing": ("test_closing_frees",),
    "every owner lives": ("test_owner_that_never_was_holds_nothing",),
    "one owner for all": ("test_owners_of_two_clients_differ", "test_holder_keeps_others_out"),
    "busy holds": ("test_busy_holds_nothing",),
    "cancelled acquire holds": ("test_cancelled_acquire_holds_nothing",),
}


ALL = RunFilter()


def like(pattern: str, text: str) -> bool:
    """What SQL's LIKE makes of a pattern that nobody escaped."""
    signs = {"%": ".*", "_": "."}
    parts = (signs.get(c) or re.escape(c) for c in pattern)
    return re.search("".join(parts), text, re.IGNORECASE | re.DOTALL) is not None


class Run:
    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}
        self.revision = ""
        self.number = 0
        self.written: list[tuple[str, int, str, object]] = []  # write id, epoch, revision, by
        self.summary: Any = None
        self.first: Any = None


class Storage:
    def __init__(self) -> None:
        self.lock: Any = None
        self.runs: dict[str, Run] = {}
        self.numbers = itertools.count(1)
        self.clients: list[Store] = []
        self.gone: dict[str, Summary] = {}
        self.shared: dict[str, bytes] = {}
        self.scanned: dict[str, StoredRun] = {}
        self.first: dict[str, dict[str, bytes]] = {}
        self.left: dict[str, dict[str, bytes]] = {}


class Store:
    """A store in memory whose every call takes a while. What it does wrong is its ``defect``."""

    def __init__(self, storage: Storage, defect: str) -> None:
        self.storage = storage
        self.defect = defect
        self.owner = "all" if defect == "one owner for all" else f"client-{len(storage.clients)}"
        storage.clients.append(self)
        self.held: set[str] = set()
        self.closed = False
        self.poisoned = False
        self.loop: object = None
        self.cache: dict[str, StoredRun] = {}
        self.behind: list[Any] = []
        self.free: set[str] = set()
        if defect != "listing missing":
            self.list_runs = self._list_runs
        if defect != "browsing missing":
            self.browse = self._browse
        if defect != "scanning missing":
            self.scan = self._scan
        if defect != "inspecting missing":
            self.inspect = self._inspect
        if defect != "leases missing":
            self.acquire = self._acquire
            self.release = self._release

    @asynccontextmanager
    async def call(self, *unlocked: str) -> AsyncIterator[None]:
        """One call at a time per storage, except with these defects."""
        if self.closed and self.defect != "works when closed":
            raise StoreClosedError("closed")
        if self.defect != "works in any loop":
            self.loop = self.loop or current_token()
            if self.loop != current_token():
                raise UsageError("another event loop")
        if self.poisoned:
            raise StoreUnavailableError("poisoned")
        if self.storage.lock is None or self.defect == "works in any loop":
            self.storage.lock = anyio.Lock()
        lock = anyio.Lock() if self.defect in unlocked else self.storage.lock
        async with lock:
            await checkpoint()
            while self.behind:
                self.behind.pop()()
            yield

    def id(self, id: str) -> str:
        match self.defect:
            case "ids folded":
                return id.lower()
            case "ids normalised":
                return unicodedata.normalize("NFC", id)
            case "ids cut":
                return id[:255]
            case _:
                return id

    def key(self, key: str) -> str:
        match self.defect:
            case "keys folded":
                return key.lower()
            case "keys cut":
                return key[:10_000]
            case _:
                return key

    def data(self, data: bytes) -> bytes:
        if self.defect == "bytes reformatted":
            return json.dumps(json.loads(data)).encode()
        if self.defect == "large records cut":
            return data[: 2**20 - 1]
        return data

    async def load(self, id: str, /) -> StoredRun | None:
        id = self.id(id)
        try:
            async with self.call("reads while it is written"):
                run = self.storage.runs.get(id)
        except anyio.get_cancelled_exc_class():
            self.poisoned = self.defect == "poisoned by a cancelled load"
            raise
        if self.defect == "loads from a cache" and id in self.cache:
            return self.cache[id]
        if run is None:
            if self.defect == "unknown run raises":
                raise KeyError(id)
            return None
        records = run.records
        if self.defect == "records shared by runs":
            records = {key: self.storage.shared[key] for key in records}
        if self.defect != "hands out its own mapping":
            records = dict(records)
        stored = StoredRun(records, run.revision, run.summary)
        if self.defect != "hands out its own mapping":
            self.cache[id] = stored
        return stored

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
        id = self.id(id)
        try:
            return await self._save(id, changes, expected, epoch, write_id, summary)
        except anyio.get_cancelled_exc_class():
            self.poisoned = self.defect == "poisoned by a cancelled save"
            if self.defect == "lands later":
                run = self.storage.runs.get(id)
                if (run and run.revision) == expected:
                    self.behind.append(lambda: self._write(id, changes, epoch, write_id, summary))
            raise

    async def _save(
        self,
        id: str,
        changes: Mapping[str, bytes | None],
        expected: str | None,
        epoch: int,
        write_id: str,
        summary: Summary,
    ) -> str:
        async with self.call("check, await, act", "check, await, delete"):
            run = self.storage.runs.get(id)
            found = run.revision if run else None
            known = run.written if run and self.defect == "write id never forgotten" else []
            known = known or (run.written[-1:] if run else [])
            for old_id, old_epoch, revision, by in known:
                if old_id != write_id or self.defect == "write id ignored":
                    continue
                if old_epoch != epoch and self.defect != "write id recognised across epochs":
                    continue
                if self.defect == "write id known to its client only" and by is not self:
                    continue
                if self.defect == "write id recognised and written again":
                    self._write(id, {"again": b"1"}, epoch, write_id, summary)
                return revision
            if self.defect == "foreign errors" and expected is not None:
                int(expected)
            wins = {
                "last writer wins": run is not None and expected is not None,
                "creation replaces": expected is None,
                "saves what is not there": run is None,
            }.get(self.defect, False)
            if found != expected and not wins:
                if self.defect == "conflict writes" and run is not None:
                    run.records |= {key: data for key, data in changes.items() if data}
                raise ConflictError(id, expected, found)
            if self.defect == "check, await, act":
                for _ in range(20):
                    await checkpoint()
            if self.defect in {"limit", "limit half kept"}:
                sizes = {key: len(data or b"") for key, data in changes.items()}
                if sum(sizes.values()) > 10_000:
                    if self.defect == "limit half kept" and run is not None:
                        run.records[""] = changes[""] or b""
                    raise StoreRefusedError("too large")
            if run is not None and not changes and self.defect == "empty save left out":
                return run.revision
            if self.defect in {"half a write", "reads while it is written"}:
                for key, data in changes.items():
                    self._write(id, {key: data}, epoch, write_id, summary)
                    await checkpoint()
            if self.defect == "acknowledges before it writes":
                # A revision that fits, so that only the time of the write is wrong.
                self.behind.append(lambda: self._write(id, changes, epoch, write_id, summary))
                return str(int(found or 0) + 1)
            revision = self._write(id, changes, epoch, write_id, summary)
        if self.defect == "acknowledges while it closes" and self.closed:
            del self.storage.runs[id]
        return revision

    def _write(
        self,
        id: str,
        changes: Mapping[str, bytes | None],
        epoch: int,
        write_id: str,
        summary: Summary,
    ) -> str:
        run = self.storage.runs.setdefault(id, Run())
        run.records |= self.storage.left.pop(id, {})
        if self.defect == "others removed" and run.records:
            run.records = {key: data for key, data in run.records.items() if key in changes}
        for key, data in changes.items():
            key = self.key(key)  # noqa: PLW2901 - a defect
            if data is not None:
                run.records[key] = self.storage.shared[key] = self.data(data)
            elif self.defect == "removal stores null":
                run.records[key] = b"null"
            elif self.defect == "removal of an absent key raises":
                del run.records[key]
            else:
                run.records.pop(key, None)
        if self.defect == "empty key dropped":
            run.records.pop("", None)
        if self.defect == "many records cut":
            run.records = dict(list(run.records.items())[:1_000])
        if self.defect == "keeps the caller's mapping" and not run.written:
            run.records = changes  # type: ignore[assignment]
        run.number += 1
        numbered = self.defect in {"revisions start again", "acknowledges before it writes"}
        run.revision = str(run.number if numbered else next(self.storage.numbers))
        run.written.append((write_id, epoch, run.revision, self))
        if self.defect == "summary rounded":
            summary = msgspec.structs.replace(summary, created_at=round(summary.created_at, 3))
        if self.defect == "summary merged" and run.summary is not None:
            summary = msgspec.structs.replace(
                summary, wake_at=summary.wake_at or run.summary.wake_at
            )
        if self.defect == "owner kept" and summary.owner is None and run.summary is not None:
            summary = msgspec.structs.replace(summary, owner=run.summary.owner)
        run.summary = summary
        run.first = run.first or summary
        self.storage.first.setdefault(id, dict(run.records))
        return run.revision

    async def delete(self, id: str, /, *, expected: str) -> None:
        id = self.id(id)
        async with self.call("check, await, act", "check, await, delete"):
            run = self.storage.runs.get(id)
            if run is None:
                if self.defect == "delete of nothing raises":
                    raise ConflictError(id, expected, None)
                return
            if run.revision != expected and self.defect != "delete does not compare":
                raise ConflictError(id, expected, run.revision)
            if self.defect == "check, await, delete":
                for _ in range(20):
                    await checkpoint()
            if self.defect == "half a delete":
                for key in list(run.records):
                    del run.records[key]
                    await checkpoint()
            old = self.storage.runs.pop(id, None)
            self.storage.gone[id] = run.summary
            if self.defect == "delete leaves records" and old is not None:
                self.storage.left[id] = old.records

    async def _list_runs(
        self,
        *,
        status: Status | None = None,
        name: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Sequence[tuple[str, Summary]]:
        async with self.call():
            found = [
                (id, run.first if self.defect == "lists the first summary" else run.summary)
                for id, run in self.storage.runs.items()
            ]
            if self.defect == "lists the deleted":
                found += self.storage.gone.items()
            if self.defect == "lists itself":
                found.append(("store", Summary("store", "done", 1, None, 0.0, 0.0)))

        def order(id: str) -> bytes:
            utf_16 = self.defect == "lists by UTF-16"
            return id.encode("utf-16-be" if utf_16 else "utf-32-be")

        if self.defect != "lists as saved":
            found.sort(key=lambda item: order(item[0]))
        if after is not None:
            if self.defect == "after must be there" and after not in dict(found):
                return []
            found = [
                (id, summary)
                for id, summary in found
                if order(id) > order(after) or (id == after and self.defect == "after includes")
            ]
        if self.defect == "limit before the filter":
            found = found[:limit]

        def chosen(summary: Summary) -> bool:
            by_status = status in {None, summary.status} or self.defect == "status not filtered"
            by_name = name in {None, summary.name}
            if self.defect == "name folded" and name is not None:
                by_name = name.lower() == summary.name.lower()
            if self.defect == "filters by status or name" and status and name:
                return by_status or by_name
            return by_status and by_name

        return [(id, summary) for id, summary in found if chosen(summary)][:limit]

    async def _browse(
        self,
        wanted: RunFilter = ALL,
        /,
        *,
        before: tuple[float, str] | None = None,
        limit: int = 100,
    ) -> Browsed:
        async with self.call():
            found = [(id, run.summary) for id, run in self.storage.runs.items()]
        if self.defect == "browses by LIKE" and wanted.contains:
            found = [(id, s) for id, s in found if like(wanted.contains, id)]
            wanted = msgspec.structs.replace(wanted, contains="")
        if self.defect == "browses what is after, not from" and wanted.updated_from is not None:
            found = [(id, s) for id, s in found if s.updated_at != wanted.updated_from]
        if self.defect == "browses by the first status alone":
            wanted = msgspec.structs.replace(wanted, statuses=wanted.statuses[:1])
        found = [(id, summary) for id, summary in found if wanted.accepts(id, summary)]

        def place(item: tuple[str, Summary]) -> tuple[float, str]:
            return item[1].updated_at, item[0]

        match self.defect:
            case "browses by creation":
                found.reverse()
            case "browses ids forwards":
                found.sort(key=lambda item: item[0])
                found.sort(key=lambda item: item[1].updated_at, reverse=True)
            case "browses ids by UTF-16":
                found.sort(key=lambda i: (i[1].updated_at, i[0].encode("utf-16-be")), reverse=True)
            case _:
                found.sort(key=place, reverse=True)
        if self.defect == "browses by offset":
            begin = int(before[0]) if before else 0
            page = found[begin : begin + limit]
            more = begin + limit < len(found)
            return Browsed(page, {}, (begin + limit, "") if more else None)
        if before is not None:
            if self.defect == "browses from a run that has to be there":
                places = [place(item) for item in found]
                begin = places.index(before) + 1 if before in places else len(places)
                found = found[begin:]
            elif self.defect == "browses by time alone":
                found = [item for item in found if item[1].updated_at < before[0]]
            elif self.defect != "browses by creation":
                found = [item for item in found if place(item) < before]
        last = place(found[limit - 1]) if len(found) > limit else None
        return Browsed(found[:limit], {}, None if self.defect == "browses one page" else last)

    async def _scan(
        self, wanted: RunFilter = ALL, /, *, after: str | None = None, limit: int = 100
    ) -> Scanned:
        async with self.call():
            found = [
                (id, StoredRun(dict(run.records), run.revision, run.summary))
                for id, run in self.storage.runs.items()
            ]
        if self.defect == "scans the first records":
            first = self.storage.first
            found = [(id, run._replace(records=first[id])) for id, run in found]
        if self.defect == "scans what was there at first":
            self.storage.scanned = self.storage.scanned or dict(found)
            found = list(self.storage.scanned.items())
        if self.defect != "scans as saved":
            found.sort(key=lambda item: item[0])
        if self.defect == "scans by offset":
            begin = int(after) if after and after.isdigit() else 0
            found = [(id, run) for id, run in found if wanted.accepts(id, run.summary)]
            more = begin + limit < len(found)
            return Scanned(found[begin : begin + limit], {}, str(begin + limit) if more else None)
        found = [(id, run) for id, run in found if after is None or id > after]
        if self.defect == "scans with the limit before the filter":
            found = found[: limit + 1]
        found = [(id, run) for id, run in found if wanted.accepts(id, run.summary)]
        more = len(found) > limit and self.defect != "scans one page"
        return Scanned(found[:limit], {}, found[limit - 1][0] if more else None)

    async def _inspect(self) -> StoreReport:
        async with self.call():
            runs = sorted((id, run.summary) for id, run in self.storage.runs.items())
            if self.defect == "inspects by saving":
                for run in self.storage.runs.values():
                    run.revision = str(next(self.storage.numbers))
        counts = Counter(summary.status for _, summary in runs)
        if self.defect == "inspects the deleted":
            counts.update(summary.status for summary in self.storage.gone.values())

        def alive(owner: str) -> bool:
            known = {"inspects owners as living": True, "inspects owners as dead": False}
            return known.get(self.defect, self.lives(owner))

        held = tuple(Holder(id, s.owner, alive(s.owner)) for id, s in runs if s.owner)
        return StoreReport(kind="broken", runs=dict(counts), held=held)

    def lives(self, owner: str) -> bool:
        if self.defect == "every owner lives":
            return True
        return any(
            client.owner == owner
            and (not client.closed or self.defect == "closing frees nothing")
            and not (self.defect == "release frees for all" and owner in client.free)
            for client in self.storage.clients
        )

    async def _acquire(self, id: str, /, *, seconds: float) -> str:
        late = self.defect in {"check, await, acquire", "cancelled acquire holds"}
        if id in self.held and self.defect != "acquires twice":
            raise BusyError(id, self.owner)
        if self.defect != "check, await, acquire":
            self.held.add(id)
        try:
            async with self.call():
                run = self.storage.runs.get(id)
            owner = run and run.summary.owner
            ignored = self.defect == "holder ignored"
            if owner and owner != self.owner and self.lives(owner) and not ignored:
                late = self.defect == "busy holds"
                raise BusyError(id, owner)
        except BaseException:
            if not late:
                self.held.discard(id)
            raise
        self.held.add(id)
        return self.owner

    def _release(self, id: str, /) -> None:
        if self.defect == "release ignored":
            return
        if self.defect == "release of nothing raises":
            self.held.remove(id)
        if self.defect == "release frees for all":
            for client in self.storage.clients:
                client.free.add(client.owner)
        self.held.discard(id)

    async def aclose(self) -> None:
        if self.closed:
            if self.defect == "second aclose raises":
                raise StoreClosedError("closed")
            return
        if self.defect != "works in any loop" and self.loop not in {None, current_token()}:
            raise UsageError("another event loop")
        self.closed = True
        if self.defect == "closes for all":
            for client in self.storage.clients:
                client.closed = True
        if self.defect == "forgets at the last aclose" and all(
            client.closed for client in self.storage.clients
        ):
            self.storage.runs.clear()


# --- one class per defect, and the honest one ---------------------------------------------------


class Broken(StoreConformance):
    leases = True
    listing = True
    browsing = True
    scanning = True
    inspecting = True
    defect = "none"

    @pytest.fixture
    def storage(self) -> Storage:
        return Storage()

    async def client(self, storage: Any) -> Any:
        return Store(storage, self.defect)


class TestHonest(Broken):
    """Passes."""


class TestHonestWithoutCapabilities(StoreConformance):
    """Passes, and skips what it declares not to have."""

    leases = False
    listing = False

    @pytest.fixture
    def storage(self) -> Storage:
        return Storage()

    async def client(self, storage: Any) -> Any:
        store = Store(storage, "none")
        del store.list_runs, store.browse, store.scan, store.inspect
        del store.acquire, store.release
        return store


class TestHonestWithLimit(Broken):
    """Passes."""

    defect = "limit"
    max_bytes = 10_000


class TestNothingDeclared(StoreConformance):
    @pytest.fixture
    def storage(self) -> Storage:
        return Storage()

    async def client(self, storage: Any) -> Any:
        return Store(storage, "none")


class TestSameClientTwice(Broken):
    async def client(self, storage: Any) -> Any:
        return storage.clients[0] if storage.clients else Store(storage, "none")


def class_name(defect: str) -> str:
    """The class that has this defect."""
    return "Test" + "".join(word.capitalize() for word in re.findall(r"\w+", defect))


for _defect in DEFECTS:
    _members: dict[str, Any] = {"defect": _defect}
    if _defect.startswith("limit "):
        _members["max_bytes"] = 10_000
    if _defect.endswith(" undeclared"):
        _members[_defect.removesuffix(" undeclared")] = False
    globals().setdefault(class_name(_defect), type(class_name(_defect), (Broken,), _members))
