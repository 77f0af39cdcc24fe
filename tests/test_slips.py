"""Slips that are easily made: what was meant happens, or the driver says what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

import asteps
from asteps import Done, Failed, Retry, State, Step, UsageError
from asteps.stores.memory import MemoryStore

SETS = """
from asteps._payload import Payloads
payloads = Payloads()
print(payloads.digest({"b": {"x", "y", "z", "w"}, "a": 1}, "it"))
print(payloads.digest_of_arguments(print, ({"x", "y", "z", "w"}, {2: "b", 1: "a"})))
"""


async def one(s: Step) -> int:
    """A step."""
    return 1


def test_a_digest_is_the_same_in_every_process() -> None:
    """Sets have another order in each process; what is digested of them has not."""
    found = {
        subprocess.run(
            [sys.executable, "-c", SETS],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "1234"
    }
    assert len(found) == 1


@pytest.mark.parametrize("where", ["step", "parent"])
async def test_at_most_once_is_not_tried_again_after_a_timeout(where: str) -> None:
    """Of a body that was stopped in the middle nobody knows how far it had come."""
    begun: list[int] = []

    async def slow(s: Step) -> None:
        begun.append(1)
        await anyio.sleep_forever()

    async def parent(s: Step) -> None:
        retry = Retry(delay=0) if where == "step" else None
        await s.do("pay", slow, at_most_once=True, timeout=0.01, retry=retry)

    async def root(s: Step) -> None:
        await s.do("parent", parent, retry=Retry(delay=0))

    outcome = await asteps.reconcile(root, store=MemoryStore(), id="r", max_wait=5)
    assert isinstance(outcome, Failed)
    assert begun == [1]
    assert outcome.error.errors[0].errors[0].failure.kind == "timeout"


async def test_siblings_that_wait_for_each_other_end_although_time_is_up() -> None:
    """A step that had begun in a pass is called again in it, also after ``max_pass``."""
    called = 0
    ready = anyio.Event()

    async def first(s: Step) -> None:
        nonlocal called
        called += 1
        if called == 1:
            await anyio.sleep(0.25)  # a busy machine needs time to begin both
            s.pending(after=0.001)
        ready.set()

    async def second(s: Step) -> None:
        await ready.wait()

    async def root(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(s.do, "first", first)
            tasks.start_soon(s.do, "second", second)

    with anyio.fail_after(5):
        outcome = await asteps.reconcile(root, state=State("r"), max_pass=0.2)
    assert isinstance(outcome, Done)


@pytest.mark.parametrize("way", ["do", "options", "retry"])
async def test_a_body_uses_the_step_that_it_was_given(way: str) -> None:
    """The parent's Step in a child's body is misuse, and is named."""

    async def root(s: Step) -> int:
        async def inner(child: Step) -> int:
            await checkpoint()
            if way == "options":
                return await s.do("sibling", one, timeout=5)
            return await s.do("sibling", one)

        return await s.do("inner", inner, retry=Retry() if way == "retry" else None)

    with pytest.raises(UsageError, match="'sibling' was asked for in the body of a step below"):
        await asteps.run(root)


@pytest.mark.parametrize("wrong", ["attempts", "on", "outcome", "arguments", "call"])
async def test_misuse_in_a_body_is_no_failure(wrong: str) -> None:
    """What is wrong with the code leaves the driver; corrected code needs no recover."""
    correct = False

    async def root(s: Step) -> int:
        if correct:
            return await s.do("x", one)
        if wrong == "attempts":
            return await s.do("x", one, retry=Retry(attempts=0))
        if wrong == "on":
            odd: Any = "ConnectionError"
            return await s.do("x", one, retry=Retry(on=odd))
        if wrong == "outcome":
            return len(repr(s.outcome))
        bad: Any = one
        if wrong == "arguments":
            return int(await s.do("x", bad, 2, 3))
        return int(await s.call("x", bad))

    store = MemoryStore()
    with pytest.raises(UsageError):
        await asteps.reconcile(root, store=store, id="r")
    correct = True
    assert isinstance(await asteps.reconcile(root, store=store, id="r"), Done)


async def test_an_inline_run_keeps_what_is_known_of_the_arguments() -> None:
    """``open_run`` has no arguments; those that were recorded are still compared."""
    store = MemoryStore()

    async def flow(s: Step, n: int) -> int:
        return await s.do("x", one) + n

    await asteps.reconcile(flow, 1, store=store, id="r", name="flow")
    async with asteps.open_run("flow", store=store, id="r") as s:
        await s.do("y", one)
    with pytest.raises(asteps.RunMismatchError):
        await asteps.run(flow, 2, store=store, id="r", name="flow")


def test_what_is_printed_of_an_outcome_can_be_read() -> None:
    """A State says its name, what it came to, and how much is below it."""
    state = State.decode(b'{"name":"vm","run":{"format":1},"states":[{"name":"a"}]}')
    assert repr(state) == "<State 'vm': not begun, 1 steps below>"
