"""Retries and timeouts: counted in the tree, the same in one process and over many."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from clocks import FakeClock
from hypothesis import given
from hypothesis import strategies as st

import asteps
from asteps import Done, Failed, Pending, Retry, State, Step, StepError, UsageError
from asteps.stores.memory import MemoryStore

# --- helpers --------------------------------------------------------------------------------------

START = FakeClock().now()
PLAIN = Retry(jitter=0)  # attempts=3, delay=1, factor=2


class FlakyError(ConnectionError):
    """An error that goes away."""


class World:
    """A clock, and what bodies wrote down of themselves: what they did, when, at which attempt."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.log: list[tuple[str, int, float]] = []

    def note(self, s: Step) -> int:
        """Write it down; the number of times that this step has."""
        self.log.append((s.path, s.attempt, self.clock.now() - START))
        return sum(1 for path, _, _ in self.log if path == s.path)


Body = Callable[[Step, World], Awaitable[Any]]


async def in_place(root: Body) -> tuple[object, World, State]:
    """The result or error of a run that waits in place."""
    world, state = World(), State("r")
    outcome = await asteps.reconcile(
        root, world, state=state, clock=world.clock, max_wait=10_000_000
    )
    assert not isinstance(outcome, Pending)
    return _end(outcome), world, state


async def in_passes(root: Body) -> tuple[object, World, State]:
    """The same, with a process of its own for each pass."""
    world, data = World(), b""
    for _ in range(100):
        state = State.decode(data) if data else State("r")
        outcome = await asteps.reconcile(root, world, state=state, clock=world.clock)
        data = state.encode()
        if not isinstance(outcome, Pending):
            return _end(outcome), world, State.decode(data)
        world.clock.advance(outcome.after)
    raise AssertionError("it never ends")


def _end(outcome: Done[Any] | Failed) -> object:
    if isinstance(outcome, Done):
        return outcome.value
    error = outcome.error
    while error.errors:
        (error,) = error.errors
    return (error.path, error.failure.kind, error.failure.message)


async def both_ways(root: Body) -> tuple[object, list[tuple[str, int, float]]]:
    """What a run comes to, and its log: the same whether it waits in place or between passes."""
    here, world, _ = await in_place(root)
    there, other, _ = await in_passes(root)
    assert here == there
    assert world.log == other.log
    assert world.clock.now() == other.clock.now()
    return here, world.log


# --- the arithmetic -------------------------------------------------------------------------------

seconds = st.floats(0, 1e7, allow_nan=False)
policies = st.builds(
    Retry,
    attempts=st.integers(1, 10**6),
    delay=seconds,
    factor=st.floats(1, 1e6),
    max_delay=seconds,
    jitter=st.floats(0, 1),
)


@given(policies, st.integers(1, 10**6), st.floats(0, 1))
def test_delays_are_within_bounds(retry: Retry, attempt: int, chance: float) -> None:
    """A delay is ``min(max_delay, delay * factor ** (n - 1))``, and ``jitter`` more or less."""
    assert isinstance(retry.delay, float)
    assert isinstance(retry.max_delay, float)
    try:
        grown = retry.delay * retry.factor ** (attempt - 1)
    except OverflowError:
        grown = math.inf if retry.delay else 0
    plain = min(retry.max_delay, grown)
    got = retry.delay_after(attempt, chance)
    assert 0 <= plain * (1 - retry.jitter) <= got * (1 + 1e-12) + 1e-300
    assert got <= plain * (1 + retry.jitter) * (1 + 1e-12)
    assert retry.delay_after(attempt, 0.5) == pytest.approx(plain, rel=1e-12)


@given(policies, st.integers(1, 1_000))
def test_delays_grow(retry: Retry, attempt: int) -> None:
    """Without chance no delay is shorter than the one before."""
    assert retry.delay_after(attempt, 0.5) <= retry.delay_after(attempt + 1, 0.5)


def test_no_delay_is_no_delay() -> None:
    """``delay=0`` tries again at once, also at the ten thousandth attempt."""
    retry = Retry(attempts=10_000, delay=0)
    assert {retry.delay_after(attempt, 1.0) for attempt in (1, 2, 1_024, 1_025, 9_999)} == {0}


