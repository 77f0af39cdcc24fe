"""Stores by URL: what a command line, a settings file or an environment variable can say."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Final, NamedTuple, Protocol, runtime_checkable
from urllib.parse import parse_qsl, unquote, urlsplit

from anyio import CancelScope, to_thread

from .._store import Store
from ..errors import AstepsError, UsageError

__all__ = ["GROUP", "open_store", "scheme_of"]

GROUP: Final = "asteps.stores"  # entry points: scheme = function(url, *, create) -> Store

# Two letters at least: C:\runs is a path.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):", re.ASCII)
_DATABASE = re.compile(r"\.(db|sqlite3?)", re.ASCII | re.IGNORECASE)
_MAGIC = b"SQLite format 3\x00"
_HOW = "; a store is named by sqlite:runs.db, file:runs/, memory:, or the path of one that is there"


@runtime_checkable
class _Remote(Protocol):
    """A store of which only a server knows whether it is there."""

    async def must_exist(self) -> None:
        """Ask it.

        Raises:
            UsageError: It is not.
        """
        ...


class _Place(NamedTuple):
    """What a URL of ours says."""

    scheme: str
    path: str
    options: Mapping[str, str]


def open_store(url: str, /, *, create: bool = True) -> AbstractAsyncContextManager[Store]:
    """Open the store that a URL or a path names, and close it at the end of the block.

    ::

        async with asteps.open_store("sqlite:runs.db") as store:
            await asteps.run(move_to_vpc, "vm-42", store=store, id="move-vm-42")

    ======================  =====================================================================
    URL                     store
    ======================  =====================================================================
    ``sqlite:runs.db``      `asteps.stores.sqlite.SQLiteStore` of a file, here relative to the
                            working directory; ``sqlite:///data/runs.db`` is absolute.
                            ``?synchronous=NORMAL`` is its option.
    ``file:runs/``          `asteps.stores.file.FileStore` of a directory; likewise.
    ``memory:``             A new `asteps.stores.memory.MemoryStore`.
    a path                  A file that is a SQLite database, a directory, or a new file whose name
                            ends in ``.db``, ``.sqlite`` or ``.sqlite3``. Begin it with ``./`` if
                            it has a colon in it.
    ======================  =====================================================================

    In a URL ``%xx`` stands for what has a meaning there (``?``, ``#``, ``%``); a path is taken to
    the letter. Any other scheme belongs to the package that registers it as an entry point of the
    group ``asteps.stores``: a function that takes the URL, and the keyword ``create``, and gives a
    store.

    The storage is reached by the first call.

    Args:
        url: The URL, or the path.
        create: Whether a storage that is not there may be made. A program that only reads says
            ``False``, so that a slip in a name makes no empty database.

    Raises:
        UsageError: It names no store, or one that is not there although it must be. The message
            repeats paths, never the rest of a foreign URL, which may hold a password.
        MissingDependencyError: What that store needs is not installed.
    """
    return _opened(url, create)


@asynccontextmanager
async def _opened(url: str, create: bool) -> AsyncIterator[Store]:  # noqa: FBT001 - as it was given
    make = await to_thread.run_sync(_find, url, create)
    store = make()
    try:
        if not create and isinstance(store, _Remote):
            await store.must_exist()
        yield store
    finally:
        with CancelScope(shield=True):
            await store.aclose()


def scheme_of(url: str, /) -> str | None:
    """The scheme of a URL, in lower case; a path has none."""
    match = _SCHEME.match(url)
    return None if match is None else match[1].lower()


def _find(url: str, create: bool) -> Callable[[], Store]:  # noqa: FBT001 - as it was given
    """What makes the store. Looks at the disk, so it runs in a thread."""
    if not url or "\0" in url:
        raise UsageError(f"{url!r} names no store{_HOW}")
    if (scheme := scheme_of(url)) is not None:
        if scheme not in _OURS:
            return _registered(scheme, url, create)
        place = _parse(scheme, url)
    else:
        place = _guess(url, create)
    return _OURS[place.scheme](place, create)


def _parse(scheme: str, url: str) -> _Place:
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"}:
        raise UsageError(
            f"a {scheme}: URL has no host: it is {scheme}:name, or {scheme}:///absolute/name with "
            "three slashes"
        )
    if parts.fragment:
        raise UsageError(f"a {scheme}: URL has no fragment; write %23 for a # in a path")
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise UsageError(
            f"the options of this {scheme}: URL are not of the form ?name=value; "
            "write %3F for a ? in a path"
        ) from None
    return _Place(scheme, unquote(parts.path), dict(pairs))


def _guess(path: str, create: bool) -> _Place:  # noqa: FBT001 - as it was given
    """What a bare path holds, or is going to hold."""
    if os.path.isdir(path):
        return _Place("file", path, {})
    if os.path.exists(path):
        if not os.path.isfile(path):
            raise UsageError(f"{path!r} is neither a file nor a directory{_HOW}")
        if _DATABASE.fullmatch(os.path.splitext(path)[1]) or _is_database(path):
            return _Place("sqlite", path, {})
        raise UsageError(f"{path!r} is no SQLite database{_HOW}")
    if _DATABASE.fullmatch(os.path.splitext(path)[1]):
        return _Place("sqlite", path, {})
    if create:
        raise UsageError(
            f"there is nothing at {path!r}; to make it, say what: sqlite:{path} or file:{path}"
        )
    raise UsageError(f"there is nothing at {path!r}; nothing was made")


def _is_database(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as exc:
        raise UsageError(f"{path!r} cannot be read: {exc.strerror}") from exc


# --- the stores that come with asteps -------------------------------------------------------------


def _no_options(place: _Place, *known: str) -> None:
    if odd := sorted(set(place.options) - set(known)):
        has = f"has {', '.join(known)}" if known else "has none"
        raise UsageError(f"{place.scheme}: knows no option {odd[0]!r}; it {has}")


def _sqlite(place: _Place, create: bool) -> Callable[[], Store]:  # noqa: FBT001 - as it was given
    from .sqlite import SQLiteStore  # noqa: PLC0415 - imported when used

    _no_options(place, "synchronous")
    synchronous = place.options.get("synchronous", "FULL").upper()
    if synchronous not in {"FULL", "NORMAL"}:
        raise UsageError(f"synchronous is FULL or NORMAL, not {synchronous!r}")
    path = place.path
    if not path:
        raise UsageError("sqlite: names no file; say sqlite:runs.db")
    if os.path.isdir(path):
        raise UsageError(f"{path!r} is a directory; say file:{path}, or name a file in it")
    if not create and (not os.path.isfile(path) or os.path.getsize(path) == 0):
        what = "is empty" if os.path.isfile(path) else "is not there"
        raise UsageError(f"the file {path!r} {what}; nothing was made")
    absolute = os.path.abspath(path)
    if synchronous == "NORMAL":
        return lambda: SQLiteStore(absolute, synchronous="NORMAL")
    return lambda: SQLiteStore(absolute)


def _file(place: _Place, create: bool) -> Callable[[], Store]:  # noqa: FBT001 - as it was given
    from .file import FileStore  # noqa: PLC0415 - imported when used

    _no_options(place)
    path = place.path
    if not path:
        raise UsageError("file: names no directory; say file:runs/")
    if os.path.exists(path) and not os.path.isdir(path):
        raise UsageError(f"{path!r} is no directory; if it is a SQLite file, say sqlite:{path}")
    if not create and not os.path.isdir(path):
        raise UsageError(f"the directory {path!r} is not there; nothing was made")
    absolute = os.path.abspath(path)
    return lambda: FileStore(absolute)


def _memory(place: _Place, create: bool) -> Callable[[], Store]:  # noqa: FBT001 - as it was given
    from .memory import MemoryStore  # noqa: PLC0415 - imported when used

    _no_options(place)
    if place.path:
        raise UsageError("memory: has no path: each one is new, and ends with its process")
    if not create:
        raise UsageError("a new memory: holds no runs to look at; name a store that outlives it")
    return MemoryStore


_OURS: Final[Mapping[str, Callable[[_Place, bool], Callable[[], Store]]]] = {
    "sqlite": _sqlite,
    "file": _file,
    "memory": _memory,
}


# --- those of other packages ----------------------------------------------------------------------


def _make(scheme: str, make: Callable[..., Store], url: str, create: bool) -> Store:  # noqa: FBT001
    with _reported(scheme):
        return make(url, create=create)


@contextmanager
def _reported(scheme: str) -> Generator[None]:
    """What a package raises that knows nothing of our errors: its message may have the URL."""
    try:
        yield
    except AstepsError:
        raise
    except Exception as exc:
        raise UsageError(
            f"the package that has stores by {scheme}: could not open this one "
            f"({type(exc).__name__}); see what it says of its URLs, and what it needs installed"
        ) from exc


def _registered(scheme: str, url: str, create: bool) -> Callable[[], Store]:  # noqa: FBT001
    """A store that an installed package registers; of the URL only the scheme is repeated."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - slow to import, seldom needed

    entries = entry_points(group=GROUP)
    known = sorted({*_OURS, *entries.names})
    for entry in entries:
        if entry.name == scheme:
            with _reported(scheme):
                make: Callable[..., Store] = entry.load()
            return partial(_make, scheme, make, url, create)
    raise UsageError(
        f"nothing that is installed knows stores by {scheme}: (known are "
        f"{', '.join(f'{name}:' for name in known)}); install the package that has it, which "
        f"registers the entry point {scheme!r} of the group {GROUP!r}, or write ./ in front of "
        "a path that has a colon in it"
    )
