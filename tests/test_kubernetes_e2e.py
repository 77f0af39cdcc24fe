"""Operators on a real API server: whatever happens, no step that was reported runs again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from kubernetes_server import NO_START, Kube
from lightkube import ApiError
from lightkube.models.authentication_v1 import TokenRequestSpec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.models.rbac_v1 import PolicyRule, RoleRef, Subject
from lightkube.resources.core_v1 import ServiceAccount, ServiceAccountToken
from lightkube.resources.rbac_authorization_v1 import Role, RoleBinding
from operators import KINDS, World, a_world, condition

pytestmark = pytest.mark.kubernetes

MakeWorld: TypeAlias = Callable[..., World]

AFTER_DISK = ["hold", "after0", "after1"]
ALL = ["before0", "before1", "disk", *AFTER_DISK]


@pytest.fixture
def make(kube: Kube, tmp_path: Path) -> Iterator[MakeWorld]:
    """Makes a test's world; its operators end with the test."""
    with contextlib.ExitStack() as stack:

        def made(**options: Any) -> World:
            schema = options.pop("schema", None)
            subresource = options.pop("subresource", True)
            resource = kube.install(status=schema, subresource=subresource)
            return stack.enter_context(a_world(kube, tmp_path, resource, **options))

        yield made


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of operator: kopf, and the plain watch loop on each event loop."""
    return str(request.param)


kopf_and_asyncio = pytest.mark.parametrize("kind", ["kopf", "asyncio"], indirect=True)
kopf_and_trio = pytest.mark.parametrize("kind", ["kopf", "trio"], indirect=True)


def started(world: World) -> list[str]:
    """The steps in the order of their bodies' calls."""
    return [each.path for each in world.effects() if each.what == "start"]


def recover(ref: str) -> None:
    """Have a failed run go on, as somebody at a terminal does."""
    command = [sys.executable, "-m", "asteps", "recover", f"kubernetes:{ref}", "--yes"]
    subprocess.run(command, check=True, capture_output=True)


# --- a life without trouble -----------------------------------------------------------------------


def test_a_run_is_requeued_until_it_is_done(make: MakeWorld, kind: str) -> None:
    """Retries and waits come back when they are due, and nothing is done twice on the way."""
    world = make(max_wait=0)
    ref = world.kube.create(world.resource, "shop", {"flaky": 2, "wait": 0.7, "size": 3})
    world.start(kind)
    world.until_phase(ref, "Succeeded")
    world.none_again()
    flaky = ["flaky"] * 3 + ["wait"] * 2
    assert started(world) == ["before0", "before1", "disk", *flaky, *AFTER_DISK]
    status = world.status(ref)
    assert (status["progress"], status["step"], status["observedGeneration"]) == ("8/8", "", 1)
    assert condition(status, "Ready")["status"] == "True"
    world.until(lambda: len(world.events()) == 2)
    assert world.events() == [
        (
            "Warning",
            "StepFailed",
            "step 'flaky' failed, and is tried again: attempt 1 of the pretended cloud",
        ),
        ("Normal", "Succeeded", "the run is done"),
    ]
    said = world.log.read_text()
    assert "waits" in said
    assert "ERROR" not in said  # to wait is none


@kopf_and_trio
def test_a_finished_run_is_left_alone_by_those_who_start_again(make: MakeWorld, kind: str) -> None:
    """An operator that starts again reads what is done, and writes nothing into the status."""
    world = make()
    ref = world.kube.create(world.resource, "shop")
    world.start(kind)
    world.until_phase(ref, "Succeeded")
    world.kill()
    before = world.status(ref)
    effects = len(world.effects())
    world.start(kind)
    other = world.kube.create(world.resource, "other")
    world.until_phase(other, "Succeeded")  # by then it has looked at both
    world.none_again()
    assert world.status(ref) == before
    assert [e for e in world.effects()[effects:] if e.name == "shop"] == []


# --- death ----------------------------------------------------------------------------------------


