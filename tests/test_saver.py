"""The saver writes what changed, one save at a time, and finds out what became of each."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint
from clocks import FakeClock

import asteps
from asteps import (
    BusyError,
    ConflictError,
    Done,
    Pending,
    Step,
    StepError,
    StoreClosedError,
    StoredRun,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    Summary,
    UncertainWriteError,
    load_state,
    reconcile,
    run,
)
from asteps.stores.memory import MemoryStore
from asteps.testing import FaultyStore


class CompareAndSet:
    """A store with compare-and-set alone, whose saves can be watched and held up."""

    def __init__(self, store: MemoryStore | None = None, turns: int = 0) -> None:
        self.inner = MemoryStore() if store is None else store
        self.turns = turns  # checkpoints that a save takes
        self.saves: list[dict[str, bytes | None]] = []
        self.summaries: list[Summary] = []
        self.in_flight = self.most_in_flight = 0
        self.gate: anyio.Event | None = None  # a save waits for it
        self.begun = anyio.Event()

    def client(self) -> CompareAndSet:
        return CompareAndSet(self.inner.client(), self.turns)

    async def load(self, id: str, /) -> StoredRun | None:
        return await self.inner.load(id)

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
        self.saves.append(dict(changes))
        self.summaries.append(summary)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.begun.set()
        try:
            for _ in range(self.turns):
                await checkpoint()
            if self.gate is not None:
                await self.gate.wait()
            return await self.inner.save(
                id, changes, expected=expected, epoch=epoch, write_id=write_id, summary=summary
            )
        finally:
            self.in_flight -= 1

    async def delete(self, id: str, /, *, expected: str) -> None:
        await self.inner.delete(id, expected=expected)

    async def aclose(self) -> None:
        await self.inner.aclose()


async def leaf(s: Step, value: int = 0) -> int:
    """A body that returns at once."""
    return value


async def three(s: Step) -> int:
    """Three steps, one after the other."""
    return await s.do("a", leaf, 1) + await s.do("b", leaf, 2) + await s.do("c", leaf, 3)


async def stored(store: asteps.Store, id: str = "r") -> StoredRun:
    """What the store has of a run."""
    found = await store.load(id)
    assert found is not None
    return found


# --- what a save holds ----------------------------------------------------------------------------


async def test_only_what_changed_is_saved() -> None:
    """A save holds the nodes that changed since the last one, and nothing else."""
    store = FaultyStore(MemoryStore())
    assert await run(three, store=store, id="r") == 6
    changed = [set(s.changes) for s in store.log]
    # The claim, with the start of the root; then one step each.
    assert changed == [{""}, {"a"}, {"b"}, {"c"}, {""}]


async def test_a_save_is_named_and_expects_the_last_one() -> None:
    """Each save has a write id of its own, the holder's epoch, and expects the one before it."""
    store = FaultyStore(MemoryStore())
    for _ in range(3):
        await reconcile(three, store=store, id="r", recover=True)
    first = store.saves
    assert len({s.write_id for s in store.log}) == first
    assert {s.epoch for s in store.log} == {1}
    revisions = [s.expected for s in store.log]
    assert revisions[0] is None
    assert len(set(revisions)) == first
    async with asteps.edit_run(store, "r") as state:
        state.reset("b")
    edits = store.saves
    await run(three, store=store, id="r")
    later = store.log[edits:]
    assert len({s.epoch for s in later}) == 1
    assert later[0].epoch > store.log[edits - 1].epoch > store.log[0].epoch
    assert len({s.write_id for s in store.log}) == store.saves
    assert all(s.epoch == s.summary.epoch for s in store.log)


async def test_the_summary_says_what_the_run_comes_to() -> None:
    """Each save's summary has status, owner and times; the last one says that nobody holds it."""
    store, clock = FaultyStore(MemoryStore()), FakeClock()
    start = clock.now()

    async def wait(s: Step) -> int:
        if clock.now() < start + 10:
            s.pending(after=10)
        return 1

    async def root(s: Step) -> int:
        clock.advance(1)
        await s.do("a", leaf)
        return await s.do("w", wait)

    first = await reconcile(root, store=store, id="r", clock=clock, name="flow")
    assert isinstance(first, Pending)
    owners = [s.summary.owner for s in store.log]
    assert len({o for o in owners if o}) == 1
    assert owners[-1] is None
    assert None not in owners[:-1]
    assert store.log[0].summary == Summary(
        name="flow",
        status="proceeding",
        epoch=1,
        owner=owners[0],
        created_at=start,
        updated_at=start,
    )
    assert store.log[-1].summary == Summary(
        name="flow",
        status="pending",
        epoch=1,
        owner=None,
        created_at=start,
        updated_at=start + 1,
        wake_at=start + 11,
    )
    clock.advance(10)
    done = await reconcile(root, store=store, id="r", clock=clock, name="flow")
    assert isinstance(done, Done)
    assert store.log[-1].summary == Summary(
        name="flow",
        status="done",
        epoch=2,
        owner=None,
        created_at=start,
        updated_at=start + 12,
        done_at=start + 12,
    )


