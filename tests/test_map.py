"""A map: one child per item, known by its name, by as many workers as the limit allows."""

from __future__ import annotations

import asyncio
import enum
import gc
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint
from worlds import World, came_to, ended

import asteps
from asteps import (
    Done,
    DuplicateStepError,
    Failed,
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
from asteps.testing import Crash

only_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


async def same(s: Step, x: Any) -> Any:
    """An item, as it came."""
    return x


async def double(s: Step, x: int) -> int:
    """Twice an item."""
    return 2 * x


class Nic(msgspec.Struct, frozen=True):
    """An item of the user's own type."""

    id: str
    speed: int = 0


# --- results --------------------------------------------------------------------------------------


async def test_results_in_item_order() -> None:
    """Whoever is first, results come in the order of the items, on every pass."""
    world = World()

    async def item(s: Step, x: int) -> str:
        return await world.ticking(x)(s)

    async def root(s: Step) -> list[str]:
        found = await s.map("m", item, [5, 1, 4, 2, 3], limit=3)
        await s.sleep("wait", 50)
        return found

    expected = [f"m/{x}" for x in (5, 1, 4, 2, 3)]
    assert isinstance(await world.reconcile(root), Pending)
    assert world.log == expected
    world.clock.advance(50)
    assert (await world.reconcile(root)).value == expected
    assert world.log == expected
    names = [c.name for c in (await world.state()).get("m").states or ()]
    assert names == ["5", "1", "4", "2", "3"]


async def test_results_are_what_a_later_pass_gives() -> None:
    """Results come back through JSON, to the return annotation or ``returns=``, at once."""
    seen: list[Any] = []

    async def nic(s: Step, x: int) -> Nic:
        return Nic(str(x), x)

    async def when(s: Step, x: int) -> Any:
        return datetime(2024, 1, x, tzinfo=UTC)

    async def nothing(s: Step, x: int) -> None:
        return None

    async def root(s: Step) -> None:
        found = [
            await s.map("a", nic, [1, 2]),
            await s.map("b", when, [1, 2], returns=datetime),
            await s.map("c", nothing, [1, 2]),
            await s.map("d", when, [3], returns=object),
        ]
        seen.append(found)
        await s.sleep("wait", 5)

    world = World()
    await world.reconcile(root)
    world.clock.advance(5)
    await world.reconcile(root)
    assert seen[0] == seen[1]
    assert seen[0][:3] == [
        [Nic("1", 1), Nic("2", 2)],
        [datetime(2024, 1, x, tzinfo=UTC) for x in (1, 2)],
        [None, None],
    ]


async def test_empty_items() -> None:
    """A map without items is done, with an empty list, and so it is later."""

    async def root(s: Step) -> list[list[int]]:
        return [
            await s.map("a", double, []),
            await s.map("b", double, (), enough=1),
            await s.map("c", double, iter(())),
            await s.map("d", double, {}, key=str, inputs=1, limit=None),
        ]

    state = State("r")
    assert await asteps.run(root, state=state) == [[], [], [], []]
    assert came_to(state) == dict.fromkeys("abcd", "done")


async def test_items_may_be_any_iterable() -> None:
    """A generator, a set, a range, a dict's views: items are read at once, and once."""
    read: list[int] = []

    def generate() -> Iterator[int]:
        for i in range(3):
            read.append(i)
            yield i

    async def root(s: Step) -> list[Any]:
        return [
            await s.map("gen", double, generate(), limit=1),
            await s.map("range", double, range(3)),
            sorted(await s.map("set", double, {1, 2})),
            await s.map("dict", same, {"a": 1}.items(), key=lambda kv: kv[0], returns=list),
            await s.map("text", same, "ab", returns=str),
            await s.map("map", double, map(int, "12")),
        ]

    assert await asteps.run(root) == [
        [0, 2, 4],
        [0, 2, 4],
        [2, 4],
        [["a", 1]],
        ["a", "b"],
        [2, 4],
    ]
    assert read == [0, 1, 2]


async def test_items_are_passed_as_they_are() -> None:
    """A body is given the very item; it need not be anything that JSON knows."""
    items = [object(), object()]
    given: list[object] = []

    async def item(s: Step, x: object) -> None:
        given.append(x)

    async def root(s: Step) -> None:
        await s.map("m", item, items, key=items.index)

    await asteps.run(root)
    assert given == items


async def test_results_are_decoded_when_they_are_asked_for() -> None:
    """On a later pass nothing is decoded of a group's map whose result nobody reads."""
    decoded: list[int] = []

    class Own:
        def __init__(self, x: int) -> None:
            self.x = x

    def enc_hook(value: Any) -> Any:
        return value.x

    def dec_hook(kind: type, value: Any) -> Any:
        decoded.append(value)
        return Own(value)

    async def item(s: Step, x: int) -> Own:
        return Own(x)

    async def root(s: Step) -> int:
        async with s.group("g") as g:
            child = g.map("m", item, range(5))
        await s.sleep("wait", 5)
        before = len(decoded)
        found = [own.x for own in child.result]
        assert found == [0, 1, 2, 3, 4]
        return len(decoded) - before

    world = World()
    await world.reconcile(root, enc_hook=enc_hook, dec_hook=dec_hook)
    decoded.clear()
    world.clock.advance(5)
    outcome = await world.reconcile(root, enc_hook=enc_hook, dec_hook=dec_hook)
    assert outcome.value == 5


# --- names ----------------------------------------------------------------------------------------


class Zone(enum.StrEnum):
    """A str, but not only."""

    A = "a"
    B = "b"


class Text(str):
    """A str of the user's own."""

    __slots__ = ()


async def test_names_of_items() -> None:
    """An item that is a str or an int is its own name; escapes are those of every path."""
    world = World()

    async def root(s: Step) -> list[Any]:
        return [
            await s.map("a", same, ["x", "y/z", "~", "ü", " "], returns=str),
            await s.map("b", same, [0, -1, 10**30, 7], returns=int),
            await s.map("c", same, [5, "x"], returns=object),
            await s.map("d", same, list(Zone), returns=Zone),
            await s.map("e", same, [Nic("n", 5)], key=lambda nic: nic.id, returns=Nic),
            await s.map("f", same, [Nic("n", 5)], key=lambda nic: nic.speed, returns=Nic),
            await s.map("g", same, ["t"], key=Text, returns=str),
        ]

    result = await world.run(root)
    assert await world.run(root) == result
    assert [p for p in came_to(await world.state()) if "/" in p] == [
        *("a/x", "a/y~1z", "a/~0", "a/ü", "a/ "),
        *("b/0", "b/-1", f"b/{10**30}", "b/7"),
        *("c/5", "c/x", "d/a", "d/b", "e/n", "f/5", "g/t"),
    ]


@pytest.mark.parametrize(
    ("items", "key", "message"),
    [
        ([True], None, "an item is known by its name, and True is no str or int: pass key="),
        (["a", None], None, "None is no str or int"),
        ([1, 2.0], None, r"2\.0 is no str or int"),
        ([("a", 1)], None, "is no str or int: pass key="),
        ([Nic("a")], None, "is no str or int: pass key="),
        ([1], lambda _: None, "None from key= is no str or int"),
        ([1], lambda x: x == 1, "True from key= is no str or int"),
        ([1], lambda x: [x], "from key= is no str or int"),
        ([b"a"], None, "is no str or int"),
        (["a", ""], None, "name"),
        (["#a"], None, "#"),
        (["$end"], None, r"\$"),
        (["a" * 201], None, "200"),
        ([10**250], None, "200"),
        (["a\n"], None, "control"),
        (["\ud800"], None, "surrogate"),
        (None, None, "not iterable"),
        (5, None, "not iterable"),
        ([1], 5, "not callable"),
    ],
    ids=repr,
)
async def test_items_without_a_name(items: Any, key: Any, message: str) -> None:
    """Items that have no name, or none that is allowed, are misuse before any body runs."""
    world, state = World(), State("r")

    async def root(s: Step, items: Any) -> None:
        try:
            await s.map("m", world.leaf, items, key=key, returns=str)
        except Exception:  # noqa: BLE001
            raise AssertionError from None

    with pytest.raises(UsageError, match=message):
        await asteps.reconcile(root, items, state=state)
    assert (world.log, came_to(state)) == ([], {})
    key = None
    await asteps.reconcile(root, ["x"], state=state)
    assert came_to(state) == {"m": "done", "m/x": "done"}


@pytest.mark.parametrize("items", [["a", "b", "a"], [1, "1"], [1, 2, 1], [Zone.A, "a"]], ids=repr)
async def test_equal_names(items: Any) -> None:
    """Two items of one name are `DuplicateStepError` before any body runs; ``1`` is ``"1"``."""
    world, state = World(), State("r")

    async def root(s: Step) -> None:
        await s.map("m", world.leaf, items, returns=str)

    with pytest.raises(DuplicateStepError, match=r"'m/[1a]' was already used"):
        await asteps.run(root, state=state)
    assert (world.log, came_to(state)) == ([], {})


async def test_equal_names_from_key() -> None:
    """The same of what ``key=`` returns; items may then be equal."""

    async def root(s: Step, keys: list[Any]) -> list[str]:
        names = iter(keys)
        found: list[str] = await s.map(
            "m", same, ["x", "x"], key=lambda _: next(names), returns=str
        )
        return found

    with pytest.raises(DuplicateStepError):
        await asteps.run(root, ["a", "a"])
    assert await asteps.run(root, ["a", "b"]) == ["x", "x"]


@pytest.mark.parametrize("what", ["key", "items"])
async def test_errors_of_the_users(what: str) -> None:
    """What ``key=`` or the items raise leaves `map` as it is: a failure of the body."""
    world = World()

    def key(x: int) -> str:
        if what == "key":
            raise LookupError("mine")
        return str(x)

    def items() -> Iterator[int]:
        yield 1
        if what == "items":
            raise LookupError("mine")

    async def root(s: Step) -> str:
        try:
            await s.map("m", double, items(), key=key)
        except LookupError:
            return await s.do("x", world.leaf)
        raise AssertionError

    assert await world.run(root) == "x"


@pytest.mark.parametrize(
    "options",
    [
        {"limt": 5},
        {"limit": 0},
        {"limit": True},
        {"enough": 0},
        {"tolerate": -1},
        {"on_error": "stop"},
        {"retry": 5},
        {"timeout": -1},
        {"at_most_once": "yes"},
        {"every": 5},
    ],
    ids=repr,
)
@pytest.mark.parametrize("items", [[], [1, 2, 3]], ids=["empty", "items"])
async def test_wrong_options(options: Any, items: list[int]) -> None:
    """Typos and values out of range are misuse before any body runs, also without items."""
    state = State("r")
    ran: list[int] = []

    async def item(s: Step, x: int) -> None:
        ran.append(x)

    async def root(s: Step) -> None:
        try:
            await s.map("m", item, items, **options)
        except Exception:  # noqa: BLE001
            raise AssertionError from None

    with pytest.raises(UsageError):
        await asteps.run(root, state=state)
    assert (ran, came_to(state)) == ([], {})


@pytest.mark.parametrize("fn", [5, None, "x"], ids=repr)
async def test_no_function(fn: Any) -> None:
    """What is no function is misuse; so is one that is not async, or of other arguments."""

    async def root(s: Step, fn: Any) -> None:
        await s.map("m", fn, [1])

    def sync(s: Step, x: int) -> int:
        return x

    async def lonely(s: Step) -> None: ...

    for wrong in (fn, sync, lonely):
        with pytest.raises(UsageError):
            await asteps.reconcile(root, wrong)


# --- workers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 7, 50])
async def test_never_more_than_the_limit(limit: int) -> None:
    """No more than ``limit`` items are worked on, no fewer while others wait, in their order."""
    world = World()

    async def item(s: Step, x: int) -> str:
        return await world.ticking(3)(s)

    async def root(s: Step) -> None:
        await s.map("m", item, range(20), limit=limit)

    await world.run(root)
    assert world.most == min(limit, 20)
    assert world.passed == 3 * -(-20 // limit)
    assert world.log == [f"m/{i}" for i in range(20)]


async def test_the_usual_limit() -> None:
    """Without ``limit=`` a hundred items are worked on at the same time; with ``None`` all."""
    for limit, most in (({}, 100), ({"limit": None}, 250)):
        world = World()

        async def item(s: Step, x: int, world: World = world) -> str:
            return await world.ticking(3)(s)

        async def root(s: Step, limit: Any = limit, item: Any = item) -> None:
            await s.map("m", item, range(250), **limit)

        await world.run(root)
        assert world.most == most


async def test_no_more_items_are_started_than_the_limit() -> None:
    """Items that nobody works on have no task and no node yet."""
    world = World()
    nodes: list[int] = []

    async def item(s: Step, x: int) -> None:
        with world.working(s):
            await checkpoint()
            await checkpoint()
            parent = s._parent
            assert parent is not None
            nodes.append(len(parent._node.states or ()))

    async def root(s: Step) -> None:
        await s.map("m", item, range(100), limit=3)

    await world.run(root)
    assert all(n <= done + 3 for done, n in enumerate(nodes))
    assert world.most == 3


@pytest.mark.parametrize("kind", ["pending", "sleep", "retry", "deep", "poll", "map", "group"])
async def test_a_waiting_item_gives_back_its_place(kind: str) -> None:
    """While an item waits another is worked on; when it goes on it takes a place again."""
    world = World()

    async def item(s: Step, x: int) -> str:
        match kind:
            case "pending":
                return await world.pending(1, 100, work=1)(s)
            case "sleep":
                await s.do("a", world.ticking(1))
                await s.sleep("nap", 100)
            case "retry":
                await s.do("a", world.ticking(1))
                retry = Retry(attempts=2, delay=100, max_delay=100, jitter=0)
                await s.do("x", world.flaky(1), retry=retry)
            case "poll":
                await s.do("a", world.ticking(1))
                due = world.passed + 100
                await s.poll(
                    "x",
                    lambda: 1,
                    lambda _: 5 if world.passed >= due else None,
                    every=100,
                    returns=int,
                )
            case "deep":
                await s.do("a", world.ticking(1))
                await s.do("d", deep)
            case "map":
                await s.do("a", world.ticking(1))
                await s.map("m", napping, [1, 2, 3], limit=1)
            case _:
                await s.do("a", world.ticking(1))
                async with s.group("g") as g:
                    g.do("d", deep)
                    g.do("e", deep)
        return await s.do("z", world.ticking(1))

    async def deep(s: Step) -> None:
        await s.sleep("nap", 100)

    async def napping(s: Step, _: int) -> None:
        await s.sleep("nap", 100)

    async def root(s: Step) -> list[str]:
        return await s.map("m", item, range(6), limit=2)

    await world.run(root)
    # Three rounds of a second each, then a hundred seconds, then three rounds again.
    assert world.passed == 104
    assert world.most <= 2


async def test_waiting_items_beyond_the_budget() -> None:
    """In `reconcile` too: all items have their turn, however many wait and few may work."""
    world = World()

    async def item(s: Step, x: int) -> str:
        return await world.pending(1, 100 + x, work=1)(s)

    async def root(s: Step) -> list[str]:
        return await s.map("m", item, range(10), limit=2)

    outcome = await world.reconcile(root)
    assert isinstance(outcome, Pending)
    assert (outcome.path, outcome.after, outcome.why) == ("m/0", 96, "m/0 1")
    assert world.take() == [f"m/{i}" for i in range(10)]
    world.clock.advance(98)
    outcome = await world.reconcile(root)
    assert world.take()[:3] == ["m/0", "m/1", "m/2"]
    world.clock.advance(200)
    assert (await world.reconcile(root)).value == [f"m/{i}" for i in range(10)]
    assert world.most == 2
    assert set(world.begun.values()) == {2}


async def test_a_shared_limiter() -> None:
    """Two maps may share an ``anyio.CapacityLimiter``; each gets its turn."""
    world = World()
    limiter = anyio.CapacityLimiter(2)

    async def item(s: Step, x: int) -> str:
        return await world.pending(1, 5, work=1)(s)

    async def root(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            for name in ("one", "two"):
                tasks.start_soon(partial(s.map, name, item, range(5), limit=limiter))

    await world.run(root)
    assert world.most == 2
    assert limiter.borrowed_tokens == 0
    assert set(world.begun.values()) == {2}
    half = world.log[: len(world.log) // 2]
    assert {p.split("/")[0] for p in half[:6]} == {"one", "two"}


async def test_ten_thousand_items() -> None:
    """A map of ten thousand items is nothing special, on its first pass and on later ones."""
    world = World()
    ran: list[int] = []

    async def item(s: Step, x: int) -> int:
        ran.append(x)
        return x

    async def root(s: Step) -> int:
        found = await s.map("m", item, range(10_000))
        await s.sleep("wait", 5)
        return sum(found)

    assert isinstance(await world.reconcile(root), Pending)
    assert ran == list(range(10_000))
    world.clock.advance(5)
    gc.collect()
    outcome = await world.reconcile(root)
    assert outcome.value == sum(range(10_000))
    assert len(ran) == 10_000
    assert world.saves < 5


# --- failures and policies ------------------------------------------------------------------------


async def odd(s: Step, x: int) -> int:
    """Odd items fail."""
    await checkpoint()
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


async def test_one_error_for_the_map() -> None:
    """All items run to an end; then one `StepError` has those that failed, on every pass alike."""
    world = World()
    seen: list[Any] = []

    async def root(s: Step) -> None:
        try:
            await s.map("m", odd, range(5), limit=2)
        except StepError as error:
            seen.append((str(error), [e.path for e in error.errors], error.is_a(ValueError)))
            seen.append((error.origin, error.failure.causes, error.failure.message))
        await s.sleep("wait", 5)

    await world.reconcile(root)
    world.clock.advance(5)
    assert isinstance(await world.reconcile(root), Done)
    assert seen[:2] == seen[2:]
    message = "2 of 5 children failed; 1: 1 is odd; 3: 3 is odd"
    assert seen[:2] == [
        (f"step 'm' failed: {message}", ["m/1", "m/3"], True),
        ("m/1", ("1", "3"), message),
    ]


async def test_recover_a_failed_map() -> None:
    """After `recover()` the failed items run again, the others answer."""
    world = World()
    broken = True

    async def item(s: Step, x: int) -> int:
        with world.working(s):
            return await odd(s, x) if broken else x

    async def root(s: Step) -> list[int]:
        return await s.map("m", item, range(4))

    with pytest.raises(StepError):
        await world.run(root)
    broken = False
    world.take()
    assert await world.run(root, recover=True) == [0, 1, 2, 3]
    assert world.take() == ["m/1", "m/3"]


async def test_a_parents_retry() -> None:
    """A new attempt of the parent runs the failed items again, and no others."""
    world = World()

    async def item(s: Step, x: int) -> str:
        return await world.flaky(x)(s)

    async def parent(s: Step) -> list[str]:
        return await s.map("m", item, range(3))

    async def root(s: Step) -> list[str]:
        return await s.do("p", parent, retry=Retry(attempts=3, delay=0))

    assert await world.run(root) == [f"p/m/{i}" for i in range(3)]
    assert world.begun == {f"p/m/{i}": i + 1 for i in range(3)}


async def test_tolerated_items() -> None:
    """With ``tolerate`` the results are those of the done items, in their order."""
    world = World()

    async def root(s: Step, tolerate: int) -> list[int]:
        found = await s.map("m", odd, [4, 1, 2, 3, 0], tolerate=tolerate)
        await s.sleep("wait", 5)
        return found

    outcome = await world.reconcile(root, 1)
    assert isinstance(outcome, Failed)
    assert outcome.error.errors[0].failure.message.startswith("2 of 5 children failed; 1 are")
    assert isinstance(await world.reconcile(root, 2, recover=True), Pending)
    world.clock.advance(5)
    assert (await world.reconcile(root, 2)).value == [4, 2, 0]


async def test_enough_items() -> None:
    """With ``enough`` the others are cancelled; the map stays closed, on later passes too."""
    world = World()

    async def item(s: Step, x: int) -> str:
        return await (world.ticking(x)(s) if x < 50 else world.hang(s))

    async def root(s: Step) -> list[str]:
        found = await s.map("m", item, [99, 7, 98, 5, 97, 3], limit=5, enough=2)
        await s.sleep("wait", 60)
        return found

    assert isinstance(await world.reconcile(root), Pending)
    assert world.take() == ["m/99", "m/7", "m/98", "m/5", "m/97", "m/3"]
    state = await world.state()
    assert {p for p, kind in came_to(state).items() if kind == "done"} == {"m", "m/7", "m/5"}
    when = ended(state)
    for _ in range(2):
        world.clock.advance(10)
        outcome = await world.reconcile(root)
        assert (world.take(), world.saves, ended(outcome.state)) == ([], 0, when)
    world.clock.advance(60)
    assert (await world.reconcile(root)).value == ["m/7", "m/5"]


async def test_a_failure_cancels_the_others() -> None:
    """With ``on_error="cancel"`` no further item begins, and those at work are interrupted."""
    world = World()

    async def item(s: Step, x: int) -> str:
        return await (world.fail(s) if x == 3 else world.hang(s) if x == 1 else world.leaf(s))

    async def root(s: Step) -> None:
        try:
            await s.map("m", item, range(50), limit=2, on_error="cancel")
        except StepError:
            await s.sleep("wait", 60)

    await world.reconcile(root)
    assert world.take() == [f"m/{i}" for i in range(4)]
    tree = came_to(await world.state())
    assert tree == {
        "m": "failed",
        "m/0": "done",
        "m/1": "proceeding",
        "m/2": "done",
        "m/3": "failed",
        "wait": "pending",
    }
    world.clock.advance(5)
    outcome = await world.reconcile(root)
    assert (outcome.path, world.take(), world.saves) == ("wait", [], 0)


@pytest.mark.parametrize("fault", ["crash before", "crash after"])
async def test_a_crash_at_every_save(fault: Any) -> None:
    """After a crash no item that is recorded runs again, and the result is the same."""
    crashes = 0
    for number in range(1, 40):
        world = World()

        async def item(s: Step, x: int, world: World = world) -> str:
            return await world.pending(x % 2, 5, work=x)(s)

        async def root(s: Step, item: Any = item) -> list[str]:
            async with s.group("g") as g:
                child = g.map("m", item, range(6), limit=2, returns=str)
            found: list[str] = child.result
            return found

        expected = [f"g/m/{i}" for i in range(6)]
        try:
            assert await world.run(root, faults={number: fault}) == expected
        except Crash:
            crashes += 1
            state = await load_state(world.store, "r")
            done = set() if state is None else {p for p, n in state.walk() if n.done}
            world.take()
            assert await world.run(root) == expected
            assert not done & set(world.log)
    assert crashes > 5


# --- options of items -----------------------------------------------------------------------------


async def test_retry_of_items() -> None:
    """``retry=`` holds for each item, which waits without keeping its place."""
    world = World()

    async def item(s: Step, x: int) -> str:
        return await world.flaky(x)(s)

    async def root(s: Step) -> list[str]:
        return await s.map(
            "m", item, range(4), limit=1, retry=Retry(attempts=4, delay=10, factor=1, jitter=0)
        )

    assert await world.run(root) == [f"m/{i}" for i in range(4)]
    assert world.begun == {f"m/{i}": i + 1 for i in range(4)}
    assert world.passed == 30


async def test_timeout_of_items() -> None:
    """``timeout=`` holds for each item, from its own start."""
    world = World()

    async def item(s: Step, x: int) -> str:
        return await world.ticking(x)(s)

    async def root(s: Step) -> list[str]:
        return await s.map("m", item, [5, 50, 6, 60], limit=1, timeout=10, tolerate=2)

    assert await world.run(root) == ["m/5", "m/6"]
    assert world.passed == 31
    state = await world.state()
    assert [f.kind for p in ("m/50", "m/60") if (f := state.get(p).failure)] == ["timeout"] * 2


async def test_items_that_run_at_most_once() -> None:
    """``at_most_once=`` holds for each item: one that was cut off fails as interrupted."""
    world = World()

    async def item(s: Step, x: int) -> str:
        if x == 2 and s.path not in world.begun:
            with world.working(s):
                raise Crash
        return await world.leaf(s)

    async def root(s: Step) -> None:
        await s.map("m", item, range(4), limit=1, at_most_once=True)

    with pytest.raises(BaseException) as caught:
        await world.run(root)
    assert "Crash" in repr(caught.value)
    with pytest.raises(StepError) as failed:
        await world.run(root)
    assert failed.value.origin == "m/2"
    assert world.begun == {f"m/{i}": 1 for i in range(4)}


@pytest.mark.parametrize("grouped", [False, True], ids=["map", "map in a group"])
async def test_inputs_of_items(grouped: bool) -> None:
    """``inputs=`` may be a function of the item: those that differ are reset and run again."""
    world = World()

    async def item(s: Step, nic: Nic) -> int:
        with world.working(s):
            return nic.speed

    async def root(s: Step, nics: list[Nic]) -> list[int]:
        keywords: Any = {"key": lambda nic: nic.id, "inputs": lambda nic: nic.speed}
        if grouped:
            async with s.group("g") as g:
                child = g.map("m", item, nics, **keywords)
            found: list[int] = child.result
        else:
            found = await s.map("m", item, nics, **keywords)
        await s.sleep("wait", 1000)
        return found

    base = "g/m/" if grouped else "m/"
    nics = [Nic("a", 1), Nic("b", 1), Nic("c", 1)]
    await world.reconcile(root, nics)
    assert world.take() == [f"{base}{x}" for x in "abc"]
    await world.reconcile(root, nics)
    assert (world.take(), world.saves) == ([], 0)
    await world.reconcile(root, [Nic("c", 1), Nic("b", 2), Nic("a", 1)])
    assert world.take() == [f"{base}b"]
    world.clock.advance(1000)
    outcome = await world.reconcile(root, [Nic("b", 2), Nic("a", 3), Nic("c", 1)])
    assert (outcome.value, world.take()) == ([2, 3, 1], [f"{base}a"])


async def test_inputs_for_all_items() -> None:
    """``inputs=`` that is a value holds for every item."""
    world = World()

    async def root(s: Step, version: int) -> None:
        await s.map("m", world.leaf, "abc", inputs=version, returns=str)
        await s.sleep("wait", 1000)

    await world.reconcile(root, 1)
    await world.reconcile(root, 1)
    await world.reconcile(root, 2)
    assert world.begun == {f"m/{x}": 2 for x in "abc"}


async def test_changed_inputs_of_unfinished_items() -> None:
    """Changed inputs reset a failed item and a pending one as they do a done one."""
    world = World()

    async def item(s: Step, nic: Nic) -> str:
        if nic.speed > 1 or nic.id == "done":
            return await world.leaf(s)
        return await (world.fail(s) if nic.id == "failed" else world.pending(99, 1000)(s))

    async def root(s: Step, speed: int) -> list[str]:
        nics = [Nic(x, speed) for x in ("done", "failed", "pending")]
        return await s.map("m", item, nics, key=lambda n: n.id, inputs=lambda n: n.speed)

    outcome = await world.reconcile(root, 1)
    assert (outcome.path, outcome.after) == ("m/pending", 1000)
    world.take()
    outcome = await world.reconcile(root, 2)
    assert outcome.value == ["m/done", "m/failed", "m/pending"]
    assert sorted(world.take()) == ["m/done", "m/failed", "m/pending"]


@pytest.mark.parametrize("later", [False, True], ids=["first pass", "later pass"])
async def test_a_function_of_inputs_that_raises(later: bool) -> None:
    """A function of inputs that raises is misuse, before any body, on every pass alike."""
    world = World()

    def inputs(x: int) -> int:
        if x == 2:
            raise LookupError("mine")
        return x

    async def item(s: Step, x: int) -> str:
        return await world.leaf(s)

    async def root(s: Step, items: list[int]) -> None:
        await s.map("m", item, items, inputs=inputs, limit=1)
        await s.sleep("wait", 5)

    if later:
        await world.reconcile(root, [0, 1])
    world.take()
    with pytest.raises(UsageError, match=r"inputs= raised LookupError\('mine'\) for 2"):
        await world.reconcile(root, [0, 1, 2])
    assert world.log == []


# --- changed code, changed items ------------------------------------------------------------------


async def test_changed_items() -> None:
    """Items are known by name: added ones run, vanished ones are listed, order is free."""
    world = World()

    async def root(s: Step, items: str) -> list[str]:
        found: list[str] = await s.map("m", world.leaf, items, returns=str)
        await s.sleep("wait", 1000)
        return found

    outcome = await world.reconcile(root, "abc")
    assert outcome.vanished == ()
    world.take()
    outcome = await world.reconcile(root, "cbd")
    assert (world.take(), outcome.vanished) == (["m/d"], ("m/a",))
    world.clock.advance(1000)
    outcome = await world.reconcile(root, "adcb")
    assert outcome.value == ["m/a", "m/d", "m/c", "m/b"]
    assert (world.take(), outcome.vanished) == ([], ())


async def test_a_pending_item_that_vanished() -> None:
    """An item that changed code no longer has keeps nobody waiting."""
    world = World()

    async def item(s: Step, x: str) -> str:
        return await (world.pending(99, 50)(s) if x == "w" else world.leaf(s))

    async def root(s: Step, items: str) -> list[str]:
        return await s.map("m", item, items)

    assert isinstance(await world.reconcile(root, "aw"), Pending)
    outcome = await world.reconcile(root, "a")
    assert (outcome.value, outcome.vanished) == (["m/a"], ("m/w",))


async def test_a_failed_item_that_vanished() -> None:
    """A map whose failed item the code no longer has is done."""
    world = World()

    async def root(s: Step, items: list[int]) -> list[int]:
        try:
            return await s.map("m", odd, items)
        except StepError:
            await s.sleep("wait", 5)
            raise

    assert isinstance(await world.reconcile(root, [0, 1]), Pending)
    outcome = await world.reconcile(root, [0])
    assert (outcome.value, outcome.vanished) == ([0], ("m/1", "wait"))


async def test_operators_and_items() -> None:
    """`reset`, `set_result` and `rename` work on items; siblings are kept."""
    world = World()

    async def root(s: Step, items: str) -> list[str]:
        found: list[str] = await s.map("m", world.leaf, items, returns=str)
        return found

    await world.run(root, "abcd")
    async with edit_run(world.store, "r") as state:
        state.reset("m/a")
        state.set_result("m/b", "set")
        state.rename("m/c", "z")
    world.take()
    outcome = await world.reconcile(root, "abzd")
    assert outcome.value == ["m/a", "set", "m/c", "m/d"]
    assert (world.take(), outcome.vanished) == (["m/a"], ())


async def test_a_new_item_after_a_rename() -> None:
    """A new item may have the name that a renamed one had; its token is another."""
    world = World()
    tokens: dict[str, str] = {}

    async def item(s: Step, x: str) -> str:
        tokens[s.path + str(len(tokens))] = s.token
        return s.path

    async def root(s: Step, items: str) -> list[str]:
        return await s.map("m", item, items)

    await world.run(root, "a")
    async with edit_run(world.store, "r") as state:
        state.rename("m/a", "z")
        state.reset("m/z")
        state.set_result("m/z", "kept")
    outcome = await world.reconcile(root, "az")
    assert outcome.value == ["m/a", "kept"]
    assert len(set(tokens.values())) == 2


# --- shapes ---------------------------------------------------------------------------------------


async def test_nested_maps() -> None:
    """Maps in items of maps, each with a limit of its own."""
    world = World()

    async def inner(s: Step, x: int) -> str:
        return await world.pending(1, x, work=1)(s)

    async def outer(s: Step, x: int) -> list[str]:
        return await s.map("n", inner, range(1, x + 1), limit=2)

    async def root(s: Step) -> list[list[str]]:
        return await s.map("m", outer, range(1, 5), limit=2)

    expected = [[f"m/{x}/n/{y}" for y in range(1, x + 1)] for x in range(1, 5)]
    assert await world.run(root) == expected
    assert world.most <= 4
    assert set(world.begun.values()) == {2}
    other = World()
    world, passes = other, 0
    while isinstance(outcome := await other.reconcile(root), Pending):
        other.clock.advance(outcome.after)
        passes += 1
    assert outcome.value == expected
    assert set(other.begun.values()) == {2}
    assert passes < 20


async def test_maps_side_by_side() -> None:
    """Maps in tasks of the user's, and one in the body, run beside one another."""
    world = World()

    async def item(s: Step, x: int) -> str:
        return await world.ticking(5)(s)

    async def root(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(s.map, "a", item, range(4), limit=2))
            tasks.start_soon(partial(s.map, "b", item, range(4), limit=2))
            tasks.start_soon(s.do, "c", world.ticking(5))
            await checkpoint()
            await s.map("d", item, range(4), limit=2)

    await world.run(root)
    assert (world.most, world.passed) == (7, 10)


async def test_a_map_in_open_run() -> None:
    """In the block of `open_run` a map is as anywhere; a pending item ends the block quietly."""
    world = World()
    found: list[list[str]] = []

    async def item(s: Step, x: int) -> str:
        return await world.pending(x, 10)(s)

    for expected in (Pending, Pending, Done, Done):
        async with open_run("r", store=world.store, id="r", clock=world.clock) as s:
            found.append(await s.map("m", item, range(3), limit=2))
        assert type(s.outcome) is expected
        world.clock.advance(10)
    assert found == [["m/0", "m/1", "m/2"]] * 2
    assert world.begun == {"m/0": 1, "m/1": 2, "m/2": 3}


async def test_a_result_that_cannot_be_stored() -> None:
    """An item's result that cannot come back is misuse, as it is of any step."""

    async def item(s: Step, x: int) -> Any:
        return object() if x == 3 else x

    async def root(s: Step) -> None:
        await s.map("m", item, range(10), limit=2)

    with pytest.raises(UsageError, match="the result of step 'm/3'"):
        await asteps.run(root)


async def test_a_result_that_is_too_large() -> None:
    """An item's result that is too large fails that item for good."""

    async def item(s: Step, x: int) -> str:
        return "x" * x

    async def root(s: Step) -> list[str]:
        return await s.map("m", item, [5, 5000, 6], tolerate=1, retry=Retry(attempts=3))

    state = State("r")
    assert await asteps.run(root, state=state, max_result_bytes=1000) == ["x" * 5, "x" * 6]
    failure = state.get("m/5000").failure
    assert failure is not None
    assert (failure.kind, failure.final) == ("too large", True)


async def test_steps_below_items() -> None:
    """Items have steps of their own, which answer on later passes."""
    world = World()

    async def item(s: Step, x: int) -> str:
        a = await s.do("a", world.leaf)
        await s.save_info({"half": x})
        b = await s.do("b", world.pending(1, 5))
        return f"{a} {b}"

    async def root(s: Step) -> list[str]:
        return await s.map("m", item, range(3), limit=2)

    outcome = await world.reconcile(root)
    assert outcome.state.get("m/2").info_as(dict[str, int]) == {"half": 2}
    world.clock.advance(5)
    outcome = await world.reconcile(root)
    assert outcome.value == [f"m/{i}/a m/{i}/b" for i in range(3)]
    assert world.begun == {f"m/{i}/{x}": n for i in range(3) for x, n in (("a", 1), ("b", 2))}


async def test_misuse_in_an_item() -> None:
    """Misuse in an item ends the pass; items that wait for a place do not begin."""
    world = World()

    async def item(s: Step, x: int) -> None:
        with world.working(s):
            if x == 2:
                await s.do("x", 5)  # type: ignore[call-overload]
            await checkpoint()

    async def root(s: Step) -> None:
        await s.map("m", item, range(10), limit=2)

    with pytest.raises(UsageError, match="a step runs a function"):
        await world.run(root)
    assert len(world.log) <= 5
    assert world.at_work == 0


async def test_a_swallowed_signal_in_an_item() -> None:
    """An item that swallows the signal of a pending step is told so."""

    async def waits(s: Step) -> None:
        s.pending(after=50)

    async def item(s: Step, x: int) -> int:
        try:
            await s.do("w", waits)
        except BaseException:  # noqa: BLE001
            return x
        return 0

    async def root(s: Step) -> None:
        await s.map("m", item, range(3))

    state = State("r")
    with pytest.raises(UsageError, match="swallowed the signal"):
        await asteps.reconcile(root, state=state)
    assert not state.get("m").done


# --- cancellation ---------------------------------------------------------------------------------


async def cancelled(
    world: World, at: int, cancel: Callable[[], object]
) -> Callable[[Step], Awaitable[list[str]]]:
    """A flow that is cancelled at its ``at``-th turn."""
    turns = 0

    async def item(s: Step, x: int) -> str:
        nonlocal turns
        with world.working(s):
            for _ in range(3):
                turns += 1
                if turns == at:
                    cancel()
                await checkpoint()
        await s.sleep("nap", 3)
        return s.path

    async def root(s: Step) -> list[str]:
        return await s.map("m", item, range(5), limit=2)

    return root


async def test_a_scope_at_every_turn() -> None:
    """Cancelled at any point, what had returned is kept, and the rest runs when it goes on."""
    number, expected = 0, [f"m/{i}" for i in range(5)]
    while True:
        number += 1
        world = World()
        with anyio.CancelScope() as scope:
            await world.run(await cancelled(world, number, scope.cancel))
        if not scope.cancel_called:
            break
        state = await world.state()
        assert "failed" not in came_to(state).values()
        done = {p for p, n in state.walk() if n.done}
        world.take()
        assert await world.run(await cancelled(world, 0, scope.cancel)) == expected
        assert not done & set(world.log)
    assert number > 14


@only_asyncio
async def test_native_cancellation_at_every_turn() -> None:
    """The same with ``task.cancel()``."""
    number, expected = 0, [f"m/{i}" for i in range(5)]
    while True:
        number += 1
        world, called = World(), anyio.Event()
        root = await cancelled(world, number, called.set)
        task = asyncio.create_task(world.run(root))
        while not (task.done() or called.is_set()):
            await asyncio.sleep(0)
        if not called.is_set():
            await task
            break
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        state = await world.state()
        assert "failed" not in came_to(state).values()
        assert not state.failed
        assert await world.run(await cancelled(world, 0, called.set)) == expected
    assert number > 14


async def test_a_scope_around_a_map() -> None:
    """A scope around a map bounds this pass's work; items are interrupted, the body goes on."""
    world = World()
    limiter = anyio.CapacityLimiter(2)

    async def item(s: Step, x: int) -> str:
        return await (world.leaf(s) if x == 0 else world.hang(s))

    async def root(s: Step) -> str:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(s.map, "m", item, range(5), limit=limiter))
                while world.at_work < 2 or len(world.log) < 3:
                    await checkpoint()
                scope.cancel()
        return await s.do("after", world.leaf)

    assert await world.run(root) == "after"
    assert limiter.borrowed_tokens == 0
    assert came_to(await world.state()) == {
        "m": "proceeding",
        "m/0": "done",
        "m/1": "proceeding",
        "m/2": "proceeding",
        "after": "done",
    }
