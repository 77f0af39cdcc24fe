"""The saver: the one task per run that writes to the store.

One save is in flight at a time; what changed meanwhile is the next batch. There is no timer: the
saver never waits for company. A save that may or may not have landed is repeated to the letter
until that is known.

A save is never made by the task of a step, which may be cancelled: it is made by the saver's own
task, or, where the store takes it without being awaited, by nobody's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeVar

import anyio
from msgspec.structs import replace

from ._clock import Clock
from ._codec import Folding, encode_record
from ._events import Event
from ._loop import Wakeup, current_loop
from ._observers import Observers
from ._state import State
from ._store import PromptStore, Store, Summary
from .errors import StoreError, StoreRefusedError, StoreUnavailableError, UncertainWriteError

__all__ = ["Saver", "until_known"]

T = TypeVar("T")

_FIRST_DELAY = 0.01  # seconds before a failed save is repeated; doubles
_LONGEST_DELAY = 2.0


class _Batch(NamedTuple):
    """One save, as it is made and if need be repeated, and who waits for it."""

    waiting: list[Wakeup]
    events: list[Event]
    changes: dict[str, bytes | None]
    expected: str | None
    write_id: str
    summary: Summary


class Saver:
    """Saves what changed of one run.

    Attributes:
        revision: What the next save expects; ``None`` before the run exists.
        events: What to tell the observers after the next save.
        error: Why nothing can be saved any more.
        ended_by: What ended the saver's task that is no error of a store; the driver raises it.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        *,
        clock: Clock,
        epoch: int,
        writer: str,
        revision: str | None,
        patience: float,
        relaxed: bool,
        summarise: Callable[[], Summary],
        observers: Observers,
        lost: Callable[[StoreError], object],
        folding: Folding | None = None,
    ) -> None:
        self.revision = revision
        self.events: list[Event] = []
        self.error: StoreError | None = None
        self.ended_by: BaseException | None = None
        self._store = store
        self._run_id = run_id
        self._clock = clock
        self._epoch = epoch
        self._writer = writer
        self._patience = patience
        self._relaxed = relaxed
        self._summarise = summarise
        self._observers = observers
        self._lost = lost
        self._folding = folding
        self._touched: dict[str, State | None] = {}
        self._encoded: dict[str, bytes | None] = {}
        self._count = 0
        self._said: Summary | None = None  # with the last save
        self._loop = current_loop()
        self._waiting: list[Wakeup] = []  # for the next save to be done
        self._wanted = False  # somebody wants a save, be it without waiting for it
        self._idle: Wakeup | None = None  # the saver waits for something to do
        self._closing = False
        self._owed = False
        self._last = False  # one more save is owed, if only to say that nobody holds the run
        self._scope = anyio.CancelScope(shield=True)
        self._ended = self._loop.wakeup()
        self._begin = store.begin_save if isinstance(store, PromptStore) else None
        self._raised: BaseException | None = None  # by an observer, outside the saver's task
        self._flying: _Batch | None = None  # the save that was begun and is not answered yet
        self._trouble: _Batch | None = None  # a save that has to be repeated

    # -- called by the steps, synchronously but for the wait --

    def touch(self, path: str, node: State | None) -> None:
        """This node changed (``None``: is gone) and belongs into the next save."""
        self._touched[path] = node

    def put(self, changes: Mapping[str, bytes | None]) -> None:
        """These records changed and belong into the next save, as they are."""
        self._encoded.update(changes)

    def join(self, *, urgent: bool = False, alone: bool = False) -> Wakeup | None:
        """Have what was touched so far saved.

        Look at `error` after the wait. To cancel the wait does not cancel the save.

        Args:
            urgent: Save it now, also with ``save="pass"``.
            alone: Nothing else of this turn of the event loop is likely to belong to this save.

        Returns:
            What to wait for until it is in the store; ``None`` where there is no need to wait.
        """
        if self.error is not None or (self._relaxed and not urgent):
            return None
        saved = self._loop.wakeup()
        self._waiting.append(saved)
        self._wanted = True
        if self._begin is not None and self._flying is None:
            if alone:
                self._fly()
            else:
                self._loop.call_soon(self._fly)
        elif self._idle is not None:
            self._wake()
        return saved

    def owe(self) -> None:
        """What the store's summary says is not so any more: make a last save in any case."""
        self._owed = True

    def kick(self) -> None:
        """Begin to save what was touched, without waiting for it."""
        if not self._relaxed and (self._touched or self._encoded):
            self._wanted = True
            if self._begin is None:
                self._wake()
            elif self._flying is None:
                self._loop.call_soon(self._fly)

    def _wake(self) -> None:
        idle, self._idle = self._idle, None
        if idle is not None and not idle.done():
            idle.set_result(None)

    def close(self, *, within: float | None) -> None:
        """Save what is left, and the summary if anything was saved at all; then end.

        Args:
            within: Seconds that this may take; ``None`` for as long as the store needs.
        """
        if not self._closing and (self._count or self._owed):
            self._last = self._owed or not self._has_said(self._summarise())
        self._closing = True
        self._wanted = True
        if within is not None:
            self._scope.deadline = min(self._scope.deadline, anyio.current_time() + within)
        self._wake()

    def _has_said(self, summary: Summary) -> bool:
        """Whether the last save has told the store what this one would."""
        said = self._said
        return said is not None and replace(said, updated_at=summary.updated_at) == summary

    async def ended(self) -> None:
        """Return when nothing is left to be saved; call `close` first, and this once.

        Cancellation: The saver goes on; call `close` again to give it a deadline.
        """
        if not self._ended.done():
            await self._ended

    # -- the task --

    async def work(self) -> None:
        """Save until `close`; runs in the driver's task group."""
        try:
            with self._scope:
                await self._work()
        except GeneratorExit:
            raise  # the loop is gone
        except BaseException as exc:  # such as an observer's, which leaves the driver
            if not isinstance(exc, anyio.get_cancelled_exc_class()):
                self.ended_by = exc
            # A body that cannot be cancelled right now must not wait for a save for ever.
            self._give_up(StoreRefusedError(f"run {self._run_id!r}: its saver ended by {exc!r}"))
            raise
        finally:
            if not self._ended.done():
                self._ended.set_result(None)
        left = self._waiting or self._touched or self._flying or self._trouble
        if left and self.error is None:
            # The deadline of close() has passed. Whoever still waits is cancelled itself.
            self._give_up(UncertainWriteError(f"run {self._run_id!r}: the last save took too long"))

    async def _work(self) -> None:
        while self.error is None:
            if self._raised is not None:
                raise self._raised
            if self._trouble is not None:
                batch, self._trouble = self._trouble, None
                self._flying = batch  # nothing else may be begun meanwhile
                await self._finish(batch, repeated=True)
                self._flying = None
                self._fly()
            elif (
                self._flying is not None
                or not self._wanted
                or (self._begin is not None and not self._closing)
            ):
                self._idle = self._loop.wakeup()
                await self._idle
            elif self._closing and not (
                self._waiting or self._touched or self._encoded or self._last
            ):
                self._tell(self.events)  # of a pass in which there was nothing to save
                return
            else:
                await self._finish(self._take(), repeated=False)

    def _take(self) -> _Batch:
        """What belongs into the next save, encoded."""
        changes = dict(self._encoded)
        if self._folding is not None:
            changes.update(self._folding.changes(self._touched))
        else:
            for path, node in self._touched.items():
                changes[path] = None if node is None else encode_record(node)
        # Only now, as all that can fail is done: who waits must not be forgotten.
        self._wanted = self._closing  # once more then, to see that nothing is left
        self._last = self._last and not self._closing
        self._touched, self._encoded = {}, {}
        waiting, self._waiting = self._waiting, []
        events, self.events = self.events, []
        self._count += 1
        self._said = self._summarise()
        return _Batch(
            waiting,
            events,
            changes,
            self.revision,
            f"{self._writer}.{self._count}",
            self._said,
        )

    async def _finish(self, batch: _Batch, *, repeated: bool) -> None:
        """Make one save, repeating the identical one until its fate is known."""
        save = partial(
            self._store.save,
            self._run_id,
            batch.changes,
            expected=batch.expected,
            epoch=self._epoch,
            write_id=batch.write_id,
            summary=batch.summary,
        )
        try:
            if repeated:
                revision = await until_known(save, self._clock, self._patience)
            else:
                try:
                    revision = await save()
                except (StoreUnavailableError, UncertainWriteError):
                    revision = await until_known(save, self._clock, self._patience)
        except StoreError as exc:
            self._waiting += batch.waiting
            self._give_up(exc)
        else:
            self._landed(batch, revision)
            self._tell(batch.events)

    def _landed(self, batch: _Batch, revision: str) -> None:
        self.revision = revision
        for saved in batch.waiting:
            if not saved.done():
                saved.set_result(None)

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            self._observers.tell(event)

    def _tell_outside(self, events: list[Event]) -> None:
        """Tell observers where there is no task: what ends one is raised in the saver's own."""
        try:
            self._tell(events)
        except BaseException as exc:
            self._raised = self._raised or exc
            self._wake()

    # -- without the task: for a store that takes a save without being awaited --

    def _fly(self) -> None:
        """Begin the next save, unless one is under way."""
        if (
            self._begin is None
            or self._flying is not None
            or self._trouble is not None
            or self._closing
            or not self._wanted
            or self.error is not None
            or self._raised is not None
        ):
            return
        try:
            batch = self._flying = self._take()
            self._begin(
                self._run_id,
                batch.changes,
                expected=batch.expected,
                epoch=self._epoch,
                write_id=batch.write_id,
                summary=batch.summary,
                done=self._answered,
            )
        except Exception as exc:  # whatever it is, it must not vanish in the event loop
            self._answered(None, exc)

    def _answered(self, revision: str | None, error: Exception | None) -> None:
        """The save under way has ended; in the event loop, in no task."""
        batch, self._flying = self._flying, None
        if self.error is not None:  # the deadline of close() came first
            return
        if batch is None:
            self._give_up(StoreRefusedError(f"the tree cannot be encoded: {error!r}"))
            self._wake()
        elif revision is not None:
            self._landed(batch, revision)
            if batch.events:
                self._tell_outside(batch.events)
            if self._closing:
                self._wake()
            elif self._wanted:
                self._fly()
        elif isinstance(error, StoreUnavailableError | UncertainWriteError):
            self._trouble = batch
            self._wake()
        else:
            self._waiting += batch.waiting
            broken = StoreRefusedError(f"the store broke: {error!r}")
            self._give_up(error if isinstance(error, StoreError) else broken)
            self._wake()

    def _give_up(self, error: StoreError) -> None:
        self.error = error
        self._flying = self._trouble = None
        for saved in self._waiting:
            if not saved.done():
                saved.set_result(None)
        self._waiting.clear()
        self._touched.clear()
        self._lost(error)


async def until_known(call: Callable[[], Awaitable[T]], clock: Clock, patience: float) -> T:
    """Repeat a write that failed, to the letter, until it is known what became of it.

    Args:
        call: Makes the identical write.
        clock: Where time comes from.
        patience: Seconds after which the last error is raised.

    Raises:
        StoreError: What the store said; after `patience` also that it does not know.
    """
    started, delay = clock.monotonic(), _FIRST_DELAY
    while True:
        await clock.sleep(delay)
        delay = min(2 * delay, _LONGEST_DELAY)
        try:
            return await call()
        except (StoreUnavailableError, UncertainWriteError):
            if clock.monotonic() + delay - started > patience:
                raise
