"""Plans: declared, checked, drawn and counted before they run; and run as steps like any."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import anyio
import pytest
from anyio.lowlevel import checkpoint
from clocks import FakeClock
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import World, came_to

import asteps
from asteps import (
    Done,
    DuplicateStepError,
    Failed,
    Pending,
    Plan,
    Progress,
    Retry,
    RunMismatchError,
    State,
    Step,
    StepError,
    Task,
    UsageError,
    edit_run,
)
from asteps.stores.memory import MemoryStore
from asteps.testing import MockClock, both_ways, crash_everywhere

# --- helpers --------------------------------------------------------------------------------------


@dataclass
class Image:
    """What JSON alone does not bring back."""

    id: str


async def image(s: Step, vm: str) -> Image:
    """A result with a type of its own."""
    return Image(f"image of {vm}")


async def one(s: Step, *_: object) -> int:
    """The shortest body."""
    return 1


async def name_of(s: Step, *_: object) -> str:
    """Its own path."""
    return s.path


def reborn(state: State) -> State:
    """The tree as another process finds it."""
    return State.decode(state.encode())


# --- declaring ------------------------------------------------------------------------------------


def test_a_task_is_known_by_name_path_and_place() -> None:
    """A handle tells the task's name, its path, and what it comes after."""
    plan = Plan("p")
    a = plan.task("a", one)
    b = plan.task("b/c")
    c = b.task("d", one)
    assert (a.name, a.path, a.after) == ("a", "a", ())
    assert (b.name, b.path, b.after) == ("b/c", "b~1c", (a,))
    assert (c.name, c.path, c.after) == ("d", "b~1c/d", ())
    assert repr(c) == "<Task 'b~1c/d' of plan 'p'>"
    assert repr(plan) == "<Plan 'p': 2 tasks>"


def test_without_after_a_task_comes_after_all_before_it() -> None:
    """Without ``after`` a task waits for everything declared before it, whatever that waits for."""
    plan = Plan("p")
    a = plan.task("a", one)
    b = plan.task("b", one, after=[])
    c = plan.task("c", one, after=[a])
    d = plan.task("d", one)
    e = plan.task("e", one)
    f = plan.task("f", one, after=[e, a, e])
    assert [t.after for t in (a, b, c, d, e, f)] == [(), (), (a,), (b, c), (d,), (a, e)]


def _late(plan: Plan) -> None:
    anyio.run(asteps.run, plan)
    plan.task("z", one)


def _late_below(plan: Plan) -> None:
    below = plan.task("z")
    below.task("y", one)
    anyio.run(asteps.run, plan)
    below.task("x", one)


def _deep_plans(plan: Plan) -> None:
    for n in range(60):
        outer = Plan(f"p{n}")
        for name in "ab":  # shared by two, so that to count each use would take for ever
            outer.task(name, plan if n else one)
        plan = outer


def _deep(plan: Plan) -> None:
    task = plan.task("d")
    for _ in range(60):
        task = task.task("d")


def _itself(plan: Plan) -> None:
    other = Plan("other")
    other.task("a").task("b", plan)
    plan.task("z", other)


async def _generator(s: Step) -> Any:
    yield 1


