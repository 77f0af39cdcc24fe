"""Results, infos and inputs: what comes back from JSON, and what is refused in time."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import msgspec
import pytest
from clocks import FakeClock

import asteps
from asteps import Done, Failed, Pending, Retry, State, Step, UsageError
from asteps.errors import type_name
from asteps.stores.memory import MemoryStore

if TYPE_CHECKING:
    from decimal import Decimal as Hidden

T = TypeVar("T")

# --- helpers --------------------------------------------------------------------------------------


@dataclass
class Report:
    image: str
    size: float = 0.0


@dataclass
class Loop:
    next: Loop | None = None


@dataclass
class Tree:
    below: list[Tree] = field(default_factory=list)


class Celsius:
    """A type that only hooks know."""

    def __init__(self, degrees: float) -> None:
        self.degrees = degrees

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Celsius) and self.degrees == other.degrees

    def __hash__(self) -> int:
        return hash(self.degrees)


def enc_hook(value: object) -> object:
    """Encode a `Celsius`, or a path."""
    if isinstance(value, Celsius):
        return {"degrees": value.degrees}
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"no {type(value).__name__}")


def dec_hook(kind: type, value: Any) -> Any:
    """Decode what `enc_hook` encoded."""
    if kind is Celsius:
        return Celsius(value["degrees"])
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"no {kind.__name__}")


async def give(value: Any) -> Any:
    """A function that does not say what it returns."""
    return value


async def misuse(match: str, fn: Callable[..., Any], *args: Any, **options: Any) -> State:
    """Hold that a step of this function is refused, as ``do`` and as ``call``; the state after."""

    @wraps(fn)
    async def body(child: Step, *rest: Any) -> Any:
        return await fn(*rest)

    async def calls(s: Any) -> None:
        await s.call("x", fn, *args, **options)

    async def does(s: Any) -> None:
        await s.do("x", body if args else fn, *args, **options)

    state = State("r")
    for root in (does, calls):
        state = State("r")
        with pytest.raises(UsageError, match=match):
            await asteps.run(root, state=state)
        assert not state.failed
        assert not state.has("x") or state.get("x").proceeding
    return state


async def value_of(fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a step of this function gives, which must be the same on a later pass."""
    got: list[Any] = []
    keywords = {k: options.pop(k) for k in ("enc_hook", "dec_hook") if k in options}

    async def root(s: Any) -> None:
        got.append(await s.call("x", fn, *args, **options))
        if len(got) == 1:
            s.pending(after=1)

    await asteps.run(root, clock=FakeClock(), **keywords)
    assert got[0] == got[1]
    assert type(got[0]) is type(got[1])
    return got[0]


# --- found before the body runs -------------------------------------------------------------------

ran: list[str] = []  # bodies that must not run


@pytest.fixture(autouse=True)
def _nothing_ran() -> Iterator[None]:
    ran.clear()
    yield
    ran.clear()


def no_complex() -> complex:
    """Its type is not one of msgspec's."""
    ran.append("complex")
    return 1j


def no_path() -> list[dict[str, Path]]:
    """Its type is deep inside another one."""
    ran.append("path")
    return []


def no_union() -> Report | Tree:
    """Two dataclasses that JSON cannot tell apart."""
    ran.append("union")
    return Tree()


def no_generator() -> Iterator[int]:
    """A generator."""
    ran.append("generator")
    yield 1


async def no_async_generator() -> AsyncIterator[int]:
    """An async generator."""
    ran.append("async generator")
    yield 1


def hidden() -> Hidden:
    """Its type is there for type checkers alone."""
    ran.append("hidden")
    return 1  # type: ignore[return-value]


async def number() -> int:
    """It says what it returns."""
    ran.append("number")
    return 1


