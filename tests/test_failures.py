"""Failures: the same on the pass that fails and on every later one, with causes and details."""

from __future__ import annotations

import asyncio
import copy
import pickle
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from clocks import FakeClock

import asteps
from asteps import Done, Failed, Failure, Pending, Retry, State, Step, StepError
from asteps.errors import type_name
from asteps.stores.memory import MemoryStore

# --- helpers --------------------------------------------------------------------------------------


class ThrottledError(ConnectionError):
    """An error of a pretended cloud."""


def names(*kinds: type) -> tuple[str, ...]:
    """What ``Failure.types`` says of these."""
    return tuple(type_name(kind) for kind in kinds)


def facts(error: StepError) -> Any:
    """All that a StepError says, as something to compare."""
    return (error.path, error.failure, str(error), error.origin, [facts(e) for e in error.errors])


def came_to(state: State) -> dict[str, str]:
    """What every step of a tree came to, by path."""
    kinds = ("done", "failed", "pending", "proceeding")
    return {
        path: next((kind for kind in kinds if getattr(node, kind)), "nothing")
        for path, node in state.walk()
    }


def errs(state: State) -> dict[str, list[str]]:
    """The messages of every failed step, by path."""
    return {path: node.errs for path, node in state.walk() if node.errs}


def causes(state: State) -> dict[str, tuple[str, ...]]:
    """What caused each failure, by path."""
    return {path: node.failure.causes for path, node in state.walk() if node.failure}


async def failed(root: Callable[..., Awaitable[Any]], *args: Any, **keywords: Any) -> Failed:
    """One pass that must fail the run."""
    outcome = await asteps.reconcile(root, *args, **keywords)
    assert isinstance(outcome, Failed), outcome
    return outcome


async def throttle(s: Step) -> None:
    """Fail, as clouds do."""
    raise ThrottledError(f"slow down, {s.name}")


async def one(s: Step) -> int:
    """The shortest body."""
    return 1


# --- what a step's error is -----------------------------------------------------------------------


@pytest.mark.parametrize("stored", [True, False], ids=["store", "state"])
@pytest.mark.parametrize("way", ["do", "call", "options"])
async def test_a_failure_is_the_same_on_every_pass(way: str, stored: bool) -> None:
    """Path, failure, origin and errors are equal on all passes; only the first has a cause."""
    seen: list[StepError] = []
    ran: list[str] = []

    async def body(*args: object) -> None:
        ran.append(way)
        raise ThrottledError("slow down")

    async def parent(s: Any) -> None:
        if way == "options":
            await s.do("x", body, timeout=5)
        else:
            await getattr(s, way)("x", body)

    async def root(s: Step) -> None:
        try:
            await s.do("p", parent)
        except StepError as exc:
            seen.append(exc)
        if len(seen) == 1:
            s.pending(after=1)

    clock, state = FakeClock(), State("r")
    where: dict[str, Any] = {"store": MemoryStore(), "id": "x"} if stored else {"state": state}
    assert isinstance(await asteps.reconcile(root, **where, clock=clock), Pending)
    clock.advance(2)
    if not stored:
        where = {"state": State.decode(state.encode())}
    assert isinstance(await asteps.reconcile(root, **where, clock=clock), Done)
    assert ran == [way]

    first, later = seen
    assert facts(first) == facts(later)
    assert (first.path, first.origin) == ("p", "p/x")
    assert str(first) == "step 'p' failed: x: slow down"
    assert first.failure == Failure(
        message="x: slow down",
        types=names(StepError, asteps.AstepsError, Exception, BaseException),
        traceback=first.failure.traceback,
        causes=("x",),
    )
    (inner,) = first.errors
    assert inner.failure == Failure(
        message="slow down",
        types=names(ThrottledError, ConnectionError, OSError, Exception, BaseException),
        traceback=inner.failure.traceback,
    )
    for error in seen:
        for kind in (ThrottledError, ConnectionError, "builtins.OSError", StepError):
            assert error.is_a(kind)
        for other in (TimeoutError, ValueError, "OSError", "ThrottledError"):
            assert not error.is_a(other)
    assert isinstance(first.__cause__, StepError)
    assert isinstance(first.__cause__.__cause__, ThrottledError)
    assert later.__cause__ is None


