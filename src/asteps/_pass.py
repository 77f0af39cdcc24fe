"""What the steps of one pass share: its signals, its budget, and what stops it."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import NoReturn, TypeAlias

import anyio

from ._clock import Clock
from ._events import BodyCall, Event, Kind, StepDone, StepStarted
from ._loop import Loop, current_loop, watch_this_task
from ._observers import Observers
from ._payload import Payloads, Spec
from ._policy import Duration, duration
from ._saver import Saver
from ._state import RunRecord, State, between_passes, moment, reset_node
from .errors import AstepsError, UsageError

__all__ = [
    "Abort",
    "Left",
    "NotYet",
    "Over",
    "Pass",
    "PassOver",
    "Signal",
    "Wake",
    "make_not_yet",
    "pending",
    "raised_in",
    "where",
]

Wake: TypeAlias = tuple[float, str, str]
"""When something is due again (seconds since the epoch), its path, and what it waits for."""


class Signal(BaseException):
    """Ends bodies without being an outcome. Private: it leaves no driver."""


class NotYet(Signal):
    """The innermost step is not finished: call it again later."""

    def __init__(self, after: float, why: str) -> None:
        super().__init__(after, why)
        self.after = after
        self.why = why


class PassOver(Signal):
    """Something is pending beyond the pass's budget: the pass ends here."""


class Over(PassOver):
    """The root itself is not finished: how a pass ends for its driver."""

    def __init__(self, wake: Wake) -> None:
        super().__init__(wake)
        self.wake = wake


class Left(Signal):
    """A body ended by an exception, and a task of its own goes on: this ends that task.

    In another step's body it is misuse: ``error``.
    """

    def __init__(self, error: AstepsError) -> None:
        super().__init__(error)
        self.error = error


class Abort(Signal):
    """The pass cannot go on: misuse, a lost store, a lost lease. The driver raises ``error``."""

    def __init__(self, error: AstepsError) -> None:
        super().__init__(error)
        self.error = error

    def unwrapped(self) -> AstepsError:
        """The error, to be raised by the driver; its traceback shows where in the bodies it was."""
        if self.error.__traceback__ is None:
            self.error.__traceback__ = self.__traceback__
        return self.error


_current: contextvars.ContextVar[Pass | None] = contextvars.ContextVar("asteps_pass", default=None)
raised_in: contextvars.ContextVar[object] = contextvars.ContextVar("asteps_thread", default=None)
"""What a signal of `pending` is known by that a function in a worker thread raises."""


_MAX_WHY = 4_000  # characters
_ENDED = "this pass has ended: await every step inside the body that owns it"


