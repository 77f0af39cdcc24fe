"""One pass over an object: its run goes on, and is kept in the object's own status."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar, Unpack, cast

from .._clock import Clock
from .._events import Around, Observer
from .._operators import load_state
from .._options import Keywords
from .._outcome import Done, Failed, Pending
from .._payload import DecHook, EncHook, function_name, unwrap
from .._policy import Duration
from .._run import reconcile
from .._state import State
from .._step import Step
from .._store import Store
from ..errors import StateFormatError, StoreError, StoreRefusedError, UsageError
from ..stores.kubernetes import GoneError, ObjectRef, ObjectTransport, StatusStore, Transport
from ._kubernetes_events import Teller, post
from ._kubernetes_view import CLEANUP, status_view

__all__ = [
    "Object",
    "ObjectOptions",
    "Which",
    "check_keywords",
    "main_state",
    "reconcile_object",
    "run_id",
]

T = TypeVar("T")

Object: TypeAlias = dict[str, Any]
"""An object of the cluster, as its JSON: ``obj["spec"]["size"]``."""

Which: TypeAlias = Literal["main", "cleanup"]

_MAX_WAIT = 10.0  # seconds: that long an edit of the spec, or a deletion, has to wait at most


class ObjectOptions(TypedDict, total=False):
    """The keywords of a pass over an object.

    Attributes:
        inputs: What the run depends on, of the object; by default its ``spec``. When it differs
            from what was recorded, a finished run is reopened, its children kept: steps that
            depend on it say so by ``inputs=`` of their own. A clean-up has none by default.
        max_wait: Seconds for which a pass waits in place; 10 by default. So long an edit of the
            spec or a deletion waits for it.
        events: Whether to post Events when a step first fails and when the run ends; True by
            default. They are posted as well as it goes.
        body: Where the records live, as in `StatusStore`.
        field: The field of the status that holds them; ``asteps`` by default.
        max_bytes: As in `StatusStore`.
        warn_bytes: As in `StatusStore`.
        observers: As in `asteps.reconcile`, as is what follows.
        name: Likewise.
        save: Likewise.
        max_pass: Likewise.
        max_crashes: Likewise.
        on_end: Likewise.
        recover: Likewise.
        clock: Likewise.
        lease: Likewise.
        max_result_bytes: Likewise.
        enc_hook: Likewise.
        dec_hook: Likewise.
    """

    inputs: Callable[[Object], object]
    max_wait: Duration
    events: bool
    body: Literal["status", "gzip", "configmap", "secret"] | Store
    field: str
    max_bytes: int
    warn_bytes: int
    observers: Sequence[Observer | Around]
    name: str
    save: Literal["step", "pass"]
    max_pass: Duration | None
    max_crashes: int | None
    on_end: Callable[[Step], Awaitable[object]] | None
    recover: bool
    clock: Clock | None
    lease: Duration
    max_result_bytes: int
    enc_hook: EncHook | None
    dec_hook: DecHook | None


_OWN = ("inputs", "events", "body", "field", "max_bytes", "warn_bytes", "observers")
_OF_STORE = ("body", "field", "max_bytes", "warn_bytes")


def check_keywords(options: ObjectOptions) -> None:
    """Refuse what type checkers would have found.

    Raises:
        UsageError: There is no such keyword.
    """
    if odd := sorted(set(options) - set(ObjectOptions.__annotations__)):
        known = ", ".join(sorted(ObjectOptions.__annotations__))
        raise UsageError(f"there is no keyword {', '.join(odd)}: there are {known}")


_main: ContextVar[tuple[StatusStore, str]] = ContextVar("asteps object")


def run_id(ref: ObjectRef, run: Which = "main", /) -> str:
    """The id of an object's run: ``namespace/name``, and ``namespace/name/cleanup``."""
    names = [ref.namespace] if ref.namespace is not None else []
    return "/".join((*names, ref.name, *((CLEANUP,) if run == "cleanup" else ())))


async def main_state() -> State | None:
    """The tree of the object's main run, for its clean-up: what has been made, and is to go.

    ::

        async def cleanup(s: Step, obj: Object) -> None:
            made = await main_state()
            if made is not None and made.has("server"):
                await s.do("server", delete_server, made.get("server").result_as(str))

    Returns:
        The tree as it is stored now, ``None`` where the run had not begun.

    Raises:
        UsageError: It was called outside of `reconcile_object` and `operate`.
        StoreError: It could not be read.
    """
    try:
        store, id = _main.get()
    except LookupError:
        raise UsageError(
            "main_state() is for functions that reconcile_object() or operate() runs"
        ) from None
    return await load_state(store, id)


