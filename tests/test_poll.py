"""Polling: a task is started once, its ID is never lost, and its step is one node all along."""

from __future__ import annotations

import asyncio
import enum
import gc
import itertools
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread
import msgspec
import pytest
from anyio.lowlevel import checkpoint
from clocks import FakeClock
from timers import timers

import asteps
from asteps import (
    Done,
    Failed,
    Pending,
    Retry,
    State,
    Step,
    StepError,
    UsageError,
    edit_run,
    load_state,
)
from asteps.stores.memory import MemoryStore
from asteps.stores.sqlite import SQLiteStore
from asteps.testing import Crash, FaultyStore
from asteps.testing._faulty import Save, SaveFault

START = FakeClock().now()
MODES = ("run", "reconcile")

in_both_modes = pytest.mark.parametrize("mode", MODES)

# --- helpers --------------------------------------------------------------------------------------


class Cloud:
    """Pretends to work on tasks, and remembers who asked for what, when."""

    def __init__(self, checks: int = 3) -> None:
        self.clock = FakeClock()
        self.storage = MemoryStore()
        self.checks = checks  # after which a task has finished
        self.tokens: list[str] = []  # one per call of start
        self.checked: list[tuple[str, float]] = []  # which task, when
        self.polls: dict[str, int] = {}
        self.broken: list[Exception] = []  # what the next calls raise

    async def start(self, token: str = "") -> str:
        self.tokens.append(token)
        if self.broken:
            raise self.broken.pop(0)
        await checkpoint()
        return f"task-{len(self.tokens)}"

    async def check(self, task: str) -> int | None:
        self.checked.append((task, self.clock.now() - START))
        await checkpoint()
        if self.broken:
            raise self.broken.pop(0)
        self.polls[task] = self.polls.get(task, 0) + 1
        return 7 if self.polls[task] >= self.checks else None

    async def flow(self, s: Step) -> int:
        """One poll."""
        return await s.poll("x", partial(self.start, token=s.token_for("x")), self.check, every=5)

    async def end(self, flow: Callable[[Step], Awaitable[Any]], mode: str, **keywords: Any) -> Any:
        """The outcome of the run, in one pass or in as many as it takes."""
        mine: dict[str, Any] = {"clock": self.clock, "name": "flow"}
        if "state" not in keywords:
            mine |= {"store": self.storage, "id": "r"}
        keywords = mine | keywords
        max_wait = 10_000_000 if mode == "run" else 0
        while True:
            outcome = await asteps.reconcile(flow, max_wait=max_wait, **keywords)
            if not isinstance(outcome, Pending):
                return outcome
            assert mode == "reconcile"
            self.clock.advance(outcome.after)

    async def node(self, path: str = "x") -> State:
        """The step as it is stored."""
        state = await load_state(self.storage, "r")
        assert state is not None
        return state.get(path)


def info_of(node: State) -> dict[str, Any]:
    """What a step has written down."""
    found: dict[str, Any] = json.loads(bytes(node.info))
    return found


def instant(after: float) -> str:
    """A time as it is stored."""
    return json.loads(msgspec.json.encode(datetime.fromtimestamp(START + after, UTC)))  # type: ignore[no-any-return]


async def one_step(fn: Callable[[Step], Awaitable[Any]], state: State | None = None) -> Any:
    """The value of a flow that finishes in one pass, without a store."""
    outcome = await asteps.reconcile(
        fn, state=State("flow") if state is None else state, clock=FakeClock(), name="flow"
    )
    assert isinstance(outcome, Done), outcome
    return outcome.value


async def nothing() -> int:
    """An ID."""
    return 1


async def not_yet(task: int) -> int | None:
    """A task that never finishes."""
    return None


async def finished(task: int) -> int | None:
    """A task that has finished."""
    return task


# --- how it polls ---------------------------------------------------------------------------------


@in_both_modes
async def test_checks_at_once_and_then_at_intervals(mode: str) -> None:
    """The first check is made at once, the others ``every`` seconds; start is called once."""
    cloud = Cloud(checks=4)
    outcome = await cloud.end(cloud.flow, mode)
    assert outcome.value == 7
    assert cloud.checked == [("task-1", 0.0), ("task-1", 5.0), ("task-1", 10.0), ("task-1", 15.0)]
    assert len(cloud.tokens) == 1


@in_both_modes
async def test_one_node_says_how_it_goes(mode: str) -> None:
    """The info is the task ID, the number of checks, and when first, last and next are."""
    cloud = Cloud(checks=3)
    infos: list[dict[str, Any]] = []

    async def check(task: str) -> int | None:
        infos.append(info_of(await cloud.node()))
        return await cloud.check(task)

    async def flow(s: Step) -> int:
        return await s.poll("x", cloud.start, check, every=5)

    assert (await cloud.end(flow, mode)).value == 7
    assert infos == [
        {"taskId": "task-1"},
        {
            "taskId": "task-1",
            "polls": 1,
            "first": instant(0),
            "last": instant(0),
            "next": instant(5),
        },
        {
            "taskId": "task-1",
            "polls": 2,
            "first": instant(0),
            "last": instant(5),
            "next": instant(10),
        },
    ]
    node = await cloud.node()
    assert info_of(node) == {
        "taskId": "task-1",
        "polls": 3,
        "first": instant(0),
        "last": instant(10),
    }
    assert (node.done, node.attempt, node.interruptions, node.states) == (True, 1, 0, None)


async def test_what_a_pending_poll_tells() -> None:
    """``Pending`` has the poll's path, when the next check is due, and the task that it awaits."""
    cloud = Cloud()

    async def parent(s: Step) -> int:
        return await s.poll("snap/shot", cloud.start, cloud.check, every=timedelta(minutes=1))

    async def flow(s: Step) -> int:
        return await s.do("p", parent)

    outcome = await asteps.reconcile(flow, state=State("r"), clock=cloud.clock)
    assert isinstance(outcome, Pending)
    assert (outcome.after, outcome.path) == (60, "p/snap~1shot")
    assert outcome.why == "task 'task-1' has not finished"


async def test_called_too_early_it_does_not_check() -> None:
    """A pass that comes before the next check is due makes none, and saves nothing."""
    cloud = Cloud()
    store = FaultyStore(cloud.storage)
    keywords: Any = {"store": store, "id": "r", "clock": cloud.clock}
    assert isinstance(await asteps.reconcile(cloud.flow, **keywords), Pending)
    saves = store.saves
    for left in (4, 3, 2, 1):
        cloud.clock.advance(1)
        outcome = await asteps.reconcile(cloud.flow, **keywords)
        assert isinstance(outcome, Pending)
        assert (outcome.after, outcome.path) == (left, "x")
        assert outcome.why == "task 'task-1' has not finished"
    assert (len(cloud.checked), store.saves) == (1, saves)


async def test_another_interval_holds_from_the_next_check_on() -> None:
    """When the code says another ``every``, the check that is due next is due as was said."""
    cloud = Cloud()

    async def flow(s: Step, every: float) -> int:
        return await s.poll("x", cloud.start, cloud.check, every=every)

    keywords: Any = {"store": cloud.storage, "id": "r", "clock": cloud.clock}
    await asteps.reconcile(flow, 5, **keywords)
    outcome = await asteps.reconcile(flow, 1, **keywords)
    assert isinstance(outcome, Pending)
    assert outcome.after == 5
    cloud.clock.advance(5)
    outcome = await asteps.reconcile(flow, 1, **keywords)
    assert isinstance(outcome, Pending)
    assert outcome.after == 1


@in_both_modes
@pytest.mark.parametrize(
    ("every", "times"),
    [
        (5, [0, 5, 10, 15, 20, 25]),
        (0.5, [0, 0.5, 1, 1.5, 2, 2.5]),
        (timedelta(minutes=1), [0, 60, 120, 180, 240, 300]),
        (Retry(delay=2, jitter=0), [0, 2, 6, 14, 30, 62]),
        (Retry(delay=2, factor=3, max_delay=20, jitter=0), [0, 2, 8, 26, 46, 66]),
        (Retry(delay=timedelta(seconds=2), factor=1, jitter=0), [0, 2, 4, 6, 8, 10]),
        (Retry(attempts=1, delay=2, factor=1, jitter=0), [0, 2, 4, 6, 8, 10]),
    ],
    ids=str,
)
async def test_every(every: Any, times: list[float], mode: str) -> None:
    """``every`` is seconds, a timedelta, or a Retry by which the pauses grow; all are kept to."""
    cloud = Cloud(checks=6)

    async def flow(s: Step) -> int:
        return await s.poll("x", cloud.start, cloud.check, every=every)

    assert (await cloud.end(flow, mode)).value == 7
    assert [when for _, when in cloud.checked] == times


