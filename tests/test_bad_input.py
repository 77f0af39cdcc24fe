"""Bad input at the drivers, on real files: a clear error, nothing lost, nothing half done."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import anyio
import anyio.to_thread
import pytest
from processes import run_script

import asteps
from asteps import (
    AstepsError,
    Done,
    State,
    StateFormatError,
    Step,
    StepError,
    StoreError,
    StoreRefusedError,
    UsageError,
)
from asteps._store import Summary
from asteps.stores.file import FileStore
from asteps.stores.sqlite import SQLiteStore

T = TypeVar("T")
Real: TypeAlias = SQLiteStore | FileStore
SUMMARY = Summary("root", "pending", 1, None, 1.0, 1.0)


class Place:
    """Where the runs of a test are, in one file of SQLite's or in a directory."""

    def __init__(self, kind: str, directory: Path, backend: str) -> None:
        self.kind = kind
        self.path = directory / ("runs.db" if kind == "sqlite" else "runs")
        self.backend = backend

    def open(self) -> Real:
        return SQLiteStore(self.path) if self.kind == "sqlite" else FileStore(self.path)

    @property
    def file(self) -> Path:
        """The file that holds the run ``vm-42``."""
        return self.path if self.kind == "sqlite" else self.path / "run-vm-42.log"

    def go(self, use: Callable[[Real], Awaitable[T]]) -> T:
        """Use a store of this place in an event loop of its own."""

        async def main() -> T:
            async with self.open() as store:
                return await use(store)

        return anyio.run(main, backend=self.backend)

    def files(self) -> dict[str, bytes]:
        """What is in the files of the store."""
        files = self.path.parent.rglob("*")
        return {str(f): f.read_bytes() for f in files if f.is_file() and f.suffix != ".db-shm"}

    def put(self, records: dict[str, bytes]) -> None:
        """Make the run ``vm-42`` of these records."""

        async def save(store: Real) -> None:
            if (old := await store.load("vm-42")) is not None:
                await store.delete("vm-42", expected=old.revision)
            await store.save(
                "vm-42", records, expected=None, epoch=1, write_id="w", summary=SUMMARY
            )

        self.go(save)

    def state(self) -> State | None:
        return self.go(lambda store: asteps.load_state(store, "vm-42"))


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    """The event loop, under stores whose files the test itself looks into."""
    return str(request.param)


