"""Statistics over many runs: constructed runs whose answer is known, and sums that must agree."""

from __future__ import annotations

import csv
import io
import math
import random
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from browser import Visit
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser

from asteps import Failure, Phase, State
from asteps._paths import join
from asteps._state import Detail, RunRecord, moment
from asteps.reports import (
    FunctionStatistics,
    PathStatistics,
    Row,
    Spread,
    Statistics,
    StatisticsSummary,
    statistics_csv,
    statistics_html,
    statistics_json,
    statistics_text,
    timeline,
)
from asteps.reports import _statistics as module
from asteps.reports import _statistics_samples as samples_module
from asteps.reports._statistics_names import pattern_of
from asteps.reports._statistics_samples import ERROR, Samples
from asteps.reports._statistics_whatif import saving_together

GOLDEN = Path(__file__).parent / "golden"
START = 1_700_000_000.0
LATER = moment(START + 10**7)

# --- runs that are made up ----------------------------------------------------------------------


class Flow(msgspec.Struct):
    """A step of a program: one that takes a time, or one of others in a row or side by side."""

    name: str
    takes: float = 0.0
    below: Sequence[Flow] = ()
    at_once: bool = False
    pauses: Sequence[float] = ()  # of its own, before each child and at the end


def simulate(flow: Flow, start: float) -> State:
    """What the tree says when the program ran; times are whole milliseconds."""
    node = State(flow.name, _started=moment(start))
    node.states = []
    now = start
    latest = start + (0.0 if flow.below else flow.takes)
    pauses = [*flow.pauses, *[0.0] * (len(flow.below) + 1)]
    for pause, child in zip(pauses, flow.below, strict=False):
        made = simulate(child, now + (0.0 if flow.at_once else pause))
        made.place = len(node.states)
        node.states.append(made)
        assert made.done_at is not None
        latest = max(latest, made.done_at.timestamp())
        if not flow.at_once:
            now = made.done_at.timestamp()
    node._done = moment(latest + (pauses[len(flow.below)] if flow.below else 0.0))
    return node


def run_of(flow: Flow, start: float = START) -> State:
    """A run of the program."""
    root = simulate(flow, start)
    root.run = RunRecord(1)
    return root


def took(state: State) -> float:
    """How long a run or step took."""
    assert state.started_at is not None
    assert state.done_at is not None
    return (state.done_at - state.started_at).total_seconds()


def without(flow: Flow, path: str, at: str = "") -> Flow:
    """The same program, where the own time of this step is 0."""
    below = [without(child, path, join(at, child.name)) for child in flow.below]
    if at == path:
        return msgspec.structs.replace(flow, takes=0.0, pauses=(), below=below)
    return msgspec.structs.replace(flow, below=below)


def summary_of(*states: State, **more: object) -> FunctionStatistics:
    """The statistics of runs of one function."""
    stats = Statistics()
    for place, state in enumerate(states):
        stats.add(state, run_id=f"run-{place}", now=LATER, **more)  # type: ignore[arg-type]
    (found,) = stats.summary().functions
    return found


def rows_by_path(state: State) -> dict[str, Row]:
    """The rows of a run's timeline."""
    return {row.path: row for row in timeline(state, now=LATER).rows}


MILLISECONDS = st.integers(1, 5_000).map(lambda n: n / 1000)
NAMES = "abcdefgh"