async def test_jitter_of_every() -> None:
    """With jitter no pause is the same, and none leaves the share that jitter gives."""
    cloud = Cloud(checks=20)

    async def flow(s: Step) -> int:
        every = Retry(delay=10, factor=1, jitter=0.5)
        return await s.poll("x", cloud.start, cloud.check, every=every)

    await cloud.end(flow, "run")
    times = [when for _, when in cloud.checked]
    pauses = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert all(5 <= round(pause, 3) <= 15 for pause in pauses)
    assert len(set(pauses)) == len(pauses) == 19


@pytest.mark.parametrize(
    ("every", "message"),
    [
        (0, r"poll\('x', every=…\) is 0; it must be above 0"),
        (-1, "must be above 0"),
        (float("nan"), "must be above 0"),
        (float("inf"), "at most a year"),
        (timedelta(0), "must be above 0"),
        (timedelta(days=400), "at most a year"),
        ("5", "is seconds or a timedelta, not str"),
        (None, "not NoneType"),
        (True, "not bool"),
        (Retry(delay=0), "must be above 0"),
        (Retry(delay=timedelta(0)), "must be above 0"),
        (Retry(delay=1, max_delay=0), "must be above 0"),
    ],
    ids=str,
)
async def test_wrong_every(every: Any, message: str) -> None:
    """A wrong ``every`` is misuse, told before the task is started; the tree is as before."""
    cloud = Cloud()

    async def flow(s: Step) -> int:
        return await s.poll("x", cloud.start, cloud.check, every=every)

    state = State("flow")
    with pytest.raises(UsageError, match=message):
        await asteps.reconcile(flow, state=state, clock=cloud.clock)
    assert cloud.tokens == []
    assert not state.has("x")