WRONG: dict[str, tuple[Callable[[Any], object], str]] = {
    "no function": (lambda p: p.task("z", 5), "'z' runs a function, not int: 5"),
    "a generator": (lambda p: p.task("z", _generator), "_generator is a generator"),
    "no name": (lambda p: p.task(one), "a step's name is a str, not function"),
    "an empty name": (lambda p: p.task("", one), "1 to 200 characters"),
    "a reserved name": (lambda p: p.task("$z", one), "kept for asteps"),
    "a control character": (lambda p: p.task("z\n", one), "control characters"),
    "one task as after": (lambda p: p.task("z", one, after=p.a), "takes a list of tasks"),
    "a name as after": (lambda p: p.task("z", one, after=["a"]), "takes tasks, not 'a'"),
    "a task of another plan": (
        lambda p: p.task("z", one, after=[Plan("other").task("o", one)]),
        "tasks of its own plan, not <Task 'o' of plan 'other'>",
    ),
    "a task of another level": (
        lambda p: p.task("z", one, after=[p.g.task("y", one)]),
        "the tasks beside it, not 'g/y'",
    ),
    "a task of the level above": (
        lambda p: p.g.task("z", one, after=[p.a]),
        "'g/z': after= takes the tasks beside it, not 'a'",
    ),
    "an unknown option": (lambda p: p.task("z", one, retries=3), "has no option retries"),
    "a limit of a function": (lambda p: p.task("z", one, limit=3), "a limit is for a task that is"),
    "a wrong limit": (lambda p: p.task("z", limit=0), "limit=0: a whole number"),
    "a type without a function": (lambda p: p.task("z", returns=int), "has no option returns"),
    "a wrong retry": (lambda p: p.task("z", one, retry=3), "takes a Retry, not int"),
    "a wrong timeout": (lambda p: p.task("z", one, timeout=0), "timeout= is 0"),
    "a wrong at_most_once": (lambda p: p.task("z", one, at_most_once=1), "is True or False"),
    "a task below a function": (lambda p: p.a.task("z", one), "'a' has a function of its own"),
    "a plan in itself": (lambda p: p.task("z", p), "plan 'p' would run itself"),
    "a plan in its own part": (_itself, "plan 'p' would run itself"),
    "too deep": (_deep, "more than 50 steps deep"),
    "plans too deep": (_deep_plans, "more than 50 steps deep"),
    "too late": (_late, "plan 'p' has been run, and is fixed"),
    "too late below": (_late_below, "plan 'p' has been run, and is fixed"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_declarations(what: str) -> None:
    """A wrong declaration is misuse where it is made, says what is wrong, and declares nothing."""
    plan: Any = Plan("p")
    plan.a = plan.task("a", one)
    if what not in ("too late", "too late below"):
        plan.g = plan.task("g")
    before = plan.draw()
    wrong, message = WRONG[what]
    with pytest.raises(UsageError) as raised:
        wrong(plan)
    assert message in str(raised.value)
    if what in ("no function", "an unknown option", "a wrong retry", "a task of another plan"):
        assert plan.draw() == before


def test_names_are_unique_among_siblings() -> None:
    """Two tasks of one name beside each other are an error; at other levels they are not."""
    plan = Plan("p")
    a = plan.task("a")
    a.task("a", one)
    with pytest.raises(DuplicateStepError, match="plan 'p' has a task 'a' already"):
        plan.task("a", one)
    with pytest.raises(DuplicateStepError, match="'a/a' already") as raised:
        a.task("a", one)
    assert (raised.value.path, raised.value.plan) == ("a/a", "p")


@pytest.mark.parametrize("name", ["", 5, "#1", "a\x00", "x" * 201])
def test_names_of_plans(name: Any) -> None:
    """A plan's name is one that a step may have."""
    with pytest.raises(UsageError):
        Plan(name)


async def test_an_empty_plan() -> None:
    """A plan without tasks, or with a task that is nothing, is misuse before anything runs."""
    with pytest.raises(UsageError, match="plan 'p' has no tasks"):
        await asteps.run(Plan("p"))
    plan = Plan("p")
    plan.task("a", one)
    plan.task("b").task("c")
    state = State("p")
    with pytest.raises(UsageError, match="'b/c' has neither a function nor tasks of its own"):
        await asteps.run(plan, state=state)
    assert not state.states
    plan.task("z", one)  # it was not fixed by that
    inner = Plan("inner")
    outer = Plan("outer")
    outer.task("a", inner)
    with pytest.raises(UsageError, match="plan 'inner' has no tasks"):
        await asteps.run(outer)


# --- running --------------------------------------------------------------------------------------


async def test_tasks_follow_one_another() -> None:
    """Tasks are the steps of the run, get its arguments, and run one after the other."""
    world = World()
    seen: list[tuple[object, ...]] = []

    async def note(s: Step, *args: object) -> str:
        seen.append((s.path, *args))
        return await world.leaf(s)

    plan = Plan("MoveToVPC")
    plan.task("a", note)
    group = plan.task("b")
    group.task("c", note)
    group.task("d", note)
    plan.task("e", note)
    assert await world.run(plan, "vm", 5) == "e"
    assert seen == [(path, "vm", 5) for path in ("a", "b/c", "b/d", "e")]
    state = await world.state()
    assert came_to(state) == dict.fromkeys(["a", "b", "b/c", "b/d", "e"], "done")
    assert (state.planned, state.get("b").planned) == (("a", "b", "e"), ("c", "d"))
    assert world.most == 1


async def test_what_can_run_at_the_same_time_does() -> None:
    """Tasks that wait for no other overlap; each begins as soon as those before it are done."""
    world = World()
    plan = Plan("p")
    a = plan.task("a", world.ticking(10))
    b = plan.task("b", world.ticking(30), after=[])
    c = plan.task("c", world.ticking(10), after=[a])
    plan.task("d", world.ticking(10), after=[c])
    plan.task("e", world.ticking(5), after=[b, c])
    plan.task("f", world.ticking(1))
    assert await world.run(plan) == "f"
    assert world.log == ["a", "b", "c", "d", "e", "f"]
    assert (world.passed, world.most) == (36, 2)


async def test_tasks_begin_in_the_order_of_their_declaration() -> None:
    """Of tasks that may begin at the same moment, the one that was declared first begins first."""
    world = World()
    plan = Plan("p")
    first = plan.task("first", world.leaf)
    names = [f"t{n}" for n in range(20)]
    for name in names:
        plan.task(name, world.leaf, after=[first])
    result = await world.run(plan)
    assert world.log == ["first", *names]
    assert result == {name: name for name in names}
    assert world.most > 1


async def test_a_limit() -> None:
    """``limit`` bounds how many tasks work at the same time; one that waits gives up its place."""
    world = World()
    plan = Plan("p", limit=2)
    for n in range(4):
        plan.task(f"t{n}", world.ticking(10), after=[])
    group = plan.task("g", limit=1, after=[])
    for n in range(2):
        group.task(f"w{n}", world.pending(1, 100), after=[])
    await world.run(plan)
    assert world.most == 2
    assert world.passed == 120  # both waits of the group at the same time


async def test_a_plan_that_waits_gives_up_its_place_around_it() -> None:
    """A group's place is free while everything in a plan below it only waits."""
    world = World()
    plan = Plan("p")
    plan.task("a", world.pending(1, 100))
    plan.task("b", world.pending(1, 100), after=[])

    async def root(s: Step) -> None:
        async with s.group("g", limit=1) as g:
            g.do("plan", plan)
            g.do("other", world.ticking(50))

    await world.run(root)
    assert world.passed == 100


async def test_a_shared_limiter() -> None:
    """A limiter that plans share bounds all of their tasks together, also those in a row."""
    world = World()
    limiter = anyio.CapacityLimiter(1)
    plan = Plan("p", limit=limiter)
    plan.task("a", world.ticking(10))
    plan.task("b", world.ticking(10))
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(partial(asteps.run, plan, clock=world.clock))
    assert (world.most, world.passed) == (1, 60)


async def test_a_limiter_around_itself() -> None:
    """A limiter that a level around has already is misuse: its tasks would wait for ever."""
    limiter = anyio.CapacityLimiter(1)
    plan = Plan("p", limit=limiter)
    group = plan.task("a", limit=limiter)
    group.task("b", one)
    group.task("c", one, after=[])
    with pytest.raises(UsageError, match="limiter of a group around it"):
        await asteps.run(plan)


async def test_options_of_tasks() -> None:
    """``retry``, ``timeout``, ``at_most_once`` and ``returns`` hold as for `Step.do`."""
    world = World()
    plan = Plan("p")
    for after in (None, list[Task[Any]]()):
        plan = Plan("p")
        plan.task("a", world.flaky(2), retry=Retry(attempts=3, delay=5, jitter=0), after=after)
        plan.task("b", world.leaf, at_most_once=True, after=after)
        plan.task("c", image, returns=Any, after=after)
        plan.task("d", world.ticking(100), timeout=timedelta(seconds=10))
        world.begun.clear()
        with pytest.raises(StepError, match="longer than its timeout of 10 s") as raised:
            await asteps.run(plan, "vm", clock=world.clock, store=world.store, id=str(after))
        assert raised.value.origin == "d"
        state = await asteps.load_state(world.store, str(after))
        assert state is not None
        assert state.get("a").attempt == 3
        assert state.get("c").result_as(dict[str, str]) == {"id": "image of vm"}
    with pytest.raises(UsageError, match="'b': at_most_once needs a store"):
        await asteps.run(plan, "vm", clock=world.clock)


@pytest.mark.parametrize("after", [None, []], ids=["in a row", "at once"])
async def test_inputs(after: Any) -> None:
    """``inputs`` is a value, or a function of the run's arguments; others run the task again."""
    world = World()
    plan = Plan("p")
    plan.task("a", world.leaf, inputs=lambda vm: vm.upper())
    plan.task("b", world.leaf, inputs=1, after=after)
    plan.task("wait", world.pending(2, 5))
    assert isinstance(await world.reconcile(plan, "vm"), Pending)
    world.clock.advance(5)
    assert isinstance(await world.reconcile(plan, "VM"), Pending)
    world.clock.advance(5)
    assert isinstance(await world.reconcile(plan, "other"), Done)
    assert world.begun == {"a": 2, "b": 1, "wait": 3}


@pytest.mark.parametrize("after", [None, []], ids=["in a row", "at once"])
async def test_inputs_that_raise(after: Any) -> None:
    """A function for ``inputs`` that raises is misuse: nothing is recorded as failed."""

    def broken(vm: str) -> str:
        raise KeyError(vm)

    plan, state = Plan("p"), State("p")
    plan.task("a", one)
    plan.task("b", one, inputs=broken, after=after)
    with pytest.raises(UsageError, match=r"'b': inputs= raised KeyError\('vm'\)"):
        await asteps.run(plan, "vm", state=state)
    assert not state.failed


# --- what it is to the drivers --------------------------------------------------------------------


async def test_a_run_is_known_by_the_plans_name() -> None:
    """The drivers know a plan by its name: another one cannot take over its run."""
    plan = Plan("MoveToVPC")
    plan.task("a", one)
    state = State("x")
    assert await asteps.run(plan, state=state) == 1
    assert state.run is not None
    assert state.run.function == "MoveToVPC"
    other = Plan("other")
    other.task("a", one)
    with pytest.raises(RunMismatchError, match="begun by 'MoveToVPC', not by 'other'"):
        await asteps.run(other, state=state)
    with pytest.raises(RunMismatchError, match="other arguments"):
        await asteps.run(plan, 5, state=state)


async def test_a_plan_as_a_step() -> None:
    """`Step.do` runs a plan as a step, by its own name too; groups and maps as well."""
    plan = Plan("moves")
    plan.task("a", name_of)
    plan.task("b", image)

    found: list[object] = []

    async def outer(s: Step) -> int:
        found.append(await s.do(plan, "x"))
        async with s.group("g") as g:
            child = g.do(plan, "g")
        found.append(child.result)
        found.extend(await s.map("m", plan, ["i", "j"]))
        return 1

    state = State("r")
    await asteps.run(outer, state=state)
    assert found == [
        Image("image of x"),
        Image("image of g"),
        Image("image of i"),
        Image("image of j"),
    ]
    assert {"moves/a", "g/moves/b", "m/i/a"} <= {path for path, _ in state.walk()}


async def test_a_plan_in_a_body() -> None:
    """A body may begin with a plan and go on with its result; not the other way round."""
    plan = Plan("p")
    plan.task("a", name_of)
    b = plan.task("b", image)

    async def root(s: Step, vm: str) -> str:
        found: Image = await plan(s, vm)
        assert s.result_of(b) == found
        return await s.do("after", name_of) + found.id

    state = State("r")
    assert await asteps.run(root, "vm", state=state) == "afterimage of vm"
    assert came_to(state) == dict.fromkeys(["a", "b", "after"], "done")

    async def wrong(s: Step) -> None:
        await s.do("before", name_of)
        await plan(s)

    limiter = anyio.CapacityLimiter(1)
    wide = Plan("wide", limit=limiter)
    wide.task("a", one)
    wide.task("b", one, after=[])

    async def and_then(s: Step) -> list[int]:
        await wide(s)
        return await s.map("m", one, [1, 2], limit=limiter)

    assert await asteps.run(and_then) == [1, 1]
    with pytest.raises(UsageError, match=r"run it by s\.do\(name, plan, …\)"):
        await asteps.run(wrong)
    nothing: Any = "vm"
    with pytest.raises(UsageError, match=r"run plan 'p' by asteps\.run\(plan, …\)"):
        await plan(nothing)


async def test_the_result_has_its_type() -> None:
    """A run's result is of the last task's type, at once and when the run is asked for again."""
    plan = Plan("p")
    plan.task("a", one)
    plan.task("b", image)
    store = MemoryStore()
    for _ in range(2):
        assert await asteps.run(plan, "vm", store=store, id="r") == Image("image of vm")


async def test_several_ends() -> None:
    """Where several tasks end a plan, its result is a mapping of their results by path."""
    plan = Plan("p")
    a = plan.task("a", one)
    plan.task("b/c", image, after=[a])
    group = plan.task("g", after=[a])
    group.task("x", image)
    group.task("y", one, after=[])
    store = MemoryStore()
    for _ in range(2):
        assert await asteps.run(plan, "vm", store=store, id="r") == {
            "b~1c": Image("image of vm"),
            "g": {"x": Image("image of vm"), "y": 1},
        }


async def test_the_result_of_a_finished_run_outlives_changes() -> None:
    """A finished run has the ends that the plan had then, whatever the plan has now."""
    store = MemoryStore()
    before, after = Plan("p"), Plan("p")
    before.task("a", image)
    before.task("b", one, after=[])
    after.task("a", image)
    after.task("c", one, after=[])
    assert await asteps.run(before, "vm", store=store, id="r") == {
        "a": Image("image of vm"),
        "b": 1,
    }
    assert await asteps.run(after, "vm", store=store, id="r") == {"a": Image("image of vm"), "b": 1}


async def test_a_type_that_cannot_come_back() -> None:
    """A task's result that cannot come back is misuse, as in any step."""

    async def raw(s: Step) -> Any:
        return Image("x")

    plan = Plan("p")
    plan.task("a", raw)
    with pytest.raises(UsageError, match="comes back from JSON as"):
        await asteps.run(plan)


async def test_hooks() -> None:
    """Results go through the drivers' hooks, a plan's as its tasks'."""

    class Odd:
        def __init__(self, n: int) -> None:
            self.n = n

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Odd) and other.n == self.n

        __hash__ = None  # type: ignore[assignment]

    async def odd(s: Step) -> Odd:
        return Odd(5)

    plan = Plan("p")
    plan.task("a", odd)
    plan.task("b", odd, after=[])
    state = State("r")
    hooks: dict[str, Any] = {"enc_hook": lambda value: value.n, "dec_hook": lambda kind, n: kind(n)}
    for _ in range(2):
        assert await asteps.run(plan, state=state, **hooks) == {"a": Odd(5), "b": Odd(5)}


async def test_one_plan_for_many_runs() -> None:
    """Any number of runs share a plan, at the same time, and keep nothing in it."""
    plan = Plan("p")
    a = plan.task("a", image)

    async def read(s: Step, vm: str) -> str:
        await checkpoint()
        return s.result_of(a).id

    plan.task("b", read)
    plan.task("c", read, after=[a])
    store = MemoryStore()
    found: dict[str, object] = {}

    async def drive(vm: str) -> None:
        found[vm] = await asteps.run(plan, vm, store=store, id=vm)

    async with anyio.create_task_group() as tasks:
        for n in range(20):
            tasks.start_soon(drive, f"vm{n}")
    assert found == {f"vm{n}": {"b": f"image of vm{n}", "c": f"image of vm{n}"} for n in range(20)}


async def test_plans_are_let_go() -> None:
    """A plan that was made for one run does not outlive it."""
    plan = Plan("p")
    plan.task("a", one)
    plan.task("b").task("c", one)
    plan.task("d", one, after=[])
    await asteps.run(plan)
    gone = weakref.ref(plan)
    del plan
    gc.collect()
    assert gone() is None


# --- results of other tasks -----------------------------------------------------------------------


async def test_results_flow() -> None:
    """`result_of` gives what a task before returned, as it comes back from JSON, at any depth."""
    plan = Plan("p")
    first = plan.task("first", image)
    group = plan.task("group", after=[first])
    inner = group.task("inner", image)

    async def deep(s: Step, vm: str) -> list[str]:
        async def below(s: Step) -> list[str]:
            return [s.result_of(first).id, s.result_of(inner).id]

        async with s.group("g") as g:
            child = g.do("below", below)
        assert await s.map("m", lambda s, i: below(s), [1], returns=list[str]) == [child.result]
        assert s.result_of(first) is not s.result_of(first)
        return child.result

    second = group.task("second", deep)

    async def last(s: Step, vm: str) -> list[str]:
        assert s.result_of(group) == s.result_of(second)
        return [*s.result_of(second), s.result_of(inner).id]

    plan.task("last", last)
    store = MemoryStore()
    assert await asteps.run(plan, "x", store=store, id="r") == ["image of x"] * 3


async def test_results_across_a_plan_within() -> None:
    """Tasks of a plan within a plan read those before it; what it came to is its task's result."""
    inner, outer = Plan("inner"), Plan("outer")
    a = outer.task("a", image)

    async def read(s: Step, vm: str) -> str:
        return s.result_of(a).id

    inner.task("b", read)
    c = outer.task("c", inner)

    async def last(s: Step, vm: str) -> str:
        return str(s.result_of(c))

    outer.task("d", last)
    state = State("r")
    assert await asteps.run(outer, "x", state=state) == "image of x"
    assert state.has("c/b")

    async def wrong(s: Step, vm: str) -> str:
        return str(s.result_of(b))

    separate, other = Plan("inner"), Plan("other")
    b = separate.task("b", image)
    other.task("c", separate)
    other.task("d", wrong)
    with pytest.raises(UsageError, match="'b' belongs to plan 'inner', which does not run step"):
        await asteps.run(other, "x")


async def test_results_that_need_not_be_there() -> None:
    """To ask for the result of a task that one does not come after is misuse, done or not."""
    plan, other = Plan("p"), Plan("other")
    foreign = other.task("o", one)
    asked: list[Any] = []
    a = plan.task("a", one)
    group = plan.task("g", after=[])
    b = group.task("b", one)

    async def ask(s: Step) -> None:
        s.result_of(asked[0])

    c = plan.task("c", ask, after=[a])
    for task, message in {
        b: r"step 'c' asks for the result of task 'g/b', which need not be done by then: 'c' does "
        r"not come after 'g', name it in after=",
        c: "'c' does not come after 'c'",
        foreign: "task 'o' belongs to plan 'other', which does not run step 'c'",
    }.items():
        asked[:] = [task]
        state = State("r")
        with pytest.raises(UsageError, match=message):
            await asteps.run(plan, state=state)
        assert came_to(state)["c"] in ("proceeding", "nothing")
    asked[:] = ["a"]
    with pytest.raises(UsageError, match=r"takes what plan\.task\(\) gave, not 'a'"):
        await asteps.run(plan)
    asked[:] = [a]
    await asteps.run(plan)

    async def outside(s: Step) -> None:
        s.result_of(a)

    with pytest.raises(UsageError, match="which does not run the run"):
        await asteps.run(outside)


async def test_a_result_of_another_type() -> None:
    """A recorded result that does not fit changed code is misuse, and says where it is."""
    state = State("p")

    async def old(s: Step) -> str:
        return "text"

    async def wait(s: Step) -> None:
        s.pending(after=5)

    before = Plan("p")
    before.task("a", old)
    before.task("b", wait)
    clock = FakeClock()
    await asteps.reconcile(before, state=state, clock=clock)
    clock.advance(5)
    after = Plan("p")
    a = after.task("a", one)

    async def read(s: Step) -> int:
        return s.result_of(a)

    after.task("b", read, after=[a])
    after.task("c", one, after=[])
    with pytest.raises(UsageError, match="recorded result of step 'a' does not fit its function"):
        await asteps.reconcile(after, state=state, clock=clock)


# --- failures -------------------------------------------------------------------------------------


async def test_a_failure_in_a_row() -> None:
    """A failure ends a sequence: what comes after is not begun, and has not vanished."""
    world = World()
    plan = Plan("p")
    plan.task("a", world.leaf)
    plan.task("b", world.fail)
    plan.task("c", world.leaf)
    outcome = await world.reconcile(plan)
    assert isinstance(outcome, Failed)
    assert (outcome.error.origin, outcome.vanished) == ("b", ())
    assert outcome.error.is_a(ConnectionError)
    assert came_to(outcome.state) == {"a": "done", "b": "failed"}


async def test_failures_beside_others() -> None:
    """When a task fails, those not after it run to their end; the failures come out as one."""
    world = World()
    plan = Plan("p")
    bad = plan.task("bad", world.fail)
    slow = plan.task("slow", world.ticking(10), after=[])
    plan.task("worse", world.late(5), after=[])
    plan.task("never", world.leaf, after=[bad, slow])
    plan.task("then", world.ticking(10), after=[slow])
    plan.task("last", world.leaf)
    with pytest.raises(StepError) as raised:
        await world.run(plan)
    assert [e.path for e in raised.value.errors] == ["bad", "worse"]
    assert "2 of 6 tasks failed; bad: bad; worse: worse" in str(raised.value)
    assert world.log == ["bad", "slow", "worse", "then"]
    assert came_to(await world.state()) == {
        "bad": "failed",
        "slow": "done",
        "worse": "failed",
        "then": "done",
    }
    with pytest.raises(StepError) as again:
        await world.run(plan)
    assert again.value.failure == raised.value.failure
    world.log.clear()
    world.fail = world.leaf  # type: ignore[method-assign]
    fixed = Plan("p")
    bad = fixed.task("bad", world.leaf)
    slow = fixed.task("slow", world.leaf, after=[])
    fixed.task("worse", world.leaf, after=[])
    fixed.task("never", world.leaf, after=[bad, slow])
    fixed.task("then", world.leaf, after=[slow])
    fixed.task("last", world.leaf)
    assert await world.run(fixed, recover=True) == "last"
    assert world.log == ["bad", "worse", "never", "last"]


async def test_a_failure_of_an_earlier_pass() -> None:
    """A task that failed in an earlier pass keeps those after it from beginning, in each pass."""
    world = World()
    plan = Plan("p")
    bad = plan.task("bad", world.fail)
    plan.task("never", world.leaf, after=[bad])
    plan.task("wait", world.pending(2, 5), after=[])
    for _ in range(2):
        assert isinstance(await world.reconcile(plan), Pending)
        world.clock.advance(5)
    outcome = await world.reconcile(plan)
    assert isinstance(outcome, Failed)
    assert outcome.error.origin == "bad"
    assert world.begun == {"bad": 1, "wait": 3}


async def test_one_failure_beside_others() -> None:
    """One failure is told as it is, and its exception is the cause."""
    world = World()
    plan = Plan("p")
    plan.task("a", world.leaf)
    plan.task("b", world.fail, after=[])
    with pytest.raises(StepError) as raised:
        await world.run(plan)
    assert str(raised.value) == "the run failed: b: b"
    assert raised.value.origin == "b"
    assert isinstance(raised.value.__cause__, StepError)
    assert isinstance(raised.value.__cause__.__cause__, ConnectionError)


async def test_what_was_not_reached_has_not_vanished() -> None:
    """A task that is recorded, and not asked because one before it failed, has not vanished."""
    world = World()
    plan = Plan("p")
    a = plan.task("a", world.flaky(0))
    plan.task("b", world.leaf, after=[a])
    plan.task("c", world.leaf, after=[])
    plan.task("d", world.pending(1))
    assert isinstance(await world.reconcile(plan), Pending)
    async with edit_run(world.store, "r") as state:
        state.reset("a")
    broken = Plan("p")
    a = broken.task("a", world.fail)
    broken.task("b", world.leaf, after=[a])
    broken.task("d", world.pending(0))
    outcome = await world.reconcile(broken)
    assert isinstance(outcome, Failed)
    assert outcome.vanished == ("c",)
    assert came_to(outcome.state)["b"] == "done"


async def test_a_retry_of_tasks_of_tasks() -> None:
    """A task made of tasks may be retried: those that had failed run again, no other."""
    world = World()
    plan = Plan("p")
    group = plan.task("g", retry=Retry(attempts=3, delay=5, jitter=0))
    group.task("a", world.leaf)
    group.task("b", world.flaky(2), after=[])
    group.task("c", world.flaky(1), after=[])
    assert await world.run(plan) == {"a": "g/a", "b": "g/b", "c": "g/c"}
    assert world.begun == {"g/a": 1, "g/b": 3, "g/c": 2}
    assert world.passed == 15


async def test_misuse_in_a_task() -> None:
    """Misuse in one task ends the run at once, and is not recorded as a failure."""
    world = World()

    async def wrong(s: Step) -> None:
        await checkpoint()
        await s.do("x", world.leaf)
        await s.do("x", world.leaf)

    plan = Plan("p")
    plan.task("a", wrong)
    plan.task("b", world.hang, after=[])
    with pytest.raises(DuplicateStepError, match="'a/x'"):
        await world.run(plan)
    assert not any(node.failed for _, node in (await world.state()).walk())


# --- waiting --------------------------------------------------------------------------------------


async def test_a_pending_task_ends_the_pass_when_nobody_works() -> None:
    """A pass goes on while any task can work, and ends when what is left waits for what waits."""
    world = World()
    plan = Plan("p")
    wait = plan.task("wait", world.pending(1, 1000))
    plan.task("behind", world.leaf, after=[wait])
    last = None
    for n in range(30):
        last = plan.task(f"t{n}", world.leaf, after=[last] if last else [])
    outcome = await world.reconcile(plan)
    assert isinstance(outcome, Pending)
    assert (outcome.path, outcome.after, outcome.why) == ("wait", 1000, "wait 1")
    assert world.take() == ["wait", *(f"t{n}" for n in range(30))]
    world.clock.advance(1000)
    outcome = await world.reconcile(plan)
    assert isinstance(outcome, Done)
    assert world.take() == ["wait", "behind"]
    assert outcome.value == {"behind": "behind", "t29": "t29"}


async def test_done_tasks_answer_before_anybody_waits() -> None:
    """A pending task does not end the pass before all that are done have answered, however many."""
    world = World()
    hold = False

    async def held(s: Step) -> str:
        if hold:
            s.pending(after=1)
        return await world.leaf(s)

    plan = Plan("p")
    plan.task("wait", world.pending(5, 10))
    row = plan.task("t", world.leaf, after=[])
    for n in range(100):
        side = plan.task(f"s{n}", world.leaf, after=[row])
        row = plan.task(f"t{n}", world.leaf, after=[row, side])
    plan.task("end", held, after=[row])
    hold = True
    assert isinstance(await world.reconcile(plan), Pending)
    assert "end" not in world.log
    hold = False
    world.clock.advance(1)
    assert isinstance(await world.reconcile(plan), Pending)
    assert world.take()[-1] == "end"


async def test_in_place_and_by_passes() -> None:
    """A plan with waits comes to the same in place and by passes."""

    async def flow(s: Step, world: Counter[str], vm: str) -> list[str]:
        world[s.path] += 1
        return [s.path]

    async def wait(s: Step, world: Counter[str], vm: str) -> str:
        if s.info is None:
            s.info = "seen"
            s.pending(after=60)
        world[s.path] += 1
        return s.path

    async def read(s: Step, world: Counter[str], vm: str) -> list[str]:
        await s.sleep("rest", 30)
        return [s.result_of(a), s.result_of(c), *s.result_of(d)]

    plan = Plan("p")
    a = plan.task("a", wait)
    group = plan.task("g", after=[])
    c = group.task("c", wait)
    d = group.task("d", flow, after=[])
    plan.task("e", read)
    result = await both_ways(plan, "vm", world=lambda clock: Counter[str](), effects=dict)
    assert result == ["a", "g/c", "g/d"]


async def test_a_budget_for_waits() -> None:
    """With ``max_wait`` a pass waits in place for what comes due in time, and no longer."""
    world = World()
    plan = Plan("p")
    a = plan.task("a", world.pending(1, 10))
    plan.task("b", world.pending(1, 100), after=[])
    plan.task("c", world.leaf, after=[a])
    outcome = await world.reconcile(plan, max_wait=20)
    assert isinstance(outcome, Pending)
    assert outcome.path == "b"
    assert world.take() == ["a", "b", "a", "c"]
    assert world.passed == 10


async def test_a_pass_out_of_time() -> None:
    """``max_pass`` begins no new task after its time; what is done is kept."""
    world = World()
    plan = Plan("p")
    a = plan.task("a", world.ticking(10))
    plan.task("b", world.ticking(10), after=[])
    plan.task("c", world.ticking(10), after=[a])
    plan.task("d", world.ticking(10), after=[a])
    outcome = await world.reconcile(plan, max_pass=5)
    assert isinstance(outcome, Pending)
    assert came_to(outcome.state) == {"a": "done", "b": "done"}
    assert isinstance(await world.reconcile(plan, max_pass=5), Done)
    assert world.begun == dict.fromkeys("abcd", 1)


# --- crashes, cancellation, changed code ----------------------------------------------------------


async def test_a_crash_at_every_save() -> None:
    """Wherever a run of a plan crashes, it comes to the same end, repeating nothing that ended."""

    async def act(s: Step, world: Counter[str]) -> str:
        world[s.path] += 1
        return s.path

    async def read(s: Step, world: Counter[str]) -> list[str]:
        world[s.path] += 1
        return [s.result_of(a), s.result_of(b)]

    plan = Plan("p")
    a = plan.task("a", act)
    group = plan.task("g", after=[a])
    b = group.task("b", act)
    group.task("c", act, after=[])
    plan.task("d", act, after=[a])
    plan.task("e", read)
    report = await crash_everywhere(
        plan, world=lambda clock: Counter[str](), effects=lambda world: world
    )
    assert report.result == ["a", "g/b"]


@pytest.mark.parametrize("after", [None, []], ids=["in a row", "at once"])
async def test_cancellation(after: Any) -> None:
    """A cancelled run leaves its tasks interrupted, none of them failed; it goes on later."""
    world = World()
    plan = Plan("p")
    plan.task("a", world.leaf)
    plan.task("b", world.hang, after=after)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.run, plan)
        while world.log != ["a", "b"] or world.at_work > 1:
            await checkpoint()
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    state = await world.state()
    assert came_to(state)["a"] == "done"
    assert not any(node.failed for _, node in state.walk())
    fixed = Plan("p")
    fixed.task("a", world.leaf)
    fixed.task("b", world.leaf, after=after)
    await world.run(fixed)
    assert world.begun["a"] == 1