async def test_the_summary_of_a_failed_run() -> None:
    """A failed run says so, with the time of its end."""
    store, clock = MemoryStore(), FakeClock()

    async def root(s: Step) -> int:
        clock.advance(3)
        raise ValueError("no")

    with pytest.raises(StepError):
        await run(root, store=store, id="r", clock=clock)
    summary = (await stored(store)).summary
    now = clock.now()
    assert (summary.status, summary.owner, summary.done_at) == ("failed", None, now)
    assert (summary.created_at, summary.updated_at, summary.wake_at) == (now - 3, now, None)


async def test_the_summary_of_a_wait_in_place() -> None:
    """While `run` waits in place the run is held, and stays ``proceeding``."""
    store, clock = FaultyStore(MemoryStore()), FakeClock()
    waited = False

    async def wait(s: Step) -> None:
        nonlocal waited
        if not waited:
            waited = True
            s.pending(after=10)

    async def root(s: Step) -> None:
        await s.do("w", wait)

    await run(root, store=store, id="r", clock=clock)
    assert [s.summary.status for s in store.log[:-1]] == ["proceeding"] * (store.saves - 1)
    assert store.log[-1].summary.status == "done"


async def test_the_summary_between_the_passes_of_run() -> None:
    """Between two passes `run` keeps the run, which is then pending."""
    store, clock = FaultyStore(MemoryStore()), FakeClock()
    times: list[int] = []

    async def wait(s: Step) -> None:
        times.append(1)
        if len(times) < 3:
            s.pending(after=10)

    async def root(s: Step) -> None:
        await s.do("w", wait)

    await run(root, store=store, id="r", clock=clock, max_wait=0)
    pending = [s.summary for s in store.log if s.summary.status == "pending"]
    assert len(pending) == 2
    assert all(s.owner and s.wake_at for s in pending)
    assert {s.epoch for s in store.log} == {1}


async def test_no_save_is_empty_but_the_last() -> None:
    """A save without changes is made only to let the run go: not for a step that is not yet due."""
    store, clock = FaultyStore(MemoryStore()), FakeClock()

    async def wait(s: Step) -> None:
        if clock.now() < start + 60:
            s.pending(after=60)

    async def slow(s: Step, turns: int) -> None:
        for _ in range(turns):
            await checkpoint()

    async def root(s: Step, turns: int) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(s.do, f"slow {turns}", slow, turns)
            for _ in range(5):
                await checkpoint()
            tasks.start_soon(s.do, "wait", wait)

    start = clock.now()
    for turns in (10, 20, 30):
        outcome = await reconcile(root, turns, store=store, id="r", clock=clock)
        assert isinstance(outcome, Pending)
        clock.advance(1)
    empty = [s.number for s in store.log if not s.changes and s.summary.status == "proceeding"]
    assert empty == []


# --- one save in flight, and company --------------------------------------------------------------


