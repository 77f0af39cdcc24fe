"""How the public API types: checked by mypy and pyright, never run.

Every function is a use as it stands in user code. `assert_type` fixes what a call gives back; an
ignored error fixes that a wrong call is one (both checkers complain where there is none).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, assert_never, assert_type

import anyio

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


async def snapshot(vm: str, *, token: str) -> int:
    return len(vm + token)


async def image_of(task: int) -> bytes | None:
    return str(task).encode() if task else None


def image_now(task: int) -> bytes | None:
    return b"" if task else None


async def attach(s: Step, nic: int) -> str:
    return f"{s.path}: {nic}"


async def concurrently(s: Step, vm: str) -> list[str]:
    start = partial(snapshot, vm, token=s.token_for("snapshot", inputs=vm))
    assert_type(await s.poll("snapshot", start, image_of, every=5, timeout=3600), bytes)
    assert_type(await s.poll("mixed", start, image_now, every=timedelta(seconds=5)), bytes)
    assert_type(await s.poll("plain", lambda: 3, image_of, every=Retry(factor=1.5)), bytes)
    assert_type(await s.poll("named", start=lambda: 3, check=image_now, every=5), bytes)
    assert_type(await s.poll("typed", start, plain, every=5, returns=str), str)
    await s.sleep("let DNS settle", timedelta(minutes=1))
    assert_type(await s.map("attach", attach, [1, 2], limit=4), list[str])
    assert_type(
        await s.map("keyed", attach, range(3), key=lambda nic: f"nic{nic}", tolerate=1), list[str]
    )
    assert_type(await s.map("typed map", plain_item, ["a"], returns=int, inputs=len), list[int])
    async with s.group("inFlight", limit=8, on_error="cancel") as g:
        assert_type(g, asteps.Group)
        moved = g.do("migrate", Cloud().migrate, vm, retry=Retry())
        mailed = g.call("notify", mail, vm)
        found = g.call(quota, vm)
        image = g.poll("image", lambda: 3, image_of, every=1)
        nics = g.map("nics", attach, {1, 2}, enough=1)
        assert_type(g.token_for("image"), str)
    assert_type(moved, asteps.Child[list[str]])
    assert_type(moved.result, list[str])
    assert_type(mailed.result, None)
    assert_type(found.result, int)
    assert_type(image.result, bytes)
    assert_type(nics.result, list[str])
    assert_type(moved.state, State)
    async with s.group("shared", limit=anyio.CapacityLimiter(2), enough=1, tolerate=2):
        pass
    return nics.result


async def plain_item(s: Step, item: str) -> Any:
    return item + s.path


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
    async for line in asteps.browse_runs(store, status=["done", "failed"], limit=20):
        assert_type(line, asteps.RunSummary)
    async for line, root in asteps.scan_runs(store, damaged=print):
        assert_type(line, asteps.RunSummary)
        assert_type(root, State)
    assert_type(await asteps.prune(store, older_than=timedelta(days=30)), asteps.PruneReport)
    assert_type(await asteps.inspect_store(store), asteps.StoreReport)
    data = await asteps.export_run(store, "x")
    async with asteps.open_store("sqlite:other.db") as other:
        assert_type(other, asteps.Store)
        assert_type(await asteps.import_run(other, "x", data), State)


async def wrong(s: Step) -> None:
    await s.do("initialize", initialize, 5)  # type: ignore[arg-type]
    await s.do("initialize", initialize)  # type: ignore[arg-type, call-arg]
    await s.call("quota", quota, "vm", "more")  # type: ignore[arg-type, call-arg]
    await s.do("initialize", initialize, "vm", retry=3)  # type: ignore[call-overload]
    await asteps.run(move, 5)  # type: ignore[arg-type]
