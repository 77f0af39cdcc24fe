"""Not yet: pending steps, what survives while they wait, and tokens for the outside world."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint
from clocks import FakeClock

import asteps
from asteps import Done, Pending, Retry, State, Step, StepError, UsageError
from asteps.stores.memory import MemoryStore
from asteps.testing import FaultyStore

# --- helpers --------------------------------------------------------------------------------------


def came_to(state: State) -> dict[str, str]:
    """What every step of a tree came to, by path."""
    kinds = ("done", "failed", "pending", "proceeding")
    return {
        path: next((kind for kind in kinds if getattr(node, kind)), "nothing")
        for path, node in state.walk()
    }


def reborn(state: State) -> State:
    """The tree as another process finds it."""
    return State.decode(state.encode())


async def one(s: Step) -> int:
    """The shortest body."""
    return 1


def wait_here(after: float = 5, why: str = "") -> None:
    """A plain function that is not finished."""
    asteps.pending(after=after, why=why)


# --- pending --------------------------------------------------------------------------------------


async def wait_by_step(s: Step) -> None:
    """Wait by the step's own method."""
    s.pending(after=5, why="the cloud")


async def wait_by_function(s: Step) -> None:
    """Wait by the module's function, somewhere below."""
    await partial(deep_wait, 3)()


async def deep_wait(depth: int) -> None:
    """Wait in a function that knows of no step."""
    if depth:
        await deep_wait(depth - 1)
    asteps.pending(after=5, why="the cloud")


async def wait_in_own_thread(s: Step) -> None:
    """Wait in a thread that the body itself began."""
    await anyio.to_thread.run_sync(partial(wait_here, 5, "the cloud"))


