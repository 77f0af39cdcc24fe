"""``s.do`` and ``s.call``: run once, recorded, and the same on every later pass."""

from __future__ import annotations

import enum
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from types import FrameType
from typing import Any
from uuid import UUID

import attrs
import msgspec
import pytest
from anyio.lowlevel import checkpoint
from clocks import FakeClock

import asteps
from asteps import Done, DuplicateStepError, Failed, Pending, Retry, State, Step, UsageError
from asteps._state import Detail
from asteps.stores.memory import MemoryStore

# --- helpers --------------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Nic:
    name: str
    speed: float = 1.0


@dataclass(frozen=True)
class Report:
    nics: list[Nic]
    at: datetime
    labels: dict[str, tuple[int, ...]]


@attrs.define
class Disk:
    size: int
    kind: Color


class Spec(msgspec.Struct, frozen=True):
    id: UUID
    tags: frozenset[str]


class Cloud:
    """A client of something, as users write them."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def quota(self, vm: str) -> int:
        self.calls.append(vm)
        return len(vm)

    def mail(self, vm: str) -> str:
        self.calls.append(vm)
        return f"to {vm}"

    async def move(self, s: Step, vm: str) -> str:
        self.calls.append(vm)
        return f"{s.path}: {vm}"


class AsyncCallable:
    async def __call__(self, number: int) -> int:
        await checkpoint()
        return number + 1


class SyncCallable:
    __hash__ = None  # type: ignore[assignment]  # as a callable dataclass has it

    def __call__(self, number: int) -> int:
        return number + 2


async def give(value: Any) -> Any:
    """A function that does not say what it returns."""
    return value


async def one(s: Step) -> int:
    """The shortest body."""
    return 1


def came_to(state: State) -> dict[str, str]:
    """What every step of a tree came to, by path."""
    kinds = ("done", "failed", "pending", "proceeding")
    return {
        path: next((kind for kind in kinds if getattr(node, kind)), "nothing")
        for path, node in state.walk()
    }


def reborn(state: State) -> State:
    """The tree as another process finds it."""
    return State.decode(state.encode())


async def done(fn: Callable[..., Awaitable[Any]], *args: Any, **keywords: Any) -> Done[Any]:
    """One pass that must end the run."""
    outcome = await asteps.reconcile(fn, *args, **keywords)
    assert isinstance(outcome, Done), outcome
    return outcome


# --- both forms, all kinds of functions -----------------------------------------------------------


async def test_do_and_call_in_both_forms() -> None:
    """A step is named by hand or after its function; arguments go where the function wants them."""
    cloud = Cloud()

    async def root(s: Step, vm: str) -> list[object]:
        return [
            await s.do("named", cloud.move, vm),
            await s.do(cloud.move, vm),
            await s.do(one),
            await s.call("asked", cloud.quota, vm),
            await s.call(cloud.quota, vm),
            await s.call("mailed", cloud.mail, vm),
            await s.call(cloud.mail, vm),
        ]

    outcome = await done(root, "vm")
    assert outcome.value == ["named: vm", "move: vm", 1, 2, 2, "to vm", "to vm"]
    assert came_to(outcome.state) == dict.fromkeys(
        ["", "named", "move", "one", "asked", "quota", "mailed", "mail"], "done"
    )
    assert cloud.calls == ["vm"] * 6


async def test_call_takes_any_callable() -> None:
    """Partials, callable objects, lambdas, classes and builtins can all be called."""

    async def root(s: Step) -> list[object]:
        return [
            await s.call("partial", partial(partial(give, value=3))),
            await s.call("async object", AsyncCallable(), 1),
            await s.call("sync object", SyncCallable(), 1),
            await s.call("partial of object", partial(AsyncCallable(), 5)),
            await s.call("lambda", lambda: 7),
            await s.call("lambda that awaits", lambda: give("awaited")),
            await s.call("class", Nic, "eth0", 2.0),
            await s.call("builtin", len, "four"),
            await s.call("method", "a-b".split, "-"),
        ]

    values = [3, 2, 3, 6, 7, "awaited", Nic("eth0", 2.0), 4, ["a", "b"]]
    state = State("r")
    first = await asteps.run(root, state=state)
    assert first == [*values[:6], {"name": "eth0", "speed": 2.0}, *values[7:]]
    outline = came_to(state)
    assert len(outline) == 10
    assert set(outline.values()) == {"done"}


async def test_do_takes_any_callable() -> None:
    """A body may be a partial, a callable object, or a sync function that returns an awaitable."""

    class Body:
        async def __call__(self, s: Step, number: int) -> str:
            return f"{s.name} {number}"

    async def body(s: Step, number: int) -> str:
        return f"{s.name} {number}"

    def later(s: Step, number: int) -> Awaitable[str]:
        return body(s, number)

    async def root(s: Step) -> list[str]:
        return [
            await s.do("partial", partial(body, number=1)),
            await s.do("object", Body(), 2),
            await s.do("lambda", lambda child: body(child, 3)),
            await s.do("later", later, 4),
            await s.do("long way", later, 5, timeout=9),
        ]

    assert (await done(root)).value == [
        "partial 1",
        "object 2",
        "lambda 3",
        "later 4",
        "long way 5",
    ]


async def test_sync_functions_run_in_a_worker_thread() -> None:
    """`call` runs a sync function beside the loop, a step's own body and async functions in it."""
    here = threading.get_ident()
    threads: dict[str, bool] = {}

    def note(who: str) -> None:
        threads[who] = threading.get_ident() == here

    async def anote(who: str) -> None:
        note(who)

    async def body(s: Step) -> None:
        note("body")

    def awaited() -> Awaitable[None]:
        note("before the awaitable")
        return anote("awaitable")

    async def root(s: Step) -> None:
        await s.call("sync", note, "sync")
        await s.call("async", anote, "async")
        await s.call("awaited", awaited)
        await s.do("body", body)

    await done(root)
    assert threads == {
        "sync": False,
        "async": True,
        "before the awaitable": False,
        "awaitable": True,
        "body": True,
    }