async def test_a_failed_run_stays_failed() -> None:
    """A failed run raises the same again without entering it, from `run` and `reconcile` alike."""
    entered: list[int] = []

    async def root(s: Step) -> None:
        entered.append(1)
        await s.do("x", throttle)

    store = MemoryStore()
    outcome = await failed(root, store=store, id="x")
    assert facts((await failed(root, store=store, id="x")).error) == facts(outcome.error)
    with pytest.raises(StepError) as raised:
        await asteps.run(root, store=store, id="x")
    assert facts(raised.value) == facts(outcome.error)
    assert str(raised.value) == "the run failed: x: slow down, x"
    assert entered == [1]

    with pytest.raises(StepError) as first:
        await asteps.run(root)
    assert isinstance(first.value.__cause__, StepError)
    assert isinstance(first.value.__cause__.__cause__, ThrottledError)


async def test_errors_survive_pickle_and_copy() -> None:
    """A `StepError` is the same after pickle, copy and deepcopy, children and all."""

    async def root(s: Step) -> None:
        await s.do("x", throttle)

    error = (await failed(root)).error
    for twin in (
        *(pickle.loads(pickle.dumps(error, protocol)) for protocol in range(2, 6)),
        copy.copy(error),
        copy.deepcopy(error),
    ):
        assert type(twin) is StepError
        assert facts(twin) == facts(error)
        assert twin.is_a(ThrottledError)


async def test_messages_are_as_go_has_them() -> None:
    """``errs`` holds one message: of a parent ``child: message``, by the child's bare name."""

    async def leaf(s: Step) -> None:
        raise ValueError("boom")

    async def middle(s: Step) -> None:
        await s.do("a/b", leaf)

    async def root(s: Step) -> None:
        await s.do("m", middle)

    state = (await failed(root)).state
    assert errs(state) == {
        "": ["m: a/b: boom"],
        "m": ["a/b: boom"],
        "m/a~1b": ["boom"],
    }


# --- causes ---------------------------------------------------------------------------------------


async def from_none(s: Step) -> None:
    """Hide where the error came from."""
    try:
        await s.do("x", throttle)
    except StepError:
        raise ValueError("hidden") from None


async def from_e(s: Step) -> None:
    """Say where the error came from."""
    try:
        await s.do("x", throttle)
    except StepError as exc:
        raise ValueError("wrapped") from exc


async def from_chain(s: Step) -> None:
    """Wrap twice."""
    try:
        await from_e(s)
    except ValueError as exc:
        raise KeyError("again") from exc


async def in_handler(s: Step) -> None:
    """Fail while handling."""
    try:
        await s.do("x", throttle)
    except StepError:
        raise KeyError("in the handler")  # noqa: B904


async def escaping(s: Step) -> None:
    """Let the child's failure through."""
    await s.do("x", throttle)


async def fallback_fails(s: Step) -> None:
    """Take the fallback, which fails too."""
    try:
        await s.do("x", throttle)
    except StepError:
        await s.do("y", throttle)


async def handled_then_fails(s: Step) -> None:
    """Deal with one failure, then fail for a reason of its own."""
    with suppress(StepError):
        await s.do("x", throttle)
    raise KeyError("mine")


async def handled_then_child(s: Step) -> None:
    """Deal with one failure, then let another one through."""
    with suppress(StepError):
        await s.do("x", throttle)
    await s.do("y", throttle)


async def in_group(s: Step) -> None:
    """Raise several in a group of groups."""
    found: list[Exception] = []
    for name in ("x", "y", "z"):
        try:
            await s.do(name, throttle)
        except StepError as exc:
            found.append(exc)
    raise ExceptionGroup("all", [found[2], ExceptionGroup("two", [ValueError("v"), found[0]])])


