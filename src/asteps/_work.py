"""The work on one step until it comes to something: attempts, waits, and what each end means."""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from types import CoroutineType
from typing import Any, NoReturn, Protocol, cast

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint

from ._events import StepDone, StepFailed, StepPending, StepRetrying, StepStarted
from ._failure import describe, error_of, reached
from ._loop import current_loop, is_cancellation
from ._pass import Abort, NotYet, Over, Pass, PassOver, Signal, ThreadCall, Wake, where
from ._paths import join
from ._payload import UNSET, Spec, TooLargeError, function_name, unwrap
from ._policy import Duration, Retry, duration
from ._state import (
    State,
    begin,
    detail,
    fail,
    finish,
    interrupt,
    moment,
    pend,
    recover_causes,
    restart,
    retry_later,
    seconds,
)
from .errors import AstepsError, Failure, FailureKind, UsageError

__all__ = [
    "NOT_RUNNING",
    "OWN",
    "Execution",
    "Running",
    "Work",
    "as_coroutine",
    "check_at_large",
    "swallowed",
]


OWN = 1 << 20  # what a child in its parent's own task adds to the count of active ones; others 1
_CHECKPOINTS = 10  # at which no child works, before a parent is believed to be still


class Running(Protocol):
    """A coroutine, as far as it tells whether the code that runs right now is within it."""

    @property
    def cr_running(self) -> bool: ...


class _NotRunning:
    cr_running = False


NOT_RUNNING: Running = _NotRunning()


class Execution(Protocol):
    """One execution of a body (a `Step`), as the work on its children and its own sees it."""

    _run: Pass
    _node: State
    _active: int
    _parked: int
    _still: anyio.Event | None
    _ended: Signal | None
    _over: bool
    _ended_here: bool
    _wakes: dict[Any, Wake]
    _body: Running

    @property
    def path(self) -> str: ...
    def _announce(self) -> None: ...
    def _take_back(self, node: State) -> None: ...
    async def _leave(self) -> None: ...
    async def _close(self) -> None: ...
    def _finished(self) -> None: ...
    def _replay(self, node: State, spec: Spec) -> Any: ...


