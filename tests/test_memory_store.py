"""`MemoryStore` keeps the store's contract, and lets a test play several processes."""

from __future__ import annotations

import gc
from typing import Any

import anyio
import pytest

from asteps._store import LeaseStore, ListStore, Store, StoredRun, Summary
from asteps.errors import BusyError, ConflictError, StoreClosedError, UsageError
from asteps.stores.memory import MemoryStore
from asteps.testing import StoreConformance

HELD = Summary("f", "proceeding", 1, None, 1.0, 1.0)


async def save(store: MemoryStore, owner: str | None, expected: str | None = None) -> str:
    """Save one record, held by this owner."""
    return await store.save(
        "run",
        {"": b"1"},
        expected=expected,
        epoch=1,
        write_id=str(expected),
        summary=Summary("f", "proceeding", 1, owner, 1.0, 1.0),
    )


class TestMemoryStore(StoreConformance):
    leases = True
    listing = True
    browsing = True
    scanning = True
    inspecting = True

    @pytest.fixture
    def storage(self) -> MemoryStore:
        return MemoryStore()

    async def client(self, storage: Any) -> Store:
        client: MemoryStore = storage.client()
        return client


def test_it_has_its_capabilities() -> None:
    """A `MemoryStore` lists and has leases; it can be made outside of any event loop."""
    store = MemoryStore()
    assert isinstance(store, Store)
    assert isinstance(store, ListStore)
    assert isinstance(store, LeaseStore)


async def test_two_stores_share_nothing() -> None:
    """Each `MemoryStore()` is a storage of its own; only `client` shares one."""
    store = MemoryStore()
    await save(store, None)
    assert await MemoryStore().load("run") is None
    assert await store.client().load("run") is not None


async def test_context_manager_closes() -> None:
    """Leaving ``async with`` closes the client, not the storage."""
    async with MemoryStore() as store:
        revision = await save(store, None)
    with pytest.raises(StoreClosedError):
        await store.load("run")
    with pytest.raises(StoreClosedError):
        async with store:
            pass
    assert await store.client().load("run") == StoredRun({"": b"1"}, revision, HELD)


async def test_dropped_client_is_dead() -> None:
    """What a client held is free as soon as the client is garbage collected."""
    store = MemoryStore()
    process = store.client()
    owner = await process.acquire("run", seconds=30)
    await save(process, owner)
    with pytest.raises(BusyError):
        await store.acquire("run", seconds=30)
    del process
    gc.collect()
    await store.acquire("run", seconds=30)


async def test_release_after_close_does_nothing() -> None:
    """A driver may release in its ``finally`` when the store has been closed meanwhile."""
    store = MemoryStore()
    await store.acquire("run", seconds=30)
    await store.aclose()
    store.release("run")


async def test_save_lets_others_run() -> None:
    """A save is a checkpoint: it lets other tasks run, and sees a cancellation before it writes."""
    store = MemoryStore()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await save(store, None)
    assert scope.cancelled_caught
    assert await store.load("run") is None


def test_storage_outlives_its_event_loop() -> None:
    """A client belongs to one event loop; another client goes on with the storage in the next."""
    store = MemoryStore()
    revision = anyio.run(save, store, None)
    with pytest.raises(UsageError, match=r"client\(\)"):
        anyio.run(store.load, "run")
    assert anyio.run(store.client().load, "run", backend="trio") == StoredRun(
        {"": b"1"}, revision, HELD
    )


def test_clients_in_threads_lose_no_update() -> None:
    """Clients in the event loops of several threads keep compare-and-set between them."""
    store = MemoryStore()
    anyio.run(save, store, None)

    async def count(client: MemoryStore) -> None:
        done = 0
        while done < 50:
            run = await client.load("run")
            assert run is not None
            try:
                await client.save(
                    "run",
                    {"": b"%d" % (int(run.records[""]) + 1)},
                    expected=run.revision,
                    epoch=1,
                    write_id=f"{id(client)}-{done}-{run.revision}",
                    summary=HELD,
                )
                done += 1
            except ConflictError:
                continue

    async def main() -> None:
        async with anyio.create_task_group() as tg:
            for _ in range(4):
                tg.start_soon(anyio.to_thread.run_sync, lambda: anyio.run(count, store.client()))

    anyio.run(main)
    found = anyio.run(store.client().load, "run")
    assert found is not None
    assert found.records == {"": b"201"}