async def in_tasks(s: Step) -> None:
    """Run children in a raw task group."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(s.do, "x", throttle)
        tasks.start_soon(s.do, "y", throttle)


async def no_child(s: Step) -> None:
    """Fail without any child."""
    raise ValueError("alone")


@pytest.mark.parametrize(
    ("body", "expected", "kind", "message"),
    [
        (escaping, ("x",), StepError, "x: slow down, x"),
        (from_e, ("x",), ValueError, "wrapped"),
        (from_chain, ("x",), KeyError, "'again'"),
        (from_none, ("x",), ValueError, "hidden"),
        (in_handler, ("x",), KeyError, "'in the handler'"),
        (fallback_fails, ("y",), StepError, "y: slow down, y"),
        (handled_then_fails, (), KeyError, "'mine'"),
        (handled_then_child, ("y",), StepError, "y: slow down, y"),
        (in_group, ("z", "x"), ExceptionGroup, None),
        (in_tasks, ("x", "y"), ExceptionGroup, None),
        (no_child, (), ValueError, "alone"),
    ],
)
async def test_causes(
    body: Callable[[Step], Awaitable[None]],
    expected: tuple[str, ...],
    kind: type,
    message: str | None,
) -> None:
    """A failed step records the children whose failures it carries; what was handled is history."""

    async def root(s: Step) -> None:
        await s.do("p", body)

    state = State("r")
    outcome = await failed(root, state=state)
    again = await failed(root, state=State.decode(state.encode()))
    assert facts(again.error) == facts(outcome.error)
    (error,) = outcome.error.errors
    if body is in_tasks:
        assert sorted(error.failure.causes) == list(expected)
    else:
        assert error.failure.causes == expected
    assert [e.path for e in error.errors] == [f"p/{name}" for name in error.failure.causes]
    assert error.origin == (error.errors[0].path if expected else "p")
    assert error.failure.types[0] == type_name(kind)
    assert error.is_a(ThrottledError) == bool(expected)
    assert error.is_a(kind)
    if message is not None:
        assert error.failure.message == message


@pytest.mark.parametrize(
    ("body", "recovered"),
    [
        (escaping, ["p/x", "p", ""]),
        (from_none, ["p/x", "p", ""]),
        (fallback_fails, ["p/y", "p", ""]),
        (handled_then_fails, ["p", ""]),
        (in_group, ["p/z", "p/x", "p", ""]),
    ],
)
async def test_recover_follows_the_causes(
    body: Callable[[Step], Awaitable[None]], recovered: list[str]
) -> None:
    """`recover` without a path makes what caused the failure runnable, and leaves history alone."""

    async def root(s: Step) -> None:
        await s.do("p", body)

    state = State("r")
    await failed(root, state=state)
    before = came_to(state)
    assert state.recover() == recovered
    left = {path for path, kind in came_to(state).items() if kind == "failed"}
    assert left == {path for path, kind in before.items() if kind == "failed"} - set(recovered)
    assert state.recover() == []


async def test_a_handled_failure_is_no_failure_of_the_parent() -> None:
    """A parent that handled a child's failure is done, and takes the same branch on every pass."""
    took: list[str] = []

    async def parent(s: Step) -> str:
        try:
            await s.do("x", throttle)
        except StepError as exc:
            took.append("fallback" if exc.is_a(ThrottledError) else "other")
            return await s.call("fallback", str, "instead")
        return "straight"

    async def root(s: Step) -> str:
        got = await parent(s)
        if len(took) == 1:
            s.pending(after=1)
        return got

    state = State("r")
    assert await asteps.run(root, state=state, clock=FakeClock()) == "instead"
    assert took == ["fallback", "fallback"]
    assert came_to(state) == {"": "done", "x": "failed", "fallback": "done"}
    assert state.recover() == []


async def test_siblings_of_another_parent_are_no_cause() -> None:
    """A StepError of a step that is not below the failing one is no cause of it."""
    kept: list[StepError] = []

    async def keeps(s: Step) -> None:
        try:
            await s.do("x", throttle)
        except StepError as exc:
            kept.append(exc)

    async def raises(s: Step) -> None:
        raise kept[0]

    async def root(s: Step) -> None:
        await s.do("p", keeps)
        await s.do("px", raises)

    outcome = await failed(root)
    (error,) = outcome.error.errors
    assert (error.path, error.failure.causes, error.errors) == ("px", (), ())
    assert error.failure.message == "x: slow down, x"


# --- s.fail ---------------------------------------------------------------------------------------


async def gives_up(s: Step) -> None:
    """Fail for good."""
    s.fail("the disk is gone")


