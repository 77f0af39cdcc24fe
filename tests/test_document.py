"""Hostile and damaged documents and records: a tree or a `StateFormatError`, nothing else."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asteps
from asteps import Done, Failed, Pending, Retry, State, StateFormatError, Step
from asteps._codec import assemble, tree_as_records
from asteps._paths import MAX_DEPTH
from asteps._store import Summary
from asteps.stores.memory import MemoryStore

GOLDEN = Path(__file__).parent / "golden"
T0, T1 = "2024-02-29T12:00:00Z", "2024-02-29T12:00:01.500000Z"

# A tree in which every key of the format occurs.
FULL: dict[str, Any] = {
    "name": "move",
    "startedAt": T0,
    "run": {
        "format": 1,
        "nonce": "00ff",
        "function": "move",
        "arguments": "ab",
        "inputs": "cd",
        "idle": 1,
        "createdAt": T0,
    },
    "states": [
        {
            "name": "done",
            "info": {"task": [1, "ä"]},
            "result": [1.5, None, "x"],
            "startedAt": T0,
            "doneAt": T1,
        },
        {
            "name": "retry/ing",
            "errs": ["no \u2028 route"],
            "startedAt": T0,
            "place": 1,
            "detail": {
                "generation": 1,
                "attempt": 2,
                "interruptions": 1,
                "failure": {
                    "message": "no route",
                    "types": ["builtins.OSError"],
                    "traceback": "Traceback",
                    "kind": "timeout",
                    "final": True,
                    "causes": ["a"],
                },
                "wakeAt": T1,
                "why": "no route",
                "inputs": "ef",
                "firstAt": T0,
                "once": True,
                "tokenName": "old",
                "renames": 1,
            },
            "states": [{"name": "a", "result": 0, "startedAt": T0, "doneAt": T1}],
        },
    ],
}


def document(**changes: Any) -> dict[str, Any]:
    """A small document of ours, with these keys of the root changed or added."""
    return {"name": "x", "run": {"format": 1}, **changes}


def child(**keys: Any) -> dict[str, Any]:
    """A document whose only step has these keys."""
    return document(states=[{"name": "a", **keys}])


def read(data: bytes | str) -> State | StateFormatError:
    """What decoding comes to; any other exception goes through."""
    try:
        return State.decode(data)
    except StateFormatError as error:
        return error


def refused(data: object) -> str:
    """What is said about a document that must be refused."""
    found = read(data if isinstance(data, bytes | str) else json.dumps(data))
    assert isinstance(found, StateFormatError), found
    return str(found)


# --- any bytes ------------------------------------------------------------------------------------


def originals() -> list[bytes]:
    """Documents of ours and of Go's to damage."""
    names = ["go_failed.json", "go_async_two_groups.json", "go_dox.json", "go_done_9332992.json"]
    ours = [json.dumps(FULL).encode(), State.decode(json.dumps(FULL)).encode()]
    return ours + [(GOLDEN / name).read_bytes().strip() for name in names]


def test_the_full_document_is_full() -> None:
    """What is damaged below holds every key that the format has."""
    state = State.decode(json.dumps(FULL))
    assert json.loads(state.encode()) == FULL


def test_every_truncation_is_refused() -> None:
    """A document that ends early, wherever, is refused."""
    for data in originals():
        for end in range(len(data)):
            assert isinstance(read(data[:end]), StateFormatError), data[:end]


def mutations(count: int) -> Iterator[bytes]:
    """Documents with a few bytes changed, dropped, doubled, or taken from elsewhere."""
    rng = random.Random(20240229)
    sources = originals()
    tokens = [
        *(b"null", b"true", b"-1", b"1e999", b"99999999999999999999999", b'""', b"{}", b"[]"),
        *(b'"\\ud800"', b"\xff", b"\x00", b'"', b",", b"{", b"]", b'"0001-01-01T00:00:00+14:00"'),
        *(b'"run":{"format":2},', b'"doneAt":', b'"states":[null],', b'"name":"a",'),
    ]
    for _ in range(count):
        data = bytearray(rng.choice(sources))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            end = min(len(data), at + rng.choice((0, 1, 1, 2, 8, 40)))
            match rng.randrange(4):
                case 0:
                    data[at:end] = rng.choice(tokens)
                case 1:
                    data[at:end] = rng.randbytes(end - at)
                case 2:
                    del data[at:end]
                case _:
                    data[at:at] = data[at:end]
        yield bytes(data)


