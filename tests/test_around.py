"""Observers around the calls of bodies: what they are shown, and what they cannot do to a run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from clocks import FakeClock

import asteps
from asteps import (
    Around,
    BodyCall,
    Failed,
    Pending,
    Retry,
    State,
    Step,
    StepError,
    UsageError,
)
from asteps.stores.memory import MemoryStore
from asteps.testing import Crash, FaultyStore

where: ContextVar[str] = ContextVar("where", default="outside")


class Watcher:
    """An observer that notes each call as it was entered and left, and sets `where` inside.

    Attributes:
        log: ``+path`` on entering, ``-path ended`` on leaving; the pass is ``.``.
        calls: All calls, in the order in which they were entered.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.calls: list[BodyCall] = []

    @contextmanager
    def around(self, call: BodyCall) -> Iterator[None]:
        self.calls.append(call)
        path = call.path or "."
        self.log.append(f"+{path}")
        assert call.ended is None
        token = where.set(path)
        yield  # no try: it is left without an exception
        where.reset(token)
        self.log.append(f"-{path} {call.ended}")

    def take(self) -> list[str]:
        taken, self.log = self.log, []
        return taken

    def ends(self) -> dict[str, list[str | None]]:
        """What the calls of each path came to."""
        found: dict[str, list[str | None]] = {}
        for call in self.calls:
            found.setdefault(call.path, []).append(call.ended)
        return found


async def leaf(s: Step) -> str:
    """What a body that lets others run sees."""
    await checkpoint()
    return where.get()


def plain() -> str:
    """What a function in a worker thread sees."""
    return where.get()


async def in_helper() -> str:
    """What a task that a body starts sees."""
    seen: list[str] = []

    async def helper() -> None:
        await checkpoint()
        seen.append(where.get())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(helper)
    return seen[0]


async def test_a_body_is_within_its_call() -> None:
    """A body, its tasks and threads, and the code between its steps each see their own step."""
    watcher = Watcher()
    seen: list[str] = []

    async def parent(s: Step) -> list[str]:
        inner = [where.get(), await s.do("leaf", leaf), await s.call("plain", plain)]
        return [*inner, await s.call("helper", in_helper), where.get()]

    async def root(s: Step) -> list[str]:
        seen.append(where.get())
        found = await s.do("a", parent)
        seen.append(where.get())
        return found

    expected = ["a", "a/leaf", "a/plain", "a/helper", "a"]
    assert await asteps.run(root, observers=[watcher]) == expected
    assert seen == [".", "."]
    assert where.get() == "outside"
    steps = ["+a/leaf", "-a/leaf done", "+a/plain", "-a/plain done"]
    rest = ["+a/helper", "-a/helper done", "-a done", "-. done"]
    assert watcher.take() == ["+.", "+a", *steps, *rest]
    assert [c.kind for c in watcher.calls] == ["pass", "do", "do", "call", "call"]


@pytest.mark.parametrize("how", ["group", "map", "task group", "gather", "map in group"])
async def test_concurrent_children_are_within_their_parents(how: str) -> None:
    """However children run concurrently, each sees its own call, entered below its parent's."""
    if how == "gather" and _is_trio():
        pytest.skip("gather is asyncio's")
    watcher, parents = Watcher(), {}

    async def child(s: Step, *_: str) -> str:
        parents[s.path] = above.get()
        await checkpoint()
        inner = await s.do("inner", leaf)
        assert inner == f"{s.path}/inner"
        return where.get()

    async def root(s: Step) -> None:
        if how == "group":
            async with s.group("g") as g:
                assert where.get() == "g"
                for name in "abc":
                    g.do(name, child)
        elif how == "map":
            assert await s.map("g", child, "abc", limit=2) == ["g/a", "g/b", "g/c"]
        elif how == "map in group":
            async with s.group("outer") as g:
                g.map("g", child, "abc")
                g.call("plain", plain)
        elif how == "gather":
            await asyncio.gather(*(s.do(name, child) for name in "abc"))
        else:
            async with anyio.create_task_group() as tasks:
                for name in "abc":
                    tasks.start_soon(s.do, name, child)
        assert where.get() == "."

    class Above(Watcher):
        @contextmanager
        def around(self, call: BodyCall) -> Iterator[None]:
            token = above.set(where.get())
            with super().around(call):
                yield
            above.reset(token)

    above: ContextVar[str] = ContextVar("above")
    watcher = Above()
    await asteps.run(root, observers=[watcher])
    prefix = {"map in group": "outer/g", "group": "g", "map": "g"}.get(how, "")
    path = f"{prefix}/" if prefix else ""
    assert parents == {f"{path}{name}": prefix or "." for name in "abc"}
    assert {p: e for p, e in watcher.ends().items() if e != ["done"]} == {}
    patterns = {c.path: c.pattern for c in watcher.calls}
    item = "*" if "map" in how else "b"
    assert patterns[f"{path}b/inner"] == f"{path}{item}/inner"
    assert all(c.whole is watcher.calls[0] for c in watcher.calls)


