"""What a save to an object's status sends, and what becomes of it when the server says no."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import sys
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import msgspec
import pytest
from kubernetes_memory import Call, MemoryCluster, MemoryTransport

from asteps._store import StoredRun, Summary
from asteps.errors import (
    ConflictError,
    MissingDependencyError,
    StateFormatError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    UncertainWriteError,
    UsageError,
)
from asteps.stores import _kubernetes_runs
from asteps.stores.kubernetes import (
    BusyServerError,
    DeniedError,
    GoneError,
    InvalidError,
    ObjectRef,
    StaleError,
    StatusStore,
    TooLargeError,
    TransportError,
    UnknownFateError,
    Viewed,
)

REF = "example.com/v1/databases/shop/orders"
RUN = "shop/orders"
SUMMARY = Summary("f", "proceeding", 1, None, 1.0, 1.0)


@pytest.fixture
def cluster() -> MemoryCluster:
    """A server with one object, which others have written to."""
    cluster = MemoryCluster()
    cluster.make(REF, spec={"size": 1}, status={"replicas": 3})
    return cluster


async def save(
    store: StatusStore,
    changes: Mapping[str, bytes | None],
    expected: str | None,
    write_id: str = "w1",
    id: str = RUN,
) -> str:
    """Save with a summary that says nothing special."""
    return await store.save(
        id, changes, expected=expected, epoch=1, write_id=write_id, summary=SUMMARY
    )


def methods(cluster: MemoryCluster) -> list[str]:
    """What the server was asked since the last time that this was called."""
    calls, cluster.calls = cluster.calls, []
    return [call.method for call in calls]


# --- what is sent ---------------------------------------------------------------------------------


async def test_save_sends_what_has_changed(cluster: MemoryCluster) -> None:
    """A save is one patch of the changed records as text, with the version that was seen."""
    store = StatusStore(REF, transport=cluster.client())
    assert await store.load(RUN) is None
    first = await save(store, {"": b"{}", "a": b"1.0", "b": b"[]"}, None)
    version = cluster.get(REF)["metadata"]["resourceVersion"]
    assert methods(cluster) == ["GET", "PATCH status"]
    await save(store, {"a": b"-0.0", "b": None, "never there": None}, first, "w2")
    [call] = cluster.calls
    assert call.body == {
        "metadata": {"resourceVersion": version},
        "status": {
            "asteps": {
                "seq": 2,
                "runs": {
                    RUN: {"seq": 2, "writer": "w2", "records": {"a": "-0.0", "b": None}},
                },
            }
        },
    }
    assert cluster.get(REF)["status"] == {
        "replicas": 3,
        "asteps": {
            "format": 1,
            "seq": 2,
            "runs": {
                RUN: {
                    "seq": 2,
                    "writer": "w2",
                    "epoch": 1,
                    "summary": {
                        "name": "f",
                        "status": "proceeding",
                        "epoch": 1,
                        "created_at": 1.0,
                        "updated_at": 1.0,
                    },
                    "records": {"": "{}", "a": "-0.0"},
                }
            },
        },
    }


async def test_field_is_the_callers(cluster: MemoryCluster) -> None:
    """Two stores with fields of their own keep runs of one id apart, in one object."""
    one = StatusStore(REF, transport=cluster.client())
    two = StatusStore(REF, transport=cluster.client(), field="other")
    first = await save(one, {"": b"1"}, None)
    second = await save(two, {"": b"2"}, None, "w2")
    assert await one.load(RUN) == StoredRun({"": b"1"}, first, SUMMARY)
    assert await two.load(RUN) == StoredRun({"": b"2"}, second, SUMMARY)


async def test_object_of_the_whole_cluster() -> None:
    """An object without a namespace holds runs like any other."""
    cluster = MemoryCluster()
    ref = cluster.make("example.com/v1/clouds/moon")
    store = StatusStore(ref, transport=cluster.client())
    revision = await save(store, {"": b"1"}, None)
    assert await store.load(RUN) == StoredRun({"": b"1"}, revision, SUMMARY)


# --- others write too -----------------------------------------------------------------------------


async def test_foreign_writes_are_tolerated(cluster: MemoryCluster) -> None:
    """While others write labels and other status fields, saves land, and their fields stay."""
    store = StatusStore(REF, transport=cluster.client())
    revision = await save(store, {"": b"0"}, None)
    for n in range(5):
        cluster.change(REF, {"metadata": {"labels": {"n": str(n)}}}, status=False)
        cluster.change(REF, {"status": {"replicas": n}}, status=True)
        methods(cluster)
        revision = await save(store, {"": b"%d" % n}, revision, f"n{n}")
        assert methods(cluster) == ["PATCH status", "GET", "PATCH status"]
    obj = cluster.get(REF)
    assert (obj["metadata"]["labels"], obj["status"]["replicas"]) == ({"n": "4"}, 4)
    assert await store.load(RUN) == StoredRun({"": b"4"}, revision, SUMMARY)


async def test_writer_that_never_rests_is_named(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where somebody writes before each try, the save ends, and nothing was written."""
    monkeypatch.setattr(_kubernetes_runs, "_LONGEST_PAUSE", 0.001)
    transport = cluster.client()
    store = StatusStore(REF, transport=transport)
    count = iter(range(1000))

    async def disturb(call: Call) -> None:
        if call.method == "PATCH status":
            cluster.change(REF, {"metadata": {"labels": {"n": str(next(count))}}}, status=False)

    transport.before = disturb
    with pytest.raises(StoreUnavailableError, match="changed by others 20 times"):
        await save(store, {"": b"1"}, None)
    assert await StatusStore(REF, transport=cluster.client()).load(RUN) is None