def test_delays_by_hand() -> None:
    """The defaults, and durations as ``timedelta``."""
    assert [PLAIN.delay_after(n, 0.9) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    slow = Retry(delay=timedelta(minutes=1), factor=1, max_delay=timedelta(seconds=30), jitter=0)
    assert slow.delay_after(1, 0) == 30
    half = Retry(delay=10, jitter=0.5)
    assert [half.delay_after(1, chance) for chance in (0, 0.5, 1)] == [5, 10, 15]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"attempts": 0}, r"Retry\(attempts=0\): at least 1 is needed"),
        ({"attempts": 2.0}, r"Retry\(attempts=2\.0\): a whole number is needed"),
        ({"attempts": True}, "a whole number is needed"),
        ({"delay": -1}, r"Retry\(delay=…\) is -1; it must be from 0"),
        ({"delay": math.nan}, "must be from 0"),
        ({"delay": "1"}, "is seconds or a timedelta, not str"),
        ({"delay": True}, "is seconds or a timedelta, not bool"),
        ({"max_delay": math.inf}, "at most a year of seconds"),
        ({"max_delay": timedelta(days=400)}, "at most a year of seconds"),
        ({"factor": 0.5}, r"Retry\(factor=0\.5\): a number from 1 is needed"),
        ({"factor": math.inf}, "a number from 1 is needed"),
        ({"factor": math.nan}, "a number from 1 is needed"),
        ({"factor": "2"}, "a number from 1 is needed"),
        ({"jitter": 1.5}, r"Retry\(jitter=1\.5\): a share from 0 to 1 is needed"),
        ({"jitter": -0.1}, "a share from 0 to 1"),
        ({"jitter": math.nan}, "a share from 0 to 1"),
        ({"jitter": "0.1"}, "a share from 0 to 1"),
        ({"on": 5}, "an exception type, a tuple of them or a predicate"),
        ({"on": int}, "an exception type, a tuple"),
        ({"on": (ValueError, int)}, "an exception type, a tuple"),
        ({"on": [ValueError]}, "an exception type, a tuple"),
        ({"on": (ValueError, lambda exc: True)}, "an exception type, a tuple"),
    ],
    ids=str,
)
def test_bad_policies(keywords: dict[str, Any], message: str) -> None:
    """A value out of its range is refused when the policy is made, by name."""
    with pytest.raises(UsageError, match=message):
        Retry(**keywords)


def test_policies_are_frozen() -> None:
    """A policy can be shared."""
    with pytest.raises(AttributeError):
        PLAIN.attempts = 5  # type: ignore[misc]
    assert Retry(jitter=0) == PLAIN


# --- attempts -------------------------------------------------------------------------------------


async def test_attempts_are_counted_over_passes_and_processes() -> None:
    """Attempts and the next try's time are in the tree: every process goes on counting."""

    async def body(s: Step, world: World) -> int:
        if world.note(s) < 3:
            raise FlakyError(f"no {s.attempt}")
        return s.attempt

    async def root(s: Step, world: World) -> int:
        return await s.do("x", body, world, retry=PLAIN)

    assert await both_ways(root) == (3, [("x", 1, 0), ("x", 2, 1), ("x", 3, 3)])


async def test_a_retrying_step_is_pending() -> None:
    """Between two attempts a step is pending with its last error, and keeps what it needs to."""

    async def body(s: Step, world: World) -> None:
        world.note(s)
        s.info = s.attempt
        raise FlakyError("no luck")

    async def root(s: Step, world: World) -> None:
        await s.do("x", body, world, retry=PLAIN)

    world, state = World(), State("r")
    outcome = await asteps.reconcile(root, world, state=state, clock=world.clock)
    assert isinstance(outcome, Pending)
    assert (outcome.after, outcome.path, outcome.why) == (1, "x", "no luck")
    node = State.decode(state.encode()).get("x")
    assert (node.pending, node.failed, node.done, node.proceeding) == (True, False, False, False)
    assert (node.attempt, node.errs, node.info_as(int)) == (2, ["no luck"], 1)
    assert node.wake_at is not None
    assert node.wake_at.timestamp() == START + 1
    assert state.pending

    world.clock.advance(0.5)
    before = state.encode()
    early = await asteps.reconcile(root, world, state=state, clock=world.clock)
    assert isinstance(early, Pending)
    assert (early.after, early.path, early.why) == (0.5, "x", "no luck")
    assert len(world.log) == 1
    assert state.encode() == before


