"""The main example, as a newcomer meets it: run, cut off in every way, and started again."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from processes import ended_by, example_until, run_example, said

EXAMPLE = "move_to_vpc.py"

STEPS = [
    *("initialize/initialize CVM", "initialize/initialize ENIs", "initialize"),
    *("preFlight/chkAccount", "preFlight/chkNetwork", "preFlight"),
    *(f"inFlight/migrateInstances/vm-{n}" for n in (1, 2, 3)),
    *(f"inFlight/cloneENIs/ENI of vm-{n}" for n in (1, 2, 3)),
    *("inFlight/migrateInstances", "inFlight/cloneENIs", "inFlight"),
]
MADE = {
    *("vpc-1-web", "eni-2-gateway"),
    *(f"vm-{n} in vpc-1-web" for n in (1, 2, 3)),
    *(f"eni of vm-{n}" for n in (1, 2, 3)),
}
LAST_LINE = "3 instances are in vpc-1-web, and account 42 pays."


def run(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the example to its end."""
    return run_example(directory, EXAMPLE, "--fast", *options)


def until(
    directory: Path, line: str
) -> AbstractContextManager[tuple[subprocess.Popen[str], list[str]]]:
    """The example, which has just printed this line, and all that it printed so far."""
    return example_until(directory, line, EXAMPLE, "--fast")


def made(directory: Path) -> set[str]:
    """What the cloud has made; the numbers of interfaces depend on who came first."""
    found = json.loads((directory / "move_to_vpc.cloud.json").read_text())["made"].values()
    things = {re.sub(r"eni-\d-(vm-\d)", r"eni of \1", thing) for thing in found}
    assert len(things) == len(found), "something was made twice"
    return things


def table(output: str) -> list[str]:
    """Names and outcomes of the tree at the end."""
    return re.findall(r"^  ( *\S.*?) +done +\d+\.\d\d s", output, re.MULTILINE)


def test_undisturbed(tmp_path: Path) -> None:
    """It runs to its end, prints the tree, and does nothing when it is started again."""
    first = run(tmp_path)
    assert (first.returncode, first.stderr) == (0, "")
    assert sorted(said(first.stdout, "done")) == sorted(STEPS)
    assert said(first.stdout, "skipped") == []
    assert [name.strip() for name in table(first.stdout)] == [
        *("MoveToVPC", "initialize", "initialize CVM", "initialize ENIs"),
        *("preFlight", "chkAccount", "chkNetwork", "inFlight"),
        *("migrateInstances", "vm-1", "vm-2", "vm-3"),
        *("cloneENIs", "ENI of vm-1", "ENI of vm-2", "ENI of vm-3"),
    ]
    assert first.stdout.splitlines()[-1] == LAST_LINE
    assert made(tmp_path) == MADE
    waits = said(first.stdout, "waits")
    assert [w.count("10.0.0.") for w in waits] == [4, 2], "the list of dead addresses shrinks"

    again = run(tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert "It is finished: nothing is run again." in again.stdout
    assert said(again.stdout, "done") == []
    assert table(again.stdout) == table(first.stdout)
    assert made(tmp_path) == MADE


@pytest.mark.parametrize(
    "moment",
    [
        "done     initialize/initialize CVM",
        "waits    preFlight/chkNetwork",
        "done     inFlight/migrateInstances/vm-1",
    ],
)
def test_killed(tmp_path: Path, moment: str) -> None:
    """Killed by SIGKILL and started again it skips what was done, and ends with the same result."""
    with until(tmp_path, moment) as (process, seen):
        code, rest = ended_by(process, signal.SIGKILL)
        assert code == -signal.SIGKILL
    again = run(tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    before, skipped, after = (
        set(said([*seen, *rest], "done")),
        set(said(again.stdout, "skipped")),
        set(said(again.stdout, "done")),
    )
    assert before <= skipped, "what was reported is skipped"
    assert skipped | after == set(STEPS)
    assert not skipped & after
    assert again.stdout.splitlines()[-1] == LAST_LINE
    assert made(tmp_path) == MADE


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C, twice in a row: one friendly line each time, exit code 130, and nothing is lost."""
    skipped: set[str] = set()
    for moment in ("done     initialize/initialize ENIs", "waits    preFlight/chkNetwork"):
        with until(tmp_path, moment) as (process, seen):
            code, rest = ended_by(process, signal.SIGINT)
            assert code == 130
        assert rest[-1] == "Stopped. Everything that was done is kept: start it again to go on."
        assert not any("Traceback" in line for line in [*seen, *rest])
        skipped |= set(said([*seen, *rest], "done"))
    again = run(tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert skipped <= set(said(again.stdout, "skipped"))
    assert again.stdout.splitlines()[-1] == LAST_LINE
    assert made(tmp_path) == MADE


def test_started_twice(tmp_path: Path) -> None:
    """A second process at the same time is told who is at work; ``--reset`` begins anew."""
    with until(tmp_path, "done     initialize/initialize CVM"):
        second = run(tmp_path)
        assert second.returncode == 1
        assert "Another process is at it: run 'move-web-to-vpc' is held by" in second.stdout
        assert second.stderr == ""
    anew = run(tmp_path, "--reset")
    assert sorted(said(anew.stdout, "done")) == sorted(STEPS)