@pytest.fixture(params=["sqlite", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path, backend: str) -> Place:
    """A place for runs, nothing there yet."""
    return Place(request.param, tmp_path, backend)


RAN: list[str] = []


@pytest.fixture(autouse=True)
def _ran_nothing() -> None:
    RAN.clear()


async def leaf(s: Step) -> int:
    """A step with an effect."""
    RAN.append(s.path)
    return len(RAN)


async def root(s: Step) -> int:
    """Two steps."""
    RAN.append("")
    return await s.do("a", leaf) + await s.do("b", leaf)


async def run(store: Real) -> object:
    """To the end."""
    return await asteps.run(root, store=store, id="vm-42")


async def reconcile(store: Real) -> object:
    """One pass."""
    return await asteps.reconcile(root, store=store, id="vm-42")


async def inline(store: Real) -> object:
    """Steps inline."""
    async with asteps.open_run("root", store=store, id="vm-42") as s:
        await s.do("a", leaf)
    return s.outcome


async def look(store: Real) -> object:
    """The tree."""
    return await asteps.load_state(store, "vm-42")


async def edit(store: Real) -> object:
    """An operator's edit."""
    async with asteps.edit_run(store, "vm-42") as state:
        state.reset("")
    return None


async def erase(store: Real) -> object:
    """The end of it."""
    return await asteps.delete_run(store, "vm-42")


async def listing(store: Real) -> object:
    """All runs."""
    return [run async for run in asteps.browse_runs(store)]


TREE_READERS = [run, reconcile, inline, look, edit]
READERS = [*TREE_READERS, erase, listing]


def refused(place: Place, use: Callable[[Real], Awaitable[object]], *words: str) -> str:
    """What a driver says that must not touch a byte, nor run a body."""
    before = place.files()
    with pytest.raises(StateFormatError) as caught:
        place.go(use)
    message = str(caught.value)
    for word in words:
        assert word in message
    assert RAN == []
    after = place.files()
    assert {name: after.get(name) for name in before} == before
    return message


# --- files that cannot be read --------------------------------------------------------------------


def garbage(place: Place) -> None:
    """Text."""
    place.file.write_bytes(b"not a run at all\n" * 300)


def short(place: Place) -> None:
    """Cut within the first hundred bytes."""
    os.truncate(place.file, 90)


def half(place: Place) -> None:
    """Cut in the middle."""
    os.truncate(place.file, place.file.stat().st_size // 2)


def foreign(place: Place) -> None:
    """Another program's database."""
    place.file.unlink()
    with closing(sqlite3.connect(place.file)) as conn:
        conn.execute("CREATE TABLE runs (id TEXT)")
        conn.commit()


def newer(place: Place) -> None:
    """Written by a later version."""
    if place.kind == "sqlite":
        with closing(sqlite3.connect(place.file)) as conn:
            conn.execute("PRAGMA user_version = 99")
    else:
        data = bytearray(place.file.read_bytes())
        data[8:10] = struct.pack("<H", 99)
        place.file.write_bytes(data)


BAD_FILES: dict[Callable[[Place], None], dict[str, tuple[str, ...]]] = {
    garbage: {"sqlite": ("not a readable SQLite database",), "file": ("is no run of asteps",)},
    short: {"sqlite": ("not a readable SQLite database",), "file": ("cut short",)},
    half: {"sqlite": ("cut short",), "file": ("cut short",)},
    foreign: {"sqlite": ("belongs to another program",), "file": ("is no run of asteps",)},
    newer: {"sqlite": ("format 99", "newer asteps"), "file": ("format 99", "a later one")},
}


@pytest.mark.parametrize("damage", BAD_FILES)
def test_a_file_that_cannot_be_read_is_refused_by_every_driver(
    place: Place, damage: Callable[[Place], None]
) -> None:
    """The message names the file, what is wrong and what to do; no byte changes, no body runs."""
    place.put({"": b'{"name":"root","run":{"format":1}}', "a": b'{"name":"a"}'})
    damage(place)
    for use in READERS:
        refused(place, use, repr(str(place.file)), "left as it is", *BAD_FILES[damage][place.kind])


def test_damage_anywhere_is_read_or_refused(place: Place) -> None:
    """Wherever a byte is wrong: the run is read, or a `StoreError` says so; other errors none."""
    if place.backend == "trio":
        return  # what is read from a file does not depend on the loop
    place.go(run)
    whole = place.file.read_bytes()
    rng = random.Random(3)
    refusals = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 30))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        place.file.write_bytes(data)
        for extra in ("-wal", "-shm"):
            Path(f"{place.file}{extra}").unlink(missing_ok=True)
        for use in (look, listing):
            try:
                place.go(use)
            except StoreError:
                refusals += 1
    assert refusals > 10


# --- trees that cannot be read --------------------------------------------------------------------

ROOT = b'{"name":"root","run":{"format":1}}'
BAD_TREES: dict[str, tuple[dict[str, bytes], tuple[str, ...]]] = {
    "newer": (
        {"": b'{"name":"root","run":{"format":2},"new":1}', "a": b'{"name":"a","new":2}'},
        ("has format 2", "reads format 1", "or a later one"),
    ),
    "no JSON": ({"": ROOT, "a": b'{"name":"a"}', "b": b"\x00"}, ("record 'b'", "corrupt")),
    "cut short": ({"": ROOT, "a": b'{"name":"a","resu'}, ("record 'a'", "corrupt")),
    "unknown key": ({"": ROOT, "a": b'{"name":"a","x":1}'}, ("record 'a'", "corrupt", "`x`")),
    "wrong type": ({"": ROOT, "a": b'{"name":"a","doneAt":1.5}'}, ("record 'a'", "$.doneAt")),
    "no root": ({"a": b'{"name":"a"}'}, ("no root record", "not a run of asteps")),
    "orphan": ({"": ROOT, "a/b": b'{"name":"b"}'}, ("'a' has children, but no record",)),
    "another's name": ({"": ROOT, "a": b'{"name":"b"}'}, ("record 'a'", "named 'b'")),
    "control character": ({"": ROOT, "a\x1b": b'{"name":"a\\u001b"}'}, (r"'a\x1b'", "control")),
}