@pytest.mark.parametrize("after", [None, []], ids=["in a row", "at once"])
async def test_a_plan_that_changes_between_passes(after: Any) -> None:
    """Done tasks stay done by path: new ones run, those gone are listed, one that moved is new."""
    world = World()
    before = Plan("p")
    before.task("kept", world.leaf)
    before.task("gone", world.leaf, after=after)
    before.task("moved", world.leaf, after=after)
    before.task("wait", world.pending(1, 5))
    outcome = await world.reconcile(before)
    assert isinstance(outcome, Pending)
    assert outcome.state.planned == ("kept", "gone", "moved", "wait")
    assert sorted(world.take()) == ["gone", "kept", "moved", "wait"]
    world.clock.advance(5)
    changed = Plan("p")
    changed.task("new", world.leaf)
    changed.task("kept", world.leaf, after=after)
    group = changed.task("group", after=after)
    group.task("moved", world.leaf)
    changed.task("wait", world.pending(1, 5))
    outcome = await world.reconcile(changed)
    assert isinstance(outcome, Done)
    assert sorted(world.take()) == ["group/moved", "new", "wait"]
    assert set(outcome.vanished) == {"gone", "moved"}
    state = await world.state()
    assert (state.planned, state.get("group").planned) == (
        ("new", "kept", "group", "wait"),
        ("moved",),
    )


