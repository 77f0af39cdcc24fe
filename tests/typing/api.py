"""How the public API types: checked by mypy and pyright, never run.

Every function is a use as it stands in user code. `assert_type` fixes what a call gives back; an
ignored error fixes that a wrong call is one (both checkers complain where there is none).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, assert_never, assert_type

import asteps
from asteps import Done, Failed, Pending, Retry, State, Step, StepError
from asteps.stores.file import FileStore
from asteps.stores.memory import MemoryStore
from asteps.stores.sqlite import SQLiteStore

T = TypeVar("T")


@dataclass
class Report:
    image: str
    nics: list[int]


async def quota(vm: str) -> int:
    return len(vm)


def mail(vm: str) -> None:
    del vm


async def initialize(s: Step, vm: str) -> float:
    del s
    return float(len(vm))


class Cloud:
    """A client with methods, and a callable object."""

    async def quota(self, vm: str) -> int:
        return len(vm)

    def region(self) -> str:
        return "eu-1"

    async def migrate(self, s: Step, vm: str) -> list[str]:
        return [s.path, vm]

    async def __call__(self, s: Step) -> bytes:
        return s.path.encode()


async def total(s: Step, *sizes: int) -> int:
    return sum(sizes) + s.attempt


async def same(s: Step, value: T) -> T:
    del s
    return value


async def maybe(s: Step) -> int | None:
    return s.attempt or None


def plain(value: object) -> Any:
    return value


async def plain_step(s: Step) -> Any:
    return s.attempt


async def move(s: Step, vm: str) -> Report:
    assert_type(await s.do("initialize", initialize, vm), float)
    assert_type(await s.do(initialize, vm), float)
    assert_type(await s.do("retried", initialize, vm, retry=Retry(attempts=5), timeout=30), float)
    assert_type(await s.do("once", initialize, vm, at_most_once=True, inputs=vm), float)
    assert_type(await s.call("quota", quota, vm, timeout=timedelta(seconds=3)), int)
    assert_type(await s.call("mail", mail, vm), None)
    assert_type(await s.call("length", len, vm), int)
    cloud = Cloud()
    assert_type(await s.do("method", cloud.migrate, vm), list[str])
    assert_type(await s.do("object", cloud), bytes)
    assert_type(await s.do("partial", partial(initialize, vm=vm)), float)
    assert_type(await s.do("lambda", lambda c: initialize(c, vm)), float)
    assert_type(await s.do("starred", total, 1, 2, 3), int)
    assert_type(await s.do("generic", same, vm), str)
    assert_type(await s.do("maybe", maybe), int | None)
    assert_type(await s.do("typed", plain_step, returns=int), int)
    assert_type(await s.do("", initialize, vm), float)
    assert_type(await s.call("bound", cloud.quota, vm), int)
    assert_type(await s.call("sync bound", cloud.region), str)
    assert_type(await s.call("awaited on the loop", lambda: cloud.quota(vm)), int)
    assert_type(await s.call("typed plain", plain, vm, returns=str), str)
    assert_type(await s.call(quota, vm), int)
    retry = Retry(attempts=3, delay=timedelta(seconds=1), on=(ConnectionError, TimeoutError))
    assert_type(await s.call("all", quota, vm, retry=retry, timeout=3.5, inputs={"vm": vm}), int)
    assert_type(s.info_as(dict[str, int]), dict[str, int] | None)
    assert_type(s.token, str)
    assert_type(s.token_for("snapshot"), str)
    assert_type(s.attempt, int)
    assert_type(s.path, str)
    await s.save_info({"nics": 2})
    return Report(vm, [1])


async def never_comes_back(s: Step) -> int:
    if s.attempt == 1:
        s.pending(after=5, why="not yet")
    s.fail("for good")


async def drive(store: MemoryStore | FileStore | SQLiteStore) -> Report | None:
    assert_type(await asteps.run(move, "vm-42"), Report)
    assert_type(await asteps.run(move, "vm-42", store=store, id="x"), Report)
    assert_type(await asteps.run(never_comes_back, store=store, id="y", lease=10), int)
    outcome = await asteps.reconcile(move, "vm-42", store=store, id="x", max_wait=1)
    match outcome:
        case Done():
            assert_type(outcome.value, Report)
            assert_type(outcome.state, State)
            return outcome.value
        case Failed():
            assert_type(outcome.error, StepError)
        case Pending():
            assert_type(outcome.after, float)
            assert_type(outcome.vanished, tuple[str, ...])
        case _:
            assert_never(outcome)
    async with asteps.open_run("MoveToVPC", store=store, id="z") as s:
        assert_type(s, Step)
        assert_type(await s.do("initialize", initialize, "vm-42"), float)
    return None


async def operate(store: SQLiteStore) -> None:
    state = await asteps.load_state(store, "x")
    assert_type(state, State | None)
    if state is not None:
        assert_type(state.encode(), bytes)
        assert_type(State.decode(state.encode()), State)
        assert_type(state.failed, bool)
        assert_type(state.get("inFlight/initialize"), State)
    async with asteps.edit_run(store, "x") as tree:
        assert_type(tree, State)
        tree.recover()
        tree.reset("inFlight/initialize")
        tree.set_result("quota", 5)


async def wrong(s: Step) -> None:
    await s.do("initialize", initialize, 5)  # type: ignore[arg-type]
    await s.do("initialize", initialize)  # type: ignore[arg-type, call-arg]
    await s.call("quota", quota, "vm", "more")  # type: ignore[arg-type, call-arg]
    await s.do("initialize", initialize, "vm", retry=3)  # type: ignore[call-overload]
    await asteps.run(move, 5)  # type: ignore[arg-type]
