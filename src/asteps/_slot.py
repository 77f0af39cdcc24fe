"""A concurrent child's place under its group's limit, which it gives back while it waits."""

from __future__ import annotations

from collections.abc import Callable

import anyio

__all__ = ["Slot"]


class Slot:
    """One place under a limit.

    A child holds it while anything below it works. While all of that stands still, waiting for its
    time, the place is another's; before any of it goes on, it is taken again. Of nested places the
    outer one is taken first, so nobody waits in a circle.

    Args:
        limiter: The limit.
        moved: Told 1 when the place is given back for a while, -1 when it is taken again.
    """

    def __init__(
        self, limiter: anyio.CapacityLimiter, moved: Callable[[int], None] | None = None
    ) -> None:
        self.limiter = limiter
        self._moved = moved
        self._held = False
        self._away = False
        self._taking: anyio.Event | None = None  # somebody waits for it already

    async def take(self) -> None:
        """Return when the place is held; several tasks of the child's may ask at once."""
        while not self._held:
            if self._taking is not None:
                await self._taking.wait()
                continue
            try:
                self.limiter.acquire_on_behalf_of_nowait(self)
            except anyio.WouldBlock:
                taken = self._taking = anyio.Event()
                try:
                    await self.limiter.acquire_on_behalf_of(self)
                finally:
                    self._taking = None
                    taken.set()
            self._held = True
            self._move(away=False)

    def give(self) -> None:
        """Let others have the place for a while."""
        if self._held:
            self._release()
            self._move(away=True)

    def leave(self) -> None:
        """Let others have the place for good."""
        self._release()
        self._move(away=False)

    def _release(self) -> None:
        if self._held:
            self._held = False
            self.limiter.release_on_behalf_of(self)

    def _move(self, *, away: bool) -> None:
        if self._moved is not None and self._away != away:
            self._away = away
            self._moved(1 if away else -1)