def test_a_killed_operator_goes_on_where_it_was(make: MakeWorld, kind: str) -> None:
    """Killed in the midst of a step, that step alone runs again."""
    world = make()
    ref = world.kube.create(world.resource, "shop")
    world.hold.touch()
    world.start(kind)
    world.until_did("start", "hold")
    world.kill()
    assert world.status(ref)["phase"] == "Running"
    world.hold.unlink()
    world.start(kind)
    world.until_phase(ref, "Succeeded")
    world.none_again()
    assert started(world) == ["before0", "before1", "disk", "hold", *AFTER_DISK]


@kopf_and_trio
def test_an_operator_may_die_again_and_again(make: MakeWorld, kind: str) -> None:
    """Killed at whatever moment, it gets there, and does nothing twice that was reported."""
    world = make(max_wait=0.1)
    spec = {"before": 12, "after": 12, "flaky": 2, "wait": 0.5}
    refs = [world.kube.create(world.resource, f"shop-{n}", spec) for n in range(3)]
    for moment in (1, 6, 14):  # steps into a life, whatever steps those are
        known = len(world.effects())
        world.start(kind)
        world.until_all(known + moment)
        world.kill()
    world.start(kind)
    for ref in refs:
        world.until_phase(ref, "Succeeded")
    world.none_again()


@pytest.mark.parametrize(
    ("kind", "body"), [("kopf", "secret"), ("asyncio", "gzip"), ("trio", "configmap")]
)
def test_a_killed_operator_finds_what_is_kept_elsewhere(
    make: MakeWorld, kind: str, body: str
) -> None:
    """With a body elsewhere, or compressed, a killed operator goes on where it was all the same."""
    world = make(body=body)
    ref = world.kube.create(world.resource, "shop", {"big": [90_000, 90_000]})
    world.hold.touch()
    world.start(kind)
    world.until_did("start", "hold")
    world.kill()
    status = world.status(ref)
    assert status["phase"] == "Running"
    (run,) = status["asteps"]["runs"].values()
    assert not run.get("records")  # as text they are nowhere in the status
    world.hold.unlink()
    world.start(kind)
    world.until_phase(ref, "Succeeded")
    world.none_again()
    steps = ["before0", "before1", "disk", "big0", "big1", "hold", *AFTER_DISK]
    assert started(world) == steps


# --- others in the cluster ------------------------------------------------------------------------


@kopf_and_asyncio
def test_other_writers_do_no_harm(make: MakeWorld, kind: str) -> None:
    """Others change annotations, labels and the status all the time: both get their way."""
    world = make()
    ref = world.kube.create(world.resource, "shop", {"before": 8, "after": 8, "wait": 0.5})
    over = threading.Event()
    count = 0

    def meddle() -> None:
        nonlocal count
        while not over.is_set():
            count += 1
            text = str(count)
            foreign = {"type": "Foreign", "status": text, "lastTransitionTime": "x"}
            mine = {"annotations": {"theirs": text}, "labels": {"theirs": text}}
            world.kube.patch(ref, {"metadata": mine})
            conditions = world.status(ref).get("conditions", [])
            kept = [each for each in conditions if each["type"] != "Foreign"]
            patch = {"theirs": {"count": count}}
            if count % 5 == 0 and not kept:  # before ours are there: it must not be lost
                patch["conditions"] = [foreign]  # type: ignore[assignment]
            world.kube.patch(ref, {"status": patch}, status=True)
            time.sleep(0.01)  # three writes each time; nobody else would get through

    meddler = threading.Thread(target=meddle)
    meddler.start()
    try:
        world.until(lambda: count > 10)
        world.start(kind)
        world.until_phase(ref, "Succeeded")
    finally:
        over.set()
        meddler.join()
    world.none_again()
    assert len(started(world)) == len({*started(world)}) + 1  # the wait was called twice
    found = world.kube.get(ref)
    assert found["status"]["theirs"] == {"count": count}
    assert found["metadata"]["annotations"]["theirs"] == str(count)
    assert found["status"]["conditions"][0]["type"] == "Foreign"


