"""The live view draws what goes on, stays out of the way, and leaves the last drawing behind."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import anyio
import pyte
import pytest
from cli_tools import HOSTILE, environment, on_terminal

import asteps
from asteps import BodyCall, Retry, Step, StepDone, StepFailed, StepRetrying
from asteps.cli._model import Model
from asteps.cli.live import LiveView, live
from asteps.stores.memory import MemoryStore


class Terminal(io.StringIO):
    """What says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def screen(self, columns: int = 250, rows: int = 60) -> list[str]:
        """What can be seen on it."""
        screen = pyte.Screen(columns, rows)
        pyte.Stream(screen).feed(self.getvalue().replace("\n", "\r\n"))
        return [line.rstrip() for line in screen.display if line.strip()]


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 250 columns."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("LINES", "40")
    return Terminal()


async def flow(s: Step, *, bad: int | None = None) -> str:
    """A step, a group with a map in it, and a wait."""
    await s.call("initialize", anyio.sleep, 0)

    async def one(c: Step, item: int) -> None:
        if item == bad:
            raise OSError("no space left")

    async with s.group("inFlight") as g:
        g.map("items", one, range(40), limit=4, tolerate=1)
        g.call("notify", anyio.sleep, 0)
    await s.sleep("settle", 0.001)
    return "moved"


def without_times(lines: list[str]) -> list[str]:
    """Lines whose durations are gone."""
    return [
        " ".join(re.sub(r"  +[\d.]+ (ms|s|min \d\d s)(?=  |$)", "", line).split()) for line in lines
    ]


# --- what is drawn --------------------------------------------------------------------------------


async def test_the_last_drawing_stays(terminal: Terminal) -> None:
    """When the run has ended the whole tree can be read, long lists folded, failures named."""
    async with live(file=terminal) as observer:
        await asteps.run(flow, store=MemoryStore(), id="x", observers=[observer], name="move")
    assert without_times(terminal.screen()) == [
        "✓ move 3 of 3 done",
        "✓ initialize",
        "✓ inFlight",
        "✓ items 40 of 40 done",
        "40 more done",
        "✓ notify",
        "✓ settle",
    ]


async def test_failures_stand_out(terminal: Terminal) -> None:
    """Of many siblings those that failed are drawn, with what they raised."""

    async def failing(s: Step) -> str:
        return await flow(s, bad=17)

    async with live(file=terminal) as observer:
        await asteps.run(failing, store=MemoryStore(), id="x", observers=[observer], name="move")
    seen = without_times(terminal.screen())
    assert "✗ 17 failed, OSError: no space left" in seen
    assert "39 more done" in seen


async def test_what_works_is_seen_at_work(terminal: Terminal) -> None:
    """A body that has not ended is drawn with a spinner, although no event has told of it yet."""
    drawn: list[str] = []

    async with live(file=terminal) as observer:

        async def look(s: Step) -> None:
            drawn.extend(observer._draw().plain.splitlines())

        await asteps.run(look, observers=[observer], name="move")
    assert len(drawn) == 1
    assert drawn[0][0] in "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
    assert drawn[0].split()[1] == "move"


async def test_waits_and_attempts_are_told(terminal: Terminal) -> None:
    """What is pending says until when and why, and what is retried what it failed with."""

    async def waiting(s: Step) -> None:
        async def approval(c: Step) -> None:
            c.pending(after=3600, why="nobody has answered")

        def quota() -> None:
            raise ConnectionError("rate exceeded")

        async with s.group("g") as g:
            g.do("approval", approval)
            g.call("quota", quota, retry=Retry(attempts=2, delay=3600, max_delay=3600, jitter=0))

    async with live(file=terminal) as observer:
        await asteps.reconcile(waiting, store=MemoryStore(), id="x", observers=[observer])
    seen = "\n".join(terminal.screen())
    assert "pending, due in 1 h 00 min, nobody has answered" in seen
    assert "retrying, due in 1 h 00 min, ConnectionError: rate exceeded" in seen


async def test_a_cancelled_run_is_interrupted(terminal: Terminal) -> None:
    """What was cut off does not go on spinning."""
    async with live(file=terminal) as observer:
        with anyio.move_on_after(0.005):
            await asteps.run(
                lambda s: s.call("wait", anyio.sleep, 5), observers=[observer], name="move"
            )
    assert any(line.strip().startswith("! wait") for line in terminal.screen())


def test_it_may_stand_around_the_event_loop(terminal: Terminal) -> None:
    """``with`` does for a script what ``async with`` does in the midst of a loop."""
    with live(file=terminal) as observer:
        anyio.run(lambda: asteps.run(flow, observers=[observer], name="move"))
    assert without_times(terminal.screen())[0] == "✓ move 3 of 3 done"


async def test_several_runs_are_drawn_together(terminal: Terminal) -> None:
    """One view may observe runs that go on at once; of very many those at rest make room."""
    store = MemoryStore()
    async with live(file=terminal) as observer:
        async with anyio.create_task_group() as tasks:
            for n in range(30):

                async def one(n: int = n) -> None:
                    await asteps.run(
                        flow, store=store, id=f"{n}", observers=[observer], name=f"run-{n}"
                    )

                tasks.start_soon(one)
        drawn = observer._draw().plain
    assert drawn.count("run-") == 30  # all of them were at work at once


# --- it harms nobody ------------------------------------------------------------------------------


