"""What is special to SQLiteStore: the file, group commit, owners that die, and its thread."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import anyio
import pytest
from anyio import to_thread, wait_all_tasks_blocked
from processes import run_script, started

from asteps._store import StoredRun, Summary
from asteps.errors import (
    BusyError,
    ConflictError,
    StoreClosedError,
    StoreError,
    StoreRefusedError,
    UsageError,
)
from asteps.stores import _sqlite_file
from asteps.stores.sqlite import SQLiteStore
from asteps.testing import StoreConformance


class TestSQLiteStore(StoreConformance):
    """It keeps the contract."""

    leases = True
    listing = True
    browsing = True
    scanning = True
    inspecting = True

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Path:
        return tmp_path / "runs.db"

    async def client(self, storage: Path) -> SQLiteStore:
        return SQLiteStore(storage)


class TestSQLiteStoreNormal(TestSQLiteStore):
    """It keeps the contract without syncing, too."""

    async def client(self, storage: Path) -> SQLiteStore:
        return SQLiteStore(storage, synchronous="NORMAL")


def summary(owner: str | None = None) -> Summary:
    """The summary of every run here."""
    return Summary("f", "proceeding", 1, owner, 1.0, 2.0)


async def create(store: SQLiteStore, id: str, data: bytes = b"{}") -> str:
    """Make a run of one record."""
    return await store.save(
        id, {"": data}, expected=None, epoch=1, write_id="first", summary=summary()
    )


async def advance(store: SQLiteStore, id: str, expected: str | None, key: str = "step") -> str:
    """Add a record to a run."""
    return await store.save(
        id, {key: b"1"}, expected=expected, epoch=1, write_id=f"w-{key}", summary=summary()
    )


def writers() -> list[threading.Thread]:
    """The threads of all stores."""
    return [t for t in threading.enumerate() if t.name == "asteps-sqlite"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file of the test is."""
    return tmp_path / "runs.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    """A store that is open."""
    async with SQLiteStore(path) as opened:
        yield opened


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Another program's transaction, in which the store's thread gets stuck."""
    other = await to_thread.run_sync(
        lambda: sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    )
    try:
        await to_thread.run_sync(other.execute, "BEGIN IMMEDIATE")
        yield
        await to_thread.run_sync(other.execute, "ROLLBACK")
    finally:
        await to_thread.run_sync(other.close)