async def test_the_last_failure_stays() -> None:
    """When the attempts are used up the step has failed, with its last error, for good."""

    async def body(s: Step, world: World) -> None:
        raise FlakyError(f"no {world.note(s)}")

    async def root(s: Step, world: World) -> None:
        await s.do("x", body, world, retry=PLAIN)

    end, log = await both_ways(root)
    assert end == ("x", "raised", "no 3")
    assert log == [("x", 1, 0), ("x", 2, 1), ("x", 3, 3)]


async def test_recover_begins_to_count_again() -> None:
    """After a recover there are as many attempts as at first."""

    async def body(s: Step, world: World) -> None:
        world.note(s)
        raise FlakyError

    async def root(s: Step, world: World) -> None:
        await s.do("x", body, world, retry=PLAIN)

    _, world, state = await in_passes(root)
    state.recover()
    assert state.get("x").attempt == 1
    outcome = await asteps.reconcile(root, world, state=state, clock=world.clock, max_wait=10)
    assert isinstance(outcome, Failed)
    assert [attempt for _, attempt, _ in world.log] == [1, 2, 3, 1, 2, 3]


async def test_a_success_after_retries_leaves_no_error() -> None:
    """A step that was done in the end says nothing of its failures but their number."""

    async def body(s: Step, world: World) -> int:
        if world.note(s) == 1:
            raise FlakyError
        return 5

    async def root(s: Step, world: World) -> int:
        return await s.do("x", body, world, retry=PLAIN)

    _, _, state = await in_passes(root)
    node = state.get("x")
    assert (node.done, node.errs, node.failure, node.attempt, node.wake_at) == (
        *(True, None, None),
        *(2, None),
    )


async def test_without_retry_there_is_none() -> None:
    """A step without a policy is run once; one attempt is the same."""

    async def body(s: Step, world: World) -> None:
        world.note(s)
        raise FlakyError("once")

    async def root(s: Step, world: World) -> None:
        await s.do("x", body, world, retry=Retry(attempts=1))

    assert await both_ways(root) == (("x", "raised", "once"), [("x", 1, 0)])


async def test_retries_of_a_call() -> None:
    """`call` is retried as `do` is, async or in a worker thread."""
    calls: list[str] = []

    def sync() -> int:
        calls.append("sync")
        if calls.count("sync") == 1:
            raise FlakyError
        return 1

    async def quick() -> int:
        calls.append("quick")
        if calls.count("quick") == 1:
            raise FlakyError
        return 2

    async def root(s: Step) -> list[int]:
        return [await s.call(sync, retry=PLAIN), await s.call(quick, retry=PLAIN)]

    clock = FakeClock()
    assert await asteps.run(root, clock=clock) == [1, 2]
    assert calls == ["sync", "sync", "quick", "quick"]
    assert clock.slept == [1, 1]


async def test_a_policy_may_change_between_passes() -> None:
    """Changed code decides by its own policy, at the attempt that the tree has counted to."""

    async def body(s: Step, world: World) -> None:
        world.note(s)
        raise FlakyError

    async def root(s: Step, world: World, retry: Retry) -> None:
        await s.do("x", body, world, retry=retry)

    world, state = World(), State("r")
    first = await asteps.reconcile(root, world, PLAIN, state=state, clock=world.clock)
    assert isinstance(first, Pending)
    world.clock.advance(1)
    two = Retry(attempts=2, jitter=0)
    second = await asteps.reconcile(root, world, two, state=state, clock=world.clock)
    assert isinstance(second, Failed)
    assert [attempt for _, attempt, _ in world.log] == [1, 2]


async def test_jitter_stays_in_its_share() -> None:
    """The engine's own chance keeps to the policy."""

    async def body(s: Step) -> None:
        raise FlakyError

    async def root(s: Step) -> None:
        for i in range(20):
            try:
                await s.do(f"x{i}", body, retry=Retry(attempts=2, delay=50, jitter=0.2))
            except StepError:
                continue

    clock = FakeClock()
    await asteps.run(root, clock=clock)
    assert len(clock.slept) == 20
    assert all(39.999 < delay < 60.001 for delay in clock.slept)
    assert len(set(clock.slept)) > 1


# --- what is retried ------------------------------------------------------------------------------


async def raising(s: Step, exc: Exception) -> None:
    """Raise this."""
    raise exc


async def child_raising(s: Step, exc: Exception) -> None:
    """Let a child raise this."""
    await s.do("child", raising, exc)


