"""State that the Go library saved loads and resumes; what we save, Go reads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

import asteps
from asteps import Done, Failed, Failure, State, StateFormatError, Step, StepError
from asteps._failure import error_of
from asteps._history import Earlier, Phase
from asteps._paths import join, split
from asteps._state import Detail, Note, RunRecord

GOLDEN = Path(__file__).parent / "golden"
GO_FILES = {p.stem.removeprefix("go_"): p.read_bytes() for p in GOLDEN.glob("go_*.json")}
D, F, P, N = "done", "failed", "proceeding", "not started"


def load(name: str) -> State:
    """One of Go's files, as asteps reads it."""
    return State.decode(GO_FILES[name])


def word(node: State) -> str:
    """What a step came to."""
    return D if node.done else F if node.failed else P if node.proceeding else N


# --- what Go saved loads as what it means ---------------------------------------------------------

INITIALIZE = {"initialize": D, "initialize/initialize CVM": D, "initialize/initialize ENIs": D}
ACCOUNT = "preFlight/chkAccount"
NETWORK = "preFlight/chkNetwork"
QUOTA = "preFlight/chkQuota"
MIGRATE = "inFlight/migrateInstances"
MOVE_INFO = {
    "": "move a machine to another network",
    "initialize/initialize CVM": "must come before the migration",
    "initialize/initialize ENIs": {"count": 2, "ids": ["eni-1", "eni-2"]},
}
MOVED = {
    "": P,
    **INITIALIZE,
    "preFlight": D,
    ACCOUNT: D,
    NETWORK: D,
    QUOTA: D,
    "inFlight": D,
    MIGRATE: D,
}
PENDING = {"": P, **INITIALIZE, "preFlight": P, ACCOUNT: D, NETWORK: P}
FAILED = {"": F, **INITIALIZE, "preFlight": F, ACCOUNT: D, NETWORK: F}
RECOVERED = {**PENDING, NETWORK: N}
A_THEN_B = {"": P, "a": D, "b": P}
A_ALONE = {"": P, "a": D}
UNNAMED = {"": P, "#0": D, "named": D, "#2": D, "#3": P, "#3/#0": D, "#3/#1": P}
UNNAMED_INFO = {"#0": "first", "#2": "second", "#3/#0": "inner"}
NESTED = ["/".join(f"d{n}" for n in range(40, stop, -1)) for stop in range(39, -1, -1)]
FIVE = ["/".join(f"d{n}" for n in range(5, stop, -1)) for stop in range(4, -1, -1)]
NAMES = {"": P, "helloWorld": D, "Migrate-fm": D, "1": D}