class _Same:
    """A transport that knows one object from another of the same name.

    Attributes:
        gone: Whether the object was found to be there no more.
        seen: The object as it was answered last.
    """

    def __init__(self, transport: Transport, ref: ObjectRef, uid: str | None) -> None:
        self._transport = transport
        self._ref = ref
        self._uid = uid
        self.gone = False
        self.seen: Mapping[str, Any] | None = None

    async def get(self, ref: ObjectRef, /) -> dict[str, Any]:
        with self._noticing(ref):
            return self._checked(ref, await self._transport.get(ref))

    async def patch_status(self, ref: ObjectRef, patch: Mapping[str, Any], /) -> dict[str, Any]:
        # A 404 may mean that there is no status subresource: only `get` tells that it is gone.
        return self._checked(ref, await self._transport.patch_status(ref, patch))

    async def create(self, ref: ObjectRef, obj: Mapping[str, Any], /) -> dict[str, Any]:
        return await cast("ObjectTransport", self._transport).create(ref, obj)

    async def patch(self, ref: ObjectRef, patch: Mapping[str, Any], /) -> dict[str, Any]:
        return await cast("ObjectTransport", self._transport).patch(ref, patch)

    @contextlib.contextmanager
    def _noticing(self, ref: ObjectRef) -> Generator[None]:
        try:
            yield
        except GoneError:
            self.gone = self.gone or ref == self._ref
            raise

    def _checked(self, ref: ObjectRef, obj: dict[str, Any]) -> dict[str, Any]:
        if ref == self._ref:
            uid = obj.get("metadata", {}).get("uid")
            if self._uid is not None and uid != self._uid:
                self.gone = True
                raise GoneError(f"{ref} was deleted, and another one was made")
            self.seen = obj
        return obj


async def reconcile_object(
    fn: Callable[[Step, Object], Awaitable[T]],
    obj: Mapping[str, Any],
    /,
    *,
    ref: ObjectRef | str,
    transport: Transport,
    run: Which = "main",
    **options: Unpack[ObjectOptions],
) -> Done[T] | Failed | Pending | None:
    """Run one pass over an object of the cluster; its run lives in the object's status.

    Args:
        fn: The root: an async function of its Step and of the object.
        obj: The object as it was seen: its spec and metadata count. What has been done is read
            from the cluster, however old this is.
        ref: Where it is.
        transport: How to reach it. Events need an `ObjectTransport`.
        run: ``main``, or ``cleanup``, a run of its own beside the main one, for its deletion.
        **options: See `ObjectOptions`.

    Returns:
        What the run has come to; ``None`` where the object is there no more, or is another one of
        the same name: there is nothing left to do.

    Raises:
        ConflictError: Another process is at this run: leave it alone for a while.
        StoreRefusedError: The cluster does not take the state: it is too large, the CRD has no
            room for it, or a right is missing. An Event says so too.
        StateFormatError: What is stored is damaged, lost or of a newer version; likewise.
        StoreError: The cluster did not answer.
        UsageError: The library was used wrongly.

    Cancellation: As in `asteps.reconcile`.
    """
    outcome, _ = await one_pass(fn, obj, ref=ref, transport=transport, run=run, options=options)
    return outcome


async def one_pass(
    fn: Callable[[Step, Object], Awaitable[T]],
    obj: Mapping[str, Any],
    /,
    *,
    ref: ObjectRef | str,
    transport: Transport,
    run: Which,
    options: ObjectOptions,
) -> tuple[Done[T] | Failed | Pending | None, Mapping[str, Any] | None]:
    """What `reconcile_object` does; the object as it was answered last comes with the outcome."""
    check_keywords(options)
    if run not in ("main", "cleanup"):
        raise UsageError(f"run= is 'main' or 'cleanup', not {run!r}")
    where = ObjectRef.parse(ref) if isinstance(ref, str) else ref
    given, meta = dict(obj), obj.get("metadata", {})
    generation = meta.get("generation")
    same = _Same(transport, where, meta.get("uid"))
    view = status_view(observed_generation=generation, namespaced=where.namespace is not None)
    of_store: dict[str, Any] = {key: options[key] for key in _OF_STORE if key in options}  # type: ignore[literal-required]
    store = StatusStore(where, transport=same, view=view, **of_store)
    teller = Teller(cleanup=run == "cleanup", generation=generation)

    async def root(s: Step) -> T:
        return await fn(s, given)

    # The result's type is the function's; the object is none of the run's arguments, for it is
    # large, and differs from pass to pass.
    root.__wrapped__ = unwrap(fn)  # type: ignore[attr-defined]
    keywords = cast("Keywords", {k: v for k, v in options.items() if k not in _OWN})
    keywords["store"], keywords["id"] = store, run_id(where, run)
    keywords.setdefault("name", function_name(fn))
    keywords.setdefault("max_wait", _MAX_WAIT)
    keywords["observers"] = [*options.get("observers", ()), teller]
    inputs = options.get("inputs", _spec if run == "main" else None)
    if inputs is not None:
        keywords["inputs"] = inputs(given)
    token = _main.set((store, run_id(where)))
    try:
        return await reconcile(root, **keywords), same.seen
    except StoreError as exc:
        if same.gone:
            return None, None
        if isinstance(exc, StoreRefusedError):
            teller.stuck("StateRefused", str(exc))
        elif isinstance(exc, StateFormatError):
            teller.stuck("StateUnreadable", str(exc))
        raise
    finally:
        _main.reset(token)
        if options.get("events", True) and isinstance(transport, ObjectTransport):
            await post(teller, given, where, transport)
        await store.aclose()


def _spec(obj: Object) -> object:
    return obj.get("spec")
