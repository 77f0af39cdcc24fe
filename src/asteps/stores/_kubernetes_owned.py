"""Records in a ConfigMap or a Secret that the object owns, and that goes when it goes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import cast

import msgspec

from .._store import StoredRun, Summary
from ..errors import (
    StateFormatError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    UsageError,
)
from ._kubernetes_object import KeptObject, uid_of
from ._kubernetes_runs import ObjectRuns, Sizes
from ._kubernetes_subtree import Json, as_subtree, gunzipped, gzipped
from ._kubernetes_transport import (
    BusyServerError,
    ObjectRef,
    ObjectTransport,
    StaleError,
    TransportError,
    UnknownFateError,
)

__all__ = ["OWNED", "OwnedObject", "owned_ref"]

OWNED: Mapping[str, tuple[str, str, str]] = {  # resource, kind, where its bytes are
    "configmap": ("configmaps", "ConfigMap", "binaryData"),
    "secret": ("secrets", "Secret", "data"),
}
_LONGEST_NAME = 253


def owned_ref(ref: ObjectRef, kind: str, /) -> ObjectRef:
    """The ConfigMap or the Secret of an object.

    Raises:
        UsageError: The object is in no namespace, where they could be.
    """
    if ref.namespace is None:
        raise UsageError(
            f"body={kind!r} needs an object in a namespace, and {ref} is in none: give a store"
        )
    plural = OWNED[kind][0]
    name = f"{ref.name}-{ref.plural}-asteps"
    if len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:12]
        name = f"{ref.name[: _LONGEST_NAME - 20].rstrip('.-')}-{digest}-asteps"
    return ObjectRef("", "v1", plural, ref.namespace, name)


class _OwnedLayout:
    """The subtree is one entry of a ConfigMap's or a Secret's bytes, compressed as a whole."""

    compress = False

    def __init__(self, ref: ObjectRef, data: str, field: str) -> None:
        self.place = f"{data}.{field}"
        self.where = f"{self.place} of {ref}"
        self.owner = ""  # uid of the object that the runs are about
        self.like: tuple[object, object, object] = ("", "", "")  # its version, kind and name
        self._ref = ref
        self._data = data
        self._field = field

    def uid(self, obj: Json) -> str:
        """See `Layout.uid`."""
        return self.owner

    def is_owned(self, obj: Json) -> bool:
        """Whether it belongs to the object, and not to one of the same name that is gone."""
        owners = obj.get("metadata", {}).get("ownerReferences") or ()
        return any(owner.get("uid") == self.owner for owner in owners)

    def subtree(self, obj: Json) -> Json:
        """See `Layout.subtree`."""
        if not self.is_owned(obj):
            raise self._not_ours(obj)
        data = obj.get(self._data)
        text = cast("Json", data).get(self._field) if isinstance(data, dict) else None
        if text is None:
            return as_subtree(None, self.where)
        try:
            found: object = msgspec.json.decode(gunzipped(text))
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as exc:
            raise StateFormatError(
                f"{self.where} is damaged, and was left as it is: {exc!s:.256}"
            ) from exc
        return as_subtree(found, self.where)

    def _not_ours(self, obj: Json) -> StoreError:
        owners = obj.get("metadata", {}).get("ownerReferences") or ()
        like = {(owner.get("apiVersion"), owner.get("kind"), owner.get("name")) for owner in owners}
        if like == {self.like}:
            return StoreUnavailableError(
                f"{self._ref} is of another object of the same name that is gone; the cluster's "
                "garbage collector removes it, if not: delete it"
            )
        named = ", ".join(" ".join(map(str, each)) for each in sorted(like, key=str)) or "nobody"
        return StoreRefusedError(
            f"{self._ref} is of another object ({named}), whose state may be in it: give this "
            "store another body="
        )

    def patch(self, obj: Json, new: Json, id: str, run: StoredRun | None) -> Json:
        """See `Layout.patch`."""
        return {self._data: self.data(new)}

    def data(self, subtree: Json) -> Json:
        """The bytes that hold a subtree."""
        return {self._field: gzipped(msgspec.json.encode(subtree))}

    def fence(self, obj: Json) -> Json:
        """See `Layout.fence`."""
        subtree = self.subtree(obj)
        return {self._data: self.data({**subtree, "seq": subtree["seq"] + 1})}

    def refused(self, patch: Json) -> bool:
        """See `Layout.refused`."""
        return False


class OwnedObject:
    """A `Body` in a ConfigMap or a Secret that the object owns, and that goes when it goes.

    Args:
        ref: The object.
        kind: ``configmap`` or ``secret``.
        field: Under which key the runs are in it.
        sizes: How large it may become.
        transport: Gives the client.
    """

    def __init__(
        self,
        ref: ObjectRef,
        kind: str,
        field: str,
        sizes: Sizes,
        transport: Callable[[], ObjectTransport],
    ) -> None:
        self._ref = owned_ref(ref, kind)
        self._kind, self._data = OWNED[kind][1:]
        self._layout = _OwnedLayout(self._ref, self._data, field)
        self._transport = transport
        self._owner: Json = {}
        self._kept = KeptObject(self._ref, transport, lambda: transport().patch, self._layout.fence)
        self._runs = ObjectRuns(self._kept, self._layout, sizes, self._create)

    async def load(self, obj: Json, id: str) -> StoredRun | None:
        """See `Body.load`."""
        found = await self._read(obj)
        return None if found is None else self._runs.load_from(found, id)

    async def all(self, obj: Json, ids: list[str]) -> dict[str, StoredRun | StateFormatError]:
        """See `Body.all`."""
        found = await self._read(obj)
        return {} if found is None else self._runs.all_from(found)

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
        self._about(obj)
        self._runs.saved = None
        revision = await self._runs.save(
            id, changes, expected=expected, epoch=epoch, write_id=write_id, summary=summary
        )
        return revision, self._runs.saved

    async def delete(self, obj: Json, id: str, *, expected: str) -> None:
        """See `Body.delete`."""
        self._about(obj)
        await self._runs.delete(id, expected=expected)

    async def look(self, obj: Json, ids: list[str]) -> Json:
        """See `Body.look`. It is made where there is none."""
        self._about(obj)
        return await self._kept.read() or await self._create()

    async def adopt(self, obj: Json, subtree: Json, found: Json) -> bool:
        """See `Body.adopt`. What is there already is of an earlier attempt, and void."""
        here = self._layout.subtree(found)
        new = {**subtree, "seq": max(subtree["seq"], here["seq"]) + 1}
        return await self._runs.write(found, new, "", None, self._layout.where)

    def _about(self, obj: Json) -> None:
        if uid_of(obj) != self._layout.owner:
            self._kept.seen = None
            self._runs.forget()
        self._layout.owner = uid_of(obj)
        self._layout.like = (obj.get("apiVersion"), obj.get("kind"), obj["metadata"]["name"])
        self._owner = obj

    async def _read(self, obj: Json) -> Json | None:
        self._about(obj)
        found = await self._kept.read()
        return found if found is not None and self._layout.is_owned(found) else None

    async def _create(self) -> Json:
        """Make it, empty.

        Raises:
            StoreError: It was not made.
        """
        obj = self._owner
        owner: Json = {key: obj.get(key) for key in ("apiVersion", "kind")}
        owner |= {"name": obj["metadata"]["name"], "uid": uid_of(obj)}
        metadata = {
            "name": self._ref.name,
            "namespace": self._ref.namespace,
            "ownerReferences": [owner],
        }
        new = {"apiVersion": "v1", "kind": self._kind, "metadata": metadata}
        try:
            return await self._transport().create(self._ref, new)
        except StaleError as exc:  # somebody else has made it, or there is no room for it just now
            found = await self._kept.read()
            if found is None:
                raise StoreUnavailableError(f"{self._ref} was not created: {exc}") from exc
            return found
        except (BusyServerError, UnknownFateError) as exc:
            # Perhaps it was created; it holds nothing, so that does not matter.
            raise StoreUnavailableError(f"{self._ref} was not created: {exc}") from exc
        except TransportError as exc:
            raise StoreRefusedError(f"{self._ref} cannot be created: {exc}") from exc
        except Exception as exc:
            raise StoreUnavailableError(f"{self._ref} was not created: {exc!r}") from exc
