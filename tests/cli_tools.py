"""Stores full of runs for the command line, and ways to run it: here, and on a terminal."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

import anyio
import pyte
import pytest
from msgspec.structs import replace

import asteps
from asteps import Retry, Step
from asteps.cli._app import run
from asteps.stores.sqlite import SQLiteStore
from asteps.testing import Crash, FaultyStore, MockClock

BEGAN = datetime(2024, 3, 1, 3, 12, tzinfo=UTC)

# --- runs -----------------------------------------------------------------------------------------


async def move_to_vpc(s: Step, clock: MockClock, *, disk: bool) -> dict[str, int]:
    """Six steps: one is retried, one fails in a group unless there is a disk."""
    tries = 0

    def quota() -> int:
        nonlocal tries
        tries += 1
        clock.advance(0.4)
        if tries == 1:
            raise ConnectionError("rate exceeded")
        return 40

    async def migrate(c: Step) -> None:
        def copy() -> None:
            clock.advance(90)
            if not disk:
                raise OSError(28, "No space left on device")

        await c.save_info({"task": "mig-1"})
        await c.call("copy", copy)

    await s.call("initialize", clock.advance, 2)
    await s.call("quota", quota, retry=Retry(attempts=3, delay=5, jitter=0))
    async with s.group("inFlight") as g:
        g.do("migrate", migrate)
        g.call("notify", clock.advance, 0.3)
    await s.call("attach", clock.advance, 4)
    return {"moved": 40}


async def approve(s: Step, clock: MockClock) -> None:
    """Waits for somebody."""
    await s.call("ask", clock.advance, 1)

    async def answer(c: Step) -> None:
        c.pending(after=3 * 86_400, why="nobody has answered")

    await s.do("answer", answer)


async def backup(s: Step, clock: MockClock) -> None:
    """A map of many items."""
    await s.map("dump", lambda _, item: _advance(clock), range(30), limit=1)


async def _advance(clock: MockClock) -> None:
    clock.advance(1.5)


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[31m\u202eevil\u202c\x9b1m[red]rich[/red]\r\n\u200b\x7f"


async def hostile(s: Step, clock: MockClock) -> str:
    """Everything that a body can put into a tree, as evil as it can be."""
    await s.save_info({HOSTILE: HOSTILE})
    await s.call("[bold]\u202enot a name\u202c", clock.advance, 1)

    async def waits(c: Step) -> None:
        c.pending(after=30_000_000, why=HOSTILE)

    async def fails(c: Step) -> None:
        raise type(HOSTILE, (RuntimeError,), {})(HOSTILE)

    try:
        await s.do("fails", fails)
    except asteps.StepError:
        await s.do("waits", waits)
    return HOSTILE


async def _make(path: Path) -> None:
    clock = MockClock(now=BEGAN.timestamp())
    async with SQLiteStore(path) as store:

        async def reconcile(
            id: str, fn: Callable[..., object], *args: object, **how: object
        ) -> None:
            await asteps.reconcile(
                fn,  # type: ignore[arg-type]
                clock,
                *args,
                store=how.get("store", store),  # type: ignore[arg-type]
                id=id,
                clock=clock,
                max_wait=100,
                name=getattr(fn, "__name__", ""),
            )
            clock.advance(60)

        async def failing(s: Step, clock: MockClock) -> object:
            return await move_to_vpc(s, clock, disk=False)

        async def working(s: Step, clock: MockClock) -> object:
            return await move_to_vpc(s, clock, disk=True)

        failing.__name__ = working.__name__ = "move_to_vpc"
        await reconcile("vm-41", working)
        await reconcile("vm-42", failing)
        await reconcile("approval-7", approve)
        await reconcile("backup-1", backup)
        try:
            dying = FaultyStore(store, {5: "crash after"})
            await reconcile("vm-43", working, store=dying)
        except Crash:
            pass


@cache
def _template() -> Path:
    path = Path(tempfile.mkdtemp(prefix="asteps-cli-")) / "runs.db"
    anyio.run(_make, path)
    return path


def make_runs(directory: Path) -> Path:
    """A store of five runs: done, failed, pending, done with 30 items, and interrupted."""
    return Path(shutil.copy(_template(), directory / "runs.db"))


def make_hostile(directory: Path) -> Path:
    """A store of two runs whose every text would like to control a terminal."""
    path = directory / "evil.db"

    async def make() -> None:
        clock = MockClock(now=BEGAN.timestamp())
        async with SQLiteStore(path) as store:
            await asteps.reconcile(hostile, clock, store=store, id="evil", clock=clock)
            async with asteps.edit_run(store, "evil") as state:
                state.note(HOSTILE, by=HOSTILE)
            stored = await store.load("evil")
            assert stored is not None
            # The engine refuses such an id; other writers of the file may not.
            await store.save(
                f"{HOSTILE}2",
                stored.records,
                expected=None,
                epoch=1,
                write_id="1",
                summary=replace(stored.summary, name=HOSTILE, owner=HOSTILE, epoch=1),
            )

    anyio.run(make)
    return path


def load(path: Path, id: str) -> asteps.State:
    """The tree of a run."""

    async def read() -> asteps.State:
        async with SQLiteStore(path) as store:
            state = await asteps.load_state(store, id)
            assert state is not None
            return state

    return anyio.run(read)


# --- the command line, here -----------------------------------------------------------------------


class Said(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


class CommandLine:
    """Runs commands in this process, on one store."""

    def __init__(self, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.store = store
        self._capsys = capsys

    def __call__(self, *words: str) -> Said:
        self._capsys.readouterr()
        code = run(["--store", str(self.store), *words])
        return Said(code, *self._capsys.readouterr())

    def ok(self, *words: str) -> str:
        """What a command that succeeds writes."""
        said = self(*words)
        assert (said.code, said.err) == (0, "")
        return said.out


@cache
def _bytecode() -> str:
    return tempfile.mkdtemp(prefix="asteps-bytecode-")


def environment(**more: str) -> dict[str, str]:
    """Of a process that is compiled once for all tests, and is written to as it is by default."""
    left = {
        name: value
        for name, value in os.environ.items()
        if name not in ("NO_COLOR", "FORCE_COLOR", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    }
    return {**left, "PYTHONPYCACHEPREFIX": _bytecode(), **more}


def asteps_command(*words: str) -> list[str]:
    """What runs the command line in a process of its own."""
    return [sys.executable, "-m", "asteps", *words]


# --- the command line, on a terminal --------------------------------------------------------------


class OnTerminal:
    """A process on a terminal of its own.

    Attributes:
        written: All bytes that it has written.
    """

    def __init__(self, command: list[str], columns: int, rows: int, env: dict[str, str]) -> None:
        self._size = columns, rows
        self.written = b""
        self._pid, self._fd = pty.fork()
        if not self._pid:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            size = {"COLUMNS": str(columns), "LINES": str(rows), "TERM": "xterm-256color"}
            os.execvpe(command[0], command, environment(**{**size, **env}))

    def wait_for(self, text: str, seconds: float = 20) -> None:
        """Read until this has been written."""
        deadline = time.monotonic() + seconds
        while text.encode() not in self.written:
            assert time.monotonic() < deadline, self.written
            assert self._read(deadline), self.written

    def type(self, text: str) -> None:
        """Type it."""
        os.write(self._fd, text.encode())

    def kill(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self._pid, number)

    def end(self) -> int:
        """Read all that is written until it ends, and how it ended."""
        while self._read(time.monotonic() + 20):
            pass
        os.close(self._fd)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def screen(self) -> list[str]:
        """What can be seen."""
        screen = pyte.Screen(*self._size)
        pyte.ByteStream(screen).feed(self.written)
        return [line.rstrip() for line in screen.display]

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._fd], [], [], max(deadline - time.monotonic(), 0))
        assert ready, self.written
        try:
            data = os.read(self._fd, 65_536)
        except OSError:  # Linux says so when the other end is closed
            return False
        self.written += data
        return bool(data)


@contextmanager
def on_terminal(
    command: list[str], *, columns: int = 100, rows: int = 40, **env: str
) -> Iterator[OnTerminal]:
    """Start a process on a terminal; it is killed in the end, if it has not ended."""
    process = OnTerminal(command, columns, rows, env)
    try:
        yield process
    finally:
        try:
            os.kill(process._pid, signal.SIGKILL)
            os.waitpid(process._pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def shown(command: list[str], *, columns: int = 100, rows: int = 40, **env: str) -> OnTerminal:
    """A command that has ended on a terminal."""
    with on_terminal(command, columns=columns, rows=rows, **env) as process:
        process.end()
        return process