async def test_fail_is_final() -> None:
    """`s.fail` fails the step with these words, and no retry of it or an ancestor follows."""
    calls: list[str] = []
    clock = FakeClock()

    async def body(s: Step) -> None:
        calls.append(s.path)
        await gives_up(s)

    async def parent(s: Step) -> None:
        calls.append(s.path)
        await s.do("x", body, retry=Retry())

    async def root(s: Step) -> None:
        await s.do("p", parent, retry=Retry())

    outcome = await failed(root, clock=clock, max_wait=1_000)
    assert calls == ["p", "p/x"]
    assert clock.slept == []
    (parent_error,) = outcome.error.errors
    (error,) = parent_error.errors
    assert error.failure == Failure(
        message="the disk is gone",
        types=names(StepError, asteps.AstepsError, Exception, BaseException),
        traceback=error.failure.traceback,
        final=True,
    )
    assert (parent_error.failure.message, parent_error.failure.final) == (
        "x: the disk is gone",
        True,
    )
    assert errs(outcome.state) == {
        "": ["p: x: the disk is gone"],
        "p": ["x: the disk is gone"],
        "p/x": ["the disk is gone"],
    }


@pytest.mark.parametrize("how", ["from", "from none", "group", "in the handler"])
async def test_a_final_failure_stays_final_when_it_is_wrapped(how: str) -> None:
    """An ancestor that wraps a final failure is not retried either: its cause stays what it is."""
    calls: list[str] = []

    async def body(s: Step) -> None:
        calls.append("x")
        s.fail("for good")

    async def parent(s: Step) -> None:
        try:
            await s.do("x", body)
        except StepError as exc:
            if how == "from":
                raise ValueError from exc
            if how == "from none":
                raise ValueError from None
            if how == "group":
                raise ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [exc])]) from None
            raise ValueError  # noqa: B904

    async def root(s: Step) -> None:
        await s.do("p", parent, retry=Retry())

    outcome = await failed(root, clock=FakeClock(), max_wait=1_000)
    assert calls == ["x"]
    assert causes(outcome.state) == {"": ("p",), "p": ("x",), "p/x": ()}
    assert outcome.error.failure.final


async def test_a_handled_final_failure_does_not_stop_retries() -> None:
    """A parent that handled a final failure and failed for another reason is tried again."""
    calls: list[str] = []

    async def parent(s: Step) -> None:
        try:
            await s.do("x", gives_up)
        except StepError:
            calls.append("handled")
        if len(calls) < 3:
            raise ConnectionError

    async def root(s: Step) -> None:
        await s.do("p", parent, retry=Retry())

    await asteps.run(root, clock=FakeClock())
    assert calls == ["handled"] * 3


@pytest.mark.parametrize(
    ("why", "message"),
    [("", "failed"), ("\ud800", "\\ud800"), ("x" * 100_000, None), (5, "5")],
    ids=["empty", "surrogate", "huge", "number"],
)
async def test_fail_takes_any_words(why: Any, message: str | None) -> None:
    """What `s.fail` is given is kept as far as it can be."""

    async def root(s: Step) -> None:
        s.fail(why)

    state = State("r")
    error = (await failed(root, state=state)).error
    assert State.decode(state.encode()).errs == [error.failure.message]
    if message is None:
        assert len(error.failure.message) < 5_000
    else:
        assert error.failure.message == message


async def test_fail_of_the_root() -> None:
    """The run itself can fail for good."""

    async def root(s: Step) -> None:
        s.fail("no such VM")

    with pytest.raises(StepError) as raised:
        await asteps.run(root)
    assert (raised.value.path, raised.value.origin) == ("", "")
    assert str(raised.value) == "the run failed: no such VM"


# --- what is kept of an exception -----------------------------------------------------------------


