"""Operators see all runs of a store, page by page, also where some cannot be read."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from hypothesis import given
from hypothesis import strategies as st

import asteps
from asteps import (
    RunFilter,
    StateFormatError,
    StoredRun,
    StoreError,
    StoreRefusedError,
    Summary,
    UsageError,
    browse_runs,
    inspect_store,
    scan_runs,
)
from asteps._store import Status
from asteps.stores import _sqlite_file
from asteps.stores._sqlite_runs import Runs
from asteps.stores.file import FileStore
from asteps.stores.memory import MemoryStore
from asteps.stores.sqlite import SQLiteStore

NOW = 1_700_000_000.25
HOUR = 3600.0


class ListOnly:
    """A store with nothing beyond a listing, such as a third party's."""

    def __init__(self, store: Any) -> None:
        self.load = store.load
        self.save = store.save
        self.delete = store.delete
        self.aclose = store.aclose
        self.list_runs = store.list_runs


class Bare:
    """A store without any capability."""

    def __init__(self, store: Any) -> None:
        self.load = store.load
        self.save = store.save
        self.delete = store.delete
        self.aclose = store.aclose


KINDS: dict[str, Callable[[Path], Any]] = {
    "memory": lambda _: MemoryStore(),
    "list only": lambda _: ListOnly(MemoryStore()),
    "file": lambda path: FileStore(path / "runs"),
    "sqlite": lambda path: SQLiteStore(path / "runs.db"),
}


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """A store of each kind, and one that can only list."""
    store = KINDS[request.param](tmp_path)
    yield store
    await store.aclose()


def summary(
    at: float, status: Status = "done", name: str = "f", owner: str | None = None
) -> Summary:
    """The summary of a run that was saved then."""
    return Summary(name, status, 1, owner, NOW - 99 * HOUR, at, done_at=at)


async def execute(path: Path, *statements: str) -> None:
    """Change a database behind the store's back."""

    def change() -> None:
        with closing(sqlite3.connect(path)) as conn, conn:
            for statement in statements:
                conn.execute(statement)

    await to_thread.run_sync(change)


async def contents(directory: Path) -> dict[str, bytes]:
    """What every file in a directory holds."""
    return await to_thread.run_sync(
        lambda: {f.name: f.read_bytes() if f.is_file() else b"" for f in directory.iterdir()}
    )


async def save(store: Any, id: str, what: Summary) -> None:
    """Store a run with nothing in it."""
    root = asteps.State(what.name, run=asteps._state.RunRecord(1))
    records = {"": asteps._codec.encode_record(root)}
    await store.save(id, records, expected=None, epoch=1, write_id=id[:50], summary=what)


# --- browse ---------------------------------------------------------------------------------------


async def test_browsing_shows_the_newest_first(store: Any) -> None:
    """Runs come by the time of their last save, and all filters hold, whatever the store can do."""
    assert [run async for run in browse_runs(store)] == []
    statuses: tuple[Status, ...] = ("done", "failed", "pending", "done")
    for n, id in enumerate(("b-1", "a-1", "c%2", "a-2", "d_2", "B-1")):
        await save(store, id, summary(NOW - n * HOUR, statuses[n % 4], "fg"[n % 2]))

    async def ids(**filters: Any) -> list[str]:
        return [run.id async for run in browse_runs(store, **filters)]

    assert await ids() == ["b-1", "a-1", "c%2", "a-2", "d_2", "B-1"]
    assert await ids(limit=2) == ["b-1", "a-1"]
    assert await ids(status="done") == ["b-1", "a-2", "d_2"]
    assert await ids(status=["failed", "pending"], limit=2) == ["a-1", "c%2"]
    assert await ids(name="g") == ["a-1", "a-2", "B-1"]
    assert await ids(contains="b") == ["b-1"]
    assert await ids(contains="_") == ["d_2"]
    assert await ids(contains="-1", name="g") == ["a-1", "B-1"]
    at = datetime.fromtimestamp(NOW - 2 * HOUR, UTC)
    assert await ids(updated_after=at) == ["b-1", "a-1", "c%2"]
    assert await ids(updated_before=at) == ["a-2", "d_2", "B-1"]
    assert await ids(updated_before=timedelta(days=1)) == await ids()  # 2023 is long ago
    assert await ids(updated_after=timedelta(days=1)) == []
    (line,) = [run async for run in browse_runs(store, contains="c%")]
    assert (line.status, line.name, line.updated_at) == ("pending", "f", at)


