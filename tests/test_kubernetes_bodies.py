"""Records that are compressed, or lie in a ConfigMap, a Secret or another store."""

from __future__ import annotations

import base64
import gzip
import json
import random
from collections.abc import Mapping
from typing import Any

import pytest
from kubernetes_memory import Call, MemoryCluster

from asteps._store import StoredRun, Summary
from asteps.errors import (
    ConflictError,
    StateFormatError,
    StoreRefusedError,
    StoreUnavailableError,
    UncertainWriteError,
)
from asteps.stores.kubernetes import (
    BusyServerError,
    DeniedError,
    ObjectRef,
    StatusStore,
    UnknownFateError,
    View,
    Viewed,
)
from asteps.stores.memory import MemoryStore

REF = "example.com/v1/databases/shop/orders"
CONFIGMAP = "/v1/configmaps/shop/orders-databases-asteps"
SECRET = "/v1/secrets/shop/orders-databases-asteps"
RUN = "shop/orders"
SUMMARY = Summary("f", "proceeding", 1, None, 1.0, 1.0)
LARGE = b'"' + b"x" * 70_000 + b'"'


@pytest.fixture
def cluster() -> MemoryCluster:
    """A server with one object."""
    cluster = MemoryCluster()
    cluster.make(REF)
    return cluster


async def save(
    store: StatusStore,
    changes: Mapping[str, bytes | None],
    expected: str | None,
    write_id: str = "w1",
) -> str:
    """Save with a summary that says nothing special."""
    return await store.save(
        RUN, changes, expected=expected, epoch=1, write_id=write_id, summary=SUMMARY
    )


def methods(cluster: MemoryCluster) -> list[tuple[str, str]]:
    """What the server was asked, and of which resource, since this was called last."""
    calls, cluster.calls = cluster.calls, []
    return [(call.method, call.ref.plural) for call in calls]


def the_run(cluster: MemoryCluster) -> dict[str, Any]:
    """The run as the status holds it."""
    found: dict[str, Any] = cluster.get(REF)["status"]["asteps"]["runs"][RUN]
    return found


def kept(cluster: MemoryCluster, ref: str, data: str) -> Any:
    """The subtree that a ConfigMap or a Secret holds."""
    return json.loads(gzip.decompress(base64.b64decode(cluster.get(ref)[data]["asteps"])))


async def test_small_runs_are_not_compressed(cluster: MemoryCluster) -> None:
    """With "gzip" a run is text that people can read until its records exceed 64 KiB, and again."""
    store = StatusStore(REF, transport=cluster.client(), body="gzip")
    revision = await save(store, {"": b"1"}, None)
    assert the_run(cluster)["records"] == {"": "1"}
    revision = await save(store, {"a": LARGE}, revision, "w2")
    assert "records" not in the_run(cluster)
    assert len(the_run(cluster)["gzip"]) < 1_000
    revision = await save(store, {"a": None}, revision, "w3")
    assert "gzip" not in the_run(cluster)
    assert the_run(cluster)["records"] == {"": "1"}
    revision = await save(store, {"a": LARGE}, revision, "w4")
    for body in ("status", "gzip"):  # either reads what the other wrote
        other = StatusStore(REF, transport=cluster.client(), body=body)
        assert await other.load(RUN) == StoredRun({"": b"1", "a": LARGE}, revision, SUMMARY)


