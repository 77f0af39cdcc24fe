"""A group: concurrent children with one outcome, each of which is asked on every pass."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint
from worlds import World, came_to, ended

import asteps
from asteps import (
    Child,
    Done,
    DuplicateStepError,
    Failed,
    Group,
    Pending,
    Retry,
    State,
    Step,
    StepError,
    UsageError,
    edit_run,
    load_state,
    open_run,
)
from asteps.stores.memory import MemoryStore
from asteps.testing import Crash, FaultyStore

only_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


class Point(msgspec.Struct):
    """A result of the user's own type."""

    x: int


# --- children and their results -------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 1, 3, 20])
async def test_children_start_in_the_order_given(limit: int | None) -> None:
    """Whatever the event loop's order of tasks is, children start in the order given."""
    world = World()
    names = [f"c{i}" for i in range(12)]

    async def root(s: Step) -> None:
        async with s.group("g", limit=limit) as g:
            for name in names:
                g.do(name, world.leaf)

    await world.run(root)
    assert world.log == [f"g/{name}" for name in names]
    assert [c.name for c in (await world.state()).get("g").states or ()] == names


@pytest.mark.parametrize("keywords", ["", "observers", "max_pass", "max_crashes"])
async def test_children_start_in_order_on_later_passes(keywords: str) -> None:
    """The same where each child has to wait for the claim of the run, or for a save."""
    world = World()
    names = [f"c{i}" for i in range(12)]
    options: dict[str, dict[str, Any]] = {
        "": {},
        "observers": {"observers": [lambda _: None]},
        "max_pass": {"max_pass": 50},
        "max_crashes": {"max_crashes": 1},
    }

    async def root(s: Step) -> None:
        await s.sleep("nap", 5)
        async with s.group("g") as g:
            for name in names:
                g.do(name, world.leaf)

    await world.reconcile(root)
    world.clock.advance(5)
    await world.reconcile(root, **options[keywords])
    assert world.log == [f"g/{name}" for name in names]


async def test_children_run_concurrently() -> None:
    """All children of a group without a limit are at work at the same time, the block too."""
    begun: list[str] = []
    all_there = anyio.Event()

    async def child(s: Step) -> None:
        begun.append(s.name)
        await all_there.wait()

    async def root(s: Step) -> None:
        async with s.group("g") as g:
            for i in range(5):
                g.do(f"c{i}", child)
            while len(begun) < 5:
                await checkpoint()
            all_there.set()

    await asteps.run(root)
    assert begun == [f"c{i}" for i in range(5)]


@pytest.mark.parametrize("mode", ["first pass", "later pass"])
async def test_results_of_all_kinds_of_children(mode: str) -> None:
    """`do`, `call`, `poll` and `map` give what their functions returned, the same on every pass."""
    world = World()
    threads: list[bool] = []

    async def do(s: Step, x: int) -> Point:
        return Point(x)

    async def call(x: int) -> tuple[int, str]:
        return x, "y"

    def plain(x: int) -> set[int]:
        threads.append(threading.current_thread() is threading.main_thread())
        return {x}

    async def start() -> str:
        return "task"

    def check(task: str) -> Point | None:
        return Point(len(task))

    async def item(s: Step, x: int) -> Point:
        return Point(x)

    async def root(s: Step) -> int:
        async with s.group("g") as g:
            a = g.do("a", do, 1)
            b = g.do(do, 2)
            c = g.call("c", call, 3)
            d = g.call(plain, 4)
            e = g.poll("e", start, check, every=5)
            f = g.map("f", item, [5, 6])
            h = g.call("h", lambda: None)
            i = g.do("i", world.leaf, returns=str)
        assert a.result == Point(1)
        assert b.result == Point(2)
        assert c.result == (3, "y")
        assert d.result == {4}
        assert e.result == Point(4)
        assert f.result == [Point(5), Point(6)]
        assert h.result is None
        assert i.result == "g/i"
        assert a.result is a.result
        if mode == "later pass" and world.passed == 0:
            s.pending(after=5)
        return 1

    assert await world.run(root) == 1
    assert (threads, world.log) == ([False], ["g/i"])
    assert came_to(await world.state()) == {
        **{f"g/{name}": "done" for name in ("a", "do", "c", "plain", "e", "f", "h", "i")},
        "g": "done",
        "g/f/5": "done",
        "g/f/6": "done",
    }


async def test_no_result_before_the_block_has_ended() -> None:
    """In the block a result is misuse, also of a child that is done already; its state is there."""
    states: list[State] = []

    async def root(s: Step) -> str:
        async with s.group("g") as g:
            child = g.call("a", quick)
            states.append(child.state)
            while not child.state.done:
                await checkpoint()
            states.append(child.state)
            return child.result

    async def quick() -> str:
        return "q"

    with pytest.raises(UsageError, match="'a' is known when the group's block has ended"):
        await asteps.run(root)
    assert [(s.started, s.done) for s in states] == [(False, False), (True, True)]


async def test_a_childs_state_is_a_snapshot() -> None:
    """`Child.state` can be read at any time; what is done to it is done to nobody else."""
    world = World()

    async def root(s: Step) -> None:
        async with s.group("g") as g:
            a, b = g.do("a", world.leaf), g.do("b", world.hang)
            while not a.state.done:
                await checkpoint()
            assert (b.state.proceeding, b.state.done) == (True, False)
            a.state.name = "z"
            b.state.errs = ["oh"]
            g.do("c", world.leaf)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await checkpoint()
            s.pending(after=5) if a.state.name == "z" else None
            raise ValueError

    outcome = await world.reconcile(root)
    assert isinstance(outcome, Failed)
    assert came_to(outcome.state) == {"g": "proceeding", "g/a": "done", "g/b": "proceeding"} | {
        p: k for p, k in came_to(outcome.state).items() if p == "g/c"
    }


async def test_a_failed_childs_result_raises() -> None:
    """The result of a failed child is its `StepError`, the same on every pass."""
    world = World()

    async def root(s: Step) -> list[str]:
        async with s.group("g", tolerate=1) as g:
            good, bad = g.do("good", world.leaf), g.do("bad", world.fail)
        with pytest.raises(StepError) as caught:
            _ = bad.result
        assert bad.state.failed
        await s.sleep("wait", 5)
        return [good.result, caught.value.path, caught.value.failure.message, str(caught.value)]

    expected = ["g/good", "g/bad", "g/bad", "step 'g/bad' failed: g/bad"]
    assert isinstance(await world.reconcile(root), Pending)
    world.clock.advance(5)
    assert (await world.reconcile(root)).value == expected
    assert sorted(world.log) == ["g/bad", "g/good"]


async def test_the_result_of_a_child_that_came_to_nothing() -> None:
    """It raises a `StepError` of the kind ``interrupted``, on every pass."""
    world = World()

    async def root(s: Step) -> list[str]:
        async with s.group("g", enough=1) as g:
            slow, quick = g.do("s", world.hang), g.do("q", world.leaf)
            while world.at_work or not quick.state.done:
                await checkpoint()
            late = g.do("late", world.leaf)
        found = []
        for child in (slow, late):
            with pytest.raises(StepError) as caught:
                _ = child.result
            found += [caught.value.path, caught.value.failure.kind]
        await s.sleep("wait", 5)
        return [*found, quick.result]

    expected = ["g/s", "interrupted", "g/late", "interrupted", "g/q"]
    assert isinstance(await world.reconcile(root), Pending)
    world.clock.advance(5)
    assert (await world.reconcile(root)).value == expected
    assert world.log == ["g/s", "g/q"]


async def test_options_of_children() -> None:
    """``retry``, ``timeout``, ``at_most_once``, ``inputs`` and ``returns`` hold as in `do`."""
    world = World()
    digests: list[str] = []

    async def root(s: Step, inputs: int) -> list[object]:
        async with s.group("g", tolerate=1) as g:
            a = g.do("a", world.flaky(2), retry=Retry(attempts=3, delay=5, jitter=0))
            b = g.do("b", world.ticking(100), timeout=timedelta(seconds=10))
            c = g.do("c", world.leaf, at_most_once=True)
            d = g.call("d", lambda: inputs, inputs=inputs, returns=int)
            e = g.call("e", count, retry=Retry(attempts=2, delay=0), returns=float)
        assert b.state.failed
        assert b.state.failure is not None
        assert b.state.failure.kind == "timeout"
        digests.append(d.state.detail.inputs if d.state.detail else "")
        return [a.result, c.result, d.result, e.result]

    counted: list[int] = []

    def count() -> float:
        counted.append(1)
        if len(counted) == 1:
            raise OSError("first")
        return 2.5

    assert await world.run(root, 7) == ["g/a", "g/c", 7, 2.5]
    assert world.begun == {"g/a": 3, "g/b": 1, "g/c": 1}
    state = await world.state()
    assert state.get("g/a").attempt == 3
    async with edit_run(world.store, "r") as editing:
        editing.reset("g/a")
    outcome = await world.reconcile(root, 8, max_wait=100)
    assert outcome.value == ["g/a", "g/c", 8, 2.5]
    assert world.begun == {"g/a": 4, "g/b": 1, "g/c": 1}
    assert digests[0] != digests[1]


async def test_an_empty_group() -> None:
    """A group without children is done."""

    async def root(s: Step) -> int:
        for name in ("a", "b"):
            async with s.group(name, enough=1, limit=1, on_error="cancel"):
                pass
        return 5

    state = State("r")
    assert await asteps.run(root, state=state) == 5
    assert came_to(state) == {"a": "done", "b": "done"}


async def test_a_block_may_return() -> None:
    """``return``, ``break`` and ``continue`` leave the block as its end does: children finish."""
    world = World()

    async def body(s: Step) -> str:
        for name in ("one", "two", "three"):
            async with s.group(name) as g:
                g.do("x", world.ticking(5))
                if name == "one":
                    continue
                if name == "two":
                    break
        async with s.group("four") as g:
            g.do("x", world.ticking(5))
            return "returned"

    assert await world.run(body) == "returned"
    assert world.log == ["one/x", "two/x", "four/x"]
    assert set(came_to(await world.state()).values()) == {"done"}


# --- failures -------------------------------------------------------------------------------------


def shape(error: StepError) -> Any:
    """What a `StepError` says, as a value."""
    return (
        error.path,
        error.failure.message,
        error.failure.kind,
        error.failure.final,
        error.failure.causes,
        [shape(e) for e in error.errors],
    )


async def test_one_error_for_the_group() -> None:
    """Its ``errors`` are those of the failed children, in child order, on every pass alike."""
    world = World()
    seen: list[Any] = []

    async def root(s: Step) -> None:
        try:
            async with s.group("g") as g:
                g.do("a", world.late(30))
                g.do("b", world.leaf)
                g.do("c", world.late(10))
                g.do("d/e", world.late(20))
        except StepError as error:
            seen.append(shape(error))
            seen.append([error.is_a(t) for t in (ConnectionError, ExceptionGroup, ValueError)])
            seen.append([e.origin for e in (error, *error.errors)])
        await s.sleep("wait", 5)

    await world.reconcile(root)
    world.clock.advance(5)
    assert isinstance(await world.reconcile(root), Done)
    assert seen[:3] == seen[3:]
    assert seen[1:3] == [[True, True, False], ["g/a", "g/a", "g/c", "g/d~1e"]]
    assert seen[0] == (
        "g",
        "3 of 4 children failed; a: g/a; c: g/c; d/e: g/d~1e",
        "raised",
        False,
        ("a", "c", "d/e"),
        [(f"g/{n}", f"g/{n}", "raised", False, (), []) for n in ("a", "c", "d~1e")],
    )
    assert sorted(world.log) == ["g/a", "g/b", "g/c", "g/d~1e"]


async def test_the_failure_goes_up() -> None:
    """A group's failure that is not handled fails its ancestors; `origin` is the deepest path."""
    world = World()

    async def parent(s: Step) -> None:
        async with s.group("g") as g:
            g.do("a", world.leaf)
            g.do("b", world.fail)

    async def root(s: Step) -> None:
        await s.do("p", parent)

    for _ in range(2):
        outcome = await world.reconcile(root)
        assert isinstance(outcome, Failed)
        assert (outcome.error.path, outcome.error.origin) == ("", "p/g/b")
        assert outcome.error.is_a(ConnectionError)
        state = outcome.state
        failures = [state.get(p).failure for p in ("", "p", "p/g", "p/g/b")]
        assert [f and f.causes for f in failures] == [("p",), ("g",), ("b",), ()]


async def test_siblings_of_a_failed_child_run_to_an_end() -> None:
    """With ``on_error="collect"`` a failure stops nobody, neither those that wait for a place."""
    world = World()

    async def root(s: Step) -> None:
        async with s.group("g", limit=1) as g:
            g.do("a", world.fail)
            g.do("b", world.ticking(50))
            g.do("c", world.pending(1, 60))
            g.do("d", world.leaf)

    outcome = await world.reconcile(root, max_wait=1000)
    assert isinstance(outcome, Failed)
    assert came_to(outcome.state) == {
        "g": "failed",
        "g/a": "failed",
        "g/b": "done",
        "g/c": "done",
        "g/d": "done",
    }


async def test_failures_raise_when_all_have_ended() -> None:
    """While a child is pending the group is, whatever has failed beside it."""
    world = World()

    async def root(s: Step) -> None:
        async with s.group("g") as g:
            g.do("bad", world.fail)
            g.do("wait", world.pending(2, 60))

    for _ in range(2):
        outcome = await world.reconcile(root)
        assert isinstance(outcome, Pending)
        assert (outcome.path, outcome.after) == ("g/wait", 60)
        assert came_to(outcome.state) == {"g": "pending", "g/bad": "failed", "g/wait": "pending"}
        world.clock.advance(60)
    outcome = await world.reconcile(root)
    assert isinstance(outcome, Failed)
    assert world.begun == {"g/bad": 1, "g/wait": 3}


