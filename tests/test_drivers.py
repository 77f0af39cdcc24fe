"""The drivers: `run` goes to the end, `reconcile` makes one pass, `open_run` is written inline."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint
from clocks import FakeClock

import asteps
from asteps import (
    BusyError,
    Done,
    Event,
    Failed,
    InfoSaved,
    PassEnded,
    PassStarted,
    Pending,
    Retry,
    RunMismatchError,
    State,
    Step,
    StepDone,
    StepError,
    StepFailed,
    StepPending,
    StepRetrying,
    StepStarted,
    UncertainWriteError,
    UsageError,
    open_run,
    reconcile,
    run,
)
from asteps.stores.memory import MemoryStore
from asteps.testing import Crash, FaultyStore


class Effects:
    """What bodies did, in order; and bodies that do it."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def note(self, s: Step, value: int = 0) -> int:
        """Do something, once."""
        self.log.append(s.path)
        return value

    def take(self) -> list[str]:
        """What happened since the last call."""
        taken, self.log = self.log, []
        return taken


def fails(times: int, effects: Effects) -> Callable[[Step], Awaitable[str]]:
    """A body that fails so often, then returns."""
    left = times

    async def body(s: Step) -> str:
        nonlocal left
        effects.log.append(s.path)
        if left:
            left -= 1
            raise ConnectionError("no route")
        return "through"

    return body


def waits(times: int, effects: Effects, after: float = 5) -> Callable[[Step], Awaitable[str]]:
    """A body that is pending so often, then returns."""
    left = times

    async def body(s: Step) -> str:
        nonlocal left
        effects.log.append(s.path)
        if left:
            left -= 1
            s.pending(after=after, why=f"{left + 1} to go")
        return "arrived"

    return body


async def summary_of(store: MemoryStore, id: str) -> asteps.Summary:
    """The stored summary of a run."""
    stored = await store.load(id)
    assert stored is not None
    return stored.summary


# --- what a pass comes to -------------------------------------------------------------------------


async def test_run_returns_what_the_function_returned() -> None:
    """`run` returns the root's result, as it comes back from its JSON."""

    async def root(s: Step, a: int, b: str) -> tuple[int, str]:
        return (a, b)

    assert await run(root, 1, "x", store=MemoryStore(), id="r") == (1, "x")
    assert await run(root, 1, "x") == (1, "x")


async def test_run_raises_the_failure() -> None:
    """`run` raises the root's `StepError`, the first time with the original as its cause."""
    store, effects = MemoryStore(), Effects()

    async def root(s: Step) -> str:
        return await s.do("a", fails(9, effects))

    with pytest.raises(StepError) as first:
        await run(root, store=store, id="r")
    with pytest.raises(StepError) as later:
        await run(root, store=store, id="r")
    assert effects.log == ["a"]
    for found in (first.value, later.value):
        assert (found.path, found.origin, str(found)) == ("", "a", "the run failed: a: no route")
        assert found.is_a(ConnectionError)
        assert [e.path for e in found.errors] == ["a"]
    assert isinstance(first.value.__cause__, StepError)
    assert isinstance(first.value.__cause__.__cause__, ConnectionError)
    assert later.value.__cause__ is None
    assert (first.value.failure, first.value.errors[0].failure) == (
        later.value.failure,
        later.value.errors[0].failure,
    )


async def test_reconcile_says_what_the_run_came_to() -> None:
    """`reconcile` returns `Pending`, `Done` or `Failed`, each with all its fields."""
    store, effects, clock = MemoryStore(), Effects(), FakeClock()

    async def root(s: Step) -> list[str]:
        async def inner(s: Step) -> str:
            return await s.do("deep", wait)

        return [await s.do("a", inner), await s.do("b", fail)]

    wait, fail = waits(2, effects), fails(1, effects)

    async def drive(**more: Any) -> Done[list[str]] | Failed | Pending:
        return await reconcile(root, store=store, id="r", clock=clock, **more)

    first = await drive()
    assert isinstance(first, Pending)
    assert (first.after, first.path, first.why, first.vanished) == (5, "a/deep", "2 to go", ())
    assert first.state.get("a/deep").pending
    clock.advance(1.5)
    again = await drive()
    assert isinstance(again, Pending)
    assert (again.after, again.path, again.why) == (3.5, "a/deep", "2 to go")
    clock.advance(3.5)
    third = await drive()
    assert isinstance(third, Pending)
    assert (third.after, third.why) == (5, "1 to go")
    clock.advance(5)
    failed = await drive()
    assert isinstance(failed, Failed)
    assert (failed.error.path, failed.error.origin, failed.vanished) == ("", "b", ())
    assert failed.state.failed
    assert failed.state.get("a").done
    done = await drive(recover=True)
    assert isinstance(done, Done)
    assert (done.value, done.vanished) == (["arrived", "through"], ())
    assert done.state.done
    assert effects.log == ["a/deep", "a/deep", "a/deep", "b", "b"]
    assert (await summary_of(store, "r")).status == "done"


async def test_vanished_steps_are_listed() -> None:
    """Steps that changed code no longer has are listed, of parents entered and finished."""
    store, effects, clock = MemoryStore(), Effects(), FakeClock()
    names = ["a", "b", "c"]

    async def part(s: Step) -> str:
        for name in names:
            await s.do(name, effects.note)
        return await s.do("wait", wait)

    async def root(s: Step) -> None:
        await s.do("part", part)

    wait = waits(2, effects)
    assert isinstance(await reconcile(root, store=store, id="r", clock=clock), Pending)
    names[:] = ["b", "d"]
    clock.advance(5)
    second = await reconcile(root, store=store, id="r", clock=clock)
    assert isinstance(second, Pending)
    assert second.vanished == ()  # the parent has not finished
    clock.advance(5)
    third = await reconcile(root, store=store, id="r", clock=clock)
    assert isinstance(third, Done)
    assert third.vanished == ("part/a", "part/c")


async def test_a_done_run_is_not_run_again() -> None:
    """A finished run gives its result without running anything, and saves nothing."""
    store = FaultyStore(MemoryStore())
    effects = Effects()

    async def root(s: Step) -> int:
        effects.log.append("root")
        return await s.do("a", effects.note, 7)

    assert await run(root, store=store, id="r") == 7
    saves = store.saves
    assert await run(root, store=store, id="r") == 7
    again = await reconcile(root, store=store, id="r")
    assert isinstance(again, Done)
    assert again.value == 7
    assert effects.log == ["root", "a"]
    assert store.saves == saves


async def test_a_finished_run_answers_whoever_holds_it() -> None:
    """A run that has ended is read without a lease: of two that ask at once none is busy."""
    store = MemoryStore()

    async def root(s: Step) -> int:
        return 5

    async def failing(s: Step) -> int:
        raise ConnectionError("gone")

    assert await run(root, store=store, id="r") == 5
    with pytest.raises(StepError):
        await run(failing, store=store, id="f")
    for id in "r", "f":
        await store.acquire(id, seconds=30)  # as one that reads it at the same moment does
    assert await run(root, store=store, id="r") == 5
    with pytest.raises(StepError, match="gone"):
        await run(failing, store=store, id="f")
    with pytest.raises(BusyError):  # to recover is to advance it
        await run(failing, store=store, id="f", recover=True)
    for id in "r", "f":
        store.release(id)


async def test_the_result_of_a_finished_run_must_fit() -> None:
    """A recorded result that does not fit the changed function is misuse, and stays."""
    store = MemoryStore()

    async def old(s: Step) -> str:
        return "seven"

    async def new(s: Step) -> int:
        return 7

    await run(old, store=store, id="r", name="flow")
    before = await store.load("r")
    with pytest.raises(UsageError, match="the recorded result of the run does not fit"):
        await run(new, store=store, id="r", name="flow")
    assert await store.load("r") == before


async def test_a_driver_needs_no_store() -> None:
    """Without a store nothing outlives the call, but everything else is the same."""
    effects, clock = Effects(), FakeClock()

    async def root(s: Step) -> str:
        assert (s.run_id, s.epoch) == (None, 0)
        await s.do("a", fails(2, effects), retry=Retry(jitter=0))
        return await s.do("b", waits(1, effects))

    assert await run(root, clock=clock) == "arrived"
    assert effects.log == ["a", "a", "a", "b", "b"]
    assert clock.slept == [1, 2, 5]


async def test_a_driver_can_run_inside_a_step() -> None:
    """A body may drive another run; what that one comes to is the body's own affair."""
    store, effects, clock = MemoryStore(), Effects(), FakeClock()

    async def inner(s: Step) -> str:
        return await s.do("wait", wait)

    async def child(s: Step) -> str:
        outcome = await reconcile(inner, store=store, id="inner", clock=clock)
        if isinstance(outcome, Pending):
            s.pending(after=outcome.after, why=outcome.path)
        assert isinstance(outcome, Done)
        return outcome.value

    async def outer(s: Step) -> str:
        return await s.do("child", child)

    wait = waits(1, effects)
    first = await reconcile(outer, store=store, id="outer", clock=clock)
    assert isinstance(first, Pending)
    assert (first.after, first.path, first.why) == (5, "child", "wait")
    clock.advance(5)
    assert await run(outer, store=store, id="outer", clock=clock) == "arrived"
    assert effects.log == ["wait", "wait"]