@pytest.mark.parametrize("chance", [b"\0" * 4, b"\xff" * 4], ids=["least", "most"])
async def test_every_is_clamped(chance: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the chance of ``jitter`` falls, a pause is one that a step may have."""
    monkeypatch.setattr(os, "urandom", lambda n: (chance * n)[:n])
    year = timedelta(days=366)

    async def flow(s: Step) -> None:
        async with s.group("g") as g:
            g.poll("short", nothing, not_yet, every=Retry(delay=1, jitter=1))
            g.poll("long", nothing, not_yet, every=Retry(delay=year, max_delay=year, jitter=1))

    outcome = await asteps.reconcile(flow, state=State("r"), clock=FakeClock())
    assert isinstance(outcome, Pending)


# --- the task ID ----------------------------------------------------------------------------------


@pytest.mark.parametrize("save", ["step", "pass"])
@in_both_modes
async def test_the_id_is_in_the_store_before_the_first_check(mode: str, save: str) -> None:
    """No check is ever made of a task whose ID the store does not have."""
    cloud = Cloud()
    durable: list[object] = []

    async def check(task: str) -> int | None:
        durable.append(info_of(await cloud.node())["taskId"] == task)
        return await cloud.check(task)

    async def flow(s: Step) -> int:
        async with s.group("g"):
            return await s.poll("x", cloud.start, check, every=5)

    assert (await cloud.end(flow, mode, save=save)).value == 7
    assert durable == [True] * 3


async def lives(cloud: Cloud, mode: str, faults: dict[int, SaveFault], save: str) -> FaultyStore:
    """A process that drives the flow until it has ended or the process has died."""
    store = FaultyStore(cloud.storage.client(), faults)
    async with store:
        with suppress(Crash):
            outcome = await cloud.end(cloud.flow, mode, store=store, save=save)
            assert outcome.value == 7
    return store


@pytest.mark.parametrize("save", ["step", "pass"])
@pytest.mark.parametrize("fault", ["crash before", "crash after"])
@in_both_modes
async def test_a_crash_at_every_save(mode: str, fault: SaveFault, save: str) -> None:
    """Whenever the process dies: once its ID is durable a task is not started again.

    Before that it is started again with the same token.
    """
    saves = (await lives(Cloud(), mode, {}, save)).saves
    assert saves >= 4
    again = 0
    for number in range(1, saves + 1):
        cloud = Cloud()
        store = await lives(cloud, mode, {number: fault}, save)
        assert store.crashed
        state = await load_state(cloud.storage, "r")
        node = None if state is None or not state.has("x") else state.get("x")
        known = node is not None and bool(bytes(node.info))
        starts = len(cloud.tokens)
        await lives(cloud, mode, {}, save)
        assert len(cloud.tokens) == (starts if known else starts + 1), number
        assert len(set(cloud.tokens)) == 1
        again += len(cloud.tokens) > 1
        if known:
            assert {task for task, _ in cloud.checked} <= {"task-1"}
        assert info_of(await cloud.node())["taskId"] == f"task-{len(cloud.tokens)}"
    assert again == (1 if fault == "crash before" else 0)


@pytest.mark.parametrize("fault", ["lost", "late", "dropped", "unavailable"])
@in_both_modes
async def test_an_unclear_save_starts_nothing_twice(mode: str, fault: SaveFault) -> None:
    """An acknowledgement that is lost at any save changes nothing: one start, the same checks."""
    usual = Cloud()
    saves = (await lives(usual, mode, {}, "step")).saves
    for number in range(1, saves + 1):
        cloud = Cloud()
        await lives(cloud, mode, {number: fault}, "step")
        assert len(cloud.tokens) == 1
        assert len(cloud.checked) == len(usual.checked)


async def test_no_check_without_a_durable_id() -> None:
    """When the ID cannot be saved the pass ends with the store's error, and no check is made."""
    cloud = Cloud()

    def refuse(save: Save) -> SaveFault | None:
        return "refused" if b"taskId" in b"".join(filter(None, save.changes.values())) else None

    with pytest.raises(asteps.StoreRefusedError):
        await cloud.end(cloud.flow, "run", store=FaultyStore(cloud.storage.client(), refuse))
    assert (len(cloud.tokens), cloud.checked) == (1, [])


async def test_the_token_is_the_steps_own() -> None:
    """``token_for`` gives the token of the poll's step, the same before, during and after it."""
    seen: list[str] = []

    async def start(token: str) -> str:
        seen.append(token)
        return "task"

    async def flow(s: Step) -> str:
        token = s.token_for("x")
        await s.poll("y", partial(start, s.token_for("y")), finished, every=1, returns=str)
        await s.poll("x", partial(start, token), finished, every=1, returns=str)
        assert s.token_for("x") == token
        return token

    token = await one_step(flow)
    assert seen[1] == token != seen[0]


@in_both_modes
async def test_recover_keeps_the_id(mode: str) -> None:
    """A poll that failed, once recovered, checks on the task that it had started, at once."""
    cloud = Cloud()
    cloud.checks = 99
    await asteps.reconcile(cloud.flow, store=cloud.storage, id="r", clock=cloud.clock, name="flow")
    cloud.broken = [RuntimeError("lost contact")]
    cloud.clock.advance(5)
    outcome = await cloud.end(cloud.flow, mode)
    assert isinstance(outcome, Failed)
    assert info_of(await cloud.node())["polls"] == 1
    async with edit_run(cloud.storage, "r") as state:
        state.recover()
    cloud.checks = 2
    assert (await cloud.end(cloud.flow, mode)).value == 7
    assert len(cloud.tokens) == 1
    assert cloud.checked == [("task-1", 0.0), ("task-1", 5.0), ("task-1", 5.0)]


@pytest.mark.parametrize("when", ["pending", "failed", "done"])
async def test_reset_forgets_the_id(when: str) -> None:
    """After a reset the task is started anew, with another token, and is polled from the start."""
    cloud = Cloud(checks=1 if when == "done" else 3)
    keywords: Any = {"store": cloud.storage, "id": "r", "clock": cloud.clock, "name": "flow"}
    await asteps.reconcile(cloud.flow, **keywords)
    if when == "failed":
        cloud.clock.advance(5)
        cloud.broken = [RuntimeError()]
        assert isinstance(await asteps.reconcile(cloud.flow, **keywords), Failed)
    async with edit_run(cloud.storage, "r") as state:
        state.reset("x")
    assert (await cloud.end(cloud.flow, "reconcile")).value == 7
    assert len(set(cloud.tokens)) == len(cloud.tokens) == 2
    info = info_of(await cloud.node())
    assert (info["taskId"], info["polls"]) == ("task-2", cloud.checks)


async def test_a_result_that_was_set_ends_the_poll() -> None:
    """``set_result`` on a pending poll is its result; no check is made any more."""
    cloud = Cloud()
    keywords: Any = {"store": cloud.storage, "id": "r", "clock": cloud.clock, "name": "flow"}
    await asteps.reconcile(cloud.flow, **keywords)
    async with edit_run(cloud.storage, "r") as state:
        state.set_result("x", 42)
    assert (await cloud.end(cloud.flow, "run")).value == 42
    assert len(cloud.checked) == 1


@pytest.mark.parametrize("when", ["pending", "failed", "done"])
async def test_changed_inputs_forget_the_id(when: str) -> None:
    """With other ``inputs=`` the task is started anew, whatever the poll had come to."""
    cloud = Cloud(checks=1 if when == "done" else 3)

    async def flow(s: Step, spec: dict[str, int]) -> int:
        start = partial(cloud.start, f"for {spec['size']}")
        return await s.poll("x", start, cloud.check, every=5, inputs=spec)

    keywords: Any = {"store": cloud.storage, "id": "r", "clock": cloud.clock}
    for _ in range(2):
        await asteps.reconcile(flow, {"size": 1}, inputs=1, **keywords)
    if when == "failed":
        cloud.clock.advance(5)
        cloud.broken = [RuntimeError()]
        await asteps.reconcile(flow, {"size": 1}, inputs=1, **keywords)
    outcome = await asteps.reconcile(flow, {"size": 2}, inputs=2, max_wait=100, **keywords)
    assert isinstance(outcome, Done)
    assert cloud.tokens == ["for 1", "for 2"]
    assert info_of(await cloud.node())["taskId"] == "task-2"


async def test_changed_inputs_change_the_token_that_start_is_given() -> None:
    """Asked for with the inputs, a token is the one that the task for them has.

    Given the old token, the cloud would answer with the old task.
    """
    cloud = Cloud(checks=1)

    async def flow(s: Step, spec: int) -> int:
        start = partial(cloud.start, s.token_for("x", inputs=spec))
        return await s.poll("x", start, cloud.check, every=5, inputs=spec)

    keywords: Any = {"store": cloud.storage, "id": "r", "clock": cloud.clock}
    await asteps.reconcile(flow, 1, inputs=1, **keywords)
    await asteps.reconcile(flow, 2, inputs=2, **keywords)
    first, second = cloud.tokens
    assert first != second


async def test_a_token_asked_for_in_start_follows_changed_inputs() -> None:
    """A token that ``start`` itself asks for is that of the step as it was reset."""
    cloud = Cloud(checks=1)

    async def flow(s: Step, spec: int) -> int:
        return await s.poll(
            "x", lambda: cloud.start(s.token_for("x")), cloud.check, every=5, inputs=spec
        )

    keywords: Any = {"store": cloud.storage, "id": "r", "clock": cloud.clock}
    await asteps.reconcile(flow, 1, inputs=1, **keywords)

    def crash(save: Save) -> SaveFault | None:
        return (
            "crash before" if b"task-2" in b"".join(filter(None, save.changes.values())) else None
        )

    dying = FaultyStore(cloud.storage.client(), crash)
    with pytest.raises(Crash):
        await asteps.reconcile(flow, 2, inputs=2, **keywords | {"store": dying})
    await asteps.reconcile(flow, 2, inputs=2, **keywords)
    first, second, third = cloud.tokens
    assert first != second == third


class Color(enum.Enum):
    RED = "red"


@dataclass
class Ref:
    zone: str
    number: int


class Handle(msgspec.Struct, frozen=True):
    arn: str
    at: datetime


IDS = [
    ("i-1", str),
    (17, int),
    (0, int),
    ("", str),
    ({"zone": "a", "n": [1, 2]}, dict[str, Any]),
    (["a", "b"], list[str]),
    (("a", 1), tuple[str, int]),
    (Ref("a", 1), Ref),
    (Handle("arn:1", datetime(2024, 1, 1, tzinfo=UTC)), Handle),
    (UUID(int=5), UUID),
    (Color.RED, Color),
    (b"\x00\xff", bytes),
    ("é\u2028\x00" * 40, str),
]


@pytest.mark.parametrize(
    ("value", "type_"), IDS, ids=[f"{i}-{t.__name__}" for i, (_, t) in enumerate(IDS)]
)
@in_both_modes
async def test_ids_of_many_types(value: Any, type_: Any, mode: str) -> None:
    """``check`` is given what ``start`` returned, of the type that it is annotated with, always."""
    seen: list[Any] = []
    starts: list[int] = []

    def start() -> Any:
        starts.append(1)
        return value

    start.__annotations__["return"] = type_

    def check(task: Any) -> str | None:
        seen.append(task)
        return "finished" if len(seen) == 3 else None

    async def flow(s: Step) -> str:
        return await s.poll("x", start, check, every=5)

    cloud = Cloud()
    assert (await cloud.end(flow, mode)).value == "finished"
    assert seen == [value] * 3
    assert {type(task) for task in seen} == {type(value)}
    assert starts == [1]


async def test_ids_by_hooks() -> None:
    """``enc_hook`` and ``dec_hook`` of the driver apply to task IDs."""
    seen: list[Path] = []

    def start() -> Path:
        return Path("/tasks/1")

    def check(task: Path) -> Path | None:
        seen.append(task)
        return task / "log" if len(seen) == 3 else None

    async def flow(s: Step) -> Path:
        return await s.poll("x", start, check, every=5)

    cloud = Cloud()
    outcome = await cloud.end(
        flow, "reconcile", enc_hook=str, dec_hook=lambda type_, value: type_(value)
    )
    assert outcome.value == Path("/tasks/1/log")
    assert seen == [Path("/tasks/1")] * 3


async def test_an_id_whose_type_cannot_come_back_starts_nothing() -> None:
    """When the annotation tells that the ID cannot come back, the task is not even started."""
    starts: list[int] = []

    def start() -> Path:
        starts.append(1)
        return Path("/")

    def check(task: Path) -> int | None:
        return 1

    async def flow(s: Step) -> int:
        return await s.poll("x", start, check, every=5)

    state = State("flow")
    with pytest.raises(UsageError, match="Path cannot be read back from JSON"):
        await one_step(flow, state)
    assert starts == []
    assert not state.has("x")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "cannot be stored as JSON"),
        (float("nan"), "NaN"),
        ((1, 2), "comes back from JSON as"),
        (Ref("a", 1), "comes back from JSON as"),
        ("\ud800", "surrogates"),
    ],
    ids=["object", "nan", "tuple", "dataclass", "surrogate"],
)
async def test_ids_that_cannot_come_back(value: Any, message: str) -> None:
    """An unannotated ID that would not come back as it is, is misuse; no check is made."""
    cloud = Cloud()
    ok = False

    def start():  # type: ignore[no-untyped-def]  # noqa: ANN202
        return "fine" if ok else value

    async def flow(s: Step) -> int:
        return await s.poll("x", start, cloud.check, every=5)

    with pytest.raises(UsageError, match=f"task ID of step 'x'.*{message}"):
        await cloud.end(flow, "run")
    assert cloud.checked == []
    ok = True
    assert (await cloud.end(flow, "run")).value == 7
    assert cloud.checked[0][0] == "fine"


async def test_too_large_an_id() -> None:
    """An ID above ``max_result_bytes`` fails the step for good, and says which is too large."""
    cloud = Cloud()
    starts: list[int] = []

    def start() -> str:
        starts.append(1)
        return "x" * 200

    async def flow(s: Step) -> int:
        return await s.poll("x", start, cloud.check, every=5, retry=Retry(attempts=5, delay=0))

    outcome = await cloud.end(flow, "run", max_result_bytes=100)
    assert isinstance(outcome, Failed)
    error = outcome.error.errors[0]
    assert error.failure.final
    assert "task ID of step 'x'" in str(error)
    assert "202 bytes" in str(error)
    assert (starts, cloud.checked) == ([1], [])


