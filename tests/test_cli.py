"""The command line finds runs, shows them, and says by its exit code what became of it."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import CommandLine, asteps_command, environment, load, make_runs

from asteps import State
from asteps.cli import _listing
from asteps.cli._app import run

ALL = ["vm-43", "backup-1", "approval-7", "vm-42", "vm-41"]  # the one saved last comes first


@pytest.fixture
def cli(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    """The command line on a store of five runs."""
    monkeypatch.delenv("ASTEPS_STORE", raising=False)
    monkeypatch.delenv("ASTEPS_DEBUG", raising=False)
    return CommandLine(make_runs(tmp_path), capsys)


def ids(out: str) -> list[str]:
    """The first column of a listing."""
    return [line.split()[0] for line in out.splitlines()[1:]]


# --- runs -----------------------------------------------------------------------------------------


def test_the_runs_saved_last_come_first(cli: CommandLine) -> None:
    """`runs` has a line for each run, with what it has come to."""
    out = cli.ok("runs")
    assert ids(out) == ALL
    statuses = {line.split()[0]: line.split()[1] for line in out.splitlines()[1:]}
    assert statuses == {
        "vm-43": "interrupted",
        "backup-1": "done",
        "approval-7": "pending",
        "vm-42": "failed",
        "vm-41": "done",
    }


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--status", "done"), ["backup-1", "vm-41"]),
        (("-S", "failed", "-S", "pending"), ["approval-7", "vm-42"]),
        (("--status", "interrupted"), ["vm-43"]),
        (("--status", "proceeding"), []),
        (("--name", "approve"), ["approval-7"]),
        (("--id", "vm-4"), ["vm-43", "vm-42", "vm-41"]),
        (("--since", "1h"), []),
        (("--older-than", "7d"), ALL),
        (("--sort", "id"), sorted(ALL)),
        (("--sort", "began"), ["vm-43", "backup-1", "approval-7", "vm-42", "vm-41"]),
        (("--sort", "began", "--reverse"), ["vm-41", "vm-42", "approval-7", "backup-1", "vm-43"]),
        (("--sort", "took", "-S", "done"), ["vm-41", "backup-1"]),
        (("--sort", "due", "--limit", "1"), ["approval-7"]),
        (("--reverse", "--limit", "2"), ["vm-41", "vm-42"]),
        (("--limit", "2"), ["vm-43", "backup-1"]),
        (("--limit", "2", "--page", "3"), ["vm-41"]),
        (("--limit", "2", "--page", "4"), []),
        (("--limit", "0"), ALL),
    ],
)
def test_filters_orders_and_pages(
    cli: CommandLine, options: tuple[str, ...], found: list[str]
) -> None:
    """A listing holds what was asked for, in the order that was asked for; none is said, too."""
    said = cli("runs", *options)
    assert (said.code, ids(said.out)) == (0, found)
    assert said.err == ("" if found else "asteps: no runs to show\n")


def test_the_document_of_runs(cli: CommandLine) -> None:
    """`runs --json` has these keys, and says whether there is more."""
    document = json.loads(cli.ok("runs", "--json", "--limit", "1"))
    assert document == {
        "runs": [
            {
                "id": "vm-43",
                "name": "move_to_vpc",
                "status": "interrupted",
                "holder": None,
                "createdAt": document["runs"][0]["createdAt"],
                "savedAt": document["runs"][0]["savedAt"],
                "dueAt": None,
                "endedAt": None,
            }
        ],
        "damaged": {},
        "more": True,
    }
    assert json.loads(cli.ok("runs", "--json", "--limit", "0"))["more"] is False


def test_a_damaged_run_hides_no_other(cli: CommandLine) -> None:
    """A run that cannot be read is named on the error output, and the others are listed."""
    with sqlite3.connect(cli.store) as connection:
        connection.execute("UPDATE runs SET status = 'odd' WHERE id = 'vm-42'")
    connection.close()
    said = cli("runs")
    assert said.code == 0
    assert ids(said.out) == [id for id in ALL if id != "vm-42"]
    assert said.err.startswith("asteps: run 'vm-42' cannot be read: ")
    assert cli("show", "vm-42").code == 5


# --- which run ------------------------------------------------------------------------------------


def test_the_beginning_of_an_id_is_enough(cli: CommandLine) -> None:
    """An id may be cut short where only one run begins so."""
    assert "run       approval-7\n" in cli.ok("show", "app")
    said = cli("show", "vm")
    assert (said.code, said.out) == (3, "")
    assert said.err == "asteps: 'vm' could be 'vm-41', 'vm-42', 'vm-43': say more of the id\n"


def test_a_whole_id_is_never_ambiguous(cli: CommandLine) -> None:
    """A run is found by its id, also when another's begins with that."""
    cli.ok("export", "vm-41", "-o", str(cli.store.with_name("x.json")))
    cli.ok("import", "vm-4", str(cli.store.with_name("x.json")))
    assert "run       vm-4\n" in cli.ok("show", "vm-4")


