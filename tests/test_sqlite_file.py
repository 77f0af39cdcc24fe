"""The file under SQLiteStore: what is not ours stays as it is, and what an error says."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from processes import command, run_script

from asteps._store import StoredRun, Summary
from asteps.errors import (
    ConflictError,
    StateFormatError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    UncertainWriteError,
)
from asteps.stores import _sqlite_file
from asteps.stores.sqlite import SQLiteStore

SUMMARY = Summary("f", "proceeding", 1, None, 1.0, 2.0)


async def create(store: SQLiteStore, id: str, data: bytes = b"{}") -> str:
    """Make a run of one record."""
    return await store.save(
        id, {"": data}, expected=None, epoch=1, write_id="first", summary=SUMMARY
    )


async def advance(store: SQLiteStore, id: str, expected: str) -> str:
    """Add a record to a run."""
    return await store.save(
        id, {"step": b"1"}, expected=expected, epoch=1, write_id="second", summary=SUMMARY
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file of the test is."""
    return tmp_path / "runs.db"


# --- files that are not ours ----------------------------------------------------------------------


def garbage(path: Path) -> None:
    """Text."""
    path.write_bytes(b"not a database at all\n" * 300)


def short_garbage(path: Path) -> None:
    """Less than any database."""
    path.write_bytes(b"x")


def foreign(path: Path) -> None:
    """Another program's database."""
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE runs (x)")
        conn.commit()


def foreign_wal(path: Path) -> None:
    """Another program's database, with write-ahead logging."""
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA application_id = 77")
        conn.execute("CREATE TABLE albums (x)")
        conn.commit()


def ours(path: Path) -> None:
    """A database of ours, closed."""

    async def main() -> None:
        async with SQLiteStore(path) as store:
            for number in range(50):
                await create(store, f"run-{number}", b" " * 500)

    anyio.run(main)


def truncated(path: Path) -> None:
    """One of ours that was cut short."""
    ours(path)
    os.truncate(path, 3 * 2048 + 100)


def cut_to_a_header(path: Path) -> None:
    """One of ours that was cut within its header."""
    ours(path)
    os.truncate(path, 90)


def newer(path: Path) -> None:
    """One of ours from the future."""
    ours(path)
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA user_version = 99")


def newer_in_the_log(path: Path) -> None:
    """One from the future, which only its log says."""
    ours(path)
    script = """
    conn = sqlite3.connect(sys.argv[1], isolation_level=None)
    conn.execute("PRAGMA user_version = 99")
    os._exit(0)  # without the checkpoint of a last connection that is closed
    """
    assert run_script(script, path).returncode == 0
    assert Path(f"{path}-wal").stat().st_size


def without_tables(path: Path) -> None:
    """One of ours that somebody took a table from."""
    ours(path)
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("DROP TABLE records")


NOT_OURS: dict[Callable[[Path], None], str] = {
    garbage: "not a readable SQLite database",
    short_garbage: "another program",
    truncated: "cut short",
    cut_to_a_header: "not a readable SQLite database",
    foreign: "another program",
    foreign_wal: "another program",
    newer: "newer asteps",
    newer_in_the_log: "newer asteps",
    without_tables: "lacks ['records']",
}


@pytest.mark.parametrize("make", NOT_OURS)
def test_what_is_not_ours_is_left_as_it_is(path: Path, make: Callable[[Path], None]) -> None:
    """A file that is no database of ours is refused; not a byte of it changes."""

    def files() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in path.parent.iterdir()}

    make(path)
    before = files()
    mtime = path.stat().st_mtime_ns

    async def main() -> str:
        with pytest.raises(StateFormatError) as caught:
            async with SQLiteStore(path):
                pass
        return str(caught.value)

    message = anyio.run(main)
    assert NOT_OURS[make] in message
    assert repr(str(path)) in message
    assert "it was left as it is: " in message
    after = files()
    if f"{path.name}-wal" in before:
        after.pop(f"{path.name}-shm")  # the log's index, which holds nothing of its own
        before.pop(f"{path.name}-shm", None)
    assert after == before
    assert path.stat().st_mtime_ns == mtime