@pytest.mark.parametrize("body", [raising, child_raising])
@pytest.mark.parametrize(
    ("on", "tried"),
    [
        (Exception, 2),
        (ConnectionError, 2),
        (FlakyError, 2),
        (TimeoutError, 1),
        ((ValueError, OSError), 2),
        ((ValueError, KeyError), 1),
        ((), 1),
        (lambda exc: "luck" in str(exc), 2),
        (lambda exc: False, 1),
    ],
    ids=["all", "base", "exact", "other", "tuple", "other tuple", "none", "yes", "no"],
)
async def test_on(body: Callable[[Step, Exception], Awaitable[None]], on: Any, tried: int) -> None:
    """``on`` is a type, a tuple or a predicate; types match what a StepError records too."""
    clock = FakeClock()

    async def root(s: Step) -> None:
        await s.do("x", body, FlakyError("no luck"), retry=Retry(attempts=2, on=on))

    outcome = await asteps.reconcile(root, clock=clock, max_wait=10)
    assert isinstance(outcome, Failed)
    assert outcome.state.get("x").attempt == tried
    assert len(clock.slept) == tried - 1


async def test_on_sees_the_exception() -> None:
    """A predicate is given what the body raised: of a child's failure, the `StepError`."""
    seen: list[BaseException] = []

    def on(exc: BaseException) -> bool:
        seen.append(exc)
        return False

    async def root(s: Step) -> None:
        for i, body in enumerate((raising, child_raising)):
            try:
                await s.do(f"x{i}", body, FlakyError("no luck"), retry=Retry(on=on))
            except StepError:
                continue

    await asteps.run(root)
    flaky, error = seen
    assert isinstance(flaky, FlakyError)
    assert isinstance(error, StepError)
    assert (error.path, error.is_a(FlakyError)) == ("x1/child", True)


async def test_a_broken_predicate_is_misuse() -> None:
    """A predicate that raises ends the pass with what it raised; the step has not failed."""

    def on(exc: BaseException) -> bool:
        raise ZeroDivisionError

    async def root(s: Step, good: bool) -> None:
        await s.do("x", raising, FlakyError(), retry=PLAIN if good else Retry(on=on))

    state = State("r")
    with pytest.raises(UsageError, match=r"step 'x': Retry\(on=…\) raised ZeroDivisionError"):
        await asteps.reconcile(root, False, state=state)
    assert state.get("x").proceeding
    assert isinstance(await asteps.reconcile(root, True, state=state), Pending)


# --- a parent's retry -----------------------------------------------------------------------------


async def test_a_new_attempt_first_recovers_the_causes() -> None:
    """A retried parent is not futile: the children that failed it run again, done ones do not."""

    async def flaky(s: Step, world: World) -> int:
        if world.note(s) == 1:
            raise FlakyError
        return 1

    async def steady(s: Step, world: World) -> int:
        world.note(s)
        return 2

    async def middle(s: Step, world: World) -> int:
        world.note(s)
        return await s.do("steady", steady, world) + await s.do("flaky", flaky, world)

    async def parent(s: Step, world: World) -> int:
        world.note(s)
        return await s.do("middle", middle, world)

    async def root(s: Step, world: World) -> int:
        return await s.do("p", parent, world, retry=Retry(attempts=5, jitter=0))

    end, log = await both_ways(root)
    assert end == 3
    assert log == [
        ("p", 1, 0),
        ("p/middle", 1, 0),
        ("p/middle/steady", 1, 0),
        ("p/middle/flaky", 1, 0),
        ("p", 2, 1),
        ("p/middle", 1, 1),
        ("p/middle/flaky", 1, 1),
    ]


async def test_the_causes_are_recovered_in_the_store() -> None:
    """What a retry recovered is saved with it, whoever goes on."""

    async def flaky(s: Step, world: World) -> None:
        if world.note(s) == 1:
            raise FlakyError
        s.pending(after=100)

    async def parent(s: Step, world: World) -> None:
        await s.do("x", flaky, world)

    async def root(s: Step, world: World) -> None:
        await s.do("p", parent, world, retry=PLAIN)

    world, store = World(), MemoryStore()
    first = await asteps.reconcile(root, world, store=store.client(), id="x", clock=world.clock)
    assert isinstance(first, Pending)
    assert first.path == "p"
    state = await asteps.load_state(store, "x")
    assert state is not None
    assert (state.get("p/x").failed, state.get("p").pending) == (True, True)
    world.clock.advance(1)
    second = await asteps.reconcile(root, world, store=store.client(), id="x", clock=world.clock)
    assert isinstance(second, Pending)
    assert (second.path, second.after) == ("p/x", 100)
    state = await asteps.load_state(store, "x")
    assert state is not None
    assert (state.get("p/x").failed, state.get("p/x").pending, state.get("p").attempt) == (
        *(False, True),
        2,
    )