async def test_what_is_planned_is_saved_when_it_changes() -> None:
    """The tree says what is planned from the beginning on; it is saved only when it changes."""
    world = World()
    plan = Plan("p")
    plan.task("a", world.pending(1, 5))
    plan.task("b", world.leaf)
    await world.reconcile(plan)
    assert (await world.state()).planned == ("a", "b")
    await world.reconcile(plan)
    assert world.saves == 0


# --- looking --------------------------------------------------------------------------------------


def drawn() -> Plan:
    """A plan with everything that is drawn."""
    plan = Plan("MoveToVPC", limit=3)
    a = plan.task("image", one, timeout=timedelta(minutes=1), retry=Retry(attempts=5))
    plan.task("networks", one, after=[a], at_most_once=True)
    flight = plan.task("inFlight", after=[a], limit=2)
    flight.task("migrate", one)
    flight.task("notify", one, after=[])
    within = Plan("report", limit=anyio.CapacityLimiter(4))
    within.task("write", one)
    within.task("send", one)
    plan.task("report", within)
    return plan


def test_a_plan_as_text() -> None:
    """A plan is drawn before it runs, with what each task comes after."""
    assert str(drawn()) == drawn().draw()
    assert drawn().draw().splitlines() == [
        "MoveToVPC",
        "├─ image      5 attempts; within 60 s",
        "├─ networks   at most once",
        "├─ inFlight   after image; 2 at a time",
        "│  ├─ migrate",
        "│  └─ notify  at once",
        "└─ report     after networks, inFlight; 4 at a time",
        "   ├─ write",
        "   └─ send",
    ]