async def test_a_step_knows_itself() -> None:
    """Name, path (with RFC 6901 escapes), run id, attempt, interruptions, epoch and state."""
    seen: list[tuple[object, ...]] = []

    async def leaf(s: Step) -> None:
        node = s.state
        seen.append((s.name, s.path, s.run_id, s.attempt, s.interruptions, s.epoch))
        assert (node.name, node.started, node.done, node.states) == (s.name, True, False, None)
        node.name = "a snapshot"
        assert s.state.name == s.name

    async def branch(s: Step) -> None:
        await s.do("~x", leaf)

    async def root(s: Step) -> None:
        seen.append((s.name, s.path, s.run_id, s.attempt, s.interruptions, s.epoch))
        await s.do("a/b", branch)
        with pytest.raises(ValueError, match="known when the block"):
            _ = s.outcome

    state = (await done(root, name="mine")).state
    assert seen == [("mine", "", None, 1, 0, 0), ("~x", "a~1b/~0x", None, 1, 0, 0)]
    assert came_to(state) == dict.fromkeys(["", "a~1b", "a~1b/~0x"], "done")
    assert state.get("a~1b/~0x").name == "~x"

    seen.clear()
    await done(root, name="mine", store=MemoryStore(), id="run-1")
    assert seen == [("mine", "", "run-1", 1, 0, 1), ("~x", "a~1b/~0x", "run-1", 1, 0, 1)]


# --- what is recorded is the answer ---------------------------------------------------------------


@pytest.mark.parametrize("stored", [True, False], ids=["store", "state"])
async def test_a_done_step_is_not_run_again(stored: bool) -> None:
    """A later pass gives the recorded results and runs no body; code between steps runs again."""
    ran: list[str] = []
    passes = 0
    clock = FakeClock()

    async def leaf(s: Step) -> str:
        ran.append(s.path)
        return s.path.upper()

    def plain(name: str) -> str:
        ran.append(name)
        return name * 2

    async def branch(s: Step) -> list[str]:
        ran.append(s.path)
        return [await s.do("x", leaf), await s.call("y", plain, "y")]

    async def root(s: Step) -> list[object]:
        nonlocal passes
        passes += 1
        got: list[object] = [await s.do("leaf", leaf), await s.do("branch", branch)]
        got.append(await s.call(plain, "p"))
        if passes == 1:
            s.pending(after=60)
        return got

    store, state = MemoryStore(), State("r")

    def where() -> dict[str, Any]:
        return {"store": store.client(), "id": "x"} if stored else {"state": state}

    first = await asteps.reconcile(root, **where(), clock=clock)
    assert isinstance(first, Pending)
    assert ran == ["leaf", "branch", "branch/x", "y", "p"]
    state = reborn(state)
    clock.advance(61)
    outcome = await asteps.reconcile(root, **where(), clock=clock)
    assert isinstance(outcome, Done)
    assert outcome.value == ["LEAF", ["BRANCH/X", "yy"], "pp"]
    assert ran == ["leaf", "branch", "branch/x", "y", "p"]
    assert passes == 2

    state = reborn(state)
    again = await asteps.reconcile(root, **where(), clock=clock)  # a finished run is not entered
    assert isinstance(again, Done)
    assert again.value == outcome.value
    assert passes == 2


