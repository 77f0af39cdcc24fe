"""An API server in memory, as far as stores and operators see one: a fake at the transport's seam.

It does what kube-apiserver was seen to do (``tests/test_kubernetes_store.py`` runs the same tests
with both): it compares ``metadata.resourceVersion``, merges patches, prunes what a schema does not
have, keeps metadata and spec out of status patches, and limits sizes.
"""

from __future__ import annotations

import copy
import itertools
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias, cast

from anyio.lowlevel import checkpoint

from asteps.stores.kubernetes import (
    GoneError,
    InvalidError,
    ObjectRef,
    StaleError,
    TooLargeError,
)

__all__ = ["Call", "MemoryCluster", "MemoryTransport"]

Json: TypeAlias = dict[str, Any]

ETCD_BYTES = 1536 * 1024


class Call:
    """One call, as the server got it."""

    def __init__(self, method: str, ref: ObjectRef, body: Json | None) -> None:
        self.method = method
        self.ref = ref
        self.body = body

    def __repr__(self) -> str:
        return f"{self.method} {self.ref} {self.body}"

    @property
    def bytes(self) -> int:
        """How large its body was."""
        return 0 if self.body is None else len(json.dumps(self.body, separators=(",", ":")))


class MemoryCluster:
    """What the clients of one server share.

    Attributes:
        calls: What came in, refused or not.
        known: Status fields that the schema has; ``None`` where it takes all.
        strict: Whether unknown fields are refused, as servers from 1.25 on do when asked to.
        subresource: Whether the resource has a status subresource.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Json] = {}
        self.calls: list[Call] = []
        self.known: frozenset[str] | None = None
        self.strict = False
        self.subresource = True
        self._versions = itertools.count(1)

    def client(self) -> MemoryTransport:
        """Another client."""
        return MemoryTransport(self)

    def make(
        self, ref: ObjectRef | str, *, spec: Mapping[str, Any] | None = None, **fields: Any
    ) -> ObjectRef:
        """Create an object."""
        ref = ObjectRef.parse(ref) if isinstance(ref, str) else ref
        obj: Json = {
            "apiVersion": f"{ref.group}/{ref.version}" if ref.group else ref.version,
            "kind": ref.plural.removesuffix("s").title(),
            "metadata": {"name": ref.name},
            **({} if spec is None else {"spec": dict(spec)}),
            **fields,
        }
        self.create(ref, obj)
        return ref

    def get(self, ref: ObjectRef | str) -> Json:
        """An object as it is now."""
        return copy.deepcopy(self._found(str(ref)))

    def remove(self, ref: ObjectRef | str) -> None:
        """Delete an object at once."""
        del self.objects[str(ref)]

    def create(self, ref: ObjectRef, obj: Mapping[str, Any]) -> Json:
        """What POST does."""
        new = _copy(obj)
        metadata = new.setdefault("metadata", {})
        if "generateName" in metadata:
            name = f"{metadata['generateName']}{uuid.uuid4().hex[:5]}"
            ref = ObjectRef(ref.group, ref.version, ref.plural, ref.namespace, name)
        if str(ref) in self.objects:
            raise StaleError(f"409: {ref} already exists")
        metadata |= {"name": ref.name, "uid": str(uuid.uuid4()), "generation": 1}
        if ref.namespace is not None:
            metadata["namespace"] = ref.namespace
        return self._put(str(ref), new)

    def change(self, ref: ObjectRef | str, patch: Mapping[str, Any], *, status: bool) -> Json:
        """What a merge-patch of an object, or of its status subresource, does."""
        old = self._found(str(ref))
        has_status = self.subresource or not isinstance(ref, ObjectRef) or ref.group == ""
        if status and not has_status:
            raise GoneError("404: the server could not find the requested resource")
        wanted = patch.get("metadata", {}).get("resourceVersion")
        if wanted not in {None, old["metadata"]["resourceVersion"]}:
            raise StaleError(f"409: {ref} has been modified")
        merged = cast("Json", _merged(copy.deepcopy(old), _copy(patch)))
        if status:
            new = copy.deepcopy(old)
            if "status" in merged:
                new["status"] = self._pruned(merged["status"])
        else:
            new = merged
            if self.subresource:
                new.pop("status", None)
                if "status" in old:
                    new["status"] = copy.deepcopy(old["status"])
            for key in ("uid", "name", "namespace", "generation"):
                if key in old["metadata"]:
                    new["metadata"][key] = old["metadata"][key]
            if new.get("spec") != old.get("spec"):
                new["metadata"]["generation"] += 1
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        if new == old:
            return copy.deepcopy(old)
        return self._put(str(ref), new)

    def _found(self, name: str) -> Json:
        if name not in self.objects:
            raise GoneError(f"404: {name} not found")
        return self.objects[name]

    def _pruned(self, status: Json) -> Json:
        if self.known is None:
            return status
        if self.strict and (unknown := status.keys() - self.known):
            fields = ", ".join(f'unknown field "status.{key}"' for key in sorted(unknown))
            raise InvalidError(f"422: patch: Invalid value: {{}}: strict decoding error: {fields}")
        return {key: value for key, value in status.items() if key in self.known}

    def _put(self, name: str, obj: Json) -> Json:
        if len(json.dumps(obj, ensure_ascii=False).encode()) > ETCD_BYTES:
            raise TooLargeError("500: etcdserver: request is too large")
        obj["metadata"]["resourceVersion"] = str(next(self._versions))
        self.objects[name] = obj
        return copy.deepcopy(obj)


class MemoryTransport:
    """A client of a `MemoryCluster`; an `ObjectTransport`.

    Attributes:
        before: Awaited with each call before it is made: raises, waits, or writes something else.
        after: Awaited with each call once it was made: raises in place of the answer.
    """

    def __init__(self, cluster: MemoryCluster) -> None:
        self.cluster = cluster
        self.before: Callable[[Call], Awaitable[object]] = _nothing
        self.after: Callable[[Call], Awaitable[object]] = _nothing

    async def get(self, ref: ObjectRef, /) -> Json:
        return await self._do(Call("GET", ref, None), lambda: self.cluster.get(ref))

    async def patch_status(self, ref: ObjectRef, patch: Mapping[str, Any], /) -> Json:
        call = Call("PATCH status", ref, _copy(patch))
        return await self._do(call, lambda: self.cluster.change(ref, patch, status=True))

    async def create(self, ref: ObjectRef, obj: Mapping[str, Any], /) -> Json:
        return await self._do(Call("POST", ref, _copy(obj)), lambda: self.cluster.create(ref, obj))

    async def patch(self, ref: ObjectRef, patch: Mapping[str, Any], /) -> Json:
        call = Call("PATCH", ref, _copy(patch))
        return await self._do(call, lambda: self.cluster.change(ref, patch, status=False))

    async def _do(self, call: Call, do: Callable[[], Json]) -> Json:
        self.cluster.calls.append(call)
        await checkpoint()
        await self.before(call)
        answer = do()
        await self.after(call)
        await checkpoint()
        return answer


async def _nothing(call: Call) -> None:
    pass


def _copy(value: Mapping[str, Any]) -> Json:
    return cast("Json", json.loads(json.dumps(value)))


def _merged(target: Any, patch: Any) -> Any:
    """RFC 7386, for itself: a mistake in the store's own must not hide here."""
    if not isinstance(patch, dict):
        return patch
    if not isinstance(target, dict):
        target = {}
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        else:
            target[key] = _merged(target.get(key), value)
    return target
