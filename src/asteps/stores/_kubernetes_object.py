"""One object of the server: as it was last seen, and written only if it is still so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import anyio
from anyio import CancelScope, get_cancelled_exc_class, move_on_after

from ..errors import StoreRefusedError, StoreUnavailableError, UncertainWriteError
from ._kubernetes_subtree import Json
from ._kubernetes_transport import (
    BusyServerError,
    DeniedError,
    GoneError,
    InvalidError,
    ObjectRef,
    StaleError,
    TooLargeError,
    Transport,
    TransportError,
)

__all__ = ["KeptObject", "Send", "uid_of"]

_PATIENCE = 60.0  # seconds for a client's answer; a client has a timeout of its own, which is less
_SETTLING = 5  # tries to make sure that a write which was left alone will not land any more


class Send(Protocol):
    """Which of a transport's methods writes the object."""

    async def __call__(self, ref: ObjectRef, patch: Mapping[str, Any], /) -> dict[str, Any]:
        """Send a merge-patch."""
        ...


def uid_of(obj: Mapping[str, Any], /) -> str:
    """What tells an object from others of its name, before and after it."""
    return str(obj.get("metadata", {}).get("uid", ""))


class KeptObject:
    """An object, read when it is needed, and remembered for as long as nothing went wrong.

    Args:
        ref: Which.
        transport: Gives the client.
        send: Gives what writes.
        fence: Makes a patch that changes a little, to have what was sent before it refused.

    Attributes:
        ref: Which.
        seen: As it was last seen; ``None`` where that is not known.
        missing: What the server has said where there was none.
    """

    def __init__(
        self,
        ref: ObjectRef,
        transport: Callable[[], Transport],
        send: Callable[[], Send],
        fence: Callable[[Json], Json],
    ) -> None:
        self.ref = ref
        self.seen: Json | None = None
        self.missing = ""
        self._transport = transport
        self._send = send
        self._fence = fence

    async def read(self) -> Json | None:
        """Read it anew; ``None`` where there is none.

        Raises:
            StoreError: It could not be read.
        """
        self.seen = None
        transport = self._transport()
        try:
            self.seen = await transport.get(self.ref)
        except GoneError as exc:
            self.missing = str(exc)
            return None
        except (DeniedError, InvalidError, TooLargeError) as exc:
            raise StoreRefusedError(f"{self.ref} cannot be read: {exc}{_hint(exc)}") from exc
        except TransportError as exc:
            raise StoreUnavailableError(f"{self.ref} could not be read: {exc}") from exc
        except Exception as exc:
            raise StoreUnavailableError(f"{self.ref} could not be read: {exc!r}") from exc
        return self.seen

    async def write(self, obj: Json, patch: Json) -> Json:
        """Send a merge-patch, if the object is still like this.

        It is not remembered: that is for those who know what to find in the answer.

        Raises:
            StaleError: It is not; nothing was written.
            GoneError: There is no such object, or no status subresource.
            InvalidError: The server finds the patch wrong.
            StoreError: What else happened.

        Cancellation: What was sent is waited for. Asyncio's own ``task.cancel()`` cannot be kept
        out: then the object is changed a little, which has the patch refused if it comes later.
        """
        version = obj["metadata"]["resourceVersion"]
        self.seen = None
        precondition = {"metadata": {"resourceVersion": version}}
        send = self._send()
        try:
            with move_on_after(_PATIENCE, shield=True):
                return await send(self.ref, {**patch, **precondition})
            raise TimeoutError(f"the client did not answer in {_PATIENCE:g} s")
        except (StaleError, GoneError, InvalidError):
            raise
        except (DeniedError, TooLargeError) as exc:
            raise StoreRefusedError(f"{self.ref} cannot be written: {exc}{_hint(exc)}") from exc
        except BusyServerError as exc:
            raise StoreUnavailableError(f"{self.ref} was not written: {exc}") from exc
        except Exception as exc:
            raise UncertainWriteError(f"{self.ref} was perhaps written: {exc}") from exc
        except get_cancelled_exc_class():
            await self._settle(version)
            raise

    async def _settle(self, version: str) -> None:
        """Make sure that nothing with this precondition will be written any more."""
        transport, send = self._transport(), self._send()
        for _ in range(_SETTLING):
            try:
                with move_on_after(_PATIENCE, shield=True):
                    found = await transport.get(self.ref)
                    if found["metadata"]["resourceVersion"] == version:
                        precondition = {"metadata": {"resourceVersion": version}}
                        await send(self.ref, {**self._fence(found), **precondition})
                    return
            except (StaleError, GoneError):
                return
            except Exception:  # noqa: BLE001 - the caller is being cancelled, which is told
                with CancelScope(shield=True):
                    await anyio.sleep(0.1)
            except get_cancelled_exc_class():
                pass  # once more by task.cancel(); the caller raises the first one


def _hint(exc: TransportError) -> str:
    if isinstance(exc, DeniedError):
        return "; is it the right cluster and user? `asteps crd` prints the rights (RBAC) it takes"
    if isinstance(exc, TooLargeError):
        return "; give the store body='gzip', or keep references to large results"
    return ""
