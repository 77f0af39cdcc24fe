"""What the parts of the kit have in common: clients of the storage, and short ways to save."""

# ruff: noqa: S101 - asserts are what a test is made of

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeAlias

import anyio
import pytest

from ..._store import (
    BrowseStore,
    InspectStore,
    LeaseStore,
    ListStore,
    ScanStore,
    Status,
    Store,
    Summary,
)

__all__ = [
    "Another",
    "BrowsingStore",
    "InspectingStore",
    "Kit",
    "LeasingStore",
    "ListingStore",
    "ScanningStore",
    "a_summary",
    "save",
]

Another: TypeAlias = Callable[[], Awaitable[Any]]
"""Gives another client of the test's storage at each call; all are closed when the test ends."""


class LeasingStore(Store, LeaseStore, Protocol):
    """A store with leases."""


class ListingStore(Store, ListStore, Protocol):
    """A store that lists."""


class BrowsingStore(Store, BrowseStore, Protocol):
    """A store that browses."""


class ScanningStore(Store, ScanStore, Protocol):
    """A store that scans."""


class InspectingStore(Store, InspectStore, Protocol):
    """A store that inspects."""


class Kit:
    """The fixtures. `StoreConformance` says what a subclass gives."""

    pytestmark: pytest.MarkDecorator = pytest.mark.anyio

    leases: ClassVar[bool]
    listing: ClassVar[bool]
    browsing: ClassVar[bool] = False
    folding: ClassVar[bool] = False
    scanning: ClassVar[bool] = False
    inspecting: ClassVar[bool] = False
    max_bytes: ClassVar[int | None] = None

    @pytest.fixture
    def storage(self) -> Any:
        """Where the runs of one test live: a path, a URL, an object. Override it."""
        raise NotImplementedError("override the fixture `storage`: a new, empty one for each test")

    async def client(self, storage: Any) -> Store:
        """Another client of this storage, as another process would be. Override it.

        Args:
            storage: What the fixture of that name gave.
        """
        raise NotImplementedError("override `client`: each call gives another client")

    @pytest.fixture
    async def another(self, storage: Any) -> AsyncIterator[Another]:
        clients: list[Store] = []

        async def another() -> Store:
            client = await self.client(storage)
            assert not any(client is other for other in clients), "client() gave the same one twice"
            clients.append(client)
            return client

        yield another
        with anyio.CancelScope(shield=True):
            for client in reversed(clients):
                await client.aclose()

    @pytest.fixture
    async def store(self, another: Another) -> Any:
        return await another()


def a_summary(
    epoch: int = 1,
    *,
    owner: str | None = None,
    name: str = "shop.order",
    status: Status = "proceeding",
    at: float = 1_700_000_000.25,
) -> Summary:
    """A summary in which only what matters must be said."""
    return Summary(name=name, status=status, epoch=epoch, owner=owner, created_at=at, updated_at=at)


async def save(
    store: Store,
    id: str,
    changes: Mapping[str, bytes | None],
    expected: str | None,
    *,
    write_id: str | None = None,
    summary: Summary | None = None,
) -> str:
    """Save under a new write id, with a summary that says nothing special."""
    summary = summary or a_summary()
    return await store.save(
        id,
        changes,
        expected=expected,
        epoch=summary.epoch,
        write_id=write_id or uuid.uuid4().hex,
        summary=summary,
    )
