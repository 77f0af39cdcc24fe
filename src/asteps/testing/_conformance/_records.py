"""What is saved is what is loaded."""

# ruff: noqa: S101 - asserts are what a test is made of

from __future__ import annotations

import pytest

from ..._store import (
    BrowseStore,
    FoldStore,
    InspectStore,
    LeaseStore,
    ListStore,
    ScanStore,
    Store,
    StoredRun,
    Summary,
)
from ...errors import StoreRefusedError
from ._base import Another, Kit, a_summary, save

CAPABILITIES = (
    (LeaseStore, "leases"),
    (ListStore, "listing"),
    (BrowseStore, "browsing"),
    (ScanStore, "scanning"),
    (InspectStore, "inspecting"),
    (FoldStore, "folding"),
)

# Traps of file names, SQL, URLs, key prefixes and case-insensitive or normalising media.
AWKWARD_IDS = (
    "a",
    "A",
    "ä",
    "a\u0308",
    "Ä",
    "ß",
    "SS",
    "ss",
    "\u0131",
    "i",
    " ",
    "a ",
    " a",
    ".",
    "..",
    "../a",
    "/",
    "/etc/passwd",
    "a/b",
    "a/b/",
    "a//b",
    "a\\b",
    "a%2fb",
    "a%2Fb",
    "%",
    "%%",
    "_",
    "-",
    "--",
    "~",
    "$a",
    "#0",
    "*",
    "?",
    ":",
    "a:b",
    "a.b",
    "a.log",
    "lock",
    "CON",
    "nul.txt",
    "NULL",
    "null",
    "'",
    '"',
    "'; drop table runs; --",
    "\x00",
    "a\x00b",
    "a\nb",
    "\t",
    "\x7f",
    "\x80",
    "\ufffd",
    "\ufeff",
    "\uffff",
    "\U0001f600",
    "\U0010ffff",
    "0",
    "00",
    "-1",
    "1e3",
    "x" * 500,
    "x" * 499 + "y",
    "X" * 500,
    "\U0001f600" * 500,
    "/" * 500,
)
AWKWARD_KEYS = ("", *AWKWARD_IDS, "k" * 20_000, "k" * 19_999 + "l", "\U0001f600" * 20_000)
AWKWARD_BYTES = (
    b"{}",
    b"null",
    b'""',
    b"0",
    b"-0.0",
    b" {\n\t} \r\n",
    b'{"a":1,"a":2}',
    b'"\\u0000 \\ud800"',
    b'"\\"\'"',
    '{"z":"ä\u2028\U0001f600","a":1.0}'.encode(),
    b"[" + b"1e5," * 999 + b"1]",
)


