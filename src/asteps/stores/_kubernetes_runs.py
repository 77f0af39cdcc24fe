"""The runs in one object: compare-and-set by the subtree's own revisions, over the object's."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeAlias

import anyio

from .._store import StoredRun, Summary
from ..errors import (
    ConflictError,
    StateFormatError,
    StoreRefusedError,
    StoreUnavailableError,
)
from ._kubernetes_object import KeptObject, uid_of
from ._kubernetes_subtree import (
    Entry,
    Json,
    apply_patch,
    changed,
    encoded_bytes,
    entry_of,
    removed,
    revision_of,
    run_of,
    summary_of,
    texts_of,
)
from ._kubernetes_transport import GoneError, InvalidError, ObjectRef, StaleError

__all__ = ["Layout", "ObjectRuns", "Sizes", "gone"]

_Verdict: TypeAlias = str | Json | ConflictError
_Judge: TypeAlias = Callable[[Json, Json, Entry | None], _Verdict]
_Make: TypeAlias = Callable[[], Awaitable[Json | None]]

_TRIES = 20  # writes of one change, while others write the rest of the object
_PAUSE = 0.002  # seconds, at most, before the second of them; doubles up to
_LONGEST_PAUSE = 0.25


class Sizes:
    """How large an object may become.

    Args:
        max_bytes: What would be larger is refused.
        warn: Called with the size of what is larger than ``warn_bytes``.
        warn_bytes: See there.
    """

    def __init__(self, max_bytes: int, warn_bytes: int, warn: Callable[[int], object]) -> None:
        self.max_bytes = max_bytes
        self.warn_bytes = warn_bytes
        self.warn = warn

    def check(self, obj: Json, patch: Json, what: str) -> None:
        """Look at what a patch would make of an object.

        Raises:
            StoreRefusedError: It would be too large; nothing was sent.
        """
        size = encoded_bytes(apply_patch(obj, patch))
        if size > self.max_bytes and size > encoded_bytes(obj):
            raise StoreRefusedError(
                f"{what} would take {size:,} bytes; max_bytes is {self.max_bytes:,}, and API "
                "servers refuse objects of some 1,500,000: give the store body='gzip', "
                "body='configmap' or a store of its own as body=, keep references to large "
                "results, or make the run smaller. Nothing was sent"
            )
        if size > self.warn_bytes:
            self.warn(size)


class Layout(Protocol):
    """Where in an object the subtree is, and what is written beside it.

    Attributes:
        place: The subtree's path in the object.
        where: The same with the object, for messages.
        compress: Whether runs of some size are compressed, each for itself.
    """

    place: str
    where: str
    compress: bool

    def uid(self, obj: Json) -> str:
        """What tells the object that the runs are about from others of its name."""
        ...

    def subtree(self, obj: Json) -> Json:
        """What the object holds; an empty subtree where it holds none.

        Raises:
            StateFormatError: It is none of ours.
        """
        ...

    def patch(self, obj: Json, new: Json, id: str, run: StoredRun | None) -> Json:
        """The merge-patch that puts a subtree into an object, of which one run has changed."""
        ...

    def fence(self, obj: Json) -> Json:
        """A merge-patch that changes no run, and yet something."""
        ...

    def refused(self, patch: Json) -> bool:
        """The server found a patch wrong: whether the layout now makes another one."""
        ...


class ObjectRuns:
    """Loads, saves and deletes the runs in one object; one call at a time.

    Args:
        kept: The object.
        layout: Where the subtree is in it.
        sizes: How large it may become.
        make: Makes the object for a save that finds none.

    Attributes:
        kept: The object.
        layout: Where in it.
        where: What to call the place in messages.
        saved: The run as the last write left it; ``None`` after a removal.
    """

    def __init__(
        self, kept: KeptObject, layout: Layout, sizes: Sizes, make: _Make | None = None
    ) -> None:
        self._make = make or _none
        self.kept = kept
        self.layout = layout
        self.where = layout.where
        self._sizes = sizes
        self.saved: StoredRun | None = None
        self._uid: str | None = None  # of the object that was loaded or saved last

    def forget(self) -> None:
        """Another object will be looked at."""
        self._uid = None

    async def load(self, id: str) -> StoredRun | None:
        """See `Store.load`."""
        obj = await self.kept.read()
        return None if obj is None else self.load_from(obj, id)

    def load_from(self, obj: Json, id: str) -> StoredRun | None:
        """A run of an object that was just read."""
        self._uid = self.layout.uid(obj)
        entry = entry_of(self.layout.subtree(obj), id, self.where)
        return None if entry is None else run_of(entry, id, self._uid, self.where)

    async def all(self) -> dict[str, StoredRun | StateFormatError]:
        """All runs; those that are damaged as the error that says so."""
        obj = await self.kept.read()
        return {} if obj is None else self.all_from(obj)

    def all_from(self, obj: Json) -> dict[str, StoredRun | StateFormatError]:
        """All runs of an object that was just read."""
        subtree = self.layout.subtree(obj)
        found: dict[str, StoredRun | StateFormatError] = {}
        for id in subtree["runs"]:
            try:
                entry = entry_of(subtree, id, self.where)
                if entry is not None:
                    found[id] = run_of(entry, id, self.layout.uid(obj), self.where)
            except StateFormatError as exc:
                found[id] = exc
        return found

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

        def judge(obj: Json, subtree: Json, entry: Entry | None) -> _Verdict:
            uid = self.layout.uid(obj)
            if entry is not None and (entry.writer, entry.epoch) == (write_id, epoch):
                return revision_of(uid, entry)
            found = None if entry is None else revision_of(uid, entry)
            if found != expected:
                return ConflictError(id, expected, found)
            if self._uid not in {None, uid}:
                return ConflictError(id, self._uid, uid)  # created where another one was looked at
            before: dict[str, str] = {}
            if entry is not None:
                summary_of(entry, id, self.where)  # what is damaged stays as it is
                before = texts_of(entry, id, self.where)
            return changed(
                subtree,
                id,
                before,
                changes,
                epoch=epoch,
                write_id=write_id,
                summary=summary,
                compress=self.layout.compress,
            )

        answer = await self._change(id, judge, f"run {id!r} in {self.where}", self._make)
        if answer is None:
            raise gone(self.kept.ref) from GoneError(f"there is no {self.kept.ref}")
        return answer

    async def delete(self, id: str, *, expected: str) -> None:
        """See `Store.delete`."""

        def judge(obj: Json, subtree: Json, entry: Entry | None) -> _Verdict:
            if id not in subtree["runs"]:
                return ""
            found = None if entry is None else revision_of(self.layout.uid(obj), entry)
            if found != expected:
                return ConflictError(id, expected, found)
            return removed(subtree, id)

        await self._change(id, judge, f"the rest of {self.where}", _none)

    async def _change(
        self,
        id: str,
        judge: _Judge,
        what: str,
        make: _Make,
    ) -> str | None:
        """Change the object until the change lands, or turns out to be made or impossible.

        Only what was read just now decides without a write: what is remembered may be old.

        Args:
            id: The run that it is about.
            judge: Says what to make of what was found: the new subtree, or the end.
            what: What to call it in messages.
            make: Makes the object where there is none.

        Returns:
            The revision that the change has made; ``None`` where the object is gone.
        """
        for attempt in range(_TRIES):
            if attempt > 1:
                # Chance parts two that would meet again and again; the first retry needs none.
                pause = min(_PAUSE * 2**attempt, _LONGEST_PAUSE)
                await anyio.sleep(random.random() * pause)  # noqa: S311
            # It is remembered again once all has gone well.
            obj, self.kept.seen = self.kept.seen, None
            verdict: _Verdict | None = None
            if obj is not None:
                with contextlib.suppress(StateFormatError):  # perhaps it was repaired since
                    verdict = self._judged(obj, id, judge)
            if obj is None or not isinstance(verdict, dict):
                obj, self.kept.seen = await self.kept.read() or await make(), None
                if obj is None:
                    return None
                verdict = self._judged(obj, id, judge)
            if isinstance(verdict, ConflictError):
                raise verdict
            if isinstance(verdict, str):
                return verdict
            after = entry_of(verdict, id, self.where)
            uid = self.layout.uid(obj)
            run = None if after is None else run_of(after, id, uid, self.where)
            if await self.write(obj, verdict, id, run, what):
                return "" if run is None else run.revision
        raise StoreUnavailableError(
            f"{self.kept.ref} was changed by others {_TRIES} times while it was to be written; "
            "nothing was written: who else writes it all the time?"
        )

    def _judged(self, obj: Json, id: str, judge: _Judge) -> _Verdict:
        subtree = self.layout.subtree(obj)
        return judge(obj, subtree, entry_of(subtree, id, self.where))

    async def write(self, obj: Json, new: Json, id: str, run: StoredRun | None, what: str) -> bool:
        """Write a subtree; false where the object is not as it was.

        Args:
            obj: The object, as it was seen last.
            new: The subtree.
            id: The run that has changed.
            run: What it is now.
            what: What to call it in messages.

        Raises:
            StoreError: As in `Store.save`.
        """
        patch = self.layout.patch(obj, new, id, run)
        self._sizes.check(obj, patch, what)
        try:
            answer = await self.kept.write(obj, patch)
        except StaleError:
            return False
        except GoneError as exc:
            await self._explain(exc, uid_of(obj))
            return False
        except InvalidError as exc:
            if _names(self.layout.place, str(exc)):
                raise self._dropped(what, "the server refuses") from exc
            if not self.layout.refused(patch):
                raise StoreRefusedError(f"{what} was refused: {exc}") from exc
            return False
        if uid_of(answer) != uid_of(obj):  # never met: the precondition is of the other one
            raise ConflictError(id, uid_of(obj), uid_of(answer))
        try:
            is_whole = self.layout.subtree(answer) == new
        except StateFormatError:
            is_whole = False
        if not is_whole:
            raise self._dropped(what, "the server took the change and dropped")
        self.kept.seen = answer
        self._uid = self.layout.uid(obj)
        self.saved = run
        return True

    async def _explain(self, exc: GoneError, uid: str) -> None:
        """Find out what was not there; returns where it was the object."""
        found, self.kept.seen = await self.kept.read(), None
        if found is None or uid_of(found) != uid:
            return
        resource = f"{self.kept.ref.plural}.{self.kept.ref.group}"
        raise StoreRefusedError(
            f"{self.kept.ref} has no status subresource: declare `subresources: {{status: {{}}}}` "
            f"for version {self.kept.ref.version!r} in the CustomResourceDefinition {resource!r} "
            "(`asteps crd` prints it)"
        ) from InvalidError(str(exc))

    def _dropped(self, what: str, done: str) -> StoreRefusedError:
        ref = self.kept.ref
        return StoreRefusedError(
            f"{what} was not kept: {done} fields of it, because the schema of the "
            f"CustomResourceDefinition '{ref.plural}.{ref.group}' does not have them in version "
            f"{ref.version!r}. Declare {self.layout.place} with "
            "x-kubernetes-preserve-unknown-fields (`asteps crd` prints the snippet)"
        )


def _names(place: str, said: str) -> bool:
    """Whether a server does not know the field, as those from 1.25 on say."""
    return any(f'unknown field "{place}{end}' in said for end in '".')


def gone(ref: ObjectRef) -> StoreRefusedError:
    """What a save comes to that finds no object."""
    return StoreRefusedError(f"{ref} is gone, and its runs with it: nothing was written")


async def _none() -> None:
    return None
