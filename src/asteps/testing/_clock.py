"""A clock that nobody waits for: sleeping moves it, and what is due on the way happens in order."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Generic, TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint, current_token

from .._loop import Wakeup, current_loop
from .._policy import Duration, duration

__all__ = ["MockClock"]

_TURNS = 1_000  # of the event loop, after which a task that is never idle is not waited for
_NEVER_IDLE = 0.1  # seconds; the same where turns cannot be counted, before they are spent
_PATIENCE = 1.0  # seconds that a worker thread may hold the time
_GLANCE = 0.001  # seconds between two looks at the worker threads
_MICROSECOND = 1e-6
_FEW = 64  # abandoned entries that are not worth clearing away


class MockClock:
    """An `asteps.Clock` in which hours pass at once, and in order.

    ::

        clock = MockClock()
        report = await asteps.run(move_to_vpc, "vm-42", clock=clock)
        assert clock.slept == [60, 5, 5]

    Time stands still but in `sleep` and `advance`. When all that is left to do is to sleep, it
    moves: to the moment at which the first sleeper wakes, but not past a deadline of
    `move_on_after`, whose scope is cancelled on the way. So steps under one parent that wait for
    5, 7 and 10 seconds go on in this order, and a step under ``timeout=8`` that sleeps for ten
    fails at eight. Of what is due at the same moment deadlines come first, then sleepers in the
    order in which they lay down.

    "All that is left to do" means:

    - no task of the event loop can run. A task that always can (one that polls by checkpoints) is
      given a thousand turns of the loop, each time;
    - no worker thread of anyio's default limiter is at work, such as one that `Step.call` uses for
      a plain function. Such a thread is waited for, but not longer than a second;
    - ``grace`` seconds have passed in reality.

    What the clock cannot see is a task that waits for something real: a socket, a subprocess, a
    thread of its own (`SQLiteStore` has one). Such a task looks like one that waits for another
    task, so time may move on, and a step under ``timeout=`` that talks to a real server may fail
    because another step sleeps. With ``grace=0.05`` nothing is overtaken that takes less than
    50 ms in reality; then each move of the time takes as long. A timeout alone moves nothing: if
    nobody sleeps, time stands still until `advance`.

    Only what asks this clock goes fast: pendings, retries, timeouts, budgets, leases, and a body
    that awaits ``clock.sleep(…)``. ``anyio.sleep`` in a body takes the time it takes.

    Args:
        now: What it shows at first, in seconds since the epoch.
        grace: Seconds (or a ``timedelta``) that each move of the time takes in reality, for the
            sake of what the clock cannot see; 0 by default.

    Attributes:
        slept: The seconds of each sleep that was asked for, in order.

    A clock serves the tasks of one event loop at a time.
    """

    def __init__(self, now: float = 1_700_000_000.0, *, grace: Duration = 0.0) -> None:
        self._now = round(float(now), 6)
        self._grace = duration(grace, "MockClock(grace=…)", zero=True)
        self._sleepers: _Agenda[_Sleeper] = _Agenda()
        self._deadlines: _Agenda[_Deadline] = _Agenda()
        self._is_moved = False  # a sleeper looks after the time, for all of them
        self._has_cancelled = False  # at the present moment; sleepers see to it that it shows
        self.slept: list[float] = []

    def now(self) -> float:
        """See `Clock.now`."""
        return self._now

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return self._now

    def advance(self, seconds: Duration, /) -> None:
        """Let time pass: between two passes, or for what a body does.

        What comes due meanwhile happens at the new time, as after a machine was suspended.

        Args:
            seconds: Seconds, or a ``timedelta``; at least 0.
        """
        self._to(self._in(duration(seconds, "advance()", zero=True)))

    async def sleep(self, seconds: float, /) -> None:
        """See `Clock.sleep`."""
        self.slept.append(seconds)
        if seconds <= 0:
            await checkpoint()
            return
        if seconds == float("inf"):
            await anyio.sleep_forever()
        if not self._sleepers:
            self._loop = current_loop()
        sleeper = _Sleeper(self._loop.wakeup())
        self._sleepers.add(self._in(seconds), sleeper)
        try:
            while not sleeper.gone:
                if self._is_moved:
                    await sleeper.wakeup
                    if not sleeper.gone:
                        sleeper.wakeup = self._loop.wakeup()
                else:
                    self._is_moved = True
                    try:
                        await self._move(sleeper)
                    finally:
                        self._is_moved = False
        finally:
            self._sleepers.remove(sleeper)
            if not self._is_moved and (other := self._sleepers.first()) is not None:
                other.wake()  # it is for another one now to move the time
        if self._has_cancelled:
            await checkpoint()

    @contextmanager
    def move_on_after(self, seconds: float, /) -> Iterator[anyio.CancelScope]:
        """See `Clock.move_on_after`."""
        with anyio.CancelScope() as scope:
            deadline = _Deadline(scope)
            self._deadlines.add(self._in(seconds), deadline)
            if seconds <= 0:
                scope.cancel()
            try:
                yield scope
            finally:
                self._deadlines.remove(deadline)

    def _in(self, seconds: float) -> float:
        """So many seconds from now, in whole microseconds as trees hold times: nobody is early."""
        due = self._now + seconds
        whole = round(due, 6)
        return whole if whole >= due else round(due + _MICROSECOND, 6)

    async def _move(self, sleeper: _Sleeper) -> None:
        """Move the time, again and again, until this sleeper's has come."""
        while not sleeper.gone:
            await self._all_wait()
            if not sleeper.gone:  # advance() may have come first
                self._to(min(self._sleepers.next_due(), self._deadlines.next_due()))

    def _to(self, now: float) -> None:
        self._now = max(self._now, now)
        self._has_cancelled = False
        for deadline in self._deadlines.take_due(self._now):
            self._has_cancelled = True
            deadline.scope.cancel()
        for sleeper in self._sleepers.take_due(self._now):
            sleeper.wake()

    async def _all_wait(self) -> None:
        """Return when all that is left to do is to sleep, as far as can be seen."""
        if self._grace:
            await anyio.sleep(self._grace)
        await _loop_is_idle()
        threads = anyio.to_thread.current_default_thread_limiter()
        if threads.borrowed_tokens:
            patience = time.monotonic() + _PATIENCE
            while threads.borrowed_tokens and time.monotonic() < patience:
                await anyio.sleep(_GLANCE)
                await _loop_is_idle()