async def test_the_first_pass_has_the_cause() -> None:
    """On the first pass ``__cause__`` is an ``ExceptionGroup`` of the children's errors."""
    world = World()
    causes: list[BaseException | None] = []

    async def root(s: Step) -> None:
        try:
            async with s.group("g") as g:
                g.do("a", world.fail)
                g.do("b", world.fail)
        except StepError as error:
            causes.append(error.__cause__)

    await world.run(root)
    (group,) = causes
    assert isinstance(group, ExceptionGroup)
    assert [type(e.__cause__) for e in group.exceptions] == [ConnectionError] * 2


async def test_recover_follows_the_causes() -> None:
    """`recover()` recovers the failed children of a failed group, and nothing else."""
    world = World()

    async def root(s: Step) -> str:
        async with s.group("handled", tolerate=1) as h:
            h.do("x", world.fail)
        async with s.group("g") as g:
            g.do("a", world.leaf)
            g.do("b", world.flaky(1))
            g.do("c", world.flaky(1))
        return "well"

    with pytest.raises(StepError):
        await world.run(root)
    async with edit_run(world.store, "r") as state:
        assert sorted(state.recover()) == ["", "g", "g/b", "g/c"]
    world.take()
    assert await world.run(root) == "well"
    assert world.take() == ["g/b", "g/c"]


async def test_recover_one_child() -> None:
    """One recovered child of two reopens the group; the other's failure stands."""
    world = World()

    async def root(s: Step) -> None:
        async with s.group("g") as g:
            g.do("b", world.flaky(1))
            g.do("c", world.flaky(1))

    with pytest.raises(StepError):
        await world.run(root)
    async with edit_run(world.store, "r") as state:
        state.recover("g/b")
    world.take()
    with pytest.raises(StepError) as caught:
        await world.run(root)
    assert world.take() == ["g/b"]
    assert [e.path for e in caught.value.errors[0].errors] == ["g/c"]
    assert caught.value.errors[0].failure.message == "1 of 2 children failed; c: g/c 1"
    assert came_to(await world.state()) == {"g": "failed", "g/b": "done", "g/c": "failed"}


async def test_a_parents_retry_recovers_failed_children() -> None:
    """A new attempt of a step runs the failed children of its group again, and no others."""
    world = World()

    async def parent(s: Step) -> str:
        async with s.group("g") as g:
            g.do("a", world.leaf)
            g.do("b", world.flaky(2))
            g.do("c", world.flaky(1))
        return f"attempt {s.attempt}"

    async def root(s: Step) -> str:
        return await s.do("p", parent, retry=Retry(attempts=3, delay=5, jitter=0))

    assert await world.run(root) == "attempt 3"
    assert world.begun == {"p/g/a": 1, "p/g/b": 3, "p/g/c": 2}
    assert world.passed == 15


async def test_a_final_failure_is_final_for_ancestors() -> None:
    """``s.fail`` in a child: no ancestor tries again."""
    world = World()

    async def final(s: Step) -> None:
        world.log.append(s.path)
        s.fail("never")

    async def parent(s: Step) -> None:
        async with s.group("g") as g:
            g.do("a", world.leaf)
            g.do("b", final)

    async def root(s: Step) -> None:
        await s.do("p", parent, retry=Retry(attempts=3))

    outcome = await world.reconcile(root, max_wait=1000)
    assert isinstance(outcome, Failed)
    assert outcome.error.failure.final
    assert sorted(world.log) == ["p/g/a", "p/g/b"]


async def test_a_tolerated_final_failure() -> None:
    """``s.fail`` in a child that the group tolerates fails nothing."""

    async def final(s: Step) -> None:
        s.fail("never")

    async def root(s: Step) -> int:
        async with s.group("g", tolerate=1) as g:
            g.do("b", final)
        return 1

    assert await asteps.run(root) == 1


# --- policies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"limit": 0}, "limit=0: a whole number from 1"),
        ({"limit": -1}, "limit=-1"),
        ({"limit": 1.5}, "limit=1.5"),
        ({"limit": True}, "limit=True"),
        ({"limit": "3"}, "limit='3'"),
        ({"on_error": "stop"}, "on_error='stop': 'collect' or 'cancel'"),
        ({"on_error": None}, "on_error=None"),
        ({"on_error": []}, r"on_error=\[\]"),
        ({"enough": 0}, "enough=0: a whole number from 1"),
        ({"enough": 1.0}, "enough=1.0"),
        ({"enough": False}, "enough=False"),
        ({"tolerate": -1}, "tolerate=-1: a whole number of children, from 0"),
        ({"tolerate": 0.5}, "tolerate=0.5"),
        ({"tolerate": True}, "tolerate=True"),
        ({"tolerate": None}, "tolerate=None"),
    ],
    ids=str,
)
async def test_policies_out_of_range(policy: Any, message: str) -> None:
    """They are misuse before any body runs, and leave no trace in the tree."""
    world, state = World(), State("r")

    async def root(s: Step, policy: Any) -> None:
        try:
            async with s.group("g", **policy) as g:
                g.do("a", world.leaf)
        except Exception:  # noqa: BLE001
            raise AssertionError from None

    with pytest.raises(UsageError, match=message):
        await asteps.reconcile(root, policy, state=state)
    assert (world.log, came_to(state)) == ([], {})
    await asteps.reconcile(root, {}, state=state)
    assert came_to(state) == {"g": "done", "g/a": "done"}


async def test_tolerated_failures() -> None:
    """So many failures do not make the group fail; one more does."""
    world = World()

    async def root(s: Step, tolerate: int) -> str:
        async with s.group("g", tolerate=tolerate) as g:
            g.do("a", world.fail)
            g.do("b", world.leaf)
            g.do("c", world.fail)
        return "done"

    outcome = await world.reconcile(root, 1)
    assert isinstance(outcome, Failed)
    assert outcome.error.errors[0].failure.message == (
        "2 of 3 children failed; 1 are tolerated; a: g/a; c: g/c"
    )
    # Changed code tolerates more.
    async with edit_run(world.store, "r") as state:
        state.set_result("g/b", "set")
    outcome = await world.reconcile(root, 2)
    assert isinstance(outcome, Done)
    assert came_to(outcome.state) == {"g": "done", "g/a": "failed", "g/b": "done", "g/c": "failed"}
    assert sorted(world.log) == ["g/a", "g/b", "g/c"]


async def test_a_failure_cancels_the_others() -> None:
    """``on_error="cancel"``: those at work are interrupted, those not begun never begin."""
    world = World()

    async def root(s: Step) -> None:
        async with s.group("g", on_error="cancel", limit=3) as g:
            g.do("a", world.hang)
            g.do("b", world.late(5))
            g.do("c", world.leaf)
            g.do("d", world.hang)
            g.do("e", world.leaf)

    for turn in range(3):
        outcome = await world.reconcile(root)
        assert isinstance(outcome, Failed)
        assert [e.path for e in outcome.error.errors[0].errors] == ["g/b"]
        assert outcome.error.errors[0].failure.message == "1 of 5 children failed; b: g/b"
        tree = came_to(outcome.state)
        assert tree == {
            "g": "failed",
            "g/a": "proceeding",
            "g/b": "failed",
            "g/c": "done",
            "g/d": "proceeding",
        }
        assert world.take() == ([] if turn else ["g/a", "g/b", "g/c", "g/d"])
        async with edit_run(world.store, "r") as state:
            state.set_result("g/c", "set", now=state.get("g/c").done_at)


async def test_a_failure_too_many_cancels_the_others() -> None:
    """``on_error="cancel"`` and ``tolerate=n``: failure n + 1 cancels."""
    world = World()

    async def root(s: Step) -> None:
        async with s.group("g", on_error="cancel", tolerate=2) as g:
            g.do("h", world.hang)
            for i in range(4):
                g.do(f"f{i}", world.late(5 + i))

    with pytest.raises(StepError) as caught:
        await world.run(root)
    assert [e.path for e in caught.value.errors[0].errors] == ["g/f0", "g/f1", "g/f2"]
    assert world.passed == 7
    assert came_to(await world.state()) == {
        "g": "failed",
        "g/h": "proceeding",
        **{f"g/f{i}": "failed" for i in range(3)},
        "g/f3": "proceeding",
    }


async def test_cancelled_children_run_again_after_a_recover() -> None:
    """What was interrupted by a failure runs again once that failure is recovered."""
    world = World()
    hangs = True

    async def hang(s: Step) -> str:
        with world.working(s):
            if hangs:
                await anyio.sleep_forever()
            assert s.interruptions == 1
            return s.path

    async def root(s: Step) -> list[str]:
        async with s.group("g", on_error="cancel") as g:
            a, b = g.do("a", hang), g.do("b", world.flaky(1))
        return [a.result, b.result]

    with pytest.raises(StepError):
        await world.run(root)
    hangs = False
    assert await world.run(root, recover=True) == ["g/a", "g/b"]
    assert world.begun == {"g/a": 2, "g/b": 2}


@pytest.mark.parametrize("first", [True, False], ids=["winner first", "winner last"])
async def test_enough_closes_the_group(first: bool) -> None:
    """When enough are done the others are cancelled, and never run again, on no later pass."""
    world = World()

    async def root(s: Step, extra: bool = False) -> list[str]:
        async with s.group("g", enough=2, limit=4) as g:
            winners = []
            if first:
                winners = [g.do(f"w{i}", world.ticking(5 + i)) for i in range(2)]
            g.do("hang", world.hang)
            g.do("wait", world.pending(100, 3))
            if not first:
                winners = [g.do(f"w{i}", world.ticking(5 + i)) for i in range(2)]
            g.do("unbegun", world.hang)
            if extra:
                g.do("extra", world.leaf)
        await s.sleep("wait", 60)
        return [w.result for w in winners]

    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert (outcome.path, outcome.after) == ("wait", 60)
    assert sorted(set(world.take())) == ["g/hang", "g/unbegun", "g/w0", "g/w1", "g/wait"]
    when = ended(outcome.state)
    tree = came_to(outcome.state)
    assert {p for p, kind in tree.items() if kind == "done"} == {"g", "g/w0", "g/w1"}
    assert not [p for p, kind in tree.items() if kind == "failed"]
    for extra in (False, True):
        world.clock.advance(10)
        outcome = await world.reconcile(root, extra)
        assert isinstance(outcome, Pending)
        assert (world.take(), ended(outcome.state)) == ([], when)
        assert (outcome.path, world.saves) == ("wait", 0)
    world.clock.advance(60)
    assert (await world.reconcile(root)).value == ["g/w0", "g/w1"]
    assert world.take() == []


async def test_a_closed_group_and_its_map() -> None:
    """A group that a done map closed stays closed, whichever was asked for first."""
    world = World()

    async def root(s: Step) -> list[str]:
        async with s.group("g", enough=1) as g:
            g.do("hang", world.hang)
            m = g.map("m", world.leaf, ["x", "y"], returns=str)
        await s.sleep("wait", 60)
        result: list[str] = m.result
        return result

    assert isinstance(await world.reconcile(root), Pending)
    assert sorted(world.take()) == ["g/hang", "g/m/x", "g/m/y"]
    when = ended(await world.state())
    for _ in range(2):
        world.clock.advance(10)
        outcome = await world.reconcile(root)
        assert isinstance(outcome, Pending)
        assert (world.take(), ended(outcome.state), world.saves) == ([], when, 0)
    world.clock.advance(60)
    assert (await world.reconcile(root)).value == ["g/m/x", "g/m/y"]


async def test_enough_counts_done_children_alone() -> None:
    """Failures before enough are done do not make the group fail, nor does a failure count."""
    world = World()

    async def root(s: Step) -> str:
        async with s.group("g", enough=2) as g:
            g.do("a", world.late(1))
            g.do("b", world.late(2))
            g.do("c", world.ticking(3))
            g.do("d", world.ticking(4))
            g.do("e", world.hang)
        return "enough"

    assert await world.run(root) == "enough"
    assert came_to(await world.state()) == {
        "g": "done",
        "g/a": "failed",
        "g/b": "failed",
        "g/c": "done",
        "g/d": "done",
        "g/e": "proceeding",
    }


async def test_not_enough() -> None:
    """When all have ended and enough are not done, failures that are not tolerated raise."""
    world = World()

    async def root(s: Step, tolerate: int) -> str:
        async with s.group("g", enough=2, tolerate=tolerate) as g:
            g.do("a", world.fail)
            g.do("b", world.leaf)
        return "tolerated"

    with pytest.raises(StepError) as caught:
        await world.run(root, 0)
    assert caught.value.errors[0].failure.message == "1 of 2 children failed; a: g/a"
    outcome = await world.reconcile(root, 1, recover=True)
    assert isinstance(outcome, Done)


@pytest.mark.parametrize("on_error", ["collect", "cancel"])
async def test_enough_and_a_pending_child(on_error: Literal["collect", "cancel"]) -> None:
    """A pending child does not keep a group open of which enough are done."""
    world = World()

    async def root(s: Step) -> str:
        async with s.group("g", enough=1, on_error=on_error) as g:
            g.do("wait", world.pending(100, 1000))
            g.do("a", world.ticking(5))
        return "enough"

    assert (await world.reconcile(root)).value == "enough"
    assert (await world.reconcile(root)).value == "enough"