class Pass:
    """One execution of a root function against the tree.

    Attributes:
        ready: A plain body may start without asking `prepare`.
        shown: The same, but observers are to be shown what happens.
        halted: Why no further body may start: an `Abort`, or that the pass is over.
        at_large: Signals of `pending` that were raised and not yet caught, with where.
        scopes: Cancel scopes of steps that run in other tasks than their parent's body, with the
            execution of that body.
        seen_at: When somebody was last known to be at work on the run, before this pass.
        vanished: Paths of recorded steps that the code no longer has.
        carried: See `BodyCall`.
        whole: The pass as observers see it, if any look.
    """

    whole: BodyCall | None = None
    ready: bool = False
    shown: bool = False
    halted: Signal | None = None

    def __init__(
        self,
        root: State,
        record: RunRecord,
        *,
        run_id: str | None,
        epoch: int,
        clock: Clock,
        payloads: Payloads,
        saver: Saver | None,
        observers: Observers,
        wait_until: float,
        begin_until: float | None,
        max_crashes: int | None,
        seen_at: float,
    ) -> None:
        self.root = root
        self.record = record
        self.run_id = run_id
        self.epoch = epoch
        self.clock = clock
        self.now: Callable[[], float] = clock.now
        self.payloads = payloads
        self.specs: dict[object, Spec] = payloads.specs
        self.encode: Callable[[object], bytes] = payloads.encode_only
        self.saver = saver
        self.observers = observers
        self.wait_until = wait_until
        self.begin_until = begin_until
        self.max_crashes = max_crashes
        self.seen_at = seen_at
        self.carried: dict[str, str] = dict(record.carried or {})
        self.idle_before: int = record.idle
        self.save_starts: bool = saver is not None and (record.idle >= 1 or max_crashes == 1)
        self.idle: bool = (
            record.idle > 1
        )  # what came before this pass was in vain, and still counts
        self.claimed: bool = False
        self.over: bool = False  # its driver has left
        self._counted = False
        self._fewer: anyio.Event | None = None  # set when one of the scopes is gone
        self.at_large: dict[NotYet, object] = {}
        self.scopes: dict[anyio.CancelScope, object] = {}
        self.vanished: list[str] = []
        self.quiet: bool = saver is None  # an outcome is for nobody else
        self.loop: Loop = current_loop()
        self.driver_is_cancelled: Callable[[], bool] = watch_this_task()

    async def prepare(self) -> None:
        """Before the first body of the pass: claim the run, durably, and count the pass.

        Raises:
            Abort: The run could not be claimed.
        """
        self.check_open()
        if self.claimed:
            return
        if not self._counted:
            self._counted = True
            self.record.idle += 1
            self.idle = self.record.idle > 1
            self.record.carried = self.carried or None
            between_passes(self.root, self.seen_at, self.now(), died=self.idle_before > 0)
            if self.saver is not None:
                self.saver.touch("", self.root)
        await self.saved(urgent=True)
        self.claimed = True
        if self.halted is not None:  # meanwhile
            raise self.halted
        self._get_ready()

    def _get_ready(self) -> None:
        ready = not (self.begin_until is not None or self.save_starts)
        self.shown = ready and self.observers.present
        self.ready = ready and not self.observers.present

    def may_begin(self) -> bool:
        """Whether there is time for another body in this pass."""
        return self.begin_until is None or self.now() < self.begin_until

    def progress(self) -> None:
        """A step came to something: the pass was not in vain."""
        if self.idle:
            self.idle = False
            self._count_idle(1)  # this pass, should it die now
        if self.save_starts and self.max_crashes != 1:  # whom they would have named has not crashed
            self.save_starts = False
            if self.claimed and self.halted is None:
                self._get_ready()

    def orderly(self) -> None:
        """The pass ends as passes should."""
        if self.claimed and self.record.idle:
            self._count_idle(0)

    def disregard(self) -> None:
        """The pass ends in misuse, which is nobody's crash."""
        if self.claimed:
            self._count_idle(self.idle_before)

    def _count_idle(self, passes: int) -> None:
        self.record.idle = passes
        if self.saver is not None:
            self.saver.touch("", self.root)

    async def saved(self, *, urgent: bool = False) -> None:
        """Return when what was touched so far is in the store.

        Raises:
            Abort: It could not be saved; nothing of this pass is recorded from here on.
        """
        if self.saver is not None:
            if (saved := self.saver.join(urgent=urgent)) is not None:
                await saved
            self.check_saver()

    def check_saver(self) -> None:
        """Raise what made the saver give up, if it did.

        Raises:
            Abort: Nothing of this pass is recorded from here on.
        """
        if self.saver is not None and self.saver.error is not None:
            raise self.abort(self.saver.error)

    def reset(self, node: State, path: str) -> None:
        """Forget a step and what is below it, in the store too."""
        if self.saver is not None:
            for below, _ in node.walk():
                if below:
                    self.saver.touch(f"{path}/{below}", None)
            self.saver.touch(path, node)
        reset_node(node)

    def emit(self, event: Event) -> None:
        """Tell the observers, after the save that holds what the event says."""
        if self.saver is not None:
            self.saver.events.append(event)
        else:
            self.observers.tell(event)

    def emit_start(self, path: str, now: float, node: State) -> None:
        """A body is about to be called."""
        self.emit(
            StepStarted(
                run_id=self.run_id,
                path=path,
                at=moment(now),
                attempt=node.attempt,
                interruptions=node.interruptions,
            )
        )

    def emit_end(self, path: str, now: float) -> None:
        """A body has returned, and its result is recorded."""
        self.emit(StepDone(run_id=self.run_id, path=path, at=moment(now)))

    def call_of(self, kind: Kind, path: str, pattern: str, node: State) -> BodyCall:
        """A call of a body, to be shown to observers."""
        return BodyCall(
            run_id=self.run_id,
            run_name=self.record.function,
            epoch=self.epoch,
            kind=kind,
            path=path,
            pattern=pattern,
            attempt=node.attempt,
            interruptions=node.interruptions,
            carried=self.carried,
            _part_of=self.whole,
        )

    def surround(self) -> None:
        """Have observers around the whole pass; what they carry is saved with the claim."""
        if self.observers.around:
            self.whole = self.call_of("pass", "", "", self.root)
            self.observers.enter(self.whole)

    def abort(self, error: AstepsError) -> Abort:
        """Make the pass end with this error, unless another came first; raise what it returns."""
        if not isinstance(self.halted, Abort):
            self.halted = Abort(error)
            self.ready = self.shown = False
        return self.halted

    def left(self, scope: anyio.CancelScope) -> None:
        """A step that another task ran is over."""
        del self.scopes[scope]
        if self._fewer is not None:
            self._fewer.set()

    async def drained(self, owner: object = None) -> None:
        """Return when no other task runs a step below ``owner``, or of the pass, any more.

        Cancel their scopes first.
        """
        while self.scopes if owner is None else owner in self.scopes.values():
            if self._fewer is None or self._fewer.is_set():
                self._fewer = anyio.Event()
            await self._fewer.wait()

    def check_open(self) -> None:
        """Raise what stopped the pass, if anything did."""
        if self.over:
            raise UsageError(_ENDED)
        if self.halted is not None:
            raise self.halted

    def close(self) -> None:
        """The driver leaves the pass: nothing of it may start any more."""
        if self.halted is None:
            self.halted = Abort(UsageError(_ENDED))
        self.ready = self.shown = False
        for scope in self.scopes:
            scope.cancel()