@pytest.mark.parametrize("what", BAD_TREES)
def test_a_tree_that_cannot_be_read_is_refused_by_every_driver(place: Place, what: str) -> None:
    """The message names the run, the record and what is wrong; nothing is written, nothing runs."""
    records, words = BAD_TREES[what]
    place.put(records)
    for use in TREE_READERS:
        message = refused(place, use, "run 'vm-42'", *words)
        assert "\x1b" not in message
    assert place.go(listing)  # other runs can still be found
    stored = place.go(lambda store: store.load("vm-42"))
    assert stored is not None
    assert stored.records == records
    assert place.go(erase) is True  # whoever gives up on it can still remove it


def test_one_bad_run_does_not_hurt_its_neighbours(place: Place) -> None:
    """The other runs of the store go on as ever."""
    place.put(BAD_TREES["no JSON"][0])
    assert place.go(lambda store: asteps.run(root, store=store, id="vm-43")) == 5
    refused_at = RAN.copy()
    with pytest.raises(StateFormatError, match="vm-42"):
        place.go(run)
    assert refused_at == RAN


# --- what the system refuses ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "file"])
def test_a_read_only_directory_is_refused(kind: str, backend: str) -> None:
    """Who may not write is told so, by every driver that would; the files stay as they are."""
    directory = Path(tempfile.mkdtemp())  # pytest's own cannot be entered by another user
    try:
        inner = directory / "inner"
        inner.mkdir()
        place = Place(kind, inner, backend)
        place.go(run)
        before = place.files()
        for path in (directory, inner, *inner.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        done = run_script(
            """
            import asteps
            from asteps.stores.file import FileStore
            kind, path, backend = sys.argv[1:]

            async def leaf(s):
                print("ran")

            async def root(s):
                await s.do("c", leaf)

            async def main(where):
                store = SQLiteStore(where) if kind == "sqlite" else FileStore(where)
                try:
                    await asteps.run(root, store=store, id="new")
                finally:
                    await store.aclose()

            if os.getuid() == 0:
                with tempfile.TemporaryDirectory() as other, contextlib.redirect_stdout(sys.stderr):
                    anyio.run(main, other + "/runs", backend=backend)  # all imports
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            try:
                anyio.run(main, path, backend=backend)
            except StoreRefusedError as error:
                print("refused", path in str(error), "\\n" not in str(error))
            """,
            kind,
            place.path,
            backend,
        )
        assert (done.stdout, done.returncode) == ("refused True True\n", 0), done.stderr
        assert place.files() == before
    finally:
        for path in directory.rglob("*"):
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(directory)


FULL_DISK = """
import asteps
from asteps.stores.file import FileStore
kind, path, backend = sys.argv[1:]
STEPS = 40
ran, returned = [], []

async def work(s):
    ran.append(s.name)
    return s.name * 3000

async def root(s):
    try:
        for n in range(STEPS):
            await s.do(f"s{n}", work)
            returned.append(f"s{n}")
            if len(returned) == 10 and len(ran) == 10:
                room = 30_000 + max(f.stat().st_size for f in pathlib.Path(path).parent.rglob("*"))
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    except Exception as error:  # a body never sees what became of the disk
        print("seen", type(error))
        raise

async def main():
    store = SQLiteStore(path) if kind == "sqlite" else FileStore(path)
    try:
        await asteps.run(root, store=store, id="vm-42", lease=1)
    except StoreRefusedError as error:
        print("refused", path in str(error))
    for _ in range(2):  # still full: refused again, nothing gets worse
        before = list(ran)
        state = await asteps.load_state(store, "vm-42")
        recorded = [n.name for n in state.states if n.done]
        assert recorded == returned, (returned, recorded)
        assert not any(n.failed for _, n in state.walk())
        assert len(recorded) < STEPS
        try:
            await asteps.run(root, store=store, id="vm-42", lease=1)
        except StoreRefusedError:
            pass
        assert not set(ran[len(before):]) & set(recorded)
        returned[:] = dict.fromkeys(returned)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    state = await asteps.load_state(store, "vm-42")
    recorded = [n.name for n in state.states if n.done]
    before = len(ran)
    await asteps.run(root, store=store, id="vm-42")
    assert ran[before:] == [f"s{n}" for n in range(STEPS) if f"s{n}" not in recorded]
    state = await asteps.load_state(store, "vm-42")
    assert state.done and len(state.states) == STEPS
    print("went on", len(recorded))
    await store.aclose()

import pathlib
anyio.run(main, backend=backend)
"""


def test_a_disk_that_fills_up_in_the_middle_of_a_run(place: Place) -> None:
    """The driver says so, nothing recorded is lost or run again, and with room the run goes on."""
    done = run_script(FULL_DISK, place.kind, place.path, place.backend)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "refused True"
    assert second.startswith("went on ")
    assert int(second.split()[-1]) >= 10
    state = place.state()
    assert state is not None
    assert state.done


def test_what_a_full_disk_is_called(tmp_path: Path) -> None:
    """The error of a disk without room says that it is full, and that nothing was written."""
    script = """
    import asteps
    from asteps.stores.file import FileStore

    async def root(s):
        return "x" * 500_000

    async def main():
        store = (SQLiteStore if sys.argv[1] == "sqlite" else FileStore)(sys.argv[2])
        try:
            await asteps.run(root, store=store, id="x")
        except StoreRefusedError as error:
            print(error)
        await store.aclose()

    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    anyio.run(main)
    """
    for kind, words in {"sqlite": ["full", "make room"], "file": ["too large"]}.items():
        done = run_script(script, kind, tmp_path / kind)
        assert done.returncode == 0, done.stderr
        for word in ["nothing was written", str(tmp_path / kind), *words]:
            assert word in done.stdout


def test_a_path_of_the_wrong_kind_is_refused(tmp_path: Path, backend: str) -> None:
    """A directory for a file, a file for a directory: the message names it; both stay."""
    (tmp_path / "runs.db").mkdir()
    (tmp_path / "runs").write_text("a diary")
    for kind, says in {"sqlite": "is a directory; give the path of a file", "file": ""}.items():
        place = Place(kind, tmp_path, backend)
        for use in (run, reconcile, look):
            with pytest.raises(StoreRefusedError) as caught:
                place.go(use)
            assert str(place.path) in str(caught.value)
            assert says in str(caught.value)
    assert (tmp_path / "runs").read_text() == "a diary"
    assert list((tmp_path / "runs.db").iterdir()) == []
    assert RAN == []


def test_a_missing_directory(tmp_path: Path, backend: str) -> None:
    """SQLite's file needs its directory, and says so; a `FileStore` makes its own."""
    with pytest.raises(StoreRefusedError) as caught:
        Place("sqlite", tmp_path / "no" / "where", backend).go(run)
    assert str(caught.value) == (
        f"directory {str(tmp_path / 'no' / 'where')!r} does not exist; create it first"
    )
    assert not (tmp_path / "no").exists()
    assert RAN == []
    assert Place("file", tmp_path / "no" / "where", backend).go(run) == 5


# --- what the bodies give -------------------------------------------------------------------------


class Socket:
    """What no JSON can hold."""


def cyclic() -> object:
    """A list that holds itself."""
    found: list[object] = []
    found.append(found)
    return found


def deep() -> object:
    """A list that is nested 1,000 deep."""
    found: list[object] = []
    for _ in range(1_000):
        found = [found]
    return found


BAD_VALUES: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "object": (Socket, ("JSON", "enc_hook=")),
    "cyclic": (cyclic, ("cyclic",)),
    "deep": (deep, ("nested more than 100 deep",)),
    "nan": (lambda: float("nan"), ("NaN",)),
    "infinity in a list": (lambda: [1.0, float("inf")], ("infinity",)),
    "surrogate": (lambda: "\ud800", ("surrogates",)),
    "set without an annotation": (lambda: {1}, ("annotate", "returns=")),
    "tuple without an annotation": (lambda: (1, 2), ("annotate", "returns=")),
    "keys that are numbers": (lambda: {1: 2}, ("annotate", "returns=")),
}


