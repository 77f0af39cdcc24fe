"""`StatusStore` keeps the contract, in memory and on a real API server, and every rule of it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes_memory import MemoryCluster
from kubernetes_server import Kube

from asteps._store import Store
from asteps.stores.kubernetes import StatusStore
from asteps.stores.memory import MemoryStore
from asteps.testing import StoreConformance

REF = "example.com/v1/databases/shop/orders"
LIMIT = 2**18


class TestInMemory(StoreConformance):
    leases = False
    listing = True
    browsing = True
    scanning = True
    inspecting = True
    folding = True
    max_bytes = LIMIT

    @pytest.fixture
    def storage(self) -> MemoryCluster:
        cluster = MemoryCluster()
        cluster.make(REF)
        return cluster

    async def client(self, storage: Any) -> Store:
        return StatusStore(REF, transport=storage.client(), max_bytes=LIMIT)


class _InMemoryElsewhere(StoreConformance):
    """What compresses well is taken whatever its size."""

    __test__ = False
    leases = False
    listing = True
    browsing = True
    scanning = True
    inspecting = True
    folding = True

    @pytest.fixture
    def storage(self) -> MemoryCluster:
        cluster = MemoryCluster()
        cluster.make(REF)
        return cluster


class TestCompressed(_InMemoryElsewhere):
    __test__ = True

    async def client(self, storage: Any) -> Store:
        return StatusStore(REF, transport=storage.client(), body="gzip")


class TestInAConfigMap(_InMemoryElsewhere):
    __test__ = True

    async def client(self, storage: Any) -> Store:
        return StatusStore(REF, transport=storage.client(), body="configmap")


class TestInASecret(_InMemoryElsewhere):
    __test__ = True

    async def client(self, storage: Any) -> Store:
        return StatusStore(REF, transport=storage.client(), body="secret")


class TestInAnotherStore(_InMemoryElsewhere):
    __test__ = True

    @pytest.fixture
    def storage(self) -> tuple[MemoryCluster, MemoryStore]:
        cluster = MemoryCluster()
        cluster.make(REF)
        return cluster, MemoryStore()

    async def client(self, storage: Any) -> Store:
        cluster, store = storage
        return StatusStore(REF, transport=cluster.client(), body=store.client())


@pytest.mark.kubernetes
# httpx leaves a socket to the garbage collector that asyncio's own task.cancel() interrupts while
# it connects.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
class TestOnAServer(StoreConformance):
    leases = False
    listing = True
    browsing = True
    scanning = True
    inspecting = True
    folding = True
    max_bytes = LIMIT

    @pytest.fixture
    def storage(self, kube: Kube) -> Iterator[str]:
        yield kube.create(kube.install(), "orders")
        gc.collect()

    async def client(self, storage: Any) -> Store:
        return StatusStore(storage, max_bytes=LIMIT)