async def test_lost_run_is_a_conflict(cluster: MemoryCluster) -> None:
    """A run that another process went on with, or somebody took out, is lost: nothing is saved."""
    store, other = (StatusStore(REF, transport=cluster.client()) for _ in range(2))
    first = await save(store, {"": b"1"}, None)
    second = await save(other, {"": b"2"}, first, "w2")
    with pytest.raises(ConflictError) as caught:
        await save(store, {"": b"3"}, first, "w3")
    assert (caught.value.expected, caught.value.found) == (first, second)
    cluster.change(REF, {"status": {"asteps": None}}, status=True)
    with pytest.raises(ConflictError) as caught:
        await save(other, {"": b"3"}, second, "w3")
    assert (caught.value.expected, caught.value.found) == (second, None)
    assert "asteps" not in cluster.get(REF)["status"]


async def test_revisions_do_not_come_again_after_a_loss(cluster: MemoryCluster) -> None:
    """A run that was made again where the status had been emptied is no one's who had the old."""
    store, other = (StatusStore(REF, transport=cluster.client()) for _ in range(2))
    first = await save(store, {"": b"1"}, None)
    cluster.change(REF, {"status": {"asteps": None}}, status=True)
    second = await save(other, {"": b"2"}, None, "w2")
    assert cluster.get(REF)["status"]["asteps"]["seq"] == 1
    with pytest.raises(ConflictError):
        await save(store, {"": b"3"}, first, "w3")
    assert await store.load(RUN) == StoredRun({"": b"2"}, second, SUMMARY)


async def test_recreated_object_is_another_one(cluster: MemoryCluster) -> None:
    """Runs of an object end with it: neither its saves nor new runs go to one made after it."""
    store = StatusStore(REF, transport=cluster.client())
    revision = await save(store, {"": b"1"}, None)
    cluster.remove(REF)
    cluster.make(REF)
    with pytest.raises(ConflictError) as caught:
        await save(store, {"": b"2"}, revision, "w2")
    assert (caught.value.expected, caught.value.found) == (revision, None)
    with pytest.raises(ConflictError, match="someone else"):
        await save(store, {"": b"2"}, None, "w3", id="new")
    assert await store.load(RUN) is None
    assert await save(store, {"": b"3"}, None, "w4") != revision


async def test_object_that_is_gone(cluster: MemoryCluster) -> None:
    """Without its object a run is not there; saves are refused, and say why in a way to test."""
    store = StatusStore(REF, transport=cluster.client())
    revision = await save(store, {"": b"1"}, None)
    cluster.remove(REF)
    for _ in range(2):  # found by the patch, then by reading
        with pytest.raises(StoreRefusedError, match="is gone") as caught:
            await save(store, {"": b"2"}, revision, "w2")
        assert isinstance(caught.value.__cause__, GoneError)
    assert await store.load(RUN) is None
    assert await store.list_runs() == []
    await store.delete(RUN, expected=revision)
    assert (await store.inspect()).problems == (
        "there is no such object: 404: example.com/v1/databases/shop/orders not found",
    )