async def test_an_id_that_does_not_fit_any_more() -> None:
    """When the ID's type was changed in the code, that is misuse and says so; nothing is lost."""
    cloud = Cloud()

    async def flow(s: Step, start: Any) -> int:
        return await s.poll("x", start, cloud.check, every=5)

    async def number() -> int:
        return 5

    keywords: Any = {"store": cloud.storage, "id": "r", "clock": cloud.clock}
    await asteps.reconcile(flow, cloud.start, **keywords)
    cloud.clock.advance(5)
    with pytest.raises(UsageError, match="task ID of step 'x' does not fit its function any more"):
        await asteps.reconcile(flow, number, **keywords)
    outcome = await asteps.reconcile(flow, cloud.start, max_wait=100, **keywords)
    assert isinstance(outcome, Done)
    assert {task for task, _ in cloud.checked} == {"task-1"}


# --- start and check ------------------------------------------------------------------------------


class Callable_:  # noqa: N801 - next to typing's
    """A callable object, async as its kind is."""

    def __init__(self, value: Any) -> None:
        self.value = value

    async def __call__(self, *args: Any) -> Any:
        await checkpoint()
        return self.value


@pytest.mark.parametrize("start_kind", ["async", "sync", "awaitable", "object", "partial"])
@pytest.mark.parametrize("check_kind", ["async", "sync", "awaitable", "object", "partial"])
async def test_sync_and_async(start_kind: str, check_kind: str) -> None:
    """``start`` and ``check`` may each be async or not; those that are not run in a thread."""
    threads: dict[str, int] = {}

    def note(what: str, value: Any) -> Any:
        threads[what] = threading.get_ident()
        return value

    async def note_async(what: str, value: Any) -> Any:
        await checkpoint()
        return note(what, value)

    def make(what: str, kind: str, value: Any) -> Callable[..., Any]:
        def sync(*args: Any) -> Any:
            return note(what, value)

        async def asynchronous(*args: Any) -> Any:
            return await note_async(what, value)

        def awaitable(*args: Any) -> Any:
            return note_async(what, value)

        def with_more(more: object, *args: Any) -> Any:
            return note(what, value)

        kinds: dict[str, Callable[..., Any]] = {
            "async": asynchronous,
            "sync": sync,
            "awaitable": awaitable,
            "object": Callable_(value),
            "partial": partial(with_more, "more"),
        }
        return kinds[kind]

    start, check = make("start", start_kind, "i-1"), make("check", check_kind, "value")

    async def flow(s: Step) -> list[Any]:
        return [
            await s.poll("x", start, check, every=5),
            await s.poll("y", start=start, check=check, every=5),
            await s.poll("z", check=check, start=start, every=5, returns=str),
        ]

    assert await one_step(flow) == ["value"] * 3
    here = threading.get_ident()
    for what, kind in (("start", start_kind), ("check", check_kind)):
        if kind != "object":
            assert (threads[what] == here) == (kind in {"async", "awaitable"})


FALSY: list[Any] = [0, "", [], {}, False, 0.0, b""]


@pytest.mark.parametrize("value", FALSY, ids=lambda v: f"{type(v).__name__}")
@pytest.mark.parametrize("annotated", [True, False])
@in_both_modes
async def test_falsy_results_finish(value: Any, mode: str, annotated: bool) -> None:
    """Only ``None`` means that the task has not finished: 0, "", [] and False are results."""
    cloud = Cloud()
    calls: list[int] = []

    def check(task):  # type: ignore[no-untyped-def]  # noqa: ANN202
        calls.append(1)
        return None if len(calls) < 2 else value

    if annotated:
        check.__annotations__["return"] = type(value) | None
    elif isinstance(value, bytes):
        return  # does not come back untyped

    async def flow(s: Step) -> Any:
        return await s.poll("x", cloud.start, check, every=5)

    async def root(s: Step) -> bool:
        got = await flow(s)
        return bool(got == value and type(got) is type(value))

    assert (await cloud.end(root, mode)).value is True
    assert len(calls) == 2


async def test_results_come_back_typed_on_every_pass() -> None:
    """A result is of ``check``'s type without its None, or of ``returns=``, on every pass."""
    found: list[Any] = []

    async def check(task: int) -> Ref | None:
        return Ref("a", task)

    def untyped(task):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return Ref("b", 2)

    def one_of(task: int) -> "UUID | int | None":  # noqa: UP037 - a forward reference
        return UUID(int=1)

    async def flow(s: Step) -> None:
        found.append(await s.poll("typed", nothing, check, every=1))
        found.append(await s.poll("returns", nothing, untyped, every=1, returns=Ref))
        found.append(await s.poll("union", nothing, one_of, every=1))
        found.append(await s.poll("wider", nothing, untyped, every=1, returns=Ref | None))
        s.pending(after=1)

    state = State("flow")
    for _ in range(3):
        await asteps.reconcile(flow, state=state, clock=FakeClock())
        state = State.decode(state.encode())
    expected = [Ref("a", 1), Ref("b", 2), UUID(int=1), Ref("b", 2)]
    assert found[:4] == expected
    clock = FakeClock()
    found.clear()
    clock.advance(100)
    await asteps.reconcile(flow, state=state, clock=clock)
    assert found == expected


@pytest.mark.parametrize("kind", ["type", "value", "nan"])
async def test_results_that_cannot_come_back(kind: str) -> None:
    """They are misuse; corrected code goes on with the task that was started."""
    cloud = Cloud()

    def check(task: str) -> Any:
        return {"type": object(), "value": (1, 2), "nan": float("nan")}[kind]

    async def flow(s: Step, check: Any) -> Any:
        return await s.poll("x", cloud.start, check, every=5)

    keywords: Any = {"store": cloud.storage, "id": "r", "clock": cloud.clock}
    with pytest.raises(UsageError, match="the result of step 'x'"):
        await asteps.reconcile(flow, check, **keywords)
    outcome = await asteps.reconcile(flow, cloud.check, max_wait=100, **keywords)
    assert isinstance(outcome, Done)
    assert len(cloud.tokens) == 1


async def test_too_large_a_result() -> None:
    """A result that is too large fails the step for good, and its task ID is kept."""
    cloud = Cloud()

    def check(task: str) -> str | None:
        return "x" * 200

    async def flow(s: Step) -> Any:
        return await s.poll("x", cloud.start, check, every=5, retry=Retry(delay=0))

    outcome = await cloud.end(flow, "run", max_result_bytes=100)
    assert isinstance(outcome, Failed)
    assert outcome.error.errors[0].failure.kind == "too large"
    assert info_of(await cloud.node())["taskId"] == "task-1"


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
@pytest.mark.parametrize("what", ["start", "check"])
@in_both_modes
async def test_what_they_raise_fails_the_step(what: str, mode: str, sync: bool) -> None:
    """An exception of ``start`` or ``check`` is the step's failure, on every pass."""

    def fail(*args: object) -> int:
        raise ConnectionError(f"{what} is down")

    async def fail_async(*args: object) -> int:
        return fail()

    bad = fail if sync else fail_async

    async def flow(s: Step) -> int:
        if what == "start":
            return await s.poll("x", bad, finished, every=1)
        return await s.poll("x", nothing, bad, every=1)

    cloud = Cloud()
    for _ in range(2):
        outcome = await cloud.end(flow, mode)
        assert isinstance(outcome, Failed)
        (error,) = outcome.error.errors
        assert (error.path, error.failure.message) == ("x", f"{what} is down")
        assert error.is_a(ConnectionError)


@pytest.mark.parametrize("what", ["start", "check"])
@in_both_modes
async def test_a_type_error_of_their_own_is_a_failure(what: str, mode: str) -> None:
    """A TypeError that is raised in them is no misuse."""

    def odd(*args: Any) -> int:
        return int(*args, "1", "2", "3")  # type: ignore[call-overload,no-any-return]

    async def flow(s: Step) -> int:
        if what == "start":
            return await s.poll("x", odd, finished, every=1)
        return await s.poll("x", nothing, odd, every=1)

    outcome = await Cloud().end(flow, mode)
    assert isinstance(outcome, Failed)
    assert outcome.error.errors[0].is_a(TypeError)