class Work:
    """One step to be run: the long way, for everything that is not plain.

    Args:
        parent: The execution of the parent's body; ``None`` for the root.
        execution: Makes the child's own execution; ``None`` for a function that takes no step.
    """

    def __init__(
        self,
        parent: Any,
        name: str,
        node: State,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        spec: Spec,
        execution: Callable[[Pass, State, Any, str], Any] | None,
        *,
        run: Pass | None = None,
    ) -> None:
        self._parent: Execution | None = parent
        self._run: Pass = parent._run if run is None else run
        self._name = name
        self._node = node
        self._fn = fn
        self._args = args
        self._spec = spec
        self._execution = execution
        self._path = "" if parent is None else join(parent.path, name)
        self._retry: Retry | None = None
        self._timeout: float | None = None
        self._at_most_once = False
        self._result: Any = None
        self._mark: object = None  # of the thread in which a plain function is called
        self._weight = OWN  # in the parent's count of active children
        self._entered = False  # this driver has begun the body before

    # -- ways in --

    async def with_options(self, options: dict[str, Any], *, fresh: bool) -> Any:
        """Take the options of ``do`` into account, then `run`, in a scope of its own if need be.

        Args:
            options: See `StepOptions`.
            fresh: The node is new, and is taken back if nothing comes of this.
        """
        run, parent, node = self._run, self._execution_of_parent(), self._node
        try:
            if options:
                try:
                    self._take_options(**options)
                except (UsageError, TypeError) as exc:
                    raise self._abort(
                        exc if isinstance(exc, UsageError) else UsageError(_unknown(options))
                    ) from exc
            if node._done is not None:
                if node.errs:
                    raise error_of(node, self._path)
                return parent._replay(node, self._spec)
            if not parent._active and parent._body.cr_running:
                return await self.run()
            # Another task than the parent's body runs this: it must be possible to end it.
            with anyio.CancelScope() as scope:
                run.scopes[scope] = parent
                try:
                    return await self.run()
                finally:
                    run.left(scope)
            raise PassOver  # the scope was cancelled: the parent's body, or the pass, has ended
        except (Abort, PassOver):
            if fresh and node._started is None and node.detail is None:
                parent._take_back(node)
            raise

    def run(self) -> Coroutine[Any, Any, Any]:
        """Run the step until it comes to something.

        Raises:
            StepError: It failed.
            Signal: It did not come to anything in this pass.
        """
        return self._until_settled(None)

    async def run_from(self, child: Any, exc: BaseException) -> Any:
        """Go on where the short way met this exception; the parent counts the step as active."""
        self._entered = True
        return await self._until_settled((child, exc))

    async def fit(self, value: object) -> tuple[bytes, Any]:
        """What the body returned, as it is recorded, and as every pass gives it.

        Raises:
            StepError: It is too large: the step has failed for good.
            Abort: It cannot come back from JSON.
        """
        try:
            where = f"step {self._path!r}" if self._path else "the run"
            return self._run.payloads.result(value, self._spec, where)
        except UsageError as exc:
            raise self._abort(exc) from exc
        except TooLargeError as exc:
            await self._fail(describe(exc, self._path, kind="too large", final=True), exc)

    # -- the loop --

    async def _until_settled(self, ended: tuple[Execution | None, BaseException] | None) -> Any:
        parent = self._parent if ended is None else None  # else the parent counts it already
        if parent is not None:
            self._weight = OWN if parent._body.cr_running else 1
            parent._active += self._weight
        try:
            wake = None if ended is None else await self.settle(*ended)
            while ended is None or wake is not None:
                if wake is not None:
                    await self._wait(wake)
                ended = None
                wake = self._gate() or await self._attempt()
                if wake is None:
                    break
            return self._result
        finally:
            if parent is not None:
                parent._active -= self._weight
                if parent._still is not None and not parent._active:
                    parent._still.set()

    def _gate(self) -> Wake | None:
        """When to come back, if it is too early or too late for the body in this pass.

        Nothing is changed or written then.
        """
        run, node = self._run, self._node
        now = run.now()
        own = node.detail
        if own is not None and (due := seconds(own.wake_at)) is not None and now < due:
            deadline = self._deadline()
            if deadline is None or now < deadline:
                return (due, self._path, own.why)
        if not (run.ready or self._entered or self._only_on_the_way() or run.may_begin()):
            return (now, self._path, "the pass has used up its time")
        return None

    def _only_on_the_way(self) -> bool:
        """Whether the body is entered only to reach a child whose time may have come."""
        node = self._node
        return (node.detail is None or node.detail.wake_at is None) and node.pending

    async def begin(self) -> None:
        """Everything that comes before the body.

        Raises:
            StepError: The step may not be run again.
            Abort: The run could not be claimed, or the start not be saved.
        """
        run, node = self._run, self._node
        now = run.now()
        only_on_the_way = self._only_on_the_way()
        own = node.detail
        if self._at_most_once and not self._entered and own is not None and own.once:
            self._found_interrupted()
            await self._fail(
                self._engine_failure(
                    "interrupted",
                    "the step was interrupted while it ran at most once: what became of it is "
                    "unknown; find out, then recover it or set its result",
                ),
                None,
            )
        if node.errs:  # retrying
            for path in recover_causes(node, self._path):
                self._touch_below(path)
            restart(node, now)
            self._touch()
        elif node._started is not None and not self._entered and not node.pending:
            self._found_interrupted()
            if self._crashed_too_often():
                await self._fail(
                    self._engine_failure(
                        "crashed",
                        f"the step was interrupted {run.idle_before} times without progress",
                    ),
                    None,
                )
        if node._started is None and own is not None:
            self._touch()  # it was reset or reopened: what is stored has no start
        begin(node, now)
        self._entered = True
        if not (run.ready or only_on_the_way):
            await run.prepare()
        if self._at_most_once:
            await self._begin_once()
        elif run.save_starts and not only_on_the_way:
            self._touch()
            await run.saved(urgent=True)
        if run.observers:
            run.emit(
                StepStarted(
                    run_id=run.run_id,
                    path=self._path,
                    at=moment(now),
                    attempt=node.attempt,
                    interruptions=node.interruptions,
                )
            )

    async def _attempt(self) -> Wake | None:
        """Run the body once.

        Returns:
            ``None`` when the step is done, else when to come back.
        """
        await self.begin()
        deadline = self._deadline()
        left = None if deadline is None else deadline - self._run.now()
        if left is not None and left <= 0:
            return await self.settle(None, self._timed_out(), kind="timeout")
        child = None
        if self._execution is not None:
            child = self._execution(self._run, self._node, self._parent, self._name)
            if self._parent is None:
                child._announced = self._run.claimed  # by that very save
        limit: anyio.CancelScope | None = None
        try:
            if left is None:
                value = await self._invoke(child)
            else:
                with self._run.clock.move_on_after(left) as limit:
                    value = await self._invoke(child)
                if limit.cancelled_caught:
                    raise self._timed_out()
            if child is not None:
                await child._leave()
        except BaseException as exc:
            if limit is not None and limit.cancelled_caught:
                # Of a body that must not run twice, nobody knows how far it had come.
                return await self.settle(child, exc, kind="timeout", final=self._at_most_once)
            return await self.settle(child, exc)
        data, self._result = await self.fit(value)
        await self.done(data)
        return None

    def _invoke(self, child: Execution | None) -> Coroutine[Any, Any, Any]:
        if child is None:
            return self._call()
        body = self._fn(child, *self._args)
        if type(body) is not CoroutineType:
            body = as_coroutine(body, self._fn)
        child._body = body
        return cast("Coroutine[Any, Any, Any]", body)

    async def _call(self) -> Any:
        fn, args, run = self._fn, self._args, self._run
        if self._spec.is_async:
            value = await fn(*args)
        else:
            self._mark = object()
            value = await self._in_thread(fn, args, self._mark)
            if inspect.isawaitable(value):
                value = await value
        if run.at_large:
            check_at_large(run, self._parent, self._path, self._mark)
        return value

    async def _in_thread(self, fn: Callable[..., Any], args: tuple[Any, ...], mark: object) -> Any:
        """Call a plain function in a worker thread, and wait for its end whatever happens."""
        loop = current_loop()
        state = ThreadCall(fn, args, mark, loop)
        try:
            await anyio.to_thread.run_sync(state.run)
        except anyio.get_cancelled_exc_class():
            # Only asyncio's own task.cancel() comes through here before the function has returned.
            state.withdraw()
            while not state.ended:
                state.waiting = loop.wakeup()
                with anyio.CancelScope(shield=True), suppress(anyio.get_cancelled_exc_class()):
                    await state.waiting
            if state.returned and not inspect.isawaitable(state.value):
                data, self._result = await self.fit(state.value)
                self._record(data)
            raise
        return state.value

    # -- what the end of a body means --

    async def settle(
        self,
        child: Execution | None,
        exc: BaseException,
        *,
        kind: FailureKind = "raised",
        final: bool = False,
    ) -> Wake | None:
        """Make of an exception what it means.

        Returns:
            When to come back, for what is not over.

        Raises:
            StepError: The step has failed.
            BaseException: What is no outcome goes on as it came.
        """
        run = self._run
        if child is not None:
            child._over = True
        if isinstance(exc, GeneratorExit):
            raise exc  # the loop is gone: nothing may be awaited or asked
        came, exc = exc, _essence(exc)
        if not isinstance(exc, Exception | Signal) and (
            is_cancellation(exc) or not isinstance(exc, anyio.get_cancelled_exc_class())
        ):
            # Cancelled, or KeyboardInterrupt and its like: the step is interrupted.
            self._touch()
            if child is not None:
                for scope, owner in run.scopes.items():
                    if owner is child:
                        scope.cancel()
            raise exc
        if child is not None and (child._active or child._parked):
            await child._close()
        if isinstance(run.halted, Abort):
            self._stop(run.halted)
        if isinstance(exc, Signal):
            return self._not_over(child, exc)
        if (
            child is not None
            and child._ended_here
            and not any(isinstance(each, Signal) for each in _leaves(came))
        ):
            raise self._abort(swallowed(self._path)) from exc
        for each in _leaves(came):
            if isinstance(each, NotYet):
                run.at_large.pop(each, None)
        if run.at_large:
            check_at_large(run, self._parent, self._path, self._mark)
        misuse = exc if isinstance(exc, UsageError) else self._misfit(exc)
        if misuse is not None:
            raise self._abort(misuse) from exc
        failure = describe(exc, self._path, kind=kind, final=final)
        if (wake := self._next_attempt(exc, failure)) is None:
            return await self._fail(failure, exc, child)
        await self._saved()
        return wake

    def _misfit(self, exc: BaseException) -> UsageError | None:
        """What to say of a function that could not even be called with what it was given."""
        code = getattr(unwrap(self._fn), "__code__", None)
        if type(exc) is not TypeError or code is None or reached(exc, code):
            return None
        given = "a Step, then " if self._execution is not None else ""
        return UsageError(
            f"step {self._path!r}: {function_name(self._fn)} cannot be called with {given}"
            f"{len(self._args)} arguments ({exc}); do() passes a Step first, call() does not"
        )

    def _not_over(self, child: Execution | None, exc: Signal) -> Wake:
        run, node = self._run, self._node
        if self._at_most_once:
            detail(node).once = False  # the end is known: not yet
            self._touch()
        if isinstance(exc, NotYet):
            run.at_large.clear()
            now = run.now()
            wake_at = now + exc.after
            pend(node, wake_at, exc.why)
            run.progress()
            self._touch()
            if run.observers:
                run.emit(
                    StepPending(
                        run_id=run.run_id,
                        path=self._path,
                        at=moment(now),
                        wake_at=moment(wake_at),
                        why=exc.why,
                    )
                )
            return (wake_at, self._path, exc.why)
        if isinstance(exc, PassOver) and child is not None and child._wakes:
            return min(child._wakes.values())
        if isinstance(exc, Abort):
            raise self._abort(exc.error)
        return (run.now(), self._path, "")

    def _next_attempt(self, exc: BaseException, failure: Failure) -> Wake | None:
        """Record that the step is retrying, if it is to be tried again."""
        run, node, retry = self._run, self._node, self._retry
        if retry is None or failure.final or node.attempt >= retry.attempts:
            return None
        try:
            if not retry.covers(exc):
                return None
        except Exception as broken:
            raise self._abort(
                UsageError(f"step {self._path!r}: Retry(on=…) raised {broken!r}")
            ) from broken
        now, attempt = run.now(), node.attempt
        chance = int.from_bytes(os.urandom(4)) / 0xFFFFFFFF  # `random` costs 1 ms to import
        wake_at = now + retry.delay_after(attempt, chance)
        retry_later(node, failure, wake_at)
        run.progress()
        self._touch()
        if run.observers:
            run.emit(
                StepRetrying(
                    run_id=run.run_id,
                    path=self._path,
                    at=moment(now),
                    attempt=attempt,
                    failure=failure,
                    wake_at=moment(wake_at),
                )
            )
        return (wake_at, self._path, failure.message)

    async def _fail(
        self, failure: Failure, exc: BaseException | None, child: Execution | None = None
    ) -> NoReturn:
        run, node = self._run, self._node
        now = run.now()
        fail(node, failure, now)
        run.progress()
        self._touch()
        if child is not None:
            child._finished()
        if run.observers:
            run.emit(
                StepFailed(
                    run_id=run.run_id,
                    path=self._path,
                    at=moment(now),
                    attempt=node.attempt,
                    failure=failure,
                )
            )
        await self._saved()
        raise error_of(node, self._path) from exc

    async def done(self, data: bytes) -> None:
        self._record(data)
        await self._saved()

    def _record(self, data: bytes) -> None:
        run, node = self._run, self._node
        now = run.now()
        finish(node, data, now)
        run.progress()
        self._touch()
        if run.observers:
            run.emit(StepDone(run_id=run.run_id, path=self._path, at=moment(now)))

    async def _saved(self) -> None:
        """Wait for the save of an outcome; the root's is part of the driver's last one."""
        if self._parent is not None:
            await self._run.saved()

    # -- waiting --

    async def _wait(self, wake: Wake) -> None:
        """Return when the step is to be called again; else end the pass, once nobody works.

        Raises:
            PassOver: It is due beyond the pass's budget.
        """
        run, parent = self._run, self._parent
        deadline = self._deadline()
        if deadline is not None and deadline < wake[0]:
            wake = (deadline, *wake[1:])
        due = max(wake[0], run.now())
        in_place = due <= run.wait_until and (run.begin_until is None or due < run.begin_until)
        if in_place:
            await run.saved(urgent=True)
            await run.clock.sleep(max(wake[0] - run.now(), 0))
            return
        if parent is None:
            raise Over(wake)
        parent._parked += 1
        parent._active -= self._weight
        parent._wakes = {**parent._wakes, self: wake}
        try:
            while not await _is_still(parent):
                if parent._still is None or parent._still.is_set():
                    parent._still = anyio.Event()
                if run.saver is not None:
                    run.saver.kick()
                if not (self._entered or run.may_begin()):
                    await parent._still.wait()
                    continue
                with run.clock.move_on_after(max(wake[0] - run.now(), 0)):
                    await parent._still.wait()
                if parent._active and run.now() >= wake[0]:
                    del parent._wakes[self]
                    return  # its time came while a sibling works: the pass is alive anyway
        finally:
            parent._parked -= 1
            parent._active += self._weight
        if parent._ended is None:
            parent._ended = PassOver()
            parent._ended_here = parent._body.cr_running
        raise parent._ended

    # -- details --

    def _execution_of_parent(self) -> Execution:
        return cast("Execution", self._parent)

    def _take_options(
        self,
        *,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        at_most_once: bool = False,
        inputs: object = UNSET,
    ) -> None:
        if retry is not None and not isinstance(retry, Retry):
            raise UsageError(f"retry= takes a Retry, not {type(retry).__name__}")
        if not isinstance(at_most_once, bool):
            raise UsageError(f"at_most_once= is True or False, not {at_most_once!r:.100}")
        if at_most_once and self._run.saver is None:
            raise UsageError(
                f"step {self._path!r}: at_most_once needs a store, to know after a crash whether "
                "the body had begun"
            )
        self._retry = retry
        self._timeout = None if timeout is None else duration(timeout, "timeout=")
        self._at_most_once = at_most_once
        if inputs is not UNSET:
            self._take_inputs(inputs)

    def _take_inputs(self, inputs: object) -> None:
        """Reset the step if it was run with other inputs; remember these."""
        node = self._node
        digest = self._run.payloads.digest(inputs, f"the inputs of step {self._path!r}")
        known = "" if node.detail is None else node.detail.inputs
        if known == digest:
            return
        if known:
            self._run.reset(node, self._path)
        detail(node).inputs = digest
        self._touch()

    def _deadline(self) -> float | None:
        """When the current attempt will have taken too long."""
        if self._timeout is None or self._node.errs:  # between two attempts
            return None
        started = seconds(self._node._started)
        return (self._run.now() if started is None else started) + self._timeout

    def _timed_out(self) -> TimeoutError:
        return TimeoutError(f"the attempt took longer than its timeout of {self._timeout:g} s")

    def _found_interrupted(self) -> None:
        interrupt(self._node)
        self._touch()

    def _crashed_too_often(self) -> bool:
        run, node = self._run, self._node
        innermost = not any(c.proceeding for c in node.states or ())
        in_vain = run.idle or not run.claimed  # nothing has come of this pass either
        limit = run.max_crashes
        return limit is not None and run.idle_before >= limit and in_vain and innermost

    def _engine_failure(self, kind: FailureKind, message: str) -> Failure:
        return Failure(message=message, kind=kind, final=True)

    async def _begin_once(self) -> None:
        """Make the start durable; a start whose body never began is taken back."""
        own = detail(self._node)
        own.once = True
        self._touch()
        try:
            await self._run.saved(urgent=True)
        except BaseException:
            own.once = False
            self._touch()
            raise

    def _touch(self) -> None:
        if self._run.saver is not None:
            if self._parent is not None:
                self._parent._announce()
            self._run.saver.touch(self._path, self._node)

    def _touch_below(self, path: str) -> None:
        if self._run.saver is not None:
            self._run.saver.touch(path, self._run.root.get(path))

    def _abort(self, error: AstepsError) -> Abort:
        signal = self._run.abort(error)
        if self._parent is not None:
            self._parent._ended = signal
        return signal

    def _stop(self, signal: Abort) -> NoReturn:
        if self._parent is not None:
            self._parent._ended = signal
        raise signal


