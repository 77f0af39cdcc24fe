"""Waiters of botocore as steps, against a pretended AWS over HTTP, with boto3 and aiobotocore."""

from __future__ import annotations

import copy
import itertools
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import boto3
import pytest
from aiobotocore.session import get_session
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError
from clocks import FakeClock
from moto_server import KEYS, Moto, started_moto

import asteps
from asteps import Done, Failed, Pending, Retry, State, Step, StepError, UsageError
from asteps.integrations.aws import WaiterFailedError, wait_until
from asteps.stores.memory import MemoryStore
from asteps.testing import Crash, FaultyStore
from asteps.testing._faulty import SaveFault

# --- the pretended AWS ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    """One server for all of these tests; clients are made here, where files may be read."""
    with started_moto() as server:
        for service in ("dms", "dynamodb", "ec2", "iam", "sts"):
            server.client(service)
        yield server


@pytest.fixture
def aws(moto: Moto) -> Iterator[Moto]:
    """An AWS in which nothing has happened yet."""
    moto.reset()
    yield moto
    moto.reset()


def another_client(aws: Moto, service: str, **options: Any) -> Any:
    """A client such as another process would have."""
    client = boto3.client(service, **{"endpoint_url": aws.url, **KEYS, **options})
    _ = client.waiter_names
    return client


class Replication:
    """A replication instance of DMS: it takes as many checks as one wants.

    Attributes:
        starts: The tokens with which one was asked for.
        calls: How often the waiter's operation was called.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self.starts: list[str] = []
        self.calls = 0

    @classmethod
    async def of(cls, aws: Moto, *, finishes_at_check: int) -> Replication:
        """One in an empty AWS, which is available when it is looked at for the nth time."""
        await anyio.to_thread.run_sync(aws.reset)
        model = "dms::replicationinstance"
        await anyio.to_thread.run_sync(aws.finishes_at_check, finishes_at_check, model)
        return cls(aws.client("dms"))

    def start(self, token: str) -> str:
        self.starts.append(token)
        made = self.client.create_replication_instance(
            ReplicationInstanceIdentifier=f"r{len(self.starts)}",
            ReplicationInstanceClass="dms.t3.micro",
        )
        arn: str = made["ReplicationInstance"]["ReplicationInstanceArn"]
        return arn

    def params(self, arn: str) -> dict[str, Any]:
        self.calls += 1
        return {"Filters": [{"Name": "replication-instance-arn", "Values": [arn]}]}

    async def root(self, s: Step, **options: Any) -> Any:
        """The run: the one step, with the waiter's own delay of 60 seconds and 60 attempts."""
        return await wait_until(
            s,
            "replication",
            self.client,
            "replication_instance_available",
            start=partial(self.start, s.token_for("replication")),
            params=self.params,
            **options,
        )


def info_of(state: State | None) -> dict[str, Any]:
    """What the step has written down; nothing if it has not."""
    node = None if state is None else state.child("replication")
    return (None if node is None else node.info_as(dict)) or {}


ARN = "arn:aws:dms:us-east-1:123456789012:rep:"


async def to_the_end(
    root: Callable[[Step], Awaitable[Any]], *, state: State | None = None, recover: bool = False
) -> tuple[Done[Any] | Failed, FakeClock]:
    """What a run comes to that waits in place, and its clock."""
    clock = FakeClock()
    outcome = await asteps.reconcile(
        root, state=state or State("r"), name="r", clock=clock, max_wait=10_000_000, recover=recover
    )
    assert not isinstance(outcome, Pending)
    return outcome, clock


# --- done -----------------------------------------------------------------------------------------


async def test_done_after_some_checks(aws: Moto) -> None:
    """The operation is called with the waiter's own delay until its state is the wanted one."""
    task = await Replication.of(aws, finishes_at_check=4)
    outcome, clock = await to_the_end(task.root)
    assert isinstance(outcome, Done)
    assert outcome.value.startswith(ARN)
    assert (len(task.starts), task.calls) == (1, 4)
    assert clock.slept == [60, 60, 60]
    assert info_of(outcome.state)["taskId"] == outcome.value


