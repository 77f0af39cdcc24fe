"""The drivers: `run` to the end, `reconcile` for one pass, `open_run` for steps inline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, TypeVar, TypeVarTuple, Unpack, cast

import anyio

from ._failure import error_of
from ._options import Keywords, Options, make_options
from ._outcome import Done, Failed, Outcome, Pending
from ._pass import Abort, Signal, Wake, enter_pass, leave_pass
from ._payload import Spec
from ._session import Hold, Session
from ._state import END, settle
from ._step import Step
from ._work import Work
from .errors import ConflictError, StepError, UsageError

__all__ = ["OpenRun", "open_run", "reconcile", "run"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_RACES = 20  # how often a driver tries again after somebody else's save came first


async def run(
    fn: Callable[[Step, *Ts], Awaitable[T]], /, *args: *Ts, **keywords: Unpack[Keywords]
) -> T:
    """Run a function to its end, going on where an earlier call was cut off.

    A finished run is not run again: the same id gives the same result, or the same `StepError`.

    Args:
        fn: The root: an async function of its Step and ``args``.
        *args: Passed on. They are compared by digest with those that the run was begun with.
        **keywords: See `Keywords`; most often ``store=`` and ``id=``.

    Returns:
        What ``fn`` returned, as it comes back from its JSON.

    Raises:
        StepError: The run failed; it stays failed until it is recovered.
        RunMismatchError: The id belongs to another function or other arguments.
        BusyError: Somebody else holds the run.
        UsageError: The library was used wrongly; the tree is as before.
        StoreError: The store failed; steps that were running are interrupted, none failed.

    Cancellation: What had returned is saved; what was running is interrupted, and runs again on
        the next call. Nothing is undone.
    """
    options = make_options(fn, args, keywords, same_arguments=True)
    outcome, error = await _drive(fn, args, options, to_the_end=True)
    if isinstance(outcome, Failed):
        raise outcome.error if error is None else error
    return cast("Done[T]", outcome).value


async def reconcile(
    fn: Callable[[Step, *Ts], Awaitable[T]], /, *args: *Ts, **keywords: Unpack[Keywords]
) -> Done[T] | Failed | Pending:
    """Run one pass, which ends at the first wait that ``max_wait=`` (0 by default) does not cover.

    Args:
        fn: The root: an async function of its Step and ``args``.
        *args: Passed on; they may change from pass to pass.
        **keywords: See `Keywords`.

    Returns:
        What the run has come to; a `Pending` says when to call again.

    Raises:
        BusyError: Somebody else holds the run.
        RunMismatchError: The id belongs to another function.
        UsageError: The library was used wrongly; the tree is as before.
        StoreError: The store failed; steps that were running are interrupted, none failed.

    Cancellation: As in `run`.
    """
    keywords.setdefault("max_wait", 0)
    options = make_options(fn, args, keywords, same_arguments=False)
    outcome, _ = await _drive(fn, args, options, to_the_end=False)
    settle(outcome.state)
    return outcome


async def _drive(
    fn: Callable[..., Any], args: tuple[Any, ...], options: Options, *, to_the_end: bool
) -> tuple[Outcome[Any], StepError | None]:
    spec = options.payloads.spec(fn)
    for race in range(_RACES):
        hold = Hold(options)
        session: Session | None = None
        try:
            session = await hold.take()
            if session.finished:
                if session.edited:  # inputs= that were not known before
                    async with session.held():
                        return session.outcome(spec), None
                return session.outcome(spec), None
            async with session.held():
                return await _passes(session, fn, args, spec, to_the_end=to_the_end)
        except ConflictError:
            # Another driver's claim came first. Unless a body has run, nothing is lost: look again.
            if session is None or session.began or race == _RACES - 1:
                raise
        finally:
            hold.release()
            if options.state is not None:
                settle(options.state)
    raise AssertionError("unreachable")


async def _passes(
    session: Session,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    spec: Spec,
    *,
    to_the_end: bool,
) -> tuple[Outcome[Any], StepError | None]:
    while True:
        outcome, error = await session.one_pass(fn, args, spec)
        if not (to_the_end and isinstance(outcome, Pending)):
            return outcome, error
        if session.saver is not None:
            if (saved := session.saver.join(urgent=True)) is not None:
                await saved
            if session.saver.error is not None:
                raise session.saver.error
        await session.options.clock.sleep(outcome.after)


class _OwnTask:
    """Stands in for the body of a run whose steps are written inline."""

    def __init__(self) -> None:
        self._task = anyio.get_current_task().id

    @property
    def cr_running(self) -> bool:
        return anyio.get_current_task().id == self._task


class OpenRun:
    """The async context manager that `open_run` returns; it can be entered once."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._hold = Hold(options)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Step:
        for race in range(_RACES):
            try:
                async with AsyncExitStack() as stack:
                    stack.callback(self._release)
                    step = await self._enter(stack)
                    self._stack = stack.pop_all()
                    return step
            except ConflictError:
                if race == _RACES - 1:
                    raise
        raise AssertionError("unreachable")

    def _release(self) -> None:
        self._hold.release()
        if self._options.state is not None:
            settle(self._options.state)

    async def _enter(self, stack: AsyncExitStack) -> Step:
        session = self._session = await self._hold.take()
        root = session.root
        if root.failed:
            raise error_of(root, "")
        self._was = (root._done, root.result)
        root._done = None  # the block runs again; recorded steps answer
        await stack.enter_async_context(session.held())
        current = self._pass = session.new_pass()
        stack.push(self._surrounded)
        stack.push_async_callback(session.close_pass, current)
        stack.callback(leave_pass, enter_pass(current))
        self._work = Work(
            None,
            root.name,
            root,
            _no_body,
            (),
            session.options.payloads.spec(_no_body),
            Step,
            run=current,
        )
        self._step = Step(current, root, None, root.name)
        self._step._body = _OwnTask()
        current.surround()
        if self._was[0] is None:
            try:
                await self._work.begin()
            except Abort as abort:
                raise abort.unwrapped() from abort.error.__cause__
        return self._step

    def _surrounded(self, _kind: object, exc: BaseException | None, _trace: object) -> None:
        """Nothing of the pass runs any more: observers around it leave."""
        outcome = self._step._outcome
        self._session.leave(self._pass, exc, pending=isinstance(outcome, Pending))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        async with self._stack:
            try:
                await self._leave(exc)
            except Abort as abort:
                if isinstance(abort.error, UsageError):
                    self._pass.disregard()
                raise abort.unwrapped() from abort.error.__cause__
        return True

    async def _leave(self, exc: BaseException | None) -> None:
        """Make of the block's end what it means for the root."""
        session, current, step, root = self._session, self._pass, self._step, self._session.root
        wake: Wake | None = None
        error: StepError | None = None
        reopened = self._was[0] is not None
        if not (current.claimed or isinstance(exc, Exception | BaseExceptionGroup | Signal)):
            root._done, root.result = self._was  # nothing new: a done run is done as it was
            reopened = False
        try:
            if exc is None:
                await step._leave()
            else:
                wake = await self._work.settle(step, exc)
        except StepError as failed:
            error = failed
        if wake is None and error is None and root._done is None:
            await self._work.done(b"null")
        if reopened and (end := root.child(END)) is not None:
            current.reset(end, END)  # it belonged to the end before
        if wake is None and session.owes_end():
            wake, end_error = await session.run_end(current)
            error = error or end_error
        step._outcome = session.end_pass(current, wake, error, None)
        if error is not None:
            raise error


async def _no_body() -> None:
    """What the root of an open run runs: the block stands in for it."""


def open_run(name: str, /, **keywords: Unpack[Keywords]) -> OpenRun:
    """Open a run whose steps are written inline, without a root function.

    ::

        async with asteps.open_run("MoveToVPC", store=store, id="x") as s:
            await s.do("initialize", initialize, "vm-42")
        match s.outcome: ...

    The block is one pass, and runs every time, also when the run is done: recorded steps answer,
    and a new step reopens the run. A pending step ends the block quietly, so look at ``s.outcome``
    before using what the block made; a failure raises.

    Args:
        name: What the run is known by.
        **keywords: See `Keywords`; ``max_wait=`` is 0 by default.

    Raises:
        StepError: A step failed and the block let it through, now or in an earlier pass.
        BusyError: Somebody else holds the run.
        RunMismatchError: The id belongs to another run.
        UsageError: The library was used wrongly; the tree is as before.
        StoreError: The store failed; steps that were running are interrupted, none failed.

    Cancellation: As in `run`.
    """
    keywords.setdefault("max_wait", 0)
    keywords["name"] = name
    return OpenRun(make_options(None, (), keywords, same_arguments=True, inline=True))