# --- waiting: in place, or between passes ---------------------------------------------------------


async def test_run_waits_in_place() -> None:
    """`run` calls the innermost pending step again; its parents stand still."""
    effects, clock = Effects(), FakeClock()

    async def parent(s: Step) -> str:
        effects.log.append("parent")
        return await s.do("wait", wait)

    async def root(s: Step) -> str:
        effects.log.append("root")
        return await s.do("p", parent)

    wait = waits(2, effects)
    assert await run(root, store=MemoryStore(), id="r", clock=clock) == "arrived"
    assert effects.log == ["root", "parent", "p/wait", "p/wait", "p/wait"]
    assert clock.slept == [5, 5]


async def test_max_wait_is_a_budget_of_the_pass() -> None:
    """`reconcile` waits in place only for what is due before the pass's start + ``max_wait``."""
    effects, clock = Effects(), FakeClock()

    async def root(s: Step) -> str:
        return await s.do("wait", wait)

    wait = waits(5, effects, after=2)
    found = await reconcile(root, store=MemoryStore(), id="r", clock=clock, max_wait=5)
    assert isinstance(found, Pending)
    assert (clock.slept, found.after, len(effects.log)) == ([2, 2], 2, 3)


@pytest.mark.parametrize("stored", [True, False])
async def test_run_makes_as_many_passes_as_it_takes(stored: bool) -> None:
    """`run` with a budget ends its pass, sleeps and begins the next one, to the end."""
    effects, clock = Effects(), FakeClock()

    async def parent(s: Step) -> str:
        effects.log.append("parent")
        return await s.do("wait", wait)

    async def root(s: Step) -> str:
        return await s.do("p", parent)

    wait = waits(3, effects)
    where: dict[str, Any] = {"store": MemoryStore(), "id": "r"} if stored else {}
    assert await run(root, clock=clock, max_wait=timedelta(seconds=6), **where) == "arrived"
    one = ["parent", "p/wait", "p/wait"]
    assert effects.log == one + one
    assert clock.slept == [5, 5, 5]


async def test_a_root_may_be_pending() -> None:
    """The root itself may say that it is not finished, in place and between passes."""
    effects, clock = Effects(), FakeClock()

    def make() -> Callable[[Step], Awaitable[str]]:
        return waits(1, effects)

    found = await reconcile(make(), store=MemoryStore(), id="r", clock=clock, name="flow")
    assert isinstance(found, Pending)
    assert (found.after, found.path, found.why) == (5, "", "1 to go")
    assert await run(make(), store=MemoryStore(), id="r", clock=clock, name="flow") == "arrived"
    assert effects.log == ["", "", ""]


async def test_max_pass_bounds_a_pass() -> None:
    """After ``max_pass`` seconds no new body starts, and the pass ends pending."""
    store, effects, clock = MemoryStore(), Effects(), FakeClock()

    async def work(s: Step) -> None:
        effects.log.append(s.path)
        clock.advance(4)

    async def root(s: Step) -> str:
        for i in range(4):
            await s.do(f"s{i}", work)
        return "all"

    first = await reconcile(root, store=store, id="r", clock=clock, max_pass=6)
    assert isinstance(first, Pending)
    assert (first.path, first.why) == ("s2", "the pass has used up its time")
    assert 0 < first.after < 0.1
    assert effects.take() == ["s0", "s1"]
    second = await reconcile(root, store=store, id="r", clock=clock, max_pass=6)
    assert effects.take() == ["s2", "s3"]
    assert isinstance(second, Done)
    assert second.value == "all"


async def test_run_goes_on_after_max_pass() -> None:
    """`run` begins another pass after one that has used up its time, none of it done twice."""
    effects, clock = Effects(), FakeClock()

    async def work(s: Step) -> None:
        effects.log.append(s.path)
        clock.advance(4)

    async def root(s: Step) -> str:
        effects.log.append("root")
        for i in range(4):
            await s.do(f"s{i}", work)
        return "all"

    assert await run(root, store=MemoryStore(), id="r", clock=clock, max_pass=6) == "all"
    assert effects.log == ["root", "s0", "s1", "root", "s2", "s3"]


async def test_max_pass_bounds_waiting_in_place() -> None:
    """What is due after the pass's time ends the pass, though ``max_wait`` would cover it."""
    effects, clock = Effects(), FakeClock()

    async def root(s: Step) -> str:
        return await s.do("w", waits(1, effects))

    found = await reconcile(root, store=MemoryStore(), id="r", clock=clock, max_pass=3, max_wait=60)
    assert isinstance(found, Pending)
    assert (found.after, found.path, clock.slept) == (5, "w", [])


# --- whose run it is ------------------------------------------------------------------------------


async def flow(s: Step, *args: object) -> str:
    """A flow without steps."""
    return "flow"


async def other(s: Step, *args: object) -> str:
    """Another one."""
    return "other"


class Flow:
    """A flow that is a callable object."""

    async def __call__(self, s: Step, *args: object) -> str:
        return "object"


class Opaque:
    """What msgspec cannot encode."""


async def test_another_function_is_refused() -> None:
    """The same id with another function is `RunMismatchError`, in every driver."""
    store = MemoryStore()
    await run(flow, store=store, id="r")
    before = await store.load("r")
    with pytest.raises(RunMismatchError) as found:
        await run(other, store=store, id="r")
    assert (found.value.id, found.value.what) == ("r", "function")
    assert (found.value.recorded, found.value.given) == ("flow", "other")
    assert isinstance(found.value, UsageError)
    with pytest.raises(RunMismatchError, match="begun by 'flow', not by 'other'"):
        await reconcile(other, store=store, id="r")
    with pytest.raises(RunMismatchError):
        async with open_run("other", store=store, id="r"):
            pass
    assert await store.load("r") == before
    assert await run(other, store=store, id="r", name="flow") == "flow"  # the recorded result


async def test_other_arguments_are_refused_by_run() -> None:
    """The same id with other arguments is `RunMismatchError` in `run`; `reconcile` takes them."""
    store = MemoryStore()
    await run(flow, {"a": 1, "b": [2]}, store=store, id="r")
    assert await run(flow, {"b": [2], "a": 1}, store=store, id="r") == "flow"
    for args in (({"a": 1, "b": [3]},), (), ({"a": 1, "b": [2]}, None)):
        with pytest.raises(RunMismatchError) as found:
            await run(flow, *args, store=store, id="r")
        assert found.value.what == "arguments"
        again = await reconcile(flow, *args, store=store, id="r")
        assert isinstance(again, Done)
        assert again.value == "flow"


async def test_arguments_may_change_between_passes() -> None:
    """Each pass of `reconcile` runs with the arguments that it was given."""
    store, seen, clock = MemoryStore(), [], FakeClock()

    async def root(s: Step, size: int) -> int:
        seen.append(size)
        if size < 3:
            s.pending(after=1)
        return size

    for size in (1, 2):
        assert isinstance(await reconcile(root, size, store=store, id="r", clock=clock), Pending)
        clock.advance(1)
    outcome = await reconcile(root, 3, store=store, id="r", clock=clock)
    assert isinstance(outcome, Done)
    assert (outcome.value, seen) == (3, [1, 2, 3])
    assert await run(root, 3, store=store, id="r") == 3
    with pytest.raises(RunMismatchError):
        await run(root, 1, store=store, id="r")


async def test_arguments_that_cannot_be_encoded_count_by_type() -> None:
    """An argument that has no JSON is compared by its type's name."""
    store = MemoryStore()
    await run(flow, Opaque(), 1, store=store, id="r")
    assert await run(flow, Opaque(), 1, store=store, id="r") == "flow"
    for args in ((object(), 1), (Opaque(), 2), (1, Opaque())):
        with pytest.raises(RunMismatchError):
            await run(flow, *args, store=store, id="r")


async def tagged(s: Step, *args: object, tag: int = 0) -> str:
    """A flow with a keyword."""
    return f"tagged {tag}"


async def test_a_partial_is_known_by_its_function() -> None:
    """A partial has its function's name; its keywords count as arguments."""
    store = MemoryStore()
    assert await run(partial(tagged, tag=1), store=store, id="p") == "tagged 1"
    assert await run(partial(partial(tagged), tag=1), store=store, id="p") == "tagged 1"
    for same_function in (partial(tagged, tag=2), tagged):
        with pytest.raises(RunMismatchError) as found:
            await run(same_function, store=store, id="p")
        assert found.value.what == "arguments"
    with pytest.raises(RunMismatchError) as found:
        await run(partial(flow), store=store, id="p")
    assert (found.value.what, found.value.recorded, found.value.given) == (
        "function",
        "tagged",
        "flow",
    )


async def test_a_callable_object_is_known_by_its_type() -> None:
    """A callable object is known by the name of its type."""
    store = MemoryStore()
    assert await run(Flow(), store=store, id="o") == "object"
    assert await run(Flow(), store=store, id="o") == "object"
    assert (await summary_of(store, "o")).name == "Flow"


async def test_a_lambda_needs_a_name() -> None:
    """A lambda is known by ``name=`` alone."""
    store = MemoryStore()
    with pytest.raises(UsageError, match="a lambda has no name to know the run by: pass name="):
        await run(lambda s: flow(s, "of a lambda"), store=store, id="r")
    assert await store.load("r") is None
    assert (
        await run(lambda s: flow(s, "of a lambda"), store=store, id="r", name="mine", max_wait=0)
        == "flow"
    )
    assert (await summary_of(store, "r")).name == "mine"
    with pytest.raises(RunMismatchError):
        await run(lambda s: flow(s, "of a lambda"), store=store, id="r", name="yours")