async def test_browsing_goes_on_over_many_pages(store: Any) -> None:
    """However many runs there are, each comes once."""
    async with anyio.create_task_group() as tasks:
        for n in range(530):
            tasks.start_soon(save, store, f"run-{n:03}", summary(NOW + n // 7))
    found = [run.id async for run in browse_runs(store)]
    assert found == [f"run-{n:03}" for n in reversed(range(530))]
    assert [run.id async for run in browse_runs(store, limit=503)] == found[:503]
    assert [run.id async for run, _ in scan_runs(store)] == found[::-1]


async def test_who_has_seen_enough_just_stops(store: Any) -> None:
    """A loop that is left early leaves nothing to be closed behind."""
    for n in range(3):
        await save(store, f"run-{n}", summary(NOW + n))
    async for run in browse_runs(store):
        assert run.id == "run-2"
        break
    async for run, state in scan_runs(store):
        assert (run.id, state.name) == ("run-0", "f")
        break


async def test_wrong_filters_are_misuse() -> None:
    """What no filter can mean is told before anything is read."""
    store: Any = MemoryStore()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"status": "don"}, "no status 'don'"),
        ({"status": []}, "leave it out"),
        ({"updated_before": datetime(2023, 1, 1)}, "time zone"),  # noqa: DTZ001 - the mistake
        ({"updated_after": timedelta(hours=-1)}, "at least 0"),
    ]
    for filters, says in wrong:
        for look in (browse_runs, scan_runs):
            with pytest.raises(UsageError, match=says):
                look(store, **filters)
    with pytest.raises(UsageError, match="limit"):
        browse_runs(store, limit=0)
    for look in (browse_runs, scan_runs):
        with pytest.raises(UsageError, match="Bare cannot list its runs"):
            look(Bare(store))


@given(
    runs=st.lists(st.tuples(st.integers(0, 30), st.sampled_from("fg")), max_size=60),
    limit=st.integers(1, 9),
    name=st.sampled_from([None, "f"]),
)
def test_sqlite_finds_the_newest_without_an_index(
    runs: list[tuple[int, str]], limit: int, name: str | None
) -> None:
    """Whatever order runs were made and saved in, the pages hold what sorting them all gives."""
    conn = sqlite3.connect(":memory:", isolation_level=None)
    for statement in _sqlite_file._STEPS[0]:
        conn.execute(statement)
    for n, (at, function) in enumerate(runs):
        values = (f"run-{n:02}", 1, 1, "w", function, "done", None, 0.0, float(at), None, None)
        conn.execute(f"INSERT INTO runs VALUES (NULL{', ?' * 11})", values)
    opened = Runs.__new__(Runs)
    opened._conn, opened._path = conn, "here"
    expected = sorted(
        ((at, f"run-{n:02}") for n, (at, f) in enumerate(runs) if name in {None, f}), reverse=True
    )
    found: list[tuple[float, str]] = []
    before: tuple[float, str] | None = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asteps.stores._sqlite_runs._CREATED_LAST", 0)
        for _ in range(len(runs) + 1):
            page = opened.browse(RunFilter(name=name), before, limit)
            found += [(s.updated_at, id) for id, s in page.runs]
            if (before := page.next) is None:
                break
    conn.close()
    assert found == expected


# --- whole runs -----------------------------------------------------------------------------------


async def flow(s: asteps.Step, n: int) -> int:
    """Some steps."""
    for name in "abc"[:n]:
        await s.call(name, int, n)
    return n


