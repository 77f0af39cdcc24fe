"""Long-running operations as steps: in Google's shape, in Azure's, as mappings and as objects."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from clocks import FakeClock

import asteps
from asteps import Done, Failed, Pending, Retry, State, Step, UsageError
from asteps.integrations.operations import OperationFailedError, run_operation
from asteps.stores.memory import MemoryStore
from asteps.testing import Crash, FaultyStore
from asteps.testing._faulty import Save, SaveFault

# --- a pretended service --------------------------------------------------------------------------


class Service:
    """It answers with these, one after the other; the last one stays.

    Attributes:
        begun: The tokens with which an operation was asked for.
        asked: The names that were asked for.
    """

    def __init__(self, first: Any, *answers: Any) -> None:
        self.first = first
        self.answers = list(answers)
        self.begun: list[str] = []
        self.asked: list[str] = []

    def begin(self, token: str = "") -> Any:
        self.begun.append(token)
        return self.first

    def get(self, name: str) -> Any:
        self.asked.append(name)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def begin_async(self, token: str = "") -> Any:
        return self.begin(token)

    async def get_async(self, name: str) -> Any:
        return self.get(name)

    async def root(self, s: Step, **options: Any) -> Any:
        begin = partial(self.begin, s.token_for("build"))
        return await run_operation(s, "build", begin, self.get, **{"every": 10, **options})

    async def root_async(self, s: Step, **options: Any) -> Any:
        begin = partial(self.begin_async, s.token_for("build"))
        return await run_operation(s, "build", begin, self.get_async, **{"every": 10, **options})


async def to_the_end(
    root: Any, *, state: State | None = None, recover: bool = False
) -> tuple[Done[Any] | Failed, FakeClock]:
    """What a run comes to that waits in place, and its clock."""
    clock = FakeClock()
    outcome = await asteps.reconcile(
        root, state=state or State("r"), name="r", clock=clock, max_wait=10_000_000, recover=recover
    )
    assert not isinstance(outcome, Pending)
    return outcome, clock


@dataclass
class Status:
    """As a protobuf object has it, also where there is no error."""

    code: int = 0
    message: str = ""


@dataclass
class Operation:
    """An object of Google's libraries, as far as it matters."""

    name: str
    done: bool = False
    error: Status = field(default_factory=Status)
    response: object = None


GOOGLE = "operations/42"
AZURE = "https://example.org/jobs/42/status"

# --- done -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "answers", "name", "result"),
    [
        (
            {"name": GOOGLE},
            [{"name": GOOGLE}, {"name": GOOGLE, "done": True, "response": {"image": "i"}}],
            GOOGLE,
            {"image": "i"},
        ),
        (
            {"name": GOOGLE, "done": False, "metadata": {"progress": 0}},
            [{"done": False}, MappingProxyType({"done": True, "response": {}})],
            GOOGLE,
            {},
        ),
        (
            Operation(GOOGLE),
            [Operation(GOOGLE), Operation(GOOGLE, done=True, response={"image": "i"})],
            GOOGLE,
            {"image": "i"},
        ),
        (
            {"Operation-Location": AZURE, "id": "42", "name": "a resource"},
            [{"id": "42", "status": "Running"}, {"status": "Succeeded", "result": {"image": "i"}}],
            AZURE,
            {"image": "i"},
        ),
        (
            {"azure-asyncoperation": AZURE},
            [{"status": "NotStarted"}, {"status": "succeeded"}],
            AZURE,
            {},
        ),
        ({"id": "42"}, [{"status": "Running"}, {"status": "Succeeded", "error": None}], "42", {}),
        (
            SimpleNamespace(id="42"),
            [SimpleNamespace(status="Running"), SimpleNamespace(status="Succeeded", result=[1])],
            "42",
            [1],
        ),
    ],
    ids=["google", "google, more", "object", "azure", "older azure", "id", "azure's object"],
)
@pytest.mark.parametrize("way", ["root", "root_async"])
async def test_done(first: Any, answers: list[Any], name: str, result: object, way: str) -> None:
    """It is asked for by its name until it is done, and what came of it is the step's result."""
    service = Service(first, *answers)
    outcome, clock = await to_the_end(getattr(service, way))
    assert isinstance(outcome, Done)
    assert outcome.value == result
    assert service.asked == [name, name]
    assert clock.slept == [10]
    assert outcome.state.get("build").info_as(dict)["taskId"] == name


