"""``inputs=`` and ``at_most_once=``, and options that there are not."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import pytest
from clocks import FakeClock

import asteps
from asteps import Done, Failed, Failure, Pending, Retry, State, Step, StepError, UsageError
from asteps.stores.memory import MemoryStore
from asteps.testing import FaultyStore

# --- helpers --------------------------------------------------------------------------------------


class CrashError(BaseException):
    """The process dies, as far as the run can tell."""


@dataclass(frozen=True)
class Size:
    cpus: int
    disks: dict[str, int]


def came_to(state: State) -> dict[str, str]:
    """What every step of a tree came to, by path."""
    kinds = ("done", "failed", "pending", "proceeding")
    return {
        path: next((kind for kind in kinds if getattr(node, kind)), "nothing")
        for path, node in state.walk()
    }


async def stored(store: MemoryStore, id: str = "x") -> State:
    """The run as the store has it."""
    state = await asteps.load_state(store, id)
    assert state is not None
    return state


class World:
    """A run of one step ``x`` below ``p``, whose body does what it is told."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.seen: list[tuple[Any, Any, str, int]] = []
        self.plan: list[str] = []  # what the body does at each call; then it returns
        self.options: dict[str, Any] = {}

    async def body(self, s: Step) -> int:
        found = [c.name for c in s.state.states or ()]
        self.seen.append((s.info, found, s.token, s.attempt))
        s.info = len(self.seen)
        await s.call("child", str, "c")
        match self.plan.pop(0) if self.plan else "return":
            case "pend":
                s.pending(after=5)
            case "raise":
                raise ConnectionError("no luck")
            case "crash":
                raise CrashError
            case _:
                pass
        return len(self.seen)

    async def parent(self, s: Step) -> int:
        await s.call("sibling", str, "s")
        got: int = await s.do("x", self.body, **self.options)
        return got

    async def root(self, s: Step) -> int:
        return await s.do("p", self.parent)

    async def once(self, **keywords: Any) -> asteps.Outcome[int] | None:
        """One pass in a process of its own; ``None`` if it died."""
        self.clock.advance(1)
        with suppress(CrashError):
            return await asteps.reconcile(
                self.root, store=self.store.client(), id="x", clock=self.clock, **keywords
            )
        return None


# --- inputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["pend", "raise", "crash", "retry"])
async def test_other_inputs_reset_a_step(before: str) -> None:
    """A failed, pending, retrying or interrupted step is run anew when its inputs differ.

    It forgets its info and its children, has a new token, and begins to count again.
    """
    world = World()
    world.plan = ["raise" if before == "retry" else before]
    world.options = {"inputs": 1, "retry": Retry(delay=60) if before == "retry" else None}

    async def parent(s: Step) -> int:
        await s.call("sibling", str, "s")
        with suppress(StepError):
            got: int = await s.do("x", world.body, **world.options)
            return got
        return s.pending(after=1)

    world.parent = parent  # type: ignore[method-assign]
    await world.once()
    first = came_to(await stored(world.store))
    assert first["p/x"] == {"raise": "failed", "crash": "proceeding"}.get(before, "pending")
    world.options = {"inputs": 2}
    world.clock.advance(1)
    outcome = await world.once()
    assert isinstance(outcome, Done)
    assert outcome.value == 2
    (info, children, token, attempt), again = world.seen
    assert (info, children, attempt) == (None, [], 1)
    assert again[0] is None
    assert again[1] == []
    assert again[2] != token
    assert again[3] == 1
    node = (await stored(world.store)).get("p/x")
    assert (node.done, node.interruptions, node.info_as(int)) == (True, 0, 2)


