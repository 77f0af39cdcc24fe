"""Real processes, really killed: what was reported is never lost and never run again."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from kill_target import (
    DONE,
    FAILED,
    HANDLED,
    ONCE,
    RUN_ID,
    Trace,
    guarded,
    open_store,
    read_trace,
)

import asteps

TARGET = Path(__file__).with_name("kill_target.py")
KILLS = {"sqlite": 110, "file": 50}
TAKE_OVER = 1.0  # seconds after the death of the holder


# --- kill at random moments -----------------------------------------------------------------------


class Lives:
    """Lives of runs, in processes that a warm interpreter forks."""

    def __init__(self, server: subprocess.Popen[bytes]) -> None:
        self._server = server
        self.kills = 0

    def _ask(self, line: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(line).encode() + b"\n")

    def _answer(self) -> str:
        assert self._server.stdout is not None
        answer: str = self._server.stdout.readline().decode()
        assert answer, "the server is gone"
        return answer.strip()

    def live(
        self, kind: str, directory: Path, number: int, end: float | Callable[[], bool] | None
    ) -> int:
        """One life, ended by SIGKILL unless it ends by itself.

        Args:
            kind: The store.
            directory: Of the run.
            number: Of the life.
            end: Seconds after which it is killed, or what tells when.

        Returns:
            Its return code, ``-SIGKILL`` if it was killed.
        """
        self._ask([kind, str(directory), number])
        pid = int(self._answer())
        assert self._server.stdout is not None
        if callable(end):
            while not end():
                time.sleep(0.002)
        if callable(end) or not select.select([self._server.stdout], [], [], end)[0]:
            os.kill(pid, signal.SIGKILL)
        assert self._answer() == ""
        self._ask("what became of it?")
        code = int(self._answer())
        self.kills += code == -signal.SIGKILL
        return code


@pytest.fixture
def lives() -> Iterator[Lives]:
    """A server of lives, told to end."""
    with subprocess.Popen(
        [sys.executable, TARGET], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as server:
        try:
            yield Lives(server)
        finally:
            assert server.stdin is not None
            server.stdin.close()
            server.wait(10)


def killed_until_done(
    lives: Lives, kind: str, directory: Path, rng: random.Random, usual: float
) -> Counter[str]:
    """Run the flow to its end, however often it is killed; check the trace that it left."""
    for number in range(1, 1_000):
        patience = usual * rng.uniform(0, 0.4) * (1 + number / 10)
        code = lives.live(kind, directory, number, patience)
        if code == DONE:
            break
        if code not in {FAILED, -signal.SIGKILL}:
            pytest.fail(f"life {number}: {(directory / 'error').read_text()}")
    else:
        pytest.fail("the run never came to its end")
    return check_trace(directory / "trace")


def check_trace(file: Path) -> Counter[str]:
    """No step that was reported was run again; tokens are the same in every life.

    Returns:
        How often each step was begun.
    """
    reported: dict[str, int] = {}
    begun: Counter[str] = Counter()
    tokens: dict[str, str] = {}
    for life, what, path, more in read_trace(file):
        if what == "reported":
            reported.setdefault(path, life)
        elif what == "start":
            assert path not in reported, f"{path}: reported in life {reported[path]}, run in {life}"
            assert tokens.setdefault(path, more) == more, f"{path} has two tokens"
            begun[path] += 1
    assert begun[ONCE] <= 1, f"{ONCE} ran {begun[ONCE]} times"
    assert begun[HANDLED] <= 1, f"{HANDLED} ran {begun[HANDLED]} times"
    return begun


def test_a_line_cut_by_a_kill_is_no_effect(tmp_path: Path) -> None:
    """The next life goes on after the last whole line, as what is torn was not on the disk."""
    file = tmp_path / "trace"
    Trace(file, 1).note("start", "first")
    with file.open("a") as torn:
        torn.write('[1, "reported", ')
    assert [what for _, what, _, _ in read_trace(file)] == ["start"]
    Trace(file, 2).note("start", "second")
    assert [(life, path) for life, _, path, _ in read_trace(file)] == [(1, "first"), (2, "second")]


@pytest.mark.parametrize("kind", ["sqlite", "file"])
def test_killed_at_random_moments(kind: str, tmp_path: Path, lives: Lives) -> None:
    """Killed again and again, each run ends with the result of an undisturbed one."""
    seed = int(os.environ.get("KILL_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"again with KILL_SEED={seed}")  # shown when the test fails
    rng = random.Random(seed)

    usual = 10.0  # seconds; the first life of a machine that was idle takes longer
    once: Counter[str] = Counter()
    for undisturbed in (tmp_path / "first", tmp_path / "second"):
        undisturbed.mkdir()
        began = time.monotonic()
        assert lives.live(kind, undisturbed, 1, None) == DONE
        usual = min(usual, time.monotonic() - began)
        once = check_trace(undisturbed / "trace")
    again, interrupted, runs = 0, 0, 0
    wanted = KILLS[kind] * int(os.environ.get("KILL_FACTOR", "1"))
    while lives.kills < wanted:
        runs += 1
        directory = tmp_path / f"run {runs}"
        directory.mkdir()
        begun = killed_until_done(lives, kind, directory, rng, usual)
        again += sum((begun - once).values())
        interrupted += any(w == "interrupted" for _, w, _, _ in read_trace(directory / "trace"))
    print(
        f"{kind}: {lives.kills} kills in {runs} runs of {sum(once.values())} bodies, each "
        f"{usual:.3f} s long; {again} bodies ran again; {interrupted} times once was interrupted"
    )
    assert lives.kills >= wanted
    assert again > 0, "no kill has ever hit a body"


@pytest.mark.parametrize("kind", ["sqlite", "file"])
@pytest.mark.parametrize("path", [ONCE, HANDLED])
def test_at_most_once(kind: str, path: str, tmp_path: Path, lives: Lives) -> None:
    """Killed in its body an at_most_once step never runs again: it fails as interrupted."""
    hold = tmp_path / f"hold {path.rpartition('/')[2]}"
    hold.touch()

    def has_begun() -> bool:
        return any((w, p) == ("start", path) for _, w, p, _ in read_trace(tmp_path / "trace"))

    assert lives.live(kind, tmp_path, 1, has_begun) == -signal.SIGKILL
    hold.unlink()
    if path == ONCE:  # the run fails, and the result is set from outside
        assert lives.live(kind, tmp_path, 2, None) == FAILED
    assert lives.live(kind, tmp_path, 3, None) == DONE
    begun = check_trace(tmp_path / "trace")
    assert begun[path] == 1
    assert begun["careful/look up"] == (1 if path == HANDLED else 0)


# --- two processes --------------------------------------------------------------------------------


@contextmanager
def holder(kind: str, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, in the middle of a body."""
    with subprocess.Popen(
        [sys.executable, TARGET, kind, directory], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "first\n"
            yield process
        finally:
            process.kill()


def take_over(kind: str, directory: Path, backend: str) -> str:
    """Go on with the run in this process."""

    async def main() -> str:
        async with open_store(kind, directory) as store:
            outcome = await asteps.reconcile(
                guarded, str(directory), "second", store=store, id=RUN_ID
            )
        assert isinstance(outcome, asteps.Done)
        return outcome.value

    return anyio.run(main, backend=backend)


both_stores = pytest.mark.parametrize("kind", ["sqlite", "file"])
both_loops = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@both_stores
@both_loops
def test_of_two_processes_one_advances(kind: str, backend: str, tmp_path: Path) -> None:
    """While one process holds the run the other gets BusyError; afterwards it gets the result."""
    with holder(kind, tmp_path) as process:
        with pytest.raises(asteps.BusyError, match=str(process.pid)):
            take_over(kind, tmp_path, backend)
        (tmp_path / "go").touch()
        assert process.stdout is not None
        assert process.stdout.readline() == "done by first\n"
        assert process.wait(10) == 0
    assert take_over(kind, tmp_path, backend) == "done by first"


@both_stores
@both_loops
def test_the_dead_are_followed_at_once(kind: str, backend: str, tmp_path: Path) -> None:
    """After kill -9 of the holder the run is taken over in less than a second."""
    with holder(kind, tmp_path) as process:
        (tmp_path / "go").touch()
        process.send_signal(signal.SIGSTOP)  # it shall not see the word
        with pytest.raises(asteps.BusyError):
            take_over(kind, tmp_path, backend)
        process.kill()
        began = time.monotonic()
        while True:
            try:
                assert take_over(kind, tmp_path, backend) == "done by second"
                break
            except asteps.BusyError:  # the kill takes effect a moment later
                assert time.monotonic() - began < TAKE_OVER
        took = time.monotonic() - began
    print(f"{kind} on {backend}: taken over {took:.3f} s after the kill")
    assert took < TAKE_OVER


@both_stores
def test_the_stopped_still_hold(kind: str, tmp_path: Path) -> None:
    """A holder that was stopped holds on: the other gets BusyError, however often it asks."""
    with holder(kind, tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        for _ in range(5):
            with pytest.raises(asteps.BusyError):
                take_over(kind, tmp_path, "asyncio")
        process.send_signal(signal.SIGCONT)
        (tmp_path / "go").touch()
        assert process.stdout is not None
        assert process.stdout.readline() == "done by first\n"
