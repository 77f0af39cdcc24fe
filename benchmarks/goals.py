"""Goals, what was measured against them, and the table that says so."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

FULL = os.environ.get("ASTEPS_BENCH") == "full"
"""Whether to take the time for many rounds; without it, all files together take about a minute."""

TOLERANCE = 1.4  # of timings on a machine that others use too


class Goal(NamedTuple):
    """One row.

    Attributes:
        kind: ``count`` is asserted at ``must``, ``ratio`` (interleaved, in memory) at ``must`` and
            a tolerance, ``rate`` not at all: it is for calm machines and human eyes.
        higher: More is better.
        best: The figure from the fastest rounds alone. Others who use the machine make all that is
            measured slower, but not all alike; so a ratio is asserted by the better of the two.
    """

    id: str
    what: str
    value: float
    aim: float
    must: float
    kind: Literal["count", "ratio", "rate"]
    higher: bool = False
    best: float | None = None

    @property
    def verdict(self) -> str:
        sign = -1 if self.higher else 1
        if sign * self.value <= sign * self.aim:
            return "aim"
        return "must" if sign * self.value <= sign * self.must else "MISSED"

    @property
    def holds(self) -> bool:
        """Whether the machine's noise cannot excuse it."""
        slack = {"count": 1.0, "ratio": TOLERANCE, "rate": float("inf")}[self.kind]
        value = self.value if self.best is None else min(self.value, self.best)
        return value >= self.must / slack if self.higher else value <= self.must * slack


class Report:
    """The goals of one file.

    Attributes:
        facts: Whatever else was measured; printed, and part of the JSON.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.goals: list[Goal] = []
        self.facts: dict[str, Any] = {}

    def add(self, *row: Any, **more: Any) -> None:
        self.goals.append(Goal(*row, **more))

    def finish(self) -> None:
        """Print, write the JSON, and fail if a goal is missed beyond what noise explains."""
        python = f"{platform.python_implementation()} {platform.python_version()}"
        print(f"\n\n{self.name}: {python}, {'full' if FULL else 'short'} mode")
        print(f"{'goal':5}{'figure':64}{'ratio':>9}{'aim':>9}{'must':>9}  verdict")
        for g in self.goals:
            sign = ">=" if g.higher else "<="
            aim, must = f"{sign}{g.aim:g}", f"{sign}{g.must:g}"
            best = "" if g.best is None else f", best rounds {g.best:.4g}"
            print(f"{g.id:5}{g.what:64}{g.value:9.4g}{aim:>9}{must:>9}  {g.verdict}{best}")
        for what, value in self.facts.items():
            print(f"      {what}: {value}")
        rows = [g._asdict() | {"verdict": g.verdict} for g in self.goals]
        document = {"name": self.name, "python": python, "goals": rows, "facts": self.facts}
        default = Path(__file__).with_name("results")
        directory = Path(os.environ.get("ASTEPS_BENCH_RESULTS", default))
        directory.mkdir(parents=True, exist_ok=True)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        (directory / f"{self.name}-{version}.json").write_text(json.dumps(document, indent=1))
        missed = [f"{g.id} {g.what}: {g.value:.4g}, {g.best}" for g in self.goals if not g.holds]
        assert not missed, f"missed: {missed}"
