"""Records that are compressed, or lie in a ConfigMap, a Secret or another store."""

from __future__ import annotations

import asyncio
import base64
import contextlib
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
    StaleError,
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


@pytest.mark.parametrize("body", ["configmap", "secret", "store"])
async def test_run_that_another_has_moved_meanwhile(cluster: MemoryCluster, body: Any) -> None:
    """Who saw a run in the status, however long ago, undoes nothing when it moves it itself."""
    here: Any = MemoryStore() if body == "store" else body
    first = await save(StatusStore(REF, transport=cluster.client()), {"": b"1"}, None)
    slow = StatusStore(REF, transport=cluster.client(), body=here)
    quick = StatusStore(REF, transport=cluster.client(), body=here)
    expected = first
    for store in (slow, quick):
        await store.load(RUN)
    if body == "store":  # where revisions change with the move
        with pytest.raises(ConflictError):
            await save(quick, {"a": b"2"}, first, "q0")
        moved = await quick.load(RUN)
        assert moved is not None
        expected = moved.revision
    second = await save(quick, {"a": b"2"}, expected, "q1")
    with pytest.raises(ConflictError):
        await save(slow, {"b": b"3"}, first, "s1")
    for store in (slow, quick):
        assert await store.load(RUN) == StoredRun({"": b"1", "a": b"2"}, second, SUMMARY)


@pytest.mark.parametrize("body", ["configmap", "store"])
@pytest.mark.parametrize("when", ["look", "adopt"])
async def test_two_that_move_a_run_at_once(cluster: MemoryCluster, body: Any, when: str) -> None:
    """Whatever the moment at which another one moves a run and goes on, nothing of it is lost."""
    here: Any = MemoryStore() if body == "store" else body
    first = await save(StatusStore(REF, transport=cluster.client()), {"": b"1"}, None)
    transport = cluster.client()
    slow = StatusStore(REF, transport=transport, body=here)
    quick = StatusStore(REF, transport=cluster.client(), body=here)
    await slow.load(RUN)

    async def meanwhile(call: Call) -> None:
        if (call.method, call.ref.plural) == (
            ("GET", "databases") if when == "look" else ("PATCH status", "databases")
        ):
            transport.before = cluster.client().before
            with contextlib.suppress(ConflictError):
                await save(quick, {"q": b"0"}, first, "q0")
            seen = await quick.load(RUN)
            assert seen is not None
            await save(quick, {"a": b"2"}, seen.revision, "q1")

    transport.before = meanwhile
    with pytest.raises(ConflictError):
        await save(slow, {"b": b"3"}, first, "s1")
    found = await slow.load(RUN)
    assert found is not None
    assert (found.records["a"], "b" in found.records) == (b"2", False)


def test_cancelled_patch_of_a_status_loses_no_run(cluster: MemoryCluster) -> None:
    """What asyncio cuts off leaves no status behind that looks like one which never had a body."""

    async def main() -> None:
        transport = cluster.client()
        store = StatusStore(REF, transport=transport, body="configmap")
        revision = await save(store, {"": b"1"}, None)
        cluster.change(REF, {"status": {"asteps": None}}, status=True)
        await store.load(RUN)
        sent = asyncio.Event()

        async def hang(call: Call) -> None:
            if call.method == "PATCH status":
                sent.set()
                transport.before = cluster.client().before
                await asyncio.sleep(60)

        transport.before = hang
        task = asyncio.ensure_future(save(store, {"a": b"2"}, revision, "w2"))
        await sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cluster.get(REF)["status"]["asteps"]["body"] == "configmap"
        again = StatusStore(REF, transport=cluster.client(), body="configmap")
        found = await again.load(RUN)
        assert found is not None
        assert found.records[""] == b"1"
        with pytest.raises(ConflictError):
            await save(again, {"": b"3"}, None, "w3")

    asyncio.run(main())


