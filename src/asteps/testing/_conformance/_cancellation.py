"""A cancelled call is done or not done, and it is over."""

# ruff: noqa: S101 - asserts are what a test is made of

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

import anyio
import pytest
from anyio.lowlevel import checkpoint

from ..._store import StoredRun
from ._base import Another, Kit, a_summary, save

KEYS = [f"k{n}" for n in range(10)]
# After how many checkpoints, or seconds, a call is cancelled: some before it begins, some within.
MOMENTS: tuple[float, ...] = (0, 1, 2, 3, 4, 6, 9, 0.0002, 0.0005, 0.001, 0.002, 0.004)


async def _cancelled(call: Callable[[], Awaitable[None]], moment: float, how: str) -> None:
    """Make a call in a task of its own and cancel it at this moment."""
    scope = anyio.CancelScope()
    begun = anyio.Event()
    cancel: list[Callable[[], object]] = [scope.cancel]

    async def attempt() -> None:
        if how == "task.cancel()":
            task = sys.modules["asyncio"].current_task()  # only there on asyncio
            cancel[:] = [task.cancel]
        begun.set()
        with scope:
            try:
                await call()
            except anyio.get_cancelled_exc_class():
                if how == "scope":
                    raise

    async with anyio.create_task_group() as tg:
        tg.start_soon(attempt)
        await begun.wait()
        if isinstance(moment, int):
            for _ in range(moment):
                await checkpoint()
        else:
            await anyio.sleep(moment)
        cancel[0]()


class CancellationKit(Kit):
    """Each test runs once for anyio's cancel scopes, and on asyncio for ``task.cancel()``."""

    @pytest.fixture
    def ways(self, anyio_backend_name: str) -> tuple[str, ...]:
        return ("scope", "task.cancel()") if anyio_backend_name == "asyncio" else ("scope",)

    async def test_cancelled_save_is_whole_or_nothing(
        self, another: Another, ways: tuple[str, ...]
    ) -> None:
        """A cancelled save landed whole or not at all, and does not land later."""
        store, witness = await another(), await another()
        old = dict.fromkeys(KEYS, b"0")
        new = dict.fromkeys(KEYS, b"1")
        found: dict[str, StoredRun | None] = {}
        for how in ways:
            for moment in MOMENTS:
                id = f"{how} {moment}"
                first = await save(store, id, old, None)
                answer: list[str] = []

                async def call(id: str, first: str, answer: list[str]) -> None:
                    changes: dict[str, bytes | None] = {**new, "gone": None}
                    answer.append(await save(store, id, changes, first, summary=a_summary(2)))

                def again(
                    id: str = id, first: str = first, answer: list[str] = answer
                ) -> Awaitable[None]:
                    return call(id, first, answer)

                await _cancelled(again, moment, how)
                found[id] = run = await witness.load(id)
                assert run is not None
                if answer:
                    assert run == StoredRun(new, answer[0], a_summary(2))
                elif run.revision == first:
                    assert run == StoredRun(old, first, a_summary())
                else:
                    assert run == StoredRun(new, run.revision, a_summary(2)), f"half of it: {id}"
        await anyio.sleep(0.01)
        for id, run in found.items():
            assert await witness.load(id) == run, f"landed after its caller was cancelled: {id}"
            assert run is not None
            await save(store, id, {}, run.revision)

    async def test_cancelled_creation_is_whole_or_nothing(
        self, another: Another, ways: tuple[str, ...]
    ) -> None:
        """A cancelled creation made the whole run or none, and does not make it later."""
        store, witness = await another(), await another()
        new = dict.fromkeys(KEYS, b"1")
        found: dict[str, StoredRun | None] = {}
        for how in ways:
            for moment in MOMENTS:
                id = f"{how} {moment}"

                async def call(id: str = id) -> None:
                    await save(store, id, new, None)

                await _cancelled(call, moment, how)
                found[id] = run = await witness.load(id)
                assert run is None or run == StoredRun(new, run.revision, a_summary())
        await anyio.sleep(0.01)
        for id, run in found.items():
            assert await witness.load(id) == run, f"landed after its caller was cancelled: {id}"
            await save(store, id, {}, run and run.revision)

    async def test_cancelled_delete_is_whole_or_nothing(
        self, another: Another, ways: tuple[str, ...]
    ) -> None:
        """A cancelled delete removed the whole run or nothing, and does not remove it later."""
        store, witness = await another(), await another()
        old = dict.fromkeys(KEYS, b"0")
        found: dict[str, StoredRun | None] = {}
        for how in ways:
            for moment in MOMENTS:
                id = f"{how} {moment}"
                first = await save(store, id, old, None)

                async def call(id: str = id, first: str = first) -> None:
                    await store.delete(id, expected=first)

                await _cancelled(call, moment, how)
                found[id] = run = await witness.load(id)
                assert run is None or run == StoredRun(old, first, a_summary())
        await anyio.sleep(0.01)
        for id, run in found.items():
            assert await witness.load(id) == run, f"removed after its caller was cancelled: {id}"

    async def test_cancelled_load_has_no_effect(
        self, another: Another, ways: tuple[str, ...]
    ) -> None:
        """A cancelled load leaves the store as usable as it was."""
        store = await another()
        revision = await save(store, "run", {"k": b"1"}, None)
        for how in ways:
            for moment in MOMENTS:

                async def call() -> None:
                    await store.load("run")

                await _cancelled(call, moment, how)
                assert await store.load("run") == StoredRun({"k": b"1"}, revision, a_summary())
        await save(store, "run", {"k": b"2"}, revision)

    async def test_call_in_a_cancelled_scope_ends(self, another: Another) -> None:
        """In a scope that is cancelled already, a call ends, and the store stays usable."""
        store, witness = await another(), await another()
        revision = await save(store, "run", {"k": b"1"}, None)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await save(store, "run", {"k": b"2"}, revision)
        run = await witness.load("run")
        assert run is not None
        await save(store, "run", {"k": b"3"}, run.revision)