async def test_other_inputs_reset_a_done_step() -> None:
    """A done step whose inputs differ is run again when its parent is; siblings are kept."""
    seen: list[tuple[str, str]] = []

    async def leaf(s: Step, value: Any) -> Any:
        seen.append((s.path, s.token))
        return value

    async def root(s: Step, size: Size, wait: bool) -> list[int]:
        got = [
            await s.do("cpus", leaf, size.cpus, inputs=size.cpus, returns=int),
            await s.do("disks", leaf, len(size.disks), inputs=size.disks, returns=int),
        ]
        if wait:
            s.pending(after=1)
        return got

    clock, state = FakeClock(), State("r")
    for size in (
        Size(1, {"a": 1, "b": 2}),
        Size(1, {"b": 2, "a": 1}),
        Size(2, {"a": 1, "b": 2}),
        Size(1, {"a": 1}),
    ):
        outcome = await asteps.reconcile(root, size, True, state=state, clock=clock)
        assert isinstance(outcome, Pending)
        state = State.decode(state.encode())
        clock.advance(2)
    outcome = await asteps.reconcile(root, Size(1, {"a": 1}), False, state=state, clock=clock)
    assert isinstance(outcome, Done)
    assert outcome.value == [1, 1]
    assert [path for path, _ in seen] == ["cpus", "disks", "cpus", "cpus", "disks"]
    assert len({token for _, token in seen}) == 5


@pytest.mark.parametrize(
    "before", ["pend", "raise", "crash"], ids=["pending", "failed", "interrupted"]
)
async def test_the_same_inputs_change_nothing(before: str) -> None:
    """With equal inputs a step goes on as it would without: same token, info and children."""
    world = World()
    world.plan = [before]
    world.options = {"inputs": {"a": 1, "b": [Size(1, {})]}}
    await world.once()
    world.options = {"inputs": {"b": [Size(1, {})], "a": 1}}
    world.clock.advance(5)
    outcome = await world.once(recover=True)
    assert isinstance(outcome, Done)
    first, second = world.seen
    assert second == (1, ["child"], first[2], 1)


async def test_inputs_that_were_not_recorded_are_taken_over() -> None:
    """A step that was recorded without inputs takes them over, whatever they are."""
    ran: list[int] = []

    async def body(s: Step) -> None:
        ran.append(1)

    async def root(s: Step, options: dict[str, Any], wait: bool) -> None:
        await s.do("x", body, **options)
        if wait:
            s.pending(after=1)

    clock, state = FakeClock(), State("r")
    for options, runs in (
        ({}, 1),
        ({"inputs": 1}, 1),
        ({"inputs": 1}, 1),
        ({}, 1),
        ({"inputs": 2}, 2),
        ({"inputs": None}, 3),
        ({"inputs": None}, 3),
    ):
        await asteps.reconcile(root, options, True, state=state, clock=clock)
        state = State.decode(state.encode())
        clock.advance(2)
        assert len(ran) == runs, options


async def test_inputs_are_not_kept() -> None:
    """The tree has a digest of the inputs: they may hold secrets and megabytes."""

    async def body(s: Step) -> None:
        pass

    async def root(s: Step) -> None:
        await s.do("x", body, inputs={"password": "hunter2", "big": "x" * 100_000})

    state = State("r")
    await asteps.run(root, state=state, inputs={"password": "hunter3"})
    data = state.encode()
    assert b"hunter" not in data
    assert len(data) < 2_000


async def test_a_reset_reaches_the_store() -> None:
    """What a changed input resets is gone from the store, also where fewer children come again."""
    names = ["a", "b", "c/d"]

    async def leaf(s: Step) -> None:
        if s.name == "c/d":
            await s.call("deep", str, "d")

    async def body(s: Step) -> None:
        for name in names:
            await s.do(name, leaf)
        s.pending(after=5)

    async def root(s: Step, inputs: object) -> None:
        await s.do("x", body, inputs=inputs)

    store, clock = MemoryStore(), FakeClock()
    await asteps.reconcile(root, 1, store=store.client(), id="x", clock=clock)
    assert [p for p, _ in (await stored(store)).walk()] == [
        *("", "x", "x/a", "x/b", "x/c~1d", "x/c~1d/deep")
    ]
    names = ["b"]
    outcome = await asteps.reconcile(root, 2, store=store.client(), id="x", clock=clock)
    assert isinstance(outcome, Pending)
    assert outcome.vanished == ()
    assert [p for p, _ in (await stored(store)).walk()] == ["", "x", "x/b"]


async def test_odd_inputs_are_compared_too() -> None:
    """Keys of several types, sets and nested objects make a digest like any other."""
    ran: list[int] = []

    async def body(s: Step) -> None:
        ran.append(1)

    async def root(s: Step, value: Any) -> None:
        await s.do("x", body, inputs=value)
        s.pending(after=1)

    clock, state = FakeClock(), State("r")
    for value in ({1: "a", "b": {2, 1}}, {"b": {1, 2}, 1: "a"}, {1: "a", "b": {1}}):
        await asteps.reconcile(root, value, state=state, clock=clock, name="n")
        clock.advance(2)
    assert len(ran) == 2


