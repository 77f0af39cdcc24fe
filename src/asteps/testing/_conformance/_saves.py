"""A save changes what it names, if the run is where the caller saw it, and says so truly."""

# ruff: noqa: S101 - asserts are what a test is made of

from __future__ import annotations

import pytest

from ..._store import Store, StoredRun, Summary
from ...errors import ConflictError
from ._base import Another, Kit, a_summary, save

NONSENSE = ("", "0", "1", "-1", "nobody's", "\x00", "'", "ä", "9" * 500)


class SaveKit(Kit):
    """Compare-and-set, write ids, and removal."""

    async def test_save_sets_removes_and_keeps(self, store: Store) -> None:
        """Named keys are set or removed; a removed key need not be there; the others stay."""
        revision = await save(store, "run", {"a": b"1", "b": b"1", "c": b"1"}, None)
        revision = await save(store, "run", {"a": b"2", "b": None, "x": None, "d": b"2"}, revision)
        left = {"a": b"2", "c": b"1", "d": b"2"}
        assert await store.load("run") == StoredRun(left, revision, a_summary())
        revision = await save(store, "run", dict.fromkeys([*left, "x"]), revision)
        assert await store.load("run") == StoredRun({}, revision, a_summary())
        revision = await save(store, "run", {"b": b"3"}, revision)
        assert await store.load("run") == StoredRun({"b": b"3"}, revision, a_summary())

    async def test_creation_ignores_removals(self, store: Store) -> None:
        """A run may be created with keys to remove, or with no record at all."""
        revision = await save(store, "run", {"a": None, "b": b"1"}, None)
        assert await store.load("run") == StoredRun({"b": b"1"}, revision, a_summary())
        revision = await save(store, "empty", {}, None)
        assert await store.load("empty") == StoredRun({}, revision, a_summary())

    async def test_empty_save_changes_summary_and_revision(self, store: Store) -> None:
        """A save without changes replaces the summary whole, under a new revision."""
        old = Summary("f", "pending", 1, "host:1", 1.0, 2.0, wake_at=3.0, done_at=4.0)
        new = Summary("g", "done", 2, None, 5.0, 6.0)
        first = await save(store, "run", {"k": b"1"}, None, summary=old)
        second = await save(store, "run", {}, first, summary=new)
        assert await store.load("run") == StoredRun({"k": b"1"}, second, new)
        assert second != first

    async def test_creation_demands_that_there_is_none(self, another: Another) -> None:
        """Creating a run that is there conflicts, for every client, and changes nothing."""
        first, second = await another(), await another()
        revision = await save(first, "run", {"k": b"1"}, None)
        for store in (first, second):
            with pytest.raises(ConflictError) as caught:
                await save(store, "run", {"k": b"2", "l": b"2"}, None)
            assert (caught.value.id, caught.value.expected) == ("run", None)
            assert await store.load("run") == StoredRun({"k": b"1"}, revision, a_summary())

    async def test_conflict_leaves_the_data(self, another: Another) -> None:
        """A save that expects another revision, stale or nonsense, conflicts and writes nothing."""
        first, second = await another(), await another()
        other = await save(first, "other", {}, None)
        stale = await save(first, "run", {"k": b"1"}, None)
        revision = await save(second, "run", {"k": b"2"}, stale)
        stored = StoredRun({"k": b"2"}, revision, a_summary())
        for store in (first, second):
            for expected in (stale, other, revision + "0", *NONSENSE):
                if expected == revision:
                    continue
                with pytest.raises(ConflictError) as caught:
                    await save(
                        store,
                        "run",
                        {"k": None, "l": b"3"},
                        expected,
                        summary=a_summary(9, name="stranger"),
                    )
                assert (caught.value.id, caught.value.expected) == ("run", expected)
                assert await store.load("run") == stored

    async def test_save_expecting_a_run_creates_none(self, store: Store) -> None:
        """A save that expects a revision of a run that is not there conflicts, and makes none."""
        other = await save(store, "other", {}, None)
        for expected in (other, *NONSENSE):
            with pytest.raises(ConflictError):
                await save(store, "run", {"k": b"1"}, expected)
            assert await store.load("run") is None

    async def test_revision_is_never_used_twice(self, another: Another) -> None:
        """No two saves of one id give the same revision, also after delete and creation."""
        clients = [await another(), await another()]
        seen: list[str] = []
        for n in range(4):
            revision = None
            for m in range(3):
                revision = await save(clients[(n + m) % 2], "run", {"k": b"1"}, revision)
                seen.append(revision)
            assert revision is not None
            await clients[n % 2].delete("run", expected=revision)
        clients.append(await another())
        seen.append(await save(clients[-1], "run", {"k": b"1"}, None))
        assert len(set(seen)) == len(seen), f"a revision came twice: {seen}"

    async def test_revision_from_before_a_delete_conflicts(self, another: Another) -> None:
        """Who saw the run before it was deleted and created again cannot save or delete it."""
        first, second = await another(), await another()
        old = await save(first, "run", {"k": b"1"}, None)
        await second.delete("run", expected=old)
        with pytest.raises(ConflictError):
            await save(first, "run", {"k": b"2"}, old)
        new = await save(second, "run", {"k": b"1"}, None)
        with pytest.raises(ConflictError):
            await save(first, "run", {"k": b"2"}, old)
        with pytest.raises(ConflictError):
            await first.delete("run", expected=old)
        assert await first.load("run") == StoredRun({"k": b"1"}, new, a_summary())

    async def test_repeated_save_is_recognised(self, another: Another) -> None:
        """The identical save again answers the revision that it made, and writes nothing."""
        first, second = await another(), await another()
        revision = None
        for n in range(3):
            expected, changes = revision, {"k": b"%d" % n}
            revision = await save(first, "run", changes, expected, write_id=f"write-{n}")
            stored = StoredRun({"k": b"%d" % n}, revision, a_summary())
            for store in (first, second, first, await another()):
                again = await save(store, "run", changes, expected, write_id=f"write-{n}")
                assert again == revision
                assert await store.load("run") == stored

    async def test_repeated_save_is_recognised_at_the_head_only(self, another: Another) -> None:
        """A save that others have built upon conflicts when it is repeated."""
        first, second = await another(), await another()
        begin = await save(first, "run", {"k": b"0"}, None)
        old = await save(first, "run", {"k": b"1"}, begin, write_id="old")
        head = await save(second, "run", {"l": b"2"}, old, write_id="new")
        for store in (first, second):
            with pytest.raises(ConflictError):
                await save(store, "run", {"k": b"1"}, begin, write_id="old")
            assert await store.load("run") == StoredRun({"k": b"1", "l": b"2"}, head, a_summary())

    async def test_write_id_counts_under_its_epoch_only(self, another: Another) -> None:
        """A head with the same write id and another epoch is a stranger's, and conflicts."""
        first, second = await another(), await another()
        begin = await save(first, "run", {"k": b"0"}, None)
        stored = StoredRun(
            {"k": b"1"},
            await save(first, "run", {"k": b"1"}, begin, write_id="w", summary=a_summary(2)),
            a_summary(2),
        )
        for store in (first, second):
            for epoch in (1, 3):
                for expected in (begin, None):
                    with pytest.raises(ConflictError):
                        await save(
                            store,
                            "run",
                            {"k": b"2"},
                            expected,
                            write_id="w",
                            summary=a_summary(epoch),
                        )
                    assert await store.load("run") == stored

    async def test_delete_removes_all(self, another: Another) -> None:
        """A deleted run is gone for every client, and nothing of it is in one created later."""
        first, second = await another(), await another()
        revision = await save(first, "run", {"a": b"1", "b": b"1"}, None)
        await first.delete("run", expected=revision)
        for store in (first, second):
            assert await store.load("run") is None
        revision = await save(second, "run", {"b": b"2"}, None)
        for store in (first, second):
            assert await store.load("run") == StoredRun({"b": b"2"}, revision, a_summary())

    async def test_delete_at_another_revision_conflicts(self, another: Another) -> None:
        """A delete that expects another revision conflicts, and removes nothing."""
        first, second = await another(), await another()
        stale = await save(first, "run", {"k": b"1"}, None)
        revision = await save(second, "run", {"k": b"2"}, stale)
        for store in (first, second):
            for expected in (stale, *NONSENSE):
                if expected == revision:
                    continue
                with pytest.raises(ConflictError) as caught:
                    await store.delete("run", expected=expected)
                assert (caught.value.id, caught.value.expected) == ("run", expected)
                assert await store.load("run") == StoredRun({"k": b"2"}, revision, a_summary())

    async def test_delete_of_nothing_is_no_error(self, another: Another) -> None:
        """A delete may be repeated after a lost answer: what is not there need not be removed."""
        first, second = await another(), await another()
        revision = await save(first, "run", {"k": b"1"}, None)
        for store in (first, first, second):
            await store.delete("run", expected=revision)
        for expected in (revision, *NONSENSE):
            await first.delete("never there", expected=expected)
        assert await first.load("run") is None