@pytest.mark.parametrize(
    ("body", "ref", "kind", "data"),
    [
        ("configmap", CONFIGMAP, "ConfigMap", "binaryData"),
        ("secret", SECRET, "Secret", "data"),
    ],
)
async def test_owned_object_holds_the_records(
    cluster: MemoryCluster, body: Any, ref: str, kind: str, data: str
) -> None:
    """The records are in an object that goes with its owner; the status has the summary."""

    def view(viewed: Viewed) -> dict[str, Any]:
        return {"progress": str(len(viewed.records))}

    store = StatusStore(REF, transport=cluster.client(), body=body, view=view)
    revision = await save(store, {"": b"1", "a": LARGE}, None)
    owned = cluster.get(ref)
    uid = cluster.get(REF)["metadata"]["uid"]
    assert (owned["apiVersion"], owned["kind"]) == ("v1", kind)
    assert owned["metadata"]["ownerReferences"] == [
        {"apiVersion": "example.com/v1", "kind": "Database", "name": "orders", "uid": uid}
    ]
    assert kept(cluster, ref, data)["runs"][RUN]["records"] == {"": "1", "a": LARGE.decode()}
    status = cluster.get(REF)["status"]
    assert (status["progress"], status["asteps"]["body"]) == ("2", body)
    assert the_run(cluster).keys() == {"summary"}
    methods(cluster)
    revision = await save(store, {"a": b"2"}, revision, "w2")
    assert methods(cluster) == [
        ("PATCH", ObjectRef.parse(ref).plural),
        ("PATCH status", "databases"),
    ]
    assert await store.load(RUN) == StoredRun({"": b"1", "a": b"2"}, revision, SUMMARY)
    assert (await store.inspect()).runs == {"proceeding": 1}


@pytest.mark.parametrize("body", ["configmap", "secret"])
async def test_run_moves_out_of_the_status(cluster: MemoryCluster, body: Any) -> None:
    """A run that began in the status is found there, moves when it is saved, and goes on."""
    old = StatusStore(REF, transport=cluster.client())
    first = await save(old, {"": b"1"}, None)
    new = StatusStore(REF, transport=cluster.client(), body=body)
    assert await new.load(RUN) == StoredRun({"": b"1"}, first, SUMMARY)
    assert [id for id, _ in await new.list_runs()] == [RUN]
    second = await save(new, {"a": b"2"}, first, "w2")
    assert the_run(cluster).keys() == {"summary"}
    with pytest.raises(ConflictError):
        await save(old, {"": b"lost"}, first, "w3")  # it has not heard of it
    for store in (old, new, StatusStore(REF, transport=cluster.client())):
        assert await store.load(RUN) == StoredRun({"": b"1", "a": b"2"}, second, SUMMARY)
    third = await save(old, {"a": b"3"}, second, "w4")
    assert await new.load(RUN) == StoredRun({"": b"1", "a": b"3"}, third, SUMMARY)


async def test_half_a_move_is_none(cluster: MemoryCluster) -> None:
    """Who dies before the status says that the run has moved leaves it where it was."""
    old = StatusStore(REF, transport=cluster.client())
    first = await save(old, {"": b"1"}, None)
    transport = cluster.client()
    dying = StatusStore(REF, transport=transport, body="configmap")

    async def die(call: Call) -> None:
        if call.method == "PATCH status":
            raise BusyServerError("429")

    transport.before = die
    with pytest.raises(StoreUnavailableError):
        await save(dying, {"": b"2"}, first, "w2")
    assert kept(cluster, CONFIGMAP, "binaryData")["runs"][RUN]["records"] == {"": "1"}
    second = await save(old, {"": b"3"}, first, "w3")
    new = StatusStore(REF, transport=cluster.client(), body="configmap")
    assert await new.load(RUN) == StoredRun({"": b"3"}, second, SUMMARY)
    third = await save(new, {"a": b"4"}, second, "w4")
    assert await old.load(RUN) == StoredRun({"": b"3", "a": b"4"}, third, SUMMARY)


async def test_run_survives_the_loss_of_the_status(cluster: MemoryCluster) -> None:
    """Where somebody empties the status, the run is still in the ConfigMap, and goes on."""
    store = StatusStore(REF, transport=cluster.client(), body="configmap")
    revision = await save(store, {"": b"1"}, None)
    cluster.change(REF, {"status": {"asteps": None}}, status=True)
    assert await store.load(RUN) == StoredRun({"": b"1"}, revision, SUMMARY)
    await save(store, {"": b"2"}, revision, "w2")
    assert the_run(cluster).keys() == {"summary"}


