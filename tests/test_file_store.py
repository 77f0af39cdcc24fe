"""`FileStore` keeps the contract, whatever a crash, a disk or another process does to it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from asteps._store import Store, StoredRun, Summary
from asteps.errors import (
    BusyError,
    ConflictError,
    StateFormatError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    UncertainWriteError,
)
from asteps.stores import _directory
from asteps.stores.file import FileStore
from asteps.testing import StoreConformance
from asteps.testing._conformance._records import AWKWARD_IDS

T = TypeVar("T")

SUMMARY = Summary("f", "proceeding", 1, None, 1.0, 1.0)


async def _save(
    store: FileStore,
    changes: dict[str, bytes | None],
    expected: str | None,
    write_id: str = "w",
    *,
    id: str = "run",
    owner: str | None = None,
) -> str:
    summary = Summary("f", "proceeding", 1, owner, 1.0, 1.0)
    return await store.save(
        id, changes, expected=expected, epoch=1, write_id=write_id, summary=summary
    )


async def _three_saves(path: Path) -> tuple[list[StoredRun], list[int], Path]:
    """A run of three saves: what each left, where in the file it ends, and the file."""
    file = path / "run-run.log"
    runs, ends = [], []
    async with FileStore(path) as store:
        revision = None
        for n in range(3):
            revision = await _save(store, {"k": b'"%d"' % n, f"k{n}": b"{}"}, revision, f"w{n}")
            run = await store.load("run")
            assert run is not None
            runs.append(run)
            ends.append((await anyio.Path(file).stat()).st_size)
    return runs, ends, file


class TestFileStore(StoreConformance):
    leases = True
    listing = True
    browsing = True
    scanning = True
    inspecting = True

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Path:
        return tmp_path / "some" / "runs"

    async def client(self, storage: Any) -> Store:
        return FileStore(storage)


# --- what a crash leaves, and what is damage ------------------------------------------------------


async def test_torn_tail_is_cut(tmp_path: Path) -> None:
    """Wherever a crash cut the last save, the one before it stands, and the next one lands."""
    runs, ends, file = await _three_saves(tmp_path)
    whole = await anyio.Path(file).read_bytes()
    assert len(whole) == ends[2]
    tails = [whole[ends[1] : end] for end in range(ends[1], ends[2])]
    tails += [b"\0" * 7, b"\0" * 500, whole[ends[1] : -20] + b"\0" * 20, b"\xff" * 50]
    for n, tail in enumerate(tails):
        await anyio.Path(file).write_bytes(whole[: ends[1]] + tail)
        async with FileStore(tmp_path) as store:
            assert await store.load("run") == runs[1]
            revision = await _save(store, {"k": b'"new"'}, runs[1].revision, f"new-{n}")
            after = StoredRun({**runs[1].records, "k": b'"new"'}, revision, SUMMARY)
            async with FileStore(tmp_path) as other:
                assert await other.load("run") == after
            assert await store.load("run") == after


async def test_damage_is_told_and_left(tmp_path: Path) -> None:
    """A byte changed before the last save is a StateFormatError; no call touches the file."""
    runs, ends, path = await _three_saves(tmp_path)
    file = anyio.Path(path)
    whole = await file.read_bytes()
    async with FileStore(tmp_path) as store:
        for at in range(ends[1]):
            damaged = bytearray(whole)
            damaged[at] ^= 0x41
            await file.write_bytes(damaged)
            with pytest.raises(StateFormatError):
                await store.load("run")
            if at % 7 == 0:
                async with FileStore(tmp_path) as other:
                    with pytest.raises(StateFormatError):
                        await _save(other, {"k": b"0"}, runs[2].revision, "new")
                    with pytest.raises(StateFormatError):
                        await other.delete("run", expected=runs[2].revision)
                assert await file.read_bytes() == damaged


async def test_file_cut_below_its_first_save_is_damage(tmp_path: Path) -> None:
    """A file is put in place complete: one shorter than its first save is told, and left."""
    _, ends, path = await _three_saves(tmp_path)
    file = anyio.Path(path)
    whole = await file.read_bytes()
    async with FileStore(tmp_path) as store:
        for end in range(ends[0]):
            await file.write_bytes(whole[:end])
            with pytest.raises(StateFormatError, match="left as it is"):
                await store.load("run")
            with pytest.raises(StateFormatError):
                await _save(store, {}, None, "new")
            assert await file.read_bytes() == whole[:end]


async def test_newer_and_foreign_files_are_refused(tmp_path: Path) -> None:
    """A newer format, another program's file and another run's file are told, and left."""
    _, _, path = await _three_saves(tmp_path)
    file = anyio.Path(path)
    whole = await file.read_bytes()
    newer = whole[:8] + b"\x02\x00" + whole[10:]
    async with FileStore(tmp_path) as store:
        for content, text in ((newer, "format 2"), (b"#!/bin/sh\n" * 9, "no run of asteps")):
            await file.write_bytes(content)
            for call in (store.load("run"), _save(store, {}, None)):
                with pytest.raises(StateFormatError, match=text):
                    await call
            with pytest.raises(StateFormatError, match=text):
                await store.acquire("run", seconds=30)
            assert await file.read_bytes() == content
        await file.write_bytes(whole)
        await file.rename(tmp_path / "run-other.log")
        with pytest.raises(StateFormatError, match="'run'"):
            await store.load("other")


# --- names ----------------------------------------------------------------------------------------


async def test_no_id_leaves_the_directory(tmp_path: Path) -> None:
    """Every id becomes a short, plain file name of its own, also where case is ignored."""
    path = tmp_path / "runs"
    async with FileStore(path) as store:
        for id in AWKWARD_IDS:
            await _save(store, {}, None, id=id)
    names = [p.name async for p in anyio.Path(path).iterdir() if not p.name.startswith("lock")]
    assert len(names) == len({name.casefold() for name in names}) == len(AWKWARD_IDS)
    for name in names:
        assert name.isascii()
        assert name == name.lower()
        assert len(name) <= 255
    assert [p.name async for p in anyio.Path(tmp_path).iterdir()] == ["runs"]


async def test_other_files_in_the_directory_are_ignored(tmp_path: Path) -> None:
    """What is not a run's file, by its name, is neither listed nor touched."""
    names = ("run-.log", "run-A.log", "run-a%2Fb.log", "run-x.log~", "run-y.new", "hash-.txt", "a")
    async with FileStore(tmp_path) as store:
        await _save(store, {}, None)
        for name in names:
            await anyio.Path(tmp_path / name).write_text("mine")
        assert list(await store.list_runs()) == [("run", SUMMARY)]
        for name in names:
            assert await anyio.Path(tmp_path / name).read_text() == "mine"