def _is_trio() -> bool:
    import sniffio

    return sniffio.current_async_library() == "trio"


async def test_what_a_call_came_to() -> None:
    """Done, failed, retrying, pending, with the exception that the body raised; never a signal."""
    watcher, clock, tries = Watcher(), FakeClock(), iter(range(9))

    async def flaky(s: Step) -> None:
        if next(tries) < 1:
            raise ConnectionError("no route")

    async def bad(s: Step) -> None:
        raise ValueError("bad")

    async def waits(s: Step) -> None:
        if clock.now() < began + 10:
            s.pending(10)

    async def root(s: Step) -> None:
        await s.do("flaky", flaky, retry=Retry(attempts=2, delay=1))
        with suppress(StepError):
            await s.do("bad", bad)
        await s.do("parent", lambda s: s.do("waits", waits), returns=None)

    began = clock.now()
    keywords: dict[str, Any] = {"store": MemoryStore(), "id": "r", "clock": clock}
    outcome = await asteps.reconcile(root, max_wait=2, observers=[watcher], **keywords)
    assert isinstance(outcome, Pending)
    assert watcher.ends() == {
        "": ["pending"],
        "flaky": ["retrying", "done"],
        "bad": ["failed"],
        "parent": ["pending"],
        "parent/waits": ["pending"],
    }
    errors = {(c.path, c.attempt): c.error for c in watcher.calls if c.error is not None}
    assert {where: repr(error) for where, error in errors.items()} == {
        ("flaky", 1): "ConnectionError('no route')",
        ("bad", 1): "ValueError('bad')",
    }
    clock.advance(10)
    watcher = Watcher()
    await asteps.reconcile(root, observers=[watcher], **keywords)
    assert watcher.ends() == {"": ["done"], "parent": ["done"], "parent/waits": ["done"]}
    assert {(c.run_id, c.epoch, c.attempt) for c in watcher.calls} == {("r", 2, 1)}
    watcher.take()
    await asteps.run(root, observers=[watcher], **keywords)
    assert watcher.take() == []  # the run has ended: nothing is called


async def test_waits_in_place_are_between_calls() -> None:
    """Polls and sleeps are a call for each check; their parent is one call."""
    watcher, clock, checks = Watcher(), FakeClock(), iter([None, None, "ready"])

    async def parent(s: Step) -> object:
        await s.sleep("nap", 5)
        return await s.poll("poll", lambda: 1, lambda _: next(checks), every=3, returns=str)

    async def root(s: Step) -> object:
        return await s.do("parent", parent)

    assert await asteps.run(root, clock=clock, observers=[watcher], id="r", store=MemoryStore())
    assert watcher.ends() == {
        "": ["done"],
        "parent": ["done"],
        "parent/nap": ["pending", "done"],
        "parent/poll": ["pending", "pending", "done"],
    }
    assert [c.kind for c in watcher.calls[:4]] == ["pass", "do", "sleep", "sleep"]


async def test_a_group_is_one_call() -> None:
    """A group that is done is not called again; one with a failed or pending child says so."""
    watcher, clock = Watcher(), FakeClock()

    async def bad(s: Step) -> None:
        raise ValueError

    async def waits(s: Step) -> None:
        s.pending(100)

    async def root(s: Step) -> None:
        async with s.group("good") as g:
            g.do("a", leaf)
        with suppress(StepError):
            async with s.group("bad") as g:
                g.do("b", bad)
                g.do("a", leaf)
        await s.map("map", leaf_of, [1, 2])
        async with s.group("waits") as g:
            g.do("w", waits)

    async def leaf_of(s: Step, _: int) -> None:
        await checkpoint()

    keywords: dict[str, Any] = {"store": MemoryStore(), "id": "r", "clock": clock}
    for expected in (
        {"good": ["done"], "bad": ["failed"], "map": ["done"], "waits": ["pending"]},
        {"waits": ["pending"]},
    ):
        watcher = Watcher()
        await asteps.reconcile(root, observers=[watcher], **keywords)
        groups = {c.path for c in watcher.calls if c.kind in ("group", "map")}
        assert {p: e for p, e in watcher.ends().items() if p in groups} == expected
        clock.advance(100)