async def wait_in_tasks(s: Step) -> None:
    """Wait in one of several tasks of the body."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep_forever)
        tasks.start_soon(deep_wait, 2)


@pytest.mark.parametrize(
    "body", [wait_by_step, wait_by_function, wait_in_own_thread, wait_in_tasks]
)
async def test_pending_from_a_body(body: Callable[[Step], Awaitable[None]]) -> None:
    """`s.pending` and `asteps.pending` make the innermost step pending, wherever it calls them."""

    async def root(s: Step) -> None:
        await s.do("p", body)

    state, clock = State("r"), FakeClock()
    outcome = await asteps.reconcile(root, state=state, clock=clock)
    assert isinstance(outcome, Pending)
    assert (outcome.after, outcome.path, outcome.why) == (5, "p", "the cloud")
    assert came_to(state) == {"": "pending", "p": "pending"}
    node = reborn(state).get("p")
    assert (node.attempt, node.interruptions, node.errs) == (1, 0, None)
    assert node.wake_at is not None
    assert node.wake_at.timestamp() == clock.now() + 5


@pytest.mark.parametrize("kind", ["async", "thread", "thread's awaitable", "own thread"])
async def test_pending_from_a_call(kind: str) -> None:
    """A function that is given no step waits by `asteps.pending`, in a worker thread too."""
    calls: list[str] = []

    async def asynchronous() -> str:
        return sync()

    def sync() -> str:
        calls.append(kind)
        if len(calls) < 3:
            asteps.pending(after=5, why="the disk")
        return "done"

    async def own_thread() -> str:
        return await anyio.to_thread.run_sync(sync)

    functions: dict[str, Callable[[], Any]] = {
        "async": asynchronous,
        "thread": sync,
        "thread's awaitable": lambda: asynchronous(),  # noqa: PLW0108
        "own thread": own_thread,
    }

    async def root(s: Step) -> str:
        got: str = await s.call("x", functions[kind], returns=str)
        return got

    state, clock = State("r"), FakeClock()
    outcome = await asteps.reconcile(root, state=state, clock=clock)
    assert isinstance(outcome, Pending)
    assert (outcome.after, outcome.path, outcome.why) == (5, "x", "the disk")
    assert await asteps.run(root, state=state, clock=clock) == "done"
    assert calls == [kind] * 3


async def test_pending_of_the_root() -> None:
    """The root itself may wait; its path is empty."""
    calls: list[int] = []

    async def root(s: Step) -> int:
        calls.append(s.attempt)
        if len(calls) < 3:
            s.pending(after=timedelta(minutes=1), why="all of it")
        return 5

    clock, store = FakeClock(), MemoryStore()
    outcome = await asteps.reconcile(root, store=store, id="x", clock=clock)
    assert isinstance(outcome, Pending)
    assert (outcome.after, outcome.path, outcome.why) == (60, "", "all of it")
    assert await asteps.run(root, store=store, id="x", clock=clock) == 5
    assert calls == [1, 1, 1]
    assert clock.slept == [60, 60]


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (0, r"pending\(after=…\) is 0; it must be above 0"),
        (-1, "must be above 0"),
        (math.nan, "must be above 0"),
        (math.inf, "at most a year"),
        (timedelta(0), "must be above 0"),
        (timedelta(days=400), "at most a year"),
        ("5", "is seconds or a timedelta, not str"),
        (None, "is seconds or a timedelta, not NoneType"),
        (True, "is seconds or a timedelta, not bool"),
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["step", "function", "thread"])
async def test_bad_after(after: Any, message: str, way: str) -> None:
    """``after`` is finite and above 0; anything else is misuse, which the body cannot catch."""

    async def body(s: Step) -> None:
        with suppress(Exception):
            s.pending(after=after)

    async def plain() -> None:
        with suppress(Exception):
            asteps.pending(after=after)

    async def root(s: Step) -> None:
        if way == "step":
            await s.do("x", body)
        elif way == "function":
            await s.call("x", plain)
        else:
            await s.call("x", partial(wait_here, after))

    state = State("r")
    with pytest.raises(UsageError, match=message):
        await asteps.run(root, state=state)
    assert not state.get("x").failed


def test_pending_outside_of_everything() -> None:
    """`asteps.pending` in a program without a pass is `UsageError`, and no signal gets loose."""
    with pytest.raises(UsageError, match="called outside a step"):
        asteps.pending(after=5)


async def test_pending_outside_a_pass() -> None:
    """It is so before and after a run, beside it, and in a thread that knows nothing of it."""
    found: list[BaseException] = []

    def note() -> None:
        try:
            asteps.pending(after=5)
        except BaseException as exc:  # noqa: BLE001
            found.append(exc)

    async def body(s: Step) -> None:
        thread = threading.Thread(target=note)
        thread.start()
        await anyio.to_thread.run_sync(thread.join)

    note()
    await asteps.run(body)
    note()
    async with asteps.open_run("inline") as s:
        await s.do("x", one)
    note()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(asteps.run, body)
        await checkpoint()
        note()
    assert [type(exc) for exc in found] == [UsageError] * 6


async def test_pending_uses_up_no_attempt() -> None:
    """A step may wait as often as it likes: attempts count failures alone."""
    seen: list[tuple[int, int]] = []

    async def body(s: Step) -> int:
        seen.append((s.attempt, s.interruptions))
        if len(seen) in (3, 5):
            raise ConnectionError
        if len(seen) < 8:
            s.pending(after=5)
        return s.attempt

    async def root(s: Step) -> int:
        return await s.do("x", body, retry=Retry(attempts=3))

    assert await asteps.run(root, clock=FakeClock()) == 3
    assert seen == [(1, 0)] * 3 + [(2, 0)] * 2 + [(3, 0)] * 3


async def test_the_same_arguments() -> None:
    """In place the innermost step alone is called again, with the very same arguments.

    Between passes everything is entered again.
    """
    entered: list[str] = []
    given: list[object] = []

    async def body(s: Step, thing: object) -> None:
        entered.append(s.path)
        given.append(thing)
        if len(given) < 3:
            s.pending(after=5)

    async def parent(s: Step) -> None:
        entered.append(s.path)
        await s.do("x", body, object())

    async def root(s: Step) -> None:
        entered.append(s.path)
        await s.do("p", parent)

    await asteps.run(root, clock=FakeClock())
    assert entered == ["", "p", "p/x", "p/x", "p/x"]
    assert given[0] is given[1] is given[2]

    entered.clear()
    given.clear()
    clock, state = FakeClock(), State("r")
    while isinstance(outcome := await asteps.reconcile(root, state=state, clock=clock), Pending):
        state = reborn(state)
        clock.advance(outcome.after)
    assert entered == ["", "p", "p/x"] * 3
    assert given[0] is not given[1]


# --- when -----------------------------------------------------------------------------------------


async def test_too_early() -> None:
    """Called before its time the body does not run, nothing is saved, and the rest is named."""
    ran: list[str] = []

    async def body(s: Step) -> None:
        ran.append(s.path)
        if len(ran) < 2:
            s.pending(after=60, why="minute")

    async def parent(s: Step) -> None:
        await s.do("done", one)
        await s.do("x", body)

    async def root(s: Step) -> None:
        await s.do("p", parent)

    clock, store = FakeClock(), FaultyStore(MemoryStore())
    assert isinstance(await asteps.reconcile(root, store=store, id="x", clock=clock), Pending)
    saves = len(store.log)
    for left in (45, 30, 15):
        clock.advance(15)
        outcome = await asteps.reconcile(root, store=store, id="x", clock=clock)
        assert isinstance(outcome, Pending)
        assert (outcome.after, outcome.path, outcome.why) == (left, "p/x", "minute")
    assert len(store.log) == saves
    assert ran == ["p/x"]
    clock.advance(15)
    assert isinstance(await asteps.reconcile(root, store=store, id="x", clock=clock), Done)
    assert ran == ["p/x", "p/x"]


@pytest.mark.parametrize("stored", [True, False], ids=["store", "state"])
async def test_too_early_leaves_the_state(stored: bool) -> None:
    """A pass that came too early changes no byte of the tree."""

    async def root(s: Step) -> None:
        await s.call("x", wait_here, 60)

    clock, store, state = FakeClock(), MemoryStore(), State("r")
    where: dict[str, Any] = {"store": store, "id": "x"} if stored else {"state": state}

    async def bytes_now() -> bytes:
        found = await asteps.load_state(store, "x") if stored else state
        assert found is not None
        return found.encode()

    await asteps.reconcile(root, **where, clock=clock)
    before = await bytes_now()
    clock.advance(10)
    await asteps.reconcile(root, **where, clock=clock)
    assert await bytes_now() == before


async def test_the_soonest_of_the_tree() -> None:
    """`Pending` names the step that is due first, of all that wait under any parent."""

    async def waits(s: Step, after: float) -> None:
        s.pending(after=after, why=f"{after:g} s")

    async def parent(s: Step, *afters: float) -> None:
        async with anyio.create_task_group() as tasks:
            for after in afters:
                tasks.start_soon(s.do, f"w{after:g}", waits, after)

    async def root(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(s.do, "a", parent, 50, 40, 60)
            tasks.start_soon(s.do, "b", parent, 90, 30)
            tasks.start_soon(s.do, "c", waits, 35)

    clock, state = FakeClock(), State("r")
    outcome = await asteps.reconcile(root, state=state, clock=clock)
    assert isinstance(outcome, Pending)
    assert (outcome.after, outcome.path, outcome.why) == (30, "b/w30", "30 s")
    assert set(came_to(state).values()) == {"pending"}
    clock.advance(20)
    outcome = await asteps.reconcile(root, state=reborn(state), clock=clock)
    assert isinstance(outcome, Pending)
    assert (outcome.after, outcome.path, outcome.why) == (10, "b/w30", "30 s")


async def test_the_soonest_is_not_lost_in_a_race() -> None:
    """Whichever of several tasks ends the pass first, the soonest of all is what is reported."""

    async def waits(s: Step, turns: int, after: float) -> None:
        for _ in range(turns):
            await checkpoint()
        s.pending(after=after)

    async def root(s: Step, delays: list[tuple[int, float]]) -> None:
        async with anyio.create_task_group() as tasks:
            for turns, after in delays:
                tasks.start_soon(s.do, f"{after:g}", waits, turns, after)

    for turns in range(4):
        for again in range(5):  # trio runs tasks in random order
            delays = [(0, 50.0), (turns, 40.0), (again, 10.0), (turns, 30.0)]
            outcome = await asteps.reconcile(root, delays, clock=FakeClock())
            assert isinstance(outcome, Pending)
            assert (outcome.after, outcome.path) == (10, "10")


async def test_it_is_late() -> None:
    """A step that is due long since runs at once, however late the pass."""

    async def body(s: Step) -> int:
        if not s.info:
            s.info = True
            s.pending(after=5)
        return 3

    async def root(s: Step) -> int:
        return await s.do("x", body)

    clock, state = FakeClock(), State("r")
    await asteps.reconcile(root, state=state, clock=clock)
    clock.advance(10**6)
    outcome = await asteps.reconcile(root, state=state, clock=clock)
    assert isinstance(outcome, Done)
    assert outcome.value == 3


# --- how long a pass waits ------------------------------------------------------------------------


async def polls(s: Step, clock: FakeClock, log: list[float], times: int = 10**6) -> int:
    """Wait five seconds, again and again."""
    log.append(clock.now())
    if len(log) < times:
        s.pending(after=5)
    return len(log)


async def test_max_wait_is_a_budget() -> None:
    """A pass waits in place for what is due before its start + ``max_wait``, not so long each."""
    clock, log = FakeClock(), list[float]()

    async def root(s: Step) -> int:
        return await s.do("x", polls, clock, log)

    begin = clock.now()
    outcome = await asteps.reconcile(root, clock=clock, max_wait=12)
    assert isinstance(outcome, Pending)
    assert (outcome.after, outcome.path) == (5, "x")
    assert [at - begin for at in log] == [0, 5, 10]
    assert clock.now() == begin + 10


async def test_max_wait_is_shared() -> None:
    """One wait after another draws on the same budget, and so does what bodies spend."""
    clock, log = FakeClock(), list[str]()

    async def body(s: Step) -> None:
        log.append(s.path)
        if log.count(s.path) == 1:
            s.pending(after=4)
        clock.advance(3)

    async def root(s: Step) -> None:
        for name in ("a", "b", "c"):
            await s.do(name, body)

    state = State("r")
    outcome = await asteps.reconcile(root, state=state, clock=clock, max_wait=timedelta(seconds=12))
    assert isinstance(outcome, Pending)
    assert (outcome.after, outcome.path) == (4, "c")
    assert log == ["a", "a", "b", "b", "c"]
    clock.advance(4)
    assert isinstance(await asteps.reconcile(root, state=state, clock=clock), Done)


@pytest.mark.parametrize("max_wait", [0, 4.9])
async def test_a_budget_that_is_too_small(max_wait: float) -> None:
    """What is due later than the budget ends the pass at once: no time is spent on it."""
    clock, log = FakeClock(), list[float]()

    async def root(s: Step) -> int:
        return await s.do("x", polls, clock, log)

    outcome = await asteps.reconcile(root, clock=clock, max_wait=max_wait)
    assert isinstance(outcome, Pending)
    assert clock.slept == []
    assert len(log) == 1


async def test_run_goes_on_to_the_end() -> None:
    """`run` waits in place without limit; given a ``max_wait`` it makes passes until the end."""
    for max_wait in (None, 0, 12):
        clock, log, entered = FakeClock(), list[float](), list[int]()

        async def root(
            s: Step,
            clock: FakeClock = clock,
            log: list[float] = log,
            entered: list[int] = entered,
        ) -> int:
            entered.append(1)
            return await s.do("x", polls, clock, log, 8)

        assert await asteps.run(root, clock=clock, max_wait=max_wait) == 8
        assert log[-1] - log[0] == 35
        assert len(entered) == {None: 1, 0: 8, 12: 3}[max_wait]


async def test_open_run_ends_its_block_quietly() -> None:
    """A pending in an `open_run` block ends it; ``s.outcome`` says what it waits for."""
    clock, store = FakeClock(), MemoryStore()
    reached: list[str] = []

    async def block() -> asteps.Outcome[Any]:
        async with asteps.open_run("inline", store=store, id="x", clock=clock) as s:
            await s.do("a", one)
            await s.call("x", ready, clock.now())
            reached.append("end")
        return s.outcome

    async def ready(now: float) -> None:
        if now == begin:
            asteps.pending(after=5, why="soon")

    begin = clock.now()
    outcome = await block()
    assert isinstance(outcome, Pending)
    assert (outcome.after, outcome.path, outcome.why) == (5, "x", "soon")
    assert reached == []
    clock.advance(5)
    assert isinstance(await block(), Done)
    assert reached == ["end"]


# --- swallowed signals ----------------------------------------------------------------------------


async def suppresses(wait: Callable[[], Awaitable[object]]) -> int:
    """Suppress everything."""
    with suppress(BaseException):
        await wait()
    return 1


async def bare_except(wait: Callable[[], Awaitable[object]]) -> int:
    """Catch everything and go on."""
    try:  # noqa: SIM105
        await wait()
    except:  # noqa: E722
        pass
    return 1


async def returns_in_finally(wait: Callable[[], Awaitable[object]]) -> int:
    """Return where nothing may."""
    try:
        await wait()
    finally:
        return 1  # noqa: B012


async def raises_another(wait: Callable[[], Awaitable[object]]) -> int:
    """Turn it into an error."""
    try:
        await wait()
    except BaseException as exc:
        raise RuntimeError("unexpected") from exc
    return 1


async def raises_in_finally(wait: Callable[[], Awaitable[object]]) -> int:
    """Fail while cleaning up."""
    try:
        await wait()
    finally:
        raise RuntimeError("cleaning up")


async def retries_by_hand(wait: Callable[[], Awaitable[object]]) -> int:
    """Try three times."""
    for _ in range(3):
        try:
            await wait()
        except BaseException:  # noqa: BLE001
            continue
    return 1


async def in_tasks(wait: Callable[[], Awaitable[object]]) -> int:
    """Swallow it in another task."""

    async def task() -> None:
        await suppresses(wait)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(task)
    return 1


async def gathers(wait: Callable[[], Awaitable[object]]) -> int:
    """Gather exceptions as results."""
    await asyncio.gather(wait(), return_exceptions=True)
    return 1


SWALLOWERS = [
    *(suppresses, bare_except, returns_in_finally, raises_another, raises_in_finally),
    *(retries_by_hand, in_tasks, gathers),
]


@pytest.mark.parametrize("stored", [True, False], ids=["store", "state"])
@pytest.mark.parametrize("swallower", SWALLOWERS)
@pytest.mark.parametrize("who", ["itself", "function", "child", "call", "grandchild"])
async def test_a_swallowed_signal_is_misuse(
    swallower: Callable[[Any], Awaitable[int]],
    who: str,
    stored: bool,
    anyio_backend_name: str,
) -> None:
    """A body that goes on after a signal is told so, and nothing of its outcome is recorded.

    Corrected code goes on without a recover.
    """
    if swallower is gathers and anyio_backend_name == "trio":
        pytest.skip("gather is asyncio's")
    correct = False

    async def waits(s: Step) -> int:
        if not correct:
            s.pending(after=5)
        return 1

    async def between(s: Step) -> int:
        return await s.do("w", waits)

    def plain() -> int:
        if not correct:
            asteps.pending(after=5)
        return 1

    async def body(s: Step) -> int:
        async def wait() -> object:
            if who == "itself":
                return await waits(s)
            if who == "function":
                return plain()
            if who == "call":
                return await s.call("c", plain)
            return await s.do("c", waits if who == "child" else between)

        if correct:
            await wait()
            return 1
        return await swallower(wait)

    async def root(s: Step) -> int:
        return await s.do("p", body)

    store, state, clock = MemoryStore(), State("r"), FakeClock()
    where: dict[str, Any] = {"store": store, "id": "x"} if stored else {"state": state}
    with pytest.raises(UsageError, match="'p' swallowed the signal that ends a pass"):
        await asteps.reconcile(root, **where, clock=clock)
    found = await asteps.load_state(store, "x") if stored else state
    assert found is not None
    outline = came_to(found)
    assert outline[""] in ("pending", "proceeding")
    assert outline.get("p", "proceeding") in ("pending", "proceeding")
    correct = True
    clock.advance(10)
    outcome = await asteps.reconcile(root, **where, clock=clock)
    assert isinstance(outcome, Done)
    assert outcome.value == 1


@pytest.mark.parametrize("swallower", SWALLOWERS)
@pytest.mark.parametrize("kind", ["async", "thread", "thread's awaitable"])
async def test_a_signal_swallowed_in_a_call(
    swallower: Callable[[Any], Awaitable[int]], kind: str, anyio_backend_name: str
) -> None:
    """The same holds for a function that is given no step, in a worker thread too."""
    if swallower is gathers and anyio_backend_name == "trio":
        pytest.skip("gather is asyncio's")
    if kind == "thread" and swallower in (gathers, in_tasks):
        pytest.skip("there are no tasks in a thread")

    async def waits() -> None:
        asteps.pending(after=5)

    async def asynchronous() -> int:
        return await swallower(waits)

    def sync() -> int:
        try:
            swallower(waits).__await__().send(None)
        except StopIteration as stop:
            return int(stop.value)
        raise AssertionError("unreachable")

    functions: dict[str, Callable[[], Any]] = {
        "async": asynchronous,
        "thread": sync,
        "thread's awaitable": lambda: asynchronous(),  # noqa: PLW0108
    }

    async def root(s: Step) -> None:
        await s.call("x", functions[kind])

    state = State("r")
    with pytest.raises(UsageError, match="swallowed the signal that ends a pass"):
        await asteps.reconcile(root, state=state, clock=FakeClock())
    assert came_to(state) == {"": "proceeding", "x": "proceeding"}


async def test_a_signal_swallowed_by_the_root() -> None:
    """It holds for the root, and for the block of an `open_run`."""

    async def root(s: Step) -> int:
        with suppress(BaseException):
            await s.call("x", wait_here)
        return 5

    state = State("r")
    with pytest.raises(UsageError, match=r"the body of .*the run.* swallowed the signal"):
        await asteps.reconcile(root, state=state)
    assert not state.done

    async def block(state: State) -> None:
        async with asteps.open_run("inline", state=state) as s:
            with suppress(BaseException):
                await s.call("x", wait_here)

    state = State("r")
    with pytest.raises(UsageError, match="swallowed the signal"):
        await block(state)
    assert not state.done


async def test_signals_are_level_triggered() -> None:
    """After a swallowed signal every step of that body raises it again, and no body begins."""
    ran: list[str] = []
    signals: list[BaseException] = []

    async def note(s: Step) -> None:
        ran.append(s.path)

    async def quick(name: str) -> None:
        ran.append(name)

    async def body(s: Step, who: str) -> None:
        uses: list[Callable[[], Awaitable[Any]]] = [
            lambda: s.do("first", one),
            lambda: s.do("a", note),
            lambda: s.call("b", quick, "b"),
            lambda: s.do("c", note, timeout=5),
            lambda: s.call("d", wait_here),
            lambda: s.save_info(5),
        ]
        await s.do("first", one)
        try:
            if who == "itself":
                s.pending(after=5)
            else:
                await s.call("w", wait_here)
        except BaseException as exc:  # noqa: BLE001
            signals.append(exc)
        for use in uses[1:]:
            try:
                await use()
            except BaseException as exc:  # noqa: BLE001
                signals.append(exc)

    for who in ("itself", "child"):
        ran.clear()
        signals.clear()

        async def root(s: Step, who: str = who) -> None:
            await s.do("p", body, who)

        state = State("r")
        with pytest.raises(UsageError, match="'p' swallowed the signal"):
            await asteps.reconcile(root, state=state, clock=FakeClock())
        assert ran == []
        assert len(signals) == 6
        assert not any(isinstance(signal, Exception) for signal in signals)
        assert set(came_to(state)) <= {"", "p", "p/first", "p/w"}


async def test_a_signal_that_is_let_through_is_none_of_ours() -> None:
    """Catching a signal to clean up, and raising it again, is what ``finally`` is for."""
    cleaned: list[str] = []

    async def body(s: Step) -> None:
        try:
            await s.call("x", wait_here)
        except BaseException:
            cleaned.append("except")
            raise
        finally:
            cleaned.append("finally")

    async def root(s: Step) -> None:
        await s.do("p", body)

    outcome = await asteps.reconcile(root, clock=FakeClock())
    assert isinstance(outcome, Pending)
    assert cleaned == ["except", "finally"]


async def test_except_exception_sees_no_signal() -> None:
    """What a careful body catches is `StepError`, never the end of a pass."""
    seen: list[Exception] = []

    async def body(s: Step) -> str:
        try:
            await s.call("x", wait_here)
        except Exception as exc:  # noqa: BLE001
            seen.append(exc)
        return "went on"

    async def root(s: Step) -> str:
        return await s.do("p", body)

    assert isinstance(await asteps.reconcile(root, clock=FakeClock()), Pending)
    assert seen == []


async def test_timeouts_and_threads_let_signals_through() -> None:
    """``asyncio.timeout``, ``fail_after``, task groups and shields pass a signal on unharmed."""

    async def body(s: Step) -> None:
        async with anyio.create_task_group():
            with anyio.fail_after(60), anyio.CancelScope(shield=True):
                await s.call("x", wait_here)

    async def root(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(s.do, "p", body)

    outcome = await asteps.reconcile(root, clock=FakeClock())
    assert isinstance(outcome, Pending)
    assert outcome.path == "p/x"


# --- infos ----------------------------------------------------------------------------------------


class CrashError(BaseException):
    """The process dies, as far as the run can tell."""


async def test_save_info_is_durable() -> None:
    """When `save_info` returns, the store has it: a crash right after finds it again."""
    store = MemoryStore()
    seen: list[object] = []

    async def body(s: Step) -> str:
        seen.append(s.info)
        if s.info is None:
            await s.save_info({"task": "t-1", "polls": 0})
            state = await asteps.load_state(store, "x")
            assert state is not None
            seen.append(state.get("p/x").info_as(dict))
            raise CrashError
        return "done"

    async def parent(s: Step) -> str:
        return await s.do("x", body)

    async def root(s: Step) -> str:
        return await s.do("p", parent)

    with pytest.raises(CrashError):
        await asteps.run(root, store=store.client(), id="x")
    assert await asteps.run(root, store=store.client(), id="x") == "done"
    assert seen == [None, {"task": "t-1", "polls": 0}, {"task": "t-1", "polls": 0}]


async def test_an_assigned_info_rides_along() -> None:
    """``s.info = x`` costs no save of its own; it is there with the next one."""
    store = FaultyStore(MemoryStore())
    saves: list[int] = []

    async def body(s: Step) -> None:
        saves.append(len(store.log))
        s.info = 1
        s.info = 2
        saves.append(len(store.log))
        await s.do("child", one)
        state = await asteps.load_state(store, "x")
        assert state is not None
        assert state.get("x").info_as(int) == 2
        s.pending(after=5)

    async def root(s: Step) -> None:
        await s.do("x", body)

    await asteps.reconcile(root, store=store, id="x", clock=FakeClock())
    assert saves[0] == saves[1]


async def test_infos_survive_everything_but_a_reset() -> None:
    """Waits, failures, retries, crashes and recovers keep the info; a reset does not."""
    seen: list[object] = []
    clock, state = FakeClock(), State("r")

    async def body(s: Step) -> None:
        seen.append(s.info)
        s.info = len(seen)
        if len(seen) == 1:
            s.pending(after=1)
        if len(seen) == 2:
            raise CrashError
        if len(seen) == 3:
            raise ConnectionError
        if len(seen) == 4:
            s.fail("for good")

    async def root(s: Step) -> None:
        await s.do("x", body, retry=Retry(delay=1))

    for _ in range(4):
        with suppress(CrashError):
            await asteps.reconcile(root, state=state, clock=clock)
        state = reborn(state)
        clock.advance(2)
    assert state.get("x").failed
    state.recover()
    state = reborn(state)
    assert isinstance(await asteps.reconcile(root, state=state, clock=clock), Done)
    assert seen == [None, 1, 2, 3, 4]
    assert state.get("x").info_as(int) == 5
    state.reset("x")
    assert isinstance(await asteps.reconcile(root, state=state, clock=clock), Done)
    assert seen[-1] is None


async def test_infos_of_the_root_and_as_types() -> None:
    """The root has an info too; `info_as` decodes it, and is ``None`` where there is none."""

    async def root(s: Step) -> list[object]:
        before = [s.info, s.info_as(int)]
        s.info = ["a", 1]
        return [*before, s.info, s.info_as(tuple[str, int]) == ("a", 1)]

    assert await asteps.run(root) == [None, None, ["a", 1], True]


async def test_an_info_of_null_is_an_info() -> None:
    """``None`` may be written down; it is not the same as nothing."""

    async def root(s: Step) -> None:
        await s.save_info(None)
        assert s.info is None

    state = State("r")
    await asteps.run(root, state=state)
    assert bytes(reborn(state).info) == b"null"


# --- tokens ---------------------------------------------------------------------------------------


class Tokens:
    """Bodies that write down their tokens."""

    def __init__(self) -> None:
        self.seen: dict[str, list[str]] = {}
        self.fail_first = False

    async def leaf(self, s: Step) -> None:
        first = s.path not in self.seen
        self.seen.setdefault(s.path, []).append(s.token)
        if first and self.fail_first:
            raise ConnectionError

    async def branch(self, s: Step, names: list[str]) -> None:
        self.seen.setdefault(s.path, []).append(s.token)
        for name in names:
            foretold = s.token_for(name)
            before = len(self.seen.get(f"{s.path}/{name}", []))
            await s.do(name, self.leaf, retry=Retry(delay=1))
            assert s.token_for(name) == foretold
            assert set(self.seen[f"{s.path}/{name}"][before:]) <= {foretold}

    async def root(self, s: Step, names: list[str]) -> None:
        self.seen.setdefault("", []).append(s.token)
        await s.do("p", self.branch, names)
        await s.do("q", self.branch, names)


async def test_tokens_differ_by_step_and_run() -> None:
    """Every step of every run has another token: 32 hexadecimal digits."""
    tokens: list[str] = []
    for id in ("one", "two"):
        world = Tokens()
        await asteps.run(world.root, ["a", "b"], store=MemoryStore(), id=id)
        tokens += [token for seen in world.seen.values() for token in seen]
    assert len(tokens) == len(set(tokens)) == 14
    assert all(len(token) == 32 and int(token, 16) >= 0 for token in tokens)


async def test_tokens_stay_the_same() -> None:
    """A step's token is the same on every attempt, in every pass and process, after a recover."""
    world, store, clock = Tokens(), MemoryStore(), FakeClock()
    world.fail_first = True

    async def root(s: Step, names: list[str]) -> None:
        await world.root(s, names)
        if len(world.seen[""]) < 4:
            s.pending(after=1)
        raise ConnectionError

    for recover in (False, False, False, False, False, True):
        with suppress(StepError):
            await asteps.reconcile(
                root, ["a"], store=store.client(), id="x", clock=clock, recover=recover
            )
        clock.advance(5)
    assert {path: len(set(seen)) for path, seen in world.seen.items()} == dict.fromkeys(
        ["", "p", "p/a", "q", "q/a"], 1
    )
    assert len(world.seen[""]) > 4
    assert len(world.seen["p/a"]) == 2