async def test_functions_that_return_awaitables() -> None:
    """A function that is not async but returns something to await will do."""
    service = Service({"name": "x"}, {"done": True, "response": 5})

    async def root(s: Step) -> int:
        found = await run_operation(
            s, "build", lambda: service.begin_async("token"), plain(service.get_async), every=1
        )
        assert isinstance(found, int)
        return found

    outcome, _ = await to_the_end(root)
    assert isinstance(outcome, Done)
    assert outcome.value == 5


def plain(fn: Callable[[str], Awaitable[object]]) -> Callable[[str], object]:
    """The same function, as one that is not async."""

    def call(name: str) -> object:
        return fn(name)

    return call


@dataclass
class Image:
    id: str
    size: int


async def test_result() -> None:
    """``result=`` makes the step's result of the whole operation, typed by its annotation."""
    service = Service(Operation("x"), Operation("x", done=True, response=Image("i", 5)))

    def image(operation: Operation) -> Image:
        assert isinstance(operation.response, Image)
        return operation.response

    async def root(s: Step) -> Image:
        return await run_operation(s, "build", service.begin, service.get, result=image, every=1)

    outcome, _ = await to_the_end(root)
    assert isinstance(outcome, Done)
    assert outcome.value == Image("i", 5)


async def test_retry_after() -> None:
    """Where the service says when to ask again, in headers say, it is asked then."""
    running = {"status": "Running"}
    service = Service(
        {"operation-location": AZURE},
        {**running, "Retry-After": "30"},
        {**running, "retry_after": 2.5},
        running,
        {**running, "Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"},
        {**running, "Retry-After": "-1"},
        {**running, "Retry-After": "inf"},
        {"status": "Succeeded"},
    )
    for way in (service.root, service.root_async):
        answers = service.answers.copy()
        outcome, clock = await to_the_end(way)
        assert isinstance(outcome, Done)
        assert clock.slept == [30, 2.5, 10, 10, 10, 10]
        service.answers = answers


# --- crashes --------------------------------------------------------------------------------------


async def test_killed_between_begin_and_the_first_question() -> None:
    """Once the name is stored nothing is begun again; before that it is, with the same token."""
    service = Service({"name": GOOGLE}, {"name": GOOGLE}, {"done": True, "response": "image"})
    storage, clock = MemoryStore(), FakeClock()

    async def run(store: Any) -> object:
        return await asteps.run(service.root, store=store, id="r", name="r", clock=clock)

    faults: list[SaveFault] = ["crash before", "crash after"]  # of the save after each begin
    while faults:
        begun = len(service.begun)

        def once_begun(save: Save, before: int = begun) -> SaveFault | None:
            return faults.pop(0) if len(service.begun) > before else None

        store = FaultyStore(storage.client(), once_begun)
        with pytest.raises(Crash):
            await run(store)
        assert service.asked == []
    assert await run(storage.client()) == "image"
    assert len(service.begun) == 2
    assert len(set(service.begun)) == 1
    assert service.asked == [GOOGLE, GOOGLE]
    assert await run(storage.client()) == "image"
    assert service.asked == [GOOGLE, GOOGLE], "a step that is done asks nobody"


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            {"name": "x", "done": True, "error": {"code": 8, "message": "no quota"}},
            "failed with code 8: no quota",
        ),
        (Operation("x", done=True, error=Status(8, "no quota")), "failed with code 8: no quota"),
        (
            {"status": "Failed", "error": {"code": "NoQuota", "message": "none"}},
            "failed with code NoQuota: none",
        ),
        ({"status": "Canceled"}, "failed with code Canceled: no reason was given"),
        ({"status": "cancelled", "error": {}}, "failed with code cancelled: no reason was given"),
        ({"done": True, "error": {"message": "odd"}}, "failed with code unknown: odd"),
    ],
    ids=["google", "object", "azure", "cancelled", "without error", "without code"],
)
async def test_failed(answer: Any, message: str) -> None:
    """An operation that failed fails the step for good, and says what the service said."""
    service = Service({"name": "x"}, {"name": "x"}, answer)
    state = State("r")

    async def root(s: Step) -> Any:
        return await s.do("outer", service.root, retry=Retry(attempts=5))

    for _ in range(2):
        outcome, _ = await to_the_end(root, state=state)
        assert isinstance(outcome, Failed)
        assert outcome.error.is_a(OperationFailedError)
        assert outcome.error.origin == "outer/build"
        failure = state.get("outer/build").failure
        assert failure is not None
        assert failure.message == f"operation 'x' {message}"
        assert failure.final
    assert len(service.asked) == 2
    await to_the_end(root, state=state, recover=True)
    assert (len(service.begun), len(service.asked)) == (1, 3)


