"""One driver's hold on one run: its keywords, the tree, the passes, the saver and the lease."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from ._body import ending
from ._codec import Folding, assemble, tree_as_records
from ._events import PassEnded, PassStarted
from ._failure import error_of
from ._loop import is_cancellation
from ._observers import Observers
from ._options import Options
from ._outcome import Done, Failed, Outcome, Pending
from ._pass import Abort, Over, Pass, PassOver, Wake, enter_pass, leave_pass
from ._payload import Spec
from ._saver import Saver
from ._state import (
    END,
    FORMAT,
    RunRecord,
    State,
    last_seen,
    latest_time,
    moment,
    reopen,
    seconds,
    settle,
)
from ._step import Step
from ._store import FoldStore, LeaseStore, Status, StoredRun, Summary
from ._work import Work
from .errors import AstepsError, BusyError, RunMismatchError, StepError, StoreError, UsageError

__all__ = [
    "Hold",
    "Session",
    "changed_records",
]


_SOON = 0.001  # seconds; the least that a pending run is put off
_CLOSING = 10.0  # seconds that the saver gets once the driver was cancelled; at most the lease


class Session:
    """One driver's hold on one run."""

    def __init__(self, options: Options, owner: str | None, stored: StoredRun | None) -> None:
        o = self.options = options
        self._owner = owner
        self._wake: float | None = None
        self._releasing = False
        self._stored = None if stored is None else stored.summary
        self._ending = False
        self.began = False
        self.current: Pass | None = None
        self._scope: anyio.CancelScope | None = None
        if stored is not None:
            self.root = assemble(stored.records, f"run {o.id!r}")
        else:
            self.root = State(o.name) if o.state is None else o.state
        saved_at = latest_time(self.root) if stored is None else stored.summary.updated_at
        self._seen_at = last_seen(self.root, saved_at)
        now = o.clock.now()
        if self.root.run is None:
            self.root.run = RunRecord(FORMAT)
        self.record = self.root.run
        chance = os.urandom(24).hex()
        self.record.nonce = self.record.nonce or chance[16:]
        self.record.created_at = self.record.created_at or now
        self._created = seconds(self.record.created_at) or now
        self.epoch = 0 if o.store is None else (0 if stored is None else stored.summary.epoch) + 1
        self.observers = Observers(o.observers)
        self._check_identity()
        self.edited = self._edit()
        self.saver: Saver | None = None
        if o.store is not None and o.id is not None:
            folds = isinstance(o.store, FoldStore)
            records = {} if stored is None else stored.records
            edits = (
                changed_records(records, self.root, fold=folds) if self.edited and stored else {}
            )
            folding = None
            if folds:
                kept = {**records, **edits}
                folding = Folding(self.root, (k for k, v in kept.items() if v))
            self.saver = Saver(
                o.store,
                o.id,
                clock=o.clock,
                epoch=self.epoch,
                writer=chance[:16],
                revision=None if stored is None else stored.revision,
                patience=o.lease,
                relaxed=o.relaxed,
                summarise=self._summary,
                observers=self.observers,
                lost=self._lost,
                folding=folding,
            )
            self.saver.put(edits)

    def _check_identity(self) -> None:
        o, record = self.options, self.record
        if record.function and record.function != o.name:
            raise RunMismatchError(o.id or "", "function", record.function, o.name)
        known, given = record.arguments, o.arguments or ""
        if o.same_arguments and known and given and known != given:
            raise RunMismatchError(o.id or "", "arguments", known, given)
        record.function = o.name
        record.arguments = given or known

    def _edit(self) -> bool:
        """Apply ``inputs=`` and ``recover=``."""
        o, record, edited = self.options, self.record, False
        if o.inputs is not None and record.inputs != o.inputs:
            if record.inputs and self.root._done is not None:
                reopen([self.root])
            record.inputs = o.inputs
            edited = True
        if o.recover and self.root.failed:
            edited = bool(self.root.recover()) or edited
        return edited

    def _summary(self) -> Summary:
        root = self.root
        status: Status = "proceeding"
        ended = root._done is not None and not (self._ending and self.owes_end())
        if ended:
            status = "failed" if root.errs else "done"
        elif self._wake is not None:
            status = "pending"
        return Summary(
            name=self.options.name,
            status=status,
            epoch=self.epoch,
            owner=None if self._releasing else self._owner,
            created_at=self._created,
            updated_at=self.options.clock.now(),
            wake_at=None if ended else self._wake,
            done_at=seconds(root._done) if ended else None,
        )

    def _lost(self, error: StoreError) -> None:
        """Nothing can be saved any more: stop the bodies."""
        if self.current is not None:
            self.current.abort(error)
        if self._scope is not None:
            self._scope.cancel()

    # -- what the run has come to --

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to run."""
        return self.root._done is not None and not self.owes_end()

    def owes_end(self) -> bool:
        if self.options.on_end is None:
            return False
        end = self.root.child(END)
        return end is None or end._done is None

    def outcome(self, spec: Spec | None, vanished: Sequence[str] = ()) -> Outcome[Any]:
        """The outcome of a finished run.

        Raises:
            UsageError: The recorded result does not fit the function any more.
        """
        root = self.root
        failed = root if root.errs else root.child(END) if self.options.on_end else None
        if failed is not None and failed.failed:
            error = error_of(failed, "" if failed is root else END)
            return Failed(error, settle(root), tuple(vanished))
        value = None
        if spec is not None:
            value = self.options.payloads.decode_result(root.result, spec, "the run")
        return Done(value, settle(root), tuple(vanished))

    # -- driving --

    def new_pass(self) -> Pass:
        """Begin a pass."""
        o = self.options
        now = o.clock.now()
        self._wake = None
        self.current = Pass(
            self.root,
            self.record,
            run_id=o.id,
            epoch=self.epoch,
            clock=o.clock,
            payloads=o.payloads,
            saver=self.saver,
            observers=self.observers,
            wait_until=now + o.max_wait,
            begin_until=None if o.max_pass is None else now + o.max_pass,
            max_crashes=o.max_crashes,
            seen_at=self._seen_at,
        )
        if self.observers:
            self.current.emit(PassStarted(run_id=o.id, path="", at=moment(now), epoch=self.epoch))
        return self.current

    def end_pass(
        self, current: Pass, wake: Wake | None, error: StepError | None, value: object
    ) -> Outcome[Any]:
        """What a pass has come to."""
        self._seen_at = now = current.now()
        current.orderly()
        vanished = tuple(dict.fromkeys(current.vanished))
        outcome: Outcome[Any]
        if wake is not None:
            self._wake = max(wake[0], now)
            if self.saver is not None and not self._is_known_to_wait():
                self.saver.owe()
            after = max(wake[0] - now, _SOON)
            outcome = Pending(after, wake[1], wake[2], self.root, vanished)
        elif error is not None:
            outcome = Failed(error, self.root, vanished)
        else:
            outcome = Done(value, self.root, vanished)
        if self.observers:
            status = type(outcome).__name__.lower()
            current.emit(PassEnded(run_id=self.options.id, path="", at=moment(now), status=status))
        return outcome

    def _is_known_to_wait(self) -> bool:
        """Whether the store says that the run waits, and until when.

        A pass that saves nothing may find all waiting where the one before had died, or, the code
        having changed, that something else is due first.
        """
        was = self._stored
        if was is None or was.status != "pending" or was.wake_at is None or self._wake is None:
            return False
        return abs(was.wake_at - self._wake) < _SOON

    async def close_pass(self, current: Pass) -> None:
        """Nothing of the pass runs any more when this returns."""
        current.close()
        self.began = self.began or current.claimed
        if current.loop.is_running():  # else it is gone, and so are the tasks
            with anyio.CancelScope(shield=True):
                await current.drained()
        current.over = True

    async def one_pass(
        self, fn: Callable[..., Any], args: tuple[Any, ...], spec: Spec
    ) -> tuple[Outcome[Any], StepError | None]:
        """Run the root function once against the tree.

        Returns:
            The outcome, and the exception of a failure as it was raised, with its cause.

        Raises:
            AstepsError: The pass could not go on.
        """
        current = self.new_pass()
        token = enter_pass(current)
        error: StepError | None = None
        wake: Wake | None = None
        value: Any = None
        left_by: BaseException | None = None
        try:
            try:
                current.surround()
                if self.root._done is None:
                    work = Work(None, self.root.name, self.root, fn, args, spec, Step, run=current)
                    value = await work.run()
                elif self.root.errs:
                    error = error_of(self.root, "")
                else:
                    value = self.options.payloads.decode_result(self.root.result, spec, "the run")
            except StepError as exc:
                error = exc
            except Over as over:
                wake = over.wake
            if wake is None and self.owes_end():
                wake, end_error = await self.run_end(current)
                error = error or end_error
        except Abort as abort:
            left_by = abort
            if isinstance(abort.error, UsageError):
                current.disregard()
            raise abort.unwrapped() from abort.error.__cause__
        except BaseException as exc:
            left_by = exc
            raise
        finally:
            await self.close_pass(current)
            try:
                self.leave(current, left_by or error, pending=wake is not None and left_by is None)
            finally:
                leave_pass(token)
        return self.end_pass(current, wake, error, value), error

    def leave(self, current: Pass, left_by: BaseException | None, *, pending: bool) -> None:
        """Have observers that are around the pass leave it."""
        if current.whole is not None:
            how = ("pending", None) if pending else ending(left_by)
            self.observers.leave(current.whole, *how)

    async def run_end(self, current: Pass) -> tuple[Wake | None, StepError | None]:
        """Run ``on_end`` as the step `END`, once the root's outcome is durable."""
        o, root = self.options, self.root
        if o.on_end is None or o.end_spec is None:
            return None, None
        self._ending = True
        await current.saved(urgent=True)
        node = root.child(END)
        if node is None:
            node = State(END, place=root.states[-1].place + 1 if root.states else 0)
            root.states = [*(root.states or []), node]
        parent = Step(current, root, None, root.name)
        try:
            await Work(parent, END, node, o.on_end, (), o.end_spec, Step).run()
        except PassOver:
            return min((parent._wakes or {}).values(), default=(current.now(), END, "")), None
        except StepError as exc:
            self._ending = False
            return None, exc
        self._ending = False
        return None, None

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """The saver is at work; afterwards what is left is saved, and the run let go.

        Raises:
            StoreError: What was left could not be saved.

        Cancellation: The saver gets `_CLOSING` seconds (at most ``lease=``) for what is left.
        """
        saver, o = self.saver, self.options
        if saver is None:
            yield
            return
        error: AstepsError | None = None
        try:
            async with anyio.create_task_group() as tasks:
                self._scope = tasks.cancel_scope
                tasks.start_soon(saver.work, name=f"asteps saver of {o.id!r}")
                try:
                    try:
                        yield
                    except AstepsError as exc:
                        error = exc
                    self._releasing = True
                    saver.close(within=None)
                    await saver.ended()
                except BaseException:
                    self._releasing = True
                    saver.close(within=min(_CLOSING, o.lease))
                    raise
        except BaseExceptionGroup as group:
            raise _only(group) from None
        except anyio.get_cancelled_exc_class() as exc:
            # Bodies were stopped because the store was lost. What a task group of asyncio's makes
            # of that arrives once more, here, and is nobody's wish to cancel the caller.
            if saver.error is None or is_cancellation(exc):
                raise
        if saver.ended_by is not None:  # Python 3.13's task groups may lose it
            raise saver.ended_by
        if error is not None:
            raise error
        if saver.error is not None:
            raise saver.error


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    exc: BaseException = group
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def changed_records(
    before: dict[str, bytes], root: State, *, fold: bool = False
) -> dict[str, bytes | None]:
    """What to save so that these records become this tree, see `tree_as_records`."""
    after = tree_as_records(root, fold=fold)
    changes: dict[str, bytes | None] = {k: v for k, v in after.items() if before.get(k) != v}
    changes.update((k, None) for k in before if k not in after)
    return changes