async def _is_still(parent: Execution) -> bool:
    """Whether no child works, nor is about to.

    Siblings that were started with a pending step, be it in task groups of task groups, need a
    moment to begin, and an error one to arrive.
    """
    for _ in range(_CHECKPOINTS):
        await checkpoint()
        if parent._active:
            return False
    if parent._still is not None:
        parent._still.set()  # for the others that wait
    return True


def _essence(exc: BaseException) -> BaseException:
    """What an exception group of tasks comes to.

    What is no outcome (``KeyboardInterrupt`` and the like) wins over errors, errors over signals.
    """
    if not isinstance(exc, BaseExceptionGroup):
        return exc
    signals, rest = exc.split(Signal)
    if rest is not None:
        others = rest.split(Exception)[1]
        if others is not None:
            return _first(others)
        return rest if signals is not None else exc
    if signals is None:
        return exc
    waits = [s for s in _leaves(signals) if isinstance(s, NotYet)]
    if waits:
        return min(waits, key=lambda s: s.after)
    return _first(signals.split(Abort)[0] or signals)


def _leaves(group: BaseException) -> Iterator[BaseException]:
    if isinstance(group, BaseExceptionGroup):
        for exc in group.exceptions:
            yield from _leaves(exc)
    else:
        yield group


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


async def as_coroutine(awaitable: Awaitable[Any], fn: Callable[..., Any]) -> Any:
    """Await what a function that is no coroutine function returned."""
    if not inspect.isawaitable(awaitable):
        raise Abort(
            UsageError(
                f"{function_name(fn)} takes a step, so it must be async (or return an awaitable); "
                "run a plain function with call(name, fn, *args)"
            )
        )
    return await awaitable