def test_an_edit_of_the_spec_gets_through_to_a_step_that_is_under_way(
    make: MakeWorld, kind: str
) -> None:
    """Edited while a step runs, what depends on the edit runs again, and nothing else does."""
    world = make()
    ref = world.kube.create(world.resource, "shop", {"size": 1})
    world.hold.touch()
    world.start(kind)
    world.until_did("start", "hold")
    world.kube.patch(ref, {"spec": {"size": 2}})
    world.hold.unlink()
    world.until_phase(ref, "Succeeded", generation=2)
    world.none_again()
    again = [each.path for each in world.effects() if each.what == "start" and each.generation == 2]
    assert again == ["disk", "hold"]


@kopf_and_trio
def test_an_edit_of_the_spec_does_not_wait_for_a_wait(make: MakeWorld, kind: str) -> None:
    """Edited while the run waits for an hour, the run goes on at once."""
    world = make()
    ref = world.kube.create(world.resource, "shop", {"wait": 3600})
    world.start(kind)
    world.until_phase(ref, "Waiting")
    world.kube.patch(ref, {"spec": {"wait": 0.1}})
    world.until_phase(ref, "Succeeded", generation=2)
    world.none_again()


@kopf_and_trio
def test_an_edit_that_was_made_while_nobody_was_there_does_not_wait(
    make: MakeWorld, kind: str
) -> None:
    """Edited between two lives of the operator, a run that waits for an hour goes on at once."""
    world = make()
    ref = world.kube.create(world.resource, "shop", {"wait": 3600})
    world.start(kind)
    world.until_phase(ref, "Waiting")
    time.sleep(1)  # so that kopf has written its progress, which tells it to wait
    world.kill()
    world.kube.patch(ref, {"spec": {"wait": 0.1}})
    world.start(kind)
    world.until_phase(ref, "Succeeded", generation=2)
    world.none_again()


@kopf_and_trio
def test_a_failed_run_stays_failed_until_its_spec_is_another_one(
    make: MakeWorld, kind: str
) -> None:
    """What cannot be done is not tried again and again; an edit makes it go on."""
    world = make()
    ref = world.kube.create(world.resource, "shop", {"size": -1})
    world.start(kind)
    world.until_phase(ref, "Failed")
    world.until(lambda: ("Warning", "Failed") in [event[:2] for event in world.events()])
    failed = world.status(ref)
    assert condition(failed, "Stalled")["status"] == "True"
    other = world.kube.create(world.resource, "other")
    world.until_phase(other, "Succeeded")
    assert world.status(ref) == failed
    world.kube.patch(ref, {"spec": {"size": 2}})
    world.until_phase(ref, "Succeeded", generation=2)
    world.none_again()


@kopf_and_trio
def test_a_recovered_run_goes_on_by_itself(make: MakeWorld, kind: str) -> None:
    """Recovered by whoever looks after it, a failed run is not left to the next edit."""
    world = make()
    ref = world.kube.create(world.resource, "shop", {"stuck": 1})
    world.hold.touch()
    world.start(kind)
    world.until_phase(ref, "Failed")
    world.until(lambda: ("Warning", "Failed") in [event[:2] for event in world.events()])
    world.hold.unlink()
    recover(ref)
    world.until_phase(ref, "Succeeded")
    world.none_again()
    assert started(world) == ["before0", "before1", "disk", "stuck", "stuck", *AFTER_DISK]


@kopf_and_asyncio
def test_two_replicas_get_there_together(make: MakeWorld, kind: str) -> None:
    """Two operators on the same objects: one at a time goes on with a run, and it ends."""
    world = make(max_wait=0.2)
    spec = {"before": 6, "after": 6, "flaky": 2, "wait": 0.5}
    refs = [world.kube.create(world.resource, f"shop-{n}", spec) for n in range(3)]
    one, two = world.start(kind), world.start(kind)
    for ref in refs:
        world.until_phase(ref, "Succeeded")
    world.none_again()
    assert {each.pid for each in world.effects()} == {one.pid, two.pid}
    assert one.poll() is two.poll() is None


