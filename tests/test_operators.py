"""Operators look at stored runs, edit, list and delete them, and never behind a driver's back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import anyio
import pytest

import asteps
from asteps import (
    BusyError,
    ConflictError,
    DuplicateStepError,
    Failed,
    LeaseStore,
    ListStore,
    Pending,
    Retry,
    RunSummary,
    State,
    Step,
    StepError,
    StoredRun,
    Summary,
    UsageError,
    delete_run,
    edit_run,
    list_runs,
    load_state,
    reconcile,
    run,
)
from asteps.stores.memory import MemoryStore
from asteps.testing import FaultyStore


class CompareAndSet:
    """A store with compare-and-set alone, such as a Kubernetes status."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def load(self, id: str, /) -> StoredRun | None:
        return await self._store.load(id)

    async def save(
        self,
        id: str,
        changes: Mapping[str, bytes | None],
        /,
        *,
        expected: str | None,
        epoch: int,
        write_id: str,
        summary: Summary,
    ) -> str:
        return await self._store.save(
            id, changes, expected=expected, epoch=epoch, write_id=write_id, summary=summary
        )

    async def delete(self, id: str, /, *, expected: str) -> None:
        await self._store.delete(id, expected=expected)

    async def aclose(self) -> None:
        await self._store.aclose()


class Flow:
    """A run of nested steps of which some can be told to fail; it notes what its bodies do."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.broken: set[str] = set()
        self.tokens: dict[str, str] = {}

    def take(self) -> list[str]:
        taken, self.log = self.log, []
        return taken

    async def leaf(self, s: Step) -> str:
        self.log.append(s.path)
        self.tokens[s.path] = s.token
        if s.path in self.broken:
            raise ConnectionError(f"{s.path} is down")
        return s.path

    async def first(self, s: Step) -> list[str]:
        self.log.append(s.path)
        return [await s.do("a", self.leaf), await s.do("b", self.leaf)]

    async def second(self, s: Step) -> str:
        self.log.append(s.path)
        try:
            return await s.do("main", self.leaf)
        except StepError:
            return await s.do("fallback", self.leaf)

    async def root(self, s: Step) -> list[Any]:
        self.log.append("root")
        return [await s.do("one", self.first), await s.do("two", self.second)]


async def state_of(store: asteps.Store, id: str = "r") -> State:
    """The tree of a run that is there."""
    state = await load_state(store, id)
    assert state is not None
    return state


async def stored(store: asteps.Store, id: str = "r") -> StoredRun:
    """What the store has of a run."""
    found = await store.load(id)
    assert found is not None
    return found


# --- load_state -----------------------------------------------------------------------------------


async def test_load_state() -> None:
    """The tree as it was last saved, or ``None``; a copy, to be had while a driver runs."""
    store, flow = MemoryStore(), Flow()
    assert await load_state(store, "r") is None
    seen: list[list[tuple[str, bool]]] = []

    async def look(s: Step) -> None:
        seen.append([(p, n.done) for p, n in (await state_of(store.client())).walk()])

    async def root(s: Step) -> None:
        await s.do("one", flow.first)
        await s.do("look", look)

    await run(root, store=store, id="r")
    assert seen == [[("", False), ("one", True), ("one/a", True), ("one/b", True)]]
    state = await state_of(store)
    assert state.get("one").result_as(list[str]) == ["one/a", "one/b"]
    state.reset("one")
    assert (await state_of(store)).get("one").done


@pytest.mark.parametrize("id", ["", "x" * 501, "a\x00", 7])
async def test_ids_are_checked(id: Any) -> None:
    """Every operator refuses an id that no run can have."""
    store = MemoryStore()
    with pytest.raises(UsageError, match="id="):
        await load_state(store, id)
    with pytest.raises(UsageError, match="id="):
        await delete_run(store, id)
    with pytest.raises(UsageError, match="id="):
        async with edit_run(store, id):
            pass


# --- fail, recover, go on -------------------------------------------------------------------------


async def test_the_whole_cycle() -> None:
    """A run fails, is recovered by hand, and goes on where it stood."""
    store, flow = MemoryStore(), Flow()
    flow.broken = {"one/b"}
    for _ in range(2):
        with pytest.raises(StepError) as found:
            await run(flow.root, store=store, id="r")
        assert found.value.origin == "one/b"
    assert flow.take() == ["root", "one", "one/a", "one/b"]
    assert (await list_runs(store, status="failed"))[0].id == "r"
    flow.broken = set()
    async with edit_run(store, "r") as state:
        assert state.recover() == ["one/b", "one", ""]
    summary = (await stored(store)).summary
    assert (summary.status, summary.owner, summary.done_at) == ("pending", None, None)
    assert summary.wake_at is not None  # due at once
    assert summary.wake_at <= summary.updated_at
    assert await run(flow.root, store=store, id="r") == [["one/a", "one/b"], "two/main"]
    assert flow.take() == ["root", "one", "one/b", "two", "two/main"]
    assert (await list_runs(store))[0].status == "done"


async def test_recover_leaves_handled_failures_alone() -> None:
    """``recover()`` follows the causes of the run's failure; what a parent handled is history."""
    store, flow = MemoryStore(), Flow()
    flow.broken = {"two/main", "two/fallback"}
    with pytest.raises(StepError) as found:
        await run(flow.root, store=store, id="r")
    assert found.value.origin in ("two/fallback", "two/main")
    flow.take()

    async def root(s: Step) -> None:
        await s.do("handled", handled)
        await s.do("bad", flow.leaf)

    async def handled(s: Step) -> str:
        return await flow.second(s)

    flow.broken = {"handled/main", "bad"}
    with pytest.raises(StepError):
        await run(root, store=store, id="h")
    flow.take()
    flow.broken = set()
    async with edit_run(store, "h") as state:
        assert state.get("handled/main").failed
        assert state.recover() == ["bad", ""]
        assert state.get("handled/main").failed
        assert state.get("handled").done
    await run(root, store=store, id="h")
    assert flow.take() == ["bad"]
    # By its path it can be recovered all the same.
    async with edit_run(store, "h") as state:
        assert state.recover("handled/main") == ["handled/main"]
        assert not state.get("handled").done
        assert not state.done
    await run(root, store=store, id="h")
    assert flow.take() == ["handled", "handled/main"]