# --- keywords that are wrong ----------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"store": MemoryStore()}, "store= and id= go together.*id= is missing"),
    ({"id": "r"}, "store= and id= go together.*store= is missing"),
    ({"store": "runs.db", "id": "r"}, "store= takes a Store, not str"),
    ({"store": MemoryStore(), "id": "r", "state": State("r")}, "state= and store= exclude"),
    ({"state": b"{}"}, r"state= takes a State, not bytes: use State.decode\(\)"),
    ({"store": MemoryStore(), "id": ""}, "id= is a str of 1 to 500 characters"),
    ({"store": MemoryStore(), "id": "x" * 501}, "id= is a str of 1 to 500 characters"),
    ({"store": MemoryStore(), "id": 7}, "id= is a str of 1 to 500 characters, not 7"),
    ({"store": MemoryStore(), "id": "a\nb"}, "control characters or surrogates"),
    ({"store": MemoryStore(), "id": "a\ud800"}, "control characters or surrogates"),
    ({"save": "never"}, "save= is 'step' or 'pass', not 'never'"),
    ({"max_crashes": 0}, "max_crashes= is a whole number from 1, not 0"),
    ({"max_crashes": True}, "max_crashes= is a whole number from 1, not True"),
    ({"max_crashes": 1.5}, "max_crashes= is a whole number from 1, not 1.5"),
    ({"max_result_bytes": 0}, "max_result_bytes= is a whole number from 1, not 0"),
    ({"max_result_bytes": "1 MiB"}, "max_result_bytes= is a whole number from 1"),
    ({"name": ""}, "name= is a str of at least one character"),
    ({"name": 7}, "name= is a str of at least one character, not 7"),
    ({"name": "a\x00"}, "control characters or surrogates"),
    ({"max_wait": -1}, "max_wait= is -1; it must be from 0"),
    ({"max_wait": float("nan")}, "max_wait= is nan"),
    ({"max_wait": "5"}, "max_wait= is seconds or a timedelta, not str"),
    ({"max_wait": True}, "max_wait= is seconds or a timedelta, not bool"),
    ({"max_pass": 0}, "max_pass= is 0; it must be above 0"),
    ({"max_pass": timedelta(days=1000)}, "max_pass= is .* at most a year"),
    ({"lease": 0}, "lease= is 0; it must be above 0"),
    ({"lease": float("inf")}, "lease= is inf"),
    ({"inputs": Opaque()}, "inputs= cannot be stored as JSON"),
    ({"inputs": float("nan")}, "inputs= holds NaN"),
    ({"on_end": 5}, "a step runs a function, not int"),
    ({"observers": [7]}, "observers="),
    ({"clock": 5}, "clock="),
    ({"nonsense": 1}, "nonsense"),
]


@pytest.mark.parametrize(
    ("keywords", "says"), WRONG, ids=[f"{i}-{'-'.join(k)}" for i, (k, _) in enumerate(WRONG)]
)
async def test_wrong_keywords(keywords: dict[str, Any], says: str) -> None:
    """A wrong keyword is `UsageError` that names it, in all drivers, before anything happens."""
    ran: list[str] = []

    async def root(s: Step) -> None:
        ran.append("ran")

    for driver in (run, reconcile):
        with pytest.raises((UsageError, TypeError), match=says) as found:
            await driver(root, **keywords)
        assert isinstance(found.value, UsageError) or "nonsense" in keywords
    if "name" not in keywords:
        with pytest.raises((UsageError, TypeError), match=says):
            async with open_run("flow", **keywords):
                ran.append("ran")
    assert ran == []


@pytest.mark.parametrize("name", ["", 7, "a\x1b", None])
async def test_open_run_needs_a_name(name: Any) -> None:
    """The name of an inline run is checked like ``name=``."""
    with pytest.raises(UsageError, match="name="):
        async with open_run(name):
            pass


@pytest.mark.parametrize("fn", [None, 7, "flow"])
async def test_a_run_needs_a_function(fn: Any) -> None:
    """What is no function is refused, with what it is."""
    with pytest.raises(UsageError, match="function"):
        await run(fn)
    with pytest.raises(UsageError, match="function"):
        await reconcile(fn, name="flow")


async def test_a_root_must_be_async() -> None:
    """A root that is no async function is misuse, and nothing is recorded of it."""
    store = MemoryStore()

    def root(s: Step) -> int:
        return 1

    with pytest.raises(UsageError, match="takes a step, so it must be async"):
        await run(root, store=store, id="r")  # type: ignore[arg-type]

    async def fixed(s: Step) -> int:
        return 2

    assert (
        await run(fixed, store=store, id="r", name="test_a_root_must_be_async.<locals>.root") == 2
    )


async def test_a_type_that_cannot_come_back_is_found_first() -> None:
    """A root whose result cannot come back from JSON is refused before its body runs."""
    ran = []

    async def root(s: Step) -> Opaque:
        ran.append(1)
        return Opaque()

    with pytest.raises(UsageError, match="Opaque"):
        await run(root, store=MemoryStore(), id="r")
    assert ran == []


# --- state= ---------------------------------------------------------------------------------------


async def test_a_state_is_changed_in_place() -> None:
    """With ``state=`` the caller keeps the tree, and can store it as bytes between two passes."""
    effects, clock = Effects(), FakeClock()
    state = State("mine")

    async def root(s: Step) -> list[object]:
        assert s.run_id is None
        return [await s.do("a", effects.note, 1), await s.do("b", wait), s.token]

    wait = waits(2, effects)
    first = await reconcile(root, state=state, clock=clock)
    assert isinstance(first, Pending)
    assert first.state is state
    assert state.get("a").done
    assert state.get("a").result_as(int) == 1
    assert state.get("a").done_at is not None
    clock.advance(5)
    copy = State.decode(state.encode())
    second = await reconcile(root, state=copy, clock=clock)
    assert isinstance(second, Pending)
    clock.advance(5)
    third = await reconcile(root, state=State.decode(copy.encode()), clock=clock)
    assert isinstance(third, Done)
    assert third.value[:2] == [1, "arrived"]
    assert effects.take() == ["a", "b", "b", "b"]
    data = third.state.encode()
    assert await run(root, state=State.decode(data)) == third.value
    assert State.decode(data).encode() == data
    assert effects.take() == []


async def test_a_state_knows_whose_it_is() -> None:
    """A caller's own tree is refused to another function or arguments, like a stored one."""
    state = State("mine")
    await run(flow, 1, state=state)
    data = state.encode()
    with pytest.raises(RunMismatchError):
        await run(other, 1, state=state)
    with pytest.raises(RunMismatchError):
        await run(flow, 2, state=state)
    assert state.encode() == data
    assert await run(flow, 1, state=state) == "flow"


async def test_a_state_is_claimed_while_a_driver_uses_it() -> None:
    """A second driver of the same tree is refused with `BusyError`; afterwards it is free."""
    state = State("mine")
    effects = Effects()

    async def root(s: Step) -> int:
        for driver in (run, reconcile):
            with pytest.raises(BusyError):
                await driver(other, state=state)
        with pytest.raises(BusyError):
            async with open_run("x", state=state):
                effects.log.append("never")
        return 1

    assert await run(root, state=state) == 1
    assert await run(root, state=state) == 1

    async def broken(s: Step) -> int:
        raise KeyError("x")

    failed = State("f")
    with pytest.raises(StepError):
        await run(broken, state=failed)
    with pytest.raises(StepError):
        await run(broken, state=failed)
    assert effects.log == []


async def test_a_claim_ends_with_a_cancelled_driver() -> None:
    """A driver that is cancelled or misused leaves the tree free, and as it was."""
    state = State("mine")

    async def root(s: Step) -> int:
        await s.do("hang", hang)
        return 1

    async def hang(s: Step) -> None:
        if hanging:
            scope.cancel()
            await anyio.sleep_forever()

    hanging = True
    with anyio.CancelScope() as scope:
        await run(root, state=state)
    assert scope.cancelled_caught
    assert state.get("hang").proceeding
    hanging = False
    assert await run(root, state=State.decode(state.encode())) == 1
    assert await run(root, state=state) == 1


async def test_a_failed_state_can_be_recovered_in_memory() -> None:
    """``state.recover()`` and ``recover=True`` make a caller's own failed tree runnable."""
    effects = Effects()
    state = State("mine")

    async def root(s: Step) -> str:
        return await s.do("a", body)

    body = fails(2, effects)
    for _ in range(2):
        with pytest.raises(StepError):
            await run(root, state=state)
    assert effects.log == ["a"]
    assert state.recover() == ["a", ""]
    with pytest.raises(StepError):
        await run(root, state=state)
    assert await run(root, state=state, recover=True) == "through"
    assert effects.log == ["a", "a", "a"]


# --- inputs=, recover= ----------------------------------------------------------------------------