def test_long_lists_are_cut() -> None:
    """What comes after many tasks is drawn with the names of some."""
    plan = Plan("p")
    for n in range(9):
        plan.task(f"t{n}", one, after=[])
    plan.task("last", one)
    assert plan.draw().endswith("└─ last  after t0, t1, t2, t3, t4 and 4 more")


def test_a_plan_as_a_flowchart() -> None:
    """A plan is a flowchart of Mermaid: tasks made of tasks are frames, arrows say the order."""
    assert drawn().mermaid().splitlines() == [
        "flowchart TD",
        '    t0["image"]',
        '    t1["networks"]',
        '    subgraph t2["inFlight"]',
        "        direction TB",
        '        t2_0["migrate"]',
        '        t2_1["notify"]',
        "    end",
        '    subgraph t3["report"]',
        "        direction TB",
        '        t3_0["write"]',
        '        t3_1["send"]',
        "        t3_0 --> t3_1",
        "    end",
        "    t0 --> t1",
        "    t0 --> t2",
        "    t1 --> t3",
        "    t2 --> t3",
    ]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30))
def test_names_stay_names(name: str) -> None:
    """Whatever a task is called, in a drawing it is a label and nothing else."""
    if name[0] in "#$":
        name = f"x{name}"
    plan = Plan(name)
    plan.task(name, one)
    chart = plan.mermaid().splitlines()
    assert len(chart) == 2
    label = chart[1].removeprefix('    t0["').removesuffix('"]')
    assert all(c.isalnum() or c in " _#;" for c in label)
    lines = plan.draw().split("\n")
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


