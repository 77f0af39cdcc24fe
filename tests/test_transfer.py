"""A run can be taken out of a store as a document, and put into another one, and goes on there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

import asteps
from asteps import (
    BusyError,
    ConflictError,
    Pending,
    StateFormatError,
    Step,
    StepError,
    UsageError,
    export_run,
    import_run,
    load_state,
)
from asteps.stores.file import FileStore
from asteps.stores.memory import MemoryStore
from asteps.stores.sqlite import SQLiteStore
from asteps.testing import FaultyStore

KINDS: dict[str, Callable[[Path], Any]] = {
    "memory": lambda _: MemoryStore(),
    "file": lambda path: FileStore(path / "runs"),
    "sqlite": lambda path: SQLiteStore(path / "runs.db"),
}


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """A store of each kind, to move runs to."""
    store = KINDS[request.param](tmp_path)
    yield store
    await store.aclose()


class Flow:
    """Steps that say what they did, and with which token."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.tokens: dict[str, str] = {}
        self.is_down = True

    async def leaf(self, s: Step) -> str:
        self.log.append(s.path)
        self.tokens[s.path] = s.token
        if s.path == "b" and self.is_down:
            raise ConnectionError("b is down")
        return s.path

    async def root(self, s: Step) -> list[str]:
        return [await s.do("a", self.leaf), await s.do("b", self.leaf)]


async def failed_run(store: Any, id: str = "r") -> Flow:
    """A run whose second step failed."""
    flow = Flow()
    with pytest.raises(StepError):
        await asteps.run(flow.root, store=store, id=id)
    flow.log.clear()
    return flow


async def test_a_run_goes_on_in_another_store(store: Any) -> None:
    """What was done stays done, tokens stay the same, and the summary says what the tree says."""
    source = MemoryStore()
    flow = await failed_run(source)
    tokens = dict(flow.tokens)
    data = await export_run(source, "r")
    state = await import_run(store, "moved", data)
    assert state.failed
    stored = await store.load("moved")
    old = await source.load("r")
    assert old is not None
    assert (stored.summary.status, stored.summary.owner, stored.summary.epoch) == (
        "failed",
        None,
        1,
    )
    assert (stored.summary.name, stored.summary.done_at) == (old.summary.name, old.summary.done_at)
    assert stored.summary.created_at == pytest.approx(old.summary.created_at)
    assert stored.records == old.records
    assert await export_run(store, "moved") == data
    flow.is_down = False
    assert await asteps.run(flow.root, store=store, id="moved", recover=True) == ["a", "b"]
    assert (flow.log, flow.tokens) == (["b"], tokens)


async def test_an_unfinished_run_goes_on(store: Any) -> None:
    """A run that waits goes on waiting, and one that a driver worked on is due, in the copy."""
    source = MemoryStore()
    running: list[bytes] = []

    async def root(s: Step) -> str:
        await s.call("a", int, 1)
        if not running:
            running.append(await export_run(source.client(), "r"))
            s.pending(after=3600)
        return "done"

    outcome = await asteps.reconcile(root, store=source, id="r", name="root")
    assert isinstance(outcome, Pending)
    await import_run(store, "worked on", running[0])
    await import_run(store, "waits", await export_run(source, "r"))
    old = await source.load("r")
    assert old is not None
    summary = (await store.load("waits")).summary
    assert (summary.status, summary.wake_at) == ("pending", old.summary.wake_at)
    summary = (await store.load("worked on")).summary
    assert (summary.status, summary.owner) == ("pending", None)
    assert summary.wake_at <= summary.updated_at
    for id, status in (("worked on", "interrupted"), ("waits", "waiting")):
        state = await load_state(store, id)
        assert state is not None
        assert [phase.status for phase in state.phases] == ["working", status]
    assert await asteps.run(root, store=store, id="worked on", name="root") == "done"


async def test_a_go_document_is_imported(store: Any) -> None:
    """What the Go library saved becomes a run, with its steps and times."""
    done = {"startedAt": "2023-05-01T10:00:00Z", "doneAt": "2023-05-01T10:00:05Z"}
    document = {
        "name": "MoveToVPC",
        "startedAt": "2023-05-01T09:59:59Z",
        "info": None,
        "states": [{"name": "a", **done}],
    }
    state = await import_run(store, "go", json.dumps(document))
    assert state.get("a").done
    summary = (await store.load("go")).summary
    begun = datetime(2023, 5, 1, 9, 59, 59, tzinfo=UTC).timestamp()
    assert (summary.name, summary.status, summary.created_at) == ("MoveToVPC", "pending", begun)
    log: list[str] = []

    async def root(s: Step) -> None:
        await s.call("a", log.append, "a")
        await s.call("b", log.append, "b")

    await asteps.run(root, store=store, id="go", name="MoveToVPC")
    assert log == ["b"]
    assert (await store.load("go")).summary.status == "done"


async def test_an_existing_run_is_not_overwritten_by_accident(store: Any) -> None:
    """An id that is taken is refused; with ``replace`` the run is another one, its epoch higher."""
    source = MemoryStore()
    await failed_run(source)
    data = await export_run(source, "r")
    flow = Flow()
    flow.is_down = False

    async def other(s: Step) -> int:
        await s.call("x", int, 1)
        return await s.call("y", int, 2)

    await asteps.run(other, store=store, id="r")
    before = await store.load("r")
    with pytest.raises(UsageError, match="replace=True"):
        await import_run(store, "r", data)
    assert await store.load("r") == before
    await import_run(store, "r", data, replace=True)
    after = await store.load("r")
    assert set(after.records) == {"", "a", "b"}
    assert after.summary.epoch == before.summary.epoch + 1
    assert await asteps.run(flow.root, store=store, id="r", recover=True) == ["a", "b"]


async def test_a_held_run_is_not_replaced(store: Any) -> None:
    """While somebody advances a run, nothing takes its place."""
    source = MemoryStore()
    await failed_run(source)
    data = await export_run(source, "r")

    async def root(s: Step) -> int:
        with pytest.raises(BusyError):
            await import_run(store, "r", data, replace=True)
        return await s.call("x", int, 1)

    assert await asteps.run(root, store=store, id="r") == 1
    state = await load_state(store, "r")
    assert state is not None
    assert state.done


async def test_what_is_no_run_is_refused(store: Any) -> None:
    """Nothing is stored of a document that is corrupt, newer, or something else."""
    for data in (b"", b"{", b"[]", b'{"name": "x", "run": {"format": 99}}', b'{"a": 1}'):
        with pytest.raises(StateFormatError):
            await import_run(store, "r", data)
    assert await store.load("r") is None
    with pytest.raises(UsageError, match="there is no run 'r'"):
        await export_run(store, "r")


async def test_the_first_of_two_imports_wins() -> None:
    """A run that somebody makes at the same moment is not overwritten."""
    source, target = MemoryStore(), MemoryStore()
    await failed_run(source)
    data = await export_run(source, "r")
    results: list[str] = []

    async def attempt() -> None:
        try:
            await import_run(target.client(), "r", data)
            results.append("stored")
        except (ConflictError, UsageError):
            results.append("refused")

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(attempt)
    assert sorted(results) == ["refused"] * 4 + ["stored"]


async def test_a_lost_acknowledgement_of_an_import() -> None:
    """An import whose acknowledgement is lost has landed; no false conflict is reported."""
    source, target = MemoryStore(), MemoryStore()
    await failed_run(source)
    data = await export_run(source, "r")
    await import_run(FaultyStore(target.client(), {1: "lost"}), "r", data)
    assert await export_run(target, "r") == data
