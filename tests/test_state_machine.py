"""Whatever happens to a run, in whatever order: it comes to what its program says.

Random programs (`model.py`) are driven by random drivers on both event loops, while processes die,
drivers are cancelled, saves go astray, operators edit the tree and programmers the code. A model of
a few dozen lines says what has to come of it.
"""

from __future__ import annotations

import asyncio
import faulthandler
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import partial
from typing import Any, Literal

import anyio
import model
import msgspec
import pytest
from anyio.lowlevel import checkpoint
from clocks import FakeClock
from folding import FoldingStore
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model import CREWS, EVERY, TIMEOUT, Forecast, Knowledge, Known, Node, is_below, programs
from msgspec.structs import replace

import asteps
from asteps import (
    Done,
    Failed,
    Pending,
    Retry,
    State,
    Step,
    StepError,
    StoreError,
    _state,
    load_state,
)
from asteps._paths import join
from asteps._saver import Saver
from asteps.stores.memory import MemoryStore
from asteps.testing import Crash, FaultyStore
from asteps.testing._faulty import Save, SaveFault

# --- how a process drives the run -----------------------------------------------------------------


class How(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """How one process drives the run.

    Attributes:
        backend: Its event loop.
        driver: What it calls.
        max_wait: Of `reconcile`.
        save: See there.
        faults: Of its saves, by number; ``gone`` is a store that is lost from there on.
        cancel: At which moment the driver is cancelled; 0 for never.
        native: By asyncio's own ``Task.cancel``.
        again: And once more, one moment later.
    """

    backend: Literal["asyncio", "trio"] = "asyncio"
    driver: Literal["reconcile", "run"] = "reconcile"
    max_wait: int = 0
    save: Literal["step", "pass"] = "step"
    faults: tuple[tuple[int, str], ...] = ()
    cancel: int = 0
    native: bool = False
    again: bool = False

    @property
    def undisturbed(self) -> bool:
        return not (self.faults or self.cancel)


_backends = st.sampled_from(("asyncio", "trio"))
_drivers = st.sampled_from(("reconcile",) * 4 + ("run",))
_max_waits = st.sampled_from((0, 0, 0, 4, 30))
_modes = st.sampled_from(("step", "step", "pass"))
_crashes = st.sampled_from(("crash before", "crash after"))
_faults = st.sampled_from(("lost", "late", "dropped", "unavailable", "gone", "refused", "conflict"))
_numbers = st.integers(1, 12)


def _hows(**more: st.SearchStrategy[Any]) -> st.SearchStrategy[How]:
    return st.builds(
        How, backend=_backends, driver=_drivers, max_wait=_max_waits, save=_modes, **more
    )


undisturbed = _hows()
crashing = _hows(faults=st.tuples(st.tuples(_numbers, _crashes)))
astray = _hows(
    faults=st.lists(
        st.tuples(_numbers, _faults), min_size=1, max_size=3, unique_by=lambda f: f[0]
    ).map(tuple)
)
cancelled = _hows(cancel=st.integers(1, 30), native=st.booleans(), again=st.booleans())


PATIENCE = 10  # seconds after which a process hangs
STEPS = 12  # that happen to a run before it is driven to its end

# --- the world ------------------------------------------------------------------------------------


class World:
    """What outlives every process: the clock, the storage, and what bodies did to the outside."""

    def __init__(self, program: Node, *, folds: bool) -> None:
        self.program = program
        self.clock = FakeClock()
        self.storage = FoldingStore() if folds else MemoryStore()
        self.complaints: list[str] = []
        self.observers: list[Any] = []
        self.settled: dict[str, Any] = {}  # what done steps returned: they never run again
        self.completed: set[str] = set()  # bodies that came to their end
        self.tasks: dict[str, float] = {}  # what polls started: when it is finished
        self.tokens: dict[str, str] = {}
        self.old_tokens: set[str] = set()
        self.checked: set[str] = set()  # polls whose task ID is in the store
        self.unknown: set[str] = set()  # at-most-once bodies of which nobody knows what became
        self.raised: dict[str, model.Facts] = {}  # failures as parents saw them
        # of one process
        self.how = How()
        self.driving = False
        self.active: Counter[str] = Counter()
        self.runs: Counter[str] = Counter()
        self.acts: dict[str, tuple[int, bool]] = {}  # where leaves are in their scripts; returned
        self._cancel: Callable[[], object] | None = None
        self._moments = 0
        self._limits: dict[str, int] = {}

    # -- one process --

    def process(self, how: How) -> tuple[Any, ...]:
        """Drive the run; what came of it."""
        self.runs.clear()
        self.acts.clear()
        self.how = how
        self._moments = how.cancel
        self._limits = {p: n.limit for p, n in model.walk(self.program) if n.limit is not None}
        return anyio.run(self._in_time, how, backend=how.backend)

    async def _in_time(self, how: How) -> tuple[Any, ...]:
        with anyio.fail_after(PATIENCE):
            return await self._process(how)

    async def _process(self, how: How) -> tuple[Any, ...]:
        self.store = FaultyStore(self.storage.client(), partial(self._fault, how))
        self.driving = True
        drive = self._drive(how, self.store)
        outcome: tuple[Any, ...] = ("cancelled",)
        if how.native and how.backend == "asyncio":
            task = asyncio.ensure_future(drive)
            self._cancel = task.cancel
            with suppress(asyncio.CancelledError):
                outcome = await task
        else:
            with anyio.CancelScope() as scope:
                self._cancel = scope.cancel
                outcome = await drive
        self.driving = False
        self._cancel = None
        left = [p for p, n in self.active.items() if n]
        if left:
            self.complain(f"still at work after the driver returned: {left}")
        for _ in range(5):  # nothing may go on
            await checkpoint()
        return ("crashed",) if self.store.crashed else outcome

    async def _drive(self, how: How, store: FaultyStore) -> tuple[Any, ...]:
        keywords: Any = {"store": store, "id": "r", "clock": self.clock, "name": "machine"}
        keywords |= {"save": how.save, "observers": self.observers}
        async with store:
            try:
                if how.driver == "run":
                    return ("done", await asteps.run(self.root, **keywords), None)
                outcome = await asteps.reconcile(self.root, **keywords, max_wait=how.max_wait)
            except Crash:
                return ("crashed",)
            except StepError as error:
                return ("failed", facts(error), None)
            except StoreError as error:
                return ("lost", error)
            vanished = set(outcome.vanished)
            match outcome:
                case Done():
                    return ("done", outcome.value, vanished)
                case Failed():
                    return ("failed", facts(outcome.error), vanished)
                case Pending():
                    return ("pending", outcome.after, vanished, outcome.path)

    def _fault(self, how: How, save: Save) -> SaveFault | None:
        self.moment()
        for number, fault in how.faults:
            if fault == "gone" and number <= save.number:
                return "unavailable"
            if number == save.number:
                return fault  # type: ignore[return-value]
        if how.again and self._moments < 0:
            self.cancel()
        return None

    def moment(self) -> None:
        """Something happens: perhaps this is when the driver is to be cancelled."""
        self._moments -= 1
        if self._moments == 0:
            self.cancel()

    def cancel(self) -> None:
        """Cancel the driver."""
        if self._cancel is not None:
            self._cancel()

    def complain(self, text: str) -> None:
        """Bodies do not assert, as what they raise is a failure of theirs."""
        self.complaints.append(text)

    # -- bodies --

    async def root(self, s: Step) -> object:
        return await self.body(s, self.program)

    async def body(self, s: Step, node: Node) -> object:
        """The body of every step that takes one."""
        with self.at_work(s.path, s):
            match node.kind:
                case "leaf":
                    return await self.leaf(s, node)
                case "guard":
                    return await self.guard(s, *node.steps)
                case "raw":
                    return await self.raw(s, node.steps)
                case _:
                    return [await self.invoke(s, child) for child in node.steps]

    async def leaf(self, s: Step, node: Node) -> object:
        if node.once and s.path in self.unknown:
            self.complain(f"{s.path!r} runs at most once, and did perhaps")
        for _ in range(node.ticks):
            await self.tick()
        if node.nap:
            await self.clock.sleep(node.nap)
        if "hang" in node.script:
            await self.clock.sleep(10 * TIMEOUT)
        self.moment()
        position = s.info or 0
        act = node.script[position] if position < len(node.script) else None
        self.acts[s.path] = (position + (act is not None), act is None)
        if act is None:
            self.completed.add(s.path)
            return s.path
        s.info = position + 1
        if isinstance(act, int):
            s.pending(act)
        if act == "fail":
            s.fail(f"{s.path} at {position}")
        raise ConnectionError(f"{s.path} at {position}")

    async def guard(self, s: Step, first: Node, second: Node) -> object:
        try:
            return await self.invoke(s, first)
        except Exception as exc:  # noqa: BLE001 - it has to be a StepError
            if not isinstance(exc, StepError):
                self.complain(f"{s.path!r} sees {exc!r}")
            return ["handled", await self.invoke(s, second)]

    async def raw(self, s: Step, steps: tuple[Node, ...]) -> object:
        """Steps in tasks of the body's own."""
        values: dict[str, object] = {}

        async def one(node: Node) -> None:
            values[node.name] = await self.invoke(s, node)

        if self.how.backend == "asyncio" and len(steps) % 2:
            await asyncio.gather(*map(one, steps))
        else:
            async with anyio.create_task_group() as tasks:
                for node in steps:
                    tasks.start_soon(one, node)
        return [values[node.name] for node in steps]

    async def plain(self, path: str, node: Node) -> str:
        with self.at_work(path):
            await self.tick()
            return self.give(path, node)

    def give(self, path: str, node: Node) -> str:
        """What a call or the check of a poll comes to."""
        if node.breaks:
            raise ConnectionError(path)
        self.completed.add(path)
        return path

    async def start(self, path: str, node: Node, token: str) -> str:
        self.know_token(path, token)
        if path in self.checked:
            self.complain(f"{path!r} starts its task although it had been checked")
        self.tasks.setdefault(path, self.clock.now() + node.seconds)
        await self.tick()
        return token

    async def check(self, path: str, node: Node, token: str) -> str | None:
        with self.at_work(path):
            self.checked.add(path)
            if token != self.tokens[path]:
                self.complain(f"{path!r} checks the task {token}")
            await self.tick()
            if node.breaks or self.clock.now() >= self.tasks[path]:
                return self.give(path, node)
            return None

    # -- what they are made of --

    async def invoke(self, s: Step, node: Node) -> Any:
        """Run a node as a child of this step, outside a group."""
        path = join(s.path, node.name)
        try:
            value = await self._invoke(s, node, path)
        except StepError as error:
            self.see_failure(path, error)
            raise
        if self.how.save == "step" and node.kind not in CREWS:
            self.settled[path] = value
        return value

    async def _invoke(self, s: Step, node: Node, path: str) -> Any:
        match node.kind:
            case "sleep":
                return await s.sleep(node.name, node.seconds)
            case "call":
                return await s.call(node.name, self.plain, path, node, **options(node))
            case "poll":
                start, check = self.poll_of(s, node, path)
                return await s.poll(node.name, start, check, every=EVERY, **options(node))
            case "map":
                values = await s.map(
                    node.name, self.body, node.steps, key=name_of, **policy(node), **options(node)
                )
                return "enough" if node.enough is not None else values
            case "group":
                return await self.group(s, node, path)
            case _:
                return await s.do(node.name, self.body, node, **options(node))

    def poll_of(
        self, s: Step | asteps.Group, node: Node, path: str
    ) -> tuple[Callable[[], Awaitable[str]], Callable[[str], Awaitable[str | None]]]:
        token = s.token_for(node.name)
        return partial(self.start, path, node, token), partial(self.check, path, node)

    async def group(self, s: Step, node: Node, path: str) -> object:
        kids: list[asteps.Child[Any]] = []
        async with s.group(node.name, **policy(node)) as g:
            for child in node.steps:
                for _ in range(node.ticks):
                    await self.tick()
                below = join(path, child.name)
                match child.kind:
                    case "call":
                        kids.append(g.call(child.name, self.plain, below, child, **options(child)))
                    case "poll":
                        start, check = self.poll_of(g, child, below)
                        kids.append(g.poll(child.name, start, check, every=EVERY, **options(child)))
                    case "map":
                        kids.append(
                            g.map(
                                child.name,
                                self.body,
                                child.steps,
                                key=name_of,
                                **policy(child),
                                **options(child),
                            )
                        )
                    case _:
                        kids.append(g.do(child.name, self.body, child, **options(child)))
        if node.enough is not None:
            return "enough"
        values = []
        for child, kid in zip(node.steps, kids, strict=True):
            try:
                value = kid.result
            except StepError as error:
                self.see_failure(join(path, child.name), error)
                value = None
            values.append(
                "enough"
                if value is not None and child.kind == "map" and child.enough is not None
                else value
            )
        return values

    @contextmanager
    def at_work(self, path: str, s: Step | None = None) -> Iterator[None]:
        """A body begins, and ends."""
        self.moment()
        if not self.driving:
            self.complain(f"{path!r} runs after its driver has returned")
        if path in self.settled:
            self.complain(f"{path!r} is done, and runs again")
        if self.active[path]:
            self.complain(f"{path!r} runs twice at the same time")
        if s is not None and path:
            self.know_token(path, s.token)
        for below in [p for p in self.raised if p == path or is_below(p, path)]:
            del self.raised[below]  # an attempt recovers failures beneath it
        self.runs[path] += 1
        self.acts.pop(path, None)
        self.active[path] += 1
        self.check_limits()
        try:
            yield
        finally:
            self.active[path] -= 1

    def check_limits(self) -> None:
        """No more children of a group work than its limit allows."""
        simple = {p for p, n in model.walk(self.program) if n.kind in ("leaf", "call", "poll")}
        at_work = [p for p, n in self.active.items() if n and p in simple]
        for group, limit in self._limits.items():
            depth = group.count("/") + 2
            children = {"/".join(p.split("/")[:depth]) for p in at_work if is_below(p, group)}
            if len(children) > limit:
                self.complain(f"{len(children)} children of {group!r} work: {children}")

    async def tick(self) -> None:
        self.moment()
        await checkpoint()
        if not self.driving:
            self.complain("a body goes on after its driver has returned")

    def know_token(self, path: str, token: str) -> None:
        if token in self.old_tokens or self.tokens.setdefault(path, token) != token:
            self.complain(f"{path!r} has the token {token}")

    def see_failure(self, path: str, error: StepError) -> None:
        """A body was told of a failure: it is told the same on every pass."""
        seen = facts(error)
        if self.raised.setdefault(path, seen) != seen:
            self.complain(f"{path!r} failed as {self.raised[path]} and now as {seen}")

    # -- what is in the store --

    def known(self) -> Knowledge:
        """What the stored tree says."""
        state = anyio.run(load_state, self.storage.client(), "r")
        if state is None:
            return {}
        assert State.decode(state.encode()).encode() == state.encode()
        return model.look(state)

    def listing(self) -> list[asteps.RunSummary]:
        """What operators see of it."""
        return anyio.run(asteps.list_runs, self.storage.client())

    def edit(self, edit: Callable[[State], object]) -> None:
        """Let an operator change the tree."""

        async def main() -> None:
            async with self.storage.client() as store, asteps.edit_run(store, "r") as state:
                edit(state)

        anyio.run(main)

    def forget(self, path: str, *, below: bool) -> None:
        """Operators want this step to run again, and what is below it."""
        for ancestor in [p for p in self.settled if is_below(path, p)]:
            del self.settled[ancestor]
        if below:
            gone = {path} | {p for p in self.tokens if is_below(p, path)}
            gone |= {p for p in (*self.settled, *self.completed) if is_below(p, path)}
            self.old_tokens |= {self.tokens.pop(p) for p in gone if p in self.tokens}
            self.completed -= gone
            self.unknown -= gone
            self.checked -= gone
            for each in (self.settled, self.tasks):
                for p in gone & each.keys():
                    del each[p]
        self.raised.clear()


def facts(error: StepError) -> model.Facts:
    """What a StepError says."""
    kind, message = error.failure.kind, error.failure.message
    why = "" if error.errors else message if kind == "raised" else kind
    return (error.path, why, tuple(map(facts, error.errors)))


def name_of(node: Node) -> str:
    """What an item of a map is known by."""
    return node.name


def options(node: Node) -> dict[str, Any]:
    """The keywords of a step."""
    found: dict[str, Any] = {}
    if node.attempts > 1:
        found["retry"] = Retry(attempts=node.attempts, delay=node.delay, factor=1, jitter=0)
    if node.once:
        found["at_most_once"] = True
    if "hang" in node.script:
        found["timeout"] = TIMEOUT
    return found


def policy(node: Node) -> dict[str, Any]:
    """The keywords of a group or map."""
    found: dict[str, Any] = {"enough": node.enough, "tolerate": node.tolerate}
    if node.limit is not None or node.kind == "group":
        found["limit"] = node.limit
    if node.cancel:
        found["on_error"] = "cancel"
    return found


def about(due: float | None, now: float) -> float | None:
    """How long it is until then, in full seconds: repeated saves take hundredths of them."""
    return None if due is None else round(max(due - now, 0))


# --- the machine ----------------------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """One run, from its program to its end, and what happens to it on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = False
        self.known: Knowledge = {}
        self.added = 0

    @initialize(program=programs(), folds=st.booleans(), ending=undisturbed)
    def begin(self, program: Node, folds: bool, ending: How) -> None:
        self.world = World(program, folds=folds)
        self.ending = ending
        self.fine = True

    # -- passes --

    @precondition(lambda self: not self.is_over())
    @rule(how=undisturbed)
    def pass_(self, how: How) -> None:
        self.drive(how)

    @precondition(lambda self: not self.is_over())
    @rule(how=crashing)
    def crash(self, how: How) -> None:
        self.drive(how)

    @precondition(lambda self: not self.is_over())
    @rule(how=astray)
    def saves_go_astray(self, how: How) -> None:
        self.drive(how)

    @precondition(lambda self: not self.is_over())
    @rule(how=cancelled)
    def cancel(self, how: How) -> None:
        self.drive(how)

    @rule(seconds=st.sampled_from((1, 3, 5, 20)))
    def time_passes(self, seconds: int) -> None:
        self.world.clock.advance(seconds)

    def is_over(self) -> bool:
        return "" in self.known and self.known[""].over

    def drive(self, how: How) -> tuple[Any, ...]:
        """One process, and all that has to be true of it."""
        self.fine = False
        world, before, started = self.world, self.known, self.world.clock.now()
        tasks = dict(world.tasks)
        came = world.process(how)
        assert not world.complaints, world.complaints
        self.known = world.known()
        self.check_done()
        self.check_saved(how, came)
        self.check_outcome(how, came, started)

        # It is on its way to the same end as before, unless that has become unknown.
        end = self.forecast(before, tasks, started, to_the_end=True)
        then = self.forecast(self.known, world.tasks, world.clock.now(), to_the_end=True)
        if not any(k.once and not k.over for k in self.known.values()):
            self.compare(end.outcome, then.outcome, loosely=bool(end.racy), ordered=False)

        if how.undisturbed and how.driver == "reconcile" and not how.max_wait and self.is_still():
            self.check_pass(self.forecast(before, tasks, started, to_the_end=False), came)
        self.fine = True
        return came

    def check_done(self) -> None:
        """What was done is done, and whatever is done has been done."""
        known, world = self.known, self.world
        done = {p: k.value for p, k in known.items() if k.status == "done"}
        assert {p: done.get(p, "not done") for p in world.settled} == world.settled
        for path, node in model.walk(world.program):
            if path in done and node.kind not in CREWS:
                world.settled[path] = done[path]
            if path in done and node.kind in ("leaf", "call", "poll"):
                assert path in world.completed, f"{path} is done without having ended"

    def check_saved(self, how: How, came: tuple[Any, ...]) -> None:
        """What a leaf had come to is in the store, unless that was lost."""
        known, world = self.known, self.world
        if came[0] not in ("crashed", "lost"):
            for path, (position, returned) in world.acts.items():
                assert (path, known[path].position) == (path, position)
                assert known[path].status == "done" or not returned, f"{path} had returned"
        for path, node in model.walk(world.program):
            k = known.get(path, Known())
            known_end = k.speaks or world.acts.get(path) == (k.position, False)
            if node.once and path in world.runs and not known_end:
                world.unknown.add(path)

    def check_outcome(self, how: How, came: tuple[Any, ...], started: float) -> None:
        """What the driver said is what the store says."""
        root, now = self.known.get("", Known()), self.world.clock.now()
        due = wake_at = None
        match came[0]:
            case "done":
                assert (root.status, root.value) == ("done", came[1])
            case "failed":
                assert (root.status, model.facts(self.known, "")) == ("failed", came[1])
            case "pending":
                due = now + came[1]
                assert not root.over
                assert came[1] > 0
                assert due > started + how.max_wait
                assert about(self.known[came[3]].due, now) == about(due, now)
            case _:
                assert not how.undisturbed
                return
        (line,) = self.world.listing()
        assert (line.status, line.owner) == (came[0], None)
        if line.wake_at is not None:
            wake_at = line.wake_at.timestamp()
        assert about(wake_at, now) == about(due, now)

    def check_pass(self, forecast: Forecast, came: tuple[Any, ...]) -> None:
        """A pass in which nothing happened that is not in the model did just what it says."""
        if forecast.outcome == ("unsure",):
            return
        world, after = self.world, self.known
        expected = forecast.outcome
        if expected[0] == "pending":
            assert came[0] == "pending"
            assert abs(max(expected[1] - world.clock.now(), 0.001) - came[1]) < 1e-6
        else:
            self.compare(expected, came[:2], loosely=bool(forecast.racy))
        sure = {p for p in {*after, *forecast.known} if not forecast.is_racy(p)}
        assert {
            p: model.news(after, p)
            for p in sure
            if p in after and after[p].speaks and p not in forecast.racy
        } == {
            p: model.news(forecast.known, p)
            for p in sure
            if p in forecast.known and forecast.known[p].speaks and p not in forecast.racy
        }
        assert {p: n for p, n in world.runs.items() if p in sure} == {
            p: n for p, n in forecast.runs.items() if p in sure and not self.is_sleep(p)
        }
        if not forecast.racy:
            assert came[2] == forecast.vanished

    def compare(
        self, a: tuple[Any, ...], b: tuple[Any, ...], *, loosely: bool, ordered: bool = True
    ) -> None:
        if ("unsure",) in (a, b):
            return
        if loosely and a[0] == "failed":
            assert (a[0], a[1][0]) == (b[0], b[1][0])
        elif a[0] == b[0] == "failed" and not ordered:
            assert model.in_any_order(a[1]) == model.in_any_order(b[1])
        else:
            assert a == b

    def forecast(
        self, known: Knowledge, tasks: dict[str, float], now: float, *, to_the_end: bool
    ) -> Forecast:
        return Forecast(self.world.program, known, tasks, now, to_the_end=to_the_end)

    def is_still(self) -> bool:
        """Whether time stands still while bodies work."""
        return not any(n.nap or "hang" in n.script for _, n in model.walk(self.world.program))

    def is_sleep(self, path: str) -> bool:
        return any(p == path and n.kind == "sleep" for p, n in model.walk(self.world.program))

    # -- operators --

    def paths(self, *kinds: str) -> list[str]:
        """Recorded steps that are in the program and of these kinds."""
        return [p for p, n in model.walk(self.world.program) if p in self.known and n.kind in kinds]

    @precondition(lambda self: "" in self.known)
    @rule()
    def recover(self) -> None:
        self.edit("", State.recover, model.recover, over=self.known[""].status == "failed")

    @precondition(lambda self: self.failed())
    @rule(data=st.data())
    def recover_one(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(self.failed()), "path")
        self.edit(path, lambda state: state.recover(path), model.recover)

    def failed(self) -> list[str]:
        return [p for p, k in self.known.items() if k.status in ("failed", "retrying")]

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.known)), "path")
        self.edit(path, lambda state: state.reset(path), model.reset)
        self.world.forget(path, below=True)

    @precondition(lambda self: self.paths("leaf", "call", "poll", "seq", "guard", "raw")[1:])
    @rule(data=st.data())
    def set_result(self, data: st.DataObject) -> None:
        paths = self.paths("leaf", "call", "poll", "seq", "guard", "raw")[1:]
        path = data.draw(st.sampled_from(paths), "path")
        value = "by hand"
        self.edit(
            path,
            lambda state: state.set_result(path, value),
            lambda known, path: model.set_result(known, path, value),
        )
        self.world.settled[path] = value
        self.world.completed.add(path)

    def edit(
        self,
        path: str,
        edit: Callable[[State], object],
        same: Callable[[Knowledge, str], None],
        *,
        over: bool = True,
    ) -> None:
        """Let asteps and the model do the same to the tree."""
        self.fine = False
        world, expected = self.world, self.known
        world.edit(edit)
        self.known = world.known()
        if over:
            was = deepcopy(expected)
            model.reopen_above(expected, path)
            same(expected, path)
            world.forget(path, below=False)
            world.unknown -= {path} | {
                p for p, k in was.items() if k.speaks and not expected.get(p, k).speaks
            }
            world.settled.pop(path, None)
        assert self.known.keys() == expected.keys()
        for each in expected:
            assert (each, model.news(self.known, each)) == (each, model.news(expected, each))
        self.fine = True

    # -- programmers --

    def parents(self) -> list[str]:
        kinds = ("seq", "raw", "group", "map")
        return [p for p, n in model.walk(self.world.program) if n.kind in kinds]

    @rule(data=st.data(), new=model.nodes("new", depth=0, still=True))
    def add_a_step(self, data: st.DataObject, new: Node) -> None:
        path = data.draw(st.sampled_from(self.parents()), "below")
        node = dict(model.walk(self.world.program))[path]
        self.added += 1
        new = replace(new, name=f"{new.name}{self.added}")
        if node.kind == "map":
            if new.kind != "leaf":
                return
            new = model.as_item(new, node)
        if node.kind == "group" and new.kind == "sleep":
            return
        place = data.draw(st.integers(0, len(node.steps)), "place")
        steps = (*node.steps[:place], new, *node.steps[place:])
        self.change(path, replace(node, steps=steps))

    @rule(data=st.data())
    def remove_a_step(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(self.parents()), "below")
        node = dict(model.walk(self.world.program))[path]
        if node.steps:
            place = data.draw(st.integers(0, len(node.steps) - 1), "place")
            self.change(path, replace(node, steps=(*node.steps[:place], *node.steps[place + 1 :])))

    @rule(data=st.data())
    def mend_a_step(self, data: st.DataObject) -> None:
        broken = {p: n for p, n in model.walk(self.world.program) if n.script or n.breaks}
        if broken:
            path = data.draw(st.sampled_from(sorted(broken)), "path")
            self.change(path, replace(broken[path], script=(), breaks=False))

    def change(self, path: str, new: Node) -> None:
        self.world.program = model.changed(self.world.program, path, new)

    # -- the end --

    def teardown(self) -> None:
        """Drive it to its end, and once more: nothing runs then."""
        if not self.fine:
            return
        for _ in range(200):
            came = self.drive(self.ending)
            if came[0] != "pending":
                again = self.drive(self.ending)
                assert again[:2] == came[:2]
                assert not self.world.runs
                return
            self.world.clock.advance(came[1])
        pytest.fail("the run does not come to an end")