async def test_a_failure_handled_on_the_way_to_a_failure() -> None:
    """A root that handled one failure and then failed of another recovers the other one alone."""
    store, flow = MemoryStore(), Flow()

    async def root(s: Step) -> None:
        with suppress(StepError):
            await s.do("first", flow.leaf)
        await s.do("second", flow.leaf)

    flow.broken = {"first", "second"}
    with pytest.raises(StepError):
        await run(root, store=store, id="r")
    flow.broken = set()
    async with edit_run(store, "r") as state:
        assert state.recover() == ["second", ""]
    flow.take()
    await run(root, store=store, id="r")
    assert flow.take() == ["second"]


async def test_recover_of_what_has_not_failed() -> None:
    """``recover()`` of a run that has not failed recovers nothing; of such a step it is misuse."""
    store, flow = MemoryStore(), Flow()
    await run(flow.root, store=store, id="r")
    before = (await stored(store)).records
    async with edit_run(store, "r") as state:
        assert state.recover() == []
    assert (await stored(store)).records == before
    with pytest.raises(UsageError, match="step 'one/a' has not failed"):
        async with edit_run(store, "r") as state:
            state.recover("one/a")
    with pytest.raises(UsageError, match=r"no step 'one/z'.*children of one are: 'a', 'b'"):
        async with edit_run(store, "r") as state:
            state.recover("one/z")
    assert (await stored(store)).records == before


async def test_recovered_attempts_begin_again() -> None:
    """A recovered step has all its attempts again, numbered from 1, under the same token."""
    store, seen = MemoryStore(), []

    async def flaky(s: Step) -> int:
        seen.append((s.attempt, s.token))
        raise ConnectionError

    async def root(s: Step) -> int:
        return await s.do("a", flaky, retry=Retry(attempts=2, delay=0))

    for recover in (False, True):
        with pytest.raises(StepError):
            await run(root, store=store, id="r", recover=recover)
    assert [a for a, _ in seen] == [1, 2, 1, 2]
    assert len({t for _, t in seen}) == 1


# --- reset, set_result, rename --------------------------------------------------------------------


async def test_reset_forgets_a_step_and_reopens_its_ancestors() -> None:
    """After a reset the step and what is below it run again with new tokens, siblings answer."""
    store, flow = MemoryStore(), Flow()
    await run(flow.root, store=store, id="r")
    tokens = dict(flow.tokens)
    flow.take()
    async with edit_run(store, "r") as state:
        state.reset("one/a")
        assert [p for p, n in state.walk() if n.done] == ["one/b", "two", "two/main"]
    assert (await stored(store)).summary.status == "pending"
    await run(flow.root, store=store, id="r")
    assert flow.take() == ["root", "one", "one/a"]
    assert flow.tokens["one/a"] != tokens["one/a"]
    async with edit_run(store, "r") as state:
        state.reset("one")
    assert set((await stored(store)).records) == {"", "one", "two", "two/main"}
    await run(flow.root, store=store, id="r")
    assert flow.take() == ["root", "one", "one/a", "one/b"]
    assert len({tokens["one/b"], flow.tokens["one/b"]}) == 2
    async with edit_run(store, "r") as state:
        state.reset("")
    assert set((await stored(store)).records) == {""}
    await run(flow.root, store=store, id="r")
    assert flow.take() == ["root", "one", "one/a", "one/b", "two", "two/main"]
    assert flow.tokens["two/main"] != tokens["two/main"]


