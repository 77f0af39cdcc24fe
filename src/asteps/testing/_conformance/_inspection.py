"""How the storage is."""

# ruff: noqa: S101 - asserts are what a test is made of

from __future__ import annotations

from typing import Any, cast

import pytest

from ..._store import InspectStore, LeaseStore, StoreReport
from ._base import Another, InspectingStore, Kit, a_summary, save


class InspectKit(Kit):
    """For stores that declare `inspecting`; for others these tests are reported as skipped."""

    @pytest.fixture
    async def inspector(self, another: Another) -> InspectingStore:
        store: Any = await another()
        if not self.inspecting:
            assert not isinstance(store, InspectStore), "it inspects, and does not declare it"
            pytest.skip("this store declares that it does not inspect")
        assert isinstance(store, InspectStore), "it declares inspecting, and does not inspect"
        return cast("InspectingStore", store)

    async def test_inspection_counts_the_runs(
        self, inspector: InspectingStore, another: Another
    ) -> None:
        """The report counts the runs by status as they were last saved, and finds nothing wrong."""
        other = await another()
        revision = await save(other, "a", {"": b"1"}, None)
        await save(other, "a", {}, revision, summary=a_summary(2, status="done"))
        await save(other, "b", {"": b"1"}, None, summary=a_summary(status="done"))
        await save(other, "c", {"": b"1"}, None, summary=a_summary(status="failed"))
        gone = await save(other, "d", {"": b"1"}, None)
        await other.delete("d", expected=gone)
        report = await inspector.inspect()
        assert isinstance(report, StoreReport)
        assert report.runs == {"done": 2, "failed": 1}
        assert (report.held, report.damaged, report.problems) == ((), {}, ())
        assert report.kind

    async def test_inspection_changes_nothing(
        self, inspector: InspectingStore, another: Another
    ) -> None:
        """Runs and their revisions are after an inspection what they were before."""
        other = await another()
        await save(other, "a", {"": b"1", "k": b"2"}, None, summary=a_summary(owner="nobody:1"))
        before = await other.load("a")
        first = await inspector.inspect()
        assert await inspector.load("a") == await other.load("a") == before
        assert (await inspector.inspect()).runs == first.runs

    async def test_inspection_tells_living_owners_from_dead(
        self, inspector: InspectingStore, another: Another
    ) -> None:
        """Runs that name an owner are told of, by id, with whether it lives."""
        await save(inspector, "b", {"": b"1"}, None, summary=a_summary(owner="nobody:1"))
        expected = [("b", "nobody:1", False)]
        holder = await another()
        if isinstance(holder, LeaseStore):
            owner = await holder.acquire("a", seconds=30)
            await save(cast("Any", holder), "a", {"": b"1"}, None, summary=a_summary(owner=owner))
            expected.insert(0, ("a", owner, True))
        assert list((await inspector.inspect()).held) == expected
