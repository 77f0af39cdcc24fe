"""Who may advance a run."""

# ruff: noqa: S101 - asserts are what a test is made of

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio
import pytest
from anyio.lowlevel import checkpoint

from ..._store import LeaseStore, StoredRun
from ...errors import BusyError, ConflictError
from ._base import Another, Kit, LeasingStore, a_summary, save

Leaser: TypeAlias = Callable[[], Awaitable[LeasingStore]]


class LeaseKit(Kit):
    """For stores that declare `leases`; for others these tests are reported as skipped."""

    @pytest.fixture
    async def leaser(self, another: Another) -> Leaser:
        store = await another()
        if not self.leases:
            assert not isinstance(store, LeaseStore), "it has leases, and does not declare them"
            pytest.skip("this store declares that it has no leases")
        assert isinstance(store, LeaseStore), "it declares leases, and has none"
        return another

    async def test_holder_keeps_others_out(self, leaser: Leaser) -> None:
        """While an owner lives, the run that names it is busy for everybody, itself included."""
        holder, other = await leaser(), await leaser()
        owner = await holder.acquire("run", seconds=30)
        await save(holder, "run", {}, None, summary=a_summary(owner=owner))
        for store in (other, holder):
            with pytest.raises(BusyError) as caught:
                await store.acquire("run", seconds=30)
            assert (caught.value.id, caught.value.owner) == ("run", owner)

    async def test_acquired_twice_in_one_client_is_busy(self, leaser: Leaser) -> None:
        """A client that prepares to hold a run cannot acquire it again, saved or not."""
        store = await leaser()
        await store.acquire("run", seconds=30)
        with pytest.raises(BusyError):
            await store.acquire("run", seconds=30)
        await store.acquire("another", seconds=30)

    async def test_one_task_of_a_client_acquires(self, leaser: Leaser) -> None:
        """Of many tasks of one client that acquire a run at the same time, one does."""
        store = await leaser()
        owners: list[str] = []
        busy: list[BusyError] = []

        async def compete() -> None:
            try:
                owners.append(await store.acquire("run", seconds=30))
            except BusyError as error:
                busy.append(error)

        async with anyio.create_task_group() as tg:
            for _ in range(5):
                tg.start_soon(compete)
        assert (len(owners), len(busy)) == (1, 4)

    async def test_release_frees_for_this_client(self, leaser: Leaser) -> None:
        """A released run can be acquired again by its client, also if it was never saved."""
        store, other = await leaser(), await leaser()
        await store.acquire("run", seconds=30)
        store.release("run")
        owner = await store.acquire("run", seconds=30)
        await save(store, "run", {}, None, summary=a_summary(owner=owner))
        store.release("run")
        with pytest.raises(BusyError):  # the run still names its living owner
            await other.acquire("run", seconds=30)
        await store.acquire("run", seconds=30)

    async def test_release_of_what_is_not_held_does_nothing(self, leaser: Leaser) -> None:
        """A release may be repeated, and one client's release is nothing to another."""
        holder, other = await leaser(), await leaser()
        owner = await holder.acquire("run", seconds=30)
        await save(holder, "run", {}, None, summary=a_summary(owner=owner))
        for store in (other, other):
            store.release("run")
            store.release("never there")
        for store in (holder, other):
            with pytest.raises(BusyError):
                await store.acquire("run", seconds=30)

    async def test_last_save_without_owner_frees(self, leaser: Leaser) -> None:
        """After a save that names no owner, and a release, others acquire the run."""
        holder, other = await leaser(), await leaser()
        owner = await holder.acquire("run", seconds=30)
        revision = await save(holder, "run", {}, None, summary=a_summary(owner=owner))
        revision = await save(holder, "run", {}, revision, summary=a_summary())
        holder.release("run")
        taken = await other.acquire("run", seconds=30)
        await save(other, "run", {}, revision, summary=a_summary(2, owner=taken))
        with pytest.raises(BusyError) as caught:
            await holder.acquire("run", seconds=30)
        assert caught.value.owner == taken

    async def test_closing_frees(self, leaser: Leaser) -> None:
        """What a client held is free for others when it has been closed."""
        holder, other = await leaser(), await leaser()
        owner = await holder.acquire("run", seconds=30)
        revision = await save(holder, "run", {}, None, summary=a_summary(owner=owner))
        await holder.aclose()
        taken = await other.acquire("run", seconds=30)
        assert taken != owner
        await save(other, "run", {}, revision, summary=a_summary(2, owner=taken))

    async def test_owner_that_never_was_holds_nothing(self, leaser: Leaser) -> None:
        """A name that no living client has, however odd, keeps nobody out."""
        store = await leaser()
        await store.acquire("warm up", seconds=30)
        for n, owner in enumerate(("nobody", "", "..", "/etc/passwd", "\x00", "a:1:b", "x" * 999)):
            await save(store, f"run-{n}", {}, None, summary=a_summary(owner=owner))
            await store.acquire(f"run-{n}", seconds=30)

    async def test_owners_of_two_clients_differ(self, leaser: Leaser) -> None:
        """Two clients of one storage, even in one process, are two owners."""
        first, second = await leaser(), await leaser()
        assert await first.acquire("a", seconds=30) != await second.acquire("b", seconds=30)

    async def test_one_claim_wins(self, leaser: Leaser) -> None:
        """Of many clients that claim a free run at the same time, one becomes its holder."""
        stores = [await leaser() for _ in range(4)]
        begun = await save(stores[0], "begun", {"k": b"1"}, None)
        for id, expected in (("begun", begun), ("new", None)):
            won: list[tuple[LeasingStore, str, str]] = []

            async def claim(
                store: LeasingStore,
                id: str,
                expected: str | None,
                won: list[tuple[LeasingStore, str, str]],
            ) -> None:
                try:
                    owner = await store.acquire(id, seconds=30)
                except BusyError:
                    return
                try:
                    revision = await save(
                        store, id, {"k": b"2"}, expected, summary=a_summary(2, owner=owner)
                    )
                except ConflictError:
                    store.release(id)
                else:
                    won.append((store, owner, revision))

            async with anyio.create_task_group() as tg:
                for store in stores:
                    tg.start_soon(claim, store, id, expected, won)
            assert len(won) == 1, f"{len(won)} hold the run"
            [(_, owner, revision)] = won
            assert await stores[0].load(id) == StoredRun(
                {"k": b"2"}, revision, a_summary(2, owner=owner)
            )
            for store in stores:
                with pytest.raises(BusyError) as caught:
                    await store.acquire(id, seconds=30)
                assert caught.value.owner == owner

    async def test_busy_holds_nothing(self, leaser: Leaser) -> None:
        """A client that was told Busy can acquire the run as soon as its holder has ended."""
        holder, other = await leaser(), await leaser()
        owner = await holder.acquire("run", seconds=30)
        await save(holder, "run", {}, None, summary=a_summary(owner=owner))
        for _ in range(2):
            with pytest.raises(BusyError):
                await other.acquire("run", seconds=30)
        await holder.aclose()
        await other.acquire("run", seconds=30)

    async def test_cancelled_acquire_holds_nothing(self, leaser: Leaser) -> None:
        """An acquire that raised because it was cancelled leaves the run free in its client."""
        store = await leaser()
        for n in range(8):
            owners: list[str] = []

            async def acquire(scope: anyio.CancelScope, id: str, owners: list[str]) -> None:
                with scope:
                    owners.append(await store.acquire(id, seconds=30))

            scope = anyio.CancelScope()
            async with anyio.create_task_group() as tg:
                tg.start_soon(acquire, scope, f"run-{n}", owners)
                for _ in range(n):
                    await checkpoint()
                scope.cancel()
            if not owners:
                await store.acquire(f"run-{n}", seconds=30)
