"""On disk: asteps on `SQLiteStore` against the project's own floor, each in a process of its own.

Syncs are counted by strace where there is one that works, else as commits, by SQLite's own trace:
at ``synchronous=FULL`` a commit is one sync, and only those of checkpoints are left out.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from goals import FULL, Report
from sqlite_work import BEGIN, END

ROUNDS = 11 if FULL else 3
MANY = 10_000  # steps of a long run
SCRIPT = Path(__file__).with_name("sqlite_work.py")


def run(subject: str, work: str, synchronous: str = "FULL", **how: bool) -> dict[str, Any]:
    """One piece of work, in a new process and a new file."""
    prefix: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "strace"
        if how.get("strace"):
            prefix = ["strace", "-f", "-qq", "-o", str(log), "-e", "trace=fsync,fdatasync,access"]
        mode = "trace" if how.get("trace") else "plain"
        command = [sys.executable, str(SCRIPT), subject, work, directory, synchronous, mode]
        done = subprocess.run([*prefix, *command], stdout=subprocess.PIPE, text=True, check=True)
        cost: dict[str, Any] = json.loads(done.stdout)
        if prefix:
            cost["syncs"] = syncs_between_marks(log.read_text()) / cost["steps"]
        return cost


def syncs_between_marks(log: str) -> int:
    """Syncs in the log of strace, of the measured part."""
    middle = log.partition(BEGIN)[2].partition(END)[0]
    return sum("sync(" in line for line in middle.splitlines())


@cache
def strace_works() -> bool:
    """Whether strace is there, and allowed."""
    if shutil.which("strace") is None:
        return False
    command = ["strace", "-f", "-e", "trace=fsync", sys.executable, "-c", ""]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def syncs(subject: str, work: str) -> float:
    """Syncs per step."""
    if strace_works():
        return float(run(subject, work, strace=True)["syncs"])
    cost = run(subject, work, trace=True)
    return float(cost["statements"]["BEGIN IMMEDIATE"] / cost["steps"])


def interleaved(
    subjects: list[tuple[str, str, str]], rounds: int
) -> dict[tuple[str, str, str], dict[str, list[float]]]:
    """What each cost, round by round."""
    found: dict[tuple[str, str, str], dict[str, list[float]]] = {s: {} for s in subjects}
    for _ in range(rounds):
        for subject in subjects:
            for key, value in run(*subject).items():
                found[subject].setdefault(key, []).append(value)
    return found


def measure(report: Report) -> None:
    """Measure the three kinds of work."""
    works = ("seq", "200x10", "fan-out")
    subjects = [(who, work, "FULL") for work in works for who in ("asteps", "floor")]
    subjects += [("raw", "seq", "FULL"), ("asteps", "seq", "NORMAL"), ("floor", "seq", "NORMAL")]
    found = interleaved(subjects, ROUNDS)

    def rates(who: str, other: str, work: str, *, of: str = "FULL", to: str = "FULL") -> float:
        pairs = zip(found[who, work, of]["rate"], found[other, work, to]["rate"], strict=True)
        return median(a / b for a, b in pairs)

    def rate(id: str, what: str, value: float, aim: float, must: float) -> None:
        report.add(id, what, value, aim, must, "rate", higher=True)

    rate("S1", "seq, against the floor", rates("asteps", "floor", "seq"), 0.9, 0.8)
    rate("S2", "seq, against raw 1-row commits", rates("asteps", "raw", "seq"), 0.7, 0.6)
    rate("S4", "200x10, against the floor", rates("asteps", "floor", "200x10"), 0.65, 0.5)
    rate("S5", "fan-out, against the floor", rates("asteps", "floor", "fan-out"), 0.65, 0.5)
    for work, aim, must in (("seq", 1.015, 1.02), ("200x10", 0.007, 0.01), ("fan-out", 0.03, 0.05)):
        # Timing may split one transaction in two: asserted with the tolerance of a ratio.
        report.add("S6", f"syncs per step, {work}", syncs("asteps", work), aim, must, "ratio")
        report.facts[f"syncs per step of the floor, {work}"] = syncs("floor", work)
    report.facts["syncs counted by"] = "strace" if strace_works() else "SQLite's trace of commits"
    for work in ("seq", "200x10"):
        ours, least = (
            median(found[who, work, "FULL"]["bytes"])
            if None not in found[who, work, "FULL"]["bytes"]
            else float("nan")
            for who in ("asteps", "floor")
        )
        if ours == ours:  # noqa: PLR0124 - where there is no /proc there is no number
            what = f"bytes written per step against the floor, {work}"
            report.add("S7", what, ours / least, 1.1, 1.25, "count")
            report.facts[f"bytes per step, {work}"] = f"{ours:.0f}, floor {least:.0f}"
    for work, aim, must in (("200x10", 20, 30), ("seq", 220, 260)):
        cpu = median(found["asteps", work, "FULL"]["cpu_us"])
        report.add("S8", f"CPU us per step, {work}", cpu, aim, must, "rate")
        least = median(found["floor", work, "FULL"]["cpu_us"])
        report.facts[f"CPU us per step, {work}"] = f"{cpu:.0f}, floor {least:.0f}"
    normal = rates("asteps", "floor", "seq", of="NORMAL", to="NORMAL")
    rate("S9", "seq NORMAL, against the floor's", normal, 0.8, 0.65)
    rate("S9", "seq NORMAL, against FULL", rates("asteps", "asteps", "seq", of="NORMAL"), 2.5, 2)
    for who, work, how in subjects:
        per_second = found[who, work, how]["rate"]
        report.facts[f"steps/s, {who} {work} {how}"] = (
            f"{median(per_second):,.0f} ({min(per_second):,.0f}..{max(per_second):,.0f})"
        )


def measure_growth(report: Report) -> None:
    """A long run against a short one, and its resumption."""
    few, many = run("asteps", "200"), run("asteps", str(MANY))
    if few["bytes"] is not None:
        # Checkpoints, which a short run ends before, are the floor's growth too.
        grown = many["bytes"] / few["bytes"]
        least = run("floor", str(MANY))["bytes"] / run("floor", "200")["bytes"]
        report.add("G1", f"bytes per step at {MANY:,} against at 200", grown, 1.1, 1.2, "count")
        report.facts["the same, of the floor"] = f"{least:.3f}"
    syncs_grown = syncs("asteps", str(MANY)) / syncs("asteps", "200")
    report.add("G1", f"syncs per step at {MANY:,} against at 200", syncs_grown, 1.1, 1.2, "count")
    cpu = many["cpu_us"] / few["cpu_us"]
    report.add("G1", f"CPU per step at {MANY:,} against at 200", cpu, 1.15, 1.25, "rate")

    # A driver reads a run once, in two calls, whatever its steps: the same for 10 and for 200.
    reads = [run("asteps", n, trace=True)["statements"]["SELECT"] for n in ("10", "200")]
    report.add("G2", "reads of the store per step", (reads[1] - reads[0]) / 190, 0, 0, "count")
    resumed = run("resume", "200", trace=True)["statements"]["SELECT"]
    report.add("G2", "queries of a resume", resumed, 3, 3, "count")
    report.facts["queries"] = "who owns the run; its summary; its records"

    loads = [run("resume", str(MANY)) for _ in range(ROUNDS)]
    load = median(cost["load_ns"] for cost in loads)
    both = median(cost["load_and_skip_ns"] for cost in loads)
    report.add("R1", f"ns per step to load {MANY:,} done steps", load, 1_500, 2_500, "rate")
    report.add("R1", "the same, and to skip them", both, 2_000, 3_000, "rate")


def test_sqlite(benchmark: Any) -> None:
    """S1, S2, S4 to S9."""
    report = Report("sqlite")
    benchmark.pedantic(measure, args=(report,), rounds=1)
    benchmark.extra_info["goals"] = report.goals
    report.finish()


def test_long_runs(benchmark: Any) -> None:
    """G1, G2 and R1."""
    report = Report("sqlite-long")
    benchmark.pedantic(measure_growth, args=(report,), rounds=1)
    benchmark.extra_info["goals"] = report.goals
    report.finish()
