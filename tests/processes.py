"""Scripts in processes of their own, to be killed, limited or left alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HEADER = """
import contextlib, os, resource, sqlite3, sys, tempfile, time, anyio
from asteps._store import Summary
from asteps.errors import *
from asteps.stores.sqlite import SQLiteStore
from asteps.stores._owner import Owner
"""


def command(body: str, *args: object) -> list[str]:
    """What runs this script."""
    return [sys.executable, "-c", _HEADER + textwrap.dedent(body), *map(str, args)]


def run_script(body: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, be it a bad one."""
    return subprocess.run(
        command(body, *args), capture_output=True, text=True, timeout=30, check=False
    )


@contextmanager
def started(body: str, *args: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that has printed its first line, and that line; killed in the end."""
    with subprocess.Popen(
        command(body, *args), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


# --- the examples ---------------------------------------------------------------------------------

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_example(directory: Path, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run an example to its end in this directory."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *options],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _hear_ctrl_c() -> None:
    """A process that a shell runs in the background ignores Ctrl-C, and so do those it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def example_until(
    directory: Path, line: str, name: str, *options: str
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """An example that has just printed this line, and all that it printed so far."""
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *options],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_hear_ctrl_c,  # noqa: PLW1509 - it only sets a signal's handler
    ) as process:
        assert process.stdout is not None
        seen: list[str] = []
        try:
            for text in process.stdout:
                seen.append(text.rstrip("\n"))
                if line in text:
                    break
            assert line in seen[-1], seen
            yield process, seen
        finally:
            process.kill()


def ended_by(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, list[str]]:
    """What became of a process that was sent this signal: how it ended, and what it still said."""
    process.send_signal(number)
    code = process.wait(10)
    assert process.stdout is not None
    return code, process.stdout.read().splitlines()


def said(output: str | list[str], word: str) -> list[str]:
    """The rest of the lines in which an example said this word."""
    lines = output.splitlines() if isinstance(output, str) else output
    return [line.split(None, 1)[1] for line in lines if line.startswith(f"  {word} ")]