class BrokenStrError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class OddStrError(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307


class BrokenReprError(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("exc", "message"),
    [
        (ValueError(), "ValueError"),
        (ValueError(""), "ValueError"),
        (ValueError("\ud83d \x00 \u20ac"), "\\ud83d \x00 \u20ac"),
        (ValueError(b"\xff"), "b'\\xff'"),
        (BrokenStrError("x"), "BrokenStrError"),
        (OddStrError("x"), "OddStrError"),
        (BrokenReprError("words"), "words"),
        (KeyError("k"), "'k'"),
        (StopIteration(5), None),
        (StopAsyncIteration(5), None),
        (RecursionError("deep"), "deep"),
        (MemoryError(), "MemoryError"),
        (
            ExceptionGroup("g", [ValueError("a"), BrokenStrError()]),
            "g; a; BrokenStrError",
        ),
    ],
    ids=[
        *("nothing", "empty", "surrogate", "bytes", "broken str", "odd str", "broken repr", "key"),
        *("stop", "async stop", "recursion", "memory", "group"),
    ],
)
@pytest.mark.parametrize("way", ["do", "call", "thread"])
async def test_any_exception_can_be_recorded(exc: Exception, message: str | None, way: str) -> None:
    """Whatever an exception says, or fails to say, the step fails and the tree can be saved."""

    async def body(*args: object) -> None:
        raise exc

    def sync() -> None:
        raise exc

    async def root(s: Any) -> None:
        if way == "thread":
            await s.call("x", sync)
        else:
            await getattr(s, way)("x", body)

    store = MemoryStore()
    outcome = await failed(root, store=store, id="x")
    again = await failed(root, store=store, id="x")
    assert facts(again.error) == facts(outcome.error)
    (error,) = again.error.errors
    if message is None:  # Python itself turns it into a RuntimeError
        assert error.is_a(RuntimeError) or error.is_a(type(exc))
    else:
        assert error.failure.message == message
        assert error.failure.types == names(*type(exc).__mro__[:-1])


async def test_long_messages_are_cut() -> None:
    """A message of megabytes is kept by its beginning and end; the error's text is shorter."""

    async def body(s: Step) -> None:
        raise ValueError("begin" + "x" * 5_000_000 + "end")

    async def root(s: Step) -> None:
        await s.do("p", body)

    state = State("r")
    outcome = await failed(root, state=state)
    (error,) = outcome.error.errors
    assert error.failure.message.startswith("beginxxx")
    assert error.failure.message.endswith("xxxend")
    assert len(error.failure.message) < 5_000
    assert len(error.failure.traceback) < 10_000
    assert len(str(error)) < 400
    assert len(state.encode()) < 60_000


async def test_the_traceback_is_the_users() -> None:
    """A traceback has the user's frames and lines, no engine frames, and never a local variable."""

    def deeper() -> None:
        password = "hunter" + str(2)
        raise ThrottledError(f"refused after {len(password)} letters")

    async def body(s: Step) -> None:
        secret = "geh" + "eim"
        try:
            deeper()
        except ThrottledError as exc:
            raise ValueError(str(len(secret))) from exc

    async def parent(s: Step) -> None:
        await s.do("x", body, timeout=5)

    async def root(s: Step) -> None:
        await s.do("p", parent)

    outcome = await failed(root, clock=FakeClock())
    (parent_error,) = outcome.error.errors
    (error,) = parent_error.errors
    text = error.failure.traceback
    assert "raise ValueError(str(len(secret))) from exc" in text
    assert "ValueError: 6" in text
    assert "in deeper" in text
    assert "ThrottledError: refused after 7 letters" in text
    assert text.index("ValueError: 6") < text.index("ThrottledError: refused")
    for each in (text, parent_error.failure.traceback, outcome.error.failure.traceback):
        assert "asteps/_" not in each
        assert "hunter2" not in each
        assert "geheim" not in each
    assert "test_failures.py" in parent_error.failure.traceback
    assert "in parent" in parent_error.failure.traceback
    assert "in deeper" not in parent_error.failure.traceback  # its own node has it


async def test_the_traceback_is_bounded() -> None:
    """Neither a deep recursion nor a long chain makes a large tree."""

    def recurse(depth: int) -> None:
        if depth:
            recurse(depth - 1)
        raise ValueError("bottom")

    async def body(s: Step) -> None:
        current: Exception = ValueError("first")
        for i in range(1_000):
            try:
                raise ValueError("x" * 1_000 + str(i)) from current
            except ValueError as exc:
                current = exc
        try:
            recurse(400)
        except ValueError as exc:
            raise exc from current

    async def root(s: Step) -> None:
        await s.do("p", body)

    (error,) = (await failed(root)).error.errors
    assert len(error.failure.traceback) < 10_000
    assert "bottom" in error.failure.traceback


async def test_circular_chains() -> None:
    """An exception that is its own cause, by way of another, is recorded like any other."""

    async def body(s: Step) -> None:
        a, b = ValueError("a"), ValueError("b")
        a.__cause__, b.__cause__ = b, a
        raise a

    async def root(s: Step) -> None:
        await s.do("p", body)

    (error,) = (await failed(root)).error.errors
    assert error.failure.message == "a"


async def test_the_cause_is_for_tracebacks() -> None:
    """On the first pass Python's own traceback leads from the StepError to the line that failed."""

    async def root(s: Step) -> None:
        await s.do("x", throttle)

    error = (await failed(root)).error
    text = "".join(traceback.format_exception(error))
    assert 'raise ThrottledError(f"slow down, {s.name}")' in text
    assert "direct cause" in text


# --- cancellations that are none ------------------------------------------------------------------


async def awaits_a_cancelled_task(*args: object) -> None:
    """Await a task that somebody cancelled."""
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("way", ["do", "call", "timeout", "tasks"])
async def test_a_cancelled_error_of_the_body_is_a_failure(anyio_backend: str, way: str) -> None:
    """``CancelledError`` in a body that nobody cancelled fails the step, and the pass goes on."""
    found: list[BaseException] = []

    async def root(s: Any) -> None:
        try:
            if way == "timeout":
                await s.do("x", awaits_a_cancelled_task, timeout=5)
            elif way == "tasks":
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(s.do, "x", awaits_a_cancelled_task)
            else:
                await getattr(s, way)("x", awaits_a_cancelled_task)
        except* StepError as group:
            (error,) = group.exceptions
            found.append(error)
        await s.do("after", one)

    outcome = await asteps.reconcile(root)
    assert isinstance(outcome, Done)
    (error,) = found
    assert isinstance(error, StepError)
    assert error.is_a(asyncio.CancelledError)
    assert error.failure.message == "CancelledError"
    assert came_to(outcome.state) == {"": "done", "x": "failed", "after": "done"}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancelled_error_may_be_tried_again(anyio_backend: str) -> None:
    """It is retried where the policy covers it, which ``Exception`` does not."""
    calls: list[int] = []

    async def flaky(s: Step) -> int:
        calls.append(s.attempt)
        if len(calls) == 1:
            await awaits_a_cancelled_task()
        return len(calls)

    async def root(s: Step, retry: Retry) -> int:
        return await s.do("x", flaky, retry=retry)

    assert await asteps.run(root, Retry(on=BaseException), name="n", clock=FakeClock()) == 2
    calls.clear()
    with pytest.raises(StepError):
        await asteps.run(root, Retry(), name="n", clock=FakeClock())
    assert calls == [1]


async def test_a_real_cancellation_is_no_failure() -> None:
    """A step whose own scope was cancelled is interrupted: nothing is recorded as failed."""

    async def body(s: Step) -> None:
        await anyio.sleep_forever()

    async def root(s: Step) -> str:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(scope_cancel, scope)
                await s.do("x", body)
        return "went on"

    async def scope_cancel(scope: anyio.CancelScope) -> None:
        await anyio.lowlevel.checkpoint()
        scope.cancel()

    outcome = await asteps.reconcile(root)
    assert isinstance(outcome, Done)
    assert came_to(outcome.state) == {"": "done", "x": "proceeding"}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, BaseException])
@pytest.mark.parametrize("way", ["do", "call", "options"])
async def test_other_base_exceptions_leave_the_driver(kind: type[BaseException], way: str) -> None:
    """What is neither an ``Exception`` nor a signal leaves the driver; its step is interrupted."""

    async def body(*args: object) -> None:
        raise kind("stop")

    async def root(s: Any) -> None:
        await s.do("ok", one)
        if way == "options":
            await s.do("x", body, retry=Retry(on=BaseException), timeout=5)
        else:
            await getattr(s, way)("x", body)

    store = MemoryStore()
    with pytest.raises(kind, match="stop") as raised:
        await asteps.reconcile(root, store=store, id="x")
    assert type(raised.value) is kind
    state = await asteps.load_state(store, "x")
    assert state is not None
    assert came_to(state) == {"": "proceeding", "ok": "done", "x": "proceeding"}