async def test_set_result_makes_a_step_done() -> None:
    """``set_result`` stands for the step's own; its ancestors run again and find it."""
    store, flow = MemoryStore(), Flow()
    flow.broken = {"one/a"}
    with pytest.raises(StepError):
        await run(flow.root, store=store, id="r")
    flow.take()
    async with edit_run(store, "r") as state:
        state.set_result("one/a", "by hand")
    assert await run(flow.root, store=store, id="r") == [["by hand", "one/b"], "two/main"]
    assert flow.take() == ["root", "one", "one/b", "two", "two/main"]
    async with edit_run(store, "r") as state:
        state.set_result("one/a", "again")
    assert await run(flow.root, store=store, id="r") == [["again", "one/b"], "two/main"]
    assert flow.take() == ["root", "one"]
    before = (await stored(store)).records
    with pytest.raises(UsageError, match="the result of step 'one/a'"):
        async with edit_run(store, "r") as state:
            state.set_result("one/a", object())
    assert (await stored(store)).records == before


async def test_rename_keeps_result_and_token() -> None:
    """A renamed step is not run again, its children move with it, and tokens stay."""
    store, flow = MemoryStore(), Flow()
    flow.broken = {"two/main", "two/fallback"}
    with pytest.raises(StepError):
        await run(flow.root, store=store, id="r")
    flow.take()
    tokens = dict(flow.tokens)
    with pytest.raises(DuplicateStepError):
        async with edit_run(store, "r") as state:
            state.rename("one", "two")
    async with edit_run(store, "r") as state:
        state.rename("one", "first/of all")
        state.rename("two", "second")
        assert state.failed  # nothing is reopened
    assert set((await stored(store)).records) == {
        *("", "first~1of all", "first~1of all/a", "first~1of all/b"),
        *("second", "second/main", "second/fallback"),
    }

    async def renamed(s: Step) -> list[Any]:
        return [await s.do("first/of all", flow.first), await s.do("second", flow.second)]

    flow.broken = set()
    name = "Flow.root"
    result = await run(renamed, store=store, id="r", name=name, recover=True)
    assert result[0] == ["one/a", "one/b"]
    assert "first~1of all" not in flow.log
    assert flow.tokens["second/fallback"] == tokens["two/fallback"]


# --- who may edit, and when it is saved -----------------------------------------------------------


async def test_edit_is_refused_while_a_driver_holds_the_run() -> None:
    """To edit or delete a run that somebody advances is `BusyError`, from anywhere."""
    store = MemoryStore()
    refused = []

    async def root(s: Step) -> None:
        for client in (store, store.client()):
            with pytest.raises(BusyError) as found:
                async with edit_run(client, "r"):
                    refused.append("entered")
            refused.append(found.value.id)
            with pytest.raises(BusyError):
                await delete_run(client, "r")

    await run(root, store=store, id="r")
    assert refused == ["r", "r"]
    async with edit_run(store.client(), "r") as state:
        assert state.done


async def test_a_driver_is_refused_while_the_run_is_edited() -> None:
    """`edit_run` takes the lease: a driver of this or another process waits for its end."""
    store, flow = MemoryStore(), Flow()
    flow.broken = {"one/b"}
    with pytest.raises(StepError):
        await run(flow.root, store=store, id="r")
    flow.take()
    flow.broken = set()
    async with edit_run(store, "r") as state:
        state.recover()
        for client in (store, store.client()):
            with pytest.raises(BusyError):
                await run(flow.root, store=client, id="r", recover=True)
    assert flow.log == []
    await run(flow.root, store=store.client(), id="r")
    assert flow.take() == ["root", "one", "one/b", "two", "two/main"]