async def test_retry() -> None:
    """``retry=`` is for the calls; the name is kept."""
    error = ConnectionError("busy")
    service = Service({"name": "x"}, error, {"name": "x"}, error, {"done": True, "response": 5})
    retry = Retry(attempts=4, delay=1, factor=1, jitter=0)
    outcome, clock = await to_the_end(partial(service.root, retry=retry))
    assert isinstance(outcome, Done)
    assert clock.slept == [1, 10, 1]
    assert (len(service.begun), len(service.asked)) == (1, 4)


async def test_timeout() -> None:
    """``timeout=`` is durable, and the wish of the service does not stretch it."""
    service = Service({"name": "x"}, {"name": "x", "Retry-After": 1_000})
    outcome, clock = await to_the_end(partial(service.root, timeout=2_500))
    assert isinstance(outcome, Failed)
    assert outcome.error.is_a(TimeoutError)
    assert sum(clock.slept) == 2_500


def test_errors_survive_pickle_and_copy() -> None:
    """The error keeps what it says."""
    error = OperationFailedError("a/b", "operations/42", 8, "no quota")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is OperationFailedError
        assert str(again) == str(error)
        assert (again.path, again.operation, again.code, again.reason, again.failure) == (
            *("a/b", "operations/42", 8, "no quota"),
            error.failure,
        )


# --- misuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "answer", "options", "message"),
    [
        ({"done": False}, {}, {}, "what start of step 'build' returned has no name .* with done"),
        ({}, {}, {}, "in a mapping with nothing in it"),
        ({"name": ""}, {}, {}, "has no name to ask for it by"),
        ("operations/42", {}, {}, "has no name to ask for it by: .* in str"),
        ({"name": "x"}, {"state": "RUNNING"}, {}, "is no operation: neither done, .* with state"),
        ({"name": "x"}, None, {}, "is no operation: .* in NoneType"),
        ({"name": "x"}, {"done": True, "response": object()}, {}, "cannot be stored as JSON"),
        ({"name": "x"}, {"done": True}, {"result": lambda op: None}, "returned None"),
        ({"name": "x"}, {"done": True}, {"result": 5}, "a step runs a function, not int"),
        ({"name": "x"}, {"done": True}, {"every": 0}, "it must be above 0"),
        ({"name": "x"}, {"done": True}, {"tries": 3}, "tries"),
    ],
    ids=[
        *("no name", "nothing", "empty", "a name", "no operation", "none", "no JSON"),
        *("no result", "no function", "every", "option"),
    ],
)
async def test_misuse(first: Any, answer: Any, options: dict[str, Any], message: str) -> None:
    """What cannot be an operation, or be kept, is told; the step has not failed by it."""
    service = Service(first, answer)
    state = State("r")
    with pytest.raises(UsageError, match=message):
        await asteps.run(partial(service.root, **options), state=state, name="r", clock=FakeClock())
    assert not state.failed
    assert state.child("build") is None or not state.get("build").errs