async def test_other_inputs_reopen_a_finished_root() -> None:
    """When ``inputs=`` differs a finished root runs again; its done children answer."""
    store, effects = MemoryStore(), Effects()

    async def root(s: Step, spec: dict[str, int]) -> list[str]:
        effects.log.append("root")
        for name, size in spec.items():
            await s.do(name, effects.note, size, inputs=size)
        return sorted(spec)

    async def drive(spec: dict[str, int]) -> Done[list[str]]:
        outcome = await reconcile(root, spec, store=store, id="r", inputs=spec)
        assert isinstance(outcome, Done)
        return outcome

    assert (await drive({"a": 1, "b": 1})).value == ["a", "b"]
    assert effects.take() == ["root", "a", "b"]
    assert (await drive({"b": 1, "a": 1})).value == ["a", "b"]
    assert effects.take() == []
    changed = await drive({"a": 2, "c": 1})
    assert effects.take() == ["root", "a", "c"]
    assert (changed.value, changed.vanished) == (["a", "c"], ("b",))
    assert (await drive({"a": 2, "c": 1})).value == ["a", "c"]
    assert effects.take() == []


async def test_other_inputs_reopen_a_failed_root() -> None:
    """A changed spec is the recovery of a failed root; a failed child needs ``inputs=`` too."""
    store, effects = MemoryStore(), Effects()

    async def check(s: Step, size: int) -> int:
        effects.log.append(f"{s.path} {size}")
        if size < 0:
            raise ValueError("negative")
        return size

    async def root(s: Step, size: int) -> int:
        await s.do("kept", effects.note)
        return await s.do("check", check, size, inputs=size)

    first = await reconcile(root, -1, store=store, id="r", inputs=-1)
    assert isinstance(first, Failed)
    assert isinstance(await reconcile(root, -1, store=store, id="r", inputs=-1), Failed)
    second = await reconcile(root, 5, store=store, id="r", inputs=5)
    assert isinstance(second, Done)
    assert (second.value, effects.log) == (5, ["kept", "check -1", "check 5"])


async def test_inputs_are_taken_over_by_a_run_without_any() -> None:
    """A run recorded without ``inputs=`` takes them over; a driver without compares nothing."""
    store, effects = MemoryStore(), Effects()

    async def root(s: Step) -> int:
        effects.log.append("root")
        return 1

    await reconcile(root, store=store, id="r")
    await reconcile(root, store=store, id="r", inputs="a")
    await reconcile(root, store=store, id="r")
    assert effects.log == ["root"]
    await reconcile(root, store=store, id="r", inputs="b")
    assert effects.log in (["root"], ["root", "root"])  # whether the taking over was saved


async def test_inputs_taken_over_are_durable() -> None:
    """Inputs that a finished run takes over are recorded: the next change reopens it."""
    store, effects = MemoryStore(), Effects()

    async def root(s: Step) -> int:
        effects.log.append("root")
        return 1

    for inputs in (None, "a", "a", "b", "b"):
        keywords: dict[str, Any] = {} if inputs is None else {"inputs": inputs}
        await reconcile(root, store=store, id="r", **keywords)
    assert effects.log == ["root", "root"]


async def test_recover_true_recovers_a_failed_run() -> None:
    """``recover=True`` recovers the causes of a failed run first, and harms no other."""
    store, effects = MemoryStore(), Effects()

    async def root(s: Step) -> str:
        effects.log.append("root")
        await s.do("done", effects.note)
        return await s.do("a", body)

    body = fails(2, effects)
    for _ in range(2):
        outcome = await reconcile(root, store=store, id="r", recover=True)
        assert isinstance(outcome, Failed)
    assert effects.take() == ["root", "done", "a", "root", "a"]
    assert await run(root, store=store, id="r", recover=True) == "through"
    assert effects.take() == ["root", "a"]
    assert await run(root, store=store, id="r", recover=True) == "through"
    assert effects.take() == []


# --- on_end= --------------------------------------------------------------------------------------


class Ending:
    """An ``on_end`` that notes what it saw."""

    def __init__(self, effects: Effects) -> None:
        self._effects = effects

    async def __call__(self, s: Step) -> None:
        self._effects.log.append(s.path)


async def test_on_end_runs_once_after_done() -> None:
    """``on_end`` runs as the step ``$end`` after a done run, once."""
    store, effects = MemoryStore(), Effects()
    end = Ending(effects)

    async def root(s: Step) -> int:
        return await s.do("a", effects.note, 3)

    for _ in range(3):
        assert await run(root, store=store, id="r", on_end=end) == 3
    assert effects.log == ["a", "$end"]
    state = await asteps.load_state(store, "r")
    assert state is not None
    assert state.done
    assert state.get("$end").done
    assert (await summary_of(store, "r")).status == "done"


async def test_on_end_runs_once_after_failed() -> None:
    """``on_end`` runs after a failed run too, once; the run's failure stands."""
    store, effects = MemoryStore(), Effects()
    end = Ending(effects)

    async def root(s: Step) -> str:
        return await s.do("a", fails(9, effects))

    for _ in range(3):
        with pytest.raises(StepError) as found:
            await run(root, store=store, id="r", on_end=end)
        assert (found.value.path, found.value.origin) == ("", "a")
    assert effects.log == ["a", "$end"]
    assert (await summary_of(store, "r")).status == "failed"


async def test_on_end_sees_a_durable_end() -> None:
    """When ``on_end`` begins, what the run came to is in the store."""
    store, seen = MemoryStore(), []

    async def end(s: Step) -> None:
        state = await asteps.load_state(store, "r")
        assert state is not None
        seen.append((state.done, state.failed, (await summary_of(store, "r")).status))

    async def good(s: Step) -> int:
        return 1

    async def bad(s: Step) -> int:
        raise ValueError

    await run(good, store=store, id="r", on_end=end)
    await asteps.delete_run(store, "r")
    with pytest.raises(StepError):
        await run(bad, store=store, id="r", on_end=end)
    assert seen == [(True, False, "proceeding"), (False, True, "proceeding")]


@pytest.mark.parametrize("good", [True, False])
async def test_on_end_is_resumed_after_a_crash(good: bool) -> None:
    """A crash at any save around the end: ``on_end`` runs, and the run's outcome stands."""
    saves = 0
    while True:
        saves += 1
        store, effects = MemoryStore(), Effects()
        end = Ending(effects)

        async def root(s: Step, effects: Effects = effects) -> str:
            return await s.do("a", fails(0 if good else 9, effects))

        faulty = FaultyStore(store.client(), {saves: "crash before"})
        outcome = None
        try:
            await reconcile(root, store=faulty, id="r", on_end=end)
        except BaseException:
            if not faulty.crashed:
                raise
        if not faulty.crashed:
            break
        for _ in range(2):
            outcome = await reconcile(root, store=store, id="r", on_end=end)
            assert isinstance(outcome, Done if good else Failed), saves
        assert effects.log[-1] == "$end"
        assert effects.log.count("$end") <= 2  # twice only if it ran and was not recorded
        assert (await summary_of(store, "r")).status == ("done" if good else "failed")
    assert saves > 3


async def test_on_end_was_not_given_before() -> None:
    """A run that had finished without an ``on_end`` gets its end with the driver that has one."""
    store, effects = MemoryStore(), Effects()

    async def root(s: Step) -> int:
        return await s.do("a", effects.note, 3)

    assert await run(root, store=store, id="r") == 3
    assert await run(root, store=store, id="r", on_end=Ending(effects)) == 3
    assert await run(root, store=store, id="r") == 3
    assert effects.log == ["a", "$end"]


@pytest.mark.parametrize("good", [True, False])
async def test_on_end_may_be_pending(good: bool) -> None:
    """A pending ``on_end`` is waited for like any step; the run's outcome comes after it."""
    store, effects, clock = MemoryStore(), Effects(), FakeClock()
    end = waits(1, effects)

    async def root(s: Step) -> str:
        return await s.do("a", fails(0 if good else 9, effects))

    async def drive() -> Done[str] | Failed | Pending:
        return await reconcile(root, store=store, id="r", on_end=end, clock=clock)

    first = await drive()
    assert isinstance(first, Pending)
    assert (first.after, first.path, first.why) == (5, "$end", "1 to go")
    assert (await summary_of(store, "r")).status == "pending"
    assert (await summary_of(store, "r")).wake_at == clock.now() + 5
    early = await drive()
    assert isinstance(early, Pending)
    clock.advance(5)
    assert isinstance(await drive(), Done if good else Failed)
    assert isinstance(await drive(), Done if good else Failed)
    assert effects.log == ["a", "$end", "$end"]


async def test_run_waits_for_a_pending_on_end() -> None:
    """`run` waits in place for what ``on_end`` waits for."""
    effects, clock = Effects(), FakeClock()

    async def root(s: Step) -> int:
        return 4

    assert await run(root, store=MemoryStore(), id="r", on_end=waits(2, effects), clock=clock) == 4
    assert (effects.log, clock.slept) == (["$end"] * 3, [5, 5])


async def test_on_end_may_have_steps() -> None:
    """``on_end`` may have steps of its own; what they come to is recorded."""
    store, effects = MemoryStore(), Effects()

    async def end(s: Step) -> None:
        await s.do("mail", effects.note)
        await s.do("page", body)

    async def root(s: Step) -> int:
        return 1

    body = fails(1, effects)
    failed = await reconcile(root, store=store, id="r", on_end=end)
    assert isinstance(failed, Failed)
    assert (failed.error.path, failed.error.origin) == ("$end", "$end/page")
    assert effects.take() == ["$end/mail", "$end/page"]
    async with asteps.edit_run(store, "r") as state:
        assert state.recover("$end") == ["$end/page", "$end"]
    assert await run(root, store=store, id="r", on_end=end) == 1
    assert effects.take() == ["$end/page"]