VALUES: list[tuple[object, object]] = [
    (None, None),
    (True, bool),
    (3, float),
    (10**30, int),
    ("\u20ac \x00 \U0001f600", str),
    (b"\x00\xff", bytes),
    (1.5e300, float),
    (Decimal("1.10"), Decimal),
    (Color.RED, Color),
    (Level.HIGH, Level),
    (datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), datetime),
    (date(2026, 1, 2), date),
    (timedelta(days=1, microseconds=5), timedelta),
    (UUID(int=7), UUID),
    (Nic("eth0", 2.5), Nic),
    (
        Report([Nic("a"), Nic("b", 9.0)], datetime(2026, 1, 2, tzinfo=UTC), {"x": (1, 2)}),
        Report,
    ),
    (Disk(5, Color.RED), Disk),
    (Spec(UUID(int=1), frozenset({"a", "b"})), Spec),
    ((1, "two", (3.0,)), tuple[int, str, tuple[float]]),
    ({1, 2, 3}, set[int]),
    (frozenset({"x"}), frozenset[str]),
    ({"a": {UUID(int=2)}}, dict[str, set[UUID]]),
    ({1: "one"}, dict[int, str]),
    (Nic("n"), Nic | None),
    ([Nic("n"), None], list[Nic | None]),
]


@pytest.mark.parametrize(("value", "kind"), VALUES, ids=lambda v: str(v)[:20])
async def test_the_first_pass_gives_what_a_later_pass_gives(value: object, kind: object) -> None:
    """A result is the same, in value and type, when it is made and when it is recorded."""
    got: list[Any] = []

    async def body(s: Step) -> Any:
        return value

    async def root(s: Step) -> None:
        got.append(await s.do("do", body, returns=kind))
        got.append(await s.call("call", give, value, returns=kind))
        got.append(await s.do("long way", body, returns=kind, timeout=5))
        if len(got) == 3:
            s.pending(after=1)

    state, clock = State("r"), FakeClock()
    assert isinstance(await asteps.reconcile(root, state=state, clock=clock), Pending)
    clock.advance(2)
    assert isinstance(await asteps.reconcile(root, state=reborn(state), clock=clock), Done)
    assert got == [value] * 6
    assert len({type(g) for g in got}) == 1
    assert isinstance(got[0], float if kind is float else type(value))


async def test_results_come_back_as_their_annotation_says() -> None:
    """Both passes give the annotated type where the body returns something that only fits it."""

    async def whole() -> float:
        return 3

    async def pair() -> tuple[int, int]:
        return [1, 2]  # type: ignore[return-value]

    async def nic() -> Nic:
        return {"name": "eth0"}  # type: ignore[return-value]

    got: list[list[object]] = []

    async def root(s: Step) -> None:
        got.append([await s.call(whole), await s.call(pair), await s.call(nic)])
        if len(got) == 1:
            s.pending(after=1)

    await asteps.run(root, clock=FakeClock())
    assert got == [[3.0, (1, 2), Nic("eth0")]] * 2
    assert [[type(v) for v in g] for g in got] == [[float, tuple, Nic]] * 2


async def test_a_result_is_a_copy_of_its_own() -> None:
    """What a caller does to a result changes neither the record nor what its maker still holds."""
    kept = {"nics": ["a"]}

    async def body(s: Step) -> dict[str, list[str]]:
        return kept

    async def root(s: Step) -> dict[str, list[str]]:
        got = await s.do("x", body)
        got["nics"].append("b")
        return got

    outcome = await done(root)
    assert outcome.value == {"nics": ["a", "b"]}
    assert kept == {"nics": ["a"]}
    assert outcome.state.get("x").result_as(dict) == {"nics": ["a"]}


# --- names ----------------------------------------------------------------------------------------