async def test_tokens_change_with_a_reset() -> None:
    """After a reset a step and all below it have new tokens; parents and siblings keep theirs."""
    world, state = Tokens(), State("r")
    await asteps.run(world.root, ["a", "b"], state=state)
    state.reset("p")
    await asteps.run(world.root, ["a", "b"], state=state)
    changed = {path for path, seen in world.seen.items() if len(set(seen)) > 1}
    assert changed == {"p", "p/a", "p/b"}
    state.reset("q/a")
    await asteps.run(world.root, ["a", "b"], state=reborn(state))
    changed = {path for path, seen in world.seen.items() if len(set(seen)) > 1}
    assert changed == {"p", "p/a", "p/b", "q/a"}
    assert len(set(world.seen["q/a"])) == 2
    state = reborn(state)
    state.reset("q/a")
    state.reset("q/a")
    await asteps.run(world.root, ["a", "b"], state=state)
    assert len(set(world.seen["q/a"])) == 3
    state.reset("")
    await asteps.run(world.root, ["a", "b"], state=state)
    assert all(seen[-1] not in seen[:-1] for seen in world.seen.values())


async def test_tokens_of_a_run_that_was_deleted() -> None:
    """A run that is begun again under the same id after a delete has other tokens."""
    world, store = Tokens(), MemoryStore()
    for _ in range(2):
        await asteps.run(world.root, ["a"], store=store, id="x")
        await asteps.delete_run(store, "x")
    assert {len(set(seen)) for seen in world.seen.values()} == {2}