def flows(depth: int = 3) -> st.SearchStrategy[Flow]:
    """Programs of steps in a row and groups, nested; each name tells its place."""

    def leaf(takes: float) -> Flow:
        return Flow("", takes)

    def parent(below: list[Flow], at_once: bool, pauses: list[float]) -> Flow:
        kept = () if at_once else pauses
        named = [msgspec.structs.replace(f, name=n) for f, n in zip(below, NAMES, strict=False)]
        return Flow("", 0.0, named, at_once, kept)

    def deeper(inner: st.SearchStrategy[Flow]) -> st.SearchStrategy[Flow]:
        pauses = st.lists(st.one_of(st.just(0.0), MILLISECONDS), max_size=5)
        return st.builds(parent, st.lists(inner, min_size=1, max_size=4), st.booleans(), pauses)

    made = st.recursive(st.builds(leaf, MILLISECONDS), deeper, max_leaves=4**depth // 4)
    return made.map(lambda flow: msgspec.structs.replace(flow, name="flow"))


# --- what to optimise ---------------------------------------------------------------------------


@given(flows())
@settings(max_examples=150, deadline=None)
def test_shortening_a_step_by_its_saving_shortens_the_run(flow: Flow) -> None:
    """What is said to be saved is what the same program takes less without the step, exactly."""
    state = run_of(flow)
    found = summary_of(state)
    for path in found.paths:
        shorter = took(state) - took(run_of(without(flow, path.path)))
        assert path.saving == pytest.approx(shorter, abs=2e-6), path.path
        if not path.critical:  # not on the critical path
            assert shorter == pytest.approx(0, abs=2e-6)
            assert path.path not in [each.path for each in found.advice]


@given(st.lists(flows(), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_the_first_advice_saves_most(programs: list[Flow]) -> None:
    """No single step, taken out of all runs, shortens them by more than the one named first."""
    states = [run_of(flow, START + i) for i, flow in enumerate(programs)]
    found = summary_of(*states)
    total = sum(map(took, states))
    shorter = {
        path.path: total - sum(took(run_of(without(flow, path.path))) for flow in programs)
        for path in found.paths
    }
    best = max(shorter.values())
    if best > 0.02 * total:
        first = found.advice[0]
        assert shorter[first.path] == pytest.approx(best, abs=1e-5)
        assert first.saving * len(states) == pytest.approx(best, abs=1e-5)
        assert first.share == pytest.approx(first.saving / found.duration.mean)


def test_advice_in_words() -> None:
    """The advice names the path, how often it was critical, and what it would save of what."""
    copy = Flow("inFlight", 0, [Flow("copy", 41), Flow("notify", 1)], at_once=True)
    found = summary_of(run_of(Flow("move", 0, [Flow("plan", 54), copy])))
    assert [(each.path, each.text) for each in found.advice] == [
        (
            "plan",
            "`plan` is on the critical path in 100 % of 1 run; taken out, it would shorten a run "
            "by 54.0 s of 1 min 35 s on average",
        ),
        (
            "inFlight/copy",
            "`inFlight/copy` is on the critical path in 100 % of 1 run; taken out, it would "
            "shorten a run by 40.0 s of 1 min 35 s on average",
        ),
    ]


@given(flows())
@settings(max_examples=100, deadline=None)
def test_one_row_together_is_itself(flow: Flow) -> None:
    """What one step saves by putting the run together again is what its row says."""
    drawn = timeline(run_of(flow), now=LATER)
    for row in drawn.rows:
        again = saving_together(drawn, [row, Row("", "another", 0)])
        assert again == pytest.approx(row.saving, abs=2e-6)


def test_items_save_together() -> None:
    """Items that take equally long save nothing one by one, and all of it together."""
    items = Flow("map", 0, [Flow(f"vm-{i}", 10) for i in range(20)], at_once=True)
    state = run_of(Flow("flow", 0, [Flow("first", 5), items]))
    assert all(row.saving == 0 for path, row in rows_by_path(state).items() if "vm" in path)
    assert summary_of(state).path("map/vm-*").saving == pytest.approx(10)


# --- sums ---------------------------------------------------------------------------------------


def history(rng: random.Random, start: float, items: int) -> State:
    """A run with attempts, waits, interruptions, failures, and a map of so many items."""
    root = State("flow", _started=moment(start), run=RunRecord(1))
    root.states = []
    now = start
    for name in ("plan", "copy", "mail"):
        step = State(name, _started=moment(now), place=len(root.states))
        kinds = rng.choices(["retrying", "waiting", "interrupted"], k=rng.randint(0, 3))
        if kinds:
            found = [Phase("working", moment(now))]
            for kind in kinds:
                now += rng.randint(1, 9)
                found.append(Phase(kind, moment(now)))  # type: ignore[arg-type]
                now += rng.randint(1, 9)
                found.append(Phase("working", moment(now)))
            step.detail = Detail(phases=found, attempt=1 + kinds.count("retrying"))
        now += rng.randint(1, 20)
        step._done = moment(now)
        root.states.append(step)
    every = State("map", _started=moment(now), place=3)
    begun = now
    every.states = []
    for item in range(items):
        end = begun + rng.randint(1, 30)
        child = State(f"vm-{item}", _started=moment(begun), _done=moment(end), place=item)
        if rng.random() < 0.1:
            child.errs, child.detail = ["no"], Detail(failure=Failure("no", ("a.Boom", "b.Base")))
        every.states.append(child)
        now = max(now, end)
    every._done = moment(now)
    root.states.append(every)
    if rng.random() < 0.8:
        root._done = moment(now + rng.randint(0, 5))
    return root


HISTORIES = st.builds(
    lambda seed, count: [
        history(random.Random(f"{seed}.{i}"), START + 1000 * i, 2 + (seed + i) % 4)
        for i in range(count)
    ],
    st.integers(0, 10**6),
    st.integers(1, 12),
)


@given(HISTORIES)
@settings(max_examples=50, deadline=None)
def test_sums_over_paths_are_sums_over_timelines(states: list[State]) -> None:
    """What all paths have in total is what the rows of all ended runs have."""
    found = summary_of(*states)
    drawn = [timeline(state, now=LATER) for state in states]
    ended = [each for each in drawn if each.end is not None]
    rows = [row for each in ended for row in each.rows]
    assert found.time == pytest.approx(sum(each.span for each in ended))
    assert found.wasted == pytest.approx(sum(each.wasted for each in ended))
    for name, of_row in {
        "time": lambda row: row.span,
        "own": lambda row: row.own,
        "waited": lambda row: row.waited + row.backed_off,
        "idle": lambda row: row.idle,
        "failed_work": lambda row: row.failed_work,
        "lost_work": lambda row: row.lost_work,
        "critical": lambda row: row.critical_time,
    }.items():
        of: Callable[[Row], float] = of_row
        assert sum(getattr(path, name) for path in found.paths) == pytest.approx(sum(map(of, rows)))
    if ended:
        assert sum(path.critical_share for path in found.paths) == pytest.approx(1)
    for row in (row for each in drawn for row in each.rows if row.path == "copy"):
        assert row.attempt <= found.path("copy").max_attempts
    assert sum(path.executions for path in found.paths) == sum(len(each.rows) for each in drawn)
    for path in found.paths:
        counts = (path.done, path.failed, path.pending, path.proceeding, path.interrupted)
        assert path.executions == sum(counts) + path.reopened
        assert path.executions == sum(count for _, count in path.attempts)


def alike(mine: object, theirs: object) -> bool:
    """Whether two values are equal but for rounding."""
    if isinstance(mine, float) and isinstance(theirs, float):
        return math.isclose(mine, theirs, rel_tol=1e-9, abs_tol=1e-6)
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return mine.keys() == theirs.keys() and all(alike(mine[k], theirs[k]) for k in mine)
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple):
        same = len(mine) == len(theirs)
        return same and all(alike(a, b) for a, b in zip(mine, theirs, strict=True))
    return mine == theirs


def collect(states: Sequence[State], order: Sequence[int]) -> Statistics:
    """Statistics of runs that are added in this order."""
    stats = Statistics()
    for place in order:
        stats.add(states[place], run_id=f"run-{place}", now=LATER)
    return stats


@given(HISTORIES, st.randoms(use_true_random=False), st.integers(0, 12))
@settings(max_examples=50, deadline=None)
def test_neither_order_nor_merging_matters(
    states: list[State], rng: random.Random, split: int
) -> None:
    """Runs added in any order, or to several statistics that are merged, come to the same."""
    order = list(range(len(states)))
    expected = msgspec.to_builtins(collect(states, order).summary())
    rng.shuffle(order)
    merged = collect(states, order[:split])
    merged.merge(collect(states, order[split:]))
    for found in (collect(states, order), merged):
        assert alike(msgspec.to_builtins(found.summary()), expected)


# --- percentiles, trends ------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.integers(0, 50))
@settings(max_examples=100, deadline=None)
def test_percentiles_are_measured_values(values: list[float], zeros: int) -> None:
    """A percentile is the least value that so many per cent do not exceed, and exact."""
    samples = Samples()
    samples.values.extend(values)
    samples.owners.extend(range(len(values)))
    every = [*values, *[0.0] * zeros]
    found = samples.spread(zeros=zeros)
    assert (found.count, found.max, found.error) == (len(every), max(every), 0)
    assert found.mean == pytest.approx(math.fsum(every) / len(every))
    for share, point in ((50, found.p50), (95, found.p95), (99, found.p99)):
        assert point in every
        assert 100 * sum(value <= point for value in every) >= share * len(every)
        assert 100 * sum(value < point for value in every) < share * len(every)


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_very_many_values_keep_their_bound(seed: int, parts: int) -> None:
    """Beyond the bound percentiles are off by at most what is said, and memory grows no more."""
    rng = random.Random(seed)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(samples_module, "MOST_EXACT", 500)
        whole, every = Samples(), []
        for part in range(parts):
            samples = Samples()
            for _ in range(4):
                fresh = [rng.lognormvariate(0, 3) * (rng.random() > 0.1) for _ in range(300)]
                every.extend(fresh)
                samples.owners.extend(range(len(samples), len(samples) + 300))
                samples.values.extend(fresh)
                samples.compact()
                assert len(samples.values) == len(samples.owners) <= 500
            whole.absorb(samples, 1200 * part)
        found = whole.spread()
    every.sort()
    assert (found.count, found.max, found.error) == (len(every), every[-1], ERROR)
    assert found.mean == pytest.approx(math.fsum(every) / len(every))
    for share, point in ((0.5, found.p50), (0.95, found.p95), (0.99, found.p99)):
        exact = every[math.ceil(share * len(every) - 1e-9) - 1]
        assert point == pytest.approx(exact, rel=ERROR * 1.0001)


def trend_of(durations: Sequence[float], order: Sequence[int] | None = None) -> PathStatistics:
    """A step that took this long in one run after the other, added in this order."""
    stats = Statistics()
    for place in order or range(len(durations)):
        stats.add(run_of(Flow("flow", 0, [Flow("work", durations[place])]), START + place * 100))
    return stats.summary().function("flow").path("work")


def test_trend() -> None:
    """A change of the last quarter's median is told, and said to be one only beyond chance."""
    rng = random.Random(7)
    noise = [round(10 * rng.lognormvariate(0, 0.3), 3) for _ in range(400)]
    steady = trend_of(noise).trend
    assert steady is not None
    assert not steady.significant
    slower = [d * (1.5 if place >= 300 else 1) for place, d in enumerate(noise)]
    order = list(range(400))
    rng.shuffle(order)
    for found in (trend_of(slower).trend, trend_of(slower, order).trend):
        assert found is not None
        assert found.significant
        assert found.change == pytest.approx(0.5, abs=0.12)
        assert found.recent == pytest.approx(sorted(slower[300:])[49])
    assert trend_of(noise[:60]).trend is None  # too few to tell


# --- folding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("notify", None),
        ("let DNS settle", None),
        ("db-3", "db-*"),
        ("nic12", "nic*"),
        ("17", "*"),
        ("i-0a1b2c3d4e5f", "i-*"),
        ("8f14e45f-ceea-467a-9575-6a2e0fd2b8a1", "*-ceea-*-*-*"),
        ("eu-west-1/vm_7", "eu-west-*/vm_*"),
    ],
)
def test_patterns_of_names(name: str, pattern: str | None) -> None:
    """Numbers and ids in a name are what differs between items."""
    assert pattern_of(name) == pattern