async def test_code_that_drops_what_decided() -> None:
    """Where changed code no longer asks for the child that closed the group, the others run."""
    world = World()

    async def root(s: Step, names: list[str]) -> None:
        async with s.group("g", enough=1) as g:
            for name in names:
                g.do(name, world.leaf if name.startswith("q") else world.ticking(20))
        await s.sleep("wait", 1000)

    await world.reconcile(root, ["slow", "q1"])
    assert world.take() == ["g/slow", "g/q1"]
    outcome = await world.reconcile(root, ["slow", "q1", "q2"])
    assert world.take() == []
    outcome = await world.reconcile(root, ["slow", "q2"])
    assert sorted(world.take()) == ["g/q2", "g/slow"]
    assert isinstance(outcome, Pending)
    tree = came_to(outcome.state)
    assert (tree["g"], tree["g/q2"], tree["g/slow"]) == ("done", "done", "proceeding")


async def test_a_done_group_is_a_namespace() -> None:
    """A done group asks each child on every pass: one that is new runs, the others answer."""
    world = World()

    async def root(s: Step, names: str) -> list[str]:
        async with s.group("g") as g:
            children = [g.do(name, world.leaf) for name in names]
        await s.sleep("wait", 1000)
        return [c.result for c in children]

    await world.reconcile(root, "ab")
    outcome = await world.reconcile(root, "cab")
    assert world.take() == ["g/a", "g/b", "g/c"]
    assert came_to(outcome.state)["g"] == "done"
    when = ended(outcome.state)
    outcome = await world.reconcile(root, "cab")
    assert (world.take(), world.saves, ended(outcome.state)) == ([], 0, when)
    world.clock.advance(1000)
    outcome = await world.reconcile(root, "ac")
    assert outcome.value == ["g/a", "g/c"]
    assert outcome.vanished == ("g/b",)


async def test_a_done_group_with_a_new_pending_child() -> None:
    """A done group that is given a pending child is pending, and done again when that is."""
    world = World()

    async def root(s: Step, names: list[str]) -> str:
        async with s.group("g") as g:
            for name in names:
                g.do(name, world.pending(1, 60) if name == "w" else world.leaf)
        await s.sleep("wait", 30)
        return "end"

    await world.reconcile(root, ["a"])
    world.clock.advance(10)
    outcome = await world.reconcile(root, ["a", "w"])
    assert (outcome.path, outcome.after) == ("g/w", 60)
    assert came_to(outcome.state) == {
        "g": "pending",
        "g/a": "done",
        "g/w": "pending",
        "wait": "pending",
    }
    world.clock.advance(60)
    assert (await world.reconcile(root, ["a", "w"])).value == "end"


@pytest.mark.parametrize("fault", ["crash before", "crash after"])
@pytest.mark.parametrize("policy", ["enough", "cancel"])
async def test_a_crash_at_every_save_of_a_closed_group(policy: str, fault: Any) -> None:
    """After a crash at any save a closed group stays closed; one that was not runs what is left."""
    for number in range(1, 30):
        world = World()
        quick, keywords = (
            (world.leaf, {"enough": 1})
            if policy == "enough"
            else (world.fail, {"on_error": "cancel"})
        )

        async def root(s: Step, quick: Any, keywords: Any, world: World) -> str:
            await s.do("before", world.leaf)
            try:
                async with s.group("g", **keywords) as g:
                    g.do("hang", world.hang)
                    g.do("quick", quick)
            except StepError:
                pass
            await s.do("after", world.leaf)
            return "end"

        try:
            await world.run(root, quick, keywords, world, faults={number: fault})
        except Crash:
            assert world.stores[-1].crashed
        else:
            assert number > 4
            break
        state = await load_state(world.store, "r")
        decided = state is not None and state.has("g/quick") and state.get("g/quick")._done
        world.take()
        assert await world.run(root, quick, keywords, world) == "end"
        assert ("g/hang" in world.log) == (not decided)
        assert ("g/quick" in world.log) == (not decided)
    else:
        raise AssertionError


# --- shapes ---------------------------------------------------------------------------------------


async def test_nested_groups() -> None:
    """Groups in children of groups, in steps, in map items; each path is the names on the way."""
    world = World()

    async def item(s: Step, x: str) -> str:
        async with s.group("in") as g:
            a = g.do("a", world.leaf)
        return a.result

    async def nested(s: Step, depth: int) -> list[str]:
        async with s.group("g") as g:
            a = g.do("a", world.leaf)
            below = g.do("n", nested, depth - 1) if depth else None
            m = g.map("m", item, ["x", "y"])
        return [a.result, *m.result, *(below.result if below else [])]

    async def root(s: Step) -> list[str]:
        return await s.do("top", nested, 2)

    expected = [
        path
        for base in ("top/g", "top/g/n/g", "top/g/n/g/n/g")
        for path in (f"{base}/a", f"{base}/m/x/in/a", f"{base}/m/y/in/a")
    ]
    assert await world.run(root) == expected
    assert sorted(world.log) == sorted(expected)
    assert await world.run(root) == expected
    assert set(came_to(await world.state()).values()) == {"done"}


async def test_names_are_used_once() -> None:
    """A group's name is a step's: a second use, by whatever, is `DuplicateStepError`."""
    world = World()

    async def group(s: Step) -> None:
        async with s.group("x") as g:
            g.do("a", world.leaf)

    async def do(s: Step) -> None:
        await s.do("x", world.leaf)

    async def map_(s: Step) -> None:
        await s.map("x", world.leaf, ["a"], returns=str)

    async def root(s: Step, uses: list[Any]) -> None:
        for use in uses:
            await use(s)

    for first in (group, do, map_):
        for second in (group, do, map_):
            if first is second is do:
                continue
            with pytest.raises(DuplicateStepError, match="'x' was already used"):
                await asteps.reconcile(root, [first, second], state=State("r"))


@pytest.mark.parametrize("kinds", ["do do", "do map", "map do", "poll do", "call poll"])
async def test_childrens_names_are_used_once(kinds: str) -> None:
    """Two children of one name are `DuplicateStepError`, and neither is recorded as failed."""
    world, state = World(), State("r")

    async def root(s: Step) -> None:
        async with s.group("g") as g:
            use: dict[str, Callable[[], object]] = {
                "do": lambda: g.do("x", world.leaf),
                "call": lambda: g.call("x", lambda: 1),
                "map": lambda: g.map("x", world.leaf, ["a"], returns=str),
                "poll": lambda: g.poll("x", lambda: 1, lambda _: 2, every=5, returns=int),
            }
            for kind in kinds.split():
                use[kind]()

    with pytest.raises(DuplicateStepError, match="'g/x' was already used"):
        await asteps.run(root, state=state)
    assert "failed" not in came_to(state).values()