@pytest.mark.parametrize("body", ["configmap", "store"])
async def test_status_is_made_good_by_the_next_load(cluster: MemoryCluster, body: Any) -> None:
    """Where the last save's word does not get into the status, who looks next writes it."""
    here: Any = MemoryStore() if body == "store" else body
    transport = cluster.client()

    def view(viewed: Viewed) -> dict[str, Any]:
        return {"phase": f"{len(viewed.records)} records"}

    store = StatusStore(REF, transport=transport, body=here, view=view)
    revision = await save(store, {"": b"1"}, None)

    async def denied(call: Call) -> None:
        if call.method == "PATCH status":
            raise DeniedError("403")

    transport.before = denied
    done = Summary("f", "done", 1, None, 1.0, 2.0)
    revision = await store.save(
        RUN, {"a": b"2"}, expected=revision, epoch=1, write_id="w2", summary=done
    )
    assert cluster.get(REF)["status"]["phase"] == "1 records"
    transport.before = cluster.client().before
    assert await store.load(RUN) == StoredRun({"": b"1", "a": b"2"}, revision, done)
    assert cluster.get(REF)["status"]["phase"] == "2 records"
    assert the_run(cluster)["summary"]["status"] == "done"
    methods(cluster)
    await store.load(RUN)
    assert all(method == "GET" for method, _ in methods(cluster))


@pytest.mark.parametrize("body", ["status", "configmap", "store"])
async def test_object_that_was_made_again_is_another_one(cluster: MemoryCluster, body: Any) -> None:
    """A run that begins for one object does not land in the next one of its name."""
    here: Any = MemoryStore() if body == "store" else body
    store = StatusStore(REF, transport=cluster.client(), body=here)
    assert await store.load(RUN) is None
    cluster.remove(REF)
    cluster.make(REF)
    with pytest.raises((ConflictError, StoreRefusedError)):
        await save(store, {"": b"1"}, None)
    assert "status" not in cluster.get(REF)
    assert await store.load(RUN) is None
    await save(store, {"": b"1"}, None)


async def test_configmap_of_another_kind_of_object(cluster: MemoryCluster) -> None:
    """Two groups may use one name: nobody is told to delete what belongs to the other."""
    other = cluster.make("other.org/v1/databases/shop/orders")
    theirs = StatusStore(other, transport=cluster.client(), body="configmap")
    revision = await save(theirs, {"": b"1"}, None)
    ours = StatusStore(REF, transport=cluster.client(), body="configmap")
    with pytest.raises(StoreRefusedError, match=r"\(other.org/v1 Database orders\)") as caught:
        await save(ours, {"": b"2"}, None)
    assert "delete" not in str(caught.value)
    assert await theirs.load(RUN) == StoredRun({"": b"1"}, revision, SUMMARY)


async def test_configmap_that_goes_while_it_is_made(cluster: MemoryCluster) -> None:
    """Taken away between the answer that it is there and the look at it: tried again, not gone."""
    transport = cluster.client()
    store = StatusStore(REF, transport=transport, body="configmap")

    async def taken(call: Call) -> None:
        if call.method == "POST":
            transport.before = cluster.client().before
            raise StaleError("409: already exists")

    transport.before = taken
    with pytest.raises(StoreUnavailableError, match="was not created: 409"):
        await save(store, {"": b"1"}, None)
    await save(store, {"": b"1"}, None)


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


@pytest.mark.parametrize("body", ["configmap", "store"])
async def test_run_that_has_not_moved_is_removed_where_it_is(
    cluster: MemoryCluster, body: Any
) -> None:
    """To remove a run from the status moves nothing, and is no conflict."""
    here: Any = MemoryStore() if body == "store" else body
    revision = await save(StatusStore(REF, transport=cluster.client()), {"": b"1"}, None)
    store = StatusStore(REF, transport=cluster.client(), body=here)
    await store.delete(RUN, expected=revision)
    assert await store.load(RUN) is None
    assert "body" not in cluster.get(REF)["status"]["asteps"]


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