async def test_an_empty_name_is_the_place_in_the_body() -> None:
    """``""`` becomes ``#i``, where i counts all steps before it; on every pass alike."""
    ran: list[str] = []

    async def note(s: Step) -> str:
        ran.append(s.path)
        return s.path

    async def root(s: Step) -> list[str]:
        got = [
            await s.do("", note),
            await s.do("named", note),
            await s.call("", give, "third"),
            await s.do("", note),
        ]
        if len(ran) == 3:
            ran.append("waited")
            s.pending(after=1)
        return got

    clock, state = FakeClock(), State("r")
    assert await asteps.run(root, state=state, clock=clock) == ["#0", "named", "third", "#3"]
    assert ran == ["#0", "named", "#3", "waited"]
    assert came_to(state) == dict.fromkeys(["", "#0", "named", "#2", "#3"], "done")


@pytest.mark.parametrize("name", ["x", "\u00fcber", "a b", " ", "a/b", "~", "x" * 200])
async def test_names(name: str) -> None:
    """A name has 1 to 200 characters of any script, and answers on the next pass."""
    calls: list[str] = []

    async def root(s: Step) -> None:
        await s.call(name, SyncAppend(calls), name)
        if len(calls) == 1:
            calls.append("waited")
            s.pending(after=1)

    store = MemoryStore()
    await asteps.run(root, store=store, id="x", clock=FakeClock())
    assert calls == [name, "waited"]
    state = await asteps.load_state(store, "x")
    assert state is not None
    assert [child.name for child in state.states or ()] == [name]


class SyncAppend:
    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    async def __call__(self, name: str) -> None:
        self.calls.append(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("#0", r"step name '#0' begins with '#', which is kept for asteps"),
        ("$end", r"step name '\$end' begins with '\$', which is kept for asteps"),
        ("x" * 201, r"a step's name has 1 to 200 characters, 'x+' has 201"),
        ("a\nb", r"step name 'a\\nb' holds control characters or surrogates"),
        ("\x7f", r"control characters or surrogates"),
        ("\u00e9\x85", r"control characters or surrogates"),
        ("\ud800", r"control characters or surrogates"),
        (5, r"a step's name is a str, not int: 5"),
        (None, r"a step's name is a str, not NoneType: None"),
        (b"x", r"a step's name is a str, not bytes: b'x'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["do", "call", "options"])
async def test_bad_names(name: Any, message: str, way: str) -> None:
    """A name that is not allowed is refused with the reason, before the body runs."""
    ran: list[int] = []

    async def body(*args: object) -> None:
        ran.append(1)

    async def root(s: Any) -> None:
        if way == "options":
            await s.do(name, body, timeout=5)
        else:
            await getattr(s, way)(name, body)

    state = State("r")
    with pytest.raises(UsageError, match=message):
        await asteps.run(root, state=state)
    assert ran == []
    assert came_to(state) == {"": "proceeding"}


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda s: s.do("x"), "a step needs a function"),
        (lambda s: s.call("x"), "a step needs a function"),
        (lambda s: s.do("x", 5), "a step runs a function, not int"),
        (lambda s: s.do("x", None, timeout=3), "a step runs a function, not NoneType"),
        (lambda s: s.do(lambda child: give(1)), "has no name of its own: pass one"),
        (lambda s: s.do(partial(one)), "has no name of its own: pass one"),
        (lambda s: s.call(AsyncCallable(), 1), "AsyncCallable has no name of its own"),
        (lambda s: s.do("x", Nic, "eth0"), "Nic takes a step, so it must be async"),
        (lambda s: s.do("x", one, 1, 2), "cannot be called"),
    ],
    ids=[
        *("no function", "no function to call", "number", "none", "lambda", "partial", "object"),
        *("sync body", "wrong arguments"),
    ],
)
async def test_bad_functions(use: Callable[[Any], Awaitable[object]], message: str) -> None:
    """What cannot be a step's function, or not with these arguments, is misuse."""

    async def root(s: Step) -> None:
        await use(s)

    state = State("r")
    with pytest.raises(UsageError, match=message):
        await asteps.run(root, state=state)
    assert "failed" not in came_to(state).values()


