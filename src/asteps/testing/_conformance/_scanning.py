"""Whole runs, many at a time."""

# ruff: noqa: S101 - asserts are what a test is made of

from __future__ import annotations

from typing import Any, cast

import pytest

from ..._store import RunFilter, ScanStore, Status, StoredRun
from ._base import Another, Kit, ScanningStore, a_summary, save
from ._records import AWKWARD_BYTES, AWKWARD_IDS


class ScanKit(Kit):
    """For stores that declare `scanning`; for others these tests are reported as skipped."""

    @pytest.fixture
    async def scanner(self, another: Another) -> ScanningStore:
        store: Any = await another()
        if not self.scanning:
            assert not isinstance(store, ScanStore), "it scans, and does not declare it"
            pytest.skip("this store declares that it does not scan")
        assert isinstance(store, ScanStore), "it declares scanning, and does not scan"
        return cast("ScanningStore", store)

    async def test_scan_gives_what_load_gives(
        self, scanner: ScanningStore, another: Another
    ) -> None:
        """Each run comes once, in the order of the ids by code point, whole and as last saved."""
        assert await scanner.scan() == ([], {}, None)
        other = await another()
        gone = await save(other, "gone", {"": b"1"}, None)
        for n, id in enumerate(reversed(AWKWARD_IDS)):
            records = {f"k{m}": AWKWARD_BYTES[m % len(AWKWARD_BYTES)] for m in range(n % 5)}
            revision = await save(other, id, {**records, "": b"{}"}, None)
            if n % 2:
                await save(other, id, {"": b"[]"}, revision, summary=a_summary(2))
        await other.delete("gone", expected=gone)
        found = await _all(scanner, RunFilter(), limit=1_000)
        assert [id for id, _ in found] == sorted(AWKWARD_IDS)
        for id, run in found:
            assert run == await other.load(id)

    async def test_scan_in_pages(self, scanner: ScanningStore) -> None:
        """Pages hold each wanted run once, also where filters leave gaps."""
        runs = {}
        for n in range(11):
            status: Status = "done" if n % 3 else "failed"
            summary = a_summary(status=status, name="fg"[n % 2], at=1_700_000_000.25 + n)
            id, records = f"run-{n:02}", {"": b"%d" % n, "k": b"1"}
            runs[id] = StoredRun(records, await _saved(scanner, id, records, summary), summary)
        for wanted in (
            RunFilter(),
            RunFilter(statuses=("done",)),
            RunFilter(name="f", contains="-0"),
            RunFilter(updated_from=1_700_000_003.25, updated_before=1_700_000_007.25),
            RunFilter(name="unknown"),
        ):
            fits = [(id, run) for id, run in runs.items() if wanted.accepts(id, run.summary)]
            for limit in (1, 2, 3, 7, 11, 100):
                assert await _all(scanner, wanted, limit=limit) == fits

    async def test_scan_goes_on_while_runs_change(
        self, scanner: ScanningStore, another: Another
    ) -> None:
        """Between two pages anybody may save and delete; the runs that stay come once each."""
        other = await another()
        revisions = {}
        for n in range(6):
            revisions[f"run-{n}"] = await save(other, f"run-{n}", {"": b"1"}, None)
        first = await scanner.scan(limit=2)
        found = [id for id, _ in first.runs]
        assert first.next is not None
        assert found
        assert found == [f"run-{n}" for n in range(len(found))]
        await other.delete(first.next, expected=revisions[first.next])
        await save(other, "run-4", {"": b"2"}, revisions["run-4"])
        await save(other, "a run before", {}, None)
        rest = await _all(scanner, RunFilter(), limit=2, after=first.next)
        ids = [id for id, _ in rest]
        assert ids == [f"run-{n}" for n in range(len(found), 6)]
        assert dict(rest)["run-4"].records == {"": b"2"}
        page = await scanner.scan(after="run-3x", limit=100)
        assert [id for id, _ in page.runs] == ["run-4", "run-5"]


async def _saved(store: ScanningStore, id: str, records: dict[str, bytes], summary: Any) -> str:
    return await save(store, id, records, None, summary=summary)


async def _all(
    store: ScanningStore, wanted: RunFilter, *, limit: int, after: str | None = None
) -> list[tuple[str, StoredRun]]:
    """What all pages hold."""
    found: list[tuple[str, StoredRun]] = []
    for _ in range(200):
        page = await store.scan(wanted, after=after, limit=limit)
        assert len(page.runs) <= limit
        assert page.damaged == {}
        found += page.runs
        after = page.next
        if after is None:
            return found
    raise AssertionError("the pages do not end")