async def test_handled_failures_are_not_recovered_by_a_retry() -> None:
    """A new attempt takes the branch that the last one took: the fallback, not both."""

    async def primary(s: Step, world: World) -> None:
        world.note(s)
        raise FlakyError

    async def fallback(s: Step, world: World) -> int:
        if world.note(s) == 1:
            raise FlakyError
        return 7

    async def parent(s: Step, world: World) -> int:
        try:
            await s.do("primary", primary, world)
        except StepError:
            return await s.do("fallback", fallback, world)
        return 0

    async def root(s: Step, world: World) -> int:
        return await s.do("p", parent, world, retry=PLAIN)

    end, log = await both_ways(root)
    assert end == 7
    assert log == [("p/primary", 1, 0), ("p/fallback", 1, 0), ("p/fallback", 1, 1)]


async def test_retries_multiply() -> None:
    """Each attempt of a parent gives its recovered children all their attempts again."""

    async def body(s: Step, world: World) -> None:
        world.note(s)
        raise FlakyError("never")

    async def parent(s: Step, world: World) -> None:
        await s.do("x", body, world, retry=Retry(attempts=2, delay=1, jitter=0))

    async def root(s: Step, world: World) -> None:
        await s.do("p", parent, world, retry=Retry(attempts=2, delay=10, jitter=0))

    end, log = await both_ways(root)
    assert end == ("p/x", "raised", "never")
    assert log == [("p/x", 1, 0), ("p/x", 2, 1), ("p/x", 1, 11), ("p/x", 2, 12)]


async def test_tokens_and_infos_survive_a_retry() -> None:
    """A new attempt has the token and the info of the last one."""
    seen: list[tuple[str, Any]] = []

    async def body(s: Step, world: World) -> None:
        seen.append((s.token, s.info))
        s.info = {"task": world.note(s)}
        if len(seen) < 3:
            raise FlakyError

    async def root(s: Step, world: World) -> None:
        await s.do("x", body, world, retry=PLAIN)

    await in_passes(root)
    assert len({token for token, _ in seen}) == 1
    assert [info for _, info in seen] == [None, {"task": 1}, {"task": 2}]


# --- timeouts -------------------------------------------------------------------------------------

TOO_LONG = "the attempt took longer than its timeout of {} s"


async def test_work_that_takes_too_long() -> None:
    """A body that works beyond its timeout is cancelled, and its step fails with `TimeoutError`."""
    ends: list[str] = []

    async def body(s: Step, world: World) -> None:
        world.note(s)
        try:
            await world.clock.sleep(1_000)
        finally:
            ends.append("cleaned up")

    async def root(s: Step, world: World) -> None:
        await s.do("x", body, world, timeout=10)

    end, log = await both_ways(root)
    assert end == ("x", "timeout", TOO_LONG.format(10))
    assert log == [("x", 1, 0)]
    assert ends == ["cleaned up"] * 2
    _, world, state = await in_place(root)
    assert world.clock.now() == START + 10
    failure = state.get("x").failure
    assert failure is not None
    assert failure.types[0] == "builtins.TimeoutError"
    assert not failure.final


async def test_work_that_is_quick_enough() -> None:
    """A timeout that is not reached changes nothing; it may be a ``timedelta``."""

    async def body(s: Step, world: World) -> float:
        await world.clock.sleep(59)
        return 5

    async def root(s: Step, world: World) -> float:
        return await s.do("x", body, world, timeout=timedelta(minutes=1))

    assert await both_ways(root) == (5, [])


async def test_waiting_counts() -> None:
    """A step's own waits are part of its timeout: it fails when its time is up, not later."""

    async def body(s: Step, world: World) -> None:
        world.note(s)
        s.pending(after=4, why="soon")

    async def root(s: Step, world: World) -> None:
        await s.do("x", body, world, timeout=10)

    end, log = await both_ways(root)
    assert end == ("x", "timeout", TOO_LONG.format(10))
    assert log == [("x", 1, 0), ("x", 1, 4), ("x", 1, 8)]
    _, world, _ = await in_passes(root)
    assert world.clock.now() == START + 10