# --- one name, one step ---------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["do", "call", "options"])
@pytest.mark.parametrize("recorded", [False, True], ids=["new", "recorded"])
async def test_a_name_is_used_once(again: str, recorded: bool) -> None:
    """The second use of a name in one execution of a body is `DuplicateStepError`."""
    ran: list[str] = []

    async def body(s: Step) -> None:
        ran.append(s.path)

    async def parent(s: Step, twice: bool) -> None:
        await s.do("x/y", body)
        if not twice:
            s.pending(after=1)
        if again == "do":
            await s.do("x/y", body)
        elif again == "call":
            await s.call("x/y", give, 1)
        else:
            await s.do("x/y", body, timeout=5)

    async def root(s: Step, twice: bool) -> None:
        await s.do("p", parent, twice)

    state, clock = State("r"), FakeClock()
    if recorded:
        assert isinstance(await asteps.reconcile(root, False, state=state, clock=clock), Pending)
        clock.advance(2)
    with pytest.raises(DuplicateStepError, match=r"step 'p/x~1y' was already used") as raised:
        await asteps.reconcile(root, True, state=state, clock=clock)
    assert raised.value.path == "p/x~1y"
    assert ran == ["p/x~1y"]
    assert came_to(state) == {"": "proceeding", "p": "proceeding", "p/x~1y": "done"}


async def test_rerun_bodies_may_use_their_names_again() -> None:
    """Names are counted anew in each execution: in-place reruns, retries and other parents."""
    tries: list[str] = []

    async def one_more() -> int:
        return 1

    async def flaky(s: Step) -> int:
        first: int = await s.call("a", give, 1)
        tries.append(s.path)
        if len(tries) == 1:
            s.pending(after=5)
        if len(tries) == 2:
            raise ConnectionError
        await s.call("", give, 1)
        return first + await s.call("b", one_more)

    async def root(s: Step) -> list[int]:
        return [await s.do("p", flaky, retry=Retry()), await s.do("q", flaky)]

    state = State("r")
    assert await asteps.run(root, state=state, clock=FakeClock()) == [2, 2]
    assert tries == ["p", "p", "p", "q"]
    assert came_to(state) == dict.fromkeys(
        ["", "p", "p/a", "p/#1", "p/b", "q", "q/a", "q/#1", "q/b"], "done"
    )


# --- depth ----------------------------------------------------------------------------------------


async def under(frames: int, fn: Callable[[], Awaitable[Any]]) -> Any:
    """Call from below this many frames of somebody else."""
    return await (under(frames - 1, fn) if frames else fn())


def looks(depth: int) -> int:
    """How many nodes are looked at to say that a tree is pending, whose deepest step is."""
    node = State("leaf", _started=datetime.now(UTC))
    node.detail = Detail(wake_at=datetime.now(UTC))
    for _ in range(depth):
        node = State("s", _started=datetime.now(UTC), states=[node])
    found = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal found
        if event == "call" and frame.f_code.co_name in ("pending", "proceeding"):
            found += 1

    sys.setprofile(count)
    try:
        assert node.pending
    finally:
        sys.setprofile(None)
    return found


def test_asking_a_deep_tree_is_cheap() -> None:
    """Whether a tree is pending costs a look or two at each of its nodes, however deep it is."""
    assert looks(12) <= 2 * 13


@pytest.mark.parametrize("frames", [0, 300])
@pytest.mark.parametrize("options", [{}, {"timeout": 900, "retry": Retry()}], ids=["plain", "long"])
@pytest.mark.parametrize("end", ["returns", "fails", "waits"])
async def test_fifty_steps_deep(frames: int, options: dict[str, Any], end: str) -> None:
    """Steps nest 50 deep, whatever becomes of the last, also called from a deep stack."""
    assert looks(12) <= 2 * 13, "the rest of this test would take years"

    async def nest(s: Step, left: int) -> str:
        if left:
            deeper: str = await s.do("s", nest, left - 1, **options)
            return deeper
        if end == "fails":
            s.fail("down here")
        if end == "waits":
            s.pending(after=9)
        return s.path

    async def root(s: Step) -> str:
        return await s.do("s", nest, 49)

    if sys.gettrace() is not None:  # a tracer makes each frame count several times
        frames = 0
    state, bottom = State("r"), "/".join("s" * 50)
    outcome = await under(frames, lambda: asteps.reconcile(root, state=state, clock=FakeClock()))
    if end == "returns":
        assert outcome.value == bottom
    elif end == "fails":
        assert (outcome.error.path, outcome.error.origin) == ("", bottom)
    else:
        assert (outcome.path, outcome.after) == (bottom, 9)
    assert came_to(reborn(state)).popitem()[0] == bottom