@in_both_modes
async def test_retry_covers_start_and_check(mode: str) -> None:
    """A new attempt starts a task only where there is none; else it goes on checking."""
    cloud = Cloud(checks=2)
    cloud.broken = [ConnectionError("s1"), ConnectionError("s2")]

    async def start() -> str:
        task = await cloud.start()
        cloud.broken += [ConnectionError("c1")]
        return task

    async def flow(s: Step) -> int:
        return await s.poll(
            "x", start, cloud.check, every=5, retry=Retry(attempts=4, delay=1, factor=1, jitter=0)
        )

    assert (await cloud.end(flow, mode)).value == 7
    assert len(cloud.tokens) == 3
    assert cloud.checked == [("task-3", 2.0), ("task-3", 3.0), ("task-3", 8.0)]
    node = await cloud.node()
    assert (node.attempt, info_of(node)["polls"]) == (4, 2)


@in_both_modes
async def test_retry_gives_up(mode: str) -> None:
    """When the attempts are used up the poll has failed, and its ID is still there."""
    cloud = Cloud()
    cloud.checks = 99

    async def check(task: str) -> int | None:
        await cloud.check(task)
        raise ConnectionError

    async def flow(s: Step) -> int:
        return await s.poll("x", cloud.start, check, every=5, retry=Retry(delay=1, jitter=0))

    assert isinstance(await cloud.end(flow, mode), Failed)
    assert [when for _, when in cloud.checked] == [0, 1, 3]
    assert len(cloud.tokens) == 1
    assert info_of(await cloud.node()) == {"taskId": "task-1"}


async def test_retry_on_says_what_is_tried_again() -> None:
    """What ``Retry(on=…)`` does not cover fails the poll at once."""
    cloud = Cloud()

    async def flow(s: Step) -> int:
        retry = Retry(on=ConnectionError, delay=0)
        return await s.poll("x", cloud.start, cloud.check, every=5, retry=retry)

    cloud.broken = [ConnectionError(), ValueError()]
    assert isinstance(await cloud.end(flow, "run"), Failed)
    assert len(cloud.tokens) == 2


@in_both_modes
async def test_a_poll_and_retries_of_its_parent(mode: str) -> None:
    """A new attempt of a parent recovers the poll, which goes on with its task."""
    cloud = Cloud(checks=2)
    cloud.broken = []

    async def parent(s: Step) -> int:
        value = await s.poll("x", cloud.start, cloud.check, every=5)
        return value + s.attempt

    async def flow(s: Step) -> int:
        return await s.do("p", parent, retry=Retry(delay=1, jitter=0))

    async def start_then_break(s: Step) -> int:
        if not cloud.checked:
            cloud.broken = [] if not cloud.tokens else cloud.broken
        return await flow(s)

    original = cloud.start

    async def start() -> str:
        task = await original()
        cloud.broken = [ConnectionError()]
        return task

    cloud.start = start  # type: ignore[method-assign,assignment]
    assert (await cloud.end(start_then_break, mode)).value == 9
    assert len(cloud.tokens) == 1
    assert cloud.checked == [("task-1", 0.0), ("task-1", 1.0), ("task-1", 6.0)]


@in_both_modes
async def test_fail_in_a_check_is_for_good(mode: str) -> None:
    """A check that lets a StepError for good through is not tried again."""
    cloud = Cloud()

    async def flow(s: Step) -> int:
        def check(task: str) -> int | None:
            s.fail("the snapshot is corrupt")

        return await s.poll("x", cloud.start, check, every=5, retry=Retry(delay=0))

    outcome = await cloud.end(flow, mode)
    assert isinstance(outcome, Failed)
    assert "the snapshot is corrupt" in str(outcome.error)
    assert outcome.error.errors[0].failure.final
    assert len(cloud.tokens) == 1


# --- timeouts -------------------------------------------------------------------------------------


@in_both_modes
async def test_the_timeout_is_durable(mode: str) -> None:
    """``timeout=`` counts from the start, waits included, alike in one pass and over many."""
    cloud = Cloud(checks=99)

    async def flow(s: Step) -> int:
        return await s.poll("x", cloud.start, cloud.check, every=5, timeout=12)

    outcome = await cloud.end(flow, mode)
    assert isinstance(outcome, Failed)
    (error,) = outcome.error.errors
    assert (error.failure.kind, error.is_a(TimeoutError)) == ("timeout", True)
    assert [when for _, when in cloud.checked] == [0, 5, 10]
    assert cloud.clock.now() - START == 12
    assert info_of(await cloud.node())["taskId"] == "task-1"


@in_both_modes
async def test_a_task_may_finish_in_the_last_moment(mode: str) -> None:
    """A check that is due before the timeout is made, and its result counts."""
    cloud = Cloud(checks=3)

    async def flow(s: Step) -> int:
        return await s.poll("x", cloud.start, cloud.check, every=5, timeout=10.5)

    assert (await cloud.end(flow, mode)).value == 7


@in_both_modes
async def test_each_attempt_has_its_own_timeout(mode: str) -> None:
    """After a timeout that is retried the same task is given as long again."""
    cloud = Cloud(checks=5)

    async def flow(s: Step) -> int:
        return await s.poll(
            "x",
            cloud.start,
            cloud.check,
            every=5,
            timeout=12,
            retry=Retry(delay=1, jitter=0, on=TimeoutError),
        )

    assert (await cloud.end(flow, mode)).value == 7
    assert [when for _, when in cloud.checked] == [0, 5, 10, 13, 18]
    assert len(cloud.tokens) == 1


async def test_a_poll_found_over_its_time_is_not_checked() -> None:
    """A pass that comes after the deadline fails the poll without another check; recover helps."""
    cloud = Cloud(checks=2)

    async def flow(s: Step) -> int:
        return await s.poll("x", cloud.start, cloud.check, every=5, timeout=60)

    keywords: Any = {"store": cloud.storage, "id": "r", "clock": cloud.clock}
    await asteps.reconcile(flow, **keywords)
    cloud.clock.advance(3600)
    assert isinstance(await asteps.reconcile(flow, **keywords), Failed)
    assert len(cloud.checked) == 1
    outcome = await asteps.reconcile(flow, recover=True, **keywords)
    assert isinstance(outcome, Done)
    assert len(cloud.tokens) == 1


async def test_a_start_that_takes_too_long_in_its_thread_keeps_its_id() -> None:
    """When ``start`` returns from its thread after the timeout the step fails, with its ID."""
    cloud = Cloud(checks=1)
    begun, go = threading.Event(), threading.Event()
    starts: list[int] = []

    def start() -> str:
        starts.append(1)
        begun.set()
        go.wait(5)
        return "late"

    async def flow(s: Step) -> int:
        return await s.poll("x", start, cloud.check, every=5, timeout=60)

    async def time_passes() -> None:
        while not begun.is_set():
            await anyio.sleep(0.001)
        cloud.clock.advance(61)
        go.set()

    keywords: Any = {"store": cloud.storage, "id": "r", "clock": cloud.clock}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(time_passes)
        outcome = await asteps.reconcile(flow, **keywords)
    assert isinstance(outcome, Failed)
    assert outcome.error.errors[0].failure.kind == "timeout"
    assert info_of(await cloud.node()) == {"taskId": "late"}
    outcome = await asteps.reconcile(flow, recover=True, **keywords)
    assert isinstance(outcome, Done)
    assert starts == [1]


# --- pending, cancellation ------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
@pytest.mark.parametrize("what", ["start", "check"])
@in_both_modes
async def test_pending_inside(what: str, mode: str, sync: bool) -> None:
    """``asteps.pending()`` in ``start`` or ``check`` puts off that call, by its own delay."""
    cloud = Cloud(checks=2)
    calls: list[float] = []

    def wait() -> None:
        calls.append(cloud.clock.now() - START)
        if len(calls) < 3:
            asteps.pending(after=30, why="the region is down")

    def start() -> str:
        if what == "start":
            wait()
        cloud.tokens.append("")
        return "task"

    def check(task: str) -> int | None:
        if what == "check":
            wait()
        cloud.polls[task] = cloud.polls.get(task, 0) + 1
        return 7 if cloud.polls[task] == 2 else None

    async def start_async() -> str:
        return start()

    async def check_async(task: str) -> int | None:
        return check(task)

    async def flow(s: Step) -> int:
        if sync:
            return await s.poll("x", start, check, every=5)
        return await s.poll("x", start_async, check_async, every=5)

    assert (await cloud.end(flow, mode)).value == 7
    assert calls[:3] == [0, 30, 60]
    assert len(cloud.tokens) == 1
    node = await cloud.node()
    checks = 4 if what == "check" else 2  # to say when to come back is an answer, too
    assert (info_of(node)["polls"], node.attempt) == (checks, 1)


