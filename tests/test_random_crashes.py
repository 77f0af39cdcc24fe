"""Two concurrent sequences of steps, crashed at hundreds of random points: right every time.

Each trial draws two sequences of unequal length, of steps of every kind, and lets one process
after another die: before or after a save, with acknowledgements lost and saves that land late, or
between two saves, in the middle of whatever runs. What is in the store is never run again, and what
comes out in the end is what comes out undisturbed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import anyio
import pytest
from anyio.lowlevel import checkpoint
from clocks import FakeClock

import asteps
from asteps import ConflictError, Done, Pending, Step, load_state
from asteps.stores.memory import MemoryStore
from asteps.testing import Crash, FaultyStore
from asteps.testing._faulty import Save, SaveFault

CRASHES = 300  # per shape and event loop
SEED = int(os.environ.get("CRASH_SEED", "0"))

Kind: TypeAlias = Literal["do", "nested", "call", "thread", "poll", "sleep", "map"]
KINDS: tuple[Kind, ...] = ("do", "nested", "call", "poll", "sleep", "map")

# --- what is run ----------------------------------------------------------------------------------


class Op(NamedTuple):
    """One step of a sequence."""

    kind: Kind
    name: str
    amount: int  # what it does to the value that is handed on
    turns: int  # of the event loop, in each of its bodies
    seconds: int  # of its bodies, its pauses, its sleep
    times: int  # of its checks, its items, its children


class Plan(NamedTuple):
    """Two sequences, and what they make of their values."""

    left: list[Op]
    right: list[Op]

    @property
    def result(self) -> list[int]:
        """What the flow returns, undisturbed."""
        return [came_to(self.left), came_to(self.right)]


def draw_plan(rng: random.Random) -> Plan:
    """Two sequences of unequal length."""

    def op(side: str, number: int) -> Op:
        kind = "thread" if rng.random() < 0.03 else rng.choice(KINDS)
        return Op(
            kind,
            f"{side}{number}",
            rng.randrange(1, 1000),
            rng.choice((0, 0, 1, 3, 8)),
            rng.choice((0, 0, 0, 1, 2, 5)),
            rng.randrange(1, 4),
        )

    short, long = rng.randrange(1, 5), rng.randrange(5, 9)
    lengths = [short, long] if rng.random() < 0.5 else [long, short]
    left, right = ([op(side, n) for n in range(k)] for side, k in zip("ab", lengths, strict=True))
    return Plan(left, right)


def after_op(op: Op, value: int) -> int:
    """What an operation makes of the value that it is handed."""
    match op.kind:
        case "sleep":
            return value
        case "map":
            return sum(mixed(value, op.amount + n) for n in range(op.times)) % 1_000_003
        case "nested":
            for n in range(op.times):
                value = mixed(value, op.amount + n)
            return value
        case _:
            return mixed(value, op.amount)


def mixed(value: int, amount: int) -> int:
    """Depends on the order in which things are done."""
    return (value * 31 + amount) % 1_000_003


def came_to(sequence: list[Op]) -> int:
    """The last value of a sequence."""
    value = 1
    for op in sequence:
        value = after_op(op, value)
    return value


# --- the world ------------------------------------------------------------------------------------


class World:
    """What outlives every process, and what is checked while they run."""

    def __init__(self, plan: Plan, shape: str) -> None:
        self.plan = plan
        self.shape = shape
        self.clock = FakeClock()
        self.storage = MemoryStore()
        self.effects: Counter[str] = Counter()  # bodies begun, tasks started
        self.tokens: dict[str, str] = {}
        self.tasks: dict[str, str] = {}  # of the cloud: by token
        self.checks: Counter[str] = Counter()
        self.reports = True  # what has returned is in the store
        self.ticks = 0  # moments at which this process may die
        self.dies_at = 0  # ... and at which it does
        self.die: Callable[[], None] | None = None
        self.strays: list[Save] = []  # of the dead, still on their way

    # -- what the store knows, looked at without asking it --

    def stored(self, path: str) -> dict[str, Any]:
        run = self.storage._storage.runs.get("r")
        record = None if run is None else run.records.get(path)
        found: dict[str, Any] = {} if record is None else json.loads(record)
        return found

    def is_stored(self, path: str) -> bool:
        """Whether the store has an outcome of this step, or of one above it."""
        parts = path.split("/")
        return any("doneAt" in self.stored("/".join(parts[:n])) for n in range(1, len(parts) + 1))

    # -- effects --

    def begin(self, path: str) -> None:
        """A body begins to do something to the outside world."""
        assert not self.is_stored(path), f"{path} ran although its outcome was in the store"
        self.effects[path] += 1

    async def work(self, op: Op) -> None:
        """Give others time, and processes opportunity to die."""
        while self.strays:  # whoever runs a body holds the run: what others saved comes too late
            with pytest.raises(ConflictError):
                await self.land(self.strays.pop())
        for _ in range(op.turns):
            self.tick()
            await checkpoint()
        if op.seconds:
            await self.clock.sleep(op.seconds / 3)
        self.tick()

    def tick(self) -> None:
        self.ticks += 1
        if self.ticks == self.dies_at and self.die is not None:
            self.die()

    # -- bodies --

    async def leaf(self, s: Step, op: Op, value: int, amount: int) -> int:
        assert self.tokens.setdefault(s.path, s.token) == s.token
        self.begin(s.path)
        await self.work(op)
        return mixed(value, amount)

    async def item(self, s: Step, op: Op, value: int, number: int) -> int:
        return await self.leaf(s, op, value, op.amount + number)

    async def nested(self, s: Step, op: Op, value: int) -> int:
        assert not self.is_stored(s.path)
        for n in range(op.times):
            value = await s.do(f"n{n}", self.leaf, op, value, op.amount + n)
        return value

    async def plain(self, path: str, op: Op, value: int) -> int:
        self.begin(path)
        await self.work(op)
        return mixed(value, op.amount)

    def in_thread(self, path: str, op: Op, value: int) -> int:
        self.begin(path)
        return mixed(value, op.amount)

    async def start(self, path: str, op: Op, token: str) -> str:
        """The cloud gives the same task for the same token, as clouds do."""
        known = self.stored(path).get("info")
        assert known is None, f"{path} was started although the store had {known}"
        assert self.tokens.setdefault(path, token) == token
        self.begin(path)
        await self.work(op)
        task = self.tasks.setdefault(token, f"task-{len(self.tasks)}")
        self.tick()
        return task

    async def check(self, path: str, op: Op, value: int, task: str) -> int | None:
        info = self.stored(path)["info"]
        assert info["taskId"] == task == self.tasks[self.tokens[path]]
        assert not self.is_stored(path)
        self.tick()
        await checkpoint()
        self.checks[path] += 1
        self.tick()
        return mixed(value, op.amount) if self.checks[path] >= op.times else None

    async def do(self, s: Step, op: Op, value: int) -> int:
        path = f"{s.path}/{op.name}" if s.path else op.name
        match op.kind:
            case "do":
                value = await s.do(op.name, self.leaf, op, value, op.amount)
            case "nested":
                value = await s.do(op.name, self.nested, op, value)
            case "call":
                value = await s.call(op.name, self.plain, path, op, value)
            case "thread":
                value = await s.call(op.name, self.in_thread, path, op, value)
            case "poll":
                start = partial(self.start, path, op, s.token_for(op.name))
                check = partial(self.check, path, op, value)
                value = await s.poll(op.name, start, check, every=op.seconds + 0.5)
            case "sleep":
                await s.sleep(op.name, op.seconds)
                if info := self.stored(path).get("info"):
                    until = datetime.fromisoformat(info["until"]).timestamp()
                    assert self.clock.now() >= until - 1e-5
            case "map":
                one = partial(self.item_of, op, value)
                values = await s.map(op.name, one, range(op.times), limit=1 + op.turns % 3)
                value = sum(values) % 1_000_003
        assert self.is_stored(path) or not self.reports, f"{path} returned, and is not in the store"
        self.tick()
        return value

    async def item_of(self, op: Op, value: int, s: Step, number: int) -> int:
        return await self.item(s, op, value, number)

    # -- the flow --

    async def sequence(self, s: Step, ops: list[Op]) -> int:
        value = 1
        for op in ops:
            value = await self.do(s, op, value)
        return value

    async def flow(self, s: Step) -> list[int]:
        left, right = self.plan
        found: dict[str, int] = {}

        async def beside(side: str, ops: list[Op]) -> None:
            found[side] = await self.sequence(s, ops)

        if self.shape == "gather":
            return list(await asyncio.gather(self.sequence(s, left), self.sequence(s, right)))
        if self.shape == "task group":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(beside, "left", left)
                tasks.start_soon(beside, "right", right)
            return [found["left"], found["right"]]
        async with s.group("g") as g:
            one = g.do("left", self.sequence, left)
            other = g.do("right", self.sequence, right)
        return [one.result, other.result]

    # -- processes --

    async def land(self, save: Save) -> None:
        """A save that was on its way arrives."""
        await self.storage.save(
            save.id,
            save.changes,
            expected=save.expected,
            epoch=save.epoch,
            write_id=save.write_id,
            summary=save.summary,
        )

    def survivors(self, exc: BaseException) -> list[BaseException]:
        """What was raised beside the death of the process."""
        if isinstance(exc, BaseExceptionGroup):
            return [each for inner in exc.exceptions for each in self.survivors(inner)]
        dead = isinstance(exc, Crash | anyio.get_cancelled_exc_class())
        return [] if dead else [exc]

    def process(self, death: Death) -> FaultyStore:
        """The store of a process that will die."""

        def decide(save: Save) -> SaveFault | None:
            if save.number == death.on_its_way and self.die is not None:
                self.die()
                return "late"
            return death.faults.get(save.number)

        return FaultyStore(self.storage.client(), decide)

    async def life(self, mode: str, store: FaultyStore, dies_at: int = 0) -> object:
        """A process that drives the flow until it has ended, or has died."""
        self.ticks, self.dies_at = 0, dies_at
        self.reports = mode != "pass"
        keywords: Any = {"store": store, "id": "r", "clock": self.clock, "name": "flow"}
        max_wait = {"in place": 1_000_000, "passes": 0, "some": 2, "pass": 1}[mode]
        if mode == "pass":
            keywords["save"] = "pass"
        value: object = Crash
        with anyio.CancelScope() as scope:

            def die() -> None:
                store._dead = True  # from here on nothing reaches the storage any more
                store._death.set()
                scope.cancel()

            self.die = die
            try:
                while value is Crash:
                    outcome = await asteps.reconcile(self.flow, max_wait=max_wait, **keywords)
                    if isinstance(outcome, Done):
                        value = outcome.value
                    else:
                        assert isinstance(outcome, Pending), outcome
                        await self.clock.sleep(outcome.after)
            except BaseException as exc:
                if not store.crashed or self.survivors(exc):
                    raise
        self.die = None
        with anyio.CancelScope(shield=True):
            await store._store.aclose()
        return Crash if store.crashed else value


MODES = ("in place", "in place", "passes", "some", "pass")
FAULTS: tuple[SaveFault, ...] = ("lost", "late", "dropped", "unavailable")


class Death(NamedTuple):
    """How a process dies."""

    faults: dict[int, SaveFault]
    tick: int = 0  # the moment at which it dies
    on_its_way: int = 0  # the save during which it dies, and which may still land


def draw_death(rng: random.Random, saves: int, ticks: int) -> Death:
    """Faults of saves, with the death of the process at a save or at a moment between."""
    faults: dict[int, SaveFault] = {}
    if rng.random() < 0.5:
        for _ in range(rng.randrange(1, 4)):
            faults[rng.randrange(1, saves + 1)] = rng.choice(FAULTS)
    if rng.random() < 0.4:
        return Death(faults, tick=rng.randrange(1, ticks + 1))
    number = rng.randrange(1, saves + 1)
    if faults and rng.random() < 0.5:  # while it finds out what became of a save
        number = rng.choice(list(faults)) + 1
    if rng.random() < 0.2:
        return Death(faults, on_its_way=number)
    faults[number] = rng.choice(("crash before", "crash after"))
    return Death(faults)


class Trial:
    """One plan, crashed until a process survives."""

    def __init__(self, shape: str, number: int) -> None:
        self.rng = random.Random(f"{shape} {number} {SEED}")
        self.world = World(draw_plan(self.rng), shape)
        self.crashes = 0
        self.late = 0

    async def run(self, saves: int, ticks: int) -> None:
        rng, world = self.rng, self.world
        value: object = Crash
        while value is Crash:
            death = draw_death(rng, saves, ticks) if self.crashes < 4 else Death({})
            store = world.process(death)
            value = await world.life(rng.choice(MODES), store, death.tick)
            if value is not Crash:
                break
            self.crashes += 1
            for save in store._late:  # on its way when the process died
                self.late += 1
                if rng.random() < 0.5:
                    with suppress(ConflictError):
                        await world.land(save)
                else:
                    world.strays.append(save)
            world.clock.advance(rng.choice((0, 0, 1, 100)))
        assert value == world.plan.result
        await self.check_tree()
        self.check_effects()

    async def check_tree(self) -> None:
        state = await load_state(self.world.storage, "r")
        assert state is not None
        assert [path for path, node in state.walk() if not node.done] == []
        assert state.result_as(list[int]) == self.world.plan.result

    def check_effects(self) -> None:
        """Each effect took place, and not once more than there were processes."""
        world = self.world
        for path, times in world.effects.items():
            assert 1 <= times <= self.crashes + 1, path
            assert world.is_stored(path)
        ops = [*world.plan.left, *world.plan.right]
        each = {"nested": 0, "map": 0, "sleep": 0}
        expected = sum(
            op.times if op.kind in ("nested", "map") else each.get(op.kind, 1) for op in ops
        )
        assert len(world.effects) == expected
        assert len(world.tasks) == sum(op.kind == "poll" for op in ops)


async def usual(shape: str) -> tuple[int, int]:
    """About how many saves and moments an undisturbed process has; and that it comes out right."""
    saves, ticks = [], []
    for number in range(10):
        trial = Trial(shape, number)
        for mode in sorted(set(MODES)):
            world = World(trial.world.plan, shape)
            store = FaultyStore(world.storage.client())
            assert await world.life(mode, store) == world.plan.result
            assert set(world.effects.values()) == {1} or mode == "pass"
            saves.append(store.saves)
            ticks.append(world.ticks)
    return sum(saves) // len(saves), sum(ticks) // len(ticks)


@pytest.mark.parametrize("shape", ["gather", "task group", "group"])
async def test_crashed_at_random_points(shape: str, anyio_backend: str) -> None:
    """After 300 crashes at random points, one or several in a run, each result is right."""
    if shape == "gather" and anyio_backend == "trio":
        return
    began = time.perf_counter()
    saves, ticks = await usual(shape)
    crashes, trials, late, effects, bodies = 0, 0, 0, 0, 0
    several = 0
    while crashes < CRASHES:
        trial = Trial(shape, trials)
        try:
            await trial.run(saves, ticks)
        except BaseException as exc:
            exc.add_note(f"trial {trials} of {shape}, seed {SEED}: {trial.world.plan}")
            raise
        trials += 1
        crashes += trial.crashes
        late += trial.late
        several += trial.crashes > 1
        effects += sum(trial.world.effects.values())
        bodies += len(trial.world.effects)
    took = time.perf_counter() - began
    print(
        f"{shape}: {crashes} crashes in {trials} runs of {bodies / trials:.0f} bodies "
        f"({several} crashed more than once, {late} late saves), "
        f"{effects - bodies} of {effects} bodies ran again, {took:.1f} s"
    )
    assert effects > bodies  # crashes do hit bodies
    assert several
    assert late


def test_the_trials_are_the_same_every_time() -> None:
    """A trial is drawn from its shape and number alone, so that a failure can be looked into."""
    for number in range(20):
        one, other = Trial("group", number), Trial("group", number)
        assert one.world.plan == other.world.plan
        assert draw_death(one.rng, 20, 50) == draw_death(other.rng, 20, 50)
        lengths = len(one.world.plan.left), len(one.world.plan.right)
        assert min(lengths) < 5 <= max(lengths)
