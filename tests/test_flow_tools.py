"""The tools for users' flows: what is right passes, and what is wrong on purpose is found."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asteps import Retry, Step, StepError, UsageError
from asteps.testing import CrashReport, MockClock, both_ways, crash_everywhere

# --- a world, and flows that act on it ------------------------------------------------------------


class World:
    """What a flow acts on; it makes things, and counts what was asked of it."""

    def __init__(self, clock: MockClock) -> None:
        self.clock = clock
        self.effects: Counter[str] = Counter()
        self.ready: dict[str, float] = {}

    def start(self, name: str, token: str) -> str:
        """Start to make something; it takes a minute."""
        self.effects[f"start {name}"] += 1
        self.ready.setdefault(token, self.clock.now() + 60)
        return token

    def look(self, token: str) -> str | None:
        """What was made, once it is."""
        return token[:6] if self.clock.now() >= self.ready[token] else None


def seen(world: World) -> Counter[str]:
    """The effects that are compared."""
    return world.effects


async def leaf(s: Step, world: World, value: int) -> int:
    """The shortest body that does something."""
    world.effects[s.path] += 1
    await checkpoint()
    return value


async def part(s: Step, world: World, value: int) -> int:
    """Two steps in one."""
    return await s.do("first", leaf, world, value) + await s.do("second", leaf, world, value)


async def waiting(s: Step, world: World) -> str:
    """Wait for something that is made elsewhere, and remember which it is."""
    if s.info is None:
        await s.save_info(world.start(s.path, s.token))
    token = s.info_as(str)
    assert token is not None
    if (made := world.look(token)) is None:
        s.pending(after=25, why="it is being made")
    return made


async def flaky(s: Step, world: World) -> int:
    """Fail twice."""
    world.effects[s.path] += 1
    if s.attempt < 3:
        raise ConnectionError(f"attempt {s.attempt}")
    return s.attempt


async def broken(s: Step, world: World) -> int:
    """Fail always."""
    world.effects[s.path] += 1
    raise ValueError("never works")


async def raw_tasks(s: Step, world: World) -> int:
    """Steps in a task group that knows nothing of steps."""
    found: list[int] = []

    async def one(number: int) -> None:
        found.append(await s.do(f"t{number}", part, world, number))

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(one, number)
        tasks.start_soon(s.do, "waits", waiting, world)
    return sum(found)


async def good(s: Step, world: World, value: int) -> list[Any]:
    """Steps of every kind: nested, concurrent, pending, retried, failing and handled."""
    values: list[Any] = [await s.do("one", leaf, world, value)]
    values.append(await s.do("part/a", part, world, value))
    values.append(await s.do("waits", waiting, world))
    values.append(await s.do("flaky", flaky, world, retry=Retry(delay=60)))
    with suppress(StepError):
        await s.do("broken", broken, world)
    values.append(await s.do("tasks", raw_tasks, world))
    values.append(await s.call("plain", partial(str, value)))
    values.append(await s.do("last", leaf, world, value))
    return values


async def waits_in_every_way(s: Step, world: World) -> list[Any]:
    """Polls, sleeps, groups and maps."""
    start = partial(world.start, "image", s.token_for("poll"))
    values: list[Any] = [await s.poll("poll", start, world.look, every=7)]
    await s.sleep("nap", 3_600)
    async with s.group("group", limit=2) as g:
        children = [g.do(f"c{number}", leaf, world, number) for number in range(3)]
        g.do("waits", waiting, world)
    values += [child.result for child in children]

    async def item(s: Step, number: int) -> int:
        if s.info is None:
            s.info = "waited"
            s.pending(after=number)
        return await s.do("in", leaf, world, number)

    values += await s.map("map", item, [3, 2, 1], limit=2)
    return values


async def once(s: Step, world: World) -> str:
    """Pay."""
    world.effects["paid"] += 1
    await checkpoint()
    return "receipt"


async def pays(s: Step, world: World) -> str:
    """A step that may run at most once, between two others."""
    await s.do("before", leaf, world, 1)
    receipt = await s.do("pay", once, world, at_most_once=True)
    await s.do("after", leaf, world, 1)
    return receipt


async def fails(s: Step, world: World) -> None:
    """Fail after a wait."""
    await s.do("one", leaf, world, 1)
    await s.do("waits", waiting, world)
    await s.do("broken", broken, world)


async def without_world(s: Step, first: int, second: int) -> int:
    """A flow that acts on nothing."""

    async def body(s: Step) -> int:
        return first * second

    return await s.do("multiply", body)


# --- flows that are right -------------------------------------------------------------------------


@pytest.mark.parametrize("save", ["step", "pass"])
async def test_a_right_flow_both_ways(save: Any) -> None:
    """A flow that is written for both ways comes to the same; its result is given back."""
    values = await both_ways(good, 5, world=World, effects=seen, save=save)
    assert (values[:2], values[3:]) == ([5, 10], [3, 6, "5", 5])
    assert re.fullmatch("[0-9a-f]{6}", values[2])  # made from a token, which is the same both ways


async def test_a_right_flow_that_crashes_everywhere() -> None:
    """It comes to the same after every crash; what was under way took place once more."""
    report = await crash_everywhere(good, 5, world=World, effects=seen)
    assert report.result[3:] == [3, 6, "5", 5]
    assert report.saves >= 15
    few = 8  # trio runs tasks in random order, so saves are shared at random
    assert 2 * report.saves - few <= report.trials <= 2 * report.saves + few
    assert report.interrupted == {}
    assert {"one", "part~1a/first", "flaky"} <= set(report.repeated)
    assert [report.repeated["one"], report.repeated["start waits"]] == [1, 1]


async def test_the_other_ways_to_wait() -> None:
    """The same for polls, durable sleeps, groups and maps."""
    values = await both_ways(waits_in_every_way, world=World, effects=seen)
    report = await crash_everywhere(waits_in_every_way, world=World, effects=seen)
    assert report.result == values
    assert values[1:] == [0, 1, 2, 3, 2, 1]
    assert report.repeated["start image"] == 1


async def test_without_a_world() -> None:
    """A flow that acts on nothing needs no world."""
    assert await both_ways(without_world, 6, 7) == 42
    report = await crash_everywhere(without_world, 6, 7)
    assert report == CrashReport(result=42, saves=3, trials=6, repeated={}, interrupted={})


async def test_at_most_once() -> None:
    """A step that runs at most once may fail after a crash: it is reported, and never run twice."""
    assert await both_ways(pays, world=World, effects=seen) == "receipt"
    report = await crash_everywhere(pays, world=World, effects=seen)
    assert report.interrupted == {"pay": 2}  # after its start was saved, before its end was
    assert "paid" not in report.repeated


async def test_a_flow_that_fails() -> None:
    """A flow that fails alike in all ways raises what `asteps.run` raises."""
    for tool in (both_ways, crash_everywhere):
        with pytest.raises(StepError, match="never works") as caught:
            await tool(fails, world=World, effects=seen)
        assert caught.value.is_a(ValueError)


async def test_all_kinds_of_functions() -> None:
    """Lambdas, partials, methods and callable objects can be tried as they can be run."""

    class Flow:
        async def method(self, s: Step, value: int) -> int:
            return await without_world(s, value, 2)

        async def __call__(self, s: Step, value: int) -> int:
            return await without_world(s, value, 3)

    assert await both_ways(Flow().method, 4) == 8
    assert await both_ways(Flow(), 4) == 12
    assert await both_ways(partial(without_world, second=5), 4) == 20
    assert await both_ways(lambda s: without_world(s, 1, 2)) == 2


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_gather() -> None:
    """``asyncio.gather`` and ``TaskGroup`` are concurrency like any other."""

    async def flow(s: Step, world: World) -> list[Any]:
        found = await asyncio.gather(
            s.do("a", part, world, 1), s.do("w", waiting, world), s.do("b", part, world, 2)
        )
        async with asyncio.TaskGroup() as tasks:
            last = [tasks.create_task(s.do(f"t{i}", leaf, world, i)) for i in range(3)]
        return [*found[::2], *(task.result() for task in last)]

    assert await both_ways(flow, world=World, effects=seen) == [2, 4, 0, 1, 2]
    report = await crash_everywhere(flow, world=World, effects=seen)
    assert report.result == [2, 4, 0, 1, 2]


async def test_drivers_keywords() -> None:
    """Keywords of the drivers are passed on; those of the tools' own making are refused."""
    ends: list[str] = []

    async def end(s: Step) -> None:
        ends.append(s.path)

    assert await both_ways(without_world, 6, 7, on_end=end) == 42
    assert ends == ["$end", "$end"]
    for keyword in ("store", "id", "state", "clock", "max_wait", "recover"):
        for tool in (both_ways, crash_everywhere):
            odd: Any = {keyword: None}
            with pytest.raises(UsageError, match=f"leave out {keyword}="):
                await tool(without_world, 6, 7, **odd)