async def test_edit_with_compare_and_set_alone() -> None:
    """Without a lease the edit is one save at the block's end, and a pass in between wins."""
    store = CompareAndSet(MemoryStore())
    assert not isinstance(store, LeaseStore | ListStore)
    flow = Flow()
    flow.broken = {"one/b"}
    with pytest.raises(StepError):
        await run(flow.root, store=store, id="r")
    flow.broken = set()

    async def overtaken() -> None:
        async with edit_run(store, "r") as state:
            state.reset("one/a")
            await run(flow.root, store=store, id="r", recover=True)

    with pytest.raises(ConflictError) as found:
        await overtaken()
    assert found.value.id == "r"
    state = await state_of(store)
    assert state.done
    async with edit_run(store, "r") as state:
        state.reset("one/a")
    flow.take()
    await run(flow.root, store=store, id="r")
    assert flow.take() == ["root", "one", "one/a"]


async def test_an_edit_is_one_save() -> None:
    """An edit is one save under a higher epoch that holds what changed and nothing else."""
    store, flow = FaultyStore(MemoryStore()), Flow()
    flow.broken = {"two/main", "two/fallback"}
    with pytest.raises(StepError):
        await run(flow.root, store=store, id="r")
    epoch = store.log[-1].epoch
    saves = store.saves
    async with edit_run(store, "r") as state:
        state.recover()
        state.set_result("two/main", "by hand")
    edit = store.log[-1]
    assert edit.changes.keys() <= {"", "two", "two/fallback", "two/main"}
    assert {"", "two", "two/main"} <= edit.changes.keys()
    assert edit.epoch > epoch
    assert edit.epoch == edit.summary.epoch
    assert edit.summary.owner is None
    assert store.saves in (saves + 1, saves + 2)  # one more where the lease is taken by a save


async def test_an_exception_saves_nothing() -> None:
    """What leaves the block of `edit_run` leaves the run as it was, and free."""
    store, flow = MemoryStore(), Flow()
    flow.broken = {"one/b"}
    with pytest.raises(StepError):
        await run(flow.root, store=store, id="r")
    before = (await stored(store)).records

    async def change_my_mind() -> None:
        async with edit_run(store, "r") as state:
            state.recover()
            raise KeyError

    with pytest.raises(KeyError):
        await change_my_mind()
    with anyio.CancelScope() as scope:
        async with edit_run(store, "r") as state:
            state.reset("")
            scope.cancel()
            await anyio.sleep_forever()
    assert (await stored(store)).records == before
    async with edit_run(store.client(), "r"):
        pass
    outcome = await reconcile(flow.root, store=store.client(), id="r")
    assert isinstance(outcome, Failed)


async def test_an_edit_that_changes_nothing_saves_nothing() -> None:
    """Looking around in `edit_run` changes nothing in the store."""
    store = FaultyStore(MemoryStore())
    flow = Flow()
    await run(flow.root, store=store, id="r")
    before = (await stored(store)).records
    async with edit_run(store, "r") as state:
        assert state.get("one/a").done
        state.encode()
    found = await stored(store)
    assert (found.records, found.summary.status, found.summary.owner) == (before, "done", None)


async def test_there_is_no_such_run() -> None:
    """To edit a run that is not there is misuse, and creates nothing."""
    store = MemoryStore()
    with pytest.raises(UsageError, match="there is no run 'r'"):
        async with edit_run(store, "r"):
            pass
    assert await store.load("r") is None
    assert await run(Flow().root, store=store, id="r")


async def test_an_edit_while_steps_wait() -> None:
    """A pending run can be edited between two passes; its summary says when it is due."""
    store = MemoryStore()

    async def wait(s: Step) -> str:
        s.pending(after=3600)

    async def root(s: Step) -> str:
        await s.call("a", lambda: 1)
        return await s.do("w", wait)

    assert isinstance(await reconcile(root, store=store, id="r"), Pending)
    due = (await stored(store)).summary.wake_at
    async with edit_run(store, "r") as state:
        state.set_result("a", 2)
    summary = (await stored(store)).summary
    assert (summary.status, summary.owner) == ("pending", None)
    async with edit_run(store, "r") as state:
        state.set_result("w", "now")
    assert due is not None
    summary = (await stored(store)).summary
    assert (summary.status, summary.wake_at) == ("pending", summary.updated_at)  # due at once
    assert await run(root, store=store, id="r") == "now"
    assert (await state_of(store)).interruptions == 0  # an edit is no crash


async def test_a_lost_acknowledgement_of_an_edit() -> None:
    """An edit whose acknowledgement is lost has landed; no false conflict is reported."""
    inner, flow = MemoryStore(), Flow()
    await run(flow.root, store=inner, id="r")
    store = FaultyStore(inner.client(), lambda s: "lost" if s.number in (1, 3) else None)
    async with edit_run(store, "r") as state:
        state.reset("one/a")
    assert not (await state_of(inner)).get("one/a").started
    assert await run(flow.root, store=inner, id="r")


