"""Slips that are easily made with concurrent steps: each is told, and nothing fails by it."""

from __future__ import annotations

import asyncio
import contextvars
import traceback
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from worlds import World, came_to

import asteps
from asteps import Pending, State, Step, UsageError


async def leaf(s: Step, value: int = 1) -> int:
    """A step that does next to nothing."""
    await checkpoint()
    return value


@pytest.mark.parametrize("way", ["group", "map", "task group", "gather"])
async def test_the_step_of_a_parent_is_not_a_childs(way: str, anyio_backend: str) -> None:
    """A child in a task of its own that uses its parent's Step is misuse, not a hanging pass."""
    if way == "gather" and anyio_backend == "trio":
        way = "task group"  # trio has no gather

    async def root(s: Step) -> None:
        async def child(_: Step, name: str) -> None:
            await s.sleep(f"nap of {name}", 3600)

        if way == "group":
            async with s.group("g") as g:
                g.do("a", child, "a")
                g.do("b", child, "b")
        elif way == "map":
            await s.map("m", child, ["a", "b"])
        elif way == "gather":
            await asyncio.gather(s.do("a", child, "a"), s.do("b", child, "b"))
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(s.do, "a", child, "a")
                tasks.start_soon(s.do, "b", child, "b")

    with pytest.raises(UsageError, match="a body uses the Step that it was given"):
        await asteps.reconcile(root, state=State("r"), name="r")


async def test_tasks_of_a_child_use_its_own_step() -> None:
    """Tasks that a child starts run steps below the child, whatever tasks of a group it is in."""
    world = World()

    async def child(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            for name in "xy":
                tasks.start_soon(partial(s.do, returns=int), name, leaf)
        await s.map("m", leaf, [1, 2], limit=1)

    async def root(s: Step) -> None:
        async with s.group("g") as g:
            g.do("a", child)
            g.do("b", child)
            await s.do("beside", leaf)
        await s.map("items", leaf, [1, 2, 3])
        await s.do("after", leaf)

    await world.run(root)
    outcome = await world.reconcile(root)
    assert set(came_to(outcome.state).values()) == {"done"}
    assert outcome.state.has("g/b/m/2")


async def test_a_task_needs_an_id() -> None:
    """A `start` that returns nothing is misuse: without an ID there is nothing to ask about."""

    def start() -> None:
        return None

    async def root(s: Step) -> str:
        return await s.poll("p", start, str, every=5)

    state = State("r")
    with pytest.raises(UsageError, match="start returned None"):
        await asteps.run(root, state=state, name="r")
    assert not state.failed


@pytest.mark.parametrize("way", ["await child", "with", "await group"])
async def test_a_child_and_a_group_are_not_awaited(way: str) -> None:
    """``await g.do(…)``, ``with s.group(…)`` and ``await s.group(…)`` say what is right instead."""

    async def root(s: Step) -> None:
        group: Any = s.group("g")
        if way == "await child":
            async with group as g:
                await g.do("a", leaf)
        elif way == "with":
            with group:
                pass
        else:
            await group

    state = State("r")
    with pytest.raises(UsageError, match=r"not awaited|async with"):
        await asteps.run(root, state=state, name="r")
    assert not state.failed


async def test_misuse_says_where() -> None:
    """The traceback of a misuse has the line of the body, and its message the step."""

    async def inner(s: Step) -> None:
        await s.do("first", leaf)
        await s.do("culprit", leaf, retires=3)  # type: ignore[call-overload]

    async def root(s: Step) -> None:
        async with s.group("g") as g:
            g.do("inner", inner)

    with pytest.raises(UsageError, match="'g/inner/culprit': a step has no option retires") as told:
        await asteps.run(root)
    lines = [frame.line or "" for frame in traceback.extract_tb(told.value.__traceback__)]
    assert any("retires=3" in line for line in lines)


async def test_an_unknown_keyword_of_a_driver_is_misuse() -> None:
    """Drivers name the keywords that there are."""
    with pytest.raises(UsageError, match=r"no keyword stor: there are .*, store"):
        await asteps.run(leaf, 1, stor=None)  # type: ignore[call-arg]


async def test_a_place_is_taken_again_after_a_timeout() -> None:
    """A child whose wait was cut short by a step's timeout works under the limit again."""
    world = World()

    async def waits(s: Step) -> None:
        await s.sleep("nap", 1000)

    async def child(s: Step) -> str:
        try:
            await s.do("bounded", waits, timeout=5)
        except asteps.StepError:
            return await world.leaf(s)
        raise AssertionError

    async def root(s: Step) -> None:
        async with s.group("g", limit=1) as g:
            for name in "abc":
                g.do(name, child)

    await world.run(root)
    assert (world.most, len(world.log)) == (1, 3)


async def test_what_a_pass_has_no_time_for_starts_no_task() -> None:
    """With `max_pass` used up, what is left of a large map waits without being looked at."""
    world = World()

    async def item(s: Step, index: int) -> int:
        world.log.append(s.path)
        world.clock.advance(1)
        return index

    async def root(s: Step) -> int:
        return len(await s.map("m", item, range(3000), limit=2))

    outcome = await world.reconcile(root, max_pass=10)
    assert isinstance(outcome, Pending)
    assert 10 <= len(world.log) <= 12
    began = len(world.log)
    outcome = await world.reconcile(root, max_pass=10)
    assert isinstance(outcome, Pending)
    assert 10 <= len(world.log) - began <= 12
    assert len(outcome.state.get("m").states or ()) == len(world.log)


async def test_items_do_not_see_one_anothers_context() -> None:
    """A worker that is started because an item waits does not begin in that item's context."""
    world = World()
    of_item: contextvars.ContextVar[int] = contextvars.ContextVar("of_item", default=-1)
    seen: list[int] = []

    async def item(s: Step, index: int) -> None:
        if index > 0:
            seen.append(of_item.get())
        of_item.set(index)
        await s.sleep("nap", 10)

    async def root(s: Step) -> None:
        await s.map("m", item, range(4), limit=1)

    await world.run(root)
    assert seen == [-1, -1, -1]