# --- lost answers, errors ------------------------------------------------------------------------


async def test_lost_answer_is_recognised(cluster: MemoryCluster) -> None:
    """A save whose answer was lost is found by its repetition, which writes nothing."""
    transport = cluster.client()
    store = StatusStore(REF, transport=transport)
    first = await save(store, {"": b"1"}, None)

    async def lose(call: Call) -> None:
        if call.method == "PATCH status":
            raise UnknownFateError("504")

    transport.after = lose
    with pytest.raises(UncertainWriteError):
        await save(store, {"": b"2"}, first, "w2")
    transport.after = _nothing
    methods(cluster)
    revision = await save(store, {"": b"2"}, first, "w2")
    assert methods(cluster) == ["GET"]
    assert await store.load(RUN) == StoredRun({"": b"2"}, revision, SUMMARY)


@pytest.mark.parametrize(
    ("error", "on_write", "on_read"),
    [
        (DeniedError, StoreRefusedError, StoreRefusedError),
        (TooLargeError, StoreRefusedError, StoreRefusedError),
        (InvalidError, StoreRefusedError, StoreRefusedError),
        (BusyServerError, StoreUnavailableError, StoreUnavailableError),
        (UnknownFateError, UncertainWriteError, StoreUnavailableError),
        (TransportError, UncertainWriteError, StoreUnavailableError),
        (KeyError, UncertainWriteError, StoreUnavailableError),
    ],
    ids=lambda kind: kind.__name__,
)
async def test_errors_say_what_was_written(
    cluster: MemoryCluster,
    error: type[Exception],
    on_write: type[StoreError],
    on_read: type[StoreError],
) -> None:
    """Whatever a client raises becomes the store's error; the next save reads before it writes."""
    transport = cluster.client()
    store = StatusStore(REF, transport=transport)
    revision = await save(store, {"": b"1"}, None)

    async def fail(call: Call) -> None:
        raise error("said the server")

    transport.before = fail
    with pytest.raises(on_write, match="said the server") as caught:
        await save(store, {"": b"2"}, revision, "w2")
    assert type(caught.value) is on_write
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(on_read, match="said the server") as caught:
        await store.load(RUN)
    assert type(caught.value) is on_read
    transport.before = _nothing
    methods(cluster)
    await save(store, {"": b"2"}, revision, "w2")
    assert methods(cluster) == ["GET", "PATCH status"]


async def _nothing(call: Call) -> None:
    pass


@pytest.mark.parametrize("strict", [False, True])
async def test_dropped_field_is_noticed(
    cluster: MemoryCluster, caplog: pytest.LogCaptureFixture, *, strict: bool
) -> None:
    """A schema without the field refuses, or drops it and says 200: both are an error."""
    cluster.known, cluster.strict = frozenset({"replicas"}), strict
    store = StatusStore(REF, transport=cluster.client(), view=lambda _: {"phase": "Running"})
    with pytest.raises(StoreRefusedError, match=r"status\.asteps") as caught:
        await save(store, {"": b"1"}, None)
    assert ("refuses" if strict else "took the change and dropped") in str(caught.value)
    assert "'databases.example.com'" in str(caught.value)
    assert "asteps crd" in str(caught.value)
    assert caplog.records == []  # the view is not to blame
    assert await store.load(RUN) is None


async def test_partly_dropped_field_is_noticed(cluster: MemoryCluster) -> None:
    """A schema that keeps half of it is no better, and what it kept is not taken for a run."""
    transport = cluster.client()
    real = cluster.change

    def change(ref: ObjectRef | str, patch: Mapping[str, Any], *, status: bool) -> dict[str, Any]:
        pruned = copy.deepcopy(dict(patch))
        for run in pruned["status"]["asteps"]["runs"].values():
            run.pop("records", None)
        return real(ref, pruned, status=status)

    cluster.change = change  # type: ignore[method-assign]
    store = StatusStore(REF, transport=transport)
    with pytest.raises(StoreRefusedError, match="dropped fields"):
        await save(store, {"": b"1"}, None)
    with pytest.raises(StateFormatError, match="records are missing"):
        await store.load(RUN)