async def test_a_group_in_a_task_of_the_users() -> None:
    """Groups and maps may be opened in any task below the body, several at the same time."""
    world = World()

    async def grouped(s: Step, name: str) -> None:
        async with s.group(name, limit=2) as g:
            for i in range(4):
                g.do(f"c{i}", world.pending(1, 5 + i))

    async def root(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(grouped, s, "one")
            tasks.start_soon(grouped, s, "two")
            tasks.start_soon(partial(s.map, "m", world.leaf, ["x", "y"], returns=str))
            tasks.start_soon(s.do, "x", world.ticking(3))

    await world.run(root)
    assert set(came_to(await world.state()).values()) == {"done"}
    assert world.begun == {
        **{f"{g}/c{i}": 2 for g in ("one", "two") for i in range(4)},
        **dict.fromkeys(("m/x", "m/y", "x"), 1),
    }


async def test_groups_in_tasks_and_passes() -> None:
    """The same, a pass at a time: each pass ends with the soonest wake time of all."""
    world = World()

    async def grouped(s: Step, name: str, after: float) -> None:
        async with s.group(name) as g:
            g.do("a", world.pending(1, after))
            g.do("b", world.ticking(2))

    async def root(s: Step) -> str:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(grouped, s, "one", 30)
            tasks.start_soon(grouped, s, "two", 20)
        return "end"

    outcome = await world.reconcile(root)
    assert (outcome.path, outcome.after, outcome.why) == ("two/a", 18, "two/a 1")
    world.clock.advance(18)
    outcome = await world.reconcile(root)
    assert (outcome.path, outcome.after) == ("one/a", 10)
    world.clock.advance(10)
    assert (await world.reconcile(root)).value == "end"
    assert world.begun == {"one/a": 2, "one/b": 1, "two/a": 2, "two/b": 1}


async def test_two_groups_open_at_once() -> None:
    """Two groups may be open in one body; children of both run beside one another."""
    world = World()
    met = anyio.Event()

    async def waits(s: Step) -> str:
        await met.wait()
        return "met"

    async def meets(s: Step) -> str:
        met.set()
        return "meets"

    async def root(s: Step) -> list[str]:
        async with s.group("one") as one, s.group("two") as two:
            a, b = one.do("a", waits), two.do("b", meets)
            c = one.do("c", world.leaf)
        async with s.group("outer") as outer:
            d = outer.do("d", world.pending(1))
            async with s.group("inner") as inner:
                e = inner.do("e", world.leaf)
                f = outer.do("f", world.leaf)
            assert e.result == "inner/e"
            with pytest.raises(UsageError, match="when the group's block has ended"):
                _ = d.result
        return [c.result for c in (a, b, c, d, f)]

    assert await world.run(root) == ["met", "meets", "one/c", "outer/d", "outer/f"]


async def test_two_groups_one_after_another_ends() -> None:
    """Of two open groups the inner one ends first, whatever the outer one's children do."""
    world = World()

    async def root(s: Step) -> list[str]:
        async with s.group("outer") as outer:
            d = outer.do("d", world.pending(1, 50))
            async with s.group("inner") as inner:
                e = inner.do("e", world.pending(1, 5))
                f = outer.do("f", world.leaf)
            world.log.append(f"inner at {world.passed:g}")
            assert e.result == "inner/e"
        world.log.append(f"outer at {world.passed:g}")
        return [c.result for c in (d, e, f)]

    assert await world.run(root) == ["outer/d", "inner/e", "outer/f"]
    assert [line for line in world.log if " at " in line] == ["inner at 5", "outer at 50"]


async def test_two_open_groups_and_passes() -> None:
    """The same, a pass at a time."""
    world = World()

    async def root(s: Step) -> str:
        async with s.group("outer") as outer:
            outer.do("d", world.pending(1, 20))
            async with s.group("inner") as inner:
                inner.do("e", world.pending(1, 50))
                outer.do("f", world.ticking(5))
            outer.do("later", world.leaf)
        return "end"

    outcome = await world.reconcile(root)
    assert (outcome.path, outcome.after) == ("outer/d", 15)
    assert came_to(outcome.state)["outer/f"] == "done"
    world.clock.advance(15)
    outcome = await world.reconcile(root)
    assert (outcome.path, outcome.after) == ("inner/e", 30)
    world.clock.advance(30)
    assert (await world.reconcile(root)).value == "end"
    assert world.begun == {
        "outer/d": 2,
        "inner/e": 2,
        "outer/f": 1,
        "outer/later": 1,
    }


async def test_steps_beside_the_group() -> None:
    """The block may run steps of its own; they are siblings of the group."""
    world = World()

    async def root(s: Step) -> list[str]:
        async with s.group("g") as g:
            a = g.do("a", world.ticking(10))
            x = await s.do("x", world.ticking(3))
            b = g.do("b", world.leaf)
            (y,) = await s.map("y", world.leaf, ["1"], returns=str)
            z = await s.call("z", lambda: "z")
            assert not a.state.done
        return [a.result, b.result, x, y, z]

    expected = ["g/a", "g/b", "x", "y/1", "z"]
    assert await world.run(root) == expected
    assert world.passed == 10
    assert await world.run(root) == expected
    assert sorted(world.log) == ["g/a", "g/b", "x", "y/1"]


async def test_a_group_in_open_run() -> None:
    """In the block of `open_run` a group is as anywhere; a pending child ends the block quietly."""
    world = World()
    ends: list[str] = []

    async def block(**keywords: Any) -> Any:
        async with open_run("r", store=world.store, id="r", clock=world.clock, **keywords) as s:
            async with s.group("g", limit=2) as g:
                a = g.do("a", world.leaf)
                g.do("b", world.pending(1, 60))
                g.map("m", world.leaf, ["x"], returns=str)
            ends.append(a.result)
        return s.outcome

    outcome = await block()
    assert isinstance(outcome, Pending)
    assert (outcome.path, outcome.after, ends) == ("g/b", 60, [])
    assert isinstance(await block(max_wait=100), Done)
    assert isinstance(await block(), Done)
    assert (ends, sorted(world.log)) == (["g/a"] * 2, ["g/a", "g/b", "g/b", "g/m/x"])


async def test_a_failed_group_in_open_run() -> None:
    """A failure of a group leaves the block of `open_run` as the one of a step does."""
    world = World()
    for _ in range(2):
        with pytest.raises(StepError) as caught:
            async with open_run("r", store=world.store, id="r") as s, s.group("g") as g:
                g.do("a", world.fail)
        assert caught.value.origin == "g/a"
    assert world.log == ["g/a"]


# --- what may happen in the block -----------------------------------------------------------------


async def test_a_sleep_in_the_block() -> None:
    """``await s.sleep`` in the block: children that work are finished before the pass ends."""
    world = World()

    async def root(s: Step) -> list[str]:
        async with s.group("g", limit=1) as g:
            a, b = g.do("a", world.ticking(5)), g.do("b", world.ticking(5))
            w = g.do("w", world.pending(1, 50))
            await s.sleep("nap", 100)
            c = g.do("c", world.leaf)
        return [x.result for x in (a, b, c, w)]

    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert (outcome.path, outcome.after) == ("g/w", 50)
    assert came_to(outcome.state) == {
        "g": "pending",
        "g/a": "done",
        "g/b": "done",
        "g/w": "pending",
        "nap": "pending",
    }
    world.clock.advance(50)
    outcome = await world.reconcile(root)
    assert (outcome.path, outcome.after) == ("nap", 40)
    world.clock.advance(40)
    assert (await world.reconcile(root)).value == ["g/a", "g/b", "g/c", "g/w"]
    assert world.begun == {"g/a": 1, "g/b": 1, "g/w": 2, "g/c": 1}


async def test_a_sleep_in_the_block_in_place() -> None:
    """In place the children go on while the block sleeps."""
    world = World()

    async def root(s: Step) -> None:
        async with s.group("g") as g:
            g.do("w", world.pending(3, 20))
            await s.sleep("nap", 50)
            assert world.begun == {"g/w": 3}

    await world.run(root)
    assert (world.begun, world.passed) == ({"g/w": 4}, 60)


async def test_a_pending_block() -> None:
    """``s.pending()`` in the block: children come to their ends first, then the body waits."""
    world = World()
    entered: list[float] = []

    async def body(s: Step) -> str:
        entered.append(world.passed)
        async with s.group("g") as g:
            g.do("a", world.ticking(5))
            g.do("w", world.pending(1, 7))
            if len(entered) < 3:
                s.pending(after=30, why="the block")
        return "end"

    async def root(s: Step) -> str:
        return await s.do("p", body)

    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert (outcome.path, outcome.why, outcome.after) == ("p", "the block", 30)
    assert came_to(outcome.state)["p/g/a"] == "done"
    assert await world.run(root) == "end"
    assert entered == [0, 35, 65]
    assert world.begun == {"p/g/a": 1, "p/g/w": 2}


@pytest.mark.parametrize("where", ["block", "task in block"])
async def test_the_soonest_of_block_and_children(where: str) -> None:
    """When the block waits and children wait, the pass ends with the soonest of their times."""
    world = World()

    async def root(s: Step) -> None:
        async with s.group("g") as g:
            g.do("w", world.pending(9, 5))
            if where == "block":
                await s.sleep("nap", 30)
            else:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(s.sleep, "nap", 30)

    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert (outcome.path, outcome.after) == ("g/w", 5)


class BrokenError(Exception):
    """What a block raises."""


async def test_an_error_in_the_block() -> None:
    """A plain error cancels the children, which are interrupted, and leaves unwrapped."""
    world = World()
    caught: list[BaseException] = []
    error = BrokenError("block")

    async def root(s: Step) -> str:
        try:
            async with s.group("g", limit=2) as g:
                g.do("a", world.leaf)
                g.do("h", world.hang)
                g.do("i", world.hang)
                g.do("never", world.leaf)
                while "g/i" not in world.log:
                    await checkpoint()
                raise error
        except BrokenError as exc:
            caught.append(exc)
        await s.do("after", world.leaf)
        return "went on"

    assert await world.run(root) == "went on"
    assert caught == [error]
    assert came_to(await world.state()) == {
        "g": "proceeding",
        "g/a": "done",
        "g/h": "proceeding",
        "g/i": "proceeding",
        "after": "done",
    }


async def test_an_error_in_the_block_that_is_not_handled() -> None:
    """It fails the body as any error does; children that failed before are no causes of it."""
    world = World()

    async def root(s: Step) -> None:
        async with s.group("g") as g:
            bad = g.do("bad", world.fail)
            while not bad.state.failed:
                await checkpoint()
            raise BrokenError("block")

    with pytest.raises(StepError) as caught:
        await world.run(root)
    assert caught.value.is_a(BrokenError)
    assert (caught.value.errors, caught.value.failure.causes) == ((), ())
    assert isinstance(caught.value.__cause__, BrokenError)


async def test_a_step_error_in_the_block() -> None:
    """A step of the block that fails cancels the children; its error leaves as it is."""
    world = World()

    async def root(s: Step) -> None:
        async with s.group("g") as g:
            g.do("h", world.hang)
            await s.do("bad", world.fail)

    with pytest.raises(StepError) as caught:
        await world.run(root)
    assert [e.path for e in caught.value.errors] == ["bad"]
    assert came_to(await world.state()) == {
        "g": "proceeding",
        "g/h": "proceeding",
        "bad": "failed",
    }


async def test_a_failure_in_the_block_of_an_own_retry() -> None:
    """After an error in the block the body's next attempt finds what its children came to."""
    world = World()

    async def body(s: Step) -> str:
        async with s.group("g") as g:
            a, b = g.do("a", world.leaf), g.do("b", world.pending(1, 50))
            while not a.state.done:
                await checkpoint()
            if s.attempt < 3:
                raise BrokenError
        return b.result

    async def root(s: Step) -> str:
        return await s.do("p", body, retry=Retry(attempts=3, delay=5, jitter=0))

    assert await world.run(root) == "p/g/b"
    assert world.begun == {"p/g/a": 1, "p/g/b": 2}


async def test_misuse_in_the_block() -> None:
    """Misuse in the block cancels the children and leaves the driver; no ``except`` sees it."""
    world = World()

    async def root(s: Step) -> None:
        try:
            async with s.group("g", limit=1) as g:
                g.do("a", world.hang)
                g.do("b", world.leaf)
                await checkpoint()
                g.do("", world.leaf)
        except Exception:  # noqa: BLE001
            raise AssertionError from None

    with pytest.raises(UsageError, match="an empty name"):
        await world.run(root)
    assert world.at_work == 0


@pytest.mark.parametrize("limit", [None, 1, 2])
async def test_misuse_in_a_child(limit: int | None) -> None:
    """Misuse in a child ends the pass, also while others wait for their place; none has failed."""
    world, state = World(), State("r")

    async def bad(s: Step) -> None:
        await checkpoint()
        await s.do("x", 5)  # type: ignore[call-overload]

    async def root(s: Step, correct: bool = False) -> None:
        async with s.group("g", limit=limit) as g:
            g.do("bad", world.leaf if correct else bad)
            g.do("other", world.leaf)
            g.do("more", world.leaf)

    with pytest.raises(UsageError, match="a step runs a function"):
        await asteps.reconcile(root, state=state)
    assert "failed" not in came_to(state).values()
    await asteps.reconcile(root, True, state=state)
    assert set(came_to(state).values()) == {"done"}


async def test_misuse_in_a_child_while_the_block_works() -> None:
    """It does not wait for the block's own work."""
    world = World()

    async def bad(s: Step) -> None:
        await s.do("x", 5)  # type: ignore[call-overload]

    async def root(s: Step) -> None:
        async with s.group("g", limit=1) as g:
            g.do("bad", bad)
            g.do("other", world.leaf)
            await anyio.sleep_forever()

    with pytest.raises(UsageError, match="a step runs a function"):
        await world.run(root)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["block", "child"])