# --- list, delete ---------------------------------------------------------------------------------


async def some_runs(store: MemoryStore) -> None:
    """Two done runs, two that failed, two that wait."""

    async def good(s: Step) -> int:
        return 1

    async def bad(s: Step) -> int:
        raise ValueError

    async def slow(s: Step) -> int:
        s.pending(after=60)

    bodies: dict[str, Callable[[Step], Awaitable[int]]] = {"good": good, "bad": bad, "slow": slow}
    for i, (name, fn) in enumerate(sorted(bodies.items()) * 2):
        await reconcile(fn, store=store, id=f"{name}-{i}", name=name)


async def test_list_runs() -> None:
    """Runs are listed by id, each with its summary, filtered by status and name."""
    store = MemoryStore()
    assert await list_runs(store) == []
    await some_runs(store)
    found = await list_runs(store)
    assert [(r.id, r.name, r.status) for r in found] == [
        ("bad-0", "bad", "failed"),
        ("bad-3", "bad", "failed"),
        ("good-1", "good", "done"),
        ("good-4", "good", "done"),
        ("slow-2", "slow", "pending"),
        ("slow-5", "slow", "pending"),
    ]
    for line in found:
        assert isinstance(line, RunSummary)
        assert (line.owner, line.epoch) == (None, 1)
        assert line.created_at is not None
        assert line.updated_at is not None
        assert line.created_at <= line.updated_at
        assert (line.wake_at is not None) == (line.status == "pending")
        assert (line.done_at is not None) == (line.status != "pending")

    async def ids(**filters: Any) -> list[str]:
        return [r.id for r in await list_runs(store, **filters)]

    assert await ids(status="failed") == ["bad-0", "bad-3"]
    assert await ids(name="slow") == ["slow-2", "slow-5"]
    assert await ids(name="slow", status="done") == []
    assert await ids(limit=2) == ["bad-0", "bad-3"]
    assert await ids(after="bad-3", limit=2) == ["good-1", "good-4"]
    assert await ids(after="bad-9") == ["good-1", "good-4", "slow-2", "slow-5"]
    assert await ids(after="slow-5") == []


async def test_a_running_run_is_listed_with_its_owner() -> None:
    """While a driver works its run is ``proceeding`` and names its owner."""
    store, seen = MemoryStore(), []

    async def root(s: Step) -> None:
        seen.extend(await list_runs(store))

    await run(root, store=store, id="r")
    assert [(r.status, r.owner is not None, r.epoch) for r in seen] == [("proceeding", True, 1)]


async def test_only_some_stores_can_list() -> None:
    """A store that cannot list says so."""
    with pytest.raises(UsageError, match="CompareAndSet cannot list its runs"):
        await list_runs(CompareAndSet(MemoryStore()))


async def test_delete_run() -> None:
    """A deleted run is gone; its id begins a new run with tokens of its own."""
    for store in (MemoryStore(), CompareAndSet(MemoryStore())):
        flow = Flow()
        assert await delete_run(store, "r") is False
        await run(flow.root, store=store, id="r")
        tokens = dict(flow.tokens)
        assert await delete_run(store, "r") is True
        assert await load_state(store, "r") is None
        assert await delete_run(store, "r") is False
        flow.take()
        await run(flow.root, store=store, id="r")
        assert flow.take() == ["root", "one", "one/a", "one/b", "two", "two/main"]
        assert set(tokens.values()).isdisjoint(flow.tokens.values())


async def test_delete_of_a_changed_run() -> None:
    """A run that was changed between the look and the deletion is not deleted."""
    store = MemoryStore()
    await some_runs(store)
    stale = FaultyStore(store.client(), loads={3: "stale"})
    await stale.load("slow-2")
    async with edit_run(store, "slow-2") as state:
        state.reset("")
    await stale.load("slow-2")
    with pytest.raises(ConflictError):
        await delete_run(stale, "slow-2")
    assert await load_state(store, "slow-2") is not None


async def test_an_edit_that_is_cancelled_at_once_lets_go_of_the_run() -> None:
    """Cancelled while it takes the run, also when that save has landed, it leaves nobody out."""
    store = MemoryStore()
    await run(flow_of_one, store=store, id="r")
    faulty = FaultyStore(store.client(), {1: "hang after"})
    with anyio.move_on_after(0.01) as scope:
        async with asteps.edit_run(faulty, "r"):
            raise AssertionError("the block was entered")
    assert scope.cancelled_caught
    async with asteps.edit_run(store.client(), "r") as state:
        assert state.done


async def flow_of_one(s: Step) -> int:
    """A run to be edited."""
    return await s.call("one", int, 1)