@pytest.mark.parametrize(
    ("fn", "options", "message"),
    [
        (no_complex, {}, "complex cannot be read back from JSON: msgspec does not know complex"),
        (no_path, {}, r"does not know Path; use a dataclass, .* or give the driver enc_hook="),
        (no_union, {}, "cannot be read back from JSON: .*union.*; pass returns="),
        (no_generator, {}, "no_generator is a generator: a step's function returns its result"),
        (no_async_generator, {}, "no_async_generator is a generator"),
        (partial(no_generator), {}, "no_generator is a generator"),
        (hidden, {}, r"'Hidden' of hidden cannot be resolved .*: pass returns="),
        (number, {"returns": str}, "returns=str contradicts number, which .* return int"),
        (number, {"returns": Report}, "returns=Report contradicts number"),
        (number, {"returns": complex}, "complex"),
        (give, {"returns": Path}, "msgspec does not know Path"),
    ],
    ids=[
        *("unsupported", "unsupported inside", "ambiguous union", "generator", "async generator"),
        *("partial of generator", "unresolvable", "contradiction", "contradiction to a class"),
        *("contradiction and unsupported", "returns unsupported"),
    ],
)
async def test_types_that_cannot_come_back(
    fn: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    """What the type tells is told before the body runs: the cloud has not been asked for a VM."""
    state = await misuse(message, fn, **options)
    assert ran == []
    assert not state.has("x")


async def test_returns_says_what_the_annotation_cannot() -> None:
    """``returns=`` stands in for no annotation, one that cannot be resolved, or a wider one."""
    assert await value_of(give, {"image": "i"}, returns=Report) == Report("i")
    assert await value_of(hidden, returns=int) == 1
    assert await value_of(number, returns=int | None) == 1
    assert await value_of(number, returns=object) == 1
    assert await value_of(number, returns=Any) == 1
    assert await value_of(give, None, returns=None) is None
    assert await value_of(give, [1, 2], returns=tuple[int, ...]) == (1, 2)


async def test_annotations_are_found() -> None:
    """Annotations count inside partials, callable objects, methods and closures, as strings too."""

    class Local(msgspec.Struct):
        x: int

    class Maker:
        def method(self) -> Report:
            return Report("m")

        async def __call__(self) -> tuple[int, int]:
            return (1, 2)

        @classmethod
        def make(cls) -> frozenset[int]:
            return frozenset({1})

        @staticmethod
        def still() -> Report:
            return Report("s")

    def local() -> Local:
        return Local(1)

    def awaitable() -> Awaitable[Report]:
        return give(Report("a"))

    def generic(value: T) -> T:
        return value

    assert await value_of(Maker().method) == Report("m")
    assert await value_of(partial(Maker().method)) == Report("m")
    assert await value_of(Maker()) == (1, 2)
    assert await value_of(Maker.make) == frozenset({1})
    assert await value_of(Maker.still) == Report("s")
    assert await value_of(local) == Local(1)
    assert await value_of(awaitable) == Report("a")
    assert await value_of(generic, "t") == "t"
    assert await value_of(Report, "c") == Report("c")
    assert await value_of(lambda: {"plain": [1, None]}) == {"plain": [1, None]}


async def test_annotations_of_decorated_functions_are_found() -> None:
    """A decorator of another module may wrap a function whose annotation is a string."""
    elsewhere = ModuleType("elsewhere")
    code = """
import functools

def traced(fn):
    @functools.wraps(fn)
    async def wrapper(*args):
        return await fn(*args)
    return wrapper
"""
    exec(code, vars(elsewhere))

    async def make() -> Report:
        return Report("wrapped")

    assert make.__annotations__ == {"return": "Report"}
    assert await value_of(elsewhere.traced(make)) == Report("wrapped")


async def test_only_the_return_annotation_is_resolved() -> None:
    """An argument's annotation may exist for type checkers alone."""

    async def fn(value: Hidden) -> int:
        return 1

    assert await value_of(fn, "anything") == 1


async def test_a_function_that_never_returns() -> None:
    """``NoReturn`` is an annotation like any other."""

    async def never() -> NoReturn:
        asteps.pending(after=5, why="for ever")

    async def root(s: Step) -> None:
        await s.call("x", never)

    outcome = await asteps.reconcile(root, clock=FakeClock())
    assert isinstance(outcome, Pending)
    assert outcome.why == "for ever"


async def test_the_root_is_held_to_the_same_rules() -> None:
    """A root function's result is checked as a step's is."""

    async def bad_type(s: Step) -> complex:
        ran.append("complex")
        return 1j

    async def bad_value(s: Step) -> Any:
        return {1}

    async def good(s: Step) -> Report:
        return Report("r")

    with pytest.raises(UsageError, match="complex cannot be read back"):
        await asteps.run(bad_type)
    assert ran == []
    state = State("r")
    with pytest.raises(UsageError, match=r"comes back from JSON as \[1\], not as \{1\}"):
        await asteps.run(bad_value, state=state, name="n")
    assert state.proceeding
    assert await asteps.run(good, state=state, name="n") == Report("r")
    assert await asteps.run(good, state=State.decode(state.encode()), name="n") == Report("r")


# --- found when the value is there ----------------------------------------------------------------


class Grade(enum.StrEnum):
    A = "a"


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        {1, 2},
        {1: "one"},
        [(1, 2)],
        {"deep": [{"er": b"x"}]},
        Report("i"),
        Grade.A,
        b"bytes",
        1 + 0j,
    ],
    ids=str,
)
async def test_without_annotation_values_must_be_equal_after_the_round_trip(value: object) -> None:
    """A value that its JSON does not give back is refused, not changed in silence."""
    await misuse(
        "the result of .*x.*(comes back from JSON as|cannot be stored as JSON)", give, value
    )