async def test_a_failing_on_end_fails_the_run() -> None:
    """What ``on_end`` raises is reported, on every later call alike; it runs once."""
    store, effects = MemoryStore(), Effects()
    end = fails(9, effects)

    async def root(s: Step) -> int:
        return 1

    for _ in range(2):
        with pytest.raises(StepError) as found:
            await run(root, store=store, id="r", on_end=end)
        assert found.value.path == "$end"
        assert found.value.is_a(ConnectionError)
    outcome = await reconcile(root, store=store, id="r", on_end=end)
    assert isinstance(outcome, Failed)
    assert effects.log == ["$end"]
    assert outcome.state.done


async def test_a_failing_on_end_does_not_hide_the_failure() -> None:
    """When the run and its ``on_end`` have failed, the run's failure is reported."""
    store, effects = MemoryStore(), Effects()

    async def root(s: Step) -> str:
        return await s.do("a", fails(9, effects))

    for _ in range(2):
        with pytest.raises(StepError) as found:
            await run(root, store=store, id="r", on_end=fails(9, effects))
        assert found.value.path == ""
    assert effects.log == ["a", "$end"]


@pytest.mark.parametrize("how", ["recover=True", "recover()", "recover(path)", "inputs", "reset"])
async def test_a_reopened_run_has_another_end(how: str) -> None:
    """A run that was reopened ends again, and ``on_end`` runs again, once per end."""
    store, effects = MemoryStore(), Effects()
    end, body = Ending(effects), fails(1, effects)

    async def root(s: Step) -> str:
        return await s.do("a", body)

    async def drive(**more: Any) -> object:
        return await reconcile(root, store=store, id="r", on_end=end, **more)

    assert isinstance(await drive(inputs=1), Failed)
    assert effects.take() == ["a", "$end"]
    more: dict[str, Any] = {}
    if how == "recover=True":
        more = {"recover": True}
    elif how == "inputs":
        more = {"inputs": 2}
    else:
        async with asteps.edit_run(store, "r") as state:
            if how == "recover()":
                state.recover()
            elif how == "recover(path)":
                state.recover("a")
            else:
                state.reset("a")
    assert isinstance(await drive(**more), Failed if how == "inputs" else Done)
    assert effects.take() == (["$end"] if how == "inputs" else ["a", "$end"])


async def test_on_end_of_an_inline_run() -> None:
    """`open_run` runs ``on_end`` once the block has ended, and again after a reopening."""
    store, effects = MemoryStore(), Effects()
    end = Ending(effects)
    for names in (["a"], ["a"], ["a", "b"], ["a", "b"]):
        async with open_run("x", store=store, id="r", on_end=end) as s:
            for name in names:
                await s.do(name, effects.note)
        assert isinstance(s.outcome, Done)
    assert effects.log == ["a", "$end", "b", "$end"]


# --- crashes --------------------------------------------------------------------------------------


class Dies(BaseException):
    """The process dies in a body."""


async def crash_in_body(
    store: MemoryStore, root: Callable[[Step], Awaitable[Any]], **keywords: Any
) -> object:
    """Drive a run in a process of its own, which may die in a body."""
    client = store.client()
    dead = FaultyStore(client, lambda _: "crash before" if dying else None)
    dying = False

    async def doomed(s: Step) -> Any:
        nonlocal dying
        try:
            return await root(s)
        except Dies:
            dying = True
            raise

    name = keywords.pop("name", "flow")
    try:
        return await reconcile(doomed, store=dead, id="r", name=name, **keywords)
    except BaseException as exc:
        if not dying:
            raise
        await client.aclose()
        return exc


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
async def test_max_crashes(limit: int) -> None:
    """A step that kills its process is run ``max_crashes`` times, then it fails as ``crashed``."""
    store, effects = MemoryStore(), Effects()

    async def deadly(s: Step) -> int:
        effects.log.append(s.path)
        raise Dies

    async def parent(s: Step) -> int:
        return await s.do("deadly", deadly)

    async def root(s: Step) -> int:
        return await s.do("parent", parent)

    for _ in range(limit):
        assert not isinstance(await crash_in_body(store, root, max_crashes=limit), Failed)
    found = await crash_in_body(store, root, max_crashes=limit)
    assert isinstance(found, Failed)
    assert effects.log == ["parent/deadly"] * limit
    assert found.error.origin == "parent/deadly"
    cause = found.error.errors[0].errors[0]
    assert (cause.failure.kind, cause.failure.final) == ("crashed", True)
    assert str(limit) in cause.failure.message
    # Somebody looks into it: it gets its chances again.
    async with asteps.edit_run(store, "r") as state:
        state.recover()
    for _ in range(limit):
        assert not isinstance(await crash_in_body(store, root, max_crashes=limit), Failed)
    assert isinstance(await crash_in_body(store, root, max_crashes=limit), Failed)
    assert effects.log == ["parent/deadly"] * (2 * limit)


async def test_max_crashes_spares_what_is_done() -> None:
    """The failed step is the one that was running: its done siblings stay, the next may run."""
    store, effects = MemoryStore(), Effects()

    async def deadly(s: Step) -> int:
        effects.log.append(s.path)
        raise Dies

    async def root(s: Step) -> str:
        await s.do("before", effects.note)
        try:
            await s.do("deadly", deadly)
            kind = "none"
        except StepError as error:
            kind = error.failure.kind
        await s.do("after", effects.note)
        return kind

    found: object = None
    for _ in range(5):
        found = await crash_in_body(store, root, max_crashes=2)
        if isinstance(found, Done):
            break
    assert isinstance(found, Done)
    assert found.value == "crashed"
    deaths = effects.log.count("deadly")
    assert effects.log == ["before", *["deadly"] * deaths, "after"]
    assert deaths in (2, 3)  # the first one in a pass that had made progress


async def test_crashes_without_a_limit() -> None:
    """Without ``max_crashes`` a step is run again however often it was interrupted."""
    store, seen = MemoryStore(), []

    async def deadly(s: Step) -> int:
        seen.append(s.interruptions)
        if len(seen) < 6:
            raise Dies
        return 1

    async def root(s: Step) -> int:
        return await s.do("deadly", deadly)

    for _ in range(5):
        assert isinstance(await crash_in_body(store, root), BaseException)
    found = await crash_in_body(store, root)
    assert isinstance(found, Done)
    # The first start is no save of its own; from the second pass on starts are durable.
    assert seen == [0, 0, 1, 2, 3, 4]


async def test_interruptions_use_up_no_attempt() -> None:
    """An interruption is counted by ``s.interruptions``, not by ``s.attempt``."""
    store, seen = MemoryStore(), []

    async def flaky(s: Step) -> str:
        seen.append((s.attempt, s.interruptions))
        if len(seen) < 4:
            raise Dies
        if len(seen) == 4:
            raise ConnectionError("once")
        return "fine"

    async def root(s: Step) -> str:
        return await s.do("a", flaky, retry=Retry(attempts=2, delay=0))

    for _ in range(3):
        assert isinstance(await crash_in_body(store, root), BaseException)
    found = await crash_in_body(store, root, max_wait=1)
    assert isinstance(found, Done)
    assert seen == [(1, 0), (1, 0), (1, 1), (1, 2), (2, 0)]


async def test_progress_ends_the_counting() -> None:
    """Passes that get something done are not in vain: ``max_crashes`` counts from there."""
    store, effects = MemoryStore(), Effects()

    async def root(s: Step) -> str:
        for i in range(6):
            await s.do(f"s{i}", effects.note)
            if len(effects.log) == i + 1 and not died[i]:
                died[i] = True
                raise Dies
        return "all"

    died = [False] * 6
    for _ in range(6):
        assert isinstance(await crash_in_body(store, root, max_crashes=2), BaseException)
    found = await crash_in_body(store, root, max_crashes=2)
    assert isinstance(found, Done)
    assert effects.log == [f"s{i}" for i in range(6)]


# --- save= ----------------------------------------------------------------------------------------


async def nested(s: Step) -> int:
    """Two levels, six steps."""

    async def part(s: Step, size: int) -> int:
        return sum([await s.do(f"s{i}", leaf, i) for i in range(size)])

    async def leaf(s: Step, i: int) -> int:
        return i

    return await s.do("p", part, 2) + await s.do("q", part, 2)


async def test_save_step_saves_each_outcome() -> None:
    """By default there is one save to claim the run, one per step, and one at the end."""
    store = FaultyStore(MemoryStore())
    assert await run(nested, store=store, id="r") == 2
    assert store.saves == 1 + 6 + 1


async def test_save_pass_saves_at_the_end() -> None:
    """With ``save="pass"`` there is one save to claim the run, and one when the pass ends."""
    store = FaultyStore(MemoryStore())
    assert await run(nested, store=store, id="r", save="pass") == 2
    assert store.saves == 2
    plain = FaultyStore(MemoryStore())
    await run(nested, store=plain, id="r")
    state, same = await asteps.load_state(store, "r"), await asteps.load_state(plain, "r")
    assert state is not None
    assert same is not None
    assert [p for p, n in state.walk() if n.done] == [p for p, n in same.walk() if n.done]
    assert len(list(state.walk())) == 7