# --- inputs of the driver -------------------------------------------------------------------------


async def test_inputs_of_a_run_reopen_it() -> None:
    """When the driver's inputs differ a finished run is entered again, its children kept."""
    world = World()
    world.plan = ["return", "raise"]
    assert isinstance(await world.once(inputs=1), Done)
    assert isinstance(await world.once(inputs=1), Done)
    assert len(world.seen) == 1
    entered: list[int] = []
    parent = world.parent

    async def root(s: Step) -> int:
        entered.append(1)
        return await s.do("p", parent)

    world.root = root  # type: ignore[method-assign]
    outcome = await world.once(inputs=2, name="World.root")
    assert isinstance(outcome, Done)
    assert (len(entered), len(world.seen)) == (1, 1)
    assert isinstance(await world.once(inputs=2, name="World.root"), Done)
    assert len(entered) == 1


# --- at most once ---------------------------------------------------------------------------------

INTERRUPTED = Failure(
    message="the step was interrupted while it ran at most once: what became of it is unknown; "
    "find out, then recover it or set its result",
    kind="interrupted",
    final=True,
)


async def test_at_most_once_needs_a_store() -> None:
    """Without a store nobody could know whether the body had begun."""
    world = World()
    world.options = {"at_most_once": True}
    for state in (None, State("r")):
        with pytest.raises(UsageError, match=r"step 'p/x': at_most_once needs a store"):
            await asteps.run(world.root, state=state)
    assert world.seen == []


async def test_an_interrupted_at_most_once_step_fails() -> None:
    """Found interrupted it fails for good, without running; no retry changes that, on any pass."""
    world = World()
    world.plan = ["crash"]
    world.options = {"at_most_once": True, "retry": Retry()}
    assert await world.once() is None
    node = (await stored(world.store)).get("p/x")
    assert node.proceeding
    for _ in range(2):
        outcome = await world.once()
        assert isinstance(outcome, Failed)
        assert outcome.error.origin == "p/x"
        (error,) = outcome.error.errors[0].errors
        assert error.failure == INTERRUPTED
        assert outcome.error.failure.final
    assert len(world.seen) == 1


async def test_its_start_is_durable_before_the_body() -> None:
    """When the body runs, the store has its start."""
    store = MemoryStore()
    found: list[dict[str, str]] = []

    async def body(s: Step) -> None:
        found.append(came_to(await stored(store)))

    async def root(s: Step) -> None:
        await s.do("plain", body)
        await s.do("once", body, at_most_once=True)

    saves: tuple[Literal["step", "pass"], ...] = ("step", "pass")
    for save in saves:
        found.clear()
        await asteps.run(root, store=store, id="x", save=save)
        assert "plain" not in found[0]
        assert (found[1]["plain"], found[1]["once"]) == ("done", "proceeding")
        await asteps.delete_run(store, "x")


async def test_a_call_at_most_once() -> None:
    """`call` keeps the promise as `do` does, in a worker thread too."""
    calls: list[str] = []

    def pay(amount: int) -> None:
        calls.append(f"paid {amount}")
        raise CrashError

    async def root(s: Step) -> None:
        await s.call(pay, 5, at_most_once=True)

    store = MemoryStore()
    with pytest.raises(CrashError):
        await asteps.run(root, store=store, id="x")
    outcome = await asteps.reconcile(root, store=store, id="x")
    assert isinstance(outcome, Failed)
    assert outcome.error.errors[0].failure == INTERRUPTED
    assert calls == ["paid 5"]


async def test_recover_lets_it_run_again() -> None:
    """Somebody who found out that nothing happened recovers it: it runs once more."""
    world = World()
    world.plan = ["crash", "crash"]
    world.options = {"at_most_once": True}
    await world.once()
    assert isinstance(await world.once(), Failed)
    async with asteps.edit_run(world.store, "x") as state:
        assert state.recover() == ["p/x", "p", ""]
    await world.once()
    assert len(world.seen) == 2
    assert isinstance(await world.once(), Failed)
    assert len(world.seen) == 2
    outcome = await world.once(recover=True)
    assert isinstance(outcome, Done)
    assert outcome.value == 3
    assert len({token for _, _, token, _ in world.seen}) == 1


