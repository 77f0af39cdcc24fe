"""What a store needs of a Kubernetes client: two methods, and errors that say what was written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol, Self, runtime_checkable

import msgspec

from ..errors import UsageError

__all__ = [
    "BusyServerError",
    "DeniedError",
    "GoneError",
    "InvalidError",
    "ObjectRef",
    "ObjectTransport",
    "StaleError",
    "TooLargeError",
    "Transport",
    "TransportError",
    "UnknownFateError",
]

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]*")


class ObjectRef(msgspec.Struct, frozen=True):
    """Which object.

    Attributes:
        group: Its API group; empty for the core's.
        version: The group's version.
        plural: The resource, as it stands in URLs: ``databases``.
        namespace: Its namespace; ``None`` for an object of the whole cluster.
        name: Its name.
    """

    group: str
    version: str
    plural: str
    namespace: str | None
    name: str

    @classmethod
    def parse(cls, text: str, /) -> Self:
        """Read what ``str()`` of a reference gives.

        Args:
            text: ``group/version/plural/namespace/name``, or without the namespace for an object of
                the whole cluster. The core's group is empty: ``/v1/pods/default/web``.

        Raises:
            UsageError: It is none.
        """
        parts = text.split("/")
        names = parts[1:] if parts and not parts[0] else parts
        if len(parts) not in {4, 5} or not all(_PART.fullmatch(part) for part in names):
            raise UsageError(
                f"an object is named group/version/plural/namespace/name, or without the namespace "
                f"group/version/plural/name, not {text!r:.300}"
            )
        group, version, plural, *rest = parts
        return cls(group, version, plural, rest[0] if len(rest) == 2 else None, rest[-1])

    def __str__(self) -> str:
        parts = (self.group, self.version, self.plural, self.namespace, self.name)
        return "/".join(part for part in parts if part is not None)


@runtime_checkable
class Transport(Protocol):
    """A client of an API server, as far as the status of one object needs one.

    Only `TransportError`s may leave it. Every call must end by itself, with a timeout of the
    client's own: a store waits for its write also when its caller has been cancelled. A write is
    sent once; repeating it is for those who know what it means.
    """

    async def get(self, ref: ObjectRef, /) -> dict[str, Any]:
        """Read an object as it is now: not from a cache, and without ``resourceVersion=0``.

        Raises:
            GoneError: There is none.
            TransportError: It could not be read.
        """
        ...

    async def patch_status(self, ref: ObjectRef, patch: Mapping[str, Any], /) -> dict[str, Any]:
        """Send a JSON merge-patch (RFC 7386) to the object's status subresource.

        Args:
            ref: The object.
            patch: What to change. Its ``metadata.resourceVersion`` is a precondition.

        Returns:
            The whole object, as the server has it after the change.

        Raises:
            StaleError: The object has another ``resourceVersion``.
            GoneError: There is no such object, or it has no status subresource.
            TransportError: Whether it was written depends on the class.
        """
        ...


@runtime_checkable
class ObjectTransport(Transport, Protocol):
    """What Events and a body in a ConfigMap or a Secret need besides."""

    async def create(self, ref: ObjectRef, obj: Mapping[str, Any], /) -> dict[str, Any]:
        """Create an object.

        Args:
            ref: Its name; the last part does not matter where ``metadata.generateName`` is given.
            obj: The whole object.

        Returns:
            The object, as the server has it.

        Raises:
            StaleError: There is one of that name.
            TransportError: Whether it was created depends on the class.
        """
        ...

    async def patch(self, ref: ObjectRef, patch: Mapping[str, Any], /) -> dict[str, Any]:
        """Send a JSON merge-patch to the object itself; like `Transport.patch_status`."""
        ...


class TransportError(Exception):
    """What a call to the API server came to, whichever client made it."""


class StaleError(TransportError):
    """Not written (409): the object has changed, or it is there already."""


class GoneError(TransportError):
    """Not written (404): there is no such object, or no such subresource."""


class TooLargeError(TransportError):
    """Not written (413, or what etcd says of its own limit): trying again will not help."""


class InvalidError(TransportError):
    """Not written (400, 422): the server finds it wrong, and trying again will not help."""


class DeniedError(TransportError):
    """Not written (401, 403): the client may not do this, or has no credentials that count."""


class BusyServerError(TransportError):
    """Not written (429, or nobody there to connect to): the same call may succeed later."""


class UnknownFateError(TransportError):
    """Perhaps written (other 5xx, a lost connection, no answer in time)."""