async def test_wrong_calls() -> None:
    """A flow that cannot be called so, and effects of nothing, are misuse."""
    for tool in (both_ways, crash_everywhere):
        untyped: Any = tool
        with pytest.raises(UsageError, match="cannot be called with a Step and 1 arguments"):
            await untyped(without_world, 6)
        with pytest.raises(UsageError, match="with a Step, the world and 0 arguments"):
            await untyped(good, world=World)
        with pytest.raises(UsageError, match="pass world= too"):
            await untyped(good, 5, effects=seen)
    with pytest.raises(UsageError, match="gives a mapping from each effect"):
        await crash_everywhere(good, 5, world=World, effects=lambda world: [world])  # type: ignore[arg-type,return-value]


# --- flows that are wrong on purpose --------------------------------------------------------------


async def both(flow: Callable[[Step, World], Awaitable[Any]]) -> str:
    """What `both_ways` says of a wrong flow."""
    with pytest.raises(AssertionError) as caught:
        await both_ways(flow, world=World, effects=seen)
    return str(caught.value)


async def crashes(flow: Callable[[Step, World], Awaitable[Any]]) -> str:
    """What `crash_everywhere` says of a wrong flow."""
    with pytest.raises(AssertionError) as caught:
        await crash_everywhere(flow, world=World, effects=seen)
    return str(caught.value)