# Of each file: what every node came to, in order; and every info.
ROWS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "unnamed_root": ({"": P, "a": D}, {}),
    "recovered": (RECOVERED, MOVE_INFO),
    "recovered_9332992": (RECOVERED, MOVE_INFO),
    "recovered_done": ({**MOVED, "inFlight": P, MIGRATE: N}, MOVE_INFO),
    "failed_deep": (dict.fromkeys(["", *FIVE], F), {}),
    "second_pass": (A_THEN_B, {"b": "b, pass 1"}),
    "second_pass_542c4fb": (A_THEN_B, {"b": "b, pass 1"}),
    "second_pass_4712570": (A_THEN_B, {"b": "b, pass 1"}),
    "second_pass_9332992": ({"": P, "a": D, "b": D, "c": D}, {"b": "b, pass 2"}),
    "second_pass_nested": (PENDING, MOVE_INFO),
    "second_pass_nested_542c4fb": (PENDING, MOVE_INFO),
    "second_pass_nested_4712570": (PENDING, MOVE_INFO),
    "second_pass_nested_9332992": (MOVED, MOVE_INFO),
    "second_pass_first": (A_ALONE, {"a": "a, pass 2"}),
    "second_pass_first_542c4fb": (A_ALONE, {"a": "a, pass 2"}),
    "second_pass_first_4712570": (A_ALONE, {"a": "a, pass 2"}),
    "second_pass_first_9332992": ({**A_ALONE, "b": D}, {"a": "a, pass 2", "b": "b ran"}),
    "third_pass_mixup": (A_ALONE, {"a": "a, pass 3"}),
    "third_pass_mixup_542c4fb": (A_ALONE, {"a": "a, pass 3"}),
    "third_pass_mixup_4712570": (A_ALONE, {"a": "a, pass 3"}),
    "third_pass_mixup_9332992": ({**A_ALONE, "b": D}, {"a": "a, pass 3", "b": "b ran"}),
    "async_done": (
        {
            "": P,
            "before": D,
            "group": D,
            "group/work1": D,
            "group/work2": D,
            "group/work3": D,
            "group/work3/inner": D,
            "after": D,
        },
        {"group/work1": "w1"},
    ),
    "async_done_542c4fb": (
        {"": P, "before": D, "work1": D, "work2": D, "work3": D, "work3/inner": D, "after": D},
        {"work1": "w1"},
    ),
    "async_done_4712570": ({"": P, "group~1work1": D, "after": D}, {"group~1work1": "w3"}),
    "async_one_by_one_4712570": (
        {"": P, "group~1work1": D, "group~1work2": D, "after": D},
        {},
    ),
    "async_undone": ({"": P, "group": P, "group/work1": P, "group/work2": D}, {}),
    "async_undone_542c4fb": ({"": P, "work1": P, "work2": D}, {}),
    "async_undone_nested": (
        {
            "": P,
            "parent": P,
            "parent/group": P,
            "parent/group/work1": P,
            "parent/group/work2": D,
            "next": D,
        },
        {},
    ),
    "async_second_pass": ({"": P, "group": P, "group/work1": D, "group/work2": P}, {}),
    "async_failed": (
        {"": F, "group": F, "group/work1": F, "group/work2": D, "group/work3": F},
        {},
    ),
    "async_failed_recovered": (
        {"": P, "group": P, "group/work1": F, "group/work2": D, "group/work3": N},
        {},
    ),
    # `g:h:w` is `w` of `g:h` or `h:w` of `g`: as written, the first colon counts.
    "async_two_groups": (
        {
            "": P,
            "g": D,
            "g/w": D,
            "g/#1": D,
            "g/h": D,
            "g/h/w": D,
            "g/h/x": D,
            "g/h/x/y": D,
            "g/plain": D,
        },
        {},
    ),
    "dox": (UNNAMED, UNNAMED_INFO),
    "dox_542c4fb": (UNNAMED, UNNAMED_INFO),
    "dox_4712570": (UNNAMED, UNNAMED_INFO),
    "dox_9332992": ({"": P, "#0": D, "named": D}, {"#0": "first"}),
    "dox_second_pass": ({"": P, "#0": D, "#1": P}, {"#0": "first", "#1": "second"}),
    "info": (
        {"": P, **{f"info {n}": D for n in range(17)}},
        {
            "info 1": "task-1",
            "info 2": "",
            "info 3": ["10.0.0.1", "10.0.0.2"],
            "info 4": [],
            "info 6": {"b": 1, "a": {"nil": None}},
            "info 7": {"ID": "x", "done": True},
            "info 8": 42,
            "info 9": 0,
            "info 10": -1.5,
            "info 11": 1e21,
            "info 12": 9007199254740993,
            "info 13": True,
            "info 14": False,
            "info 15": "AP8=",
            "info 16": "2022-03-19T08:54:44.000000005Z",
        },
    ),
    "escapes": (
        {"": F, "\u00fcml\u00e4ut \U0001f600 \u2028": D, "bad": F},
        {"\u00fcml\u00e4ut \U0001f600 \u2028": "</script> & \u2029 \\ \t \0 \x7f"},
    ),
    "same_names": (A_ALONE, {"a": "first"}),
    "root_done_early": (A_ALONE, {}),
    "midway": (A_ALONE, {}),
    "midway_4712570": ({"": P, "a": D, "b": P, "b/b1": D, "b/b2": P}, {}),
    "panicked": (A_ALONE, {}),
    "fail_then_done": ({"": P, "chkAccount": D}, {}),
    "parent_done_over_failed": ({"": F, "parent": D, "parent/child": F, "next": D}, {}),
    "parent_done_over_pending": ({"": P, "parent": P, "parent/child": P, "next": D}, {}),
    "parent_failed_itself": ({"": F, "parent": F, "parent/child": D}, {}),
    "empty_error": ({"": F, "a": F}, {}),
    "deep40": (dict.fromkeys(["", *NESTED], D) | {"": P}, {}),
    "times": (
        {
            "": P,
            **dict.fromkeys(
                [
                    "nanoseconds",
                    "rounds up",
                    "trimmed",
                    "whole second",
                    "before 1970",
                    "done before started",
                    "done, never started",
                    "zero",
                    "last",
                ],
                D,
            ),
        },
        {},
    ),
    "readme": (
        FAILED,
        {
            "": "move cvm to another vpc",
            "initialize/initialize CVM": "MUST init CVM before migration",
            "initialize/initialize ENIs": "this is an optional steps, so always set it done",
            ACCOUNT: "check whether account usable or not",
            NETWORK: "check if network is good for migration",
        },
    ),
    "k8s_status": (
        PENDING,
        {path: {} for path in PENDING} | {path: {"content": v} for path, v in MOVE_INFO.items()},
    ),
}
for _version in ("", "_9332992", "_542c4fb", "_4712570"):  # where all four agree
    ROWS |= {
        f"root_only{_version}": ({"": N}, {}),
        f"done{_version}": (MOVED, MOVE_INFO),
        f"pending{_version}": (PENDING, MOVE_INFO),
        f"failed{_version}": (FAILED, MOVE_INFO),
        f"second_pass_failed{_version}": (FAILED, MOVE_INFO),
        f"dor{_version}": (NAMES, {}),
    }