async def test_lost_configmap_is_a_conflict(cluster: MemoryCluster) -> None:
    """Where the ConfigMap is taken away, the run is lost, and not made again from nothing."""
    store = StatusStore(REF, transport=cluster.client(), body="configmap")
    revision = await save(store, {"": b"1"}, None)
    cluster.remove(CONFIGMAP)
    with pytest.raises(ConflictError):
        await save(store, {"": b"2"}, revision, "w2")
    with pytest.raises(StateFormatError, match="are lost"):
        await store.load(RUN)


@pytest.mark.parametrize("body", ["configmap", "secret", "store"])
async def test_lost_records_do_not_begin_anew(cluster: MemoryCluster, body: Any) -> None:
    """What the status tells of and is not there is damage, until somebody says otherwise."""
    here: Any = MemoryStore() if body == "store" else body
    await save(StatusStore(REF, transport=cluster.client(), body=here), {"": b"1"}, None)
    if body == "store":
        here = MemoryStore()  # as with a slip in a path
    else:
        cluster.remove(CONFIGMAP if body == "configmap" else SECRET)
    store = StatusStore(REF, transport=cluster.client(), body=here)
    says = rf"run 'shop/orders' are lost: status.asteps of {REF} .* not in the {body} .* begin anew"
    with pytest.raises(StateFormatError, match=says):
        await store.load(RUN)
    assert await store.load("shop/others") is None
    assert await store.list_runs() == []
    assert (await store.browse()).damaged.keys() == {RUN}
    assert (await store.inspect()).damaged.keys() == {RUN}
    cluster.change(REF, {"status": {"asteps": None}}, status=True)
    assert await store.load(RUN) is None
    await save(store, {"": b"2"}, None)


@pytest.mark.parametrize("body", ["configmap", "store"])
async def test_half_a_removal_is_none(cluster: MemoryCluster, body: Any) -> None:
    """Who dies while a run is removed leaves it as it was, and never one that seems lost."""
    transport = cluster.client()
    here: Any = MemoryStore() if body == "store" else body
    store = StatusStore(REF, transport=transport, body=here)
    revision = await save(store, {"": b"1"}, None)

    async def refused(call: Call) -> None:
        if call.method == "PATCH status":
            raise BusyServerError("429")

    transport.before = refused
    with pytest.raises(StoreUnavailableError):
        await store.delete(RUN, expected=revision)
    transport.before = cluster.client().before
    assert await store.load(RUN) == StoredRun({"": b"1"}, revision, SUMMARY)
    with pytest.raises(ConflictError):
        await store.delete(RUN, expected="another")
    assert the_run(cluster) == {"summary": the_run(cluster)["summary"]}
    await store.delete(RUN, expected=revision)
    assert await store.load(RUN) is None
    assert (await store.inspect()).damaged == {}


async def test_run_may_be_removed_while_it_is_looked_for(cluster: MemoryCluster) -> None:
    """Removed by another client between the two reads of a load, a run is not taken for lost."""
    transport = cluster.client()
    store = StatusStore(REF, transport=transport, body="configmap")
    revision = await save(store, {"": b"1"}, None)
    other = StatusStore(REF, transport=cluster.client(), body="configmap")

    async def remove(call: Call) -> None:
        if call.ref.plural == "configmaps":
            transport.before = cluster.client().before
            await other.delete(RUN, expected=revision)

    transport.before = remove
    assert await store.load(RUN) is None


async def test_configmap_of_an_object_that_is_gone(cluster: MemoryCluster) -> None:
    """What is left of an object of the same name is nobody's run, and is not written over."""
    await save(StatusStore(REF, transport=cluster.client(), body="configmap"), {"": b"1"}, None)
    cluster.remove(REF)
    cluster.make(REF)
    store = StatusStore(REF, transport=cluster.client(), body="configmap")
    assert await store.load(RUN) is None
    assert await store.list_runs() == []
    with pytest.raises(StoreUnavailableError, match="of another object"):
        await save(store, {"": b"2"}, None)
    cluster.remove(CONFIGMAP)  # as the garbage collector does
    await save(store, {"": b"2"}, None)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("body", ["configmap", "secret", MemoryStore])
