"""Scripts in processes of their own, to be killed, limited or left alone."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

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