def test_hostile_names() -> None:
    """Quotes, markup and directives do not leave a label."""
    plan = Plan("p")
    plan.task('"] --> x; click t0 "javascript:alert(1)" %%{init}%% <b>`#quot;\u202e', one)
    _, line = plan.mermaid().splitlines()
    assert line.startswith('    t0["#34;#93; #45;#45;#62; x#59; click t0 #34;javascript#58;alert')
    assert not set(line.removeprefix('    t0["').removesuffix('"]')) & set("\"'`<>[](){}%&:\u202e")
    assert "\\u202e" in plan.draw()
    plan = Plan("p")
    plan.task("\ufb02°°60¶ßimg src=x\ufb02°°62¶ß", one)  # what Mermaid makes of entities
    assert "\ufb02" not in plan.mermaid()


async def test_a_plan_beside_its_run() -> None:
    """Both drawings show what each task has come to, by symbol and by class."""
    world = World()
    plan = Plan("p")
    a = plan.task("done", world.leaf)
    plan.task("bad", world.fail, after=[a])
    plan.task("waits", world.pending(9), after=[a])
    plan.task("again", world.flaky(9), after=[a], retry=Retry(attempts=5, delay=100))
    group = plan.task("group", after=[a])
    group.task("done", world.leaf)
    group.task("waits", world.pending(9))
    group.task("next", world.leaf)
    plan.task("last", world.leaf)
    assert str(plan.progress(State("p"))) == "0 of 8"
    outcome = await world.reconcile(plan)
    state = reborn(outcome.state)
    assert plan.progress(state) == Progress(2, 8)
    assert [line.split("  ")[0] for line in plan.draw(state).splitlines()] == [
        "p",
        "├─ ✓ done",
        "├─ ✗ bad",
        "├─ … waits",
        "├─ ↻ again",
        "├─ … group",
        "│",
        "│",
        "│",
        "└─ · last",
    ]
    chart = plan.mermaid(state)
    assert '    t1["#10007; bad"]' in chart
    assert "    class t1 failed" in chart
    assert "    class t2,t4,t4_1 pending" in chart
    assert "    class t4_2,t5 not_begun" in chart
    assert chart.count("classDef") == 5