def test_no_mutation_gives_anything_else() -> None:
    """A document with any damage is a tree, or refused; a tree encodes and walks as any other."""
    trees = 0
    for data in mutations(2_000):
        found = read(data)
        if isinstance(found, State):
            trees += 1
            assert State.decode(found.encode()) == found
            for path, node in found.walk():
                assert found.get(path) is node
            assert assemble(tree_as_records(found), "run 'x'").encode() == found.encode()
    assert trees > 100  # else the damage was always too crude to be interesting


@given(st.binary(max_size=40) | st.text(max_size=20))
def test_any_bytes_or_text_are_read_or_refused(data: bytes | str) -> None:
    """Whatever is given, nothing else happens."""
    read(data)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from([T0, "2024-02-29T12:00:00", "9999-12-31T23:59:60Z"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*FULL, *FULL["states"][1], *FULL["states"][1]["detail"], "format"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*FULL, "errs", "doneAt", "err", "detail"]), _JSON))
def test_any_json_object_is_read_or_refused(found: dict[str, Any]) -> None:
    """Keys of ours with values of any type are a tree or refused, with and without a run."""
    read(json.dumps(found))
    read(json.dumps({"name": "x", **found, "run": {"format": 1}}))


def test_decoding_leaves_its_input_alone() -> None:
    """The bytes that were given are as they were, refused or not."""
    for data in [*originals(), b'{"name":"x","run":{"format":2}}', b'{"name":"x","states":[']:
        given_bytes = bytearray(data)
        read(bytes(given_bytes))
        with_view = memoryview(given_bytes)
        with contextlib.suppress(StateFormatError):
            State.decode(with_view)  # type: ignore[arg-type]  # any buffer will do
        with_view.release()
        assert given_bytes == data


# --- what is refused, and what is said ------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        document(future=1),
        child(future=1),
        child(detail={"future": 1}),
        child(detail={"failure": {"message": "x", "future": 1}}),
        document(run={"format": 1, "future": 1}),
        document(startedat=T0),
    ],
    ids=["root", "step", "detail", "failure", "run", "letter case"],
)
def test_unknown_keys_are_refused(data: dict[str, Any]) -> None:
    """A key that this format does not have is never dropped in silence."""
    message = refused(data)
    assert "corrupt" in message
    assert "unknown field" in message
    with pytest.raises(StateFormatError, match="unknown field"):
        assemble(records_of(data), "run 'x'")


NEWER = [
    {"name": "x", "run": {"format": 2}},
    {"name": "x", "run": {"format": 99, "future": 1}, "future": {"a": [1]}},
    {"name": "x", "run": {"format": 2}, "states": {"a": {"name": "a"}}},
    {"run": {"format": 10**30}, "title": "renamed keys"},
]


@pytest.mark.parametrize("data", NEWER, ids=["alone", "keys", "shapes", "huge"])
def test_a_newer_format_is_refused_as_newer(data: dict[str, Any]) -> None:
    """What a later version wrote is refused, and the message says so and what to do."""
    found = data["run"]["format"]
    words = f"has format {found}, this version of asteps reads format 1"
    for message in (refused(data), _refused_records({"": data})):
        assert words in message
        assert "use the version that wrote it, or a later one" in message
        assert "corrupt" not in message


def test_a_newer_child_record_is_refused_as_newer() -> None:
    """Where the root says that it is newer, a record that cannot be read is not called corrupt."""
    records = {"": {"name": "x", "run": {"format": 2}}, "a": {"name": "a", "future": 1}}
    assert "has format 2" in _refused_records(records)


