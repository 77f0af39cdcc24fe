"""The cluster that a watch loop has where nobody gives it one: lightkube, on asyncio and trio."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Generator, Mapping
from types import TracebackType
from typing import Any, Self

import anyio

from ..errors import MissingDependencyError
from ..stores import _kubernetes_lightkube as store
from ..stores.kubernetes import GoneError, ObjectRef, UnknownFateError
from ._kubernetes_crd import Resource
from ._kubernetes_pass import Object

try:
    from lightkube import ApiError, AsyncClient
    from lightkube.core.resource import ApiInfo, ResourceDef
    from lightkube.generic_resource import GenericNamespacedResource
except ModuleNotFoundError as _exc:
    raise MissingDependencyError("lightkube", "kubernetes") from _exc

__all__ = ["LightkubeCluster"]

_EVERYWHERE = "*"  # lightkube's; its URL is also that of a resource that has no namespaces
_CHUNK = 500  # objects of one answer to a listing
_SILENCE = 240  # seconds after which the server ends a watch, and it is begun again where it was
_LOST = _SILENCE + 60.0  # seconds after which a watch that says nothing at all is taken for dead


class LightkubeCluster:
    """A `Cluster` over a `lightkube.AsyncClient`, on asyncio and trio.

    Args:
        client: The client. Who makes it closes it: one that is given stays open. Without one, the
            first call makes one of the configuration that lightkube finds; `aclose` closes it.
    """

    def __init__(self, client: AsyncClient | None = None) -> None:
        self._transport = store.LightkubeTransport(client)
        self._kinds: dict[Resource, Any] = {}  # lightkube remembers each class that it has listed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the client, if it is this cluster's own."""
        await self._transport.aclose()

    async def get(self, ref: ObjectRef, /) -> dict[str, Any]:
        """See `Transport.get`."""
        return await self._transport.get(ref)

    async def patch_status(self, ref: ObjectRef, patch: Mapping[str, Any], /) -> dict[str, Any]:
        """See `Transport.patch_status`."""
        return await self._transport.patch_status(ref, patch)

    async def create(self, ref: ObjectRef, obj: Mapping[str, Any], /) -> dict[str, Any]:
        """See `ObjectTransport.create`."""
        return await self._transport.create(ref, obj)

    async def patch(self, ref: ObjectRef, patch: Mapping[str, Any], /) -> dict[str, Any]:
        """See `ObjectTransport.patch`."""
        return await self._transport.patch(ref, patch)

    async def list(self, resource: Resource, namespace: str | None, /) -> tuple[list[Object], str]:
        """See `Cluster.list`."""
        try:
            with store._translated("list", resource):
                client: Any = await self._transport._made()
                found: Any = client.list(
                    self._kind(resource), namespace=namespace or _EVERYWHERE, chunk_size=_CHUNK
                )
                objects = [dict(obj) async for obj in found]
                return objects, found.resourceVersion
        except GoneError as exc:
            raise GoneError(
                f"{exc}; has its definition been applied? `asteps crd {resource}` prints one"
            ) from exc

    async def watch(
        self, resource: Resource, namespace: str | None, since: str, /
    ) -> AsyncGenerator[tuple[str, Object]]:
        """See `Cluster.watch`."""
        client: Any = await self._transport._made()
        changes: Any = client.watch(
            self._kind(resource),
            namespace=namespace or _EVERYWHERE,
            resource_version=since,
            server_timeout=_SILENCE,
        )
        async with contextlib.aclosing(changes):
            while True:
                change: tuple[str, Any] | None = None
                with _noticed(resource), anyio.move_on_after(_LOST):
                    change = await anext(changes, None)
                if change is None:
                    raise UnknownFateError(f"the watch of {resource} fell silent")
                yield change[0], dict(change[1])

    def _kind(self, resource: Resource) -> Any:
        """Lightkube's class for a resource, which is not put into its registry."""
        if resource not in self._kinds:
            verbs = ["list", "watch", "global_list", "global_watch"]
            of = ResourceDef(resource.group, resource.version, resource.plural)
            info = ApiInfo(of, resource.plural, verbs)
            bases = (GenericNamespacedResource,)
            self._kinds[resource] = type(resource.plural, bases, {"_api_info": info})
        return self._kinds[resource]


@contextlib.contextmanager
def _noticed(resource: Resource) -> Generator[None]:
    """Translate what ends a watch, also where the server says so in the midst of it."""
    with store._translated("watch", resource):
        try:
            yield
        except ApiError as exc:
            if getattr(exc, "response", None) is None:  # said by an event, not by an answer
                raise GoneError(f"the watch of {resource} ended: {exc!s:.500}") from exc
            raise