class RecordKit(Kit):
    """One client after another; nobody is in anybody's way."""

    async def test_capabilities_are_declared_and_there(self, store: Store) -> None:
        """A store has the capabilities that it declares, and declares those that it has."""
        assert isinstance(store, Store)
        for kind, declared in CAPABILITIES:
            assert isinstance(getattr(self, declared, None), bool), f"declare {declared} = ..."
            assert isinstance(store, kind) is getattr(self, declared), (
                f"{type(store).__name__} declares {declared} = {getattr(self, declared)}"
            )

    async def test_unknown_run_is_none(self, store: Store) -> None:
        """A run that was never saved loads as None."""
        assert await store.load("nobody") is None

    async def test_save_comes_back_exactly(self, store: Store) -> None:
        """Keys, bytes, revision and summary load exactly as they were saved."""
        records = {str(n): data for n, data in enumerate(AWKWARD_BYTES)}
        summary = Summary(
            name="shop.Örder.<locals>",
            status="pending",
            epoch=2**40,
            owner="host:1",
            created_at=1_700_000_000.123456,
            updated_at=1_700_000_001.000001,
            wake_at=1e10 + 0.5,
            done_at=0.0,
        )
        revision = await save(store, "run", records, None, summary=summary)
        assert await store.load("run") == StoredRun(records, revision, summary)
        assert isinstance(revision, str)
        assert revision

    async def test_ids_that_differ_never_meet(self, store: Store) -> None:
        """Any id names a run of its own, whatever the medium thinks of its characters."""
        revisions = {}
        for n, id in enumerate(AWKWARD_IDS):
            assert await store.load(id) is None, f"{id[:40]!r} is another id's run"
            revisions[id] = await save(store, id, {"": b"%d" % n}, None)
        for n, id in enumerate(AWKWARD_IDS):
            assert await store.load(id) == StoredRun({"": b"%d" % n}, revisions[id], a_summary())
        for id in AWKWARD_IDS[::2]:
            await store.delete(id, expected=revisions[id])
        for n, id in enumerate(AWKWARD_IDS):
            assert (await store.load(id) is None) is (n % 2 == 0)

    async def test_keys_that_differ_never_meet(self, store: Store) -> None:
        """Any key, from the empty one to 20,000 characters, names a record of its own."""
        records = {key: b"%d" % n for n, key in enumerate(AWKWARD_KEYS)}
        revision = await save(store, "run", records, None)
        assert await store.load("run") == StoredRun(records, revision, a_summary())
        gone: dict[str, bytes | None] = dict.fromkeys(AWKWARD_KEYS[::2])
        revision = await save(store, "run", gone, revision)
        left = {key: data for key, data in records.items() if key not in gone}
        assert await store.load("run") == StoredRun(left, revision, a_summary())

    async def test_runs_are_independent(self, store: Store) -> None:
        """A save or a removal changes one run, and no other that has the same keys."""
        first = await save(store, "one", {"k": b"1"}, None)
        second = await save(store, "two", {"k": b"2"}, None)
        assert await store.load("one") == StoredRun({"k": b"1"}, first, a_summary())
        first = await save(store, "one", {"k": None, "l": b"3"}, first)
        assert await store.load("two") == StoredRun({"k": b"2"}, second, a_summary())
        await store.delete("two", expected=second)
        assert await store.load("one") == StoredRun({"l": b"3"}, first, a_summary())

    async def test_callers_mapping_is_not_kept(self, store: Store) -> None:
        """Neither what was passed in nor what was handed out changes what is stored."""
        changes: dict[str, bytes | None] = {"k": b"1"}
        revision = await save(store, "run", changes, None)
        changes["k"] = b"2"
        changes["l"] = b"2"
        stored = StoredRun({"k": b"1"}, revision, a_summary())
        loaded = await store.load("run")
        assert loaded == stored
        assert loaded is not None
        loaded.records["k"] = b"3"
        loaded.records["m"] = b"3"
        assert await store.load("run") == stored

    async def test_acknowledged_save_is_seen_by_all(self, another: Another) -> None:
        """Every client sees a save the moment that any client's save has returned."""
        clients = [await another() for _ in range(3)]
        revision = None
        for n in range(12):
            revision = await save(clients[n % 3], "run", {"k": b"%d" % n}, revision)
            stored = StoredRun({"k": b"%d" % n}, revision, a_summary())
            for client in clients:
                assert await client.load("run") == stored

    async def test_large_record(self, store: Store) -> None:
        """A record of 1 MiB comes back exactly; one above the declared limit is refused whole."""
        size = self.max_bytes or 2**20
        large = b'"' + b"x" * (size - 2) + b'"'
        revision = await save(store, "run", {"": b"0"}, None)
        if self.max_bytes is None:
            revision = await save(store, "run", {"": large}, revision)
            assert await store.load("run") == StoredRun({"": large}, revision, a_summary())
            return
        with pytest.raises(StoreRefusedError):
            await save(store, "run", {"": b"1", "l": large}, revision)
        assert await store.load("run") == StoredRun({"": b"0"}, revision, a_summary())

    async def test_many_records(self, store: Store) -> None:
        """A run of 2,000 records, saved at once and then one by one, comes back whole."""
        count = 2_000 if self.max_bytes is None else self.max_bytes // 100
        records = {f"map/item-{n}": b'{"n":%d}' % n for n in range(count)}
        revision = await save(store, "run", records, None)
        for n in range(0, count, 40):
            records[f"map/item-{n}"] = b"[]"
            revision = await save(store, "run", {f"map/item-{n}": b"[]"}, revision)
        assert await store.load("run") == StoredRun(records, revision, a_summary())