async def test_missing_subresource_is_named(cluster: MemoryCluster) -> None:
    """Where the status cannot be patched but the object be read, the resource lacks it."""
    cluster.subresource = False
    store = StatusStore(REF, transport=cluster.client())
    with pytest.raises(StoreRefusedError, match="no status subresource") as caught:
        await save(store, {"": b"1"}, None)
    assert not isinstance(caught.value.__cause__, GoneError)


# --- sizes ----------------------------------------------------------------------------------------


async def test_too_large_is_refused_before_it_is_sent(
    cluster: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """What would grow too large is not sent, says so with sizes; before that comes one warning."""
    store = StatusStore(REF, transport=cluster.client(), max_bytes=4_000, warn_bytes=2_000)
    revision = await save(store, {"": b"1"}, None)
    for n in range(2):
        revision = await save(store, {"a": b"2" * (2_000 + n)}, revision, f"a{n}")
    [warning] = caplog.records
    assert (warning.name, warning.levelno) == ("asteps.kubernetes", logging.WARNING)
    assert "body='gzip'" in warning.getMessage()
    methods(cluster)
    with pytest.raises(StoreRefusedError, match=r"max_bytes is 4,000.*body='configmap'"):
        await save(store, {"b": b"2" * 2_000}, revision, "b")
    assert methods(cluster) == []
    await save(store, {"a": None}, revision, "c")
    assert "larger than it should be" not in (await store.inspect()).facts


# --- what is stored -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"format": 2, "seq": 1, "runs": {}}, "format 2, written by a newer"),
        ("text", "another program's field"),
        ({"seq": 1, "runs": {}}, "another program's field"),
        ({"format": 1, "seq": 1, "runs": []}, "another program's field"),
        ({"format": 1, "seq": 1, "body": "moon"}, "what this version calls no body"),
    ],
)
async def test_foreign_field_is_left_alone(cluster: MemoryCluster, found: Any, says: str) -> None:
    """What is not asteps', or newer, is named and neither read nor written."""
    cluster.change(REF, {"status": {"asteps": found}}, status=True)
    before = cluster.get(REF)
    store = StatusStore(REF, transport=cluster.client())
    for call in (store.load(RUN), save(store, {"": b"1"}, None), store.inspect()):
        with pytest.raises(StateFormatError, match=says) as caught:
            await call
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert cluster.get(REF) == before


@pytest.mark.parametrize(
    "damage",
    [
        {"seq": "one"},
        {"summary": {"name": None}},
        {"records": None},
        {"records": {"a": 1}},
        {"gzip": "no base64"},
        {"gzip": "H4sIAAAAAAAAA"},
    ],
    ids=str,
)
async def test_damaged_run_harms_no_other(cluster: MemoryCluster, damage: Any) -> None:
    """A run that cannot be read is told of as damaged; the others are as they were."""
    store = StatusStore(REF, transport=cluster.client())
    revision = await save(store, {"": b"1"}, None)
    other = await save(store, {"": b"2"}, None, "w2", id="other")
    cluster.change(REF, {"status": {"asteps": {"runs": {RUN: damage}}}}, status=True)
    with pytest.raises(StateFormatError, match=RUN):
        await store.load(RUN)
    with pytest.raises(StoreError):
        await save(store, {"": b"3"}, revision, "w3")
    assert await store.load("other") == StoredRun({"": b"2"}, other, SUMMARY)
    assert [id for id, _ in await store.list_runs()] == ["other"]
    for page in (await store.browse(), await store.scan()):
        assert [id for id, _ in page.runs] == ["other"]
        assert list(page.damaged) == [RUN]
    report = await store.inspect()
    assert (list(report.damaged), report.runs) == ([RUN], {"proceeding": 1})
    await save(store, {"": b"4"}, other, "w4", id="other")


# --- what people see ------------------------------------------------------------------------------