REFUSED = {
    "deep60": "nested deeper than 50 steps",
    "odd_names": "kept for asteps",
    "sstate_done_4712570": "not a state of asteps or of steps",
    "sstate_failed_4712570": "not a state of asteps or of steps",
    "sstate_pending_4712570": "not a state of asteps or of steps",
}


def test_every_file_of_go_has_a_row() -> None:
    """No golden file is without an expectation."""
    assert set(GO_FILES) == {*ROWS, *REFUSED}


@pytest.mark.parametrize("name", ROWS)
def test_a_state_that_go_saved_loads_as_what_it_means(name: str) -> None:
    """Every step is done, failed, proceeding or new as its README row says; every info is there."""
    steps, infos = ROWS[name]
    state = load(name)
    assert [(path, word(node)) for path, node in state.walk()] == list(steps.items())
    found = {p: json.loads(bytes(n.info)) for p, n in state.walk() if bytes(n.info)}
    assert found == infos
    assert all(not bytes(n.result) for _, n in state.walk())
    assert state.run == RunRecord(1)
    places = [[c.place for c in n.states or ()] for _, n in state.walk()]
    assert all(found == list(range(len(found))) for found in places)
    assert State.decode(state.encode()) == state  # and from then on it is one of ours
    assert state.name == json.loads(GO_FILES[name])["name"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_state_that_cannot_be_meant_is_refused(name: str) -> None:
    """Too deep, kept names and another format are refused, and what is said says why."""
    with pytest.raises(StateFormatError) as caught:
        load(name)
    assert REFUSED[name] in str(caught.value)


def test_another_format_of_gos_is_not_read_as_nothing_has_run() -> None:
    """The message about an SState names the key that it has and no State has."""
    with pytest.raises(StateFormatError, match="unknown field `status`"):
        load("sstate_done_4712570")


ERRS = {
    "failed": {
        "": ["chkNetwork: chkNetwork: no route", "preFlight: chkNetwork: no route"],
        "preFlight": ["chkNetwork: no route"],
        NETWORK: ["no route"],
    },
    "failed_9332992": {"": ["no route"], "preFlight": ["no route"], NETWORK: ["no route"]},
    "empty_error": {"": ["a: "], "a": [""]},
    "escapes": {
        "": ["bad: bytes \ufffd\ufffd are no UTF-8"],
        "bad": ["bytes \ufffd\ufffd are no UTF-8"],
    },
    "async_failed": {
        "": ["group:work1: one", "group:work3: three"],
        "group": ["work1: one", "work3: three"],
        "group/work1": ["one"],
        "group/work3": ["three"],
    },
    "parent_done_over_failed": {"": ["child: child: boom"], "parent/child": ["boom"]},
    "readme": {path: ["Can't check network"] for path in ("", "preFlight", NETWORK)},
    "fail_then_done": {},
    "recovered": {},
}


@pytest.mark.parametrize("name", ERRS)
def test_errors_are_those_that_go_saved(name: str) -> None:
    """``err`` and ``errs`` arrive as they are; an empty ``err`` is none, an empty item is one."""
    assert {p: n.errs for p, n in load(name).walk() if n.errs} == ERRS[name]


def test_a_failure_of_go_is_read_as_an_error_of_ours() -> None:
    """Forty-two errors for one failure are one `StepError`, whose origin is the innermost step."""
    state = load("failed_deep")
    assert len(state.errs or ()) == 42
    error = error_of(state, "")
    assert error.origin == "d5/d4/d3/d2/d1"


def test_times_are_instants_to_the_microsecond() -> None:
    """Nanoseconds are rounded, zones are honoured, and the first and the last year load."""
    state = load("times")
    spans = {n.name: (n.started_at, n.done_at) for _, n in state.walk()}
    at = datetime(2022, 3, 19, 8, 54, 44, tzinfo=UTC)
    one = timedelta(seconds=1)
    precise = at.replace(microsecond=826_117)
    assert spans == {
        "times": (precise, None),
        "nanoseconds": (precise, precise),
        "rounds up": (at + one, at + one),
        "trimmed": (at.replace(microsecond=826_120), at.replace(microsecond=900_000)),
        "whole second": (at, at + one),
        "before 1970": (
            datetime(1969, 12, 31, 23, 59, 59, 500_000, UTC),
            datetime(1970, 1, 1, tzinfo=UTC),
        ),
        "done before started": (at + one, at),
        "done, never started": (at, at),  # what is done has begun
        "zero": (datetime(1, 1, 1, tzinfo=UTC),) * 2,
        "last": (datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC),) * 2,
    }


