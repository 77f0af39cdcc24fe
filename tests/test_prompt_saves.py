"""Saves that a store takes without being awaited (`PromptStore`) keep the promises of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from clocks import FakeClock

import asteps
from asteps import (
    BusyError,
    ConflictError,
    Done,
    PromptStore,
    State,
    Step,
    StepError,
    StoredRun,
    StoreRefusedError,
    StoreUnavailableError,
    Summary,
    UncertainWriteError,
)
from asteps._loop import current_loop
from asteps.stores.sqlite import SQLiteStore

Fault = Literal["unavailable", "lost", "refused", "conflict", "never", "broken"]


class Prompt:
    """A store in memory with compare-and-set alone, that takes saves promptly and has faults.

    Args:
        faults: What goes wrong, by the number of the save that was begun, from 1.
    """

    def __init__(self, faults: Mapping[int, Fault] | None = None) -> None:
        self.faults = dict(faults or {})
        self.begun: list[tuple[str, set[str]]] = []
        self.repeated: list[tuple[str, set[str]]] = []
        self.under_way = 0
        self.most_under_way = 0
        self._runs: dict[str, tuple[StoredRun, str]] = {}

    async def load(self, id: str, /) -> StoredRun | None:
        await anyio.lowlevel.checkpoint()
        found = self._runs.get(id)
        return None if found is None else found[0]

    def _write(
        self,
        id: str,
        changes: Mapping[str, bytes | None],
        expected: str | None,
        write_id: str,
        summary: Summary,
    ) -> str:
        stored = self._runs.get(id)
        if stored is not None and stored[1] == write_id:
            return stored[0].revision
        found = None if stored is None else stored[0].revision
        if found != expected:
            raise ConflictError(id, expected, found)
        records = {} if stored is None else dict(stored[0].records)
        records.update({k: v for k, v in changes.items() if v is not None})
        for key in [k for k, v in changes.items() if v is None]:
            records.pop(key, None)
        revision = str(int(found or 0) + 1)
        self._runs[id] = (StoredRun(records, revision, summary), write_id)
        return revision

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
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        self.under_way -= 1
        self.repeated.append((write_id, set(changes)))
        return self._write(id, changes, expected, write_id, summary)

    def begin_save(
        self,
        id: str,
        changes: Mapping[str, bytes | None],
        /,
        *,
        expected: str | None,
        epoch: int,
        write_id: str,
        summary: Summary,
        done: Callable[[str | None, Exception | None], object],
    ) -> None:
        self.begun.append((write_id, set(changes)))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        fault = self.faults.get(len(self.begun))

        def answer() -> None:
            self.under_way -= 1
            error: Exception | None = None
            revision = None
            if fault in (None, "lost"):
                try:
                    revision = self._write(id, changes, expected, write_id, summary)
                except ConflictError as exc:
                    error = exc
            if fault == "lost":
                revision, error = None, UncertainWriteError("lost")
            elif fault == "unavailable":
                error = StoreUnavailableError("away")
            elif fault == "refused":
                error = StoreRefusedError("full")
            elif fault == "conflict":
                error = ConflictError(id, expected, "other")
            elif fault == "broken":
                error = ZeroDivisionError("a fault of the store")
            done(revision, error)

        if fault != "never":
            current_loop().call_soon(answer)

    async def delete(self, id: str, /, *, expected: str) -> None:
        self._runs.pop(id, None)

    async def aclose(self) -> None: ...


calls: list[str] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    calls.clear()


async def step(s: Step) -> str:
    """Note that it ran."""
    calls.append(s.name)
    return s.name


async def five(s: Step) -> list[str]:
    """Five steps in a row."""
    return [await s.do(name, step) for name in "abcde"]


async def tree(store: Prompt) -> State:
    """What is stored."""
    state = await asteps.load_state(store, "r")
    assert state is not None
    return state


async def test_it_is_a_prompt_store() -> None:
    """The double is what it pretends to be, and so is the store in a SQLite file."""
    assert isinstance(Prompt(), PromptStore)
    assert isinstance(SQLiteStore("x.db"), PromptStore)


async def test_each_step_is_saved_before_do_returns() -> None:
    """When ``do`` returns, its outcome is in the store, by a save that nobody awaited."""
    store = Prompt()
    seen: list[bool] = []

    async def root(s: Step) -> None:
        for name in "abc":
            await s.do(name, step)
            seen.append((await tree(store)).get(name).done)

    await asteps.run(root, store=store, id="r")
    assert seen == [True, True, True]
    assert [changes for _, changes in store.begun] == [{""}, {"a"}, {"b"}, {"c"}]
    assert [changes for _, changes in store.repeated] == [{""}]  # the last one, by the task


@pytest.mark.parametrize("fault", ["unavailable", "lost"])
@pytest.mark.parametrize("at", range(1, 7))
async def test_an_unclear_save_is_repeated_to_the_letter(fault: Fault, at: int) -> None:
    """After a failed or unclear save the identical one is made until it is known: nothing twice."""
    store = Prompt({at: fault})
    assert await asteps.run(five, store=store, id="r", clock=FakeClock()) == list("abcde")
    assert calls == list("abcde")
    assert store.begun[at - 1] in store.repeated
    assert (await tree(store)).done
    ids = [write_id for write_id, _ in store.begun]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("fault", ["unavailable", "lost"])
@pytest.mark.parametrize("turns", [1, 3, 8, 15, 30])
async def test_what_comes_while_a_save_is_repeated_is_saved_next(fault: Fault, turns: int) -> None:
    """A sibling's outcome waits for the repeated save, is saved after it, and nobody waits on."""
    store = Prompt({2: fault})

    async def late(s: Step) -> str:
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        return "late"

    async def root(s: Step) -> str:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(s.do, "a", step)
            tasks.start_soon(s.do, "late", late)
        return "all"

    with anyio.fail_after(5):
        assert await asteps.run(root, store=store, id="r", clock=FakeClock()) == "all"
    assert store.most_under_way == 1
    state = await tree(store)
    assert state.get("a").done
    assert state.get("late").done