async def test_the_same_in_passes(aws: Moto) -> None:
    """In a reconciler each check is a pass of its own, and the ID is what they have in common."""
    task = await Replication.of(aws, finishes_at_check=3)
    clock, data, seen = FakeClock(), State("r").encode(), []
    for _ in range(3):
        state = State.decode(data)
        outcome = await asteps.reconcile(task.root, state=state, name="r", clock=clock)
        data = state.encode()
        seen.append(outcome)
        clock.advance(60)
    first, second, last = seen
    assert isinstance(first, Pending)
    assert isinstance(second, Pending)
    assert isinstance(last, Done)
    assert (first.after, first.path, second.after) == (60, "replication", 60)
    assert (len(task.starts), task.calls) == (1, 3)
    assert last.value in first.why

    again = await asteps.reconcile(task.root, state=State.decode(data), name="r", clock=clock)
    assert isinstance(again, Done)
    assert again.value == last.value
    assert task.calls == 3, "a step that is done makes no call"


async def test_every(aws: Moto) -> None:
    """``every=`` takes the place of the waiter's delay, and may be pauses that grow."""
    task = await Replication.of(aws, finishes_at_check=4)
    _, clock = await to_the_end(partial(task.root, every=5))
    assert clock.slept == [5, 5, 5]
    task = await Replication.of(aws, finishes_at_check=4)
    _, clock = await to_the_end(partial(task.root, every=Retry(delay=1, factor=3, jitter=0)))
    assert clock.slept == [1, 3, 9]


async def test_siblings_wait_together(aws: Moto) -> None:
    """Waits side by side are all checked before a pass ends."""
    ec2 = aws.client("ec2")
    calls: list[str] = []

    async def wait(s: Step, name: str) -> None:
        def params() -> dict[str, Any]:
            calls.append(name)
            return {"Filters": [{"Name": "key-name", "Values": [name]}]}

        await wait_until(
            s, name, ec2, "key_pair_exists", start=lambda: name, params=lambda _: params()
        )

    async def root(s: Step) -> None:
        async with anyio.create_task_group() as group:
            for n in range(5):
                group.start_soon(wait, s, f"key-{n}")

    outcome = await asteps.reconcile(root, state=State("r"), name="r", clock=FakeClock())
    assert isinstance(outcome, Pending)
    assert sorted(calls) == [f"key-{n}" for n in range(5)]


async def test_without_start(aws: Moto) -> None:
    """What is there already needs no start: the parameters are what is kept, and the result."""
    table = {"TableName": "gone"}

    async def root(s: Step) -> dict[str, Any]:
        return await wait_until(s, "gone", aws.client("dynamodb"), "table_not_exists", params=table)

    outcome, clock = await to_the_end(root)
    assert isinstance(outcome, Done)
    assert outcome.value == table
    assert clock.slept == []


async def test_result(aws: Moto) -> None:
    """``result=`` makes the step's result of the last answer, typed by its annotation."""
    task = await Replication.of(aws, finishes_at_check=2)

    def zones(answer: dict[str, Any]) -> set[str]:
        return {each["ReplicationInstanceIdentifier"] for each in answer["ReplicationInstances"]}

    async def root(s: Step) -> set[str]:
        found = await task.root(s, result=zones)
        assert isinstance(found, set)
        return found

    outcome, _ = await to_the_end(root)
    assert isinstance(outcome, Done)
    assert outcome.value == {"r1"}


# --- crashes --------------------------------------------------------------------------------------


async def test_the_id_is_durable_before_the_first_check(aws: Moto) -> None:
    """When the waiter's operation is first called, what ``start`` returned is in the store."""
    task = await Replication.of(aws, finishes_at_check=2)
    store = FaultyStore(MemoryStore())
    stored: list[bool] = []

    def params(arn: str) -> dict[str, Any]:
        records = [data for save in store.log for data in save.changes.values()]
        stored.append(any(arn.encode() in data for data in records if data is not None))
        return task.params(arn)

    await asteps.run(partial(_root, task, params), store=store, id="r", name="r", clock=FakeClock())
    assert stored == [True, True]


async def _root(task: Replication, params: Callable[[str], dict[str, Any]], s: Step) -> str:
    start = partial(task.start, s.token_for("replication"))
    client, waiter = task.client, "replication_instance_available"
    return await wait_until(s, "replication", client, waiter, start=start, params=params)