def go(*states: dict[str, Any], **keys: Any) -> State:
    """A state as Go would have saved it."""
    return State.decode(json.dumps({"name": "t", **keys, "states": list(states)}))


def test_odd_names_of_go_that_are_allowed_load() -> None:
    """Dots, slashes, tildes, blanks and 200 umlauts are names like any other, with paths."""
    document = json.loads(GO_FILES["odd_names"])
    names = ["a/b", "a.b", "a~b", "a~1b", " ", "\u00e4" * 200]
    odd = [c for c in document["states"] if c["name"] not in names]
    assert [c["name"] for c in odd] == ["#0", "$end", "tab\there", "n" * 201]
    document["states"] = [c for c in document["states"] if c["name"] in names]
    state = State.decode(json.dumps(document))
    assert [p for p, _ in state.walk()] == ["", "a~1b", "a.b", "a~0b", "a~01b", " ", "\u00e4" * 200]
    for child in odd:  # refused rather than lost in silence
        with pytest.raises(StateFormatError, match="has a step named"):
            go(child)


@pytest.mark.parametrize("odd", ["#0", "#1", "$end", "g:#0", "g:#1", "g:$end"])
def test_no_name_of_go_is_taken_for_one_of_ours(odd: str) -> None:
    """A Go step called like a numbered one or like ``$end`` is refused: it would be lost."""
    group = "g:" if ":" in odd else ""
    with pytest.raises(StateFormatError, match="kept for asteps"):
        go({"name": group}, {"name": group, "startedAt": "2022-01-01T00:00:00Z"}, {"name": odd})


def test_unnamed_steps_that_began_together_are_told_apart() -> None:
    """Go's clock has nanoseconds: steps 100 of them apart are two, equal ones are a copy."""
    start = "2022-01-01T00:00:00.000000%03dZ"
    steps = [{"name": "", "startedAt": start % n, "info": n} for n in (100, 200, 300, 100)]
    assert [c.info_as(int) for c in go(*steps).states or ()] == [100, 200, 300]


def test_an_inner_parent_without_errors_over_done_children_is_done() -> None:
    """``errs: null`` and ``doneAt`` is how Go writes a parent that was never marked itself."""
    done = {"startedAt": "2022-01-01T00:00:00Z", "doneAt": "2022-01-01T00:00:01Z", "errs": None}
    state = go({"name": "p", **done, "states": [{"name": "c", **done}]}, **done)
    assert [word(n) for _, n in state.walk()] == [P, D, D]
    undone = {"name": "d", "startedAt": "2022-01-01T00:00:00Z"}
    state = go({"name": "p", **done, "states": [{"name": "c", **done}, undone]}, **done)
    assert [word(n) for _, n in state.walk()] == [P, P, D, P]


def test_a_group_of_the_name_of_a_step_stays_flat() -> None:
    """Where a sibling has the group's name, ``g:w`` is a step of that name."""
    assert [p for p, _ in go({"name": "g:w"}, {"name": "g"}).walk()] == ["", "g:w", "g"]


# --- what Go saved resumes ------------------------------------------------------------------------

Body = Callable[[Step], Awaitable[None]]


