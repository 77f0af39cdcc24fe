"""Records that do not lie in the status: in a ConfigMap or a Secret of the object's, or in a store.

There the run is saved, loaded and compared; the status says where that is, and repeats the summary
and what people see. It is written after the run, and what goes wrong with it is logged: the next
save or load writes it again. That the records are elsewhere is written before the first of them is,
so that two clients which were told different things do not each keep a run of their own.

So the status never tells of a run that was not saved, and a run that it tells of and that is not
there has been lost: it does not begin anew by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Generator, Mapping
from typing import Any, Protocol

import anyio

from .._store import Store, StoredRun, Summary
from ..errors import (
    ConflictError,
    StateFormatError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    UncertainWriteError,
)
from ._kubernetes_object import KeptObject, uid_of
from ._kubernetes_runs import ObjectRuns, Sizes, gone
from ._kubernetes_status import LOGGER, StatusLayout
from ._kubernetes_subtree import (
    Json,
    entry_of,
    is_newer,
    outline,
    outlined,
    run_of,
    summary_of,
)
from ._kubernetes_transport import GoneError

__all__ = ["Body", "BodyStore", "RunsElsewhere"]

_LONGEST_ID = 440  # what is added stays below the 500 characters that a store takes
_TRIES = 3  # writes of what people see, while others write the rest of the object
_PAUSES = (0.05, 0.2, 0.5)  # seconds between tries to tell, where the server does not answer
_MOVES = 20  # likewise of where the records are, which has to be known


class Body(Protocol):
    """Where records are; told each time of the object that they are about."""

    async def load(self, obj: Json, id: str) -> StoredRun | None:
        """See `Store.load`."""
        ...

    async def all(self, obj: Json, ids: list[str]) -> dict[str, StoredRun | StateFormatError]:
        """All runs; ``ids`` are those that the status knows of."""
        ...

    async def save(
        self,
        obj: Json,
        id: str,
        changes: Mapping[str, bytes | None],
        *,
        expected: str | None,
        epoch: int,
        write_id: str,
        summary: Summary,
    ) -> tuple[str, StoredRun | None]:
        """See `Store.save`; the run besides, where it is at hand."""
        ...

    async def delete(self, obj: Json, id: str, *, expected: str) -> None:
        """See `Store.delete`."""
        ...

    async def look(self, obj: Json, ids: list[str]) -> object:
        """What is there before the status is read that is to be taken over; for `adopt`."""
        ...

    async def adopt(self, obj: Json, subtree: Json, found: Any) -> bool:
        """Take over what the status holds.

        Returns:
            Whether it was still as it was found: else somebody else has moved the runs, and
            perhaps saved since.
        """
        ...


class RunsElsewhere:
    """The runs about an object whose records are in a `Body`.

    Args:
        kept: The object.
        layout: Its status.
        sizes: How large it may become.
        body: Where the records are.
    """

    def __init__(self, kept: KeptObject, layout: StatusLayout, sizes: Sizes, body: Body) -> None:
        self._kept = kept
        self._layout = layout
        self._sizes = sizes
        self._inline = ObjectRuns(kept, layout, sizes)
        self._body = body
        self._uid: str | None = None  # of the object that was loaded or saved last

    async def load(self, id: str) -> StoredRun | None:
        """See `Store.load`."""
        obj = await self._kept.read()
        if obj is None:
            return None
        self._uid = uid_of(obj)
        if self._is_inline(obj):
            return self._inline.load_from(obj, id)
        run = await self._body.load(obj, id)
        told = self._layout.subtree(obj)["runs"].get(id)
        if run is None:
            if told is not None:
                obj = await self._kept.read()  # perhaps it was removed between the two
                if obj is not None and id in self._layout.subtree(obj)["runs"]:
                    raise self._lost(id)
        elif self._layout.has_view and told != outline(run):
            await self._tell(obj, id, run)  # whoever saved it last did not get to that
        return run

    async def all(self) -> dict[str, StoredRun | StateFormatError]:
        """All runs; those that are damaged as the error that says so."""
        obj = await self._kept.read()
        if obj is None:
            return {}
        if self._is_inline(obj):
            return self._inline.all_from(obj)
        known = list(self._layout.subtree(obj)["runs"])
        found = await self._body.all(obj, known)
        return {id: self._lost(id) for id in known} | found

    async def save(
        self,
        id: str,
        changes: Mapping[str, bytes | None],
        *,
        expected: str | None,
        epoch: int,
        write_id: str,
        summary: Summary,
    ) -> str:
        """See `Store.save`."""
        obj = await self._moved(id)
        revision, run = await self._body.save(
            obj,
            id,
            changes,
            expected=expected,
            epoch=epoch,
            write_id=write_id,
            summary=summary,
        )
        self._uid = uid_of(obj)
        if run is None and not self._layout.has_view:
            run = StoredRun({}, revision, summary)  # of which the summary is all that is told
        if not await self._tell(obj, id, run):
            raise StoreRefusedError(
                f"{self._kept.ref} is gone, and its runs with it"
            ) from GoneError(f"there is no {self._kept.ref}")
        return revision

    async def delete(self, id: str, *, expected: str) -> None:
        """See `Store.delete`."""
        obj = await self._kept.read()
        if obj is None:
            return
        if self._is_inline(obj):
            await self._inline.delete(id, expected=expected)
            return
        run = await self._body.load(obj, id)
        if run is not None and run.revision != expected:
            raise ConflictError(id, expected, run.revision)
        if await self._show(obj, id, None):  # first: what the status tells of must be there
            await self._body.delete(obj, id, expected=expected)

    def _is_inline(self, obj: Json) -> bool:
        """Whether the status still has all: it was written, and does not say otherwise."""
        subtree = self._layout.subtree(obj)
        return "body" not in subtree and subtree["seq"] > 0

    async def _moved(self, id: str) -> Json:
        """The object, once its status says where the records are, for a save of a run.

        Raises:
            ConflictError: It is another one than was looked at.
            StoreError: It cannot be had, or not be written.
        """
        for _ in range(_MOVES):
            obj = self._kept.seen or await self._kept.read()
            if obj is None:
                raise gone(self._kept.ref) from GoneError(f"there is no {self._kept.ref}")
            if self._uid not in {None, uid_of(obj)}:
                raise ConflictError(id, self._uid, uid_of(obj))
            subtree = self._layout.subtree(obj)
            if "body" in subtree:
                return obj
            if subtree["seq"] > 0:
                # The body first, and then the status anew: who moves the runs meanwhile writes the
                # body before the status says so. What is remembered of the status may be old.
                found = await self._body.look(obj, list(subtree["runs"]))
                now = await self._kept.read()
                same = now is not None and uid_of(now) == uid_of(obj)
                if now is None or not same or self._layout.subtree(now) != subtree:
                    continue
                obj = now
                if not await self._body.adopt(obj, subtree, found):
                    self._kept.seen = None
                    continue
            new = outlined(subtree, "", None, body=self._layout.body)
            await self._inline.write(obj, new, "", None, self._layout.where)
        raise StoreUnavailableError(
            f"{self._kept.ref} was changed by others {_MOVES} times while it was to be written; "
            "nothing was written: who else writes it all the time?"
        )

    async def _tell(self, about: Json, id: str, run: StoredRun | None) -> bool:
        """Write into the status what it says of a run, as well as it goes: the run is saved.

        Args:
            about: The object that the run is about.
            id: The run.
            run: As it is; ``None`` where that is to be read.

        Returns:
            Whether the object is there, as far as that is known.
        """
        for pause in (*_PAUSES, None):
            try:
                run = run or await self._body.load(about, id)
                return run is None or await self._show(about, id, run)
            except (StoreUnavailableError, UncertainWriteError) as exc:
                if pause is None:
                    self._not_told(id, exc)
                else:
                    await anyio.sleep(pause)
            except StoreError as exc:
                self._not_told(id, exc)
                break
        return True

    def _not_told(self, id: str, exc: StoreError) -> None:
        LOGGER.warning("run %r is saved, but %s does not show it: %s", id, self._layout.where, exc)

    async def _show(self, about: Json, id: str, run: StoredRun | None) -> bool:
        """Write into the status what it says of a run.

        Returns:
            Whether the object is there.

        Raises:
            StoreError: It was not written.
        """
        for _ in range(_TRIES):
            obj = self._kept.seen or await self._kept.read()
            if obj is None or uid_of(obj) != uid_of(about):
                return False
            subtree = self._layout.subtree(obj)
            if run is not None and is_newer(subtree["runs"].get(id), run):
                return True  # somebody else has gone on with it, and told of that
            new = outlined(subtree, id, run, body=self._layout.body)
            if await self._inline.write(obj, new, id, run, self._layout.where):
                return True
        raise StoreUnavailableError(
            f"{self._kept.ref} was changed by others {_TRIES} times while it was to be written"
        )

    def _lost(self, id: str) -> StateFormatError:
        return StateFormatError(
            f"the records of run {id!r} are lost: {self._layout.where} tells of it, and they are "
            f"not in the {self._layout.body} where they were saved. Nothing was changed: bring "
            f"them back, or take {self._layout.place} out of the status to have its runs begin anew"
        )


# --- another store ------------------------------------------------------------------------------


class BodyStore:
    """A `Body` in a store, under ids that tell objects of one name apart.

    Args:
        store: The store; who made it closes it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def load(self, obj: Json, id: str) -> StoredRun | None:
        """See `Body.load`."""
        return await self._store.load(_id_in_store(obj, id))

    async def all(self, obj: Json, ids: list[str]) -> dict[str, StoredRun | StateFormatError]:
        """See `Body.all`."""
        found: dict[str, StoredRun | StateFormatError] = {}
        for id in ids:
            try:
                run = await self.load(obj, id)
            except StateFormatError as exc:
                found[id] = exc
            else:
                if run is not None:
                    found[id] = run
        return found

    async def save(
        self,
        obj: Json,
        id: str,
        changes: Mapping[str, bytes | None],
        *,
        expected: str | None,
        epoch: int,
        write_id: str,
        summary: Summary,
    ) -> tuple[str, StoredRun | None]:
        """See `Body.save`."""
        with _in_terms_of(id):
            revision = await self._store.save(
                _id_in_store(obj, id),
                changes,
                expected=expected,
                epoch=epoch,
                write_id=write_id,
                summary=summary,
            )
        return revision, None

    async def delete(self, obj: Json, id: str, *, expected: str) -> None:
        """See `Body.delete`."""
        with _in_terms_of(id):
            await self._store.delete(_id_in_store(obj, id), expected=expected)

    async def look(self, obj: Json, ids: list[str]) -> dict[str, StoredRun | None]:
        """See `Body.look`."""
        return {id: await self._store.load(_id_in_store(obj, id)) for id in ids}

    async def adopt(self, obj: Json, subtree: Json, found: dict[str, StoredRun | None]) -> bool:
        """See `Body.adopt`. The revisions are new ones: who has an old one has to load again."""
        where = f"the status of {obj['metadata']['name']}"
        for id, old in found.items():
            entry = entry_of(subtree, id, where)
            if entry is None:
                continue
            run = run_of(entry, id, "", where)
            if old is not None and (old.records, old.summary) == (run.records, run.summary):
                continue
            changes: dict[str, bytes | None] = {} if old is None else dict.fromkeys(old.records)
            changes |= run.records
            try:
                await self._store.save(
                    _id_in_store(obj, id),
                    changes,
                    expected=None if old is None else old.revision,
                    epoch=entry.epoch,
                    write_id=secrets.token_hex(16),
                    summary=summary_of(entry, id, where),
                )
            except ConflictError:
                return False
        return True


@contextlib.contextmanager
def _in_terms_of(id: str) -> Generator[None, None, None]:
    """Have conflicts name the run as the caller does."""
    try:
        yield
    except ConflictError as exc:
        raise ConflictError(id, exc.expected, exc.found) from exc


def _id_in_store(obj: Json, id: str) -> str:
    if len(id) > _LONGEST_ID:
        id = f"{id[: _LONGEST_ID - 64]}{hashlib.sha256(id.encode()).hexdigest()}"
    return f"{id}@{uid_of(obj)}"