@pytest.mark.parametrize("what", ["start", "check"])
async def test_a_swallowed_signal_is_blamed_on_its_own_step(what: str) -> None:
    """A signal that a sync function swallowed in its thread is misuse of that step."""

    def swallow(*args: object) -> int:
        with suppress(BaseException):
            asteps.pending(after=5)
        raise ValueError

    async def sibling(s: Step) -> None:
        for _ in range(50):
            await checkpoint()
        await anyio.sleep(0.005)

    async def flow(s: Step) -> None:
        async with s.group("g") as g:
            if what == "start":
                g.poll("x", swallow, finished, every=1)
            else:
                g.poll("x", nothing, swallow, every=1)
            g.do("sibling", sibling)

    state = State("flow")
    with pytest.raises(UsageError, match="the body of 'g/x' swallowed the signal"):
        await asteps.run(flow, state=state)
    assert not state.get("g/x").failed


@pytest.mark.parametrize("what", ["start", "check"])
async def test_cancelled_inside(what: str) -> None:
    """A cancelled ``start`` or ``check`` leaves the poll interrupted, not failed; it goes on."""
    cloud = Cloud(checks=1)
    hang = True
    begun = anyio.Event()

    async def maybe(where: str) -> None:
        if where == what and hang:
            begun.set()
            await anyio.sleep_forever()

    async def start() -> str:
        await maybe("start")
        return await cloud.start()

    async def check(task: str) -> int | None:
        await maybe("check")
        return await cloud.check(task)

    async def flow(s: Step) -> int:
        return await s.poll("x", start, check, every=5)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(cloud.end, flow, "run"))
        await begun.wait()
        tasks.cancel_scope.cancel()
    node = await cloud.node()
    assert not node.done
    assert bool(bytes(node.info)) == (what == "check")
    hang = False
    assert (await cloud.end(flow, "run")).value == 7
    assert len(cloud.tokens) == 1


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
@pytest.mark.parametrize("what", ["start", "check"])
async def test_cancelled_while_a_thread_is_inside(what: str, sync: bool) -> None:
    """A cancellation waits for the thread; a start that returned keeps its ID."""
    cloud = Cloud(checks=1)
    begun, go = threading.Event(), threading.Event()
    starts: list[int] = []

    def maybe(where: str) -> None:
        if where == what and not go.is_set():
            begun.set()
            go.wait(5)

    def start() -> str:
        starts.append(1)
        maybe("start")
        return "task"

    def check(task: str) -> int | None:
        maybe("check")
        return 7

    async def start_later() -> str:
        return await anyio.to_thread.run_sync(start)

    async def flow(s: Step) -> int:
        return await s.poll("x", start if sync else start_later, check, every=5)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(cloud.end, flow, "run"))
        while not begun.is_set():
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
        await_thread = threading.Timer(0.005, go.set)
        await_thread.start()
    await_thread.join()
    state = await load_state(cloud.storage, "r")
    assert state is not None
    kept = state.has("x") and bool(bytes(state.get("x").info))
    assert kept or (what == "start" and not sync)
    assert (await cloud.end(flow, "run")).value == 7
    if kept:
        assert starts == [1]


async def asyncio_only(anyio_backend: str) -> bool:
    """Whether there is a ``task.cancel()``."""
    await checkpoint()
    return anyio_backend == "asyncio"


@pytest.mark.parametrize("times", [1, 2])
async def test_a_start_that_was_cancelled_natively_keeps_its_id(
    times: int, anyio_backend: str
) -> None:
    """After asyncio's ``task.cancel()`` the ID that a thread still returns is saved."""
    if not await asyncio_only(anyio_backend):
        return
    cloud = Cloud(checks=1)
    begun, go = threading.Event(), threading.Event()
    starts: list[int] = []

    def start() -> str:
        starts.append(1)
        begun.set()
        go.wait(5)
        return "task"

    async def flow(s: Step) -> int:
        return await s.poll("x", start, cloud.check, every=5)

    task = asyncio.create_task(cloud.end(flow, "run"))
    while not begun.is_set():
        await anyio.sleep(0.001)
    for _ in range(times):
        task.cancel()
        await anyio.sleep(0.001)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert info_of(await cloud.node()) == {"taskId": "task"}
    assert (await cloud.end(flow, "run")).value == 7
    assert starts == [1]


@pytest.mark.parametrize("kind", ["awaitable", "odd", "large"])
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
async def test_a_cancellation_goes_on_whatever_start_returned(
    kind: str, anyio_backend: str
) -> None:
    """An ID that cannot be kept does not take the place of asyncio's cancellation."""
    if not await asyncio_only(anyio_backend):
        return
    cloud = Cloud(checks=1)
    begun, go = threading.Event(), threading.Event()

    async def later() -> str:
        return "task"

    def start() -> Any:
        begun.set()
        go.wait(5)
        if kind == "awaitable":
            return later()
        return object() if kind == "odd" else "x" * 200

    async def flow(s: Step) -> int:
        return await s.poll("x", start, cloud.check, every=5)

    task = asyncio.create_task(cloud.end(flow, "run", max_result_bytes=100))
    while not begun.is_set():
        await anyio.sleep(0.001)
    task.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    gc.collect()


async def test_a_cancelled_error_of_its_own_fails_the_step(anyio_backend: str) -> None:
    """A check that awaited a cancelled task of asyncio's has failed; nobody was cancelled."""
    if not await asyncio_only(anyio_backend):
        return

    async def check(task: int) -> int | None:
        inner = asyncio.ensure_future(asyncio.sleep(1))
        inner.cancel()
        await inner
        return 1

    async def flow(s: Step) -> int:
        return await s.poll("x", nothing, check, every=5)

    outcome = await Cloud().end(flow, "run")
    assert isinstance(outcome, Failed)
    assert outcome.error.errors[0].is_a(asyncio.CancelledError)


