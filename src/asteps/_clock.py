"""Where the engine gets its time from."""

from __future__ import annotations

import time
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import anyio

__all__ = ["Clock", "SystemClock"]


@runtime_checkable
class Clock(Protocol):
    """Time as an input, so that tests can make hours pass in no time.

    Every wait and every deadline of the engine goes through its clock.
    """

    def now(self) -> float:
        """Wall time, seconds since the epoch (UTC)."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go backwards, from an arbitrary start."""
        ...

    async def sleep(self, seconds: float, /) -> None:
        """Return after this many seconds; cancellable.

        Args:
            seconds: At least 0; 0 is one checkpoint.
        """
        ...

    def move_on_after(self, seconds: float, /) -> AbstractContextManager[anyio.CancelScope]:
        """A cancel scope that is cancelled after this many seconds."""
        ...


class SystemClock:
    """The machine's clock and the event loop's timers."""

    now: staticmethod[[], float] = staticmethod(time.time)
    monotonic: staticmethod[[], float] = staticmethod(time.monotonic)
    sleep: staticmethod[[float], Coroutine[Any, Any, None]] = staticmethod(anyio.sleep)
    move_on_after: staticmethod[[float], anyio.CancelScope] = staticmethod(anyio.move_on_after)