@pytest.mark.parametrize("value", [None, True, -1.5, "", [], {}, [{"a": [None, 1.5]}]], ids=str)
async def test_without_annotation_plain_data_comes_back(value: object) -> None:
    """Plain JSON data needs no annotation."""
    assert await value_of(give, value) == value


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (float("nan"), Any),
        (float("nan"), float),
        (float("inf"), float | None),
        ({"a": float("-inf")}, dict[str, float | None]),
        ([1.0, float("nan")], list[float | None]),
        ((1.0, float("nan")), tuple[float, Any]),
        ({"a": {"b": [float("nan")]}}, dict[str, Any]),
        (Report("i", float("nan")), Any),
        ({float("inf")}, set[float | None]),
    ],
    ids=str,
)
async def test_nan_and_infinities_are_refused(value: object, kind: Any) -> None:
    """JSON holds no NaN and no infinity: they do not become ``null`` behind anybody's back."""
    await misuse("NaN or an infinity|does not come back|comes back", give, value, returns=kind)


async def test_null_is_not_mistaken_for_nan() -> None:
    """``None`` in a typed result is just that."""
    kind = dict[str, float | None]
    assert await value_of(give, {"a": None, "b": 1.5}, returns=kind) == {"a": None, "b": 1.5}
    assert await value_of(give, ["null", None], returns=list[str | None]) == ["null", None]


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def looped() -> Any:
    """A list that holds itself."""
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize("kind", [Any, list[Any]], ids=str)
async def test_cyclic_and_deep_values_are_refused(kind: Any) -> None:
    """What is cyclic or nested more than 100 deep is refused; what is exactly 100 deep is not."""
    await misuse("is cyclic, or nested more than 100 deep", give, looped(), returns=kind)
    await misuse("is nested more than 100 deep|is cyclic", give, nested(20_000), returns=kind)
    await misuse("is nested more than 100 deep", give, nested(101), returns=kind)
    assert await value_of(give, nested(100), returns=kind) == nested(100)
    brackets = ["[" * 500, '\\"{[' * 500, {"]": "}" * 300}]
    assert await value_of(give, brackets, returns=kind) == brackets