async def test_killed_at_every_save(aws: Moto) -> None:
    """Killed at any save and begun again, the wait goes on with the ID that the store has.

    Only a process that died before the ID was stored starts again, with the same token.
    """
    restarted: list[int] = []
    faults: tuple[SaveFault, ...] = ("crash before", "crash after")
    for number, fault in ((n, f) for n in itertools.count(1) for f in faults):
        task = await Replication.of(aws, finishes_at_check=3)
        clock, storage = FakeClock(), MemoryStore()
        store = FaultyStore(storage.client(), {number: fault})
        with suppress(Crash):
            await asteps.run(task.root, store=store, id="r", name="r", clock=clock)
        if not store.crashed:
            break
        kept = info_of(await asteps.load_state(storage, "r")).get("taskId")
        before = len(task.starts)
        again = storage.client()
        found = await asteps.run(task.root, store=again, id="r", name="r", clock=clock)
        if kept is not None:
            assert (len(task.starts), found) == (before, kept)
        assert len(set(task.starts)) == 1, "the token is the same"
        restarted += [number] * (len(task.starts) - 1)
    assert number > 4
    assert restarted == [2], "only killed before the very save that has the ID: after the claim"


async def test_taken_over_by_another_process(aws: Moto) -> None:
    """A client is no part of what is kept: another process waits on with its own."""
    task = await Replication.of(aws, finishes_at_check=3)
    clock, storage = FakeClock(), MemoryStore()
    outcome = await asteps.reconcile(
        task.root, store=storage.client(), id="r", name="r", clock=clock
    )
    assert isinstance(outcome, Pending)
    other = Replication(await anyio.to_thread.run_sync(another_client, aws, "dms"))
    store = storage.client()
    found = await asteps.run(other.root, store=store, id="r", name="r", clock=clock)
    assert found.startswith(ARN)
    assert other.starts == []


# --- failures -------------------------------------------------------------------------------------


def terminated_instance(aws: Moto) -> str:
    """An instance that will never run again."""
    ec2 = aws.client("ec2")
    image = ec2.register_image(Name="an image")["ImageId"]
    made = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1)
    instance: str = made["Instances"][0]["InstanceId"]
    ec2.terminate_instances(InstanceIds=[instance])
    return instance


async def test_failure_state(aws: Moto) -> None:
    """A state that the waiter calls a failure fails the step for good: nobody tries again."""
    starts: list[str] = []
    checks: list[str] = []

    def start() -> str:
        starts.append("")
        return terminated_instance(aws)

    def params(instance: str) -> dict[str, Any]:
        checks.append(instance)
        return {"InstanceIds": [instance]}

    async def launch(s: Step) -> str:
        return await wait_until(
            s,
            "launch",
            aws.client("ec2"),
            "instance_running",
            start=start,
            params=params,
            retry=Retry(attempts=5),
        )

    async def root(s: Step) -> str:
        return await s.do("machine", launch, retry=Retry(attempts=5))

    state = State("r")
    for _ in range(2):
        outcome, clock = await to_the_end(root, state=state)
        assert isinstance(outcome, Failed)
        error = outcome.error
        assert error.is_a(WaiterFailedError)
        assert error.origin == "machine/launch"
        assert (len(starts), len(checks), clock.slept) == (1, 1, [])
        failure = state.get("machine/launch").failure
        assert failure is not None
        assert failure.message == (
            f"waiter 'instance_running' gave up on {checks[0]!r}: For expression "
            '"Reservations[].Instances[].State.Name" we matched expected path: "terminated" at '
            "least once"
        )
        assert failure.final

    await to_the_end(root, state=state, recover=True)
    assert (len(starts), len(checks)) == (1, 2), "recovered, it looks at the same task again"
    state.reset("machine/launch")
    await to_the_end(root, state=state)
    assert (len(starts), len(checks)) == (2, 3), "reset, it starts another one"


async def test_an_error_is_what_the_waiter_waits_for(aws: Moto) -> None:
    """Some waiters are content with an error, and its answer is what ``result=`` is given."""

    async def root(s: Step) -> str:
        return await wait_until(
            s,
            "gone",
            aws.client("dynamodb"),
            "table_not_exists",
            params={"TableName": "gone"},
            result=_code,
        )

    outcome, _ = await to_the_end(root)
    assert isinstance(outcome, Done)
    assert outcome.value == "ResourceNotFoundException"


def _code(answer: dict[str, Any]) -> str:
    return str(answer["Error"]["Code"])