async def test_save_pass_saves_before_it_waits() -> None:
    """With ``save="pass"`` everything is saved before the pass waits in place, or ends pending."""
    inner, effects, clock = MemoryStore(), Effects(), FakeClock()
    store = FaultyStore(inner)

    async def root(s: Step) -> str:
        await s.do("a", effects.note)
        await s.do("b", effects.note)
        return await s.do("w", wait)

    async def wait(s: Step) -> str:
        state = await asteps.load_state(inner, "r")
        assert state is not None
        stored.append((state.has("a"), state.has("w") and state.get("w").pending))
        if len(stored) < 3:
            s.pending(after=5)
        return "there"

    stored: list[tuple[bool, bool]] = []
    first = await reconcile(root, store=store, id="r", save="pass", clock=clock)
    assert isinstance(first, Pending)
    assert store.saves == 2
    clock.advance(5)
    assert await run(root, store=store, id="r", save="pass", clock=clock) == "there"
    assert stored == [(False, False), (True, True), (True, True)]
    assert store.saves == 2 + 3  # claim, before waiting in place, end


async def test_save_pass_saves_some_things_at_once() -> None:
    """Infos and ``at_most_once`` starts are saved at once also with ``save="pass"``."""
    inner = MemoryStore()
    store = FaultyStore(inner)
    seen: list[object] = []

    async def look(path: str) -> State:
        state = await asteps.load_state(inner, "r")
        assert state is not None
        return state.get(path)

    async def infos(s: Step) -> None:
        s.info = {"task": 0}
        await s.save_info({"task": 1})
        seen.append((await look("infos")).info_as(dict))
        s.info = {"task": 2}

    async def once(s: Step) -> None:
        node = await look("once")
        seen.append((node.started, node.proceeding, (await look("infos")).info_as(dict)))

    async def root(s: Step) -> None:
        await s.do("infos", infos)
        await s.do("once", once, at_most_once=True)

    await run(root, store=store, id="r", save="pass")
    assert seen == [{"task": 1}, (True, True, {"task": 2})]
    assert store.saves == 4


async def test_a_crash_with_save_pass() -> None:
    """With ``save="pass"`` what a dead pass did runs again, and nothing is mixed up."""
    store, effects = MemoryStore(), Effects()

    async def root(s: Step) -> str:
        effects.log.append("root")
        await s.do("a", effects.note)
        await s.do("b", effects.note)
        return "fine"

    faulty = FaultyStore(store.client(), {2: "crash before"})
    with pytest.raises(Crash):
        await run(root, store=faulty, id="r", save="pass")
    assert faulty.crashed
    assert await run(root, store=store, id="r", save="pass") == "fine"
    assert effects.log == ["root", "a", "b", "root", "a", "b"]


@pytest.mark.parametrize("save", ["step", "pass"])
async def test_nothing_due_saves_nothing(save: Any) -> None:
    """A pass in which nothing is due runs no body but those on the way, and saves nothing."""
    store, effects, clock = FaultyStore(MemoryStore()), Effects(), FakeClock()

    async def parent(s: Step) -> str:
        effects.log.append("parent")
        await s.do("done", effects.note)
        return await s.do("w", wait)

    async def root(s: Step) -> str:
        return await s.do("p", parent)

    wait = waits(1, effects)
    await reconcile(root, store=store, id="r", clock=clock, save=save)
    saves = store.saves
    effects.take()
    for left in (4, 3, 2):
        clock.advance(1)
        outcome = await reconcile(root, store=store, id="r", clock=clock, save=save)
        assert isinstance(outcome, Pending)
        assert outcome.after == left
    assert effects.take() == ["parent"] * 3
    assert store.saves == saves
    clock.advance(2)
    assert isinstance(await reconcile(root, store=store, id="r", clock=clock, save=save), Done)


async def test_the_store_knows_when_changed_code_is_due() -> None:
    """Where the code has changed, the listing says when what is left of it is due."""
    store, clock = MemoryStore(), FakeClock()

    async def soon(s: Step) -> None:
        s.pending(2)

    async def later(s: Step) -> None:
        s.pending(30)

    async def root(s: Step, with_soon: bool) -> None:
        async with s.group("both") as g:
            g.do("later", later)
            if with_soon:
                g.do("soon", soon)

    for with_soon, due in ((True, 2), (False, 30)):
        outcome = await asteps.reconcile(root, with_soon, store=store, id="r", clock=clock)
        assert isinstance(outcome, Pending)
        assert outcome.after == due
        (line,) = await asteps.list_runs(store)
        assert line.wake_at is not None
        assert line.wake_at.timestamp() == clock.now() + due


async def test_a_delayed_retry_saves_nothing_before_it_is_due() -> None:
    """A step between two attempts is pending: passes before its time save nothing."""
    store, effects, clock = FaultyStore(MemoryStore()), Effects(), FakeClock()

    async def root(s: Step) -> str:
        return await s.do("a", body, retry=Retry(attempts=3, delay=10, jitter=0))

    body = fails(1, effects)
    first = await reconcile(root, store=store, id="r", clock=clock)
    assert isinstance(first, Pending)
    assert (first.after, first.path, first.why) == (10, "a", "no route")
    saves = store.saves
    clock.advance(4)
    second = await reconcile(root, store=store, id="r", clock=clock)
    assert isinstance(second, Pending)
    assert (second.after, store.saves, effects.log) == (6, saves, ["a"])
    clock.advance(6)
    assert await run(root, store=store, id="r", clock=clock) == "through"
    assert effects.log == ["a", "a"]


# --- open_run -------------------------------------------------------------------------------------


async def test_an_inline_run() -> None:
    """The block of `open_run` is the root; its steps are durable like any others."""
    store, effects = MemoryStore(), Effects()
    for _ in range(2):
        async with open_run("Move", store=store, id="r") as s:
            assert (s.path, s.name, s.run_id) == ("", "Move", "r")
            with pytest.raises(UsageError, match=r"s\.outcome is known when the block"):
                _ = s.outcome
            assert await s.do("a", effects.note, 5) == 5
            assert await s.call("b", lambda: 6) == 6
        outcome = s.outcome
        assert isinstance(outcome, Done)
        assert (outcome.value, outcome.vanished, outcome.state.done) == (None, (), True)
    assert effects.log == ["a"]
    summary = await summary_of(store, "r")
    assert (summary.name, summary.status, summary.owner) == ("Move", "done", None)


async def test_a_pending_ends_the_block_quietly() -> None:
    """A pending step ends the block without an exception; ``s.outcome`` says so."""
    store, effects, clock = MemoryStore(), Effects(), FakeClock()
    wait = waits(1, effects)

    async def block() -> object:
        async with open_run("Move", store=store, id="r", clock=clock) as s:
            await s.do("w", wait)
            effects.log.append("after")
        return s.outcome

    outcome = await block()
    assert isinstance(outcome, Pending)
    assert (outcome.after, outcome.path, outcome.why) == (5, "w", "1 to go")
    assert (await summary_of(store, "r")).status == "pending"
    clock.advance(5)
    assert isinstance(await block(), Done)
    assert effects.log == ["w", "w", "after"]


async def test_a_root_level_pending_ends_the_block() -> None:
    """``s.pending`` in the block ends it, also with ``max_wait``: it cannot be run again."""
    store, clock = MemoryStore(), FakeClock()
    async with open_run("Move", store=store, id="r", clock=clock, max_wait=60) as s:
        s.pending(after=3, why="the moon")
    outcome = s.outcome
    assert isinstance(outcome, Pending)
    assert (outcome.after, outcome.path, outcome.why, clock.slept) == (3, "", "the moon", [])


async def test_an_inline_run_may_wait_in_place() -> None:
    """With ``max_wait`` a step of the block is waited for in place."""
    effects, clock = Effects(), FakeClock()
    async with open_run("Move", store=MemoryStore(), id="r", clock=clock, max_wait=60) as s:
        assert await s.do("w", waits(2, effects)) == "arrived"
    assert isinstance(s.outcome, Done)
    assert clock.slept == [5, 5]


async def test_an_early_return_counts_as_done() -> None:
    """To leave the block early is to be done."""
    store, effects = MemoryStore(), Effects()

    async def use(early: bool) -> Step:
        async with open_run("Move", store=store, id="r") as s:
            await s.do("a", effects.note)
            if early:
                return s
            await s.do("b", effects.note)
        return s

    for early in (True, False, True):
        outcome = (await use(early)).outcome
        assert isinstance(outcome, Done)
        assert outcome.vanished == (("b",) if early and "b" in effects.log else ())
    assert effects.log == ["a", "b"]


async def test_a_done_inline_run_is_executed_again_for_nothing() -> None:
    """The block of a done run runs again, its steps answer, and nothing is saved."""
    store, effects = FaultyStore(MemoryStore()), Effects()
    saves: list[int] = []
    for _ in range(3):
        async with open_run("Move", store=store, id="r") as s:
            effects.log.append("block")
            await s.do("a", effects.note)
        assert isinstance(s.outcome, Done)
        saves.append(store.saves)
    assert effects.log == ["block", "a", "block", "block"]
    assert saves == [saves[0]] * 3