async def test_cyclic_and_deep_objects_are_refused() -> None:
    """The same holds for dataclasses."""
    loop = Loop()
    loop.next = loop
    await misuse("is cyclic, or nested more than 100 deep", give, loop, returns=Loop)
    deep = Tree()
    for _ in range(60):
        deep = Tree([deep])  # two levels of JSON each
    await misuse("is nested more than 100 deep", give, deep, returns=Tree)
    fits = Tree()
    for _ in range(49):
        fits = Tree([fits])
    assert await value_of(give, fits, returns=Tree) == fits


async def test_a_deep_result_of_a_deep_step_can_be_loaded() -> None:
    """A tree at both limits can be saved as one document and read again."""

    async def nest(s: Step, left: int) -> Any:
        if left:
            return await s.do("s", nest, left - 1)
        return nested(100)

    state = State("r")
    assert await asteps.run(nest, 50, state=state) == nested(100)
    assert State.decode(state.encode()).encode() == state.encode()


@pytest.mark.parametrize("value", ["\ud800", ["a\udfff"], {"\ud800": 1}], ids=ascii)
async def test_surrogates_are_refused(value: object) -> None:
    """A str with lone surrogates is not text, and no JSON."""
    await misuse("surrogates", give, value)
    await misuse("surrogates", give, value, returns=Any)


@pytest.mark.parametrize("options", [{}, {"retry": Retry(), "timeout": 5}], ids=["plain", "long"])
async def test_results_that_are_too_large(options: dict[str, Any]) -> None:
    """Above ``max_result_bytes`` the step fails for good, on every pass, and says what to do."""
    calls: list[int] = []

    async def big(s: Step, size: int) -> str:
        calls.append(size)
        return "x" * size

    async def root(s: Step, size: int) -> int:
        return len(await s.do("big", big, size, **options))

    state, clock = State("r"), FakeClock()
    keywords: dict[str, Any] = {"state": state, "clock": clock, "max_result_bytes": 1_000}
    message = (
        "the result is 1,001 bytes of JSON, more than max_result_bytes=1,000; store the data "
        "elsewhere and return a reference to it"
    )
    for _ in range(2):
        outcome = await asteps.reconcile(root, 999, **keywords)
        assert isinstance(outcome, Failed)
        (error,) = outcome.error.errors
        assert (error.path, error.failure.kind, error.failure.final) == ("big", "too large", True)
        assert error.failure.message == message
        assert outcome.error.failure.final
        assert clock.slept == []
    assert calls == [999]
    state.recover()
    outcome = await asteps.reconcile(root, 998, **keywords)
    assert isinstance(outcome, Done)
    assert outcome.value == 998


async def test_a_root_result_that_is_too_large() -> None:
    """A run whose own result is too large has failed."""

    async def root(s: Step) -> str:
        return "x" * 100

    state = State("r")
    for _ in range(2):
        outcome = await asteps.reconcile(root, state=state, max_result_bytes=50)
        assert isinstance(outcome, Failed)
        assert (outcome.error.path, outcome.error.failure.kind) == ("", "too large")


async def test_a_megabyte_is_what_fits() -> None:
    """``max_result_bytes`` is 1 MiB unless it is said otherwise; quotes count."""

    async def big(size: int) -> str:
        return "x" * (size - 2)

    async def root(s: Step) -> None:
        await s.call("fits", big, 1 << 20)
        await s.call("large", big, (1 << 20) + 1)

    outcome = await asteps.reconcile(root)
    assert isinstance(outcome, Failed)
    assert outcome.error.origin == "large"
    assert "1,048,577 bytes of JSON, more than max_result_bytes=1,048,576" in str(outcome.error)


async def test_corrected_code_runs_a_refused_step_again() -> None:
    """A result that was refused left no outcome; the corrected function runs and is recorded."""

    async def body(s: Step, value: Any) -> Any:
        ran.append("body")
        return value

    async def root(s: Step, value: Any) -> Any:
        return await s.do("x", body, value)

    store = MemoryStore()
    with pytest.raises(UsageError, match="annotate the function's return type, or pass returns="):
        await asteps.reconcile(root, (1,), store=store, id="x")
    outcome = await asteps.reconcile(root, [1], store=store, id="x")
    assert isinstance(outcome, Done)
    assert outcome.value == [1]
    assert ran == ["body", "body"]


