"""The watch loop: each object has its passes when they are due, one at a time, and is let go."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.streams.memory import MemoryObjectSendStream
from kubernetes_memory import Call, Json, MemoryCluster, MemoryTransport

import asteps
from asteps import Done, Failed, Pending, Retry, Step, UsageError
from asteps.errors import StateFormatError
from asteps.integrations import _kubernetes_loop as loop
from asteps.integrations._kubernetes_crd import Resource
from asteps.integrations._kubernetes_queue import Queue, Sighting, backoff
from asteps.integrations.kubernetes import (
    Cluster,
    Object,
    ObjectOptions,
    main_state,
    operate,
    reconcile_object,
    run_id,
)
from asteps.stores.kubernetes import (
    ObjectRef,
    StaleError,
    StatusStore,
    UnknownFateError,
)

RESOURCE = "example.com/v1/databases"
SHOP = ObjectRef.parse(f"{RESOURCE}/default/shop")
NEVER = float("inf")


# --- what is due, without a cluster ---------------------------------------------------------------


def sighting(uid: str = "u", generation: int = 1, *, deleting: bool = False) -> Sighting:
    """What matters of an object."""
    return Sighting(uid, generation, deleting)


def a_queue(*keys: str, after: float | None = None) -> Queue:
    """Objects that had their first pass at 0."""
    queue = Queue()
    for key in keys:
        queue.see(key, sighting(), {"name": key}, 0)
    for _ in keys:
        taken = queue.take(0)
        assert taken is not None
        queue.settle(taken[0], 0, after)
    return queue


def test_an_object_is_due_when_it_appears_and_only_once() -> None:
    """A new object has a pass at once; what its pass writes makes no other one due."""
    queue = Queue()
    assert queue.see("a", sighting(), {"n": 1}, 5) is True
    assert queue.next_due() == 5
    assert queue.take(4.9) is None
    assert queue.take(5) == ("a", {"n": 1})
    assert queue.see("a", sighting(), {"n": 2}, 6) is False
    queue.settle("a", 7, None)
    assert queue.see("a", sighting(), {"n": 3}, 8) is False
    assert (queue.take(9), queue.next_due()) == (None, NEVER)


@pytest.mark.parametrize(
    "change",
    [sighting(generation=2), sighting(deleting=True), sighting("another")],
    ids=["spec", "deletion", "another object"],
)
@pytest.mark.parametrize("after", [None, 3600.0])
def test_what_matters_of_a_change_makes_an_object_due(
    change: Sighting, after: float | None
) -> None:
    """Another spec, a deletion and another object do not wait for the time that was set."""
    queue = a_queue("a", after=after)
    assert queue.take(1) is None
    assert queue.see("a", change, {"new": True}, 1) is True
    assert queue.take(1) == ("a", {"new": True})
    queue.settle("a", 2, None)
    assert queue.next_due() == NEVER


def test_a_wait_is_honoured() -> None:
    """A pass that says when it wants to be called again is, and no earlier for a foreign change."""
    queue = a_queue("a", after=10)
    queue.see("a", sighting(), {"label": 1}, 3)
    assert (queue.next_due(), queue.take(9.9)) == (10, None)
    assert queue.take(10) == ("a", {"label": 1})


def test_one_object_is_never_in_two_passes() -> None:
    """What changes during a pass waits for its end, and has its pass right then."""
    queue = Queue()
    queue.see("a", sighting(), {}, 0)
    assert queue.take(0) is not None
    assert queue.see("a", sighting(generation=2), {"edited": True}, 1) is False
    assert (queue.take(2), queue.next_due()) == (None, NEVER)
    queue.settle("a", 3, 3600)
    assert queue.take(3) == ("a", {"edited": True})


def test_those_that_wait_longest_come_first() -> None:
    """Objects have their passes in the order in which they became due."""
    queue = Queue()
    for key, at in (("b", 2), ("c", 3), ("a", 1)):
        queue.see(key, sighting(), {"key": key}, at)
    assert [queue.take(9), queue.take(9), queue.take(9), queue.take(9)] == [
        ("a", {"key": "a"}),
        ("b", {"key": "b"}),
        ("c", {"key": "c"}),
        None,
    ]


def test_what_is_gone_is_forgotten() -> None:
    """An object that was deleted has no pass any more; one of the same name begins anew."""
    queue = a_queue("idle", after=1)
    queue.lose("idle")
    queue.lose("never seen")
    queue.see("busy", sighting(), {}, 2)
    assert queue.take(2) == ("busy", {})
    queue.lose("busy")
    queue.settle("busy", 3, 0)
    assert (len(queue), queue.next_due()) == (0, NEVER)
    queue.see("busy", sighting(), {}, 4)
    assert queue.take(4) == ("busy", {})
    queue.lose("busy")
    queue.see("busy", sighting(), {"back": True}, 5)  # while the pass over the first one ends
    queue.settle("busy", 6, None)
    assert queue.take(6) == ("busy", {"back": True})


def test_a_listing_says_what_there_is() -> None:
    """What is missing from a new listing was deleted while nobody watched."""
    queue = a_queue("a", "b", "c", after=1)
    queue.keep_only(["b"])
    assert (len(queue), queue.take(9), queue.take(9)) == (1, ("b", {"name": "b"}), None)


def test_a_run_that_was_put_right_goes_on() -> None:
    """An ended run that has not ended any more is due: an operator has recovered it."""
    queue = a_queue("ended")
    assert queue.see("ended", sighting(), {}, 1, unfinished=True) is True
    waiting = a_queue("waits", after=9)
    assert waiting.see("waits", sighting(), {}, 1, unfinished=True) is False


def test_failures_are_counted_until_a_pass_comes_to_something() -> None:
    """Back-off grows with failures in succession, and begins anew after an outcome or an edit."""
    queue = a_queue("a")
    assert [queue.failed("a"), queue.failed("a")] == [1, 2]
    queue.settle("a", 1, 5, failed=True)
    assert queue.failed("a") == 3
    queue.settle("a", 1, 5)
    assert queue.failed("a") == 1
    queue.see("a", sighting(generation=2), {}, 2)
    assert queue.failed("a") == 1


def test_backoff_doubles_within_bounds() -> None:
    """Half of the time is certain, half is left to chance, and there is a most."""
    assert [backoff(n, 1) for n in (1, 2, 3, 7, 5000)] == [1, 2, 4, 60, 60]
    assert [backoff(n, 0, first=2) for n in (1, 2, 30)] == [1, 2, 30]


# --- a cluster in memory --------------------------------------------------------------------------


class Watched(MemoryCluster):
    """A server that can be watched, and that keeps what has a finalizer."""

    def __init__(self) -> None:
        super().__init__()
        self.watchers: list[MemoryObjectSendStream[tuple[str, Json]]] = []
        self.lists = 0

    def edit(self, ref: ObjectRef, **spec: Any) -> None:
        self.change(ref, {"spec": spec}, status=False)

    def delete(self, ref: ObjectRef) -> None:
        """What a client's DELETE does."""
        obj = self._found(str(ref))
        if not obj["metadata"].get("finalizers"):
            self.remove(ref)
            return
        obj["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        obj["metadata"]["generation"] += 1
        self._put(str(ref), obj)

    def remove(self, ref: ObjectRef | str) -> None:
        obj = self._found(str(ref))
        super().remove(ref)
        self._tell("DELETED", obj)

    def _put(self, name: str, obj: Json) -> Json:
        kind = "MODIFIED" if name in self.objects else "ADDED"
        found = super()._put(name, obj)
        meta = found["metadata"]
        if "deletionTimestamp" in meta and not meta.get("finalizers"):
            self.remove(name)
        else:
            self._tell(kind, found)
        return found

    def _tell(self, kind: str, obj: Json) -> None:
        if obj.get("kind") != "Event":
            for watcher in self.watchers:
                watcher.send_nowait((kind, obj))

    def events(self) -> list[tuple[str, str]]:
        """Reasons and messages of all Events."""
        found = [obj for obj in self.objects.values() if obj["kind"] == "Event"]
        return [(each["reason"], each["message"]) for each in found]

    def gets(self) -> int:
        """How many passes have looked at an object."""
        return sum(call.method == "GET" for call in self.calls)


class Client(MemoryTransport):
    """A client that lists and watches."""

    cluster: Watched

    async def list(self, resource: Resource, namespace: str | None, /) -> tuple[list[Object], str]:
        self.cluster.lists += 1
        await self.before(Call("LIST", ObjectRef("", "", str(resource), namespace, ""), None))
        prefix = f"{resource}/" if namespace is None else f"{resource}/{namespace}/"
        names = [name for name in self.cluster.objects if name.startswith(prefix)]
        return [self.cluster.get(name) for name in names], "0"

    async def watch(
        self, resource: Resource, namespace: str | None, since: str, /
    ) -> AsyncGenerator[tuple[str, Object]]:
        send, receive = anyio.create_memory_object_stream[tuple[str, Json]](1000)
        self.cluster.watchers.append(send)
        with send, receive:
            async for change in receive:
                yield change
        raise UnknownFateError("the watch broke off")


@dataclass
class World:
    """A cluster, and what the bodies did."""

    cluster: Watched
    client: Client
    did: list[str]

    async def step(self, s: Step, value: Any) -> Any:
        self.did.append(f"{str(s.run_id).rpartition('/')[2]} {s.name} {value}")
        return value

    async def until(self, so: Callable[[], bool]) -> None:
        """Wait for something, by checkpoints; and then for what follows from it."""
        with anyio.fail_after(10):
            while not so():
                await anyio.sleep(0.001)
            for _ in range(50):
                await anyio.lowlevel.checkpoint()

    def phase(self, ref: ObjectRef = SHOP) -> str | None:
        phase = self.cluster.get(ref).get("status", {}).get("phase")
        return phase if phase is None else str(phase)

    @asynccontextmanager
    async def operated(
        self, fn: Callable[[Step, Object], Awaitable[Any]], **options: Any
    ) -> AsyncIterator[None]:
        """An operator, which is cancelled in the end."""
        async with anyio.create_task_group() as tasks:

            async def work() -> None:
                await operate(RESOURCE, fn, client=self.client, **{"max_wait": 0, **options})

            tasks.start_soon(work)
            yield
            tasks.cancel_scope.cancel()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A world in which nobody waits long before trying again."""
    monkeypatch.setattr(loop, "backoff", lambda *_, **__: 0.002)
    cluster = Watched()
    return World(cluster, Client(cluster), [])


def test_the_fake_is_a_cluster(world: World) -> None:
    """What the tests give to `operate` is what it asks for."""
    assert isinstance(world.client, Cluster)


# --- the loop -------------------------------------------------------------------------------------


async def test_objects_are_brought_up_whenever_they_appear(world: World) -> None:
    """Those that are there, and those that come: one pass each, for its own writes wake nobody."""

    async def bring_up(s: Step, obj: Object) -> int:
        return int(await s.do("disk", world.step, obj["spec"]["size"]))

    world.cluster.make(SHOP, spec={"size": 1})
    blog = ObjectRef.parse(f"{RESOURCE}/elsewhere/blog")
    async with world.operated(bring_up):
        await world.until(lambda: world.phase() == "Succeeded")
        world.cluster.make(blog, spec={"size": 2})
        await world.until(lambda: world.phase(blog) == "Succeeded")
    assert world.did == ["shop disk 1", "blog disk 2"]
    assert world.cluster.gets() == 2
    assert [reason for reason, _ in world.cluster.events()] == ["Succeeded", "Succeeded"]


async def test_a_namespace_is_all_that_is_looked_at(world: World) -> None:
    """With ``namespace=`` the objects of others are left alone."""

    async def bring_up(s: Step, obj: Object) -> None:
        await s.do("disk", world.step, 1)

    world.cluster.make(SHOP)
    world.cluster.make(f"{RESOURCE}/elsewhere/blog")
    async with world.operated(bring_up, namespace="elsewhere"):
        await world.until(lambda: len(world.did) == 1)
    assert world.did == ["blog disk 1"]


async def test_objects_without_a_namespace_have_runs_too(world: World) -> None:
    """The id of a cluster-scoped object's run is its name."""
    ref = ObjectRef.parse(f"{RESOURCE}/shop")

    async def bring_up(s: Step, obj: Object) -> None:
        await s.do("disk", world.step, s.run_id)

    async def tear_down(s: Step, obj: Object) -> None:
        await s.do("erase", world.step, s.run_id)

    world.cluster.make(ref)
    async with world.operated(bring_up, cleanup=tear_down):
        await world.until(lambda: world.phase(ref) == "Succeeded")
        world.cluster.delete(ref)
        await world.until(lambda: str(ref) not in world.cluster.objects)
    assert world.did == ["shop disk shop", "cleanup erase shop/cleanup"]


async def test_a_pending_run_is_called_again_in_time(world: World) -> None:
    """A pass that waits gives its place to others, and comes again when it is due."""

    async def poll(s: Step) -> str:
        count = (s.info_as(int) or 0) + 1
        await s.save_info(count)
        if count < 3:
            s.pending(after=0.005, why="it boots")
        return "up"

    async def bring_up(s: Step, obj: Object) -> str:
        return str(await s.do("server", poll))

    world.cluster.make(SHOP)
    async with world.operated(bring_up, limit=1):
        await world.until(lambda: world.phase() == "Succeeded")
    assert world.cluster.gets() == 3


async def test_no_more_passes_run_than_the_limit_says(world: World) -> None:
    """``limit=`` objects at once, and never two passes over one, however often it is edited."""
    running: list[str] = []
    most = 0

    async def bring_up(s: Step, obj: Object) -> None:
        nonlocal most
        name = obj["metadata"]["name"]
        assert name not in running
        running.append(name)
        most = max(most, len(running))
        await anyio.sleep(0.002)
        running.remove(name)

    refs = [world.cluster.make(f"{RESOURCE}/default/shop-{n}", spec={"n": 0}) for n in range(9)]
    async with world.operated(bring_up, limit=3):
        for n in range(1, 4):
            for ref in refs:
                world.cluster.edit(ref, n=n)
            await anyio.sleep(0.003)
        await world.until(
            lambda: all(
                world.cluster.get(r).get("status", {}).get("observedGeneration") == 4
                and world.phase(r) == "Succeeded"
                for r in refs
            )
        )
    assert most == 3


async def test_an_edit_reaches_the_run_while_it_waits_and_while_it_works(world: World) -> None:
    """What depends on the spec runs again, once the pass that is under way is over."""
    go = anyio.Event()

    async def hold(s: Step, size: int) -> None:
        await world.step(s, size)
        await go.wait()

    async def bring_up(s: Step, obj: Object) -> None:
        size = obj["spec"]["size"]
        await s.do("disk", world.step, size, inputs=size)
        await s.do("hold", hold, size)
        if size == 2:
            await s.sleep("an hour", 3600)
        await s.do("server", world.step, size, inputs=size)

    world.cluster.make(SHOP, spec={"size": 1})
    async with world.operated(bring_up):
        await world.until(lambda: len(world.did) == 2)
        world.cluster.edit(SHOP, size=2)
        go.set()
        await world.until(lambda: world.phase() == "Waiting")
        world.cluster.edit(SHOP, size=3)
        await world.until(lambda: world.phase() == "Succeeded")
    assert world.did == [
        "shop disk 1",
        "shop hold 1",
        "shop server 1",
        "shop disk 2",
        "shop disk 3",
        "shop server 3",
    ]


async def test_a_failed_run_waits_for_an_edit_or_for_an_operator(world: World) -> None:
    """Failed, it has no more passes; recovered, it goes on by itself."""
    broken = True

    async def disk(s: Step) -> None:
        await world.step(s, broken)
        if broken:
            raise ValueError("no such size")

    async def bring_up(s: Step, obj: Object) -> None:
        await s.do("disk", disk)

    world.cluster.make(SHOP, spec={})
    async with world.operated(bring_up):
        await world.until(lambda: world.phase() == "Failed")
        world.cluster.change(SHOP, {"metadata": {"labels": {"theirs": "1"}}}, status=False)
        await world.until(lambda: True)
        assert world.cluster.gets() == 1
        broken = False
        store = StatusStore(SHOP, transport=world.cluster.client())
        async with asteps.edit_run(store, run_id(SHOP)) as state:
            state.recover()
        await store.aclose()
        await world.until(lambda: world.phase() == "Succeeded")
    assert world.did == ["shop disk True", "shop disk False"]
    assert [reason for reason, _ in world.cluster.events()] == ["StepFailed", "Failed", "Succeeded"]


async def test_a_deleted_object_is_cleaned_up_and_let_go(world: World) -> None:
    """It is held before anything is made; its clean-up knows what was, and the object goes then."""

    async def bring_up(s: Step, obj: Object) -> None:
        held = world.cluster.get(SHOP)["metadata"]["finalizers"]
        await s.do("disk", world.step, held)
        await s.sleep("an hour", 3600)

    async def tear_down(s: Step, obj: Object) -> None:
        made = await main_state()
        assert made is not None
        await s.do("erase", world.step, made.get("disk").result_as(list))
        await s.sleep("a moment", 0.002)

    world.cluster.make(SHOP)
    async with world.operated(bring_up, cleanup=tear_down):
        await world.until(lambda: world.phase() == "Waiting")
        world.cluster.delete(SHOP)
        await world.until(lambda: str(SHOP) not in world.cluster.objects)
    held = ["example.com/asteps"]
    assert world.did == [f"shop disk {held}", f"cleanup erase {held}"]
    assert world.cluster.events() == [("CleanedUp", "the clean-up is done")]


async def test_a_clean_up_that_failed_keeps_the_object(world: World) -> None:
    """What could not be cleaned up stays, and says why."""

    async def bring_up(s: Step, obj: Object) -> None:
        pass

    async def tear_down(s: Step, obj: Object) -> None:
        raise PermissionError("the bucket is not empty")

    world.cluster.make(SHOP)
    async with world.operated(bring_up, cleanup=tear_down):
        await world.until(lambda: world.phase() == "Succeeded")
        world.cluster.delete(SHOP)
        await world.until(lambda: len(world.cluster.events()) == 2)
    assert world.cluster.get(SHOP)["metadata"]["finalizers"] == ["example.com/asteps"]
    said = "the clean-up failed: the bucket is not empty"
    assert world.cluster.events()[1] == ("CleanUpFailed", said)


async def test_finalizers_of_others_stay(world: World) -> None:
    """Ours comes and goes though others change the list at the same time."""

    async def bring_up(s: Step, obj: Object) -> None:
        pass

    async def meddle(call: Call) -> None:
        if call.method == "PATCH" and meddlers:
            name = meddlers.pop()
            known = world.cluster.get(SHOP)["metadata"].get("finalizers", [])
            patch = {"metadata": {"finalizers": [*known, name]}}
            world.cluster.change(SHOP, patch, status=False)

    meddlers = ["example.com/theirs"]
    world.client.before = meddle
    world.cluster.make(SHOP)
    async with world.operated(bring_up, cleanup=bring_up):
        await world.until(lambda: world.phase() == "Succeeded")
        found = world.cluster.get(SHOP)["metadata"]["finalizers"]
        assert found == ["example.com/theirs", "example.com/asteps"]
        meddlers = ["example.com/late"]
        world.cluster.delete(SHOP)
        await world.until(
            lambda: "example.com/asteps" not in world.cluster.get(SHOP)["metadata"]["finalizers"]
        )
    left = world.cluster.get(SHOP)["metadata"]["finalizers"]
    assert left == ["example.com/theirs", "example.com/late"]


async def test_a_finalizer_of_a_former_version_holds_nothing(world: World) -> None:
    """An operator that has no clean-up any more lets deleted objects go."""

    async def bring_up(s: Step, obj: Object) -> None:
        pass

    world.cluster.make(SHOP)
    held = {"metadata": {"finalizers": ["example.com/asteps"]}}
    world.cluster.change(SHOP, held, status=False)
    async with world.operated(bring_up):
        await world.until(lambda: world.phase() == "Succeeded")
        world.cluster.delete(SHOP)
        await world.until(lambda: str(SHOP) not in world.cluster.objects)


async def test_a_watch_that_breaks_off_is_begun_again(world: World) -> None:
    """What happened meanwhile is found by listing; what went is forgotten."""

    async def bring_up(s: Step, obj: Object) -> None:
        await s.do("disk", world.step, obj["spec"]["size"], inputs=obj["spec"]["size"])

    gone = world.cluster.make(f"{RESOURCE}/default/gone", spec={"size": 0})
    world.cluster.make(SHOP, spec={"size": 1})
    async with world.operated(bring_up):
        await world.until(lambda: world.phase() == world.phase(gone) == "Succeeded")
        watchers, world.cluster.watchers = world.cluster.watchers, []
        world.cluster.remove(gone)
        world.cluster.edit(SHOP, size=2)  # nobody is told
        for watcher in watchers:
            watcher.close()
        await world.until(lambda: "shop disk 2" in world.did)
        assert world.cluster.lists == 2


async def test_errors_of_the_cluster_are_waited_out(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that fails is asked again, by the listing and by a pass; nothing is done twice."""
    failing = 6

    async def fail(call: Call) -> None:
        nonlocal failing
        if failing and call.method in ("LIST", "GET", "PATCH"):
            failing -= 1
            raise UnknownFateError("503: the server is on fire")

    async def bring_up(s: Step, obj: Object) -> None:
        await s.do("disk", world.step, 1)

    world.client.before = fail
    world.cluster.make(SHOP)
    with caplog.at_level(logging.INFO):
        async with world.operated(bring_up, cleanup=bring_up, lease=0.1):
            await world.until(lambda: world.phase() == "Succeeded")
    assert world.did == ["shop disk 1"]
    assert "the server is on fire" in caplog.text


async def test_a_lost_race_leaves_the_run_to_the_other_one(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Whose save comes second stops, tries again later, and finds what the other one has done."""
    other = world.cluster.client()

    async def bring_up(s: Step, obj: Object) -> int:
        return int(await s.do("disk", disk))

    async def disk(s: Step) -> int:
        await world.step(s, len(world.did))
        if len(world.did) == 1:  # another replica does it all meanwhile
            outcome = await reconcile_object(
                bring_up, world.cluster.get(SHOP), ref=SHOP, transport=other
            )
            assert isinstance(outcome, Done)
        return len(world.did)

    world.cluster.make(SHOP)
    with caplog.at_level(logging.INFO):
        async with world.operated(bring_up):
            await world.until(lambda: "main default/shop: done" in caplog.text)
    assert world.did == ["shop disk 0", "shop disk 1"]
    assert "changed by someone else" in caplog.text


async def test_a_mistake_in_the_code_is_logged_with_where_it_is(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Misuse in one object's pass stops neither the operator nor the passes over others."""

    async def bring_up(s: Step, obj: Object) -> None:
        await s.do("disk", world.step, 1)
        if obj["spec"].get("twice"):
            await s.do("disk", world.step, 1)

    world.cluster.make(SHOP, spec={"twice": True})
    blog = world.cluster.make(f"{RESOURCE}/default/blog", spec={})
    async with world.operated(bring_up):
        await world.until(lambda: world.phase(blog) == "Succeeded")
        await world.until(lambda: "step 'disk' was already used" in caplog.text)
    assert "Traceback" in caplog.text


async def test_what_is_wrong_with_one_object_stops_no_other(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception outside of all steps, of one object's pass, is logged, and the loop goes on."""

    async def bring_up(s: Step, obj: Object) -> None:
        await s.do("disk", world.step, 1)

    world.cluster.make(SHOP, spec={})
    blog = world.cluster.make(f"{RESOURCE}/default/blog", spec={"size": 1})
    async with world.operated(bring_up, inputs=lambda obj: obj["spec"]["size"]):
        await world.until(lambda: world.phase(blog) == "Succeeded")
        await world.until(lambda: "KeyError" in caplog.text)
        world.cluster.edit(SHOP, size=1)
        await world.until(lambda: world.phase() == "Succeeded")


async def test_a_cancelled_operator_leaves_nothing_behind(world: World) -> None:
    """Cancelled in the midst of passes it ends; what had ended is there for the next one."""

    async def bring_up(s: Step, obj: Object) -> None:
        await s.do("disk", world.step, 1)
        await s.do("forever", forever)

    async def forever(s: Step) -> None:
        await anyio.sleep_forever()

    refs = [world.cluster.make(f"{RESOURCE}/default/shop-{n}") for n in range(5)]
    async with world.operated(bring_up):
        await world.until(lambda: len(world.did) == 5)
    for ref in refs:
        store = StatusStore(ref, transport=world.cluster.client())
        state = await asteps.load_state(store, run_id(ref))
        assert state is not None
        assert state.get("disk").done
        await store.aclose()


@pytest.mark.parametrize(
    ("resource", "options", "says"),
    [
        ("databases", {}, "group/version/plural"),
        (RESOURCE, {"limit": 0}, "limit="),
        (RESOURCE, {"sav": "pass"}, "there is no keyword sav"),
    ],
)
async def test_wrong_options_are_told_of_at_once(
    world: World, resource: str, options: dict[str, Any], says: str
) -> None:
    """Misuse of `operate` is no matter of passes."""

    async def bring_up(s: Step, obj: Object) -> None:
        pass

    with pytest.raises(UsageError, match=says):
        await operate(resource, bring_up, client=world.client, **options)


# --- one pass -------------------------------------------------------------------------------------


async def reconciled(
    world: World, fn: Callable[[Step, Object], Awaitable[Any]], **options: Any
) -> Done[Any] | Failed | Pending | None:
    """One pass over the shop."""
    obj = world.cluster.get(SHOP)
    return await reconcile_object(fn, obj, ref=SHOP, transport=world.client, **options)


@dataclass
class Server:
    """What a run returns."""

    name: str


async def test_a_result_comes_back_as_the_function_says(world: World) -> None:
    """The result has the function's type, on the pass that makes it and on later ones."""

    async def bring_up(s: Step, obj: Object) -> Server:
        return Server(obj["metadata"]["name"])

    world.cluster.make(SHOP, spec={})
    for _ in range(2):
        outcome = await reconciled(world, bring_up)
        assert isinstance(outcome, Done)
        assert outcome.value == Server("shop")


async def test_a_pass_in_which_nothing_is_due_sends_nothing(world: World) -> None:
    """A finished run, and one whose time has not come, are read once and not written."""

    async def bring_up(s: Step, obj: Object) -> None:
        if obj["spec"]["size"] == 1:
            await s.sleep("an hour", 3600)

    world.cluster.make(SHOP, spec={"size": 1})
    assert isinstance(await reconciled(world, bring_up, max_wait=0), Pending)
    world.cluster.calls.clear()
    assert isinstance(await reconciled(world, bring_up, max_wait=0), Pending)
    assert [call.method for call in world.cluster.calls] == ["GET"]
    world.cluster.edit(SHOP, size=2)
    assert isinstance(await reconciled(world, bring_up), Done)
    world.cluster.calls.clear()
    assert isinstance(await reconciled(world, bring_up), Done)
    assert [call.method for call in world.cluster.calls] == ["GET"]


async def test_inputs_may_be_something_else_than_the_spec(world: World) -> None:
    """With ``inputs=`` a finished run is reopened when that changes, and not by the rest."""

    async def bring_up(s: Step, obj: Object) -> None:
        world.did.append(str(obj["spec"]["size"]))

    options = ObjectOptions(inputs=lambda obj: obj["spec"]["size"])
    world.cluster.make(SHOP, spec={"size": 1, "owner": "us"})
    await reconciled(world, bring_up, **options)
    world.cluster.edit(SHOP, owner="them")
    await reconciled(world, bring_up, **options)
    assert world.did == ["1"]
    world.cluster.edit(SHOP, size=2)
    await reconciled(world, bring_up, **options)
    assert world.did == ["1", "2"]


async def test_an_object_that_is_gone_is_no_error(world: World) -> None:
    """Gone before the pass, or in its midst, or another one by now: there is nothing to do."""

    async def bring_up(s: Step, obj: Object) -> None:
        await s.do("disk", disk)

    async def disk(s: Step) -> None:
        world.cluster.remove(SHOP)
        if again:
            world.cluster.make(SHOP)

    again = False
    world.cluster.make(SHOP)
    assert await reconciled(world, bring_up) is None
    world.cluster.make(SHOP)
    obj = world.cluster.get(SHOP)
    again = True
    assert await reconciled(world, bring_up) is None
    assert "status" not in world.cluster.get(SHOP)  # of the object that came after
    gone = await reconcile_object(bring_up, obj, ref=SHOP, transport=world.client)
    assert gone is None
    assert world.cluster.events() == []


async def test_events_tell_of_the_first_failure_and_of_the_end(world: World) -> None:
    """Not of each retry, nor again on the next pass; and what failed because of it is no news."""

    async def disk(s: Step) -> None:
        raise ConnectionError(f"attempt {s.attempt}")

    async def machine(s: Step) -> None:
        await s.do("disk", disk, retry=Retry(attempts=3, delay=0.001, jitter=0))

    async def bring_up(s: Step, obj: Object) -> None:
        await s.do("machine", machine)

    world.cluster.make(SHOP, spec={})
    outcome = await reconciled(world, bring_up, max_wait=0)
    while isinstance(outcome, Pending):
        await anyio.sleep(outcome.after)
        outcome = await reconciled(world, bring_up, max_wait=0)
    assert isinstance(outcome, Failed)
    assert isinstance(await reconciled(world, bring_up), Failed)
    first, last = world.cluster.events()
    said = "step 'machine/disk' failed, and is tried again: attempt 1"
    assert first == ("StepFailed", said)
    assert last[0] == "Failed"
    assert last[1].startswith("the run failed: ")
    event = next(obj for obj in world.cluster.objects.values() if obj["kind"] == "Event")
    about = event["involvedObject"]
    assert (about["name"], about["namespace"], about["kind"]) == ("shop", "default", "Database")
    assert about["uid"] == world.cluster.get(SHOP)["metadata"]["uid"]


async def test_a_run_that_was_lost_does_not_begin_anew(world: World) -> None:
    """Without the ConfigMap that has the run no step is begun, and one Event says what to do."""
    bodies = 0

    async def bring_up(s: Step, obj: Object) -> str:
        nonlocal bodies
        bodies += 1
        s.pending(after=60)

    async def clean_up(s: Step, obj: Object) -> None:
        assert await main_state() is not None

    world.cluster.make(SHOP, spec={})
    assert isinstance(await reconciled(world, bring_up, body="configmap"), Pending)
    world.cluster.remove("/v1/configmaps/default/shop-databases-asteps")
    for _ in range(2):
        with pytest.raises(StateFormatError, match="are lost"):
            await reconciled(world, bring_up, body="configmap")
    assert bodies == 1
    ((reason, message),) = world.cluster.events()
    assert reason == "StateUnreadable"
    assert "take status.asteps out of the status" in message
    obj = world.cluster.get(SHOP)
    ended = await reconcile_object(
        clean_up, obj, ref=SHOP, transport=world.client, run="cleanup", body="configmap"
    )
    assert isinstance(ended, Failed)
    assert "are lost" in str(ended.error)
    world.cluster.change(SHOP, {"status": {"asteps": None}}, status=True)
    assert isinstance(await reconciled(world, bring_up, body="configmap"), Pending)


async def test_events_are_not_needed(world: World) -> None:
    """A pass comes to the same where Events cannot be posted, and posts none if it is told so."""

    async def bring_up(s: Step, obj: Object) -> int:
        return 1

    errors = [StaleError("409"), UnknownFateError("500")]

    async def refuse(call: Call) -> None:
        if call.method == "POST" and errors:
            raise errors.pop()

    world.client.before = refuse
    while errors:
        world.cluster.make(SHOP)
        assert isinstance(await reconciled(world, bring_up), Done)
        world.cluster.remove(SHOP)
    world.cluster.make(SHOP)
    world.cluster.calls.clear()
    assert isinstance(await reconciled(world, bring_up, events=False), Done)
    assert "POST" not in [call.method for call in world.cluster.calls]


async def test_two_methods_are_all_that_a_transport_needs(world: World) -> None:
    """Without ``create`` there are no Events, and everything else is as it is."""

    class Least:
        get = world.client.get
        patch_status = world.client.patch_status

    async def bring_up(s: Step, obj: Object) -> int:
        return 1

    world.cluster.make(SHOP)
    obj = world.cluster.get(SHOP)
    outcome = await reconcile_object(bring_up, obj, ref=str(SHOP), transport=Least())
    assert isinstance(outcome, Done)
    assert world.cluster.events() == []


async def test_the_main_runs_state_is_for_those_that_reconcile(world: World) -> None:
    """`main_state` outside of a pass says so; before the main run began there is none."""
    with pytest.raises(UsageError, match="main_state"):
        await main_state()

    async def tear_down(s: Step, obj: Object) -> None:
        assert await main_state() is None

    world.cluster.make(SHOP)
    assert isinstance(await reconciled(world, tear_down, run="cleanup"), Done)


async def test_a_wrong_keyword_is_named(world: World) -> None:
    """Misuse of `reconcile_object` is told of before anything is read."""

    async def bring_up(s: Step, obj: Object) -> None:
        pass

    world.cluster.make(SHOP)
    world.cluster.calls.clear()
    with pytest.raises(UsageError, match="there is no keyword timeout"):
        await reconciled(world, bring_up, timeout=3)
    with pytest.raises(UsageError, match="run= is 'main' or 'cleanup'"):
        await reconciled(world, bring_up, run="other")
    assert world.cluster.calls == []


@pytest.mark.parametrize(
    ("missing", "code", "extra"),
    [
        ("kopf", "import asteps.integrations.kopf", "kopf"),
        (
            "lightkube",
            "from asteps.integrations.kubernetes import reconcile_object, LightkubeCluster",
            "kubernetes",
        ),
    ],
)
def test_a_missing_extra_says_what_to_install(missing: str, code: str, extra: str) -> None:
    """The error names the extra; a loop of one's own needs neither of the clients."""
    script = f"import sys; sys.modules[{missing!r}] = None; {code}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert f"pip install 'asteps[{extra}]'" in done.stderr
    assert "MissingDependencyError" in done.stderr