async def test_a_new_step_reopens_an_inline_run() -> None:
    """A step that is new in the block of a done run is run; a crash in it leaves it undone."""
    store, effects, clock = MemoryStore(), Effects(), FakeClock()
    async with open_run("Move", store=store, id="r", clock=clock) as s:
        await s.do("a", effects.note)
    wait = waits(1, effects)
    async with open_run("Move", store=store, id="r", clock=clock) as s:
        await s.do("a", effects.note)
        await s.do("w", wait)
    assert isinstance(s.outcome, Pending)
    assert (await summary_of(store, "r")).status == "pending"
    clock.advance(5)
    async with open_run("Move", store=store, id="r", clock=clock) as s:
        await s.do("a", effects.note)
        await s.do("w", wait)
    assert isinstance(s.outcome, Done)
    assert effects.log == ["a", "w", "w"]


async def test_a_failed_inline_run_raises_on_entry() -> None:
    """What a step of the block raised leaves it as `StepError`; later calls raise it on entry."""
    store, effects = MemoryStore(), Effects()
    with pytest.raises(StepError) as first:
        async with open_run("Move", store=store, id="r") as s:
            await s.do("a", fails(1, effects))
    assert isinstance(s.outcome, Failed)
    assert (first.value.path, first.value.origin) == ("", "a")
    with pytest.raises(StepError) as later:
        async with open_run("Move", store=store, id="r"):
            effects.log.append("block")
    assert (later.value.failure, later.value.origin) == (first.value.failure, "a")
    assert effects.log == ["a"]
    async with open_run("Move", store=store, id="r", recover=True) as s:
        await s.do("a", effects.note)
    assert isinstance(s.outcome, Done)
    assert effects.log == ["a", "a"]


async def test_an_exception_in_the_block_is_a_failure() -> None:
    """What the block itself raises is the root's failure, with the original as its cause."""
    store = MemoryStore()
    with pytest.raises(StepError) as found:
        async with open_run("Move", store=store, id="r") as s:
            raise KeyError("vm")
    assert isinstance(found.value.__cause__, KeyError)
    assert found.value.is_a(KeyError)
    assert isinstance(s.outcome, Failed)
    assert s.outcome.error.failure == found.value.failure
    assert (await summary_of(store, "r")).status == "failed"


async def test_a_handled_failure_in_the_block() -> None:
    """A failure that the block handles is history."""
    effects = Effects()
    async with open_run("Move", store=MemoryStore(), id="r") as s:
        try:
            await s.do("a", fails(1, effects))
        except StepError:
            await s.do("b", effects.note)
    assert isinstance(s.outcome, Done)
    assert effects.log == ["a", "b"]


async def test_misuse_in_the_block() -> None:
    """Misuse in the block leaves it as what it is; the corrected block goes on."""
    store, effects = MemoryStore(), Effects()

    async def misuse() -> None:
        async with open_run("Move", store=store, id="r") as s:
            await s.do("a", effects.note)
            await s.do("a", effects.note)

    with pytest.raises(asteps.DuplicateStepError):
        await misuse()
    async with open_run("Move", store=store, id="r") as s:
        await s.do("a", effects.note)
        await s.do("b", effects.note)
    assert effects.log == ["a", "b"]
    late: BaseException | None = None
    try:
        await s.do("late", effects.note)
    except BaseException as exc:  # noqa: BLE001 - no signal may come out here
        late = exc
    assert isinstance(late, UsageError), repr(late)
    assert "this pass has ended" in str(late)


async def test_a_cancelled_block() -> None:
    """A cancelled block is interrupted: nothing has failed, and it goes on the next time."""
    store, effects = MemoryStore(), Effects()
    with anyio.CancelScope() as scope:
        async with open_run("Move", store=store, id="r") as s:
            await s.do("a", effects.note)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert (await summary_of(store, "r")).status == "proceeding"
    assert (await summary_of(store, "r")).owner is None
    async with open_run("Move", store=store, id="r") as s:
        await s.do("a", effects.note)
    assert isinstance(s.outcome, Done)
    assert effects.log == ["a"]


async def test_a_cancelled_block_of_a_done_run() -> None:
    """A block of a done run that is cancelled before anything new leaves the run done."""
    for where in ({"store": MemoryStore(), "id": "r"}, {"state": State("x")}):
        keywords: dict[str, Any] = where
        async with open_run("Move", **keywords) as s:
            await s.call("a", lambda: 1)
        with anyio.CancelScope() as scope:
            async with open_run("Move", **keywords) as s:
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        if "state" in keywords:
            assert keywords["state"].done
        else:
            assert (await summary_of(keywords["store"], "r")).status == "done"


async def test_an_inline_run_is_held() -> None:
    """While the block runs nobody else may advance the run; afterwards anybody may."""
    store = MemoryStore()
    async with open_run("Move", store=store, id="r") as s:
        await s.call("a", lambda: 1)
        with pytest.raises(BusyError) as found:
            async with open_run("Move", store=store, id="r"):
                pass
        assert found.value.id == "r"
        with pytest.raises(BusyError):
            await run(flow, store=store.client(), id="r")
    async with open_run("Move", store=store, id="r") as s:
        pass
    assert isinstance(s.outcome, Done)


async def test_an_inline_run_in_the_callers_state() -> None:
    """`open_run` works on a caller's own tree too."""
    state, effects = State("x"), Effects()
    for _ in range(2):
        async with open_run("Move", state=state) as s:
            assert await s.do("a", effects.note, 4) == 4
        assert isinstance(s.outcome, Done)
        state = State.decode(state.encode())
    assert effects.log == ["a"]


async def test_inputs_of_an_inline_run() -> None:
    """``inputs=`` reopens a failed inline run."""
    store, effects = MemoryStore(), Effects()
    with pytest.raises(StepError):
        async with open_run("Move", store=store, id="r", inputs=1):
            raise ValueError
    async with open_run("Move", store=store, id="r", inputs=2) as s:
        await s.do("a", effects.note)
    assert isinstance(s.outcome, Done)


# --- observers ------------------------------------------------------------------------------------


class Witness:
    """An observer that notes what the store held when it was told."""

    def __init__(self, store: FaultyStore) -> None:
        self._store = store
        self.events: list[Event] = []
        self.saves: list[int] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.saves.append(self._store.saves)

    def take(self) -> list[tuple[type[Event], str]]:
        taken = [(type(e), e.path) for e in self.events]
        self.events.clear()
        return taken


async def test_observers_are_told_in_order() -> None:
    """Events come in the order of each step, told after the save that holds them."""
    store, effects, clock = FaultyStore(MemoryStore()), Effects(), FakeClock()
    witness = Witness(store)

    async def infos(s: Step) -> None:
        await s.save_info(1)

    async def parent(s: Step) -> str:
        await s.do("retried", fails(1, effects), retry=Retry(attempts=2, delay=1, jitter=0))
        await s.do("infos", infos)
        return await s.do("w", wait)

    async def root(s: Step) -> str:
        with suppress(StepError):
            await s.do("bad", fails(9, effects))
        return await s.do("p", parent)

    wait = waits(1, effects)
    keywords: dict[str, Any] = {"store": store, "id": "r", "clock": clock, "observers": [witness]}
    assert isinstance(await reconcile(root, max_wait=3, **keywords), Pending)
    assert {e.run_id for e in witness.events} == {"r"}
    assert witness.take() == [
        (PassStarted, ""),
        (StepStarted, ""),
        (StepStarted, "bad"),
        (StepFailed, "bad"),
        (StepStarted, "p"),
        (StepStarted, "p/retried"),
        (StepRetrying, "p/retried"),
        (StepStarted, "p/retried"),
        (StepDone, "p/retried"),
        (StepStarted, "p/infos"),
        (InfoSaved, "p/infos"),
        (StepDone, "p/infos"),
        (StepStarted, "p/w"),
        (StepPending, "p/w"),
        (PassEnded, ""),
    ]
    clock.advance(5)
    assert isinstance(await reconcile(root, **keywords), Done)
    told = witness.take()
    assert [t for t in told if t[1] in ("bad", "p/retried", "p/infos")] == []  # replayed: nothing
    assert told[-5:] == [
        (StepStarted, "p/w"),
        (StepDone, "p/w"),
        (StepDone, "p"),
        (StepDone, ""),
        (PassEnded, ""),
    ]
    saves = store.saves
    await run(root, **keywords)
    assert (witness.take(), store.saves) == ([], saves)


async def test_observers_are_told_what_happened() -> None:
    """Events say what the step came to: attempt, failure, wake time, why, status, epoch."""
    store, effects, clock = FaultyStore(MemoryStore()), Effects(), FakeClock()
    witness = Witness(store)

    async def root(s: Step) -> None:
        await s.do("a", body, retry=Retry(attempts=2, delay=7, jitter=0))
        await s.do("w", waits(1, effects))

    body = fails(1, effects)
    keywords: dict[str, Any] = {"store": store, "id": "r", "clock": clock, "observers": [witness]}
    await reconcile(root, **keywords)
    clock.advance(7)
    await reconcile(root, **keywords)
    by_type = {type(e): e for e in witness.events}
    retrying = by_type[StepRetrying]
    assert isinstance(retrying, StepRetrying)
    assert (retrying.attempt, retrying.failure.message) == (1, "no route")
    assert (retrying.wake_at - retrying.at).total_seconds() == 7
    waiting = by_type[StepPending]
    assert isinstance(waiting, StepPending)
    assert (waiting.why, (waiting.wake_at - waiting.at).total_seconds()) == ("1 to go", 5)
    assert [e.epoch for e in witness.events if isinstance(e, PassStarted)] == [1, 2]
    assert [e.status for e in witness.events if isinstance(e, PassEnded)] == ["pending", "pending"]
    attempts = [e.attempt for e in witness.events if isinstance(e, StepStarted) and e.path == "a"]
    assert attempts == [1, 2]


