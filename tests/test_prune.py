"""What ended long ago can be deleted, and nothing else is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

import asteps
from asteps import (
    PruneReport,
    StoredRun,
    StoreUnavailableError,
    Summary,
    UsageError,
    prune,
)
from asteps._store import Status
from asteps.stores.file import FileStore
from asteps.stores.memory import MemoryStore
from asteps.stores.sqlite import SQLiteStore

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)

KINDS: dict[str, Callable[[Path], Any]] = {
    "memory": lambda _: MemoryStore(),
    "file": lambda path: FileStore(path / "runs"),
    "sqlite": lambda path: SQLiteStore(path / "runs.db", synchronous="NORMAL"),
}


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """A store of each kind."""
    store = KINDS[request.param](tmp_path)
    yield store
    await store.aclose()


async def save(
    store: Any,
    id: str,
    days: float,
    status: Status = "done",
    *,
    name: str = "f",
    owner: str | None = None,
    changed: float | None = None,
) -> None:
    """Store a run that ended so many days ago."""
    ended = (NOW - days * DAY).timestamp()
    updated = ended if changed is None else (NOW - changed * DAY).timestamp()
    summary = Summary(
        name,
        status,
        1,
        owner,
        0.0,
        updated,
        done_at=ended if status in ("done", "failed") else None,
    )
    run = await store.load(id)
    await store.save(
        id,
        {"": b"{}"},
        expected=run and run.revision,
        epoch=1,
        write_id=f"{days} {changed}",
        summary=summary,
    )


async def ids(store: Any) -> list[str]:
    """What is left."""
    return [id for id, _ in await store.list_runs(limit=1_000)]


async def test_only_what_ended_long_ago_is_deleted(store: Any) -> None:
    """Done runs older than that go; failed, waiting, running, edited and newer ones stay."""
    await save(store, "old", 8)
    await save(store, "older", 80)
    await save(store, "just now", 7)
    await save(store, "failed", 8, "failed")
    await save(store, "pending", 8, "pending")
    await save(store, "interrupted", 8, "proceeding", owner="nobody:1")
    await save(store, "edited", 8, changed=1)
    await save(store, "other", 8, name="g")
    everything = await ids(store)
    report = await prune(store, older_than=7 * DAY, name="f", dry_run=True, now=NOW)
    assert report == PruneReport(("older", "old"), {}, {}, dry_run=True)
    assert await ids(store) == everything
    report = await prune(store, older_than=7 * DAY, name="f", now=NOW)
    assert (sorted(report.deleted), report.kept, report.dry_run) == (["old", "older"], {}, False)
    assert await ids(store) == [id for id in everything if id not in ("old", "older")]
    assert (await prune(store, older_than=7 * DAY, name="f", now=NOW)).deleted == ()
    report = await prune(store, older_than=0, status=("done", "failed"), now=NOW, contains="e")
    assert sorted(report.deleted) == ["edited", "failed", "other"]
    assert await ids(store) == ["interrupted", "just now", "pending"]


async def test_the_oldest_go_first(store: Any) -> None:
    """With a limit the runs that were saved first are deleted; a repeated call goes on."""
    for n in range(40):
        await save(store, f"run-{n:02}", 100 - n)
    report = await prune(store, older_than=DAY, limit=5, now=NOW)
    assert sorted(report.deleted) == [f"run-{n:02}" for n in range(5)]
    await prune(store, older_than=DAY, limit=30, now=NOW)
    assert await ids(store) == [f"run-{n:02}" for n in range(35, 40)]


async def test_a_held_run_is_kept(store: Any) -> None:
    """A run that somebody advances, or edits, is kept, and the report says who."""
    await asteps.run(asteps_flow, store=store, id="edited")
    await asteps.run(asteps_flow, store=store, id="free")
    async with asteps.edit_run(store, "edited"):
        report = await prune(store, older_than=0, now=datetime.now(UTC) + DAY)
    if report.kept:  # else the claim of the edit had made it unfit already
        assert list(report.kept) == ["edited"]
        assert "is held by" in report.kept["edited"]
    assert report.deleted == ("free",)
    assert await ids(store) == ["edited"]


async def asteps_flow(s: asteps.Step) -> int:
    """A run of one step."""
    return await s.call("one", int, 1)


class Meddling:
    """A store in which somebody else is quicker, between the look and the deletion."""

    def __init__(self, store: MemoryStore, meddle: Callable[[str], Any], when: str) -> None:
        self._store = store
        self._meddle = meddle
        self._when = when
        self.save = store.save
        self.aclose = store.aclose
        self.list_runs = store.list_runs

    async def load(self, id: str, /) -> StoredRun | None:
        if self._when == "load":
            await self._meddle(id)
        return await self._store.load(id)

    async def delete(self, id: str, /, *, expected: str) -> None:
        if self._when == "delete":
            await self._meddle(id)
        await self._store.delete(id, expected=expected)


@pytest.mark.parametrize("when", ["load", "delete"])
async def test_a_run_that_was_changed_meanwhile_is_kept(when: str) -> None:
    """Whatever is saved between the look and the deletion saves the run."""
    memory = MemoryStore()
    await save(memory, "a", 9)
    await save(memory, "b", 9)

    async def meddle(id: str) -> None:
        if id == "a":
            await save(memory, "a", 9, changed=0)

    report = await prune(Meddling(memory, meddle, when), older_than=DAY, now=NOW)
    assert (report.deleted, list(report.kept)) == (("b",), ["a"])
    assert await ids(memory) == ["a"]


async def test_a_failing_store_ends_it_and_the_rest_is_whole() -> None:
    """The store's error comes out as it is; a later call deletes what was left."""
    memory = MemoryStore()
    for n in range(50):
        await save(memory, f"run-{n:02}", 9)
    count = 0

    async def meddle(id: str) -> None:
        nonlocal count
        count += 1
        if count == 20:
            raise StoreUnavailableError("gone for a moment")
        if count > 60:
            raise AssertionError("it went on")

    failing = Meddling(memory, meddle, "load")
    with pytest.raises(StoreUnavailableError, match="for a moment"):
        await prune(failing, older_than=DAY, now=NOW)
    left = await ids(memory)
    assert 0 < len(left) < 50
    report = await prune(memory, older_than=DAY, now=NOW)
    assert sorted(report.deleted) == left
    assert await ids(memory) == []