@pytest.mark.parametrize(
    ("fault", "error"),
    [("refused", StoreRefusedError), ("conflict", ConflictError), ("broken", StoreRefusedError)],
)
async def test_a_save_that_cannot_be_made_ends_the_pass(
    fault: Fault, error: type[Exception]
) -> None:
    """Refusals and conflicts leave the driver; no body begins, no ``except`` catches them."""
    store = Prompt({3: fault})
    caught: list[BaseException] = []

    async def root(s: Step) -> None:
        for name in "abcde":
            try:
                await s.do(name, step)
            except Exception as exc:  # noqa: BLE001 - what users write
                caught.append(exc)

    with pytest.raises(error):
        await asteps.run(root, store=store, id="r")
    assert calls == ["a", "b"]
    assert not caught
    state = await tree(store)
    assert state.get("a").done
    assert not state.failed
    store.faults.clear()
    await asteps.run(root, store=store, id="r")
    assert calls == ["a", "b", "b", "c", "d", "e"]


async def test_bodies_at_work_are_stopped_by_a_lost_store() -> None:
    """A sibling that works when the store is lost is cancelled, and nothing runs afterwards."""
    store = Prompt({2: "conflict"})
    ended: list[str] = []

    async def long(s: Step) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("long")

    async def root(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(s.do, "long", long)
            tasks.start_soon(s.do, "a", step)

    with pytest.raises(ConflictError):
        await asteps.run(root, store=store, id="r")
    assert ended == ["long"]


async def test_one_save_is_under_way_and_children_share_it() -> None:
    """Fifty concurrent children make few saves, one at a time."""
    store = Prompt()

    async def root(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            for place in range(50):
                tasks.start_soon(s.do, f"s{place}", step)

    await asteps.run(root, store=store, id="r")
    assert store.most_under_way == 1
    assert len(store.begun) <= 4
    assert all(n.done for _, n in (await tree(store)).walk())


async def test_a_save_that_is_never_answered_costs_bounded_time() -> None:
    """A cancelled driver waits for an unanswered save as long as ``lease=`` says, not for ever."""
    store = Prompt({2: "never"})
    with anyio.fail_after(5):
        with anyio.move_on_after(0.01) as scope:
            await asteps.run(five, store=store, id="r", lease=0.05)
        assert scope.cancelled_caught
    assert calls == ["a"]
    assert (await tree(store)).states is None


async def test_what_had_returned_is_saved_although_the_step_was_cancelled() -> None:
    """Cancelling a step whose function had returned does not take its save back."""
    store = Prompt()

    async def root(s: Step) -> None:
        with anyio.CancelScope() as scope:

            async def last(s: Step) -> str:
                scope.cancel()
                return "returned"

            await s.do("last", last)
        await s.do("then", step)

    await asteps.run(root, store=store, id="r")
    assert (await tree(store)).get("last").done


async def test_two_drivers_race_for_a_claim() -> None:
    """Of two that claim a run without leases, one finds the other's save, and looks again."""
    store = Prompt()
    results: list[list[str]] = []

    async def one() -> None:
        try:
            results.append(await asteps.run(five, store=store, id="r"))
        except (ConflictError, StepError, BusyError) as exc:
            results.append([type(exc).__name__])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one)
        tasks.start_soon(one)
    assert list("abcde") in results
    assert (await tree(store)).done


async def test_observers_are_told_of_prompt_saves() -> None:
    """With observers saves are begun promptly, too; each event is told once, in order."""
    store = Prompt()
    events: list[asteps.Event] = []
    await asteps.run(five, store=store, id="r", observers=[events.append])
    assert store.begun
    assert len(events) == 2 + 2 + 5 * 2  # of the pass, the root and each step


class Struck(BaseException):
    """What is no Exception."""


@pytest.mark.parametrize("path", ["a", "c", "e"])
async def test_what_is_no_exception_leaves_the_driver_though_no_task_told(path: str) -> None:
    """An observer's BaseException comes out of the driver, also where a store's answer tells."""
    store = Prompt()

    def observer(event: asteps.Event) -> None:
        if isinstance(event, asteps.StepDone) and event.path == path:
            raise Struck

    with pytest.raises(Struck):
        await asteps.run(five, store=store, id="r", observers=[observer])
    assert store.begun
    assert (await tree(store)).get(path).done
    assert await asteps.run(five, store=store, id="r") == list("abcde")


async def test_sqlite_answers_with_an_error_or_a_revision(tmp_path: Path) -> None:
    """A prompt save in a SQLite file gives the revision or the error, never both."""
    summary = Summary(
        name="n", status="proceeding", epoch=1, owner=None, created_at=1.0, updated_at=1.0
    )
    async with SQLiteStore(tmp_path / "runs.db") as store:
        answers: list[tuple[str | None, Exception | None]] = []
        answered = anyio.Event()

        def done(revision: str | None, error: Exception | None) -> None:
            answers.append((revision, error))
            if len(answers) == 2:
                answered.set()

        common: dict[str, Any] = {"expected": None, "epoch": 1, "summary": summary, "done": done}
        store.begin_save("r", {"": b"{}"}, write_id="1", **common)
        store.begin_save("r", {"": b"[]"}, write_id="2", **common)
        await answered.wait()
        (revision, none), (nothing, error) = answers
        assert none is None
        assert nothing is None
        assert isinstance(error, ConflictError)
        stored = await store.load("r")
        assert stored is not None
        assert (stored.records, stored.revision) == ({"": b"{}"}, revision)
        assert isinstance(await asteps.reconcile(five, store=store, id="other"), Done)