def view_of(viewed: Viewed) -> dict[str, Any]:
    """A view that shows how many records there are."""
    seen = viewed.status.get("conditions", [])
    return {"progress": str(len(viewed.records)), "conditions": seen, "asteps": "mine", "old": None}


async def test_view_is_written_with_the_save(cluster: MemoryCluster) -> None:
    """The view sees what the save leaves; what differs of what it makes goes with the patch."""
    cluster.change(REF, {"status": {"conditions": [{"type": "Foreign"}], "old": 1}}, status=True)
    seen: list[Viewed] = []

    def view(viewed: Viewed) -> dict[str, Any]:
        seen.append(viewed)
        return view_of(viewed)

    store = StatusStore(REF, transport=cluster.client(), view=view)
    revision = await save(store, {"": b"1", "a": b"2"}, None)
    obj = cluster.get(REF)
    assert seen == [
        Viewed(
            RUN,
            {"": b"1", "a": b"2"},
            SUMMARY,
            {"replicas": 3, "conditions": [{"type": "Foreign"}], "old": 1},
            1,
            obj["metadata"]["uid"],
        )
    ]
    sent = cluster.calls[-1].body or {}
    assert sent["status"].keys() == {"asteps", "progress", "old"}
    assert obj["status"]["progress"] == "2"
    assert "old" not in obj["status"]
    await save(store, {"a": b"3"}, revision, "w2")
    assert (cluster.calls[-1].body or {})["status"].keys() == {"asteps"}


@pytest.mark.parametrize("strict", [False, True])
async def test_view_never_breaks_a_save(
    cluster: MemoryCluster, caplog: pytest.LogCaptureFixture, *, strict: bool
) -> None:
    """A view that raises, or whose fields the server does not take, is logged once; saves go on."""
    cluster.known, cluster.strict = frozenset({"replicas", "asteps"}), strict

    def view(viewed: Viewed) -> dict[str, Any]:
        if len(viewed.records) > 1:
            raise KeyError("no such step")
        return {"progress": "1"}

    store = StatusStore(REF, transport=cluster.client(), view=view)
    revision = await save(store, {"": b"1"}, None)
    revision = await save(store, {"": b"2"}, revision, "w2")
    assert len(caplog.records) == strict
    store = StatusStore(REF, transport=cluster.client(), view=view)
    caplog.clear()
    for n in range(2):
        revision = await save(store, {"a": b"%d" % n}, revision, f"a{n}")
    assert [r.getMessage() for r in caplog.records] == [
        f"the status view of run {RUN!r} raised KeyError('no such step')"
    ]
    assert await store.load(RUN) == StoredRun({"": b"2", "a": b"1"}, revision, SUMMARY)