# --- show -----------------------------------------------------------------------------------------


def test_show_says_what_failed_and_where(cli: CommandLine) -> None:
    """`show` has the steps with their marks, and each failure in full, once."""
    out = cli.ok("show", "vm-42")
    assert "✓ quota " in out
    assert "attempt 2" in out
    assert "    ✗ copy " in out
    assert "failed at inFlight/migrate/copy\n  OSError: [Errno 28] No space left on device\n" in out
    assert out.count("No space left on device") == 2


def test_long_lists_are_folded(cli: CommandLine) -> None:
    """Of many siblings few are shown, and how many there are besides; --all shows them."""
    out = cli.ok("show", "backup-1")
    assert "more done" in out
    assert len(out.splitlines()) < 25
    assert (
        sum(line.startswith("  ✓") for line in cli.ok("show", "backup-1", "-a").splitlines()) == 30
    )


def test_one_step_in_full(cli: CommandLine) -> None:
    """`show ID PATH` has a step's info, result and traceback."""
    out = cli.ok("show", "vm-42", "inFlight/migrate")
    assert '"task": "mig-1"' in out
    assert "traceback" in out
    assert cli.ok("show", "vm-42", "quota").endswith("result\n40\n")


def test_the_document_of_a_run(cli: CommandLine) -> None:
    """`show --json` holds the state as `State.decode` reads it."""
    document = json.loads(cli.ok("show", "vm-42", "--json"))
    assert sorted(document) == ["holder", "id", "name", "state", "status"]
    assert (document["id"], document["status"], document["holder"]) == ("vm-42", "failed", None)
    assert document["state"] == json.loads(load(cli.store, "vm-42").encode())
    assert State.decode(json.dumps(document["state"])).failed


# --- which store ----------------------------------------------------------------------------------


