"""Runs in the status of a Kubernetes object: state that lives and ends with what it is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeAlias, TypeVar, cast

from anyio import CancelScope, Lock
from anyio.lowlevel import checkpoint, current_token

from .._store import (
    Browsed,
    Holder,
    RunFilter,
    Scanned,
    Status,
    Store,
    StoredRun,
    StoreReport,
    Summary,
)
from ..errors import StateFormatError, StoreClosedError, StoreError, UsageError
from ._kubernetes_body import BodyStore, RunsElsewhere
from ._kubernetes_listing import Found, browsed, listed, scanned
from ._kubernetes_object import KeptObject, uid_of
from ._kubernetes_owned import OWNED, OwnedObject
from ._kubernetes_runs import ObjectRuns, Sizes
from ._kubernetes_status import LOGGER, MovedError, StatusLayout, View, Viewed
from ._kubernetes_subtree import FORMAT, Json, encoded_bytes
from ._kubernetes_transport import (
    BusyServerError,
    DeniedError,
    GoneError,
    InvalidError,
    ObjectRef,
    ObjectTransport,
    StaleError,
    TooLargeError,
    Transport,
    TransportError,
    UnknownFateError,
)

if TYPE_CHECKING:
    from ._kubernetes_lightkube import LightkubeTransport

__all__ = [
    "Body",
    "BusyServerError",
    "DeniedError",
    "GoneError",
    "InvalidError",
    "LightkubeTransport",
    "ObjectRef",
    "ObjectTransport",
    "StaleError",
    "StatusStore",
    "TooLargeError",
    "Transport",
    "TransportError",
    "UnknownFateError",
    "View",
    "Viewed",
]

Body: TypeAlias = Literal["status", "gzip", "configmap", "secret"] | Store

T = TypeVar("T")

_ALL = RunFilter()


def __getattr__(name: str) -> Any:
    if name == "LightkubeTransport":  # only who uses it needs lightkube
        from ._kubernetes_lightkube import LightkubeTransport  # noqa: PLC0415

        return LightkubeTransport
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Runs(Protocol):
    """The runs, wherever they are; see `Store`."""

    async def load(self, id: str) -> StoredRun | None: ...

    async def all(self) -> dict[str, StoredRun | StateFormatError]: ...

    async def save(
        self,
        id: str,
        changes: Mapping[str, bytes | None],
        *,
        expected: str | None,
        epoch: int,
        write_id: str,
        summary: Summary,
    ) -> str: ...

    async def delete(self, id: str, *, expected: str) -> None: ...


async def _everything(runs: _Runs) -> Found:
    return await runs.all()


class StatusStore:
    """A store in the status of one object, such as a custom resource, for the runs about it.

    The object has to exist, and its resource needs a status subresource and, in its schema, the
    store's field (``asteps crd`` prints both). A save is one merge-patch of the records that have
    changed, with the object's ``resourceVersion`` as its precondition: others may write the rest of
    the object as they like, and nobody's save is lost. A run is another one when the object was
    deleted and made again, and a run that somebody took out of the status is a conflict.

    It lists, browses, scans and inspects the runs of its object. It has no leases: a save fails
    with `ConflictError` where another process goes on with the run, but which of two processes
    that begin at the same time does so is only known when they have saved.

    It may be used with or without ``async with``. Calls are made one after the other.

    Args:
        ref: The object, or its name as `ObjectRef.parse` takes it.
        transport: The client; who made it closes it. Without one a `LightkubeTransport` is made
            at the first call, and closed by `aclose`.
        field: Which field of the status is the store's.
        view: Makes what people see of a run: other fields of the status, written by the same
            patch, as far as they change. Where it raises, or the server does not take its fields,
            that is logged, and the save made without.
        body: Where the records are. ``"status"``: in the status, as text that can be read.
            ``"gzip"``: likewise, but compressed as soon as the records of a run exceed 64 KiB.
            ``"configmap"`` and ``"secret"``: compressed in an object of that kind, named
            ``<name>-<plural>-asteps``, which belongs to the object. A store: there, under the
            run's id with ``@`` and the object's uid. With these three the status keeps the
            summary and what people see; it is written after the run, as well as that goes.
            Runs that began in the status move when they are saved; where they have moved, all
            stores find them, but for a store as the body, which each has to be given.
        max_bytes: What would make the object larger than this, as JSON, is refused. API servers
            take some 1,500,000 bytes.
        warn_bytes: From this size on a warning is logged, once.

    Cancellation: A call that waits for its turn is given up at once. A save that was sent is waited
    for, under asyncio's own ``task.cancel()`` too as far as that can be: the save is then either
    there, or refused when it arrives.

    Raises:
        UsageError: `ref` is none, or the `body` needs another transport or object.
    """

    folds: Literal[True] = True

    def __init__(
        self,
        ref: ObjectRef | str,
        /,
        *,
        transport: Transport | None = None,
        field: str = "asteps",
        view: View | None = None,
        body: Body = "status",
        max_bytes: int = 2**20,
        warn_bytes: int = 2**18,
    ) -> None:
        self.ref: ObjectRef = ObjectRef.parse(ref) if isinstance(ref, str) else ref
        self._given = transport
        self._own: LightkubeTransport | None = None
        self._field = field
        self._view = view
        self._sizes = Sizes(max_bytes, warn_bytes, self._warn)
        self._object: KeptObject
        self._runs = self._runs_in(body)
        self._warned = False
        self._loop: object = None
        self._turns: Lock | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        await self._enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def load(self, id: str, /) -> StoredRun | None:
        """See `Store.load`. Where there is no such object there is no run."""
        return await self._call(lambda runs: runs.load(id))

    async def save(
        self,
        id: str,
        changes: Mapping[str, bytes | None],
        /,
        *,
        expected: str | None,
        epoch: int,
        write_id: str,
        summary: Summary,
    ) -> str:
        """See `Store.save`."""
        changes = dict(changes)  # the caller may go on with its own
        return await self._call(
            lambda runs: runs.save(
                id, changes, expected=expected, epoch=epoch, write_id=write_id, summary=summary
            )
        )

    async def delete(self, id: str, /, *, expected: str) -> None:
        """See `Store.delete`. What people see of the run stays in the status."""
        await self._call(lambda runs: runs.delete(id, expected=expected))

    async def list_runs(
        self,
        *,
        status: Status | None = None,
        name: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Sequence[tuple[str, Summary]]:
        """See `ListStore.list_runs`."""
        return listed(await self._call(_everything), status, name, after, limit)

    async def browse(
        self,
        wanted: RunFilter = _ALL,
        /,
        *,
        before: tuple[float, str] | None = None,
        limit: int = 100,
    ) -> Browsed:
        """See `BrowseStore.browse`."""
        return browsed(await self._call(_everything), wanted, before, limit)

    async def scan(
        self, wanted: RunFilter = _ALL, /, *, after: str | None = None, limit: int = 100
    ) -> Scanned:
        """See `ScanStore.scan`."""
        return scanned(await self._call(_everything), wanted, after, limit)

    async def inspect(self) -> StoreReport:
        """See `InspectStore.inspect`."""
        obj, found = await self._call(self._all_and_object)
        summaries = {id: run.summary for id, run in found.items() if isinstance(run, StoredRun)}
        facts: dict[str, str | int] = {}
        problems: list[str] = []
        size = None
        if obj is None:
            problems.append(f"there is no such object: {self._object.missing}")
        else:
            size = encoded_bytes(obj)
            facts = {"body": self._body, "uid": uid_of(obj), "max bytes": self._sizes.max_bytes}
            if size > self._sizes.warn_bytes:
                facts["larger than it should be"] = f"warn_bytes is {self._sizes.warn_bytes}"
        return StoreReport(
            kind="Kubernetes object",
            where=str(self.ref),
            format=None if obj is None else FORMAT,
            newest_format=FORMAT,
            size_bytes=size,
            runs=dict(Counter(s.status for s in summaries.values())),
            held=tuple(
                Holder(id, s.owner, alive=False)  # nobody here sees a process die
                for id, s in sorted(summaries.items())
                if s.owner is not None
            ),
            damaged={id: str(e) for id, e in found.items() if isinstance(e, StoreError)},
            problems=tuple(problems),
            facts=facts,
        )

    async def must_exist(self) -> None:
        """Find out whether the object is there: where it is not, there are no runs either.

        Raises:
            UsageError: It is not.
            StoreError: It could not be read.
        """
        if await self._call(lambda _: self._object.read()) is None:
            raise UsageError(f"there is no {self.ref}: {self._object.missing}")

    async def aclose(self) -> None:
        """See `Store.aclose`. Calls under way are carried out first."""
        self._bind()
        if self._closed:
            return
        self._closed = True
        with CancelScope(shield=True):
            if self._turns is not None:
                async with self._turns:
                    pass
            if self._own is not None:
                await self._own.aclose()

    async def _enter(self) -> None:
        await checkpoint()
        self._check()
        self._bind()

    def _check(self) -> None:
        if self._closed:
            raise StoreClosedError(f"the StatusStore of {self.ref} is closed")

    def _bind(self) -> None:
        loop = current_token()
        if self._loop is None:
            self._loop = loop
            self._turns = Lock()
        elif self._loop != loop:
            raise UsageError(
                f"the StatusStore of {self.ref} belongs to another event loop; "
                "make one for this loop, with a client of its own"
            )

    async def _call(self, call: Callable[[_Runs], Awaitable[T]]) -> T:
        """One call at a time: each begins with what the one before has seen."""
        await self._enter()
        assert self._turns is not None  # noqa: S101 - for mypy
        async with self._turns:
            self._check()
            try:
                return await call(self._runs)
            except MovedError as exc:
                if exc.body not in OWNED:
                    raise
                # Another client, told so, has moved them.
                self._runs = self._runs_in(cast("Body", exc.body))
                return await call(self._runs)

    async def _all_and_object(self, runs: _Runs) -> tuple[Json | None, Found]:
        found = await runs.all()
        return self._object.seen, found

    def _runs_in(self, body: Body) -> _Runs:
        self._body = name = body if isinstance(body, str) else "store"
        is_inline = name in {"status", "gzip"}
        layout = StatusLayout(
            self.ref,
            self._field,
            self._view,
            body="" if is_inline else name,
            compress=name == "gzip",
        )
        self._object = KeptObject(
            self.ref, self._transport, lambda: self._transport().patch_status, layout.fence
        )
        if is_inline:
            return ObjectRuns(self._object, layout, self._sizes)
        if not isinstance(body, str):
            return RunsElsewhere(self._object, layout, self._sizes, BodyStore(body))
        if body not in OWNED:
            raise UsageError(
                f"body must be 'status', 'gzip', 'configmap', 'secret' or a store, not {body!r}"
            )
        if self._given is not None and not isinstance(self._given, ObjectTransport):
            raise UsageError(f"body={body!r} needs a transport with create() and patch() besides")
        owned = OwnedObject(
            self.ref,
            body,
            self._field,
            self._sizes,
            lambda: cast("ObjectTransport", self._transport()),
        )
        return RunsElsewhere(self._object, layout, self._sizes, owned)

    def _transport(self) -> Transport:
        if self._given is not None:
            return self._given
        if self._own is None:
            from ._kubernetes_lightkube import LightkubeTransport  # noqa: PLC0415 - an extra

            self._own = LightkubeTransport()
        return self._own

    def _warn(self, size: int) -> None:
        if not self._warned:
            self._warned = True
            LOGGER.warning(
                "%s takes %d bytes (warn_bytes is %d): each save rewrites all of it, and sends it "
                "to every watcher; give the store body='gzip' or body='configmap', or keep "
                "references to large results",
                self.ref,
                size,
                self._sizes.warn_bytes,
            )