async def test_object_that_went_between_two_saves(
    cluster: MemoryCluster, body: Any, again: bool
) -> None:
    """A run ends with its object, also where its records are not in it."""
    where: Any = body if isinstance(body, str) else body()
    store = StatusStore(REF, transport=cluster.client(), body=where)
    revision = await save(store, {"": b"1"}, None)
    cluster.remove(REF)
    if again:
        cluster.make(REF)
    with pytest.raises(StoreRefusedError, match=f"{REF} is gone, and its runs with it"):
        await save(store, {"a": b"2"}, revision, "w2")
    assert await store.load(RUN) is None
    if again:
        assert "status" not in cluster.get(REF)


@pytest.mark.parametrize("body", ["configmap", "store"])
async def test_status_that_cannot_be_written_is_logged(
    cluster: MemoryCluster, body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Once the run is saved, the save succeeds, whatever becomes of what people see of it."""
    transport = cluster.client()
    store = StatusStore(REF, transport=transport, body=MemoryStore() if body == "store" else body)
    revision = await save(store, {"": b"1"}, None)

    async def fail(call: Call) -> None:
        if call.method == "PATCH status":
            raise DeniedError("403")

    transport.before = fail
    revision = await save(store, {"": b"2"}, revision, "w2")
    [warning] = caplog.records
    assert warning.getMessage().startswith(f"run {RUN!r} is saved, but status.asteps of {REF}")
    assert await store.load(RUN) == StoredRun({"": b"2"}, revision, SUMMARY)


async def test_lost_answers_of_a_configmap(cluster: MemoryCluster) -> None:
    """A save into a ConfigMap whose answer is lost is recognised, as is its creation."""
    transport = cluster.client()
    store = StatusStore(REF, transport=transport, body="configmap")

    async def lose(call: Call) -> None:
        if call.method == lost:
            raise UnknownFateError("504")

    transport.after = lose
    lost = "POST"
    with pytest.raises(StoreUnavailableError):
        await save(store, {"": b"1"}, None)
    lost = "PATCH"
    with pytest.raises(UncertainWriteError):
        await save(store, {"": b"1"}, None)
    lost = ""
    methods(cluster)
    revision = await save(store, {"": b"1"}, None)
    assert ("PATCH", "configmaps") not in methods(cluster)
    assert await store.load(RUN) == StoredRun({"": b"1"}, revision, SUMMARY)
    assert the_run(cluster)["summary"]["name"] == "f"


async def test_configmap_that_may_not_be_made(cluster: MemoryCluster) -> None:
    """Where the client may not create it, the save is refused, and says so."""
    transport = cluster.client()
    store = StatusStore(REF, transport=transport, body="configmap")

    async def deny(call: Call) -> None:
        if call.method == "POST":
            raise DeniedError("403: configmaps is forbidden")

    transport.before = deny
    with pytest.raises(StoreRefusedError, match="configmaps is forbidden"):
        await save(store, {"": b"1"}, None)


@pytest.mark.parametrize("damage", ["no base64", "H4sIAAAAAAAAA", base64.b64encode(b"{}").decode()])
async def test_damaged_configmap_is_named(cluster: MemoryCluster, damage: str) -> None:
    """What cannot be unpacked is an error that names the place, and stays as it is."""
    store = StatusStore(REF, transport=cluster.client(), body="configmap")
    revision = await save(store, {"": b"1"}, None)
    cluster.change(CONFIGMAP, {"binaryData": {"asteps": damage}}, status=False)
    for call in (store.load(RUN), save(store, {"": b"2"}, revision, "w2"), store.scan()):
        with pytest.raises(StateFormatError, match=r"binaryData\.asteps of /v1/configmaps"):
            await call
    assert cluster.get(CONFIGMAP)["binaryData"] == {"asteps": damage}


async def test_size_limit_of_a_configmap(cluster: MemoryCluster) -> None:
    """What stays too large when compressed is refused before it is sent."""
    store = StatusStore(REF, transport=cluster.client(), body="configmap", max_bytes=50_000)
    revision = await save(store, {"": LARGE}, None)
    noise = random.Random(1).randbytes(60_000).hex().encode()
    methods(cluster)
    with pytest.raises(StoreRefusedError, match="max_bytes is 50,000"):
        await save(store, {"a": b'"' + noise + b'"'}, revision, "w2")
    assert methods(cluster) == []


async def test_store_as_the_body(cluster: MemoryCluster) -> None:
    """Records are in the given store under the object's uid; the status has the summary."""
    body = MemoryStore()

    def view(viewed: Viewed) -> dict[str, Any]:
        return {"progress": str(len(viewed.records))}

    store = StatusStore(REF, transport=cluster.client(), body=body, view=view)
    revision = await save(store, {"": b"1"}, None)
    revision = await save(store, {"a": LARGE}, revision, "w2")
    uid = cluster.get(REF)["metadata"]["uid"]
    assert [id for id, _ in await body.list_runs()] == [f"{RUN}@{uid}"]
    status = cluster.get(REF)["status"]
    assert (status["progress"], status["asteps"]["body"]) == ("2", "store")
    assert await store.load(RUN) == StoredRun({"": b"1", "a": LARGE}, revision, SUMMARY)
    with pytest.raises(ConflictError) as caught:
        await save(store, {}, "nonsense", "w3")
    assert caught.value.id == RUN
    with pytest.raises(StateFormatError, match="open it with that one as body="):
        await StatusStore(REF, transport=cluster.client()).load(RUN)
    await store.aclose()
    assert await body.load(f"{RUN}@{uid}") is not None, "closed what it did not make"
    cluster.remove(REF)
    cluster.make(REF)
    again = StatusStore(REF, transport=cluster.client(), body=body)
    assert await again.load(RUN) is None


async def test_run_moves_to_a_store(cluster: MemoryCluster) -> None:
    """A run that began in the status moves to the store, whatever an earlier attempt left there."""
    first = await save(StatusStore(REF, transport=cluster.client()), {"": b"1"}, None)
    body = MemoryStore()
    uid = cluster.get(REF)["metadata"]["uid"]
    await body.save(
        f"{RUN}@{uid}",
        {"": b"0", "left": b"0"},
        expected=None,
        epoch=1,
        write_id="left",
        summary=SUMMARY,
    )
    store = StatusStore(REF, transport=cluster.client(), body=body)
    assert await store.load(RUN) == StoredRun({"": b"1"}, first, SUMMARY)
    with pytest.raises(ConflictError):
        await save(store, {"a": b"2"}, first, "w2")
    moved = await store.load(RUN)
    assert moved is not None
    assert moved == StoredRun({"": b"1"}, moved.revision, SUMMARY)
    await save(store, {"a": b"2"}, moved.revision, "w2")


async def test_long_names_have_a_configmap_too(cluster: MemoryCluster) -> None:
    """Objects with the longest names have ConfigMaps of names that differ and are allowed."""
    for end in "ab":
        ref = cluster.make(f"example.com/v1/databases/shop/{'n' * 252}{end}")
        store = StatusStore(ref, transport=cluster.client(), body="configmap")
        await save(store, {"": b"1"}, None)
    names = [ref.rpartition("/")[2] for ref in cluster.objects if ref.startswith("/v1/configmaps")]
    assert len(names) == 2
    assert max(len(name) for name in names) <= 253


def test_view_is_a_function() -> None:
    """`View` is what type checkers take a view for."""

    def view(viewed: Viewed) -> dict[str, Any]:
        return {"phase": viewed.summary.status}

    made: View = view
    assert made(Viewed(RUN, {}, SUMMARY, {}, None, "")) == {"phase": "proceeding"}