async def test_an_error_is_not_yet(aws: Moto) -> None:
    """Some waiters expect an error for a while."""
    iam = aws.client("iam")

    async def root(s: Step) -> None:
        await wait_until(s, "role", iam, "role_exists", params={"RoleName": "worker"})

    state, clock = State("r"), FakeClock()
    for _ in range(2):
        outcome = await asteps.reconcile(root, state=state, clock=clock)
        assert isinstance(outcome, Pending)
        assert outcome.after == 1
        clock.advance(1)
    make = partial(iam.create_role, RoleName="worker", AssumeRolePolicyDocument="{}")
    await anyio.to_thread.run_sync(make)
    assert isinstance(await asteps.reconcile(root, state=state, clock=clock), Done)


async def test_an_error_is_a_failure_state(aws: Moto) -> None:
    """Some waiters know an error that will not get better."""

    async def root(s: Step) -> None:
        await wait_until(
            s,
            "interface",
            aws.client("ec2"),
            "network_interface_available",
            params={"NetworkInterfaceIds": ["eni-0123456789abcdef0"]},
            retry=Retry(attempts=5),
        )

    outcome, clock = await to_the_end(root)
    assert isinstance(outcome, Failed)
    assert outcome.error.is_a(WaiterFailedError)
    assert "Matched expected service error code: InvalidNetworkInterfaceID" in str(outcome.error)
    assert clock.slept == []


async def test_an_error_that_no_acceptor_knows(aws: Moto) -> None:
    """Any other error fails an attempt as itself; ``retry=`` and recover go on with the same ID."""
    starts: list[str] = []

    def start() -> str:
        starts.append("")
        return "ami-0123456789abcdef0"

    async def root(s: Step) -> str:
        return await wait_until(
            s,
            "image",
            aws.client("ec2"),
            "image_available",
            start=start,
            params=lambda image: {"ImageIds": [image]},
            retry=Retry(attempts=3, delay=1, jitter=0, on=ClientError),
        )

    state = State("r")
    outcome, clock = await to_the_end(root, state=state)
    assert isinstance(outcome, Failed)
    assert outcome.error.is_a(ClientError)
    assert not outcome.error.is_a(WaiterFailedError)
    assert "(InvalidAMIID.NotFound)" in str(outcome.error)
    assert clock.slept == [1, 2]
    assert state.get("image").attempt == 3

    _, clock = await to_the_end(root, state=state, recover=True)
    assert clock.slept == [1, 2]
    assert len(starts) == 1


async def test_no_connection(aws: Moto) -> None:
    """What is no answer at all is not for the waiter, but for ``retry=``."""
    options = {"endpoint_url": "http://127.0.0.1:1", "config": Config(retries={"max_attempts": 0})}
    nobody = await anyio.to_thread.run_sync(partial(another_client, aws, "ec2", **options))

    async def root(s: Step) -> None:
        await wait_until(s, "vpc", nobody, "vpc_exists", params={}, retry=Retry(jitter=0))

    outcome, clock = await to_the_end(root)
    assert isinstance(outcome, Failed)
    assert outcome.error.is_a(EndpointConnectionError)
    assert clock.slept == [1, 2]


@pytest.mark.parametrize(
    ("options", "after"),
    [({}, 3_600), ({"timeout": 1_150}, 1_150), ({"timeout": 7_200}, 7_200)],
    ids=["the waiter's", "shorter", "longer"],
)
async def test_timeout(aws: Moto, options: dict[str, Any], after: float) -> None:
    """Without ``timeout=`` a wait may take the waiter's delay times its maximum of attempts."""
    task = await Replication.of(aws, finishes_at_check=10_000)
    outcome, clock = await to_the_end(partial(task.root, every=500, **options))
    assert isinstance(outcome, Failed)
    assert outcome.error.is_a(TimeoutError)
    assert sum(clock.slept) == after
    assert outcome.state.get("replication").failure is not None


async def test_no_timeout(aws: Moto) -> None:
    """``timeout=None`` is no limit, for a run that may stand still."""
    task = await Replication.of(aws, finishes_at_check=2)
    state, clock = State("r"), FakeClock()
    root = partial(task.root, timeout=None)
    assert isinstance(await asteps.reconcile(root, state=state, name="r", clock=clock), Pending)
    clock.advance(1_000_000)
    assert isinstance(await asteps.reconcile(root, state=state, name="r", clock=clock), Done)


