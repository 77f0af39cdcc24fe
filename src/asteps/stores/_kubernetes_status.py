"""The subtree in an object's status, and beside it what people see of the run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import msgspec

from .._store import StoredRun, Summary
from ..errors import StateFormatError
from ._kubernetes_object import uid_of
from ._kubernetes_subtree import FORMAT, Json, as_subtree, difference
from ._kubernetes_transport import ObjectRef

__all__ = ["LOGGER", "MovedError", "StatusLayout", "View", "Viewed"]

LOGGER = logging.getLogger("asteps.kubernetes")


class Viewed(msgspec.Struct, frozen=True):
    """What a view is made of: a run as a save leaves it, and the object as it was before.

    Attributes:
        id: The run.
        records: All its records.
        summary: Its summary.
        status: The object's status as it was read, without the store's own field.
        generation: The object's ``metadata.generation``.
        uid: The object's ``metadata.uid``.
    """

    id: str
    records: Mapping[str, bytes]
    summary: Summary
    status: Mapping[str, Any]
    generation: int | None
    uid: str


View: TypeAlias = Callable[[Viewed], Mapping[str, Any]]
"""Makes of a run the status fields that people look at. Must be quick, and must not block."""


class MovedError(StateFormatError):
    """The records are not where this store was told to have them.

    Attributes:
        where: The subtree.
        body: Where they are, as it says.
    """

    def __init__(self, where: str, body: str, /) -> None:
        super().__init__(where, body)
        self.where = where
        self.body = body

    def __str__(self) -> str:
        if self.body == "store":
            return (
                f"the records of {self.where} are in another store: open it with that one as body="
            )
        return f"the records of {self.where} are elsewhere, in what this version calls no body="


class StatusLayout:
    """The subtree is ``status.<field>``; what the view makes are other fields of the status.

    The view never breaks a save: what it raises is logged, and so is that the server does not want
    its fields; each once.

    Args:
        ref: The object.
        field: The field.
        view: Makes what people see.
        body: Where the records are, as the subtree says it; empty where they are in it.
        compress: Whether runs of some size are compressed.
    """

    def __init__(
        self, ref: ObjectRef, field: str, view: View | None, *, body: str, compress: bool = False
    ) -> None:
        self.compress = compress
        self.body = body
        self.place = f"status.{field}"
        self.where = f"{self.place} of {ref}"
        self._field = field
        self._view = view
        self._said: set[str] = set()

    @property
    def has_view(self) -> bool:
        """Whether there is more to write than the subtree."""
        return self._view is not None

    def uid(self, obj: Json) -> str:
        """See `Layout.uid`."""
        return uid_of(obj)

    def subtree(self, obj: Json) -> Json:
        """See `Layout.subtree`.

        Raises:
            MovedError: The records are elsewhere.
        """
        subtree = as_subtree(_status(obj).get(self._field), self.where)
        body = subtree.get("body", self.body)
        if body != self.body:
            raise MovedError(self.where, str(body))
        return subtree

    def patch(self, obj: Json, new: Json, id: str, run: StoredRun | None) -> Json:
        """See `Layout.patch`."""
        old = _status(obj).get(self._field)
        before = cast("Json", old) if isinstance(old, dict) else {}
        seen = {} if run is None else self.seen(obj, id, run)
        return {"status": {**seen, self._field: difference(before, new)}}

    def fence(self, obj: Json) -> Json:
        """See `Layout.fence`."""
        seq = self.subtree(obj)["seq"] + 1
        body = {"body": self.body} if self.body else {}
        return {"status": {self._field: {"format": FORMAT, "seq": seq, **body}}}

    def seen(self, obj: Json, id: str, run: StoredRun) -> Json:
        """The merge-patch of what people see, as far as it changes."""
        if self._view is None:
            return {}
        status = {key: value for key, value in _status(obj).items() if key != self._field}
        generation = obj.get("metadata", {}).get("generation")
        viewed = Viewed(
            id, run.records, run.summary, copy.deepcopy(status), generation, uid_of(obj)
        )
        try:
            made: Json = msgspec.json.decode(msgspec.json.encode(dict(self._view(viewed))))
        except Exception as exc:  # noqa: BLE001 - users' code, which no save depends on
            self._say_once("raised", "the status view of run %r raised %r", id, exc, exc_info=True)
            return {}
        made.pop(self._field, None)
        gone = {key for key, value in made.items() if value is None}
        wanted = {key: value for key, value in made.items() if key not in gone}
        patch = difference({k: v for k, v in status.items() if k in wanted}, wanted)
        return patch | dict.fromkeys(gone & status.keys())

    def refused(self, patch: Json) -> bool:
        """See `Layout.refused`."""
        fields = sorted(patch["status"].keys() - {self._field})
        if self._view is None or not fields:
            return False
        self._say_once(
            "refused",
            "%s: the server does not take the status fields %s, which are left out from now on; "
            "`asteps crd` prints their schema",
            self.where,
            ", ".join(fields),
        )
        self._view = None
        return True

    def _say_once(self, what: str, text: str, *args: object, exc_info: bool = False) -> None:
        if what not in self._said:
            self._said.add(what)
            LOGGER.warning(text, *args, exc_info=exc_info)


def _status(obj: Json) -> Json:
    status = obj.get("status")
    return cast("Json", status) if isinstance(status, dict) else {}