def paths_of(*flows: Flow) -> list[str]:
    """The paths that statistics tell apart."""
    return sorted(path.path for path in summary_of(*map(run_of, flows)).paths)


def test_items_at_once_are_folded() -> None:
    """Names that differ in numbers are one path as soon as two were under way at once."""
    one = Flow("flow", 0, [Flow("a/b", 0, [Flow("vm-1", 0, [Flow("x", 1)])])])
    two = [Flow("vm-1", 0, [Flow("x", 1)]), Flow("vm-2", 0, [Flow("x", 1), Flow("y", 1)])]
    many = Flow("flow", 0, [Flow("a/b", 0, two, at_once=True)])
    folded = ["", "a~1b", "a~1b/vm-*", "a~1b/vm-*/x", "a~1b/vm-*/y"]
    assert paths_of(one) == ["", "a~1b", "a~1b/vm-1", "a~1b/vm-1/x"]
    assert paths_of(one, many) == paths_of(many, one) == folded
    found = summary_of(run_of(one), run_of(many)).path("a~1b/vm-*/x")
    assert (found.runs, found.executions, found.folded) == (2, 3, True)


def test_numbered_steps_of_the_code_stay_apart() -> None:
    """A few numbered steps in a row are the code's; very many are items."""

    def sequence(count: int) -> Flow:
        return Flow("flow", 0, [Flow(f"step {i}", 1) for i in range(count)])

    assert len(paths_of(sequence(module.MOST_ALIKE))) == 1 + module.MOST_ALIKE
    assert paths_of(sequence(module.MOST_ALIKE + 1)) == ["", "step *"]


