"""An operator without a framework: list, watch, and passes over what is due."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, NoReturn

import anyio
from anyio.abc import TaskGroup

from .._outcome import Done, Failed, Pending
from .._step import Step
from ..errors import (
    BusyError,
    ConflictError,
    StateFormatError,
    StoreError,
    StoreRefusedError,
    UsageError,
)
from ..stores.kubernetes import GoneError, ObjectRef, StaleError, TransportError
from ._kubernetes_crd import Resource
from ._kubernetes_pass import Object, ObjectOptions, Which, one_pass, run_id
from ._kubernetes_queue import Queue, Sighting, backoff
from ._kubernetes_watch import Cluster

__all__ = ["Operator", "is_taken_up", "retry_after", "saves_of"]

_log = logging.getLogger("asteps.kubernetes")

_FOR_GOOD = 60.0  # seconds, at most, until one looks again at what does not mend by itself
_STEADY = 60.0  # seconds after which a watch that broke off had worked
_RACES = 10  # tries to change an object's finalizers that others change too


def retry_after(error: Exception, failures: int) -> float:
    """Seconds until a pass is tried again that came to no outcome.

    Args:
        error: Why it came to none.
        failures: How often in succession, from 1.
    """
    chance = random.random()  # noqa: S311 - no secret: so that two do not come at the same time
    match error:
        case ConflictError() | BusyError():
            # Whoever goes on takes the run from the other one. That both get on, each has to leave
            # the other more time than a step takes, whatever that is.
            return backoff(failures, chance, first=2.0)
        case StoreRefusedError() | StateFormatError() | UsageError():
            return backoff(failures + 6, chance, most=_FOR_GOOD)
        case StoreError() | TransportError():
            return backoff(failures, chance)
        case _:
            return backoff(failures + 6, chance, most=_FOR_GOOD)


def saves_of(obj: Mapping[str, Any] | None, field: str) -> int:
    """The number of the last save that an object holds."""
    try:
        return int((obj or {})["status"][field]["seq"])
    except (KeyError, TypeError):
        return 0


def is_taken_up(obj: Mapping[str, Any], field: str, id: str, *, since: int) -> bool:
    """Whether somebody has saved a run since that save, and it has not ended."""
    try:
        entry = obj["status"][field]["runs"][id]
        ended = entry["summary"]["status"] in ("done", "failed")
        return not ended and int(entry["seq"]) > since
    except (KeyError, TypeError):
        return False


class Operator:
    """A watch loop.

    Args:
        resource: Which objects.
        fn: The root of their runs.
        cleanup: The root of the clean-up run of an object that is deleted.
        cluster: How to reach them.
        namespace: Where; ``None`` for everywhere.
        finalizer: What keeps an object until it is cleaned up.
        limit: How many passes at the same time.
        options: Of the passes.
    """

    def __init__(
        self,
        resource: Resource,
        fn: Callable[[Step, Object], Awaitable[Any]],
        cleanup: Callable[[Step, Object], Awaitable[Any]] | None,
        cluster: Cluster,
        *,
        namespace: str | None,
        finalizer: str,
        limit: int,
        options: ObjectOptions,
    ) -> None:
        self._resource = resource
        self._fn = fn
        self._cleanup = cleanup
        self._cluster = cluster
        self._namespace = namespace
        self._finalizer = finalizer
        self._limit = limit
        self._options = options
        self._field = options.get("field", "asteps")
        self._queue = Queue()
        self._running = 0
        self._stir = anyio.Event()
        self._written: dict[str, int] = {}  # by key: the last save that a pass has seen

    async def run(self) -> NoReturn:
        """Until it is cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow, name=f"asteps watch of {self._resource}")
            await self._dispatch(tasks)
        raise AssertionError("unreachable")

    # -- what there is --

    async def _follow(self) -> None:
        failures = 0
        while True:
            began = anyio.current_time()
            try:
                objects, version = await self._cluster.list(self._resource, self._namespace)
                for obj in objects:
                    self._see(obj)
                self._keep_only(objects)
                changes = self._cluster.watch(self._resource, self._namespace, version)
                async with aclosing(changes):
                    async for kind, obj in changes:
                        self._change(kind, obj)
                error = "it ended"
            except TransportError as exc:
                error = str(exc)
            failures = 1 if anyio.current_time() - began > _STEADY else failures + 1
            delay = backoff(failures, random.random(), first=0.5)  # noqa: S311 - no secret
            level = logging.INFO if failures == 1 else logging.WARNING
            _log.log(level, "watching %s again in %.1f seconds: %s", self._resource, delay, error)
            await anyio.sleep(delay)

    def _change(self, kind: str, obj: Object) -> None:
        if kind == "DELETED":
            self._lose(_key(obj))
        elif kind in ("ADDED", "MODIFIED"):
            self._see(obj)

    def _see(self, obj: Object) -> None:
        meta = obj["metadata"]
        key, deleting = _key(obj), "deletionTimestamp" in meta
        seen = Sighting(str(meta.get("uid", "")), int(meta.get("generation", 0)), deleting)
        run: Which = "cleanup" if deleting else "main"
        id, written = run_id(self._ref(obj), run), self._written.get(key, 0)
        unfinished = is_taken_up(obj, self._field, id, since=written)
        if self._queue.see(key, seen, obj, anyio.current_time(), unfinished=unfinished):
            self._stir.set()

    def _lose(self, key: str) -> None:
        self._queue.lose(key)
        self._written.pop(key, None)

    def _keep_only(self, objects: list[Object]) -> None:
        keys = {_key(obj) for obj in objects}
        self._queue.keep_only(keys)
        self._written = {key: seq for key, seq in self._written.items() if key in keys}

    def _ref(self, obj: Object) -> ObjectRef:
        meta, of = obj["metadata"], self._resource
        return ObjectRef(of.group, of.version, of.plural, meta.get("namespace"), meta["name"])

    # -- passes --

    async def _dispatch(self, tasks: TaskGroup) -> None:
        while True:
            self._stir = anyio.Event()
            now = anyio.current_time()
            while self._running < self._limit and (taken := self._queue.take(now)):
                self._running += 1
                tasks.start_soon(self._visit, *taken, name=f"asteps pass over {taken[0]}")
            wait = self._queue.next_due() - now if self._running < self._limit else float("inf")
            with anyio.move_on_after(wait):
                await self._stir.wait()

    async def _visit(self, key: str, obj: Object) -> None:
        after: float | None = None
        failed = False
        try:
            after = await self._pass_over(key, obj)
        except GoneError:
            pass  # deleted meanwhile: the watch is going to say so
        except Exception as exc:  # noqa: BLE001 - what is wrong with one object stops no other
            failed = True
            after = retry_after(exc, self._queue.failed(key))
            _report(exc, key, after)
        self._queue.settle(key, anyio.current_time(), after, failed=failed)
        self._running -= 1
        self._stir.set()

    async def _pass_over(self, key: str, obj: Object) -> float | None:
        """Seconds until the next pass, ``None`` where only a change calls for one."""
        ref, meta = self._ref(obj), obj["metadata"]
        held = self._finalizer in meta.get("finalizers", ())
        if "deletionTimestamp" in meta:
            if not held:
                return None
            if self._cleanup is not None:
                after = await self._drive(self._cleanup, key, obj, ref, "cleanup")
                if after is not True:
                    return after
            await self._hold(ref, obj, held=False)
            return None
        if self._cleanup is not None and not held:
            await self._hold(ref, obj, held=True)
        after = await self._drive(self._fn, key, obj, ref, "main")
        return None if after is True else after

    async def _drive(
        self,
        fn: Callable[[Step, Object], Awaitable[Any]],
        key: str,
        obj: Object,
        ref: ObjectRef,
        run: Which,
    ) -> float | bool | None:
        """Seconds until the next pass; True where the run is done, ``None`` where it has failed."""
        outcome, seen = await one_pass(
            fn, obj, ref=ref, transport=self._cluster, run=run, options=self._options
        )
        self._written[key] = saves_of(seen, self._field)
        match outcome:
            case Done():
                _log.info("%s %s: done", run, key)
                return True
            case Pending(after=after, path=path, why=why):
                _log.info("%s %s: %s waits %.1f seconds: %s", run, key, path, after, why)
                return after
            case Failed(error=error):
                until = "it is recovered" + (" or its spec changes" if run == "main" else "")
                _log.warning("%s %s: failed, until %s: %s", run, key, until, error)
                return None
            case None:
                raise GoneError(f"{ref} is there no more")

    async def _hold(self, ref: ObjectRef, obj: Object, *, held: bool) -> None:
        """Put our finalizer on an object, or take it away.

        Raises:
            GoneError: It is there no more, or is deleted already.
            TransportError: The cluster did not do it.
        """
        for _ in range(_RACES):
            found = await self._cluster.get(ref)
            meta = found["metadata"]
            if meta.get("uid") != obj["metadata"].get("uid"):
                raise GoneError(f"{ref} was deleted, and another one was made")
            finalizers = list(meta.get("finalizers", ()))
            if (self._finalizer in finalizers) == held:
                return
            if held and "deletionTimestamp" in meta:
                raise GoneError(f"{ref} is deleted, and nothing was begun for it")
            if held:
                finalizers.append(self._finalizer)
            else:
                finalizers.remove(self._finalizer)
            # All of the list goes, so it must be the list that was read: others have theirs there.
            patch = {
                "metadata": {"resourceVersion": meta["resourceVersion"], "finalizers": finalizers}
            }
            try:
                await self._cluster.patch(ref, patch)
            except StaleError:
                continue
            return
        raise StaleError(f"others change {ref} all the time")


def _key(obj: Object) -> str:
    meta = obj["metadata"]
    namespace = meta.get("namespace")
    return meta["name"] if namespace is None else f"{namespace}/{meta['name']}"


def _report(error: Exception, key: str, after: float) -> None:
    """Say why a pass came to nothing; with where, if the code is to blame."""
    where: Exception | None = None
    match error:
        case ConflictError() | BusyError():
            level = logging.INFO
        case StoreRefusedError() | StateFormatError():
            level = logging.ERROR
        case StoreError() | TransportError():
            level = logging.WARNING
        case _:
            level, where = logging.ERROR, error
    _log.log(level, "%s is tried again in %.1f seconds: %s", key, after, error, exc_info=where)