async def test_a_variable_that_should_outlive_a_wait() -> None:
    """What a body keeps in a variable is gone when the next pass enters it."""

    async def counts(s: Step, world: World) -> int:
        looks = 0

        async def look(s: Step) -> int:
            nonlocal looks
            looks += 1
            if looks < 3:
                s.pending(after=5, why="the image")
            return looks

        return await s.do("look", look)

    said = await both(counts)
    assert "in place the flow comes to its end after 2 waits" in said
    assert "step 'look' still waits (the image)" in said
    assert "not in a variable" in said

    async def sums(s: Step, world: World) -> int:
        done = 0

        async def add(s: Step) -> None:
            nonlocal done
            done += 1

        await s.do("add", add)
        await s.do("waits", waiting, world)
        return done

    said = await both(sums)
    assert "the flow returned 1 in place, returned 0 by passes" in said
    assert "the flow returned 1 undisturbed, returned 0 then" in await crashes(sums)


async def test_a_cancel_scope_around_a_step_that_waits() -> None:
    """``fail_after`` bounds the wait in place, and nothing of it by passes."""

    async def bounded(s: Step, world: World) -> str:
        with anyio.fail_after(20):
            return await s.do("waits", waiting, world)

    said = await both(bounded)
    assert "(anyio.fail_after, anyio.move_on_after) is around a step that waits for 25 s" in said
    assert "its timeout=" in said

    async def polls(s: Step, world: World) -> str:
        with anyio.fail_after(55):  # each wait is shorter, all are not
            return await s.do("waits", waiting, world)

    assert "around a step that waits" in await both(polls)

    async def long_enough(s: Step, world: World) -> int:
        with anyio.fail_after(3_600):
            await s.do("waits", waiting, world)
        with anyio.fail_after(1):
            return await s.do("one", leaf, world, 1)

    with anyio.fail_after(10):  # of the test itself, which does not count
        assert await both_ways(long_enough, world=World) == 1