def test_very_many_names_are_folded() -> None:
    """Whatever their names are, not more than so many paths are kept under one parent."""
    names = [f"{a}{b}" for a in "abcdefghijkl" for b in "abcdefghijkl"]
    folded = Flow("flow", 0, [Flow("#0", 1), *[Flow(name, 1) for name in names]])
    assert paths_of(folded) == ["", "#0", "*"]
    found = summary_of(*[run_of(Flow("flow", 0, [Flow(name, 1)])) for name in names]).path("*")
    assert (found.runs, found.executions) == (len(names), len(names))


def test_planned_steps_are_never_folded() -> None:
    """What a plan declares is of the code, whatever its name is."""
    names = [f"part-{i}" for i in range(30)]
    state = run_of(Flow("flow", 0, [Flow(name, 1) for name in names], at_once=True))
    state.detail = Detail(planned=[*names, "not begun"])
    assert len(summary_of(state).paths) == 31


# --- statuses, failures -------------------------------------------------------------------------


def test_runs_that_have_not_ended() -> None:
    """They count with what their steps came to, and have no durations."""
    ended = run_of(Flow("flow", 0, [Flow("copy", 2)]))
    open_ = run_of(Flow("flow", 0, [Flow("copy", 2)]))
    open_._done = None
    assert open_.states
    open_.states[0]._done = None
    found = summary_of(ended, open_)
    copy = found.path("copy")
    assert (found.runs, found.done, found.proceeding) == (2, 1, 1)
    assert (copy.runs, copy.done, copy.proceeding, copy.work.count) == (2, 1, 1, 1)
    assert copy.time == pytest.approx(2)
    assert summary_of(open_, held=False).interrupted == 1
    assert summary_of(open_).duration == Spread()