async def test_what_was_cut_off_is_interrupted() -> None:
    """A cancellation interrupts what runs; so does a group that has enough. Neither is an error."""
    watcher = Watcher()

    async def forever(s: Step) -> None:
        await anyio.sleep_forever()

    async def root(s: Step) -> None:
        async with s.group("g", enough=1) as g:
            g.do("slow", forever)
            g.do("fast", leaf)
        await s.do("parent", parent)

    async def parent(s: Step) -> None:
        with anyio.fail_after(0):
            await s.do("late", forever)

    with pytest.raises(StepError):
        await asteps.run(root, observers=[watcher])
    assert watcher.ends() == {
        "": ["failed"],
        "g": ["done"],
        "g/slow": ["interrupted"],
        "g/fast": ["done"],
        "parent": ["failed"],
        "parent/late": ["interrupted"],
    }
    watcher = Watcher()
    with anyio.CancelScope() as scope:

        async def cancelled(s: Step) -> None:
            scope.cancel()
            await s.do("a", forever)

        await asteps.run(cancelled, observers=[watcher], store=MemoryStore(), id="r")
    assert watcher.ends()[""] == ["interrupted"]
    assert all(isinstance(c.error, anyio.get_cancelled_exc_class()) for c in watcher.calls)


async def test_what_stops_the_pass_is_shown_as_what_it_is() -> None:
    """Misuse and a lost store interrupt the calls; the error is the one that the driver raises."""
    watcher = Watcher()

    async def misuse(s: Step) -> None:
        await s.do("a", leaf)
        await s.do("a", leaf)

    with pytest.raises(UsageError) as found:
        await asteps.run(misuse, observers=[watcher])
    assert watcher.ends() == {"": ["interrupted"], "a": ["done"]}
    assert watcher.calls[0].error is found.value


async def test_failures_without_a_body_are_calls_too() -> None:
    """A step that fails without being called again is a call all the same, over at once."""
    store = MemoryStore()

    async def root(s: Step) -> None:
        await s.do("a", leaf, at_most_once=True)

    with pytest.raises(Crash):  # at the save of what it returned
        await asteps.run(root, store=FaultyStore(store.client(), {3: "crash before"}), id="r")
    watcher = Watcher()
    outcome = await asteps.reconcile(root, store=store.client(), id="r", observers=[watcher])
    assert isinstance(outcome, Failed)
    assert watcher.take() == ["+.", "+a", "-a failed", "-. failed"]
    error = watcher.calls[1].error
    assert isinstance(error, StepError)
    assert (error.path, error.failure.kind) == ("a", "interrupted")


async def test_what_is_carried_is_durable_before_the_first_body() -> None:
    """What an observer carries on entering a pass is shown to the next, though this one died."""
    store, shown = MemoryStore(), []

    class Carrier:
        @contextmanager
        def around(self, call: BodyCall) -> Iterator[None]:
            if call.kind == "pass":
                shown.append(dict(call.carried))
                call.carried[f"pass {call.epoch}"] = "here"
            yield

    async def root(s: Step) -> str:
        return await s.do("a", leaf)

    with pytest.raises(Crash):
        await asteps.run(
            root,
            store=FaultyStore(store.client(), {2: "crash before"}),
            id="r",
            observers=[Carrier()],
        )
    await asteps.run(root, store=store.client(), id="r", observers=[Carrier()])
    assert shown == [{}, {"pass 1": "here"}]