async def test_comparing_a_value_may_fail() -> None:
    """A value whose comparison raises is refused like one that is not equal."""

    class Array:
        def __eq__(self, other: object) -> bool:
            raise TypeError("ambiguous")

        __hash__ = None  # type: ignore[assignment]

    async def root(s: Step) -> None:
        await s.call("x", give, [Array()])

    state = State("r")
    with pytest.raises(UsageError, match=r"the result of .*x.*"):
        await asteps.run(root, state=state, enc_hook=lambda value: 1)
    assert not state.failed


# --- hooks ----------------------------------------------------------------------------------------


async def test_hooks_apply_to_results_infos_and_inputs() -> None:
    """``enc_hook=`` and ``dec_hook=`` of the driver serve every value of the run."""
    got: list[object] = []

    async def body(s: Step) -> Celsius:
        got.append(s.info_as(Celsius))
        await s.save_info(Celsius(20.0))
        got.append((s.info, s.info_as(Celsius)))
        if len(got) == 2:
            s.pending(after=1)
        return Celsius(21.0)

    async def root(s: Step, degrees: float) -> list[Celsius]:
        return [
            await s.do("x", body, inputs=Celsius(degrees)),
            await s.call("p", give, Path("/tmp"), returns=Path) and Celsius(0.0),
        ]

    store, clock = MemoryStore(), FakeClock()
    keywords: dict[str, Any] = {
        "store": store,
        "id": "x",
        "clock": clock,
        "enc_hook": enc_hook,
        "dec_hook": dec_hook,
    }
    outcome = await asteps.reconcile(root, 1.0, **keywords, inputs=Celsius(1.0), max_wait=5)
    assert isinstance(outcome, Done)
    assert outcome.value == [Celsius(21.0), Celsius(0.0)]
    assert got == [
        None,
        ({"degrees": 20.0}, Celsius(20.0)),
        Celsius(20.0),
        ({"degrees": 20.0}, Celsius(20.0)),
    ]
    outcome = await asteps.reconcile(root, 1.0, **keywords, inputs=Celsius(1.0))
    assert len(got) == 4
    outcome = await asteps.reconcile(root, 2.0, **keywords, inputs=Celsius(2.0), max_wait=5)
    assert isinstance(outcome, Done)
    assert got[4] is None  # the inputs of the run and of the step differ: it was reset


async def test_a_hook_that_refuses() -> None:
    """What a hook does not know, or breaks on, is misuse and not a failure."""

    def breaks(*args: Any) -> Any:
        raise KeyError("broken hook")

    async def asks(s: Step) -> None:
        s.info = 5
        s.info_as(Celsius)

    async def root(s: Step, what: str) -> None:
        if what == "result":
            await s.call("x", give, 1j)
        elif what == "result type":
            await s.call("x", give, 1, returns=Celsius)
        elif what == "info":
            s.info = 1j
        else:
            await s.do("x", asks)

    for what in ("result", "result type", "info", "info type"):
        for enc, dec in ((enc_hook, dec_hook), (breaks, breaks)):
            state = State("r")
            with pytest.raises(UsageError):
                await asteps.run(root, what, state=state, enc_hook=enc, dec_hook=dec)
            assert not state.failed, what


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1j, "the info of step 'x' cannot be stored as JSON"),
        (float("nan"), "the info of step 'x' holds NaN"),
        ("\ud800", "the info of step 'x' holds a str with surrogates"),
        (nested(101), "the info of step 'x' is nested more than 100 deep"),
        (looped(), "the info of step 'x' is cyclic"),
    ],
    ids=["complex", "nan", "surrogate", "deep", "cyclic"],
)
@pytest.mark.parametrize("way", ["assigned", "saved"])
async def test_infos_are_checked(value: object, message: str, way: str) -> None:
    """An info that JSON cannot hold is misuse; the info before it stays."""

    async def body(s: Step) -> None:
        s.info = "before"
        if way == "saved":
            await s.save_info(value)
        s.info = value

    async def root(s: Step) -> None:
        await s.do("x", body)

    state = State("r")
    with pytest.raises(UsageError, match=message):
        await asteps.run(root, state=state)
    assert state.get("x").info_as(str) == "before"