async def test_set_result_spares_it() -> None:
    """Somebody who found out what happened says so: the run goes on with that result."""
    world = World()
    world.plan = ["crash"]
    world.options = {"at_most_once": True}
    await world.once()
    assert isinstance(await world.once(), Failed)
    async with asteps.edit_run(world.store, "x") as state:
        state.set_result("p/x", 42)
    outcome = await world.once()
    assert isinstance(outcome, Done)
    assert outcome.value == 42
    assert len(world.seen) == 1


async def test_it_may_be_spared_before_it_is_found() -> None:
    """A result may be set, or the step reset, before any pass has found it interrupted."""
    for verb in ("set_result", "reset"):
        world = World()
        world.plan = ["crash"]
        world.options = {"at_most_once": True}
        await world.once()
        async with asteps.edit_run(world.store, "x") as state:
            if verb == "reset":
                state.reset("p/x")
            else:
                state.set_result("p/x", 42)
        outcome = await world.once()
        assert isinstance(outcome, Done)
        assert outcome.value == {"set_result": 42, "reset": 2}[verb]


async def test_what_it_raised_may_be_retried() -> None:
    """A failure is a known end: the next attempt may run."""
    world = World()
    world.plan = ["raise", "raise"]
    world.options = {"at_most_once": True, "retry": Retry(delay=1)}
    for left in (2, 3):
        assert isinstance(await world.once(), Pending)
        assert (await stored(world.store)).get("p/x").attempt == left
        world.clock.advance(5)
    outcome = await world.once()
    assert isinstance(outcome, Done)
    assert outcome.value == 3


async def test_a_crash_in_a_later_attempt_counts() -> None:
    """Each attempt is at most once: one that was interrupted fails the step, retries or not."""
    world = World()
    world.plan = ["raise", "crash"]
    world.options = {"at_most_once": True, "retry": Retry(delay=1)}
    assert isinstance(await world.once(), Pending)
    world.clock.advance(5)
    assert await world.once() is None
    outcome = await world.once()
    assert isinstance(outcome, Failed)
    assert outcome.state.get("p/x").failure == INTERRUPTED
    assert len(world.seen) == 2


async def test_what_it_raised_may_be_recovered() -> None:
    """A failed step is recovered like any other."""
    world = World()
    world.plan = ["raise"]
    world.options = {"at_most_once": True}
    assert isinstance(await world.once(), Failed)
    outcome = await world.once(recover=True)
    assert isinstance(outcome, Done)
    assert outcome.value == 2


@pytest.mark.parametrize("max_wait", [0, 60])
async def test_a_pending_may_go_on(max_wait: float) -> None:
    """A wait is a known end too; a crash after it is not."""
    world = World()
    world.plan = ["pend", "pend", "crash"]
    world.options = {"at_most_once": True}
    while isinstance(await world.once(max_wait=max_wait), Pending):
        world.clock.advance(10)
    assert len(world.seen) == 3
    outcome = await world.once()
    assert isinstance(outcome, Failed)
    assert outcome.state.get("p/x").failure == INTERRUPTED
    assert len(world.seen) == 3


async def test_a_waiting_child_may_go_on() -> None:
    """A step whose child waits is pending as a whole, and entered again."""
    store, clock, calls = MemoryStore(), FakeClock(), list[str]()

    async def child(s: Step) -> None:
        calls.append(s.path)
        if len(calls) < 6:
            s.pending(after=5)

    async def body(s: Step) -> None:
        calls.append(s.path)
        await s.do("child", child)

    async def root(s: Step) -> None:
        await s.do("x", body, at_most_once=True)

    for _ in range(2):
        outcome = await asteps.reconcile(root, store=store.client(), id="x", clock=clock)
        assert isinstance(outcome, Pending)
        clock.advance(outcome.after)
    assert isinstance(await asteps.reconcile(root, store=store, id="x", clock=clock), Done)
    assert calls == ["x", "x/child"] * 3


