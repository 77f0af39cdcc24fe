"""A store is named by a URL or a path, and a slip in a name makes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import anyio
import pytest

import asteps
from asteps import MissingDependencyError, UsageError, open_store
from asteps.stores.file import FileStore
from asteps.stores.memory import MemoryStore
from asteps.stores.sqlite import SQLiteStore


async def one(s: asteps.Step) -> int:
    """A run of one step."""
    return await s.call("one", int, 1)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("url", "kind", "file"),
    [
        ("sqlite:runs.db", SQLiteStore, "runs.db"),
        ("SQLite:./runs", SQLiteStore, "runs"),
        ("sqlite://{here}/a%3Fb.db?synchronous=normal", SQLiteStore, "a?b.db"),
        ("sqlite://localhost{here}/x.db", SQLiteStore, "x.db"),
        ("sqlite:{here}/x.db", SQLiteStore, "x.db"),
        ("file:runs/", FileStore, "runs"),
        ("file://{here}/my%20runs", FileStore, "my runs"),
        ("runs.db", SQLiteStore, "runs.db"),
        ("./a:b%20?c.sqlite3", SQLiteStore, "a:b%20?c.sqlite3"),
        ("{here}/runs.SQLITE", SQLiteStore, "runs.SQLITE"),
        ("there/", FileStore, "there"),
        (".", FileStore, "."),
    ],
)
async def test_a_url_opens_its_store(directory: Path, url: str, kind: type, file: str) -> None:
    """Each form gives its store, which keeps runs where it says, and is closed at the end."""
    await anyio.Path(directory / "there").mkdir()
    url = url.format(here=directory)
    async with open_store(url) as store:
        assert type(store) is kind
        assert await asteps.run(one, store=store, id="r") == 1
    assert await anyio.Path(directory / file).exists()
    with pytest.raises(asteps.StoreClosedError):
        await store.load("r")
    async with open_store(url, create=False) as store:
        assert [run.id async for run in asteps.browse_runs(store)] == ["r"]


async def test_memory_is_new_each_time() -> None:
    """``memory:`` is a store of its own, and nothing to be looked at from outside."""
    async with open_store("memory:") as store:
        assert type(store) is MemoryStore
        assert await asteps.run(one, store=store, id="r") == 1
    with pytest.raises(UsageError, match="holds no runs"):
        async with open_store("memory:", create=False):
            pass


async def test_an_existing_path_is_what_it_holds(directory: Path) -> None:
    """A file that is a database is one, whatever its name; another file is refused."""
    async with SQLiteStore(directory / "production") as store:
        await asteps.run(one, store=store, id="r")
    async with open_store("production") as store:
        assert type(store) is SQLiteStore
        assert await asteps.run(one, store=store, id="r") == 1
    await anyio.Path(directory / "notes.txt").write_text("milk")
    await refused("notes.txt", "'notes.txt' is no SQLite database")
    await refused("/dev/null", "neither a file nor a directory")
    await refused("sqlite:.", "is a directory")
    await refused("file:notes.txt", "is no directory")
    assert await anyio.Path(directory / "notes.txt").read_text() == "milk"


async def refused(url: str, says: str, *, create: bool = True) -> str:
    """The message with which a URL is refused."""
    with pytest.raises(UsageError, match=says) as caught:
        async with open_store(url, create=create):
            pass
    return str(caught.value)


@pytest.mark.parametrize(
    "url", ["sqlite:rnus.db", "rnus.db", "file:rnus", "rnus", "empty.db", "sqlite:empty.db"]
)
async def test_a_reader_makes_nothing(directory: Path, url: str) -> None:
    """With ``create=False`` what is not there is an error that says so, and stays so."""
    await anyio.Path(directory / "empty.db").touch()
    await refused(url, "nothing was made", create=False)
    assert [f.name async for f in anyio.Path(directory).iterdir()] == ["empty.db"]
    assert (await anyio.Path(directory / "empty.db").stat()).st_size == 0


async def test_a_path_that_says_too_little(directory: Path) -> None:
    """A new storage is only made where it is clear of which kind."""
    await refused("runs", "sqlite:runs or file:runs")
    await refused("", "names no store")
    await refused("a\0b", "names no store")
    await refused("sqlite:", "names no file")
    await refused("file:", "names no directory")
    await refused("memory:x", "no path")
    await refused("sqlite://host/runs.db", "no host")
    await refused("sqlite:runs.db#x", "%23")
    await refused("sqlite:runs.db?synchronous=OFF", "FULL or NORMAL")
    await refused("sqlite:runs.db?x=1", "no option 'x'")
    await refused("file:runs?x=1", "it has none")
    await refused("sqlite:runs.db?oops", "name=value")
    assert [f.name async for f in anyio.Path(directory).iterdir()] == []


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Pretend that packages are installed which register these stores."""

    def register(entries: dict[str, str]) -> None:
        found = EntryPoints(
            EntryPoint(name, value, "asteps.stores") for name, value in entries.items()
        )
        monkeypatch.setattr("importlib.metadata.entry_points", lambda *, group: found)

    return register


