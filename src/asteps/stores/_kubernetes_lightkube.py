"""The transport that comes with asteps: lightkube, on asyncio and trio."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Mapping
from types import TracebackType
from typing import Any, Self

import msgspec
from anyio import CancelScope, Lock, to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from ..errors import MissingDependencyError
from ._kubernetes_transport import (
    BusyServerError,
    DeniedError,
    GoneError,
    InvalidError,
    ObjectRef,
    StaleError,
    TooLargeError,
    TransportError,
    UnknownFateError,
)

try:
    import httpx2
    from lightkube import ApiError, AsyncClient, ConfigError, KubeConfig
    from lightkube.core.resource import ApiInfo, ResourceDef
    from lightkube.generic_resource import GenericGlobalResource, GenericNamespacedResource
    from lightkube.types import PatchType
except ModuleNotFoundError as _exc:
    raise MissingDependencyError("lightkube", "kubernetes") from _exc

__all__ = ["LightkubeTransport"]

FIELD_MANAGER = "asteps"

_BY_CODE: Mapping[int, type[TransportError]] = {
    400: InvalidError,
    401: DeniedError,
    403: DeniedError,
    404: GoneError,
    409: StaleError,
    413: TooLargeError,
    422: InvalidError,
    429: BusyServerError,
}
# Where a patch is wrong, the whole object is repeated before what is wrong with it.
_REPEATED = re.compile(r'(?<=Invalid value: )"(?:[^"\\]|\\.){200,}"')
# The API server passes on what etcd and its gRPC client say as a 500 without a reason: text is all
# that tells these, which are for good, from those that may have been written.
_TOO_LARGE = ("etcdserver: request is too large", "code = ResourceExhausted")


class LightkubeTransport:
    """An `ObjectTransport` over a `lightkube.AsyncClient`.

    Writes are made as field manager ``asteps``, and ask the server to refuse fields that the
    resource's schema does not know (servers before 1.25 ignore that, and drop such fields).

    Args:
        client: The client. Who makes it closes it: one that is given stays open. Without one,
            the first call makes one of the configuration that lightkube finds: in the cluster,
            by ``KUBECONFIG``, or in ``~/.kube/config``; `aclose` closes it.
        context: Which context of that configuration; the current one, if none is named.

    Cancellation: A request that was begun is waited for, which takes no longer than the timeout of
    the client (10 s, where lightkube was told nothing else).
    """

    def __init__(self, client: AsyncClient | None = None, *, context: str | None = None) -> None:
        self._client = client
        self._context = context
        self._is_ours = client is None
        self._making = Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def get(self, ref: ObjectRef, /) -> dict[str, Any]:
        """See `Transport.get`."""
        return await self._call("get", ref)

    async def patch_status(self, ref: ObjectRef, patch: Mapping[str, Any], /) -> dict[str, Any]:
        """See `Transport.patch_status`."""
        return await self._call("patch", ref, patch, action="status")

    async def create(self, ref: ObjectRef, obj: Mapping[str, Any], /) -> dict[str, Any]:
        """See `ObjectTransport.create`."""
        return await self._call("post", ref, obj)

    async def patch(self, ref: ObjectRef, patch: Mapping[str, Any], /) -> dict[str, Any]:
        """See `ObjectTransport.patch`."""
        return await self._call("patch", ref, patch)

    async def aclose(self) -> None:
        """Close the client, if it is this transport's own."""
        if self._is_ours and self._client is not None:
            client, self._client = self._client, None
            with CancelScope(shield=True):
                await client.close()

    async def _made(self) -> AsyncClient:
        async with self._making:
            if self._client is None:
                # In a thread: it reads files, and loads certificates.
                self._client = await to_thread.run_sync(self._connected)
            return self._client

    def _connected(self) -> AsyncClient:
        named = self._context
        return AsyncClient(None if named is None else KubeConfig.from_env().get(named))

    async def _call(
        self,
        method: str,
        ref: ObjectRef,
        body: Mapping[str, Any] | None = None,
        *,
        action: str | None = None,
    ) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        with _translated(method, ref):
            # What is below `AsyncClient.get` and its like: those know no `fieldValidation`.
            client: Any = (self._client or await self._made())._client
            kind = _resource(ref, action)
            params = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
            is_patch = method == "patch"
            # Cancelled while it connects, httpx would leave the socket open, and later it would
            # have to connect again: rather wait for the answer, which has a timeout.
            with CancelScope(shield=True):
                found: Any = await client.request(
                    method,
                    res=kind,
                    name=None if method == "post" else ref.name,
                    namespace=ref.namespace,
                    obj=None if body is None else dict(body) if is_patch else kind(body),
                    headers={"Content-Type": PatchType.MERGE.value} if is_patch else None,
                    params=None if method == "get" else params,
                )
            answer = dict(found)
        if method == "get":
            await checkpoint_if_cancelled()  # nothing has happened: the caller need not go on
        return answer


def _resource(ref: ObjectRef, action: str | None) -> Any:
    """Lightkube's class for a resource, or for a subresource of it.

    Its own functions for that register what they make, for the whole process, under a kind; of
    which we know nothing, and which users may want to register for themselves.
    """
    resource = ResourceDef(ref.group, ref.version, ref.plural)
    verbs = ["get", "patch", "post"]
    parent = None if action is None else resource
    info = ApiInfo(resource, ref.plural, verbs, parent=parent, action=action)
    base = GenericGlobalResource if ref.namespace is None else GenericNamespacedResource
    return type(ref.plural, (base,), {"_api_info": info})


@contextlib.contextmanager
def _translated(method: str, ref: object) -> Generator[None, None, None]:
    """Turn what the client raises into what it means, most specific first."""
    try:
        yield
    except httpx2.HTTPStatusError as exc:
        code = exc.response.status_code
        said = str(exc.status.message) if isinstance(exc, ApiError) else exc.response.text
        kind = _BY_CODE.get(code, UnknownFateError)
        if code == 500 and any(text in said for text in _TOO_LARGE):
            kind = TooLargeError
        said = _REPEATED.sub("(the object)", said).strip()
        raise kind(f"{code} to {method} {ref}: {said:.500}") from exc
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as exc:
        raise BusyServerError(f"no connection to {method} {ref}: {exc!r:.500}") from exc
    except httpx2.HTTPError as exc:
        raise UnknownFateError(f"no answer to {method} {ref}: {exc!r:.500}") from exc
    except ConfigError as exc:
        raise DeniedError(f"no way to {method} {ref}: {exc!s:.500}") from exc
    except (msgspec.MsgspecError, TypeError, ValueError) as exc:
        raise UnknownFateError(
            f"no answer that is an object to {method} {ref}: {exc!r:.500}"
        ) from exc