async def test_tokens_for_steps_that_are_not_yet() -> None:
    """`token_for` foretells a child's token, of any name that a step may have."""
    seen: dict[str, str] = {}

    async def leaf(s: Step) -> None:
        seen[s.name] = s.token

    async def root(s: Step) -> dict[str, str]:
        names = ["a", "a/b", "~", "\u00fc"]
        foretold = {name: s.token_for(name) for name in names}
        for name in names:
            await s.do(name, leaf)
        return foretold

    assert await asteps.run(root) == seen
    assert len(set(seen.values())) == 4

    async def bad(s: Step, name: Any) -> None:
        with suppress(Exception):
            s.token_for(name)

    for name in ("", "$end", "x" * 201, 5):
        with pytest.raises(UsageError, match="name"):
            await asteps.run(bad, name, name="n")


async def test_names_that_join_alike_have_different_tokens() -> None:
    """``a/b`` below the root and ``b`` below ``a`` are different steps."""
    seen: dict[str, str] = {}

    async def leaf(s: Step) -> None:
        seen[s.path] = s.token

    async def branch(s: Step) -> None:
        await s.do("b", leaf)

    async def root(s: Step) -> None:
        await s.do("a/b", leaf)
        await s.do("a", branch)
        await s.do("a~1b", leaf)

    await asteps.run(root)
    assert len(seen) == len(set(seen.values())) == 3