class Flow:
    """Bodies that write down where they ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    async def leaf(self, s: Step) -> None:
        self.ran.append(s.path)

    def of(self, *children: str | tuple[str, Body], collect: bool = False) -> Body:
        """A body of these children; with ``collect`` a failed one does not keep the next back."""

        async def body(s: Step) -> None:
            self.ran.append(s.path)
            errors = []
            for child in children:
                name, fn = (child, self.leaf) if isinstance(child, str) else child
                try:
                    result: object = await s.do(name, fn)
                except StepError as error:
                    if not collect:
                        raise
                    errors.append(error)
                else:
                    assert result is None  # Go keeps no results
            if errors:
                raise ExceptionGroup("children failed", errors)

        return body

    def move(self) -> Body:
        return self.of(
            ("initialize", self.of("initialize CVM", "initialize ENIs")),
            ("preFlight", self.of("chkAccount", "chkNetwork", "chkQuota")),
            ("inFlight", self.of("migrateInstances")),
        )

    def group(self) -> Body:
        return self.of("work1", "work2", ("work3", self.of("inner")), collect=True)


FLOWS: dict[str, Callable[[Flow], Body]] = {
    "move": Flow.move,
    "again": lambda f: f.of("a", "b", "c"),
    "async": lambda f: f.of("before", ("group", f.group()), "after"),
    "workers": lambda f: f.of(("group", f.of("work1", "work2")), "after"),
    "parents": lambda f: f.of(("parent", f.of(("group", f.of("work1", "work2")))), "next"),
    "slashes": lambda f: f.of("group/work1", "group/work2", "after"),
    "unnamed": lambda f: f.of("", "named", "", ("", f.of("", ""))),
    "three unnamed": lambda f: f.of("", "", ""),
    "by function": lambda f: f.of("helloWorld", "Migrate-fm", "1"),
    "handled": lambda f: f.of(("parent", f.of("child")), "next"),
    "midway": lambda f: f.of("a", ("b", f.of("b1", "b2"))),
    "deep": lambda f: f.of(("d40", _down(f, 39))),
}


def _down(flow: Flow, n: int) -> Body:
    return flow.of((f"d{n}", _down(flow, n - 1)) if n > 1 else "d1")


NOT_CHECKED = [NETWORK, QUOTA, "inFlight", MIGRATE]
FROM_NETWORK = ["", "preFlight", *NOT_CHECKED]
# File, flow, and the bodies that run on the next pass: only what is undone, and what is above it.
RESUMED = [
    ("root_only", "by function", ["", "helloWorld", "Migrate-fm", "1"]),
    ("done", "move", [""]),
    ("done_9332992", "move", [""]),
    ("done_4712570", "move", [""]),
    ("pending", "move", FROM_NETWORK),
    ("pending_9332992", "move", FROM_NETWORK),
    ("pending_542c4fb", "move", FROM_NETWORK),
    ("pending_4712570", "move", FROM_NETWORK),
    ("k8s_status", "move", FROM_NETWORK),
    ("recovered", "move", FROM_NETWORK),
    ("recovered_9332992", "move", FROM_NETWORK),
    ("recovered_done", "move", ["", "inFlight", MIGRATE]),
    ("second_pass", "again", ["", "b", "c"]),
    ("second_pass_542c4fb", "again", ["", "b", "c"]),
    ("second_pass_4712570", "again", ["", "b", "c"]),
    ("second_pass_9332992", "again", [""]),
    ("second_pass_nested", "move", FROM_NETWORK),
    ("second_pass_nested_9332992", "move", [""]),
    ("second_pass_first", "again", ["", "b", "c"]),
    ("second_pass_first_9332992", "again", ["", "c"]),
    ("third_pass_mixup", "again", ["", "b", "c"]),
    ("third_pass_mixup_9332992", "again", ["", "c"]),
    ("async_done", "async", [""]),
    ("async_undone", "workers", ["", "group", "group/work1", "after"]),
    (
        "async_undone_nested",
        "parents",
        ["", "parent", "parent/group", "parent/group/work1"],
    ),
    ("async_second_pass", "workers", ["", "group", "group/work2", "after"]),
    ("async_one_by_one_4712570", "slashes", [""]),
    ("async_done_4712570", "slashes", ["", "group~1work2"]),
    ("dox", "unnamed", ["", "#3", "#3/#1"]),
    ("dox_542c4fb", "unnamed", ["", "#3", "#3/#1"]),
    ("dox_4712570", "unnamed", ["", "#3", "#3/#1"]),
    ("dox_9332992", "unnamed", ["", "#2", "#3", "#3/#0", "#3/#1"]),
    ("dox_second_pass", "three unnamed", ["", "#1", "#2"]),
    ("dor", "by function", [""]),
    ("same_names", "again", ["", "b", "c"]),
    ("root_done_early", "again", ["", "b", "c"]),
    ("midway", "midway", ["", "b", "b/b1", "b/b2"]),
    ("midway_4712570", "midway", ["", "b", "b/b2"]),
    ("panicked", "midway", ["", "b", "b/b1", "b/b2"]),
    ("parent_done_over_pending", "handled", ["", "parent", "parent/child"]),
    ("deep40", "deep", [""]),
]


@pytest.mark.parametrize(("name", "flow", "ran"), RESUMED, ids=[name for name, *_ in RESUMED])
async def test_only_what_is_undone_runs(name: str, flow: str, ran: list[str]) -> None:
    """The same flow finishes what Go began: what was done stays done, the rest runs once."""
    bodies = Flow()
    state = load(name)
    known = {path: node.info for path, node in state.walk() if node.done}
    outcome = await asteps.reconcile(FLOWS[flow](bodies), state=state, name="moved")
    assert isinstance(outcome, Done)
    assert bodies.ran == ran
    assert outcome.vanished == ()
    assert all(node.done for _, node in state.walk())
    assert {path: state.get(path).info for path in known} == known
    again = Flow()
    outcome = await asteps.reconcile(
        FLOWS[flow](again), state=State.decode(state.encode()), name="moved"
    )
    assert isinstance(outcome, Done)
    assert again.ran == []


# File, flow, where it failed, what recover() gives, and the bodies that run then.
RECOVERS = [
    ("failed", "move", NETWORK, [NETWORK, "preFlight", ""], FROM_NETWORK),
    ("failed_9332992", "move", NETWORK, [NETWORK, "preFlight", ""], FROM_NETWORK),
    ("failed_542c4fb", "move", NETWORK, [NETWORK, "preFlight", ""], FROM_NETWORK),
    ("failed_4712570", "move", NETWORK, [NETWORK, "preFlight", ""], FROM_NETWORK),
    ("second_pass_failed", "move", NETWORK, [NETWORK, "preFlight", ""], FROM_NETWORK),
    ("readme", "move", NETWORK, [NETWORK, "preFlight", ""], FROM_NETWORK),
    (
        "async_failed",
        "workers",
        "group/work1",
        ["group/work1", "group/work3", "group", ""],
        ["", "group", "group/work1", "after"],
    ),
    ("parent_done_over_failed", "handled", "", [""], [""]),
    ("parent_failed_itself", "handled", "parent", ["parent", ""], ["", "parent", "next"]),
    ("empty_error", "again", "a", ["a", ""], ["", "a", "b", "c"]),
]


@pytest.mark.parametrize(
    ("name", "flow", "origin", "paths", "ran"), RECOVERS, ids=[name for name, *_ in RECOVERS]
)
async def test_a_failed_state_of_go_raises_until_it_is_recovered(
    name: str, flow: str, origin: str, paths: list[str], ran: list[str]
) -> None:
    """Nothing runs in a failed run; recovered, exactly the failed steps and the rest run."""
    bodies = Flow()
    state = load(name)
    for _ in range(2):
        outcome = await asteps.reconcile(FLOWS[flow](bodies), state=state, name="moved")
        assert isinstance(outcome, Failed)
        assert outcome.error.origin == origin
        assert outcome.error.failure.message == "; ".join(state.errs or ())
    with pytest.raises(StepError):
        await asteps.run(FLOWS[flow](bodies), state=state, name="moved")
    assert bodies.ran == []
    assert state.recover() == paths
    done = await asteps.reconcile(FLOWS[flow](bodies), state=state, name="moved")
    assert isinstance(done, Done)
    assert bodies.ran == ran


async def test_a_half_recovered_state_of_go_still_fails() -> None:
    """Go recovers the last sibling alone: it runs, and the other's failure stands."""
    bodies = Flow()
    state = load("async_failed_recovered")
    outcome = await asteps.reconcile(
        bodies.of(("group", bodies.group())), state=state, name="moved"
    )
    assert isinstance(outcome, Failed)
    assert bodies.ran == ["", "group", "group/work3", "group/work3/inner"]
    assert state.recover() == ["group/work1", "group", ""]