async def test_a_file_of_an_older_version_is_brought_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening an older file takes the missing steps and keeps the runs; older code refuses it."""
    async with SQLiteStore(path) as store:
        await create(store, "a")
    steps = (*_sqlite_file._STEPS, ("ALTER TABLE runs ADD COLUMN note TEXT",))
    with monkeypatch.context() as newer:
        newer.setattr(_sqlite_file, "_STEPS", steps)
        async with SQLiteStore(path) as store:
            assert await store.load("a") == StoredRun({"": b"{}"}, "1-1", SUMMARY)
    with pytest.raises(StateFormatError, match="newer asteps"):
        async with SQLiteStore(path):
            pass


async def test_a_failing_step_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration is taken whole or not at all."""
    async with SQLiteStore(path) as store:
        await create(store, "a")
    steps = (*_sqlite_file._STEPS, ("ALTER TABLE runs ADD COLUMN note TEXT", "no SQL"))
    with monkeypatch.context() as newer:
        newer.setattr(_sqlite_file, "_STEPS", steps)
        with pytest.raises(StateFormatError):
            async with SQLiteStore(path):
                pass
    async with SQLiteStore(path) as store:
        assert await store.load("a") == StoredRun({"": b"{}"}, "1-1", SUMMARY)


def test_many_processes_make_one_file(path: Path) -> None:
    """Processes that find no file at the same time make one together."""
    body = """
    async def main():
        async with SQLiteStore(sys.argv[1]) as store:
            await store.save(sys.argv[2], {}, expected=None, epoch=1, write_id="w",
                             summary=Summary("f", "done", 1, None, 1.0, 2.0))
    print("ready", flush=True)
    sys.stdin.read()
    anyio.run(main)
    """
    processes = [
        subprocess.Popen(command(body, path, n), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for n in range(6)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        with process:
            assert process.wait(30) == 0
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT count(*) FROM runs").fetchone() == (6,)


async def test_many_clients_make_one_file(tmp_path: Path) -> None:
    """Clients that find no file at the same time make one together."""
    for number in range(10):
        clients = [SQLiteStore(tmp_path / f"runs-{number}.db") for _ in range(8)]
        async with anyio.create_task_group() as group:
            for at, client in enumerate(clients):
                group.start_soon(create, client, f"run-{at}")
        assert len(await clients[0].list_runs()) == len(clients)
        for client in clients:
            await client.aclose()


async def test_a_file_that_was_replaced(path: Path) -> None:
    """When the file is taken away under the store, saves are not acknowledged into nowhere."""
    async with SQLiteStore(path) as store:
        head = await create(store, "a")
        await to_thread.run_sync(path.rename, f"{path}.old")
        with pytest.raises(ConflictError) as caught:
            await advance(store, "a", head)
        assert caught.value.found is None
        assert await create(store, "b")


# --- errors ---------------------------------------------------------------------------------------


async def test_locked_by_another_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreign transaction that does not end makes the store unavailable; nothing is written."""
    monkeypatch.setattr(_sqlite_file, "BUSY_SECONDS", 0.01)
    async with SQLiteStore(path) as store:
        head = await create(store, "a")
        other = await to_thread.run_sync(
            lambda: sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        )
        await to_thread.run_sync(other.execute, "BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match="locked by another process"):
            await advance(store, "a", head)
        assert await store.load("a") == StoredRun({"": b"{}"}, head, SUMMARY)
        await to_thread.run_sync(other.close)
        await advance(store, "a", head)


def test_a_full_disk(path: Path) -> None:
    """When the file cannot grow the save is refused; what was there stays, and more may follow."""
    done = run_script(
        """
        async def main():
            store = SQLiteStore(sys.argv[1])
            s = Summary("f", "proceeding", 1, None, 1.0, 2.0)
            async def save(expected, size, write_id):
                return await store.save("a", {"k": b"1" * size}, expected=expected, epoch=1,
                                        write_id=write_id, summary=s)
            head = await save(None, 10, "w1")
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
            try:
                await save(head, 1_000_000, "w2")
            except StoreRefusedError as exc:
                print("refused", "make room" in str(exc))
            assert (await store.load("a")).records == {"k": b"1" * 10}
            head = await save(head, 20, "w3")
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            await save(head, 1_000_000, "w4")
            await store.aclose()
        anyio.run(main)
        """,
        path,
    )
    assert (done.stdout, done.returncode) == ("refused True\n", 0), done.stderr

    async def check() -> None:
        async with SQLiteStore(path) as store:
            assert await store.load("a") == StoredRun({"k": b"1" * 1_000_000}, "1-3", SUMMARY)

    anyio.run(check)


READ_ONLY = """
path, expected = sys.argv[1:]

async def main(path):
    async with SQLiteStore(path) as store:
        await store.save("run-0", {}, expected=expected or None, epoch=1, write_id="w2",
                         summary=Summary("f", "done", 1, None, 1.0, 2.0))

if os.getuid() == 0:
    with tempfile.TemporaryDirectory() as other, contextlib.suppress(ConflictError):
        anyio.run(main, other + "/runs.db")  # imports what nobody else may be allowed to read
    os.setuid(65534)
try:
    anyio.run(main, path)
except StoreRefusedError as exc:
    print("refused", path in str(exc))
"""


@pytest.mark.parametrize("what", ["directory", "new file", "file"])
def test_read_only(what: str) -> None:
    """A directory or file that may not be written is refused, and says what to do."""
    directory = Path(tempfile.mkdtemp())  # pytest's own cannot be entered by another user
    path = directory / "runs.db"
    try:
        if what != "new file":
            ours(path)
            path.chmod(0o444)
        directory.chmod(0o777 if what == "file" else 0o555)
        done = run_script(READ_ONLY, path, "" if what == "new file" else "1-1")
        assert (done.stdout, done.returncode) == ("refused True\n", 0), done.stderr
    finally:
        directory.chmod(0o755)
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("code", "at_commit", "kind"),
    [
        (sqlite3.SQLITE_BUSY, False, StoreUnavailableError),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, False, StoreUnavailableError),
        (sqlite3.SQLITE_LOCKED, False, StoreUnavailableError),
        (sqlite3.SQLITE_IOERR_READ, False, StoreUnavailableError),
        (sqlite3.SQLITE_FULL, False, StoreRefusedError),
        (sqlite3.SQLITE_IOERR_WRITE, False, StoreRefusedError),
        (sqlite3.SQLITE_READONLY_DBMOVED, False, StoreRefusedError),
        (sqlite3.SQLITE_CANTOPEN, False, StoreRefusedError),
        (sqlite3.SQLITE_TOOBIG, False, StoreRefusedError),
        (sqlite3.SQLITE_CONSTRAINT_NOTNULL, False, StoreRefusedError),
        (sqlite3.SQLITE_CORRUPT, False, StateFormatError),
        (sqlite3.SQLITE_NOTADB, False, StateFormatError),
        (sqlite3.SQLITE_FULL, True, StoreRefusedError),
        (sqlite3.SQLITE_IOERR_WRITE, True, StoreRefusedError),
        (sqlite3.SQLITE_IOERR_FSYNC, True, UncertainWriteError),
        (sqlite3.SQLITE_IOERR_SHMMAP, True, UncertainWriteError),
        (sqlite3.SQLITE_NOMEM, True, UncertainWriteError),
    ],
)
def test_errors_say_what_became_of_the_data(
    code: int, at_commit: bool, kind: type[StoreError]
) -> None:
    """Each of SQLite's codes is told by what it means for the data, at COMMIT and before it."""
    error = sqlite3.OperationalError("the text does not matter")
    error.sqlite_errorcode = code
    error.sqlite_errorname = "SQLITE_X"
    with pytest.raises(StoreError) as caught, _sqlite_file.translated("p", committing=at_commit):
        raise error
    assert type(caught.value) is kind
    assert "SQLITE_X" in str(caught.value)