async def test_a_rename_keeps_tokens() -> None:
    """A renamed step and what is below it keep their tokens, however often it is renamed."""
    seen: list[tuple[str, str]] = []

    async def leaf(s: Step) -> None:
        seen.append((s._parent.token if s._parent else "", s.token))
        s.pending(after=1)

    async def branch(s: Step, name: str) -> None:
        await s.do(name, leaf)

    async def root(s: Step, parent: str, name: str) -> None:
        await s.do(parent, branch, name)

    clock, state = FakeClock(), State("r")
    for names, renames in (
        (("p", "a"), [("p/a", "z")]),
        (("p", "z"), [("p", "q"), ("q/z", "y")]),
        (("q", "y"), [("q/y", "a"), ("q", "p")]),
        (("p", "a"), []),
    ):
        outcome = await asteps.reconcile(root, *names, state=state, clock=clock)
        assert isinstance(outcome, Pending)
        assert outcome.path == "/".join(names)
        assert outcome.vanished == ()
        for path, name in renames:
            state.rename(path, name)
        state = reborn(state)
        clock.advance(2)
    assert len(seen) == 4
    assert len(set(seen)) == 1


async def test_the_token_of_a_new_step_under_an_old_name() -> None:
    """What runs under a renamed sibling's old name keeps its own token from then on."""
    seen: dict[str, list[str]] = {}

    async def leaf(s: Step) -> None:
        seen.setdefault(s.name, []).append(s.token)

    async def root(s: Step, names: list[str], wait: bool) -> None:
        foretold = [s.token_for(name) for name in names]
        for name in names:
            await s.do(name, leaf)
        assert foretold == [seen[name][-1] for name in names]
        if wait:
            s.pending(after=1)

    clock, state = FakeClock(), State("r")

    async def once(names: list[str]) -> None:
        nonlocal state
        state = reborn(state)
        clock.advance(2)
        await asteps.reconcile(root, names, True, state=state, clock=clock)

    await once(["a"])
    state.rename("a", "b")
    seen["b"] = seen.pop("a")
    await once(["a", "b"])
    state.rename("a", "c")
    seen["c"] = seen.pop("a")
    await once(["c", "a", "b"])
    assert len({tokens[-1] for tokens in seen.values()}) == len(seen) == 3
    state.reset("a")
    await once(["a", "b", "c"])
    assert len(set(seen["a"])) == 2
    assert {len(seen["b"]), len(seen["c"])} == {1}


async def test_why_may_be_any_text() -> None:
    """What a step says it waits for cannot break the tree, whatever characters it has."""
    for keywords in ({"state": State("r")}, {"store": MemoryStore(), "id": "r"}):

        async def body(s: Step) -> None:
            s.pending(after=5, why="\ud800" + "x" * 10_000)

        async def root(s: Step) -> None:
            await s.do("x", body)

        outcome = await asteps.reconcile(root, **keywords)
        assert isinstance(outcome, asteps.Pending)
        assert outcome.why.startswith("\\ud800x")
        assert len(outcome.why) < 5_000
        assert State.decode(outcome.state.encode()).get("x").pending