@pytest.mark.parametrize("what", BAD_VALUES)
@pytest.mark.parametrize("where", ["result", "call", "root", "info", "inputs"])
def test_a_value_that_cannot_be_stored_is_misuse(place: Place, what: str, where: str) -> None:
    """The message names the step and what to do; nothing is recorded, corrected code goes on."""
    make, words = BAD_VALUES[what]
    if where in {"info", "inputs"} and "returns=" in words:
        return  # an info and inputs need not come back as they were
    value: list[Callable[[], object]] = [make]

    async def bad(s: Step):  # type: ignore[no-untyped-def]  # noqa: ANN202 - nothing says what comes
        if where == "info":
            await s.save_info(value[0]())
        return value[0]() if where == "result" else 1

    def plain():  # type: ignore[no-untyped-def]  # noqa: ANN202 - as above
        return value[0]()

    async def up(s: Step) -> None:
        if where == "call":
            await s.call("bad", plain)
        elif where == "inputs":
            await s.do("bad", bad, inputs=value[0]())
        elif where != "root":
            await s.do("bad", bad)

    async def flow(s: Step):  # type: ignore[no-untyped-def]  # noqa: ANN202 - as above
        await s.do("good", leaf)
        await s.do("up", up)
        return value[0]() if where == "root" else 2

    def drive() -> object:
        return place.go(lambda store: asteps.run(flow, store=store, id="vm-42", name="flow"))

    for _ in range(2):
        with pytest.raises(UsageError) as caught:
            drive()
        message = str(caught.value)
        for word in (*words, "the run" if where == "root" else "step 'up/bad'"):
            assert word in message
        assert len(message) < 700
        state = place.state()
        assert state is not None
        assert state.get("good").done
        ended = [path for path, node in state.walk() if node.done or node.errs]
        assert ended == (["good", "up"] if where == "root" else ["good"])
    value[0] = lambda: 7
    assert drive() == (7 if where == "root" else 2)
    assert RAN == ["good"]