async def test_what_is_no_outcome_leaves_the_driver(
    kind: type[BaseException], where: str, anyio_backend_name: str
) -> None:
    """``KeyboardInterrupt`` and ``SystemExit`` interrupt the children and leave the driver."""
    if where == "child" and anyio_backend_name == "asyncio":
        pytest.skip("asyncio's tasks throw these into the event loop")
    world = World()

    async def child(s: Step) -> None:
        raise kind

    async def root(s: Step) -> None:
        async with s.group("g", limit=2) as g:
            g.do("h", world.hang)
            if where == "child":
                g.do("k", child)
                await anyio.sleep_forever()
            await checkpoint()
            raise kind

    with pytest.raises(BaseException) as caught:
        await world.run(root)
    found: BaseException = caught.value
    while isinstance(found, BaseExceptionGroup):
        (found,) = found.exceptions
    assert type(found) is kind
    assert "failed" not in came_to(await world.state()).values()


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 5, 9])
async def test_never_more_than_the_limit(limit: int) -> None:
    """As many children work as the limit says, never more, and no fewer while others wait."""
    world = World()

    async def root(s: Step) -> None:
        async with s.group("g", limit=limit) as g:
            for i in range(10):
                g.do(f"c{i}", world.ticking(6))

    await world.run(root)
    assert world.most == limit
    assert world.passed == 6 * -(-10 // limit)


async def waits_in_place(s: Step, world: World, how: str) -> None:
    """Wait for 100 seconds, somewhere below, in one of many ways."""
    match how:
        case "pending":
            if world.begun.setdefault(f"{s.path}!", 0) == 0:
                world.begun[f"{s.path}!"] = 1
                s.pending(after=100)
        case "sleep":
            await s.sleep("nap", 100)
        case "poll":
            begun = world.passed
            await s.poll(
                "poll",
                lambda: 1,
                lambda _: None if world.passed < begun + 100 else 5,
                every=50,
                returns=int,
            )
        case "retry":
            await s.do(
                "x", flaky_once(world), retry=Retry(attempts=2, delay=100, max_delay=100, jitter=0)
            )
        case "deep":
            await s.do("d", waits_in_place, world, "sleep")
        case "deeper":
            await s.do("d", waits_in_place, world, "deep")
        case "group":
            async with s.group("g") as g:
                for i, way in enumerate(("sleep", "pending", "retry", "deep", "poll")):
                    g.do(f"c{i}", waits_in_place, world, way)
        case "limited group":
            async with s.group("g", limit=1) as g:
                for i, way in enumerate(("sleep", "pending", "retry", "deep", "poll", "group")):
                    g.do(f"c{i}", waits_in_place, world, way)
        case "map":
            await s.map("m", partial(mapped, world), ["sleep", "deep", "group"], limit=2)
        case "map in group":
            async with s.group("g") as g:
                g.map("m", partial(mapped, world), ["sleep", "deep", "group"], limit=2)
                g.do("n", waits_in_place, world, "sleep")
        case "group in step":
            await s.do("d", waits_in_place, world, "group")
        case _:
            assert how == "sleeping block"
            async with s.group("g") as g:
                g.do("a", waits_in_place, world, "sleep")
                await s.sleep("nap", 100)


async def mapped(world: World, s: Step, how: str) -> None:
    """The same, as an item of a map."""
    await waits_in_place(s, world, how)


def flaky_once(world: World) -> Callable[[Step], Awaitable[str]]:
    """A body that fails the first time."""
    return world.flaky(1)


WAYS = (
    *("pending", "sleep", "poll", "retry", "deep", "deeper", "group", "limited group", "map"),
    *("map in group", "group in step", "sleeping block"),
)


@pytest.mark.parametrize("how", WAYS)
async def test_a_waiting_child_gives_back_its_place(how: str) -> None:
    """While all below a child waits its place is another's; it takes it again to go on."""
    world = World()
    gone_on: list[float] = []

    async def waiting(s: Step) -> None:
        if f"{s.path}!" not in world.begun:
            await s.do("before", world.ticking(1))
        await waits_in_place(s, world, how)
        await s.do("after", world.ticking(1))
        gone_on.append(world.passed)

    async def busy(s: Step) -> None:
        await s.do("work", world.ticking(30))

    async def root(s: Step) -> None:
        async with s.group("g", limit=1) as g:
            for i in range(3):
                g.do(f"w{i}", waiting)
            g.do("busy", busy)

    await world.run(root)
    # Three seconds, then thirty; the waits are over at 101, 102 and 103.
    assert gone_on == [102, 103, 104]
    assert world.most <= (1 if how not in ("group", "limited group") else 99)


@pytest.mark.parametrize("how", WAYS)
async def test_a_place_is_taken_again_before_going_on(how: str) -> None:
    """A child whose wait is over goes on when there is a place for it, not before."""
    world = World()
    holders = 0

    async def waiting(s: Step) -> str:
        await waits_in_place(s, world, how)
        await hold(s)
        return s.path

    async def hold(s: Step) -> str:
        nonlocal holders
        holders += 1
        assert holders == 1
        await world.clock.sleep(70)
        holders -= 1
        return s.path

    async def root(s: Step) -> list[str]:
        async with s.group("g", limit=1) as g:
            children = [
                g.do("w0", waiting),
                g.do("h0", hold),
                g.do("w1", waiting),
                g.do("h1", hold),
            ]
        return [c.result for c in children]

    assert await world.run(root) == ["g/w0", "g/h0", "g/w1", "g/h1"]
    assert holders == 0
    assert world.passed == 280


@pytest.mark.parametrize("policy", ["enough", "cancel", "map"])
async def test_a_place_is_taken_again_after_enough(policy: str) -> None:
    """A child whose own group was decided while others of it rested has its place to go on."""
    world = World()

    async def naps(s: Step, _: object = None) -> None:
        await s.sleep("nap", 100)

    async def item(s: Step, x: int) -> None:
        await (naps(s) if x else world.ticking(5)(s))

    async def decided(s: Step) -> None:
        if policy == "map":
            await s.map("g", item, range(3), enough=1)
        elif policy == "enough":
            async with s.group("g", enough=1) as g:
                g.do("y", naps)
                g.do("x", world.ticking(5))
        else:
            with suppress(StepError):
                async with s.group("g", on_error="cancel") as g:
                    g.do("y", naps)
                    g.do("x", world.late(5))
        await s.do("z", world.ticking(10))

    async def root(s: Step) -> None:
        async with s.group("outer", limit=1) as g:
            g.do("a", decided)
            g.do("b", world.ticking(10))
            g.do("c", decided)

    await world.run(root)
    assert (world.most, world.passed) == (1, 40)


async def test_a_limiter_of_the_users() -> None:
    """An ``anyio.CapacityLimiter`` may be shared by several groups and maps."""
    world = World()

    async def five(s: Step, _: str) -> str:
        return await world.ticking(5)(s)

    async def root(s: Step) -> None:
        limiter = anyio.CapacityLimiter(3)
        async with s.group("one", limit=limiter) as one, s.group("two", limit=limiter) as two:
            for i in range(6):
                one.do(f"c{i}", world.ticking(5))
                two.do(f"c{i}", world.ticking(5))
            await s.map("m", five, "abc", limit=limiter)
        assert (limiter.borrowed_tokens, limiter.available_tokens) == (0, 3)

    await world.run(root)
    assert (world.most, world.passed) == (3, 25)


@pytest.mark.parametrize("how", ["group", "map", "map in group", "map in map", "deep", "block"])
async def test_the_limiter_of_a_group_around(how: str) -> None:
    """A limiter that a group around this one has is misuse: its children could wait for ever."""
    world = World()
    limiter = anyio.CapacityLimiter(1)

    async def inner(s: Step, *_: object) -> None:
        if how == "deep":
            await s.do("deep", deep)
        elif how.startswith("map"):
            await s.map("h", world.leaf, ["x"], limit=limiter, returns=str)
        else:
            async with s.group("h", limit=limiter) as h:
                h.do("x", world.leaf)

    async def deep(s: Step) -> None:
        async with s.group("between", limit=2) as g:
            g.do("d", deepest)

    async def deepest(s: Step) -> None:
        async with s.group("h", limit=limiter) as h:
            h.do("x", world.leaf)

    async def root(s: Step) -> None:
        if how == "map in map":
            await s.map("g", inner, ["a"], limit=limiter)
        async with s.group("g", limit=limiter) as g:
            if how == "map in group":
                g.map("h", world.leaf, ["x"], limit=limiter, returns=str)
            elif how == "block":  # beside, not below: nobody holds a place
                g.do("a", world.leaf)
                await inner(s)
            else:
                g.do("a", inner)

    if how == "block":
        await world.run(root)
    else:
        with pytest.raises(UsageError, match="has the limiter of a group around it"):
            await world.run(root)
        assert world.log == []
    assert limiter.borrowed_tokens == 0


@pytest.mark.parametrize("in_place", [True, False], ids=["run", "reconcile"])
@pytest.mark.parametrize(
    "end",
    ["done", "failed", "cancelled", "enough", "error", "cancel", "misuse", "pending", "timeout"],
)
async def test_the_limiter_is_whole_again(end: str, in_place: bool) -> None:
    """Whatever a group comes to, all places of its limiter are free afterwards."""
    world = World()
    limiter = anyio.CapacityLimiter(2)
    scope = anyio.CancelScope()

    async def misuse(s: Step) -> None:
        await s.do("x", 5)  # type: ignore[call-overload]

    async def body(s: Step) -> None:
        policies: dict[str, Any] = {"enough": {"enough": 1}, "cancel": {"on_error": "cancel"}}
        async with s.group("g", limit=limiter, **policies.get(end, {})) as g:
            for i in range(3):
                g.do(f"w{i}", world.pending(2, 7))
            match end:
                case "failed" | "cancel":
                    g.do("f", world.late(3))
                case "enough":
                    g.do("e", world.ticking(3))
                case "misuse":
                    g.do("m", misuse)
                case "timeout":
                    g.do("t", world.ticking(100), timeout=5)
                case "pending":
                    g.do("p", world.pending(1, 1000))
                case _:
                    pass
            for i in range(3):
                g.do(f"c{i}", world.ticking(4))
            if end in ("cancelled", "error"):
                await world.clock.sleep(5)
                assert limiter.borrowed_tokens >= 1
                if end == "error":
                    raise BrokenError
                scope.cancel()

    async def root(s: Step) -> None:
        await s.do("p", body)

    with scope:
        try:
            await (world.run(root) if in_place else world.reconcile(root))
        except (StepError, UsageError):
            assert end in ("failed", "cancel", "error", "misuse", "timeout")
    assert limiter.borrowed_tokens == 0
    assert limiter.statistics().tasks_waiting == 0
    assert world.at_work == 0


async def test_order_with_a_limit() -> None:
    """Children begin in the order given, also where places come free out of order."""
    world = World()

    async def root(s: Step) -> None:
        async with s.group("g", limit=3) as g:
            for i, seconds in enumerate((9, 1, 5, 1, 1, 7, 1, 1)):
                g.do(f"c{i}", world.ticking(seconds))

    await world.run(root)
    assert world.log == [f"g/c{i}" for i in range(8)]


# --- waiting --------------------------------------------------------------------------------------


async def test_a_pending_child_beside_a_working_one() -> None:
    """The sibling is finished first: its body runs once, however many passes there are."""
    world = World()

    async def root(s: Step) -> str:
        async with s.group("g") as g:
            g.do("wait", world.pending(2, 60))
            g.do("long", world.ticking(30))
            g.do("sub", sub)
        return "end"

    async def sub(s: Step) -> None:
        for i in range(3):
            await s.do(f"s{i}", world.ticking(9))

    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert (outcome.path, outcome.after, outcome.why) == ("g/wait", 30, "g/wait 1")
    assert came_to(outcome.state) == {
        "g": "pending",
        "g/wait": "pending",
        **{f"g/{p}": "done" for p in ("long", "sub", "sub/s0", "sub/s1", "sub/s2")},
    }
    assert await world.run(root) == "end"
    assert world.begun == {"g/wait": 3, "g/long": 1, **{f"g/sub/s{i}": 1 for i in range(3)}}


async def test_a_parked_child_is_called_again_while_siblings_work() -> None:
    """A pending child whose time comes while a sibling works goes on in the same pass."""
    world = World()

    async def root(s: Step) -> str:
        async with s.group("g") as g:
            g.do("wait", world.pending(3, 5))
            g.do("work", world.ticking(18))
        return "end"

    assert (await world.reconcile(root)).value == "end"
    assert world.begun == {"g/wait": 4, "g/work": 1}
    assert world.passed == 18


async def test_a_parked_child_is_called_again_while_the_block_works() -> None:
    """The same while the block itself does something that takes long."""
    world = World()

    async def root(s: Step) -> str:
        async with s.group("g", limit=1) as g:
            g.do("a", world.pending(2, 5))
            g.do("b", world.pending(2, 5))
            await world.clock.sleep(18)
            g.do("c", world.leaf)
        return "end"

    assert (await world.reconcile(root)).value == "end"
    assert world.begun == {"g/a": 3, "g/b": 3, "g/c": 1}


async def test_a_block_that_takes_long() -> None:
    """Parked children that are due after the block's end end the pass when it has ended."""
    world = World()

    async def root(s: Step) -> None:
        async with s.group("g") as g:
            g.do("a", world.pending(9, 50))
            await world.clock.sleep(20)
            g.do("b", world.leaf)

    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert (outcome.path, outcome.after) == ("g/a", 30)
    assert came_to(outcome.state)["g/b"] == "done"


async def test_the_soonest_wake_of_the_tree() -> None:
    """`Pending` says when the soonest of all waits is due, however deep it is."""
    world = World()

    async def deep(s: Step, after: float) -> None:
        async with s.group("g", limit=1) as g:
            g.do("a", world.pending(9, after))
            g.do("b", world.pending(9, after + 1))

    async def item(s: Step, after: int) -> None:
        await s.do("d", deep, after)

    async def root(s: Step) -> None:
        async with s.group("g") as g:
            g.do("x", deep, 50)
            g.do("y", deep, 40)
            g.map("m", item, [30, 20, 60])
            g.do("z", world.pending(9, 45))
            g.do("w", world.ticking(3))

    outcome = await world.reconcile(root)
    assert (outcome.path, outcome.after, outcome.why) == (
        "g/m/20/d/g/a",
        17,
        "g/m/20/d/g/a 1",
    )
    waiting = {p: k for p, k in came_to(outcome.state).items() if k != "pending"}
    assert waiting == {"g/w": "done"}
    # A pass that comes too early says the same, calls nobody, and saves nothing.
    world.take()
    world.clock.advance(2)
    outcome = await world.reconcile(root)
    assert (outcome.path, outcome.after) == ("g/m/20/d/g/a", 15)
    assert (world.take(), world.saves) == ([], 0)
    world.clock.advance(15)
    outcome = await world.reconcile(root)
    assert (world.take(), outcome.path, outcome.after) == (["g/m/20/d/g/a"], "g/m/20/d/g/b", 1)


async def test_a_budget() -> None:
    """``max_wait`` waits in place for what comes due before it is used up, for nothing else."""
    world = World()

    async def root(s: Step) -> None:
        async with s.group("g", limit=1) as g:
            g.do("near", world.pending(3, 4))
            g.do("far", world.pending(1, 60))

    outcome = await world.reconcile(root, max_wait=20)
    assert (outcome.path, outcome.after) == ("g/far", 48)
    assert world.begun == {"g/near": 4, "g/far": 1}


async def test_no_new_body_after_max_pass() -> None:
    """After ``max_pass`` no further child begins; the next pass begins with the first of them."""
    world = World()

    async def root(s: Step) -> str:
        async with s.group("g", limit=2) as g:
            for i in range(6):
                g.do(f"c{i}", world.ticking(5))
        return "end"

    for turn in range(2):
        outcome = await world.reconcile(root, max_pass=5)
        assert isinstance(outcome, Pending)
        assert outcome.after < 1
        assert world.take() == [f"g/c{2 * turn}", f"g/c{2 * turn + 1}"]
    assert (await world.reconcile(root, max_pass=5)).value == "end"
    assert world.take() == ["g/c4", "g/c5"]


@pytest.mark.parametrize("mode", ["run", "reconcile", "save=pass", "state"])
async def test_both_ways_of_waiting(mode: str) -> None:
    """A flow of groups, maps, waits and retries comes to the same, whoever drives it."""
    world = World()

    async def item(s: Step, x: int) -> int:
        await s.sleep("nap", x)
        await s.do("x", world.pending(1, x))
        return x * x

    async def part(s: Step) -> list[int]:
        async with s.group("g", limit=2, tolerate=1) as g:
            a = g.map("a", item, range(1, 6), limit=2)
            g.do("b", world.flaky(1), retry=Retry(attempts=2, delay=9, jitter=0))
            g.do("c", world.fail)
            g.do("d", world.pending(3, 11))
            await s.sleep("nap", 25)
            e = g.do("e", world.ticking(3))
        return [*a.result, len(e.result)]

    async def root(s: Step) -> list[int]:
        return await s.do("p", part)

    expected = [1, 4, 9, 16, 25, len("p/g/e")]
    state = State("r")
    if mode == "state":
        assert await asteps.run(root, state=state, clock=world.clock) == expected
    elif mode == "run":
        assert await world.run(root) == expected
    else:
        keywords = {"save": "pass"} if mode == "save=pass" else {}
        while isinstance(outcome := await world.reconcile(root, **keywords), Pending):
            world.clock.advance(outcome.after)
        assert outcome.value == expected
    assert world.begun == {
        **{f"p/g/a/{i}/x": 2 for i in range(1, 6)},
        "p/g/b": 2,
        "p/g/c": 1,
        "p/g/d": 4,
        "p/g/e": 1,
    }


# --- cancellation ---------------------------------------------------------------------------------


class Cancelled:
    """A flow of groups that notes each of its turns, so that it can be cancelled at any."""

    def __init__(self) -> None:
        self.world = World()
        self.limiter = anyio.CapacityLimiter(2)
        self.turns = 0
        self.at = 0
        self.cancel: Callable[[], object] = lambda: None
        self.returned: set[str] = set()
        self.again: list[str] = []

    async def turn(self) -> None:
        self.turns += 1
        if self.turns == self.at:
            self.cancel()
        await checkpoint()

    async def leaf(self, s: Step, *_: object) -> str:
        if s.path in self.returned:
            self.again.append(s.path)
        for _turn in range(3):
            await self.turn()
        self.returned.add(s.path)
        return s.path

    async def waiting(self, s: Step) -> str:
        await self.turn()
        await s.sleep("nap", 5)
        await self.turn()
        return s.path

    async def nested(self, s: Step) -> str:
        async with s.group("g", limit=1) as g:
            g.do("a", self.leaf)
            b = g.do("b", self.leaf)
        return b.result

    async def root(self, s: Step) -> list[str]:
        async with s.group("g", limit=self.limiter) as g:
            a = g.do("a", self.leaf)
            b = g.do("b", self.waiting)
            await self.turn()
            c = g.do("c", self.nested)
            d = g.map("d", self.leaf, ["x", "y", "z"], limit=2, returns=str)
            await s.do("beside", self.leaf)
            await self.turn()
        await self.turn()
        e = await s.map("e", self.leaf, ["x", "y"], limit=1, returns=str)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(s.map, "f", self.leaf, ["x", "y"], limit=1, returns=str))
            tasks.start_soon(self.in_task, s)
        return [a.result, b.result, c.result, *d.result, *e]

    async def in_task(self, s: Step) -> None:
        async with s.group("h", limit=1) as g:
            g.do("a", self.leaf)
            g.do("b", self.leaf)
            await self.turn()

    async def goes_on(self) -> None:
        assert self.limiter.borrowed_tokens == 0
        state = await load_state(self.world.store, "r")
        assert state is None or not any(n.errs for _, n in state.walk())
        self.at = 0
        assert await self.world.run(self.root) == [
            *("g/a", "g/b", "g/c/g/b", "g/d/x", "g/d/y", "g/d/z", "e/x", "e/y"),
        ]
        assert self.again == []
        assert self.limiter.borrowed_tokens == 0


