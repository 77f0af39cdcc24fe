"""A client's life: one event loop, one end."""

# ruff: noqa: S101 - asserts are what a test is made of

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import anyio
from anyio.lowlevel import checkpoint

from ..._store import (
    BrowseStore,
    InspectStore,
    LeaseStore,
    ListStore,
    ScanStore,
    Store,
    StoredRun,
)
from ...errors import StoreClosedError, UsageError
from ._base import Another, Kit, a_summary, save


def _calls(store: Store, revision: str) -> dict[str, Callable[[], Awaitable[object]]]:
    """Every method but `aclose`, as a call that would otherwise succeed."""
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "load": lambda: store.load("run"),
        "save": lambda: save(store, "run", {"k": b"2"}, revision),
        "create": lambda: save(store, "another", {}, None),
        "delete": lambda: store.delete("run", expected=revision),
        "delete nothing": lambda: store.delete("nobody", expected=revision),
    }
    if isinstance(store, ListStore):
        calls["list_runs"] = store.list_runs
    if isinstance(store, BrowseStore):
        calls["browse"] = store.browse
    if isinstance(store, ScanStore):
        calls["scan"] = store.scan
    if isinstance(store, InspectStore):
        calls["inspect"] = store.inspect
    if isinstance(store, LeaseStore):
        leaser: LeaseStore = store
        calls["acquire"] = lambda: leaser.acquire("run", seconds=30)
    return calls


class ClosingKit(Kit):
    """What a client may be asked, and when."""

    async def test_closed_store_says_so(self, another: Another) -> None:
        """After `aclose` every method raises StoreClosedError, and nothing is done."""
        store, witness = await another(), await another()
        revision = await save(store, "run", {"k": b"1"}, None)
        await store.aclose()
        for name, call in _calls(store, revision).items():
            done = False
            with contextlib.suppress(StoreClosedError):
                await call()
                done = True
            assert not done, f"{name} was possible after aclose"
        assert await witness.load("run") == StoredRun({"k": b"1"}, revision, a_summary())
        assert await witness.load("another") is None

    async def test_closing_again_does_nothing(self, another: Another) -> None:
        """A second `aclose` returns, and so does that of a client that was never used."""
        store, unused = await another(), await another()
        await save(store, "run", {"k": b"1"}, None)
        for client in (store, store, unused, unused):
            await client.aclose()

    async def test_what_was_acknowledged_stays(self, another: Another) -> None:
        """After the last client was closed, a new one finds every run as it was saved."""
        stores = [await another(), await another()]
        revisions = [
            await save(s, f"run-{n}", {"k": b"%d" % n}, None) for n, s in enumerate(stores)
        ]
        for store in stores:
            await store.aclose()
        late = await another()
        for n, revision in enumerate(revisions):
            assert await late.load(f"run-{n}") == StoredRun({"k": b"%d" % n}, revision, a_summary())
            await save(late, f"run-{n}", {}, revision)

    async def test_closing_one_client_leaves_the_others(self, another: Another) -> None:
        """A client goes on when another one of the same storage, even in its process, closes."""
        store, other = await another(), await another()
        revision = await save(other, "run", {"k": b"1"}, None)
        await other.aclose()
        revision = await save(store, "run", {"k": b"2"}, revision)
        assert await store.load("run") == StoredRun({"k": b"2"}, revision, a_summary())

    async def test_closing_waits_or_refuses(self, another: Another) -> None:
        """A save under way when its store is closed is acknowledged and there, or neither."""
        witness = await another()
        answers: dict[str, str] = {}
        refused: list[str] = []

        async def late(store: Store, id: str) -> None:
            try:
                answers[id] = await save(store, id, {"k": b"1"}, None)
            except StoreClosedError:
                refused.append(id)

        for moment in range(8):
            store = await another()
            async with anyio.create_task_group() as tg:
                for n in range(4):
                    tg.start_soon(late, store, f"run-{moment}-{n}")
                for _ in range(moment):
                    await checkpoint()
                await store.aclose()
        for id, revision in answers.items():
            assert await witness.load(id) == StoredRun({"k": b"1"}, revision, a_summary())
        for id in refused:
            assert await witness.load(id) is None

    async def test_second_event_loop_is_misuse(
        self, another: Another, anyio_backend_name: str
    ) -> None:
        """In another event loop than its first one, every method of a store raises UsageError."""
        store = await another()
        revision = await save(store, "run", {"k": b"1"}, None)
        answers: dict[str, BaseException | None] = {}

        async def elsewhere() -> None:
            for name, call in {**_calls(store, revision), "aclose": store.aclose}.items():
                try:
                    await call()
                    answers[name] = None
                except BaseException as error:  # noqa: BLE001 - whatever it is, it is the finding
                    answers[name] = error

        def in_a_thread() -> None:
            anyio.run(elsewhere, backend=anyio_backend_name)

        await anyio.to_thread.run_sync(in_a_thread)
        wrong = {n: repr(e) for n, e in answers.items() if not isinstance(e, UsageError)}
        assert not wrong
        assert await store.load("run") == StoredRun({"k": b"1"}, revision, a_summary())