async def test_a_scan_has_each_runs_tree(store: Any) -> None:
    """Each run comes with the tree that `load_state` gives, in the order of the ids."""
    for n in (2, 0, 3, 1):
        await asteps.run(flow, n, store=store, id=f"run-{n}")
    found = [(run, state.encode()) async for run, state in scan_runs(store)]
    assert [run.id for run, _ in found] == ["run-0", "run-1", "run-2", "run-3"]
    for run, tree in found:
        state = await asteps.load_state(store, run.id)
        assert state is not None
        assert (state.encode(), run.status, run.name) == (tree, "done", "flow")
    assert [run.id async for run, _ in scan_runs(store, contains="2", status=["done"])] == ["run-2"]
    assert [run.id async for run, _ in scan_runs(store, status=["failed", "pending"])] == []


async def test_a_damaged_tree_stops_nobody(store: Any) -> None:
    """A run whose records say nothing is told of, and the others come; unasked, it raises."""
    for n in range(3):
        await asteps.run(flow, n, store=store, id=f"run-{n}")
    was = await store.load("run-1")
    await store.save(
        "run-1", {"a": b"{"}, expected=was.revision, epoch=1, write_id="x", summary=was.summary
    )
    told: dict[str, StoreError] = {}
    found = [run.id async for run, _ in scan_runs(store, damaged=told.__setitem__)]
    assert (found, list(told)) == (["run-0", "run-2"], ["run-1"])
    assert isinstance(told["run-1"], StateFormatError)
    with pytest.raises(StateFormatError, match="'run-1'"):
        assert [run async for run, _ in scan_runs(store)]
    report = await inspect_store(store)
    assert list(report.damaged) == ["run-1"]
    assert (report.runs["done"], report.problems) in [(3, ()), (2, ())]


async def test_a_page_of_large_runs_is_short(tmp_path: Path) -> None:
    """A page ends after some mebibytes, so that memory does not grow with the runs' size."""
    for store in (SQLiteStore(tmp_path / "runs.db"), FileStore(tmp_path / "runs")):
        for n in range(4):
            await store.save(
                f"run-{n}",
                {"": b"x" * (3 << 20)},
                expected=None,
                epoch=1,
                write_id="w",
                summary=summary(NOW),
            )
        first = await store.scan()
        assert [id for id, _ in first.runs] == ["run-0", "run-1"]
        assert first.next == "run-1"
        last = await store.scan(after=first.next)
        assert [id for id, _ in last.runs] == ["run-2", "run-3"]
        await store.aclose()


# --- damage ---------------------------------------------------------------------------------------


async def test_a_damaged_file_stops_nobody(tmp_path: Path) -> None:
    """Files that cannot be read are named, by id or by file; the other runs are listed."""
    long = "/" * 300
    async with FileStore(tmp_path) as store:
        for n, id in enumerate(("a", "b", "c", "d", long)):
            await save(store, id, summary(NOW + n))
        before = await contents(tmp_path)
        (hashed,) = (name for name in before if name.startswith("hash-"))
        await anyio.Path(tmp_path / "run-b.log").write_bytes(b"no run")
        await anyio.Path(tmp_path / hashed).write_bytes(b"")
        await anyio.Path(tmp_path / "run-d.log").unlink()
        await anyio.Path(tmp_path / "run-d.log").mkdir()
        before = await contents(tmp_path)
        told: dict[str, StoreError] = {}
        found = [run.id async for run in browse_runs(store, damaged=told.__setitem__)]
        assert (found, sorted(told)) == (["c", "a"], ["b", "d", hashed])
        assert "run-b.log" in str(told["b"])
        assert isinstance(told["d"], StoreRefusedError)
        scanned = [run.id async for run, _ in scan_runs(store, damaged=told.__setitem__)]
        assert (scanned, sorted(told)) == (["a", "c"], ["b", "d", hashed])
        assert [id for id, _ in await store.list_runs()] == ["a", "c"]
        with pytest.raises(StoreError):
            assert [run async for run in browse_runs(store)]
        report = await inspect_store(store)
        assert (report.kind, report.where) == ("directory", str(tmp_path))
        assert (report.runs, sorted(report.damaged)) == ({"done": 2}, ["b", "d", hashed])
        assert report.size_bytes
        assert await contents(tmp_path) == before
    async with FileStore(tmp_path / "none") as store:
        assert [run async for run in browse_runs(store)] == []
        with pytest.raises(StoreRefusedError, match="nothing was made"):
            await store.inspect()
    assert "none" not in await contents(tmp_path)


