"""Steps in kopf's handlers.

`operate` makes all the handlers that a resource needs::

    import kopf
    from asteps.integrations import kopf as steps

    @kopf.on.startup()
    async def startup(settings: kopf.OperatorSettings, **_: Any) -> None:
        steps.configure(settings)

    @steps.operate("example.com", "v1", "databases", cleanup=tear_down)
    async def bring_up(s: Step, obj: Object) -> str: ...

For handlers of your own there is `answer`, which tells kopf what a pass has come to.

It needs ``asteps[kopf]``: kopf, and lightkube, by which the state is kept. kopf sends its
``patch.status`` only when a handler has ended, too late for what must survive a kill.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar, Unpack, cast

from .._outcome import Done, Failed, Pending
from .._payload import function_name
from .._step import Step
from ..errors import AstepsError, MissingDependencyError
from ..stores.kubernetes import LightkubeTransport, ObjectRef, Transport
from ._kubernetes_crd import Resource, parse_resource
from ._kubernetes_loop import is_taken_up, retry_after, saves_of
from ._kubernetes_pass import (
    Object,
    ObjectOptions,
    Which,
    check_keywords,
    one_pass,
    run_id,
)

try:
    import kopf
except ModuleNotFoundError as _exc:
    raise MissingDependencyError("kopf", "kopf") from _exc

# To wait is no error, but kopf logs every `TemporaryError` as one, except for this kind of them, by
# which it waits for sub-handlers. It is not public; where it is no more, waits are logged so too.
_Waits: type[kopf.TemporaryError]
try:
    from kopf._core.actions.execution import HandlerChildrenRetry as _Waits
except ImportError:
    _Waits = kopf.TemporaryError

__all__ = ["answer", "configure", "operate"]

_log = logging.getLogger("asteps.kubernetes")

_STUCK = 60.0  # seconds until kopf asks again after a clean-up that has failed

F = TypeVar("F", bound=Callable[[Step, Object], Awaitable[object]])


def answer(outcome: Done[Any] | Failed | Pending | None, /) -> None:
    """Tell kopf what a pass has come to, as the last thing that a handler does.

    Done, or an object that is there no more: it returns. kopf stores what a handler returns in the
    status, so return nothing yourself.

    Raises:
        kopf.TemporaryError: The run waits; kopf calls the handler again when it is due, also after
            a restart. It is logged by asteps, and not by kopf, to which it would be an error.
        kopf.PermanentError: The run failed; kopf calls the handler again when the spec changes.
    """
    match outcome:
        case Pending(after=after, path=path, why=why):
            where = f"{path!r} waits" if path else "the run waits"
            said = f"{where}: {why}" if why else where
            _log.info("%s (%.1f seconds)", said, after)
            raise _Waits(said, delay=after)
        case Failed(error=error):
            raise kopf.PermanentError(str(error))
        case _:
            pass


def configure(settings: kopf.OperatorSettings, /, *, prefix: str = "kopf.zalando.org") -> None:
    """Have kopf keep its own progress in annotations alone, not in the status beside the steps.

    Call it in a handler of ``@kopf.on.startup()``.

    Args:
        settings: What that handler is given.
        prefix: Of the annotations: a domain of yours, where several operators share objects.
    """
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=prefix)


def operate(
    group: str,
    version: str,
    plural: str,
    /,
    *,
    cleanup: Callable[[Step, Object], Awaitable[object]] | None = None,
    transport: Transport | None = None,
    id: str | None = None,
    registry: kopf.OperatorRegistry | None = None,
    labels: Mapping[str, Any] | None = None,
    annotations: Mapping[str, Any] | None = None,
    when: Callable[..., bool] | None = None,
    **options: Unpack[ObjectOptions],
) -> Callable[[F], F]:
    """Have kopf bring objects to what their specs say, by an async function of Step and object.

    The function becomes the handler for creation, for edits of the spec, and for operators that
    start again; ``cleanup`` the one for deletion, with kopf's finalizer. Each call is one pass:

    - done: the handler succeeds;
    - pending: it is called again when the run is due. An edit of the spec does not wait for that;
    - failed: kopf leaves it alone until the spec changes or somebody recovers the run. A clean-up
      that has failed keeps its object, until it is recovered;
    - another process is at the run, or the cluster does not answer: it is called again soon;
    - the cluster refuses the state, or what it has cannot be read: it is called again after half
      a minute or a minute;
    - the object is gone: the handler succeeds.

    While a pass runs, kopf lets edits and deletions of its object wait: at most for ``max_wait=``
    (10 seconds by default), and for a step that is under way.

    kopf does not keep two operators apart unless they are peers; see `operate` of
    `asteps.integrations.kubernetes` for what happens then.

    Args:
        group: Of the resource.
        version: Its version.
        plural: Its plural.
        cleanup: The root of the clean-up run. An object is kept until it is done; `main_state`
            tells it what there is.
        transport: How to reach the cluster; by default lightkube, with the configuration that it
            finds, which need not be kopf's.
        id: The handlers' id, under which kopf keeps their progress; by default the function's name.
        registry: Of handlers; kopf's default one.
        labels: Which objects, as in kopf's decorators; likewise what follows.
        annotations: Likewise.
        when: Likewise.
        **options: See `ObjectOptions`.

    Returns:
        A decorator, which gives the function back.

    Raises:
        UsageError: There is no such resource, or an option is wrong.
    """
    resource = parse_resource(f"{group}/{version}/{plural}")
    check_keywords(options)
    filters: dict[str, Any] = {"labels": labels, "annotations": annotations, "when": when}
    common: dict[str, Any] = {key: value for key, value in filters.items() if value is not None}
    common["registry"] = registry
    where = (group, version, plural)

    def decorate(fn: F) -> F:
        name = id or function_name(fn).rpartition(".")[2]
        handlers = _Handlers(resource, fn, cleanup, transport, name, options)
        # kopf takes the three for one handler, whose progress outlives a change of the reason,
        # because function and id are the same: it adds the field to an id.
        kopf.on.create(*where, id=f"{name}/spec", **common)(handlers.bring_up)
        kopf.on.resume(*where, id=f"{name}/spec", **common)(handlers.bring_up)
        kopf.on.update(*where, id=name, field="spec", **common)(handlers.bring_up)
        if cleanup is not None:
            kopf.on.delete(*where, id=f"{name}/cleanup", **common)(handlers.clean_up)
        due = handlers.is_stirred if when is None else kopf.all_([when, handlers.is_stirred])
        stirred: dict[str, Any] = {**common, "when": due}
        kopf.on.event(*where, id=f"{name}/stirred", **stirred)(handlers.hurry)
        kopf.on.startup(id=f"{name}/{plural}", registry=registry)(handlers.start)
        kopf.on.cleanup(id=f"{name}/{plural}", registry=registry)(handlers.stop)
        return fn

    return decorate


class _Handlers:
    """What kopf calls for one resource."""

    def __init__(
        self,
        resource: Resource,
        fn: Callable[[Step, Object], Awaitable[object]],
        cleanup: Callable[[Step, Object], Awaitable[object]] | None,
        transport: Transport | None,
        name: str,
        options: ObjectOptions,
    ) -> None:
        self._resource = resource
        self._options = options
        self._given = transport
        self._made: LightkubeTransport | None = None
        self._name = name  # of the handlers, whose progress kopf keeps under it
        self._settings: kopf.OperatorSettings | None = None
        self._field = options.get("field", "asteps")
        self._failures: dict[str, int] = {}  # by uid
        self._driven: dict[str, int] = {}  # by uid: generation of the spec of the last pass
        self._ended: dict[str, int] = {}  # by uid, where the last pass ended the run: its last save

        # kopf knows handlers that are the same by the identity of the function, and a bound
        # method is another object each time that it is looked up.
        async def bring_up(body: kopf.Body, **_: Any) -> None:
            await self._pass_over(fn, body, "main")

        async def clean_up(body: kopf.Body, **_: Any) -> None:
            if cleanup is not None:
                await self._pass_over(cleanup, body, "cleanup")

        self.bring_up = bring_up
        self.clean_up = clean_up

    async def start(self, settings: kopf.OperatorSettings, **_: Any) -> None:
        self._settings = settings

    async def stop(self, **_: Any) -> None:
        if self._made is not None:
            await self._made.aclose()

    def is_stirred(self, type: str | None, body: kopf.Body, **_: Any) -> bool:
        """Whether kopf waits, or rests, though there is something to do meanwhile."""
        if type == "DELETED":
            for known in (self._driven, self._failures, self._ended):
                known.pop(str(body.metadata.get("uid")), None)
            return False
        return self._settings is not None and (self._is_edited(body) or self._is_recovered(body))

    def _is_edited(self, body: kopf.Body) -> bool:
        """Whether the handler waits for its time though the spec has been edited meanwhile."""
        assert self._settings is not None  # noqa: S101 - for mypy
        meta = body.metadata
        uid, generation = str(meta.get("uid")), meta.get("generation")
        if generation is None or meta.get("deletionTimestamp"):
            return False
        # What was driven before this process began, the status says.
        driven = self._driven.get(uid, body.get("status", {}).get("observedGeneration"))
        if driven is None or driven == generation:
            return False
        storage = self._settings.persistence.progress_storage
        record = storage.fetch(key=cast("Any", f"{self._name}/spec"), body=body)
        return record is not None and bool(record.get("delayed"))

    def _is_recovered(self, body: kopf.Body) -> bool:
        """Whether the run had ended, and somebody has had it go on."""
        last = self._ended.get(str(body.metadata.get("uid")))
        if last is None:
            return False
        run: Which = "cleanup" if body.metadata.get("deletionTimestamp") else "main"
        return is_taken_up(body, self._field, run_id(self._ref(body), run), since=last)

    async def hurry(self, body: kopf.Body, patch: kopf.Patch, **_: Any) -> None:
        """Have the handler called at once. kopf itself would do that when its time has come."""
        if self._settings is None:
            return
        deleted = bool(body.metadata.get("deletionTimestamp"))
        key = f"{self._name}/{'cleanup' if deleted else 'spec'}"
        persistence = self._settings.persistence
        persistence.progress_storage.purge(key=cast("Any", key), body=body, patch=patch)
        if not deleted and self._is_recovered(body):
            # kopf has done with this spec. As if another one had been handled last, it has not.
            essence = dict(persistence.diffbase_storage.fetch(body=body) or {})
            essence["spec"] = {"recovered": saves_of(body, self._field)}
            handled = cast("kopf.BodyEssence", essence)
            persistence.diffbase_storage.store(body=body, patch=patch, essence=handled)

    async def _pass_over(
        self, fn: Callable[[Step, Object], Awaitable[object]], body: kopf.Body, run: Which
    ) -> None:
        meta, ref = body.metadata, self._ref(body)
        uid = str(meta.get("uid"))
        self._driven[uid] = int(meta.get("generation", 0))
        self._ended.pop(uid, None)
        transport = self._transport()
        try:
            outcome, seen = await one_pass(
                fn, dict(body), ref=ref, transport=transport, run=run, options=self._options
            )
        except AstepsError as exc:
            self._failures[uid] = failures = self._failures.get(uid, 0) + 1
            raise kopf.TemporaryError(str(exc), delay=retry_after(exc, failures)) from exc
        self._failures.pop(uid, None)
        if isinstance(outcome, Done | Failed):
            self._ended[uid] = saves_of(seen, self._field)
        if run == "cleanup" and isinstance(outcome, Failed):
            # After a PermanentError kopf would let the object go, and with it what is known of it.
            raise kopf.TemporaryError(f"the clean-up failed: {outcome.error}", delay=_STUCK)
        answer(outcome)

    def _ref(self, body: kopf.Body) -> ObjectRef:
        meta, of = body.metadata, self._resource
        return ObjectRef(
            of.group, of.version, of.plural, meta.get("namespace"), str(meta.get("name"))
        )

    def _transport(self) -> Transport:
        if self._given is not None:
            return self._given
        if self._made is None:
            self._made = LightkubeTransport()
        return self._made