def test_the_store_is_named_anywhere(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the verb, after it, by its URL, by its path, or in the environment."""
    path = str(cli.store)
    monkeypatch.chdir(cli.store.parent)
    for words in (
        ["-s", path, "runs"],
        ["runs", "-s", path],
        ["runs", "--store", "sqlite:runs.db"],
        ["-s", "no-such.db", "runs", "-s", path],  # what is said last counts
    ):
        assert run(words) == 0
    monkeypatch.setenv("ASTEPS_STORE", path)
    assert run(["runs"]) == 0
    assert run(["-s", "no-such.db", "runs"]) == 3


# --- exit codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (2, ["bogus"]),
        (2, ["runs", "--bogus"]),
        (2, ["runs", "--status"]),
        (2, ["runs", "--status", "odd"]),
        (2, ["runs", "--since", "yesterday"]),
        (2, ["runs", "--limit", "-1"]),
        (2, ["runs", "--limit", "٣"]),
        (2, ["runs", "--page", "0"]),
        (2, ["show"]),
        (2, ["show", "vm-42", "a", "b"]),
        (2, ["report", "vm-42", "--format", "pdf"]),
        (2, ["report", "vm-42", "--open"]),
        (2, ["stats", "--format", "pdf"]),
        (2, ["watch", "vm-42", "--every", "soon"]),
        (2, ["recover", "vm-41", "--yes"]),
        (2, ["recover", "vm-42", "quota", "--yes"]),
        (2, ["set-result", "vm-42", "quota", "no json", "--yes"]),
        (2, ["rename", "vm-42", "quota", "initialize", "--yes"]),
        (2, ["rename", "vm-42", "", "x", "--yes"]),
        (2, ["prune", "--yes"]),
        (2, ["prune", "--older-than", "1d", "--status", "pending", "--yes"]),
        (2, ["import", "vm-41", __file__]),
        (3, ["show", "vm"]),
        (3, ["show", "gone"]),
        (3, ["show", ""]),
        (3, ["show", "\udcff"]),
        (3, ["show", "x" * 501]),
        (3, ["show", "vm-42", "gone"]),
        (3, ["reset", "vm-42", "gone", "--yes"]),
        (3, ["rm", "vm-4", "--yes"]),
        (3, ["rm", "vm-41", "gone", "--yes"]),
        (3, ["export", "gone"]),
        (3, ["import", "x", "no-such-file"]),
        (5, ["export", "vm-41", "-o", "/no-such-directory/x.json"]),
        (6, ["rm", "vm-41"]),
    ],
    ids=str,
)
def test_exit_codes(cli: CommandLine, code: int, words: list[str]) -> None:
    """What goes wrong is one line on the error output, and an exit code; nothing was changed."""
    before = cli.store.read_bytes()
    said = cli(*words)
    assert said.code == code
    assert re.fullmatch(r"asteps: [^\n]+\n", said.err)
    assert cli.store.read_bytes() == before


@pytest.mark.parametrize(
    "store", ["no-such.db", "sqlite:no-such.db", "file:no-such", "odd:x", "memory:", ""]
)
def test_no_such_store(
    cli: CommandLine, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is not there is not found, is not made either, and is said in one line."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert run(["runs", "-s", store]) == (3 if store else 2)
    assert sorted(tmp_path.iterdir()) == before


def test_no_store_was_named(capsys: pytest.CaptureFixture[str], cli: CommandLine) -> None:
    """Without a store one is told how to name it."""
    assert run(["runs"]) == 2
    assert "ASTEPS_STORE" in capsys.readouterr().err


def test_a_foreign_file_is_left_alone(cli: CommandLine, tmp_path: Path) -> None:
    """A file that is no store of ours is a store error, and stays as it is."""
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    before = other.read_bytes()
    assert run(["runs", "-s", str(other)]) == 5
    assert other.read_bytes() == before


def test_a_bug_is_one_line_too(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody expected ends with 70 and one line; --debug adds the traceback."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("\x1b[31moh")

    monkeypatch.setattr(_listing, "browse_runs", broken)
    said = cli("runs")
    assert said.code == 70
    assert said.err == (
        "asteps: this is a bug: ZeroDivisionError: \\x1b[31moh (ASTEPS_DEBUG=1 shows where)\n"
    )
    monkeypatch.setenv("ASTEPS_DEBUG", "")
    assert "Traceback" in cli("--debug", "runs").err


def test_help_and_version(capsys: pytest.CaptureFixture[str], cli: CommandLine) -> None:
    """-h explains every verb, and --version is the installed one."""
    verbs = (
        "runs show report stats watch recover reset set-result rename rm prune export import doctor"
    )
    assert run(["-h"]) == 0
    listed = capsys.readouterr().out
    assert run([]) == 0
    assert capsys.readouterr() == (listed, "")
    for verb in verbs.split():
        assert f"\n  {verb} " in listed
        assert run([verb, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"Usage: asteps {verb} ")
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("asteps 0.")


# --- processes ------------------------------------------------------------------------------------


def test_without_the_extra_one_line_says_what_to_install() -> None:
    """The command without Typer says what to install, and shows no traceback."""
    script = "import sys; sys.modules['typer'] = None; from asteps.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=environment(),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "asteps: 'typer' is not installed: pip install 'asteps[cli]'\n"


def test_a_listing_imports_little(cli: CommandLine) -> None:
    """What takes long to import is left alone by what does not need it."""
    script = f"""
import sys
from asteps.cli._app import run
assert run(["runs", "-s", {str(cli.store)!r}, "-S", "done", "-l", "3", "--json"]) == 0
print(sorted({{"rich.console", "pydantic", "importlib.metadata", "trio"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env=environment(),
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_process_of_its_own(cli: CommandLine) -> None:
    """``python -m asteps`` ends with the exit code that the verb gave."""
    command = asteps_command("show", "gone", "-s", str(cli.store))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=environment(),
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "asteps: there is no run 'gone' in this store\n"


def test_an_ascii_terminal_is_written_ascii(cli: CommandLine) -> None:
    """Where the encoding has no marks there are others, and nothing fails."""
    done = subprocess.run(
        asteps_command("show", "vm-42", "-s", str(cli.store)),
        capture_output=True,
        timeout=30,
        check=True,
        env=environment(PYTHONIOENCODING="ascii"),
    )
    assert b"x copy" in done.stdout
    assert done.stdout.isascii()