OPENED: list[tuple[str, bool]] = []


def make_store(url: str, *, create: bool) -> MemoryStore:
    """What a package's entry point is."""
    OPENED.append((url, create))
    return MemoryStore()


def lacks_a_driver(url: str, *, create: bool) -> Any:
    """A store whose client library is not installed."""
    raise MissingDependencyError("psycopg", "postgres")


async def test_other_packages_bring_stores(
    registered: Callable[[dict[str, str]], None],
) -> None:
    """A registered scheme gets the URL to the letter; what it raises comes out."""
    registered({"redis": f"{__name__}:make_store", "postgres": f"{__name__}:lacks_a_driver"})
    OPENED.clear()
    async with open_store("redis://u:secret@h/0?x=%20", create=False) as store:
        assert type(store) is MemoryStore
    assert OPENED == [("redis://u:secret@h/0?x=%20", False)]
    with pytest.raises(MissingDependencyError, match="psycopg"):
        async with open_store("postgres://u:secret@h/d"):
            pass


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@h:5432/d?password=hunter2",
        "redis:hunter2",
        "sqlite://u:hunter2@h/runs.db",
        "file://:hunter2@h/",
        "memory://u:hunter2@h",
        "sqlite:runs.db?hunter2",
    ],
)
async def test_no_message_repeats_a_password(
    directory: Path, registered: Callable[[dict[str, str]], None], url: str
) -> None:
    """An unknown scheme lists the known ones; the rest of a URL is not repeated."""
    registered({"mongodb": f"{__name__}:make_store"})
    message = await refused(url, ".")
    assert "hunter2" not in message
    if not url.startswith(("sqlite", "file", "memory")):
        assert "file:, memory:, mongodb:, sqlite:" in message
        assert "asteps.stores" in message


def fails(url: str, *, create: bool) -> Any:
    """A store whose package raises what it likes."""
    raise ValueError(f"no such host: {url}")


@pytest.mark.parametrize("function", [f"{__name__}:fails", "no_such_module:f", f"{__name__}:gone"])
async def test_a_package_that_fails_repeats_no_password(
    directory: Path, registered: Callable[[dict[str, str]], None], function: str
) -> None:
    """What another package raises is misuse of that package, and its message is kept inside."""
    registered({"redis": function})
    message = await refused("redis://u:hunter2@h/0", ".")
    assert "hunter2" not in message
    assert "redis: could not open this one (" in message


async def test_a_damaged_database_can_be_looked_at(directory: Path) -> None:
    """Opening reads nothing, so that the damage is for `inspect_store` to tell."""
    async with open_store("runs.db") as store:
        await asteps.run(one, store=store, id="r")
    path = anyio.Path(directory / "runs.db")
    data = await path.read_bytes()
    await path.write_bytes(data[:100] + b"\xff" * 1000 + data[1100:])
    async with open_store("runs.db", create=False) as store:
        report = await asteps.inspect_store(store)
        assert report.problems
    assert sqlite3.sqlite_version == report.facts["sqlite_version"]
