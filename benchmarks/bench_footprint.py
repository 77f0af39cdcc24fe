"""What it costs to have asteps: to import it, and to install it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from goals import FULL, Report

import asteps

ROUNDS = 40 if FULL else 9
PROGRAMS = {
    "bare python": "pass",
    "asyncio, msgspec, anyio": "import asyncio, msgspec, anyio, anyio._backends._asyncio",
    "asteps": "import asyncio, asteps, anyio._backends._asyncio",
    "asteps and its SQLite store": (
        "import asyncio, asteps, asteps.stores.sqlite, anyio._backends._asyncio"
    ),
}
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def start(program: str, bytecode: str) -> float:
    """Seconds that a new interpreter takes for a program; its modules are compiled, as pip does."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    began = perf_counter()
    command = [sys.executable, "-c", program]
    subprocess.run(command, check=True, env=env | {"PYTHONPYCACHEPREFIX": bytecode})
    return perf_counter() - began


def installed(name: str, found: dict[str, Distribution]) -> None:
    """The distributions that come with this one, extras left out."""
    if name in found:
        return
    try:
        found[name] = distribution(name)
    except PackageNotFoundError:  # not needed on this Python
        return
    for need in found[name].requires or ():
        match = _NAME.match(need)
        if match is not None and "extra ==" not in need:
            installed(match[0].lower().replace("_", "-"), found)


def size(path: Path) -> int:
    """A file's bytes, unless it is bytecode."""
    return 0 if path.suffix == ".pyc" or not path.is_file() else path.stat().st_size


def megabytes(found: dict[str, Distribution]) -> float:
    """Their files, without bytecode; asteps' own from its package, as it may be editable."""
    total = sum(size(p) for p in Path(asteps.__file__).parent.rglob("*"))
    for name, dist in found.items():
        if name != "asteps":
            total += sum(size(Path(str(f.locate()))) for f in dist.files or ())
    return total / 1e6


def measure(report: Report) -> None:
    """Measure all."""
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    with tempfile.TemporaryDirectory() as bytecode:
        for turn in range(ROUNDS + 1):
            for name, program in PROGRAMS.items():
                took = start(program, bytecode)
                if turn:  # the first one compiles
                    times[name].append(took)
    bare, least, ours, _ = (median(found) for found in times.values())
    ratio = (ours - bare) / (least - bare)
    bare, least, ours, _ = (min(found) for found in times.values())
    best = (ours - bare) / (least - bare)
    report.add(
        "F1",
        "import, over bare python, against asyncio + msgspec + anyio",
        ratio,
        1.25,
        1.5,
        "ratio",
        best=best,
    )
    for name, found in times.items():
        report.facts[name] = f"{median(found) * 1e3:.0f} ms"

    packages: dict[str, Distribution] = {}
    installed("asteps", packages)
    report.add("F2", "packages installed", len(packages), 5, 6, "count")
    report.add("F2", "MB installed, without bytecode", megabytes(packages), 2.5, 4, "count")
    report.facts["packages"] = ", ".join(sorted(packages))


def test_footprint(benchmark: Any) -> None:
    """F1 and F2."""
    report = Report("footprint")
    benchmark.pedantic(measure, args=(report,), rounds=1)
    benchmark.extra_info["goals"] = report.goals
    report.finish()