BAD_NAMES: dict[str, tuple[Any, str]] = {
    "newline": ("a\nb", "control characters"),
    "escape": ("\x1b[31mred", "control characters"),
    "NUL": ("a\0b", "control characters"),
    "C1": ("a\x9bb", "control characters"),
    "surrogate": ("a\udc80", "surrogates"),
    "long": ("n" * 201, "1 to 200 characters"),
    "hash": ("#0", "kept for asteps"),
    "dollar": ("$end", "kept for asteps"),
    "number": (7, "is a str"),
    "bytes": (b"a", "is a str"),
    "none": (None, "is a str"),
}


@pytest.mark.parametrize("what", BAD_NAMES)
def test_a_name_that_is_not_allowed_is_misuse(place: Place, what: str) -> None:
    """The message shows the name without its control characters; corrected code goes on."""
    name, says = BAD_NAMES[what]
    names: list[Any] = [name]

    async def flow(s: Step) -> int:
        await s.do("good", leaf)
        return await s.do(names[0], leaf)

    def drive() -> int:
        return place.go(lambda store: asteps.run(flow, store=store, id="vm-42", name="flow"))

    with pytest.raises(UsageError) as caught:
        drive()
    assert says in str(caught.value)
    assert str(caught.value).isprintable()
    assert RAN == ["good"]
    state = place.state()
    assert state is not None
    assert [p for p, _ in state.walk()] == ["", "good"]
    names[0] = "better"
    assert drive() == 2


def test_a_step_too_deep_is_misuse_before_its_body_runs(place: Place) -> None:
    """Steps may be 50 deep; the 51st is refused, the 50 above it are not failed, and load."""
    limit = [60]

    async def down(s: Step) -> int:
        depth = s.path.count("/") + 1 if s.path else 0
        RAN.append(s.path)
        return 1 if depth == limit[0] else await s.do("d", down)

    def drive() -> int:
        return place.go(lambda store: asteps.run(down, store=store, id="vm-42", name="down"))

    with pytest.raises(UsageError, match="more than 50 steps deep"):
        drive()
    assert max(path.count("/") for path in RAN) == 49
    state = place.state()
    assert state is not None
    assert not any(n.errs or n.done for _, n in state.walk())
    limit[0] = 50
    assert drive() == 1
    state = place.state()
    assert state is not None
    assert sum(1 for _ in state.walk()) == 51


