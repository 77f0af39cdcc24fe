"""A clock that nobody waits for: sleeping moves it, and what was due happens on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from anyio.lowlevel import checkpoint

__all__ = ["FakeClock"]

_TURNS = 6  # checkpoints that other tasks get to come to their own sleeps, before time moves


class FakeClock:
    """An `asteps.Clock` in which hours pass at once, and in order.

    Time stands still but in `sleep` and `advance`. Of several sleepers the earliest moves it, and
    no further than to the next deadline of a `move_on_after`, whose scope is then cancelled.
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._sleepers: list[float] = []
        self._scopes: dict[anyio.CancelScope, float] = {}
        self.slept: list[float] = []  # seconds that were asked for, in order

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float, /) -> None:
        self.slept.append(seconds)
        due = self._now + seconds
        self._sleepers.append(due)
        try:
            await checkpoint()
            while self._now < due:
                for _ in range(_TURNS):
                    await checkpoint()
                self._to(min([*self._sleepers, *self._scopes.values()]))
                await checkpoint()
        finally:
            self._sleepers.remove(due)

    @contextmanager
    def move_on_after(self, seconds: float, /) -> Iterator[anyio.CancelScope]:
        with anyio.CancelScope() as scope:
            self._scopes[scope] = self._now + seconds
            self._cancel_due()
            try:
                yield scope
            finally:
                self._scopes.pop(scope, None)

    def advance(self, seconds: float) -> None:
        """Let time pass while nobody sleeps: between two passes, or for work in a body."""
        self._to(self._now + seconds)

    def _to(self, now: float) -> None:
        self._now = max(self._now, now)
        self._cancel_due()

    def _cancel_due(self) -> None:
        for scope, due in list(self._scopes.items()):
            if due <= self._now:
                del self._scopes[scope]
                scope.cancel()
