"""What the command line changes is what it said it would, or nothing; and it leaves a note."""

from __future__ import annotations

import getpass
import json
import os
import re
import shlex
import socket
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from cli_tools import CommandLine, asteps_command, load, make_runs, on_terminal
from processes import started

import asteps
from asteps import Step, StepError, import_run
from asteps.cli import _edit, _move, _remove, _stores
from asteps.cli._app import run
from asteps.cli._ask import author
from asteps.stores.sqlite import SQLiteStore

GOLDEN = Path(__file__).parent / "golden"
ME = f"{getpass.getuser()}@{socket.gethostname()}"


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line on a store of five runs."""
    return CommandLine(make_runs(tmp_path), capsys)


def notes(cli: CommandLine, id: str) -> list[tuple[str, str]]:
    """What was written down about a run, and by whom."""
    return [(note.text, note.by) for note in load(cli.store, id).notes]


# --- what is done ---------------------------------------------------------------------------------


def test_recover(cli: CommandLine) -> None:
    """The causes of a failure become runnable; what is done stays done; the reason is noted."""
    out = cli.ok("recover", "vm-42", "--yes", "--why", "the disk was extended")
    assert "runs again     'inFlight/migrate/copy'\n" in out
    assert "entered again  the run itself, 'inFlight', 'inFlight/migrate'\n" in out
    state = load(cli.store, "vm-42")
    assert not state.get("inFlight/migrate/copy").failed
    assert state.get("quota").done
    assert notes(cli, "vm-42") == [("recovered 'inFlight/migrate/copy': the disk was extended", ME)]
    assert "the disk was extended" in cli.ok("show", "vm-42")
    assert "the disk was extended" in cli.ok("report", "vm-42")
    assert cli("recover", "vm-42", "--yes").code == 2  # it has not failed any more


def test_a_failed_step_of_a_run_that_has_not_failed(cli: CommandLine) -> None:
    """Where a run went on without a step that failed, the step has to be named."""

    async def bad(s: Step) -> None:
        raise ValueError

    async def root(s: Step) -> None:
        with suppress(StepError):
            await s.do("bad", lambda t: t.do("below", bad), returns=None)

    async def make() -> None:
        async with SQLiteStore(cli.store) as store:
            await asteps.run(root, store=store, id="handled")

    anyio.run(make)
    said = cli("recover", "handled", "--yes")
    assert (said.code, said.out) == (2, "")
    assert "has not failed, but steps of it have ('bad/below'): name the one" in said.err
    assert cli("recover", "handled", "bad/below", "--yes").code == 0


def test_the_command_that_a_report_suggests_can_be_typed(cli: CommandLine) -> None:
    """What a report of a failed run says to do is a command line that does it."""
    out = cli.ok("report", "vm-42")
    (line,) = [line.strip() for line in out.splitlines() if "asteps recover" in line]
    words = shlex.split(line[line.index("asteps recover") :])
    assert run([*words[1:], "--yes"]) == 0
    assert not load(cli.store, "vm-42").failed


def test_recover_one_step(cli: CommandLine) -> None:
    """With a path only that failure, and what caused it, is recovered."""
    cli.ok("recover", "vm-42", "inFlight/migrate", "--yes")
    assert not load(cli.store, "vm-42").get("inFlight/migrate/copy").failed


def test_reset(cli: CommandLine) -> None:
    """A step and what is below it are forgotten, which is counted beforehand."""
    out = cli.ok("reset", "vm-42", "inFlight/migrate", "--yes")
    assert "forgotten      'inFlight/migrate/copy'\n" in out
    assert "lost           1 info\n" in out
    state = load(cli.store, "vm-42")
    assert not state.has("inFlight/migrate/copy")
    assert not state.get("inFlight/migrate").started
    assert state.get("inFlight/notify").done
    assert notes(cli, "vm-42") == [("reset 'inFlight/migrate'", ME)]


def test_reset_the_whole_run(cli: CommandLine) -> None:
    """An empty path begins the run again, and its notes stay."""
    cli.ok("reset", "backup-1", "", "--yes", "--why", "wrong disk")
    assert not load(cli.store, "backup-1").states
    assert notes(cli, "backup-1") == [("reset the run itself: wrong disk", ME)]


def test_set_result(cli: CommandLine) -> None:
    """A step becomes done with the JSON that was given; the note does not repeat it."""
    cli.ok("set-result", "vm-42", "inFlight/migrate", '{"moved": [1, null]}', "--yes")
    node = load(cli.store, "vm-42").get("inFlight/migrate")
    assert node.done
    assert node.result_as(dict[str, list[int | None]]) == {"moved": [1, None]}
    assert notes(cli, "vm-42") == [("set the result of 'inFlight/migrate'", ME)]


def test_rename(cli: CommandLine) -> None:
    """A step gets another name, and nothing runs again."""
    out = cli.ok("rename", "vm-41", "inFlight/migrate", "move", "--yes")
    assert "runs again  nothing\n" in out
    assert "entered again" not in out
    state = load(cli.store, "vm-41")
    assert state.done
    assert state.get("inFlight/move/copy").done
    assert notes(cli, "vm-41") == [("renamed 'inFlight/migrate' to 'move'", ME)]


def test_rm(cli: CommandLine) -> None:
    """Runs are deleted, those that were named and no others."""
    out = cli.ok("rm", "vm-41", "backup-1", "vm-41", "--yes")
    assert out.endswith("deleted vm-41\ndeleted backup-1\n")
    assert [line.split()[0] for line in cli.ok("runs").splitlines()[1:]] == [
        "vm-43",
        "approval-7",
        "vm-42",
    ]


def test_prune(cli: CommandLine) -> None:
    """What ended long ago is deleted: done runs, and failed ones if they are asked for."""
    assert json.loads(cli.ok("prune", "--older-than", "1d", "--dry-run", "--json")) == {
        "deleted": ["vm-41", "backup-1"],
        "kept": {},
        "damaged": {},
        "dryRun": True,
    }
    assert "0 runs" in cli.ok("prune", "--older-than", "2000w", "--yes")
    assert "2 runs deleted" in cli.ok("prune", "--older-than", "1d", "--yes")
    out = cli.ok("prune", "--older-than", "1d", "-S", "failed", "-S", "done", "--json", "--yes")
    assert json.loads(out)["deleted"] == ["vm-42"]
    assert len(cli.ok("runs").splitlines()) == 3


# --- moving ---------------------------------------------------------------------------------------


def test_export_and_import(cli: CommandLine, tmp_path: Path) -> None:
    """What was exported can be imported elsewhere, and is the same run but for the note."""
    file, other = tmp_path / "run.json", tmp_path / "new.db"
    cli.ok("export", "vm-42", "--output", str(file))
    assert file.read_bytes() == load(cli.store, "vm-42").encode()
    assert cli.ok("export", "vm-42") == file.read_text() + "\n"
    elsewhere = CommandLine(other, cli._capsys)
    elsewhere.ok("import", "vm-42", str(file), "--why", "moved")
    moved = load(other, "vm-42")
    assert [(n.text, n.by) for n in moved.notes] == [(f"imported from {str(file)!r}: moved", ME)]
    assert moved.run is not None
    moved.run.notes = None
    assert moved.encode() == file.read_bytes()


def test_a_run_of_the_go_library_is_imported(cli: CommandLine) -> None:
    """State that the Go library saved becomes a run that can be shown, and recovered."""
    cli.ok("import", "go-1", str(GOLDEN / "go_failed.json"))
    assert "failed" in cli.ok("show", "go-1")
    cli.ok("recover", "go-1", "--yes")


def test_import_replaces_only_when_it_is_told_to(cli: CommandLine, tmp_path: Path) -> None:
    """A run of that id is not overwritten, unless somebody says --replace and means it."""
    file = tmp_path / "run.json"
    cli.ok("export", "vm-41", "-o", str(file))
    said = cli("import", "vm-42", str(file))
    assert said.code == 2
    assert "--replace" in said.err
    assert cli("import", "vm-42", str(file), "--replace").code == 6
    assert load(cli.store, "vm-42").failed
    cli.ok("import", "vm-42", str(file), "--replace", "--yes")
    assert load(cli.store, "vm-42").done


def test_an_import_is_one_save(cli: CommandLine, tmp_path: Path) -> None:
    """A run that was imported has its note from the beginning: a kill leaves none without it."""
    file = tmp_path / "run.json"
    cli.ok("export", "vm-41", "-o", str(file))
    cli.ok("import", "copy", str(file))
    with sqlite3.connect(cli.store) as connection:
        saves = connection.execute("SELECT saves FROM runs WHERE id = 'copy'").fetchall()
    connection.close()
    assert saves == [(1,)]
    assert notes(cli, "copy") == [(f"imported from {str(file)!r}", ME)]


def test_an_export_is_written_whole_or_not_at_all(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no room for it, the file that was there stays; its rights stay, too."""
    file = tmp_path / "run.json"
    file.write_bytes(b"the one before")
    file.chmod(0o600)
    files = sorted(tmp_path.iterdir())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        said = cli("export", "vm-41", "-o", str(file))
    assert said.code == 5
    assert said.err == f"asteps: {str(file)!r} cannot be written: No space left on device\n"
    assert file.read_bytes() == b"the one before"
    assert sorted(tmp_path.iterdir()) == files
    link = tmp_path / "link.json"
    link.symlink_to(file)
    cli.ok("export", "vm-41", "-o", str(link))
    assert (link.is_symlink(), file.stat().st_mode & 0o777) == (True, 0o600)
    assert file.read_bytes() == load(cli.store, "vm-41").encode()
    cli.ok("export", "vm-41", "-o", os.devnull)


