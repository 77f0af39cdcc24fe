"""What tests of concurrent children need: a clock, a store, and bodies that note what they do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from anyio.lowlevel import checkpoint
from clocks import FakeClock

from asteps import State, Step, load_state, reconcile, run
from asteps.stores.memory import MemoryStore
from asteps.testing import FaultyStore

__all__ = ["World", "came_to", "ended"]

Body = Callable[[Step], Awaitable[str]]


def came_to(state: State) -> dict[str, str]:
    """What every step of a tree came to, by path."""
    kinds = ("done", "failed", "pending", "proceeding")
    return {
        path: next((kind for kind in kinds if getattr(node, kind)), "nothing")
        for path, node in state.walk()
        if path
    }


def ended(state: State) -> dict[str, object]:
    """When the steps of a tree ended, by path."""
    return {path: node.done_at for path, node in state.walk() if path}


class World:
    """What outlives a pass, and what bodies did to it.

    Attributes:
        log: Paths of bodies that were begun, in order.
        at_work: How many bodies work right now.
        most: How many worked at the same time, at most.
        begun: How often each body was begun.
        stores: What each driver of `run` and `reconcile` saved through, in order.
    """

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.start = self.clock.now()
        self.store = MemoryStore()
        self.log: list[str] = []
        self.begun: dict[str, int] = {}
        self.at_work = 0
        self.most = 0
        self.stores: list[FaultyStore] = []

    def take(self) -> list[str]:
        """What was begun since the last time."""
        taken, self.log = self.log, []
        return taken

    @property
    def passed(self) -> float:
        """Seconds since the beginning."""
        return self.clock.now() - self.start

    def _keywords(self, keywords: dict[str, Any]) -> dict[str, Any]:
        self.stores.append(FaultyStore(self.store.client(), keywords.pop("faults", None)))
        return {"store": self.stores[-1], "id": "r", "clock": self.clock, "name": "r", **keywords}

    async def reconcile(self, fn: Callable[..., Awaitable[Any]], *args: Any, **kw: Any) -> Any:
        """One pass."""
        return await reconcile(fn, *args, **self._keywords(kw))

    async def run(self, fn: Callable[..., Awaitable[Any]], *args: Any, **kw: Any) -> Any:
        """To the end."""
        return await run(fn, *args, **self._keywords(kw))

    @property
    def saves(self) -> int:
        """How many saves the last driver made."""
        return self.stores[-1].saves

    async def state(self) -> State:
        """What is stored."""
        state = await load_state(self.store, "r")
        assert state is not None
        return state

    # -- bodies --

    @contextmanager
    def working(self, s: Step) -> Iterator[int]:
        """A body works; how often it has been begun, this time included."""
        self.log.append(s.path)
        self.begun[s.path] = self.begun.get(s.path, 0) + 1
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        try:
            yield self.begun[s.path]
        finally:
            self.at_work -= 1

    async def leaf(self, s: Step, *_: object) -> str:
        """Work for a moment."""
        with self.working(s):
            await checkpoint()
            return s.path

    async def hang(self, s: Step, *_: object) -> str:
        """Work until cancelled."""
        with self.working(s):
            await anyio.sleep_forever()
        raise AssertionError

    async def fail(self, s: Step, *_: object) -> str:
        """Work for a moment, and fail."""
        with self.working(s):
            await checkpoint()
            raise ConnectionError(s.path)

    def ticking(self, seconds: float) -> Body:
        """A body that works for so long."""

        async def body(s: Step, *_: object) -> str:
            with self.working(s):
                await self.clock.sleep(seconds)
                return s.path

        return body

    def late(self, seconds: float) -> Body:
        """A body that works for so long and then fails."""

        async def body(s: Step, *_: object) -> str:
            with self.working(s):
                await self.clock.sleep(seconds)
                raise ConnectionError(s.path)

        return body

    def pending(self, times: int, after: float = 5, *, work: float = 0) -> Body:
        """A body that is pending so often, and works for so long each time."""

        async def body(s: Step, *_: object) -> str:
            with self.working(s) as count:
                if work:
                    await self.clock.sleep(work)
                if count <= times:
                    s.pending(after=after, why=f"{s.path} {count}")
                return s.path

        return body

    def flaky(self, times: int) -> Body:
        """A body that fails so often."""

        async def body(s: Step, *_: object) -> str:
            with self.working(s) as count:
                await checkpoint()
                if count <= times:
                    raise ConnectionError(f"{s.path} {count}")
                return s.path

        return body