# --- deletion -------------------------------------------------------------------------------------


def test_a_deleted_object_is_cleaned_up_first(make: MakeWorld, kind: str) -> None:
    """Deleted while the run waits for an hour, the clean-up runs at once, and survives a kill."""
    world = make()
    ref = world.kube.create(world.resource, "shop", {"wait": 3600, "size": 7})
    world.start(kind)
    world.until_phase(ref, "Waiting")
    world.hold.touch()
    world.kube.delete(ref)
    world.until_did("start", "hold")
    status = world.status(ref)
    assert (status["phase"], not world.is_gone(ref)) == ("Deleting", True)
    world.kill()
    world.hold.unlink()
    world.start(kind)
    world.until(lambda: world.is_gone(ref))
    world.none_again()
    assert world.did("reported", "erase", value=7)
    assert world.did("reported", "forget")
    assert len(world.did("start", "erase")) == 1
    world.until(lambda: ("Normal", "CleanedUp", "the clean-up is done") in world.events())


@kopf_and_trio
def test_a_clean_up_that_failed_keeps_the_object(make: MakeWorld, kind: str) -> None:
    """Nothing is let go that was not taken away; recovered, the clean-up goes on by itself."""
    world = make()
    ref = world.kube.create(world.resource, "shop", {"stuck": 1})
    world.start(kind)
    world.until_phase(ref, "Succeeded")
    world.hold.touch()
    world.kube.delete(ref)
    world.until(lambda: condition(world.status(ref), "Stalled")["status"] == "True")
    assert world.status(ref)["phase"] == "Deleting"
    time.sleep(2)  # for kopf's next look, and for what it would let go
    assert not world.is_gone(ref)
    assert len(world.did("start", "stuck", value="cleanup")) == 1
    world.hold.unlink()
    recover(f"{ref}/cleanup")
    world.until(lambda: world.is_gone(ref))
    world.none_again()
    assert len(world.did("start", "erase")) == 1


@kopf_and_asyncio
def test_an_object_that_vanishes_is_no_error(make: MakeWorld, kind: str) -> None:
    """Deleted in the midst of a step, without a clean-up, its run ends, and another one begins."""
    world = make(cleanup=False)
    ref = world.kube.create(world.resource, "shop")
    world.hold.touch()
    world.start(kind)
    world.until_did("start", "hold")
    world.kube.delete(ref)
    world.until(lambda: world.is_gone(ref))
    uid = world.kube.get(world.kube.create(world.resource, "shop", {"size": 2}))["metadata"]["uid"]
    world.hold.unlink()
    world.until_phase(ref, "Succeeded")
    assert world.kube.get(ref)["metadata"]["uid"] == uid
    assert [each.value for each in world.did("reported", "disk")][-1] == 2
    assert len(world.did("start", "before0")) == 2  # once for each object
    log = world.log.read_text()
    assert "Traceback" not in log
    assert "StateRefused" not in [event[1] for event in world.events()]


# --- what the cluster does not take ---------------------------------------------------------------


@kopf_and_asyncio
def test_a_definition_without_our_field_is_named(make: MakeWorld, kind: str) -> None:
    """Where the server drops the state, no step is begun, and an Event says what to do."""
    typed = {"type": "object", "properties": {"phase": {"type": "string"}}}
    world = make(schema=typed)
    ref = world.kube.create(world.resource, "shop")
    world.start(kind)
    world.until(lambda: bool(world.events()))
    type_, reason, message = world.events()[0]
    assert (type_, reason) == ("Warning", "StateRefused")
    assert "asteps crd" in message
    assert started(world) == []
    assert "asteps" not in world.status(ref)