def swallowed(path: str) -> UsageError:
    """A body went on after a signal."""
    return UsageError(
        f"the body of {path or 'the run'!r} swallowed the signal that ends a pass: do not catch "
        "BaseException (nor suppress it, nor return in finally, nor gather with "
        "return_exceptions=True) around a step; catch StepError. The outcome is not recorded"
    )


def check_at_large(run: Pass, parent: Execution | None, path: str, mark: object = None) -> None:
    """A body has ended: did a signal of `pending` that was raised in it get lost?

    A signal is known by the task or thread that raised it. That may have been one of the body's
    own making: where nothing runs beside this body, it can have been no other's.

    Raises:
        Abort: It did.
    """
    here, alone = where(), _is_alone(parent)
    for signal, raised_in in list(run.at_large.items()):
        if alone or raised_in == here or (mark is not None and raised_in is mark):
            run.at_large.clear()
            raise run.abort(swallowed(path)) from signal


def _is_alone(step: Any) -> bool:
    while step is not None:
        if step._active // OWN + step._active % OWN + step._parked > 1:
            return False
        step = step._parent
    return True


def _unknown(options: dict[str, Any]) -> str:
    known = ("retry", "timeout", "at_most_once", "inputs", "returns")
    odd = ", ".join(sorted(set(options) - set(known)))
    return (
        f"a step has no option {odd}: there are {', '.join(known)}; arguments of fn are positional"
    )
