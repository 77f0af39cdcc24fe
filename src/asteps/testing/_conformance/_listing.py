"""Which runs there are."""

# ruff: noqa: S101 - asserts are what a test is made of

from __future__ import annotations

from typing import Any, cast

import pytest

from ..._store import ListStore, Status, Summary
from ._base import Another, Kit, ListingStore, a_summary, save
from ._records import AWKWARD_IDS


class ListKit(Kit):
    """For stores that declare `listing`; for others these tests are reported as skipped."""

    @pytest.fixture
    async def lister(self, another: Another) -> ListingStore:
        store: Any = await another()
        if not self.listing:
            assert not isinstance(store, ListStore), "it lists, and does not declare it"
            pytest.skip("this store declares that it does not list")
        assert isinstance(store, ListStore), "it declares listing, and does not list"
        return cast("ListingStore", store)

    async def test_listing_begins_empty(self, lister: ListingStore) -> None:
        """A storage without runs lists none."""
        assert list(await lister.list_runs()) == []

    async def test_listing_is_ordered_by_code_point(self, lister: ListingStore) -> None:
        """All ids come in the order of their code points, each with its own summary."""
        saved = {}
        for n, id in enumerate(reversed(AWKWARD_IDS)):
            saved[id] = a_summary(n + 1)
            await save(lister, id, {"": b"1"}, None, summary=saved[id])
        assert list(await lister.list_runs(limit=1_000)) == sorted(saved.items())

    async def test_listing_has_the_last_summary(
        self, lister: ListingStore, another: Another
    ) -> None:
        """A run is listed with the summary of its last save, whoever made it, until deleted."""
        other = await another()
        first = Summary("f", "pending", 1, "host:1", 1.5, 2.5, wake_at=3.5)
        last = Summary("g", "done", 2, None, 1.5, 4.5, done_at=5.5)
        revision = await save(other, "run", {"k": b"1"}, None, summary=first)
        assert list(await lister.list_runs()) == [("run", first)]
        revision = await save(other, "run", {}, revision, summary=last)
        assert list(await lister.list_runs()) == [("run", last)]
        await other.delete("run", expected=revision)
        assert list(await lister.list_runs()) == []

    async def test_listing_filters(self, lister: ListingStore) -> None:
        """Status and name, alone and together, choose exactly the runs that have them."""
        names = ("f", "F", "f.<locals>.g", "%", "_", "'", "fö")
        statuses: tuple[Status, ...] = ("proceeding", "pending", "done", "failed")
        all_runs = {}
        for name in names:
            for status in statuses:
                id = f"{name} {status}"
                all_runs[id] = a_summary(name=name, status=status)
                await save(lister, id, {}, None, summary=all_runs[id])
        for only_name in (None, *names, "", "unknown"):
            for only_status in (None, *statuses):
                found = await lister.list_runs(name=only_name, status=only_status)
                assert list(found) == sorted(
                    (id, summary)
                    for id, summary in all_runs.items()
                    if only_name in {None, summary.name} and only_status in {None, summary.status}
                )

    async def test_listing_in_pages(self, lister: ListingStore) -> None:
        """Pages by `limit` and `after` hold each run once, also where filters leave gaps."""
        ids = sorted(f"run-{n}" for n in range(11))
        for n, id in enumerate(ids):
            status: Status = "done" if n % 3 else "failed"
            await save(lister, id, {}, None, summary=a_summary(status=status))
        done = [id for n, id in enumerate(ids) if n % 3]
        for limit in (1, 2, 3, 7, 8, 100):
            for filtered, expected in ((True, done), (False, ids)):
                found: list[str] = []
                while page := await lister.list_runs(
                    status="done" if filtered else None,
                    limit=limit,
                    after=found[-1] if found else None,
                ):
                    assert len(page) <= limit
                    found.extend(id for id, _ in page)
                    assert len(found) <= len(expected), "the pages do not end"
                assert found == expected

    async def test_listing_after_an_id_that_is_not_there(self, lister: ListingStore) -> None:
        """`after` need not name a run: what comes after it, by code point, is listed."""
        for id in ("a", "B", "c", "\uffff", "\U0001f600"):
            await save(lister, id, {}, None)

        async def after(id: str) -> list[str]:
            return [found for found, _ in await lister.list_runs(after=id)]

        assert await after("") == ["B", "a", "c", "\uffff", "\U0001f600"]
        assert await after("A") == ["B", "a", "c", "\uffff", "\U0001f600"]
        assert await after("B") == ["a", "c", "\uffff", "\U0001f600"]
        assert await after("a\x00") == ["c", "\uffff", "\U0001f600"]
        assert await after("c") == ["\uffff", "\U0001f600"]
        assert await after("\uffff") == ["\U0001f600"]
        assert await after("\U0010ffff") == []