async def test_progress() -> None:
    """Progress counts the tasks not made of tasks; what is at or below a done step is done."""
    plan = drawn()
    assert plan.progress(State("p")) == Progress(0, 6)
    state = State("p")
    loose = Plan("MoveToVPC")
    loose.task("a", one)
    loose.task("b", one)
    await asteps.run(loose, state=state)
    assert str(loose.progress(state)) == "2 of 2"
    longer = Plan("MoveToVPC")
    longer.task("a", one)
    longer.task("z").task("y", one)
    assert str(longer.progress(state)) == "2 of 2"  # the run is over, and nothing is left to do
    half = State("MoveToVPC", states=[State("a")])
    half.set_result("a", 1)
    assert str(longer.progress(half)) == "1 of 2"


# --- any plan -------------------------------------------------------------------------------------


class Sketch(NamedTuple):
    """A task of a random plan."""

    after: tuple[int, ...] | None
    seconds: int
    waits: int  # seconds that it is pending first
    below: tuple[Sketch, ...]


def sketches(most: int, depth: int = 2) -> st.SearchStrategy[tuple[Sketch, ...]]:
    """Levels of tasks, each after some of those before it."""

    @st.composite
    def level(draw: st.DrawFn) -> tuple[Sketch, ...]:
        tasks: list[Sketch] = []
        for place in range(draw(st.integers(1, most))):
            after = draw(
                st.none() | st.lists(st.integers(0, place - 1), unique=True).map(tuple)
                if place
                else st.sampled_from([None, ()])
            )
            nested = depth > 0 and draw(st.integers(0, 4)) == 0
            below = draw(sketches(3, depth - 1)) if nested else ()
            seconds = draw(st.integers(0, 5))
            waits = draw(st.sampled_from([0, 0, 0, 7, 20]))
            tasks.append(Sketch(after, seconds, waits, below))
        return tuple(tasks)

    return level()