async def test_an_id_is_kept_although_a_sibling_misused_something() -> None:
    """A ``start`` that returns in its thread when the pass has been aborted keeps its ID.

    As what a plain function returned is recorded then.
    """
    begun, go = threading.Event(), threading.Event()
    starts: list[int] = []
    correct = False

    def start() -> str:
        starts.append(1)
        begun.set()
        go.wait(5)
        return "task"

    def check(task: str) -> str | None:
        return task

    async def flow(s: Step) -> None:
        async def polling() -> None:
            await s.poll("x", start, check, every=1)

        async def misusing() -> None:
            odd: Any = 5
            if correct:
                return
            while not begun.is_set():
                await anyio.sleep(0.001)
            threading.Timer(0.005, go.set).start()
            await s.poll("y", odd, odd, every=1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(polling)
            tasks.start_soon(misusing)

    cloud = Cloud()
    with pytest.raises(UsageError, match="runs a function, not int"):
        await cloud.end(flow, "run")
    correct = True
    assert isinstance(await cloud.end(flow, "run"), Done)
    assert starts == [1]


@pytest.mark.parametrize("why", ["enough", "a failure", "the block"])
async def test_an_id_is_kept_although_the_group_was_cancelled(why: str) -> None:
    """A ``start`` that returns in its thread after its group has cancelled it keeps its ID."""
    begun, go = threading.Event(), threading.Event()

    def start() -> str:
        begun.set()
        go.wait(5)
        return "task"

    async def check(task: str) -> int | None:
        return None

    async def other(s: Step) -> None:
        while not begun.is_set():
            await anyio.sleep(0.001)
        threading.Timer(0.005, go.set).start()
        if why == "a failure":
            raise ConnectionError

    async def flow(s: Step) -> None:
        enough = 1 if why == "enough" else None
        async with s.group("g", enough=enough, on_error="cancel") as g:
            g.poll("x", start, check, every=1)
            if why == "the block":
                await other(s)
                raise ConnectionError
            g.do("other", other)

    cloud = Cloud()
    outcome = await cloud.end(flow, "run")
    assert isinstance(outcome, Done if why == "enough" else Failed)
    node = await cloud.node("g/x")
    assert info_of(node)["taskId"] == "task"
    assert not node.done


async def test_a_parents_timeout_keeps_the_id() -> None:
    """A poll that its parent's timeout interrupts goes on with its task when that tries again."""
    cloud = Cloud(checks=4)

    async def parent(s: Step) -> int:
        return await s.poll("x", cloud.start, cloud.check, every=5)

    async def flow(s: Step) -> int:
        return await s.do("p", parent, timeout=12, retry=Retry(delay=1, jitter=0))

    for mode in MODES:
        cloud = Cloud(checks=4)
        assert (await cloud.end(flow, mode)).value == 7
        assert len(cloud.tokens) == 1
        assert [when for _, when in cloud.checked] == [0, 5, 10, 15]


# --- misuse ---------------------------------------------------------------------------------------


async def generator(*args: object) -> AsyncIterator[int]:
    """No way to start anything."""
    yield 1


async def takes_one(x: int) -> int:
    """One argument."""
    return x


async def takes_none() -> int:
    """No arguments."""
    return 1


def sync_takes_two(x: int, y: int) -> int:
    """Two arguments."""
    return x


ANY: Any = takes_none

MISUSES: list[tuple[str, dict[str, Any], str]] = [
    ("start takes an argument", {"start": takes_one}, "takes_one cannot be called"),
    ("sync start takes two", {"start": sync_takes_two}, "sync_takes_two cannot be called"),
    ("partial start", {"start": partial(ANY, 1)}, "takes_none cannot be called"),
    ("keyword", {"start": partial(ANY, oops=1)}, "takes_none cannot be called"),
    ("check takes none", {"check": takes_none}, "takes_none cannot be called"),
    ("check takes two", {"check": sync_takes_two}, "sync_takes_two cannot be called"),
    ("generator starts", {"start": generator}, "generator is a generator"),
    ("generator checks", {"check": generator}, "generator is a generator"),
    ("start is an ID", {"start": "i-1"}, "runs a function, not str"),
    ("check is None", {"check": None}, "runs a function, not NoneType"),
    ("start is a coroutine's result", {"start": 5}, "runs a function, not int"),
    ("returns contradicts", {"check": takes_one, "returns": str}, "contradicts takes_one"),
    ("returns cannot come", {"returns": Path}, "Path cannot be read back"),
    ("unknown option", {"limit": 5}, "no option limit"),
    ("retry", {"retry": 3}, "retry= takes a Retry"),
    ("timeout", {"timeout": -1}, "timeout= is -1"),
    ("name", {"name": 5}, "a step's name is a str"),
    ("reserved name", {"name": "$end"}, r"\$"),
    ("long name", {"name": "x" * 201}, "200"),
    ("taken name", {"name": "taken"}, "taken"),
]


@pytest.mark.parametrize(
    ("options", "message"), [m[1:] for m in MISUSES], ids=[m[0] for m in MISUSES]
)
async def test_misuse(options: dict[str, Any], message: str) -> None:
    """Wrong functions and options leave the driver as UsageError; corrected code goes on."""
    cloud = Cloud(checks=1)
    correct = False

    async def one(s: Step) -> int:
        return 1

    async def flow(s: Step) -> int:
        await s.do("taken", one)
        right: dict[str, Any] = {"name": "x", "start": cloud.start, "check": cloud.check}
        given = right if correct else right | options
        with suppress(Exception):
            value: int = await s.poll(**given, every=5)
            return value
        return 0

    with pytest.raises(UsageError, match=message):
        await cloud.end(flow, "reconcile")
    state = await load_state(cloud.storage, "r")
    assert state is None or not [p for p, n in state.walk() if n.failed or n.pending]
    correct = True
    assert (await cloud.end(flow, "reconcile")).value == 7
    assert len(cloud.tokens) == 1


@pytest.mark.parametrize("what", ["start", "check"])
async def test_a_wrong_function_is_named_with_its_part(what: str) -> None:
    """The message says whether ``start`` or ``check`` is wrong, and what it is called with."""

    async def flow(s: Step) -> Any:
        wrong: Any = sync_takes_two
        if what == "start":
            return await s.poll("x", wrong, finished, every=1)
        return await s.poll("x", nothing, wrong, every=1)

    with pytest.raises(UsageError, match=what) as caught:
        await one_step(flow)
    assert "do() passes a Step" not in str(caught.value)


@pytest.mark.parametrize("kind", ["info", "poll to sleep", "sleep to poll", "null"])
async def test_a_node_of_another_kind(kind: str) -> None:
    """A step that was another kind before says so clearly; reset it, and it polls."""
    cloud = Cloud(checks=1)

    async def before(s: Step) -> None:
        await s.save_info(None if kind == "null" else {"step": 3})
        s.pending(after=5)

    async def old(s: Step) -> None:
        if kind == "poll to sleep":
            await s.poll("x", nothing, not_yet, every=5)
        elif kind == "sleep to poll":
            await s.sleep("x", 5)
        else:
            await s.do("x", before)

    async def new(s: Step) -> int:
        if kind == "poll to sleep":
            await s.sleep("x", 5)
            return 7
        return await s.poll("x", cloud.start, cloud.check, every=5)

    keywords: Any = {"store": cloud.storage, "id": "r", "clock": cloud.clock, "name": "flow"}
    await asteps.reconcile(old, **keywords)
    cloud.clock.advance(5)
    with pytest.raises(UsageError, match="info of step 'x' was not written by this kind of step"):
        await asteps.reconcile(new, **keywords)
    async with edit_run(cloud.storage, "r") as state:
        assert not state.get("x").failed
        state.reset("x")
    assert (await cloud.end(new, "reconcile")).value == 7


async def test_a_pending_step_without_info_may_become_a_poll() -> None:
    """A step that had written nothing down polls, from the start."""
    cloud = Cloud(checks=1)

    async def wait(s: Step) -> None:
        s.pending(after=5)

    async def old(s: Step) -> None:
        await s.do("x", wait)

    keywords: Any = {"store": cloud.storage, "id": "r", "clock": cloud.clock, "name": "flow"}
    await asteps.reconcile(old, **keywords)
    cloud.clock.advance(5)
    assert (await cloud.end(cloud.flow, "reconcile")).value == 7


# --- beside others --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["gather", "task group", "group"])
@in_both_modes
async def test_polls_beside_each_other(shape: str, mode: str, anyio_backend: str) -> None:
    """Concurrent polls each keep to their own interval, and come to their own result."""
    if shape == "gather" and not await asyncio_only(anyio_backend):
        return
    cloud = Cloud(checks=4)
    found: dict[int, int] = {}

    async def start(number: int) -> str:
        cloud.tokens.append(str(number))
        return f"task-{number}"

    async def poll(s: Step, number: int) -> None:
        value = await s.poll(f"p{number}", partial(start, number), cloud.check, every=number)
        found[number] = value + number

    async def flow(s: Step) -> None:
        if shape == "gather":
            await asyncio.gather(*(poll(s, n) for n in (2, 3, 5)))
        elif shape == "task group":
            async with anyio.create_task_group() as tasks:
                for n in (2, 3, 5):
                    tasks.start_soon(poll, s, n)
        else:
            async with s.group("g") as g:
                children = {
                    n: g.poll(f"p{n}", partial(start, n), cloud.check, every=n) for n in (2, 3, 5)
                }
            found.update({n: child.result + n for n, child in children.items()})

    outcome = await cloud.end(flow, mode)
    assert isinstance(outcome, Done)
    assert found == {2: 9, 3: 10, 5: 12}
    times: dict[str, list[float]] = {}
    for task, when in cloud.checked:
        times.setdefault(task, []).append(when)
    assert times == {f"task-{n}": [0, n, 2 * n, 3 * n] for n in (2, 3, 5)}
    assert sorted(cloud.tokens) == ["2", "3", "5"]


@pytest.mark.parametrize("shape", ["gather", "task group", "group"])
async def test_a_working_sibling_is_finished_first(shape: str, anyio_backend: str) -> None:
    """Beside a poll that waits beyond the pass a body is brought to its end, once."""
    if shape == "gather" and not await asyncio_only(anyio_backend):
        return
    cloud = Cloud()
    ran: list[float] = []

    async def work(s: Step) -> None:
        await cloud.clock.sleep(3)
        ran.append(cloud.clock.now() - START)

    async def poll(s: Step) -> None:
        await s.poll("x", cloud.start, cloud.check, every=100)

    async def flow(s: Step) -> None:
        if shape == "gather":
            await asyncio.gather(poll(s), s.do("work", work))
        elif shape == "task group":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(poll, s)
                tasks.start_soon(s.do, "work", work)
        else:
            async with s.group("g") as g:
                g.poll("x", cloud.start, cloud.check, every=100)
                g.do("work", work)

    outcome = await asteps.reconcile(flow, state=State("r"), clock=cloud.clock)
    assert isinstance(outcome, Pending)
    assert (outcome.after, ran) == (97, [3])


async def test_a_waiting_poll_gives_back_its_place() -> None:
    """Under ``limit=1`` one poll checks while others wait: all are polled at their intervals."""
    cloud = Cloud(checks=3)
    inside = 0

    async def check(task: str) -> int | None:
        nonlocal inside
        assert inside == 0
        inside += 1
        await checkpoint()
        inside -= 1
        return await cloud.check(task)

    async def flow(s: Step) -> int:
        async with s.group("g", limit=1) as g:
            children = [g.poll(f"p{n}", cloud.start, check, every=10) for n in range(5)]
        return sum(c.result for c in children)

    assert (await cloud.end(flow, "run")).value == 35
    assert sorted({when for _, when in cloud.checked}) == [0, 10, 20]


# --- many -----------------------------------------------------------------------------------------


async def test_ten_thousand_checks_are_one_node() -> None:
    """However often it checks, a poll is one record of constant size, saved once per check."""
    cloud = Cloud(checks=10_000)
    cloud.checked = _Nothing()
    sizes: dict[int, int] = {}

    def note(save: Save) -> None:
        record = save.changes.get("x")
        if record is not None:
            info = json.loads(record).get("info", {})
            sizes[info.get("polls", 0)] = len(record)

    store = FaultyStore(cloud.storage, note)
    store.log = _Counting()
    began = time.perf_counter()
    assert (await cloud.end(cloud.flow, "run", store=store)).value == 7
    took = time.perf_counter() - began
    print(f"10,000 checks: {took:.2f} s, {store.saves} saves, {sizes[10]} and {sizes[9_999]} bytes")
    assert sizes[9_999] - sizes[10] <= 20
    assert store.saves <= 10_000 + 10
    stored = await cloud.storage.load("r")
    assert stored is not None
    assert len(stored.records) == 2


class _Nothing(list[Any]):
    """A list that keeps nothing."""

    def append(self, item: Any, /) -> None:
        pass


class _Counting(list[Any]):
    """A list that only knows how many there were."""

    count_ = 0

    def append(self, item: Any, /) -> None:
        self.count_ += 1

    def __len__(self) -> int:
        return self.count_


MANY = 10_000


async def many_polls(s: Step, every: float, many: int = MANY) -> None:
    """Polls beside each other, which never finish."""

    async def poll(number: int) -> None:
        await s.poll(f"p{number}", nothing, not_yet, every=every)

    async with anyio.create_task_group() as tasks:
        for number in range(many):
            tasks.start_soon(poll, number)


async def test_parked_polls_cost_nothing() -> None:
    """10,000 polls that wait in place use no CPU, and have one timer each."""
    before = timers()
    store = MemoryStore()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(asteps.run, many_polls, 10_000.0, store=store, id="r"))
        deadline = time.monotonic() + 60
        while timers() - before < MANY:
            assert time.monotonic() < deadline
            for _ in range(100):
                await checkpoint()
        for _ in range(100):
            await checkpoint()
        began = time.process_time()
        await anyio.sleep(0.3)
        used = time.process_time() - began
        ticking = timers() - before
        print(f"{MANY:,} parked polls: {used * 1000:.2f} ms of CPU in 300 ms, {ticking} timers")
        tasks.cancel_scope.cancel()
    assert used < 0.1
    assert MANY <= ticking <= MANY + 5
    assert timers() <= before + 1  # of the cancelled scopes none is left


