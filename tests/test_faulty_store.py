"""`FaultyStore` does exactly the faults that it was given, and is otherwise what it wraps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asteps._store import (
    BrowseStore,
    InspectStore,
    LeaseStore,
    ListStore,
    ScanStore,
    Store,
    StoredRun,
    Summary,
)
from asteps.errors import (
    BusyError,
    ConflictError,
    StoreRefusedError,
    StoreUnavailableError,
    UncertainWriteError,
    UsageError,
)
from asteps.stores.memory import MemoryStore
from asteps.testing import Crash, FaultyStore, StoreConformance
from asteps.testing._faulty import Save, SaveFault

SUMMARY = Summary("f", "proceeding", 1, None, 1.0, 1.0)


async def _save(
    store: Store, n: int, expected: str | None, id: str = "run", owner: str | None = None
) -> str:
    return await store.save(
        id,
        {"k": b"%d" % n},
        expected=expected,
        epoch=1,
        write_id=f"w{n}",
        summary=Summary("f", "proceeding", 1, owner, 1.0, 1.0),
    )


async def _value(store: Store, id: str = "run") -> bytes | None:
    run = await store.load(id)
    return run and run.records["k"]


CAPABILITIES = (ListStore, BrowseStore, ScanStore, InspectStore, LeaseStore)


class _Bare:
    """A store without capabilities."""

    def __init__(self, store: MemoryStore) -> None:
        self.load = store.load
        self.save = store.save
        self.delete = store.delete
        self.aclose = store.aclose


class _Lister(_Bare):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.list_runs = store.list_runs


class _Watcher(_Bare):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.browse = store.browse
        self.scan = store.scan
        self.inspect = store.inspect


class _Leaser(_Bare):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.acquire = store.acquire
        self.release = store.release


class TestWithoutFaults(StoreConformance):
    leases = True
    listing = True
    browsing = True
    scanning = True
    inspecting = True

    @pytest.fixture
    def storage(self) -> MemoryStore:
        return MemoryStore()

    async def client(self, storage: Any) -> Store:
        return FaultyStore(storage.client())


@pytest.mark.parametrize("kind", [MemoryStore, _Bare, _Lister, _Watcher, _Leaser])
def test_capabilities_are_those_of_the_wrapped(kind: Any) -> None:
    """``isinstance`` gives the same answers for the wrapper, also when it is wrapped again."""
    store = MemoryStore() if kind is MemoryStore else kind(MemoryStore())
    for wrapper in (FaultyStore(store), FaultyStore(FaultyStore(store))):
        for capability in (Store, *CAPABILITIES):
            assert isinstance(wrapper, capability) is isinstance(store, capability)


@pytest.mark.parametrize(
    ("fault", "error", "written"),
    [
        ("unavailable", StoreUnavailableError, False),
        ("refused", StoreRefusedError, False),
        ("conflict", ConflictError, False),
        ("dropped", UncertainWriteError, False),
        ("lost", UncertainWriteError, True),
    ],
)
async def test_fault_of_a_save(fault: SaveFault, error: type[Exception], written: bool) -> None:
    """The save that the plan names fails as told; the identical one afterwards succeeds."""
    store = MemoryStore()
    faulty = FaultyStore(store.client(), {2: fault})
    first = await _save(faulty, 1, None)
    with pytest.raises(error, match=r"save 2|stranger"):
        await _save(faulty, 2, first)
    assert await _value(store) == (b"2" if written else b"1")
    revision = await _save(faulty, 2, first)
    assert await store.load("run") == StoredRun({"k": b"2"}, revision, SUMMARY)
    assert faulty.saves == 3


async def test_late_save_lands_before_the_next_call() -> None:
    """An uncertain save that lands late is recognised by the identical save."""
    store = MemoryStore()
    faulty = FaultyStore(store.client(), {2: "late"})
    first = await _save(faulty, 1, None)
    with pytest.raises(UncertainWriteError):
        await _save(faulty, 2, first)
    assert await _value(store) == b"1"
    revision = await _save(faulty, 2, first)
    assert await store.load("run") == StoredRun({"k": b"2"}, revision, SUMMARY)


async def test_late_save_that_was_overtaken_is_lost() -> None:
    """A late save does not land over somebody else's."""
    store = MemoryStore()
    faulty = FaultyStore(store.client(), {2: "late"})
    first = await _save(faulty, 1, None)
    with pytest.raises(UncertainWriteError):
        await _save(faulty, 2, first)
    await _save(store, 3, first)
    with pytest.raises(ConflictError):
        await _save(faulty, 2, first)
    assert await _value(store) == b"3"


@pytest.mark.parametrize(("fault", "value"), [("hang", b"1"), ("hang after", b"2")])
async def test_hanging_save_ends_when_it_is_cancelled(fault: SaveFault, value: bytes) -> None:
    """A save that hangs returns only by being cancelled, with or without having written."""
    store = MemoryStore()
    faulty = FaultyStore(store.client(), {2: fault})
    first = await _save(faulty, 1, None)
    with anyio.move_on_after(0.005) as scope:
        await _save(faulty, 2, first)
    assert scope.cancelled_caught
    assert await _value(store) == value
    assert await _value(faulty) == value