async def test_an_unknown_status_stops_nobody(tmp_path: Path) -> None:
    """A row that a newer version may have written is told of, whatever status is asked for."""
    path = tmp_path / "runs.db"
    async with SQLiteStore(path) as store:
        for n, id in enumerate("abc"):
            await save(store, id, summary(NOW + n))
    await execute(path, "UPDATE runs SET status = 'frozen' WHERE id = 'b'")
    async with SQLiteStore(path) as store:
        told: dict[str, StoreError] = {}
        asked: tuple[Any, ...] = (None, "done", ("failed", "done"))
        for statuses in asked:
            told.clear()
            runs = browse_runs(store, status=statuses, damaged=told.__setitem__)
            assert ([run.id async for run in runs], list(told)) == (["c", "a"], ["b"])
        page = await store.browse(limit=2)
        assert ([id for id, _ in page.runs], list(page.damaged)) == (["c"], ["b"])
        assert page.next is not None
        page = await store.browse(before=page.next, limit=2)
        assert ([id for id, _ in page.runs], page.next) == (["a"], None)
        told.clear()
        found = [run.id async for run, _ in scan_runs(store, damaged=told.__setitem__)]
        assert (found, list(told)) == (["a", "c"], ["b"])
        report = await inspect_store(store)
        assert (report.runs, list(report.damaged)) == ({"done": 2}, ["b"])


@pytest.mark.parametrize(
    "change",
    [
        "updated_at = 1e300",
        "updated_at = -1e12",
        "updated_at = 'soon'",
        "created_at = 9e999",
        "wake_at = -1e300",
        "done_at = x'ff'",
        "name = x'ff'",
        "owner = x'ff'",
        "epoch = 'first'",
        "status = x'ff'",
        "status = 'frozen'",
    ],
)
async def test_a_summary_that_is_none_stops_nobody(tmp_path: Path, change: str) -> None:
    """Whatever has got into a row, every other run is listed, scanned and counted."""
    path = tmp_path / "runs.db"
    async with SQLiteStore(path) as store:
        for n, id in enumerate("abc"):
            await save(store, id, summary(NOW + n))
    await execute(path, f"UPDATE runs SET {change} WHERE id = 'b'")
    async with SQLiteStore(path) as store:
        told: dict[str, StoreError] = {}
        found = [run.id async for run in browse_runs(store, damaged=told.__setitem__)]
        assert (found, list(told)) == (["c", "a"], ["b"])
        told.clear()
        found = [run.id async for run, _ in scan_runs(store, damaged=told.__setitem__)]
        assert (found, list(told)) == (["a", "c"], ["b"])
        assert [id for id, _ in await store.list_runs()] == ["a", "c"]
        assert [id for id, _ in await store.list_runs(after="a", limit=1)] == ["c"]
        with pytest.raises(StateFormatError, match="run 'b' has "):
            await store.load("b")
        for trees in (True, False):
            report = await inspect_store(store, trees=trees)
            assert (report.runs, list(report.damaged)) == ({"done": 2}, ["b"])


# --- how the storage is ---------------------------------------------------------------------------