def pending(after: Duration, why: str = "") -> NoReturn:
    """Say that the innermost running step is not finished: call it again later.

    In a service the wait happens in place; in a reconciler it ends the pass. It uses up no
    attempt. The step is then called again with the same arguments.

    Args:
        after: Seconds (or a ``timedelta``) until the step is called again; finite, above 0.
        why: What it waits for, for people.

    Raises:
        UsageError: It was called outside a step, or ``after`` is out of range.
    """
    current = _current.get()
    if current is None:
        raise UsageError(
            "asteps.pending() was called outside a step: there is nothing to call again"
        )
    signal = make_not_yet(current, after, why)
    current.at_large[signal] = raised_in.get() or where()
    raise signal


def where() -> object:
    """What tells tasks apart; in a thread of the user's own, nothing does."""
    try:
        return anyio.get_current_task().id
    except RuntimeError:
        return None


def make_not_yet(current: Pass, after: Duration, why: str) -> NotYet:
    """The signal that `pending` raises; misuse of its arguments aborts the pass."""
    try:
        text = str(why)[:_MAX_WHY].encode("utf-8", "backslashreplace").decode()
        return NotYet(duration(after, "pending(after=…)"), text)
    except UsageError as exc:
        raise current.abort(exc) from None


def enter_pass(current: Pass) -> contextvars.Token[Pass | None]:
    """Let `pending` find the pass, in this task and those that it starts."""
    return _current.set(current)


def leave_pass(token: contextvars.Token[Pass | None]) -> None:
    """Undo `enter_pass`."""
    _current.reset(token)