@pytest.mark.parametrize("way", ["do", "call", "options"])
async def test_fifty_one_is_too_deep(way: str) -> None:
    """A 51st level is refused before its body runs, and what was above it stays as it was."""
    ran: list[str] = []

    async def leaf(*args: object) -> None:
        ran.append("leaf")

    async def nest(s: Step, left: int) -> None:
        if left:
            await s.do("s", nest, left - 1)
        elif way == "options":
            await s.do("leaf", leaf, timeout=5)
        else:
            await getattr(s, way)("leaf", leaf)

    state = State("r")
    with pytest.raises(UsageError, match="more than 50 steps deep"):
        await asteps.run(nest, 50, state=state)
    assert ran == []
    assert came_to(reborn(state)) == {"/".join("s" * i): "proceeding" for i in range(51)}
    way = "do"  # corrected: one level less
    outcome = await asteps.reconcile(nest, 49, state=state)
    assert isinstance(outcome, Done)
    assert ran == ["leaf"]


# --- changed code ---------------------------------------------------------------------------------


async def test_code_may_change_between_passes() -> None:
    """Done stays done by path in any order, new steps run, and vanished ones are listed."""
    ran: list[str] = []
    clock, state = FakeClock(), State("r")

    async def note(s: Step, label: str) -> str:
        ran.append(f"{s.path} {label}")
        return label

    async def inner(s: Step, names: list[str], label: str) -> None:
        for name in names:
            await s.do(name, note, label)

    async def waiting(s: Step, label: str) -> None:
        for name in ["w"] if label == "old" else []:
            await s.do(name, note, label)
        s.pending(after=60)

    async def root(s: Step, names: list[str], label: str) -> list[str]:
        got = [await s.do(name, note, label) for name in names]
        await s.do("p", inner, names, label)
        await s.do("q", waiting, label) if label != "newest" else None
        return got

    async def once(names: list[str], label: str) -> asteps.Outcome[list[str]]:
        nonlocal state
        state = reborn(state)
        clock.advance(61)
        return await asteps.reconcile(root, names, label, state=state, clock=clock)

    first = await once(["a", "b"], "old")
    assert isinstance(first, Pending)
    assert first.vanished == ()
    assert ran == ["a old", "b old", "p/a old", "p/b old", "q/w old"]

    second = await once(["c", "b", "a"], "new")
    assert isinstance(second, Pending)
    assert ran[5:] == ["c new"]  # p is done: its new children have nobody to run them
    assert second.vanished == ()  # q is not finished: q/w may still come

    third = await once(["c", "a"], "newest")
    assert isinstance(third, Done)
    assert third.value == ["new", "old"]
    assert third.vanished == ("b", "q")
    assert ran[6:] == []
    assert came_to(state)["b"] == "done"


async def test_all_steps_of_a_parent_may_vanish() -> None:
    """Vanished steps are listed also where the changed body has no step left at all."""
    clock, state = FakeClock(), State("r")

    async def before(s: Step) -> None:
        await s.do("a", one)
        s.pending(after=1)

    async def root(s: Step, body: Callable[[Step], Awaitable[object]]) -> None:
        await s.do("p", body)

    assert isinstance(await asteps.reconcile(root, before, state=state, clock=clock), Pending)
    clock.advance(2)
    outcome = await asteps.reconcile(root, one, state=state, clock=clock)
    assert isinstance(outcome, Done)
    assert outcome.vanished == ("p/a",)


async def test_a_failed_parent_lists_what_vanished() -> None:
    """A parent that failed has finished too."""
    clock, state = FakeClock(), State("r")

    async def before(s: Step) -> None:
        await s.do("a", one)
        await s.do("b", one)
        s.pending(after=1)

    async def after(s: Step) -> None:
        await s.do("b", one)
        raise ValueError

    async def root(s: Step, body: Callable[[Step], Awaitable[object]]) -> None:
        await s.do("p", body)

    assert isinstance(await asteps.reconcile(root, before, state=state, clock=clock), Pending)
    clock.advance(2)
    outcome = await asteps.reconcile(root, after, state=state, clock=clock)
    assert isinstance(outcome, Failed)
    assert outcome.vanished == ("p/a",)


# --- misuse ---------------------------------------------------------------------------------------