@pytest.mark.parametrize(
    "words", [["export", "vm-41"], ["report", "vm-41", "-f", "text"], ["stats", "-f", "csv"]]
)
def test_no_output_takes_the_place_of_a_store(cli: CommandLine, words: list[str]) -> None:
    """Who names the store where a file is to be written loses nothing by the slip."""
    before = cli.store.read_bytes()
    said = cli(*words, "-o", str(cli.store))
    assert said.code == 2
    assert "is a SQLite database; it was left as it is" in said.err
    assert cli.store.read_bytes() == before


def test_the_document_of_prune_stands_alone(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --json the standard output holds one document, also where somebody is asked."""
    assert json.loads(cli.ok("prune", "--older-than", "2000w", "--json"))["deleted"] == []
    monkeypatch.setattr(_remove, "confirm", lambda _question, *, yes: None)
    said = cli("prune", "--older-than", "1d", "--json")
    assert json.loads(said.out)["deleted"] == ["vm-41", "backup-1"]
    assert said.err == "2 runs to be deleted\n  vm-41\n  backup-1\n"


# --- what is not done -----------------------------------------------------------------------------

EDITS = [
    ["recover", "vm-42"],
    ["reset", "vm-42", "quota"],
    ["set-result", "vm-42", "quota", "1"],
    ["rename", "vm-42", "quota", "share"],
    ["rm", "vm-42"],
    ["prune", "--older-than", "1d"],
]


@pytest.mark.parametrize("words", EDITS, ids=lambda words: words[0])
def test_without_a_terminal_nobody_is_asked(cli: CommandLine, words: list[str]) -> None:
    """Without --yes and without a terminal it is shown what would happen, and nothing happens."""
    before = cli.store.read_bytes()
    said = cli(*words)
    assert said.code == 6
    assert said.out
    assert said.err == (
        "asteps: nothing was changed: nobody can be asked where there is no terminal; say --yes\n"
    )
    assert cli.store.read_bytes() == before


@pytest.mark.parametrize("words", EDITS, ids=lambda words: words[0])
def test_a_dry_run_changes_nothing(cli: CommandLine, words: list[str]) -> None:
    """--dry-run shows the same, and ends well."""
    before = cli.store.read_bytes()
    shown = cli.ok(*words, "--dry-run")
    assert cli.store.read_bytes() == before
    assert cli(*words).out == re.sub(r"nothing was \w+ \(--dry-run\)\n", "", shown)


@pytest.mark.parametrize("words", EDITS[:5], ids=lambda words: words[0])
def test_yes_needs_the_whole_id(cli: CommandLine, words: list[str]) -> None:
    """A beginning of an id is not enough where nobody looks at what it was found to be."""
    cli.ok("rm", "vm-41", "vm-43", "--yes")
    said = cli(words[0], "vm", *words[2:], "--yes")
    assert said.code == 3
    assert "with --yes the whole id is needed: 'vm-42'" in said.err


HOLD = """
    async def main():
        async with SQLiteStore(sys.argv[1]) as store:
            import asteps
            async def body(s):
                print("held", flush=True)
                await anyio.sleep(60)
            await asteps.run(body, store=store, id="held-1")
    anyio.run(main)
"""


def test_a_held_run_is_let_be(cli: CommandLine) -> None:
    """While a living process advances a run nothing is changed, and its holder is named."""
    with started(HOLD, cli.store) as (process, line):
        assert line == "held"
        out = cli.ok("runs", "--status", "proceeding")
        assert "held-1  proceeding" in out
        assert f":{process.pid}:" in out
        assert f":{process.pid}:" in cli.ok("show", "held-1")
        for words in (
            ["recover", "held-1"],
            ["reset", "held-1", ""],
            ["set-result", "held-1", "", "1"],
            ["rm", "held-1"],
            ["import", "held-1", str(GOLDEN / "go_failed.json"), "--replace"],
        ):
            for option in ("--yes", "--yes", "--why=x") if words[0] == "recover" else ("--yes",):
                said = cli(*words, option)
                assert said.code == 4
                assert (
                    f"asteps: run 'held-1' is held by '{socket.gethostname()}:{process.pid}:"
                    in (said.err)
                )
        process.kill()
        process.wait()
        assert "interrupted" in cli.ok("show", "held-1")
        cli.ok("reset", "held-1", "", "--yes")


def test_what_changed_meanwhile_is_let_be(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is not any more what was shown is not changed."""

    def somebody_is_quicker(question: str, *, yes: bool) -> None:
        monkeypatch.undo()
        cli.ok("rename", "vm-42", "quota", "share", "--yes")

    monkeypatch.setattr(_edit, "confirm", somebody_is_quicker)
    said = cli("recover", "vm-42")
    assert said.code == 5
    assert "was changed by someone else" in said.err
    assert load(cli.store, "vm-42").failed


@pytest.mark.parametrize("verb", ["rm", "import"])
def test_what_changed_meanwhile_is_not_lost(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A run that is not any more what was shown is neither deleted nor replaced."""
    file = str(tmp_path / "run.json")
    cli.ok("export", "vm-41", "-o", file)
    words = {"rm": ["rm", "vm-42"], "import": ["import", "vm-42", file, "--replace"]}[verb]

    def somebody_is_quicker(question: str, *, yes: bool) -> None:
        monkeypatch.undo()
        cli.ok("rename", "vm-42", "quota", "share", "--yes")

    monkeypatch.setattr({"rm": _remove, "import": _move}[verb], "confirm", somebody_is_quicker)
    said = cli(*words)
    assert said.code == 5
    assert "changed" in said.err
    assert load(cli.store, "vm-42").get("share").done


def test_what_was_made_meanwhile_is_not_replaced(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--replace is meant for the run that was shown, and where none was, for none."""
    file = str(tmp_path / "run.json")
    cli.ok("export", "vm-41", "-o", file)
    find = _stores.find_run

    async def find_none(*args: Any, **options: Any) -> Any:
        monkeypatch.undo()
        try:
            return await find(*args, **options)
        finally:
            async with SQLiteStore(cli.store) as store:
                await import_run(store, "new", Path(file).read_bytes())

    monkeypatch.setattr(_move, "find_run", find_none)
    said = cli("import", "new", file, "--replace", "--yes")
    assert said.code == 5
    assert "changed by someone else" in said.err
    assert notes(cli, "new") == []


def test_a_nameless_user_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no name for the user, the note says so."""

    def nobody() -> str:
        raise OSError("no such user")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert author() == f"unknown@{socket.gethostname()}"


# --- on a terminal --------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 6), ("nein", 6)])
def test_the_answer_counts(cli: CommandLine, answer: str, code: int) -> None:
    """One is shown what will happen, and asked; anything but yes leaves all as it is."""
    command = asteps_command("recover", "vm-42", "-s", str(cli.store))
    with on_terminal(command) as terminal:
        terminal.wait_for("[y/N] ")
        assert any("runs again     'inFlight/migrate/copy'" in line for line in terminal.screen())
        terminal.type(f"{answer}\n")
        assert terminal.end() == code
    assert load(cli.store, "vm-42").failed is (code != 0)


def test_ctrl_c_at_the_question(cli: CommandLine) -> None:
    """Ctrl-C is a no, and no traceback."""
    with on_terminal(asteps_command("rm", "vm-42", "-s", str(cli.store))) as terminal:
        terminal.wait_for("[y/N] ")
        terminal.type("\x03")
        assert terminal.end() == 130
        assert "Traceback" not in terminal.written.decode()
    assert load(cli.store, "vm-42").failed