class Hold:
    """The right to advance a run: the store's lease, or the caller's claim on a State."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._record: RunRecord | None = None
        self._lessor: LeaseStore | None = None

    async def take(self) -> Session:
        """Load the run.

        Raises:
            BusyError: Somebody else holds it.
            StoreError: It could not be loaded.
            UsageError: It is another function's, or was begun with other arguments.
        """
        o = self._options
        owner, stored = None, None
        if o.store is not None and o.id is not None:
            if isinstance(o.store, LeaseStore):
                try:
                    owner = await o.store.acquire(o.id, seconds=o.lease)
                except BusyError:
                    if (session := await self._finished()) is None:
                        raise
                    return session
                self._lessor = o.store
            stored = await o.store.load(o.id)
        elif o.state is not None and o.state.run is not None and "claimed" in vars(o.state.run):
            raise BusyError(o.state.name, "another driver in this process")
        session = Session(o, owner, stored)
        if o.state is not None:
            self._record = session.record
            self._record.__dict__["claimed"] = True
        return session

    async def _finished(self) -> Session | None:
        """A run that has ended can be read whoever holds it, such as another that only reads it."""
        o = self._options
        if o.store is None or o.id is None:
            return None
        stored = await o.store.load(o.id)
        if stored is None or stored.summary.status not in ("done", "failed"):
            return None
        session = Session(o, None, stored)
        return session if session.finished and not session.edited else None

    def release(self) -> None:
        """Let the run go."""
        if self._lessor is not None and self._options.id is not None:
            self._lessor.release(self._options.id)
        self._lessor = None
        if self._record is not None:
            self._record.__dict__.pop("claimed", None)