def failed(name: str, failure: Failure | None, *below: State) -> State:
    """A step that has failed."""
    node = State(name, _started=moment(START), _done=moment(START + 1), errs=["no"])
    node.detail = None if failure is None else Detail(failure=failure)
    node.states = list(below)
    return node


def test_failures_by_type() -> None:
    """A failure is counted by its type or kind, and a parent's by what was at its origin."""
    below = failed("copy", Failure("no", ("builtins.OSError", "builtins.Exception")))
    root = failed("flow", Failure("no", ("asteps.errors.StepError",), causes=("copy",)), below)
    late = failed("flow", Failure("late", ("x.Y",), kind="timeout"))
    foreign = failed("flow", None)
    for each in (root, late, foreign):
        each.run = RunRecord(1)
    found = summary_of(root, late, foreign)
    assert [(f.type, f.count, f.run_id, f.below) for f in found.path("").failures] == [
        ("builtins.OSError", 1, "run-0", True),
        ("not recorded", 1, "run-2", False),
        ("timeout", 1, "run-1", False),
    ]
    assert [f.type for f in found.path("copy").failures] == ["builtins.OSError"]
    assert found.failed == 3


@pytest.mark.parametrize(
    "name", ["go_done", "go_failed_deep", "go_dox", "go_async_undone_nested", "ours_all_features"]
)
def test_runs_that_were_stored_elsewhere(name: str) -> None:
    """Runs of the Go library can be added like any other, failed ones with their durations."""
    found = summary_of(State.decode((GOLDEN / f"{name}.json").read_bytes()))
    assert found.runs == 1
    assert found.duration.count == found.done + found.failed
    assert all(path.executions for path in found.paths)
    assert statistics_text(StatisticsSummary(1, (found,)))


# --- what it looks like -------------------------------------------------------------------------