def test_errors_survive_pickle_and_copy() -> None:
    """The error keeps what it says."""
    error = WaiterFailedError("a/b", "image_available", "'ami-1'", "it failed")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is WaiterFailedError
        assert str(again) == str(error)
        assert (again.path, again.waiter, again.task, again.reason, again.failure) == (
            *("a/b", "image_available", "'ami-1'", "it failed"),
            error.failure,
        )


# --- misuse ---------------------------------------------------------------------------------------

IMAGE = {"ImageIds": ["ami-1"]}


@pytest.mark.parametrize(
    ("service", "waiter", "params", "message"),
    [
        ("ec2", "image_availabel", lambda i: IMAGE, "no waiter 'image_availabel': did you mean"),
        ("ec2", "ImageAvailable", lambda i: IMAGE, "did you mean 'image_available'"),
        ("ec2", "table_exists", lambda i: IMAGE, "a client of 'ec2' has no waiter 'table_exists'"),
        ("sts", "table_exists", lambda i: IMAGE, "no waiter 'table_exists': There are none"),
        ("ec2", "image_available", None, "a function that makes them of the ID"),
        ("ec2", "image_available", IMAGE, "a function that makes them of the ID .* not dict"),
        ("ec2", "image_available", lambda i: None, "as a mapping, not NoneType"),
        (
            "ec2",
            "image_available",
            lambda i: {"ImageId": i},
            "DescribeImages, which waiter",
        ),
        (None, "image_available", lambda i: IMAGE, "needs a client of boto3 or aiobotocore, not"),
    ],
    ids=[
        *("typo", "model's name", "of another service", "service without", "no params"),
        *("no function", "no mapping", "wrong name", "no client"),
    ],
)
async def test_misuse(
    aws: Moto, service: str | None, waiter: str, params: Any, message: str
) -> None:
    """Misuse is told before anything is started (or, of a function, when it can be known)."""
    starts: list[str] = []

    def start() -> str:
        starts.append("")
        return "ami-1"

    client: Any = object() if service is None else aws.client(service)

    async def root(s: Step) -> None:
        try:
            await wait_until(s, "image", client, waiter, start=start, params=params)
        except Exception as exc:
            raise AssertionError("misuse cannot be caught") from exc

    state = State("r")
    with pytest.raises(UsageError, match=message):
        await asteps.run(root, state=state, name="r", clock=FakeClock())
    known_late = message.startswith(("as a mapping", "DescribeImages"))
    assert len(starts) == known_late
    assert not state.failed
    assert state.child("image") is None or not state.get("image").errs


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, 'Missing required parameter in input: "TableName"'),
        ({"Table": "t", "TableName": "t"}, 'Unknown parameter in input: "Table"'),
        ({"TableName": 5}, "Invalid type for parameter TableName"),
        (None, "a mapping, for without start= there is no ID"),
        (dict, "a mapping, for without start= there is no ID to make them of; not type"),
    ],
    ids=["missing", "unknown", "type", "none", "function"],
)
async def test_misuse_without_start(aws: Moto, params: Any, message: str) -> None:
    """Parameters that are known beforehand are checked beforehand, by botocore's own rules."""

    async def root(s: Step) -> None:
        await wait_until(s, "table", aws.client("dynamodb"), "table_exists", params=params)

    state = State("r")
    with pytest.raises(UsageError, match=message):
        await asteps.run(root, state=state, name="r", clock=FakeClock())
    assert state.child("table") is None


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda answer: None, "result= of step 'replication' returned None"),
        (lambda answer: answer, "cannot be stored|comes back from JSON"),
        (lambda answer: answer["ReplicationInstances"][0], "comes back from JSON"),
        (5, "a step runs a function, not int"),
    ],
    ids=["none", "all", "times", "no function"],
)
async def test_a_result_that_cannot_come_back(aws: Moto, result: Any, message: str) -> None:
    """A result is checked as every step's is; corrected code goes on with the same ID."""
    task = await Replication.of(aws, finishes_at_check=1)
    state = State("r")
    with pytest.raises(UsageError, match=message):
        await asteps.run(partial(task.root, result=result), state=state, name="r")
    outcome, _ = await to_the_end(task.root, state=state)
    assert isinstance(outcome, Done)
    assert len(task.starts) == 1


def test_without_botocore() -> None:
    """What is missing is said on import, with what to install."""
    script = "import sys; sys.modules['botocore'] = None; import asteps.integrations.aws"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "asteps.errors.MissingDependencyError: 'botocore' is not installed: "
        "pip install 'asteps[aws]'"
    )