async def test_a_changed_flow_is_told_what_vanished() -> None:
    """Steps of Go's that the new code does not have are listed, and stay in the tree."""
    bodies = Flow()
    state = load("done")
    outcome = await asteps.reconcile(
        bodies.of("chkNetwork", ("inFlight", bodies.leaf)), state=state, name="moved"
    )
    assert isinstance(outcome, Done)
    assert bodies.ran == ["", "chkNetwork"]
    assert outcome.vanished == ("initialize", "preFlight")
    assert state.get(NETWORK).done


# --- what we save, Go reads -----------------------------------------------------------------------

GO_KEYS = {"name", "info", "errs", "startedAt", "doneAt", "states"}
ALL_FEATURES = GOLDEN / "ours_all_features.json"
READ_BY_GO = GOLDEN / "ours_all_features.read.txt"  # what read.go printed of it


def all_features() -> State:
    """A tree in which every key has a value that it would not have anyway."""
    east = timezone(timedelta(hours=5, minutes=45))
    t0 = datetime(2024, 2, 29, 12, tzinfo=UTC)
    t1 = datetime(2024, 2, 29, 17, 45, 1, 234_560, east)
    failure = Failure(
        "no route <to> & \u2028 \U0001f600",
        ("mycloud.errors.NoRoute", "builtins.OSError"),
        '  File "move.py", line 7, in check\nNoRoute: no route\n',
        "timeout",
        final=True,
        causes=("in/ner", "b"),
    )
    detail = Detail(
        generation=1,
        attempt=3,
        interruptions=2,
        failure=failure,
        wake_at=t1,
        why="until the DNS has settled",
        inputs="0f",
        first_at=t0,
        once=True,
        token_name="old name",
        renames=1,
        items=True,
        planned=["in/ner", "b"],
        phases=[Phase("working", t0), Phase("waiting", t1, 3, 0.25)],
        earlier=Earlier(t0, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7),
    )
    infos = [b'"task-1"', b'{"b":[1,2.5,{"c":null}],"a":true}', b"null", b"9007199254740993", b"[]"]
    leaves = [
        State(
            f"info {place}",
            info=msgspec.Raw(info),
            result=msgspec.Raw(b'{"image":"img-1","size":[1,2]}' if place else b"null"),
            _started=t0,
            _done=t1,
            place=place,
        )
        for place, info in enumerate(infos)
    ]
    return State(
        "move",
        info=msgspec.Raw(b'"move a machine"'),
        _started=t0,
        states=[
            State("infos", result=msgspec.Raw(b"[]"), _started=t0, _done=t1, states=leaves),
            State(
                "fa/il~ed \u00e4<b>",
                errs=[failure.message],
                _started=t0,
                _done=t1,
                states=[State("in/ner", errs=["x"], _started=t0, _done=t0)],
                place=1,
                detail=detail,
            ),
            State(
                "retrying",
                errs=["once more"],
                _started=t0,
                place=2,
                detail=Detail(attempt=2, failure=Failure("once more"), wake_at=t1),
            ),
            State("pending", _started=t0, place=3, detail=Detail(wake_at=t1, why="not yet")),
            State("reset", place=4, detail=Detail(generation=1)),
            State("$end", result=msgspec.Raw(b"null"), _started=t1, _done=t1, place=5),
        ],
        run=RunRecord(
            1, "00ff", "move", "ab", "cd", 1, t0, [Note(t1, "recovered b", "ann")], {"key": "text"}
        ),
    )


