"""The work on one step until it comes to something: attempts, waits, and what each end means."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Coroutine
from types import CoroutineType
from typing import Any, NoReturn, cast

import anyio

from ._body import (
    OUT_OF_TIME,
    OWN,
    Execution,
    as_coroutine,
    call_plain,
    check_at_large,
    ending,
    essence,
    leaves,
    not_called,
    pattern_of,
    swallowed,
)
from ._events import (
    BodyCall,
    Ended,
    Kind,
    StepFailed,
    StepPending,
    StepRetrying,
)
from ._failure import describe, error_of
from ._loop import is_cancellation
from ._pass import Abort, Left, NotYet, Over, Pass, PassOver, Signal, Wake
from ._paths import join
from ._payload import UNSET, Spec, TooLargeError, function_name
from ._policy import Duration, Retry, duration
from ._poll import Poll, Sleep
from ._sibling import Sibling, inside, reenter_groups
from ._slot import Slot
from ._state import (
    State,
    begin,
    cut_off,
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
    whole_microseconds,
)
from .errors import AstepsError, Failure, FailureKind, StepError, UsageError

__all__ = ["Work"]


class Work:
    """One step to be run: the long way, for everything that is not plain.

    Args:
        parent: The execution of the parent's body; ``None`` for the root.
        execution: Makes the child's own execution; ``None`` for a function that takes no step.
    """

    _shown: BodyCall | None = None  # the call of the body, as observers see it while it lasts

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
        self._sibling = Sibling(parent, self._run)
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
            self.take_options(options)
            if node._done is not None:
                if node.errs:
                    raise error_of(node, self._path)
                return parent._replay(node, self._spec)
            if not parent._active and parent._body.cr_running:
                return await self.run()
            # Another task than the parent's body runs this: it must be possible to end it.
            with anyio.CancelScope() as scope:
                run.scopes[scope] = parent
                token = inside.set(parent)
                try:
                    return await self.run()
                finally:
                    inside.reset(token)
                    run.left(scope)
            raise PassOver  # the scope was cancelled: the parent's body, or the pass, has ended
        except (Abort, PassOver):
            if fresh and node._started is None and node.detail is None:
                parent._take_back(node)
            raise

    def among(self, slot: Slot | None) -> Work:
        """Be one of the children of a group or map, which counts it as active itself."""
        self._sibling.counted = True
        self._sibling.weight = 1
        self._sibling.slot = slot
        return self

    def take_options(self, options: dict[str, Any]) -> None:
        """Take the options of a step into account; changed inputs reset it."""
        if options:
            try:
                self._take_options(**options)
            except (UsageError, TypeError) as exc:
                what = exc if isinstance(exc, UsageError) else _unknown(options)
                where = f"step {self._path!r}"
                said = f"{what}" if where in str(what) else f"{where}: {what}"
                raise self._abort(UsageError(said)) from exc

    def run(self) -> Coroutine[Any, Any, Any]:
        """Run the step until it comes to something.

        Raises:
            StepError: It failed.
            Signal: It did not come to anything in this pass.
        """
        self._sibling.line_up()
        return self._until_settled(None)

    async def run_from(self, child: Any, exc: BaseException, shown: BodyCall | None = None) -> Any:
        """Go on where the short way met this exception; the parent counts the step as active.

        Args:
            child: The execution of the body, if it was given one.
            exc: What it raised.
            shown: The call as observers see it.
        """
        self._shown = shown
        self._entered = self._sibling.counted = True
        return await self._until_settled((child, exc))

    async def conclude(
        self, child: Execution, rounds: Callable[[], Awaitable[bytes | None]]
    ) -> None:
        """Run the children of a group or map until it comes to something.

        Args:
            child: The execution whose children they are.
            rounds: Runs those that are left until each has come to something or waits beyond the
                pass's budget; gives the result to record, if there is anything to record.
        """
        self._sibling.join()
        child._weight = self._sibling.weight
        child._shift(0)
        try:
            while True:
                try:
                    data = await rounds()
                except BaseException as exc:
                    if (wake := await self.settle(child, exc)) is not None:
                        await self._wait(wake)
                else:
                    if data is not None:
                        await self._run.prepare()
                        await self.done(data)
                    await self._sibling.take_slots()
                    return
        except StepError:
            await self._sibling.take_slots()
            raise
        finally:
            self._sibling.leave()

    async def fit(self, value: object) -> tuple[bytes, Any]:
        """What the body returned, as it is recorded, and as every pass gives it.

        Raises:
            StepError: It is too large: the step has failed for good.
            Abort: It cannot come back from JSON.
        """
        try:
            return self._run.payloads.result(value, self._spec, self._what())
        except UsageError as exc:
            raise self._abort(exc) from exc
        except TooLargeError as exc:
            await self._fail(describe(exc, self._path, kind="too large", final=True), exc)

    def tell_due(self, child: Execution) -> None:
        """Tell the parent when a child of this group is due, where the pass ends in its block."""
        if child._wakes and self._parent is not None:
            self._sibling.tell(self._parent, min(child._wakes.values()))

    async def returned(self, value: object) -> Any:
        """Go on where the short way found the body's result to be in need of a closer look."""
        data, self._result = await self.fit(value)
        await self.done(data)
        return self._result

    # -- the loop --

    async def _until_settled(self, ended: tuple[Execution | None, BaseException] | None) -> Any:
        self._sibling.join()
        try:
            wake = None if ended is None else await self.settle(*ended)
            while ended is None or wake is not None:
                if wake is not None:
                    await self._wait(wake)
                ended = None
                wake = self._gate()
                if wake is not None:
                    self._sibling.begun()
                    continue
                wake = await self._attempt()
                if wake is None:
                    break
        except StepError:
            await self._sibling.take_slots()  # given back in a wait that was cut short, perhaps
            raise
        except BaseException as exc:
            self.leave(*ending(exc))
            raise
        else:
            await self._sibling.take_slots()
            return self._result
        finally:
            self._sibling.leave()

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
            return (now, self._path, OUT_OF_TIME)
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
        await self._sibling.take_slots()  # given back in a wait that was cut short, perhaps
        now = run.now()
        only_on_the_way = self._only_on_the_way()
        own = node.detail
        if self._at_most_once and not self._entered and own is not None and own.once:
            self._found_interrupted()
            self.surround()
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
                self.surround()
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
        if only_on_the_way:
            run.check_open()
        elif not run.ready:
            await run.prepare()
        if self._parent is not None:
            reenter_groups(self._parent)
        if self._at_most_once:
            await self._begin_once()
        elif run.save_starts and not only_on_the_way:
            self._touch()
            await run.saved(urgent=True)
        await self._sibling.turn()
        if run.observers:
            run.emit_start(self._path, now, node)

    async def _attempt(self) -> Wake | None:
        """Run the body once.

        Returns:
            ``None`` when the step is done, else when to come back.
        """
        await self.begin()
        deadline = self._deadline()
        left = None if deadline is None else deadline - self._run.now()
        if left is not None and left <= 0:
            self.surround()
            return await self.settle(None, self._timed_out(), kind="timeout")
        child = None
        if self._execution is not None:
            child = self._execution(self._run, self._node, self._parent, self._name)
            child._slot = self._sibling.slot
            child._weight = self._sibling.weight
            if self._parent is None:
                child._announced = self._run.claimed  # by that very save
        limit: anyio.CancelScope | None = None
        try:
            self.surround()
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

    def surround(self) -> None:
        """Have observers around the call that is about to be made; the pass's are the root's."""
        run, parent = self._run, self._parent
        if run.observers.around and parent is not None:
            pattern = pattern_of(parent, self._name, self._path)
            self._shown = run.call_of(self._kind(), self._path, pattern, self._node)
            run.observers.enter(self._shown)

    def _kind(self) -> Kind:
        if self._execution is None:
            return "call"
        kind = type(self._fn)
        return "poll" if kind is Poll else "sleep" if kind is Sleep else "do"

    def leave(self, ended: Ended, error: BaseException | None) -> None:
        """The call has come to this: observers around it leave."""
        if self._shown is not None:
            call, self._shown = self._shown, None
            self._run.observers.leave(call, ended, error)

    def _invoke(self, child: Execution | None) -> Coroutine[Any, Any, Any]:
        if child is None:
            return self._call()
        body = self._fn(child, *self._args)
        if type(body) is not CoroutineType:
            body = as_coroutine(body, self._fn)
        child._body = body
        return cast("Coroutine[Any, Any, Any]", body)

    async def _call(self) -> Any:
        self._mark = object()
        return await call_plain(
            self._fn,
            self._args,
            is_async=self._spec.is_async,
            run=self._run,
            parent=self._parent,
            path=self._path,
            mark=self._mark,
            keep=self._keep,
        )

    async def _keep(self, value: Any) -> None:
        """A function returned in its thread after the step was cancelled: that is an outcome."""
        data, self._result = await self.fit(value)
        self._record(data)

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
            child._over = child._left = True
        if isinstance(exc, GeneratorExit) or not run.loop.is_running():
            raise exc  # the loop is gone: nothing may be awaited or asked
        came, exc = exc, essence(exc)
        if not isinstance(exc, Exception | Signal) and (
            is_cancellation(exc)
            or (child is not None and child._cancelled)
            or not isinstance(exc, anyio.get_cancelled_exc_class())
        ):
            # Cancelled, or KeyboardInterrupt and its like: the step is interrupted.
            cut_off(self._node, run.now())
            self._touch()
            if self._sibling.weight != OWN and run.driver_is_cancelled():
                self._tell_of_cancellation()
            if child is not None and child._is_at_work():
                for scope, owner in run.scopes.items():
                    if owner is child:
                        scope.cancel()
            raise exc
        if child is not None and child._is_at_work():
            await child._close()
        if isinstance(run.halted, Abort):
            self._stop(run.halted)
        if isinstance(exc, Left):
            if self._parent is not None and self._parent._left:
                raise exc
            raise self._abort(exc.error)
        if isinstance(exc, Signal):
            return self._not_over(child, exc)
        if (
            child is not None
            and child._ended_here
            and not any(isinstance(each, Signal) for each in leaves(came))
        ):
            raise self._abort(swallowed(self._path)) from exc
        for each in leaves(came):
            if isinstance(each, NotYet):
                run.at_large.pop(each, None)
        if run.at_large:
            mark = self._mark if child is None else child._mark
            check_at_large(run, self._parent, self._path, mark)
        misuse = exc if isinstance(exc, UsageError) else None
        if misuse is None and not_called(self._fn, exc):
            given = "a Step, then " if self._execution is not None else ""
            misuse = UsageError(
                f"{self._what()}: {function_name(self._fn)} cannot be called with {given}"
                f"{len(self._args)} arguments ({exc})"
                + ("; do() passes a Step first, call() does not" if self._path else "")
            )
        if misuse is not None:
            raise self._abort(misuse) from exc
        failure = describe(exc, self._path, kind=kind, final=final)
        if (wake := self._next_attempt(exc, failure)) is None:
            return await self._fail(failure, exc, child)
        await self._saved()
        return wake

    def _tell_of_cancellation(self) -> None:
        """The driver's own task is being cancelled, which nobody may be able to see in a moment.

        asyncio's count of cancellations, see `is_cancellation`, is wrong after nested task groups.
        """
        step = self._parent
        while step is not None and not (step._crew is not None and step._crew.decided):
            step._cancelled = True
            step = step._parent

    def _not_over(self, child: Execution | None, exc: Signal) -> Wake:
        run, node = self._run, self._node
        if self._at_most_once:
            detail(node).once = False  # the end is known: not yet
            self._touch()
        if not isinstance(exc, Abort):
            self.leave("pending", None)
        if isinstance(exc, NotYet):
            run.at_large.clear()
            now = run.now()
            wake_at = whole_microseconds(now + exc.after)
            pend(node, wake_at, exc.why, now)
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
        wake_at = whole_microseconds(now + retry.delay_after(attempt, chance))
        retry_later(node, failure, wake_at, now)
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
        self.leave("retrying", exc)
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
        self.leave("failed", exc or error_of(node, self._path))
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
            run.emit_end(self._path, now)
        self.leave("done", None)

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
            await self._sibling.rest(max(wake[0] - run.now(), 0))
        elif parent is None:
            raise Over(wake)
        else:
            await self._sibling.park(parent, wake, lambda: self._entered or run.may_begin())

    # -- details --

    def _what(self) -> str:
        return f"step {self._path!r}" if self._path else "the run"

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
        interrupt(self._node, self._run.seen_at)
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


def _unknown(options: dict[str, Any]) -> str:
    known = ("retry", "timeout", "at_most_once", "inputs", "returns")
    odd = ", ".join(sorted(set(options) - set(known)))
    return (
        f"a step has no option {odd}: there are {', '.join(known)}; arguments of fn are positional"
    )
