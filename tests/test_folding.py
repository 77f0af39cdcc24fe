"""A finished subtree is one record in a store that folds, and nothing else is different."""

from __future__ import annotations

import json

import anyio
import pytest
from folding import FoldingStore
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

import asteps
from asteps import Done, Pending, State, StateFormatError, Step, edit_run, load_state
from asteps._codec import Folding, assemble, tree_as_records
from asteps._paths import join
from asteps._state import FORMAT, RunRecord
from asteps.testing import StoreConformance


class TestFoldingStore(StoreConformance):
    """The kit: what folds keeps the contract as any store."""

    leases = listing = browsing = scanning = inspecting = folding = True

    @pytest.fixture
    def storage(self) -> FoldingStore:
        return FoldingStore()

    async def client(self, storage: FoldingStore) -> FoldingStore:
        return storage.client()


# --- what is written, step by step ----------------------------------------------------------------


def a_tree() -> State:
    """A run with no steps yet."""
    return State("run", run=RunRecord(FORMAT))


_names = st.sampled_from("abc")
_edits = st.lists(
    st.tuples(
        st.lists(_names, min_size=1, max_size=4),  # where
        st.sampled_from(["add", "done", "failed", "reopen", "remove", "info"]),
        st.booleans(),  # whether a save follows
    ),
    max_size=40,
)


@given(_edits)
def test_records_are_always_the_tree(edits: list[tuple[list[str], str, bool]]) -> None:
    """Whatever happens to a tree between saves, its records make it again, as few as can be."""
    root = a_tree()
    records = tree_as_records(root, fold=True)
    folding = Folding(root, records)
    touched: dict[str, State | None] = {}
    for n, (names, what, save) in enumerate(edits):
        line, path = [root], ""
        for name in names:
            path = join(path, name)
            child = line[-1].child(name)
            if child is None:
                siblings = line[-1].states or []
                child = State(name, place=siblings[-1].place + 1 if siblings else 0)
                line[-1].states = [*siblings, child]
                touched[path] = child
            line.append(child)
        node = line[-1]
        touched[path] = node
        if what == "remove":
            for below, _ in list(node.walk()):
                touched[f"{path}/{below}" if below else path] = None
            line[-2].states = [c for c in line[-2].states or () if c is not node] or None
        else:
            node._done = float(n + 1) if what in ("done", "failed") else None
            node.errs = ["no"] if what == "failed" else None
            node.info = Raw(b"%d" % n)
        if what != "done":  # as the engine does: what is taken up again reopens what is above it
            where = ""
            for name, above in zip([*names, ""], line, strict=True):
                if above is not node and above._done is not None:
                    above._done, above.errs = None, None
                    touched[where] = above
                where = join(where, name)
        if save:
            changes = folding.changes(touched)
            touched = {}
            for key, data in changes.items():
                if data is None:
                    del records[key]
                else:
                    records[key] = data
            assert assemble(records, "it") == assemble(tree_as_records(root), "it")
            assert records.keys() == tree_as_records(root, fold=True).keys()


def test_a_record_and_a_fold_of_one_step_are_refused() -> None:
    """Where a step is in its parent's record and has its own, nobody can say which is true."""
    root = a_tree()
    root.states = [State("a", states=[State("b")])]
    root.states[0]._done = 1.0
    records = tree_as_records(root, fold=True)
    assert set(records) == {"", "a"}
    with pytest.raises(StateFormatError, match="record 'a' holds children that have records too"):
        assemble({**records, "a/b": b'{"name":"b"}'}, "run 'x'")


# --- runs -----------------------------------------------------------------------------------------


def keys(store: FoldingStore) -> list[str]:
    """The records that there are."""
    return sorted(store._storage.runs["x"].records)


async def part(s: Step, ready: bool) -> int:
    """Two steps, and perhaps a wait."""
    await s.call("one", anyio.sleep, 0)
    await s.call("two", anyio.sleep, 0)
    if not ready:
        s.pending(after=60)
    return 2


async def whole(s: Step, ready: bool, items: int = 3) -> int:
    """A map and a part."""

    async def double(c: Step, n: int) -> int:
        return 2 * n

    doubled = await s.map("items", double, range(items))
    return sum(doubled) + await s.do("part", part, ready)


async def test_what_is_done_becomes_one_record() -> None:
    """A done map is a record while the rest goes on, and a done run is one altogether."""
    store = FoldingStore()
    outcome = await asteps.reconcile(whole, False, store=store, id="x")
    assert isinstance(outcome, Pending)
    assert keys(store) == ["", "items", "part", "part/one", "part/two"]
    async with edit_run(store, "x") as state:
        state.reset("part")
    assert keys(store) == ["", "items", "part"]
    done = await asteps.reconcile(whole, True, store=store, id="x")
    assert isinstance(done, Done)
    assert keys(store) == [""]
    loaded = await load_state(store, "x")
    assert loaded is not None
    assert [path for path, _ in loaded.walk()] == [
        "", "items", "items/0", "items/1", "items/2", "part", "part/one", "part/two",
    ]  # fmt: skip
    assert (await asteps.run(whole, True, store=store, id="x")) == done.value


async def test_what_is_taken_up_again_is_taken_apart() -> None:
    """A reset inside a done run opens what is above it, and leaves the rest folded."""
    store = FoldingStore()
    await asteps.run(whole, True, store=store, id="x")
    async with edit_run(store, "x") as state:
        state.reset("part/two")
    assert keys(store) == ["", "items", "part", "part/one", "part/two"]
    again = await asteps.reconcile(whole, True, 5, store=store, id="x")
    assert isinstance(again, Done)
    assert again.value == 2 * (0 + 1 + 2 + 3 + 4) + 2
    assert keys(store) == [""]
    root = json.loads(store._storage.runs["x"].records[""])
    assert [len(child["states"]) for child in root["states"]] == [5, 2]