async def test_waiting_children_count() -> None:
    """The waits and retries of children are part of a parent's timeout."""

    async def child(s: Step, world: World) -> None:
        if world.note(s) % 2:
            s.pending(after=4)
        raise FlakyError

    async def parent(s: Step, world: World) -> None:
        await s.do("x", child, world, retry=Retry(attempts=9, delay=2, factor=1, jitter=0))

    async def root(s: Step, world: World) -> None:
        await s.do("p", parent, world, timeout=11)

    end, log = await both_ways(root)
    assert end == ("p", "timeout", TOO_LONG.format(11))
    assert log == [("p/x", 1, 0), ("p/x", 1, 4), ("p/x", 2, 6), ("p/x", 2, 10)]


async def test_a_pending_beyond_the_timeout_wakes_at_it() -> None:
    """The pass says to come back when the time is up, by which path and why."""

    async def child(s: Step) -> None:
        s.pending(after=1_000, why="a long wait")

    async def parent(s: Step) -> None:
        await s.do("x", child)

    async def root(s: Step) -> None:
        await s.do("p", parent, timeout=60)

    outcome = await asteps.reconcile(root, clock=FakeClock())
    assert isinstance(outcome, Pending)
    assert (outcome.after, outcome.path, outcome.why) == (60, "p/x", "a long wait")


async def test_over_time_on_entry_fails_before_the_body() -> None:
    """A step found over its time fails without running again, in whatever state it was left."""

    class CrashError(BaseException):
        pass

    async def waits(s: Step, world: World) -> None:
        world.note(s)
        s.pending(after=1)

    async def dies(s: Step, world: World) -> None:
        world.note(s)
        raise CrashError

    async def root(s: Step, world: World) -> None:
        try:
            await s.do("waits", waits, world, timeout=10)
        except StepError as exc:
            world.note(s)
            kinds.append(exc.failure.kind)
        await s.do("dies", dies, world, timeout=100)

    kinds: list[str] = []
    world, state = World(), State("r")
    first = await asteps.reconcile(root, world, state=state, clock=world.clock)
    assert isinstance(first, Pending)
    world.clock.advance(50)
    with pytest.raises(CrashError):
        await asteps.reconcile(root, world, state=state, clock=world.clock)
    state = State.decode(state.encode())
    world.clock.advance(101)
    outcome = await asteps.reconcile(root, world, state=state, clock=world.clock)
    assert isinstance(outcome, Failed)
    assert outcome.error.errors[0].failure.message == TOO_LONG.format(100)
    assert [path for path, _, _ in world.log] == ["waits", "", "dies", ""]
    assert kinds == ["timeout", "timeout"]


async def test_the_timeout_counts_from_the_recorded_start() -> None:
    """An interrupted step has what is left of its time, not all of it again."""

    class CrashError(BaseException):
        pass

    async def body(s: Step, world: World) -> None:
        first = world.note(s) == 1
        await world.clock.sleep(6)
        if first:
            raise CrashError

    async def root(s: Step, world: World) -> None:
        await s.do("x", body, world, timeout=10)

    world, state = World(), State("r")
    with pytest.raises(CrashError):
        await asteps.reconcile(root, world, state=state, clock=world.clock)
    state = State.decode(state.encode())
    outcome = await asteps.reconcile(root, world, state=state, clock=world.clock)
    assert isinstance(outcome, Failed)
    assert outcome.error.is_a(TimeoutError)
    assert world.clock.now() == START + 10
    assert world.log == [("x", 1, 0), ("x", 1, 6)]


@pytest.mark.parametrize("undo", ["recover", "reset"])
async def test_a_new_start_has_all_of_its_time(undo: str) -> None:
    """After a recover or reset the timeout counts from the new start."""

    async def body(s: Step, world: World) -> None:
        await world.clock.sleep(100 if world.note(s) == 1 else 9)

    async def root(s: Step, world: World) -> None:
        await s.do("x", body, world, timeout=10)

    end, world, state = await in_passes(root)
    assert end == ("x", "timeout", TOO_LONG.format(10))
    if undo == "recover":
        state.recover()
    else:
        state.reset("x")
    outcome = await asteps.reconcile(root, world, state=state, clock=world.clock)
    assert isinstance(outcome, Done)