def test_a_run_below_the_root_is_refused() -> None:
    """What only the root may say, and in what format, is not taken from a step."""
    for form in (1, 7):
        refused(child(run={"format": form}))
        _refused_records(records_of(child(run={"format": form})))


WRONG: dict[str, Any] = {
    "naive datetime": child(startedAt="2024-02-29T12:00:00"),
    "naive datetime in a detail": child(detail={"wakeAt": "2024-02-29T12:00:00"}),
    "naive datetime in the run": document(run={"format": 1, "createdAt": "2024-02-29T12:00:00"}),
    "date without a time": child(startedAt="2024-02-29"),
    "number for a time": child(startedAt=1709208000),
    "float for a time": child(doneAt=1709208000.5),
    "number for a time in a detail": child(detail={"firstAt": 1709208000.0}),
    "day that is none": child(startedAt="2023-02-29T12:00:00Z"),
    "second 60": child(startedAt="2023-06-30T23:59:60Z"),
    "year 0": child(startedAt="0000-01-01T00:00:00Z"),
    "zone of 99 hours": child(startedAt="2023-01-01T00:00:00+99:00"),
    "two children of one name": document(states=[{"name": "a"}, {"name": "b"}, {"name": "a"}]),
    "no name": document(states=[{}]),
    "empty name": document(states=[{"name": ""}]),
    "null name": document(states=[{"name": None}]),
    "number for a name": document(states=[{"name": 5}]),
    "long name": document(states=[{"name": "n" * 201}]),
    "tab in a name": document(states=[{"name": "a\tb"}]),
    "NUL in a name": document(states=[{"name": "a\0"}]),
    "DEL in a name": document(states=[{"name": "\x7f"}]),
    "C1 control in a name": document(states=[{"name": "\x85"}]),
    "null among the states": document(states=[None]),
    "object for the states": document(states={"a": {}}),
    "string for the errors": child(errs="no"),
    "objects for the errors": child(errs=[{"message": "no"}]),
    "null among the errors": child(errs=[None]),
    "string for a number": child(detail={"attempt": "2"}),
    "float for a number": child(detail={"attempt": 1.5}),
    "true for a number": child(place=True),
    "string for a bool": child(detail={"once": "yes"}),
    "failure without a message": child(detail={"failure": {}}),
    "failure of no kind": child(detail={"failure": {"message": "x", "kind": "bored"}}),
    "list for a detail": child(detail=[]),
    "run without a format": document(run={}),
    "run of format 0": document(run={"format": 0}),
    "run of format true": document(run={"format": True}),
    "run of format 1.5": document(run={"format": 1.5}),
    "run of format '1'": document(run={"format": "1"}),
    "NaN": b'{"name":"x","run":{"format":1},"result":NaN}',
    "infinity": b'{"name":"x","run":{"format":1},"info":-Infinity}',
    "lone surrogate": b'{"name":"x","run":{"format":1},"states":[{"name":"\\ud800"}]}',
    "lone surrogate in a str": '{"name":"\ud800","run":{"format":1}}',
    "bytes that are no UTF-8": b'{"name":"x","run":{"format":1},"states":[{"name":"\xff"}]}',
    "UTF-16": json.dumps(document()).encode("utf-16"),
    "something behind it": json.dumps(document()) + "{}",
    "an array": [document()],
    "null": None,
    "a number": 5,
    "nothing": b"",
    "white space": b" \n",
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused(what: str) -> None:
    """Wrong types, times, names and JSON are refused, and what is said is short."""
    assert len(refused(WRONG[what] if WRONG[what] is not None else b"null")) < 500


@pytest.mark.parametrize(
    "what", ["NaN", "infinity", "lone surrogate", "run of format true", "run of format '1'"]
)
def test_damage_of_ours_is_not_called_somebody_elses(what: str) -> None:
    """A document with a run of ours is corrupt, whatever is wrong; it is no state of Go's."""
    assert refused(WRONG[what]).startswith("the state is corrupt: ")
    assert refused(json.dumps(FULL)[:-3]).startswith("the state is corrupt: ")


@pytest.mark.parametrize(
    "shape",
    [
        b"[",
        b'{"name":"x","states":[',
        b'{"name":"x","run":{"format":1},"states":[',
        b'{"name":"x","info":[',
        b'{"run":',
    ],
)
@pytest.mark.parametrize("close", [False, True])
def test_nesting_without_an_end_is_refused(shape: bytes, close: bool) -> None:
    """100,000 levels of anything neither crash nor hang."""
    ends = {b"[": b"]", b"{": b"}"}
    tail = b"".join(ends[bytes([c])] for c in reversed(shape) if bytes([c]) in ends)
    if b'"format"' in shape:
        tail = b"]}"
    last = b"" if not close else (b"1" if shape.endswith(b":") else b"") + tail * 100_000
    refused(shape * 100_000 + last)


def test_a_deeply_nested_payload_is_refused() -> None:
    """Nor does a payload that no driver would have recorded."""
    deep = b"[" * 100_000 + b"]" * 100_000
    for key in (b"info", b"result"):
        refused(b'{"name":"x","run":{"format":1},"%b":%b}' % (key, deep))
        with pytest.raises(StateFormatError):
            assemble({"": b'{"name":"x","run":{"format":1},"%b":%b}' % (key, deep)}, "run 'x'")


def _deep(steps: int, **root: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"name": "d"}
    for _ in range(steps - 1):
        found = {"name": "d", "states": [found]}
    return {"name": "x", **root, "states": [found]}


@pytest.mark.parametrize("root", [{"run": {"format": 1}}, {}], ids=["ours", "of Go"])
def test_depth_is_limited(root: dict[str, Any]) -> None:
    """50 steps below the root load, the 51st is refused by number, as document and as records."""
    state = State.decode(json.dumps(_deep(MAX_DEPTH, **root)))
    assert state.last_path().count("/") == MAX_DEPTH - 1
    assert assemble(tree_as_records(state), "run 'x'") == state
    assert "deeper than 50 steps" in refused(_deep(MAX_DEPTH + 1, **root))
    records = tree_as_records(state)
    records[state.last_path() + "/e"] = b'{"name":"e"}'
    with pytest.raises(StateFormatError, match="run 'x' is nested deeper than 50 steps"):
        assemble(records, "run 'x'")


def test_nulls_mean_absent() -> None:
    """``null`` for a key that may be absent is no value; as info or result it is one."""
    nulls = dict.fromkeys(("errs", "startedAt", "doneAt", "states", "detail"))
    state = State.decode(json.dumps(child(**nulls, info=None, result=None)))
    found = state.get("a")
    assert found == State.decode(json.dumps(child(info=None, result=None))).get("a")
    assert bytes(found.info) == bytes(found.result) == b"null"


def test_huge_numbers_are_kept() -> None:
    """Integers beyond 64 bits load, and can be saved again."""
    huge = 10**40
    state = State.decode(
        json.dumps(child(detail={"generation": huge, "attempt": huge}, result=huge))
    )
    again = State.decode(state.encode())
    assert again == state
    assert again.get("a").attempt == huge
    assert again.get("a").result_as(int) == huge


async def test_huge_and_negative_counts_can_be_driven() -> None:
    """A tree with absurd counts runs on like any other."""

    async def body(s: Step) -> str:
        if s.attempt < 0:
            raise OSError("once more")
        return s.token

    async def root(s: Step) -> str:
        return await s.do("a", body, retry=Retry(attempts=2, delay=1))

    for count in (10**40, -(10**40)):
        keys = dict.fromkeys(("generation", "attempt", "interruptions", "renames"), count)
        data = child(startedAt=T0, place=count, detail=keys)
        data["run"]["idle"] = count
        outcome = await asteps.reconcile(root, state=State.decode(json.dumps(data)), name="x")
        assert isinstance(outcome, Done if count > 0 else Pending)
        assert State.decode(outcome.state.encode()) == outcome.state


# --- records --------------------------------------------------------------------------------------


def records_of(data: dict[str, Any]) -> dict[str, bytes]:
    """A document as records, without looking at it."""
    found: dict[str, bytes] = {}

    def walk(path: str, node: dict[str, Any]) -> None:
        found[path] = json.dumps({k: v for k, v in node.items() if k != "states"}).encode()
        for below in node.get("states", ()):
            walk(f"{path}/{below['name']}".lstrip("/"), below)

    walk("", data)
    return found


def _refused_records(records: dict[str, Any]) -> str:
    encoded = {k: v if isinstance(v, bytes) else json.dumps(v).encode() for k, v in records.items()}
    with pytest.raises(StateFormatError) as caught:
        assemble(encoded, "run 'vm-42'")
    assert str(caught.value).startswith("run 'vm-42'")
    return str(caught.value)


ROOT_RECORD = b'{"name":"x","run":{"format":1}}'
BAD_RECORDS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing at all": ({}, "no root record"),
    "no root": ({"a": {"name": "a"}}, "no root record"),
    "a root without a run": ({"": {"name": "x"}}, "no root record"),
    "an orphan": ({"": ROOT_RECORD, "a/b": {"name": "b"}}, "'a' has children, but no record"),
    "an orphan of an orphan": (
        {"": ROOT_RECORD, "a": {"name": "a"}, "a/b/c/d": {"name": "d"}},
        "'a/b/c' has children, but no record",
    ),
    "a name that contradicts its key": (
        {"": ROOT_RECORD, "a": {"name": "b"}},
        "record 'a' holds a step named 'b'",
    ),
    "an escape that is missing": (
        {"": ROOT_RECORD, "a/b": {"name": "a/b"}},
        "record 'a/b' holds a step named 'a/b'",
    ),
    "an empty name": ({"": ROOT_RECORD, "a/": {"name": ""}, "a": {"name": "a"}}, "named ''"),
    "bytes that are no UTF-8": (
        {"": ROOT_RECORD, "a": b'{"name":"\xff"}'},
        "record 'a' is corrupt",
    ),
    "bytes that are no JSON": ({"": ROOT_RECORD, "a": b"\x00\x01"}, "record 'a' is corrupt"),
    "an empty record": ({"": ROOT_RECORD, "a": b""}, "record 'a' is corrupt"),
    "a truncated record": ({"": ROOT_RECORD, "a": b'{"name":"a"'}, "record 'a' is corrupt"),
    "a truncated root": ({"": ROOT_RECORD[:-1], "a": {"name": "a"}}, "record '' is corrupt"),
    "an array": ({"": ROOT_RECORD, "a": []}, "record 'a' is corrupt"),
    "a naive datetime": (
        {"": ROOT_RECORD, "a": {"name": "a", "doneAt": T0[:-1]}},
        "record 'a' is corrupt",
    ),
    "a control character": ({"": ROOT_RECORD, "a\x1b": {"name": "a\x1b"}}, r"named 'a\x1b'"),
    "a long name": ({"": ROOT_RECORD, "n" * 201: {"name": "n" * 201}}, "1 to 200 characters"),
    "two spellings of one name": (
        {"": ROOT_RECORD, "a~b": {"name": "a~b"}, "a~0b": {"name": "a~b"}},
        "two children named 'a~b'",
    ),
}