def nodes(found: object) -> Iterator[msgspec.Struct]:
    """Every Struct in a tree."""
    if isinstance(found, msgspec.Struct):
        yield found
        for name in found.__struct_fields__:
            yield from nodes(getattr(found, name))
    elif isinstance(found, list | tuple):
        for item in found:
            yield from nodes(item)


def test_the_tree_of_all_features_has_them_all() -> None:
    """No field of the format is at its default in all of the tree; a new one has to come in."""
    for kind in (State, Detail, RunRecord, Failure, Phase, Earlier, Note):
        found = [n for n in nodes(all_features()) if type(n) is kind]
        for field in msgspec.structs.fields(kind):
            assert any(getattr(n, field.name) != field.default for n in found), (kind, field.name)


def test_what_we_save_is_as_it_was() -> None:
    """The format does not change by accident: the same tree gives the same bytes, and loads."""
    assert all_features().encode() + b"\n" == ALL_FEATURES.read_bytes()
    assert State.decode(ALL_FEATURES.read_bytes()) == all_features()


def stamp(moment: datetime | None) -> str | None:
    """An instant as Go prints it."""
    if moment is None:
        return None
    text = moment.astimezone(UTC).replace(tzinfo=None).isoformat()
    return (text.rstrip("0") if "." in text else text) + "Z"


def lines(state: State) -> list[dict[str, Any]]:
    """What read.go has to say of this tree."""
    return [
        {
            "n": n,
            "path": split(path),
            "name": node.name,
            "info": json.loads(bytes(node.info) or b"null", parse_int=float),
            "errs": node.errs or [],
            "startedAt": stamp(node.started_at),
            "doneAt": stamp(node.done_at),
            "children": len(node.states or ()),
            "failed": node.failed,
            "succeeded": node.done,
            "proceeding": node.started and node.done_at is None,
            "started": node.started,
        }
        for n, (path, node) in enumerate(state.walk())
    ]