async def test_a_scope_around_the_driver_at_every_turn() -> None:
    """Cancelled at any point, nothing that had returned is lost, and the run goes on."""
    number = 0
    while True:
        number += 1
        flow = Cancelled()
        flow.at = number
        with anyio.CancelScope() as scope:
            flow.cancel = scope.cancel
            await flow.world.run(flow.root)
        if not scope.cancel_called:
            break
        await flow.goes_on()
    assert number > 30


@only_asyncio
@pytest.mark.parametrize("times", [1, 3])
async def test_native_cancellation_at_every_turn(times: int) -> None:
    """The same with ``task.cancel()``, once or again and again."""
    number = 0
    while True:
        number += 1
        flow = Cancelled()
        flow.at = number
        task = asyncio.create_task(flow.world.run(flow.root))
        called = anyio.Event()
        flow.cancel = called.set
        while not (called.is_set() or task.done()):
            await asyncio.sleep(0)
        if not called.is_set():
            await task
            break
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        await flow.goes_on()
    assert number > 30


@only_asyncio
async def test_native_cancellation_from_inside() -> None:
    """``task.cancel()`` by the body's own code, at each of its turns."""
    number = 0
    while True:
        number += 1
        flow = Cancelled()
        flow.at = number
        task = asyncio.create_task(flow.world.run(flow.root))
        called: list[int] = []

        def cancel(task: Any = task, called: list[int] = called) -> None:
            called.append(1)
            task.cancel()

        flow.cancel = cancel
        try:
            await task
        except asyncio.CancelledError:
            assert called
        else:
            if not called:
                break
        await flow.goes_on()
    assert number > 30


@only_asyncio
@pytest.mark.parametrize("where", ["around", "block", "child"])
async def test_asyncio_timeout(where: str) -> None:
    """``asyncio.timeout`` around a group, in its block and in a child raises its own error."""
    world = World()
    limiter = anyio.CapacityLimiter(1)
    caught: list[str] = []

    async def child(s: Step) -> str:
        try:
            async with asyncio.timeout(0):
                await s.do("h", world.hang)
        except TimeoutError:
            caught.append("child")
        return "c"

    async def body(s: Step) -> None:
        async with s.group("g", limit=limiter) as g:
            if where == "child":
                g.do("c", child)
            else:
                g.do("a", world.hang)
            g.do("b", world.leaf)
            if where == "block":
                try:
                    async with asyncio.timeout(0):
                        await s.do("h", world.hang)
                except TimeoutError:
                    caught.append("block")
                    raise

    async def root(s: Step) -> str:
        try:
            async with asyncio.timeout(0.005 if where == "around" else None):
                await body(s)
        except TimeoutError:
            caught.append("around")
        await s.do("after", world.leaf)
        return "went on"

    assert await world.run(root) == "went on"
    assert (
        caught
        == {
            "around": ["around"],
            "block": ["block", "around"],
            "child": ["child"],
        }[where]
    )
    assert limiter.borrowed_tokens == 0
    assert world.at_work == 0


@pytest.mark.parametrize("limit", [None, 1])
async def test_a_scope_around_a_group(limit: int | None) -> None:
    """A scope around a group bounds this pass's work: its children are interrupted, not failed."""
    world = World()

    async def root(s: Step) -> str:
        with anyio.CancelScope() as scope:
            async with s.group("g", limit=limit) as g:
                q = g.do("q", world.leaf)
                g.do("a", world.hang)
                g.do("b", world.hang)
                g.map("m", world.hang, ["x"], returns=str)
                while "g/a" not in world.log or not q.state.done:
                    await checkpoint()
                scope.cancel()
        assert scope.cancelled_caught
        return await s.do("after", world.leaf)

    assert await world.run(root) == "after"
    tree = came_to(await world.state())
    assert (tree["g"], tree["g/q"], tree["g/a"]) == ("proceeding", "done", "proceeding")
    assert "failed" not in tree.values()


async def test_a_returned_outcome_is_kept() -> None:
    """Children that return at the moment at which others decide keep their outcome."""
    world = World()

    async def root(s: Step) -> int:
        async with s.group("g", enough=1) as g:
            children = [g.do(f"c{i}", at_once) for i in range(5)]
        return sum(c.state.done for c in children)

    async def at_once(s: Step) -> str:
        return s.path

    done = await world.run(root)
    state = await world.state()
    assert done == sum(c.done for c in state.get("g").states or ()) >= 1