async def test_cancelled_before_the_body_is_rolled_back() -> None:
    """A step that was cancelled while its start was being saved has not run, and may."""
    ran: list[str] = []
    scope = anyio.CancelScope()

    async def body(s: Step) -> str:
        ran.append(s.path)
        return "ran"

    async def root(s: Step) -> str:
        await s.call("first", str, 1)
        with scope:
            return await s.do("x", body, at_most_once=True)
        return "cancelled"

    def decide(save: Any) -> None:
        if b'"once":true' in (save.changes.get("x") or b""):
            scope.cancel()

    store = MemoryStore()
    faulty = FaultyStore(store.client(), decide)
    assert await asteps.run(root, store=faulty, id="x") == "cancelled"
    assert ran == []
    async with asteps.edit_run(store, "x") as state:
        state.reset("first")
    scope = anyio.CancelScope()
    assert await asteps.run(root, store=store, id="x") == "ran"
    assert ran == ["x"]


async def test_changed_inputs_forget_an_interruption() -> None:
    """A step with other inputs is another piece of work: it may run."""
    world = World()
    world.plan = ["crash"]
    world.options = {"at_most_once": True, "inputs": 1}
    await world.once()
    world.options = {"at_most_once": True, "inputs": 2}
    outcome = await world.once()
    assert isinstance(outcome, Done)
    assert len(world.seen) == 2


async def test_a_done_step_stays_done() -> None:
    """A finished at-most-once step answers like any other, under changed options too."""
    world = World()
    world.options = {"at_most_once": True}
    world.plan = ["return"]
    outcome = await world.once()
    assert isinstance(outcome, Done)
    async with asteps.edit_run(world.store, "x") as state:
        state.reset("p/sibling")
    world.options = {}
    outcome = await world.once()
    assert isinstance(outcome, Done)
    assert outcome.value == 1
    assert len(world.seen) == 1


# --- options that there are not -------------------------------------------------------------------


async def quiet(*args: object) -> None:
    """A body that must not run."""
    raise AssertionError("must not run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tries": 5}, "a step has no option tries: there are retry, timeout, at_most_once, "),
        ({"vm": 5, "size": 1}, "no option size, vm: .*arguments of fn are positional"),
        ({"retry": 3}, "retry= takes a Retry, not int"),
        ({"retry": Retry}, "retry= takes a Retry, not "),
        ({"retry": {"attempts": 3}}, "retry= takes a Retry, not dict"),
        ({"timeout": "5"}, "timeout= is seconds or a timedelta, not str"),
        ({"timeout": -1}, "timeout= is -1; it must be above 0"),
        ({"at_most_once": "no"}, "at_most_once= is True or False, not 'no'"),
        ({"at_most_once": 1}, "at_most_once= is True or False, not 1"),
        ({"inputs": 1j}, "the inputs of step 'x' cannot be stored as JSON"),
        ({"returns": 5}, "cannot be read back from JSON"),
        ({"returns": quiet}, "cannot be read back from JSON"),
    ],
    ids=[
        *("unknown", "arguments", "number", "class", "dict", "str", "negative", "no", "one"),
        *("complex inputs", "returns number", "returns function"),
    ],
)
@pytest.mark.parametrize("way", ["do", "call"])
async def test_bad_options(options: dict[str, Any], message: str, way: str) -> None:
    """An option that there is not, or of the wrong type, is misuse, and the body does not run."""

    async def root(s: Any) -> None:
        await getattr(s, way)("x", quiet, **options)

    store = MemoryStore()
    with pytest.raises(UsageError, match=message):
        await asteps.run(root, store=store, id="x")
    found = await asteps.load_state(store, "x")
    assert found is None or not found.has("x")


async def test_options_that_say_nothing() -> None:
    """``None`` and ``False`` are what a step has without the option."""

    async def body(s: Step) -> int:
        return 1

    async def root(s: Step) -> int:
        return await s.do("x", body, retry=None, timeout=None, at_most_once=False)

    assert await asteps.run(root) == 1


async def test_options_are_checked_on_done_steps_too() -> None:
    """A wrong option is told on every pass, not only on the one that runs the body."""

    async def body(s: Step) -> int:
        return 1

    async def root(s: Any, wrong: bool) -> int:
        got: int = await s.do("x", body, **({"timeout": "5"} if wrong else {}))
        s.pending(after=1)
        return got

    state, clock = State("r"), FakeClock()
    assert isinstance(await asteps.reconcile(root, False, state=state, clock=clock), Pending)
    clock.advance(2)
    with pytest.raises(UsageError, match="timeout= is seconds"):
        await asteps.reconcile(root, True, state=state, clock=clock)