# --- compaction -----------------------------------------------------------------------------------


async def test_compaction_bounds_the_file(tmp_path: Path) -> None:
    """A file stays below about twice its run, is rewritten seldom, and keeps counting revisions."""
    file = anyio.Path(tmp_path / "run-run.log")
    async with FileStore(tmp_path) as store, FileStore(tmp_path) as other:
        revision = None
        inodes, revisions = set(), set()
        for n in range(400):
            saver = other if n % 10 == 0 else store
            revision = await _save(saver, {"k": b'"%1000d"' % n, "gone": None}, revision, f"w{n}")
            again = await _save(store, {"k": b'"%1000d"' % n}, None, f"w{n}")
            assert again == revision
            revisions.add(revision)
            stat = await file.stat()
            inodes.add(stat.st_ino)
            assert stat.st_size < 70_000
        assert len(revisions) == 400
        assert 1 < len(inodes) < 12
        stale = revision
        revision = await _save(other, {"k": b"1"}, stale, "last")
        with pytest.raises(ConflictError):
            await _save(store, {"k": b"2"}, stale, "lost")
        assert await store.load("run") == StoredRun({"k": b"1"}, revision, SUMMARY)


async def test_compaction_keeps_permissions(tmp_path: Path) -> None:
    """A file that somebody closed to others stays closed when it is rewritten."""
    file = anyio.Path(tmp_path / "run-run.log")
    async with FileStore(tmp_path) as store:
        revision = await _save(store, {}, None)
        await file.chmod(0o600)
        before = (await file.stat()).st_ino
        for n in range(3):
            revision = await _save(store, {"k": b"1" * 50_000}, revision, f"w{n}")
        stat = await file.stat()
        assert stat.st_ino != before
        assert stat.st_mode & 0o777 == 0o600