async def test_an_effect_outside_any_step() -> None:
    """What a body does between its steps happens on every pass."""

    async def mails(s: Step, world: World) -> None:
        world.effects["mail"] += 1
        await s.do("one", leaf, world, 1)
        await s.do("waits", waiting, world)
        await s.do("two", leaf, world, 2)

    assert "effect 'mail': 1 in place, 4 by passes" in await both(mails)
    said = await crashes(mails)
    assert "after a crash right after save 2 (of step 'one'): effect 'mail'" in said
    assert "took place again (1 undisturbed, 2 in all)" in said
    assert "put it into a step of its own" in said
    report = await crash_everywhere(mails, world=World, effects=seen, may_repeat=["mail"])
    assert report.repeated["mail"] > 5

    async def mails_in_between(s: Step, world: World) -> None:
        await s.do("one", leaf, world, 1)
        world.effects["mail"] += 1
        await s.do("part", part, world, 1)

    async def nested(s: Step, world: World) -> None:
        await s.do("nested", mails_in_between, world)
        await s.do("two", leaf, world, 2)

    said = await crashes(nested)
    assert (
        "after a crash right after save 3 (of step 'nested/part', step 'nested/part/first')" in said
    )
    assert "effect 'mail' took place again" in said


async def test_an_effect_beside_steps_that_run() -> None:
    """Such an effect is found beside concurrent steps too; theirs may take place again."""

    async def group(s: Step, world: World) -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(s.do, f"p{number}", part, world, number)
        world.effects["mail"] += 1
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(s.do, f"q{number}", part, world, number)
        await s.do("last", leaf, world, 1)

    said = await crashes(group)
    assert "effect 'mail' took place again (1 undisturbed, 2 in all)" in said


async def test_an_effect_at_the_end_of_a_body() -> None:
    """The last thing that a body does is as safe as if the body had no steps below it."""

    async def mails(s: Step, world: World) -> None:
        await s.do("one", leaf, world, 1)
        world.effects[f"mail of {s.path}"] += 1

    async def flow(s: Step, world: World) -> None:
        await s.do("nested", mails, world)
        await mails(s, world)

    report = await crash_everywhere(flow, world=World, effects=seen)
    assert (report.repeated["mail of nested"], report.repeated["mail of "]) == (1, 1)


async def test_an_effect_twice_in_one_step() -> None:
    """A step that has an effect twice has it four times after a crash, if nothing prevents it."""

    async def twice(s: Step, world: World) -> None:
        world.effects["disk"] += 1
        world.effects["disk"] += 1

    async def flow(s: Step, world: World) -> None:
        await s.do("disks", twice, world)

    said = await crashes(flow)
    assert "after a crash right before save 2 (of step 'disks')" in said
    assert "effect 'disk' took place too often: 2 undisturbed, 4 in all" in said


async def test_an_effect_that_is_lost() -> None:
    """An effect that the flow believes to have had, from what it saved too early, is missed."""

    async def hasty(s: Step, world: World) -> None:
        if s.info is None:
            await s.save_info("sent")
            world.effects["sent"] += 1

    async def flow(s: Step, world: World) -> None:
        await s.do("hasty", hasty, world)

    said = await crashes(flow)
    assert "after a crash right after save 2 (of step 'hasty')" in said
    assert "effect 'sent' was lost: 1 undisturbed, 0 in all" in said


async def test_a_way_around_at_most_once() -> None:
    """Whoever does again what may happen at most once is found."""

    async def pays_again(s: Step, world: World) -> str:
        try:
            return await s.do("pay", once, world, at_most_once=True)
        except StepError:
            return await s.do("pay again", once, world)

    said = await crashes(pays_again)
    assert "effect 'paid' took place again (1 undisturbed, 2 in all)" in said
    assert "although step 'pay' runs at most once" in said


async def test_swallowing() -> None:
    """A body that swallows the end of a pass is told so, although nothing ends in place."""

    async def swallows(s: Step, world: World) -> str:
        try:
            return await s.do("waits", waiting, world)
        except BaseException:  # noqa: BLE001
            return "whatever"

    said = await both(swallows)
    assert "but pass 1 raised UsageError: the body of 'the run' swallowed the signal" in said