async def test_each_attempt_has_its_time() -> None:
    """A timeout is per attempt: it begins anew with each, and the time between is nobody's."""

    async def body(s: Step, world: World) -> int:
        if world.note(s) < 3:
            await world.clock.sleep(1_000)
        await world.clock.sleep(9)
        return s.attempt

    async def root(s: Step, world: World) -> int:
        return await s.do(
            "x", body, world, timeout=10, retry=Retry(delay=100, jitter=0, max_delay=500)
        )

    assert await both_ways(root) == (3, [("x", 1, 0), ("x", 2, 110), ("x", 3, 320)])


async def test_a_timeout_is_retried_where_the_policy_says_so() -> None:
    """`TimeoutError` is matched by ``on`` like what a body raises."""

    async def body(s: Step, world: World) -> None:
        world.note(s)
        await world.clock.sleep(1_000)

    for on, tried in ((TimeoutError, 3), (OSError, 3), (ValueError, 1)):

        async def root(s: Step, world: World, on: Any = on) -> None:
            await s.do("x", body, world, timeout=10, retry=Retry(on=on, jitter=0))

        end, log = await both_ways(root)
        assert end == ("x", "timeout", TOO_LONG.format(10))
        assert len(log) == tried


async def test_a_pending_of_a_later_attempt() -> None:
    """Waits of a later attempt count from that attempt's start."""

    async def body(s: Step, world: World) -> str:
        calls = world.note(s)
        if calls == 1:
            await world.clock.sleep(8)
            raise FlakyError
        if calls < 4:
            s.pending(after=4)
        return "done"

    async def root(s: Step, world: World) -> str:
        return await s.do("x", body, world, timeout=10, retry=PLAIN)

    assert await both_ways(root) == (
        "done",
        [("x", 1, 0), ("x", 2, 9), ("x", 2, 13), ("x", 2, 17)],
    )


async def test_a_parents_timeout_fails_only_the_parent() -> None:
    """Children that a timeout cuts off are interrupted, not failed, and go on after a recover."""

    async def child(s: Step, world: World) -> int:
        if world.note(s) == 1:
            await world.clock.sleep(1_000)
        return 3

    async def parent(s: Step, world: World) -> int:
        return await s.do("x", child, world)

    async def root(s: Step, world: World) -> int:
        return await s.do("p", parent, world, timeout=10)

    end, world, state = await in_passes(root)
    assert end == ("p", "timeout", TOO_LONG.format(10))
    assert (state.get("p/x").failed, state.get("p/x").proceeding) == (False, True)
    assert state.recover() == ["p", ""]
    outcome = await asteps.reconcile(root, world, state=state, clock=world.clock)
    assert isinstance(outcome, Done)
    assert outcome.value == 3
    assert outcome.state.get("p/x").interruptions == 1


async def test_the_inner_timeout_comes_first() -> None:
    """Of two timeouts the one that is due first decides."""

    async def child(s: Step, world: World) -> None:
        await world.clock.sleep(1_000)

    async def parent(s: Step, world: World, inner: float) -> None:
        await s.do("x", child, world, timeout=inner)

    for inner, outer, path in ((5, 10, "p/x"), (10, 5, "p")):

        async def root(s: Step, world: World, inner: float = inner, outer: float = outer) -> None:
            await s.do("p", parent, world, inner, timeout=outer)

        end, _ = await both_ways(root)
        assert end == (path, "timeout", TOO_LONG.format(5))


async def test_a_sync_function_ends_late_and_its_value_counts() -> None:
    """A worker thread is never abandoned: what it returns after the timeout is recorded as done."""
    clock = FakeClock()
    copies: list[str] = []

    def slow() -> str:
        copies.append("began")
        anyio.from_thread.run_sync(clock.advance, 60)
        copies.append("ended")
        return "late"

    async def root(s: Step) -> str:
        return await s.call(slow, timeout=10, retry=Retry())

    state = State("r")
    assert await asteps.run(root, state=state, clock=clock) == "late"
    assert copies == ["began", "ended"]
    assert state.get("slow").done