@pytest.mark.parametrize(("shape", "many"), [("task group", MANY), ("group", MANY // 5)])
async def test_many_pending_polls_in_a_pass(shape: str, many: int) -> None:
    """A pass over 10,000 pending polls takes seconds, the next one too, and none is lost."""

    async def in_a_group(s: Step, every: float, many: int) -> None:
        async with s.group("g") as g:
            for number in range(many):
                g.poll(f"p{number}", nothing, not_yet, every=every)

    flow: Any = many_polls if shape == "task group" else in_a_group
    store, clock = MemoryStore(), FakeClock()
    took = []
    for _ in range(2):
        began = time.perf_counter()
        outcome = await asteps.reconcile(flow, 100.0, many, store=store, id="r", clock=clock)
        took.append(time.perf_counter() - began)
        assert isinstance(outcome, Pending)
        assert outcome.after == 100
    print(f"{many:,} pending polls, {shape}: {took[0]:.2f} s, nothing due: {took[1]:.2f} s")
    assert max(took) < 60
    state = await load_state(store, "r")
    assert state is not None
    assert sum(node.pending and node.name[0] == "p" for _, node in state.walk()) == many


# --- in a real store ------------------------------------------------------------------------------


@in_both_modes
async def test_in_a_sqlite_file(mode: str, tmp_path: Path) -> None:
    """Polls and sleeps beside each other, saved in a real file, with real waits in place."""
    checks: dict[str, int] = {}
    starts: list[str] = []

    async def start(name: str) -> str:
        starts.append(name)
        return name

    def check(task: str) -> int | None:
        checks[task] = checks.get(task, 0) + 1
        return checks[task] if checks[task] == 3 else None

    async def flow(s: Step) -> int:
        async with s.group("g") as g:
            polls = [g.poll(n, partial(start, n), check, every=0.003) for n in ("a", "b", "c")]
        await s.sleep("rest", 0.004)
        last = await s.poll("last", partial(start, "last"), check, every=0.001)
        return sum(p.result for p in polls) + last

    path = tmp_path / "runs.db"
    value: int | None = None
    while value is None:
        async with SQLiteStore(path) as store:
            max_wait = 10 if mode == "run" else 0
            outcome = await asteps.reconcile(flow, store=store, id="r", max_wait=max_wait)
            if isinstance(outcome, Done):
                value = outcome.value
            else:
                assert isinstance(outcome, Pending)
                await anyio.sleep(outcome.after)
    assert value == 12
    assert sorted(starts) == ["a", "b", "c", "last"]
    assert checks == dict.fromkeys(("a", "b", "c", "last"), 3)
    async with SQLiteStore(path) as store:
        state = await load_state(store, "r")
        assert state is not None
        assert state.get("g/a").info_as(dict[str, Any])["polls"] == 3


async def test_a_poll_goes_on_in_another_process_of_a_sqlite_file(tmp_path: Path) -> None:
    """Cancelled while it waits in place, a poll goes on from the file with its task ID."""
    starts: list[int] = []
    finish = False
    checked = anyio.Event()

    async def start() -> int:
        starts.append(1)
        return len(starts)

    async def check(task: int) -> str | None:
        checked.set()
        return f"of task {task}" if finish else None

    async def flow(s: Step) -> str:
        return await s.poll("x", start, check, every=0.005)

    path = tmp_path / "runs.db"
    async with SQLiteStore(path) as store, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(asteps.run, flow, store=store, id="r"))
        await checked.wait()
        tasks.cancel_scope.cancel()
    finish = True
    async with SQLiteStore(path) as store:
        assert await asteps.run(flow, store=store, id="r") == "of task 1"
    assert starts == [1]


async def test_a_failed_poll_says_so() -> None:
    """``run`` raises the StepError of a poll, and its origin is the poll's path."""

    async def broken(task: int) -> int | None:
        raise ConnectionError("gone")

    async def parent(s: Step) -> int:
        return await s.poll("x", nothing, broken, every=1)

    async def flow(s: Step) -> int:
        return await s.do("p", parent)

    with pytest.raises(StepError) as caught:
        await asteps.run(flow)
    assert caught.value.origin == "p/x"