def test_a_definition_without_a_status_subresource_is_named(make: MakeWorld) -> None:
    """Where there is no status to write, no step is begun, and an Event says so."""
    world = make(subresource=False)
    world.kube.create(world.resource, "shop")
    world.start("asyncio")
    world.until(lambda: bool(world.events()))
    type_, reason, message = world.events()[0]
    assert (type_, reason) == ("Warning", "StateRefused")
    assert "subresource" in message
    assert started(world) == []


@kopf_and_asyncio
def test_a_status_that_is_full_is_refused_before_it_is_sent(make: MakeWorld, kind: str) -> None:
    """Near the limit all is well; above it what was saved stays, and an Event says what to do."""
    world = make()
    fits = world.kube.create(world.resource, "fits", {"big": [400_000, 400_000]})
    world.start(kind)
    world.until_phase(fits, "Succeeded")
    full = world.kube.create(world.resource, "full", {"big": [400_000] * 3})
    world.until(lambda: "StateRefused" in [event[1] for event in world.events()])
    message = next(event[2] for event in world.events() if event[1] == "StateRefused")
    assert "body=" in message
    time.sleep(2)  # no loop: it is tried again after half a minute
    assert len([each for each in world.did("start", "big2") if each.name == "full"]) == 1
    world.none_again()
    runs = world.status(full)["asteps"]["runs"][f"{world.kube.namespace}/full"]["records"]
    assert len(runs["big1"]) > 400_000


def test_a_missing_right_is_named_and_may_be_given_later(make: MakeWorld, tmp_path: Path) -> None:
    """Without the right to patch the status no step begins; with it the run goes on by itself."""
    world = make()
    ref = world.kube.create(world.resource, "shop")
    group, _, plural = world.resource.split("/")
    rules = [
        PolicyRule(apiGroups=[group], resources=[plural], verbs=["get", "list", "watch", "patch"]),
        PolicyRule(apiGroups=[""], resources=["events"], verbs=["create"]),
    ]
    kubeconfig = someone(world.kube, rules, tmp_path)
    world.start("trio", KUBECONFIG=kubeconfig)
    world.until(lambda: bool(world.events()))
    type_, reason, message = world.events()[0]
    assert (type_, reason) == ("Warning", "StateRefused")
    assert "403" in message or "forbidden" in message
    assert "status" in message
    assert started(world) == []
    rules.append(PolicyRule(apiGroups=[group], resources=[f"{plural}/status"], verbs=["patch"]))
    role = Role(metadata=ObjectMeta(name="someone", namespace=world.kube.namespace), rules=rules)
    world.kube.client.replace(role)
    world.kube.patch(ref, {"spec": {"size": 2}})  # or wait for half a minute
    world.until_phase(ref, "Succeeded")
    world.none_again()


def test_an_operator_that_may_not_even_look_says_so_and_waits(
    make: MakeWorld, tmp_path: Path
) -> None:
    """Without the right to list, the log says so; with it the operator begins by itself."""
    world = make()
    ref = world.kube.create(world.resource, "shop")
    kubeconfig = someone(world.kube, [], tmp_path)
    operator = world.start("asyncio", KUBECONFIG=kubeconfig)
    world.until(lambda: "cannot list resource" in world.log.read_text())
    assert operator.poll() is None
    group, _, plural = world.resource.split("/")
    rule = PolicyRule(apiGroups=[group], resources=[plural, f"{plural}/status"], verbs=["*"])
    where = ObjectMeta(name="someone", namespace=world.kube.namespace)
    world.kube.client.replace(Role(metadata=where, rules=[rule]))
    world.until_phase(ref, "Succeeded")  # without the right to post Events, too