def test_a_result_that_is_too_large_fails_its_step_for_good(place: Place) -> None:
    """2 MiB: the step has failed, on every pass; the message says how large and what to do."""

    async def large(s: Step) -> str:
        RAN.append(s.path)
        return "x" * (2 << 20)

    async def flow(s: Step) -> int:
        return len(await s.do("large", large, retry=asteps.Retry(attempts=3, delay=0)))

    def drive(**keywords: Any) -> int:
        return place.go(
            lambda store: asteps.run(flow, store=store, id="vm-42", name="flow", **keywords)
        )

    for _ in range(2):
        with pytest.raises(StepError) as caught:
            drive()
        assert caught.value.origin == "large"
        assert caught.value.failure.final
        message = caught.value.failure.message
        for word in ("large: ", "2,097,154 bytes", "max_result_bytes=1,048,576", "a reference"):
            assert word in message
    assert RAN == ["large"]
    assert sum(map(len, place.files().values())) < 1 << 20
    assert drive(recover=True, max_result_bytes=3 << 20) == 2 << 20
    assert RAN == ["large", "large"]


# --- how the drivers are called -------------------------------------------------------------------


def test_a_store_belongs_to_one_event_loop(place: Place) -> None:
    """In another loop every driver is refused, says so, and leaves the store as it was."""

    async def main() -> None:
        async with place.open() as store:
            await run(store)
            before, ran = place.files(), RAN.copy()

            def elsewhere(backend: str, use: Callable[[Real], Awaitable[object]]) -> None:
                with pytest.raises(UsageError) as caught:
                    anyio.run(use, store, backend=backend)
                for word in ("event loop", str(place.path), "make"):
                    assert word in str(caught.value)

            for backend in ("asyncio", "trio"):
                for use in READERS:
                    await anyio.to_thread.run_sync(elsewhere, backend, use)
            assert (place.files(), RAN) == (before, ran)
            assert await run(store) == 5

    anyio.run(main, backend=place.backend)
    assert place.go(run) == 5  # another store of the same place, in another loop


BAD_IDS: dict[str, Any] = {
    "empty": "",
    "long": "x" * 501,
    "newline": "a\nb",
    "NUL": "vm\0-42",
    "escape": "\x1b[2J",
    "C1": "a\x85",
    "surrogate": "\ud800",
    "bytes": b"vm-42",
    "number": 42,
    "path": Path("vm-42"),
}


@pytest.mark.parametrize("what", BAD_IDS)
def test_an_id_that_is_not_allowed_is_misuse(place: Place, what: str) -> None:
    """Every driver refuses it before it touches the store, in a message that can be printed."""
    bad = BAD_IDS[what]
    uses: list[Callable[[Real], Awaitable[object]]] = [
        lambda store: asteps.run(root, store=store, id=bad),
        lambda store: asteps.reconcile(root, store=store, id=bad),
        lambda store: asteps.load_state(store, bad),
        lambda store: asteps.delete_run(store, bad),
        lambda store: _edit(store, bad),
    ]

    async def main() -> None:
        store = place.open()
        for use in uses:
            with pytest.raises(UsageError, match=r"^id=") as caught:
                await use(store)
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 700
        with pytest.raises(UsageError, match=r"^id="):
            asteps.open_run("x", store=store, id=bad)
        await store.aclose()

    anyio.run(main, backend=place.backend)
    assert place.files() == {}
    assert RAN == []


async def _edit(store: Real, id: str) -> None:
    async with asteps.edit_run(store, id):
        pass


ODD_IDS = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "~",
    "a/b",
    "a\\b",
    "a%2fb",
    "%00",
    "-rf",
    "con",
    "C:\\x",
    " ",
    "x.log",
    "run-x.log",
    "RUN",
    "run",
    "\u00e4/\u2028\U0001f600",
    "\u202egnp.exe",
    "../" * 160,
    "\U0001f600" * 500,
    "x" * 500,
]