async def test_one_save_in_flight() -> None:
    """However many steps end at once, one save is in flight."""
    store = CompareAndSet(turns=7)

    async def slow(s: Step, turns: int) -> int:
        for _ in range(turns):
            await checkpoint()
        return turns

    async def root(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            for i in range(30):
                tasks.start_soon(s.do, f"s{i}", slow, i)

    await run(root, store=store, id="r")
    assert store.most_in_flight == 1
    assert len(store.saves) < 30
    assert (await load_state(store, "r")) is not None


async def test_concurrent_children_share_a_save() -> None:
    """What fifty concurrent children came to goes to the store in a handful of saves."""
    store = FaultyStore(MemoryStore())

    async def root(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            for i in range(50):
                tasks.start_soon(s.do, f"s{i}", leaf, i)

    await run(root, store=store, id="r")
    assert store.saves <= 6
    assert sum(len(s.changes) for s in store.log) < 60  # each node about once
    state = await load_state(store, "r")
    assert state is not None
    assert sorted(n.result_as(int) for p, n in state.walk() if p) == list(range(50))


async def test_what_arrives_during_a_save_is_the_next_one() -> None:
    """Children that end while a save is in flight are the next batch: no timer, no more saves."""
    store = CompareAndSet()
    ends = {name: anyio.Event() for name in "abcd"}
    returned: list[str] = []

    async def body(s: Step) -> None:
        await ends[s.name].wait()

    async def child(s: Step, name: str) -> None:
        await s.do(name, body)
        returned.append(name)

    async def root(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            for name in ends:
                tasks.start_soon(child, s, name)
            await anyio.wait_all_tasks_blocked()
            store.gate = anyio.Event()
            ends["a"].set()
            while not store.in_flight:
                await checkpoint()
            for name in "bcd":
                ends[name].set()
            await anyio.wait_all_tasks_blocked()
            assert returned == []  # not before it is durable
            assert store.in_flight == 1
            store.gate.set()

    await run(root, store=store, id="r")
    assert sorted(returned) == ["a", "b", "c", "d"]
    assert [k - {""} for k in map(set, store.saves)] == [set(), {"a"}, {"b", "c", "d"}, set()]


async def test_a_step_returns_when_its_save_has() -> None:
    """``do`` returns only after a save that contains its outcome was acknowledged."""
    store = CompareAndSet()
    order: list[str] = []

    async def root(s: Step) -> None:
        store.gate = anyio.Event()
        store.begun = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(opener)
            await s.do("a", leaf)
            order.append("returned")

    async def opener() -> None:
        await store.begun.wait()
        for _ in range(20):
            await checkpoint()
        order.append("acknowledged")
        assert store.gate is not None
        store.gate.set()

    await run(root, store=store, id="r")
    assert order == ["acknowledged", "returned"]


async def test_an_assigned_info_rides_along() -> None:
    """``s.info = …`` makes no save of its own, ``save_info`` returns once it is durable."""
    store = FaultyStore(MemoryStore())

    async def body(s: Step) -> None:
        for i in range(10):
            s.info = i
        await s.save_info("x")
        for i in range(10):
            s.info = i
        s.info = "last"

    async def root(s: Step) -> None:
        await s.do("a", body)

    await run(root, store=store, id="r")
    infos = [
        msgspec.json.decode(record)["info"]
        for s in store.log
        if (record := s.changes.get("a")) is not None
    ]
    assert infos == ["x", "last"]
    assert store.saves == 4


# --- what becomes of a save -----------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["lost", "dropped", "late", "unavailable"])
@pytest.mark.parametrize("number", range(1, 6))
async def test_an_unclear_save_is_repeated_to_the_letter(fault: Any, number: int) -> None:
    """After a lost acknowledgement the saver repeats the identical save: no conflict, no second."""
    inner, clock = MemoryStore(), FakeClock()
    store = FaultyStore(inner, {number: fault})
    ran: list[str] = []

    async def body(s: Step, value: int) -> int:
        ran.append(s.path)
        return value

    async def root(s: Step) -> int:
        return await s.do("a", body, 1) + await s.do("b", body, 2) + await s.do("c", body, 3)

    assert await run(root, store=store, id="r", clock=clock) == 6
    assert ran == ["a", "b", "c"]
    first, again = store.log[number - 1], store.log[number]
    assert msgspec.structs.replace(again, number=first.number) == first
    assert store.saves == 6  # as many as without the fault, and the repetition
    assert inner._storage.revisions == 5  # of which each was written once
    assert len(clock.slept) == 1
    assert 0 < clock.slept[0] < 0.1
    state = await load_state(inner, "r")
    assert state is not None
    assert [p for p, n in state.walk() if n.done] == ["", "a", "b", "c"]


async def test_a_lost_acknowledgement_with_more_to_save() -> None:
    """What changed while the fate of a save was unclear waits for its own save."""
    inner, clock = MemoryStore(), FakeClock()
    store = FaultyStore(inner, {2: "late", 3: "lost", 4: "dropped"})

    async def slow(s: Step, turns: int) -> int:
        for _ in range(turns):
            await checkpoint()
        return turns

    async def root(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            for i in range(10):
                tasks.start_soon(s.do, f"s{i}", slow, 5 * i)

    await run(root, store=store, id="r", clock=clock)
    same = [msgspec.structs.replace(s, number=0) for s in store.log[1:5]]
    assert same[0] == same[1]
    ids = [s.write_id for s in store.log]
    assert inner._storage.revisions == len(set(ids))
    state = await load_state(inner, "r")
    assert state is not None
    assert sorted(n.result_as(int) for p, n in state.walk() if p) == [5 * i for i in range(10)]


async def test_an_unavailable_store_is_asked_again_with_growing_delays() -> None:
    """A store that is down for a while costs time and nothing else."""
    clock = FakeClock()
    until = clock.now() + 20
    store = FaultyStore(MemoryStore(), lambda s: "unavailable" if clock.now() < until else None)
    assert await run(three, store=store, id="r", clock=clock) == 6
    assert clock.slept == sorted(clock.slept)
    assert 20 <= sum(clock.slept) <= 23
    assert max(clock.slept) <= 2
    assert len(clock.slept) < 30


@pytest.mark.parametrize(
    ("fault", "error"),
    [("unavailable", StoreUnavailableError), ("dropped", UncertainWriteError)],
)
@pytest.mark.parametrize("after", [0, 1, 2])
async def test_the_saver_gives_up_after_the_lease(
    fault: Any, error: type[StoreError], after: int
) -> None:
    """A save is repeated for ``lease`` seconds at most; then its error leaves the driver."""
    inner, clock = MemoryStore(), FakeClock()
    store = FaultyStore(inner, lambda s: fault if s.number > after else None)
    ran: list[str] = []

    async def body(s: Step) -> None:
        ran.append(s.path)

    async def root(s: Step) -> None:
        for name in "abc":
            try:
                await s.do(name, body)
            except Exception:  # noqa: BLE001 - as careless bodies do
                ran.append("caught")

    with pytest.raises(error):
        await run(root, store=store, id="r", clock=clock, lease=10)
    assert 7 < sum(clock.slept) <= 10
    assert ran == ["a", "b", "c"][:after]
    assert len({s.write_id for s in store.log[after:]}) == 1
    # The store is back: the run goes on, with nothing to recover.
    if after:
        state = await load_state(inner, "r")
        assert state is not None
        assert not any(n.errs for _, n in state.walk())
    ran.clear()
    await inner.aclose()
    await run(root, store=inner.client(), id="r", clock=clock)
    assert ran == ["a", "b", "c"][max(after - 1, 0) :]


async def test_a_refusal_leaves_at_once() -> None:
    """`StoreRefusedError` is not repeated: it leaves the driver as what it is."""
    inner, clock = MemoryStore(), FakeClock()
    store = FaultyStore(inner, {3: "refused"})
    ran: list[str] = []

    async def body(s: Step) -> None:
        ran.append(s.path)

    async def root(s: Step) -> None:
        for name in "abc":
            await s.do(name, body)

    with pytest.raises(StoreRefusedError):
        await run(root, store=store, id="r", clock=clock)
    assert (ran, store.saves, clock.slept) == (["a", "b"], 3, [])
    assert set((await stored(inner)).records) == {"", "a"}


async def test_a_closed_store() -> None:
    """A store that is closed under a driver ends it with `StoreClosedError`."""
    store = MemoryStore()

    async def root(s: Step) -> None:
        await store.aclose()
        await s.do("a", leaf)

    with pytest.raises(StoreClosedError):
        await run(root, store=store, id="r")


@pytest.mark.parametrize("loads", ["unavailable"])
async def test_a_load_that_fails(loads: Any) -> None:
    """A run that cannot be loaded is not begun, and is free again."""
    store = FaultyStore(MemoryStore(), loads={1: loads})
    with pytest.raises(StoreUnavailableError):
        await run(three, store=store, id="r")
    assert store.saves == 0
    assert await run(three, store=store, id="r") == 6


# --- conflicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["conflict", "refused"])
async def test_a_lost_store_stops_bodies(fault: Any) -> None:
    """When a save fails for good bodies are cancelled, nothing is recorded, nothing begins."""
    inner = MemoryStore()
    store = FaultyStore(inner, {3: fault})
    log: list[str] = []
    steps: list[Step] = []

    async def hang(s: Step) -> None:
        steps.append(s)
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            log.append("cancelled")
            raise
        except BaseException as exc:  # pragma: no cover
            log.append(repr(exc))
            raise

    async def sequence(s: Step) -> None:
        for name in "abc":
            try:
                await s.do(name, note)
            except Exception as exc:  # noqa: BLE001 - as careless bodies do
                log.append(f"caught {exc!r}")

    async def note(s: Step) -> None:
        log.append(s.name)

    async def root(s: Step) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(s.do, "hang", hang)
            await checkpoint()
            tasks.start_soon(s.do, "sequence", sequence)

    with pytest.raises(ConflictError if fault == "conflict" else StoreRefusedError):
        await run(root, store=store, id="r")
    assert sorted(log) == ["a", "b", "cancelled"]
    assert store.saves == 3
    state = await load_state(inner, "r")
    assert state is not None
    assert not any(n.errs or n.failed for _, n in state.walk())
    assert [p for p, n in state.walk() if n.done] == ["sequence/a"]


async def test_nothing_can_catch_a_conflict() -> None:
    """``except Exception`` around a step never sees a conflict, also in an outer step's body."""
    store = FaultyStore(MemoryStore(), {2: "conflict"})
    caught: list[str] = []

    async def parent(s: Step) -> None:
        try:
            await s.do("a", leaf)
        except Exception as exc:  # noqa: BLE001 - as careless bodies do
            caught.append(repr(exc))
        finally:
            caught.append("finally")
        await s.do("b", leaf)

    async def root(s: Step) -> None:
        try:
            await s.do("p", parent)
        except Exception as exc:  # noqa: BLE001 - as above
            caught.append(repr(exc))

    with pytest.raises(ConflictError):
        await run(root, store=store, id="r")
    assert caught == ["finally"]
    assert store.saves == 2


async def test_a_body_that_swallows_everything_begins_nothing() -> None:
    """After a failed write no body starts, even in code that swallows the signal."""
    store = FaultyStore(MemoryStore(), {2: "conflict"})
    ran: list[str] = []

    async def note(s: Step) -> None:
        ran.append(s.name)

    async def root(s: Step) -> str:
        for name in "abc":
            with suppress(BaseException):  # as very careless bodies do
                await s.do(name, note)
        return "fine"

    with pytest.raises(ConflictError):
        await run(root, store=store, id="r")
    assert ran == ["a"]
    assert store.saves == 2


async def test_a_conflict_with_a_real_stranger() -> None:
    """Of two processes on a store without a lease the one that saves second stops; no mixture."""
    inner = MemoryStore()
    other_result: list[int] = []

    async def outer(s: Step) -> int:
        first = await s.do("a", leaf, 1)
        other_result.append(await run(three_steps, store=CompareAndSet(inner), id="x", name="f"))
        return first + await s.do("b", leaf, 2)

    async def three_steps(s: Step) -> int:
        return await s.do("a", leaf, 10) + await s.do("b", leaf, 20)

    with pytest.raises(ConflictError) as found:
        await run(outer, store=CompareAndSet(inner), id="x", name="f")
    assert found.value.id == "x"
    assert other_result == [21]  # the recorded 1, and its own 20
    state = await load_state(inner, "x")
    assert state is not None
    assert state.result_as(int) == 21
    assert state.get("b").result_as(int) == 20


async def test_a_deleted_run_is_a_conflict() -> None:
    """A run that is deleted under a driver's hands ends it; it is not created anew."""
    inner = MemoryStore()

    async def root(s: Step) -> None:
        await s.do("a", leaf)
        await inner.delete("r", expected=(await stored(inner)).revision)
        await s.do("b", leaf)

    with pytest.raises(ConflictError):
        await run(root, store=inner, id="r")
    assert await load_state(inner, "r") is None


# --- claims ---------------------------------------------------------------------------------------


async def test_the_claim_comes_before_the_first_body() -> None:
    """The run's nonce, and the claim, are durable before any body runs."""
    inner = MemoryStore()
    seen: list[tuple[str | None, bool]] = []

    async def root(s: Step) -> str:
        found = await stored(inner)
        record = msgspec.json.decode(found.records[""])
        seen.append((found.summary.owner, bool(record["run"]["nonce"])))
        return s.token

    store = FaultyStore(inner)
    token = await run(root, store=store, id="r")
    assert seen == [(store.log[0].summary.owner, True)]
    assert token
    assert store.log[0].summary.owner


async def test_two_drivers_of_one_client() -> None:
    """Two drivers of one id in one process: the second is `BusyError`, the first goes on."""
    store = MemoryStore()
    results: list[object] = []
    started = anyio.Event()

    async def root(s: Step) -> int:
        started.set()
        await anyio.wait_all_tasks_blocked()
        return await s.do("a", leaf, 5)

    async def drive() -> None:
        try:
            results.append(await run(root, store=store, id="r"))
        except BusyError as exc:
            results.append(exc.id)

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(drive)
    assert sorted(results, key=str) == [5, "r", "r", "r", "r"]


async def test_a_claim_race_of_two_clients_with_leases() -> None:
    """Of two processes that begin a run at once one goes on; the other is `BusyError`."""
    inner = MemoryStore()
    results: list[object] = []
    bodies: list[str] = []

    async def root(s: Step) -> int:
        bodies.append("root")
        for _ in range(30):
            await checkpoint()
        return await s.do("a", leaf, 5)

    async def drive(client: MemoryStore) -> None:
        try:
            results.append(await run(root, store=client, id="r"))
        except BusyError as exc:
            results.append(exc.id)

    clients = [inner.client() for _ in range(4)]
    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(drive, client)
    assert sorted(results, key=str) == [5, "r", "r", "r"]
    assert bodies == ["root"]


async def test_a_claim_race_without_a_lease() -> None:
    """A claim that lost the race looks again: what the other one has done is not done again."""
    inner = MemoryStore()
    ran: list[str] = []

    async def body(s: Step) -> int:
        ran.append(s.path)
        return 7

    async def root(s: Step) -> int:
        return await s.do("a", body)

    class Overtaken(CompareAndSet):
        """Another process comes first, between this one's load and its claim."""

        async def load(self, id: str, /) -> StoredRun | None:
            found = await super().load(id)
            if not overtaken:
                overtaken.append(True)
                assert await run(root, store=CompareAndSet(inner.client()), id="r") == 7
            return found

    overtaken: list[bool] = []
    assert await run(root, store=Overtaken(inner), id="r") == 7
    assert ran == ["a"]
    assert len(overtaken) == 1


async def test_a_claim_race_of_many_without_a_lease() -> None:
    """Of many processes without a lease, each ends with the result or a conflict; one author."""
    inner = MemoryStore()
    results: list[object] = []
    done: list[str] = []

    async def body(s: Step) -> int:
        return 7

    async def root(s: Step) -> int:
        a = await s.do("a", body)
        done.append("a")
        b = await s.do("b", body)
        done.append("b")
        return a + b

    async def drive(client: MemoryStore) -> None:
        try:
            results.append(await run(root, store=CompareAndSet(client, turns=3), id="r"))
        except ConflictError:
            results.append("conflict")

    clients = [inner.client() for _ in range(4)]
    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(drive, client)
    assert set(results) <= {14, "conflict"}
    assert 14 in results
    assert await run(root, store=CompareAndSet(inner), id="r") == 14


async def test_a_stale_load_is_found_out() -> None:
    """A driver that loaded an old reading finds out by its claim, before any body runs."""
    inner = MemoryStore()
    ran: list[str] = []

    async def body(s: Step) -> int:
        ran.append(s.path)
        if s.path == "b" and len(ran) < 3:
            raise ValueError
        return 1

    async def root(s: Step) -> int:
        return await s.do("a", body) + await s.do("b", body)

    store = FaultyStore(CompareAndSet(inner), loads={2: "stale"})
    with pytest.raises(StepError):
        await run(root, store=store, id="r")
    assert await run(root, store=store, id="r", recover=True) == 2
    assert ran == ["a", "b", "b"]


# --- after the driver -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["done", "failed", "pending", "misuse", "cancelled"])
async def test_the_run_is_let_go(how: str) -> None:
    """However a driver ends, while its process lives on, others may go on with the run at once."""
    store = MemoryStore()

    async def root(s: Step) -> None:
        await s.do("a", leaf)
        match how:
            case "failed":
                raise ValueError
            case "pending":
                s.pending(after=9)
            case "misuse":
                await s.do("a", leaf)
            case "cancelled":
                scope.cancel()
                await anyio.sleep_forever()
            case _:
                assert how == "done"

    with anyio.CancelScope() as scope, suppress(asteps.UsageError):
        await reconcile(root, store=store, id="r")
    assert (await stored(store)).summary.owner is None
    async with asteps.edit_run(store.client(), "r") as state:
        assert state.get("a").done


async def test_a_run_whose_store_refused_is_free_for_its_own_process() -> None:
    """A driver that could not say goodbye to the store has let go of the run in its process."""
    store = MemoryStore()
    with pytest.raises(StoreRefusedError):
        await run(three, store=FaultyStore(store, {2: "refused"}), id="r")
    with pytest.raises(BusyError):
        await run(three, store=store.client(), id="r")  # as far as others can tell it goes on
    assert await run(three, store=store, id="r") == 6