async def test_observers_are_told_after_the_save() -> None:
    """When an observer hears of an outcome, the store has it; what was not saved is not told."""
    inner = MemoryStore()
    store, told = FaultyStore(inner.client(), {4: "crash before"}), []

    def observer(event: Event) -> None:
        run = inner._storage.runs["r"]  # what a load() would give; an observer cannot await
        if isinstance(event, StepDone):
            record = msgspec.json.decode(run.records[event.path])
            told.append((event.path, "doneAt" in record))

    async def leaf(s: Step) -> None:
        pass

    async def root(s: Step) -> None:
        for name in "abcd":
            await s.do(name, leaf)

    with pytest.raises(Crash):
        await run(root, store=store, id="r", observers=[observer])
    assert store.crashed
    assert told == [("a", True), ("b", True)]  # save 1 was the claim


async def test_a_raising_observer_touches_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """What an observer raises is logged once per observer; the run and other observers go on."""
    store = FaultyStore(MemoryStore())
    witness = Witness(store)

    def broken(event: Event) -> None:
        raise RuntimeError("observer is down")

    with caplog.at_level(logging.ERROR, logger="asteps"):
        assert await run(nested, store=store, id="r", observers=[broken, witness]) == 2
    assert len(caplog.records) == 1
    assert "observer" in caplog.text
    assert "observer is down" in caplog.text
    assert [p for t, p in witness.take() if t is StepDone] == [
        *("p/s0", "p/s1", "p", "q/s0", "q/s1", "q", "")
    ]


async def test_observers_without_a_store() -> None:
    """Without a store events are told at once; their run id is None."""
    events: list[Event] = []

    async def root(s: Step) -> int:
        assert [type(e) for e in events][:1] == [PassStarted]
        return await s.do("a", Effects().note, 3)

    assert await run(root, observers=[events.append]) == 3
    assert [(type(e), e.path) for e in events] == [
        (PassStarted, ""),
        (StepStarted, ""),
        (StepStarted, "a"),
        (StepDone, "a"),
        (StepDone, ""),
        (PassEnded, ""),
    ]
    assert {e.run_id for e in events} == {None}


# --- max_result_bytes, hooks, lease ---------------------------------------------------------------


async def test_max_result_bytes() -> None:
    """A result above the limit fails its step for good, and says what to do; below it is fine."""
    effects = Effects()

    async def big(s: Step, size: int) -> str:
        effects.log.append(s.path)
        return "x" * size

    async def root(s: Step) -> str:
        assert len(await s.do("fits", big, 98)) == 98  # and two quotes
        return await s.do("big", big, 99, retry=Retry(attempts=5, delay=0))

    with pytest.raises(StepError) as found:
        await run(root, store=MemoryStore(), id="r", max_result_bytes=100)
    assert effects.log == ["fits", "big"]
    cause = found.value.errors[0].failure
    assert (cause.kind, cause.final) == ("too large", True)
    assert "101 bytes" in cause.message
    assert "max_result_bytes=100" in cause.message
    assert "reference" in cause.message


async def test_max_result_bytes_of_the_root() -> None:
    """The root's own result is bounded too; 1 MiB by default."""

    async def root(s: Step, size: int) -> str:
        return "x" * size

    limit = 1 << 20
    assert len(await run(root, limit - 2, store=MemoryStore(), id="r")) == limit - 2
    with pytest.raises(StepError) as found:
        await run(root, limit - 1, store=MemoryStore(), id="r")
    assert found.value.failure.kind == "too large"


async def test_hooks() -> None:
    """``enc_hook`` and ``dec_hook`` serve results, infos, inputs and the root alike."""

    def encode(value: Any) -> Any:
        if isinstance(value, complex):
            return [value.real, value.imag]
        raise NotImplementedError

    def decode(kind: type, value: Any) -> Any:
        return complex(*value) if kind is complex else value

    async def leaf(s: Step, z: complex) -> complex:
        s.info = z
        assert s.info_as(complex) == z
        return z * 2

    async def root(s: Step, z: complex) -> complex:
        return await s.do("leaf", leaf, z, inputs=z)

    store = MemoryStore()
    for _ in range(2):
        assert (
            await run(root, 1j, store=store, id="r", inputs=2j, enc_hook=encode, dec_hook=decode)
            == 2j
        )


async def test_lease_bounds_how_long_a_save_is_repeated() -> None:
    """``lease`` seconds is how long a failing save is repeated, stores without a lease included."""
    clock = FakeClock()
    store = FaultyStore(MemoryStore(), lambda _: "dropped")
    with pytest.raises(UncertainWriteError):
        await run(flow, store=store, id="r", clock=clock, lease=timedelta(seconds=4))
    assert 2 < sum(clock.slept) <= 4


async def test_lease_is_told_to_the_store() -> None:
    """The store is asked for a lease of ``lease`` seconds."""
    asked = []

    class Leasing(MemoryStore):
        async def acquire(self, id: str, /, *, seconds: float) -> str:
            asked.append((id, seconds))
            return await super().acquire(id, seconds=seconds)

    await run(flow, store=Leasing(), id="a")
    await run(flow, store=Leasing(), id="b", lease=timedelta(minutes=2))
    assert asked == [("a", 30), ("b", 120)]


# --- two drivers ----------------------------------------------------------------------------------


async def test_two_drivers_of_one_run() -> None:
    """While a run is held, another driver of this or another process gets `BusyError`."""
    store = MemoryStore()
    refused = []

    async def root(s: Step) -> int:
        for client in (store, store.client()):
            with pytest.raises(BusyError) as found:
                await run(root, store=client, id="r")
            refused.append((found.value.id, found.value.until))
        return 1

    assert await run(root, store=store, id="r") == 1
    assert refused == [("r", None), ("r", None)]
    assert await run(root, store=store.client(), id="r") == 1


async def test_many_runs_side_by_side() -> None:
    """Runs that share a store do not meet: each has its own tree, observers and result."""
    store, results = MemoryStore(), {}

    async def leaf(s: Step, i: int) -> int:
        await checkpoint()
        return i

    async def root(s: Step, i: int) -> int:
        return await s.do("a", leaf, i) + await s.do("b", leaf, i)

    async def drive(i: int) -> None:
        results[i] = await run(root, i, store=store, id=f"r{i}")

    async with anyio.create_task_group() as tasks:
        for i in range(20):
            tasks.start_soon(drive, i)
    assert results == {i: 2 * i for i in range(20)}


async def test_a_crash_leaves_the_driver_as_it_came() -> None:
    """What the store raises that is no `StoreError` leaves the driver, be it in a group."""
    faulty = FaultyStore(MemoryStore(), {2: "crash before"})
    with pytest.raises((Crash, BaseExceptionGroup)):
        await run(nested, store=faulty, id="r")
    assert faulty.crashed


async def test_a_step_that_is_stopped_in_a_pass_with_progress_has_not_crashed() -> None:
    """What died in earlier passes is not held against a step that a sibling's failure stops."""
    attempts: list[int] = []
    held = True

    async def first(s: Step) -> int:
        if held:
            await anyio.sleep_forever()
        return 0

    async def flaky(s: Step) -> int:
        attempts.append(1)
        for _ in range(5):
            await checkpoint()
        if len(attempts) == 1:
            raise ValueError("once")
        return 1

    async def slow(s: Step) -> int:
        for _ in range(20):
            await checkpoint()
        return 2

    async def parent(s: Step) -> str:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(s.do, "flaky", flaky)
            tasks.start_soon(s.do, "slow", slow)
        return "both"

    async def root(s: Step) -> str:
        with suppress(StepError):
            await s.do("first", first)
        return await s.do("parent", parent, retry=asteps.Retry(attempts=3, delay=0))

    store = MemoryStore()
    for _ in range(2):
        with anyio.move_on_after(0.01):
            await run(root, store=store, id="r", max_crashes=2)
    held = False
    assert await run(root, store=store, id="r", max_crashes=2) == "both"


async def test_a_pass_that_finds_all_waiting_mends_the_summary() -> None:
    """Where the pass before died, the next one says that the run is pending, and says it once."""
    store = MemoryStore()
    clock = FakeClock()

    async def wait(s: Step) -> None:
        s.pending(after=1_000)

    async def root(s: Step) -> None:
        await s.do("wait", wait)

    faulty = FaultyStore(store.client(), {2: "crash after"})
    with suppress(Crash):
        await run(root, store=faulty, id="r", clock=clock)
    (before,) = await asteps.list_runs(store)
    assert before.status == "proceeding"
    counted = FaultyStore(store)
    for _ in range(2):
        outcome = await reconcile(root, store=counted, id="r", clock=clock)
        assert isinstance(outcome, Pending)
    (after,) = await asteps.list_runs(store)
    assert (after.status, after.owner, counted.saves) == ("pending", None, 1)
    assert after.wake_at is not None
