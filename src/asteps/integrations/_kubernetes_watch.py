"""What a watch loop needs of a cluster: to list, to watch, and what an `ObjectTransport` does."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol, runtime_checkable

from ..stores.kubernetes import ObjectTransport
from ._kubernetes_crd import Resource
from ._kubernetes_pass import Object

__all__ = ["Cluster"]


@runtime_checkable
class Cluster(ObjectTransport, Protocol):
    """A client of an API server, as far as a watch loop needs one; only `TransportError`s leave it.

    What is named ``namespace`` is ``None`` for all namespaces, and for what is in none.
    """

    async def list(self, resource: Resource, namespace: str | None, /) -> tuple[list[Object], str]:
        """All objects of a resource, and the ``resourceVersion`` from which to watch.

        Raises:
            TransportError: They could not be listed.
        """
        ...

    def watch(
        self, resource: Resource, namespace: str | None, since: str, /
    ) -> AsyncGenerator[tuple[str, Object]]:
        """Changes from then on, as they come: ``ADDED``, ``MODIFIED``, ``DELETED``, and what.

        It may end at any time; the loop lists and watches again. Whoever leaves it closes it.

        Raises:
            TransportError: It broke off; also where ``since`` is too long ago.
        """
        ...