async def not_for_json(s: Step) -> complex:
    """A body whose result msgspec does not know."""
    return 1j


MISUSES: dict[str, Callable[[Any], Awaitable[object]]] = {
    "duplicate": lambda s: s.do("ok", one),
    "bad name": lambda s: s.do("$x", one),
    "no function": lambda s: s.do("x"),
    "bad annotation": lambda s: s.do("x", not_for_json),
    "bad annotation, long way": lambda s: s.do("x", not_for_json, timeout=5),
    "unknown option": lambda s: s.do("x", one, tries=5),
    "bad option": lambda s: s.do("x", one, timeout=-1),
    "contradicting returns": lambda s: s.do("x", one, returns=str),
    "bad result": lambda s: s.call("x", give, {1, 2}),
}


@pytest.mark.parametrize("stored", [True, False], ids=["store", "state"])
@pytest.mark.parametrize("misuse", MISUSES)
async def test_misuse_changes_nothing(misuse: str, stored: bool) -> None:
    """Misuse leaves the driver, not even ``except Exception`` sees it, nothing of it is recorded.

    Corrected code goes on without a recover, and what was done stays done.
    """
    seen: list[str] = []

    async def parent(s: Step, wrong: bool) -> int:
        seen.append("ran")
        await s.call("ok", give, 1)
        if wrong:
            try:
                await MISUSES[misuse](s)
            except Exception as exc:  # noqa: BLE001
                seen.append(f"caught {exc!r}")
        return await s.do("y", one)

    async def root(s: Step, wrong: bool) -> int:
        return await s.do("p", parent, wrong)

    store, state = MemoryStore(), State("r")
    where: dict[str, Any] = {"store": store, "id": "x"} if stored else {"state": state}
    with pytest.raises(UsageError):
        await asteps.reconcile(root, True, **where)
    found = await asteps.load_state(store, "x") if stored else state
    assert found is not None
    expected = {"": "proceeding", "p": "proceeding", "p/ok": "done"}
    if misuse == "bad result" and not stored:
        expected["p/x"] = "proceeding"  # its body has run; only an outcome would be saved
    assert came_to(found) == expected
    outcome = await asteps.reconcile(root, False, **where)
    assert isinstance(outcome, Done), outcome
    assert outcome.value == 1
    assert set(seen) == {"ran"}


async def test_misuse_is_no_crash() -> None:
    """However often a pass ends in misuse, corrected code does not find its steps crashed."""

    async def parent(s: Step, wrong: bool) -> int:
        return await s.do("$bad" if wrong else "good", one)

    async def root(s: Step, wrong: bool) -> int:
        return await s.do("p", parent, wrong)

    store = MemoryStore()
    for _ in range(4):
        with pytest.raises(UsageError, match="kept for asteps"):
            await asteps.reconcile(root, True, store=store, id="x", max_crashes=2)
    outcome = await asteps.reconcile(root, False, store=store, id="x", max_crashes=2)
    assert isinstance(outcome, Done), outcome
    assert outcome.value == 1


async def test_a_step_is_of_no_use_after_its_body() -> None:
    """Whoever keeps a Step beyond its body is told so, whatever he does with it."""
    kept: list[Step] = []

    async def keep(s: Step) -> int:
        kept.append(s)
        return 1

    async def keep_and_use(s: Step) -> int:
        kept.append(s)
        return await s.do("inner", one)

    uses: list[Callable[[Step], Any]] = [
        lambda s: s.do("late", one),
        lambda s: s.call("late", give, 1),
        lambda s: s.do("late", one, timeout=5),
        lambda s: s.save_info(1),
        lambda s: s.pending(after=5),
    ]
    for body in (keep, keep_and_use):
        for use in uses:

            async def root(s: Step, use: Callable[[Step], Any] = use, body: Any = body) -> None:
                await s.do("k", body)
                await use(kept.pop())

            state = State("r")
            with pytest.raises(UsageError):
                await asteps.reconcile(root, state=state)
            assert not state.has("k/late")
            assert state.get("k").done


async def test_a_step_is_of_no_use_after_its_pass() -> None:
    """Nothing runs on a pass that has ended."""
    kept: list[Step] = []

    async def root(s: Step) -> None:
        kept.append(s)

    await asteps.run(root)
    for use in (kept[0].do("late", one), kept[0].call("late", give, 1)):
        with pytest.raises(BaseException, match="this pass has ended"):
            await use