class _Sleeper:
    """A task in `MockClock.sleep`."""

    __slots__ = ("gone", "wakeup")

    def __init__(self, wakeup: Wakeup) -> None:
        self.wakeup = wakeup  # by which it is told to look what there is to do
        self.gone = False  # its time has come, or it was cancelled

    def wake(self) -> None:
        """Let it look."""
        if not self.wakeup.done():
            self.wakeup.set_result(None)


class _Deadline:
    """A scope of `MockClock.move_on_after`."""

    __slots__ = ("gone", "scope")

    def __init__(self, scope: anyio.CancelScope) -> None:
        self.scope = scope
        self.gone = False


Item = TypeVar("Item", _Sleeper, _Deadline)


class _Agenda(Generic[Item]):
    """What is due when, soonest first; of the same moment in the order of `add`."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Item]] = []
        self._numbers = count()
        self._removed = 0  # of those in the heap

    def __bool__(self) -> bool:
        return len(self._heap) > self._removed

    def add(self, due: float, item: Item) -> None:
        """Note an item."""
        heapq.heappush(self._heap, (due, next(self._numbers), item))

    def remove(self, item: Item) -> None:
        """Forget an item, if it is not gone yet."""
        if item.gone:
            return
        item.gone = True
        self._removed += 1
        if self._removed > _FEW and 2 * self._removed > len(self._heap):
            self._heap = [line for line in self._heap if not line[2].gone]
            heapq.heapify(self._heap)
            self._removed = 0

    def first(self) -> Item | None:
        """The item that is due first, if there is one."""
        while self._heap and self._heap[0][2].gone:
            heapq.heappop(self._heap)
            self._removed -= 1
        return self._heap[0][2] if self._heap else None

    def next_due(self) -> float:
        """When the first item is due; infinite if there is none."""
        return float("inf") if self.first() is None else self._heap[0][0]

    def take_due(self, now: float) -> Iterator[Item]:
        """Take out what is due."""
        while self.next_due() <= now:
            item = heapq.heappop(self._heap)[2]
            item.gone = True
            yield item


async def _loop_is_idle() -> None:
    """Return when no other task can run, after a thousand turns of the loop at the latest."""
    loop = current_token().native_token
    ready = getattr(loop, "_ready", None)
    if ready is None and not hasattr(loop, "call_soon"):  # trio, which knows
        with anyio.move_on_after(_NEVER_IDLE):
            await anyio.wait_all_tasks_blocked()
            return
    for _ in range(_TURNS):
        await checkpoint()
        if ready is not None and not ready:  # of a loop that does not show it, all turns are spent
            return