# --- aiobotocore ----------------------------------------------------------------------------------
#
# On asyncio alone, which is where its usual transport runs; and without the guard against blocking
# calls, for it reads botocore's files on the loop when it makes a client.


def on_asyncio(test: Callable[[Moto], Awaitable[None]]) -> Callable[[Moto], None]:
    """Run this test there and only there."""

    def run_it(aws: Moto) -> None:
        anyio.run(test, aws, backend="asyncio")

    run_it.__doc__ = test.__doc__
    return run_it


@asynccontextmanager
async def async_client(aws: Moto, service: str) -> AsyncIterator[Any]:
    """A client of aiobotocore."""
    async with get_session().create_client(service, endpoint_url=aws.url, **KEYS) as client:
        yield client


@on_asyncio
async def test_aiobotocore(aws: Moto) -> None:
    """A client of aiobotocore is awaited on the event loop; all else is the same."""
    task = await Replication.of(aws, finishes_at_check=3)
    async with async_client(aws, "dms") as client:

        async def start() -> str:
            task.starts.append("")
            made = await client.create_replication_instance(
                ReplicationInstanceIdentifier="r1", ReplicationInstanceClass="dms.t3.micro"
            )
            arn: str = made["ReplicationInstance"]["ReplicationInstanceArn"]
            return arn

        async def root(s: Step) -> str:
            return await wait_until(
                s,
                "replication",
                client,
                "replication_instance_available",
                start=start,
                params=task.params,
            )

        clock, storage = FakeClock(), MemoryStore()
        first = FaultyStore(storage.client(), lambda save: "crash after" if task.starts else None)
        with pytest.raises(Crash):
            await asteps.run(root, store=first, id="r", name="r", clock=clock)
        assert task.calls == 0, "it was killed between start and the first check"
        second = storage.client()
        assert (await asteps.run(root, store=second, id="r", name="r", clock=clock)).startswith(ARN)
    assert (len(task.starts), task.calls) == (1, 3)
    assert clock.slept == [60, 60]


@on_asyncio
async def test_aiobotocore_errors(aws: Moto) -> None:
    """Expected errors, failure states and misuse are what they are with boto3."""
    instance = await anyio.to_thread.run_sync(terminated_instance, aws)
    async with async_client(aws, "ec2") as client:

        async def failing(s: Step) -> None:
            await wait_until(
                s, "launch", client, "instance_running", params={"InstanceIds": [instance]}
            )

        async def unknown(s: Step) -> None:
            await wait_until(s, "image", client, "image_available", params=IMAGE)

        async def waiting(s: Step) -> None:
            await wait_until(s, "key", client, "key_pair_exists", params={"KeyNames": ["none"]})

        async def wrong(s: Step) -> None:
            await wait_until(
                s, "image", client, "image_available", start=_text, params=lambda i: {"Id": i}
            )

        failed, _ = await to_the_end(failing)
        assert isinstance(failed, Failed)
        assert failed.error.is_a(WaiterFailedError)
        odd, _ = await to_the_end(unknown)
        assert isinstance(odd, Failed)
        assert odd.error.is_a(ClientError)
        outcome = await asteps.reconcile(waiting, state=State("r"), name="r")
        assert isinstance(outcome, Pending)
        with pytest.raises(UsageError, match='Unknown parameter in input: "Id"'):
            await asteps.run(wrong)


def _text() -> str:
    return "some ID"


# --- all of them ----------------------------------------------------------------------------------


class GoneSoFarError(Exception):
    """Everything before ``start`` went well."""


def _refuse() -> dict[str, object]:
    raise GoneSoFarError


def test_all_waiters_of_all_services() -> None:
    """Every waiter that botocore ships can be set up with a client of its service."""
    session = boto3.session.Session(**KEYS)

    async def root(s: Step) -> list[str]:
        found = []
        for service in session.get_available_services():
            client = session.client(service)
            for waiter in client.waiter_names:
                name = f"{service} {waiter}"
                with pytest.raises(StepError) as raised:
                    await wait_until(s, name, client, waiter, start=_refuse, params=dict)
                assert raised.value.is_a(GoneSoFarError), name
                found.append(name)
        return found

    assert len(anyio.run(asteps.run, root)) > 350