async def test_a_cancelled_prune_leaves_whole_runs(store: Any) -> None:
    """Each run is deleted or as it was, and can be pruned, or advanced, afterwards."""
    for n in range(30):
        await save(store, f"run-{n:02}", 9)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: prune(store, older_than=DAY, now=NOW))
            while len(await ids(store)) == 30:
                await anyio.lowlevel.checkpoint()
            scope.cancel()
    for id in await ids(store):
        assert (await store.load(id)).records == {"": b"{}"}
    await prune(store, older_than=DAY, now=NOW)
    assert await ids(store) == []


async def test_a_damaged_run_is_named_and_left(tmp_path: Path) -> None:
    """What cannot be read is never deleted, and does not keep the others."""
    async with FileStore(tmp_path) as store:
        for id in "abc":
            await save(store, id, 9)
        await anyio.Path(tmp_path / "run-b.log").write_bytes(b"no run")
        report = await prune(store, older_than=DAY, now=NOW)
        assert (sorted(report.deleted), list(report.damaged)) == (["a", "c"], ["b"])
        assert await anyio.Path(tmp_path / "run-b.log").read_bytes() == b"no run"


async def test_misuse_of_prune_deletes_nothing() -> None:
    """Runs that have not ended, and ages that make no sense, are refused before any look."""
    store = MemoryStore()
    await save(store, "a", 9)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"older_than": DAY, "status": "pending"}, "not what is pending"),
        ({"older_than": DAY, "status": ("done", "proceeding")}, "not what is proceeding"),
        ({"older_than": DAY, "status": ()}, "status is empty"),
        ({"older_than": -DAY}, "at least 0"),
        ({"older_than": "7d"}, "timedelta or seconds"),
        ({"older_than": float("nan")}, "at least 0"),
        ({"older_than": DAY, "limit": 0}, "limit"),
        ({"older_than": DAY, "now": datetime(2024, 5, 1)}, "time zone"),  # noqa: DTZ001 - the mistake
    ]
    for keywords, says in wrong:
        with pytest.raises(UsageError, match=says):
            await prune(store, **keywords)
    assert await ids(store) == ["a"]
    assert (await prune(store, older_than=timedelta.max)).deleted == ()