def parsed(text: str) -> list[dict[str, Any]]:
    """What read.go printed."""
    found = [json.loads(line) for line in text.splitlines()]
    return [{**line, "info": json.loads(line["info"], parse_int=float)} for line in found]


@pytest.fixture(scope="session")
def read_by_go(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], str] | None:
    """Reads a document by Go's own ``encoding/json``; ``None`` where Go is not installed."""
    compiler = shutil.which("go")
    if compiler is None:
        return None
    program = tmp_path_factory.mktemp("go") / "read"
    env = {**os.environ, "GO111MODULE": "off", "GOFLAGS": ""}
    build = [compiler, "build", "-o", str(program), str(GOLDEN / "read.go")]
    subprocess.run(build, check=True, env=env, timeout=100)

    def read(data: bytes) -> str:
        done = subprocess.run([program], input=data, capture_output=True, check=False, timeout=30)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    return read


def test_go_reads_what_we_save(read_by_go: Callable[[bytes], str] | None) -> None:
    """Each node of a tree with everything in it is to Go what it is to us (also as recorded)."""
    recorded = READ_BY_GO.read_text()
    assert parsed(recorded) == lines(all_features())
    if read_by_go is not None:
        assert read_by_go(ALL_FEATURES.read_bytes()) == recorded


@pytest.mark.parametrize("name", [name for name in ROWS if name != "times"])
def test_go_reads_its_own_after_us(name: str, read_by_go: Callable[[bytes], str] | None) -> None:
    """A state that came from Go and goes back says the same to both; without Go, to us."""
    state = load(name)
    found = State.decode(state.encode()) if read_by_go is None else read_by_go(state.encode())
    assert (lines(found) if isinstance(found, State) else parsed(found)) == lines(state)


async def _broken(s: Step) -> None:
    raise ExceptionGroup("several", [OSError("no <route>"), ValueError("\ud800")])


async def _waits(s: Step) -> None:
    await s.save_info({"task": "t-1", "polls": 3})
    s.pending(60, "a task")


async def _answers(s: Step) -> dict[str, list[int]]:
    return {"ids": [1, 2]}


async def _runs(s: Step) -> None:
    await s.do("answers", _answers)
    try:
        await s.do("bro/ken", _broken, inputs=1)
    except StepError:
        await s.do("waits", _waits, retry=asteps.Retry(), timeout=600)


def test_go_reads_what_a_driver_saves(read_by_go: Callable[[bytes], str] | None) -> None:
    """A tree that a driver made (failures, waits, infos, results) is to Go what it is to us."""

    async def main() -> State:
        return (await asteps.reconcile(_runs, state=State("run"))).state

    state = anyio.run(main)
    words = {path: word(node) for path, node in state.walk()}
    assert words == {"": N, "answers": D, "bro~1ken": F, "waits": N}  # the root and `waits` wait
    assert all(state.get(path).pending for path in ("", "waits"))
    data = state.encode()
    assert all(_gos(node) <= GO_KEYS for node in _objects(json.loads(data)))
    if read_by_go is not None:
        assert parsed(read_by_go(data)) == lines(state)


def _objects(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield document
    for child in document.get("states", ()):
        yield from _objects(child)


def _gos(node: dict[str, Any]) -> set[str]:
    """The keys of a node that Go takes for its own: it does not look at the case of letters."""
    mine = {key.lower() for key in GO_KEYS}
    return {key for key in node if key.lower() in mine}


def test_no_key_of_ours_is_one_of_gos_in_other_letters() -> None:
    """Go does not look at the case of letters: a key that differs by it alone would be its own."""
    keys = [field.encode_name for field in msgspec.structs.fields(State)]
    assert all(key.isascii() for key in keys)
    assert len({key.lower() for key in keys}) == len(keys)
    lowered = {key.lower() for key in GO_KEYS}
    assert {key for key in keys if key.lower() in lowered} == GO_KEYS


def test_errors_are_plain_strings_to_go() -> None:
    """``errs`` holds messages alone; what else is known of a failure is in a key of ours."""
    for node in _objects(json.loads(all_features().encode())):
        assert all(isinstance(message, str) for message in node.get("errs", ()))
        assert join("", node["name"]) or not node["name"]