@pytest.mark.parametrize("what", BAD_RECORDS)
def test_records_that_make_no_tree_are_refused(what: str) -> None:
    """The message names the run and the record, and says what is the matter."""
    records, says = BAD_RECORDS[what]
    assert says in _refused_records(records)


def test_children_are_in_a_record_or_apart() -> None:
    """A record may hold its node's children, unless there are some with records of their own."""
    folded = {"": ROOT_RECORD, "a": b'{"name":"a","states":[{"name":"b"}]}'}
    assert assemble(folded, "run 'x'").has("a/b")
    said = _refused_records({**folded, "a/c": {"name": "c"}})
    assert "record 'a' holds children that have records too" in said


def test_any_damaged_record_is_read_or_refused() -> None:
    """2,000 damages of one record or key: a tree, or refused."""
    rng = random.Random(7)
    whole = tree_as_records(State.decode(json.dumps(FULL)))
    trees = 0
    for _ in range(2_000):
        records = dict(whole)
        key = rng.choice(list(records))
        data = bytearray(records.pop(key))
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.choice((b"null", b"0", b'"', b"{", b"\xff"))
            case _:
                key = key[:at] + rng.choice(("/", "~", "a", "\x00", ""))
        records[key] = bytes(data)
        try:
            found = assemble(records, "run 'x'")
        except StateFormatError:
            continue
        trees += 1
        assert State.decode(found.encode()) == found
    assert trees > 50


