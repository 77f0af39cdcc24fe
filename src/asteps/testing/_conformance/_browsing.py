"""Which runs were saved last."""

# ruff: noqa: S101 - asserts are what a test is made of

from __future__ import annotations

from typing import Any, cast

import pytest

from ..._store import BrowseStore, RunFilter, Status, Summary
from ._base import Another, BrowsingStore, Kit, a_summary, save
from ._records import AWKWARD_IDS

STATUSES: tuple[Status, ...] = ("proceeding", "pending", "done", "failed")
MOMENT = 1_700_000_000.25


def newest(item: tuple[str, Summary]) -> tuple[float, str]:
    """What a listing is ordered by, backwards."""
    return item[1].updated_at, item[0]


class BrowseKit(Kit):
    """For stores that declare `browsing`; for others these tests are reported as skipped."""

    @pytest.fixture
    async def browser(self, another: Another) -> BrowsingStore:
        store: Any = await another()
        if not self.browsing:
            assert not isinstance(store, BrowseStore), "it browses, and does not declare it"
            pytest.skip("this store declares that it does not browse")
        assert isinstance(store, BrowseStore), "it declares browsing, and does not browse"
        return cast("BrowsingStore", store)

    async def test_browsing_begins_with_the_newest(
        self, browser: BrowsingStore, another: Another
    ) -> None:
        """Runs come in the order of their last save, whoever made it, the newest first."""
        assert await browser.browse() == ([], {}, None)
        other = await another()
        saved, revisions = {}, {}
        for n, id in enumerate(("b", "a", "d", "c")):
            saved[id] = a_summary(at=MOMENT + (n % 3) / 4)
            revisions[id] = await save(other, id, {"": b"1"}, None, summary=saved[id])
        for id, at in (("b", 9.5), ("c", 5.0), ("a", -9.5)):
            saved[id] = a_summary(at=MOMENT + at)
            revisions[id] = await save(other, id, {}, revisions[id], summary=saved[id])
        await other.delete("d", expected=revisions.pop("d"))
        page = await browser.browse()
        assert [id for id, _ in page.runs] == ["b", "c", "a"]
        assert dict(page.runs) == {id: saved[id] for id in revisions}
        assert (page.damaged, page.next) == ({}, None)

    async def test_browsing_orders_equals_by_id(self, browser: BrowsingStore) -> None:
        """Runs that were saved at the same moment come by id, the greatest code point first."""
        for id in AWKWARD_IDS:
            await save(browser, id, {}, None)
        page = await browser.browse(limit=1_000)
        assert [id for id, _ in page.runs] == sorted(AWKWARD_IDS, reverse=True)

    async def test_browsing_filters(self, browser: BrowsingStore) -> None:
        """Status, name, part of the id and times choose exactly what fits all of them."""
        ids = ("A%", "a_b", "ab\x00", "Äb", "'b", "b*")
        runs = {}
        for n, id in enumerate(ids):
            for m, status in enumerate(STATUSES):
                at = MOMENT + n + m / 8
                full = f"{id} {status}"
                runs[full] = a_summary(name="fF"[n % 2], status=status, at=at)
                await save(browser, full, {}, None, summary=runs[full])
        for wanted in (
            RunFilter(),
            *(RunFilter(statuses=(status,)) for status in STATUSES),
            RunFilter(statuses=("failed", "done")),
            RunFilter(statuses=STATUSES),
            *(RunFilter(name=name) for name in ("f", "F", "", "g")),
            *(RunFilter(contains=c) for c in ("%", "_", "a", "A", "\x00", "Ä", "'", "*", "b d")),
            RunFilter(updated_from=MOMENT + 2.125),
            RunFilter(updated_before=MOMENT + 2.125),
            RunFilter(updated_from=MOMENT + 1, updated_before=MOMENT + 2),
            RunFilter(statuses=("done",), name="f", contains="b", updated_from=MOMENT + 3),
        ):
            page = await browser.browse(wanted)
            fits = [item for item in runs.items() if wanted.accepts(*item)]
            assert list(page.runs) == sorted(fits, key=newest, reverse=True), wanted

    async def test_browsing_in_pages(self, browser: BrowsingStore) -> None:
        """Pages by `before` and `limit` hold each run once, also where filters leave gaps."""
        runs = {}
        for n in range(11):
            status: Status = "done" if n % 3 else "failed"
            runs[f"run-{n}"] = a_summary(status=status, at=MOMENT + n // 4)
            await save(browser, f"run-{n}", {}, None, summary=runs[f"run-{n}"])
        for wanted in (RunFilter(), RunFilter(statuses=("done",))):
            fits = [item for item in runs.items() if wanted.accepts(*item)]
            for limit in (1, 2, 3, 7, 11, 100):
                found: list[tuple[str, Summary]] = []
                before: tuple[float, str] | None = None
                for _ in range(13):
                    page = await browser.browse(wanted, before=before, limit=limit)
                    assert len(page.runs) <= limit
                    found += page.runs
                    before = page.next
                    if before is None:
                        break
                assert found == sorted(fits, key=newest, reverse=True)
                assert before is None, "the pages do not end"

    async def test_browsing_stays_in_order_while_runs_change(
        self, browser: BrowsingStore, another: Another
    ) -> None:
        """What is saved, made or deleted between two pages makes no other run come twice or not."""
        other = await another()
        revisions = {}
        for n in range(9):
            id = f"run-{n}"
            revisions[id] = await save(other, id, {}, None, summary=a_summary(at=MOMENT + n))
        first = await browser.browse(limit=3)
        assert [id for id, _ in first.runs] == ["run-8", "run-7", "run-6"]
        later = a_summary(at=MOMENT + 99)
        await save(other, "new", {}, None, summary=later)
        await save(other, "run-3", {}, revisions["run-3"], summary=later)
        await save(other, "run-7", {}, revisions["run-7"], summary=later)
        await other.delete("run-6", expected=revisions["run-6"])  # where the next page begins
        second = await browser.browse(before=first.next, limit=3)
        assert [id for id, _ in second.runs] == ["run-5", "run-4", "run-2"]
        third = await browser.browse(before=second.next, limit=3)
        assert [id for id, _ in third.runs] == ["run-1", "run-0"]
        assert third.next is None