@pytest.mark.parametrize("value", [1j, float("nan"), "\ud800", nested(101), looped()], ids=range(5))
async def test_inputs_are_checked(value: object) -> None:
    """Inputs that JSON cannot hold are misuse, and the body does not run."""

    async def root(s: Step) -> None:
        await s.call("x", number, inputs=value)

    with pytest.raises(UsageError, match="the inputs of step 'x'"):
        await asteps.run(root)
    with pytest.raises(UsageError, match="inputs="):
        await asteps.run(root, inputs=value)
    assert ran == []


async def test_the_wrong_type_for_an_info() -> None:
    """Asking for an info as a type that it is not says so."""

    async def body(s: Step) -> None:
        s.info = [1]
        s.info_as(Report)

    async def root(s: Step) -> None:
        await s.do("x", body)

    with pytest.raises(UsageError, match="the info of step 'x' is not Report: Expected `object`"):
        await asteps.run(root)


# --- the type changed between two passes ----------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"timeout": 5}], ids=["plain", "options"])
@pytest.mark.parametrize("way", ["do", "call"])
async def test_a_result_type_that_changed(options: dict[str, Any], way: str) -> None:
    """A recorded result that changed code cannot read is misuse: the record stays, nothing runs.

    The code that wrote it still reads it.
    """

    async def old(*args: Any) -> dict[str, str]:
        return {"image": "i"}

    async def new(*args: Any) -> list[int]:
        ran.append("new")
        return [1]

    async def parent(s: Any, fn: Callable[..., Any]) -> Any:
        return await getattr(s, way)("x", fn, **options)

    async def root(s: Step, fn: Callable[..., Any], wait: bool) -> Any:
        got = await parent(s, fn)
        if wait:
            s.pending(after=1)
        return got

    clock, state = FakeClock(), State("r")
    assert isinstance(await asteps.reconcile(root, old, True, state=state, clock=clock), Pending)
    clock.advance(2)
    before = state.get("x").encode()
    with pytest.raises(UsageError, match=r"result of step 'x' does not fit .*Expected `array`"):
        await asteps.reconcile(root, new, False, state=state, clock=clock)
    assert ran == []
    assert state.get("x").encode() == before
    outcome = await asteps.reconcile(root, old, False, state=state, clock=clock)
    assert isinstance(outcome, Done)
    assert outcome.value == {"image": "i"}


async def test_a_root_type_that_changed() -> None:
    """A finished run whose function now returns another type says so."""

    async def old(s: Step) -> int:
        return 5

    async def new(s: Step) -> Report:
        return Report("i")

    store = MemoryStore()
    assert await asteps.run(old, store=store, id="x", name="n") == 5
    with pytest.raises(UsageError, match="recorded result of the run does not fit its function"):
        await asteps.run(new, store=store, id="x", name="n")
    assert await asteps.run(old, store=store, id="x", name="n") == 5


async def test_a_result_type_may_grow() -> None:
    """A field with a default may be added between two passes, as data that evolves does."""

    async def old() -> dict[str, str]:
        return {"image": "i"}

    async def new() -> Report:
        raise AssertionError("recorded")

    async def root(s: Step, fn: Callable[..., Any], wait: bool) -> Any:
        got = await s.call("x", fn)
        if wait:
            s.pending(after=1)
        return type_name(type(got))

    clock, state = FakeClock(), State("r")
    await asteps.reconcile(root, old, True, state=state, clock=clock)
    clock.advance(2)
    outcome = await asteps.reconcile(root, new, False, state=state, clock=clock)
    assert isinstance(outcome, Done)
    assert outcome.value == type_name(Report)