def preds(level: Sequence[Sketch], place: int) -> set[int]:
    """All that is done before a task begins."""
    after = level[place].after
    direct = set(range(place)) if after is None else set(after)
    return direct.union(*(preds(level, n) for n in direct))


def length(level: Sequence[Sketch]) -> int:
    """How long a level takes where everything runs as soon as it can."""
    ends: list[int] = []
    for place, task in enumerate(level):
        begin = max((ends[n] for n in preds(level, place)), default=0)
        own = length(task.below) if task.below else task.seconds + task.waits
        ends.append(begin + own)
    return max(ends)


class Actor:
    """The bodies of a random plan, which check what they find."""

    def __init__(self, sketch: tuple[Sketch, ...], clock: MockClock) -> None:
        self.clock = clock
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.plan = Plan("random")
        self._declare(self.plan, sketch, [])

    def _declare(
        self,
        level: Plan | Task[Any],
        sketch: tuple[Sketch, ...],
        known: list[Task[Any]],
    ) -> list[Task[Any]]:
        """Declare a level; gives the tasks whose results are there when it is done."""
        made: list[Task[Any]] = []
        inside: list[list[Task[Any]]] = []
        for place, each in enumerate(sketch):
            after = None if each.after is None else [made[n] for n in each.after]
            before = [*known, *(t for n in preds(sketch, place) for t in inside[n])]
            name = f"t{place}"
            if each.below:
                task: Task[Any] = level.task(name, after=after)
                found = self._declare(task, each.below, before)
            else:
                task = level.task(name, self._body(each, before), after=after)
                found = []
            made.append(task)
            inside.append(found or [task])
        return [t for found in inside for t in found]

    def _body(self, sketch: Sketch, before: list[Task[Any]]) -> Callable[[Step], Awaitable[str]]:
        async def body(s: Step) -> str:
            self.begun[s.path] += 1
            assert [s.result_of(task) for task in before] == [task.path for task in before]
            if sketch.waits and s.info is None:
                await s.save_info("waited")
                s.pending(after=sketch.waits)
            await self.clock.sleep(sketch.seconds)
            self.ended[s.path] += 1
            return s.path

        return body


def expected_calls(sketch: Sequence[Sketch], above: str = "") -> dict[str, int]:
    """How often each body is called where nothing crashes."""
    found: dict[str, int] = {}
    for place, task in enumerate(sketch):
        path = f"{above}t{place}"
        if task.below:
            found |= expected_calls(task.below, f"{path}/")
        else:
            found[path] = 2 if task.waits else 1
    return found


@given(sketches(7), st.sampled_from(["asyncio", "trio"]))
def test_any_plan_runs_as_fast_as_it_can(sketch: tuple[Sketch, ...], backend: str) -> None:
    """Any plan runs each task once, after those before it and no later, and hands on results."""

    async def main() -> None:
        clock = MockClock()
        actor = Actor(sketch, clock)
        begin = clock.now()
        await asteps.run(actor.plan, clock=clock)
        assert actor.begun == expected_calls(sketch)
        assert clock.now() - begin == pytest.approx(length(sketch), abs=1e-3)

    anyio.run(main, backend=backend)


@given(sketches(6), st.sampled_from(["asyncio", "trio"]))
def test_any_plan_by_passes(sketch: tuple[Sketch, ...], backend: str) -> None:
    """Any plan comes to its end by passes, each of which does all that can be done by then."""

    async def main() -> None:
        clock, storage = MockClock(), MemoryStore()
        actor = Actor(sketch, clock)
        for _ in range(100):
            async with storage.client() as store:
                outcome = await asteps.reconcile(actor.plan, store=store, id="r", clock=clock)
            if isinstance(outcome, Done):
                break
            assert isinstance(outcome, Pending)
            clock.advance(outcome.after)
        else:
            raise AssertionError
        assert actor.begun == expected_calls(sketch)
        done = actor.plan.progress(outcome.state)
        assert done.done == done.total == len(expected_calls(sketch))

    anyio.run(main, backend=backend)


@settings(max_examples=15)
@given(sketches(4, depth=1), st.sampled_from(["asyncio", "trio"]))
def test_any_plan_survives_crashes(sketch: tuple[Sketch, ...], backend: str) -> None:
    """Wherever a run of any plan crashes, it goes on to its end, and repeats nothing that ended."""

    async def flow(s: Step, actor: Actor) -> Any:
        return await actor.plan(s)

    async def main() -> None:
        await crash_everywhere(flow, world=partial(Actor, sketch), effects=lambda a: a.ended)

    anyio.run(main, backend=backend)
