"""What `test_kill.py` kills: a flow that leaves a trace of everything it does.

Run as a script this is a server: an interpreter that has everything imported and forks for each
life, so that a life costs milliseconds. A line of JSON on stdin asks for a life; see `serve`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio._backends._asyncio  # before the fork
import anyio.lowlevel
import msgspec

import asteps
from asteps import Retry, Step, StepError
from asteps.stores.file import FileStore
from asteps.stores.sqlite import SQLiteStore

RUN_ID = "killed"
ONCE = "careful/once"  # fails as interrupted; the life that finds it so sets its result
HANDLED = "careful/handled"  # fails as interrupted; its parent has another way

DONE, FAILED, WRONG = 0, 1, 3  # exit codes of a life


class Trace:
    """The file that outlives every process: one line per effect, on the disk before it returns."""

    def __init__(self, file: Path, life: int) -> None:
        self._fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._life = life
        os.ftruncate(self._fd, len(whole_lines(file)))

    def note(self, what: str, path: str, more: object = "") -> None:
        line = json.dumps([self._life, what, path, more]) + "\n"
        os.write(self._fd, line.encode())
        os.fsync(self._fd)


def whole_lines(file: Path) -> bytes:
    """What is in the trace, without what a kill in the middle of a write left at its end.

    A write that spans two pages may be cut between them; what it was about has not happened then.
    """
    text = file.read_bytes() if file.exists() else b""
    return text[: text.rfind(b"\n") + 1]


def read_trace(file: Path) -> list[tuple[int, str, str, Any]]:
    """All effects so far: life, what, path, and more."""
    return [tuple(json.loads(line)) for line in whole_lines(file).splitlines()]


class Result(msgspec.Struct):
    """What the flow returns."""

    values: dict[str, int]


# --- the flow: 28 steps ---------------------------------------------------------------------------


@dataclass
class Flow:
    """Bodies that note their start and end; `do` notes that a step was reported."""

    trace: Trace
    directory: Path

    async def do(self, s: Step, name: str, fn: Any, *args: Any, **options: Any) -> Any:
        value = await s.do(name, fn, *args, **options)
        self.trace.note("reported", asteps_path(s, name), value)
        return value

    async def work(self, s: Step, value: int) -> int:
        self.trace.note("start", s.path, s.token)
        await anyio.lowlevel.checkpoint()
        self.trace.note("end", s.path)
        return value

    async def long_work(self, s: Step, value: int) -> int:
        self.trace.note("start", s.path, s.token)
        await anyio.sleep(0.005)
        while (self.directory / f"hold {s.name}").exists():
            await anyio.sleep(0.005)
        self.trace.note("end", s.path)
        return value

    async def root(self, s: Step) -> Result:
        values = {
            "prepare": await self.do(s, "prepare", self.prepare),
            "fan": await self.do(s, "fan", self.fan),
            "flaky": await self.do(
                s, "flaky", self.flaky, retry=Retry(attempts=3, delay=0.004, jitter=0)
            ),
            "waits": await self.do(s, "waits", self.waits),
            "careful": await self.do(s, "careful", self.careful),
            "sync": await s.call("sync", self.sync, 4),
        }
        self.trace.note("reported", "sync", 4)
        values["odd"] = await self.do(s, "an/odd~name", self.work, 5)
        return Result(values)

    async def prepare(self, s: Step) -> int:
        self.trace.note("start", s.path, s.token)
        first = await self.do(s, "first", self.work, 1)
        second = await self.do(s, "second", self.deeper)
        self.trace.note("end", s.path)
        return int(first + second)

    async def deeper(self, s: Step) -> int:
        self.trace.note("start", s.path, s.token)
        values = [await self.do(s, f"x{n}", self.work, n) for n in range(3)]
        self.trace.note("end", s.path)
        return sum(values)

    async def fan(self, s: Step) -> int:
        self.trace.note("start", s.path, s.token)
        values = await asyncio.gather(
            *(self.do(s, f"w{n}", self.work, n) for n in range(6)),
            self.do(s, "inner", self.deeper),
        )
        self.trace.note("end", s.path)
        return int(sum(values))

    async def flaky(self, s: Step) -> int:
        self.trace.note("start", s.path, s.token)
        await self.do(s, f"part {s.attempt}", self.work, 1)
        if s.attempt < 3:
            raise ConnectionError(f"attempt {s.attempt}")
        self.trace.note("end", s.path)
        return s.attempt

    async def waits(self, s: Step) -> int:
        self.trace.note("start", s.path, s.token)
        count = (s.info_as(int) or 0) + 1
        await s.save_info(count)
        self.trace.note("saved", s.path, count)
        if count < 3:
            s.pending(after=0.004, why="counting")
        self.trace.note("end", s.path)
        return 3

    async def careful(self, s: Step) -> int:
        self.trace.note("start", s.path, s.token)
        once = await self.do(s, "once", self.long_work, 6, at_most_once=True)
        try:
            handled = await self.do(s, "handled", self.long_work, 7, at_most_once=True)
        except StepError as error:
            if error.failure.kind != "interrupted":
                raise
            handled = await self.do(s, "look up", self.work, 7)
        self.trace.note("end", s.path)
        return int(once + handled)

    def sync(self, value: int) -> int:
        self.trace.note("start", "sync")
        self.trace.note("end", "sync")
        return value


RESULT = Result(
    {"prepare": 4, "fan": 18, "flaky": 3, "waits": 3, "careful": 13, "sync": 4, "odd": 5}
)


def asteps_path(s: Step, name: str) -> str:
    """The path of a child."""
    escaped = name.replace("~", "~0").replace("/", "~1")
    return f"{s.path}/{escaped}" if s.path else escaped


# --- a life ---------------------------------------------------------------------------------------


def open_store(kind: str, directory: Path) -> SQLiteStore | FileStore:
    """The store that all lives of a run share."""
    if kind == "sqlite":
        return SQLiteStore(directory / "runs.db", synchronous="FULL")
    return FileStore(directory / "runs")


async def live(kind: str, directory: Path, life: int) -> int:
    """Go on with the run, after a look at what the lives before have left."""
    file = directory / "trace"
    trace = Trace(file, life)
    async with open_store(kind, directory) as store:
        state = await asteps.load_state(store, RUN_ID)
        for _, what, path, more in read_trace(file):
            if what == "reported":
                assert state is not None, "the run was lost"
                assert state.has(path), f"{path} was reported, and is not in the tree"
                node = state.get(path)
                assert node.done, f"{path} was reported, and is {node}"
                assert node.result_as(object) == more, f"{path} was {more}, and is {node}"
            elif what == "saved":
                assert state is not None, "the run was lost"
                assert state.get(path).info_as(int) >= more, "a saved info was lost"
        try:
            result = await asteps.run(
                Flow(trace, directory).root, store=store, id=RUN_ID, name="flow"
            )
        except StepError as error:
            if error.origin != ONCE or error.errors[0].errors[0].failure.kind != "interrupted":
                raise
            trace.note("interrupted", ONCE)
            async with asteps.edit_run(store, RUN_ID) as state:
                state.set_result(ONCE, 6)
            return FAILED
    assert result == RESULT, result
    return DONE


def serve() -> None:
    """Fork for each line ``[kind, directory, life]``.

    Answers with the child's process id; with an empty line when it has ended, in whatever way;
    and, asked by another line, with its return code. Up to then its id is not given away again.
    """
    for line in sys.stdin:
        kind, directory, life = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = WRONG
            try:
                code = asyncio.run(live(kind, Path(directory), life))
            except BaseException:  # noqa: BLE001 - the parent reads it
                Path(directory, "error").write_text(traceback.format_exc())
            finally:
                os._exit(code)
        print(pid, flush=True)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        print(flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


# --- two processes --------------------------------------------------------------------------------


async def guarded(s: Step, directory: str, name: str) -> str:
    """A run that two processes want."""
    return await s.do("guarded", wait_for_word, directory, name)


async def wait_for_word(s: Step, directory: str, name: str) -> str:
    """Say who has begun; end when told."""
    print(name, flush=True)
    while not await anyio.Path(directory, "go").exists():
        await anyio.sleep(0.005)
    return f"done by {name}"


async def hold(kind: str, directory: str) -> None:
    """Be the holder of a run."""
    async with open_store(kind, Path(directory)) as store:
        outcome = await asteps.reconcile(guarded, directory, "first", store=store, id=RUN_ID)
    assert isinstance(outcome, asteps.Done), outcome
    print(outcome.value, flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(hold(*sys.argv[1:]))
    else:
        serve()
