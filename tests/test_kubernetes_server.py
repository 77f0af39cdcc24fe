"""What `StatusStore` makes of what a real API server does; without one, left out and counted."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import to_thread
from kubernetes_server import Kube
from lightkube import AsyncClient, KubeConfig

from asteps._store import StoredRun, Summary
from asteps.errors import (
    ConflictError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
)
from asteps.stores.kubernetes import (
    BusyServerError,
    DeniedError,
    GoneError,
    InvalidError,
    LightkubeTransport,
    ObjectRef,
    ObjectTransport,
    StaleError,
    StatusStore,
    TooLargeError,
    Transport,
)

pytestmark = pytest.mark.kubernetes

RUN = "shop/orders"
SUMMARY = Summary("f", "proceeding", 1, None, 1.0, 1.0)


async def save(
    store: StatusStore, changes: Mapping[str, bytes | None], expected: str | None
) -> str:
    """Save with a summary that says nothing special."""
    return await store.save(
        RUN, changes, expected=expected, epoch=1, write_id=uuid.uuid4().hex, summary=SUMMARY
    )


@pytest.fixture
def ref(kube: Kube) -> str:
    """An object whose status takes everything."""
    return kube.create(kube.install(), "orders", {"size": 1})


async def test_saves_are_marked_as_ours(kube: Kube, ref: str) -> None:
    """Who writes the status is known to the server as ``asteps``, for its status subresource."""
    async with StatusStore(ref) as store:
        await save(store, {"": b"1"}, None)
    obj = await to_thread.run_sync(kube.get, ref)
    managers = {field["manager"]: field for field in obj["metadata"]["managedFields"]}
    assert managers["asteps"]["operation"] == "Update"
    assert "f:asteps" in managers["asteps"]["fieldsV1"]["f:status"]


async def test_others_may_write_the_rest(kube: Kube, ref: str) -> None:
    """Labels and other status fields of others stay, and do not stand in a save's way."""
    async with StatusStore(ref, view=lambda _: {"phase": "Running"}) as store:
        revision = await save(store, {"": b"0"}, None)
        for n in range(3):
            labels = {"metadata": {"labels": {"n": str(n)}}}
            await to_thread.run_sync(kube.patch, ref, labels)
            status = partial(kube.patch, ref, {"status": {"replicas": n}}, status=True)
            await to_thread.run_sync(status)
            revision = await save(store, {"": b"%d" % n}, revision)
        assert await store.load(RUN) == StoredRun({"": b"2"}, revision, SUMMARY)
    obj = await to_thread.run_sync(kube.get, ref)
    assert obj["metadata"]["labels"] == {"n": "2"}
    assert (obj["status"]["replicas"], obj["status"]["phase"]) == (2, "Running")


async def test_recreated_object_is_another_one(kube: Kube, ref: str) -> None:
    """An object's run is not found in one of the same name, nor saved to it."""
    async with StatusStore(ref) as store:
        revision = await save(store, {"": b"1"}, None)
        await to_thread.run_sync(kube.delete, ref)
        with pytest.raises(StoreRefusedError, match="is gone") as caught:
            await save(store, {"": b"2"}, revision)
        assert isinstance(caught.value.__cause__, GoneError)
        await to_thread.run_sync(kube.create, ref.rsplit("/", 2)[0], "orders")
        with pytest.raises(ConflictError):
            await save(store, {"": b"2"}, revision)
        assert await store.load(RUN) is None


async def test_schema_without_the_field(kube: Kube) -> None:
    """A typed status without the store's field is named, with what to declare."""
    typed = {"type": "object", "properties": {"replicas": {"type": "integer"}}}
    ref = await to_thread.run_sync(lambda: kube.create(kube.install(status=typed), "orders"))
    async with StatusStore(ref) as store:
        with pytest.raises(StoreRefusedError, match=r"status\.asteps"):
            await save(store, {"": b"1"}, None)
        assert await store.load(RUN) is None


async def test_resource_without_a_status(kube: Kube) -> None:
    """A resource without a status subresource is named, with what to declare."""
    ref = await to_thread.run_sync(lambda: kube.create(kube.install(subresource=False), "orders"))
    async with StatusStore(ref) as store:
        with pytest.raises(StoreRefusedError, match=r"subresources: \{status: \{\}\}"):
            await save(store, {"": b"1"}, None)


@pytest.mark.parametrize("mebibytes", [1.6, 2.2])  # from 3 on it may hang up without an answer
async def test_what_the_server_finds_too_large(ref: str, mebibytes: float) -> None:
    """What only the server knows to be too large is refused too, not tried again."""
    large = b'"' + b"x" * int(mebibytes * 2**20) + b'"'
    async with StatusStore(ref, max_bytes=2**30, warn_bytes=2**30) as store:
        revision = await save(store, {"": b"1"}, None)
        with pytest.raises(StoreRefusedError, match="body='gzip'") as caught:
            await save(store, {"a": large}, revision)
        assert isinstance(caught.value.__cause__, TooLargeError)
        assert await store.load(RUN) == StoredRun({"": b"1"}, revision, SUMMARY)