async def test_compaction_without_room_falls_back_to_an_append(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no room for a second file, a save still lands in the first."""
    async with FileStore(tmp_path) as store:
        revision = await _save(store, {"k": b"1" * 70_000}, None)
        for n in range(3):
            revision = await _save(store, {"k": b"2" * 70_000}, revision, f"w{n}")

        def no_room(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "replace", no_room)
        for n in range(3):
            revision = await _save(store, {"k": b"3" * 70_000}, revision, f"v{n}")
        monkeypatch.undo()
        assert await store.load("run") == StoredRun({"k": b"3" * 70_000}, revision, SUMMARY)
        names = {p.name async for p in anyio.Path(tmp_path).glob("run-*")}
        assert names == {"run-run.log"}


# --- several processes ----------------------------------------------------------------------------

_COUNT = """
import sys, anyio
from asteps._store import Summary
from asteps.errors import ConflictError
from asteps.stores.file import FileStore

async def main(path, me):
    summary = Summary("f", "proceeding", 1, None, 1.0, 1.0)
    async with FileStore(path) as store:
        done = 0
        while done < 60:
            run = await store.load("run")
            count = int(run.records["count"]) + 1
            changes = {"count": b"%d" % count, "pad": b'"%2000d"' % count, f"{me}-{done}": b"1"}
            try:
                await store.save("run", changes, expected=run.revision, epoch=1,
                                 write_id=f"{me}-{count}", summary=summary)
            except ConflictError:
                continue
            done += 1

anyio.run(main, sys.argv[1], sys.argv[2])
"""

_HOLD = """
import sys, anyio
from asteps._store import Summary
from asteps.stores.file import FileStore

async def main(path):
    store = FileStore(path)
    owner = await store.acquire("run", seconds=30)
    summary = Summary("f", "proceeding", 1, owner, 1.0, 1.0)
    await store.save("run", {}, expected=None, epoch=1, write_id="w", summary=summary)
    print(owner, flush=True)
    await anyio.sleep_forever()

anyio.run(main, sys.argv[1])
"""


_ENDLESS = """
import sys, anyio
from asteps._store import Summary
from asteps.stores.file import FileStore

async def main(path):
    summary = Summary("f", "proceeding", 1, None, 1.0, 1.0)
    async with FileStore(path) as store:
        run = await store.load("run")
        count, revision = (int(run.records["count"]), run.revision) if run else (0, None)
        while True:
            count += 1
            changes = {"count": b"%d" % count, "pad": b'"%3000d"' % count, "twin": b"%d" % count}
            revision = await store.save("run", changes, expected=revision, epoch=1,
                                        write_id=f"{path}-{count}", summary=summary)
            print(count, flush=True)

anyio.run(main, sys.argv[1])
"""


def _in(
    path: Path, use: Callable[[FileStore], Coroutine[Any, Any, T]]
) -> Callable[[], Coroutine[Any, Any, T]]:
    """For `anyio.run`: do something with a store of its own."""

    async def main() -> T:
        async with FileStore(path) as store:
            return await use(store)

    return main


def _python(code: str, *args: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_processes_that_compact_lose_no_save(tmp_path: Path) -> None:
    """Appends of one process beside the compactions of others all count, exactly once."""
    first = anyio.run(_in(tmp_path, lambda store: _save(store, {"count": b"0"}, None)))
    file = tmp_path / "run-run.log"
    before = file.stat().st_ino
    workers = [_python(_COUNT, tmp_path, f"p{n}") for n in range(3)]
    for worker in workers:
        _, said = worker.communicate(timeout=60)
        assert worker.returncode == 0, said
    run = anyio.run(_in(tmp_path, lambda store: store.load("run")))
    assert run is not None
    assert run.records["count"] == b"180"
    assert len(run.records) == 182
    assert run.revision != first
    assert file.stat().st_ino != before
    assert file.stat().st_size < 140_000


def test_killed_saver_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    """Wherever SIGKILL meets a saver, what it reported is there, whole, and the next goes on."""
    last = 0
    for n in range(6):
        with _python(_ENDLESS, tmp_path) as saver:
            assert saver.stdout is not None
            for _ in range(7 * n + 3):  # 22 saves are a compaction
                saver.stdout.readline()
            saver.kill()
            reported = saver.stdout.read().split()
            acknowledged = int(reported[-1]) if reported else last + 7 * n + 3
        run = anyio.run(_in(tmp_path, lambda store: store.load("run")))
        assert run is not None
        last = int(run.records["count"])
        assert acknowledged <= last <= acknowledged + 1
        assert run.records == {
            "count": b"%d" % last,
            "twin": b"%d" % last,
            "pad": b'"%3000d"' % last,
        }


def test_run_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    """After SIGKILL another process acquires the run within a second."""
    with _python(_HOLD, tmp_path) as holder:
        try:
            assert holder.stdout is not None
            owner = holder.stdout.readline().strip()
            with pytest.raises(BusyError) as caught:
                anyio.run(_in(tmp_path, lambda store: store.acquire("run", seconds=30)))
            assert caught.value.owner == owner
        finally:
            holder.kill()
            killed = time.monotonic()
            holder.communicate()

    async def take_over(store: FileStore) -> str:
        taken = await store.acquire("run", seconds=30)
        run = await store.load("run")
        assert run is not None
        await _save(store, {}, run.revision, "taken", owner=taken)
        return taken

    assert anyio.run(_in(tmp_path, take_over)) != owner
    assert time.monotonic() - killed < 1


# --- what the system refuses ----------------------------------------------------------------------


def test_full_disk_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    """A save for which there is no room is refused; what was there stays, and goes on with room."""

    async def fill(store: FileStore) -> None:
        revision = await _save(store, {"k": b"1" * 10_000}, None)
        old, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, most))
        try:
            with pytest.raises(StoreRefusedError, match="EFBIG"):
                await _save(store, {"k": b"2" * 10_000}, revision, "large")
            with pytest.raises(StoreRefusedError, match="EFBIG"):
                await _save(store, {"k": b"2" * 20_000}, None, id="another")
            assert await store.load("run") == StoredRun({"k": b"1" * 10_000}, revision, SUMMARY)
            assert await store.load("another") is None
            revision = await _save(store, {"k": b"3"}, revision, "small")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (old, most))
        revision = await _save(store, {"k": b"4" * 10_000}, revision, "large again")
        assert await store.load("run") == StoredRun({"k": b"4" * 10_000}, revision, SUMMARY)

    child = os.fork()  # a limit that Python could not take back must not stay with the tests
    if child == 0:
        code = 1
        try:
            anyio.run(_in(tmp_path, fill))
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            raise
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, StoreRefusedError),
        (errno.EDQUOT, StoreRefusedError),
        (errno.EFBIG, StoreRefusedError),
        (errno.EROFS, StoreRefusedError),
        (errno.EACCES, StoreRefusedError),
        (errno.EIO, StoreUnavailableError),
        (errno.EMFILE, StoreUnavailableError),
        (errno.EAGAIN, StoreUnavailableError),
        (errno.ENOLCK, StoreUnavailableError),
    ],
    ids=errno.errorcode.get,
)
async def test_failed_write_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[StoreError]
) -> None:
    """A write that fails, be it in the middle of a save, leaves the run as it was."""
    real = os.pwrite

    def half(fd: int, data: bytes, at: int) -> int:
        if len(data) < 20:
            raise OSError(code, os.strerror(code))
        return real(fd, data[: len(data) // 2], at)

    async with FileStore(tmp_path) as store:
        revision = await _save(store, {"k": b"1"}, None)
        size = (await anyio.Path(tmp_path / "run-run.log").stat()).st_size
        monkeypatch.setattr(os, "pwrite", half)
        with pytest.raises(kind, match=errno.errorcode[code]):
            await _save(store, {"k": b"2"}, revision, "failed")
        with pytest.raises(kind, match=errno.errorcode[code]):
            await _save(store, {"k": b"2"}, None, id="another")
        monkeypatch.undo()
        assert (await anyio.Path(tmp_path / "run-run.log").stat()).st_size == size
        assert await store.load("run") == StoredRun({"k": b"1"}, revision, SUMMARY)
        assert await store.load("another") is None
        revision = await _save(store, {"k": b"2"}, revision, "failed")
        assert await store.load("run") == StoredRun({"k": b"2"}, revision, SUMMARY)


async def test_failed_sync_is_uncertain_and_never_taken_for_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed sync the identical save is written and synced again before it is answered."""
    real, calls, fail = os.fdatasync, [], [True]

    def sync(fd: int) -> None:
        calls.append(fd)
        if fail:
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    async with FileStore(tmp_path) as store, FileStore(tmp_path) as other:
        first = await _save(store, {"k": b"1"}, None)
        monkeypatch.setattr(os, "fdatasync", sync)
        for _ in range(2):
            with pytest.raises(UncertainWriteError, match="EIO"):
                await _save(store, {"k": b"2"}, first, "again")
        assert await other.load("run") == StoredRun({"k": b"1"}, first, SUMMARY)
        fail.clear()
        calls.clear()
        revision = await _save(store, {"k": b"2"}, first, "again")
        assert len(calls) == 1
        assert await other.load("run") == StoredRun({"k": b"2"}, revision, SUMMARY)
        assert await _save(other, {"k": b"2"}, first, "again") == revision
        assert len(calls) == 2, "answered without knowing that the disk has it"


_READ_ONLY = """
import os, sys, anyio
from asteps.errors import StoreRefusedError
from asteps.stores.file import FileStore
from asteps._store import Summary

async def main(path):
    async with FileStore(path) as store:
        run = await store.load("run")
        assert run is not None and run.records == {"k": b"1"}, run
        [(id, summary)] = await store.list_runs()
        for call in (
            store.save("run", {}, expected=run.revision, epoch=1, write_id="x", summary=summary),
            store.save("new", {}, expected=None, epoch=1, write_id="x", summary=summary),
            store.delete("run", expected=run.revision),
            store.acquire("run", seconds=30),
        ):
            try:
                await call
            except StoreRefusedError as error:
                assert "EACCES" in str(error), error
            else:
                raise AssertionError("it was possible")

async def load_what_is_needed(path):
    async with FileStore(path) as store:
        await store.list_runs()

anyio.run(load_what_is_needed, sys.argv[1])
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
anyio.run(main, sys.argv[1])
"""


def test_read_only_directory_can_be_read(tmp_path: Path) -> None:
    """Where it may not write, a process loads and lists; every other call is refused."""
    path = tmp_path / "runs"
    anyio.run(_in(path, lambda store: _save(store, {"k": b"1"}, None)))
    for directory in (path, *path.parents):
        with contextlib.suppress(PermissionError):
            if directory.is_relative_to(tmp_path.parents[1]):
                directory.chmod(0o755)
    for file in path.iterdir():
        file.chmod(0o644)
    path.chmod(0o555)
    with _python(_READ_ONLY, path) as reader:
        _, said = reader.communicate(timeout=60)
        assert reader.returncode == 0, said


# --- locks ----------------------------------------------------------------------------------------


async def test_stopped_holder_of_a_lock_makes_it_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that is not given back is waited for only so long, and then nothing is written."""
    monkeypatch.setattr(_directory, "_PATIENCE", 0.01)
    async with FileStore(tmp_path) as store:
        revision = await _save(store, {"k": b"1"}, None)
        with contextlib.ExitStack() as locked:
            async for path in anyio.Path(tmp_path).glob("lock-?"):
                fd = os.open(path, os.O_RDWR)
                locked.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_EX)
            with pytest.raises(StoreUnavailableError, match="locked"):
                await _save(store, {"k": b"2"}, revision, "waits")
            with pytest.raises(StoreUnavailableError, match="locked"):
                await store.load("run")
            assert [id for id, _ in await store.list_runs()] == ["run"]
        assert await store.load("run") == StoredRun({"k": b"1"}, revision, SUMMARY)


async def test_cancelled_wait_for_a_lock_ends_at_once(tmp_path: Path) -> None:
    """Who is cancelled while another process holds the lock need not wait for it."""
    async with FileStore(tmp_path) as store:
        revision = await _save(store, {"k": b"1"}, None)
        with contextlib.ExitStack() as locked:
            async for path in anyio.Path(tmp_path).glob("lock-?"):
                fd = os.open(path, os.O_RDWR)
                locked.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_EX)
            with anyio.fail_after(2), anyio.move_on_after(0.01) as scope:
                await _save(store, {"k": b"2"}, revision, "waits")
            assert scope.cancelled_caught
        assert await store.load("run") == StoredRun({"k": b"1"}, revision, SUMMARY)


def test_native_cancellation_does_not_leave_a_save_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often asyncio cancels its task, a save that has begun is over when the task is."""
    real, syncing, go_on = os.fdatasync, threading.Event(), threading.Event()

    def sync(fd: int) -> None:
        syncing.set()
        go_on.wait(10)
        real(fd)

    async def main() -> None:
        async with FileStore(tmp_path) as store:
            revision = await _save(store, {"k": b"1"}, None)
            monkeypatch.setattr(os, "fdatasync", sync)
            task = asyncio.create_task(_save(store, {"k": b"2"}, revision, "cancelled"))
            await asyncio.to_thread(syncing.wait)
            for _ in range(3):
                task.cancel()
                for _ in range(5):
                    await asyncio.sleep(0)
                assert not task.done()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            monkeypatch.undo()
            run = await store.load("run")
            assert run is not None
            assert run.records == {"k": b"2"}

    asyncio.run(main())


def test_native_cancellation_ends_a_wait_for_a_lock(tmp_path: Path) -> None:
    """A task that asyncio cancels while it waits for the lock ends at once, and never saves."""

    async def main() -> None:
        async with FileStore(tmp_path) as store:
            revision = await _save(store, {"k": b"1"}, None)
            with contextlib.ExitStack() as locked:
                for path in tmp_path.glob("lock-?"):
                    fd = os.open(path, os.O_RDWR)
                    locked.callback(os.close, fd)
                    fcntl.flock(fd, fcntl.LOCK_EX)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await _save(store, {"k": b"2"}, revision, "waits")
            assert await store.load("run") == StoredRun({"k": b"1"}, revision, SUMMARY)

    begun = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - begun < 5


async def test_lock_files_may_be_tidied_away(tmp_path: Path) -> None:
    """Removing the lock files between two calls does no harm."""
    async with FileStore(tmp_path) as store, FileStore(tmp_path) as other:
        revision = await _save(store, {"k": b"0"}, None)
        for n in range(6):
            async for path in anyio.Path(tmp_path).glob("lock-?"):
                await path.unlink()
            assert await other.load("run") == StoredRun({"k": b"%d" % n}, revision, SUMMARY)
            saver = store if n % 2 else other
            revision = await _save(saver, {"k": b"%d" % (n + 1)}, revision, f"w{n}")


def test_dropped_store_is_dead(tmp_path: Path) -> None:
    """A store that is garbage collected without being closed holds nothing."""

    async def main() -> None:
        store = FileStore(tmp_path)
        owner = await store.acquire("run", seconds=30)
        run = await store.load("run")
        await _save(store, {}, run and run.revision, owner, owner=owner)
        del store
        async with FileStore(tmp_path) as other:
            await other.acquire("run", seconds=30)

    anyio.run(main)
    anyio.run(main, backend="trio")