@pytest.mark.parametrize("at", ["around", "enter", "exit"])
async def test_a_raising_hook_touches_nothing(at: str, caplog: pytest.LogCaptureFixture) -> None:
    """What a hook raises is logged once; the run and the observers beside it go on."""

    class Broken:
        def around(self, call: BodyCall) -> AbstractContextManager[object]:
            if at == "around":
                raise RuntimeError("hook is down")
            return broken()

    @contextmanager
    def broken() -> Iterator[None]:
        if at == "enter":
            raise RuntimeError("hook is down")
        yield
        raise RuntimeError("hook is down")

    async def root(s: Step) -> list[str]:
        with suppress(StepError):
            await s.do("bad", lambda s: s.fail("no"), returns=None)
        return [await s.do(name, leaf) for name in "abc"]

    watcher = Watcher()
    store = MemoryStore()
    with caplog.at_level(logging.ERROR, logger="asteps"):
        found = await asteps.run(root, store=store, id="r", observers=[Broken(), watcher, Broken()])
    assert found == list("abc")
    assert len(caplog.records) == 2  # one for each
    assert "hook is down" in caplog.text
    assert {r.__dict__["run_id"] for r in caplog.records} == {"r"}
    assert list(watcher.ends()) == ["", "bad", "a", "b", "c"]


@pytest.mark.parametrize("at", ["enter", "exit"])
@pytest.mark.parametrize("path", ["", "a"])
@pytest.mark.parametrize("way", ["short", "long"])
async def test_what_is_no_exception_leaves_the_driver(at: str, path: str, way: str) -> None:
    """A hook's BaseException comes out of the driver; the others are left; the step is not lost."""
    began: list[str] = []

    class Struck(BaseException):
        pass

    class Striking:
        @contextmanager
        def around(self, call: BodyCall) -> Iterator[None]:
            if call.path == path and at == "enter":
                raise Struck
            yield
            if call.path == path:
                raise Struck

    async def body(s: Step) -> None:
        began.append(s.path)

    async def root(s: Step) -> None:
        await (s.do("a", body) if way == "short" else s.do("a", body, timeout=60))

    watcher, store = Watcher(), MemoryStore()
    with pytest.raises(Struck):
        await asteps.run(root, store=store.client(), id="r", observers=[watcher, Striking()])
    assert all(calls != [None] for calls in watcher.ends().values())
    assert where.get() == "outside"
    await asteps.run(root, store=store.client(), id="r")
    assert began == ["a"]  # what had returned is recorded, and what was not called has not begun


async def test_only_those_with_around_need_not_be_callable() -> None:
    """An observer is a callable, or has ``around``, or both; a class is told from an object."""
    told: list[asteps.Event] = []

    class Both(Watcher):
        def __call__(self, event: asteps.Event) -> None:
            told.append(event)

    both = Both()
    await asteps.run(leaf, observers=[both, Watcher()])
    assert told
    assert both.calls
    assert isinstance(both, Around)
    assert repr(both.calls[0]) == "<BodyCall of 'leaf', pass, done>"
    for wrong in (Watcher, object()):
        with pytest.raises(UsageError, match="around"):
            await asteps.run(leaf, observers=[wrong])  # type: ignore[list-item]


async def test_an_open_run_is_within_its_pass() -> None:
    """The block of `open_run` and its steps are within the pass, which is left with the block."""
    watcher = Watcher()
    async with asteps.open_run("Move", observers=[watcher]) as s:
        assert where.get() == "."
        assert await s.do("a", leaf) == "a"
    assert where.get() == "outside"
    assert watcher.take() == ["+.", "+a", "-a done", "-. done"]
    async with asteps.open_run("Move", observers=[watcher]) as s:
        s.pending(5)
    assert watcher.take() == ["+.", "-. pending"]
    with pytest.raises(StepError):
        async with asteps.open_run("Move", observers=[watcher]) as s:
            raise ValueError
    assert watcher.take() == ["+.", "-. failed"]