# --- the tests ------------------------------------------------------------------------------------

_found_at_once = settings(
    max_examples=300,
    stateful_step_count=STEPS,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)


def test_whatever_happens_a_run_comes_to_what_its_program_says() -> None:
    """Crashes, cancellations, lost saves, edits and changed code: no outcome is lost or doubled."""
    faulthandler.cancel_dump_traceback_later()  # shrinking takes its time; a pass has PATIENCE
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=max(150, settings().max_examples),
            stateful_step_count=STEPS,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


async def _take_nothing(slot: object) -> None:
    """A limit that does not limit."""


def _forget_failures(saver: Saver, path: str, node: State | None) -> None:
    """A failure does not get into the store."""
    if node is None or not node.failed:
        touch(saver, path, node)


def _count_double(node: State, failure: asteps.Failure, wake_at: float, now: float) -> None:
    """A retry uses up two attempts."""
    retry_later(node, failure, wake_at, now)
    _state.detail(node).attempt += 1


touch = Saver.touch
retry_later = _state.retry_later


@pytest.mark.parametrize(
    ("where", "mutation"),
    [
        ("asteps._slot.Slot.take", _take_nothing),
        ("asteps._saver.Saver.touch", _forget_failures),
        ("asteps._work.retry_later", _count_double),
    ],
    ids=["limit", "lost", "attempts"],
)
def test_the_machine_bites(
    monkeypatch: pytest.MonkeyPatch, where: str, mutation: Callable[..., object]
) -> None:
    """An engine that breaks a promise is found out, or hangs."""
    monkeypatch.setattr(where, mutation)
    monkeypatch.setattr("test_state_machine.PATIENCE", 2)
    with pytest.raises((AssertionError, TimeoutError)):
        run_state_machine_as_test(Machine, settings=_found_at_once)