async def test_a_step_that_only_one_way_has() -> None:
    """A step that is run in one way alone is named, and so are other results and infos."""

    async def flow(s: Step, world: World) -> None:
        world.effects["begun"] += 1
        await s.do("waits", waiting, world)
        if world.effects["begun"] > 1:
            await s.do("extra", leaf, world, 1)
        await s.do("number", leaf, world, world.effects["begun"])

        async def notes(s: Step) -> None:
            s.info = {"begun": world.effects["begun"]}

        async def picky(s: Step) -> None:
            if world.effects["begun"] == 1:
                raise ValueError("not the first time")

        await s.do("notes", notes)
        with suppress(StepError):
            await s.do("picky", picky)

    with pytest.raises(AssertionError) as caught:
        await both_ways(flow, world=World)
    said = str(caught.value)
    assert "step 'extra': done by passes, came to nothing in place" in said
    assert "step 'number': its result is 1 in place, 4 by passes" in said
    assert "step 'picky': failed in place, done by passes (not the first time)" in said
    assert "step 'notes': its info is {'begun': 1} in place, {'begun': 4} by passes" in said


async def test_worlds_may_be_anything() -> None:
    """What is compared of the worlds need not be a count; a long list of differences is cut."""

    async def flow(s: Step, log: list[int]) -> None:
        log.append(len(log))
        await s.call("wait", wait, log)
        for number in range(20):
            await s.call(f"n{number}", partial(str, len(log)))

    def wait(log: list[int]) -> None:
        if len(log) < 2:
            log.append(9)

    await both_ways(flow, world=lambda clock: list[int](), effects=tuple)

    async def waits(s: Step, log: list[int]) -> None:
        await flow(s, log)
        await s.sleep("nap", 5)

    with pytest.raises(AssertionError) as caught:
        await both_ways(waits, world=lambda clock: list[int](), effects=tuple)
    assert "the effects: (0, 9) in place, (0, 9, 2) by passes" in str(caught.value)

    async def many(s: Step, log: list[int]) -> None:
        log.append(len(log))
        await s.sleep("nap", 5)
        for number in range(20):
            await s.call(f"n{number}", partial(str, len(log)))

    with pytest.raises(AssertionError, match="and 10 differences more"):
        await both_ways(many, world=lambda clock: list[int]())


async def test_a_flow_that_never_ends() -> None:
    """A flow that waits for ever is given up, in place and after a crash, and says for what."""

    async def never(s: Step, world: World) -> None:
        world.effects["begun"] += 1
        s.pending(after=3_600, why="the moon")

    async def flow(s: Step, world: World) -> None:
        await s.do("never", never, world)

    for tool in (both_ways, crash_everywhere):
        with pytest.raises(AssertionError) as caught:
            await tool(flow, world=World, within=86_400)
        said = "the flow did not end within 1 day, 0:00:00 of its clock"
        assert said in str(caught.value)
        assert "step 'never' waits (the moon)" in str(caught.value)

    async def after_a_crash(s: Step, world: World) -> None:
        world.effects["begun"] += 1
        await s.do("one", leaf, world, 1)
        if world.effects["begun"] > 1:
            await s.do("never", never, world)

    with pytest.raises(AssertionError, match=r"after a crash right before save 2 .* did not end"):
        await crash_everywhere(after_a_crash, world=World, within=86_400)


async def test_misuse_in_place() -> None:
    """Misuse that shows at once comes out as what it is."""

    async def flow(s: Step) -> None:
        await s.call("same", dict)
        await s.call("same", dict)

    for tool in (both_ways, crash_everywhere):
        with pytest.raises(UsageError, match="names are unique"):
            await tool(flow)


async def test_misuse_after_a_crash() -> None:
    """Misuse that shows only when the flow is entered again is told with the crash."""

    async def flow(s: Step, world: World) -> None:
        world.effects["begun"] += 1
        await s.do("one", leaf, world, 1)
        if world.effects["begun"] > 1:
            await s.do("two", leaf, world, 1)
            await s.do("two", leaf, world, 1)

    said = await crashes(flow)
    assert re.match("after a crash right (before|after) save 2 .*: DuplicateStepError: ", said)


# --- what it costs --------------------------------------------------------------------------------


async def test_twenty_steps_are_fast() -> None:
    """A flow of twenty steps crashes at all its saves with a handful of runs for each."""
    runs: list[int] = []

    async def flow(s: Step, world: World) -> int:
        runs.append(1)
        return sum([await s.do(f"s{i}", leaf, world, i) for i in range(20)])

    report = await crash_everywhere(flow, world=World, effects=seen)
    assert (report.result, report.saves, report.trials) == (190, 22, 44)
    assert len(runs) <= 2 + 2 * report.trials + 2