@only_asyncio
async def test_native_cancellation_of_nested_tasks() -> None:
    """``task.cancel()`` is no failure, however deep task groups are nested below the body."""
    world = World()

    async def nest(s: Step, depth: int) -> None:
        async with s.group("g", limit=2) as g:
            g.do("h", world.hang)
            if depth:
                g.do("n", nest, depth - 1)
            else:
                g.map("m", world.hang, "xyz", limit=2, returns=str)

    async def raw(depth: int) -> None:
        async with anyio.create_task_group() as tasks:
            if depth:
                tasks.start_soon(raw, depth - 1)
            await anyio.sleep_forever()

    async def root(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(raw, 2)
            await nest(s, 2)

    task = asyncio.create_task(world.run(root))
    while world.at_work < 5:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "failed" not in came_to(await world.state()).values()
    assert not (await world.state()).failed


@only_asyncio
async def test_gather_and_a_group_with_a_limit() -> None:
    """When ``gather`` fails beside a group, its children are cancelled, waiting ones too."""
    world = World()

    async def fails() -> None:
        while "g/a" not in world.log:
            await checkpoint()
        raise BrokenError

    async def grouped(s: Step) -> None:
        async with s.group("g", limit=1) as g:
            g.do("a", world.hang)
            g.do("b", world.leaf)
            g.map("m", world.leaf, ["x"], returns=str)

    async def root(s: Step) -> None:
        await asyncio.gather(
            fails(), grouped(s), s.map("n", world.hang, "xyz", limit=1, returns=str)
        )

    with pytest.raises(StepError) as caught:
        await world.run(root)
    assert caught.value.is_a(BrokenError)
    assert world.at_work == 0


# --- operators and changed code -------------------------------------------------------------------


async def finished(world: World, root: Callable[..., Awaitable[Any]], *args: Any) -> None:
    """Run to the end, and forget what was begun."""
    await world.run(root, *args)
    world.take()


async def three(s: Step, world: World) -> list[str]:
    """A done group of three."""
    async with s.group("g") as g:
        children = [g.do(name, world.leaf) for name in "abc"]
    return [c.result for c in children]


async def test_reset_a_child() -> None:
    """A reset child runs again, with another token; its siblings answer, the group is reopened."""
    world = World()
    tokens: list[str] = []

    async def leaf(s: Step) -> str:
        tokens.append(s.token)
        return await world.leaf(s)

    async def root(s: Step) -> list[str]:
        async with s.group("g") as g:
            children = [g.do(name, leaf) for name in "abc"]
        return [c.result for c in children]

    await finished(world, root)
    async with edit_run(world.store, "r") as state:
        state.reset("g/b")
        assert not state.get("g").done
    assert await world.run(root) == ["g/a", "g/b", "g/c"]
    assert world.take() == ["g/b"]
    assert tokens[1] != tokens[3]
    assert set(came_to(await world.state()).values()) == {"done"}


async def test_reset_a_group() -> None:
    """A reset group forgets its children: all run again, with other tokens."""
    world = World()
    await finished(world, three, world)
    async with edit_run(world.store, "r") as state:
        state.reset("g")
    assert await world.run(three, world) == ["g/a", "g/b", "g/c"]
    assert world.take() == ["g/a", "g/b", "g/c"]


async def test_set_the_result_of_a_child() -> None:
    """A child whose result was set answers with it, and does not run."""
    world = World()
    await finished(world, three, world)
    async with edit_run(world.store, "r") as state:
        state.set_result("g/b", "set")
    assert await world.run(three, world) == ["g/a", "set", "g/c"]
    assert world.take() == []


async def test_set_the_result_of_a_failed_child() -> None:
    """A failed child whose result was set has not failed, and the group is done."""
    world = World()

    async def root(s: Step) -> list[str]:
        async with s.group("g") as g:
            children = [g.do("a", world.leaf), g.do("b", world.fail)]
        return [c.result for c in children]

    with pytest.raises(StepError):
        await world.run(root)
    async with edit_run(world.store, "r") as state:
        state.set_result("g/b", "set")
    assert await world.run(root) == ["g/a", "set"]
    assert world.log == ["g/a", "g/b"]


async def test_rename_a_child() -> None:
    """A child that changed code knows by another name answers to it, and nothing runs again."""
    world = World()

    async def root(s: Step, names: str) -> list[str]:
        async with s.group("g") as g:
            children = [g.do(name, world.leaf) for name in names]
        await s.sleep("wait", 50)
        return [c.result for c in children]

    await world.reconcile(root, "abc")
    async with edit_run(world.store, "r") as state:
        state.rename("g/b", "z")
    world.take()
    world.clock.advance(50)
    outcome = await world.reconcile(root, "azc")
    assert (outcome.value, outcome.vanished, world.log) == (["g/a", "g/b", "g/c"], (), [])


async def test_rename_a_group() -> None:
    """A renamed group keeps its children."""
    world = World()

    async def root(s: Step, name: str) -> list[str]:
        async with s.group(name) as g:
            children = [g.do(n, world.leaf) for n in "ab"]
        await s.sleep("wait", 50)
        return [c.result for c in children]

    await world.reconcile(root, "g")
    async with edit_run(world.store, "r") as state:
        state.rename("g", "h")
    world.take()
    world.clock.advance(50)
    outcome = await world.reconcile(root, "h")
    assert (outcome.value, outcome.vanished, world.log) == (["g/a", "g/b"], (), [])


async def test_changed_inputs_of_a_child() -> None:
    """Other ``inputs`` reset a child of a done group, of a failed one, and one that is pending."""
    world = World()

    async def root(s: Step, inputs: int) -> list[object]:
        results: list[object] = []
        async with s.group("done") as g:
            a = g.do("a", world.leaf, inputs=inputs)
            g.do("b", world.leaf, inputs=1)
        try:
            async with s.group("failed") as g:
                g.do("c", world.leaf if inputs > 1 else world.fail, inputs=inputs)
                g.do("d", world.leaf)
            results.append("well")
        except StepError as error:
            results.append(error.errors[0].path)
        async with s.group("pending") as g:
            g.do("e", world.leaf if inputs > 1 else world.pending(99, 1000), inputs=inputs)
        return [a.result, *results]

    outcome = await world.reconcile(root, 1)
    assert outcome.path == "pending/e"
    assert sorted(world.take()) == ["done/a", "done/b", "failed/c", "failed/d", "pending/e"]
    outcome = await world.reconcile(root, 1)
    assert (outcome.path, world.take(), world.saves) == ("pending/e", [], 0)
    outcome = await world.reconcile(root, 2)
    assert outcome.value == ["done/a", "well"]
    assert sorted(world.take()) == ["done/a", "failed/c", "pending/e"]
    assert set(came_to(outcome.state).values()) == {"done"}


async def test_vanished_children() -> None:
    """Children that the code no longer has are listed, of groups that were entered and finished."""
    world = World()

    async def root(s: Step, names: str, late: str) -> None:
        async with s.group("g") as g:
            for name in names:
                g.do(name, world.leaf)
        async with s.group("h") as h:
            for name in late:
                h.do(name, world.pending(1, 50) if name == "w" else world.leaf)
        await s.sleep("end", 1000)

    outcome = await world.reconcile(root, "abc", "xyw")
    assert outcome.vanished == ()
    outcome = await world.reconcile(root, "b", "w")
    assert (outcome.path, outcome.vanished) == ("h/w", ("g/a", "g/c"))
    world.clock.advance(50)
    outcome = await world.reconcile(root, "b", "w")
    assert outcome.vanished == ("g/a", "g/c", "h/x", "h/y")
    # They are kept: code that has them again finds them done.
    world.take()
    outcome = await world.reconcile(root, "abc", "xyw")
    assert (outcome.vanished, world.take()) == ((), [])


async def test_a_failed_child_that_vanished() -> None:
    """A group whose failed child the code no longer has is done."""
    world = World()

    async def root(s: Step, names: str) -> str:
        try:
            async with s.group("g") as g:
                for name in names:
                    g.do(name, world.fail if name == "f" else world.leaf)
        except StepError:
            await s.sleep("caught", 50)
            return "failed"
        return "done"

    assert isinstance(await world.reconcile(root, "af"), Pending)
    outcome = await world.reconcile(root, "a")
    assert (outcome.value, outcome.vanished) == ("done", ("g/f", "caught"))
    assert came_to(outcome.state)["g"] == "done"


async def test_a_failed_group_on_later_passes() -> None:
    """A failed group whose failure was handled raises the same error, and saves nothing."""
    world = World()
    seen: list[Any] = []

    async def root(s: Step) -> None:
        try:
            async with s.group("g", on_error="cancel") as g:
                g.do("h", world.hang)
                g.do("f", world.fail)
                g.do("m", world.leaf)
        except StepError as error:
            seen.append(shape(error))
        await s.sleep("wait", 50)

    await world.reconcile(root)
    when = ended(await world.state())
    world.take()
    for _ in range(2):
        world.clock.advance(5)
        outcome = await world.reconcile(root)
        assert (outcome.path, world.saves, world.take()) == ("wait", 0, [])
        assert ended(outcome.state) == when
    assert seen[0] == seen[1] == seen[2]


async def test_a_step_that_became_a_group() -> None:
    """What was a step and is a group now keeps what it came to as a namespace, and back again."""
    world = World()

    async def root(s: Step, grouped: bool) -> str | None:
        found = None
        if grouped:
            async with s.group("x") as g:
                a = g.do("a", world.leaf)
            found = a.result
        else:
            found = await s.do("x", world.leaf, returns=str)
        await s.sleep("wait", 50)
        return found

    await world.reconcile(root, False)
    outcome = await world.reconcile(root, True)
    assert (outcome.path, world.take()) == ("wait", ["x", "x/a"])
    world.clock.advance(50)
    assert (await world.reconcile(root, True)).value == "x/a"


async def test_replayed_groups_emit_nothing() -> None:
    """Observers hear of each step once, in the order of what happened to it."""
    world = World()
    events: list[str] = []

    async def root(s: Step) -> None:
        async with s.group("plain") as g:
            g.do("a", world.leaf)
            g.map("m", world.leaf, ["x"], returns=str)
        async with s.group("closed", enough=1) as g:
            g.do("h", world.hang)
            g.do("q", world.leaf)
        await s.sleep("wait", 50)

    def observe(event: asteps.Event) -> None:
        events.append(f"{event.path} {type(event).__name__}")

    await world.reconcile(root, observers=[observe])
    assert len(set(events)) == len(events)
    assert [e for e in events if e.startswith("plain/a")] == [
        *("plain/a StepStarted", "plain/a StepDone"),
    ]
    events.clear()
    world.clock.advance(10)
    await world.reconcile(root, observers=[observe])
    assert [e for e in events if not e.startswith(" ")] == []


async def test_an_interrupted_at_most_once_child() -> None:
    """A child that runs at most once and was cut off fails as interrupted, in its group."""
    world = World()

    async def root(s: Step) -> None:
        async with s.group("g") as g:
            g.do("a", world.hang, at_most_once=True)
            g.do("b", world.leaf)
            while not world.begun.get("g/a"):
                await checkpoint()
            if world.begun["g/a"] == 1 and not again:
                raise Crash

    again = False
    with pytest.raises(Crash):
        await world.run(root)
    again = True
    with pytest.raises(StepError) as caught:
        await world.run(root)
    assert caught.value.origin == "g/a"
    assert caught.value.errors[0].errors[0].failure.kind == "interrupted"
    assert world.begun["g/a"] == 1


async def test_tokens_of_children() -> None:
    """A child's token is the same on every attempt and pass, and can be told beforehand."""
    world = World()
    seen: dict[str, set[str]] = {}

    async def body(s: Step) -> str:
        seen.setdefault(s.path, set()).add(s.token)
        return await world.pending(2, 5)(s)

    async def parent(s: Step) -> str:
        foretold = s.token_for("g")
        async with s.group("g") as g:
            a = g.do("a", body)
            g.do("b", body)
        assert foretold
        return a.result

    async def root(s: Step) -> str:
        return await s.do("p", parent)

    while isinstance(outcome := await world.reconcile(root), Pending):
        world.clock.advance(outcome.after)
    assert {path: len(tokens) for path, tokens in seen.items()} == {"p/g/a": 1, "p/g/b": 1}
    assert len(set.union(*seen.values())) == 2


# --- misuse ---------------------------------------------------------------------------------------

Use = Callable[[Group], object]
USES: dict[str, Use] = {
    "do": lambda g: g.do("x", one),
    "do by name": lambda g: g.do(one),
    "call": lambda g: g.call("x", lambda: 1),
    "poll": lambda g: g.poll("x", lambda: 1, lambda _: 2, every=5, returns=int),
    "map": lambda g: g.map("x", two, [1]),
}


async def one(s: Step) -> int:
    """The shortest body."""
    return 1


async def two(s: Step, x: int) -> int:
    """The shortest body of an item."""
    return x


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("when", ["before", "after", "after the body", "after a failure"])
async def test_children_outside_the_block(use: str, when: str) -> None:
    """A group takes children in its block alone: before it and after it that is misuse."""
    kept: list[Group] = []

    async def inner(s: Step) -> None:
        g = s.group("g")
        if when == "before":
            USES[use](g)
        try:
            async with g:
                g.do("a", one)
                if when == "after a failure":
                    raise BrokenError
        except BrokenError:
            pass
        if when != "after the body":
            USES[use](g)
        kept.append(g)

    async def root(s: Step) -> None:
        await s.do("inner", inner)
        USES[use](kept[0])

    with pytest.raises(UsageError, match=r"outside its block|has ended"):
        await asteps.run(root)


async def test_children_after_the_pass() -> None:
    """A group that was kept beyond its pass is of no use any more."""
    kept: list[Group] = []

    async def root(s: Step) -> None:
        async with s.group("g") as g:
            g.do("a", one)
            kept.append(g)

    await asteps.run(root)
    for use in USES.values():
        with pytest.raises(BaseException, match="has ended"):
            use(kept[0])


async def test_a_group_is_entered_once() -> None:
    """A second ``async with`` of the same group is misuse."""

    async def root(s: Step) -> None:
        g = s.group("g")
        async with g:
            g.do("a", one)
        async with g:
            g.do("b", one)

    with pytest.raises(UsageError, match="'g' has been used before"):
        await asteps.run(root)


@pytest.mark.parametrize(
    "use",
    [
        lambda s, g: g.do("x", one, retries=5),
        lambda s, g: g.call("x", lambda: 1, timeuot=5),
        lambda s, g: g.poll("x", lambda: 1, lambda _: 2, every=5, tries=5, returns=int),
        lambda s, g: g.map("x", two, [1], limt=5),
        lambda s, g: g.map("x", two, [], limt=5),
        lambda s, g: g.do("x", 5),
        lambda s, g: g.do(5, one),
        lambda s, g: g.do("x"),
        lambda s, g: g.do("#x", one),
        lambda s, g: g.do("x" * 201, one),
        lambda s, g: g.do(lambda s: one(s)),  # noqa: PLW0108
        lambda s, g: g.do("x", one, 1, 2),
        lambda s, g: g.do("x", one, retry=5),
        lambda s, g: g.do("x", one, timeout=-5),
        lambda s, g: g.poll("x", lambda: 1, lambda _: 2, every=0, returns=int),
        lambda s, g: s.group("h", limt=5),
    ],
    ids=[
        *("do typo", "call typo", "poll typo", "map typo", "empty map typo", "no function"),
        *("no name", "nothing", "reserved", "too long", "lambda", "arguments", "retry", "timeout"),
        *("every", "group typo"),
    ],
)
async def test_wrong_uses(use: Callable[[Step, Any], object]) -> None:
    """Typos and wrong types are `UsageError`; no ``except`` sees it, and nothing has failed."""
    state = State("r")

    async def root(s: Step, wrong: bool) -> None:
        try:
            async with s.group("g") as g:
                if wrong:
                    use(s, g)
        except Exception:  # noqa: BLE001
            raise AssertionError from None

    with pytest.raises(UsageError):
        await asteps.reconcile(root, True, state=state)
    assert "failed" not in came_to(state).values()
    assert isinstance(await asteps.reconcile(root, False, state=state), Done)


async def test_a_signal_that_the_block_swallows() -> None:
    """A block that suppresses the signal of a pending child is told so."""
    world = World()

    async def root(s: Step) -> int:
        try:
            async with s.group("g") as g:
                g.do("w", world.pending(9, 50))
        except BaseException:  # noqa: BLE001
            return 1
        return 2

    with pytest.raises(UsageError, match="swallowed the signal"):
        await world.reconcile(root)
    assert came_to(await world.state()) == {"g": "pending", "g/w": "pending"}


async def test_types_at_run_time() -> None:
    """`Child` and `Group` are what `s.group` gives, and say what they are."""

    async def root(s: Step) -> None:
        async with s.group("g") as g:
            child: Child[int] = g.do("a", one)
            assert isinstance(child, Child)
            assert repr(child).startswith("<Child <State 'a': ")
        number: int = child.result
        assert number == 1

    await asteps.run(root)


async def test_a_lost_store_stops_the_children() -> None:
    """When the store refuses a save, children are cancelled, none has failed, waiting ones too."""
    world = World()

    async def root(s: Step) -> None:
        try:
            async with s.group("g", limit=2) as g:
                g.do("h", world.hang)
                g.do("a", world.leaf)
                g.do("b", world.leaf)
                g.map("m", world.leaf, "xyz", returns=str)
        except Exception:  # noqa: BLE001
            raise AssertionError from None

    with pytest.raises(asteps.StoreRefusedError):
        await world.run(root, faults={2: "refused"})
    assert world.at_work == 0
    store = FaultyStore(MemoryStore(), {3: "conflict"})
    with pytest.raises(asteps.ConflictError):
        await asteps.run(root, store=store, id="x")
    assert world.at_work == 0


# --- rare ends ------------------------------------------------------------------------------------


async def test_a_thread_that_is_no_longer_needed() -> None:
    """A sync function runs to its end also in a closed group; what it returned is its outcome."""
    world = World()
    closed = threading.Event()

    def slow() -> int:
        closed.wait(5)
        return 5

    async def quick(s: Step) -> str:
        closed.set()
        return s.path

    async def root(s: Step) -> int:
        async with s.group("g", enough=1) as g:
            child = g.call("slow", slow)
            g.do("quick", quick)
        return child.result

    assert await world.run(root) == 5
    assert came_to(await world.state()) == {"g": "done", "g/slow": "done", "g/quick": "done"}


async def test_a_cancelled_child_that_fails() -> None:
    """A child that answers its cancellation with an error has failed; its group is done."""
    world = World()

    async def sulks(s: Step) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise BrokenError(s.path)

    async def root(s: Step) -> str:
        async with s.group("g", enough=1) as g:
            g.do("sulks", sulks)
            g.do("quick", world.leaf)
        await s.sleep("wait", 5)
        return "end"

    outcome = await world.reconcile(root)
    assert came_to(outcome.state) == {
        "g": "done",
        "g/sulks": "failed",
        "g/quick": "done",
        "wait": "pending",
    }
    world.clock.advance(5)
    assert (await world.reconcile(root)).value == "end"


async def test_a_cancelled_child_that_cleans_up() -> None:
    """A cancelled child is waited for: its ``finally`` has run when the block ends."""
    world = World()

    async def tidy(s: Step) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(20):
                    await checkpoint()
            world.log.append("tidy")

    async def root(s: Step) -> None:
        async with s.group("g", on_error="cancel") as g:
            g.do("tidy", tidy)
            g.do("bad", world.fail)

    with pytest.raises(StepError):
        await world.run(root)
    assert world.log == ["g/bad", "tidy"]


@pytest.mark.parametrize("in_place", [True, False], ids=["run", "reconcile"])
@pytest.mark.parametrize("kind", ["group", "map"])
async def test_a_timeout_around_waiting_children(kind: str, in_place: bool) -> None:
    """A parent's ``timeout`` ends its group while its children wait, both ways of waiting."""
    world = World()
    limiter = anyio.CapacityLimiter(1)

    async def item(s: Step, _: int) -> None:
        await s.sleep("nap", 100)

    async def parent(s: Step) -> None:
        if kind == "map":
            await s.map("g", item, range(3), limit=limiter)
        else:
            async with s.group("g", limit=limiter) as g:
                g.do("a", item, 1)
                g.do("b", item, 1)

    async def root(s: Step) -> str:
        try:
            await s.do("p", parent, timeout=10)
        except StepError as error:
            return error.failure.kind
        return "in time"

    if in_place:
        assert await world.run(root) == "timeout"
    else:
        outcome = await world.reconcile(root)
        assert isinstance(outcome, Pending)
        assert outcome.after == 10
        assert limiter.borrowed_tokens == 0
        world.clock.advance(10)
        assert (await world.reconcile(root)).value == "timeout"
    assert (world.passed, limiter.borrowed_tokens) == (10, 0)


async def test_pending_functions() -> None:
    """``asteps.pending()`` in concurrent functions, also in threads, waits with its own step."""
    world = World()

    def plain(name: str, times: int) -> str:
        world.log.append(name)
        if world.log.count(name) <= times:
            asteps.pending(after=5, why=name)
        return name

    async def coroutine(name: str, times: int) -> str:
        await checkpoint()
        return plain(name, times)

    async def root(s: Step) -> list[str]:
        async with s.group("g", limit=2) as g:
            children = [
                g.call("a", plain, "a", 2),
                g.call("b", coroutine, "b", 1),
                g.call("c", plain, "c", 0),
                g.call("d", coroutine, "d", 3),
                g.call("e", plain, "e", 1),
            ]
        return [c.result for c in children]

    assert await world.run(root) == ["a", "b", "c", "d", "e"]
    assert sorted(world.log) == list("aaabbcddddee")


async def test_the_block_fails_for_good() -> None:
    """``s.fail`` in the block cancels the children; the failure is the body's own, and final."""
    world = World()

    async def parent(s: Step) -> None:
        async with s.group("g", limit=1) as g:
            g.do("h", world.hang)
            g.do("i", world.hang)
            await checkpoint()
            s.fail("enough of this")

    async def root(s: Step) -> None:
        await s.do("p", parent, retry=Retry(attempts=3, delay=0))

    outcome = await world.reconcile(root)
    assert isinstance(outcome, Failed)
    assert (outcome.error.origin, outcome.error.failure.final) == ("p", True)
    assert outcome.error.errors[0].failure.message == "enough of this"


async def test_a_child_that_cancels_its_group() -> None:
    """A child may cancel a scope around its group, and be cancelled with it."""
    world = World()

    async def ends_it(s: Step, scope: anyio.CancelScope) -> None:
        scope.cancel()
        await checkpoint()

    async def root(s: Step) -> str:
        with anyio.CancelScope() as scope:
            async with s.group("g", limit=2) as g:
                g.do("h", world.hang)
                g.do("e", ends_it, scope)
                g.do("n", world.leaf)
        return await s.do("after", world.leaf)

    assert await world.run(root) == "after"
    assert world.log == ["g/h", "after"]


async def test_a_group_at_the_end_of_a_run() -> None:
    """``on_end`` may use groups and maps; they are entered once the run has ended."""
    world = World()

    async def end(s: Step) -> None:
        async with s.group("g", limit=1) as g:
            g.do("a", world.pending(1))
            g.map("m", world.leaf, "xy", returns=str)

    async def root(s: Step) -> int:
        return 5

    outcome = await world.reconcile(root, on_end=end)
    assert (outcome.path, outcome.after) == ("$end/g/a", 5)
    world.clock.advance(5)
    assert (await world.reconcile(root, on_end=end)).value == 5
    assert world.begun == {"$end/g/a": 2, "$end/g/m/x": 1, "$end/g/m/y": 1}


async def test_children_of_other_tasks() -> None:
    """While the block is open, any task may add children, a child of the group as well."""
    world = World()

    async def adds(s: Step, g: Group, depth: int) -> str:
        if depth:
            g.do(f"c{depth - 1}", adds, g, depth - 1)
        return await world.leaf(s)

    async def root(s: Step) -> int:
        async with s.group("g", limit=1) as g:
            g.do("c3", adds, g, 3)
            async with anyio.create_task_group() as tasks:
                for i in range(3):
                    tasks.start_soon(add, g, i)
            while len(world.log) < 7:
                await checkpoint()
        return len(world.log)

    async def add(g: Group, i: int) -> None:
        g.do(f"t{i}", world.leaf)

    assert await world.run(root) == 7
    assert set(came_to(await world.state()).values()) == {"done"}


async def test_too_deep() -> None:
    """Children that would be too deep are misuse before any of their bodies runs."""
    world = World()
    depths: list[int] = []

    async def nest(s: Step) -> None:
        depths.append(s.path.count("/"))
        async with s.group("g") as g:
            g.do("n", nest)

    with pytest.raises(UsageError, match="more than 50 steps deep"):
        await world.run(nest)
    assert max(depths) < 50


async def test_a_group_that_crashes_too_often() -> None:
    """``max_crashes`` fails the child that was interrupted, not its group's other children."""
    world = World()
    crash = True

    async def deadly(s: Step) -> None:
        with world.working(s):
            if crash:
                raise Crash

    async def root(s: Step) -> None:
        async with s.group("g", limit=1) as g:
            g.do("a", world.leaf)
            g.do("deadly", deadly)
            g.do("b", world.leaf)

    for _ in range(3):
        with pytest.raises(BaseException) as caught:
            await world.reconcile(root, max_crashes=3)
        assert "Crash" in repr(caught.value)
    outcome = await world.reconcile(root, max_crashes=3)
    assert isinstance(outcome, Failed)
    assert outcome.error.origin == "g/deadly"
    assert (world.begun["g/a"], world.begun["g/deadly"]) == (1, 3)
    assert came_to(outcome.state) == {
        "g": "failed",
        "g/a": "done",
        "g/deadly": "failed",
        "g/b": "done",
    }


# --- any flow -------------------------------------------------------------------------------------


SEEDS = (*range(12), 51, 112, 148, 253, 376)


async def soon(work: Coroutine[Any, Any, Any]) -> Any:
    """What this comes to; a flow that hangs fails."""
    with anyio.fail_after(10):
        return await work


class AnyFlow:
    """A random tree of groups, maps, task groups, sequences and waits, and what it may do.

    Notes which children of each limited group work at the same time, in whatever is below them.
    """

    def __init__(self, seed: int, *, fails: bool = False) -> None:
        self.world = World()
        self.random = random.Random(seed)
        self.fails = fails  # parts may fail, and groups have policies
        self.policies: dict[str, dict[str, Any]] = {}  # of groups and maps, by path
        self.limits: dict[str, int] = {}  # of groups and maps, by path
        self.working: dict[str, list[str]] = {}  # children at work, by path of the group
        self.expected: dict[str, int] = {}  # how often each leaf is begun
        self.limiter = anyio.CapacityLimiter(2)
        self.crowded: list[str] = []  # groups of which too many children worked
        self.plan = self.make("", 3, shared=True)

    # What a plan is: (kind, name, number, plans below)

    def make(self, path: str, depth: int, *, shared: bool) -> tuple[Any, ...]:
        choose, name = self.random.choice, f"n{self.random.randrange(10**6)}"
        kinds = ["work", "pending", "sleep", "flaky", "poll", *(["fail"] if self.fails else [])]
        if depth:
            kinds += ["group", "map", "group", "tasks", "sequence", "block"]
        kind = choose(kinds)
        here = f"{path}/{name}" if path else name
        if kind in ("work", "pending", "sleep", "flaky", "poll", "fail"):
            number = self.random.randrange(3)
            if kind in ("work", "pending", "flaky"):
                self.expected[here] = 1 + (0 if kind == "work" else number)
            return kind, name, number, self.random.randrange(1, 40), []
        limit: Any = choose([None, 1, 2, 3])
        if kind in ("group", "map", "block"):
            if shared and self.random.random() < 0.2:
                limit, shared = "shared", False
            if self.fails:
                self.policies[f"{here}/g"] = {
                    "on_error": choose(["collect", "collect", "cancel"]),
                    "enough": choose([None, None, 1, 2]),
                    "tolerate": choose([0, 0, 1, 2]),
                }
            self.limits[f"{here}/g"] = {None: 99, "shared": 2}.get(limit, limit)
        below, count = [], self.random.randrange(1, 6)
        for i in range(count):
            inner = here
            if kind in ("group", "map") or (kind == "block" and i):
                inner = f"{here}/g/{i}"
            below.append(self.make(inner, depth - 1, shared=shared))
        return kind, name, limit, 0, below

    @contextmanager
    def at_work(self, path: str) -> Iterator[None]:
        parts = path.split("/")
        held = []
        for i in range(1, len(parts)):
            group = "/".join(parts[:i])
            if group in self.limits:
                self.working.setdefault(group, []).append(parts[i])
                held.append((group, parts[i]))
                if len(set(self.working[group])) > self.limits[group]:
                    self.crowded.append(group)
        try:
            yield
        finally:
            for group, child in held:
                self.working[group].remove(child)

    async def leaf(self, s: Step, kind: str, number: int, seconds: float) -> str:
        with self.at_work(s.path), self.world.working(s) as count:
            await self.world.clock.sleep(seconds / 10)
            if kind == "pending" and count <= number:
                s.pending(after=seconds)
            if kind == "fail" or (kind == "flaky" and count <= number):
                raise ConnectionError
        return s.path

    async def do(self, s: Step, plan: tuple[Any, ...]) -> Any:
        """Run a part of the plan as a step."""
        kind, name, number, seconds, _ = plan
        match kind:
            case "work" | "pending" | "fail":
                return await s.do(name, self.leaf, kind, number, seconds)
            case "flaky":
                retry = Retry(attempts=9, delay=seconds, factor=1, jitter=0)
                return await s.do(name, self.leaf, kind, number, seconds, retry=retry)
            case "sleep":
                return await s.sleep(name, seconds)
            case "poll":
                now = self.world.clock.now
                return await s.poll(
                    name,
                    lambda: now() + seconds,
                    lambda due: 5 if now() >= due else None,
                    every=7,
                    returns=int,
                )
            case _:
                return await s.do(name, self.branch, plan, returns=object)

    async def branch(self, s: Step, plan: tuple[Any, ...]) -> Any:
        kind, _, limit, _, below = plan
        limit = self.limiter if limit == "shared" else limit
        policy = self.policies.get(f"{s.path}/g", {})
        match kind:
            case "sequence":
                return [await self.do(s, each) for each in below]
            case "tasks":
                found: dict[int, Any] = {}

                async def one(i: int) -> None:
                    found[i] = await self.do(s, below[i])

                async with anyio.create_task_group() as tasks:
                    for i in range(len(below)):
                        tasks.start_soon(one, i)
                return [found[i] for i in range(len(below))]
            case "map":
                return await s.map(
                    "g",
                    self.item,
                    list(enumerate(below)),
                    key=lambda item: item[0],
                    limit=limit,
                    returns=object,
                    **policy,
                )
            case "group":
                async with s.group("g", limit=limit, **policy) as g:
                    children = [
                        g.do(str(i), self.item, (i, each), returns=object)
                        for i, each in enumerate(below)
                    ]
                return [child.result for child in children if child.state.done]
            case _:
                async with s.group("g", limit=limit, **policy) as g:
                    half = len(below) // 2 + 1
                    children = [
                        g.do(str(i), self.item, (i, below[i]), returns=object)
                        for i in range(1, half)
                    ]
                    first = await self.do(s, below[0])
                    children += [
                        g.do(str(i), self.item, (i, below[i]), returns=object)
                        for i in range(half, len(below))
                    ]
                return [first, *(child.result for child in children if child.state.done)]

    async def item(self, s: Step, item: tuple[int, Any]) -> Any:
        return await self.do(s, item[1])

    async def root(self, s: Step) -> Any:
        return await self.do(s, self.plan)

    async def root_that_stays(self, s: Step) -> Any:
        """The same, but all is asked again on every later pass."""
        try:
            found = await self.do(s, self.plan)
        except StepError as error:
            found = str(error)
        await s.sleep("end", 10_000_000)
        return found

    def done(self) -> None:
        assert self.crowded == []
        assert self.limiter.borrowed_tokens == 0
        assert not any(self.working.values())
        assert self.world.at_work == 0


@pytest.mark.parametrize("seed", SEEDS)
async def test_any_flow(seed: int) -> None:
    """However waits, groups, maps and tasks are nested: all runs once, limits hold, both ways."""
    flow = AnyFlow(seed)
    result = await soon(flow.world.run(flow.root))
    flow.done()
    assert flow.world.begun == flow.expected
    assert set(came_to(await flow.world.state()).values()) <= {"done"}

    passes, flow = 0, AnyFlow(seed)
    while isinstance(outcome := await soon(flow.world.reconcile(flow.root)), Pending):
        flow.done()
        passes += 1
        flow.world.clock.advance(outcome.after)
    flow.done()
    assert outcome.value == result
    assert flow.world.begun == flow.expected
    assert passes < 500


@pytest.mark.parametrize("seed", SEEDS)
async def test_any_flow_that_is_cancelled(seed: int) -> None:
    """Cancelled at any second such a flow leaves nothing behind, and comes to the same."""
    flow = AnyFlow(seed)
    result = await soon(flow.world.run(flow.root))
    flow.done()
    length, flow = flow.world.passed, AnyFlow(seed)
    for _ in range(3):
        with flow.world.clock.move_on_after(flow.random.random() * length):
            await soon(flow.world.run(flow.root))
        flow.done()
    assert await soon(flow.world.run(flow.root)) == result
    flow.done()
    state = await flow.world.state()
    assert set(came_to(state).values()) <= {"done"}


@pytest.mark.parametrize("seed", SEEDS)
async def test_any_flow_that_crashes(seed: int) -> None:
    """Killed at random saves such a flow comes to the same; nothing recorded runs again."""
    flow = AnyFlow(seed)
    result = await soon(flow.world.run(flow.root))
    saves, flow = flow.world.saves, AnyFlow(seed)
    done: set[str] = set()
    for _ in range(4):
        flow.world.take()
        number = flow.random.randrange(1, saves + 2)
        with suppress(Crash):
            again = flow.world.run(flow.root, faults={number: "crash after"})
            assert await soon(again) == result
        assert not done & set(flow.world.log)
        state = await load_state(flow.world.store, "r")
        done = set() if state is None else {p for p, n in state.walk() if n.done}
    assert await soon(flow.world.run(flow.root)) == result
    flow.done()


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "passes"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_any_flow_that_fails(seed: int, in_place: bool) -> None:
    """Whatever fails, is tolerated or enough: what has come to its end is never begun again."""
    flow = AnyFlow(seed, fails=True)
    world, budget = flow.world, 10_000 if in_place else 0
    while True:
        outcome = await soon(world.reconcile(flow.root_that_stays, max_wait=budget))
        assert isinstance(outcome, Pending)
        flow.done()
        if outcome.path == "end":
            break
        world.clock.advance(outcome.after)
    found, when = came_to(outcome.state), ended(outcome.state)
    world.take()
    for _ in range(2):
        world.clock.advance(10)
        outcome = await soon(world.reconcile(flow.root_that_stays))
        flow.done()
        assert (world.take(), world.saves) == ([], 0)
        assert (came_to(outcome.state), ended(outcome.state)) == (found, when)
    world.clock.advance(10_000_000)
    outcome = await soon(world.reconcile(flow.root_that_stays))
    assert isinstance(outcome, Done)
    assert world.take() == []