@pytest.mark.parametrize("body", ["gzip", "configmap", "secret"])
async def test_bodies(kube: Kube, ref: str, body: Any) -> None:
    """Compressed, and in objects of its own, a run of 1 MiB is kept and comes back."""
    large = b'"' + b"x" * 2**20 + b'"'
    async with StatusStore(ref, body=body) as store, StatusStore(ref, body=body) as other:
        first = await save(store, {"": b"1", "\x00\u2028<&>": large}, None)
        second = await save(other, {"": b"2"}, first)
        with pytest.raises(ConflictError):
            await save(store, {"": b"3"}, first)
        stored = StoredRun({"": b"2", "\x00\u2028<&>": large}, second, SUMMARY)
        assert await store.load(RUN) == stored
        await store.delete(RUN, expected=second)
        assert await other.load(RUN) is None
    if body != "gzip":
        owned = ObjectRef("", "v1", f"{body}s", kube.namespace, "orders-databases-asteps")
        obj = await to_thread.run_sync(kube.get, ref)
        async with _transport() as transport:
            [owner] = (await transport.get(owned))["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("Database", obj["metadata"]["uid"])


def _transport() -> LightkubeTransport:
    return LightkubeTransport()


async def test_transport_creates_and_patches(kube: Kube, ref: str) -> None:
    """It is an `ObjectTransport`; each of its errors is of the class that says what happened."""
    name = ObjectRef("", "v1", "configmaps", kube.namespace, "one")
    new: dict[str, Any] = {"metadata": {"name": "one"}, "data": {"a": "1"}}
    typed = {"apiVersion": "v1", "kind": "ConfigMap"}
    async with _transport() as transport:
        assert isinstance(transport, Transport)
        assert isinstance(transport, ObjectTransport)
        made = await transport.create(name, {**typed, **new})
        assert type(made) is dict
        with pytest.raises(StaleError, match="409"):
            await transport.create(name, {**typed, **new})
        changed = await transport.patch(name, {"data": {"a": None, "b": "2"}})
        assert changed["data"] == {"b": "2"}
        stale = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}}
        with pytest.raises(StaleError, match="409"):
            await transport.patch(name, {**stale, "data": {"c": "3"}})
        with pytest.raises(InvalidError):
            await transport.patch(name, {"data": {"c": {"not": "a string"}}})
        with pytest.raises(GoneError, match="404"):
            await transport.get(ObjectRef("", "v1", "configmaps", kube.namespace, "two"))
        with pytest.raises(GoneError):
            await transport.get(ObjectRef("no.such.group", "v1", "things", None, "two"))
        node = await transport.get(ObjectRef("", "v1", "namespaces", None, kube.namespace))
        assert node["kind"] == "Namespace"
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": "orders."},
            "involvedObject": {"namespace": kube.namespace, "name": "orders"},
            "reason": "Tested",
        }
        events = ObjectRef("", "v1", "events", kube.namespace, "orders")
        assert (await transport.create(events, event))["metadata"]["name"].startswith("orders.")


async def test_client_of_ones_own_stays_open(ref: str) -> None:
    """A client that was given is used, and not closed."""
    client = await to_thread.run_sync(AsyncClient)
    try:
        for _ in range(2):
            async with (
                LightkubeTransport(client) as transport,
                StatusStore(ref, transport=transport) as store,
            ):
                await store.load(RUN)
    finally:
        await client.close()


async def test_who_may_not_is_told_so(kube: Kube, ref: str) -> None:
    """Without credentials that count, calls are refused, and the message says what is needed."""

    def stranger() -> AsyncClient:
        config = KubeConfig.from_file(kube.kubeconfig)
        config.users["admin"].token = "no one's"
        return AsyncClient(config=config)

    await _refused(await to_thread.run_sync(stranger), ref, StoreRefusedError, DeniedError)


async def test_server_that_is_not_there(kube: Kube, ref: str) -> None:
    """Where nobody can be connected to, nothing was written, and the call may be repeated."""

    def nowhere() -> AsyncClient:
        config = KubeConfig.from_file(kube.kubeconfig)
        config.clusters["test"].server = "https://127.0.0.1:1"
        return AsyncClient(config=config)

    await _refused(await to_thread.run_sync(nowhere), ref, StoreUnavailableError, BusyServerError)


async def _refused(
    client: AsyncClient, ref: str, kind: type[StoreError], cause: type[Exception]
) -> None:
    try:
        async with StatusStore(ref, transport=LightkubeTransport(client)) as store:
            with pytest.raises(kind) as caught:
                await store.load(RUN)
            assert isinstance(caught.value.__cause__, cause)
            with pytest.raises(kind):
                await save(store, {"": b"1"}, None)
    finally:
        with anyio.CancelScope(shield=True):
            await client.close()