def test_ids_that_look_like_paths_stay_in_the_store(place: Place) -> None:
    """An id never leads out of the directory, and no two ids are one run."""
    outside = place.path.parent.parent
    before = {p for p in outside.iterdir() if p != place.path.parent}

    async def use(store: Real) -> None:
        for number, id in enumerate(ODD_IDS):
            assert await asteps.run(_echo, number, store=store, id=id) == number
        for number, id in enumerate(ODD_IDS):
            assert await asteps.run(_echo, number, store=store, id=id) == number
            state = await asteps.load_state(store, id)
            assert state is not None
            assert state.result_as(int) == number
        found = [found.id for found in await asteps.list_runs(store)]
        assert found == sorted(ODD_IDS)
        assert await asteps.delete_run(store, "../../etc/passwd")
        assert await asteps.load_state(store, "../../etc/passwd") is None
        assert len(await asteps.list_runs(store)) == len(ODD_IDS) - 1

    place.go(use)
    assert {p for p in outside.iterdir() if p != place.path.parent} == before
    inside = {place.path.name, f"{place.path.name}-wal", f"{place.path.name}-shm"}
    assert {p.name for p in place.path.parent.iterdir()} <= inside
    if place.kind == "file":
        assert all(p.is_file() for p in place.path.iterdir())


async def _echo(s: Step, number: int) -> int:
    return number


def test_drivers_say_which_keyword_is_wrong(place: Place) -> None:
    """Keywords of the wrong type, or that do not go together, are misuse that names them."""

    async def main() -> None:
        store = place.open()
        state = State("x")
        bad: list[tuple[dict[str, Any], str]] = [
            ({"store": store}, "id= is missing"),
            ({"id": "x"}, "store= is missing"),
            ({"store": str(place.path), "id": "x"}, "store= takes a Store, not str"),
            ({"store": type(store), "id": "x"}, "store= takes a Store"),
            ({"store": store, "id": "x", "state": state}, "exclude each other"),
            ({"state": b"{}"}, "State.decode()"),
            ({"state": {"name": "x"}}, "State.decode()"),
            ({"save": "never"}, "save= is 'step' or 'pass'"),
            ({"max_wait": -1}, "max_wait="),
            ({"max_wait": float("nan")}, "max_wait="),
            ({"max_pass": 0}, "max_pass="),
            ({"lease": "30"}, "lease="),
            ({"max_crashes": 0}, "max_crashes="),
            ({"max_result_bytes": 1.5}, "max_result_bytes="),
            ({"name": ""}, "name="),
            ({"name": "a\nb"}, "name="),
            ({"inputs": Socket()}, "inputs="),
        ]
        for keywords, says in bad:
            with pytest.raises(UsageError) as caught:
                await asteps.run(root, **keywords)
            assert says in str(caught.value)
        for fn in (lambda s: None, 5, "root", None):
            with pytest.raises(UsageError):
                await asteps.run(fn, store=store, id="x")  # type: ignore[arg-type]
        await store.aclose()

    anyio.run(main, backend=place.backend)
    assert place.files() == {}
    assert RAN == []


def test_editing_what_is_not_there_is_misuse(place: Place) -> None:
    """An unknown run or step is named; nothing is saved."""

    async def use(store: Real) -> None:
        with pytest.raises(UsageError, match="there is no run 'vm-42'"):
            await edit(store)
        assert await asteps.load_state(store, "vm-42") is None
        assert await asteps.delete_run(store, "vm-42") is False
        await run(store)
        before = await asteps.load_state(store, "vm-42")
        for change, says in _BAD_EDITS:
            with pytest.raises(AstepsError, match=says):
                async with asteps.edit_run(store, "vm-42") as state:
                    change(state)
        assert await asteps.load_state(store, "vm-42") == before
        assert isinstance(await reconcile(store), Done)

    place.go(use)


_BAD_EDITS: list[tuple[Callable[[State], object], str]] = [
    (lambda s: s.reset("nowhere"), "no step 'nowhere': the children of the root are: 'a', 'b'"),
    (lambda s: s.recover("a"), "'a' has not failed"),
    (lambda s: s.rename("a", "b"), "'b'"),
    (lambda s: s.rename("a", "a\n"), "control characters"),
    (lambda s: s.set_result("a", Socket()), "result of step 'a' cannot be stored"),
]