async def test_without_a_terminal_nothing_is_written() -> None:
    """In a pipe or a log file the view is silent."""
    file = io.StringIO()
    async with live(file=file) as observer:
        await asteps.run(flow, store=MemoryStore(), id="x", observers=[observer])
    assert file.getvalue() == ""


async def test_lines_without_a_terminal() -> None:
    """``lines=True`` writes a line for each step that comes to something, in order."""
    file = io.StringIO()
    async with live(file=file, lines=True) as observer:
        await asteps.run(flow, store=MemoryStore(), id="x", observers=[observer])
    lines = [line.split(None, 2)[1:] for line in file.getvalue().splitlines()]
    assert lines[0] == ["done", "x: initialize"]
    assert ["done", "x: inFlight/items/39"] in lines
    assert lines[-2:] == [["done", "x: the run"], ["done", "x: the run, the pass is over"]]


async def test_hostile_text_is_drawn_escaped(terminal: Terminal) -> None:
    """Nothing that a body says can control the terminal."""

    async def evil(s: Step) -> None:
        async def fails(c: Step) -> None:
            raise RuntimeError(HOSTILE)

        await s.do("fails", fails)

    async with live(file=terminal) as observer:
        with pytest.raises(asteps.StepError):
            await asteps.run(evil, observers=[observer], name="evil")
    assert "\x1b]" not in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()
    assert "\u202e" not in terminal.getvalue()
    assert any("[red]rich[/red]" in line for line in terminal.screen())


async def test_a_broken_terminal_harms_no_run(terminal: Terminal) -> None:
    """Where nothing can be written the run comes to what it comes to."""

    def broken(_: str) -> int:
        raise OSError("gone")

    async with live(file=terminal) as observer:
        terminal.write = broken  # type: ignore[method-assign]
        done = await asteps.run(flow, store=MemoryStore(), id="x", observers=[observer])
    assert done == "moved"


def test_it_is_told_from_many_threads_and_drawn_meanwhile() -> None:
    """Drawing while others tell of events neither fails nor waits long."""
    model = Model()
    at = datetime(2026, 3, 1, tzinfo=UTC)

    def tell(n: int) -> None:
        for i in range(300):
            model.tell(StepDone(run_id="x", path=f"map/{n}-{i}", at=at))

    threads = [threading.Thread(target=tell, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        model.branches()
    (run,) = model.branches()
    assert run.children[0].hidden == "1,200 more done"


def test_a_drawing_of_many_steps_is_quick() -> None:
    """What is drawn of 20,000 steps takes no longer than of fifty: the lock is held but briefly."""
    model = Model()
    at = datetime(2026, 3, 1, tzinfo=UTC)
    for n in range(20_000):
        model.tell(StepDone(run_id="x", path=f"map/{n}", at=at))
    began = time.perf_counter()
    model.branches()
    assert time.perf_counter() - began < 0.05


def test_what_a_model_knows_of_a_step() -> None:
    """A step goes from retrying to done, and is counted once."""
    model = Model(ascii_only=True)
    at = datetime(2026, 3, 1, tzinfo=UTC)
    failure = asteps.Failure("oh", ("builtins.OSError",))
    call = BodyCall(
        run_id="x",
        run_name="move",
        epoch=1,
        kind="call",
        path="a",
        pattern="a",
        attempt=1,
        interruptions=0,
        carried={},
    )
    model.called(call)
    assert model.branches()[0].children[0].mark in "|/-\\"
    model.tell(StepRetrying(run_id="x", path="a", at=at, attempt=1, failure=failure, wake_at=at))
    assert model.branches()[0].children[0].status == "retrying"
    model.called(call)
    model.tell(StepFailed(run_id="x", path="a", at=at, attempt=2, failure=failure))
    (step,) = model.branches()[0].children
    assert (step.status, step.remark) == ("failed", "failed, OSError: oh")
    model.tell(StepDone(run_id="x", path="a", at=at))
    (step,) = model.branches()[0].children
    assert (step.status, step.remark) == ("done", "")
    assert model.branches()[0].remark.endswith("1 of 1 done")


# --- in a script ----------------------------------------------------------------------------------

SCRIPT = """
import anyio, asteps
from asteps.cli.live import live

async def main():
    async with live() as observer:
        print("printed meanwhile")
        await asteps.run(lambda s: s.call("first", anyio.sleep, 0), observers=[observer], name="x")

anyio.run(main)
"""


def test_what_a_script_prints_stays() -> None:
    """On a terminal what is printed stands above the drawing, and the cursor comes back."""
    with on_terminal([sys.executable, "-c", SCRIPT]) as process:
        assert process.end() == 0
        seen = without_times([line for line in process.screen() if line])
    assert seen == ["printed meanwhile", "✓ x 1 of 1 done", "✓ first"]
    assert process.written.rstrip().endswith(b"\x1b[?25h")


def test_the_output_of_a_script_is_its_own() -> None:
    """What a script prints goes where it went without the view."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env=environment(),
    )
    assert (done.stdout, done.stderr) == ("printed meanwhile\n", "")


def test_without_rich_an_error_says_what_to_install() -> None:
    """The module cannot be imported without the extra, and says how to get it."""
    script = """
import sys
sys.modules["rich"] = sys.modules["rich.live"] = None
try:
    import asteps.cli.live
except ImportError as exc:
    print(type(exc).__name__, exc)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env=environment(),
    )
    assert done.stdout == (
        "MissingDependencyError 'rich' is not installed: pip install 'asteps[cli]'\n"
    )


def test_a_view_is_an_observer() -> None:
    """The type of what goes into ``observers=`` is public."""
    assert isinstance(live(), LiveView)
