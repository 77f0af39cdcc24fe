"""The command line and what it is written to: a terminal, a pipe, nobody."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from cli_tools import (
    CommandLine,
    asteps_command,
    environment,
    make_hostile,
    make_runs,
    on_terminal,
    shown,
)
from processes import started

from asteps.cli._output import as_json, safe_json
from asteps.reports._words import plain

# What a terminal may be sent: colours, and where Rich's live display puts its cursor.
HARMLESS = ("\x1b[?25l", "\x1b[?25h", "\x1b[2K", "\x1b[1A", "\r", "\n")


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line on a store of five runs."""
    return CommandLine(make_runs(tmp_path), capsys)


@pytest.fixture
def evil(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line on a store whose every text is hostile."""
    return CommandLine(make_hostile(tmp_path), capsys)


# --- hostile text ---------------------------------------------------------------------------------

LOOKS = [
    ["runs"],
    ["runs", "--json"],
    ["show", "evil"],
    ["show", "evil", "--all"],
    ["show", "evil", "--json"],
    ["show", "evil", "fails"],
    ["show", "\x1b"],
    ["report", "evil"],
    ["report", "evil", "--format", "markdown"],
    ["report", "evil", "--format", "json"],
    ["report", "evil", "--format", "mermaid"],
    ["stats"],
    ["stats", "--format", "csv"],
    ["stats", "--format", "json"],
    ["export", "evil"],
    ["doctor"],
    ["doctor", "--json"],
    ["reset", "evil", "fails", "--dry-run"],
    ["rm", "evil", "--dry-run"],
    ["rename", "evil", "fails", "\x1b[31m", "--dry-run"],
    ["show", "\x1b[31m\u202e"],
    ["\x1b[31m\u202e"],
    ["runs", "--\x1b[31m\u202e"],
    ["watch", "evil", "--timeout", "1ms"],
]


@pytest.mark.parametrize("words", LOOKS, ids=lambda words: ascii(" ".join(words)))
def test_hostile_text_cannot_control_what_reads_a_pipe(evil: CommandLine, words: list[str]) -> None:
    """Whatever a store or a command line holds, all that is written can be printed."""
    said = evil(*words)
    if words[0] != "export":  # the document itself, byte by byte; JSON escapes what it has to
        for line in [*said.out.split("\n"), *said.err.split("\n")]:
            assert line.isprintable(), line
    assert "\x1b" not in said.out + said.err


@pytest.mark.parametrize(
    "words",
    [
        ["runs"],
        ["show", "evil"],
        ["show", "evil", "--json"],
        ["report", "evil", "--format", "html"],
        ["export", "evil"],
        ["watch", "evil", "--timeout", "1ms"],
    ],
    ids=" ".join,
)
def test_hostile_text_cannot_control_a_terminal(evil: CommandLine, words: list[str]) -> None:
    """On a terminal nothing arrives but printable text, and the colours that are ours."""
    terminal = shown(asteps_command("-s", str(evil.store), *words), columns=200)
    text = terminal.written.decode()
    for known in HARMLESS:
        text = text.replace(known, "")
    parts = text.split("\x1b[")
    for part in parts[1:]:  # all that is left are colours
        code, m, _ = part.partition("m")
        assert m, part
        assert code.replace(";", "").isdecimal(), part
    plain = "".join([parts[0], *(part.partition("m")[2] for part in parts[1:])])
    assert plain.isprintable()


def test_markup_stays_text(evil: CommandLine) -> None:
    """What looks like Rich's markup is shown as it is written."""
    screen = shown(asteps_command("-s", str(evil.store), "show", "evil"), columns=250).screen()
    assert any("[bold]\\u202enot a name" in line for line in screen)
    assert any("[red]rich[/red]" in line for line in screen)


def test_json_says_the_same_escaped() -> None:
    """What is escaped in a document is the same text to whoever reads it."""
    value = {"\x9b1m\u202e": ["\x7f", "ä", "\U000e0001", "\ud7ff"]}
    text = as_json(value)
    assert json.loads(text) == value
    assert all(line.isprintable() for line in text.split("\n"))
    assert "ä" in text
    assert safe_json('["\x85"]') == '["\\u0085"]'


@pytest.mark.parametrize("mark", ["\u0301", "\u20dd", "\u0488", "\ufe0f", "\u034f"])
def test_marks_do_not_pile_up(mark: str) -> None:
    """No text reaches into the lines around, by whatever kind of combining characters."""
    assert plain(f"a{mark * 3}b") == f"a{mark * 3}b"
    assert plain("a" + mark * 50).count(mark) == 3


# --- colours and widths ---------------------------------------------------------------------------


def test_a_terminal_has_colours_and_no_broken_lines(cli: CommandLine) -> None:
    """On a terminal a status has its colour, and a long line is cut, not wrapped."""
    terminal = shown(asteps_command("-s", str(cli.store), "runs"), columns=40)
    assert b"\x1b[1;31mfailed" in terminal.written
    screen = [line for line in terminal.screen() if line]
    assert len(screen) == 6
    assert all(len(line) <= 40 for line in screen)
    assert screen[1].endswith("…")


def test_no_color(cli: CommandLine) -> None:
    """NO_COLOR takes the colours away, and leaves the rest."""
    terminal = shown(asteps_command("-s", str(cli.store), "show", "vm-42"), NO_COLOR="1")
    assert b"\x1b[3" not in terminal.written
    assert any("✗ copy" in line for line in terminal.screen())


def test_a_dumb_terminal(cli: CommandLine) -> None:
    """A terminal that can do nothing gets plain text."""
    terminal = shown(asteps_command("-s", str(cli.store), "watch", "vm-42"), TERM="dumb")
    assert b"\x1b" not in terminal.written


def test_a_pipe_gets_whole_lines(cli: CommandLine) -> None:
    """To a pipe nothing is cut, whatever COLUMNS says, and nothing is coloured."""
    command = asteps_command("-s", str(cli.store), "show", "vm-42")
    env = environment(COLUMNS="20")
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert "attempt 2, backed off 5.00 s, failed work 0.40 s" in done.stdout
    assert "\x1b" not in done.stdout


def test_force_color(cli: CommandLine) -> None:
    """FORCE_COLOR colours a pipe too, for pagers; nothing is cut there."""
    command = asteps_command("-s", str(cli.store), "show", "vm-42")
    env = environment(COLUMNS="20", FORCE_COLOR="1", TERM="xterm")
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert "\x1b[1;31m" in done.stdout
    assert "attempt 2, backed off 5.00 s, failed work 0.40 s" in done.stdout


def test_force_color_moves_no_cursor(cli: CommandLine) -> None:
    """A watch whose output is kept has its lines coloured, and is no moving picture."""
    command = asteps_command("-s", str(cli.store), "watch", "vm-42")
    env = environment(FORCE_COLOR="1", TERM="xterm")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1
    assert re.findall("\x1b\\[[^m]*[A-Za-z]", done.stdout)
    assert re.sub("\x1b\\[[0-9;]*m", "", done.stdout).replace("\n", "").isprintable()


# --- nobody reads, and Ctrl-C ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["runs"], ["runs", "--json"], ["show", "backup-1", "-a"], ["export", "backup-1"]]
)
def test_a_broken_pipe_is_quiet(cli: CommandLine, words: list[str]) -> None:
    """When nobody reads any more the process ends as others do, and says nothing."""
    read, write = os.pipe()
    os.close(read)
    command = asteps_command("-s", str(cli.store), *words)
    try:
        done = subprocess.run(
            command,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
            env=environment(),
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_while_watching(cli: CommandLine) -> None:
    """Ctrl-C ends a watch with 130, gives the cursor back, and the last picture stays."""
    with on_terminal(asteps_command("-s", str(cli.store), "watch", "approval-7")) as terminal:
        terminal.wait_for("nobody has answered")
        terminal.type("\x03")
        assert terminal.end() == 130
        assert "Traceback" not in terminal.written.decode()
        assert terminal.written.rindex(b"\x1b[?25h") > terminal.written.rindex(b"\x1b[?25l")
        assert any("answer" in line for line in terminal.screen())


def test_a_signal_ends_a_watch_in_order(cli: CommandLine) -> None:
    """SIGTERM ends a watch as it ends other programs, and the cursor is there again."""
    with on_terminal(asteps_command("-s", str(cli.store), "watch", "approval-7")) as terminal:
        terminal.wait_for("nobody has answered")
        terminal.kill(signal.SIGTERM)
        assert terminal.end() == 128 + signal.SIGTERM
        assert "Traceback" not in terminal.written.decode()
        assert terminal.written.rindex(b"\x1b[?25h") > terminal.written.rindex(b"\x1b[?25l")


@pytest.mark.parametrize(
    ("words", "closed", "code"),
    [
        (["rm", "vm-42"], "<&-", 6),
        (["import", "x", "-"], "<&-", 2),
        (["runs"], ">&-", 0),
        (["show", "gone"], "2>&-", 3),
        (["show", "gone"], "2>/dev/full", 3),
    ],
)
def test_closed_streams(cli: CommandLine, words: list[str], closed: str, code: int) -> None:
    """Whatever is closed, the exit code says what became of it, and nothing says more."""
    command = shlex.join(asteps_command("-s", str(cli.store), *words))
    done = subprocess.run(
        ["sh", "-c", f"exec {command} {closed}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=environment(),
    )
    assert done.returncode == code
    assert len(done.stderr.splitlines()) <= 1
    assert "bug" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("words", [["runs"], ["runs", "--json"], ["export", "vm-41"]], ids=str)
def test_a_full_disk_is_said(cli: CommandLine, words: list[str]) -> None:
    """Where the output cannot be written one line says so, and why."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            asteps_command("-s", str(cli.store), *words),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
            env=environment(),
        )
    said = "asteps: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (5, said)


# --- watch ----------------------------------------------------------------------------------------

WORK = """
    async def main():
        import asteps
        async with SQLiteStore(sys.argv[1]) as store:
            async def work(s):
                await s.call("first", anyio.sleep, 0)
                print("first", flush=True)
                await anyio.to_thread.run_sync(sys.stdin.readline)
                await s.call("second", fail if sys.argv[2] == "fail" else anyio.sleep, 0)
            def fail(_):
                raise OSError("no second")
            try:
                await asteps.run(work, store=store, id="job-1")
            except StepError:
                pass
    anyio.run(main)
"""


@pytest.mark.parametrize(("how", "code"), [("done", 0), ("fail", 1)])
def test_watch_ends_with_the_run(cli: CommandLine, how: str, code: int) -> None:
    """A watch draws the tree of a run in another process until that ends, and says how it did."""
    with started(WORK, cli.store, how) as (process, _):
        command = asteps_command("-s", str(cli.store), "watch", "job-1", "-e", "100ms")
        with on_terminal(command) as terminal:
            terminal.wait_for("first")
            terminal.wait_for("held by")
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert terminal.end() == code
            seen = "\n".join(terminal.screen())
            assert ("✓ second" if how == "done" else "✗ second") in seen
        process.wait(10)


def test_a_watch_on_a_pipe_has_a_line_for_each_change(cli: CommandLine) -> None:
    """To a pipe a watch writes what changes, and what the run came to."""
    with started(WORK, cli.store, "fail") as (process, _):
        command = asteps_command("-s", str(cli.store), "watch", "job-1", "-e", "100ms")
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment()
        ) as watching:
            assert watching.stdout is not None
            assert "proceeding" in watching.stdout.readline()
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            rest = watching.stdout.read()
        assert watching.returncode == 1
        assert "failed       second, " in rest
        assert "OSError: no second" in rest
        assert "failed       the run, " in rest
        process.wait(10)


def test_watch_gives_up(cli: CommandLine) -> None:
    """When the time is up the run goes on, and the exit code tells that it had not ended."""
    said = cli("watch", "approval-7", "--timeout", "10ms")
    assert (said.code, said.err) == (7, "")
    assert cli("watch", "vm-41").code == 0
    assert cli("watch", "vm-42").code == 1


# --- completion -----------------------------------------------------------------------------------


def completed(line: str, shell: str = "bash", **env: str) -> str:
    """What a shell is offered for a line."""
    asked = {"_ASTEPS_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, **env}
    asked |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    asked["COMP_CWORD"] = str(len(line.split(" ")) - 1)
    done = subprocess.run(
        asteps_command(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=environment(**asked),
    )
    return done.stdout


def test_a_shell_completes_runs_and_steps(cli: CommandLine) -> None:
    """Ids of runs and paths of steps are completed, from the store that is named."""
    store = str(cli.store)
    assert completed("asteps sho").split() == ["show"]
    assert completed(f"asteps show -s {store} vm-4").split() == ["vm-41", "vm-42", "vm-43"]
    assert completed("asteps recover vm-42", ASTEPS_STORE=store).split() == ["vm-42"]
    paths = completed("asteps recover vm-42 inFlight/", ASTEPS_STORE=store)
    assert paths.split() == ["inFlight/migrate", "inFlight/notify"]
    assert completed("asteps show x", ASTEPS_STORE="no-such.db").strip() == ""
    assert completed("asteps show x").strip() == ""


def test_what_a_shell_would_evaluate_is_not_completed(cli: CommandLine, tmp_path: Path) -> None:
    """An id or a name that means something to a shell is left for people to quote."""
    file = str(tmp_path / "run.json")
    cli.ok("export", "vm-41", "-o", file)
    for id in ("x1", "x$(id)", "x\\$(id)", "x`id`", "x'", 'x"', "x y", "x;id", "x*", "x|y", "-x"):
        cli.ok("import", "--", id, file)
    cli.ok("rename", "x1", "quota", "a\\$(touch owned)", "--yes")
    for shell in ("bash", "zsh", "fish"):
        said = completed("asteps show x", shell, ASTEPS_STORE=str(cli.store))
        assert "x1" in said
        assert said.count("x") == 1, said
        assert "owned" not in completed("asteps show x1 ", shell, ASTEPS_STORE=str(cli.store))
    assert completed("asteps show -", ASTEPS_STORE=str(cli.store)).count("-x") == 0