HOSTILE = '=cmd|"\x1b[31m\u202e<script>alert(1)</script>'


def hostile() -> StatisticsSummary:
    """Statistics of runs that somebody gave bad names."""
    stats = Statistics()
    for place in range(3):
        flow = Flow("@flow\u2066", 0, [Flow(HOSTILE, 1), Flow("-1+1", 1)])
        stats.add(run_of(flow, START + place), run_id="+run\u202e", now=LATER)
    bad = failed("@flow\u2066", Failure("no", ("<b>\u202e",)))
    bad.run = RunRecord(1)
    stats.add(bad, run_id="<i>")
    return stats.summary()


def test_nothing_hostile_gets_out() -> None:
    """No output holds control or bidirectional characters, whatever names there are."""
    summary = hostile()
    for text in (
        statistics_text(summary),
        statistics_json(summary),
        statistics_csv(summary),
        statistics_html(summary, title=HOSTILE),
    ):
        assert not set(text) & {"\x1b", "\u202e", "\u2066"}


def test_json_comes_back() -> None:
    """The JSON decodes into the same summary."""
    summary = hostile()
    assert msgspec.json.decode(statistics_json(summary), type=StatisticsSummary) == summary


def test_csv() -> None:
    """One row per path, as RFC 4180 says, and no text that a spreadsheet would calculate."""
    summary = hostile()
    text = statistics_csv(summary)
    assert text.endswith("\r\n")
    head, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert [len(row) for row in rows] == [len(head)] * 3
    by_name = [dict(zip(head, row, strict=True)) for row in rows]
    assert {row["function"] for row in by_name} == {"'@flow\\u2066"}
    assert by_name[0]["path"] == ""
    assert {row["path"][:2] for row in by_name[1:]} == {"'=", "'-"}
    assert {row["slowest"] for row in by_name} == {"'+run\\u202e"}
    assert by_name[1]["work_p50"] == "1"
    assert by_name[0]["failures"] == "<b>\\u202e 1"


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_text_keeps_to_its_width(width: int) -> None:
    """No line is longer than it may be, however long names are."""
    stats = Statistics()
    stats.add(run_of(Flow("flow" * 30, 0, [Flow("名" * 100, 1), Flow("b" * 150, 5)])))
    lines = statistics_text(stats.summary(), width=width).splitlines()
    assert all(len(line) + line.count("名") <= width for line in lines)
    assert "What to optimise first" in lines
    assert statistics_text(Statistics().summary()) == "No runs.\n"


def test_html_is_one_closed_page() -> None:
    """The page loads nothing, has no inline handlers or styles, and names cannot become markup."""
    page = statistics_html(hostile())
    assert "<script>alert" not in page
    assert "default-src 'none'" in page
    assert "unsafe" not in page
    assert not re.search(r"<[^>]*\s(on\w+|style)\s*=", page)
    assert not re.search(r"(src|href)=[\"']?(https?:|//)", page)
    assert all(int(a) <= int(b) for a, b in pairwise(re.findall(r"<h(\d)", page)[:2]))


def test_html_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    """A browser shows the page without a complaint or a request, and sorts by a click or a key."""
    file = tmp_path / "statistics.html"
    steps = [Flow("a", 1), Flow("b", 5), Flow("c", 3), Flow(HOSTILE, 0.5)]
    stats = Statistics()
    stats.add(run_of(Flow("flow", 0, steps)))
    file.write_text(statistics_html(stats.summary(), title=HOSTILE), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1500, "height": 900})
    visit = Visit(page)
    page.goto(file.as_uri())
    table = page.locator("table.sortable").first

    def order() -> list[str]:
        return [name[:5] for name in table.locator("tbody tr td:first-child").all_inner_texts()]

    as_it_was = ["(run)", "a", "b", "c", "=cmd|"]
    assert order() == as_it_was
    button = table.get_by_role("button", name="saving")
    button.click()
    assert order() == ["b", "c", "a", "=cmd|", "(run)"]
    assert table.locator("th[aria-sort=descending]").inner_text() == "saving"
    button.press("Enter")
    assert order() == ["(run)", "=cmd|", "a", "c", "b"]
    button.press("Enter")
    assert order() == as_it_was
    assert visit.said == []
    assert visit.asked == [file.as_uri()]
    page.close()