async def outcomes(*calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What each of several calls at once returned or raised."""
    found: list[Any] = [None] * len(calls)

    async def one(at: int) -> None:
        try:
            found[at] = await calls[at]()
        except StoreError as exc:
            found[at] = exc

    async with anyio.create_task_group() as group:
        for at in range(len(calls)):
            group.start_soon(one, at)
            await wait_all_tasks_blocked()  # in this order, on trio too
    return found


def files(path: Path) -> list[str]:
    """What is in the directory."""
    return sorted(file.name for file in path.parent.iterdir())


def commits(path: Path) -> int:
    """Transactions in the write-ahead log: frames that carry the size of the database."""
    log = Path(f"{path}-wal").read_bytes()
    step = int.from_bytes(log[8:12], "big") + 24
    heads = [log[at : at + 24] for at in range(32, len(log), step)]
    return sum(1 for h in heads if h[8:16] == log[16:24] and any(h[4:8]))


# --- group commit ---------------------------------------------------------------------------------


async def test_saves_of_many_runs_share_a_transaction(store: SQLiteStore, path: Path) -> None:
    """What arrives while the store is busy becomes one transaction."""
    await create(store, "before")
    before = await to_thread.run_sync(commits, path)
    async with anyio.create_task_group() as group, locked(path):
        for number in range(50):
            group.start_soon(create, store, f"run-{number}")
        await wait_all_tasks_blocked()
    # The first is on its way alone when the others come.
    assert await to_thread.run_sync(commits, path) - before <= 2
    assert len(await store.list_runs()) == 51


async def test_a_conflict_is_its_own(store: SQLiteStore, path: Path) -> None:
    """A save that comes too late fails alone; its neighbours in the transaction are written."""
    head = await create(store, "a")
    await create(store, "b")
    async with anyio.create_task_group() as group, locked(path):
        group.start_soon(create, store, "in front")
        await wait_all_tasks_blocked()
        found: list[Any] = []

        async def together() -> None:
            found.extend(
                await outcomes(
                    lambda: advance(store, "a", head),
                    lambda: advance(store, "b", "1-7"),
                    lambda: advance(store, "c", "9-1"),
                    lambda: create(store, "d"),
                )
            )

        group.start_soon(together)
        await wait_all_tasks_blocked()
    assert found[0] == "1-2"
    assert [type(f) for f in found[1:3]] == [ConflictError, ConflictError]
    assert [f.found for f in found[1:3]] == ["2-1", None]
    loaded = await store.load("b")
    assert loaded is not None
    assert loaded.records == {"": b"{}"}
    assert await store.load("c") is None
    d = await store.load("d")
    assert d == StoredRun({"": b"{}"}, found[3], summary())


async def test_what_cannot_be_written_is_refused_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record too large for SQLite is refused; its neighbours in the transaction are written."""
    connect = _sqlite_file._connect

    def limited(path: str, mode: str) -> sqlite3.Connection:
        conn = connect(path, mode)
        conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
        return conn

    monkeypatch.setattr(_sqlite_file, "_connect", limited)
    async with SQLiteStore(path) as store:
        await create(store, "before")
        async with anyio.create_task_group() as group, locked(path):
            group.start_soon(create, store, "in front")
            await wait_all_tasks_blocked()
            found: list[Any] = []

            async def together() -> None:
                found.extend(
                    await outcomes(
                        lambda: create(store, "small"),
                        lambda: create(store, "large", b" " * 200_000),
                        lambda: create(store, "not text \ud800"),
                        lambda: create(store, "small too"),
                    )
                )

            group.start_soon(together)
            await wait_all_tasks_blocked()
        assert [type(f) for f in found] == [str, StoreRefusedError, StoreRefusedError, str]
        ids = [id for id, _ in await store.list_runs()]
    assert ids == ["before", "in front", "small", "small too"]


async def test_revisions_are_never_reused(store: SQLiteStore) -> None:
    """A run that is made again has no revision that it had before it was deleted."""
    seen = [await create(store, "a")]
    for _ in range(3):
        seen.append(await advance(store, "a", seen[-1], f"k{len(seen)}"))
        await store.delete("a", expected=seen[-1])
        seen.append(await create(store, "a"))
    assert len(set(seen)) == len(seen)
    loaded = await store.load("a")
    assert loaded is not None
    assert loaded.records == {"": b"{}"}


# --- cancellation ---------------------------------------------------------------------------------


async def test_a_cancelled_caller_waits(store: SQLiteStore, path: Path) -> None:
    """A cancelled save is carried out before its caller goes on."""
    head = await create(store, "a")
    left: list[str] = []

    async def caller(scope: anyio.CancelScope) -> None:
        with scope:
            try:
                await advance(store, "a", head)
            finally:
                left.append("caller")

    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope()
        async with locked(path):
            group.start_soon(caller, scope)
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            left.append("lock")
    assert left == ["lock", "caller"]
    assert scope.cancelled_caught
    loaded = await store.load("a")
    assert loaded is not None
    assert loaded.records == {"": b"{}", "step": b"1"}


async def test_a_save_outlives_native_cancellation(
    store: SQLiteStore, path: Path, anyio_backend_name: str
) -> None:
    """``task.cancel()`` pierces shields; the save lands whole all the same."""
    if anyio_backend_name == "trio":
        return  # it has nothing of the kind
    head = await create(store, "a")
    async with locked(path):
        task = asyncio.create_task(advance(store, "a", head))
        for _ in range(2):
            await wait_all_tasks_blocked()
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    loaded = await store.load("a")
    assert loaded is not None
    assert loaded.revision == "1-2"
    assert loaded.records == {"": b"{}", "step": b"1"}


# --- the thread, the loop -------------------------------------------------------------------------


async def test_the_thread_ends_with_the_store(path: Path) -> None:
    """After `aclose` the store's thread is gone, and its files are SQLite's one."""
    store = SQLiteStore(path)
    await create(store, "a")  # opens it, without `async with`
    await store.acquire("a", seconds=30)
    assert len(writers()) == 1
    await store.aclose()
    assert writers() == []
    assert await to_thread.run_sync(files, path) == ["runs.db"]
    await store.aclose()
    with pytest.raises(StoreClosedError):
        await store.load("a")


async def test_calls_under_way_are_carried_out_before_closing(path: Path) -> None:
    """A save that began before `aclose` is acknowledged."""
    store = SQLiteStore(path)
    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(create, store, f"run-{number:02}")
        await wait_all_tasks_blocked()
        await store.aclose()
    async with SQLiteStore(path) as again:
        assert len(await again.list_runs()) == 20


async def test_a_failed_opening_leaves_no_thread(tmp_path: Path) -> None:
    """When the file cannot be opened its thread is gone, and a later call may succeed."""
    store = SQLiteStore(tmp_path / "missing" / "runs.db")
    found = await outcomes(lambda: store.load("a"), lambda: create(store, "a"))
    assert [type(f) for f in found] == [StoreRefusedError, StoreRefusedError]
    assert "does not exist; create it first" in str(found[0])
    with anyio.fail_after(1):
        while writers():
            await anyio.sleep(0.001)
    await to_thread.run_sync((tmp_path / "missing").mkdir)
    assert await create(store, "a") == "1-1"
    await store.aclose()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_another_event_loop_is_refused(path: Path, backend: str) -> None:
    """A store belongs to one event loop; dropped without `aclose`, it leaves no thread."""

    async def second(store: SQLiteStore) -> None:
        with pytest.raises(UsageError, match="event loop"):
            await store.load("a")
        with pytest.raises(UsageError, match="event loop"):
            await store.aclose()

    stores = [SQLiteStore(path)]
    anyio.run(create, stores[0], "a", backend=backend)
    anyio.run(second, stores[0], backend=backend)
    assert len(writers()) == 1
    stores.clear()
    gc.collect()
    deadline = time.monotonic() + 5
    while writers() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert writers() == []


def test_a_process_ends_without_aclose(path: Path) -> None:
    """A store that nobody closes does not keep its process from ending."""
    done = run_script(
        """
        store = SQLiteStore(sys.argv[1])
        async def main():
            await store.save("a", {}, expected=None, epoch=1, write_id="w",
                             summary=Summary("f", "done", 1, None, 1.0, 2.0))
            await store.acquire("a", seconds=30)
        anyio.run(main)
        """,
        path,
    )
    assert done.returncode == 0, done.stderr
    assert not [name for name in files(path) if "owner" in name]


@pytest.mark.parametrize("name", [":memory:", "", "file:runs.db?mode=memory"])
def test_memory_is_refused(name: str) -> None:
    """What is no file is misuse, and the message names the store for it."""
    with pytest.raises(UsageError, match="MemoryStore"):
        SQLiteStore(name)


async def test_synchronous(path: Path) -> None:
    """One file may be used both ways; what is neither FULL nor NORMAL is misuse."""
    async with SQLiteStore(path, synchronous="NORMAL") as store:
        head = await create(store, "a")
        await advance(store, "a", head)
    async with SQLiteStore(path) as store:
        loaded = await store.load("a")
    assert loaded is not None
    assert loaded.records == {"": b"{}", "step": b"1"}
    with pytest.raises(UsageError, match="FULL"):
        SQLiteStore(path, synchronous="OFF")  # type: ignore[arg-type]


# --- owners ---------------------------------------------------------------------------------------


@pytest.fixture
def holder(path: Path) -> Iterator[tuple[Popen[str], str]]:
    """A process that holds the run "a", and its owner's name."""
    with started(
        """
        async def main():
            store = SQLiteStore(sys.argv[1])
            owner = await store.acquire("a", seconds=30)
            await store.save("a", {"": b"{}"}, expected=None, epoch=1, write_id="w",
                             summary=Summary("f", "proceeding", 1, owner, 1.0, 2.0))
            print(owner, flush=True)
            await anyio.sleep_forever()
        anyio.run(main)
        """,
        path,
    ) as found:
        yield found


async def test_take_over_from_a_killed_process(path: Path, holder: tuple[Popen[str], str]) -> None:
    """A run is busy while its holder lives, and free within a second of its kill -9."""
    process, owner = holder
    async with SQLiteStore(path) as store:
        with pytest.raises(BusyError) as caught:
            await store.acquire("a", seconds=30)
        assert (caught.value.id, caught.value.owner, caught.value.until) == ("a", owner, None)
        process.kill()
        mine = owner
        with anyio.fail_after(1):
            while mine == owner:
                try:
                    mine = await store.acquire("a", seconds=30)
                except BusyError:
                    await anyio.sleep(0.002)
        loaded = await store.load("a")
        assert loaded is not None
        assert loaded.summary == summary(owner)
        found = await to_thread.run_sync(files, path)
        mark = f"runs.db-owner.{mine.rpartition(':')[2]}"
        assert found == ["runs.db", mark, "runs.db-shm", "runs.db-wal"]


async def test_two_clients_in_one_process(store: SQLiteStore, path: Path) -> None:
    """Two clients are two owners; one client holds a run once, until it releases it."""
    mine = await store.acquire("a", seconds=30)
    await store.save("a", {}, expected=None, epoch=1, write_id="w", summary=summary(mine))
    with pytest.raises(BusyError) as caught:
        await store.acquire("a", seconds=30)
    assert caught.value.owner == mine
    async with SQLiteStore(path) as other:
        with pytest.raises(BusyError) as caught:
            await other.acquire("a", seconds=30)
        assert caught.value.owner == mine
        theirs = await other.acquire("b", seconds=30)
        assert theirs != mine
        store.release("a")
        assert await store.acquire("a", seconds=30) == mine
        await store.aclose()
        assert await other.acquire("a", seconds=30) == theirs