async def test_a_sqlite_file_says_how_it_is(tmp_path: Path) -> None:
    """The report has versions, sizes, counts and holders, and nothing is written by looking."""
    path = tmp_path / "runs.db"
    async with SQLiteStore(path) as holder:
        owner = await holder.acquire("a", seconds=30)
        await save(holder, "a", summary(NOW, "proceeding", owner=owner))
        await save(holder, "b", summary(NOW, "proceeding", owner="web-1:7:" + "0" * 32))
        await asteps.run(flow, 3, store=holder, id="c")
        async with SQLiteStore(path) as store:
            report = await inspect_store(store)
    assert report.runs == {"done": 1, "proceeding": 2}
    assert [(h.id, h.alive) for h in report.held] == [("a", True), ("b", False)]
    assert (report.format, report.newest_format, report.problems) == (1, 1, ())
    assert report.facts["journal_mode"] == "wal"
    assert report.facts["records"] == 6
    assert report.where == str(path)
    files = await contents(tmp_path)
    assert list(files) == ["runs.db"]
    store = SQLiteStore(path)
    again = await store.inspect()
    await store.aclose()
    assert again.size_bytes == len(files["runs.db"])
    assert await contents(tmp_path) == files


@pytest.mark.parametrize("part", ["middle", "beginning", "end"])
async def test_a_damaged_sqlite_file_is_reported_and_left(tmp_path: Path, part: str) -> None:
    """Whatever is wrong is in the report, where no other call may work; no byte is changed."""
    path = tmp_path / "runs.db"
    async with SQLiteStore(path) as store:
        for n in range(50):
            await asteps.run(flow, 3, store=store, id=f"run-{n}")
    data = await anyio.Path(path).read_bytes()
    data = {
        "middle": data[:4096] + b"\xff" * 4096 + data[8192:],
        "beginning": data[:100] + b"\xff" * 900 + data[1000:],
        "end": data[: len(data) // 2],
    }[part]
    await anyio.Path(path).write_bytes(data)
    store = SQLiteStore(path)
    report = await inspect_store(store)
    await store.aclose()
    assert report.problems
    assert await anyio.Path(path).read_bytes() == data


async def test_records_of_no_run_are_reported(tmp_path: Path) -> None:
    """What SQLite cannot know of, runs without a root and records without a run, is found, too."""
    path = tmp_path / "runs.db"
    async with SQLiteStore(path) as store:
        for id in "ab":
            await asteps.run(flow, 2, store=store, id=id)
    await execute(
        path,
        "DELETE FROM records WHERE incarnation = 1 AND key = ''",
        "DELETE FROM runs WHERE incarnation = 2",
    )
    async with SQLiteStore(path) as store:
        report = await inspect_store(store)
    assert list(report.damaged) == ["a"]
    assert report.problems == ("3 records belong to no run; nothing reads them",)


async def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    """Another program's file, a newer one and none at all are told apart from damage."""
    foreign, newer, missing = (tmp_path / name for name in ("foreign.db", "newer.db", "none.db"))

    await execute(foreign, "CREATE TABLE t (x)")
    await execute(newer, "PRAGMA application_id = 0x61737470", "PRAGMA user_version = 99")
    for path, error, says in (
        (foreign, StateFormatError, "another program"),
        (newer, StateFormatError, "format 99"),
        (missing, StoreRefusedError, "nothing was made"),
    ):
        store = SQLiteStore(path)
        with pytest.raises(error, match=says):
            await inspect_store(store)
        await store.aclose()
    assert "none.db" not in await contents(tmp_path)


async def test_a_store_that_cannot_inspect_is_counted(tmp_path: Path) -> None:
    """Of a store that says nothing of itself, the report says what its runs show."""
    store: Any = ListOnly(MemoryStore())
    await save(store, "a", summary(NOW))
    await save(store, "b", summary(NOW, "failed"))
    for trees in (True, False):
        report = await inspect_store(store, trees=trees)
        assert (report.kind, report.runs) == ("ListOnly", {"done": 1, "failed": 1})
        assert report.size_bytes is None
    with pytest.raises(UsageError, match="cannot list"):
        await inspect_store(Bare(store))


def test_a_stored_run_is_what_a_scan_hands_out() -> None:
    """The names that a store's author needs are public."""
    page = asteps.Scanned([("a", StoredRun({}, "1", summary(NOW)))], {}, None)
    assert page.next is None
    assert asteps.Browsed([], {}, (NOW, "a")).next == (NOW, "a")