def someone(kube: Kube, rules: list[PolicyRule], directory: Path) -> str:
    """A kubeconfig of somebody who may do this and no more."""
    where = ObjectMeta(name="someone", namespace=kube.namespace)
    kube.client.create(ServiceAccount(metadata=where))
    kube.client.create(Role(metadata=where, rules=rules))
    kube.client.create(
        RoleBinding(
            metadata=where,
            roleRef=RoleRef(apiGroup="rbac.authorization.k8s.io", kind="Role", name="someone"),
            subjects=[Subject(kind="ServiceAccount", name="someone", namespace=kube.namespace)],
        )
    )
    answer = kube.client.create(
        ServiceAccountToken(metadata=where, spec=TokenRequestSpec(audiences=[])),
        "someone",
        namespace=kube.namespace,
    )
    assert answer.status is not None
    cluster = kube.client.config.cluster
    names: dict[str, Any] = {
        "server": cluster.server,
        "insecure-skip-tls-verify": cluster.insecure or None,
        "certificate-authority": cluster.certificate_auth,
        "certificate-authority-data": cluster.certificate_auth_data,
    }
    context = {"cluster": "test", "user": "someone", "namespace": kube.namespace}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {k: v for k, v in names.items() if v}}],
        "users": [{"name": "someone", "user": {"token": answer.status.token}}],
        "contexts": [{"name": "test", "context": context}],
        "current-context": "test",
    }
    file = directory / "someone.kubeconfig"
    file.write_text(json.dumps(config))  # which is YAML too
    return str(file)


# --- the server dies ------------------------------------------------------------------------------


class Server:
    """An API server of the test's own.

    Args:
        directory: What the program has started it in.
    """

    def __init__(self, directory: Path) -> None:
        self.kubeconfig = str(directory / "kubeconfig")
        self._directory = directory
        self._pids = {name: int((directory / f"{name}.pid").read_text()) for name in PARTS}
        self._process: subprocess.Popen[bytes] | None = None

    def restart(self) -> None:
        """Kill it, and start it again where it was."""
        pid = self._pids["apiserver"]
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
        self._kill("apiserver")
        with (self._directory / "apiserver.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._directory, stdout=log, stderr=log)
        self._pids["apiserver"] = self._process.pid

    def close(self) -> None:
        """Kill it for good."""
        for name in PARTS:
            self._kill(name)

    def _kill(self, name: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pids[name], signal.SIGKILL)
            if self._process is not None and name == "apiserver":
                self._process.wait()
            while True:
                os.kill(self._pids[name], 0)
                stat = Path(f"/proc/{self._pids[name]}/stat").read_text()
                if stat.rpartition(")")[2].split()[0] == "Z":  # nobody is there to bury it
                    return
                time.sleep(0.02)


PARTS = ("apiserver", "etcd")


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An API server that the test may kill."""
    program = os.environ.get("ASTEPS_KUBE_START")
    if not program:
        pytest.skip(NO_START)
    directory = tmp_path_factory.mktemp("server")
    subprocess.run([program, str(directory)], check=True, capture_output=True)
    server = Server(directory)
    try:
        yield server
    finally:
        server.close()


def test_a_server_may_be_restarted_in_the_midst_of_a_save(server: Server, tmp_path: Path) -> None:
    """The API server killed while saves are under way: all operators go on, and nothing is lost."""
    kube = Kube(server.kubeconfig)
    try:
        resource = kube.install()
        spec = {"before": 60, "after": 20}
        with contextlib.ExitStack() as stack:
            worlds = {}
            for kind in KINDS:
                directory = tmp_path / kind
                directory.mkdir()
                kind_of = resource if kind == "kopf" else kube.install(plural=kind, kind=kind)
                world = stack.enter_context(a_world(kube, directory, kind_of))
                worlds[kind] = world, kube.create(kind_of, "shop", spec)
                world.start(kind)
            for world, _ in worlds.values():
                world.until_did("reported", "before5")
            server.restart()
            for world, ref in worlds.values():
                world.until_phase(ref, "Succeeded")
                world.none_again()
                assert started(world).count("before0") == 1
    finally:
        with contextlib.suppress(ApiError):
            kube.close()