@pytest.mark.parametrize(("fault", "value"), [("crash before", b"1"), ("crash after", b"2")])
async def test_crash_is_the_end_of_everything(fault: SaveFault, value: bytes) -> None:
    """After a crash every call raises it, nothing is written, and what was held is free."""
    store = MemoryStore()
    faulty = FaultyStore(store.client(), {2: fault})
    owner = await faulty.acquire("run", seconds=30)
    first = await _save(faulty, 1, None, owner=owner)
    with pytest.raises(BusyError):
        await store.acquire("run", seconds=30)
    with pytest.raises(Crash):
        await _save(faulty, 2, first, owner=owner)
    assert faulty.crashed
    assert await _value(store) == value
    for call in (
        faulty.load("run"),
        _save(faulty, 3, first),
        _save(faulty, 3, None, "another"),
        faulty.delete("run", expected=first),
        faulty.list_runs(),
        faulty.browse(),
        faulty.scan(),
        faulty.inspect(),
        faulty.acquire("another", seconds=30),
        faulty.aclose(),
    ):
        with pytest.raises(Crash):
            await call
    faulty.release("run")
    assert await _value(store) == value
    assert await store.load("another") is None
    await store.acquire("run", seconds=30)


def test_crash_is_no_exception() -> None:
    """No ``except Exception`` survives a crash."""
    assert not issubclass(Crash, Exception)


async def test_crash_ends_calls_under_way() -> None:
    """What other tasks have asked of a dead process is not answered, also if it was done."""
    store = MemoryStore()
    plan: dict[str, SaveFault] = {"run-1": "hang", "run-3": "crash after"}
    faulty = FaultyStore(store.client(), lambda save: plan.get(save.id))
    ends: list[int] = []

    async def work(n: int) -> None:
        try:
            await _save(faulty, n, None, f"run-{n}")
        except Crash:
            ends.append(n)

    async with anyio.create_task_group() as tg:
        tg.start_soon(work, 1)
        for _ in range(3):
            await checkpoint()
        for n in (2, 3):
            tg.start_soon(work, n)
    assert 1 in ends
    assert 3 in ends
    assert await _value(store, "run-3") == b"3"
    assert await _value(store, "run-1") is None


async def test_crash_leaves_its_context_manager() -> None:
    """``async with`` lets a crash through as it is."""
    store = MemoryStore()
    with pytest.raises(Crash):
        async with FaultyStore(store.client(), {1: "crash before"}) as faulty:
            await _save(faulty, 1, None)
    assert await store.load("run") is None


async def test_faults_of_loads() -> None:
    """The loads that the plan names are stale, unavailable, or the last."""
    store = MemoryStore()
    faulty = FaultyStore(
        store.client(), loads={2: "stale", 4: "unavailable", 5: "hang", 6: "stale", 7: "crash"}
    )
    revision = await _save(faulty, 1, None)
    revision = await _save(faulty, 2, revision)
    values = [await _value(faulty) for _ in range(3)]
    assert values == [b"2", b"1", b"2"]
    with pytest.raises(StoreUnavailableError):
        await faulty.load("run")
    with anyio.move_on_after(0.005) as scope:
        await faulty.load("run")
    assert scope.cancelled_caught
    assert await faulty.load("other") is None
    with pytest.raises(Crash):
        await faulty.load("run")
    assert faulty.loads == 7


async def test_stale_load_gives_what_was_read_before() -> None:
    """A stale load knows nothing of the last change that its store has seen, creation included."""
    store = MemoryStore()
    faulty = FaultyStore(store.client(), loads={1: "stale", 3: "stale", 5: "stale"})
    revision = await _save(faulty, 1, None)
    assert await faulty.load("run") is None
    assert await _value(faulty) == b"1"
    assert await faulty.load("run") is None
    await _save(store, 2, revision)
    assert await _value(faulty) == b"2"
    assert await _value(faulty) == b"1"


async def test_function_decides_per_save() -> None:
    """Instead of a plan, a function may choose the fault of each save by what it says."""
    seen: list[Save] = []

    def decide(save: Save) -> SaveFault | None:
        seen.append(save)
        return "refused" if save.changes == {"k": b"2"} else None

    faulty = FaultyStore(MemoryStore(), decide)
    revision = await _save(faulty, 1, None)
    with pytest.raises(StoreRefusedError):
        await _save(faulty, 2, revision)
    await _save(faulty, 3, revision)
    assert seen == faulty.log
    assert faulty.log[1] == Save(2, "run", {"k": b"2"}, revision, 1, "w2", SUMMARY)
    assert [save.number for save in faulty.log] == [1, 2, 3]


async def test_faults_compose() -> None:
    """A faulty store can be wrapped: each wrapper counts the saves that reach it."""
    store = MemoryStore()
    inner = FaultyStore(store.client(), {2: "lost"})
    outer = FaultyStore(inner, {1: "unavailable"})
    with pytest.raises(StoreUnavailableError):
        await _save(outer, 1, None)
    first = await _save(outer, 1, None)
    with pytest.raises(UncertainWriteError):
        await _save(outer, 2, first)
    await _save(outer, 2, first)
    assert (outer.saves, inner.saves) == (4, 3)


async def test_unknown_fault_is_misuse() -> None:
    """A misspelt fault, or save 0, is told at once and not passed over."""
    plans: Sequence[Any] = ({1: "explode"}, {0: "lost"}, {"1": "lost"})
    for plan in plans:
        with pytest.raises(UsageError):
            FaultyStore(MemoryStore(), plan)
    with pytest.raises(UsageError, match="stale"):
        FaultyStore(MemoryStore(), loads={1: "lost"})  # type: ignore[dict-item]
    decide: Any = lambda _: "explode"  # noqa: E731
    with pytest.raises(UsageError, match="explode"):
        await _save(FaultyStore(MemoryStore(), decide), 1, None)