async def test_view_of_broken_text_breaks_no_save(
    cluster: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Text that cannot be written, such as the name of a file, is the view's own trouble."""
    store = StatusStore(REF, transport=cluster.client(), view=lambda _: {"message": "\udcff"})
    revision = await save(store, {"": b"1"}, None)
    assert await store.load(RUN) == StoredRun({"": b"1"}, revision, SUMMARY)
    assert "UnicodeEncodeError" in caplog.text


async def test_what_makes_an_object_smaller_is_not_refused(cluster: MemoryCluster) -> None:
    """An object that others have made too large can be made smaller."""
    store = StatusStore(REF, transport=cluster.client(), max_bytes=10_000)
    revision = await save(store, {"": b"1", "a": b'"%s"' % (b"x" * 4_000)}, None)
    cluster.change(REF, {"metadata": {"annotations": {"a": "y" * 12_000}}}, status=False)
    await store.load(RUN)
    with pytest.raises(StoreRefusedError, match="max_bytes"):
        await save(store, {"b": b"2"}, revision, "w2")
    revision = await save(store, {"a": b"2"}, revision, "w3")
    await store.delete(RUN, expected=revision)
    assert await store.load(RUN) is None


# --- cancellation -------------------------------------------------------------------------------


def test_cancelled_patch_does_not_land_later(cluster: MemoryCluster) -> None:
    """A patch that asyncio cuts off is refused when the server gets to it after all."""
    late: list[Callable[[], object]] = []
    on_its_way = asyncio.Event()

    async def cut_off(call: Call) -> None:
        if call.method == "PATCH status" and not on_its_way.is_set():
            body = call.body or {}
            late.append(lambda: cluster.change(call.ref, body, status=True))
            on_its_way.set()
            await asyncio.sleep(60)

    async def main() -> None:
        transport = cluster.client()
        store = StatusStore(REF, transport=transport)
        first = await save(store, {"": b"1"}, None)
        transport.before = cut_off
        task = asyncio.create_task(save(store, {"": b"2"}, first, "w2"))
        await on_its_way.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(StaleError):
            late[0]()
        assert await store.load(RUN) == StoredRun({"": b"1"}, first, SUMMARY)
        await save(store, {"": b"3"}, first, "w3")

    asyncio.run(main())


async def test_cancelled_save_is_waited_for(cluster: MemoryCluster) -> None:
    """A save that was sent is over when its cancelled caller goes on."""
    transport = cluster.client()
    store = StatusStore(REF, transport=transport)
    first = await save(store, {"": b"1"}, None)
    sent = anyio.Event()

    async def slow(call: Call) -> None:
        if call.method == "PATCH status":
            sent.set()
            await anyio.sleep(0.01)

    transport.before = slow
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tg:
            tg.start_soon(save, store, {"": b"2"}, first, "w2")
            await sent.wait()
            scope.cancel()
    run = await store.load(RUN)
    assert run is not None
    assert run.records == {"": b"2"}


# --- names, clients -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        (REF, ObjectRef("example.com", "v1", "databases", "shop", "orders")),
        ("example.com/v1/clouds/moon", ObjectRef("example.com", "v1", "clouds", None, "moon")),
        ("/v1/pods/default/web", ObjectRef("", "v1", "pods", "default", "web")),
        ("/v1/nodes/n1", ObjectRef("", "v1", "nodes", None, "n1")),
        ("r.io/v1/roles/system:admin", ObjectRef("r.io", "v1", "roles", None, "system:admin")),
    ],
)
def test_references_are_text(text: str, ref: ObjectRef) -> None:
    """A reference and its text are the same thing."""
    assert ObjectRef.parse(text) == ref
    assert str(ref) == text
    assert msgspec.json.decode(msgspec.json.encode(ref), type=ObjectRef) == ref


@pytest.mark.parametrize(
    "text",
    ["", "a", "a/b/c", "a/b/c/d/e/f", "a//c/d/e", "a/v1/c/d/../e", "a/v1/c/d/e?x", "a/v1/c/"],
)
def test_what_is_no_reference(text: str) -> None:
    """What names no object is misuse."""
    with pytest.raises(UsageError, match="group/version/plural"):
        StatusStore(text)


def test_lightkube_is_needed_at_the_first_call_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without lightkube the module can be imported, and who needs it is told what to install."""
    for name in [*sys.modules]:
        if name.partition(".")[0] == "lightkube" or name.endswith("_kubernetes_lightkube"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightkube", None)
    store = StatusStore(REF)
    with pytest.raises(MissingDependencyError, match=r"asteps\[kubernetes\]"):
        anyio.run(store.load, RUN)


def test_a_transport_of_ones_own_stays_open(cluster: MemoryCluster) -> None:
    """The store closes no client that it was given, and needs two methods of it."""

    class Least:
        def __init__(self) -> None:
            self._client: MemoryTransport = cluster.client()

        async def get(self, ref: ObjectRef, /) -> dict[str, Any]:
            return await self._client.get(ref)

        async def patch_status(self, ref: ObjectRef, patch: Mapping[str, Any], /) -> dict[str, Any]:
            return await self._client.patch_status(ref, patch)

    async def main() -> None:
        async with StatusStore(REF, transport=Least()) as store:
            await save(store, {"": b"1"}, None)

    anyio.run(main)
    with pytest.raises(UsageError, match="create"):
        StatusStore(REF, transport=Least(), body="secret")
    with pytest.raises(UsageError, match="in a namespace"):
        StatusStore("example.com/v1/clouds/moon", body="secret")
    with pytest.raises(UsageError, match="'moon'"):
        StatusStore(REF, body="moon")  # type: ignore[arg-type]