# --- extreme dates --------------------------------------------------------------------------------

EXTREME = [
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "0001-01-01T00:00:00-14:00",
    "1969-12-31T23:59:59.5Z",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59.999999-14:00",
    "9999-12-31T23:59:59.999999+14:00",
]


def _dated(date: str, **step: Any) -> dict[str, Any]:
    """A run in which every time is this one."""
    a = {"name": "a", "startedAt": date, **step}
    a["detail"] = {"firstAt": date, **a.get("detail", {})}
    run = {"format": 1, "createdAt": date}
    return {"name": "root", "run": run, "startedAt": date, "states": [a]}


async def _leaf(s: Step) -> int:
    return 1


async def _waits(s: Step) -> int:
    s.pending(5)


async def _fails(s: Step) -> int:
    raise OSError("no")


STEPS: dict[str, Callable[[str], dict[str, Any]]] = {
    "proceeding": lambda date: {},
    "pending": lambda date: {"detail": {"wakeAt": date}},
    "retrying": lambda date: {"errs": ["x"], "detail": {"attempt": 2, "wakeAt": date}},
    "done": lambda date: {"doneAt": date, "result": 1},
    "failed": lambda date: {"doneAt": date, "errs": ["x"]},
}


@pytest.mark.parametrize("date", EXTREME)
@pytest.mark.parametrize("step", STEPS)
async def test_any_date_can_be_driven(date: str, step: str) -> None:
    """A tree from the ends of the calendar, in any zone, loads, runs with a timeout, and saves."""
    data = json.dumps(_dated(date, **STEPS[step](date)))
    for body in (_leaf, _waits, _fails):

        async def root(s: Step) -> int:
            return await s.do("a", body, timeout=5, retry=Retry(attempts=3))  # noqa: B023 - used at once

        state = State.decode(data)
        assert State.decode(state.encode()) == state
        outcome = await asteps.reconcile(root, state=state, name="root")
        assert isinstance(outcome, Done | Failed | Pending)
        if isinstance(outcome, Pending):
            assert outcome.after > 0
        assert State.decode(outcome.state.encode()) == outcome.state


@pytest.mark.parametrize("date", EXTREME)
async def test_any_date_can_be_stored_listed_and_edited(date: str) -> None:
    """One run with such dates does not keep the others from being listed."""

    async def root(s: Step) -> int:
        return await s.do("a", _leaf)

    store = MemoryStore()
    summary = Summary("root", "pending", 1, None, 1.0, 1.0)
    records = tree_as_records(State.decode(json.dumps(_dated(date, detail={"wakeAt": date}))))
    await store.save("x", records, expected=None, epoch=1, write_id="w", summary=summary)
    async with asteps.edit_run(store, "x") as state:
        state.get("a").detail = None
        state.set_result("a", 2)
    assert [found.id for found in await asteps.list_runs(store)] == ["x"]
    await asteps.reconcile(root, store=store, id="x")
    assert [found.id for found in await asteps.list_runs(store)] == ["x"]