async def test_a_sync_function_that_fails_late() -> None:
    """What a worker thread raises after the timeout counts as well."""
    clock = FakeClock()

    def slow() -> None:
        anyio.from_thread.run_sync(clock.advance, 60)
        raise FlakyError("late")

    async def root(s: Step) -> None:
        await s.call(slow, timeout=10)

    outcome = await asteps.reconcile(root, clock=clock)
    assert isinstance(outcome, Failed)
    (error,) = outcome.error.errors
    assert (error.failure.message, error.failure.kind) == ("late", "raised")


async def test_a_body_s_own_timeout_error_is_its_own() -> None:
    """A ``TimeoutError`` that a body raises is a failure like any other."""

    async def body(s: Step) -> None:
        raise TimeoutError("the socket's")

    async def root(s: Step) -> None:
        await s.do("x", body, timeout=10)

    outcome = await asteps.reconcile(root, clock=FakeClock())
    assert isinstance(outcome, Failed)
    (error,) = outcome.error.errors
    assert (error.failure.message, error.failure.kind) == ("the socket's", "raised")


async def test_a_done_step_does_not_run_out_of_time() -> None:
    """A timeout is for steps that run: a recorded result stays, however long ago it was made."""

    async def body(s: Step) -> int:
        return 1

    async def root(s: Step) -> int:
        return await s.do("x", body, timeout=1)

    async def outer(s: Step, wait: bool) -> int:
        got = await root(s)
        if wait:
            s.pending(after=1_000)
        return got

    clock, state = FakeClock(), State("r")
    assert isinstance(await asteps.reconcile(outer, True, state=state, clock=clock), Pending)
    clock.advance(1_001)
    assert isinstance(await asteps.reconcile(outer, False, state=state, clock=clock), Done)


@pytest.mark.parametrize(
    ("timeout", "message"),
    [
        (0, r"timeout= is 0; it must be above 0"),
        (-1, "must be above 0"),
        (math.nan, "must be above 0"),
        (math.inf, "at most a year"),
        ("5", "timeout= is seconds or a timedelta, not str"),
        (True, "timeout= is seconds or a timedelta, not bool"),
        (timedelta(0), "must be above 0"),
    ],
    ids=str,
)
async def test_bad_timeouts(timeout: Any, message: str) -> None:
    """A timeout is finite and above 0, in seconds or as a ``timedelta``."""

    async def body(s: Step) -> None:
        raise AssertionError("must not run")

    async def root(s: Step) -> None:
        await s.do("x", body, timeout=timeout)

    with pytest.raises(UsageError, match=message):
        await asteps.run(root)


async def test_fail_after_bounds_only_this_pass() -> None:
    """A cancel scope around ``s.do`` interrupts the step; it runs again, at the same attempt."""
    seen: list[tuple[int, int]] = []

    async def body(s: Step) -> int:
        seen.append((s.attempt, s.interruptions))
        if len(seen) == 1:
            await anyio.sleep_forever()
        await checkpoint()
        return 4

    async def root(s: Step, bounded: bool) -> int:
        if not bounded:
            return await s.do("x", body, retry=PLAIN)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await s.do("x", body, retry=PLAIN)
        return s.pending(after=1)

    state, clock = State("r"), FakeClock()
    assert isinstance(await asteps.reconcile(root, True, state=state, clock=clock), Pending)
    assert state.get("x").proceeding
    clock.advance(2)
    outcome = await asteps.reconcile(root, False, state=state, clock=clock)
    assert isinstance(outcome, Done)
    assert outcome.value == 4
    assert seen == [(1, 0), (1, 1)]


async def test_a_second_attempt_has_a_start_of_its_own() -> None:
    """A retried parent that waits for a child is over its time when the stored start says so."""
    clock = FakeClock()
    store = MemoryStore()
    begun: list[int] = []

    async def wait(s: Step) -> None:
        s.pending(after=1_000)

    async def parent(s: Step) -> None:
        begun.append(s.attempt)
        if s.attempt == 1:
            with suppress(StepError):
                await s.do("fails", fails)
            raise ConnectionError
        await s.do("wait", wait)

    async def fails(s: Step) -> None:
        raise ValueError

    async def root(s: Step) -> None:
        await s.do("p", parent, retry=Retry(attempts=2, delay=0), timeout=100)

    outcome: object = None
    for _ in range(6):
        outcome = await asteps.reconcile(root, store=store, id="r", clock=clock)
        clock.advance(40)
    assert isinstance(outcome, asteps.Failed)
    assert outcome.error.is_a(TimeoutError)
    assert begun[0] == 1
    assert set(begun[1:]) == {2}