@pytest.mark.parametrize(
    "keywords",
    [{}, {"retry": Retry(attempts=2)}, {"timeout": 60}],
    ids=["short", "retry", "timeout"],
)
@pytest.mark.parametrize("how", ["do", "call"])
async def test_both_ways_show_the_same(how: str, keywords: dict[str, Any]) -> None:
    """The short way and the long way show the same calls and the same events."""
    watcher, events = Watcher(), []

    async def bad() -> None:
        raise ValueError

    async def root(s: Step) -> None:
        run: dict[str, Callable[[], Awaitable[object]]] = {
            "do": lambda: s.do("a", leaf, **keywords),
            "call": lambda: s.call("a", in_helper, **keywords),
        }
        await run[how]()
        with suppress(StepError):
            await s.call("bad", bad, timeout=60) if keywords else await s.call("bad", bad)

    def note(event: asteps.Event) -> None:
        events.append((type(event).__name__, event.path))

    await asteps.run(root, observers=[watcher, note], store=MemoryStore(), id="r")
    assert watcher.take() == ["+.", "+a", "-a done", "+bad", "-bad failed", "-. done"]
    assert [e for e in events if e[1]] == [
        ("StepStarted", "a"),
        ("StepDone", "a"),
        ("StepStarted", "bad"),
        ("StepFailed", "bad"),
    ]


@pytest.mark.parametrize("kind", ["pass", "do", "group", "map"])
@pytest.mark.parametrize("at", ["enter", "exit"])
async def test_what_is_no_exception_leaves_an_open_run(kind: str, at: str) -> None:
    """Whatever the observer is around, its BaseException arrives as it is, the others are left."""

    class Struck(BaseException):
        pass

    class Striking:
        @contextmanager
        def around(self, call: BodyCall) -> Iterator[None]:
            if call.kind == kind and at == "enter":
                raise Struck
            yield
            if call.kind == kind:
                raise Struck

    async def item(s: Step, _: int) -> None:
        await checkpoint()

    async def block(observers: list[Around]) -> None:
        async with asteps.open_run("Move", observers=observers) as s:
            await s.do("a", leaf)
            async with s.group("g") as g:
                g.do("b", leaf)
            await s.map("m", item, [1])

    watcher = Watcher()
    with pytest.raises(Struck):
        await block([watcher, Striking()])
    assert all(None not in ends for ends in watcher.ends().values())
    assert where.get() == "outside"


def test_a_group_of_a_lost_task_is_left() -> None:
    """Where the event loop is gone and the task is thrown away, its calls are left all the same."""
    watcher = Watcher()

    async def root(s: Step) -> None:
        async with s.group("g"):
            await anyio.sleep_forever()

    async def lose() -> Coroutine[Any, Any, None]:
        driver = asteps.run(root, observers=[watcher])
        tasks.append(asyncio.ensure_future(driver))
        for _ in range(5):
            await asyncio.sleep(0)
        return driver

    tasks: list[asyncio.Future[None]] = []
    loop = asyncio.new_event_loop()
    driver = loop.run_until_complete(lose())
    with suppress(Exception):  # nothing can be closed properly any more
        driver.close()
    tasks[0]._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    assert watcher.ends() == {"": ["interrupted"], "g": ["interrupted"]}


@pytest.mark.parametrize("prompt", [True, False])
async def test_what_ends_the_saver_does_not_keep_a_body_waiting(prompt: bool) -> None:
    """Told of a save, an observer raises what is no Exception: also a shielded body goes on."""

    class Struck(BaseException):
        pass

    def strike(event: asteps.Event) -> None:
        if event.path == "a" and isinstance(event, asteps.StepDone):
            raise Struck

    async def root(s: Step) -> None:
        try:
            for name in "abcd":
                await s.do(name, leaf)
        finally:
            with anyio.CancelScope(shield=True):
                await s.do("cleanup", leaf)

    store = MemoryStore()
    with pytest.raises(Struck), anyio.fail_after(5):
        await asteps.run(
            root, store=store if prompt else FaultyStore(store.client()), id="r", observers=[strike]
        )


async def test_a_pass_in_which_nothing_is_due_carries_nothing() -> None:
    """To look whether something is due changes no state, whatever observers carry."""
    clock, state = FakeClock(), State("r")

    class Carrier:
        @contextmanager
        def around(self, call: BodyCall) -> Iterator[None]:
            if call.kind == "pass":
                call.carried["passes"] = call.carried.get("passes", "") + "."
            yield

    async def root(s: Step) -> None:
        await s.do("x", lambda s: s.pending(20), returns=None)

    keywords: dict[str, Any] = {"state": state, "clock": clock, "observers": [Carrier()]}
    await asteps.reconcile(root, **keywords)
    before = state.encode()
    clock.advance(5)
    await asteps.reconcile(root, **keywords)
    assert state.encode() == before
    clock.advance(20)
    await asteps.reconcile(root, **keywords)
    assert b'"passes":".."' in state.encode()
